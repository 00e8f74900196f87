"""External tools: each in a child process of its own, with its own process group, limits, a folder and a log."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.unit import InputError, require

MEMORY_MIB = 8192
"""RLIMIT_DATA of a tool; synthesis and simulation of an array of 4096 PEs stay far below"""
SUPERVISOR = Path(__file__).with_name("guard_child.py")
LONGEST_S = 12 * 3600.0
"""the largest time limit"""
STALE_S = 24 * 3600.0
"""A working folder that did not change for so long belongs to a process that was killed."""
PLAIN_PATH = re.compile(r"[A-Za-z0-9._/+@=-]+")
"""what GNU make and ABC take in a path: they know no quoting"""


@dataclass(frozen=True)
class Finished:
    """Exit status of a tool that ended by itself (128 + n: by signal n), and all it printed."""

    status: int
    output: str


def run_guarded(
    argv: Sequence[str | Path],
    *,
    what: str,
    cwd: Path,
    time_limit_s: float,
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Run `argv` in `cwd` (no shell), standard output and error together in `cwd/tool.log`.

    `what` says in messages what is being done. `env` is added to this process's environment; Python in a child never
    takes modules from the folder that it runs in. Memory (RLIMIT_DATA) and CPU time are limited for each process of the
    group. The whole group is killed when the tool has ended, at the time limit (an InputError), on any exception here,
    and by guard_child.py when this process is gone. A tool that is not there ends with status 127.
    """
    check_time_limit(time_limit_s)
    log = cwd / "tool.log"
    limits = [str(MEMORY_MIB << 20), str(int(time_limit_s) + 1)]
    with log.open("wb") as sink:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", SUPERVISOR, *limits, *map(str, argv)],
            cwd=cwd,
            env={**os.environ, "PYTHONSAFEPATH": "1", **(env or {})},
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = child.wait(timeout=time_limit_s)
        except subprocess.TimeoutExpired:
            remedy = "take a smaller design or a larger time limit (time_limit_s)"
            raise InputError(f"{what}: not finished after {time_limit_s:g} s; {remedy}") from None
        finally:
            _end_group(child)
    return Finished(status, log.read_text(errors="replace"))


def check_time_limit(seconds: float) -> None:
    """Refuse a time limit that is none, or longer than working folders live."""
    require(0 < seconds <= LONGEST_S, f"time_limit_s: {seconds} must be positive and at most {LONGEST_S:g} s")


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the child's process group, itself included, and collect it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdin:
        child.stdin.close()


@contextlib.contextmanager
def workplace(prefix: str) -> Iterator[Path]:
    """A fresh folder in the temporary folder, removed at the end; also removes those that killed processes left.

    Left are folders of this user whose name starts with `prefix` and that did not change for a day. InputError where
    the temporary folder's path holds characters that the tools cannot take, or where no folder can be made there.
    """
    try:
        root = Path(tempfile.gettempdir()).absolute()
        check_plain_path(root, "temporary folder", "set TMPDIR to another one")
        _sweep(root, prefix)
        place = tempfile.TemporaryDirectory(prefix=prefix, dir=root)
    except OSError as error:
        raise InputError(f"temporary folder: {error.strerror}; set TMPDIR to a writable one") from None
    with place as folder:
        yield Path(folder)


def check_plain_path(path: Path, what: str, remedy: str) -> None:
    """Refuse a path that would fall apart in a makefile or an ABC script."""
    require(
        PLAIN_PATH.fullmatch(str(path)) is not None,
        f"{what} {str(path)!r}: make and ABC take only letters, digits and . _ / + @ = - in a path; {remedy}",
    )


def _sweep(root: Path, prefix: str) -> None:
    oldest = time.time() - STALE_S
    for entry in os.scandir(root):
        if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False) and _is_ours(entry, oldest):
            shutil.rmtree(entry.path, ignore_errors=True)


def _is_ours(entry: os.DirEntry[str], oldest: float) -> bool:
    """Whether this user owns it and left it alone since `oldest`."""
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False  # another process removed it first
    return found.st_uid == os.getuid() and found.st_mtime < oldest
