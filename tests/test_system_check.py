"""The executed schedule: it visits what the simulated nest visits, makes the untiled product, and shows faults."""

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hwsim.system.check as module
from hwsim.simulate import random_operands
from hwsim.system.check import MOST_ELEMENTS, MOST_TILES, check, difference, execute, kept, onnx_operands, shares, walk
from hwsim.system.engines import Array, Engine
from hwsim.system.machine import ORDERS, Machine
from hwsim.system.program import ACT, WEIGHT, Loop
from hwsim.system.run import run
from hwsim.system.tiling import Product, Tiling, compute_cycles, nest
from hwsim.workloads.graph import Attention, Builder, Conv, Gemm, Role
from hwsim.workloads.onnx_file import load_onnx
from models.catalog import UNITS, unit
from models.formats import get_format
from models.gemm import fold_of
from models.unit import InputError

ENGINES = [name for name, entry in UNITS.items() if entry.kind == "gemm"]


def engine(name, params, count=1, split="N"):
    return Engine(
        name="e", array=Array(unit=name, params=params, convention="rtl", sigma=30.0), count=count, split=split
    )


def machine(name="systolic", kib=64, attention="unfused", layers=(), weight_bits=None, **params):
    return Machine.model_validate(
        {
            "name": "m",
            "clock_mhz": 1000,
            "engines": ({"name": "e", "unit": name, "set": params},),
            "scratchpads": ({"name": "pad", "holds": ("activations", "weights", "outputs"), "kib": kib},),
            "vector": {"lanes": 8},
            "attention": attention,
            "widths": {"weights": weight_bits},
            "schedule": {"layers": layers},
        }
    )


def random_case(rng, params, pieces=3):
    """A shape of up to so many folds a side, and a legal tile of it."""
    fold = fold_of(params)
    grains = [min(size, 6) if size > 1 else 4 for size in (fold.M, 1, fold.N)]
    shape = [int(rng.integers(1, pieces * grain + 1)) for grain in grains]
    shape[1] = int(rng.integers(1, pieces * fold.K + 1)) if fold.K > 1 else int(rng.integers(1, 30))
    tile_k = fold.K * int(rng.integers(1, pieces)) if fold.takes_psum else shape[1]
    tile = (int(rng.integers(1, shape[0] + 1)), min(tile_k, shape[1]), int(rng.integers(1, shape[2] + 1)))
    return tuple(shape), tile


def visits_of(shape, tiling):
    return list(walk(dict(zip("bmkn", (1, *shape), strict=True)), tiling))


def executed(maker, shape, tiling, rng, change=lambda visits: visits):
    """The first difference between the (changed) schedule and the untiled product."""
    a, w = random_operands(maker.array.params, rng, shape, None)
    outcome = execute(maker, change(visits_of(shape, tiling)), a, w)
    return difference(outcome, maker.array, a, w)


# ---- the walk


def flat(nodes):
    for node in nodes:
        if isinstance(node, Loop):
            for _ in range(node.count):
                yield from flat(node.body)
        else:
            yield node


def as_step(step):
    """What a step of the simulation moves."""
    loads = {move.buffer: move.bytes for move in step.loads}
    resumed = step.resume.bytes if step.resume else None
    return loads.get(ACT), loads.get(WEIGHT), step.new_out, resumed, step.store.bytes if step.store else None


def as_visit(product, visit):
    m, k, n = (part.stop - part.start for part in (visit.m, visit.k, visit.n))
    leaving = product.out_move(m, n) if visit.complete else product.sum_move(m, n)
    return (
        product.act_move(m, k).bytes if visit.load_act else None,
        product.weight_move(k, n).bytes if visit.load_weight else None,
        visit.new_out,
        product.sum_move(m, n).bytes if visit.resume else None,
        leaving.bytes if visit.leaves else None,
    )


@pytest.mark.parametrize("order", ORDERS)
def test_walk_is_the_nest(order):
    rng = np.random.default_rng(1)
    here = machine(rows=2, cols=3)
    maker = engine("systolic", unit("systolic").params(rows=2, cols=3))
    for _ in range(60):
        size = [int(rng.integers(1, high)) for high in (4, 13, 13, 13)]
        tile = tuple(int(rng.integers(1, most + 1)) for most in size[1:])
        product = Product(
            batch=size[0],
            M=size[1],
            K=size[2],
            N=size[3],
            act_bits=Fraction(8),
            weight_bits=Fraction(16),
            out_bits=Fraction(64),
            sum_bits=32,
            packed=True,
        )
        tiling = Tiling(order=order, tile=tile)
        steps = [as_step(step) for step in flat(nest(product, tiling, maker, here))]
        assert steps == [as_visit(product, visit) for visit in walk(product.size, tiling)]


