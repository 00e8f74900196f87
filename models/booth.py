"""Radix-4 (modified) Booth encoder.

Digit i is x[2i-1] + x[2i] - 2 x[2i+1] with x[-1] = 0 and the sign repeated above the top bit: -2, -1, 0, 1 or 2.
A code word holds three bits for each digit, the lowest digit first: `one` (magnitude 1), `two` (magnitude 2), `neg`;
digit zero is 000. Source: O. L. MacSorley, "High-speed arithmetic in binary computers", Proc. IRE 49(1), 1961.
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
class BoothParams:
    """Width of the operands, operands a beat, and whether code words leave through a register."""

    bits: int = 8
    lanes: int = 16
    registered: bool = True

    def __post_init__(self) -> None:
        encoder.check_encoder("booth", self)

    @property
    def code_bits(self) -> int:
        """Width of a code word: three bits a digit."""
        return 3 * encoder.digit_count(self.bits)


PRESETS = {
    "default": BoothParams(),
    "combinational": BoothParams(lanes=2, registered=False),
    "odd": BoothParams(bits=7, lanes=3),
    "narrow": BoothParams(bits=2, lanes=1),
    "wide": BoothParams(bits=16, lanes=2, registered=False),
}

COMPARED = (
    Compared(
        family="integer",
        architecture="encoder",
        style="booth",
        baseline="booth",
        params=BoothParams(),
    ),
)


def digits(x: Ints, bits: int) -> Ints:
    """Booth digits [..., ceil(bits / 2)] of two's-complement integers of `bits` bits; sum of digit_i 4^i is x."""
    shift = 2 * np.arange(encoder.digit_count(bits))
    wide = x[..., None] << 1
    below, here, above = ((wide >> (shift + i)) & 1 for i in range(3))
    found: Ints = below + here - 2 * above
    return found


def codes(x: Ints, bits: int) -> Ints:
    """Code words of two's-complement integers of `bits` bits."""
    d = digits(x, bits)
    fields = (np.abs(d) == 1) | (np.abs(d) == 2) << 1 | (d < 0) << 2
    words: Ints = (fields << (3 * np.arange(d.shape[-1]))).sum(axis=-1)
    return words


def golden(params: BoothParams, X: NDArray[Any]) -> Ints:
    """Code words [M, K] of X[M, K]; InputError unless X holds integers of `bits` bits."""
    return encoder.encoder_golden(params, X, codes)


def timing(params: BoothParams, M: Any, K: Any) -> Timing:
    """M ceil(K / lanes) cycles, and one more where registered."""
    return encoder.encoder_timing(params, M, K)


def ops(params: BoothParams, M: int, K: int) -> tuple[Op, ...]:
    """Each operand recoded once; a register is written in every cycle."""
    return encoder.encoder_ops(params, M, K)


def trace(params: BoothParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle of `i_x` {x[lanes]} and `o_code` {code[lanes]}."""
    return encoder.encoder_trace(params, stimulus, codes)


def beats(params: BoothParams, X: NDArray[Any]) -> Beats:
    """`i_x` {x[lanes]}: row by row, a row's last beat filled with zeros."""
    return encoder.encoder_beats(params, X)


def result(params: BoothParams, operands: tuple[NDArray[Any], ...], out_beats: Mapping[str, Ints]) -> Ints:
    """Code words [M, K] from the beats of `o_code` {code[lanes]}."""
    return encoder.encoder_result(params, operands[0], out_beats)


def shape_of(params: BoothParams, X: NDArray[Any]) -> dict[str, int]:
    """X's M and K."""
    return {"M": X.shape[0], "K": X.shape[1]}


def sample(
    params: BoothParams, rng: np.random.Generator, M: int | None = None, K: int | None = None
) -> tuple[Ints, ...]:
    """Random X with corners, of a random small shape where none is given."""
    return (encoder.encoder_sample(params, rng, M, K),)
