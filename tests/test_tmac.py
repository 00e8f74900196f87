"""T-MAC: golden against literal tables in fractions, reciprocals exhaustively, the biases that its numerics have."""

import dataclasses
import itertools
from fractions import Fraction
from math import floor, log2

import numpy as np
import pytest

from hwsim.synth import synthesize
from models import tmac
from models.catalog import unit
from models.formats import get_format
from models.unit import InputError
from rtl.emit import emit
from rtl.tmac import reciprocals

TMAC = unit("tmac")


def rounded_away(value):
    """A Fraction to the nearest integer, ties away from zero."""
    return floor(abs(value) + Fraction(1, 2)) * (1 if value >= 0 else -1)


def read(table, key):
    """From the half table; the mirror of the entry of the complement where the key's top bit is set."""
    return table[key] if key < 8 else -table[15 - key]


def literal_tile(p, x, w, sum_of_activations=True):
    """A tile's total from its integer activations and weights, table by table and plane by plane."""
    groups = [[int(v) for v in x[i : i + 4]] for i in range(0, len(x), 4)]
    tables = [[sum(v if key >> i & 1 else -v for i, v in enumerate(g)) for key in range(8)] for g in groups]
    most = max(sum(map(abs, g)) for g in groups)
    q = 1
    if p.table_bits:
        q = 2 ** (p.table_bits - 1) - 1
        tables = [[rounded_away(Fraction(q * e, most)) if most else 0 for e in table] for table in tables]
    total = 0
    for plane in range(p.weight_bits):
        reads = []
        for r, table in enumerate(tables):
            codes = [int(v) + 2 ** (p.weight_bits - 1) for v in w[4 * r : 4 * r + 4]]
            reads.append(read(table, sum((c >> plane & 1) << i for i, c in enumerate(codes))))
        if p.aggregation == "fast":
            while len(reads) > 1:
                reads = [floor(Fraction(a + b + 1, 2)) for a, b in zip(reads[::2], reads[1::2], strict=True)]
            reads = [p.rows * reads[0]]
        total += (most if p.table_bits else 1) * 2**plane * sum(reads)
    return total - q * sum(map(int, x)) * sum_of_activations


