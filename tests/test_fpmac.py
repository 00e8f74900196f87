"""FP16 multipliers with FP32 sums, and dequantizers in front of wide PEs: golden, refusals, RTL, registers."""

import struct
from dataclasses import replace

import numpy as np
import pytest

from hwsim.synth import synthesize
from hwsim.verify import run_rtl, verify
from models.catalog import unit
from models.floats import half_of, random_halves, random_singles, single_bits
from models.formats import get_format
from models.grouped import GroupedWeights
from models.unit import InputError, Stimulus
from rtl.emit import emit

FPMAC, DEQUANT = unit("fpmac"), unit("dequant")
FP16 = {"act_format": "fp16", "act_bits": 16}


def sums_in_order(a, w, psum):
    """Sums of single precision in order of k, one numpy addition each."""
    total = np.zeros((len(a), w.shape[1]), dtype=np.float32) if psum is None else psum.astype(np.float32)
    with np.errstate(over="ignore"):
        for k in range(a.shape[1]):
            total = total + a[:, k : k + 1].astype(np.float32) * w[k].astype(np.float32)
    return total


@pytest.mark.parametrize("seed", range(60))
def test_fpmac_adds_exact_products_in_order_of_k(seed):
    rng = np.random.default_rng(seed)
    m, k, n = rng.integers(1, [9, 150, 140])
    a, w = random_halves(rng, (m, k)), random_halves(rng, (k, n))
    psum = random_singles(rng, (m, n)) if seed % 2 else None
    got, want = FPMAC.golden(FPMAC.preset("small"), a, w, psum), sums_in_order(a, w, psum)
    assert got.dtype == np.float32
    assert (got == want).all()
    assert FPMAC.golden(FPMAC.preset("default"), a, w, psum).tobytes() == got.tobytes()


def test_the_order_matters_and_so_does_each_rounding():
    """2^24 takes no 1 in, nor a second one, whereas 1 + 1 first would be taken."""
    p = FPMAC.preset("tiny")
    big = np.array([[2.0**24]])
    assert FPMAC.golden(p, np.ones((1, 2)), np.ones((2, 1)), big).tolist() == [[2.0**24]]
    assert FPMAC.golden(p, np.ones((1, 1)), 2 * np.ones((1, 1)), big).tolist() == [[2.0**24 + 2]]


def test_the_greatest_single_takes_no_product_in_so_that_no_sum_is_infinite():
    p = FPMAC.preset("small")
    top = np.full((1, 1), np.finfo(np.float32).max)
    a, w = np.array([[65504.0] * 4]), np.array([[65504.0], [0], [65504.0], [1]])
    assert 2.0**103 / 2 > (1 << 20) * 65504.0**2  # half of its last place, all products there can be
    assert FPMAC.golden(p, a, w, top).tolist() == top.tolist()
    assert run_rtl(p, (a, w, top)).output.tolist() == top.tolist()


def test_minus_zero_as_a_start_counts_as_zero():
    p = FPMAC.preset("small")
    for k in (1, 3, 4):
        operands = np.full((1, k), -0.0), np.ones((k, 1)), np.array([[-0.0]], dtype=np.float32)
        assert single_bits(FPMAC.golden(p, *operands)).tolist() == [[0]]
        assert single_bits(run_rtl(p, operands).output).tolist() == [[0]]


@pytest.mark.parametrize(
    "a, w, psum, message",
    [
        ([[np.nan]], [[1.0]], None, r"A\[0, 0\]: nan is not finite"),
        ([[1.0]], [[2049.0]], None, r"W\[0, 0\]: 2049.0 is no FP16 number; nearest: 2048.0"),
        ([[1.0]], [[1.0]], [[0.1]], r"psum\[0, 0\]: 0.1 is no FP32 number"),
        ([[1.0]], [[1.0]], [[1.0, 2.0]], r"psum is \(1, 2\), not \(1, 1\)"),
        ([[1.0, 2.0]], [[1.0]], None, r"A's columns must equal W's rows"),
    ],
)
def test_what_fpmac_cannot_take_is_refused(a, w, psum, message):
    with pytest.raises(InputError, match=message):
        FPMAC.golden(FPMAC.preset("tiny"), np.array(a), np.array(w), None if psum is None else np.array(psum))


