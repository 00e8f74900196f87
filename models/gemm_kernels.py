"""Loops in which the order of additions matters, compiled by numba."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

BLOCK = 256
"""Columns worked on together: their accumulators and one row of W stay in the first-level cache."""


@numba.njit(parallel=True, cache=True)
def saturating_matmul(
    a: NDArray[np.integer[Any]], w: NDArray[np.integer[Any]], out: NDArray[np.integer[Any]], low: Any, high: Any
) -> None:
    """out[m, n] = clip(out[m, n] + a[m, k] * w[k, n], low, high) for k = 0, 1, ... in that order; all of one type."""
    m_size, k_size = a.shape
    n_size = w.shape[1]
    for m in numba.prange(m_size):
        for n0 in range(0, n_size, BLOCK):
            acc = out[m, n0 : n0 + BLOCK]
            for k in range(k_size):
                factor = a[m, k]
                row = w[k, n0 : n0 + BLOCK]
                for n in range(acc.size):
                    acc[n] = min(max(acc[n] + factor * row[n], low), high)
