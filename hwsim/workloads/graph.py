"""A network as what an accelerator has to do: layers with their sizes, and the arrays that pass between them.

Shapes alone: no weights, no values. Importers make a `Graph`, rewrites turn one into another, and `hwsim.system` runs
it on a machine.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Protocol, TypeVar

from models.unit import InputError, nearest, require

LARGEST_SIZE = 1 << 31
"""of one dimension"""
MAX_LAYERS = 100_000


class Role(StrEnum):
    """What an array is to the network; a machine gives each role its width in memory."""

    WEIGHT = "weight"
    """known before the run"""
    ACTIVATION = "activation"
    CACHE = "cache"
    """keys and values of attention, and states that are carried from token to token"""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An array in memory."""

    name: str
    shape: tuple[int, ...]
    role: Role = Role.ACTIVATION

    def __post_init__(self) -> None:
        for size in self.shape:
            require(0 < size <= LARGEST_SIZE, f"tensor {self.name}: a size of {size} is not from 1 to {LARGEST_SIZE}")

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Gemm:
    """`batch` products Y[M, N] = A[M, K] @ W[K, N], each with its own operands. Inputs: A, W, and what an epilogue
    reads, a bias among them. Several outputs share out the columns of Y."""

    M: int
    K: int
    N: int
    batch: int = 1

    @property
    def macs(self) -> int:
        return self.batch * self.M * self.K * self.N


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A convolution of `batch` images [in_channels, height, width] with out_channels filters. Inputs: image, filters,
    and what an epilogue reads.

    `padding` is top, left, bottom, right. One-dimensional convolutions have a height of 1.
    """

    batch: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        g = self.groups
        rule = f"groups must divide the channels: {self.in_channels} in, {self.out_channels} out"
        require(g >= 1 and self.in_channels % g == 0 and self.out_channels % g == 0, f"convolution: {rule}, not {g}")
        for name, size in zip(("height", "width"), self.output, strict=True):
            require(size >= 1, f"convolution: the kernel is larger than the padded image's {name}")

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output."""
        top, left, bottom, right = self.padding
        padded = (self.height + top + bottom, self.width + left + right)
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        high, wide = ((p - s) // step + 1 for p, s, step in zip(padded, spans, self.stride, strict=True))
        return high, wide

    @property
    def gemm(self) -> Gemm:
        """The product of im2col: a row of A for each output pixel, one product a group."""
        return Gemm(
            M=self.batch * math.prod(self.output),
            K=self.in_channels // self.groups * math.prod(self.kernel),
            N=self.out_channels // self.groups,
            batch=self.groups,
        )

    @property
    def macs(self) -> int:
        return self.gemm.macs


@dataclass(frozen=True, kw_only=True)
class Attention:
    """softmax(Q K^T) V for each sequence and head. Inputs: Q, K, V, and where there is one the cache of K and of V.

    `queries` new tokens look at `keys` tokens, their own included. Heads that share keys and values (`kv_heads` fewer
    than `heads`) are products of more rows. Every query is multiplied with every key, masked or not.
    """

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int

    def __post_init__(self) -> None:
        rule = f"attention: heads must be a multiple of kv_heads, not {self.heads} of {self.kv_heads}"
        require(self.kv_heads >= 1 and self.heads % self.kv_heads == 0, rule)

    @property
    def scores(self) -> Gemm:
        """Q K^T."""
        rows = self.heads // self.kv_heads * self.queries
        return Gemm(M=rows, K=self.head_dim, N=self.keys, batch=self.batch * self.kv_heads)

    @property
    def context(self) -> Gemm:
        """softmax(...) V."""
        rows = self.heads // self.kv_heads * self.queries
        return Gemm(M=rows, K=self.keys, N=self.value_dim, batch=self.batch * self.kv_heads)

    @property
    def macs(self) -> int:
        return self.scores.macs + self.context.macs


@dataclass(frozen=True)
class VectorKind:
    """What a vector unit does for an element: operations of a lane, one a cycle."""

    ops: int
    whole_rows: bool = False
    """whether an output needs its whole row, so that it cannot begin before the row is complete"""


VECTOR_KINDS: Mapping[str, VectorKind] = {
    "add": VectorKind(1),
    "mul": VectorKind(1),
    "relu": VectorKind(1),
    "copy": VectorKind(1),  # what moves elements: gather, concatenate, transpose, pad
    "clip": VectorKind(2),  # two comparisons
    "sigmoid": VectorKind(4),  # exponential (2: scale and table with a linear step), add, reciprocal
    "silu": VectorKind(5),  # sigmoid and a product
    "tanh": VectorKind(4),
    "gelu": VectorKind(6),  # tanh form: two products and an addition inside, tanh shared as a table
    "softplus": VectorKind(4),
    "exp": VectorKind(2),
    "rope": VectorKind(3),  # two products and an addition
    "softmax": VectorKind(6, True),  # maximum, subtract, exponential (2), sum, scale
    "layernorm": VectorKind(6, True),  # sum, subtract, square and add, scale, gain, bias
    "rmsnorm": VectorKind(4, True),  # square, add, scale, gain
    "batchnorm": VectorKind(2),  # gain and bias, folded
    "maxpool": VectorKind(1),  # for each element read
    "avgpool": VectorKind(1),
    "reduce": VectorKind(1, True),
    "scan": VectorKind(8),  # a value of a state: exp(dt A) (2), its product, dt B x (2), sum; its share of y = C h (2)
}
"""Kinds of elementwise and row-wise work. Counts are assumptions of this project about a lane with a multiply-add and a
table with linear steps, each named beside it."""


@dataclass(frozen=True, kw_only=True)
class Vector:
    """Elementwise or row-wise work on [rows, channels] elements; `kind` is one of `VECTOR_KINDS`.

    Of an input that has more elements only so many are read: a `copy` may take a few rows of a table.
    """

    kind: str
    rows: int
    channels: int

    def __post_init__(self) -> None:
        if self.kind not in VECTOR_KINDS:
            raise InputError(f"no vector operation {self.kind!r}; {nearest(self.kind, VECTOR_KINDS)}")

    @property
    def lane_ops(self) -> int:
        return self.rows * self.channels * VECTOR_KINDS[self.kind].ops

    @property
    def whole_rows(self) -> bool:
        return VECTOR_KINDS[self.kind].whole_rows


@dataclass(frozen=True, kw_only=True)
class Transform:
    """An online Hadamard transform of every `block` neighbouring channels of [rows, channels] activations."""

    rows: int
    channels: int
    block: int

    def __post_init__(self) -> None:
        rule = f"transform: a block of {self.block} does not divide {self.channels} channels"
        require(self.block >= 1 and self.channels % self.block == 0, rule)


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Activations [rows, channels] become codes with a scale for every row."""

    rows: int
    channels: int


Op = Gemm | Conv | Attention | Vector | Transform | Quantize


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One step of a network: `op` reads the tensors `inputs` and writes `outputs`."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def macs(self) -> int:
        return getattr(self.op, "macs", 0)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A network: layers in an order in which they can run, and every tensor they name.

    InputError for a name that stands twice, a tensor that is unknown or written twice, and an input that no earlier
    layer writes though a later one does.
    """

    name: str
    layers: tuple[Layer, ...]
    tensors: Mapping[str, Tensor]
    source: str = ""
    """where the shapes come from"""
    notes: tuple[str, ...] = ()
    """what the importer left out or assumed"""

    def __post_init__(self) -> None:
        require(len(self.layers) > 0, f"{self.name}: a network without a layer")
        require(len(self.layers) <= MAX_LAYERS, f"{self.name}: {len(self.layers)} layers; {MAX_LAYERS} at most")
        _check_order(self)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @cached_property
    def producers(self) -> Mapping[str, str]:
        """Tensor -> the layer that writes it."""
        return {tensor: layer.name for layer in self.layers for tensor in layer.outputs}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[str, ...]]:
        """Tensor -> the layers that read it."""
        readers: dict[str, list[str]] = {name: [] for name in self.tensors}
        for layer in self.layers:
            for tensor in layer.inputs:
                readers[tensor].append(layer.name)
        return {name: tuple(layers) for name, layers in readers.items()}

    def elements(self, role: Role) -> int:
        """Of all tensors of a role together."""
        return sum(tensor.elements for tensor in self.tensors.values() if tensor.role is role)


