"""Quantizer: the values of a group, or of a whole token, become signed codes and the scale that they share.

Dynamic scales: the largest magnitude `peak` of `group` consecutive values is found as they stream into a buffer; then
the scale is made, and the values stream out of the buffer through a shifter or multiplier. With q = 2^(bits-1) - 1, and
codes from -q to q:

- `pot`, a power of two by MX's floor rule (OCP Microscaling Formats v1.0, section 6.3): the scale is 2^e, e =
  floor(log2 peak) - (bits - 2); the code is x / 2^e, rounded, and limited to q. `scale` leaves as an E8M0 code, which
  is e + 127.
- `real`: the scale is peak / q; the code is x q / peak, rounded. `peak` leaves in the input's own format and the
  constant 1 / q belongs into the next scale. A divider makes a reciprocal once a group, three bits a cycle: R =
  floor(q 2^F / p) + 1 of the peak's mantissa p, normalised to the width W of a mantissa (in_bits; 11 of FP16), with F =
  `fraction_bits`; every value is multiplied by it, of the product W + 1 fraction bits are kept, and these are rounded.

  With F = 2 W + 1 (the default, none) the code is exactly that of the quotient x q / peak under the named rounding. R
  is too large by at most 1, so the product of a mantissa x < 2^W with it, in units of 2^F, by less than 2^-(W+1). Shift
  it by d places, the exponents' difference: x q / (p 2^d) is half an integer, or differs from each by 1 / (2 p 2^d) at
  least, which is above 2^-(W+1) before that shift. Half an integer shifted back is a multiple of 2^-(W+1). So the bits
  that are kept lie on the same side of every half and every integer as the quotient, or on it. Fewer fraction bits make
  multiplier and divider smaller, and some codes differ by one, away from zero.

`static`: the code is x multiplier / 2^shift, rounded, and limited to q; both are constants and no scale leaves.

`zero_points` (of `real` alone) makes the codes asymmetric, as `models.formats.IntFormat(bits, symmetric=False)`
describes them. Both ends are found, low = min(x, 0) and high = max(x, 0), and with n = 2^bits - 1 steps in the range
r = high - low the zero point is round(-low n / r) - 2^(bits-1), ties to even, and the code round(x n / r) under the
named rounding, plus the zero point, limited to `bits` bits, which both quotients rounded up together may leave. The
zero point itself needs no limit, since -low is at most r. Zero point and range leave, and 1 / n belongs into the next
scale: an integer range as it is, unsigned, of FP16 rounded to single precision (nearest even; two halves may be further
apart than half precision goes), as its pattern.

Codes are exact with F = 2 P + 1, the default, for a range of P digits. An integer's has P = W = in_bits, and the proof
above holds with n for q and r for p. Of FP16 it is an exact sum of two halves, up to 41 digits; P = max(bits + 22, 26)
leading ones are kept, the last with whatever is set below it. No code changes by that. Say the end of larger magnitude
is the whole number B, 2^10 <= B < 2^11 (two subnormal halves have a short sum). Digits are lost where the other end has
some below 2^-(bits+11); all of it is then less than 2^-(bits+1), and the sum has no digit more than B. Codes change
where the range passes some 2 x n / h, h a whole number: x is a mantissa times 2^-k, k >= 0, and h < n 2^min(1, 2-k), so
that such a place beyond B is beyond by at least 2^min(0, 1-k) / h > 2^-(bits+1). The range and what is kept of it lie
both between B and the next such place. With p and P for the normalised range the proof above then holds with P + 1
fraction bits of the product; W + 1 and whether any below them is set are as good, for what is shifted out further is
but looked at. Fewer fraction bits move some steps by one, and never take a zero point out of its range.

A group of zeros has scale 1: E8M0 code 127, integer 1, or 1.0; its zero point is the least code, -2^(bits-1).

The buffer holds the group that leaves and what enters meanwhile, `buffer_beats` beats: with `pot` a group and two
beats, with `real` a group and the beats that enter until its reciprocal is made or, where that takes longer than a
group, about another group. `stored_beats` of them are written to one of as many words of lanes * in_bits flip-flops (16
a half). The oldest beat stands beside these, at the top: a register of its own, signs, magnitudes and exponents apart,
which the oldest stored beat enters as soon as the one before it has left, whether or not its group's scale is made. So
choosing a word and the lanes' product share no cycle, and the register takes none of its own. The buffer is still most
of the unit's area where groups are tokens of hundreds of values.

`passes` = 2 has no buffer, and the same codes, scales and zero points. A memory outside the unit gives every group
twice in a row, the same beats in the same order. In the first pass the largest magnitude or both ends are found, and
nothing leaves; `i_x` is not ready until the scale is made, and then the second pass goes straight through the register
before the lanes, which no beat of a first pass enters. The next group's first pass follows the last beat of the second.
Everything stands still while the output waits, but for the making of a scale. What codes a second pass gets that
differs from its first is not defined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.bits import Rounding, check_codes, signed_range
from models.floats import (
    HALF_BITS,
    HALF_DIGITS,
    HALF_UNIT,
    SINGLE_BITS,
    SINGLE_DIGITS,
    ActFormat,
    Halves,
    half,
    half_bits,
    half_of,
    random_halves,
    single_bits,
    single_of,
    unpack_half,
)
from models.unit import (
    Beats,
    Control,
    Ints,
    Op,
    PipelineControl,
    Stimulus,
    Timing,
    Trace,
    assemble_trace,
    check_choice,
    check_range,
    require,
    step_streams,
)

DIVIDER_DIGIT = 3
"""bits of a quotient that the divider makes a cycle"""
LANE_STAGES = 2
"""the product, or the magnitude; the code, or its distance from the zero point"""
SHARED = ("scale", "zero")
"""what leaves with the codes of a group"""
E8M0_BITS = 8
E8M0_BIAS = 127
HALF_ONE = 15 << 10
"""the pattern of 1.0"""
HALF_BIAS = 15
HALF_EXPONENT_BITS = 5


class Scale(StrEnum):
    """Where a group's scale comes from."""

    POT = "pot"
    """a power of two above its largest magnitude"""
    REAL = "real"
    """its largest magnitude"""
    STATIC = "static"
    """constants of the unit"""


