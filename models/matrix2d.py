"""2D matrix engine: rows of activations and columns of weights are broadcast, their outer product is accumulated.

In every cycle PE (i, j) adds A[i, k] W[k, j] to its sum, for the same k in all PEs, so that nothing is skewed (the "2D
matrix" of Q. Wu et al., "Exploring the Performance Improvement of Tensor Processing Engines through Transformation in
the Bit-weight Dimension of MACs", HPCA 2025). Operands are registered once, at the edge, in every style: with `ent` the
encoders stand before that register and their digits are broadcast. The clock therefore sees one register's fan-out to a
whole row or column, then a PE's multiplier and adder. A tile's sums leave downwards through the PEs, bottom row first:
one two-way multiplexer a PE. The next tile starts when they have left; a second set of registers would let it start
`rows` cycles earlier.

Every sum has `acc_bits` bits and wraps or saturates there, in every style; its widths are those of models/systolic.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.bits import Overflow
from models.gemm import from_integers, operand, shape_of, weight_format
from models.style import Style, check_style, edge_ops, mac_ops
from models.unit import (
    Beats,
    Compared,
    Ints,
    Op,
    Published,
    Stimulus,
    Timing,
    Trace,
    check_choice,
    check_range,
    require,
)

__all__ = ["from_integers", "operand", "shape_of", "weight_format"]


@dataclass(frozen=True, kw_only=True)
class Matrix2dParams:
    """Geometry and widths. Operands and accumulators are two's-complement integers."""

    rows: int = 16
    cols: int = 16
    act_bits: int = 8
    weight_bits: int = 8
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP
    style: Style = Style.MAC

    def __post_init__(self) -> None:
        check_range("matrix2d", self, rows=(1, 256), cols=(1, 256), act_bits=(2, 16), weight_bits=(2, 16))
        check_range("matrix2d", self, acc_bits=(2, 48))
        check_choice("matrix2d", self, overflow=Overflow, style=Style)
        check_style("matrix2d", self, self.cols, "act", "cols of at least 2")

    @property
    def geometry(self) -> gemm.OutputStationary:
        """The operands' register is the one cycle between a transfer and its sum."""
        return gemm.OutputStationary(
            tile_m=self.rows, tile_n=self.cols, flush_cycles=1, resolving=int(self.style is Style.OPT1)
        )


PRESETS = {
    "default": Matrix2dParams(),
    "tiny": Matrix2dParams(rows=1, cols=1),
    "small": Matrix2dParams(rows=4, cols=3, acc_bits=24),
    "wide": Matrix2dParams(rows=2, cols=2, act_bits=16, weight_bits=16, acc_bits=40),
    "narrow-wrap": Matrix2dParams(rows=2, cols=3, acc_bits=12, act_bits=6, weight_bits=4),
    "narrow-saturate": Matrix2dParams(rows=2, cols=5, acc_bits=12, overflow=Overflow.SATURATE),
    "opt1": Matrix2dParams(rows=4, cols=3, style=Style.OPT1),
    "opt1-tiny": Matrix2dParams(rows=1, cols=1, act_bits=3, acc_bits=9, style=Style.OPT1),
    "opt1-wide": Matrix2dParams(rows=2, cols=2, act_bits=16, weight_bits=16, acc_bits=32, style=Style.OPT1),
    "ent": Matrix2dParams(rows=3, cols=4, style=Style.ENT),
    "ent-odd": Matrix2dParams(rows=1, cols=2, act_bits=9, weight_bits=3, acc_bits=18, style=Style.ENT),
    "ent-saturate": Matrix2dParams(
        rows=2, cols=3, acc_bits=12, act_bits=5, style=Style.ENT, overflow=Overflow.SATURATE
    ),
}

