"""A layer graph on a machine: widths, what is done together, what waits for what, blocks that repeat, and attention."""

import itertools
import math
import random
from dataclasses import replace
from fractions import Fraction

import pytest
from systems import machine

from hwsim.system.lower import Planned, plan, waits_of, widths_of
from hwsim.system.program import repeats, steps_of
from hwsim.system.run import run
from hwsim.system.simulate import simulate
from hwsim.system.stages import Builder
from hwsim.workloads.graph import Attention, Conv, Gemm, Layer, Quantize, Role, Transform, Vector
from hwsim.workloads.graph import Builder as GraphBuilder
from models.unit import InputError

VECTOR = {"vector": {"lanes": 8}}
BIG = tuple(
    {"name": f"s{i}", "holds": (kind,), "kib": 64.0} for i, kind in enumerate(("activations", "weights", "outputs"))
)


def big(**over):
    return machine(**({"scratchpads": BIG} | VECTOR | over))


def planned(graph, **over):
    entries, _ = plan(graph, big(**over))
    return {entry.name: entry for entry in entries}


def chain(*kinds, rows=6, width=8, outputs=8):
    """x times a weight, then vector layers one after the other."""
    b = GraphBuilder("chain")
    x = b.tensor("x", (rows, width))
    y = b.linear("fc", x, outputs)
    for kind in kinds:
        y = b.vector(kind, kind, y)
    return b


# --- widths ----------------------------------------------------------------------------------------------------------


def test_a_tensor_has_the_width_of_its_role_and_of_who_reads_it():
    b = chain("relu")
    b.linear("next", "relu", 4)
    wide = {"activations": 6, "weights": "int4:group=128", "cache": 5, "hidden": 12}
    done = planned(b.graph(), widths=wide)
    first, last = done["fc"].work, done["next"].work
    group = Fraction(4) + Fraction(16, 128)
    assert (first.act_bits, first.weight_bits, first.sum_bits) == (6, group, 32)
    assert (first.out_bits, last.act_bits) == (6, 6), "read by a product"
    assert last.out_bits == 12, "read by nobody"


def test_default_widths_are_those_of_the_engine():
    array = {"name": "array", "unit": "systolic", "set": {"rows": 4, "cols": 4, "act_bits": 7, "weight_bits": 5}}
    found = widths_of(big(engines=(array,)))
    assert (found.activations, found.weights, found.cache, found.hidden) == (7, 5, 5, 16)
    fp16 = {"name": "array", "unit": "lutgemm", "set": {"act_format": "fp16"}}
    assert widths_of(big(engines=(fp16,))).activations == 16


def test_codes_of_a_quantizer_and_second_operands_have_widths_of_their_own():
    b = GraphBuilder("g")
    x, y = b.tensor("x", (4, 8)), b.tensor("y", (4, 8))
    b.add("codes", Quantize(rows=4, channels=8), (x,), (4, 8))
    k = b.tensor("k", (8, 4))
    b.add("scores", Gemm(M=4, K=8, N=4), (y, k), (4, 4))
    widths = {"activations": 5, "cache": 3, "hidden": 16}
    done = planned(b.graph(), widths=widths)
    assert done["codes"].work.out_bits == 8 * 5
    assert done["codes"].work.in_bits == 8 * 16
    assert (done["scores"].work.act_bits, done["scores"].work.weight_bits) == (5, 3)
    assert not done["scores"].work.packed


def test_outputs_that_share_the_columns_have_their_own_widths():
    b = GraphBuilder("g")
    x, w = b.tensor("x", (4, 8)), b.tensor("w", (8, 12), Role.WEIGHT)
    q, k = b.tensor("q", (4, 8)), b.tensor("k", (4, 4), Role.CACHE)
    b.layers.append(Layer(name="qk", op=Gemm(M=4, K=8, N=12), inputs=(x, w), outputs=(q, k)))
    b.add("read", Gemm(M=4, K=8, N=2), (q, b.tensor("v", (8, 2), Role.WEIGHT)), (4, 2))
    done = planned(b.graph(), widths={"activations": 8, "cache": 2, "hidden": 16})
    assert done["qk"].work.out_bits == Fraction(4 * 8 * 8 + 4 * 4 * 2, 48)
    written = run(b.graph(), big(widths={"cache": 2})).layers[0].written_bytes
    assert written == math.ceil(Fraction(4 * 8 * 8 + 4 * 4 * 2, 8))


