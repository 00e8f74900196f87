"""The worker's side of `local`: a process that computes tasks, and a supervisor that outlives it.

The supervisor is what the executor starts. It forks the worker before anything large is imported, adopts whatever the
worker leaves behind, and when the worker has ended, or the executor has, kills all of it, also what went into sessions
of its own. Orders come and answers go as lines of JSON over one socket; nothing that a task prints or starts reaches
it.

Without Linux there is no adoption: what leaves the worker's process group outlives it.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from hwsim.guard_child import limit
from hwsim.sweep.tasks import DONE, ERROR, MEMORY, REFUSED, Evaluation, evaluation_at

LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

ANSWER_BYTES = 64 << 20
"""the largest result, as JSON"""
MESSAGE_CHARACTERS = 2000


def main() -> None:
    """Of the supervisor. argv: descriptor of the socket, process id of the executor, memory limit of a task in MiB.

    Standard input is a pipe whose other end the executor holds: a byte there, or its end, ends everything. The last
    line on the socket is `{"ended": exit code of the worker, or -n where signal n ended it}`, and when it comes no
    process of the worker's is left.
    """
    link, executor, memory_mib = map(int, sys.argv[1:4])
    os.set_inheritable(link, False)
    _adopt_orphans()
    supervisor = os.getpid()
    worker = os.fork()
    if worker == 0:
        _become_worker(link, supervisor, memory_mib)
    _end_with(executor, worker)
    code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker, signal.SIGKILL)
    end_descendants()
    with contextlib.suppress(OSError):  # the executor is gone
        # the worker may have died in the middle of a line
        os.write(link, b"\n" + json.dumps({"ended": code}).encode() + b"\n")
    os._exit(0)


def _end_with(executor: int, worker: int) -> None:
    """Kill the worker when the executor says so or is gone.

    The kernel also sends its signal when merely the executor's thread that started this process ends.
    """

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)

    def end_at_a_word() -> None:
        os.read(0, 1)
        end()

    signal.signal(signal.SIGTERM, lambda *_: os.getppid() == executor or end())
    _signal_at_parents_end(signal.SIGTERM)
    if os.getppid() != executor:
        end()
    threading.Thread(target=end_at_a_word, daemon=True).start()


def end_descendants() -> None:
    """Kill and collect all that this process, an adopter of orphans, has started and what that has started in turn.

    Cheap where there is nothing. Each round takes one generation: its children are then this process's own.
    """
    with contextlib.suppress(ChildProcessError):
        while LINUX:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            for child in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            os.waitpid(-1, 0)


def _children() -> list[int]:
    """Process ids of this process's own children."""
    found, me = [], str(os.getpid())
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            # the name stands in parentheses and may hold anything
            if stat.read_bytes().rpartition(b")")[2].split()[1].decode() == me:
                found.append(int(stat.parent.name))
    return found


def _adopt_orphans() -> None:
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _signal_at_parents_end(number: int) -> None:
    _prctl(PR_SET_PDEATHSIG, number)


def _prctl(option: int, value: int) -> None:
    if LINUX:
        import ctypes

        # all five arguments: the kernel refuses some options unless the unused ones are 0
        ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)


# ---- the worker


