"""A run as a trace in Chrome's JSON format, which Perfetto reads: one cycle is shown as one microsecond.

Format: "Trace Event Format", Google (2016): complete events (`X`) and metadata (`M`). Slices of a thread nest or do not
overlap; where a track's own slices do neither, it has several threads.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hwsim.files import write_atomic
from hwsim.system.outputs.groups import NUMBER
from hwsim.system.program import Stage, repeats, steps_of
from hwsim.system.run import LayerResult, Result
from hwsim.system.simulate import PAD, Slice, simulate
from models.unit import InputError

MAX_SLICES = 200_000
"""transfers and steps of a trace; it has some 150 bytes for each of them"""

READ, WRITE = "dma read", "dma write"
"""tracks of the simulation on which transfers lie, from the grant of a channel to the last byte"""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A slice of a thread, in cycles."""

    name: str
    begin: int
    end: int
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Thread:
    """A row of the picture."""

    process: str
    name: str
    bars: tuple[Bar, ...]


def write_trace(result: Result, path: Path, progress: Any = None) -> int:
    """Simulate the run's program once more, every round of it, and write its trace atomically; returns the number of
    its slices. InputError as `recorded`."""
    threads = list(threads_of(result, recorded(result, progress)))
    about = {"network": result.network, "machine": result.machine.name, "clock_mhz": result.machine.clock_mhz}
    write_atomic(path, to_json(threads, about))
    return sum(len(thread.bars) for thread in threads)


def recorded(result: Result, progress: Any = None) -> tuple[Slice, ...]:
    """Every transfer and step of the run. InputError as `require_short`."""
    require_short(result)
    program = repeats([built.stage for built in result.built])
    simulated = simulate(program, result.machine, record=True, progress=progress)
    assert simulated.total_cycles == result.total_cycles, "recorded, the program takes another time"
    return simulated.slices


def require_short(result: Result) -> None:
    """InputError unless at most `MAX_SLICES` transfers and steps of the run would be traced; nothing is simulated."""
    most = sum(slices_of(built.stage) for built in result.built)
    if most > MAX_SLICES:
        rule = f"a trace of {most:,} transfers and steps; {MAX_SLICES:,} at most"
        raise InputError(f"{result.network} on {result.machine.name}: {rule}; trace some layers with --layer GLOB")


def slices_of(stage: Stage) -> int:
    """The most that a stage records: each step, each unit of its epilogue, each tile in a scratchpad, and each transfer
    on the bus and on its channel."""
    count = 0
    for times, step in steps_of(stage.nodes):
        moves = [move for move in (*step.loads, step.resume, step.store) if move is not None and move.bytes]
        count += times * (1 + len(step.epilogue) + len(step.loads) + step.new_out + 2 * len(moves))
    return count


# ---- threads


def threads_of(result: Result, slices: Sequence[Slice]) -> Iterator[Thread]:
    """Blocks and layers; units; bus, scratchpads with a slice for each tile, and DMA channels."""
    yield from lanes("layers", "layers", [*_blocks(result.layers), *map(_layer_bar, result.layers)])
    tracks: dict[str, list[Bar]] = {}
    for slice_ in slices:
        if slice_.track not in (READ, WRITE):
            tracks.setdefault(slice_.track, []).append(_bar(slice_, result))
    memory = sorted(track for track in tracks if track == "bus" or track.startswith(PAD))
    for name in sorted(tracks.keys() - memory):
        yield from lanes("units", name, tracks[name])
    for name in memory:
        yield from lanes("memory", name, tracks[name])
    yield from _channels(result, slices)


def _bar(slice_: Slice, result: Result) -> Bar:
    layer = result.layers[slice_.stage].name
    return Bar(name=slice_.name, begin=slice_.begin, end=slice_.end, details={"layer": layer})


def _layer_bar(layer: LayerResult) -> Bar:
    details = {
        "what": layer.what,
        "unit": layer.unit,
        "bound": layer.bound,
        "compute_cycles": layer.compute_cycles,
        "bus_cycles": layer.bus_cycles,
        "bytes": layer.bytes,
        "macs": layer.macs,
    }
    return Bar(name=layer.name, begin=layer.begin, end=layer.end, details=details)


