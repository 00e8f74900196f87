"""Dequantize, then multiply: a weight-stationary systolic array of wide PEs behind dequantizers of low-bit weights.

Weights come in as codes of few bits with the integer scale and zero point of their group and column. One dequantizer a
column, on the load edge and shared by all rows, makes scale * (code - zero) of each as the tile is loaded; the PEs hold
and multiply the result. So do the kernels that unpack and scale weights before a matrix unit of full width, the usual
way to run group-quantized weights on one. The dequantizer has no register: it stands in front of the first row's.

Integer activations: the weight is exact, in weight_bits + 1 + scale_bits bits, and PEs are those of models/systolic.py.
FP16: it is rounded to half precision, to nearest even (never subnormal nor infinite: an integer of at most 65025), and
PEs are those of models/fpmac.py, as are their sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import compared, gemm
from models.bits import Overflow, check_codes, require_codes, signed_range
from models.floats import (
    HALF_BITS,
    HALF_DIGITS,
    SINGLE_BITS,
    ActFormat,
    half,
    half_bits,
    half_of,
    random_halves,
    random_singles,
    single_bits,
    single_of,
    starting_sums,
)
from models.fpmac import float_geometry, float_ops, half_matmul
from models.gemm import shape_of
from models.grouped import GroupedWeights, check_grouped, grouped_integers, grouped_operand
from models.style import Style
from models.unit import Beats, Ints, Op, Stimulus, Timing, Trace, check_choice, check_range, require

__all__ = ["shape_of"]


@dataclass(frozen=True, kw_only=True)
class DequantParams:
    """Geometry and widths. `scale_bits` is the width of a scale (unsigned); zero points have `weight_bits` bits.

    `group_size` is how many consecutive k share a scale and a zero point (none: all); any number of them.
    """

    rows: int = 16
    cols: int = 16
    act_format: ActFormat = ActFormat.INT
    act_bits: int = 8
    weight_bits: int = 4
    scale_bits: int = 4
    group_size: int | None = None
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP

    def __post_init__(self) -> None:
        check_choice("dequant", self, act_format=ActFormat, overflow=Overflow)
        check_range("dequant", self, rows=(1, 64), cols=(1, 64), weight_bits=(1, 8), scale_bits=(1, 8))
        check_range("dequant", self, act_bits=(2, 16), acc_bits=(2, 48))
        if self.group_size is not None:
            check_range("dequant", self, group_size=(1, 1 << 20))
        if self.is_float:
            wanted = {"act_bits": HALF_BITS, "acc_bits": SINGLE_BITS, "overflow": Overflow.WRAP}
            for name, value in wanted.items():
                rule = f"dequant: act_format=fp16 needs {name}={value}"
                require(getattr(self, name) == value, f"{rule}, not {getattr(self, name)}")

    @property
    def is_float(self) -> bool:
        """Whether activations are halves and sums single precision."""
        return self.act_format is ActFormat.FP16

    @property
    def geometry(self) -> gemm.Stationary:
        if self.is_float:
            return float_geometry(self.rows, self.cols)
        return gemm.Stationary(
            tile_k=self.rows, tile_n=self.cols, load_beats=self.rows, latency=self.rows + self.cols - 1
        )

    @property
    def held_bits(self) -> int:
        """Width of a dequantized integer."""
        return self.weight_bits + 1 + self.scale_bits

    # what else an integer PE of rtl/systolic.py asks its array for
    @property
    def moving_bits(self) -> int:
        return self.act_bits

    @property
    def style(self) -> Style:
        return Style.MAC

    @property
    def buffers(self) -> int:
        return 1


_FP16: dict[str, Any] = {"act_format": ActFormat.FP16, "act_bits": HALF_BITS}

PRESETS = {
    "default": DequantParams(),
    "tiny": DequantParams(rows=1, cols=1),
    "small": DequantParams(rows=3, cols=2, group_size=2, weight_bits=3, acc_bits=24),
    "grouped": DequantParams(rows=2, cols=3, group_size=5, weight_bits=2, scale_bits=1),
    "wide": DequantParams(rows=2, cols=2, act_bits=16, weight_bits=8, scale_bits=8, acc_bits=40),
    "narrow-wrap": DequantParams(rows=2, cols=3, act_bits=5, weight_bits=2, scale_bits=2, group_size=3, acc_bits=10),
    "narrow-saturate": DequantParams(rows=3, cols=2, acc_bits=14, group_size=4, overflow=Overflow.SATURATE),
    "fp16": DequantParams(rows=3, cols=2, group_size=4, **_FP16),
    "fp16-tiny": DequantParams(rows=1, cols=1, weight_bits=3, scale_bits=5, **_FP16),
    "fp16-wide": DequantParams(rows=2, cols=2, weight_bits=8, scale_bits=8, group_size=1, **_FP16),
}


_WHY = (
    "No paper's ratio: what low-bit engines want to replace. Scales are integers of 4 bits here, a dequantizer stands "
    "once a column at the load edge, and the PEs hold dequantized weights."
)
COMPARED = (
    *compared.low_bit("dequantize, INT MAC", {b: DequantParams(weight_bits=b) for b in compared.WIDTHS}, differs=_WHY),
    *compared.low_bit(
        "dequantize, FP16 MAC",
        {b: DequantParams(weight_bits=b, **_FP16) for b in compared.WIDTHS},
        act_format=ActFormat.FP16,
        differs=_WHY,
    ),
)


def value_free(params: DequantParams) -> tuple[str, ...]:
    """Geometry: products are added one by one in order of k."""
    return "rows", "cols"


def golden(params: DequantParams, A: NDArray[Any], W: GroupedWeights, psum: NDArray[Any] | None = None) -> NDArray[Any]:
    """Y[M, N] = psum + A @ dequantized W, products added in order of k; the order does not depend on the folds.

    int64, each sum wrapped or saturated to `acc_bits`; with FP16, weights rounded to half precision, to nearest even,
    and float32 as in models/fpmac.py. `psum` [M, N] (a bias) is where accumulation starts; zero by default.
    """
    gemm.check_operands(A, W.shape)
    _check_weights(params, W)
    if params.is_float:
        start = starting_sums(psum, (A.shape[0], W.shape[1]))
        return half_matmul(half("A", A), W.integers.astype(np.float64).astype(np.float16), start)
    require_codes("A", A, params.act_bits)
    return gemm.accumulate(A, W.integers, _integer_sums(params, A, W, psum), params.acc_bits, params.overflow)


def _check_weights(params: DequantParams, W: GroupedWeights) -> None:
    check_grouped(W, params.weight_bits, params.scale_bits, params.group_size)


def _integer_sums(params: DequantParams, A: NDArray[Any], W: GroupedWeights, psum: NDArray[Any] | None) -> Ints | None:
    if psum is None:
        return None
    require(psum.shape == (A.shape[0], W.shape[1]), f"psum is {psum.shape}, not {(A.shape[0], W.shape[1])}")
    return check_codes("psum", psum, params.acc_bits)


def timing(params: DequantParams, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape."""
    return gemm.stationary_timing(params.geometry, M, K, N)


