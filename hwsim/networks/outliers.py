"""Outlier channels planted into a network without changing what it computes, for studies of extreme outliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature

import numpy as np

from hwsim.networks.network import Network
from hwsim.options import parse_options
from hwsim.transforms.maps import require_whole
from hwsim.transforms.merge import divided
from hwsim.transforms.smooth import require_number
from models.unit import nearest, require

MOST_FACTOR = 1 << 20
"""of planted outliers, far above what trained networks have"""


def planted(network: Network, text: str, *, seed: int = 1) -> Network:
    """The network with the outliers that `factor=64,channels=2` describes: options of `plant_outliers`, groups joined
    by `+`; `seed` is the default of theirs. InputError as there, and for other options or no factor.
    """
    _, options = parse_options("option", f"--outliers:{text}")
    known = list(signature(plant_outliers).parameters)[1:]
    for option in options:
        require(option in known, f"outliers: no option {option!r}; {nearest(option, known)}")
    require("factor" in options, f"outliers: {text!r} gives no factor, such as factor=64")
    if "groups" in options:
        options["groups"] = str(options["groups"]).split("+")
    return plant_outliers(network, **{"seed": seed, **options})


def plant_outliers(
    network: Network, *, factor: float, channels: int = 1, groups: Sequence[str] | None = None, seed: int = 1
) -> Network:
    """The network with `channels` randomly drawn channels of each group's input `factor` times as large.

    They are scaled up in the norm before the group, or in the weight whose product with something else it reads, and
    down by the same factor in the group's weights: outputs are equal up to rounding, exactly so where it is a power of
    two. `groups` must have such a place before them; None takes all that have. A note says what was done.
    Transforms that fold norms into weights (`quarot` and its like) take planted outliers of norms out again. InputError
    where an option is outside its range.
    """
    places = {name: g.norm or g.product for name, g in network.groups.items() if g.norm or g.product}
    chosen = list(places) if groups is None else list(groups)
    require(bool(places), f"outliers: {network.name} has no group with a norm or product before it")
    require_number("outliers: factor", factor, 1 / MOST_FACTOR, MOST_FACTOR)
    require_whole("outliers: channels", channels, 1)
    require_whole("outliers: seed", seed, 0)
    tensors, rng = dict(network.tensors), np.random.default_rng(seed)
    for group in chosen:
        require(group in network.groups, f"outliers: no group {group!r}; {nearest(group, network.groups)}")
        require(group in places, f"outliers: {group} has no norm or product before it; {nearest(group, places)}")
        readers = network.groups[group].readers
        K = len(tensors[readers[0]])
        require(channels <= K, f"outliers: channels={channels} is outside 1..{K} of {group}")
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
