"""Attention sinks: tokens of massive activations, whose keys and values a cache keeps in float."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.networks.network import Arithmetic, Floats, Network
from hwsim.transforms.plan import Prepared, noted


def with_sinks(prepared: Prepared, count: int) -> Prepared:
    """The network with states that give tokens of massive activations back as they were, whatever keeps the others.

    These are the tokens that hold the `count` largest magnitudes of a sequence's residual stream as it is where the
    state is given: before a layer, for its keys and values; at most `count` tokens, fewer where one has several of
    them. They are found as the network runs. The attention-sink-aware quantization of RotateKV (Su et al., 2025), whose
    code does so with 20. A rotation of the stream spreads massive activations: other tokens are then the largest.
    Without a residual stream no token is kept, and a note says so.
    """
    network = prepared.network
    if not network.residual:
        return noted(prepared, f"sinks: {network.name} names no residual stream, so no token stays in float")
    forward = network.forward

    def kept(network: Network, inputs: Any, arithmetic: Arithmetic) -> Floats:
        return forward(network, inputs, _keeping(network, inputs, arithmetic, count))

    note = f"sinks: tokens of the {count} largest activations of a sequence before a layer stay in float in its cache"
    return noted(replace(prepared, network=replace(network, forward=kept)), note)


def _keeping(network: Network, inputs: Any, arithmetic: Arithmetic, count: int) -> Arithmetic:
    """The arithmetic with sinks kept, for one forward pass over the token numbers `inputs` [T] or [B, T]."""
    tokens = np.asarray(inputs)
    read = {name for group in network.groups.values() for name in group.readers}
    embeddings = [network.tensors[name] for name in network.residual if name not in read]
    stream: Floats | None = None

    def project(group: str, x: Floats) -> tuple[Floats, ...]:
        nonlocal stream
        if stream is None:  # not before the network has looked at its tokens
            stream = sum((table[tokens.reshape(-1)] for table in embeddings), start=np.zeros(()))
        outputs = arithmetic.project(group, x)
        for name, y in zip(network.groups[group].readers, outputs, strict=True):
            stream = stream + y if name in network.residual else stream
        return outputs

    def state(name: str, x: Floats) -> Floats:
        assert stream is not None, "keys and values are projections"
        return np.where(massive(stream, tokens.shape[-1], count)[:, None], x, arithmetic.state(name, x))

    return Arithmetic(project=project, state=state)


def massive(stream: Floats, length: int, count: int) -> NDArray[np.bool_]:
    """[B length] which tokens of `stream` [B length, channels] hold one of their sequence's `count` largest."""
    sizes = np.abs(stream).reshape(-1, length * stream.shape[1])
    taken = min(count, sizes.shape[1])
    largest = np.argpartition(-sizes, taken - 1, axis=1)[:, :taken]
    found = np.zeros((len(sizes), length), dtype=bool)
    np.put_along_axis(found, largest // stream.shape[1], True, axis=1)
    return found.reshape(-1)
