"""A byte-level Mamba: selective state-space layers instead of attention (Gu and Dao, arXiv 2312.00752, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.networks import language
from hwsim.networks.language import Text, dense, normed, plain, require_tokens
from hwsim.networks.network import Arithmetic, Floats, Group, Network, frozen

MAMBA_SHA256 = "d4e7bba421f3cbb897a57e992418ab827538810a10f016e2d541ae939b1d7a3f"
PARTS = {"in": "in_proj", "x": "x_proj", "dt": "dt_proj", "out": "out_proj"}
"""our name of a layer's weight -> its name in the file"""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a configuration says: `inner` channels of `states` states each, time steps of rank `rank`."""

    vocabulary: int
    layers: int
    inner: int
    states: int
    rank: int
    eps: float


@cache
def mamba(*, seed: int = 1, text_bytes: int = language.TEXT_BYTES) -> Network:
    """The shipped Mamba: 2.7 M parameters on bytes, trained by `training/mamba.py` on the standard library's sources.

    Nothing is drawn: `seed` changes nothing. Inputs are bytes [B, T], outputs logits [B, T, 256]. It is evaluated as
    PyLM is, on at most `text_bytes` of the same text.
    """
    del seed
    texts = language.byte_texts(text_bytes)
    config, tensors = language.shipped("mamba", MAMBA_SHA256)
    return network("mamba", read_spec(config), tensors, *texts)


def read_spec(config: Mapping[str, Any]) -> Spec:
    """What matters of the configuration of a tied mamba-1 with a bias in its convolution and no other."""
    return Spec(
        vocabulary=config["vocab_size"],
        layers=config["num_hidden_layers"],
        inner=config["intermediate_size"],
        states=config["state_size"],
        rank=config["time_step_rank"],
        eps=config["layer_norm_epsilon"],
    )


def network(name: str, spec: Spec, stored: Mapping[str, NDArray[Any]], heldout: Text, calibration: Text) -> Network:
    """The network of tensors under Hugging Face's names; the workload is one window of calibration text.

    Each layer's two SiLU functions have a factor a channel (`scaled_silu`), `conv.silu` and `gate.silu`: 1 as trained,
    for transforms that scale channels.
    """
    layers = range(spec.layers)
    samples = language.first_windows(calibration, language.CONTEXT, spec.vocabulary)
    return Network(
        name=name,
        tensors=_tensors(spec, stored),
        groups=_groups(spec),
        forward=partial(forward, spec),
        evaluate=language.evaluator(heldout, language.CONTEXT, spec.vocabulary),
        calibration=samples,
        workload=samples[:1],
        batch=samples.shape[1],
        states=tuple(f"layers.{i}.{state}" for i in layers for state in ("ssm_input", "ssm_output")),
        residual=("embedding", *(f"layers.{i}.out" for i in layers)),
        kept=("head",),
    )


def _groups(spec: Spec) -> dict[str, Group]:
    groups: dict[str, Group] = {}
    for i in range(spec.layers):
        at = f"layers.{i}"
        groups[f"{at}.in"] = Group(readers=(f"{at}.in",), norm=f"{at}.norm")
        groups |= {f"{at}.{part}": Group(readers=(f"{at}.{part}",)) for part in ("x", "dt", "out")}
    return groups | {"head": Group(readers=("head",), norm="norm")}


