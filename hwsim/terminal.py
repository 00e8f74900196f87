"""What the commands print with: tables, JSON, and a bar that counts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]


def print_json(value: Any) -> None:
    """`value` as JSON, with `plain` for what JSON lacks."""
    print(json.dumps(value, indent=2, default=plain))


def plain(value: Any) -> Any:
    """What JSON cannot hold: dataclasses, numpy numbers, paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value.item() if hasattr(value, "item") else str(value)


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table; numbers stand to the right, the first column to the left."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=escape(title), title_justify="left")
    for i, column in enumerate(columns):
        shown.add_column(escape(column), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(escape(str(cell)) for cell in row))
    Console().print(shown)


def width() -> int:
    """Characters of a line of standard output."""
    from rich.console import Console

    return Console().width


@contextlib.contextmanager
def counting(what: str = "synthesising") -> Iterator[Any]:
    """A progress bar on a terminal's standard error for what tells how many of how many are done, and a label."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, label: bar.update(task, completed=done, total=total, description=escape(label))
