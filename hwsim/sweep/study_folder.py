"""A study's folder: made, locked, swept, and the copy of the cell library in it."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from hwsim.files import os_errors, require_file, sweep_stale, write_atomic
from models.unit import InputError, require


def study_folder(out_root: Path, name: str) -> Path:
    """The study's folder, made where missing; a link, which may lead anywhere, is refused."""
    folder = out_root / name
    with os_errors(folder, "name another place for the results"):
        require(not folder.is_symlink(), f"{folder}: is a link; remove it or name the study otherwise")
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
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


def library_text(liberty: Path | None) -> str | None:
    """The text of a cell library, after all checks on it; None for the built-in one."""
    if liberty is None:
        return None
    from hwsim.synth.liberty import read_library

    require_file(liberty)
    with os_errors(liberty):
        return read_library(liberty).text


def copied(library: str | None, folder: Path) -> str | None:
    """Path of the library as a file that nobody changes while the sweep runs."""
    if library is None:
        return None
    copy = folder.resolve() / "library.lib"
    write_atomic(copy, library)
    return str(copy)
