"""Multiplier-adder trees: each multiplies a vector of activations with its own weights and sums the products.

`trees` trees of `lanes` multipliers share the activations; each gives one dot product a cycle (the "multiplier-adder
tree" of Q. Wu et al., "Exploring the Performance Improvement of Tensor Processing Engines through Transformation in the
Bit-weight Dimension of MACs", HPCA 2025). Weights stay; they enter lane 0 of their tree and move down. The partial sum
enters with the activations and is added last.

Pipeline: `ent` has a register behind the encoders at the edge, whose digits go to all trees. Every product is
registered, then every second level of the tree (four words become one). With `opt1` products and sums are carry-save
pairs: a lane's Booth rows become a pair in three to four rows of full adders, four pairs become one in four. The last
stage adds the partial sum: one adder with `opt1` too, behind two rows of full adders.

Widths: `product_bits`, `node_bits` and `sum_bits` (of one, some and all lanes) are exact, see models/style.exact_bits;
where sums wrap, none is wider than the accumulator. The accumulator wraps or saturates once a dot product, where the
exact sum of the lanes is added to it. The constant by which carry-save words exceed the sum is taken off in that stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.bits import Overflow, signed_range
from models.gemm import from_integers, operand, shape_of, weight_format
from models.style import Style, check_style, edge_ops, exact_bits, rows_excess
from models.unit import (
    Beats,
    Compared,
    Ints,
    Op,
    Published,
    Stimulus,
    Timing,
    Trace,
    check_choice,
    check_range,
)

__all__ = ["from_integers", "operand", "shape_of", "weight_format"]

ARITY = 4
"""words that become one from one register of the tree to the next"""


@dataclass(frozen=True, kw_only=True)
class AdderTreeParams:
    """Geometry and widths. Operands and accumulators are two's-complement integers."""

    lanes: int = 16
    trees: int = 16
    act_bits: int = 8
    weight_bits: int = 8
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP
    style: Style = Style.MAC

    def __post_init__(self) -> None:
        check_range("adder_tree", self, lanes=(1, 256), trees=(1, 256), act_bits=(2, 16), weight_bits=(2, 16))
        check_range("adder_tree", self, acc_bits=(2, 48))
        check_choice("adder_tree", self, overflow=Overflow, style=Style)
        check_style("adder_tree", self, self.trees, "act", "trees of at least 2")

    def node_bits(self, count: int) -> int:
        """Width of the sum of `count` products; with `opt1` of each word of the pair."""
        exact = exact_bits(self.style, self.act_bits, self.weight_bits, count)
        return exact if self.overflow is Overflow.SATURATE else min(exact, self.acc_bits)

    @property
    def product_bits(self) -> int:
        """Width of a product."""
        return self.node_bits(1)

    @property
    def sum_bits(self) -> int:
        """Width of the sum of all lanes."""
        return self.node_bits(self.lanes)

    @property
    def excess(self) -> int:
        """What the carry-save pair of all lanes exceeds their sum by."""
        return self.lanes * rows_excess(self.act_bits, self.weight_bits)

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """The tree's registers, stage by stage: how many lanes each holds the sum of."""
        stages: list[tuple[int, ...]] = [(1,) * self.lanes]
        while len(stages[-1]) > 1:
            stages.append(merged(stages[-1]))
        return tuple(stages)

    @property
    def geometry(self) -> gemm.Stationary:
        """The tree's stages and the addition of the partial sum; `ent` has the encoders' register before them."""
        return gemm.Stationary(
            tile_k=self.lanes,
            tile_n=self.trees,
            load_beats=self.lanes,
            latency=(self.style is Style.ENT) + len(self.stages) + 1,
        )


def merged(counts: tuple[int, ...]) -> tuple[int, ...]:
    """One stage of a tree: how many lanes each word has once ARITY words are one."""
    return tuple(sum(counts[i : i + ARITY]) for i in range(0, len(counts), ARITY))


