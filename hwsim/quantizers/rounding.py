"""Rounding to nearest: whole layers as their format says, and single rows under scales that are fixed already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.quantizers.parts import Part, Problem
from models.formats import (
    ApotFormat,
    BcqFormat,
    BinaryFormat,
    BipolarFormat,
    Fp4Ue5m3Format,
    Fp8Format,
    IntFormat,
    MxFormat,
    Nvfp4Format,
    Quantized,
    TernaryFormat,
    TwinlogFormat,
    apot_levels,
    signs_of,
)
from models.formats_pot import nearest_index
from models.minifloats import ELEMENTS, code_values, encode_blocks
from models.quantized import rounded
from models.unit import Ints, require

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Rtn:
    """One product: weights and activations as their formats quantize them."""

    def __call__(self, problem: Problem) -> tuple[Part, ...]:
        weights = problem.weights.quantize(problem.W, axis=0)
        return (Part(weights=weights, activations=problem.activations),)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounded:
    """One row of weights [N] under fixed scales; the fields as in `Quantized`."""

    codes: Ints
    integers: Ints | None
    values: Floats


NearestIn = Callable[[int, Floats], Rounded]
"""(row k, values [N]) -> what row k holds instead of these values"""


def nearest_in(q: Quantized) -> NearestIn:
    """How rows of weights like `q` [K, N], quantized along axis 0, are rounded under the scales that `q` has.

    Each format rounds as its `quantize` does, ties included, but for two: twin-log takes the level nearest in value
    instead of in the log domain, and NVFP4 forms its quotients in float64. Values beyond the largest level saturate.
    InputError for formats whose codes cannot be chosen one by one under given scales, and for stochastic rounding.
    """
    kinds = ", ".join(kind.__name__.removesuffix("Format").lower() for kind in _KINDS)
    named = type(q.format).__name__.removesuffix("Format").lower()
    require(type(q.format) in _KINDS, f"weights of format {named} are not rounded row by row; nearest: {kinds}")
    fixed = getattr(q.format, "rounding", "") != "stochastic"
    require(fixed, f"weights of format {named}: stochastic rounding cannot be compensated; nearest: 'nearest_even'")
    require(q.axis == 0 and q.codes.ndim == 2, "rows are rounded in matrices [K, N] quantized along axis 0 alone")
    return _KINDS[type(q.format)](q)


def rounded_matrix(q: Quantized) -> tuple[Ints, Ints | None]:
    """Empty codes and integers of the shape of `q`'s, to be filled row by row."""
    return np.empty_like(q.codes), None if q.integers is None else np.empty_like(q.integers)


def _row(x: NDArray[Any], k: int) -> NDArray[Any]:
    """Row k of an array that is 1 long where all rows share it."""
    row: NDArray[Any] = x[0 if x.shape[0] == 1 else k]
    return row


def _scaled(q: Quantized, k: int, codes: Ints, integers: Ints) -> Rounded:
    assert q.step is not None
    return Rounded(codes=codes, integers=integers, values=integers * _row(q.step, k))


def _integers(q: Quantized) -> NearestIn:
    f: Any = q.format
    zeros = np.zeros(q.scales.shape, dtype=np.int64) if q.offsets is None else q.offsets
    numbers = np.ones(q.scales.shape, dtype=np.int64) if q.scale_codes is None else q.scale_codes

    def nearest(k: int, x: Floats) -> Rounded:
        g = k // q.group
        factor, divisor = f.quotient(None if q.spans is None else q.spans[g], q.scales[g])
        whole = rounded(x * factor / divisor, f.rounding, None) + zeros[g]
        codes = np.clip(whole, *f.code_range).astype(np.int64)
        return _scaled(q, k, codes, numbers[g] * (codes - zeros[g]))

    return nearest


