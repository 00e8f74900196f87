"""The clipping range of least squared weight error, searched on a grid."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.quantizers.parts import Part, Problem
from models.quantized import Format, Quantized, positive
from models.unit import require

Floats = NDArray[np.float64]

GRID = tuple(1.0 - 0.04 * i for i in range(21))
"""Shares of a group's range that are tried: 1.00, 0.96, .. 0.20."""


@dataclass(frozen=True, kw_only=True)
class Mse:
    """One product: each group of weights (column, where groups share a step) takes the share of `GRID` at which its
    squared error is least; of equal errors the widest range wins, so it is never worse than without clipping."""

    def __call__(self, problem: Problem) -> tuple[Part, ...]:
        return (Part(weights=clip_searched(problem.W, problem.weights), activations=problem.activations),)


def clip_searched(W: Floats, weights: Format) -> Quantized:
    """W [K, N] along axis 0 in that format with the best clips of `GRID`; InputError for formats without `clip`."""
    named = type(weights).__name__.removesuffix("Format").lower()
    require(hasattr(weights, "clip"), f"format {named} has no clipping range to search; nearest: quantizer 'rtn'")
    base: Any = weights
    best: Quantized = base.quantize(W, axis=0)
    # a step that groups share must come from one range
    sets = best.scales.shape[0] if best.step is None or best.step.shape[0] == W.shape[0] else 1
    unit = positive(np.abs(W).max(axis=0))  # squares of real numbers could leave float64's range
    least = _errors(best, W, unit, sets)
    for clip in GRID[1:]:
        other = dataclasses.replace(base, clip=base.clip * clip).quantize(W, axis=0)
        errors = _errors(other, W, unit, sets)
        best, least = _merged(best, other, errors < least), np.minimum(errors, least)
    return best


def _errors(q: Quantized, W: Floats, unit: Floats, sets: int) -> Floats:
    """Squared errors [sets, N] of runs of equally many rows, in units [N]."""
    apart: Floats = ((q.dequantize() - W) / unit).reshape(sets, -1, W.shape[1])
    squares: Floats = np.einsum("skn,skn->sn", apart, apart)
    return squares


def _merged(one: Quantized, other: Quantized, better: NDArray[np.bool_]) -> Quantized:
    """`other` where `better` [sets, N], `one` elsewhere."""

    def pick(a: Any, b: Any) -> Any:
        return None if a is None else np.where(np.repeat(better, a.shape[0] // better.shape[0], axis=0), b, a)

    names = ("codes", "scales", "offsets", "integers", "step", "scale_codes", "spans")
    return dataclasses.replace(one, **{name: pick(getattr(one, name), getattr(other, name)) for name in names})
