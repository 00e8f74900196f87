"""From Verilog and a library to the result: both flows, their area and delay, the better one."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hwsim.synth import SynthResult, yosys
from hwsim.synth.liberty import Library
from hwsim.synth.loads import Loads, plan_loads, usual_conditions
from hwsim.synth.netlist import Block, blocks_of, instance_counts
from hwsim.synth.sta import Path, critical_path


def best(verilog: str, top: str, library: Library, time_limit_s: float) -> SynthResult:
    """The result of the flow with the smallest area times delay; on a tie the first."""
    netlists = yosys.mapped_netlists(verilog, top, library.text, time_limit_s)
    results = [measure(netlist, top, library, flow) for flow, netlist in netlists.items()]
    return min(results, key=lambda r: r.area_um2 * r.delay_ns)


def measure(netlist: dict[str, Any], top: str, library: Library, multiplier: str) -> SynthResult:
    """Area and critical path of one mapped netlist."""
    return measured(netlist, top, library, multiplier, {})[0]


def measured(
    netlist: dict[str, Any], top: str, library: Library, multiplier: str, flows: dict[str, str]
) -> tuple[SynthResult, Path]:
    """The same, and the path itself."""
    blocks = blocks_of(netlist, top, library)
    counts = instance_counts(blocks, top)
    own = {name: own_cells(block, library) for name, block in blocks.items()}
    conditions = usual_conditions(library)
    loads = plan_loads(blocks, top, library, conditions)
    path = critical_path(blocks, top, library, loads, conditions)
    cells = _whole(own, counts, loads)
    area = _area(cells, library)
    result = SynthResult(
        area_um2=area,
        gate_equivalents=area / library.nand2.area,
        delay_ns=path.delay_ns,
        critical_path=readable(path),
        cells=dict(sorted(cells.items())),
        modules=tuple((n, counts[n], _area(own[n] + loads[n].trees, library)) for n in blocks),
        multiplier=multiplier,
        flows=flows,
        library=library.name,
        tools={"pyosys": yosys.version()},
    )
    return result, path


def own_cells(block: Block, library: Library) -> Counter[str]:
    """Library cells of one module without its children."""
    return Counter(i.type for i in block.instances if i.type in library.cells)


def readable(path: Path) -> tuple[str, ...]:
    """A path as lines: arrival, own delay, net, cell."""
    lines = []
    arrival = 0.0
    for step in path.steps:
        arrival += step.delay
        lines.append(f"{arrival:8.4f} ns  +{step.delay:.4f}  {step.where}  {step.cell}")
    return tuple(lines)


def _whole(own: dict[str, Counter[str]], counts: dict[str, int], loads: dict[str, Loads]) -> Counter[str]:
    """Cells over all instances, those of the buffer trees included."""
    total: Counter[str] = Counter()
    for name, cells in own.items():
        for cell, n in (cells + loads[name].trees).items():
            total[cell] += n * counts[name]
    return total


def _area(cells: Counter[str], library: Library) -> float:
    return sum(library.cells[cell].area * n for cell, n in cells.items())
