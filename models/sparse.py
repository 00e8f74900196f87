"""GEMM arrays that work on A's non-zero digits only, so that their cycles depend on A: what they have in common.

Weights stay: each of `rows` lanes of N holds `tile_k` weights for all columns. Each of `cols` columns works on a row of
A at a time, and takes as many cycles for it as the row's digits need. A is encoded at the array's edge into radix-4
digits (EN-T, models/ent.py); a column goes through the bit-weights from the highest down, in each through the groups
of 4 consecutive k, and in a group through the digits that are not zero, one a cycle. A group of zeros costs one cycle.
With `lanes` above 1 the groups are dealt to that many sequencers in turn; each goes through its own, and they wait for
each other at the end of a bit-weight.

A PE adds the digit's multiple of its weight (+-B, +-2B) to a carry-save pair, which moves up by two places (Horner) in
the first step of each bit-weight but the highest. That step is one that adds a digit, too: the authors' RTL takes a
cycle of its own for it (`authors_cycles`). What leaves a word at the top while it moves is a multiple of 2^acc_bits,
and sums are kept modulo that, so the pair stays exact. Between rows a PE adds zeros, which changes the pair's words but
not their sum; so its registers need no enable, and a row costs its column one cycle more than its steps.

A sequencer chooses a step in one cycle and the PEs add it in the next. Rows of A go to the columns in turn. Results
leave in the same order, one a cycle, through one set of adders, which add the partial sum and resolve the pair. The
next weights are taken when all results of those present have entered the adders: this is the columns' `sync`. Row m
of a fold, of d steps, with `prev` the row before it in its column, passes these cycles when nothing stalls:

- taken: a(m) = max(a(m-1) + 1, l(prev) + 1)
- its first step chosen: c(m) = max(a(m) + 1, e(prev)); its last: l(m) = c(m) + d - 1
- its sum handed over: e(m) = max(e(m-1) + 1, l(m) + 2); it is shown at `o_psum` two cycles later

Source: Q. Wu et al., "Exploring the Performance Improvement of Tensor Processing Engines through Transformation in the
Bit-weight Dimension of MACs", HPCA 2025 (OPT3, OPT4C, OPT4E). There activations and weights stream past; here a tile of
weights stays, so that each PE chooses among `tile_k` of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.bits import Overflow, require_codes, signed_range
from models.encoder import digit_count
from models.ent import magnitude_digits
from models.unit import (
    Beats,
    InputError,
    Ints,
    Op,
    PipelineControl,
    Stimulus,
    Timing,
    Trace,
    assemble_trace,
    check_range,
    require,
    step_streams,
)

GROUP = 4
"""consecutive k among which a sequencer looks for digits that are not zero"""
LATENCY = 2
"""cycles from a sum's handing over to its output: compressing it with the partial sum, resolving the pair"""
BLOCK = 1 << 20
"""elements of A whose digits are counted together: they stay in the cache"""


@dataclass(frozen=True, kw_only=True)
class SparseArray:
    """Geometry of such an array, with the widths that follow from it."""

    rows: int
    cols: int
    tile_k: int
    act_bits: int
    weight_bits: int
    acc_bits: int
    lanes: int
    """sequencers that work on one row of A side by side"""
    copies: int
    """digit buffers and sets of sequencers in a column"""

    @property
    def fold(self) -> gemm.Fold:
        return gemm.Fold(M=1, K=self.tile_k, N=self.rows, takes_psum=True)

    @property
    def code_bits(self) -> int:
        """Width of an encoded activation."""
        return self.act_bits + 1

    @property
    def digits(self) -> int:
        """Bit-weights: radix-4 digits of an activation."""
        return digit_count(self.act_bits)

    @property
    def groups(self) -> int:
        """Groups of each lane."""
        return self.tile_k // (GROUP * self.lanes)

    @property
    def product_bits(self) -> int:
        """Width of a digit's multiple of a weight: 2B has one bit more than B. A negative one is the complement, whose
        missing one enters the empty lowest place of a carry word: one for each compressor, thus one for each lane."""
        return self.weight_bits + 1

    @property
    def tree_bits(self) -> int:
        """Width of the two words to which three lanes' multiples are compressed before they meet the sum.

        With their sign bits inverted the multiples are unsigned words below 2^product_bits, so that the carries, which
        have twice the weight, need one bit more.
        """
        return self.product_bits + 1

    @property
    def step_bits(self) -> int:
        """Width of what a sequencer hands to PEs: the weight one hot, in each lane double and negative, keep, shift."""
        return self.tile_k + 2 * self.lanes + 2

    @property
    def geometry(self) -> gemm.Stationary:
        """How a GEMM is cut into tiles; the discipline is this module's own."""
        return gemm.Stationary(tile_k=self.tile_k, tile_n=self.rows, load_beats=self.tile_k, latency=LATENCY)


