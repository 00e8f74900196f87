"""ShiftAddLLM: binary-coded weights whose scales are sums of signed powers of two, so that nothing is multiplied.

H. You et al., "ShiftAddLLM: Accelerating Pretrained LLMs via Post-Training Multiplication-Less Reparameterization",
NeurIPS 2024. Each scale word holds `num_terms` terms, a sign and a shift. `scales` says what shares one:

- `group`: each output has its own for every group of k, as in models/lutgemm.py, whose array this is with shifters in
  place of multipliers. A left shift distributes over sums exactly, so each bit plane's sum is shifted once, after the
  look-ups.
- `column` (the paper's "Acc": one scale set for each input channel, shared by all outputs) and `block` (its "Lat": for
  `mu` neighbouring input channels and a block of outputs; the paper's blocks are 8 by an eighth of them). What outputs
  share is done once at the edge, as the paper does it: activations are shifted by each plane's scale, the tables of
  shifted activations are built, and all columns look up and add, with no scaler of their own. A tile of `cols` outputs
  must lie in one block.

Register stages before the result: tables, sums, shifts (`group`); shifts, tables, sums (the others).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import columns, compared, gemm
from models.bits import Overflow, Rounding, signed_bits
from models.columns import Columns, edge_ops
from models.floats import ActFormat
from models.formats import check_pot, nearest_pot, pot_terms
from models.lutgemm import (
    STAGES,
    TABLE_FIELDS,
    BcqWeights,
    LutArray,
    array_beats,
    array_golden,
    array_ops,
    array_sample,
    array_trace,
    bcq_operand,
    check_array,
    check_groups,
    check_planes,
    codes_of,
    lut_array,
    lut_columns,
    packed_bits,
    result,
    shape_of,
    spread_groups,
    tile_keys,
    timing,
    uniform_weights,
)
from models.unit import Beats, Ints, Op, Published, Stimulus, Trace, check_choice, check_range, require

__all__ = ["result", "shape_of", "timing"]

BLOCKS = 8
"""of outputs that `block` shares scales in, as in the paper"""


class Scales(StrEnum):
    """What shares a scale word."""

    GROUP = "group"
    COLUMN = "column"
    BLOCK = "block"


@dataclass(frozen=True, kw_only=True)
class ShiftAddParams:
    """Geometry and widths. `weight_bits` is the number of bit planes.

    Each scale (alpha of a plane, z) is a sum of at most `num_terms` signed powers of two from 2^0 to 2^max_shift. The
    other parameters are those of LutGemmParams. `group_size` and `serial` are of `scales` group alone; with the others
    `registered` puts a register between the tables and their readers or none, since activations are held already.
    """

    rows: int = 8
    cols: int = 8
    mu: int = 4
    act_format: ActFormat = ActFormat.INT
    act_bits: int = 8
    rounding: Rounding = Rounding.NEAREST_EVEN
    weight_bits: int = 4
    scales: Scales = Scales.GROUP
    group_size: int | None = None
    half_table: bool = True
    registered: bool = True
    serial: bool = False
    readers: int | None = None
    num_terms: int = 2
    max_shift: int = 7
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP

    def __post_init__(self) -> None:
        check_range("shiftadd", self, num_terms=(1, 3), max_shift=(0, 15))
        check_choice("shiftadd", self, scales=Scales)
        check_array("shiftadd", self)
        if self.scales is Scales.GROUP:
            return
        rule = f"shiftadd: scales={self.scales} shifts before the look-up and needs"
        require(self.group_size is None, f"{rule} group_size=none, not {self.group_size}; or take scales=group")
        require(not self.serial, f"{rule} serial=false; or take scales=group")
        require(self.readers is None, f"{rule} readers=none, not {self.readers}; or take scales=group")

    @property
    def array(self) -> LutArray:
        return lut_array(self)

    @property
    def columns(self) -> Columns:
        """With scales at the edge their words enter beside the keys, a row's beside the row's."""
        if self.scales is Scales.GROUP:
            return lut_columns(self, self.largest_scale)
        return Columns(
            tile_k=self.array.tile_k,
            cols=self.cols,
            act_format=self.act_format,
            act_bits=self.act_bits,
            rounding=self.rounding,
            acc_bits=self.acc_bits,
            overflow=self.overflow,
            stages=STAGES - (not self.registered),
            load_beats=self.rows,
            total_bits=self._bits_of(self.array.tile_k * (self.weight_bits + 1)),
        )

    @property
    def largest_scale(self) -> int:
        return self.num_terms << self.max_shift

    @property
    def product_bits(self) -> int:
        """Width of a plane's sum, or the activations', times a scale."""
        return self._bits_of(self.array.tile_k)

    @property
    def shifted_bits(self) -> int:
        """Width of an activation times a scale."""
        return self._bits_of(1)

    @property
    def table_bits(self) -> int:
        """Width of an entry of a table of shifted activations."""
        return self._bits_of(self.mu)

    @property
    def packed_bits(self) -> int:
        """Width of a whole such table."""
        return packed_bits(self.array.entries, self.table_bits)

    @property
    def read_bits(self) -> int:
        """Width of the sum of all reads of a column."""
        return self._bits_of(self.array.tile_k * self.weight_bits)

    def _bits_of(self, count: int) -> int:
        """Width of the sum of that many scaled activations."""
        bound = (count << (self.act_bits - 1)) * self.largest_scale
        return signed_bits(-bound, bound)

    @property
    def words(self) -> int:
        """Scale words that enter beside a row's keys: of each input channel, or of all the row's together."""
        return (self.weight_bits + 1) * (self.mu if self.scales is Scales.COLUMN else 1)

    @property
    def word_bits(self) -> int:
        """Width of a scale word."""
        return self.num_terms * self.term_bits

    @property
    def term_bits(self) -> int:
        """Width of a term's code: 0 is no term, otherwise 2 * (shift + 1), plus 1 where the term is negative."""
        return (2 * self.max_shift + 3).bit_length()


