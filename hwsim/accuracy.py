"""What a network still computes in low-bit arithmetic: its end metric, each layer's error, and what is paid online."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from hwsim.networks import get_network
from hwsim.networks.network import Network, float_arithmetic
from hwsim.networks.outliers import planted
from hwsim.options import parse_options
from hwsim.quantize import QuantizedNetwork, engine_formats, layer_errors, quantize_network
from hwsim.quantizers import get_quantizer
from hwsim.transforms import is_random, prepare
from hwsim.transforms.maps import Cost
from hwsim.transforms.plan import Prepared, inputs
from models.catalog import unit
from models.formats import FORMATS, Format, IntFormat, get_format
from models.unit import Kind, nearest, require


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to quantize a network. Formats are as `parse_format` takes them."""

    network: str
    """a name of `NETWORKS` or a folder of a Llama-family model"""
    weights: str
    activations: str
    transform: str = "none"
    quantizer: str = "rtn"
    cache: str | None = None
    """of keys and values; None keeps them in float"""
    engine: str | None = None
    """the unit that computes every product; None computes in float64 on the dequantized values"""
    settings: Mapping[str, Any] | None = None
    """the engine's parameters that differ from its defaults, without widths"""
    seed: int = 1
    draws: int = 1
    """seeds, from `seed` on, of a transform that draws random numbers"""
    text_bytes: int | None = None
    """of held-out text that a language model is judged on; None leaves the network's own choice"""
    outliers: str | None = None
    """planted into the network first, as `hwsim.networks.outliers.planted` takes them; None plants none"""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was found, and from what."""

    metrics: dict[str, float]
    """of the first draw"""
    spread: dict[str, float] | None
    """standard deviation of each metric over the draws; None for one draw"""
    mean: dict[str, float]
    """of each metric over the draws"""
    float_metrics: dict[str, float]
    """before any quantization, planted outliers included"""
    layer_errors: dict[str, float]
    """weight -> relative error of its layer's output over the calibration inputs, of the first draw"""
    bits_per_weight: float
    online: Cost
    """of all groups' maps together, for one token"""
    formats: dict[str, str]
    """of weights, activations and cache, with their options"""
    notes: tuple[str, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Answer:
        """The answer of which `data` is `dataclasses.asdict`, as JSON gives it back."""
        return cls(**{**data, "online": Cost(**data["online"]), "notes": tuple(data["notes"])})


def measure(choice: Choice, progress: Callable[[str], None] = lambda _text: None) -> Answer:
    """The network's metrics as `choice` says. InputError for what does not exist or does not fit together."""
    params, weights, activations = _formats(choice)
    kept = parse_format(_asymmetric(choice.cache)) if choice.cache else None
    quantizer = get_quantizer(choice.quantizer)
    progress(f"loading {choice.network}")
    network = _network(choice.network, choice.seed, choice.text_bytes, choice.outliers)
    draws = choice.draws if is_random(choice.transform) else 1
    reached, first = [], None
    for seed in range(choice.seed, choice.seed + draws):
        progress(f"{choice.transform}, {choice.quantizer}, seed {seed}")
        prepared, seen = _prepared(network, choice.transform, seed)
        quantized = quantize_network(
            prepared,
            weights=weights,
            activations=activations,
            quantizer=quantizer,
            params=params,
            cache=kept,
            seed=seed,
            seen=seen,
        )
        first = first or quantized
        progress(f"running {choice.network}, seed {seed}")
        reached.append(network.evaluate(prepared.network, _arithmetic(quantized, params)))
    assert first is not None
    for name, value in reached[0].items():
        require(math.isfinite(value), f"{choice.network}: {name} is {value}: its numbers overflow in these formats")
    progress("errors of layers")
    return Answer(
        metrics=reached[0],
        spread={name: float(np.std([r[name] for r in reached], ddof=1)) for name in reached[0]} if draws > 1 else None,
        mean={name: float(np.mean([r[name] for r in reached])) for name in reached[0]},
        float_metrics=float_metrics(network),
        layer_errors=layer_errors(first, _arithmetic(first, params)),
        bits_per_weight=first.bits_per_weight,
        online=online_cost(first.prepared),
        formats={"weights": repr(weights), "activations": repr(activations), "cache": repr(kept)},
        notes=first.prepared.notes,
    )


@lru_cache(maxsize=1)
def _network(name: str, seed: int, text_bytes: int | None, outliers: str | None) -> Network:
    options = {} if text_bytes is None else {"text_bytes": text_bytes}
    network = get_network(name, seed=seed, **options)
    return network if outliers is None else planted(network, outliers, seed=seed)


@lru_cache(maxsize=5)
def _prepared(network: Network, transform: str, seed: int) -> tuple[Prepared, dict[str, Any]]:
    """The transformed network and what its groups read: the same for all formats and quantizers."""
    prepared = prepare(transform, network, seed=seed)
    return prepared, inputs(prepared)


def _arithmetic(quantized: QuantizedNetwork, params: Any) -> Any:
    return quantized.emulated if params is None else quantized.engine


@cache
def float_metrics(network: Network) -> dict[str, float]:
    """The metrics before any quantization."""
    return network.evaluate(network, float_arithmetic(network))


def online_cost(prepared: Prepared) -> Cost:
    """Additions and multiplications of all online maps for one token."""
    adds = multiplies = 0
    for group, maps in prepared.maps.items():
        token = np.zeros((1, len(prepared.network.tensors[prepared.network.groups[group].readers[0]])))
        for m in maps:
            cost = m.cost(token.shape[1])
            adds, multiplies = adds + cost.adds, multiplies + cost.multiplies
            token = m.apply(token)
    return Cost(adds=adds, multiplies=multiplies)


# ------------------------------------------------------------------------------------------------- formats


def parse_format(text: str) -> Format:
    """The format that `name` or `name:option=value,option=value` describes. InputError names the nearest name or
    option."""
    name, options = parse_options("format", text)
    return get_format(name, **options)


def _asymmetric(text: str) -> str:
    """Integers that do not say whether they are symmetric are not: the baseline that every transform has to beat."""
    if not text.startswith("int") or "symmetric" in text:
        return text
    return text + ("," if ":" in text else ":") + "symmetric=false"


FITTED = ("codebook", "lattice")
"""formats that learn their values from what they quantize"""


def _formats(choice: Choice) -> tuple[Any, Format, Format]:
    """The engine's parameters (None without one) and the formats of weights and activations."""
    name = choice.activations.partition(":")[0]
    require(
        name not in FITTED, f"--activations {name}: its values are fitted to the data itself, which costs far too much"
    )
    activations = parse_format(_asymmetric(choice.activations))
    if choice.engine is None:
        return None, parse_format(choice.weights), activations
    return _on_engine(choice, activations)


def _on_engine(choice: Choice, activations: Format) -> tuple[Any, Format, Format]:
    """`int<b>` gives the engine its width; the engine's own format is then taken, as is one that is named."""
    entry = unit(choice.engine or "")
    require(entry.kind is Kind.GEMM, f"--engine {entry.name} multiplies no matrices; take a GEMM engine")
    name, given = parse_options("format", choice.weights)
    rule = f"--weights {choice.weights}: with --engine the format's options are the engine's"
    require(not given, f"{rule}; give them by --set (see `hwsim units`)")
    require(name in FORMATS, f"no number format {name!r}; {nearest(name, FORMATS)}")
    widths = {"weight_bits": parse_format(choice.weights).bits, "act_bits": activations.bits}
    fields = entry.params_type.__dataclass_fields__
    if activations == get_format("fp16"):
        require(
            "act_format" in fields, f"{entry.name} takes no FP16 activations; take int8, or an engine with act_format"
        )
        widths |= {"act_format": "FP16"}
    params = entry.params(**{**{k: v for k, v in widths.items() if k in fields}, **(choice.settings or {})})
    own, options = entry.weight_format(params)
    require(
        name == own or name.startswith("int"),
        f"--weights {name}: {entry.name} holds weights in {own!r}; give that, or int<bits>",
    )
    weights = get_format(own, **options)
    taken = engine_formats(params)[1]
    if isinstance(taken, IntFormat) and isinstance(activations, IntFormat):
        require(
            activations.group is None and activations.signed,
            f"--activations: {entry.name} takes signed integers with one scale a token; leave group and signed out",
        )
        return params, weights, activations
    require(activations == taken, f"--activations {choice.activations}: {entry.name} takes {taken!r}")
    return params, weights, taken
