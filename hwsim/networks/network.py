"""What every network is here: named tensors, a forward pass, and the places where low-bit arithmetic can stand.

A forward pass computes norms, activation functions, attention scores and the like itself, in float64. Everything that
a design point replaces goes through its `Arithmetic`: `project` for linear layers that read the same activations (they
are transformed and quantized once for all of them), `state` for what a cache keeps between tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.unit import require

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Linear layers that read the same activations, and what stands before them.

    The fields after `readers` tell a transform what it can be folded into; None where there is no such thing.
    """

    readers: tuple[str, ...]
    """their weights' names in `Network.tensors`, each [K, N]; a bias [N] is the tensor `<name>.bias`, where there is"""
    norm: str | None = None
    """the scale [K] of the norm that these activations leave, read by this group alone; its shift is `<norm>.bias`"""
    values: str | None = None
    """the weight of the attention values of which these activations are weighted sums, head by head"""
    product: str | None = None
    """a weight whose outputs these activations are, times something else element by element"""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """How attention divides channels: `queries` heads share `keys` heads of keys and values, `size` channels each."""

    queries: int
    keys: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What computes a forward pass's linear layers and keeps its caches."""

    project: Callable[[str, Floats], tuple[Floats, ...]]
    """(group, activations [M, K]) -> outputs [M, N] of each of its readers in order, biases included"""
    state: Callable[[str, Floats], Floats] = field(default=lambda _name, x: x)
    """(state, values [M, channels]) -> the values as they are read back from the cache"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """Arrays are read-only float64; rewrites make a new network with `dataclasses.replace`."""

    name: str
    tensors: Mapping[str, Floats]
    """every weight by its name; those of linear layers are [K, N], embeddings [vocabulary, channels]"""
    groups: Mapping[str, Group]
    """name -> group, in the order of the forward pass"""
    forward: Callable[[Network, Any, Arithmetic], Floats]
    """(network, inputs, arithmetic) -> outputs"""
    evaluate: Callable[[Network, Arithmetic], dict[str, float]]
    """(network, arithmetic) -> the network's end metrics by name on data that it has never seen"""
    calibration: Any
    """inputs for `forward`, disjoint from what `evaluate` uses"""
    workload: Any
    """inputs for `forward`: the one batch whose cycles and energy a design point states"""
    batch: int
    """images, sentences or tokens in `workload`, over which its energy is divided"""
    heads: Heads | None = None
    """of its attention; None where it has none"""
    states: tuple[str, ...] = ()
    """every name that the forward pass gives to `Arithmetic.state`"""
    residual: tuple[str, ...] = ()
    """what writes the residual stream: embeddings and weights whose outputs are added to it. Only where the stream is
    otherwise read through norms with a scale alone (RMS norms, pre-norm), so that a rotation of it can be merged."""
    kept: tuple[str, ...] = ()
    """groups that stay in float by the field's custom, such as the head of a language model"""
    notes: tuple[str, ...] = ()
    """what was done to the published or trained network, to be said wherever a figure of it is shown"""


def float_arithmetic(network: Network) -> Arithmetic:
    """Every linear layer in float64, caches as they are."""

    def project(group: str, x: Floats) -> tuple[Floats, ...]:
        return tuple(linear(network, name, x) for name in network.groups[group].readers)

    return Arithmetic(project=project)


def linear(network: Network, name: str, x: Floats) -> Floats:
    """x W + bias in float64."""
    return x @ network.tensors[name] + linear_bias(network, name)


def linear_bias(network: Network, name: str) -> Floats | float:
    """The bias [N] of a linear layer; 0 where it has none."""
    return network.tensors.get(f"{name}.bias", 0.0)


def require_width(network: Network, group: str, x: Floats) -> None:
    """InputError unless `x` is a matrix of as many channels as the group's readers take."""
    K = len(network.tensors[network.groups[group].readers[0]])
    fits = x.ndim == 2 and x.shape[1] == K
    require(fits, f"{network.name}, {group}: activations of shape {x.shape}; [M, {K}] are needed")


def frozen(values: NDArray[Any]) -> NDArray[Any]:
    """A read-only copy."""
    copy = np.array(values)
    copy.setflags(write=False)
    return copy
