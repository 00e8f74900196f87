"""Amaranth's own simulator: no build, 0.1 s a small case; it carries breadth."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hwsim.verify.lockstep import Lockstep, Record, Run


def simulate(component: Any, runs: Sequence[Run], waves: Path | None = None) -> list[Record]:
    """Run every case on the component, reset before each; `waves` is a VCD file to write."""
    from amaranth.hdl import ClockDomain, Module, ResetInserter, Signal
    from amaranth.sim import Simulator

    reset = Signal()
    top = Module()
    top.domains.sync = ClockDomain()  # a unit may have no register
    top.submodules.unit = ResetInserter(reset)(component)
    simulator = Simulator(top)
    simulator.add_clock(1e-8)
    records: list[Record] = []

    async def bench(ctx: Any) -> None:
        for run in runs:
            lockstep = Lockstep(run)
            handles = {signal: _handle(component, signal) for signal in lockstep.signals}
            ctx.set(reset, 1)
            await ctx.tick()
            ctx.set(reset, 0)
            while not lockstep.done:
                for signal, value in lockstep.drive().items():
                    ctx.set(handles[signal], value)
                lockstep.saw({signal: ctx.get(handle) for signal, handle in handles.items()})
                await ctx.tick()
            records.append(lockstep.record)

    simulator.add_testbench(bench)
    with simulator.write_vcd(str(waves)) if waves else nullcontext():
        simulator.run()
    return records


def _handle(component: Any, signal: str) -> Any:
    """The flat value of a stream's signal, as `<stream>__<part>` names it."""
    stream, _, part = signal.rpartition("__")
    value = getattr(getattr(component, stream), part)
    return value.as_value() if hasattr(value, "as_value") else value
