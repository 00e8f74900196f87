"""Powers of two: sums of signed powers (scales of ShiftAddLLM), one power a weight, and additive powers of two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.quantized import (
    SCALE_BITS,
    Floats,
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
from models.unit import InputError, Ints, require

# ------------------------------------------------------------------------------ sums of signed powers of two


@cache
def pot_table(num_terms: int, max_shift: int) -> tuple[Ints, Ints, Ints]:
    """All sums of at most `num_terms` signed powers of two, ascending, with signs and shifts [values, num_terms]."""
    require(is_whole(num_terms, 1, 4), f"powers of two: num_terms={num_terms!r} must be a whole number from 1 to 4")
    require(is_whole(max_shift, 0, 30), f"powers of two: max_shift={max_shift!r} must be a whole number from 0 to 30")
    shifts = np.arange(max_shift, -1, -1)
    units = [(int(sign), int(shift)) for shift in shifts for sign in (1, -1)]
    found: dict[int, tuple[tuple[int, int], ...]] = {0: ()}
    last: dict[int, tuple[tuple[int, int], ...]] = {0: ()}
    for _ in range(num_terms):
        # fewest terms first; setdefault keeps the decomposition with the largest leading shift
        grown: dict[int, tuple[tuple[int, int], ...]] = {}
        for value, terms in last.items():
            for sign, shift in units:
                if not terms or shift <= terms[-1][1]:
                    total = value + sign * (1 << shift)
                    if total not in found:
                        grown.setdefault(total, (*terms, (sign, shift)))
        found |= grown
        last = grown
    ordered = sorted(found)
    padded = np.array([found[v] + ((0, 0),) * (num_terms - len(found[v])) for v in ordered], dtype=np.int64)
    return np.array(ordered, dtype=np.int64), padded[..., 0], padded[..., 1]


def pot_terms(values: Ints, num_terms: int, max_shift: int) -> tuple[Ints, Ints]:
    """Signs (-1, 0, +1) and shifts, each [*values.shape, num_terms]: value = sum of sign * 2^shift, shift <= max_shift.

    Canonical: as few terms as possible, largest shift first, then unused terms with sign 0 and shift 0. A shift may
    occur twice where the top one has to. InputError for a value that is no such sum; `nearest_pot` gives one that is.
    """
    _, signs, shifts = pot_table(num_terms, max_shift)
    index = _pot_index(values, num_terms, max_shift)
    return signs[index], shifts[index]


def check_pot(values: Ints, num_terms: int, max_shift: int) -> None:
    """InputError as `pot_terms` raises it, without the terms."""
    _pot_index(values, num_terms, max_shift)


def _pot_index(values: Ints, num_terms: int, max_shift: int) -> Ints:
    """Places of the values in `pot_table`."""
    levels, _, _ = pot_table(num_terms, max_shift)
    wanted = np.asarray(values, dtype=np.int64)
    index = np.clip(np.searchsorted(levels, wanted), 0, levels.size - 1)
    bad = levels[index] != wanted
    if bad.any():
        first = wanted[bad][0]
        raise InputError(
            f"pot_terms: {first} is not a sum of {num_terms} signed powers of two up to 2^{max_shift}; "
            f"nearest: {nearest_pot(first, num_terms, max_shift)}"
        )
    return index


def nearest_pot(values: ArrayLike, num_terms: int, max_shift: int) -> Ints:
    """The nearest integer that is a sum of at most `num_terms` signed 2^0..2^max_shift; ties to the smaller magnitude.

    ShiftAddLLM takes terms greedily, each the residual's rounded log2; its sum is often not the nearest one (3 terms of
    log2 rounding can miss a representable value), so the nearest is searched instead: never a larger error.
    """
    levels, _, _ = pot_table(num_terms, max_shift)
    magnitudes = levels[levels >= 0]
    x = np.asarray(values, dtype=np.float64)
    nearest = magnitudes[nearest_index(np.abs(x), magnitudes)]
    return np.where(x < 0, -nearest, nearest)


def nearest_index(x: Floats, levels: NDArray[Any]) -> Ints:
    """Index of the nearest of the ascending levels; ties to the lower one."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2.0, x, side="left")


# ---------------------------------------------------------------------------------------- one power of two


