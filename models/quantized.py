"""What every number format shares: the record of a quantized array, the contract of a format, groups, scales, steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.bits import Rounding, round_to_int
from models.unit import InputError, Ints, nearest, require

Floats = NDArray[np.float64]

SCALE_BITS = 16
"""Width assumed for a stored real scale, step or offset (FP16) in `bits_per_value`; the arithmetic here is float64."""

LARGEST = 1e300
"""Largest magnitude that is quantized: beyond it a dequantized value could overflow float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """An array in a number format. Its shape is `codes.shape`; groups of `group` consecutive values lie along `axis`.

    "Per group" below is the shape of the array with `axis` replaced by the number of groups G. Fields may share memory:
    none is to be written to.
    """

    format: Format
    codes: Ints
    """what is stored, one code a value: integers, or the bit patterns of small floats; of a codebook every value of a
    vector carries the vector's index"""
    scales: Floats
    """per group; binary-coded formats have a leading dimension of bit planes"""
    offsets: Ints | Floats | None
    """per group: integer zero points of asymmetric integers, the real offset z of binary-coded formats, or None"""
    axis: int
    group: int
    integers: Ints | None = None
    """the weights as hardware sees them, one a value; None where a real number belongs to every group or plane"""
    step: Floats | None = None
    """real value of one integer unit, broadcastable to the array: 1 long along `axis` where all groups share it"""
    scale_codes: Ints | None = None
    """with hardware scales: integers of the shape of `scales`, and scales == scale_codes * step exactly"""
    offset_codes: Ints | None = None
    """per group, with offsets == offset_codes * step exactly (binary-coded with hardware scales)"""
    scale_patterns: Ints | None = None
    """per group, of block-scaled floats: bit patterns of the stored scales (E8M0, E4M3 or UE5M3 bytes); `scales` are
    what `models.minifloats.decode` gives for them, times `tensor_scale` where there is one"""
    tensor_scale: float | None = None
    """second-level scale of the whole array, a float32 (NVFP4)"""
    spans: Floats | None = None
    """per group, of integers with real scales: what the scale is an n-th of, before that quotient is rounded"""
    tables: Floats | None = None
    """what codes look up, as the format's class says: levels of each group, code vectors, or lattice bases"""

    def dequantize(self) -> Floats:
        """The real values that the codes stand for; `integers * step` exactly where both exist."""
        return self.format.values(self)

    @property
    def bits_per_value(self) -> float:
        """Stored bits over the number of values: codes, scales and offsets (`storage_bits` says the widths)."""
        return self.format.storage_bits(self) / self.codes.size


class Format(Protocol):
    """What every options class gives."""

    @property
    def bits(self) -> int:
        """Bits of one code."""
        ...

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        """`x` in this format, one scale for each group along `axis`. InputError on NaN, infinities or empty arrays."""
        ...

    def values(self, q: Quantized) -> Floats:
        """The real values of `q`."""
        ...

    def storage_bits(self, q: Quantized) -> int:
        """Bits to store `q`: `bits` a code, `SCALE_BITS` a real number, and the widths that the class states."""
        ...


def checked(x: ArrayLike, axis: int) -> tuple[Floats, int]:
    """`x` as float64 and `axis` counted from the front."""
    array = np.asarray(x)
    require(
        np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer),
        f"quantize: numbers are needed, not {array.dtype}; convert them to float32 or float64",
    )
    require(array.ndim > 0 and array.size > 0, f"quantize: an array of shape {array.shape} holds no values")
    require(-array.ndim <= axis < array.ndim, f"quantize: axis {axis} is outside -{array.ndim}..{array.ndim - 1}")
    values = array.astype(np.float64, copy=False)
    # two reductions need no memory of the array's size; NaN passes through both and fails the comparison
    if not -LARGEST <= values.min() <= values.max() <= LARGEST:
        place = tuple(int(i) for i in np.argwhere(~(np.abs(values) <= LARGEST))[0])
        raise InputError(f"quantize: {values[place]} at index {place}; finite values of at most {LARGEST:g} are needed")
    return values, axis % array.ndim


def require_within(what: str, values: Floats, largest: float) -> None:
    """InputError naming the first value of larger magnitude."""
    if values.max() > largest or values.min() < -largest:
        place = tuple(int(i) for i in np.argwhere(np.abs(values) > largest)[0])
        raise InputError(
            f"{what}: {values[place]} at index {place} is beyond the largest magnitude; nearest: {largest:.9g}"
        )


# ---------------------------------------------------------------------------------------------------- groups


def group_size(length: int, group: int | None) -> int:
    """The group size along an axis of `length` values; InputError names the nearest divisors otherwise."""
    if group is None or length % group == 0:
        return group or length
    below = max(d for d in range(1, min(group, length) + 1) if length % d == 0)
    above = [d for d in range(group, length + 1) if length % d == 0][:1]
    choices = " or ".join(str(d) for d in (below, *above))
    raise InputError(f"quantize: group={group} does not divide the axis of {length} values; nearest: {choices}")


