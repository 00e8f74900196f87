"""The commands of studies: `sweep` and `report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsim.terminal import Json, Liberty, print_json, printable, quiet, require_targets, say, table, target
from models.unit import require

if TYPE_CHECKING:
    from rich.console import Console

    from hwsim.sweep.estimate import Estimate

POINTS = 60
"""points that --dry-run lists; --json has all"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: hwsim sweep sweeps/quickstart.yaml --workers 2")(sweep)
    app.command(epilog="Example: hwsim report results/quickstart/store.sqlite")(report)


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="the sweep file")],
    out: Annotated[str, typer.Option(metavar="FOLDER", help="where the study's own folder is made")] = "results",
    workers: Annotated[int | None, typer.Option(min=1, help="processes; the number of CPUs by default")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print points and expected cost, compute nothing")] = False,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="of a Dask scheduler, whose cluster computes")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="every N-th point from the K-th on, to a file of its own")
    ] = None,
    retry: Annotated[bool, typer.Option(help="whether failed points of earlier runs are tried again")] = True,
    liberty: Liberty = None,
    as_json: Json = False,
) -> None:
    """Evaluate every point of a study that is not in its store yet; leaves store, CSV, resolved config and report."""
    from hwsim.sweep.driver import command_of, prepare, run_sweep
    from hwsim.sweep.shards import parse_shard
    from hwsim.sweep.space import load_study

    folder, part = target("--out", out), None if shard is None else parse_shard(shard)
    assert folder is not None
    require(workers is None or scheduler is None, "--workers: a cluster has its own; leave it or --scheduler out")
    if dry_run:
        require(part is None, "--dry-run: tells of the whole study; leave --shard out")
        require_targets({}, {"--out": folder})
        from hwsim.sweep.estimate import estimate

        setup = prepare(load_study(file), command_of(file, liberty), liberty=liberty, cluster=scheduler is not None)
        _print_estimate(estimate(setup, folder, workers=workers), as_json)
        return
    result = run_sweep(
        file,
        folder,
        workers=workers,
        scheduler=scheduler,
        shard=part,
        liberty=liberty,
        retry=retry,
        console=_console(as_json),
    )
    if as_json:
        print_json(result)
    raise typer.Exit(1 if result.failed else 0)


def _console(as_json: bool) -> Console | None:
    """Where a sweep speaks: on standard output, or on the terminal's standard error where that is for JSON."""
    from rich.console import Console

    if as_json:
        return Console(stderr=True, quiet=quiet() or not sys.stderr.isatty())
    return Console(quiet=True) if quiet() else None


def _print_estimate(found: Estimate, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    shown = found.labels[:POINTS]
    say(
        *map(printable, shown), *([f"... and {len(found.labels) - len(shown):,} more"] if found.labels != shown else [])
    )
    rows: list[list[Any]] = [
        [task.kind, f"{task.tasks:,}", f"{task.known:,}", _seconds(task.mean_s), _seconds(task.total_s)]
        for task in found.tasks
    ]
    title = f"{found.study}: {found.points:,} points, {found.done:,} done, {found.refused:,} that cannot be built"
    table(title, ["task", "distinct", "known", "mean", "all that are left"], rows)
    say(*(printable(note) for note in found.notes))


def _seconds(value: float | None) -> str:
    from hwsim.sweep.console import duration

    return "not measured" if value is None else duration(value)


def report(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="a study's store.sqlite, or the folder it is in")],
    out: Annotated[str | None, typer.Option(metavar="FILE", help="report.html beside the store by default")] = None,
    picture: Annotated[
        str | None, typer.Option(metavar="FILE", help="only the Pareto front, as .svg or .png for a paper")
    ] = None,
    markdown: Annotated[str | None, typer.Option("--md", metavar="FILE", help="only the tables, for a paper")] = None,
    as_json: Json = False,
) -> None:
    """Write the HTML report of a store, or its picture or tables."""
    from hwsim.report import write_markdown, write_picture, write_report

    given = {"--out": (out, write_report), "--picture": (picture, write_picture), "--md": (markdown, write_markdown)}
    files = {option: path for option, (text, _) in given.items() if (path := target(option, text)) is not None}
    require(len(files) <= 1, f"{' and '.join(files)} are two things: give one of them")
    place = store / "store.sqlite" if store.is_dir() else store
    option, path = next(iter(files.items()), ("--out", place.parent / "report.html"))
    require_targets(files, {})
    given[option][1](place, path)
    if as_json:
        print_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        say(printable(str(path)))
