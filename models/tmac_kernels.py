"""Look-ups whose order of rounding matters, compiled by numba."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from models.gemm_kernels import compiled

LANES = 256
"""rows of A worked on together: their tables stay in the second-level cache, and one key serves all of them"""
OFFSET = 128
"""added to entries, so that the compiler can take whole vectors of unsigned bytes: it moves an average by as much"""


def averaged_totals(
    out: NDArray[np.int64],
    entries: NDArray[np.int8],
    keys: NDArray[np.uint8],
    most: NDArray[np.int64],
    least: NDArray[np.int64],
    limits: tuple[int, int],
) -> None:
    """out[m, n] <- clip(out[m, n] + most[m, t] * sum_b 2^b average_b + least[m, t], *limits), tile by tile t from 0.

    average_b is of what the keys [planes, T, rows, N] of plane b read from the half tables `entries` [M, T, rows, 8]; a
    key of 8 and more reads the entry of its complement, negated. It is a tree of (a + b + 1) >> 1 between neighbours;
    rows are a power of two, entries at least -127.
    """
    keys = np.ascontiguousarray(np.moveaxis(keys, -1, 0))
    for m in range(0, len(out), LANES):
        some = slice(m, m + LANES)
        halves = np.moveaxis(entries[some], 0, -1).astype(np.int16)
        tables = np.concatenate([halves, -halves[..., ::-1, :]], axis=-2) + OFFSET
        totals = _lanes_last(out[some])
        _add_tiles(
            totals, _filled(tables.astype(np.uint8)), keys, _lanes_last(most[some]), _lanes_last(least[some]), *limits
        )
        out[some] = totals.T[: len(out[some])]


def _lanes_last(values: NDArray[Any]) -> NDArray[Any]:
    """[m, x] -> [x, LANES]"""
    return _filled(values.T)


def _filled(values: NDArray[Any]) -> NDArray[Any]:
    """A contiguous copy with zeros behind the last axis, up to LANES."""
    filled = np.zeros((*values.shape[:-1], LANES), dtype=values.dtype)
    filled[..., : values.shape[-1]] = values
    return filled


@compiled(parallel=True)
def _add_tiles(totals: Any, tables: Any, keys: Any, most: Any, least: Any, low: int, high: int) -> None:
    """totals [N, LANES], tables [T, rows, 16, LANES] of unsigned bytes, keys [N, planes, T, rows]."""
    n_size, planes, tiles, rows = keys.shape
    moved = np.int32(OFFSET * ((1 << planes) - 1))
    for n in numba.prange(n_size):
        average = np.empty((max(rows // 2, 1), LANES), dtype=np.uint8)
        read = np.empty(LANES, dtype=np.int32)
        total = totals[n]
        for t in range(tiles):
            read[:] = -moved
            for b in range(planes):
                _average(tables[t], keys[n, b, t], average)
                for i in range(LANES):
                    read[i] += np.int32(average[0, i]) << np.int32(b)
            for i in range(LANES):
                total[i] = min(max(total[i] + most[t, i] * read[i] + least[t, i], low), high)


@compiled()
def _average(tables: Any, keys: Any, average: Any) -> None:
    """average[0] [LANES] of what the keys [rows] read."""
    rows = len(keys)
    if rows == 1:
        average[0] = tables[0, keys[0]]
    left = rows // 2
    for r in range(left):
        a, b, y = tables[2 * r, keys[2 * r]], tables[2 * r + 1, keys[2 * r + 1]], average[r]
        for i in range(LANES):
            y[i] = np.uint8((np.uint16(a[i]) + np.uint16(b[i]) + np.uint16(1)) >> np.uint16(1))
    while left > 1:
        left //= 2
        for r in range(left):
            a, b, y = average[2 * r], average[2 * r + 1], average[r]
            for i in range(LANES):
                y[i] = np.uint8((np.uint16(a[i]) + np.uint16(b[i]) + np.uint16(1)) >> np.uint16(1))
