"""Floating-point formats of at most eight bits, and the fixed-point element of MXINT8: what codes are worth, and back.

    codes = encode("e4m3", x)
    decode("e4m3", codes), decode("e8m0", scale_codes), decode("ue5m3", scale_codes)

E2M1, E2M3, E3M2, E4M3, E5M2, E8M0 and INT8 are those of the OCP Microscaling Formats (MX) Specification 1.0 and the OCP
8-bit Floating Point Specification 1.0. UE5M3 is the unsigned scale of FP4 blocks without a scale of the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.bits import require_codes
from models.quantized import (
    FLOAT_ROUNDINGS,
    Floats,
    checked,
    noise_for,
    require_rounding,
    rounded,
    runs,
)
from models.unit import Ints, nearest, require


@dataclass(frozen=True, kw_only=True)
class MiniFloat:
    """Sign (unless unsigned), exponent field, mantissa field; subnormals where the exponent field is 0.

    Above `top`, the largest code of a finite magnitude, lie infinity (`infinity`, one code) and NaNs.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    top: int
    signed: bool = True
    infinity: bool = False

    @property
    def bits(self) -> int:
        return self.exponent_bits + self.mantissa_bits + self.signed

    @property
    def least_exponent(self) -> int:
        """That of the smallest normal number, and of the subnormal ones."""
        return 1 - self.bias

    @property
    def largest(self) -> float:
        return _magnitude(self, self.top)

    @property
    def largest_exponent(self) -> int:
        return (self.top >> self.mantissa_bits) - self.bias


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Two's-complement integers of `bits` bits in units of 2^-fraction_bits."""

    bits: int
    fraction_bits: int

    @property
    def largest(self) -> float:
        return ((1 << (self.bits - 1)) - 1) / (1 << self.fraction_bits)

    @property
    def largest_exponent(self) -> int:
        return self.bits - 2 - self.fraction_bits


E2M1 = MiniFloat(exponent_bits=2, mantissa_bits=1, bias=1, top=7)
E2M3 = MiniFloat(exponent_bits=2, mantissa_bits=3, bias=1, top=31)
E3M2 = MiniFloat(exponent_bits=3, mantissa_bits=2, bias=3, top=31)
E4M3 = MiniFloat(exponent_bits=4, mantissa_bits=3, bias=7, top=126)
E5M2 = MiniFloat(exponent_bits=5, mantissa_bits=2, bias=15, top=123, infinity=True)
UE5M3 = MiniFloat(exponent_bits=5, mantissa_bits=3, bias=15, top=254, signed=False)
INT8 = FixedPoint(bits=8, fraction_bits=6)

ELEMENTS: Mapping[str, MiniFloat | FixedPoint] = {
    "e2m1": E2M1,
    "e2m3": E2M3,
    "e3m2": E3M2,
    "e4m3": E4M3,
    "e5m2": E5M2,
    "ue5m3": UE5M3,
    "int8": INT8,
}
"""What `encode` takes; `decode` also takes "e8m0"."""

E8M0_BIAS = 127
E8M0_TOP = 254
"""code of the largest power of two, 2^127; 255 is NaN"""


# -------------------------------------------------------------------------------------------------- decoding


def decode(name: str, codes: ArrayLike) -> Floats:
    """The exact real values of codes; NaN and infinities where the format has them.

    Codes are bit patterns, 0 to 2^bits - 1; those of "int8" are the integers -128 to 127, worth 1/64 each. InputError
    for an unknown name or the first code outside.
    """
    choices = (*ELEMENTS, "e8m0")
    require(name in choices, f"decode: no format {name!r}; {nearest(name, choices)}")
    array = np.asarray(codes)
    kind = ELEMENTS.get(name)
    signed = isinstance(kind, FixedPoint)
    require_codes(f"decode {name}", array, 8 if kind is None else kind.bits, signed=signed)
    # a negative index counts from the end, which is two's complement
    return code_values(name)[array.astype(np.intp, copy=False)]


@cache
def code_values(name: str) -> Floats:
    """Values of all codes; of "int8" those of 0 to 127 and then of -128 to -1. Not to be written to."""
    kind = ELEMENTS.get(name)
    if kind is None:
        values = np.append(2.0 ** np.arange(-E8M0_BIAS, E8M0_TOP - E8M0_BIAS + 1), np.nan)
    elif isinstance(kind, FixedPoint):
        half = 1 << (kind.bits - 1)
        values = np.roll(np.arange(-half, half), half) / (1 << kind.fraction_bits)
    else:
        magnitudes = np.array([_magnitude(kind, code) for code in range(1 << (kind.bits - kind.signed))])
        values = np.concatenate([magnitudes, -magnitudes]) if kind.signed else magnitudes
    values.setflags(write=False)
    return values


