"""models.formats against ml_dtypes, float64 arithmetic, brute force and the papers' tables."""

import itertools
import math
import re
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from models import formats, formats_bcq
from models.bits import Rounding
from models.formats import IntFormat, apot_levels, get_format, nearest_pot, pot_terms, signs_of, uniform_as_bcq
from models.unit import InputError

EVERY = [
    ("int4", {}),
    ("int8", {"symmetric": False, "group": 8}),
    ("int3", {"signed": False, "symmetric": False}),
    ("apot", {"bits": 4, "group": 16}),
    ("bcq", {"bits": 3, "group": 16}),
    ("bcq", {"bits": 2, "symmetric": False}),
    ("bcq", {"bits": 3, "group": 16, "scale_bits": 8, "symmetric": False}),
    ("bcq", {"bits": 3, "num_terms": 2, "max_shift": 7}),
    ("bcq", {"bits": 1, "group": 8, "scale_bits": 6}),
    ("int4", {"group": 8, "scale_bits": 6}),
    ("int4", {"group": 4, "scale_bits": 4, "symmetric": False}),
    ("ternary", {"scale": "column"}),
    ("binary", {}),
    ("bipolar", {"bits": 3}),
    ("pot", {}),
    ("twinlog", {}),
    ("twinlog", {"bits": 3, "group": 16}),
    ("fp8_e4m3", {"group": 8}),
    ("fp8_e5m2", {}),
]


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def squared_error(q, x):
    return ((q.dequantize() - x) ** 2).sum()


# --------------------------------------------------------------------------------------------- all formats


@pytest.mark.parametrize("name, options", EVERY)
def test_shapes_are_those_of_the_array_with_the_axis_in_groups(name, options):
    x = normal(5, 32, 3)
    q = get_format(name, **options).quantize(x, axis=1)
    groups = 32 // options.get("group", 32)
    planes = (options["bits"],) if name == "bcq" else ()
    assert q.codes.shape == q.dequantize().shape == x.shape
    assert q.codes.dtype == np.int64
    assert q.scales.shape == (*planes, 5, groups, 3)
    assert q.axis == 1
    if q.offsets is not None:
        assert q.offsets.shape == (5, groups, 3)


@pytest.mark.parametrize("name, options", EVERY)
def test_the_axis_is_only_a_matter_of_layout(name, options):
    x = normal(32, 6)
    down = get_format(name, **options).quantize(x, axis=0)
    along = get_format(name, **options).quantize(np.ascontiguousarray(x.T), axis=-1)
    assert np.array_equal(down.codes, along.codes.T)
    assert np.array_equal(down.dequantize(), along.dequantize().T)


@pytest.mark.parametrize("name, options", EVERY)
def test_slices_and_groups_do_not_touch_each_other(name, options):
    """A change in one group leaves the codes of all others alone (the step of hardware scales is a column's)."""
    x = normal(32, 4)
    y = x.copy()
    y[:16, 1] *= 100.0
    before, after = (get_format(name, **options).quantize(v, axis=0).codes for v in (x, y))
    assert np.array_equal(np.delete(before, 1, axis=1), np.delete(after, 1, axis=1))


@pytest.mark.parametrize("name, options", EVERY)
def test_integers_times_step_are_the_values(name, options):
    q = get_format(name, **options).quantize(normal(32, 6), axis=0)
    if q.integers is None:
        assert q.step is None
    else:
        assert np.array_equal(q.integers * q.step, q.dequantize())
        if "group" not in options or "scale_bits" in options:
            assert q.step.shape == (1, 6)


@pytest.mark.parametrize("name, options", EVERY)
def test_zeros_become_zeros_and_magnitude_does_not_matter(name, options):
    assert not get_format(name, **options).quantize(np.zeros((16, 2)), axis=0).dequantize().any()
    x = normal(16, 4)
    codes = [get_format(name, **options).quantize(np.ldexp(x, e), axis=0).codes for e in (0, 300, -300)]
    assert np.array_equal(codes[0], codes[1])
    assert np.array_equal(codes[0], codes[2])


@pytest.mark.parametrize("name, options", EVERY)
def test_subnormal_values_stay_finite(name, options):
    x = np.full((16, 2), 5e-324)
    x[::2] = -x[::2]
    assert np.isfinite(get_format(name, **options).quantize(x, axis=0).dequantize()).all()


