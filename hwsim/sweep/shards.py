"""Shards: what one of N processes of a study did, as lines of JSON that are only ever appended, and their merging.

A line holds one record, a task's or a point's row, and the checksum of all that follows in it. Writers that are killed
leave at most one torn line at the end; damage costs the lines that it hits.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hwsim.files import os_errors, require_file, require_writable
from hwsim.sweep.rows import COLUMNS, TASK_COLUMNS, Column, Row, TaskRow, decode, encode, outcome_of
from hwsim.sweep.store import endings, record
from hwsim.sweep.tasks import DONE, Outcome
from models.unit import InputError, require

FOLDER = "shards"
"""in the study's folder"""
MAX_SHARDS = 100_000
MAX_LINE = 64 << 20
"""bytes; a longer line is no record"""
GROUP = 1000
"""lines that merging takes at once"""
SHOWN = 10
"""damaged lines whose place is told"""

_NAME = re.compile(r"[0-9]{1,6}-of-[0-9]{1,6}\.jsonl")
_LINE = re.compile(rb'\{"check":"([0-9a-f]{16})",(.*)\}\n', re.DOTALL)
_HEAD = re.compile(rb'"format":1,"kind":"(point|task)","key":"([A-Za-z0-9._-]+)","status":"([a-z]+)","data":')
_KEY = re.compile(r"[A-Za-z0-9._-]{1,128}")
_KINDS = {"point": COLUMNS, "task": TASK_COLUMNS}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line whose checksum is right."""

    kind: str
    """`point` or `task`"""
    key: str
    status: str
    data: bytes
    """the record as JSON"""


def parse_shard(text: str) -> tuple[int, int]:
    """The shard `k/N` as (k, N), 1 <= k <= N; InputError otherwise."""
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    require(found is not None, f"shard {text!r:.40} is not k/N, such as 1/16 for the first of sixteen")
    index, count = (int(part) for part in text.split("/"))
    _require_shard(index, count)
    return index, count


def _require_shard(index: int, count: int) -> None:
    require(1 <= count <= MAX_SHARDS, f"shard {index}/{count}: N must be 1 to {MAX_SHARDS}")
    require(1 <= index <= count, f"shard {index}/{count}: k must be 1 to {count}; the first shard is 1/{count}")


# ---- one shard


@dataclass(frozen=True, kw_only=True)
class Shard:
    """An open shard, a `Sink`; made by `open_shard` and held by this process alone until `close`."""

    path: Path
    handle: int
    lock: Path | None
    """a file that stands for the lock where the file system has none"""
    statuses: dict[str, str] = field(default_factory=dict)
    """key -> status of the points that it holds"""
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    """key -> offset and length of the line of each task that is done"""

    def record(self, tasks: Iterable[TaskRow], rows: Iterable[Row]) -> None:
        """Append tasks that ended and points that have a row; they are durable then.

        InputError, and nothing appended, where the file cannot be written or a value fits no column.
        """
        lines = [*(_line("task", task) for task in tasks), *(_line("point", row) for row in rows)]
        with os_errors(self.path, "make room and run the same command again"):
            offset = os.fstat(self.handle).st_size
            self._append(b"".join(lines), offset)
        for line in lines:
            self._note(offset, line)
            offset += len(line)

    def done_keys(self) -> set[str]:
        """Keys of the points that need no evaluation."""
        return {key for key, status in self.statuses.items() if status == DONE}

    def ended_keys(self) -> set[str]:
        """Keys of all points that have a row, failed ones included."""
        return set(self.statuses)

    def known_tasks(self, keys: Iterable[str]) -> dict[str, Outcome]:
        """Those of these tasks that are done."""
        return {key: outcome_of(self._task(key)) for key in keys if key in self.places}

    def close(self) -> None:
        """Let others have it."""
        os.close(self.handle)
        if self.lock is not None:
            self.lock.unlink(missing_ok=True)

    def _append(self, data: bytes, size: int) -> None:
        """All of the data, or none: a part that was written is cut off again."""
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self.handle, rest) :]
            os.fsync(self.handle)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self.handle, size)
            raise

    def _note(self, offset: int, raw: bytes) -> None:
        line = _parsed(raw)
        if line is None:
            return
        if line.kind == "point" and self.statuses.get(line.key) != DONE:
            self.statuses[line.key] = line.status
        if line.kind == "task" and line.status == DONE:
            self.places[line.key] = (offset, len(raw))

    def _task(self, key: str) -> TaskRow:
        offset, length = self.places[key]
        with os_errors(self.path):
            line = _parsed(os.pread(self.handle, length, offset))
        plain = None if line is None else _plain(line)
        if plain is None or not _is_storable("task", plain):
            raise InputError(f"{self.path}: damaged (task {key}); move it away")
        return decode(TASK_COLUMNS, encode(TASK_COLUMNS, plain))


def open_shard(folder: Path, index: int, count: int) -> Shard:
    """Shard `index` of `count` in the study's folder, made where missing.

    A torn line at its end is cut off, and damaged ones are passed over: what they held is to be done again. InputError
    where another process has it open, and for a place that cannot be written.
    """
    _require_shard(index, count)
    place = folder / FOLDER
    require(not place.is_symlink(), f"{place}: is a link; remove it")
    require_writable(place, "name another place for the results")
    path = place / f"{index}-of-{count}.jsonl"
    with os_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        try:
            require_file(path)
            shard = Shard(path=path, handle=handle, lock=_locked(handle, path))
        except BaseException:
            os.close(handle)
            raise
        try:
            _index(shard)
        except BaseException:
            shard.close()
            raise
    return shard


def _index(shard: Shard) -> None:
    """Find out what the file holds."""
    end = 0
    with shard.path.open("rb") as file:
        for offset, length, raw in _whole_lines(file):
            shard._note(offset, raw)
            end = offset + length
    if os.fstat(shard.handle).st_size > end:
        os.ftruncate(shard.handle, end)


def _locked(handle: int, path: Path) -> Path | None:
    """Keep others off. The system frees the lock of a process that is killed; a lock file, where the file system has
    no locks, stays."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        require(error.errno not in (errno.EWOULDBLOCK, errno.EACCES), f"{path}: {_HELD}; wait for it or end it")
        if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL):
            return _lock_file(path)
        raise
    return None


