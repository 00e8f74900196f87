"""A study from file to results, and through everything that can happen to it on the way."""

import csv
import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import studies
from rich.console import Console

import hwsim.sweep.driver
from hwsim.sweep.driver import run_sweep
from hwsim.sweep.export import read_csv
from hwsim.sweep.rows import COLUMNS
from hwsim.sweep.space import Study, load_study
from hwsim.sweep.store import close_store, read_store, read_study, study_rows
from hwsim.sweep.tasks import CRASHED, DONE, ERROR, MEMORY, REFUSED, TIMEOUT
from hwsim.synth.library import builtin
from models.unit import InputError, require

WITHOUT = {"wall_s", "peak_memory_bytes", "created", "revision"}
"""fields that differ from run to run"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reports have their own tests."""
    monkeypatch.setattr("hwsim.report.write_report", lambda store, out: out.write_text(str(store)))


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HWSIM_TEST_LOG", str(tmp_path / "log"))
    path = tmp_path / "tiny.yaml"
    path.write_text(studies.STUDY)
    return path


@pytest.fixture
def sweep(study_file, tmp_path):
    def run(evaluation="cheap", *, out="results", workers=2, **more):
        console = Console(file=io.StringIO(), width=200)
        reference = f"studies:{evaluation}"
        result = run_sweep(study_file, tmp_path / out, workers=workers, reference=reference, console=console, **more)
        return result, console.file.getvalue()

    return run


def log(tmp_path):
    path = tmp_path / "log"
    return path.read_text().splitlines() if path.exists() else []


def rows_in(folder):
    store = read_store(folder / "store.sqlite")
    try:
        return list(study_rows(store))
    finally:
        close_store(store)


def told(folder):
    """What the rows say, without what differs from run to run."""
    return [{name: value for name, value in row.items() if name not in WITHOUT} for row in rows_in(folder)]


def child(study_file, out, evaluation, **environment):
    """A sweep in a process of its own, which ends with 130 when interrupted, with 2 for bad input."""
    code = (
        "import sys; from pathlib import Path; import hwsim.report; from hwsim.sweep.driver import run_sweep\n"
        "from models.unit import InputError\n"
        "hwsim.report.write_report = lambda store, out: out.write_text('')\n"
        "try: run_sweep(Path(sys.argv[1]), Path(sys.argv[2]), workers=2, reference=sys.argv[3])\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
        "except InputError as error: sys.exit(print(error, file=sys.stderr) or 2)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, study_file, out, f"studies:{evaluation}"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen within 60 s"
        time.sleep(0.01)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- what is computed


def test_points_share_tasks_and_every_task_is_computed_once(sweep, tmp_path):
    result, shown = sweep()
    assert (result.points, result.computed, result.failed) == (studies.POINTS, studies.POINTS, 0)
    lines = log(tmp_path)
    assert len(lines) == len(set(lines)) == studies.TASKS
    rows = rows_in(result.folder)
    assert [row["label"] for row in rows][:2] == ["systolic 4x8 WS W8A8 none", "systolic 4x8 WS W7A8 none"]
    for row in rows:
        assert row["status"] == DONE
        assert row["accuracy"] == 1 - 1 / row["weight_bits"]
        assert row["cycles"] == 1000 * len(row["unit"]) + row["weight_bits"]
        assert row["area_um2"] == 10.0 * len(row["unit"])
        assert row["detail"]["ops"] == {"add": 3.0}
        assert set(row["detail"]["tasks"]) == {"accuracy", "cycles", f"area {row['unit']}"}
    assert {row["engine"] for row in result.front} == {"lutgemm"}
    assert "16 points, 0 failed" in shown


def test_a_second_run_computes_and_writes_nothing(sweep, tmp_path):
    first, _ = sweep()
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir() if path.name != ".lock"}
    count = len(log(tmp_path))
    again, shown = sweep()
    assert (again.points, again.computed) == (studies.POINTS, 0)
    assert len(log(tmp_path)) == count
    assert {path: path.stat().st_mtime_ns for path in before if path.suffix != ".sqlite"} == {
        path: stamp for path, stamp in before.items() if path.suffix != ".sqlite"
    }
    assert "Pareto front" in shown
    (first.folder / "points.csv").unlink()
    sweep()
    assert (first.folder / "points.csv").exists()
    assert len(log(tmp_path)) == count


def test_outputs_that_could_not_be_written_are_written_by_the_next_run(sweep, study_file, monkeypatch):
    first, _ = sweep()
    study_file.write_text(studies.STUDY.replace("W5A8]", "W5A8, W4A8]"))
    with monkeypatch.context() as patch:
        patch.setattr("hwsim.sweep.outputs.write", lambda _store, _folder: require(False, "no space"))
        with pytest.raises(InputError, match="no space"):
            sweep()
    again, _ = sweep()
    assert again.computed == 0
    assert (first.folder / "points.csv").read_text().count("\n") == 1 + again.points == 21


