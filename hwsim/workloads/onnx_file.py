"""Networks from ONNX files.

A file is checked before anything is made of it, and its weights are never needed for the shapes: shape inference runs
on a copy of the model in which large tensors are declared without their data. Data outside the file are refused
unless asked for, and then taken from files inside the model's folder alone.
"""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hwsim.files import os_errors, require_file
from hwsim.workloads.graph import LARGEST_SIZE, MAX_LAYERS, Builder, Graph, sorted_layers
from hwsim.workloads.onnx_layers import (
    MAX_ELEMENTS,
    SHAPE_ONLY,
    Net,
    Node,
    Shape,
    add_layer,
    at_node,
    constant_tensors,
    skip,
    unsupported,
)
from models.unit import InputError, nearest, require

MAX_FILE_BYTES = (1 << 31) - 1
"""what a protobuf message can hold"""
MAX_NODES = MAX_LAYERS
"""of the network and all graphs inside its nodes"""
MAX_DEPTH = 8
"""graphs inside nodes of graphs"""
MAX_RANK = 32
"""dimensions of a tensor"""
MAX_KEPT = 1024
"""elements of a tensor of integers whose values shape inference sees: shapes, axes, starts"""
MAX_SCALES = 16
"""the same for other numbers: scales of Resize"""
MAX_ROUNDS = 16
"""of shape inference, each after values that the one before made known"""
MAX_HINTS = 100
"""names among which the nearest to an unknown one is looked for"""
SHOWN = 300
"""characters of a message of the onnx package"""

