"""Sweeps with an evaluation of a few microseconds: what is computed, kept, tried again, and written."""

import csv
import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import hwsim.sweep.driver
from hwsim.metrics import FRONT, METRICS, Direction, metric, pareto
from hwsim.report import write_report
from hwsim.sweep.driver import point_key, run_sweep, sources_hash, versions
from hwsim.sweep.space import Point, load_study
from hwsim.sweep.store import close_store, read_store, study_rows
from hwsim.synth.library import builtin
from models.unit import InputError

STUDY = """\
name: tiny
network: digits-mlp
seed: 1
formats: [W8A8, W7A8, W6A8, W5A8]
transforms: [none, hadamard]
engines:
  - {unit: systolic, set: {rows: 4, cols: 8, dataflow: WS}}
  - {unit: lutgemm}
"""


# ---- evaluations, found by the workers under this module's name


def cheap(point, *, liberty):
    """Numbers that depend on the point alone; one line a call goes to the file that HWSIM_TEST_LOG names."""
    with Path(os.environ["HWSIM_TEST_LOG"]).open("a") as log:
        log.write(f"{point.label}\n")
    size = len(point.label)
    return {
        **{m.name: 1 for m in METRICS.values() if not m.optional},
        "accuracy": 1 - 1 / point.weight_bits,
        "cycles": np.int64(1000 * size),
        "area_um2": 10.0 * size,
        "area_at_equal_throughput_um2": np.float32(point.weight_bits * size),
        "ops": [{"kind": "add", "count": np.int64(3)}],
        "liberty": str(liberty),
        "accuracy_std": None,
    }


def unfinished(point, *, liberty):
    """A result without one of the metrics, or with an answer of its own before ours."""
    if point.weight_bits == 8:
        return cheap(point, liberty=liberty) | {"energy_pj": None}
    os.write(int(sys.argv[1]), b"12\n" if point.weight_bits == 7 else b"\xff{no outcome\n" * 100)
    return cheap(point, liberty=liberty)


def shadowed(point, *, liberty):
    import colorsys  # of the standard library, and nothing else imports it

    return cheap(point, liberty=liberty) | {"home": colorsys.__file__, "path": sys.path}


def slow(point, *, liberty):
    time.sleep(0.2)
    return cheap(point, liberty=liberty)


def stuck(point, *, liberty):  # noqa: ARG001 - an evaluation's signature
    Path(os.environ["HWSIM_TEST_LOG"]).write_text(str(os.getpid()))
    time.sleep(60)


def faulty(point, *, liberty):
    """Every way to fail, by the weight bits."""
    print("noise" * 1000)
    os.write(1, b"more noise\n")
    match point.weight_bits:
        case 8:
            return cheap(point, liberty=liberty)
        case 7:
            raise InputError("K=7 does not fit\nat all")
        case 6:
            return {"accuracy": float("nan")}
        case _:
            os.kill(os.getpid(), signal.SIGKILL)


def odd(point, *, liberty):  # noqa: ARG001 - an evaluation's signature
    """Results that are no results."""
    match point.weight_bits:
        case 8:
            return {"acuracy": 0.5}
        case 7:
            return {"cycles": 1.5}
        case 6:
            sys.stderr.write("out of patience\n")
            sys.stderr.flush()
            os._exit(3)
        case _:
            return 1 / 0


def anything(point):
    """A check that admits every point."""


def no_lutgemm(point):
    if point.unit == "lutgemm":
        raise InputError("lutgemm: mu must divide 64")


