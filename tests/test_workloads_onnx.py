"""ONNX files as layer graphs: shapes as the reference implementation makes them, sizes as published, and bad files."""

import math
import random
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import hwsim.workloads.onnx_file as onnx_file
import hwsim.workloads.onnx_layers as onnx_layers
from hwsim.workloads.graph import Attention, Conv, Gemm, Role, Vector
from hwsim.workloads.onnx_file import initialisers, load_onnx
from models.unit import InputError

FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(6)


def weight(name, *shape, dtype=np.float32):
    return numpy_helper.from_array(RNG.integers(-2, 3, shape).astype(dtype), name)


def ints(name, *values):
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def info(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def network(nodes, inputs, outputs, stored=(), opset=21, domains=()):
    """A model; nodes are (op, inputs, outputs, attributes), names separated by spaces, `-` for one left out."""
    made = [
        helper.make_node(op, *([n.replace("-", "") for n in side.split()] for side in (ins, outs)), **attributes)
        for op, ins, outs, attributes in nodes
    ]
    graph = helper.make_graph(made, "net", inputs, [info(name, None) for name in outputs], list(stored))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.fixture
def load(tmp_path):
    def load(model, **options):
        path = tmp_path / "net.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return load_onnx(path, **options)

    return load


def cnn():
    nodes = [
        ("Conv", "x w1 b1", "c1", {"strides": [2, 1], "pads": [1, 2, 0, 1]}),
        ("BatchNormalization", "c1 g b m v", "n1", {}),
        ("Relu", "n1", "r1", {}),
        ("Conv", "r1 w2", "c2", {"group": 4, "auto_pad": "SAME_UPPER", "dilations": [2, 1]}),
        ("Add", "c2 r1", "a2", {}),
        ("MaxPool", "a2", "p2", {"kernel_shape": [3, 2], "strides": [2, 2]}),
        ("Conv", "p2 w3", "c3", {}),
        ("Clip", "c3 low high", "r3", {}),
        ("GlobalAveragePool", "r3", "p3", {}),
        ("Flatten", "p3", "f", {}),
        ("Gemm", "f w4 b4", "y", {"transB": 1, "alpha": 0.5}),
        ("Softmax", "y", "z", {}),
    ]
    stored = [weight("w1", 8, 3, 3, 5), weight("b1", 8), weight("w2", 8, 2, 3, 3), weight("w3", 6, 8, 1, 1)]
    stored += [weight("g", 8), weight("b", 8), weight("m", 8), numpy_helper.from_array(np.ones(8, np.float32), "v")]
    stored += [weight("w4", 10, 6), weight("b4", 10)]
    stored += [numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0), ("high", 6))]
    return network(nodes, [info("x", [2, 3, 17, 12])], ["z"], stored)


def mlp():
    nodes = [
        ("Transpose", "w1", "w1t", {}),
        ("MatMul", "x w1t", "h", {}),
        ("Add", "h b1", "hb", {}),
        ("Erf", "hb", "e", {}),
        ("Mul", "hb e", "g", {}),
        ("MatMul", "g w2", "y", {}),
    ]
    stored = [weight("w1", 24, 16), weight("b1", 24), weight("w2", 24, 5)]
    return network(nodes, [info("x", [2, 7, 16])], ["y"], stored)


def transformer():
    """A block whose head shape is computed at run time, by operators that shape inference does not follow."""
    nodes = [
        ("LayerNormalization", "x g b", "n", {"axis": -1}),
        ("Shape", "n", "s", {"start": 0, "end": 2}),
        ("Div", "width heads", "size", {}),
        ("Concat", "s heads size", "split", {"axis": 0}),
        *(("MatMul", f"n w{c}", c, {}) for c in "qkv"),
        *(("Reshape", f"{c} split", f"{c}4", {}) for c in "qkv"),
        ("Transpose", "q4", "qt", {"perm": [0, 2, 1, 3]}),
        ("Transpose", "k4", "kt", {"perm": [0, 2, 3, 1]}),
        ("Transpose", "v4", "vt", {"perm": [0, 2, 1, 3]}),
        ("MatMul", "qt kt", "scores", {}),
        ("Mul", "scores scale", "scaled", {}),
        ("Softmax", "scaled", "p", {"axis": -1}),
        ("MatMul", "p vt", "c4", {}),
        ("Transpose", "c4", "ct", {"perm": [0, 2, 1, 3]}),
        ("Reshape", "ct flat", "c", {}),
        ("MatMul", "c wo", "o", {}),
        ("Add", "o x", "y", {}),
    ]
    stored = [weight(f"w{c}", 24, 24) for c in "qkvo"] + [weight("g", 24), weight("b", 24)]
    stored += [ints("width", 24), ints("heads", 4), ints("flat", 0, 0, -1)]
    stored += [numpy_helper.from_array(np.float32(0.5), "scale")]
    return network(nodes, [info("x", [2, 5, 24])], ["y"], stored)


