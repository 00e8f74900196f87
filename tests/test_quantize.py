"""hwsim.quantize: networks on engines, against float64 arithmetic on the quantized values."""

import dataclasses

import numpy as np
import pytest

from hwsim.networks import get_network
from hwsim.networks.mlp import float_accuracy, float_linear, forward
from hwsim.quantize import accuracy, emulated, emulated_accuracy, on_engine, quantize_network
from hwsim.transforms import get_transform
from models.catalog import unit
from models.unit import InputError

WIDTHS = [(8, 8), (4, 8), (4, 4), (3, 8), (2, 8)]
"""(weight bits, activation bits)"""


@pytest.fixture(scope="module")
def network():
    return get_network("digits-mlp", seed=1)


def engine(name, weight_bits=8, act_bits=8, **values):
    return unit(name).params(weight_bits=weight_bits, act_bits=act_bits, acc_bits=40, **values)


ENGINES = [
    lambda w, a: engine("systolic", w, a, dataflow="WS"),
    lambda w, a: engine("systolic", w, a, dataflow="OS"),
    lambda w, a: engine("lutgemm", w, a),
    lambda w, a: engine("lutgemm", w, a, group_size=32),
    lambda w, a: engine("shiftadd", w, a),
]


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("transform", ["none", "hadamard"])
@pytest.mark.parametrize("weight_bits, act_bits", WIDTHS)
def test_engine_and_float64_emulation_agree(network, make, transform, weight_bits, act_bits):
    quantized = quantize_network(network, make(weight_bits, act_bits), transform=get_transform(transform))
    x = network.test_x[:300]
    ours, theirs = forward(network, x, quantized.engine), forward(network, x, quantized.emulated)
    assert np.array_equal(ours.argmax(axis=1), theirs.argmax(axis=1))
    for index, layer in enumerate(quantized.layers):
        a, b = on_engine(layer, x), emulated(layer, x)
        assert np.allclose(a, b, rtol=0, atol=1e-9 * np.abs(b).max())
        x = np.maximum(float_linear(network, index, x), 0)


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("transform", ["none", "hadamard"])
def test_eight_bits_lose_next_to_nothing(network, make, transform):
    quantized = quantize_network(network, make(8, 8), transform=get_transform(transform))
    assert abs(accuracy(network, quantized) - float_accuracy(network)) <= 0.005
    assert accuracy(network, quantized) == emulated_accuracy(network, quantized)


def test_two_bits_lose_more_than_four(network):
    two, four = (accuracy(network, quantize_network(network, engine("systolic", w))) for w in (2, 4))
    assert two < four - 0.02


def test_transform_pair_is_exact_before_quantization(network):
    t = get_transform("hadamard")
    plain = forward(network, network.test_x, lambda i, x: float_linear(network, i, x))
    turned = forward(
        network,
        network.test_x,
        lambda i, x: t.apply(x) @ t.fold_weights(network.weights[i]) + network.biases[i],
    )
    assert np.abs(plain - turned).max() < 1e-10


@pytest.mark.parametrize("act_symmetric", [True, False])
def test_outputs_are_the_formula(network, act_symmetric):
    """One layer by hand: integers, zero point, column sums, scales, bias."""
    layer = quantize_network(network, engine("systolic", 4, 6), act_symmetric=act_symmetric).layers[1]
    x = np.maximum(float_linear(network, 0, network.test_x[:20]), 0)
    step = np.abs(network.weights[1]).max(axis=0) / 7
    w = np.clip(np.rint(network.weights[1] / step), -8, 7)
    if act_symmetric:
        scale = x.max(axis=1, keepdims=True) / 31
        a = np.rint(x / scale)
    else:
        scale = x.max(axis=1, keepdims=True) / 63
        a = np.rint(x / scale)  # inputs are not negative: the lowest code stands for zero
    assert np.allclose(on_engine(layer, x), (a @ w) * scale * step + network.biases[1], rtol=0, atol=1e-9)
    assert np.array_equal(layer.column_sums, w.sum(axis=0))


def test_a_forgotten_zero_point_correction_would_show(network):
    layer = quantize_network(network, engine("systolic")).layers[0]
    broken = dataclasses.replace(layer, column_sums=layer.column_sums * 0)
    x = network.test_x[:20]
    assert not np.allclose(on_engine(broken, x), emulated(broken, x), rtol=0, atol=0.1)


def test_a_narrow_accumulator_is_felt(network):
    """The product really comes from the engine: where its accumulator wraps, outputs differ from exact arithmetic."""
    params = unit("systolic").params(act_bits=8, weight_bits=8, acc_bits=16)
    quantized = quantize_network(network, params)
    assert accuracy(network, quantized) < emulated_accuracy(network, quantized) - 0.1


def test_bits_per_weight_counts_scales(network):
    quantized = quantize_network(network, engine("systolic", 4))
    weights, columns = 64 * 128 + 128 * 64 + 64 * 10, 128 + 64 + 10
    assert quantized.bits_per_weight == pytest.approx(4 + 16 * columns / weights, rel=1e-12)


def test_a_transform_unit_is_no_engine(network):
    with pytest.raises(InputError, match="take a GEMM engine"):
        quantize_network(network, unit("hadamard").preset("default"))


def test_groups_with_steps_of_their_own_are_refused(network, monkeypatch):
    monkeypatch.setattr(
        unit("systolic").module, "weight_format", lambda params: (f"int{params.weight_bits}", {"group": 8})
    )
    with pytest.raises(InputError, match="one step a column"):
        quantize_network(network, engine("systolic"))