PRESETS = {
    "default": AdderTreeParams(),
    "tiny": AdderTreeParams(lanes=1, trees=1),
    "small": AdderTreeParams(lanes=6, trees=3, acc_bits=24),
    "wide": AdderTreeParams(lanes=3, trees=2, act_bits=16, weight_bits=16, acc_bits=40),
    "narrow-wrap": AdderTreeParams(lanes=5, trees=2, acc_bits=9, act_bits=6, weight_bits=4),
    "narrow-saturate": AdderTreeParams(lanes=4, trees=2, acc_bits=13, overflow=Overflow.SATURATE),
    "opt1": AdderTreeParams(lanes=5, trees=1, style=Style.OPT1),
    "opt1-tiny": AdderTreeParams(lanes=1, trees=1, act_bits=2, weight_bits=3, acc_bits=12, style=Style.OPT1),
    "opt1-narrow": AdderTreeParams(lanes=5, trees=2, act_bits=5, acc_bits=10, style=Style.OPT1),
    "opt1-wide": AdderTreeParams(lanes=2, trees=1, act_bits=16, weight_bits=16, acc_bits=40, style=Style.OPT1),
    "opt1-deep": AdderTreeParams(lanes=17, trees=1, act_bits=3, weight_bits=3, acc_bits=20, style=Style.OPT1),
    "ent": AdderTreeParams(lanes=5, trees=3, style=Style.ENT),
    "ent-odd": AdderTreeParams(lanes=2, trees=2, act_bits=9, weight_bits=3, acc_bits=18, style=Style.ENT),
    "ent-saturate": AdderTreeParams(
        lanes=3, trees=2, acc_bits=12, act_bits=5, style=Style.ENT, overflow=Overflow.SATURATE
    ),
}

COMPARED = (
    Compared(family="integer", architecture="adder tree", style="mac", params=AdderTreeParams()),
    Compared(
        family="integer",
        architecture="adder tree",
        style="opt1",
        params=AdderTreeParams(style=Style.OPT1),
        published=Published(source="Q. Wu et al., HPCA 2025, abstract", area_efficiency=1.56, energy_efficiency=1.49),
        differs="The abstract gives one ratio for the adder tree and does not say which transformations are in it; "
        "ours is OPT1 alone, with 32-bit partial sums that enter, wait beside the tree and leave, on a library without "
        "wires and without their 28 nm flow and its faster clocks.",
    ),
    Compared(
        family="integer",
        architecture="adder tree",
        style="ent",
        params=AdderTreeParams(style=Style.ENT),
        published=Published(
            source="EN-T, average over engines at 1 TOPS", area_efficiency=1.122, energy_efficiency=1.175
        ),
        differs="The paper averages over its engines and does not give this one; it removes encoders from multipliers "
        "that a synthesis library chose, ours from Booth multipliers where the flow may take an array multiplier "
        "without any encoder as its baseline, on a library without wires.",
    ),
)


def value_free(params: AdderTreeParams) -> tuple[str, ...]:
    """Trees and style; the lanes too where sums wrap, since saturation looks at each block of them."""
    return ("trees", "style", "lanes") if params.overflow is Overflow.WRAP else ("trees", "style")


