"""Questions to a store: a condition over a study's points, or a statement of SQL that can do nothing but read."""

from __future__ import annotations

import contextlib
import itertools
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwsim.metrics import METRICS, pareto
from hwsim.sweep.rows import storable
from hwsim.sweep.store import read_store, sqlite_errors
from models.unit import InputError, nearest, require

TIME_S = 10.0
"""the longest that SQLite works on one question"""
MAX_ROWS = 1_000_000
MAX_QUESTION = 10_000
"""characters"""
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 10_000_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
}
"""bytes of a value, bytes of a pattern of LIKE, databases besides the store"""

VIEW = "study_points"
"""the points of the current study for SQL: `points`, their `position` in the study, and metrics without their unit"""
TABLES = frozenset(
    {"points", "tasks", "members", "study", VIEW, "sqlite_master", "sqlite_schema", "json_each", "json_tree"}
)
_NAMES = """
abs avg ceil ceiling coalesce count cume_dist date datetime dense_rank exp first_value floor format glob group_concat
hex ifnull iif instr json json_array_length json_each json_extract json_tree json_type json_valid julianday lag
last_value lead length like likelihood likely ln log log10 log2 lower ltrim max min mod nth_value ntile nullif
percent_rank pow power printf quote rank replace round row_number rtrim sign sqrt strftime substr substring sum time
total trim trunc typeof unicode unixepoch unlikely upper -> ->>
"""
FUNCTIONS = frozenset(_NAMES.split())

_FAULTS = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_TOOBIG}
"""errors of SQLite that are the question's and not the store's"""
_TOKEN = re.compile(
    r"""'(?:[^']|'')*'|(?P<name>"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\])|(?P<refused>--|/\*|['"`\[;])|[()]|[^'"`\[()/;-]+|.""",
    re.DOTALL,
)

Answer = tuple[list[str], Iterator[tuple[Any, ...]]]
"""names of the columns, and the rows"""


@dataclass(frozen=True, kw_only=True)
class Question:
    """About the points of a study; columns are called by name, metrics by that of their column or their own."""

    where: str = ""
    """a condition of SQL over the columns; all points without one"""
    columns: tuple[str, ...] = ()
    """label, status and the study's metrics where there are none"""
    sort: tuple[str, ...] = ()
    """columns by which points are ordered, falling with - before the name; the study's order otherwise"""
    limit: int | None = None
    """points at most"""
    front: tuple[str, ...] = ()
    """metrics: only the points that no other one dominates in these"""


@contextlib.contextmanager
def query(path: Path, question: Question) -> Iterator[Answer]:
    """The points of the store's current study that answer the question, to be read within the block.

    Absent values come last whichever way points are ordered. InputError, one line, for what is no store, a name that is
    none (with the nearest), a condition that is not one expression, does anything but read or takes longer than
    `TIME_S`.
    """
    require(question.limit is None or question.limit >= 1, f"limit {question.limit} must be at least 1")
    with _opened(path) as session:
        chosen = [session.column(name) for name in question.columns] or session.usual()
        front = [session.column(name) for name in question.front]
        statement = _statement(session, question, [*chosen, *front])
        _, rows = session.answer(statement)
        if front:
            rows = _on_front(list(rows), len(chosen), question.front)
        yield chosen, _first(rows, question.limit, len(chosen))


@contextlib.contextmanager
def query_sql(path: Path, sql: str) -> Iterator[Answer]:
    """What one statement of SQL (SELECT, WITH or VALUES) gives, to be read within the block.

    Tables are `points`, `tasks`, `members`, `study` and `study_points`; of functions it can use those of `FUNCTIONS`.
    InputError as `query` raises it.
    """
    with _opened(path) as session:
        yield session.answer(sql)


# ---- a session


