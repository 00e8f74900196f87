"""Designs of one family laid beside each other: area, clock, area efficiency and energy against the plain MAC.

What is compared stands in the units (`Unit.compared`), the papers' ratios with it; every other figure is computed here.
Rows of one architecture stand together and are held against its baseline, the plain MAC where there is one.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwsim.energy import energy_pj
from hwsim.files import write_atomic
from hwsim.simulate import random_operands
from hwsim.synth import SynthResult, area_delay_curve, at_clock, pe_module
from models.catalog import UNITS
from models.gemm import check_shape
from models.unit import Compared, InputError, Kind, Unit, fields_of, nearest, require

ACCURACY = "accuracy"
"""the family that no unit stands in: hwsim/accuracy_table.py measures it"""
SPREAD = 30
"""standard deviation of the operands, in steps"""
LARGEST = 1 << 28
"""values of a matrix"""
TIME_LIMIT_S = 3600.0
"""of one design's synthesis: many mappings of it, several designs at a time"""

Curve = tuple[SynthResult, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One GEMM, or one pass over a matrix of an encoder or a transform, without stalls."""

    cycles: int
    work_per_cycle: float
    """MACs, or input points, that it really does a cycle"""
    peak_per_cycle: float
    energy_pj: float
    """of one operation; two operations are a MAC, one is an input point"""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One netlist at one clock period."""

    area_um2: float
    gate_equivalents: float
    period_ns: float
    tops_per_mm2: float
    """operations a second and area, at the cycles of the run"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The whole array, or one of its PEs with its share of the work."""

    name: str
    """the module"""
    instances: int
    best: Figures
    """of the netlist of the area-delay curve with the largest area efficiency"""
    equal: Figures
    """of the smallest netlist that fits the clock period that every row of the architecture can reach"""
    fastest_ns: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One design."""

    unit: str
    compared: Compared
    verilog_sha256: str
    """of the RTL that was synthesised, as `fingerprint` takes it"""
    run: Run
    array: Part
    pe: Part | None
    """None where no module is named as a PE"""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The rows of a family, those of one architecture together and its baseline first."""

    family: str
    shape: tuple[int, int, int]
    seed: int
    library: str
    tools: dict[str, str]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class _Synthesised:
    """What is known of a design before it is held against others."""

    unit: Unit
    compared: Compared
    verilog: str
    run: Run
    array: Curve
    pe: Curve | None


def compare(
    family: str,
    *,
    shape: tuple[int, int, int] = (256, 256, 256),
    seed: int = 0,
    liberty: Path | None = None,
    cache: Path | None = None,
    workers: int = 2,
    progress: Callable[[int, int, str], None] | None = None,
) -> Comparison:
    """Synthesise and run every design of a family.

    The GEMM has M, K, N of `shape` and operands round(N(0, SPREAD^2)), clipped to their formats (FP16 ones not rounded
    to integers), from `seed`: what they hold decides the cycles of some engines. `workers` designs are synthesised at a
    time. `progress` is called after each with the number done, the number of all and its name. Raises InputError for an
    unknown family and for an architecture without its one baseline; else as `area_delay_curve`.
    """
    m, k, n = shape
    check_shape(M=m, K=k, N=n)
    require(max(m * k, k * n, m * n) <= LARGEST, f"shape {m} {k} {n}: a matrix of over 2^28 values is too large")
    require(workers >= 1, f"workers: {workers} must be at least 1")
    designs = designs_of(family)
    runs = [run_of(entry, compared.params, shape, seed) for entry, compared in designs]
    # Amaranth in this thread alone; Yosys runs in processes of its own
    jobs = [(entry, compared, verilog_of(entry, compared), liberty, cache) for entry, compared in designs]
    curves = _in_parallel(jobs, workers, progress)
    made = [
        _Synthesised(unit=entry, compared=compared, verilog=verilog, run=run, array=array, pe=pe)
        for (entry, compared, verilog, *_), run, (array, pe) in zip(jobs, runs, curves, strict=True)
    ]
    first = made[0].array[0]
    return Comparison(
        family=family,
        shape=shape,
        seed=seed,
        library=first.library,
        tools={**_tools(), **first.tools},
        rows=tuple(rows_of(made)),
    )


Job = tuple[Unit, Compared, str, Path | None, Path | None]
"""a design, its Verilog, library and cache"""


def _in_parallel(
    jobs: Sequence[Job], workers: int, progress: Callable[[int, int, str], None] | None
) -> list[tuple[Curve, Curve | None]]:
    """The curves of every design, in order; the first that fails ends all that have not begun."""
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(_curves, *job): job for job in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                done += 1
                if progress:
                    _, compared, *_ = futures[future]
                    progress(done, len(jobs), f"{compared.architecture} {compared.style}")
        finally:
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def _curves(
    entry: Unit, compared: Compared, verilog: str, liberty: Path | None, cache: Path | None
) -> tuple[Curve, Curve | None]:
    """Of the array and of its PE, where one is named so."""

    def curve(top: str) -> Curve:
        return area_delay_curve(verilog, top, points=None, liberty=liberty, cache=cache, time_limit_s=TIME_LIMIT_S)

    try:
        array = curve(entry.name)
        pe = pe_module(array[-1])
        return array, curve(pe) if pe else None
    except InputError as error:
        raise InputError(f"{compared.architecture}, {compared.style}: {error}") from None


def designs_of(family: str) -> list[tuple[Unit, Compared]]:
    """The family's designs, architecture by architecture in order of appearance, the baseline first."""
    every = [(entry, compared) for entry in UNITS.values() for compared in entry.compared]
    families = {compared.family for _, compared in every}
    require(bool(families), "no unit stands in a comparison; give one a tuple COMPARED")
    require(family in families, f"no family {family!r}; {nearest(family, families | {ACCURACY})}")
    chosen = [pair for pair in every if pair[1].family == family]
    order = list(dict.fromkeys(compared.architecture for _, compared in chosen))
    for architecture in order:
        _check_baseline(family, architecture, [c for _, c in chosen if c.architecture == architecture])
    return sorted(chosen, key=lambda pair: (order.index(pair[1].architecture), pair[1].style != pair[1].baseline))


def _check_baseline(family: str, architecture: str, designs: Sequence[Compared]) -> None:
    """InputError unless all name the same baseline and one of them is it."""
    bases, styles = sorted({compared.baseline for compared in designs}), [compared.style for compared in designs]
    rule = f"family {family}: architecture {architecture!r} needs one baseline"
    require(len(bases) == 1, f"{rule}, not {', '.join(bases)}")
    count = styles.count(bases[0])
    require(count == 1, f"{rule} of style {bases[0]!r}, found {count} among {', '.join(styles)}")


def run_of(entry: Unit, params: Any, shape: tuple[int, int, int], seed: int) -> Run:
    """Cycles, throughput and energy of one run of the stated size."""
    m, k, _ = shape
    if entry.kind is Kind.GEMM:
        a, w = random_operands(params, np.random.default_rng(seed), shape, SPREAD)
        operands: tuple[Any, ...] = (a, entry.from_integers(params, w)[0])
        per_work = 2
    else:
        operands = entry.sample(params, np.random.default_rng(seed), M=m, K=k)
        per_work = 1
    sizes = entry.shape_of(params, *operands)
    timing = entry.timing(params, **sizes)
    return Run(
        cycles=int(timing.total_cycles),
        work_per_cycle=float(timing.work / timing.total_cycles),
        peak_per_cycle=timing.peak_per_cycle,
        energy_pj=energy_pj(entry.ops(params, **sizes)) / (per_work * timing.work),
    )


def verilog_of(entry: Unit, compared: Compared) -> str:
    """The design's RTL."""
    from rtl.emit import emit

    return emit(compared.params, entry.name)


def fingerprint(verilog: str) -> str:
    """SHA-256 of a Verilog text without its comment lines, which name the tool that wrote it."""
    code = "\n".join(line for line in verilog.splitlines() if not line.startswith("/*"))
    return hashlib.sha256(code.encode()).hexdigest()


def _tools() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("hwsim", "amaranth", "numpy")}


