"""Static timing across module boundaries without flattening.

Each distinct module is analysed once, children before parents, at the worst load of its outputs and the worst
transition of its inputs over all its instances. To its parents it is then a cell: delays from inputs to outputs, from
the clock to outputs, from inputs to the registers inside, each kept for rising and falling edges. Transitions are
carried through every cell and across modules, the worst one at each net (graph-based analysis). They flow against the
order of analysis, so it is repeated until the critical path stands still.

Delay of a path: clock to output of the register, cells, setup. Ports count as registers without clock-to-output delay
and setup (`Conditions` of loads.py says what stands there). All paths count, also false ones. No wires, ideal clock,
no hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from hwsim.synth.liberty import FALL, RISE, Arc, Library, Table
from hwsim.synth.loads import Conditions, Loads
from hwsim.synth.netlist import Block, Instance
from models.unit import InputError, require

ROUNDS = 6
"""transitions cross at most this many module boundaries against the order of analysis"""
SETTLED = 1e-3
"""the analysis ends when the critical path moves by less than this fraction"""

Node = int
"""2 * net + edge"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One piece of a path: the module and the net that it ends on, the cell, its delay in ns."""

    module: str
    where: str
    cell: str
    delay: float


class Edge(NamedTuple):
    """A delay from node to node through one instance, by its pins."""

    source: Node
    target: Node
    delay: float
    instance: int
    pin: str
    out: str


class Point(NamedTuple):
    """Where a clock edge launches onto a node, or where a node must be in time for one, by the instance's pin."""

    time: float
    instance: int
    pin: str


@dataclass(kw_only=True)
class Timing:
    """One analysed module. Port keys are (pin, edge)."""

    block: Block
    inputs: dict[Node, tuple[str, int]]
    edges: list[Edge]
    """in topological order of their targets"""
    starts: dict[Node, Point]
    """delay from the clock edge"""
    ends: dict[Node, Point]
    """time needed before the next clock edge"""
    slews: dict[Node, float]
    through: dict[tuple[str, str], list[tuple[int, int, float]]]
    """(input, output) -> edges and delay"""
    launch: dict[tuple[str, int], float]
    setup: dict[tuple[str, int], float]
    internal: float
    """worst register to register inside, 0 where there is none"""


@dataclass(frozen=True, kw_only=True)
class Path:
    delay_ns: float
    steps: tuple[Step, ...]


def critical_path(
    blocks: dict[str, Block], top: str, library: Library, loads: dict[str, Loads], conditions: Conditions
) -> Path:
    """The longest path of the design. InputError for a combinational loop and for a design without any path."""
    incoming: dict[str, dict[Node, float]] = {}
    memo: dict[tuple[int, float, float], float] = {}
    before = 0.0
    for _ in range(ROUNDS):
        timings: dict[str, Timing] = {}
        for name, block in blocks.items():
            case = _Case(
                block=block,
                timings=timings,
                library=library,
                loads=loads[name],
                slews={},
                conditions=conditions,
                memo=memo,
            )
            timings[name] = _analyse(case, incoming.get(name, {}))
        paths = [(t.internal, name) for name, t in timings.items()] + [(_port_worst(timings[top]), "")]
        worst, where = max(paths)
        if abs(worst - before) <= SETTLED * worst:
            break
        before, incoming = worst, _incoming(timings)
    require(worst > 0, f"module {top}: no path between registers or ports to time")
    tracer = _Tracer(timings=timings)
    steps = tracer.inside(where) if where else tracer.ports(top)
    return Path(delay_ns=worst, steps=tuple(steps))


def _incoming(timings: dict[str, Timing]) -> dict[str, dict[Node, float]]:
    """For each module the worst transition at its input nodes over all instances."""
    worst: dict[str, dict[Node, float]] = {name: {} for name in timings}
    for timing in timings.values():
        for instance in timing.block.instances:
            child = timings.get(instance.type)
            if child is None:
                continue
            found = worst[instance.type]
            for pin, inner in child.block.inputs.items():
                for edge in (RISE, FALL):
                    slew = timing.slews.get(2 * instance.pins.get(pin, -1) + edge)
                    if slew is not None:
                        found[2 * inner + edge] = max(found.get(2 * inner + edge, 0.0), slew)
    return worst


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One module under analysis. `timings` are its children's; `slews` fills as the analysis proceeds."""

    block: Block
    timings: dict[str, Timing]
    library: Library
    loads: Loads
    slews: dict[Node, float]
    conditions: Conditions
    memo: dict[tuple[int, float, float], float]
    """table (by identity), transition, load -> value: equal cells under equal loads are looked up once"""

    def at(self, table: Table, slew: float, load: float) -> float:
        key = (id(table), slew, load)
        value = self.memo.get(key)
        if value is None:
            value = self.memo[key] = table.at(slew, load)
        return value

    def slew_at(self, arc: Arc, edge: int, slew: float, load: float) -> float:
        # a table may extrapolate below zero at tiny loads; no transition is
        return max(self.at(arc.slew[edge], slew, load), 0.0) if edge in arc.slew else slew


