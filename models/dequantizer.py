"""Dequantizer: scale * (code - zero point), each group of codes with a scale and a zero point of its own.

A scale is an unsigned integer, a half that is not negative, or a power of two (an E8M0 code e is 2^(e - 127)). The
product is exact; what leaves is

- `int`, of integer scales: the product / 2^shift, rounded as named, limited to `out_bits` two's-complement bits;
- `fp16`, `fp32`: rounded once to nearest, ties to even, as IEEE 754 does: gradual underflow; infinity from overflow.

`i_scale` brings the beats of scales, one a group; the next is taken with the last codes of the group before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.bits import Rounding, check_codes, saturate, signed_range
from models.floats import (
    HALF_BITS,
    HALF_DIGITS,
    HALF_UNIT,
    SINGLE_BITS,
    half,
    half_bits,
    half_of,
    random_halves,
    single_bits,
    single_of,
    unpack_half,
)
from models.quantizer import E8M0_BIAS, E8M0_BITS
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

DEQUANT_STAGES = 2
"""the product; what leaves"""


class ScaleFormat(StrEnum):
    """What a scale is."""

    INT = "int"
    FP16 = "fp16"
    E8M0 = "e8m0"


class OutFormat(StrEnum):
    """What leaves."""

    INT = "int"
    FP16 = "fp16"
    FP32 = "fp32"


WIDTHS = {OutFormat.FP16: HALF_BITS, OutFormat.FP32: SINGLE_BITS}


@dataclass(frozen=True, kw_only=True)
class DequantizerParams:
    """Groups, widths and formats.

    `lanes` codes enter and leave a cycle; `group` is a multiple of it. `bits` is the width of codes and zero points,
    `scale_bits` that of a scale (16 of FP16, 8 of E8M0), `out_bits` that of what leaves (16 and 32 of floats). `shift`
    and `rounding` are for integers alone.
    """

    group: int = 32
    lanes: int = 8
    bits: int = 8
    scale_format: ScaleFormat = ScaleFormat.FP16
    scale_bits: int = 16
    zero_points: bool = False
    out_format: OutFormat = OutFormat.FP16
    out_bits: int = 16
    shift: int | None = None
    rounding: Rounding = Rounding.NEAREST_EVEN

    def __post_init__(self) -> None:
        check_choice("dequantizer", self, scale_format=ScaleFormat, out_format=OutFormat, rounding=Rounding)
        check_range("dequantizer", self, group=(1, 4096), lanes=(1, 64), bits=(2, 12))
        check_range("dequantizer", self, scale_bits=(1, 24), out_bits=(2, 48))
        near = max(self.group // self.lanes, 1) * self.lanes
        rule = f"dequantizer: group must be a multiple of lanes={self.lanes}"
        require(self.group % self.lanes == 0, f"{rule}, not {self.group}; nearest: {near}")
        self._check_formats()

    def _check_formats(self) -> None:
        wanted = {ScaleFormat.FP16: HALF_BITS, ScaleFormat.E8M0: E8M0_BITS}.get(self.scale_format, self.scale_bits)
        rule = f"dequantizer: scale_format={self.scale_format} needs scale_bits={wanted}"
        require(self.scale_bits == wanted, f"{rule}, not {self.scale_bits}")
        if self.is_float:
            wanted = WIDTHS[self.out_format]
            rule = f"dequantizer: out_format={self.out_format} needs out_bits={wanted}"
            require(self.out_bits == wanted, f"{rule}, not {self.out_bits}")
            rule = f"dequantizer: out_format={self.out_format} takes no shift"
            require(self.shift is None, f"{rule}, not {self.shift!r}")
            rule = f"dequantizer: out_format={self.out_format} rounds to nearest even"
            require(self.rounding is Rounding.NEAREST_EVEN, f"{rule}, not {self.rounding}")
        else:
            rule = "dequantizer: out_format=int needs scale_format=int"
            require(self.scale_format is ScaleFormat.INT, f"{rule}, not {self.scale_format}")
            require(self.shift is not None, "dequantizer: out_format=int needs shift")
            check_range("dequantizer", self, shift=(0, 31))

    @property
    def is_float(self) -> bool:
        return self.out_format is not OutFormat.INT

    @property
    def group_beats(self) -> int:
        return self.group // self.lanes

    @property
    def difference_bits(self) -> int:
        """Width of a code less its zero point."""
        return self.bits + self.zero_points

    @property
    def mantissa_bits(self) -> int:
        """Width of what a code is multiplied by (unsigned); none of a power of two."""
        return {ScaleFormat.FP16: HALF_DIGITS, ScaleFormat.E8M0: 0}.get(self.scale_format, self.scale_bits)

    @property
    def exponent_bits(self) -> int:
        """Width of a scale's exponent; none of an integer."""
        return {ScaleFormat.FP16: 5, ScaleFormat.E8M0: E8M0_BITS}.get(self.scale_format, 0)

    @property
    def product_bits(self) -> int:
        return self.difference_bits + self.mantissa_bits


