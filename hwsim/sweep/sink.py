"""Where a sweep keeps what is finished: the study's store, or the lines of a shard."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hwsim.sweep import store as stores
from hwsim.sweep.rows import Row, TaskRow
from hwsim.sweep.tasks import Outcome
from models.unit import require


class Sink(Protocol):
    """Keeps tasks and rows."""

    def record(self, tasks: Iterable[TaskRow], rows: Iterable[Row]) -> None:
        """Keep tasks that ended and points that have a row: all are durable then, or none is kept (InputError).

        What is done is never replaced by a failure.
        """
        ...

    def done_keys(self) -> set[str]:
        """Keys of the points that need no evaluation."""
        ...

    def ended_keys(self) -> set[str]:
        """Keys of all points that have a row, failed ones included."""
        ...

    def known_tasks(self, keys: Iterable[str]) -> dict[str, Outcome]:
        """Those of these tasks that are done."""
        ...

    def close(self) -> None:
        """Let others have it."""
        ...


@dataclass(frozen=True)
class StoreSink:
    """The store as a sink."""

    store: sqlite3.Connection

    def record(self, tasks: Iterable[TaskRow], rows: Iterable[Row]) -> None:
        stores.record(self.store, tasks, rows)
        # an open file takes rows also after it was removed, and they would be gone at the end
        path = Path(self.store.execute("PRAGMA database_list").fetchone()[2])
        require(path.exists(), f"{path}: was removed while the sweep ran; run the same command again")

    def done_keys(self) -> set[str]:
        return stores.done_keys(self.store)

    def ended_keys(self) -> set[str]:
        return stores.ended_keys(self.store)

    def known_tasks(self, keys: Iterable[str]) -> dict[str, Outcome]:
        return stores.known_tasks(self.store, keys)

    def close(self) -> None:
        stores.close_store(self.store)
