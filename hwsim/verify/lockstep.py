"""Drivers and sinks, free of any simulator: what a bench shows in each cycle and what it saw.

A bench drives right after the clock edge and reads everything right before the next one. The same `Lockstep` runs under
Amaranth's simulator and under cocotb, which imports this module in the simulator's own process: it stays light.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Drive:
    """One input stream: packed beats, the payload between them, the pattern of cycles in which one may appear."""

    beats: Sequence[int]
    idle: int
    offer: Sequence[bool]


@dataclass(frozen=True)
class Run:
    """One case for the simulator: the inputs, the outputs' ready patterns, and how many cycles to run after reset."""

    inputs: Mapping[str, Drive]
    outputs: Mapping[str, Sequence[bool]]
    cycles: int


Record = dict[str, list[int]]
"""Signal (`i_act__valid`, ...) -> its value in every cycle."""


@dataclass
class Lockstep:
    """Steps one `Run`: `drive()` gives a cycle's values to set, `saw(values)` takes what was read at its end."""

    run: Run
    cycle: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    showing: dict[str, bool] = field(default_factory=dict)
    record: Record = field(default_factory=dict)

    @property
    def signals(self) -> list[str]:
        """Every signal that is recorded."""
        return [
            f"{name}__{part}"
            for name in (*self.run.inputs, *self.run.outputs)
            for part in ("valid", "ready", "payload")
        ]

    def drive(self) -> dict[str, int]:
        values = {}
        for name, stream in self.run.inputs.items():
            sent = self.sent.get(name, 0)
            may = stream.offer[self.cycle % len(stream.offer)]
            show = sent < len(stream.beats) and (self.showing.get(name, False) or may)
            self.showing[name] = show
            values[f"{name}__valid"] = int(show)
            values[f"{name}__payload"] = stream.beats[sent] if show else stream.idle
        for name, pattern in self.run.outputs.items():
            values[f"{name}__ready"] = int(pattern[self.cycle % len(pattern)])
        return values

    def saw(self, values: Mapping[str, int]) -> None:
        for signal, value in values.items():
            self.record.setdefault(signal, []).append(value)
        for name in self.run.inputs:
            if self.showing[name] and values[f"{name}__ready"]:
                self.sent[name] = self.sent.get(name, 0) + 1
                self.showing[name] = False
        self.cycle += 1

    @property
    def done(self) -> bool:
        return self.cycle >= self.run.cycles
