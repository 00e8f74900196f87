"""Layers as sums of products at different precisions: by activation outliers, by outputs, by blocks of channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.quantizers.parts import Part, Problem
from models.formats import Format, Fp16Format, IntFormat
from models.quantized import group_size, is_whole
from models.unit import Ints, require

Floats = NDArray[np.float64]

WIDE = 8
"""Bits of what MixLLM and COMET keep more exactly."""


def _wide(what: str, kept: Format) -> IntFormat:
    """The format with `WIDE` bits instead, over the whole range: a clip is chosen for the narrow codes."""
    narrow = isinstance(kept, IntFormat) and kept.bits < WIDE
    require(narrow, f"{what}: an integer format of less than {WIDE} bits is needed, not {kept}; nearest: int4")
    assert isinstance(kept, IntFormat)
    return dataclasses.replace(kept, bits=WIDE, clip=1.0)


def _is_number(value: Any, low: float, high: float) -> bool:
    number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    return number and bool(low <= value <= high)


# ------------------------------------------------------------------------------------------------ LLM.int8()


@dataclass(frozen=True, kw_only=True)
class LlmInt8:
    """Two products (Dettmers et al. 2022): channels in which any activation of the batch reaches `threshold` in
    magnitude go to a product of FP16 weights and FP16 activations, the others to one in the given formats.

    Which channels these are is known at run time alone: both parts hold the weights of all channels, and each zeroes
    the activations that are not its own before scales are taken.
    """

    threshold: float = 6.0

    def __post_init__(self) -> None:
        rule = "must be a number above 0"
        require(_is_number(self.threshold, 1e-300, 1e300), f"llm-int8: threshold={self.threshold!r} {rule}")

    def __call__(self, problem: Problem) -> tuple[Part, ...]:
        low, half = problem.weights.quantize(problem.W, axis=0), Fp16Format()
        return (
            Part(weights=low, activations=problem.activations, chosen=partial(_regular, threshold=self.threshold)),
            Part(
                weights=half.quantize(problem.W, axis=0),
                activations=half,
                chosen=partial(outlier_channels, threshold=self.threshold),
            ),
        )


def outlier_channels(x: Floats, threshold: float) -> NDArray[np.bool_]:
    """Which channels [K] of activations [M, K] hold a magnitude of at least `threshold`."""
    return np.asarray((np.abs(x) >= threshold).any(axis=0))


def _regular(x: Floats, threshold: float) -> NDArray[np.bool_]:
    return ~outlier_channels(x, threshold)


# ---------------------------------------------------------------------------------------------------- MixLLM


@dataclass(frozen=True, kw_only=True)
class MixLlm:
    """Two products (Zheng et al. 2024): the most salient `share` of the outputs, rounded to whole ones, at 8 bits, the
    others in the given format; rounding to nearest in both.

    The paper ranks the outputs of all layers together: so does `for_network`. Called by itself, every layer has the
    same `share`.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        require(_is_number(self.share, 0.0, 1.0), f"mixllm: share={self.share!r} must be a number from 0 to 1")

    def __call__(self, problem: Problem) -> tuple[Part, ...]:
        wide = _wide("mixllm: weights", problem.weights)
        ranked = _descending(salience(problem))
        count = round(self.share * len(ranked))
        sets = ((wide, np.sort(ranked[:count])), (problem.weights, np.sort(ranked[count:])))
        return tuple(_outputs(problem, kept, chosen) for kept, chosen in sets if len(chosen))

    def for_network(self, problems: Mapping[str, Problem]) -> dict[str, MixLlm]:
        """Weight -> quantizer with the layer's own share of the network's most salient outputs.

        Each problem is looked up once and dropped, so that a mapping may form them one by one.
        """
        shares = global_shares(problems.values(), self.share)
        return {name: MixLlm(share=share) for name, share in zip(problems, shares, strict=True)}


def _outputs(problem: Problem, weights: Format, chosen: Ints) -> Part:
    found = weights.quantize(problem.W[:, chosen], axis=0)
    return Part(weights=found, activations=problem.activations, outputs=chosen)


def _descending(scores: Floats) -> Ints:
    """Indices, largest score first; of equal ones the lower index."""
    return np.argsort(-scores, kind="stable")


def salience(problem: Problem) -> Floats:
    """[N]: what rounding each output's weights to nearest adds to the layer's squared output error on the calibration
    activations, over the squared outputs of the whole layer. Zeros where the layer's outputs are.

    The paper weighs weight errors with gradients of the network's loss instead; without gradients, a layer's relative
    error stands for the loss.
    """
    x = problem.X / max(float(np.abs(problem.X).max()), np.finfo(np.float64).tiny)
    apart = problem.weights.quantize(problem.W, axis=0).dequantize() - problem.W
    whole = float(((x @ problem.W) ** 2).sum())
    errors: Floats = ((x @ apart) ** 2).sum(axis=0)
    return errors / whole if whole > 0.0 else np.zeros_like(errors)


def global_shares(problems: Iterable[Problem], share: float = 0.1) -> tuple[float, ...]:
    """For each layer the share of its outputs among the `share` of largest salience of all layers' outputs."""
    require(_is_number(share, 0.0, 1.0), f"mixllm: share={share!r} must be a number from 0 to 1")
    scores = [salience(problem) for problem in problems]
    owner = np.repeat(np.arange(len(scores)), [len(s) for s in scores])
    picked = owner[_descending(np.concatenate(scores))][: round(share * len(owner))]
    return tuple(float((picked == i).sum() / len(s)) for i, s in enumerate(scores))


# ----------------------------------------------------------------------------------------------------- COMET


@dataclass(frozen=True, kw_only=True)
class Comet:
    """Two products (Liu et al. 2024, FMPQ): blocks of `block` input channels whose activations are 8-bit integers, and
    the other channels with the given format. Weights have the given format in both.

    A channel is an outlier where its largest calibration magnitude is above `ratio` times the channels' median. The
    outliers, and the next largest channels that fill their last block, come first in the order of that magnitude; the
    others keep their order. The rule and its `ratio` are ours.
    """

    block: int = 128
    ratio: float = 4.0

    def __post_init__(self) -> None:
        rule = "must be a whole number of at least 1"
        require(is_whole(self.block, 1, 1 << 62), f"comet: block={self.block!r} {rule}")
        require(_is_number(self.ratio, 1.0, 1e300), f"comet: ratio={self.ratio!r} must be a number of at least 1")

    def __call__(self, problem: Problem) -> tuple[Part, ...]:
        wide = _wide("comet: activations", problem.activations)
        group_size(problem.W.shape[0], self.block)
        magnitudes = np.abs(problem.X).max(axis=0)
        outliers = int((magnitudes > self.ratio * np.median(magnitudes)).sum())
        ranked, count = _descending(magnitudes), -(-outliers // self.block) * self.block
        sets = ((wide, ranked[:count]), (problem.activations, np.sort(ranked[count:])))
        return tuple(_inputs(problem, kept, chosen) for kept, chosen in sets if len(chosen))


def _inputs(problem: Problem, activations: Format, chosen: Ints) -> Part:
    weights = problem.weights.quantize(problem.W[chosen], axis=0)
    return Part(weights=weights, activations=activations, inputs=chosen)
