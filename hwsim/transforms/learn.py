"""Descent on quantization errors: rotations on the Cayley path, and what its steps need to know of rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.transforms.maps import require_whole
from models.unit import require

Floats = NDArray[np.float64]
Loss = Callable[[Floats], tuple[float, Floats]]
"""R -> loss, its gradient"""

SHRINK, GROW = 0.5, 1.5
"""factors of the step after one that does not and one that does bring the loss down"""
MOST_STEPS = 10_000
"""that a transform can be asked to learn by"""


def require_learning(name: str, steps: Any, bits: Any) -> None:
    """InputError unless a transform can learn by so many steps at so many bits: 0 to MOST_STEPS, and 2 to 8."""
    for what, value, least, most in (("steps", steps, 0, MOST_STEPS), ("bits", bits, 2, 8)):
        require_whole(f"{name}: {what}", value, least)
        require(value <= most, f"{name}: {what}={value} is above {most}")


def rounded(Y: Floats, bits: int) -> tuple[Floats, Floats]:
    """Codes and scale [rows, 1] of every row of Y in symmetric integers; the scale of a row of zeros is 1."""
    largest = (1 << (bits - 1)) - 1
    scale = np.abs(Y).max(axis=1, keepdims=True) / largest
    scale[scale == 0] = 1.0
    return np.rint(Y / scale), scale


def through_scale(Y: Floats, bits: int, by_scale: Floats) -> Floats:
    """Gradient by Y of a loss whose gradient by the rows' scales is `by_scale` [rows]: at each row's largest value."""
    gradient, rows = np.zeros_like(Y), np.arange(len(Y))
    at = np.abs(Y).argmax(axis=1)
    gradient[rows, at] = np.sign(Y[rows, at]) * by_scale / ((1 << (bits - 1)) - 1)
    return gradient


def rounding_loss(A: Floats, bits: int) -> Loss:
    """R -> half the squared error of quantizing every row of A R by itself, and the gradient where no code changes."""

    def loss(R: Floats) -> tuple[float, Floats]:
        Y = A @ R
        codes, scale = rounded(Y, bits)
        error = scale * codes - Y
        by_Y = through_scale(Y, bits, (error * codes).sum(axis=1)) - error
        return 0.5 * float((error**2).sum()), A.T @ by_Y

    return loss


def cayley_descent(R: Floats, loss: Loss, *, steps: int, rate: float = 0.1) -> tuple[Floats, list[float]]:
    """An orthogonal matrix of smaller loss than R, and the loss before each step and after the last.

    Each step goes along R' = (I + t/2 S)^-1 (I - t/2 S) R with S = G R^T - R G^T of the gradient G (Cayley's transform,
    so that R' is orthogonal), t = `rate` over the mean row norm of S. Steps that do not bring the loss down are not
    taken and halve the rate.
    """
    value, G = loss(R)
    history, eye = [value], np.eye(len(R))
    for _ in range(steps):
        S = G @ R.T - R @ G.T
        t = rate / max(float(np.sqrt((S**2).sum(axis=1)).mean()), np.finfo(float).tiny)
        candidate = np.linalg.solve(eye + t / 2 * S, (eye - t / 2 * S) @ R)
        reached, gradient = loss(candidate)
        if reached < value:
            R, value, G = candidate, reached, gradient
        rate *= GROW if R is candidate else SHRINK
        history.append(value)
    return R, history
