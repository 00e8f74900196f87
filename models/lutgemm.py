"""LUT-GEMM: binary-coded weights look up signed sums of activations instead of multiplying.

W = sum_i alpha_i b_i + z with b_i in {-1, +1} (binary-coded quantization, BCQ; Park et al., LUT-GEMM). For every `mu`
activations a table holds all sums +-x_1 .. +-x_mu; `mu` weight bits of one bit plane are the key that reads it. The
half table keeps the keys whose top bit is 0, since lut[~key] = -lut[key] (as FIGLUT and LUT Tensor Core do).

The array: `rows` tables, built once at the edge by a doubling tree; in each column a read-accumulate unit (RAC) a bit
plane, which reads every row's table and adds; one multiplication by alpha a bit plane (and one of the activations' sum
by z); and the addition to the incoming partial sum. Three register stages before that: tables, sums, products.

- `registered`: the tables stand in registers; otherwise the activations do, and the tables behind them are gates.
- `readers` RACs share one copy of a table's register (FIGLUT: 32); none: all of them.
- `serial`: one RAC a column goes through the bit planes, one a cycle, so that a vector takes `weight_bits` cycles.
- Activations are integers, or FP16 aligned to integers of `act_bits` (models/columns.py).

`LutArray` and the functions on it are the part that any look-up array of this shape shares; what scales the plane
sums is what sets such units apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import columns, compared, gemm
from models.bits import Overflow, Rounding, check_codes, signed_bits, signed_range, unsigned_range
from models.columns import Columns, check_columns, check_group, edge_ops, shape_of
from models.floats import ActFormat
from models.formats import uniform_as_bcq
from models.unit import Beats, InputError, Ints, Op, Published, Stimulus, Timing, Trace, check_range, require

__all__ = ["shape_of"]

STAGES = 3
"""tables, sums, products"""
TABLE_FIELDS = ("half_table", "registered", "serial", "readers")
"""parameters that say how tables are held and read, and change no sum"""


@dataclass(frozen=True, kw_only=True)
class BcqWeights:
    """W[K, N] in binary code with integer scales: W = sum_i scales[i] * (2 bit_i(codes) - 1) + offsets.

    `codes` int64 [K, N], bit i of a code is bit plane i; `scales` int64 [planes, G, N] and `offsets` int64 [G, N],
    one for each group of `group` consecutive k. A scale may be 0: a plane that adds nothing, or a column of zeros.
    """

    codes: Ints
    scales: Ints
    offsets: Ints
    group: int

    def __post_init__(self) -> None:
        for name, axes in (("codes", 2), ("scales", 3), ("offsets", 2)):
            values = np.asarray(getattr(self, name))
            fits = np.issubdtype(values.dtype, np.integer) and values.ndim == axes
            require(fits, f"{name}: integers with {axes} axes are needed, not {values.dtype} {values.shape}")
            object.__setattr__(self, name, values.astype(np.int64, copy=False))
        whole = isinstance(self.group, (int, np.integer)) and not isinstance(self.group, bool)
        require(whole and self.group >= 1, f"group must be a whole number of at least 1, not {self.group!r}")
        k, n = self.codes.shape
        groups = -(-k // self.group)
        require(self.scales.shape[1:] == (groups, n), f"scales are {self.scales.shape}, not [planes, {groups}, {n}]")
        require(self.offsets.shape == (groups, n), f"offsets are {self.offsets.shape}, not [{groups}, {n}]")

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)"""
        return (self.codes.shape[0], self.codes.shape[1])

    @property
    def integers(self) -> Ints:
        """W as plain integers [K, N]."""
        k, n = self.codes.shape
        groups, group = len(self.offsets), min(self.group, k)
        codes = gemm.pad_to(self.codes, (groups * group, n)).reshape(groups, group, n)
        # a plane's bit is worth -scale where 0 and 2 * scale more where 1
        total = np.repeat((self.offsets - self.scales.sum(axis=0))[:, None], group, axis=1)
        part = np.empty(codes.shape, dtype=np.int64)  # one buffer: fresh pages cost more than the arithmetic
        for plane, scale in enumerate(self.scales):
            np.right_shift(codes, plane, out=part)
            part &= 1
            part *= 2 * scale[:, None]
            total += part
        return total.reshape(-1, n)[:k]


