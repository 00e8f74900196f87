"""Quantizer and dequantizer against exact integers and fractions, and against float64."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from amaranth.sim import Simulator

import rtl.dequantizer
import rtl.quantizer
from hwsim.synth import synthesize
from hwsim.verify import verify
from models.bits import Rounding
from models.catalog import unit
from models.dequantizer import DequantizerParams
from models.floats import random_halves
from models.formats import IntFormat
from models.quantizer import GroupControl, QuantizerParams, quantized, token_run, values
from models.unit import InputError
from rtl.emit import emit

QUANTIZER, DEQUANTIZER = unit("quantizer"), unit("dequantizer")


def quotients(numerator, denominator, rounding):
    """numerator / denominator of integers, rounded: by whole numbers alone."""
    sign, n = np.sign(numerator), np.abs(numerator)
    whole, rest = n // denominator, n % denominator
    up = {
        Rounding.NEAREST_EVEN: (2 * rest > denominator) | ((2 * rest == denominator) & (whole % 2 == 1)),
        Rounding.NEAREST_AWAY: 2 * rest >= denominator,
        Rounding.FLOOR: (rest > 0) & (sign < 0),
        Rounding.TRUNCATE: np.zeros_like(rest, dtype=bool),
    }[rounding]
    return sign * (whole + up)


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("in_bits, bits", [(2, 2), (5, 3), (6, 6), (9, 4)])
def test_every_value_under_every_peak_has_the_code_of_the_exact_quotient(in_bits, bits, rounding):
    top = 1 << (in_bits - 1)
    peaks, x = (part.ravel() for part in np.meshgrid(np.arange(1, top + 1), np.arange(-top, top)))
    peaks, x = peaks[np.abs(x) <= peaks], x[np.abs(x) <= peaks]
    p = QuantizerParams(group=2, lanes=1, in_bits=in_bits, bits=bits, rounding=rounding)
    codes, scales = quantized(p, np.stack([x, -peaks], axis=1))
    assert (scales[:, 0] == peaks).all()
    assert (codes[:, 0] == quotients(x * p.largest, peaks, rounding)).all()


@pytest.mark.parametrize("in_bits, bits", [(12, 8), (16, 4), (24, 12)])
def test_codes_of_wide_integers_are_exact_at_ties_and_beside_them(in_bits, bits):
    rng, top = np.random.default_rng(in_bits), 1 << (in_bits - 1)
    p = QuantizerParams(group=64, lanes=64, in_bits=in_bits, bits=bits)
    peaks = rng.integers(1, top + 1, (500, 1)) >> rng.integers(0, in_bits - 1, (500, 1))
    peaks = np.maximum(peaks, 1)
    halves = 2 * rng.integers(-p.largest, p.largest, (500, 64)) + 1  # of 1/2: codes change there
    x = np.clip(halves * peaks // (2 * p.largest) + rng.integers(-1, 2, (500, 64)), -peaks, np.minimum(peaks, top - 1))
    x[:, :1] = -peaks
    codes, scales = quantized(p, x)
    assert (scales == peaks).all()
    assert (codes == quotients(x * p.largest, peaks, Rounding.NEAREST_EVEN)).all()
    assert (x * p.largest * 2 % peaks == 0).any()


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("bits", [2, 4, 8, 11])
def test_codes_of_halves_are_exact(bits, rounding):
    p = QuantizerParams(group=16, lanes=4, act_format="fp16", bits=bits, rounding=rounding)
    for seed in range(30):
        x = random_halves(np.random.default_rng(seed), (40, 16))
        whole = np.ldexp(x.astype(np.float64), 24).astype(np.int64)  # every half is a multiple of 2^-24
        peaks = np.maximum(np.abs(whole).max(axis=1, keepdims=True), 1)
        codes, scales = quantized(p, x)
        assert (codes == quotients(whole * p.largest, peaks, rounding)).all()
        held = scales.astype(np.uint16).view(np.float16)
        assert (held == np.where(whole.any(axis=1, keepdims=True), np.abs(x).max(axis=1, keepdims=True), 1)).all()


@pytest.mark.parametrize("fraction_bits", [13, 16, 19, 25])
def test_fewer_fraction_bits_move_some_codes_by_one_away_from_zero(fraction_bits):
    """A quotient is too large by less than 2^(W - F), so that about as many codes at most cross a half; and ties do."""
    p = QuantizerParams(group=32, lanes=8, in_bits=12, bits=8, fraction_bits=fraction_bits)
    x = np.random.default_rng(5).integers(-2048, 2048, (4000, 32))
    want = quotients(x * p.largest, np.abs(x).max(axis=1, keepdims=True), Rounding.NEAREST_EVEN)
    off = quantized(p, x)[0] - want
    assert set(np.unique(off * np.sign(want))) <= {0, 1}
    ties = (2 * x * p.largest % np.abs(x).max(axis=1, keepdims=True) == 0).mean()
    assert (off != 0).mean() <= 2.0 ** (12 - fraction_bits) + ties
    assert (off != 0).any() == (fraction_bits < 25)


@pytest.mark.parametrize("act_format", ["int", "fp16"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_powers_of_two_follow_the_floor_rule(act_format, bits):
    p = QuantizerParams(group=8, lanes=4, act_format=act_format, bits=bits, scale="pot")
    for seed in range(30):
        rng = np.random.default_rng(seed)
        [x] = QUANTIZER.sample(p, rng, M=20, K=32)
        groups = x.astype(np.float64).reshape(-1, 8)
        peaks = np.abs(groups).max(axis=1, keepdims=True)
        scale = np.where(peaks > 0, 2.0 ** (np.floor(np.log2(np.where(peaks > 0, peaks, 1))) - (bits - 2)), 1)
        codes, scales = quantized(p, x)
        assert (2.0 ** (scales.reshape(-1, 1) - 127) == scale).all()
        assert (codes.reshape(-1, 8) == np.clip(np.rint(groups / scale), -p.largest, p.largest)).all()
        assert (values(p, x) == (codes.reshape(-1, 8) * scale).reshape(x.shape)).all()


@pytest.mark.parametrize("act_format", ["int", "fp16"])
@pytest.mark.parametrize("rounding", Rounding)
def test_static_scales_multiply_shift_round_and_limit(act_format, rounding):
    multiplier, shift = 1234, 17
    more = {"scale": "static", "multiplier": multiplier, "shift": shift, "rounding": rounding}
    p = QuantizerParams(group=4, lanes=4, act_format=act_format, bits=8, **more)
    for seed in range(20):
        [x] = QUANTIZER.sample(p, np.random.default_rng(seed), M=20, K=32)
        whole = np.ldexp(x.astype(np.float64), 24).astype(np.int64)
        want = quotients(whole * multiplier, 1 << (24 + shift), rounding)
        assert (QUANTIZER.golden(p, x) == np.clip(want, -127, 127)).all()
    assert values(p, np.full((1, 4), 64, dtype=x.dtype))[0, 0] == pytest.approx(64, abs=(1 << shift) / multiplier)


@pytest.mark.parametrize("scale, wanted", [("pot", 127), ("real", 1)])
def test_a_group_of_zeros_has_scale_one_and_its_neighbours_their_own(scale, wanted):
    p = QuantizerParams(group=4, lanes=2, in_bits=12, scale=scale)
    codes, scales = quantized(p, np.array([[0, 0, 0, 0, 5, -9, 0, 3]]))
    assert (codes[0, :4] == 0).all()
    assert codes[0, 5] == (-9 * 2**3 if scale == "pot" else -127)
    assert scales.tolist() == [[wanted, 127 + 3 - 6 if scale == "pot" else 9]]


def test_a_value_is_within_half_a_step():
    p = QuantizerParams(group=16, lanes=4, in_bits=12, bits=6)
    x = np.random.default_rng(2).integers(-2048, 2048, (50, 64))
    step = np.abs(x).reshape(50, 4, 16).max(axis=2).repeat(16, axis=1) / 31
    assert (np.abs(values(p, x) - x) <= step / 2 + 1e-9).all()


# ------------------------------------------------------------------------------------------------- zero points


def asymmetric(whole, bits, rounding=Rounding.NEAREST_EVEN):
    """Codes, ranges and zero points of groups of whole numbers [groups, group], by whole numbers alone."""
    low, high = (end.reshape(-1, 1) for end in (np.minimum(whole.min(axis=1), 0), np.maximum(whole.max(axis=1), 0)))
    steps, least, span = (1 << bits) - 1, -(1 << (bits - 1)), np.maximum(high - low, 1)
    zero = quotients(-low * steps, span, Rounding.NEAREST_EVEN) + least
    assert ((least <= zero) & (zero < -least)).all()
    codes = quotients(whole * steps, span, rounding) + zero
    return np.clip(codes, least, -least - 1), high - low, zero


def every_range(in_bits):
    """Groups [groups, n], one for each pair of ends, of every value between them."""
    top = 1 << (in_bits - 1)
    low, high = (part.reshape(-1, 1) for part in np.meshgrid(np.arange(-top, 1), np.arange(top)))
    return np.concatenate([low, high, np.clip(np.arange(-top, top), low, high)], axis=1)


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("in_bits, bits", [(3, 2), (5, 3), (6, 5), (7, 4)])
def test_every_value_in_every_range_has_the_code_of_the_exact_quotient(in_bits, bits, rounding):
    x = every_range(in_bits)
    want, ranges, zeros = asymmetric(x, bits, rounding)
    p = QuantizerParams(group=x.shape[1], lanes=1, in_bits=in_bits, bits=bits, zero_points=True, rounding=rounding)
    codes, found, points = quantized(p, x)
    assert (points == zeros).all()
    assert (codes == want).all()
    assert (found == np.maximum(ranges, 1)).all()


@pytest.mark.parametrize("in_bits, bits", [(12, 8), (16, 4), (16, 2), (24, 12)])
def test_codes_and_zero_points_of_wide_integers_are_exact_at_ties_and_beside_them(in_bits, bits):
    rng, top, steps = np.random.default_rng(in_bits), 1 << (in_bits - 1), (1 << bits) - 1
    span = np.maximum(rng.integers(1, 2 * top, (500, 1)) >> rng.integers(0, in_bits - 1, (500, 1)), 2)
    near = (2 * rng.integers(0, steps, (500, 64)) + 1) * span // (2 * steps) + rng.integers(-1, 2, (500, 64))
    low = np.maximum(-near[:, :1], np.maximum(-top, -span))
    low = np.minimum(low, 0) - np.maximum(span + np.minimum(low, 0) - (top - 1), 0)
    x = np.clip(near + low * (rng.random((500, 64)) < 0.5), low, span + low)
    x[:, :1], x[:, 1:2] = low, span + low
    want, ranges, zeros = asymmetric(x, bits)
    p = QuantizerParams(group=64, lanes=64, in_bits=in_bits, bits=bits, zero_points=True)
    codes, found, points = quantized(p, x)
    assert (found == ranges).all()
    assert (points == zeros).all()
    assert (codes == want).all()
    for quotient in (x, low):
        assert (2 * quotient * steps % (2 * span) == span).any()


def units_of_halves(x):
    """Every half is a multiple of 2^-24; as Python's integers."""
    return np.ldexp(x.astype(np.float64), 24).astype(np.int64).astype(object)