def _apot(q: Quantized) -> NearestIn:
    f: Any = q.format
    levels = apot_levels(f.bits)

    def nearest(k: int, x: Floats) -> Rounded:
        index = nearest_index(np.abs(x) / (q.scales[k // q.group] / levels[-1]), levels)
        sign = np.where(x < 0, -1, 1)
        return _scaled(q, k, sign * index, sign * levels[index])

    return nearest


def _ternary(q: Quantized) -> NearestIn:
    def nearest(k: int, x: Floats) -> Rounded:
        codes = np.clip(np.rint(x / q.scales[0]), -1, 1).astype(np.int64)
        return _scaled(q, k, codes, codes)

    return nearest


def _binary(q: Quantized) -> NearestIn:
    def nearest(k: int, x: Floats) -> Rounded:
        codes = (x >= 0.0).astype(np.int64)
        return _scaled(q, k, codes, 2 * codes - 1)

    return nearest


def _bipolar(q: Quantized) -> NearestIn:
    f: Any = q.format
    largest = (1 << f.bits) - 1
    divisor = np.where(q.scales[0] == 0.0, 1.0, q.scales[0])

    def nearest(k: int, x: Floats) -> Rounded:
        integers = np.clip(2 * np.floor(x / divisor / 2.0) + 1, -largest, largest).astype(np.int64)
        return _scaled(q, k, (integers + largest) >> 1, integers)

    return nearest


def _minifloats(q: Quantized) -> NearestIn:
    f: Any = q.format
    element = getattr(f, "element", "e2m1")
    kind, values = ELEMENTS[element], code_values(element)

    def nearest(k: int, x: Floats) -> Rounded:
        scale = q.scales[k // q.group]
        unit = np.where(scale == 0.0, np.inf, scale)  # a block whose scale is 0 holds zeros
        codes = encode_blocks(kind, x[:, None], unit[:, None], f.rounding, None)[:, 0]
        return Rounded(codes=codes, integers=None, values=values[codes] * scale)

    return nearest


# ------------------------------------------------------------------------- levels that every group has of its own


@dataclass(frozen=True, kw_only=True, eq=False)
class Levels:
    """Each output's own levels, ascending."""

    values: NDArray[Any]
    """[N, L]"""
    codes: Ints
    """[N, L]"""

    def nearest(self, x: Floats) -> tuple[Ints, NDArray[Any]]:
        """Codes and levels [N] nearest to x [N]; a tie takes the lower level."""
        middle = (self.values[:, 1:] + self.values[:, :-1]) / 2.0
        place = (np.arange(len(x)), (x[:, None] > middle).sum(axis=1))
        return self.codes[place], self.values[place]


def bcq_levels(scales: NDArray[Any], offsets: NDArray[Any]) -> Levels:
    """The 2^bits levels of each output, from scales [bits, N] and offsets [N], real or integer."""
    bits = scales.shape[0]
    values = scales.T @ signs_of(np.arange(1 << bits, dtype=np.int64), bits) + offsets[:, None]
    codes = np.argsort(values, axis=1, kind="stable")
    return Levels(values=np.take_along_axis(values, codes, axis=1), codes=codes)


def _bcq(q: Quantized) -> NearestIn:
    """In units of the step where there is one, otherwise in real scales."""
    if q.scale_codes is not None and q.offset_codes is not None:
        scales: NDArray[Any] = q.scale_codes
        offsets: NDArray[Any] = q.offset_codes
    else:
        assert q.offsets is not None
        scales, offsets = q.scales, q.offsets

    @lru_cache(maxsize=32)  # neighbouring rows share a group; all groups at once would fill the memory at 8 bits
    def levels(group: int) -> Levels:
        return bcq_levels(scales[:, group], offsets[group])

    def nearest(k: int, x: Floats) -> Rounded:
        unit = 1.0 if q.step is None else _row(q.step, k)
        codes, found = levels(k // q.group).nearest(x / unit)
        return Rounded(codes=codes, integers=None if q.step is None else found, values=found * unit)

    return nearest


def _twinlog(q: Quantized) -> NearestIn:
    assert q.tables is not None
    order = np.argsort(q.tables, axis=-1, kind="stable")
    ascending = np.take_along_axis(q.tables, order, axis=-1)

    def nearest(k: int, x: Floats) -> Rounded:
        g = k // q.group
        codes, values = Levels(values=ascending[g], codes=order[g]).nearest(x)
        return Rounded(codes=codes, integers=None, values=values)

    return nearest


_KINDS: Mapping[type, Callable[[Quantized], NearestIn]] = {
    IntFormat: _integers,
    ApotFormat: _apot,
    TernaryFormat: _ternary,
    BinaryFormat: _binary,
    BipolarFormat: _bipolar,
    BcqFormat: _bcq,
    TwinlogFormat: _twinlog,
    **dict.fromkeys((Fp8Format, MxFormat, Nvfp4Format, Fp4Ue5m3Format), _minifloats),
}
