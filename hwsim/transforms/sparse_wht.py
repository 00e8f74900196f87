"""What else the Walsh-Hadamard transform is used for: random projections, sparse adapters, sparse spectra."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsim.transforms.fwht import fwht, hadamard_core, hadamard_matrix
from hwsim.transforms.maps import require_whole
from models.unit import InputError, require

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


# ------------------------------------------------------------------------------------- random projection


def srht(x: Floats, rows: int, *, seed: int = 1) -> Floats:
    """Subsampled randomised Hadamard transform of x [..., n] -> [..., rows]: sqrt(n / rows) times `rows` random
    coefficients, drawn without replacement, of H diag(+-1) x / sqrt(n).

    Squared lengths are kept on average; by Hoeffding's inequality they are within e of it, relative, but for a share of
    at most 2 exp(-2 rows e^2 / b^2) with b = n max(z^2) / sum(z^2) of the transformed z, itself at most 2 ln(2 n / p)
    but with probability p. Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform", 2009; Tropp, 2011.
    InputError where x is not finite or has a length that is no order, or rows are outside 1..n.
    """
    require(x.ndim > 0, "srht: a scalar has no axis to project")
    n = x.shape[-1]
    hadamard_core(n)
    require_whole("srht: rows", rows, 1)
    require(rows <= n, f"srht: rows={rows} is outside 1..{n}")
    require_whole("srht: seed", seed, 0)
    _require_finite("srht: x", x)
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], n)
    kept = rng.choice(n, rows, replace=False)
    return np.asarray(fwht(np.asarray(x, dtype=np.float64) * signs)[..., kept] / np.sqrt(rows))


def _require_finite(what: str, x: Floats) -> None:
    require(bool(np.isfinite(x).all()), f"{what} is not finite everywhere")


# --------------------------------------------------------------------------------------- sparse adapters


@dataclass(frozen=True, kw_only=True, eq=False)
class SpectralAdapter:
    """A correction of a weight matrix [K, N] that is sparse in the Walsh-Hadamard domain of its inputs."""

    K: int
    indices: tuple[Ints, ...]
    """column -> its coefficients' numbers"""
    values: tuple[Floats, ...]

    def dense(self) -> Floats:
        """[K, N] H^T F / sqrt(K), F the sparse coefficients."""
        F = np.zeros((self.K, len(self.indices)))
        for column, (at, value) in enumerate(zip(self.indices, self.values, strict=True)):
            F[at, column] = value
        return np.asarray(hadamard_matrix(self.K).T @ F / np.sqrt(self.K))


def qwha(error: Floats, X: Floats, budget: int) -> SpectralAdapter:
    """The adapter of `budget` coefficients that is to undo a quantization `error` = W - Wq [K, N] on inputs X [M, K].

    Each column gets a share of the budget as large as its part of ||X error||^2 (largest remainders; at most K), takes
    its coefficients of largest magnitude, and refines their values by least squares on X error. After QWHA
    (Jeon et al., 2025).
    """
    require(error.ndim == 2, f"qwha: an error of shape {error.shape}; [K, N] is needed")
    K, N = error.shape
    require(X.ndim == 2 and X.shape[1] == K, f"qwha: inputs {X.shape} do not fit an error of {K} rows")
    require_whole("qwha: budget", budget, 0)
    require(budget <= K * N, f"qwha: budget={budget} is outside 0..{K * N}")
    _require_finite("qwha: the error", error)
    _require_finite("qwha: the input", X)
    H = hadamard_matrix(K) / np.sqrt(K)
    target, inputs = X @ error, X @ H.T
    counts = _shares((target**2).sum(axis=0), budget, K)
    order = np.argsort(-np.abs(H @ error), axis=0, kind="stable")
    indices = tuple(np.sort(order[: counts[n], n]) for n in range(N))
    values = tuple(np.linalg.lstsq(inputs[:, at], target[:, n])[0] for n, at in enumerate(indices))
    return SpectralAdapter(K=K, indices=indices, values=values)


def _shares(weights: Floats, budget: int, most: int) -> Ints:
    """`budget` in whole numbers in proportion to the weights, none above `most`."""
    counts = np.zeros(len(weights), dtype=np.int64)
    while (left := budget - int(counts.sum())) > 0:
        open_ = np.where(counts < most, weights, 0.0)
        open_ = open_ if open_.sum() > 0 else (counts < most).astype(np.float64)
        exact = left * open_ / open_.sum()
        counts = np.minimum(counts + np.floor(exact).astype(np.int64), most)
        left = budget - int(counts.sum())
        by_remainder = [n for n in np.argsort(-(exact % 1), kind="stable") if counts[n] < most and open_[n] > 0]
        counts[by_remainder[:left]] += 1
    return counts


