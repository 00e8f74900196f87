"""EN-T encoder: sign and magnitude, the magnitude in radix-4 digits 0, 1, 2 and -1.

The magnitude (-2^(bits-1) gives 2^(bits-1)) is cut into raw digits r_i of two bits. With c_0 = 0 and
c_i = (r_{i-1}[0] & r_{i-1}[1]) | (r_{i-1}[1] & c_{i-1}), digit i is (r_i + c_i) mod 4, of which 0, 1, 2 stand for
themselves and 3 for -1. A code word holds the digits, two bits each and the lowest first (one bit for the top digit of
an odd width, which is 0 or 1), and the sign above them: bits + 1 bits, 9 for INT8, against 12 of radix-4 Booth.
Nothing is lost: no carry leaves the top digit. A magnitude of 2^(bits-1) has zeros below its leading one, and in any
smaller one the top digit's upper bit is zero.
Source: Q. Wu et al., "EN-T: Optimizing Tensor Computing Engines Performance via Encoder-Based Methodology", 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import encoder
from models.unit import Beats, Compared, Ints, Op, Stimulus, Timing, Trace


@dataclass(frozen=True, kw_only=True)
class EntParams:
    """Width of the operands, operands a beat, and whether code words leave through a register."""

    bits: int = 8
    lanes: int = 16
    registered: bool = True

    def __post_init__(self) -> None:
        encoder.check_encoder("ent", self)

    @property
    def code_bits(self) -> int:
        """Width of a code word: the sign and the digits of the magnitude."""
        return self.bits + 1


PRESETS = {
    "default": EntParams(),
    "combinational": EntParams(lanes=2, registered=False),
    "odd": EntParams(bits=7, lanes=3),
    "narrow": EntParams(bits=2, lanes=1),
    "wide": EntParams(bits=16, lanes=2, registered=False),
}

COMPARED = (
    Compared(
        family="integer",
        architecture="encoder",
        style="ent",
        baseline="booth",
        params=EntParams(),
        differs="No paper's ratio for the encoder alone: what counts is that it stands at the edge, and that 9 bits "
        "travel where Booth's code has 12.",
    ),
)


def magnitude_digits(x: Ints, bits: int) -> Ints:
    """The digits 0, 1, 2, 3 (for -1) of |x|, [..., ceil(bits / 2)]."""
    raw: Ints = (np.abs(x)[..., None] >> (2 * np.arange(encoder.digit_count(bits)))) & 3
    carry = np.zeros_like(x)
    for i in range(raw.shape[-1]):
        r = raw[..., i].copy()
        raw[..., i] = (r + carry) & 3
        carry = (r & 1 & r >> 1) | (r >> 1 & carry)
    return raw


def digits(x: Ints, bits: int) -> Ints:
    """EN-T digits [..., ceil(bits / 2)], the sign of x applied: -2 to 2; sum of digit_i 4^i is x."""
    e = magnitude_digits(x, bits)
    signed: Ints = np.where(e == 3, -1, e) * np.where(x < 0, -1, 1)[..., None]
    return signed


def codes(x: Ints, bits: int) -> Ints:
    """Code words of two's-complement integers of `bits` bits."""
    e = magnitude_digits(x, bits)
    words: Ints = (e << (2 * np.arange(e.shape[-1]))).sum(axis=-1) | (x < 0).astype(np.int64) << bits
    return words


def golden(params: EntParams, X: NDArray[Any]) -> Ints:
    """Code words [M, K] of X[M, K]; InputError unless X holds integers of `bits` bits."""
    return encoder.encoder_golden(params, X, codes)


def timing(params: EntParams, M: Any, K: Any) -> Timing:
    """M ceil(K / lanes) cycles, and one more where registered."""
    return encoder.encoder_timing(params, M, K)


def ops(params: EntParams, M: int, K: int) -> tuple[Op, ...]:
    """Each operand recoded once; a register is written in every cycle."""
    return encoder.encoder_ops(params, M, K)


def trace(params: EntParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle of `i_x` {x[lanes]} and `o_code` {code[lanes]}."""
    return encoder.encoder_trace(params, stimulus, codes)


def beats(params: EntParams, X: NDArray[Any]) -> Beats:
    """`i_x` {x[lanes]}: row by row, a row's last beat filled with zeros."""
    return encoder.encoder_beats(params, X)


def result(params: EntParams, operands: tuple[NDArray[Any], ...], out_beats: Mapping[str, Ints]) -> Ints:
    """Code words [M, K] from the beats of `o_code` {code[lanes]}."""
    return encoder.encoder_result(params, operands[0], out_beats)


def shape_of(params: EntParams, X: NDArray[Any]) -> dict[str, int]:
    """X's M and K."""
    return {"M": X.shape[0], "K": X.shape[1]}


def sample(params: EntParams, rng: np.random.Generator, M: int | None = None, K: int | None = None) -> tuple[Ints, ...]:
    """Random X with corners, of a random small shape where none is given."""
    return (encoder.encoder_sample(params, rng, M, K),)
