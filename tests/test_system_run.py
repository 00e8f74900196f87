"""What a run says of every layer, against figures by hand: order of fused attention, cycles, bounds, bytes of tables
and caches, and what reading an epilogue's operand costs."""

import itertools

import pytest
from systems import engine, machine, product

from hwsim.energy import DRAM_PJ_PER_BIT
from hwsim.system import power
from hwsim.system.program import SCORES, Loop
from hwsim.system.run import run
from hwsim.system.tiling import Image, Tiling
from hwsim.workloads.graph import Attention, Gemm, Role
from hwsim.workloads.graph import Builder as GraphBuilder
from hwsim.workloads.huggingface import from_config
from hwsim.workloads.transformer_shapes import lookup

OPERANDS = ("activations", "weights", "outputs")


def roomy(kib=64.0, **over):
    """A machine with a vector unit and three scratchpads of that size."""
    pads = tuple({"name": f"s{i}", "holds": (kind,), "kib": kib} for i, kind in enumerate(OPERANDS))
    return machine(**({"scratchpads": pads, "vector": {"lanes": 8}} | over))


# --- what attention waits for ----------------------------------------------------------------------------------------


def written_keys():
    """Keys and values that layers before the attention write; its queries are there from the start."""
    b = GraphBuilder("g")
    x, q = b.tensor("x", (24, 32)), b.tensor("q", (24, 32))
    k, v = (b.linear(name, x, 16, Role.CACHE) for name in "kv")
    op = Attention(batch=1, heads=4, kv_heads=2, queries=24, keys=24, head_dim=8, value_dim=8)
    b.add("a", op, (q, k, v), (24, 32))
    return b.graph()


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    "attention, readers", [("fused", {"a": "v"}), ("unfused", {"a.scores": "k", "a.context": "v"})]
)
def test_keys_and_values_are_read_after_they_are_written(attention, readers, double):
    m = roomy(attention=attention, prefetch=True, double_buffering=double, dram={"bytes_per_cycle": 64.0})
    found = run(written_keys(), m, record=True)
    places = {layer.name: i for i, layer in enumerate(found.layers)}
    ends = {layer.name: layer.end for layer in found.layers}
    for reader, writer in readers.items():
        loads = [s.begin for s in of(found, "dma read", places[reader]) if s.name == "weights"]
        assert min(loads) >= ends[writer], reader
    first = "a" if attention == "fused" else "a.scores"
    assert min(s.begin for s in of(found, "dma read", places[first]) if s.name == "weights") >= ends["k"]


def of(result, track, stage):
    return [s for s in result.slices if s.track == track and s.stage == stage]


# --- the order of fused attention ------------------------------------------------------------------------------------


def unrolled(nodes):
    for node in nodes:
        if isinstance(node, Loop):
            for _ in range(node.count):
                yield from unrolled(node.body)
        else:
            yield node


