"""A network on a machine: plan, tilings, simulation, and what came of every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from hwsim.system.engines import modes_of
from hwsim.system.lower import Planned, plan, waits_of
from hwsim.system.machine import Machine
from hwsim.system.power import Energy, moved_bits, together
from hwsim.system.program import repeats
from hwsim.system.simulate import BUFFER_NAMES, Run, Simulated, Slice, memory_of, simulate
from hwsim.system.stages import Builder, Built
from hwsim.system.tiling import Product, Traffic, traffic
from hwsim.workloads.graph import Graph


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """What came of a layer, or of several that are done together."""

    name: str
    what: str
    """product, attention, vector, transform or quantize"""
    unit: str
    """that it runs on"""
    mode: str
    """of that, where it has several"""
    fused: tuple[str, ...]
    shape: tuple[int, int, int, int] | None
    """batch, M, K, N of a product"""
    order: str
    tile: tuple[int, int, int] | None
    macs: int
    begin: int
    end: int
    cycles: int
    """by which the network's last result so far is later than before this layer"""
    compute_cycles: int
    """its unit at work"""
    unit_cycles: dict[str, int]
    """every unit at work, those that its result passes through too"""
    bus_cycles: int
    stall_cycles: int
    """`cycles` without its unit at work; 0 where more of its work lies under other layers"""
    bound_cycles: int
    """the roofline's, of its work and of the bytes of its tiling: from `begin` to `end` it is never less. `cycles` can
    be, where a part of it lies under other layers"""
    bound: str
    """what is busiest: `compute` for its unit, `epilogue` for one that its result passes through, `memory` for the bus;
    `latency` where nothing is at work half the time"""
    read_bytes: dict[str, int]
    """by operand"""
    written_bytes: int
    scratchpad_bytes: dict[str, int]
    """that enter and leave the scratchpads of activations, weights and outputs, on both sides"""
    energy_pj: Energy
    steps: int

    @property
    def bytes(self) -> int:
        return sum(self.read_bytes.values()) + self.written_bytes

    @property
    def intensity(self) -> float | None:
        """Multiply-accumulates a byte of main memory."""
        return self.macs / self.bytes if self.macs and self.bytes else None


@dataclass(frozen=True, kw_only=True)
class Result:
    """A network on a machine."""

    network: str
    source: str
    machine: Machine
    notes: tuple[str, ...]
    layers: tuple[LayerResult, ...]
    total_cycles: int
    busy_cycles: dict[str, int]
    """by resource: every unit, and the bus"""
    peaks: dict[str, float]
    """engine that has something to do -> multiply-accumulates in a cycle in which every lane is busy, in the mode that
    has most of them"""
    slices: tuple[Slice, ...]
    built: tuple[Built, ...]
    simulated_steps: int

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def peak_per_cycle(self) -> float:
        """Multiply-accumulates of all engines."""
        return sum(self.peaks.values())

    @property
    def utilization(self) -> float:
        room = self.total_cycles * self.peak_per_cycle
        return self.macs / room if room else 0.0

    @property
    def energy_pj(self) -> Energy:
        total: Energy = {}
        for layer in self.layers:
            for part, energy in layer.energy_pj.items():
                total[part] = total.get(part, 0.0) + energy
        return total

    @property
    def seconds(self) -> float:
        return self.total_cycles / (self.machine.clock_mhz * 1e6)

    @property
    def energy_delay_js(self) -> float:
        """Energy-delay product, J s."""
        return sum(self.energy_pj.values()) * 1e-12 * self.seconds

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)


Progress = Callable[[str, int, int], None]
"""(what, how far, of how much)"""


def run(graph: Graph, machine: Machine, *, record: bool = False, progress: Progress | None = None) -> Result:
    """The network from its first transfer to its last result in memory.

    `record` keeps a slice of every transfer and step. InputError where a layer does not fit the machine.
    """
    tell = progress or (lambda *_: None)
    planned, notes = plan(graph, machine)
    builder, built = Builder(machine), []
    for i, (entry, waits) in enumerate(zip(planned, waits_of(planned), strict=True)):
        tell(f"tiling {entry.name}", i, len(planned))
        built.append(builder.build(entry, waits))
    program = repeats([entry.stage for entry in built])
    simulated = simulate(program, machine, record=record, progress=lambda done: tell("simulating", done, len(planned)))
    layers = _layers(built, simulated, machine)
    check_conserved(built, simulated, machine)
    return Result(
        network=graph.name,
        source=graph.source,
        machine=machine,
        notes=(*graph.notes, *notes, *_unmatched(machine, builder), *machine.notes),
        layers=layers,
        total_cycles=simulated.total_cycles,
        busy_cycles=_busy(simulated),
        peaks=_peaks(planned, machine),
        slices=simulated.slices,
        built=tuple(built),
        simulated_steps=simulated.simulated_steps,
    )


def _unmatched(machine: Machine, builder: Builder) -> list[str]:
    """Patterns of the schedule that no product of this network has: a mistyped one, or another network's."""
    patterns = dict.fromkeys(layer.match for layer in machine.schedule.layers)
    return [f"schedule: no product here matches {match!r}" for match in patterns if match not in builder.matched]


