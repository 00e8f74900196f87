"""Cube engine: n x n x n PEs, the product of two n x n blocks in every cycle.

PE (i, j, k) multiplies A[i, k], which moves along j, with W[k, j], which moves along i; partial sums move along k (the
"3D cube" of Q. Wu et al., "Exploring the Performance Improvement of Tensor Processing Engines through Transformation in
the Bit-weight Dimension of MACs", HPCA 2025). Operands are skewed by i + k and j + k cycles. At the end of each chain
stands an accumulator, which adds the blocks of a tile of Y over K; marks that say whether it starts anew and whether
the tile is complete travel with the blocks.

Sums of a tile are complete in chain (i, j) i + j cycles after those of chain (0, 0). Each is kept in a register of its
own until the last one is there and the tile leaves whole, so no sum is delayed step by step, which would take as many
registers as there are cycles of skew. In return the end of a tile stays 2n - 1 cycles behind that of the one before: no
bubble where a tile has as many blocks (K above 2n (n - 1)).

Widths: the chain holds the exact sum of n products in `chain_bits`, see models/style.exact_bits; where sums wrap, it is
no wider than the accumulator. Accumulators wrap or saturate to `acc_bits` once a block. With `opt1` the chain and the
accumulator hold carry-save pairs; the constant by which those of the chain exceed the sum is taken off where a block is
added, and the adders that resolve the pairs stand before the registers in which complete sums wait: one for each chain
of n PEs, since sharing one among a row's chains would take a multiplexer of n pairs, about as large as what it saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.bits import Overflow
from models.gemm import from_integers, operand, shape_of, weight_format
from models.style import Style, check_style, edge_ops, exact_bits, mac_ops, rows_excess
from models.unit import (
    Beats,
    Compared,
    Ints,
    Op,
    Published,
    Stimulus,
    Timing,
    Trace,
    assemble_trace,
    check_choice,
    check_range,
    require,
    step_streams,
)

__all__ = ["from_integers", "operand", "shape_of", "weight_format"]


@dataclass(frozen=True, kw_only=True)
class CubeParams:
    """Geometry and widths. Operands and accumulators are two's-complement integers."""

    n: int = 8
    act_bits: int = 8
    weight_bits: int = 8
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP
    style: Style = Style.MAC

    def __post_init__(self) -> None:
        check_range("cube", self, n=(1, 32), act_bits=(2, 16), weight_bits=(2, 16), acc_bits=(2, 48))
        check_choice("cube", self, overflow=Overflow, style=Style)
        check_style("cube", self, self.n, "act", "n of at least 2")

    @property
    def fold(self) -> gemm.Fold:
        return gemm.Fold(M=self.n, K=self.n, N=self.n, takes_psum=False)

    @property
    def chain_bits(self) -> int:
        """Width of the sum of n products; with `opt1` of each word of the pair."""
        exact = exact_bits(self.style, self.act_bits, self.weight_bits, self.n)
        return exact if self.overflow is Overflow.SATURATE else min(exact, self.acc_bits)

    @property
    def excess(self) -> int:
        """What the chain's carry-save pair exceeds the sum of n products by."""
        return self.n * rows_excess(self.act_bits, self.weight_bits)

    @property
    def gap(self) -> int:
        """Cycles by which the end of a tile follows that of the one before, at least."""
        return 2 * self.n - 1

    @property
    def chain_cycles(self) -> int:
        """From a block's transfer until its first sum has left the chain."""
        return self.n + (self.style is Style.ENT)

    @property
    def latency(self) -> int:
        """From the transfer of a tile's last block until the tile is shown: chain, accumulators, skew, resolving."""
        return self.chain_cycles + 1 + 2 * (self.n - 1) + (self.style is Style.OPT1)


PRESETS = {
    "default": CubeParams(),
    "tiny": CubeParams(n=1),
    "small": CubeParams(n=3, acc_bits=24),
    "wide": CubeParams(n=2, act_bits=16, weight_bits=16, acc_bits=40),
    "narrow-wrap": CubeParams(n=2, acc_bits=9, act_bits=6, weight_bits=4),
    "narrow-saturate": CubeParams(n=3, acc_bits=13, act_bits=6, overflow=Overflow.SATURATE),
    "opt1": CubeParams(n=3, style=Style.OPT1),
    "opt1-tiny": CubeParams(n=1, act_bits=3, weight_bits=2, acc_bits=9, style=Style.OPT1),
    "opt1-wide": CubeParams(n=1, act_bits=16, weight_bits=16, acc_bits=40, style=Style.OPT1),
    "opt1-narrow": CubeParams(n=2, act_bits=5, acc_bits=10, style=Style.OPT1),
    "ent": CubeParams(n=3, style=Style.ENT),
    "ent-odd": CubeParams(n=2, act_bits=9, weight_bits=3, acc_bits=18, style=Style.ENT),
    "ent-saturate": CubeParams(n=2, acc_bits=12, act_bits=5, style=Style.ENT, overflow=Overflow.SATURATE),
}