def attention():
    nodes = [
        ("Attention", "q k v - pk pv", "y nk nv", {"q_num_heads": 8, "kv_num_heads": 2}),
        ("RMSNormalization", "y g", "z", {}),
        ("Swish", "z", "u", {}),
    ]
    sizes = {"q": [2, 3, 64], "k": [2, 3, 16], "v": [2, 3, 20], "pk": [2, 2, 9, 8], "pv": [2, 2, 9, 10]}
    inputs = [info(name, shape) for name, shape in sizes.items()]
    return network(nodes, inputs, ["u", "nk", "nv"], [weight("g", 80)], opset=24)


NETWORKS = {"cnn": cnn, "mlp": mlp, "transformer": transformer, "attention": attention}


def reference(model):
    """Every tensor of a run of the reference implementation, by name."""
    run = onnx.ModelProto()
    run.CopyFrom(model)
    del run.graph.output[:]
    run.graph.output.extend(info(name, None) for node in run.graph.node for name in node.output if name)
    sizes = {entry.name: [d.dim_value for d in entry.type.tensor_type.shape.dim] for entry in run.graph.input}
    feeds = {name: np.ones(shape, np.float32) for name, shape in sizes.items()}
    made = ReferenceEvaluator(run).run(None, feeds)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in run.graph.initializer}
    names = [entry.name for entry in run.graph.output]
    return feeds | stored | {name: np.asarray(array) for name, array in zip(names, made, strict=True)}


def macs_of(node, arrays):
    """From the arrays of a run: elements of the output times products for each."""
    if node.op_type == "Conv":
        return arrays[node.output[0]].size * arrays[node.input[1]][0].size
    if node.op_type == "MatMul":
        return arrays[node.output[0]].size * arrays[node.input[0]].shape[-1]
    if node.op_type == "Gemm":
        return arrays[node.output[0]].size * arrays[node.input[0]].shape[1]
    return 0


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_every_tensor_has_the_shape_that_the_reference_makes(load, build):
    model = build()
    arrays = reference(model)
    graph = load(model)
    for tensor in graph.tensors.values():
        assert tensor.shape == arrays[tensor.name].shape, tensor.name
    stored = {tensor.name for tensor in model.graph.initializer} | {"w1t"}
    weights = {name for name, tensor in graph.tensors.items() if tensor.role is Role.WEIGHT}
    assert weights <= stored


@pytest.mark.parametrize("build", [cnn, mlp, transformer])
def test_macs_are_those_of_the_arrays_of_a_run(load, build):
    model = build()
    arrays = reference(model)
    expected = {node.output[0]: macs_of(node, arrays) for node in model.graph.node if macs_of(node, arrays)}
    assert {layer.outputs[0]: layer.macs for layer in load(model).layers if layer.macs} == expected


def kinds(graph):
    return [layer.op.kind if isinstance(layer.op, Vector) else type(layer.op).__name__ for layer in graph.layers]


def test_layers_of_a_cnn(load):
    graph = load(cnn())
    assert kinds(graph) == (
        ["Conv", "batchnorm", "relu", "Conv", "add", "maxpool", "Conv", "clip", "avgpool", "Gemm", "softmax"]
    )
    first, second = (layer.op for layer in graph.layers if isinstance(layer.op, Conv) and layer.op.kernel != (1, 1))
    assert first.padding == (1, 2, 0, 1)
    assert first.stride == (2, 1)
    assert second.padding == (2, 1, 2, 1)
    assert second.groups == 4
    classify = next(layer for layer in graph.layers if isinstance(layer.op, Gemm))
    assert classify.inputs == ("p3", "w4", "b4")  # Flatten moves nothing
    assert graph.layers[0].inputs == ("x", "w1", "b1")
    assert graph.name == "net"
    assert graph.source == "net.onnx, ONNX opset 21"


def test_row_work_counts_the_elements_that_it_reads(load):
    ops = {layer.outputs[0]: layer.op for layer in load(cnn()).layers}
    arrays = reference(cnn())
    assert ops["p2"].rows * ops["p2"].channels == arrays["p2"].size * 6
    assert ops["p3"].rows * ops["p3"].channels == arrays["r3"].size
    assert (ops["z"].rows, ops["z"].channels) == (2, 10)


def test_products_of_a_transformer(load):
    graph = load(transformer())
    ops = {layer.outputs[0]: layer.op for layer in graph.layers}
    assert ops["q"] == Gemm(M=10, K=24, N=24)
    assert ops["scores"] == Gemm(M=5, K=6, N=5, batch=8)
    assert ops["c4"] == Gemm(M=5, K=5, N=6, batch=8)
    assert (ops["n"].rows, ops["n"].channels) == (10, 24)
    assert "s" not in graph.tensors
    assert "split" not in graph.tensors


def test_attention_with_a_cache(load):
    graph = load(attention())
    layer = graph.layers[0]
    assert layer.op == Attention(batch=2, heads=8, kv_heads=2, queries=3, keys=12, head_dim=8, value_dim=10)
    assert layer.inputs == ("q", "k", "v", "pk", "pv")
    assert {name for name, t in graph.tensors.items() if t.role is Role.CACHE} == {"pk", "pv", "nk", "nv"}
    assert kinds(graph) == ["Attention", "rmsnorm", "silu"]


