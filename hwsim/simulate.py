"""One GEMM on one engine: its exact output, its exact cycles, its operations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bits import signed_range
from models.catalog import unit_of
from models.floats import ActFormat
from models.unit import Kind, Op, Timing, require


@dataclass(frozen=True, kw_only=True)
class GemmResult:
    """What an engine makes of a GEMM."""

    output: NDArray[Any]
    """Y[M, N] in units of A @ W: int64 where the engine is exact, else (FP16 activations, quantized tables) float64"""
    timing: Timing
    ops: tuple[Op, ...]


def simulate_gemm(params: Any, A: Any, W: Any, psum: Any = None) -> GemmResult:
    """Y = psum + A @ W on the engine that `params` belongs to, bit for bit.

    `A` [M, K] holds integers of `act_bits`, or with FP16 activations what FP16 holds. `W` is what the engine takes, or
    a plain integer matrix [K, N] of which it can hold every value. An engine may then count in fractions of a unit:
    binary code holds 2 W, so that its accumulators of `acc_bits` hold 2 Y, which wraps or saturates one bit earlier
    than Y would. The output is in whole units (an arithmetic shift; a quotient in float64 where a unit is no power of
    two). `psum` [M, N], where the engine takes one, is in the output's units.

    Raises InputError for operands that do not fit the engine or each other, or a unit that is no GEMM engine.
    """
    entry = unit_of(params)
    require(entry.kind is Kind.GEMM, f"{entry.name} multiplies no matrices; take a GEMM engine")
    plain = isinstance(W, (np.ndarray, list, tuple))
    a = _numbers("A", A) if is_float(params) else _matrix("A", A)
    operand, worth = entry.from_integers(params, _matrix("W", W)) if plain else (W, Fraction(1))
    start = () if psum is None else (_in_steps(params, psum, worth),)
    output = entry.golden(params, a, operand, *start)
    shape = entry.shape_of(params, a, operand)
    return GemmResult(
        output=in_units(output, worth), timing=entry.timing(params, **shape), ops=entry.ops(params, **shape)
    )


def is_float(params: Any) -> bool:
    """Whether the engine takes FP16 activations."""
    return getattr(params, "act_format", ActFormat.INT) is ActFormat.FP16


def in_units(output: NDArray[Any], worth: Fraction) -> NDArray[Any]:
    """What an engine put out, in units of A @ W: `worth` of them is one of its own."""
    if output.dtype.kind == "i" and worth.numerator == 1 and worth.denominator.bit_count() == 1:
        return output >> (worth.denominator.bit_length() - 1)
    return output.astype(np.float64) * worth.numerator / worth.denominator


def _in_steps(params: Any, psum: Any, worth: Fraction) -> NDArray[Any]:
    """A starting partial sum in what the engine counts in."""
    if is_float(params):
        return _single_steps(_numbers("psum", psum), worth)
    sums = _matrix("psum", psum)
    bad = sums[np.abs(sums.astype(np.float64)) > LARGEST_PSUM // worth.denominator]
    require(not bad.size, f"psum: {bad[:1].tolist()} is beyond what any accumulator holds")
    return sums.astype(np.int64) * worth.denominator // worth.numerator


def _single_steps(psum: NDArray[Any], worth: Fraction) -> NDArray[np.float32]:
    """Rounded to single precision where a step is no power of two."""
    steps = psum.astype(np.float64) * worth.denominator / worth.numerator
    bad = psum[~(np.abs(steps) <= float(np.finfo(np.float32).max))]
    require(not bad.size, f"psum: {bad[:1].tolist()} is beyond single precision in the engine's steps of {worth}")
    return steps.astype(np.float32)


def random_operands(
    params: Any, rng: np.random.Generator, shape: tuple[int, int, int], sigma: float | None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """A [M, K] and plain W [K, N] for an engine: integers of its widths, uniform, or normal of spread `sigma`.

    FP16 activations are normal, of spread 1 where `sigma` is none, clipped to the largest half. Integers are of those
    that the engine can hold: uniform among them, or the nearest to the normal ones.
    """
    m, k, n = shape
    entry = unit_of(params)
    if is_float(params):
        a = normal_halves(rng, (m, k), 1.0 if sigma is None else sigma)
    else:
        a = _drawn(rng, entry.plain_acts(params), (m, k), sigma)
    return a, _drawn(rng, entry.plain_weights(params), (k, n), sigma)


def _drawn(
    rng: np.random.Generator, held: NDArray[np.int64], shape: tuple[int, int], sigma: float | None
) -> NDArray[np.int64]:
    if sigma is None:
        return held[rng.integers(len(held), size=shape)]
    return _nearest(held, normal_integers(rng, shape, sigma, LARGEST_BITS))


LARGEST_PSUM = 1 << 56
"""magnitude of a starting partial sum in an engine's own steps"""

LARGEST_BITS = 32
"""of a weight before it becomes one that the engine holds"""


def _nearest(held: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of `held`, ascending and two at least, the one nearest to each value; of two as near, the greater."""
    above = np.searchsorted(held, values).clip(1, len(held) - 1)
    below = above - 1
    return np.where(values - held[below] < held[above] - values, held[below], held[above])


def normal_halves(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> NDArray[np.float16]:
    """N(0, sigma) in FP16, clipped to the largest."""
    _check_sigma(sigma)
    largest = float(np.finfo(np.float16).max)
    return np.clip(rng.normal(0.0, sigma, shape), -largest, largest).astype(np.float16)


def normal_integers(rng: np.random.Generator, shape: tuple[int, int], sigma: float, bits: int) -> NDArray[np.int64]:
    """round(N(0, sigma)), clipped to what `bits` two's-complement bits hold: like the codes of a trained layer."""
    _check_sigma(sigma)
    low, high = signed_range(bits)
    return np.clip(np.rint(rng.normal(0.0, sigma, shape)), low, high).astype(np.int64)


def _check_sigma(sigma: float) -> None:
    require(math.isfinite(sigma) and sigma >= 0, f"sigma must be a finite number of at least 0, not {sigma}")


def _numbers(name: str, values: Any) -> NDArray[Any]:
    matrix = np.asarray(values)
    rule = f"{name} must be a matrix of numbers"
    require(matrix.ndim == 2 and matrix.dtype.kind in "iuf", f"{rule}, not {matrix.dtype} of shape {matrix.shape}")
    return matrix


def _matrix(name: str, values: Any) -> NDArray[np.integer[Any]]:
    matrix = np.asarray(values)
    whole = np.issubdtype(matrix.dtype, np.integer) or matrix.dtype == np.bool_
    rule = f"{name} must be a matrix of integers"
    require(matrix.ndim == 2 and bool(whole), f"{rule}, not {matrix.dtype} of shape {matrix.shape}")
    return matrix
