"""Cases, comparison and verdict. Equality in every bit of every port in every cycle; there is no tolerance."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hwsim.verify.cocotb_run import TIME_LIMIT_S
from hwsim.verify.lockstep import Drive, Record, Run
from hwsim.verify.ports import Port, pack, ports_of, unpack
from models.catalog import unit_of
from models.unit import InputError, Ints, Stimulus, Trace, Unit, fields_of, nearest, require


class Simulator(StrEnum):
    """Who runs the RTL."""

    PYSIM = "pysim"
    """Amaranth's own: no build"""
    VERILATOR = "verilator"
    ICARUS = "icarus"


@dataclass(frozen=True)
class Divergence:
    """The first place in which RTL and model differ."""

    case: int
    cycle: int
    port: str
    model: str
    rtl: str

    def __str__(self) -> str:
        return f"case {self.case}, cycle {self.cycle}, {self.port}: model {self.model}, RTL {self.rtl}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was compared and what was found; `passed` when `findings` is empty."""

    unit: str
    params: dict[str, Any]
    simulator: str
    seed: int
    cases: int
    cycles: int
    """clock cycles in which every port was compared"""
    values: int
    """output values compared with `golden`"""
    findings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.findings


@dataclass(frozen=True, kw_only=True)
class Case:
    """Operands, what happens to the streams, and the model's trace of it."""

    operands: tuple[Any, ...]
    stimulus: Stimulus
    trace: Trace
    stall_free: bool = False
    cut: bool = False
    """the run ends, and is followed by a reset, before all outputs have left"""

    @property
    def cycles(self) -> int:
        return len(next(iter(self.trace.values())))


def verify(
    params: Any,
    *,
    simulator: str = "pysim",
    cases: int = 10,
    seed: int = 0,
    verilog: str | None = None,
    top: str | None = None,
    waves: Path | None = None,
    time_limit_s: float = TIME_LIMIT_S,
) -> Report:
    """Hold the unit's RTL, or `verilog` with module `top` and the same ports, against the unit's model.

    Case 0 runs without stalls and must take exactly `timing().total_cycles`; the others idle and stall at random, every
    third is cut off and followed by a reset. One seed gives the same cases everywhere. `verilog` is compiled and run on
    this machine: give only text that you would run. `time_limit_s` bounds build and run under Verilator and Icarus.
    """
    from rtl.emit import streams

    sim = _simulator(simulator)
    require(cases >= 1, f"cases must be at least 1, not {cases}")
    require(verilog is None or sim is not Simulator.PYSIM, "Verilog text needs --simulator verilator or icarus")
    unit, ports = unit_of(params), ports_of(streams(params))
    drawn = [_case(unit, params, ports, seed, i) for i in range(cases)]
    runs = [_run(ports, case) for case in drawn]
    records = _prepared(params, ports, runs, sim, verilog, top, waves=waves, time_limit_s=time_limit_s)()
    verdicts = [judge(unit, params, ports, i, c, r) for i, (c, r) in enumerate(zip(drawn, records, strict=True))]
    return Report(
        unit=unit.name,
        params=dict(fields_of(params)),
        simulator=sim.value,
        seed=seed,
        cases=len(drawn),
        cycles=sum(case.cycles for case in drawn),
        values=sum(compared for _, compared in verdicts),
        findings=tuple(finding for found, _ in verdicts for finding in found),
    )


@dataclass(frozen=True, kw_only=True)
class RtlRun:
    """One stall-free run of a unit's RTL, as the RTL gave it and already held against the model."""

    output: Ints
    """what `golden` predicts, put together from the output beats"""
    cycles: int
    """what `timing().total_cycles` predicts, counted on the ports"""
    seconds: float
    """wall clock of the simulator alone: its build, its start and the run"""


def run_rtl(params: Any, operands: tuple[Any, ...], simulator: str = "pysim") -> RtlRun:
    """Run `operands` (as `golden` takes them) through the unit's RTL without stalls.

    Raises InputError, naming the first divergence, unless every port of every cycle, the output and the number of
    cycles are the model's; and where the operands do not fit the unit or the simulator is not installed.
    """
    from rtl.emit import streams

    sim = _simulator(simulator)
    unit, ports = unit_of(params), ports_of(streams(params))
    case = _stall_free(unit, params, ports, operands)
    simulate = _prepared(params, ports, [_run(ports, case)], sim)
    start = time.perf_counter()
    [record] = simulate()
    seconds = time.perf_counter() - start
    found, _ = judge(unit, params, ports, 0, case, record)
    require(not found, f"{unit.name}: RTL and model differ: {found[:1]}")
    return RtlRun(output=_output(unit, params, ports, case, record), cycles=_length(ports, record), seconds=seconds)


