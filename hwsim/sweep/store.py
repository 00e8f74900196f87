"""The store of a study: one SQLite file with a row a point, a record a task, and what the study is."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hwsim.files import SUFFIX, os_errors, require_file, require_writable, write_atomic
from hwsim.metrics import METRICS
from hwsim.sweep.rows import COLUMNS, TASK_COLUMNS, Column, Row, TaskRow, decode, encode, outcome_of, storable
from hwsim.sweep.tasks import DONE, Outcome
from models.unit import InputError, nearest, require

APPLICATION_ID = 0x6877736D
"""`hwsm`, in the SQLite header: this file is ours"""
SCHEMA_VERSION = 4
BUSY_S = 10.0
"""how long one process waits for another that writes"""
PAGE_BYTES = 8192
"""rows of one or two kilobytes fill it better than 4096"""
CHUNK = 500
"""keys that one statement looks up: old versions of SQLite take 999"""

_KINDS = {"TEXT": "TEXT NOT NULL", "JSON": "TEXT NOT NULL", "INTEGER": "INTEGER", "REAL": "REAL"}


def _definition(column: Column) -> str:
    return f"{column.name} {_KINDS[column.type]}{' PRIMARY KEY' if column.name == 'key' else ''}"


def _setting(name: str, kind: str) -> str:
    """Definition of an engine parameter's column, for queries; rows are read from `params_json`, which keeps the kinds.

    Where the first value is a word, ANY leaves numbers that come later what they are; TEXT would order them as words.
    """
    return f"set_{name} {kind}"


def _points(definitions: Iterable[str]) -> str:
    return f"CREATE TABLE points ({', '.join(definitions)})"


_TABLES = {
    "tasks": f"CREATE TABLE tasks ({', '.join(map(_definition, TASK_COLUMNS))})",
    "members": "CREATE TABLE members (position INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE)",
    "study": "CREATE TABLE study (name TEXT PRIMARY KEY, json TEXT) WITHOUT ROWID",
}
"""`members`: the points of the current study in their order; `study`: entries of `save_study`"""

_FIXED = {column.name: _definition(column) for column in COLUMNS}
_METRIC = re.compile(r"([a-z][a-z0-9_]*) (INTEGER|REAL)")
"""also of a version of hwsim that has other metrics"""
_SET = re.compile(r"set_[A-Za-z_][A-Za-z0-9_]{0,63} (INTEGER|ANY)")


# ---- opening


def open_store(path: Path) -> sqlite3.Connection:
    """The store at `path` for writing, made when there is none.

    Writes are durable when they return: synchronous in a write-ahead log, or with a rollback journal where the file
    system takes no such log. Raises InputError, with the remedy, for a file that is damaged or not a store of this
    version, one that another process holds, and a place that cannot be written.
    """
    with os_errors(path):
        if not path.exists():
            _create(path)
    store = _with_journal(path)
    try:
        with sqlite_errors(path):
            _add_columns(store, [definition for column, definition in _FIXED.items() if column not in _columns(store)])
    except BaseException:
        store.close()
        raise
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
    """An empty store appears whole or not at all, and never in the place of one that another process makes."""
    with tempfile.TemporaryDirectory() as folder, sqlite_errors(path):
        fresh = Path(folder) / "store.sqlite"
        store = sqlite3.connect(fresh, isolation_level=None)
        store.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        store.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        store.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        for statement in (_points(_FIXED.values()), *_TABLES.values()):
            store.execute(statement)
        store.close()
        content = fresh.read_bytes()
    with sqlite_errors(path):
        _place(path, content)


def _place(path: Path, content: bytes) -> None:
    with os_errors(path), contextlib.suppress(FileNotFoundError):
        path.lstat()
    require_writable(path.parent, "name another place for the store")
    temporary = path.with_name(f".{secrets.token_hex(8)}{SUFFIX}")
    write_atomic(temporary, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _with_journal(path: Path) -> sqlite3.Connection:
    """The store with a write-ahead log if that works here, else with a rollback journal.

    Some file systems admit the log and refuse the memory that it shares between processes: only a write tells.
    """
    store = _checked(path, "rw")
    try:
        if _is_logged(store, path):
            return store
    except BaseException:
        store.close()
        raise
    store.close()
    return _with_rollback(path)


def _is_logged(store: sqlite3.Connection, path: Path) -> bool:
    try:
        return _journals(store, "WAL")
    except sqlite3.OperationalError as error:
        require(not _is_busy(error), f"{path}: {_advice(error)}")
        return False


def _with_rollback(path: Path) -> sqlite3.Connection:
    store = _connected(path, "rw")
    try:
        with sqlite_errors(path):
            # before the first look at the file: then a log that is left there is read without shared memory
            store.execute("PRAGMA locking_mode = EXCLUSIVE")
            changed = _journals(store, "DELETE")
            store.execute("PRAGMA locking_mode = NORMAL")
            _check(store, path)  # an access, which frees the lock
        require(changed, f"{path}: in use by another process; wait until it ends")
    except BaseException:
        store.close()
        raise
    return store


def _journals(store: sqlite3.Connection, mode: str) -> bool:
    """Whether the store now writes durably in this journal mode."""
    (answer,) = store.execute(f"PRAGMA journal_mode = {mode}").fetchone()
    if answer != mode.lower():
        return False
    store.execute("PRAGMA synchronous = FULL")
    store.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return True


def _checked(path: Path, mode: str) -> sqlite3.Connection:
    store = _connected(path, mode)
    try:
        with sqlite_errors(path):
            _check(store, path)
    except BaseException:
        store.close()
        raise
    return store


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    with sqlite_errors(path):
        address = f"{path.resolve().as_uri()}?mode={mode}"
        return sqlite3.connect(address, uri=True, isolation_level=None, timeout=BUSY_S)


def _check(store: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not exactly our schema before any of its rows is read."""
    store.execute("PRAGMA trusted_schema = OFF")
    store.execute("PRAGMA cell_size_check = ON")
    (application,) = store.execute("PRAGMA application_id").fetchone()
    require(application == APPLICATION_ID, f"{path}: {_FOREIGN}")
    objects = store.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    active = sorted({kind for kind, _, _ in objects} - {"table", "index"})
    require(not active, f"{path}: holds a {' and a '.join(active)}, which no store of hwsim does; {_REMEDY}")
    (version,) = store.execute("PRAGMA user_version").fetchone()
    # an index without SQL is that of a primary key
    tables = {name: sql for _, name, sql in objects if sql is not None}
    same = version == SCHEMA_VERSION and tables.keys() == {"points", *_TABLES} and _is_points(tables.pop("points"))
    require(same and tables == _TABLES, f"{path}: made by another version of hwsim; {_REMEDY}")
    (verdict,) = store.execute("PRAGMA integrity_check(1)").fetchone()
    require(verdict == "ok", f"{path}: damaged ({' '.join(verdict.split())}); {_REMEDY}")