def uniform_weights(W: NDArray[Any], planes: int) -> BcqWeights:
    """Two's-complement integers of `planes` bits as binary code worth exactly 2 W = sum_i 2^i b_i - 1."""
    check_codes("W", W, planes)
    codes, scales, offset = uniform_as_bcq(W, planes)
    k, n = codes.shape
    return BcqWeights(
        codes=codes,
        scales=np.tile(scales[:, None, None], (1, 1, n)),
        offsets=np.full((1, n), offset, dtype=np.int64),
        group=k,
    )


@dataclass(frozen=True, kw_only=True)
class LutArray:
    """Geometry of the tables and their readers, with the widths that follow from it."""

    rows: int
    cols: int
    mu: int
    act_bits: int
    planes: int
    half_table: bool
    registered: bool
    serial: bool
    readers: int | None

    @property
    def tile_k(self) -> int:
        return self.rows * self.mu

    @property
    def racs(self) -> int:
        """Read-accumulate units of a column."""
        return 1 if self.serial else self.planes

    @property
    def copies(self) -> int:
        """Of each table's register."""
        return 1 if self.readers is None else self.racs * self.cols // self.readers

    @property
    def entries(self) -> int:
        """Entries of one table."""
        return 1 << (self.mu - self.half_table)

    @property
    def table_bits(self) -> int:
        """Width of an entry: mu activations of the most negative value, with either sign."""
        return _width(self.mu, self.act_bits)

    @property
    def packed_bits(self) -> int:
        """Width of a whole table."""
        return packed_bits(self.entries, self.table_bits)

    @property
    def sum_bits(self) -> int:
        """Width of a plane's sum over all rows."""
        return _width(self.tile_k, self.act_bits)


def _width(count: int, bits: int) -> int:
    """Of the sum of `count` values of `bits` bits, each with either sign."""
    bound = count << (bits - 1)
    return signed_bits(-bound, bound)


def packed_bits(entries: int, table_bits: int) -> int:
    """Width of a table: all sums of +-x have one parity, so the lowest bit is kept once for all entries."""
    return entries * (table_bits - 1) + 1


def check_array(name: str, params: Any) -> None:
    """Refuse the parameters that every look-up array shares where they cannot be built."""
    check_columns(name, params)
    check_range(name, params, rows=(1, 64), mu=(1, 8), weight_bits=(1, 8))
    for field in ("half_table", "registered", "serial"):
        value = getattr(params, field)
        require(isinstance(value, bool), f"{name}: {field} is true or false, not {value!r}")
    rule = f"{name}: serial=true goes through planes in turn and needs weight_bits of at least 2"
    require(not params.serial or params.weight_bits > 1, f"{rule}, not 1; or take serial=false")
    if params.group_size is not None:
        check_range(name, params, group_size=(1, 1 << 20))
    check_group(name, params.group_size, params.rows * params.mu, "rows * mu")
    if params.readers is not None:
        _check_readers(name, params)


def _check_readers(name: str, params: Any) -> None:
    """A copy of the tables serves whole columns, all copies as many."""
    racs = 1 if params.serial else params.weight_bits
    check_range(name, params, readers=(1, racs * params.cols))
    choices = [racs * c for c in range(1, params.cols + 1) if params.cols % c == 0]
    near = min(choices, key=lambda c: abs(c - params.readers))
    rule = f"{name}: readers must be the read-accumulate units of a column ({racs}) times a divisor of cols"
    require(params.readers in choices, f"{rule}, not {params.readers}; nearest: {near}")


def lut_array(params: Any) -> LutArray:
    """The array of a params object that has its fields."""
    return LutArray(
        rows=params.rows,
        cols=params.cols,
        mu=params.mu,
        act_bits=params.act_bits,
        planes=params.weight_bits,
        half_table=params.half_table,
        registered=params.registered,
        serial=params.serial,
        readers=params.readers,
    )


