"""OPT2: weight-stationary array that reduces products of equal bit-weight first.

Activations are recoded once, by one vector encoder (EN-T) at the left edge; their digits move from column to column. A
tile holds `tile_k` weights of a column. For each of the digits' bit-weights it selects +-w or +-2w of every lane where
the digit is not zero and adds these up; the sums of the bit-weights are shifted by 0, 2, 4, ... places once and added.
`rows` / `tile_k` tiles stand above each other in a column and pass the partial sum down.
Source: Q. Wu et al., "Exploring the Performance Improvement of Tensor Processing Engines through Transformation in the
Bit-weight Dimension of MACs", HPCA 2025 (OPT2).

Pipeline: digits; sums of the bit-weights, four words of each becoming one a cycle; tile sum; partial sum. Widths:

- `sum_bits`, of one bit-weight of some lanes: as many digits of -2 times the most negative weight make that number
  times 2^weight_bits, which where it is a power of two takes a bit more than its negative: 14 bits for 16 lanes of
  INT8, where A = -2 and W = -128 in all lanes make 4096. 13 bits hold all but such corners. (The top digit of an odd
  `act_bits` is no more than 1, so that one bit of its sums is never used.)
- `tile_bits`, of a tile: exact, see models/style.exact_bits.
- the partial sum has `acc_bits`; it wraps or saturates once a tile, where the exact tile sum is added to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.adder_tree import merged
from models.bits import Overflow, signed_bits, signed_range
from models.encoder import digit_count
from models.gemm import from_integers, operand, shape_of, weight_format
from models.style import Style, exact_bits
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
    require,
)

__all__ = ["from_integers", "operand", "shape_of", "weight_format"]


@dataclass(frozen=True, kw_only=True)
class Opt2Params:
    """Geometry and widths. Operands and accumulators are two's-complement integers."""

    rows: int = 16
    """lanes of K in all"""
    cols: int = 16
    tile_k: int = 16
    """lanes of K that one tile reduces"""
    act_bits: int = 8
    weight_bits: int = 8
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP

    def __post_init__(self) -> None:
        check_range("opt2", self, rows=(1, 256), cols=(1, 256), tile_k=(1, 65536))  # the rule below says more
        check_range("opt2", self, act_bits=(2, 16), weight_bits=(2, 16))
        check_range("opt2", self, acc_bits=(2, 48))
        check_choice("opt2", self, overflow=Overflow)
        fitting = [size for size in range(1, self.rows + 1) if self.rows % size == 0]
        closest = min(fitting, key=lambda size: abs(size - self.tile_k))
        require(
            self.rows % self.tile_k == 0,
            f"opt2: tile_k must divide rows={self.rows} into whole tiles, not {self.tile_k}; nearest: tile_k={closest}",
        )

    @property
    def tiles(self) -> int:
        """Tiles above each other in a column."""
        return self.rows // self.tile_k

    @property
    def digits(self) -> int:
        """Digits of an activation, and bit-weights of a tile."""
        return digit_count(self.act_bits)

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """Registers of a bit-weight's sums, stage by stage: how many lanes each holds the sum of."""
        stages = [merged((1,) * self.tile_k)]
        while len(stages[-1]) > 1:
            stages.append(merged(stages[-1]))
        return tuple(stages)

    def sum_bits(self, count: int) -> int:
        """Width of the sum of one bit-weight of `count` lanes."""
        return signed_bits(-count << self.weight_bits, count << self.weight_bits)

    @property
    def tile_bits(self) -> int:
        """Width of a tile's sum."""
        return exact_bits(Style.MAC, self.act_bits, self.weight_bits, self.tile_k)

    @property
    def geometry(self) -> gemm.Stationary:
        """Digits, each stage of a bit-weight's sums and the tile sums take a cycle, then each tile one, then the
        columns' skew."""
        latency = self.wait + self.tiles + self.cols - 1
        return gemm.Stationary(tile_k=self.rows, tile_n=self.cols, load_beats=self.rows, latency=latency)

    @property
    def wait(self) -> int:
        """Cycles that a partial sum waits for the first tile's sum in the first column."""
        return 1 + len(self.stages) + 1


PRESETS = {
    "default": Opt2Params(),
    "small": Opt2Params(rows=4, cols=3, tile_k=4, acc_bits=24),
    "two-tiles": Opt2Params(rows=6, cols=2, tile_k=3, acc_bits=24),
    "smallest": Opt2Params(rows=1, cols=1, tile_k=1, act_bits=2, weight_bits=2, acc_bits=8),
    "odd": Opt2Params(rows=4, cols=2, tile_k=2, act_bits=7, weight_bits=5, acc_bits=20),
    "wide": Opt2Params(rows=2, cols=2, tile_k=2, act_bits=16, weight_bits=16, acc_bits=40),
    "narrow-wrap": Opt2Params(rows=4, cols=2, tile_k=4, acc_bits=12),
    "narrow-saturate": Opt2Params(rows=4, cols=2, tile_k=2, acc_bits=13, overflow=Overflow.SATURATE),
}

