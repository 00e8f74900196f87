"""A run as numbers: totals, a record for every layer, and CSV files, our own and under SCALE-Sim's names."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hwsim.files import write_atomic
from hwsim.system import power
from hwsim.system.engines import WORDS
from hwsim.system.machine import Operand
from hwsim.system.run import LayerResult, Result
from hwsim.system.simulate import BUFFER_NAMES, memory_of
from hwsim.system.stages import Built
from hwsim.workloads.graph import Gemm, Graph
from hwsim.workloads.scalesim import access_report, bandwidth_report, compute_report, efficiencies

COMPONENTS = ("engine", "vector", "transform", "quantize", "scratchpads", "dram")
"""where energy goes"""
BOUNDS = ("compute", "epilogue", "memory", "latency")

LAYER_COLUMNS: Mapping[str, str] = {
    "layer": "its name in the network",
    "what": "product, attention, vector, transform or quantize",
    "unit": "that it runs on",
    "mode": "of an engine that has several",
    "fused": "layers done on the way of its result, joined by spaces",
    "batch": "products of that shape",
    **dict.fromkeys(("M", "K", "N"), "shape of a product"),
    "order": "loops over tiles, the outermost first",
    **dict.fromkeys(("tile_M", "tile_K", "tile_N"), "shape of a tile"),
    "steps": "tiles of work",
    "macs": "multiply-accumulates",
    "begin_cycle": "its first transfer can begin",
    "end_cycle": "its last result is in memory",
    "cycles": "by which the network's last result so far is later than before this layer; their sum is the total",
    "compute_cycles": "its unit at work",
    "bus_cycles": "the memory bus at work for it",
    "stall_cycles": "`cycles` without its unit at work; 0 where more of its work lies under other layers",
    "bound_cycles": "the roofline's, of its work and of the bytes of its tiling: from `begin_cycle` to `end_cycle` it "
    "is never less. `cycles` can be, where a part of it lies under other layers",
    "bound": "what is busiest: compute for its unit, epilogue for one that its result passes through, memory for the "
    "bus; latency where nothing is at work half the time",
    "utilization_fraction": "macs of those that its engine could do in `cycles`",
    **{f"read_{name}_bytes": f"{name} read from main memory" for name in ("activations", "weights")},
    "read_outputs_bytes": "sums that had been put away and are read again",
    "read_epilogue_bytes": "read for work on the result, such as a residual",
    "written_bytes": "written to main memory",
    **{
        f"scratchpad_{kind.value}_bytes": f"{kind.value} that enter and leave their scratchpad, on both sides"
        for kind in Operand
    },
    "intensity_macs_per_byte": "macs a byte of main memory",
    **{f"energy_{name}_pj": f"energy of {name}" for name in COMPONENTS},
    "energy_pj": "all of them",
}
"""Columns of layers.csv -> what stands there. Empty where a layer has no such figure."""


CSV_NAMES = ("layers.csv", "COMPUTE_REPORT.csv", "BANDWIDTH_REPORT.csv", "DETAILED_ACCESS_REPORT.csv")
"""what `write_csv` writes"""


def new_tokens(graph: Graph) -> int | None:
    """Tokens that a language model takes in at once: those of `input_ids`; None for other networks."""
    ids = graph.tensors.get("input_ids")
    return None if ids is None else ids.elements


def totals(result: Result, tokens: int | None) -> dict[str, Any]:
    """Figures of the whole run. `tokens` as `new_tokens` counts them."""
    energy = result.energy_pj
    rate = memory_of(result.machine).bytes_per_cycle
    shares = {bound: sum(layer.cycles for layer in result.layers if layer.bound == bound) for bound in BOUNDS}
    return {
        "network": result.network,
        "source": result.source,
        "machine": result.machine.name,
        "clock_mhz": result.machine.clock_mhz,
        "layers": len(result.layers),
        "total_cycles": result.total_cycles,
        "milliseconds": 1e3 * result.seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / result.seconds if tokens and result.seconds else None,
        "macs": result.macs,
        "peak_macs_per_cycle": result.peak_per_cycle,
        "utilization_fraction": result.utilization if result.peak_per_cycle else None,
        "read_bytes": _read_bytes(result),
        "written_bytes": sum(layer.written_bytes for layer in result.layers),
        "scratchpad_bytes": {
            kind.value: sum(layer.scratchpad_bytes[kind.value] for layer in result.layers) for kind in Operand
        },
        "bytes": result.bytes,
        "bus_bytes_per_cycle": None if rate is None else float(rate),
        "busy_cycles": dict(sorted(result.busy_cycles.items())),
        "cycles_by_bound": shares,
        "bound_fraction": {bound: cycles / max(result.total_cycles, 1) for bound, cycles in shares.items()},
        "energy_by_component_pj": {name: energy[name] for name in COMPONENTS if name in energy},
        "energy_pj": sum(energy.values()),
        "energy_delay_js": result.energy_delay_js,
        "steps": sum(layer.steps for layer in result.layers),
        "simulated_steps": result.simulated_steps,
    }


def total_rows(total: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value with its unit) of `totals`, an empty value where there is none."""
    rate, tokens = total["bus_bytes_per_cycle"], total["tokens_per_second"]
    busy, use = total["busy_cycles"], total["utilization_fraction"]
    cycles = max(total["total_cycles"], 1)
    energy = total["energy_pj"]
    return [
        ("cycles", f"{total['total_cycles']:,}"),
        (f"time at {total['clock_mhz']:,g} MHz", f"{total['milliseconds']:,.4g} ms"),
        ("tokens a second", f"{tokens:,.4g} ({total['tokens']:,} at once)" if tokens else ""),
        ("multiply-accumulates", f"{total['macs']:,}"),
        (f"utilization of {total['peak_macs_per_cycle']:,g} MACs/cycle", "" if use is None else f"{use:.2%}"),
        *((f"{name} at work", f"{count / cycles:.2%}") for name, count in busy.items()),
        ("bytes moved", f"{total['bytes']:,}" + (f" at {rate:,g} a cycle" if rate else "")),
        *((f"read {name}", f"{count:,} bytes") for name, count in total["read_bytes"].items()),
        ("written", f"{total['written_bytes']:,} bytes"),
        *((f"scratchpad of {kind}", f"{moved:,} bytes") for kind, moved in total["scratchpad_bytes"].items()),
        *((f"cycles bound by {name}", f"{share:.2%}") for name, share in total["bound_fraction"].items()),
        ("energy", si(energy * 1e-12, "J")),
        *(
            (f"energy of {name}", f"{si(part * 1e-12, 'J')} ({part / energy:.1%})")
            for name, part in total["energy_by_component_pj"].items()
            if part
        ),
        ("energy-delay product", f"{total['energy_delay_js']:.4g} J s"),
    ]


