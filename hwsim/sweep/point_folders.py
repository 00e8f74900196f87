"""A folder for each point of a study: what it was made from, what it gave, and a script that evaluates it again."""

from __future__ import annotations

import io
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from hwsim.files import SUFFIX, os_errors
from hwsim.metrics import METRICS
from hwsim.sweep.ledger import point_of
from hwsim.sweep.lookup import axes, front_keys
from hwsim.sweep.point import FLOAT_ACTIVATIONS
from hwsim.sweep.rows import Row
from hwsim.sweep.store import count_by_status, read_study, rows_at, study_rows
from hwsim.sweep.tasks import DONE
from models.unit import require

POINTS = "points"
"""the folder of a study's point folders"""
SHOWN = 16
"""characters of a point's key that name its folder"""
WAVES = "waves.vcd"
"""in a point's folder, where its engine's RTL was held against the model"""
MOST = 5_000
"""points of a study that has a folder for each"""

LIBRARY = "library.lib"
_SCRIPT = """\
#!/bin/sh
# Evaluates the point of study.yaml again, into the folder given, ./replay without one.
set -eu
case $0 in
*/*) here=${{0%/*}} ;;
*) here=. ;;
esac
case $here in
-*) here=./$here ;;
esac
exec hwsim sweep --out="${{1:-replay}}"{library} -- "$here/study.yaml"
"""


def folder_name(key: str) -> str:
    """Of the point with that key."""
    return key[:SHOWN]


def write_folders(store: Connection, folder: Path) -> int:
    """Write `points/<first 16 digits of the key>/` below `folder` for each point of the store's current study that has
    a row; returns how many files were missing or differed, which alone are written.

    Of a study of more than `MOST` points only those on its Pareto front, and then failed ones, have a folder, `MOST` at
    most. Folders of other points are left alone. Each file is whole or not there, but not forced to the disk: all of
    them follow from the store, and the next call mends what a power cut took.

    InputError for a place that cannot be written, a folder that is a link, and a store that is damaged or holds no
    study.
    """
    entries, place = read_study(store), folder / POINTS
    require("study" in entries, f"{folder}: the store holds no study yet; run `hwsim sweep` first")
    library = f"../../{LIBRARY}" if has_library(entries) else None
    with os_errors(place):
        _make(place)
        present = {entry.name for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False)}
        return sum(_write_one(place, row, entries, library, present) for row in _rows(store))


def write_folder(place: Path, row: Row, entries: Mapping[str, Any], library: str | None) -> int:
    """Write the files of one point into `place`, made if absent; returns how many were missing or differed.

    `entries`: of the study, as `read_study` gives them. `library`: path of the cell library from there, None for the
    built-in one. OSError for what the system refuses.
    """
    _make(place)
    return sum(_put(place / name, *file) for name, file in _files(row, entries, library).items())


def has_library(entries: Mapping[str, Any]) -> bool:
    """Whether the study was evaluated with a cell library in place of the built-in one."""
    return bool(entries.get("versions", {}).get("liberty", "").startswith("sha256:"))


def one_point(row: Row, study: Mapping[str, Any]) -> dict[str, Any]:
    """The sweep file, as plain data, whose one point is that of the row; `study`: the one that it belongs to."""
    point = point_of(row)
    named = {"name": point.name} if point.name else {}
    # floats have no kind to choose
    kind = {} if point.activations in FLOAT_ACTIVATIONS else {"activations": [point.activations]}
    return {
        "name": study["name"],
        "network": point.network,
        "seed": point.seed,
        "formats": [point.format],
        "transforms": [point.transform],
        "quantizers": [point.quantizer],
        **kind,
        **{name: study[name] for name in ("evaluate", "limits") if name in study},
        "engines": [{"unit": point.unit, **named, "set": dict(point.params)}],
    }


# ---- which points


def _rows(store: Connection) -> Iterator[Row]:
    counts = count_by_status(store)
    if sum(counts.values()) <= MOST:
        return study_rows(store)
    return rows_at(store, _first(MOST, [*front_keys(store, axes(store)), *_failed(store)]))


def _first(most: int, keys: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(keys))[:most]


def _failed(store: Connection) -> Iterator[str]:
    return (row["key"] for row in study_rows(store, ("key", "status")) if row["status"] != DONE)


# ---- their files


def _write_one(place: Path, row: Row, entries: Mapping[str, Any], library: str | None, present: set[str]) -> int:
    name = folder_name(row["key"])
    # a name from a file becomes a path
    require(re.fullmatch("[0-9a-f]{16}", name) is not None, f"{place}: {row['key']!r:.80} is no key; damaged store")
    here = place / name
    if name not in present:
        _make(here)
    return sum(_put(here / file, *content) for file, content in _files(row, entries, library).items())


def _make(folder: Path) -> None:
    require(not folder.is_symlink(), f"{folder}: is a link; remove it")
    folder.mkdir(parents=True, exist_ok=True)


def _put(path: Path, content: bytes, mode: int) -> bool:
    """Whether the file had to be written."""
    try:
        if path.read_bytes() == content:
            return False
    except FileNotFoundError:
        pass
    temporary = path.with_name(f".{secrets.token_hex(8)}{SUFFIX}")
    try:
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
            file.write(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return True


def _files(row: Row, entries: Mapping[str, Any], library: str | None) -> dict[str, tuple[bytes, int]]:
    """Name -> content and mode."""
    return {
        "study.yaml": (_yaml(one_point(row, entries["study"])).encode(), 0o666),
        "point.json": ((json.dumps(_told(row, entries), indent=2) + "\n").encode(), 0o666),
        "replay.sh": (_script(library), 0o777),
    }


def _told(row: Row, entries: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "key": row["key"],
        "label": row["label"],
        "configuration": point_of(row).as_dict(),
        "status": row["status"],
        "message": row["message"],
        "metrics": {name: row[name] for name in METRICS if row[name] is not None},
        "tasks": row["detail"].get("tasks", {}),
        "versions": row["detail"].get("versions") or entries.get("versions", {}),
        "revision": row["revision"],
        "study": entries["study"]["name"],
        "command": entries.get("command", ""),
    }


@lru_cache(maxsize=4)
def _script(library: str | None) -> bytes:
    """`library` is a plain path of ours, relative to the script."""
    given = "" if library is None else f' --liberty="$here/{library}"'
    return _SCRIPT.format(library=given).encode()


def _yaml(study: Mapping[str, Any]) -> str:
    """The sweep file as text: a line a key, the values in YAML's flow style, every text in double quotes."""
    return "".join(f"{name}: {_flow(value)}\n" for name, value in study.items())


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(name)}: {_flow(part)}" for name, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


@lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    """The text as a double-quoted scalar of YAML, on one line."""
    from ruamel.yaml import YAML
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    writer, line = YAML(pure=True), io.StringIO()
    writer.width = 1 << 30
    writer.dump(DoubleQuotedScalarString(text), line)
    return line.getvalue().rstrip("\n")
