"""The machine at work, in integer cycles: a program of transfers and steps on SimPy.

One loader goes through the program in order. For each step it takes room in the scratchpads and starts the transfers
that bring the operands, as far ahead as there is room. Every unit does its steps in program order, each as soon as its
operands are there and its result has room. Results leave through the units of their epilogue and the DMA. Channels, bus
and units serve first come, first served.

Iterations of a loop are alike, so the machine soon goes round in a circle: where its whole state at the beginning of an
iteration equals that of an earlier one, everything in between would repeat. Those rounds are counted and not simulated.
The state is complete: what is under way and since when, in the order of the last changes, and how much of everything
is taken. tests/test_system_simulate.py holds runs with and without this against each other.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import simpy

from hwsim.system.machine import Machine, Operand
from hwsim.system.program import ACT, EXTRA, OUT, SCORES, WEIGHT, Loop, Move, Node, Repeat, Stage, Step, steps_of

PAD_OF = {
    ACT: Operand.ACTIVATIONS,
    WEIGHT: Operand.WEIGHTS,
    OUT: Operand.OUTPUTS,
    EXTRA: Operand.ACTIVATIONS,
    SCORES: Operand.OUTPUTS,
}
"""buffer -> the kind of operand whose scratchpad it lies in"""

VECTOR = "vector"
PAD = "scratchpad"
"""begins the track of what lies in one"""

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """DRAM and DMA as the simulation needs them."""

    bytes_per_cycle: Fraction | None
    latency: int
    row_bytes: int | None
    row_miss: int
    channels: int
    setup: int

    def bus_cycles(self, move: Move) -> int:
        """That a transfer holds the bus."""
        each = -(-move.bytes // move.runs)
        rows = move.runs * -(-each // self.row_bytes) if self.row_bytes else move.runs
        rate = self.bytes_per_cycle
        # in integers: this is asked for every transfer
        carried = 0 if rate is None else -(-move.bytes * rate.denominator // rate.numerator)
        return carried + rows * self.row_miss


def memory_of(machine: Machine) -> Memory:
    dram, dma = machine.dram, machine.dma
    # the number that stands in the machine file, not the binary one next to it
    rate = None if dram.bytes_per_cycle is None else Fraction(str(dram.bytes_per_cycle))
    return Memory(
        bytes_per_cycle=rate,
        latency=dram.latency_cycles,
        row_bytes=dram.row_bytes,
        row_miss=dram.row_miss_cycles,
        channels=dma.channels,
        setup=dma.setup_cycles,
    )


@dataclass(kw_only=True)
class Run:
    """What came of a stage. Cycles are those of the machine's clock from the start of the program."""

    name: str
    begin: int = -1
    """the loader comes to it"""
    end: int = -1
    """its last result is in memory"""
    read_bytes: dict[int, int] = field(default_factory=dict)
    """by buffer"""
    written_bytes: int = 0
    bus_cycles: int = 0
    unit_cycles: dict[str, int] = field(default_factory=dict)
    """each unit at work, epilogues included"""
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Something that took from `begin` to `end`, for a picture."""

    track: str
    name: str
    stage: int
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What came of a program."""

    total_cycles: int
    runs: tuple[Run, ...]
    """of every stage, in program order"""
    slices: tuple[Slice, ...]
    """of every transfer and step, where they were asked for"""
    simulated_steps: int
    """those that were really gone through"""


class TooLong(Exception):
    """A simulation has passed the limit that was set."""


def simulate(
    program: list[Repeat],
    machine: Machine,
    *,
    skip: bool = True,
    record: bool = False,
    progress: Any = None,
    limit: float = math.inf,
) -> Simulated:
    """Run the program from an idle machine to its last result. TooLong as soon as it is sure to take more cycles than
    `limit`.

    `skip` False goes through every round of every loop, to the same result. `record` keeps a slice of everything, which
    needs every round too. `progress(stages)` is called with the number of stages that have begun.
    """
    return _Simulation(machine, skip=skip and not record, record=record, progress=progress, limit=limit).run(program)


class _Item:
    """Something under way: part of the machine's state."""

    __slots__ = ("run_number", "since", "state", "step_number", "what")

    def __init__(self, what: Any, run_number: int, step_number: int) -> None:
        self.what = what
        self.run_number = run_number
        self.step_number = step_number
        self.state = ""
        self.since: int | None = None


