"""A point again from its store alone: what is computed, what counts as equal, what is refused."""

import contextlib
import io
import json
import os
import shutil
import sqlite3
import sys
from functools import partial
from pathlib import Path

import pytest
import studies
from rich.console import Console

import hwsim.cli
import hwsim.sweep.rerun
from hwsim.report import write_report
from hwsim.sweep.driver import run_sweep
from hwsim.sweep.rerun import Rerun, rerun, verified, write_rerun
from hwsim.sweep.space import load_study
from hwsim.sweep.store import close_store, read_store, study_rows
from hwsim.sweep.tasks import CRASHED, DONE, REFUSED
from hwsim.synth.library import builtin
from models.unit import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of the study as several evaluations leave it, made when first asked for."""
    folder = tmp_path_factory.mktemp("made")
    library = folder / "mine.lib"
    library.write_text(builtin().text)
    (folder / "tiny.yaml").write_text(studies.STUDY)
    known = {}

    def make(evaluation, **more):
        if (evaluation, *more) not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HWSIM_TEST_LOG", str(folder / "log"))
                patch.setattr("hwsim.report.write_report", lambda store, out: out.write_text(str(store)))
                more = {"liberty": library} if more else {}
                out = folder / f"{evaluation}{len(known)}"
                console = Console(file=io.StringIO())
                found = run_sweep(folder / "tiny.yaml", out, reference=f"studies:{evaluation}", console=console, **more)
            known[(evaluation, *more)] = found.folder
        return known[(evaluation, *more)]

    return make


@pytest.fixture
def study(made, tmp_path, monkeypatch):
    """A copy of such a folder."""
    monkeypatch.setenv("HWSIM_TEST_LOG", str(tmp_path / "log"))
    monkeypatch.delenv("HWSIM_TEST_VERSION", raising=False)

    def copy(evaluation="cheap", **more):
        return Path(shutil.copytree(made(evaluation, **more), tmp_path / "study"))

    return copy


def rows_in(folder):
    store = read_store(folder / "store.sqlite")
    try:
        return list(study_rows(store))
    finally:
        close_store(store)


def log(tmp_path):
    return (tmp_path / "log").read_text().splitlines()


def change(folder, sql):
    with contextlib.closing(sqlite3.connect(folder / "store.sqlite")) as store, store:
        store.execute(sql)


# ---- what is computed


def test_all_tasks_are_computed_anew_and_nothing_is_written_to_the_store(study, tmp_path):
    folder = study()
    before = (folder / "store.sqlite").read_bytes()
    row = rows_in(folder)[3]
    found = rerun(folder, row["key"][:12], reference="studies:cheap")
    assert sorted(log(tmp_path)) == ["accuracy 5", "area systolic", "cycles systolic 5"]
    assert (found.equal, found.same_code, found.changed) == (True, True, {})
    assert found.metrics["accuracy"] == (0.8, 0.8)
    assert found.metrics["cycles"] == (8005, 8005)
    assert set(found.metrics) == {"accuracy", "cycles", "area_um2", "area_at_equal_throughput_um2"}
    assert (folder / "store.sqlite").read_bytes() == before
    assert found.again["detail"]["tasks"] == row["detail"]["tasks"]


def test_one_digit_is_a_difference(study):
    folder = study()
    row = rows_in(folder)[0]
    change(folder, f"UPDATE points SET accuracy_fraction = {0.875 + 2**-53} WHERE key = '{row['key']}'")  # noqa: S608
    found = rerun(folder / "store.sqlite", row["label"], reference="studies:cheap")
    assert not found.equal
    assert [name for name, (one, two) in found.metrics.items() if one != two] == ["accuracy"]


def test_other_code_is_told(study, monkeypatch):
    folder = study()
    row = rows_in(folder)[0]
    monkeypatch.setenv("HWSIM_TEST_VERSION", "2")
    found = rerun(folder, row["key"], reference="studies:cheap")
    assert found.equal
    assert not found.same_code
    assert found.again["key"] != row["key"]


def test_versions_that_differ_are_named():
    stored, again = ({"detail": {"versions": names}} for names in ({"numpy": "1", "a": "x"}, {"numpy": "2", "b": "y"}))
    found = Rerun(stored=stored, again=again, entries={}, library=None)
    assert found.changed == {"numpy": ("1", "2"), "a": ("x", ""), "b": ("", "y")}
    assert Rerun(stored=stored, again={"detail": {}}, entries={}, library=None).changed == {}


def test_a_failed_point_fails_again_or_is_mended(study):
    folder = study("faulty")
    refused, crashed = (next(row for row in rows_in(folder) if row["weight_bits"] == bits) for bits in (7, 5))
    found = rerun(folder, refused["key"], reference="studies:faulty")
    assert (found.stored["status"], found.again["status"], found.equal) == (REFUSED, REFUSED, True)
    assert found.again["message"] == "K=7 does not fit at all"
    assert found.metrics == {}
    change(folder, "UPDATE study SET json = '\"studies:cheap\"' WHERE name = 'reference'")
    mended = rerun(folder, crashed["key"], reference="studies:cheap")
    assert (mended.stored["status"], mended.again["status"], mended.equal) == (CRASHED, DONE, False)


def test_another_failure_is_a_difference(study):
    row = rows_in(study("faulty"))[-1]
    again = row | {"status": REFUSED}
    assert row["status"] == CRASHED
    assert Rerun(stored=row, again=row, entries={}, library=None).equal
    assert not Rerun(stored=row, again=again, entries={}, library=None).equal


def test_a_point_that_cannot_be_built_has_no_task(study, tmp_path):
    folder = study("selective")
    row = next(row for row in rows_in(folder) if row["status"] == REFUSED)
    found = rerun(folder, row["key"], reference="studies:selective")
    assert (found.again["status"], found.again["message"]) == (REFUSED, "lutgemm: mu must divide 64")
    assert not (tmp_path / "log").exists()


# ---- which point


def test_a_point_is_found_by_key_or_label(study):
    folder = study()
    rows = rows_in(folder)
    change(folder, f"UPDATE points SET label = 'twice' WHERE key IN ('{rows[0]['key']}', '{rows[1]['key']}')")  # noqa: S608
    with pytest.raises(InputError, match=rf"'twice' is 2 points: {rows[0]['key'][:16]} 'twice', {rows[1]['key'][:16]}"):
        rerun(folder, "twice", reference="studies:cheap")
    with pytest.raises(InputError, match=r"no point 'lutgem W8A8 none': did you mean 'lutgemm W8A8 none'\?"):
        rerun(folder, "lutgem W8A8 none", reference="studies:cheap")
    for wrong in (rows[0]["key"][:3], "", "zz", rows[0]["key"].upper(), "%", "*" * 1000):
        with pytest.raises(InputError, match=r"no point '.*': (give 4 or more characters of a key|did you mean)"):
            rerun(folder, wrong, reference="studies:cheap")


def test_keys_that_begin_alike_are_listed(study):
    folder = study()
    for row, key in zip(rows_in(folder), ("abcd0", "abcd1"), strict=False):
        for table in ("points", "members"):
            change(folder, f"UPDATE {table} SET key = '{key.ljust(64, '0')}' WHERE key = '{row['key']}'")  # noqa: S608
    with pytest.raises(InputError, match=r"'abcd' is 2 points: abcd0{12} 'systolic.*', abcd10{11} .*; give more"):
        rerun(folder, "abcd", reference="studies:cheap")
    assert rerun(folder, "abcd1", reference="studies:cheap").stored["weight_bits"] == 7


# ---- what is refused


def test_a_store_cannot_name_code_to_run(study):
    folder = study()
    with pytest.raises(InputError, match="the study was evaluated by 'studies:cheap', not by 'hwsim"):
        rerun(folder, rows_in(folder)[0]["key"])


def test_a_store_without_a_study_and_none_at_all_are_named(study, tmp_path):
    folder = study()
    key = rows_in(folder)[0]["key"]
    change(folder, "DELETE FROM study")
    with pytest.raises(InputError, match="study: holds no study yet"):
        rerun(folder, key)
    with pytest.raises(InputError, match="nothing: no such file"):
        rerun(tmp_path / "nothing", key)


def test_the_library_must_be_that_of_the_study(study, tmp_path):
    folder = study("cheap", library=True)
    key = rows_in(folder)[0]["key"]
    found = rerun(folder, key, reference="studies:cheap")
    assert found.equal
    write_rerun(found, tmp_path / "again")
    assert (tmp_path / "again/library.lib").read_text() == builtin().text
    assert "$here/library.lib" in (tmp_path / "again/replay.sh").read_text()
    (folder / "library.lib").write_text(builtin().text + "\n")
    with pytest.raises(InputError, match=r"library.lib: is not the library that the study was evaluated with"):
        rerun(folder, key, reference="studies:cheap")
    (folder / "library.lib").unlink()
    with pytest.raises(InputError, match=r"library.lib: no such file"):
        rerun(folder, key, reference="studies:cheap")


# ---- the command


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setattr(hwsim.sweep.rerun, "rerun", partial(rerun, reference="studies:cheap"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["hwsim", "rerun", *map(str, argv)])
        with pytest.raises(SystemExit) as end:
            hwsim.cli.main()
        shown = capsys.readouterr()
        return end.value.code or 0, shown.out, shown.err

    return run


def test_the_command_prints_both_numbers_and_writes_the_inputs(study, command, tmp_path):
    folder = study()
    key = rows_in(folder)[0]["key"]
    status, out, _ = command(folder, key[:8], "--out", tmp_path / "again")
    assert status == 0
    assert out.count("yes") == 5
    (line,) = (line for line in out.splitlines() if "accuracy" in line)
    assert line.split()[1:8:2] == ["accuracy", "0.875", "0.875", "yes"]
    (again,) = load_study(tmp_path / "again/study.yaml").points()
    assert again.params == (("cols", 8), ("dataflow", "WS"), ("rows", 4))
    assert json.loads((tmp_path / "again/point.json").read_text())["key"] == key


def test_the_command_ends_with_1_for_a_difference_and_2_for_bad_input(study, command, monkeypatch):
    folder = study()
    key = rows_in(folder)[0]["key"]
    change(folder, "UPDATE points SET cycles = cycles + 1, label = label || char(27)")
    monkeypatch.setenv("HWSIM_TEST_VERSION", "2")
    status, out, _ = command(folder, key)
    assert status == 1
    assert "code, versions or tools are others" in out
    assert "\x1b" not in out
    status, out, _ = command(folder, key, "--json")
    told = json.loads(out)
    assert (status, told["equal"], told["same_code"], told["key"]) == (1, False, False, key)
    assert told["metrics"]["cycles"] == {"stored": 8009, "again": 8008, "equal": False}
    status, out, err = command(folder, "beef" * 4)
    assert (status, out, len(err.splitlines())) == (2, "", 1)


def test_waves_of_a_verified_point_are_linked_by_the_report(study):
    folder = study()
    (row, *_) = rows_in(folder)
    report = verified(rerun(folder, row["key"], reference="studies:cheap"), folder)
    assert report.passed
    waves = f"points/{row['key'][:16]}/waves.vcd"
    assert (folder / waves).stat().st_size > 1000
    write_report(folder / "store.sqlite", folder / "linked.html")
    assert waves in (folder / "linked.html").read_text()


def test_without_the_cache_synthesis_has_an_empty_one_for_the_time(study, command, monkeypatch):
    folder = study()
    monkeypatch.setenv("HWSIM_CACHE", "mine")
    seen = []

    def look(*given):
        cache = os.environ["HWSIM_CACHE"]
        seen.append((cache, Path(cache).is_dir() and not any(Path(cache).iterdir())))
        return rerun(*given, reference="studies:cheap")

    monkeypatch.setattr(hwsim.sweep.rerun, "rerun", look)
    assert command(folder, rows_in(folder)[0]["key"], "--no-cache")[0] == 0
    ((cache, empty),) = seen
    assert (cache != "mine", empty) == (True, True)
    assert os.environ["HWSIM_CACHE"] == "mine"
    assert not Path(cache).exists()
