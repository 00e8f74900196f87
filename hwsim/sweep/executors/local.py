"""Tasks on this machine's cores: long-lived worker processes, one thread each, expendable.

Small tasks are handed out several at a time, so that a worker never waits for the next; they are answered in order.
What goes wrong with a worker is therefore the fault of the first one that it has not answered: that one fails, the
others go to another worker. The other side is `worker`.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hwsim.files import os_errors
from hwsim.sweep.executors import Limits, Order
from hwsim.sweep.executors.worker import ANSWER_BYTES
from hwsim.sweep.tasks import CRASHED, MEMORY, STATUSES, TIMEOUT, Outcome
from models.unit import InputError

AHEAD_S = 0.05
"""expected work beyond which a worker gets no further order"""
DEPTH = 64
"""most orders that a worker has"""
CHOICE = 8
"""orders a worker that wait here, of which it gets those that suit it"""
START_S = 300.0
"""to start and to load an evaluation; a shared file system may be slow"""
FALSE_STARTS = 3
"""so many in a row are no accident"""
END_S = 5.0
"""for a worker to end; what the system cannot kill in this time is left behind"""

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""workers share the CPUs among themselves, not with the threads of their libraries"""
SERVE = "from hwsim.sweep.executors.worker import main; main()"

ANSWER = {"serial", "status", "message", "traceback", "wall_s", "peak_memory_bytes", "result"}
NO_MEMORY = ("MemoryError", "bad_alloc", "out of memory", "Cannot allocate memory")
"""last words of a program that was refused memory"""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """An order on its way."""

    key: str
    kind: str
    evaluation: str
    """reference and settings as JSON"""
    affinity: str
    serial: int
    line: bytes
    """as the worker reads it"""


@dataclass(kw_only=True, eq=False)
class _Worker:
    """A worker process and what it has to do."""

    process: subprocess.Popen[bytes]
    """its supervisor"""
    link: socket.socket
    log: IO[bytes]
    jobs: deque[_Job] = field(default_factory=deque)
    """not answered yet; it is at work on the first"""
    affinity: str = ""
    """of what it was given last"""
    expected_s: float = 0.0
    """of all these"""
    unsent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    loaded: set[str] = field(default_factory=set)
    """evaluations"""
    since: float = 0.0
    """when it turned to its first job, or had loaded that one's evaluation"""

    @property
    def loading(self) -> bool:
        """Whether its first job waits for a start or an import."""
        return self.jobs[0].evaluation not in self.loaded