def golden(params: AdderTreeParams, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Ints:
    """Y[M, N] int64 = psum + A @ W; the exact sum of each `lanes` products, in order of k, is added and fitted to
    `acc_bits`. The same in all styles.

    `psum` [M, N] (a bias) is where accumulation starts; zero by default.
    """
    start = gemm.checked_operands(params, A, W, psum)
    return gemm.accumulate_blocks(A, W, start, params.lanes, params.acc_bits, params.overflow)


def timing(params: AdderTreeParams, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape."""
    return gemm.stationary_timing(params.geometry, M, K, N)


def ops(params: AdderTreeParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM without stalls.

    Arithmetic counts what is useful: a padded lane multiplies by zero. A register is counted in every cycle in which
    this RTL clocks it: nothing is gated but the weights, which are written while they are loaded. Words of a pair count
    whole, with the two or three lowest bits of the carry word that are always zero.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    p = params
    k_folds, n_folds = gemm.folds(K, p.lanes), gemm.folds(N, p.trees)
    sums = [Op(op.kind, M * N * op.count, op.bits, op.bits2) for op in _dot_product_ops(p, K)]
    loads = k_folds * n_folds * p.lanes * p.lanes * p.trees
    registers = (Op("reg", loads, p.weight_bits), *_registers(p, timing(p, M, K, N).total_cycles))
    return (*sums, *edge_ops(p.style, M * K * n_folds, p.act_bits, M * N * k_folds, p.acc_bits), *registers)


def _dot_product_ops(p: AdderTreeParams, K: int) -> tuple[Op, ...]:
    """Of one output, over all its folds."""
    sums = gemm.folds(K, p.lanes)
    if p.style is Style.OPT1:
        return (
            Op("encode", K, p.act_bits),
            Op("products", K, p.act_bits, p.weight_bits),
            *(Op("csa", 2 * count, bits) for count, bits in _additions(p, K)),
            Op("csa", 2 * sums, p.acc_bits),
        )
    multiply: tuple[Op, ...] = (Op("mul", K, p.act_bits, p.weight_bits),)
    if p.style is Style.ENT:
        multiply = (Op("products", K, p.act_bits, p.weight_bits), Op("add", K, p.product_bits))
    return (*multiply, *(Op("add", count, bits) for count, bits in _additions(p, K)), Op("add", sums, p.acc_bits))


def _additions(p: AdderTreeParams, K: int) -> list[tuple[int, int]]:
    """(count, width) of the pairwise additions of K products on the tree, level by level of every fold."""
    full, rest = divmod(K, p.lanes)
    found = []
    for folds, words in ((full, p.lanes), (1, rest)):
        span = 1
        while words > 1 and folds:
            span = min(2 * span, p.lanes)
            found.append((folds * (words // 2), p.node_bits(span)))
            words = -(-words // 2)
    return found


def _registers(p: AdderTreeParams, cycles: int) -> tuple[Op, ...]:
    words = 1 + (p.style is Style.OPT1)
    nodes = [
        Op("reg", cycles * p.trees * counts.count(count), words * p.node_bits(count))
        for counts in p.stages
        for count in sorted({*counts})
    ]
    encoded = (Op("reg", cycles * p.lanes, p.style.travel_bits(p.act_bits)),) if p.style is Style.ENT else ()
    return (*encoded, *nodes, Op("reg", cycles * p.trees * p.geometry.latency, p.acc_bits))


def beats(params: AdderTreeParams, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Beats:
    """Input beats of a whole GEMM: `i_weight` {weight[trees]}, the tile's last row first; `i_act` {act[lanes],
    psum[trees], last}. Folds: N outside, K inside."""
    tile_golden = partial(golden, params)
    return gemm.chain_beats(params.geometry, A.astype(np.int64), W.astype(np.int64), psum, tile_golden)


def result(params: AdderTreeParams, operands: tuple[NDArray[Any], ...], out_beats: Mapping[str, Ints]) -> Ints:
    """Y[M, N] from the beats of `o_psum` {psum[trees]} of a whole GEMM."""
    shape = shape_of(params, *operands)
    return gemm.stationary_result(params.geometry, (shape["M"], shape["K"], shape["N"]), out_beats)


def trace(params: AdderTreeParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    return gemm.chain_trace(params.geometry, stimulus, partial(golden, params))


def sample(
    params: AdderTreeParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Ints, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given."""
    drawn = gemm.random_shape(rng, 5, params.lanes, params.trees)
    m, k, n = (given or size for given, size in zip((M, K, N), drawn, strict=True))
    a, w = gemm.sample_operands(params, rng, m, k, n)
    if M is None and rng.integers(2):
        return a, w, gemm.random_codes(rng, (m, n), *signed_range(params.acc_bits))
    return a, w