@pytest.mark.parametrize(
    "array, axis, message",
    [
        (np.array([1.0, np.nan]), -1, "nan at index (1,); finite"),
        (np.array([[1.0], [np.inf]]), 0, "inf at index (1, 0); finite"),
        (np.array([1e301]), 0, "1e+301 at index"),
        (np.zeros((0, 4)), -1, "shape (0, 4) holds no values"),
        (np.zeros(4), 1, "axis 1 is outside -1..0"),
        (np.array(["a"]), 0, "numbers are needed"),
        (np.array([1j]), 0, "not complex128"),
        (np.zeros(10), 0, "group=4 does not divide the axis of 10 values; nearest: 2 or 5"),
    ],
)
@pytest.mark.parametrize("name", ["int4", "bcq", "apot"])
def test_arrays_that_cannot_be_quantized_are_refused(name, array, axis, message):
    with pytest.raises(InputError, match=re.escape(message)):
        get_format(name, group=4).quantize(array, axis=axis)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("int9", {}, "did you mean 'int"),
        ("zzz", {}, "one of: apot, bcq, binary, bipolar, codebook, fp16, fp4_ue5m3"),
        ("int4", {"grup": 4}, "format int4: no option 'grup'; did you mean 'group'?"),
        ("int4", {"bits": 5}, "no option 'bits'"),
        ("int4", {"group": 0}, "group=0"),
        ("int4", {"clip": 0.0}, "clip=0.0"),
        ("int4", {"clip": "x"}, "clip='x'"),
        ("int4", {"rounding": "up"}, "rounding='up'"),
        ("int4", {"rounding": None}, "rounding=None"),
        ("int4", {"rounding": "stochastic"}, "int format: rng=None must be a seed"),
        ("int4", {"rng": 1}, "int format: rng is for rounding='stochastic', not 'nearest_even'; leave it out"),
        ("int4", {"symmetric": "no"}, "symmetric='no' must be True or False"),
        ("bcq", {"bits": 9}, "from 1 to 8"),
        ("bcq", {"rounds": 0}, "from 1 to 1000"),
        ("bcq", {"num_terms": 2}, "num_terms and max_shift go together"),
        ("bcq", {"num_terms": 2, "max_shift": 7, "scale_bits": 8}, "not both"),
        ("bcq", {"num_terms": 5, "max_shift": 7}, "from 1 to 4"),
        ("bcq", {"scale_bits": 1}, "from 2 to 32"),
        ("bcq", {"blocks": 0}, "blocks=0 must be a whole number of at least 1"),
        ("bcq", {"blocks": 2, "block_multiple": 0}, "block_multiple=0 must be"),
        ("bcq", {"block_multiple": 4}, "block_multiple=4 widens blocks; give blocks too"),
        ("int4", {"scale_bits": 0}, "scale_bits=0 must be a whole number from 1 to 16"),
        ("int4", {"scale_bits": 17}, "scale_bits=17 must be"),
        ("ternary", {"scale": "row"}, "ternary: scale='row'; one of: column, tensor"),
        ("ternary", {"packing": "2 bit"}, "packing='2 bit'; did you mean '2 bits'?"),
        ("ternary", {"group": 4}, "format ternary: no option 'group'"),
        ("bipolar", {"bits": 17}, "bits=17 must be a whole number from 1 to 16"),
        ("bipolar", {"bits": True}, "bits=True must be"),
        ("pot", {"max_shift": -1}, "max_shift=-1 must be a whole number from 0 to 30"),
        ("pot", {"zero": 1}, "pot: zero=1 must be True or False"),
        ("apot", {"bits": 1}, "from 2 to 8"),
    ],
)
def test_options_that_make_no_format_are_refused(name, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        get_format(name, **options)


# ------------------------------------------------------------------------------------------------ integers


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_every_integer_code_survives_the_round_trip(bits, symmetric, signed):
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    codes = np.arange(low + (symmetric and signed), high + 1)
    zero = 0 if symmetric else low + 1
    q = get_format(f"int{bits}", symmetric=symmetric, signed=signed).quantize((codes - zero) * 0.375)
    assert np.array_equal(q.codes, codes)
    assert np.array_equal(q.dequantize(), (codes - zero) * 0.375)
    assert q.offsets is None if symmetric else q.offsets.tolist() == [zero]


@pytest.mark.parametrize("name, narrow", [("int2", ml_dtypes.int2), ("int4", ml_dtypes.int4), ("int8", np.int8)])
def test_rounding_and_range_agree_with_the_narrow_types(name, narrow):
    """With the scale forced to 1, codes are rint and the range is the narrow type's, through an actual cast."""
    info = ml_dtypes.iinfo(narrow)
    x = np.append(np.random.default_rng(2).uniform(info.min, info.max, 1000), [float(info.max)])
    x = np.maximum(x, -info.max)
    q = get_format(name).quantize(x)
    assert q.scales.tolist() == [1.0]
    assert np.array_equal(q.codes, np.rint(x).astype(narrow).astype(np.int64))


def test_clipping_saturates_at_both_ends_of_the_range():
    q = get_format("int4", clip=0.5).quantize(np.array([-14.0, -7.4, 0.0, 7.4, 14.0]))
    assert q.scales.tolist() == [1.0]
    assert q.codes.tolist() == [-8, -7, 0, 7, 7]


@pytest.mark.parametrize(
    "rounding, expected",
    [
        (Rounding.NEAREST_EVEN, [7, 0, 2, 2, 0, -2, 0]),
        (Rounding.NEAREST_AWAY, [7, 1, 2, 3, -1, -2, 0]),
        (Rounding.FLOOR, [7, 0, 1, 2, -1, -2, 0]),
        (Rounding.TRUNCATE, [7, 0, 1, 2, 0, -1, 0]),
    ],
)
def test_ties_follow_the_named_rounding(rounding, expected):
    q = get_format("int4", rounding=rounding).quantize(np.array([7.0, 0.5, 1.5, 2.5, -0.5, -1.5, 0.4999]))
    assert q.codes.tolist() == expected


def test_stochastic_codes_are_floors_of_numbers_with_noise():
    x = normal(6, 64)
    q = get_format("int4", rounding="stochastic", rng=3, clip=0.8).quantize(x)
    expected = np.floor(x / q.scales + np.random.default_rng(3).random((6, 64)))
    assert np.array_equal(q.codes, np.clip(expected, -8, 7))
    rng = np.random.default_rng(0)
    mean = np.mean([get_format("int4", rounding="stochastic", rng=rng).quantize(x).dequantize() for _ in range(400)], 0)
    step = np.abs(x).max(axis=1, keepdims=True) / 7
    assert (np.abs(mean - x) < 5 * step / 2 / 20).all()


def test_every_name_is_in_the_table_of_formats_with_its_bits():
    """Of 4096 x 4096 values: what a name costs is written at the top of models/formats.py."""
    for name in formats.FORMATS:
        label = "int2..int8" if re.fullmatch("int[0-9]", name) else name
        written = re.search(rf"^    {re.escape(label)} +(b\+)?([0-9.]+) ", formats.__doc__, re.MULTILINE)
        q = get_format(name, **({"samples": 64, "rounds": 0} if name == "codebook" else {})).quantize(normal(2, 4096))
        scaled = re.sub(r"[0-9]+$", "", name) == "int"
        assert written, name
        bits = float(written[2]) + (q.format.bits if scaled else 0)
        assert q.bits_per_value == pytest.approx(bits, abs=bits_of_whole_array(name) + 0.0006), name


def bits_of_whole_array(name):
    """What is stored once for an array weighs 2048 times as much with 2 rows: tensor scale, codebook, bases."""
    return {"nvfp4": 32, "ternary": 24, "codebook": 16 * 512, "lattice": 16 * 64}.get(name, 0) / 8192


@pytest.mark.parametrize("group", [None, 8])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_errors_stay_within_half_a_step(bits, group):
    x = normal(16, 32) + 0.7
    for symmetric in (True, False):
        q = get_format(f"int{bits}", group=group, symmetric=symmetric).quantize(x)
        # an asymmetric zero point is rounded too: half a step more at the ends
        limit = q.step * (0.5 if symmetric else 1.0) * (1 + 1e-9)
        assert (np.abs(q.dequantize() - x) <= limit).all()


def test_asymmetric_range_contains_zero_exactly():
    q = get_format("int4", symmetric=False).quantize(np.array([[3.0, 4.5, 2.0], [-2.0, -1.0, -3.0]]))
    assert q.scales.ravel() == pytest.approx([4.5 / 15, 3.0 / 15], rel=1e-15)
    assert q.offsets.ravel().tolist() == [-8, 7]
    assert get_format("int4", symmetric=False).quantize(np.array([3.0, -4.7, 0.0])).dequantize()[2] == 0.0


def test_unsigned_symmetric_codes_refuse_negative_values():
    with pytest.raises(InputError, match="symmetric=False"):
        get_format("int4", signed=False).quantize(np.array([1.0, -1.0]))


def test_bits_per_value_counts_scales_and_zero_points():
    x = normal(4, 128)
    assert get_format("int4", group=32).quantize(x).bits_per_value == 4 + 16 / 32
    assert get_format("int4", group=32, symmetric=False).quantize(x).bits_per_value == 4 + (16 + 4) / 32
    assert get_format("bcq", bits=3, group=32).quantize(x).bits_per_value == 3 + 3 * 16 / 32
    assert get_format("bcq", bits=3, scale_bits=8).quantize(x).bits_per_value == 3 + (3 * 8 + 16) / 128
    # a term: sign, enable and a shift of 0 to 7 in 3 bits
    assert get_format("bcq", bits=3, num_terms=2, max_shift=7).quantize(x).bits_per_value == 3 + (3 * 10 + 16) / 128
    assert get_format("apot", bits=4, group=64).quantize(x).bits_per_value == 4 + 16 / 64
    grouped = {"group": 32, "scale_bits": 6}
    assert get_format("int4", **grouped).quantize(x).bits_per_value == 4 + 6 / 32 + 16 / 128
    assert get_format("int4", **grouped, symmetric=False).quantize(x).bits_per_value == 4 + (6 + 4) / 32 + 16 / 128
    assert get_format("binary").quantize(x).bits_per_value == 1 + 16 / 128
    assert get_format("bipolar", bits=3).quantize(x).bits_per_value == 3 + 16 / 128
    assert get_format("pot", max_shift=6).quantize(x).bits_per_value == 4 + 16 / 128
    assert get_format("fp16").quantize(x).bits_per_value == 16


def test_ternary_storage_is_five_to_a_byte_or_two_bits():
    x = normal(4, 125)
    for options, bits in [
        ({}, 800 + 16),
        ({"packing": "2 bits"}, 1000 + 16),
        ({"scale": "column"}, 800 + 4 * 16),
    ]:
        q = get_format("ternary", **options).quantize(x)
        assert q.format.storage_bits(q) == bits
        assert q.bits_per_value == bits / 500
    assert get_format("ternary").storage_bits(get_format("ternary").quantize(normal(6))) == 2 * 8 + 16


@pytest.mark.parametrize(
    "hardware, width", [({}, 16), ({"scale_bits": 6}, 6), ({"num_terms": 2, "max_shift": 7}, 2 * (2 + 3))]
)
def test_storage_counts_a_shared_scale_once(hardware, width):
    """[K, N] = [8, 10] in blocks of 4, 4 and 2 columns, groups of 4: 6 sets of 3 planes."""
    q = get_format("bcq", bits=3, group=4, blocks=3, **hardware).quantize(normal(8, 10), axis=0)
    assert q.format.storage_bits(q) == 3 * 80 + 6 * 3 * width + (16 if hardware else 0)
    free = get_format("bcq", bits=3, group=4, blocks=3, symmetric=False, **hardware).quantize(normal(8, 10), axis=0)
    assert free.format.storage_bits(free) == 3 * 80 + 6 * 4 * width + (16 if hardware else 0)


# --------------------------------------------------------------------------- integers with hardware scales


def whole_scales_by_hand(real, scale_bits):
    """The 16 steps of an octave tried one by one for one column's scales: (whole numbers, step)."""
    largest = 2**scale_bits - 1
    tried = []
    for i in range(16):
        step = max(real) / largest * 2 ** (i / 16)
        codes = [min(max(round(s / step), 1), largest) for s in real]
        errors = [(c * step - s) ** 2 for c, s in zip(codes, real, strict=True) if s]  # zeros fit any scale
        tried.append((sum(errors), i, codes, step))
    _, _, codes, step = min(tried)
    common = np.gcd.reduce(codes)
    return [c // common for c in codes], step * common


@pytest.mark.parametrize("scale_bits", [1, 3, 6, 12])
@pytest.mark.parametrize("symmetric", [True, False])
def test_whole_scales_are_the_best_of_sixteen_steps(scale_bits, symmetric):
    x = normal(48, 9) * np.repeat(np.random.default_rng(2).uniform(0.2, 3, (6, 9)), 8, axis=0) + 0.3
    x[8:16, :5] = 0.0
    plain = get_format("int4", group=8, symmetric=symmetric).quantize(x, axis=0)
    real = np.where(x.reshape(6, 8, 9).any(axis=1), plain.scales, 0.0)
    q = get_format("int4", group=8, symmetric=symmetric, scale_bits=scale_bits).quantize(x, axis=0)
    for column in range(9):
        codes, step = whole_scales_by_hand(real[:, column].tolist(), scale_bits)
        assert q.scale_codes[:, column].tolist() == codes
        assert q.step[0, column] == pytest.approx(step, rel=1e-14)
    assert q.step.shape == (1, 9)
    assert q.scale_codes.shape == q.scales.shape == (6, 9)
    assert np.array_equal(q.scales, q.scale_codes * q.step)
    assert q.scale_codes.min() >= 1
    assert q.scale_codes.max() <= 2**scale_bits - 1


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("scale_bits", [1, 2, 5])
def test_codes_are_nearest_under_whole_scales(scale_bits, symmetric, signed):
    x = normal(32, 5) + 0.4
    x = np.abs(x) if symmetric and not signed else x
    options = {"group": 8, "symmetric": symmetric, "signed": signed, "scale_bits": scale_bits}
    q = get_format("int3", **options).quantize(x, axis=0)
    low, high = (-4, 3) if signed else (0, 7)
    scale = np.repeat(q.scales, 8, axis=0)
    zero = 0 if symmetric else np.repeat(q.offsets, 8, axis=0)
    levels = (np.arange(low, high + 1)[:, None, None] - zero) * scale
    assert np.allclose(np.abs(q.dequantize() - x), np.abs(levels - x).min(axis=0), rtol=0, atol=1e-12)
    assert np.array_equal(q.integers, np.repeat(q.scale_codes, 8, axis=0) * (q.codes - zero))
    assert q.codes.min() >= low
    assert q.codes.max() <= high
    if not symmetric:
        assert q.offsets.min() >= low
        assert q.offsets.max() <= high


def test_zero_points_stay_codes_where_a_scale_is_rounded_down():
    """Of ranges that end at zero the zero point is the top code, and above it where the scale is too small."""
    x = -np.abs(normal(32, 50))
    q = get_format("int4", group=4, symmetric=False, signed=False, scale_bits=2).quantize(x, axis=0)
    unbounded = np.rint(-x.reshape(8, 4, 50).min(axis=1) / q.scales)
    assert unbounded.max() > 15
    assert np.array_equal(q.offsets, np.minimum(unbounded, 15))


def test_one_group_needs_no_scale_but_its_step():
    x = normal(64, 20)
    plain = get_format("int4").quantize(x, axis=0)
    q = get_format("int4", scale_bits=8).quantize(x, axis=0)
    assert (q.scale_codes == 1).all()
    assert np.array_equal(q.codes, plain.codes)
    assert np.allclose(q.step, plain.step, rtol=1e-14)


def test_a_group_of_zeros_leaves_the_other_scales_alone():
    x = normal(32, 4) * 1e-3
    x[8:16] = 0.0
    plain = get_format("int4", group=8).quantize(x, axis=0)
    q = get_format("int4", group=8, scale_bits=12).quantize(x, axis=0)
    assert not q.dequantize()[8:16].any()
    kept = [0, 2, 3]
    assert np.allclose(q.scales[kept], plain.scales[kept], rtol=2e-3)
    assert squared_error(q, x) == pytest.approx(squared_error(plain, x), rel=0.02)


def test_finer_whole_scales_come_closer_to_real_ones():
    x = np.random.default_rng(4).standard_t(3, size=(128, 32))
    real = squared_error(get_format("int4", group=16).quantize(x, axis=0), x)
    errors = [squared_error(get_format("int4", group=16, scale_bits=b).quantize(x, axis=0), x) for b in (2, 4, 8)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] == pytest.approx(real, rel=0.02)


# ------------------------------------------------------------------------- ternary, binary, bipolar, FP16


@pytest.mark.parametrize("scale", ["tensor", "column"])
def test_ternary_is_absmean_rounding(scale):
    """w = clamp(round(w / mean|w|), -1, 1): switches at half the mean."""
    x = normal(40, 6) * np.arange(1, 7)
    s = np.abs(x).mean() if scale == "tensor" else np.abs(x).mean(axis=0, keepdims=True)
    q = get_format("ternary", scale=scale).quantize(x, axis=0)
    expected = np.where(np.abs(x) > s / 2, np.sign(x), 0)
    assert np.array_equal(q.codes, expected)
    assert np.array_equal(q.integers, expected)
    assert q.step.shape == (1, 6)
    assert np.allclose(q.dequantize(), expected * s, rtol=1e-14)


def test_ternary_codes_survive_and_halves_round_to_even():
    x = np.array([-1.0, 0.0, 1.0, 2.0, -2.0, 0.0])  # mean magnitude 1
    assert get_format("ternary").quantize(x).dequantize().tolist() == [-1, 0, 1, 1, -1, 0]
    x = np.array([0.5, -0.5, 1.5, -1.5])  # mean magnitude 1
    assert get_format("ternary").quantize(x).codes.tolist() == [0, 0, 1, -1]
    assert get_format("ternary").quantize(np.zeros(3)).step.tolist() == [1.0]


def test_binary_is_the_sign_with_the_scale_of_least_error():
    x = normal(64, 8)
    x[0] = 0.0
    q = get_format("binary").quantize(x, axis=0)
    assert np.array_equal(q.codes, x >= 0)
    assert np.array_equal(q.integers, np.where(x >= 0, 1, -1))
    best = (x * q.integers).sum(axis=0, keepdims=True) / 64  # least squares for one scale
    assert np.allclose(q.step, best, rtol=1e-13)


def test_means_of_the_largest_numbers_do_not_overflow():
    x = np.array([[1.5e308, 5e-324, 0.0], [1.7e308, 15e-324, 0.0]])
    assert formats._mean(x).tolist() == [1.6e308, 10e-324, 0.0]


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_bipolar_code_survives_the_round_trip(bits):
    codes = np.arange(1 << bits)
    by_bits = sum((2 * (codes >> i & 1) - 1) * (1 << i) for i in range(bits))
    q = get_format("bipolar", bits=bits).quantize(by_bits * 0.37)
    assert np.array_equal(q.codes, codes)
    assert np.array_equal(q.integers, by_bits)
    assert np.allclose(q.dequantize(), by_bits * 0.37, rtol=1e-15)
    assert 0 not in by_bits


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bipolar_takes_the_nearest_odd_number(bits):
    x = normal(200, 2)
    q = get_format("bipolar", bits=bits).quantize(x, axis=0)
    odd = np.arange(-(2**bits) + 1, 2**bits, 2)
    assert np.isin(q.integers, odd).all()
    assert np.abs(q.integers).max(axis=0).tolist() == [odd[-1]] * 2
    nearest = np.abs(odd[:, None, None] * q.step - x).min(axis=0)
    assert np.allclose(np.abs(q.dequantize() - x), nearest, rtol=0, atol=1e-12)


def test_bipolar_ties_go_up():
    q = get_format("bipolar", bits=3).quantize(np.array([7.0, 6.0, 2.0, 0.0, -2.0, -6.0, -7.0]))
    assert q.integers.tolist() == [7, 7, 3, 1, -1, -5, -7]


def test_fp16_codes_are_the_bit_patterns_of_every_number():
    patterns = np.concatenate([np.arange(0x7C00), np.arange(0x8000, 0xFC00)]).astype(np.uint16)
    x = patterns.view(np.float16).astype(np.float64)
    q = get_format("fp16").quantize(x)
    assert np.array_equal(q.codes, patterns)
    assert np.array_equal(q.dequantize(), x)
    assert q.integers is q.step is q.offsets is None


def half_by_hand(x):
    """The nearest multiple of 2^(e - 10), ties to even, e the exponent but at least -14."""
    e = np.maximum(np.floor(np.log2(np.maximum(np.abs(x), 1e-30))), -14)
    return np.rint(x / 2.0 ** (e - 10)) * 2.0 ** (e - 10)


def test_fp16_rounds_once_to_nearest_even():
    x = np.concatenate([normal(1000) * 2.0 ** np.random.default_rng(3).integers(-26, 14, 1000), [2049.0, 2051.0, 2e-8]])
    # a float32 on the way would make a tie of this
    x = np.append(x, 1 + 2.0**-11 + 2.0**-40)
    assert np.array_equal(get_format("fp16").quantize(x).dequantize(), half_by_hand(x))
    assert get_format("fp16").quantize(x).dequantize()[-1] == 1 + 2.0**-10


@pytest.mark.parametrize("bad", [65504.5, -1e6])
def test_fp16_refuses_what_it_cannot_hold(bad):
    x = np.array([[65504.0, 0.0], [1.0, bad]])
    assert get_format("fp16").quantize(x[:1]).dequantize().tolist() == [[65504.0, 0.0]]
    with pytest.raises(InputError, match=re.escape(f"fp16: {bad} at index (1, 1) is beyond")):
        get_format("fp16").quantize(x)


# ------------------------------------------------------------------------------------------- binary-coded


def values_by_hand(q, bits):
    """sum_i alpha_i b_i + z, value by value."""
    out = np.empty(q.codes.shape)
    for (k, n), code in np.ndenumerate(q.codes):
        g = k // q.group
        out[k, n] = q.offsets[g, n] + sum(q.scales[i, g, n] * (1 if code >> i & 1 else -1) for i in range(bits))
    return out


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("hardware", [{}, {"scale_bits": 7}, {"num_terms": 2, "max_shift": 6}])
def test_codes_mean_what_the_formula_says_and_are_nearest(symmetric, hardware):
    x = normal(24, 5) + 0.5
    q = get_format("bcq", bits=3, group=8, symmetric=symmetric, **hardware).quantize(x, axis=0)
    assert np.allclose(values_by_hand(q, 3), q.dequantize(), rtol=0, atol=1e-12)
    levels = np.stack(
        [
            np.repeat(q.offsets + sum(s * a for s, a in zip(signs, q.scales, strict=True)), 8, axis=0)
            for signs in itertools.product((-1, 1), repeat=3)
        ]
    )
    assert np.allclose(np.abs(q.dequantize() - x), np.abs(levels - x).min(axis=0), rtol=0, atol=1e-12)
    assert symmetric == (not q.offsets.any())


def test_one_plane_is_the_closed_form():
    """alpha = mean |w|, b = sign w is the best one-plane fit."""
    x = normal(64, 8)
    q = get_format("bcq", bits=1).quantize(x, axis=0)
    assert np.allclose(q.scales[0], np.abs(x).mean(axis=0, keepdims=True), rtol=1e-12)
    assert np.array_equal(q.codes, x > 0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_more_rounds_never_grow_the_error(symmetric):
    x = np.random.default_rng(3).standard_t(3, size=(48, 40))
    errors = np.array(
        [
            ((get_format("bcq", bits=3, rounds=r, symmetric=symmetric).quantize(x, axis=0).dequantize() - x) ** 2).sum(
                0
            )
            for r in (1, 2, 4, 8, 15)
        ]
    )
    assert (np.diff(errors, axis=0) <= 1e-9).all()
    assert errors[-1].sum() < 0.95 * errors[0].sum()


def test_scales_are_a_least_squares_optimum():
    """At the end no scale can be moved to a smaller error with the codes kept: the gradient vanishes."""
    x = normal(64, 3)
    q = get_format("bcq", bits=3, rounds=100).quantize(x, axis=0)
    residual = x - q.dequantize()
    assert np.abs((signs_of(q.codes, 3) * residual).sum(axis=1)).max() < 1e-9


@pytest.mark.parametrize("bits, optimal, uniform", [(1, 0.3634, 0.3634), (2, 0.1175, 0.1188), (3, 0.03454, 0.03744)])
def test_error_on_normal_values_lies_between_the_optimal_and_the_best_uniform_quantizer(bits, optimal, uniform):
    """Distortions of a unit normal, Max, "Quantizing for Minimum Distortion", 1960; 2 % for the sample's own spread.

    Levels +-a +-b +-c are fewer than free ones, and equidistant levels are among them.
    """
    x = normal(20000, 1, seed=5)
    q = get_format("bcq", bits=bits).quantize(x, axis=0)
    assert optimal * 0.98 < squared_error(q, x) / x.size < uniform * 1.02


@pytest.mark.parametrize("hardware", [{}, {"scale_bits": 6}, {"num_terms": 2, "max_shift": 5}])
def test_planes_ascend_by_scales_that_are_not_negative(hardware):
    x = np.random.default_rng(8).standard_t(2, size=(16, 300))
    scales = get_format("bcq", bits=4, **hardware).quantize(x, axis=0).scales
    assert scales.min() >= 0
    assert (np.diff(scales, axis=0) >= 0).all()


def test_a_tie_between_levels_takes_the_lower_one():
    q = get_format("bcq", bits=1).quantize(np.array([1.0, -1.0, 1.0, -1.0, 0.0]))
    assert q.codes.tolist() == [1, 0, 1, 0, 0]


def test_a_fitted_offset_makes_the_fit_independent_of_the_mean():
    x = normal(64, 50)
    errors = [squared_error(get_format("bcq", bits=2, symmetric=False).quantize(x + c, axis=0), x + c) for c in (0, 50)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)


def test_the_shared_step_is_better_than_the_largest_scale_alone_would_choose():
    """With one term, a step that puts the largest scale on the top power is the obvious choice, and a poor one."""
    x = normal(32, 200)
    real = get_format("bcq", bits=3).quantize(x, axis=0).scales[:, 0]
    q = get_format("bcq", bits=3, num_terms=1, max_shift=7).quantize(x, axis=0)
    base = real.max(axis=0) / 128
    obvious = ((nearest_pot(real / base, 1, 7) * base - real) ** 2).sum(axis=0)
    ours = ((q.scales[:, 0] - real) ** 2).sum(axis=0)
    assert (ours <= obvious + 1e-15).all()
    assert ours.sum() < 0.7 * obvious.sum()


def test_values_on_a_binary_grid_are_met_exactly():
    rng = np.random.default_rng(6)
    x = (rng.choice([-1, 1], (64, 10)) * 1.0) + 4.0 * rng.choice([-1, 1], (64, 10))
    q = get_format("bcq", bits=2).quantize(x, axis=0)
    assert np.allclose(q.dequantize(), x, rtol=0, atol=1e-12)
    assert np.allclose(q.scales[:, 0, 0], [1.0, 4.0])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "hardware", [{"scale_bits": 6}, {"num_terms": 1, "max_shift": 5}, {"num_terms": 3, "max_shift": 7}]
)
def test_hardware_scales_are_integers_that_the_hardware_holds(hardware, symmetric):
    x = normal(32, 7) + 0.3
    q = get_format("bcq", bits=3, group=8, symmetric=symmetric, **hardware).quantize(x, axis=0)
    assert q.scale_codes.shape == (3, 4, 7)
    assert q.offset_codes.shape == (4, 7)
    assert q.step.shape == (1, 7)
    assert np.array_equal(q.scales, q.scale_codes * q.step)
    assert np.array_equal(q.offsets, q.offset_codes * q.step)
    by_hand = np.repeat(q.offset_codes, 8, axis=0) + sum(
        s * np.repeat(c, 8, axis=0) for s, c in zip(signs_of(q.codes, 3), q.scale_codes, strict=True)
    )
    assert np.array_equal(q.integers, by_hand)
    for numbers in (q.scale_codes, q.offset_codes):
        if "scale_bits" in hardware:
            assert np.abs(numbers).max() <= 31
        else:
            pot_terms(numbers, **hardware)  # raises for a number that is no such sum


def test_finer_hardware_scales_come_closer_to_real_ones():
    x = normal(64, 64)

    def error(**options):
        return squared_error(get_format("bcq", bits=3, **options).quantize(x, axis=0), x)

    real = error()
    powers = [error(num_terms=n, max_shift=7) for n in (1, 2, 3)]
    fixed = [error(scale_bits=b) for b in (4, 6, 10)]
    assert powers[0] > powers[1] > powers[2]
    assert fixed[0] > fixed[1] > fixed[2]
    assert powers[2] == pytest.approx(real, rel=0.01)
    assert fixed[2] == pytest.approx(real, rel=0.001)


def test_many_rows_are_fitted_as_few_are(monkeypatch):
    x = normal(8, 3000)
    whole = get_format("bcq", bits=2).quantize(x, axis=0)
    parts = [get_format("bcq", bits=2).quantize(x[:, s], axis=0) for s in (slice(0, 1000), slice(1000, 3000))]
    assert np.array_equal(whole.codes, np.concatenate([p.codes for p in parts], axis=1))
    monkeypatch.setattr(formats_bcq, "_chunks", lambda rows, bits: [rows[:7], rows[7:]] if bits else [])
    assert np.array_equal(whole.codes, get_format("bcq", bits=2).quantize(x, axis=0).codes)


def shared_sets(x, group, width):
    """The values that share a set of scales, as (rows, columns) of slices."""
    return [
        (slice(k, k + group), slice(n, min(n + width, x.shape[1])))
        for k in range(0, x.shape[0], group)
        for n in range(0, x.shape[1], width)
    ]


@pytest.mark.parametrize(
    "n, blocks, multiple, width",
    [(12, 3, 1, 4), (10, 3, 1, 4), (10, 3, 3, 6), (10, 1, 1, 10), (10, 1, 8, 10), (3, 8, 1, 1), (17, 8, 4, 4)],
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_block_is_fitted_as_one_group_of_its_values(n, blocks, multiple, width, symmetric):
    x = normal(8, n) + 0.3
    options = {"bits": 2, "symmetric": symmetric}
    q = get_format("bcq", group=4, blocks=blocks, block_multiple=multiple, **options).quantize(x, axis=0)
    assert q.scales.shape == (2, 2, n)
    assert q.step is q.integers is None
    for rows, columns in shared_sets(x, 4, width):
        alone = get_format("bcq", **options).quantize(x[rows, columns].ravel())
        place = rows.start // 4
        shape = q.codes[rows, columns].shape
        assert np.array_equal(q.codes[rows, columns], alone.codes.reshape(shape))
        assert np.array_equal(q.scales[:, place, columns], np.repeat(alone.scales, shape[1], axis=1))
        assert np.array_equal(q.offsets[place, columns], np.repeat(alone.offsets, shape[1]))
        assert np.array_equal(q.dequantize()[rows, columns], alone.dequantize().reshape(shape))


@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("hardware", [{"scale_bits": 6}, {"num_terms": 2, "max_shift": 6}])
@pytest.mark.parametrize("group, blocks, width", [(1, 1, 10), (8, 3, 4), (None, 10, 1)])
def test_shared_hardware_scales_have_one_step_and_nearest_codes(hardware, group, blocks, width, bits, symmetric):
    x = normal(16, 10) + 0.2
    options = {"bits": bits, "group": group, "blocks": blocks, "symmetric": symmetric}
    q = get_format("bcq", **options, **hardware).quantize(x, axis=0)
    real = get_format("bcq", **options).quantize(x, axis=0)
    assert q.step.shape == (1, 10)
    assert np.unique(q.step).size == 1
    assert np.array_equal(q.scales, q.scale_codes * q.step)
    starts = np.arange(10) // width * width
    assert np.array_equal(q.scale_codes, q.scale_codes[..., starts])
    if "scale_bits" in hardware:
        rounded = np.clip(np.rint(real.scales / q.step), -31, 31)
    else:
        rounded = nearest_pot(real.scales / q.step, **hardware)
    assert np.array_equal(q.scale_codes, rounded)
    levels = np.stack(
        [
            np.repeat(q.offsets + sum(s * a for s, a in zip(signs, q.scales, strict=True)), group or 16, axis=0)
            for signs in itertools.product((-1, 1), repeat=bits)
        ]
    )
    assert np.allclose(np.abs(q.dequantize() - x), np.abs(levels - x).min(axis=0), rtol=0, atol=1e-12)
    assert np.allclose(q.integers * q.step, values_by_hand(q, bits), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name, options",
    [("pot", {}), ("int4", {"group": 4, "scale_bits": 6}), ("bcq", {"scale_bits": 6}), ("ternary", {})],
)
def test_the_step_of_zeros_is_one(name, options):
    q = get_format(name, **options).quantize(np.zeros((8, 2)), axis=0)
    assert (q.step == 1).all()


def test_the_one_step_of_blocks_is_the_best_of_sixteen():
    x = normal(16, 10)
    real = get_format("bcq", bits=2, group=1, blocks=1).quantize(x, axis=0).scales
    q = get_format("bcq", bits=2, group=1, blocks=1, num_terms=1, max_shift=7).quantize(x, axis=0)
    steps = [real.max() / 128 * 2 ** (i / 16) for i in range(16)]
    errors = [((nearest_pot(real / s, 1, 7) * s - real) ** 2).sum() for s in steps]
    assert q.step[0, 0] == pytest.approx(steps[int(np.argmin(errors))], rel=1e-14)


@pytest.mark.parametrize("hardware", [{}, {"scale_bits": 6}])
def test_blocks_lie_across_either_axis(hardware):
    x = normal(8, 6)
    make = get_format("bcq", bits=2, group=4, blocks=2, **hardware)
    down, along = make.quantize(x, axis=0), make.quantize(np.ascontiguousarray(x.T), axis=1)
    assert np.array_equal(down.codes, along.codes.T)
    assert np.array_equal(down.dequantize(), along.dequantize().T)
    assert down.format.storage_bits(down) == along.format.storage_bits(along)


@pytest.mark.parametrize("shape", [(8,), (8, 4, 2)])
def test_blocks_need_a_matrix(shape):
    with pytest.raises(InputError, match=re.escape(f"bcq: blocks need a matrix, not an array of {shape}")):
        get_format("bcq", blocks=2).quantize(np.ones(shape), axis=0)


@pytest.mark.parametrize("hardware", [{"scale_bits": 4}, {"num_terms": 1, "max_shift": 3}])
def test_one_plane_with_hardware_scales_is_a_sign_times_an_integer(hardware):
    x = normal(64, 6) * np.repeat(np.array([[1.0], [0.2], [0.5], [3.0]]), 16, axis=0)
    q = get_format("bcq", bits=1, group=16, **hardware).quantize(x, axis=0)
    alpha = np.abs(x).reshape(4, 16, 6).mean(axis=1)
    scale = np.repeat(q.scale_codes[0], 16, axis=0)
    assert np.array_equal(q.integers, np.where((x > 0) | (scale == 0), scale, -scale) * np.where(scale == 0, 0, 1))
    wanted = np.rint(alpha / q.step) if "scale_bits" in hardware else nearest_pot(alpha / q.step, 1, 3)
    assert np.array_equal(q.scale_codes[0], wanted)
    # a scale of 4 bits, or a term of sign, enable and a shift of 0 to 3
    assert q.bits_per_value == 1 + (4 * 4 + 16) / 64


@pytest.mark.parametrize("bits", range(1, 9))
def test_uniform_integers_are_a_special_case(bits):
    w = np.arange(-(1 << (bits - 1)), 1 << (bits - 1))
    codes, scales, offset = uniform_as_bcq(w, bits)
    assert np.array_equal(np.tensordot(scales, signs_of(codes, bits), 1) + offset, 2 * w)
    assert codes.min() == 0
    assert codes.max() == (1 << bits) - 1
    with pytest.raises(InputError, match="outside"):
        uniform_as_bcq(w + 1, bits)


# ------------------------------------------------------------------------------------ signed powers of two


def sums_by_brute_force(num_terms, max_shift):
    terms = [0] + [s * (1 << e) for e in range(max_shift + 1) for s in (1, -1)]
    return {n: {sum(c) for c in itertools.product(terms, repeat=n)} for n in range(num_terms + 1)}


@pytest.mark.parametrize("num_terms, max_shift", [(1, 7), (2, 0), (2, 7), (3, 6), (4, 4)])
def test_pot_terms_are_exact_complete_and_fewest(num_terms, max_shift):
    reachable = sums_by_brute_force(num_terms, max_shift)
    values = np.array(sorted(reachable[num_terms]))
    signs, shifts = pot_terms(values, num_terms, max_shift)
    assert signs.shape == shifts.shape == (values.size, num_terms)
    assert np.array_equal((signs * (1 << shifts)).sum(axis=1), values)
    assert set(np.unique(signs)) <= {-1, 0, 1}
    assert shifts.min() >= 0
    assert shifts.max() == max_shift
    fewest = [next(n for n in range(num_terms + 1) if v in reachable[n]) for v in values.tolist()]
    assert np.count_nonzero(signs, axis=1).tolist() == fewest


@pytest.mark.parametrize("num_terms, max_shift", [(1, 5), (2, 6), (3, 5)])
def test_nearest_pot_agrees_with_a_search(num_terms, max_shift):
    reachable = np.array(sorted(sums_by_brute_force(num_terms, max_shift)[num_terms]))
    x = np.concatenate([np.random.default_rng(7).uniform(-200, 200, 300), np.arange(-100, 101) / 2.0])
    error = np.abs(nearest_pot(x, num_terms, max_shift) - x)
    assert np.array_equal(error, np.abs(reachable[:, None] - x).min(axis=0))
    assert np.array_equal(nearest_pot(-x, num_terms, max_shift), -nearest_pot(x, num_terms, max_shift))


def test_nearest_pot_beats_the_greedy_log2_residual():
    """The published greedy rule (each term the residual's rounded log2) misses numbers that two terms can express."""

    def greedy(value, num_terms, max_shift):
        total = 0.0
        for _ in range(num_terms):
            rest = value - total
            if rest:
                total += np.sign(rest) * 2.0 ** np.clip(np.rint(np.log2(abs(rest))), 0, max_shift)
        return total

    x = np.linspace(1, 127, 500)
    ours = np.abs(nearest_pot(x, 2, 7) - x)
    theirs = np.abs([greedy(v, 2, 7) for v in x] - x)
    assert (ours <= theirs).all()
    assert ours.sum() < theirs.sum()


def test_ties_between_powers_take_the_smaller_magnitude():
    assert nearest_pot([3.0, -3.0, 6.0, 0.5, -0.5], 1, 3).tolist() == [2, -2, 4, 0, 0]


def test_impossible_sums_are_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"11 is not a sum of 2 signed powers of two up to 2\^7; nearest: 10"):
        pot_terms(np.array([12, 11]), 2, 7)
    with pytest.raises(InputError, match="nearest: 8"):
        pot_terms(np.array(100), 1, 3)


# ------------------------------------------------------------------------------------ one power of two


@pytest.mark.parametrize("max_shift", [0, 3, 7, 12])
@pytest.mark.parametrize("zero", [True, False])
def test_every_pot_code_survives_the_round_trip(max_shift, zero):
    integers = np.array([0] * zero + [sign << p for p in range(max_shift + 1) for sign in (1, -1)])
    q = get_format("pot", max_shift=max_shift, zero=zero).quantize(integers * 0.37)
    # 0 and then, from the smallest power up, positive before negative: the term code of the shift-add array
    assert q.codes.tolist() == [0] * zero + list(range(2 * zero, 2 * max_shift + 2 + 2 * zero))
    assert np.array_equal(q.integers, integers)
    assert np.allclose(q.dequantize(), integers * 0.37, rtol=1e-15)
    assert q.format.bits == int(np.ceil(np.log2(integers.size)))
    assert q.codes.max() < 1 << q.format.bits


def pot_by_hand(x, step, max_shift, zero):
    """sign * 2^round(log2 |x / step|), clipped at the largest power; below the smallest zero or the smallest."""
    with np.errstate(divide="ignore"):
        p = np.rint(np.log2(np.abs(x) / step))
    value = np.where(x < 0, -1, 1) * 2.0 ** np.clip(p, 0, max_shift)
    return np.where((p < 0) & zero, 0, value)


@pytest.mark.parametrize("max_shift", [0, 2, 6])
@pytest.mark.parametrize("zero", [True, False])
def test_pot_rounds_the_logarithm_and_takes_the_best_step(max_shift, zero):
    x = normal(60, 7)
    x[5] = 0.0
    q = get_format("pot", max_shift=max_shift, zero=zero).quantize(x, axis=0)
    base = np.abs(x).max(axis=0) / 2**max_shift
    steps = [base * 2 ** (i / 16) for i in range(-8, 8)]
    errors = [((pot_by_hand(x, s, max_shift, zero) * s - x) ** 2).sum(axis=0) for s in steps]
    best = np.take_along_axis(np.array(steps), np.argmin(errors, axis=0)[None], axis=0)
    assert np.allclose(q.step, best, rtol=1e-14)
    assert np.array_equal(q.integers, pot_by_hand(x, q.step, max_shift, zero))
    assert (np.abs(q.integers).max(axis=0) == 2**max_shift).all()


def test_pot_switches_at_the_square_root_of_two_and_not_at_the_middle():
    # 64 pins the step: it is met exactly at no other of the sixteen
    x = np.array([64.0] * 1000 + [1.41, 1.42, 1.49, -1.42, 2.82, 2.83, 0.70, 0.71, -0.70, np.sqrt(0.5)])
    q = get_format("pot", max_shift=6).quantize(x)
    assert q.step.tolist() == [1.0]
    assert q.integers[1000:].tolist() == [1, 2, 2, -2, 2, 4, 0, 1, 0, 1]
    assert get_format("pot", max_shift=6, zero=False).quantize(x).integers[-4:].tolist() == [1, 1, -1, 1]


# ------------------------------------------------------------------------------------ additive powers of two


def test_apot_levels_are_the_papers():
    """Li et al. 2020: {0, 1/2, 1/4, 1/16} + {0, 1/8} for 4 bits with sign; two four-way terms for 5."""
    sixteenths = {a + b for a in (0, 8, 4, 1) for b in (0, 2)}
    assert apot_levels(4).tolist() == sorted(sixteenths)
    # 4-bit magnitudes, before the paper's normalisation
    papers = {a + b for a in (0, 1, 1 / 4, 1 / 16) for b in (0, 1 / 2, 1 / 8, 1 / 32)}
    ours = apot_levels(5)
    assert np.allclose(ours / ours[-1], np.array(sorted(papers)) / max(papers), rtol=1e-15)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_apot_code_survives_the_round_trip(bits):
    levels = apot_levels(bits)
    assert levels.size == np.unique(levels).size == 1 << (bits - 1)
    codes = np.arange(-(levels.size - 1), levels.size)
    values = np.sign(codes) * levels[np.abs(codes)] * 0.37
    q = get_format("apot", bits=bits).quantize(values)
    assert np.array_equal(q.codes, codes)
    assert np.array_equal(q.integers, np.sign(codes) * levels[np.abs(codes)])
    assert np.allclose(q.dequantize(), values, rtol=1e-15)


def test_apot_takes_the_nearest_level_and_ties_go_down():
    levels = apot_levels(4)
    x = np.concatenate([np.linspace(-10, 10, 1001), (levels[1:] + levels[:-1]) / 2.0])
    q = get_format("apot").quantize(x)
    signed = np.concatenate([-levels, levels])
    assert np.allclose(np.abs(q.dequantize() - x), np.abs(signed[:, None] - x).min(axis=0), rtol=0, atol=1e-12)
    assert q.codes[1001:].tolist() == list(range(7))


def test_apot_clips_at_the_scale():
    q = get_format("apot", clip=0.5).quantize(np.array([20.0, -20.0, 10.0, 1.0]))
    assert q.dequantize().tolist() == [10.0, -10.0, 10.0, 1.0]


def test_registry_gives_integers_of_the_name():
    assert get_format("int6", group=4) == IntFormat(bits=6, group=4)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rounding", ["nearest_even", "nearest_away", "toward_zero", "floor"])
@pytest.mark.parametrize("bits", [2, 4, 7])
def test_integer_codes_of_halves_are_those_of_exact_quotients(bits, rounding, symmetric):
    """Of FP16 values, whose products with the number of steps are exact: ties are ties."""
    rng = np.random.default_rng(bits)
    x = (rng.integers(-(1 << 8), 1 << 8, (400, 24)) * 2.0 ** rng.integers(-3, 1, (400, 1))).astype(np.float16)
    q = get_format(f"int{bits}", symmetric=symmetric, rounding=rounding).quantize(x, axis=-1)
    steps = (1 << bits) - 1 if not symmetric else (1 << bits - 1) - 1
    ties = 0
    for row, codes, zero in zip(x, q.codes, np.zeros((len(x), 1)) if symmetric else q.offsets, strict=True):
        values = [Fraction(float(v)) for v in row]
        low, high = min(*values, 0), max(*values, 0)
        span = max(high, -low) if symmetric else high - low
        quotients = [v * steps / span for v in values]
        ties += sum(v.denominator == 2 for v in quotients)
        start = 0 if symmetric else round(-low * steps / span) - (1 << bits - 1)
        assert zero[0] == start
        limits = (-(1 << bits - 1), (1 << bits - 1) - 1)
        assert codes.tolist() == [min(max(_whole(v, rounding) + start, limits[0]), limits[1]) for v in quotients]
    assert ties > 20


def _whole(v, rounding):
    match rounding:
        case "nearest_even":
            return round(v)
        case "nearest_away":
            return math.copysign(math.floor(abs(v) + Fraction(1, 2)), v)
        case "toward_zero":
            return math.trunc(v)
    return math.floor(v)