def test_fpmac_parameters_are_refused():
    for values, message in (
        ({"rows": 65}, r"rows must be a whole number from 1 to 64, not 65"),
        ({"act_format": "int"}, r"act_format is fp16; integers are for systolic"),
        ({"acc_bits": 24}, r"acc_bits must be 32, not 24"),
    ):
        with pytest.raises(InputError, match=message):
            FPMAC.params(**values)


def test_plain_integers_are_weights_of_fpmac_as_far_as_it_holds_all_of_them():
    p = FPMAC.preset("tiny")
    w, one = FPMAC.from_integers(p, FPMAC.plain_weights(p)[:, None])
    assert one == 1
    assert (w.astype(np.int64)[:, 0] == FPMAC.plain_weights(p)).all()
    with pytest.raises(InputError, match=r"W.*: -2049 is outside -2048..2048.*nearest: -2048"):
        FPMAC.from_integers(p, np.array([[0], [-2049]]))
    with pytest.raises(InputError, match="integers are needed"):
        FPMAC.from_integers(p, np.array([[0.5]]))


def test_weights_in_half_precision_go_through_fpmac():
    p, rng = FPMAC.preset("small"), np.random.default_rng(6)
    name, options = FPMAC.weight_format(p)
    quantized = get_format(name, **options).quantize(rng.standard_normal((20, 5)), axis=0)
    w, one = FPMAC.operand(p, quantized)
    a = rng.standard_normal((4, 20)).astype(np.float16)
    assert one == 1
    assert (w == quantized.dequantize()).all()
    exact = a.astype(np.float64) @ quantized.dequantize()
    bound = 20 * 2.0**-24 * (np.abs(a).astype(np.float64) @ np.abs(quantized.dequantize()))
    assert (np.abs(FPMAC.golden(p, a, w) - exact) <= bound).all()
    with pytest.raises(InputError, match=r"W\[0, 0\]: .* is no FP16 number"):
        FPMAC.operand(p, get_format("int8").quantize(np.full((2, 2), 0.3), axis=0))