def assert_asymmetric_halves(x, bits, rounding=Rounding.NEAREST_EVEN):
    p = QuantizerParams(group=x.shape[1], lanes=1, act_format="fp16", bits=bits, zero_points=True, rounding=rounding)
    want, ranges, zeros = asymmetric(units_of_halves(x), bits, rounding)
    codes, found, points = quantized(p, x)
    assert (points == zeros).all()
    assert (codes == want).all()
    ranges = np.where(ranges == 0, 1 << 24, ranges).astype(np.float64)  # exact: 41 bits
    assert (found.astype(np.uint32).view(np.float32) == np.ldexp(ranges, -24).astype(np.float32)).all()


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("bits", [2, 4, 8, 10])
def test_codes_and_zero_points_of_halves_are_exact(bits, rounding):
    for seed in range(12):
        assert_asymmetric_halves(random_halves(np.random.default_rng(seed), (40, 16)), bits, rounding)


@pytest.mark.parametrize("rounding", [Rounding.NEAREST_EVEN, Rounding.TRUNCATE])
@pytest.mark.parametrize("bits", [2, 4, 8, 10])
def test_the_least_of_lower_ends_moves_halves_off_their_ties(bits, rounding):
    """An upper end under which a value is at a tie or a whole code, and lower ends from none at all to the least."""
    rng, steps = np.random.default_rng(bits), (1 << bits) - 1
    whole = rng.integers(1, 2048, 4000)
    halves = rng.integers(1, 2 * steps, 4000)
    high = 2 * steps * whole // halves
    tied = (2 * steps * whole % halves == 0) & (high < 2048) & (high >= whole)
    assert tied.sum() > 20
    high, whole = (np.ldexp(part[tied], 4).astype(np.float16).reshape(-1, 1) for part in (high, whole))
    lows = -np.ldexp(np.float64([0, 1, 2047, 1023]), rng.integers(-24, 5, (len(high), 4))).astype(np.float16)
    for low in lows.T:
        assert_asymmetric_halves(np.concatenate([high, whole, low.reshape(-1, 1)], axis=1), bits, rounding)
        assert_asymmetric_halves(-np.concatenate([high, whole, low.reshape(-1, 1)], axis=1), bits, rounding)


