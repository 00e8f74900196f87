"""Recoding integers into radix-4 digits: what the encoder units have in common, and the digits' arithmetic.

A digit stands for -2, -1, 0, 1 or 2 times its weight 4^i, so that a multiplication needs ceil(bits / 2) partial
products, each a shifted, perhaps negated copy of the other operand. An encoder brings its code word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.bits import check_codes, signed_range
from models.unit import (
    Beats,
    CombinationalControl,
    Ints,
    Op,
    PipelineControl,
    Stimulus,
    Timing,
    Trace,
    assemble_trace,
    check_range,
    require,
    step_streams,
)


class EncoderParams(Protocol):
    """What the params of every encoder have."""

    @property
    def bits(self) -> int:
        """of the two's-complement operand"""
        ...

    @property
    def lanes(self) -> int:
        """operands a beat"""
        ...

    @property
    def registered(self) -> bool:
        """whether code words leave through a register, one cycle later"""
        ...

    @property
    def code_bits(self) -> int:
        """of a code word"""
        ...


Encode = Callable[[Ints, int], Ints]
"""(values, bits) -> code words"""


def digit_count(bits: int) -> int:
    """Radix-4 digits of a two's-complement number of `bits` bits."""
    return (bits + 1) // 2


def bit_serial_digits(x: Ints, bits: int) -> Ints:
    """The digits of plain two's complement, [..., bits]: 0 or 1 times 2^i, the top one 0 or -1."""
    planes = (x[..., None] >> np.arange(bits)) & 1
    planes[..., -1] *= -1
    return planes


def nonzero_histogram(digits: Callable[[Ints, int], Ints], bits: int) -> list[int]:
    """How many of the 2^bits operand values have 0, 1, 2, ... digits that are not zero."""
    low, high = signed_range(bits)
    counts = np.count_nonzero(digits(np.arange(low, high + 1), bits), axis=-1)
    return [int(count) for count in np.bincount(counts)]


def check_encoder(unit: str, params: EncoderParams) -> None:
    """Refuse operands of fewer than 2 or more than 16 bits, and no or more than 256 lanes."""
    check_range(unit, params, bits=(2, 16), lanes=(1, 256))
    require(isinstance(params.registered, bool), f"{unit}: registered must be true or false, not {params.registered!r}")


def encoder_golden(params: EncoderParams, X: NDArray[Any], encode: Encode) -> Ints:
    """Code words [M, K] of X[M, K]."""
    require(isinstance(X, np.ndarray), f"X must be a numpy array [M, K], not {type(X).__name__}")
    require(X.ndim == 2, f"X must be a matrix [M, K], not an array of shape {X.shape}")
    gemm.check_shape(M=X.shape[0], K=X.shape[1])
    return encode(check_codes("X", X, params.bits), params.bits)


def encoder_timing(params: EncoderParams, M: Any, K: Any) -> Timing:
    """A beat of `lanes` operands each cycle, and one cycle more where code words leave through a register."""
    M, K = gemm.check_shape(M=M, K=K)
    count = M * gemm.folds(K, params.lanes)
    return Timing(
        total_cycles=count + params.registered,
        load_cycles=0 * count,
        stream_cycles=count,
        drain_cycles=0 * count + int(params.registered),
        work=M * K,
        peak_per_cycle=params.lanes,
    )


def encoder_ops(params: EncoderParams, M: int, K: int) -> tuple[Op, ...]:
    """Each operand recoded once; a register is written in every cycle."""
    recoded = (Op("encode", M * K, params.bits),)
    cycles = encoder_timing(params, M, K).total_cycles
    return (*recoded, Op("reg", cycles * params.lanes, params.code_bits)) if params.registered else recoded


def encoder_beats(params: EncoderParams, X: NDArray[Any]) -> Beats:
    """`i_x` {x[lanes]}: row by row, a row's last beat filled with zeros."""
    m, k = X.shape
    full = gemm.pad_to(X.astype(np.int64), (m, gemm.folds(k, params.lanes) * params.lanes))
    return {"i_x": {"x": full.reshape(-1, params.lanes)}}


def encoder_result(params: EncoderParams, X: NDArray[Any], out_beats: Mapping[str, Ints]) -> Ints:
    """Code words [M, K] from the beats of `o_code` {code[lanes]}."""
    return out_beats["code"].reshape(X.shape[0], -1)[:, : X.shape[1]]


def encoder_trace(params: EncoderParams, stimulus: Stimulus, encode: Encode) -> Trace:
    """Every port of every cycle."""
    x = stimulus.beats["i_x"]["x"]
    control = PipelineControl(1, "i_x") if params.registered else CombinationalControl("i_x")
    index, ready = step_streams(control, stimulus, "o_code", len(x))
    return assemble_trace(stimulus, index, ready, "o_code", {"code": encode(x, params.bits)})


def encoder_sample(params: EncoderParams, rng: np.random.Generator, M: int | None, K: int | None) -> Ints:
    """Random X with corners: all least, all greatest, alternating, sparse, uniform."""
    drawn = gemm.random_shape(rng, 5, params.lanes)
    m, k = (given or size for given, size in zip((M, K), drawn, strict=True))
    return gemm.random_codes(rng, (m, k), *signed_range(params.bits))
