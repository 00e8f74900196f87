"""Hugging Face's config.json as a layer graph: what a server computes in a prefill or in one step of decoding.

Layers are named like the modules of `transformers`, weights like its tensors. Families: Llama, Mistral, Qwen2 and
Qwen3, OPT, GPT-2, BERT, ViT and Mamba (the first).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hwsim.files import os_errors
from hwsim.networks.checkpoint import CONFIG, read_json
from hwsim.workloads.graph import LARGEST_SIZE, Builder, Conv, Gemm, Graph, Layer, Role, Vector
from hwsim.workloads.huggingface_config import (
    MAX_TOKENS,
    BertConfig,
    Gpt2Config,
    LlamaConfig,
    MambaConfig,
    OptConfig,
    VitConfig,
    equal_heads,
    parse,
)
from hwsim.workloads.transformer_shapes import (
    Block,
    Names,
    Step,
    add_block,
    attend,
    gather,
    lookup,
    patch_embedding,
    split_linear,
)
from models.unit import InputError, nearest, require

PHASES = ("prefill", "decode")
TOKENS = 2048
"""new tokens of a sequence in a prefill, and tokens in the cache of a decode step, where the caller names none; fewer
where the model has fewer positions"""
MAX_BATCH = 1 << 16
"""sequences or images"""
VECTORS = "biases, gains and shifts of norms and other vectors of one number a channel are no tensors here"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the caller asks for; None where it names nothing."""

    phase: str
    batch: int
    tokens: int | None
    context: int | None


def load_config(
    path: Path, *, phase: str = "prefill", batch: int = 1, tokens: int | None = None, context: int | None = None
) -> Graph:
    """The graph of `config.json`, a file or the folder that holds one; see `from_config`.

    InputError, one line with file, key and rule, for a file that cannot be read, is no JSON object, is larger than
    `checkpoint.MAX_JSON` or gives a key twice, and for what `from_config` refuses.
    """
    with os_errors(path):
        file = path / CONFIG if path.is_dir() else path
    name = file.resolve().parent.name if file.name == CONFIG else file.stem
    request = {"phase": phase, "batch": batch, "tokens": tokens, "context": context}
    return from_config(read_json(file), name, source=str(file), where=str(file), **request)


def from_config(
    config: Mapping[str, Any],
    name: str,
    *,
    phase: str = "prefill",
    batch: int = 1,
    tokens: int | None = None,
    context: int | None = None,
    source: str = "",
    where: str | None = None,
) -> Graph:
    """The graph of a configuration with the keys that Hugging Face's `model_type` has.

    `prefill`: `tokens` new tokens of each sequence (`TOKENS` where none are named) after `context` cached ones (none);
    keys and values of the new ones are written. `decode`: one new token of each sequence after `context` cached ones
    (`TOKENS`), so that context + 1 keys are looked at. Only the last token of each sequence reaches a language model's
    head. BERT and ViT have no decode; ViT's tokens are its patches and the class token.

    InputError, with `where` (the name by default) in front, for another model_type, keys that are missing, ill-typed or
    out of range, more tokens than a model with learned positions has, and options that the family does not take.
    """
    where = where or name
    family = _family(where, config)
    request = _request(where, phase, batch, tokens, context)
    spec = parse(where, family.config, config)
    step = family.step(where, spec, request)
    rule = f"{where}: {batch} sequences of {step.context} + {step.tokens} tokens"
    require(batch * (step.context + step.tokens) <= LARGEST_SIZE, f"{rule} are more than {LARGEST_SIZE} in all")
    b = Builder(name, source)
    b.notes += [_described(phase, step), VECTORS, *family.notes(spec, step)]
    if "quantization_config" in config:
        b.notes.append("quantization_config does not count: the machine gives every role its width")
    family.build(b, spec, step)
    return b.graph()


