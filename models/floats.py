"""IEEE 754 half and single precision as numbers and as the bit patterns that beats, traces and ports carry."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.unit import InputError, Ints, require

Halves = NDArray[np.float16]
Singles = NDArray[np.float32]

HALF_BITS = 16
SINGLE_BITS = 32
HALF_DIGITS = 11
"""binary digits of a half's mantissa, the implied one among them"""
SINGLE_DIGITS = 24
HALF_UNIT = 25
"""a half is its mantissa as an integer times 2^(biased exponent - HALF_UNIT)"""
INTEGERS_BELOW = 1 << 53
"""which `half` and `single` take: they are compared as double precision"""

ADD_STAGES = 2
"""register stages of a single-precision addition: aligned and added, normalised and rounded"""
ADDER_BITS = (1 + 8 + 28) + SINGLE_BITS
"""flip-flops of both: sign, exponent and magnitude of the sum with its guard bits; the result"""


class ActFormat(StrEnum):
    """What activations are, and with them partial sums."""

    INT = "int"
    """two's-complement integers; sums are integers"""
    FP16 = "fp16"
    """IEEE 754 half precision; sums are single precision"""


def half(name: str, x: NDArray[Any]) -> Halves:
    """`x` as float16, without rounding.

    `x` holds float16, or integers or floats that float16 holds exactly. InputError, naming the first place in `name`,
    for NaN, infinities and values that are no float16.
    """
    return _exact(name, x, np.dtype(np.float16), "FP16")


def single(name: str, x: NDArray[Any]) -> Singles:
    """`x` as float32, without rounding; refusals as in `half`."""
    return _exact(name, x, np.dtype(np.float32), "FP32")


def _exact(name: str, x: NDArray[Any], kind: np.dtype[Any], format_name: str) -> NDArray[Any]:
    known = isinstance(x, np.ndarray) and x.dtype.kind in "iufb"
    require(known, f"{name}: numbers are needed, not {getattr(x, 'dtype', type(x).__name__)}")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = x.astype(kind, copy=False)
    good = np.isfinite(converted)
    if x.dtype != kind:
        good &= converted == x
    if x.dtype.kind in "iu":
        good &= np.abs(converted.astype(np.float64)) < INTEGERS_BELOW
    if not good.all():
        raise InputError(_refusal(name, x, converted, good, format_name))
    return converted


def _refusal(name: str, x: NDArray[Any], converted: NDArray[Any], good: NDArray[np.bool_], format_name: str) -> str:
    place = tuple(int(i) for i in np.argwhere(~good)[0])
    where, value = f"{name}{list(place)}", x[place]
    if not np.isfinite(value):
        return f"{where}: {value} is not finite; {format_name} operands are finite numbers"
    largest = np.finfo(converted.dtype).max
    near = float(np.clip(converted[place], -largest, largest))
    return f"{where}: {value} is no {format_name} number; nearest: {near}"


def half_bits(x: Halves) -> Ints:
    """Bit patterns 0..65535 of float16."""
    return np.ascontiguousarray(x, dtype=np.float16).view(np.uint16).astype(np.int64)


def half_of(bits: Ints) -> Halves:
    """The float16 of bit patterns 0..65535."""
    return bits.astype(np.uint16).view(np.float16)


def single_bits(x: Singles) -> Ints:
    """Bit patterns 0..2^32 - 1 of float32."""
    return np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.int64)


def single_of(bits: Ints) -> Singles:
    """The float32 of bit patterns 0..2^32 - 1."""
    return bits.astype(np.uint32).view(np.float32)


def unpack_half(x: Halves) -> tuple[Ints, Ints]:
    """Signed mantissas of 11 bits and biased exponents, at least 1: x == mantissa * 2.0 ** (exponent - 25).

    The sign of a zero is lost. `x` is finite.
    """
    bits = half_bits(x)
    field = bits >> 10 & 31
    mantissa = (bits & 1023) + ((field > 0).astype(np.int64) << 10)
    return np.where(bits >> 15 == 1, -mantissa, mantissa), np.maximum(field, 1)


def starting_sums(psum: NDArray[Any] | None, shape: tuple[int, int]) -> Singles:
    """Where sums of single precision start: `psum`, with -0 as +0, or zeros. InputError where it has another shape or
    holds what `single` refuses.

    Sums that start so are never -0, so that the zeros of an edge tile change none.
    """
    if psum is None:
        return np.zeros(shape, dtype=np.float32)
    require(np.shape(psum) == shape, f"psum is {np.shape(psum)}, not {shape}")
    return single("psum", psum) + np.float32(0)


def random_halves(rng: np.random.Generator, shape: tuple[int, ...]) -> Halves:
    """Finite halves: of any pattern, near one, the least and the greatest, subnormal, or sparse, chosen at random."""
    patterns = half_of(rng.integers(0, 31 << 10, shape) | rng.integers(0, 2, shape) << 15)
    match rng.integers(6):
        case 0:
            return patterns
        case 1:
            return np.full(shape, np.finfo(np.float16).max) * rng.choice([-1, 1], shape).astype(np.float16)
        case 2:
            return half_of(half_bits(patterns) & 0x83FF)
        case 3:
            return np.where(rng.random(shape) < 0.8, np.float16(0), patterns)
    return rng.standard_normal(shape).astype(np.float16)


def random_singles(rng: np.random.Generator, shape: tuple[int, ...]) -> Singles:
    """Finite singles: of any pattern, near one, or the greatest of either sign."""
    match rng.integers(4):
        case 0:
            return np.full(shape, np.finfo(np.float32).max) * rng.choice([-1, 1], shape).astype(np.float32)
        case 1:
            return rng.standard_normal(shape).astype(np.float32)
    return single_of(rng.integers(0, 255 << 23, shape) | rng.integers(0, 2, shape) << 31)
