"""The cocotb test: replays the cases of $HWSIM_RUNS on the top's ports and writes what it saw to $HWSIM_RECORDS.

It judges nothing: comparison with the model is done outside, in one place for all simulators.
"""

import json
import os
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from hwsim.verify.lockstep import Drive, Lockstep, Run


@cocotb.test()
async def replay(dut):
    given = json.loads(Path(os.environ["HWSIM_RUNS"]).read_text())
    runs = [
        Run({name: Drive(**drive) for name, drive in run["inputs"].items()}, run["outputs"], run["cycles"])
        for run in given["runs"]
    ]
    target = Path(os.environ["HWSIM_RECORDS"])
    wrong = [f"{name} of {width} bits" for name, width in given["widths"].items() if _width(dut, name) != width]
    if wrong:
        target.write_text(json.dumps({"wrong": wrong}))
        return
    cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
    records = [await _replay_one(dut, run) for run in runs]
    target.write_text(json.dumps({"records": records}))


def _width(dut, name):
    """Bits of a port; None where there is no such port."""
    handle = getattr(dut, name, None)
    return None if handle is None else getattr(handle, "__len__", lambda: 1)()


async def _replay_one(dut, run):
    lockstep = Lockstep(run)
    handles = {signal: getattr(dut, signal) for signal in lockstep.signals}
    dut.rst.value = 1
    await RisingEdge(dut.clk)
    await RisingEdge(dut.clk)
    dut.rst.value = 0
    while not lockstep.done:
        for signal, value in lockstep.drive().items():
            handles[signal].value = value
        await RisingEdge(dut.clk)
        # registers still hold their values from before the edge: this is the end of the cycle just driven
        lockstep.saw({signal: _read(handle) for signal, handle in handles.items()})
    return lockstep.record


def _read(handle):
    """The signal as an integer, or its text where bits are unknown: that never equals the model's integer."""
    value = handle.value
    try:
        return int(value)  # asking `is_resolvable` first would make an object of every bit
    except ValueError:
        return str(value)