# --- what is done together -------------------------------------------------------------------------------------------


def test_elementwise_layers_behind_a_product_are_its_epilogue():
    done = planned(chain("relu", "mul", "gelu").graph())
    assert [*done] == ["fc"]
    assert done["fc"].fused == ("relu", "mul", "gelu")
    assert done["fc"].work.lane_ops == 1 + 1 + 6
    assert done["fc"].outputs == ("gelu",)


@pytest.mark.parametrize("kind", ["softmax", "layernorm", "rmsnorm", "reduce", "copy"])
def test_work_on_whole_rows_and_copies_are_no_epilogue(kind):
    assert [*planned(chain(kind).graph())] == ["fc", kind]


def test_nothing_is_done_together_where_the_machine_says_so():
    assert [*planned(chain("relu", "gelu").graph(), fuse=False)] == ["fc", "relu", "gelu"]


def test_a_result_that_others_want_too_is_written():
    b = chain("relu")
    b.vector("other", "gelu", "fc")
    assert [*planned(b.graph())] == ["fc", "relu", "other"]


def test_a_result_of_another_size_is_no_epilogue():
    b = chain()
    b.vector("pool", "maxpool", "fc", shape=(3, 8))
    assert [*planned(b.graph())] == ["fc", "pool"]


def test_a_residual_that_was_there_before_is_read_by_the_epilogue():
    b = chain()
    x = b.tensor("residual", (6, 8))
    b.vector("add", "add", "fc", x)
    done = planned(b.graph(), widths={"hidden": 16})
    assert [*done] == ["fc"]
    assert done["fc"].work.extra_bits == 16
    moved = run(b.graph(), big(widths={"hidden": 16})).layers[0]
    assert moved.read_bytes["epilogue"] == 6 * 8 * 2
    assert moved.read_bytes["activations"] == 6 * 8


def test_a_smaller_residual_is_read_as_often_as_it_has_elements():
    b = chain()
    b.vector("add", "add", "fc", b.tensor("row", (1, 8)))
    assert planned(b.graph(), widths={"hidden": 16})["fc"].work.extra_bits == Fraction(8 * 16, 48)
    b = chain()
    b.vector("mul", "mul", "fc", b.tensor("gain", (1, 8), Role.WEIGHT))
    assert planned(b.graph())["fc"].work.extra_bits == 0


def test_an_operand_that_comes_later_keeps_a_layer_apart():
    b = chain()
    z = b.linear("later", "x", 8)
    b.vector("add", "add", "fc", z)
    done, _ = plan(b.graph(), big())
    assert [(entry.name, entry.fused) for entry in done] == [("fc", ()), ("later", ("add",))]
    assert done[1].after == {0}, "its epilogue reads what the first one writes"


def test_rows_go_from_unit_to_unit():
    b = GraphBuilder("g")
    x = b.tensor("x", (6, 16))
    y = b.vector("norm", "rmsnorm", x)
    y = b.add("turn", Transform(rows=6, channels=16, block=8), (y,), (6, 16))
    b.add("codes", Quantize(rows=6, channels=16), (y,), (6, 16))
    done = planned(b.graph(), widths={"activations": 4, "hidden": 16})
    assert [*done] == ["norm"]
    work = done["norm"].work
    assert [one.what for one in work.passes] == ["vector", "transform", "quantize"]
    assert work.passes[0].lane_ops == 16 * 4
    assert work.passes[1].block == 8
    assert (work.in_bits, work.out_bits) == (16 * 16, 16 * 4)
    apart = planned(b.graph(), fuse=False)
    assert [*apart] == ["norm", "turn", "codes"]
    busy = run(b.graph(), big()).busy_cycles
    assert all(busy[unit] > 0 for unit in ("vector", "transform", "quantize"))


def test_without_a_vector_unit_its_layers_are_left_out_and_their_waits_kept():
    b = GraphBuilder("g")
    x = b.tensor("x", (4, 8))
    one, two = b.linear("one", x, 8), b.linear("two", x, 8)
    both = b.vector("both", "add", one, two)
    b.linear("three", b.vector("again", "gelu", both), 8)
    entries, notes = plan(b.graph(), big(vector=None))
    assert [entry.name for entry in entries] == ["one", "two", "three"]
    assert entries[2].after == {0, 1}
    assert notes == ["no vector unit: 2 layers of no products left out (both, again, ...)"]


