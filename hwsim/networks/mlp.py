"""A multilayer perceptron on real handwriting: scikit-learn's digits, 8 x 8 pixels, ten classes."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from hwsim.networks import digits
from hwsim.networks.network import Arithmetic, Floats, Group, Network, frozen

HIDDEN = (128, 64)
"""Every reduction dimension, 64, 128 and 64, is a multiple of the 64 points of the Hadamard transform."""


@cache
def digits_mlp(*, seed: int = 1) -> Network:
    """64 -> 128 -> 64 -> 10 with ReLU, trained by scikit-learn (MLPClassifier, Adam) on half of the digits.

    The rest is the test; calibration inputs are of the training half. `seed` (0 to 2^32 - 1) fixes the stratified
    split and the training.
    """
    data = digits.split(seed)
    weights, biases = _trained(data, seed)
    tensors = {f"layers.{i}": w for i, w in enumerate(weights)}
    tensors |= {f"layers.{i}.bias": b for i, b in enumerate(biases)}
    return digits.classifier(
        "digits-mlp",
        tensors={name: frozen(value) for name, value in tensors.items()},
        groups={f"layers.{i}": Group(readers=(f"layers.{i}",)) for i in range(len(weights))},
        forward=forward,
        data=data,
    )


def _trained(data: digits.Digits, seed: int) -> tuple[list[Floats], list[Floats]]:
    """Weights and biases. One BLAS thread, so that sums keep their order whatever the machine."""
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    # tol ends training once ten epochs gain less than it; max_iter lies far beyond, so there is no convergence warning
    model = MLPClassifier(HIDDEN, random_state=seed, learning_rate_init=3e-3, tol=1e-3, max_iter=500)
    with threadpool_limits(1):
        model.fit(data.train_x, data.train_y)
    return model.coefs_, model.intercepts_


def forward(network: Network, x: Any, arithmetic: Arithmetic) -> Floats:
    """Class scores [M, 10] of inputs [M, 64], with ReLU between layers."""
    for layer, group in enumerate(network.groups):
        (x,) = arithmetic.project(group, x if layer == 0 else np.maximum(x, 0.0))
    return x