def _tensors(spec: Spec, stored: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
    embedding = stored["backbone.embeddings.weight"]
    tensors = {"embedding": plain(embedding), "head": dense(embedding), "norm": plain(stored["backbone.norm_f.weight"])}
    for i in range(spec.layers):
        ours, theirs = f"layers.{i}", f"backbone.layers.{i}"
        mixer = f"{theirs}.mixer"
        tensors |= {f"{ours}.{part}": dense(stored[f"{mixer}.{path}.weight"]) for part, path in PARTS.items()}
        tensors[f"{ours}.dt.bias"] = plain(stored[f"{mixer}.dt_proj.bias"])
        tensors[f"{ours}.conv"] = plain(stored[f"{mixer}.conv1d.weight"][:, 0])
        tensors[f"{ours}.conv.bias"] = plain(stored[f"{mixer}.conv1d.bias"])
        tensors |= {f"{ours}.{name}": plain(stored[f"{mixer}.{name}"]) for name in ("A_log", "D")}
        tensors |= {f"{ours}.{place}.silu": frozen(np.ones(spec.inner)) for place in ("conv", "gate")}
        tensors[f"{ours}.norm"] = plain(stored[f"{theirs}.norm.weight"])
    return tensors


def forward(spec: Spec, network: Network, inputs: Any, arithmetic: Arithmetic) -> Floats:
    """Logits [B, T, vocabulary] of tokens [B, T], each from the tokens up to it; states start at zero."""
    tokens = require_tokens(network.name, inputs, spec.vocabulary)
    x = network.tensors["embedding"][tokens.reshape(-1)]
    for i in range(spec.layers):
        z = normed(x, network.tensors[f"layers.{i}.norm"], spec.eps)
        x = x + _mixed(spec, network, f"layers.{i}", z, tokens.shape[1], arithmetic)
    (logits,) = arithmetic.project("head", normed(x, network.tensors["norm"], spec.eps))
    return logits.reshape(*tokens.shape, spec.vocabulary)


def _mixed(spec: Spec, network: Network, at: str, x: Floats, length: int, arithmetic: Arithmetic) -> Floats:
    """What the layer adds to the residual stream [B T, channels]; windows have `length` rows."""
    t = network.tensors
    (both,) = arithmetic.project(f"{at}.in", x)
    u, gate = np.split(both, 2, axis=1)
    u = convolved(u.reshape(-1, length, spec.inner), t[f"{at}.conv"], t[f"{at}.conv.bias"])
    u = scaled_silu(u, t[f"{at}.conv.silu"])
    u = arithmetic.state(f"{at}.ssm_input", u.reshape(-1, spec.inner))
    y = arithmetic.state(f"{at}.ssm_output", _state_space(spec, network, at, u, length, arithmetic))
    return arithmetic.project(f"{at}.out", y * scaled_silu(gate, t[f"{at}.gate.silu"]))[0]


def _state_space(spec: Spec, network: Network, at: str, u: Floats, length: int, arithmetic: Arithmetic) -> Floats:
    """The selective scan of u [B T, inner] with its skip connection; steps, B and C depend on the input."""
    from hwsim.networks.scan import selective_scan  # numba, for those who run a state-space layer

    (parts,) = arithmetic.project(f"{at}.x", u)
    low, B, C = np.split(parts, (spec.rank, spec.rank + spec.states), axis=1)
    dt = softplus(arithmetic.project(f"{at}.dt", low)[0])
    A = -np.exp(network.tensors[f"{at}.A_log"])
    u3, dt3, B3, C3 = (np.ascontiguousarray(part).reshape(-1, length, part.shape[1]) for part in (u, dt, B, C))
    return selective_scan(u3, dt3, A, B3, C3).reshape(u.shape) + network.tensors[f"{at}.D"] * u


def convolved(x: Floats, taps: Floats, bias: Floats) -> Floats:
    """Causal convolution of each channel: x [B, T, D], taps [D, K], the last of them for the token itself."""
    length, count = x.shape[1], taps.shape[1]
    padded = np.pad(x, ((0, 0), (count - 1, 0), (0, 0)))
    return sum((taps[:, k] * padded[:, k : k + length] for k in range(count)), start=bias)


def scaled_silu(x: Floats, s: Floats) -> Floats:
    """x times the logistic function of s x, without overflow: SiLU(x s) / s. S-SiLU of MambaQuant (Xu et al., 2025)."""
    return 0.5 * x * (1.0 + np.tanh(0.5 * (s * x)))


def softplus(x: Floats) -> Floats:
    """ln(1 + e^x) without overflow."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))
