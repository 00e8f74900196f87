"""Capacitive loads through the hierarchy, and ideal buffer trees on the nets that need them.

Input pins: bottom-up, the sum of what hangs inside. Outputs: top-down, the worst external load over all instances. The
mapper sees one module at a time, so a net that feeds many instances (an advance enable) has no buffers. Where a net's
load exceeds MAX_FANOUT inverters, and a tree of library buffers shortens driver plus net, the tree is added to the
netlist: one buffer type, each buffer loaded with TREE_FANOUT times its own input capacitance at most, no wires. The
path gains every level of it, the area every buffer. Both constants are the round values near the least area times delay
of a 16 x 16 array of 8-bit MACs.

The clock is ideal: its pins load nothing and it has no tree.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from hwsim.synth.liberty import FALL, RISE, Cell, Library
from hwsim.synth.netlist import Block, Instance
from models.unit import require

MAX_FANOUT = 24
"""in input capacitances of the library's smallest inverter"""
TREE_FANOUT = 8
"""load of a tree buffer over its own input capacitance"""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What stands at the ports of the design: transition of its inputs and clock (ns), load of its outputs (pF).

    Inputs arrive at time 0 with the clock edge, outputs are due one period later.
    """

    input_slew: float
    output_load: float


@dataclass(kw_only=True)
class Loads:
    """Of one module: load of each driven net (pF), clock nets, capacitance of its input pins, buffers of its trees."""

    net: dict[int, float]
    clocks: set[int]
    pins: dict[str, float]
    trees: Counter[str]


def usual_conditions(library: Library) -> Conditions:
    """Fan-out of 4 at the ports: the smallest inverter's settled transition, four of its inputs as load."""
    inverter = library.inverter
    load = 4 * sum(inverter.caps.values())
    slew = 0.0
    for _ in range(20):  # a chain of equal inverters settles within a few
        arc = inverter.arcs[0]
        slew = max(arc.slew[edge].at(slew, load) for edge in (RISE, FALL))
    return Conditions(input_slew=slew, output_load=load)


def plan_loads(blocks: dict[str, Block], top: str, library: Library, conditions: Conditions) -> dict[str, Loads]:
    """Loads of every module; puts one buffer of each level of a tree into the blocks, so that paths pass them."""
    planner = _Planner(blocks=blocks, library=library, conditions=conditions, loads={})
    for name in blocks:
        planner.inside(name)
    clocks = {pin for pin, bit in blocks[top].inputs.items() if bit in planner.loads[top].clocks}
    require(len(clocks) <= 1, f"module {top}: {len(clocks)} clocks ({', '.join(sorted(clocks))}); one is timed")
    outside: dict[str, dict[str, float]] = {name: defaultdict(float) for name in blocks}
    outside[top] = dict.fromkeys(blocks[top].outputs, conditions.output_load)
    for name in reversed(blocks):
        planner.outside(name, outside)
    return planner.loads


@dataclass(kw_only=True)
class _Planner:
    blocks: dict[str, Block]
    library: Library
    conditions: Conditions
    loads: dict[str, Loads]

    def inside(self, name: str) -> None:
        """Sum the pins inside a module; its input pins are complete then, trees included."""
        block = self.blocks[name]
        loads = Loads(net=defaultdict(float), clocks=set(), pins={}, trees=Counter())
        for instance in block.instances:
            caps, clocks = self._pins_of(instance)
            loads.clocks |= {instance.pins[pin] for pin in clocks if pin in instance.pins}
            for pin, bit in instance.pins.items():
                loads.net[bit] += caps.get(pin, 0.0)
        _check_clocks(block, loads.clocks)
        self.loads[name] = loads
        inputs = {bit: pin for pin, bit in block.inputs.items() if bit not in loads.clocks}
        self._plant(block, loads, dict.fromkeys(inputs, self.library.inverter))
        loads.pins = {pin: loads.net[bit] for bit, pin in inputs.items()}

    def outside(self, name: str, outside: dict[str, dict[str, float]]) -> None:
        """Add the external load of a module's outputs; then tell its children theirs."""
        block, loads = self.blocks[name], self.loads[name]
        for pin, bit in block.outputs.items():
            loads.net[bit] += outside[name][pin]
        self._plant(block, loads, self._drivers(block))
        for instance in block.instances:
            if instance.type in self.blocks:
                child = outside[instance.type]
                for pin in self.blocks[instance.type].outputs:
                    child[pin] = max(child[pin], loads.net.get(instance.pins.get(pin, -1), 0.0))

    def _pins_of(self, instance: Instance) -> tuple[dict[str, float], set[str]]:
        """Capacitance of the data pins, and the clock pins."""
        if instance.type in self.blocks:
            child, block = self.loads[instance.type], self.blocks[instance.type]
            return child.pins, {pin for pin, bit in block.inputs.items() if bit in child.clocks}
        cell = self.library.cells[instance.type]
        return {p: c for p, c in cell.caps.items() if p != cell.clock}, {cell.clock} if cell.clock else set()

    def _drivers(self, block: Block) -> dict[int, Cell]:
        """The cell that drives each net; for a child's output the smallest inverter stands in."""
        drivers: dict[int, Cell] = {}
        for instance in block.instances:
            cell = self.library.cells.get(instance.type, self.library.inverter)
            drivers |= {instance.pins[pin]: cell for pin in self._outputs_of(instance) if pin in instance.pins}
        return drivers

    def _outputs_of(self, instance: Instance) -> Collection[str]:
        block = self.blocks.get(instance.type)
        return block.outputs if block else self.library.cells[instance.type].functions

    def _plant(self, block: Block, loads: Loads, drivers: dict[int, Cell]) -> None:
        limit = MAX_FANOUT * sum(self.library.inverter.caps.values())
        heavy = [bit for bit in drivers if loads.net[bit] > limit]
        levels = {bit: tree for bit in heavy if (tree := self._tree(loads.net[bit], drivers[bit]))}
        if levels:
            _insert(block, loads, levels, tree_buffer(self.library), self._outputs_of)

    def _tree(self, load: float, driver: Cell) -> list[int]:
        """Buffers of each level, leaves first; empty where the driver alone is as fast."""
        slew, buffer = self.conditions.input_slew, tree_buffer(self.library)
        counts = tree_counts(load, buffer)
        stages = stage_loads(counts, load, buffer)
        with_tree = driver.worst(slew, counts[-1] * _cap(buffer)) + sum(buffer.worst(slew, at) for at in stages)
        return counts if with_tree < driver.worst(slew, load) else []