def split(x: Floats, axis: int, group: int) -> Floats:
    """[G, group, rest] of an array whose `axis` holds G groups."""
    front = np.moveaxis(x, axis, 0)
    return front.reshape(front.shape[0] // group, group, -1)


def join(parts: NDArray[Any], like: NDArray[Any], axis: int) -> NDArray[Any]:
    """Inverse of `split` for [L, rest]: the shape of `like` with `axis` replaced by L."""
    rest = like.shape[:axis] + like.shape[axis + 1 :]
    return np.moveaxis(parts.reshape(parts.shape[0], *rest), 0, axis)


def rows_of(x: NDArray[Any], axis: int) -> NDArray[Any]:
    """[rest, L] of an array in one memory order, values along `axis` next to each other: no copy where they lie so."""
    return np.ascontiguousarray(np.moveaxis(x, axis, -1)).reshape(-1, x.shape[axis])


def from_rows(rows: NDArray[Any], like: NDArray[Any], axis: int) -> NDArray[Any]:
    """Inverse of `rows_of` for [rest, L]: the shape of `like` with `axis` replaced by L, in C order."""
    rest = like.shape[:axis] + like.shape[axis + 1 :]
    return np.ascontiguousarray(np.moveaxis(rows.reshape(*rest, -1), -1, axis))


def runs(count: int, width: int) -> Iterator[slice]:
    """Runs of `count` rows of `width` values, so short that the few arrays worked on stay in the caches."""
    size = max(1, (1 << 15) // width)
    for start in range(0, count, size):
        yield slice(start, start + size)


def extremes(blocks: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Least and greatest [B] of blocks [B, g]."""
    low, high = np.empty((2, len(blocks)), dtype=blocks.dtype)
    for run in runs(*blocks.shape):
        # numpy reduces many short rows several times slower than the few long ones of the transpose
        turned = np.ascontiguousarray(blocks[run].T)
        low[run], high[run] = turned.min(axis=0), turned.max(axis=0)
    return low, high


def columns(x: Floats, axis: int) -> Floats:
    """[L, rest] of an array in one memory order, so that sums round alike however the array lies."""
    return np.ascontiguousarray(split(x, axis, x.shape[axis])[0])


def column_wise(format_: Format, like: NDArray[Any], axis: int, codes: Ints, integers: Ints, step: Floats) -> Quantized:
    """The record of codes and integers [L, rest] with one step [rest] for each slice along the other axes."""
    steps = join(step[None], like, axis)
    return Quantized(
        format=format_,
        codes=join(codes, like, axis),
        scales=steps,
        offsets=None,
        axis=axis,
        group=like.shape[axis],
        integers=join(integers, like, axis),
        step=steps,
    )


# --------------------------------------------------------------------------------------------------- options


def require_group(group: int | None) -> None:
    require(group is None or is_whole(group, 1, 1 << 62), f"format: group={group!r} must be a positive whole number")


def require_clip(clip: float) -> None:
    number = isinstance(clip, int | float | np.floating) and not isinstance(clip, bool)
    require(number and 0.0 < clip <= 1.0, f"format: clip={clip!r} must lie above 0 and up to 1")


def require_truth(what: str, value: Any) -> None:
    require(isinstance(value, bool), f"{what}={value!r} must be True or False")


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether `value` is a whole number (no bool) from `low` to `high`."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(low <= value <= high)


# -------------------------------------------------------------------------------------------------- rounding

FLOAT_ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero", "stochastic")
"""Of magnitudes, and so the same for both signs. Stochastic: floor(x / step + u) steps, u uniform in [0, 1)."""
INT_ROUNDINGS = (*FLOAT_ROUNDINGS, "floor", "truncate")
"""`truncate` is another name of `toward_zero`; stochastic takes the floor of signed numbers."""


def require_rounding(what: str, rounding: Any, rng: Any, choices: Collection[str]) -> None:
    """InputError for a rounding that is none of the choices, and for `rng` with another rounding than stochastic."""
    require(rounding in choices, f"{what}: rounding={rounding!r}; {nearest(str(rounding), choices)}")
    if rounding != "stochastic":
        require(rng is None, f"{what}: rng is for rounding='stochastic', not {str(rounding)!r}; leave it out")
        return
    require_rng(what, rng)


def require_rng(what: str, rng: Any) -> None:
    known = isinstance(rng, np.random.Generator) or is_whole(rng, 0, 1 << 128)
    require(known, f"{what}: rng={rng!r} must be a seed (a whole number of at least 0) or a numpy Generator")


def noise_for(rounding: str, rng: int | np.random.Generator | None, shape: tuple[int, ...]) -> Floats | None:
    """Uniform numbers in [0, 1) for stochastic rounding, None otherwise. A seed gives the same ones at every call."""
    return np.random.default_rng(rng).random(shape) if rounding == "stochastic" else None


def rounded(x: Floats, rounding: str, noise: Floats | None) -> Floats:
    """Whole numbers of x as the rounding says; `noise` is that of `noise_for`."""
    if noise is not None:
        return np.floor(x + noise)
    return round_to_int(x, Rounding.TRUNCATE if rounding == "toward_zero" else Rounding(rounding))


# ------------------------------------------------------------------------------------------ scales and steps


def positive(scale: Floats) -> Floats:
    """Scales with 1 for groups of zeros, and at least the smallest normal number."""
    return np.where(scale == 0.0, 1.0, np.maximum(scale, np.finfo(np.float64).tiny))


def scaled_values(q: Quantized) -> Floats:
    """`integers * step`."""
    assert q.integers is not None
    assert q.step is not None
    return q.integers * q.step


def best_step(
    numbers: Floats, base: Floats, rounded: Callable[[Floats], NDArray[Any]], sixteenths: Iterable[int] = range(16)
) -> Floats:
    """The step [rest] that numbers [n, rest] share: of base * 2^(i / 16) the one of least squared error.

    i runs through `sixteenths`; of equal errors the first wins. `rounded` takes numbers in units of the step to what
    the hardware holds.
    """
    units = numbers / base  # errors in units of the base: squares of real numbers could leave float64's range
    best, least = np.ones(base.shape), np.full(base.shape, np.inf)
    for ratio in (2.0 ** (i / 16) for i in sixteenths):
        error = ((rounded(units / ratio) * ratio - units) ** 2).sum(axis=0)
        best, least = np.where(error < least, ratio, best), np.minimum(error, least)
    return base * best