def test_walk_visits_every_product_once():
    visits = visits_of((7, 10, 5), Tiling(order="knm", tile=(3, 4, 2)))
    seen = np.zeros((7, 10, 5), dtype=int)
    for visit in visits:
        seen[visit.m, visit.k, visit.n] += 1
    assert (seen == 1).all()


# ---- execution


def held_presets(name):
    """The presets that hold plain integers."""
    entry = unit(name)
    for preset, params in entry.presets.items():
        try:
            entry.from_integers(params, random_operands(params, np.random.default_rng(0), (1, 2, 2), None)[1])
        except InputError:
            continue
        yield preset, params


@pytest.mark.parametrize("name", ENGINES)
def test_tiles_make_the_untiled_product(name):
    rng = np.random.default_rng(sum(name.encode()))
    presets = list(held_presets(name))
    assert len(presets) >= len(unit(name).presets) - 1, "presets without plain integers"
    spilled = 0
    for (preset, params), order in itertools.product(presets, ORDERS):
        shape, tile = random_case(rng, params)
        maker = engine(name, params, count=int(rng.integers(1, 4)), split=str(rng.choice(["M", "N"])))
        tiling = Tiling(order=order, tile=tile)
        assert executed(maker, shape, tiling, rng) == "", (preset, shape, tiling, maker.count, maker.split)
        spilled += sum(visit.resume for visit in visits_of(shape, tiling))
    assert (spilled > 0) == any(fold_of(params).takes_psum for _, params in presets)


NARROW = unit("systolic").params(rows=2, cols=2, act_bits=6, weight_bits=6, acc_bits=12, overflow="saturate")


@pytest.mark.parametrize("order", ORDERS)
def test_saturated_sums_come_back(order):
    shape, rng = (6, 40, 5), np.random.default_rng(2)
    a, w = random_operands(NARROW, rng, shape, None)
    a, w = np.abs(a).clip(0, 31), np.abs(w).clip(0, 31)
    w[20:] *= -1
    visits = visits_of(shape, Tiling(order=order, tile=(4, 6, 2)))
    outcome = execute(engine("systolic", NARROW), visits, a, w)
    assert difference(outcome, engine("systolic", NARROW).array, a, w) == ""
    exact = a @ w
    assert (outcome.output != exact).any()
    assert (outcome.output != np.clip(exact, -2048, 2047)).any(), "the order of sums must matter here"


def replaced(visits, at, **values):
    return [dataclasses.replace(visit, **values) if i == at else visit for i, visit in enumerate(visits)]


def moved(part, by):
    return slice(part.start + by, part.stop + by)


FAULTS = {
    "a sum is lost": lambda v: replaced(v, next(i for i, x in enumerate(v) if x.resume), resume=False),
    "a sum is not cleared": lambda v: replaced(
        v, next(i for i, x in enumerate(v) if i and x.new_out and not x.resume), new_out=False
    ),
    "A is not read": lambda v: replaced(v, next(i for i, x in enumerate(v) if i and x.load_act), load_act=False),
    "W is not read": lambda v: replaced(v, next(i for i, x in enumerate(v) if i and x.load_weight), load_weight=False),
    "A begins one k late": lambda v: replaced(v, 0, k=moved(v[0].k, 1)),
    "Y lies one column off": lambda v: [
        replaced(v, i, n=moved(x.n, -1))[i] if x.n.start else x for i, x in enumerate(v)
    ],
    "two tiles of K change places": lambda v: [
        dataclasses.replace(x, k=slice(6, 12) if x.k.start == 0 else slice(0, 6) if x.k.start == 6 else x.k) for x in v
    ],
    "a tile is not stored": lambda v: replaced(v, len(v) - 1, leaves=False),
    "a tile is done twice": lambda v: [*v, v[-1]],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault):
    """Of orders in which the fault can be made."""
    found = {}
    for order in ORDERS:
        try:
            found[order] = faulty(order, FAULTS[fault])
        except StopIteration:
            continue  # nothing of the kind in this order
    assert found
    assert all(found.values()), found


def faulty(order, change):
    shape, rng = (8, 36, 4), np.random.default_rng(3)
    return executed(engine("systolic", NARROW), shape, Tiling(order=order, tile=(4, 6, 2)), rng, change)


