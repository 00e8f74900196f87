"""OPT3: PEs that add only the non-zero digits of an activation, each with a digit buffer and a sequencer of its own.

The array, its streams and its cycles are those of models/sparse.py with one lane. All PEs of a column work on the same
row of A, so that their sequencers do the same thing at the same time: what `opt4c` then shares.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.gemm import from_integers, operand, weight_format
from models.sparse import (
    SparseArray,
    beats,
    check_sparse,
    golden,
    ops,
    result,
    sample,
    shape_of,
    sparse_array,
    timing,
    trace,
    value_free,
)
from models.unit import Compared

__all__ = [
    "beats",
    "from_integers",
    "golden",
    "operand",
    "ops",
    "result",
    "sample",
    "shape_of",
    "timing",
    "trace",
    "value_free",
    "weight_format",
]


@dataclass(frozen=True, kw_only=True)
class Opt3Params:
    """Geometry and widths. Operands are two's-complement integers; sums are kept modulo 2^acc_bits."""

    rows: int = 8
    """lanes of N: PEs of a column"""
    cols: int = 4
    """rows of A at work at a time"""
    tile_k: int = 16
    """weights that a lane holds: a multiple of 4"""
    act_bits: int = 8
    weight_bits: int = 8
    acc_bits: int = 32

    def __post_init__(self) -> None:
        check_sparse("opt3", self, lanes=1)

    @property
    def array(self) -> SparseArray:
        return sparse_array(self, lanes=1, copies=self.rows)


PRESETS = {
    "default": Opt3Params(),
    "small": Opt3Params(rows=2, cols=3, tile_k=8, acc_bits=24),
    "smallest": Opt3Params(rows=1, cols=1, tile_k=4, act_bits=2, weight_bits=2, acc_bits=8),
    "one-column": Opt3Params(rows=3, cols=1, tile_k=4, acc_bits=20),
    "odd": Opt3Params(rows=2, cols=2, tile_k=8, act_bits=7, weight_bits=5, acc_bits=20),
    "binary-digits": Opt3Params(rows=1, cols=4, tile_k=8, act_bits=2, acc_bits=16),
    "wide": Opt3Params(rows=2, cols=2, tile_k=4, act_bits=16, weight_bits=16, acc_bits=40),
    "narrow": Opt3Params(rows=2, cols=2, tile_k=4, act_bits=6, weight_bits=8, acc_bits=7),
}

COMPARED = (
    Compared(
        family="integer",
        architecture="2D matrix",
        style="opt3",
        params=Opt3Params(rows=16, cols=16, tile_k=16),
        differs="The paper gives no ratio for OPT3 alone. Ours holds a tile of weights in the array, so that a PE "
        "chooses among 16 and buffers the digits of 16 activations, where the paper's works on 4 that stream past.",
    ),
)
