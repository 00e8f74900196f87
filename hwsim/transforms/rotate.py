"""Transforms made of rotations: which are merged into weights, and which stay online."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from hwsim.networks.network import Heads, Network
from hwsim.transforms.learn import cayley_descent, require_learning, rounding_loss
from hwsim.transforms.maps import IN_BITS, Hadamard, Map, Permutation, Rotation, require_whole
from hwsim.transforms.merge import norms_folded, silu_scaled, stream_groups, stream_rotated, values_rotated
from hwsim.transforms.plan import (
    Clip,
    Prepared,
    Static,
    Transform,
    channels,
    noted,
    quantized_groups,
    samples,
    state_samples,
    with_clips,
    with_maps,
    with_state,
    with_static,
)
from hwsim.transforms.qsur import qsur
from hwsim.transforms.sinks import with_sinks
from hwsim.transforms.sizes import MOST_BLOCK, block_points, full_points
from hwsim.transforms.smooth import require_clip, require_number, smooth_scales, smoothed
from models.bits import signed_range
from models.unit import InputError, require

Floats = NDArray[np.float64]
StreamRotation = Callable[[Prepared, int], Floats]
"""(prepared, norms folded; seed) -> Q [channels of the residual stream, the same]"""
Online = Callable[[Prepared, str], Prepared]
"""(prepared, group) -> prepared with the group's input mapped"""
Onlines = Callable[[Prepared, int], tuple[Prepared, Online]]
"""(prepared, merged rotations done; seed) -> prepared, scales merged; how its other groups are mapped"""

ROWS = 256
"""rows of each group's activations and of each reader's columns that SpinQuant learns from"""

MOST_HEADS = 1024
"""that RotateKV can be asked to rotate together"""
MOST_SINKS = 4096
"""activations of which a sequence's tokens keep their caches in float"""
MOST_BITS = 16
"""of Quamba's integers"""


def none() -> Transform:
    """The network as it is."""
    return lambda prepared, _seed: prepared


def hadamard(*, points: int | None = None, in_bits: int = IN_BITS) -> Transform:
    """Randomised block Hadamard before every group, online.

    Blocks of `points`, by default of the largest power of two up to 64 that divides the group's channels.
    """
    Hadamard(points=MOST_BLOCK if points is None else points, in_bits=in_bits)

    def transform(prepared: Prepared, seed: int) -> Prepared:
        for group in quantized_groups(prepared.network):
            size = block_points(group, channels(prepared, group), points)
            prepared = with_maps(prepared, group, Hadamard(points=size, in_bits=in_bits, seed=seed))
        return prepared

    return transform


def quarot(*, in_bits: int = IN_BITS, clip: float = 0.9) -> Transform:
    """A randomised Hadamard rotation of the residual stream, merged; one of each head's values, merged; one online
    before every other group (the product before a down-projection) at full width; keys after RoPE head by head.

    The rotation of keys is undone as they are read; hardware rotates the queries instead, for the same work. Without a
    residual stream that can be rotated, every group but those that read values is rotated online. `clip` is the share
    of each token's range that 4-bit activations keep, as in the paper.
    """
    require_clip("quarot: clip", clip)
    Hadamard(in_bits=in_bits)

    def transform(prepared: Prepared, seed: int) -> Prepared:
        prepared = _rotated(prepared, seed, "quarot", _random_stream, _hadamard_online(in_bits))
        return with_clips(prepared, dict.fromkeys(quantized_groups(prepared.network), Clip(clip, 4)))

    return transform


