"""Which points are proposed, and how far a search has come, on a space of two engines with known optima."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.metrics import METRICS, nondominated, pareto
from hwsim.sweep import search as module
from hwsim.sweep.ledger import row_of
from hwsim.sweep.point import Point
from hwsim.sweep.search import hypervolume, identity, progress, require_objectives, sampler_of
from hwsim.sweep.tasks import DONE, ERROR
from models.unit import InputError

SIDE = tuple(range(1, 31))


class Space:
    """A study as samplers see it: unit a has rows and cols, b has depth; a's rows times cols is at most 600."""

    def __init__(self, method, points=40, seed=1, objectives=("accuracy", "area_um2")):
        self.search = SimpleNamespace(method=method, points=points, seed=seed, objectives=objectives)

    def dimensions(self):
        return {"unit": ("a", "b"), "a.rows": SIDE, "a.cols": SIDE, "b.depth": SIDE}

    def suggest(self, choose):
        unit = choose("unit", ("a", "b"))
        if unit == "b":
            return made(unit, depth=choose("b.depth", SIDE))
        rows, cols = choose("a.rows", SIDE), choose("a.cols", SIDE)
        return made(unit, rows=rows, cols=cols) if rows * cols <= 600 else None

    def points(self):
        yield from (made("a", rows=r, cols=c) for r, c in itertools.product(SIDE, SIDE) if r * c <= 600)
        yield from (made("b", depth=d) for d in SIDE)


def made(unit, **params):
    return Point(
        network="n",
        seed=1,
        weight_bits=8,
        act_bits=8,
        transform="none",
        unit=unit,
        params=tuple(sorted(params.items())),
    )


def evaluated(point, status=DONE):
    """Accuracy falls and area rises away from a line; only cols = 5 is on the front."""
    p = dict(point.params)
    rows, cols = p.get("rows", p.get("depth", 0)), p.get("cols", 30)
    measured = {"accuracy": rows / 30 - (cols - 5) ** 2 / 900, "area_um2": float(rows * 10 + (cols - 5) ** 2)}
    found = measured if status == DONE else {}
    empty = dict.fromkeys(METRICS)
    return row_of(identity(point), point) | empty | found | {"status": status, "detail": {}}


def run(sampler, count=None, status=lambda _p: DONE):
    """Rows of `count` points asked for and told, one after the other."""
    rows = []
    while (count is None or len(rows) < count) and (draw := sampler.ask()) is not None:
        row = evaluated(draw.point, status(draw.point))
        row["detail"]["trial"] = draw.trial
        sampler.tell(draw.point, row)
        rows.append(row)
    return rows


def test_exhaustive_proposes_every_point_once():
    sampler = sampler_of(Space("exhaustive"), workers=2)
    found = [draw.point for draw in iter(sampler.ask, None)]
    assert found == list(Space("exhaustive").points())
    assert sampler.total == len(found)


def test_random_points_are_distinct_admissible_and_a_matter_of_the_seed():
    first, again, other = (
        [row["key"] for row in run(sampler_of(Space("random", 50, s), workers=2))] for s in (1, 1, 2)
    )
    everything = {identity(p) for p in Space("random").points()}
    assert first == again != other
    assert len(set(first)) == 50
    assert set(first) <= everything


def test_random_ends_where_the_space_does(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 20_000)
    space = Space("random", 10_000)
    assert {row["key"] for row in run(sampler_of(space, workers=2))} == {identity(p) for p in space.points()}


@pytest.mark.parametrize("method", ["nsga2", "tpe"])
def test_a_guided_search_finds_more_of_the_front_than_chance(method):
    def reached(how):
        rows = [row for seed in (1, 2, 3) for row in run(sampler_of(Space(how, 60, seed), workers=1))]
        costs = [(-row["accuracy"], row["area_um2"]) for row in rows]
        return hypervolume(costs, (1.0, 1000.0))

    assert reached(method) > reached("random")


@pytest.mark.parametrize("method", ["nsga2", "tpe"])
def test_a_guided_search_goes_the_way_of_the_objectives(method):
    """The first of them is to be large, the second small; both are best at cols = 5."""

    def distances(how):
        rows = [row for seed in (1, 2) for row in run(sampler_of(Space(how, 60, seed), workers=1))]
        return [abs(row["params"].get("cols", 30) - 5) for row in rows]

    assert np.mean(distances(method)) < 0.8 * np.mean(distances("random"))


def test_generations_go_on_where_they_were():
    """NSGA-II keeps in a trial's attributes of which generation it is."""
    space = Space("nsga2", 60)
    before = run(sampler_of(space, workers=1), 45)
    sampler = sampler_of(space, workers=1)
    for row in before:
        sampler.tell(*from_store(row))
    last, following = (max(row["detail"]["trial"]["attrs"].values()) for row in (before[-1], run(sampler, 1)[0]))
    assert following >= last > 0


@pytest.mark.parametrize("method", ["nsga2", "tpe"])
def test_a_search_that_goes_on_draws_something_else(method):
    """Before a sampler has learned anything its draws follow from its seed alone."""
    first = run(sampler_of(Space(method, 20), workers=1), 5)
    sampler = sampler_of(Space(method, 20), workers=1)
    for row in first:
        sampler.tell(*from_store(row))
    row = run(sampler, 1)[0]
    assert len(sampler._search.trials) == len(first) + 1, "no draw was wasted"
    assert row["key"] not in {each["key"] for each in first}


