"""GPTQ: each input channel's rounding error is compensated in the channels that are still to be rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsim.quantizers.clipping import clip_searched
from hwsim.quantizers.parts import Part, Problem
from hwsim.quantizers.rounding import nearest_in, rounded_matrix
from models.quantized import Quantized, require_truth
from models.unit import InputError, Ints, require

Floats = NDArray[np.float64]
Choose = Callable[[int, Floats], Floats]
"""(k, rows) -> what row k holds once rounded, [N]; `rows` are the weights from row k to the end of its group, the first
of them compensated for every row before it, and where the group begins all of them"""


@dataclass(frozen=True, kw_only=True)
class Gptq:
    """One product, its codes chosen in the order of the input channels (Frantar et al. 2022).

    Scales (and zero points, binary code's levels) are those of the weights before any compensation, with `clip_search`
    the ones of quantizer `mse`; compensated weights beyond them saturate. `damping` times the mean of the Hessian's
    diagonal is added to the diagonal. `act_order` takes the channels of largest squared activations first.
    """

    damping: float = 0.01
    act_order: bool = False
    clip_search: bool = False

    def __post_init__(self) -> None:
        require_damping("gptq", self.damping)
        require_truth("gptq: act_order", self.act_order)
        require_truth("gptq: clip_search", self.clip_search)

    def __call__(self, problem: Problem) -> tuple[Part, ...]:
        W, weights = problem.W, problem.weights
        start = clip_searched(W, weights) if self.clip_search else weights.quantize(W, axis=0)
        H = hessian(problem.X, self.damping)
        order = np.argsort(-np.diag(H), kind="stable") if self.act_order else np.arange(len(H))
        return (Part(weights=chosen_again(start, W, H, order), activations=problem.activations),)


def require_damping(what: str, damping: float) -> None:
    number = isinstance(damping, int | float | np.floating) and not isinstance(damping, bool)
    require(number and 0.0 <= damping <= 1.0, f"{what}: damping={damping!r} must be a number from 0 to 1")


def hessian(X: Floats, damping: float) -> Floats:
    """X^T X [K, K] of activations [T, K], plus `damping` times its mean diagonal on the diagonal.

    In units of the square of the largest activation: no step of the compensation depends on a common factor.
    """
    largest = float(np.abs(X).max())
    require(largest > 0.0, "gptq: all calibration activations are zero; calibrate with inputs that reach this layer")
    units = X / largest
    H = units.T @ units
    damped: Floats = H + damping * np.diag(H).mean() * np.eye(len(H))
    return damped


def inverse_factor(H: Floats) -> Floats:
    """U, upper triangular, with H^-1 = U^T U. InputError where H is not positive definite."""
    try:
        # H = R R^T with R upper: Cholesky with rows and columns in reverse; then U = R^-1
        reverse = np.linalg.cholesky(H[::-1, ::-1])
    except np.linalg.LinAlgError:
        rule = "gptq: the calibration activations do not span all channels"
        raise InputError(f"{rule}; raise damping (0.01 is usual) or calibrate with more inputs") from None
    return _inverse_upper(np.ascontiguousarray(reverse[::-1, ::-1]))


def _inverse_upper(R: Floats) -> Floats:
    """The inverse of an upper triangular matrix, by halves."""
    n = len(R)
    if n <= 64:
        return np.triu(np.linalg.inv(R))
    h = n // 2
    inverse = np.zeros_like(R)
    inverse[:h, :h], inverse[h:, h:] = _inverse_upper(R[:h, :h]), _inverse_upper(R[h:, h:])
    inverse[:h, h:] = -inverse[:h, :h] @ R[:h, h:] @ inverse[h:, h:]
    return inverse


def compensate(W: Floats, U: Floats, choose: Choose, group: int = 1) -> None:
    """Round the rows of W [K, N] from the first to the last, in place: W ends up with what was added to each.

    Row k becomes q = choose(k, rows); its error e = (w - q) / U[k, k] is taken out of every later row i as U[k, i] e.
    Groups are `group` rows long; the last may be shorter.
    """
    errors = np.empty_like(W)

    def solve(low: int, high: int) -> None:
        # halves instead of the paper's blocks of 128: nearly all updates are products of matrices
        if high - low == 1:
            errors[low] = (W[low] - choose(low, W[low : (low // group + 1) * group])) / U[low, low]
            return
        whole = group if high - low > group else 1
        middle = low + max((high - low) // 2 // whole, 1) * whole
        solve(low, middle)
        W[middle:high] -= U[low:middle, middle:high].T @ errors[low:middle]
        solve(middle, high)

    solve(0, len(W))


def chosen_again(start: Quantized, W: Floats, H: Floats, order: Ints) -> Quantized:
    """`start` with the codes that compensation chooses for weights [K, N], rows taken in that order."""
    nearest = nearest_in(start)
    codes, integers = rounded_matrix(start)

    def choose(k: int, rows: Floats) -> Floats:
        row = int(order[k])
        found = nearest(row, rows[0])
        codes[row] = found.codes
        if integers is not None and found.integers is not None:
            integers[row] = found.integers
        return found.values

    compensate(W[order], inverse_factor(H[np.ix_(order, order)]), choose)
    return dataclasses.replace(start, codes=codes, integers=integers)