# ---- helpers


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reports have their own tests; and a source file edited during a test must not make points new."""
    monkeypatch.setattr(hwsim.sweep.driver, "write_report", lambda store, out: out.write_text(str(store)))
    monkeypatch.setattr(hwsim.sweep.driver, "sources_hash", lambda: "fixed")


@pytest.fixture
def report(quick, monkeypatch):  # noqa: ARG001 - after it
    monkeypatch.setattr(hwsim.sweep.driver, "write_report", write_report)


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HWSIM_TEST_LOG", str(tmp_path / "log"))
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def sweep(study_file, tmp_path):
    def run(evaluate=cheap, *, out="results", workers=2, check=anything, liberty=None):
        console = Console(file=io.StringIO(), width=200)
        result = run_sweep(
            study_file,
            tmp_path / out,
            workers=workers,
            evaluate=evaluate,
            check=check,
            liberty=liberty,
            console=console,
        )
        return result, console.file.getvalue()

    return run


def evaluations(tmp_path):
    log = tmp_path / "log"
    return log.read_text().splitlines() if log.exists() else []


def child(study_file, out, function):
    """A sweep in a process of its own, which ends with 130 when interrupted."""
    code = (
        "import sys; from pathlib import Path; import hwsim.sweep.driver; import test_sweep as t\n"
        "hwsim.sweep.driver.sources_hash = lambda: 'fixed'\n"
        "try: hwsim.sweep.driver.run_sweep(Path(sys.argv[1]), Path(sys.argv[2]), workers=2,"
        " evaluate=getattr(t, sys.argv[3]), check=t.anything)\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, study_file, out, function],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not happen within 30 s"
        time.sleep(0.01)


def rows_in(path):
    store = read_store(path)
    try:
        return study_rows(store)
    finally:
        close_store(store)


# ---- what a sweep does


def test_a_sweep_evaluates_each_point_once_and_writes_all(sweep, study_file, tmp_path):
    result, printed = sweep()
    labels = [p.label for p in load_study(study_file).points()]
    assert sorted(evaluations(tmp_path)) == sorted(labels)
    assert [row["label"] for row in result.rows] == labels
    assert (result.computed, result.failed) == (16, 0)
    first = result.rows[0]
    assert (first["accuracy"], first["cycles"], first["energy_pj"]) == (0.875, 25000, 1.0)
    assert first["detail"]["ops"] == [{"kind": "add", "count": 3}]
    assert first["wall_s"] >= 0
    assert first["peak_memory_bytes"] > 1_000_000
    files = {path.name for path in result.folder.iterdir()}
    assert files == {"store.sqlite", "points.csv", "report.html", "config.resolved.json", ".lock"}
    resolved = json.loads((result.folder / "config.resolved.json").read_text())
    assert [point["label"] for point in resolved["points"]] == labels
    assert resolved["study"]["engines"][1] == {"unit": "lutgemm", "set": {}}
    assert printed.rindex("Pareto front") > printed.rindex("All points")
    assert "[16/16]" in printed


def test_finished_points_are_not_computed_again(sweep, study_file, tmp_path):
    sweep()
    result, printed = sweep()
    assert len(evaluations(tmp_path)) == 16
    assert result.computed == 0
    assert "16 of 16 points are in the store already" in printed
    study_file.write_text(STUDY.replace("W5A8", "W5A8, W4A8"))
    result, _ = sweep()
    assert len(evaluations(tmp_path)) == result.computed + 16 == 20
    assert len(result.rows) == 20


@pytest.mark.usefixtures("report")
def test_outputs_do_not_depend_on_workers_or_history(sweep, study_file):
    one, _ = sweep(out="one", workers=1)
    study_file.write_text(STUDY.replace("W8A8, W7A8, ", ""))
    sweep(out="two", workers=3)
    study_file.write_text(STUDY)
    two, _ = sweep(out="two", workers=3)
    for name in ("points.csv", "report.html", "config.resolved.json"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()


def test_a_failing_point_costs_itself_alone(sweep):
    result, printed = sweep(faulty)
    assert (result.computed, result.failed) == (16, 12)
    by_bits = {bits: {row["message"] for row in result.rows if row["weight_bits"] == bits} for bits in (8, 7, 6, 5)}
    assert by_bits[8] == {""}
    assert by_bits[7] == {"K=7 does not fit at all"}
    assert by_bits[6] == {"ValueError: metric accuracy is nan, not a finite float"}
    (death,) = by_bits[5]
    assert death.startswith("worker ended by signal SIGKILL; out of memory?")
    failed = [row for row in result.rows if row["status"] == "failed"]
    assert all(row[name] is None for row in failed for name in METRICS)
    assert "failed: systolic 4x8 WS W7A8 none: K=7 does not fit at all" in printed
    last = printed.strip().splitlines()[-1]
    assert last == "12 of 16 points failed; the first, systolic 4x8 WS W7A8 none: K=7 does not fit at all"
    table = list(csv.DictReader(io.StringIO((result.folder / "points.csv").read_text())))
    assert [row["accuracy_fraction"] for row in table if row["status"] == "failed"] == [""] * 12


def test_what_is_no_result_is_a_failure(sweep):
    result, _ = sweep(odd)
    messages = {row["weight_bits"]: row["message"] for row in result.rows}
    assert messages == {
        8: "ValueError: 'acuracy' is no metric of the registry",
        7: "ValueError: metric cycles is 1.5, not a finite int",
        6: "worker ended by exit code 3: out of patience",
        5: "ZeroDivisionError: division by zero",
    }
    assert "1 / 0" in result.rows[3]["detail"]["traceback"]
    assert result.front == []


def test_an_answer_that_is_no_outcome_costs_its_point(sweep):
    result, _ = sweep(unfinished)
    messages = {row["weight_bits"]: row["message"] for row in result.rows}
    assert messages[8] == "ValueError: metric energy_pj is missing"
    assert messages[7].startswith("worker answered what is no outcome: b'12")
    assert messages[6].startswith("worker answered what is no outcome: b'\\xff{no outcome")
    assert len(messages[6]) < 400
    assert result.failed == 16


def test_failed_points_are_tried_again(sweep):
    sweep(odd)
    result, printed = sweep(odd)
    assert result.computed == 16
    assert "already" not in printed


def test_every_point_is_checked_before_anything_runs(sweep, tmp_path):
    with pytest.raises(InputError, match=r"tiny\.yaml: point 'lutgemm W8A8 none': lutgemm: mu must divide 64"):
        sweep(check=no_lutgemm)
    assert evaluations(tmp_path) == []
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("workers", [0, 1025])
def test_worker_count_is_checked(sweep, workers):
    with pytest.raises(InputError, match="workers"):
        sweep(workers=workers)


# ---- being ended


def test_killed_at_any_moment_nothing_is_lost_or_done_twice(study_file, sweep, tmp_path):
    out = tmp_path / "results"
    process = child(study_file, out, "slow")
    wait_until(lambda: len(evaluations(tmp_path)) >= 5)
    process.kill()
    process.communicate()
    time.sleep(0.5)  # longer than an evaluation: an orphan would write its line within it
    kept = [row["label"] for row in rows_in(out / "tiny" / "store.sqlite")]
    before = evaluations(tmp_path)
    # each of the two workers may have finished a point that the parent did not live to save
    assert len(before) - 2 <= len(kept) < 16
    result, _ = sweep(slow)
    again = evaluations(tmp_path)[len(before) :]
    assert sorted(again + kept) == sorted(row["label"] for row in result.rows)
    assert result.failed == 0


def test_workers_end_with_their_parent(study_file, tmp_path):
    process = child(study_file, tmp_path / "results", "stuck")
    log = tmp_path / "log"
    wait_until(lambda: log.exists() and log.read_text())
    worker = int(log.read_text())
    assert os.path.exists(f"/proc/{worker}")  # noqa: PTH110 - the negative control of the next line
    process.kill()
    process.communicate()
    wait_until(lambda: not alive(worker))


def alive(pid):
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_interrupt_keeps_what_is_finished(study_file, sweep, tmp_path):
    process = child(study_file, tmp_path / "results", "slow")
    wait_until(lambda: len(evaluations(tmp_path)) >= 4)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == ""
    assert "points are kept; the same command goes on from there" in printed
    kept = len(rows_in(tmp_path / "results" / "tiny" / "store.sqlite"))
    assert 0 < kept < 16
    assert sweep(slow)[0].computed == 16 - kept


def test_two_sweeps_do_not_share_a_folder(sweep, tmp_path):
    folder = tmp_path / "results" / "tiny"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another sweep is running there"):
            sweep()
    assert sweep()[0].computed == 16


def test_a_folder_that_leads_elsewhere_is_refused(sweep, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "results" / "tiny").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="tiny: is a link; remove it"):
        sweep()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/tiny: Not a directory; name another place"):
        sweep(out="file")
    with pytest.raises(InputError, match="File name too long; name another place"):
        sweep(out="x" * 300)


def test_a_lock_that_cannot_be_made_is_named(sweep, tmp_path):
    (tmp_path / "results" / "tiny" / ".lock").mkdir(parents=True)
    with pytest.raises(InputError, match=r"\.lock: Is a directory$"):
        sweep()


# ---- identity


def test_the_key_holds_all_that_a_result_depends_on(study_file):
    point = load_study(study_file).points()[0]
    made_of = versions(cheap, None)
    key = point_key(point, made_of)
    assert key == point_key(Point.from_dict(point.as_dict()), versions(cheap, None))
    assert len(key) == 64
    others = [versions(cheap, "a"), versions(slow, None), made_of | {"numpy": "0"}, made_of | {"sources": "x"}]
    keys = {key, point_key(point, versions(cheap, "b")), *(point_key(point, other) for other in others)}
    keys |= {point_key(p, made_of) for p in load_study(study_file).points()[1:]}
    assert len(keys) == 6 + 15


def test_the_sources_are_part_of_the_key(tmp_path, monkeypatch):
    """`sources_hash` here is the function itself, imported before it was replaced."""
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(hwsim.sweep.driver, "PACKAGES", ("pack",))
    seen = [sources_hash(), sources_hash()]
    (package / "__init__.py").write_text("x = 2\n")
    seen.append(sources_hash())
    (package / "other.py").write_text("")
    seen.append(sources_hash())
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


def test_a_library_that_is_missing_is_named(sweep, tmp_path):
    with pytest.raises(InputError, match=r"none\.lib: no such file"):
        sweep(liberty=tmp_path / "none.lib")


def test_the_library_reaches_the_evaluation_as_a_copy_of_what_was_checked(sweep, tmp_path):
    library = tmp_path / "a.lib"
    library.write_text(builtin().text)
    result, _ = sweep(liberty=library)
    copy = tmp_path / "results" / "tiny" / "library.lib"
    assert result.rows[0]["detail"]["liberty"] == str(copy)
    assert copy.read_text() == library.read_text()
    assert sweep(liberty=copy)[0].computed == 0
    assert sweep()[0].computed == 16


@pytest.mark.parametrize("content", [None, "library (a) {}", "not Liberty", "folder"])
def test_a_bad_library_is_refused_before_anything_is_written(sweep, tmp_path, content):
    good, _ = sweep()
    before = {path.name: path.read_bytes() for path in good.folder.iterdir()}
    library = tmp_path / "bad.lib"
    if content == "folder":
        library.mkdir()
    elif content:
        library.write_text(content)
    with pytest.raises(InputError, match=r"bad\.lib"):
        sweep(liberty=library)
    assert {path.name: path.read_bytes() for path in good.folder.iterdir()} == before
    assert len(evaluations(tmp_path)) == 16


# ---- the machine


@pytest.mark.parametrize(
    "absent, own, message",
    [
        (["pyosys"], False, r"needs pyosys, not installed here; pip install 'hwsim\[rtl\]'$"),
        (["sklearn", "amaranth", "altair"], False, r"amaranth, sklearn, altair, .* 'hwsim\[data,report,rtl\]'$"),
        (["vl_convert"], True, r"needs vl_convert, .* 'hwsim\[report\]'$"),
    ],
)
def test_what_is_not_installed_is_named_at_once(study_file, tmp_path, monkeypatch, absent, own, message):
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=message):
        run_sweep(study_file, tmp_path / "out", evaluate=cheap if own else None)
    assert not (tmp_path / "out").exists()


def test_an_evaluation_of_ones_own_needs_none_of_ours(sweep, monkeypatch):
    for name in ("pyosys", "amaranth", "sklearn"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("HWSIM_CACHE", "/dev/null")
    assert sweep()[0].failed == 0


def test_a_cache_that_cannot_be_written_is_named_at_once(study_file, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HWSIM_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="file/synth: Not a directory; set HWSIM_CACHE to a folder that can be"):
        run_sweep(study_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_modules_in_the_current_folder_hide_none_of_the_workers(sweep, tmp_path, monkeypatch):
    for name in ("queue", "random", "colorsys"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('hidden')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    result, _ = sweep(shadowed)
    assert result.failed == 0, result.rows[0]["message"]
    assert not result.rows[0]["detail"]["home"].startswith(str(tmp_path))
    assert result.rows[0]["detail"]["path"][-1] == str(tmp_path)


def test_what_the_system_refuses_on_the_way_is_one_line(sweep, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", full)
    with pytest.raises(InputError, match="Too many open files; no further worker can be started; use fewer"):
        sweep()


def test_a_name_that_is_no_utf8_reaches_the_report(study_file, tmp_path):
    theirs = study_file.with_name(os.fsdecode(b"caf\xe9.yaml"))
    study_file.rename(theirs)
    console = Console(file=io.StringIO())
    run_sweep(theirs, tmp_path / "results", workers=1, evaluate=cheap, check=anything, console=console)
    write_report(tmp_path / "results" / "tiny" / "store.sqlite", tmp_path / "report.html")
    assert "caf\ufffd.yaml" in (tmp_path / "report.html").read_text()


def test_tables_are_printed_before_the_report_is_written(study_file, tmp_path, monkeypatch):
    def fail(_store, out):
        raise InputError(f"{out}: no")

    monkeypatch.setattr(hwsim.sweep.driver, "write_report", fail)
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(InputError, match=r"no$"):
        run_sweep(study_file, tmp_path / "r", evaluate=cheap, check=anything, console=console)
    assert "Pareto front" in console.file.getvalue()


# ---- the front


def dominates(a, b, names):
    signs = [1 if metric(name).direction is Direction.MAX else -1 for name in names]
    gains = [sign * (a[name] - b[name]) for sign, name in zip(signs, names, strict=True)]
    return min(gains) >= 0 and max(gains) > 0


@pytest.mark.parametrize("names", [FRONT, ("accuracy", "cycles", "area_um2"), ("cycles",)])
def test_front_is_what_no_point_dominates(names):
    rng = np.random.default_rng(5)
    for size in (0, 1, 2, 40, 200):
        # few distinct values: many ties, and points equal in all metrics
        points = [
            {name: int(value) for name, value in zip(names, row, strict=True)}
            for row in rng.integers(0, 9, (size, len(names)))
        ]
        expected = [i for i, b in enumerate(points) if not any(dominates(a, b, names) for a in points)]
        assert pareto(points, names) == expected


def test_front_leaves_out_points_without_the_metrics():
    points = [{"accuracy": 0.5, "cycles": None}, {"accuracy": 0.4, "cycles": 9}, {"cycles": 1}]
    assert pareto(points, ("accuracy", "cycles")) == [1]


def test_front_needs_metrics_with_a_direction():
    with pytest.raises(InputError, match="'macs' has no direction"):
        pareto([], ("macs",))
    with pytest.raises(InputError, match="no metric 'acuracy'; did you mean 'accuracy'"):
        pareto([], ("acuracy",))


def test_every_column_of_the_registry_names_its_unit():
    endings = (
        "_fraction",
        "_um2",
        "_pj",
        "_ns",
        "_us",
        "_mhz",
        "_gmacs",
        "cycles",
        "_equivalents",
        "bits_per_weight",
        "macs",
        *("perplexity", "bits_per_byte", "cosine", "spearman"),
    )
    assert all(m.column.endswith(endings) for m in METRICS.values())
    assert len({m.column for m in METRICS.values()}) == len(METRICS)