def require_whole(where: str, name: str, value: Any, low: int, high: int) -> int:
    """`value`, a whole number within the limits; InputError otherwise."""
    good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    require(good, f"{where}: {name} must be a whole number from {low} to {high}, not {value!r}")
    return value


def _request(where: str, phase: str, batch: int, tokens: int | None, context: int | None) -> Request:
    require(phase in PHASES, f"{where}: no phase {phase!r}; {nearest(str(phase), PHASES)}")
    require_whole(where, "batch", batch, 1, MAX_BATCH)
    if tokens is not None:
        require_whole(where, "tokens", tokens, 1, MAX_TOKENS)
    if context is not None:
        require_whole(where, "context", context, 0, MAX_TOKENS)
    if phase == "decode" and tokens not in (None, 1):
        raise InputError(f"{where}: decode is one new token of each sequence, not tokens={tokens}; leave tokens out")
    return Request(phase=phase, batch=batch, tokens=tokens, context=context)


def _described(phase: str, step: Step) -> str:
    words = f"{phase} of {step.tokens} new tokens of each of {step.batch} sequences"
    return f"{words}, {step.context} tokens before them in the cache"


# ------------------------------------------------------------------------------------------------ steps


def _decoder_step(where: str, spec: Any, request: Request, *, positions: str = "", learned: bool = False) -> Step:
    """`positions`: the key that says how many the model has, if it has any; learned ones are a hard limit."""
    most = (getattr(spec, positions) if positions else None) or MAX_TOKENS
    if request.phase == "decode":
        context = min(TOKENS, most - 1) if request.context is None else request.context
        step = Step(batch=request.batch, tokens=1, context=context)
    else:
        context = request.context or 0
        tokens = request.tokens or max(1, min(TOKENS, most - context))
        step = Step(batch=request.batch, tokens=tokens, context=context)
    if learned:
        _require_positions(where, positions, most, step)
    return step


def _require_positions(where: str, key: str, most: int, step: Step) -> None:
    asked = step.context + step.tokens
    require(asked <= most, f"{where}: {step.context} + {step.tokens} tokens; {key}={most} learned positions at most")


def _encoder_step(where: str, spec: BertConfig, request: Request) -> Step:
    _require_encoder(where, request)
    tokens = request.tokens or min(TOKENS, spec.max_position_embeddings)
    step = Step(batch=request.batch, tokens=tokens)
    _require_positions(where, "max_position_embeddings", spec.max_position_embeddings, step)
    return step


def _image_step(where: str, spec: VitConfig, request: Request) -> Step:
    _require_encoder(where, request)
    rule = f"{where}: tokens are {spec.tokens}, the image's patches and one of the class; leave tokens out"
    require(request.tokens in (None, spec.tokens), rule)
    return Step(batch=request.batch, tokens=spec.tokens)


def _require_encoder(where: str, request: Request) -> None:
    rule = f"{where}: an encoder takes a whole sequence at once"
    require(request.phase == "prefill", f"{rule}; take phase 'prefill', not {request.phase!r}")
    require(not request.context, f"{rule} and has no cache; leave context={request.context} out")


# ------------------------------------------------------------------------------------------------ both ends


def _tokens(b: Builder, name: str, vocabulary: int, width: int, step: Step) -> str:
    ids = b.tensor("input_ids", (step.batch, step.tokens))
    return lookup(b, name, vocabulary, width, step.rows, (ids,))


def _head(b: Builder, x: str, vocabulary: int, step: Step, tied: str | None) -> None:
    """Logits of the last token of each sequence; `tied`: the embedding whose table [vocabulary, K] is the weight."""
    last = gather(b, "last_token", x, step.batch) if step.tokens > 1 else x
    if tied is None:
        b.linear("lm_head", last, vocabulary)
        return
    k = b.tensors[last].shape[1]
    op = Gemm(M=step.batch, K=k, N=vocabulary)
    b.add("lm_head", op, (last, f"{tied}.weight"), (step.batch, vocabulary))


