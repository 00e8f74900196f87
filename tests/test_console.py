"""What a sweep says while it runs."""

import io

import pytest
from rich.console import Console

from hwsim.sweep import console as module
from hwsim.sweep.console import duration, progress


def row(number, status="done"):
    return {"label": f"point {number} [b]<b>", "status": status, "message": "" if status == "done" else f"why {number}"}


def spoken(console):
    return console.file.getvalue()


def test_without_a_terminal_lines_tell_how_far_it_is_and_how_long_it_will_take(monkeypatch):
    """The time left follows from the points of this run: those of earlier ones took none of its time."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=200)
    with progress(console, total=40, done=20) as report:
        now[0] += 30.0
        report([row(1), row(2, "error"), row(3)], ["cycles x"])
        report([], ["cycles x"])
    assert spoken(console).splitlines() == [
        "error: point 2 [b]<b>: why 2",
        f"23/40 point 3 [b]<b>, 1 failed, {duration(30 / 3 * 17)} left",
    ]


def test_lines_are_few_however_many_points_there_are():
    console = Console(file=io.StringIO(), width=200)
    with progress(console, total=1000, done=0) as report:
        for number in range(1000):
            report([row(number, "error")], [])
    lines = spoken(console).splitlines()
    assert sum(line.startswith("error") for line in lines) == module.LINES
    assert module.LINES <= sum("left" in line for line in lines) <= module.LINES + 1
    assert lines[-1].startswith("1000/1000 point 999 [b]<b>, 1000 failed")


def test_on_a_terminal_a_bar_tells_failures_and_what_is_at_work():
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with progress(console, total=4, done=1) as report:
        report([row(1, "timeout"), row(2)], ["cycles [u]"])
        report([row(3, "error")], [])
    shown = spoken(console)
    assert "timeout: point 1 [b]<b>: why 1" in shown
    assert "2 failed" in shown
    assert "4/4" in shown


def test_a_quiet_console_hears_nothing():
    console = Console(file=io.StringIO(), quiet=True)
    with progress(console, total=1, done=0) as report:
        report([row(1, "error")], [])
    assert spoken(console) == ""


@pytest.mark.parametrize(
    "seconds, words", [(0.123, "0.12 s"), (42.4, "42 s"), (90, "2 min"), (5399, "90 min"), (7200, "2.0 h")]
)
def test_durations_are_for_people(seconds, words):
    assert duration(seconds) == words