def _become_worker(link: int, supervisor: int, memory_mib: int) -> None:
    """In the fork: a session of its own, limits, then tasks; never returns."""
    code = 1
    try:
        os.setsid()
        _signal_at_parents_end(signal.SIGKILL)
        if os.getppid() == supervisor:
            _adopt_orphans()
            importlib.import_module("models.unit")  # while there is memory to say why there is none
            _confine(memory_mib)
            serve(link, memory_mib)
            code = 0
    except BaseException:  # its last line is what the executor tells
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _confine(memory_mib: int) -> None:
    """What holds for the tasks and for all that they start."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_DATA, memory_mib << 20)
    # where the machine runs out of memory, a task ends before the study does
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def serve(link: int, memory_mib: int) -> None:
    """Compute the orders that come over the socket until it ends, one line in return for each, in order.

    A line `{"serial": ...}` of an order goes before, once its evaluation is loaded, where that was not there already.
    What an evaluation keeps in its module lives as long as this process.
    """
    evaluations: dict[str, Evaluation] = {}
    log = os.dup(2)
    with os.fdopen(link, "rb") as orders, os.fdopen(os.dup(link), "wb") as answers:
        for line in orders:
            order = json.loads(line)
            known = json.dumps([order["evaluation"], order["settings"]], sort_keys=True)
            if known not in evaluations:
                evaluations[known] = evaluation_at(order["evaluation"], order["settings"])
                _say(answers, json.dumps({"serial": order["serial"]}))
            _empty(log)
            _say(answers, answer(order, evaluations[known], memory_mib))


def _say(answers: IO[bytes], line: str) -> None:
    answers.write(line.encode() + b"\n")
    answers.flush()


def _empty(log: int) -> None:
    """What the last task printed is not this one's last word, and must not fill the disk."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a task may close or replace it
            stream.flush()
    if os.fstat(log).st_size:
        os.ftruncate(log, 0)


def answer(order: Mapping[str, Any], evaluation: Evaluation, memory_mib: int) -> str:
    """Compute one order; whatever it raises becomes its message. What it leaves running is gone before it is answered.

    JSON with the keys of `hwsim.sweep.tasks.Outcome`, `serial` in place of `key`.
    """
    me = os.getpid()
    status, message, trace, result = DONE, "", "", "{}"
    _reset_peak_memory()
    start = time.perf_counter()
    try:
        result = _plain_text(evaluation.functions[order["kind"]](**order["inputs"]))
    except BaseException as error:  # a task that wants to exit must not cost the others
        status, message, trace = _failure(error, memory_mib)
    finally:
        if os.getpid() != me:  # a fork that came back
            os._exit(0)
    told = {
        "serial": order["serial"],
        "status": status,
        "message": message,
        "traceback": trace,
        "wall_s": time.perf_counter() - start,
        "peak_memory_bytes": _peak_memory_bytes(),
    }
    end_descendants()
    return f'{json.dumps(told)[:-1]}, "result": {result}}}'


def _plain_text(result: Any) -> str:
    """The result as JSON, numpy's numbers and arrays as plain ones.

    TypeError for what is no mapping of plain data, ValueError for NaN, infinities and more than `ANSWER_BYTES`.
    """
    if not isinstance(result, Mapping):
        raise TypeError(f"the result is no mapping but of type {type(result).__name__}")
    text = json.dumps(dict(result), default=_plain, allow_nan=False)
    if len(text) > ANSWER_BYTES:
        raise ValueError(f"the result has {len(text)} bytes as JSON; at most {ANSWER_BYTES} are taken")
    return text


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no plain data")


def _failure(error: BaseException, memory_mib: int) -> tuple[str, str, str]:
    """Status, message and traceback."""
    from models.unit import InputError

    if isinstance(error, InputError):
        return REFUSED, _one_line(str(error)), ""
    if is_memory := isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        # what the failed frames hold, or there is no memory to tell of them
        traceback.clear_frames(error.__traceback__)
        gc.collect()
    told = _one_line("".join(traceback.format_exception_only(error)))
    trace = _clean("".join(traceback.format_exception(error)))
    if is_memory:
        return MEMORY, f"more memory than the limit of {memory_mib} MiB: {told}", trace
    return ERROR, told, trace


def _one_line(text: str) -> str:
    return " ".join(_clean(text).split())[:MESSAGE_CHARACTERS]


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _reset_peak_memory() -> None:
    # the peak of this task alone; where the system cannot reset it, the peak so far stands
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_bytes() -> int | None:
    """Largest resident memory of this process since the reset; None where the system does not tell."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_bytes()
        return int(status.partition(b"VmHWM:")[2].split(maxsplit=1)[0]) * 1024
    return None
