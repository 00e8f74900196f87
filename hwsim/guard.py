"""External tools: each in a child process of its own, with its own process group, limits, and a log; names checked."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.unit import InputError, require

MEMORY_MIB = 8192
"""RLIMIT_DATA of a child; synthesis and simulation of an array of 4096 PEs stay far below"""
PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent ends"""

MODULE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def check_module_name(name: str) -> None:
    """Refuse the name of a Verilog module that could be more than a name."""
    rule = "is no module name: a letter or _, then up to 63 letters, digits or _"
    require(MODULE_NAME.fullmatch(name) is not None, f"top module {name!r} {rule}")


@dataclass(frozen=True)
class Finished:
    """Exit status of a child that ended by itself, and all it printed."""

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

    `what` says in messages what is being done. `env` is added to this process's environment. At the time limit, and on
    any exception here, the whole process group is killed; the limit is an InputError. The child ends with this process.
    Memory is limited by RLIMIT_DATA.
    """
    log = cwd / "tool.log"
    libc = ctypes.CDLL(None)  # loaded here: between fork and exec nothing may be imported

    def limit() -> None:
        size = MEMORY_MIB << 20
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    with log.open("wb") as sink:
        child = subprocess.Popen(
            [str(arg) for arg in argv],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=limit,
        )
        try:
            status = child.wait(timeout=time_limit_s)
        except subprocess.TimeoutExpired:
            raise InputError(f"{what}: not finished after {time_limit_s:g} s; raise the limit") from None
        finally:
            _end_group(child)
    return Finished(status, log.read_text(errors="replace"))


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the child's process group, itself included, and collect it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
