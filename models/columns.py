"""Arrays of columns that each reduce one vector of activations, broadcast to all of them, with the weights they hold.

What such engines share stands here: a vector of `tile_k` activations enters, edge logic that serves all columns makes
of it whatever they read (table entries, shifted activations, sums), each column makes of that an exact integer total,
and the total meets the partial sum. An engine brings its edge, its columns and its weights.

INT: activations are two's-complement integers; psum + total is fitted once to `acc_bits`. FP16: the vector is aligned
(models/align.py, `act_bits` wide) and the columns work on its integers; the total, worth a power of two, is rounded to
single precision (nearest even) and added to the partial sum in single precision (nearest even). One vector is one
tile of K: its values share one exponent, and partial sums are added in order of the tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.align import ALIGN_STAGES, EXPONENT_BITS, align_ops, aligned, worth
from models.bits import Overflow, Rounding, check_codes, signed_range
from models.floats import (
    ADD_STAGES,
    ADDER_BITS,
    SINGLE_BITS,
    SINGLE_DIGITS,
    ActFormat,
    Singles,
    half,
    half_bits,
    half_of,
    random_halves,
    single,
    single_bits,
    single_of,
)
from models.unit import Beats, Ints, Op, Stimulus, Timing, Trace, check_choice, check_range, require

Result = Any
"""Ints, or Singles with FP16 activations"""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Geometry, discipline and edges of such an array."""

    tile_k: int
    cols: int
    act_format: ActFormat
    act_bits: int
    """of an activation, or of the integers that FP16 ones are aligned to"""
    rounding: Rounding
    """of the alignment"""
    acc_bits: int
    overflow: Overflow
    stages: int
    """registers from the integers of a vector to the terms of its total"""
    load_beats: int
    total_bits: int
    """width of the exact total of a tile"""
    interval: int = 1
    """cycles that each vector is worked on; the terms of its total come in as many"""

    @property
    def is_float(self) -> bool:
        return self.act_format is ActFormat.FP16

    @property
    def wraps(self) -> bool:
        """Whether sums are integers modulo 2^acc_bits, which no cut of K into tiles changes."""
        return not self.is_float and self.overflow is Overflow.WRAP

    @property
    def summed(self) -> bool:
        """Whether the total has a register of its own before it meets the partial sum."""
        return self.is_float or self.interval > 1

    @property
    def edge_stages(self) -> int:
        """Registers from a vector's transfer to its integers."""
        return ALIGN_STAGES * self.is_float

    @property
    def psum_stages(self) -> int:
        """Registers that the partial sum passes before it meets the total."""
        return self.edge_stages + self.stages + self.summed + self.is_float

    @property
    def rounded_bits(self) -> int:
        """Bits of a total in single precision that are not always zero."""
        return SINGLE_BITS - max(SINGLE_DIGITS - self.total_bits, 0)

    @property
    def latency(self) -> int:
        return self.psum_stages + (ADD_STAGES if self.is_float else 1)

    @property
    def geometry(self) -> gemm.Stationary:
        return gemm.Stationary(
            tile_k=self.tile_k,
            tile_n=self.cols,
            load_beats=self.load_beats,
            latency=self.latency,
            interval=self.interval,
        )


def check_columns(name: str, params: Any) -> None:
    """Refuse the parameters that all these arrays have in common where they cannot be built."""
    check_choice(name, params, act_format=ActFormat, overflow=Overflow, rounding=Rounding)
    check_range(name, params, cols=(1, 256), acc_bits=(2, 48))
    if params.act_format is ActFormat.INT:
        check_range(name, params, act_bits=(2, 16))
        rule = f"{name}: rounding={params.rounding} is of the alignment of FP16 activations"
        require(params.rounding is Rounding.NEAREST_EVEN, f"{rule}; leave it out, or take act_format=fp16")
        return
    rule = f"{name}: act_format=fp16 sums in single precision and needs"
    check_range(name, params, act_bits=(4, 24))
    require(params.acc_bits == SINGLE_BITS, f"{rule} acc_bits=32, not {params.acc_bits}")
    require(params.overflow is Overflow.WRAP, f"{rule} overflow=wrap, since those neither wrap nor saturate")