@pytest.mark.parametrize("method", ["nsga2", "tpe"])
def test_a_search_goes_on_from_what_the_store_has(method):
    space = Space(method, 40)
    before = run(sampler_of(space, workers=1), 25)
    sampler = sampler_of(space, workers=1)
    for row in before:
        sampler.tell(*from_store(row))
    after = run(sampler)
    keys = [row["key"] for row in before + after]
    assert len(keys) == len(set(keys)) == 40
    trials = sampler._search.trials
    assert len([t for t in trials if t.values]) >= 40
    assert [t.params for t in trials[:25]] == [row["detail"]["trial"]["params"] for row in before]


def from_store(row):
    from hwsim.sweep.ledger import point_of

    return point_of(row), row


def test_a_failed_point_is_told_without_a_number():
    sampler = sampler_of(Space("nsga2", 30), workers=1)
    rows = run(sampler, status=lambda p: ERROR if p.unit == "b" else DONE)
    failed = [row for row in rows if row["status"] == ERROR]
    assert failed
    complete = {identity(sampler._point(t.params)) for t in sampler._search.trials if t.state.name == "COMPLETE"}
    assert complete == {row["key"] for row in rows if row["status"] == DONE}
    assert all(t.values is None for t in sampler._search.trials if t.state.name == "FAIL")
    again = sampler_of(Space("nsga2", 40), workers=1)
    for row in rows:
        again.tell(*from_store(row))
    assert not {row["key"] for row in run(again)} & {row["key"] for row in rows}


def test_points_in_flight_are_not_proposed_again(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 50)
    monkeypatch.setattr(__name__ + ".SIDE", (1, 2))
    sampler = sampler_of(Space("nsga2", 100), workers=1)
    drawn = [identity(draw.point) for draw in iter(sampler.ask, None)]
    assert sorted(drawn) == sorted(identity(p) for p in Space("nsga2").points())


def test_a_small_space_is_searched_through_once_and_the_search_hears_of_repeats(monkeypatch):
    """Points that failed are known as well; a repeat has the values that the point had."""
    monkeypatch.setattr(module, "PATIENCE", 50)
    monkeypatch.setattr(__name__ + ".SIDE", (1, 2))
    status = {2: ERROR}
    sampler = sampler_of(Space("nsga2", 100), workers=1)
    rows = run(sampler, status=lambda p: status.get(dict(p.params).get("rows"), DONE))
    assert sorted(row["key"] for row in rows) == sorted(identity(p) for p in Space("nsga2").points())
    known = {row["key"]: sampler._values(row) for row in rows}
    trials = [t for t in sampler._search.trials if t.state.name in ("COMPLETE", "FAIL")]
    assert len(trials) > 2 * len(rows)
    assert all(t.values == known[identity(sampler._point(t.params))] for t in trials)
    again = sampler_of(Space("nsga2", 100), workers=1)
    for row in rows:
        again.tell(*from_store(row))
    assert again.ask() is None


def test_trials_of_a_space_that_was_edited_are_left_out():
    sampler = sampler_of(Space("nsga2", 40), workers=1)
    (row,) = run(sampler, 1)
    row["detail"]["trial"]["params"]["gone"] = 1
    again = sampler_of(Space("nsga2", 40), workers=1)
    again.tell(*from_store(row))
    assert row["key"] not in {r["key"] for r in run(again)}


# ---- front


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4).flatmap(lambda d: st.lists(st.tuples(*[st.integers(0, 4)] * d), min_size=1, max_size=12)))
def test_the_front_is_what_no_other_point_dominates(costs):
    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    expected = [i for i, cost in enumerate(costs) if not any(dominates(other, cost) for other in costs)]
    assert sorted(nondominated(np.array(costs, dtype=float))) == expected


def test_points_that_lack_a_metric_are_on_no_front():
    rows = [{"accuracy": 0.9}, {"accuracy": 0.8, "area_um2": None}, {"accuracy": 0.7, "area_um2": 5.0}, {}]
    assert pareto(rows, ("accuracy", "area_um2")) == [2]
    assert pareto(rows, ("accuracy",)) == [0]
    assert pareto(rows, ("area_um2", "cycles")) == []


# ---- hypervolume


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 4).flatmap(lambda d: st.lists(st.tuples(*[st.integers(0, 5)] * d), min_size=1, max_size=8)),
)
def test_hypervolume_counts_the_unit_cells_that_are_dominated(costs):
    reference = (5,) * len(costs[0])
    cells = itertools.product(range(5), repeat=len(reference))
    dominated = sum(any(all(a <= b for a, b in zip(c, cell, strict=True)) for c in costs) for cell in cells)
    assert hypervolume(costs, reference) == dominated


def test_progress_never_falls_and_ends_at_the_whole():
    rows = [evaluated(p, DONE if i % 7 else ERROR) for i, p in enumerate(Space("exhaustive").points())]
    found = progress(rows, ("accuracy", "area_um2"))
    counts, volumes = zip(*found, strict=True)
    assert counts[-1] == len(rows)
    assert len(found) <= module.STEPS
    assert all(np.diff(volumes) >= 0)
    costs = np.array([[-r["accuracy"], r["area_um2"]] for r in rows if r["status"] == DONE])
    scaled = (costs - costs.min(0)) / (costs.max(0) - costs.min(0))
    assert volumes[-1] == pytest.approx(hypervolume(scaled.tolist(), (1.1, 1.1)))
    assert progress([evaluated(made("b", depth=1), ERROR)], ("accuracy",)) == []


def test_objectives_must_be_measured_and_have_a_direction():
    require_objectives(["accuracy"], METRICS)
    with pytest.raises(InputError, match="macs has no direction"):
        require_objectives(["macs"], METRICS)
    with pytest.raises(
        InputError, match=r"area_um2 is not measured by this study's `evaluate`; it gives accuracy, cycles"
    ):
        require_objectives(["area_um2"], ["accuracy", "cycles"])
