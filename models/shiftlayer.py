"""Shift layer: weights are signed powers of two, so that a product is a shift and perhaps a negation.

DeepShift (Elhoushi et al., CVPR Workshops 2021) and the shift layers of ShiftAddViT (You et al., NeurIPS 2023). The
array is that of models/dot.py; a PE is a shifter and a conditional complement, with a register behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import columns, compared, gemm
from models.bits import Overflow, Rounding, check_codes, signed_bits
from models.columns import Columns, Result, check_columns, shape_of
from models.dot import Dot, dot_columns, dot_ops, held_codes, sample_of, some, tile_codes, weights_of
from models.floats import ActFormat
from models.unit import Beats, InputError, Ints, Op, Published, Stimulus, Timing, Trace, check_range

__all__ = ["shape_of"]


@dataclass(frozen=True, kw_only=True)
class ShiftlayerParams:
    """Geometry and widths. A weight is 0 or -+2^p, p from 0 to `max_shift`, which follows from `weight_bits`: its code
    is 0 for zero, otherwise 2 (p + 1), plus 1 where it is negative. The code 1 stands for nothing."""

    rows: int = 32
    cols: int = 8
    act_format: ActFormat = ActFormat.INT
    act_bits: int = 8
    rounding: Rounding = Rounding.NEAREST_EVEN
    weight_bits: int = 4
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP

    def __post_init__(self) -> None:
        check_range("shiftlayer", self, rows=(1, 256), weight_bits=(2, 5))
        check_columns("shiftlayer", self)

    @property
    def max_shift(self) -> int:
        return (1 << (self.weight_bits - 1)) - 2

    @property
    def dot(self) -> Dot:
        bound = self.rows << (self.act_bits - 1 + self.max_shift)
        return Dot(
            rows=self.rows,
            act_bits=self.act_bits,
            code_bits=self.weight_bits,
            beat_rows=1,
            product_bits=self.act_bits + self.max_shift,
            sum_bits=signed_bits(-bound, bound),
        )

    @property
    def columns(self) -> Columns:
        return dot_columns(self, self.dot, 0, self.dot.sum_bits)


_FP16: dict[str, Any] = {"act_format": ActFormat.FP16, "act_bits": 12}

PRESETS = {
    "default": ShiftlayerParams(),
    "small": ShiftlayerParams(rows=4, cols=3, act_bits=5, weight_bits=3, acc_bits=20),
    "tiny": ShiftlayerParams(rows=1, cols=1, act_bits=2, weight_bits=2, acc_bits=6),
    "odd": ShiftlayerParams(rows=7, cols=2, act_bits=6, weight_bits=5, acc_bits=40),
    "narrow-saturate": ShiftlayerParams(rows=3, cols=2, weight_bits=3, acc_bits=10, overflow=Overflow.SATURATE),
    "fp16": ShiftlayerParams(rows=6, cols=2, **_FP16),
    "fp16-tiny": ShiftlayerParams(rows=1, cols=1, weight_bits=2, **_FP16),
}

COMPARED = compared.low_bit(
    "shift layer",
    {bits: ShiftlayerParams(weight_bits=bits) for bits in (3, 4)},
    families=(compared.SHIFT_ADD,),
    published=dict.fromkeys(
        compared.WIDTHS,
        Published(source="H. You et al., ShiftAddViT, NeurIPS 2023, abstract: 42.9 % less", energy_efficiency=1.75),
    ),
    differs="The paper's ratio is that of whole networks with shift and add layers, over their originals; ours is the "
    "array alone, with 7 shifts at 4 bits and 3 at 3 bits.",
)


def value_free(params: ShiftlayerParams) -> tuple[str, ...]:
    """Columns; rows too where tiles of K change no sum."""
    return ("cols", "rows") if params.columns.wraps else ("cols",)


def golden(params: ShiftlayerParams, A: NDArray[Any], W: NDArray[Any], psum: Any = None) -> Result:
    """Y[M, N] = psum + A @ W, W [K, N] of 0 and -+2^p, as models/columns.py sums it: int64, or float32 with FP16."""
    return columns.golden(params.columns, A, _powers(params, W), psum)


def _powers(params: ShiftlayerParams, W: NDArray[Any]) -> Ints:
    return weights_of(W, plain_weights(params), f"neither 0 nor a power of two up to {1 << params.max_shift}")


def encode(weights: Ints) -> Ints:
    """Codes of 0 and -+2^p."""
    places: Ints = np.frexp(np.abs(weights).astype(np.float64))[1].astype(np.int64)
    return 2 * places + (weights < 0)


def decode(codes: Ints) -> Ints:
    """The weights that codes stand for; InputError for the code 1, which stands for none."""
    bad = np.argwhere(codes == 1)
    if len(bad):
        raise InputError(f"weight{[int(i) for i in bad[0]]}: code 1 stands for no weight; 0 is zero, 2 is +1, 3 is -1")
    powers = np.where(codes == 0, 0, np.int64(1) << np.maximum((codes >> 1) - 1, 0))
    return np.where(codes & 1, -powers, powers)


def timing(params: ShiftlayerParams, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape."""
    return columns.timing(params.columns, M, K, N)