COMPARED = (
    Compared(family="integer", architecture="cube", style="mac", params=CubeParams()),
    Compared(
        family="integer",
        architecture="cube",
        style="opt1",
        params=CubeParams(style=Style.OPT1),
        published=Published(source="Q. Wu et al., HPCA 2025, abstract", area_efficiency=1.28, energy_efficiency=1.56),
        differs="The abstract gives one ratio for the cube and does not say which transformations are in it; ours is "
        "OPT1 alone, whose chain of two words a PE is paid in flip-flops, on a library without wires and without their "
        "28 nm flow and its faster clocks.",
    ),
    Compared(
        family="integer",
        architecture="cube",
        style="ent",
        params=CubeParams(style=Style.ENT),
        published=Published(
            source="EN-T, average over engines at 1 TOPS", area_efficiency=1.122, energy_efficiency=1.175
        ),
        differs="The paper averages over its engines and does not give this one; here a code word is one bit wider "
        "than an activation in every register that it passes, and the baseline may be an array multiplier without any "
        "encoder, on a library without wires.",
    ),
)


def value_free(params: CubeParams) -> tuple[str, ...]:
    """The style; the edge too where sums wrap, since saturation looks at each block of it."""
    return ("style", "n") if params.overflow is Overflow.WRAP else ("style",)