def test_a_copy_reads_only_what_it_moves():
    b = GraphBuilder("g")
    table = b.tensor("table", (1000, 8), Role.WEIGHT)
    b.layers.append(
        Layer(
            name="embed", op=Vector(kind="copy", rows=3, channels=8), inputs=(table,), outputs=(b.tensor("y", (3, 8)),)
        )
    )
    done = run(b.graph(), big(widths={"weights": 4, "hidden": 16})).layers[0]
    assert sum(done.read_bytes.values()) == 3 * 8 // 2
    assert done.written_bytes == 3 * 8 * 2


# --- what waits for what ---------------------------------------------------------------------------------------------


def closure(edges, count):
    """place -> all places that it waits for, directly or not, by following every path."""
    found = []
    for place in range(count):
        reached, left = set(), set(edges[place])
        while left:
            other = left.pop()
            reached.add(other)
            left |= set(edges[other]) - reached
        found.append(reached)
    return found


@pytest.mark.parametrize("seed", range(40))
def test_waits_lose_nothing_and_are_as_few_as_can_be(seed):
    rng = random.Random(seed)
    count = rng.randint(1, 25)
    after = [set(rng.sample(range(i), rng.randint(0, min(i, 4)))) for i in range(count)]
    entries = [Planned(name=str(i), op=None, what="vector", work=None, after=set(after[i])) for i in range(count)]
    waits = [{place - back for back in found} for place, found in enumerate(waits_of(entries))]
    assert closure(waits, count) == closure(after, count)
    for place, others in enumerate(waits):
        for one in others:
            fewer = [set(x) for x in waits]
            fewer[place].discard(one)
            assert closure(fewer, count) != closure(after, count), "a wait too many"


def random_graph(rng, layers=10):
    """A network of rows of 8 or 16 channels: products, residuals, norms, attention, transforms and quantizers."""
    b = GraphBuilder("random")
    live = [b.tensor("x", (6, 16))]
    for i in range(layers):
        x = rng.choice(live[-3:])
        rows, width = b.tensors[x].shape
        same = [y for y in live if b.tensors[y].shape == b.tensors[x].shape]
        match rng.randrange(8):
            case 0 | 1:
                live.append(b.linear(f"fc{i}", x, rng.choice((8, 16))))
            case 2:
                live.append(b.vector(f"v{i}", rng.choice(("relu", "gelu", "rmsnorm", "copy")), x))
            case 3 | 4:
                live.append(b.vector(f"add{i}", rng.choice(("add", "mul")), x, rng.choice(same)))
            case 5:
                live.append(b.add(f"t{i}", Transform(rows=rows, channels=width, block=8), (x,), (rows, width)))
            case 6:
                live.append(b.add(f"q{i}", Quantize(rows=rows, channels=width), (x,), (rows, width)))
            case _:
                op = Attention(
                    batch=1, heads=2, kv_heads=rng.choice((1, 2)), queries=rows, keys=rows, head_dim=8, value_dim=8
                )
                live.append(b.add(f"a{i}", op, (x, rng.choice(live), rng.choice(live)), (rows, 16)))
    return b.graph()


def random_machine(rng):
    over = {"prefetch": rng.random() < 0.7, "double_buffering": rng.random() < 0.6, "fuse": rng.random() < 0.7}
    over["attention"] = rng.choice(("fused", "unfused"))
    over["dram"] = {"bytes_per_cycle": rng.choice((None, 4.0, 16.0)), "latency_cycles": rng.choice((0, 9))}
    over["dma"] = {"channels": rng.randint(1, 3), "setup_cycles": rng.choice((0, 2))}
    if rng.random() < 0.3:
        over["scratchpads"] = ({"name": "s", "holds": ("activations", "weights", "outputs"), "kib": 4.0},)
    if rng.random() < 0.15 and over["attention"] == "unfused":
        over["vector"] = None
    return big(**over)


def place_of(entries):
    """Layer -> the place in the plan where it is done."""
    places = {}
    for place, entry in enumerate(entries):
        base = entry.name.removesuffix(".scores").removesuffix(".softmax").removesuffix(".context")
        places[base] = place
        places |= dict.fromkeys(entry.fused, place)
    return places


