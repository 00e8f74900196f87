"""Maps that cost nothing online: rewritten into the weights before and after the activations that they change.

Each function gives a network of the same outputs. A group that already has online maps takes no merged one: it would
stand before them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwsim.networks.network import Heads, Network
from hwsim.transforms.maps import Scaling
from hwsim.transforms.plan import Prepared, with_maps, with_tensors
from models.unit import InputError, require

Floats = NDArray[np.float64]


def scaled(prepared: Prepared, group: str, s: Floats) -> Prepared:
    """The group's activations divided by s [K], its readers' rows multiplied by it.

    The division goes into what stands before: the norm, the values or the product's weight; online where there is no
    such place. Before an output layer s must be the same for all queries' heads that share a value head (`pooled`).
    """
    network, place = prepared.network, prepared.network.groups[group]
    if prepared.maps.get(group) or not (place.norm or place.values or place.product):
        return with_maps(prepared, group, Scaling(s=s))
    if place.norm:
        before = divided(network, place.norm, s)
    elif place.values:
        before = divided(network, place.values, _value_channels(_heads(network), s))
    else:
        assert place.product is not None
        before = divided(network, place.product, s)
    after = {name: s[:, None] * network.tensors[name] for name in place.readers}
    return with_tensors(prepared, before | after)


def divided(network: Network, name: str, s: Floats) -> dict[str, Floats]:
    """The outputs of a weight [K, N], or a norm [N], divided by s [N]; the bias with them."""
    return {part: network.tensors[part] / s for part in (name, f"{name}.bias") if part in network.tensors}


def silu_scaled(prepared: Prepared, layer: str, conv: Floats, gate: Floats) -> Prepared:
    """A state-space layer with the results of its two SiLU functions divided by `conv` and `gate`, [inner] positive.

    SiLU becomes x sigmoid(s x) and x is divided by s in the weights before it: the taps of the convolution, and the
    columns of `in` that make the gate. Rows of `x` take `conv` back. The scan is linear in each channel of its input
    once its steps are given, so it hands the factor on, and rows of `out` take back the product of both. Nothing is
    left online but the factor inside the sigmoid. Smooth-fused scales of MambaQuant (Xu et al., 2025).
    """
    t = prepared.network.tensors
    for part in ("x", "out"):
        group = f"{layer}.{part}"
        require(group not in prepared.maps, f"transform: {group} has online maps already; scale its SiLU first")
    columns = np.concatenate([np.ones_like(gate), gate])
    tensors = divided(prepared.network, f"{layer}.in", columns)
    tensors[f"{layer}.conv"] = t[f"{layer}.conv"] / conv[:, None]
    tensors[f"{layer}.conv.bias"] = t[f"{layer}.conv.bias"] / conv
    factors = (("conv.silu", conv), ("gate.silu", gate), ("x", conv[:, None]), ("out", (conv * gate)[:, None]))
    tensors |= {f"{layer}.{part}": s * t[f"{layer}.{part}"] for part, s in factors}
    return with_tensors(prepared, tensors)


def pooled(network: Network, group: str, amax: Floats) -> Floats:
    """Per-channel maxima [K] over everything that must be scaled alike before this group."""
    if network.groups[group].values is None:
        return amax
    heads = _heads(network)
    shared = amax.reshape(heads.keys, -1, heads.size).max(axis=1, keepdims=True)
    return np.broadcast_to(shared, (heads.keys, heads.queries // heads.keys, heads.size)).reshape(-1)


def _value_channels(heads: Heads, s: Floats) -> Floats:
    parts = s.reshape(heads.keys, -1, heads.size)
    require(bool((parts == parts[:, :1]).all()), "scaling: heads that share values need the same factors")
    return parts[:, 0].reshape(-1)


def _heads(network: Network) -> Heads:
    if network.heads is None:
        raise InputError(f"{network.name}: a group reads attention values, but the network names no heads")
    return network.heads


def stream_groups(network: Network) -> tuple[str, ...]:
    """The groups that read the residual stream through a norm; none where the stream cannot be rotated."""
    if not network.residual:
        return ()
    width = network.tensors[network.residual[0]].shape[1]
    norms = {group: place.norm for group, place in network.groups.items() if place.norm}
    return tuple(group for group, norm in norms.items() if network.tensors[norm].shape == (width,))


def norms_folded(prepared: Prepared) -> Prepared:
    """The scale of every norm of the residual stream moved into the weights that read it: what is left of the norm
    commutes with a rotation."""
    tensors = dict(prepared.network.tensors)
    for group in stream_groups(prepared.network):
        place = prepared.network.groups[group]
        require(
            group not in prepared.maps,
            f"transform: {group} has online maps already; a transform that rotates the residual stream comes first",
        )
        assert place.norm is not None
        gamma = tensors[place.norm]
        tensors |= {name: gamma[:, None] * tensors[name] for name in place.readers}
        tensors[place.norm] = np.ones_like(gamma)
    return with_tensors(prepared, tensors)


def stream_rotated(prepared: Prepared, Q: Floats) -> Prepared:
    """The residual stream times Q: writers' outputs take Q, readers Q^T. Norms' scales must be 1 (`norms_folded`)."""
    network = prepared.network
    tensors: dict[str, Floats] = {}
    for name in network.residual:
        tensors |= {part: network.tensors[part] @ Q for part in (name, f"{name}.bias") if part in network.tensors}
    for group in stream_groups(network):
        # a weight can read the stream and write it
        for name in network.groups[group].readers:
            tensors[name] = Q.T @ tensors.get(name, network.tensors[name])
    return with_tensors(prepared, tensors)


def values_rotated(prepared: Prepared, group: str, Q: Floats) -> Prepared:
    """Each head's values times Q [size, size]; the rows of the group's readers, head by head, times Q^T."""
    network, place = prepared.network, prepared.network.groups[group]
    require(group not in prepared.maps, f"transform: {group} has online maps already; rotate its values first")
    assert place.values is not None
    size = _heads(network).size
    found = [name for name in (place.values, f"{place.values}.bias") if name in network.tensors]
    tensors = {name: _by_head(network.tensors[name], Q, size) for name in found}
    tensors |= {name: _by_head(network.tensors[name].T, Q, size).T for name in place.readers}
    return with_tensors(prepared, tensors)


def _by_head(x: Floats, Q: Floats, size: int) -> Floats:
    return np.asarray(x.reshape(*x.shape[:-1], -1, size) @ Q).reshape(x.shape)
