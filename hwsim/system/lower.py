"""A layer graph on a machine: which layers go where, what each of them moves, and what waits for what.

Every tensor has one width in memory: weights their own, caches and whatever else is a product's second operand that of
the cache, other operands of products that of the engine's activations, everything else `hidden`. Biases, gains and
other vectors of weights are left out. Elementwise work on a result is done on its way to memory where the machine
fuses: `_fused_into` says when.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from hwsim.system.engines import Engine, engine_of
from hwsim.system.machine import Machine, Task, format_bits
from hwsim.system.tiling import Image, Product
from hwsim.workloads.graph import Attention, Conv, Gemm, Graph, Layer, Quantize, Role, Tensor, Transform, Vector
from models.catalog import unit
from models.floats import HALF_BITS
from models.unit import require


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one unit does to a row: `lane_ops` operations of the vector unit, a `transform` of every `block` channels,
    or `quantize`."""

    what: str
    lane_ops: int = 0
    block: int = 0


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Work on `rows` of `channels`, one after the other, by units that are no matrix engines, each handing its rows on
    to the next. A row comes in `in_bits` and leaves in `out_bits`."""

    rows: int
    in_bits: Fraction
    out_bits: Fraction
    passes: tuple[Pass, ...]
    channels: int = 1


@dataclass(kw_only=True)
class Planned:
    """One or several layers that are done together."""

    name: str
    op: Any
    what: str
    """`product`, `vector`, `transform`, `quantize`, or `attention` fused"""
    work: Any
    """Product, Stream, or the products of Q K^T and of the scores with V"""
    engine: Engine | None = None
    after: set[int] = field(default_factory=set)
    """places in the plan that have to end first"""
    weights_wait: bool = False
    outputs: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()
    """layers that are done on the way of the result"""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Bits of a value in memory, as the machine file says or the engine's formats do."""

    activations: Fraction
    weights: Fraction
    cache: Fraction
    hidden: Fraction


def widths_of(machine: Machine) -> Widths:
    given = machine.widths
    main = machine.engines[0]
    task = next((e for e in machine.engines if Task.ATTENTION in e.tasks), main)
    return Widths(
        activations=given.activations or _act_bits(main.unit, main.made),
        weights=given.weights or _weight_bits(main.unit, main.made),
        cache=given.cache or Fraction(task.made.weight_bits),
        hidden=given.hidden,
    )


def _act_bits(name: str, params: Any) -> Fraction:
    entry = unit(name)
    if entry.has_act_format:
        return _named_bits(entry.act_format(params))
    return Fraction(HALF_BITS if getattr(params, "act_format", "int") == "fp16" else params.act_bits)


def _weight_bits(name: str, params: Any) -> Fraction:
    return _named_bits(unit(name).weight_format(params))


def _named_bits(form: tuple[str, Mapping[str, Any]]) -> Fraction:
    name, options = form
    words = ",".join(f"{key}={value}" for key, value in options.items() if value is not None)
    return format_bits(f"{name}:{words}" if words else name)


def plan(graph: Graph, machine: Machine) -> tuple[list[Planned], list[str]]:
    """What the machine does, in order, and notes on what it leaves out."""
    return _Planner(graph, machine).plan()


