"""What the commands have in common: tables, JSON, a bar that counts, --quiet, paths of files that they write."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from models.unit import require

Json = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]
Liberty = Annotated[Path | None, typer.Option(metavar="FILE", help="a cell library in place of the built-in 45 nm one")]
Quiet = Annotated[bool, typer.Option("--quiet", help="print no tables, notes or progress; errors and --json remain")]

EXIT_CODES = {
    0: "done",
    1: "a check failed: RTL and model differ, a point failed, a difference is over its threshold, a tool is broken",
    2: "bad input, or something that the system refuses: a message on standard error",
    130: "interrupted; a sweep keeps what was finished",
}
"""exit status -> what it means, of every command"""

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


def exit_codes() -> str:
    """`EXIT_CODES` for the end of a help page."""
    return "\n\n".join(["Exit codes:", *(f"{status}: {meaning}" for status, meaning in EXIT_CODES.items())])


def offer_quiet(app: typer.Typer) -> None:
    """Give --quiet to every command that the app has now."""
    for command in app.registered_commands:
        if command.callback is not None:
            command.callback = _with_quiet(command.callback)


def _with_quiet(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the option --quiet, which holds while it runs."""

    @functools.wraps(command)
    def run(*, quiet: bool = False, **given: Any) -> Any:
        token = _QUIET.set(quiet)
        try:
            return command(**given)
        finally:
            _QUIET.reset(token)

    # typer reads options from the signature and from the annotations
    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])
    run.__annotations__ = {**command.__annotations__, "quiet": Quiet}
    return run


def quiet() -> bool:
    """Whether the command that runs was given --quiet."""
    return _QUIET.get()


def say(*lines: Any) -> None:
    """Print lines for people, unless the command is quiet."""
    for line in () if quiet() else lines:
        print(line)


def print_json(value: Any) -> None:
    """`value` as JSON, with `plain` for what JSON lacks."""
    print(json.dumps(value, indent=2, default=plain))


def plain(value: Any) -> Any:
    """What JSON cannot hold: dataclasses, numpy numbers, paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value.item() if hasattr(value, "item") else str(value)


def printable(text: str) -> str:
    """A name or message with words from a file: characters that would move a terminal's cursor are question marks."""
    return "".join(character if character.isprintable() else "?" for character in text)


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table, unless the command is quiet; numbers stand to the right, the first column to the left."""
    if quiet():
        return
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

    hidden = quiet() or not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, label: bar.update(
            task, completed=done, total=total, description=escape(printable(label))
        )


def target(option: str, text: str | None) -> Path | None:
    """The path given to that option. InputError for an empty one, which a `Path` would take for the present folder."""
    require(text is None or bool(text.strip()), f"{option} {text!r}: is no path; name one, or leave {option} out")
    return None if text is None else Path(text)


def require_targets(files: Mapping[str, Path], folders: Mapping[str, Path]) -> None:
    """InputError unless every file (what writes it -> its path) can be written, none in the place of another or of its
    folder, and files can be made in every folder. Nothing is left behind, nor any folder made."""
    for name, path in files.items():
        require(not path.is_dir(), f"{name} {path}: is a folder; name a file")
        require(not path.is_symlink(), f"{name} {path}: is a link; name the file itself")
        require(not path.exists() or path.is_file(), f"{name} {path}: is a device; name a file")
    for name, path in folders.items():
        require(not path.exists() or path.is_dir(), f"{name} {path}: is no folder; name one")
        _require_room(path, f"give another folder to {name}")
    for name, path in files.items():
        _require_room(path.parent, f"give another path to {name}")
    _require_apart(files, folders)


def _require_apart(files: Mapping[str, Path], folders: Mapping[str, Path]) -> None:
    """Links are followed: two names of one folder do not make two files of one."""
    real = [(name, path, Path(os.path.realpath(path))) for name, path in (*files.items(), *folders.items())]
    for (one, path, a), (other, _, b) in itertools.permutations(real, 2):
        if one in files:
            require(a != b, f"{one} and {other}: {path} cannot be both; name two files")
            require(a not in b.parents, f"{one} and {other}: {path} cannot be a file and a folder; name another file")


def _require_room(folder: Path, remedy: str) -> None:
    """Files can be made in the folder, or in the nearest one above it that exists: the folder is not made here."""
    from hwsim.files import require_writable

    require_writable(next(path for path in (folder, *folder.absolute().parents) if path.exists()), remedy)