@dataclass(frozen=True, kw_only=True)
class PotFormat:
    """One signed power of two a weight, -+2^0 to -+2^max_shift steps (ShiftAddNet, ShiftAddViT): a shift of the other
    operand.

    The power is rounded in the log domain, as those papers do: from 2^(p - 1/2) on a magnitude becomes 2^p, so the
    switch lies at a factor sqrt 2 and not at the nearer 1.5; above the largest power it saturates. With `zero`, what
    would round to less than 2^0 becomes 0, otherwise 2^0 (zero itself +2^0). One real step for each slice along the
    other axes: of 16 in the octave around amax / 2^max_shift, where amax keeps the largest power, the one of least
    squared error of the values; 1 for zeros. With `zero` a code is 0 for zero, otherwise 2 (p + 1) + 1 where negative,
    + 0 where not; without it 2 p + 1 or + 0. Storage: `bits` a code, 16 bits a step.
    """

    max_shift: int = 7
    zero: bool = True

    def __post_init__(self) -> None:
        rule = "must be a whole number from 0 to 30"
        require(is_whole(self.max_shift, 0, 30), f"pot: max_shift={self.max_shift!r} {rule}")
        require_truth("pot: zero", self.zero)

    @property
    def bits(self) -> int:
        """The fewest that tell all codes apart."""
        return (2 * self.max_shift + 1 + 2 * self.zero).bit_length()

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        numbers = columns(values, axis)
        base = positive(np.abs(numbers).max(axis=0) / (1 << self.max_shift))
        step = best_step(numbers, base, self._integers, sorted(range(-8, 8), key=abs))
        integers = self._integers(numbers / step)
        return column_wise(self, values, axis, self._codes(integers), integers, step)

    def _integers(self, units: Floats) -> Ints:
        """-+2^p or 0 of numbers in units of the step."""
        switches = np.sqrt(0.5) * 2.0 ** np.arange(self.max_shift + 1)
        place = np.searchsorted(switches, np.abs(units), side="right")
        power = np.int64(1) << np.maximum(place - 1, 0)
        return np.where(units < 0, -power, power) * ((place > 0) | (not self.zero))

    def _codes(self, integers: Ints) -> Ints:
        """p is one less than the bits of 2^p, which frexp counts."""
        places = np.frexp(np.abs(integers).astype(np.float64))[1].astype(np.int64)
        return 2 * (places if self.zero else places - 1) + (integers < 0)

    def values(self, q: Quantized) -> Floats:
        return scaled_values(q)

    def storage_bits(self, q: Quantized) -> int:
        return self.bits * q.codes.size + SCALE_BITS * q.scales.size


# --------------------------------------------------------------------------------- additive powers of two


@cache
def apot_levels(bits: int) -> Ints:
    """The 2^(bits-1) magnitudes of additive powers of two, ascending, in units of the smallest power (Li et al. 2020).

    One bit is the sign. Each two of the others pick a term of {0, three powers of two}, an odd one of {0, one power}.
    Every power of two occurs in exactly one term. 4 bits: {0, 1/2, 1/4, 1/16} + {0, 1/8} = 0, 1, 2, .. 10 sixteenths.
    """
    pairs, odd = divmod(bits - 1, 2)
    # after two powers of every pair comes the odd term's one, then the third powers
    exponents = [[t + 1, pairs + t + 1, 2 * pairs + odd + t + 1] for t in range(pairs)]
    exponents += [[2 * pairs + 1]] * odd
    smallest = max(max(term) for term in exponents)
    levels = np.zeros(1, dtype=np.int64)
    for term in exponents:
        choices = np.array([0] + [1 << (smallest - e) for e in term], dtype=np.int64)
        levels = (levels[:, None] + choices).reshape(-1)
    return np.sort(levels)


@dataclass(frozen=True, kw_only=True)
class ApotFormat:
    """Additive powers of two of `bits` bits, 2 to 8 (Li et al. 2020): sign and one of the magnitudes of `apot_levels`.

    The scale is clip * amax of the group, the real value of the largest magnitude. A code is the signed index of its
    magnitude among the ascending ones, -(2^(b-1)-1) to 2^(b-1)-1; nearest level, ties to the smaller magnitude; values
    beyond the scale saturate. `integers` count the smallest power of two. Storage: 16 bits a scale.
    """

    bits: int = 4
    group: int | None = None
    clip: float = 1.0

    def __post_init__(self) -> None:
        require(is_whole(self.bits, 2, 8), f"apot: bits={self.bits!r} must be a whole number from 2 to 8")
        require_group(self.group)
        require_clip(self.clip)

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        group = group_size(values.shape[axis], self.group)
        parts = split(values, axis, group)
        levels = apot_levels(self.bits)
        scale = positive(np.abs(parts).max(axis=1, keepdims=True) * self.clip)
        index = nearest_index(np.abs(parts) / (scale / levels[-1]), levels)
        negative = parts < 0
        whole = partial(join, like=values, axis=axis)
        scales = whole(scale[:, 0])
        step = (scales if scales.shape[axis] == 1 else np.repeat(scales, group, axis)) / levels[-1]
        flat = (values.shape[axis], -1)
        return Quantized(
            format=self,
            codes=whole(np.where(negative, -index, index).reshape(flat)),
            scales=scales,
            offsets=None,
            axis=axis,
            group=group,
            integers=whole(np.where(negative, -levels[index], levels[index]).reshape(flat)),
            step=step,
        )

    def values(self, q: Quantized) -> Floats:
        return scaled_values(q)

    def storage_bits(self, q: Quantized) -> int:
        return self.bits * q.codes.size + SCALE_BITS * q.scales.size
