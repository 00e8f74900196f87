"""The keys of Hugging Face's config.json that say how large a network's layers are, family by family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hwsim.networks.network import Heads
from models.unit import InputError, nearest, require

MAX_TOKENS = 1 << 24
"""of a sequence"""
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "tanh": "tanh",
}
"""Hugging Face's name of an activation function -> kind of vector operation"""


def _activation(name: str) -> str:
    require(name in ACTIVATIONS, f"{name[:60]!r} is no activation function here; {nearest(name[:60], ACTIVATIONS)}")
    return ACTIVATIONS[name]


_STRICT = ConfigDict(strict=True, extra="ignore", frozen=True)
_Vocabulary = Annotated[int, Field(ge=1, le=1 << 22)]
_Width = Annotated[int, Field(ge=1, le=1 << 18)]
_Layers = Annotated[int, Field(ge=1, le=1024)]
_Count = Annotated[int, Field(ge=1, le=1024)]
_Positions = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
_Activation = Annotated[str, AfterValidator(_activation)]


def _divided(spec: Any) -> Any:
    channels, heads = spec.hidden_size, spec.num_attention_heads
    require(channels % heads == 0, f"{heads} heads do not divide {channels} channels; name a number that does")
    return spec


def equal_heads(spec: Any) -> Heads:
    """As many heads of keys as of queries, which share the channels."""
    heads = spec.num_attention_heads
    return Heads(queries=heads, keys=heads, size=spec.hidden_size // heads)


class LlamaConfig(BaseModel):
    model_config = _STRICT
    model_type: str
    vocab_size: _Vocabulary
    hidden_size: _Width
    intermediate_size: _Width
    num_hidden_layers: _Layers
    num_attention_heads: _Count
    num_key_value_heads: _Count | None = None
    head_dim: _Width | None = None
    hidden_act: _Activation = "silu"
    max_position_embeddings: _Positions | None = None
    tie_word_embeddings: bool = False
    sliding_window: _Positions | None = None
    use_sliding_window: Literal[False] = False

    @model_validator(mode="after")
    def _check(self) -> LlamaConfig:
        named = self.num_key_value_heads is not None or self.model_type == "llama"
        require(named, f"num_key_value_heads is missing; model_type {self.model_type!r} needs it")
        require(self.head_dim is not None or self.model_type != "qwen3", "head_dim is missing; qwen3 needs it")
        queries, keys = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        require(queries % keys == 0, f"num_key_value_heads={keys} must divide num_attention_heads={queries}")
        return self if self.head_dim else _divided(self)

    @property
    def heads(self) -> Heads:
        equal = equal_heads(self)
        keys = self.num_key_value_heads or equal.keys
        return Heads(queries=equal.queries, keys=keys, size=self.head_dim or equal.size)

    @property
    def window(self) -> int | None:
        """The last tokens that a query looks at, its own included; None: all of them."""
        return self.sliding_window if self.model_type == "mistral" else None


class OptConfig(BaseModel):
    model_config = _STRICT
    vocab_size: _Vocabulary
    hidden_size: _Width
    ffn_dim: _Width
    num_hidden_layers: _Layers
    num_attention_heads: _Count
    max_position_embeddings: _Positions
    word_embed_proj_dim: _Width | None = None
    activation_function: _Activation = "relu"
    do_layer_norm_before: bool = True
    tie_word_embeddings: bool = True

    _heads = model_validator(mode="after")(_divided)


class Gpt2Config(BaseModel):
    model_config = _STRICT
    vocab_size: _Vocabulary
    hidden_size: _Width = Field(alias="n_embd")
    num_hidden_layers: _Layers = Field(alias="n_layer")
    num_attention_heads: _Count = Field(alias="n_head")
    n_positions: _Positions
    n_inner: _Width | None = None
    activation_function: _Activation = "gelu"
    add_cross_attention: Literal[False] = False
    tie_word_embeddings: bool = True

    _heads = model_validator(mode="after")(_divided)


class BertConfig(BaseModel):
    model_config = _STRICT
    vocab_size: _Vocabulary
    hidden_size: _Width
    intermediate_size: _Width
    num_hidden_layers: _Layers
    num_attention_heads: _Count
    max_position_embeddings: _Positions
    type_vocab_size: _Vocabulary = 2
    hidden_act: _Activation = "gelu"
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False
    add_cross_attention: Literal[False] = False

    _heads = model_validator(mode="after")(_divided)


class VitConfig(BaseModel):
    model_config = _STRICT
    hidden_size: _Width
    intermediate_size: _Width
    num_hidden_layers: _Layers
    num_attention_heads: _Count
    image_size: _Width
    patch_size: _Width
    num_channels: _Width = 3
    hidden_act: _Activation = "gelu"
    num_labels: _Vocabulary | None = None
    id2label: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> VitConfig:
        rule = f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}"
        require(self.image_size % self.patch_size == 0, rule)
        return _divided(self)

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def labels(self) -> int:
        """Classes; 0 where the configuration names none."""
        return self.num_labels or len(self.id2label or {})


class MambaConfig(BaseModel):
    model_config = _STRICT
    vocab_size: _Vocabulary
    hidden_size: _Width
    num_hidden_layers: _Layers
    state_size: _Count
    conv_kernel: Annotated[int, Field(ge=2, le=64)]
    intermediate_size: _Width | None = None
    expand: _Count = 2
    time_step_rank: _Width | Literal["auto"] = "auto"
    hidden_act: _Activation = "silu"
    tie_word_embeddings: bool = True

    @property
    def inner(self) -> int:
        return self.intermediate_size or self.expand * self.hidden_size

    @property
    def rank(self) -> int:
        return math.ceil(self.hidden_size / 16) if self.time_step_rank == "auto" else self.time_step_rank


def parse(where: str, model: type[BaseModel], config: Mapping[str, Any]) -> Any:
    """The configuration as a `model`; InputError, one line with `where`, the key and the rule, otherwise."""
    try:
        return model.model_validate(dict(config))
    except ValidationError as error:
        raise InputError(f"{where}: {_complaint(error, _unknown(model, config))}") from None


def _unknown(model: type[BaseModel], config: Mapping[str, Any]) -> set[str]:
    """Keys that the model does not read, among which a mistyped one is."""
    return {str(key) for key in config} - {field.alias or name for name, field in model.model_fields.items()}


def _complaint(error: ValidationError, unknown: set[str]) -> str:
    """The first error as one line; the others are counted."""
    errors = error.errors(include_url=False)
    first, more = errors[0], f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        hint = nearest(key, unknown)
        return f"key {key!r} is missing{f'; {hint}' if hint.startswith('did you mean') else ''}{more}"
    if first["type"] == "value_error":
        return f"{key and f'{key}: '}{first['ctx']['error']}{more}"
    return f"{key}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {repr(first['input'])[:60]}{more}"
