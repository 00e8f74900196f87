"""Vector formats: a codebook of code vectors found by k-means, and lattices whose points are whole combinations of a
basis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from models.quantized import (
    SCALE_BITS,
    Floats,
    Quantized,
    checked,
    from_rows,
    group_size,
    is_whole,
    positive,
    require_group,
    require_rng,
    rows_of,
    runs,
)
from models.unit import InputError, Ints, nearest, require

# ------------------------------------------------------------------------------------------------- codebooks


@dataclass(frozen=True, kw_only=True)
class CodebookFormat:
    """Each `dim` neighbouring values along the axis are one of `entries` code vectors times the group's scale.

    The scale is the root mean square of the group (the whole slice unless `group` is given), 0 for zeros. One codebook
    serves the array: k-means on at most `samples` of its scaled vectors drawn without replacement, started by k-means++
    (Arthur and Vassilvitskii 2007), then at most `rounds` rounds of the generalised Lloyd algorithm (Linde, Buzo, Gray
    1980): nearest code vector, then the mean of each cell; an empty cell keeps its vector. Ties take the first vector.
    Codebooks of scalars and of vectors for a language model's weights: SqueezeLLM (Kim et al. 2023), GPTVQ (van Baalen
    et al. 2024). `weights`, one for each place along the axis, weigh the squared error (SqueezeLLM: the sensitivity of
    a weight); all equal without them. `rng` is the seed, or a generator.

    Every value carries the index of its vector as its code; `tables` is the codebook [entries, dim]. Storage: an
    index a vector, 16 bits a scale and a number of the codebook.
    """

    dim: int = 2
    entries: int = 256
    group: int | None = None
    rounds: int = 25
    samples: int = 1 << 15
    weights: tuple[float, ...] | None = None
    rng: int | np.random.Generator = 0

    def __post_init__(self) -> None:
        for name, low, high in (("dim", 1, 64), ("entries", 2, 4096), ("rounds", 0, 1000), ("samples", 2, 1 << 24)):
            value = getattr(self, name)
            rule = f"must be a whole number from {low} to {high}"
            require(is_whole(value, low, high), f"codebook: {name}={value!r} {rule}")
        require_group(self.group)
        require_rng("codebook", self.rng)
        if self.weights is not None:
            object.__setattr__(self, "weights", _plain_weights(self.weights))

    @property
    def bits(self) -> int:
        """Bits of the index of one vector."""
        return (self.entries - 1).bit_length()

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        length = values.shape[axis]
        group = group_size(length, self.group)
        _require_vectors("codebook", group, self.dim)
        rows = rows_of(values, axis)
        scales = _root_mean_square(rows.reshape(len(rows), -1, group))
        vectors = (rows.reshape(len(rows), -1, group) / positive(scales)[..., None]).reshape(-1, self.dim)
        weights = self._weights(length, len(rows))
        table = self._learn(vectors, weights)
        index = _nearest_vectors(vectors, weights, table)
        return Quantized(
            format=self,
            codes=from_rows(np.repeat(index, self.dim).reshape(len(rows), -1), values, axis),
            scales=from_rows(scales, values, axis),
            offsets=None,
            axis=axis,
            group=group,
            tables=table,
        )

    def _weights(self, length: int, slices: int) -> Floats:
        """[vectors, dim]."""
        count = length if self.weights is None else len(self.weights)
        require(count == length, f"codebook: {count} weights for an axis of {length} values; one for each is needed")
        row = np.ones(length) if self.weights is None else np.array(self.weights)
        return np.broadcast_to(row, (slices, length)).reshape(-1, self.dim)

    def _learn(self, vectors: Floats, weights: Floats) -> Floats:
        rng = np.random.default_rng(self.rng)
        if len(vectors) > self.samples:
            chosen = rng.choice(len(vectors), self.samples, replace=False)
            vectors, weights = vectors[chosen], weights[chosen]
        table = _start(vectors, weights, self.entries, rng)
        index = np.full(len(vectors), -1)
        for _ in range(self.rounds):
            renewed = _nearest_vectors(vectors, weights, table)
            if np.array_equal(renewed, index):
                break
            index = renewed
            table = _means(vectors, weights, index, table)
        return table

    def values(self, q: Quantized) -> Floats:
        assert q.tables is not None
        place = np.arange(q.codes.shape[q.axis]) % self.dim
        place = place.reshape([-1 if i == q.axis else 1 for i in range(q.codes.ndim)])
        return q.tables[q.codes, place] * np.repeat(q.scales, q.group, q.axis)

    def storage_bits(self, q: Quantized) -> int:
        return self.bits * (q.codes.size // self.dim) + SCALE_BITS * (q.scales.size + self.entries * self.dim)


def _plain_weights(weights: ArrayLike) -> tuple[float, ...]:
    try:
        array = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("codebook: weights must be positive numbers, one for each place along the axis") from error
    good = array.ndim == 1 and array.size > 0 and bool((np.isfinite(array) & (array > 0)).all())
    require(good, "codebook: weights must be positive numbers, one for each place along the axis")
    # only their ratios count
    return tuple((array / array.max()).tolist())


def _require_vectors(what: str, group: int, dim: int) -> None:
    try:
        group_size(group, dim)
    except InputError as error:
        raise InputError(f"{what}: dim={dim} is no divisor of the group; {error}") from None


def _root_mean_square(parts: Floats) -> Floats:
    """[R, G] of [R, G, group], squared in units of a power of two so that squares stay in float64's range."""
    exponent = np.frexp(np.abs(parts).max(axis=2))[1]
    squares = np.ldexp(parts, -exponent[..., None]) ** 2
    roots: Floats = np.ldexp(np.sqrt(squares.mean(axis=2)), exponent)
    return roots


