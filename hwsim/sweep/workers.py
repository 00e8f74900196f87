"""Worker processes that evaluate points: long-lived, one thread each, expendable.

Points go in on standard input and outcomes come out on a pipe of their own, as lines of JSON. A worker that fails or
dies costs its point and nothing else; workers end with their parent.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import queue
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from hwsim.files import os_errors
from hwsim.metrics import METRICS
from hwsim.sweep.space import Point
from hwsim.sweep.store import DONE, FAILED
from models.unit import InputError

Evaluate = Callable[..., Mapping[str, Any]]
"""`evaluate(point, *, liberty) -> metric name -> number`, with any detail that is not a number beside"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all points of a run have in common."""

    function: str
    """`module:name` of the `Evaluate`"""
    liberty: str | None
    """path of a cell library in place of the built-in one"""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A point was started (`outcome` None) or finished."""

    key: str
    running: tuple[str, ...]
    """keys in work after this event"""
    outcome: Mapping[str, Any] | None = None


@dataclass(kw_only=True)
class _Worker:
    """A worker process and what it is doing."""

    process: subprocess.Popen[bytes]
    answers: IO[bytes]
    log: IO[bytes]
    key: str = ""
    received: bytearray = field(default_factory=bytearray)
    started: float = 0.0


def evaluate_points(todo: Mapping[str, Point], job: Job, workers: int) -> Iterator[Event]:
    """Evaluate `todo` on up to `workers` processes. Closing the generator kills those still at work."""
    waiting = deque(todo)
    crew: list[_Worker] = []
    with selectors.DefaultSelector() as selector:

        def employ(worker: _Worker) -> Event:
            _give(worker, waiting.popleft(), todo)
            return Event(key=worker.key, running=tuple(w.key for w in crew))

        def hire() -> Event:
            worker = _start(job)
            crew.append(worker)
            selector.register(worker.answers, selectors.EVENT_READ, worker)
            return employ(worker)

        def dismiss(worker: _Worker) -> None:
            crew.remove(worker)
            selector.unregister(worker.answers)
            _end(worker)

        try:
            for _ in range(min(workers, len(waiting))):
                yield hire()
            while crew:
                for ready, _ in selector.select():
                    worker: _Worker = ready.data
                    outcome = _receive(worker)
                    if outcome is None:
                        continue
                    running = tuple(w.key for w in crew if w is not worker)
                    alive = worker.process.poll() is None and "lost" not in outcome
                    yield Event(key=worker.key, running=running, outcome=outcome)
                    if not alive or not waiting:
                        dismiss(worker)
                    if waiting:
                        yield employ(worker) if alive else hire()
        finally:
            for worker in crew:
                _end(worker)


ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""workers share the CPUs among themselves, not with the threads of their libraries"""


def _start(job: Job) -> _Worker:
    """A worker in a process group of its own: a Ctrl-C reaches the parent alone, and the group is ended as one."""
    remedy = "no further worker can be started; use fewer with --workers"
    with os_errors(Path(sys.executable), remedy), contextlib.ExitStack() as undo:
        log = undo.enter_context(tempfile.TemporaryFile())
        ours, theirs = os.pipe()
        answers = undo.enter_context(os.fdopen(ours, "rb"))
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(theirs)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(theirs,),
                env={**os.environ, **ONE_THREAD, "PYTHONSAFEPATH": "1", "PYTHONPATH": _search_path()},
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        undo.pop_all()
    worker = _Worker(process=process, answers=answers, log=log)
    _send(worker, {"function": job.function, "liberty": job.liberty})
    return worker


SERVE = "import sys; from hwsim.sweep.workers import serve; serve(int(sys.argv[1]))"


def _search_path() -> str:
    """Where this process finds modules, an implicit current folder last: a `random.py` there must hide nothing."""
    here = str(Path.cwd())
    paths = [path or here for path in sys.path]
    implicit = int(paths[:1] == [here])  # Python puts it first; one that PYTHONPATH names stays where it is
    return os.pathsep.join([*paths[implicit:], *paths[:implicit]])


def _give(worker: _Worker, key: str, todo: Mapping[str, Point]) -> None:
    worker.key, worker.started = key, time.monotonic()
    _send(worker, todo[key].as_dict())


def _send(worker: _Worker, message: Mapping[str, Any]) -> None:
    # a worker that is already dead is noticed where its answer is read
    with contextlib.suppress(BrokenPipeError):
        worker.process.stdin.write(json.dumps(message).encode() + b"\n")
        worker.process.stdin.flush()


