"""Yosys in a child process: Verilog and Liberty in, mapped netlists of both multiplier flows or of many flows out.

No text of a user ever stands in a Yosys command: the files have fixed names in a fresh folder, and the top module's
name is validated (mapper_child.py numbers the other modules). The child runs under hwsim.guard's limits.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hwsim import guard
from hwsim.guard import run_guarded, workplace
from hwsim.verilog import check_module_name
from models.unit import require

ABC_SCRIPT = """strash
&get -n
&dch -f
&nf
&put
buffer -c
topo
upsize
dnsize
stime -p
"""

FRONT = (
    "read_verilog -defer design.v",
    "hierarchy -check -top {top}",
    "proc",
    "opt_clean",
    "tee -q -o products.txt select -list t:$mul",
    "design -save front",
)
MAP = (
    "setattr -unset init",
    "dfflibmap -liberty cells.lib",
    "abc -liberty cells.lib -script map.abc",
    "opt_clean -purge",
)
# -noabc: mapping at once gave one 8-bit MAC in SG13G2 20 % less delay for 4 % more area than after Yosys's own ABC run
ARRAY = ("synth -noabc -top {top}", *MAP, "write_json array.json")
# only the modules that multiply, the others as black boxes; without a top, since the top may be one of the others
BOOTH = (
    "design -load front",
    "blackbox t:$mul %m %n",
    "setattr -mod -unset top",
    "synth -booth -noabc -run coarse:check",
    *MAP,
    "write_json booth.json",
)

# Runs in the child. argv, as JSON: the commands always run and those run where something multiplies.
CHILD = """
import json, pathlib, sys
from pyosys import libyosys as ys
design = ys.Design()
for command in json.loads(sys.argv[1]):
    ys.run_pass(command, design)
if pathlib.Path("products.txt").read_text().strip():
    for command in json.loads(sys.argv[2]):
        ys.run_pass(command, design)
"""

MAPPER = Path(__file__).with_name("mapper_child.py")

PRODUCTS = ("$mul",)
SUMS = (*PRODUCTS, "$add", "$sub", "$neg")
# Flow -> arguments of `synth`, and the cells of which a module must hold one for it to differ from the first flow.
# Carry-save: a product and what is added to it, or the terms of a sum, share one tree (-arith_tree). That made an 8-bit
# MAC a tenth better in area times delay than Booth's recoding, and trees of short sums up to a quarter worse.
FRONTS = {
    "Brent-Kung": ("", ()),
    "Sklansky": ("-extra-map +/choices/sklansky.v", SUMS),
    "carry-save Brent-Kung": ("-arith_tree", SUMS),
    "carry-save Sklansky": ("-arith_tree -extra-map +/choices/sklansky.v", SUMS),
    "carry-save Kogge-Stone": ("-arith_tree -extra-map +/choices/kogge-stone.v", SUMS),
    "Booth Brent-Kung": ("-booth", PRODUCTS),
    "Booth Sklansky": ("-booth -extra-map +/choices/sklansky.v", PRODUCTS),
}
# From ABC's AIG to gates: for speed with and without restructuring, for area along the slack, for area alone.
MAPS = {
    "nf": "&get -n\n&dch\n&nf\n&put",
    "synch2-nf": "&get -n\n&st\n&synch2\n&nf\n&put",
    "nf-area": "&get -n\n&dch -f\n&nf -R 1000\n&put",
    "amap": "dch -f\namap -Q 1",
}
# Delays for which a mapping's gates are resized, in multiples of its shortest; the last asks for the smallest gates.
TARGETS = (1.05, 1.15, 100)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One mapping of one module: its netlist, and the area and delay of its logic as ABC counts them, registers left
    out."""

    flow: str
    multiplier: str
    """`array` or `Booth`; `none` where the module multiplies nothing"""
    area: float
    """um2"""
    delay: float
    """ps"""
    netlist: dict[str, Any]


def version() -> str:
    """The installed pyosys version. InputError with the remedy where it is absent."""
    require(find_spec("pyosys") is not None, "synthesis needs pyosys: pip install 'hwsim[rtl]'")
    from importlib.metadata import version as installed

    return installed("pyosys")


