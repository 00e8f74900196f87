"""Whole networks in low-bit arithmetic on a systolic array's bit-exact arithmetic, beside the same in float64.

These run once, without a run that is not counted: they take long, and loading what is compiled is a small part.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.measure import Result, confirm, limited, seconds
from hwsim.networks import get_network
from hwsim.networks.network import Network, float_arithmetic
from hwsim.quantize import QuantizedNetwork, quantize_network
from hwsim.quantizers import get_quantizer
from hwsim.transforms import prepare
from models.catalog import unit
from models.formats import get_format

FLOAT64 = "the same in float64, not quantized"


def minilm(sentences: int = 200) -> list[Result]:
    """Embeddings of English sentences with weights and activations of 4 bits, rounding of the weights included."""
    whole = get_network("minilm")
    network = replace(whole, calibration=whole.calibration[:sentences])
    inputs = whole.workload[:sentences]
    made: list[QuantizedNetwork] = []

    def ours() -> None:
        made.append(w4a4(network))
        network.forward(network, inputs, made[0].engine)

    times = [seconds(ours)], [seconds(lambda: network.forward(network, inputs, float_arithmetic(network)))]
    check("minilm", made[0], inputs)
    what = f"MiniLM W4A4 over {len(inputs)} sentences, systolic golden, quantization included"
    return [limited("minilm", what, FLOAT64, times, 60)]


def pylm(text_bytes: int = 65536, calibrated: int = 16) -> list[Result]:
    """Perplexity of PyLM over held-out text, likewise; `calibrated` windows at most go through it before."""
    whole = get_network("pylm", text_bytes=text_bytes)
    network = replace(whole, calibration=whole.calibration[:calibrated])
    made: list[QuantizedNetwork] = []
    found: list[dict[str, float]] = []

    def ours() -> None:
        made.append(w4a4(network))
        found.append(network.evaluate(network, made[0].engine))

    times = (
        [seconds(ours)],
        [seconds(lambda: found.append(network.evaluate(network, float_arithmetic(network))))],
    )
    check("pylm", made[0], network.calibration[:1, :text_bytes])
    low, right = (metrics["perplexity"] for metrics in found)
    confirm(right < low < 256, "pylm: a perplexity between that of floats and that of equal bytes")
    what = f"PyLM W4A4 perplexity over {text_bytes} bytes, systolic golden, quantization included"
    return [limited("pylm", what, FLOAT64, times, 120)]


def w4a4(network: Network) -> QuantizedNetwork:
    """Weights rounded to nearest, one step a column; activations one scale and zero point a token; no transform."""
    return quantize_network(
        prepare("none", network),
        weights=get_format("int4"),
        activations=get_format("int4", symmetric=False),
        quantizer=get_quantizer("rtn"),
        params=unit("systolic").params(weight_bits=4, act_bits=4),
    )


def check(name: str, quantized: QuantizedNetwork, inputs: Any) -> None:
    """An exact engine's outputs are those of float64 arithmetic on the values that the codes stand for.

    Up to rounding in float64, which may move an activation to the next code in few places: hence the correlation.
    """
    network = quantized.prepared.network
    on_engine, on_values = (network.forward(network, inputs, way) for way in (quantized.engine, quantized.emulated))
    correlation = np.corrcoef(on_engine.ravel(), on_values.ravel())[0, 1]
    confirm(correlation > 0.9999, f"{name}: outputs")