def test_order_of_k_is_no_fault_where_sums_are_exact():
    params = unit("systolic").params(rows=2, cols=2)
    tiling = Tiling(order="mnk", tile=(4, 6, 2))
    swap = FAULTS["two tiles of K change places"]
    assert executed(engine("systolic", params), (6, 36, 5), tiling, np.random.default_rng(3), swap) == ""


def test_words_that_are_too_narrow_are_found(monkeypatch):
    narrower = module._in_memory
    monkeypatch.setattr(module, "_in_memory", lambda sums, bits: narrower(sums >> 1 << 1, bits))
    assert "untiled" in faulty("kmn", lambda visits: visits)


def test_other_types_and_units_are_found():
    params = unit("systolic").params(rows=2, cols=2)
    maker, rng = engine("systolic", params), np.random.default_rng(6)
    a, w = random_operands(params, rng, (4, 4, 4), None)
    outcome = execute(maker, visits_of((4, 4, 4), Tiling(order="mnk", tile=(2, 2, 2))), a, w)
    assert difference(outcome, maker.array, a, w) == ""
    narrow = dataclasses.replace(outcome, output=outcome.output.astype(np.int32))
    assert difference(narrow, maker.array, a, w) == "tiles make int32, the whole product int64"
    halves = dataclasses.replace(outcome, worths=frozenset({Fraction(1), Fraction(1, 2)}))
    assert "worth 1/2, 1 in tiles and 1 in the whole product" in difference(halves, maker.array, a, w)


def test_zeros_of_other_signs_are_found():
    params = unit("fpmac").params(rows=2, cols=2)
    maker = engine("fpmac", params)
    a, w = np.zeros((2, 4), dtype=np.float16), np.ones((4, 2), dtype=np.int64)
    outcome = execute(maker, visits_of((2, 4, 2), Tiling(order="mnk", tile=(2, 2, 2))), a, w)
    assert difference(outcome, maker.array, a, w) == ""
    negative = dataclasses.replace(outcome, output=-outcome.output)
    assert difference(negative, maker.array, a, w) == "Y[0, 0] is -0.0 from tiles and 0.0 untiled; 4 differ"


@pytest.mark.parametrize("split", ["M", "N"])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_those_of_the_simulation(split, count):
    maker = engine("systolic", unit("systolic").params(rows=2, cols=2), count=count, split=split)
    for length in range(1, 16):
        lengths = [part.stop - part.start for part in shares(maker, length)]
        shape = (length, 4, 3) if split == "M" else (3, 4, length)
        expected = [part["MKN".index(split)] for times, part in maker._shares(shape) for _ in range(times)]
        assert lengths == expected
        assert sum(lengths) == length


# ---- large products


