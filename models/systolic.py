"""Systolic array of multiply-accumulate PEs, weight- (WS), output- (OS) or input-stationary (IS).

WS as in the TPU: a tile W[rows, cols] stays in the PEs, activations move right and are skewed by row, partial sums move
down. IS: the same with the operands' roles exchanged: a tile of A^T stays and weights move. OS: a tile of Y stays,
activations move right, weights move down, and results leave downwards, bottom row first. With `buffers` 2 a PE of WS
or IS holds two tiles, and the next one is loaded under the present one, as Gemmini does (H. Genc et al., "Gemmini",
DAC 2021). The skewing registers belong to the unit; its streams carry whole vectors.

Every sum has `acc_bits` bits and wraps or saturates there, in every style: a carry-save pair is two such words, whose
sum modulo 2^acc_bits is the partial sum. Where the sum saturates, the exact sum before it has one bit more than the
wider of the accumulator and the product, which holds least + least product and most + most product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.bits import Overflow, check_codes, require_codes, signed_range
from models.style import Style, check_style, edge_ops, mac_ops
from models.unit import (
    Beats,
    InputError,
    Ints,
    Op,
    Stimulus,
    Timing,
    Trace,
    assemble_trace,
    check_choice,
    check_range,
    require,
    step_streams,
)

LONGEST_K = 600
"""of random operands: beyond it a case takes longer than what it shows is worth"""


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
        """The discipline of WS and IS."""
        held, moving = ("act", "weight") if self.dataflow is Dataflow.IS else ("weight", "act")
        return gemm.Stationary(
            tile_k=self.rows,
            tile_n=self.cols,
            load_beats=self.rows,
            latency=self.rows + self.cols - 1 + self.style.stages,
            buffers=self.buffers,
            held=held,
            moving=moving,
        )

    @property
    def moving_bits(self) -> int:
        """Width of the operand that moves right, and that an encoder at the edge would take."""
        return self.weight_bits if self.dataflow is Dataflow.IS else self.act_bits

    @property
    def held_bits(self) -> int:
        """Width of the other operand."""
        return self.act_bits if self.dataflow is Dataflow.IS else self.weight_bits

    @property
    def flush_cycles(self) -> int:
        """OS: from the last operands' transfer until the last PE has added them, less one."""
        return self.rows + self.cols - 2 + (self.style is Style.ENT)


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


def golden(params: SystolicParams, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Ints:
    """Y[M, N] int64 = psum + A @ W, products added in order of k, each sum wrapped or saturated to `acc_bits`.

    The order is the same in all dataflows and styles and does not depend on the folds: the zeros of an edge tile
    change no sum.
    `psum` [M, N] (a bias, WS and IS only) is where accumulation starts; zero by default.
    """
    gemm.check_operands(A, W.shape)
    require_codes("A", A, params.act_bits)
    require_codes("W", W, params.weight_bits)
    start = None
    if psum is not None:
        require(params.dataflow is not Dataflow.OS, "systolic: psum needs dataflow WS or IS; OS sums start at zero")
        require(psum.shape == (A.shape[0], W.shape[1]), f"psum is {psum.shape}, not {(A.shape[0], W.shape[1])}")
        start = check_codes("psum", psum, params.acc_bits)
    return gemm.accumulate(A, W, start, params.acc_bits, params.overflow)


def timing(params: SystolicParams, M: Any, K: Any, N: Any, convention: str = "rtl") -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape.

    `convention="rtl"`: the cycles of our RTL. `"scalesim"`: SCALE-Sim's published counts for an array of the same size
    (folds serialised, partial folds padded). They differ so:

    - WS: a fold is M + 2 rows + cols - 2 cycles in both. SCALE-Sim subtracts one cycle from the whole; ours counts the
      output register of the last fold. RTL = SCALE-Sim + 2. IS: the same with M and N exchanged.
    - OS: SCALE-Sim's fold is K + rows + cols - 2: its results leave while operands still enter. In ours the tile's sums
      leave through the columns after the last operand has reached the last PE: rows cycles more a fold, and no cycle
      subtracted. RTL = SCALE-Sim + rows * folds + 1.

    SCALE-Sim knows no style and one buffer. `opt1` and `ent` take one cycle more a fold in WS and IS; in OS `ent` takes
    one more a fold and `opt1` one more in all. With two buffers a fold takes max(M, rows) cycles, or half of what two
    folds need to load, stream and leave where that is more; folds over K of fewer than rows + cols vectors (`opt1`,
    `ent`: one more) are filled up to that, since each waits for the sums of the one before.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    require(convention in ("rtl", "scalesim"), f"convention is rtl or scalesim, not {convention!r}")
    if convention == "scalesim":
        return _scalesim(params, M, K, N)
    if params.dataflow is not Dataflow.OS:
        vectors, columns = (N, M) if params.dataflow is Dataflow.IS else (M, N)
        return gemm.stationary_timing(params.geometry, vectors, K, columns)
    count = gemm.folds(M, params.rows) * gemm.folds(N, params.cols)
    drain = params.flush_cycles + params.rows
    resolving = int(params.style is Style.OPT1)
    return Timing(
        total_cycles=count * (K + drain) + resolving,
        load_cycles=0 * count,
        stream_cycles=count * K,
        drain_cycles=count * drain + resolving,
        work=M * K * N,
        peak_per_cycle=params.rows * params.cols,
    )


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
    this RTL clocks it: nothing is gated but the held tiles of WS and IS, which are written while they are loaded.
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
        Op("reg", cycles * (_skew(r) + r * c), params.style.travel_bits(params.moving_bits) + tag),
        *((Op("reg", cycles * r, params.style.travel_bits(params.moving_bits)),) if encoded else ()),
        *((Op("reg", cycles, tag),) if encoded and tag else ()),
        Op("reg", cycles * (2 * _skew(c) + (encoded + resolved) * c), params.acc_bits),
        Op("reg", cycles * r * c, params.style.psum_bits(params.acc_bits)),
    )


