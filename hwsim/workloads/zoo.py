"""Networks of published shapes by name, each with the place where its shapes are published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from hwsim.networks.network import Heads
from hwsim.workloads import cnn_shapes
from hwsim.workloads.graph import Builder, Graph, Role, Vector
from hwsim.workloads.huggingface import MAX_BATCH, VECTORS, from_config, require_whole
from hwsim.workloads.transformer_shapes import (
    Block,
    Names,
    Step,
    lookup,
    mlp,
    patch_embedding,
    self_attention,
    split_linear,
)
from models.unit import nearest, require

DECODER_OPTIONS = ("phase", "batch", "tokens", "context")


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """A published network. `build` takes the `options` by keyword, all with defaults."""

    name: str
    what: str
    source: str
    """the publication of the shapes, and what of them stands elsewhere"""
    options: tuple[str, ...]
    build: Callable[..., Graph]


def get(name: str, **options: Any) -> Graph:
    """The graph of that name. Options that are None count as left out; see `huggingface.from_config` for their meaning.

    InputError with the nearest name or option otherwise, and for values out of range.
    """
    require(name in ZOO, f"no network {name!r}; {nearest(name, ZOO)}")
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        known = ZOO[name].options
        require(option in known, f"{name}: no option {option!r}; {nearest(option, known)}")
    return ZOO[name].build(**given)


def _configured(name: str, what: str, source: str, config: Mapping[str, Any]) -> ZooEntry:
    """A network whose shapes fit a configuration of Hugging Face's."""
    options = DECODER_OPTIONS if config["model_type"] not in ("bert", "vit") else ("phase", "batch", "tokens")
    build = partial(from_config, config, name, source=source)
    return ZooEntry(name=name, what=what, source=source, options=options, build=build)


def _images(name: str, what: str, source: str, fill: Callable[[Builder, int], None]) -> ZooEntry:
    """A network of images, which `fill` adds to a builder for a batch of them."""
    build = partial(_filled, name, source, fill)
    return ZooEntry(name=name, what=what, source=source, options=("batch",), build=build)


def _filled(name: str, source: str, fill: Callable[[Builder, int], None], *, batch: int = 1) -> Graph:
    require_whole(name, "batch", batch, 1, MAX_BATCH)
    b = Builder(name, source)
    b.notes += [f"{batch} images at once", VECTORS]
    fill(b, batch)
    return b.graph()


# ------------------------------------------------------------------------------------------------ DiT


DIT = Block(
    names=Names(
        qkv=("attn.qkv",),
        attention="attn.attention",
        out="attn.proj",
        attention_norm="norm1",
        attention_add="attention_add",
        fc1="mlp.fc1",
        activation="mlp.act",
        fc2="mlp.fc2",
        mlp_norm="norm2",
        mlp_add="mlp_add",
    ),
    heads=Heads(queries=16, keys=16, size=72),
    hidden=4608,
    activation="gelu",
)
DIT_WIDTH, DIT_LAYERS, DIT_PATCH, DIT_LATENT = 1152, 28, 2, (4, 32, 32)
DIT_FREQUENCIES, DIT_LABELS = 256, 1001
"""numbers that a time step is coded by; classes of ImageNet and one for none"""