def si(value: float, unit: str = "") -> str:
    """Four digits and the unit with the prefix of the power of a thousand: 45890 J are `45.89 kJ`."""
    power = min(max(math.floor(math.log10(abs(value)) / 3), -5), 5) if value else 0
    prefix = ("f", "p", "n", "u", "m", "", "k", "M", "G", "T", "P")[power + 5]
    return f"{value / 1000.0**power:.4g} {prefix}{unit}".rstrip()


def _read_bytes(result: Result) -> dict[str, int]:
    total: dict[str, int] = {}
    for layer in result.layers:
        for name, moved in layer.read_bytes.items():
            total[name] = total.get(name, 0) + moved
    return total


def layer_records(result: Result) -> list[dict[str, Any]]:
    """A record of every layer, in order, with the keys of `LAYER_COLUMNS`; None where there is no such figure."""
    peak = result.peaks
    return [_record(layer, peak.get(layer.unit)) for layer in result.layers]


def _record(layer: LayerResult, peak: float | None) -> dict[str, Any]:
    batch, m, k, n = layer.shape or (None,) * 4
    tile_m, tile_k, tile_n = layer.tile or (None,) * 3
    energy = {f"energy_{name}_pj": layer.energy_pj.get(name) for name in COMPONENTS}
    return {
        "layer": layer.name,
        "what": layer.what,
        "unit": layer.unit,
        "mode": layer.mode,
        "fused": " ".join(layer.fused),
        "batch": batch,
        "M": m,
        "K": k,
        "N": n,
        "order": layer.order,
        "tile_M": tile_m,
        "tile_K": tile_k,
        "tile_N": tile_n,
        "steps": layer.steps,
        "macs": layer.macs,
        "begin_cycle": layer.begin,
        "end_cycle": layer.end,
        "cycles": layer.cycles,
        "compute_cycles": layer.compute_cycles,
        "bus_cycles": layer.bus_cycles,
        "stall_cycles": layer.stall_cycles,
        "bound_cycles": layer.bound_cycles,
        "bound": layer.bound,
        "utilization_fraction": layer.macs / (peak * layer.cycles) if peak and layer.cycles else None,
        **{f"read_{name}_bytes": layer.read_bytes.get(name) for name in BUFFER_NAMES.values() if name != "scores"},
        "written_bytes": layer.written_bytes,
        **{f"scratchpad_{kind}_bytes": moved for kind, moved in layer.scratchpad_bytes.items()},
        "intensity_macs_per_byte": layer.intensity,
        **energy,
        "energy_pj": sum(layer.energy_pj.values()),
    }


# ---- CSV


def write_csv(result: Result, folder: Path) -> list[Path]:
    """Write layers.csv and, of the products, SCALE-Sim's three reports into `folder`, each atomically."""
    files = {"layers.csv": layers_csv(result), **scalesim_reports(result)}
    for name in CSV_NAMES:
        write_atomic(folder / name, files[name])
    return [folder / name for name in CSV_NAMES]