PRESETS = {
    "default": ShiftAddParams(),
    "one-term": ShiftAddParams(rows=2, cols=3, mu=3, num_terms=1, half_table=False, weight_bits=2),
    "three-terms": ShiftAddParams(rows=2, cols=2, mu=2, num_terms=3, max_shift=9, weight_bits=3),
    "smallest": ShiftAddParams(rows=1, cols=1, mu=1, act_bits=2, weight_bits=1, num_terms=1, max_shift=0, acc_bits=6),
    "grouped-saturate": ShiftAddParams(
        rows=1,
        cols=2,
        mu=4,
        group_size=4,
        weight_bits=2,
        act_bits=4,
        max_shift=3,
        acc_bits=9,
        overflow=Overflow.SATURATE,
    ),
    "serial": ShiftAddParams(rows=2, cols=2, mu=3, weight_bits=3, serial=True, readers=1),
    "column": ShiftAddParams(rows=2, cols=3, mu=4, weight_bits=2, scales=Scales.COLUMN),
    "column-gates": ShiftAddParams(
        rows=2, cols=2, mu=2, weight_bits=3, scales=Scales.COLUMN, registered=False, half_table=False, acc_bits=16
    ),
    "block": ShiftAddParams(rows=2, cols=2, mu=4, weight_bits=2, scales=Scales.BLOCK, num_terms=1),
    "block-saturate": ShiftAddParams(
        rows=1, cols=2, mu=3, weight_bits=2, scales=Scales.BLOCK, acc_bits=10, overflow=Overflow.SATURATE
    ),
    "fp16": ShiftAddParams(rows=1, cols=2, mu=4, act_format=ActFormat.FP16, act_bits=12, weight_bits=2, max_shift=3),
    "fp16-column": ShiftAddParams(
        rows=1,
        cols=2,
        mu=2,
        act_format=ActFormat.FP16,
        act_bits=9,
        weight_bits=2,
        max_shift=2,
        scales=Scales.COLUMN,
        rounding=Rounding.TRUNCATE,
    ),
}

_PAPER = Published(source="H. You et al., ShiftAddLLM, NeurIPS 2024, abstract: over 80 % less", energy_efficiency=5.0)
_WHY = (
    "The paper's ratio is that of whole models on its own accelerator over the FP16 original, memories among it. Ours "
    "is the array alone over multipliers of as many MACs a cycle, by counted operations."
)


def _designs(**changes: Any) -> dict[int, ShiftAddParams]:
    return {bits: ShiftAddParams(weight_bits=bits, **changes) for bits in compared.WIDTHS}


COMPARED = (
    *compared.low_bit(
        "shiftadd",
        _designs(),
        families=(compared.SHIFT_ADD,),
        published=dict.fromkeys(compared.WIDTHS, _PAPER),
        differs=_WHY,
    ),
    *compared.low_bit(
        "shiftadd, column scales",
        _designs(scales=Scales.COLUMN, max_shift=3),
        families=(compared.SHIFT_ADD,),
        published=dict.fromkeys(compared.WIDTHS, _PAPER),
        differs=_WHY + " Activations are shifted and tables built for each plane, for 8 columns here.",
    ),
    *compared.low_bit(
        "shiftadd, column scales, wide",
        {4: ShiftAddParams(scales=Scales.COLUMN, max_shift=3, cols=32)},
        families=(compared.SHIFT_ADD,),
        differs="No paper's ratio: the same edge for 32 columns.",
    ),
    *compared.low_bit(
        "shiftadd FP16",
        _designs(act_format=ActFormat.FP16, act_bits=12),
        act_format=ActFormat.FP16,
        families=(compared.SHIFT_ADD,),
        published=dict.fromkeys(compared.WIDTHS, _PAPER),
        differs=_WHY,
    ),
)


