"""Small floats and their block formats against ml_dtypes, gfloat, gguf, exact fractions and the definitions by hand."""

import math
import re
from fractions import Fraction

import gfloat
import gguf
import ml_dtypes
import numpy as np
import pytest
from gfloat.formats import (
    format_info_ocp_e2m1,
    format_info_ocp_e2m3,
    format_info_ocp_e3m2,
    format_info_ocp_e4m3,
    format_info_ocp_e5m2,
    format_info_ocp_e8m0,
    format_info_ocp_int8,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from models.formats import get_format
from models.minifloats import ELEMENTS, decode, encode, pack_nibbles, unpack_nibbles
from models.unit import InputError

UE5M3_INFO = gfloat.FormatInfo(
    "ue5m3",
    8,
    4,
    bias=15,
    is_signed=False,
    domain=gfloat.Domain.Finite,
    has_nz=False,
    num_high_nans=1,
    has_subnormals=True,
    is_twos_complement=False,
)
INFOS = {
    "e2m1": format_info_ocp_e2m1,
    "e2m3": format_info_ocp_e2m3,
    "e3m2": format_info_ocp_e3m2,
    "e4m3": format_info_ocp_e4m3,
    "e5m2": format_info_ocp_e5m2,
    "ue5m3": UE5M3_INFO,
    "int8": format_info_ocp_int8,
    "e8m0": format_info_ocp_e8m0,
}
NARROW = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}
MODES = {
    "nearest_even": gfloat.RoundMode.TiesToEven,
    "nearest_away": gfloat.RoundMode.TiesToAway,
    "toward_zero": gfloat.RoundMode.TowardZero,
}
MX = {
    "mxfp4": "e2m1",
    "mxfp6_e2m3": "e2m3",
    "mxfp6_e3m2": "e3m2",
    "mxfp8_e4m3": "e4m3",
    "mxfp8_e5m2": "e5m2",
    "mxint8": "int8",
}
BLOCK = {**MX, "nvfp4": "e2m1", "fp4_ue5m3": "e2m1", "fp8_e4m3": "e4m3", "fp8_e5m2": "e5m2"}


def all_codes(name):
    return np.arange(-128, 128) if name == "int8" else np.arange(1 << INFOS[name].k)


def finite_codes(name):
    codes = all_codes(name)
    return codes[np.isfinite(decode(name, codes))]


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def samples(name):
    """A million float32 values over all binades of the format and beyond both ends, every tie and its neighbours."""
    rng = np.random.default_rng(7)
    levels = np.unique(np.abs(decode(name, finite_codes(name))))
    ties = (levels[1:] + levels[:-1]) / 2
    near = np.concatenate([levels, ties, np.nextafter(ties, 0, dtype=np.float32), np.nextafter(ties, 9e9, dtype="f4")])
    exponents = rng.integers(math.frexp(levels[1])[1] - 3, math.frexp(levels[-1])[1] + 2, 10**6)
    x = np.concatenate([np.ldexp(rng.uniform(0.5, 1, 10**6), exponents), near]).astype(np.float32)
    return x if name == "ue5m3" else np.concatenate([x[::2], -x[1::2], near, -near]).astype(np.float32)


# -------------------------------------------------------------------------------------------- element formats


@pytest.mark.parametrize("name", INFOS)
def test_every_code_is_worth_what_the_libraries_say(name):
    codes = all_codes(name)
    values = decode(name, codes)
    assert np.array_equal(values, gfloat.decode_ndarray(INFOS[name], codes & 255), equal_nan=True)
    if name in NARROW:
        narrow = codes.astype(np.uint8).view(NARROW[name]).astype(np.float64)
        assert np.array_equal(values, narrow, equal_nan=True)
        assert np.array_equal(np.signbit(values), np.signbit(narrow)) or name in ("e4m3", "e5m2", "e8m0")  # NaN signs