def rows_of(designs: Sequence[_Synthesised]) -> Iterable[Row]:
    """Each design at its own best point, and at the shortest clock period that all of its architecture reach."""
    for design in designs:
        beside = [d for d in designs if d.compared.architecture == design.compared.architecture]
        work = design.run.work_per_cycle * (2 if design.unit.kind is Kind.GEMM else 1)
        name, count = _repeated(design)
        yield Row(
            unit=design.unit.name,
            compared=design.compared,
            verilog_sha256=fingerprint(design.verilog),
            run=design.run,
            array=_part(design.unit.name, 1, work, design.array, [d.array for d in beside]),
            pe=_part(name, count, work / count, design.pe, [d.pe for d in beside if d.pe]) if design.pe else None,
        )


def _repeated(design: _Synthesised) -> tuple[str, int]:
    """Name and number of the PEs."""
    name = pe_module(design.array[-1]) or ""
    return name, next((count for module, count, _ in design.array[-1].modules if module == name), 1)


def _part(name: str, instances: int, ops_per_cycle: float, curve: Curve, beside: Iterable[Curve]) -> Part:
    common = max(min(result.delay_ns for result in other) for other in beside)
    best = max((_figures(result, result.delay_ns, ops_per_cycle) for result in curve), key=lambda f: f.tops_per_mm2)
    return Part(
        name=name,
        instances=instances,
        best=best,
        equal=_figures(at_clock(curve, common), common, ops_per_cycle),
        fastest_ns=min(result.delay_ns for result in curve),
    )


