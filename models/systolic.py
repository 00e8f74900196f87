"""Systolic array of multiply-accumulate PEs, weight- (WS), output- (OS) or input-stationary (IS).

WS as in the TPU: a tile W[rows, cols] stays in the PEs, activations move right and are skewed by row, partial sums move
down. IS: the same with the operands' roles exchanged: a tile of A^T stays and weights move. OS: a tile of Y stays,
activations move right, weights move down, and results leave downwards, bottom row first. With `buffers` 2 a PE of WS
or IS holds two tiles, and the next one is loaded under the present one, as Gemmini does (H. Genc et al., "Gemmini",
DAC 2021). The skewing registers belong to the unit; its streams carry whole vectors.

Every sum has `acc_bits` bits and wraps or saturates there, in every style: a carry-save pair is two such words, whose
sum modulo 2^acc_bits is the partial sum. Where the sum saturates, the exact sum before it is as wide as the greatest
accumulator value plus the product of the two least operands, 2^(act_bits + weight_bits - 2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import compared, gemm
from models.bits import Overflow, signed_range
from models.floats import ActFormat
from models.gemm import from_integers, operand, shape_of, weight_format
from models.style import Style, check_style, edge_ops, mac_ops
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


class Dataflow(StrEnum):
    """Which operand stays in the PEs."""

    WS = "WS"
    OS = "OS"
    IS = "IS"


@dataclass(frozen=True, kw_only=True)
class SystolicParams:
    """Geometry and widths. Operands and accumulators are two's-complement integers."""

    rows: int = 16
    cols: int = 16
    dataflow: Dataflow = Dataflow.WS
    act_bits: int = 8
    weight_bits: int = 8
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP
    style: Style = Style.MAC
    buffers: int = 1
    """tiles of the stationary operand that a PE holds: 1 or 2"""

    def __post_init__(self) -> None:
        check_range("systolic", self, rows=(1, 256), cols=(1, 256), act_bits=(2, 16), weight_bits=(2, 16))
        check_range("systolic", self, acc_bits=(2, 48), buffers=(1, 2))
        check_choice("systolic", self, dataflow=Dataflow, overflow=Overflow, style=Style)
        check_style("systolic", self, self.cols, self.geometry.moving, "cols of at least 2")
        require(
            self.buffers == 1 or self.dataflow is not Dataflow.OS,
            "systolic: buffers=2 needs dataflow WS or IS; OS loads no tile, so take buffers=1",
        )

    @property
    def geometry(self) -> gemm.Stationary:
        """The discipline of WS and IS; `opt1` has the resolving adders' stage behind it, `ent` the encoders' before."""
        held, moving = ("act", "weight") if self.dataflow is Dataflow.IS else ("weight", "act")
        return gemm.Stationary(
            tile_k=self.rows,
            tile_n=self.cols,
            load_beats=self.rows,
            latency=self.rows + self.cols - 1 + (self.style is not Style.MAC),
            buffers=self.buffers,
            held=held,
            moving=moving,
        )

    @property
    def fold(self) -> gemm.Fold:
        return self.output_geometry.fold if self.dataflow is Dataflow.OS else self.geometry.fold

    @property
    def moving_bits(self) -> int:
        """Width of the operand that moves right, and that an encoder at the edge would take."""
        return self.weight_bits if self.dataflow is Dataflow.IS else self.act_bits

    @property
    def held_bits(self) -> int:
        """Width of the other operand."""
        return self.act_bits if self.dataflow is Dataflow.IS else self.weight_bits

    @property
    def output_geometry(self) -> gemm.OutputStationary:
        """The discipline of OS."""
        return gemm.OutputStationary(
            tile_m=self.rows,
            tile_n=self.cols,
            flush_cycles=self.rows + self.cols - 1,
            resolving=int(self.style is Style.OPT1),
        )


