"""Weight-stationary systolic array of FP16 multipliers with FP32 sums.

A tile W[rows, cols] stays in the PEs, activations move right and are skewed by row, partial sums move down, as in
models/systolic.py. Operands are normalised once at the edges, behind which subnormals need nothing of their own:
activations into a register in front of the first column, weights on the load edge, without one. A PE multiplies 11 by
11 digits into a register and adds that product, exact in single precision, to the partial sum in two more stages. The
product is formed while the row above still adds, so that a row delays the partial sums by the adder's stages alone.

Sums are IEEE 754 single precision, rounded to nearest even, subnormals kept. None becomes infinite: the greatest single
takes in no product of halves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import compared, gemm
from models.floats import (
    ADD_STAGES,
    ADDER_BITS,
    HALF_BITS,
    HALF_DIGITS,
    SINGLE_BITS,
    ActFormat,
    Halves,
    Singles,
    half,
    half_bits,
    half_of,
    random_halves,
    random_singles,
    single_bits,
    single_of,
    starting_sums,
)
from models.gemm import shape_of
from models.unit import Beats, Ints, Op, Stimulus, Timing, Trace, check_choice, check_range, require

__all__ = ["shape_of"]

EDGE_STAGES = 2
"""registers in front of the first adder: of the normalised activation, of the product"""
OPERAND_BITS = 1 + 6 + HALF_DIGITS
"""of a normalised half: sign, exponent from -9 to 30, mantissa"""
PRODUCT_BITS = 1 + 8 + 21
"""of a product: sign, exponent, and what its 22 digits leave of a fraction"""
LARGEST_PLAIN = 2048
"""up to which a half holds every integer"""


@dataclass(frozen=True, kw_only=True)
class FpmacParams:
    """Geometry; the formats are fixed and stand here for those who ask any engine for them."""

    rows: int = 16
    cols: int = 16
    act_format: ActFormat = ActFormat.FP16
    act_bits: int = HALF_BITS
    weight_bits: int = HALF_BITS
    acc_bits: int = SINGLE_BITS

    def __post_init__(self) -> None:
        check_range("fpmac", self, rows=(1, 64), cols=(1, 64))
        check_choice("fpmac", self, act_format=ActFormat)
        require(self.act_format is ActFormat.FP16, "fpmac: act_format is fp16; integers are for systolic")
        for name, bits in (("act_bits", HALF_BITS), ("weight_bits", HALF_BITS), ("acc_bits", SINGLE_BITS)):
            check_range("fpmac", self, **{name: (bits, bits)})

    @property
    def geometry(self) -> gemm.Stationary:
        return float_geometry(self.rows, self.cols)


PRESETS = {
    "default": FpmacParams(),
    "tiny": FpmacParams(rows=1, cols=1),
    "small": FpmacParams(rows=3, cols=2),
    "flat": FpmacParams(rows=1, cols=4),
    "tall": FpmacParams(rows=5, cols=1),
}


COMPARED = compared.baseline(ActFormat.FP16, FpmacParams())


def float_geometry(rows: int, cols: int) -> gemm.Stationary:
    """The discipline of an array of such PEs."""
    return gemm.Stationary(
        tile_k=rows, tile_n=cols, load_beats=rows, latency=EDGE_STAGES + ADD_STAGES * rows + cols - 1
    )


def value_free(params: FpmacParams) -> tuple[str, ...]:
    """Geometry: products are added one by one in order of k."""
    return "rows", "cols"


def golden(params: FpmacParams, A: NDArray[Any], W: NDArray[Any], psum: NDArray[Any] | None = None) -> Singles:
    """Y[M, N] float32 = psum + A @ W, products added in order of k, each sum rounded to nearest even.

    The order does not depend on the folds. `psum` [M, N] (a bias; finite, -0 counts as +0) is where accumulation
    starts; zero by default.
    """
    gemm.check_operands(A, W.shape)
    return half_matmul(half("A", A), half("W", W), starting_sums(psum, (A.shape[0], W.shape[1])))


def half_matmul(a: Halves, w: Halves, start: Singles) -> Singles:
    """start + a @ w in single precision, in order of k; `start` as `starting_sums` gives it."""
    from models.float_kernels import ordered_matmul  # numba is imported by those who need order alone

    return ordered_matmul(a.astype(np.float32), w.astype(np.float32), start)


def timing(params: FpmacParams, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape."""
    return gemm.stationary_timing(params.geometry, M, K, N)