def _blocks(layers: Iterable[LayerResult]) -> Iterator[Bar]:
    """Layers one after the other whose names are the same up to the first number, such as model.layers.3."""
    name, members = "", list[LayerResult]()
    for layer in layers:
        block = _block(layer.name)
        if block != name:
            yield from _block_bar(name, members)
            name, members = block, []
        members.append(layer)
    yield from _block_bar(name, members)


def _block(name: str) -> str:
    number = NUMBER.search(name)
    return name[: number.end()] if number else ""


def _block_bar(name: str, members: Sequence[LayerResult]) -> Iterator[Bar]:
    if name and members:
        begin, end = min(layer.begin for layer in members), max(layer.end for layer in members)
        yield Bar(name=name, begin=begin, end=end, details={"layers": len(members)})


def lanes(process: str, name: str, bars: Iterable[Bar]) -> Iterator[Thread]:
    """The bars on as few threads as nesting in the order of time needs."""
    lanes: list[list[Bar]] = []
    under_way: list[list[int]] = []
    """of each lane: the ends of the bars that contain the present time, the innermost last"""
    for bar in sorted(bars, key=lambda bar: (bar.begin, -bar.end)):
        lane = next((i for i, ends in enumerate(under_way) if _has_room(ends, bar)), len(lanes))
        if lane == len(lanes):
            lanes.append([])
            under_way.append([])
        lanes[lane].append(bar)
        under_way[lane].append(bar.end)
    for i, held in enumerate(lanes):
        yield Thread(process=process, name=name if len(lanes) == 1 else f"{name} {i + 1}", bars=tuple(held))


def _has_room(ends: list[int], bar: Bar) -> bool:
    while ends and ends[-1] <= bar.begin:
        ends.pop()
    return not ends or bar.end <= ends[-1]


def _channels(result: Result, slices: Sequence[Slice]) -> Iterator[Thread]:
    """A thread for each DMA channel that is used, with what it does from the grant to the last byte. The simulation
    does not tell channels apart: here the one that was free first is taken."""
    held: list[list[Bar]] = [[] for _ in range(result.machine.dma.channels)]
    free = [(0, channel) for channel in range(len(held))]
    for slice_ in sorted((s for s in slices if s.track in (READ, WRITE)), key=lambda s: s.begin):
        since, channel = heapq.heappop(free)
        assert since <= slice_.begin, "more transfers at once than the DMA has channels"
        held[channel].append(_transfer(slice_, result))
        heapq.heappush(free, (slice_.end, channel))
    for i, bars in enumerate(held):
        if bars:
            yield Thread(process="memory", name=f"DMA channel {i}", bars=tuple(bars))


def _transfer(slice_: Slice, result: Result) -> Bar:
    bar = _bar(slice_, result)
    return replace(bar, name=f"{'read' if slice_.track == READ else 'write'} {slice_.name}")


# ---- JSON


def to_json(threads: Sequence[Thread], about: Mapping[str, Any]) -> str:
    """The threads as a JSON object: metadata first, then the slices in the order of their begin, outer ones first.
    Processes stand in the order of their first threads; `about` says what this is a trace of."""
    processes = list(dict.fromkeys(thread.process for thread in threads))
    named = [(processes.index(thread.process) + 1, i + 1, thread) for i, thread in enumerate(threads)]
    metadata = list(_metadata(named))
    events = [
        {"ph": "X", "pid": process, "tid": number, "ts": bar.begin, "dur": bar.end - bar.begin, "name": bar.name}
        | ({"args": bar.details} if bar.details else {})
        for process, number, thread in named
        for bar in thread.bars
    ]
    events.sort(key=lambda event: (event["ts"], event["pid"], event["tid"], -event["dur"]))
    document = {
        "displayTimeUnit": "ms",
        "otherData": {**about, "unit": "one cycle is shown as one microsecond"},
        "traceEvents": [*metadata, *events],
    }
    return json.dumps(document, separators=(",", ":"))


def _metadata(named: Iterable[tuple[int, int, Thread]]) -> Iterator[dict[str, Any]]:
    """Names of processes and threads, and their order."""
    told: set[int] = set()
    for process, number, thread in named:
        if process not in told:
            told.add(process)
            yield _meta("process_name", process, 0, {"name": thread.process})
            yield _meta("process_sort_index", process, 0, {"sort_index": process})
        yield _meta("thread_name", process, number, {"name": thread.name})
        yield _meta("thread_sort_index", process, number, {"sort_index": number})


def _meta(name: str, process: int, thread: int, values: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": process, "tid": thread, "args": values}