CONVOLUTIONS = [
    {},
    {"strides": [3, 2]},
    {"pads": [0, 3, 2, 1]},
    {"dilations": [2, 3], "pads": [1, 1, 1, 1]},
    *({"auto_pad": mode, "strides": [2, 3]} for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")),
    {"auto_pad": "SAME_LOWER", "dilations": [2, 1]},
]


@pytest.mark.parametrize("attributes", CONVOLUTIONS)
def test_convolutions_of_all_forms(load, attributes):
    model = network([("Conv", "x w", "y", attributes)], [info("x", [2, 4, 13, 11])], ["y"], [weight("w", 6, 4, 3, 4)])
    layer = load(model).layers[0]
    top, left, bottom, right = layer.op.padding
    assert layer.op.output == load(model).tensors["y"].shape[2:]
    if attributes.get("auto_pad", "VALID") == "VALID":
        assert reference(model)["y"].shape[2:] == layer.op.output
    else:  # the rule of the standard: the odd zero at the end for SAME_UPPER
        upper = attributes["auto_pad"] == "SAME_UPPER"
        assert all(a <= b <= a + 1 if upper else b <= a <= b + 1 for a, b in ((top, bottom), (left, right)))
        assert layer.op.output == tuple(-(-n // s) for n, s in zip((13, 11), layer.op.stride, strict=True))


def test_a_convolution_of_one_dimension_has_a_height_of_1(load):
    nodes = [("Conv", "x w", "y", {"pads": [2, 1], "strides": [2], "group": 2})]
    model = network(nodes, [info("x", [2, 4, 13])], ["y"], [weight("w", 6, 2, 5)])
    op = load(model).layers[0].op
    assert (op.kernel, op.stride, op.padding, op.height, op.width) == ((1, 5), (1, 2), (0, 2, 0, 1), 1, 13)
    assert op.output == (1, reference(model)["y"].shape[2])
    assert op.macs == macs_of(model.graph.node[0], reference(model))


def test_forgotten_padding_is_found(load, monkeypatch):
    monkeypatch.setattr(onnx_layers, "_pads", lambda *_: (0, 0, 0, 0))
    with pytest.raises(InputError, match=r"node 'Conv_0' \(Conv\): the output is .* but the file says"):
        load(cnn())


PRODUCTS = [
    ((7, 5), (5, 3), Gemm(M=7, K=5, N=3)),
    ((2, 4, 7, 5), (5, 3), Gemm(M=56, K=5, N=3)),
    ((2, 4, 7, 5), (2, 1, 5, 3), Gemm(M=28, K=5, N=3, batch=2)),
    ((2, 4, 7, 5), (4, 5, 3), Gemm(M=7, K=5, N=3, batch=8)),
    ((7, 5), (4, 5, 3), Gemm(M=7, K=5, N=3, batch=4)),
    ((5,), (5, 3), Gemm(M=1, K=5, N=3)),
    ((2, 7, 5), (5,), Gemm(M=14, K=5, N=1)),
    ((1, 6, 7, 5), (2, 1, 5, 3), Gemm(M=42, K=5, N=3, batch=2)),
]


@pytest.mark.parametrize("left, right, expected", PRODUCTS)
def test_products_of_all_ranks(load, left, right, expected):
    model = network([("MatMul", "x y", "z", {})], [info("x", left), info("y", right)], ["z"])
    assert load(model).layers[0].op == expected
    assert expected.macs == macs_of(model.graph.node[0], reference(model))


def test_transposed_operands_of_gemm(load):
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        sizes = [info("x", [7, 5][:: 1 - 2 * a]), info("w", [5, 3][:: 1 - 2 * b])]
        model = network([("Gemm", "x w", "y", {"transA": a, "transB": b})], sizes, ["y"])
        assert load(model).layers[0].op == Gemm(M=7, K=5, N=3)
        assert reference(model)["y"].shape == (7, 3)


def test_quantized_operators_are_convolutions_and_products(load):
    nodes = [
        ("QuantizeLinear", "x s z", "xq", {}),
        ("QLinearConv", "xq s z w s z s z b", "c", {"pads": [1, 1, 1, 1]}),
        ("Reshape", "c to", "r", {}),
        ("MatMulInteger", "r v", "m", {}),
        ("QLinearMatMul", "r s z v s z s z", "q", {}),
        ("ConvInteger", "xq w", "i", {}),
        ("DequantizeLinear", "q s z", "y", {}),
    ]
    stored = [weight("w", 6, 3, 3, 3, dtype=np.int8), weight("v", 6, 4, dtype=np.int8), ints("to", -1, 6)]
    stored += [numpy_helper.from_array(np.float32(0.5), "s"), numpy_helper.from_array(np.int8(0), "z")]
    stored += [weight("b", 6, dtype=np.int32)]
    nodes.append(("QGemm", "r s z vt s z - s z", "g", {"domain": "com.microsoft", "transB": 1}))
    stored.append(weight("vt", 4, 6, dtype=np.int8))
    graph = load(network(nodes, [info("x", [1, 3, 5, 5])], ["y"], stored, domains=["com.microsoft"]))
    ops = {layer.outputs[0]: layer for layer in graph.layers}
    assert ops["c"].inputs == ("x", "w", "b")
    assert ops["c"].macs == 25 * 6 * 27
    assert ops["i"].macs == 9 * 6 * 27
    assert {ops[name].op for name in "mqg"} == {Gemm(M=25, K=6, N=4)}
    assert ops["g"].inputs == ("c", "vt")
    assert graph.notes == ("taken for their input: 1 QuantizeLinear", "taken for their input: 1 DequantizeLinear")


def test_moves_cost_where_data_move_and_nothing_on_constants(load):
    nodes = [
        ("Transpose", "w", "wt", {}),
        ("Concat", "wt wt", "ww", {"axis": 0}),
        ("MatMul", "x ww", "y", {}),
        ("Transpose", "y", "t1", {"perm": [1, 0]}),
        ("Unsqueeze", "t1 zero", "u", {}),
        ("Transpose", "u", "t2", {"perm": [1, 0, 2]}),
        ("Split", "t2 halves", "a b", {"axis": 2}),
        ("Expand", "a same", "e", {}),
        ("Gather", "table ids", "g", {}),
    ]
    stored = [weight("w", 3, 5), ints("zero", 0), ints("halves", 2, 5), ints("same", 1, 1, 1), weight("table", 90, 4)]
    inputs = [info("x", [7, 10]), info("ids", [6], TensorProto.INT64)]
    graph = load(network(nodes, inputs, ["e", "b", "g"], stored))
    assert [(layer.name, layer.inputs, layer.outputs) for layer in graph.layers] == [
        ("MatMul_2", ("x", "ww"), ("y",)),
        ("Transpose_3", ("y",), ("t1",)),
        ("Split_6", ("t1",), ("a", "b")),
        ("Gather_8", ("Gather_8.gathered", "ids"), ("g",)),
    ]
    assert graph.layers[1].op == Vector(kind="copy", rows=3, channels=7)
    assert graph.tensors["ww"].role is Role.WEIGHT
    assert graph.tensors["Gather_8.gathered"].shape == (6, 4)
    assert graph.notes == ("Gather_8: of the table 'table' only the gathered elements are read",)


def test_a_size_from_a_range_and_an_expansion_is_computed(load, monkeypatch):
    nodes = [
        ("Shape", "x", "s", {}),
        ("Gather", "s one", "n", {}),
        ("Range", "zero n step", "r", {}),
        ("ReduceMax", "r", "top", {"keepdims": 0}),
        ("Mul", "top two", "wide", {}),
        ("Unsqueeze", "wide first", "w1", {}),
        ("Expand", "row w1", "e", {}),
        ("Concat", "e rest", "to", {"axis": 0}),
        ("Reshape", "x to", "y", {}),
        ("Relu", "y", "z", {}),
    ]
    scalars = {"one": 1, "zero": 0, "step": 1, "two": 2}
    stored = [numpy_helper.from_array(np.int64(value), name) for name, value in scalars.items()]
    stored += [ints("first", 0), ints("row", 3), ints("rest", -1)]
    model = network(nodes, [info("x", [3, 2, 3])], ["z"], stored)
    assert load(model).tensors["z"].shape == (3, 3, 2)
    monkeypatch.setattr(onnx_file, "_fold", lambda *_: False)
    with pytest.raises(InputError, match=r"node 'Reshape_8' \(Reshape\): tensor 'y' has no shape"):
        load(model)


def resnet50(stride_in_3x3):
    """Stages of 3, 4, 6 and 3 bottlenecks, batch normalization behind every convolution; all weights zero."""
    nodes, stored = [], []

    def zeros(name, *shape):
        data = bytes(4 * math.prod(shape))
        stored.append(TensorProto(name=name, dims=shape, data_type=FLOAT, raw_data=data))
        return name

    def conv(name, x, inside, outside, kernel, stride, relu=True):
        pad = kernel // 2
        filters = zeros(f"{name}.w", outside, inside, kernel, kernel)
        nodes.append(("Conv", f"{x} {filters}", f"{name}.c", {"strides": [stride] * 2, "pads": [pad] * 4}))
        parts = " ".join(zeros(f"{name}.{part}", outside) for part in "gbmv")
        nodes.append(("BatchNormalization", f"{name}.c {parts}", f"{name}.n", {}))
        if relu:
            nodes.append(("Relu", f"{name}.n", f"{name}.r", {}))
        return f"{name}.r" if relu else f"{name}.n"

    def bottleneck(name, x, inside, width, stride):
        early, late = (1, stride) if stride_in_3x3 else (stride, 1)
        y = conv(f"{name}.1", x, inside, width, 1, early)
        y = conv(f"{name}.2", y, width, width, 3, late)
        y = conv(f"{name}.3", y, width, 4 * width, 1, 1, relu=False)
        short = x if inside == 4 * width else conv(f"{name}.0", x, inside, 4 * width, 1, stride, relu=False)
        nodes.append(("Add", f"{y} {short}", f"{name}.a", {}))
        nodes.append(("Relu", f"{name}.a", f"{name}.o", {}))
        return f"{name}.o"

    x = conv("stem", "x", 3, 64, 7, 2)
    nodes.append(("MaxPool", x, "pool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}))
    x, inside = "pool", 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for block in range(blocks):
            x = bottleneck(f"s{stage}.{block}", x, inside, width, 2 if stage and not block else 1)
            inside = 4 * width
    nodes.append(("GlobalAveragePool", x, "mean", {}))
    nodes.append(("Flatten", "mean", "flat", {}))
    nodes.append(("Gemm", f"flat {zeros('fc.w', 1000, 2048)} {zeros('fc.b', 1000)}", "y", {"transB": 1}))
    return network(nodes, [info("x", ["N", 3, 224, 224])], ["y"], stored)


def published_macs(stride_in_3x3):
    """From the table of output sizes 112, 56, 28, 14, 7 and widths of He et al. 2015, Table 1, column of 50 layers."""
    macs = 112**2 * 64 * 3 * 49 + 2048 * 1000
    inside = 64
    for size, blocks, width in ((56, 3, 64), (28, 4, 128), (14, 6, 256), (7, 3, 512)):
        before = size * (2 if width > 64 and stride_in_3x3 else 1)  # of the first block's first 1x1
        macs += before**2 * inside * width + size**2 * (9 * width**2 + width * 4 * width)
        macs += size**2 * inside * 4 * width  # the projection
        macs += (blocks - 1) * size**2 * (2 * 4 * width * width + 9 * width**2)
        inside = 4 * width
    return macs


@pytest.mark.parametrize("stride_in_3x3, billions", [(False, 3.86), (True, 4.09)])
def test_resnet50_has_the_published_size(load, stride_in_3x3, billions):
    graph = load(resnet50(stride_in_3x3), batch=1)
    assert graph.macs == published_macs(stride_in_3x3)
    assert round(graph.macs / 1e9, 2) == billions
    assert sum(isinstance(layer.op, Conv) for layer in graph.layers) == 53
    # 25,557,032 trained parameters, and the means and variances of 26,560 channels
    assert graph.elements(Role.WEIGHT) == 25_557_032 + 2 * 26_560


PUBLISHED = {"resnet50": 4.09, "vgg19": 19.63, "squeezenet": 0.35, "densenet121": 2.83}
"""billions of multiply-accumulates, torchvision's documentation of its models; SqueezeNet is 1.1"""


@pytest.mark.parametrize("name, billions", PUBLISHED.items())
def test_published_networks_in_the_onnx_package(name, billions):
    data = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    assert round(load_onnx(data / f"light_{name}.onnx").macs / 1e9, 2) == billions


def test_a_batch_reaches_every_tensor_and_values_stay(load):
    model = resnet50_like()
    small, large = load(model, batch=1), load(model, batch=6)
    assert large.macs == 6 * small.macs
    assert {t.shape[0] for t in large.tensors.values() if t.role is Role.ACTIVATION} == {6}


def resnet50_like():
    nodes = [("Conv", "x w", "c", {}), ("Relu", "c", "r", {}), ("Add", "r z", "y", {})]
    inputs = [info("x", ["batch", 3, 8, 8]), info("z", ["batch", 4, 6, 6])]
    model = network(nodes, inputs, ["y"], [weight("w", 4, 3, 3, 3)])
    model.graph.value_info.append(info("c", ["batch", 4, 6, 6]))
    return model


def test_nodes_in_any_order(load):
    model = cnn()
    nodes = list(model.graph.node)
    random.Random(3).shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    ordered, mixed = load(cnn()), load(model)
    assert {layer.outputs: layer.op for layer in mixed.layers} == {layer.outputs: layer.op for layer in ordered.layers}


def test_names_of_layers_are_unique(load):
    model = network([("Relu", "x", "a", {}), ("Relu", "a", "b", {}), ("Relu", "b", "c", {})], [info("x", [2])], ["c"])
    for node in model.graph.node[:2]:
        node.name = "same"
    assert [layer.name for layer in load(model).layers] == ["same", "same_2", "Relu_2"]


def with_unsupported():
    nodes = [
        ("Relu", "x", "a", {}),
        ("TopK", "a k", "top at", {}),
        ("Det", "m", "d", {}),
        ("MyOp", "a", "b", {"domain": "my.ops", "name": "first"}),
        ("MyOp", "b", "c", {"domain": "my.ops"}),
        ("Mul", "c a", "y", {}),
        ("Exp", "d", "z", {}),
        ("Exp", "top", "w", {}),
    ]
    inputs = [info("x", [4, 6]), info("m", [3, 2, 2])]
    model = network(nodes, inputs, ["y", "z", "w"], [ints("k", 2)], domains=["my.ops"])
    model.graph.value_info.extend([info("b", [4, 6]), info("c", [4, 6])])
    return model


def test_unsupported_operators_are_named_all_at_once(load):
    rule = r"TopK \(1, first 'TopK_1'\), Det \(1, first 'Det_2'\), my.ops.MyOp \(2, first 'first'\); --skip-unsupported"
    with pytest.raises(InputError, match=rule):
        load(with_unsupported())


def test_skipped_operators_are_their_inputs_or_given(load):
    graph = load(with_unsupported(), skip_unsupported=True)
    assert [(layer.name, layer.inputs) for layer in graph.layers] == [
        ("Relu_0", ("x",)),
        ("Mul_5", ("a",)),  # b and c are a
        ("Exp_6", ("d",)),
        ("Exp_7", ("top",)),
    ]
    assert "d" not in graph.producers
    assert graph.tensors["top"].shape == (4, 2)
    assert graph.notes == ("skipped: 1 TopK", "skipped: 1 Det", "skipped: 2 my.ops.MyOp")


FORMS = {
    "Conv of 3 dimensions": ("Conv", "x3 w3", {}),
    "BatchNormalization in training": ("BatchNormalization", "x4 v v v v", {"training_mode": 1}),
    "Resize that interpolates": ("Resize", "x4 - s4", {"mode": "linear"}),
    "ConvTranspose": ("ConvTranspose", "x4 w4", {}),
    "RandomNormal": ("RandomNormal", "", {"shape": [2]}),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_without_a_rule_are_named(load, form):
    op, names, attributes = FORMS[form]
    outputs = "y m v2" if "training" in form else "y"
    stored = [weight("w3", 2, 3, 2, 2, 2), weight("w4", 3, 2, 2, 2), weight("v", 3)]
    stored.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s4"))
    inputs = [info("x3", [1, 3, 4, 4, 4]), info("x4", [1, 3, 4, 4])]
    nodes = [(op, names, outputs, attributes), ("Relu", "x4", "r", {})]
    with pytest.raises(InputError, match=rf"net.onnx: unsupported operators: {form} \(1, first '{op}_0'\)"):
        load(network(nodes, inputs, ["y", "r"], stored))


def test_a_node_with_a_graph_inside_is_unsupported(load):
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["i"])], "inner", [], [info("i", [4])])
    model = network([("If", "c", "y", {"then_branch": inner, "else_branch": inner}), ("Relu", "y", "z", {})],
                    [info("x", [4]), info("c", [], TensorProto.BOOL)], ["z"])  # fmt: skip
    with pytest.raises(InputError, match=r"unsupported operators: If \(1, first 'If_0'\)"):
        load(model)
    with pytest.raises(InputError, match=r"'If_0' \(If\) is not known to onnx and its output 'y' has no shape"):
        load(model, skip_unsupported=True)
    model.graph.value_info.append(info("y", [4]))
    assert load(model, skip_unsupported=True).layers[0].inputs == ("y",)


def edited(edit):
    model = cnn()
    edit(model)
    return model


def ring(model):
    model.graph.node[2].input[0] = "a2"


def free(entry, *dims):
    sizes = entry.type.tensor_type.shape.dim
    for i, name in dims:
        sizes[i].Clear()
        if name:
            sizes[i].dim_param = name


def claim(tensor, *dims):
    tensor.dims[:] = dims


BAD = {
    "empty": (lambda: b"", "is no ONNX file: it has no ir_version"),
    "garbage": (lambda: b"PK\x03\x04 no model", "is no ONNX file: not a protobuf message"),
    "cut off": (lambda: cnn().SerializeToString()[:-40], "not a protobuf message of a model, or cut off"),
    "no opset": (lambda: edited(lambda m: m.ClearField("opset_import")), "names no opset of ONNX's operators"),
    "new opset": (lambda: edited(lambda m: setattr(m.opset_import[0], "version", 999)), "opset 999; the installed"),
    "new ir": (lambda: edited(lambda m: setattr(m, "ir_version", 99)), "ir_version 99; the installed onnx"),
    "no nodes": (lambda: edited(lambda m: m.graph.ClearField("node")), "a network without nodes"),
    "cycle": (lambda: edited(ring), "a cycle through 'Relu_2', 'Conv_3', 'Add_4'"),
    "no maker": (
        lambda: edited(lambda m: m.graph.node[0].input.__setitem__(1, "w9")),
        r"node 'Conv_0' \(Conv\) reads 'w9', which no node, input or initialiser makes",
    ),
    "two makers": (
        lambda: edited(lambda m: m.graph.node[3].output.__setitem__(0, "c1")),
        r"node 'Conv_3' \(Conv\) makes 'c1' again, after node 'Conv_0'",
    ),
    "made and stored": (
        lambda: edited(lambda m: m.graph.node[3].output.__setitem__(0, "w1")),
        r"makes 'w1' again, after the file as an input or initialiser",
    ),
    "stored twice": (lambda: edited(lambda m: m.graph.initializer.append(weight("w1", 2))), "'w1' stands twice"),
    "input twice": (lambda: edited(lambda m: m.graph.input.append(info("x", [1]))), "input 'x' stands twice"),
    "output of nobody": (lambda: edited(lambda m: setattr(m.graph.output[0], "name", "q")), "output 'q' is made by no"),
    "free batch": (
        lambda: edited(lambda m: free(m.graph.input[0], (0, "N"))),
        "input 'x': dimension 0 is 'N', it must be a number from 1 to 2147483648; set it with --batch",
    ),
    "free height": (
        lambda: edited(lambda m: free(m.graph.input[0], (2, ""))),
        "input 'x': dimension 2 is unknown, .*; fix it with onnx.tools.update_model_dims",
    ),
    "no shape": (
        lambda: edited(lambda m: m.graph.input[0].type.tensor_type.ClearField("shape")),
        "input 'x' is no tensor of known shape",
    ),
    "no type": (lambda: edited(lambda m: m.graph.input[0].ClearField("type")), "input 'x' is no tensor of known"),
    "huge input": (
        lambda: edited(lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[3], "dim_value", 1 << 40)),
        "input 'x': dimension 3 is 1099511627776",
    ),
    "huge weight": (
        lambda: edited(lambda m: claim(m.graph.initializer[0], 1 << 31, 1 << 31)),
        "initialiser 'w1': 4611686018427387904 elements; 1099511627776 at most",
    ),
    "claimed weight": (
        lambda: edited(lambda m: claim(m.graph.initializer[0], 1 << 30)),
        r"initialiser 'w1': 1440 bytes of data, but FLOAT of shape \[1073741824\] needs 4294967296",
    ),
    "negative size": (lambda: edited(lambda m: claim(m.graph.initializer[0], -8)), r"sizes must be from 0 to .*\[-8\]"),
    "many dimensions": (
        lambda: edited(lambda m: claim(m.graph.initializer[0], *[1] * 40)),
        "initialiser 'w1': 40 dimensions; 32 at most",
    ),
    "unknown type": (
        lambda: edited(lambda m: setattr(m.graph.initializer[0], "data_type", 77)),
        "initialiser 'w1': elements of type 77; known are FLOAT",
    ),
    "other channels": (
        lambda: edited(lambda m: claim(m.graph.initializer[0], 8, 5, 3, 3)),
        r"node 'Conv_0' \(Conv\): 3 channels in 1 groups do not suit filters of 5 channels",
    ),
    "no such attribute": (
        lambda: edited(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("colour", 3))),
        "Unrecognized attribute: colour for operator Conv",
    ),
    "missing operand": (lambda: edited(lambda m: m.graph.node[2].input.pop()), "input size 0 not in range"),
    "shapes that do not fit": (
        lambda: edited(lambda m: m.graph.node[4].input.__setitem__(1, "x")),
        r"\(op_type:Add, node name: Add_4\): .*Incompatible dimensions",
    ),
    "a name that is no text": (
        lambda: cnn().SerializeToString().replace(b"\x02c1", b"\x02\xff1"),
        r"a tensor's name is no UTF-8: b'\\xff1'",
    ),
    "sparse": (
        lambda: edited(lambda m: m.graph.sparse_initializer.add(dims=[3])),
        "sparse initialisers are not supported; store them as plain ones",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(load, case):
    build, rule = BAD[case]
    with pytest.raises(InputError, match=rf"^[^\n]*net\.onnx: [^\n]*{rule}[^\n]*$"):
        load(build())


def test_a_size_that_only_data_decide_is_named(load):
    nodes = [("Reshape", "x to", "y", {}), ("Relu", "y", "z", {})]
    inputs = [info("x", [4, 6]), info("to", [2], TensorProto.INT64)]
    with pytest.raises(InputError, match=r"node 'Reshape_0' \(Reshape\): tensor 'y': dimension 0 is unknown"):
        load(network(nodes, inputs, ["z"]))


def test_caps_are_named_constants(load, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_NODES", 3)
    with pytest.raises(InputError, match="12 nodes; 3 at most"):
        load(cnn())
    monkeypatch.setattr(onnx_file, "MAX_FILE_BYTES", 99)
    with pytest.raises(InputError, match="bytes; 99 at most"):
        load(cnn())


def test_graphs_inside_graphs_have_an_end(load):
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["i"])], "inner", [], [info("i", [4])])
    for _ in range(onnx_file.MAX_DEPTH + 1):
        node = helper.make_node("If", ["c"], ["i"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], "inner", [], [info("i", [4])])
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(InputError, match="graphs inside graphs deeper than 8"):
        load(model)


def test_a_batch_that_is_fixed_or_no_size_is_refused(load):
    with pytest.raises(InputError, match="the first dimension of every input is fixed; leave --batch out"):
        load(cnn(), batch=4)
    with pytest.raises(InputError, match="batch: 0 is not from 1"):
        load(resnet50_like(), batch=0)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_onnx(tmp_path / "no.onnx")
    with pytest.raises(InputError, match="is a folder; name a file"):
        load_onnx(tmp_path)


VALUES = {
    "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.arange(6, dtype=np.float16),
    "brain": np.arange(5).astype(ml_dtypes.bfloat16),
    "nibbles": np.array([1, -2, 3], dtype=ml_dtypes.int4),
    "small": np.array([[1, -2], [3, 4]], dtype=np.int8),
}


def test_initialisers_are_those_that_were_stored(tmp_path):
    path = tmp_path / "net.onnx"
    stored = [numpy_helper.from_array(array, name) for name, array in VALUES.items()]
    stored.append(helper.make_tensor("typed", TensorProto.FLOAT16, [3], [0.5, 1.5, -2.0]))
    model = network([("Constant", "", "k", {"value": weight("inner", 3)}), ("Relu", "x", "y", {})],
                    [info("x", [2])], ["y"], stored)  # fmt: skip
    path.write_bytes(model.SerializeToString())
    read = initialisers(path, [*VALUES, "typed", "k"])
    for name, array in VALUES.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name].astype(np.float64), array.astype(np.float64))
    assert read["typed"].tolist() == [0.5, 1.5, -2.0]
    assert read["k"].shape == (3,)
    with pytest.raises(InputError, match=r"stores no tensor 'plaim'; did you mean 'plain'\?"):
        initialisers(path, ["plaim"])


