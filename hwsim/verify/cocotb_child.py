"""Child process of cocotb_run: builds `design.v` in the current folder and runs the bench on it."""

from __future__ import annotations

import sys
from pathlib import Path

from cocotb_tools import runner

TIMESCALE = ("1ns", "1ps")


class PortsOnlyVerilator(runner.Verilator):
    """cocotb's runner makes every signal of every cell public; ports.vlt names the few that the bench reads."""

    def _build_command(self):
        return [[arg for arg in command if arg != "--public-flat-rw"] for command in super()._build_command()]


def main(simulator: str, top: str, *options: str) -> None:
    here = Path.cwd()
    record = "waves" in options
    if simulator == "verilator":
        sim = PortsOnlyVerilator()
        sources = [here / "ports.vlt", here / "design.v"]
        # Amaranth's Verilog adds operands of several widths and tests whole words: both are lint, not faults
        args = ["-O3", *(["-Wno-WIDTHEXPAND", "-Wno-WIDTHTRUNC"] if "lint" in options else ["-Wno-fatal"])]
    else:
        sim, sources, args = runner.get_runner("icarus"), [here / "design.v"], ["-g2012"]
    build = here / "build"
    sim.build(
        sources=sources,
        hdl_toplevel=top,
        build_dir=build,
        timescale=TIMESCALE,
        build_args=args,
        waves=record,
        always=True,
    )
    sim.test(
        hdl_toplevel=top,
        test_module="hwsim.verify.cocotb_bench",
        test_dir=here,
        build_dir=build,
        timescale=TIMESCALE,
        waves=record,
        seed=1,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
