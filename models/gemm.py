"""Y[M, N] = A[M, K] @ W[K, N] on an array: exact products, folds over M, K and N, and the discipline of a held tile.

What every matrix engine shares stands here once. An engine brings its tile, its latency and its arithmetic.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bits import Overflow, check_codes, fit, require_codes, signed_range
from models.unit import (
    Beats,
    InputError,
    Ints,
    PipelineControl,
    Stimulus,
    Timing,
    Trace,
    assemble_trace,
    require,
    step_streams,
)

FLOAT32_EXACT = 1 << 24
FLOAT64_EXACT = 1 << 53
LARGEST_SIZE = 1 << 20
"""of one dimension of a GEMM: the product of three fits int64"""
LONGEST_K = 600
"""of random operands: beyond it a case takes longer than what it shows is worth"""
LEAST_CHUNK = 128
"""Below this many products a chunk, single precision's extra additions cost more than double precision does."""


def exact_matmul(a: NDArray[Any], w: NDArray[Any]) -> Ints:
    """`a @ w` of integer matrices [M, K] and [K, N] as int64, without rounding.

    Goes through BLAS: as long as every partial sum is an integer below 2^24 (2^53), single (double) precision adds it
    exactly in any order. The bound is taken from the operands' largest magnitudes; K is split where that pays. Sums
    that could pass 2^53 go through numpy's int64 product. The caller keeps sums below 2^63.
    """
    bound = max(_magnitude(a) * _magnitude(w), 1)
    k = a.shape[1]
    if k * bound <= FLOAT32_EXACT:
        return (a.astype(np.float32) @ w.astype(np.float32)).astype(np.int64)
    if (chunk := FLOAT32_EXACT // bound) >= LEAST_CHUNK:
        a32, w32 = a.astype(np.float32), w.astype(np.float32)
        parts = [slice(i, i + chunk) for i in range(0, k, chunk)]
        total = (a32[:, parts[0]] @ w32[parts[0]]).astype(np.int64)
        for part in parts[1:]:
            total += (a32[:, part] @ w32[part]).astype(np.int64)
        return total
    if k * bound <= FLOAT64_EXACT:
        return (a.astype(np.float64) @ w.astype(np.float64)).astype(np.int64)
    return a.astype(np.int64) @ w.astype(np.int64)


def exact_float(a: NDArray[Any], w: NDArray[Any], k: int) -> type[Any]:
    """The narrowest type in whose arithmetic sums of `k` products of integers of `a` and `w` are exact: float32,
    float64 or int64."""
    bound = k * _magnitude(a) * _magnitude(w)
    if bound <= FLOAT32_EXACT:
        return np.float32
    return np.float64 if bound <= FLOAT64_EXACT else np.int64


def _magnitude(x: NDArray[Any]) -> int:
    """Largest magnitude in `x`; safe for the most negative integer of its type."""
    return max(int(x.max()), -int(x.min())) if x.size else 0


def accumulate(a: NDArray[Any], w: NDArray[Any], psum: Ints | None, acc_bits: int, overflow: Overflow) -> Ints:
    """`psum + a @ w` with products added one by one, k = 0 first, into accumulators of `acc_bits` bits.

    Each sum wraps or saturates before the next product is added.
    """
    return accumulate_blocks(a, w, psum, 1, acc_bits, overflow)


def accumulate_blocks(
    a: NDArray[Any], w: NDArray[Any], psum: Ints | None, block: int, acc_bits: int, overflow: Overflow
) -> Ints:
    """`psum + a @ w` where the exact sum of each `block` of K is added, in order, to accumulators of `acc_bits` bits.

    Each such sum wraps or saturates before the next is added. Where no partial sum can leave the register, and always
    when wrapping, the order does not matter and the product is one exact matmul.
    """
    low, high = signed_range(acc_bits)
    product = _magnitude(a) * _magnitude(w)
    reach = a.shape[1] * product + (0 if psum is None else _magnitude(psum))
    if overflow is Overflow.WRAP or reach <= high:
        total = exact_matmul(a, w)
        total = total if psum is None else total + psum
        return total if reach <= high else fit(total, acc_bits, overflow)
    widest = high + block * product
    require(widest <= np.iinfo(np.int64).max, f"a sum of {block} products and one of {acc_bits} bits pass 2^63")
    kind = np.int64 if widest > np.iinfo(np.int32).max else np.int32
    start = np.zeros((a.shape[0], w.shape[1]), dtype=kind) if psum is None else psum.astype(kind)
    return _saturating_kernel()(a.astype(kind), w.astype(kind), start, low, high, block).astype(np.int64)


def _saturating_kernel() -> Callable[..., NDArray[Any]]:
    from models.gemm_kernels import saturating_matmul  # numba is imported by those who need order alone

    return saturating_matmul


def folds(size: Any, tile: int) -> Any:
    """How many tiles of that length cover `size` (int or int64 array)."""
    return -(-size // tile)


def skew(lanes: int) -> int:
    """Registers that delay lane i of a vector by i cycles."""
    return lanes * (lanes - 1) // 2


def check_shape(**sizes: Any) -> tuple[Any, ...]:
    """The dimensions as Python ints or int64 arrays, whatever integers they came as; those below 1 are refused."""
    return tuple(_size(name, size) for name, size in sizes.items())


def _size(name: str, size: Any) -> Any:
    if type(size) is int and 1 <= size <= LARGEST_SIZE:
        return size
    values = np.asarray(size)
    if not np.issubdtype(values.dtype, np.integer) or not bool(np.all(values >= 1)):
        raise InputError(f"shape: {name} must be a whole number of at least 1, not {size!r}")
    require(bool(np.all(values <= LARGEST_SIZE)), f"shape: {name} must be at most {LARGEST_SIZE}")
    return values.astype(np.int64) if values.ndim else int(values)


def check_operands(a: Any, w_shape: Any) -> None:
    """Refuse operands that do not multiply."""
    require(isinstance(a, np.ndarray), f"A must be a numpy array [M, K], not {type(a).__name__}")
    require(a.ndim == 2, f"A must be a matrix [M, K], not an array of shape {a.shape}")
    require(len(w_shape) == 2, f"W must be a matrix [K, N], not an array of shape {w_shape}")
    require(a.shape[1] == w_shape[0], f"A is {a.shape} and W is {w_shape}: A's columns must equal W's rows (K)")
    check_shape(M=a.shape[0], K=a.shape[1], N=w_shape[1])


def random_shape(rng: np.random.Generator, *tiles: int) -> list[int]:
    """A small random size for each dimension: 1, the tile, just beside it, or up to two and a half tiles."""
    beside = [(1, tile, max(tile - 1, 1), tile + 1, int(rng.integers(1, 2 * tile + tile // 2 + 2))) for tile in tiles]
    return [sizes[rng.integers(len(sizes))] for sizes in beside]


def random_codes(rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int) -> Ints:
    """Integers from `low` to `high`: uniform, all at one end, alternating ends, or sparse, chosen at random."""
    uniform = rng.integers(low, high, size=shape, endpoint=True)
    match rng.integers(6):
        case 0:
            return np.full(shape, low, dtype=np.int64)
        case 1:
            return np.full(shape, high, dtype=np.int64)
        case 2:
            return np.where(np.arange(shape[-1]) % 2 == 0, low, high) * np.ones(shape, dtype=np.int64)
        case 3:
            return np.where(rng.random(shape) < 0.8, 0, uniform)
    return uniform


def pad_to(x: Ints, shape: tuple[int, ...]) -> Ints:
    """`x` with zeros behind it up to `shape`: an edge tile computes with zeros in its unused lanes."""
    return np.pad(x, [(0, full - size) for size, full in zip(x.shape, shape, strict=True)])


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What an array works on at a time: M x K x N, 1 where it takes any number one after the other."""

    M: int
    K: int
    N: int
    takes_psum: bool
    """whether partial sums can come from outside, so that a GEMM can be cut along K at multiples of the fold"""


def fold_of(params: Any) -> Fold:
    """The fold of a GEMM engine."""
    array = getattr(params, "columns", getattr(params, "array", params))
    return typing.cast(Fold, array.fold if hasattr(array, "fold") else array.geometry.fold)


@dataclass(frozen=True, kw_only=True)
class Stationary:
    """The discipline of an array that holds a tile of one operand while the other streams through it.

    The tile, tile_k deep and tile_n wide, is loaded in `load_beats` beats of the stream `i_<held>`; then beats of
    `i_<moving>`, each a vector of tile_k values and the partial sums that it adds to, until one is marked `last`. A
    beat transferred in cycle t is shown at `o_psum` in cycle t + latency when nothing stalls. All registers but the
    held tile's stand still while an output waits.

    `buffers` 1: the next tile is taken as soon as no beat stands before the output register, so that stall-free folds
    of m vectors follow each other every load_beats + m + latency - 1 cycles. `buffers` 2: each PE holds two tiles; the
    next one is taken while the present one is at work, as soon as no beat of the one before stands before the output
    register.

    `interval` above 1 (with one buffer): each vector is worked on in that many cycles, its phases, of which the
    transfer is the first; `latency` counts from the last one, and the next vector is taken behind it.
    """

    tile_k: int
    tile_n: int
    load_beats: int
    latency: int
    buffers: int = 1
    interval: int = 1
    held: str = "weight"
    moving: str = "act"

    @property
    def fold(self) -> Fold:
        m, n = (self.tile_n, 1) if self.held == "act" else (1, self.tile_n)
        return Fold(M=m, K=self.tile_k, N=n, takes_psum=True)

    @property
    def load_stream(self) -> str:
        """of the held tile"""
        return f"i_{self.held}"

    @property
    def stream(self) -> str:
        """of the moving vectors"""
        return f"i_{self.moving}"

    def vectors(self, m: Any, k: Any) -> Any:
        """Moving vectors of a fold for `m` useful ones.

        With two buffers nothing but the vectors themselves keeps one fold from the next: a fold whose partial sums
        come from the fold before it is filled up with zero vectors until those have left.
        """
        if self.buffers == 1:
            return m
        filled = np.maximum(m, np.where(np.asarray(folds(k, self.tile_k)) > 1, self.latency + 1, 1))
        return filled if filled.ndim else int(filled)


def stationary_timing(geometry: Stationary, M: Any, K: Any, N: Any) -> Timing:
    """Cycles of a GEMM of M moving vectors: folds over N outside, over K inside, partial sums going round outside."""
    M, K, N = check_shape(M=M, K=K, N=N)
    count = folds(K, geometry.tile_k) * folds(N, geometry.tile_n)
    load, vectors = geometry.load_beats, geometry.vectors(M, K) * geometry.interval
    one_by_one = load + vectors + geometry.latency - 1
    if geometry.buffers == 1:
        total = count * one_by_one + 1
    else:
        # Fold i streams after fold i - 1 (at least `step`), and is loaded after fold i - 2 has left (`one_by_one`):
        # the longest chain of the two from the first fold to the last
        step = np.maximum(vectors, load)
        pairs, odd = (count - 1) // 2, (count - 1) % 2
        total = one_by_one + 1 + np.maximum((count - 1) * step, pairs * one_by_one + odd * step)
        total = total if np.ndim(total) else int(total)
    return Timing(
        total_cycles=total,
        load_cycles=count * load if geometry.buffers == 1 else 0 * total + load,
        stream_cycles=count * vectors,
        drain_cycles=total - count * vectors - (count * load if geometry.buffers == 1 else load),
        work=M * K * N,
        peak_per_cycle=_quotient(geometry.tile_k * geometry.tile_n, geometry.interval),
        words={
            geometry.moving: M * K * folds(N, geometry.tile_n),
            geometry.held: K * N,
            "psum": M * N * (folds(K, geometry.tile_k) - 1),
            "out": M * N * folds(K, geometry.tile_k),
        },
    )


def _quotient(value: int, by: int) -> int | float:
    """`value / by`, an int where it is whole."""
    return value / by if value % by else value // by


class StationaryControl:
    """Control state of `Stationary`: which buffers are full, beats loaded into the next, and which stages hold what."""

    def __init__(self, geometry: Stationary, last: NDArray[np.bool_]) -> None:
        self.geometry = geometry
        self.last = last
        self.tile_of = np.concatenate([[0], np.cumsum(last)[:-1]]).astype(int)
        self.loaded = 0
        self.tiles = 0
        """taken so far, the one that is being loaded left out"""
        self.done = 0
        """tiles whose last beat has entered"""
        self.phase = 0
        """of the vector that is worked on; 0: none, or all phases but the transfer are still due"""
        self.vector = 0
        """the one taken last"""
        self.pipeline = PipelineControl(geometry.latency, geometry.stream)

    def ready(self, valid: Mapping[str, bool], accept: bool) -> dict[str, bool]:
        before = self.tiles - self.geometry.buffers
        """the tile that leaves its buffer to the one loaded next"""
        at_work = any(beat is not None and self.tile_of[beat] == before for beat in self.pipeline.stages[:-1])
        idle = self.phase == 0
        return {
            self.geometry.load_stream: before < self.done and not at_work and idle,
            self.geometry.stream: self.tiles > self.done and self.pipeline.advance(accept) and idle,
        }

    def shown(self) -> int | None:
        return self.pipeline.shown()

    def clock(self, taken: Mapping[str, int], accept: bool) -> None:
        if self.geometry.load_stream in taken:
            self.loaded += 1
        if self.loaded == self.geometry.load_beats:
            self.loaded, self.tiles = 0, self.tiles + 1
        entering = taken.get(self.geometry.stream)
        if entering is not None:
            self.vector = entering
            self.done += bool(self.last[entering])
        begun = self.phase > 0 or entering is not None
        complete = begun and self.phase == self.geometry.interval - 1
        if begun and self.pipeline.advance(accept):
            self.phase = (self.phase + 1) % self.geometry.interval
        self.pipeline.clock({self.geometry.stream: self.vector} if complete else {}, accept)


def stationary_trace(
    geometry: Stationary, stimulus: Stimulus, tile_golden: Callable[[Mapping[str, Ints], Ints, Ints], Ints]
) -> Trace:
    """Trace of an array with `tile_golden(load_beats, moving[m, tile_k], psum[m, tile_n])` in it."""
    vectors, loads = stimulus.beats[geometry.stream], stimulus.beats[geometry.load_stream]
    last = vectors["last"].astype(bool)
    outputs = [np.zeros((0, geometry.tile_n), dtype=np.int64)]
    start = 0
    for fold, end in enumerate((np.flatnonzero(last) + 1).tolist()):
        beats = slice(fold * geometry.load_beats, (fold + 1) * geometry.load_beats)
        tile = {field: values[beats] for field, values in loads.items()}
        outputs.append(tile_golden(tile, vectors[geometry.moving][start:end], vectors["psum"][start:end]))
        start = end
    control = StationaryControl(geometry, last)
    index, ready = step_streams(control, stimulus, "o_psum", len(last))
    return assemble_trace(stimulus, index, ready, "o_psum", {"psum": np.concatenate(outputs)})


def stationary_beats(
    geometry: Stationary,
    a: Ints,
    columns: int,
    psum: Ints | None,
    load_tile: Callable[[slice, slice], Mapping[str, Ints]],
    tile_golden: Callable[[Mapping[str, Ints], Ints, Ints], Ints],
) -> Beats:
    """All input beats of a GEMM with the moving vectors `a` [m, K]: for each fold over N, for each fold over K, the
    tile's load beats and then its vectors.

    `load_tile(rows, columns of the held operand)` gives the load beats of one tile. Partial sums of a later K fold are
    what the array itself put out for the one before; they come from `tile_golden`, and the comparison of `o_psum`
    proves them.
    """
    m, k = a.shape
    count = geometry.vectors(m, k)
    vectors: list[Mapping[str, Ints]] = []
    loads: list[Mapping[str, Ints]] = []
    for n0 in range(0, columns, geometry.tile_n):
        cols = slice(n0, min(n0 + geometry.tile_n, columns))
        start = np.zeros((m, cols.stop - n0), dtype=np.int64) if psum is None else psum[:, cols]
        sums = pad_to(start, (count, geometry.tile_n))
        for k0 in range(0, k, geometry.tile_k):
            rows = slice(k0, min(k0 + geometry.tile_k, k))
            tile = load_tile(rows, cols)
            moving = pad_to(a[:, rows], (count, geometry.tile_k))
            last = (np.arange(count) == count - 1).astype(np.int64)
            vectors.append({geometry.moving: moving, "psum": sums, "last": last})
            loads.append(tile)
            sums = tile_golden(tile, moving, sums)
    return {geometry.load_stream: join_beats(loads), geometry.stream: join_beats(vectors)}


TileGolden = Callable[[Ints, Ints, Ints], Ints]
"""(moving vectors [m, tile_k], held tile [tile_k, tile_n], psum [m, tile_n]) -> psum + vectors @ tile, as fitted"""


def chain_beats(geometry: Stationary, vectors: Ints, held: Ints, psum: Ints | None, tile_golden: TileGolden) -> Beats:
    """`stationary_beats` of an array into which a tile is shifted through chains: one beat for each of its rows, which
    enter at row 0 and move down, so that the first beat ends in the last row."""
    shape = (geometry.tile_k, geometry.tile_n)
    return stationary_beats(
        geometry,
        vectors,
        held.shape[1],
        psum,
        lambda rows, cols: {geometry.held: pad_to(held[rows, cols], shape)[::-1]},
        lambda tile, moving, sums: tile_golden(moving, tile[geometry.held][::-1], sums),
    )


def chain_trace(geometry: Stationary, stimulus: Stimulus, tile_golden: TileGolden) -> Trace:
    """`stationary_trace` of such an array."""
    return stationary_trace(
        geometry, stimulus, lambda tile, moving, sums: tile_golden(moving, tile[geometry.held][::-1], sums)
    )


def join_beats(parts: Sequence[Mapping[str, Ints]]) -> dict[str, Ints]:
    """Runs of beats one after another."""
    return {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}


def stationary_result(geometry: Stationary, shape: tuple[int, int, int], out_beats: Mapping[str, Ints]) -> Ints:
    """Y of m moving vectors by n from the output beats of a whole GEMM: those of the last K fold of each N fold."""
    m, k, n = shape
    count = geometry.vectors(m, k)
    tiles = out_beats["psum"].reshape(folds(n, geometry.tile_n), folds(k, geometry.tile_k), count, geometry.tile_n)
    return np.concatenate(list(tiles[:, -1, :m]), axis=1)[:, :n]


@dataclass(frozen=True, kw_only=True)
class OutputStationary:
    """The discipline of an array that holds a tile of Y, tile_m by tile_n, while both operands stream through it.

    Beats of `i_act` {act[tile_m], last} and `i_weight` {weight[tile_n]}, transferred together, until one is marked
    `last`; `flush_cycles` + 1 cycles after it the tile's sums begin to leave downwards, bottom row first, one a cycle,
    each through `resolving` registers. The next tile is taken when the last row has left the array.
    """

    tile_m: int
    tile_n: int
    flush_cycles: int
    """from the last operands' transfer until the last PE has added them, less one"""
    resolving: int = 0
    """registers of resolving adders between the last row and the output, 0 or 1"""

    @property
    def fold(self) -> Fold:
        return Fold(M=self.tile_m, K=1, N=self.tile_n, takes_psum=False)


def output_stationary_timing(geometry: OutputStationary, M: Any, K: Any, N: Any) -> Timing:
    """Cycles of a GEMM: folds over M outside, over N inside."""
    M, K, N = check_shape(M=M, K=K, N=N)
    count = folds(M, geometry.tile_m) * folds(N, geometry.tile_n)
    drain = geometry.flush_cycles + geometry.tile_m
    return Timing(
        total_cycles=count * (K + drain) + geometry.resolving,
        load_cycles=0 * count,
        stream_cycles=count * K,
        drain_cycles=count * drain + geometry.resolving,
        work=M * K * N,
        peak_per_cycle=geometry.tile_m * geometry.tile_n,
        words={
            "act": M * K * folds(N, geometry.tile_n),
            "weight": K * N * folds(M, geometry.tile_m),
            "psum": 0 * count,
            "out": M * N,
        },
    )


def output_stationary_beats(geometry: OutputStationary, a: Ints, w: Ints) -> Beats:
    """All input beats of a GEMM: column k of A's tile (`last` at k = K - 1) beside row k of W's tile."""
    k = a.shape[1]
    last = (np.arange(k) == k - 1).astype(np.int64)
    acts, weights = [], []
    for m0 in range(0, a.shape[0], geometry.tile_m):
        act = a[m0 : m0 + geometry.tile_m].T
        for n0 in range(0, w.shape[1], geometry.tile_n):
            acts.append({"act": pad_to(act, (k, geometry.tile_m)), "last": last})
            weights.append({"weight": pad_to(w[:, n0 : n0 + geometry.tile_n], (k, geometry.tile_n))})
    return {"i_act": join_beats(acts), "i_weight": join_beats(weights)}


def output_stationary_result(
    geometry: OutputStationary, shape: tuple[int, int, int], out_beats: Mapping[str, Ints]
) -> Ints:
    """Y from the output beats of a whole GEMM."""
    m, _, n = shape
    m_folds, n_folds = folds(m, geometry.tile_m), folds(n, geometry.tile_n)
    tiles = out_beats["psum"].reshape(m_folds, n_folds, geometry.tile_m, geometry.tile_n)[:, :, ::-1]
    full = tiles.transpose(0, 2, 1, 3).reshape(m_folds * geometry.tile_m, n_folds * geometry.tile_n)
    return full[:m, :n]


class OutputStationaryControl:
    """Control state of `OutputStationary`: cycles left to flush, rows left to drain, what the resolving adders hold."""

    def __init__(self, geometry: OutputStationary, last: NDArray[np.bool_]) -> None:
        self.geometry = geometry
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
        return self.resolved if self.geometry.resolving else self.drained()

    def clock(self, taken: Mapping[str, int], accept: bool) -> None:
        due = self.drained()
        moves = accept or (self.geometry.resolving > 0 and self.resolved is None)
        if moves:
            self.resolved = due
        if self.flush:
            self.flush -= 1
        elif due is not None and moves:
            self.drain -= 1
            self.sent += 1
        if "i_act" in taken and self.last[taken["i_act"]]:
            self.flush = self.geometry.flush_cycles
            self.drain = self.geometry.tile_m


def output_stationary_trace(
    geometry: OutputStationary, stimulus: Stimulus, tile_golden: Callable[[Ints, Ints], Ints]
) -> Trace:
    """Trace of an array with `tile_golden(A's tile [tile_m, K], W's tile [K, tile_n])` in it."""
    acts, weights = stimulus.beats["i_act"], stimulus.beats["i_weight"]["weight"]
    ends = np.flatnonzero(acts["last"]) + 1
    tiles = [np.zeros((0, geometry.tile_n), dtype=np.int64)]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        tiles.append(tile_golden(acts["act"][start:end].T, weights[start:end])[::-1])
    control = OutputStationaryControl(geometry, acts["last"].astype(bool))
    index, ready = step_streams(control, stimulus, "o_psum", len(ends) * geometry.tile_m)
    return assemble_trace(stimulus, index, ready, "o_psum", {"psum": np.concatenate(tiles)})


def shape_of(params: Any, A: NDArray[Any], W: NDArray[Any], psum: Ints | None = None) -> dict[str, int]:
    """The GEMM's M, K, N, of a unit whose operands are plain integer matrices."""
    check_operands(A, W.shape)
    return {"M": A.shape[0], "K": A.shape[1], "N": W.shape[1]}


def weight_format(params: Any) -> tuple[str, dict[str, Any]]:
    """Symmetric integers, one scale a column."""
    rule = f"{unit_name(params)}: formats hold weights of 2 to 8 bits"
    require(params.weight_bits <= 8, f"{rule}, not {params.weight_bits}")
    return f"int{params.weight_bits}", {}


def operand(params: Any, quantized: Any) -> tuple[Ints, Fraction]:
    """W from quantized weights [K, N]: their integer codes; the output counts whole units of A @ W."""
    return check_codes("W", column_integers(unit_name(params), quantized), params.weight_bits), Fraction(1)


def column_integers(name: str, quantized: Any) -> Ints:
    """The integers [K, N] of weights quantized along K, axis 0; InputError unless each column has one step."""
    integers, step = getattr(quantized, "integers", None), getattr(quantized, "step", None)
    fits = integers is not None and step is not None and integers.ndim == 2 and step.shape[0] == 1
    require(bool(fits), f"{name}: weights need a format with integers and one scale a column, quantized along axis 0")
    return typing.cast(Ints, integers)


def from_integers(params: Any, W: NDArray[Any]) -> tuple[NDArray[Any], Fraction]:
    """A plain integer matrix is W as it is; the output counts whole units of A @ W."""
    require_codes("W", W, params.weight_bits)
    return W, Fraction(1)


def unit_name(params: Any) -> str:
    """The unit that a params object belongs to, as messages name it."""
    return type(params).__module__.rpartition(".")[2]


def checked_operands(params: Any, A: NDArray[Any], W: NDArray[Any], psum: Ints | None) -> Ints | None:
    """`psum` as int64, after refusing plain integer operands or partial sums that do not fit each other or `params`."""
    check_operands(A, W.shape)
    require_codes("A", A, params.act_bits)
    require_codes("W", W, params.weight_bits)
    if psum is None:
        return None
    require(psum.shape == (A.shape[0], W.shape[1]), f"psum is {psum.shape}, not {(A.shape[0], W.shape[1])}")
    return check_codes("psum", psum, params.acc_bits)


def sample_operands(params: Any, rng: np.random.Generator, m: int, k: int, n: int) -> tuple[Ints, Ints]:
    """Random A and W; now and then every product is the largest there is, least times least."""
    act, weight = signed_range(params.act_bits), signed_range(params.weight_bits)
    if rng.integers(5) == 0:
        return np.full((m, k), act[0]), np.full((k, n), weight[0])
    return random_codes(rng, (m, k), *act), random_codes(rng, (k, n), *weight)


def sample_at_the_limit(params: Any, rng: np.random.Generator, m: int, n: int) -> tuple[Ints, Ints] | None:
    """Equal products, just enough of them to pass the greatest or the least that an accumulator holds, for arrays whose
    sums start at zero; None where that takes more of them than a case is worth."""
    act, weight = signed_range(params.act_bits)[0], signed_range(params.weight_bits)[rng.integers(2)]
    k = (1 << (params.acc_bits - 1)) // abs(act * weight) + int(rng.integers(1, 4))
    return (np.full((m, k), act), np.full((k, n), weight)) if k < LONGEST_K else None
