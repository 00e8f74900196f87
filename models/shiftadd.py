"""ShiftAddLLM: binary-coded weights whose scales are sums of signed powers of two, so that nothing is multiplied.

The array is that of models/lutgemm.py; each scale word holds `num_terms` terms, a sign and a shift. The paper shifts
activations before they are looked up and added; a left shift of integers distributes over sums exactly, so this array
shifts each bit plane's sum instead: planes + 1 shifts a column and tile in place of one a table entry, same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.bits import Overflow, signed_bits
from models.formats import nearest_pot, pot_terms
from models.lutgemm import (
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
    lut_array,
    result,
    shape_of,
    spread_groups,
    timing,
    uniform_weights,
)
from models.unit import Beats, Ints, Op, Stimulus, Trace, check_range, require

__all__ = ["result", "shape_of", "timing"]


@dataclass(frozen=True, kw_only=True)
class ShiftAddParams:
    """Geometry and widths. `weight_bits` is the number of bit planes.

    Each scale (alpha of a plane, z) is a sum of at most `num_terms` signed powers of two from 2^0 to 2^max_shift. The
    other parameters are those of LutGemmParams.
    """

    rows: int = 8
    cols: int = 8
    mu: int = 4
    act_bits: int = 8
    weight_bits: int = 4
    group_size: int | None = None
    half_table: bool = True
    num_terms: int = 2
    max_shift: int = 7
    acc_bits: int = 32
    overflow: Overflow = Overflow.WRAP

    def __post_init__(self) -> None:
        check_range("shiftadd", self, num_terms=(1, 3), max_shift=(0, 15))
        check_array("shiftadd", self)

    @property
    def array(self) -> LutArray:
        return lut_array(self)

    @property
    def product_bits(self) -> int:
        """Width of a plane's sum times a scale."""
        bound = (self.array.tile_k << (self.act_bits - 1)) * (self.num_terms << self.max_shift)
        return signed_bits(-bound, bound)

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
}


def golden(params: ShiftAddParams, A: NDArray[Any], W: BcqWeights, psum: Ints | None = None) -> Ints:
    """Y[M, N] int64 = psum + A @ W.integers, tile by tile of rows * mu in K.

    The sum of a tile is exact; it is fitted to `acc_bits` where it is added to the accumulator. `psum` [M, N] (a
    bias) is where accumulation starts; zero by default. Y carries `W.frac_bits` fraction bits.
    """
    check_groups(params, W)
    _encode(params, W.scales)
    _encode(params, W.offsets)
    return array_golden(params, A, W, psum)


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
    """Operations of a GEMM: those of the array, and `num_terms` shifts and additions a scale a column and tile."""
    scales = M * N * gemm.folds(K, params.array.tile_k) * (params.weight_bits + 1)
    shifts = Op("shift", scales * params.num_terms, params.array.sum_bits, params.max_shift)
    adds = Op("add", scales * (params.num_terms - 1), params.product_bits)
    return (*array_ops(params, M, K, N), shifts, adds)


def beats(params: ShiftAddParams, A: NDArray[Any], W: BcqWeights, psum: Ints | None = None) -> Beats:
    """Input beats of a whole GEMM, as in models/lutgemm.py, but scale[cols][num_terms] holds term codes."""
    return array_beats(params, A, W, psum, lambda words: _encode(params, words), _decode)


def trace(params: ShiftAddParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    return array_trace(params, stimulus, _decode)


def sample(
    params: ShiftAddParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Any, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given."""
    most = params.num_terms << params.max_shift

    def scales(shape: tuple[int, ...]) -> Ints:
        return nearest_pot(gemm.random_codes(rng, shape, -most, most), params.num_terms, params.max_shift)

    return array_sample(params, rng, M, K, N, scales)


def weight_format(params: ShiftAddParams) -> tuple[str, dict[str, Any]]:
    """Binary code with power-of-two scales."""
    options = {"bits": params.weight_bits, "group": params.group_size}
    return "bcq", {**options, "num_terms": params.num_terms, "max_shift": params.max_shift}


def operand(params: ShiftAddParams, quantized: Any) -> BcqWeights:
    """W from quantized weights [K, N] in binary code."""
    weights = bcq_operand("shiftadd", quantized)
    check_groups(params, weights)
    _encode(params, weights.scales)
    return weights


def from_integers(params: ShiftAddParams, W: NDArray[Any]) -> tuple[BcqWeights, int]:
    """A plain integer matrix of `weight_bits` bits as W; the output then has one fraction bit."""
    rule = f"shiftadd: integers of {params.weight_bits} bits need max_shift of at least {params.weight_bits - 1}"
    require(params.max_shift >= params.weight_bits - 1, f"{rule}, not {params.max_shift}")
    weights = uniform_weights(W, params.weight_bits)
    return spread_groups(weights, params.group_size), weights.frac_bits
