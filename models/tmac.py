"""T-MAC: bit planes of weights look up sums of four activations, in tables that are quantized themselves.

A table for every four activations x holds all sums +-x_1 .. +-x_4; four weight bits of one plane are the key that reads
it (Wei et al., "T-MAC: CPU Renaissance via Table Lookup for Low-Bit LLM Deployment on Edge"). Weights are stored
unsigned, w + 2^(b-1); their bits as -1 and +1 are s_b, 2 w = sum_b 2^b s_b - 1, and so

    2 sum x w = sum_b 2^b sum_tables table[key_b] - sum x

with the sum of activations taken off once. Half of each table is held, the keys whose top bit is 0: table[~key] =
-table[key]. Quantized tables: all tables of one vector share a scale, max / Q, where max is the largest sum of four |x|
among them and Q = 2^(table_bits - 1) - 1; an entry e is held as q = Q e / max rounded to nearest, ties away from zero,
so that the mirror survives. The total stays an integer: 2 Q sum x w is near max sum_b 2^b sum q - Q sum x.

The array: tables at the edge, shared by all columns; in each column a PE a bit plane (or, with `serial`, one that works
on a plane a cycle) reads every table and aggregates, exactly or fast, by averages; the planes' sums are weighed, and
multiplied by max. Three register stages: tables, reads, planes; with quantized tables eight: activations and sums of
magnitudes, max, its reciprocal, activations times that, tables, reads, planes, times max. An activation is multiplied
by the reciprocal and not a table's entry: sums of products are products of sums, and there are twice as many entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import columns, compared, gemm
from models.align import aligned
from models.bits import Overflow, Rounding, check_codes, fit, signed_bits, signed_range
from models.columns import Columns, Result, shape_of
from models.floats import ActFormat, half
from models.unit import Beats, Ints, Op, Stimulus, Timing, Trace, check_choice, check_range, require

__all__ = ["shape_of"]

MU = 4
"""activations of a table, and bits of a key"""
ENTRIES = 1 << (MU - 1)
"""of the half of a table that is held"""
CHUNK = 1 << 23
"""elements of an expanded operand that golden makes at a time"""

Reals = NDArray[np.float32]
"""Integers below 2^24, which single precision holds exactly."""


class Aggregation(StrEnum):
    """How a column adds up what one bit plane reads."""

    EXACT = "exact"
    """integer addition"""
    FAST = "fast"
    """`rows` times the average that a tree of halving additions (a + b + 1) >> 1 of neighbours gives"""


@dataclass(frozen=True, kw_only=True)
class TmacParams:
    """Geometry and widths: `rows` tables of four activations. `table_bits`: width of a quantized entry; none: exact.

    Quantized tables take activations of at most 8 bits (FP16 ones are aligned to as many); fast aggregation takes
    quantized tables and a power of two of rows.
    """

    rows: int = 8
    cols: int = 8
    act_format: ActFormat = ActFormat.INT
    act_bits: int = 8
    rounding: Rounding = Rounding.NEAREST_EVEN
    weight_bits: int = 4
    table_bits: int | None = 8
    aggregation: Aggregation = Aggregation.EXACT
    serial: bool = False
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP

    def __post_init__(self) -> None:
        check_range("tmac", self, rows=(1, 64), weight_bits=(1, 8))
        check_choice("tmac", self, aggregation=Aggregation)
        columns.check_columns("tmac", self)
        require(isinstance(self.serial, bool), f"tmac: serial is true or false, not {self.serial!r}")
        require(not self.serial or self.weight_bits > 1, "tmac: serial=true needs weight_bits of at least 2, not 1")
        if self.table_bits is not None:
            check_range("tmac", self, table_bits=(3, 8))
            rule = "tmac: quantized tables take act_bits of at most 8"
            require(self.act_bits <= 8, f"{rule}, not {self.act_bits}; table_bits=none takes more")
        if self.is_fast:
            require(self.quantized, "tmac: aggregation=fast needs table_bits")
            rule = "tmac: aggregation=fast needs a power of two of rows"
            near = 1 << (self.rows.bit_length() - 1)
            require(self.rows == near, f"{rule}, not {self.rows}; nearest below: {near}")

    @property
    def quantized(self) -> bool:
        """Whether tables are."""
        return self.table_bits is not None

    @property
    def is_fast(self) -> bool:
        return self.aggregation is Aggregation.FAST

    @property
    def tile_k(self) -> int:
        return self.rows * MU

    @property
    def columns(self) -> Columns:
        return Columns(
            tile_k=self.tile_k,
            cols=self.cols,
            act_format=self.act_format,
            act_bits=self.act_bits,
            rounding=self.rounding,
            acc_bits=self.acc_bits,
            overflow=self.overflow,
            stages=self.table_stage + 2 + self.quantized,
            load_beats=self.rows,
            total_bits=self.total_bits,
            interval=self.weight_bits if self.serial else 1,
        )

    @property
    def table_stage(self) -> int:
        """The register stage in which tables stand."""
        return 5 if self.quantized else 1

    @property
    def levels(self) -> int:
        """Q, the largest entry of a quantized table; 1 where tables are exact, whose entries count activations."""
        return (1 << (self.table_bits - 1)) - 1 if self.table_bits else 1

    @property
    def scale(self) -> int:
        """How many units of the output one unit of A @ W is."""
        return 2 * self.levels

    @property
    def largest(self) -> int:
        """What max can be: four activations of the most negative value."""
        return MU << (self.act_bits - 1)

    @property
    def most_bits(self) -> int:
        """Width of max, unsigned."""
        return self.largest.bit_length()

    @property
    def fraction_bits(self) -> int:
        """Digits after the point of a reciprocal, the integer next above Q 2^fraction_bits / max.

        Its error, at most 1, grows to at most |e| in a product with an entry e. Q e / max lies on a tie or at least
        1 / (2 max) beside it; so |e| < 2^fraction_bits / (2 max) rounds right, and as |e| <= max <= 2^(act_bits + 1),
        2^(2 act_bits + 3) does (where |e| = max the quotient is whole). A tie is pushed away from zero.
        """
        return 2 * self.act_bits + 3

    @property
    def reciprocal_bits(self) -> int:
        """Width of a reciprocal, unsigned; that of 1 is the largest."""
        return ((self.levels << self.fraction_bits) + 1).bit_length()

    @property
    def product_bits(self) -> int:
        """Width that holds an activation times the reciprocal, and sums of four of them with one half added."""
        return self.fraction_bits + self.levels.bit_length() + 1

    @property
    def entry_bits(self) -> int:
        """Width of a table's entry, symmetric."""
        return self.table_bits or signed_bits(-self.largest, self.largest)

    @property
    def largest_entry(self) -> int:
        return self.levels if self.quantized else self.largest

    @property
    def read_bits(self) -> int:
        """Width of what one bit plane reads: the sum over the rows, or the average."""
        bound = self.largest_entry * (1 if self.is_fast else self.rows)
        return signed_bits(-bound, bound)

    @property
    def planes_bits(self) -> int:
        """Width of the planes' weighted sum."""
        bound = self.largest_entry * (1 if self.is_fast else self.rows) * ((1 << self.weight_bits) - 1)
        return signed_bits(-bound, bound)

    @property
    def act_sum_bits(self) -> int:
        """Width of the sum of activations, and of its negative."""
        bound = self.tile_k << (self.act_bits - 1)
        return signed_bits(-bound, bound)

    @property
    def total_bits(self) -> int:
        """Width of a tile's total."""
        read = self.rows * self.largest_entry * ((1 << self.weight_bits) - 1)
        bound = read * (self.largest if self.quantized else 1) + self.levels * (self.tile_k << (self.act_bits - 1))
        return signed_bits(-bound, bound)