def ops(params: FpmacParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM without stalls.

    Arithmetic counts what is useful: a padded lane multiplies by zero. Normalising an operand is a shift. A register is
    counted in every cycle in which this RTL clocks it: nothing is gated but the held tile, written while it is loaded.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    entered = M * K * gemm.folds(N, params.cols) + K * N
    return (
        Op("shift", entered, HALF_DIGITS, HALF_DIGITS - 1),
        *float_ops(params.geometry, M, K, N),
    )


def float_ops(geometry: gemm.Stationary, m: int, k: int, n: int) -> tuple[Op, ...]:
    """Multiply-accumulates and registers of an array of such PEs."""
    r, c = geometry.tile_k, geometry.tile_n
    cycles = gemm.stationary_timing(geometry, m, k, n).total_cycles
    loads = gemm.folds(k, r) * gemm.folds(n, c) * geometry.load_beats * r * c
    return (
        Op("fmul", m * k * n, HALF_BITS, HALF_BITS),
        Op("fadd", m * k * n, SINGLE_BITS),
        Op("reg", loads, OPERAND_BITS),
        Op("reg", cycles * ADD_STAGES * gemm.skew(r), HALF_BITS),
        Op("reg", cycles * (r + r * c), OPERAND_BITS),
        Op("reg", cycles * r * c, PRODUCT_BITS),
        Op("reg", cycles * r * c, ADDER_BITS),
        Op("reg", cycles * (EDGE_STAGES * c + 2 * gemm.skew(c)), SINGLE_BITS),
    )


def beats(params: FpmacParams, A: NDArray[Any], W: NDArray[Any], psum: NDArray[Any] | None = None) -> Beats:
    """Input beats of a whole GEMM: `i_weight` {weight[cols]}, the tile's last row first, and `i_act` {act[rows],
    psum[cols], last}, all as bit patterns. Folds: N outside, K inside."""
    start = None if psum is None else single_bits(starting_sums(psum, (A.shape[0], W.shape[1])))
    return gemm.chain_beats(params.geometry, half_bits(half("A", A)), half_bits(half("W", W)), start, _tile_golden)


def _tile_golden(vectors: Ints, held: Ints, psum: Ints) -> Ints:
    """Patterns of psum + vectors times the held tile, from the patterns of these."""
    return single_bits(half_matmul(half_of(vectors), half_of(held), single_of(psum)))


def result(params: FpmacParams, operands: tuple[NDArray[Any], ...], out_beats: Mapping[str, Ints]) -> Singles:
    """Y[M, N] from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    shape = shape_of(params, *operands)
    return single_of(gemm.stationary_result(params.geometry, (shape["M"], shape["K"], shape["N"]), out_beats))


def trace(params: FpmacParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    return gemm.chain_trace(params.geometry, stimulus, _tile_golden)


def sample(
    params: FpmacParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[NDArray[Any], ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given."""
    drawn = gemm.random_shape(rng, 5, params.rows, params.cols)
    m, k, n = (given or size for given, size in zip((M, K, N), drawn, strict=True))
    a, w = random_halves(rng, (m, k)), random_halves(rng, (k, n))
    return (a, w, random_singles(rng, (m, n))) if M is None and rng.integers(2) else (a, w)


def weight_format(params: FpmacParams) -> tuple[str, dict[str, Any]]:
    """Half precision."""
    return "fp16", {}


def operand(params: FpmacParams, quantized: Any) -> tuple[Halves, Fraction]:
    """W from quantized weights [K, N] whose values are halves."""
    require(hasattr(quantized, "dequantize"), "fpmac: weights need to be quantized, to the format fp16")
    return half("W", quantized.dequantize()), Fraction(1)


def from_integers(params: FpmacParams, W: NDArray[Any]) -> tuple[Halves, Fraction]:
    """Integers that half precision holds with all those below them, -2048 to 2048, as W."""
    require(np.issubdtype(W.dtype, np.integer), f"W: integers are needed, not {W.dtype}")
    least, most = (int(W.min()), int(W.max())) if W.size else (0, 0)
    bad = least if least < -LARGEST_PLAIN else most
    near = max(min(bad, LARGEST_PLAIN), -LARGEST_PLAIN)
    rule = f"W: {bad} is outside {-LARGEST_PLAIN}..{LARGEST_PLAIN}, the integers that FP16 holds all of"
    require(abs(bad) <= LARGEST_PLAIN, f"{rule}; nearest: {near}")
    return W.astype(np.float16), Fraction(1)


def plain_weights(params: FpmacParams) -> Ints:
    """The integers that `from_integers` takes."""
    return np.arange(-LARGEST_PLAIN, LARGEST_PLAIN + 1)
