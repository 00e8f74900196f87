"""MixPE: products of low-bit weights by shift and add; scale and zero point meet the sum of a group.

Zhang et al., "MixPE: Quantization and Hardware Co-design for Efficient LLM Inference", 2024: since all weights of a
group share scale s and zero point z, sum_k a s (q - z) = s (sum_k a q - z sum_k a), so that PEs multiply by the bare
codes q, and each group needs one more product or two. A PE adds the activation shifted to each set bit of q and
subtracts it at the top bit (two's complement). The activations' sum is made once at the edge, for all columns. Column
stages: products, their sum, the zero point's part, the scale's product. The paper adds exponents where activations are
FP16; here they are aligned first, as in all arrays of models/columns.py.
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
from models.bits import Overflow, Rounding, signed_bits, signed_range
from models.columns import Columns, Result, check_columns, check_group, shape_of
from models.dot import Dot, dot_columns, dot_ops, held_codes, some, tile_codes
from models.floats import ActFormat
from models.grouped import GroupedWeights, check_grouped, grouped_integers, grouped_operand
from models.unit import Beats, InputError, Ints, Op, Published, Stimulus, Timing, Trace, check_range, require

__all__ = ["shape_of"]


@dataclass(frozen=True, kw_only=True)
class MixpeParams:
    """Geometry and widths. `scale_bits` is the width of a scale (unsigned); zero points have `weight_bits` bits.

    `group_size` is how many consecutive k share a scale and a zero point (none: all), a whole number of tiles of
    `rows`. Without `zero_points` neither the activations' sum nor its product is built.
    """

    rows: int = 32
    cols: int = 8
    act_format: ActFormat = ActFormat.INT
    act_bits: int = 8
    rounding: Rounding = Rounding.NEAREST_EVEN
    weight_bits: int = 4
    group_size: int | None = None
    scale_bits: int = 8
    zero_points: bool = True
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP

    def __post_init__(self) -> None:
        check_range("mixpe", self, rows=(1, 256), weight_bits=(2, 8), scale_bits=(1, 16))
        check_columns("mixpe", self)
        require(isinstance(self.zero_points, bool), f"mixpe: zero_points is true or false, not {self.zero_points!r}")
        if self.group_size is not None:
            check_range("mixpe", self, group_size=(1, 1 << 20))
        check_group("mixpe", self.group_size, self.rows, "rows")

    @property
    def act_sum_bits(self) -> int:
        """Width of the sum of a vector's activations."""
        return _signed_bits(self.rows << (self.act_bits - 1))

    @property
    def difference_bits(self) -> int:
        """Width of a column's sum less the zero point's part, |q - z| < 2^weight_bits."""
        reach = (1 << self.weight_bits) - 1 if self.zero_points else 1 << (self.weight_bits - 1)
        return _signed_bits((self.rows << (self.act_bits - 1)) * reach)

    @property
    def dot(self) -> Dot:
        return Dot(
            rows=self.rows,
            act_bits=self.act_bits,
            code_bits=self.weight_bits,
            beat_rows=1,
            product_bits=self.act_bits + self.weight_bits,
            sum_bits=_signed_bits(self.rows << (self.act_bits + self.weight_bits - 2)),
        )

    @property
    def columns(self) -> Columns:
        total_bits = self.difference_bits + self.scale_bits
        return dot_columns(self, self.dot, 1 + self.zero_points, total_bits)


def _signed_bits(bound: int) -> int:
    return signed_bits(-bound, bound)


_FP16: dict[str, Any] = {"act_format": ActFormat.FP16, "act_bits": 12}

PRESETS = {
    "default": MixpeParams(),
    "symmetric": MixpeParams(rows=8, cols=3, weight_bits=3, zero_points=False),
    "grouped": MixpeParams(rows=4, cols=2, weight_bits=2, group_size=8, act_bits=6, scale_bits=3),
    "tiny": MixpeParams(rows=1, cols=1, act_bits=2, weight_bits=2, scale_bits=1, acc_bits=8),
    "odd": MixpeParams(rows=7, cols=3, weight_bits=5, group_size=7, scale_bits=5),
    "narrow-saturate": MixpeParams(
        rows=3, cols=2, act_bits=5, scale_bits=3, group_size=3, acc_bits=12, overflow=Overflow.SATURATE
    ),
    "fp16": MixpeParams(rows=6, cols=2, group_size=6, **_FP16),
    "fp16-symmetric": MixpeParams(rows=2, cols=1, weight_bits=3, scale_bits=4, zero_points=False, **_FP16),
}