def _prepared(
    params: Any,
    ports: Sequence[Port],
    runs: Sequence[Run],
    simulator: Simulator,
    verilog: str | None = None,
    top: str | None = None,
    **options: Any,
) -> Callable[[], list[Record]]:
    """The runs, ready to start: the RTL is made, or emitted, or given as `verilog`."""
    from rtl.emit import component, emit

    if simulator is Simulator.PYSIM:
        from hwsim.verify import pysim

        return partial(pysim.simulate, component(params), runs, options.get("waves"))
    from hwsim.verify import cocotb_run

    name = top or unit_of(params).name
    text = verilog if verilog is not None else emit(params, name)
    return partial(
        cocotb_run.simulate, text, name, ports, runs, simulator=simulator.value, lint=verilog is None, **options
    )


def _simulator(name: str) -> Simulator:
    require(name in list(Simulator), f"no simulator {name!r}; {nearest(name, list(Simulator))}")
    return Simulator(name)


def _case(unit: Unit, params: Any, ports: Sequence[Port], seed: int, number: int) -> Case:
    rng = np.random.default_rng([seed, number])
    operands = unit.sample(params, rng)
    if number == 0:
        return _stall_free(unit, params, ports, operands)
    stimulus = Stimulus(
        beats=unit.beats(params, *operands),
        offer={port.name: random_pattern(rng) for port in ports if port.is_input},
        accept={port.name: random_pattern(rng) for port in ports if not port.is_input},
    )
    trace = unit.trace(params, stimulus)
    cut = number % 3 == 2
    if cut:
        length = int(rng.integers(1, len(next(iter(trace.values()))), endpoint=True))
        trace = {name: values[:length] for name, values in trace.items()}
    return Case(operands=operands, stimulus=stimulus, trace=trace, cut=cut)


def _stall_free(unit: Unit, params: Any, ports: Sequence[Port], operands: tuple[Any, ...]) -> Case:
    always = np.ones(1, dtype=bool)
    stimulus = Stimulus(
        beats=unit.beats(params, *operands),
        offer={port.name: always for port in ports if port.is_input},
        accept={port.name: always for port in ports if not port.is_input},
    )
    return Case(operands=operands, stimulus=stimulus, trace=unit.trace(params, stimulus), stall_free=True)


