"""Parts of transformers as layers: tables, attention with its cache, perceptrons, blocks of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from hwsim.networks.network import Heads
from hwsim.workloads.graph import Attention, Builder, Conv, Gemm, Layer, Role, Vector


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is computed at once: `tokens` new tokens of each of `batch` sequences, with `context` tokens before them in
    the cache. Attention thus looks at context + tokens keys."""

    batch: int
    tokens: int
    context: int = 0

    @property
    def rows(self) -> int:
        """New tokens of all sequences: rows of every activation."""
        return self.batch * self.tokens


def lookup(b: Builder, name: str, entries: int, width: int, rows: int, ids: tuple[str, ...] = ()) -> str:
    """`rows` of a table [entries, width], gathered: a copy, of which the table is the last input."""
    table = b.tensor(f"{name}.weight", (entries, width), Role.WEIGHT)
    return b.add(name, Vector(kind="copy", rows=rows, channels=width), (*ids, table), (rows, width))


def gather(b: Builder, name: str, x: str, rows: int) -> str:
    """`rows` rows of x[more rows, channels], copied."""
    width = b.tensors[x].shape[-1]
    return b.add(name, Vector(kind="copy", rows=rows, channels=width), (x,), (rows, width))


def split_linear(b: Builder, name: str, x: str, parts: Mapping[str, int], cached: tuple[str, ...] = ()) -> list[str]:
    """x[rows, K] times one weight whose columns are the parts' one after the other; an output `<name>.<part>` each.

    Parts that are `cached` have that role.
    """
    rows, k = b.tensors[x].shape
    n = sum(parts.values())
    weight = b.tensor(f"{name}.weight", (k, n), Role.WEIGHT)
    roles = {part: Role.CACHE if part in cached else Role.ACTIVATION for part in parts}
    outputs = [b.tensor(f"{name}.{part}", (rows, width), roles[part]) for part, width in parts.items()]
    op = Gemm(M=rows, K=k, N=n)
    b.layers.append(Layer(name=name, op=op, inputs=(x, weight), outputs=tuple(outputs)))
    return outputs


def attend(b: Builder, name: str, step: Step, heads: Heads, qkv: list[str]) -> str:
    """Attention of the new tokens on themselves and on the cache, which is `<name>.k_cache` and `<name>.v_cache`."""
    shape = (step.batch * step.context, heads.keys * heads.size)
    parts = ("k", "v") if step.context else ()
    caches = [b.tensor(f"{name}.{part}_cache", shape, Role.CACHE) for part in parts]
    op = Attention(
        batch=step.batch,
        heads=heads.queries,
        kv_heads=heads.keys,
        queries=step.tokens,
        keys=step.context + step.tokens,
        head_dim=heads.size,
        value_dim=heads.size,
    )
    return b.add(name, op, (*qkv, *caches), (step.rows, heads.queries * heads.size))


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a family calls the modules of a layer, under the layer's own name."""

    qkv: tuple[str, ...]
    """three projections, or one for all"""
    attention: str
    out: str
    attention_norm: str
    attention_add: str
    fc1: str
    activation: str
    fc2: str
    mlp_norm: str
    mlp_add: str


def _qkv(b: Builder, names: list[str], heads: Heads, x: str) -> list[str]:
    widths = {"q": heads.queries * heads.size, "k": heads.keys * heads.size, "v": heads.keys * heads.size}
    if len(names) == 1:
        return split_linear(b, names[0], x, widths, cached=("k", "v"))
    roles = (Role.ACTIVATION, Role.CACHE, Role.CACHE)
    return [b.linear(name, x, n, role) for name, n, role in zip(names, widths.values(), roles, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A layer of attention and a perceptron of one hidden layer, both with a residual around them."""

    names: Names
    heads: Heads
    hidden: int
    activation: str
    """kind of vector operation"""
    norm_first: bool = True
    """x + f(norm(x)), or else norm(x + f(x))"""


def self_attention(b: Builder, at: str, block: Block, step: Step, x: str) -> str:
    """Projections, attention and the output's projection of the layer `at`."""
    names = block.names
    qkv = _qkv(b, [f"{at}.{name}" for name in names.qkv], block.heads, x)
    y = attend(b, f"{at}.{names.attention}", step, block.heads, qkv)
    return b.linear(f"{at}.{names.out}", y, b.tensors[x].shape[1])


def mlp(b: Builder, at: str, block: Block, x: str) -> str:
    """Two linear layers around an activation function."""
    names = block.names
    y = b.vector(f"{at}.{names.activation}", block.activation, b.linear(f"{at}.{names.fc1}", x, block.hidden))
    return b.linear(f"{at}.{names.fc2}", y, b.tensors[x].shape[1])


def add_block(b: Builder, at: str, block: Block, step: Step, x: str) -> str:
    names, around = block.names, partial(_residual, b, norm_first=block.norm_first)
    attention = partial(self_attention, b, at, block, step)
    x = around(x, f"{at}.{names.attention_norm}", f"{at}.{names.attention_add}", attention)
    return around(x, f"{at}.{names.mlp_norm}", f"{at}.{names.mlp_add}", partial(mlp, b, at, block))


def _residual(b: Builder, x: str, norm: str, add: str, body: Callable[[str], str], *, norm_first: bool) -> str:
    total = b.vector(add, "add", x, body(b.vector(norm, "layernorm", x) if norm_first else x))
    return total if norm_first else b.vector(norm, "layernorm", total)


def patch_embedding(b: Builder, name: str, image: str, width: int, patch: int) -> str:
    """A convolution of patches that do not overlap: [batch, width, rows, columns]."""
    batch, channels, height, breadth = b.tensors[image].shape
    op = Conv(
        batch=batch,
        in_channels=channels,
        out_channels=width,
        height=height,
        width=breadth,
        kernel=(patch, patch),
        stride=(patch, patch),
    )
    filters = b.tensor(f"{name}.weight", (width, channels, patch, patch), Role.WEIGHT)
    return b.add(name, op, (image, filters), (batch, width, *op.output))
