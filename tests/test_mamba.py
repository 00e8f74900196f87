"""Mamba: the forward pass of Hugging Face's, causality, and what the shipped weights reach on text they never saw."""

from pathlib import Path

import numpy as np
import pytest

from hwsim.networks import get_network, language
from hwsim.networks.checkpoint import load_tensors, read_json
from hwsim.networks.corpus import heldout_text
from hwsim.networks.mamba import convolved, mamba, network, read_spec, scaled_silu, softplus
from hwsim.networks.network import Arithmetic, float_arithmetic
from hwsim.networks.scan import selective_scan
from models.unit import InputError

FIXTURE = Path(__file__).parent / "data" / "llama" / "mamba"
SMALL = 4096


def text_of(expected):
    return language.Text(tokens=expected["tokens"].reshape(-1), sizes=np.ones(80, dtype=np.int64))


@pytest.fixture(scope="module")
def expected():
    return load_tensors(FIXTURE / "expected.safetensors")


@pytest.fixture(scope="module")
def small(expected):
    text = text_of(expected)
    spec = read_spec(read_json(FIXTURE / "config.json"))
    return network("small", spec, load_tensors(FIXTURE / "model.safetensors"), text, text)


@pytest.fixture(scope="module")
def shipped():
    return mamba(text_bytes=SMALL)


def test_the_forward_pass_is_that_of_transformers(small, expected):
    logits = small.forward(small, expected["tokens"], float_arithmetic(small))
    assert expected["logits"].std() > 0.5
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-5)


def test_no_output_depends_on_what_comes_later(small, expected):
    tokens = expected["tokens"].copy()
    before = small.forward(small, tokens, float_arithmetic(small))
    tokens[0, 25] = (tokens[0, 25] + 1) % 64
    after = small.forward(small, tokens, float_arithmetic(small))
    np.testing.assert_array_equal(before[0, :25], after[0, :25])
    np.testing.assert_array_equal(before[1], after[1])
    assert (before[0, 25:] != after[0, 25:]).any(axis=1).all()


def test_the_scan_is_a_plain_recurrence():
    rng = np.random.default_rng(7)
    u, dt = rng.standard_normal((2, 9, 5)), rng.uniform(0.01, 2, (2, 9, 5))
    A, B, C = -rng.uniform(0.1, 4, (5, 3)), rng.standard_normal((2, 9, 3)), rng.standard_normal((2, 9, 3))
    h, wanted = np.zeros((2, 5, 3)), np.empty((2, 9, 5))
    for t in range(9):
        h = np.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * u[:, t])[:, :, None] * B[:, t, None]
        wanted[:, t] = (h * C[:, t, None]).sum(axis=-1)
    np.testing.assert_allclose(selective_scan(u, dt, A, B, C), wanted, rtol=1e-12, atol=1e-12)


def test_the_convolution_is_numpys_channel_by_channel():
    rng = np.random.default_rng(8)
    x, taps, bias = rng.standard_normal((2, 11, 3)), rng.standard_normal((3, 4)), rng.standard_normal(3)
    found = convolved(x, taps, bias)
    for b in range(2):
        for d in range(3):
            np.testing.assert_allclose(
                found[b, :, d], np.convolve(x[b, :, d], taps[d, ::-1])[:11] + bias[d], atol=1e-12
            )


def test_softplus_is_exact_where_it_can_overflow():
    x = np.array([-800.0, -1.0, 0.0, 1.0, 800.0])
    np.testing.assert_allclose(softplus(x), np.logaddexp(0, x), rtol=1e-15)


def test_scaled_silu_is_silu_of_the_product_over_the_factor():
    x = np.array([[-800.0, -1.5, 0.0, 2.0, 800.0]])
    np.testing.assert_array_equal(scaled_silu(x, np.ones(5)), language.silu(x))
    s = np.array([0.25, 3.0, 2.0, 0.5, 4.0])
    np.testing.assert_allclose(scaled_silu(x, s), language.silu(s * x) / s, rtol=1e-12, atol=1e-300)
    assert scaled_silu(np.array([2.0]), np.array([3.0]))[0] == pytest.approx(2 / (1 + np.exp(-6)), rel=1e-12)


def test_every_group_and_state_passes_through_the_arithmetic(small, expected):
    seen = {"project": [], "state": []}
    exact = float_arithmetic(small)

    def project(group, x):
        seen["project"].append(group)
        assert x.shape[1] == small.tensors[small.groups[group].readers[0]].shape[0]
        return exact.project(group, x)

    def state(name, x):
        seen["state"].append(name)
        assert x.shape == (80, 32)
        return x

    small.forward(small, expected["tokens"], Arithmetic(project=project, state=state))
    assert tuple(seen["project"]) == tuple(small.groups)
    assert tuple(seen["state"]) == small.states


def test_what_a_state_gives_back_is_what_is_used(small, expected):
    exact = float_arithmetic(small)
    before = small.forward(small, expected["tokens"], exact)
    for name in small.states:
        changed = Arithmetic(project=exact.project, state=lambda n, x, name=name: 1.1 * x if n == name else x)
        assert not np.allclose(small.forward(small, expected["tokens"], changed), before), name


def test_the_shipped_weights_predict_text_they_never_saw(shipped):
    metrics = shipped.evaluate(shipped, float_arithmetic(shipped))
    text = np.frombuffer(heldout_text(SMALL), dtype=np.uint8)
    shares = np.unique(text, return_counts=True)[1] / len(text)
    assert metrics["bits_per_byte"] < 2.0 < 0.5 * -(shares * np.log2(shares)).sum()
    assert metrics["perplexity"] == pytest.approx(2 ** metrics["bits_per_byte"])


def test_accuracy_is_the_share_of_tokens_predicted_right(small, expected):
    """Against a loop over windows of 32 tokens and one of 16, each scored by itself."""
    metrics = language.evaluator(text_of(expected), 32, 64)(small, float_arithmetic(small))
    tokens, right, count = expected["tokens"].reshape(-1), 0, 0
    for start in (0, 32, 64):
        window = tokens[start : start + 32]
        logits = small.forward(small, window[None], float_arithmetic(small))[0]
        for place in range(len(window) - 1):
            right += sorted(range(64), key=lambda token, row=logits[place]: row[token])[-1] == window[place + 1]
            count += 1
    assert count == 77
    assert metrics["accuracy"] == right / count


def test_the_network_is_the_one_of_that_name(shipped):
    assert get_network("mamba", seed=3, text_bytes=SMALL).tensors.keys() == shipped.tensors.keys()
    tied = 2 * shipped.tensors["embedding"].size  # once as embedding, once as head
    factors = [name for name in shipped.tensors if name.endswith(".silu")]
    assert all((shipped.tensors[name] == 1).all() for name in factors)
    trained = sum(t.size for name, t in shipped.tensors.items() if name not in factors)
    assert trained - tied // 2 == 2_693_888
    assert not any(t.flags.writeable for t in shipped.tensors.values())
    assert shipped.calibration.shape[1] == language.CONTEXT
    assert shipped.batch == shipped.workload.size


@pytest.mark.parametrize("tokens", [np.full((1, 4), 256), np.full((1, 4), -1), np.ones((1, 4)), np.ones(4, int)])
def test_inputs_that_are_no_bytes_are_refused(shipped, tokens):
    with pytest.raises(InputError, match=r"mamba: (tokens must be from 0 to 255|inputs must be whole numbers)"):
        shipped.forward(shipped, tokens, float_arithmetic(shipped))