@pytest.fixture
def outside(tmp_path):
    """A model with one weight in another file, and what says where."""
    folder = tmp_path / "model"
    folder.mkdir()
    model = mlp()
    data = model.graph.initializer[0].raw_data
    (folder / "weights.bin").write_bytes(bytes(64) + data)
    tensor = model.graph.initializer[0]
    expected = numpy_helper.to_array(tensor).copy()
    onnx.external_data_helper.set_external_data(tensor, "weights.bin", 64, len(data))
    tensor.ClearField("raw_data")

    def write(**changes):
        for entry in tensor.external_data:
            entry.value = str(changes.get(entry.key, entry.value))
        (folder / "net.onnx").write_bytes(model.SerializeToString())
        return folder / "net.onnx"

    return write, expected


def test_external_data_are_read_only_when_allowed(outside):
    write, expected = outside
    path = write()
    for refused in (lambda: load_onnx(path), lambda: initialisers(path, ["w2"])):
        with pytest.raises(InputError, match="'w1': its data are in another file; give --allow-external"):
            refused()
    np.testing.assert_array_equal(initialisers(path, ["w1"], allow_external=True)["w1"], expected)
    assert load_onnx(path, allow_external=True).macs == 14 * 24 * (16 + 5)


ELSEWHERE = [
    ({"location": "../weights.bin"}, "must be a relative path inside the model's folder"),
    ({"location": "/etc/hostname"}, "must be a relative path inside the model's folder"),
    ({"location": ""}, "must be a relative path inside the model's folder"),
    ({"location": "link.bin"}, "'link.bin' is a link"),
    ({"location": "hard.bin"}, "'hard.bin' is a link"),
    ({"location": "linked/weights.bin"}, "'linked/weights.bin' is a link"),
    ({"location": "folder"}, "'folder' is .*"),
    ({"location": "missing.bin"}, "missing.bin: No such file"),
    ({"offset": 65}, "has 1600 bytes; offset 65 and length 1536 go beyond"),
    ({"offset": -1}, "offset '-1' is no size"),
    ({"length": 1535}, "a length of 1535 bytes, but its shape and type need 1536"),
]