def golden(params: CubeParams, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Ints:
    """Y[M, N] int64 = A @ W; the exact sum of each n products, in order of k, is added and fitted to `acc_bits`.

    The same in all styles. Accumulation starts at zero: a `psum` is refused.
    """
    require(psum is None, "cube: sums start at zero; add psum to the result")
    gemm.checked_operands(params, A, W, psum)
    return gemm.accumulate_blocks(A, W, None, params.n, params.acc_bits, params.overflow)


def timing(params: CubeParams, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape.

    A tile takes a cycle for each block of K, at least 2n - 1; the last one leaves `latency` cycles after its end.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    count, blocks = gemm.folds(M, params.n) * gemm.folds(N, params.n), gemm.folds(K, params.n)
    spaced = np.maximum(blocks, params.gap)
    total = (count - 1) * (spaced if spaced.ndim else int(spaced)) + blocks + params.latency
    return Timing(
        total_cycles=total,
        load_cycles=0 * count,
        stream_cycles=count * blocks,
        drain_cycles=total - count * blocks,
        work=M * K * N,
        peak_per_cycle=params.n**3,
        words={
            "act": M * K * gemm.folds(N, params.n),
            "weight": K * N * gemm.folds(M, params.n),
            "psum": 0 * count,
            "out": M * N,
        },
    )


def ops(params: CubeParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM without stalls.

    Arithmetic counts what is useful: a padded lane multiplies by zero. A register is counted in every cycle in which
    this RTL clocks it: nothing is gated but accumulators, by blocks, and complete sums, by tiles. Words of a pair count
    whole, with the two lowest bits of the carry word that are always zero.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    p = params
    m_folds, blocks, n_folds = (gemm.folds(size, p.n) for size in (M, K, N))
    entered, cycles, pairs = M * K * n_folds, timing(p, M, K, N).total_cycles, 1 + (p.style is Style.OPT1)
    tiles = m_folds * n_folds * p.n**2
    skew = p.n**2 * (p.n - 1)
    return (
        *mac_ops(p.style, M * K * N, p.act_bits, p.weight_bits, p.chain_bits),
        _block_ops(p, M * N * blocks),
        *edge_ops(p.style, entered, p.act_bits, M * N, p.acc_bits),
        *((Op("reg", cycles * p.n**2, p.style.travel_bits(p.act_bits)),) if p.style is Style.ENT else ()),
        *((Op("reg", cycles * p.n**2, p.weight_bits),) if p.style is Style.ENT else ()),
        Op("reg", cycles * (skew + p.n**3), p.style.travel_bits(p.act_bits)),
        Op("reg", cycles * (skew + p.n**3), p.weight_bits),
        Op("reg", cycles * p.n**3, pairs * p.chain_bits),
        Op("reg", tiles * blocks, pairs * p.acc_bits),
        Op("reg", tiles, p.acc_bits),
    )


def _block_ops(p: CubeParams, added: int) -> Op:
    """`added` block sums taken into the accumulators: a pair and the constant are three rows of full adders."""
    return Op("csa", 3 * added, p.acc_bits) if p.style is Style.OPT1 else Op("add", added, p.acc_bits)


def beats(params: CubeParams, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Beats:
    """Input beats of a whole GEMM: `i_act` {act[n][n], last} (rows i, columns k of a block of A, `last` at the end of
    a tile) and `i_weight` {weight[n][n]} (rows k, columns j), transferred together. Folds: M outside, then N, then K.
    """
    a, w = _blocks(A.astype(np.int64), params.n), _blocks(W.astype(np.int64), params.n)
    (rows, blocks), cols = a.shape[:2], w.shape[1]
    acts = np.broadcast_to(a[:, None], (rows, cols, blocks, params.n, params.n))
    weights = np.broadcast_to(w.swapaxes(0, 1), (rows, cols, blocks, params.n, params.n))
    last = np.tile((np.arange(blocks) == blocks - 1).astype(np.int64), rows * cols)
    return {
        "i_act": {"act": acts.reshape(-1, params.n, params.n), "last": last},
        "i_weight": {"weight": weights.reshape(-1, params.n, params.n)},
    }


def _blocks(x: Ints, n: int) -> Ints:
    """[rows, cols] -> [row blocks, column blocks, n, n], with zeros where the matrix ends."""
    rows, cols = (gemm.folds(size, n) for size in x.shape)
    return gemm.pad_to(x, (rows * n, cols * n)).reshape(rows, n, cols, n).swapaxes(1, 2)


def result(params: CubeParams, operands: tuple[NDArray[Any], ...], out_beats: Mapping[str, Ints]) -> Ints:
    """Y[M, N] from the beats of `o_psum` {psum[n][n]} of a whole GEMM."""
    shape, n = shape_of(params, *operands), params.n
    rows, cols = gemm.folds(shape["M"], n), gemm.folds(shape["N"], n)
    tiles = out_beats["psum"].reshape(rows, cols, n, n)
    return tiles.swapaxes(1, 2).reshape(rows * n, cols * n)[: shape["M"], : shape["N"]]


class CubeControl:
    """Control state: which stages of the pipeline hold the end of which tile. Everything stands still while a complete
    tile waits at the output."""

    def __init__(self, params: CubeParams, last: NDArray[np.bool_]) -> None:
        self.gap = params.gap
        self.last = last
        self.taken = 0
        self.ended = 0
        self.stages: list[int | None] = [None] * params.latency

    def ready(self, valid: Mapping[str, bool], accept: bool) -> dict[str, bool]:
        both = valid["i_act"] and valid["i_weight"] and (accept or self.stages[-1] is None)
        near = any(tile is not None for tile in self.stages[: self.gap - 1])
        ready = both and not (near and bool(self.last[self.taken]))
        return {"i_act": ready, "i_weight": ready}

    def shown(self) -> int | None:
        return self.stages[-1]

    def clock(self, taken: Mapping[str, int], accept: bool) -> None:
        if not (accept or self.stages[-1] is None):
            return
        ends = "i_act" in taken and bool(self.last[taken["i_act"]])
        self.stages = [self.ended if ends else None, *self.stages[:-1]]
        self.taken += "i_act" in taken
        self.ended += ends


def trace(params: CubeParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    acts, weights = stimulus.beats["i_act"], stimulus.beats["i_weight"]["weight"]
    ends = np.flatnonzero(acts["last"]) + 1
    tiles = [np.zeros((0, params.n, params.n), dtype=np.int64)]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        a = np.concatenate(list(acts["act"][start:end]), axis=1)
        tiles.append(golden(params, a, np.concatenate(list(weights[start:end])))[None])
    control = CubeControl(params, acts["last"].astype(bool))
    index, ready = step_streams(control, stimulus, "o_psum", len(ends))
    return assemble_trace(stimulus, index, ready, "o_psum", {"psum": np.concatenate(tiles)})


def sample(
    params: CubeParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Ints, ...]:
    """Random A and W, of a random small shape where none is given; sums at the accumulators' limit among them."""
    drawn = gemm.random_shape(rng, params.n, 3 * params.n, params.n)
    m, k, n = (given or size for given, size in zip((M, K, N), drawn, strict=True))
    extreme = gemm.sample_at_the_limit(params, rng, m, n) if M is None and rng.integers(4) == 0 else None
    return extreme or gemm.sample_operands(params, rng, m, k, n)