@pytest.mark.parametrize("name", ELEMENTS)
def test_every_finite_code_survives_the_round_trip(name):
    codes = finite_codes(name)
    for rounding in MODES:
        assert np.array_equal(encode(name, decode(name, codes), rounding), codes)


@pytest.mark.parametrize("name", sorted(NARROW.keys() - {"e8m0"}))
def test_a_million_values_round_as_in_ml_dtypes(name):
    """Which casts without a limit: E4M3 overflows to NaN above 464, E5M2 to infinity."""
    x = samples(name)
    largest = ELEMENTS[name].largest
    expected = np.clip(x, -largest, largest).astype(np.float32).astype(NARROW[name]).view(np.uint8)
    assert np.array_equal(encode(name, x), expected)


@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("rounding", MODES)
def test_a_million_values_round_as_in_gfloat(name, rounding):
    x = samples(name).astype(np.float64)
    expected = gfloat.round_ndarray(INFOS[name], x, MODES[rounding], sat=True)
    codes = encode(name, x, rounding)
    assert np.array_equal(decode(name, codes), expected)
    assert codes.min() >= all_codes(name)[0]
    assert codes.max() <= all_codes(name)[-1]


@pytest.mark.parametrize("name", ELEMENTS)
def test_stochastic_rounding_is_gfloats_with_the_same_random_bits(name):
    x = samples(name)[:200000].astype(np.float64)
    bits = (np.random.default_rng(5).random(x.shape) * 2**53).astype(np.int64)
    mode = gfloat.RoundMode.StochasticFastest
    expected = gfloat.round_ndarray(INFOS[name], x, mode, sat=True, srbits=bits, srnumbits=53)
    assert np.array_equal(decode(name, encode(name, x, "stochastic", rng=5)), expected)


def test_stochastic_rounding_takes_one_of_two_neighbours_and_is_unbiased():
    for x, low, high in ((0.7, 0.5, 1.0), (-3.3, -4.0, -3.0), (4.5, 4.0, 6.0), (0.1, 0.0, 0.5)):
        drawn = decode("e2m1", encode("e2m1", np.full(40000, x), "stochastic", rng=np.random.default_rng(3)))
        assert set(np.unique(drawn)) == {low, high}
        assert abs(drawn.mean() - x) < 4 * (high - low) / 2 / math.sqrt(40000)


def test_a_seed_gives_the_same_draws_and_a_generator_goes_on():
    x = normal(64)
    again = [encode("e2m1", x, "stochastic", rng=9).tolist() for _ in range(2)]
    rng = np.random.default_rng(9)
    follow = [encode("e2m1", x, "stochastic", rng=rng).tolist() for _ in range(2)]
    assert again[0] == again[1] == follow[0]
    assert follow[1] != follow[0]


def test_float64_rounds_once():
    """A float32 on the way makes ties of these; ml_dtypes goes through one."""
    x = np.array([0.25 + 2.0**-40, 2.5 + 2.0**-40, 0.75 - 2.0**-40])
    assert decode("e2m1", encode("e2m1", x)).tolist() == [0.5, 3.0, 0.5]
    twice = x.astype(np.float32).astype(ml_dtypes.float4_e2m1fn).astype(float)
    assert twice.tolist() == [0.0, 2.0, 1.0]


def test_the_largest_magnitude_is_where_elements_saturate():
    for name, top in (("e2m1", 6), ("e2m3", 7.5), ("e3m2", 28), ("e4m3", 448), ("e5m2", 57344), ("ue5m3", 114688)):
        assert ELEMENTS[name].largest == top
        assert decode(name, encode(name, [top * 1.03, 1e300, top])).tolist() == [top] * 3
    assert decode("int8", encode("int8", [5.0, -5.0, 127 / 64])).tolist() == [127 / 64, -2.0, 127 / 64]
    assert np.isnan(np.float32(465).astype(ml_dtypes.float8_e4m3fn))  # the pitfall