@pytest.mark.parametrize("change, rule", ELSEWHERE)
def test_external_data_stay_inside_the_folder(outside, change, rule):
    write, _expected = outside
    path = write(**change)
    folder = path.parent
    (folder.parent / "weights.bin").write_bytes(bytes(1600))
    (folder / "link.bin").symlink_to(folder.parent / "weights.bin")
    (folder / "hard.bin").hardlink_to(folder.parent / "weights.bin")
    (folder / "linked").symlink_to(folder.parent)
    (folder / "folder").mkdir()
    with pytest.raises(InputError, match=rule):
        load_onnx(path, allow_external=True)
    with pytest.raises(InputError, match=rule):
        initialisers(path, ["w1"], allow_external=True)


def damaged(content, rng):
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data))
        damage = rng.randrange(3)
        if damage == 0:
            data[at] = rng.randrange(256)
        elif damage == 1:
            data[at] ^= 1 << rng.randrange(8)
        else:
            del data[at : at + rng.randrange(1, 4)]
    return bytes(data)


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_damaged_files_are_a_network_or_refused(load, build):
    rng = random.Random(build.__name__)
    content = build().SerializeToString()
    ends = {outcome(load, damaged(content, rng), rng.random() < 0.5) for _ in range(400)}
    assert ends == {"network", "refused"}