COMPARED = (
    Compared(family="integer", architecture="2D matrix", style="mac", params=Matrix2dParams()),
    Compared(
        family="integer",
        architecture="2D matrix",
        style="opt1",
        params=Matrix2dParams(style=Style.OPT1),
        published=Published(source="Q. Wu et al., HPCA 2025, abstract", area_efficiency=1.44, energy_efficiency=1.20),
        differs="The abstract gives one ratio for the 2D matrix and does not say which transformations are in it; ours "
        "is OPT1 alone, with 32-bit accumulators that hold two words each, on a library without wires, where a "
        "broadcast to a row costs buffers but no length, and without their 28 nm flow and its faster clocks.",
    ),
    Compared(
        family="integer",
        architecture="2D matrix",
        style="ent",
        params=Matrix2dParams(style=Style.ENT),
        published=Published(
            source="EN-T, average over engines at 1 TOPS", area_efficiency=1.122, energy_efficiency=1.175
        ),
        differs="The paper averages over its engines and does not give this one; it removes encoders from multipliers "
        "that a synthesis library chose, ours from Booth multipliers where the flow may take an array multiplier "
        "without any encoder as its baseline, on a library without wires.",
    ),
)


def value_free(params: Matrix2dParams) -> tuple[str, ...]:
    """Geometry and style: products are added one by one in order of k."""
    return "rows", "cols", "style"


def golden(params: Matrix2dParams, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Ints:
    """Y[M, N] int64 = A @ W, products added in order of k, each sum wrapped or saturated to `acc_bits`.

    The same in all styles. Accumulation starts at zero: a `psum` is refused.
    """
    require(psum is None, "matrix2d: sums start at zero; add psum to the result")
    gemm.checked_operands(params, A, W, psum)
    return gemm.accumulate(A, W, None, params.acc_bits, params.overflow)


def timing(params: Matrix2dParams, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape.

    A fold takes K + 1 + rows cycles: its operands, their register, its sums' way out. `opt1`: one cycle more in all.
    """
    return gemm.output_stationary_timing(params.geometry, M, K, N)


def ops(params: Matrix2dParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM without stalls.

    Arithmetic counts what is useful: a padded lane multiplies by zero. Every register is clocked in every cycle.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    p = params
    cycles = timing(p, M, K, N).total_cycles
    entered = M * K * gemm.folds(N, p.cols)
    return (
        *mac_ops(p.style, M * K * N, p.act_bits, p.weight_bits, p.acc_bits),
        *edge_ops(p.style, entered, p.act_bits, M * N, p.acc_bits),
        Op("reg", cycles * p.rows, p.style.travel_bits(p.act_bits)),
        Op("reg", cycles * p.cols, p.weight_bits),
        Op("reg", cycles * p.rows * p.cols, p.style.psum_bits(p.acc_bits)),
        *((Op("reg", cycles * p.cols, p.acc_bits),) if p.style is Style.OPT1 else ()),
    )


def beats(params: Matrix2dParams, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Beats:
    """Input beats of a whole GEMM: `i_act` {act[rows], last} (column k of A's tile, `last` at k = K - 1) and `i_weight`
    {weight[cols]} (row k of W's tile), transferred together. Folds: M outside, N inside."""
    return gemm.output_stationary_beats(params.geometry, A.astype(np.int64), W.astype(np.int64))


def result(params: Matrix2dParams, operands: tuple[NDArray[Any], ...], out_beats: Mapping[str, Ints]) -> Ints:
    """Y[M, N] from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    shape = shape_of(params, *operands)
    return gemm.output_stationary_result(params.geometry, (shape["M"], shape["K"], shape["N"]), out_beats)


def trace(params: Matrix2dParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    return gemm.output_stationary_trace(params.geometry, stimulus, lambda a, w: golden(params, a, w))


def sample(
    params: Matrix2dParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Ints, ...]:
    """Random A and W, of a random small shape where none is given; sums at the accumulators' limit among them."""
    drawn = gemm.random_shape(rng, params.rows, 5, params.cols)
    m, k, n = (given or size for given, size in zip((M, K, N), drawn, strict=True))
    extreme = gemm.sample_at_the_limit(params, rng, m, n) if M is None and rng.integers(3) == 0 else None
    return extreme or gemm.sample_operands(params, rng, m, k, n)