def dequantized(w):
    """Weights of groups, one by one."""
    k, n = w.shape
    return np.array(
        [[w.scales[i // w.group, j] * (w.codes[i, j] - w.zeros[i // w.group, j]) for j in range(n)] for i in range(k)]
    )


def halves(x):
    """Rounded to half precision by Python's struct, not by numpy."""
    return np.vectorize(lambda v: struct.unpack("e", struct.pack("e", float(v)))[0])(x)


GROUPS = [("small", 2), ("grouped", 5), ("wide", None), ("fp16", 4), ("fp16-wide", 1), ("fp16-tiny", None)]


@pytest.mark.parametrize("preset, group", GROUPS)
def test_dequant_multiplies_scale_times_code_less_zero_group_by_group(preset, group):
    """Among K: multiples of the group, one more and one less, shorter than it."""
    p = DEQUANT.preset(preset)
    assert p.group_size == group
    for k in (1, 4, 5, 9, 10, 11):
        a, w = DEQUANT.sample(p, np.random.default_rng(k), M=3, K=k, N=4)
        got, plain = DEQUANT.golden(p, a, w), dequantized(w)
        if p.is_float:
            assert (got == sums_in_order(a, halves(plain), None)).all()
        else:
            assert (got == a @ plain).all()


def test_zero_points_scales_and_group_edges_all_count():
    p = DEQUANT.params(rows=2, cols=2, group_size=3)
    a = np.array([[1, 10, 100, 1, 10, 100, 1]])
    w = GroupedWeights(
        codes=np.arange(-3, 4)[:, None], scales=np.array([[1], [2], [15]]), zeros=np.array([[-3], [1], [-8]]), group=3
    )
    assert w.integers[:, 0].tolist() == [0, 1, 2, -2, 0, 2, 165]
    assert DEQUANT.golden(p, a, w).tolist() == [[0 + 10 + 200 - 2 + 0 + 200 + 165]]
    for changed in (
        replace(w, zeros=0 * w.zeros),
        replace(w, scales=0 * w.scales + 1),
        GroupedWeights(codes=w.codes, scales=w.scales[:2], zeros=w.zeros[:2], group=4),
    ):
        assert (changed.integers != w.integers).any()


def test_dequant_saturates_and_wraps_in_order():
    a, codes = np.full((1, 6), 127), np.array([7, 7, 7, -8, -8, 7])[:, None]
    w = GroupedWeights(codes=codes, scales=np.array([[15]]), zeros=np.array([[0]]), group=6)
    low, high, total = -(1 << 13), (1 << 13) - 1, 0
    for value in (127 * 15 * codes[:, 0]).tolist():
        total = min(max(total + value, low), high)
    p = DEQUANT.params(acc_bits=14, overflow="saturate")
    assert DEQUANT.golden(p, a, w).tolist() == [[total]]
    exact = int(127 * 15 * codes.sum())
    wrapped = DEQUANT.golden(replace(p, overflow="wrap"), a, w)
    assert wrapped.tolist() == [[(exact - low) % (1 << 14) + low]]


@pytest.mark.parametrize("group", [None, 8, 10])
def test_quantized_weights_go_through_dequant(group):
    p = DEQUANT.params(group_size=group, scale_bits=5)
    rng = np.random.default_rng(8)
    name, options = DEQUANT.weight_format(p)
    quantized = get_format(name, **options).quantize(rng.standard_normal((40, 6)) + 0.2, axis=0)
    w, one = DEQUANT.operand(p, quantized)
    a = rng.integers(-128, 128, (5, 40))
    assert one == 1
    assert w.zeros.any()
    assert (w.integers == quantized.integers).all()
    assert (DEQUANT.golden(p, a, w) == a @ quantized.integers).all()
    real = a @ quantized.dequantize()
    assert np.allclose(DEQUANT.golden(p, a, w) * quantized.step, real, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"codes": np.array([[8], [0]])}, r"codes.*: 8 is outside -8..7 \(4 bits\)"),
        ({"zeros": np.array([[-9]])}, r"zeros.*: -9 is outside -8..7"),
        ({"scales": np.array([[16]])}, r"scales.*: 16 is outside 0..15"),
        ({"scales": np.array([[0]])}, r"scales\[0, 0\]: 0; a scale is a whole number of at least 1"),
        ({"scales": np.array([[0.5]])}, r"scales: integers with 2 axes are needed, not float64"),
        ({"scales": np.array([[1], [1]])}, r"scales are \(2, 1\), not \[1, 1\]"),
        ({"group": 0}, r"group must be a whole number of at least 1"),
        (
            {"group": 1, "scales": np.ones((2, 1), int), "zeros": np.ones((2, 1), int)},
            r"W has groups of 1: the array has",
        ),
    ],
)
def test_weights_that_dequant_cannot_load_are_refused(change, message):
    ones = np.ones((1, 1), dtype=np.int64)
    fields = {"codes": np.ones((2, 1), dtype=np.int64), "scales": ones, "zeros": ones, "group": 2} | change
    with pytest.raises(InputError, match=message):
        DEQUANT.golden(DEQUANT.params(), np.ones((1, 2), dtype=np.int64), GroupedWeights(**fields))