_INT: dict[str, Any] = {"scale_format": ScaleFormat.INT, "out_format": OutFormat.INT}

PRESETS = {
    "default": DequantizerParams(),
    "smallest": DequantizerParams(group=1, lanes=1, bits=2, scale_bits=1, out_bits=2, shift=0, **_INT),
    "zeros": DequantizerParams(group=6, lanes=2, bits=4, zero_points=True),
    "fp32": DequantizerParams(group=4, lanes=2, zero_points=True, out_format=OutFormat.FP32, out_bits=32),
    "pot": DequantizerParams(group=8, lanes=4, scale_format=ScaleFormat.E8M0, scale_bits=8),
    "pot-fp32": DequantizerParams(
        group=4, lanes=4, bits=4, scale_format=ScaleFormat.E8M0, scale_bits=8, out_format=OutFormat.FP32, out_bits=32
    ),
    "int": DequantizerParams(group=4, lanes=2, scale_bits=12, out_bits=12, shift=7, zero_points=True, **_INT),
    "int-away": DequantizerParams(
        group=2, lanes=2, bits=6, scale_bits=5, out_bits=24, shift=3, rounding=Rounding.NEAREST_AWAY, **_INT
    ),
    "int-truncate": DequantizerParams(
        group=2, lanes=2, bits=6, scale_bits=5, out_bits=8, shift=2, rounding=Rounding.TRUNCATE, **_INT
    ),
    "wide": DequantizerParams(
        group=4,
        lanes=2,
        bits=12,
        scale_format=ScaleFormat.INT,
        scale_bits=24,
        zero_points=True,
        out_format=OutFormat.FP32,
        out_bits=32,
    ),
}


