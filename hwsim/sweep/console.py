"""What a sweep says while it runs and when it ends."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from sqlite3 import Connection
from typing import TYPE_CHECKING, Any

from hwsim.metrics import FRONT, METRICS
from hwsim.sweep.point import how
from hwsim.sweep.store import study_rows
from hwsim.sweep.tasks import DONE
from hwsim.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from hwsim.sweep.driver import SweepResult
    from hwsim.sweep.ledger import Row
    from hwsim.sweep.shards import Merged

LINES = 50
"""lines that tell of progress where there is no terminal, about"""

SHOWN = ("accuracy", "cycles", "energy_pj", "area_um2", FRONT[1])
"""metrics of the printed tables, which fit 80 columns; the files hold all"""

ROWS = 60
"""points that are listed in full; of more only the front is printed"""

Report = Callable[[Sequence[Mapping[str, Any]], Sequence[str]], None]
"""(rows that were finished, what is being computed)"""


def default_console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)


def line(console: Console, text: str) -> None:
    """Print one line as it is."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress(console: Console, *, total: int, done: int) -> Iterator[Report]:
    """A function to report to: a bar with the time left on a terminal, some lines elsewhere."""
    if console.quiet:
        yield lambda _rows, _running: None
    elif console.is_terminal:
        with _bar(console, total, done) as report:
            yield report
    else:
        yield _line_report(console, total, done)


@contextlib.contextmanager
def _bar(console: Console, total: int, done: int) -> Iterator[Report]:
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    running = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True), running)
    failed = 0
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task("", total=total, completed=done)

        def report(rows: Sequence[Mapping[str, Any]], now: Sequence[str]) -> None:
            nonlocal failed
            bad = [row for row in rows if row["status"] != DONE]
            failed += len(bad)
            for row in bad[:5]:
                line(console, f"{row['status']}: {row['label']}: {row['message']}")
            words = f"{failed} failed; " * bool(failed) + ", ".join(now)
            bar.update(task, advance=len(rows), description=escape(printable(words)))

        yield report


def _line_report(console: Console, total: int, done: int) -> Report:
    start, begun, failed = time.monotonic(), done, 0
    step = max(1, (total - done) // LINES)
    due = done + step

    def report(rows: Sequence[Mapping[str, Any]], _now: Sequence[str]) -> None:
        nonlocal done, failed, due
        for row in rows:
            done += 1
            failed += row["status"] != DONE
            if row["status"] != DONE and failed <= LINES:
                line(console, f"{row['status']}: {row['label']}: {row['message']}")
        if rows and (done >= due or done == total):
            due = done + step
            left = (time.monotonic() - start) / (done - begun) * (total - done)
            bad = f", {failed} failed" if failed else ""
            line(console, f"{done}/{total} {rows[-1]['label']}{bad}, {duration(left)} left")

    return report


def duration(seconds: float) -> str:
    """A time span for people."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


# ---- the end


def table(title: str, rows: Sequence[Row]) -> Table:
    """Points with the metrics `SHOWN`, as far as they have them."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    shown.padding = (0, 1, 0, 0)
    shown.add_column("engine", overflow="fold")
    shown.add_column("format, transform, other", overflow="fold", min_width=10)
    names = [name for name in SHOWN if any(row[name] is not None for row in rows)]
    for name in names:
        cells = [METRICS[name].show(row[name]) for row in rows]
        # a number is never cut: the words give way
        heading = f"{METRICS[name].title} {METRICS[name].unit}"
        shown.add_column(escape(heading), justify="right", width=max(map(len, [*cells, *heading.split()])))
    for row in rows:
        words = [printable(row["engine"]), how(row)]
        shown.add_row(*map(escape, words), *(METRICS[name].show(row[name]) for name in names))
    return shown


def tell_merged(console: Console, merged: Merged) -> None:
    """What the shards brought."""
    if merged.points:
        line(console, f"{merged.points} points taken from {merged.files} shards")
    if merged.damaged:
        line(console, f"{merged.damaged} damaged lines passed over: {', '.join(merged.places)}")


def show(console: Console, store: Connection, result: SweepResult) -> None:
    """Print the points where they are few, and the Pareto front."""
    if result.points <= ROWS:
        console.print(table("All points", list(study_rows(store))))
    line(console, f"{result.points} points, {result.failed} failed: {result.folder / 'report.html'}")
    if result.front:
        title = " against ".join(METRICS[name].title for name in FRONT)
        console.print(table(f"Pareto front: {title}", result.front[:ROWS]))


def show_failures(console: Console, store: Connection) -> None:
    """The last word: how many points failed, and why."""
    failed = [row for row in study_rows(store, ("status", "label", "message")) if row["status"] != DONE]
    if not failed:
        return
    kinds = ", ".join(f"{count} {status}" for status, count in Counter(row["status"] for row in failed).items())
    line(console, f"{len(failed)} points failed ({kinds}); the first, {failed[0]['label']}: {failed[0]['message']}")
