"""Linear layers in training at four bits: Y = X W, dX = dY W^T and dW = X^T dY from quantized operands.

INT4: Hadamard quantizer in the forward pass, bit splitting and leverage-score sampling of gradients in the backward
pass ("Training Transformers with 4-bit Integers", Xi et al. 2023). NVFP4: the recipe of "Pretraining Large Language
Models with NVFP4" (NVIDIA 2025). Products are formed in float64 on the quantized values; X is [M, K], W [K, N] and dY
[M, N].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsim.transforms.fwht import fwht, require_power_of_two
from models.bits import signed_range
from models.formats import Nvfp4Format
from models.quantized import checked, group_size, is_whole, positive
from models.unit import Ints, require

Floats = NDArray[np.float64]

BITS = 4

# ------------------------------------------------------------------------------------------ INT4, forward pass


def block_hadamard(x: Floats, points: int, axis: int = -1) -> Floats:
    """Blocks of `points` values along `axis` times the orthonormal Hadamard matrix, its own inverse.

    InputError unless `points` is a power of two that divides the axis.
    """
    require_power_of_two("block_hadamard: points", points)
    group_size(x.shape[axis], points)
    front = np.moveaxis(x, axis, -1)
    blocks = fwht(np.ascontiguousarray(front).reshape(-1, points)) / math.sqrt(points)
    whole: Floats = np.moveaxis(blocks.reshape(front.shape), -1, axis)
    return whole


def lsq_step(x: Floats) -> float:
    """The step from which learned step size quantization starts, 2 mean|x| / sqrt(7) (Esser et al. 2020); 1 for
    zeros."""
    return float(positive(np.asarray(2.0 * np.abs(x).mean() / math.sqrt(signed_range(BITS)[1]))))


def int4(x: Floats, step: float) -> Ints:
    """Integers -8 to 7 nearest to x / step, ties to even; others saturate."""
    return np.clip(np.rint(x / step), *signed_range(BITS)).astype(np.int64)


def hadamard_matmul(x: Floats, w: Floats, points: int) -> Floats:
    """X W from INT4 operands: both are transformed in blocks along K, then rounded with the steps of `lsq_step`.

    In training the steps are learned from there; here they stay.
    """
    h, g = block_hadamard(x, points), block_hadamard(w, points, axis=0)
    steps = lsq_step(h), lsq_step(g)
    return (int4(h, steps[0]) @ int4(g, steps[1])) * np.float64(steps[0] * steps[1])


def best_points(x: Floats, w: Floats, largest: int = 1024) -> int:
    """The block size, a power of two up to `largest` that divides K, with the least |X H - q(X H)| |W H - q(W H)|."""
    sizes = [1 << i for i in range(largest.bit_length()) if x.shape[1] % (1 << i) == 0 and 1 << i <= largest]

    def loss(values: Floats) -> float:
        step = lsq_step(values)
        return float(np.linalg.norm(values - int4(values, step) * step))

    return min(sizes, key=lambda n: loss(block_hadamard(x, n)) * loss(block_hadamard(w, n, axis=0)))


# ----------------------------------------------------------------------------------------- INT4, backward pass


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """A gradient as two matrices of signed 4-bit integers: step * (16 high + low)."""

    high: Ints
    low: Ints
    step: float

    def value(self) -> Floats:
        return (16.0 * self.high + self.low) * np.float64(self.step)


SPLIT_LARGEST = 119
"""16 * 7 + 7: the largest magnitude of which both parts are at most 7"""


def split_bits(gradient: Floats, rng: np.random.Generator) -> Split:
    """A gradient as 8-bit integers, stochastically rounded and so unbiased, in two 4-bit parts.

    step = amax / 119, so that nothing saturates; low lies in -8..7.
    """
    values, _ = checked(gradient, -1)
    step = float(positive(np.asarray(np.abs(values).max() / SPLIT_LARGEST)))
    drawn = np.floor(values / step + rng.random(values.shape))
    whole = np.clip(drawn, -SPLIT_LARGEST, SPLIT_LARGEST).astype(np.int64)  # the quotient at amax may round up
    high = (whole + 8) >> 4
    return Split(high=high, low=whole - 16 * high, step=step)


def keep_probabilities(scores: Floats, budget: int) -> Floats:
    """Probabilities min(1, c score) [n], c such that they sum to `budget`, or to the number of scores above 0.

    Where c score exceeds 1 the row is kept for certain and c grows for the others: clamping alone would sum to less
    than the budget, and treating certain rows as sampled ones would bias the sum (a fault of the published code).
    """
    require(is_whole(budget, 1, 1 << 62), f"keep_probabilities: budget={budget!r} must be a whole number from 1")
    require(bool((scores >= 0.0).all()), f"keep_probabilities: score {scores.min()} is negative; nearest: 0")
    if np.count_nonzero(scores) <= budget:
        return (scores > 0.0).astype(np.float64)
    largest_first = np.sort(scores / scores.max())[::-1]
    rest = np.cumsum(largest_first[::-1])[::-1]
    certain = np.arange(budget)
    c = (budget - certain) / rest[:budget]
    sure = int(np.argmax(c * largest_first[:budget] <= 1.0))
    kept: Floats = np.minimum(1.0, c[sure] * scores / scores.max())
    return kept


def sampled(scores: Floats, budget: int, rng: np.random.Generator) -> Floats:
    """Factors [n]: 1 / p with probability p of `keep_probabilities`, otherwise 0; their mean is 1 where scores are."""
    p = keep_probabilities(scores, budget)
    return np.where(rng.random(p.shape) < p, 1.0 / np.where(p > 0.0, p, 1.0), 0.0)


def int4_weight_gradient(x: Floats, gradient: Floats, budget: int, rng: np.random.Generator) -> Floats:
    """X^T dY, unbiased: of the 2 M rows of high and low parts about `budget` are kept, by leverage |dY_i| |X_i|.

    `x` are the INT4 activations of the forward pass as real values.
    """
    parts, rows = _parts(gradient, rng), np.concatenate([x, x])
    scores = np.linalg.norm(parts, axis=1) * np.linalg.norm(rows, axis=1)
    return rows.T @ (parts * sampled(scores, budget, rng)[:, None])


def int4_input_gradient(gradient: Floats, w: Floats, budget: int, rng: np.random.Generator) -> Floats:
    """dY W^T, unbiased: of the 2 M rows of high and low parts about `budget` are kept, by |dY_i|."""
    parts = _parts(gradient, rng)
    kept = parts * sampled(np.linalg.norm(parts, axis=1), budget, rng)[:, None]
    return (kept[: len(gradient)] + kept[len(gradient) :]) @ w.T


def _parts(gradient: Floats, rng: np.random.Generator) -> Floats:
    """[2 M, N]: high parts, then low parts, as real values."""
    split = split_bits(gradient, rng)
    return np.concatenate([split.high * (16.0 * split.step), split.low * split.step])


# ------------------------------------------------------------------------------------------------------ NVFP4

TILE = 16


def nvfp4_output(x: Floats, w: Floats) -> Floats:
    """X W: activations in blocks 1 x 16 along K, weights in tiles 16 x 16, both to nearest even."""
    return Nvfp4Format().quantize(x, axis=-1).dequantize() @ _weights(w)


def nvfp4_input_gradient(gradient: Floats, w: Floats, rng: np.random.Generator) -> Floats:
    """dY W^T: gradients stochastically rounded in blocks 1 x 16 along N, the weights those of the forward pass."""
    return Nvfp4Format(rounding="stochastic", rng=rng).quantize(gradient, axis=-1).dequantize() @ _weights(w).T


def nvfp4_weight_gradient(x: Floats, gradient: Floats, signs: Ints, rng: np.random.Generator) -> Floats:
    """X^T dY: both transformed along the tokens, then quantized in blocks of 16 tokens, dY stochastically rounded.

    `signs` [16] of -1 and +1 are those of the randomised Hadamard transform. Block and tensor scales are taken behind
    the transform. Stochastic rounding is unbiased but for what saturates: a block's scale is rounded to nearest E4M3,
    and where that is downwards the block's largest elements stop at 6.
    """
    rows = Nvfp4Format().quantize(randomised_hadamard(x, signs), axis=0)
    columns = Nvfp4Format(rounding="stochastic", rng=rng).quantize(randomised_hadamard(gradient, signs), axis=0)
    return rows.dequantize().T @ columns.dequantize()


def randomised_hadamard(x: Floats, signs: Ints) -> Floats:
    """H diag(signs) / 4 on every 16 rows of x [M, n]; orthonormal. InputError unless M is a multiple of 16."""
    fits = np.shape(signs) == (TILE,) and bool((np.abs(signs) == 1).all())
    require(fits, f"randomised_hadamard: signs must be {TILE} numbers of -1 and +1")
    group_size(x.shape[0], TILE)
    return block_hadamard(x * np.tile(signs, x.shape[0] // TILE)[:, None], TILE, axis=0)


def _weights(w: Floats) -> Floats:
    """Values of weights in tiles, the same whichever axis is summed over."""
    return Nvfp4Format(tile=TILE).quantize(w, axis=0).dequantize()