class _Planner:
    def __init__(self, graph: Graph, machine: Machine) -> None:
        self.graph = graph
        self.machine = machine
        self.widths = widths_of(machine)
        self.engines = {task: engine_of(machine.engine(task)) for task in Task if _has(machine, task)}
        self.planned: list[Planned] = []
        self.made_by: dict[str, int] = {}
        """tensor -> the place in the plan that writes it"""
        self.left_to: dict[str, set[int]] = {}
        """tensor of a layer that is left out -> places in the plan that have to end before it could have been there"""
        self.bits = self._all_bits()
        self.left_out: list[str] = []

    def plan(self) -> tuple[list[Planned], list[str]]:
        for layer in self.graph.layers:
            self._layer(layer)
        require(bool(self.planned), f"{self.graph.name}: nothing of it runs on machine {self.machine.name}")
        return self.planned, self._notes()

    def _notes(self) -> list[str]:
        if not self.left_out:
            return []
        first = ", ".join(self.left_out[:3])
        return [f"no vector unit: {len(self.left_out)} layers of no products left out ({first}, ...)"]

    def _all_bits(self) -> dict[str, Fraction]:
        """Width of every tensor."""
        second = {layer.inputs[1] for layer in self.graph.layers if isinstance(layer.op, Gemm)}
        multiplied = {
            name
            for layer in self.graph.layers
            if isinstance(layer.op, Gemm | Conv | Attention)
            for name in layer.inputs[: 3 if isinstance(layer.op, Attention) else 2]
        }
        quantized = {name for layer in self.graph.layers if isinstance(layer.op, Quantize) for name in layer.outputs}

        def width(tensor: Tensor) -> Fraction:
            if tensor.role is Role.WEIGHT:
                return self.widths.weights
            if tensor.role is Role.CACHE or tensor.name in second:
                return self.widths.cache
            taken = tensor.name in multiplied or tensor.name in quantized
            return self.widths.activations if taken else self.widths.hidden

        return {name: width(tensor) for name, tensor in self.graph.tensors.items()}

    def _layer(self, layer: Layer) -> None:
        match layer.op:
            case Conv() if self._is_depthwise(layer.op):
                self._depthwise(layer, layer.op)
            case Gemm() | Conv():
                self._product(layer)
            case Attention():
                self._attention(layer, layer.op)
            case Vector():
                self._vector(layer, layer.op)
            case Transform():
                self._rows(layer, layer.op, Pass(what="transform", block=layer.op.block))
            case Quantize():
                self._rows(layer, layer.op, Pass(what="quantize"))

    def _add(self, planned: Planned, inputs: tuple[str, ...]) -> None:
        planned.after |= self._places(inputs)
        self.planned.append(planned)
        self._writes(planned.outputs, len(self.planned) - 1)

    def _places(self, names: tuple[str, ...]) -> set[int]:
        """Where in the plan these tensors come from."""
        made = {self.made_by[name] for name in names if name in self.made_by}
        return made.union(*(self.left_to.get(name, ()) for name in names))

    def _writes(self, names: tuple[str, ...], place: int) -> None:
        for name in names:
            self.made_by[name] = place

    def _total_bits(self, names: tuple[str, ...]) -> Fraction:
        """Of whole tensors, vectors of weights left out."""
        return sum((self.graph.tensors[name].elements * self.bits[name] for name in names), Fraction(0))

    # ---- products

    def _product(self, layer: Layer) -> None:
        conv = layer.op if isinstance(layer.op, Conv) else None
        gemm = conv.gemm if conv else layer.op
        assert isinstance(gemm, Gemm)
        _, w, *others = layer.inputs
        is_weight = self.graph.tensors[w].role is Role.WEIGHT
        task = Task.CONV if conv else Task.GEMM if is_weight else Task.ATTENTION
        engine = self._engine(task)
        extra = tuple(name for name in others if self._is_moved(name))
        inputs = layer.inputs
        if conv and self.machine.convolution == "im2col" and self.machine.vector is not None and _is_spread(conv):
            inputs = (self._im2col(layer, gemm), *layer.inputs[1:])
        outputs = gemm.batch * gemm.M * gemm.N
        work = Product(
            batch=gemm.batch,
            M=gemm.M,
            K=gemm.K,
            N=gemm.N,
            act_bits=self.bits[layer.inputs[0]],
            weight_bits=self.bits[w],
            out_bits=self._total_bits(layer.outputs) / outputs,
            sum_bits=_sum_bits(engine),
            packed=is_weight,
            image=self._image(conv) if conv else None,
            extra_bits=self._total_bits(extra) / outputs,
        )
        planned = Planned(
            name=layer.name,
            op=layer.op,
            what="product",
            work=work,
            engine=engine,
            weights_wait=bool(self._places((w,))),
            outputs=layer.outputs,
        )
        self._add(planned, inputs)

    def _engine(self, task: Task) -> Engine:
        return self.engines[task] if task in self.engines else engine_of(self.machine.engine(task))

    def _is_depthwise(self, conv: Conv) -> bool:
        """Whether the vector unit takes it: every output comes of one channel alone."""
        alone = conv.groups == conv.in_channels and conv.groups > 1
        return alone and self.machine.depthwise == "vector" and self.machine.vector is not None

    def _depthwise(self, layer: Layer, conv: Conv) -> None:
        """An operation of a lane, multiply and add, for each tap of an output."""
        outputs = conv.batch * conv.out_channels * math.prod(conv.output)
        read = tuple(name for name in layer.inputs if self.graph.tensors[name].role is not Role.WEIGHT)
        work = Stream(
            rows=outputs,
            in_bits=self._total_bits((*read, layer.inputs[1])) / outputs,
            out_bits=self._total_bits(layer.outputs) / outputs,
            passes=(Pass(what="vector", lane_ops=math.prod(conv.kernel)),),
        )
        self._add(Planned(name=layer.name, op=conv, what="vector", work=work, outputs=layer.outputs), layer.inputs)

    def _im2col(self, layer: Layer, gemm: Gemm) -> str:
        """The vector unit lays the image out as the matrix A."""
        image, name = layer.inputs[0], f"{layer.name}.im2col"
        rows = gemm.batch * gemm.M
        work = Stream(
            rows=rows,
            in_bits=self._total_bits((image,)) / rows,
            out_bits=gemm.K * self.bits[image],
            passes=(Pass(what="vector", lane_ops=gemm.K),),
            channels=gemm.K,
        )
        self._add(Planned(name=name, op=layer.op, what="vector", work=work, outputs=(name,)), (image,))
        return name

    def _image(self, conv: Conv) -> Image | None:
        """None where the image is laid out as a matrix beforehand, or is one."""
        if self.machine.convolution == "im2col" or not _is_spread(conv):
            return None
        out_height, out_width = conv.output
        return Image(
            row_pixels=out_width,
            out_rows=out_height,
            in_rows=conv.batch * conv.height,
            in_width=conv.width,
            stride=conv.stride[0],
            span=(conv.kernel[0] - 1) * conv.dilation[0] + 1,
            taps=math.prod(conv.kernel),
            channels=conv.in_channels // conv.groups,
        )

    def _attention(self, layer: Layer, op: Attention) -> None:
        engine = self._engine(Task.ATTENTION)
        q, k, v = layer.inputs[:3]
        scores, context = op.scores, op.context
        first = Product(
            batch=scores.batch,
            M=scores.M,
            K=scores.K,
            N=scores.N,
            act_bits=self.bits[q],
            weight_bits=self.bits[k],
            out_bits=self.widths.hidden,
            sum_bits=_sum_bits(engine),
            packed=False,
        )
        second = replace(
            first,
            K=context.K,
            N=context.N,
            act_bits=self.widths.activations,
            weight_bits=self.bits[v],
            out_bits=self.bits[layer.outputs[0]],
        )
        rows = Stream(
            rows=scores.batch * scores.M,
            in_bits=scores.N * self.widths.hidden,
            out_bits=scores.N * self.widths.activations,
            passes=(Pass(what="vector", lane_ops=Vector(kind="softmax", rows=1, channels=scores.N).lane_ops),),
            channels=scores.N,
        )
        waits = bool(self._places(layer.inputs[1:]))
        common = {"op": op, "engine": engine, "weights_wait": waits}
        if self.machine.attention == "fused":
            self._needs_vector(layer.name)
            work = (first, rows, second)
            planned = Planned(name=layer.name, what="attention", work=work, outputs=layer.outputs, **common)
            self._add(planned, layer.inputs)
            return
        inner = f"{layer.name}.scores", f"{layer.name}.softmax"
        self._add(Planned(name=inner[0], what="product", work=first, outputs=inner[:1], **common), layer.inputs)
        if self.machine.vector is None:
            self.left_out.append(inner[1])
            inner = (inner[0], inner[0])
        else:
            softmax = Planned(name=inner[1], op=op, what="vector", work=rows, outputs=inner[1:])
            self._add(softmax, inner[:1])
        last = Planned(name=f"{layer.name}.context", what="product", work=second, outputs=layer.outputs, **common)
        self._add(last, (*inner[1:], *layer.inputs[1:]))

    def _needs_vector(self, name: str) -> None:
        require(self.machine.vector is not None, f"{name}: fused attention needs a vector unit; add `vector`")

    # ---- everything else

    def _vector(self, layer: Layer, op: Vector) -> None:
        if self.machine.vector is None:
            self.left_out.append(layer.name)
            self._pass_through(layer)
            return
        place = self._fused_into(layer, op)
        if place is not None:
            self._fuse(layer, op, place)
            return
        rows, channels = (op.rows, op.channels) if op.whole_rows else (op.rows * op.channels, 1)
        done = Pass(what="vector", lane_ops=op.lane_ops // rows)
        self._stream(layer, rows, channels, done)

    def _pass_through(self, layer: Layer) -> None:
        """Who reads its outputs waits for its inputs."""
        for name in layer.outputs:
            self.left_to[name] = self._places(layer.inputs)

    def _fused_into(self, layer: Layer, op: Vector) -> int | None:
        """The product or the vector unit's work that this layer can follow at once: it takes each result as it comes,
        nobody else wants that result, and whatever else it reads was there before that work began."""
        if not self.machine.fuse or op.whole_rows or op.kind == "copy" or len(layer.outputs) != 1:
            return None
        elements = self.graph.tensors[layer.outputs[0]].elements
        for name in layer.inputs:
            place = self.made_by.get(name)
            if place is None or self.planned[place].outputs != (name,):
                continue
            if self.planned[place].what not in ("product", "vector"):
                continue
            others = [self.made_by.get(other, -1) for other in layer.inputs if other != name]
            alone = self.graph.consumers.get(name) == (layer.name,)
            if alone and elements == self.graph.tensors[name].elements and all(other < place for other in others):
                return place
        return None

    def _fuse(self, layer: Layer, op: Vector, place: int) -> None:
        into = self.planned[place]
        others = tuple(name for name in layer.inputs if name not in into.outputs and self._is_moved(name))
        elements = self.graph.tensors[layer.outputs[0]].elements
        extra = sum((self._read_bits(name, elements) for name in others), Fraction(0))
        ops = op.lane_ops // (op.rows * op.channels)
        leaves = self._total_bits(layer.outputs)
        if isinstance(into.work, Product):
            into.work = replace(
                into.work,
                out_bits=leaves / elements,
                extra_bits=into.work.extra_bits + extra / elements,
                lane_ops=into.work.lane_ops + ops,
            )
        else:
            done = Pass(what="vector", lane_ops=-(-ops * elements // into.work.rows))
            into.work = _followed(into.work, done, extra, leaves)
        into.fused += (layer.name,)
        into.outputs = layer.outputs
        into.after |= {self.made_by[name] for name in others if name in self.made_by}
        self._writes(layer.outputs, place)

    def _is_moved(self, name: str) -> bool:
        """All tensors but vectors of weights: biases, gains, shifts."""
        tensor = self.graph.tensors[name]
        return tensor.role is not Role.WEIGHT or sum(size > 1 for size in tensor.shape) > 1

    def _read_bits(self, name: str, most: int) -> Fraction:
        """Of a tensor of which at most so many elements are read."""
        return min(self.graph.tensors[name].elements, most) * self.bits[name]

    def _rows(self, layer: Layer, op: Transform | Quantize, done: Pass) -> None:
        """Work on whole rows; at once on those that another stream hands on."""
        name = layer.inputs[0]
        place = self.made_by.get(name)
        into = None if place is None else self.planned[place]
        alone = self.graph.consumers.get(name) == (layer.name,)
        if place is None or into is None or not (self.machine.fuse and alone and into.outputs == (name,)):
            self._stream(layer, op.rows, op.channels, done)
            return
        if not isinstance(into.work, Stream) or (into.work.rows, into.work.channels) != (op.rows, op.channels):
            self._stream(layer, op.rows, op.channels, done)
            return
        into.work = _followed(into.work, done, Fraction(0), self._total_bits(layer.outputs))
        into.fused += (layer.name,)
        into.outputs = layer.outputs
        self._writes(layer.outputs, place)

    def _stream(self, layer: Layer, rows: int, channels: int, done: Pass) -> None:
        read = [name for name in layer.inputs if self._is_moved(name)]
        total = sum((self._read_bits(name, rows * channels) for name in read), Fraction(0))
        out_bits = self._total_bits(layer.outputs) / rows
        work = Stream(rows=rows, in_bits=total / rows, out_bits=out_bits, passes=(done,), channels=channels)
        self._add(Planned(name=layer.name, op=layer.op, what=done.what, work=work, outputs=layer.outputs), layer.inputs)


def _followed(work: Stream, done: Pass, extra_bits: Fraction, out_bits: Fraction) -> Stream:
    """The stream with another pass at its end, which reads `extra_bits` and leaves `out_bits` in all; the vector unit
    does two passes that follow each other as one."""
    *before, last = work.passes
    if (last.what, done.what) == ("vector", "vector"):
        passes = (*before, replace(last, lane_ops=last.lane_ops + done.lane_ops))
    else:
        passes = (*work.passes, done)
    return replace(work, in_bits=work.in_bits + extra_bits / work.rows, out_bits=out_bits / work.rows, passes=passes)


def _is_spread(conv: Conv) -> bool:
    """Whether a row of A is not simply a pixel of the image."""
    return conv.kernel != (1, 1) or conv.stride != (1, 1)


def _has(machine: Machine, task: Task) -> bool:
    return any(task in engine.tasks for engine in machine.engines)


def _sum_bits(engine: Engine) -> int:
    """Of a partial sum: the accumulator's, or single precision."""
    return int(getattr(engine.array.params, "acc_bits", 32))


def waits_of(planned: list[Planned]) -> list[tuple[int, ...]]:
    """How far back the entries lie that each one waits for; what those wait for themselves is left out."""
    ancestors: list[int] = []
    """sets of places, as bits"""
    found = []
    for place, entry in enumerate(planned):
        direct = entry.after - {place}
        implied = 0
        for other in direct:
            implied |= ancestors[other]
        ancestors.append(implied | sum(1 << other for other in direct))
        found.append(tuple(sorted(place - other for other in direct if not implied >> other & 1)))
    return found
