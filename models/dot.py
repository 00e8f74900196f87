"""Columns that hold a weight a row: in each row a PE without a multiplier, then one tree of adders a column.

Every column of an array of models/columns.py has `rows` PEs. A PE holds a weight's code and makes the weight times its
row's activation of it, which every column reads; the column's adder tree adds up the products of all rows in one stage
and registers the sum. Before the tree stands one more stage of registers: the activations', at the edge and shared by
all columns, where PEs are a few gates deep; the products', in the PEs, where those take additions or shifts. (Aligned
activations leave registers of the aligner, and need none of their own.)

A negative product that a PE complements lacks one; the tree adds the ones that are due with everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.columns import Columns, random_operand, random_psum, random_sizes, timing
from models.floats import ActFormat
from models.unit import InputError, Ints, Op, require


@dataclass(frozen=True, kw_only=True)
class Dot:
    """What stands in each column."""

    rows: int
    act_bits: int
    code_bits: int
    """of a held weight"""
    beat_rows: int
    """rows that get their codes from one load beat"""
    product_bits: int | None
    """width of the product that a PE registers, None where PEs register none"""
    sum_bits: int
    """width of a column's sum"""

    @property
    def load_beats(self) -> int:
        return int(gemm.folds(self.rows, self.beat_rows))


def dot_columns(params: Any, dot: Dot, behind: int, total_bits: int) -> Columns:
    """The array whose columns are `dot`, with `behind` stages between a column's sum and its total."""
    return Columns(
        tile_k=dot.rows,
        cols=params.cols,
        act_format=params.act_format,
        act_bits=params.act_bits,
        rounding=params.rounding,
        acc_bits=params.acc_bits,
        overflow=params.overflow,
        stages=(entry_registers(dot, params.act_format) or dot.product_bits is not None) + 1 + behind,
        load_beats=dot.load_beats,
        total_bits=total_bits,
    )


def entry_registers(dot: Dot, act_format: ActFormat) -> bool:
    """Whether the activations stand in registers of their own before the PEs."""
    return dot.product_bits is None and act_format is ActFormat.INT


def tile_codes(dot: Dot, cols: int, codes: Ints) -> Ints:
    """Codes [at most rows, at most cols] of a tile as load beats [load_beats, cols, beat_rows], zeros behind them.

    Codes move down `beat_rows` rows a beat, so that the first beat ends in the last rows.
    """
    full = gemm.pad_to(codes, (dot.load_beats * dot.beat_rows, cols))
    return full.reshape(dot.load_beats, dot.beat_rows, cols).transpose(0, 2, 1)[::-1]


def held_codes(dot: Dot, beats: Ints) -> Ints:
    """Codes [rows, cols] that the columns hold after load beats [load_beats, cols, beat_rows]."""
    return beats[::-1].transpose(0, 2, 1).reshape(-1, beats.shape[1])[: dot.rows]


def packed(fields: Ints, bits: int) -> Ints:
    """Fields [..., n] of `bits` bits as one word each, the first one lowest."""
    words: Ints = (fields << np.arange(0, bits * fields.shape[-1], bits)).sum(axis=-1)
    return words


def unpacked(words: Ints, bits: int, count: int) -> Ints:
    """The fields [..., count] of words."""
    return words[..., None] >> np.arange(0, bits * count, bits) & ((1 << bits) - 1)


def dot_ops(dot: Dot, columns: Columns, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Additions of the useful rows' products, and the registers of codes, activations or products, and sums."""
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    k_folds, n_folds = gemm.folds(K, dot.rows), gemm.folds(N, columns.cols)
    cycles = timing(columns, M, K, N).total_cycles
    loads, pes = k_folds * n_folds * dot.load_beats, dot.rows * columns.cols
    return (
        *some("add", M * N * (K - k_folds), dot.sum_bits),
        *some("reg", cycles * dot.rows * entry_registers(dot, columns.act_format), dot.act_bits),
        *some("reg", cycles * pes * (dot.product_bits is not None), dot.product_bits or 0),
        Op("reg", cycles * columns.cols, dot.sum_bits),
        Op("reg", loads * pes, dot.code_bits),
    )


def some(kind: str, count: int, bits: int, bits2: int = 0) -> tuple[Op, ...]:
    """That operation, or none where there are none of it."""
    return (Op(kind, int(count), bits, bits2),) if count else ()


def weights_of(W: NDArray[Any], values: Ints, rule: str) -> Ints:
    """W as int64; InputError, with the place and the nearest of the ascending `values`, where it holds another."""
    require(np.issubdtype(W.dtype, np.integer), f"W: integers are needed, not {W.dtype}")
    bad = np.argwhere(~np.isin(W, values))
    if len(bad):
        place = [int(i) for i in bad[0]]
        value = int(W[tuple(place)])
        near = min(values.tolist(), key=lambda v: abs(v - value))
        raise InputError(f"W{place}: {value} is {rule}; nearest: {near}")
    return W.astype(np.int64, copy=False)


def sample_of(
    columns: Columns, values: Ints, rng: np.random.Generator, M: int | None, K: int | None, N: int | None
) -> tuple[Any, ...]:
    """Random A and W of the ascending `values` (and half the time a starting psum), of a random small shape where none
    is given."""
    m, k, n = random_sizes(columns, rng, M, K, N)
    a = random_operand(columns, rng, m, k)
    weights = values[gemm.random_codes(rng, (k, n), 0, len(values) - 1)]
    if M is None and rng.integers(2):
        return a, weights, random_psum(columns, rng, m, n)
    return a, weights
