"""FlatQuant (Sun et al., 2024): Kronecker-structured invertible maps of every group, learned on its own output."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwsim.transforms.fwht import has_hadamard
from hwsim.transforms.learn import require_learning, rounded, through_scale
from hwsim.transforms.maps import Hadamard, Kronecker
from hwsim.transforms.plan import Clip, Prepared, Transform, quantized_groups, samples, with_clips, with_maps
from hwsim.transforms.smooth import require_number, smoothed

Floats = NDArray[np.float64]

ROWS = 256
"""samples of a group's activations that are learned from"""
RATE = 0.02
"""step of Adam, in units of the maps' root mean square entry"""
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


def flatquant(*, steps: int = 20, bits: int = 4, alpha: float = 0.5) -> Transform:
    """Per group: SmoothQuant's scales, then X -> P1^T X P2 with n1 n2 = K as square as can be, weights the inverse.

    P1 and P2 start as randomised Hadamard matrices (random orthogonal where there is none) and take `steps` steps of
    Adam on the squared error of the group's output at `bits` bits, symmetric, a scale a token and a column, rounding
    passed straight through; the best found is kept. The clip of the activations is then the best of a grid. The paper
    learns scales and clips too, by more data and steps, and on the output of whole blocks.
    """
    require_learning("flatquant", steps, bits)
    require_number("flatquant: alpha", alpha, 0, 1)

    def transform(prepared: Prepared, seed: int) -> Prepared:
        seen, clips = samples(prepared), {}
        for group in quantized_groups(prepared.network):
            prepared = smoothed(prepared, group, seen[group], alpha)
        seen = samples(prepared, ROWS)
        for group in quantized_groups(prepared.network):
            X, W = seen[group], np.concatenate(prepared.weights(group), axis=1)
            found = learned(start(X.shape[1], seed), X, W, bits, steps)
            prepared = with_maps(prepared, group, found)
            clips[group] = Clip(best_clip(found.apply(X), found.fold_weights(W), bits), bits)
        return with_clips(prepared, clips)

    return transform


def start(K: int, seed: int) -> Kronecker:
    """Orthogonal P1 [n1, n1] and P2 [n2, n2], n1 n2 = K with n1 <= n2 as near as can be."""
    n1 = next(n for n in range(int(K**0.5), 0, -1) if K % n == 0)
    return Kronecker(P1=_orthogonal(n1, seed), P2=_orthogonal(K // n1, seed + 1))


def _orthogonal(n: int, seed: int) -> Floats:
    if n > 1 and has_hadamard(n):
        return Hadamard(points=n, seed=seed).apply(np.eye(n))
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def learned(maps: Kronecker, X: Floats, W: Floats, bits: int, steps: int) -> Kronecker:
    """The maps of least output error met in `steps` steps from `maps`, these included."""
    best, least = maps, np.inf
    adam = Adam(rate=RATE)
    for step in range(steps + 1):
        loss, gradients = output_loss(maps, X, W, bits)
        if loss < least:
            best, least = maps, loss
        if step < steps:
            P1, P2 = adam.moved((maps.P1, maps.P2), gradients)
            maps = Kronecker(P1=P1, P2=P2)
    return best


def output_loss(maps: Kronecker, X: Floats, W: Floats, bits: int) -> tuple[float, tuple[Floats, Floats]]:
    """Squared error of the quantized product relative to X W, and its gradients by P1 and P2 straight through rounding.

    d round(y / s) s = dy + (round(y / s) - y / s) ds, s from the row's largest value.
    """
    Y, V = maps.apply(X), maps.fold_weights(W).T
    (codes_y, scale_y), (codes_v, scale_v) = rounded(Y, bits), rounded(V, bits)
    Yq, Vq = scale_y * codes_y, scale_v * codes_v
    exact = X @ W
    size = max(float((exact**2).sum()), np.finfo(float).tiny)
    error = (Yq @ Vq.T - exact) / size
    by_Y = _straight(Y, codes_y, scale_y, 2 * error @ Vq, bits)
    by_V = _straight(V, codes_v, scale_v, 2 * error.T @ Yq, bits)
    return float((error**2).sum()) * size, _by_maps(maps, X, by_Y, V, by_V)


def _straight(Y: Floats, codes: Floats, scale: Floats, by_rounded: Floats, bits: int) -> Floats:
    return by_rounded + through_scale(Y, bits, (by_rounded * (codes - Y / scale)).sum(axis=1))


def _by_maps(maps: Kronecker, X: Floats, by_Y: Floats, V: Floats, by_V: Floats) -> tuple[Floats, Floats]:
    """Gradients by P1 and P2 of Y = P1^T X P2 (tokens) and V = P1^-1 W P2^-T (columns of the weights)."""
    P1, P2 = maps.P1, maps.P2
    shape = (-1, len(P1), len(P2))
    x, gy, v, gv = (a.reshape(shape) for a in (X, by_Y, V, by_V))
    by_P1 = np.einsum("tij,tkj->ik", x @ P2, gy) - np.linalg.solve(P1.T, np.einsum("nij,nkj->ik", gv, v))
    by_P2 = np.einsum("tij,tik->jk", P1.T @ x, gy) - np.linalg.solve(P2.T, np.einsum("nij,nik->jk", gv, v))
    return by_P1, by_P2


@dataclass(kw_only=True)
class Adam:
    """Adam (Kingma and Ba, 2015), its step in units of each array's root mean square."""

    rate: float
    step: int = 0
    mean: list[Floats] = field(default_factory=list)
    square: list[Floats] = field(default_factory=list)

    def moved(self, arrays: tuple[Floats, ...], gradients: tuple[Floats, ...]) -> tuple[Floats, ...]:
        """The arrays after one step."""
        self.mean = self.mean or [np.zeros_like(g) for g in gradients]
        self.square = self.square or [np.zeros_like(g) for g in gradients]
        self.step += 1
        moved = []
        for i, (a, g) in enumerate(zip(arrays, gradients, strict=True)):
            self.mean[i] = 0.9 * self.mean[i] + 0.1 * g
            self.square[i] = 0.99 * self.square[i] + 0.01 * g**2
            mean, square = self.mean[i] / (1 - 0.9**self.step), self.square[i] / (1 - 0.99**self.step)
            moved.append(a - self.rate * np.sqrt(np.mean(a**2)) * mean / (np.sqrt(square) + np.finfo(float).tiny))
        return tuple(moved)


def best_clip(Y: Floats, V: Floats, bits: int) -> float:
    """The share of each token's range, of CLIPS, at which Y V has the least squared error, weights in float."""
    largest = (1 << (bits - 1)) - 1
    amax = np.abs(Y).max(axis=1, keepdims=True)
    amax[amax == 0] = 1.0

    def error(clip: float) -> float:
        scale = clip * amax / largest
        quantized = scale * np.clip(np.rint(Y / scale), -largest - 1, largest)
        return float((((quantized - Y) @ V) ** 2).sum())

    return min(CLIPS, key=error)