@dataclass(frozen=True, kw_only=True)
class QuantizerParams:
    """Groups, widths, and how codes are made.

    `lanes` values enter and leave a cycle. `in_bits` is the width of two's-complement integers, 16 with FP16. `group`
    is a multiple of `lanes`, at most 4096, and of two `passes` 65536; with static scales, which nothing shares, it is
    `lanes`, in one pass. `fraction_bits` and `zero_points` are for `real` alone, `multiplier` and `shift` for `static`,
    which needs both.
    """

    group: int = 32
    lanes: int = 8
    act_format: ActFormat = ActFormat.INT
    in_bits: int = 16
    bits: int = 8
    scale: Scale = Scale.REAL
    zero_points: bool = False
    rounding: Rounding = Rounding.NEAREST_EVEN
    fraction_bits: int | None = None
    multiplier: int | None = None
    shift: int | None = None
    passes: int = 1

    def __post_init__(self) -> None:
        check_choice("quantizer", self, act_format=ActFormat, scale=Scale, rounding=Rounding)
        check_range("quantizer", self, passes=(1, 2), lanes=(1, 64), in_bits=(2, 24), bits=(2, 12))
        check_range("quantizer", self, group=(1, 4096 if self.passes == 1 else 1 << 16))
        rule = "quantizer: act_format=fp16 needs in_bits=16"
        require(not self.is_float or self.in_bits == HALF_BITS, f"{rule}, not {self.in_bits}")
        rule = f"quantizer: scale={self.scale} takes no zero_points; take scale=real"
        require(self.scale is Scale.REAL or not self.zero_points, rule)
        rule = "quantizer: bits must be less than" if self.zero_points else "quantizer: bits must be at most"
        require(
            self.bits <= self.digits - self.zero_points, f"{rule} the digits of a value, {self.digits}, not {self.bits}"
        )
        self._check_group()
        self._check_constants()

    def _check_group(self) -> None:
        near = max(self.group // self.lanes, 1) * self.lanes
        rule = f"quantizer: group must be a multiple of lanes={self.lanes}"
        require(self.group % self.lanes == 0, f"{rule}, not {self.group}; nearest: {near}")
        rule = f"quantizer: scale=static shares nothing: group must be lanes={self.lanes}"
        require(self.scale is not Scale.STATIC or self.group == self.lanes, f"{rule}, not {self.group}")
        rule = "quantizer: scale=static has nothing to find in a first pass: passes must be 1"
        require(self.scale is not Scale.STATIC or self.passes == 1, f"{rule}, not {self.passes}")

    def _check_constants(self) -> None:
        static, w = self.scale is Scale.STATIC, self.divisor_digits
        limits = {
            "fraction_bits": (self.scale is Scale.REAL, (w + 1, 2 * w + 1)),
            "multiplier": (static, (1, (1 << 16) - 1)),
            "shift": (static, (0, 31)),
        }
        for name, (used, limit) in limits.items():
            given = getattr(self, name)
            require(used or given is None, f"quantizer: scale={self.scale} takes no {name}, not {given!r}")
            require(not static or given is not None or not used, f"quantizer: scale=static needs {name}")
            if given is not None:
                check_range("quantizer", self, **{name: limit})

    @property
    def is_float(self) -> bool:
        return self.act_format is ActFormat.FP16

    @property
    def digits(self) -> int:
        """Width W of a magnitude."""
        return HALF_DIGITS if self.is_float else self.in_bits

    @property
    def number_bits(self) -> int:
        """Width of a value as sign, magnitude and, of FP16, exponent."""
        return self.digits + 1 + HALF_EXPONENT_BITS * self.is_float

    @property
    def largest(self) -> int:
        """The largest code, q."""
        return (1 << (self.bits - 1)) - 1

    @property
    def steps(self) -> int:
        """The quotient of a whole peak or range: q, or n."""
        return (1 << self.bits) - 1 if self.zero_points else self.largest

    @property
    def has_wide_range(self) -> bool:
        """Whether a group's divisor has more digits than a value: a sum of two halves."""
        return self.is_float and self.zero_points

    @property
    def divisor_digits(self) -> int:
        """Width of a normalised peak, W, or range, P."""
        return max(self.bits + 22, SINGLE_DIGITS + 2) if self.has_wide_range else self.digits

    @property
    def cut_bits(self) -> int:
        """Lowest bits of a product that its word has not got, so that W + 1 fraction bits are left."""
        return self.fraction - self.divisor_digits - 1

    @property
    def unseen_bits(self) -> int:
        """How many of them are not even looked at: of a product with a wide range's reciprocal all below P + 1."""
        return max(self.cut_bits - (self.divisor_digits - self.digits), 0) if self.has_wide_range else self.cut_bits

    @property
    def group_beats(self) -> int:
        return self.group // self.lanes

    @property
    def stages(self) -> int:
        """From the register before the lanes, or the input of static scales, to the output."""
        return LANE_STAGES + self.zero_points

    @property
    def piped(self) -> int:
        """Registers of what leaves under the output's control: of two passes also the one before the lanes."""
        return self.stages + self.passes - 1

    @property
    def fraction(self) -> int:
        """Fraction bits of the reciprocal, F."""
        return 2 * self.divisor_digits + 1 if self.fraction_bits is None else self.fraction_bits

    @property
    def reciprocal_bits(self) -> int:
        """Width of R."""
        return self.fraction - self.divisor_digits + self.bits + self.zero_points

    @property
    def divider_cycles(self) -> int:
        """Digits of a quotient that has R's bits, and perhaps some below them."""
        return -(-self.reciprocal_bits // DIVIDER_DIGIT)

    @property
    def finding_cycles(self) -> int:
        """Cycles that it takes after the register behind a group's last beat to find what its scale is made of: the
        largest magnitude of `real` scales, first of each half of a beat, and the range of zero points."""
        return (1 + self.zero_points) * (self.scale is Scale.REAL)

    @property
    def scale_cycles(self) -> int:
        """Cycles between that of the last beat in which a group is read and that in which its scale is made."""
        return (self.finding_cycles + 1 + self.divider_cycles) * (self.scale is Scale.REAL)

    @property
    def buffer_beats(self) -> int:
        """Beats of the buffer of one pass: so many that the lanes alone, or the divider, set the pace."""
        t, wait = self.group_beats, self.divider_cycles + self.finding_cycles + 3
        if self.scale is Scale.POT:
            return t + 2
        # under the divider's pace the next group, and what of a third one must enter before the first has left
        return t + max(min(t + max(t + self.finding_cycles + 1 - self.divider_cycles, 0), wait), 2)

    @property
    def stored_beats(self) -> int:
        """Beats of the buffer but the one at its top, a register of its own that the lanes read."""
        return self.buffer_beats - 1

    @property
    def period(self) -> int:
        """Cycles from one group to the next."""
        if self.passes == 2:
            return 2 * self.group_beats + self.scale_cycles
        return max(self.group_beats, self.divider_cycles + 1) if self.scale is Scale.REAL else self.group_beats

    @property
    def scale_bits(self) -> int:
        if self.has_wide_range:
            return SINGLE_BITS
        return E8M0_BITS if self.scale is Scale.POT else self.in_bits

    @property
    def word_bits(self) -> int:
        """Width of what is shifted and rounded."""
        match self.scale:
            case Scale.POT:
                return self.digits + self.bits - 2
            case Scale.REAL:
                return self.digits + self.bits + 1 + self.zero_points + self.has_wide_range
        assert self.multiplier is not None
        return self.digits + self.multiplier.bit_length() + (HALF_SPARE if self.is_float else 0)

    @property
    def word_zeros(self) -> int:
        """Its lowest bits that are zero, so that every value's is shifted down."""
        return {Scale.POT: self.bits - 2, Scale.STATIC: HALF_SPARE * self.is_float}.get(self.scale, 0)

    @property
    def step_bits(self) -> int:
        """Width of what a lane rounds: a code, or a signed number of steps."""
        return self.bits + 2 * self.zero_points

    @property
    def peak_bits(self) -> int:
        """Width of a magnitude as it is compared: FP16 as its pattern, whose order is that of the values."""
        return HALF_BITS - 1 if self.is_float else self.in_bits

    @property
    def high_bits(self) -> int:
        """Width of the upper end as it is compared; the lower end, of either sign or none, has peak_bits."""
        return HALF_BITS - 1 if self.is_float else self.in_bits - 1

    @property
    def found_bits(self) -> int:
        """Width of what is known of the values of a group: the largest magnitude, or both ends."""
        return self.peak_bits + self.high_bits * self.zero_points

    @property
    def made_bits(self) -> int:
        """Width of what `real` scales are made of: the peak, or the range."""
        return SINGLE_BITS - 1 if self.has_wide_range else self.peak_bits

    @property
    def low_bits(self) -> int:
        """Width of the lower end that a zero point is made of."""
        return self.peak_bits * self.zero_points

    @property
    def anchor_bits(self) -> int:
        """Width of the exponent of a group's largest magnitude: of an integer the place of its top bit, of FP16 its
        biased exponent, above that of the least subnormal."""
        return HALF_ANCHOR.bit_length() if self.is_float else (self.in_bits - 1).bit_length()

    @property
    def most_places(self) -> int:
        """The most places by which a product is shifted."""
        least = {Scale.POT: self.digits - 1, Scale.REAL: self.digits + 1}.get(self.scale, self.shift or 0)
        # a range has up to a digit more than its ends, and a word one for all that was cut off
        return least + (HALF_DISTANCE if self.is_float else 0) + 2 * self.has_wide_range

    @property
    def has_fixed_places(self) -> bool:
        """Whether all products are shifted by `shift` places."""
        return self.scale is Scale.STATIC and not self.is_float

    @property
    def places_bits(self) -> int:
        return self.most_places.bit_length()


HALF_SPARE = 5
"""places that a product of FP16 is moved up by, so that every value's is shifted down"""
HALF_LEAST = -9
"""biased exponent of the least subnormal with its one digit at the top"""
HALF_ANCHOR = 30 - HALF_LEAST
HALF_DISTANCE = 29
"""between the biased exponents of two halves, 1 to 30"""
HALF_PLACES = HALF_UNIT - 1
"""a half is a multiple of 2^-24"""
SPAN_BITS = 41
"""width of the range of halves, in units of that"""

_FP16: dict[str, Any] = {"act_format": ActFormat.FP16, "in_bits": HALF_BITS}

PRESETS = {
    "default": QuantizerParams(),
    "smallest": QuantizerParams(group=1, lanes=1, in_bits=2, bits=2),
    "token": QuantizerParams(group=48, lanes=4, in_bits=12, bits=4),
    "short": QuantizerParams(group=4, lanes=2, in_bits=9, bits=4, fraction_bits=12),
    "pot": QuantizerParams(group=8, lanes=2, in_bits=12, scale=Scale.POT, rounding=Rounding.NEAREST_AWAY),
    "smallest-pot": QuantizerParams(group=2, lanes=2, in_bits=4, bits=4, scale=Scale.POT, rounding=Rounding.FLOOR),
    "fp16": QuantizerParams(group=8, lanes=2, bits=4, **_FP16),
    "fp16-pot": QuantizerParams(group=32, lanes=8, bits=8, scale=Scale.POT, **_FP16),
    "static": QuantizerParams(group=4, lanes=4, in_bits=12, scale=Scale.STATIC, multiplier=333, shift=12),
    "fp16-static": QuantizerParams(group=2, lanes=2, bits=6, scale=Scale.STATIC, multiplier=41, shift=3, **_FP16),
    "wide": QuantizerParams(group=4, lanes=1, in_bits=24, bits=12, rounding=Rounding.TRUNCATE),
    "zeros": QuantizerParams(group=24, lanes=4, in_bits=12, bits=4, zero_points=True),
    "zeros-away": QuantizerParams(
        group=6, lanes=2, in_bits=8, bits=5, zero_points=True, rounding=Rounding.NEAREST_AWAY
    ),
    "smallest-zeros": QuantizerParams(group=1, lanes=1, in_bits=3, bits=2, zero_points=True, rounding=Rounding.FLOOR),
    "short-zeros": QuantizerParams(group=4, lanes=2, in_bits=9, bits=4, fraction_bits=12, zero_points=True),
    "fp16-zeros": QuantizerParams(group=8, lanes=2, bits=4, zero_points=True, **_FP16),
    "short-fp16-zeros": QuantizerParams(group=4, lanes=1, bits=8, zero_points=True, fraction_bits=31, **_FP16),
    "pot-twice": QuantizerParams(group=8, lanes=2, in_bits=12, bits=6, scale=Scale.POT, passes=2),
    "fp16-zeros-twice": QuantizerParams(group=12, lanes=4, bits=4, zero_points=True, passes=2, **_FP16),
}


def quantized(params: QuantizerParams, X: NDArray[Any]) -> tuple[Ints, ...]:
    """Codes [M, K] of X [M, K], and the scales [M, K / group] as they leave (none with static scales: [M, 0]); with
    zero points these behind them, [M, K / group].

    X holds integers of in_bits, or with FP16 what float16 holds exactly. K must be a multiple of `group`.
    """
    require(isinstance(X, np.ndarray), f"X must be a numpy array [M, K], not {type(X).__name__}")
    require(X.ndim == 2, f"X must be a matrix [M, K], not an array of shape {X.shape}")
    _check_groups(params, *X.shape)
    found = _codes(params, _checked(params, X).reshape(-1, params.group))
    return tuple(part.reshape(len(X), -1) for part in found)


def golden(params: QuantizerParams, X: NDArray[Any]) -> Ints:
    """Y[M, K / group, group + 1]: the codes of each group of X [M, K] and behind them its scale, as `quantized` gives
    them; with zero points group + 2 and the zero point last; with static scales the codes [M, K] alone."""
    return _side_by_side(params, *quantized(params, X))


def _side_by_side(params: QuantizerParams, codes: Ints, *shared: Ints) -> Ints:
    if params.scale is Scale.STATIC:
        return codes
    grouped = codes.reshape(len(codes), -1, params.group)
    return np.concatenate([grouped, *(part[..., None] for part in shared)], axis=-1)


def values(params: QuantizerParams, X: NDArray[Any]) -> NDArray[np.float64]:
    """What the codes of X [M, K] stand for: (code - zero point) * scale in float64, as near to X as they are."""
    codes, scales, *zeros = quantized(params, X)
    if params.scale is Scale.STATIC:
        assert params.multiplier is not None
        assert params.shift is not None
        return codes.astype(np.float64) / params.multiplier * 2.0**params.shift
    steps = codes - np.repeat(zeros[0], params.group, axis=1) if zeros else codes
    return np.repeat(_real_scales(params, scales), params.group, axis=1) * steps


def _real_scales(p: QuantizerParams, scales: Ints) -> NDArray[np.float64]:
    if p.scale is Scale.POT:
        return np.exp2((scales - E8M0_BIAS).astype(np.float64))
    if not p.is_float:
        return scales.astype(np.float64) / p.steps
    floats = (single_of(scales) if p.zero_points else half_of(scales)).astype(np.float64)
    return np.divide(floats, p.steps)


def token_run(params: QuantizerParams, M: int, K: int) -> dict[str, int]:
    """The shape of a run over M tokens of K channels, K at most `group`, each quantized as a whole.

    A token of fewer channels than `group` is followed by zeros up to it: they change neither the largest magnitude nor
    the range, which takes in zero anyway, so that its K codes, its scale and its zero point are those of the token
    alone. The run is one of M groups: `timing(params, **token_run(params, M, K))` are its cycles, in which only M K of
    M `group` places do work (`work` counts them all), and `ops` likewise counts the zeros' operations. InputError where
    K is larger, or with static scales, which no token has.
    """
    gemm.check_shape(M=M, K=K)
    rule = "quantizer: scale=static has no scale a token; take scale=real or scale=pot"
    require(params.scale is not Scale.STATIC, rule)
    rule = f"shape: a token has at most group={params.group} channels"
    require(params.group >= K, f"{rule}, not {K!r}; nearest: {params.group}")
    return {"M": M, "K": params.group}


def _checked(params: QuantizerParams, X: NDArray[Any]) -> NDArray[Any]:
    return half("X", X) if params.is_float else check_codes("X", X, params.in_bits)


def _check_groups(params: QuantizerParams, M: Any, K: Any) -> tuple[Any, ...]:
    M, K = gemm.check_shape(M=M, K=K)
    rule = f"shape: K must be a multiple of {params.group} values, which share a scale"
    require(bool(np.all(np.asarray(K) % params.group == 0)), f"{rule}, not {K!r}")
    return M, K


def _codes(params: QuantizerParams, x: NDArray[Any]) -> tuple[Ints, ...]:
    """Codes [groups, group] and scales [groups] (static: [groups, 0]); with zero points these as well [groups]."""
    if params.zero_points:
        return _offset_codes(params, x)
    mantissa, exponent = _parts(params, x)
    magnitude = np.abs(mantissa)
    if params.scale is Scale.STATIC:
        word, places = _static(params, magnitude, exponent)
        scales: Ints = np.zeros((len(x), 0), dtype=np.int64)
    else:
        peak = _peaks(params, x)
        word, places = _dynamic(params, magnitude, exponent, *_normalised(params, np.maximum(peak, peak == 0)))
        scales = _scales(params, peak)
    rounded = np.minimum(_rounded(word, places, mantissa < 0, params.rounding), params.largest)
    return np.where(mantissa < 0, -rounded, rounded), scales


def _parts(p: QuantizerParams, x: NDArray[Any]) -> tuple[Ints, Ints]:
    """Signed mantissas and biased exponents; integers have exponent 0."""
    return unpack_half(x) if p.is_float else (x, np.zeros_like(x))


def _offset_codes(p: QuantizerParams, x: NDArray[Any]) -> tuple[Ints, Ints, Ints]:
    """Codes [groups, group], ranges and zero points [groups]."""
    low, high = np.minimum(x.min(axis=1, keepdims=True), 0), np.maximum(x.max(axis=1, keepdims=True), 0)
    span = _units(p, high) - _units(p, low)
    span = np.where(span == 0, 1 << HALF_PLACES if p.is_float else 1, span)
    divisor, anchor = _leading(p, span)
    lowest, highest = signed_range(p.bits)
    zero = lowest - _in_steps(p, low, divisor, anchor, Rounding.NEAREST_EVEN)
    codes = np.clip(_in_steps(p, x, divisor, anchor, p.rounding) + zero, lowest, highest)
    # exact in double precision, so that this rounds once
    ranges = single_bits(np.ldexp(span.astype(np.float64), -HALF_PLACES).astype(np.float32)) if p.is_float else span
    return codes, ranges[:, 0], zero[:, 0]


def _units(p: QuantizerParams, x: NDArray[Any]) -> Ints:
    """Values as whole numbers: of integers, or of the least half."""
    units: Ints = np.ldexp(x.astype(np.float64), HALF_PLACES).astype(np.int64) if p.is_float else x
    return units


def _leading(p: QuantizerParams, span: Ints) -> tuple[Ints, Ints]:
    """A range as `_normalised` gives a peak; the last of its divisor_digits is set if any below it is."""
    length = np.frexp(span.astype(np.float64))[1].astype(np.int64)
    excess = length - p.divisor_digits
    over = np.maximum(excess, 0)
    kept = span >> over
    digits = (kept | (kept << over != span)) << np.maximum(-excess, 0)
    return digits, length + (HALF_LEAST - 1 if p.is_float else -p.digits)


def _in_steps(p: QuantizerParams, x: NDArray[Any], divisor: Ints, anchor: Ints, rounding: Rounding) -> Ints:
    """Values in steps of their group's range, rounded."""
    mantissa, exponent = _parts(p, x)
    word, places = _dynamic(p, np.abs(mantissa), exponent, divisor, anchor)
    rounded = _rounded(word, places, mantissa < 0, rounding)
    return np.where(mantissa < 0, -rounded, rounded)


def _static(p: QuantizerParams, magnitude: Ints, exponent: Ints) -> tuple[Ints, Ints]:
    assert p.multiplier is not None
    assert p.shift is not None
    word = magnitude * p.multiplier
    if not p.is_float:
        return word, np.full_like(word, p.shift)
    # a half is its mantissa times 2^(exponent - 25), exponent at most 30
    return word << HALF_SPARE, p.shift + 25 + HALF_SPARE - exponent


def _peaks(p: QuantizerParams, x: NDArray[Any]) -> Ints:
    """The largest magnitude of each group [groups, 1]: an integer, or the pattern of a half."""
    magnitudes = half_bits(x) & 0x7FFF if p.is_float else np.abs(x)
    peaks: Ints = magnitudes.max(axis=1, keepdims=True)
    return peaks


def _dynamic(p: QuantizerParams, magnitude: Ints, exponent: Ints, divisor: Ints, anchor: Ints) -> tuple[Ints, Ints]:
    """What is rounded, and how many fraction bits of it, for a group's normalised peak or range."""
    if p.scale is Scale.POT:
        return magnitude << (p.bits - 2), p.digits - 1 + anchor - exponent
    product = magnitude * _reciprocal(p, divisor)
    places = p.digits + 1 + anchor - exponent
    if not p.has_wide_range:
        return product >> p.cut_bits, places
    word, seen = product >> p.cut_bits, product >> p.unseen_bits
    return word << 1 | (seen & ((1 << (p.cut_bits - p.unseen_bits)) - 1) != 0), places + 1


def _reciprocal(p: QuantizerParams, divisor: Ints) -> Ints:
    """R, by long division of as many digits at a time as 63 bits have room for."""
    rest, quotient, left = np.full_like(divisor, p.steps), np.zeros_like(divisor), p.fraction
    while left:
        digits = min(left, 62 - p.divisor_digits)
        rest <<= digits
        quotient = (quotient << digits) + rest // divisor
        rest %= divisor
        left -= digits
    result: Ints = quotient + 1
    return result


def _normalised(p: QuantizerParams, peak: Ints) -> tuple[Ints, Ints]:
    """Mantissa with its top bit, of `digits`, set, and exponent, on the scale of the values' exponents."""
    mantissa, exponent = unpack_half(half_of(peak)) if p.is_float else (peak, np.zeros_like(peak))
    zeros = p.digits - np.frexp(mantissa.astype(np.float64))[1].astype(np.int64)
    return mantissa << zeros, exponent - zeros


def _scales(p: QuantizerParams, peak: Ints) -> Ints:
    """What leaves for each group [groups]."""
    peak = peak[:, 0]
    if p.scale is Scale.REAL:
        return np.where(peak == 0, HALF_ONE if p.is_float else 1, peak)
    _, anchor = _normalised(p, np.maximum(peak, 1))
    power = anchor - HALF_BIAS if p.is_float else anchor + p.digits - 1
    return np.where(peak == 0, E8M0_BIAS, power - (p.bits - 2) + E8M0_BIAS)


def _rounded(word: Ints, places: Ints, negative: NDArray[np.bool_], rounding: Rounding) -> Ints:
    """word / 2^places, a magnitude whose sign is `negative`, as an integer."""
    places = np.minimum(places, 62)  # beyond all bits of `word`
    whole = word >> places
    rest, unit = word - (whole << places), np.int64(1) << places
    match rounding:
        case Rounding.NEAREST_EVEN:
            up = (rest > unit - rest) | ((rest == unit - rest) & (whole & 1 == 1))
        case Rounding.NEAREST_AWAY:
            up = rest >= unit - rest
        case Rounding.FLOOR:
            up = negative & (rest > 0)
        case _:
            up = np.zeros(rest.shape, dtype=bool)
    result: Ints = whole + up
    return result


def timing(params: QuantizerParams, M: Any, K: Any) -> Timing:
    """Exact cycles; M and K may be int64 arrays.

    A group of T beats leaves every T cycles; with `real` every max(T, D + 1) cycles, D = divider_cycles. The first
    leaves when all of it has entered and its scale is made, S = scale_cycles and one later, through `stages` registers:
    S is 0 with `pot`, and with `real` finding_cycles + 1 + D. Of two passes a group enters every 2 T + S cycles, in S
    of which no beat does, and the last leaves stages + 1 cycles after it: (2 T + S) groups + stages + 1 in all.
    """
    M, K = _check_groups(params, M, K)
    groups, t = M * (K // params.group), params.group_beats
    first = t if params.scale is Scale.STATIC else t + params.scale_cycles + 1 + t
    total, stream = (groups - 1) * params.period + first + params.stages, groups * t * params.passes
    return Timing(
        total_cycles=total,
        load_cycles=0 * groups,
        stream_cycles=stream,
        drain_cycles=total - stream,
        work=M * K,
        peak_per_cycle=params.lanes,
    )


def ops(params: QuantizerParams, M: int, K: int) -> tuple[Op, ...]:
    """Operations of a run without stalls.

    A value takes a negation (integers) and a comparison as it enters, with zero points a comparison with each end, with
    `pot` one of exponents (FP16; of integers none, gates that are not counted find the highest digit); another
    negation, a product (`real`, `static`), a difference of exponents (FP16), a shift and one addition of rounding and
    sign as it leaves, and with zero points the subtraction of the lower end's steps. A group takes in each cycle of the
    divider a subtraction of every multiple that a digit can be, a carry-save one for those that are no shift; with zero
    points its range (of FP16 two shifts and the rounding to single precision as well), and its lower end what a value
    takes as it leaves. Buffers (the words and the top) and a group's registers are written once a value or
    group, the divider's once each of its cycles, those of a beat's largest magnitudes and of the lanes in every cycle.

    Of two passes both bring the values to the comparisons, and before those to their negation, and the second alone to
    the register before the lanes. Reading them from memory, twice, is not in here.
    """
    M, K = _check_groups(params, M, K)
    cycles, groups = timing(params, M, K).total_cycles, M * (K // params.group)
    dynamic = () if params.scale is Scale.STATIC else _group_ops(params, M * K, groups, cycles)
    offsets = _offset_ops(params, M * K, groups, cycles) if params.zero_points else ()
    return (*dynamic, *offsets, *_lane_ops(params, M * K + groups * params.zero_points, cycles))


def _held_ops(p: QuantizerParams, count: int) -> list[Op]:
    if p.passes == 2:
        return [Op("reg", count, p.number_bits)]
    return [Op("reg", count, p.in_bits + p.number_bits), Op("mux", count, p.in_bits, p.stored_beats)]


def _group_ops(p: QuantizerParams, count: int, groups: int, cycles: int) -> tuple[Op, ...]:
    compared = count * p.passes
    found = _held_ops(p, count) + ([] if p.is_float or p.zero_points else [Op("add", compared, p.in_bits)])
    found += [Op("reg", groups * p.group_beats, p.found_bits)] if p.group_beats > 1 else []
    found += [Op("reg", groups, p.found_bits + p.anchor_bits)]
    if p.scale is Scale.POT:
        return (*found, *([Op("add", compared, HALF_EXPONENT_BITS)] if p.is_float else []), Op("reg", groups, 1))
    found += [Op("add", compared, p.peak_bits), Op("reg", cycles, min(p.lanes, 2) * p.found_bits)]
    handed = [Op("add", groups, p.reciprocal_bits), Op("reg", groups, p.reciprocal_bits + p.made_bits)]
    # of a wide range the divider has the digits that its scale is made of
    entered = p.anchor_bits + p.low_bits + (0 if p.has_wide_range else p.made_bits)
    return (*found, *_divider_ops(p, groups), *handed, Op("reg", groups, entered))


def _divider_ops(p: QuantizerParams, groups: int) -> list[Op]:
    d, width, multiples = p.divider_cycles, p.divisor_digits, (1 << DIVIDER_DIGIT) - 1
    trials = [
        Op("add", groups * d * multiples, width + DIVIDER_DIGIT),
        Op("csa", groups * d * (multiples - DIVIDER_DIGIT), width + DIVIDER_DIGIT + 1),
    ]
    return [*trials, Op("reg", groups * d, d * DIVIDER_DIGIT), Op("reg", groups * (d + 2), width)]


def _offset_ops(p: QuantizerParams, count: int, groups: int, cycles: int) -> tuple[Op, ...]:
    """What zero points add, but for the lane of the lower end and for wider registers."""
    found = [Op("add", count * p.passes, p.high_bits), Op("add", count, p.step_bits), Op("add", groups, p.step_bits)]
    found += [Op("reg", cycles * p.lanes, p.bits), Op("reg", cycles, p.bits)]
    found += [Op("reg", groups, (SPAN_BITS if p.is_float else p.in_bits) + p.number_bits - 1)]
    if not p.is_float:
        return (*found, Op("add", groups, p.in_bits))
    spans = [Op("shift", 2 * groups, SPAN_BITS - 1, HALF_DISTANCE), Op("add", groups, SPAN_BITS)]
    return (*found, *spans, Op("shift", groups, SPAN_BITS, SPAN_BITS - 1), Op("add", groups, p.made_bits))


def _lane_ops(p: QuantizerParams, count: int, cycles: int) -> tuple[Op, ...]:
    lanes = p.lanes + p.zero_points
    found = [Op("reg", cycles * lanes, p.word_bits - p.word_zeros + 1 + p.step_bits), Op("add", count, p.step_bits)]
    if p.scale is not Scale.POT:
        other = p.reciprocal_bits if p.scale is Scale.REAL else (p.multiplier or 0).bit_length()
        found.append(Op("mul", count, p.digits, other))
    if p.is_float:
        found += [Op("add", count, p.places_bits), Op("reg", cycles * lanes, p.places_bits)]
    else:
        found.append(Op("add", count, p.in_bits))
    if p.scale is not Scale.STATIC:
        # of a power of two the shift is the scale's own exponent, which moves along anyway
        found += [] if p.is_float or p.scale is Scale.POT else [Op("reg", cycles, p.anchor_bits)]
        found.append(Op("reg", cycles * p.stages, p.anchor_bits + 1 if p.scale is Scale.POT else p.made_bits))
    if p.is_float or p.scale is not Scale.STATIC:
        found.append(Op("shift", count, p.word_bits, p.most_places))
    return tuple(found)


def beats(params: QuantizerParams, X: NDArray[Any]) -> Beats:
    """Input beats: `i_x` {x[lanes]}, integers or patterns of FP16, row by row; of two passes every group's twice."""
    x = half_bits(half("X", X)) if params.is_float else X.astype(np.int64)
    entering = np.repeat(x.reshape(-1, 1, params.group), params.passes, axis=1)
    return {"i_x": {"x": entering.reshape(-1, params.lanes)}}


def result(params: QuantizerParams, operands: tuple[NDArray[Any], ...], out_beats: Mapping[str, Ints]) -> Ints:
    """`golden`'s from the beats of `o_y` {y[lanes], scale}, {y[lanes], scale, zero}, static {y[lanes]}."""
    m, k = operands[0].shape
    shared = (out_beats[name][:: params.group_beats].reshape(m, -1) for name in SHARED if name in out_beats)
    return _side_by_side(params, out_beats["y"].reshape(m, k), *shared)


def trace(params: QuantizerParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats` and `result`, what a group shares with all its beats."""
    entering = stimulus.beats["i_x"]["x"]
    index, ready = step_streams(_control(params), stimulus, "o_y", len(entering) // params.passes)
    x = entering.reshape(-1, params.passes, params.group)[:, 0]
    codes, *shared = _codes(params, half_of(x) if params.is_float else x)
    out: dict[str, Ints] = {"y": codes.reshape(-1, params.lanes)}
    if params.scale is not Scale.STATIC:
        out |= {name: np.repeat(part, params.group_beats) for name, part in zip(SHARED, shared, strict=False)}
    return assemble_trace(stimulus, index, ready, "o_y", out)


def _control(params: QuantizerParams) -> Control:
    if params.scale is Scale.STATIC:
        return PipelineControl(params.stages, "i_x")
    return GroupControl(params) if params.passes == 1 else PassControl(params)


class GroupControl:
    """A buffer that fills, at most one group that waits for its scale, a divider, and the group that leaves."""

    def __init__(self, params: QuantizerParams) -> None:
        self.beats, self.room = params.group_beats, params.buffer_beats
        self.divide = params.divider_cycles if params.scale is Scale.REAL else None
        self.filled = self.entered = self.left = self.sent = 0
        """beats in the buffer; of the group that enters; still to leave; that have left"""
        self.finding = params.finding_cycles
        self.waiting: int | None = None
        """cycles until what the scale is made of is found; none while no group waits"""
        self.dividing: int | None = None
        """cycles that the divider still needs; none while it has no group"""
        self.pipeline = PipelineControl(params.stages, "")

    def ready(self, valid: Mapping[str, bool], accept: bool) -> dict[str, bool]:
        blocked = self.entered == self.beats - 1 and self.waiting is not None and not self.handed(accept)
        return {"i_x": self.filled < self.room and not blocked}

    def free(self, accept: bool) -> bool:
        """Another group may leave from the next cycle on."""
        return self.left == 0 or (self.left == 1 and self.pipeline.advance(accept))

    def delivered(self, accept: bool) -> bool:
        return self.dividing == 0 and self.free(accept)

    def handed(self, accept: bool) -> bool:
        """The largest magnitude goes on."""
        if self.divide is None:
            return self.waiting == 0 and self.free(accept)
        return self.waiting == 0 and (self.dividing is None or self.delivered(accept))

    def shown(self) -> int | None:
        return self.pipeline.shown()

    def clock(self, taken: Mapping[str, int], accept: bool) -> None:
        handed, delivered = self.handed(accept), self.delivered(accept)
        reading = self.left > 0 and self.pipeline.advance(accept)
        self.pipeline.clock({"": self.sent} if reading else {}, accept)
        self.sent, self.left = self.sent + reading, self.left - reading
        if delivered or (handed and self.divide is None):
            self.left = self.beats
        self._divide(handed, delivered)
        self._fill(bool(taken), reading, handed)

    def _divide(self, handed: bool, delivered: bool) -> None:
        if handed and self.divide is not None:
            self.dividing = self.divide
        elif delivered:
            self.dividing = None
        elif self.dividing:
            self.dividing -= 1

    def _fill(self, taken: bool, reading: bool, handed: bool) -> None:
        self.filled += taken - reading
        self.entered = (self.entered + taken) % self.beats
        if taken and self.entered == 0:
            self.waiting = self.finding
        elif handed:
            self.waiting = None
        elif self.waiting:
            self.waiting -= 1


class PassControl:
    """First and second passes in turn, and between the two no beat until the scale is made."""

    def __init__(self, params: QuantizerParams) -> None:
        self.beats, self.pause = params.group_beats, params.scale_cycles
        self.entered = self.waits = self.sent = 0
        """beats of both passes of the group that enters; cycles until its second may; beats that have left"""
        self.pipeline = PipelineControl(params.piped, "")

    def ready(self, valid: Mapping[str, bool], accept: bool) -> dict[str, bool]:
        return {"i_x": self.waits == 0 and self.pipeline.advance(accept)}

    def shown(self) -> int | None:
        return self.pipeline.shown()

    def clock(self, taken: Mapping[str, int], accept: bool) -> None:
        coded = bool(taken) and self.entered >= self.beats
        self.pipeline.clock({"": self.sent} if coded else {}, accept)
        self.sent += coded
        self.entered = (self.entered + bool(taken)) % (2 * self.beats)
        self.waits = self.pause if taken and self.entered == self.beats else max(self.waits - 1, 0)


def shape_of(params: QuantizerParams, X: NDArray[Any]) -> dict[str, int]:
    """The run's M and K."""
    return {"M": X.shape[0], "K": X.shape[1]}


def sample(
    params: QuantizerParams, rng: np.random.Generator, M: int | None = None, K: int | None = None
) -> tuple[NDArray[Any], ...]:
    """Random X, of a random small shape where none is given; among its groups some of zeros, of small values and, of
    real scales, of values that lie halfway between codes, or nearly so."""
    m, groups = gemm.random_shape(rng, 3, 2)
    shape = (M or m, K or groups * params.group)
    if params.is_float:
        return (_with_corners(params, rng, random_halves(rng, shape)),)
    low, high = signed_range(params.in_bits)
    x = gemm.random_codes(rng, shape, low, high)
    few = rng.integers(0, params.in_bits, x.size // params.group) * (rng.random(x.size // params.group) < 0.5)
    return (_with_corners(params, rng, x >> np.repeat(few, params.group).reshape(shape)),)


def _with_corners(p: QuantizerParams, rng: np.random.Generator, x: NDArray[Any]) -> NDArray[Any]:
    parts = x.reshape(-1, p.group)
    largest_unit = ((1 << (p.digits if p.is_float else p.in_bits - 1)) - 1) // (2 * p.steps)
    if p.scale is Scale.REAL and largest_unit:
        tied = rng.random(len(parts)) < 0.25
        parts[tied] = _ties(p, rng, largest_unit, int(tied.sum()))
    parts[rng.random(len(parts)) < 0.15] = 0
    return x


def _ties(p: QuantizerParams, rng: np.random.Generator, largest_unit: int, groups: int) -> NDArray[Any]:
    """Groups [groups, group] whose values are multiples of half a step; with zero points the lower end is such a one,
    or of FP16 one with which all just miss their ties, to either side."""
    unit = rng.integers(1, largest_unit + 1, (groups, 1)) * rng.choice([-1, 1], (groups, 1))
    halves = rng.integers(0, 2 * p.steps + 1, (groups, p.group))
    if p.zero_points:
        halves[:, -1] = 0
    halves[:, 0] = 2 * p.steps
    if not p.is_float:
        whole: Ints = unit * (halves - rng.integers(0, 2 * p.steps, (groups, 1)) * p.zero_points)
        return whole
    ulp = np.ldexp(1.0, rng.integers(-13, 5, (groups, 1)))
    x: Halves = (unit * halves * ulp).astype(np.float16)
    if p.zero_points and p.group > 1:
        short, sign = rng.random(groups) < 0.5, np.sign(unit)
        x[:, 0] -= (sign * ulp)[:, 0] * short
        x[:, -1] = -sign[:, 0] * np.where(short, 2047 / 2048 * ulp[:, 0], half_of(rng.integers(0, 8 << 10, groups)))
    return x
