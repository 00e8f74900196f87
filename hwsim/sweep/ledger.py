"""Points into tasks, results into rows: which tasks are due, who waits for them, and what follows.

No file, process or clock: the driver brings points and outcomes in and takes orders and rows out.
"""

from __future__ import annotations

import math
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hwsim.metrics import METRICS
from hwsim.sweep.point import Point
from hwsim.sweep.tasks import DONE, ERROR, REFUSED, Evaluation, Outcome, Task
from models.unit import InputError, require

Row = dict[str, Any]
Lookup = Callable[[Sequence[str]], Mapping[str, Outcome]]
"""keys of tasks -> those that are finished and kept"""

RECENT = 512
"""outcomes that are held in memory; older ones are looked up"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A point that is to get a row."""

    key: str
    point: Point
    trial: Mapping[str, Any] | None = None
    """what a search keeps with it"""
    refusal: str | None = None
    """why it cannot be evaluated"""


@dataclass(kw_only=True)
class _Open:
    """A point whose row is not made yet."""

    entry: Entry
    tasks: dict[str, Task] = field(default_factory=dict)
    ended: dict[str, Outcome] = field(default_factory=dict)


class Ledger:
    """What a run has to do and what of it is done.

    A task that several points need is given out once. A point whose task fails gets that task's status, at once and
    without metrics; its other tasks go on for who else needs them.
    """

    def __init__(self, evaluation: Evaluation, lookup: Lookup, *, common: Mapping[str, Any]) -> None:
        """`common`: fields that all rows of the run share."""
        self._evaluation, self._lookup, self._common = evaluation, lookup, common
        self._open: dict[str, _Open] = {}
        self._waiting: dict[str, list[tuple[str, str]]] = {}
        """key of a task that is due or given out -> the points, and their names of it, that wait for it"""
        self._due: deque[Task] = deque()
        self._recent: OrderedDict[str, Outcome] = OrderedDict()
        self._failed: dict[str, Outcome] = {}
        self._rows: list[Row] = []

    def __len__(self) -> int:
        """Points without a row."""
        return len(self._open)

    def open(self, entries: Iterable[Entry]) -> None:
        """Take up points. One that is refused has its row at once."""
        added = {entry.key: _Open(entry=entry) for entry in entries}
        self._open.update(added)
        self._advance(list(added))

    def next_task(self) -> Task | None:
        """Give out the task that is longest due; None where nobody waits for one any more."""
        while self._due:
            task = self._due.popleft()
            if any(key in self._open for key, _ in self._waiting[task.key]):
                return task
            del self._waiting[task.key]
        return None

    def who(self, task: str) -> str:
        """The engine of a point that waits for the task, in words."""
        keys = (key for key, _ in self._waiting.get(task, ()) if key in self._open)
        return next((self._open[key].entry.point.engine for key in keys), "")

    def take(self, outcomes: Iterable[Outcome]) -> None:
        """Tasks that ended."""
        touched: dict[str, None] = {}
        for outcome in outcomes:
            self._remember(outcome)
            touched.update(dict.fromkeys(self._deliver(outcome)))
        self._advance(list(touched))

    def rows(self) -> list[Row]:
        """Rows that were made since the last call."""
        made, self._rows = self._rows, []
        return made

    def _remember(self, outcome: Outcome) -> None:
        if outcome.status != DONE:
            self._failed[outcome.key] = outcome
            return
        self._recent[outcome.key] = outcome
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def _deliver(self, outcome: Outcome) -> list[str]:
        """Keys of the points that waited for it and are still open."""
        met = []
        for key, name in self._waiting.pop(outcome.key, ()):
            if key in self._open:
                self._open[key].ended[name] = outcome
                met.append(key)
        return met

    def _advance(self, keys: Sequence[str]) -> None:
        """Plan these points as far as results are known; what is not known becomes due."""
        while keys:
            wanted: dict[str, Task] = {}
            for key in keys:
                for name, task in self._plan(self._open[key]).items():
                    if task.key not in self._waiting:
                        wanted[task.key] = task
                    self._waiting.setdefault(task.key, []).append((key, name))
            known = self._known(list(wanted))
            self._due.extend(task for key, task in wanted.items() if key not in known)
            keys = list(dict.fromkeys(key for outcome in known.values() for key in self._deliver(outcome)))

    def _known(self, keys: Sequence[str]) -> dict[str, Outcome]:
        here = {key: known for key in keys if (known := self._recent.get(key) or self._failed.get(key))}
        for key in here.keys() & self._recent.keys():
            self._recent.move_to_end(key)
        absent = [key for key in keys if key not in here]
        kept = dict(self._lookup(absent)) if absent else {}
        for outcome in kept.values():
            self._remember(outcome)
        return here | kept

    def _plan(self, work: _Open) -> dict[str, Task]:
        """Tasks that the point newly needs; none where its row could be made."""
        failed = next((outcome for outcome in work.ended.values() if outcome.status != DONE), None)
        if failed is not None:
            self._close(work, failed.status, failed.message, {"traceback": failed.traceback or None})
            return {}
        results = {name: outcome.result for name, outcome in work.ended.items()}
        try:
            require(work.entry.refusal is None, work.entry.refusal or "")
            plan = self._evaluation.plan(work.entry.point, results)
            new = {name: task for name, task in plan.items() if name not in work.tasks}
            work.tasks.update(new)
            if not new and len(work.ended) == len(work.tasks):
                self._close(work, DONE, "", sorted_out(self._evaluation.combine(work.entry.point, results)))
        except InputError as error:
            self._close(work, REFUSED, str(error), {})
            return {}
        except Exception as error:  # a defect that one point brings up must not cost the others
            self._close(work, ERROR, f"{type(error).__name__}: {error}", {"traceback": traceback.format_exc()})
            return {}
        return new

    def _close(self, work: _Open, status: str, message: str, found: Mapping[str, Any]) -> None:
        del self._open[work.entry.key]
        outcomes = work.ended.values()
        peaks = [o.peak_memory_bytes for o in outcomes if o.peak_memory_bytes is not None]
        others = {name: value for name, value in found.items() if name not in METRICS and value is not None}
        tasks = {name: task.key for name, task in work.tasks.items()}
        trial = {"trial": dict(work.entry.trial)} if work.entry.trial else {}
        self._rows.append(
            row_of(work.entry.key, work.entry.point)
            | {
                "status": status,
                "message": " ".join(message.split()),
                **{name: found.get(name) for name in METRICS},
                "wall_s": sum(o.wall_s for o in outcomes),
                "peak_memory_bytes": max(peaks, default=None),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                **self._common,
                "detail": {**others, "tasks": tasks, **trial},
            }
        )


def sorted_out(found: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation found, metrics as numbers of their registered kind, nothing that is None.

    Raises ValueError for a number that is not in the registry, not finite, or no count where one is due.
    """
    given = {name: value for name, value in found.items() if value is not None}
    for name, value in given.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number is not (name in METRICS):
            raise ValueError(f"{name!r} is no metric of the registry" if is_number else f"metric {name} is no number")
        if is_number and (not math.isfinite(value) or METRICS[name].kind(value) != value):
            raise ValueError(f"metric {name} is {value}, not a finite {METRICS[name].kind.__name__}")
    return {name: METRICS[name].kind(value) if name in METRICS else value for name, value in given.items()}


def row_of(key: str, point: Point) -> Row:
    """The fields of a row that say which point it is."""
    words = ("network", "seed", "engine", "unit", "format", "weight_bits", "act_bits", "transform", "quantizer")
    named = {word: getattr(point, word) for word in (*words, "activations", "label", "name")}
    return {"key": key, **named, "params": dict(point.params)}


def point_of(row: Mapping[str, Any]) -> Point:
    """The point of a row."""
    fields = {name: row[name] for name in Point.__dataclass_fields__ if name != "params"}
    return Point(**fields, params=tuple(sorted(row["params"].items())))