def lut_columns(params: Any, largest_scale: int) -> Columns:
    """The columns of an array that scales the plane sums, by at most `largest_scale` each; the scale words, planes + 1
    a column (alphas, then z), enter a chain beside the keys."""
    array: LutArray = params.array
    bound = ((array.planes + 1) * array.tile_k << (array.act_bits - 1)) * largest_scale
    return Columns(
        tile_k=array.tile_k,
        cols=array.cols,
        act_format=params.act_format,
        act_bits=array.act_bits,
        rounding=params.rounding,
        acc_bits=params.acc_bits,
        overflow=params.overflow,
        stages=STAGES,
        load_beats=max(array.rows, array.planes + 1),
        total_bits=signed_bits(-bound, bound),
        interval=array.planes if array.serial else 1,
    )


@dataclass(frozen=True, kw_only=True)
class LutGemmParams:
    """Geometry and widths. `weight_bits` is the number of bit planes; `scale_bits` the width of alpha and z (signed).

    `group_size` is how many consecutive k share scales (none: all). Scales belong to a loaded tile, so a group is a
    whole number of tiles of rows * mu.
    """

    rows: int = 8
    cols: int = 8
    mu: int = 4
    act_format: ActFormat = ActFormat.INT
    act_bits: int = 8
    rounding: Rounding = Rounding.NEAREST_EVEN
    weight_bits: int = 4
    group_size: int | None = None
    half_table: bool = True
    registered: bool = True
    serial: bool = False
    readers: int | None = None
    scale_bits: int = 8
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP

    def __post_init__(self) -> None:
        check_range("lutgemm", self, scale_bits=(2, 16))
        check_array("lutgemm", self)

    @property
    def array(self) -> LutArray:
        return lut_array(self)

    @property
    def columns(self) -> Columns:
        return lut_columns(self, 1 << (self.scale_bits - 1))

    @property
    def word_bits(self) -> int:
        """Width of a scale word."""
        return self.scale_bits

    @property
    def product_bits(self) -> int:
        """Width of alpha times a plane's sum."""
        bound = (self.array.tile_k << (self.act_bits - 1)) << (self.scale_bits - 1)
        return signed_bits(-bound, bound)


PRESETS = {
    "default": LutGemmParams(),
    "full-table": LutGemmParams(rows=2, cols=3, mu=3, half_table=False, weight_bits=2),
    "smallest": LutGemmParams(rows=1, cols=1, mu=1, act_bits=2, weight_bits=1, scale_bits=2, acc_bits=8),
    "grouped": LutGemmParams(rows=2, cols=2, mu=2, group_size=8, weight_bits=3, act_bits=4, acc_bits=24),
    "narrow-saturate": LutGemmParams(
        rows=2, cols=2, mu=4, weight_bits=2, scale_bits=4, acc_bits=13, overflow=Overflow.SATURATE
    ),
    "mu-8": LutGemmParams(rows=1, cols=2, mu=8, act_bits=4, weight_bits=1),
    "gates": LutGemmParams(rows=2, cols=2, mu=4, weight_bits=2, registered=False),
    "readers": LutGemmParams(rows=2, cols=4, mu=2, weight_bits=2, readers=4),
    "serial": LutGemmParams(rows=2, cols=3, mu=3, weight_bits=3, serial=True),
    "serial-gates": LutGemmParams(
        rows=2, cols=2, mu=2, weight_bits=2, serial=True, registered=False, readers=1, acc_bits=14, half_table=False
    ),
    "fp16": LutGemmParams(rows=2, cols=2, mu=4, act_format=ActFormat.FP16, act_bits=13),
    "fp16-serial": LutGemmParams(
        rows=1, cols=3, mu=4, act_format=ActFormat.FP16, act_bits=8, serial=True, weight_bits=3, group_size=8
    ),
}

_FIGLUT = Published(source="G. Park et al., FIGLUT, HPCA 2025, abstract: TOPS/W at W3", energy_efficiency=1.59)
_WHY_NONE = "No paper's ratio: FIGLUT and LUT Tensor Core compare themselves with other engines of low-bit weights."
_WHY = (
    "FIGLUT's ratio, at 3 bits, is over another accelerator of low-bit weights, with memories in both. Ours is the "
    "array alone over multipliers of as many MACs a cycle; tables are built again in each array of 8 columns, where "
    "FIGLUT serves 32 readers with one; no wires, and energy from counted operations."
)


def _designs(**changes: Any) -> dict[int, LutGemmParams]:
    return {bits: LutGemmParams(weight_bits=bits, **changes) for bits in compared.WIDTHS}


