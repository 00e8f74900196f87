"""Low-bit integer weights with an integer scale and zero point for each group of consecutive k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bits import check_codes, require_codes
from models.unit import InputError, Ints, require


@dataclass(frozen=True, kw_only=True)
class GroupedWeights:
    """W[k, n] = scales[g, n] * (codes[k, n] - zeros[g, n]), g = k // group; the last group may be shorter.

    `codes` int64 [K, N]; `scales`, at least 1, and `zeros` int64 [G, N].
    """

    codes: Ints
    scales: Ints
    zeros: Ints
    group: int

    def __post_init__(self) -> None:
        for name in ("codes", "scales", "zeros"):
            values = np.asarray(getattr(self, name))
            fits = np.issubdtype(values.dtype, np.integer) and values.ndim == 2
            require(fits, f"{name}: integers with 2 axes are needed, not {values.dtype} {values.shape}")
            object.__setattr__(self, name, values.astype(np.int64, copy=False))
        whole = isinstance(self.group, (int, np.integer)) and not isinstance(self.group, bool)
        require(whole and self.group >= 1, f"group must be a whole number of at least 1, not {self.group!r}")
        k, n = self.codes.shape
        groups = -(-k // self.group)
        for name in ("scales", "zeros"):
            shape = getattr(self, name).shape
            require(shape == (groups, n), f"{name} are {shape}, not [{groups}, {n}]")
        self._refuse_low_scales()

    def _refuse_low_scales(self) -> None:
        low = np.argwhere(self.scales < 1)
        if len(low):
            place = [int(i) for i in low[0]]
            raise InputError(f"scales{place}: {self.scales[tuple(place)]}; a scale is a whole number of at least 1")

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)"""
        return (self.codes.shape[0], self.codes.shape[1])

    @property
    def integers(self) -> Ints:
        """W as plain integers [K, N]."""
        return self.spread(self.scales) * (self.codes - self.spread(self.zeros))

    def spread(self, values: Ints) -> Ints:
        """Values [G, N] of groups as those of each k, [K, N]."""
        if len(values) == 1:
            return np.broadcast_to(values, self.shape)
        return np.repeat(values, self.group, axis=0)[: self.shape[0]]


def check_grouped(weights: GroupedWeights, weight_bits: int, scale_bits: int, group_size: int | None) -> None:
    """Refuse weights that an array of these widths and groups cannot load: codes and zero points are two's complement
    of `weight_bits` bits, scales unsigned of `scale_bits`; no `group_size` means one group."""
    rule = f"W must be GroupedWeights (from_integers and operand make them), not {type(weights).__name__}"
    require(isinstance(weights, GroupedWeights), rule)
    require_codes("codes", weights.codes, weight_bits)
    require_codes("zeros", weights.zeros, weight_bits)
    require_codes("scales", weights.scales, scale_bits, signed=False)
    size = group_size or weights.shape[0]
    same = weights.group == size or weights.shape[0] <= min(weights.group, size)
    require(same, f"W has groups of {weights.group}: the array has group_size={group_size}")


def grouped_operand(name: str, quantized: Any) -> GroupedWeights:
    """W from weights [K, N] quantized to integers with integer scales; no zero points are zeros."""
    if getattr(quantized, "scale_codes", None) is None or np.ndim(quantized.scale_codes) != 2:
        raise InputError(f"{name}: weights need integer codes with integer scales (an int format with scale_bits)")
    scales = quantized.scale_codes
    zeros = np.zeros(scales.shape, dtype=np.int64) if quantized.offsets is None else quantized.offsets
    return GroupedWeights(codes=quantized.codes, scales=scales, zeros=zeros, group=quantized.group)


def grouped_integers(W: NDArray[Any], weight_bits: int, group_size: int | None) -> GroupedWeights:
    """A plain integer matrix of `weight_bits` bits as W: codes with scale 1 and zero point 0."""
    codes = check_codes("W", W, weight_bits)
    group = group_size or max(codes.shape[0], 1)
    shape = (-(-codes.shape[0] // group), codes.shape[1])
    zeros = np.zeros(shape, dtype=np.int64)
    return GroupedWeights(codes=codes, scales=zeros + 1, zeros=zeros, group=group)