PRESETS = {
    "default": SystolicParams(),
    "tiny-ws": SystolicParams(rows=1, cols=1),
    "tiny-os": SystolicParams(rows=1, cols=1, dataflow=Dataflow.OS),
    "small-ws": SystolicParams(rows=3, cols=4, acc_bits=24),
    "small-os": SystolicParams(rows=4, cols=3, acc_bits=24, dataflow=Dataflow.OS),
    "wide-ws": SystolicParams(rows=2, cols=2, act_bits=16, weight_bits=16, acc_bits=40),
    "wide-os": SystolicParams(rows=2, cols=2, act_bits=16, weight_bits=16, acc_bits=32, dataflow=Dataflow.OS),
    "narrow-wrap-ws": SystolicParams(rows=4, cols=2, acc_bits=12, weight_bits=4, act_bits=6),
    "narrow-wrap-os": SystolicParams(rows=2, cols=3, acc_bits=16, weight_bits=6, act_bits=6, dataflow=Dataflow.OS),
    "narrow-saturate-ws": SystolicParams(rows=4, cols=2, acc_bits=12, overflow=Overflow.SATURATE),
    "narrow-saturate-os": SystolicParams(rows=2, cols=5, acc_bits=12, dataflow=Dataflow.OS, overflow=Overflow.SATURATE),
    "small-is": SystolicParams(rows=3, cols=4, acc_bits=24, weight_bits=5, dataflow=Dataflow.IS),
    "buffered-ws": SystolicParams(rows=3, cols=2, acc_bits=24, buffers=2),
    "buffered-is": SystolicParams(rows=2, cols=4, acc_bits=24, act_bits=4, buffers=2, dataflow=Dataflow.IS),
    "opt1-ws": SystolicParams(rows=3, cols=4, style=Style.OPT1),
    "opt1-os": SystolicParams(rows=4, cols=3, style=Style.OPT1, dataflow=Dataflow.OS),
    "opt1-is": SystolicParams(rows=2, cols=3, acc_bits=20, weight_bits=7, style=Style.OPT1, dataflow=Dataflow.IS),
    "opt1-narrow-os": SystolicParams(rows=2, cols=2, acc_bits=9, act_bits=3, style=Style.OPT1, dataflow=Dataflow.OS),
    "ent-ws": SystolicParams(rows=3, cols=4, style=Style.ENT),
    "ent-os": SystolicParams(rows=4, cols=3, style=Style.ENT, dataflow=Dataflow.OS),
    "ent-saturate-os": SystolicParams(
        rows=2, cols=3, acc_bits=12, act_bits=5, style=Style.ENT, dataflow=Dataflow.OS, overflow=Overflow.SATURATE
    ),
    "ent-buffered-is": SystolicParams(
        rows=3, cols=2, acc_bits=18, weight_bits=9, style=Style.ENT, dataflow=Dataflow.IS, buffers=2
    ),
}

_TPE = Published(source="Q. Wu et al., HPCA 2025, abstract", area_efficiency=1.27, energy_efficiency=1.04)
_ENT = Published(source="EN-T, average over engines at 1 TOPS", area_efficiency=1.122, energy_efficiency=1.175)
_WHY_OPT1 = (
    "The abstract gives one ratio for the systolic array, whatever its dataflow. Ours keeps 32-bit sums as two words "
    "in every PE, on a library without wires, where the longer carry of the baseline costs less than in 28 nm silicon; "
    "energy counts operations at published energies and sees neither glitches nor the smaller gates of a shorter path."
)
_WHY_ENT = (
    "The paper averages over its engines at each scale. Our baseline is the better of several multipliers, some of "
    "which have no encoder to remove, and PE and encoder are mapped for a library without wires."
)


def _compared(dataflow: Dataflow) -> tuple[Compared, ...]:
    architecture = f"systolic {dataflow.value}"
    rows = ((Style.MAC, None, ""), (Style.OPT1, _TPE, _WHY_OPT1), (Style.ENT, _ENT, _WHY_ENT))
    return tuple(
        Compared(
            family="integer",
            architecture=architecture,
            style=style.value,
            params=SystolicParams(dataflow=dataflow, style=style),
            published=published,
            differs=differs,
        )
        for style, published, differs in rows
    )


