"""hwsim.quantize: networks on engines, against float64 arithmetic on the quantized values."""

import dataclasses

import numpy as np
import pytest

from hwsim.networks import get_network
from hwsim.networks.network import Arithmetic, Group, Network, float_arithmetic, linear
from hwsim.quantize import Codes, emulated, encoded, engine_formats, layer_errors, on_engine, quantize_network, work_of
from hwsim.quantizers import Part, get_quantizer
from hwsim.transforms import prepare
from hwsim.transforms.plan import Prepared
from models.catalog import unit
from models.formats import get_format
from models.unit import InputError

WIDTHS = [(8, 8), (4, 8), (4, 4), (3, 8), (2, 8)]
"""(weight bits, activation bits)"""
RTN = get_quantizer("rtn")


@pytest.fixture(scope="module")
def network():
    return get_network("digits-mlp", seed=1)


def engine(name, weight_bits=8, act_bits=8, **values):
    return unit(name).params(weight_bits=weight_bits, act_bits=act_bits, acc_bits=40, **values)


def quantized(network, params, transform="none", act_symmetric=False, quantizer=RTN):
    weights, activations = engine_formats(params, act_symmetric=act_symmetric)
    prepared = prepare(transform, network, seed=1)
    return quantize_network(
        prepared, weights=weights, activations=activations, quantizer=quantizer, params=params, seed=1
    )


def accuracy(network, arithmetic):
    return network.evaluate(network, arithmetic)["accuracy"]


def inputs_of(network, x):
    """What each group reads in float."""
    seen, compute = {}, float_arithmetic(network).project

    def project(group, values):
        seen[group] = values
        return compute(group, values)

    network.forward(network, x, Arithmetic(project=project))
    return seen


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
    q = quantized(network, make(weight_bits, act_bits), transform)
    x = network.workload[:300]
    ours, theirs = (network.forward(network, x, way) for way in (q.engine, q.emulated))
    assert np.array_equal(ours.argmax(axis=1), theirs.argmax(axis=1))
    for group, values in inputs_of(network, x).items():
        (a,), (b,) = q.engine.project(group, values), q.emulated.project(group, values)
        assert np.allclose(a, b, rtol=0, atol=1e-9 * np.abs(b).max())


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("transform", ["none", "hadamard"])
def test_eight_bits_lose_next_to_nothing(network, make, transform):
    q = quantized(network, make(8, 8), transform)
    assert abs(accuracy(network, q.engine) - accuracy(network, float_arithmetic(network))) <= 0.005
    assert accuracy(network, q.engine) == accuracy(network, q.emulated)


def test_two_bits_lose_more_than_four(network):
    two, four = (accuracy(network, quantized(network, engine("systolic", w)).engine) for w in (2, 4))
    assert two < four - 0.02


@pytest.mark.parametrize("act_symmetric", [True, False])
def test_outputs_are_the_formula(network, act_symmetric):
    """One layer by hand: integers, zero point, column sums, scales, bias."""
    q = quantized(network, engine("systolic", 4, 6), act_symmetric=act_symmetric)
    x = np.maximum(linear(network, "layers.0", network.workload[:20]), 0).astype(np.float16).astype(np.float64)
    W, bias = network.tensors["layers.1"], network.tensors["layers.1.bias"]
    step = np.abs(W).max(axis=0) / 7
    w = np.clip(np.rint(W / step), -8, 7)
    # inputs are not negative: the lowest of 64 codes stands for zero, or the highest of 31 positive ones for the most
    steps, most = 31 if act_symmetric else 63, x.max(axis=1, keepdims=True)
    (y,) = q.engine.project("layers.1", x)
    assert np.allclose(y, (np.rint(x * steps / most) @ w) * (most / steps) * step + bias, rtol=0, atol=1e-9)
    assert np.array_equal(q.products["layers.1"][0][0].column_sums, w.sum(axis=0))


def test_a_forgotten_zero_point_correction_would_show(network):
    product = quantized(network, engine("systolic")).products["layers.0"][0][0]
    codes = Codes(network.workload[:20], np.ones((20, 1)), encoded).of(product.part)
    right = on_engine(product, codes)
    assert np.allclose(right, emulated(product, codes), rtol=0, atol=1e-9)
    product.__dict__["column_sums"] = product.column_sums * 0
    assert not np.allclose(on_engine(product, codes), right, rtol=0, atol=0.1)


