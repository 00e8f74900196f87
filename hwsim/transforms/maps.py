"""Invertible maps of the channels of one group of linear layers: activations take the map, weights its inverse.

m = Hadamard(points=64, seed=1)
m.apply(x) @ m.fold_weights(W)      # == x @ W in exact arithmetic
m.on_hardware(x)                    # m.apply(x) as the unit of m.hardware() computes it, bit for bit
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hwsim.transforms.fwht import fwht, fwht_transposed, hadamard_core
from models.catalog import unit
from models.formats import IntFormat
from models.unit import InputError, require

Floats = NDArray[np.float64]

IN_BITS = 11
"""width of the integers that a Hadamard unit takes: a quantizer makes as many digits of FP16 values, and no more"""
MOST_POINTS = 1 << 16
MOST_PARALLEL = 64
"""points up to which a Hadamard unit takes a whole block a cycle; above it is folded to as many values a cycle"""
UNITS = ("hadamard",)
"""of the catalogue, that a map's activation side can run on"""
ORTHOGONAL = 1e-9
"""largest entry of Q Q^T - I that a rotation may have"""


def require_whole(what: str, value: Any, least: int) -> None:
    """InputError unless `value` is a whole number from `least`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and value >= least, f"{what}={value!r} must be a whole number from {least}")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a map does online for one token."""

    adds: int = 0
    multiplies: int = 0


class Map(Protocol):
    """x W = apply(x) fold_weights(W). Arrays are [M, K] and [K, N], float64."""

    def apply(self, x: Floats) -> Floats:
        """Activations after the map, exact up to float64 rounding."""
        ...

    def fold_weights(self, W: NDArray[Any]) -> Floats:
        """Weights that take the inverse map, computed once in float64."""
        ...

    def undo(self, x: Floats) -> Floats:
        """The activations of which `x` is the map: undo(apply(x)) = x, exact up to float64 rounding."""
        ...

    def on_hardware(self, x: Floats) -> Floats:
        """`apply(x)` as the hardware gives it: activations quantized, then the unit's exact integers."""
        ...

    def emulated(self, x: Floats) -> Floats:
        """`on_hardware(x)` in float64 arithmetic on the quantized activations, without the unit."""
        ...

    def hardware(self) -> tuple[str, dict[str, Any]] | None:
        """Name and parameters of the catalogue's unit that runs the activation side; None where there is none."""
        ...

    def cost(self, K: int) -> Cost:
        """Online work for one token of K channels."""
        ...


