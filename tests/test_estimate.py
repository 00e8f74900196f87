"""What a study would cost, held against what it then did."""

import io

import pytest
import studies
from rich.console import Console

from hwsim.sweep.driver import prepare, run
from hwsim.sweep.estimate import estimate
from hwsim.sweep.rows import task_row
from hwsim.sweep.space import load_study
from hwsim.sweep.store import close_store, open_store, record
from hwsim.sweep.tasks import DONE, Outcome


@pytest.fixture
def setup(tmp_path, monkeypatch):
    monkeypatch.setenv("HWSIM_TEST_LOG", str(tmp_path / "log"))
    monkeypatch.setattr("hwsim.report.write_report", lambda store, out: out.write_text(str(store)))
    path = tmp_path / "tiny.yaml"

    def made(text=studies.STUDY, evaluation="cheap"):
        path.write_text(text)
        return prepare(load_study(path), "command", reference=f"studies:{evaluation}")

    return made


def computed(setup, out):
    return run(setup, out, workers=1, console=Console(file=io.StringIO()))


def test_a_new_study_has_all_its_tasks_before_it_and_nothing_is_written(setup, tmp_path):
    found = estimate(setup(), tmp_path / "out")
    assert (found.points, found.done, found.refused) == (studies.POINTS, 0, 0)
    assert len(found.labels) == studies.POINTS
    # areas are named by the cycles' results alone
    assert {(kind.kind, kind.tasks, kind.known, kind.mean_s) for kind in found.tasks} == {
        ("accuracy", 4, 0, None),
        ("cycles", 8, 0, None),
    }
    assert found.expected_s is None
    assert any("no task was measured yet" in note for note in found.notes)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "log").exists()


def test_what_is_done_and_what_tasks_took_comes_from_the_stores(setup, tmp_path):
    computed(setup(), tmp_path)
    bigger = setup(studies.STUDY.replace("W5A8]", "W5A8, W4A8]"))
    found = estimate(bigger, tmp_path, workers=2)
    assert (found.points, found.done) == (20, 16)
    kinds = {kind.kind: kind for kind in found.tasks}
    assert (kinds["accuracy"].tasks, kinds["accuracy"].known) == (1, 0)
    assert (kinds["cycles"].tasks, kinds["cycles"].known) == (2, 0)
    assert found.expected_s == sum(kind.total_s for kind in found.tasks) / 2
    assert found.expected_s > 0
    before = len((tmp_path / "log").read_text().splitlines())
    computed(bigger, tmp_path)
    assert len((tmp_path / "log").read_text().splitlines()) == before + 3


def test_a_neighbouring_study_tells_how_long_tasks_take(setup, tmp_path):
    computed(setup(), tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/store.sqlite").write_text("no store")
    found = estimate(setup(studies.STUDY.replace("name: tiny", "name: other")), tmp_path)
    assert found.done == 0
    assert all(kind.mean_s is not None and kind.known == 0 for kind in found.tasks)


def test_a_guided_search_says_that_it_cannot_be_foreseen(setup, tmp_path):
    text = f"{studies.STUDY}search: {{method: nsga2, points: 7, objectives: [accuracy, cycles]}}\n"
    found = estimate(setup(text), tmp_path)
    assert (found.points, found.tasks) == (7, ())
    assert "chooses its points as it goes" in found.notes[0]


def test_points_that_cannot_be_built_need_no_task(setup, tmp_path):
    found = estimate(setup(evaluation="selective"), tmp_path)
    assert (found.points, found.refused) == (studies.POINTS, 2)
    # lutgemm with 5 bits is the one corner: its cycles are nobody else's
    assert {kind.kind: kind.tasks for kind in found.tasks} == {"accuracy": 4, "cycles": 7}


def test_tasks_that_are_known_cost_nothing(setup, tmp_path, monkeypatch):
    """Another version makes other points of the same tasks."""
    computed(setup(), tmp_path)
    monkeypatch.setenv("HWSIM_TEST_VERSION", "2")
    found = estimate(setup(), tmp_path)
    assert (found.points, found.done) == (studies.POINTS, 0)
    assert {kind.kind: (kind.tasks, kind.known) for kind in found.tasks} == {"accuracy": (4, 4), "cycles": (8, 8)}
    assert found.expected_s == 0


def test_the_mean_is_that_of_all_tasks_of_all_studies(setup, tmp_path):
    walls = {"a": (1, 5.0), "b": (3, 1.0)}
    for name, (count, wall) in walls.items():
        store = open_store(tmp_path / name / "store.sqlite")
        tasks = [
            Outcome(key=f"{name}{index}", status=DONE, result={}, wall_s=wall, peak_memory_bytes=1)
            for index in range(count)
        ]
        record(store, [task_row("cycles", task, "2026-01-01T00:00:00+00:00") for task in tasks], [])
        close_store(store)
    kinds = {kind.kind: kind.mean_s for kind in estimate(setup(), tmp_path).tasks}
    assert kinds == {"accuracy": None, "cycles": 2.0}
