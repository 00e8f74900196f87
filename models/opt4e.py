"""OPT4E: four lanes of K side by side, whose digits' multiples of weights go through one 6:2 compressor into the pair.

The array and its streams are those of models/sparse.py with four lanes, each with a sequencer for the column; groups of
4 k go to the lanes in turn. A PE has four selectors of a quarter of its weights each. A 6:2 compressor is four rows of
full adders, and so has an empty lowest place for each of the four negative multiples.
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
from models.unit import Compared, Published

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
class Opt4eParams:
    """Geometry and widths. Operands are two's-complement integers; sums are kept modulo 2^acc_bits."""

    rows: int = 8
    """lanes of N: PEs of a column"""
    cols: int = 4
    """rows of A at work at a time"""
    tile_k: int = 16
    """weights that a lane holds: a multiple of 16"""
    act_bits: int = 8
    weight_bits: int = 8
    acc_bits: int = 32

    def __post_init__(self) -> None:
        check_sparse("opt4e", self, lanes=4)

    @property
    def array(self) -> SparseArray:
        return sparse_array(self, lanes=4, copies=1)


PRESETS = {
    "default": Opt4eParams(),
    "small": Opt4eParams(rows=2, cols=3, tile_k=32, acc_bits=24),
    "smallest": Opt4eParams(rows=1, cols=1, tile_k=16, act_bits=2, weight_bits=2, acc_bits=8),
    "one-column": Opt4eParams(rows=3, cols=1, tile_k=16, acc_bits=20),
    "odd": Opt4eParams(rows=2, cols=2, tile_k=32, act_bits=7, weight_bits=5, acc_bits=20),
    "binary-digits": Opt4eParams(rows=1, cols=4, tile_k=32, act_bits=2, acc_bits=16),
    "wide": Opt4eParams(rows=2, cols=2, tile_k=16, act_bits=16, weight_bits=16, acc_bits=40),
    "narrow": Opt4eParams(rows=2, cols=2, tile_k=16, act_bits=6, weight_bits=8, acc_bits=7),
}

COMPARED = (
    Compared(
        family="integer",
        architecture="2D matrix",
        style="opt4e",
        params=Opt4eParams(rows=16, cols=16, tile_k=16),
        published=Published(
            source="Q. Wu et al., HPCA 2025, abstract: bit-slice architecture over Laconic",
            area_efficiency=2.85,
            energy_efficiency=12.10,
        ),
        differs="The paper's ratios are over Laconic, another bit-slice engine, not over an array of multipliers. Ours "
        "are over the latter, hold a tile of weights in the array, and depend on the digits of the operands taken.",
    ),
)