COMPARED = (
    *compared.low_bit("lutgemm", _designs(), families=(compared.LUT,), differs=_WHY_NONE),
    *compared.low_bit(
        "lutgemm, wide",
        {4: LutGemmParams(cols=32)},
        families=(compared.LUT,),
        differs="No paper's ratio: 32 columns, so that the tables and the activations' sum serve four times as many.",
    ),
    *compared.low_bit(
        "lutgemm, serial",
        {4: LutGemmParams(cols=32, serial=True)},
        families=(compared.LUT,),
        differs="No paper's ratio: planes in turn, in as many columns more that the throughput is the same.",
    ),
    *compared.low_bit(
        "lutgemm FP16",
        _designs(act_format=ActFormat.FP16, act_bits=12),
        act_format=ActFormat.FP16,
        families=(compared.LUT,),
        published={3: _FIGLUT},
        differs=_WHY,
    ),
)


def value_free(params: LutGemmParams) -> tuple[str, ...]:
    """Columns and how tables are held and read; where tiles of K change no sum also their sizes."""
    return (*TABLE_FIELDS, "cols", *(("rows", "mu") if params.columns.wraps else ()))


def golden(params: LutGemmParams, A: NDArray[Any], W: BcqWeights, psum: Any = None) -> Any:
    """Y[M, N] = psum + A @ W.integers, tile by tile of rows * mu in K.

    The total of a tile is exact; int64 with integers, fitted to `acc_bits` where it is added to the accumulator;
    float32 with FP16 activations, rounded as models/columns.py says. `psum` [M, N] (a bias) is where accumulation
    starts; zero by default.
    """
    _check_weights(params, W)
    return array_golden(params, A, W, psum)


def array_golden(params: Any, A: NDArray[Any], W: BcqWeights, psum: Any) -> Any:
    """`golden` of any look-up array. Only the addition to the accumulator is not exact, so no table need be made."""
    gemm.check_operands(A, W.shape)
    check_codes("codes", W.codes, params.weight_bits, signed=False)
    return columns.golden(params.columns, A, W.integers, psum)


def _check_weights(params: LutGemmParams, W: BcqWeights) -> None:
    check_groups(params, W)
    check_codes("scales", W.scales, params.scale_bits)
    check_codes("offsets", W.offsets, params.scale_bits)


def check_planes(params: Any, W: Any) -> None:
    """Refuse weights that are not in binary code of the array's planes."""
    rule = f"W must be BcqWeights (from_integers and operand make them), not {type(W).__name__}"
    require(isinstance(W, BcqWeights), rule)
    require(len(W.scales) == params.weight_bits, f"W has {len(W.scales)} bit planes, the array {params.weight_bits}")


def check_groups(params: Any, W: BcqWeights) -> None:
    """Refuse weights whose planes or groups are not the array's."""
    check_planes(params, W)
    size = params.group_size or W.shape[0]
    require(
        W.group == size or W.shape[0] <= min(W.group, size),
        f"W has groups of {W.group}: the array has group_size={params.group_size}",
    )