def golden(
    params: DequantizerParams, Q: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Y[M, K] of codes Q [M, K], scales [M, K / group] and, with zero points, zeros of the same shape.

    int64, float16 or float32 as `out_format` says. Scales are integers of `scale_bits` (unsigned), what float16 holds
    exactly and is not negative, or E8M0 codes 0 to 254. K must be a multiple of `group`.
    """
    require(isinstance(Q, np.ndarray), f"Q must be a numpy array [M, K], not {type(Q).__name__}")
    require(Q.ndim == 2, f"Q must be a matrix [M, K], not an array of shape {Q.shape}")
    _check_groups(params, *Q.shape)
    fields = _scale_fields(params, Q, scales, zeros)
    grouped = check_codes("Q", Q, params.bits).reshape(-1, params.group)
    return _numbers(params, grouped, fields).reshape(Q.shape)


def _check_groups(params: DequantizerParams, M: Any, K: Any) -> tuple[Any, ...]:
    M, K = gemm.check_shape(M=M, K=K)
    rule = f"shape: K must be a multiple of {params.group} codes, which share a scale"
    require(bool(np.all(np.asarray(K) % params.group == 0)), f"{rule}, not {K!r}")
    return M, K


def _scale_fields(
    p: DequantizerParams, Q: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any] | None
) -> dict[str, Ints]:
    """The payload of `i_scale`: [groups] of each field."""
    shape = (Q.shape[0], Q.shape[1] // p.group)
    require(np.shape(scales) == shape, f"scales are {np.shape(scales)}, not {shape}: one a group")
    require(
        (zeros is not None) == p.zero_points, f"zeros: zero_points={p.zero_points} takes them only where it is true"
    )
    fields = {"scale": _patterns(p, scales).reshape(-1)}
    if zeros is not None:
        require(np.shape(zeros) == shape, f"zeros are {np.shape(zeros)}, not {shape}: one a group")
        fields["zero"] = check_codes("zeros", zeros, p.bits).reshape(-1)
    return fields


def _patterns(p: DequantizerParams, scales: NDArray[Any]) -> Ints:
    if p.scale_format is not ScaleFormat.FP16:
        codes = check_codes("scales", scales, p.scale_bits, signed=False)
        pot = p.scale_format is ScaleFormat.E8M0
        require(not pot or not (codes == 255).any(), "scales: E8M0 code 255 is no number; 0 to 254 are")
        return codes
    halves = half("scales", scales)
    require(not (halves < 0).any(), "scales: a negative one; all must be 0 or more")
    return half_bits(halves) & 0x7FFF


def _numbers(p: DequantizerParams, q: Ints, fields: Mapping[str, Ints]) -> NDArray[Any]:
    """What leaves of codes [groups, group]: integers, or floats."""
    scale = fields["scale"][:, None]
    difference = q - fields["zero"][:, None] if p.zero_points else q
    match p.scale_format:
        case ScaleFormat.E8M0:
            product, exponent = difference, scale - E8M0_BIAS
        case ScaleFormat.FP16:
            mantissa, biased = unpack_half(half_of(scale))
            product, exponent = difference * mantissa, biased - HALF_UNIT
        case _:
            product, exponent = difference * scale, np.zeros_like(scale)
    if p.out_format is OutFormat.INT:
        return saturate(_shifted(p, product), p.out_bits)
    real = np.ldexp(product.astype(np.float64), exponent)  # exact: fewer than 53 bits, far from float64's limits
    with np.errstate(over="ignore", under="ignore"):
        return real.astype(np.float16 if p.out_format is OutFormat.FP16 else np.float32)


def _shifted(p: DequantizerParams, product: Ints) -> Ints:
    """product / 2^shift under the named rounding."""
    assert p.shift is not None
    unit = 1 << p.shift
    whole, rest = np.divmod(product, unit)
    match p.rounding:
        case Rounding.NEAREST_EVEN:
            up = (2 * rest > unit) | ((2 * rest == unit) & (whole % 2 == 1))
        case Rounding.NEAREST_AWAY:
            up = (2 * rest > unit) | ((2 * rest == unit) & (product > 0))
        case Rounding.TRUNCATE:
            up = (rest > 0) & (product < 0)
        case _:
            up = np.zeros(rest.shape, dtype=bool)
    shifted: Ints = whole + up
    return shifted


def timing(params: DequantizerParams, M: Any, K: Any) -> Timing:
    """Exact cycles: the first scale, then a beat of codes a cycle; M and K may be int64 arrays."""
    M, K = _check_groups(params, M, K)
    count = M * (K // params.lanes)
    return Timing(
        total_cycles=count + 1 + DEQUANT_STAGES,
        load_cycles=1 + 0 * count,
        stream_cycles=count,
        drain_cycles=DEQUANT_STAGES + 0 * count,
        work=M * K,
        peak_per_cycle=params.lanes,
    )


def ops(params: DequantizerParams, M: int, K: int) -> tuple[Op, ...]:
    """A subtraction (with zero points), a product (not of powers of two) and a rounding a code, floats with the shifts
    that normalise and denormalise it; scales are written once a group, all other registers in every cycle."""
    M, K = _check_groups(params, M, K)
    p, count, cycles = params, M * K, timing(params, M, K).total_cycles
    found = [Op("reg", count // p.group, p.mantissa_bits + p.exponent_bits + p.bits * p.zero_points)]
    found += [Op("add", count, p.difference_bits)] if p.zero_points else []
    found += [Op("mul", count, p.difference_bits, p.mantissa_bits)] if p.mantissa_bits else []
    found += [Op("reg", cycles * p.lanes, p.product_bits + p.out_bits), Op("add", count, p.out_bits)]
    if p.is_float:
        found += [Op("shift", count, p.product_bits, p.product_bits - 1)] * 2
    if p.exponent_bits:
        found += [Op("add", count, p.exponent_bits), Op("reg", cycles, p.exponent_bits)]
    return tuple(found)


def beats(params: DequantizerParams, Q: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any] | None = None) -> Beats:
    """Input beats: `i_q` {q[lanes]}, row by row, and `i_scale` {scale} or {scale, zero}, one a group."""
    fields = _scale_fields(params, Q, scales, zeros)
    return {"i_q": {"q": Q.astype(np.int64).reshape(-1, params.lanes)}, "i_scale": fields}


def result(params: DequantizerParams, operands: tuple[Any, ...], out_beats: Mapping[str, Ints]) -> NDArray[Any]:
    """Y[M, K] from the beats of `o_y` {y[lanes]}."""
    y = out_beats["y"].reshape(operands[0].shape)
    match params.out_format:
        case OutFormat.FP16:
            return half_of(y)
        case OutFormat.FP32:
            return single_of(y)
    return y


def trace(params: DequantizerParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats` and `result`."""
    q = stimulus.beats["i_q"]["q"]
    index, ready = step_streams(ScaledControl(params.group_beats), stimulus, "o_y", len(q))
    y = _numbers(params, q.reshape(-1, params.group), stimulus.beats["i_scale"]).reshape(q.shape)
    if params.is_float:
        y = half_bits(y) if params.out_format is OutFormat.FP16 else single_bits(y)
    return assemble_trace(stimulus, index, ready, "o_y", {"y": y})


class ScaledControl:
    """A pipeline that takes codes while their group's scale is held; it leaves with the last of them."""

    def __init__(self, beats: int) -> None:
        self.beats, self.entered, self.held = beats, 0, False
        self.pipeline = PipelineControl(DEQUANT_STAGES, "i_q")

    def ready(self, valid: Mapping[str, bool], accept: bool) -> dict[str, bool]:
        codes = self.held and self.pipeline.advance(accept)
        last = codes and valid["i_q"] and self.entered == self.beats - 1
        return {"i_q": codes, "i_scale": not self.held or last}

    def shown(self) -> int | None:
        return self.pipeline.shown()

    def clock(self, taken: Mapping[str, int], accept: bool) -> None:
        self.pipeline.clock(taken, accept)
        if "i_q" in taken:
            self.entered = (self.entered + 1) % self.beats
            self.held = self.entered != 0
        self.held |= "i_scale" in taken


def shape_of(
    params: DequantizerParams, Q: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any] | None = None
) -> dict[str, int]:
    """The run's M and K."""
    return {"M": Q.shape[0], "K": Q.shape[1]}


def sample(
    params: DequantizerParams, rng: np.random.Generator, M: int | None = None, K: int | None = None
) -> tuple[NDArray[Any], ...]:
    """Random codes, scales and zero points, of a random small shape where none is given."""
    m, groups = gemm.random_shape(rng, 3, 2)
    low, high = signed_range(params.bits)
    q = gemm.random_codes(rng, (M or m, K or groups * params.group), low, high)
    shape = (q.shape[0], q.shape[1] // params.group)
    zeros = (gemm.random_codes(rng, shape, low, high),) if params.zero_points else ()
    return (q, _random_scales(params, rng, shape), *zeros)


def _random_scales(p: DequantizerParams, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    match p.scale_format:
        case ScaleFormat.FP16:
            return np.abs(random_halves(rng, shape))
        case ScaleFormat.E8M0:
            middle, width = rng.choice([(127, 10), (127, 127), (110, 12), (140, 8), (2, 2), (250, 4)])
            return rng.integers(middle - width, middle + width, shape, endpoint=True)
    return gemm.random_codes(rng, shape, 0, (1 << p.scale_bits) - 1)