class LocalExecutor:
    """An `Executor` with up to `workers` processes, each started when there is work for it.

    The time limit of a task runs from when the worker has loaded its evaluation and answered the task before. A task
    that reaches it is killed with all that it started; so is, after its answer, what a task leaves running.

    `submit` and `wait` raise InputError where no worker can be started, or three in a row end before they have loaded
    the evaluation. All calls must come from one thread.
    """

    def __init__(self, workers: int, limits: Limits) -> None:
        self._workers = workers
        self._limits = limits
        self._crew: list[_Worker] = []
        self._waiting: deque[_Job] = deque()
        self._given = 0
        self._ended: list[Outcome] = []
        self._usual_s: dict[str, float] = {}
        self._false_starts = 0
        self._serials = itertools.count()
        self._selector = selectors.DefaultSelector()

    def room(self) -> int:
        return max(max(CHOICE * self._workers, self._given) - len(self._waiting), 0)

    def running(self) -> Sequence[str]:
        return [worker.jobs[0].key for worker in self._crew if worker.jobs]

    def submit(self, order: Order) -> None:
        self._waiting.append(_job(order, next(self._serials)))
        self._hand_out()

    def wait(self, timeout_s: float | None = None) -> Sequence[Outcome]:
        until = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while self._given and not self._ended:
                self._turn(until)
                if until is not None and time.monotonic() >= until:
                    break
        except InputError:
            if not self._ended:  # else it comes with the next call: what has ended goes first
                raise
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        crew, self._crew = self._crew, []
        for worker in crew:
            _tell_to_end(worker)
        for worker in crew:
            _end(worker)
        self._selector.close()

    # ---- orders go out

    def _hand_out(self) -> None:
        """Give the waiting orders to those who have room, then send what is new."""
        fresh = set()
        while self._waiting and (worker := self._freest()):
            self._give(worker, self._next_for(worker))
            fresh.add(worker)
        for worker in fresh:
            self._send(worker)

    def _freest(self) -> _Worker | None:
        """Who takes the next order: one that is idle, a new one, the one with the least to do."""
        for worker in [worker for worker in self._crew if not worker.jobs]:
            if _is_sound(worker):
                return worker
            self._dismiss(worker)  # that is no order's fault
        if len(self._crew) < self._workers:
            return self._hire()
        return min(filter(_has_room, self._crew), key=lambda worker: worker.expected_s, default=None)

    def _next_for(self, worker: _Worker) -> _Job:
        """Of the next orders the first that shares intermediate results with what the worker did last; else the first
        that shares none with another worker's; else the first."""
        ahead = list(itertools.islice(self._waiting, CHOICE * self._workers))
        taken = {other.affinity for other in self._crew if other is not worker}
        own = (i for i, job in enumerate(ahead) if job.affinity and job.affinity == worker.affinity)
        free = (i for i, job in enumerate(ahead) if not job.affinity or job.affinity not in taken)
        chosen = next(itertools.chain(own, free), 0)
        job = ahead[chosen]
        del self._waiting[chosen]
        return job

    def _hire(self) -> _Worker:
        worker = _start(self._limits)
        self._crew.append(worker)
        self._selector.register(worker.link, selectors.EVENT_READ, worker)
        return worker

    def _give(self, worker: _Worker, job: _Job) -> None:
        if not worker.jobs:
            worker.since = time.monotonic()
        worker.jobs.append(job)
        worker.affinity = job.affinity
        worker.expected_s += self._usual_s.get(job.kind, AHEAD_S)
        worker.unsent += job.line
        self._given += 1

    def _send(self, worker: _Worker) -> None:
        """As much as the socket takes now."""
        # a worker that is already dead is noticed where its answer is read
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            del worker.unsent[: worker.link.send(worker.unsent)]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.unsent else 0)
        if self._selector.get_key(worker.link).events != wanted:
            self._selector.modify(worker.link, wanted, worker)

    # ---- answers come in

    def _turn(self, until: float | None) -> None:
        """Wait for the next thing that happens, and deal with it."""
        deadlines = [self._deadline(worker) for worker in self._crew if worker.jobs]
        nearest = min(deadlines if until is None else [*deadlines, until])
        for key, events in self._selector.select(max(nearest - time.monotonic(), 0)):
            if events & selectors.EVENT_WRITE:
                self._send(key.data)
            if events & selectors.EVENT_READ:
                self._receive(key.data)
        # only now: an answer that was here already is in time
        now = time.monotonic()
        for worker in [worker for worker in self._crew if worker.jobs and self._deadline(worker) <= now]:
            self._overdue(worker)
        self._hand_out()

    def _deadline(self, worker: _Worker) -> float:
        return worker.since + (START_S if worker.loading else self._limits.time_s)

    def _receive(self, worker: _Worker) -> None:
        """Take what the worker has sent: answers, its death."""
        try:
            chunk = worker.link.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionResetError:  # it died with orders unread
            chunk = b""
        worker.received += chunk
        if chunk and b"\n" not in chunk:
            if len(worker.received) > 2 * ANSWER_BYTES:
                self._lose(worker, CRASHED, f"worker answered more than {2 * ANSWER_BYTES} bytes")
            worker.since = time.monotonic()  # its answer has begun, and is in time
            return
        *lines, rest = bytes(worker.received).split(b"\n")
        worker.received = bytearray(rest)
        answers = [_parsed(line) for line in lines if line]
        code = _exit_code(answers, worker, at_end=not chunk)
        for line, answer in zip(filter(None, lines), answers, strict=True):
            # a line that death cut off is no answer of its own
            if not self._take(worker, answer) and code is None:
                self._lose(worker, CRASHED, f"worker answered what is no outcome: {line[:200]!r}")
                return
        if code is not None:
            self._lose(worker, *_death(worker, code))

    def _take(self, worker: _Worker, answer: Mapping[str, Any]) -> bool:
        """Whether it is an answer to the worker's first job."""
        if not worker.jobs or answer.get("serial") != worker.jobs[0].serial:
            return False
        if answer.keys() == {"serial"}:
            worker.loaded.add(worker.jobs[0].evaluation)
            worker.since = time.monotonic()
            self._false_starts = 0
            return True
        if answer.keys() != ANSWER or answer["status"] not in STATUSES:
            return False
        job = self._done(worker)
        self._learn(job.kind, answer["wall_s"])
        self._ended.append(Outcome(key=job.key, **{name: answer[name] for name in ANSWER - {"serial"}}))
        return True

    def _done(self, worker: _Worker) -> _Job:
        """The worker's first job, which is now no more its."""
        job = worker.jobs.popleft()
        self._given -= 1
        worker.expected_s = sum(self._usual_s.get(job.kind, AHEAD_S) for job in worker.jobs)
        worker.since = time.monotonic()
        return job

    def _learn(self, kind: str, wall_s: float) -> None:
        """A long task counts at once, short ones little by little: too much work in one queue costs more than none."""
        self._usual_s[kind] = max(wall_s, 0.8 * self._usual_s.get(kind, wall_s) + 0.2 * wall_s)

    # ---- what goes wrong

    def _overdue(self, worker: _Worker) -> None:
        if worker.loading:
            self._lose(worker, TIMEOUT, f"not ready after {START_S:g} s")
        else:
            self._lose(worker, TIMEOUT, f"not finished after {self._limits.time_s:g} s, the time limit of a task")

    def _lose(self, worker: _Worker, status: str, message: str) -> None:
        """End the worker; its first job ends so, unless it was not begun, and the others are as before."""
        wall_s = time.monotonic() - worker.since
        began = bool(worker.jobs) and not worker.loading
        if began:
            job = self._done(worker)
            self._ended.append(Outcome(key=job.key, status=status, message=message, result={}, wall_s=wall_s))
        elif worker.jobs:
            self._count_false_start(worker.jobs[0], message)
        self._dismiss(worker)

    def _count_false_start(self, job: _Job, message: str) -> None:
        self._false_starts += 1
        if self._false_starts >= FALSE_STARTS:
            reference = json.loads(job.evaluation)[0]
            rule = f"{self._false_starts} workers in a row ended before they had loaded {reference}"
            memory = f"{self._limits.memory_mib} MiB of memory"
            raise InputError(f"{rule}: {message}; see that it can be imported within {memory}")

    def _dismiss(self, worker: _Worker) -> None:
        """Its jobs wait again, before all others."""
        self._crew.remove(worker)
        self._selector.unregister(worker.link)
        self._given -= len(worker.jobs)
        self._waiting.extendleft(reversed(worker.jobs))
        _tell_to_end(worker)
        _end(worker)


