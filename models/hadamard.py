"""Parallel fast Walsh-Hadamard transform, one register stage after each of its log2(points) butterfly stages.

y = H diag(s) x with the Sylvester matrix H of entries +1 and -1 (natural order) and signs s of +1 and -1. Exact:
integers grow by one bit a stage. The factor 1/sqrt(points) of the orthonormal transform belongs into the next scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.bits import check_codes, signed_range
from models.unit import (
    Beats,
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


@dataclass(frozen=True, kw_only=True)
class HadamardParams:
    """Size, input width and the signs of the randomised transform.

    Bit i of `signs` negates input i. Bit 0 must be clear: negating all inputs negates all outputs, which buys nothing;
    with it clear no sum reaches +points * 2^(in_bits-1), the one value that in_bits + log2(points) bits cannot hold.
    """

    points: int = 16
    in_bits: int = 8
    signs: int = 0

    def __post_init__(self) -> None:
        check_range("hadamard", self, points=(2, 1024), in_bits=(2, 24))
        rule = "hadamard: points must be a power of two"
        near = 1 << (self.points.bit_length() - 1)
        require(self.points & (self.points - 1) == 0, f"{rule}, not {self.points}; nearest below: {near}")
        require(
            isinstance(self.signs, int) and 0 <= self.signs < 1 << self.points and self.signs & 1 == 0,
            f"hadamard: signs must be a mask of {self.points} bits with bit 0 clear, not {self.signs!r}",
        )

    @property
    def stages(self) -> int:
        """Butterfly stages, and cycles from input to output."""
        return self.points.bit_length() - 1

    @property
    def out_bits(self) -> int:
        return self.in_bits + self.stages


PRESETS = {
    "default": HadamardParams(),
    "smallest": HadamardParams(points=2, in_bits=2),
    "randomised": HadamardParams(points=8, in_bits=6, signs=0b10110110),
    "wide": HadamardParams(points=64, in_bits=12, signs=0x6A09_E667_F3BC_C908),
}


def golden(params: HadamardParams, X: NDArray[Any]) -> Ints:
    """Y[M, K] int64: every block of `points` columns of X transformed. K must be a multiple of `points`."""
    require(isinstance(X, np.ndarray), f"X must be a numpy array [M, K], not {type(X).__name__}")
    require(X.ndim == 2, f"X must be a matrix [M, K], not an array of shape {X.shape}")
    _check_blocks(params, *X.shape)
    lanes = check_codes("X", X, params.in_bits).reshape(-1, params.points) * _signs(params)
    for stage in range(params.stages):
        pairs = lanes.reshape(-1, 2, 1 << stage)
        lanes = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
    return lanes.reshape(X.shape)


def _signs(params: HadamardParams) -> Ints:
    return np.array([1 - 2 * (params.signs >> i & 1) for i in range(params.points)], dtype=np.int64)


def _check_blocks(params: HadamardParams, M: Any, K: Any) -> tuple[Any, ...]:
    M, K = gemm.check_shape(M=M, K=K)
    rule = f"shape: K must be a multiple of {params.points} points (zero padding is not orthogonal)"
    require(bool(np.all(np.asarray(K) % params.points == 0)), f"{rule}, not {K!r}")
    return M, K


def timing(params: HadamardParams, M: Any, K: Any) -> Timing:
    """Exact cycles: one block enters a cycle; M and K may be int64 arrays."""
    M, K = _check_blocks(params, M, K)
    blocks = M * (K // params.points)
    return Timing(
        total_cycles=blocks + params.stages,
        load_cycles=0 * blocks,
        stream_cycles=blocks,
        drain_cycles=params.stages + 0 * blocks,
        work=M * K,
        peak_per_cycle=params.points,
    )


def ops(params: HadamardParams, M: int, K: int) -> tuple[Op, ...]:
    """`points` additions a stage and block, one bit wider each stage; signs cost nothing (wiring).

    Registers are counted in every cycle of a run without stalls: they are clocked in all of them.
    """
    M, K = _check_blocks(params, M, K)
    clocked = timing(params, M, K).total_cycles * params.points
    widths = range(params.in_bits + 1, params.out_bits + 1)
    return tuple(op for width in widths for op in (Op("add", M * K, width), Op("reg", clocked, width)))


def beats(params: HadamardParams, X: NDArray[Any]) -> Beats:
    """Input beats: `i_x` {x[points]}, the blocks of X row by row."""
    return {"i_x": {"x": X.astype(np.int64).reshape(-1, params.points)}}


def result(params: HadamardParams, operands: tuple[NDArray[Any], ...], out_beats: Mapping[str, Ints]) -> Ints:
    """Y[M, K] from the beats of `o_y` {y[points]}."""
    return out_beats["y"].reshape(operands[0].shape)


def trace(params: HadamardParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats` and `result`."""
    x = stimulus.beats["i_x"]["x"]
    index, ready = step_streams(PipelineControl(params.stages, "i_x"), stimulus, "o_y", len(x))
    return assemble_trace(stimulus, index, ready, "o_y", {"y": golden(params, x)})


def shape_of(params: HadamardParams, X: NDArray[Any]) -> dict[str, int]:
    """The run's M and K."""
    return {"M": X.shape[0], "K": X.shape[1]}


def sample(
    params: HadamardParams, rng: np.random.Generator, M: int | None = None, K: int | None = None
) -> tuple[Ints, ...]:
    """Random X, of a random small shape where none is given; some blocks drive one output to its largest magnitude."""
    m, blocks = gemm.random_shape(rng, 5, 3)
    low, high = signed_range(params.in_bits)
    x = gemm.random_codes(rng, (M or m, K or blocks * params.points), low, high)
    parts = x.reshape(-1, params.points)
    for block in np.flatnonzero(rng.random(len(parts)) < 0.3):
        row = rng.integers(params.points) & np.arange(params.points)
        aligned = _signs(params) * (1 - 2 * (np.bitwise_count(row).astype(np.int64) & 1)) > 0
        parts[block] = np.where(aligned == bool(rng.integers(2)), low, high)
    return (x,)