COMPARED = (
    *_compared(Dataflow.WS),
    Compared(
        family="integer",
        architecture="systolic WS",
        style="mac, two buffers",
        params=SystolicParams(buffers=2),
        differs="No paper's ratio: what a second weight register costs, and the loading that it hides.",
    ),
    *_compared(Dataflow.OS),
    *_compared(Dataflow.IS),
    *compared.baseline(ActFormat.INT, SystolicParams()),
    *compared.low_bit(
        "narrow MAC",
        {bits: SystolicParams(weight_bits=bits) for bits in (2, 3, 4)},
        differs="No paper's ratio: the same array with multipliers as narrow as the weights: the fairest rival.",
    ),
)


def value_free(params: SystolicParams) -> tuple[str, ...]:
    """Geometry, dataflow and style: products are added one by one in order of k, whatever the folds."""
    return "rows", "cols", "dataflow", "style", "buffers"


def golden(params: SystolicParams, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Ints:
    """Y[M, N] int64 = psum + A @ W, products added in order of k, each sum wrapped or saturated to `acc_bits`.

    The order is the same in all dataflows and styles and does not depend on the folds: the zeros of an edge tile
    change no sum. `psum` [M, N] (a bias, WS and IS only) is where accumulation starts; zero by default.
    """
    allowed = psum is None or params.dataflow is not Dataflow.OS
    require(allowed, "systolic: psum needs dataflow WS or IS; OS sums start at zero")
    psum = gemm.checked_operands(params, A, W, psum)
    return gemm.accumulate(A, W, psum, params.acc_bits, params.overflow)


def timing(params: SystolicParams, M: Any, K: Any, N: Any, convention: str = "rtl") -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape.

    `convention="rtl"`: the cycles of our RTL. `"scalesim"`: SCALE-Sim's published counts for an array of the same size
    (folds serialised, partial folds padded). They differ so:

    - WS: a fold is M + 2 rows + cols - 2 cycles in both. SCALE-Sim subtracts one cycle from the whole; ours counts the
      output register of the last fold. RTL = SCALE-Sim + 2. IS: the same with M and N exchanged.
    - OS: SCALE-Sim's fold is K + rows + cols - 2: its results leave while operands still enter. In ours the tile's sums
      leave through the columns after the last operand has reached the last PE: rows cycles more a fold. One more passes
      in the registers that take the operands at the edge, where idle ones become zero, so that no handshake stands in
      the PEs' path; and no cycle is subtracted. RTL = SCALE-Sim + (rows + 1) * folds + 1.

    SCALE-Sim knows no style and one buffer. `opt1` and `ent` take one cycle more a fold in WS and IS; in OS `opt1`
    takes one more in all. With two buffers a fold takes max(M, rows) cycles, or half of what one fold needs to load,
    stream and leave where that is more; folds over K of fewer than rows + cols vectors (`opt1`, `ent`: one more) are
    filled up to that, since each waits for the sums of the one before.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    require(convention in ("rtl", "scalesim"), f"convention is rtl or scalesim, not {convention!r}")
    if convention == "scalesim":
        require(params.buffers == 1, "systolic: SCALE-Sim counts one buffer; take buffers=1, or convention=rtl")
        return dataclasses.replace(_scalesim(params, M, K, N), words=timing(params, M, K, N).words)
    if params.dataflow is not Dataflow.OS:
        vectors, columns = (N, M) if params.dataflow is Dataflow.IS else (M, N)
        return gemm.stationary_timing(params.geometry, vectors, K, columns)
    return gemm.output_stationary_timing(params.output_geometry, M, K, N)


def _scalesim(params: SystolicParams, M: Any, K: Any, N: Any) -> Timing:
    r, c = params.rows, params.cols
    outer, inner, load, stream = {
        Dataflow.WS: (K, N, r, M),
        Dataflow.OS: (M, N, 0, K),
        Dataflow.IS: (K, M, r, N),
    }[params.dataflow]
    count = gemm.folds(outer, r) * gemm.folds(inner, c)
    return Timing(
        total_cycles=count * (load + stream + r + c - 2) - 1,
        load_cycles=count * load,
        stream_cycles=count * stream,
        drain_cycles=count * (r + c - 2) - 1,
        work=M * K * N,
        peak_per_cycle=r * c,
    )


def ops(params: SystolicParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM without stalls.

    Arithmetic counts what is useful: a padded lane multiplies by zero. A register is counted in every cycle in which
    this RTL clocks it: nothing is gated but the held tiles of WS and IS, which are written while they are loaded. Words
    of a pair count whole, with the lowest bits of the carry word that are always zero.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    cycles = timing(params, M, K, N).total_cycles
    arithmetic = mac_ops(params.style, M * K * N, params.moving_bits, params.held_bits, params.acc_bits)
    if params.dataflow is Dataflow.OS:
        entered, left = M * K * gemm.folds(N, params.cols), M * N
        registers = _output_stationary_registers(params, cycles)
    else:
        vectors, columns = (N, M) if params.dataflow is Dataflow.IS else (M, N)
        k_folds, n_folds = gemm.folds(K, params.rows), gemm.folds(columns, params.cols)
        entered, left = vectors * K * n_folds, vectors * columns * k_folds
        loads = k_folds * n_folds * params.rows * params.rows * params.cols
        registers = (Op("reg", loads, params.held_bits), *_stationary_registers(params, cycles))
    return (*arithmetic, *edge_ops(params.style, entered, params.moving_bits, left, params.acc_bits), *registers)


def _stationary_registers(params: SystolicParams, cycles: int) -> tuple[Op, ...]:
    r, c = params.rows, params.cols
    encoded, resolved = params.style is Style.ENT, params.style is Style.OPT1
    tag = params.buffers * (params.buffers > 1)  # which tile a vector meets, one hot, travels with it
    return (
        Op("reg", cycles * (gemm.skew(r) + r * c), params.style.travel_bits(params.moving_bits) + tag),
        *((Op("reg", cycles * r, params.style.travel_bits(params.moving_bits)),) if encoded else ()),
        *((Op("reg", cycles, tag),) if encoded and tag else ()),
        Op("reg", cycles * (2 * gemm.skew(c) + (encoded + resolved) * c), params.acc_bits),
        Op("reg", cycles * r * c, params.style.psum_bits(params.acc_bits)),
    )


def _output_stationary_registers(params: SystolicParams, cycles: int) -> tuple[Op, ...]:
    r, c = params.rows, params.cols
    registers = (
        Op("reg", cycles * (r + gemm.skew(r) + r * c), params.style.travel_bits(params.act_bits)),
        Op("reg", cycles * (c + gemm.skew(c) + r * c), params.weight_bits),
        Op("reg", cycles * r * c, params.style.psum_bits(params.acc_bits)),
    )
    return (*registers, Op("reg", cycles * c, params.acc_bits)) if params.style is Style.OPT1 else registers


def _tile_golden(params: SystolicParams, vectors: Ints, held: Ints, psum: Ints) -> Ints:
    """psum + vectors times the held tile, whose operand and whose partial sums are transposed in IS."""
    if params.dataflow is Dataflow.IS:
        return golden(params, held.T, vectors.T, psum.T).T
    return golden(params, vectors, held, psum)


def beats(params: SystolicParams, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Beats:
    """Input beats of a whole GEMM.

    WS: `i_weight` {weight[cols]}, the tile's last row first; `i_act` {act[rows], psum[cols], last}. Folds: N outside, K
    inside. IS: `i_act` {act[cols]}, a tile of A^T, its last row first; `i_weight` {weight[rows], psum[cols], last}, a
    column of W each. Folds: M outside, K inside. OS: `i_act` {act[rows], last} (column k of A's tile, `last` at
    k = K - 1) and `i_weight` {weight[cols]} (row k of W's tile), transferred together. Folds: M outside, N inside.
    """
    a, w = A.astype(np.int64), W.astype(np.int64)
    if params.dataflow is Dataflow.OS:
        return gemm.output_stationary_beats(params.output_geometry, a, w)
    turned = params.dataflow is Dataflow.IS
    vectors, held = (w.T, a.T) if turned else (a, w)
    start = psum.T if turned and psum is not None else psum
    return gemm.chain_beats(params.geometry, vectors, held, start, partial(_tile_golden, params))


def result(params: SystolicParams, operands: tuple[NDArray[Any], ...], out_beats: Mapping[str, Ints]) -> Ints:
    """Y[M, N] from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    m, k, n = (shape := shape_of(params, *operands))["M"], shape["K"], shape["N"]
    if params.dataflow is Dataflow.WS:
        return gemm.stationary_result(params.geometry, (m, k, n), out_beats)
    if params.dataflow is Dataflow.IS:
        return gemm.stationary_result(params.geometry, (n, k, m), out_beats).T
    return gemm.output_stationary_result(params.output_geometry, (m, k, n), out_beats)


def trace(params: SystolicParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    if params.dataflow is not Dataflow.OS:
        return gemm.chain_trace(params.geometry, stimulus, partial(_tile_golden, params))
    return gemm.output_stationary_trace(params.output_geometry, stimulus, lambda a, w: golden(params, a, w))


def activity(params: SystolicParams, M: int, K: int, N: int) -> NDArray[np.bool_]:
    """Which PE adds a useful product in which cycle of a GEMM: [total_cycles, rows, cols], cycles as `timing` counts
    them. Zeros that fill up an edge tile, and vectors of zeros between folds, are not useful: M * K * N entries hold.

    A vector reaches PE (r, c) r + c cycles after its transfer; one later in OS, behind the registers at the edge, and
    in WS and IS with `ent`, behind the encoders.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    late = int(params.dataflow is Dataflow.OS or params.style is Style.ENT)
    tiles = _tiles(params, M, K, N)
    vectors = {Dataflow.WS: M, Dataflow.IS: N, Dataflow.OS: K}[params.dataflow]
    entered = _transfers(params, M, K, N).reshape(len(tiles), -1)[:, :vectors] + late
    busy = np.zeros((timing(params, M, K, N).total_cycles, params.rows, params.cols), dtype=np.bool_)
    for cycles, (height, width) in zip(entered, tiles, strict=True):
        for r, c in np.ndindex(height, width):
            busy[cycles + r + c, r, c] = True
    return busy


def _tiles(params: SystolicParams, M: int, K: int, N: int) -> list[tuple[int, int]]:
    """Rows and columns of PEs that each fold uses, in order."""
    if params.dataflow is Dataflow.OS:
        return [(h, w) for h in _cut(M, params.rows) for w in _cut(N, params.cols)]
    columns = M if params.dataflow is Dataflow.IS else N
    return [(h, w) for w in _cut(columns, params.cols) for h in _cut(K, params.rows)]


def _cut(size: int, tile: int) -> list[int]:
    return [min(tile, size - start) for start in range(0, size, tile)]


def _transfers(params: SystolicParams, M: int, K: int, N: int) -> Ints:
    """Cycles of a GEMM in which the moving operand is transferred."""
    inputs = beats(params, np.zeros((M, K), dtype=np.int64), np.zeros((K, N), dtype=np.int64))
    always = np.ones(1, dtype=np.bool_)
    ports = trace(params, Stimulus(beats=inputs, offer=dict.fromkeys(inputs, always), accept={"o_psum": always}))
    moving = "i_act" if params.dataflow is Dataflow.OS else params.geometry.stream
    return np.flatnonzero(ports[f"{moving}.valid"] & ports[f"{moving}.ready"])


def sample(
    params: SystolicParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Ints, ...]:
    """Random A and W (and for WS and IS half the time a starting psum), of a random small shape where none is given."""
    drawn = gemm.random_shape(rng, 5, params.rows, params.cols)
    m, k, n = (given or size for given, size in zip((M, K, N), drawn, strict=True))
    if M is None and params.dataflow is Dataflow.OS and rng.integers(3) == 0:
        extreme = gemm.sample_at_the_limit(params, rng, m, n)
        if extreme is not None:
            return extreme
    a = gemm.random_codes(rng, (m, k), *signed_range(params.act_bits))
    w = gemm.random_codes(rng, (k, n), *signed_range(params.weight_bits))
    if M is None and params.dataflow is not Dataflow.OS and rng.integers(2):
        return a, w, gemm.random_codes(rng, (m, n), *signed_range(params.acc_bits))
    return a, w
