"""A transformed network: weights rewritten where a map could be merged, and the maps that stay online.

prepared = prepare("smoothquant+hadamard", network, seed=1)
network.forward(prepared.network, inputs, float_maps(prepared))     # == the network itself, in exact arithmetic
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from hwsim.networks.network import Arithmetic, Network, float_arithmetic, linear_bias, require_width
from hwsim.transforms.maps import Map
from models.bits import signed_range
from models.unit import require

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Clip:
    """The share of a token's range that integers of at most `bits` bits keep; wider ones keep all."""

    share: float
    bits: int


@dataclass(frozen=True, kw_only=True)
class Static:
    """Symmetric signed integers of `bits` bits in one step for all of a state, known before the network runs."""

    step: float
    bits: int

    def rounded(self, x: Floats) -> Floats:
        """The values that the codes of x stand for: x / step rounded to nearest even, saturated."""
        return self.step * np.clip(np.rint(x / self.step), *signed_range(self.bits))


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A network before quantization."""

    network: Network
    """with every merged map in its tensors"""
    maps: Mapping[str, tuple[Map, ...]] = field(default_factory=dict)
    """group -> maps of its activations, first to last; their inverses are still due on its readers' weights"""
    states: Mapping[str, tuple[Map, ...]] = field(default_factory=dict)
    """state -> maps of what a cache keeps, undone when it is read"""
    clips: Mapping[str, Clip] = field(default_factory=dict)
    """group or state -> what its integer codes keep of each token's range; all of it where it is absent"""
    static: Mapping[str, Static] = field(default_factory=dict)
    """state -> its integers, after its maps, in every quantized run; others are in float unless they are cached"""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the network and the transforms say of themselves."""
        return self.network.notes

    def weights(self, group: str) -> tuple[Floats, ...]:
        """The weights [K, N] of the group's readers, with the inverses of its maps."""
        tensors = (self.network.tensors[name] for name in self.network.groups[group].readers)
        return tuple(reduce(lambda W, m: m.fold_weights(W), self.maps.get(group, ()), W) for W in tensors)

    def mapped(self, group: str, x: Floats) -> Floats:
        """The group's activations [M, K] after its maps, in float64."""
        return reduce(lambda v, m: m.apply(v), self.maps.get(group, ()), x)


Transform = Callable[[Prepared, int], Prepared]
"""(prepared, seed) -> prepared with one transform more"""


def with_tensors(prepared: Prepared, tensors: Mapping[str, Floats]) -> Prepared:
    """With these tensors in place of those of the same names."""
    for tensor in tensors.values():
        tensor.setflags(write=False)
    network = replace(prepared.network, tensors={**prepared.network.tensors, **tensors})
    return replace(prepared, network=network)


def with_maps(prepared: Prepared, group: str, *maps: Map) -> Prepared:
    """With these maps after those that the group already has."""
    return replace(prepared, maps={**prepared.maps, group: (*prepared.maps.get(group, ()), *maps)})


def with_state(prepared: Prepared, state: str, *maps: Map) -> Prepared:
    """With these maps after those that the state already has."""
    return replace(prepared, states={**prepared.states, state: (*prepared.states.get(state, ()), *maps)})


def with_clips(prepared: Prepared, clips: Mapping[str, Clip]) -> Prepared:
    return replace(prepared, clips={**prepared.clips, **clips})


def with_static(prepared: Prepared, static: Mapping[str, Static]) -> Prepared:
    return replace(prepared, static={**prepared.static, **static})


def noted(prepared: Prepared, *notes: str) -> Prepared:
    network = prepared.network
    return replace(prepared, network=replace(network, notes=(*network.notes, *notes)))


def quantized_groups(network: Network) -> tuple[str, ...]:
    """The groups that low-bit arithmetic computes: all but those kept in float."""
    return tuple(group for group in network.groups if group not in network.kept)


def channels(prepared: Prepared, group: str) -> int:
    """K of the group's readers after its maps."""
    network = prepared.network
    K = len(network.tensors[network.groups[group].readers[0]])
    return prepared.mapped(group, np.zeros((1, K))).shape[1]


def float_maps(prepared: Prepared) -> Arithmetic:
    """Maps and inverse weights in float64: the same outputs as the network itself, up to rounding."""
    weights = {group: prepared.weights(group) for group in prepared.network.groups}

    def project(group: str, x: Floats) -> tuple[Floats, ...]:
        v = prepared.mapped(group, x)
        readers = prepared.network.groups[group].readers
        return tuple(v @ W + linear_bias(prepared.network, n) for n, W in zip(readers, weights[group], strict=True))

    def state(name: str, x: Floats) -> Floats:
        maps = prepared.states.get(name, ())
        return reduce(lambda v, m: m.undo(v), reversed(maps), reduce(lambda v, m: m.apply(v), maps, x))

    return Arithmetic(project=project, state=state)


def inputs(prepared: Prepared, rows: int = 2048) -> dict[str, Floats]:
    """The activations [M, K] that each group reads, before its maps, over the network's calibration inputs.

    At most `rows` of a group, evenly spaced. InputError where they are not finite.
    """
    return _seen(prepared, rows)[0]


def samples(prepared: Prepared, rows: int = 2048) -> dict[str, Floats]:
    """The same after the group's maps."""
    return {group: prepared.mapped(group, x) for group, x in inputs(prepared, rows).items()}


def state_samples(prepared: Prepared, rows: int = 2048) -> dict[str, Floats]:
    """The values [M, channels] of each state, before its maps; otherwise as `samples`."""
    return _seen(prepared, rows)[1]


def _seen(prepared: Prepared, rows: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """What groups read and what caches are given over the calibration inputs, before maps."""
    network = prepared.network
    groups: dict[str, list[Floats]] = {}
    states: dict[str, list[Floats]] = {}
    compute = float_arithmetic(network).project

    def project(group: str, x: Floats) -> tuple[Floats, ...]:
        require_width(network, group, x)
        groups.setdefault(group, []).append(_spaced(group, x, rows))
        return compute(group, x)

    def state(name: str, x: Floats) -> Floats:
        states.setdefault(name, []).append(_spaced(name, x, rows))
        return x

    require(len(network.calibration) > 0, f"{network.name}: there are no calibration inputs")
    network.forward(network, network.calibration, Arithmetic(project=project, state=state))
    return _gathered(groups, rows), _gathered(states, rows)


def _gathered(found: Mapping[str, list[Floats]], rows: int) -> dict[str, Floats]:
    return {name: _spaced(name, np.concatenate(parts), rows) for name, parts in found.items()}


def _spaced(name: str, x: Floats, rows: int) -> Floats:
    require(bool(np.isfinite(x).all()), f"{name}: its activations over the calibration inputs are not all finite")
    return spaced(x, rows)


def spaced(x: Floats, rows: int) -> Floats:
    """At most `rows` of the rows, evenly spaced, the first and the last among them."""
    return x[np.linspace(0, len(x) - 1, min(rows, len(x))).astype(np.int64)]
