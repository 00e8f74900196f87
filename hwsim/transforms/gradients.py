"""LBP-WHT (Yang et al., 2023): gradients of a linear layer through the low-sequency part of a 2D transform."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from hwsim.transforms.fwht import hadamard_matrix, require_power_of_two, sequency_order
from hwsim.transforms.maps import require_whole
from models.unit import require

Floats = NDArray[np.float64]


MOST_SIDE = 64
"""tokens along a side of LBP-WHT's patches"""


def low_sequency_bases(side: int, rank: int) -> Floats:
    """[rank, side^2] orthonormal 2D Walsh bases of a square of tokens, row by row, by the sum of both sequencies.

    Ties go by the vertical sequency. Read-only. InputError unless side is a power of two up to MOST_SIDE and rank
    within 1..side^2.
    """
    require_whole("lbp-wht: side", side, 1)
    require_power_of_two("lbp-wht: side", int(side))
    require(side <= MOST_SIDE, f"lbp-wht: side={side} is above {MOST_SIDE}")
    require_whole("lbp-wht: rank", rank, 1)
    require(rank <= side * side, f"lbp-wht: rank={rank} is outside 1..{side * side}")
    return _bases(int(side), int(rank))


@cache
def _bases(side: int, rank: int) -> Floats:
    walsh = hadamard_matrix(side)[sequency_order(side)] / np.sqrt(side)
    vertical, horizontal = np.divmod(np.arange(side * side), side)
    chosen = np.lexsort((vertical, vertical + horizontal))[:rank]
    bases = np.stack([np.kron(walsh[v], walsh[h]) for v, h in zip(vertical[chosen], horizontal[chosen], strict=True)])
    bases.setflags(write=False)
    return bases


def lbp_wht(x: Floats, grad_y: Floats, W: Floats, *, side: int = 8, rank: int = 10) -> tuple[Floats, Floats]:
    """Gradients by x [patches, side^2, K] and W [K, N] of a layer y = x W, given those by y [patches, side^2, N].

    Tokens are projected on `rank` bases of each patch before both products: grad_x = P^T (P grad_y) W^T, grad_W =
    sum over patches of (P x)^T (P grad_y). Exact at rank side^2; products shrink by rank / side^2. InputError where
    shapes do not fit.
    """
    P = low_sequency_bases(side, rank)
    fits = x.ndim == grad_y.ndim == 3 and x.shape[:2] == grad_y.shape[:2] and x.shape[1] == side * side
    require(fits, f"lbp-wht: x {x.shape} and grad_y {grad_y.shape} are not patches of {side * side} tokens")
    needed = (x.shape[2], grad_y.shape[2])
    require(W.shape == needed, f"lbp-wht: W {W.shape} does not fit x and grad_y; {needed} is needed")
    low_x, low_y = P @ x, P @ grad_y
    grad_W = low_x.reshape(-1, x.shape[2]).T @ low_y.reshape(-1, grad_y.shape[2])
    return P.T @ (low_y @ W.T), grad_W