_HELD = "another process is at work on this shard"


def _lock_file(path: Path) -> Path:
    lock = path.with_suffix(".lock")
    try:
        handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        owner = lock.read_text(errors="replace")[:200]
        raise InputError(f"{path}: {_HELD} ({owner}); if it is gone, delete {lock}") from None
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    os.close(handle)
    return lock


# ---- merging


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What merging found."""

    files: int = 0
    points: int = 0
    """rows that were written into the store"""
    tasks: int = 0
    known: int = 0
    """lines of what the store had as done, or as a failure that is not older"""
    damaged: int = 0
    """lines that hold no record"""
    places: tuple[str, ...] = ()
    """file and line of the first damaged ones"""


def merge(store: sqlite3.Connection, folder: Path) -> Merged:
    """Write into the store what the shards in the study's folder hold; they stay as they are.

    Merging again, or shards that overlap, change nothing more: what is done is kept, and of failures the latest. Rows
    of other versions of hwsim are kept under their keys; fields that this version does not know go into their `detail`.
    Damaged lines are counted and passed over; a line that is just being written is left for the next time. InputError
    where the store cannot be written.
    """
    found = {"files": 0, "point": 0, "task": 0, "known": 0, "damaged": 0}
    places: list[str] = []
    for path in _shard_files(folder):
        found["files"] += 1
        with os_errors(path), path.open("rb") as file:
            numbered = ((number, _parsed(raw)) for number, (_, _, raw) in enumerate(_whole_lines(file), 1))
            while group := list(itertools.islice(numbered, GROUP)):
                bad = [number for number, line in group if line is None]
                bad += _take(store, [(number, line) for number, line in group if line is not None], found)
                found["damaged"] += len(bad)
                places += [f"{path}:{number}" for number in bad[: SHOWN - len(places)]]
    counts = {"points": found["point"], "tasks": found["task"], "known": found["known"], "damaged": found["damaged"]}
    return Merged(files=found["files"], **counts, places=tuple(places))


def _shard_files(folder: Path) -> list[Path]:
    place = folder / FOLDER
    with os_errors(place):
        if place.is_symlink() or not place.is_dir():
            return []
        names = sorted(path for path in place.iterdir() if _NAME.fullmatch(path.name))
        return [path for path in names if path.is_file() and not path.is_symlink()]


def _take(store: sqlite3.Connection, lines: Sequence[tuple[int, Line]], found: dict[str, int]) -> list[int]:
    """Write what these lines hold and the store has not; counts it, and returns the numbers of lines that cannot be
    stored."""
    here = {kind: endings(store, kind, [line.key for _, line in lines if line.kind == kind]) for kind in _KINDS}
    records, bad = [], []
    for number, line in lines:
        status, created = here[line.kind].get(line.key, ("", ""))
        plain = {} if status == DONE else _plain(line)
        if plain is None:
            bad.append(number)
        elif status == DONE or (status and line.status != DONE and str(plain.get("created", "")) <= created):
            found["known"] += 1
        else:
            records.append((number, line.kind, plain))
    kept, misfits = _stored(store, records)
    for kind in kept:
        found[kind] += 1
    return [*bad, *misfits]


Record = tuple[int, str, dict[str, Any]]
"""number of a line, its kind, and what it holds"""


def _stored(store: sqlite3.Connection, records: Sequence[Record]) -> tuple[list[str], set[int]]:
    """Kinds of the records that were written into the store, and numbers of those that do not fit it."""
    misfits: set[int] = set()
    try:
        _record(store, records)
    except InputError:
        # one at a time is slow, and hardly ever needed: who wrote a line held it against the same rules
        misfits = {number for number, kind, plain in records if not _is_storable(kind, plain)}
        records = [entry for entry in records if entry[0] not in misfits]
        _record(store, records)
    return [kind for _, kind, _ in records], misfits


def _record(store: sqlite3.Connection, records: Sequence[Record]) -> None:
    tasks = [plain for _, kind, plain in records if kind == "task"]
    record(store, tasks, [plain for _, kind, plain in records if kind == "point"])


def _is_storable(kind: str, plain: dict[str, Any]) -> bool:
    try:
        encode(_KINDS[kind], plain)
    except InputError:
        return False
    return True


# ---- lines


def _line(kind: str, kept: dict[str, Any]) -> bytes:
    """The record as a line."""
    values = dict(zip(_KINDS[kind], encode(_KINDS[kind], kept), strict=True))
    require(_KEY.fullmatch(kept["key"]) is not None, f"key {kept['key']!r:.80} is not of letters and digits")
    given = {column: value for column, value in values.items() if value not in _EMPTY}
    fields = {column.field: value if column.type == "JSON" else _dumped(value) for column, value in given.items()}
    data = ",".join(f'"{name}":{text}' for name, text in fields.items())
    body = f'"format":1,"kind":"{kind}","key":"{kept["key"]}","status":"{kept["status"]}","data":{{{data}}}'.encode()
    return b'{"check":"%s",%s}\n' % (_check(body), body)


_EMPTY = (None, "", "{}")
"""what fields hold that a line leaves out"""


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()


def _parsed(raw: bytes) -> Line | None:
    """The line; None for what is none."""
    outer = _LINE.fullmatch(raw)
    if outer is None or _check(outer[2]) != outer[1] or (head := _HEAD.match(outer[2])) is None:
        return None
    kind, key, status = (part.decode() for part in head.groups())
    return Line(kind=kind, key=key, status=status, data=outer[2][head.end() :])


def _plain(line: Line) -> dict[str, Any] | None:
    """The record of a line by the fields that this version knows; None where it is none."""
    try:
        data: dict[str, Any] = json.loads(line.data)
        if (data["key"], data["status"]) != (line.key, line.status):
            return None
        more = {name: data.pop(name) for name in data.keys() - _fields(_KINDS[line.kind])}
        return data | {"detail": {**more, **data["detail"]}} if more and line.kind == "point" else data
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None


def _fields(columns: Sequence[Column]) -> set[str]:
    return {column.field for column in columns}


def _whole_lines(file: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Offset, length and content of every line that ends; no content where it is too long for a record."""
    offset = 0
    while piece := file.readline(MAX_LINE):
        length, content = len(piece), piece
        while piece and not piece.endswith(b"\n"):
            piece, content = file.readline(MAX_LINE), b""
            length += len(piece)
        if not piece:
            return
        yield offset, length, content
        offset += length