@pytest.mark.parametrize("act_format", ["int", "fp16"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_and_zero_points_are_those_of_the_number_format(act_format, bits):
    p = QuantizerParams(group=16, lanes=4, act_format=act_format, in_bits=16, bits=bits, zero_points=True)
    ties = 0
    for seed in range(40):
        [x] = QUANTIZER.sample(p, np.random.default_rng(seed), M=40, K=16)
        codes, _, zeros = quantized(p, x)
        q = IntFormat(bits=bits, symmetric=False).quantize(x.astype(np.float64))
        assert (zeros == q.offsets).all()
        assert (codes == q.codes).all()
        whole = units_of_halves(x) if act_format == "fp16" else x
        _, span, _ = asymmetric(whole, bits)
        ties += (2 * whole * p.steps % (2 * np.maximum(span, 1)) == span).sum()
    assert ties > 100


@pytest.mark.parametrize("act_format", ["int", "fp16"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_symmetric_codes_are_those_of_the_number_format(act_format, bits):
    p = QuantizerParams(group=16, lanes=4, act_format=act_format, in_bits=16, bits=bits)
    for seed in range(20):
        [x] = QUANTIZER.sample(p, np.random.default_rng(seed), M=40, K=16)
        q = IntFormat(bits=bits, symmetric=True).quantize(x.astype(np.float64))
        assert (quantized(p, x)[0] == q.codes).all()


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_of_tokens_of_activations_are_those_of_the_number_format(bits, zero_points):
    p = QuantizerParams(group=384, lanes=8, act_format="fp16", in_bits=16, bits=bits, zero_points=zero_points)
    rng = np.random.default_rng(bits)
    x = (rng.normal(size=(100, 384)) * rng.lognormal(size=(1, 384)) + rng.normal(size=(1, 384))).astype(np.float16)
    codes, _, *zeros = quantized(p, x)
    q = IntFormat(bits=bits, symmetric=not zero_points).quantize(x.astype(np.float64))
    assert (codes == q.codes).all()
    assert not zero_points or (zeros[0] == q.offsets).all()


def test_both_quotients_rounded_up_are_limited_together():
    """7.5 steps either way of 15: eight and eight."""
    p = QuantizerParams(group=2, lanes=2, in_bits=8, bits=4, zero_points=True)
    codes, ranges, zeros = quantized(p, np.array([[-50, 50]]))
    assert (codes.tolist(), ranges.tolist(), zeros.tolist()) == ([[-8, 7]], [[100]], [[0]])


@pytest.mark.parametrize("act_format", ["int", "fp16"])
def test_a_group_of_zeros_has_range_one_and_the_least_code(act_format):
    p = QuantizerParams(group=4, lanes=2, act_format=act_format, in_bits=16, bits=4, zero_points=True)
    codes, scales, zeros = quantized(p, np.array([[0, 0, 0, 0, 5, 3, 0, 3], [-5, -3, 0, -3, 0, 0, 0, 0]]))
    assert zeros.tolist() == [[-8, -8], [7, -8]]
    assert (codes[0, :4] == -8).all()
    assert scales.tolist() == (
        [[1, 5], [5, 1]] if act_format == "int" else [[0x3F800000, 0x40A00000], [0x40A00000, 0x3F800000]]
    )


@pytest.mark.parametrize("act_format", ["int", "fp16"])
def test_a_value_is_within_a_step_of_what_its_code_stands_for(act_format):
    """Half a step for its own rounding, half a one for the zero point's where the code is limited."""
    p = QuantizerParams(group=16, lanes=4, act_format=act_format, in_bits=16, bits=6, zero_points=True)
    x = np.random.default_rng(2).integers(-2048, 2048, (50, 64)) + 500
    x = x >> 1 if act_format == "fp16" else x
    parts = x.reshape(50, 4, 16)
    span = np.maximum(parts.max(axis=2), 0) - np.minimum(parts.min(axis=2), 0)
    assert (np.abs(values(p, x) - x) <= span.repeat(16, axis=1) / 63 + 1e-9).all()


@pytest.mark.parametrize("fraction_bits", [13, 16, 19, 25])
def test_fewer_fraction_bits_move_some_steps_by_one(fraction_bits):
    p = QuantizerParams(group=32, lanes=8, in_bits=12, bits=8, fraction_bits=fraction_bits, zero_points=True)
    x = np.random.default_rng(5).integers(-2048, 2048, (2000, 32))
    want, _, zeros = asymmetric(x, 8)
    codes, _, points = quantized(p, x)
    assert np.abs(points - zeros).max() <= 1
    assert np.abs((codes - points) - (want - zeros)).max() <= 1
    assert ((codes != want).any() or (points != zeros).any()) == (fraction_bits < 25)


def test_zero_points_cost_a_register_and_wide_ranges_longer_quotients():
    p = QuantizerParams(group=8, lanes=2, in_bits=12, bits=4, zero_points=True)
    # 4 in, 2 to find the range, 1 to hand over, 25 - 12 + 5 bits by threes, 1 to hand on, 4 out, 3 stages
    assert [QUANTIZER.timing(p, M=m, K=8).total_cycles for m in (1, 2)] == [4 + 2 + 1 + 6 + 1 + 4 + 3, 21 + 7]
    p = QuantizerParams(group=8, lanes=2, act_format="fp16", bits=4, zero_points=True)
    assert p.reciprocal_bits == 26 + 2 + 4
    assert QUANTIZER.timing(p, M=1, K=8).total_cycles == 4 + 2 + 1 + 11 + 1 + 4 + 3


@pytest.mark.parametrize("values_", [{}, {"zero_points": True}, {"scale": "pot"}])
def test_a_short_token_is_one_of_a_group_filled_up_with_zeros(values_):
    p = QUANTIZER.params(group=24, lanes=4, in_bits=12, bits=4, **values_)
    x = np.random.default_rng(7).integers(1, 2048, (30, 18)) * np.random.default_rng(8).choice([-1, 1], (30, 1))
    filled = np.pad(x, ((0, 0), (0, 6)))
    codes, *shared = quantized(p, filled)
    alone, *rest = quantized(replace(p, group=18, lanes=1), x)
    assert (codes[:, :18] == alone).all()
    for part, other in zip(shared, rest, strict=True):
        assert (part == other).all()
    assert token_run(p, M=30, K=18) == QUANTIZER.shape_of(p, filled)
    with pytest.raises(InputError, match="a token has at most group=24 channels, not 25; nearest: 24"):
        token_run(p, M=30, K=25)


def test_static_scales_are_of_no_token():
    with pytest.raises(InputError, match="scale=static has no scale a token"):
        token_run(QUANTIZER.preset("static"), M=1, K=4)


def run_cycles(params, groups, room):
    """Cycles that `groups` groups take where nothing stalls and the buffer has `room` beats."""
    control, beats = GroupControl(params), groups * params.group_beats
    control.room = room
    sent = received = cycles = 0
    while received < beats:
        taken = {"i_x": sent} if sent < beats and control.ready({"i_x": True}, True)["i_x"] else {}
        received += control.shown() is not None
        control.clock(taken, True)
        sent, cycles = sent + len(taken), cycles + 1
    return cycles


@pytest.mark.parametrize("scale", ["real", "pot"])
@pytest.mark.parametrize("beats", [1, 2, 5, 8, 11, 12, 13, 14, 16, 20, 40])
def test_the_buffer_is_as_large_as_the_pace_needs(scale, beats):
    for fraction in (10, 13, 19) if scale == "real" else (None,):
        p = QuantizerParams(group=beats, lanes=1, in_bits=9, bits=4, scale=scale, fraction_bits=fraction)
        want = QUANTIZER.timing(p, M=6, K=beats).total_cycles
        assert run_cycles(p, 6, p.buffer_beats) == want
        assert run_cycles(p, 6, p.buffer_beats - 1) > want or beats < 3


def test_groups_leave_at_the_pace_of_the_lanes_or_of_the_divider():
    slow = QuantizerParams(group=8, lanes=2, in_bits=12, bits=4)  # 4 beats; 17 bits of the reciprocal, by threes
    assert slow.reciprocal_bits == 12 + 1 + 4
    cycles = [QUANTIZER.timing(slow, M=m, K=8).total_cycles for m in (1, 2, 3)]
    # 4 in, 1 to find the largest, 1 to hand over, 6 digits, 1 to hand on, 4 out, 2 stages
    assert cycles == [4 + 1 + 1 + 6 + 1 + 4 + 2, 19 + 7, 19 + 14]
    fast = QuantizerParams(group=64, lanes=2, in_bits=12, bits=4)
    assert QUANTIZER.timing(fast, M=3, K=64).total_cycles == 3 * 32 + 32 + 1 + 1 + 6 + 1 + 2
    pot = QuantizerParams(group=8, lanes=2, in_bits=12, bits=4, scale="pot")
    assert QUANTIZER.timing(pot, M=3, K=8).total_cycles == 3 * 4 + 4 + 1 + 2


# ------------------------------------------------------------------------------------------------- two passes


TWICE_PRESETS = ["pot-twice", "fp16-zeros-twice"]


def test_two_passes_take_every_group_twice_and_wait_for_its_scale_between_them():
    fast = QuantizerParams(group=8, lanes=2, in_bits=12, bits=4, scale="pot", passes=2)
    # 4 beats twice; a register before the lanes and 2 behind it
    assert [QUANTIZER.timing(fast, M=m, K=8).total_cycles for m in (1, 3)] == [8 + 3, 24 + 3]
    slow = replace(fast, scale="real")
    # 1 to find the largest, 1 to hand over, 6 digits
    assert [QUANTIZER.timing(slow, M=m, K=8).total_cycles for m in (1, 3)] == [16 + 3, 48 + 3]
    wide = QuantizerParams(group=65536, lanes=64, act_format="fp16", bits=4, zero_points=True, passes=2)
    t = QUANTIZER.timing(wide, M=2, K=65536)
    assert t.total_cycles == 2 * (2 * 1024 + 2 + 1 + 11) + 4
    assert (t.stream_cycles, t.work) == (4 * 1024, 2 * 65536)


@pytest.mark.parametrize("preset", TWICE_PRESETS)
def test_two_passes_give_the_codes_and_what_is_shared_of_one(preset):
    p = QUANTIZER.preset(preset)
    x = QUANTIZER.sample(p, np.random.default_rng(1), M=3, K=2 * p.group)
    assert (QUANTIZER.golden(p, *x) == QUANTIZER.golden(replace(p, passes=1), *x)).all()
    once, twice = (QUANTIZER.beats(replace(p, passes=n), *x)["i_x"]["x"].reshape(6, n, -1) for n in (1, 2))
    assert (twice == once).all()


TWICE = {
    "twice-int": {"group": 6, "lanes": 2, "in_bits": 9, "bits": 4},
    "twice-int-zeros": {"group": 9, "lanes": 3, "in_bits": 9, "bits": 4, "zero_points": True},
    "twice-a-beat": {"group": 3, "lanes": 3, "in_bits": 5, "bits": 3},
    "twice-a-beat-pot": {"group": 1, "lanes": 1, "act_format": "fp16", "bits": 4, "scale": "pot"},
    "twice-fp16": {"group": 4, "lanes": 2, "act_format": "fp16", "bits": 4},
    "twice-large": {"group": 4098, "lanes": 6, "in_bits": 4, "bits": 3, "scale": "pot"},
}


@pytest.mark.parametrize("name", TWICE)
def test_two_passes_go_through_the_rtl_of_every_kind(name):
    assert not found(QUANTIZER.params(passes=2, **TWICE[name]), cases=1 if name == "twice-large" else 12)


KINDS = [{"scale": "pot"}, {"zero_points": False}, {"zero_points": True}]


@pytest.mark.parametrize("act_format", ["int", "fp16"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_of_two_passes_comparisons_alone_are_counted_twice_and_no_buffer(act_format, kind):
    p = QUANTIZER.params(group=6, lanes=2, act_format=act_format, bits=4, **kind)
    once, twice = (counted(QUANTIZER.ops(replace(p, passes=n), M=5, K=12)) for n in (1, 2))
    is_float, ends = act_format == "fp16", 1 + p.zero_points
    more = {("add", 15): ends} if is_float else {("add", 16): 1, ("add", 15 if p.zero_points else 16): 1}
    if p.scale == "pot":
        more = {("add", 5): 1} if is_float else {("add", 16): 1}
    elif not is_float and not p.zero_points:
        more = {("add", 16): 2}
    wanted = once | {(*op, 0): once[*op, 0] + 60 * times for op, times in more.items()}
    assert twice == {op: count for op, count in wanted.items() if op[0] != "mux"}


def counted(ops):
    """All but registers, by kind and widths."""
    totals = {}
    for op in ops:
        if op.kind != "reg":
            key = (op.kind, op.bits, op.bits2)
            totals[key] = totals.get(key, 0) + op.count
    return totals


@pytest.mark.slow
@pytest.mark.parametrize("act_format", ["int", "fp16"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_of_two_passes_registers_are_those_of_the_netlist(act_format, kind, tmp_path):
    p = QUANTIZER.params(group=6, lanes=2, act_format=act_format, bits=4, passes=2, **kind)
    one, two = (sum(op.count * op.bits for op in QUANTIZER.ops(p, M=m, K=p.group) if op.kind == "reg") for m in (1, 2))
    cycles = [QUANTIZER.timing(p, M=m, K=p.group).total_cycles for m in (1, 2)]
    a_cycle = (2 * one - two) // (2 * cycles[0] - cycles[1])
    # a group of three beats: two of the values before the lanes and of the largest so far are written over
    held = one - cycles[0] * a_cycle - 2 * p.lanes * p.number_bits - 2 * p.found_bits
    control = 3 + p.piped + 2  # first, second, waiting; valid bits; which beat
    if p.scale == "real":
        d = p.divider_cycles
        held -= (d - 1) * 3 * d + d * p.divisor_digits
        control += 2 + 1 + d.bit_length() + p.finding_cycles  # a beat, the last one; busy, and how long
    cells = synthesize(emit(p), "quantizer", cache=tmp_path).cells
    assert sum(n for cell, n in cells.items() if cell.startswith("DFF")) == a_cycle + held + control


@pytest.mark.parametrize("name", ["twice-int", "twice-int-zeros", *TWICE_PRESETS])
def test_a_second_pass_that_is_counted_into_the_next_peak_is_found(monkeypatch, name):
    honest = rtl.quantizer._pass_counts

    def counts(m, unit_, pipeline):
        count, entering = honest(m, unit_, pipeline)
        late = entering if unit_.params.scale == "pot" else rtl.quantizer._delayed(m, entering)
        return count._replace(compared=count.compared | late, last=count.last & count.compared), entering

    monkeypatch.setattr(rtl.quantizer, "_pass_counts", counts)
    assert found(params_of(name))


READY = {
    "while dividing": lambda _first, _second, advance: advance,
    "for a first pass while the output waits": lambda first, second, advance: first | (second & advance),
    "for a second pass while the output waits": lambda first, second, advance: second | (first & advance),
    "for no second pass": lambda first, _second, advance: first & advance,
}


@pytest.mark.parametrize("name", ["twice-int", "twice-int-zeros", "fp16-zeros-twice"])
@pytest.mark.parametrize("fault", READY)
def test_an_input_that_is_ready_too_soon_or_never_is_found(monkeypatch, name, fault):
    monkeypatch.setattr(rtl.quantizer, "pass_ready", READY[fault])
    assert found(params_of(name))


def params_of(name):
    """A preset's, or those of `TWICE`."""
    return QUANTIZER.params(passes=2, **TWICE[name]) if name in TWICE else QUANTIZER.preset(name)


@pytest.mark.parametrize(
    "values_, message",
    [
        ({"group": 12}, "group must be a multiple of lanes=8, not 12; nearest: 8"),
        ({"passes": 3}, "passes must be a whole number from 1 to 2, not 3"),
        ({"passes": 0}, "passes must be a whole number from 1 to 2, not 0"),
        ({"group": 4104}, "group must be a whole number from 1 to 4096, not 4104"),
        ({"group": 65544, "passes": 2}, "group must be a whole number from 1 to 65536, not 65544"),
        (
            {"scale": "static", "group": 8, "multiplier": 3, "shift": 2, "passes": 2},
            "scale=static has nothing to find in a first pass: passes must be 1, not 2",
        ),
        ({"in_bits": 4}, "bits must be at most the digits of a value, 4, not 8"),
        ({"act_format": "fp16", "in_bits": 12}, "act_format=fp16 needs in_bits=16, not 12"),
        ({"scale": "pott"}, "scale='pott' is unknown; did you mean 'pot'"),
        ({"scale": "pot", "fraction_bits": 20}, "scale=pot takes no fraction_bits, not 20"),
        ({"fraction_bits": 16}, "fraction_bits must be a whole number from 17 to 33, not 16"),
        ({"multiplier": 3}, "scale=real takes no multiplier, not 3"),
        ({"scale": "static", "group": 8, "multiplier": 3}, "scale=static needs shift"),
        ({"scale": "static"}, "scale=static shares nothing: group must be lanes=8, not 32"),
        ({"scale": "pot", "zero_points": True}, "scale=pot takes no zero_points; take scale=real"),
        (
            {"scale": "static", "group": 8, "multiplier": 3, "shift": 2, "zero_points": True},
            "scale=static takes no zero_points; take scale=real",
        ),
        ({"in_bits": 8, "zero_points": True}, "bits must be less than the digits of a value, 8, not 8"),
        (
            {"act_format": "fp16", "zero_points": True, "fraction_bits": 23},
            "fraction_bits must be a whole number from 31 to 61, not 23",
        ),
    ],
)
def test_quantizers_that_cannot_be_are_refused(values_, message):
    with pytest.raises(InputError, match=message):
        QUANTIZER.params(**values_)


def test_values_that_the_quantizer_cannot_take_are_refused():
    with pytest.raises(InputError, match=r"X\[0, 3\]: 40000 is outside"):
        quantized(QuantizerParams(group=4, lanes=4), np.array([[0, 1, 2, 40000]]))
    with pytest.raises(InputError, match=r"X\[0, 1\]: nan is not finite"):
        quantized(QuantizerParams(group=2, lanes=2, act_format="fp16"), np.array([[0, np.nan]]))
    with pytest.raises(InputError, match="K must be a multiple of 32 values"):
        QUANTIZER.timing(QuantizerParams(), M=1, K=40)


def found(params, cases=8):
    return verify(params, cases=cases, seed=2).findings


@pytest.mark.parametrize("preset", ["short", "pot", "fp16", "static"])
def test_a_dropped_round_bit_is_found(monkeypatch, preset):
    honest = rtl.quantizer.round_up
    monkeypatch.setattr(rtl.quantizer, "round_up", lambda r, n, odd, half, below: honest(r, n, odd, 0, below) & half)
    assert found(QUANTIZER.preset(preset))


@pytest.mark.parametrize("preset", ["default", "short", "pot", "fp16", "smallest"])
def test_a_peak_that_is_wrong_by_one_is_found(monkeypatch, preset):
    honest = rtl.quantizer._of_group
    monkeypatch.setattr(rtl.quantizer, "_of_group", lambda *parts: honest(*parts) ^ 1)
    assert found(QUANTIZER.preset(preset))


@pytest.mark.parametrize("preset", ["default", "pot", "fp16", "fp16-pot"])
def test_a_peak_that_misses_a_lane_is_found(monkeypatch, preset):
    honest, top_place = rtl.quantizer.largest, rtl.quantizer._top_place
    monkeypatch.setattr(rtl.quantizer, "largest", lambda m, numbers: honest(m, numbers[1:] or numbers))
    monkeypatch.setattr(rtl.quantizer, "_top_place", lambda m, p, numbers: top_place(m, p, numbers[1:]))
    assert found(QUANTIZER.preset(preset))


@pytest.mark.parametrize("preset", ["fp16-pot"])
@pytest.mark.parametrize("part", ["digits", "exponent"])
def test_a_half_peak_without_one_of_its_parts_is_found(monkeypatch, preset, part):
    """Digits of subnormals alone, or exponents alone."""
    honest = rtl.quantizer._top_place
    kept = 0x03FF if part == "exponent" else 0x7C00
    monkeypatch.setattr(rtl.quantizer, "_top_place", lambda m, p, numbers: honest(m, p, numbers) & kept)
    assert found(QUANTIZER.preset(preset), cases=24)


@pytest.mark.parametrize("preset", ["default", "smallest", "pot", "fp16", "zeros", *TWICE_PRESETS, "twice-int"])
@pytest.mark.parametrize("fault", ["always", "late"])
def test_values_before_the_lanes_that_do_not_wait_or_come_too_late_are_found(monkeypatch, preset, fault):
    honest, Const = rtl.quantizer._register, rtl.quantizer.Const

    def register(m, name, value, enable):
        if not name.startswith("top"):
            return honest(m, name, value, enable)
        return honest(m, name, value, Const(1, 1) if fault == "always" else rtl.quantizer._delayed(m, enable))

    monkeypatch.setattr(rtl.quantizer, "_register", register)
    assert found(params_of(preset))


@pytest.mark.parametrize("preset", ["default", "smallest", "fp16", "zeros", "fp16-zeros"])
def test_a_scale_that_is_made_before_its_group_is_known_is_found(monkeypatch, preset):
    monkeypatch.setattr(rtl.quantizer, "_ripening", lambda _m, p, waiting, _handed: [waiting] * (1 + p.finding_cycles))
    assert found(QUANTIZER.preset(preset))


def divided(remainder, width, steps, divisors):
    """What the divider makes of them, one after the other, a cycle of rest between their steps."""
    divider, quotients = rtl.quantizer.Divider(remainder, width, steps), []

    async def drive(context):
        for divisor in divisors:
            for start, step in [(1, 0), *[(0, 1), (0, 0)] * steps]:
                for port, value in ((divider.start, start), (divider.step, step), (divider.divisor, divisor)):
                    context.set(port, value)
                await context.tick()
            quotients.append(context.get(divider.quotient))

    simulator = Simulator(divider)
    simulator.add_clock(1e-6)
    simulator.add_testbench(drive)
    simulator.run()
    return quotients


@pytest.mark.parametrize("width, remainder", [(2, 1), (5, 15), (5, 8), (7, 60), (26, 15 << 21), (30, 255 << 21)])
def test_the_divider_makes_every_digit_of_a_quotient(width, remainder):
    rng = np.random.default_rng(width)
    least = 1 << (width - 1)
    divisors = (
        range(least, 2 * least) if width < 8 else [least, 2 * least - 1, *map(int, rng.integers(least, 2 * least, 60))]
    )
    for steps in (1, 4, 11):
        want = [(remainder << 3 * steps) // divisor for divisor in divisors]
        assert divided(remainder, width, steps, divisors) == want


def test_a_multiple_of_the_divisor_that_is_wrong_by_one_shows_in_its_quotients(monkeypatch):
    honest, divisors = rtl.quantizer.difference, range(64, 128)
    want = [(60 << 12) // divisor for divisor in divisors]
    for wrong in range(1, 8):
        monkeypatch.setattr(
            rtl.quantizer, "difference", lambda m, a, b, k, w, wrong=wrong: honest(m, a, b, k, w) ^ (k == wrong)
        )
        assert divided(60, 7, 4, divisors) != want


@pytest.mark.parametrize("preset", ["short", "pot", "fp16", "static", "fp16-static"])
def test_a_missing_sign_is_found(monkeypatch, preset):
    honest = rtl.quantizer.signed_code
    monkeypatch.setattr(
        rtl.quantizer,
        "signed_code",
        lambda m, w, places, _n, bits, r: honest(m, w, places, rtl.quantizer.Const(0, 1), bits, r),
    )
    assert found(QUANTIZER.preset(preset))


ZEROS = ["zeros", "short-zeros", "fp16-zeros", "zeros-away"]


@pytest.mark.parametrize("preset", [*ZEROS, "smallest-zeros"])
def test_an_ignored_lower_end_is_found(monkeypatch, preset):
    honest = rtl.quantizer._under
    monkeypatch.setattr(rtl.quantizer, "_under", lambda p, x: honest(p, x) & 0)
    assert found(QUANTIZER.preset(preset))


@pytest.mark.parametrize("preset", [*ZEROS, "smallest-zeros"])
def test_a_range_that_is_one_bit_short_is_found(monkeypatch, preset):
    for name in ("integer_span", "half_span"):
        honest = getattr(rtl.quantizer, name)
        monkeypatch.setattr(
            rtl.quantizer, name, lambda m, high, low, h=honest: rtl.quantizer.Cat(h(m, high, low)[:-1], 0)
        )
    assert found(QUANTIZER.preset(preset), cases=16)


@pytest.mark.parametrize("preset", ZEROS)
def test_codes_that_are_not_limited_are_found(monkeypatch, preset):
    """A range of which both ends are half a step away from a code."""
    monkeypatch.setattr(rtl.quantizer, "limited_code", lambda _m, count, bits: count[:bits])
    p = QUANTIZER.preset(preset)
    dtype = np.float16 if p.is_float else np.int64
    ends = (QUANTIZER.golden(p, np.resize(np.array([-k, k], dtype=dtype), (1, p.group))) for k in range(1, 60))
    assert any((y[..., 0, 0] == -(1 << (p.bits - 1))) and y[..., 0, 1] == (1 << (p.bits - 1)) - 1 for y in ends)
    assert found(p, cases=24)


def test_digits_of_a_wide_range_that_vanish_are_found(monkeypatch):
    """All below the ones that the divider takes: not even that there were any is known."""
    monkeypatch.setattr(
        rtl.quantizer, "_leading", lambda m, p, span, honest=rtl.quantizer._leading: _without_lowest(honest(m, p, span))
    )
    assert found(QUANTIZER.preset("fp16-zeros"), cases=24)


def test_digits_of_a_product_that_vanish_are_found(monkeypatch):
    monkeypatch.setattr(rtl.quantizer.Lane, "_cut", lambda self, product: product[self.params.cut_bits :] << 1)
    assert found(QUANTIZER.preset("fp16-zeros"), cases=24)


def test_zero_points_that_are_rounded_as_codes_are_found(monkeypatch):
    monkeypatch.setattr(rtl.quantizer, "replace", lambda p, **_rounding: p)
    assert found(QUANTIZER.preset("zeros-away"), cases=24)


def _without_lowest(leading):
    mantissa, anchor = leading
    return rtl.quantizer.Cat(rtl.quantizer.Const(0, 1), mantissa[1:]), anchor


CASTS = {"fp16": np.float16, "fp32": np.float32}


@pytest.mark.parametrize("out_format", CASTS)
@pytest.mark.parametrize("zero_points", [False, True])
def test_half_scales_give_the_products_of_single_precision(out_format, zero_points):
    """Products of 9 by 11 digits: exact in single precision, which numpy rounds to half precision."""
    p = DequantizerParams(
        group=8, lanes=4, out_format=out_format, out_bits=16 if out_format == "fp16" else 32, zero_points=zero_points
    )
    for seed in range(30):
        q, scales, *zeros = DEQUANTIZER.sample(p, np.random.default_rng(seed), M=10, K=32)
        each = [np.repeat(part, 8, axis=1).astype(np.float32) for part in (scales, *zeros)]
        with np.errstate(over="ignore", under="ignore"):
            want = ((q - each[1] if zeros else q.astype(np.float32)) * each[0]).astype(CASTS[out_format])
        got = DEQUANTIZER.golden(p, q, scales, *zeros)
        assert got.dtype == want.dtype
        assert (got == want).all()


def test_wide_products_are_rounded_to_the_nearer_single_and_ties_to_even():
    p = DEQUANTIZER.preset("wide")
    rng = np.random.default_rng(4)
    q, zeros = rng.integers(-2048, 2048, (20, 40)), rng.integers(-2048, 2048, (20, 10))
    scales = rng.integers(1 << 20, 1 << 24, (20, 10))
    y = DEQUANTIZER.golden(p, q, scales, zeros)
    for got, code, scale, zero in zip(y.flat, q.flat, scales.repeat(4), zeros.repeat(4), strict=True):
        exact = int(scale) * (int(code) - int(zero))
        near = [abs(Fraction(float(np.nextafter(got, np.float32(to)))) - exact) for to in (-np.inf, np.inf)]
        error = abs(Fraction(float(got)) - exact)
        assert error <= min(near)
        assert error < min(near) or not got.view(np.uint32) & 1


@pytest.mark.parametrize("scale", [0, 100, 127, 254])
def test_powers_of_two_scale_without_rounding_until_they_leave_the_format(scale):
    p = DEQUANTIZER.preset("pot-fp32")
    q = np.arange(-8, 8).reshape(1, 16)
    y = DEQUANTIZER.golden(p, q, np.full((1, 4), scale))
    want = [Fraction(int(code)) * Fraction(2) ** (scale - 127) for code in q.flat]
    fits = [abs(w) < 2**128 for w in want]
    assert [Fraction(float(g)) == w for g, w, f in zip(y.flat, want, fits, strict=True) if f] == [True] * sum(fits)
    assert all(np.isinf(g) for g, f in zip(y.flat, fits, strict=True) if not f)


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("shift", [0, 1, 5, 20])
def test_integers_are_shifted_rounded_and_limited(shift, rounding):
    p = DequantizerParams(
        group=4, lanes=4, scale_format="int", scale_bits=7, out_format="int", out_bits=9, shift=shift, rounding=rounding
    )
    for seed in range(20):
        q, scales = DEQUANTIZER.sample(p, np.random.default_rng(seed), M=10, K=32)
        want = quotients(q * scales.repeat(4, axis=1), 1 << shift, rounding)
        assert (DEQUANTIZER.golden(p, q, scales) == np.clip(want, -256, 255)).all()


@pytest.mark.parametrize("act_format", ["int", "fp16"])
def test_codes_and_power_of_two_scales_come_back_as_the_quantizers_values(act_format):
    quantizer = QuantizerParams(group=8, lanes=4, act_format=act_format, scale="pot")
    back = DequantizerParams(group=8, lanes=4, scale_format="e8m0", scale_bits=8, out_format="fp32", out_bits=32)
    for seed in range(10):
        [x] = QUANTIZER.sample(quantizer, np.random.default_rng(seed), M=5, K=32)
        assert (DEQUANTIZER.golden(back, *quantized(quantizer, x)) == values(quantizer, x)).all()


def test_a_beat_of_codes_enters_a_cycle_after_the_first_scale():
    t = DEQUANTIZER.timing(DequantizerParams(group=16, lanes=8), M=5, K=64)
    assert t.total_cycles == 1 + 5 * 8 + 2


@pytest.mark.parametrize(
    "values_, message",
    [
        ({"group": 12}, "group must be a multiple of lanes=8, not 12; nearest: 8"),
        ({"scale_format": "e8m0"}, "scale_format=e8m0 needs scale_bits=8, not 16"),
        ({"out_format": "fp32"}, "out_format=fp32 needs out_bits=32, not 16"),
        ({"out_format": "int", "shift": 3}, "out_format=int needs scale_format=int, not fp16"),
        ({"out_format": "int", "scale_format": "int"}, "out_format=int needs shift"),
        ({"shift": 3}, "out_format=fp16 takes no shift, not 3"),
        ({"rounding": "floor"}, "out_format=fp16 rounds to nearest even, not floor"),
    ],
)
def test_dequantizers_that_cannot_be_are_refused(values_, message):
    with pytest.raises(InputError, match=message):
        DEQUANTIZER.params(**values_)


@pytest.mark.parametrize(
    "scales, message",
    [
        (np.array([[1.0]]), r"scales are \(1, 1\), not \(1, 2\)"),
        (np.array([[1.0, -1.0]]), "a negative one"),
        (np.array([[1.0, np.inf]]), r"scales\[0, 1\]: inf is not finite"),
    ],
)
def test_scales_that_are_none_are_refused(scales, message):
    with pytest.raises(InputError, match=message):
        DEQUANTIZER.golden(DequantizerParams(group=8, lanes=8), np.zeros((1, 16), dtype=np.int64), scales)
    with pytest.raises(InputError, match="code 255 is no number"):
        DEQUANTIZER.golden(DEQUANTIZER.preset("pot"), np.zeros((1, 8), dtype=np.int64), np.array([[255]]))
    with pytest.raises(InputError, match="zeros"):
        DEQUANTIZER.golden(DEQUANTIZER.preset("zeros"), np.zeros((1, 6), dtype=np.int64), np.ones((1, 1)))


@pytest.mark.parametrize("preset", ["default", "fp32", "wide", "pot", "int"])
def test_a_lane_without_its_sign_is_found(monkeypatch, preset):
    unsigned = lambda honest: lambda m, value, *rest: honest(m, abs(value).as_signed(), *rest)  # noqa: E731
    for name in ("packed_float", "rounded_integer"):
        monkeypatch.setattr(rtl.dequantizer, name, unsigned(getattr(rtl.dequantizer, name)))
    assert found(DEQUANTIZER.preset(preset))


def test_bits_that_vanish_below_a_subnormal_are_found(monkeypatch):
    """Of powers of two: an integer times a half is a multiple of the least subnormal."""
    honest = rtl.dequantizer.shifted_right
    monkeypatch.setattr(
        rtl.dequantizer, "shifted_right", lambda m, w, n: (honest(m, w, n)[0], rtl.dequantizer.Const(0))
    )
    assert found(DEQUANTIZER.preset("pot"), cases=24)


@pytest.mark.parametrize("preset", ["int", "int-away", "int-truncate"])
def test_a_dropped_rounding_is_found(monkeypatch, preset):
    honest = rtl.dequantizer.rounded_integer
    monkeypatch.setattr(
        rtl.dequantizer, "rounded_integer", lambda m, v, shift, _r, bits: honest(m, v, shift, Rounding.FLOOR, bits)
    )
    assert found(DEQUANTIZER.preset(preset))