def test_what_is_kept_of_large_products():
    rng = np.random.default_rng(4)
    for _ in range(2000):
        shape = tuple(int(2 ** rng.uniform(0, 20)) for _ in range(3))
        tile = tuple(int(rng.integers(1, min(size, 4096) + 1)) for size in shape)
        most = int(2 ** rng.uniform(20, 34))
        (m, k, n), (tile_m, tile_k, tile_n) = kept(shape, tile, most)
        assert (k, tile_k) == (shape[1], tile[1])
        assert m * k * n <= most or m <= 2
        assert max(m * k, k * n, m * n) <= max(MOST_ELEMENTS, k)
        for length, piece, size, whole in ((m, tile_m, shape[0], tile[0]), (n, tile_n, shape[2], tile[2])):
            assert min(-(-size // whole), 2) <= max(-(-length // piece), 1)
            if piece == whole:
                assert (size - length) % whole == 0, "both ends are kept, whole tiles left out"
            else:
                assert length <= 2 * piece <= 2 * whole


def test_small_products_are_kept_whole():
    assert kept((64, 64, 64), (16, 16, 16), 1 << 18) == ((64, 64, 64), (16, 16, 16))
    assert kept((64, 64, 64), (16, 16, 16), (1 << 18) - 1) == ((48, 64, 64), (16, 16, 16))
    assert kept((70, 64, 64), (16, 64, 16), 1 << 16)[0] == (22, 64, 32)
    assert kept((1 << 20, 1, 1), (1, 1, 1), 1 << 40)[0][0] == MOST_TILES


# ---- whole runs


def network():
    b = Builder("net")
    x = b.tensor("x", (10, 12))
    y = b.linear("up", x, 20)
    b.linear("twin", x, 20)
    q = b.tensor("q", (2, 2, 6, 8))
    k, v = b.tensor("k", (2, 2, 9, 8), Role.CACHE), b.tensor("v", (2, 2, 9, 8), Role.CACHE)
    attend = Attention(batch=2, heads=2, kv_heads=2, queries=6, keys=9, head_dim=8, value_dim=8)
    b.add("attend", attend, (q, k, v), (2, 2, 6, 8))
    image, filters = b.tensor("image", (1, 4, 5, 5)), b.tensor("filters", (6, 2, 3, 3), Role.WEIGHT)
    conv = Conv(batch=1, in_channels=4, out_channels=6, height=5, width=5, kernel=(3, 3), groups=2)
    b.add("conv", conv, (image, filters), (1, 6, 3, 3))
    b.linear("down", y, 12)
    return b.graph()


@pytest.mark.parametrize("attention", ["fused", "unfused"])
def test_a_run_is_checked(attention):
    given = ({"match": "down", "order": "knm", "tile": (4, 8, 4)},)
    result = run(network(), machine(attention=attention, layers=given, rows=4, cols=4))
    told = []
    rows = {row.layer: row for row in check(result, progress=lambda *news: told.append(news))}
    assert list(rows) == ["up", "attend.scores", "attend.context", "conv", "down"]
    assert [news[1:] for news in told] == [(i, 5) for i in range(5)]
    assert all(row.equal and not row.difference for row in rows.values())
    assert rows["up"].alike == 2
    assert rows["up"].shape == (1, 10, 12, 20)
    assert rows["conv"].shape == (2, 9, 18, 3)
    assert rows["conv"].notes == ("one product of 2",)
    assert rows["attend.context"].shape == (4, 6, 9, 8)
    down = rows["down"]
    assert (down.tiles, down.resumed, down.outputs) == (3 * 3 * 3, 3 * 3 * 2, 120)
    assert (down.order, down.tile, down.notes) == ("knm", (4, 8, 4), ())


def test_fused_attention_is_cut_as_it_is_simulated():
    """Small scratchpads, so that queries and keys take several tiles: as many steps and cycles as the walk has."""
    here = machine(kib=0.5, attention="fused", rows=4, cols=4)
    result = run(network(), here)
    rows = {row.layer: row for row in check(result)}
    built = next(entry for entry in result.built if entry.planned.what == "attention")
    steps = [step for step in flat(built.stage.nodes) if step.unit == "e"]
    scores, context = rows["attend.scores"], rows["attend.context"]
    assert scores.tiles > 1
    assert (scores.tiles + context.tiles) * 4 == len(steps)
    cycles = 0
    for _, product, tiling in module._products(built):
        for visit in walk(product.size, tiling):
            shape = tuple(part.stop - part.start for part in (visit.m, visit.k, visit.n))
            cycles += compute_cycles(here, built.planned.engine, product, shape)
    assert cycles == sum(step.cycles for step in steps)
    assert scores.equal
    assert context.equal


def test_a_run_with_a_fault_differs(monkeypatch):
    result = run(network(), machine(rows=4, cols=4))
    right = module.walk
    monkeypatch.setattr(
        module, "walk", lambda *args: [dataclasses.replace(v, k=slice(v.k.start, v.k.stop - 1)) for v in right(*args)]
    )
    rows = check(result)
    assert not any(row.equal for row in rows)
    assert all("untiled" in row.difference for row in rows)


def test_large_products_of_a_run_are_cut():
    result = run(network(), machine(layers=({"match": "up", "tile": (2, 4, 4)},), rows=4, cols=4))
    row = check(result, most_macs=12 * 20 * 4)[0]
    assert (row.executed, row.tile, row.notes) == ((4, 12, 20), (2, 4, 4), ("M cut from 10 to 4",))
    assert row.equal
    row = check(result, most_macs=12 * 8)[0]
    assert row.notes == ("M cut from 10 to 2", "N cut from 20 to 8", "tiles of M=1 K=4 N=4")
    assert (row.executed, row.tile, row.executed_tile) == ((2, 12, 8), (2, 4, 4), (1, 4, 4))
    assert row.equal
    with pytest.raises(InputError, match="most_macs must be at least 1"):
        check(result, most_macs=0)


def test_seeds_draw_other_operands(monkeypatch):
    result, drawn = run(network(), machine(rows=4, cols=4)), []
    right = module.random_operands
    monkeypatch.setattr(module, "random_operands", lambda *args: drawn.append(right(*args)) or drawn[-1])
    for seed in (0, 0, 1):
        check(result, seed=seed)
    first, again, other = drawn[0], drawn[len(drawn) // 3], drawn[2 * len(drawn) // 3]
    assert (first[0] == again[0]).all()
    assert (first[0] != other[0]).any()


def test_engines_without_plain_integers_are_named():
    params = {"rows": 2, "cols": 2, "mu": 2, "scale_bits": 4}
    result = run(network(), machine("lutgemm", weight_bits=4, **params))
    with pytest.raises(InputError, match="layer up: lutgemm: integers of 4 bits need scale_bits of at least 5"):
        check(result)


# ---- real weights


@pytest.fixture
def model(tmp_path):
    """A file with a plain, a transposed and a square transposed product, and a convolution of two groups."""
    rng = np.random.default_rng(5)
    stored = {"w1": (12, 8), "w2": (6, 8), "w3": (6, 6), "f": (4, 2, 3, 3)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in stored.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], "plain"),
        helper.make_node("Gemm", ["a", "w2"], ["b"], "turned", transB=1),
        helper.make_node("Gemm", ["b", "w3"], ["c"], "square", transB=1),
        helper.make_node("MatMul", ["y", "c"], ["d"], "free"),
        helper.make_node("Conv", ["z", "f"], ["e"], "conv", group=2),
    ]
    inputs = {"x": (5, 12), "y": (2, 5), "z": (1, 4, 6, 6)}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "de"],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path, arrays