def tree_buffer(library: Library) -> Cell:
    """The buffer of least area among those within a tenth of the least delay at TREE_FANOUT."""
    slew = usual_conditions(library).input_slew
    delay = {b.name: b.worst(slew, TREE_FANOUT * _cap(b)) for b in library.buffers}
    fast = [b for b in library.buffers if delay[b.name] <= 1.1 * min(delay.values())]
    return min(fast, key=lambda b: (b.area, b.name))


def tree_counts(load: float, buffer: Cell) -> list[int]:
    """Buffers of each level of a tree that drives `load` pF, leaves first."""
    # 1e-9: a sum of many equal loads may exceed a whole number by its rounding
    counts = [math.ceil(load / (TREE_FANOUT * _cap(buffer)) - 1e-9)]
    while counts[-1] > TREE_FANOUT:
        counts.append(math.ceil(counts[-1] / TREE_FANOUT))
    return counts


def stage_loads(counts: list[int], load: float, buffer: Cell) -> list[float]:
    """Load of one buffer of each level, leaves first."""
    below = [load, *(n * _cap(buffer) for n in counts[:-1])]
    return [total / n for total, n in zip(below, counts, strict=True)]


def _cap(buffer: Cell) -> float:
    return sum(buffer.caps.values())


def _insert(
    block: Block,
    loads: Loads,
    levels: dict[int, list[int]],
    buffer: Cell,
    outputs_of: Callable[[Instance], Collection[str]],
) -> None:
    """Put one buffer of each level between each net and its sinks; the others of the level are only counted."""
    (into,), (out,) = buffer.caps, buffer.functions
    after: dict[int, int] = {}
    added = []
    fresh = max([*loads.net, *block.inputs.values(), *(bit for i in block.instances for bit in i.pins.values())]) + 1
    for net, counts in levels.items():
        load, source = loads.net[net], net
        loads.net[net] = counts[-1] * _cap(buffer)
        for stage in reversed(stage_loads(counts, load, buffer)):
            added.append(Instance(name="buffer_tree", type=buffer.name, pins={into: source, out: fresh}))
            loads.net[fresh] = stage
            block.net_names[fresh] = f"{block.net_names.get(net, f'net{net}')} (tree of {counts[0]} buffers)"
            source, fresh = fresh, fresh + 1
        after[net] = source
        loads.trees[buffer.name] += sum(counts)
    _move_sinks(block, after, outputs_of)
    block.instances += added


def _move_sinks(block: Block, after: dict[int, int], outputs_of: Callable[[Instance], Collection[str]]) -> None:
    """Hang every reader of a net on the last level of its tree."""
    for instance in block.instances:
        drives = outputs_of(instance)
        for pin, bit in instance.pins.items():
            if bit in after and pin not in drives:
                instance.pins[pin] = after[bit]
    block.outputs = {pin: after.get(bit, bit) for pin, bit in block.outputs.items()}


def _check_clocks(block: Block, clocks: set[int]) -> None:
    """Every clock net must be an input of its module."""
    derived = sorted(block.net_names.get(bit, f"net{bit}") for bit in clocks - set(block.inputs.values()))
    require(
        not derived,
        f"module {block.name}: clock {', '.join(derived)} is made by logic (gated, divided or inverted); "
        "one rising-edge clock from a port is timed",
    )
