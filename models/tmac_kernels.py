"""Look-ups whose order of rounding matters, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.gemm_kernels import compiled


@compiled()
def averaged_reads(entries: NDArray[np.int8], keys: NDArray[np.uint8]) -> NDArray[Any]:
    """sum_b 2^b average_b [M, N] int64 of what the keys [planes, rows, N] read from half tables [M, rows, 8].

    A key of 8 and more reads the entry of its complement, negated. Averages are trees of (a + b + 1) >> 1 between
    neighbours; rows are a power of two.
    """
    m_size, rows, half = entries.shape
    planes, _, n_size = keys.shape
    out = np.zeros((m_size, n_size), dtype=np.int64)
    table = np.empty((rows, 2 * half), dtype=np.int16)
    read = np.empty((rows, n_size), dtype=np.int16)
    for m in range(m_size):
        for r in range(rows):
            for i in range(half):
                table[r, i] = entries[m, r, i]
                table[r, 2 * half - 1 - i] = -table[r, i]
        for b in range(planes):
            for r in range(rows):
                for n in range(n_size):
                    read[r, n] = table[r, keys[b, r, n]]
            left = rows
            while left > 1:
                left //= 2
                for r in range(left):
                    for n in range(n_size):
                        read[r, n] = (read[2 * r, n] + read[2 * r + 1, n] + 1) >> 1
            for n in range(n_size):
                out[m, n] += np.int64(read[0, n]) << b
    return out
