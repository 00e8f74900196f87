"""The results as a table, as Markdown and as JSON, and the machine that gave them."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import Result, Samples

COLUMNS = ("name", "what", "ours [s]", "reference", "reference [s]", "value (min .. max)", "limit", "verdict")


def row(result: Result) -> tuple[str, ...]:
    """The cells of one line, as `COLUMNS` names them."""
    return (
        result.name,
        result.what,
        _median(result.ours),
        result.against or "-",
        _median(result.reference),
        f"{result.value:.3g} {result.unit} ({min(result.values):.3g} .. {max(result.values):.3g})",
        f"{result.limit} {result.unit}",
        "within" if result.within else result.limit.missed,
    )


def _median(samples: Samples) -> str:
    return f"{statistics.median(samples):.3g}" if samples else "-"


def machine() -> dict[str, str]:
    """What the times depend on: processor, cores this process may use, and the versions of what computes."""
    import numba
    import numpy

    blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "numpy": f"{numpy.__version__}, BLAS: {blas['name']} {blas['version']}",
        "numba": numba.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def markdown(results: Sequence[Result]) -> str:
    """A document with the table and the machine."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks --markdown docs/benchmarks.md`; `make bench` prints the table anywhere.",
        "Ours and the reference run alternately in one process after a warm-up that is not counted (just-in-time",
        "compilation). Times are medians in seconds of wall clock; a value is the median over the rounds, with the",
        "least and the largest. What takes long (whole networks, builds) runs once, compilation included. What is",
        "timed is checked: a wrong output or cycle count ends the run. A matrix product is BLAS's on all cores, a copy",
        "one thread's, as are the transforms.",
        "",
        _line(COLUMNS),
        _line(["---"] * len(COLUMNS)),
        *(_line(row(result)) for result in results),
        "",
        "Measured on:",
        "",
        *(f"- {name}: {value}" for name, value in machine().items()),
        "",
    ]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def as_json(results: Sequence[Result]) -> str:
    """Every sample, with the medians and verdicts that the table shows, and the machine."""
    return json.dumps({"machine": machine(), "results": [_plain(result) for result in results]}, indent=2)


def _plain(result: Result) -> dict[str, Any]:
    return asdict(result) | {"limit": str(result.limit), "value": result.value, "within": result.within}


def print_table(results: Sequence[Result]) -> None:
    """The table on standard output, as wide as the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*map(escape, COLUMNS))
    for result in results:
        table.add_row(*map(escape, row(result)))
    Console().print(table)