def _peaks(planned: list[Planned], machine: Machine) -> dict[str, float]:
    used = {entry.engine.name for entry in planned if entry.engine is not None}
    return {
        spec.name: max(mode.peak_per_cycle for mode in modes_of(spec)) for spec in machine.engines if spec.name in used
    }


def _busy(simulated: Simulated) -> dict[str, int]:
    busy: dict[str, int] = {"bus": sum(run.bus_cycles for run in simulated.runs)}
    for run_ in simulated.runs:
        for unit, cycles in run_.unit_cycles.items():
            busy[unit] = busy.get(unit, 0) + cycles
    return busy


def _layers(built: list[Built], simulated: Simulated, machine: Machine) -> tuple[LayerResult, ...]:
    latest, found = 0, []
    for entry, came in zip(built, simulated.runs, strict=True):
        found.append(_layer(entry, came, max(came.end - latest, 0), machine))
        latest = max(latest, came.end)
    return tuple(found)


def _layer(built: Built, came: Run, cycles: int, machine: Machine) -> LayerResult:
    planned, tiling = built.planned, built.tiling
    work = planned.work
    product = isinstance(work, Product)
    unit = planned.engine.name if planned.engine is not None else planned.what
    compute = came.unit_cycles.get(unit, 0)
    return LayerResult(
        name=planned.name,
        what=planned.what,
        unit=unit,
        mode=planned.engine.mode if planned.engine is not None else "",
        fused=planned.fused,
        shape=(work.batch, work.M, work.K, work.N) if product else None,
        order=tiling.order if tiling else "",
        tile=tiling.tile if tiling else None,
        macs=macs_of(planned),
        begin=came.begin,
        end=came.end,
        cycles=cycles,
        compute_cycles=compute,
        unit_cycles=dict(came.unit_cycles),
        bus_cycles=came.bus_cycles,
        stall_cycles=max(cycles - compute, 0),
        bound_cycles=roofline_cycles(built, machine),
        bound=_bound(came, unit, cycles),
        read_bytes={BUFFER_NAMES[buffer]: moved for buffer, moved in sorted(came.read_bytes.items())},
        written_bytes=came.written_bytes,
        scratchpad_bytes={
            kind.value: ceil(bits / 8) for kind, bits in together(moved_bits(built.stage.nodes), built.crossed).items()
        },
        energy_pj=built.energy_pj,
        steps=came.steps,
    )


def macs_of(planned: Planned) -> int:
    """Multiply-accumulates."""
    if planned.what == "product":
        return int(planned.work.macs)
    return int(planned.work[0].macs + planned.work[2].macs) if planned.what == "attention" else 0


def _bound(came: Run, unit: str, cycles: int) -> str:
    busy = {"memory": came.bus_cycles} | came.unit_cycles
    busiest = max(busy, key=lambda name: (busy[name], name == unit))
    if 2 * busy[busiest] < cycles:
        return "latency"
    return {"memory": "memory", unit: "compute"}.get(busiest, "epilogue")


def roofline_cycles(built: Built, machine: Machine) -> int:
    """What the work at the engine's peak, or the bytes at the bus's bandwidth, take at least."""
    planned, rate = built.planned, memory_of(machine).bytes_per_cycle
    moved = 0 if rate is None else -(-traffic(built.stage.nodes).bytes // rate)
    work = 0
    if planned.engine is not None:
        work = -(-macs_of(planned) // Fraction(planned.engine.peak_per_cycle).limit_denominator(1 << 20))
    return int(max(moved, work))


def check_conserved(built: list[Built], simulated: Simulated, machine: Machine) -> None:
    """What every run has to show: bytes and cycles are those of the steps; nothing is busy for longer than the whole,
    so that busy and idle cycles are all there are; neither a layer nor the whole is below its roofline."""
    total = simulated.total_cycles
    for entry, came in zip(built, simulated.runs, strict=True):
        _check(came, traffic(entry.stage.nodes))
        bound = roofline_cycles(entry, machine)
        assert came.end - came.begin >= bound, f"{came.name}: {came.end - came.begin} cycles are below its {bound}"
    for name, busy in _busy(simulated).items():
        assert busy <= total, f"{name} is busy for {busy} of {total} cycles"
    rate = memory_of(machine).bytes_per_cycle
    moved = sum(sum(came.read_bytes.values()) + came.written_bytes for came in simulated.runs)
    assert rate is None or total * rate >= moved, "more bytes than the bus can carry"
    for spec in machine.engines:
        macs = sum(macs_of(e.planned) for e in built if e.planned.engine and e.planned.engine.name == spec.name)
        assert total * max(mode.peak_per_cycle for mode in modes_of(spec)) >= macs, f"{spec.name}: more than its peak"


def _check(came: Run, needed: Traffic) -> None:
    assert sum(came.read_bytes.values()) == needed.read_bytes, f"{came.name}: bytes read are not those of its tiling"
    assert came.written_bytes == needed.written_bytes, f"{came.name}: bytes written are not those of its tiling"
    assert came.unit_cycles == needed.cycles, f"{came.name}: cycles are not those of its steps"
    assert came.steps == needed.steps, f"{came.name}: steps were lost"