def _head_notes(tied: bool, step: Step) -> list[str]:
    last = ["only the last token of each sequence reaches the head"] if step.tokens > 1 else []
    return [*last, *(["the head's weight is the table of embeddings"] if tied else [])]


# ------------------------------------------------------------------------------------------------ Llama


def _llama(b: Builder, c: LlamaConfig, step: Step) -> None:
    root = "model.embed_tokens"
    x = _tokens(b, root, c.vocab_size, c.hidden_size, step)
    for i in range(c.num_hidden_layers):
        x = _llama_layer(b, f"model.layers.{i}", c, _windowed(c, step), x)
    x = b.vector("model.norm", "rmsnorm", x)
    _head(b, x, c.vocab_size, step, root if c.tie_word_embeddings else None)


def _windowed(c: LlamaConfig, step: Step) -> Step:
    """The step with no more of the cache than a new token's window holds beside itself."""
    return step if c.window is None else replace(step, context=min(step.context, c.window - 1))


def _llama_layer(b: Builder, at: str, c: LlamaConfig, step: Step, x: str) -> str:
    y = b.vector(f"{at}.input_layernorm", "rmsnorm", x)
    x = b.vector(f"{at}.attention_add", "add", x, _llama_attention(b, f"{at}.self_attn", c, step, y))
    y = b.vector(f"{at}.post_attention_layernorm", "rmsnorm", x)
    gate = b.vector(f"{at}.mlp.act_fn", c.hidden_act, b.linear(f"{at}.mlp.gate_proj", y, c.intermediate_size))
    y = b.vector(f"{at}.mlp.product", "mul", gate, b.linear(f"{at}.mlp.up_proj", y, c.intermediate_size))
    return b.vector(f"{at}.mlp_add", "add", x, b.linear(f"{at}.mlp.down_proj", y, c.hidden_size))


def _llama_attention(b: Builder, at: str, c: LlamaConfig, step: Step, x: str) -> str:
    """Keys are cached as they are after their rotation."""
    heads = c.heads
    q = b.linear(f"{at}.q_proj", x, heads.queries * heads.size)
    k = b.linear(f"{at}.k_proj", x, heads.keys * heads.size)
    v = b.linear(f"{at}.v_proj", x, heads.keys * heads.size, Role.CACHE)
    if c.model_type == "qwen3":
        q, k = (_head_norm(b, f"{at}.{name}", t, heads.size) for name, t in (("q_norm", q), ("k_norm", k)))
    q = _rotated(b, f"{at}.q_rope", q, Role.ACTIVATION)
    k = _rotated(b, f"{at}.k_rope", k, Role.CACHE)
    y = attend(b, f"{at}.attention", step, heads, [q, k, v])
    return b.linear(f"{at}.o_proj", y, c.hidden_size)