def test_zeros_keep_their_sign():
    assert encode("e2m1", [0.0, -0.0, -0.1, 0.1]).tolist() == [0, 8, 8, 0]


def test_smallest_numbers_of_ue5m3():
    assert decode("ue5m3", [0, 1, 7, 8, 254]).tolist() == [0, 2.0**-17, 7 * 2.0**-17, 2.0**-14, 114688]
    assert np.isnan(decode("ue5m3", [255]))[0]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: decode("e2m2", [0]), "decode: no format 'e2m2'; did you mean 'e"),
        (lambda: decode("e2m1", [0, 16]), "decode e2m1[1]: 16 is outside 0..15"),
        (lambda: decode("int8", [128]), "128 is outside -128..127"),
        (lambda: decode("e4m3", [0.5]), "decode e4m3: integers are needed"),
        (lambda: encode("e8m0", [1.0]), "encode: no format 'e8m0'"),
        (lambda: encode("e2m1", [np.nan]), "nan at index (0,)"),
        (lambda: encode("e2m1", [1.0, np.inf]), "inf at index (1,)"),
        (lambda: encode("ue5m3", [-1.0]), "encode ue5m3: -1.0 is negative"),
        (lambda: encode("e2m1", [1.0], "floor"), "rounding='floor'; one of: nearest_away"),
        (lambda: encode("e2m1", [1.0], "stochastic"), "rng=None must be a seed"),
        (lambda: encode("e2m1", [1.0], rng=1), "rng is for rounding='stochastic', not 'nearest_even'"),
        (lambda: pack_nibbles(np.arange(3)), "3 codes along the last axis are not even many"),
        (lambda: pack_nibbles(np.array([1, 16])), "pack_nibbles[1]: 16 is outside 0..15"),
    ],
)
def test_codes_and_numbers_that_are_none_are_refused(call, message):
    with pytest.raises(InputError, match=re.escape(message)):
        call()


def test_the_first_element_lies_in_the_low_nibble():
    codes = np.array([[1, 2, 15, 0]])
    assert pack_nibbles(codes).tolist() == [[0x21, 0x0F]]
    assert np.array_equal(unpack_nibbles(pack_nibbles(codes)), codes)


# ---------------------------------------------------------------------------------------------- block formats


