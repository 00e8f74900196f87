"""The Llama family: Hugging Face's forward pass on small random checkpoints, PyLM on text it never saw, refusals."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from hwsim.networks import get_network, language, llama
from hwsim.networks.checkpoint import load_tensors, read_json
from hwsim.networks.corpus import heldout_text
from hwsim.networks.network import Arithmetic, Heads, float_arithmetic
from models.unit import InputError

DATA = Path(__file__).parent / "data" / "llama"
FAMILY = ["gqa", "tied", "qwen2", "qwen3", "mistral"]
SMALL = 4096


def expected(name):
    return load_tensors(DATA / name / "expected.safetensors")


def small(name):
    spec, tensors = llama.load_model(DATA / name)
    text = language.Text(tokens=expected(name)["tokens"].reshape(-1), sizes=np.ones(80, dtype=np.int64))
    return llama.network(name, spec, tensors, text, text)


def float_logits(network, tokens):
    return network.forward(network, tokens, float_arithmetic(network))


@pytest.fixture(scope="module")
def pylm():
    return llama.pylm(text_bytes=SMALL)


@pytest.fixture
def folder(tmp_path):
    """A model's folder with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = tmp_path / "tiny"
    shutil.copytree(DATA / "gqa", made)
    (made / "expected.safetensors").unlink()
    words = ["[UNK]", "the", "a", "of", "in", "import", "def", "(", ")", ":", ".", "_", "self", "return", "=", '"""']
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(made / "tokenizer.json"))
    return made


def edited(folder, **changes):
    """The folder with entries of its config.json changed, or removed by None."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


# ------------------------------------------------------------------------------------------------- forward


@pytest.mark.parametrize("name", FAMILY)
def test_the_forward_pass_is_that_of_transformers(name):
    network, wanted = small(name), expected(name)
    assert wanted["logits"].std() > 0.5
    np.testing.assert_allclose(float_logits(network, wanted["tokens"]), wanted["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["tied", "qwen2", "qwen3"])
def test_what_tells_the_checkpoints_apart_matters(name):
    """Without llama3's stretching, biases or norms of heads the fixture would not be met: it can fail."""
    network, wanted = small(name), expected(name)
    changes = {"tied": {"stretch": None}, "qwen2": {"theta": 1e6}, "qwen3": {"head_norms": False}}
    spec = replace(llama.load_model(DATA / name)[0], **changes[name])
    found = llama.forward(spec, network, wanted["tokens"], float_arithmetic(network))
    assert abs(found - wanted["logits"]).max() > 1e-2


