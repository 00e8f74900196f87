"""Quantizers: how a linear layer's weights become codes, and which low-bit products make up the layer.

    parts = get_quantizer("gptq", act_order=True)(Problem(W=W, X=X, weights=..., activations=..., seed=1))

A quantizer is a frozen dataclass of its options, called with a `Problem`. What a number format does by itself (the
alternating fit of binary code, additive powers of two, ternary, twin-log, codebooks) has no name here: that is `rtn`
with weights of the format.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hwsim.options import parse_options
from hwsim.quantizers.parts import Part, Problem, Quantizer
from models.formats import FORMATS
from models.unit import nearest, require

__all__ = ["QUANTIZERS", "Entry", "Part", "Problem", "Quantizer", "get_quantizer"]


@dataclass(frozen=True)
class Entry:
    """One name."""

    make: str
    """module:class of the options"""
    title: str
    source: str


QUANTIZERS: Mapping[str, Entry] = {
    "rtn": Entry("rounding:Rtn", "Round to nearest, as the format says", "-"),
    "mse": Entry("clipping:Mse", "Clipping range of least squared weight error", "QuaRot (Ashkboos et al. 2024)"),
    "gptq": Entry("gptq:Gptq", "Error compensation over input channels", "GPTQ (Frantar et al. 2022)"),
    "shiftaddllm": Entry(
        "shiftaddllm:ShiftAddLlm",
        "Power-of-two binary code, fitted while errors are compensated",
        "ShiftAddLLM (You et al. 2024)",
    ),
    "llm-int8": Entry("mixed:LlmInt8", "Outlier channels of each batch in FP16", "LLM.int8() (Dettmers et al. 2022)"),
    "mixllm": Entry("mixed:MixLlm", "The most salient outputs at 8 bits", "MixLLM (Zheng et al. 2024)"),
    "comet": Entry("mixed:Comet", "Blocks of outlier channels at 8 bits", "COMET (Liu et al. 2024), FMPQ"),
}


def get_quantizer(text: str, **options: Any) -> Quantizer:
    """The quantizer that `name` or `name:option=value,option=value` describes, with further options beside it.

    InputError names the nearest name or option, and one that is given twice.
    """
    name, written = parse_options("quantizer", text)
    own = name in FORMATS and name not in QUANTIZERS
    require(not own, f"no quantizer {name!r}: that is a format's own; take quantizer 'rtn' with weights of {name!r}")
    require(name in QUANTIZERS, f"no quantizer {name!r}; {nearest(name, QUANTIZERS)}")
    module, _, made = QUANTIZERS[name].make.partition(":")
    make = getattr(importlib.import_module(f"{__name__}.{module}"), made)
    free = [f.name for f in dataclasses.fields(make)]
    for option in (*written, *options):
        hint = nearest(option, free) if free else "it has none"
        require(option in free, f"quantizer {name}: no option {option!r}; {hint}")
    twice = sorted(written.keys() & options.keys())
    require(not twice, f"quantizer {name}: {', '.join(twice)} given twice")
    return typing.cast(Quantizer, make(**written, **options))
