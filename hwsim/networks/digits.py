"""scikit-learn's digits (real handwriting, 8 x 8 pixels, ten classes), and what networks that classify them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.networks.network import Arithmetic, Floats, Group, Network, frozen
from models.unit import InputError, require

CALIBRATION = 256
"""images of the training half that calibrate a quantizer"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Digits:
    """Half of the images to train on, half to test; pixels from 0 to 1, [M, 64]. Arrays are read-only."""

    train_x: Floats
    test_x: Floats
    train_y: NDArray[np.int64]
    test_y: NDArray[np.int64]


@cache
def split(seed: int) -> Digits:
    """The stratified split that `seed` (0 to 2^32 - 1) draws."""
    require(isinstance(seed, int) and 0 <= seed < 1 << 32, f"digits: seed={seed!r} must be from 0 to 2^32 - 1")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise InputError(f"digits: {error.name} is missing; install hwsim[data]") from None
    pixels, classes = load_digits(return_X_y=True)
    parts = train_test_split(pixels / 16.0, classes, test_size=0.5, random_state=seed, stratify=classes)
    train_x, test_x, train_y, test_y = (frozen(part) for part in parts)
    return Digits(train_x=train_x, test_x=test_x, train_y=train_y, test_y=test_y)


def classifier(
    name: str,
    *,
    tensors: Mapping[str, Floats],
    groups: Mapping[str, Group],
    forward: Callable[[Network, Any, Arithmetic], Floats],
    data: Digits,
) -> Network:
    """A network from pixels to ten scores; its metric is `accuracy`, its workload the whole test half as one batch."""
    return Network(
        name=name,
        tensors=tensors,
        groups=groups,
        forward=forward,
        evaluate=partial(_evaluate, data=data),
        calibration=data.train_x[:CALIBRATION],
        workload=data.test_x,
        batch=len(data.test_x),
    )


def _evaluate(network: Network, arithmetic: Arithmetic, *, data: Digits) -> dict[str, float]:
    """The fraction of the test half whose largest score is the right class."""
    scores = network.forward(network, data.test_x, arithmetic)
    return {"accuracy": float(np.mean(scores.argmax(axis=1) == data.test_y))}