class _Tile:
    """An operand in a scratchpad; given back when the last step that reads it has ended."""

    __slots__ = ("closed", "move", "pending", "ready")

    def __init__(self, env: simpy.Environment, move: Move) -> None:
        self.move = move
        self.ready = env.event()
        self.pending = 0
        self.closed = False


class _Out:
    """A tile of the result: its room, and what it has to wait for."""

    __slots__ = ("granted",)

    def __init__(self, granted: list[simpy.Event]) -> None:
        self.granted = granted


class _StageRun:
    """A stage under way."""

    def __init__(self, stage: Stage, run: Run, number: int, done: simpy.Event, env: simpy.Environment) -> None:
        self.stage = stage
        self.run = run
        self.number = number
        self.done = done
        self.open = 1  # the loader itself
        self.size = dict(stage.buffers)
        self.room = {buffer: simpy.Resource(env, capacity=stage.copies) for buffer in self.size}
        self.held: dict[int, list[Any]] = {buffer: [] for buffer in self.size}
        self.taken: dict[int, list[int]] = {buffer: [] for buffer in self.size}
        """since when, where a record is kept"""
        self.current: dict[int, _Tile] = {}
        self.waits = list(stage.waits)
        self.ahead = 0
        """cycles skipped while it was under way: its own end does not lie behind them, its last copy's does"""
        self.out: _Out | None = None
        self.older: _Tile | None = None
        """the scores before the latest ones"""
        reach = max((step.after for _, step in steps_of(stage.nodes)), default=0)
        self.ends: deque[simpy.Event] = deque(maxlen=reach)
        """of the steps that others can wait for"""

    def state(self, runs: int) -> Any:
        """What of it the rest of the run depends on, when `runs` stages have begun."""
        rooms = tuple((room.count, len(room.queue)) for room in self.room.values())
        return self.number - runs, id(self.stage), len(self.waits), rooms


