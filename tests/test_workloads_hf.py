"""Hugging Face's configurations as layer graphs: against checkpoints that transformers wrote, formulas, refusals."""

import json
import random
from pathlib import Path

import pytest

from hwsim.networks.checkpoint import read_header
from hwsim.workloads.graph import Attention, Conv, Gemm, Graph, Role, Vector
from hwsim.workloads.huggingface import FAMILIES, TOKENS, from_config, load_config
from models.unit import InputError

DATA = Path(__file__).parent / "data" / "llama"
FIXTURES = ["gqa", "tied", "mistral", "qwen2", "qwen3", "mamba"]
LLAMA = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": 16}
OPT = {
    "model_type": "opt",
    "vocab_size": 500,
    "hidden_size": 64,
    "ffn_dim": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 500, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
BERT = {
    "model_type": "bert",
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
VIT = {
    "model_type": "vit",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
MAMBA = {
    "model_type": "mamba",
    "vocab_size": 500,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "state_size": 16,
    "conv_kernel": 4,
}
CONFIGS = [LLAMA, MISTRAL, OPT, GPT2, BERT, VIT, MAMBA]


def graph(config, **request):
    return from_config(config, "net", **request)


def op(found, name):
    return next(layer.op for layer in found.layers if layer.name == name)


def linear_macs(found):
    return sum(layer.macs for layer in found.layers if isinstance(layer.op, Gemm))


def attention_macs(found):
    return sum(layer.macs for layer in found.layers if isinstance(layer.op, Attention))


def cached(found, name):
    return {t: x.shape for t, x in found.tensors.items() if x.role is Role.CACHE and t.endswith(name)}


def without(config, *keys):
    return {name: value for name, value in config.items() if name not in keys}


# ------------------------------------------------------------------------------------------------ checkpoints


def stored_matrices(name):
    files = (DATA / name).glob("model*.safetensors")  # one, or the parts of a large one
    return matrices(entry for path in files for entry in read_header(path).entries.items())


def matrices(entries):
    """Name -> shape of all tensors of more than one dimension, dimensions of 1 left out."""
    return {name: tuple(n for n in entry.shape if n > 1) for name, entry in entries if len(entry.shape) > 1}


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_weights_are_those_of_a_checkpoint_that_transformers_wrote(name, phase):
    """Both ways: none is missing, none is made up. A linear layer's is stored as its transpose there."""
    found = load_config(DATA / name, phase=phase)
    ours = matrices((t, x) for t, x in found.tensors.items() if x.role is Role.WEIGHT)
    gemms = {layer.inputs[1] for layer in found.layers if isinstance(layer.op, Gemm)} - {
        layer.inputs[-1] for layer in found.layers if isinstance(layer.op, Vector)
    }
    assert {t: s[::-1] if t in gemms else s for t, s in ours.items()} == stored_matrices(name)


def test_a_wrong_size_would_not_fit_the_checkpoint():
    config = json.loads((DATA / "gqa" / "config.json").read_text())
    key = "model.layers.0.self_attn.k_proj.weight"
    wrong = graph(config | {"num_key_value_heads": 4})
    assert wrong.tensors[key].shape[::-1] != stored_matrices("gqa")[key] == graph(config).tensors[key].shape[::-1]


def test_a_folder_and_its_file_give_the_same_graph_named_after_the_folder(tmp_path):
    folder, file = load_config(DATA / "gqa"), load_config(DATA / "gqa" / "config.json")
    assert folder.layers == file.layers
    assert folder.name == file.name == "gqa"
    assert folder.source == str(DATA / "gqa" / "config.json")
    (tmp_path / "small.json").write_text(json.dumps(LLAMA))
    assert load_config(tmp_path / "small.json").name == "small"


# ------------------------------------------------------------------------------------------------ decoders


def test_llama_prefill_is_weights_times_tokens_and_attention():
    found = graph(LLAMA, batch=3, tokens=20)
    layer = 64 * 64 * 2 + 64 * 16 * 2 + 3 * 64 * 160
    assert linear_macs(found) == 3 * 20 * 3 * layer + 3 * 64 * 1000  # the head: last tokens alone
    assert attention_macs(found) == 3 * 3 * 8 * 20 * 20 * 8 * 2
    assert found.macs == linear_macs(found) + attention_macs(found)
    assert "only the last token of each sequence reaches the head" in found.notes


def test_llama_decode_looks_at_its_context_and_itself():
    found = graph(LLAMA, phase="decode", batch=3, context=20)
    attention = op(found, "model.layers.0.self_attn.attention")
    assert (attention.queries, attention.keys, attention.batch) == (1, 21, 3)
    assert set(cached(found, "_cache").values()) == {(3 * 20, 16)}
    assert len(cached(found, "_cache")) == 2 * 3
    layer = 64 * 64 * 2 + 64 * 16 * 2 + 3 * 64 * 160
    assert linear_macs(found) == 3 * (3 * layer + 64 * 1000)
    assert not any(layer.name == "last_token" for layer in found.layers)
    assert not any("last token" in note for note in found.notes)


def test_a_prefill_in_chunks_is_the_same_linear_work_and_reads_what_came_before():
    whole, first = graph(LLAMA, tokens=30), graph(LLAMA, tokens=10)
    second = graph(LLAMA, tokens=20, context=10)
    assert linear_macs(first) + linear_macs(second) == linear_macs(whole) + 64 * 1000
    assert op(second, "model.layers.2.self_attn.attention").keys == 30
    assert not cached(first, "_cache")
    assert set(cached(second, "_cache").values()) == {(10, 16)}


def test_keys_are_cached_as_rotated_and_values_as_projected():
    found = graph(LLAMA, tokens=4)
    at = "model.layers.1.self_attn"
    attention = next(layer for layer in found.layers if layer.name == f"{at}.attention")
    assert attention.inputs == (f"{at}.q_rope", f"{at}.k_rope", f"{at}.v_proj")
    assert [found.tensors[t].role for t in attention.inputs] == [Role.ACTIVATION, Role.CACHE, Role.CACHE]
    assert found.tensors[f"{at}.k_proj"].role is Role.ACTIVATION
    assert len([t for t in found.tensors.values() if t.role is Role.CACHE]) == 2 * 3


def test_qwen3_norms_each_head():
    found = graph(LLAMA | {"model_type": "qwen3", "head_dim": 24}, batch=2, tokens=5)
    assert op(found, "model.layers.0.self_attn.q_norm") == Vector(kind="rmsnorm", rows=2 * 5 * 8, channels=24)
    assert op(found, "model.layers.0.self_attn.k_norm") == Vector(kind="rmsnorm", rows=2 * 5 * 2, channels=24)
    assert op(found, "model.layers.0.self_attn.o_proj").K == 8 * 24


def test_tied_embeddings_are_one_tensor():
    tied, own = graph(LLAMA | {"tie_word_embeddings": True}), graph(LLAMA)
    assert own.elements(Role.WEIGHT) - tied.elements(Role.WEIGHT) == 64 * 1000
    assert tied.macs == own.macs
    assert tied.consumers["model.embed_tokens.weight"] == ("model.embed_tokens", "lm_head")


@pytest.mark.parametrize("context, keys", [(3, 4), (15, 16), (16, 16), (400, 16)])
def test_a_sliding_window_bounds_what_is_read_of_the_cache(context, keys):
    found = graph(MISTRAL, phase="decode", context=context)
    assert op(found, "model.layers.0.self_attn.attention").keys == keys
    assert any("window" in note for note in found.notes) == (context > 15)
    assert op(graph(LLAMA, phase="decode", context=context), "model.layers.0.self_attn.attention").keys == context + 1


def test_a_qwen2_window_that_is_not_used_does_not_count():
    config = LLAMA | {"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": False}
    assert op(graph(config, phase="decode", context=99), "model.layers.0.self_attn.attention").keys == 100


def test_defaults_are_stated_and_fit_the_positions():
    assert graph(LLAMA).tensors["input_ids"].shape == (1, 512)
    long = LLAMA | {"max_position_embeddings": 100000}
    assert graph(long).tensors["input_ids"].shape == (1, TOKENS)
    assert op(graph(long, phase="decode"), "model.layers.0.self_attn.attention").keys == TOKENS + 1
    assert op(graph(OPT, phase="decode"), "model.decoder.layers.0.self_attn.attention").keys == 128
    assert graph(OPT, context=100).tensors["input_ids"].shape == (1, 28)
    assert "prefill of 28 new tokens of each of 1 sequences, 100 tokens before them" in graph(OPT, context=100).notes[0]


def test_rotary_positions_beyond_the_models_are_noted():
    found = graph(LLAMA, tokens=600)
    assert "600 positions, more than the model's max_position_embeddings of 512" in found.notes
    assert not any("max_position" in note for note in graph(LLAMA, tokens=512).notes)


def test_opt_projects_narrow_embeddings_and_norms_where_it_says():
    narrow = graph(OPT | {"word_embed_proj_dim": 32, "do_layer_norm_before": False}, tokens=6)
    assert op(narrow, "model.decoder.project_in") == Gemm(M=6, K=32, N=64)
    assert op(narrow, "model.decoder.project_out") == Gemm(M=6, K=64, N=32)
    assert op(narrow, "lm_head") == Gemm(M=1, K=32, N=500)
    assert narrow.producers["model.decoder.layers.0.fc1"] == "model.decoder.layers.0.fc1"
    order = [layer.name for layer in narrow.layers]
    assert order.index("model.decoder.layers.0.self_attn_layer_norm") > order.index(
        "model.decoder.layers.0.attention_add"
    )
    assert "model.decoder.final_layer_norm" not in order
    plain = [layer.name for layer in graph(OPT, tokens=6).layers]
    assert plain.index("model.decoder.layers.0.self_attn_layer_norm") < plain.index(
        "model.decoder.layers.0.attention_add"
    )
    assert "model.decoder.final_layer_norm" in plain
    assert "model.decoder.project_in" not in plain


def test_gpt2_projects_queries_keys_and_values_at_once():
    found = graph(GPT2, tokens=6)
    layer = next(layer for layer in found.layers if layer.name == "transformer.h.0.attn.c_attn")
    assert layer.op == Gemm(M=6, K=64, N=192)
    assert [found.tensors[t].shape for t in layer.outputs] == [(6, 64)] * 3
    assert [found.tensors[t].role for t in layer.outputs] == [Role.ACTIVATION, Role.CACHE, Role.CACHE]
    assert op(found, "transformer.h.0.mlp.c_fc").N == 256
    assert op(graph(GPT2 | {"n_inner": 100}), "transformer.h.0.mlp.c_fc").N == 100


# ------------------------------------------------------------------------------------------------ encoders


def test_bert_is_weights_times_tokens_and_attention():
    found = graph(BERT, batch=2, tokens=10)
    assert linear_macs(found) == 2 * 10 * 2 * (4 * 64**2 + 2 * 64 * 256) + 2 * 64**2
    assert attention_macs(found) == 2 * 2 * 2 * 10 * 10 * 64
    order = [layer.name for layer in found.layers]
    first = "bert.encoder.layer.0"
    assert order.index(f"{first}.attention.output.LayerNorm") > order.index(f"{first}.attention.output.add")


def test_vit_cuts_the_image_into_patches():
    found = graph(VIT | {"num_labels": 10}, batch=2)
    patches = op(found, "vit.embeddings.patch_embeddings.projection")
    assert isinstance(patches, Conv)
    assert patches.output == (4, 4)
    assert patches.macs == 2 * 16 * 64 * 3 * 8 * 8
    assert op(found, "vit.encoder.layer.0.attention.attention.query").M == 2 * 17
    assert op(found, "classifier") == Gemm(M=2, K=64, N=10)
    named = graph(VIT | {"id2label": {"0": "cat", "1": "dog", "2": "bird"}})
    assert op(named, "classifier").N == 3
    assert not any(layer.name == "classifier" for layer in graph(VIT).layers)


# ------------------------------------------------------------------------------------------------ Mamba


def test_mamba_is_weights_times_tokens():
    found = graph(MAMBA, batch=2, tokens=10)
    inner, rank = 128, 4
    layer = 64 * 2 * inner + inner * 4 + inner * (rank + 32) + rank * inner + inner * 64
    assert found.macs == 2 * 10 * 2 * layer + 2 * 64 * 500
    scan = op(found, "backbone.layers.0.mixer.scan")
    assert (scan.rows, scan.channels) == (2 * 10 * inner, 16)
    at = "backbone.layers.0.mixer"
    skip = next(layer for layer in found.layers if layer.name == f"{at}.skip")
    assert skip.inputs == (f"{at}.scan", f"{at}.act")


@pytest.mark.parametrize(
    "request_, old", [({"tokens": 10}, 0), ({"tokens": 10, "context": 5}, 4), ({"phase": "decode"}, 4)]
)
def test_mamba_states_are_read_where_tokens_came_before_and_always_written(request_, old):
    found = graph(MAMBA, batch=2, **request_)
    written = {t for layer in found.layers for t in layer.outputs if found.tensors[t].role is Role.CACHE}
    assert len(written) == 4
    assert {found.tensors[t].shape for t in written} == {(2 * 128, 3), (2 * 128, 16)}
    assert len(cached(found, "_cache")) == old
    conv = op(found, "backbone.layers.0.mixer.conv1d")
    assert conv.output == (1, 1 if request_.get("phase") else 10)
    assert conv.padding[1] == (0 if old else 3)


def test_mamba_decode_does_not_depend_on_how_much_came_before():
    assert graph(MAMBA, phase="decode", context=7).layers == graph(MAMBA, phase="decode", context=70000).layers


def test_mamba_sizes_that_follow_from_others():
    found = graph(MAMBA | {"intermediate_size": 96, "time_step_rank": 5}, tokens=2)
    assert op(found, "backbone.layers.0.mixer.x_proj") == Gemm(M=2, K=96, N=5 + 32)
    assert op(graph(MAMBA | {"hidden_size": 65}), "backbone.layers.0.mixer.dt_proj").K == 5


# ------------------------------------------------------------------------------------------------ refusals


BAD_CONFIGS = [
    (without(LLAMA, "model_type"), "net: key 'model_type' is missing; one of: bert, gpt2, llama, mamba"),
    (LLAMA | {"model_type": "lama"}, "model_type: 'lama' is not read; did you mean 'llama'"),
    (LLAMA | {"model_type": 3}, "model_type: '3' is not read; one of"),
    (without(LLAMA, "hidden_size"), "net: key 'hidden_size' is missing$"),
    (without(LLAMA, "hidden_size") | {"hiden_size": 64}, "key 'hidden_size' is missing; did you mean 'hiden_size'"),
    (without(LLAMA, "num_attention_heads"), "key 'num_attention_heads' is missing$"),
    (without(LLAMA, "hidden_size", "vocab_size"), r"is missing \(and 1 more\)"),
    (LLAMA | {"hidden_size": "64"}, "hidden_size: input should be a valid integer, not '64'"),
    (LLAMA | {"hidden_size": 64.0}, "hidden_size: input should be a valid integer, not 64.0"),
    (LLAMA | {"hidden_size": True}, "hidden_size: input should be a valid integer, not True"),
    (LLAMA | {"hidden_size": None}, "hidden_size: input should be a valid integer, not None"),
    (LLAMA | {"hidden_size": 0}, "hidden_size: input should be greater than or equal to 1, not 0"),
    (LLAMA | {"num_hidden_layers": 10**9}, "num_hidden_layers: input should be less than or equal to 1024"),
    (LLAMA | {"num_attention_heads": 7, "num_key_value_heads": 7}, "7 heads do not divide 64 channels"),
    (LLAMA | {"num_key_value_heads": 3}, "num_key_value_heads=3 must divide num_attention_heads=8"),
    (LLAMA | {"hidden_act": "silo"}, "hidden_act: 'silo' is no activation function here; did you mean 'silu'"),
    (LLAMA | {"tie_word_embeddings": "yes"}, "tie_word_embeddings: input should be a valid boolean, not 'yes'"),
    (
        LLAMA | {"model_type": "qwen2", "use_sliding_window": True},
        "use_sliding_window: input should be False, not True",
    ),
    (without(MISTRAL, "num_key_value_heads"), "num_key_value_heads is missing; model_type 'mistral' needs it"),
    (LLAMA | {"model_type": "qwen3"}, "head_dim is missing; qwen3 needs it"),
    (OPT | {"num_attention_heads": 5}, "5 heads do not divide 64 channels"),
    (without(GPT2, "n_embd"), "key 'n_embd' is missing"),
    (GPT2 | {"n_layer": -1}, "n_layer: input should be greater than or equal to 1, not -1"),
    (BERT | {"is_decoder": True}, "is_decoder: input should be False, not True"),
    (BERT | {"position_embedding_type": "relative_key"}, "position_embedding_type: input should be 'absolute'"),
    (VIT | {"num_attention_heads": 5}, "5 heads do not divide 64 channels"),
    (GPT2 | {"n_head": 5}, "5 heads do not divide 64 channels"),
    (VIT | {"image_size": 30}, "image_size=30 must be a multiple of patch_size=8"),
    (VIT | {"image_size": [32, 32]}, "image_size: input should be a valid integer"),
    (MAMBA | {"conv_kernel": 1}, "conv_kernel: input should be greater than or equal to 2"),
    (MAMBA | {"time_step_rank": "all"}, "time_step_rank: "),
]


@pytest.mark.parametrize("config, message", BAD_CONFIGS)
def test_a_configuration_is_refused_by_key_and_rule(config, message):
    with pytest.raises(InputError, match=message):
        graph(config)


BAD_REQUESTS = [
    (LLAMA, {"phase": "decod"}, "net: no phase 'decod'; did you mean 'decode'"),
    (LLAMA, {"batch": 0}, "batch must be a whole number from 1 to 65536, not 0"),
    (LLAMA, {"batch": True}, "batch must be a whole number from 1 to 65536, not True"),
    (LLAMA, {"tokens": 0}, "tokens must be a whole number from 1"),
    (LLAMA, {"tokens": 1.5}, "tokens must be a whole number from 1"),
    (LLAMA, {"context": -1}, "context must be a whole number from 0"),
    (
        LLAMA,
        {"phase": "decode", "tokens": 5},
        "decode is one new token of each sequence, not tokens=5; leave tokens out",
    ),
    (LLAMA, {"batch": 65536, "tokens": 1 << 20}, r"65536 sequences of 0 \+ 1048576 tokens are more than"),
    (OPT, {"tokens": 129}, r"net: 0 \+ 129 tokens; max_position_embeddings=128 learned positions at most"),
    (OPT, {"phase": "decode", "context": 128}, r"128 \+ 1 tokens; max_position_embeddings=128"),
    (OPT, {"context": 128}, r"128 \+ 1 tokens"),
    (GPT2, {"tokens": 129}, "n_positions=128 learned positions at most"),
    (BERT, {"tokens": 129}, "max_position_embeddings=128 learned positions"),
    (BERT, {"phase": "decode"}, "net: an encoder takes a whole sequence at once; take phase 'prefill', not 'decode'"),
    (BERT, {"context": 4}, "an encoder takes a whole sequence at once and has no cache; leave context=4 out"),
    (VIT, {"phase": "decode"}, "take phase 'prefill'"),
    (VIT, {"tokens": 5}, "tokens are 17, the image's patches and one of the class; leave tokens out"),
]


@pytest.mark.parametrize("config, request_, message", BAD_REQUESTS)
def test_a_request_is_refused_with_its_rule(config, request_, message):
    with pytest.raises(InputError, match=message):
        graph(config, **request_)


BAD_FILES = [
    ('{"model_type": "llama", "model_type": "opt"}', "'model_type' is given twice"),
    ('{"model_type": ', "is no JSON"),
    ('["llama"]', "must hold a JSON object"),
    ('{"model_type": "llama", "vocab_size": NaN}', "NaN is no number"),
    ("{}", "key 'model_type' is missing"),
]


@pytest.mark.parametrize("text, message", BAD_FILES)
def test_a_file_is_refused_by_its_name(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_config(tmp_path)
    assert str(error.value).startswith(str(path))


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_config(tmp_path)
    with pytest.raises(InputError, match="absent: no such file"):
        load_config(tmp_path / "absent")


JUNK = [None, True, 0, -1, 1, 3, 2**31, 10**30, 1.5, "", "silu", [], [1], {}, {"a": 1}]


def outcome(config, **request):
    """The graph, or the message of a refusal; anything else passes through."""
    try:
        return graph(config, **request)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c["model_type"])
def test_junk_is_a_graph_or_one_line(config):
    rng, refused = random.Random(7), 0
    for _ in range(150):
        junk = {rng.choice(list(config)): rng.choice(JUNK) for _ in range(rng.randint(1, 2))}
        found = outcome(config | junk, tokens=rng.choice([None, 1, 7]), phase=rng.choice(["prefill", "decode"]))
        if not isinstance(found, Graph):
            assert found.startswith(("net: ", "tensor "))
            assert "\n" not in found
            refused += 1
    assert 50 < refused < 150


def test_every_family_is_tested():
    assert {config["model_type"] for config in CONFIGS} | {"qwen2", "qwen3"} == set(FAMILIES)
