"""hwsim.networks: the digits classifier."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from hwsim.networks import get_network
from hwsim.networks.mlp import digits_mlp, float_accuracy, float_linear, forward
from models.unit import InputError


@pytest.fixture(scope="module")
def network():
    return get_network("digits-mlp", seed=1)


def test_layers_have_the_stated_shapes(network):
    assert [w.shape for w in network.weights] == [(64, 128), (128, 64), (64, 10)]
    assert [b.shape for b in network.biases] == [(128,), (64,), (10,)]
    assert all(w.shape[0] % 64 == 0 for w in network.weights)


def test_test_data_are_half_of_the_digits(network):
    pixels, classes = load_digits(return_X_y=True)
    assert network.test_x.shape == (899, 64)
    assert network.test_x.min() == 0.0
    assert network.test_x.max() == 1.0
    known = {tuple(row): label for row, label in zip(pixels, classes, strict=True)}
    assert [known[tuple(row)] for row in network.test_x * 16.0] == network.test_y.tolist()


def test_the_network_has_learned(network):
    """Better than a linear classifier trained on the same half."""
    pixels, classes = load_digits(return_X_y=True)
    tested = {tuple(row) for row in network.test_x * 16.0}
    train = np.array([tuple(row) not in tested for row in pixels])
    linear = LogisticRegression(max_iter=2000).fit(pixels[train] / 16.0, classes[train])
    assert float_accuracy(network) > linear.score(network.test_x, network.test_y)
    assert float_accuracy(network) > 0.95


def test_forward_is_the_layers_with_relu_between(network):
    x = network.test_x[:50]
    h = np.maximum(x @ network.weights[0] + network.biases[0], 0)
    h = np.maximum(h @ network.weights[1] + network.biases[1], 0)
    expected = h @ network.weights[2] + network.biases[2]
    assert np.allclose(forward(network, x, lambda i, a: float_linear(network, i, a)), expected, rtol=0, atol=1e-12)
    assert expected.min() < 0


def test_training_is_deterministic_and_seeded(network):
    again, other = digits_mlp.__wrapped__(seed=1), digits_mlp(seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(network.weights, again.weights, strict=True))
    assert np.array_equal(network.test_y, again.test_y)
    assert not np.array_equal(network.weights[0], other.weights[0])
    assert not np.array_equal(network.test_x, other.test_x)


def test_arrays_are_read_only(network):
    with pytest.raises(ValueError, match="read-only"):
        network.weights[0][0, 0] = 1.0


@pytest.mark.parametrize("seed", [-1, 1 << 32, 1.5])
def test_impossible_seeds_are_refused(seed):
    with pytest.raises(InputError, match="seed="):
        get_network("digits-mlp", seed=seed)


def test_unknown_networks_are_refused():
    with pytest.raises(InputError, match="did you mean 'digits-mlp'"):
        get_network("digit-mlp")