_FP16: dict[str, Any] = {"act_format": ActFormat.FP16}

PRESETS = {
    "default": TmacParams(),
    "exact-tables": TmacParams(rows=3, cols=3, weight_bits=3, table_bits=None),
    "tiny": TmacParams(rows=1, cols=1, act_bits=2, weight_bits=1, table_bits=None, acc_bits=8),
    "tiny-quantized": TmacParams(rows=1, cols=1, act_bits=2, weight_bits=1, table_bits=3, acc_bits=9),
    "small": TmacParams(rows=3, cols=2, act_bits=4, weight_bits=2, table_bits=5, acc_bits=24),
    "fast": TmacParams(rows=4, cols=2, act_bits=6, weight_bits=2, aggregation=Aggregation.FAST),
    "serial": TmacParams(rows=2, cols=2, act_bits=5, weight_bits=3, table_bits=6, serial=True),
    "serial-exact": TmacParams(rows=2, cols=3, act_bits=8, weight_bits=5, table_bits=None, serial=True),
    "narrow-saturate": TmacParams(
        rows=2, cols=2, act_bits=4, weight_bits=3, table_bits=4, acc_bits=12, overflow=Overflow.SATURATE
    ),
    "narrow-fast": TmacParams(
        rows=2,
        cols=2,
        act_bits=3,
        weight_bits=2,
        table_bits=4,
        aggregation=Aggregation.FAST,
        serial=True,
        acc_bits=10,
        overflow=Overflow.SATURATE,
    ),
    "fp16": TmacParams(rows=2, cols=2, act_bits=12, weight_bits=3, table_bits=None, **_FP16),
    "fp16-quantized": TmacParams(rows=2, cols=2, act_bits=8, weight_bits=2, **_FP16),
    "fp16-serial": TmacParams(rows=1, cols=2, act_bits=6, weight_bits=2, table_bits=6, serial=True, **_FP16),
}