def test_dequant_parameters_are_refused():
    for values, message in (
        ({"act_format": "fp16"}, r"act_format=fp16 needs act_bits=16, not 8"),
        (FP16 | {"acc_bits": 24}, r"act_format=fp16 needs acc_bits=32, not 24"),
        (FP16 | {"overflow": "saturate"}, r"act_format=fp16 needs overflow=wrap, not saturate"),
        ({"scale_bits": 9}, r"scale_bits must be a whole number from 1 to 8, not 9"),
        ({"group_size": 0}, r"group_size must be a whole number from 1 to"),
    ):
        with pytest.raises(InputError, match=message):
            DEQUANT.params(**values)
    quantized = get_format("int4").quantize(np.ones((4, 4)), axis=0)
    with pytest.raises(InputError, match="dequant: weights need integer codes with integer scales"):
        DEQUANT.operand(DEQUANT.params(), quantized)


def random_params(name, seed):
    rng = np.random.default_rng(seed)
    size = {"rows": int(rng.integers(1, 5)), "cols": int(rng.integers(1, 5))}
    if name == "fpmac":
        return FPMAC.params(**size)
    size |= {"weight_bits": int(rng.integers(2, 9)), "scale_bits": int(rng.integers(1, 9))}
    size["group_size"] = [None, 1, 2, 3, 7][rng.integers(5)]
    if rng.integers(2):
        return DEQUANT.params(**size, **FP16)
    overflow = ["wrap", "saturate"][rng.integers(2)]
    acc_bits = int(rng.integers(2, 49))
    return DEQUANT.params(**size, act_bits=int(rng.integers(2, 17)), acc_bits=acc_bits, overflow=overflow)


@pytest.mark.parametrize("name", ["fpmac", "dequant"])
@pytest.mark.parametrize("seed", range(6))
def test_rtl_equals_the_model_for_parameters_of_any_width(name, seed):
    assert verify(random_params(name, seed), cases=6, seed=seed).findings == ()


def test_a_wrong_bit_of_a_scale_or_zero_point_would_be_seen():
    """The trace follows what is loaded: another word on the port is another sum."""
    p, always = DEQUANT.preset("fp16"), np.ones(1, dtype=bool)
    w = GroupedWeights(codes=np.full((3, 2), 3), scales=np.full((1, 2), 5), zeros=np.full((1, 2), -2), group=4)
    a = half_of(np.full((1, 3), 0x3C00))
    beats = DEQUANT.beats(p, a, w)
    for field in ("code", "scale", "zero"):
        changed = {**beats, "i_weight": {**beats["i_weight"], field: beats["i_weight"][field] ^ 1}}
        outputs = [
            DEQUANT.trace(p, Stimulus(beats=b, offer=dict.fromkeys(b, always), accept={"o_psum": always}))
            for b in (beats, changed)
        ]
        assert (outputs[0]["o_psum.payload.psum"] != outputs[1]["o_psum.payload.psum"]).any(), field


CONFIGURATIONS = [
    ("fpmac", {}),
    ("dequant", {"act_bits": 5, "weight_bits": 3, "scale_bits": 2, "acc_bits": 14}),
    ("dequant", {"weight_bits": 3, "scale_bits": 4, **FP16}),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, values", CONFIGURATIONS)
def test_every_data_register_is_counted_once_a_cycle(name, values, tmp_path, monkeypatch):
    monkeypatch.setenv("HWSIM_CACHE", str(tmp_path))
    entry = unit(name)
    p = entry.params(rows=3, cols=2, **values)
    one, two = (_register_bits(entry.ops(p, M=m, K=3, N=2)) for m in (1, 2))
    a_cycle = two - one
    held, rest = divmod(one - a_cycle * entry.timing(p, M=1, K=3, N=2).total_cycles, p.rows)
    assert rest == 0
    control = 2 + 1 + p.geometry.latency  # beats loaded, full, valid bits
    cells = synthesize(emit(p), name).cells
    assert sum(count for cell, count in cells.items() if cell.startswith("DFF")) == a_cycle + held + control


def _register_bits(counted):
    return sum(op.count * op.bits for op in counted if op.kind == "reg")