# ---------------------------------------------------------------------------------------- sparse spectra

SINGLE = 1e-9
"""relative difference of two magnitudes that count as equal in noiseless bins"""


def spright(
    samples: Callable[[Ints], Floats], bits: int, *, bins: int, groups: int = 3, seed: int = 1
) -> dict[int, float]:
    """The non-zero coefficients F[k] = sum_x f[x] (-1)^<k, x> / 2^bits of a sparse function, number -> value.

    `samples(x)` gives f at whole numbers x below 2^bits. Only groups * (bits + 1) * 2^bins of them are asked for: in
    each group the function on a random subspace, shifted by 0 and by each unit vector, whose small transforms sum the
    coefficients by a random hash of `bins` bits. A bin with one coefficient shows all shifts in the same magnitude, and
    their signs spell its number, which must have the bin's hash; what is found is peeled from the other groups. The
    noiseless algorithm of Li, Bradley, Pawar and Ramchandran, "SPRIGHT", 2015. InputError where peeling stops before
    all bins are empty, or where a sample is not finite.
    """
    for what, value, least in (("bits", bits, 1), ("bins", bins, 1), ("groups", groups, 1), ("seed", seed, 0)):
        require_whole(f"spright: {what}", value, least)
    require(bins <= bits <= 62, f"spright: bins={bins} and bits={bits} must be 0 < bins <= bits <= 62")
    rng = np.random.default_rng(seed)
    subspaces = [_independent(rng, bits, bins) for _ in range(groups)]
    tables = [_binned(samples, subspace, bits) for subspace in subspaces]
    size = max(float(np.abs(table).max()) for table in tables)
    found: dict[int, float] = {}
    for _ in range(groups << bins):  # each round empties a bin, but for sums that look like one coefficient
        before = len(found)
        for table, own in zip(tables, subspaces, strict=True):
            for k, value in _singles(table, own, size, bits):
                found[k] = found.get(k, 0.0) + value
                for other, subspace in zip(tables, subspaces, strict=True):
                    other[:, _hash(k, subspace)] -= value * _signs(k, bits)
        if len(found) == before:
            break
    left = max(float(np.abs(table).max()) for table in tables)
    if left > SINGLE * max(size, 1.0):
        raise InputError(f"spright: bins hold more than {bins=} and {groups=} can part; give more bins")
    return {k: value for k, value in sorted(found.items()) if abs(value) > SINGLE * size}


def _independent(rng: np.random.Generator, bits: int, count: int) -> list[int]:
    """`count` random linearly independent vectors of GF(2)^bits as whole numbers."""
    basis: list[int] = []
    reduced: dict[int, int] = {}
    while len(basis) < count:
        drawn = rest = int(rng.integers(1, 1 << bits))
        while rest and rest.bit_length() in reduced:
            rest ^= reduced[rest.bit_length()]
        if rest:
            reduced[rest.bit_length()] = rest
            basis.append(drawn)
    return basis


def _binned(samples: Callable[[Ints], Floats], subspace: list[int], bits: int) -> Floats:
    """[bits + 1, 2^bins]: row 0 unshifted, row 1 + i shifted by 2^i; bin j sums the coefficients of hash j."""
    points = np.zeros(1, dtype=np.int64)
    for vector in subspace:
        points = np.concatenate([points, points ^ vector])
    shifts = np.array([0, *(1 << i for i in range(bits))], dtype=np.int64)
    taken = np.asarray(samples(points[None, :] ^ shifts[:, None]), dtype=np.float64)
    _require_finite("spright: the function", taken)
    return fwht(taken) / len(points)


def _hash(k: int, subspace: list[int]) -> int:
    """Bit i is <k, vector i>."""
    return sum(((k & vector).bit_count() & 1) << i for i, vector in enumerate(subspace))


def _signs(k: int, bits: int) -> Floats:
    """(-1)^<k, shift> of the shifts 0, 1, 2, 4, ..."""
    return np.array([1.0, *(-1.0 if k >> i & 1 else 1.0 for i in range(bits))])


def _singles(table: Floats, subspace: list[int], size: float, bits: int) -> list[tuple[int, float]]:
    """Number and value of the coefficient of each bin that holds just one."""
    first = table[0]
    live = np.abs(first) > SINGLE * size
    same = (np.abs(np.abs(table) - np.abs(first)) <= SINGLE * size).all(axis=0)
    found = {}
    for j in np.flatnonzero(live & same):
        k = sum(1 << i for i in range(bits) if table[1 + i, j] * first[j] < 0)
        if _hash(k, subspace) == j:
            found[k] = float(first[j])
    return list(found.items())
