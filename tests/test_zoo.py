"""The zoo: every network's parameters and multiply-accumulates are those published, and its arrays fit its layers."""

from collections import Counter
from dataclasses import replace

import pytest

from hwsim.workloads.graph import Attention, Conv, Gemm, Role, Vector
from hwsim.workloads.zoo import ZOO, get
from models.unit import InputError

DECODERS = [name for name, entry in ZOO.items() if "context" in entry.options]


def norms(graph, kind):
    """Channels of all batch norms together."""
    layers = [layer for layer in graph.layers if isinstance(layer.op, Vector) and layer.op.kind == kind]
    return sum(graph.tensors[layer.outputs[0]].shape[1] for layer in layers)


def encoder(layers, width, hidden):
    """Biases of six linear layers, gain and shift of two norms, in every layer."""
    return layers * (4 * width + hidden + width + 4 * width)


def dit():
    block = 3 * 1152 + 1152 + 4608 + 1152 + 6 * 1152
    return 28 * block + 1152 + 2 * 1152 + 32 + 2 * 1152


# published parameters, and those of them that stand in vectors of one number a channel: no tensors of a graph
PARAMETERS = {
    "alexnet": (61_100_840, 64 + 192 + 384 + 256 + 256 + 4096 + 4096 + 1000),
    "resnet18": (11_689_512, 2 * (64 + 4 * 64 + 5 * (128 + 256 + 512)) + 1000),
    "resnet50": (
        25_557_032,
        2 * (64 + sum((6 * n + 4) * w for n, w in ((3, 64), (4, 128), (6, 256), (3, 512)))) + 1000,
    ),
    "mobilenet-v2": (3_504_872, 2 * 17056 + 1000),
    "vit-b-16": (86_567_656, 768 + encoder(12, 768, 3072) + 2 * 768 + 1000),
    "dit-xl-2": (675_129_632, dit()),
    "bert-base": (109_482_240, 2 * 768 + encoder(12, 768, 3072) + 768),
    "bert-large": (335_141_888, 2 * 1024 + encoder(24, 1024, 4096) + 1024),
    "gpt2": (124_439_808, encoder(12, 768, 3072) + 2 * 768),
    "opt-125m": (125_239_296, encoder(12, 768, 3072) + 2 * 768),
    "llama-2-7b": (6_738_415_616, 65 * 4096),
    "llama-3-8b": (8_030_261_248, 65 * 4096),
    "mistral-7b": (7_241_732_096, 65 * 4096),
    "qwen2.5-7b": (7_615_616_512, 57 * 3584 + 28 * (3584 + 2 * 512)),
    "mamba-130m": (129_135_360, 24 * (3 * 1536 + 768) + 768),
    "mamba-2.8b": (2_768_345_600, 64 * (3 * 5120 + 2560) + 2560),
}
# published only in billions, rounded: how far ours may be off
ROUNDED = {
    "gpt3-7b": (6.7e9, 0.01),
    "gpt3-13b": (13.0e9, 0.015),
    "gpt3-30b": (30e9, 0.005),
    "gpt3-175b": (175e9, 0.005),
    "opt-175b": (175e9, 0.005),
}


def test_every_network_has_published_parameters():
    assert set(PARAMETERS) | set(ROUNDED) == set(ZOO)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_published(name):
    total, vectors = PARAMETERS[name]
    assert get(name).elements(Role.WEIGHT) + vectors == total


@pytest.mark.parametrize("name", ROUNDED)
def test_parameters_are_near_those_published_in_billions(name):
    total, share = ROUNDED[name]
    assert get(name).elements(Role.WEIGHT) == pytest.approx(total, rel=share)


def test_batch_norms_channels_are_the_tables():
    """PARAMETERS counts them by hand; the graph has them as layers."""
    for name in ("resnet18", "resnet50", "mobilenet-v2"):
        assert 2 * norms(get(name), "batchnorm") + 1000 == PARAMETERS[name][1]


# published, in 1e9 multiply-accumulates, with the last digit's rounding: torchvision's tables, DiT's Table 4
MACS = {
    "alexnet": (0.71, 0.005),
    "resnet18": (1.81, 0.005),
    "resnet50": (4.09, 0.005),
    "mobilenet-v2": (0.30, 0.005),
    "vit-b-16": (17.56, 0.005),
    "dit-xl-2": (118.64, 0.025),
}