_PAPER = Published(source="Y. Zhang et al., MixPE, 2024, abstract", energy_efficiency=1.4)
_WHY = (
    "The paper's 1.4 x in energy (and 2.6 x in speed) are of whole accelerators with memories, over those with other "
    "quantized multipliers. Ours is the array alone, by counted operations; activations are broadcast to a tree a "
    "column, and FP16 ones are aligned once at the edge instead of having their exponents added to in every PE."
)


def _designs(**changes: Any) -> dict[int, MixpeParams]:
    return {bits: MixpeParams(weight_bits=bits, **changes) for bits in (2, 3, 4)}


COMPARED = (
    *compared.low_bit(
        "mixpe",
        _designs(),
        families=(compared.SHIFT_ADD,),
        published=dict.fromkeys(compared.WIDTHS, _PAPER),
        differs=_WHY,
    ),
    *compared.low_bit(
        "mixpe, no zero points",
        {4: MixpeParams(zero_points=False)},
        families=(compared.SHIFT_ADD,),
        differs="No paper's ratio: symmetric weights, without the activations' sum and its product a column.",
    ),
    *compared.low_bit(
        "mixpe FP16",
        _designs(**_FP16),
        act_format=ActFormat.FP16,
        families=(compared.SHIFT_ADD,),
        published=dict.fromkeys(compared.WIDTHS, _PAPER),
        differs=_WHY,
    ),
)


def value_free(params: MixpeParams) -> tuple[str, ...]:
    """Columns; rows too where tiles of K change no sum."""
    return ("cols", "rows") if params.columns.wraps else ("cols",)


def golden(params: MixpeParams, A: NDArray[Any], W: GroupedWeights, psum: Any = None) -> Result:
    """Y[M, N] = psum + A @ W.integers, as models/columns.py sums it: int64, or float32 with FP16."""
    _check_weights(params, W)
    return columns.golden(params.columns, A, W.integers, psum)


def _check_weights(params: MixpeParams, W: GroupedWeights) -> None:
    check_grouped(W, params.weight_bits, params.scale_bits, params.group_size)
    bad = np.argwhere(W.zeros != 0)
    if len(bad) and not params.zero_points:
        place = [int(i) for i in bad[0]]
        raise InputError(f"zeros{place}: {W.zeros[tuple(place)]}; mixpe with zero_points=false takes 0 alone")


