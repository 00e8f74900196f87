"""Points into tasks and results into rows, without processes or files."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.sweep import ledger as module
from hwsim.sweep.ledger import Entry, Ledger, point_of, row_of, sorted_out
from hwsim.sweep.point import Point
from hwsim.sweep.tasks import CRASHED, DONE, ERROR, REFUSED, Evaluation, Outcome, Task
from models.unit import InputError

COMMON = {"revision": "r"}


def point(bits=8, seed=1, **more):
    return Point(network="n", seed=seed, weight_bits=bits, act_bits=8, transform="none", unit="u", **more)


def task(kind, **inputs):
    return Task(kind=kind, inputs=inputs, version="v")


def plan(p, results):
    """Accuracy is a matter of the seed, cycles of the width; cycles tells what is to be synthesised."""
    tasks = {"accuracy": task("accuracy", seed=p.seed), "cycles": task("cycles", bits=p.weight_bits)}
    units = results.get("cycles", {}).get("units", [])
    return tasks | {f"area {unit}": task("area", unit=unit) for unit in units}


def combine(_p, results):
    areas = [result["area"] for name, result in results.items() if name.startswith("area")]
    return {"accuracy": results["accuracy"]["value"], "area_um2": float(sum(areas)), "areas": areas}


def compute(t):
    match t.kind:
        case "accuracy":
            return {"value": t.inputs["seed"] / 100}
        case "cycles":
            return {"units": ["engine", *(["transform"] if t.inputs["bits"] < 6 else [])], "cycles": 7}
    return {"area": 10 * len(t.inputs["unit"])}


def outcome(t, status=DONE):
    result = compute(t) if status == DONE else {}
    return Outcome(key=t.key, status=status, message="" if status == DONE else "why", result=result, wall_s=1.0)


def evaluation(**changes):
    parts = {"functions": {}, "check": lambda _p: {}, "plan": plan, "combine": combine, "version": lambda _p: ""}
    return Evaluation(**parts | changes)


def ledger(kept=None, **changes):
    kept = {} if kept is None else kept
    return Ledger(evaluation(**changes), lambda keys: {k: kept[k] for k in keys if k in kept}, common=COMMON)


def finish(book, *, shuffle=None, status=lambda _t: DONE):
    """Run everything that becomes due, in any order; returns the rows and the tasks that were given out."""
    given, flying, rows = [], [], book.rows()
    while len(book):
        while (t := book.next_task()) is not None:
            given.append(t)
            flying.append(t)
        if shuffle:
            shuffle.shuffle(flying)
        t = flying.pop()
        book.take([outcome(t, status(t))])
        rows += book.rows()
    return rows, given


def entries(points):
    return [Entry(key=str(index), point=p) for index, p in enumerate(points)]


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(st.tuples(st.integers(4, 8), st.integers(1, 3)), max_size=12, unique=True),
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 5),
)
def test_every_point_gets_its_row_once_and_every_task_is_given_out_once(points, seed, batch):
    book = ledger()
    listed = entries([point(bits, s) for bits, s in points])
    for begin in range(0, len(listed), batch):
        book.open(listed[begin : begin + batch])
    rows, given = finish(book, shuffle=random.Random(seed))
    assert sorted(row["key"] for row in rows) == sorted(entry.key for entry in listed)
    assert len({t.key for t in given}) == len(given)
    # what the points need, worked out by hand
    needed = {("cycles", bits) for bits, _ in points} | {("accuracy", s) for _, s in points}
    needed |= {("area", "engine")} if points else set()
    needed |= {("area", "transform")} if any(bits < 6 for bits, _ in points) else set()
    assert len(given) == len(needed)
    for row in rows:
        bits, s = row["weight_bits"], row["seed"]
        assert row["status"] == DONE
        assert row["accuracy"] == s / 100
        assert row["area_um2"] == (150.0 if bits < 6 else 60.0)
        assert row["wall_s"] == (4.0 if bits < 6 else 3.0)
        assert len(row["detail"]["areas"]) == (2 if bits < 6 else 1)
        assert row["revision"] == "r"


def test_what_is_kept_is_not_computed_again():
    done = {t.key: outcome(t) for t in (task("accuracy", seed=1), task("cycles", bits=4), task("area", unit="engine"))}
    book = ledger(done)
    book.open(entries([point(4)]))
    rows, given = finish(book)
    assert [t.inputs for t in given] == [{"unit": "transform"}]
    assert rows[0]["area_um2"] == 150.0
    done[given[0].key] = outcome(given[0])
    again = ledger(done)
    again.open(entries([point(4)]))
    assert len(again) == 0
    assert again.rows()[0]["area_um2"] == 150.0


def test_outcomes_that_left_memory_are_looked_up(monkeypatch):
    monkeypatch.setattr(module, "RECENT", 1)
    kept = {}
    book = ledger(kept)
    for index, p in enumerate([point(8, 1), point(7, 2), point(8, 1)]):
        book.open([Entry(key=str(index), point=p)])
        while (t := book.next_task()) is not None:
            kept[t.key] = outcome(t)
            book.take([kept[t.key]])
    assert [row["status"] for row in book.rows()] == [DONE] * 3
    assert len(kept) == 5


def test_a_task_that_fails_fails_its_points_at_once_and_no_other():
    book = ledger()
    book.open(entries([point(8, 1), point(8, 2), point(4, 2)]))
    rows, given = finish(book, status=lambda t: CRASHED if t.inputs.get("seed") == 2 else DONE)
    by_key = {row["key"]: row for row in rows}
    assert by_key["0"]["status"] == DONE
    for key in "12":
        assert (by_key[key]["status"], by_key[key]["message"]) == (CRASHED, "why")
        assert by_key[key]["accuracy"] is None
        assert by_key[key]["cycles"] is None, "no metric of a part that ended well"
        assert by_key[key]["area_um2"] is None
    assert sum(t.inputs == {"seed": 2} for t in given) == 1
    book.open([Entry(key="3", point=point(7, 2))])  # it is known to fail
    assert book.rows()[0]["status"] == CRASHED


def test_a_task_that_failed_is_remembered_however_many_end_after_it(monkeypatch):
    """Failures are not kept on disk, so that forgetting one would compute it again for each of its points."""
    monkeypatch.setattr(module, "RECENT", 1)
    book = ledger()
    book.open(entries([point(8, 2), point(7, 1), point(6, 1)]))
    rows, _ = finish(book, status=lambda t: CRASHED if t.inputs.get("seed") == 2 else DONE)
    assert sorted(row["status"] for row in rows) == [CRASHED, DONE, DONE]
    book.open([Entry(key="3", point=point(4, 3))])
    finish(book)
    book.open([Entry(key="4", point=point(8, 2))])
    assert [row["status"] for row in book.rows()] == [CRASHED]


def test_nothing_is_computed_for_points_that_have_failed():
    book = ledger()
    book.open(entries([point(4, 1)]))
    first = book.next_task()
    book.take([outcome(first, CRASHED)])
    assert book.rows()[0]["status"] == CRASHED
    assert book.next_task() is None
    assert len(book) == 0
    book.open([Entry(key="1", point=point(4, 2))])  # cycles, dropped above, is due again
    rows, given = finish(book)
    assert rows[0]["status"] == DONE
    assert {t.kind for t in given} == {"accuracy", "cycles", "area"}


def test_a_point_that_is_refused_beforehand_needs_no_task():
    book = ledger()
    book.open([Entry(key="0", point=point(), refusal="rows=0")])
    (row,) = book.rows()
    assert (row["status"], row["message"], row["wall_s"]) == (REFUSED, "rows=0", 0)
    assert (book.next_task(), len(book)) == (None, 0)


def test_a_refusal_and_a_defect_of_the_plan_are_rows():
    def bad(p, _results):
        if p.seed == 1:
            raise InputError("no\nway")
        return 1 / 0

    book = ledger(plan=bad)
    book.open(entries([point(seed=1), point(seed=2)]))
    refused, defect = book.rows()
    assert (refused["status"], refused["message"]) == (REFUSED, "no way")
    assert (defect["status"], defect["message"]) == (ERROR, "ZeroDivisionError: division by zero")
    assert "in bad" in defect["detail"]["traceback"]


@pytest.mark.parametrize(
    "found, reason",
    [
        ({"acuracy": 0.5}, "'acuracy' is no metric of the registry"),
        ({"cycles": 1.5}, "metric cycles is 1.5, not a finite int"),
        ({"accuracy": float("nan")}, "metric accuracy is nan"),
        ({"accuracy": float("inf")}, "metric accuracy is inf"),
        ({"cycles": True}, "metric cycles is no number"),
        ({"accuracy": "high"}, "metric accuracy is no number"),
    ],
)
def test_what_is_no_measurement_makes_a_failed_row(found, reason):
    with pytest.raises(ValueError, match=reason):
        sorted_out(found)
    book = ledger(plan=lambda _p, _r: {}, combine=lambda _p, _r: found)
    book.open(entries([point()]))
    (row,) = book.rows()
    assert (row["status"], row["accuracy"], row["cycles"]) == (ERROR, None, None)
    assert reason in row["message"]


def test_numbers_get_their_registered_kind():
    found = sorted_out({"cycles": 3.0, "area_um2": 7, "ops": {"add": 1.5}, "perplexity": None})
    assert found == {"cycles": 3, "area_um2": 7.0, "ops": {"add": 1.5}}
    assert (type(found["cycles"]), type(found["area_um2"])) == (int, float)


def test_the_trial_of_a_search_stays_with_its_point():
    book = ledger()
    book.open([Entry(key="0", point=point(), trial={"params": {"a": 1}})])
    rows, _ = finish(book)
    assert rows[0]["detail"]["trial"] == {"params": {"a": 1}}


def test_a_row_leads_back_to_its_point():
    p = point(4, 7, params=(("dataflow", "WS"), ("rows", 4)), name='our "<b>"')
    assert point_of(row_of("k", p)) == p
