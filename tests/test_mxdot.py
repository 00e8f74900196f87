"""Block-scaled dot products: golden against exact fractions, codes against ml_dtypes, corners, refusals, registers."""

from dataclasses import replace
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import models.mxdot as model
from hwsim.energy import energy_pj
from hwsim.synth import synthesize
from hwsim.verify import run_rtl, verify
from models.catalog import unit
from models.floats import single_bits
from models.formats import get_format
from models.mxdot import Blocks
from models.unit import InputError, Stimulus
from rtl.emit import emit

MXDOT = unit("mxdot")
TYPES = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
ELEMENTS = [*TYPES, "int8"]
FP32_TOP = Fraction(2**24 - 1) * 2**104


def element_value(element, code):
    """By ml_dtypes, or 64ths."""
    if element == "int8":
        return Fraction(int(code), 64)
    return Fraction(float(np.array([code], dtype=np.uint8).view(TYPES[element])[0]))


def scale_value(scale, code):
    """By ml_dtypes; UE5M3 is E5M2's exponent with three digits of a fraction, unsigned."""
    if scale == "e8m0":
        return Fraction(2) ** (int(code) - 127)
    if scale == "e4m3":
        return element_value("e4m3", code)
    exponent, fraction = divmod(int(code), 8)
    return Fraction(8 + fraction if exponent else fraction, 8) * Fraction(2) ** (max(exponent, 1) - 15)


def nearest_even(x, digits):
    """x with `digits` binary digits and FP32's exponents, without an upper end."""
    if not x:
        return x
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    exponent -= abs(x) < Fraction(2) ** exponent
    step = Fraction(2) ** (max(exponent, -126) - digits + 1)
    return round(x / step) * step