def _check_order(graph: Graph) -> None:
    names: set[str] = set()
    written: set[str] = set()
    all_written = {tensor for layer in graph.layers for tensor in layer.outputs}
    for layer in graph.layers:
        place = f"{graph.name}: layer {layer.name!r}"
        require(layer.name not in names, f"{place} stands twice")
        names.add(layer.name)
        for tensor in (*layer.inputs, *layer.outputs):
            require(tensor in graph.tensors, f"{place} names the unknown tensor {tensor!r}")
        for tensor in layer.inputs:
            rule = f"{place} reads {tensor!r}, which only a later layer writes: a cycle, or layers out of order"
            require(tensor in written or tensor not in all_written, rule)
        for tensor in layer.outputs:
            require(tensor not in written, f"{place} writes {tensor!r}, which another layer has written")
            written.add(tensor)


class Builder:
    """Collects layers and tensors in order; what every importer and the zoo build a `Graph` with."""

    def __init__(self, name: str, source: str = "") -> None:
        self.name = name
        self.source = source
        self.layers: list[Layer] = []
        self.tensors: dict[str, Tensor] = {}
        self.notes: list[str] = []

    def tensor(self, name: str, shape: Iterable[int], role: Role = Role.ACTIVATION) -> str:
        """Adds a tensor and returns its name."""
        require(name not in self.tensors, f"{self.name}: tensor {name!r} stands twice")
        self.tensors[name] = Tensor(name=name, shape=tuple(shape), role=role)
        return name

    def add(self, name: str, op: Op, inputs: Iterable[str], shape: Iterable[int], role: Role = Role.ACTIVATION) -> str:
        """Adds a layer with one output of that shape, named like the layer, and returns its name."""
        output = self.tensor(name, shape, role)
        self.layers.append(Layer(name=name, op=op, inputs=tuple(inputs), outputs=(output,)))
        return output

    def linear(self, name: str, x: str, outputs: int, role: Role = Role.ACTIVATION) -> str:
        """x[rows, K] times a weight [K, outputs]."""
        rows, k = self.tensors[x].shape
        weight = self.tensor(f"{name}.weight", (k, outputs), Role.WEIGHT)
        return self.add(name, Gemm(M=rows, K=k, N=outputs), (x, weight), (rows, outputs), role)

    def vector(self, name: str, kind: str, *inputs: str, shape: tuple[int, ...] | None = None) -> str:
        """Work of a vector unit on the first input's rows and channels; the output is as large unless `shape` says."""
        first = self.tensors[inputs[0]].shape
        rows, channels = math.prod(first[:-1]), first[-1]
        return self.add(name, Vector(kind=kind, rows=rows, channels=channels), inputs, shape or first)

    def graph(self) -> Graph:
        return Graph(
            name=self.name,
            layers=tuple(self.layers),
            tensors=self.tensors,
            source=self.source,
            notes=tuple(self.notes),
        )


class Ordered(Protocol):
    """What can be put in order: a layer, or what will become one."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...


Node = TypeVar("Node", bound=Ordered)


def sorted_layers(layers: Iterable[Node], place: str) -> Iterator[Node]:
    """The layers in an order in which they can run, earlier ones first; InputError names layers of a cycle."""
    given = list(layers)
    writer = {tensor: i for i, layer in enumerate(given) for tensor in layer.outputs}
    before = [{writer[t] for t in layer.inputs if t in writer} for layer in given]
    after: list[list[int]] = [[] for _ in given]
    for i, needed in enumerate(before):
        for j in needed:
            after[j].append(i)
    ready = [i for i, needed in enumerate(before) if not needed]
    left = set(range(len(given)))
    while ready:
        i = heapq.heappop(ready)
        left.discard(i)
        yield given[i]
        for j in after[i]:
            before[j].discard(i)
            if not before[j]:
                heapq.heappush(ready, j)
    names = ", ".join(repr(given[i].name) for i in sorted(left)[:5])
    require(not left, f"{place}: a cycle through {names}{' and others' if len(left) > 5 else ''}")
