"""Bipolar integers: an array of XNOR gates and popcounts over the bit planes of activations and weights.

The bits of a bipolar integer are -1 and +1: one of b bits is the odd number sum_i (2 b_i - 1) 2^i, and a product of two
is a sum over pairs of planes, sum_{i,j} 2^(i+j) (K - 2 popcount(x_i xor w_j)) (Ma et al., "Efficient Arbitrary
Precision Acceleration for Large Language Models on GPU Tensor Cores"). Any widths meet, in 1-bit logic alone.

Two's-complement integers are bipolar ones but for their top bit: with it inverted, the bits of x are those of 2x + 1.
Activations enter so. Weights either are bipolar integers w', and 2 sum x w' = sum (2x + 1) w' - sum w'; or they are
ordinary integers w held as 2w + 1, and 4 sum x w = sum (2x + 1)(2w + 1) - 2 sum x - sum (2w + 1). What weights add up
to is a word that is loaded with them; the sum of activations is made once, at the edge, for all columns.

The array: a PE for each column and weight plane holds a bit a row and counts, for each activation plane, the rows in
which the two agree; a column weighs its counts. Three register stages: activations, counts, weighted total; the total
of a column and the sum of activations then meet the partial sum.
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
from models.bits import Overflow, Rounding, check_codes, signed_bits, signed_range, unsigned_range
from models.columns import Columns, shape_of
from models.floats import ActFormat
from models.unit import Beats, Ints, Op, Stimulus, Timing, Trace, check_choice, check_range, require

__all__ = ["shape_of"]

STAGES = 3
"""activations, counts, weighted total"""


@dataclass(frozen=True, kw_only=True)
class BipolarParams:
    """Geometry and widths. `correction`: weights are ordinary integers and not bipolar ones."""

    rows: int = 32
    cols: int = 8
    act_bits: int = 8
    weight_bits: int = 4
    correction: bool = True
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP

    def __post_init__(self) -> None:
        check_choice("bipolar", self, overflow=Overflow)
        check_range("bipolar", self, rows=(1, 256), cols=(1, 256), act_bits=(1, 8), weight_bits=(1, 8))
        check_range("bipolar", self, acc_bits=(2, 48))
        require(isinstance(self.correction, bool), f"bipolar: correction is true or false, not {self.correction!r}")

    @property
    def columns(self) -> Columns:
        return Columns(
            tile_k=self.rows,
            cols=self.cols,
            act_format=ActFormat.INT,
            act_bits=self.act_bits,
            rounding=Rounding.NEAREST_EVEN,
            acc_bits=self.acc_bits,
            overflow=self.overflow,
            stages=STAGES,
            load_beats=self.rows,
            total_bits=self.total_bits,
        )

    @property
    def scale(self) -> int:
        """How many units of the output one unit of A @ W is."""
        return 4 if self.correction else 2

    @property
    def count_bits(self) -> int:
        """Width of the count of rows that agree."""
        return self.rows.bit_length()

    @property
    def word_bits(self) -> int:
        """Width of what a column's bipolar weights add up to, negated."""
        bound = self.rows * self._largest_weight
        return signed_bits(-bound, bound)

    @property
    def total_bits(self) -> int:
        """Width of a column's weighted total."""
        product = self.rows * ((1 << self.act_bits) - 1) * self._largest_weight
        word = 1 << (self.word_bits - 1)
        return signed_bits(-product - word, product + word)

    @property
    def act_sum_bits(self) -> int:
        """Width of the sum of activations, and of its negative."""
        bound = self.rows << (self.act_bits - 1)
        return signed_bits(-bound, bound)

    @property
    def _largest_weight(self) -> int:
        return (1 << self.weight_bits) - 1


