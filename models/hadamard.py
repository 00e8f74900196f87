"""Fast Walsh-Hadamard transform of m 2^k points, m one of 1, 12, 20, 28: a parallel pipeline, or folded.

y = (H_m kron H_2^k) diag(s) x with the Sylvester matrix H_2^k of entries +1 and -1 (natural order), Paley's Hadamard
matrix H_m and signs s of +1 and -1. Exact: integers grow by one bit a stage of butterflies and by ceil(log2 m) bits in
the sums of H_m. The factor 1/sqrt(points) of the orthonormal transform belongs into the next scale.

Parallel (`lanes` none): a block enters a cycle; one register stage after each of the k stages of butterflies and after
each level of the trees that add up H_m's rows, whose sums of the same inputs are shared by all rows.

Folded: `lanes` butterflies are used k times over a register file of `points` values. 2 lanes values enter and leave a
cycle. The first stage works on values as they enter; the results of one block leave as the next one enters. Where m is
above 1 each output value is a sum of m values with the signs of one row of H_m, in a pipelined tree behind each of the
2 lanes banks of the register file; then only the first 2^k values of the next block enter as the last ones leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.bits import check_codes, signed_range
from models.unit import (
    Beats,
    Control,
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

ORDERS = {1: 0, 3: 12, 5: 20, 7: 28}
"""odd part of a size -> order m of the matrix beside Sylvester's (0: none)"""
PALEY_I = {12: 11, 20: 19}
"""order q + 1 -> prime q = 3 mod 4"""
PALEY_II = {28: 13}
"""order 2 (q + 1) -> prime q = 1 mod 4"""
MOST_POINTS = 4096


def paley(order: int) -> Ints:
    """Hadamard matrix H [order, order] of 12, 20 or 28 by R. E. A. C. Paley, "On orthogonal matrices", 1933.

    The quadratic character chi of GF(q) makes Q[i, j] = chi(i - j). 12 and 20 (construction I, q = 11 and 19): row 0 is
    all +1, and so is column 0; the rest is -(I + Q), not symmetric, so that the inverse is H^T / order. 28
    (construction II, q = 13): C = [[0, 1], [1, Q]] with each 0 as [[1, -1], [-1, -1]] and each +-1 as +-[[1, 1],
    [1, -1]]; rows whose first entry is -1 are negated, so that column 0 is all +1 here too.
    """
    matrix = _paley_i(PALEY_I[order]) if order in PALEY_I else _paley_ii(PALEY_II[order])
    return matrix * matrix[:, :1]


def _paley_i(q: int) -> Ints:
    matrix = np.ones((q + 1, q + 1), dtype=np.int64)
    matrix[1:, 1:] = -(np.eye(q, dtype=np.int64) + _characters(q))
    return matrix


def _paley_ii(q: int) -> Ints:
    conference = np.ones((q + 1, q + 1), dtype=np.int64)
    conference[0, 0], conference[1:, 1:] = 0, _characters(q)
    zeros = np.eye(q + 1, dtype=np.int64)
    matrix: Ints = np.kron(conference, [[1, 1], [1, -1]]) + np.kron(zeros, [[1, -1], [-1, -1]])
    return matrix


def _characters(q: int) -> Ints:
    """chi(i - j) of i, j in GF(q), q an odd prime: 0 of 0, +1 of squares, -1 of all others."""
    chi = np.full(q, -1, dtype=np.int64)
    chi[np.arange(q) ** 2 % q] = 1
    chi[0] = 0
    differences: Ints = (np.arange(q)[:, None] - np.arange(q)) % q
    return chi[differences]


def hadamard_matrix(points: int) -> Ints:
    """The matrix [points, points] of +1 and -1 that the unit multiplies by: H H^T = points I. y = H x for a column x,
    X @ H.T for rows. InputError where the size is not m 2^k."""
    order, inner = factors(points)
    matrix = np.ones((1, 1), dtype=np.int64) if order == 1 else paley(order)
    for _ in range(inner.bit_length() - 1):
        matrix = np.kron(matrix, np.array([[1, 1], [1, -1]]))
    return matrix