def _receive(worker: _Worker) -> Mapping[str, Any] | None:
    """The outcome of the worker's point when its line is complete or the worker is gone."""
    chunk = os.read(worker.answers.fileno(), 1 << 16)
    if not chunk:
        return _death(worker)
    worker.received += chunk
    if not worker.received.endswith(b"\n"):
        return None
    line = bytes(worker.received)
    worker.received.clear()
    return _outcome_in(line) or _lost(worker, f"worker answered what is no outcome: {line[:200]!r}")


def _outcome_in(line: bytes) -> Mapping[str, Any] | None:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) and answer.keys() == OUTCOME else None


def _death(worker: _Worker) -> Mapping[str, Any]:
    """The outcome of a point whose worker ended while evaluating it."""
    code = worker.process.wait()
    worker.log.seek(0)
    words = worker.log.read()[-2000:].decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(words) if line.strip()), "")
    cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    hint = "; out of memory?" if code == -signal.SIGKILL else ""
    return _lost(worker, f"worker ended by {cause}{hint}{f': {last}' if last else ''}")


OUTCOME = {"status", "message", "metrics", "detail", "wall_s", "peak_memory_bytes"}


def _lost(worker: _Worker, message: str) -> Mapping[str, Any]:
    """The outcome of a point whose worker is of no further use."""
    return {
        "lost": True,
        "status": FAILED,
        "message": message,
        "metrics": {},
        "detail": {},
        "wall_s": time.monotonic() - worker.started,
        "peak_memory_bytes": None,
    }


def _end(worker: _Worker) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
    for stream in (worker.process.stdin, worker.answers, worker.log):
        with contextlib.suppress(BrokenPipeError):
            stream.close()


# ---- the worker's side


def serve(answers: int) -> None:
    """Main function of a worker: evaluate the points of standard input until it ends, which ends the whole group.

    The first line says what to evaluate with. Each further line is a point and is answered with one line on the file
    descriptor `answers`, which what the evaluation prints or starts does not reach.
    """
    os.set_inheritable(answers, False)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    job = json.loads(lines.get())
    liberty = Path(job["liberty"]) if job["liberty"] else None
    module, name = job["function"].split(":")
    evaluate = getattr(importlib.import_module(module), name)
    with os.fdopen(answers, "wb") as out:
        while True:
            outcome = _outcome(evaluate, Point.from_dict(json.loads(lines.get())), liberty)
            out.write(json.dumps(outcome, allow_nan=False).encode() + b"\n")
            out.flush()


def _listen(lines: queue.SimpleQueue[bytes]) -> None:
    """Read ahead, so that the end of the parent is noticed in the middle of an evaluation."""
    for line in sys.stdin.buffer:
        lines.put(line)
    os.killpg(0, signal.SIGKILL)


def _outcome(evaluate: Evaluate, point: Point, liberty: Path | None) -> dict[str, Any]:
    """Evaluate one point; whatever it raises becomes its message."""
    _reset_peak_memory()
    start = time.perf_counter()
    status, message, metrics, detail = DONE, "", {}, {}
    try:
        metrics, detail = _sorted_out(evaluate(point, liberty=liberty))
    except InputError as error:
        status, message = FAILED, str(error)
    except Exception as error:  # a defect of one point must not cost the others
        status, message = FAILED, f"{type(error).__name__}: {error}"
        detail = {"traceback": _clean(traceback.format_exc())}
    return {
        "status": status,
        "message": " ".join(_clean(message).split()),
        "metrics": metrics,
        "detail": detail,
        "wall_s": time.perf_counter() - start,
        "peak_memory_bytes": _peak_memory_bytes(),
    }


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _sorted_out(result: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result's metrics as numbers of their registered kind, and what is no number as plain data.

    Raises ValueError for a number that is not in the registry, not finite, or no count where one is due, and for a
    metric that is missing though every point has it.
    """
    numbers = {name: value for name, value in result.items() if isinstance(value, (int, float, np.number))}
    for name, value in numbers.items():
        if name not in METRICS or isinstance(value, bool):
            raise ValueError(f"{name!r} is no metric of the registry")
        if not math.isfinite(value) or METRICS[name].kind(value) != value:
            raise ValueError(f"metric {name} is {value}, not a finite {METRICS[name].kind.__name__}")
    missing = [name for name, entry in METRICS.items() if name not in numbers and not entry.optional]
    if missing:
        raise ValueError(f"metric {missing[0]} is missing")
    others = {name: value for name, value in result.items() if name not in numbers and value is not None}
    detail = json.loads(json.dumps(others, default=_plain, allow_nan=False))
    return {name: METRICS[name].kind(value) for name, value in numbers.items()}, detail


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no plain data")


def _reset_peak_memory() -> None:
    # the peak of this point alone; where the system cannot reset it, the peak so far stands
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_bytes() -> int | None:
    """Largest resident memory of this process since the reset; None where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
