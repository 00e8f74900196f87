"""The one home of overflow, rounding and signed packing."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.unit import InputError, Ints, require


class Overflow(StrEnum):
    """What an adder does with a sum that its register cannot hold."""

    WRAP = "wrap"
    """keep the low bits (two's complement)"""
    SATURATE = "saturate"
    """stop at the nearest value that can be held"""


class Rounding(StrEnum):
    """How a real number becomes an integer."""

    NEAREST_EVEN = "nearest_even"
    """ties to the even neighbour (IEEE 754 roundTiesToEven)"""
    NEAREST_AWAY = "nearest_away"
    """ties away from zero (the MX reference's "nearest")"""
    FLOOR = "floor"
    TRUNCATE = "truncate"
    """towards zero"""


def signed_range(bits: int) -> tuple[int, int]:
    """Smallest and largest value of a two's-complement number of `bits` bits."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def unsigned_range(bits: int) -> tuple[int, int]:
    """Smallest and largest value of an unsigned number of `bits` bits."""
    return 0, (1 << bits) - 1


def signed_bits(low: int, high: int) -> int:
    """Width of the smallest two's-complement number that holds every integer from `low` to `high`."""
    return max(high.bit_length(), (~low).bit_length() if low < 0 else 0) + 1


def wrap(x: Ints, bits: int) -> Ints:
    """`x` modulo 2^bits as a two's-complement number; bits 1 to 63, `x` any int64."""
    half, mask = np.int64(1 << (bits - 1)), np.int64((1 << bits) - 1)
    return ((x + half) & mask) - half


def saturate(x: Ints, bits: int) -> Ints:
    """`x` limited to what `bits` two's-complement bits hold."""
    low, high = signed_range(bits)
    return np.clip(x, low, high)


def fit(x: Ints, bits: int, overflow: Overflow) -> Ints:
    """`x` as a register of `bits` bits keeps it."""
    return wrap(x, bits) if overflow is Overflow.WRAP else saturate(x, bits)


def round_to_int(x: NDArray[np.floating[Any]], rounding: Rounding) -> NDArray[np.float64]:
    """Integer-valued float64 of `x` under the named rounding mode."""
    x64 = np.asarray(x, dtype=np.float64)
    match rounding:
        case Rounding.NEAREST_EVEN:
            return np.rint(x64)
        case Rounding.NEAREST_AWAY:
            # not floor(|x| + 0.5): that sum rounds up for 0.49999999999999994
            whole = np.trunc(x64)
            return whole + np.where(np.abs(x64 - whole) >= 0.5, np.sign(x64), 0.0)
        case Rounding.FLOOR:
            return np.floor(x64)
        case Rounding.TRUNCATE:
            return np.trunc(x64)
    raise InputError(f"rounding {rounding!r} is unknown")


def require_codes(what: str, x: NDArray[Any], bits: int, *, signed: bool = True) -> None:
    """InputError naming the first place in `what` unless `x` holds integers of `bits` bits."""
    require(np.issubdtype(x.dtype, np.integer) or x.dtype == np.bool_, f"{what}: integers are needed, not {x.dtype}")
    if x.size:
        low, high = signed_range(bits) if signed else unsigned_range(bits)
        least, most = int(x.min()), int(x.max())
        if not low <= least <= most <= high:
            place = tuple(int(i) for i in np.argwhere((x < low) | (x > high))[0])
            where = f"{what}{list(place)}" if place else what
            raise InputError(f"{where}: {int(x[place])} is outside {low}..{high} ({bits} bits)")


def check_codes(what: str, x: NDArray[Any], bits: int, *, signed: bool = True) -> Ints:
    """`x` as int64; InputError naming `what` unless it holds integers of `bits` bits."""
    require_codes(what, x, bits, signed=signed)
    return x.astype(np.int64, copy=False)


def to_bits(values: Ints, width: int) -> NDArray[np.uint8]:
    """The low `width` bits of each value, least significant first, on a new last axis."""
    return ((values[..., None] >> np.arange(width, dtype=np.int64)) & 1).astype(np.uint8)


def pack_bits(bits: NDArray[np.uint8]) -> list[int]:
    """Each row of bits (least significant first) as one Python integer of any width."""
    packed = np.packbits(bits, axis=-1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]