@pytest.mark.parametrize("name", BLOCK)
def test_shapes_bits_and_layout(name):
    x = normal(3, 64, 2)
    q = get_format(name).quantize(x, axis=1)
    group = {"nvfp4": 16, "fp4_ue5m3": 16, "fp8_e4m3": 64, "fp8_e5m2": 64}.get(name, 32)
    assert q.codes.shape == q.dequantize().shape == x.shape
    assert q.scales.shape == (3, 64 // group, 2)
    assert q.group == group
    assert q.integers is q.step is q.offsets is None
    element = decode(BLOCK[name], q.codes)
    assert np.array_equal(q.dequantize(), element * np.repeat(q.scales, group, axis=1))
    turned = get_format(name).quantize(x.transpose(0, 2, 1), axis=-1)
    assert np.array_equal(turned.codes, q.codes.transpose(0, 2, 1))
    assert np.array_equal(turned.dequantize(), q.dequantize().transpose(0, 2, 1))


def test_bits_per_value_count_scales():
    x = normal(64, 128)
    expected = {"mxfp4": 4.25, "mxfp6_e2m3": 6.25, "mxfp6_e3m2": 6.25, "mxfp8_e4m3": 8.25, "mxfp8_e5m2": 8.25}
    expected |= {"mxint8": 8.25, "nvfp4": 4.5 + 32 / x.size, "fp4_ue5m3": 4.5}
    expected |= {"fp8_e4m3": 8 + 16 / 128, "fp8_e5m2": 8 + 16 / 128}
    assert {name: get_format(name).quantize(x).bits_per_value for name in expected} == expected
    assert get_format("fp8_e4m3", scale="tensor").quantize(x).bits_per_value == 8 + 16 / x.size
    assert get_format("fp8_e4m3", group=32).quantize(x).bits_per_value == 8 + 16 / 32
    assert get_format("mxfp4", group=16).quantize(x).bits_per_value == 4.5
    assert get_format("nvfp4", tile=16).quantize(x).bits_per_value == 4 + 8 / 256 + 32 / x.size


@pytest.mark.parametrize("name", BLOCK)
def test_every_code_of_a_block_survives(name):
    codes = finite_codes(BLOCK[name])
    codes = codes[codes != -128]  # of MXINT8: -2 is the next binade's, with the next scale
    options = {} if name.startswith("fp8") else {"group": len(codes)}
    x = decode(BLOCK[name], codes)
    q = get_format(name, **options).quantize(x)
    # NVFP4 scales with the array: the largest block has S = 448 and s = 448
    assert q.scales.tolist() == pytest.approx([1.0], rel=1e-7)
    assert np.array_equal(q.codes, codes)
    assert np.allclose(q.dequantize(), x, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", BLOCK)
def test_blocks_of_zeros_and_subnormal_values_stay_finite(name):
    q = get_format(name).quantize(np.zeros((32, 2)), axis=0)
    assert not q.dequantize().any()
    assert q.scale_patterns is None or not q.scale_patterns.any()
    assert np.isfinite(get_format(name).quantize(np.full((32, 2), -5e-324), axis=0).dequantize()).all()


@pytest.mark.parametrize("name", BLOCK)
def test_lengths_that_blocks_do_not_divide_are_refused(name):
    options = {"group": 32} if name.startswith("fp8") else {}
    with pytest.raises(InputError, match=re.escape("does not divide the axis of 40 values; nearest: ")):
        get_format(name, **options).quantize(np.ones((2, 40)))


@pytest.mark.parametrize(
    "name, value, limit",
    [
        ("mxfp4", 6.1 * 2.0**127, 6 * 2.0**127),
        ("mxint8", 2.0**128, 127 / 64 * 2.0**127),
        ("nvfp4", 3.5e38, 3.40282347e38),
        ("fp4_ue5m3", 7e5, 688128),
    ],
)
def test_magnitudes_beyond_the_largest_scale_are_refused(name, value, limit):
    x = np.ones((2, 32))
    x[1, 3] = -value
    with pytest.raises(
        InputError, match=re.escape(f"at index (1, 3) is beyond the largest magnitude; nearest: {limit:.9g}")
    ):
        get_format(name).quantize(x)
    x[1, 3] = -limit * (1 - 1e-7)
    assert get_format(name).quantize(x).dequantize()[1, 3] == pytest.approx(-limit, rel=1e-6)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("mxfp4", {"group": 0}, "mx: group=0 must be"),
        ("mxfp4", {"scale_rule": "round"}, "mx: scale_rule='round'; one of: ceil, even, floor"),
        ("mxfp4", {"rounding": "up"}, "mx: rounding='up'; one of"),
        ("mxfp4", {"element": "e2m1"}, "no option 'element'"),
        ("mxfp4", {"rounding": "stochastic"}, "mx: rng=None must be a seed"),
        ("mxfp4", {"rounding": "stochastic", "rng": -1}, "mx: rng=-1 must be a seed"),
        ("nvfp4", {"tile": 0}, "nvfp4: tile=0 must be"),
        ("nvfp4", {"scale_rule": "floor"}, "format nvfp4: no option 'scale_rule'"),
        ("fp8_e4m3", {"scale": "row"}, "fp8: scale='row'; one of: column, tensor"),
        ("fp8_e4m3", {"scale": "tensor", "group": 4}, "fp8: group goes with scale='column'"),
        ("fp8_e4m3", {"rng": 3}, "fp8: rng is for rounding='stochastic'"),
        ("fp4_ue5m3", {"group": True}, "fp4_ue5m3: group=True must be"),
    ],
)
def test_options_that_make_no_format_are_refused(name, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        get_format(name, **options)


def block_by_hand(name, block, rule, rounding):
    """Scale code and values of one block, exponents by exact comparison of fractions."""
    amax = Fraction(float(np.abs(block).max()))
    info = INFOS[MX[name]]
    e = -400
    while Fraction(2) ** (e + 1) <= amax:
        e += 1
    if (rule == "ceil" and Fraction(2) ** e < amax) or (rule == "even" and amax >= Fraction(7, 4) * Fraction(2) ** e):
        e += 1
    power = min(max(e - math.floor(math.log2(info.max)), -127), 127)
    return power + 127, gfloat.round_ndarray(info, block / 2.0**power, MODES[rounding], sat=True) * 2.0**power


@pytest.mark.parametrize("name", MX)
@pytest.mark.parametrize("rule", ["floor", "ceil", "even"])
@pytest.mark.parametrize("rounding", MODES)
def test_mx_blocks_by_hand(name, rule, rounding):
    rng = np.random.default_rng(11)
    x = normal(60, 32) * 2.0 ** rng.integers(-140, 100, (60, 1))
    # powers of two, their neighbours, and 1.75 times them decide between scales
    x[:20, 0] = np.sign(x[:20, 0]) * 8.0 * np.exp2(np.ceil(np.log2(np.abs(x[:20]).max(axis=1))))
    x[5:10, 0] = np.nextafter(x[5:10, 0], 0)
    x[10:15, 0] = np.nextafter(x[10:15, 0], np.inf)
    x[15:20, 0] *= 1.75
    q = get_format(name, scale_rule=rule, rounding=rounding).quantize(x)
    for i, block in enumerate(x):
        pattern, values = block_by_hand(name, block, rule, rounding)
        assert q.scale_patterns[i, 0] == pattern
        assert np.array_equal(q.dequantize()[i], values)
    assert np.array_equal(q.scales, decode("e8m0", q.scale_patterns))


def test_an_mx_scale_is_no_cast_to_e8m0():
    """A cast rounds 3 to 4: the block's largest value would be 0.75 of what the scale is made for."""
    assert float(np.float32(3).astype(ml_dtypes.float8_e8m0fnu)) == 4.0
    q = get_format("mxfp4").quantize(np.array([3.0] + [0.25] * 31))
    assert q.scales.tolist() == [2.0 ** (1 - 2)]
    assert q.dequantize()[0] == 3.0


def test_a_rounded_logarithm_would_take_the_wrong_scale_just_below_a_power_of_two():
    below = np.nextafter(np.float32(2.0**20), np.float32(0))
    assert np.floor(np.log2(below)) == 20
    assert get_format("mxfp4").quantize(np.full(32, below, dtype=np.float32)).scales.tolist() == [2.0**17]


def test_the_three_rules_differ_where_they_should():
    block = np.array([7.9] + [1.0] * 31)
    found = {r: get_format("mxfp4", scale_rule=r).quantize(block) for r in ("floor", "ceil", "even")}
    assert {r: q.scales[0] for r, q in found.items()} == {"floor": 1.0, "ceil": 2.0, "even": 2.0}
    assert {r: q.dequantize()[0] for r, q in found.items()} == {"floor": 6.0, "ceil": 8.0, "even": 8.0}
    block[0] = 4.5
    assert [get_format("mxfp4", scale_rule=r).quantize(block).scales[0] for r in found] == [1.0, 2.0, 1.0]


def gguf_bytes(q):
    """gguf's block: the E8M0 byte, then elements i and i + 16 in one byte."""
    codes = q.codes.reshape(-1, 2, 16)
    packed = (codes[:, 0] | codes[:, 1] << 4).astype(np.uint8)
    return np.concatenate([q.scale_patterns.reshape(-1, 1).astype(np.uint8), packed], axis=1)


def test_mxfp4_agrees_with_gguf_but_at_ties():
    """gguf holds doubled elements and half of the scale; a tie takes the smaller magnitude there, and -0 is 0."""
    x = (normal(3000, 32) * 2.0 ** np.random.default_rng(2).integers(-30, 30, (3000, 1))).astype(np.float32)
    q = get_format("mxfp4").quantize(x)
    kind = gguf.GGMLQuantizationType.MXFP4
    assert np.array_equal(gguf.quants.dequantize(gguf_bytes(q), kind), q.dequantize())
    theirs = gguf.quants.quantize(x, kind)
    assert np.array_equal(theirs[:, 0], q.scale_patterns[:, 0])
    values = gguf.quants.dequantize(theirs, kind)
    differing = values != q.dequantize()
    units = np.abs(x / q.scales)[differing]
    assert np.isin(units, [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]).all()
    ties = np.array([4.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0] * 4, dtype=np.float32)[None]
    assert get_format("mxfp4").quantize(ties).dequantize()[0, 1:8].tolist() == [0, 1, 1, 2, 2, 4, 4]
    lower = gguf.quants.dequantize(gguf.quants.quantize(ties, kind), kind)
    assert lower[0, 1:8].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4]