def _dit(b: Builder, batch: int) -> None:
    """One denoising step of DiT-XL/2: noise and its variance are predicted, 8 channels."""
    channels, height, width = DIT_LATENT
    latent = b.tensor("latent", (batch, *DIT_LATENT))
    tokens = (height // DIT_PATCH) * (width // DIT_PATCH)
    step = Step(batch=batch, tokens=tokens)
    places = b.tensor("pos_embed", (tokens, DIT_WIDTH), Role.WEIGHT)
    x = patch_embedding(b, "x_embedder.proj", latent, DIT_WIDTH, DIT_PATCH)
    x = _token_rows(b, "x_embedder.transpose", x)
    x = b.vector("pos_add", "add", x, places)
    condition = _condition(b, batch)
    for i in range(DIT_LAYERS):
        x = _dit_block(b, f"blocks.{i}", step, x, condition)
    shift, scale = _modulation(b, "final_layer", condition, ("shift", "scale"))
    x = _modulated(b, "final_layer.norm_final", x, shift, scale)
    b.linear("final_layer.linear", x, DIT_PATCH**2 * 2 * channels)


def _token_rows(b: Builder, name: str, x: str) -> str:
    """[batch, channels, rows, columns] as [tokens, channels]."""
    batch, channels, height, width = b.tensors[x].shape
    rows = batch * height * width
    return b.add(name, Vector(kind="copy", rows=rows, channels=channels), (x,), (rows, channels))


def _condition(b: Builder, batch: int) -> str:
    """Time step and class of each image as one vector."""
    x = b.tensor("timestep_frequencies", (batch, DIT_FREQUENCIES))
    x = b.vector("t_embedder.mlp.1", "silu", b.linear("t_embedder.mlp.0", x, DIT_WIDTH))
    x = b.linear("t_embedder.mlp.2", x, DIT_WIDTH)
    label = lookup(b, "y_embedder.embedding_table", DIT_LABELS, DIT_WIDTH, batch)
    return b.vector("condition_add", "add", x, label)


def _modulation(b: Builder, at: str, condition: str, parts: tuple[str, ...]) -> list[str]:
    """What a norm's output is scaled and shifted by, and a residual is gated with: adaLN."""
    x = b.vector(f"{at}.adaLN_modulation.0", "silu", condition)
    return split_linear(b, f"{at}.adaLN_modulation.1", x, dict.fromkeys(parts, DIT_WIDTH))


def _modulated(b: Builder, name: str, x: str, shift: str, scale: str) -> str:
    """norm(x) (1 + scale) + shift; the norm has no gain of its own, and a multiply-add does the rest."""
    return b.vector(f"{name}.modulate", "mul", b.vector(name, "layernorm", x), scale, shift)


def _dit_block(b: Builder, at: str, step: Step, x: str, condition: str) -> str:
    parts = ("shift_msa", "scale_msa", "gate_msa", "shift_mlp", "scale_mlp", "gate_mlp")
    shift1, scale1, gate1, shift2, scale2, gate2 = _modulation(b, at, condition, parts)
    y = self_attention(b, at, DIT, step, _modulated(b, f"{at}.norm1", x, shift1, scale1))
    x = b.vector(f"{at}.attention_add", "add", x, y, gate1)  # x + gate y: one multiply-add
    y = mlp(b, at, DIT, _modulated(b, f"{at}.norm2", x, shift2, scale2))
    return b.vector(f"{at}.mlp_add", "add", x, y, gate2)


# ------------------------------------------------------------------------------------------------ configurations


def _bert(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
    }


def _gpt(layers: int, width: int, heads: int, positions: int = 2048) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": positions,
        "activation_function": "gelu_new",
    }


def _opt(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": width,
        "ffn_dim": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "activation_function": "relu",
    }


def _llama(
    kind: str, vocabulary: int, layers: int, width: int, heads: tuple[int, int], hidden: int, positions: int
) -> dict[str, Any]:
    """`heads`: of queries, and of keys and values."""
    return {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "max_position_embeddings": positions,
        "hidden_act": "silu",
    }


def _mamba(layers: int, width: int) -> dict[str, Any]:
    return {
        "model_type": "mamba",
        "vocab_size": 50280,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "state_size": 16,
        "conv_kernel": 4,
        "expand": 2,
    }


VIT_B_16 = {
    "model_type": "vit",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "num_labels": 1000,
}

_HE = "He et al., arXiv 1512.03385, Table 1"
_DEVLIN = "Devlin et al., arXiv 1810.04805, section 3; vocabulary and positions of the published model"
_BROWN = "Brown et al., arXiv 2005.14165, Table 2.1; GPT-2's vocabulary; every layer's attention is dense here"
_ZHANG = "Zhang et al., arXiv 2205.01068, Table 1; vocabulary of the published models"
_GU = "Gu and Dao, arXiv 2312.00752; sizes of the published model"

