"""Points at work: tasks to the executor, outcomes to the sink, until nothing is left."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from hwsim.sweep.console import Report
from hwsim.sweep.executors import Executor, Order
from hwsim.sweep.ledger import Entry, Ledger, Row
from hwsim.sweep.rows import TaskRow, task_row
from hwsim.sweep.tasks import DONE, Task
from models.unit import InputError

COMMIT_S = 0.05
"""what is finished is written after so long at the latest: one transaction for many small tasks"""
COMMIT_ROWS = 500
"""... or when so many points are"""

OPEN = 2048
"""points that are at work at once, at most"""
BATCH = 64
"""points that are taken up together"""

Record = Callable[[list[TaskRow], list[Row]], None]


class Running:
    """One run over points; `go` is all there is to call."""

    def __init__(
        self,
        *,
        entries: Iterator[Entry],
        ahead: int,
        ledger: Ledger,
        executor: Executor,
        order: Mapping[str, Any],
        record: Record,
        report: Report,
    ) -> None:
        """`entries` may be a generator that looks at what `record` was given; `ahead` of them are open at most.

        `order`: the evaluation's reference and settings, as `Order` takes them. `record` writes records of tasks and
        rows, all or nothing; only what it wrote is reported.
        """
        self._entries, self._ahead = entries, min(ahead, OPEN)
        self._ledger, self._executor, self._order = ledger, executor, order
        self._record, self._report = record, report
        self._given: dict[str, tuple[str, str]] = {}
        """key of a task that was given out -> kind, and the words for it"""
        self._tasks: list[TaskRow] = []
        self._rows: list[Row] = []
        self._due = 0.0

    def go(self) -> None:
        """Until all entries have their row. Whatever ends this, what was finished until then is written."""
        try:
            while self._fill() or self._rows:
                self._collect()
                if self._is_due():
                    self._write()
        except BaseException:
            # where writing is what failed, it fails again: the first reason counts
            with contextlib.suppress(InputError):
                self._write()
            raise

    def _fill(self) -> bool:
        """Give out tasks while the executor takes some; whether any is at work then."""
        while self._executor.room() > 0 and len(self._rows) < COMMIT_ROWS:
            task = self._ledger.next_task()
            if task is not None:
                self._given[task.key] = (task.kind, self._ledger.who(task.key))
                self._executor.submit(_order(task, self._order))
            elif not self._take_up():
                break
        return bool(self._given)

    def _take_up(self) -> bool:
        """Open some points; whether there were any."""
        room = min(BATCH, self._ahead - len(self._ledger))
        entries = list(itertools.islice(self._entries, max(room, 0)))
        self._ledger.open(entries)
        self._keep()
        return bool(entries)

    def _keep(self) -> None:
        """Rows that were made wait here until they are written."""
        if not (self._rows or self._tasks):
            self._due = time.monotonic() + COMMIT_S
        self._rows += self._ledger.rows()

    def _collect(self) -> None:
        if not self._given:
            return
        waiting = self._rows or self._tasks
        ended = self._executor.wait(max(self._due - time.monotonic(), 0.0) if waiting else None)
        self._keep()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for outcome in ended:
            kind, _ = self._given.pop(outcome.key)
            if outcome.status == DONE:
                self._tasks.append(task_row(kind, outcome, now))
        self._ledger.take(ended)
        self._keep()

    def _is_due(self) -> bool:
        return not self._given or len(self._rows) >= COMMIT_ROWS or time.monotonic() >= self._due

    def _write(self) -> None:
        tasks, rows = self._tasks, self._rows
        if tasks or rows:
            self._record(tasks, rows)
            self._tasks, self._rows = [], []
        at_work = [self._given[key] for key in self._executor.running() if key in self._given]
        self._report(rows, [f"{kind} {who}" for kind, who in at_work])


def _order(task: Task, common: Mapping[str, Any]) -> Order:
    return Order(key=task.key, kind=task.kind, inputs=task.inputs, affinity=task.affinity, **common)