def test_weights_of_a_file(model):
    path, arrays = model
    graph = load_onnx(path)
    result = run(graph, machine(rows=4, cols=4))
    operands = onnx_operands(path, graph, result)
    assert set(operands) == {"plain", "turned", "square", "conv"}
    real = {
        "plain": arrays["w1"],
        "turned": arrays["w2"].T,
        "square": arrays["w3"].T,
        "conv": arrays["f"][:2].reshape(2, -1).T,
    }
    for name, values in real.items():
        a, w = operands[name]()
        assert a is None
        assert (w == get_format("int8").quantize(values.astype(np.float64), axis=0).integers).all()
    rows = {row.layer: row for row in check(result, operands=operands)}
    assert {name: row.real_weights for name, row in rows.items()} == {name: name != "free" for name in rows}
    assert all(row.equal for row in rows.values())


@pytest.mark.parametrize("name", ["ternary", "additive", "shiftlayer", "mxdot", "fpmac", "bipolar"])
def test_weights_become_the_nearest_that_an_engine_holds(name, model):
    path, arrays = model
    graph = load_onnx(path)
    result = run(graph, machine(name))
    _, w = onnx_operands(path, graph, result)["plain"]()
    held = unit(name).plain_weights(unit(name).params())
    values = arrays["w1"].astype(np.float64)
    scaled = values / np.abs(values).max(axis=0) * held[-1]
    assert np.isin(w, held).all()
    assert (np.abs(w - scaled) <= np.abs(scaled[..., None] - held).min(axis=-1) + 1e-12).all()
    assert all(row.equal for row in check(result, operands=onnx_operands(path, graph, result)))


def test_weights_that_do_not_fit(model):
    path, _ = model
    graph = load_onnx(path)
    result = run(graph, machine(rows=4, cols=4))
    w = np.zeros((12, 8), dtype=np.int64)
    with pytest.raises(InputError, match=r"layer plain: W is \(8, 12\), not \(12, 8\)"):
        check(result, operands={"plain": lambda: (None, w.T)})
    with pytest.raises(InputError, match=r"layer plain: A is \(12, 5\), not \(5, 12\)"):
        check(result, operands={"plain": lambda: (np.zeros((12, 5), dtype=np.int64), w)})
    with pytest.raises(InputError, match="layer plain: W"):
        check(result, operands={"plain": lambda: (None, w + 128)})


def test_weights_that_are_not_finite(model):
    path, arrays = model
    proto = onnx.load(path)
    arrays["w1"][3, 3] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(arrays["w1"], "w1"))
    onnx.save(proto, path)
    graph = load_onnx(path)
    result = run(graph, machine(rows=4, cols=4))
    with pytest.raises(InputError, match="layer plain: weight 'w1' has values that are not finite"):
        check(result, operands=onnx_operands(path, graph, result))


def test_given_operands_are_used(monkeypatch):
    b = Builder("net")
    b.linear("only", b.tensor("x", (3, 5)), 2)
    result = run(b.graph(), machine(rows=2, cols=2))
    a, w = np.arange(15).reshape(3, 5) - 7, np.arange(10).reshape(5, 2) - 5
    seen = []
    right = module.execute
    monkeypatch.setattr(module, "execute", lambda *args: seen.append(right(*args)) or seen[-1])
    (row,) = check(result, operands={"only": lambda: (a, w)})
    assert row.equal
    assert (seen[0].output == a @ w).all()
    assert isinstance(b.layers[0].op, Gemm)