def timing(params: MixpeParams, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape."""
    return columns.timing(params.columns, M, K, N)


def ops(params: MixpeParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM: for each product a choice of the activation or 0 for every bit and the additions of these,
    their sums; for each column and tile the scaling; the activations' sum; and every register in every cycle."""
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    p, outputs = params, M * N * gemm.folds(K, params.rows)
    products = (
        Op("mux", M * K * N * p.weight_bits, p.act_bits, 2),
        Op("add", M * K * N * (p.weight_bits - 1), p.act_bits + p.weight_bits),
    )
    scaling = (Op("mul", outputs, p.difference_bits, p.scale_bits), *_scaling_registers(p, M, K, N))
    zeros = _zero_ops(p, M, K, N, outputs) if p.zero_points else ()
    edges = columns.edge_ops(p.columns, M, K, N, 1)
    return (*products, *dot_ops(p.dot, p.columns, M, K, N), *zeros, *scaling, *edges)


def _scaling_registers(p: MixpeParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    t = timing(p, M, K, N)
    return (
        Op("reg", t.total_cycles * p.cols, p.columns.total_bits),
        Op("reg", t.load_cycles * p.cols, p.scale_bits),
    )


def _zero_ops(p: MixpeParams, M: int, K: int, N: int, outputs: int) -> tuple[Op, ...]:
    t, folds = timing(p, M, K, N), gemm.folds(N, p.cols)
    return (
        *some("add", M * folds * (K - gemm.folds(K, p.rows)), p.act_sum_bits),
        Op("mul", outputs, p.act_sum_bits, p.weight_bits),
        Op("add", outputs, p.difference_bits),
        Op("reg", t.total_cycles * 2, p.act_sum_bits),
        Op("reg", t.total_cycles * p.cols, p.difference_bits),
        Op("reg", t.load_cycles * p.cols, p.weight_bits),
    )


def beats(params: MixpeParams, A: NDArray[Any], W: GroupedWeights, psum: Any = None) -> Beats:
    """Input beats of a whole GEMM: `i_weight` {weight[cols], scale[cols], zero[cols]}, the codes of a row of the tile,
    its last row first, beside the tile's scales and, with `zero_points`, zero points, of which the last beat's stay;
    and `i_act` {act[rows], psum[cols], last}."""
    _check_weights(params, W)

    def load(rows: slice, cols: slice) -> Mapping[str, Ints]:
        words = {"scale": W.scales, "zero": W.zeros} if params.zero_points else {"scale": W.scales}
        group = rows.start // W.group
        return {
            "weight": tile_codes(params.dot, params.cols, W.codes[rows, cols])[..., 0],
            **{name: _every_beat(params, values[group, cols]) for name, values in words.items()},
        }

    return columns.beats(params.columns, A, W.shape[1], psum, load, partial(_held, params))


def _every_beat(params: MixpeParams, words: Ints) -> Ints:
    return np.tile(gemm.pad_to(words, (params.cols,)), (params.dot.load_beats, 1))


def _held(params: MixpeParams, tile: Mapping[str, Ints]) -> Ints:
    codes = held_codes(params.dot, tile["weight"][..., None])
    integers: Ints = tile["scale"][-1] * (codes - tile["zero"][-1] if params.zero_points else codes)
    return integers


def result(params: MixpeParams, operands: tuple[Any, ...], out_beats: Mapping[str, Ints]) -> Result:
    """Y[M, N] from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    return columns.result(params.columns, shape_of(params, *operands), out_beats)


def trace(params: MixpeParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    return columns.trace(params.columns, stimulus, partial(_held, params))


def sample(
    params: MixpeParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Any, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given; now and then
    every product is the largest there is."""
    m, k, n = columns.random_sizes(params.columns, rng, M, K, N, params.group_size)
    a = columns.random_operand(params.columns, rng, m, k)
    weights = _largest_weights(params, rng, k, n) if rng.integers(4) == 0 else _random_weights(params, rng, k, n)
    if M is None and rng.integers(2):
        return a, weights, columns.random_psum(params.columns, rng, m, n)
    return a, weights


def _random_weights(params: MixpeParams, rng: np.random.Generator, k: int, n: int) -> GroupedWeights:
    group = params.group_size or k
    low, high = signed_range(params.weight_bits)
    shape = (gemm.folds(k, group), n)
    return GroupedWeights(
        codes=gemm.random_codes(rng, (k, n), low, high),
        scales=np.maximum(gemm.random_codes(rng, shape, 1, (1 << params.scale_bits) - 1), 1),
        zeros=gemm.random_codes(rng, shape, low, high) * params.zero_points,
        group=group,
    )


def _largest_weights(params: MixpeParams, rng: np.random.Generator, k: int, n: int) -> GroupedWeights:
    """Codes at one end and zero points at the other, all scales the largest."""
    group, ends = params.group_size or k, signed_range(params.weight_bits)
    code = int(rng.integers(2))
    shape = (gemm.folds(k, group), n)
    return GroupedWeights(
        codes=np.full((k, n), ends[code]),
        scales=np.full(shape, (1 << params.scale_bits) - 1),
        zeros=np.full(shape, ends[1 - code] * params.zero_points),
        group=group,
    )


def weight_format(params: MixpeParams) -> tuple[str, dict[str, Any]]:
    """Integers with integer scales, asymmetric ones where there are zero points."""
    options = {"group": params.group_size, "symmetric": not params.zero_points, "scale_bits": params.scale_bits}
    return f"int{params.weight_bits}", options


def operand(params: MixpeParams, quantized: Any) -> tuple[GroupedWeights, Fraction]:
    """W from quantized weights [K, N] with integer codes, scales and perhaps zero points."""
    weights = grouped_operand("mixpe", quantized)
    _check_weights(params, weights)
    return weights, Fraction(1)


def from_integers(params: MixpeParams, W: NDArray[Any]) -> tuple[GroupedWeights, Fraction]:
    """A plain integer matrix of `weight_bits` bits as W: scales of 1, zero points of 0."""
    return grouped_integers(W, params.weight_bits, params.group_size), Fraction(1)