def tiles_of(p, a, w):
    """Rows of activations and columns of weights of each tile, filled with zeros."""
    k = -(-a.shape[1] // p.tile_k) * p.tile_k
    a, w = np.pad(a, ((0, 0), (0, k - a.shape[1]))), np.pad(w, ((0, k - len(w)), (0, 0)))
    return [(a[:, i : i + p.tile_k], w[i : i + p.tile_k]) for i in range(0, k, p.tile_k)]


def literal(p, a, w, psum=None, **options):
    low, high = -(1 << (p.acc_bits - 1)), (1 << (p.acc_bits - 1)) - 1
    out = np.zeros((len(a), w.shape[1]), dtype=np.int64)
    for m, n in np.ndindex(out.shape):
        total = 0 if psum is None else int(psum[m, n])
        for x, held in tiles_of(p, a, w):
            total += literal_tile(p, x[m], held[:, n], **options)
            total = (total - low) % (high - low + 1) + low if p.overflow == "wrap" else min(max(total, low), high)
        out[m, n] = total
    return out


def literal_aligned(p, x):
    """Integers of halves under the largest exponent, ties to even, and what one of them is worth."""
    exponents = [max(int(np.float16(v).view(np.uint16)) >> 10 & 31, 1) for v in x]
    worth = Fraction(2) ** (max(exponents) - 13 - p.act_bits)
    limit = 2 ** (p.act_bits - 1) - 1
    return [min(max(round(Fraction(float(v)) / worth), -limit), limit) for v in x], worth


def literal_float(p, a, w, psum=None):
    out = np.zeros((len(a), w.shape[1]), dtype=np.float32)
    for m, n in np.ndindex(out.shape):
        total = np.float32(0 if psum is None else psum[m, n])
        for x, held in tiles_of(p, a, w):
            integers, worth = literal_aligned(p, x[m])
            exact = literal_tile(p, integers, held[:, n]) * worth
            # below 2^53 digits, so that float64 holds it and the sum of two singles rounds once
            assert Fraction(float(exact)) == exact
            total = np.float32(np.float64(total) + np.float64(np.float32(float(exact))))
        out[m, n] = total
    return out


def operands_of(p, seed):
    a, w, *psum = TMAC.sample(p, np.random.default_rng(seed))
    return a[:3], w[:, :3], (psum[0][:3, :3] if psum else None)


@pytest.mark.parametrize("preset", [n for n, p in TMAC.presets.items() if n != "default" and p.act_format == "int"])
def test_golden_equals_literal_tables(preset):
    p = TMAC.preset(preset)
    for seed in range(6):
        operands = operands_of(p, seed)
        assert (TMAC.golden(p, *operands) == literal(p, *operands)).all()


@pytest.mark.parametrize("preset", [n for n, p in TMAC.presets.items() if p.act_format == "fp16"])
def test_fp16_golden_equals_literal_tables(preset):
    p = TMAC.preset(preset)
    for seed in range(6):
        operands = operands_of(p, seed)
        with np.errstate(over="ignore"):
            assert np.array_equal(TMAC.golden(p, *operands), literal_float(p, *operands))


@pytest.mark.parametrize("aggregation", ["exact", "fast"])
def test_golden_of_whole_default_tiles_equals_literal_tables(aggregation):
    p = TMAC.params(aggregation=aggregation)
    rng = np.random.default_rng(5)
    a, w = rng.integers(-128, 128, (2, 70)), rng.integers(-8, 8, (70, 2))
    assert (TMAC.golden(p, a, w) == literal(p, a, w)).all()


@pytest.mark.parametrize("act_bits, table_bits", [*itertools.product(range(2, 9), range(3, 9))])
def test_reciprocals_round_every_entry_of_every_maximum_right(act_bits, table_bits):
    p = TMAC.params(act_bits=act_bits, table_bits=table_bits)
    values = reciprocals(p.largest, p.levels, p.fraction_bits)
    assert (len(values), values[0]) == (p.largest + 1, 0)
    assert max(values) < 1 << p.reciprocal_bits
    half = 1 << (p.fraction_bits - 1)
    for most in range(1, p.largest + 1):
        entries = np.arange(-most, most + 1)
        products = entries * values[most] + half
        assert abs(products).max() < 1 << (p.product_bits - 1)
        exact = (2 * p.levels * abs(entries) + most) // (2 * most) * np.sign(entries)
        assert (products >> p.fraction_bits == exact).all()


@pytest.mark.parametrize("act_bits, table_bits", [(8, 8), (8, 4), (7, 6), (5, 8)])
def test_reciprocals_of_one_digit_fewer_would_not_do(act_bits, table_bits):
    p = TMAC.params(act_bits=act_bits, table_bits=table_bits)
    digits = p.fraction_bits - 1
    wrong = 0
    for most, reciprocal in enumerate(reciprocals(p.largest, p.levels, digits)[1:], start=1):
        entries = np.arange(-most, most + 1)
        exact = (2 * p.levels * abs(entries) + most) // (2 * most) * np.sign(entries)
        wrong += np.count_nonzero((entries * reciprocal + (1 << (digits - 1))) >> digits != exact)
    assert wrong > 0


def test_quantized_half_tables_mirror_every_key():
    """Rounded entries of complements are negatives of each other: the half that is not held is not missed."""
    rng = np.random.default_rng(6)
    for x in rng.integers(-128, 128, (200, 4)).tolist():
        full = [sum(v if key >> i & 1 else -v for i, v in enumerate(x)) for key in range(16)]
        most = max(sum(map(abs, x)), 1)
        q = [rounded_away(Fraction(127 * e, most)) for e in full]
        assert [read(q[:8], key) for key in range(16)] == q
        held = tmac._quantized_tables(TMAC.params(rows=1), np.array([x])).entries
        assert held.ravel().tolist() == q[:8]


@pytest.mark.parametrize("table_bits", [None, 8])
def test_without_the_sum_of_activations_the_tables_are_not_the_product(table_bits):
    p = TMAC.params(rows=2, weight_bits=3, table_bits=table_bits)
    rng = np.random.default_rng(7)
    a, w = rng.integers(-128, 128, (3, 13)), rng.integers(-4, 4, (13, 2))
    assert (TMAC.golden(p, a, w) == literal(p, a, w)).all()
    difference = literal(p, a, w, sum_of_activations=False) - TMAC.golden(p, a, w)
    assert (difference == p.levels * a.sum(axis=1, keepdims=True)).all()
    assert difference.all()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("serial", [True, False])
def test_exact_tables_give_exactly_the_integer_product(bits, serial):
    p = TMAC.params(weight_bits=bits, table_bits=None, act_bits=16, serial=serial and bits > 1, acc_bits=48)
    rng = np.random.default_rng(bits)
    a, w = rng.integers(-(1 << 15), 1 << 15, (4, 71)), rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (71, 9))
    operand, worth = TMAC.from_integers(p, w)
    assert worth == Fraction(1, 2)
    assert (TMAC.golden(p, a, operand) == 2 * (a @ w)).all()