def ops(params: DequantParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM without stalls: a subtraction and a multiplication for each weight and load; with FP16 its
    rounding, a shift and an addition; then those of an array of such PEs.

    Arithmetic counts what is useful: a padded lane multiplies by zero. A register is counted in every cycle in which
    this RTL clocks it: nothing is gated but the held tile, written while it is loaded.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    p, bits = params, params.weight_bits + 1
    dequantized = (Op("add", K * N, bits), Op("mul", K * N, bits, p.scale_bits))
    if not p.is_float:
        return (*dequantized, *_integer_ops(p, M, K, N))
    entered = M * K * gemm.folds(N, p.cols)
    return (
        *dequantized,
        Op("shift", K * N, p.held_bits, p.held_bits - 1),
        Op("add", K * N, HALF_DIGITS),
        Op("shift", entered, HALF_DIGITS, HALF_DIGITS - 1),
        *float_ops(p.geometry, M, K, N),
    )


def _integer_ops(p: DequantParams, m: int, k: int, n: int) -> tuple[Op, ...]:
    r, c = p.rows, p.cols
    cycles = gemm.stationary_timing(p.geometry, m, k, n).total_cycles
    loads = gemm.folds(k, r) * gemm.folds(n, c) * p.geometry.load_beats * r * c
    return (
        Op("mul", m * k * n, p.act_bits, p.held_bits),
        Op("add", m * k * n, p.acc_bits),
        Op("reg", loads, p.held_bits),
        Op("reg", cycles * (gemm.skew(r) + r * c), p.act_bits),
        Op("reg", cycles * (2 * gemm.skew(c) + r * c), p.acc_bits),
    )


def beats(params: DequantParams, A: NDArray[Any], W: GroupedWeights, psum: NDArray[Any] | None = None) -> Beats:
    """Input beats of a whole GEMM: `i_weight` {code[cols], scale[cols], zero[cols]}, a row of the tile each, its last
    row first, and `i_act` {act[rows], psum[cols], last}; bit patterns with FP16. Folds: N outside, K inside."""
    fields = {"code": W.codes, "scale": W.spread(W.scales), "zero": W.spread(W.zeros)}
    shape = (params.rows, params.cols)
    return gemm.stationary_beats(
        params.geometry,
        half_bits(half("A", A)) if params.is_float else A.astype(np.int64),
        W.shape[1],
        _starting_beats(params, psum, (A.shape[0], W.shape[1])),
        lambda rows, cols: {name: gemm.pad_to(x[rows, cols], shape)[::-1] for name, x in fields.items()},
        _tile_golden(params),
    )


def _starting_beats(params: DequantParams, psum: NDArray[Any] | None, shape: tuple[int, int]) -> Ints | None:
    return single_bits(starting_sums(psum, shape)) if params.is_float and psum is not None else psum


def _tile_golden(params: DequantParams) -> Callable[[Mapping[str, Ints], Ints, Ints], Ints]:
    """(load beats, vectors, partial sums) -> sums, all as in beats."""

    def integers(tile: Mapping[str, Ints], vectors: Ints, psum: Ints) -> Ints:
        return gemm.accumulate(vectors, _tile_weights(tile), psum, params.acc_bits, params.overflow)

    def floats(tile: Mapping[str, Ints], vectors: Ints, psum: Ints) -> Ints:
        weights = _tile_weights(tile).astype(np.float64).astype(np.float16)
        return single_bits(half_matmul(half_of(vectors), weights, single_of(psum)))

    return floats if params.is_float else integers


def _tile_weights(tile: Mapping[str, Ints]) -> Ints:
    return (tile["scale"] * (tile["code"] - tile["zero"]))[::-1]


def result(params: DequantParams, operands: tuple[Any, ...], out_beats: Mapping[str, Ints]) -> NDArray[Any]:
    """Y[M, N] from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    shape = shape_of(params, *operands)
    sums = gemm.stationary_result(params.geometry, (shape["M"], shape["K"], shape["N"]), out_beats)
    return single_of(sums) if params.is_float else sums


def trace(params: DequantParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    return gemm.stationary_trace(params.geometry, stimulus, _tile_golden(params))


def sample(
    params: DequantParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Any, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given."""
    p = params
    drawn = gemm.random_shape(rng, 5, p.rows, p.cols)
    m, k, n = (given or size for given, size in zip((M, K, N), drawn, strict=True))
    group = p.group_size or k
    codes, groups = signed_range(p.weight_bits), (-(-k // group), n)
    weights = GroupedWeights(
        codes=gemm.random_codes(rng, (k, n), *codes),
        scales=np.maximum(gemm.random_codes(rng, groups, 1, (1 << p.scale_bits) - 1), 1),
        zeros=gemm.random_codes(rng, groups, *codes),
        group=group,
    )
    starts = M is None and bool(rng.integers(2))
    if p.is_float:
        a: NDArray[Any] = random_halves(rng, (m, k))
        return (a, weights, random_singles(rng, (m, n))) if starts else (a, weights)
    a = gemm.random_codes(rng, (m, k), *signed_range(p.act_bits))
    return (a, weights, gemm.random_codes(rng, (m, n), *signed_range(p.acc_bits))) if starts else (a, weights)


def weight_format(params: DequantParams) -> tuple[str, dict[str, Any]]:
    """Asymmetric integers with integer scales."""
    require(params.weight_bits >= 2, "dequant: formats hold integers of 2 bits at least; take weight_bits=2")
    options = {"group": params.group_size, "symmetric": False, "scale_bits": params.scale_bits}
    return f"int{params.weight_bits}", options


def operand(params: DequantParams, quantized: Any) -> tuple[GroupedWeights, Fraction]:
    """W from quantized weights [K, N] with integer codes, scales and zero points."""
    weights = grouped_operand("dequant", quantized)
    _check_weights(params, weights)
    return weights, Fraction(1)


def from_integers(params: DequantParams, W: NDArray[Any]) -> tuple[GroupedWeights, Fraction]:
    """A plain integer matrix of `weight_bits` bits as W."""
    return grouped_integers(W, params.weight_bits, params.group_size), Fraction(1)