def test_a_narrow_accumulator_is_felt(network):
    """The product really comes from the engine: where its accumulator wraps, outputs differ from exact arithmetic."""
    q = quantized(network, unit("systolic").params(act_bits=8, weight_bits=8, acc_bits=16))
    assert accuracy(network, q.engine) < accuracy(network, q.emulated) - 0.1


def test_bits_per_weight_counts_scales(network):
    q = quantized(network, engine("systolic", 4))
    weights, columns = 64 * 128 + 128 * 64 + 64 * 10, 128 + 64 + 10
    assert q.bits_per_weight == pytest.approx(4 + 16 * columns / weights, rel=1e-12)


def test_errors_of_layers_are_of_the_float_networks_activations(network):
    q = quantized(network, engine("systolic", 3))
    found = layer_errors(q, q.engine)
    for group, x in inputs_of(network, network.calibration).items():
        right = linear(network, group, x)
        error = np.linalg.norm(q.engine.project(group, x)[0] - right) / np.linalg.norm(right)
        assert found[group] == pytest.approx(error, rel=1e-12)
    assert set(found) == set(network.groups)
    fine = quantized(network, engine("systolic", 8))
    assert all(layer_errors(fine, fine.engine)[name] < found[name] / 4 for name in found)


def test_work_is_what_the_forward_pass_does(network):
    work = work_of(quantized(network, engine("systolic", 4), "hadamard"))
    shapes = [network.tensors[name].shape for name in network.groups]
    assert list(work.products) == [{"M": 899, "K": k, "N": n} for k, n in shapes]
    assert [(rows, channels) for _, rows, channels in work.maps] == [(899, k) for k, _ in shapes]
    # FP16 becomes integers for the transform's unit, and what that puts out codes for the engine
    before, behind = work.codes[::2], work.codes[1::2]
    assert [(fmt.bits, m, rows, K) for fmt, m, rows, K in before] == [(11, None, 899, k) for k, _ in shapes]
    assert [(fmt.bits, rows, K) for fmt, _, rows, K in behind] == [(8, 899, k) for k, _ in shapes]
    assert all(m is not None for _, m, _, _ in behind)
    plain = work_of(quantized(network, engine("systolic", 4)))
    assert plain.maps == ()
    assert [(m, K) for _, m, _, K in plain.codes] == [(None, k) for k, _ in shapes]


def test_a_transform_unit_is_no_engine():
    with pytest.raises(InputError, match="take a GEMM engine"):
        engine_formats(unit("hadamard").preset("default"))


def test_groups_with_steps_of_their_own_are_refused(network, monkeypatch):
    monkeypatch.setattr(
        unit("systolic").module, "weight_format", lambda params: (f"int{params.weight_bits}", {"group": 8})
    )
    with pytest.raises(InputError, match="one step a column"):
        quantized(network, engine("systolic"))


# ------------------------------------------------------------------------------- parts, kept groups, caches


def tiny(seed=0, kept=()):
    """Two layers with a cache between them: y = (cache(x A + a)) B."""
    rng = np.random.default_rng(seed)
    tensors = {"a": rng.normal(size=(8, 6)), "a.bias": rng.normal(size=6), "b": rng.normal(size=(6, 4))}

    def forward(network, x, arithmetic):
        first, second = network.groups
        (h,) = arithmetic.project(first, x)
        return arithmetic.project(second, arithmetic.state("layers.0.key", h))[0]

    return Network(
        name="tiny",
        tensors=tensors,
        groups={name: Group(readers=(name,)) for name in ("a", "b")},
        forward=forward,
        evaluate=lambda network, arithmetic: {"accuracy": float(forward(network, np.eye(8), arithmetic).sum())},
        calibration=rng.normal(size=(10, 8)),
        workload=np.eye(8),
        batch=8,
        states=("layers.0.key",),
        kept=kept,
    )