@pytest.mark.parametrize("table_bits", [3, 5, 8])
def test_quantized_tables_err_by_half_a_step_a_read_at_most(table_bits):
    p = TMAC.params(table_bits=table_bits, acc_bits=48)
    rng = np.random.default_rng(table_bits)
    a, w = rng.integers(-128, 128, (40, 96)), rng.integers(-8, 8, (96, 16))
    operand, worth = TMAC.from_integers(p, w)
    assert worth == Fraction(1, 2 * p.levels)
    error = TMAC.golden(p, a, operand) * float(worth) - a @ w
    most = np.abs(a).reshape(40, 3, 8, 4).sum(axis=3).max(axis=2).sum(axis=1)
    bound = most * p.rows * 15 / (4 * p.levels)
    assert (np.abs(error) <= bound[:, None]).all()
    assert np.abs(error).max() > bound.max() / 50
    assert abs(error.mean()) < bound.mean() / 50


@pytest.mark.parametrize("rows", [2, 4, 8, 16])
def test_fast_aggregation_has_the_bias_of_its_halving_additions(rows):
    """A level adds a quarter on average: max (2^b - 1) rows log2(rows) / 4 a tile. Exact aggregation has none."""
    rng = np.random.default_rng(rows)
    a, w = rng.integers(-128, 128, (200, 4 * rows)), rng.integers(-8, 8, (4 * rows, 64))
    most = np.abs(a).reshape(200, rows, 4).sum(axis=2).max(axis=1)[:, None]
    shares = []
    for aggregation in ("fast", "exact"):
        p = TMAC.params(rows=rows, aggregation=aggregation, acc_bits=48)
        error = TMAC.golden(p, a, w) - 2 * p.levels * (a @ w)
        shares.append((error / (most * 15 * rows * log2(rows) / 4)).mean())
    assert abs(shares[0] - 1) < 0.05
    assert abs(shares[1]) < 0.02


@pytest.mark.parametrize("preset, reads", [("fp16", 0.0), ("fp16-quantized", 1.0)])
def test_fp16_errs_by_alignment_tables_and_rounding_at_most(preset, reads):
    """Against float64. A value is off by half a unit of its tile's alignment, a quantized read by half a step of its
    tile's maximum, a sum by half a unit in the last place."""
    p = TMAC.preset(preset)
    rng = np.random.default_rng(8)
    a = rng.normal(size=(20, 45)).astype(np.float16)
    top = 1 << (p.weight_bits - 1)
    w = rng.integers(-top, top, (45, 6))
    operand, worth = TMAC.from_integers(p, w)
    y = TMAC.golden(p, a, operand).astype(np.float64) * float(worth)
    bound = np.zeros(y.shape)
    for x, held in tiles_of(p, a.astype(np.float64), w):
        unit_of = 2.0 ** (np.floor(np.log2(np.abs(x).max(axis=1))) + 2 - p.act_bits)[:, None]
        # half a unit, or where the largest rounds up beyond the last code all of one
        bound += unit_of * np.abs(held).sum(axis=0)
        most = np.abs(x).reshape(len(x), p.rows, 4).sum(axis=2).max(axis=1)[:, None] + 4 * unit_of
        bound += reads * most * p.rows * (2 * top - 1) / (4 * p.levels)
    bound += 2.0**-20 * (np.abs(a.astype(np.float64)) @ np.abs(w))
    error = np.abs(y - a.astype(np.float64) @ w)
    assert (error <= bound).all()
    assert error.max() > bound.max() / 100


def test_zero_activations_have_zero_tables():
    for aggregation in ("exact", "fast"):
        p = TMAC.params(aggregation=aggregation)
        w = np.random.default_rng(9).integers(-8, 8, (40, 3))
        assert not TMAC.golden(p, np.zeros((2, 40), dtype=np.int64), w).any()


@pytest.mark.parametrize("preset", ["default", "narrow-saturate"])
def test_golden_is_the_same_in_small_parts(preset, monkeypatch):
    p = TMAC.preset(preset)
    rng = np.random.default_rng(10)
    low, high = -(1 << (p.act_bits - 1)), 1 << (p.act_bits - 1)
    a, w = rng.integers(low, high, (7, 75)), rng.integers(-4, 4, (75, 9))
    psum = rng.integers(-100, 100, (7, 9))
    whole = TMAC.golden(p, a, w, psum)
    monkeypatch.setattr(tmac, "CHUNK", 2000)
    assert (TMAC.golden(p, a, w, psum) == whole).all()


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_fast_aggregation_is_the_same_in_rows_of_any_number(overflow):
    p = TMAC.params(rows=4, cols=2, weight_bits=8, acc_bits=26, overflow=overflow, aggregation="fast")
    rng = np.random.default_rng(6)
    a, w = rng.integers(-128, 128, (600, 48)), rng.integers(-128, 128, (48, 3))
    alone = np.concatenate([TMAC.golden(p, a[i : i + 1], w) for i in (0, 255, 256, 599)])
    assert np.array_equal(TMAC.golden(p, a, w)[[0, 255, 256, 599]], alone)
    assert np.array_equal(alone[-1:], literal(p, a[-1:], w))


