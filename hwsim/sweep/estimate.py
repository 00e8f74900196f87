"""What a study would cost: its points, the distinct tasks they need, and how long tasks of these kinds took before."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection

from hwsim.sweep.driver import Listed, Setup, listed
from hwsim.sweep.search import sampler_of
from hwsim.sweep.store import close_store, done_keys, known_tasks, read_store, task_walls
from hwsim.sweep.tasks import Outcome, Task
from models.unit import InputError

NEIGHBOURS = 50
"""stores of other studies, at most, that are asked how long tasks take"""


@dataclass(frozen=True, kw_only=True)
class KindEstimate:
    """The tasks of one kind."""

    kind: str
    tasks: int
    """distinct ones that the points not done need, as far as it is known beforehand"""
    known: int
    """of these, in the store already"""
    mean_s: float | None
    """what one took before, here or in a neighbouring study; None where none was measured"""

    @property
    def total_s(self) -> float | None:
        """Of those that are left, one after the other."""
        return None if self.mean_s is None else self.mean_s * (self.tasks - self.known)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a study has to do."""

    study: str
    points: int
    labels: tuple[str, ...]
    """of all points, where they are known beforehand"""
    done: int
    refused: int
    """that the evaluation cannot take"""
    tasks: tuple[KindEstimate, ...]
    expected_s: float | None
    """of all that is left on the given workers; None where a kind was never measured"""
    notes: tuple[str, ...]


def estimate(setup: Setup, out_root: Path, *, workers: int | None = None) -> Estimate:
    """Points and tasks of the study as it stands in `out_root`; nothing is written or computed."""
    workers = workers or os.cpu_count() or 1
    sampler = sampler_of(setup.study, workers=workers)
    if sampler.ahead is not None:
        note = "a guided search chooses its points as it goes; its tasks are not known beforehand"
        return Estimate(
            study=setup.study.name,
            points=sampler.total,
            labels=(),
            done=0,
            refused=0,
            tasks=(),
            expected_s=None,
            notes=(note,),
        )
    known = listed(sampler, setup.evaluation(), setup.study.name)
    with _stored(out_root / setup.study.name / "store.sqlite") as store:
        done = done_keys(store) & known.points.keys() if store else set()
        left = _tasks(setup, known, done)
        kept: Mapping[str, Outcome] = known_tasks(store, left) if store else {}
    walls = _walls(out_root)
    kinds = tuple(_of_kind(kind, left, kept, walls) for kind in dict.fromkeys(task.kind for task in left.values()))
    totals = [kind.total_s for kind in kinds]
    expected = None if None in totals else sum(total for total in totals if total is not None) / workers
    return Estimate(
        study=setup.study.name,
        points=len(known.points),
        labels=tuple(point.label for point in known.points.values()),
        done=len(done),
        refused=len(known.refused),
        tasks=kinds,
        expected_s=expected,
        notes=tuple(_notes(setup, kinds, expected, workers)),
    )


@contextlib.contextmanager
def _stored(path: Path) -> Iterator[Connection | None]:
    """The store, None where there is none yet."""
    store = read_store(path) if path.exists() else None
    try:
        yield store
    finally:
        if store is not None:
            close_store(store)


def _tasks(setup: Setup, known: Listed, done: set[str]) -> dict[str, Task]:
    """Key -> task of all first plans."""
    evaluation = setup.evaluation()
    todo = (point for key, point in known.points.items() if key not in done and key not in known.refused)
    return {task.key: task for point in todo for task in evaluation.plan(point, {}).values()}


def _walls(out_root: Path) -> dict[str, tuple[int, float]]:
    """Kind -> number and mean time of the tasks in all stores beside each other; stores that are none are passed."""
    found: dict[str, tuple[int, float]] = {}
    for path in sorted(out_root.glob("*/store.sqlite"))[:NEIGHBOURS]:
        with contextlib.suppress(InputError), _stored(path) as store:
            for kind, (count, mean) in task_walls(store).items() if store else ():
                before, so_far = found.get(kind, (0, 0.0))
                found[kind] = (before + count, (before * so_far + count * mean) / (before + count))
    return found


def _of_kind(
    kind: str, left: Mapping[str, Task], kept: Mapping[str, Outcome], walls: Mapping[str, tuple[int, float]]
) -> KindEstimate:
    keys = [key for key, task in left.items() if task.kind == kind]
    mean = walls[kind][1] if kind in walls else None
    return KindEstimate(kind=kind, tasks=len(keys), known=sum(key in kept for key in keys), mean_s=mean)


def _notes(setup: Setup, kinds: tuple[KindEstimate, ...], expected: float | None, workers: int) -> Iterator[str]:
    from hwsim.sweep.console import duration

    if expected is not None:
        yield f"expected: {duration(expected)} on {workers} workers, from what such tasks took in the studies beside it"
    unmeasured = [kind.kind for kind in kinds if kind.mean_s is None]
    if unmeasured:
        yield f"no task was measured yet in the studies beside it: {', '.join(unmeasured)}"
    if "synthesis" in setup.study.evaluate:
        yield "transform and quantizer units come on top: only a point's cycles tell which ones it needs"