def _analyse(case: _Case, incoming: dict[Node, float]) -> Timing:
    """Delays of one module from those of its cells and children."""
    block, slews = case.block, case.slews
    inputs = _nodes({pin: bit for pin, bit in block.inputs.items() if bit not in case.loads.clocks})
    slews |= dict.fromkeys(inputs, case.conditions.input_slew) | incoming
    starts = _starts(case)
    edges = _edges(case)
    ends = _ends(case)
    arrival, _ = longest(edges, {node: start.time for node, start in starts.items()})
    tails = _tails(edges, {node: end.time for node, end in ends.items()})
    outputs = [(pin, edge, 2 * bit + edge) for pin, bit in block.outputs.items() for edge in (RISE, FALL)]
    return Timing(
        block=block,
        inputs=inputs,
        edges=edges,
        starts=starts,
        ends=ends,
        slews=slews,
        through=_through(edges, inputs, outputs),
        launch={(pin, edge): arrival[node] for pin, edge, node in outputs if node in arrival},
        setup={port: tails[node] for node, port in inputs.items() if node in tails},
        internal=max((arrival[node] + end.time for node, end in ends.items() if node in arrival), default=0.0),
    )


def _nodes(pins: dict[str, int]) -> dict[Node, tuple[str, int]]:
    return {2 * bit + edge: (pin, edge) for pin, bit in pins.items() for edge in (RISE, FALL)}


def _starts(case: _Case) -> dict[Node, Point]:
    """What the clock launches onto nets, by registers here and in children; enters its transitions into `slews`."""
    starts: dict[Node, Point] = {}
    for index, instance in enumerate(case.block.instances):
        child = case.timings.get(instance.type)
        if child is not None:
            _take_slews(case, child, instance.pins)
            for (pin, edge), time in child.launch.items():
                if pin in instance.pins:
                    starts[2 * instance.pins[pin] + edge] = Point(time, index, pin)
            continue
        for arc in case.library.cells[instance.type].launches:
            if arc.out in instance.pins:
                net = instance.pins[arc.out]
                at = (case.conditions.input_slew, case.loads.net[net])
                for _, edge in arc.edges:
                    node, time = 2 * net + edge, case.at(arc.delay[edge], *at)
                    if node not in starts or starts[node].time < time:  # one arc for each condition
                        starts[node] = Point(time, index, arc.out)
                    case.slews[node] = max(case.slew_at(arc, edge, *at), case.slews.get(node, 0.0))
    return starts


def _take_slews(case: _Case, child: Timing, pins: dict[str, int]) -> None:
    """The transitions that a child shows at its outputs."""
    for pin, bit in child.block.outputs.items():
        for edge in (RISE, FALL):
            if pin in pins and 2 * bit + edge in child.slews:
                case.slews[2 * pins[pin] + edge] = child.slews[2 * bit + edge]


def _ends(case: _Case) -> dict[Node, Point]:
    """The time that each node needs before the next clock edge, in the worst of its readers."""
    ends: dict[Node, Point] = {}
    for index, instance in enumerate(case.block.instances):
        for pin, edge, time in _needs(case, instance):
            node = 2 * instance.pins[pin] + edge
            if node not in ends or ends[node].time < time:
                ends[node] = Point(time, index, pin)
    return ends


def _needs(case: _Case, instance: Instance) -> Iterator[tuple[str, int, float]]:
    """Pin, edge and time: setup of a register, or the way to one inside a child."""
    child = case.timings.get(instance.type)
    if child is not None:
        yield from ((pin, edge, time) for (pin, edge), time in child.setup.items() if pin in instance.pins)
        return
    for pin, tables in case.library.cells[instance.type].setups.items():
        for edge, table in tables.items():
            slew = case.slews.get(2 * instance.pins.get(pin, -1) + edge)
            if slew is not None:
                yield pin, edge, case.at(table, slew, case.conditions.input_slew)