def _job(order: Order, serial: int) -> _Job:
    told = {
        "serial": serial,
        "evaluation": order.evaluation,
        "settings": order.settings,
        "kind": order.kind,
        "inputs": order.inputs,
    }
    return _Job(
        key=order.key,
        kind=order.kind,
        evaluation=json.dumps([order.evaluation, order.settings], sort_keys=True),
        affinity=order.affinity,
        serial=serial,
        line=json.dumps(told, allow_nan=False).encode() + b"\n",
    )


def _is_sound(worker: _Worker) -> bool:
    """Whether one that has nothing to do lives and has nothing to say."""
    if worker.process.poll() is not None:
        return False
    with contextlib.suppress(ConnectionResetError):
        try:
            worker.link.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
    return False


def _has_room(worker: _Worker) -> bool:
    return not worker.loading and len(worker.jobs) < DEPTH and worker.expected_s < AHEAD_S


def _start(limits: Limits) -> _Worker:
    """A worker in a session of its own: a Ctrl-C reaches the parent alone."""
    remedy = "no further worker can be started; use fewer with --workers"
    with os_errors(Path(sys.executable), remedy), contextlib.ExitStack() as undo:
        log = undo.enter_context(tempfile.TemporaryFile())
        fcntl.fcntl(log, fcntl.F_SETFL, os.O_APPEND)  # the worker empties it now and then
        link, theirs = socket.socketpair()
        undo.enter_context(link)
        link.setblocking(False)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(theirs.fileno()), str(os.getpid()), str(limits.memory_mib)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                bufsize=0,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **ONE_THREAD, "PYTHONSAFEPATH": "1", "PYTHONPATH": _search_path()},
                start_new_session=True,
            )
        undo.pop_all()
    return _Worker(process=process, link=link, log=log)


def _search_path() -> str:
    """Where this process finds modules, an implicit current folder last: a `random.py` there must hide nothing."""
    here = str(Path.cwd())
    paths = [path or here for path in sys.path]
    implicit = int(paths[:1] == [here])  # Python puts it first; one that PYTHONPATH names stays where it is
    return os.pathsep.join([*paths[implicit:], *paths[:implicit]])


def _parsed(line: bytes) -> Mapping[str, Any]:
    """The JSON object of that line; empty where it holds none."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _exit_code(answers: Sequence[Mapping[str, Any]], worker: _Worker, *, at_end: bool) -> int | None:
    """Of the worker, which its supervisor's last line tells; None while it lives."""
    if answers and answers[-1].keys() == {"ended"}:
        return answers[-1]["ended"]
    return worker.process.wait() if at_end else None


def _death(worker: _Worker, code: int) -> tuple[str, str]:
    """Status and message of a task whose worker ended."""
    size = os.fstat(worker.log.fileno()).st_size
    words = os.pread(worker.log.fileno(), 2000, max(size - 2000, 0)).decode("utf-8", "replace")
    last = next((line.strip() for line in reversed(words.split("\n")) if line.strip()), "")
    hint = "; out of memory?" if code == -signal.SIGKILL else ""
    status = MEMORY if any(word in last for word in NO_MEMORY) else CRASHED
    return status, f"worker ended by {_cause(code)}{hint}{f': {last}' if last else ''}"


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"signal {names.get(-code, -code)}"


def _tell_to_end(worker: _Worker) -> None:
    # a byte, since another process may hold this end open as well
    with contextlib.suppress(OSError):
        worker.process.stdin.write(b"\n")
    worker.process.stdin.close()


def _end(worker: _Worker) -> None:
    """Wait until the supervisor has killed all that is left, or kill it where it takes too long."""
    until = time.monotonic() + END_S
    try:
        while True:
            worker.link.settimeout(max(until - time.monotonic(), 0.001))
            if not worker.link.recv(1 << 16):
                break
    except ConnectionResetError:
        pass
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
    worker.link.close()
    worker.log.close()
