"""Tasks on a Dask cluster: one that is started here, with parts of it killed."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import hwsim
from hwsim.sweep.executors import Limits, Order, cluster
from hwsim.sweep.executors.cluster import ClusterExecutor, run_order, software
from hwsim.sweep.tasks import CRASHED, DONE, ERROR, MEMORY, REFUSED, TIMEOUT
from models.unit import InputError

WEB = ("--dashboard-address", "127.0.0.1:0")
"""even without a dashboard Dask answers there"""
LIMITS = Limits(time_s=60, memory_mib=1000)


def order(kind, *, key=None, settings=None, **inputs):
    key = key or f"{kind} {inputs}"
    return Order(key=key, evaluation="executor_tasks:evaluation", settings=settings or {}, kind=kind, inputs=inputs)


@pytest.fixture(autouse=True)
def as_it_is_now():
    """A source file edited since an earlier test must not make this process differ from those it starts."""
    software.cache_clear()


class Cluster:
    """A scheduler and its workers, each a process of its own, without dashboards and nannies."""

    def __init__(self, folder):
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--host", "127.0.0.1")
        self.workers = []
        wait_until(self.file.exists, self)

    def add_worker(self):
        self.workers.append(self._start("worker", "--no-nanny", "--nthreads", "1", "--memory-limit", "0"))

    def _start(self, what, *options):
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", what, "--no-dashboard", *WEB, "--scheduler-file", self.file, *options],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def worker_of(self, pid):
        """The Dask worker that has started this process, or what has started it."""
        found = [worker for worker in self.workers if worker.pid == pid]
        return (
            found[0]
            if found
            else self.worker_of(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]))
        )

    def close(self):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def dask(tmp_path):
    started = Cluster(tmp_path)
    yield started
    started.close()


def wait_until(condition, started):
    end = time.monotonic() + 25
    while not condition():
        assert time.monotonic() < end, (started.folder / "log").read_text()
        time.sleep(0.01)


def collect(executor, count):
    outcomes = []
    while len(outcomes) < count:
        outcomes += executor.wait(40) or pytest.fail(f"{len(outcomes)} of {count} within 40 s")
    assert executor.wait(0) == []
    assert max(Counter(outcome.key for outcome in outcomes).values()) == 1
    return {outcome.key: outcome for outcome in outcomes}


def alive(pid):
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def pids_in(path):
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_a_study_on_a_cluster_and_the_death_of_a_worker(dask, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "COUNT_S", 0.0)
    executor = ClusterExecutor(str(dask.file), Limits(time_s=2, memory_mib=400))
    try:
        # one order waits for the first worker
        assert executor.room() == 1
        executor.submit(order("add", key="first", x=1))
        assert executor.room() == 0
        assert executor.wait(0.05) == []
        dask.add_worker()
        dask.add_worker()
        assert collect(executor, 1)["first"].result == {"sum": 2}
        wait_until(lambda: executor.room() == 2 * cluster.AHEAD, dask)

        # limits and statuses are those of the local executor
        left = tmp_path / "left"
        tasks = {
            "add": (DONE, order("add", key="add", x=3)),
            "refuse": (REFUSED, order("refuse", key="refuse")),
            "fail": (ERROR, order("fail", key="fail")),
            "end": (CRASHED, order("end", key="end", code=3)),
            "fill": (MEMORY, order("fill", key="fill", how="numpy")),
            "stay": (TIMEOUT, order("leave_running", key="stay", how="escaped", pid_file=str(left), then="stay")),
            **{str(i): (DONE, order("add", key=str(i), x=i)) for i in range(30)},
        }
        for _, each in tasks.values():
            executor.submit(each)
        outcomes = collect(executor, len(tasks))
        assert {key: outcome.status for key, outcome in outcomes.items()} == {k: s for k, (s, _) in tasks.items()}
        assert outcomes["7"].result == {"sum": 8}
        assert outcomes["stay"].message == "not finished after 2 s, the time limit of a task"
        assert outcomes["fail"].traceback
        assert not alive(*pids_in(left))

        # the same order on the Dask worker that is left, once
        here = tmp_path / "here"
        executor.submit(order("leave_running", key="long", how="child", pid_file=str(here), then="rest"))
        executor.submit(order("add", key="short", x=1))
        wait_until(lambda: pids_in(here), dask)
        wait_until(lambda: "long" in executor.running(), dask)
        (first,) = pids_in(here)
        dask.worker_of(first).kill()
        wait_until(lambda: not alive(first), dask)
        assert {key: outcome.status for key, outcome in collect(executor, 2).items()} == {"long": DONE, "short": DONE}
        assert len(pids_in(here)) == 2

    finally:
        executor.close()
    executor, last = ClusterExecutor(str(dask.file), LIMITS), tmp_path / "last"
    executor.submit(order("leave_running", key="last", how="escaped", pid_file=str(last), then="stay"))
    wait_until(lambda: pids_in(last), dask)
    executor.close()
    wait_until(lambda: not alive(*pids_in(last)), dask)


def test_an_order_that_ends_dask_workers_fails_and_a_lost_scheduler_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")
    dask, here = Cluster(tmp_path), tmp_path / "here"
    executor = ClusterExecutor(str(dask.file), LIMITS)
    try:
        dask.add_worker()
        executor.submit(order("never", key="fatal", pid_file=str(here)))
        wait_until(lambda: pids_in(here), dask)
        dask.workers[0].kill()
        (outcome,) = executor.wait(25)
        assert (outcome.key, outcome.status) == ("fatal", CRASHED)
        assert outcome.message == "Dask workers that ended while they computed it: 1"
        wait_until(lambda: not alive(*pids_in(here)), dask)
        executor.submit(order("add", x=1))
        dask.scheduler.kill()
        rule = "the scheduler is gone; what was finished is kept; start it again and repeat the command, which goes on"
        for call in (executor.wait, executor.wait, lambda: executor.submit(order("add", x=2))):
            with pytest.raises(InputError, match=rule):
                call()
    finally:
        executor.close()
        dask.close()


@pytest.mark.parametrize(
    "address", ["nonsense", "foo://127.0.0.1:80", "tcp://127.0.0.1:x", "", "SILENT", "CLOSED", "FILE", "LIST"]
)
def test_an_address_without_a_scheduler_is_named(tmp_path, monkeypatch, address):
    monkeypatch.setattr(cluster, "CONNECT_S", 0.3)
    file = tmp_path / "file"
    file.write_text({"FILE": "{}", "LIST": "[1"}.get(address, ""))
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        addresses = {
            name: f"tcp://127.0.0.1:{server.getsockname()[1]}"
            for name, server in (("SILENT", silent), ("CLOSED", closed))
        }
        closed.close()
        address = addresses.get(address, str(file) if address in ("FILE", "LIST") else address)
        with pytest.raises(InputError, match=r"no Dask scheduler answers there: .*; give the address that") as caught:
            ClusterExecutor(address, LIMITS)
    assert str(caught.value).startswith(f"{address}: ")
    assert "\n" not in str(caught.value)


def test_without_distributed_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"not installed here; pip install 'hwsim\[cluster\]'$"):
        ClusterExecutor("tcp://127.0.0.1:1", LIMITS)


# ---- what runs on a Dask worker, without one


def run(each, wanted=None, limits=LIMITS):
    return run_order("name", json.dumps(vars(each)), asdict(limits), wanted or software())


@pytest.fixture
def idle(monkeypatch):
    monkeypatch.setattr(cluster, "_is_wanted", lambda _name: True)
    yield cluster._idle
    cluster.close_idle(0)
    assert cluster._idle == []


@pytest.mark.parametrize("part", ["hwsim", "hwsim's sources", "python", "numpy"])
def test_other_versions_compute_nothing(idle, part):
    answer = run(order("add", x=1), software() | {part: "0"})
    assert answer.keys() == {"trouble"}
    assert f": {part} is {software()[part]} there and 0 here; install the same" in answer["trouble"]
    assert idle == []


def test_what_software_there_is():
    assert software()["numpy"] == np.__version__
    assert software()["hwsim"] == hwsim.__version__
    assert all(software().values())


def test_workers_are_kept_for_the_next_order_of_the_same_limits(idle):
    first = run(order("calls"))
    assert run(order("calls"))["result"]["pid"] == first["result"]["pid"]
    other = run(order("calls"), limits=Limits(time_s=5))
    assert other["result"]["pid"] != first["result"]["pid"]
    assert len(idle) == 2
    cluster.close_idle(1000)
    assert len(idle) == 2
    cluster.close_idle(0)
    assert idle == []
    assert not alive(first["result"]["pid"])


def test_what_keeps_workers_from_starting_is_trouble(idle):
    answer = run(order("add", x=1, settings={"trouble": "exit"}))
    assert "3 workers in a row ended before they had loaded executor_tasks:evaluation" in answer["trouble"]
    assert idle == []


def test_an_order_that_nobody_wants_any_more_is_given_up(idle, monkeypatch):
    monkeypatch.setattr(cluster, "LOOK_S", 0.05)
    monkeypatch.setattr(cluster, "_is_wanted", lambda name: name != "name")
    with pytest.raises(RuntimeError, match="name is not wanted any more"):
        run(order("never"))
    assert idle == []