Source = tuple[int, int, str, str, "Arc | list[tuple[int, int, float]]"]
"""net, instance, input pin, output pin, and a library arc or a child's delays"""


def _edges(case: _Case) -> list[Edge]:
    """The delays of all cells in topological order; enters the transitions of all nets into `slews`."""
    sources = _sources(case)
    edges: list[Edge] = []
    for net in _topological(case.block, sources):
        for source, index, pin, out, how in sources.get(net, ()):
            if isinstance(how, list):
                edges += [Edge(2 * source + i, 2 * net + o, d, index, pin, out) for i, o, d in how]
                continue
            for before, after in how.edges:
                slew = case.slews.get(2 * source + before)
                if slew is not None:
                    delay = _pass(case, how, after, slew, net)
                    edges.append(Edge(2 * source + before, 2 * net + after, delay, index, pin, out))
    return edges


def _pass(case: _Case, arc: Arc, edge: int, slew: float, net: int) -> float:
    """The delay of an arc onto `net`, whose transition it may worsen."""
    load, node = case.loads.net[net], 2 * net + edge
    case.slews[node] = max(case.slews.get(node, 0.0), case.slew_at(arc, edge, slew, load))
    return case.at(arc.delay[edge], slew, load)


def _sources(case: _Case) -> dict[int, list[Source]]:
    """What drives each net combinationally."""
    sources: dict[int, list[Source]] = defaultdict(list)
    for index, instance in enumerate(case.block.instances):
        pins = instance.pins
        child = case.timings.get(instance.type)
        if child is not None:
            for (pin, out), delays in child.through.items():
                if pin in pins and out in pins:
                    sources[pins[out]].append((pins[pin], index, pin, out, delays))
            continue
        for arc in case.library.cells[instance.type].arcs:
            if arc.pin in pins and arc.out in pins and pins[arc.pin] not in case.loads.clocks:
                sources[pins[arc.out]].append((pins[arc.pin], index, arc.pin, arc.out, arc))
    return sources


def _topological(block: Block, sources: dict[int, list[Source]]) -> list[int]:
    sorter = TopologicalSorter({net: {source[0] for source in into} for net, into in sources.items()})
    try:
        return list(sorter.static_order())
    except CycleError as error:
        names = [block.net_names.get(net, f"net{net}") for net in error.args[1]]
        raise InputError(f"module {block.name}: combinational loop through {' -> '.join(names[:8])}") from None


def longest(edges: list[Edge], starts: dict[Node, float]) -> tuple[dict[Node, float], dict[Node, Edge]]:
    """Latest arrival at each node that the starts reach, and the edge by which it came; `edges` as in Timing."""
    arrival = dict(starts)
    by: dict[Node, Edge] = {}
    for edge in edges:
        before = arrival.get(edge.source)
        if before is not None and before + edge.delay > arrival.get(edge.target, NEVER):
            arrival[edge.target] = before + edge.delay
            by[edge.target] = edge
    return arrival, by


NEVER = float("-inf")


def _tails(edges: list[Edge], ends: dict[Node, float]) -> dict[Node, float]:
    """The longest way from each node to a register's clock edge."""
    tails = dict(ends)
    for edge in reversed(edges):
        after = tails.get(edge.target)
        if after is not None:
            tails[edge.source] = max(tails.get(edge.source, NEVER), after + edge.delay)
    return tails


def _through(
    edges: list[Edge], inputs: dict[Node, tuple[str, int]], outputs: list[tuple[str, int, Node]]
) -> dict[tuple[str, str], list[tuple[int, int, float]]]:
    """The longest delay from every input to every output that it reaches without a register."""
    cone = {node for _, _, node in outputs}
    for edge in reversed(edges):
        if edge.target in cone:
            cone.add(edge.source)
    reach: dict[Node, dict[Node, float]] = {node: {node: 0.0} for node in inputs if node in cone}
    for edge in edges:
        if edge.target in cone and edge.source in reach:
            at = reach.setdefault(edge.target, {})
            for origin, delay in reach[edge.source].items():
                if delay + edge.delay > at.get(origin, NEVER):
                    at[origin] = delay + edge.delay
    through: dict[tuple[str, str], list[tuple[int, int, float]]] = defaultdict(list)
    for out, after, node in outputs:
        for origin, delay in reach.get(node, {}).items():
            pin, before = inputs[origin]
            through[pin, out].append((before, after, delay))
    return dict(through)


