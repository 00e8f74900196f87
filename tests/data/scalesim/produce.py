"""Writes cycles.csv beside it: what SCALE-Sim reports for gemm.csv and conv.csv on a table of arrays; and, for their
form, the three reports of one of these runs.

Run in an environment of its own, with the package scalesim installed:

    python -m venv /tmp/scalesim && /tmp/scalesim/bin/pip install scalesim==3.0.0 'numpy<2.3'
    /tmp/scalesim/bin/python -W ignore tests/data/scalesim/produce.py

Scratchpads hold every operand and SCALE-Sim chooses the bandwidth itself (CALC), so nothing stalls. A layer whose name
contains DP is one layer for each channel there, and one row for each here.
"""

import csv
import importlib.metadata
import itertools
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ARRAYS = ((8, 8), (16, 8), (8, 16), (32, 32))
DATAFLOWS = ("ws", "os", "is")
COMPUTE = ("Total Cycles", "Stall Cycles", "Overall Util %", "Mapping Efficiency %", "Compute Util %")
REPORTS = ("COMPUTE_REPORT.csv", "BANDWIDTH_REPORT.csv", "DETAILED_ACCESS_REPORT.csv")
ACCESS = ("SRAM IFMAP Reads", "SRAM Filter Reads", "SRAM OFMAP Writes")
CONFIG = """[general]
run_name = run
[architecture_presets]
ArrayHeight: {rows}
ArrayWidth: {cols}
IfmapSramSzkB: 1024
FilterSramSzkB: 1024
OfmapSramSzkB: 1024
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Bandwidth: 10
Dataflow: {dataflow}
ReadRequestBuffer: 32
WriteRequestBuffer: 32
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 10
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 10
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport: false
[run_presets]
InterfaceBandwidth: CALC
UseRamulatorTrace: False
"""


def report(path: Path) -> list[dict[str, str]]:
    """The rows of one of SCALE-Sim's reports."""
    return list(csv.DictReader(path.open(), skipinitialspace=True))


def run(topology: str, rows: int, cols: int, dataflow: str, folder: Path) -> list[list[object]]:
    """One row for each layer that SCALE-Sim makes of the topology."""
    from scalesim.scale_sim import scalesim

    config, layout = folder / "run.cfg", folder / "layout.csv"
    config.write_text(CONFIG.format(rows=rows, cols=cols, dataflow=dataflow))
    layout.write_text("no layout of its own\n")
    simulation = scalesim(
        save_disk_space=True,
        verbose=False,
        config=str(config),
        topology=str(HERE / f"{topology}.csv"),
        layout=str(layout),
        input_type_gemm=topology == "gemm",
    )
    simulation.run_scale(top_path=str(folder))
    compute, _, access = (report(folder / "run" / name) for name in REPORTS)
    names = simulation.topo.get_layer_names()
    return [
        [topology, name, rows, cols, dataflow, *(c[key] for key in COMPUTE), *(a[key] for key in ACCESS)]
        for name, c, a in zip(names, compute, access, strict=True)
    ]


def main() -> None:
    """All topologies, arrays and dataflows."""
    head = ["topology", "layer", "rows", "cols", "dataflow", *COMPUTE, *ACCESS]
    with tempfile.TemporaryDirectory() as folder, (HERE / "cycles.csv").open("w", newline="") as file:
        file.write(f"# scalesim {importlib.metadata.version('scalesim')}, run by produce.py beside this file\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for topology, (rows, cols), dataflow in itertools.product(("gemm", "conv"), ARRAYS, DATAFLOWS):
            writer.writerows(run(topology, rows, cols, dataflow, Path(folder)))
        for name in REPORTS:
            (HERE / name).write_text((Path(folder) / "run" / name).read_text())


if __name__ == "__main__":
    main()