_WHY = (
    "No paper's ratio for hardware: T-MAC runs on the vector units of CPUs. In gates, quantizing tables takes a "
    "largest value, a reciprocal and a multiplication for each activation, which 8 columns share here."
)


def _designs(**changes: Any) -> dict[int, TmacParams]:
    return {bits: TmacParams(weight_bits=bits, **changes) for bits in compared.WIDTHS}


COMPARED = (
    *compared.low_bit("tmac", _designs(), families=(compared.LUT,), differs=_WHY),
    *compared.low_bit(
        "tmac, fast", {4: TmacParams(aggregation=Aggregation.FAST)}, families=(compared.LUT,), differs=_WHY
    ),
    *compared.low_bit(
        "tmac, wide", {4: TmacParams(cols=32)}, families=(compared.LUT,), differs=_WHY + " In this row 32 do."
    ),
)


def value_free(params: TmacParams) -> tuple[str, ...]:
    """Columns and whether planes take turns; with exact tables also rows, where tiles of K change no sum. The rows of
    quantized tables share a scale."""
    tiled = params.quantized or not params.columns.wraps
    return ("cols", "serial") if tiled else ("cols", "serial", "rows")


def golden(params: TmacParams, A: NDArray[Any], W: NDArray[Any], psum: Any = None) -> Result:
    """Y[M, N] = psum + 2 Q times A @ W as the tables give it, tile by tile of `rows` tables in K; 2 A @ W where tables
    are exact.

    int64, wrapped or saturated to `acc_bits` where a tile's total is added; with FP16 as in models/columns.py. `psum`
    [M, N] is where accumulation starts, in Y's units; zero by default. Fast aggregation has a bias: a halving addition
    rounds odd sums up, so that a level adds 1/4 on average where parities are random, and a tile's total is too large
    by about max (2^weight_bits - 1) rows log2(rows) / 4.
    """
    gemm.check_operands(A, W.shape)
    w, array = check_codes("W", W, params.weight_bits), params.columns
    if not params.quantized:
        return columns.golden(array, A, 2 * w, psum)
    psum = columns.check_psum(array, psum, (A.shape[0], W.shape[1]))
    if array.is_float:
        return _float_golden(params, half("A", A), w, psum)
    a = check_codes("A", A, params.act_bits)
    return _fast_golden(params, a, w, psum) if params.is_fast else _exact_golden(params, a, w, psum)


def _float_golden(params: TmacParams, a: Any, w: Ints, psum: Any) -> Result:
    total = np.zeros((len(a), w.shape[1]), dtype=np.float32) if psum is None else psum
    for rows in _tiles(params, len(w)):
        lanes, exponent = aligned(a[:, rows], params.act_bits, params.rounding)
        total = columns.add_total(params.columns, total, _tile_total(params, lanes, w[rows]), exponent)
    return total


def _fast_golden(params: TmacParams, a: Ints, w: Ints, psum: Ints | None) -> Ints:
    # sums that wrap may do so once, at the end: a tile's total has total_bits, far below 63
    limits = signed_range(64 if params.overflow is Overflow.WRAP else params.acc_bits)
    total = _fast_total(params, a, w, psum, limits)
    return fit(total, params.acc_bits, params.overflow)


def _tiles(params: TmacParams, k: int) -> Iterator[slice]:
    return (slice(k0, k0 + params.tile_k) for k0 in range(0, k, params.tile_k))