def _port_starts(timing: Timing) -> dict[Node, float]:
    """Registers and input ports together."""
    return dict.fromkeys(timing.inputs, 0.0) | {node: start.time for node, start in timing.starts.items()}


def _port_ends(timing: Timing) -> dict[Node, float]:
    """Registers and output ports together."""
    ports = {2 * bit + edge: 0.0 for bit in timing.block.outputs.values() for edge in (RISE, FALL)}
    return ports | {node: end.time for node, end in timing.ends.items()}


def _port_worst(timing: Timing) -> float:
    arrival, _ = longest(timing.edges, _port_starts(timing))
    return max((arrival[node] + time for node, time in _port_ends(timing).items() if node in arrival), default=0.0)


@dataclass(frozen=True, kw_only=True)
class _Tracer:
    """Finds the cells of a path again, down through the children that it crosses."""

    timings: dict[str, Timing]

    def inside(self, name: str) -> list[Step]:
        """The worst path from register to register of one module."""
        timing = self.timings[name]
        starts = {node: start.time for node, start in timing.starts.items()}
        return self._worst(timing, starts, {node: end.time for node, end in timing.ends.items()}, f"{name}: ")

    def ports(self, name: str) -> list[Step]:
        """The worst path of one module, its ports included."""
        timing = self.timings[name]
        return self._worst(timing, _port_starts(timing), _port_ends(timing), "")

    def _worst(self, timing: Timing, starts: dict[Node, float], ends: dict[Node, float], prefix: str) -> list[Step]:
        arrival, by = longest(timing.edges, starts)
        node = max((n for n in ends if n in arrival), key=lambda n: (arrival[n] + ends[n], -n))
        return [*self._to(timing, by, node, prefix), *self._end(timing, node, prefix)]

    def _to(self, timing: Timing, by: dict[Node, Edge], node: Node, prefix: str) -> list[Step]:
        """The way to a node, its launching register or port first."""
        taken = []
        while node in by:
            taken.append(by[node])
            node = by[node].source
        steps = self._start(timing, node, prefix)
        for edge in reversed(taken):
            steps += self._edge(timing, edge, prefix)
        return steps

    def _start(self, timing: Timing, node: Node, prefix: str) -> list[Step]:
        start = timing.starts.get(node)
        if start is None:
            return [_step(timing, prefix, node, "input", 0.0)]
        instance = timing.block.instances[start.instance]
        child = self.timings.get(instance.type)
        if child is None:
            return [_step(timing, prefix, node, f"{instance.type} launch", start.time)]
        inner = 2 * child.block.outputs[start.pin] + node % 2
        _, by = longest(child.edges, {n: s.time for n, s in child.starts.items()})
        return self._to(child, by, inner, f"{prefix}{instance.name}.")

    def _edge(self, timing: Timing, edge: Edge, prefix: str) -> list[Step]:
        instance = timing.block.instances[edge.instance]
        child = self.timings.get(instance.type)
        if child is None:
            return [_step(timing, prefix, edge.target, instance.type, edge.delay)]
        inner = 2 * child.block.inputs[edge.pin] + edge.source % 2
        _, by = longest(child.edges, {inner: 0.0})
        target = 2 * child.block.outputs[edge.out] + edge.target % 2
        return self._to(child, by, target, f"{prefix}{instance.name}.")[1:]

    def _end(self, timing: Timing, node: Node, prefix: str) -> list[Step]:
        end = timing.ends.get(node)
        if end is None:
            return [_step(timing, prefix, node, "output", 0.0)]
        instance = timing.block.instances[end.instance]
        child = self.timings.get(instance.type)
        if child is None:
            return [_step(timing, prefix, node, f"{instance.type} setup", end.time)]
        inner = 2 * child.block.inputs[end.pin] + node % 2
        ends = {n: e.time for n, e in child.ends.items()}
        return self._worst(child, {inner: 0.0}, ends, f"{prefix}{instance.name}.")[1:]


def _step(timing: Timing, prefix: str, node: Node, cell: str, delay: float) -> Step:
    return Step(module=timing.block.name, where=prefix + _net(timing, node), cell=cell, delay=delay)


def _net(timing: Timing, node: Node) -> str:
    return timing.block.net_names.get(node // 2, f"net{node // 2}")