@pytest.mark.parametrize("seed", range(40))
def test_whoever_reads_waits_for_whoever_writes(seed):
    rng = random.Random(seed)
    graph, m = random_graph(rng), random_machine(rng)
    try:
        entries, _ = plan(graph, m)
    except InputError:
        assert m.vector is None, "nothing of it runs there"
        return
    waits = [{place - back for back in found} for place, found in enumerate(waits_of(entries))]
    reached, places = closure(waits, len(entries)), place_of(entries)
    for layer in graph.layers:
        for name in layer.inputs:
            for writer in writers(graph, name, places):
                here = places.get(layer.name)
                if here is not None and writer != here:
                    assert writer in reached[here], (layer.name, name)


def writers(graph, name, places):
    """Places that have to end before the tensor can be there, layers that are left out looked through."""
    if name not in graph.producers:
        return set()
    layer = next(layer for layer in graph.layers if layer.name == graph.producers[name])
    if layer.name in places:
        return {places[layer.name]}
    return set().union(*(writers(graph, other, places) for other in layer.inputs))


def test_layers_end_in_the_order_of_their_waits():
    """With prefetch, streams and products overlap; nobody begins to read what is not written."""
    for seed in range(25):
        rng = random.Random(seed)
        graph, m = random_graph(rng), random_machine(rng)
        if m.vector is None:
            continue
        result = run(graph, m, record=True)
        entries = [built.planned for built in result.built]
        for place, back in enumerate(waits_of(entries)):
            reads = [
                s.begin for s in result.slices if s.stage == place and s.track == "dma read" and s.name != "weights"
            ]
            ends = [result.layers[place - i].end for i in back]
            assert min(reads, default=result.total_cycles) >= max(ends, default=0), (seed, place)


@pytest.mark.parametrize("seeds", [range(0, 20), range(20, 40)])
def test_counting_rounds_changes_nothing_in_whole_networks(seeds):
    for seed in seeds:
        rng = random.Random(seed)
        graph, m = random_graph(rng, 5), random_machine(rng)
        if m.vector is None:
            continue
        builder = Builder(m)
        entries, _ = plan(graph, m)
        stages = [builder.build(entry, back).stage for entry, back in zip(entries, waits_of(entries), strict=True)]
        program = repeats(stages * rng.choice((1, 2, 6)))
        short, whole = simulate(program, m), simulate(program, m, skip=False)
        assert (short.total_cycles, short.runs) == (whole.total_cycles, whole.runs), seed


# --- blocks that repeat ----------------------------------------------------------------------------------------------


def deep(blocks):
    b = GraphBuilder("deep")
    x = b.tensor("x", (6, 8))
    for i in range(blocks):
        y = b.linear(f"{i}.up", b.vector(f"{i}.norm", "rmsnorm", x), 16)
        y = b.linear(f"{i}.down", b.vector(f"{i}.act", "gelu", y), 8)
        x = b.vector(f"{i}.add", "add", y, x)
    return b.graph()


def test_blocks_of_a_network_are_simulated_once():
    m = big()
    result = run(deep(30), m)
    program = repeats([built.stage for built in result.built])
    assert max(repeat.count * len(repeat.stages) for repeat in program) >= 28 * 3
    assert [name for repeat in program for name in repeat.names] == [layer.name for layer in result.layers]
    assert result.simulated_steps < sum(layer.steps for layer in result.layers) / 3
    inner = result.layers[6:-6]
    assert {(layer.cycles, layer.bytes) for layer in inner[::3]} == {(inner[0].cycles, inner[0].bytes)}


@pytest.mark.parametrize("seed", range(20))
def test_repeats_tell_every_stage_in_order(seed):
    rng = random.Random(seed)
    m = big()
    result = run(random_graph(rng, 6), m)
    stages = [built.stage for built in result.built]
    sequence = [stages[rng.randrange(min(3, len(stages)))] for _ in range(40)]
    sequence = [replace(part, name=str(i)) for i, part in enumerate(sequence)]
    program = repeats(sequence)
    told = [part for repeat in program for _ in range(repeat.count) for part in repeat.stages]
    assert told == sequence, "names do not count"
    assert [name for repeat in program for name in repeat.names] == [part.name for part in sequence]


# --- convolutions ----------------------------------------------------------------------------------------------------


