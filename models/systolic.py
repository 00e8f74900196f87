"""Systolic array of multiply-accumulate PEs, weight-stationary (WS) or output-stationary (OS).

WS as in the TPU: a tile W[rows, cols] stays in the PEs, activations move right and are skewed by row, partial sums move
down. OS: a tile of Y stays, activations move right, weights move down, and results leave downwards, bottom row first.
The skewing registers belong to the unit; its streams carry whole vectors.
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

    def __post_init__(self) -> None:
        check_range("systolic", self, rows=(1, 256), cols=(1, 256), act_bits=(2, 16), weight_bits=(2, 16))
        check_range("systolic", self, acc_bits=(2, 48))
        check_choice("systolic", self, dataflow=Dataflow, overflow=Overflow)


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
}


def golden(params: SystolicParams, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Ints:
    """Y[M, N] int64 = psum + A @ W, products added in order of k, each sum wrapped or saturated to `acc_bits`.

    The order is the same in both dataflows and does not depend on the folds: the zeros of an edge tile change no sum.
    `psum` [M, N] (a bias, WS only) is where accumulation starts; zero by default.
    """
    gemm.check_operands(A, W.shape)
    require_codes("A", A, params.act_bits)
    require_codes("W", W, params.weight_bits)
    start = None
    if psum is not None:
        require(params.dataflow is Dataflow.WS, "systolic: psum needs dataflow WS; OS accumulators start at zero")
        require(psum.shape == (A.shape[0], W.shape[1]), f"psum is {psum.shape}, not {(A.shape[0], W.shape[1])}")
        start = check_codes("psum", psum, params.acc_bits)
    return gemm.accumulate(A, W, start, params.acc_bits, params.overflow)


def timing(params: SystolicParams, M: Any, K: Any, N: Any, convention: str = "rtl") -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape.

    `convention="rtl"`: the cycles of our RTL. `"scalesim"`: SCALE-Sim's published counts for an array of the same size
    (folds serialised, partial folds padded). They differ so:

    - WS: a fold is M + 2 rows + cols - 2 cycles in both. SCALE-Sim subtracts one cycle from the whole; ours counts the
      output register of the last fold. RTL = SCALE-Sim + 2.
    - OS: SCALE-Sim's fold is K + rows + cols - 2: its results leave while operands still enter. In ours the tile's sums
      leave through the columns after the last operand has reached the last PE: rows cycles more a fold, and no cycle
      subtracted. RTL = SCALE-Sim + rows * folds + 1.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    require(convention in ("rtl", "scalesim"), f"convention is rtl or scalesim, not {convention!r}")
    if convention == "scalesim":
        return _scalesim(params, M, K, N)
    if params.dataflow is Dataflow.WS:
        return gemm.stationary_timing(_geometry(params), M, K, N)
    count = gemm.folds(M, params.rows) * gemm.folds(N, params.cols)
    drain = 2 * params.rows + params.cols - 2
    return Timing(
        total_cycles=count * (K + drain),
        load_cycles=0 * count,
        stream_cycles=count * K,
        drain_cycles=count * drain,
        work=M * K * N,
        peak_per_cycle=params.rows * params.cols,
    )


def _scalesim(params: SystolicParams, M: Any, K: Any, N: Any) -> Timing:
    r, c = params.rows, params.cols
    if params.dataflow is Dataflow.WS:
        count, load, stream = gemm.folds(K, r) * gemm.folds(N, c), r, M
    else:
        count, load, stream = gemm.folds(M, r) * gemm.folds(N, c), 0, K
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

    Multiplications and additions are the useful ones: a padded lane multiplies by zero. A register is counted in every
    cycle in which this RTL clocks it: nothing is gated but the weights of WS, which are written while they are loaded.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    r, c = params.rows, params.cols
    work = M * K * N
    cycles = timing(params, M, K, N).total_cycles
    arithmetic = (Op("mul", work, params.act_bits, params.weight_bits), Op("add", work, params.acc_bits))
    if params.dataflow is Dataflow.WS:
        count = gemm.folds(K, r) * gemm.folds(N, c)
        return (
            *arithmetic,
            Op("reg", count * r * r * c, params.weight_bits),
            Op("reg", cycles * (_skew(r) + r * c), params.act_bits),
            Op("reg", cycles * (r * c + 2 * _skew(c)), params.acc_bits),
        )
    return (
        *arithmetic,
        Op("reg", cycles * (_skew(r) + r * c), params.act_bits),
        Op("reg", cycles * (_skew(c) + r * c), params.weight_bits),
        Op("reg", cycles * r * c, params.acc_bits),
    )


def _skew(lanes: int) -> int:
    """Registers that delay lane i of a vector by i cycles."""
    return lanes * (lanes - 1) // 2


def _geometry(params: SystolicParams) -> gemm.WeightStationary:
    return gemm.WeightStationary(
        tile_k=params.rows, tile_n=params.cols, load_beats=params.rows, latency=params.rows + params.cols - 1
    )


def _ws_tile_golden(params: SystolicParams, weights: Mapping[str, Ints], act: Ints, psum: Ints) -> Ints:
    # rows enter at the top and move down: the first beat ends in the last row
    return golden(params, act, weights["weight"][::-1], psum)


def beats(params: SystolicParams, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Beats:
    """Input beats of a whole GEMM.

    WS: `i_weight` {weight[cols]}, the tile's last row first; `i_act` {act[rows], psum[cols], last}. Folds: N outside, K
    inside. OS: `i_act` {act[rows], last} (column k of A's tile, `last` at k = K - 1) and `i_weight` {weight[cols]}
    (row k of W's tile), transferred together. Folds: M outside, N inside.
    """
    a, w = A.astype(np.int64), W.astype(np.int64)
    if params.dataflow is Dataflow.WS:
        return gemm.stationary_beats(
            _geometry(params),
            a,
            w.shape[1],
            psum,
            lambda rows, cols: {"weight": gemm.pad_to(w[rows, cols], (params.rows, params.cols))[::-1]},
            lambda tile, act, sums: _ws_tile_golden(params, tile, act, sums),
        )
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
        return gemm.stationary_result(_geometry(params), (m, k, n), out_beats)
    m_folds, n_folds = gemm.folds(m, params.rows), gemm.folds(n, params.cols)
    tiles = out_beats["psum"].reshape(m_folds, n_folds, params.rows, params.cols)[:, :, ::-1]
    full = tiles.transpose(0, 2, 1, 3).reshape(m_folds * params.rows, n_folds * params.cols)
    return full[:m, :n]


class OutputStationaryControl:
    """OS control: beats enter in pairs until `last`; rows + cols - 2 cycles later the tile leaves in `rows` beats."""

    def __init__(self, params: SystolicParams, last: NDArray[np.bool_]) -> None:
        self.params = params
        self.last = last
        self.flush = 0
        self.drain = 0
        self.sent = 0

    def ready(self, valid: Mapping[str, bool], accept: bool) -> dict[str, bool]:
        free = self.flush == 0 and self.drain == 0
        return {"i_act": free and valid["i_weight"], "i_weight": free and valid["i_act"]}

    def shown(self) -> int | None:
        return self.sent if self.drain and not self.flush else None

    def clock(self, taken: Mapping[str, int], accept: bool) -> None:
        if self.flush:
            self.flush -= 1
        elif self.drain and accept:
            self.drain -= 1
            self.sent += 1
        if "i_act" in taken and self.last[taken["i_act"]]:
            self.flush = self.params.rows + self.params.cols - 2
            self.drain = self.params.rows


def trace(params: SystolicParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    if params.dataflow is Dataflow.WS:
        return gemm.stationary_trace(
            _geometry(params), stimulus, lambda tile, act, psum: _ws_tile_golden(params, tile, act, psum)
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
    """Random A and W (and for WS half the time a starting psum), of a random small shape where none is given."""
    drawn = gemm.random_shape(rng, 5, params.rows, params.cols)
    m, k, n = (given or size for given, size in zip((M, K, N), drawn, strict=True))
    room = params.acc_bits - params.act_bits - params.weight_bits + 1
    reachable = params.dataflow is Dataflow.OS and 1 << max(room, 0) < LONGEST_K
    if M is None and reachable and rng.integers(3) == 0:
        return _sample_at_the_limit(params, rng, m, (1 << max(room, 0)) + int(rng.integers(1, 4)), n)
    a = gemm.random_codes(rng, (m, k), *signed_range(params.act_bits))
    w = gemm.random_codes(rng, (k, n), *signed_range(params.weight_bits))
    if M is None and params.dataflow is Dataflow.WS and rng.integers(2):
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
