"""What happens to activations on their way into products: rewrites that put it into a `Graph` as layers of its own.

A rewrite looks at the products with a weight whose names match a pattern (`fnmatch`, case counts). What it puts on the
way of their activations stands behind the layer that writes these, once for a tensor, however many of the products read
it; whoever else reads the tensor still reads the tensor itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fnmatch import fnmatchcase

from hwsim.workloads.graph import Conv, Gemm, Graph, Layer, Quantize, Role, Tensor, Transform
from models.hadamard import MOST_POINTS, HadamardParams
from models.unit import InputError, nearest, require


def quantize(graph: Graph, layers: str = "*") -> Graph:
    """Activations become codes before every matching Gemm or Conv with a weight.

    A row, which has a scale, is what is multiplied with a column of W: K values, of several readers those of the
    longest; of an image it is a pixel. (Kernels larger than 1 x 1 add up pixels and would need one scale for all of
    them, known beforehand; the work on each value is the same.) Tensors that are codes already stay. InputError where
    nothing matches.
    """
    readers = _readers(graph, layers, Gemm | Conv)
    coded = {tensor for layer in graph.layers if isinstance(layer.op, Quantize) for tensor in layer.outputs}
    new = {}
    for name, products in readers.items():
        if name not in coded:
            rows, channels = _rows(graph.tensors[name], products)
            new[name] = _behind(graph.tensors[name], "quantize", Quantize(rows=rows, channels=channels))
    return _with(graph, readers, new, f"quantize: {len(new)} tensors")


def transform(graph: Graph, block: int | str, layers: str = "*") -> Graph:
    """An online Hadamard transform of every `block` channels before every matching Gemm with a weight.

    The inverse belongs into the weights, which changes no shape. `full`: the largest power of two that divides the
    channels, as far as the transform unit goes. InputError for a block that the unit does not come in or that does not
    divide K, and where nothing matches.
    """
    if block != "full":
        _require_block(block)
    readers = _readers(graph, layers, Gemm)
    new = {}
    for name, products in readers.items():
        rows, channels = _rows(graph.tensors[name], products)
        points = _full(name, channels) if block == "full" else block
        for layer in products:
            _require_divides(layer, points)
        op = Transform(rows=rows, channels=channels, block=points)
        new[name] = _behind(graph.tensors[name], f"transform{points}", op)
    return _with(graph, readers, new, f"Hadamard transform, block {block}: {len(new)} tensors")


Readers = dict[str, list[Layer]]
"""Tensor -> the products that take it as A"""


def _readers(graph: Graph, pattern: str, kinds: type) -> Readers:
    products = [layer for layer in graph.layers if isinstance(layer.op, kinds) and _has_weight(graph, layer)]
    rule = f"{graph.name}: no product of activations with a weight matches layers={pattern}; "
    close = nearest(pattern.strip("*"), [layer.name for layer in products]) if products else "there is none at all"
    chosen = [layer for layer in products if fnmatchcase(layer.name, pattern)]
    require(bool(chosen), rule + (close if len(close) < 200 or not products else f"such as {products[0].name!r}"))
    found: Readers = {}
    for layer in chosen:
        found.setdefault(layer.inputs[0], []).append(layer)
    return found


def _has_weight(graph: Graph, layer: Layer) -> bool:
    a, w = (graph.tensors[name].role for name in layer.inputs[:2])
    return w is Role.WEIGHT and a is not Role.WEIGHT


def _rows(tensor: Tensor, readers: Iterable[Layer]) -> tuple[int, int]:
    """Rows and channels."""
    channels, name = max((_channels(layer), layer.name) for layer in readers)
    rule = f"layer {name}: the {tensor.elements} values of tensor {tensor.name!r} are no rows of {channels}"
    require(tensor.elements % channels == 0, rule)
    return tensor.elements // channels, channels


def _channels(layer: Layer) -> int:
    return layer.op.in_channels if isinstance(layer.op, Conv) else layer.op.K


def _require_block(block: int | str) -> None:
    rule = f"hadamard: block is a whole number from 2 to {MOST_POINTS}, or full, not {block!r}"
    if not isinstance(block, int) or isinstance(block, bool) or not 2 <= block <= MOST_POINTS:
        raise InputError(rule)
    HadamardParams(points=block)


def _full(name: str, channels: int) -> int:
    points = min(channels & -channels, MOST_POINTS)
    require(points > 1, f"hadamard: no block divides the {channels} channels of {name!r}; name other layers")
    return points


def _require_divides(layer: Layer, block: int) -> None:
    k = _channels(layer)
    powers = [1 << i for i in range(1, MOST_POINTS.bit_length()) if k % (1 << i) == 0]
    near = f"nearest power of two that does: {min(powers, key=lambda p: abs(p - block))}" if powers else "no block does"
    require(k % block == 0, f"layer {layer.name}: block={block} does not divide K ({k}); {near}")


def _behind(tensor: Tensor, what: str, op: Quantize | Transform) -> Layer:
    return Layer(name=f"{tensor.name}.{what}", op=op, inputs=(tensor.name,), outputs=(f"{tensor.name}.{what}",))


def _with(graph: Graph, readers: Readers, new: dict[str, Layer], note: str) -> Graph:
    """The graph with these layers, each behind the one that writes its tensor, and their readers rewired. A layer that
    an earlier rewrite has put there serves again."""
    there = {layer.name: layer for layer in graph.layers}
    rewired = {layer.name: new[tensor] for tensor, products in readers.items() if tensor in new for layer in products}
    fresh = {tensor: layer for tensor, layer in new.items() if there.get(layer.name) != layer}
    layers = [fresh[name] for name in fresh if name not in graph.producers]
    for layer in graph.layers:
        layers.append(_reading(layer, rewired.get(layer.name)))
        layers += [fresh[name] for name in layer.outputs if name in fresh]
    tensors = dict(graph.tensors)
    for name, layer in fresh.items():
        made = layer.outputs[0]
        require(made not in tensors, f"{graph.name}: a tensor is named {made!r} already")
        tensors[made] = Tensor(name=made, shape=graph.tensors[name].shape)
    return dataclasses.replace(graph, layers=tuple(layers), tensors=tensors, notes=(*graph.notes, note))


def _reading(layer: Layer, source: Layer | None) -> Layer:
    """The layer with what `source` writes as its A."""
    if source is None:
        return layer
    return dataclasses.replace(layer, inputs=(source.outputs[0], *layer.inputs[1:]))
