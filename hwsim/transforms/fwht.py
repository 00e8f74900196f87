"""The fast Walsh-Hadamard transform along any axis, for every order m * 2^k that Paley's constructions give."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.unit import require

FWHT_BLOCK = 1 << 15
"""Elements whose stages are finished before the next are touched: 256 KiB of float64, within a second-level cache."""


def fwht(x: NDArray[Any], axis: int = -1) -> NDArray[Any]:
    """Walsh-Hadamard transform along `axis`, natural order, not normalised: H x with H = `hadamard_matrix(n)`.

    float32, float64 or int64 in and out; the length one that `hadamard_matrix` takes, otherwise InputError. Integers
    are exact: values whose sums could leave int64 are refused. Additions are rounded in the order of the butterflies,
    stride 1 first; the sums over the m parts of a length m * 2^k come last. InputError for NaN and infinities.
    """
    return _along(x, axis, transposed=False)


def fwht_transposed(x: NDArray[Any], axis: int = -1) -> NDArray[Any]:
    """H^T x, so that fwht_transposed(fwht(x)) = n x; H is symmetric where n is a power of two. Otherwise as `fwht`."""
    return _along(x, axis, transposed=True)


def fwht_sequency(x: NDArray[Any], axis: int = -1) -> NDArray[Any]:
    """`fwht` with coefficients by their number of sign changes, 0 to n-1; the length a power of two."""
    x = np.asarray(x)
    y = fwht(x, axis)
    return np.take(y, sequency_order(x.shape[axis]), axis=axis)


def sequency_order(n: int) -> NDArray[np.int64]:
    """[n] row of the Sylvester matrix that changes sign j times: the bit-reversed Gray code of j."""
    require_power_of_two("sequency order: the length", n)
    j = np.arange(n)
    gray, order = j ^ (j >> 1), np.zeros_like(j)
    for _ in range(n.bit_length() - 1):
        order, gray = order << 1 | (gray & 1), gray >> 1
    return order


def hadamard_matrix(n: int) -> NDArray[np.int64]:
    """H [n, n] of entries +1 and -1 with H H^T = n I: the Kronecker product of H_m and Sylvester's matrix of 2^k.

    n = m * 2^k with the smallest m that Paley's constructions give: 1, 12, 20, 28, 36, 44, ... (`hadamard_core`). H is
    not symmetric for every m. InputError where there is none.
    """
    m = hadamard_core(n)
    return np.kron(paley_matrix(m), fwht(np.eye(n // m, dtype=np.int64)))


def hadamard_core(n: int) -> int:
    """The m of n = m * 2^k: 1, or the smallest multiple of the odd part of n for which Paley gives a matrix."""
    require(n > 0, f"hadamard: {n} is no order of a Hadamard matrix; nearest: 1")
    odd = n // (n & -n)
    sizes = [odd << k for k in range(2, (n // odd).bit_length())]
    m = 1 if odd == 1 else next((m for m in sizes if _paley(m)), 0)
    rule = "is no order of a Hadamard matrix known here (m * 2^k with m = 1, 12, 20, 28, 36, 44, ...)"
    require(m > 0, f"hadamard: {n} {rule}; nearest: {_nearest_order(n)}")
    return m


def has_hadamard(n: int) -> bool:
    """Whether there is a `hadamard_matrix` of n."""
    odd = n // (n & -n)
    return odd == 1 or any(_paley(odd << k) for k in range(2, (n // odd).bit_length()))


def _nearest_order(n: int) -> int:
    return next(c for d in range(n) for c in (n - d, n + d) if has_hadamard(c))


@cache
def paley_matrix(m: int) -> NDArray[np.int64]:
    """H_m [m, m] of entries +1 and -1, first column all +1, by Paley's constructions; 1 for m = 1. Read-only.

    Q[i, j] = chi(i - j), the quadratic character of GF(q). I (m = q + 1, prime q = 3 modulo 4): a border of +1 around
    -(I + Q). II (m = 2 (q + 1), prime q = 1 modulo 4): 0 of [[0, 1], [1, Q]] is [[1, -1], [-1, -1]], +-1 is
    +-[[1, 1], [1, -1]]; rows that start with -1 are negated. Both are as in the catalogue's unit: y = H x for a column.
    R. E. A. C. Paley, "On orthogonal matrices", 1933.
    """
    if m == 1:
        H = np.ones((1, 1), dtype=np.int64)
    elif _is_prime(m - 1):
        H = np.ones((m, m), dtype=np.int64)
        H[1:, 1:] = -(np.eye(m - 1, dtype=np.int64) + _characters(m - 1))
    else:
        half = m // 2
        conference = np.ones((half, half), dtype=np.int64)
        conference[0, 0], conference[1:, 1:] = 0, _characters(half - 1)
        H = np.kron(conference, [[1, 1], [1, -1]]) + np.kron(np.eye(half, dtype=np.int64), [[1, -1], [-1, -1]])
        H *= H[:, :1]
    H.setflags(write=False)
    return H


def _paley(m: int) -> bool:
    return m % 4 == 0 and (_is_prime(m - 1) or (m % 8 == 4 and _is_prime(m // 2 - 1)))


def _characters(q: int) -> NDArray[np.int64]:
    """[q, q] chi(i - j): 0 of 0, +1 of squares modulo q, -1 of all others."""
    chi = np.full(q, -1)
    chi[np.arange(q) ** 2 % q] = 1
    chi[0] = 0
    return chi[(np.arange(q)[:, None] - np.arange(q)) % q]


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % d for d in range(2, int(q**0.5) + 1))


def require_power_of_two(what: str, n: int) -> None:
    below = 1 << max(n.bit_length() - 1, 0)
    require(n > 0 and n == below, f"{what} {n} is not a power of two; nearest: {below} or {2 * below}")


def _along(x: NDArray[Any], axis: int, *, transposed: bool) -> NDArray[Any]:
    x = np.asarray(x)
    require(x.dtype in (np.float32, np.float64, np.int64), f"fwht: float32, float64 or int64 is needed, not {x.dtype}")
    require(x.ndim > 0, "fwht: a scalar has no axis to transform")
    require(-x.ndim <= axis < x.ndim, f"fwht: axis {axis} is outside -{x.ndim}..{x.ndim - 1}")
    axis, n = axis % x.ndim, x.shape[axis]
    m = hadamard_core(n)
    if x.dtype == np.int64 and x.size:
        most = max(-int(x.min()), int(x.max()))
        require(most * n < 1 << 63, f"fwht: {n} values of magnitude {most} may sum to more than int64 holds")
    outer, inner = int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis + 1 :]))
    y = _powers_of_two(np.ascontiguousarray(x).reshape(outer * m, n // m, inner))
    # what is not finite shows in the plain sums, far fewer than x; they alone may also overflow
    if not np.isfinite(y[:, :1]).all():
        require(bool(np.isfinite(x).all()), "fwht: the values are not all finite")
    if m > 1:
        H = paley_matrix(m).T if transposed else paley_matrix(m)
        y = np.matmul(H.astype(x.dtype), y.reshape(outer, m, (n // m) * inner))
    return y.reshape(x.shape)


def _powers_of_two(x: NDArray[Any]) -> NDArray[Any]:
    """The transform of contiguous x [outer, 2^k, inner] along its middle.

    Where a point is short, first those of a block together; then columns of long points.
    """
    from hwsim.transforms.fwht_kernels import POINTS, WIDTH, blocks, columns  # numba, for those who transform

    outer, n, inner = x.shape
    if x.size == 0 or n == 1:
        return x.copy()
    out = np.empty_like(x)
    if inner < WIDTH:
        points = _block_points(n, inner)
        blocks(x.reshape(-1, points * inner), out.reshape(-1, points * inner), inner)
        x, n, inner = out, n // points, points * inner
    while n > 1:
        points = min(n, POINTS)
        shape = (outer * n // points, points, inner)
        columns(x.reshape(shape), out.reshape(shape))
        x, n, inner = out, n // points, points * inner
    return out


def _block_points(n: int, inner: int) -> int:
    """Points of `inner` elements in a block of at most FWHT_BLOCK elements: a power of two, from 1 to n."""
    return min(n, 1 << max((FWHT_BLOCK // inner).bit_length() - 1, 0))