def test_no_output_depends_on_what_comes_later():
    network, tokens = small("gqa"), expected("gqa")["tokens"].copy()
    before = float_logits(network, tokens)
    tokens[0, 25] = (tokens[0, 25] + 1) % 64
    after = float_logits(network, tokens)
    np.testing.assert_allclose(before[0, :25], after[0, :25], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(before[1], after[1])
    assert (abs(before[0, 25:] - after[0, 25:]) > 1e-9).any(axis=1).all()


@pytest.mark.parametrize("length", [1, 127, 129, 300])
def test_attention_in_blocks_is_plain_softmax_attention(length):
    heads, rng = Heads(queries=6, keys=2, size=4), np.random.default_rng(length)
    q, k, v = (rng.standard_normal((2 * length, n * 4)) for n in (6, 2, 2))
    found = llama.attended(heads, q, k, v, length).reshape(2, length, 6, 4)
    for h in range(6):
        qh = q.reshape(2, length, 6, 4)[:, :, h]
        kh, vh = (x.reshape(2, length, 2, 4)[:, :, h // 3] for x in (k, v))
        scores = np.exp(qh @ kh.swapaxes(1, 2) / 2.0) * np.tri(length)
        np.testing.assert_allclose(found[:, :, h], scores / scores.sum(-1, keepdims=True) @ vh, atol=1e-12)


def test_attention_without_threadpoolctl_is_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    arguments = (Heads(queries=2, keys=2, size=4), *rng.standard_normal((3, 40, 8)), 20)
    wanted = llama.attended(*arguments)
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    np.testing.assert_allclose(llama.attended(*arguments), wanted, atol=1e-14)


def test_rope_turns_complex_numbers():
    rng, spec = np.random.default_rng(2), llama.load_model(DATA / "gqa")[0]
    x, turns = rng.standard_normal((2 * 7, 3 * 8)), llama.rope(spec, 7)
    z = x.reshape(2, 7, 3, 2, 4)
    angle = np.arange(7)[:, None, None] * 10000.0 ** (-np.arange(4) / 4)
    turned = (z[..., 0, :] + 1j * z[..., 1, :]) * np.exp(1j * angle)
    np.testing.assert_allclose(
        llama.rotated(x, 8, turns).reshape(z.shape), np.stack((turned.real, turned.imag), -2), atol=1e-13
    )


def test_llama3_stretches_long_waves_only():
    rule = llama.Llama3Rope(factor=8.0, low=1.0, high=4.0, original=32)
    waves = np.array([2.0, 8.0, 32 / 2.5, 32.0, 400.0])  # short, at the border, half way, at the other border, long
    found = 2 * np.pi / llama.stretched(2 * np.pi / waves, rule)
    np.testing.assert_allclose(found, [2.0, 8.0, 1 / (0.5 * 2.5 / 32 / 8 + 0.5 * 2.5 / 32), 256.0, 3200.0])


def test_every_group_and_state_passes_through_the_arithmetic():
    network, tokens = small("qwen2"), expected("qwen2")["tokens"]
    exact, seen = float_arithmetic(network), {"project": [], "state": []}

    def project(group, x):
        seen["project"].append(group)
        assert x.shape == (80, network.tensors[network.groups[group].readers[0]].shape[0])
        return exact.project(group, x)

    def state(name, x):
        seen["state"].append(name)
        assert x.shape == (80, network.heads.keys * network.heads.size)
        return x

    network.forward(network, tokens, Arithmetic(project=project, state=state))
    assert tuple(seen["project"]) == tuple(network.groups)
    assert tuple(seen["state"]) == network.states


@pytest.mark.parametrize("state", ["key_before_rope", "key", "value"])
def test_what_a_state_gives_back_is_what_is_used(state):
    network, tokens = small("gqa"), expected("gqa")["tokens"]
    exact = float_arithmetic(network)
    changed = Arithmetic(project=exact.project, state=lambda name, x: x * (1 + 0.1 * name.endswith(f".{state}")))
    assert not np.allclose(network.forward(network, tokens, changed), float_logits(network, tokens))


def test_what_groups_say_of_their_surroundings_is_true():
    """A factor in the norm, the values or the product, and its inverse in the readers, change nothing."""
    network, tokens = small("qwen2"), expected("qwen2")["tokens"]
    wanted = float_logits(network, tokens)
    for name, group in network.groups.items():
        before = group.norm or group.values or group.product
        tensors = dict(network.tensors)
        for part in (before, f"{before}.bias"):
            if part in tensors:
                tensors[part] = 2.0 * tensors[part]
        tensors |= {reader: 0.5 * tensors[reader] for reader in group.readers}
        changed = replace(network, tensors=tensors)
        np.testing.assert_allclose(float_logits(changed, tokens), wanted, atol=1e-10, err_msg=name)


# ---------------------------------------------------------------------------------------------------- PyLM


def test_pylm_predicts_text_it_never_saw(pylm):
    metrics = pylm.evaluate(pylm, float_arithmetic(pylm))
    text = np.frombuffer(heldout_text(SMALL), dtype=np.uint8)
    shares = np.unique(text, return_counts=True)[1] / len(text)
    assert metrics["bits_per_byte"] < 1.9 < 0.45 * -(shares * np.log2(shares)).sum()
    assert metrics["perplexity"] == pytest.approx(2 ** metrics["bits_per_byte"])


def test_pylm_without_one_layer_is_worse(pylm):
    tensors = pylm.tensors | {"layers.3.down": np.zeros_like(pylm.tensors["layers.3.down"])}
    broken = replace(pylm, tensors=tensors)
    exact = pylm.evaluate(pylm, float_arithmetic(pylm))["bits_per_byte"]
    assert broken.evaluate(broken, float_arithmetic(broken))["bits_per_byte"] > exact + 0.05


def test_pylm_is_what_it_is_said_to_be(pylm):
    assert sum(t.size for t in pylm.tensors.values()) == 5_246_208
    assert pylm.heads == Heads(queries=8, keys=8, size=32)
    assert pylm.tensors["layers.5.up"].shape == (256, 768)
    assert not any(t.flags.writeable for t in pylm.tensors.values())
    assert get_network("pylm", seed=9, text_bytes=SMALL).tensors.keys() == pylm.tensors.keys()
    assert pylm.calibration.shape[1] == language.CONTEXT == pylm.batch
    assert set(pylm.residual) <= set(pylm.tensors)
    assert sum(path.stat().st_size for path in language.WEIGHTS.iterdir()) <= 15_900_000


def test_every_byte_but_the_first_of_a_window_is_predicted(pylm):
    """Against probabilities formed and bytes guessed one by one; the last window is shorter."""
    text = language.byte_text(heldout_text(600))
    network = replace(pylm, evaluate=language.evaluator(text, 256, 256))
    found = network.evaluate(network, float_arithmetic(network))
    bits, count, right = 0.0, 0, 0
    for start in range(0, len(text.tokens), 256):
        window = text.tokens[start : start + 256]
        logits = float_logits(network, window[None])[0]
        for place in range(len(window) - 1):
            bits -= np.log2(np.exp(logits[place, window[place + 1]]) / np.exp(logits[place]).sum())
            count += 1
            right += all(logits[place, window[place + 1]] >= other for other in logits[place])
    assert count == len(text.tokens) - 3
    assert found["bits_per_byte"] == pytest.approx(bits / count, rel=1e-10)
    assert found["accuracy"] == right / count
    assert 0.4 < right / count < 0.9  # a shifted comparison would find some 5 %


def test_accuracy_counts_tokens_that_come_next():
    """A network that repeats its token is right where the next one is the same, a window's first one not asked."""
    repeat = replace(small("gqa"), forward=lambda _network, tokens, _arithmetic: np.eye(64)[tokens])
    tokens = np.array([1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 4])
    text = language.Text(tokens=tokens, sizes=np.ones(11, dtype=np.int64))
    found = language.evaluator(text, 4, 64)(repeat, float_arithmetic(repeat))
    assert found["accuracy"] == (2 + 2 + 2) / 8  # 1 1 2 2 | 2 2 3 3 | 4 4 4


def test_a_network_that_is_sure_and_wrong_has_infinite_perplexity(pylm):
    text = language.byte_text(b"ab" * 100)
    sure = replace(
        pylm,
        forward=lambda _network, tokens, _arithmetic: np.where(np.arange(256) == 0, 5000.0, 0.0) + tokens[..., None],
    )
    metrics = language.evaluator(text, 64, 256)(sure, float_arithmetic(pylm))
    assert metrics["perplexity"] == np.inf
    assert metrics["bits_per_byte"] == pytest.approx(5000 / np.log(2))


@pytest.mark.parametrize("size", [0, 255, 1.5e4, True, 10**9])
def test_text_that_does_not_exist_is_refused(size):
    with pytest.raises(InputError, match="text"):
        llama.pylm(text_bytes=size)


def test_other_weights_under_its_name_are_refused(tmp_path, monkeypatch):
    shutil.copy(language.WEIGHTS / "mamba.safetensors", tmp_path / "pylm.safetensors")
    monkeypatch.setattr(language, "WEIGHTS", tmp_path)
    with pytest.raises(InputError, match="SHA-256 is"):
        llama.pylm(text_bytes=300)


@pytest.mark.parametrize(
    "tokens", [np.full((1, 4), 256), np.full((1, 4), -1), np.ones((1, 4)), np.ones(4, int), np.zeros((1, 1025), int)]
)
def test_inputs_that_are_no_windows_of_bytes_are_refused(pylm, tokens):
    with pytest.raises(InputError, match=r"pylm: (tokens must be from|inputs must be whole|1025 tokens exceed)"):
        float_logits(pylm, tokens)


# ------------------------------------------------------------------------------------------------- folders


def test_a_folder_is_a_network(folder):
    network = get_network(str(folder), text_bytes=2000)
    assert network.name == "tiny"
    wanted = expected("gqa")
    np.testing.assert_allclose(float_logits(network, wanted["tokens"]), wanted["logits"], rtol=0, atol=1e-5)
    metrics = network.evaluate(network, float_arithmetic(network))
    tokens, text = _word_tokens(folder, 2000)
    predicted = [ends - starts for starts, ends in tokens if starts is not None]
    assert metrics["bits_per_byte"] * sum(predicted) == pytest.approx(np.log2(metrics["perplexity"]) * len(predicted))
    assert len(text) > 1000


def _word_tokens(folder, size):
    """(first byte, last byte) of what each token of the held-out text stands for, None for the first of a window."""
    from tokenizers import Tokenizer

    text = heldout_text(size).decode()
    ends = [end for _, end in Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).offsets]
    spans = list(zip([0, *ends], ends, strict=False))
    return [(None, None) if i % 128 == 0 else span for i, span in enumerate(spans)], text


def test_a_configuration_of_transformers_4_says_the_same():
    config = read_json(DATA / "tied" / "config.json")
    rope = config.pop("rope_parameters")
    old = config | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    assert llama.read_spec("old", old) == llama.load_model(DATA / "tied")[0]


def test_a_sliding_window_limits_the_context():
    config = read_json(DATA / "mistral" / "config.json")
    assert llama.read_spec("mistral", config | {"sliding_window": 32}).context == 32
    assert llama.read_spec("mistral", config).context == 128


def test_a_head_stored_beside_a_tied_embedding_is_ignored(tmp_path):
    tensors = load_tensors(DATA / "tied" / "model.safetensors")
    shutil.copy(DATA / "tied" / "config.json", tmp_path)
    safetensors.numpy.save_file(tensors | {"lm_head.weight": np.zeros(3)}, tmp_path / "model.safetensors")
    assert llama.load_model(tmp_path)[0].tied


BAD = {
    "architecture": ({"architectures": ["LlamaForCasualLM"]}, "is not computed here; did you mean 'LlamaForCausalLM'"),
    "no architecture": ({"architectures": None}, "architecture 'None' is not computed here"),
    "quantized": ({"quantization_config": {}}, "weights are quantized already"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only silu is"),
    "absurd size": ({"hidden_size": 10**30}, "hidden_size must be a whole number from 1 to 65536"),
    "zero layers": ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number from 1"),
    "text": ({"vocab_size": "64"}, "vocab_size must be a whole number"),
    "boolean": ({"vocab_size": True}, "vocab_size must be a whole number"),
    "missing": ({"intermediate_size": None}, "intermediate_size must be a whole number from 1 to 262144, not None"),
    "groups": ({"num_key_value_heads": 3}, "num_key_value_heads=3 must divide num_attention_heads=4"),
    "odd head": ({"head_dim": 7}, "head_dim=7 must be even"),
    "eps": ({"rms_norm_eps": -1}, "rms_norm_eps must be a number from 0 to 1"),
    "flag": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    "rope": ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn' is not computed"),
    "rope list": ({"rope_parameters": [1]}, "rope_parameters must be an object"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not computed"),
    "stretch": ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor must be a number"),
    "shape": ({"vocab_size": 63}, r"embed_tokens.weight' has shape \(64, 32\); config.json gives \(63, 32\)"),
    "more layers": ({"num_hidden_layers": 3}, "tensor 'model.layers.2.self_attn.q_proj.weight' is missing"),
    "fewer layers": ({"num_hidden_layers": 1}, "is none of this architecture"),
    "biases": ({"attention_bias": True}, "self_attn.q_proj.bias' is missing"),
    "one position": ({"max_position_embeddings": 1}, "max_position_embeddings must be at least 2, not 1"),
    "window of one": (
        {"architectures": ["MistralForCausalLM"], "sliding_window": 1},
        "sliding_window must be at least 2, not 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_configuration_that_does_not_fit_is_refused(folder, case):
    changes, message = BAD[case]
    with pytest.raises(InputError, match=message):
        llama.load_folder(edited(folder, **changes), text_bytes=300)


def test_stretching_needs_two_different_borders(folder):
    rope = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}
    with pytest.raises(InputError, match=r"low_freq_factor=4.0 must be below high_freq_factor=4.0"):
        llama.load_folder(edited(folder, rope_parameters=rope))


def test_weights_of_whole_numbers_are_refused(folder):
    tensors = {name: tensor.astype(np.int8) for name, tensor in load_tensors(folder / "model.safetensors").items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match="holds int8, no floats"):
        llama.load_folder(folder)


def test_two_positions_are_enough(folder):
    network = llama.load_folder(edited(folder, max_position_embeddings=2), text_bytes=300)
    assert network.calibration.shape[1] == 2
    assert network.evaluate(network, float_arithmetic(network))["perplexity"] > 1


@pytest.mark.parametrize("text_bytes", [0, 255, 2e4, True, "many"])
def test_text_of_other_lengths_is_refused_for_folders_too(folder, text_bytes):
    with pytest.raises(InputError, match="must be a whole number from 256 on"):
        llama.load_folder(folder, text_bytes=text_bytes)


def retokenized(folder, **changes):
    """The folder with entries of its tokenizer.json changed."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


TRUNCATION = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
PADDING = {"direction": "Right", "pad_id": 3, "pad_type_id": 0, "pad_token": "of", "pad_to_multiple_of": 1000}


def test_the_whole_text_is_taken_whatever_the_tokenizer_asks_for(folder):
    from tokenizers import Tokenizer

    wanted = llama._tokenized(folder, heldout_text(2000))
    retokenized(folder, truncation=TRUNCATION, padding=PADDING | {"strategy": "BatchLongest"})
    assert len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode("in " * 50)) == 1000  # 8, and as many pads
    found = llama._tokenized(folder, heldout_text(2000))
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.sizes, wanted.sizes)
    assert len(found.tokens) > 100


def test_a_tokenizer_that_leaves_nothing_to_predict_is_refused(folder):
    retokenized(folder, pre_tokenizer=None)  # the whole text is one unknown word
    with pytest.raises(
        InputError, match=r"tokenizer\.json: makes 1 tokens of \d+ bytes of text; at least 2 are needed"
    ):
        llama.load_folder(folder, text_bytes=300)
    closed = {"single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "of", "type_id": 0}}]}
    closed |= {"type": "TemplateProcessing", "pair": [*closed["single"], {"Sequence": {"id": "B", "type_id": 1}}]}
    closed |= {"special_tokens": {"of": {"id": "of", "ids": [3], "tokens": ["of"]}}}
    retokenized(folder, post_processor=closed)
    with pytest.raises(InputError, match=r"tokenizer\.json: the 2 tokens of a text, .* stand for none of its bytes"):
        llama.load_folder(folder, text_bytes=300)


def test_models_beyond_the_machines_memory_are_refused_unread(folder, monkeypatch):
    """A checkpoint in float32: 4 bytes a weight as stored, 8 in float64."""
    stored = load_tensors(folder / "model.safetensors")
    need = 12 * sum(tensor.size for tensor in stored.values())
    assert all(tensor.dtype == np.float32 for tensor in stored.values())
    assert llama.physical_memory() > 1e8
    monkeypatch.setattr(llama, "physical_memory", lambda: need)
    llama.load_model(folder)
    monkeypatch.setattr(llama, "physical_memory", lambda: need - 1)
    monkeypatch.setattr("hwsim.networks.checkpoint.read_tensors", None)
    with pytest.raises(InputError, match=f"its {need // 12} weights take 0.0 GB, .* this machine has 0.0 GB"):
        llama.load_model(folder)


def test_memory_that_the_system_does_not_tell_is_no_limit(monkeypatch):
    monkeypatch.delattr("os.sysconf_names")
    assert llama.physical_memory() == float("inf")


def test_a_folder_without_its_parts_is_refused(folder):
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        (folder / name).unlink()
        with pytest.raises(InputError, match=name):
            llama.load_folder(folder)


def test_a_tokenizer_that_is_none_is_refused(folder, monkeypatch):
    whole = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="is no tokenizer"):
        llama.load_folder(folder)
    (folder / "tokenizer.json").write_text(whole.replace('"the":1', '"the":100').replace('"the": 1', '"the": 100'))
    with pytest.raises(InputError, match="tokens must be from 0 to 63"):
        llama.load_folder(folder)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match="need tokenizers; pip install"):
        llama.load_folder(folder)
