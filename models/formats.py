"""Number formats: how real values become the codes that the hardware stores, and what those codes are worth.

    q = get_format("int4", group=128).quantize(x, axis=-1)
    q.codes, q.scales, q.dequantize(), q.bits_per_value

A format is a frozen dataclass of its options with the functions of `Format`; `FORMATS` gives it a name. Here are the
integers and FP16; binary code is in models/formats_bcq.py, powers of two are in models/formats_pot.py.
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

from models.bits import Rounding, round_to_int, signed_range, unsigned_range
from models.formats_bcq import BcqFormat, signs_of, uniform_as_bcq
from models.formats_pot import ApotFormat, PotFormat, apot_levels, nearest_pot, pot_terms
from models.quantized import (
    LARGEST,
    SCALE_BITS,
    Floats,
    Format,
    Quantized,
    best_step,
    checked,
    column_wise,
    columns,
    group_size,
    is_whole,
    join,
    positive,
    require_clip,
    require_group,
    require_truth,
    scaled_values,
    split,
)
from models.unit import InputError, nearest, require

__all__ = [
    "FORMATS",
    "LARGEST",
    "SCALE_BITS",
    "ApotFormat",
    "BcqFormat",
    "BinaryFormat",
    "BipolarFormat",
    "Format",
    "Fp16Format",
    "IntFormat",
    "PotFormat",
    "Quantized",
    "TernaryFormat",
    "apot_levels",
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


@dataclass(frozen=True, kw_only=True)
class IntFormat:
    """Uniform integers of `bits` bits, 2 to 16.

    Symmetric: s = clip * amax / largest code, code = round(x / s). Signed codes lie in [-2^(b-1), 2^(b-1)-1], unsigned
    ones in [0, 2^b-1] and then x must not be negative. Asymmetric: the range [clip * min(x, 0), clip * max(x, 0)] is
    divided into 2^b - 1 steps, zero point = round(-low / s) + lowest code, code = round(x / s) + zero point; zero is
    exact. A group of zeros has scale 1. Codes outside the range saturate (only `clip`, -2^(b-1) of rounding and scales
    that were rounded down lead there). Quotients are formed in float64, then rounded as `rounding` says; zero points
    round to nearest even and saturate as codes do.

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
    rounding: Rounding = Rounding.NEAREST_EVEN
    clip: float = 1.0
    scale_bits: int | None = None

    def __post_init__(self) -> None:
        require(is_whole(self.bits, 2, 16), f"int format: bits={self.bits!r} must be a whole number from 2 to 16")
        require_truth("int format: symmetric", self.symmetric)
        require_truth("int format: signed", self.signed)
        modes = [mode.value for mode in Rounding]
        require(self.rounding in modes, f"int format: rounding={self.rounding!r}; {nearest(str(self.rounding), modes)}")
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
        parts = split(values, axis, group)
        low = np.minimum(parts.min(axis=1, keepdims=True), 0.0) * self.clip
        numbers, step = self._units(self._real_scales(parts, low))
        scale = numbers * step
        zero = np.zeros(scale.shape) if self.symmetric else self._zero_points(low / scale)
        codes = np.clip(round_to_int(parts / scale, self.rounding) + zero, *self.code_range)
        whole = partial(join, like=values, axis=axis)
        long = (values.shape[axis], -1)
        steps = whole(step[:, 0])
        return Quantized(
            format=self,
            codes=whole(codes.reshape(long)).astype(np.int64),
            scales=whole(scale[:, 0]),
            offsets=None if self.symmetric else whole(zero[:, 0]).astype(np.int64),
            axis=axis,
            group=group,
            integers=whole((numbers * (codes - zero)).reshape(long)).astype(np.int64),
            step=steps if steps.shape[axis] == 1 else np.repeat(steps, group, axis),
            scale_codes=None if self.scale_bits is None else whole(numbers[:, 0]).astype(np.int64),
        )

    def _real_scales(self, parts: Floats, low: Floats) -> Floats:
        """[G, 1, rest], 0 for groups of zeros; `low` is where the range of asymmetric codes begins."""
        if self.symmetric:
            amax: Floats = np.abs(parts).max(axis=1, keepdims=True)
            return amax * self.clip / self.code_range[1]
        high: Floats = np.maximum(parts.max(axis=1, keepdims=True), 0.0)
        return (high * self.clip - low) / ((1 << self.bits) - 1)

    def _units(self, scales: Floats) -> tuple[Floats, Floats]:
        """Scales [G, 1, rest] as whole numbers of that shape and a step [G, 1, rest] or, shared, [1, 1, rest]."""
        if self.scale_bits is None:
            return np.ones(scales.shape), positive(scales)
        return _whole_scales(scales, (1 << self.scale_bits) - 1)

    def _zero_points(self, low: Floats) -> Floats:
        """Of ranges that begin at `low` scales below zero."""
        points: Floats = np.clip(np.rint(-low) + self.code_range[0], *self.code_range)
        return points

    def values(self, q: Quantized) -> Floats:
        return scaled_values(q)

    def storage_bits(self, q: Quantized) -> int:
        zeros = 0 if q.offsets is None else q.offsets.size
        codes = self.bits * (q.codes.size + zeros)
        if self.scale_bits is None or q.step is None:
            return codes + SCALE_BITS * q.scales.size
        return codes + self.scale_bits * q.scales.size + SCALE_BITS * q.step.size


def _whole_scales(scales: Floats, largest: int) -> tuple[Floats, Floats]:
    """Scales [G, 1, rest] as whole numbers 1 to `largest` of that shape times a step [1, 1, rest]."""

    def rounded(units: Floats) -> Floats:
        # a group of zeros fits every scale
        return np.where(units == 0.0, 0.0, np.clip(np.rint(units), 1, largest))

    real = scales[:, 0]
    step = best_step(real, positive(real.max(axis=0) / largest), rounded)
    numbers = np.clip(np.rint(real / step), 1, largest).astype(np.int64)
    common = np.gcd.reduce(numbers, axis=0)
    return (numbers // common).astype(np.float64)[:, None], (step * common)[None, None]


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
        bad = np.abs(values) > np.finfo(np.float16).max
        if bad.any():
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            raise InputError(f"fp16: {values[place]} at index {place} is beyond the largest magnitude; nearest: 65504")
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
    "ternary": partial(TernaryFormat),
    "binary": partial(BinaryFormat),
    "bipolar": partial(BipolarFormat),
    "fp16": partial(Fp16Format),
    "bcq": partial(BcqFormat),
    "pot": partial(PotFormat),
    "apot": partial(ApotFormat),
}
"""Name -> options class with the options that the name fixes."""
