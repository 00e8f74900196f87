"""What a sweep adds to the evaluations themselves, what a second worker brings, and whether large studies hold.

Every sweep is a process of its own. Syntheses are kept, as in any second study of the same hardware; what differs from
point to point (accuracy, cycles) is computed. Runs are few: each is a whole study.
"""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import AtLeast, AtMost, Result, confirm, seconds
from hwsim.sweep.executors.local import ONE_THREAD
from hwsim.sweep.space import load_study

STUDY = """\
name: {name}
network: digits-mlp
seed: {seeds}
formats: [W8A8, W4A8, W4A4, W3A8, W2A8]
transforms: [none]
quantizers: [rtn, gptq]
activations: [asymmetric, symmetric]
engines:
  - {{unit: systolic, set: {{rows: 16, cols: 16, dataflow: [WS, OS]}}}}
  - {{unit: lutgemm, set: {{rows: 8, cols: 8}}}}
  - {{unit: shiftadd, set: {{rows: 8, cols: 8}}}}
"""
SMALL = """\
name: {name}
network: digits-mlp
seed: {seeds}
formats: [W8A8, W4A8]
transforms: [none]
evaluate: [cycles]
engines: [{{unit: systolic, set: {{rows: [1, 2], cols: 2}}}}]
"""
"""the same in a second, without synthesis"""

TIMING = """\
name: timing
network: digits-mlp
seed: 1
formats: [W8A8, W7A8, W6A8, W5A8, W4A8, W3A8, W2A8, W4A4]
transforms: [none]
evaluate: [cycles]
engines:
  - {{unit: systolic, set: {{rows: {{from: 1, to: {side}}}, cols: {{from: 1, to: {side}}}, dataflow: [WS, OS, IS]}}}}
"""


def sweep(study: str = STUDY, seeds: int = 26) -> list[Result]:
    """A study of over 2,000 points: overhead a point, two workers beside one, a second run, memory."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        file = _study(place, "points", study.format(name="points", seeds=list(range(1, seeds + 1))))
        warm = _study(place, "warm", study.format(name="warm", seeds=[0]))
        _run(warm, place / "warm")  # the syntheses, which all runs below find kept
        plain = seconds(lambda: _python(["-c", PLAIN_LOOP, file]))
        one, peaks = _timed(file, place / "one", workers=1)
        two, _ = _timed(file, place / "two", workers=2)
        again = seconds(lambda: _run(file, place / "two"))
        points = _count(place / "one/points/store.sqlite")
        confirm(points == load_study(file).count(), f"sweep: {points} points are finished")
        _confirm_same(place / "one/points/points.csv", place / "two/points/points.csv")
    what = f"{points} points: accuracy of digits-mlp, cycles, kept syntheses"
    return [
        Result(
            name="sweep",
            what=f"{what}; what one worker takes beyond the plain loop, a point",
            ours=[one],
            reference=[plain],
            against="the same evaluations in a plain loop",
            values=[1000 * (one - plain) / points],
            unit="ms a point",
            limit=AtMost(bound=5),
        ),
        Result(
            name="sweep",
            what=f"{what}; two workers",
            ours=[two],
            reference=[one],
            against="one worker",
            values=[one / two],
            unit="x as fast",
            limit=AtLeast(bound=1.7),
        ),
        Result(
            name="sweep",
            what=f"{what}; the finished study once more",
            ours=[again],
            reference=[two],
            against="the first run",
            values=[again],
            unit="s",
            limit=AtMost(bound=3),
        ),
        _memory("sweep", what, one, peaks),
    ]


def large(side: int = 65) -> list[Result]:
    """A study of over 100,000 points of timing alone: all of it, then resumed with nothing to do."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        file = _study(place, "timing", TIMING.format(side=side))
        first, peaks = _timed(file, place / "out", workers=2)
        again = seconds(lambda: _run(file, place / "out"))
        points = _count(place / "out/timing/store.sqlite")
        confirm(points == load_study(file).count(), f"sweep-large: {points} points")
        report = (place / "out/timing/report.html").stat().st_size
        confirm(report < 3_000_000, f"sweep-large: a report of {report} bytes")
        size = (place / "out/timing/store.sqlite").stat().st_size
    what = f"{points} points of timing alone, store of {size / 1e6:.0f} MB, report of {report / 1e6:.1f} MB"
    return [
        Result(
            name="sweep-large",
            what=f"{what}; all of it, a point",
            ours=[first],
            values=[1000 * first / points],
            unit="ms a point",
            limit=AtMost(bound=5),
        ),
        Result(
            name="sweep-large",
            what=f"{what}; once more",
            ours=[again],
            reference=[first],
            against="the first run",
            values=[again],
            unit="s",
            limit=AtMost(bound=60),
        ),
        _memory("sweep-large", what, first, peaks),
    ]


