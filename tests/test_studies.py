"""Studies in a notebook, on the real evaluation of cycles: results as frames, and what a replayed point gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hwsim import InputError, Study
from hwsim.sweep.lookup import reading
from hwsim.sweep.point_folders import write_folders
from hwsim.sweep.rerun import rerun

NAME = '<b>it\'s "mine"</b>\n../x'
CONTENT = {
    "name": "small",
    "network": "digits-mlp",
    "seed": 1,
    "formats": ["W4A8", "W8A8"],
    "transforms": ["none"],
    "engines": [
        {"unit": "systolic", "name": NAME, "set": {"rows": 4, "cols": [8, 16], "dataflow": "WS"}},
        {"unit": "lutgemm", "name": NAME},
    ],
    "evaluate": ["cycles"],
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """One that has run."""
    return Study(CONTENT, out=tmp_path_factory.mktemp("results")).run(workers=2)


def test_a_frame_has_a_typed_column_for_everything(study, capsys):
    frame = study.frame()
    assert capsys.readouterr().out == ""
    assert list(frame["label"]) == [point.label for point in study.points()]
    assert len(frame) == 6
    assert set(frame["status"]) == {"done"}
    assert {name: str(frame[name].dtype) for name in ("cycles", "energy_pj", "area_um2", "set_rows", "unit")} == {
        "cycles": "Int64",
        "energy_pj": "Float64",
        "area_um2": "Float64",
        "set_rows": "Int64",
        "unit": "string",
    }
    assert frame["area_um2"].isna().all()
    assert frame["set_rows"].isna().tolist() == [False] * 4 + [True] * 2
    (cycles,) = frame.loc[(frame["set_cols"] == 8) & (frame["format"] == "W4A8"), "cycles"]
    assert cycles == int(cycles) > 0


def test_the_front_is_what_no_other_point_dominates(study):
    frame, metrics = study.frame(), ["cycles", "energy_pj"]
    values = [tuple(row) for row in frame[metrics].to_numpy().tolist()]
    kept = [
        not any(other != one and all(o <= v for o, v in zip(other, one, strict=True)) for other in values)
        for one in values
    ]
    assert 0 < sum(kept) < len(kept)
    assert list(study.front(metrics)["key"]) == list(frame["key"][kept])
    assert list(study.front()["key"]) == list(frame["key"][kept])
    with pytest.raises(InputError, match="no metric 'cycle'"):
        study.front(["cycle"])


def test_in_a_notebook_it_is_a_small_table_of_text(study):
    shown = study._repr_html_()
    assert "small: 6 done; Pareto front" in shown
    assert "&lt;b&gt;it&#x27;s &quot;mine&quot;&lt;/b&gt;" in shown
    assert "<b>" not in shown
    assert shown.count("<tr>") == len(study.front()) + 1
    assert repr(study) == f"Study('small', folder={str(study.folder)!r})"


def test_results_of_before_are_there_without_a_run(study, tmp_path):
    places = study.folder, study.folder / "store.sqlite"
    for again in (Study(CONTENT, out=study.folder.parent), *map(Study.at, places)):
        assert again.frame().equals(study.frame())
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(CONTENT))
    assert Study(str(path), out=study.folder.parent).frame().equals(study.frame())


def test_a_study_that_has_not_run_says_so(tmp_path):
    fresh = Study(CONTENT, out=tmp_path)
    assert "no results yet" in fresh._repr_html_()
    for ask in (fresh.frame, fresh.front, fresh.report):
        with pytest.raises(InputError, match=r"store.sqlite: no such file; run `hwsim sweep` first"):
            ask()
    assert not list(tmp_path.iterdir())


def test_a_wrong_study_is_refused_with_its_key():
    with pytest.raises(InputError, match=r"engines\[0\].set.row: no parameter of systolic; did you mean 'rows'"):
        Study(CONTENT | {"engines": [{"unit": "systolic", "set": {"row": 4}}]})
    with pytest.raises(InputError, match=r"nothing.yaml: no such file"):
        Study("nothing.yaml")
    with pytest.raises(InputError, match=r"no such file"):
        Study.at("nothing")


def test_a_renamed_folder_can_be_read_but_not_gone_on_with(study, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "store.sqlite").write_bytes((study.folder / "store.sqlite").read_bytes())
    found = Study.at(other)
    assert len(found.frame()) == 6
    with pytest.raises(InputError, match="other: the study is small, and its folder must be called so"):
        found.run()


def test_the_report_is_written_beside_the_store(study):
    (study.folder / "report.html").unlink()
    assert study.report() == study.folder / "report.html"
    assert study.report().read_text().startswith("<!DOCTYPE html>")


def test_a_replayed_and_a_rerun_point_have_every_digit(study, tmp_path):
    with reading(study.folder) as store:
        write_folders(store, study.folder)
    row = study.frame().iloc[1]
    folder = study.folder / "points" / row["key"][:16]
    subprocess.run(
        [folder / "replay.sh", tmp_path / "it's here"],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    replayed = Study.at(tmp_path / "it's here/small").frame()
    shared = [name for name in replayed.columns if name in study.frame().columns]
    assert replayed[shared].iloc[0].to_dict() == row[shared].to_dict()
    assert rerun(study.folder, row["key"]).equal