def conv_graph(op):
    b = GraphBuilder("conv")
    image = b.tensor("image", (op.batch, op.in_channels, op.height, op.width))
    kernel = (op.out_channels, op.in_channels // op.groups, *op.kernel)
    filters = b.tensor("filters", kernel, Role.WEIGHT)
    b.add("conv", op, (image, filters), (op.batch, op.out_channels, *op.output))
    return b.graph()


def touched_pixels(op):
    """Values of the image's rows that the convolution touches, in one group, padding left out."""
    lines = {
        y * op.stride[0] - op.padding[0] + dy * op.dilation[0]
        for y, dy in itertools.product(range(op.output[0]), range(op.kernel[0]))
    }
    rows = [line for line in lines if 0 <= line < op.height]
    return op.batch * len(rows) * op.width * op.in_channels // op.groups


CONVS = [
    Conv(batch=1, in_channels=4, out_channels=8, height=9, width=7, kernel=(3, 3)),
    Conv(batch=1, in_channels=4, out_channels=8, height=9, width=7, kernel=(3, 3), padding=(1, 1, 1, 1)),
    Conv(batch=1, in_channels=3, out_channels=4, height=11, width=11, kernel=(3, 3), stride=(2, 2)),
    Conv(batch=1, in_channels=3, out_channels=4, height=9, width=9, kernel=(2, 2), dilation=(2, 2)),
    Conv(batch=2, in_channels=3, out_channels=4, height=6, width=6, kernel=(3, 3), padding=(1, 1, 1, 1)),
    Conv(batch=1, in_channels=4, out_channels=8, height=9, width=9, kernel=(1, 1), stride=(2, 2)),
    Conv(batch=2, in_channels=3, out_channels=4, height=11, width=8, kernel=(2, 2), stride=(3, 3)),
]


@pytest.mark.parametrize("op", CONVS)
def test_an_image_that_fits_is_read_once_and_without_copies(op):
    found = run(conv_graph(op), big(convolution="indirect"))
    layer = found.layers[0]
    assert layer.shape == (op.gemm.batch, op.gemm.M, op.gemm.K, op.gemm.N)
    assert layer.read_bytes["activations"] == touched_pixels(op)
    assert layer.read_bytes["weights"] == op.gemm.K * op.gemm.N
    assert layer.written_bytes == op.gemm.M * op.gemm.N * 2


@pytest.mark.parametrize("op", CONVS)
def test_a_convolution_by_im2col_writes_the_matrix_and_reads_it(op):
    found = run(conv_graph(op), big(convolution="im2col"))
    laid, layer = found.layers
    matrix = op.gemm.M * op.gemm.K
    assert (laid.name, laid.what) == ("conv.im2col", "vector")
    pixels = op.batch * op.in_channels * op.height * op.width
    assert pixels <= sum(laid.read_bytes.values()) < pixels + laid.steps
    assert laid.written_bytes == matrix
    assert layer.read_bytes["activations"] == matrix
    assert (
        laid.compute_cycles
        == sum(times * step.cycles for times, step in steps_of(found.built[0].stage.nodes))
        >= matrix / 8
    )


def test_a_point_convolution_is_a_plain_product():
    op = Conv(batch=1, in_channels=4, out_channels=8, height=5, width=5, kernel=(1, 1))
    for way in ("im2col", "indirect"):
        layers = run(conv_graph(op), big(convolution=way)).layers
        assert [layer.name for layer in layers] == ["conv"]
        assert layers[0].read_bytes["activations"] == 25 * 4


def test_a_depthwise_convolution_on_either_unit():
    op = Conv(batch=1, in_channels=6, out_channels=6, height=8, width=8, kernel=(3, 3), groups=6)
    on_vector = run(conv_graph(op), big(depthwise="vector")).layers[0]
    on_engine = run(conv_graph(op), big(depthwise="engine")).layers[0]
    assert (on_vector.unit, on_engine.unit) == ("vector", "array")
    assert on_engine.shape == (6, 36, 9, 1)
    assert on_engine.read_bytes["activations"] == 6 * 64
    assert on_vector.compute_cycles >= 6 * 36 * 9 / 8


# --- attention -------------------------------------------------------------------------------------------------------


def attention_graph(queries=12, keys=20, heads=4, kv_heads=2, size=8):
    b = GraphBuilder("attention")
    q = b.tensor("q", (queries, heads * size))
    k, v = (b.tensor(name, (keys, kv_heads * size), Role.CACHE) for name in "kv")
    op = Attention(batch=1, heads=heads, kv_heads=kv_heads, queries=queries, keys=keys, head_dim=size, value_dim=size)
    b.add("a", op, (q, k, v), (queries, heads * size))
    return b.graph(), op


def test_unfused_attention_is_two_products_and_a_softmax():
    graph, op = attention_graph()
    found = run(graph, big(widths={"hidden": 16}))
    scores, softmax, context = found.layers
    assert [layer.name for layer in found.layers] == ["a.scores", "a.softmax", "a.context"]
    assert scores.shape == (2, 24, 8, 20)
    assert context.shape == (2, 24, 20, 8)
    assert scores.written_bytes == 2 * 24 * 20 * 2
    assert sum(softmax.read_bytes.values()) == 2 * 24 * 20 * 2
    assert softmax.written_bytes == context.read_bytes["activations"] == 2 * 24 * 20
    assert found.macs == op.macs


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kib", [8.0, 2.0, 1.0])
def test_fused_attention_keeps_its_scores(double, kib):
    graph, op = attention_graph()
    pads = tuple(pad | {"kib": kib} for pad in BIG)
    m = big(attention="fused", scratchpads=pads, double_buffering=double)
    found = run(graph, m).layers[0]
    (_, tiling), _ = run(graph, m).built[0].products
    tile = tiling.tile[0]
    blocks = math.ceil(24 / tile)
    assert (found.what, found.macs) == ("attention", op.macs)
    assert found.read_bytes == {"activations": 2 * 24 * 8, "weights": 2 * 2 * blocks * 20 * 8}
    assert found.written_bytes == 2 * 24 * 8 * 2
    assert kib > 1 or blocks > 1
    # every block of queries passes the vector unit once, six operations a score
    last = 24 - (blocks - 1) * tile
    softmax = sum(math.ceil(rows * 20 * 6 / 8) for rows in [tile] * (blocks - 1) + [last])
    assert run(graph, m).busy_cycles["vector"] == 2 * softmax


def test_scores_of_two_blocks_overlap_where_there_is_room():
    graph, _ = attention_graph(queries=64)
    pads = tuple(pad | {"kib": 4.0} for pad in BIG)
    common = {"attention": "fused", "scratchpads": pads}
    assert run(graph, big(**common)).total_cycles < run(graph, big(**common, double_buffering=False)).total_cycles


def test_fused_attention_needs_room_and_a_vector_unit():
    graph, _ = attention_graph(keys=2000)
    pads = tuple(pad | {"kib": 2.0} for pad in BIG)
    with pytest.raises(InputError, match=r"layer a: one query's 2000 scores and .* have no room in the scratchpads"):
        run(graph, big(attention="fused", scratchpads=pads))
    with pytest.raises(InputError, match="a: fused attention needs a vector unit; add `vector`"):
        plan(graph, big(attention="fused", vector=None))


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_is_read_and_written_once_whatever_its_pieces():
    for rows, width, kib in itertools.product((1, 7, 100), (16, 300), (1.5, 64.0)):
        b = GraphBuilder("g")
        b.vector("norm", "rmsnorm", b.tensor("x", (rows, width)))
        m = big(scratchpads=tuple(pad | {"kib": kib} for pad in BIG))
        layer = run(b.graph(), m).layers[0]
        assert (sum(layer.read_bytes.values()), layer.written_bytes) == (rows * width * 2,) * 2
        assert layer.compute_cycles >= rows * width * 4 / 8


def test_a_row_without_room_is_refused_by_name():
    b = GraphBuilder("g")
    b.vector("norm", "rmsnorm", b.tensor("x", (4, 3000)))
    m = big(scratchpads=tuple(pad | {"kib": 2.0} for pad in BIG))
    with pytest.raises(InputError, match=r"layer norm: a row takes 6000 \+ 6000 bytes, 2 times, which has no room"):
        run(b.graph(), m)


def test_nothing_that_runs_is_refused():
    b = GraphBuilder("g")
    b.vector("relu", "relu", b.tensor("x", (4, 8)))
    with pytest.raises(InputError, match="g: nothing of it runs on machine m"):
        plan(b.graph(), big(vector=None))