def ops(params: ShiftlayerParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM: for each product a shift, a choice of the shifted activation or its complement, and a one
    that may be due, their sums, and every register in every cycle."""
    width = params.act_bits + params.max_shift
    products = (
        *some("shift", M * K * N * (params.max_shift > 0), width, params.max_shift),
        Op("mux", M * K * N, width, 2),
        Op("csa", M * K * N, 1),
    )
    edges = columns.edge_ops(params.columns, M, K, N, 1)
    return (*products, *dot_ops(params.dot, params.columns, M, K, N), *edges)


def beats(params: ShiftlayerParams, A: NDArray[Any], W: NDArray[Any], psum: Any = None) -> Beats:
    """Input beats of a whole GEMM: `i_weight` {weight[cols]}, the codes of a row of the tile, its last row first, and
    `i_act` {act[rows], psum[cols], last}."""
    codes = encode(_powers(params, W))

    def load(rows: slice, cols: slice) -> Mapping[str, Ints]:
        return {"weight": tile_codes(params.dot, params.cols, codes[rows, cols])[..., 0]}

    return columns.beats(params.columns, A, W.shape[1], psum, load, partial(_held, params))


def _held(params: ShiftlayerParams, tile: Mapping[str, Ints]) -> Ints:
    codes = check_codes("weight", tile["weight"], params.weight_bits, signed=False)
    return decode(held_codes(params.dot, codes[..., None]))


def result(params: ShiftlayerParams, operands: tuple[Any, ...], out_beats: Mapping[str, Ints]) -> Result:
    """Y[M, N] from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    return columns.result(params.columns, shape_of(params, *operands), out_beats)


def trace(params: ShiftlayerParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    return columns.trace(params.columns, stimulus, partial(_held, params))


def sample(
    params: ShiftlayerParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Any, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given."""
    return sample_of(params.columns, plain_weights(params), rng, M, K, N)


def plain_weights(params: ShiftlayerParams) -> Ints:
    """0 and -+2^p, p up to max_shift."""
    powers = np.int64(1) << np.arange(params.max_shift + 1)
    return np.concatenate([-powers[::-1], [0], powers])


def weight_format(params: ShiftlayerParams) -> tuple[str, dict[str, Any]]:
    """One power of two a weight, one scale a column."""
    return "pot", {"max_shift": params.max_shift}


def operand(params: ShiftlayerParams, quantized: Any) -> tuple[Ints, Fraction]:
    """W from quantized weights [K, N] whose integers are 0 and -+2^p."""
    return _powers(params, gemm.column_integers("shiftlayer", quantized)), Fraction(1)


def from_integers(params: ShiftlayerParams, W: NDArray[Any]) -> tuple[Ints, Fraction]:
    """A matrix of 0 and -+2^p is W as it is."""
    return _powers(params, W), Fraction(1)
