"""The store of a study: one SQLite file with a row a point, and its export as CSV."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hwsim.files import os_errors, require_file, write_atomic
from hwsim.metrics import METRICS
from hwsim.sweep.space import Study
from models.unit import InputError, require

APPLICATION_ID = 0x6877736D
"""`hwsm`, in the SQLite header: this file is ours"""
SCHEMA_VERSION = 3
DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Column:
    """A column of the table `points`."""

    name: str
    """as in the file, unit included"""
    field: str
    """as in a row"""
    type: str
    exported: bool = True
    """whether the CSV has it: what differs from run to run stays in the store"""


COLUMNS = (
    Column("key", "key", "TEXT"),
    Column("label", "label", "TEXT", exported=False),
    Column("network", "network", "TEXT"),
    Column("seed", "seed", "INTEGER"),
    Column("engine", "engine", "TEXT"),
    Column("unit", "unit", "TEXT"),
    Column("format", "format", "TEXT"),
    Column("weight_bits", "weight_bits", "INTEGER"),
    Column("act_bits", "act_bits", "INTEGER"),
    Column("transform", "transform", "TEXT"),
    Column("quantizer", "quantizer", "TEXT"),
    Column("activations", "activations", "TEXT"),
    Column("status", "status", "TEXT"),
    Column("message", "message", "TEXT"),
    *(Column(m.column, m.name, "INTEGER" if m.kind is int else "REAL") for m in METRICS.values()),
    Column("wall_s", "wall_s", "REAL", exported=False),
    Column("peak_memory_bytes", "peak_memory_bytes", "INTEGER", exported=False),
    Column("created_utc", "created", "TEXT", exported=False),
    Column("detail_json", "detail", "TEXT", exported=False),
)
"""`detail` is a JSON object: `params` (the engine's parameters as set), `versions`, and what the evaluation adds."""

Row = dict[str, Any]
"""A point by the fields of `COLUMNS`; `detail` as a dict, None where there is no value."""

_SCHEMA = (
    f"CREATE TABLE points ({', '.join(f'{c.name} {c.type}' for c in COLUMNS)}, PRIMARY KEY (key)) WITHOUT ROWID",
    "CREATE TABLE study (name TEXT PRIMARY KEY, json TEXT) WITHOUT ROWID",
)


def open_store(path: Path) -> sqlite3.Connection:
    """The store at `path` for writing, made when there is none; each `save` is one durable transaction.

    Raises InputError, with the remedy, for a file that is damaged or not a store of this version, one that another
    process holds, and a place that cannot be written.
    """
    with os_errors(path):
        if not path.exists():
            _create(path)
    store = _checked(path, "rw")
    with _sqlite_errors(path):
        store.execute("PRAGMA journal_mode = WAL")
        store.execute("PRAGMA synchronous = FULL")
    return store


def read_store(path: Path) -> sqlite3.Connection:
    """The store at `path` for reading only. Raises InputError as `open_store` does, and for a missing file."""
    require_file(path, "run `hwsim sweep` first")
    return _checked(path, "ro")


def close_store(store: sqlite3.Connection) -> None:
    """Close, leaving a single file that can be copied (no write-ahead log beside it) unless somebody still reads it."""
    with contextlib.suppress(sqlite3.DatabaseError):
        store.execute("PRAGMA journal_mode = DELETE")
    store.close()


def _create(path: Path) -> None:
    """An empty store appears whole or not at all."""
    with tempfile.TemporaryDirectory() as folder, _sqlite_errors(path):
        fresh = Path(folder) / "store.sqlite"
        store = sqlite3.connect(fresh, isolation_level=None)
        store.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        store.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        for statement in _SCHEMA:
            store.execute(statement)
        store.close()
        write_atomic(path, fresh.read_bytes())


def _checked(path: Path, mode: str) -> sqlite3.Connection:
    with _sqlite_errors(path):
        store = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None)
    try:
        with _sqlite_errors(path):
            _check(store, path)
    except InputError:
        store.close()
        raise
    return store


