"""Transforms that spread outliers before quantization: activations go through hardware, weights take the inverse.

t = get_transform("hadamard", points=64, seed=1)
t.apply(x) @ t.fold_weights(W)      # == x @ W in exact arithmetic
t.on_hardware(x)                    # t.apply(x) as the unit of t.hardware() computes it, bit for bit
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.catalog import unit
from models.formats import IntFormat
from models.unit import nearest, require

Floats = NDArray[np.float64]

FWHT_BLOCK = 4096
"""Points whose stages are finished before the next ones are touched: 32 KiB of float64, within a first-level cache."""


def fwht(x: NDArray[Any], axis: int = -1) -> NDArray[Any]:
    """Walsh-Hadamard transform along `axis`, natural (Sylvester) order, not normalised: H x with entries +1 and -1.

    float32, float64 or int64 in and out; the length a power of two, otherwise InputError. Integers are exact: values
    whose sums could leave int64 are refused. Additions are rounded in the order of the butterflies, stride 1 first.
    """
    x = np.asarray(x)
    require(x.dtype in (np.float32, np.float64, np.int64), f"fwht: float32, float64 or int64 is needed, not {x.dtype}")
    require(x.ndim > 0, "fwht: a scalar has no axis to transform")
    require(-x.ndim <= axis < x.ndim, f"fwht: axis {axis} is outside -{x.ndim}..{x.ndim - 1}")
    n = x.shape[axis]
    _require_power_of_two("fwht: the length", n)
    if x.dtype == np.int64 and x.size:
        most = max(-int(x.min()), int(x.max()))
        require(most * n < 1 << 63, f"fwht: {n} values of magnitude {most} may sum to more than int64 holds")
    rows = np.ascontiguousarray(np.moveaxis(x, axis, -1)).reshape(-1, n)
    return np.moveaxis(_transformed(rows).reshape(np.moveaxis(x, axis, -1).shape), -1, axis)


def _require_power_of_two(what: str, n: int) -> None:
    below = 1 << max(n.bit_length() - 1, 0)
    require(n > 0 and n == below, f"{what} {n} is not a power of two; nearest: {below} or {2 * below}")


def _transformed(rows: NDArray[Any]) -> NDArray[Any]:
    """The transform of each contiguous row: first the strides within cache-sized blocks, then the longer ones."""
    n = rows.shape[1]
    block = min(n, FWHT_BLOCK)
    out = np.empty_like(rows)
    kernel = _kernel()
    kernel(rows.reshape(-1, block), out.reshape(-1, block), 1)
    if block < n:
        kernel(out, out, block)
    return out


@cache
def _kernel() -> Any:
    from models.gemm_kernels import compiled  # numba, for those who transform alone

    return compiled(nogil=True)(_butterflies)


def _butterflies(rows: NDArray[Any], out: NDArray[Any], stride: int) -> None:
    """out = the stages of strides stride, 2 stride, .. of each row; strides 1, 2, 4 in one pass, then two at a time.

    Four parallel slices, not eight: more of them and the compiler gives up proving that they do not overlap.
    """
    count, n = rows.shape
    for r in range(count):
        x, y = rows[r], out[r]
        h = stride
        if h == 1 and n >= 8:
            for i in range(0, n, 8):
                a0, a1 = x[i] + x[i + 1], x[i] - x[i + 1]
                a2, a3 = x[i + 2] + x[i + 3], x[i + 2] - x[i + 3]
                a4, a5 = x[i + 4] + x[i + 5], x[i + 4] - x[i + 5]
                a6, a7 = x[i + 6] + x[i + 7], x[i + 6] - x[i + 7]
                b0, b1, b2, b3 = a0 + a2, a1 + a3, a0 - a2, a1 - a3
                b4, b5, b6, b7 = a4 + a6, a5 + a7, a4 - a6, a5 - a7
                y[i], y[i + 1], y[i + 2], y[i + 3] = b0 + b4, b1 + b5, b2 + b6, b3 + b7
                y[i + 4], y[i + 5], y[i + 6], y[i + 7] = b0 - b4, b1 - b5, b2 - b6, b3 - b7
            h = 8
        elif h == 1:
            y[:] = x
        while 4 * h <= n:
            for i in range(0, n, 4 * h):
                p0, p1 = y[i : i + h], y[i + h : i + 2 * h]
                p2, p3 = y[i + 2 * h : i + 3 * h], y[i + 3 * h : i + 4 * h]
                for j in range(h):
                    s0, d0 = p0[j] + p1[j], p0[j] - p1[j]
                    s1, d1 = p2[j] + p3[j], p2[j] - p3[j]
                    p0[j], p1[j], p2[j], p3[j] = s0 + s1, d0 + d1, s0 - s1, d0 - d1
            h *= 4
        if h < n:
            p0, p1 = y[:h], y[h:]
            for j in range(h):
                p0[j], p1[j] = p0[j] + p1[j], p0[j] - p1[j]


class Transform(Protocol):
    """An invertible map of the channels: x W = apply(x) fold_weights(W)."""

    def apply(self, x: Floats) -> Floats:
        """Activations [M, K] after the map, exact up to float64 rounding."""
        ...

    def fold_weights(self, W: NDArray[Any]) -> Floats:
        """Weights [K, N] that take the inverse map, computed once in float64."""
        ...

    def on_hardware(self, x: Floats) -> Floats:
        """`apply(x)` as the hardware gives it: activations [M, K] quantized, then the unit's exact integers."""
        ...

    def emulated(self, x: Floats) -> Floats:
        """`on_hardware(x)` in float64 arithmetic on the quantized activations, without the unit."""
        ...

    def hardware(self) -> tuple[str, dict[str, Any]] | None:
        """Name and parameters of the catalogue's unit that runs the activation side; None where there is none."""
        ...


