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

from hwsim.files import write_atomic
from hwsim.metrics import METRICS
from models.unit import InputError, require

APPLICATION_ID = 0x6877736D
"""`hwsm`, in the SQLite header: this file is ours"""
SCHEMA_VERSION = 1
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

    Raises InputError, with the remedy, for a file that is damaged or not a store of this version.
    """
    if not path.exists():
        _create(path)
    store = _checked(path, "rw")
    with _sqlite_errors(path):
        store.execute("PRAGMA journal_mode = WAL")
        store.execute("PRAGMA synchronous = FULL")
    return store


def read_store(path: Path) -> sqlite3.Connection:
    """The store at `path` for reading only. Raises InputError as `open_store` does, and for a missing file."""
    require(path.is_file(), f"{path}: no such store; run `hwsim sweep` first")
    return _checked(path, "ro")


def close_store(store: sqlite3.Connection) -> None:
    """Close, leaving a single file that can be copied (no write-ahead log beside it) unless somebody still reads it."""
    with contextlib.suppress(sqlite3.OperationalError):
        store.execute("PRAGMA journal_mode = DELETE")
    store.close()


def _create(path: Path) -> None:
    """An empty store appears whole or not at all."""
    with tempfile.TemporaryDirectory() as folder:
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
    require(application == APPLICATION_ID, f"{path}: not a store of hwsim; {_REMEDY}")
    objects = store.execute("SELECT type, sql FROM sqlite_master").fetchall()
    active = sorted({kind for kind, _ in objects} - {"table", "index"})
    require(not active, f"{path}: holds a {' and a '.join(active)}, which no store of hwsim does; {_REMEDY}")
    (version,) = store.execute("PRAGMA user_version").fetchone()
    same = version == SCHEMA_VERSION and {sql for _, sql in objects} == set(_SCHEMA)
    require(same, f"{path}: made by another version of hwsim; {_REMEDY}")
    (verdict,) = store.execute("PRAGMA integrity_check(1)").fetchone()
    require(verdict == "ok", f"{path}: damaged ({' '.join(verdict.split())}); {_REMEDY}")


_REMEDY = "move it away or delete it, and run the sweep again"


@contextlib.contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: cannot be read as a store ({error}); {_REMEDY}") from None


# ---- rows


def save(store: sqlite3.Connection, row: Row) -> None:
    """Write one point, replacing what its key held, and commit. Fields that `row` lacks become empty."""
    unknown = row.keys() - {column.field for column in COLUMNS}
    assert not unknown, f"fields without a column: {sorted(unknown)}"
    values = [row.get(column.field) for column in COLUMNS[:-1]]
    detail = json.dumps(row.get("detail", {}), sort_keys=True, allow_nan=False)
    marks = ", ".join("?" * len(COLUMNS))
    store.execute(f"INSERT OR REPLACE INTO points VALUES ({marks})", [*values, detail])  # noqa: S608 - question marks


def done_keys(store: sqlite3.Connection) -> set[str]:
    """Keys of the points that need no evaluation."""
    return {key for (key,) in store.execute("SELECT key FROM points WHERE status = ?", (DONE,))}


def save_study(store: sqlite3.Connection, study: Mapping[str, Any]) -> None:
    """Write what the current study is: its entries as JSON, among them `points`, the keys in order."""
    entries = [(name, json.dumps(value, sort_keys=True, allow_nan=False)) for name, value in study.items()]
    store.execute("BEGIN IMMEDIATE")
    store.execute("DELETE FROM study")
    store.executemany("INSERT INTO study VALUES (?, ?)", entries)
    store.execute("COMMIT")


def read_study(store: sqlite3.Connection) -> dict[str, Any]:
    """What `save_study` wrote; empty before that. InputError for damaged entries."""
    with _sqlite_errors(_path(store)):
        entries = store.execute("SELECT name, json FROM study ORDER BY name").fetchall()
    return {name: _json(text, _path(store)) for name, text in entries}


def study_rows(store: sqlite3.Connection) -> list[Row]:
    """The points of the current study that have a row, in the study's order. InputError for damaged rows.

    Points of earlier studies and versions stay in the store without being shown.
    """
    path = _path(store)
    with _sqlite_errors(path):
        rows = {values[0]: _row(values, path) for values in store.execute("SELECT * FROM points")}
    keys = read_study(store).get("points", [])
    require(isinstance(keys, list), f"{path}: damaged (list of points); {_REMEDY}")
    return [rows[key] for key in keys if isinstance(key, str) and key in rows]


def _row(values: Sequence[Any], path: Path) -> Row:
    """Values in the order of `COLUMNS`, each held against its type: SQLite itself stores anything in any column."""
    kinds = {"TEXT": str, "INTEGER": int, "REAL": float}
    for column, value in zip(COLUMNS, values, strict=True):
        fits = value is None or (isinstance(value, kinds[column.type]) and _finite(value))
        require(fits, f"{path}: damaged (column {column.name}); {_REMEDY}")
    row = {column.field: value for column, value in zip(COLUMNS, values, strict=True)}
    detail = _json(row["detail"], path)
    whole = isinstance(detail, dict) and isinstance(detail.get("params"), dict)
    require(whole and row["status"] in (DONE, FAILED), f"{path}: damaged (point {row['key']}); {_REMEDY}")
    return row | {"detail": detail}


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
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value
