"""Scale propagation: arrays as narrow data times a power of two that every operation passes on (Scalify, Balança et al.
2024).

    y = matmul(scaled(x, np.float16), scaled(w, np.float16))
    y.value()                                   # float64

Scales follow the rules of unit scaling, rounded down to powers of two: data that are near 1 stay near 1. A power of two
changes no significand, so as long as no datum leaves its type's range every result is what the same operation gives on
the values themselves, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from models.quantized import checked
from models.unit import require

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaledArray:
    """data * scale. InputError unless the scale is a power of two within float64's normal range."""

    data: NDArray[Any]
    """of a floating type"""
    scale: float

    def __post_init__(self) -> None:
        fits = np.finfo(np.float64).tiny <= self.scale <= np.finfo(np.float64).max
        exact = fits and np.frexp(self.scale)[0] == 0.5
        require(bool(exact), f"scaled array: scale={self.scale!r} is no power of two from 2^-1022 to 2^1023")

    def value(self) -> Floats:
        """The real numbers, in float64."""
        return self.data.astype(np.float64) * self.scale


def scaled(x: ArrayLike, dtype: DTypeLike, scale: float | None = None) -> ScaledArray:
    """x as data of `dtype`, rounded once to nearest even; the scale is the root mean square's power of two (1 for
    zeros) unless given. InputError on NaN, infinities or empty arrays."""
    values, _ = checked(x, -1)
    chosen = _root_mean_square(values) if scale is None else scale
    return ScaledArray(data=(values / chosen).astype(dtype), scale=chosen)


def matmul(a: ScaledArray, b: ScaledArray) -> ScaledArray:
    """a @ b; the root of the reduction's length goes into the scale. Sums are at least float32, data round once after
    them."""
    unit = _power_of_two(np.sqrt(a.data.shape[-1]))
    kept = np.promote_types(a.data.dtype, b.data.dtype)
    wide = np.promote_types(kept, np.float32)
    data = (a.data.astype(wide) @ b.data.astype(wide)) / wide.type(unit)
    return ScaledArray(data=data.astype(kept), scale=a.scale * b.scale * unit)


def add(a: ScaledArray, b: ScaledArray) -> ScaledArray:
    """a + b under the scale of the sum of independent terms, sqrt(s_a^2 + s_b^2).

    Terms are scaled and summed in float64, data round once after that: the ratio of the scales may be below every
    number of a narrow type whose product with the data is not.
    """
    scale = _power_of_two(np.hypot(a.scale, b.scale))
    kept = np.promote_types(a.data.dtype, b.data.dtype)
    return ScaledArray(data=(_under(scale, a) + _under(scale, b)).astype(kept), scale=scale)


def _under(scale: float, a: ScaledArray) -> Floats:
    """The data [float64] that stand for the values of `a` under another power of two, exact in the normal range."""
    places = np.frexp(a.scale)[1] - np.frexp(scale)[1]
    return np.asarray(np.ldexp(a.data.astype(np.float64), places))


def multiply(a: ScaledArray, b: ScaledArray) -> ScaledArray:
    """Elementwise product."""
    return ScaledArray(data=a.data * b.data, scale=a.scale * b.scale)


def total(a: ScaledArray, axis: int) -> ScaledArray:
    """Sum along `axis`; the root of its length goes into the scale. Sums are at least float32."""
    unit = _power_of_two(np.sqrt(a.data.shape[axis]))
    wide = np.promote_types(a.data.dtype, np.float32)
    data = a.data.sum(axis=axis, dtype=wide) / wide.type(unit)
    return ScaledArray(data=data.astype(a.data.dtype), scale=a.scale * unit)


def homogeneous(function: Callable[[NDArray[Any]], NDArray[Any]], a: ScaledArray) -> ScaledArray:
    """f with f(s x) = s f(x) for s > 0, such as ReLU, a maximum or a transposition: the scale passes unchanged."""
    return ScaledArray(data=function(a.data), scale=a.scale)


def elementwise(function: Callable[[Floats], Floats], a: ScaledArray) -> ScaledArray:
    """Any other function of the values, computed in float64 and kept with scale 1: no rule carries a scale through."""
    return ScaledArray(data=function(a.value()).astype(a.data.dtype), scale=1.0)


def rescaled(a: ScaledArray) -> ScaledArray:
    """The same values under the power of two of their root mean square (dynamic rescaling)."""
    scale = _root_mean_square(a.value())
    return ScaledArray(data=(a.data.astype(np.float64) * (a.scale / scale)).astype(a.data.dtype), scale=scale)


def _power_of_two(x: float) -> float:
    """The largest power of two not above x > 0."""
    return float(np.ldexp(0.5, np.frexp(x)[1]))


def _root_mean_square(x: Floats) -> float:
    """As a power of two; 1 for zeros."""
    largest = float(np.abs(x).max())
    if largest == 0.0:
        return 1.0
    return _power_of_two(largest * np.sqrt(((x / largest) ** 2).mean()))