def value_free(params: ShiftAddParams) -> tuple[str, ...]:
    """How tables are held and read; rows where tiles of K change no sum. Columns and `mu` shape the groups of scales
    that outputs share, and are free only where they share none."""
    grouped = params.scales is Scales.GROUP
    tile = (("rows", "mu") if grouped else ("rows",)) if params.columns.wraps else ()
    return (*TABLE_FIELDS, *(("cols",) if grouped else ()), *tile)


def golden(params: ShiftAddParams, A: NDArray[Any], W: BcqWeights, psum: Any = None) -> Any:
    """Y[M, N] = psum + A @ W.integers, tile by tile of rows * mu in K; types and rounding as in models/lutgemm.py.

    Shifts are to the left and lose nothing, so where the scales are applied changes no result.
    """
    _check_weights(params, W)
    return array_golden(params, A, W, psum)


def _check_weights(params: ShiftAddParams, W: BcqWeights) -> None:
    check_planes(params, W)
    if params.scales is Scales.GROUP:
        _check_scales(params, W.scales, W.offsets)
        check_groups(params, W)
        return
    size = _shared_channels(params)
    rule = f"shiftadd: scales={params.scales} needs W in groups of {size} along K"
    require(W.group == size or W.shape[0] <= min(W.group, size), f"{rule}, not {W.group}")
    # a tile's first column speaks for the others
    _check_scales(params, W.scales[..., :: params.cols], W.offsets[:, :: params.cols])
    for n0 in range(0, W.shape[1], params.cols):
        tile = slice(n0, n0 + params.cols)
        same = (W.scales[..., tile] == W.scales[..., n0, None]).all() and (
            W.offsets[:, tile] == W.offsets[:, n0, None]
        ).all()
        rule = f"shiftadd: scales={params.scales} needs the same scales in outputs {n0} to {n0 + params.cols - 1}"
        require(bool(same), f"{rule}, which are one tile; or take scales=group")


def _check_scales(params: ShiftAddParams, *scales: Ints) -> None:
    for values in scales:
        check_pot(values, params.num_terms, params.max_shift)


def _shared_channels(params: ShiftAddParams) -> int:
    """Neighbouring k that share a scale word at the edge."""
    return 1 if params.scales is Scales.COLUMN else params.mu


def _encode(params: ShiftAddParams, scales: Ints) -> Ints:
    """Term codes [*shape, num_terms] of integer scales; InputError where a scale needs more terms or larger shifts."""
    signs, shifts = pot_terms(scales, params.num_terms, params.max_shift)
    return np.where(signs == 0, 0, 2 * (shifts + 1) + (signs < 0))


def _decode(codes: Ints) -> Ints:
    """Integer scales of term codes."""
    magnitudes = np.where(codes == 0, 0, np.int64(1) << np.maximum((codes >> 1) - 1, 0))
    total: Ints = np.where(codes & 1, -magnitudes, magnitudes).sum(axis=-1)
    return total


