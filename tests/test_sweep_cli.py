"""Options that would say nothing, or not the truth, are refused in one line before anything is done."""

import json
import shutil
import sys

import pytest

import hwsim.cli
from hwsim.sweep.sink import StoreSink
from hwsim.sweep.store import close_store, open_store
from models.unit import InputError

STUDY = """
name: tiny
network: digits-mlp
seed: 1
formats: [W4A4]
transforms: [none]
evaluate: [cycles]
engines:
  - {unit: lutgemm, name: "%s", set: %s}
"""


@pytest.fixture
def hwsim_in(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder with `tiny.yaml` and an empty `store.sqlite`; exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(STUDY % ("a", "{rows: 2, cols: 2}"))
    close_store(open_store(tmp_path / "store.sqlite"))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["hwsim", *words])
        with pytest.raises(SystemExit) as ended:
            hwsim.cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    "words, rule",
    [
        (("sweep", "tiny.yaml", "--out", ""), "--out '': is no path"),
        (("sweep", "tiny.yaml", "--dry-run", "--out", "tiny.yaml"), "--out tiny.yaml: is no folder"),
        (("sweep", "tiny.yaml", "--dry-run", "--shard", "1/2"), "--dry-run: tells of the whole study"),
        (("sweep", "tiny.yaml", "--workers", "2", "--scheduler", "tcp://127.0.0.1:1"), "a cluster has its own"),
        (("compare", "a", "b", "--out", "x"), "--out is an option of --family"),
        (("compare", "--family", "lut", "--threshold", "0"), "--threshold is an option of two studies"),
        (("compare", "--family", "lut", "--md", "x.md"), "--md is an option of two studies"),
        (("query", ".", "--json", "--sql", "SELECT 1 AS a, 2 AS a"), "two columns 'a'; name them apart with AS"),
        (("query", ".", "--json", "--sql", "SELECT 1e999"), "an infinite number, which JSON lacks"),
        (("init", ""), "'' is no name of a study"),
    ],
)
def test_refused_in_one_line(hwsim_in, tmp_path, words, rule):
    before = sorted(tmp_path.iterdir())
    code, out, err = hwsim_in(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert rule in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_limit_beyond_all_rows_is_refused(hwsim_in):
    assert hwsim_in("query", ".", "--limit", "9" * 20)[0] == 2


def test_a_limit_of_rows_is_kept(hwsim_in):
    code, out, _ = hwsim_in("query", ".", "--limit", "1000000", "--json")
    assert (code, json.loads(out)) == (0, [])


@pytest.mark.parametrize(
    "name, setting, rule",
    [("a\\ud800", "{}", "text of whole characters is needed"), ("a", "1", "set: a mapping is needed, not 1")],
)
def test_what_pydantic_refuses_is_said_in_our_words(hwsim_in, tmp_path, name, setting, rule):
    (tmp_path / "tiny.yaml").write_text(STUDY % (name, setting))
    code, _, err = hwsim_in("sweep", "tiny.yaml")
    assert (code, rule in err) == (2, True), err


def test_a_store_that_is_removed_while_a_sweep_runs_ends_it(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    sink = StoreSink(open_store(folder / "store.sqlite"))
    sink.record([], [])
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="was removed while the sweep ran"):
        sink.record([], [])
    sink.close()
