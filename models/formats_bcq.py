"""Binary-coded quantization: sums of scaled bit planes, with real scales or with those that hardware holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from models.bits import check_codes
from models.formats_pot import nearest_pot, pot_table
from models.quantized import (
    SCALE_BITS,
    Floats,
    Quantized,
    best_step,
    checked,
    group_size,
    is_whole,
    join,
    positive,
    require_group,
    require_truth,
    scaled_values,
    split,
)
from models.unit import Ints, require


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

    With `blocks` a matrix's values of one group *and* of neighbouring slices along the other axis, of length n, share a
    set of scales: at most `blocks` blocks, each ceil(n / blocks) slices wide, rounded up to a `block_multiple`; the
    last may be smaller. The step is then one for all. Every slice still has its scales in the record, storage counts a
    shared one once. For weights [K, N] along K, group=1 with blocks=1 is ShiftAddLLM's column-wise sharing (one set for
    each input channel), group=8 with blocks=8 its block-wise sharing.
    """

    bits: int = 4
    group: int | None = None
    rounds: int = 15
    symmetric: bool = True
    scale_bits: int | None = None
    num_terms: int | None = None
    max_shift: int | None = None
    blocks: int | None = None
    block_multiple: int = 1

    def __post_init__(self) -> None:
        require(is_whole(self.bits, 1, 8), f"bcq: bits={self.bits!r} must be a whole number from 1 to 8")
        require(is_whole(self.rounds, 1, 1000), f"bcq: rounds={self.rounds!r} must be a whole number from 1 to 1000")
        require_truth("bcq: symmetric", self.symmetric)
        require_group(self.group)
        require((self.num_terms is None) == (self.max_shift is None), "bcq: num_terms and max_shift go together")
        require(self.scale_bits is None or self.num_terms is None, "bcq: give scale_bits or num_terms, not both")
        if self.scale_bits is not None:
            require(is_whole(self.scale_bits, 2, 32), f"bcq: scale_bits={self.scale_bits!r} must be from 2 to 32")
        if self.num_terms is not None and self.max_shift is not None:
            pot_table(self.num_terms, self.max_shift)
        rule = "must be a whole number of at least 1"
        require(self.blocks is None or is_whole(self.blocks, 1, 1 << 62), f"bcq: blocks={self.blocks!r} {rule}")
        require(is_whole(self.block_multiple, 1, 1 << 62), f"bcq: block_multiple={self.block_multiple!r} {rule}")
        alone = self.blocks is None and self.block_multiple != 1
        require(not alone, f"bcq: block_multiple={self.block_multiple} widens blocks; give blocks too")

    def quantize(self, x: ArrayLike, axis: int = -1) -> Quantized:
        values, axis = checked(x, axis)
        require(self.blocks is None or values.ndim == 2, f"bcq: blocks need a matrix, not an array of {values.shape}")
        parts = split(values, axis, group_size(values.shape[axis], self.group))
        blocks = self._runs(parts.shape[2])
        fits = [self._fit(parts[..., run], width) for run, width in blocks]
        codes, numbers = (np.concatenate(part, axis=-1) for part in zip(*fits, strict=True))
        whole = partial(join, like=values, axis=axis)
        real = Quantized(
            format=self,
            codes=whole(_long(codes)),
            scales=np.stack([whole(plane) for plane in numbers[:-1]]),
            offsets=whole(numbers[-1]),
            axis=axis,
            group=parts.shape[1],
        )
        return real if self._round is None else self._on_hardware(real, parts, numbers)

    def _width(self, n: int) -> int:
        """Neighbouring slices, of `n` along the other axes, that share a set of scales."""
        if self.blocks is None:
            return 1
        even = -(-n // self.blocks)
        return min(n, -(-even // self.block_multiple) * self.block_multiple)

    def _runs(self, n: int) -> list[tuple[slice, int]]:
        """Runs of equally wide blocks of `n` slices, with the width: the last block may be smaller than the others."""
        width = self._width(n)
        full = n - n % width
        return [(slice(0, full), width)] + ([(slice(full, n), n - full)] if full < n else [])

    def _fit(self, parts: Floats, width: int) -> tuple[Ints, Floats]:
        """Codes [G, group, rest], and scales with offsets last [bits + 1, G, rest], of blocks of `width` slices."""
        alpha, z, codes = _fit_bcq(_rows(parts, width), self.bits, self.rounds, self.symmetric)
        numbers = np.concatenate([alpha, z[:, None]], axis=1).reshape(len(parts), -1, self.bits + 1)
        return _parts(codes, parts.shape, width), np.repeat(np.moveaxis(numbers, -1, 0), width, axis=2)

    def _on_hardware(self, real: Quantized, parts: Floats, fields: Floats) -> Quantized:
        """`real` with scales and offsets rounded to hardware's, and codes of the levels now nearest to `parts`."""
        assert self._round is not None
        shared = fields.reshape(-1, parts.shape[2] if self.blocks is None else 1)
        base = positive(np.abs(shared).max(axis=0) / self._largest)
        step = np.broadcast_to(best_step(shared, base, self._round), parts.shape[2:])
        numbers = self._round(fields / step)
        blocks = self._runs(parts.shape[2])
        found = [_nearest(parts[..., run], step[run], numbers[..., run], width) for run, width in blocks]
        codes, integers = (np.concatenate(part, axis=-1) for part in zip(*found, strict=True))
        whole = partial(join, like=real.codes, axis=real.axis)
        steps, offset_codes = whole(step[None]), whole(numbers[-1])
        scale_codes = np.stack([whole(n) for n in numbers[:-1]])
        return dataclasses.replace(
            real,
            codes=whole(_long(codes)),
            scales=scale_codes * steps,
            offsets=offset_codes * steps,
            integers=whole(_long(integers)),
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
            return int(pot_table(self.num_terms, self.max_shift)[0][-1])
        return 0 if self.scale_bits is None else (1 << (self.scale_bits - 1)) - 1

    def values(self, q: Quantized) -> Floats:
        if q.integers is not None:
            return scaled_values(q)
        assert q.offsets is not None
        total = np.repeat(q.offsets.astype(np.float64), q.group, q.axis)
        for plane, scale in zip(signs_of(q.codes, self.bits), q.scales, strict=True):
            total += plane * np.repeat(scale, q.group, q.axis)
        return total

    def storage_bits(self, q: Quantized) -> int:
        slices = int(q.codes.size // q.codes.shape[q.axis])
        sets = -(-slices // self._width(slices)) * int(q.codes.shape[q.axis] // q.group)
        steps = 0 if q.step is None else 1 if self.blocks else slices
        numbers = sets * (self.bits + (not self.symmetric))
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


def _long(parts: Ints) -> Ints:
    """[G * group, rest] of [G, group, rest]."""
    return parts.reshape(-1, parts.shape[2])


def _rows(parts: Floats, width: int) -> Floats:
    """[G * blocks, group * width]: what shares a set of scales, of [G, group, blocks * width]."""
    groups, group, rest = parts.shape
    blocks = parts.reshape(groups, group, rest // width, width).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(blocks).reshape(-1, group * width)


def _parts(rows: Ints, shape: tuple[int, ...], width: int) -> Ints:
    """Inverse of `_rows` for parts of that shape."""
    groups, group, rest = shape
    return rows.reshape(groups, rest // width, group, width).transpose(0, 2, 1, 3).reshape(shape)


def _nearest(parts: Floats, step: Floats, numbers: Ints, width: int) -> tuple[Ints, Ints]:
    """Codes and integers [G, group, rest] nearest to `parts` of integer scales and offsets [bits + 1, G, rest]."""
    rows = numbers[..., ::width].reshape(len(numbers), -1).T
    scales, offsets = rows[:, :-1], rows[:, -1]
    codes = _assign(_rows(parts / step, width), scales.astype(np.float64), offsets.astype(np.float64))
    integers = (signs_of(codes, scales.shape[1]) * scales.T[..., None]).sum(axis=0) + offsets[:, None]
    return _parts(codes, parts.shape, width), _parts(integers, parts.shape, width)


def _fit_bcq(rows: Floats, bits: int, rounds: int, symmetric: bool) -> tuple[Floats, Floats, Ints]:
    """alpha [R, bits] ascending, z [R] and binary codes [R, g] of rows [R, g], each fitted by itself."""
    # scaled to magnitudes near 1 so that the smallest and largest rows are fitted alike
    unit = positive(np.abs(rows).max(axis=1, keepdims=True))
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