def spinquant(*, steps: int = 20, bits: int = 4, in_bits: int = IN_BITS) -> Transform:
    """QuaRot with a residual rotation learned from its randomised Hadamard matrix by Cayley steps.

    The loss is the squared rounding error at `bits` bits, a scale a token and a column, of activations and of the
    weights that read the stream, each relative to its own size. The paper's loss is the network's own, and its
    rotations of values are learned too. InputError for a network whose residual stream cannot be rotated.
    """
    require_learning("spinquant", steps, bits)
    Hadamard(in_bits=in_bits)

    def learned(prepared: Prepared, seed: int) -> Floats:
        seen, groups = samples(prepared, ROWS), stream_groups(prepared.network)
        weights = [W.T[:: -(-W.shape[1] // ROWS)] for group in groups for W in prepared.weights(group)]
        rows = [part / np.linalg.norm(part) for part in [*(seen[group] for group in groups), *weights]]
        return cayley_descent(_random_stream(prepared, seed), rounding_loss(np.concatenate(rows), bits), steps=steps)[0]

    def transform(prepared: Prepared, seed: int) -> Prepared:
        name = prepared.network.name
        rule = f"spinquant: the residual stream of {name} cannot be rotated (its norms have shifts or follow it)"
        require(bool(stream_groups(prepared.network)), f"{rule}; nearest: 'quarot', which then rotates online")
        return _rotated(prepared, seed, "spinquant", learned, _hadamard_online(in_bits))

    return transform


def ostquant(*, alpha: float = 0.5, in_bits: int = IN_BITS) -> Transform:
    """Pairs of rotation and scaling: the residual stream by R = U_W H^T (U_W: left singular vectors of the weights that
    read it), values by Hadamard matrices head by head, other groups online; then SmoothQuant's scales of the rotated
    channels, merged into norms, values and products.

    The paper goes on to learn the pairs. A note gives the mean QSUR^(1/d) of the groups' activations before and after.
    """
    require_number("ostquant: alpha", alpha, 0, 1)
    Hadamard(in_bits=in_bits)

    def transform(prepared: Prepared, seed: int) -> Prepared:
        before = _mean_qsur(prepared)
        found = _rotated(prepared, seed, "ostquant", _weight_stream, _smoothed_online(alpha, in_bits))
        seen = samples(found)
        for group in quantized_groups(found.network):
            if group not in found.maps:
                found = smoothed(found, group, seen[group], alpha)
        return noted(
            found, f"ostquant: mean QSUR^(1/d) of activations {before:.3g} before, {_mean_qsur(found):.3g} after"
        )

    return transform


def mambaquant(*, alpha: float = 0.5, in_bits: int = IN_BITS) -> Transform:
    """R = K H of the residual stream, K its Karhunen-Loeve basis, merged; before other groups SmoothQuant's scales,
    then a Hadamard rotation online.

    Scales are merged where they can be: in a state-space layer those before `x` and `out` into its SiLU functions
    (`merge.silu_scaled`), the ones before `dt` stay online. The paper also balances the product of state and C by
    scales in the weights of B and C, which is not done: the scan is in float here.
    """
    require_number("mambaquant: alpha", alpha, 0, 1)
    Hadamard(in_bits=in_bits)

    def transform(prepared: Prepared, seed: int) -> Prepared:
        return _rotated(prepared, seed, "mambaquant", _klt_stream, _fused_online(alpha, in_bits))

    return transform


def klt() -> Transform:
    """R = K H before every group, online: the basis in which its calibration activations are uncorrelated, then a
    randomised Hadamard matrix that spreads the few large ones of these coefficients."""

    def transform(prepared: Prepared, seed: int) -> Prepared:
        for group, x in samples(prepared).items():
            if group not in prepared.network.kept:
                prepared = with_maps(prepared, group, Rotation(Q=klt_rotation(group, x, seed)))
        return prepared

    return transform


def quamba(*, percentile: float = 99.999, bits: int = 8, in_bits: int = IN_BITS) -> Transform:
    """A Hadamard rotation at full width of what a state-space layer gives to its output projection; in quantized runs
    the layer's input in integers of `bits` bits with one static step (`percentile_step`).

    The step is of calibration values as the network is when this transform comes, so one that scales channels must come
    before it. The projection that reads the input too takes its values in its own activations' format: they are rounded
    twice, where the paper has the same integers for both. InputError for a network without state-space layers.
    """
    require_number("quamba: percentile", percentile, 0, 100)
    require(percentile > 0, f"quamba: percentile={percentile!r} must be above 0")
    require_whole("quamba: bits", bits, 2)
    require(bits <= MOST_BITS, f"quamba: bits={bits} is above {MOST_BITS}")
    Hadamard(in_bits=in_bits)

    def transform(prepared: Prepared, seed: int) -> Prepared:
        layers = state_space_layers(prepared.network)
        require(bool(layers), f"quamba: {prepared.network.name} has no state-space layers; nearest: 'quarot'")
        seen = state_samples(prepared)
        for layer in layers:
            prepared = _full_hadamard(prepared, f"{layer}.out", in_bits, seed)
        steps = {s: percentile_step(seen[s], percentile, bits) for s in (f"{layer}.ssm_input" for layer in layers)}
        prepared = with_static(prepared, {state: Static(step=step, bits=bits) for state, step in steps.items()})
        return noted(prepared, f"quamba: inputs of state-space layers in static {bits}-bit integers")

    return transform


def state_space_layers(network: Network) -> tuple[str, ...]:
    """The layers that name the input and output of a state-space scan among the network's states."""
    return tuple(state.removesuffix(".ssm_output") for state in network.states if state.endswith(".ssm_output"))


def percentile_step(x: Floats, percentile: float, bits: int) -> float:
    """The percentile of |x|, all values together, over the largest code of signed integers; 1 where it is 0.

    Quamba (Chiang et al., 2024) takes a moving average of the percentiles of batches.
    """
    return float(np.percentile(np.abs(x), percentile)) / signed_range(bits)[1] or 1.0


def rotatekv(*, heads: int = 4, clip: float = 0.8, sinks: int = 20) -> Transform:
    """Keys before RoPE by a Hadamard matrix over `heads` heads at a time (the most that divide theirs), then channels
    in the order of their calibration maxima, so that groups of a format hold like channels; values head by head.

    `clip` is the share of each token's range that 2-bit codes keep, as in the paper. Tokens of the `sinks` largest
    values of the residual stream before a layer keep their keys and values there in float (`sinks.with_sinks`); where
    the network names no residual stream none do, and a note says so. InputError for a network without these caches.
    """
    require_whole("rotatekv: heads", heads, 1)
    require(heads <= MOST_HEADS, f"rotatekv: heads={heads} is above {MOST_HEADS}")
    require_clip("rotatekv: clip", clip)
    require_whole("rotatekv: sinks", sinks, 0)
    require(sinks <= MOST_SINKS, f"rotatekv: sinks={sinks} is above {MOST_SINKS}")

    def transform(prepared: Prepared, seed: int) -> Prepared:
        network = prepared.network
        keys = [name for name in network.states if name.endswith(".key_before_rope")]
        values = [name for name in network.states if name.endswith(".value")]
        if network.heads is None or not keys:
            rule = f"rotatekv: {network.name} caches no keys before rotary embedding"
            raise InputError(f"{rule}; nearest: 'quarot'")
        seen = state_samples(prepared)
        for name in keys:
            prepared = with_state(prepared, name, *_key_maps(network.heads, heads, seen[name], seed))
        for name in values:
            prepared = with_state(prepared, name, _per_head(network.heads, seed))
        prepared = with_clips(prepared, dict.fromkeys((*keys, *values), Clip(clip, 2)))
        return with_sinks(prepared, sinks) if sinks else prepared

    return transform


def lrq_dit(*, fluctuation: float = 1.0, in_bits: int = IN_BITS) -> Transform:
    """Per group: block Hadamard, or, where activations fluctuate more, an outlier-aware rotation before every group.

    Fluctuation is the standard deviation of the channels' calibration maxima over their mean. The outlier-aware form
    deals channels out to the blocks by their maxima in zigzag, so that each block has as much to spread, and then
    rotates the blocks: a permutation more, which is wiring.
    """
    require_number("lrq-dit: fluctuation", fluctuation, 0, 1000)
    Hadamard(in_bits=in_bits)

    def transform(prepared: Prepared, seed: int) -> Prepared:
        turned = []
        for group, x in samples(prepared).items():
            if group in prepared.network.kept:
                continue
            points = block_points(group, x.shape[1])
            maps: tuple[Map, ...] = (Hadamard(points=points, in_bits=in_bits, seed=seed),)
            largest = np.abs(x).max(axis=0)
            if float(largest.std()) > fluctuation * float(largest.mean()):
                maps = (Permutation(order=zigzag(largest, points)), *maps)
                turned.append(group)
            prepared = with_maps(prepared, group, *maps)
        return noted(
            prepared, f"lrq-dit: outlier-aware rotation of {', '.join(turned) or 'no group'}, Hadamard elsewhere"
        )

    return transform


def zigzag(largest: Floats, size: int) -> NDArray[np.int64]:
    """Channels, the largest first, dealt out to blocks of `size` forwards and backwards by turns; block by block."""
    dealt = np.argsort(-largest, kind="stable").reshape(size, -1)
    dealt[1::2] = dealt[1::2, ::-1]
    return np.ascontiguousarray(dealt.T).reshape(-1)


# --------------------------------------------------------------------------------------------------- parts


def _rotated(prepared: Prepared, seed: int, title: str, stream: StreamRotation, others: Onlines) -> Prepared:
    """Residual stream and values by merged rotations, every other group by `online`, keys after RoPE head by head."""
    network = prepared.network
    merged = set(stream_groups(network))
    if merged:
        prepared = norms_folded(prepared)
        prepared = stream_rotated(prepared, stream(prepared, seed))
    else:
        reason = "norms with a scale alone do not stand between the residual stream and its readers"
        prepared = noted(prepared, f"{title}: rotated online before each group, as {reason}; values in the weights")
    prepared, online = others(prepared, seed)
    for group in quantized_groups(network):
        if network.groups[group].values:
            assert network.heads is not None
            prepared = values_rotated(prepared, group, _head_matrix(network.heads, seed))
        elif group not in merged:
            prepared = online(prepared, group)
    for name in network.states:
        if name.endswith(".key"):
            assert network.heads is not None
            prepared = with_state(prepared, name, _per_head(network.heads, seed))
    return prepared


def _hadamard_online(in_bits: int) -> Onlines:
    return lambda prepared, seed: (prepared, lambda p, group: _full_hadamard(p, group, in_bits, seed))


def _smoothed_online(alpha: float, in_bits: int) -> Onlines:
    def others(prepared: Prepared, seed: int) -> tuple[Prepared, Online]:
        seen = samples(prepared)
        return prepared, lambda p, group: _full_hadamard(smoothed(p, group, seen[group], alpha), group, in_bits, seed)

    return others


def _fused_online(alpha: float, in_bits: int) -> Onlines:
    """`_smoothed_online`, but for the groups whose scales go into the SiLU functions of state-space layers."""

    def others(prepared: Prepared, seed: int) -> tuple[Prepared, Online]:
        seen, fused = samples(prepared), set[str]()
        for layer in state_space_layers(prepared.network):
            if f"{layer}.gate.silu" in prepared.network.tensors:
                before_x, before_out = (_scales(prepared, seen, f"{layer}.{part}", alpha) for part in ("x", "out"))
                prepared = silu_scaled(prepared, layer, conv=before_x, gate=before_out / before_x)
                fused |= {f"{layer}.x", f"{layer}.out"}

        def online(p: Prepared, group: str) -> Prepared:
            p = p if group in fused else smoothed(p, group, seen[group], alpha)
            return _full_hadamard(p, group, in_bits, seed)

        return prepared, online

    return others


def _scales(prepared: Prepared, seen: Mapping[str, Floats], group: str, alpha: float) -> Floats:
    weights = np.concatenate(prepared.weights(group), axis=1)
    return smooth_scales(np.abs(seen[group]).max(axis=0), np.abs(weights).max(axis=1), alpha)


def _full_hadamard(prepared: Prepared, group: str, in_bits: int, seed: int) -> Prepared:
    points = full_points(group, channels(prepared, group))
    return with_maps(prepared, group, Hadamard(points=points, in_bits=in_bits, seed=seed))


def _random_stream(prepared: Prepared, seed: int) -> Floats:
    group = stream_groups(prepared.network)[0]
    return hadamard_rotation(group, channels(prepared, group), seed)


def _weight_stream(prepared: Prepared, seed: int) -> Floats:
    """U_W H^T of all weights that read the stream."""
    groups = stream_groups(prepared.network)
    every = np.concatenate([W for group in groups for W in prepared.weights(group)], axis=1)
    return np.linalg.eigh(every @ every.T)[1] @ hadamard_rotation(groups[0], len(every), seed)


def _klt_stream(prepared: Prepared, seed: int) -> Floats:
    groups, seen = stream_groups(prepared.network), samples(prepared)
    return klt_rotation(groups[0], np.concatenate([seen[group] for group in groups]), seed)


def klt_rotation(group: str, x: Floats, seed: int) -> Floats:
    """K H with cov(x) = K L K^T."""
    centred = x - x.mean(axis=0)
    return np.linalg.eigh(centred.T @ centred)[1] @ hadamard_rotation(group, x.shape[1], seed)


def hadamard_rotation(group: str, K: int, seed: int) -> Floats:
    """The randomised Hadamard rotation [K, K] of the largest order that divides K, in blocks."""
    return Hadamard(points=full_points(group, K), seed=seed).apply(np.eye(K))


def _head_matrix(heads: Heads, seed: int) -> Floats:
    return hadamard_rotation("a head", heads.size, seed)


def _per_head(heads: Heads, seed: int) -> Hadamard:
    return Hadamard(points=full_points("a head", heads.size), seed=seed)


def _key_maps(heads: Heads, together: int, x: Floats, seed: int) -> tuple[Map, ...]:
    """The rotation over heads, and the order of the rotated channels by the maxima of the samples x [M, channels]."""
    count = next(n for n in range(min(together, heads.keys), 0, -1) if heads.keys % n == 0)
    rotation = Hadamard(points=full_points("keys", count * heads.size), seed=seed)
    largest = np.abs(rotation.apply(x)).max(axis=0)
    return rotation, Permutation(order=np.argsort(-largest, kind="stable"))


def _mean_qsur(prepared: Prepared) -> float:
    """Over the groups with more samples than channels; NaN where there is none."""
    seen = samples(prepared)
    found = [qsur(seen[g]) for g in quantized_groups(prepared.network) if seen[g].shape[0] > 2 * seen[g].shape[1]]
    return float(np.mean(found)) if found else float("nan")
