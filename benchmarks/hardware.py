"""The model against its RTL under Verilator, emission of Verilog, and the import of the package."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import numpy as np

from benchmarks.measure import AtLeast, AtMost, Result, absolute, alternate, confirm, repeat
from hwsim.simulate import simulate_gemm
from models.catalog import unit
from models.systolic import SystolicParams


def rtl(M: int = 1024, K: int = 1024, array: int = 16, rounds: int = 9) -> list[Result]:
    """The GEMM of one tile column (N = columns of the array) on the RTL and on the model, equal in every cycle.

    The simulator's run alone is its whole time less that of a build and one idle cycle, made before and after it: the
    difference of the two values is the error of that.
    """
    from hwsim.verify import run_rtl

    params = unit("systolic").params(rows=array, cols=array)
    rng = np.random.default_rng(5)
    a, w = (rng.integers(-128, 128, shape, dtype=np.int8) for shape in ((M, K), (K, array)))
    ours = simulate_gemm(params, a, w)
    models = repeat(lambda: simulate_gemm(params, a, w), rounds)
    before = build_seconds(params)
    run = run_rtl(params, (a, w), "verilator")
    after = build_seconds(params)
    confirm(np.array_equal(run.output, ours.output), "rtl: output")
    confirm(run.cycles == ours.timing.total_cycles, "rtl: cycles")
    what = f"simulate_gemm {M}x{K}x{array} INT8, {array}x{array} systolic WS, {run.cycles} cycles"
    alone = [run.seconds - before, run.seconds - after]
    return [
        _speedup(what, models, alone, "the same on the RTL: Verilator and cocotb, run alone"),
        _speedup(what, models, [run.seconds], "the same on the RTL: Verilator and cocotb, build included"),
    ]


def _speedup(what: str, models: list[float], rtl_seconds: list[float], against: str) -> Result:
    model = statistics.median(models)
    return Result(
        name="rtl",
        what=what,
        ours=models,
        reference=rtl_seconds,
        against=against,
        values=[one / model for one in rtl_seconds],
        unit="x faster",
        limit=AtLeast(bound=1000),
    )


def build_seconds(params: SystolicParams) -> float:
    """Seconds of a Verilator build of the unit, already emitted, and of one idle cycle."""
    from hwsim.verify import cocotb_run
    from hwsim.verify.lockstep import Drive, Run
    from hwsim.verify.ports import ports_of
    from rtl.emit import emit, streams

    ports = ports_of(streams(params))
    inputs = {port.name: Drive([], port.idle, [False]) for port in ports if port.is_input}
    run = Run(inputs, {port.name: [True] for port in ports if not port.is_input}, 1)
    text = emit(params, "top")
    start = time.perf_counter()
    [record] = cocotb_run.simulate(text, "top", ports, [run], simulator="verilator")
    spent = time.perf_counter() - start
    confirm(all(len(values) == 1 for values in record.values()), "emit: the built simulator ran one cycle")
    return spent


def emit(array: int = 16, rounds: int = 5) -> list[Result]:
    """Emission of a square systolic array, and its Verilator build."""
    from rtl.emit import emit as verilog

    params = unit("systolic").params(rows=array, cols=array)
    confirm("module top" in verilog(params, "top"), "emit: the top module")
    what = f"{array}x{array} systolic WS"
    return [
        absolute("emit", f"Verilog of {what}", repeat(lambda: verilog(params), rounds), 3),
        absolute("emit", f"Verilator build of {what}, and one cycle", [build_seconds(params)], 30),
    ]


def import_time(rounds: int = 9) -> list[Result]:
    """`import hwsim` in a fresh interpreter, less the interpreter's own start."""
    times = alternate(lambda: _python("import hwsim"), lambda: _python("pass"), rounds)
    return [
        Result(
            name="import",
            what="python -c 'import hwsim', less the reference",
            ours=times[0],
            reference=times[1],
            against="python -c pass",
            values=[a - b for a, b in zip(*times, strict=True)],
            unit="s",
            limit=AtMost(bound=0.3),
        )
    ]


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)
