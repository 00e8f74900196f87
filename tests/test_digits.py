"""hwsim.networks: the digits classifiers."""

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from hwsim.networks import cnn, digits, get_network
from hwsim.networks.mlp import digits_mlp
from hwsim.networks.network import Arithmetic, float_arithmetic
from models.unit import InputError

NAMES = ["digits-mlp", "digits-cnn"]


@pytest.fixture(scope="module")
def mlp():
    return get_network("digits-mlp", seed=1)


@pytest.fixture(scope="module", params=NAMES)
def network(request):
    return get_network(request.param, seed=1)


def test_layers_have_the_stated_shapes(mlp):
    shapes = {"layers.0": (64, 128), "layers.1": (128, 64), "layers.2": (64, 10)}
    assert {name: mlp.tensors[name].shape for name in mlp.groups} == shapes
    assert all(mlp.tensors[f"{name}.bias"].shape == (shape[1],) for name, shape in shapes.items())
    convolutions = get_network("digits-cnn", seed=1)
    assert [convolutions.tensors[name].shape for name in convolutions.groups] == [(16, 16), (256, 32), (512, 10)]


def test_test_data_are_half_of_the_digits_and_calibration_of_the_other(network):
    pixels, classes = load_digits(return_X_y=True)
    data = digits.split(1)
    assert network.workload.shape == (899, 64)
    assert network.batch == 899
    assert (network.workload.min(), network.workload.max()) == (0.0, 1.0)
    known = {tuple(row): label for row, label in zip(pixels, classes, strict=True)}
    assert [known[tuple(row)] for row in data.test_x * 16.0] == data.test_y.tolist()
    tested = {tuple(row) for row in data.test_x}
    assert not any(tuple(row) in tested for row in network.calibration)


def test_the_network_has_learned(network):
    """Better than a linear classifier trained on the same half."""
    data = digits.split(1)
    linear = LogisticRegression(max_iter=2000).fit(data.train_x, data.train_y)
    reached = network.evaluate(network, float_arithmetic(network))["accuracy"]
    assert reached > max(linear.score(data.test_x, data.test_y), 0.95)


def test_the_metric_is_the_share_of_right_classes(network):
    scores = network.forward(network, network.workload, float_arithmetic(network))
    right = sum(int(np.argmax(row)) == label for row, label in zip(scores, digits.split(1).test_y, strict=True))
    assert network.evaluate(network, float_arithmetic(network)) == {"accuracy": right / 899}


def test_forward_is_the_layers_with_relu_between(mlp):
    x, t = mlp.workload[:50], mlp.tensors
    h = np.maximum(x @ t["layers.0"] + t["layers.0.bias"], 0)
    h = np.maximum(h @ t["layers.1"] + t["layers.1.bias"], 0)
    expected = h @ t["layers.2"] + t["layers.2.bias"]
    assert np.allclose(mlp.forward(mlp, x, float_arithmetic(mlp)), expected, rtol=0, atol=1e-12)
    assert expected.min() < 0


def convolved(maps, kernel, bias, stride):
    """By the definition, output by output: an image [H, W, C], kernel [4, 4, C, N], one zero before and two after."""
    height, width, _ = maps.shape
    out = np.zeros((height // stride, width // stride, kernel.shape[-1]))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            total = bias.copy()
            for a in range(4):
                for b in range(4):
                    y, x = i * stride + a - 1, j * stride + b - 1
                    if 0 <= y < height and 0 <= x < width:
                        total = total + maps[y, x] @ kernel[a, b]
            out[i, j] = total
    return np.maximum(out, 0)


def test_a_convolution_is_the_sum_over_its_window():
    network = get_network("digits-cnn", seed=1)
    t, images = network.tensors, network.workload[:3]
    scores = []
    for image in images:
        maps = convolved(image.reshape(8, 8, 1), t["conv1"].reshape(4, 4, 1, 16), t["conv1.bias"], 1)
        maps = convolved(maps, t["conv2"].reshape(4, 4, 16, 32), t["conv2.bias"], 2)
        scores.append(maps.reshape(-1) @ t["fc"] + t["fc.bias"])
    assert np.allclose(network.forward(network, images, float_arithmetic(network)), scores, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_loss():
    """Against differences of the loss; biases and weights off zero, so that no ReLU stands at its kink."""
    rng = np.random.default_rng(3)
    tensors = {name: value + rng.normal(0, 0.05, value.shape) for name, value in cnn._drawn(rng).items()}
    x, y = digits.split(1).train_x[:6], digits.split(1).train_y[:6]

    def loss(changed):
        made = dataclasses.replace(get_network("digits-cnn", seed=1), tensors=changed)
        scores = made.forward(made, x, float_arithmetic(made))
        return np.mean(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(6), y])

    found = cnn._gradients(tensors, x, y)
    for name, value in tensors.items():
        way = rng.normal(size=value.shape)
        up, down = (loss({**tensors, name: value + sign * 1e-6 * way}) for sign in (1, -1))
        assert (up - down) / 2e-6 == pytest.approx(np.sum(found[name] * way), rel=1e-4), name


@pytest.mark.parametrize("make", [digits_mlp, cnn.digits_cnn])
def test_training_is_deterministic_and_seeded(make):
    network, again, other = make(seed=1), make.__wrapped__(seed=1), make(seed=2)
    assert all(np.array_equal(network.tensors[name], again.tensors[name]) for name in network.tensors)
    first = next(iter(network.groups))
    assert not np.array_equal(network.tensors[first], other.tensors[first])
    assert not np.array_equal(network.workload, other.workload)


def test_arrays_are_read_only(network):
    with pytest.raises(ValueError, match="read-only"):
        network.tensors[next(iter(network.groups))][0, 0] = 1.0


def test_every_product_goes_through_the_arithmetic(network):
    """One layer after the other replaced by zeros: the scores change each time."""
    plain = network.forward(network, network.workload[:5], float_arithmetic(network))
    for silent in network.groups:

        def project(group, x, silent=silent):
            outputs = float_arithmetic(network).project(group, x)
            return tuple(0 * y for y in outputs) if group == silent else outputs

        assert not np.array_equal(network.forward(network, network.workload[:5], Arithmetic(project=project)), plain)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [-1, 1 << 32, 1.5])
def test_impossible_seeds_are_refused(name, seed):
    with pytest.raises(InputError, match="seed="):
        get_network(name, seed=seed)


def test_unknown_networks_are_refused():
    with pytest.raises(InputError, match="did you mean 'digits-mlp'"):
        get_network("digit-mlp")