def test_results_do_not_depend_on_the_number_of_workers(sweep):
    one, _ = sweep(out="one", workers=1)
    many, _ = sweep(out="many", workers=3)
    assert told(one.folder) == told(many.folder)
    for name in ("points.csv", "config.resolved.json"):
        assert (one.folder / name).read_bytes() == (many.folder / name).read_bytes()


def test_the_csv_holds_the_rows(sweep):
    result, _ = sweep()
    with (result.folder / "points.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    rows = rows_in(result.folder)
    assert [line["key"] for line in listed] == [row["key"] for row in rows]
    assert [float(line["area_um2"]) for line in listed] == [row["area_um2"] for row in rows]
    assert {line["set_rows"] for line in listed} == {"4", ""}
    assert len(list(read_csv(result.folder / "points.csv"))) == len(rows)


def test_a_study_that_grows_computes_what_is_new(sweep, study_file, tmp_path):
    sweep()
    study_file.write_text(studies.STUDY.replace("[W8A8, W7A8, W6A8, W5A8]", "[W4A8, W8A8]"))
    result, shown = sweep()
    assert (result.points, result.computed) == (8, 4)
    assert "4 of 8 points are in the store already" in shown
    assert log(tmp_path)[studies.TASKS :].count("accuracy 4") == 1
    assert len(log(tmp_path)) == studies.TASKS + 3
    assert {row["format"] for row in rows_in(result.folder)} == {"W4A8", "W8A8"}


def test_a_new_version_makes_new_points_of_old_tasks(sweep, tmp_path, monkeypatch):
    first, _ = sweep()
    before = {row["key"] for row in rows_in(first.folder)}
    monkeypatch.setenv("HWSIM_TEST_VERSION", "2")
    again, _ = sweep()
    assert again.computed == studies.POINTS
    assert len(log(tmp_path)) == studies.TASKS
    assert not before & {row["key"] for row in rows_in(again.folder)}


# ---- failures


def test_failures_are_rows_with_their_reason_and_are_tried_again(sweep):
    result, shown = sweep("faulty")
    assert (result.points, result.failed) == (16, 12)
    by_bits = {row["weight_bits"]: row for row in rows_in(result.folder)}
    assert [by_bits[bits]["status"] for bits in (8, 7, 6, 5)] == [DONE, REFUSED, ERROR, CRASHED]
    assert by_bits[7]["message"] == "K=7 does not fit at all"
    assert by_bits[6]["message"] == "ZeroDivisionError: division by zero"
    assert "in bad" in by_bits[6]["detail"]["traceback"]
    assert "SIGKILL" in by_bits[5]["message"]
    for bits in (7, 6, 5):
        assert all(by_bits[bits][column.field] is None for column in COLUMNS if column.field in ("accuracy", "cycles"))
    assert "12 points failed (4 refused, 4 error, 4 crashed)" in shown.replace(
        "4 crashed, 4 error", "4 error, 4 crashed"
    )
    kept, _ = sweep(retry=False)
    assert (kept.computed, kept.failed) == (0, 12)
    mended, _ = sweep()
    assert (mended.computed, mended.failed) == (12, 0)


def test_a_task_without_end_without_measure_or_with_children_costs_only_its_points(sweep, study_file, tmp_path):
    study_file.write_text(f"{studies.STUDY}limits: {{time_s: 1, memory_mib: 256}}\n")
    result, _ = sweep("hungry")
    by_bits = {row["weight_bits"]: row for row in rows_in(result.folder)}
    assert [by_bits[bits]["status"] for bits in (8, 7, 6, 5)] == [DONE, DONE, TIMEOUT, MEMORY]
    assert "1 s" in by_bits[6]["message"]
    (left,) = [int(line.split()[1]) for line in log(tmp_path) if line.startswith("child")]
    wait_until(lambda: not is_alive(left))


def test_a_corner_that_cannot_be_built_is_refused_and_a_unit_that_cannot_is_a_mistake(sweep, tmp_path, monkeypatch):
    result, _ = sweep("selective")
    refused = [row for row in rows_in(result.folder) if row["status"] == REFUSED]
    assert [(row["unit"], row["weight_bits"]) for row in refused] == [("lutgemm", 5)] * 2
    assert {row["message"] for row in refused} == {"lutgemm: mu must divide 64"}
    monkeypatch.setenv("HWSIM_TEST_REFUSE", "1")
    with pytest.raises(InputError, match=r"tiny: point 'lutgemm W8A8 none': lutgemm: mu must divide 64"):
        sweep("selective", out="other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("workers", [0, -1, 10**6])
def test_workers_out_of_range_are_refused(sweep, workers):
    with pytest.raises(InputError, match="outside 1 to 1024"):
        sweep(workers=workers)


# ---- survival


def test_an_interrupt_keeps_what_is_finished_and_the_same_command_goes_on(study_file, sweep, tmp_path):
    process = child(study_file, tmp_path / "results", "slow")
    wait_until(lambda: len(log(tmp_path)) > 3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "points are kept; the same command goes on from there" in out
    result, _ = sweep()
    assert result.points == studies.POINTS
    lines = log(tmp_path)
    assert len(set(lines)) == studies.TASKS
    # only what was at work when it was interrupted is computed again
    assert len(lines) <= studies.TASKS + 4


def test_killed_at_any_moment_nothing_finished_is_lost_or_counted_twice(study_file, sweep, tmp_path):
    """kill -9 of the driver, again and again; its workers end with it."""
    clean, _ = sweep(out="clean")
    (tmp_path / "log").unlink()
    finished = 0
    for further in (1, 2, 3):
        process, seen = child(study_file, tmp_path / "results", "slow"), len(log(tmp_path))
        wait_until(lambda: len(log(tmp_path)) >= seen + further)  # noqa: B023 - at once
        started = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        workers = [pid for pid in started if parent(pid) == process.pid]
        process.kill()
        process.communicate()
        wait_until(lambda: not any(map(is_alive, workers)))  # noqa: B023 - at once
        now = len(rows_in(tmp_path / "results/tiny"))
        assert now >= finished
        finished = now
    assert finished < studies.POINTS
    sweep()
    assert told(tmp_path / "results/tiny") == told(clean.folder)


def parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def test_a_second_sweep_of_the_same_store_is_refused_and_the_first_goes_on(study_file, sweep, tmp_path):
    process = child(study_file, tmp_path / "results", "slow")
    wait_until(lambda: len(log(tmp_path)) > 1)
    with pytest.raises(InputError, match="another sweep is running there"):
        sweep()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert len(rows_in(tmp_path / "results/tiny")) == studies.POINTS


def test_a_full_disk_ends_the_sweep_with_a_remedy_and_loses_nothing(sweep, tmp_path, monkeypatch):
    """The store's own limit of size stands for the disk's."""
    original = hwsim.sweep.driver.StoreSink.record
    calls = []

    def full(sink, tasks, rows):
        calls.append(len(rows))
        if len(calls) > 1:
            sink.store.execute(f"PRAGMA max_page_count = {sink.store.execute('PRAGMA page_count').fetchone()[0]}")
            rows = [row | {"detail": {**row["detail"], "much": "x" * 100_000}} for row in rows]
            tasks = [task | {"result": {**task["result"], "much": "x" * 100_000}} for task in tasks]
        return original(sink, tasks, rows)

    monkeypatch.setattr(hwsim.sweep.driver.StoreSink, "record", full)
    with pytest.raises(InputError, match=r"store.sqlite: no space left \(.*\); make room and run the sweep again"):
        sweep("slow")
    monkeypatch.undo()
    monkeypatch.setenv("HWSIM_TEST_LOG", str(tmp_path / "log"))
    monkeypatch.setattr("hwsim.report.write_report", lambda store, out: out.write_text(str(store)))
    result, _ = sweep()
    assert (result.points, result.failed) == (studies.POINTS, 0)


def test_files_that_may_not_grow_are_a_message(study_file, tmp_path):
    def small():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    code = (
        "import sys; from pathlib import Path; from hwsim.sweep.driver import run_sweep\n"
        "from models.unit import InputError\n"
        "try: run_sweep(Path(sys.argv[1]), Path(sys.argv[2]), workers=1, reference='studies:cheap')\n"
        "except InputError as error: sys.exit(print(error, file=sys.stderr) or 2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, study_file, tmp_path / "results"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        preexec_fn=small,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "results") in done.stderr


# ---- shards


def test_shards_are_taken_in_and_make_the_same_results(sweep, tmp_path):
    whole, _ = sweep(out="whole")
    (tmp_path / "log").unlink()
    for index in (1, 2, 3):
        part, shown = sweep(shard=(index, 3))
        assert part.points in (5, 6)
        assert f"{index}-of-3.jsonl" in shown
    again, _ = sweep(shard=(2, 3))
    assert again.computed == 0
    count = len(log(tmp_path))
    merged, shown = sweep()
    assert (merged.points, merged.computed, merged.failed) == (studies.POINTS, 0, 0)
    assert "16 points taken from 3 shards" in shown
    assert len(log(tmp_path)) == count
    assert told(merged.folder) == told(whole.folder)
    assert (merged.folder / "points.csv").read_bytes() == (whole.folder / "points.csv").read_bytes()
    _, shown = sweep()
    assert "taken from" not in shown


def test_a_search_that_learns_has_no_shards(sweep, study_file):
    study_file.write_text(f"{studies.STUDY}search: {{method: nsga2, points: 4, objectives: [accuracy, cycles]}}\n")
    with pytest.raises(InputError, match="--shard: a search that learns"):
        sweep(shard=(1, 2))


# ---- guided search


def test_a_guided_search_goes_on_where_it_was(sweep, study_file, tmp_path):
    def search(points):
        text = f"search: {{method: nsga2, points: {points}, seed: 3, objectives: [accuracy, cycles]}}\n"
        study_file.write_text(studies.STUDY + text)

    search(6)
    first, _ = sweep()
    before = [row["key"] for row in rows_in(first.folder)]
    search(10)
    second, shown = sweep()
    after = [row["key"] for row in rows_in(second.folder)]
    assert (first.points, first.computed) == (6, 6)
    assert (second.points, second.computed) == (10, 4)
    assert after[:6] == before
    assert len(set(after)) == 10
    assert "6 of 10 points are in the store already" in shown
    store = read_store(second.folder / "store.sqlite")
    progress = read_study(store)["progress"]
    close_store(store)
    assert progress[-1][0] == 10
    assert [volume for _, volume in progress] == sorted(volume for _, volume in progress)
    assert len(set(log(tmp_path))) == len(log(tmp_path))


def test_a_guided_study_consists_of_its_own_points_alone(sweep, study_file, monkeypatch):
    """Neither those of the list that was in the store before, nor those of an earlier version."""
    sweep()
    text = "search: {method: nsga2, points: 5, seed: 3, objectives: [accuracy, cycles]}\n"
    study_file.write_text(studies.STUDY.replace("W5A8]", "W5A8, W3A8]") + text)
    monkeypatch.setenv("HWSIM_TEST_VERSION", "2")
    found, _ = sweep()
    keys = {row["key"] for row in rows_in(found.folder)}
    assert (found.points, found.computed, len(keys)) == (5, 5, 5)
    monkeypatch.setenv("HWSIM_TEST_VERSION", "3")
    again, _ = sweep()
    assert (again.points, again.computed) == (5, 5)
    assert not keys & {row["key"] for row in rows_in(again.folder)}


def test_failed_points_of_a_guided_search_stand_where_they_are_not_tried_again(sweep, study_file):
    text = "search: {method: nsga2, points: 8, seed: 3, objectives: [accuracy, cycles]}\n"
    study_file.write_text(studies.STUDY + text)
    first, _ = sweep("faulty")
    assert 0 < first.failed < first.points == 8
    before = [row["key"] for row in rows_in(first.folder)]
    again, _ = sweep("faulty", retry=False)
    assert (again.points, again.computed, again.failed) == (8, 0, first.failed)
    assert [row["key"] for row in rows_in(first.folder)] == before


# ---- folder and library


def test_a_study_is_read_back_from_its_store(sweep, study_file):
    """The order of an engine's settings has a meaning: a condition names earlier ones."""
    engine = "{unit: systolic, set: {rows: 4, dataflow: [WS, OS], buffers: {values: [1, 2], when: dataflow == 'WS'}}}"
    study_file.write_text(studies.STUDY.partition("engines:")[0] + f"engines: [{engine}]\n")
    result, _ = sweep()
    store = read_store(result.folder / "store.sqlite")
    study = Study.from_dict(read_study(store)["study"])
    close_store(store)
    assert [p.label for p in study.points()] == [p.label for p in load_study(study_file).points()]
    assert study.count() == result.points == 3 * 8


def test_the_library_is_copied_and_its_text_is_part_of_the_versions(sweep, tmp_path):
    library = tmp_path / "mine.lib"
    library.write_text(builtin().text)
    result, _ = sweep(liberty=library)
    assert (result.folder / "library.lib").read_text() == builtin().text
    config = json.loads((result.folder / "config.resolved.json").read_text())
    assert config["versions"]["liberty"].startswith("sha256:")
    assert "--liberty" in config["command"]


def test_a_library_that_is_none_is_refused_before_anything_is_written(sweep, tmp_path):
    bad = tmp_path / "bad.lib"
    bad.write_text("no library")
    with pytest.raises(InputError, match=r"bad\.lib"):
        sweep(liberty=bad)
    assert not (tmp_path / "results").exists()


def test_a_folder_that_is_a_link_is_refused(sweep, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/tiny").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"is a link; remove it or name the study otherwise"):
        sweep()


def test_a_place_that_cannot_be_written_is_named(sweep, monkeypatch):
    def refuse(self, *_args, **_more):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"tiny: Permission denied; name another place for the results"):
        sweep()


def test_sources_that_hide_modules_of_the_workers_are_not_imported(sweep, tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    result, _ = sweep()
    assert result.failed == 0