def ops(params: ShiftAddParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM: those of the array, with a shift a term in place of each multiplication.

    With scales at the edge: a shift a term, input channel and plane (and z) for each tile of outputs, not for each
    output.
    """
    if params.scales is not Scales.GROUP:
        return _edge_scaled_ops(params, M, K, N)
    words = M * N * gemm.folds(K, params.array.tile_k) * (params.weight_bits + 1)
    return (*array_ops(params, M, K, N), *_scaling(params, words, params.product_bits))


def _scaling(params: ShiftAddParams, words: int, bits: int) -> tuple[Op, ...]:
    shifts = Op("shift", words * params.num_terms, bits, params.max_shift)
    return (shifts, Op("add", words * (params.num_terms - 1), bits)) if params.num_terms > 1 else (shifts,)


def _edge_scaled_ops(params: ShiftAddParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    p, array = params, params.array
    n_folds, k_folds = gemm.folds(N, array.cols), gemm.folds(K, array.tile_k)
    built, count = M * gemm.folds(K, array.mu) * n_folds, n_folds * k_folds
    reads = M * gemm.folds(K, array.mu) * N * array.planes
    cycles, words = timing(params, M, K, N).total_cycles, array.planes + 1
    return (
        *_scaling(params, M * K * n_folds * words, p.shifted_bits),
        Op("add", built * array.planes * (array.mu - 1 + array.entries - 1), p.table_bits),
        *((Op("mux", reads, p.table_bits - 1, array.entries),) if array.entries > 1 else ()),
        Op("add", reads, p.read_bits),
        Op("add", M * K * n_folds, p.product_bits),
        Op("reg", cycles * array.tile_k * words, p.shifted_bits),
        *((Op("reg", cycles * array.rows * array.planes, p.packed_bits),) if p.registered else ()),
        Op("reg", cycles * array.cols, p.read_bits),
        Op("reg", cycles * (1 + p.registered), p.product_bits),
        Op("reg", count * array.rows * array.rows * array.cols, array.planes * array.mu),
        Op("reg", count * array.rows * array.rows * p.words, p.word_bits),
        *edge_ops(p.columns, M, K, N, 2),
    )


def beats(params: ShiftAddParams, A: NDArray[Any], W: BcqWeights, psum: Any = None) -> Beats:
    """Input beats of a whole GEMM, as in models/lutgemm.py, but scale[cols][num_terms] holds term codes.

    With scales at the edge: scale[words][num_terms], of the row whose keys enter beside them: of each of its input
    channels, or of all together, alpha of plane 0, 1, ... and then z.
    """
    _check_weights(params, W)
    if params.scales is Scales.GROUP:
        return array_beats(params, A, W, psum, partial(_encode, params), _decode)
    load = partial(_edge_load, params, W)
    return columns.beats(params.columns, A, W.shape[1], psum, load, partial(_edge_held, params))


def _edge_load(params: ShiftAddParams, W: BcqWeights, rows: slice, cols: slice) -> Mapping[str, Ints]:
    array, size = params.array, _shared_channels(params)
    groups = slice(rows.start // size, -(-rows.stop // size))
    words = np.concatenate([W.scales[:, groups, cols.start], W.offsets[None, groups, cols.start]]).T
    words = gemm.pad_to(words, (array.tile_k // size, array.planes + 1)).reshape(array.rows, params.words)
    return {"key": tile_keys(array, W.codes[rows, cols])[::-1], "scale": _encode(params, words)[::-1]}


def _edge_held(params: ShiftAddParams, tile: Mapping[str, Ints]) -> Ints:
    array, size = params.array, _shared_channels(params)
    words = _decode(tile["scale"][::-1]).reshape(array.tile_k // size, array.planes + 1, 1)
    shape = (array.tile_k // size, array.cols)
    return BcqWeights(
        codes=codes_of(array, tile["key"][::-1]),
        scales=np.broadcast_to(words[:, :-1].transpose(1, 0, 2), (array.planes, *shape)),
        offsets=np.broadcast_to(words[:, -1], shape),
        group=size,
    ).integers


def trace(params: ShiftAddParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    if params.scales is Scales.GROUP:
        return array_trace(params, stimulus, _decode)
    return columns.trace(params.columns, stimulus, partial(_edge_held, params))


def sample(
    params: ShiftAddParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Any, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given."""
    most = params.num_terms << params.max_shift

    def scales(shape: tuple[int, ...]) -> Ints:
        drawn = nearest_pot(gemm.random_codes(rng, shape, -most, most), params.num_terms, params.max_shift)
        # what the outputs of a tile share is drawn once for them
        shared = np.arange(shape[-1]) // params.cols * params.cols
        return drawn if params.scales is Scales.GROUP else drawn[..., shared]

    group = params.group_size if params.scales is Scales.GROUP else _shared_channels(params)
    return array_sample(params, rng, (M, K, N), group, scales)


def weight_format(params: ShiftAddParams) -> tuple[str, dict[str, Any]]:
    """Binary code with power-of-two scales."""
    options = {"bits": params.weight_bits, "num_terms": params.num_terms, "max_shift": params.max_shift}
    if params.scales is Scales.GROUP:
        return "bcq", {**options, "group": params.group_size}
    shared = {"group": _shared_channels(params), "blocks": 1 if params.scales is Scales.COLUMN else BLOCKS}
    return "bcq", {**options, **shared, "block_multiple": params.cols}


def operand(params: ShiftAddParams, quantized: Any) -> tuple[BcqWeights, Fraction]:
    """W from quantized weights [K, N] in binary code; the output counts whole units."""
    weights = bcq_operand("shiftadd", quantized)
    _check_weights(params, weights)
    return weights, Fraction(1)


def from_integers(params: ShiftAddParams, W: NDArray[Any]) -> tuple[BcqWeights, Fraction]:
    """A plain integer matrix of `weight_bits` bits as W; the output then counts halves."""
    rule = f"shiftadd: integers of {params.weight_bits} bits need max_shift of at least {params.weight_bits - 1}"
    require(params.max_shift >= params.weight_bits - 1, f"{rule}, not {params.max_shift}")
    group = params.group_size if params.scales is Scales.GROUP else _shared_channels(params)
    return spread_groups(uniform_weights(W, params.weight_bits), group), Fraction(1, 2)