def golden(columns: Columns, A: NDArray[Any], integers: Ints, psum: Any = None) -> Result:
    """Y[M, N] = psum + A @ `integers` [K, N], tile by tile in K, as the module's docstring says.

    Only the addition to the partial sum can overflow or round, so nothing else of the array need be imitated.
    """
    gemm.check_operands(A, integers.shape)
    psum = check_psum(columns, psum, (A.shape[0], integers.shape[1]))
    if columns.is_float:
        return _float_golden(columns, half("A", A), integers, psum)
    a = check_codes("A", A, columns.act_bits)
    return gemm.accumulate_blocks(a, integers, psum, columns.tile_k, columns.acc_bits, columns.overflow)


def check_psum(columns: Columns, psum: Any, shape: tuple[int, int]) -> Any:
    """The starting partial sums as int64 or float32, None as it is."""
    if psum is None:
        return None
    require(isinstance(psum, np.ndarray), f"psum must be a numpy array [M, N], not {type(psum).__name__}")
    require(psum.shape == shape, f"psum is {psum.shape}, not {shape}")
    return single("psum", psum) if columns.is_float else check_codes("psum", psum, columns.acc_bits)


def _float_golden(columns: Columns, a: Any, integers: Ints, psum: Singles | None) -> Singles:
    (m, k), n = a.shape, integers.shape[1]
    tiles = gemm.folds(k, columns.tile_k)
    whole = tiles * columns.tile_k
    vectors = half_of(gemm.pad_to(half_bits(a), (m, whole))).reshape(m, tiles, columns.tile_k)
    lanes, exponent = aligned(vectors, columns.act_bits, columns.rounding)
    weights = gemm.pad_to(integers, (whole, n)).reshape(tiles, columns.tile_k, n)
    kind = gemm.exact_float(lanes, weights, columns.tile_k)
    total = np.zeros((m, n), dtype=np.float32) if psum is None else psum
    a_tiles, w_tiles = np.ascontiguousarray(lanes.transpose(1, 0, 2), dtype=kind), weights.astype(kind)
    for tile in range(tiles):
        total = add_total(columns, total, a_tiles[tile] @ w_tiles[tile], exponent[:, tile])
    return total


def add_total(columns: Columns, psum: Singles, total: NDArray[Any], exponent: Ints) -> Singles:
    """psum [M, N] plus the exact total [M, N] of aligned integers of exponents [M], each rounded to nearest even."""
    scale = np.ldexp(np.float32(1), worth(exponent[:, None], columns.act_bits))
    with np.errstate(over="ignore"):
        met: Singles = psum + total.astype(np.float32, copy=False) * scale
    return met