def _output_stationary_registers(params: SystolicParams, cycles: int) -> tuple[Op, ...]:
    r, c = params.rows, params.cols
    encoded = params.style is Style.ENT
    registers = (
        Op("reg", cycles * (encoded * r + _skew(r) + r * c), params.style.travel_bits(params.act_bits)),
        Op("reg", cycles * (encoded * c + _skew(c) + r * c), params.weight_bits),
        Op("reg", cycles * r * c, params.style.psum_bits(params.acc_bits)),
    )
    return (*registers, Op("reg", cycles * c, params.acc_bits)) if params.style is Style.OPT1 else registers


def _skew(lanes: int) -> int:
    """Registers that delay lane i of a vector by i cycles."""
    return lanes * (lanes - 1) // 2


def _tile_golden(params: SystolicParams, tile: Mapping[str, Ints], vectors: Ints, psum: Ints) -> Ints:
    """psum + vectors times the tile of the load beats. Rows enter at the top and move down: the first is the last."""
    held = tile[params.geometry.held][::-1]
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
        return _output_stationary_beats(params, a, w)
    geometry = params.geometry
    turned = params.dataflow is Dataflow.IS
    vectors, held = (w.T, a.T) if turned else (a, w)
    return gemm.stationary_beats(
        geometry,
        vectors,
        held.shape[1],
        psum.T if turned and psum is not None else psum,
        lambda rows, cols: {geometry.held: gemm.pad_to(held[rows, cols], (params.rows, params.cols))[::-1]},
        lambda tile, moving, sums: _tile_golden(params, tile, moving, sums),
    )


def _output_stationary_beats(params: SystolicParams, a: Ints, w: Ints) -> Beats:
    k = a.shape[1]
    last = (np.arange(k) == k - 1).astype(np.int64)
    acts, weights = [], []
    for m0 in range(0, a.shape[0], params.rows):
        act = a[m0 : m0 + params.rows].T
        for n0 in range(0, w.shape[1], params.cols):
            acts.append({"act": gemm.pad_to(act, (k, params.rows)), "last": last})
            weights.append({"weight": gemm.pad_to(w[:, n0 : n0 + params.cols], (k, params.cols))})
    return {"i_act": gemm.join_beats(acts), "i_weight": gemm.join_beats(weights)}


