"""Single-precision sums in order of k, compiled by numba."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from models.floats import Singles
from models.gemm_kernels import COLUMNS, ROWS, STEPS, compiled, zero_filled


def ordered_matmul(a: Singles, w: Singles, start: Singles) -> Singles:
    """out[m, n] = (..((start[m, n] + a[m, 0] w[0, n]) + a[m, 1] w[1, n]) + ..): each sum rounded to nearest even.

    The products of halves are exact in single precision, so that a machine which fuses them with the sums computes the
    same. No sum is -0: `start` holds none, so that the zeros which fill the last panel change nothing.
    """
    (m, k), n = a.shape, w.shape[1]
    full_m, full_k, full_n = (-(-size // step) * step for size, step in ((m, ROWS), (k, STEPS), (n, COLUMNS)))
    panels = zero_filled(w, full_k, full_n).reshape(full_k, full_n // COLUMNS, COLUMNS).transpose(1, 0, 2)
    out = zero_filled(start, full_m, full_n)
    _add_panels(zero_filled(a, full_m, full_k), np.ascontiguousarray(panels).reshape(full_n // COLUMNS, -1), out)
    return out[:m, :n]


@compiled(parallel=True)
def _add_panels(a: Any, panels: Any, out: Any) -> None:
    """Panel by panel, so that a thread's panel stays in its second-level cache while the rows of A pass."""
    groups = a.shape[0] // ROWS
    for i in numba.prange(panels.shape[0] * groups):
        panel, group = divmod(np.int64(i), groups)  # prange counts unsigned; mixed signs would give float64
        m, n = group * ROWS, panel * COLUMNS
        _add_rows(a[m : m + ROWS], panels[panel], out, m, n)


@compiled()
def _add_rows(a: Any, panel: Any, out: Any, m: int, n0: int) -> None:
    """Four rows of A, four steps of k at a time, as in models/gemm_kernels.py."""
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
            y0[n] = (((y0[n] + p0 * b0) + p1 * b1) + p2 * b2) + p3 * b3
            y1[n] = (((y1[n] + q0 * b0) + q1 * b1) + q2 * b2) + q3 * b3
            y2[n] = (((y2[n] + r0 * b0) + r1 * b1) + r2 * b2) + r3 * b3
            y3[n] = (((y3[n] + s0 * b0) + s1 * b1) + s2 * b2) + s3 * b3