PRESETS = {
    "default": BipolarParams(),
    "tiny": BipolarParams(rows=1, cols=1, act_bits=1, weight_bits=1, acc_bits=6),
    "small": BipolarParams(rows=5, cols=3, act_bits=3, weight_bits=2, acc_bits=16),
    "bipolar": BipolarParams(rows=8, cols=2, act_bits=4, weight_bits=3, correction=False, acc_bits=20),
    "binary": BipolarParams(rows=7, cols=3, act_bits=1, weight_bits=1, correction=False, acc_bits=12),
    "wide": BipolarParams(rows=3, cols=2, weight_bits=8, acc_bits=48),
    "narrow-saturate": BipolarParams(rows=4, cols=2, act_bits=5, weight_bits=3, acc_bits=9, overflow=Overflow.SATURATE),
    "narrow-wrap": BipolarParams(rows=4, cols=2, act_bits=2, weight_bits=5, correction=False, acc_bits=7),
}

COMPARED = compared.low_bit(
    "bipolar",
    {bits: BipolarParams(weight_bits=bits) for bits in compared.WIDTHS},
    families=(compared.SHIFT_ADD,),
    differs="No paper's ratio for hardware: the paper maps bit planes onto the tensor cores of GPUs.",
)


def value_free(params: BipolarParams) -> tuple[str, ...]:
    """Columns; rows too where tiles of K change no sum."""
    return ("cols", "rows") if params.columns.wraps else ("cols",)