def test_quantized_weights_give_the_product_in_the_stated_unit():
    p = TMAC.params(weight_bits=3, table_bits=None)
    name, options = TMAC.weight_format(p)
    rng = np.random.default_rng(11)
    q = get_format(name, **options).quantize(rng.normal(size=(40, 5)), axis=0)
    w, worth = TMAC.operand(p, q)
    a = rng.integers(-128, 128, (3, 40))
    assert (TMAC.golden(p, a, w) * worth == a @ q.integers).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"act_bits": 9}, "act_bits of at most 8, not 9; table_bits=none"),
        ({"act_format": "fp16", "act_bits": 12}, "act_bits of at most 8"),
        ({"rows": 6, "aggregation": "fast"}, "power of two of rows, not 6; nearest below: 4"),
        ({"table_bits": None, "aggregation": "fast"}, "needs table_bits"),
        ({"table_bits": 9}, "table_bits must be a whole number from 3 to 8"),
        ({"weight_bits": 1, "serial": True}, "serial=true needs weight_bits"),
        ({"act_format": "fp16", "acc_bits": 24}, "acc_bits=32"),
        ({"aggregation": "exakt"}, "exact"),
    ],
)
def test_parameters_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        TMAC.params(**change)


def test_operands_are_refused():
    p, a = TMAC.params(), np.zeros((1, 4), dtype=np.int64)
    with pytest.raises(InputError, match=r"W.*: 8 is outside -8\.\.7"):
        TMAC.golden(p, a, np.full((4, 1), 8))
    with pytest.raises(InputError, match=r"A.*: 128 is outside"):
        TMAC.golden(p, a + 128, np.zeros((4, 1), dtype=np.int64))
    with pytest.raises(InputError, match="1"):
        TMAC.weight_format(TMAC.params(weight_bits=1))
    fp16 = TMAC.preset("fp16")
    with pytest.raises(InputError, match=r"(?i)nan|finite"):
        TMAC.golden(fp16, np.array([[np.nan] * 4], dtype=np.float16), np.zeros((4, 1), dtype=np.int64))


def register_bits(counted):
    return sum(op.count * op.bits for op in counted if op.kind == "reg")


SMALL = {"rows": 2, "cols": 3, "act_bits": 4, "weight_bits": 3, "table_bits": 5, "acc_bits": 20}
FP16 = {"act_format": "fp16", "act_bits": 6, "acc_bits": 32}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"table_bits": None},
        {"aggregation": "fast"},
        {"serial": True},
        {"serial": True, "table_bits": None},
        FP16 | {"rows": 1, "cols": 1, "serial": True},
    ],
    ids=str,
)
def test_every_data_register_is_counted_when_it_is_written(change, tmp_path, monkeypatch):
    monkeypatch.setenv("HWSIM_CACHE", str(tmp_path))
    p = TMAC.params(**SMALL | change)
    array, shapes = p.columns, [{"M": m, "K": p.tile_k, "N": p.cols} for m in (1, 2)]
    one, two = (register_bits(TMAC.ops(p, **shape)) for shape in shapes)
    cycles = TMAC.timing(p, **shapes[0]).total_cycles
    held = p.rows * p.cols * 4 * p.weight_bits
    # `two` has one vector and `interval` cycles more
    a_cycle, rest = divmod(one - p.rows * held - (two - one), cycles - array.interval)
    a_vector = two - one - array.interval * a_cycle
    control = (max(p.rows, 2) - 1).bit_length() + 1 + array.latency  # beats loaded, full, valid bits
    if p.serial:
        phase = (array.interval - 1).bit_length()
        # the phase, marks of the first one, and both on their way through the alignment
        control += phase + array.stages + array.edge_stages * (1 + phase)
    assert rest == 0
    assert (a_vector > 0) == p.serial
    cells = synthesize(emit(p), "tmac").cells
    assert sum(n for cell, n in cells.items() if cell.startswith("DFF")) == a_cycle + a_vector + held + control


def test_wider_tables_come_nearer_to_the_product():
    rng = np.random.default_rng(12)
    a, w = rng.integers(-128, 128, (30, 64)), rng.integers(-8, 8, (64, 8))
    errors = []
    for table_bits in (3, 5, 8):
        p = dataclasses.replace(TMAC.preset("default"), table_bits=table_bits)
        errors.append(np.abs(TMAC.golden(p, a, w) / p.scale - a @ w).mean())
    assert errors[0] > 3 * errors[1] > 12 * errors[2]