def mapped_netlists(verilog: str, top: str, liberty_text: str, time_limit_s: float) -> dict[str, dict[str, Any]]:
    """Multipliers (`array` and `Booth`, only `none` where nothing multiplies) -> Yosys's JSON netlist, mapped.

    Hierarchy is kept: every distinct module is synthesised once. InputError with Yosys's own message on an ERROR, and
    when the time or memory limit is reached.
    """
    check_module_name(top)
    version()
    with workplace("hwsim-synth-") as folder:
        (folder / "design.v").write_text(verilog, encoding="utf-8")
        (folder / "cells.lib").write_text(liberty_text, encoding="utf-8")
        (folder / "map.abc").write_text(ABC_SCRIPT)
        _run(folder, top, time_limit_s)
        plain = json.loads((folder / "array.json").read_text())
        booth = folder / "booth.json"
        if not booth.exists():
            return {"none": plain}
        return {"array": plain, "Booth": _merged(plain, json.loads(booth.read_text()))}


def candidates(verilog: str, top: str, liberty_text: str, time_limit_s: float) -> dict[str, list[Candidate]]:
    """Module -> mappings of it, of which none has both more area and more delay than another one.

    InputError as in `mapped_netlists`.
    """
    check_module_name(top)
    version()
    task = {"top": top, "fronts": FRONTS, "maps": MAPS, "products": PRODUCTS, "targets": TARGETS}
    with workplace("hwsim-synth-") as folder:
        (folder / "design.v").write_text(verilog, encoding="utf-8")
        (folder / "cells.lib").write_text(liberty_text, encoding="utf-8")
        _run_child(folder, top, [str(MAPPER), json.dumps(task)], time_limit_s)
        found: dict[str, list[Candidate]] = {}
        for entry in json.loads((folder / "candidates.json").read_text()):
            found.setdefault(entry["module"], []).append(_candidate(folder, entry))
        return found


def _candidate(folder: Path, entry: dict[str, Any]) -> Candidate:
    front, *_ = entry["flow"]
    multiplier = "Booth" if front.startswith("Booth") else "array"
    netlist = json.loads((folder / f"candidate{entry['number']}.json").read_text())
    return Candidate(
        flow=", ".join(entry["flow"]),
        multiplier=multiplier if entry["multiplies"] else "none",
        area=entry["area"],
        delay=entry["delay"],
        netlist=netlist["modules"][entry["module"]],
    )


def _merged(array: dict[str, Any], booth: dict[str, Any]) -> dict[str, Any]:
    """The array netlist with the modules that the Booth flow synthesised in place of its own."""
    own = {name: m for name, m in booth["modules"].items() if "blackbox" not in m["attributes"]}
    return {"modules": array["modules"] | own}


def _run(folder: Path, top: str, time_limit_s: float) -> None:
    steps = [json.dumps([c.format(top=top) for c in commands]) for commands in (FRONT + ARRAY, BOOTH)]
    _run_child(folder, top, ["-c", CHILD, *steps], time_limit_s)


def _run_child(folder: Path, top: str, arguments: list[str], time_limit_s: float) -> None:
    finished = run_guarded(
        [sys.executable, *arguments],
        what=f"synthesis of {top}",
        cwd=folder,
        time_limit_s=time_limit_s,
        # Yosys caches parsed libraries in the temporary folder by path, and would answer with another run's cells
        env={"TMPDIR": str(folder)},
    )
    require(finished.status == 0, f"synthesis of {top}: {_reason(finished.output, finished.status)}")


def _reason(output: str, status: int) -> str:
    lines = output.splitlines()
    errors = [line for line in lines if "ERROR" in line]
    if errors:
        return f"Yosys says {errors[-1].strip()}"
    if any("MemoryError" in line or "bad_alloc" in line for line in lines):
        return f"Yosys needs more than {guard.MEMORY_MIB} MiB"
    return f"Yosys ended with status {status}: {lines[-1].strip() if lines else 'no output'}"
