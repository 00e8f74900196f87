"""Outlier channels planted into a network without changing what it computes, for studies of extreme outliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hwsim.networks.network import Network
from hwsim.transforms.merge import divided
from models.unit import nearest, require


def plant_outliers(
    network: Network, *, factor: float, channels: int = 1, groups: Sequence[str] | None = None, seed: int = 1
) -> Network:
    """The network with `channels` randomly drawn channels of each group's input `factor` times as large.

    They are scaled up in the norm before the group, or in the weight whose product with something else it reads, and
    down by the same factor in the group's weights: outputs are equal up to rounding, exactly so where it is a power of
    two. `groups` must have such a place before them; None takes all that have. A note says what was done.
    Transforms that fold norms into weights (`quarot` and its like) take planted outliers of norms out again.
    """
    places = {name: g.norm or g.product for name, g in network.groups.items() if g.norm or g.product}
    chosen = list(places) if groups is None else list(groups)
    require(bool(places), f"outliers: {network.name} has no group with a norm or product before it")
    require(np.isfinite(factor) and factor > 0, f"outliers: factor={factor!r} must be positive and finite")
    tensors, rng = dict(network.tensors), np.random.default_rng(seed)
    for group in chosen:
        require(group in network.groups, f"outliers: no group {group!r}; {nearest(group, network.groups)}")
        require(group in places, f"outliers: {group} has no norm or product before it; {nearest(group, places)}")
        readers = network.groups[group].readers
        K = len(tensors[readers[0]])
        require(0 < channels <= K, f"outliers: channels={channels!r} is outside 1..{K}")
        shrink = np.ones(K)
        shrink[rng.choice(K, channels, replace=False)] = 1 / factor
        tensors |= divided(replace(network, tensors=tensors), places[group] or "", shrink)
        tensors |= {name: shrink[:, None] * tensors[name] for name in readers}
    for tensor in tensors.values():
        tensor.setflags(write=False)
    note = (
        f"outliers planted: {channels} channels of {', '.join(chosen)} scaled by {factor:g}; the function is the same"
    )
    return replace(network, tensors=tensors, notes=(*network.notes, note))