@pytest.mark.parametrize("name", MACS)
def test_macs_are_those_published(name):
    value, step = MACS[name]
    assert get(name).macs / 1e9 == pytest.approx(value, abs=step)
    assert get(name, batch=3).macs == 3 * get(name).macs


def test_bert_base_of_128_tokens_is_22_5_billion_operations():
    """Sun et al., MobileBERT (arXiv 2004.02984), Table 4: 22.5 B, two of a multiply-accumulate."""
    assert 2 * get("bert-base", tokens=128).macs / 1e9 == pytest.approx(22.5, rel=0.01)


def test_resnet50_stage_by_stage():
    """Table 1 of the paper, multiplied out by hand; strides in the 3 x 3 convolution."""
    pixels = [56, 28, 14, 7]
    total = 112 * 112 * 64 * 147 + 2048 * 1000
    entering = 64
    for side, width, blocks in zip(pixels, (64, 128, 256, 512), (3, 4, 6, 3), strict=True):
        before = side * (1 if width == 64 else 2)
        first = before**2 * entering * width + side**2 * (9 * width**2 + 4 * width**2 + entering * 4 * width)
        total += first + (blocks - 1) * side**2 * (4 * width**2 * 2 + 9 * width**2)
        entering = 4 * width
    assert get("resnet50").macs == total


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3-8b", "mistral-7b", "qwen2.5-7b"])
@pytest.mark.parametrize("tokens", [1, 100])
def test_decoders_multiply_every_weight_but_the_embedding_once_a_token(name, tokens):
    graph = get(name, batch=2, tokens=tokens)
    embedding = graph.tensors["model.embed_tokens.weight"].elements
    inner = graph.elements(Role.WEIGHT) - 2 * embedding
    linear = sum(layer.macs for layer in graph.layers if isinstance(layer.op, Gemm))
    assert linear == 2 * tokens * inner + 2 * embedding


def test_llama_2_7b_keeps_half_a_mebibyte_of_fp16_for_every_token():
    """2 x 32 layers x 4096 channels x 2 bytes; Llama 3's eight heads of keys take a quarter."""
    for name, kib in (("llama-2-7b", 512), ("llama-3-8b", 128)):
        graph = get(name, phase="decode", context=1)
        caches = [t for key, t in graph.tensors.items() if key.endswith("_cache")]
        assert 2 * sum(t.elements for t in caches) == kib * 1024


# ------------------------------------------------------------------------------------------------ arrays


def misfits(graph):
    """Layers whose arrays have another number of elements than their operation."""
    size = {name: tensor.elements for name, tensor in graph.tensors.items()}
    for layer in graph.layers:
        wanted, found = PARTS[type(layer.op)](
            layer.op, [size[t] for t in layer.inputs], [size[t] for t in layer.outputs]
        )
        if wanted != found:
            yield layer.name


def gemm_parts(op, inputs, outputs):
    wanted = (op.batch * op.M * op.K, op.batch * op.K * op.N, op.batch * op.M * op.N)
    return wanted, (*inputs[:2], sum(outputs))


def conv_parts(op, inputs, outputs):
    pixels = op.batch * op.in_channels * op.height * op.width
    weights = op.out_channels * op.in_channels // op.groups * op.kernel[0] * op.kernel[1]
    made = op.batch * op.out_channels * op.output[0] * op.output[1]
    return (pixels, weights, made), (inputs[0] + sum(inputs[2:]), inputs[1], outputs[0])


def attention_parts(op, inputs, outputs):
    q = op.batch * op.queries * op.heads * op.head_dim
    kv = op.batch * op.keys * op.kv_heads * op.head_dim
    q_found, *rest = inputs
    return (q, kv, kv, q), (q_found, sum(rest[::2]), sum(rest[1::2]), outputs[0])


def vector_parts(op, inputs, outputs):
    whole = op.rows * op.channels
    if op.kind in ("maxpool", "avgpool", "scan"):
        return op.rows, outputs[0]
    if op.kind == "copy":
        return whole, outputs[0]
    return (whole, whole), (inputs[0], outputs[0])


PARTS = {Gemm: gemm_parts, Conv: conv_parts, Attention: attention_parts, Vector: vector_parts}


def unread(graph):
    return [t for t in graph.producers if not graph.consumers[t] and graph.tensors[t].role is Role.ACTIVATION]


