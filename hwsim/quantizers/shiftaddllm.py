"""ShiftAddLLM: binary code with power-of-two scales, fitted group by group while errors are compensated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.quantizers.gptq import compensate, hessian, inverse_factor, require_damping
from hwsim.quantizers.parts import Part, Problem
from hwsim.quantizers.rounding import Levels, bcq_levels
from models.formats import BcqFormat, Quantized, nearest_pot
from models.unit import Ints, require

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ShiftAddLlm:
    """One product in binary code whose scales are sums of powers of two (You et al. 2024, "multi-objective").

    Input channels are rounded in order with GPTQ's compensation; where a group of channels begins, its scales are
    fitted anew to the compensated weights and rounded to powers of two. The step that all scales share is that of the
    weights before compensation. Weights [K, N] need format bcq with `num_terms` and `max_shift`: with group=1 and
    blocks=1 these are the paper's column-wise scales, with group=8 and blocks=8 its block-wise ones.

    Unlike the paper's, rounded scales are the nearest sums of terms (see `nearest_pot`), and every layer has the
    format's bits: the paper's allocation of bits to layers is not here.
    """

    damping: float = 0.01

    def __post_init__(self) -> None:
        require_damping("shiftaddllm", self.damping)

    def __call__(self, problem: Problem) -> tuple[Part, ...]:
        weights = problem.weights
        fits = isinstance(weights, BcqFormat) and weights.num_terms is not None
        require(fits, "shiftaddllm: weights need format bcq with num_terms and max_shift")
        factor = inverse_factor(hessian(problem.X, self.damping))
        return (Part(weights=_fitted(problem.W, factor, weights), activations=problem.activations),)


def _fitted(W: Floats, U: Floats, weights: Any) -> Quantized:
    """W [K, N] in format `weights`, compensated with the factor U of its inverse Hessian."""
    start: Quantized = weights.quantize(W, axis=0)
    assert start.step is not None
    assert start.offset_codes is not None
    step = start.step[0]
    numbers = np.concatenate([start.scale_codes, start.offset_codes[None]])
    codes, integers = np.empty_like(start.codes), np.empty_like(start.codes)
    levels: Levels

    def choose(k: int, rows: Floats) -> Floats:
        nonlocal levels
        group = k // start.group
        if k % start.group == 0:
            numbers[:, group] = _numbers(rows / step, weights)
            levels = bcq_levels(numbers[:-1, group], numbers[-1, group])
        codes[k], integers[k] = levels.nearest(rows[0] / step)
        added: Floats = integers[k] * step
        return added

    compensate(W.copy(), U, choose, start.group)
    return dataclasses.replace(
        start,
        codes=codes,
        integers=integers,
        scales=numbers[:-1] * start.step,
        offsets=numbers[-1] * start.step,
        scale_codes=numbers[:-1],
        offset_codes=numbers[-1],
    )


def _numbers(units: Floats, weights: Any) -> Ints:
    """Scales and, last, the offset [bits + 1, N] of one group of rows [group, N] in units of the step."""
    real = dataclasses.replace(weights, num_terms=None, max_shift=None).quantize(units, axis=0)
    return nearest_pot(np.concatenate([real.scales[:, 0], real.offsets]), weights.num_terms, weights.max_shift)
