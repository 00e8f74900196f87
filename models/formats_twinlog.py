"""Twin-log quantization: the logarithms of both signs' magnitudes, each uniformly (LRQ-DiT, Yang et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.quantized import (
    SCALE_BITS,
    Floats,
    Quantized,
    checked,
    from_rows,
    group_size,
    is_whole,
    require_group,
    rows_of,
    runs,
)
from models.unit import Ints, require

Bools = NDArray[np.bool_]

ETAS = (0.0, 0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""the grid of eta, in units of the group's largest magnitude"""
PERCENTILES = (0.98, 0.99, 0.999, 0.9999, 0.99999, 1.0)
"""the grid of the percentile that is the highest level"""


@dataclass(frozen=True, kw_only=True)
class TwinlogFormat:
    """Twin-log of `bits` bits, 2 to 8: L = log2(|w| + eta) of each sign, uniformly with 2^(bits-1) levels (LRQ-DiT).

    The levels of a sign lie evenly between the smallest L and a percentile of the L of that sign's entries alone; the
    nearest in the log domain is taken, ties to the even level, beyond the ends the end. Zero counts as positive and is
    a level where eta > 0; with eta = 0 it has no logarithm and becomes the smallest positive level. eta and a
    percentile for each sign are those of `ETAS` and `PERCENTILES` with the least squared error in each group: the paper
    searches one of each for a whole layer and eta in absolute numbers, here it is in units of the group's amax, so that
    magnitude does not matter. The percentile's entry is the nearest one, as in the paper, and 1.0 is among them.

    A code is the level's index among its sign's, plus 2^(bits-1) for negative numbers. `tables` [*per group, 2^bits]
    holds the real value of every code, `scales` the groups' amax. A group of zeros has only levels of zero.
    Storage: 16 bits for each of eta, and the first level's logarithm and the step of both signs.
    """

    bits: int = 4
    group: int | None = None

    def __post_init__(self) -> None:
        require(is_whole(self.bits, 2, 8), f"twinlog: bits={self.bits!r} must be a whole number from 2 to 8")
        require_group(self.group)

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        group = group_size(values.shape[axis], self.group)
        blocks = rows_of(values, axis).reshape(-1, group)
        amax = np.abs(blocks).max(axis=1, keepdims=True)
        # a quotient of subnormal numbers could exceed 1 or lose all digits: powers of two first
        exponent = np.frexp(amax)[1]
        units = np.ldexp(blocks, -exponent) / np.where(amax == 0.0, 1.0, np.ldexp(amax, -exponent))
        fits = [_fit(units[run], 1 << (self.bits - 1)) for run in runs(*blocks.shape)]
        codes, levels = (np.concatenate(part) for part in zip(*fits, strict=True))
        tables = (levels * amax).reshape(*_moved(values.shape, axis), -1, levels.shape[1])
        slices = values.size // values.shape[axis]
        return Quantized(
            format=self,
            codes=from_rows(codes.reshape(slices, -1), values, axis),
            scales=from_rows(amax.reshape(slices, -1), values, axis),
            offsets=None,
            axis=axis,
            group=group,
            tables=np.ascontiguousarray(np.moveaxis(tables, -2, axis)),
        )

    def values(self, q: Quantized) -> Floats:
        assert q.tables is not None
        tables = np.moveaxis(q.tables, q.axis, -2).reshape(-1, 1 << self.bits)
        codes = rows_of(q.codes, q.axis).reshape(-1, q.group)
        found = np.take_along_axis(tables, codes, axis=1)
        return from_rows(found.reshape(-1, q.codes.shape[q.axis]), q.codes, q.axis)

    def storage_bits(self, q: Quantized) -> int:
        return self.bits * q.codes.size + 5 * SCALE_BITS * q.scales.size