def _check(store: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not exactly our schema before any of its rows is read."""
    store.execute("PRAGMA trusted_schema = OFF")
    store.execute("PRAGMA cell_size_check = ON")
    (application,) = store.execute("PRAGMA application_id").fetchone()
    require(application == APPLICATION_ID, f"{path}: {_FOREIGN}")
    objects = store.execute("SELECT type, sql FROM sqlite_master").fetchall()
    active = sorted({kind for kind, _ in objects} - {"table", "index"})
    require(not active, f"{path}: holds a {' and a '.join(active)}, which no store of hwsim does; {_REMEDY}")
    (version,) = store.execute("PRAGMA user_version").fetchone()
    same = version == SCHEMA_VERSION and {sql for _, sql in objects} == set(_SCHEMA)
    require(same, f"{path}: made by another version of hwsim; {_REMEDY}")
    (verdict,) = store.execute("PRAGMA integrity_check(1)").fetchone()
    require(verdict == "ok", f"{path}: damaged ({' '.join(verdict.split())}); {_REMEDY}")


_REMEDY = "move it away or delete it, and run the sweep again"
_FOREIGN = "is no store of hwsim; name another file"


@contextlib.contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: {_advice(error)}") from None


def _advice(error: sqlite3.DatabaseError) -> str:
    """What to do about an error of SQLite, by its primary result code (https://sqlite.org/rescode.html).

    Only what is left, damage, is a reason to give up the file.
    """
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"in use by another process ({error}); wait until it ends"
        case sqlite3.SQLITE_FULL:
            return f"no space left ({error}); make room and run the sweep again"
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_IOERR:
            return f"cannot be opened or written ({error}); check permissions and space of file and folder"
        case sqlite3.SQLITE_NOTADB:
            return _FOREIGN
    return f"cannot be read as a store ({error}); {_REMEDY}"


# ---- rows


def save(store: sqlite3.Connection, row: Row) -> None:
    """Write one point, replacing what its key held, and commit. Fields that `row` lacks become empty.

    InputError where the file cannot be written.
    """
    unknown = row.keys() - {column.field for column in COLUMNS}
    assert not unknown, f"fields without a column: {sorted(unknown)}"
    values = [row.get(column.field) for column in COLUMNS[:-1]]
    detail = json.dumps(row.get("detail", {}), sort_keys=True, allow_nan=False)
    marks = ", ".join("?" * len(COLUMNS))
    with _sqlite_errors(_path(store)):
        store.execute(f"INSERT OR REPLACE INTO points VALUES ({marks})", [*values, detail])  # noqa: S608 - question marks


def done_keys(store: sqlite3.Connection) -> set[str]:
    """Keys of the points that need no evaluation."""
    with _sqlite_errors(_path(store)):
        return {key for (key,) in store.execute("SELECT key FROM points WHERE status = ?", (DONE,))}


def save_study(store: sqlite3.Connection, study: Mapping[str, Any]) -> None:
    """Write what the current study is: its entries as JSON, among them `points`, the keys in order."""
    entries = [(name, json.dumps(value, sort_keys=True, allow_nan=False)) for name, value in study.items()]
    with _sqlite_errors(_path(store)):
        store.execute("BEGIN IMMEDIATE")
        store.execute("DELETE FROM study")
        store.executemany("INSERT INTO study VALUES (?, ?)", entries)
        store.execute("COMMIT")


def read_study(store: sqlite3.Connection) -> dict[str, Any]:
    """What `save_study` wrote, each entry held against its form; empty before that. InputError for damaged entries.

    `study` is a sweep file's content, `command` text, `versions` name -> text, `points` a list of keys.
    """
    path = _path(store)
    with _sqlite_errors(path):
        entries = store.execute("SELECT name, json FROM study ORDER BY name").fetchall()
    study = {name: _json(text, path) for name, text in entries}
    for name, value in study.items():
        require(name in _FORMS and _FORMS[name](value), f"{path}: damaged (entry {name!r:.60}); {_REMEDY}")
    return study


def _is_study(value: Any) -> bool:
    try:
        Study.model_validate_json(json.dumps(value))
    except ValidationError:
        return False
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_versions(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _are_keys(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


_FORMS = {"study": _is_study, "command": _is_text, "versions": _are_versions, "points": _are_keys}


def study_rows(store: sqlite3.Connection) -> list[Row]:
    """The points of the current study that have a row, in the study's order. InputError for damaged rows.

    Points of earlier studies and versions stay in the store without being shown.
    """
    path = _path(store)
    with _sqlite_errors(path):
        rows = {values[0]: _row(values, path) for values in store.execute("SELECT * FROM points")}
    return [rows[key] for key in read_study(store).get("points", []) if key in rows]


def _row(values: Sequence[Any], path: Path) -> Row:
    """Values in the order of `COLUMNS`, each held against its type: SQLite itself stores anything in any column."""
    kinds = {"TEXT": str, "INTEGER": int, "REAL": float}
    for column, value in zip(COLUMNS, values, strict=True):
        fits = value is None or (isinstance(value, kinds[column.type]) and _finite(value))
        require(fits, f"{path}: damaged (column {column.name}); {_REMEDY}")
    row = {column.field: value for column, value in zip(COLUMNS, values, strict=True)}
    detail = _json(row["detail"], path)
    whole = isinstance(detail, dict) and _are_params(detail.get("params"))
    measured = row["status"] == FAILED or all(row[m.name] is not None for m in METRICS.values() if not m.optional)
    named = all(row[name] is not None for name in _NAMING)
    fits = whole and named and measured and row["status"] in (DONE, FAILED)
    require(fits, f"{path}: damaged (point {row['key']!r:.60}); {_REMEDY}")
    return row | {"detail": detail}


def _are_params(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, (bool, int, str)) for v in value.values())


_NAMING = ("key", "label", "network", "engine", "unit", "format", "transform", "quantizer", "activations")
"""texts that every point has"""


def _finite(value: str | float) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise InputError(f"{path}: damaged (JSON); {_REMEDY}") from None


def _path(store: sqlite3.Connection) -> Path:
    return Path(store.execute("PRAGMA database_list").fetchone()[2])


# ---- export


def to_csv(rows: Sequence[Row]) -> bytes:
    """The rows as CSV (RFC 4180, UTF-8): the exported columns of `COLUMNS`, `set_<name>` for each engine parameter.

    Numbers are written in full. Text that starts with = + - @, TAB, CR or LF gets a leading ', so that a spreadsheet
    does not take it for a formula.
    """
    exported = [column for column in COLUMNS if column.exported]
    settings = sorted({name for row in rows for name in row["detail"]["params"]})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([column.name for column in exported] + [f"set_{name}" for name in settings])
    for row in rows:
        params = row["detail"]["params"]
        values = [row[column.field] for column in exported] + [params.get(name) for name in settings]
        writer.writerow([_cell(value) for value in values])
    return text.getvalue().encode(errors="replace")


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value
