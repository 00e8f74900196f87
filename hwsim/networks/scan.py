"""The selective scan of a state-space layer, compiled by numba; imported by those who run one."""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from models.gemm_kernels import compiled

Floats = NDArray[np.float64]


@compiled(parallel=True)
def selective_scan(u: Floats, dt: Floats, A: Floats, B: Floats, C: Floats) -> Floats:
    """y [b, T, D] of h_t = exp(dt_t A) h_(t-1) + dt_t u_t B_t and y_t = C_t h_t from h_0 = 0, channel by channel.

    u, dt [b, T, D]; A [D, N]; B, C [b, T, N]: N states a channel, summed in their order.
    """
    batch, length, channels = u.shape
    states = A.shape[1]
    y = np.empty_like(u)
    for place in numba.prange(batch * channels):
        b, d = place // channels, place % channels
        h = np.zeros(states)
        for t in range(length):
            into = dt[b, t, d] * u[b, t, d]
            total = 0.0
            for n in range(states):
                h[n] = math.exp(dt[b, t, d] * A[d, n]) * h[n] + into * B[b, t, n]
                total += C[b, t, n] * h[n]
            y[b, t, d] = total
    return y