def layers_csv(result: Result) -> str:
    """A row for each layer with `LAYER_COLUMNS` (RFC 4180). Numbers are in full. Text that starts with = + - @, TAB,
    CR or LF gets a leading ', so that a spreadsheet does not take it for a formula."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(LAYER_COLUMNS), lineterminator="\r\n")
    writer.writeheader()
    for record in layer_records(result):
        writer.writerow({key: _cell(value) for key, value in record.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value


def scalesim_reports(result: Result) -> dict[str, str]:
    """File name -> text of SCALE-Sim's reports: a row for each product in the order of execution, numbered from 0.

    What stands under their names, and where it means something else than with SCALE-Sim:

    - Products alone have rows; a batch of them is one row. Attention that is fused has none.
    - `Total Cycles` are `cycles` of layers.csv, `Total Cycles (incl. prefetch)` those from a layer's first transfer to
      its last result in memory; SCALE-Sim leaves a layer's first transfers out of the former. They differ on machines
      that prefetch over layers. `Stall Cycles` are those without the engine at work.
    - `Overall Util %` as theirs. `Mapping Efficiency %` and `Compute Util %` are by their formulas where a single array
      with a dataflow does the work; elsewhere the share of the engine's lanes that its folds use, and the
      multiply-accumulates of those it could do in its cycles at work.
    - SRAM figures are words that cross the edge of the array: operands in, results out; sums that come in again are in
      none of them, and SCALE-Sim has none.
    - DRAM figures are bytes, not words: the same where a word is a byte. OFMAP counts all that is written, sums that
      are put away among it; sums and epilogues' operands that are read stand in no column.
    - Bandwidths are means over the layer's span, where SCALE-Sim takes each operand's own first and last access. For
      the same reason start and stop cycles are the layer's first and last cycle for every operand. They count from the
      layer's begin, as theirs do.
    """
    rows = list(_products(result))
    return {
        "COMPUTE_REPORT.csv": compute_report(_compute_row(*row) for row in rows),
        "BANDWIDTH_REPORT.csv": bandwidth_report(_bandwidth_row(*row) for row in rows),
        "DETAILED_ACCESS_REPORT.csv": access_report(_access_row(*row) for row in rows),
    }


def _products(result: Result) -> Iterator[tuple[LayerResult, Built]]:
    for layer, built in zip(result.layers, result.built, strict=True):
        if layer.what == "product":
            yield layer, built


def _compute_row(layer: LayerResult, built: Built) -> dict[str, float]:
    room = built.planned.engine.peak_per_cycle * layer.cycles
    return {
        "cycles_with_prefetch": layer.end - layer.begin,
        "cycles": layer.cycles,
        "stall_cycles": layer.stall_cycles,
        "overall_util": 100 * layer.macs / room if room else 0.0,
        **_efficiencies(layer, built),
    }


def _efficiencies(layer: LayerResult, built: Built) -> dict[str, float]:
    """`mapping_efficiency` and `compute_util`, per cent."""
    engine, product = built.planned.engine, built.planned.work
    params, size = engine.array.params, Gemm(M=product.M, K=product.K, N=product.N)
    dataflow = getattr(params, "dataflow", None)
    if dataflow is not None and engine.count == 1:
        return efficiencies(dataflow.value, params.rows, params.cols, size)
    fold = engine.fold
    pairs = ((size.M, fold.M), (size.K, fold.K), (size.N, fold.N))
    mapped = math.prod(whole / (-(-whole // part) * part) for whole, part in pairs)
    busy = engine.peak_per_cycle * layer.compute_cycles
    return {"mapping_efficiency": 100 * mapped, "compute_util": 100 * layer.macs / busy}


def edge_words(built: Built) -> dict[str, int]:
    """Words that cross the engine's edge in a product, by operand."""
    total = dict.fromkeys(WORDS, 0)
    for times, shape in power.shapes(built.planned.work, built.tiling):
        for name, words in built.planned.engine.work(shape).words.items():
            total[name] += times * words
    return total


def _counts(layer: LayerResult, built: Built) -> dict[str, int]:
    """(operand, memory) of SCALE-Sim -> how much."""
    words = edge_words(built)
    return {
        "ifmap_sram": words["act"],
        "filter_sram": words["weight"],
        "ofmap_sram": words["out"],
        "ifmap_dram": layer.read_bytes.get("activations", 0),
        "filter_dram": layer.read_bytes.get("weights", 0),
        "ofmap_dram": layer.written_bytes,
    }


def _bandwidth_row(layer: LayerResult, built: Built) -> dict[str, float]:
    span = layer.end - layer.begin
    return {f"{name}_bandwidth": count / span for name, count in _counts(layer, built).items()}


def _access_row(layer: LayerResult, built: Built) -> dict[str, float]:
    row: dict[str, float] = {}
    for name, count in _counts(layer, built).items():
        figure = "writes" if name.startswith("ofmap") else "reads"
        row |= {f"{name}_start": 0, f"{name}_stop": layer.end - layer.begin - 1, f"{name}_{figure}": count}
    return row
