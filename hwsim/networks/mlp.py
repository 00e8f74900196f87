"""A multilayer perceptron on real handwriting: scikit-learn's digits, 8 x 8 pixels, ten classes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.unit import InputError, require

Floats = NDArray[np.float64]
Linear = Callable[[int, Floats], Floats]
"""(layer index, activations [M, K]) -> outputs [M, N], the bias included."""

HIDDEN = (128, 64)
"""Every reduction dimension, 64, 128 and 64, is a multiple of the 64 points of the Hadamard transform."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mlp:
    """Linear layers with ReLU between them, and the data they are judged by. Arrays are read-only."""

    name: str
    weights: tuple[Floats, ...]
    """one [K, N] a layer"""
    biases: tuple[Floats, ...]
    """one [N] a layer"""
    test_x: Floats
    """[M, K of the first layer], pixels from 0 to 1"""
    test_y: NDArray[np.int64]
    """[M] class numbers"""

    @property
    def layers(self) -> int:
        return len(self.weights)


@cache
def digits_mlp(*, seed: int = 1) -> Mlp:
    """64 -> 128 -> 64 -> 10, trained by scikit-learn (MLPClassifier, Adam) on half of the digits; the rest is the test.

    `seed` (0 to 2^32 - 1) fixes the stratified split and the training.
    """
    require(isinstance(seed, int) and 0 <= seed < 1 << 32, f"digits-mlp: seed={seed!r} must be from 0 to 2^32 - 1")
    try:
        train_x, test_x, train_y, test_y = _split_digits(seed)
        weights, biases = _trained(train_x, train_y, seed)
    except ImportError as error:
        raise InputError(f"digits-mlp: {error.name} is missing; install hwsim[data]") from None
    return Mlp(
        name="digits-mlp",
        weights=tuple(_frozen(w) for w in weights),
        biases=tuple(_frozen(b) for b in biases),
        test_x=_frozen(test_x),
        test_y=_frozen(test_y),
    )


def _split_digits(seed: int) -> list[NDArray[Any]]:
    """Training pixels, test pixels (0 to 1), training classes, test classes."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, classes = load_digits(return_X_y=True)
    return train_test_split(pixels / 16.0, classes, test_size=0.5, random_state=seed, stratify=classes)


def _trained(x: Floats, y: NDArray[np.int64], seed: int) -> tuple[list[Floats], list[Floats]]:
    """Weights and biases. One BLAS thread, so that sums keep their order whatever the machine."""
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    # tol ends training once ten epochs gain less than it; max_iter lies far beyond, so there is no convergence warning
    model = MLPClassifier(HIDDEN, random_state=seed, learning_rate_init=3e-3, tol=1e-3, max_iter=500)
    with threadpool_limits(1):
        model.fit(x, y)
    return model.coefs_, model.intercepts_


def _frozen(values: NDArray[Any]) -> NDArray[Any]:
    copy = np.array(values)
    copy.setflags(write=False)
    return copy


def forward(network: Mlp, x: Floats, linear: Linear) -> Floats:
    """Class scores [M, 10] of inputs [M, K], each layer computed by `linear`, with ReLU between layers."""
    for layer in range(network.layers):
        x = linear(layer, x if layer == 0 else np.maximum(x, 0.0))
    return x


def float_linear(network: Mlp, layer: int, x: Floats) -> Floats:
    """The layer in float64."""
    return x @ network.weights[layer] + network.biases[layer]


def accuracy(network: Mlp, linear: Linear) -> float:
    """Fraction of the test set whose largest score is the right class."""
    return float(np.mean(forward(network, network.test_x, linear).argmax(axis=1) == network.test_y))


def float_accuracy(network: Mlp) -> float:
    """Accuracy of the network in float64, before any quantization."""
    return accuracy(network, partial(float_linear, network))