def sparse_array(params: Any, *, lanes: int, copies: int) -> SparseArray:
    """The array of a params object that has its fields."""
    return SparseArray(
        rows=params.rows,
        cols=params.cols,
        tile_k=params.tile_k,
        act_bits=params.act_bits,
        weight_bits=params.weight_bits,
        acc_bits=params.acc_bits,
        lanes=lanes,
        copies=copies,
    )


def check_sparse(unit: str, params: Any, lanes: int) -> None:
    """Refuse a geometry or widths that cannot be built."""
    step = GROUP * lanes
    check_range(unit, params, rows=(1, 256), cols=(1, 256), tile_k=(1, 256))
    check_range(unit, params, act_bits=(2, 16), weight_bits=(2, 16), acc_bits=(2, 48))
    near = max(round(params.tile_k / step), 1) * step
    groups = f"whole groups of {GROUP}" + (f" for each of {lanes} lanes" if lanes > 1 else "")
    rule = f"{unit}: tile_k must be a multiple of {step}: {groups}"
    require(params.tile_k % step == 0, f"{rule}, not {params.tile_k}; nearest: tile_k={near}")


def value_free(params: Any) -> tuple[str, ...]:
    """Geometry: sums wrap, which no order and no cut of K changes."""
    return "rows", "cols", "tile_k"