def _figures(result: SynthResult, period_ns: float, ops_per_cycle: float) -> Figures:
    return Figures(
        area_um2=result.area_um2,
        gate_equivalents=result.gate_equivalents,
        period_ns=period_ns,
        # operations a ns and um2 are 1000 tera-operations a second and mm2
        tops_per_mm2=1000 * ops_per_cycle / period_ns / result.area_um2,
    )


# ---- what a row says


def baseline(comparison: Comparison, row: Row) -> Row:
    """The row that `row` is held against."""
    return next(
        other
        for other in comparison.rows
        if (other.compared.architecture, other.compared.style) == (row.compared.architecture, row.compared.baseline)
    )


def record(comparison: Comparison, row: Row) -> dict[str, Any]:
    """All figures of a row by name, and their ratios to the baseline: above 1 is better, but of area and energy."""
    base = baseline(comparison, row)
    published = row.compared.published
    return {
        "architecture": row.compared.architecture,
        "style": row.compared.style,
        "unit": row.unit,
        "params": " ".join(f"{name}={value}" for name, value in fields_of(row.compared.params)),
        "verilog_sha256": row.verilog_sha256,
        "cycles": row.run.cycles,
        "work_per_cycle": row.run.work_per_cycle,
        "peak_per_cycle": row.run.peak_per_cycle,
        "energy_pj_per_op": row.run.energy_pj,
        "energy_efficiency_ratio": base.run.energy_pj / row.run.energy_pj if row.run.energy_pj else None,
        **_part_record("array", row.array, base.array),
        **_part_record("pe", row.pe, base.pe),
        "published_area_efficiency_ratio": published.area_efficiency if published else None,
        "published_energy_efficiency_ratio": published.energy_efficiency if published else None,
        "published_source": published.source if published else None,
        "differs": row.compared.differs,
    }


def _part_record(prefix: str, part: Part | None, base: Part | None) -> dict[str, Any]:
    """Of the array or the PE; None where there is none."""
    named: dict[str, Any] = {
        "module": part and part.name,
        "instances": part and part.instances,
        "fastest_ns": part and part.fastest_ns,
    }
    for point in ("best", "equal"):
        own, other = (getattr(each, point) if each else None for each in (part, base))
        named |= {
            f"{point}_area_um2": own and own.area_um2,
            f"{point}_gate_equivalents": own and own.gate_equivalents,
            f"{point}_period_ns": own and own.period_ns,
            f"{point}_tops_per_mm2": own and own.tops_per_mm2,
            f"{point}_area_ratio": own.area_um2 / other.area_um2 if own and other else None,
            f"{point}_area_efficiency_ratio": own.tops_per_mm2 / other.tops_per_mm2 if own and other else None,
        }
    return {f"{prefix}_{name}": value for name, value in named.items()}


Column = tuple[str, str, Callable[[Any], str]]
"""key of `record`, heading, how a value is shown"""


def _fixed(digits: int) -> Callable[[Any], str]:
    return lambda value: f"{value:,.{digits}f}"


def _times(value: Any) -> str:
    return f"{value:.2f} x"


