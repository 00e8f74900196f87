"""One GEMM on one engine: its exact output, its exact cycles, its operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.catalog import unit_of
from models.unit import Kind, Op, Timing, require


@dataclass(frozen=True, kw_only=True)
class GemmResult:
    """What an engine makes of a GEMM."""

    output: NDArray[np.int64]
    """Y[M, N] as the engine's accumulators leave it, without their fraction bits where W was a plain integer matrix"""
    timing: Timing
    ops: tuple[Op, ...]


def simulate_gemm(params: Any, A: NDArray[Any], W: Any) -> GemmResult:
    """Y = A @ W on the engine that `params` belongs to, bit for bit.

    `A` [M, K] holds integers of `act_bits`. `W` is what the engine takes, or a plain integer matrix [K, N] of
    `weight_bits`, which every engine can hold exactly; an engine that then computes with fraction bits (binary code)
    drops them from the output by an arithmetic shift, which loses nothing unless its accumulator saturated.

    Raises InputError for operands that do not fit the engine or each other, or a unit that is no GEMM engine.
    """
    unit = unit_of(params)
    require(unit.kind is Kind.GEMM, f"{unit.name} multiplies no matrices; take a GEMM engine")
    operand, fraction = unit.from_integers(params, W) if isinstance(W, np.ndarray) else (W, 0)
    output = unit.golden(params, A, operand)
    shape = unit.shape_of(params, A, operand)
    return GemmResult(
        output=output >> fraction if fraction else output,
        timing=unit.timing(params, **shape),
        ops=unit.ops(params, **shape),
    )
