"""Binary-code product: weights of -1 and +1, so that a product is an addition or a subtraction.

ShiftAddViT (You et al., "ShiftAddViT: Mixture of Multiplication Primitives Towards Efficient Vision Transformer",
NeurIPS 2023) binarizes one operand of each product of its attention so; 1-bit weights are the same. The array is that
of models/dot.py: a PE complements the activation where the weight is -1. Eight weights of a column enter in a byte.
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
from models.bits import Overflow, Rounding, signed_bits
from models.columns import Columns, Result, check_columns, shape_of
from models.dot import (
    Dot,
    dot_columns,
    dot_ops,
    held_codes,
    packed,
    sample_of,
    tile_codes,
    unpacked,
    weights_of,
)
from models.floats import ActFormat
from models.unit import Beats, Ints, Op, Published, Stimulus, Timing, Trace, check_range

__all__ = ["shape_of"]

BYTE_ROWS = 8
"""weights of a column in one load beat"""


@dataclass(frozen=True, kw_only=True)
class AdditiveParams:
    """Geometry and widths; `weight_bits` is 1."""

    rows: int = 32
    cols: int = 8
    act_format: ActFormat = ActFormat.INT
    act_bits: int = 8
    rounding: Rounding = Rounding.NEAREST_EVEN
    weight_bits: int = 1
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP

    def __post_init__(self) -> None:
        check_range("additive", self, rows=(1, 256), weight_bits=(1, 1))
        check_columns("additive", self)

    @property
    def dot(self) -> Dot:
        bound = self.rows << (self.act_bits - 1)
        return Dot(
            rows=self.rows,
            act_bits=self.act_bits,
            code_bits=1,
            beat_rows=BYTE_ROWS,
            product_bits=None,
            sum_bits=signed_bits(-bound, bound),
        )

    @property
    def columns(self) -> Columns:
        return dot_columns(self, self.dot, 0, self.dot.sum_bits)


_FP16: dict[str, Any] = {"act_format": ActFormat.FP16, "act_bits": 12}

PRESETS = {
    "default": AdditiveParams(),
    "small": AdditiveParams(rows=8, cols=3, act_bits=5, acc_bits=20),
    "tiny": AdditiveParams(rows=1, cols=1, act_bits=2, acc_bits=6),
    "odd": AdditiveParams(rows=11, cols=2, act_bits=7),
    "narrow-saturate": AdditiveParams(rows=9, cols=2, act_bits=4, acc_bits=7, overflow=Overflow.SATURATE),
    "fp16": AdditiveParams(rows=10, cols=2, **_FP16),
    "fp16-tiny": AdditiveParams(rows=1, cols=1, act_format=ActFormat.FP16, act_bits=4, rounding=Rounding.FLOOR),
}

_PAPER = Published(source="H. You et al., ShiftAddViT, NeurIPS 2023, abstract: 42.9 % less", energy_efficiency=1.75)
_WHY = (
    "The paper's ratio is that of whole networks with shift and add layers, over their originals; ours the array alone."
)
COMPARED = (
    *compared.low_bit(
        "additive",
        {1: AdditiveParams()},
        families=(compared.SHIFT_ADD,),
        published=dict.fromkeys(compared.WIDTHS, _PAPER),
        differs=_WHY,
    ),
    *compared.low_bit(
        "additive FP16",
        {1: AdditiveParams(**_FP16)},
        act_format=ActFormat.FP16,
        families=(compared.SHIFT_ADD,),
        published=dict.fromkeys(compared.WIDTHS, _PAPER),
        differs=_WHY,
    ),
)


def value_free(params: AdditiveParams) -> tuple[str, ...]:
    """Columns; rows too where tiles of K change no sum."""
    return ("cols", "rows") if params.columns.wraps else ("cols",)


def golden(params: AdditiveParams, A: NDArray[Any], W: NDArray[Any], psum: Any = None) -> Result:
    """Y[M, N] = psum + A @ W, W [K, N] of -1 and +1, as models/columns.py sums it: int64, or float32 with FP16."""
    return columns.golden(params.columns, A, _signs(params, W), psum)


def _signs(params: AdditiveParams, W: NDArray[Any]) -> Ints:
    return weights_of(W, plain_weights(params), "neither -1 nor +1")


def timing(params: AdditiveParams, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape."""
    return columns.timing(params.columns, M, K, N)


def ops(params: AdditiveParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM: a choice of an activation or its complement and a one that may be due for each product,
    their sums, and every register in every cycle."""
    signs = (Op("mux", M * K * N, params.act_bits, 2), Op("csa", M * K * N, 1))
    edges = columns.edge_ops(params.columns, M, K, N, 1)
    return (*signs, *dot_ops(params.dot, params.columns, M, K, N), *edges)


def beats(params: AdditiveParams, A: NDArray[Any], W: NDArray[Any], psum: Any = None) -> Beats:
    """Input beats of a whole GEMM: `i_weight` {weight[cols]}, the byte of 8 rows (bit 1: +1), the tile's last rows
    first, and `i_act` {act[rows], psum[cols], last}. Rows that pad a tile hold -1 and meet activations of 0."""
    bits = (_signs(params, W) + 1) >> 1

    def load(rows: slice, cols: slice) -> Mapping[str, Ints]:
        return {"weight": packed(tile_codes(params.dot, params.cols, bits[rows, cols]), 1)}

    return columns.beats(params.columns, A, W.shape[1], psum, load, partial(_held, params))


def _held(params: AdditiveParams, tile: Mapping[str, Ints]) -> Ints:
    return 2 * held_codes(params.dot, unpacked(tile["weight"], 1, BYTE_ROWS)) - 1


def result(params: AdditiveParams, operands: tuple[Any, ...], out_beats: Mapping[str, Ints]) -> Result:
    """Y[M, N] from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    return columns.result(params.columns, shape_of(params, *operands), out_beats)


def trace(params: AdditiveParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    return columns.trace(params.columns, stimulus, partial(_held, params))


def sample(
    params: AdditiveParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Any, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given."""
    return sample_of(params.columns, plain_weights(params), rng, M, K, N)


def plain_weights(params: AdditiveParams) -> Ints:
    """-1 and +1."""
    return np.array([-1, 1])


def weight_format(params: AdditiveParams) -> tuple[str, dict[str, Any]]:
    """Signs, one scale a column."""
    return "binary", {}


def operand(params: AdditiveParams, quantized: Any) -> tuple[Ints, Fraction]:
    """W from quantized weights [K, N] whose integers are -1 and +1."""
    return _signs(params, gemm.column_integers("additive", quantized)), Fraction(1)


def from_integers(params: AdditiveParams, W: NDArray[Any]) -> tuple[Ints, Fraction]:
    """A matrix of -1 and +1 is W as it is."""
    return _signs(params, W), Fraction(1)