# ------------------------------------------------------------------------------------------------------ NVFP4


def nvfp4_by_hand(x):
    """Block by block with float32 scalars and ml_dtypes' casts: S bytes and element bytes of [R, L]."""
    f32, e4m3, e2m1 = np.float32, ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn
    x = x.astype(f32)
    top, amax = np.finfo(f32).max, np.abs(x).max()
    scales, codes = [], []
    with np.errstate(all="ignore"):
        s = min(f32(2688) / amax, top) if amax else f32(1)
        for block in x.reshape(-1, 16):
            scale = f32(min(max(np.abs(block).max() / f32(6) * s, f32(-448)), f32(448))).astype(e4m3)
            factor = min(f32(1) / (f32(scale) / s), top)
            scales.append(scale.view(np.uint8))
            codes.append(np.clip(block * factor, f32(-6), f32(6)).astype(e2m1).view(np.uint8))
    return np.array(scales), np.concatenate(codes), float(f32(1) / s)


@pytest.mark.parametrize("power", [0, 40, -100, -145])
def test_nvfp4_by_hand(power):
    spread = 10.0 ** np.random.default_rng(4).uniform(-8, 0, (200, 4, 1))
    x = np.ldexp((normal(200, 4, 16) * spread).reshape(200, 64), power)
    x[3, :16] = 0.0
    q = get_format("nvfp4").quantize(x)
    scales, codes, tensor_scale = nvfp4_by_hand(x)
    assert q.tensor_scale == tensor_scale
    assert np.array_equal(q.scale_patterns.ravel(), scales)
    assert np.array_equal(q.codes.ravel(), codes)
    assert np.array_equal(q.scales, decode("e4m3", q.scale_patterns) * tensor_scale)
    exact = Fraction(float(decode("e4m3", scales[:1])[0])) * Fraction(tensor_scale)
    assert q.dequantize()[0, :16].tolist() == [float(Fraction(e) * exact) for e in decode("e2m1", codes[:16]).tolist()]