BITS = {
    **{"FLOAT": 32, "INT32": 32, "UINT32": 32, "DOUBLE": 64, "INT64": 64, "UINT64": 64, "COMPLEX64": 64},
    **{"UINT8": 8, "INT8": 8, "BOOL": 8, "UINT16": 16, "INT16": 16, "FLOAT16": 16, "BFLOAT16": 16, "COMPLEX128": 128},
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **{"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2},
}
"""of an element as raw data, by the type's name in onnx.proto"""
FIELDS = {"FLOAT": "float_data", "DOUBLE": "double_data", "INT64": "int64_data", "UINT64": "uint64_data"} | {
    **{"UINT32": "uint64_data", "COMPLEX64": "float_data", "COMPLEX128": "double_data"},
}
"""where elements stand that are not raw data; of all other types in int32_data"""
FOLDED = (
    *("Constant", "Gather", "Concat", "Slice", "Split", "Squeeze", "Unsqueeze", "Cast", "Identity", "Reshape"),
    *("Flatten", "Transpose", "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Floor", "Ceil", "Sqrt", "Min", "Max"),
    *("Where", "Equal", "Less", "Greater", "Not", "And", "Or", "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin"),
)
"""operators with which exporters compute sizes"""
GROWING = ("Range", "ConstantOfShape", "Expand", "Tile")
"""more such, whose results may be larger than their inputs"""
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""what the onnx package raises for nodes that make no sense, beside exceptions of its own"""
QGEMM = "com.microsoft.QGemm"


def load_onnx(
    path: Path, *, skip_unsupported: bool = False, allow_external: bool = False, batch: int | None = None
) -> Graph:
    """The network of an ONNX file, with the shapes that shape inference gives.

    `skip_unsupported`: an operator without a rule makes no layer; its outputs become its first input of the same
    shape, or tensors from outside. `allow_external`: weights may lie in other files of the model's folder. `batch`
    sets the first dimension of every input of the network where it is not a number. InputError for a file that is
    not what it claims, sizes that are not fixed, operators without a rule, nodes out of any order and all that the
    onnx package finds wrong; it names the file and the node or tensor.
    """
    model = _read(path)
    tensors = _stored(path, model, allow_external)
    nodes, protos = _nodes(path, model, tensors)
    constants = constant_tensors(nodes, [*tensors])
    skipped = _skipped(path, nodes, constants, tensors, skip_unsupported)
    light = _light(path, model, [(node, protos[node.name]) for node in nodes], tensors)
    _fix_inputs(path, light, [entry.name for entry in model.graph.input if entry.name not in tensors], batch)
    shapes = _infer(path, light)
    opset = _opset(model)
    net = Net(Builder(path.stem, f"{path.name}, ONNX opset {opset}"), shapes, constants)
    _add_layers(path, net, nodes, skipped, opset)
    try:
        return net.builder.graph()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def initialisers(path: Path, names: Iterable[str], *, allow_external: bool = False) -> dict[str, np.ndarray]:
    """The stored values of these tensors, in their own types (ml_dtypes for those that numpy lacks).

    InputError for a name that the file does not store, data that do not fit their shape, and external data unless
    allowed.
    """
    from onnx import numpy_helper

    tensors = _stored(path, _read(path), allow_external)
    found = {}
    for name in names:
        if name not in tensors:
            raise InputError(f"{path}: stores no tensor {name!r}; {nearest(name, sorted(tensors)[:MAX_HINTS])}")
        tensor = tensors[name]
        require(_kind(tensor) in BITS, f"{path}: tensor {name!r} holds {_kind(tensor)}, not numbers")
        found[name] = numpy_helper.to_array(_with_data(path, tensor))
    return found


def _read(path: Path) -> Any:
    """The ModelProto, its header checked."""
    from google.protobuf.message import DecodeError
    from onnx import IR_VERSION, ModelProto
    from onnx.defs import onnx_opset_version

    require_file(path)
    with os_errors(path):
        size = path.stat().st_size
        require(size <= MAX_FILE_BYTES, f"{path}: {size} bytes; {MAX_FILE_BYTES} at most (protobuf)")
        content = path.read_bytes()
    try:
        model = ModelProto.FromString(content)
    except DecodeError:
        raise InputError(f"{path}: is no ONNX file: not a protobuf message of a model, or cut off") from None
    ir, opset, newest = model.ir_version, _opset(model), onnx_opset_version()
    require(ir >= 1, f"{path}: is no ONNX file: it has no ir_version")
    require(ir <= IR_VERSION, f"{path}: ir_version {ir}; the installed onnx package reads up to {IR_VERSION}")
    require(opset != 0, f"{path}: names no opset of ONNX's operators (opset_import of the domain '')")
    require(1 <= opset <= newest, f"{path}: opset {opset}; the installed onnx package knows 1 to {newest}")
    require(len(model.graph.node) > 0, f"{path}: a network without nodes")
    count = sum(len(graph.node) for graph in _graphs(path, model.graph, 0))
    require(count <= MAX_NODES, f"{path}: {count} nodes; {MAX_NODES} at most")
    return model


def _opset(model: Any) -> int:
    """Version of ONNX's own operators; 0 where the file names none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _graphs(path: Path, graph: Any, depth: int) -> Iterator[Any]:
    """The graph and those inside its nodes."""
    require(depth <= MAX_DEPTH, f"{path}: graphs inside graphs deeper than {MAX_DEPTH}")
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graphs(path, inner, depth + 1)


def _text(path: Path, value: Any, what: str) -> str:
    """protobuf hands out as bytes what is no UTF-8."""
    require(isinstance(value, str), f"{path}: {what} is no UTF-8: {value!r:.80}")
    return value


def _kind(tensor: Any) -> str:
    """The type's name in onnx.proto."""
    from onnx import TensorProto

    known = tensor.data_type in TensorProto.DataType.values()
    return TensorProto.DataType.Name(tensor.data_type) if known else f"type {tensor.data_type}"


def _stored(path: Path, model: Any, allow_external: bool) -> dict[str, Any]:
    """Stored tensors by name (initialisers, and values of Constant nodes). All tensors of the file have been checked:
    sane shapes, and as much data as shape and type need."""
    for graph in _graphs(path, model.graph, 0):
        rule = f"{path}: sparse initialisers are not supported; store them as plain ones"
        require(len(graph.sparse_initializer) == 0, rule)
        for place, tensor in _graph_tensors(graph):
            _check_tensor(path, f"{place} {_text(path, tensor.name, 'a name')!r}", tensor, allow_external)
    pairs = [(tensor.name, tensor) for tensor in model.graph.initializer]
    pairs += [(node.output[0], node.attribute[0].t) for node in model.graph.node if _stores(node)]
    _require_once(path, "initialiser", [name for name, _tensor in pairs])
    return dict(pairs)


def _require_once(path: Path, what: str, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    require(not twice, f"{path}: {what} {', '.join(map(repr, twice[:1]))} stands twice")


def _graph_tensors(graph: Any) -> Iterator[tuple[str, Any]]:
    yield from (("initialiser", tensor) for tensor in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            held = [attribute.t] if attribute.HasField("t") else []
            yield from (("a tensor of node", tensor) for tensor in (*held, *attribute.tensors))


def _stores(node: Any) -> bool:
    """Whether this is a Constant with a tensor."""
    own = node.op_type == "Constant" and node.domain in ("", "ai.onnx") and len(node.output) == 1
    return own and len(node.attribute) == 1 and node.attribute[0].HasField("t")


def _check_tensor(path: Path, place: str, tensor: Any, allow_external: bool) -> None:
    where = f"{path}: {place}"
    dims, kind = list(tensor.dims), _kind(tensor)
    require(len(dims) <= MAX_RANK, f"{where}: {len(dims)} dimensions; {MAX_RANK} at most")
    rule = f"{where}: sizes must be from 0 to {LARGEST_SIZE}, not {dims}"
    require(all(0 <= size <= LARGEST_SIZE for size in dims), rule)
    elements = math.prod(dims)
    require(elements <= MAX_ELEMENTS, f"{where}: {elements} elements; {MAX_ELEMENTS} at most")
    require(kind in BITS or kind == "STRING", f"{where}: elements of {kind}; known are {', '.join(BITS)}")
    if tensor.data_location == 1:  # EXTERNAL
        rule = f"{where}: its data are in another file; give --allow-external to read files in the model's folder"
        require(allow_external, rule)
        _external(path, where, tensor)
    else:
        _check_data(where, tensor, elements, kind)


def _bytes_of(tensor: Any) -> int:
    return -(-math.prod(tensor.dims) * BITS[_kind(tensor)] // 8)


def _check_data(where: str, tensor: Any, elements: int, kind: str) -> None:
    """As much as the shape says."""
    if tensor.HasField("raw_data"):
        require(kind != "STRING", f"{where}: texts cannot be raw data")
        held, needed, unit = len(tensor.raw_data), _bytes_of(tensor), "bytes"
    elif kind == "STRING":
        held, needed, unit = len(tensor.string_data), elements, "texts"
    else:
        held, needed, unit = len(getattr(tensor, FIELDS.get(kind, "int32_data"))), _entries(elements, kind), "entries"
    shape = list(tensor.dims)
    require(held == needed, f"{where}: {held} {unit} of data, but {kind} of shape {shape} needs {needed}")


def _entries(elements: int, kind: str) -> int:
    """Elements of a typed field: complex numbers take two, and small integers share one byte each."""
    if kind.startswith("COMPLEX"):
        return 2 * elements
    return -(-elements * BITS[kind] // 8) if BITS[kind] < 8 else elements


def _external(path: Path, where: str, tensor: Any) -> tuple[Path, int, int]:
    """File, offset and length in bytes of external data, all checked: inside the model's folder, no link, large
    enough, and as long as the shape says."""
    entries = {entry.key: _text(path, entry.value, f"{where}: external_data") for entry in tensor.external_data}
    location = entries.get("location", "")
    pure = PurePosixPath(location)
    inside = location and not pure.is_absolute() and ".." not in pure.parts and not set(location) & set("\\:\0")
    rule = f"{where}: location {location!r} must be a relative path inside the model's folder"
    require(bool(inside), rule)
    require(_kind(tensor) in BITS, f"{where}: texts cannot be external data")
    with os_errors(path):
        folder = path.parent.resolve()
        target = folder / pure
    with os_errors(target):
        status = target.lstat()
        linked = target.resolve() != target or status.st_nlink > 1
    require(not linked, f"{where}: {location!r} is a link; put the file itself into the model's folder")
    require(stat.S_ISREG(status.st_mode), f"{where}: {location!r} is no regular file")
    needed = _bytes_of(tensor)
    offset, length = (_number(where, entries, key, default) for key, default in (("offset", 0), ("length", needed)))
    require(length == needed, f"{where}: a length of {length} bytes, but its shape and type need {needed}")
    rule = f"{where}: {location!r} has {status.st_size} bytes; offset {offset} and length {length} go beyond"
    require(offset + length <= status.st_size, rule)
    return target, offset, length


def _number(where: str, entries: Mapping[str, str], key: str, default: int) -> int:
    value = entries.get(key, str(default))
    require(value.isascii() and value.isdigit() and len(value) < 20, f"{where}: {key} {value!r:.40} is no size")
    return int(value)


def _with_data(path: Path, tensor: Any) -> Any:
    """A checked tensor, external data read into it."""
    from onnx import TensorProto

    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    target, offset, length = _external(path, f"{path}: tensor {tensor.name!r}", tensor)
    with os_errors(target):
        handle = os.open(target, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as file:
            file.seek(offset)
            data = file.read(length)
    require(len(data) == length, f"{target}: became shorter while it was read")
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=list(tensor.dims), raw_data=data)


def _nodes(path: Path, model: Any, tensors: Mapping[str, Any]) -> tuple[list[Node], dict[str, Any]]:
    """The nodes in an order in which they can run, without Constants that hold a tensor; and their messages by name.

    InputError for a tensor that two of them or a node and the file make, one that nobody makes, and a cycle.
    """
    inputs = [_text(path, entry.name, "an input's name") for entry in model.graph.input]
    _require_once(path, "input", inputs)
    used: set[str] = set()
    messages = [message for message in model.graph.node if not _stores(message)]
    nodes = [_node(path, message, i, used) for i, message in enumerate(messages)]
    made = _makers(path, nodes, [*inputs, *tensors])
    for node in nodes:
        missing = ", ".join(repr(name) for name in node.given if name not in made)
        rule = f"reads {missing}, which no node, input or initialiser makes"
        require(not missing, f"{path}: node {node.name!r} ({node.kind}) {rule}")
    for entry in model.graph.output:
        name = _text(path, entry.name, "an output's name")
        require(name in made, f"{path}: output {name!r} is made by no node")
    protos = {node.name: message for node, message in zip(nodes, messages, strict=True)}
    return list(sorted_layers(nodes, str(path))), protos


def _makers(path: Path, nodes: Sequence[Node], given: Sequence[str]) -> dict[str, str]:
    """Tensor -> who makes it; InputError where two do, or a node makes nothing."""
    makers = dict.fromkeys(given, "the file as an input or initialiser")
    for node in nodes:
        place = f"{path}: node {node.name!r} ({node.kind})"
        require(any(node.outputs), f"{place} has no output")
        for output in filter(None, node.outputs):
            require(output not in makers, f"{place} makes {output!r} again, after {makers.get(output)}")
            makers[output] = f"node {node.name!r}"
    return makers


def _node(path: Path, proto: Any, index: int, used: set[str]) -> Node:
    op_type = _text(path, proto.op_type, "an operator's name")
    domain = _text(path, proto.domain, "an operator's domain")
    inputs, outputs = (tuple(_text(path, t, "a tensor's name") for t in side) for side in (proto.input, proto.output))
    return Node(
        name=_unique(_text(path, proto.name, "a node's name") or f"{op_type}_{index}", used),
        kind=op_type if domain in ("", "ai.onnx") else f"{domain}.{op_type}",
        inputs=inputs,
        outputs=outputs,
        attributes=_attributes(path, proto),
        nested=any(attribute.HasField("g") or len(attribute.graphs) > 0 for attribute in proto.attribute),
    )


def _unique(name: str, used: set[str]) -> str:
    """The name, with a number behind it where it is taken."""
    number = 1
    unique = name
    while unique in used:
        number += 1
        unique = f"{name}_{number}"
    used.add(unique)
    return unique


def _attributes(path: Path, proto: Any) -> dict[str, int | str | tuple[int, ...]]:
    """Those that are integers or texts."""
    from onnx import AttributeProto

    readers: dict[int, Callable[[Any], Any]] = {
        AttributeProto.INT: lambda a: a.i,
        AttributeProto.INTS: lambda a: tuple(a.ints),
        AttributeProto.STRING: lambda a: a.s.decode(errors="replace"),
    }
    return {
        _text(path, a.name, "an attribute's name"): readers[a.type](a) for a in proto.attribute if a.type in readers
    }


def _skipped(
    path: Path, nodes: Sequence[Node], constants: set[str], tensors: Mapping[str, Any], allowed: bool
) -> dict[str, str]:
    """Nodes without a rule that would run: name -> operator. InputError names them all unless they may be skipped."""
    ranks = {name: len(tensor.dims) for name, tensor in tensors.items()}
    running = [node for node in nodes if not constants.issuperset(filter(None, node.outputs))]
    skipped = {node.name: kind for node in running if (kind := unsupported(node, ranks))}
    first: dict[str, str] = {}
    for name, kind in skipped.items():
        first.setdefault(kind, name)
    counts = Counter(skipped.values())
    shown = ", ".join(f"{kind} ({counts[kind]}, first {name!r})" for kind, name in first.items())
    remedy = "--skip-unsupported takes each as its first input of the same shape, or its output as given"
    require(allowed or not skipped, f"{path}: unsupported operators: {shown}; {remedy}")
    return skipped


def _light(path: Path, model: Any, nodes: Sequence[tuple[Node, Any]], tensors: Mapping[str, Any]) -> Any:
    """The model for shape inference: nodes in order, small tensors with their values, large ones as inputs of their
    shape. A node that onnx does not know, or that holds graphs, is left out; what it makes is an input, too, where
    the file declares its shape."""
    from onnx import ModelProto, OperatorSetIdProto

    opset = _opset(model)
    light = ModelProto(ir_version=max(model.ir_version, 4), opset_import=[OperatorSetIdProto(version=opset)])
    graph = light.graph
    graph.name = "network"
    graph.input.extend(entry for entry in model.graph.input if entry.name not in tensors)
    for name, tensor in tensors.items():
        _declare(path, graph, name, tensor)
    declared = _declared(path, model)
    read = {name for node, _message in nodes if _known(node, opset) for name in node.given}
    for node, message in nodes:
        known = _known(node, opset)
        if known:
            graph.node.append(_standard(node, message))
        else:
            _require_declared(path, node, read, declared)
        shapes = graph.value_info if known else graph.input
        shapes.extend(declared[name] for name in node.outputs if name in declared)
    return light


def _require_declared(path: Path, node: Node, read: set[str], declared: Iterable[str]) -> None:
    missing = ", ".join(repr(name) for name in node.outputs if name in read and name not in declared)
    rule = f"its output {missing} has no shape in the file; declare it in value_info"
    require(not missing, f"{path}: node {node.name!r} ({node.kind}) is not known to onnx and {rule}")


def _known(node: Node, opset: int) -> bool:
    """Whether onnx can infer the shapes of this node's outputs."""
    from onnx import defs

    return node.kind == QGEMM or (not node.nested and "." not in node.kind and defs.has(node.kind, opset, ""))


def _standard(node: Node, message: Any) -> Any:
    """The node in terms of ONNX's own operators."""
    from onnx import NodeProto, helper

    if node.kind == QGEMM:
        transposed = {name: node.size(name, 0) for name in ("transA", "transB")}
        return helper.make_node("Gemm", [node.inputs[0], node.inputs[3]], node.outputs, node.name, **transposed)
    standard = NodeProto()
    standard.CopyFrom(message)
    standard.ClearField("domain")
    standard.name = node.name  # inference names it in its messages
    return standard


def _declared(path: Path, model: Any) -> dict[str, Any]:
    """Tensors for which the file itself gives a shape."""
    entries = (*model.graph.value_info, *model.graph.output)
    return {_text(path, entry.name, "a tensor's name"): entry for entry in entries if _has_shape(entry)}


def _has_shape(entry: Any) -> bool:
    return entry.type.HasField("tensor_type") and entry.type.tensor_type.HasField("shape")


def _declare(path: Path, graph: Any, name: str, tensor: Any) -> None:
    """A stored tensor for shape inference: with its values where it is small and they may be sizes or scales."""
    from onnx import helper

    most = {"INT64": MAX_KEPT, "INT32": MAX_KEPT, "BOOL": MAX_KEPT}.get(_kind(tensor), MAX_SCALES)
    if math.prod(tensor.dims) <= most:
        graph.initializer.append(_with_data(path, tensor))
        graph.initializer[-1].name = name
    else:
        graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


def _fix_inputs(path: Path, light: Any, names: Sequence[str], batch: int | None) -> None:
    """Sets the inputs' first dimensions to `batch`, and whatever has their name elsewhere. InputError for an input
    that is no tensor, and for sizes that are not fixed."""
    inputs = {entry.name: entry for entry in light.graph.input}
    for name in names:
        require(_has_shape(inputs[name]), f"{path}: input {name!r} is no tensor of known shape; declare its shape")
    if batch is not None:
        require(1 <= batch <= LARGEST_SIZE, f"batch: {batch} is not from 1 to {LARGEST_SIZE}")
        _set_batch(path, light, [inputs[name] for name in names], batch)
    for name in names:
        for i, dim in enumerate(_dims(inputs[name])):
            fixed = dim.HasField("dim_value") and 1 <= dim.dim_value <= LARGEST_SIZE
            shown = repr(dim.dim_param) if dim.dim_param else dim.dim_value if dim.HasField("dim_value") else "unknown"
            remedy = "; set it with --batch" if i == 0 else "; fix it with onnx.tools.update_model_dims"
            rule = f"dimension {i} is {shown}, it must be a number from 1 to {LARGEST_SIZE}{remedy}"
            require(fixed, f"{path}: input {name!r}: {rule}")


def _dims(entry: Any) -> Any:
    return entry.type.tensor_type.shape.dim


def _set_batch(path: Path, light: Any, inputs: Sequence[Any], batch: int) -> None:
    first = [_dims(entry)[0] for entry in inputs if len(_dims(entry)) > 0]
    free = [dim for dim in first if dim.dim_value < 1]
    require(len(free) > 0, f"{path}: batch: the first dimension of every input is fixed; leave --batch out")
    names = {dim.dim_param for dim in free} - {""}
    for entry in (*light.graph.input, *light.graph.value_info):
        free.extend(dim for dim in _dims(entry) if dim.dim_param in names)
    for dim in free:
        dim.dim_value = batch


def _infer(path: Path, light: Any) -> dict[str, Shape]:
    """The shape of every tensor of which one can be had. Where sizes are computed by operators that shape inference
    does not follow, these are computed here and their results put into `light`, and inference is run again."""
    from onnx import checker, shape_inference

    try:
        checker.check_model(light)
        for _round in range(MAX_ROUNDS):
            shapes = _shapes(shape_inference.infer_shapes(light, strict_mode=True, data_prop=True))
            if _all_fixed(shapes, light.graph.node) or not _fold(light, shapes):
                break
    except (checker.ValidationError, shape_inference.InferenceError, *FAILURES) as error:
        raise InputError(f"{path}: {_first(str(error))}") from None
    return shapes


def _first(message: str) -> str:
    """The first of the errors that inference lists, in one line."""
    words = " ".join(message.split())
    start = words.find("(op_type:")
    end = words.find("(op_type:", start + 1)
    return words[: end if 0 <= start < end else None][:SHOWN].strip()


def _shapes(inferred: Any) -> dict[str, Shape]:
    """Names that inference itself has given to unknown sizes are left out."""
    graph = inferred.graph
    entries = [entry for entry in (*graph.input, *graph.value_info) if _has_shape(entry)]
    stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return stored | {entry.name: tuple(_size(dim) for dim in _dims(entry)) for entry in entries}


def _size(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return None if dim.dim_param.startswith("unk__") else dim.dim_param or None


def _all_fixed(shapes: Mapping[str, Shape], nodes: Iterable[Any]) -> bool:
    return all(_fixed(shapes, name) for node in nodes for name in node.output)


def _fixed(shapes: Mapping[str, Shape], name: str) -> bool:
    return not name or (name in shapes and all(isinstance(size, int) and size >= 0 for size in shapes[name]))


def _fold(light: Any, shapes: Mapping[str, Shape]) -> bool:
    """Puts initialisers in the place of nodes whose results are few numbers known from the file; whether it did.

    Operators whose results may be larger than their inputs wait until inference has seen the values, and so the size.
    """
    from onnx import numpy_helper

    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in light.graph.initializer}
    seen = set(values)
    kept, folded = [], []
    for node in light.graph.node:
        ready = _may_fold(node, shapes, seen if node.op_type in GROWING else values)
        results = _results(node, values, shapes, light.opset_import[0].version) if ready else None
        if results is None:
            kept.append(node)
        else:
            values |= results
            folded.extend(results)
    del light.graph.node[:]
    light.graph.node.extend(kept)
    light.graph.initializer.extend(numpy_helper.from_array(values[name], name) for name in folded)
    return bool(folded)


def _may_fold(node: Any, shapes: Mapping[str, Shape], values: Iterable[str]) -> bool:
    if node.op_type in SHAPE_ONLY:
        return _fixed(shapes, node.input[0])
    small = all(_fixed(shapes, name) and math.prod(shapes.get(name, ())) <= MAX_KEPT for name in node.output)
    return node.op_type in FOLDED + GROWING and small and all(name in values for name in node.input if name)


def _results(
    node: Any, values: Mapping[str, np.ndarray], shapes: Mapping[str, Shape], opset: int
) -> dict[str, np.ndarray] | None:
    """What the node makes, by the reference implementation of the onnx package; None where that fails, or the result
    is large."""
    from onnx.reference import ReferenceEvaluator

    given = {name: values[name] for name in node.input if name in values}
    if node.op_type in SHAPE_ONLY:
        given = {node.input[0]: np.broadcast_to(np.int8(0), shapes[node.input[0]])}
    try:
        with np.errstate(all="ignore"):
            made = ReferenceEvaluator(node, opsets={"": opset}).run(None, given)
    except FAILURES:
        return None
    arrays = {name: np.asarray(array) for name, array in zip(node.output, made, strict=False) if name}
    small = all(array.size <= MAX_KEPT and array.dtype.kind in "iufb" for array in arrays.values())
    return arrays if small else None


def _add_layers(path: Path, net: Net, nodes: Sequence[Node], skipped: Mapping[str, str], opset: int) -> None:
    for node in nodes:
        if net.constants.issuperset(filter(None, node.outputs)):
            continue
        try:
            if node.name in skipped:
                skip(net, node)
            else:
                add_layer(net, node, opset)
        except InputError as error:
            raise at_node(str(path), node, error) from None
    kinds = Counter(skipped.values())
    net.builder.notes.extend(f"skipped: {count} {kind}" for kind, count in kinds.items())
    net.builder.notes.extend(f"taken for their input: {count} {kind}" for kind, count in net.counts.items())
