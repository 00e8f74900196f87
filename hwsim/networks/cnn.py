"""A small convolutional network on the digits, trained here by Adam; each convolution is a product over patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.networks import digits
from hwsim.networks.network import Arithmetic, Floats, Group, Network, frozen

KERNEL = 4
"""square kernels of 4 x 4: every reduction dimension, 16, 256 and 512, is then a power of two"""
STRIDES = {"conv1": 1, "conv2": 2}
CHANNELS = {"conv1": 16, "conv2": 32}
SIDE = 8
PADDING = (1, 2)
"""zeros before and after each side, so that a stride of 1 keeps the size and one of 2 halves it"""

EPOCHS = 15
BATCH = 64
RATE = 3e-3


@cache
def digits_cnn(*, seed: int = 1) -> Network:
    """8 x 8 -> 16 channels -> 4 x 4 of 32 channels (stride 2) -> 10, with ReLU, trained on half of the digits.

    Kernels are 4 x 4, K = height x width x channels of a patch in that order. The other half of the images is the test;
    calibration inputs are of the training half. `seed` (0 to 2^32 - 1) fixes the stratified split and the training.
    """
    data = digits.split(seed)
    return digits.classifier(
        "digits-cnn",
        tensors={name: frozen(value) for name, value in _trained(data, seed).items()},
        groups={name: Group(readers=(name,)) for name in (*STRIDES, "fc")},
        forward=forward,
        data=data,
    )


def forward(network: Network, x: Any, arithmetic: Arithmetic) -> Floats:
    """Class scores [M, 10] of inputs [M, 64]."""
    maps = np.asarray(x, dtype=np.float64).reshape(-1, SIDE, SIDE, 1)
    *convolutions, last = network.groups
    for name in convolutions:
        taken = patches(maps, STRIDES[name])
        (y,) = arithmetic.project(name, taken.reshape(-1, taken.shape[-1]))
        maps = np.maximum(y, 0.0).reshape(*taken.shape[:3], -1)
    return arithmetic.project(last, maps.reshape(len(maps), -1))[0]


def patches(maps: Floats, stride: int) -> Floats:
    """[M, height, width, KERNEL * KERNEL * channels]: what each output of a convolution of padded maps reads."""
    padded = np.pad(maps, ((0, 0), PADDING, PADDING, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (KERNEL, KERNEL), axis=(1, 2))
    windows = np.moveaxis(windows[:, ::stride, ::stride], 3, -1)
    return windows.reshape(*windows.shape[:3], -1)


# ------------------------------------------------------------------------------------------------ training


@dataclass(kw_only=True)
class _Adam:
    """Adam (Kingma and Ba, 2015) over named arrays, which it changes in place."""

    tensors: dict[str, Floats]
    step: int = 0

    def __post_init__(self) -> None:
        self.mean = {name: np.zeros_like(value) for name, value in self.tensors.items()}
        self.square = {name: np.zeros_like(value) for name, value in self.tensors.items()}

    def update(self, gradients: Mapping[str, Floats]) -> None:
        self.step += 1
        for name, g in gradients.items():
            mean, square = self.mean[name], self.square[name]
            mean += 0.1 * (g - mean)
            square += 0.001 * (g * g - square)
            scale = np.sqrt(square / (1 - 0.999**self.step)) + 1e-8
            self.tensors[name] -= RATE * mean / (1 - 0.9**self.step) / scale


def _trained(data: digits.Digits, seed: int) -> dict[str, Floats]:
    """Tensors after EPOCHS passes. One BLAS thread, so that sums keep their order whatever the machine."""
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(seed)
    tensors = _drawn(rng)
    adam = _Adam(tensors=tensors)
    with threadpool_limits(1):
        for _ in range(EPOCHS):
            for rows in np.array_split(rng.permutation(len(data.train_x)), len(data.train_x) // BATCH):
                adam.update(_gradients(tensors, data.train_x[rows], data.train_y[rows]))
    return tensors


def _drawn(rng: np.random.Generator) -> dict[str, Floats]:
    """Weights before training: normal, of variance 2 / K; biases zero."""
    first, second = CHANNELS["conv1"], CHANNELS["conv2"]
    area = (SIDE // STRIDES["conv2"]) ** 2
    shapes = {"conv1": (KERNEL**2, first), "conv2": (KERNEL**2 * first, second), "fc": (area * second, 10)}
    weights = {name: rng.normal(0.0, np.sqrt(2 / shape[0]), shape) for name, shape in shapes.items()}
    return weights | {f"{name}.bias": np.zeros(shape[1]) for name, shape in shapes.items()}


def _gradients(tensors: Mapping[str, Floats], x: Floats, y: NDArray[np.int64]) -> dict[str, Floats]:
    """Of the mean cross entropy of a batch, by back-propagation."""
    maps, seen, found = x.reshape(-1, SIDE, SIDE, 1), {}, {}
    for name, stride in STRIDES.items():
        seen[name] = taken = patches(maps, stride)
        maps = np.maximum(taken @ tensors[name] + tensors[f"{name}.bias"], 0.0)
        seen[name, "out"] = maps
    flat = maps.reshape(len(x), -1)
    scores = flat @ tensors["fc"] + tensors["fc.bias"]
    error = np.exp(scores - scores.max(axis=1, keepdims=True))
    error /= error.sum(axis=1, keepdims=True)
    error[np.arange(len(y)), y] -= 1.0
    error /= len(y)
    found["fc"], found["fc.bias"] = flat.T @ error, error.sum(axis=0)
    back = (error @ tensors["fc"].T).reshape(maps.shape)
    for name in reversed(STRIDES):
        back = back * (seen[name, "out"] > 0)
        flat, rows = seen[name].reshape(-1, len(tensors[name])), back.reshape(-1, back.shape[-1])
        found[name], found[f"{name}.bias"] = flat.T @ rows, rows.sum(axis=0)
        if name != "conv1":
            back = _scattered(back @ tensors[name].T, STRIDES[name])
    return found


def _scattered(taken: Floats, stride: int) -> Floats:
    """Gradient of maps from that of their patches: the transpose of `patches`."""
    count, height, width, length = taken.shape
    channels, side = length // KERNEL**2, height * stride
    cells = taken.reshape(count, height, width, KERNEL, KERNEL, channels)
    padded = np.zeros((count, side + sum(PADDING), side + sum(PADDING), channels))
    for i in range(KERNEL):
        for j in range(KERNEL):
            padded[:, i : i + side : stride, j : j + side : stride] += cells[:, :, :, i, j]
    return padded[:, PADDING[0] : PADDING[0] + side, PADDING[0] : PADDING[0] + side]
