"""Number formats: how real values become the codes that the hardware stores, and what those codes are worth.

    q = get_format("int4", group=128).quantize(x, axis=-1)
    q.codes, q.scales, q.dequantize(), q.bits_per_value

A format is a frozen dataclass of its options with the functions of `Format`; `FORMATS` gives it a name.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.bits import Rounding, check_codes, round_to_int, signed_range, unsigned_range
from models.unit import InputError, Ints, nearest, require

Floats = NDArray[np.float64]

SCALE_BITS = 16
"""Width assumed for a stored real scale, step or offset (FP16) in `bits_per_value`; the arithmetic here is float64."""

LARGEST = 1e300
"""Largest magnitude that is quantized: beyond it a dequantized value could overflow float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """An array in a number format. Its shape is `codes.shape`; groups of `group` consecutive values lie along `axis`.

    "Per group" below is the shape of the array with `axis` replaced by the number of groups G.
    """

    format: Format
    codes: Ints
    """what is stored, one code a value"""
    scales: Floats
    """per group; binary-coded formats have a leading dimension of bit planes"""
    offsets: Ints | Floats | None
    """per group: integer zero points of asymmetric integers, the real offset z of binary-coded formats, or None"""
    axis: int
    group: int
    integers: Ints | None = None
    """the weights as hardware sees them, one a value; None where a real number belongs to every group or plane"""
    step: Floats | None = None
    """real value of one integer unit, broadcastable to the array: 1 long along `axis` where all groups share it"""
    scale_codes: Ints | None = None
    """[bit planes, *per group], with scales == scale_codes * step exactly (binary-coded with hardware scales)"""
    offset_codes: Ints | None = None
    """per group, with offsets == offset_codes * step exactly (binary-coded with hardware scales)"""

    def dequantize(self) -> Floats:
        """The real values that the codes stand for; `integers * step` exactly where both exist."""
        return self.format.values(self)

    @property
    def bits_per_value(self) -> float:
        """Stored bits over the number of values: codes, scales and offsets (`storage_bits` says the widths)."""
        return self.format.storage_bits(self) / self.codes.size


class Format(Protocol):
    """What every options class gives."""

    @property
    def bits(self) -> int:
        """Bits of one code."""
        ...

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        """`x` in this format, one scale for each group along `axis`. InputError on NaN, infinities or empty arrays."""
        ...

    def values(self, q: Quantized) -> Floats:
        """The real values of `q`."""
        ...

    def storage_bits(self, q: Quantized) -> int:
        """Bits to store `q`: `bits` a code, `SCALE_BITS` a real number, and the widths that the class states."""
        ...


def get_format(name: str, **options: Any) -> Format:
    """The format of that name with these options; InputError names the nearest name or option."""
    require(name in FORMATS, f"no number format {name!r}; {nearest(name, FORMATS)}")
    make = FORMATS[name]
    free = [f.name for f in dataclasses.fields(typing.cast(type, make.func)) if f.name not in make.keywords]
    for option in options:
        require(option in free, f"format {name}: no option {option!r}; {nearest(option, free)}")
    return typing.cast(Format, make(**options))


# ---------------------------------------------------------------------------------------------------- groups


def _checked(x: ArrayLike, axis: int) -> tuple[Floats, int]:
    """`x` as float64 and `axis` counted from the front."""
    array = np.asarray(x)
    require(
        np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer),
        f"quantize: numbers are needed, not {array.dtype}; convert them to float32 or float64",
    )
    require(array.ndim > 0 and array.size > 0, f"quantize: an array of shape {array.shape} holds no values")
    require(-array.ndim <= axis < array.ndim, f"quantize: axis {axis} is outside -{array.ndim}..{array.ndim - 1}")
    values = array.astype(np.float64, copy=False)
    bad = ~(np.abs(values) <= LARGEST)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(f"quantize: {values[place]} at index {place}; finite values of at most {LARGEST:g} are needed")
    return values, axis % array.ndim


