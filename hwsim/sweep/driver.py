"""A study from its file to its results: every point evaluated once, whatever happens in between.

Only this process writes; executors compute. What is finished is in the sink (the store, or a shard's lines) before
anybody hears of it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import TYPE_CHECKING, Any

from hwsim.metrics import FRONT, pareto
from hwsim.sweep import console as talk
from hwsim.sweep import outputs
from hwsim.sweep import study_folder as places
from hwsim.sweep.executors import Executor, Limits
from hwsim.sweep.ledger import Entry, Ledger, Row, point_of
from hwsim.sweep.point import WORDS
from hwsim.sweep.rows import TaskRow
from hwsim.sweep.running import OPEN, Record, Running
from hwsim.sweep.search import Sampler, progress, require_objectives, sampler_of
from hwsim.sweep.shards import merge, open_shard
from hwsim.sweep.sink import Sink, StoreSink
from hwsim.sweep.space import Study, load_study
from hwsim.sweep.store import (
    add_members,
    count_by_status,
    open_store,
    read_study,
    save_study,
    set_members,
    study_rows,
)
from hwsim.sweep.tasks import DONE, Evaluation, digest, evaluation_at
from hwsim.version import revision
from models.unit import InputError, require

if TYPE_CHECKING:
    from rich.console import Console

    from hwsim.sweep.point import Point

EVALUATION = "hwsim.evaluation:evaluation"
"""the function that makes the usual evaluation"""


SHORT = ("key", "label", *WORDS, *talk.SHOWN)
"""fields that tell points apart and what they are worth"""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep left behind."""

    folder: Path
    points: int
    """of the study, failed ones included"""
    computed: int
    """points evaluated in this run, failed ones included; the others were in the store"""
    failed: int
    front: tuple[Row, ...] = ()
    """the finished points on the Pareto front `FRONT`, from the cheapest up, with the fields `SHORT` of their rows"""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A study that can run: all that could be refused beforehand was."""

    study: Study
    command: str
    reference: str
    """of the function that makes the evaluation"""
    settings: Mapping[str, Any]
    library: str | None
    """text of the cell library in place of the built-in one"""

    def evaluation(self) -> Evaluation:
        """Made anew."""
        return evaluation_at(self.reference, self.settings)


def prepare(
    study: Study, command: str, *, liberty: Path | None = None, reference: str = EVALUATION, cluster: bool = False
) -> Setup:
    """The study with what evaluates it; InputError for a bad cell library and for what is missing on this machine."""
    if reference == EVALUATION:
        from hwsim import doctor
        from hwsim.evaluation import metrics_of

        method, networks = study.search.method, study.networks
        doctor.require_study(study.evaluate, method=method, cluster=cluster, networks=networks)
        require_objectives(study.search.objectives, metrics_of(study.evaluate))
    text = places.library_text(liberty)
    settings = {"parts": list(study.evaluate), "liberty": None if liberty is None else str(liberty.resolve())}
    return Setup(study=study, command=command, reference=reference, settings=settings, library=text)


def command_of(study_file: Path, liberty: Path | None) -> str:
    """The command that makes the same results; what cannot change one is left out."""
    words = ["hwsim", "sweep", study_file.as_posix(), *(["--liberty", liberty.as_posix()] if liberty else [])]
    # a name that is no UTF-8 reaches Python as lone surrogates, which no file takes
    return os.fsencode(shlex.join(words)).decode("utf-8", "replace")


# ---- what there is to do


@dataclass(frozen=True, kw_only=True)
class Listed:
    """The points of a study that are known beforehand, by their keys and in order."""

    points: Mapping[str, Point]
    refused: Mapping[str, str]
    """key -> why the evaluation cannot take it"""


def point_key(point: Point, evaluation: Evaluation) -> str:
    """SHA-256, in hexadecimal, of what the point is and of the code, tools and settings that evaluate it."""
    return digest({"point": point.configuration(), "version": evaluation.version(point)})


def listed(sampler: Sampler, evaluation: Evaluation, name: str) -> Listed:
    """All points. InputError where a unit can take none of its points: then the file is wrong, no corner of a grid."""
    points: dict[str, Point] = {}
    refused: dict[str, str] = {}
    while (draw := sampler.ask()) is not None:
        key = point_key(draw.point, evaluation)
        points[key] = draw.point
        if (reason := _refusal(draw.point, evaluation)) is not None:
            refused[key] = reason
    require(bool(points), f"{name}: the study's constraints leave no point")
    usable = {point.unit for key, point in points.items() if key not in refused}
    for key, reason in refused.items():
        require(points[key].unit in usable, f"{name}: point {points[key].label[:100]!r}: {reason}")
    return Listed(points=points, refused=refused)


def _refusal(point: Point, evaluation: Evaluation) -> str | None:
    try:
        evaluation.check(point)
    except InputError as error:
        return str(error)
    return None


# ---- running it


def run_sweep(
    study_file: Path,
    out_root: Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    shard: tuple[int, int] | None = None,
    liberty: Path | None = None,
    retry: bool = True,
    reference: str = EVALUATION,
    console: Console | None = None,
) -> SweepResult:
    """Evaluate the study's points that are not in `out_root/<name>/store.sqlite` yet and write the results there.

    First takes over what the shards in that folder hold. Also writes `config.resolved.json`, `points.csv`,
    `report.html` and a folder a point, which depend on the results alone, not on the number of workers or their order.
    A failed point is kept with its status and message, and tried again by the next run unless `retry` is off.

    `workers` defaults to the number of CPUs. `scheduler` is the address of a Dask scheduler whose cluster computes in
    their place. `shard` (k, N), 1 <= k <= N, evaluates every N-th point from the k-th on, and writes nothing but the
    lines of `shards/<k>-of-<N>.jsonl`. `liberty` is a cell library in place of the built-in one; it is read once, and
    workers use a copy in the study's folder. `reference` names the function that makes the evaluation.

    Raises InputError for bad input and for what is missing on this machine, before anything is written, for a place
    that cannot be written, and KeyboardInterrupt after a clean end: what was finished is in the store.
    """
    command = command_of(study_file, liberty)
    setup = prepare(
        load_study(study_file), command, liberty=liberty, reference=reference, cluster=scheduler is not None
    )
    return run(setup, out_root, workers=workers, scheduler=scheduler, shard=shard, retry=retry, console=console)


def run(
    setup: Setup,
    out_root: Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    shard: tuple[int, int] | None = None,
    retry: bool = True,
    console: Console | None = None,
) -> SweepResult:
    """`run_sweep` of a study that is prepared."""
    workers = (os.cpu_count() or 1) if workers is None else workers
    require(1 <= workers <= 1024, f"workers: {workers} is outside 1 to 1024")
    console = console or talk.default_console()
    sampler = sampler_of(setup.study, workers=workers)
    known = listed(sampler, setup.evaluation(), setup.study.name) if sampler.ahead is None else None
    rule = "--shard: a search that learns from results is one process's; take `search: {method: random}`"
    require(shard is None or known is not None, rule)
    team = partial(_executor, Limits(**setup.study.limits.model_dump()), scheduler, workers)
    folder = places.study_folder(out_root, setup.study.name)
    if shard is not None and known is not None:
        return _run_shard(setup, known, folder, shard, retry, team, console)
    with places.locked(folder), contextlib.closing(StoreSink(open_store(folder / "store.sqlite"))) as sink:
        setup = _with_copy(setup, folder)
        merged = merge(sink.store, folder)
        talk.tell_merged(console, merged)
        job = _guided_job(sink, setup, sampler, retry) if known is None else _listed_job(sink, known, retry)
        made = digest([_entries(setup), list(known.points) if known else [], retry])
        if not (job.left or merged.points) and read_study(sink.store).get("made") == made and outputs.are_in(folder):
            result = _result(sink.store, folder, computed=0)
            talk.show(console, sink.store, result)
            talk.show_failures(console, sink.store)
            return result
        return _run_job(job, setup, known, sink, folder, made, team, console)


def _run_job(
    job: _Job,
    setup: Setup,
    known: Listed | None,
    sink: StoreSink,
    folder: Path,
    made: str,
    team: Callable[[], Executor],
    console: Console,
) -> SweepResult:
    """Compute what is left and write the outputs."""
    entries = _entries(setup)
    save_study(sink.store, entries)  # without `made`: the outputs are old from here on
    if known is not None:
        set_members(sink.store, known.points)
    _compute(job, setup, team, console)
    objectives = setup.study.search.objectives or FRONT
    found = list(study_rows(sink.store, ("status", *objectives)))
    entries["progress"] = progress(found, objectives)
    save_study(sink.store, entries)
    result = _result(sink.store, folder, computed=len(found) - job.reused)
    talk.show(console, sink.store, result)
    outputs.write(sink.store, folder)
    save_study(sink.store, {**entries, "made": made})
    talk.show_failures(console, sink.store)
    return result


def _run_shard(
    setup: Setup,
    known: Listed,
    folder: Path,
    shard: tuple[int, int],
    retry: bool,
    team: Callable[[], Executor],
    console: Console,
) -> SweepResult:
    """Every N-th point, into the shard's own file; the library's copy has the same text whoever makes it."""
    index, count = shard
    with contextlib.closing(open_shard(folder, index, count)) as sink:
        mine = dict(list(known.points.items())[index - 1 :: count])
        job = _listed_job(sink, replace(known, points=mine), retry)
        _compute(job, _with_copy(setup, folder), team, console)
        failed = len(mine) - len(sink.done_keys() & mine.keys())
        talk.line(console, f"{len(mine)} points, {failed} failed: {sink.path}; the sweep without --shard takes them in")
    return SweepResult(folder=folder, points=len(mine), computed=job.left, failed=failed)


def _result(store: Connection, folder: Path, *, computed: int) -> SweepResult:
    counts = count_by_status(store)
    points = sum(counts.values())
    done = list(study_rows(store, SHORT))
    front = sorted((done[index] for index in pareto(done, FRONT)), key=lambda row: row[FRONT[1]])
    failed = points - counts.get(DONE, 0)
    return SweepResult(folder=folder, points=points, computed=computed, failed=failed, front=tuple(front))


def _with_copy(setup: Setup, folder: Path) -> Setup:
    return replace(setup, settings={**setup.settings, "liberty": places.copied(setup.library, folder)})


def _entries(setup: Setup) -> dict[str, Any]:
    """What the store says of the study, besides its points."""
    return {
        "study": setup.study.as_dict(),
        "command": setup.command,
        "reference": setup.reference,
        "parts": list(setup.study.evaluate),
        "versions": outputs.versions(setup.library),
    }


def _executor(limits: Limits, scheduler: str | None, workers: int) -> Executor:
    if scheduler is not None:
        from hwsim.sweep.executors.cluster import ClusterExecutor

        return ClusterExecutor(scheduler, limits)
    from hwsim.sweep.executors.local import LocalExecutor

    return LocalExecutor(workers, limits)


# ---- what a run does


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Points, and where their results go."""

    entries: Iterator[Entry]
    total: int
    """points of the study, or of the shard"""
    reused: int
    """of these, how many have a row that stands"""
    ahead: int
    sink: Sink
    record: Record

    @property
    def left(self) -> int:
        """Points to evaluate, at most."""
        return max(self.total - self.reused, 0)