def timing(params: Any, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM on any look-up array; `M`, `K`, `N` are ints or int64 arrays of one shape."""
    return columns.timing(params.columns, M, K, N)


def ops(params: LutGemmParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM: those of the array, and a multiplication a bit plane and one by z a column and tile."""
    outputs = M * N * gemm.folds(K, params.array.tile_k)
    scaling = Op("mul", outputs * (params.weight_bits + 1), params.array.sum_bits, params.scale_bits)
    return (*array_ops(params, M, K, N), scaling)


def array_ops(params: Any, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Table building, reads, sums and registers of any array that scales the plane sums, without stalls.

    Building and reading are counted for the useful lanes. A register is counted in every cycle in which this RTL clocks
    it: nothing is gated but keys and scale words, which are written while they are loaded, and what a vector that is
    worked on in several cycles brings.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    array: LutArray = params.array
    k_folds, n_folds = gemm.folds(K, array.tile_k), gemm.folds(N, array.cols)
    built, count = M * gemm.folds(K, array.mu) * n_folds, k_folds * n_folds
    reads = M * gemm.folds(K, array.mu) * N * array.planes
    cycles, load_beats = timing(params, M, K, N).total_cycles, params.columns.load_beats
    words = array.planes + 1
    return (
        *table_ops(array, built, M * count if array.serial else cycles),
        *((Op("mux", reads, array.table_bits - 1, array.entries),) if array.entries > 1 else ()),
        Op("add", reads, array.sum_bits),
        Op("add", built, array.sum_bits),
        *((Op("mux", reads, array.mu, array.planes),) if array.serial and array.planes > 1 else ()),
        Op("reg", cycles * (array.racs * array.cols + 1), array.sum_bits),
        Op("reg", cycles * (array.racs + 1) * array.cols, params.product_bits),
        Op("reg", count * load_beats * array.rows * array.cols, array.planes * array.mu),
        Op("reg", count * load_beats * words * array.cols, params.word_bits),
        *edge_ops(params.columns, M, K, N, words),
    )


def table_ops(array: LutArray, built: int, clocked: int) -> tuple[Op, ...]:
    """Of `built` tables, whose registers are clocked in `clocked` cycles."""
    building = Op("add", built * (array.mu - 1 + array.entries - 1), array.table_bits)
    count = clocked * array.rows * array.copies
    if not array.registered:
        return (building, Op("reg", count * array.mu, array.act_bits))
    return (building, Op("reg", count, array.packed_bits))


def beats(params: LutGemmParams, A: NDArray[Any], W: BcqWeights, psum: Any = None) -> Beats:
    """Input beats of a whole GEMM: `i_weight` {key[cols][planes], scale[cols]} and `i_act` {act[rows * mu],
    psum[cols], last}.

    A tile's keys enter last row first; its scale words alpha of plane 0, 1, ... and then z, in its last planes + 1
    beats.
    """
    _check_weights(params, W)
    return array_beats(params, A, W, psum, lambda words: words, lambda words: words)


def array_beats(
    params: Any,
    A: NDArray[Any],
    W: BcqWeights,
    psum: Any,
    encode: Callable[[Ints], Ints],
    decode: Callable[[Ints], Ints],
) -> Beats:
    """`beats` of any array that scales the plane sums; `encode` turns integer scales into scale words (perhaps adding
    an axis)."""
    load = partial(_tile_beats, params, W, encode)
    return columns.beats(params.columns, A, W.shape[1], psum, load, partial(_held, params, decode))


def _held(params: Any, decode: Callable[[Ints], Ints], tile: Mapping[str, Ints]) -> Ints:
    return tile_weights(params.array, tile, decode).integers


def _tile_beats(
    params: Any, W: BcqWeights, encode: Callable[[Ints], Ints], rows: slice, cols: slice
) -> Mapping[str, Ints]:
    array: LutArray = params.array
    group = rows.start // W.group
    words = np.concatenate([W.scales[:, group, cols], W.offsets[None, group, cols]])
    words = gemm.pad_to(words, (array.planes + 1, array.cols))
    load = params.columns.load_beats
    return {"key": _at_end(tile_keys(array, W.codes[rows, cols])[::-1], load), "scale": _at_end(encode(words), load)}


def tile_keys(array: LutArray, codes: Ints) -> Ints:
    """Keys [rows, cols, planes] of a tile's codes; lanes that it does not fill hold key 0."""
    padded = gemm.pad_to(codes, (array.tile_k, array.cols))
    bits = padded.reshape(array.rows, array.mu, array.cols)[..., None] >> np.arange(array.planes) & 1
    keys: Ints = (bits << np.arange(array.mu)[:, None, None]).sum(axis=1)
    return keys


def codes_of(array: LutArray, keys: Ints) -> Ints:
    """Codes [tile_k, cols] of keys [rows, cols, planes]; InputError for a key that no table has an entry for."""
    check_codes("key", keys, array.mu, signed=False)
    bits = keys[:, None] >> np.arange(array.mu)[:, None, None] & 1
    codes: Ints = (bits << np.arange(array.planes)).sum(axis=-1)
    return codes.reshape(array.tile_k, array.cols)


def _at_end(values: Ints, length: int) -> Ints:
    """`values` with zeros before them up to `length` beats: what enters first leaves the chain again."""
    return np.concatenate([np.zeros((length - len(values), *values.shape[1:]), dtype=np.int64), values])


def tile_weights(array: LutArray, tile: Mapping[str, Ints], decode: Callable[[Ints], Ints]) -> BcqWeights:
    """The weights that an array holds after the load beats of `tile`."""
    codes = codes_of(array, tile["key"][-array.rows :][::-1])
    words = decode(tile["scale"][-(array.planes + 1) :])
    return BcqWeights(codes=codes, scales=words[:-1, None], offsets=words[-1:], group=array.tile_k)


def trace(params: LutGemmParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    return array_trace(params, stimulus, lambda words: words)


def array_trace(params: Any, stimulus: Stimulus, decode: Callable[[Ints], Ints]) -> Trace:
    """`trace` of any array that scales the plane sums; `decode` turns its scale words into integer scales."""
    return columns.trace(params.columns, stimulus, partial(_held, params, decode))


def result(params: Any, operands: tuple[Any, ...], out_beats: Mapping[str, Ints]) -> Any:
    """Y[M, N] of any look-up array from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    return columns.result(params.columns, shape_of(params, *operands), out_beats)


def sample(
    params: LutGemmParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Any, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given."""
    return array_sample(
        params, rng, (M, K, N), params.group_size, lambda s: gemm.random_codes(rng, s, *signed_range(params.scale_bits))
    )


def array_sample(
    params: Any,
    rng: np.random.Generator,
    shape: tuple[int | None, int | None, int | None],
    group: int | None,
    scales: Callable[[tuple[int, ...]], Ints],
) -> tuple[Any, ...]:
    """`sample` of any look-up array; `scales(shape)` draws scales that its words can hold."""
    p: Columns = params.columns
    m, k, n = columns.random_sizes(p, rng, *shape, group)
    size = group or k
    groups = -(-k // size)
    weights = BcqWeights(
        codes=gemm.random_codes(rng, (k, n), *unsigned_range(params.weight_bits)),
        scales=scales((params.weight_bits, groups, n)),
        offsets=scales((groups, n)),
        group=size,
    )
    a = columns.random_operand(p, rng, m, k)
    if shape[0] is None and rng.integers(2):
        return a, weights, columns.random_psum(p, rng, m, n)
    return a, weights


def weight_format(params: LutGemmParams) -> tuple[str, dict[str, Any]]:
    """Binary code with fixed-point scales."""
    return "bcq", {"bits": params.weight_bits, "group": params.group_size, "scale_bits": params.scale_bits}


def operand(params: LutGemmParams, quantized: Any) -> tuple[BcqWeights, Fraction]:
    """W from quantized weights [K, N] in binary code; the output counts whole units."""
    weights = bcq_operand("lutgemm", quantized)
    _check_weights(params, weights)
    return weights, Fraction(1)


def bcq_operand(name: str, quantized: Any) -> BcqWeights:
    """Quantized weights [K, N] as integers that an array can load."""
    if getattr(quantized, "scale_codes", None) is None:
        raise InputError(f"{name}: weights need binary code (bcq) with integer scales")
    scales = quantized.scale_codes
    offsets = np.zeros(scales.shape[1:], dtype=np.int64) if quantized.offset_codes is None else quantized.offset_codes
    return BcqWeights(codes=quantized.codes, scales=scales, offsets=offsets, group=quantized.group)


def from_integers(params: LutGemmParams, W: NDArray[Any]) -> tuple[BcqWeights, Fraction]:
    """A plain integer matrix of `weight_bits` bits as W; the output then counts halves."""
    weights = uniform_weights(W, params.weight_bits)
    rule = f"lutgemm: integers of {params.weight_bits} bits need scale_bits of at least {params.weight_bits + 1}"
    require(params.scale_bits > params.weight_bits, f"{rule}, not {params.scale_bits}")
    return spread_groups(weights, params.group_size), Fraction(1, 2)


def spread_groups(weights: BcqWeights, group: int | None) -> BcqWeights:
    """Weights of one group with the same scales repeated for groups of the array's size."""
    if group is None:
        return weights
    k, n = weights.shape
    count = -(-k // group)
    return BcqWeights(
        codes=weights.codes,
        scales=np.broadcast_to(weights.scales, (len(weights.scales), count, n)),
        offsets=np.broadcast_to(weights.offsets, (count, n)),
        group=group,
    )