def _tile_total(params: TmacParams, lanes: Ints, w: Ints) -> Ints:
    """The total [M, N] of one tile of integer activations [M, up to tile_k] and weights."""
    if params.is_fast:
        return _fast_total(params, lanes, w, None, signed_range(64))
    return gemm.exact_matmul(_expanded_acts(_quantized_tables(params, lanes)), _expanded_weights(params, w))


def _fast_total(params: TmacParams, a: Ints, w: Ints, psum: Ints | None, limits: tuple[int, int]) -> Ints:
    """psum plus the tiles' totals, one after the other, limited after each."""
    from models.tmac_kernels import averaged_totals  # numba is imported by those who need order alone

    keys = _keys(params, w).astype(np.uint8)
    keys = keys.reshape(len(keys), -1, params.rows, w.shape[1])
    out = np.zeros((len(a), w.shape[1]), dtype=np.int64) if psum is None else psum.copy()
    step = max(CHUNK // (keys.shape[1] * params.rows * ENTRIES), 1)
    for rows in (slice(m0, m0 + step) for m0 in range(0, len(a), step)):
        tables = _quantized_tables(params, a[rows])
        entries = tables.entries.reshape(len(tables.most), -1, params.rows, ENTRIES).astype(np.int8)
        most, sums = (values.astype(np.int64) for values in (tables.most, tables.sums))
        averaged_totals(out[rows], entries, keys, most * params.rows, -params.levels * sums, limits)
    return out


def _exact_golden(params: TmacParams, a: Ints, w: Ints, psum: Ints | None) -> Ints:
    """An exact matrix product: entries, each times its tile's max, with how each column reads them."""
    m, n = len(a), w.shape[1]
    out = np.empty((m, n), dtype=np.int64)
    step = max(CHUNK // (gemm.folds(len(w), params.tile_k) * _block(params)), 1)
    for cols in (slice(n0, n0 + step) for n0 in range(0, n, step)):
        weights = _expanded_weights(params, w[:, cols])
        for rows in (slice(m0, m0 + step) for m0 in range(0, m, step)):
            acts = _expanded_acts(_quantized_tables(params, a[rows]))
            start = None if psum is None else psum[rows, cols]
            out[rows, cols] = gemm.accumulate_blocks(
                acts, weights, start, _block(params), params.acc_bits, params.overflow
            )
    return out


def _block(params: TmacParams) -> int:
    """Expanded values of a tile: the entries of its tables, and the sum of its activations."""
    return params.rows * ENTRIES + 1


@dataclass(frozen=True)
class _Tables:
    """What the edge makes of activations, T tiles of them; integers all."""

    entries: Reals
    """[M, T, rows * ENTRIES], quantized"""
    most: Reals
    """max [M, T]"""
    sums: Reals
    """of activations [M, T]"""


def _quantized_tables(params: TmacParams, lanes: Ints) -> _Tables:
    m, count = len(lanes), gemm.folds(lanes.shape[1], params.tile_k)
    x = gemm.pad_to(lanes, (m, count * params.tile_k)).astype(np.float32).reshape(m, count, params.rows, MU)
    most = np.abs(x).sum(axis=-1).max(axis=-1)
    entries = _half_tables(x).reshape(m, count, -1)
    # at most 8 bits times 512: the quotient of single precision is nearer than 1 / 1024 to the true one, and ties are
    # exact, so that it rounds as the true one would
    quotient = np.abs(entries) * np.float32(params.levels) / np.maximum(most, 1)[:, :, None]
    return _Tables(np.copysign(np.floor(quotient + np.float32(0.5)), entries), most, x.sum(axis=(2, 3)))


def _half_tables(x: Reals) -> Reals:
    """Sums of four [..., ENTRIES]: entry k adds x_i where bit i of k is set and subtracts it where not."""
    entries: Reals = -x.sum(axis=-1, keepdims=True)
    for i in range(MU - 1):
        entries = np.concatenate([entries, entries + 2 * x[..., i : i + 1]], axis=-1)
    return entries


def _expanded_acts(tables: _Tables) -> Reals:
    """[M, T * block]"""
    scaled = tables.entries * tables.most[..., None]
    expanded: Reals = np.concatenate([scaled, tables.sums[..., None]], axis=-1).reshape(len(scaled), -1)
    return expanded


def _expanded_weights(params: TmacParams, w: Ints) -> Reals:
    """[T * block, N]: the sum of +-2^b over the planes whose key reads an entry; -Q for the sum of activations."""
    keys, n = _keys(params, w), w.shape[1]
    tables, cols = np.arange(keys.shape[1])[:, None], np.arange(n)
    reads = np.zeros((keys.shape[1], ENTRIES, n), dtype=np.float32)
    for plane, key in enumerate(keys):
        flipped = key >> (MU - 1)
        index = (key ^ -flipped) & (ENTRIES - 1)
        reads[tables, index, cols] += ((1 - 2 * flipped) << plane).astype(np.float32)
    reads = reads.reshape(-1, params.rows * ENTRIES, n)
    sums = np.full((len(reads), 1, n), -params.levels, dtype=np.float32)
    expanded: Reals = np.concatenate([reads, sums], axis=1).reshape(-1, n)
    return expanded


def _keys(params: TmacParams, w: Ints) -> Ints:
    """Keys [planes, T * rows, N] of weights [K, N], with zero weights behind them up to whole tiles."""
    count, n = gemm.folds(len(w), params.tile_k), w.shape[1]
    codes = gemm.pad_to(w, (count * params.tile_k, n)) + (1 << (params.weight_bits - 1))
    codes = codes.reshape(count * params.rows, MU, n)
    bits = np.arange(MU)[:, None]
    return np.stack([((codes >> plane & 1) << bits).sum(axis=1) for plane in range(params.weight_bits)])


def timing(params: TmacParams, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape."""
    return columns.timing(params.columns, M, K, N)


def ops(params: TmacParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM without stalls.

    Building and reading are counted for the useful lanes, a rounding or comparison as an addition, the table of
    reciprocals as a multiplexer. A register is counted in every cycle in which this RTL clocks it: nothing is gated but
    keys, written while they are loaded, and with `serial` the first stage, written once a vector.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    p, k_folds, n_folds = params, gemm.folds(K, params.tile_k), gemm.folds(N, params.cols)
    cycles, outputs = timing(p, M, K, N).total_cycles, M * N * k_folds
    vectors, reads = M * k_folds * n_folds, M * gemm.folds(K, MU) * N * p.weight_bits
    pes = p.cols * (1 if p.serial else p.weight_bits)
    edge = _quantizing_ops if p.quantized else _plain_ops
    return (
        *edge(p, vectors, M * gemm.folds(K, MU) * n_folds, vectors if p.serial else cycles, cycles),
        Op("mux", reads, p.entry_bits, ENTRIES),
        Op("add", reads, p.read_bits),
        Op("add", outputs * p.weight_bits, p.planes_bits),
        Op("reg", cycles * pes, p.read_bits),
        Op("reg", cycles * p.cols, p.planes_bits),
        *(_scaling_ops(p, outputs * (p.weight_bits if p.serial else 1), vectors, cycles) if p.quantized else ()),
        *(_serial_ops(p, reads, outputs * p.weight_bits, cycles) if p.serial else ()),
        Op("reg", k_folds * n_folds * p.rows * p.rows * p.cols, MU * p.weight_bits),
        *columns.edge_ops(p.columns, M, K, N, 2),
    )


def _plain_ops(p: TmacParams, vectors: int, tables: int, first: int, cycles: int) -> tuple[Op, ...]:
    """Exact tables, and minus the sum of activations; the first stage is written `first` times."""
    return (
        Op("add", tables * (MU - 1 + ENTRIES - 1), p.entry_bits),
        Op("add", tables, p.act_sum_bits),
        # all sums of +-x have one parity: the lowest bit is kept once a table
        Op("reg", first * p.rows * ENTRIES, p.entry_bits - 1),
        Op("reg", first * p.rows, 1),
        Op("reg", cycles * 2, p.act_sum_bits),
    )


def _quantizing_ops(p: TmacParams, vectors: int, tables: int, first: int, cycles: int) -> tuple[Op, ...]:
    """Magnitudes, max, reciprocal, products, quantized tables, and the sum of activations."""
    return (
        Op("add", tables * (2 * MU - 1), p.most_bits),
        *((Op("add", vectors * (p.rows - 1), p.most_bits),) if p.rows > 1 else ()),
        Op("mux", vectors, p.reciprocal_bits, p.largest + 1),
        Op("mul", tables * MU, p.act_bits, p.reciprocal_bits),
        Op("add", tables * (MU + ENTRIES - 1), p.product_bits),
        Op("add", tables * MU, p.act_sum_bits),
        Op("reg", first * p.tile_k, p.act_bits),
        Op("reg", first * p.rows, p.most_bits),
        Op("reg", cycles * 2 * p.tile_k, p.act_bits),
        Op("reg", cycles, p.reciprocal_bits),
        Op("reg", cycles * p.tile_k, p.product_bits),
        Op("reg", cycles * p.rows * ENTRIES, p.entry_bits),
        Op("reg", cycles * 6, p.most_bits + p.act_sum_bits),
    )


def _scaling_ops(p: TmacParams, products: int, vectors: int, cycles: int) -> tuple[Op, ...]:
    """Planes' sums times max, and minus the sum of activations times Q."""
    return (
        Op("mul", products, p.planes_bits, p.most_bits),
        Op("add", vectors, p.act_sum_bits + p.levels.bit_length()),
        Op("reg", cycles * p.cols, p.planes_bits + p.most_bits),
        Op("reg", cycles, p.act_sum_bits + p.levels.bit_length()),
    )


def _serial_ops(p: TmacParams, reads: int, outputs: int, cycles: int) -> tuple[Op, ...]:
    """Choosing a key, shifting what it reads, and the number of the plane on its way there."""
    bits = (p.weight_bits - 1).bit_length()
    return (
        Op("mux", reads, MU, p.weight_bits),
        Op("shift", outputs, p.planes_bits, p.weight_bits - 1),
        Op("reg", cycles * (p.table_stage + 1), bits),
    )


def beats(params: TmacParams, A: NDArray[Any], W: NDArray[Any], psum: Any = None) -> Beats:
    """Input beats of a whole GEMM: `i_weight` {key[cols][planes]}, the keys of a row of tables each, the tile's last
    row first, and `i_act` {act[rows * 4], psum[cols], last}. Folds: N outside, K inside.

    Bit i of a key is that of the weight of activation i. Unused rows and columns hold the key of zero weights.
    """
    w = check_codes("W", W, params.weight_bits)
    return columns.beats_of(
        params.columns,
        A,
        W.shape[1],
        psum,
        lambda rows, cols: _load(params, gemm.pad_to(w[rows, cols], (params.tile_k, params.cols))),
        partial(_tile_golden, params),
    )


def _load(params: TmacParams, w: Ints) -> Mapping[str, Ints]:
    return {"key": _keys(params, w).transpose(1, 2, 0)[::-1]}


def _tile_golden(params: TmacParams, tile: Mapping[str, Ints], act: Any, psum: Any) -> Result:
    bits = tile["key"][::-1, None] >> np.arange(MU)[:, None, None] & 1
    codes = (bits << np.arange(params.weight_bits)).sum(axis=-1).reshape(params.tile_k, params.cols)
    return golden(params, act, codes - (1 << (params.weight_bits - 1)), psum)


def trace(params: TmacParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    return columns.trace_of(params.columns, stimulus, partial(_tile_golden, params))


def result(params: TmacParams, operands: tuple[Any, ...], out_beats: Mapping[str, Ints]) -> Result:
    """Y[M, N] from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    return columns.result(params.columns, shape_of(params, *operands), out_beats)


def sample(
    params: TmacParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Any, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given."""
    array = params.columns
    m, k, n = columns.random_sizes(array, rng, M, K, N)
    a = columns.random_operand(array, rng, m, k)
    w = gemm.random_codes(rng, (k, n), *signed_range(params.weight_bits))
    return (a, w, columns.random_psum(array, rng, m, n)) if M is None and rng.integers(2) else (a, w)


def weight_format(params: TmacParams) -> tuple[str, dict[str, Any]]:
    """Symmetric integers, one scale a column."""
    require(params.weight_bits > 1, "tmac: formats hold integers of 2 bits and more, not 1")
    return gemm.weight_format(params)


def operand(params: TmacParams, quantized: Any) -> tuple[Ints, Fraction]:
    """W from quantized weights [K, N]: their integer codes."""
    return gemm.operand(params, quantized)[0], Fraction(1, params.scale)


def from_integers(params: TmacParams, W: NDArray[Any]) -> tuple[Ints, Fraction]:
    """A plain integer matrix is W as it is; the output counts parts of A @ W, halves where tables are exact."""
    return check_codes("W", W, params.weight_bits), Fraction(1, params.scale)