@dataclass(frozen=True, kw_only=True)
class Hadamard:
    """Randomised block Hadamard transform: each block of `points` channels becomes H diag(+-1) x / sqrt(points).

    H is `fwht.hadamard_matrix(points)`, natural order. The signs come from `seed`, the first one +1; without them the
    mean of non-negative inputs would pile up in one channel. In hardware each token is first quantized to symmetric
    integers of `in_bits` bits (nearest even), also at sizes that the catalogue's unit does not come in. Above
    MOST_PARALLEL points it is the unit's folded form.
    """

    points: int = 64
    in_bits: int = IN_BITS
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("points", "in_bits", "seed"):
            require_whole(f"hadamard: {name}", getattr(self, name), 0)
        require(2 <= self.points <= MOST_POINTS, f"hadamard: points={self.points} is outside 2..{MOST_POINTS}")
        hadamard_core(self.points)
        require(2 <= self.in_bits <= 16, f"hadamard: in_bits={self.in_bits} is outside 2..16")

    @property
    def signs(self) -> int:
        """Bit i is 1 where channel i of a block is negated; bit 0 is 0."""
        return sum(1 << int(i) for i in np.flatnonzero(_negated(self.points, self.seed)))

    @property
    def in_format(self) -> IntFormat:
        """What the hardware takes."""
        return IntFormat(bits=self.in_bits)

    def apply(self, x: Floats) -> Floats:
        return fwht(self._signed(self._blocks(x))).reshape(x.shape) / np.sqrt(self.points)

    def fold_weights(self, W: NDArray[Any]) -> Floats:
        # activations take R = D H^T / sqrt(points) from the right, weights R^-1 = R^T from the left: the same map
        return self.apply(np.asarray(W, dtype=np.float64).T).T

    def undo(self, x: Floats) -> Floats:
        return self._signed(fwht_transposed(self._blocks(x))).reshape(x.shape) / np.sqrt(self.points)

    def on_hardware(self, x: Floats) -> Floats:
        y, worth = self.integers(x, on_unit=True)
        return y * worth

    def emulated(self, x: Floats) -> Floats:
        y, worth = self.integers(x, on_unit=False)
        return y * worth

    def integers(self, x: Floats, *, on_unit: bool) -> tuple[Floats, Floats]:
        """What the hardware puts out, whole numbers [M, K], and the real value [M, 1] of one of each token's.

        `on_unit` asks the catalogue's unit, where it comes in this size; the numbers are the same without it.
        """
        q = self.in_format.quantize(x, axis=-1)
        worth = q.scales / np.sqrt(self.points)
        needed = self.hardware() if on_unit else None
        self._blocks(x)
        if needed is None:
            return fwht(self._signed(self._blocks(q.codes.astype(np.float64)))).reshape(x.shape), worth
        name, values = needed
        return unit(name).golden(unit(name).params(**values), q.codes).astype(np.float64), worth

    def cost(self, K: int) -> Cost:
        m = hadamard_core(self.points)
        return Cost(adds=K * ((self.points // m).bit_length() - 1 + m - 1))

    def hardware(self) -> tuple[str, dict[str, Any]] | None:
        values: dict[str, Any] = {"points": self.points, "in_bits": self.in_bits, "signs": self.signs}
        inner = self.points // hadamard_core(self.points)
        if self.points > MOST_PARALLEL and inner > 1:
            values["lanes"] = min(MOST_PARALLEL, inner) // 2
        try:
            unit(UNITS[0]).params(**values)
        except InputError:
            return None
        return UNITS[0], values

    def _blocks(self, x: Floats) -> Floats:
        """[..., K / points, points]"""
        K = x.shape[-1]
        require(K % self.points == 0, f"hadamard: {K} channels are no multiple of points={self.points}")
        return x.reshape(*x.shape[:-1], -1, self.points)

    def _signed(self, blocks: Floats) -> Floats:
        return blocks * np.where(_negated(self.points, self.seed), -1.0, 1.0)


@cache
def _negated(points: int, seed: int) -> NDArray[np.bool_]:
    flips = np.random.default_rng(seed).integers(0, 2, points) == 1
    flips[0] = False
    return flips


# What maps share that no unit computes: each names them in its class.


def _in_float(m: Map, x: Floats) -> Floats:
    """`on_hardware` and `emulated` of such a map."""
    return m.apply(x)


def _no_unit(_m: Map) -> None:
    """`hardware` of such a map."""
    return


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotation:
    """x Q of every block of channels, Q orthogonal [b, b]; as many multiplications as a linear layer of that size."""

    Q: Floats

    def __post_init__(self) -> None:
        error = np.abs(self.Q @ self.Q.T - np.eye(len(self.Q))).max()
        require(bool(error < ORTHOGONAL), f"rotation: Q Q^T is not the identity but off by {error:.1e}")

    def apply(self, x: Floats) -> Floats:
        return (_split(x, len(self.Q)) @ self.Q).reshape(x.shape)

    def fold_weights(self, W: NDArray[Any]) -> Floats:
        return self.apply(np.asarray(W, dtype=np.float64).T).T

    def undo(self, x: Floats) -> Floats:
        return (_split(x, len(self.Q)) @ self.Q.T).reshape(x.shape)

    emulated = on_hardware = _in_float
    hardware = _no_unit

    def cost(self, K: int) -> Cost:
        return Cost(adds=K * (len(self.Q) - 1), multiplies=K * len(self.Q))


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """x / s, channel by channel; s [K] positive."""

    s: Floats

    def __post_init__(self) -> None:
        usable = np.isfinite(self.s) & (self.s > 0)
        require(bool(usable.all()), f"scaling: factor {int(np.argmin(usable))} is not positive and finite")

    def apply(self, x: Floats) -> Floats:
        return x / self.s

    def fold_weights(self, W: NDArray[Any]) -> Floats:
        return self.s[:, None] * W

    def undo(self, x: Floats) -> Floats:
        return x * self.s

    emulated = on_hardware = _in_float
    hardware = _no_unit

    def cost(self, K: int) -> Cost:
        return Cost(multiplies=K)


@dataclass(frozen=True, kw_only=True, eq=False)
class Kronecker:
    """Each token as a matrix X [n1, n2] row by row becomes P1^T X P2; P1 [n1, n1] and P2 [n2, n2] invertible."""

    P1: Floats
    P2: Floats

    def apply(self, x: Floats) -> Floats:
        return _kronecker(x, self.P1, self.P2)

    def fold_weights(self, W: NDArray[Any]) -> Floats:
        return _kronecker(np.asarray(W, dtype=np.float64).T, *(inverse.T for inverse in self._inverses)).T

    def undo(self, x: Floats) -> Floats:
        return _kronecker(x, *self._inverses)

    emulated = on_hardware = _in_float
    hardware = _no_unit

    def cost(self, K: int) -> Cost:
        n1, n2 = len(self.P1), len(self.P2)
        return Cost(adds=K * (n1 + n2 - 2), multiplies=K * (n1 + n2))

    @cached_property
    def _inverses(self) -> tuple[Floats, Floats]:
        return np.linalg.inv(self.P1), np.linalg.inv(self.P2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Permutation:
    """Channel j of the result is channel order[j]: wiring, where the order is fixed."""

    order: NDArray[np.int64]

    def __post_init__(self) -> None:
        whole = np.array_equal(np.sort(self.order), np.arange(len(self.order)))
        require(whole, f"permutation: the order does not name each of {len(self.order)} channels once")

    def apply(self, x: Floats) -> Floats:
        return x[..., self.order]

    def fold_weights(self, W: NDArray[Any]) -> Floats:
        return np.asarray(W, dtype=np.float64)[self.order]

    def undo(self, x: Floats) -> Floats:
        return x[..., np.argsort(self.order)]

    emulated = on_hardware = _in_float
    hardware = _no_unit

    def cost(self, K: int) -> Cost:  # noqa: ARG002  (the protocol's)
        return Cost()


@dataclass(frozen=True, kw_only=True, eq=False)
class Flatten:
    """FlattenQuant (Zhang et al., 2024): channel j becomes copies[j] channels whose sum it is, so K grows.

    Each copy but the last holds what fits within -threshold..threshold of what the ones before it left; the last holds
    the rest, which is within it too where the channel stays within copies * threshold. Copies of a channel are
    adjacent; the weights' rows are repeated. Equal shares would gain nothing: their rounding errors are the same.
    """

    threshold: float
    copies: NDArray[np.int64]
    """[K] at least 1"""

    def __post_init__(self) -> None:
        require(self.threshold > 0, f"flatten: threshold={self.threshold!r} must be positive")
        require(bool((self.copies >= 1).all()), "flatten: every channel has at least one copy")

    def apply(self, x: Floats) -> Floats:
        first = np.repeat(np.cumsum(self.copies) - self.copies, self.copies)
        position = np.arange(len(first)) - first
        before = np.repeat(x, self.copies, axis=-1)
        taken = np.sign(before) * np.minimum(np.abs(before), position * self.threshold)
        rest = before - taken
        is_last = position == np.repeat(self.copies, self.copies) - 1
        return np.where(is_last, rest, np.clip(rest, -self.threshold, self.threshold))

    def fold_weights(self, W: NDArray[Any]) -> Floats:
        return np.repeat(np.asarray(W, dtype=np.float64), self.copies, axis=0)

    def undo(self, x: Floats) -> Floats:
        starts = np.cumsum(self.copies) - self.copies
        return np.add.reduceat(x, starts, axis=-1)

    emulated = on_hardware = _in_float
    hardware = _no_unit

    def cost(self, K: int) -> Cost:
        return Cost(adds=int(self.copies.sum()) - K)


def _split(x: Floats, size: int) -> Floats:
    """[..., K / size, size]"""
    require(x.shape[-1] % size == 0, f"rotation: {x.shape[-1]} channels are no multiple of {size}")
    return x.reshape(*x.shape[:-1], -1, size)


def _kronecker(x: Floats, P1: Floats, P2: Floats) -> Floats:
    """P1^T X P2 of each token as X [n1, n2]."""
    n1, n2 = len(P1), len(P2)
    require(x.shape[-1] == n1 * n2, f"kronecker: {x.shape[-1]} channels are not {n1} x {n2}")
    return np.asarray(P1.T @ (x.reshape(-1, n1, n2) @ P2)).reshape(x.shape)


def with_worth(m: Map, y: Floats, worth: Floats, *, on_unit: bool) -> tuple[Floats, Floats]:
    """The map of `y` times `worth` [M, 1] in the same form: whole numbers and the real value of one of each token's
    where the map is in integers, else real numbers and ones.

    Integers are made of y alone, so that no code hangs on how a token's scale was rounded: whole numbers often lie
    half-way between two codes.
    """
    if isinstance(m, Hadamard):
        mapped, unit_worth = m.integers(y, on_unit=on_unit)
        return mapped, unit_worth * worth
    if isinstance(m, Permutation):
        return m.apply(y), worth
    x = y * worth
    return m.on_hardware(x) if on_unit else m.emulated(x), np.ones((len(x), 1))
