"""Small floats with shared scales: FP8, the MX formats, NVFP4, and FP4 with UE5M3 scales.

Elements and stored scales are those of models/minifloats.py; a code is the element's bit pattern (MXINT8: the integer).
Elements round once, from float64 unless the class says otherwise, as `rounding` says: nearest_even, nearest_away,
toward_zero, or stochastic with `rng`, a seed (the same draws at every call) or a numpy Generator. They saturate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.minifloats import (
    E2M1,
    E4M3,
    E8M0_BIAS,
    E8M0_TOP,
    ELEMENTS,
    UE5M3,
    code_values,
    encode_blocks,
)
from models.quantized import (
    FLOAT_ROUNDINGS,
    SCALE_BITS,
    Floats,
    Format,
    Quantized,
    checked,
    extremes,
    from_rows,
    group_size,
    is_whole,
    noise_for,
    positive,
    require_group,
    require_rounding,
    require_within,
    rows_of,
)
from models.unit import Ints, nearest, require

Singles = NDArray[np.float32]

PATTERN_BITS = 8
"""of a block's stored scale"""
SINGLE_BITS = 32
"""of the tensor's scale"""
SCALE_RULES = ("floor", "ceil", "even")
FLT_MAX = np.finfo(np.float32).max


@dataclass(frozen=True, kw_only=True)
class Fp8Format:
    """FP8 elements, E4M3 or E5M2 (OCP 8-bit Floating Point Specification 1.0), times a real scale.

    The scale is amax / largest magnitude of the element (448 or 57344), 1 for zeros: one for the whole array
    (`scale="tensor"`), or one for each group along the axis, the whole slice unless `group` is given
    (`scale="column"`). Storage: 8 bits a value, 16 bits a scale.
    """

    element: str
    scale: str = "column"
    group: int | None = None
    rounding: str = "nearest_even"
    rng: int | np.random.Generator | None = None

    def __post_init__(self) -> None:
        choices = ("tensor", "column")
        require(self.scale in choices, f"fp8: scale={self.scale!r}; {nearest(str(self.scale), choices)}")
        require_group(self.group)
        require(self.group is None or self.scale == "column", "fp8: group goes with scale='column'")
        require_rounding("fp8", self.rounding, self.rng, FLOAT_ROUNDINGS)

    @property
    def bits(self) -> int:
        return ELEMENTS[self.element].bits

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        group = group_size(values.shape[axis], self.group)
        blocks = rows_of(values, axis).reshape(-1, group)
        amax = _amax(blocks)
        if self.scale == "tensor":
            amax = np.full(amax.shape, amax.max())
        kind = ELEMENTS[self.element]
        scales = positive(amax / kind.largest)
        noise = noise_for(self.rounding, self.rng, blocks.shape)
        codes = encode_blocks(kind, blocks, scales, self.rounding, noise)
        return _record(self, values, axis, codes, scales)

    def values(self, q: Quantized) -> Floats:
        return _scaled(self.element, q)

    def storage_bits(self, q: Quantized) -> int:
        return self.bits * q.codes.size + SCALE_BITS * (1 if self.scale == "tensor" else q.scales.size)


@dataclass(frozen=True, kw_only=True)
class MxFormat:
    """Blocks of `group` elements with a power of two as scale (OCP Microscaling Formats Specification 1.0: blocks of
    32).

    The scale is 2^(e - emax), emax the exponent of the element's largest magnitude and e by `scale_rule`: "floor",
    floor(log2 amax), as in the specification; "ceil", ceil(log2 amax), where nothing saturates but E2M1 to E5M2 above
    their largest fraction of the top binade; "even", the floor after amax's significand is rounded to one mantissa bit,
    so that amax moves up from 1.75 on. Exponents are taken from the bits, never by rounding a logarithm or by a cast to
    E8M0, which rounds 3 to 4. The stored byte is the exponent + 127, limited to 0..254; zeros have 0, as 2^-127.
    MXINT8 elements are the integers -128 to 127, worth 1/64. InputError for magnitudes beyond the largest element times
    2^127. Storage: the element's bits, 8 bits a block.
    """

    element: str
    group: int = 32
    scale_rule: str = "floor"
    rounding: str = "nearest_even"
    rng: int | np.random.Generator | None = None

    def __post_init__(self) -> None:
        _require_block("mx", self.group)
        rule = f"mx: scale_rule={self.scale_rule!r}; {nearest(str(self.scale_rule), SCALE_RULES)}"
        require(self.scale_rule in SCALE_RULES, rule)
        require_rounding("mx", self.rounding, self.rng, FLOAT_ROUNDINGS)

    @property
    def bits(self) -> int:
        return ELEMENTS[self.element].bits

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        kind = ELEMENTS[self.element]
        require_within(f"mx {self.element}", values, kind.largest * 2.0 ** (E8M0_TOP - E8M0_BIAS))
        blocks = rows_of(values, axis).reshape(-1, group_size(values.shape[axis], self.group))
        patterns = power_codes(_amax(blocks), self.scale_rule, kind.largest_exponent)
        scales = code_values("e8m0")[patterns]
        noise = noise_for(self.rounding, self.rng, blocks.shape)
        codes = encode_blocks(kind, blocks, scales, self.rounding, noise)
        return _record(self, values, axis, codes, scales, patterns)

    def values(self, q: Quantized) -> Floats:
        return _scaled(self.element, q)

    def storage_bits(self, q: Quantized) -> int:
        return self.bits * q.codes.size + PATTERN_BITS * q.scales.size


