"""Tasks given out, outcomes written and told, with an executor that computes at once and can be interrupted."""

import pytest
from test_ledger import entries, ledger, outcome, point, task

from hwsim.sweep import running as module
from hwsim.sweep.running import Running
from hwsim.sweep.tasks import CRASHED, DONE
from models.unit import InputError


class Executor:
    """Takes a few orders; each call of `wait` ends one of them."""

    def __init__(self, *, end=None, failing=()):
        self.orders, self.left, self.failing = [], end, failing

    def room(self):
        return 3 - len(self.orders)

    def submit(self, order):
        self.orders.append(order)

    def wait(self, _timeout_s=None):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = None if self.left is None else self.left - 1
        order = self.orders.pop(0)
        return [outcome(task(order.kind, **order.inputs), CRASHED if order.kind in self.failing else DONE)]

    def running(self):
        return [order.key for order in self.orders]

    def close(self):
        pass


class Disk:
    """What was written and what was told, in their order."""

    def __init__(self, *, full_after=None):
        self.events, self.left = [], full_after

    def record(self, tasks, rows):
        if self.left == 0:
            raise InputError("no space left")
        self.left = None if self.left is None else self.left - 1
        self.events += [("task", task["key"]) for task in tasks] + [("row", row["key"]) for row in rows]

    def report(self, rows, _running):
        self.events += [("told", row["key"]) for row in rows]

    def of(self, kind):
        return [key for each, key in self.events if each == kind]


def run(executor, disk, points):
    Running(
        entries=iter(entries(points)),
        ahead=100,
        ledger=ledger(),
        executor=executor,
        order={"evaluation": "none:none", "settings": {}},
        record=disk.record,
        report=disk.report,
    ).go()


POINTS = [point(8, 1), point(8, 2), point(4, 3)]
KEYS = ["0", "1", "2"]


def test_every_row_is_told_once_and_after_it_was_written():
    disk = Disk()
    run(Executor(), disk, POINTS)
    assert sorted(disk.of("row")) == sorted(disk.of("told")) == KEYS
    for key in KEYS:
        assert disk.events.index(("row", key)) < disk.events.index(("told", key))
    assert len(disk.of("task")) == len(set(disk.of("task"))) == 7


def test_a_row_that_could_not_be_written_is_never_told(monkeypatch):
    monkeypatch.setattr(module, "COMMIT_S", 0.0)
    disk = Disk(full_after=5)
    with pytest.raises(InputError, match="no space left"):
        run(Executor(), disk, POINTS)
    assert disk.of("told") == disk.of("row")
    assert len(disk.of("row")) < len(POINTS)


def test_what_ended_before_an_interrupt_is_written(monkeypatch):
    monkeypatch.setattr(module, "COMMIT_S", 1e9)
    disk = Disk()
    with pytest.raises(KeyboardInterrupt):
        run(Executor(end=4), disk, POINTS)
    assert len(disk.of("task")) == 4


def test_what_ended_is_written_while_the_rest_is_at_work(monkeypatch):
    monkeypatch.setattr(module, "COMMIT_S", 0.0)
    disk, written = Disk(), []

    class Watched(Executor):
        def wait(self, timeout_s=None):
            written.append(len(disk.of("task")))
            return super().wait(timeout_s)

    run(Watched(), disk, POINTS)
    assert written == list(range(7))


def test_only_tasks_that_are_done_are_kept():
    disk = Disk()
    run(Executor(failing={"accuracy"}), disk, POINTS)
    kept = {task("cycles", bits=bits).key for bits in (8, 4)}
    assert disk.of("row") == KEYS
    assert set(disk.of("task")) <= kept | {task("area", unit=unit).key for unit in ("engine", "transform")}