def test_every_step_of_nvfp4_is_one_float32():
    """Blocks whose largest value lies at ties of S, and elements at ties of E2M1, one float32 to both sides: there the
    order of the steps shows."""
    s = np.float32(2688) / np.float32(1.7)
    stored = decode("e4m3", np.arange(40, 120))
    tie = ((stored[1:] + stored[:-1]) / 2).astype(np.float32) * np.float32(6) / s
    tops = np.concatenate([tie, np.nextafter(tie, np.float32(0)), np.nextafter(tie, np.float32(9))])
    units = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], dtype=np.float32)
    x = np.zeros((len(tops) + 1, 16), dtype=np.float32)
    x[0, 0] = 1.7
    x[1:, 0] = tops
    scale = decode("e4m3", encode("e4m3", (tops.astype(float) / 6 * float(s))))[:, None].astype(np.float32) / s
    x[1:, 1:8] = np.minimum(units * scale, tops[:, None])
    x[1:, 8:15] = np.minimum(np.nextafter(units * scale, np.float32(0)), tops[:, None])
    q = get_format("nvfp4").quantize(x)
    scales, codes, _ = nvfp4_by_hand(x)
    assert np.array_equal(q.scale_patterns.ravel(), scales)
    assert np.array_equal(q.codes.ravel(), codes)


