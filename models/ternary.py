"""Ternary weights: a PE adds its activation, subtracts it or skips it.

As in BitNet b1.58 (Ma et al., "The Era of 1-bit LLMs", 2024) and in Zhu et al., "Scalable MatMul-free Language
Modeling", 2024; the scale of the weights is one real number and stands outside. The array is that of models/dot.py. A
load beat brings a byte a column: five weights as digits of base 3 (3^5 = 243), which one decoder a column takes apart
at the load edge, in front of the first rows' registers, or four weights of 2 bits each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import columns, compared, gemm
from models.bits import Overflow, Rounding, check_codes, signed_bits
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
from models.unit import Beats, InputError, Ints, Op, Stimulus, Timing, Trace, check_choice, check_range

__all__ = ["shape_of"]

CODE_BITS = 2
"""of a held weight: two's complement"""
DIGITS = 5
"""of base 3 in a byte"""


class Packing(StrEnum):
    """How weights stand in a byte."""

    FIVE = "five"
    """digits of base 3, the first one lowest: 0 is 0, 1 is +1, 2 is -1"""
    TWO = "two"
    """two's complement of 2 bits, the first one lowest"""

    @property
    def in_byte(self) -> int:
        """Weights in a byte."""
        return DIGITS if self is Packing.FIVE else 8 // CODE_BITS


@dataclass(frozen=True, kw_only=True)
class TernaryParams:
    """Geometry, packing and widths; `weight_bits` is 2. `rows` need not be a multiple of the weights in a byte."""

    rows: int = 32
    cols: int = 8
    act_format: ActFormat = ActFormat.INT
    act_bits: int = 8
    rounding: Rounding = Rounding.NEAREST_EVEN
    weight_bits: int = 2
    packing: Packing = Packing.FIVE
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP

    def __post_init__(self) -> None:
        check_choice("ternary", self, packing=Packing)
        check_range("ternary", self, rows=(1, 256), weight_bits=(2, 2))
        check_columns("ternary", self)

    @property
    def dot(self) -> Dot:
        bound = self.rows << (self.act_bits - 1)
        return Dot(
            rows=self.rows,
            act_bits=self.act_bits,
            code_bits=CODE_BITS,
            beat_rows=self.packing.in_byte,
            product_bits=None,
            sum_bits=signed_bits(-bound, bound),
        )

    @property
    def columns(self) -> Columns:
        return dot_columns(self, self.dot, 0, self.dot.sum_bits)


_FP16: dict[str, Any] = {"act_format": ActFormat.FP16, "act_bits": 12}

PRESETS = {
    "default": TernaryParams(),
    "two-bits": TernaryParams(rows=16, cols=4, packing=Packing.TWO),
    "small": TernaryParams(rows=5, cols=3, act_bits=5, acc_bits=20),
    "tiny": TernaryParams(rows=1, cols=1, act_bits=2, acc_bits=6),
    "odd": TernaryParams(rows=13, cols=2, act_bits=7),
    "odd-two-bits": TernaryParams(rows=7, cols=2, act_bits=6, packing=Packing.TWO),
    "narrow-saturate": TernaryParams(rows=6, cols=2, act_bits=4, acc_bits=6, overflow=Overflow.SATURATE),
    "fp16": TernaryParams(rows=8, cols=2, **_FP16),
    "fp16-tiny": TernaryParams(rows=1, cols=1, packing=Packing.TWO, **_FP16),
}

_WHY = "No paper's ratio for the array alone: the paper runs it on an FPGA and gives the power of the whole."
COMPARED = (
    *compared.low_bit("ternary", {2: TernaryParams()}, families=(compared.SHIFT_ADD,), differs=_WHY),
    *compared.low_bit(
        "ternary FP16",
        {2: TernaryParams(**_FP16)},
        act_format=ActFormat.FP16,
        families=(compared.SHIFT_ADD,),
        differs=_WHY,
    ),
)


def value_free(params: TernaryParams) -> tuple[str, ...]:
    """Columns; rows too where tiles of K change no sum."""
    return ("cols", "rows") if params.columns.wraps else ("cols",)


def golden(params: TernaryParams, A: NDArray[Any], W: NDArray[Any], psum: Any = None) -> Result:
    """Y[M, N] = psum + A @ W, W [K, N] of -1, 0 and 1, as models/columns.py sums it: int64, or float32 with FP16."""
    return columns.golden(params.columns, A, _trits(params, W), psum)


