"""One GEMM on one engine: its exact output, its exact cycles, its operations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bits import signed_range
from models.catalog import unit_of
from models.unit import Kind, Op, Timing, require


@dataclass(frozen=True, kw_only=True)
class GemmResult:
    """What an engine makes of a GEMM."""

    output: NDArray[np.int64]
    """Y[M, N] as the engine's accumulators leave it, without their fraction bits where W was a plain integer matrix"""
    timing: Timing
    ops: tuple[Op, ...]


def simulate_gemm(params: Any, A: Any, W: Any, psum: Any = None) -> GemmResult:
    """Y = psum + A @ W on the engine that `params` belongs to, bit for bit.

    `A` [M, K] holds integers of `act_bits`. `W` is what the engine takes, or a plain integer matrix [K, N] of
    `weight_bits`, which every engine can hold exactly. An engine may then compute with fraction bits: binary code holds
    2 W, so that its accumulators of `acc_bits` hold 2 Y, which wraps or saturates one bit earlier than Y would. The
    output is without them (an arithmetic shift). `psum` [M, N], where the engine takes one, is in the output's units.

    Raises InputError for operands that do not fit the engine or each other, or a unit that is no GEMM engine.
    """
    unit = unit_of(params)
    require(unit.kind is Kind.GEMM, f"{unit.name} multiplies no matrices; take a GEMM engine")
    plain = isinstance(W, (np.ndarray, list, tuple))
    a = _matrix("A", A)
    operand, fraction = unit.from_integers(params, _matrix("W", W)) if plain else (W, 0)
    start = () if psum is None else (_matrix("psum", psum) << fraction,)
    output = unit.golden(params, a, operand, *start)
    shape = unit.shape_of(params, a, operand)
    return GemmResult(
        output=output >> fraction if fraction else output,
        timing=unit.timing(params, **shape),
        ops=unit.ops(params, **shape),
    )


def uniform_integers(rng: np.random.Generator, shape: tuple[int, int], bits: int) -> NDArray[np.int64]:
    """All values of `bits` two's-complement bits, equally likely."""
    return rng.integers(*signed_range(bits), size=shape, endpoint=True)


def normal_integers(rng: np.random.Generator, shape: tuple[int, int], sigma: float, bits: int) -> NDArray[np.int64]:
    """round(N(0, sigma)), clipped to what `bits` two's-complement bits hold: like the codes of a trained layer."""
    require(math.isfinite(sigma) and sigma >= 0, f"sigma must be a finite number of at least 0, not {sigma}")
    low, high = signed_range(bits)
    return np.clip(np.rint(rng.normal(0.0, sigma, shape)), low, high).astype(np.int64)


def _matrix(name: str, values: Any) -> NDArray[np.integer[Any]]:
    matrix = np.asarray(values)
    whole = np.issubdtype(matrix.dtype, np.integer) or matrix.dtype == np.bool_
    rule = f"{name} must be a matrix of integers"
    require(matrix.ndim == 2 and bool(whole), f"{rule}, not {matrix.dtype} of shape {matrix.shape}")
    return matrix