def golden(params: BipolarParams, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Ints:
    """Y[M, N] int64 = psum + 4 A @ W with `correction`, psum + 2 A @ W without, W then of odd integers.

    The sum of a tile of `rows` of K is exact; it is wrapped or saturated to `acc_bits` where it is added. `psum` [M, N]
    is where accumulation starts, in Y's units; zero by default. Bit planes take no part: the products are equal.
    """
    gemm.check_operands(A, W.shape)
    y: Ints = columns.golden(params.columns, A, params.scale * _checked(params, W), psum)
    return y


def _checked(params: BipolarParams, w: NDArray[Any]) -> Ints:
    """W as int64, after refusing what the array cannot hold."""
    if params.correction:
        return check_codes("W", w, params.weight_bits)
    values = check_codes("W", w, params.weight_bits + 1)
    even = values[values % 2 == 0]
    bad = int(even[0]) if even.size else 0
    near = bad + 1 if bad <= 0 else bad - 1
    require(not even.size, f"W: {bad} is even and bipolar integers are odd; nearest: {near}")
    return values


def timing(params: BipolarParams, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape."""
    return columns.timing(params.columns, M, K, N)


def ops(params: BipolarParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM without stalls.

    An XNOR is counted as a multiplexer between a bit and its inverse, a popcount as a full adder for each bit it
    counts; both for useful lanes. A register is counted in every cycle in which this RTL clocks it: nothing is gated
    but weights and their words, which are written while they are loaded.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    p, pairs = params, params.act_bits * params.weight_bits
    k_folds, n_folds = gemm.folds(K, p.rows), gemm.folds(N, p.cols)
    cycles, outputs = timing(p, M, K, N).total_cycles, M * N * k_folds
    loads = k_folds * n_folds * p.rows * p.cols
    return (
        Op("mux", M * K * N * pairs, 1, 2),
        Op("csa", M * K * N * pairs, 1),
        Op("add", outputs * (pairs + 1), p.total_bits),
        Op("reg", cycles * p.rows, p.act_bits),
        Op("reg", cycles * p.cols * pairs, p.count_bits),
        Op("reg", cycles * p.cols, p.total_bits),
        *(_activation_sums(p, M * n_folds, K, cycles) if p.correction else ()),
        Op("reg", loads * p.rows, p.weight_bits),
        Op("reg", loads, p.word_bits),
        *columns.edge_ops(p.columns, M, K, N, 1 + p.correction),
    )


def _activation_sums(p: BipolarParams, vectors: int, k: int, cycles: int) -> tuple[Op, ...]:
    """Sums of activations and their negatives."""
    added = k + gemm.folds(k, p.rows)
    return (Op("add", vectors * added, p.act_sum_bits), Op("reg", 2 * cycles, p.act_sum_bits))


def beats(params: BipolarParams, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Beats:
    """Input beats of a whole GEMM: `i_weight` {weight[cols], word[cols]}, a row of the tile each, its last row first,
    and `i_act` {act[rows], psum[cols], last}. Folds: N outside, K inside.

    A weight is the code of its bipolar integer, w + 2^(weight_bits - 1) of an ordinary one; unused rows and columns
    hold code 0, the least. The word, the same in every beat of a tile, is minus the sum of the bipolar integers that a
    column then holds, unused rows included: an activation of zero is the bipolar 1 there.
    """
    gemm.check_operands(A, W.shape)
    w = _codes(params, W)
    return columns.beats_of(
        params.columns,
        check_codes("A", A, params.act_bits),
        W.shape[1],
        psum,
        lambda rows, cols: _load(params, gemm.pad_to(w[rows, cols], (params.rows, params.cols))),
        partial(_tile_golden, params),
    )


def _codes(params: BipolarParams, w: NDArray[Any]) -> Ints:
    """The unsigned codes of W."""
    if params.correction:
        return _checked(params, w) + (1 << (params.weight_bits - 1))
    return (_checked(params, w) + (1 << params.weight_bits) - 1) >> 1


def _bipolar(params: BipolarParams, codes: Ints) -> Ints:
    """The odd integers of codes."""
    return 2 * codes - ((1 << params.weight_bits) - 1)


def _load(params: BipolarParams, codes: Ints) -> Mapping[str, Ints]:
    word = -_bipolar(params, codes).sum(axis=0)
    return {"weight": codes[::-1], "word": np.tile(word, (params.rows, 1))}


def _tile_golden(params: BipolarParams, tile: Mapping[str, Ints], act: Ints, psum: Ints) -> Ints:
    """What leaves for the weights and the words that were loaded, whether or not these are the weights' sums."""
    w = _bipolar(params, tile["weight"][::-1])
    # 4 x w = 2 x ((2w + 1) - 1), and 2 x w' as it is
    integers = 2 * (w - 1) if params.correction else 2 * w
    beyond = tile["word"][-1:] + w.sum(axis=0)
    acts, held = np.pad(act, ((0, 0), (0, 1)), constant_values=1), np.concatenate([integers, beyond])
    return gemm.accumulate_blocks(acts, held, psum, params.rows + 1, params.acc_bits, params.overflow)


def trace(params: BipolarParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from exact products, tile by
    tile."""
    return columns.trace_of(params.columns, stimulus, partial(_tile_golden, params))


def result(params: BipolarParams, operands: tuple[Any, ...], out_beats: Mapping[str, Ints]) -> Ints:
    """Y[M, N] from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    y: Ints = columns.result(params.columns, shape_of(params, *operands), out_beats)
    return y


def sample(
    params: BipolarParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Ints, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given."""
    m, k, n = columns.random_sizes(params.columns, rng, M, K, N)
    a = gemm.random_codes(rng, (m, k), *signed_range(params.act_bits))
    codes = gemm.random_codes(rng, (k, n), *unsigned_range(params.weight_bits))
    w = codes - (1 << (params.weight_bits - 1)) if params.correction else _bipolar(params, codes)
    return (a, w, columns.random_psum(params.columns, rng, m, n)) if M is None and rng.integers(2) else (a, w)


def weight_format(params: BipolarParams) -> tuple[str, dict[str, Any]]:
    """Bipolar integers, or with `correction` ordinary ones; one scale a column."""
    if not params.correction:
        return "bipolar", {"bits": params.weight_bits}
    rule = "bipolar: ordinary integers of 1 bit have no format"
    require(params.weight_bits > 1, f"{rule}; correction=false takes bipolar ones, -1 and +1")
    return gemm.weight_format(params)


def operand(params: BipolarParams, quantized: Any) -> tuple[Ints, Fraction]:
    """W from quantized weights [K, N]: their integers."""
    return from_integers(params, gemm.column_integers("bipolar", quantized))


def from_integers(params: BipolarParams, W: NDArray[Any]) -> tuple[Ints, Fraction]:
    """A plain integer matrix of `plain_weights` is W as it is; the output counts quarters, or halves, of A @ W."""
    return _checked(params, W), Fraction(1, params.scale)


def plain_weights(params: BipolarParams) -> Ints:
    """The integers of `weight_bits` bits, or the odd ones that bipolar weights can be."""
    if params.correction:
        return np.arange(1 << params.weight_bits) - (1 << (params.weight_bits - 1))
    return _bipolar(params, np.arange(1 << params.weight_bits))