def _is_points(sql: str) -> bool:
    """Whether a statement is one that made the table `points`, with whatever metrics and parameters."""
    definitions = sql.removeprefix("CREATE TABLE points (").removesuffix(")").split(", ")
    added = [definition for definition in definitions if definition not in _FIXED.values()]
    metrics = {_FIXED[metric.column] for metric in METRICS.values()}
    return (
        sql == _points(definitions)
        and {*_FIXED.values()} - metrics <= {*definitions}
        and all(_SET.fullmatch(text) or (_METRIC.fullmatch(text) and text.split()[0] not in _FIXED) for text in added)
    )


_REMEDY = "move it away or delete it, and run the sweep again"
_FOREIGN = "is no store of hwsim; name another file"


@contextlib.contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """What SQLite refuses in this block is an InputError: `path`, SQLite's reason, the remedy."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:  # a message may quote damaged text
        raise InputError(f"{path}: {_advice(error)}") from None


def _advice(error: Exception) -> str:
    """What to do about an error of SQLite, by its primary result code (https://sqlite.org/rescode.html).

    Only what is left, damage, is a reason to give up the file.
    """
    reason = " ".join(str(error).split())[:200]
    if _is_busy(error):
        return f"in use by another process ({reason}); wait until it ends"
    match _code(error):
        case sqlite3.SQLITE_FULL:
            return f"no space left ({reason}); make room and run the sweep again"
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_IOERR:
            return f"cannot be opened or written ({reason}); check permissions and space of file and folder"
        case sqlite3.SQLITE_NOTADB:
            return _FOREIGN
    return f"cannot be read as a store ({reason}); {_REMEDY}"


def _is_busy(error: Exception) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)) & 0xFF


# ---- writing


@contextlib.contextmanager
def _writing(store: sqlite3.Connection) -> Iterator[None]:
    """One transaction: all of it is durable at the end, or nothing is. InputError where the file cannot be written."""
    with sqlite_errors(_path(store)):
        store.execute("BEGIN IMMEDIATE")
        try:
            yield
            store.execute("COMMIT")
        except BaseException:
            if store.in_transaction:  # SQLite may have rolled back itself
                store.execute("ROLLBACK")
            raise


def record(store: sqlite3.Connection, tasks: Iterable[TaskRow], rows: Iterable[Row]) -> None:
    """Write tasks that ended and points that have a row, all in one durable transaction.

    Each replaces what its key held, except that what is done stays where this is a failure. InputError, and nothing
    written, where the file cannot be written or a value fits no column (see `rows.encode`).
    """
    rows = list(rows)
    task_values = [encode(TASK_COLUMNS, task) for task in tasks]
    fixed = [encode(COLUMNS, row) for row in rows]
    settings = _settings(rows)
    row_values = [[*values, *_set(row, settings)] for values, row in zip(fixed, rows, strict=True)]
    names = [*_NAMES, *(f"set_{name}" for name in settings)]
    with _writing(store):
        _add_columns(store, settings.values())
        store.executemany(_upsert("tasks", _TASK_NAMES), task_values)
        store.executemany(_upsert("points", names), row_values)


_NAMES = tuple(column.name for column in COLUMNS)
_TASK_NAMES = tuple(column.name for column in TASK_COLUMNS)


def _upsert(table: str, names: Sequence[str]) -> str:
    return (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608 - own names
        f" ON CONFLICT (key) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in names[1:])}"
        f" WHERE excluded.status = '{DONE}' OR {table}.status <> '{DONE}'"
    )


def _settings(rows: Iterable[Row]) -> dict[str, str]:
    """Name of each parameter of these rows, in lower case as SQLite makes no difference -> definition of its column."""
    found: dict[str, str] = {}
    for row in rows:
        for name, value in (row.get("params") or {}).items():
            if name.lower() not in found:
                found[name.lower()] = _setting(name, "ANY" if isinstance(value, str) else "INTEGER")
    return found


def _set(row: Row, names: Iterable[str]) -> list[Any]:
    """The row's values of these parameters, named in lower case."""
    given = {name.lower(): value for name, value in (row.get("params") or {}).items()}
    values = [given.get(name) for name in names]
    return [storable(value) if isinstance(value, str) else value for value in values]


def _add_columns(store: sqlite3.Connection, definitions: Iterable[str]) -> None:
    """Add to the table `points` the columns that it lacks."""
    if not (definitions := list(definitions)):
        return
    present = {name.lower() for name in _columns(store)}
    for definition in definitions:
        if (name := definition.split()[0].lower()) not in present:
            store.execute(f"ALTER TABLE points ADD COLUMN {definition}")
            present.add(name)


def _columns(store: sqlite3.Connection) -> list[str]:
    """Names of the table's columns, computed ones included."""
    return [name for _, name, *_ in store.execute("PRAGMA table_xinfo(points)")]


def set_members(store: sqlite3.Connection, keys: Iterable[str]) -> None:
    """Make these points, in this order, those of the current study. A key that is given twice counts once."""
    keys = list(dict.fromkeys(keys))
    with sqlite_errors(_path(store)):
        present = store.execute("SELECT key FROM members ORDER BY position")
        same = all(here == key for key, (here,) in itertools.zip_longest(keys, present, fillvalue=(None,)))
    if not same:
        with _writing(store):
            store.execute("DELETE FROM members")
            store.executemany("INSERT INTO members (key) VALUES (?)", ((key,) for key in keys))


def add_members(store: sqlite3.Connection, keys: Iterable[str]) -> None:
    """Add points at the end of the current study; those that it has already stay where they are."""
    with _writing(store):
        store.executemany("INSERT OR IGNORE INTO members (key) VALUES (?)", ((key,) for key in keys))


def save_study(store: sqlite3.Connection, study: Mapping[str, Any]) -> None:
    """Write what the current study is, in place of what was there: entries of plain data, by name."""
    entries = [(name, json.dumps(value, allow_nan=False)) for name, value in study.items()]
    with _writing(store):
        store.execute("DELETE FROM study")
        store.executemany("INSERT INTO study VALUES (?, ?)", entries)


# ---- reading


def done_keys(store: sqlite3.Connection) -> set[str]:
    """Keys of the points that need no evaluation."""
    with sqlite_errors(_path(store)):
        return {key for (key,) in store.execute("SELECT key FROM points WHERE status = ?", (DONE,))}


def ended_keys(store: sqlite3.Connection) -> set[str]:
    """Keys of all points that have a row, failed ones included."""
    with sqlite_errors(_path(store)):
        return {key for (key,) in store.execute("SELECT key FROM points")}


def known_tasks(store: sqlite3.Connection, keys: Iterable[str]) -> dict[str, Outcome]:
    """Those of these tasks that are done. InputError for damaged records."""
    path, status = _path(store), _TASK_NAMES.index("status")
    found = (values for values in _looked_up(store, "tasks", _TASK_NAMES, keys) if values[status] == DONE)
    tasks = (_decoded(TASK_COLUMNS, values, path) for values in found)
    return {task["key"]: outcome_of(task) for task in tasks}


def endings(store: sqlite3.Connection, kind: str, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Of these points or tasks (kind `point` or `task`), key -> status and when that came about; those without a record
    are left out."""
    found = _looked_up(store, {"point": "points", "task": "tasks"}[kind], ("key", "status", "created_utc"), keys)
    return {key: (status, created) for key, status, created in found}


def _looked_up(
    store: sqlite3.Connection, table: str, names: Sequence[str], keys: Iterable[str]
) -> Iterator[tuple[Any, ...]]:
    path, keys = _path(store), list(keys)
    for start in range(0, len(keys), CHUNK):
        chunk = keys[start : start + CHUNK]
        marks = ", ".join("?" * len(chunk))
        query = f"SELECT {', '.join(names)} FROM {table} WHERE key IN ({marks})"  # noqa: S608 - own names
        with sqlite_errors(path):
            found = store.execute(query, chunk).fetchall()
        yield from found


def task_walls(store: sqlite3.Connection) -> dict[str, tuple[int, float]]:
    """Kind of task -> how many of it are done, and the mean of their wall time in seconds."""
    query = "SELECT kind, COUNT(*), AVG(wall_s) FROM tasks WHERE status = ? AND wall_s IS NOT NULL GROUP BY kind"
    with sqlite_errors(_path(store)):
        return {kind: (count, mean) for kind, count, mean in store.execute(query, (DONE,))}


def count_by_status(store: sqlite3.Connection) -> dict[str, int]:
    """Status -> how many points of the current study have it; those without a row are left out."""
    query = "SELECT status, COUNT(*) FROM members CROSS JOIN points USING (key) GROUP BY status ORDER BY status"
    with sqlite_errors(_path(store)):
        return dict(store.execute(query).fetchall())


def study_rows(store: sqlite3.Connection, fields: Iterable[str] | None = None) -> Iterator[Row]:
    """The points of the current study that have a row, in the study's order; only these fields of each, where given.

    One row is in memory at a time. Points of earlier studies and versions stay in the store without being shown.
    InputError for an unknown field, and, where the iteration meets them, for damaged rows.
    """
    wanted = {column.field for column in COLUMNS} if fields is None else set(fields)
    for name in wanted - {column.field for column in COLUMNS}:
        raise InputError(f"points have no field {name!r}; {nearest(name, (column.field for column in COLUMNS))}")
    path = _path(store)
    with sqlite_errors(path):
        columns = [column for column in COLUMNS if column.field in wanted]
        names = ", ".join(_selected(store, columns))
        query = f"SELECT {names} FROM members CROSS JOIN points USING (key) ORDER BY position"  # noqa: S608 - own names
        cursor = store.execute(query)
    return _rows(cursor, columns, path)


def rows_at(store: sqlite3.Connection, keys: Iterable[str]) -> Iterator[Row]:
    """The rows of these keys, in their order, of whatever study; keys without a row are left out. InputError for
    damaged rows."""
    path, wanted = _path(store), list(keys)
    with sqlite_errors(path):
        names = _selected(store, COLUMNS)
    for start in range(0, len(wanted), CHUNK):
        chunk = wanted[start : start + CHUNK]
        rows = (_decoded(COLUMNS, values, path) for values in _looked_up(store, "points", names, chunk))
        here = {row["key"]: row for row in rows}
        yield from (here[key] for key in chunk if key in here)


def _selected(store: sqlite3.Connection, columns: Iterable[Column]) -> list[str]:
    """What to select for these columns: NULL for one that the store, which may be older, has not."""
    here = _columns(store)
    return [column.name if column.name in here else f"NULL AS {column.name}" for column in columns]


def _rows(cursor: sqlite3.Cursor, columns: Sequence[Column], path: Path) -> Iterator[Row]:
    with sqlite_errors(path):
        for values in cursor:
            yield _decoded(columns, values, path)


def _decoded(columns: Sequence[Column], values: Sequence[Any], path: Path) -> dict[str, Any]:
    """Each value held against its type: SQLite itself stores anything in any column."""
    try:
        return decode(columns, values)
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); {_REMEDY}") from None


def read_study(store: sqlite3.Connection) -> dict[str, Any]:
    """What `save_study` wrote, the entries of `_FORMS` held against their form; empty before that.

    `study` is a sweep file's content, `command` text, `versions` name -> text, `progress` pairs of numbers. InputError
    for damaged entries.
    """
    path = _path(store)
    with sqlite_errors(path):
        entries = store.execute("SELECT name, json FROM study ORDER BY name").fetchall()
    return {name: _entry(name, text, path) for name, text in entries}


def _entry(name: Any, text: Any, path: Path) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates
        fits = _FORMS.get(name, _is_any)(value)
    except (TypeError, ValueError, RecursionError):
        fits = False
    require(fits, f"{path}: damaged (entry {name!r:.60}); {_REMEDY}")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _is_study(value: Any) -> bool:
    from hwsim.sweep.space import Study

    try:
        Study.from_dict(value)
    except InputError:
        return False
    return True


def _is_any(value: Any) -> bool:  # noqa: ARG001 - one signature for all forms
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_progress(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(pair, list) and [*map(type, pair)] in _PAIRS for pair in value)


_PAIRS = ([int, int], [int, float])
_FORMS = {
    "study": _is_study,
    **dict.fromkeys(("command", "title", "revision", "reference", "created"), _is_text),
    "versions": _are_texts,
    "settings": _is_mapping,
    "progress": _is_progress,
}


def _path(store: sqlite3.Connection) -> Path:
    return Path(store.execute("PRAGMA database_list").fetchone()[2])
