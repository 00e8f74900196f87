"""Cube, adder trees and 2D matrix: golden against int64 and a scalar loop, widths at their bounds, refusals."""

import numpy as np
import pytest

from hwsim.verify import verify
from models import style as styles
from models.adder_tree import AdderTreeParams
from models.bits import signed_range
from models.catalog import unit
from models.cube import CubeParams
from models.style import Style
from models.unit import InputError, Stimulus

ARRAYS = ["cube", "adder_tree", "matrix2d"]
SIZES = {"cube": {"n": 3}, "adder_tree": {"lanes": 3, "trees": 2}, "matrix2d": {"rows": 2, "cols": 3}}
BLOCK = {"cube": 3, "adder_tree": 3, "matrix2d": 1}
"""products of SIZES that are added exactly before the accumulator is"""


@pytest.mark.parametrize("style", list(Style))
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("m, k, n", [(1, 1, 1), (7, 33, 17), (16, 16, 16), (3, 100, 40)])
def test_golden_equals_int64_matmul(name, style, m, k, n):
    rng = np.random.default_rng([m, k, n])
    a, w = rng.integers(-128, 128, (m, k)), rng.integers(-128, 128, (k, n))
    a[0], w[:, 0] = -128, -128
    assert (unit(name).golden(unit(name).params(style=style), a, w) == a @ w).all()


def limited(a, w, block, bits):
    """Exact sums of `block` products, added in order and limited, in Python integers."""
    low, high = signed_range(bits)
    out = np.zeros((a.shape[0], w.shape[1]), dtype=np.int64)
    for i in range(a.shape[0]):
        for j in range(w.shape[1]):
            total = 0
            for k in range(0, a.shape[1], block):
                total += sum(int(x) * int(y) for x, y in zip(a[i, k : k + block], w[k : k + block, j], strict=True))
                total = min(max(total, low), high)
            out[i, j] = total
    return out


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("bits", [9, 14, 17, 34])
def test_saturating_golden_equals_a_scalar_loop(name, bits):
    rng = np.random.default_rng(bits)
    p = unit(name).params(**SIZES[name], act_bits=12, acc_bits=bits, overflow="saturate")
    a, w = rng.integers(-2048, 2048, (5, 38)), rng.integers(-128, 128, (38, 7))
    got = unit(name).golden(p, a, w)
    assert (got == limited(a, w, BLOCK[name], bits)).all()
    assert (got == a @ w).all() == (bits == 34)


def test_blocks_are_limited_once_and_not_product_by_product():
    a, w = np.array([[100, 100, -100, 100]]), np.ones((4, 1), dtype=np.int64)
    by_block = unit("adder_tree").params(lanes=3, trees=1, acc_bits=8, overflow="saturate")
    one_by_one = unit("matrix2d").params(acc_bits=8, overflow="saturate")
    assert unit("adder_tree").golden(by_block, a, w).item() == 127
    assert unit("adder_tree").golden(by_block, a[:, :3], w[:3]).item() == 100
    assert unit("matrix2d").golden(one_by_one, a[:, :3], w[:3]).item() == 27


def test_psum_starts_the_trees_and_is_refused_where_sums_start_at_zero():
    a, w, start = np.array([[3]]), np.array([[4]]), np.array([[-5]])
    assert unit("adder_tree").golden(unit("adder_tree").params(), a, w, start).item() == 7
    for name in ("cube", "matrix2d"):
        with pytest.raises(InputError, match=f"{name}: sums start at zero; add psum to the result"):
            unit(name).golden(unit(name).params(), a, w, start)


def feed(monkeypatch, name, operands):
    """Let the unit's cases be these."""
    left = iter(operands)
    monkeypatch.setattr(unit(name).module, "sample", lambda *_: next(left))