@dataclass(frozen=True, kw_only=True)
class NoTransform:
    """Activations and weights as they are."""

    def apply(self, x: Floats) -> Floats:
        return x

    def fold_weights(self, W: NDArray[Any]) -> Floats:
        return np.asarray(W, dtype=np.float64)

    def on_hardware(self, x: Floats) -> Floats:
        return x

    def emulated(self, x: Floats) -> Floats:
        return x

    def hardware(self) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class HadamardTransform:
    """Randomised block Hadamard transform: each block of `points` channels becomes H diag(+-1) x / sqrt(points).

    The signs come from `seed`, the first one +1; without them the mean of non-negative inputs would pile up in one
    channel. In hardware each token is first quantized to symmetric integers of `in_bits` bits (nearest even).
    """

    points: int = 64
    in_bits: int = 12
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("points", "in_bits", "seed"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole and value >= 0, f"hadamard: {name}={value!r} must be a whole number from 0")
        _require_power_of_two("hadamard: points", self.points)
        require(2 <= self.points <= 1024, f"hadamard: points={self.points} is outside 2..1024")
        require(2 <= self.in_bits <= 16, f"hadamard: in_bits={self.in_bits} is outside 2..16")

    @property
    def signs(self) -> int:
        """Bit i is 1 where channel i of a block is negated; bit 0 is 0."""
        flips = np.random.default_rng(self.seed).integers(0, 2, self.points)
        return sum(1 << i for i in range(1, self.points) if flips[i])

    def apply(self, x: Floats) -> Floats:
        return fwht(self._signed_blocks(x)).reshape(x.shape) / np.sqrt(self.points)

    def fold_weights(self, W: NDArray[Any]) -> Floats:
        # (D H)^-1 = H D / points, and W's columns see it from the left: the same map as for activations
        return self.apply(np.asarray(W, dtype=np.float64).T).T

    def on_hardware(self, x: Floats) -> Floats:
        self._require_blocks(x)
        q = IntFormat(bits=self.in_bits).quantize(x, axis=-1)
        name, values = self.hardware()
        y = unit(name).golden(unit(name).params(**values), q.codes)
        return y * (q.scales / np.sqrt(self.points))

    def emulated(self, x: Floats) -> Floats:
        q = IntFormat(bits=self.in_bits).quantize(x, axis=-1)
        # scaled after the transform as hardware does: scaled before, sums at a rounding tie of the next quantizer move
        y = fwht(self._signed_blocks(q.codes.astype(np.float64))).reshape(x.shape)
        return y * (q.scales / np.sqrt(self.points))

    def hardware(self) -> tuple[str, dict[str, Any]]:
        return "hadamard", {"points": self.points, "in_bits": self.in_bits, "signs": self.signs}

    def _require_blocks(self, x: Floats) -> None:
        K = x.shape[-1]
        require(K % self.points == 0, f"hadamard: {K} channels are no multiple of points={self.points}")

    def _signed_blocks(self, x: Floats) -> Floats:
        """[..., K / points, points] with the signs applied."""
        self._require_blocks(x)
        mask = self.signs
        signs = np.array([-1.0 if mask >> i & 1 else 1.0 for i in range(self.points)])
        return x.reshape(*x.shape[:-1], -1, self.points) * signs


TRANSFORMS: Mapping[str, type] = {"none": NoTransform, "hadamard": HadamardTransform}


def get_transform(name: str, **options: Any) -> Transform:
    """The transform of that name with these options; InputError names the nearest name or option."""
    require(name in TRANSFORMS, f"no transform {name!r}; {nearest(name, TRANSFORMS)}")
    known = [field.name for field in dataclasses.fields(TRANSFORMS[name])]
    for option in options:
        require(
            option in known,
            f"transform {name}: no option {option!r}; {nearest(option, known) if known else 'it takes none'}",
        )
    transform: Transform = TRANSFORMS[name](**options)
    return transform