def _head_norm(b: Builder, name: str, x: str, size: int) -> str:
    rows, width = b.tensors[x].shape
    op = Vector(kind="rmsnorm", rows=rows * width // size, channels=size)
    return b.add(name, op, (x,), (rows, width))


def _rotated(b: Builder, name: str, x: str, role: Role) -> str:
    rows, width = b.tensors[x].shape
    return b.add(name, Vector(kind="rope", rows=rows, channels=width), (x,), (rows, width), role)


def _llama_notes(c: LlamaConfig, step: Step) -> list[str]:
    notes = _head_notes(c.tie_word_embeddings, step)
    most, keys = c.max_position_embeddings, step.context + step.tokens
    if most is not None and keys > most:
        notes.append(f"{keys} positions, more than the model's max_position_embeddings of {most}")
    if c.window is not None and keys > c.window:
        inside = f"of the cache only the {c.window - 1} tokens of a new one's window are read"
        notes.append(f"{inside}; the new ones of a prefill are all multiplied with each other")
    return notes


# ------------------------------------------------------------------------------------------------ OPT, GPT-2


OPT = Names(
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention="self_attn.attention",
    out="self_attn.out_proj",
    attention_norm="self_attn_layer_norm",
    attention_add="attention_add",
    fc1="fc1",
    activation="activation_fn",
    fc2="fc2",
    mlp_norm="final_layer_norm",
    mlp_add="mlp_add",
)
OPT_POSITIONS = 2
"""rows of OPT's table of positions that stand before the first one"""
GPT2 = Names(
    qkv=("attn.c_attn",),
    attention="attn.attention",
    out="attn.c_proj",
    attention_norm="ln_1",
    attention_add="attention_add",
    fc1="mlp.c_fc",
    activation="mlp.act",
    fc2="mlp.c_proj",
    mlp_norm="ln_2",
    mlp_add="mlp_add",
)


def _opt(b: Builder, c: OptConfig, step: Step) -> None:
    root, width, first = "model.decoder", c.hidden_size, c.do_layer_norm_before
    act = c.activation_function
    block = Block(names=OPT, heads=equal_heads(c), hidden=c.ffn_dim, activation=act, norm_first=first)
    narrow = c.word_embed_proj_dim or width
    x = _tokens(b, f"{root}.embed_tokens", c.vocab_size, narrow, step)
    x = x if narrow == width else b.linear(f"{root}.project_in", x, width)
    places = lookup(b, f"{root}.embed_positions", c.max_position_embeddings + OPT_POSITIONS, width, step.rows)
    x = b.vector(f"{root}.embed_add", "add", x, places)
    for i in range(c.num_hidden_layers):
        x = add_block(b, f"{root}.layers.{i}", block, step, x)
    x = b.vector(f"{root}.final_layer_norm", "layernorm", x) if first else x
    x = x if narrow == width else b.linear(f"{root}.project_out", x, narrow)
    _head(b, x, c.vocab_size, step, f"{root}.embed_tokens" if c.tie_word_embeddings else None)


def _gpt2(b: Builder, c: Gpt2Config, step: Step) -> None:
    width, act = c.hidden_size, c.activation_function
    block = Block(names=GPT2, heads=equal_heads(c), hidden=c.n_inner or 4 * width, activation=act)
    x = _tokens(b, "transformer.wte", c.vocab_size, width, step)
    x = b.vector("transformer.embed_add", "add", x, lookup(b, "transformer.wpe", c.n_positions, width, step.rows))
    for i in range(c.num_hidden_layers):
        x = add_block(b, f"transformer.h.{i}", block, step, x)
    x = b.vector("transformer.ln_f", "layernorm", x)
    _head(b, x, c.vocab_size, step, "transformer.wte" if c.tie_word_embeddings else None)


def _decoder_notes(c: OptConfig | Gpt2Config | MambaConfig, step: Step) -> list[str]:
    return _head_notes(c.tie_word_embeddings, step)


# ------------------------------------------------------------------------------------------------ BERT, ViT


BERT = Names(
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention="attention.self.attention",
    out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    attention_add="attention.output.add",
    fc1="intermediate.dense",
    activation="intermediate.intermediate_act_fn",
    fc2="output.dense",
    mlp_norm="output.LayerNorm",
    mlp_add="output.add",
)
VIT = Names(
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    attention="attention.attention.attention",
    out="attention.output.dense",
    attention_norm="layernorm_before",
    attention_add="attention.add",
    fc1="intermediate.dense",
    activation="intermediate.intermediate_act_fn",
    fc2="output.dense",
    mlp_norm="layernorm_after",
    mlp_add="output.add",
)


def _bert(b: Builder, c: BertConfig, step: Step) -> None:
    """The encoder and its pooler: norms stand after the sums."""
    root, width, hidden = "bert.embeddings", c.hidden_size, c.intermediate_size
    block = Block(names=BERT, heads=equal_heads(c), hidden=hidden, activation=c.hidden_act, norm_first=False)
    x = _tokens(b, f"{root}.word_embeddings", c.vocab_size, width, step)
    kinds = lookup(b, f"{root}.token_type_embeddings", c.type_vocab_size, width, step.rows)
    x = b.vector(f"{root}.token_type_add", "add", x, kinds)
    places = lookup(b, f"{root}.position_embeddings", c.max_position_embeddings, width, step.rows)
    x = b.vector(f"{root}.position_add", "add", x, places)
    x = b.vector(f"{root}.LayerNorm", "layernorm", x)
    for i in range(c.num_hidden_layers):
        x = add_block(b, f"bert.encoder.layer.{i}", block, step, x)
    first = gather(b, "bert.pooler.first_token", x, step.batch)
    b.vector("bert.pooler.activation", "tanh", b.linear("bert.pooler.dense", first, width))


def _vit(b: Builder, c: VitConfig, step: Step) -> None:
    block = Block(names=VIT, heads=equal_heads(c), hidden=c.intermediate_size, activation=c.hidden_act)
    x = _patches(b, c, step)
    for i in range(c.num_hidden_layers):
        x = add_block(b, f"vit.encoder.layer.{i}", block, step, x)
    x = b.vector("vit.layernorm", "layernorm", x)
    if c.labels:
        b.linear("classifier", gather(b, "class_token", x, step.batch), c.labels)


def _patches(b: Builder, c: VitConfig, step: Step) -> str:
    """Patches as tokens behind the class token, with their positions added."""
    root, width = "vit.embeddings", c.hidden_size
    image = b.tensor("pixel_values", (step.batch, c.num_channels, c.image_size, c.image_size))
    x = patch_embedding(b, f"{root}.patch_embeddings.projection", image, width, c.patch_size)
    first = b.tensor(f"{root}.cls_token", (1, width), Role.WEIGHT)
    op = Vector(kind="copy", rows=step.rows, channels=width)
    x = b.add(f"{root}.concatenate", op, (x, first), (step.rows, width))
    places = b.tensor(f"{root}.position_embeddings", (step.tokens, width), Role.WEIGHT)
    return b.vector(f"{root}.position_add", "add", x, places)


def _bert_notes(c: BertConfig, step: Step) -> list[str]:
    del c, step
    return ["the encoder and its pooler, without a task's head"]


def _vit_notes(c: VitConfig, step: Step) -> list[str]:
    del step
    named = f"a classifier of {c.labels} classes"
    return [named if c.labels else "without a classifier or pooler: neither num_labels nor id2label names classes"]


# ------------------------------------------------------------------------------------------------ Mamba


def _mamba(b: Builder, c: MambaConfig, step: Step) -> None:
    x = _tokens(b, "backbone.embeddings", c.vocab_size, c.hidden_size, step)
    for i in range(c.num_hidden_layers):
        at = f"backbone.layers.{i}"
        y = _mixer(b, f"{at}.mixer", c, step, b.vector(f"{at}.norm", "rmsnorm", x))
        x = b.vector(f"{at}.add", "add", x, y)
    x = b.vector("backbone.norm_f", "rmsnorm", x)
    _head(b, x, c.vocab_size, step, "backbone.embeddings" if c.tie_word_embeddings else None)


def _mixer(b: Builder, at: str, c: MambaConfig, step: Step, x: str) -> str:
    x, gate = split_linear(b, f"{at}.in_proj", x, {"x": c.inner, "gate": c.inner})
    x = b.vector(f"{at}.act", c.hidden_act, _conv1d(b, at, c, step, x))
    dt, into, out = split_linear(b, f"{at}.x_proj", x, {"dt": c.rank, "B": c.state_size, "C": c.state_size})
    dt = b.vector(f"{at}.softplus", "softplus", b.linear(f"{at}.dt_proj", dt, c.inner))
    y = _scan(b, at, c, step, (x, dt, into, out))
    y = b.vector(f"{at}.skip", "add", y, x)  # y + D x: one multiply-add
    y = b.vector(f"{at}.product", "mul", y, b.vector(f"{at}.gate_act", c.hidden_act, gate))
    return b.linear(f"{at}.out_proj", y, c.hidden_size)


def _conv1d(b: Builder, at: str, c: MambaConfig, step: Step, x: str) -> str:
    """A causal convolution of each channel along the tokens; its state is the inputs that later tokens still need."""
    past = c.conv_kernel - 1
    shape = (step.batch * c.inner, past)
    old = (b.tensor(f"{at}.conv_cache", shape, Role.CACHE),) if step.context else ()
    op = Conv(
        batch=step.batch,
        in_channels=c.inner,
        out_channels=c.inner,
        height=1,
        width=step.tokens + (past if old else 0),
        kernel=(1, c.conv_kernel),
        padding=(0, 0 if old else past, 0, 0),
        groups=c.inner,
    )
    filters = b.tensor(f"{at}.conv1d.weight", (c.inner, 1, 1, c.conv_kernel), Role.WEIGHT)
    copied = Vector(kind="copy", rows=shape[0], channels=shape[1])
    b.add(f"{at}.conv_state", copied, (x, *old), shape, Role.CACHE)
    return b.add(f"{at}.conv1d", op, (x, filters, *old), (step.rows, c.inner))


def _scan(b: Builder, at: str, c: MambaConfig, step: Step, inputs: tuple[str, ...]) -> str:
    """The recurrence, token by token, of `state_size` states of each inner channel; the last ones are kept."""
    decay = b.tensor(f"{at}.A_log", (c.inner, c.state_size), Role.WEIGHT)
    shape = (step.batch * c.inner, c.state_size)
    old = (b.tensor(f"{at}.ssm_cache", shape, Role.CACHE),) if step.context else ()
    y = b.tensor(f"{at}.scan", (step.rows, c.inner))
    new = b.tensor(f"{at}.ssm_state", shape, Role.CACHE)
    op = Vector(kind="scan", rows=step.rows * c.inner, channels=c.state_size)
    b.layers.append(Layer(name=f"{at}.scan", op=op, inputs=(*inputs, decay, *old), outputs=(y, new)))
    return y


def _mamba_notes(c: MambaConfig, step: Step) -> list[str]:
    return [*_decoder_notes(c, step), "states are as large after one token as after many; no context reads none"]


# ------------------------------------------------------------------------------------------------ families


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a `model_type` is read: its keys, the step that a request means, its layers, what to note."""

    config: type[BaseModel]
    step: Callable[[str, Any, Request], Step]
    build: Callable[[Builder, Any, Step], None]
    notes: Callable[[Any, Step], list[str]]


_LLAMA = Family(
    config=LlamaConfig,
    step=partial(_decoder_step, positions="max_position_embeddings"),
    build=_llama,
    notes=_llama_notes,
)
FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "opt": Family(
        config=OptConfig,
        step=partial(_decoder_step, positions="max_position_embeddings", learned=True),
        build=_opt,
        notes=_decoder_notes,
    ),
    "gpt2": Family(
        config=Gpt2Config,
        step=partial(_decoder_step, positions="n_positions", learned=True),
        build=_gpt2,
        notes=_decoder_notes,
    ),
    "bert": Family(config=BertConfig, step=_encoder_step, build=_bert, notes=_bert_notes),
    "vit": Family(config=VitConfig, step=_image_step, build=_vit, notes=_vit_notes),
    "mamba": Family(config=MambaConfig, step=_decoder_step, build=_mamba, notes=_mamba_notes),
}
"""`model_type` -> how it is read"""


def _family(where: str, config: Mapping[str, Any]) -> Family:
    kind = config.get("model_type")
    require(kind is not None, f"{where}: key 'model_type' is missing; {nearest('', FAMILIES)}")
    known = isinstance(kind, str) and kind in FAMILIES
    require(known, f"{where}: model_type: {str(kind)[:60]!r} is not read; {nearest(str(kind)[:60], FAMILIES)}")
    return FAMILIES[kind]