def corners(bits_a, bits_w, m, k, n):
    """All least; least in one lane; signs that alternate along K; least against most."""
    (least_a, most_a), (least_w, most_w) = signed_range(bits_a), signed_range(bits_w)
    lane = (np.arange(k) == k // 2).astype(np.int64)
    turns = np.arange(k) % 2 == 0
    yield np.full((m, k), least_a), np.full((k, n), least_w)
    yield np.tile(least_a * lane, (m, 1)), np.tile(least_w * lane[:, None], (1, n))
    yield np.tile(np.where(turns, least_a, most_a), (m, 1)), np.tile(np.where(turns, least_w, most_w)[:, None], (1, n))
    yield np.full((m, k), least_a), np.full((k, n), most_w)
    yield np.full((m, k), most_a), np.full((k, n), least_w)


@pytest.mark.parametrize("style", list(Style))
@pytest.mark.parametrize("name", ARRAYS)
def test_rtl_and_golden_agree_at_the_corners(name, style, monkeypatch):
    p = unit(name).params(**SIZES[name], act_bits=5, weight_bits=4, acc_bits=20, style=style)
    cases = list(corners(5, 4, 4, 7, 4))
    feed(monkeypatch, name, cases)
    assert verify(p, cases=len(cases)).findings == ()
    for a, w in cases:
        assert (unit(name).golden(p, a, w) == a @ w).all()


ALL_LEAST = np.full((4, 9), -8), np.full((9, 4), -4)
LEAST = {"act_bits": 4, "weight_bits": 3, "acc_bits": 16}


def widths():
    """(name, params, number of products) of every width of a sum in small arrays of each style."""
    for style in Style:
        for n in range(1 + (style is Style.ENT), 4):
            yield "cube", CubeParams(n=n, style=style, **LEAST), n
        for lanes in (1, 2, 3, 5, 8):
            p = AdderTreeParams(lanes=lanes, trees=2, style=style, **LEAST)
            yield from (("adder_tree", p, count) for count in sorted({count for stage in p.stages for count in stage}))


def narrow(monkeypatch, bits, count):
    """Take bits from the width in which RTL holds the sum of `count` products."""
    chain, node = CubeParams.chain_bits.fget, AdderTreeParams.node_bits
    monkeypatch.setattr(CubeParams, "chain_bits", property(lambda p: chain(p) - bits))
    monkeypatch.setattr(AdderTreeParams, "node_bits", lambda p, lanes: node(p, lanes) - bits * (lanes == count))


@pytest.mark.parametrize("name, p, count", list(widths()))
def test_a_bit_less_in_any_sum_of_products_is_found(name, p, count, monkeypatch):
    """One bit; two of a carry-save pair: between them its words hold the largest sum in one bit less at some sizes."""
    feed(monkeypatch, name, [ALL_LEAST] * 2)
    assert verify(p, cases=1).findings == ()
    narrow(monkeypatch, 1 + (p.style is Style.OPT1), count)
    assert verify(p, cases=1).findings != ()


@pytest.mark.parametrize(
    "name, size", [("cube", {"n": 1}), ("cube", {"n": 3}), ("adder_tree", {"lanes": 3, "trees": 2})]
)
def test_carry_save_words_need_their_last_bit_at_some_sizes(name, size, monkeypatch):
    p = unit(name).params(**size, style="opt1", **LEAST)
    feed(monkeypatch, name, [ALL_LEAST] * 2)
    narrow(monkeypatch, 1, size.get("lanes"))
    assert verify(p, cases=1).findings != ()


@pytest.mark.parametrize("bits_a, bits_w", [(2, 2), (3, 5), (4, 3), (5, 4)])
def test_exact_bits_are_those_of_the_extreme_sums_of_all_operands(bits_a, bits_w):
    a, w = (np.arange(low, high + 1) for low, high in (signed_range(bits_a), signed_range(bits_w)))
    least, most = np.multiply.outer(a, w).min(), np.multiply.outer(a, w).max()
    for count in range(1, 40):
        want = next(b for b in range(64) if -(1 << b) <= count * least and count * most < 1 << b) + 1
        assert styles.exact_bits(Style.MAC, bits_a, bits_w, count) == want
        assert want <= bits_a + bits_w + (count - 1).bit_length()


def test_rows_exceed_their_product_by_what_exact_bits_counts():
    """The rows of RTL, evaluated for every pair of operands: none negative, their sum the product and the excess."""
    from amaranth.hdl import Module, Signal, signed
    from amaranth.sim import Simulator

    from rtl import booth
    from rtl.arith import positive_rows

    a, b, m = Signal(signed(5)), Signal(signed(4)), Module()
    width = styles.exact_bits(Style.OPT1, 5, 4, 1)
    rows = positive_rows(m, booth.digits(a), b, width)
    found = []

    async def every_pair(ctx):
        for x in range(-16, 16):
            for y in range(-8, 8):
                ctx.set(a, x)
                ctx.set(b, y)
                found.append(sum(ctx.get(row) for row in rows) - x * y)

    simulator = Simulator(m)
    simulator.add_testbench(every_pair)
    simulator.run()
    assert set(found) == {styles.rows_excess(5, 4)}


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2, 3, 6, 7, 20])
def test_cube_tiles_follow_without_bubbles_once_they_are_long_enough(n, k):
    p = CubeParams(n=n)
    blocks = -(-k // n)
    one, three = (unit("cube").timing(p, M=m, K=k, N=1).total_cycles for m in (n, 3 * n))
    assert (three - one == 2 * blocks) == (blocks >= p.gap) == (k > 2 * n * (n - 1))
    assert one == blocks + p.latency


def test_a_waiting_cube_holds_its_tile_and_loses_none():
    """The output is taken once in a while only, and tiles are as short as can be."""
    p = unit("cube").preset("small")
    rng = np.random.default_rng(5)
    a, w = rng.integers(-128, 128, (12, 3)), rng.integers(-128, 128, (3, 9))
    beats = unit("cube").beats(p, a, w)
    always, seldom = np.ones(1, dtype=bool), np.arange(7) == 3
    stimulus = Stimulus(beats=beats, offer=dict.fromkeys(beats, always), accept={"o_psum": seldom})
    trace = unit("cube").trace(p, stimulus)
    moved = trace["o_psum.valid"] & trace["o_psum.ready"]
    got = unit("cube").result(p, (a, w), {"psum": trace["o_psum.payload.psum"][moved]})
    assert (got == a @ w).all()
    assert np.diff(np.flatnonzero(moved)).min() >= p.gap


@pytest.mark.parametrize("name", ARRAYS)
def test_ops_count_useful_multiplications_in_every_style(name):
    for style, kind in (("mac", "mul"), ("opt1", "products"), ("ent", "products")):
        counted = unit(name).ops(unit(name).params(style=style), M=3, K=20, N=17)
        assert next(op for op in counted if op.kind == kind).count == 3 * 20 * 17


def test_tree_additions_are_one_less_than_the_products_of_each_fold():
    counted = unit("adder_tree").ops(unit("adder_tree").params(lanes=8, trees=2), M=3, K=20, N=2)
    added = [(op.count, op.bits) for op in counted if op.kind == "add"]
    assert sum(count for count, bits in added if bits < 32) == 3 * 2 * (7 + 7 + 3)
    assert (3 * 2 * 3, 32) in added


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("cube", {"n": 0}, "cube: n must be a whole number from 1 to 32, not 0"),
        ("cube", {"n": 1, "style": "ent"}, "cube: style=ent needs n of at least 2, so that more than one PE uses"),
        ("cube", {"style": "opt1", "overflow": "saturate"}, "cube: style=opt1 needs overflow=wrap"),
        ("adder_tree", {"lanes": 257}, "adder_tree: lanes must be a whole number from 1 to 256, not 257"),
        ("adder_tree", {"trees": 1, "style": "ent"}, "adder_tree: style=ent needs trees of at least 2"),
        ("adder_tree", {"style": "opt1", "overflow": "saturate"}, "adder_tree: style=opt1 needs overflow=wrap"),
        ("matrix2d", {"rows": "many"}, "matrix2d: rows='many' is not a whole number"),
        ("matrix2d", {"cols": 1, "style": "ent"}, "matrix2d: style=ent needs cols of at least 2"),
        ("matrix2d", {"style": "opt1", "overflow": "saturate"}, "matrix2d: style=opt1 needs overflow=wrap"),
        ("matrix2d", {"style": "opt"}, "matrix2d: style='opt' is unknown; did you mean 'opt1'"),
        ("cube", {"size": 3}, "cube: no parameter 'size'"),
        ("matrix2d", {"act_bits": 17}, "act_bits must be a whole number from 2 to 16, not 17"),
    ],
)
def test_impossible_parameters_are_refused(name, values, message):
    with pytest.raises(InputError, match=message):
        unit(name).params(**values)


@pytest.mark.parametrize("name", ARRAYS)
def test_operands_that_do_not_fit_are_refused(name):
    p = unit(name).params(act_bits=4)
    with pytest.raises(InputError, match=r"A.*: 8 is outside"):
        unit(name).golden(p, np.array([[8]]), np.array([[1]]))
    with pytest.raises(InputError, match="A's columns must equal W's rows"):
        unit(name).golden(p, np.ones((2, 3), dtype=np.int64), np.ones((2, 3), dtype=np.int64))


@pytest.mark.parametrize("name", ARRAYS)
def test_designs_laid_beside_each_other_are_of_one_size_with_one_baseline(name):
    compared = unit(name).compared
    assert [c.style for c in compared] == [style.value for style in Style]
    plain = {(*((f, v) for f, v in vars(c.params).items() if f != "style"), c.architecture) for c in compared}
    assert len(plain) == 1
    assert [bool(c.published and c.differs) for c in compared] == [False, True, True]