def _nearest_vectors(vectors: Floats, weights: Floats, table: Floats) -> Ints:
    """Index of the code vector of least weighted squared distance, sum_d w_d (c_d^2 - 2 x_d c_d) but for a constant."""
    terms = np.concatenate([weights, -2.0 * weights * vectors], axis=1)
    factors = np.ascontiguousarray(np.concatenate([table**2, table], axis=1).T)
    nearest_index = np.empty(len(vectors), dtype=np.int64)
    for run in runs(len(vectors), len(table)):
        nearest_index[run] = (terms[run] @ factors).argmin(axis=1)
    return nearest_index


def _start(vectors: Floats, weights: Floats, entries: int, rng: np.random.Generator) -> Floats:
    """k-means++: each next code vector is drawn with probability proportional to its error so far."""
    table = np.zeros((entries, vectors.shape[1]))
    table[0] = vectors[rng.integers(len(vectors))]
    error = (weights * (vectors - table[0]) ** 2).sum(axis=1)
    for i in range(1, entries):
        total = error.cumsum()
        # a codebook larger than the number of different vectors repeats one
        place = min(int(np.searchsorted(total, rng.random() * total[-1], side="right")), len(vectors) - 1)
        table[i] = vectors[place]
        error = np.minimum(error, (weights * (vectors - table[i]) ** 2).sum(axis=1))
    return table


def _means(vectors: Floats, weights: Floats, index: Ints, table: Floats) -> Floats:
    """The weighted mean of each cell, dimension by dimension; an empty cell keeps its vector."""
    entries, dim = table.shape
    masses = [np.bincount(index, weights[:, d], entries) for d in range(dim)]
    sums = [np.bincount(index, weights[:, d] * vectors[:, d], entries) for d in range(dim)]
    mass, total = np.stack(masses, axis=1), np.stack(sums, axis=1)
    return np.where(mass > 0.0, total / np.where(mass > 0.0, mass, 1.0), table)


# -------------------------------------------------------------------------------------------------- lattices


def integer_basis(dim: int) -> Floats:
    """Z^n: every value by itself."""
    return np.eye(dim)


def d4_basis(dim: int) -> Floats:
    """D4, columns: vectors of four integers with an even sum (Conway and Sloane, Sphere Packings, ch. 4)."""
    require(dim == 4, f"lattice: basis='d4' has dim=4, not {dim}")
    roots = [[1, -1, 0, 0], [0, 1, -1, 0], [0, 0, 1, -1], [0, 0, 1, 1]]
    return np.array(roots, dtype=np.float64).T


def e8_basis(dim: int) -> Floats:
    """E8, columns: eight of its shortest vectors, norm 2, whose dual basis has norm 2 too, the least that E8 allows.

    Coordinates spread as the dual vectors are long: those of the simple roots, up to norm 30, leave few bits for them.
    """
    require(dim == 8, f"lattice: basis='e8' has dim=8, not {dim}")
    doubled = [
        [-1, 1, -1, 1, -1, -1, 1, 1],
        [0, 0, -2, -2, 0, 0, 0, 0],
        [-1, -1, -1, -1, -1, -1, 1, 1],
        [1, 1, 1, -1, 1, 1, 1, -1],
        [0, 0, 0, 2, 2, 0, 0, 0],
        [0, 0, -2, 0, 0, -2, 0, 0],
        [2, 0, 0, -2, 0, 0, 0, 0],
        [1, -1, 1, 1, -1, 1, -1, -1],
    ]
    return np.array(doubled, dtype=np.float64).T / 2.0


BASES: dict[str, Callable[[int], Floats]] = {"integer": integer_basis, "d4": d4_basis, "e8": e8_basis}
RATIOS = 2.0 ** (np.arange(-24, 9) / 4.0)
"""factors of a fixed basis that are tried, in units of the one that takes the largest coordinate to the last integer"""

WORST_CONDITION = 1e6
"""of a learned basis: beyond it z is noise"""