def timing(columns: Columns, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape."""
    return gemm.stationary_timing(columns.geometry, M, K, N)


Load = Callable[[slice, slice], Mapping[str, Ints]]
"""(rows of W, columns of W) -> the load beats of that tile"""
Held = Callable[[Mapping[str, Ints]], Ints]
"""load beats of a tile -> the integers [tile_k, cols] that the array then holds"""


def beats(columns: Columns, A: NDArray[Any], n: int, psum: Any, load: Load, held: Held) -> Beats:
    """Input beats of a whole GEMM: the tiles' load beats and `i_act` {act[tile_k], psum[cols], last}."""
    return beats_of(columns, A, n, psum, load, partial(_tile_golden, columns, held))


def _tile_golden(columns: Columns, held: Held, tile: Mapping[str, Ints], act: Any, psum: Any) -> Result:
    return golden(columns, act, held(tile), psum)


TileGolden = Callable[[Mapping[str, Ints], Any, Any], Result]
"""(load beats of a tile, activations [m, tile_k], psum [m, cols]) -> what leaves"""


def beats_of(columns: Columns, A: NDArray[Any], n: int, psum: Any, load: Load, tile_golden: TileGolden) -> Beats:
    """`beats` of an array whose result is not activations times integers."""
    a = half_bits(half("A", A)) if columns.is_float else A.astype(np.int64)
    start = None if psum is None else _to_ints(columns, psum)
    return gemm.stationary_beats(columns.geometry, a, n, start, load, _on_patterns(columns, tile_golden))


def trace(columns: Columns, stimulus: Stimulus, held: Held) -> Trace:
    """Every port of every cycle; the data path comes from `golden`, tile by tile."""
    return trace_of(columns, stimulus, partial(_tile_golden, columns, held))


def trace_of(columns: Columns, stimulus: Stimulus, tile_golden: TileGolden) -> Trace:
    """`trace` of an array whose result is not activations times integers."""
    return gemm.stationary_trace(columns.geometry, stimulus, _on_patterns(columns, tile_golden))


def _on_patterns(columns: Columns, tile_golden: TileGolden) -> TileGolden:
    """The same of bit patterns, as streams carry them."""
    if not columns.is_float:
        return tile_golden
    return lambda tile, act, psum: single_bits(tile_golden(tile, half_of(act), single_of(psum)))


def _to_ints(columns: Columns, psum: Any) -> Ints:
    return single_bits(single("psum", psum)) if columns.is_float else psum


def result(columns: Columns, shape: Mapping[str, int], out_beats: Mapping[str, Ints]) -> Result:
    """Y[M, N] from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    y = gemm.stationary_result(columns.geometry, (shape["M"], shape["K"], shape["N"]), out_beats)
    return single_of(y) if columns.is_float else y


def shape_of(params: Any, A: NDArray[Any], W: Any, psum: Any = None) -> dict[str, int]:
    """The GEMM's M, K, N."""
    gemm.check_operands(A, W.shape)
    return {"M": A.shape[0], "K": A.shape[1], "N": W.shape[1]}


def edge_ops(columns: Columns, M: int, K: int, N: int, terms: int) -> tuple[Op, ...]:
    """Operations and registers, without stalls, of what stands here: aligning, the partial sum's way, the meeting of
    `terms` terms and the partial sum."""
    vectors = M * gemm.folds(K, columns.tile_k) * gemm.folds(N, columns.cols)
    outputs = M * N * gemm.folds(K, columns.tile_k)
    cycles = timing(columns, M, K, N).total_cycles
    held = Op("reg", vectors * columns.cols, columns.acc_bits)
    """where a vector is worked on in several cycles its partial sums wait for the last one"""
    registers = (
        *((held,) if columns.interval > 1 else ()),
        Op("reg", cycles * columns.cols * (columns.psum_stages + (not columns.is_float)), columns.acc_bits),
        *((Op("reg", cycles * columns.cols, columns.total_bits),) if columns.summed else ()),
    )
    if not columns.is_float:
        sums = Op("add", outputs * (terms if columns.interval == 1 else 1), columns.acc_bits)
        return (sums, *_total_ops(columns, outputs, terms), *registers)
    waiting = columns.stages + columns.summed
    return (
        *align_ops(columns.tile_k, columns.act_bits, vectors, cycles),
        *_total_ops(columns, outputs, terms),
        Op("shift", outputs, columns.total_bits, columns.total_bits),
        Op("fadd", outputs, SINGLE_BITS),
        *registers,
        *((Op("reg", vectors, EXPONENT_BITS),) if columns.interval > 1 else ()),
        Op("reg", cycles * waiting, EXPONENT_BITS),
        Op("reg", cycles * columns.cols, columns.rounded_bits + ADDER_BITS),
    )


def _total_ops(columns: Columns, outputs: int, terms: int) -> tuple[Op, ...]:
    """Additions of a total that has a register of its own."""
    count = terms if columns.interval > 1 else terms - 1
    return (Op("add", outputs * count, columns.total_bits),) if columns.summed and count else ()


def random_operand(columns: Columns, rng: np.random.Generator, m: int, k: int) -> Any:
    """Random A [m, k] with corners."""
    if columns.is_float:
        return random_halves(rng, (m, k))
    return gemm.random_codes(rng, (m, k), *signed_range(columns.act_bits))


def random_psum(columns: Columns, rng: np.random.Generator, m: int, n: int) -> Any:
    """Random starting partial sums [m, n]."""
    if columns.is_float:
        return rng.normal(0.0, 2.0 ** rng.integers(-20, 20), (m, n)).astype(np.float32)
    return gemm.random_codes(rng, (m, n), *signed_range(columns.acc_bits))


def random_sizes(
    columns: Columns, rng: np.random.Generator, M: int | None, K: int | None, N: int | None, group: int | None = None
) -> tuple[int, int, int]:
    """The shape given, and where none is given a random small one."""
    drawn = gemm.random_shape(rng, 5, group or columns.tile_k, columns.cols)
    m, k, n = (given or size for given, size in zip((M, K, N), drawn, strict=True))
    return m, k, n


def check_group(name: str, group_size: int | None, tile_k: int, what: str) -> None:
    """Refuse a group that is not a whole number of tiles: scales are loaded with a tile and hold for all of it."""
    if group_size is None:
        return
    near = max(round(group_size / tile_k), 1) * tile_k
    rule = f"{name}: group_size must be a multiple of {what} = {tile_k}"
    require(group_size % tile_k == 0, f"{rule}, not {group_size}; nearest: {near}")
