"""Pre-alignment: FP16 values become integers under the largest exponent among them.

`points` values that enter together share the biased exponent E, the largest of theirs; a value m 2^(e - 25), m its
11-bit mantissa with the sign, becomes the integer round(m 2^(bits - 12) 2^(e - E)), worth 2^(E - 13 - bits). So the
largest value keeps all its digits where `bits` is at least 12 and each further bit keeps one more digit of the smaller
ones; what falls below is rounded, as `rounding` says. A magnitude that rounds up beyond 2^(bits - 1) - 1 saturates
there (only where `bits` is below 12). Integer engines multiply such integers exactly (G. Park et al., "FIGLUT", HPCA
2025, whose FIGLUT-I pre-aligns so; Kim et al., "Winning both the accuracy of floating point activation and the
simplicity of integer arithmetic", ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.bits import Rounding, round_to_int
from models.floats import HALF_BITS, Halves, half, half_bits, half_of, random_halves, unpack_half
from models.unit import (
    Beats,
    Ints,
    Op,
    PipelineControl,
    Stimulus,
    Timing,
    Trace,
    assemble_trace,
    check_choice,
    check_range,
    require,
    step_streams,
)

ALIGN_STAGES = 2
"""the largest exponent, the shift"""
EXPONENT_BITS = 5


@dataclass(frozen=True, kw_only=True)
class AlignParams:
    """Values that enter together, the width of their integers, and how these are rounded."""

    points: int = 32
    bits: int = 12
    rounding: Rounding = Rounding.NEAREST_EVEN

    def __post_init__(self) -> None:
        check_range("align", self, points=(1, 512), bits=(4, 24))
        check_choice("align", self, rounding=Rounding)


PRESETS = {
    "default": AlignParams(),
    "one": AlignParams(points=1, bits=5),
    "narrow": AlignParams(points=3, bits=8, rounding=Rounding.NEAREST_AWAY),
    "wide": AlignParams(points=4, bits=24, rounding=Rounding.TRUNCATE),
    "floor": AlignParams(points=4, bits=12, rounding=Rounding.FLOOR),
}


def aligned(x: Halves, bits: int, rounding: Rounding) -> tuple[Ints, Ints]:
    """Integers of x [..., points] and the exponents E [...]; a value is near integer * 2.0 ** `worth(E, bits)`."""
    mantissa, exponent = unpack_half(x)
    largest: Ints = exponent.max(axis=-1)
    real = np.ldexp(mantissa.astype(np.float64), bits - 12 + exponent - largest[..., None])
    limit = (1 << (bits - 1)) - 1
    return np.clip(round_to_int(real, rounding), -limit, limit).astype(np.int64), largest


def worth(exponent: Any, bits: int) -> Any:
    """The power of two that one unit of an aligned integer is worth."""
    return exponent - 13 - bits


def golden(params: AlignParams, X: NDArray[Any]) -> NDArray[np.float64]:
    """The values [M, K] that the integers stand for, exactly: X with every block of `points` columns aligned.

    X is float16, or what float16 holds exactly; K must be a multiple of `points`.
    """
    x = _blocks(params, X)
    integers, exponent = aligned(x, params.bits, params.rounding)
    return _values(params, integers, exponent).reshape(X.shape)


def _blocks(params: AlignParams, X: NDArray[Any]) -> Halves:
    require(isinstance(X, np.ndarray), f"X must be a numpy array [M, K], not {type(X).__name__}")
    require(X.ndim == 2, f"X must be a matrix [M, K], not an array of shape {X.shape}")
    _check_blocks(params, *X.shape)
    return half("X", X).reshape(-1, params.points)


def _values(params: AlignParams, integers: Ints, exponent: Ints) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.ldexp(integers.astype(np.float64), worth(exponent[..., None], params.bits))
    return values


def _check_blocks(params: AlignParams, M: Any, K: Any) -> tuple[Any, ...]:
    M, K = gemm.check_shape(M=M, K=K)
    rule = f"shape: K must be a multiple of {params.points} points, which are aligned together"
    require(bool(np.all(np.asarray(K) % params.points == 0)), f"{rule}, not {K!r}")
    return M, K


def timing(params: AlignParams, M: Any, K: Any) -> Timing:
    """Exact cycles: one block enters a cycle; M and K may be int64 arrays."""
    M, K = _check_blocks(params, M, K)
    blocks = M * (K // params.points)
    return Timing(
        total_cycles=blocks + ALIGN_STAGES,
        load_cycles=0 * blocks,
        stream_cycles=blocks,
        drain_cycles=ALIGN_STAGES + 0 * blocks,
        work=M * K,
        peak_per_cycle=params.points,
    )


def ops(params: AlignParams, M: int, K: int) -> tuple[Op, ...]:
    """Comparisons of exponents, differences, shifts and roundings; every register in every cycle."""
    M, K = _check_blocks(params, M, K)
    return align_ops(params.points, params.bits, M * (K // params.points), timing(params, M, K).total_cycles)


def align_ops(points: int, bits: int, blocks: int, cycles: int) -> tuple[Op, ...]:
    """Of `blocks` blocks in `cycles` cycles: a comparison and a difference of exponents, a shift and the addition of
    a rounding a value."""
    return (
        *((Op("add", blocks * (points - 1), EXPONENT_BITS),) if points > 1 else ()),
        Op("add", blocks * points, EXPONENT_BITS),
        Op("shift", blocks * points, max(bits, 12), 31),
        Op("add", blocks * points, bits),
        Op("reg", cycles * points, HALF_BITS + bits),
        Op("reg", cycles * ALIGN_STAGES, EXPONENT_BITS),
    )


def beats(params: AlignParams, X: NDArray[Any]) -> Beats:
    """Input beats: `i_x` {x[points]} of FP16 patterns, the blocks of X row by row."""
    return {"i_x": {"x": half_bits(_blocks(params, X))}}


def result(
    params: AlignParams, operands: tuple[NDArray[Any], ...], out_beats: Mapping[str, Ints]
) -> NDArray[np.float64]:
    """The values [M, K] from the beats of `o_y` {y[points], exponent}."""
    return _values(params, out_beats["y"], out_beats["exponent"]).reshape(operands[0].shape)


def trace(params: AlignParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats` and `result`."""
    x = half_of(stimulus.beats["i_x"]["x"])
    index, ready = step_streams(PipelineControl(ALIGN_STAGES, "i_x"), stimulus, "o_y", len(x))
    integers, exponent = aligned(x, params.bits, params.rounding)
    return assemble_trace(stimulus, index, ready, "o_y", {"y": integers, "exponent": exponent})


def shape_of(params: AlignParams, X: NDArray[Any]) -> dict[str, int]:
    """The run's M and K."""
    return {"M": X.shape[0], "K": X.shape[1]}


def sample(
    params: AlignParams, rng: np.random.Generator, M: int | None = None, K: int | None = None
) -> tuple[Halves, ...]:
    """Random X, of a random small shape where none is given."""
    m, blocks = gemm.random_shape(rng, 5, 3)
    return (random_halves(rng, (M or m, K or blocks * params.points)),)
