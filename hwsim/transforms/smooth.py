"""Scales that move outliers from activations into weights, and channels that are split where they are large."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.transforms.maps import IN_BITS, Flatten, Hadamard, require_whole
from hwsim.transforms.merge import pooled, scaled
from hwsim.transforms.plan import Prepared, Transform, channels, noted, quantized_groups, samples, with_maps
from hwsim.transforms.sizes import MOST_BLOCK, block_points
from models.unit import require

Floats = NDArray[np.float64]

MOST_COPIES = 1024
"""of one channel that FlattenQuant may make"""


def smoothquant(*, alpha: float = 0.5) -> Transform:
    """s_j = amax(x_j)^alpha / amax(w_j)^(1 - alpha) over calibration activations and all readers' rows.

    Merged into the norm, the values or the product's weight before the group where there is one, online otherwise.
    """
    require_number("smoothquant: alpha", alpha, 0, 1)

    def transform(prepared: Prepared, _seed: int) -> Prepared:
        seen = samples(prepared)
        for group in quantized_groups(prepared.network):
            prepared = smoothed(prepared, group, seen[group], alpha)
        return prepared

    return transform


def quantvggt(*, alpha: float = 0.5, points: int | None = None, in_bits: int = IN_BITS) -> Transform:
    """Randomised block Hadamard before every group, then SmoothQuant's scales of the rotated channels, online.

    Blocks of `points`, by default of the largest power of two up to 64 that divides the group's channels.
    """
    require_number("quantvggt: alpha", alpha, 0, 1)
    Hadamard(points=MOST_BLOCK if points is None else points, in_bits=in_bits)

    def transform(prepared: Prepared, seed: int) -> Prepared:
        for group in quantized_groups(prepared.network):
            size = block_points(group, channels(prepared, group), points)
            prepared = with_maps(prepared, group, Hadamard(points=size, in_bits=in_bits, seed=seed))
        return smoothquant(alpha=alpha)(prepared, seed)

    return transform


def flattenquant(*, fence: float = 1.5, most: int = 8) -> Transform:
    """Channels above a threshold are split into up to `most` whose sums they are (`maps.Flatten`).

    The threshold of a group is the upper fence of a box plot of its channels' maxima: the third quartile plus `fence`
    times the distance of the quartiles.
    """
    require_number("flattenquant: fence", fence, 0, 1000)
    require_whole("flattenquant: most", most, 1)
    require(most <= MOST_COPIES, f"flattenquant: most={most} is above {MOST_COPIES}")

    def transform(prepared: Prepared, _seed: int) -> Prepared:
        for group, x in samples(prepared).items():
            if group not in prepared.network.kept:
                prepared = with_maps(prepared, group, _flattened(x, fence, most))
        return noted(prepared, "flattenquant: reduction dimensions grow by the copies of large channels")

    return transform


def smoothed(prepared: Prepared, group: str, x: Floats, alpha: float) -> Prepared:
    """The group's activations, of which `x` [M, K] are samples after its maps, divided by SmoothQuant's scales."""
    weights = np.concatenate(prepared.weights(group), axis=1)
    if prepared.maps.get(group):
        return scaled(prepared, group, smooth_scales(np.abs(x).max(axis=0), np.abs(weights).max(axis=1), alpha))
    largest_x = pooled(prepared.network, group, np.abs(x).max(axis=0))
    largest_w = pooled(prepared.network, group, np.abs(weights).max(axis=1))
    return scaled(prepared, group, smooth_scales(largest_x, largest_w, alpha))


def smooth_scales(largest_x: Floats, largest_w: Floats, alpha: float) -> Floats:
    """s [K] of channels' maxima; 1 where a channel is zero in the samples or has no weights."""
    live = (largest_x > 0) & (largest_w > 0)
    x, w = np.where(live, largest_x, 1.0), np.where(live, largest_w, 1.0)
    return np.asarray(x**alpha / w ** (1 - alpha))


def _flattened(x: Floats, fence: float, most: int) -> Flatten:
    largest = np.abs(x).max(axis=0)
    low, high = np.quantile(largest, [0.25, 0.75])
    threshold = float(high + fence * (high - low)) or 1.0
    return Flatten(threshold=threshold, copies=np.clip(np.ceil(largest / threshold), 1, most).astype(np.int64))


def require_number(what: str, value: Any, low: float, high: float) -> None:
    """InputError unless `value` is a number from `low` to `high`."""
    require(_is_number(value) and low <= value <= high, f"{what}={value!r} must be a number from {low} to {high}")


def require_clip(what: str, value: Any) -> None:
    """InputError unless `value` is a share of a range that leaves some of it: above 0, at most 1."""
    require(_is_number(value) and 0 < value <= 1, f"{what}={value!r} must be a number above 0 and at most 1")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
