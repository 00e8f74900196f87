"""Whole networks on a machine of a 128 x 128 array, and what the simulation and the search save beside brute force.

Networks run once, without a run that is not counted: what they share would be there already.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import AtLeast, Result, Samples, absolute, alternate, confirm, limited, seconds
from hwsim.system.engines import Engine, engine_of
from hwsim.system.lower import plan
from hwsim.system.machine import ORDERS, Machine, load_machine
from hwsim.system.program import repeats
from hwsim.system.run import Result as Run
from hwsim.system.run import run
from hwsim.system.search import alone, grains, lengths, search
from hwsim.system.simulate import simulate
from hwsim.system.tiling import Product, Tiling, buffer_bytes, fits
from hwsim.workloads import load_workload
from hwsim.workloads.graph import Builder, Conv, Gemm, Graph, Layer, Role, Vector

MACHINE = "mxu-128"
LIMIT_S = 10


def language_model(network: str = "llama-2-7b", tokens: int = 2048) -> list[Result]:
    """Prefill and one token behind it, all layers, double-buffered; the search for tilings included."""
    made: list[Run] = []
    machine = load_machine(MACHINE)
    confirm(machine.double_buffering, f"{MACHINE}: double buffering")

    def ours() -> None:
        made.append(run(load_workload(network, phase="prefill", tokens=tokens), machine))
        made.append(run(load_workload(network, phase="decode", context=tokens), machine))

    times = [seconds(ours)]
    for result in made:
        confirm(result.total_cycles * result.peak_per_cycle >= result.macs, f"system-llm: {network}: cycles")
    what = f"{network} on {MACHINE}: prefill of {tokens} and one token, {len(made[0].layers)} steps of the plan"
    return [absolute("system-llm", what, times, LIMIT_S)]


def onnx_file(network: str = "resnet50") -> list[Result]:
    """A convolutional network from its ONNX file with all weights, beside the same layers from the zoo."""
    machine, made = load_machine(MACHINE), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        path.write_bytes(exported(load_workload(network)))
        times = (
            [seconds(lambda: made.append(run(load_workload(str(path)), machine)))],
            [seconds(lambda: made.append(run(load_workload(network), machine)))],
        )
    ours, theirs = made
    confirm(ours.macs == theirs.macs, f"system-onnx: {network}: multiply-accumulates")
    confirm(ours.total_cycles == theirs.total_cycles, f"system-onnx: {network}: cycles")
    what = f"{network}.onnx on {MACHINE}, {ours.macs / 1e9:.2f} billion multiply-accumulates"
    return [limited("system-onnx", what, "the same layers from the zoo", times, LIMIT_S)]


def rounds_skipped(network: str = "llama-2-7b", tokens: int = 256, rounds: int = 3) -> list[Result]:
    """The simulation alone of a prefill, beside one that goes through every round of every loop."""
    machine = load_machine(MACHINE)
    result = run(load_workload(network, phase="prefill", tokens=tokens), machine)
    program = repeats([built.stage for built in result.built])
    quick, slow = simulate(program, machine), simulate(program, machine, skip=False)
    confirm(quick.runs == slow.runs, "system-skip: figures of every layer")
    times = alternate(lambda: simulate(program, machine), lambda: simulate(program, machine, skip=False), rounds)
    what = f"{network}, prefill of {tokens}: {quick.simulated_steps} of {slow.simulated_steps} steps gone through"
    return [faster("system-skip", what, "every round", times, 5)]


def tilings(M: int = 64, K: int = 1024, N: int = 1024, rounds: int = 3) -> list[Result]:
    """The search for the tiling of the fewest cycles, beside a simulation of every legal one."""
    machine = load_machine(MACHINE)
    (planned,), _ = plan(_product(M, K, N), machine)
    work, engine = planned.work, engine_of(machine.engines[0])
    legal = list(every_tiling(work, engine, machine))

    def ours() -> float:
        return search(work, engine, machine, "cycles").value

    def brute() -> float:
        return min(alone(work, tiling, engine, machine) for tiling in legal)

    confirm(ours() == brute(), "system-search: cycles of the best tiling")
    what = f"best tiling of {M}x{K}x{N} on {MACHINE}, by cycles"
    return [faster("system-search", what, f"a simulation of all {len(legal)}", alternate(ours, brute, rounds), 5)]


def faster(name: str, what: str, against: str, times: tuple[Samples, Samples], bound: float) -> Result:
    """How many times as fast as the reference ours is, round by round, at least `bound`."""
    ours, reference = times
    return Result(
        name=name,
        what=what,
        ours=ours,
        reference=reference,
        against=against,
        values=[b / a for a, b in zip(ours, reference, strict=True)],
        unit="x faster",
        limit=AtLeast(bound=bound),
    )


def every_tiling(product: Product, engine: Engine, machine: Machine) -> list[Tiling]:
    """All loop orders of all tiles that have room, orders that are the same for a tile among them."""
    sizes = (product.M, product.K, product.N)
    cuts = [lengths(size, grain) for size, grain in zip(sizes, grains(product, engine), strict=True)]
    tiles = [tile for tile in itertools.product(*cuts) if fits(machine, buffer_bytes(product, tile))]
    return [Tiling(order=order, tile=tile) for order in ORDERS for tile in tiles]


def _product(m: int, k: int, n: int) -> Graph:
    b = Builder("product")
    b.linear("product", b.tensor("x", (m, k)), n)
    return b.graph()


# ---- an ONNX file of a convolutional network


def exported(graph: Graph) -> bytes:
    """A convolutional network of the zoo as an ONNX model; its weights are zeros of single precision."""
    from onnx import ModelProto, TensorProto, helper

    stored = {name: t.shape for name, t in graph.tensors.items() if t.role is Role.WEIGHT}
    nodes: list[Any] = []
    for layer in graph.layers:
        nodes += _nodes(graph, layer, stored)
    first, last = graph.layers[0].inputs[0], graph.layers[-1].outputs[0]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, graph.tensors[name].shape) for name in (first, last)]
    zeros = [
        TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT, raw_data=bytes(4 * math.prod(shape)))
        for name, shape in stored.items()
    ]
    body = helper.make_graph(nodes, graph.name, ends[:1], ends[1:], zeros)
    model: ModelProto = helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString()


def _nodes(graph: Graph, layer: Layer, stored: dict[str, tuple[int, ...]]) -> list[Any]:
    """The layer's nodes; what a batch normalization keeps is added to `stored`."""
    from onnx import helper

    (output,) = layer.outputs
    match layer.op:
        case Conv() as op:
            sizes = {"strides": op.stride, "pads": op.padding, "dilations": op.dilation, "group": op.groups}
            return [helper.make_node("Conv", layer.inputs, layer.outputs, **sizes)]
        case Gemm():
            return [helper.make_node("MatMul", layer.inputs, layer.outputs)]
        case Vector(kind="batchnorm"):
            parts = [f"{layer.name}.{part}" for part in ("gain", "bias", "mean", "variance")]
            stored.update(dict.fromkeys(parts, (graph.tensors[output].shape[1],)))
            return [helper.make_node("BatchNormalization", [*layer.inputs, *parts], [output])]
        case Vector(kind="maxpool"):
            window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
            return [helper.make_node("MaxPool", layer.inputs, layer.outputs, **window)]
        case Vector(kind="avgpool"):
            mean = f"{output}.pooled"
            pooled = helper.make_node("GlobalAveragePool", layer.inputs, [mean])
            return [pooled, helper.make_node("Flatten", [mean], [output])]
        case Vector(kind="relu" | "add" as kind):
            return [helper.make_node(kind.capitalize(), layer.inputs, layer.outputs)]
    raise AssertionError(f"{layer.name}: no ONNX node is known for {layer.op}")