def _moved(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ranked:
    """The magnitudes of one sign in each group."""

    chosen: Bools
    """[B, g] which entries are of this sign; the others are masked out of everything below"""
    ascending: Floats
    """[B, g], 1.0 in place of the others, at the end"""
    count: Ints
    """[B, 1] how many there are"""
    least: Floats
    """[B, 1] the smallest that is not zero; 1.0 where there is none"""


def _ranked(magnitudes: Floats, chosen: Bools) -> _Ranked:
    return _Ranked(
        chosen=chosen,
        ascending=np.sort(np.where(chosen, magnitudes, 1.0), axis=1),
        count=chosen.sum(axis=1, keepdims=True),
        least=np.where(chosen & (magnitudes > 0.0), magnitudes, 1.0).min(axis=1, keepdims=True),
    )


def _fit(units: Floats, n: int) -> tuple[Ints, Floats]:
    """Codes [B, g] and levels [B, 2 n], positive ones first, of groups [B, g] whose magnitudes are at most 1."""
    magnitudes, negative = np.abs(units), units < 0.0
    ranks = [_ranked(magnitudes, chosen) for chosen in (~negative, negative)]
    best, eta = np.full((len(units), 1), np.inf), np.zeros((len(units), 1))
    percentiles = [np.ones((len(units), 1)), np.ones((len(units), 1))]
    for tried in ETAS:
        found = [_best_percentile(magnitudes, ranked, tried, n) for ranked in ranks]
        error = found[0][0] + found[1][0]
        better = error < best
        best, eta = np.where(better, error, best), np.where(better, tried, eta)
        percentiles = [np.where(better, new, old) for (_, new), old in zip(found, percentiles, strict=True)]
    halves = [_logs(magnitudes, ranked, eta) for ranked in ranks]
    (index, levels), (below, below_levels) = (
        _half(half, ranked, eta, percentile, n)
        for half, ranked, percentile in zip(halves, ranks, percentiles, strict=True)
    )
    return np.where(negative, below + n, index), np.concatenate([levels, -below_levels], axis=1)


def _best_percentile(magnitudes: Floats, ranked: _Ranked, eta: float, n: int) -> tuple[Floats, Floats]:
    """Least squared error of one sign's entries with this eta, and its percentile, each [B, 1]."""
    best, chosen = np.full((len(magnitudes), 1), np.inf), np.ones((len(magnitudes), 1))
    logs = _logs(magnitudes, ranked, eta)
    for percentile in PERCENTILES:
        index, levels = _half(logs, ranked, eta, percentile, n)
        missed = np.take_along_axis(levels, index, axis=1) - magnitudes
        error = np.einsum("bg,bg,bg->b", missed, missed, ranked.chosen)[:, None]
        better = error < best
        best, chosen = np.where(better, error, best), np.where(better, percentile, chosen)
    return best, chosen


def _logs(magnitudes: Floats, ranked: _Ranked, eta: float | Floats) -> tuple[Floats, Floats]:
    """The first level's magnitude [B, 1], and log2(|w| + eta) [B, g] less that of the first level."""
    first = np.where(eta == np.float64(0), ranked.least, ranked.ascending[:, :1])
    return first, np.log2(np.maximum(magnitudes, first) + eta) - np.log2(first + eta)


def _half(
    logs: tuple[Floats, Floats], ranked: _Ranked, eta: float | Floats, percentile: float | Floats, n: int
) -> tuple[Ints, Floats]:
    """Indices [B, g] and levels [B, n] of one sign; indices of the other sign's entries have no meaning."""
    first, above = logs
    place = np.rint(percentile * np.maximum(ranked.count - 1, 0)).astype(np.int64)
    last = np.maximum(np.take_along_axis(ranked.ascending, place, axis=1), first)
    step = np.log2((last + eta) / (first + eta)) / (n - 1)
    levels = np.maximum((first + eta) * 2.0 ** (step * np.arange(n)) - eta, 0.0)
    places = above / np.where(step > 0.0, step, 1.0)
    return np.rint(np.minimum(places, n - 1)).astype(np.int64), levels