def _listed_job(sink: Sink, known: Listed, retry: bool) -> _Job:
    ended = sink.done_keys() if retry else sink.ended_keys()
    todo = [
        Entry(key=key, point=point, refusal=known.refused.get(key))
        for key, point in known.points.items()
        if key not in ended
    ]
    total = len(known.points)
    return _Job(entries=iter(todo), total=total, reused=total - len(todo), ahead=OPEN, sink=sink, record=sink.record)


def _guided_job(sink: StoreSink, setup: Setup, sampler: Sampler, retry: bool) -> _Job:
    """The search hears of all rows that stand, and of every further one when it is written."""
    evaluation = setup.evaluation()
    ended, told = sink.done_keys() if retry else sink.ended_keys(), []
    for row in study_rows(sink.store):
        point = point_of(row)
        if row["key"] in ended and row["key"] == point_key(point, evaluation):
            sampler.tell(point, row)
            told.append(row["key"])
    set_members(sink.store, told)

    def record(tasks: list[TaskRow], rows: list[Row]) -> None:
        sink.record(tasks, rows)
        add_members(sink.store, [row["key"] for row in rows])
        for row in rows:
            sampler.tell(point_of(row), row)

    return _Job(
        entries=_asked(sampler, evaluation),
        total=sampler.total,
        reused=len(told),
        ahead=sampler.ahead or OPEN,
        sink=sink,
        record=record,
    )