LARGE = [0, -1, 2, 7, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63)]


def changed(model, rng):
    """A model of another meaning: sizes, operators, or the names of tensors are not what they were."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    graph = other.graph
    node = rng.choice(graph.node)
    names = [name for entry in graph.node for name in entry.output] + [entry.name for entry in graph.initializer]
    lists = [attribute.ints for attribute in node.attribute if attribute.ints]
    kind = rng.randrange(6)
    if kind == 0:
        node.op_type = rng.choice(onnx.defs.get_all_schemas()).name
    elif kind == 1 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif kind == 2 and lists:
        rng.choice(lists)[0] = rng.choice(LARGE)
    elif kind == 3:
        rng.choice(graph.input).type.tensor_type.shape.dim[0].dim_value = rng.choice(LARGE)
    elif kind == 4:
        tensor = rng.choice(graph.initializer)
        tensor.data_type = rng.randrange(28)
    else:
        data = [rng.choice(LARGE) for _ in range(3)]
        graph.initializer.append(ints("extra", *data))
        node.input.append("extra")
    return other


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_changed_networks_are_a_network_or_refused(load, build):
    rng = random.Random(build.__name__)
    model = build()
    ends = {outcome(load, changed(model, rng), rng.random() < 0.5) for _ in range(300)}
    assert ends == {"network", "refused"}


def outcome(load, model, skip):
    try:
        load(model, skip_unsupported=skip)
    except InputError as error:
        message = str(error)
    else:
        return "network"
    return "refused" if "net.onnx: " in message and "\n" not in message else message
