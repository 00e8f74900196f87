"""The loops of the fast Walsh-Hadamard transform, compiled by numba; imported by those who transform.

Butterflies of any radix add in the same order, stride 1 first: three stages of radix 2 are one of radix 8, and every
sum is formed of the same two terms. A radix says only how often the data is read and written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.gemm_kernels import compiled

Array = NDArray[Any]

WIDTH = 512
"""Elements of each point that a tile of `columns` holds side by side: long enough for the memory's bursts."""
POINTS = 64
"""Points of a tile, two stages of radix 8: six stages for one reading and one writing of the array. A tile of
POINTS x WIDTH float64 is 256 KiB, within a second-level cache."""


def _radix8(h: int) -> Callable[[Array], None]:
    """The stages of strides h, 2 h and 4 h in place; the length of y a multiple of 8 h.

    One function for each h: only of a constant stride does the compiler know that the eight do not overlap.
    """

    def stage(y: Array) -> None:
        for i in range(0, y.size, 8 * h):
            b = y[i : i + 8 * h]
            for j in range(h):
                s0, d0 = b[j] + b[j + h], b[j] - b[j + h]
                s1, d1 = b[j + 2 * h] + b[j + 3 * h], b[j + 2 * h] - b[j + 3 * h]
                s2, d2 = b[j + 4 * h] + b[j + 5 * h], b[j + 4 * h] - b[j + 5 * h]
                s3, d3 = b[j + 6 * h] + b[j + 7 * h], b[j + 6 * h] - b[j + 7 * h]
                t0, t1, t2, t3 = s0 + s1, d0 + d1, s0 - s1, d0 - d1
                t4, t5, t6, t7 = s2 + s3, d2 + d3, s2 - s3, d2 - d3
                b[j], b[j + h], b[j + 2 * h], b[j + 3 * h] = t0 + t4, t1 + t5, t2 + t6, t3 + t7
                b[j + 4 * h], b[j + 5 * h], b[j + 6 * h], b[j + 7 * h] = t0 - t4, t1 - t5, t2 - t6, t3 - t7

    return compiled(nogil=True)(stage)


_radix8_at_1, _radix8_at_8, _radix8_at_64, _radix8_at_512 = _radix8(1), _radix8(8), _radix8(64), _radix8(512)
_radix8_at_width, _radix8_at_8_widths = _radix8(WIDTH), _radix8(8 * WIDTH)


@compiled(nogil=True)
def _radix4(y: Array, h: int) -> None:
    """The stages of strides h and 2 h in place. Four slices, not eight: of more the compiler does not check whether
    they overlap, and works on one element at a time."""
    for i in range(0, y.size, 4 * h):
        b0, b1 = y[i : i + h], y[i + h : i + 2 * h]
        b2, b3 = y[i + 2 * h : i + 3 * h], y[i + 3 * h : i + 4 * h]
        for j in range(h):
            s0, d0 = b0[j] + b1[j], b0[j] - b1[j]
            s1, d1 = b2[j] + b3[j], b2[j] - b3[j]
            b0[j], b1[j], b2[j], b3[j] = s0 + s1, d0 + d1, s0 - s1, d0 - d1


@compiled(nogil=True)
def _radix2(y: Array, h: int) -> None:
    for i in range(0, y.size, 2 * h):
        b0, b1 = y[i : i + h], y[i + h : i + 2 * h]
        for j in range(h):
            b0[j], b1[j] = b0[j] + b1[j], b0[j] - b1[j]


@compiled(nogil=True)
def _stages(y: Array, h: int) -> None:
    """The stages of strides h, 2 h, .. in place; the length of y is h times a power of two."""
    n = y.size
    while 2 * h <= n:
        if h == 1 and n >= 8:
            _radix8_at_1(y)
            h *= 8
        elif h == 8 and n >= 64:
            _radix8_at_8(y)
            h *= 8
        elif h == 64 and n >= 512:
            _radix8_at_64(y)
            h *= 8
        elif h == 512 and n >= 4096:
            _radix8_at_512(y)
            h *= 8
        elif 4 * h <= n:
            _radix4(y, h)
            h *= 4
        else:
            _radix2(y, h)
            h *= 2


@compiled(nogil=True)
def _copy(source: Array, target: Array) -> None:
    """As a loop: as an assignment of slices it takes three times as long."""
    for i in range(target.size):
        target[i] = source[i]


@compiled(nogil=True)
def blocks(x: Array, out: Array, stride: int) -> None:
    """Each row of `out` = the stages of strides stride, 2 stride, .. of the row of x; both [rows, stride * 2^k]."""
    for r in range(x.shape[0]):
        _copy(x[r], out[r])
        _stages(out[r], stride)


@compiled(nogil=True)
def columns(x: Array, out: Array) -> None:
    """`out` = the transform of x [outer, points, inner] along the middle: at most POINTS, a power of two.

    `out` may be `x`: what a tile of WIDTH elements of each point has read, it alone writes. Where fewer are left the
    tile's other columns hold what was there, and are combined for nothing.
    """
    outer, points, inner = x.shape
    tile = np.empty(points * WIDTH, x.dtype)
    for o in range(outer):
        for start in range(0, inner, WIDTH):
            stop = min(start + WIDTH, inner)
            for p in range(points):
                _copy(x[o, p, start:stop], tile[p * WIDTH : p * WIDTH + stop - start])
            _combine(tile)
            for p in range(points):
                _copy(tile[p * WIDTH : p * WIDTH + stop - start], out[o, p, start:stop])


@compiled(nogil=True)
def _combine(tile: Array) -> None:
    """The stages of strides WIDTH, 2 WIDTH, .. in place."""
    if tile.size < 8 * WIDTH:
        _rest(tile, WIDTH)
        return
    _radix8_at_width(tile)
    if tile.size == 64 * WIDTH:
        _radix8_at_8_widths(tile)
    else:
        _rest(tile, 8 * WIDTH)


@compiled(nogil=True)
def _rest(y: Array, h: int) -> None:
    """The stages of strides h, 2 h, .. in place, at most two."""
    if 4 * h <= y.size:
        _radix4(y, h)
    elif 2 * h <= y.size:
        _radix2(y, h)
