"""Number formats: how real values become the codes that the hardware stores, and what those codes are worth.

    q = get_format("int4", group=128).quantize(x, axis=-1)
    q.codes, q.scales, q.dequantize(), q.bits_per_value

A format is a frozen dataclass of its options with the functions of `Format`; `FORMATS` gives it a name. Bits per value
below are those of 4096 x 4096 values along either axis with the options as they are, scales counted:

    name          bits     values                                                         file
    int2..int8    b+0.004  uniform integers, symmetric or not, groups, whole scales       here
    fp8_e4m3      8.004    E4M3 or E5M2 times a real scale of the array,                  models/formats_fp.py
    fp8_e5m2      8.004    a slice or a group
    mxfp4         4.25     E2M1 in blocks of 32, the scale a power of two                 models/formats_fp.py
    mxfp6_e2m3    6.25     E2M3, as above
    mxfp6_e3m2    6.25     E3M2
    mxfp8_e4m3    8.25     E4M3
    mxfp8_e5m2    8.25     E5M2
    mxint8        8.25     8-bit integers / 64
    nvfp4         4.50     E2M1 in blocks of 16, E4M3 scales, a scale of the array        models/formats_fp.py
    fp4_ue5m3     4.50     E2M1 in blocks of 16, unsigned E5M3 scales                     models/formats_fp.py
    bcq           4.016    sums of scaled bit planes                                      models/formats_bcq.py
    pot           5.004    one signed power of two                                        models/formats_pot.py
    apot          4.004    sums of powers of two                                          models/formats_pot.py
    ternary       1.6      -1, 0, 1 times the mean magnitude                              here
    binary        1.004    -1, 1 times the mean magnitude                                 here
    bipolar       4.004    odd integers                                                   here
    twinlog       4.020    logarithms of both signs' magnitudes                           models/formats_twinlog.py
    codebook      4.004    pairs of values from 256 learned ones                          models/formats_codebook.py
    lattice       4.000    whole combinations of a learned basis, 8 values each           models/formats_codebook.py
    fp16          16       IEEE 754 half precision                                        here
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from models.bits import Rounding, signed_range, unsigned_range
from models.formats_bcq import BcqFormat, signs_of, uniform_as_bcq
from models.formats_codebook import CodebookFormat, LatticeFormat
from models.formats_fp import Fp4Ue5m3Format, Fp8Format, MxFormat, Nvfp4Format
from models.formats_pot import ApotFormat, PotFormat, apot_levels, check_pot, nearest_pot, pot_terms
from models.formats_twinlog import TwinlogFormat
from models.minifloats import decode, encode
from models.quantized import (
    INT_ROUNDINGS,
    LARGEST,
    SCALE_BITS,
    Floats,
    Format,
    Quantized,
    best_step,
    checked,
    column_wise,
    columns,
    extremes,
    from_rows,
    group_size,
    is_whole,
    noise_for,
    positive,
    require_clip,
    require_group,
    require_rounding,
    require_truth,
    require_within,
    rounded,
    rows_of,
    runs,
    scaled_values,
)
from models.unit import Ints, nearest, require

__all__ = [
    "FORMATS",
    "LARGEST",
    "SCALE_BITS",
    "ApotFormat",
    "BcqFormat",
    "BinaryFormat",
    "BipolarFormat",
    "CodebookFormat",
    "Format",
    "Fp4Ue5m3Format",
    "Fp8Format",
    "Fp16Format",
    "IntFormat",
    "LatticeFormat",
    "MxFormat",
    "Nvfp4Format",
    "PotFormat",
    "Quantized",
    "TernaryFormat",
    "TwinlogFormat",
    "apot_levels",
    "check_pot",
    "decode",
    "encode",
    "get_format",
    "nearest_pot",
    "pot_terms",
    "signs_of",
    "uniform_as_bcq",
]


def get_format(name: str, **options: Any) -> Format:
    """The format of that name with these options; InputError names the nearest name or option."""
    require(name in FORMATS, f"no number format {name!r}; {nearest(name, FORMATS)}")
    make = FORMATS[name]
    free = [f.name for f in dataclasses.fields(typing.cast(type, make.func)) if f.name not in make.keywords]
    for option in options:
        require(option in free, f"format {name}: no option {option!r}; {nearest(option, free)}")
    return typing.cast(Format, make(**options))


# ------------------------------------------------------------------------------------------------- integers


TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, kw_only=True)
class IntFormat:
    """Uniform integers of `bits` bits, 2 to 16.

    Symmetric: s = clip * amax / largest code, code = round(x / s). Signed codes lie in [-2^(b-1), 2^(b-1)-1], unsigned
    ones in [0, 2^b-1] and then x must not be negative. Asymmetric: the range [clip * min(x, 0), clip * max(x, 0)] is
    divided into 2^b - 1 steps, zero point = round(-low / s) + lowest code, code = round(x / s) + zero point; zero is
    exact. A group of zeros has scale 1. Codes outside the range saturate (only `clip`, -2^(b-1) of rounding, code and
    zero point both rounded up, and scales that were rounded down lead there). Quotients are formed in float64, x times
    the number of steps over their span, then rounded as `rounding` says: nearest_even, nearest_away, floor, truncate
    (or toward_zero), or stochastic with `rng`, a seed (the same draws at every call) or a numpy Generator. Zero points
    round to nearest even and saturate as codes do. Where x times the number of steps is not exact, floor and truncate
    may give the end of a span one code less.

    Hardware scales: with `scale_bits`, 1 to 16, the groups' scales are the integers 1 to 2^scale_bits - 1 nearest to
    them in units of one real `step` in each slice along the other axes, the best of 16 in one octave by the scales'
    squared error; a factor common to a slice's integers goes into its step. Zero points and codes follow the rounded
    scales, and integers = scale code * (code - zero point).
    Storage: `bits` a zero point, 16 bits a scale, or `scale_bits` a scale and 16 bits a step.
    """

    bits: int
    group: int | None = None
    symmetric: bool = True
    signed: bool = True
    rounding: str = Rounding.NEAREST_EVEN
    clip: float = 1.0
    scale_bits: int | None = None
    rng: int | np.random.Generator | None = None

    def __post_init__(self) -> None:
        require(is_whole(self.bits, 2, 16), f"int format: bits={self.bits!r} must be a whole number from 2 to 16")
        require_truth("int format: symmetric", self.symmetric)
        require_truth("int format: signed", self.signed)
        require_rounding("int format", self.rounding, self.rng, INT_ROUNDINGS)
        require_group(self.group)
        require_clip(self.clip)
        rule = "must be a whole number from 1 to 16"
        held = self.scale_bits is None or is_whole(self.scale_bits, 1, 16)
        require(held, f"int format: scale_bits={self.scale_bits!r} {rule}")

    @property
    def code_range(self) -> tuple[int, int]:
        """Lowest and highest code."""
        return signed_range(self.bits) if self.signed else unsigned_range(self.bits)

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        if self.symmetric and not self.signed:
            least = float(values.min())
            require(least >= 0.0, f"int format: {least} has no unsigned symmetric code; take symmetric=False")
        group = group_size(values.shape[axis], self.group)
        rows = rows_of(values, axis)
        blocks = rows.reshape(-1, group)
        low, high = (end.reshape(len(rows), -1) for end in extremes(blocks))
        spans = self._spans(low, high)
        numbers, step = self._units(spans / self._levels)
        scale = numbers * step
        over = self.quotient(spans if self.scale_bits is None else None, scale)
        zero = np.zeros(scale.shape) if self.symmetric else self._zero_points(np.minimum(low, 0.0) * self.clip, *over)
        codes = self._codes(blocks, *(each.reshape(-1, 1) for each in (*over, zero)))
        whole = partial(from_rows, like=values, axis=axis)
        joined, steps = whole(codes), whole(step)
        offsets = None if self.symmetric else whole(zero).astype(np.int64)
        plain = self.symmetric and self.scale_bits is None
        return Quantized(
            format=self,
            codes=joined,
            scales=whole(scale),
            offsets=offsets,
            axis=axis,
            group=group,
            integers=joined if plain else whole(_integers(codes, numbers.reshape(-1, 1), zero.reshape(-1, 1))),
            step=steps if steps.shape[axis] == 1 else np.repeat(steps, group, axis),
            scale_codes=None if self.scale_bits is None else whole(numbers).astype(np.int64),
            spans=whole(spans) if self.scale_bits is None else None,
        )

    @property
    def _levels(self) -> int:
        """Scales that a group's span is worth, n."""
        return self.code_range[1] if self.symmetric else (1 << self.bits) - 1

    def _spans(self, low: Floats, high: Floats) -> Floats:
        """What `_levels` scales span [R, G], of the least and greatest values; 0 for groups of zeros."""
        if self.symmetric:
            return np.maximum(high, -low) * self.clip
        return np.maximum(high, 0.0) * self.clip - np.minimum(low, 0.0) * self.clip

    def quotient(self, spans: Floats | None, scale: Floats) -> tuple[Floats, Floats]:
        """By what values are multiplied and then divided, each of the shape of `scale`, to be counted in scales.

        x n / span is rounded once where x n is exact, so that a tie of such values is one; x / (span / n) may miss it.
        No product overflows: values are below LARGEST. Without spans the scale is all there is.
        """
        if spans is None:
            return np.ones(scale.shape), scale
        n = np.full(scale.shape, float(self._levels))
        return n, np.where(spans < n * TINY, n * scale, spans)

    def _units(self, scales: Floats) -> tuple[Floats, Floats]:
        """Scales [R, G] as whole numbers of that shape and a step [R, G] or, shared, [R, 1]."""
        if self.scale_bits is None:
            return np.ones(scales.shape), positive(scales)
        return _whole_scales(scales, (1 << self.scale_bits) - 1)

    def _zero_points(self, low: Floats, factor: Floats, divisor: Floats) -> Floats:
        """Of ranges that begin at `low`, which is not above 0."""
        points: Floats = np.clip(np.rint(-low * factor / divisor) + self.code_range[0], *self.code_range)
        return points

    def _codes(self, blocks: Floats, factor: Floats, divisor: Floats, zero: Floats) -> Ints:
        """Codes [B, g] of blocks [B, g] with what they are multiplied and divided by and zero points [B, 1]."""
        noise = noise_for(self.rounding, self.rng, blocks.shape)
        codes = np.empty(blocks.shape, dtype=np.int64)
        for run in runs(*blocks.shape):
            counted = blocks[run] * factor[run]
            counted /= divisor[run]
            whole = rounded(counted, self.rounding, None if noise is None else noise[run])
            whole += zero[run]
            codes[run] = np.clip(whole, *self.code_range, out=whole)
        return codes

    def values(self, q: Quantized) -> Floats:
        return scaled_values(q)

    def storage_bits(self, q: Quantized) -> int:
        zeros = 0 if q.offsets is None else q.offsets.size
        codes = self.bits * (q.codes.size + zeros)
        if self.scale_bits is None or q.step is None:
            return codes + SCALE_BITS * q.scales.size
        return codes + self.scale_bits * q.scales.size + SCALE_BITS * q.step.size