def random_pattern(rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Cycles in which a stream moves: always, at a random density, in bursts, or after a long wait."""
    match rng.integers(4):
        case 0:
            pattern = np.ones(1, dtype=bool)
        case 1:
            pattern = rng.random(97) < rng.choice([0.1, 0.5, 0.9])
        case 2:
            pattern = np.repeat(rng.random(31) < 0.5, rng.integers(2, 9))
        case _:
            pattern = np.arange(61) >= rng.integers(1, 60)
    return pattern if pattern.any() else np.ones(1, dtype=bool)


def _run(ports: Sequence[Port], case: Case) -> Run:
    inputs = {
        port.name: Drive(
            beats=pack(port, case.stimulus.beats[port.name]),
            idle=port.idle,
            offer=case.stimulus.offer[port.name].tolist(),
        )
        for port in ports
        if port.is_input
    }
    outputs = {port.name: case.stimulus.accept[port.name].tolist() for port in ports if not port.is_input}
    return Run(inputs, outputs, case.cycles)


def judge(
    unit: Unit, params: Any, ports: Sequence[Port], number: int, case: Case, record: Record
) -> tuple[list[str], int]:
    """All findings on one case, the first divergence of the trace foremost, and how many outputs met `golden`."""
    divergence = first_divergence(number, ports, case.trace, record)
    found = [str(divergence)] if divergence else []
    found += [f"case {number}, {finding}" for port in ports for finding in protocol_findings(port, record)]
    if found or case.cut:
        return found, 0
    want = unit.golden(params, *case.operands)
    found += [f"case {number}, {finding}" for finding in _scoreboard(unit, params, ports, case, record, want)]
    return found, want.size


def first_divergence(number: int, ports: Sequence[Port], trace: Trace, record: Record) -> Divergence | None:
    """The earliest cycle in which any signal of any port differs; within it, the first port in order."""
    worst: tuple[int, int, Port, str] | None = None
    for order, (port, part) in enumerate((port, part) for port in ports for part in ("valid", "ready", "payload")):
        model, rtl = _model_words(port, part, trace), record[f"{port.name}__{part}"]
        cycle = next((t for t, (a, b) in enumerate(zip(model, rtl, strict=True)) if a != b), None)
        if cycle is not None and (worst is None or (cycle, order) < worst[:2]):
            worst = (cycle, order, port, part)
    if worst is None:
        return None
    cycle, _, port, part = worst
    model_word, rtl_word = _model_words(port, part, trace)[cycle], record[f"{port.name}__{part}"][cycle]
    where, a, b = _explain(port, part, model_word, rtl_word)
    return Divergence(number, cycle, where, a, b)


def _model_words(port: Port, part: str, trace: Trace) -> list[int]:
    if part != "payload":
        return [int(bit) for bit in trace[f"{port.name}.{part}"]]
    return pack(port, {field.name: trace[f"{port.name}.payload.{field.name}"] for field in port.fields})


def _explain(port: Port, part: str, model: int, rtl: int | str) -> tuple[str, str, str]:
    """Name and both values of what differs, down to the field's lane where the RTL's value is known."""
    if part != "payload" or isinstance(rtl, str):
        return f"{port.name}.{part}", str(model), str(rtl)
    a, b = unpack(port, [model]), unpack(port, [rtl])
    for field in port.fields:
        lanes = np.argwhere(a[field.name][0] != b[field.name][0])
        if len(lanes):
            lane = tuple(int(i) for i in lanes[0])
            label = f"{port.name}.payload.{field.name}{''.join(f'[{i}]' for i in lane)}"
            return label, str(a[field.name][0][lane]), str(b[field.name][0][lane])
    return f"{port.name}.payload", hex(model), hex(rtl)


def protocol_findings(port: Port, record: Record) -> Iterator[str]:
    """The stream rule that a trace can show: a beat once valid stays, payload unchanged, until it is transferred."""
    valid, ready, payload = (record[f"{port.name}__{part}"] for part in ("valid", "ready", "payload"))
    for t in range(len(valid) - 1):
        if valid[t] and not ready[t]:
            if not valid[t + 1]:
                yield f"cycle {t + 1}, {port.name}: valid fell before the transfer"
                return
            if payload[t + 1] != payload[t]:
                yield f"cycle {t + 1}, {port.name}: payload changed before the transfer"
                return


def _scoreboard(
    unit: Unit, params: Any, ports: Sequence[Port], case: Case, record: Record, want: Ints
) -> Iterator[str]:
    """Outputs against `want`, which is golden's, and without stalls the length against `timing`."""
    got = _output(unit, params, ports, case, record)
    wrong = np.argwhere(got != want)
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        yield f"output {list(place)}: golden {want[place]}, RTL {got[place]} ({len(wrong)} of {want.size} differ)"
    if case.stall_free:
        length = _length(ports, record)
        predicted = unit.timing(params, **unit.shape_of(params, *case.operands)).total_cycles
        if length != predicted:
            yield f"length: timing says {predicted} cycles, RTL took {length}"


def _output(unit: Unit, params: Any, ports: Sequence[Port], case: Case, record: Record) -> Ints:
    """The result that the transferred output beats hold."""
    out = next(port for port in ports if not port.is_input)
    words = [record[f"{out.name}__payload"][t] for t in _transfers(out, record)]
    result: Ints = unit.result(params, case.operands, unpack(out, words))
    return result


def _length(ports: Sequence[Port], record: Record) -> int:
    """Cycles from the first transferred input beat up to and including that of the last output beat."""
    first = min(_transfers(port, record)[0] for port in ports if port.is_input)
    last = max(_transfers(port, record)[-1] for port in ports if not port.is_input)
    return 1 + last - first


def _transfers(port: Port, record: Record) -> list[int]:
    pairs = zip(record[f"{port.name}__valid"], record[f"{port.name}__ready"], strict=True)
    return [t for t, (valid, ready) in enumerate(pairs) if valid and ready]


def check_verilog(path: Path) -> str:
    """The text of a Verilog file; InputError where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as Verilog text ({error})") from None


def summary(reports: Mapping[str, Report]) -> str:
    """One line on many reports."""
    failed = [name for name, report in reports.items() if not report.passed]
    return f"{len(reports) - len(failed)} of {len(reports)} passed" + (
        f"; failed: {', '.join(failed)}" if failed else ""
    )