@pytest.mark.parametrize("name", ZOO)
def test_arrays_fit_their_layers_and_all_work_is_used(name):
    requests = [{"batch": 2}]
    if name in DECODERS:
        requests = [
            {"batch": 2, "tokens": 5},
            {"batch": 2, "tokens": 5, "context": 7},
            {"batch": 2, "phase": "decode", "context": 7},
        ]
    for request in requests:
        graph = get(name, **request)
        assert list(misfits(graph)) == []
        assert unread(graph) == list(graph.layers[-1].outputs)
        assert all(graph.consumers[t] for t in graph.tensors if t not in graph.producers)


@pytest.mark.parametrize("name", ZOO)
def test_keys_and_values_are_cache_and_queries_are_not(name):
    graph = get(name)
    for layer in graph.layers:
        if isinstance(layer.op, Attention):
            roles = [graph.tensors[t].role for t in layer.inputs]
            assert roles == [Role.ACTIVATION, *[Role.CACHE] * (len(roles) - 1)]


LLAMA_VECTORS = {"copy": 2, "rmsnorm": 65, "rope": 64, "silu": 32, "mul": 32, "add": 64}
# vector layers, counted by hand from each publication's drawing of a block
VECTORS = {
    "resnet18": {"batchnorm": 20, "relu": 17, "add": 8, "maxpool": 1, "avgpool": 1},
    "resnet50": {"batchnorm": 53, "relu": 49, "add": 16, "maxpool": 1, "avgpool": 1},
    "mobilenet-v2": {"batchnorm": 52, "clip": 35, "add": 10, "avgpool": 1},
    "llama-2-7b": LLAMA_VECTORS,
    "llama-3-8b": LLAMA_VECTORS,
    "gpt3-7b": {"copy": 3, "layernorm": 65, "gelu": 32, "add": 65},
    "bert-base": {"copy": 4, "layernorm": 25, "gelu": 12, "add": 26, "tanh": 1},
    "vit-b-16": {"copy": 2, "layernorm": 25, "gelu": 12, "add": 25},
    "mamba-130m": {"copy": 26, "rmsnorm": 25, "silu": 48, "softplus": 24, "scan": 24, "mul": 24, "add": 48},
    "dit-xl-2": {"copy": 2, "layernorm": 57, "silu": 30, "mul": 57, "gelu": 28, "add": 58},
}


@pytest.mark.parametrize("name", VECTORS)
def test_nothing_between_the_products_is_forgotten(name):
    assert Counter(layer.op.kind for layer in get(name).layers if isinstance(layer.op, Vector)) == VECTORS[name]


def test_a_misfit_is_found():
    graph = get("opt-125m", tokens=5, context=3)
    tensors = dict(graph.tensors)
    name = "model.decoder.layers.0.self_attn.attention.k_cache"
    tensors[name] = replace(tensors[name], shape=(4, 768))
    assert list(misfits(replace(graph, tensors=tensors))) == ["model.decoder.layers.0.self_attn.attention"]


def test_every_entry_says_where_it_comes_from():
    for name, entry in ZOO.items():
        graph = get(name)
        assert graph.name == entry.name == name
        assert graph.source == entry.source
        assert entry.what


# ------------------------------------------------------------------------------------------------ refusals


BAD = [
    ("resnet-50", {}, "no network 'resnet-50'; did you mean 'resnet50'"),
    ("resnet50", {"phase": "decode"}, "resnet50: no option 'phase'; one of: batch"),
    ("resnet50", {"batch": 0}, "resnet50: batch must be a whole number from 1 to 65536, not 0"),
    ("llama-2-7b", {"contxt": 5}, "llama-2-7b: no option 'contxt'; did you mean 'context'"),
    ("bert-base", {"context": 5}, "bert-base: no option 'context'; one of"),
    ("bert-base", {"phase": "decode"}, "bert-base: an encoder takes a whole sequence"),
    ("opt-175b", {"tokens": 4096}, "opt-175b: 0 . 4096 tokens; max_position_embeddings=2048"),
]


@pytest.mark.parametrize("name, options, message", BAD)
def test_a_wrong_name_or_option_is_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        get(name, **options)


def test_options_of_none_are_left_out():
    assert get("llama-3-8b", phase=None, tokens=7, context=None).layers == get("llama-3-8b", tokens=7).layers
    assert get("resnet50", batch=None, phase=None).macs == get("resnet50").macs