def _whole_scales(scales: Floats, largest: int) -> tuple[Floats, Floats]:
    """Scales [R, G] as whole numbers 1 to `largest` of that shape times a step [R, 1]."""

    def rounded_scales(units: Floats) -> Floats:
        # a group of zeros fits every scale
        return np.where(units == 0.0, 0.0, np.clip(np.rint(units), 1, largest))

    real = np.ascontiguousarray(scales.T)
    step = best_step(real, positive(real.max(axis=0) / largest), rounded_scales)
    numbers = np.clip(np.rint(real / step), 1, largest).astype(np.int64)
    common = np.gcd.reduce(numbers, axis=0)
    return (numbers // common).astype(np.float64).T, (step * common)[:, None]


def _integers(codes: Ints, numbers: Floats, zero: Floats) -> Ints:
    """numbers * (codes - zero) of codes [B, g] with whole scales and zero points [B, 1]."""
    integers = codes - zero.astype(np.int64)
    integers *= numbers.astype(np.int64)
    return integers


@dataclass(frozen=True, kw_only=True)
class TernaryFormat:
    """-1, 0 or +1 times s = mean |x| (BitNet b1.58, Ma et al. 2024; Scalable MatMul-free Language Modeling, 2024).

    code = clamp(round(x / s), -1, 1), ties to even: half of s becomes 0. `scale`: "tensor", one s for the whole array
    as in the papers, or "column", one for each slice along the other axes. s = 1 where all values are zero. `packing`
    is how codes are stored: "5 in 8", five in a byte (3^5 = 243), the last byte filled up, or "2 bits" each. Storage:
    these, and 16 bits an s.
    """

    scale: str = "tensor"
    packing: str = "5 in 8"

    def __post_init__(self) -> None:
        for name, choices in (("scale", ("tensor", "column")), ("packing", ("5 in 8", "2 bits"))):
            value = getattr(self, name)
            require(value in choices, f"ternary: {name}={value!r}; {nearest(str(value), choices)}")

    @property
    def bits(self) -> int:
        return 2

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        numbers = columns(values, axis)
        each = np.abs(numbers) if self.scale == "column" else np.abs(numbers).reshape(-1, 1)
        step = np.broadcast_to(positive(_mean(each)), numbers.shape[1:])
        codes = np.clip(np.rint(numbers / step), -1, 1).astype(np.int64)
        return column_wise(self, values, axis, codes, codes, step)

    def values(self, q: Quantized) -> Floats:
        return scaled_values(q)

    def storage_bits(self, q: Quantized) -> int:
        codes = 8 * -(-q.codes.size // 5) if self.packing == "5 in 8" else 2 * q.codes.size
        return codes + SCALE_BITS * (1 if self.scale == "tensor" else q.scales.size)


@dataclass(frozen=True, kw_only=True)
class BinaryFormat:
    """sign(x) times alpha = mean |x| of each slice along the other axes: the least squared error (XNOR-Net, 2016).

    Code 1 is +1 and code 0 is -1; zero counts as positive. A slice of zeros has alpha = 0, as nothing else gives it
    back. Storage: a bit a code, 16 bits an alpha.
    """

    @property
    def bits(self) -> int:
        return 1

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        numbers = columns(values, axis)
        codes = (numbers >= 0.0).astype(np.int64)
        return column_wise(self, values, axis, codes, 2 * codes - 1, _mean(np.abs(numbers)))

    def values(self, q: Quantized) -> Floats:
        return scaled_values(q)

    def storage_bits(self, q: Quantized) -> int:
        return q.codes.size + SCALE_BITS * q.scales.size


def _mean(magnitudes: Floats) -> Floats:
    """Means [rest] of [n, rest], summed in units of a power of two so that sums stay in float64's range."""
    exponent = np.frexp(magnitudes.max(axis=0))[1]
    means: Floats = np.ldexp(np.ldexp(magnitudes, -exponent).mean(axis=0), exponent)
    return means


@dataclass(frozen=True, kw_only=True)
class BipolarFormat:
    """bipolar-INT of `bits` bits, 1 to 16: sum_i (2 b_i - 1) 2^i over the code's bits b_i (Ma et al., "Efficient
    Arbitrary Precision Acceleration for Large Language Models on GPU Tensor Cores").

    The values are the odd numbers from -(2^b - 1) to 2^b - 1, and zero is none of them; integer = 2 code - (2^b - 1).
    x / s goes to the nearest odd number, an even one to the odd one above it, with s = amax / (2^b - 1) in each slice
    along the other axes. A slice of zeros has s = 0, as nothing else gives it back. Storage: 16 bits an s.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        require(is_whole(self.bits, 1, 16), f"bipolar: bits={self.bits!r} must be a whole number from 1 to 16")

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        numbers, largest = columns(values, axis), (1 << self.bits) - 1
        amax = np.abs(numbers).max(axis=0)
        divisor = positive(amax / largest)
        integers = 2 * np.floor(numbers / divisor / 2.0).astype(np.int64) + 1
        return column_wise(self, values, axis, (integers + largest) >> 1, integers, np.where(amax == 0.0, 0.0, divisor))

    def values(self, q: Quantized) -> Floats:
        return scaled_values(q)

    def storage_bits(self, q: Quantized) -> int:
        return self.bits * q.codes.size + SCALE_BITS * q.scales.size


# ------------------------------------------------------------------------------------------- floating point


@dataclass(frozen=True, kw_only=True)
class Fp16Format:
    """IEEE 754 half precision: to nearest even, subnormals kept. A code is the bit pattern of the number, 0 to 65535.

    InputError for magnitudes above 65504. No scale belongs to it (`scales` are 1, nothing is stored for them), and its
    values are no integers times a step.
    """

    @property
    def bits(self) -> int:
        return 16

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        require_within("fp16", values, float(np.finfo(np.float16).max))
        return Quantized(
            format=self,
            codes=values.astype(np.float16).view(np.uint16).astype(np.int64),
            scales=np.ones([1 if i == axis else n for i, n in enumerate(values.shape)]),
            offsets=None,
            axis=axis,
            group=values.shape[axis],
        )

    def values(self, q: Quantized) -> Floats:
        return q.codes.astype(np.uint16).view(np.float16).astype(np.float64)

    def storage_bits(self, q: Quantized) -> int:
        return self.bits * q.codes.size


FORMATS: Mapping[str, partial[Any]] = {
    **{f"int{bits}": partial(IntFormat, bits=bits) for bits in range(2, 9)},
    "fp8_e4m3": partial(Fp8Format, element="e4m3"),
    "fp8_e5m2": partial(Fp8Format, element="e5m2"),
    "mxfp4": partial(MxFormat, element="e2m1"),
    "mxfp6_e2m3": partial(MxFormat, element="e2m3"),
    "mxfp6_e3m2": partial(MxFormat, element="e3m2"),
    "mxfp8_e4m3": partial(MxFormat, element="e4m3"),
    "mxfp8_e5m2": partial(MxFormat, element="e5m2"),
    "mxint8": partial(MxFormat, element="int8"),
    "nvfp4": partial(Nvfp4Format),
    "fp4_ue5m3": partial(Fp4Ue5m3Format),
    "bcq": partial(BcqFormat),
    "pot": partial(PotFormat),
    "apot": partial(ApotFormat),
    "ternary": partial(TernaryFormat),
    "binary": partial(BinaryFormat),
    "bipolar": partial(BipolarFormat),
    "twinlog": partial(TwinlogFormat),
    "codebook": partial(CodebookFormat),
    "lattice": partial(LatticeFormat),
    "fp16": partial(Fp16Format),
}
"""Name -> options class with the options that the name fixes."""