def _trits(params: TernaryParams, W: NDArray[Any]) -> Ints:
    return weights_of(W, plain_weights(params), "none of -1, 0 and 1")


def pack(packing: Packing, weights: Ints) -> Ints:
    """Weights [..., in_byte] of -1, 0 and 1 as bytes."""
    if packing is Packing.TWO:
        return packed(weights & 3, CODE_BITS)
    total: Ints = ((weights % 3) * 3 ** np.arange(DIGITS)).sum(axis=-1)
    return total


def unpack(packing: Packing, words: Ints) -> Ints:
    """The weights [..., in_byte] in bytes; InputError for a byte that stands for no weights."""
    codes = check_codes("weight", words, 8, signed=False)
    weights: Ints
    if packing is Packing.TWO:
        fields = unpacked(codes, CODE_BITS, packing.in_byte)
        bad, rule = (fields == 2).any(axis=-1), "holds the code 2, which is no weight"
        weights = fields - 4 * (fields == 3)
    else:
        digits = codes[..., None] // 3 ** np.arange(DIGITS) % 3
        bad, rule = codes >= 3**DIGITS, f"is beyond the last one, {3**DIGITS - 1}"
        weights = digits - 3 * (digits == 2)
    if bad.any():
        place = [int(i) for i in np.argwhere(bad)[0]]
        raise InputError(f"weight{place}: byte {codes[tuple(place)]} {rule}")
    return weights


def timing(params: TernaryParams, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape."""
    return columns.timing(params.columns, M, K, N)


def ops(params: TernaryParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM: for each product a choice of 0, an activation or its complement and a one that may be due,
    their sums, the decoding of loaded bytes, and every register in every cycle."""
    products = (Op("mux", M * K * N, params.act_bits, 3), Op("csa", M * K * N, 1))
    words = gemm.folds(K, params.rows) * params.dot.load_beats * N
    edges = columns.edge_ops(params.columns, M, K, N, 1)
    return (*products, *_decoding(params, words), *dot_ops(params.dot, params.columns, M, K, N), *edges)


def _decoding(params: TernaryParams, words: int) -> tuple[Op, ...]:
    """Of bytes: each digit but the lowest takes two comparisons and a subtraction of what is left; 2 bits take
    nothing."""
    if params.packing is Packing.TWO:
        return ()
    left = [(3 ** (digits + 1) - 1).bit_length() for digits in range(1, DIGITS)]
    return tuple(Op("add", 3 * words, bits) for bits in left)


def beats(params: TernaryParams, A: NDArray[Any], W: NDArray[Any], psum: Any = None) -> Beats:
    """Input beats of a whole GEMM: `i_weight` {weight[cols]}, the byte of 5 or 4 rows, the tile's last rows first, and
    `i_act` {act[rows], psum[cols], last}."""
    weights = _trits(params, W)

    def load(rows: slice, cols: slice) -> Mapping[str, Ints]:
        return {"weight": pack(params.packing, tile_codes(params.dot, params.cols, weights[rows, cols]))}

    return columns.beats(params.columns, A, W.shape[1], psum, load, partial(_held, params))


def _held(params: TernaryParams, tile: Mapping[str, Ints]) -> Ints:
    return held_codes(params.dot, unpack(params.packing, tile["weight"]))


def result(params: TernaryParams, operands: tuple[Any, ...], out_beats: Mapping[str, Ints]) -> Result:
    """Y[M, N] from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    return columns.result(params.columns, shape_of(params, *operands), out_beats)


def trace(params: TernaryParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    return columns.trace(params.columns, stimulus, partial(_held, params))


def sample(
    params: TernaryParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Any, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given."""
    return sample_of(params.columns, plain_weights(params), rng, M, K, N)


def plain_weights(params: TernaryParams) -> Ints:
    """-1, 0 and 1."""
    return np.array([-1, 0, 1])


def weight_format(params: TernaryParams) -> tuple[str, dict[str, Any]]:
    """Ternary weights with one scale, packed as the array takes them."""
    return "ternary", {"packing": "5 in 8" if params.packing is Packing.FIVE else "2 bits"}


def operand(params: TernaryParams, quantized: Any) -> tuple[Ints, Fraction]:
    """W from quantized weights [K, N] whose integers are -1, 0 and 1."""
    return _trits(params, gemm.column_integers("ternary", quantized)), Fraction(1)


def from_integers(params: TernaryParams, W: NDArray[Any]) -> tuple[Ints, Fraction]:
    """A matrix of -1, 0 and 1 is W as it is."""
    return _trits(params, W), Fraction(1)