def result(params: SystolicParams, operands: tuple[NDArray[Any], ...], out_beats: Mapping[str, Ints]) -> Ints:
    """Y[M, N] from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    m, k, n = (shape := shape_of(params, *operands))["M"], shape["K"], shape["N"]
    if params.dataflow is Dataflow.WS:
        return gemm.stationary_result(params.geometry, (m, k, n), out_beats)
    if params.dataflow is Dataflow.IS:
        return gemm.stationary_result(params.geometry, (n, k, m), out_beats).T
    m_folds, n_folds = gemm.folds(m, params.rows), gemm.folds(n, params.cols)
    tiles = out_beats["psum"].reshape(m_folds, n_folds, params.rows, params.cols)[:, :, ::-1]
    full = tiles.transpose(0, 2, 1, 3).reshape(m_folds * params.rows, n_folds * params.cols)
    return full[:m, :n]


class OutputStationaryControl:
    """OS control: beats enter in pairs until `last`; `flush_cycles` later the tile leaves in `rows` beats, each through
    the resolving adders' register where there are some."""

    def __init__(self, params: SystolicParams, last: NDArray[np.bool_]) -> None:
        self.params = params
        self.last = last
        self.flush = 0
        self.drain = 0
        self.sent = 0
        self.resolved: int | None = None

    def ready(self, valid: Mapping[str, bool], accept: bool) -> dict[str, bool]:
        free = self.flush == 0 and self.drain == 0
        return {"i_act": free and valid["i_weight"], "i_weight": free and valid["i_act"]}

    def drained(self) -> int | None:
        """Index of the row of sums that stands in the last row of PEs and is due."""
        return self.sent if self.drain and not self.flush else None

    def shown(self) -> int | None:
        return self.resolved if self.params.style is Style.OPT1 else self.drained()

    def clock(self, taken: Mapping[str, int], accept: bool) -> None:
        due = self.drained()
        moves = accept or (self.params.style is Style.OPT1 and self.resolved is None)
        if moves:
            self.resolved = due
        if self.flush:
            self.flush -= 1
        elif due is not None and moves:
            self.drain -= 1
            self.sent += 1
        if "i_act" in taken and self.last[taken["i_act"]]:
            self.flush = self.params.flush_cycles
            self.drain = self.params.rows


def trace(params: SystolicParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    if params.dataflow is not Dataflow.OS:
        return gemm.stationary_trace(
            params.geometry, stimulus, lambda tile, moving, psum: _tile_golden(params, tile, moving, psum)
        )
    acts, weights = stimulus.beats["i_act"], stimulus.beats["i_weight"]["weight"]
    ends = np.flatnonzero(acts["last"]) + 1
    tiles = [np.zeros((0, params.cols), dtype=np.int64)]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        tiles.append(golden(params, acts["act"][start:end].T, weights[start:end])[::-1])
    control = OutputStationaryControl(params, acts["last"].astype(bool))
    index, ready = step_streams(control, stimulus, "o_psum", len(ends) * params.rows)
    return assemble_trace(stimulus, index, ready, "o_psum", {"psum": np.concatenate(tiles)})


def shape_of(params: SystolicParams, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> dict[str, int]:
    """The GEMM's M, K, N."""
    gemm.check_operands(A, W.shape)
    return {"M": A.shape[0], "K": A.shape[1], "N": W.shape[1]}


def sample(
    params: SystolicParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Ints, ...]:
    """Random A and W (and for WS and IS half the time a starting psum), of a random small shape where none is given."""
    drawn = gemm.random_shape(rng, 5, params.rows, params.cols)
    m, k, n = (given or size for given, size in zip((M, K, N), drawn, strict=True))
    room = params.acc_bits - params.act_bits - params.weight_bits + 1
    reachable = params.dataflow is Dataflow.OS and 1 << max(room, 0) < LONGEST_K
    if M is None and reachable and rng.integers(3) == 0:
        return _sample_at_the_limit(params, rng, m, (1 << max(room, 0)) + int(rng.integers(1, 4)), n)
    a = gemm.random_codes(rng, (m, k), *signed_range(params.act_bits))
    w = gemm.random_codes(rng, (k, n), *signed_range(params.weight_bits))
    if M is None and params.dataflow is not Dataflow.OS and rng.integers(2):
        return a, w, gemm.random_codes(rng, (m, n), *signed_range(params.acc_bits))
    return a, w


def _sample_at_the_limit(params: SystolicParams, rng: np.random.Generator, m: int, k: int, n: int) -> tuple[Ints, ...]:
    """The largest products, `k` of which pass what an accumulator holds: OS has no psum to start near that limit."""
    act, weight = signed_range(params.act_bits)[0], signed_range(params.weight_bits)
    return np.full((m, k), act), np.full((k, n), weight[rng.integers(2)])


def weight_format(params: SystolicParams) -> tuple[str, dict[str, Any]]:
    """Symmetric integers, one scale a column."""
    require(params.weight_bits <= 8, f"systolic: formats hold weights of 2 to 8 bits, not {params.weight_bits}")
    return f"int{params.weight_bits}", {}


def operand(params: SystolicParams, quantized: Any) -> Ints:
    """W from quantized weights [K, N]: their integer codes."""
    if quantized.integers is None:
        raise InputError("systolic: weights need integer codes with one scale a column")
    return check_codes("W", quantized.integers, params.weight_bits)


def from_integers(params: SystolicParams, W: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """A plain integer matrix is W as it is; the output has no fraction bits."""
    require_codes("W", W, params.weight_bits)
    return W, 0
