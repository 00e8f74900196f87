"""What a quantizer is given and what it makes: one linear layer as one or several low-bit products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.quantized import Format, Quantized
from models.unit import InputError, Ints, require

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """One linear layer before quantization, after all transforms. InputError unless its arrays fit and are finite."""

    W: Floats
    """[K, N]"""
    X: Floats
    """[T, K] activations of the calibration inputs"""
    weights: Format
    """the format of the weights; groups lie along axis 0"""
    activations: Format
    """the format of the activations; groups lie along the last axis"""
    seed: int

    def __post_init__(self) -> None:
        for name, x in (("weights", self.W), ("calibration activations", self.X)):
            require(x.ndim == 2 and x.size > 0, f"quantizer: {name} of shape {x.shape}; a matrix of values is needed")
            if not np.isfinite(x).all():
                place = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
                raise InputError(f"quantizer: {name} {x[place]} at index {place}; finite values are needed")
        width, channels = self.X.shape[1], self.W.shape[0]
        rule = f"quantizer: calibration activations have {width} channels, the weights {channels}; take {channels}"
        require(width == channels, rule)


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One low-bit product of a layer; the layer's output is the sum of its parts' (and its bias)."""

    weights: Quantized
    """[K', N'] of the inputs and outputs named below"""
    activations: Format
    inputs: Ints | None = None
    """the K' channels it reads, fixed; None for all"""
    outputs: Ints | None = None
    """the N' outputs it adds to, fixed; None for all"""
    chosen: Callable[[Floats], NDArray[np.bool_]] | None = None
    """from activations [M, K']: which channels [K'] this part keeps; the others count as zero (before scales are
    taken). None keeps all."""


Quantizer = Callable[[Problem], tuple[Part, ...]]
"""A layer's problem -> the products that make up the layer.

One whose choices for a layer depend on the network's other layers has a method `for_network` besides, from the problems
of all weights by name to each weight's own quantizer: Mapping[str, Problem] -> Mapping[str, Quantizer].
"""
