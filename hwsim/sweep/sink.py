"""Where a sweep keeps what is finished: the study's store, or the lines of a shard."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hwsim.sweep import store as stores
from hwsim.sweep.rows import Row, TaskRow
from hwsim.sweep.shards import open_shard
from hwsim.sweep.tasks import Outcome


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

    def task_walls(self) -> dict[str, tuple[int, float]]:
        """Kind of task -> how many of it are done, and the mean of their wall time in seconds."""
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

    def done_keys(self) -> set[str]:
        return stores.done_keys(self.store)

    def ended_keys(self) -> set[str]:
        return stores.ended_keys(self.store)

    def known_tasks(self, keys: Iterable[str]) -> dict[str, Outcome]:
        return stores.known_tasks(self.store, keys)

    def task_walls(self) -> dict[str, tuple[int, float]]:
        return stores.task_walls(self.store)

    def close(self) -> None:
        stores.close_store(self.store)


def open_sink(folder: Path, shard: tuple[int, int] | None = None) -> Sink:
    """The store in the study's folder, or shard (k, N) of it; InputError where it cannot be opened for writing."""
    return StoreSink(stores.open_store(folder / "store.sqlite")) if shard is None else open_shard(folder, *shard)