def factors(points: int) -> tuple[int, int]:
    """Order m, one of 1, 12, 20 and 28, and 2^k of a size m 2^k; InputError with the nearest valid sizes otherwise."""
    if not _is_size(points):
        near = [next(n for n in range(points, stop, step) if _is_size(n)) for stop, step in ((0, -1), (2 * points, 1))]
        rule = "hadamard: points must be 2^k or m 2^k with m one of 12, 20, 28"
        require(False, f"{rule}, not {points}; nearest: {near[0]} or {near[1]}")
    order = ORDERS[points // (points & -points)] or 1
    return order, points // order


def _is_size(points: int) -> bool:
    odd = points // (points & -points)
    return odd in ORDERS and (odd == 1 or points % ORDERS[odd] == 0)


@dataclass(frozen=True, kw_only=True)
class HadamardParams:
    """Size, input width, the signs of the randomised transform, and how many butterflies are used over and over.

    Bit i of `signs` negates input i. Bit 0 must be clear: negating all inputs negates all outputs, which buys nothing;
    with it clear no sum reaches +points * 2^(in_bits-1), the one value that in_bits + log2(points) bits cannot hold.

    `lanes`: none for the parallel pipeline; a power of two up to half of 2^k for the folded form.
    """

    points: int = 16
    in_bits: int = 8
    signs: int = 0
    lanes: int | None = None

    def __post_init__(self) -> None:
        check_range("hadamard", self, points=(2, MOST_POINTS), in_bits=(2, 24))
        _, inner = factors(self.points)
        require(
            isinstance(self.signs, int) and 0 <= self.signs < 1 << self.points and self.signs & 1 == 0,
            f"hadamard: signs must be a mask of {self.points} bits with bit 0 clear, not {self.signs!r}",
        )
        if self.lanes is not None:
            require(inner > 1, f"hadamard: lanes={self.lanes!r} fold butterflies, and {self.points} points have none")
            check_range("hadamard", self, lanes=(1, inner // 2))
            rule = f"hadamard: lanes must be a power of two up to {inner // 2}"
            near = 1 << (self.lanes.bit_length() - 1)
            require(self.lanes == near, f"{rule}, not {self.lanes}; nearest below: {near}")

    @property
    def order(self) -> int:
        """m: 1, 12, 20 or 28."""
        return factors(self.points)[0]

    @property
    def inner(self) -> int:
        """2^k."""
        return factors(self.points)[1]

    @property
    def stages(self) -> int:
        """Stages of butterflies, k."""
        return self.inner.bit_length() - 1

    @property
    def levels(self) -> int:
        """Levels of additions in a sum of `order` values; each has a register."""
        return (self.order - 1).bit_length()

    @property
    def core_bits(self) -> int:
        """Width of what the butterflies give."""
        return self.in_bits + self.stages

    @property
    def out_bits(self) -> int:
        return self.core_bits + self.levels

    @property
    def beat_points(self) -> int:
        """Values that enter and leave together."""
        return self.points if self.lanes is None else 2 * self.lanes

    @property
    def rows(self) -> int:
        """Words of each bank of the register file, one bank for each value of a beat; and beats of a block."""
        return self.points // self.beat_points

    @property
    def period(self) -> int:
        """Cycles from one block to the next."""
        return self.rows if self.lanes is None else self.rows * (self.stages + 1) - self.rows // self.order

    @property
    def row_signs(self) -> tuple[tuple[bool, ...], ...]:
        """Which values row a of H_m subtracts, `signs` at work: those of a whole group of butterflies, as far as they
        are one, are left to here, as the sign of the group's first input."""
        if self.order == 1:
            return ((False,),)
        matrix = paley(self.order) < 0
        groups = [bool(self.signs >> self.inner * b & 1) for b in range(self.order)]
        return tuple(tuple(bool(minus) != group for minus, group in zip(row, groups, strict=True)) for row in matrix)


PRESETS = {
    "default": HadamardParams(),
    "smallest": HadamardParams(points=2, in_bits=2),
    "randomised": HadamardParams(points=8, in_bits=6, signs=0b10110110),
    "wide": HadamardParams(points=64, in_bits=12, signs=0x6A09_E667_F3BC_C908),
    "paley": HadamardParams(points=24, in_bits=5, signs=0x9E_377A),
    "folded": HadamardParams(points=16, in_bits=6, signs=0xB504, lanes=2),
    "smallest-folded": HadamardParams(points=2, in_bits=3, lanes=1),
    "wide-folded": HadamardParams(points=64, in_bits=12, signs=0x6A09_E667_F3BC_C908, lanes=4),
    "folded-paley": HadamardParams(points=48, in_bits=4, signs=0x9E37_79B9_7F4A, lanes=1),
}


def golden(params: HadamardParams, X: NDArray[Any]) -> Ints:
    """Y[M, K] int64: every block of `points` columns of X transformed. K must be a multiple of `points`."""
    require(isinstance(X, np.ndarray), f"X must be a numpy array [M, K], not {type(X).__name__}")
    require(X.ndim == 2, f"X must be a matrix [M, K], not an array of shape {X.shape}")
    _check_blocks(params, *X.shape)
    return _transformed(params, check_codes("X", X, params.in_bits)).reshape(X.shape)


def _transformed(params: HadamardParams, x: Ints) -> Ints:
    """Blocks [.., points] of codes, in any shape, transformed."""
    lanes = x.reshape(-1, params.points) * _signs(params)
    for stage in range(params.stages):
        pairs = lanes.reshape(-1, 2, 1 << stage)
        lanes = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
    if params.order > 1:
        lanes = paley(params.order) @ lanes.reshape(-1, params.order, params.inner)
    return lanes


@cache
def _signs(params: HadamardParams) -> Ints:
    return np.array([1 - 2 * (params.signs >> i & 1) for i in range(params.points)], dtype=np.int64)


def _check_blocks(params: HadamardParams, M: Any, K: Any) -> tuple[Any, ...]:
    M, K = gemm.check_shape(M=M, K=K)
    rule = f"shape: K must be a multiple of {params.points} points (zero padding is not orthogonal)"
    require(bool(np.all(np.asarray(K) % params.points == 0)), f"{rule}, not {K!r}")
    return M, K


def timing(params: HadamardParams, M: Any, K: Any) -> Timing:
    """Exact cycles; M and K may be int64 arrays.

    Parallel: a block a cycle, and a cycle for each register stage. Folded: a block every points / (2 lanes) * k cycles,
    the first of them entering as the one before leaves; with m above 1, (m - 1) / m * points / (2 lanes) cycles more,
    in which results leave and nothing enters.
    """
    M, K = _check_blocks(params, M, K)
    blocks = M * (K // params.points)
    if params.lanes is None:
        total = blocks + params.stages + params.levels
    else:
        total = (blocks - 1) * params.period + (params.stages + 1) * params.rows + params.levels
    return Timing(
        total_cycles=total,
        load_cycles=0 * blocks,
        stream_cycles=blocks * params.rows,
        drain_cycles=total - blocks * params.rows,
        work=M * K,
        peak_per_cycle=params.beat_points,
    )


def ops(params: HadamardParams, M: int, K: int) -> tuple[Op, ...]:
    """Additions, and registers as this RTL clocks them; signs cost nothing (wiring, or a subtraction for an addition).

    Parallel: `points` additions a stage and block, one bit wider each stage; registers in every cycle. Folded: as many
    additions, all of the widest stage's width; the register file is written by them and read before all but the first,
    and read for the output; H_m takes m - 1 additions a value, with registers in every cycle.
    """
    M, K = _check_blocks(params, M, K)
    blocks, cycles = M * (K // params.points), timing(params, M, K).total_cycles
    return _parallel_ops(params, blocks, cycles) if params.lanes is None else _folded_ops(params, blocks, cycles)


def _parallel_ops(p: HadamardParams, blocks: int, cycles: int) -> tuple[Op, ...]:
    widths = range(p.in_bits + 1, p.core_bits + 1)
    butterflies = [op for w in widths for op in (Op("add", blocks * p.points, w), Op("reg", cycles * p.points, w))]
    trees = []
    for level in range(p.levels):
        for columns, nodes, adds in shared_sums(p, level):
            width = p.core_bits + (columns - 1).bit_length()
            trees += [Op("add", blocks * p.inner * nodes, width)] * adds + [Op("reg", cycles * p.inner * nodes, width)]
    return (*butterflies, *trees)


def shared_sums(params: HadamardParams, level: int) -> list[tuple[int, int, bool]]:
    """Of each run of 2^(level + 1) values: how many it has (the last may be short), how many different sums of them
    H_m's rows need, up to a sign, and whether they are sums of two of the level before (else one of them)."""
    matrix, size = np.array(params.row_signs), 2 << level
    runs = [matrix[:, start : start + size] for start in range(0, params.order, size)]
    return [(run.shape[1], len(np.unique(run ^ run[:, :1], axis=0)), run.shape[1] > size // 2) for run in runs]


def _folded_ops(p: HadamardParams, blocks: int, cycles: int) -> tuple[Op, ...]:
    values, most = blocks * p.points, p.core_bits
    found = [Op("add", values * p.stages, most), Op("reg", values * p.stages, most)]
    if p.rows > 1:
        found.append(Op("mux", values * p.stages, most, p.rows))  # k - 1 times for butterflies, once for the output
    for level in range(p.levels):
        for columns in (min(p.order - start, 2 << level) for start in range(0, p.order, 2 << level)):
            width = most + (columns - 1).bit_length()
            found += [Op("add", values, width)] * (columns > 1 << level)
            found.append(Op("reg", cycles * p.beat_points, width))
    return tuple(found)


def beats(params: HadamardParams, X: NDArray[Any]) -> Beats:
    """Input beats: `i_x` {x[points]}, the blocks of X row by row; folded, x[2 lanes] of them in order."""
    return {"i_x": {"x": X.astype(np.int64).reshape(-1, params.beat_points)}}


def result(params: HadamardParams, operands: tuple[NDArray[Any], ...], out_beats: Mapping[str, Ints]) -> Ints:
    """Y[M, K] from the beats of `o_y` {y[points]}; folded, y[2 lanes]."""
    return out_beats["y"].reshape(operands[0].shape)


def trace(params: HadamardParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats` and `result`."""
    x = stimulus.beats["i_x"]["x"]
    index, ready = step_streams(_control(params), stimulus, "o_y", len(x))
    return assemble_trace(stimulus, index, ready, "o_y", {"y": _transformed(params, x).reshape(x.shape)})


def _control(params: HadamardParams) -> Control:
    if params.lanes is None:
        return PipelineControl(params.stages + params.levels, "i_x")
    return FoldedControl(params)


class FoldedControl:
    """Takes the beats of a block, works k - 1 passes of as many cycles, and shows its results beat by beat.

    While results wait, a beat enters only into words of the register file that are read for the last time in the same
    cycle or were before.
    """

    def __init__(self, params: HadamardParams) -> None:
        self.rows, self.passes = params.rows, params.stages
        self.first_free = params.rows - params.rows // params.order
        """the read from which on words are read for the last time"""
        self.step = self.stage = 0
        self.read: int | None = None
        """the next beat of results to be read; none where there are none"""
        self.block = 0
        self.pipeline = PipelineControl(params.levels, "") if params.levels else None

    def ready(self, valid: Mapping[str, bool], accept: bool) -> dict[str, bool]:
        return {"i_x": self.stage == 0 and (self.read is None or self.step < self.free(accept))}

    def free(self, accept: bool) -> int:
        """Words that may be written while results wait: those read for the last time, up to this cycle."""
        assert self.read is not None
        return self.read + self.reading(accept) - self.first_free

    def reading(self, accept: bool) -> bool:
        return self.read is not None and (self.pipeline.advance(accept) if self.pipeline else accept)

    def shown(self) -> int | None:
        if self.pipeline:
            return self.pipeline.shown()
        return None if self.read is None else self.block * self.rows + self.read

    def clock(self, taken: Mapping[str, int], accept: bool) -> None:
        reading = self.reading(accept)
        if self.pipeline:
            entering = {"": self.block * self.rows + self.read} if reading and self.read is not None else {}
            self.pipeline.clock(entering, accept)
        if reading and self.read is not None:
            self.read += 1
            if self.read == self.rows:
                self.read, self.block = None, self.block + 1
        if taken or self.stage:
            self._work()

    def _work(self) -> None:
        self.step = (self.step + 1) % self.rows
        if self.step == 0:
            self.stage = (self.stage + 1) % self.passes
            if self.stage == 0:
                self.read = 0


def shape_of(params: HadamardParams, X: NDArray[Any]) -> dict[str, int]:
    """The run's M and K."""
    return {"M": X.shape[0], "K": X.shape[1]}


def sample(
    params: HadamardParams, rng: np.random.Generator, M: int | None = None, K: int | None = None
) -> tuple[Ints, ...]:
    """Random X, of a random small shape where none is given; some blocks drive one output to its largest magnitude."""
    m, blocks = gemm.random_shape(rng, *((5, 3) if params.lanes is None else (2, 1)))  # a folded block takes long
    low, high = signed_range(params.in_bits)
    x = gemm.random_codes(rng, (M or m, K or blocks * params.points), low, high)
    parts = x.reshape(-1, params.points)
    for block in np.flatnonzero(rng.random(len(parts)) < 0.3):
        row, of_order = rng.integers(params.inner), rng.integers(params.order)
        signs = 1 - 2 * (np.bitwise_count(row & np.arange(params.inner)).astype(np.int64) & 1)
        outer = paley(params.order)[of_order] if params.order > 1 else np.ones(1, dtype=np.int64)
        aligned = _signs(params) * np.kron(outer, signs) > 0
        parts[block] = np.where(aligned == bool(rng.integers(2)), low, high)
    return (x,)
