"""A float network on a low-bit engine: every linear layer's integer product is the engine's own `golden`.

Per layer: x -> transform -> integers of act_bits with a scale and zero point a token -> engine -> real values. With
codes a, zero points z and integer weights w, an output is (sum a w - z sum w) * token scale * column step + bias.
An engine with FP16 activations takes x rounded to FP16 (nearest even), without scale and zero point.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.networks import mlp
from hwsim.networks.mlp import Mlp
from hwsim.simulate import is_float
from hwsim.transforms import NoTransform, Transform
from models.catalog import unit_of
from models.floats import half_of
from models.formats import Format, IntFormat, Quantized, get_format
from models.unit import Kind, require

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedLinear:
    """One linear layer as the engine holds it."""

    params: Any
    """the engine's parameters"""
    weights: Quantized
    """[K, N] after the transform's fold; one step a column"""
    operand: Any
    """the weights as the engine's W"""
    worth: Fraction
    """what one unit of the engine's output is worth in products of the codes"""
    column_sums: NDArray[np.int64] | None
    """[N] sums of the integer weights: what a unit of activation zero point adds; None where there are no integers"""
    bias: Floats
    activations: Format
    transform: Transform


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedNetwork:
    """A network's layers for one engine; `engine` and `emulated` are what `mlp.forward` and `mlp.accuracy` take."""

    layers: tuple[QuantizedLinear, ...]

    def engine(self, layer: int, x: Floats) -> Floats:
        """The layer with its product computed by the engine, bit for bit."""
        return on_engine(self.layers[layer], x)

    def emulated(self, layer: int, x: Floats) -> Floats:
        """The layer in float64 arithmetic on the dequantized values."""
        return emulated(self.layers[layer], x)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of all weights, scales included, over their number."""
        sizes = [layer.weights.codes.size for layer in self.layers]
        bits = [layer.weights.bits_per_value * size for layer, size in zip(self.layers, sizes, strict=True)]
        return sum(bits) / sum(sizes)


def quantize_network(
    network: Mlp, params: Any, *, transform: Transform | None = None, act_symmetric: bool = False
) -> QuantizedNetwork:
    """The network's layers for the engine with these params, in the engine's own weight format.

    Activations take signed integers of params.act_bits, one scale a token, asymmetric unless `act_symmetric`.
    InputError for a unit that is no GEMM engine, or whose format gives a column more than one step.
    """
    chosen = NoTransform() if transform is None else transform
    pairs = zip(network.weights, network.biases, strict=True)
    return QuantizedNetwork(layers=tuple(_quantize_layer(W, b, params, chosen, act_symmetric) for W, b in pairs))


def _quantize_layer(W: Floats, bias: Floats, params: Any, transform: Transform, act_symmetric: bool) -> QuantizedLinear:
    engine = unit_of(params)
    require(engine.kind is Kind.GEMM, f"quantize: {engine.name} multiplies no matrices; take a GEMM engine")
    name, options = engine.weight_format(params)
    weights = get_format(name, **options).quantize(transform.fold_weights(W), axis=0)
    _check_steps(engine.name, weights)
    operand, worth = engine.operand(params, weights)
    return QuantizedLinear(
        params=params,
        weights=weights,
        operand=operand,
        worth=worth,
        column_sums=None if weights.integers is None else weights.integers.sum(axis=0),
        bias=bias,
        activations=get_format("fp16")
        if is_float(params)
        else IntFormat(bits=params.act_bits, symmetric=act_symmetric),
        transform=transform,
    )


def _check_steps(engine: str, weights: Quantized) -> None:
    """InputError unless each column has one step, or the codes are real numbers by themselves."""
    one_step = weights.integers is not None and weights.step is not None and weights.step.shape[0] == 1
    rule = f"quantize: {engine}'s weight format needs integers with one step a column"
    require(weights.step is None or one_step, rule)


def on_hardware(layer: QuantizedLinear, x: Floats) -> Quantized:
    """The activations [M, K] as the engine gets them."""
    return layer.activations.quantize(layer.transform.on_hardware(x), axis=-1)


def engine_input(layer: QuantizedLinear, q: Quantized) -> NDArray[Any]:
    """A, as the engine's `golden` takes it."""
    return half_of(q.codes) if is_float(layer.params) else q.codes


def on_engine(layer: QuantizedLinear, x: Floats) -> Floats:
    """Outputs [M, N] of activations [M, K], the product from the engine's `golden`."""
    q = on_hardware(layer, x)
    product = unit_of(layer.params).golden(layer.params, engine_input(layer, q), layer.operand)
    product = product * (layer.worth.numerator / layer.worth.denominator)
    if q.offsets is not None:
        assert layer.column_sums is not None
        product = product - q.offsets * layer.column_sums
    scales = q.scales if layer.weights.step is None else q.scales * layer.weights.step
    return product * scales + layer.bias


def emulated(layer: QuantizedLinear, x: Floats) -> Floats:
    """Outputs [M, N] from the real values that the codes stand for, multiplied in float64."""
    q = layer.activations.quantize(layer.transform.emulated(x), axis=-1)
    return q.dequantize() @ layer.weights.dequantize() + layer.bias


def accuracy(network: Mlp, quantized: QuantizedNetwork) -> float:
    """Fraction of the test set classified rightly with every product computed by the engine."""
    return mlp.accuracy(network, quantized.engine)


def engine_shapes(network: Mlp, quantized: QuantizedNetwork) -> list[dict[str, Any]]:
    """What the engine's `timing` and `ops` take for each layer, the test set as one batch: its shape and, where cycles
    depend on what the operands hold, what they need to know of these operands."""
    found = []

    def engine(index: int, x: Floats) -> Floats:
        layer = quantized.layers[index]
        found.append(
            unit_of(layer.params).shape_of(layer.params, engine_input(layer, on_hardware(layer, x)), layer.operand)
        )
        return quantized.engine(index, x)

    mlp.forward(network, network.test_x, engine)
    return found


def emulated_accuracy(network: Mlp, quantized: QuantizedNetwork) -> float:
    """The same fraction from float64 arithmetic on the dequantized values."""
    return mlp.accuracy(network, quantized.emulated)