COMPARED = (
    Compared(
        family="integer",
        architecture="adder tree",
        style="opt2",
        params=Opt2Params(),
        published=Published(source="Q. Wu et al., HPCA 2025, abstract", area_efficiency=1.56, energy_efficiency=1.49),
        differs="The abstract gives one ratio for the multiplier-adder tree and does not say which transformations "
        "are in it. Ours is OPT2 alone. Digits move from column to column, so that 32-bit partial sums wait for them "
        "on the way in and for each other on the way out; the registers that this takes, which the baseline's "
        "broadcast does not need, are the difference between the ratio of the PE alone and that of the array.",
    ),
)


def value_free(params: Opt2Params) -> tuple[str, ...]:
    """Rows and columns; the tile too where sums wrap, since saturation looks at each tile."""
    return ("rows", "cols", "tile_k") if params.overflow is Overflow.WRAP else ("rows", "cols")


def golden(params: Opt2Params, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Ints:
    """Y[M, N] int64 = psum + A @ W; each tile's exact sum, in order of k, is added and fitted to `acc_bits`.

    `psum` [M, N] (a bias) is where accumulation starts; zero by default.
    """
    psum = gemm.checked_operands(params, A, W, psum)
    return gemm.accumulate_blocks(A, W, psum, params.tile_k, params.acc_bits, params.overflow)


def timing(params: Opt2Params, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape."""
    return gemm.stationary_timing(params.geometry, M, K, N)


def ops(params: Opt2Params, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM without stalls.

    Arithmetic counts what is useful: a padded lane selects zero. A register is counted in every cycle in which this RTL
    clocks it: nothing is gated but the weights, which are written while they are loaded.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    p = params
    k_folds, n_folds = gemm.folds(K, p.rows), gemm.folds(N, p.cols)
    selected = M * K * N * p.digits
    sums = M * N * gemm.folds(K, p.tile_k)
    cycles = timing(p, M, K, N).total_cycles
    skew = p.tile_k * p.tiles * (p.tiles - 1) // 2
    psum_registers = p.cols * (p.wait + p.tiles) + p.cols * (p.cols - 1)
    words = sum(p.sum_bits(count) for counts in p.stages for count in counts)
    return (
        Op("encode", M * K * n_folds, p.act_bits),
        Op("mux", selected, p.weight_bits + 1, 4),
        Op("csa", selected, p.sum_bits(p.tile_k)),
        Op("add", sums * p.digits * sum(map(len, p.stages)), p.sum_bits(p.tile_k)),
        *((Op("add", sums * (p.digits - 1), p.tile_bits),) if p.digits > 1 else ()),
        Op("add", sums, p.acc_bits),
        Op("reg", cycles * (skew + p.rows * p.cols), p.act_bits + 1),
        Op("reg", cycles * p.cols * p.tiles * p.digits, words),
        Op("reg", cycles * p.cols * p.tiles, p.tile_bits),
        Op("reg", cycles * psum_registers, p.acc_bits),
        Op("reg", k_folds * n_folds * p.rows * p.rows * p.cols, p.weight_bits),
    )


def beats(params: Opt2Params, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Beats:
    """Input beats of a whole GEMM: `i_weight` {weight[cols]}, the tile's last row first; `i_act` {act[rows],
    psum[cols], last}. Folds: N outside, K inside."""
    tile_golden = partial(golden, params)
    return gemm.chain_beats(params.geometry, A.astype(np.int64), W.astype(np.int64), psum, tile_golden)


def result(params: Opt2Params, operands: tuple[NDArray[Any], ...], out_beats: Mapping[str, Ints]) -> Ints:
    """Y[M, N] from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    shape = shape_of(params, *operands)
    return gemm.stationary_result(params.geometry, (shape["M"], shape["K"], shape["N"]), out_beats)


def trace(params: Opt2Params, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    return gemm.chain_trace(params.geometry, stimulus, partial(golden, params))


def sample(
    params: Opt2Params, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Ints, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given.

    Now and then every lane of a row of A is -2 and every weight the least one: the greatest sum of one bit-weight.
    """
    drawn = gemm.random_shape(rng, 5, params.rows, params.cols)
    m, k, n = (given or size for given, size in zip((M, K, N), drawn, strict=True))
    a = gemm.random_codes(rng, (m, k), *signed_range(params.act_bits))
    w = gemm.random_codes(rng, (k, n), *signed_range(params.weight_bits))
    if rng.integers(4) == 0:
        a[rng.integers(m)], w[:, rng.integers(n)] = -2, signed_range(params.weight_bits)[0]
    if M is None and rng.integers(2):
        return a, w, gemm.random_codes(rng, (m, n), *signed_range(params.acc_bits))
    return a, w
