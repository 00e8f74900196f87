"""Loops in which the order of additions matters, compiled by numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

ROWS = 4
"""Rows of A worked on together: one element of W serves all of them. The loop body is written for four."""
STEPS = 4
"""Products added between loading an accumulator and storing it. The loop body is written for four."""
COLUMNS = 128
"""Columns of one panel of W; four rows of accumulators and four of the panel stay in the first-level cache."""


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: compiled by numba, kept on disk where there is a place for it, for this process alone otherwise."""

    def compile_one(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # a read-only installation and no writable home
            return numba.njit(**options)(function)

    return compile_one


def saturating_matmul(
    a: NDArray[np.integer[Any]],
    w: NDArray[np.integer[Any]],
    start: NDArray[np.integer[Any]],
    low: int,
    high: int,
    block: int = 1,
) -> NDArray[np.integer[Any]]:
    """out[m, n] = clip(out[m, n] + sum of a[m, k] * w[k, n] over a block of k, low, high), block by block from k = 0.

    `a` [M, K], `w` [K, N] and `start` [M, N], which out is at first, are of one signed type, which the sum of `block`
    products plus `high` (`low`) must fit; so is the result. `start` lies within low..high: then the zeros that fill the
    last panel, and blocks up to whole STEPS, change no sum.
    """
    if block > 2 and block % STEPS:
        filled = -(-block // STEPS) * STEPS
        a, w, block = _filled_blocks(a, 1, block, filled), _filled_blocks(w, 0, block, filled), filled
    (m_size, k_size), n_size = a.shape, w.shape[1]
    # K in whole blocks: a sum is limited where its block ends
    tiles = ((m_size, ROWS), (k_size, max(STEPS, block)), (n_size, COLUMNS))
    m, k, n = (-(-size // step) * step for size, step in tiles)
    panels = zero_filled(w, k, n).reshape(k, n // COLUMNS, COLUMNS).transpose(1, 0, 2).reshape(n // COLUMNS, -1)
    out = zero_filled(start, m, n)
    _add_panels(zero_filled(a, m, k), np.ascontiguousarray(panels), out, low, high, block)
    return out[:m_size, :n_size]


def zero_filled(x: NDArray[Any], rows: int, cols: int) -> NDArray[Any]:
    """A contiguous copy of `x` with zeros behind it."""
    full = np.zeros((rows, cols), dtype=x.dtype)
    full[: x.shape[0], : x.shape[1]] = x
    return full


def _filled_blocks(x: NDArray[Any], axis: int, block: int, filled: int) -> NDArray[Any]:
    """`x` with zeros behind each `block` of rows (columns, with axis 1), up to `filled` of them."""
    blocks, sizes = -(-x.shape[axis] // block), list(x.shape)
    sizes[axis] = blocks * block
    split = zero_filled(x, *sizes).reshape(*sizes[:axis], blocks, block, *sizes[axis + 1 :])
    full = np.pad(split, [(0, (filled - block) * (i == axis + 1)) for i in range(3)])
    sizes[axis] = blocks * filled
    return full.reshape(sizes)


@compiled(parallel=True)
def _add_panels(a: Any, panels: Any, out: Any, low: Any, high: Any, block: int) -> None:
    """Panel by panel, so that a thread's panel stays in its second-level cache while the rows of A pass."""
    groups = a.shape[0] // ROWS
    for i in numba.prange(panels.shape[0] * groups):
        panel, group = divmod(np.int64(i), groups)  # prange counts unsigned; mixed signs would give float64
        m, n = group * ROWS, panel * COLUMNS
        if block == 1:
            _add_rows(a[m : m + ROWS], panels[panel], out, m, n, out.dtype.type(low), out.dtype.type(high))
        elif block == 2:
            _add_pairs(a[m : m + ROWS], panels[panel], out, m, n, out.dtype.type(low), out.dtype.type(high))
        else:
            _add_blocks(a[m : m + ROWS], panels[panel], out, m, n, out.dtype.type(low), out.dtype.type(high), block)


@compiled()
def _add_rows(a: Any, panel: Any, out: Any, m: int, n0: int, low: Any, high: Any) -> None:
    """Four rows of A, four steps of k at a time. The panel is flat and its row length constant: with one base and
    constant distances the compiler proves independence and uses whole vectors."""
    lane = out.dtype.type  # arithmetic on int32 gives int64 in numba: every sum is brought back to the lane's width
    cols = slice(n0, n0 + COLUMNS)
    y0, y1, y2, y3 = out[m, cols], out[m + 1, cols], out[m + 2, cols], out[m + 3, cols]
    for k in range(0, a.shape[1], STEPS):
        b = panel[k * COLUMNS : (k + STEPS) * COLUMNS]
        p0, p1, p2, p3 = a[0, k], a[0, k + 1], a[0, k + 2], a[0, k + 3]
        q0, q1, q2, q3 = a[1, k], a[1, k + 1], a[1, k + 2], a[1, k + 3]
        r0, r1, r2, r3 = a[2, k], a[2, k + 1], a[2, k + 2], a[2, k + 3]
        s0, s1, s2, s3 = a[3, k], a[3, k + 1], a[3, k + 2], a[3, k + 3]
        for n in range(COLUMNS):
            b0, b1, b2, b3 = b[n], b[n + COLUMNS], b[n + 2 * COLUMNS], b[n + 3 * COLUMNS]
            y = min(max(lane(y0[n] + p0 * b0), low), high)
            y = min(max(lane(y + p1 * b1), low), high)
            y = min(max(lane(y + p2 * b2), low), high)
            y0[n] = min(max(lane(y + p3 * b3), low), high)
            y = min(max(lane(y1[n] + q0 * b0), low), high)
            y = min(max(lane(y + q1 * b1), low), high)
            y = min(max(lane(y + q2 * b2), low), high)
            y1[n] = min(max(lane(y + q3 * b3), low), high)
            y = min(max(lane(y2[n] + r0 * b0), low), high)
            y = min(max(lane(y + r1 * b1), low), high)
            y = min(max(lane(y + r2 * b2), low), high)
            y2[n] = min(max(lane(y + r3 * b3), low), high)
            y = min(max(lane(y3[n] + s0 * b0), low), high)
            y = min(max(lane(y + s1 * b1), low), high)
            y = min(max(lane(y + s2 * b2), low), high)
            y3[n] = min(max(lane(y + s3 * b3), low), high)


@compiled()
def _add_pairs(a: Any, panel: Any, out: Any, m: int, n0: int, low: Any, high: Any) -> None:
    """The same with two products before each limit."""
    lane = out.dtype.type
    cols = slice(n0, n0 + COLUMNS)
    y0, y1, y2, y3 = out[m, cols], out[m + 1, cols], out[m + 2, cols], out[m + 3, cols]
    for k in range(0, a.shape[1], STEPS):
        b = panel[k * COLUMNS : (k + STEPS) * COLUMNS]
        p0, p1, p2, p3 = a[0, k], a[0, k + 1], a[0, k + 2], a[0, k + 3]
        q0, q1, q2, q3 = a[1, k], a[1, k + 1], a[1, k + 2], a[1, k + 3]
        r0, r1, r2, r3 = a[2, k], a[2, k + 1], a[2, k + 2], a[2, k + 3]
        s0, s1, s2, s3 = a[3, k], a[3, k + 1], a[3, k + 2], a[3, k + 3]
        for n in range(COLUMNS):
            b0, b1, b2, b3 = b[n], b[n + COLUMNS], b[n + 2 * COLUMNS], b[n + 3 * COLUMNS]
            y = min(max(lane(y0[n] + p0 * b0 + p1 * b1), low), high)
            y0[n] = min(max(lane(y + p2 * b2 + p3 * b3), low), high)
            y = min(max(lane(y1[n] + q0 * b0 + q1 * b1), low), high)
            y1[n] = min(max(lane(y + q2 * b2 + q3 * b3), low), high)
            y = min(max(lane(y2[n] + r0 * b0 + r1 * b1), low), high)
            y2[n] = min(max(lane(y + r2 * b2 + r3 * b3), low), high)
            y = min(max(lane(y3[n] + s0 * b0 + s1 * b1), low), high)
            y3[n] = min(max(lane(y + s2 * b2 + s3 * b3), low), high)


@compiled()
def _add_blocks(a: Any, panel: Any, out: Any, m: int, n0: int, low: Any, high: Any, block: int) -> None:
    """The same for blocks of whole STEPS: the sum is limited behind the last step of each."""
    lane = out.dtype.type
    cols = slice(n0, n0 + COLUMNS)
    y0, y1, y2, y3 = out[m, cols], out[m + 1, cols], out[m + 2, cols], out[m + 3, cols]
    for k in range(0, a.shape[1], STEPS):
        b = panel[k * COLUMNS : (k + STEPS) * COLUMNS]
        p0, p1, p2, p3 = a[0, k], a[0, k + 1], a[0, k + 2], a[0, k + 3]
        q0, q1, q2, q3 = a[1, k], a[1, k + 1], a[1, k + 2], a[1, k + 3]
        r0, r1, r2, r3 = a[2, k], a[2, k + 1], a[2, k + 2], a[2, k + 3]
        s0, s1, s2, s3 = a[3, k], a[3, k + 1], a[3, k + 2], a[3, k + 3]
        for n in range(COLUMNS):
            b0, b1, b2, b3 = b[n], b[n + COLUMNS], b[n + 2 * COLUMNS], b[n + 3 * COLUMNS]
            y0[n] = lane(y0[n] + p0 * b0 + p1 * b1 + p2 * b2 + p3 * b3)
            y1[n] = lane(y1[n] + q0 * b0 + q1 * b1 + q2 * b2 + q3 * b3)
            y2[n] = lane(y2[n] + r0 * b0 + r1 * b1 + r2 * b2 + r3 * b3)
            y3[n] = lane(y3[n] + s0 * b0 + s1 * b1 + s2 * b2 + s3 * b3)
        if (k + STEPS) % block == 0:
            for n in range(COLUMNS):
                y0[n] = min(max(y0[n], low), high)
                y1[n] = min(max(y1[n], low), high)
                y2[n] = min(max(y2[n], low), high)
                y3[n] = min(max(y3[n], low), high)
