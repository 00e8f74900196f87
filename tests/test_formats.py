"""models.formats against ml_dtypes, float64 arithmetic, brute force and the papers' tables."""

import itertools
import re

import ml_dtypes
import numpy as np
import pytest

from models import formats
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
        if "group" not in options or name == "bcq":
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
        ("zzz", {}, "one of: apot, bcq, int2"),
        ("int4", {"grup": 4}, "format int4: no option 'grup'; did you mean 'group'?"),
        ("int4", {"bits": 5}, "no option 'bits'"),
        ("int4", {"group": 0}, "group=0"),
        ("int4", {"clip": 0.0}, "clip=0.0"),
        ("int4", {"clip": "x"}, "clip='x'"),
        ("int4", {"rounding": "up"}, "rounding='up'"),
        ("int4", {"rounding": None}, "rounding=None"),
        ("int4", {"symmetric": "no"}, "symmetric='no' must be True or False"),
        ("bcq", {"bits": 9}, "from 1 to 8"),
        ("bcq", {"rounds": 0}, "from 1 to 1000"),
        ("bcq", {"num_terms": 2}, "num_terms and max_shift go together"),
        ("bcq", {"num_terms": 2, "max_shift": 7, "scale_bits": 8}, "not both"),
        ("bcq", {"num_terms": 5, "max_shift": 7}, "from 1 to 4"),
        ("bcq", {"scale_bits": 1}, "from 2 to 32"),
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
    monkeypatch.setattr(formats, "_chunks", lambda rows, bits: [rows[:7], rows[7:]] if bits else [])
    assert np.array_equal(whole.codes, get_format("bcq", bits=2).quantize(x, axis=0).codes)


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