class _Simulation:
    def __init__(self, machine: Machine, *, skip: bool, record: bool, progress: Any, limit: float) -> None:
        self.env = simpy.Environment()
        self.machine = machine
        self.memory = memory_of(machine)
        self.skip = skip
        self.limit = limit
        self.slices: list[Slice] | None = [] if record else None
        self.progress = progress or (lambda _: None)
        self.channels = simpy.Resource(self.env, capacity=self.memory.channels)
        self.bus = simpy.Resource(self.env, capacity=1)
        self.pads = {
            pad.name: simpy.Container(self.env, capacity=pad.bytes, init=pad.bytes) for pad in machine.scratchpads
        }
        self.pad_of = {buffer: self.pads[machine.scratchpad(kind).name] for buffer, kind in PAD_OF.items()}
        self.units: dict[str, simpy.Resource] = {}
        self.queues: dict[str, simpy.Store] = {}
        self.live: dict[int, _Item] = {}
        self.keys = itertools.count()
        self.runs: list[_StageRun] = []
        self.under_way: dict[int, _StageRun] = {}
        """those of them that have not ended, by number"""
        self.copied: list[tuple[int, int, int, int]] = []
        """(first stage run, stage runs, copies, cycles of a copy), put in place at the end"""
        self.offset = 0
        """cycles skipped so far"""
        self.step_number = 0

    def run(self, program: list[Repeat]) -> Simulated:
        loader = self.env.process(self._load(program))
        self.env.run()
        ended = not loader.is_alive and all(at.open == 0 for at in self.runs)
        assert ended, "the machine stands still: room is waited for that nobody gives back"
        runs = self._all_runs(program)
        return Simulated(
            total_cycles=max(run.end for run in runs),
            runs=tuple(runs),
            slices=tuple(self.slices or ()),
            simulated_steps=self.step_number,
        )

    # ---- the loader

    def _load(self, program: list[Repeat]) -> Process:
        for repeat in program:
            yield from self._rounds(repeat.count, lambda repeat=repeat: self._stages(repeat.stages), None)

    def _stages(self, stages: tuple[Stage, ...]) -> Process:
        for stage in stages:
            yield from self._stage(stage)

    def _stage(self, stage: Stage) -> Process:
        run = Run(name=stage.name, begin=self.env.now + self.offset)
        at = _StageRun(stage, run, len(self.runs), self.env.event(), self.env)
        self.runs.append(at)
        self.under_way[at.number] = at
        self.progress(len(self.runs))
        if not self.machine.prefetch and at.number > 0:
            yield self.runs[-2].done
            run.begin = self.env.now + self.offset
        yield from self._nodes(at, stage.nodes)
        for buffer in list(at.current):
            self._replace(at, buffer)
        if at.older is not None:
            self._close(at, at.older)
        self._leave(at)

    def _nodes(self, at: _StageRun, nodes: tuple[Node, ...]) -> Process:
        for node in nodes:
            if isinstance(node, Loop):
                yield from self._rounds(node.count, lambda node=node: self._nodes(at, node.body), at)
            else:
                yield from self._issue(at, node)

    def _rounds(self, count: int, body: Any, at: _StageRun | None) -> Process:
        """`body` as often as that; rounds after which the machine is where it was are counted instead."""
        seen: dict[Any, Any] = {}
        done = 0
        while done < count:
            if self.skip and count > 2:
                state = self._state()
                if state in seen:
                    done += self._jump(seen[state], done, count, at)
                    seen = {}
                    if done == count:
                        break
                else:
                    seen[state] = self._mark(done, at)
            yield from body()
            done += 1

    def _mark(self, done: int, at: _StageRun | None) -> Any:
        return done, self.env.now + self.offset, len(self.runs), None if at is None else _figures(at.run)

    def _jump(self, mark: Any, done: int, count: int, at: _StageRun | None) -> int:
        """Counts as many rounds as fit and returns how many; `mark` is when the machine was in this state before."""
        before, time, first, figures = mark
        period, cycles = done - before, self.env.now + self.offset - time
        kept = self._rounds_under_way(first) * period if at is None else 0
        copies = (count - done - kept) // period
        if copies < 1:
            return 0
        self.offset += copies * cycles
        if at is None:
            self._copy_stages(first, copies, cycles)
        else:
            _add_figures(at.run, figures, copies)
        return copies * period

    def _rounds_under_way(self, first: int) -> int:
        """How many more times the stages from `first` on have to be gone through: those that are under way end under
        the eyes of the ones that follow."""
        oldest = min(self.under_way, default=len(self.runs))
        return max(1, -(-(len(self.runs) - oldest) // (len(self.runs) - first)))

    def _copy_stages(self, first: int, copies: int, cycles: int) -> None:
        """`copies` times the stages from `first` on, a copy every `cycles`."""
        self.copied.append((first, len(self.runs) - first, copies, cycles))
        for at in self.under_way.values():
            at.ahead += copies * cycles

    def _state(self) -> Any:
        """Everything that the rest of the run depends on, the program apart."""
        now, step, run = self.env.now, self.step_number, len(self.runs)
        under_way = tuple(
            (i.what, i.run_number - run, i.step_number - step, i.state, i.since if i.since is None else i.since - now)
            for i in self.live.values()
        )
        taken = (
            self.channels.count,
            len(self.channels.queue),
            self.bus.count,
            len(self.bus.queue),
            *(pad.level for pad in self.pads.values()),
            *((unit.count, len(unit.queue)) for unit in self.units.values()),
            *(len(queue.items) for queue in self.queues.values()),
        )
        return under_way, taken, tuple(at.state(run) for at in self.under_way.values())

    def _issue(self, at: _StageRun, step: Step) -> Process:
        """Room for what the step needs, in program order, and the transfers that bring it."""
        self.step_number += 1
        if self.env.now + self.offset > self.limit:
            raise TooLong
        for move in step.loads:
            self._replace(at, move.buffer)
            if move.buffer != WEIGHT or at.stage.weights_wait:
                yield from self._wait_for_stages(at)
            yield from self._ask(at, move.buffer)
            tile = _Tile(self.env, move)
            at.current[move.buffer] = tile
            self._start_load(at, tile)
        if step.new_out:
            at.out = _Out(self._ask(at, OUT))
            if step.resume is not None:
                yield from at.out.granted
                back = _Tile(self.env, step.resume)
                self._start_load(at, back)
                at.out.granted = [back.ready]
        self._queue(at, step)

    def _replace(self, at: _StageRun, buffer: int) -> None:
        """The tile at hand is given back when it has been read; scores only with the next but one."""
        tile = at.current.pop(buffer, None)
        if buffer == SCORES and at.stage.copies > 1:
            tile, at.older = at.older, tile
        if tile is not None:
            self._close(at, tile)

    def _wait_for_stages(self, at: _StageRun) -> Process:
        while at.waits:
            back = at.waits.pop()
            if back <= at.number:
                yield self.runs[at.number - back].done

    def _ask(self, at: _StageRun, buffer: int) -> list[simpy.Event]:
        """Requests for room; they are granted in the order in which they were made."""
        slot = at.room[buffer].request()
        at.held[buffer].append(slot)
        asked = [slot, self.pad_of[buffer].get(at.size[buffer])] if at.size[buffer] else [slot]
        if self.slices is not None:
            self.env.all_of(asked).callbacks.append(lambda _: at.taken[buffer].append(self.env.now))
        return asked

    def _give_back(self, at: _StageRun, buffer: int) -> None:
        at.room[buffer].release(at.held[buffer].pop(0))
        if at.size[buffer]:
            self.pad_of[buffer].put(at.size[buffer])
        if self.slices is not None:
            pad = self.machine.scratchpad(PAD_OF[buffer]).name
            self._record(f"{PAD} {pad}", BUFFER_NAMES[buffer], at, at.taken[buffer].pop(0))

    def _close(self, at: _StageRun, tile: _Tile) -> None:
        tile.closed = True
        if tile.pending == 0:
            self._give_back(at, tile.move.buffer)

    def _read(self, at: _StageRun, tile: _Tile) -> None:
        tile.pending -= 1
        if tile.closed and tile.pending == 0:
            self._give_back(at, tile.move.buffer)

    def _leave(self, at: _StageRun) -> None:
        at.open -= 1
        if at.open == 0:
            del self.under_way[at.number]
            at.run.end = self.env.now + self.offset - at.ahead
            at.done.succeed()

    # ---- transfers

    def _start_load(self, at: _StageRun, tile: _Tile) -> None:
        at.open += 1
        self.env.process(self._bring(at, tile))

    def _bring(self, at: _StageRun, tile: _Tile) -> Process:
        if tile.move.bytes:
            yield from self._transfer(at, tile.move, read=True)
            read = at.run.read_bytes
            read[tile.move.buffer] = read.get(tile.move.buffer, 0) + tile.move.bytes
        tile.ready.succeed()
        self._leave(at)

    def _transfer(self, at: _StageRun, move: Move, *, read: bool) -> Process:
        key = self._enter(("move", move, read), at)
        with self.channels.request() as channel:
            yield channel
            begun = self.env.now
            self._change(key, "setup", timed=True)
            if self.memory.setup:
                yield self.env.timeout(self.memory.setup)
            self._change(key, "bus queue")
            with self.bus.request() as bus:
                yield bus
                self._change(key, "bus", timed=True)
                held = self.memory.bus_cycles(move)
                on_bus = self.env.now
                yield self.env.timeout(held)
                at.run.bus_cycles += held
                self._record("bus", BUFFER_NAMES[move.buffer], at, on_bus)
            if read and self.memory.latency:
                self._change(key, "latency", timed=True)
                yield self.env.timeout(self.memory.latency)
        self._record(f"dma {'read' if read else 'write'}", BUFFER_NAMES[move.buffer], at, begun)
        del self.live[key]

    # ---- units

    def _queue(self, at: _StageRun, step: Step) -> None:
        held = {**at.current, SCORES: at.older} if step.older else at.current
        tiles = [tile for buffer in step.reads if (tile := held.get(buffer)) is not None]
        for tile in tiles:
            tile.pending += 1
        at.open += 1
        at.run.steps += 1
        out, extra = at.out, None
        if step.store is not None:
            extra, at.out = at.current.pop(EXTRA, None), None
        done = self.env.event()
        after = at.ends[-step.after] if step.after else None
        at.ends.append(done)
        if step.unit not in self.queues:
            self.queues[step.unit] = simpy.Store(self.env)
            self._unit(step.unit)
            self.env.process(self._work(step.unit))
        key = self._enter(("step", id(step)), at)
        self.queues[step.unit].put((at, step, tiles, out, extra, after, done, key))

    def _unit(self, name: str) -> simpy.Resource:
        if name not in self.units:
            self.units[name] = simpy.Resource(self.env, capacity=1)
        return self.units[name]

    def _work(self, name: str) -> Process:
        """A unit: its steps in program order."""
        queue, unit = self.queues[name], self.units[name]
        while True:
            at, step, tiles, out, extra, after, done, key = yield queue.get()
            if after is not None:
                yield after
            for tile in tiles:
                yield tile.ready
            if out is not None:
                yield from out.granted
                out.granted = []
            yield from self._busy(name, unit, at, step.cycles, key)
            done.succeed()
            for tile in tiles:
                self._read(at, tile)
            if step.store is not None:
                at.open += 1
                self.env.process(self._put(at, step, extra))
            del self.live[key]
            self._leave(at)

    def _busy(self, name: str, unit: simpy.Resource, at: _StageRun, cycles: int, key: int) -> Process:
        self._change(key, "unit queue")
        with unit.request() as granted:
            yield granted
            self._change(key, "busy", timed=True)
            begun = self.env.now
            yield self.env.timeout(cycles)
        at.run.unit_cycles[name] = at.run.unit_cycles.get(name, 0) + cycles
        self._record(name, at.stage.name, at, begun)

    def _put(self, at: _StageRun, step: Step, extra: _Tile | None) -> Process:
        """A finished tile of the result through the units of its epilogue to memory."""
        key = self._enter(("put", id(step)), at)
        if extra is not None:
            yield extra.ready
        del self.live[key]
        for place, (name, cycles) in enumerate(step.epilogue):
            key = self._enter(("pass", place, id(step)), at)
            yield from self._busy(name, self._unit(name), at, cycles, key)
            del self.live[key]
        if extra is not None:
            self._give_back(at, EXTRA)
        if step.store is not None and step.store.bytes:
            yield from self._transfer(at, step.store, read=False)
            at.run.written_bytes += step.store.bytes
        self._give_back(at, OUT)
        self._leave(at)

    # ---- state and records

    def _enter(self, what: Any, at: _StageRun) -> int:
        key = next(self.keys)
        self.live[key] = _Item(what, at.number, self.step_number)
        return key

    def _change(self, key: int, state: str, *, timed: bool = False) -> None:
        """The dictionary stays in the order of last changes."""
        item = self.live.pop(key)
        item.state, item.since = state, self.env.now if timed else None
        self.live[key] = item

    def _record(self, track: str, name: str, at: _StageRun, begun: int) -> None:
        if self.slices is not None and self.env.now > begun:
            self.slices.append(Slice(track=track, name=name, stage=at.number, begin=begun, end=self.env.now))

    def _all_runs(self, program: list[Repeat]) -> list[Run]:
        """Of every stage, with the copies of those of skipped rounds, under their own names."""
        found: list[Run] = []
        at = 0
        for first, count, copies, cycles in self.copied:
            found += [entry.run for entry in self.runs[at : first + count]]
            template = [entry.run for entry in self.runs[first : first + count]]
            found += [_shifted(run, i * cycles) for i in range(1, copies + 1) for run in template]
            at = first + count
        found += [entry.run for entry in self.runs[at:]]
        names = [name for repeat in program for name in repeat.names]
        assert len(names) == len(found), "stages were lost or counted twice"
        return [_named(run, name) for run, name in zip(found, names, strict=True)]


BUFFER_NAMES = {ACT: "activations", WEIGHT: "weights", OUT: "outputs", EXTRA: "epilogue", SCORES: "scores"}


def _figures(run: Run) -> Run:
    return Run(
        name="",
        read_bytes=dict(run.read_bytes),
        written_bytes=run.written_bytes,
        bus_cycles=run.bus_cycles,
        unit_cycles=dict(run.unit_cycles),
        steps=run.steps,
    )


def _add_figures(run: Run, before: Run, copies: int) -> None:
    """Adds what has come since `before` so many times more."""

    def grown(now: Mapping[Any, int], then: Mapping[Any, int]) -> dict[Any, int]:
        return {key: value + copies * (value - then.get(key, 0)) for key, value in now.items()}

    run.read_bytes = grown(run.read_bytes, before.read_bytes)
    run.unit_cycles = grown(run.unit_cycles, before.unit_cycles)
    run.written_bytes += copies * (run.written_bytes - before.written_bytes)
    run.bus_cycles += copies * (run.bus_cycles - before.bus_cycles)
    run.steps += copies * (run.steps - before.steps)


def _shifted(run: Run, cycles: int) -> Run:
    copy = _figures(run)
    copy.begin, copy.end = run.begin + cycles, run.end + cycles
    return copy


def _named(run: Run, name: str) -> Run:
    run.name = name
    return run