def _asked(sampler: Sampler, evaluation: Evaluation) -> Iterator[Entry]:
    while (draw := sampler.ask()) is not None:
        key = point_key(draw.point, evaluation)
        yield Entry(key=key, point=draw.point, trial=draw.trial, refusal=_refusal(draw.point, evaluation))


def _compute(job: _Job, setup: Setup, team: Callable[[], Executor], console: Console) -> None:
    """Evaluate what is left; what was finished is written, whatever ends this."""
    if job.reused:
        talk.line(console, f"{job.reused} of {job.total} points are in the store already")
    if not job.left:
        return
    finished = job.reused

    def report(rows: Sequence[Row], running: Sequence[str]) -> None:
        nonlocal finished
        finished += len(rows)
        tell(rows, running)

    ledger = Ledger(setup.evaluation(), job.sink.known_tasks, common={"revision": revision()})
    with (
        contextlib.closing(team()) as executor,
        talk.progress(console, total=job.total, done=job.reused) as tell,
    ):
        running = Running(
            entries=job.entries,
            ahead=job.ahead,
            ledger=ledger,
            executor=executor,
            order={"evaluation": setup.reference, "settings": setup.settings},
            record=job.record,
            report=report,
        )
        try:
            running.go()
        except KeyboardInterrupt:
            kept = f"{finished} of {job.total} points are kept"
            talk.line(console, f"interrupted: {kept}; the same command goes on from there")
            raise
