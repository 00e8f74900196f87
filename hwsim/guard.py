"""External tools run in a child process of their own: own process group, time limit, memory limit, output to a file."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.unit import InputError

DEFAULT_MEMORY_MIB = 8192


@dataclass(frozen=True)
class Finished:
    """Exit status of a child that ended by itself, and all it printed."""

    status: int
    output: str


def run_guarded(
    argv: Sequence[str | Path],
    *,
    cwd: Path,
    time_limit_s: float,
    env: Mapping[str, str] | None = None,
    memory_mib: int = DEFAULT_MEMORY_MIB,
) -> Finished:
    """Run `argv` in `cwd` (no shell), standard output and error together in `cwd/tool.log`.

    `env` is added to this process's environment. At the time limit the whole process group is killed and InputError
    names the tool and the limit. Memory is limited by RLIMIT_DATA.
    """
    log = cwd / "tool.log"

    def limit() -> None:
        size = memory_mib << 20
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))

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
            raise InputError(
                f"{Path(str(argv[0])).name} {argv[-1]} passed its time limit of {time_limit_s:g} s"
            ) from None
        finally:
            _end_group(child)
    return Finished(status, log.read_text(errors="replace"))


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the child's process group, itself included, and collect it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
