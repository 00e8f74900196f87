"""The networks that tasks quantize, kept as long as the next tasks are likely to want them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hwsim.evaluation.engine import built, by_value, plain
from hwsim.networks import get_network
from hwsim.networks.network import Network
from hwsim.quantize import QuantizedNetwork, engine_formats, quantize_network
from hwsim.quantizers import get_quantizer
from hwsim.transforms import prepare
from hwsim.transforms.plan import Prepared, inputs


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """All that the values of a quantized network depend on."""

    network: str
    seed: int
    transform: str
    quantizer: str
    symmetric: bool
    """whether integer activations have no zero point"""
    unit: str
    params: tuple[tuple[str, Any], ...]
    """of the engine, plain data"""

    @classmethod
    def of(cls, *, params: Mapping[str, Any], **rest: Any) -> Numbers:
        """Those of a task with these inputs: engines that compute the same values are one."""
        same = plain(by_value(*built(rest["unit"], params)))
        return cls(**rest, params=tuple(same.items()))


def network_of(numbers: Numbers) -> Network:
    """Before quantization."""
    network: Network = get_network(numbers.network, seed=numbers.seed)
    return network


@lru_cache(maxsize=1)
def first_draw(numbers: Numbers) -> QuantizedNetwork:
    """The quantized network of the point's own seed."""
    return draw(numbers, numbers.seed)


def draw(numbers: Numbers, seed: int) -> QuantizedNetwork:
    """The quantized network of any seed."""
    params = built(numbers.unit, dict(numbers.params))[1]
    weights, activations = engine_formats(params, act_symmetric=numbers.symmetric)
    prepared, seen = _prepared(numbers.network, numbers.seed, numbers.transform, seed)
    return quantize_network(
        prepared,
        weights=weights,
        activations=activations,
        quantizer=get_quantizer(numbers.quantizer),
        params=params,
        seed=seed,
        seen=seen,
    )


@lru_cache(maxsize=6)
def _prepared(name: str, network_seed: int, transform: str, seed: int) -> tuple[Prepared, dict[str, Any]]:
    """The transformed network and what its groups read: the same for all formats and quantizers."""
    prepared = prepare(transform, get_network(name, seed=network_seed), seed=seed)
    return prepared, inputs(prepared)
