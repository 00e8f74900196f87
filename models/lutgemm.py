"""LUT-GEMM: binary-coded weights look up signed sums of activations instead of multiplying.

W = sum_i alpha_i b_i + z with b_i in {-1, +1} (binary-coded quantization, BCQ; Park et al., LUT-GEMM). For every `mu`
activations a table holds all sums +-x_1 .. +-x_mu; `mu` weight bits of one bit plane are the key that reads it. The
half table keeps the keys whose top bit is 0, since lut[~key] = -lut[key] (as FIGLUT and LUT Tensor Core do).

The array: `rows` tables, built at the edge and shared by all columns; in each column one read a table and bit plane, a
sum of the reads over the rows, one multiplication by alpha a bit plane (and one of the activations' sum by z), and the
addition to the incoming partial sum. Four register stages: tables, sums, products, result.

`LutArray` and the functions on it are the part that any look-up array of this shape shares; what scales the plane
sums is what sets such units apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.bits import Overflow, check_codes, signed_bits, signed_range, unsigned_range
from models.formats import uniform_as_bcq
from models.unit import Beats, InputError, Ints, Op, Stimulus, Timing, Trace, check_choice, check_range, require

LATENCY = 4
"""tables, sums, products, result"""


@dataclass(frozen=True, kw_only=True)
class BcqWeights:
    """W[K, N] in binary code with integer scales: W = sum_i scales[i] * (2 bit_i(codes) - 1) + offsets.

    `codes` int64 [K, N], bit i of a code is bit plane i; `scales` int64 [planes, G, N] and `offsets` int64 [G, N],
    one for each group of `group` consecutive k. A product with W carries `frac_bits` fraction bits.
    """

    codes: Ints
    scales: Ints
    offsets: Ints
    group: int
    frac_bits: int = 0

    def __post_init__(self) -> None:
        for name, axes in (("codes", 2), ("scales", 3), ("offsets", 2)):
            values = np.asarray(getattr(self, name))
            fits = np.issubdtype(values.dtype, np.integer) and values.ndim == axes
            require(fits, f"{name}: integers with {axes} axes are needed, not {values.dtype} {values.shape}")
            object.__setattr__(self, name, values.astype(np.int64, copy=False))
        require(self.group >= 1, f"group must be at least 1, not {self.group}")
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
    """Two's-complement integers of `planes` bits as binary code, exactly: 2 W = sum_i 2^i b_i - 1, one fraction bit."""
    codes, scales, offset = uniform_as_bcq(W, planes)
    k, n = codes.shape
    return BcqWeights(
        codes=codes,
        scales=np.tile(scales[:, None, None], (1, 1, n)),
        offsets=np.full((1, n), offset, dtype=np.int64),
        group=k,
        frac_bits=1,
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

    @property
    def tile_k(self) -> int:
        return self.rows * self.mu

    @property
    def entries(self) -> int:
        """Entries of one table."""
        return 1 << (self.mu - self.half_table)

    @property
    def table_bits(self) -> int:
        """Width of an entry: mu activations of the most negative value, with either sign."""
        bound = self.mu << (self.act_bits - 1)
        return signed_bits(-bound, bound)

    @property
    def sum_bits(self) -> int:
        """Width of a plane's sum over all rows."""
        bound = self.tile_k << (self.act_bits - 1)
        return signed_bits(-bound, bound)

    @property
    def geometry(self) -> gemm.Stationary:
        """Keys enter row by row while scale words enter a chain beside them: planes + 1 words (alphas, then z)."""
        return gemm.Stationary(
            tile_k=self.tile_k, tile_n=self.cols, load_beats=max(self.rows, self.planes + 1), latency=LATENCY
        )


def check_array(name: str, params: Any) -> None:
    """Refuse the parameters that every look-up array shares where they cannot be built."""
    check_range(name, params, rows=(1, 64), cols=(1, 256), mu=(1, 8), act_bits=(2, 16), weight_bits=(1, 8))
    check_range(name, params, acc_bits=(2, 48))
    require(isinstance(params.half_table, bool), f"{name}: half_table is true or false, not {params.half_table!r}")
    check_choice(name, params, overflow=Overflow)
    if params.group_size is not None:
        check_range(name, params, group_size=(1, 1 << 20))
        tile = params.rows * params.mu
        near = max(round(params.group_size / tile), 1) * tile
        rule = f"{name}: group_size must be a multiple of rows * mu = {tile}"
        require(params.group_size % tile == 0, f"{rule}, not {params.group_size}; nearest: {near}")


def lut_array(params: Any) -> LutArray:
    """The array of a params object that has its fields."""
    return LutArray(
        rows=params.rows,
        cols=params.cols,
        mu=params.mu,
        act_bits=params.act_bits,
        planes=params.weight_bits,
        half_table=params.half_table,
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
    act_bits: int = 8
    weight_bits: int = 4
    group_size: int | None = None
    half_table: bool = True
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
}


def golden(params: LutGemmParams, A: NDArray[Any], W: BcqWeights, psum: Ints | None = None) -> Ints:
    """Y[M, N] int64 = psum + A @ W.integers, tile by tile of rows * mu in K.

    The sum of a tile is exact; it is fitted to `acc_bits` where it is added to the accumulator. `psum` [M, N] (a
    bias) is where accumulation starts; zero by default. Y carries `W.frac_bits` fraction bits.
    """
    _check_weights(params, W)
    return array_golden(params, A, W, psum)


def array_golden(params: Any, A: NDArray[Any], W: BcqWeights, psum: Ints | None) -> Ints:
    """`golden` of any look-up array. Only the addition to the accumulator can overflow, so no table need be made."""
    gemm.check_operands(A, W.shape)
    a, w = check_codes("A", A, params.act_bits), W.integers
    check_codes("codes", W.codes, params.weight_bits, signed=False)
    if psum is not None:
        require(psum.shape == (A.shape[0], W.shape[1]), f"psum is {psum.shape}, not {(A.shape[0], W.shape[1])}")
        psum = check_codes("psum", psum, params.acc_bits)
    return gemm.accumulate_blocks(a, w, psum, params.array.tile_k, params.acc_bits, params.overflow)


def _check_weights(params: LutGemmParams, W: BcqWeights) -> None:
    check_groups(params, W)
    check_codes("scales", W.scales, params.scale_bits)
    check_codes("offsets", W.offsets, params.scale_bits)


def check_groups(params: Any, W: BcqWeights) -> None:
    """Refuse weights whose planes or groups are not the array's."""
    require(len(W.scales) == params.weight_bits, f"W has {len(W.scales)} bit planes, the array {params.weight_bits}")
    size = params.group_size or W.shape[0]
    require(
        W.group == size or W.shape[0] <= min(W.group, size),
        f"W has groups of {W.group}: the array has group_size={params.group_size}",
    )


def timing(params: Any, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM on any look-up array; `M`, `K`, `N` are ints or int64 arrays of one shape."""
    return gemm.stationary_timing(params.array.geometry, M, K, N)


def ops(params: LutGemmParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM: those of the array, and a multiplication a bit plane and one by z a column and tile."""
    outputs = M * N * gemm.folds(K, params.array.tile_k)
    scaling = Op("mul", outputs * (params.weight_bits + 1), params.array.sum_bits, params.scale_bits)
    return (*array_ops(params, M, K, N), scaling)


def array_ops(params: Any, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Table building, reads, sums and registers of any look-up array, without stalls.

    Building and reading are counted for the useful lanes. A register is counted in every cycle in which this RTL clocks
    it: nothing is gated but keys and scale words, which are written while they are loaded.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    array: LutArray = params.array
    k_folds, n_folds = gemm.folds(K, array.tile_k), gemm.folds(N, array.cols)
    tables, count = M * gemm.folds(K, array.mu) * n_folds, k_folds * n_folds
    reads, outputs = M * gemm.folds(K, array.mu) * N * array.planes, M * N * k_folds
    cycles = gemm.stationary_timing(array.geometry, M, K, N).total_cycles
    words = array.planes + 1
    return (
        Op("add", tables * (array.mu - 1 + array.entries - 1), array.table_bits),
        Op("mux", reads, array.table_bits, array.entries),
        Op("add", reads, array.sum_bits),
        Op("add", M * gemm.folds(K, array.mu) * n_folds, array.sum_bits),
        Op("add", outputs * words, params.acc_bits),
        Op("reg", cycles * array.rows * array.entries, array.table_bits - 1),
        Op("reg", cycles * array.rows, 1),  # all sums of +-x have one parity: the lowest bit is kept once a table
        Op("reg", cycles * (array.planes * array.cols + 1), array.sum_bits),
        Op("reg", cycles * words * array.cols, params.product_bits),
        Op("reg", cycles * LATENCY * array.cols, params.acc_bits),
        Op("reg", count * array.geometry.load_beats * array.rows * array.cols, array.planes * array.mu),
        Op("reg", count * array.geometry.load_beats * words * array.cols, params.word_bits),
    )


def beats(params: LutGemmParams, A: NDArray[Any], W: BcqWeights, psum: Ints | None = None) -> Beats:
    """Input beats of a whole GEMM: `i_weight` {key[cols][planes], scale[cols]} and `i_act` {act[rows * mu],
    psum[cols], last}.

    A tile's keys enter last row first; its scale words alpha of plane 0, 1, ... and then z, in its last planes + 1
    beats.
    """
    return array_beats(params, A, W, psum, lambda words: words, lambda words: words)


def array_beats(
    params: Any,
    A: NDArray[Any],
    W: BcqWeights,
    psum: Ints | None,
    encode: Callable[[Ints], Ints],
    decode: Callable[[Ints], Ints],
) -> Beats:
    """`beats` of any look-up array; `encode` turns integer scales into scale words (perhaps adding an axis)."""
    array: LutArray = params.array
    return gemm.stationary_beats(
        array.geometry,
        A.astype(np.int64),
        W.shape[1],
        psum,
        lambda rows, cols: _tile_beats(array, W, rows, cols, encode),
        lambda tile, act, sums: array_golden(params, act, tile_weights(array, tile, decode), sums),
    )


def _tile_beats(
    array: LutArray, W: BcqWeights, rows: slice, cols: slice, encode: Callable[[Ints], Ints]
) -> Mapping[str, Ints]:
    load = array.geometry.load_beats
    codes = gemm.pad_to(W.codes[rows, cols], (array.tile_k, array.cols))
    bits = codes.reshape(array.rows, array.mu, array.cols)[..., None] >> np.arange(array.planes) & 1
    keys = (bits << np.arange(array.mu)[:, None, None]).sum(axis=1)
    group = rows.start // W.group
    words = np.concatenate([W.scales[:, group, cols], W.offsets[None, group, cols]])
    words = gemm.pad_to(words, (array.planes + 1, array.cols))
    return {"key": _at_end(keys[::-1], load), "scale": _at_end(encode(words), load)}


def _at_end(values: Ints, length: int) -> Ints:
    """`values` with zeros before them up to `length` beats: what enters first leaves the chain again."""
    return np.concatenate([np.zeros((length - len(values), *values.shape[1:]), dtype=np.int64), values])


def tile_weights(array: LutArray, tile: Mapping[str, Ints], decode: Callable[[Ints], Ints]) -> BcqWeights:
    """The weights that an array holds after the load beats of `tile`."""
    keys = tile["key"][-array.rows :][::-1]
    bits = keys[:, None] >> np.arange(array.mu)[:, None, None] & 1
    codes = (bits << np.arange(array.planes)).sum(axis=-1).reshape(array.tile_k, array.cols)
    words = decode(tile["scale"][-(array.planes + 1) :])
    return BcqWeights(codes=codes, scales=words[:-1, None], offsets=words[-1:], group=array.tile_k)


def trace(params: LutGemmParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    return array_trace(params, stimulus, lambda words: words)


def array_trace(params: Any, stimulus: Stimulus, decode: Callable[[Ints], Ints]) -> Trace:
    """`trace` of any look-up array; `decode` turns its scale words into integer scales."""
    array: LutArray = params.array
    return gemm.stationary_trace(
        array.geometry,
        stimulus,
        lambda tile, act, sums: array_golden(params, act, tile_weights(array, tile, decode), sums),
    )


def result(params: Any, operands: tuple[Any, ...], out_beats: Mapping[str, Ints]) -> Ints:
    """Y[M, N] of any look-up array from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    shape = shape_of(params, *operands)
    return gemm.stationary_result(params.array.geometry, (shape["M"], shape["K"], shape["N"]), out_beats)


def shape_of(params: Any, A: NDArray[Any], W: BcqWeights, psum: Ints | None = None) -> dict[str, int]:
    """The GEMM's M, K, N."""
    gemm.check_operands(A, W.shape)
    return {"M": A.shape[0], "K": A.shape[1], "N": W.shape[1]}


def sample(
    params: LutGemmParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Any, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given."""
    return array_sample(
        params, rng, M, K, N, lambda shape: gemm.random_codes(rng, shape, *signed_range(params.scale_bits))
    )


def array_sample(
    params: Any,
    rng: np.random.Generator,
    M: int | None,
    K: int | None,
    N: int | None,
    scales: Callable[[tuple[int, ...]], Ints],
) -> tuple[Any, ...]:
    """`sample` of any look-up array; `scales(shape)` draws scales that its words can hold."""
    array: LutArray = params.array
    sizes = gemm.random_shape(rng, 5, params.group_size or array.tile_k, array.cols)
    m, k, n = (given or drawn for given, drawn in zip((M, K, N), sizes, strict=True))
    group = params.group_size or k
    groups = -(-k // group)
    weights = BcqWeights(
        codes=gemm.random_codes(rng, (k, n), *unsigned_range(array.planes)),
        scales=scales((array.planes, groups, n)),
        offsets=scales((groups, n)),
        group=group,
    )
    a = gemm.random_codes(rng, (m, k), *signed_range(params.act_bits))
    if M is None and rng.integers(2):
        return a, weights, gemm.random_codes(rng, (m, n), *signed_range(params.acc_bits))
    return a, weights


def weight_format(params: LutGemmParams) -> tuple[str, dict[str, Any]]:
    """Binary code with fixed-point scales."""
    return "bcq", {"bits": params.weight_bits, "group": params.group_size, "scale_bits": params.scale_bits}


def operand(params: LutGemmParams, quantized: Any) -> BcqWeights:
    """W from quantized weights [K, N] in binary code."""
    weights = bcq_operand("lutgemm", quantized)
    _check_weights(params, weights)
    return weights


def bcq_operand(name: str, quantized: Any) -> BcqWeights:
    """Quantized weights [K, N] as integers that an array can load."""
    if getattr(quantized, "scale_codes", None) is None:
        raise InputError(f"{name}: weights need binary code (bcq) with integer scales")
    scales = quantized.scale_codes
    offsets = np.zeros(scales.shape[1:], dtype=np.int64) if quantized.offset_codes is None else quantized.offset_codes
    return BcqWeights(codes=quantized.codes, scales=scales, offsets=offsets, group=quantized.group)


def from_integers(params: LutGemmParams, W: NDArray[Any]) -> tuple[BcqWeights, int]:
    """A plain integer matrix of `weight_bits` bits as W; the output then has one fraction bit."""
    weights = uniform_weights(W, params.weight_bits)
    rule = f"lutgemm: integers of {params.weight_bits} bits need scale_bits of at least {params.weight_bits + 1}"
    require(params.scale_bits > params.weight_bits, f"{rule}, not {params.scale_bits}")
    return spread_groups(weights, params.group_size), weights.frac_bits


def spread_groups(weights: BcqWeights, group: int | None) -> BcqWeights:
    """Weights of one group with the same scales repeated for groups of the array's size."""
    if group is None:
        return weights
    count = -(-weights.shape[0] // group)
    return BcqWeights(
        codes=weights.codes,
        scales=np.repeat(weights.scales, count, axis=1),
        offsets=np.repeat(weights.offsets, count, axis=0),
        group=group,
        frac_bits=weights.frac_bits,
    )