@dataclass(kw_only=True)
class _Session:
    """A connection that can do nothing but read, for so long."""

    store: sqlite3.Connection
    path: Path
    names: Mapping[str, str]
    """what a column can be called, in lower case -> its name"""
    left_s: float
    denied: list[str] = field(default_factory=list)
    started: float = 0.0

    def column(self, name: str) -> str:
        """The column of that name."""
        require(name.lower() in self.names, f"no column {name!r:.80}; {nearest(name[:80], self.names)}")
        return self.names[name.lower()]

    def usual(self) -> list[str]:
        """Label, status, and the metrics that any point of the study has."""
        metrics = [m.column for m in METRICS.values() if m.column in self.names]
        _, rows = self.answer(f"SELECT {', '.join(f'count({name})' for name in metrics)} FROM {VIEW}")  # noqa: S608 - own names
        counts = next(rows)
        return ["label", "status", *(name for name, count in zip(metrics, counts, strict=True) if count)]

    def answer(self, sql: str) -> Answer:
        """What the statement gives."""
        _require_text(sql)
        with self._working():
            cursor = self.store.execute(sql)
        require(cursor.description is not None, "the SQL is no SELECT; only questions are answered")
        return [name for name, *_ in cursor.description], self._rows(cursor)

    def _rows(self, cursor: sqlite3.Cursor) -> Iterator[tuple[Any, ...]]:
        count = 0
        while True:
            with self._working():
                batch = cursor.fetchmany(500)
            count += len(batch)
            require(count <= MAX_ROWS, f"more than {MAX_ROWS:,} rows; add a LIMIT")
            yield from batch
            if not batch:
                return

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """SQLite is at work: its time counts, and its errors are most often the question's."""
        self.started = time.monotonic()
        try:
            yield
        except (sqlite3.Warning, sqlite3.ProgrammingError) as error:
            raise InputError(f"the question is not one statement without parameters ({error})") from None
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if getattr(error, "sqlite_errorcode", None) in _FAULTS:
                raise InputError(self._reason(str(error))) from None
            with sqlite_errors(self.path):
                raise
        finally:
            self.left_s -= time.monotonic() - self.started

    def is_late(self) -> bool:
        """Whether the time for the question is over."""
        return time.monotonic() - self.started > self.left_s

    def admits(self, action: int, one: str | None, two: str | None, _schema: str | None, _trigger: str | None) -> int:
        """What SQLite asks for every step of a statement: `sqlite3.SQLITE_OK`, or DENY for all that does more than read
        these tables through these functions."""
        match action:
            case sqlite3.SQLITE_SELECT | sqlite3.SQLITE_RECURSIVE:
                return sqlite3.SQLITE_OK
            case sqlite3.SQLITE_READ if two == "" or (one or "").lower() in TABLES:
                return sqlite3.SQLITE_OK
            case sqlite3.SQLITE_FUNCTION if (two or "").lower() in FUNCTIONS:
                return sqlite3.SQLITE_OK
            case sqlite3.SQLITE_FUNCTION:
                self.denied.append(f"the function {two}")
            case sqlite3.SQLITE_READ:
                self.denied.append(f"the table {one}")
            case _:
                self.denied.append("anything but SELECT")
        return sqlite3.SQLITE_DENY

    def _reason(self, error: str) -> str:
        """What is wrong with the question, with the nearest name where one is unknown."""
        if self.denied:
            return f"the question uses {self.denied[0]}, which is not admitted: a store is only read"
        if error == "interrupted":
            return f"not answered after {TIME_S:g} s; ask for less"
        kind, _, name = error.partition(": ")
        if kind == "no such column":
            return f"no column {name!r:.80}; {nearest(name.split('.')[-1][:80], self.names)}"
        if kind == "no such table":
            return f"no table {name!r:.80}; {nearest(name[:80], TABLES)}"
        if kind == "no such function":
            return f"no function {name!r:.80}; {nearest(name[:80], FUNCTIONS)}"
        return f"the question is no SQL that can be answered ({' '.join(error.split()):.200})"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Session]:
    store = read_store(path)
    try:
        yield _session(store, path)
    finally:
        store.close()


def _session(store: sqlite3.Connection, path: Path) -> _Session:
    with sqlite_errors(path):
        present = [name for _, name, *_ in store.execute("PRAGMA table_info(points)")]
        metrics = {m.name: m.column for m in METRICS.values() if m.column in present}
        more = "".join(f", {column} AS {name}" for name, column in metrics.items() if name != column)
        store.execute("PRAGMA temp_store = MEMORY")
        store.execute(
            f"CREATE TEMP VIEW {VIEW} AS SELECT points.*, position{more} FROM members CROSS JOIN points USING (key)"  # noqa: S608 - own names
        )
        # their first use declares them, which is more than reading
        store.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')").fetchall()
        store.execute("PRAGMA query_only = ON")
    names = {name.lower(): name for name in [*present, "position"]} | metrics
    session = _Session(store=store, path=path, names=names, left_s=TIME_S)
    for limit, most in LIMITS.items():
        store.setlimit(limit, most)
    store.set_progress_handler(session.is_late, 20_000)
    store.set_authorizer(session.admits)
    return session


# ---- the condition


def _statement(session: _Session, question: Question, columns: Sequence[str]) -> str:
    where = f" WHERE ({_condition(session, question.where)}\n)" if question.where else ""
    falling = [(session.column(name.removeprefix("-")), name.startswith("-")) for name in question.sort]
    order = [f"{name} IS NULL, {name}{' DESC' if falls else ''}" for name, falls in falling]
    return f"SELECT {', '.join(columns)} FROM {VIEW}{where} ORDER BY {', '.join([*order, 'position'])}"  # noqa: S608 - checked names


def _condition(session: _Session, text: str) -> str:
    """The text, when it is what can stand between parentheses: it closes none but its own, and ends nothing."""
    _require_text(text)
    depth = 0
    for token in _TOKEN.finditer(text):
        word = token.group()
        depth += {"(": 1, ")": -1}.get(word, 0)
        fault = f"{word!r} at character {token.start() + 1}"
        require(token["refused"] is None and depth >= 0, f"{text!r:.80} is not one condition: {fault}")
        if token["name"]:
            # SQLite would take an unknown name in double quotes for a text
            session.column(word[1:-1].replace('""', '"'))
    require(depth == 0 and bool(text.strip()), f"{text!r:.80} is not one condition: something is missing at its end")
    return text


def _require_text(text: str) -> None:
    require(len(text) <= MAX_QUESTION, f"a question has at most {MAX_QUESTION:,} characters, not {len(text):,}")
    require("\0" not in text and storable(text) == text, "a question holds no NUL and no broken characters")


# ---- the answer


def _on_front(rows: list[tuple[Any, ...]], start: int, metrics: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The rows, whose values from `start` on are these metrics, that no other one dominates."""
    points = [dict(zip(metrics, row[start:], strict=True)) for row in rows]
    return iter([rows[index] for index in pareto(points, metrics)])


def _first(rows: Iterator[tuple[Any, ...]], limit: int | None, width: int) -> Iterator[tuple[Any, ...]]:
    return (row[:width] for row in itertools.islice(rows, limit))
