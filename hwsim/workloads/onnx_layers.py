"""Operators of ONNX as layers: what each one costs, from the shapes of its tensors alone.

Layers write tensors of the file's names. An operator that moves no data (reshapes, casts) makes no layer: who reads
its output reads its input.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from hwsim.workloads.graph import LARGEST_SIZE, Attention, Builder, Conv, Gemm, Layer, Op, Role, Vector
from models.unit import InputError, require

MAX_ELEMENTS = 1 << 40
"""of one tensor"""

Shape = tuple[int | str | None, ...]
"""Sizes; a name or None where a size is not fixed."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the file. `name` is unique; `kind` is the operator, with its domain in front where that is not ONNX's
    own; `attributes` are those of integers and texts. An input or output that is left out has an empty name."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int | str | tuple[int, ...]]
    nested: bool = False
    """whether graphs stand inside it"""

    @property
    def given(self) -> tuple[str, ...]:
        return tuple(name for name in self.inputs if name)

    def size(self, name: str, default: int) -> int:
        """An integer attribute."""
        value = self.attributes.get(name, default)
        require(isinstance(value, int), f"{name} must be one integer")
        return value

    def sizes(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """An attribute that is a list of as many integers as the default."""
        value = self.attributes.get(name, tuple(default))
        rule = f"{name} must be {len(default)} integers, not {value!r}"
        require(isinstance(value, tuple) and len(value) == len(default), rule)
        return value


class Net:
    """The layers made so far, and what stands for the file's tensors."""

    def __init__(self, builder: Builder, shapes: Mapping[str, Shape], constants: set[str]) -> None:
        self.builder = builder
        self.shapes = shapes
        self.constants = constants
        self.same: dict[str, str] = {}
        """tensor -> the tensor whose data it is"""
        self.counts: Counter[str] = Counter()
        """operator -> how often it was taken for its input"""

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of a tensor; InputError names the dimension that is not fixed, zero or too large."""
        require(name in self.shapes, f"tensor {name!r} has no shape; declare it in the file's value_info")
        shape = self.shapes[name]
        for i, size in enumerate(shape):
            shown = "unknown" if size is None else repr(size)
            rule = f"tensor {name!r}: dimension {i} is {shown}, it must be a number from 1 to {LARGEST_SIZE}"
            require(isinstance(size, int) and 0 < size <= LARGEST_SIZE, rule)
        elements = math.prod(shape)
        require(elements <= MAX_ELEMENTS, f"tensor {name!r}: {elements} elements; {MAX_ELEMENTS} at most")
        return shape

    def source(self, name: str) -> str:
        """The tensor that holds the data of `name`."""
        return self.same.get(name, name)

    def alias(self, output: str, name: str) -> None:
        """From here on `output` is the data of `name`."""
        self.shape(output)
        self.same[output] = self.source(name)

    def tensor(self, name: str, role: Role | None = None) -> str:
        """The tensor that holds the data of `name`, made where it is new."""
        held = self.source(name)
        if held not in self.builder.tensors:
            constant = Role.WEIGHT if held in self.constants else Role.ACTIVATION
            self.builder.tensor(held, self.shape(held), role or constant)
        return held

    def layer(self, node: Node, op: Op, inputs: Sequence[str]) -> None:
        """A layer that reads `inputs` (empty names left out) and writes all outputs of the node."""
        reads = tuple(self.tensor(name) for name in inputs if name)
        outputs = tuple(self.tensor(name) for name in node.outputs if name)
        self.builder.layers.append(Layer(name=node.name, op=op, inputs=reads, outputs=outputs))

    def vector(self, node: Node, kind: str, rows: int, channels: int, inputs: Sequence[str]) -> None:
        """A tensor that is read twice is read once."""
        sources = dict.fromkeys(self.source(name) for name in inputs if name)
        self.layer(node, Vector(kind=kind, rows=rows, channels=channels), tuple(sources))


Rule = Callable[[Net, Node], None]


def _rows(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and channels of an array whose last dimension is the channels."""
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def _elementwise(kind: str, net: Net, node: Node) -> None:
    rows, channels = _rows(net.shape(node.outputs[0]))
    net.vector(node, kind, rows, channels, node.inputs)


def _variadic(kind: str, net: Net, node: Node) -> None:
    """An operation between every two neighbouring inputs."""
    if len(node.given) == 1:
        return net.alias(node.outputs[0], node.inputs[0])
    rows, channels = _rows(net.shape(node.outputs[0]))
    return net.vector(node, kind, rows * (len(node.given) - 1), channels, node.inputs)


def _unary(kind: str, net: Net, node: Node) -> None:
    """Other inputs than the first are bounds and the like."""
    rows, channels = _rows(net.shape(node.outputs[0]))
    net.vector(node, kind, rows, channels, node.inputs[:1])


def _reduce(net: Net, node: Node) -> None:
    """A row is what becomes one element."""
    rows = math.prod(net.shape(node.outputs[0]))
    channels = math.prod(net.shape(node.inputs[0])) // rows
    net.vector(node, "reduce", rows, channels, node.inputs[:1])


def _axis(node: Node, default: int, rank: int) -> int:
    axis = node.size("axis", default)
    require(-rank <= axis < rank, f"axis must be from {-rank} to {rank - 1}, not {axis}")
    return axis % rank


def _softmax(opset: int, net: Net, node: Node) -> None:
    """Until opset 12 over all dimensions from `axis` on (1 by default), since then over `axis` (the last)."""
    shape = net.shape(node.inputs[0])
    axis = _axis(node, 1 if opset < 13 else -1, len(shape))
    channels = math.prod(shape[axis:]) if opset < 13 else shape[axis]
    net.vector(node, "softmax", math.prod(shape) // channels, channels, node.inputs)


def _row_norm(kind: str, net: Net, node: Node) -> None:
    """Statistics over all dimensions from `axis` on."""
    shape = net.shape(node.inputs[0])
    axis = _axis(node, -1, len(shape))
    net.vector(node, kind, math.prod(shape[:axis]), math.prod(shape[axis:]), node.inputs)


def _channel_norm(net: Net, node: Node) -> None:
    """Statistics of each image over groups of channels; groups of one without `num_groups`."""
    shape = net.shape(node.inputs[0])
    groups = node.size("num_groups", shape[1])
    rule = f"num_groups must divide the {shape[1]} channels, not {groups}"
    require(groups >= 1 and shape[1] % groups == 0, rule)
    rows = shape[0] * groups
    net.vector(node, "layernorm", rows, math.prod(shape) // rows, node.inputs)


def _window_norm(net: Net, node: Node) -> None:
    """Each pixel over its neighbouring channels."""
    shape = net.shape(node.inputs[0])
    net.vector(node, "layernorm", math.prod(shape) // shape[1], shape[1], node.inputs)


def _pool(kind: str, net: Net, node: Node) -> None:
    """An operation for each element of each window."""
    shape = net.shape(node.outputs[0])
    window = math.prod(node.attributes["kernel_shape"])
    rows = math.prod(shape) // shape[1] * window
    net.vector(node, kind, rows, shape[1], node.inputs)


def _global_pool(kind: str, net: Net, node: Node) -> None:
    shape = net.shape(node.inputs[0])
    net.vector(node, kind, math.prod(shape) // shape[1], shape[1], node.inputs)


def _alias(net: Net, node: Node) -> None:
    """The data stay where they are; what else the operator makes (a mask, a scale) is not followed."""
    net.alias(node.outputs[0], node.inputs[0])
    net.constants.update(name for name in node.outputs[1:] if name)


def _quantize(net: Net, node: Node) -> None:
    """The machine gives widths to tensors, so that a change of the format is no work."""
    net.counts[node.kind] += 1
    _alias(net, node)


def _copy(net: Net, node: Node) -> None:
    """The outputs' elements; parameters (axes, starts, repeats) are not read as data."""
    elements = sum(math.prod(net.shape(name)) for name in node.outputs if name)
    channels = _rows(net.shape(node.outputs[0]))[1]
    net.vector(node, "copy", elements // channels, channels, node.inputs[:1])


def _copy_unless_same(net: Net, node: Node) -> None:
    """Where the output is as large as the input, it is the input."""
    if net.shape(node.outputs[0]) == net.shape(node.inputs[0]):
        return net.alias(node.outputs[0], node.inputs[0])
    return _copy(net, node)


def _concat(net: Net, node: Node) -> None:
    """Inputs without an element (a cache that is still empty) count for nothing."""
    parts = [name for name in node.given if 0 not in net.shapes.get(name, ())]
    if len(parts) == 1:
        return net.alias(node.outputs[0], parts[0])
    rows, channels = _rows(net.shape(node.outputs[0]))
    return net.vector(node, "copy", rows, channels, parts)


def _transpose(net: Net, node: Node) -> None:
    """Nothing moves where all dimensions above 1 keep their order."""
    shape = net.shape(node.inputs[0])
    order = node.sizes("perm", range(len(shape))[::-1])
    require(sorted(order) == list(range(len(shape))), f"perm {order} is no order of {len(shape)} dimensions")
    moved = [axis for axis in order if shape[axis] > 1]
    if moved == sorted(moved):
        return net.alias(node.outputs[0], node.inputs[0])
    return _copy(net, node)


def _gather(net: Net, node: Node) -> None:
    """Of a table that is known before the run only the rows asked for are read: a weight of the output's size."""
    table, indices = node.inputs[:2]
    run_time = [name for name in (indices,) if name not in net.constants]
    if table in net.constants:
        read = net.builder.tensor(f"{node.name}.gathered", net.shape(node.outputs[0]), Role.WEIGHT)
        net.builder.notes.append(f"{node.name}: of the table {table!r} only the gathered elements are read")
    else:
        read = table
    rows, channels = _rows(net.shape(node.outputs[0]))
    net.vector(node, "copy", rows, channels, [read, *run_time])


def _pads(node: Node, image: Sequence[int], spans: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Zeros before and after each dimension: all those before, then all after."""
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = node.sizes("pads", [0] * (2 * len(image)))
        require(min(pads) >= 0, f"pads must not be negative: {pads}")
        return pads
    if mode == "VALID":
        return (0,) * (2 * len(image))
    rule = f"auto_pad must be NOTSET, VALID, SAME_UPPER or SAME_LOWER, not {mode!r}"
    require(mode in ("SAME_UPPER", "SAME_LOWER"), rule)
    geometry = zip(image, spans, strides, strict=True)
    totals = [max((-(-size // step) - 1) * step + span - size, 0) for size, span, step in geometry]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (*less, *more) if mode == "SAME_UPPER" else (*more, *less)


def _conv(image: int, filters: int, bias: int, net: Net, node: Node) -> None:
    """The numbers are positions among the node's inputs. One-dimensional images get a height of 1."""
    x, w = net.shape(node.inputs[image]), net.shape(node.inputs[filters])
    rank = len(x) - 2
    require(rank in (1, 2) and len(w) == len(x), f"a convolution of {len(x)} by {len(w)} dimensions; 3 or 4 of both")
    groups = node.size("group", 1)
    rule = f"{x[1]} channels in {groups} groups do not suit filters of {w[1]} channels"
    require(groups >= 1 and x[1] == w[1] * groups, rule)
    strides, dilations = node.sizes("strides", [1] * rank), node.sizes("dilations", [1] * rank)
    require(min(*strides, *dilations) >= 1, f"strides {strides} and dilations {dilations} must be 1 or more")
    pads = _pads(node, x[2:], [(k - 1) * d + 1 for k, d in zip(w[2:], dilations, strict=True)], strides)
    op = Conv(
        batch=x[0],
        in_channels=x[1],
        out_channels=w[0],
        height=x[2] if rank == 2 else 1,
        width=x[-1],
        kernel=_plane(w[2:]),
        stride=_plane(strides),
        padding=pads if rank == 2 else (0, pads[0], 0, pads[1]),
        dilation=_plane(dilations),
        groups=groups,
    )
    inferred = net.shape(node.outputs[0])
    made = (x[0], w[0], *op.output[2 - rank :])
    require(made == inferred, f"the output is {made}, but the file says {inferred}")
    net.layer(node, op, _operands(node, image, filters, bias))


def _plane(sizes: tuple[int, ...]) -> tuple[int, int]:
    return sizes if len(sizes) == 2 else (1, *sizes)


def _operands(node: Node, *positions: int) -> tuple[str, ...]:
    """Inputs at these positions; those at the end may be left out."""
    return tuple(node.inputs[i] for i in positions if i < len(node.inputs))


def _gemm(a: int, b: int, c: int, net: Net, node: Node) -> None:
    """alpha, beta and the bias are the epilogue's; a transposed operand is read in its other order."""
    rows, columns = net.shape(node.inputs[a]), net.shape(node.inputs[b])
    require(len(rows) == len(columns) == 2, f"operands must have 2 dimensions, not {len(rows)} and {len(columns)}")
    m, k = rows[::-1] if node.size("transA", 0) else rows
    inner, n = columns[::-1] if node.size("transB", 0) else columns
    require(k == inner, f"operands of {rows} and {columns} have no common K")
    net.layer(node, Gemm(M=m, K=k, N=n), _operands(node, a, b, c))


def _matmul(a: int, b: int, net: Net, node: Node) -> None:
    """Broadcast as numpy does. Leading dimensions that W does not have become rows: M; those that it has, products."""
    left, right = net.shape(node.inputs[a]), net.shape(node.inputs[b])
    left = left if len(left) > 1 else (1, *left)
    right = right if len(right) > 1 else (*right, 1)
    rule = f"operands of {left} and {right} have no common K"
    require(left[-1] == right[-2], rule)
    batches = _broadcast(left[:-2], right[:-2])
    own = (1,) * (len(batches) - len(right) + 2) + right[:-2]
    shared = next((i for i, size in enumerate(reversed(own)) if size > 1), len(own))
    products, rows = batches[: len(own) - shared], batches[len(own) - shared :]
    op = Gemm(M=math.prod(rows) * left[-2], K=left[-1], N=right[-1], batch=math.prod(products))
    net.layer(node, op, _operands(node, a, b))


def _broadcast(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(left), len(right))
    pairs = list(zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True))
    require(all(a == b or 1 in (a, b) for a, b in pairs), f"{left} and {right} cannot be broadcast")
    return tuple(max(pair) for pair in pairs)


def _attention(net: Net, node: Node) -> None:
    """Opset 23. Q, K and V as [batch, heads, tokens, size], or as [batch, tokens, heads * size] with the number of
    heads as attributes. What is already in the cache (past_key, past_value) is among the keys."""
    q, k, v = (_heads(net, node, name, heads) for name, heads in zip(node.inputs, _HEADS, strict=False))
    require(q[3] == k[3], f"queries of {q[3]} elements do not suit keys of {k[3]}")
    past = node.inputs[4] if len(node.inputs) > 4 else ""
    earlier = net.shape(past)[2] if past else 0
    op = Attention(
        batch=q[0],
        heads=q[1],
        kv_heads=k[1],
        queries=q[2],
        keys=k[2] + earlier,
        head_dim=q[3],
        value_dim=v[3],
    )
    cached = (*node.inputs[4:6], *node.outputs[1:3])
    for name in filter(None, cached):
        net.tensor(name, Role.CACHE)
    mask = node.inputs[3:4]
    net.layer(node, op, (*node.inputs[:3], *node.inputs[4:6], *mask))


_HEADS = ("q_num_heads", "kv_num_heads", "kv_num_heads")


def _heads(net: Net, node: Node, name: str, attribute: str) -> tuple[int, ...]:
    """[batch, heads, tokens, size]."""
    shape = net.shape(name)
    if len(shape) == 4:
        return shape
    require(len(shape) == 3, f"{name!r} must have 3 or 4 dimensions, not {len(shape)}")
    heads = node.size(attribute, 0)
    require(heads >= 1 and shape[2] % heads == 0, f"{attribute} must divide {shape[2]}, not {heads}")
    return shape[0], heads, shape[1], shape[2] // heads


def _each(rule: Callable[[str, Net, Node], None], kinds: Mapping[str, str]) -> dict[str, Rule]:
    """Vector kind -> operators, separated by spaces."""
    return {name: partial(rule, kind) for kind, names in kinds.items() for name in names.split()}


SAME_DATA = "Reshape Flatten Squeeze Unsqueeze Identity Dropout Cast CastLike"
MOVES = "Slice Split Pad GatherND GatherElements ScatterElements ScatterND DepthToSpace SpaceToDepth Trilu"
REDUCTIONS = "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ArgMax ArgMin"

RULES: Mapping[str, Rule] = {
    "Conv": partial(_conv, 0, 1, 2),
    "ConvInteger": partial(_conv, 0, 1, 4),
    "QLinearConv": partial(_conv, 0, 3, 8),
    "Gemm": partial(_gemm, 0, 1, 2),
    "com.microsoft.QGemm": partial(_gemm, 0, 3, 6),
    "MatMul": partial(_matmul, 0, 1),
    "MatMulInteger": partial(_matmul, 0, 1),
    "QLinearMatMul": partial(_matmul, 0, 3),
    "Attention": _attention,
    **_each(
        _elementwise,
        {
            "add": "Add Sub",
            "mul": "Mul Div",
            "relu": "PRelu And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual Mod BitShift "
            "BitwiseAnd BitwiseOr BitwiseXor",
            "copy": "Where",
            "exp": "Pow",
            "rope": "RotaryEmbedding",
            "batchnorm": "BatchNormalization",
        },
    ),
    **_each(
        _unary,
        {
            "add": "CumSum",
            "mul": "Neg",
            "relu": "Relu LeakyRelu ThresholdedRelu Abs Sign Not BitwiseNot Floor Ceil Round IsNaN IsInf",
            "clip": "Clip HardSigmoid",
            "sigmoid": "Sigmoid Softsign",
            "tanh": "Tanh Erf",
            "exp": "Exp Log Sqrt Reciprocal Sin Cos Elu Selu Celu",
            "gelu": "Gelu",
            "softplus": "Softplus",
            "silu": "Swish Mish HardSwish",
        },
    ),
    **_each(_variadic, {"add": "Sum Mean", "relu": "Max Min"}),
    **_each(_pool, {"maxpool": "MaxPool", "avgpool": "AveragePool LpPool"}),
    **_each(_global_pool, {"maxpool": "GlobalMaxPool", "avgpool": "GlobalAveragePool GlobalLpPool"}),
    **_each(_row_norm, {"layernorm": "LayerNormalization", "rmsnorm": "RMSNormalization"}),
    "LRN": _window_norm,
    **dict.fromkeys(["GroupNormalization", "InstanceNormalization"], _channel_norm),
    **dict.fromkeys(REDUCTIONS.split(), _reduce),
    **dict.fromkeys(SAME_DATA.split(), _alias),
    **dict.fromkeys(["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"], _quantize),
    **dict.fromkeys(MOVES.split(), _copy),
    **dict.fromkeys(["Expand", "Tile", "Resize", "Upsample"], _copy_unless_same),
    "Concat": _concat,
    "Transpose": _transpose,
    "Gather": _gather,
}
"""Operator -> what makes a layer of it. Operators without a vector kind of their own count as the nearest one."""

SOFTMAXES = ("Softmax", "LogSoftmax")
SHAPE_ONLY = ("Shape", "Size")
"""whose output is known before the run, whatever their input"""
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")


def constant_tensors(nodes: Sequence[Node], stored: Sequence[str]) -> set[str]:
    """Tensors that are known before the run: those stored in the file, and what follows from them alone."""
    known = set(stored)
    for node in nodes:
        fixed = all(name in known for name in node.given) and node.kind not in RANDOM and not node.nested
        if node.kind in SHAPE_ONLY or fixed:
            known.update(name for name in node.outputs if name)
    return known


def unsupported(node: Node, ranks: Mapping[str, int]) -> str:
    """The operator, or the form of it, that no rule covers; empty where there is a rule."""
    if node.kind not in RULES and node.kind not in SOFTMAXES:
        return node.kind
    spatial = ranks.get(node.inputs[1], 4) - 2 if node.kind in ("Conv", "ConvInteger") and len(node.inputs) > 1 else 2
    forms = {
        f"{node.kind} of {spatial} dimensions": spatial not in (1, 2),
        f"{node.kind} in training": node.kind == "BatchNormalization" and node.attributes.get("training_mode", 0) != 0,
        f"{node.kind} that interpolates": node.kind in ("Resize", "Upsample")
        and node.attributes.get("mode", "nearest") != "nearest",
    }
    return next((form for form, applies in forms.items() if applies), "")


def add_layer(net: Net, node: Node, opset: int) -> None:
    """The layer of a supported node."""
    if node.kind in SOFTMAXES:
        _softmax(opset, net, node)
    else:
        RULES[node.kind](net, node)


def skip(net: Net, node: Node) -> None:
    """Each output becomes the first input of its shape, or a tensor that nobody makes."""
    for output in filter(None, node.outputs):
        shape = net.shapes.get(output)
        twin = next((name for name in node.given if shape is not None and net.shapes.get(name) == shape), None)
        if twin:
            net.alias(output, twin)


def at_node(place: str, node: Node, error: InputError) -> InputError:
    return InputError(f"{place}: node {node.name!r} ({node.kind}): {error}")