def _memory(name: str, what: str, took: float, peaks: Sequence[int]) -> Result:
    """Resident memory of the process that drives, at the end beside a quarter of the way."""
    early, late = peaks[len(peaks) // 4], peaks[-1]
    mib = f"{early >> 20} MiB after a quarter of the points, {late >> 20} at the end"
    return Result(
        name=name,
        what=f"{what}; the driver's memory, {mib}",
        ours=[took],
        values=[late / early],
        unit="x",
        limit=AtMost(bound=1.1),
    )


PLAIN_LOOP = """
import sys
from pathlib import Path
from hwsim.sweep.driver import prepare
from hwsim.sweep.space import load_study

setup = prepare(load_study(Path(sys.argv[1])), "")
evaluation, done = setup.evaluation(), {}
for point in setup.study.points():
    results = {}
    while missing := [(n, t) for n, t in evaluation.plan(point, results).items() if n not in results]:
        for name, task in missing:
            if task.key not in done:
                done[task.key] = evaluation.functions[task.kind](**task.inputs)
            results[name] = done[task.key]
"""
"""the evaluations themselves: every distinct task once, one after the other in one process, nothing written"""

WATCHED = """
import sys
from pathlib import Path
import hwsim.sweep.driver as driver

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

recorded = driver.StoreSink.record
def record(sink, tasks, rows):
    recorded(sink, tasks, rows)
    print("resident", resident(), file=sys.stderr)
driver.StoreSink.record = record
driver.run_sweep(Path(sys.argv[1]), Path(sys.argv[2]), workers=int(sys.argv[3]))
"""


def _study(place: Path, name: str, text: str) -> Path:
    file = place / f"{name}.yaml"
    file.write_text(text)
    return file


def _run(file: Path, out: Path) -> None:
    _python(["-m", "hwsim", "sweep", str(file), "--out", str(out), "--quiet"])


def _timed(file: Path, out: Path, *, workers: int) -> tuple[float, list[int]]:
    """Seconds of a sweep, and the driver's resident bytes whenever it wrote."""
    said: list[str] = []
    took = seconds(lambda: said.append(_python(["-c", WATCHED, str(file), str(out), str(workers)])))
    return took, [int(size) for size in re.findall(r"^resident (\d+)$", said[0], flags=re.MULTILINE)]


def _python(words: Sequence[str | Path]) -> str:
    """What the command writes to standard error; its numbers libraries use one thread, as a worker's do."""
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, **ONE_THREAD},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    confirm(done.returncode == 0, f"sweep: {done.stderr[-500:]}")
    return done.stderr


def _count(store: Path) -> int:
    connection = sqlite3.connect(store)
    try:
        return int(connection.execute("SELECT count(*) FROM points WHERE status = 'done'").fetchone()[0])
    finally:
        connection.close()


def _confirm_same(one: Path, other: Path) -> None:
    confirm(one.read_bytes() == other.read_bytes(), "sweep: results of one and of two workers")