ZOO: Mapping[str, ZooEntry] = {
    entry.name: entry
    for entry in (
        _images(
            "alexnet", "AlexNet of one column", "Krizhevsky, arXiv 1404.5997; as in torchvision", cnn_shapes.alexnet
        ),
        _images("resnet18", "ResNet-18", _HE, cnn_shapes.resnet18),
        _images(
            "resnet50",
            "ResNet-50, version 1.5",
            f"{_HE}; strides in the 3 x 3 convolutions as in torchvision",
            cnn_shapes.resnet50,
        ),
        _images(
            "mobilenet-v2",
            "MobileNet V2, width 1",
            "Sandler et al., arXiv 1801.04381, Table 2",
            cnn_shapes.mobilenet_v2,
        ),
        _configured(
            "vit-b-16",
            "ViT-Base, patches of 16 x 16 pixels",
            "Dosovitskiy et al., arXiv 2010.11929, Table 1",
            VIT_B_16,
        ),
        _images(
            "dit-xl-2",
            "DiT-XL/2, one denoising step of a 32 x 32 x 4 latent (256 x 256 pixels)",
            "Peebles and Xie, arXiv 2212.09748, Table 1; embedders and final layer of the published model",
            _dit,
        ),
        _configured("bert-base", "BERT-base, uncased, with its pooler", _DEVLIN, _bert(12, 768, 12)),
        _configured("bert-large", "BERT-large, uncased, with its pooler", _DEVLIN, _bert(24, 1024, 16)),
        _configured(
            "gpt2",
            "GPT-2 of 124 million parameters",
            "Radford et al., Language Models are Unsupervised Multitask Learners (2019), Table 2",
            _gpt(12, 768, 12, 1024),
        ),
        _configured("gpt3-7b", "GPT-3 6.7B", _BROWN, _gpt(32, 4096, 32)),
        _configured(
            "gpt3-13b",
            "GPT-3 13B",
            f"{_BROWN}; 40 heads of 128 are a width of 5120, where the table has 5140",
            _gpt(40, 5120, 40),
        ),
        _configured(
            "gpt3-30b",
            "a GPT-3 of 30 billion parameters, not among the paper's",
            "width and heads of NeuPIMs' published model configuration (Heo et al., ASPLOS 2024); "
            "48 layers as in OPT-30B (Zhang et al., arXiv 2205.01068, Table 1); the rest as gpt3-175b",
            _gpt(48, 7168, 56),
        ),
        _configured("gpt3-175b", "GPT-3 175B", _BROWN, _gpt(96, 12288, 96)),
        _configured("opt-125m", "OPT-125M", _ZHANG, _opt(12, 768, 12)),
        _configured("opt-175b", "OPT-175B", _ZHANG, _opt(96, 12288, 96)),
        _configured(
            "llama-2-7b",
            "Llama-2-7B",
            "Touvron et al., arXiv 2307.09288 and, for the sizes, 2302.13971, Table 2; feed-forward size as published",
            _llama("llama", 32000, 32, 4096, (32, 32), 11008, 4096),
        ),
        _configured(
            "llama-3-8b",
            "Llama-3-8B",
            "Grattafiori et al., arXiv 2407.21783, Table 3; vocabulary and positions of the published model",
            _llama("llama", 128256, 32, 4096, (32, 8), 14336, 8192),
        ),
        _configured(
            "mistral-7b",
            "Mistral-7B of version 0.1, with its sliding window",
            "Jiang et al., arXiv 2310.06825, Table 1; positions of the published model",
            _llama("mistral", 32000, 32, 4096, (32, 8), 14336, 32768) | {"sliding_window": 4096},
        ),
        _configured(
            "qwen2.5-7b",
            "Qwen2.5-7B",
            "Qwen Team, arXiv 2412.15115; sizes of the published model",
            _llama("qwen2", 152064, 28, 3584, (28, 4), 18944, 131072),
        ),
        _configured("mamba-130m", "Mamba-130M", _GU, _mamba(24, 768)),
        _configured("mamba-2.8b", "Mamba-2.8B", _GU, _mamba(64, 2560)),
    )
}
"""Name -> network"""