def groups(result):
    """Slices of the engine, a list for each block of queries: scores, and context; units do their steps in order."""
    scores, context = [], []
    steps = [step for step in unrolled(result.built[0].stage.nodes) if step.unit == "array"]
    for step, taken in zip(steps, of(result, "array", 0), strict=True):
        if any(move.buffer == SCORES for move in step.loads):
            scores.append(current := [])
        elif step.new_out:
            context.append(current := [])
        current.append(taken)
    return scores, context


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("queries, keys, kib", [(64, 24, 2.0), (37, 40, 3.0), (7, 64, 1.0), (12, 20, 64.0)])
@pytest.mark.parametrize("lanes", [1, 8, 4096])
def test_context_waits_for_its_softmax_and_that_for_its_scores(double, queries, keys, kib, lanes):
    b = GraphBuilder("g")
    q = b.tensor("q", (queries, 32))
    k, v = (b.tensor(name, (keys, 16), Role.CACHE) for name in "kv")
    op = Attention(batch=1, heads=4, kv_heads=2, queries=queries, keys=keys, head_dim=8, value_dim=8)
    b.add("a", op, (q, k, v), (queries, 32))
    m = roomy(kib, attention="fused", double_buffering=double, vector={"lanes": lanes})
    found = run(b.graph(), m, record=True)
    (_, tiling), _ = found.built[0].products
    tile, _, chunk = tiling.tile
    softmax, (scores, context) = of(found, "vector", 0), groups(found)
    blocks = 2 * -(-2 * queries // tile)
    assert [len(scores), len(softmax), len(context)] == [blocks] * 3
    assert {len(group) for group in (*scores, *context)} == {-(-keys // chunk)}
    for mine, between, after in zip(scores, softmax, context, strict=True):
        assert mine[-1].end <= between.begin
        assert min(s.begin for s in after) >= between.end
    overlaps = [between.end > ahead[0].begin for between, ahead in zip(softmax, scores[1:], strict=False)]
    assert all(overlaps) if double and lanes == 1 else double or not any(overlaps)


# --- bytes -----------------------------------------------------------------------------------------------------------

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize("attention", ["fused", "unfused"])
@pytest.mark.parametrize("cache, weights", [(4, 8), (16, 8), (8, 4)])
def test_a_step_of_decode_reads_every_cached_key_and_value_once(attention, cache, weights):
    batch, context = 3, 20
    graph = from_config(LLAMA, "llama", phase="decode", batch=batch, context=context)
    found = run(graph, roomy(attention=attention, widths={"cache": cache, "weights": weights}))
    parts = [layer for layer in found.layers if ".attention" in layer.name and layer.macs]
    assert len(parts) == (1 if attention == "fused" else 2)
    values = batch * (context + 1) * 2 * 8
    assert sum(layer.read_bytes["weights"] for layer in parts) == 2 * values * cache / 8
    assert {layer.read_bytes["weights"] for layer in parts} == {2 * values * cache / 8 / len(parts)}


def bytes_by_weight_bits(graph, **over):
    """Bytes read with weights of 8 bits, less those with weights of 4: a half of a byte for each weight."""
    read = [sum(sum(layer.read_bytes.values()) for layer in at.layers) for at in at_both_widths(graph, **over)]
    return read[1] - read[0]


def at_both_widths(graph, **over):
    return [run(graph, roomy(widths={"weights": bits, "hidden": 16}, **over)) for bits in (4, 8)]


@pytest.mark.parametrize("entries", [3, 5, 1000])
@pytest.mark.parametrize("with_ids", [False, True])
def test_an_embedding_reads_the_rows_that_it_takes(entries, with_ids):
    b = GraphBuilder("g")
    ids = (b.tensor("ids", (1, 3)),) if with_ids else ()
    lookup(b, "embed", entries, 8, 3, ids)
    assert bytes_by_weight_bits(b.graph()) == 3 * 8 / 2
    layer = at_both_widths(b.graph())[1].layers[0]
    assert 3 * 8 <= sum(layer.read_bytes.values()) <= 3 * 8 + (3 * 8 if with_ids else 0)
    assert layer.written_bytes == 3 * 8 * 2


@pytest.mark.parametrize("shape, read", [((6, 16), 6 * 16), ((16,), 0)])
@pytest.mark.parametrize("kind", ["add", "mul", "layernorm"])
def test_a_matrix_of_weights_is_read_and_a_vector_is_not(shape, read, kind):
    b = GraphBuilder("g")
    x, table = b.tensor("x", (6, 16)), b.tensor("table", shape, Role.WEIGHT)
    b.vector("add", kind, x, table)
    assert bytes_by_weight_bits(b.graph()) == read / 2


@pytest.mark.parametrize("shape, read", [((6, 16), 6 * 16), ((16,), 0)])
@pytest.mark.parametrize("fuse", [False, True])
def test_a_matrix_of_weights_is_read_behind_a_product_too(shape, read, fuse):
    b = GraphBuilder("g")
    y = b.linear("fc", b.tensor("x", (6, 8)), 16)
    b.vector("add", "add", y, b.tensor("table", shape, Role.WEIGHT))
    assert bytes_by_weight_bits(b.graph(), fuse=fuse) == (8 * 16 + read) / 2


# --- images whose rows are not all read ------------------------------------------------------------------------------


@pytest.mark.parametrize("span, stride", [(1, 2), (2, 3), (1, 4), (3, 3)])
@pytest.mark.parametrize("images", [1, 3])
def test_rows_between_those_that_a_kernel_touches_are_not_read(span, stride, images):
    out_rows, pixels, width = 5, 4, 11
    height = (out_rows - 1) * stride + span + 1
    sizes = {"in_rows": images * height, "in_width": width, "taps": 2 * span, "channels": 3}
    image = Image(row_pixels=pixels, out_rows=out_rows, stride=stride, span=span, **sizes)
    for rows in range(1, images * out_rows + 1):
        most = max(len(touched(at, rows, image, height)) for at in range(0, images * out_rows - rows + 1, rows))
        assert image.elements(rows * pixels, 3 * 2 * span) == most * width * 3, rows


def touched(first, rows, image, height):
    """Rows of all images, one below the other, that so many output rows from `first` on are computed from."""
    return {
        out // image.out_rows * height + out % image.out_rows * image.stride + i
        for out, i in itertools.product(range(first, first + rows), range(image.span))
    }


# --- cycles of layers ------------------------------------------------------------------------------------------------


def test_cycles_of_layers_add_up_where_one_ends_before_an_earlier_one():
    b = GraphBuilder("g")
    b.linear("slow", b.tensor("x", (64, 64)), 64)
    b.vector("quick", "rmsnorm", b.tensor("y", (2, 8)))
    b.linear("last", b.tensor("z", (64, 16)), 16)
    found = run(b.graph(), roomy(prefetch=True, dram={"bytes_per_cycle": 64.0}, dma={"channels": 4}))
    slow, quick, last = found.layers
    assert quick.end < slow.end < last.end
    assert (slow.cycles, quick.cycles, last.cycles) == (slow.end, 0, last.end - slow.end)
    assert sum(layer.cycles for layer in found.layers) == found.total_cycles


def test_cycles_of_layers_add_up_on_two_engines():
    array = {"unit": "systolic", "set": {"rows": 4, "cols": 4}}
    engines = ({"name": "one", "tasks": ("gemm",), **array}, {"name": "two", "tasks": ("attention",), **array})
    b = GraphBuilder("g")
    b.linear("slow", b.tensor("x", (64, 64)), 64)
    b.add("quick", Gemm(M=4, K=4, N=4), (b.tensor("y", (4, 4)), b.tensor("w", (4, 4))), (4, 4))
    b.linear("last", b.tensor("z", (64, 16)), 16)
    dram, dma = {"bytes_per_cycle": 64.0}, {"channels": 4}
    found = run(b.graph(), roomy(prefetch=True, engines=engines, dram=dram, dma=dma))
    assert found.layers[1].end < found.layers[0].end
    assert [layer.unit for layer in found.layers] == ["one", "two", "one"]
    assert sum(layer.cycles for layer in found.layers) == found.total_cycles


# --- what bounds a layer ---------------------------------------------------------------------------------------------


def only_layer(graph, **over):
    (layer,) = run(graph, roomy(**over)).layers
    return layer


def dense(kind=None):
    """64 x 16 times 16 x 16: 16384 multiply-accumulates, 1024 + 256 bytes read and 2048 written."""
    b = GraphBuilder("g")
    y = b.linear("fc", b.tensor("x", (64, 16)), 16)
    if kind:
        b.vector(kind, kind, y)
    return b.graph()


@pytest.mark.parametrize(
    "rate, bound, cycles",
    [
        (None, "compute", 16384 // 16),
        (64.0, "compute", 16384 // 16),
        (1.0, "memory", 1024 + 256 + 2048),
        (0.5, "memory", 2 * (1024 + 256 + 2048)),
    ],
)
def test_the_roofline_is_the_larger_of_work_and_bytes(rate, bound, cycles):
    layer = only_layer(dense(), dram={"bytes_per_cycle": rate})
    assert (layer.bound, layer.bound_cycles) == (bound, cycles)
    assert layer.cycles >= layer.bound_cycles


def test_a_slow_epilogue_bounds_a_product():
    layer = only_layer(dense("gelu"), vector={"lanes": 1})
    assert (layer.bound, layer.unit, layer.unit_cycles["vector"]) == ("epilogue", "array", 64 * 16 * 6)
    assert only_layer(dense("gelu"), vector={"lanes": 4096}).bound == "compute"


def test_a_layer_of_the_vector_unit_is_bound_by_its_own_work():
    b = GraphBuilder("g")
    b.vector("norm", "rmsnorm", b.tensor("x", (8, 16)))
    layer = only_layer(b.graph(), vector={"lanes": 1})
    assert (layer.bound, layer.compute_cycles) == ("compute", 8 * 16 * 4)


@pytest.mark.parametrize("late, bound", [(0, "compute"), (1, "latency")])
def test_latency_bounds_what_leaves_everything_idle_for_more_than_half(late, bound):
    """One step: both operands come after the same latency, then the engine is at work, then nothing is left to do."""
    tile = {"layers": ({"match": "fc", "tile": (64, 16, 16)},)}
    at_once = {"schedule": tile, "dma": {"channels": 2}}
    work = only_layer(dense(), **at_once)
    assert work.cycles == work.compute_cycles
    waiting = only_layer(dense(), **at_once, dram={"latency_cycles": work.cycles + late})
    assert waiting.cycles == 2 * work.cycles + late
    assert waiting.bound == bound


# --- energy ----------------------------------------------------------------------------------------------------------


def test_an_operand_of_an_epilogue_is_written_to_its_scratchpad_and_read_from_it():
    """8 KiB of activations cost 10 pJ for 64 bits, 32 KiB of outputs 20 (Horowitz, ISSCC 2014)."""
    sizes = zip(OPERANDS, (8.0, 1024.0, 32.0), strict=True)
    pads = tuple({"name": kind, "holds": (kind,), "kib": kib} for kind, kib in sizes)
    m = machine(scratchpads=pads, vector={"lanes": 8})
    plain, with_extra = (product(8, 16, 12, lane_ops=1, extra_bits=bits) for bits in (0, 16))
    tiling = Tiling(order="mnk", tile=(4, 16, 12))
    less, more = (power.product_energy_pj(work, tiling, engine(m), m) for work in (plain, with_extra))
    bits = 8 * 12 * 16
    assert more["scratchpads"] - less["scratchpads"] == pytest.approx(2 * bits * 10 / 64)
    assert more["dram"] - less["dram"] == pytest.approx(bits * DRAM_PJ_PER_BIT)
    assert all(more[part] == less[part] for part in ("engine", "vector"))


# --- bytes at each level ---------------------------------------------------------------------------------------------


def test_bytes_at_the_scratchpads_are_those_of_both_sides():
    """One tile: what memory brings and takes, and the words that cross the array's edge; a norm: both sides alike."""
    b = GraphBuilder("g")
    b.vector("norm", "rmsnorm", b.linear("fc", b.tensor("x", (12, 16)), 8))
    m = roomy(widths={"activations": 8, "weights": 4, "hidden": 16})
    product_, norm = run(b.graph(), m).layers
    words = engine(m).work((12, 16, 8)).words
    acc_bits = m.engines[0].made.acc_bits
    assert product_.scratchpad_bytes == {
        "activations": 12 * 16 + words["act"],
        "weights": 16 * 8 // 2 + words["weight"] // 2,
        "outputs": 12 * 8 * 2 + (words["psum"] + words["out"]) * acc_bits // 8,
    }
    assert norm.scratchpad_bytes == {"activations": 2 * 12 * 8 * 2, "weights": 0, "outputs": 2 * 12 * 8 * 2}


def test_probabilities_lie_where_the_scores_do():
    """Fused attention: the activations' scratchpad sees queries alone."""
    found = run(written_keys(), roomy(attention="fused"))
    attention = next(layer for layer in found.layers if layer.what == "attention")
    scores = Attention(batch=1, heads=4, kv_heads=2, queries=24, keys=24, head_dim=8, value_dim=8).scores
    m = roomy()
    crossed = scores.batch * engine(m).work((scores.M, scores.K, scores.N)).words["act"]
    assert attention.scratchpad_bytes["activations"] == attention.read_bytes["activations"] + crossed