def _group_size(length: int, group: int | None) -> int:
    """The group size along an axis of `length` values; InputError names the nearest divisors otherwise."""
    if group is None or length % group == 0:
        return group or length
    below = max(d for d in range(1, min(group, length) + 1) if length % d == 0)
    above = [d for d in range(group, length + 1) if length % d == 0][:1]
    choices = " or ".join(str(d) for d in (below, *above))
    raise InputError(f"quantize: group={group} does not divide the axis of {length} values; nearest: {choices}")


def _split(x: Floats, axis: int, group: int) -> Floats:
    """[G, group, rest] of an array whose `axis` holds G groups."""
    front = np.moveaxis(x, axis, 0)
    return front.reshape(front.shape[0] // group, group, -1)


def _join(parts: NDArray[Any], like: NDArray[Any], axis: int) -> NDArray[Any]:
    """Inverse of `_split` for [L, rest]: the shape of `like` with `axis` replaced by L."""
    rest = like.shape[:axis] + like.shape[axis + 1 :]
    return np.moveaxis(parts.reshape(parts.shape[0], *rest), 0, axis)


def _require_group(group: int | None) -> None:
    require(group is None or _is_int(group, 1, 1 << 62), f"format: group={group!r} must be a positive whole number")


def _require_clip(clip: float) -> None:
    number = isinstance(clip, int | float | np.floating) and not isinstance(clip, bool)
    require(number and 0.0 < clip <= 1.0, f"format: clip={clip!r} must lie above 0 and up to 1")


def _require_truth(what: str, value: Any) -> None:
    require(isinstance(value, bool), f"{what}={value!r} must be True or False")


def _is_int(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(low <= value <= high)


def _positive(scale: Floats) -> Floats:
    """Scales with 1 for groups of zeros, and at least the smallest normal number."""
    return np.where(scale == 0.0, 1.0, np.maximum(scale, np.finfo(np.float64).tiny))


def _scaled_values(q: Quantized) -> Floats:
    assert q.integers is not None
    assert q.step is not None
    return q.integers * q.step


# ------------------------------------------------------------------------------------------------- integers


@dataclass(frozen=True, kw_only=True)
class IntFormat:
    """Uniform integers of `bits` bits, 2 to 16.

    Symmetric: s = clip * amax / largest code, code = round(x / s). Signed codes lie in [-2^(b-1), 2^(b-1)-1], unsigned
    ones in [0, 2^b-1] and then x must not be negative. Asymmetric: the range [clip * min(x, 0), clip * max(x, 0)] is
    divided into 2^b - 1 steps, zero point = round(-low / s) + lowest code, code = round(x / s) + zero point; zero is
    exact. A group of zeros has scale 1. Codes outside the range saturate (only `clip` and -2^(b-1) of rounding lead
    there). Quotients are formed in float64, then rounded as `rounding` says; zero points round to nearest even.
    Storage: 16 bits a scale, `bits` a zero point.
    """

    bits: int
    group: int | None = None
    symmetric: bool = True
    signed: bool = True
    rounding: Rounding = Rounding.NEAREST_EVEN
    clip: float = 1.0

    def __post_init__(self) -> None:
        require(_is_int(self.bits, 2, 16), f"int format: bits={self.bits!r} must be a whole number from 2 to 16")
        _require_truth("int format: symmetric", self.symmetric)
        _require_truth("int format: signed", self.signed)
        modes = [mode.value for mode in Rounding]
        require(self.rounding in modes, f"int format: rounding={self.rounding!r}; {nearest(str(self.rounding), modes)}")
        _require_group(self.group)
        _require_clip(self.clip)

    @property
    def code_range(self) -> tuple[int, int]:
        """Lowest and highest code."""
        return signed_range(self.bits) if self.signed else unsigned_range(self.bits)

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = _checked(x, axis)
        if self.symmetric and not self.signed:
            least = float(values.min())
            require(least >= 0.0, f"int format: {least} has no unsigned symmetric code; take symmetric=False")
        group = _group_size(values.shape[axis], self.group)
        parts = _split(values, axis, group)
        scale, zero = (self._symmetric if self.symmetric else self._asymmetric)(parts)
        codes = np.clip(round_to_int(parts / scale, self.rounding) + zero, *self.code_range)
        whole = partial(_join, like=values, axis=axis)
        scales = whole(scale[:, 0])
        return Quantized(
            format=self,
            codes=whole(codes.reshape(values.shape[axis], -1)).astype(np.int64),
            scales=scales,
            offsets=None if self.symmetric else whole(zero[:, 0]).astype(np.int64),
            axis=axis,
            group=group,
            integers=whole((codes - zero).reshape(values.shape[axis], -1)).astype(np.int64),
            step=scales if scales.shape[axis] == 1 else np.repeat(scales, group, axis),
        )

    def _symmetric(self, parts: Floats) -> tuple[Floats, Floats]:
        """Scale and zero point, each [G, 1, rest]."""
        amax = np.abs(parts).max(axis=1, keepdims=True)
        scale = _positive(amax * self.clip / self.code_range[1])
        return scale, np.zeros_like(scale)

    def _asymmetric(self, parts: Floats) -> tuple[Floats, Floats]:
        """Scale and zero point, each [G, 1, rest]."""
        low = np.minimum(parts.min(axis=1, keepdims=True), 0.0) * self.clip
        high = np.maximum(parts.max(axis=1, keepdims=True), 0.0) * self.clip
        scale = _positive((high - low) / ((1 << self.bits) - 1))
        return scale, np.rint(-low / scale) + self.code_range[0]

    def values(self, q: Quantized) -> Floats:
        return _scaled_values(q)

    def storage_bits(self, q: Quantized) -> int:
        zeros = 0 if q.offsets is None else q.offsets.size
        return self.bits * (q.codes.size + zeros) + SCALE_BITS * q.scales.size


# ------------------------------------------------------------------------------ sums of signed powers of two


@cache
def _pot_table(num_terms: int, max_shift: int) -> tuple[Ints, Ints, Ints]:
    """All sums of at most `num_terms` signed powers of two, ascending, with signs and shifts [values, num_terms]."""
    require(_is_int(num_terms, 1, 4), f"powers of two: num_terms={num_terms!r} must be a whole number from 1 to 4")
    require(_is_int(max_shift, 0, 30), f"powers of two: max_shift={max_shift!r} must be a whole number from 0 to 30")
    shifts = np.arange(max_shift, -1, -1)
    units = [(int(sign), int(shift)) for shift in shifts for sign in (1, -1)]
    found: dict[int, tuple[tuple[int, int], ...]] = {0: ()}
    last: dict[int, tuple[tuple[int, int], ...]] = {0: ()}
    for _ in range(num_terms):
        # fewest terms first; setdefault keeps the decomposition with the largest leading shift
        grown: dict[int, tuple[tuple[int, int], ...]] = {}
        for value, terms in last.items():
            for sign, shift in units:
                if not terms or shift <= terms[-1][1]:
                    total = value + sign * (1 << shift)
                    if total not in found:
                        grown.setdefault(total, (*terms, (sign, shift)))
        found |= grown
        last = grown
    ordered = sorted(found)
    padded = np.array([found[v] + ((0, 0),) * (num_terms - len(found[v])) for v in ordered], dtype=np.int64)
    return np.array(ordered, dtype=np.int64), padded[..., 0], padded[..., 1]


def pot_terms(values: Ints, num_terms: int, max_shift: int) -> tuple[Ints, Ints]:
    """Signs (-1, 0, +1) and shifts, each [*values.shape, num_terms]: value = sum of sign * 2^shift, shift <= max_shift.

    Canonical: as few terms as possible, largest shift first, then unused terms with sign 0 and shift 0. A shift may
    occur twice where the top one has to. InputError for a value that is no such sum; `nearest_pot` gives one that is.
    """
    levels, signs, shifts = _pot_table(num_terms, max_shift)
    wanted = np.asarray(values, dtype=np.int64)
    index = np.clip(np.searchsorted(levels, wanted), 0, levels.size - 1)
    bad = levels[index] != wanted
    if bad.any():
        first = wanted[bad][0]
        raise InputError(
            f"pot_terms: {first} is not a sum of {num_terms} signed powers of two up to 2^{max_shift}; "
            f"nearest: {nearest_pot(first, num_terms, max_shift)}"
        )
    return signs[index], shifts[index]


def nearest_pot(values: ArrayLike, num_terms: int, max_shift: int) -> Ints:
    """The nearest integer that is a sum of at most `num_terms` signed 2^0..2^max_shift; ties to the smaller magnitude.

    ShiftAddLLM takes terms greedily, each the residual's rounded log2; its sum is often not the nearest one (3 terms of
    log2 rounding can miss a representable value), so the nearest is searched instead: never a larger error.
    """
    levels, _, _ = _pot_table(num_terms, max_shift)
    positive = levels[levels >= 0]
    x = np.asarray(values, dtype=np.float64)
    magnitude = positive[_nearest_index(np.abs(x), positive)]
    return np.where(x < 0, -magnitude, magnitude)


def _nearest_index(x: Floats, levels: NDArray[Any]) -> Ints:
    """Index of the nearest of the ascending levels; ties to the lower one."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2.0, x, side="left")


# ------------------------------------------------------------------------------------------- binary-coded


@dataclass(frozen=True, kw_only=True)
class BcqFormat:
    """Binary-coded quantization, w ~ sum_i alpha_i b_i + z with b_i in {-1, +1} (LUT-GEMM, section on BCQ).

    Bit i of a code is 1 where b_i = +1; planes ascend by scale, all scales are at least 0. Fit per group: greedy start
    (b = sign of the residual, alpha = its mean magnitude), then at most `rounds` rounds of least squares for alpha (and
    z unless `symmetric`, where z = 0) and nearest-level b; a tie takes the lower level. The squared error never grows.

    Hardware scales, one kind or none: `scale_bits` rounds scales and z to signed fixed point of that width; `num_terms`
    with `max_shift` makes each a sum of at most that many signed powers of two (ShiftAddLLM). They share one real
    `step` in each slice along the other axes, the best of 16 in one octave by the squared error of scales and z; then b
    is assigned anew. Storage: 16 bits a real scale, z or step; a term is a sign, an enable and a shift.
    """

    bits: int = 4
    group: int | None = None
    rounds: int = 15
    symmetric: bool = True
    scale_bits: int | None = None
    num_terms: int | None = None
    max_shift: int | None = None

    def __post_init__(self) -> None:
        require(_is_int(self.bits, 1, 8), f"bcq: bits={self.bits!r} must be a whole number from 1 to 8")
        require(_is_int(self.rounds, 1, 1000), f"bcq: rounds={self.rounds!r} must be a whole number from 1 to 1000")
        _require_truth("bcq: symmetric", self.symmetric)
        _require_group(self.group)
        require((self.num_terms is None) == (self.max_shift is None), "bcq: num_terms and max_shift go together")
        require(self.scale_bits is None or self.num_terms is None, "bcq: give scale_bits or num_terms, not both")
        if self.scale_bits is not None:
            require(_is_int(self.scale_bits, 2, 32), f"bcq: scale_bits={self.scale_bits!r} must be from 2 to 32")
        if self.num_terms is not None and self.max_shift is not None:
            _pot_table(self.num_terms, self.max_shift)

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = _checked(x, axis)
        group = _group_size(values.shape[axis], self.group)
        parts = _split(values, axis, group)
        rows = np.ascontiguousarray(parts.transpose(0, 2, 1)).reshape(-1, group)
        alpha, z, codes = _fit_bcq(rows, self.bits, self.rounds, self.symmetric)
        whole = partial(_join, like=values, axis=axis)
        shape = (parts.shape[0], parts.shape[2])
        real = Quantized(
            format=self,
            codes=whole(_long(codes, shape)),
            scales=np.stack([whole(plane.reshape(shape)) for plane in alpha.T]),
            offsets=whole(z.reshape(shape)),
            axis=axis,
            group=group,
        )
        return real if self._round is None else self._on_hardware(real, rows, shape)

    def _on_hardware(self, real: Quantized, rows: Floats, shape: tuple[int, int]) -> Quantized:
        """`real` with scales and offsets rounded to hardware's, and codes of the levels now nearest to `rows`."""
        assert self._round is not None
        assert real.offsets is not None
        fields = np.concatenate([real.scales, real.offsets[None]]).astype(np.float64)
        per_group = np.moveaxis(fields, real.axis + 1, 1).reshape(self.bits + 1, *shape)
        step = _shared_step(per_group, self._round, self._largest)
        numbers = self._round(per_group / step)
        by_row = numbers.reshape(self.bits + 1, -1).T
        unit = np.broadcast_to(step, shape).reshape(-1, 1)
        codes = _assign(rows / unit, by_row[:, :-1].astype(np.float64), by_row[:, -1].astype(np.float64))
        integers = (signs_of(codes, self.bits) * by_row[:, :-1].T[..., None]).sum(axis=0) + by_row[:, -1:]
        whole = partial(_join, like=real.codes, axis=real.axis)
        steps, offset_codes = whole(step[None]), whole(numbers[-1])
        scale_codes = np.stack([whole(n) for n in numbers[:-1]])
        return dataclasses.replace(
            real,
            codes=whole(_long(codes, shape)),
            scales=scale_codes * steps,
            offsets=offset_codes * steps,
            integers=whole(_long(integers, shape)),
            step=steps,
            scale_codes=scale_codes,
            offset_codes=offset_codes,
        )

    @property
    def _round(self) -> Callable[[Floats], Ints] | None:
        """Integer units to the nearest integer that the scale hardware holds; None without hardware scales."""
        if self.num_terms is not None and self.max_shift is not None:
            return partial(nearest_pot, num_terms=self.num_terms, max_shift=self.max_shift)
        return None if self.scale_bits is None else partial(_round_clipped, largest=self._largest)

    @property
    def _largest(self) -> int:
        """Largest integer that the scale hardware holds."""
        if self.num_terms is not None and self.max_shift is not None:
            return int(_pot_table(self.num_terms, self.max_shift)[0][-1])
        return 0 if self.scale_bits is None else (1 << (self.scale_bits - 1)) - 1

    def values(self, q: Quantized) -> Floats:
        if q.integers is not None:
            return _scaled_values(q)
        assert q.offsets is not None
        total = np.repeat(q.offsets.astype(np.float64), q.group, q.axis)
        for plane, scale in zip(signs_of(q.codes, self.bits), q.scales, strict=True):
            total += plane * np.repeat(scale, q.group, q.axis)
        return total

    def storage_bits(self, q: Quantized) -> int:
        assert q.offsets is not None
        numbers = q.scales.size + (0 if self.symmetric else q.offsets.size)
        steps = 0 if q.step is None else q.step.size
        return self.bits * q.codes.size + self._bits_of_scale * numbers + SCALE_BITS * steps

    @property
    def _bits_of_scale(self) -> int:
        if self.num_terms is not None and self.max_shift is not None:
            return self.num_terms * (2 + self.max_shift.bit_length())
        return self.scale_bits or SCALE_BITS


def signs_of(codes: Ints, bits: int) -> Ints:
    """[bits, *codes.shape] of -1 and +1: the bit planes of binary codes, least significant first."""
    planes = np.arange(bits, dtype=np.int64).reshape(-1, *[1] * codes.ndim)
    return ((codes >> planes) & 1) * 2 - 1


def uniform_as_bcq(codes: Ints, bits: int) -> tuple[Ints, Ints, int]:
    """Signed integers w of `bits` bits as binary codes: (codes, scale codes [bits], offset code) worth exactly 2 w.

    2 w = sum_i 2^i b_i - 1 where the binary code is w + 2^(bits-1): uniform quantization is a special case of BCQ
    (LUT-GEMM), and doubling keeps it in integers.
    """
    w = check_codes("uniform_as_bcq", np.asarray(codes), bits)
    return w + (1 << (bits - 1)), np.int64(1) << np.arange(bits, dtype=np.int64), -1


def _long(rows: Ints, shape: tuple[int, int]) -> Ints:
    """[G * rest, group] rows as [G * group, rest]."""
    groups, rest = shape
    return rows.reshape(groups, rest, -1).transpose(0, 2, 1).reshape(-1, rest)


def _fit_bcq(rows: Floats, bits: int, rounds: int, symmetric: bool) -> tuple[Floats, Floats, Ints]:
    """alpha [R, bits] ascending, z [R] and binary codes [R, g] of rows [R, g], each fitted by itself."""
    # scaled to magnitudes near 1 so that the smallest and largest rows are fitted alike
    unit = _positive(np.abs(rows).max(axis=1, keepdims=True))
    fits = [_fit_chunk(c, bits, rounds, symmetric) for c in _chunks(rows / unit, bits)]
    alpha, z, codes = (np.concatenate(part) for part in zip(*fits, strict=True))
    return alpha * unit, z * unit[:, 0], codes


def _chunks(rows: Floats, bits: int) -> Iterator[Floats]:
    """Runs of rows small enough that levels and planes of one run stay near 2^20 values."""
    count = max(1, (1 << 20) // max(rows.shape[1] * bits, 1 << bits))
    for start in range(0, rows.shape[0], count):
        yield rows[start : start + count]


def _fit_chunk(rows: Floats, bits: int, rounds: int, symmetric: bool) -> tuple[Floats, Floats, Ints]:
    codes = _greedy(rows, bits, symmetric)
    for _ in range(rounds):
        alpha, z = _least_squares(rows, np.moveaxis(signs_of(codes, bits), 0, 1), symmetric)
        renewed = _assign(rows, alpha, z)
        if np.array_equal(renewed, codes):
            break
        codes = renewed
    return alpha, z, codes


def _greedy(rows: Floats, bits: int, symmetric: bool) -> Ints:
    """The start: each plane, from the top one down, is the sign of what the planes above it leave."""
    residual = rows if symmetric else rows - rows.mean(axis=1, keepdims=True)
    codes = np.zeros(rows.shape, dtype=np.int64)
    for i in reversed(range(bits)):
        alpha = np.abs(residual).mean(axis=1, keepdims=True)
        codes |= (residual >= 0).astype(np.int64) << i
        residual = residual - np.where(residual >= 0, alpha, -alpha)
    return codes


def _least_squares(rows: Floats, signs: Ints, symmetric: bool) -> tuple[Floats, Floats]:
    """alpha [R, bits] and z [R] of least squared error for signs [R, bits, g]; the shortest where several are best.

    alpha comes back non-negative and ascending: flipping or exchanging planes leaves the set of levels as it is.
    """
    ones = np.ones((rows.shape[0], 0 if symmetric else 1, rows.shape[1]))
    basis = np.concatenate([signs.astype(np.float64), ones], axis=1)
    gram = basis @ basis.transpose(0, 2, 1)
    best = (np.linalg.pinv(gram, rcond=1e-10, hermitian=True) @ (basis @ rows[..., None]))[..., 0]
    bits = signs.shape[1]
    return np.sort(np.abs(best[:, :bits]), axis=1), np.zeros(rows.shape[0]) if symmetric else best[:, bits]


def _assign(rows: Floats, alpha: Floats, z: Floats) -> Ints:
    """Binary codes [R, g] of the level nearest to each value; a tie takes the lower level."""
    bits = alpha.shape[1]
    patterns = signs_of(np.arange(1 << bits, dtype=np.int64), bits).astype(np.float64)
    size = max(1, (1 << 22) // max(rows.shape[1], 1 << bits))
    runs = [slice(start, start + size) for start in range(0, rows.shape[0], size)]
    return np.concatenate([_nearest_codes(rows[r], alpha[r] @ patterns + z[r, None]) for r in runs])


def _nearest_codes(rows: Floats, levels: Floats) -> Ints:
    """Binary search of each row's values in that row's own levels [R, 2^bits], indexed by code."""
    order = np.argsort(levels, axis=1, kind="stable")
    ascending = np.take_along_axis(levels, order, axis=1)
    middle = (ascending[:, 1:] + ascending[:, :-1]) / 2.0
    index = np.zeros(rows.shape, dtype=np.int64)
    half = levels.shape[1] // 2
    while half:
        index += half * (rows > np.take_along_axis(middle, index + half - 1, axis=1))
        half //= 2
    return np.take_along_axis(order, index, axis=1).astype(np.int64)


def _round_clipped(values: Floats, largest: int) -> Ints:
    return np.clip(np.rint(values), -largest, largest).astype(np.int64)


def _shared_step(numbers: Floats, rounded: Callable[[Floats], Ints], largest: int) -> Floats:
    """The step [rest] that the scales and offsets [n, G, rest] share: of 16 in one octave, the least squared error."""
    base = _positive(np.abs(numbers).max(axis=(0, 1)) / largest)
    step, least = base, np.full(base.shape, np.inf)
    for candidate in (base * 2.0 ** (i / 16) for i in range(16)):
        error = ((rounded(numbers / candidate) * candidate - numbers) ** 2).sum(axis=(0, 1))
        step, least = np.where(error < least, candidate, step), np.minimum(error, least)
    return step


# --------------------------------------------------------------------------------- additive powers of two


@cache
def apot_levels(bits: int) -> Ints:
    """The 2^(bits-1) magnitudes of additive powers of two, ascending, in units of the smallest power (Li et al. 2020).

    One bit is the sign. Each two of the others pick a term of {0, three powers of two}, an odd one of {0, one power}.
    Every power of two occurs in exactly one term. 4 bits: {0, 1/2, 1/4, 1/16} + {0, 1/8} = 0, 1, 2, .. 10 sixteenths.
    """
    pairs, odd = divmod(bits - 1, 2)
    # after two powers of every pair comes the odd term's one, then the third powers
    exponents = [[t + 1, pairs + t + 1, 2 * pairs + odd + t + 1] for t in range(pairs)]
    exponents += [[2 * pairs + 1]] * odd
    smallest = max(max(term) for term in exponents)
    levels = np.zeros(1, dtype=np.int64)
    for term in exponents:
        choices = np.array([0] + [1 << (smallest - e) for e in term], dtype=np.int64)
        levels = (levels[:, None] + choices).reshape(-1)
    return np.sort(levels)


@dataclass(frozen=True, kw_only=True)
class ApotFormat:
    """Additive powers of two of `bits` bits, 2 to 8 (Li et al. 2020): sign and one of the magnitudes of `apot_levels`.

    The scale is clip * amax of the group, the real value of the largest magnitude. A code is the signed index of its
    magnitude among the ascending ones, -(2^(b-1)-1) to 2^(b-1)-1; nearest level, ties to the smaller magnitude; values
    beyond the scale saturate. `integers` count the smallest power of two. Storage: 16 bits a scale.
    """

    bits: int = 4
    group: int | None = None
    clip: float = 1.0

    def __post_init__(self) -> None:
        require(_is_int(self.bits, 2, 8), f"apot: bits={self.bits!r} must be a whole number from 2 to 8")
        _require_group(self.group)
        _require_clip(self.clip)

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = _checked(x, axis)
        group = _group_size(values.shape[axis], self.group)
        parts = _split(values, axis, group)
        levels = apot_levels(self.bits)
        scale = _positive(np.abs(parts).max(axis=1, keepdims=True) * self.clip)
        index = _nearest_index(np.abs(parts) / (scale / levels[-1]), levels)
        negative = parts < 0
        whole = partial(_join, like=values, axis=axis)
        scales = whole(scale[:, 0])
        step = (scales if scales.shape[axis] == 1 else np.repeat(scales, group, axis)) / levels[-1]
        flat = (values.shape[axis], -1)
        return Quantized(
            format=self,
            codes=whole(np.where(negative, -index, index).reshape(flat)),
            scales=scales,
            offsets=None,
            axis=axis,
            group=group,
            integers=whole(np.where(negative, -levels[index], levels[index]).reshape(flat)),
            step=step,
        )

    def values(self, q: Quantized) -> Floats:
        return _scaled_values(q)

    def storage_bits(self, q: Quantized) -> int:
        return self.bits * q.codes.size + SCALE_BITS * q.scales.size


FORMATS: Mapping[str, partial[Any]] = {
    **{f"int{bits}": partial(IntFormat, bits=bits) for bits in range(2, 9)},
    "bcq": partial(BcqFormat),
    "apot": partial(ApotFormat),
}
"""Name -> options class with the options that the name fixes."""
