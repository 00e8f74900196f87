"""What a quantized network still gets right, computed bit for bit as the engine does."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from hwsim.evaluation.quantized import Numbers, draw, first_draw, network_of
from hwsim.networks import get_network
from hwsim.networks.network import float_arithmetic
from hwsim.transforms import is_random
from models.unit import require

SPREAD_SEEDS = 5
"""draws of a random transform over which the accuracy's standard deviation is taken"""


def accuracy(**inputs: Any) -> dict[str, Any]:
    """Metrics of the point's network by their names in `hwsim.metrics`, `bits_per_weight` included.

    `inputs` are the fields of `Numbers`, params as a mapping. With a random transform `accuracy_std` is the standard
    deviation of the accuracy over `SPREAD_SEEDS` draws, of which the first is the point's. InputError where the network
    does not suit the engine, the format or the transform, and where a metric is no finite number.
    """
    numbers = Numbers.of(**inputs)
    network, quantized = network_of(numbers), first_draw(numbers)
    found = network.evaluate(quantized.prepared.network, quantized.engine)
    for name, value in found.items():
        require(math.isfinite(value), f"{numbers.network}: {name} is {value}: its numbers overflow in this format")
    return {
        **found,
        **({"accuracy_std": _spread(numbers, found["accuracy"])} if is_random(numbers.transform) else {}),
        "float_accuracy": _float_accuracy(numbers.network, numbers.seed),
        "bits_per_weight": quantized.bits_per_weight,
    }


def _spread(numbers: Numbers, first: float) -> float:
    network, reached = network_of(numbers), [first]
    for seed in range(numbers.seed + 1, numbers.seed + SPREAD_SEEDS):
        drawn = draw(numbers, seed)
        reached.append(network.evaluate(drawn.prepared.network, drawn.engine)["accuracy"])
    return float(np.std(reached, ddof=1))


@lru_cache
def _float_accuracy(name: str, seed: int) -> float:
    network = get_network(name, seed=seed)
    reached: float = network.evaluate(network, float_arithmetic(network))["accuracy"]
    return reached