DESIGN: tuple[Column, ...] = (("architecture", "architecture", str), ("style", "style", str))
TABLES: Mapping[str, tuple[Column, ...]] = {
    "Whole array, each at the best point of its area-delay curve": (
        *DESIGN,
        ("array_best_area_um2", "area [um2]", _fixed(0)),
        ("array_best_gate_equivalents", "GE", _fixed(0)),
        ("array_best_period_ns", "critical path [ns]", _fixed(3)),
        ("cycles", "cycles", _fixed(0)),
        ("work_per_cycle", "MACs a cycle", _fixed(1)),
        ("peak_per_cycle", "peak", _fixed(0)),
        ("array_best_tops_per_mm2", "TOPS/mm2", _fixed(2)),
        ("array_best_area_efficiency_ratio", "area efficiency", _times),
        ("published_area_efficiency_ratio", "paper", _times),
        ("energy_pj_per_op", "pJ an operation", _fixed(3)),
        ("energy_efficiency_ratio", "energy efficiency", _times),
        ("published_energy_efficiency_ratio", "paper", _times),
    ),
    "Whole array, all of an architecture at one clock": (
        *DESIGN,
        ("array_fastest_ns", "shortest path [ns]", _fixed(3)),
        ("array_equal_period_ns", "clock period [ns]", _fixed(3)),
        ("array_equal_area_um2", "area [um2]", _fixed(0)),
        ("array_equal_area_ratio", "area", _times),
        ("array_equal_tops_per_mm2", "TOPS/mm2", _fixed(2)),
        ("array_equal_area_efficiency_ratio", "area efficiency", _times),
    ),
    "One PE alone, with its share of the work": (
        *DESIGN,
        ("pe_module", "module", str),
        ("pe_instances", "PEs", _fixed(0)),
        ("pe_best_area_um2", "area at its best [um2]", _fixed(1)),
        ("pe_best_period_ns", "critical path [ns]", _fixed(3)),
        ("pe_best_area_efficiency_ratio", "area efficiency", _times),
        ("pe_equal_period_ns", "one clock period [ns]", _fixed(3)),
        ("pe_equal_area_um2", "area [um2]", _fixed(1)),
        ("pe_equal_area_efficiency_ratio", "area efficiency", _times),
    ),
}


def tables(comparison: Comparison) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Title -> headings and rows, as they are shown. A ratio is held against the baseline of the same architecture."""
    records = [record(comparison, row) for row in comparison.rows]
    return {
        title: (
            [heading for _, heading, _ in columns],
            [["-" if r[key] is None else show(r[key]) for key, _, show in columns] for r in records],
        )
        for title, columns in TABLES.items()
    }


def notes(comparison: Comparison) -> list[str]:
    """A line for each row that a paper has a ratio for: which paper, and why ours differs."""
    return [
        f"{row.compared.architecture}, {row.compared.style}: {_said(row.compared)}"
        for row in comparison.rows
        if row.compared.published or row.compared.differs
    ]


def _said(compared: Compared) -> str:
    source = f"Paper: {compared.published.source}. " if compared.published else ""
    return (source + compared.differs).strip()


# ---- files


def to_csv(comparison: Comparison) -> str:
    """A line for each row, a column for each figure of `record`, in full precision."""
    records = [record(comparison, row) for row in comparison.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def to_markdown(comparison: Comparison, command: str) -> str:
    """The tables, what they mean and how they were made; `command` is the one that writes this page."""
    m, k, n = comparison.shape
    parts = [
        f"# Comparison: family {comparison.family}",
        f"Written by `{command}`; the CSV file beside this page has all figures in full. Every figure is computed but "
        "those under *paper*, which the papers report over their own baselines.",
        "Ratios are over the first row of the same architecture. Area efficiency is operations a second and area (two "
        "operations a MAC), so that its inverse compares areas at equal throughput, with the MACs a cycle that the "
        f"array really does in one GEMM of M={m} K={k} N={n}: filling, draining and what its operands cost are in it. "
        f"Operands: round(N(0, {SPREAD}^2)), clipped to their formats (FP16 ones not rounded to integers), seed "
        f"{comparison.seed}. Energy: counted operations, published energies at 45 nm, no memories, no wires, no clock.",
        f"Library: {comparison.library}; tools: "
        + ", ".join(f"{name} {version}" for name, version in comparison.tools.items())
        + ". Area and delay come from synthesis and our own static timing. The built-in library `hwsim45` is an "
        "approximation: published cell areas, delays by logical effort. Nothing is placed: no wires, no clock tree.",
    ]
    for title, (headings, rows) in tables(comparison).items():
        parts += [f"## {title}", _markdown_table(headings, rows)]
    parts += ["## Ours and the papers' figures", "\n".join(f"- {_cell(line)}" for line in notes(comparison))]
    return "\n\n".join(parts) + "\n"


def _markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    rule = [" --- "] * len(DESIGN) + [" ---: "] * (len(headings) - len(DESIGN))
    lines = [f"| {' | '.join(headings)} |", f"|{'|'.join(rule)}|"]
    return "\n".join(lines + [f"| {' | '.join(map(_cell, row))} |" for row in rows])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def write(comparison: Comparison, path: Path, command: str) -> None:
    """Write `path`.md and `path`.csv, each atomically; `command` as in `to_markdown`."""
    write_atomic(path.with_name(f"{path.name}.md"), to_markdown(comparison, command))
    write_atomic(path.with_name(f"{path.name}.csv"), to_csv(comparison))