@dataclass(frozen=True, kw_only=True)
class LatticeFormat:
    """w = G z: `dim` neighbouring values along the axis are a whole combination of the columns of G, a basis for each
    group (GLVQ, "Learning Grouped Lattice Vector Quantizers for Low-Bit LLM Compression", Zhang et al. 2025).

    z = round(G^-1 w), ties to even, limited to `bits` bits: Babai's rounding (1986), which is not always the nearest
    lattice point. A group is `group` values along the axis in all slices (the whole axis unless given), as in GLVQ.
    G starts as the `basis`, "integer" (Z^n), "d4" (dim 4) or "e8" (dim 8), times the factor of least squared error of
    those tried; the limited coordinates of other lattices than Z^n span a skewed box, which at the same bits often
    costs more than their denser packing gains. It is then learned in at most `rounds` rounds of alternating least
    squares, G = W Z^T (Z Z^T)^+ and z anew, kept only while the error falls; rounds=0 keeps the fixed lattice. GLVQ
    learns G by gradients through the network's error and compands w before; neither is done here.

    Codes are z; `tables` [G, dim, dim] are the bases. `scales` are 1. Storage: `bits` a value, 16 bits a number of G,
    of a fixed lattice 16 bits for its factor.
    """

    bits: int = 4
    dim: int = 8
    group: int | None = None
    basis: str = "integer"
    rounds: int = 20

    def __post_init__(self) -> None:
        for name, low, high in (("bits", 2, 8), ("dim", 1, 64), ("rounds", 0, 1000)):
            value = getattr(self, name)
            rule = f"must be a whole number from {low} to {high}"
            require(is_whole(value, low, high), f"lattice: {name}={value!r} {rule}")
        require_group(self.group)
        require(self.basis in BASES, f"lattice: basis={self.basis!r}; {nearest(str(self.basis), BASES)}")
        BASES[self.basis](self.dim)

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        group = group_size(values.shape[axis], self.group)
        _require_vectors("lattice", group, self.dim)
        rows = rows_of(values, axis)
        parts = rows.reshape(len(rows), -1, group)
        fits = [self._fit(parts[:, i].reshape(-1, self.dim)) for i in range(parts.shape[1])]
        codes = np.stack([z.reshape(len(rows), group) for z, _ in fits], axis=1)
        shape = [values.shape[axis] // group if i == axis else n for i, n in enumerate(values.shape)]
        return Quantized(
            format=self,
            codes=from_rows(codes.reshape(len(rows), -1), values, axis),
            scales=np.ones(shape),
            offsets=None,
            axis=axis,
            group=group,
            tables=np.stack([basis for _, basis in fits]),
        )

    def _fit(self, vectors: Floats) -> tuple[Ints, Floats]:
        """z [n, dim] and G [dim, dim] of vectors [n, dim]."""
        unit = float(positive(np.abs(vectors).max()))
        w = vectors / unit
        basis, z, error = self._scaled_start(w)
        for _ in range(self.rounds):
            learned = _least_squares_basis(w, z)
            if learned is None:
                break
            renewed = _babai(w, learned, self.bits)
            less = _error(w, learned, renewed)
            if less >= error:
                break
            basis, z, error = learned, renewed, less
        return z.astype(np.int64), basis * unit

    def _scaled_start(self, w: Floats) -> tuple[Floats, Floats, float]:
        """The fixed lattice at its best factor, with z and the squared error."""
        fixed = BASES[self.basis](self.dim)
        largest = np.abs(w @ np.linalg.inv(fixed).T).max() / ((1 << (self.bits - 1)) - 1)
        tried = [fixed * float(ratio * positive(largest)) for ratio in RATIOS]
        codes = [_babai(w, basis, self.bits) for basis in tried]
        errors = [_error(w, basis, z) for basis, z in zip(tried, codes, strict=True)]
        best = int(np.argmin(errors))
        return tried[best], codes[best], errors[best]

    def values(self, q: Quantized) -> Floats:
        assert q.tables is not None
        z = rows_of(q.codes, q.axis)
        parts = z.reshape(len(z), len(q.tables), -1, self.dim)
        found = np.einsum("rgvd,ged->rgve", parts, q.tables)
        return from_rows(found.reshape(len(z), -1), q.codes, q.axis)

    def storage_bits(self, q: Quantized) -> int:
        assert q.tables is not None
        numbers = q.tables.size if self.rounds else len(q.tables)
        return self.bits * q.codes.size + SCALE_BITS * numbers


def _babai(w: Floats, basis: Floats, bits: int) -> Floats:
    half = 1 << (bits - 1)
    z = w @ np.linalg.inv(basis).T
    np.rint(z, out=z)
    return np.clip(z, -half, half - 1, out=z)


def _error(w: Floats, basis: Floats, z: Floats) -> float:
    missed = z @ basis.T
    missed -= w
    return float(np.vdot(missed, missed))


def _least_squares_basis(w: Floats, z: Floats) -> Floats | None:
    """G of least squared error for these z; None where it is no basis, as not all directions occur."""
    gram = z.T @ z
    if np.linalg.matrix_rank(gram, hermitian=True) < len(gram):
        return None
    basis = np.linalg.solve(gram, z.T @ w).T.astype(np.float64, copy=False)
    return basis if np.linalg.cond(basis) < WORST_CONDITION else None