def power_codes(amax: Floats, scale_rule: str, largest_exponent: int) -> Ints:
    """E8M0 codes of blocks with these largest magnitudes, by the rules of `MxFormat`."""
    fraction, exponent = np.frexp(amax)  # the fraction lies in [1/2, 1)
    up = {"floor": 2.0, "ceil": np.nextafter(0.5, 1.0), "even": 0.875}[scale_rule]
    power = exponent.astype(np.int64) - 1 + (fraction >= up) - largest_exponent
    return np.where(amax == 0.0, 0, np.clip(power + E8M0_BIAS, 0, E8M0_TOP))


@dataclass(frozen=True, kw_only=True)
class Nvfp4Format:
    """E2M1 elements in blocks of 16 with E4M3 scales, and a float32 scale of the whole array ("Pretraining Large
    Language Models with NVFP4", NVIDIA 2025).

    s = 2688 / amax of the array (1 for zeros; 2688 = 6 * 448), S = E4M3(min(amax of the block / 6 * s, 448)), element =
    E2M1(x * min(1 / (S / s), FLT_MAX)), saturating at 6; every step in float32, rounded once to nearest even, x first.
    The value is element * S * `tensor_scale`, which is 1 / s in float32. `tile` neighbouring slices of a matrix share
    their scales: 16 makes the tiles of 16 x 16 of the training recipe's weights, whose values are the same along both
    axes. InputError for magnitudes beyond float32. Storage: 4 bits a value, 8 a scale, a shared one once, 32 an array;
    `models.minifloats.pack_nibbles` packs.
    """

    group: int = 16
    tile: int = 1
    rounding: str = "nearest_even"
    rng: int | np.random.Generator | None = None

    def __post_init__(self) -> None:
        _require_block("nvfp4", self.group)
        require(is_whole(self.tile, 1, 1 << 30), f"nvfp4: tile={self.tile!r} must be a whole number of at least 1")
        require_rounding("nvfp4", self.rounding, self.rng, FLOAT_ROUNDINGS)

    @property
    def bits(self) -> int:
        return E2M1.bits

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        require_within("nvfp4", values, float(FLT_MAX))
        group = group_size(values.shape[axis], self.group)
        self._require_tiles(values.shape, axis)
        rows = rows_of(values.astype(np.float32), axis)
        amax = self._shared_amax(_amax(rows.reshape(-1, group)).reshape(len(rows), -1)).reshape(-1, 1)
        s = _tensor_encode(amax.max())
        patterns = _block_patterns(amax, s)
        stored = code_values("e4m3")[patterns]
        blocks = _single_products(rows.reshape(-1, group), stored.astype(np.float32), s)
        noise = noise_for(self.rounding, self.rng, blocks.shape)
        codes = encode_blocks(E2M1, blocks, np.ones(amax.shape), self.rounding, noise)
        tensor_scale = float(np.float32(1) / s)
        return _record(self, values, axis, codes, stored * tensor_scale, patterns, tensor_scale)

    def _require_tiles(self, shape: tuple[int, ...], axis: int) -> None:
        if self.tile > 1:
            require(len(shape) == 2, f"nvfp4: tile={self.tile} needs a matrix, not an array of {shape}")
            group_size(shape[1 - axis], self.tile)

    def _shared_amax(self, amax: Singles) -> Singles:
        """[R, G]: the largest of each tile's slices."""
        tiles = amax.reshape(len(amax) // self.tile, self.tile, -1).max(axis=1)
        return np.repeat(tiles, self.tile, axis=0)

    def values(self, q: Quantized) -> Floats:
        return _scaled("e2m1", q)

    def storage_bits(self, q: Quantized) -> int:
        return self.bits * q.codes.size + PATTERN_BITS * q.scales.size // self.tile + SINGLE_BITS


def _tensor_encode(amax: np.float32) -> np.float32:
    """s, in float32's range where the array is very small."""
    if amax == 0:
        return np.float32(1)
    with np.errstate(over="ignore"):
        return min(np.float32(E2M1.largest * E4M3.largest) / amax, FLT_MAX)


def _block_patterns(amax: Singles, s: np.float32) -> Ints:
    wanted = np.minimum(amax / np.float32(E2M1.largest) * s, np.float32(E4M3.largest)).astype(np.float64)
    return encode_blocks(E4M3, wanted, np.ones(wanted.shape), "nearest_even", None)


def _single_products(blocks: Singles, stored: Singles, s: np.float32) -> Floats:
    """x * min(1 / (S / s), FLT_MAX), in float32 and limited to the element's range, as float64."""
    with np.errstate(divide="ignore", over="ignore"):
        product: Singles = blocks * np.minimum(np.float32(1) / (stored / s), FLT_MAX)
    return np.clip(product, -E2M1.largest, E2M1.largest).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Fp4Ue5m3Format:
    """E2M1 elements in blocks of 16 with unsigned E5M3 scales and no scale of the array.

    S = UE5M3(amax of the block / 6), rounded to nearest even; the element is E2M1(x / S). UE5M3 reaches from 2^-17 to
    114688: a block whose S rounds to 0 becomes zeros; InputError for magnitudes beyond 6 * 114688. Storage: 4 bits a
    value, 8 a scale.
    """

    group: int = 16
    rounding: str = "nearest_even"
    rng: int | np.random.Generator | None = None

    def __post_init__(self) -> None:
        _require_block("fp4_ue5m3", self.group)
        require_rounding("fp4_ue5m3", self.rounding, self.rng, FLOAT_ROUNDINGS)

    @property
    def bits(self) -> int:
        return E2M1.bits

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        require_within("fp4_ue5m3", values, E2M1.largest * UE5M3.largest)
        blocks = rows_of(values, axis).reshape(-1, group_size(values.shape[axis], self.group))
        wanted = _amax(blocks) / E2M1.largest
        patterns = encode_blocks(UE5M3, wanted, np.ones(wanted.shape), "nearest_even", None)
        scales = code_values("ue5m3")[patterns]
        noise = noise_for(self.rounding, self.rng, blocks.shape)
        unit = np.where(patterns == 0, np.inf, scales)  # what the scale cannot hold is zero
        codes = encode_blocks(E2M1, blocks, unit, self.rounding, noise)
        return _record(self, values, axis, codes, scales, patterns)

    def values(self, q: Quantized) -> Floats:
        return _scaled("e2m1", q)

    def storage_bits(self, q: Quantized) -> int:
        return self.bits * q.codes.size + PATTERN_BITS * q.scales.size


# ------------------------------------------------------------------------------------------- what they share


def _require_block(what: str, group: int) -> None:
    require(is_whole(group, 1, 1 << 30), f"{what}: group={group!r} must be a whole number of at least 1")


def _amax(blocks: NDArray[Any]) -> NDArray[Any]:
    """[B, 1] largest magnitudes of [B, g]."""
    low, high = extremes(blocks)
    amax: NDArray[Any] = np.abs(np.maximum(high, -low))  # of zeros the maximum can be -0
    return amax[:, None]


def _record(
    format_: Format,
    like: Floats,
    axis: int,
    codes: Ints,
    scales: Floats,
    patterns: Ints | None = None,
    tensor_scale: float | None = None,
) -> Quantized:
    """Of codes [B, g], scales and their patterns [B, 1]: blocks of one slice follow each other."""
    slices = like.size // like.shape[axis]
    return Quantized(
        format=format_,
        codes=from_rows(codes.reshape(slices, -1), like, axis),
        scales=from_rows(scales.reshape(slices, -1), like, axis),
        offsets=None,
        axis=axis,
        group=codes.shape[1],
        scale_patterns=None if patterns is None else from_rows(patterns.reshape(slices, -1), like, axis),
        tensor_scale=tensor_scale,
    )


def _scaled(element: str, q: Quantized) -> Floats:
    """Element times the scale of its group."""
    whole: Floats = code_values(element)[q.codes]
    shape = (*whole.shape[: q.axis], -1, q.group, *whole.shape[q.axis + 1 :])
    parts = whole.reshape(shape)
    parts *= np.expand_dims(q.scales, q.axis + 1)
    return parts.reshape(whole.shape)