def test_an_array_of_zeros_has_an_encoding_scale_of_one():
    assert get_format("nvfp4").quantize(np.zeros((2, 16))).tensor_scale == 1.0


def test_the_blocks_of_nvfp4_decode_as_in_gguf():
    """gguf's super-blocks: 4 scales, then 4 times 8 bytes of elements i and i + 8; its scales are unsigned E4M3."""
    q = get_format("nvfp4").quantize(normal(50, 64))
    codes = q.codes.reshape(50, 4, 2, 8)
    packed = (codes[:, :, 0] | codes[:, :, 1] << 4).astype(np.uint8).reshape(50, 32)
    blocks = np.concatenate([q.scale_patterns.astype(np.uint8), packed], axis=1)
    values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.NVFP4)
    assert np.array_equal(values * np.float64(q.tensor_scale), q.dequantize())


def test_tiles_of_sixteen_give_the_same_values_along_both_axes():
    x = np.random.default_rng(3).standard_t(3, size=(64, 48))
    along, down = (get_format("nvfp4", tile=16).quantize(x, axis=axis) for axis in (1, 0))
    assert np.array_equal(along.dequantize(), down.dequantize())
    assert np.array_equal(along.scales[::16], down.scales[:, ::16])
    assert (along.scales.reshape(4, 16, 3) == along.scales[::16, None]).all()
    rows = [get_format("nvfp4").quantize(x, axis=axis).dequantize() for axis in (1, 0)]
    assert not np.array_equal(*rows)


def test_tiles_need_a_matrix_that_they_divide():
    with pytest.raises(InputError, match=re.escape("group=16 does not divide the axis of 8 values; nearest: 8")):
        get_format("nvfp4", tile=16).quantize(np.ones((8, 32)))
    with pytest.raises(InputError, match=re.escape("nvfp4: tile=16 needs a matrix, not an array of (2, 16, 16)")):
        get_format("nvfp4", tile=16).quantize(np.ones((2, 16, 16)))


# ------------------------------------------------------------------------------------------- UE5M3 and FP8