def dot_product(p, a, w, m, n, start):
    """One output, block after block, in fractions; infinities as floats."""
    digits, size = p.accumulate.digits, p.block_size
    top = (2 - Fraction(2) ** (1 - digits)) * 2**127
    total = Fraction(start)
    for b in range(-(-a.shape[1] // size)):
        products = (
            element_value(p.act_element, a.codes[m, k]) * element_value(p.weight_element, w.codes[k, n])
            for k in range(b * size, min((b + 1) * size, a.shape[1]))
        )
        scales = scale_value(p.scale_format, a.scales[m, b]) * scale_value(p.scale_format, w.scales[b, n])
        term = nearest_even(sum(products) * scales, digits)
        total = nearest_even(total + min(max(term, -top), top), digits)
        if abs(total) > top:
            return float("inf") if total > 0 else float("-inf")
    return float(total)


def exact(p, a, w, psum=None):
    m, n = a.shape[0], w.shape[1]
    return [
        [dot_product(p, a, w, i, j, 0.0 if psum is None else float(psum[i, j])) for j in range(n)] for i in range(m)
    ]


def blocks(codes, scales):
    return Blocks(codes=np.array(codes), scales=np.array(scales))


@pytest.mark.parametrize("element", ELEMENTS)
def test_every_finite_code_is_worth_what_ml_dtypes_says(element):
    form = model.ELEMENTS[model.Element(element)]
    codes = np.arange(-128, 128) if element == "int8" else np.arange(1 << form.bits)
    finite = codes if element == "int8" else codes[(codes & ((1 << (form.bits - 1)) - 1)) <= form.top]
    values = [element_value(element, code) for code in finite]
    assert [Fraction(int(i)) * Fraction(2) ** form.unit for i in model.element_integers(element)[finite]] == values
    assert max(map(abs, values)) == form.largest * Fraction(2) ** form.unit
    assert len(finite) == len(codes) - {"e4m3": 2, "e5m2": 8}.get(element, 0)
    if element != "int8":
        assert not np.isfinite(np.setdiff1d(codes, finite).astype(np.uint8).view(TYPES[element]).astype(float)).any()


@pytest.mark.parametrize("scale", ["e8m0", "e4m3", "ue5m3"])
def test_every_scale_is_worth_what_its_format_says(scale):
    form = model.SCALES[model.ScaleFormat(scale)]
    codes = np.arange(form.top + 1)
    assert [Fraction(v) for v in model.scale_values(scale)] == [scale_value(scale, c) for c in codes]
    if scale == "e8m0":
        bytes_ = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
        assert (bytes_[:-1] == model.scale_values(scale)).all()
    assert model.scale_values(scale)[form.one] == 1
    assert model.scale_values(scale)[-1] == {"e8m0": 2.0**127, "e4m3": 448, "ue5m3": 114688}[scale]


PAIRS = [(a, w, "e8m0") for a in ELEMENTS for w in ELEMENTS] + [("e2m1", "e2m1", s) for s in ("e4m3", "ue5m3")]


@pytest.mark.parametrize("act, weight, scale", PAIRS)
@pytest.mark.parametrize("accumulate", ["fp32", "fp22", "bf16"])
def test_golden_is_the_fraction_rounded_once_a_block_and_once_a_sum(act, weight, scale, accumulate):
    p = MXDOT.params(
        rows=8, block_size=8, act_element=act, weight_element=weight, scale_format=scale, accumulate=accumulate
    )
    for seed in range(6):
        a, w, *psum = MXDOT.sample(p, np.random.default_rng([seed, len(act), len(weight)]))
        a, w = (
            replace(a, codes=a.codes[:3], scales=a.scales[:3]),
            replace(w, codes=w.codes[:, :3], scales=w.scales[:, :3]),
        )
        psum = [x[:3, :3] for x in psum]
        assert MXDOT.golden(p, a, w, *psum).tolist() == exact(p, a, w, *psum)


def all_largest(p, k, sign=0):
    """Operands of one row and column whose products are all the largest, or minus that."""
    act, weight = (
        np.full((1, k), (f.top | sign * i << (f.bits - 1)) if f.is_float else -f.largest)
        for i, f in ((1, p.act), (0, p.weight))
    )
    groups, one = -(-k // p.block_size), p.scale.one
    return blocks(act, np.full((1, groups), one)), blocks(weight.T, np.full((groups, 1), one))


@pytest.mark.parametrize("act, weight", [(e, e) for e in ELEMENTS] + [("int8", "e5m2"), ("e4m3", "e2m1")])
def test_a_block_of_the_largest_elements_fits_the_widths_and_just_so(act, weight):
    p = MXDOT.params(rows=32, cols=1, act_element=act, weight_element=weight)
    largest = p.block_size * p.act.largest * p.weight.largest
    assert -1 << (p.sum_bits - 1) <= -largest
    assert 1 << (p.sum_bits - 2) <= largest < 1 << (p.sum_bits - 1)
    for sign in (0, 1):
        a, w = all_largest(p, 32, sign)
        assert run_rtl(p, (a, w)).output.tolist() == exact(p, a, w)
    if "int8" not in (act, weight):
        assert abs(exact(p, a, w)[0][0]) == float(nearest_even(largest * Fraction(2) ** p.unit, 24))


def test_subnormal_elements_count():
    for element, least in (("e2m1", 0.5), ("e2m3", 1 / 8), ("e3m2", 1 / 16), ("e4m3", 2.0**-9), ("e5m2", 2.0**-16)):
        p = MXDOT.params(rows=2, cols=1, block_size=2, act_element=element, weight_element=element)
        a, w = blocks([[1, 1]], [[127]]), blocks([[1], [1]], [[127]])
        assert MXDOT.golden(p, a, w).tolist() == [[2 * least**2]]
        assert run_rtl(p, (a, w)).output.tolist() == [[2 * least**2]]


def test_cancelling_products_leave_what_is_left_and_no_minus_zero():
    p = MXDOT.params(rows=4, cols=1, block_size=4, act_element="e5m2", weight_element="e5m2")
    top, low = 0x7B, 1
    w = blocks([[top], [top], [low], [0]], [[127]])
    for codes, left in (([top, top | 0x80, low, 0], 2.0**-32), ([top | 0x80, top, 0, 0x80], 0.0)):
        a = blocks([codes], [[127]])
        assert MXDOT.golden(p, a, w).tolist() == exact(p, a, w) == [[left]]
        assert single_bits(run_rtl(p, (a, w)).output).tolist() == single_bits(np.float32([[left]])).tolist()


def test_minus_zero_as_a_start_counts_as_zero():
    p = MXDOT.params(rows=1, cols=1, block_size=1)
    for code in (0, 8):
        operands = blocks([[code]], [[0]]), blocks([[8]], [[0]]), np.array([[-0.0]], dtype=np.float32)
        assert single_bits(MXDOT.golden(p, *operands)).tolist() == [[0]]
        assert single_bits(run_rtl(p, operands).output).tolist() == [[0]]


@pytest.mark.parametrize("low, up", [(0, False), (1, True), (0x81, False)])
def test_digits_far_below_a_tie_decide_it(low, up):
    """2^24 + 1 units lies between two singles; 2^-45 more or less of a unit is in no double with it."""
    p = MXDOT.params(rows=8, block_size=8, act_element="e5m2", weight_element="e5m2")
    digits = lambda exponent: exponent << 2  # noqa: E731
    a = blocks([[digits(28), digits(16), low, 0, 0, 0, 0, 0]], [[127]])
    w = blocks([[digits(28)], [digits(16)], [1], [0], [0], [0], [0], [0]], [[127]])
    tie = Fraction(2) ** 26 + 2**2
    assert tie / 4 == 2**24 + 1
    got = MXDOT.golden(p, a, w).item()
    assert got == exact(p, a, w)[0][0] == (2.0**26 + 8 if up else 2.0**26)
    assert run_rtl(replace(p, cols=1), (a, w)).output.item() == got


@pytest.mark.parametrize("accumulate, top", [("fp32", 2.0**128 - 2.0**104), ("fp22", 2.0**128 - 2.0**114)])
def test_terms_saturate_sums_become_infinite_and_stay_so(accumulate, top):
    p = MXDOT.params(rows=2, cols=1, block_size=1, act_element="int8", weight_element="int8", accumulate=accumulate)
    for codes, want in (([64], top), ([-64], -top), ([64, 64], np.inf), ([64, 64, -64, -64], np.inf), ([64, -64], 0.0)):
        k = len(codes)
        a, w = blocks([codes], [[254] * k]), blocks([[64]] * k, [[254]] * k)
        assert MXDOT.golden(p, a, w).tolist() == [[want]]
        assert run_rtl(p, (a, w)).output.tolist() == [[want]]
        assert "inf" in str(want) or exact(p, a, w) == [[want]]


def test_a_term_that_rounds_up_to_two_to_the_128_saturates_too():
    """511 units of 2^-12 in BF16 are 512 of them: 2^127 or, with scales twice or four times as large, too much."""
    p = MXDOT.params(
        rows=2, cols=1, block_size=2, act_element="int8", weight_element="int8", accumulate=model.Accumulate.BF16
    )
    greatest = 2.0**128 - 2.0**120
    for exponent, want in ((130, 2.0**127), (131, greatest), (132, greatest)):
        a, w = blocks([[127, 1]], [[127 + exponent - 60]]), blocks([[4], [3]], [[127 + 60]])
        assert MXDOT.golden(p, a, w).tolist() == exact(p, a, w) == [[want]]
        assert run_rtl(p, (a, w)).output.tolist() == [[want]]


def test_the_least_terms_are_subnormal_or_round_to_zero():
    """One unit of E2M1 squared is 1/4: scales of 2^-147 make it the least single, 2^-148 its half, a tie to even."""
    p = MXDOT.params(rows=1, cols=1, block_size=1)
    for scale, code, want in ((-147, 1, 2.0**-149), (-148, 1, 0.0), (-148, 3, 2 * 2.0**-149), (-149, 3, 2.0**-149)):
        a, w = blocks([[code]], [[0]]), blocks([[1]], [[127 + 127 + scale]])
        assert MXDOT.golden(p, a, w).tolist() == [[want]] == exact(p, a, w)
        assert run_rtl(p, (a, w)).output.tolist() == [[want]]


def test_one_far_scale_changes_no_other_output():
    """The array's result does not depend on whether single or double precision imitates it."""
    p, rng = MXDOT.preset("mxfp4"), np.random.default_rng(3)
    a, w = MXDOT.sample(p, rng, M=5, K=96, N=4)
    a, w = (replace(x, scales=np.full_like(x.scales, 127)) for x in (a, w))
    far = replace(a, codes=np.where(np.arange(5)[:, None] == 4, 0, a.codes), scales=a.scales.copy())
    far.scales[4] = 0
    assert model._in_single_range(p, a, w)
    assert not model._in_single_range(p, far, w)
    assert (MXDOT.golden(p, far, w)[:4] == MXDOT.golden(p, a, w)[:4]).all()


def test_order_of_blocks_and_each_rounding_matter():
    """2^24 takes no 1 in, nor a second one of another block; of the same block both."""
    start = np.array([[2.0**24]])
    for size, want in ((1, 2.0**24), (2, 2.0**24 + 2)):
        p = MXDOT.params(rows=2, block_size=size)
        scales = [127] * (2 // size)
        operands = blocks([[2, 2]], [scales]), blocks([[2], [2]], [[s] for s in scales]), start
        assert MXDOT.golden(p, *operands).tolist() == [[want]]


@pytest.mark.parametrize("fault", ["subnormals", "signs", "scales of A", "scales of W", "order"])
def test_a_planted_fault_is_seen(fault, monkeypatch):
    p = MXDOT.params(rows=4, block_size=4, act_element="e3m2", weight_element="e3m2")
    rng = np.random.default_rng(9)
    a, w = MXDOT.sample(p, rng, M=3, K=12, N=3)
    a = blocks(rng.integers(0, 64, (3, 12)), 120 + rng.integers(0, 9, (3, 3)))
    w = blocks(rng.integers(0, 64, (12, 3)), 120 + rng.integers(0, 9, (3, 3)))
    whole, wanted = model.element_integers, exact(p, a, w)
    assert MXDOT.golden(p, a, w).tolist() == wanted
    if fault == "subnormals":
        monkeypatch.setattr(model, "element_integers", lambda e: np.where(np.arange(64) & 28, whole(e), 0))
    elif fault == "signs":
        monkeypatch.setattr(model, "element_integers", lambda e: np.abs(whole(e)))
    elif fault == "scales of A":
        a = replace(a, scales=a.scales.T)
    elif fault == "scales of W":
        w = replace(w, scales=w.scales.T)
    else:
        a = replace(a, codes=a.codes[:, ::-1])
    assert MXDOT.golden(p, a, w).tolist() != wanted


def test_every_bit_of_a_code_or_scale_on_the_ports_counts():
    p, always = MXDOT.preset("nvfp4-two"), np.ones(1, dtype=bool)
    beats = MXDOT.beats(p, blocks(np.full((1, 8), 3), [[56, 57]]), blocks(np.full((8, 2), 5), [[60, 61], [62, 63]]))
    outputs = []
    for stream, field in (
        ("i_act", "act"),
        ("i_act", "scale"),
        ("i_weight", "weight"),
        ("i_weight", "scale"),
        (None, ""),
    ):
        changed = {s: {f: v ^ ((s, f) == (stream, field)) for f, v in fields.items()} for s, fields in beats.items()}
        stimulus = Stimulus(beats=changed, offer=dict.fromkeys(changed, always), accept={"o_psum": always})
        outputs.append(MXDOT.trace(p, stimulus)["o_psum.payload.psum"].max(axis=0))
    assert all((one != outputs[-1]).all() for one in outputs[:-1])


# ------------------------------------------------------------------------------------------- operands and refusals

ONE = [[1]]


@pytest.mark.parametrize(
    "element, scale, a, w, message",
    [
        ("e2m1", "e8m0", ([[16]], ONE), (ONE, ONE), r"A.codes\[0, 0\]: 16 is no code of e2m1, 0 to 15; nearest: 15"),
        ("e2m1", "e8m0", (ONE, ONE), ([[-1]], ONE), r"W.codes\[0, 0\]: -1 is no code of e2m1"),
        ("e4m3", "e8m0", ([[255]], ONE), (ONE, ONE), r"A.codes\[0, 0\]: 127 is the magnitude of an infinity or NaN"),
        ("e5m2", "e8m0", (ONE, ONE), ([[0x7C]], ONE), r"W.codes\[0, 0\]: 124 is the magnitude of.*e5m2; nearest: 123"),
        ("int8", "e8m0", ([[128]], ONE), (ONE, ONE), r"A.codes\[0, 0\]: 128 is no code of int8, -128 to 127"),
        ("e2m1", "e8m0", (ONE, [[255]]), (ONE, ONE), r"A.scales\[0, 0\]: 255 is NaN in e8m0; nearest: 254"),
        ("e2m1", "ue5m3", (ONE, ONE), (ONE, [[255]]), r"W.scales\[0, 0\]: 255 is NaN in ue5m3; nearest: 254"),
        ("e2m1", "e4m3", (ONE, [[127]]), (ONE, ONE), r"A.scales\[0, 0\]: 127 is NaN in e4m3; nearest: 126"),
        ("e2m1", "e4m3", (ONE, [[128]]), (ONE, ONE), r"A.scales\[0, 0\]: 128 is no code of a scale in e4m3, 0 to 126"),
        ("e2m1", "e8m0", (ONE, [[1, 1]]), (ONE, ONE), r"A.scales are \(1, 2\), not \(1, 1\) for blocks of 2"),
        ("e2m1", "e8m0", (ONE, ONE), (ONE, [[1, 1]]), r"W.scales are \(1, 2\), not \(1, 1\) for blocks of 2"),
        ("e2m1", "e8m0", ([[1, 1]], ONE), (ONE, ONE), r"A's columns must equal W's rows"),
    ],
)
def test_codes_that_the_array_cannot_take_are_refused(element, scale, a, w, message):
    p = MXDOT.params(rows=2, block_size=2, act_element=element, weight_element=element, scale_format=scale)
    with pytest.raises(InputError, match=message):
        MXDOT.golden(p, blocks(*a), blocks(*w))


def test_other_operands_are_refused():
    p, one = MXDOT.params(rows=2, block_size=2), blocks(ONE, ONE)
    for a, w, psum, message in (
        ([[1]], one, None, "A must be Blocks or a numpy array"),
        (np.ones(3, dtype=int), one, None, r"A must be a matrix \[M, K\], not an array of shape \(3,\)"),
        (np.array([[5]]), one, None, r"A\[0, 0\]: 5 is no integer of e2m1; nearest: 4"),
        (np.array([[0.5]]), one, None, "A: integers are needed, not float64"),
        (one, np.array([[1]]), None, "W must be Blocks"),
        (one, one, np.array([[np.nan]]), r"psum\[0, 0\]: nan is not finite"),
        (one, one, np.array([[1.0, 2.0]]), r"psum is \(1, 2\), not \(1, 1\)"),
    ):
        with pytest.raises(InputError, match=message):
            MXDOT.golden(p, a, w, psum)
    with pytest.raises(InputError, match=r"psum\[0, 0\]: 1.00390625 is no bf16 number; nearest: 1.0"):
        MXDOT.golden(replace(p, accumulate="bf16", acc_bits=None), one, one, np.array([[1 + 2.0**-8]]))
    with pytest.raises(InputError, match=r"codes: integers with 2 axes are needed, not float64"):
        Blocks(codes=np.ones((1, 1)), scales=np.array(ONE))


def test_parameters_are_refused():
    for values, message in (
        ({"rows": 33}, r"rows must be a multiple of block_size=32, not 33; nearest: 32"),
        ({"block_size": 33}, r"block_size must be a whole number from 1 to 32, not 33"),
        ({"act_element": "e4m4"}, r"act_element='e4m4' is unknown; did you mean 'e4m3'"),
        ({"scale_format": "e4m3", "weight_element": "e4m3"}, r"scale_format=e4m3 scales blocks of e2m1, not weight_el"),
        ({"act_bits": 8}, r"act_bits must be 4, not 8"),
        ({"acc_bits": 24}, r"acc_bits must be 32, not 24"),
        ({"accumulate": "fp16"}, r"accumulate='fp16' is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            MXDOT.params(**values)
    p = MXDOT.params(act_element="e5m2", weight_element="e2m3", accumulate="fp22")
    assert (p.act_bits, p.weight_bits, p.acc_bits) == (8, 6, 22)
    with pytest.raises(InputError, match=r"formats with e8m0 scales have blocks of 32, not block_size=16; nearest: 32"):
        MXDOT.weight_format(MXDOT.params(rows=16, block_size=16))


FORMATS = [("e8m0", act, weight) for act in ELEMENTS for weight in ELEMENTS[::2]]
FORMATS += [(scale, "e2m1", "e2m1") for scale in ("e4m3", "ue5m3")]


@pytest.mark.parametrize("scale, act, weight", FORMATS)
def test_quantized_weights_and_activations_go_through_it(scale, act, weight):
    """Against float64 on what the formats say that the codes are worth."""
    size = 32 if scale == "e8m0" else 16
    p = MXDOT.params(block_size=size, act_element=act, weight_element=weight, scale_format=scale)
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((5, 96)) * 3, rng.standard_normal((96, 7))
    (name, options), (act_name, act_options) = MXDOT.weight_format(p), MXDOT.act_format(p)
    qx, qw = get_format(act_name, **act_options).quantize(x, axis=1), get_format(name, **options).quantize(y, axis=0)
    (a, act_worth), (w, worth) = MXDOT.act_operand(p, qx), MXDOT.operand(p, qw)
    real, bound = qx.dequantize() @ qw.dequantize(), np.abs(qx.dequantize()) @ np.abs(qw.dequantize())
    got = MXDOT.golden(p, a, w) * float(act_worth * worth)
    assert (np.abs(got - real) <= 6 * 2.0**-24 * bound + 1e-12 * bound).all()
    assert (scale == "e4m3") == (worth != 1)
    with pytest.raises(
        InputError, match=rf"mxdot: blocks of {size} along axis 0 are needed, not of {size} along axis 1"
    ):
        MXDOT.operand(p, qx)
    with pytest.raises(InputError, match="mxdot: blocks with scale codes are needed"):
        MXDOT.act_operand(p, get_format("int8").quantize(x, axis=1))


def test_plain_integers_are_elements_as_far_as_there_are_such():
    for element, held in (
        ("e2m1", [-6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6]),
        ("e2m3", list(range(-7, 8))),
        ("int8", list(range(-128, 128))),
    ):
        p = MXDOT.params(act_element=element, weight_element=element)
        assert MXDOT.plain_acts(p).tolist() == MXDOT.plain_weights(p).tolist() == held
        column = np.array(held)[:, None]
        w, one = MXDOT.from_integers(p, column.T)
        assert one == 1
        assert (MXDOT.golden(p, column, w) == column @ column.T).all()


# ----------------------------------------------------------------------------------------------------- hardware

WIDE = [
    {"rows": 4, "block_size": 2, "act_element": "e5m2", "weight_element": "int8"},
    {"rows": 3, "block_size": 1, "act_element": "e4m3", "weight_element": "e5m2", "accumulate": "fp22"},
    {"rows": 6, "block_size": 2, "scale_format": "ue5m3", "accumulate": "bf16"},
]


@pytest.mark.parametrize("values", WIDE)
@pytest.mark.parametrize("seed", range(3))
def test_rtl_equals_the_model_for_several_blocks(values, seed):
    assert verify(MXDOT.params(cols=2, **values), cases=8, seed=seed).findings == ()


SYNTHESISED = [
    {"rows": 4, "block_size": 2},
    {"rows": 2, "block_size": 2, "scale_format": "e4m3"},
    {"rows": 2, "block_size": 2, "act_element": "e2m3", "weight_element": "int8", "accumulate": "fp22"},
]


@pytest.mark.slow
@pytest.mark.parametrize("values", SYNTHESISED)
def test_every_data_register_is_counted_once_a_cycle(values, tmp_path, monkeypatch):
    monkeypatch.setenv("HWSIM_CACHE", str(tmp_path))
    p = MXDOT.params(cols=2, **values)
    one, two = (_register_bits(MXDOT.ops(p, M=m, K=p.rows, N=2)) for m in (1, 2))
    a_cycle = two - one
    held, rest = divmod(one - a_cycle * MXDOT.timing(p, M=1, K=p.rows, N=2).total_cycles, p.rows)
    assert rest == 0
    assert held == p.cols * (p.rows * p.weight_bits + p.blocks * p.scale.bits)
    control = (p.rows - 1).bit_length() + 1 + p.geometry.latency  # beats loaded, full, valid bits
    cells = synthesize(emit(p), "mxdot").cells
    assert sum(count for cell, count in cells.items() if cell.startswith("DFF")) == a_cycle + held + control


@pytest.mark.parametrize("preset", MXDOT.presets)
def test_every_operation_has_an_energy(preset):
    assert energy_pj(MXDOT.ops(MXDOT.preset(preset), M=8, K=64, N=8)) > 0


def _register_bits(counted):
    return sum(op.count * op.bits for op in counted if op.kind == "reg")