def golden(params: Any, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Ints:
    """Y[M, N] int64 = psum + A @ W modulo 2^acc_bits, as two's complement.

    `psum` [M, N] (a bias) is where accumulation starts; zero by default.
    """
    start = gemm.checked_operands(params, A, W, psum)
    return gemm.accumulate(A, W, start, params.acc_bits, Overflow.WRAP)


def row_steps(array: SparseArray, A: NDArray[Any]) -> Ints:
    """Cycles that a column computes on each row of A in each K fold: int64 [M, K folds]; A holds integers of
    `act_bits`.

    The sum over the bit-weights of the slowest lane's sum over its groups of max(1, digits that are not zero). A fold
    is filled with zeros up to tile_k, whose groups cost a cycle each.
    """
    m, k = A.shape
    k_folds = gemm.folds(k, array.tile_k)
    steps = np.empty((m, k_folds), dtype=np.int64)
    rows = max(BLOCK // (k_folds * array.tile_k), 1)
    kernel, table = _compiled(_count_steps), _digit_table(array.act_bits)
    for start in range(0, m, rows):
        masks = np.zeros((min(rows, m - start), k_folds * array.tile_k), dtype=np.uint8)
        codes = A[start : start + rows].astype(np.int64, copy=False) & (len(table) - 1)
        np.take(table, codes, out=masks[:, :k], mode="clip")
        kernel(masks, array.digits, array.groups, array.lanes, steps[start : start + rows])
    return steps


@cache
def _digit_table(bits: int) -> NDArray[np.uint8]:
    """For each code of `bits` bits, which of its digits are not zero: bit i for 4^i."""
    codes = np.arange(1 << bits)
    nonzero = magnitude_digits(np.where(codes >> (bits - 1), codes - (1 << bits), codes), bits) != 0
    return np.packbits(nonzero, axis=-1, bitorder="little")[:, 0]


@cache
def _compiled(function: Any) -> Any:
    from models.gemm_kernels import compiled  # numba, for those who count cycles alone

    return compiled()(function)


def _count_steps(masks: NDArray[np.uint8], digits: int, groups: int, lanes: int, steps: Ints) -> None:
    """steps[m, fold] of the digits' masks [m, folds * groups * lanes * 4]."""
    for m in range(steps.shape[0]):
        for fold in range(steps.shape[1]):
            total = 0
            for digit in range(digits):
                slowest = 0
                for lane in range(lanes):
                    busy = 0
                    for group in range(groups):
                        k = GROUP * ((fold * groups + group) * lanes + lane)
                        found = 0
                        for i in range(GROUP):
                            found += masks[m, k + i] >> digit & 1
                        busy += max(found, 1)
                    slowest = max(slowest, busy)
                total += slowest
            steps[m, fold] = total


def _fold_ends(steps: Ints, cols: int, ends: Ints) -> None:
    """ends[fold]: when the last row's sum is handed over, in cycles from the first row's transfer; `steps` [fold, m].

    The recurrence that the module's docstring gives."""
    chosen, left = np.empty(cols, np.int64), np.empty(cols, np.int64)
    for fold in range(steps.shape[0]):
        chosen[:], left[:] = -1, -1
        taken = end = -1
        for m in range(steps.shape[1]):
            j = m % cols
            taken = max(taken, chosen[j]) + 1
            chosen[j] = max(taken + 1, left[j]) + steps[fold, m] - 1
            end = max(end + 1, chosen[j] + 2)
            left[j] = end
        ends[fold] = end


def timing(params: Any, M: int, K: int, N: int, steps: Ints | None = None) -> Timing:
    """Exact cycles of a GEMM whose rows of A take `steps` [M, K folds]; `shape_of` gives them all.

    Folds over N outside, over K inside; each loads tile_k beats of weights, and the next one begins when the last sum
    has been handed over. `peak_per_cycle` is what the array does where every group of 4 takes one cycle for each
    bit-weight, which is the least: rows * cols * lanes * 4 / bit-weights, rounded up. `sync_cycles` are those in which
    a column is done with its rows of a fold and another one is not.
    """
    M, K, N = _one_shape(M, K, N)
    array: SparseArray = params.array
    known = _check_steps(array, M, K, steps)
    ends = np.empty(known.shape[1], dtype=np.int64)
    _compiled(_fold_ends)(np.ascontiguousarray(known.T), array.cols, ends)
    n_folds = gemm.folds(N, array.rows)
    count = len(ends) * n_folds
    total = n_folds * int((ends + 1).sum()) + count * array.tile_k + LATENCY
    filled = gemm.pad_to(known, (gemm.folds(M, array.cols) * array.cols, known.shape[1]))
    shares = filled.reshape(-1, array.cols, known.shape[1]).sum(axis=0)
    return Timing(
        total_cycles=total,
        load_cycles=count * array.tile_k,
        stream_cycles=count * M,
        drain_cycles=total - count * (array.tile_k + M),
        work=M * K * N,
        peak_per_cycle=-(-array.rows * array.cols * array.lanes * GROUP // array.digits),
        column_cycles=n_folds * shares.sum(axis=1),
        sync_cycles=n_folds * int((shares.max(axis=0) - shares).sum()),
        words={
            "act": M * K * n_folds,
            "weight": K * N,
            "psum": M * N * (known.shape[1] - 1),
            "out": M * N * known.shape[1],
        },
    )


def _one_shape(*sizes: Any) -> tuple[int, int, int]:
    require(
        all(np.ndim(size) == 0 for size in sizes), "shape: one M, K and N at a time, since cycles depend on A's digits"
    )
    m, k, n = gemm.check_shape(**dict(zip("MKN", sizes, strict=True)))
    return m, k, n


def _check_steps(array: SparseArray, m: int, k: int, steps: Ints | None) -> Ints:
    if steps is None:
        raise InputError("steps: cycles depend on A's digits; take them, with M, K and N, from shape_of(params, A, W)")
    shape, least = (m, gemm.folds(k, array.tile_k)), array.digits * array.groups
    values = np.asarray(steps)
    fits = values.shape == shape and np.issubdtype(values.dtype, np.integer)
    require(fits, f"steps: integers [M, K folds] = {shape} are needed, not {values.dtype} {values.shape}")
    rule = f"steps: a row takes {least} to {GROUP * least} cycles a fold; take them from shape_of(params, A, W)"
    require(bool(np.all((values >= least) & (values <= GROUP * least))), rule)
    return values.astype(np.int64, copy=False)


def authors_cycles(params: Any, steps: Ints) -> Ints:
    """Cycles [M] of one column on each row of A in the authors' RTL: `steps` [M, K folds] of all folds, and one cycle
    for each bit-weight's shift; ours takes its `steps` and one cycle a fold."""
    require(params.array.lanes == 1, "authors_cycles: known of one sequencer a column, as in opt3 and opt4c")
    total: Ints = steps.sum(axis=1) + params.array.digits
    return total


def ops(params: Any, M: int, K: int, N: int, steps: Ints | None = None) -> tuple[Op, ...]:
    """Operations of a GEMM without stalls.

    Arithmetic counts the useful lanes of N, in every step of a column: where it has no digit a lane selects zero and
    compresses it all the same. A register is counted in every cycle in which this RTL clocks it: nothing is gated but
    weights and digit buffers, which are written when they take something.
    """
    M, K, N = _one_shape(M, K, N)
    array: SparseArray = params.array
    total = int(_check_steps(array, M, K, steps).sum())
    cycles = timing(params, M, K, N, steps).total_cycles
    k_folds, n_folds = gemm.folds(K, array.tile_k), gemm.folds(N, array.rows)
    rows, sums = M * k_folds * n_folds, M * N * k_folds
    loads = k_folds * n_folds * array.tile_k * array.tile_k * array.rows
    chosen = total * n_folds * array.copies
    return (
        Op("encode", M * K * n_folds, array.act_bits),
        Op("mux", chosen * array.lanes, GROUP * 3, array.groups * array.digits),
        Op("mux", total * N * array.lanes, array.weight_bits, array.groups * GROUP),
        Op("mux", total * N * array.lanes, array.product_bits, 2),
        Op("mux", total * N, 2 * array.acc_bits, 2),
        *_compressors(array, total * N),
        Op("mux", sums, 2 * array.acc_bits, array.cols),
        Op("csa", sums, array.acc_bits),
        Op("add", sums, array.acc_bits),
        Op("reg", loads, array.weight_bits),
        Op("reg", rows * array.copies * array.tile_k, array.code_bits),
        Op("reg", cycles * array.cols * array.copies, array.step_bits),
        Op("reg", cycles * array.cols * array.rows, 2 * array.acc_bits),
        Op("reg", cycles * array.rows, 3 * array.acc_bits - 1),  # the lowest carry of a compressed pair is zero
    )


def _compressors(array: SparseArray, steps: int) -> tuple[Op, ...]:
    if array.lanes == 1:
        return (Op("csa", steps, array.acc_bits),)
    return (Op("csa", steps, array.tree_bits), Op("csa", 3 * steps, array.acc_bits))


def _tile_golden(array: SparseArray, act: Ints, weight: Ints, psum: Ints) -> Ints:
    """psum + act times the held tile, modulo 2^acc_bits."""
    return gemm.accumulate(act, weight, psum, array.acc_bits, Overflow.WRAP)


def beats(params: Any, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> Beats:
    """Input beats of a whole GEMM: `i_weight` {weight[rows]}, the tile's last k first; `i_act` {act[tile_k], last}, a
    row of A's tile each; `i_psum` {psum[rows]}, one for each beat of `i_act`. Folds: N outside, K inside."""
    array: SparseArray = params.array
    a, w = A.astype(np.int64), W.astype(np.int64)
    given = gemm.chain_beats(array.geometry, a, w, psum, partial(_tile_golden, array))
    act = given["i_act"]
    return {
        "i_weight": given["i_weight"],
        "i_act": {"act": act["act"], "last": act["last"]},
        "i_psum": {"psum": act["psum"]},
    }


def result(params: Any, operands: tuple[NDArray[Any], ...], out_beats: Mapping[str, Ints]) -> Ints:
    """Y[M, N] from the beats of `o_psum` {psum[rows]} of a whole GEMM."""
    a, w = operands[:2]
    return gemm.stationary_result(params.array.geometry, (a.shape[0], a.shape[1], w.shape[1]), out_beats)


class Column:
    """Control state of one column. Digits do not enter it but through the number of steps that a row takes."""

    def __init__(self) -> None:
        self.steps = self.left = 0
        """of the row in the digit buffer: all, and those not chosen yet"""
        self.added: int | None = None
        """the step that is being added: how many of its row are left"""
        self.full = False
        """the pair holds a sum that has not been handed over"""

    @property
    def free(self) -> bool:
        """The digit buffer takes a row."""
        return self.left == 0

    @property
    def idle(self) -> bool:
        return self.free and self.added is None and not self.full

    def clock(self, handed_over: bool, taken: int | None) -> None:
        self.full = self.added == 0 or (self.full and not handed_over)
        # a row's first step would start the pair anew
        moves = self.left > 0 and not (self.left == self.steps and self.full)
        self.left -= moves
        self.added = self.left if moves else None
        if taken is not None:
            self.steps = self.left = taken


class SparseControl:
    """Control state of the array: weights loaded, the columns, whose turn it is at either end, the resolving adders."""

    def __init__(self, array: SparseArray, steps: Ints, last: NDArray[np.bool_]) -> None:
        self.array, self.steps, self.last = array, steps.tolist(), last
        self.loaded = 0
        self.columns = [Column() for _ in range(array.cols)]
        self.takes = self.hands = 0
        self.adders = PipelineControl(LATENCY, "i_psum")

    def ready(self, valid: Mapping[str, bool], accept: bool) -> dict[str, bool]:
        full = self.loaded == self.array.tile_k
        return {
            "i_weight": not full and all(column.idle for column in self.columns),
            "i_act": full and self.columns[self.takes].free,
            "i_psum": self.columns[self.hands].full and self.adders.advance(accept),
        }

    def shown(self) -> int | None:
        return self.adders.shown()

    def clock(self, taken: Mapping[str, int], accept: bool) -> None:
        row = taken.get("i_act")
        for j, column in enumerate(self.columns):
            steps = self.steps[row] if row is not None and j == self.takes else None
            column.clock("i_psum" in taken and j == self.hands, steps)
        self.adders.clock(taken, accept)
        self.takes = (self.takes + (row is not None)) % self.array.cols
        self.hands = (self.hands + ("i_psum" in taken)) % self.array.cols
        if row is not None and self.last[row]:
            self.loaded = 0
        if "i_weight" in taken:
            self.loaded += 1
            self.takes = self.hands = 0


def trace(params: Any, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`'s arithmetic, tile by
    tile, and the cycles from the number of steps of each row."""
    array: SparseArray = params.array
    acts, weights = stimulus.beats["i_act"], stimulus.beats["i_weight"]["weight"]
    psums = stimulus.beats["i_psum"]["psum"]
    last = acts["last"].astype(bool)
    outputs = [np.zeros((0, array.rows), dtype=np.int64)]
    start = 0
    for fold, end in enumerate((np.flatnonzero(last) + 1).tolist()):
        tile = weights[fold * array.tile_k : (fold + 1) * array.tile_k][::-1]
        outputs.append(_tile_golden(array, acts["act"][start:end], tile, psums[start:end]))
        start = end
    control = SparseControl(array, row_steps(array, acts["act"])[:, 0], last)
    index, ready = step_streams(control, stimulus, "o_psum", len(last))
    return assemble_trace(stimulus, index, ready, "o_psum", {"psum": np.concatenate(outputs)})


def shape_of(params: Any, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> dict[str, Any]:
    """The GEMM's M, K, N, and `steps`, int64 [M, K folds]: the cycles that a column computes on each row of A."""
    shape = gemm.shape_of(params, A, W)
    require_codes("A", A, params.act_bits)
    return {**shape, "steps": row_steps(params.array, A)}


def sample(
    params: Any, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Ints, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given."""
    array: SparseArray = params.array
    drawn = gemm.random_shape(rng, array.cols, array.tile_k, array.rows)
    m, k, n = (given or size for given, size in zip((M, K, N), drawn, strict=True))
    a, w = gemm.sample_operands(params, rng, m, k, n)
    if M is None and rng.integers(2):
        return a, w, gemm.random_codes(rng, (m, n), *signed_range(array.acc_bits))
    return a, w