def test_ue5m3_blocks_by_hand():
    x = normal(300, 16) * 2.0 ** np.random.default_rng(6).integers(-20, 17, (300, 1))
    q = get_format("fp4_ue5m3").quantize(x)
    S = gfloat.round_ndarray(UE5M3_INFO, np.abs(x).max(axis=1, keepdims=True) / 6, sat=True)
    assert np.array_equal(q.scales, S)
    assert np.array_equal(q.scale_patterns, gfloat.encode_ndarray(UE5M3_INFO, S))
    assert (S == 0).any()
    elements = gfloat.round_ndarray(format_info_ocp_e2m1, x / np.where(S == 0, np.inf, S), sat=True)
    assert np.array_equal(q.dequantize(), elements * S)
    assert not (q.codes & 7)[(S == 0).ravel()].any()


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("options, axes", [({"scale": "tensor"}, None), ({}, 1), ({"group": 8}, 2)])
def test_fp8_by_hand(name, options, axes):
    x = normal(6, 32) * np.arange(1, 7)[:, None]
    x[2] = 0.0 if axes == 1 else x[2]
    parts = x.reshape(6, 4, 8)
    amax = {None: np.full((6, 1), np.abs(x).max()), 1: np.abs(x).max(axis=1, keepdims=True)}.get(axes)
    amax = np.abs(parts).max(axis=2) if amax is None else amax
    scale = np.where(amax == 0, 1.0, amax / ELEMENTS[BLOCK[name]].largest)
    q = get_format(name, **options).quantize(x)
    assert np.array_equal(q.scales, scale)
    wide = np.repeat(scale, 32 // scale.shape[1], axis=1)
    values = gfloat.round_ndarray(INFOS[BLOCK[name]], x / wide, sat=True)
    assert np.array_equal(decode(BLOCK[name], q.codes), values)


# ---------------------------------------------------------------------------------------------- properties

ARRAYS = st.tuples(st.integers(0, 2**32 - 1), st.integers(-60, 60), st.sampled_from([1.0, 3.0]))


def drawn(case, length=64):
    """Heavy-tailed values with repeated ones, in some scale."""
    seed, power, df = case
    x = np.random.default_rng(seed).standard_t(df, size=(4, length))
    x[0] = np.round(x[0])
    return np.ldexp(x, power)


@settings(max_examples=25, deadline=None)
@given(case=ARRAYS, rule=st.sampled_from(["floor", "ceil"]))
@pytest.mark.parametrize("name", sorted(MX.keys() - {"mxint8"}))
def test_quantizing_mx_values_again_changes_nothing(name, case, rule):
    """Not so with MXINT8: -2 moves its block to the next scale, where odd integers are lost."""
    values = get_format(name, scale_rule=rule).quantize(drawn(case)).dequantize()
    assert np.array_equal(get_format(name, scale_rule=rule).quantize(values).dequantize(), values)


@settings(max_examples=25, deadline=None)
@given(case=ARRAYS)
def test_quantizing_mxfp4_values_again_changes_nothing_with_even_scales(case):
    """Not so with longer mantissas: an element just below 1.75 can round to it and so take the next scale."""
    values = get_format("mxfp4", scale_rule="even").quantize(drawn(case)).dequantize()
    assert np.array_equal(get_format("mxfp4", scale_rule="even").quantize(values).dequantize(), values)


def test_quantizing_mxint8_again_can_change_values():
    x = np.array([-1.999] + [33 / 64] * 31)
    values = get_format("mxint8").quantize(x).dequantize()
    assert values[:2].tolist() == [-2.0, 33 / 64]
    assert get_format("mxint8").quantize(values).dequantize()[:2].tolist() == [-2.0, 32 / 64]


@settings(max_examples=25, deadline=None)
@given(case=ARRAYS)
@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_quantizing_fp8_values_again_changes_nothing(name, case):
    """But for the last bit of the scale, which is a quotient."""
    values = get_format(name).quantize(drawn(case)).dequantize()
    assert np.allclose(get_format(name).quantize(values).dequantize(), values, rtol=1e-14, atol=0)


@settings(max_examples=25, deadline=None)
@given(case=ARRAYS)
@pytest.mark.parametrize("name", BLOCK)
def test_errors_stay_within_half_a_step_and_codes_in_range(name, case):
    x = drawn(case)
    x = np.ldexp(x, -case[1]) if name == "fp4_ue5m3" else x
    q = get_format(name).quantize(x)
    assert np.isin(q.codes, finite_codes(BLOCK[name])).all()
    assert np.array_equal(get_format(name, rounding="nearest_even").quantize(x).codes, q.codes)
    levels = np.unique(decode(BLOCK[name], finite_codes(BLOCK[name])))
    units = x / np.repeat(np.where(q.scales == 0, 1.0, q.scales), q.group, axis=1)
    nearest = np.abs(units[..., None] - levels).min(axis=-1)
    error = np.abs(units - decode(BLOCK[name], q.codes))
    kept = np.repeat(q.scales, q.group, axis=1) > 0
    assert np.allclose(error[kept], nearest[kept], rtol=1e-5, atol=1e-6)