def _magnitude(kind: MiniFloat, code: int) -> float:
    """Of a code without its sign."""
    if code > kind.top:
        return float("inf") if kind.infinity and code == kind.top + 1 else float("nan")
    field, fraction = divmod(code, 1 << kind.mantissa_bits)
    implied = (1 << kind.mantissa_bits) if field else 0
    return float((fraction + implied) * 2.0 ** (max(field, 1) - kind.bias - kind.mantissa_bits))


# -------------------------------------------------------------------------------------------------- encoding


def encode(
    name: str, x: ArrayLike, rounding: str = "nearest_even", rng: int | np.random.Generator | None = None
) -> Ints:
    """Codes of real numbers, rounded once from float64; magnitudes beyond the largest saturate.

    Zeros, and what rounds to zero, keep their sign. InputError for an unknown name, NaN, infinities, and for negative
    numbers in an unsigned format.
    """
    require(name in ELEMENTS, f"encode: no format {name!r}; {nearest(name, ELEMENTS)}")
    require_rounding(f"encode {name}", rounding, rng, FLOAT_ROUNDINGS)
    kind = ELEMENTS[name]
    values, _ = checked(x, -1)
    unsigned = isinstance(kind, MiniFloat) and not kind.signed
    require(not unsigned or values.min() >= 0, f"encode {name}: {values.min()} is negative; the format has no sign")
    flat = np.ascontiguousarray(values).reshape(-1, 1)
    noise = noise_for(rounding, rng, flat.shape)
    return encode_blocks(kind, flat, np.ones(flat.shape), rounding, noise).reshape(values.shape)


def encode_blocks(
    kind: MiniFloat | FixedPoint, blocks: Floats, unit: Floats, rounding: str, noise: Floats | None
) -> Ints:
    """Codes of blocks [B, g] / unit [B, 1], the quotient formed in float64; `noise` [B, g] for stochastic rounding."""
    codes = np.empty(blocks.shape, dtype=np.int64)
    for run in runs(*blocks.shape):
        with np.errstate(over="ignore"):  # an infinite quotient saturates
            quotient = blocks[run] / unit[run]
        codes[run] = _codes(kind, quotient, rounding, None if noise is None else noise[run])
    return codes


def _codes(kind: MiniFloat | FixedPoint, x: Floats, rounding: str, noise: Floats | None) -> Ints:
    if isinstance(kind, MiniFloat):
        codes = _magnitude_codes(kind, np.abs(x), rounding, noise)
        codes += np.signbit(x).astype(np.int64) << (kind.bits - 1)
        return codes
    half = 1 << (kind.bits - 1)
    units = np.clip(x, -2.0 * kind.largest, 2.0 * kind.largest) * (1 << kind.fraction_bits)
    # of magnitudes, as in the floats; a tie at the most negative integer saturates alike
    whole = np.copysign(rounded(np.abs(units), rounding, noise), units)
    return np.clip(whole, -half, half - 1).astype(np.int64)


def _magnitude_codes(kind: MiniFloat, x: Floats, rounding: str, noise: Floats | None) -> Ints:
    """Codes of magnitudes, at most `top`.

    In units of the last place of its binade a magnitude is a whole number up to 2^(mantissa bits + 1), and codes count
    these units through all binades: what rounds up to the next binade has that binade's first code.
    """
    x = np.minimum(x, 2.0 * kind.largest)
    exponent = np.maximum((x.view(np.int64) >> 52) - 1023, kind.least_exponent)
    # 2^(mantissa bits - exponent) from its own bits; products with it are exact
    units = x * ((1023 + kind.mantissa_bits - exponent) << 52).view(np.float64)
    codes = rounded(units, rounding, noise).astype(np.int64)
    codes += (exponent - kind.least_exponent) << kind.mantissa_bits
    return np.minimum(codes, kind.top)


# --------------------------------------------------------------------------------------------------- packing


def pack_nibbles(codes: Ints) -> NDArray[np.uint8]:
    """Codes 0 to 15 two in a byte along the last axis, the first in the low nibble. InputError for an odd number."""
    require_codes("pack_nibbles", codes, 4, signed=False)
    require(codes.shape[-1] % 2 == 0, f"pack_nibbles: {codes.shape[-1]} codes along the last axis are not even many")
    return (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)


def unpack_nibbles(packed: NDArray[np.uint8]) -> Ints:
    """Inverse of `pack_nibbles`."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1).astype(np.int64)