def test_kept_groups_stay_in_float():
    network = tiny(kept=("b",))
    low = quantize_network(
        Prepared(network=network), weights=get_format("int2"), activations=get_format("int2"), quantizer=RTN
    )
    h = np.random.default_rng(1).normal(size=(5, 6))
    assert np.array_equal(low.emulated.project("b", h)[0], h @ network.tensors["b"])
    assert set(layer_errors(low, low.emulated)) == {"a"}
    x = np.random.default_rng(2).normal(size=(5, 8))
    assert not np.allclose(low.emulated.project("a", x)[0], linear(network, "a", x), rtol=0, atol=0.1)


def test_caches_are_read_back_quantized_under_their_maps():
    network = tiny()
    fmt = get_format("int3", symmetric=False)
    prepared = prepare("none", network, seed=1)
    kept = quantize_network(
        prepared, weights=get_format("int8"), activations=get_format("int8"), quantizer=RTN, cache=fmt
    )
    x = np.random.default_rng(3).normal(size=(7, 6))
    assert np.array_equal(kept.emulated.state("layers.0.key", x), fmt.quantize(x).dequantize())
    assert np.array_equal(kept.emulated.state("elsewhere", x), x)

    class Swap:
        """Channels in reverse, times their number: scales of a token change."""

        def apply(self, v):
            return v[:, ::-1] * np.arange(1, 7)

        def undo(self, v):
            return (v / np.arange(1, 7))[:, ::-1]

    turned = dataclasses.replace(
        kept, prepared=dataclasses.replace(prepared, states={"layers.0.key": (Swap(),)})
    ).emulated.state("layers.0.key", x)
    expected = fmt.quantize(x[:, ::-1] * np.arange(1, 7)).dequantize() / np.arange(1, 7)
    assert np.array_equal(turned, expected[:, ::-1])


def test_parts_are_summed_over_their_inputs_and_outputs():
    """Inputs by halves and one output apart at more bits: the sum of three products, each on its own codes."""
    network = tiny()
    A4, A8 = get_format("int4"), get_format("int8")
    rows, last = np.arange(8), np.array([5])

    def split(problem):
        if problem.W.shape[0] != 8:
            return RTN(problem)
        first, second = rows[:4], rows[4:]
        most = np.arange(5)
        return (
            Part(weights=A4.quantize(problem.W[:4, :5], axis=0), activations=A8, inputs=first, outputs=most),
            Part(weights=A8.quantize(problem.W[4:, :5], axis=0), activations=A4, inputs=second, outputs=most),
            Part(weights=A8.quantize(problem.W[:, last], axis=0), activations=A8, outputs=last),
        )

    q = quantize_network(Prepared(network=network), weights=A4, activations=A8, quantizer=split)
    x = np.random.default_rng(4).integers(-2048, 2048, (3, 8)) / 512  # FP16 holds them
    W = network.tensors["a"]
    expected = np.zeros((3, 6))
    expected[:, :5] = A8.quantize(x[:, :4]).dequantize() @ A4.quantize(W[:4, :5], axis=0).dequantize()
    expected[:, :5] += A4.quantize(x[:, 4:]).dequantize() @ A8.quantize(W[4:, :5], axis=0).dequantize()
    expected[:, 5:] = A8.quantize(x).dequantize() @ A8.quantize(W[:, last], axis=0).dequantize()
    assert np.allclose(q.emulated.project("a", x)[0], expected + network.tensors["a.bias"], rtol=0, atol=1e-12)


def test_channels_that_a_part_does_not_choose_count_as_zero():
    network = tiny()
    A8 = get_format("int8")

    def small(x):
        return np.abs(x).max(axis=0) < 2

    part = Part(weights=A8.quantize(network.tensors["a"], axis=0), activations=A8, chosen=small)
    x = np.random.default_rng(5).integers(-1023, 1024, (3, 8)) / 512  # FP16 holds them
    x[:, 2] = 50.0
    q = quantize_network(Prepared(network=network), weights=A8, activations=A8, quantizer=lambda _problem: (part,))
    masked = x * [1, 1, 0, 1, 1, 1, 1, 1]
    expected = A8.quantize(masked).dequantize() @ part.weights.dequantize() + network.tensors["a.bias"]
    assert np.allclose(q.emulated.project("a", x)[0], expected, rtol=0, atol=1e-12)
