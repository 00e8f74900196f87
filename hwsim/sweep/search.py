"""Which points of a study's space are evaluated: all, a random choice, or those that a search proposes.

A search that learns from results is Optuna's (NSGA-II: Deb et al., IEEE Trans. Evol. Comput. 6(2), 2002; TPE with
several objectives: Ozaki et al., GECCO 2020). Its trials live in memory and are made anew from our store when a study
goes on: the store is the only place that knows what was evaluated.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hwsim.metrics import Direction, metric, nondominated
from hwsim.sweep.tasks import DONE, digest
from models.unit import InputError, require

if TYPE_CHECKING:
    from hwsim.sweep.point import Point
    from hwsim.sweep.space import Study

PATIENCE = 2000
"""draws in a row that bring no new point, after which a space counts as searched through"""

GUIDED = ("nsga2", "tpe")
"""methods that learn from results"""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A point to evaluate."""

    point: Point
    trial: Mapping[str, Any] | None = None
    """what the search must know of it when the study goes on, plain data; it is kept with the point"""


class Sampler(Protocol):
    """Proposes points, each once."""

    total: int
    """how many it will propose at most"""
    ahead: int | None
    """how many may wait for their results at once, so that the search learns in time; None: any number"""

    def ask(self) -> Draw | None:
        """The next point; None where there is none."""
        ...

    def tell(self, point: Point, row: Mapping[str, Any]) -> None:
        """What became of a point that was asked for, or that an earlier run evaluated."""
        ...


def sampler_of(study: Study, *, workers: int) -> Sampler:
    """The one that the study's `search` describes. InputError where its package is not installed."""
    search = study.search
    if search.method == "exhaustive":
        return _Listed(list(study.points()))
    if search.method == "random":
        return _Listed(_random_points(study, search.points, search.seed))
    return _Guided(study, ahead=2 * workers)


class _Listed:
    """Points that are known beforehand."""

    ahead = None

    def __init__(self, points: Sequence[Point]) -> None:
        self.total = len(points)
        self._left = iter(points)

    def ask(self) -> Draw | None:
        point = next(self._left, None)
        return None if point is None else Draw(point=point)

    def tell(self, point: Point, row: Mapping[str, Any]) -> None:
        """Nothing depends on it."""


def _random_points(study: Study, count: int, seed: int) -> list[Point]:
    """`count` distinct points, every dimension drawn uniformly; fewer where the space seems to hold no more."""
    draw = random.Random(seed)  # noqa: S311 - a sample, no secret
    points: dict[str, Point] = {}
    fruitless = 0
    while len(points) < count and fruitless < PATIENCE:
        point = study.suggest(lambda _name, choices: draw.choice(choices))
        fruitless += 1
        if point is not None and (name := identity(point)) not in points:
            points[name], fruitless = point, 0
    return list(points.values())


def identity(point: Point) -> str:
    """Hash of what the point is."""
    return digest(point.configuration())


# ---- guided


class _Guided:
    """Optuna's ask and tell over the study's dimensions, all of which every trial has.

    Dimensions that a point does not use (parameters of other engines) are inherited and crossed like others, so that
    the search's operators see one space. A point that was seen before is told at once and asked for again.
    """

    def __init__(self, study: Study, *, ahead: int) -> None:
        optuna = _optuna()
        self.total, self.ahead = study.search.points, ahead
        self._study, self._objectives = study, tuple(study.search.objectives)
        self._spaces = {name: optuna.distributions.CategoricalDistribution(choices) for name, choices in _sizes(study)}
        self._choices = study.dimensions()
        self._known: dict[str, Sequence[float] | None] = {}
        """identity -> values of the objectives, None where it failed or is not finished"""
        self._trials: dict[str, Any] = {}
        self._optuna, self._search = optuna, None
        self._asked = 0

    def ask(self) -> Draw | None:
        if self._asked >= self.total:
            return None
        for _ in range(PATIENCE):
            trial = self._started().ask(self._spaces)
            point = self._point(trial.params)
            if point is None:
                self._started().tell(trial, state=self._optuna.trial.TrialState.FAIL)
                continue
            name = identity(point)
            if name in self._known:
                # the search hears the same again; of one that is not finished, nothing
                self._finish(trial, self._known[name])
                continue
            self._known[name], self._trials[name] = None, trial
            self._asked += 1
            frozen = self._started().get_trials(deepcopy=False)[trial.number]
            return Draw(point=point, trial={"params": dict(frozen.params), "attrs": dict(frozen.system_attrs)})
        return None

    def tell(self, point: Point, row: Mapping[str, Any]) -> None:
        name = identity(point)
        values = self._values(row)
        self._known[name] = values
        if name in self._trials:
            self._finish(self._trials.pop(name), values)
            return
        self._asked += 1
        recorded = (row.get("detail") or {}).get("trial")
        if recorded and values is not None and self._fits(recorded["params"]):
            self._memory().add_trial(
                self._optuna.trial.create_trial(
                    params=recorded["params"],
                    distributions=self._spaces,
                    values=values,
                    system_attrs=recorded["attrs"],
                )
            )

    def _point(self, params: Mapping[str, int]) -> Point | None:
        return self._study.suggest(lambda name, choices: choices[params[name]])

    def _fits(self, params: Mapping[str, Any]) -> bool:
        """Whether an earlier run's trial is one of this space, which may have been edited since."""
        spaces = self._spaces
        return params.keys() == spaces.keys() and all(value in spaces[name].choices for name, value in params.items())

    def _values(self, row: Mapping[str, Any]) -> list[float] | None:
        values = [row.get(name) for name in self._objectives]
        whole = row["status"] == DONE and all(value is not None for value in values)
        return [float(value) for value in values if value is not None] if whole else None

    def _finish(self, trial: Any, values: Sequence[float] | None) -> None:
        if values is None:
            self._started().tell(trial, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._started().tell(trial, values)

    def _memory(self) -> Any:
        """Trials in memory; the sampler comes when the first new point is asked for."""
        if self._search is None:
            ways = {Direction.MAX: "maximize", Direction.MIN: "minimize"}
            directions = [ways[metric(name).direction] for name in self._objectives]
            self._search = self._optuna.create_study(directions=directions)
            self._sampled = False
        return self._search

    def _started(self) -> Any:
        search = self._memory()
        if not self._sampled:
            # a run that goes on must not draw what the one before it drew
            search.sampler = _sampler(self._optuna, self._study, seed=self._study.search.seed + self._asked)
            self._sampled = True
        return search


def _sizes(study: Study) -> Iterable[tuple[str, list[int]]]:
    """A dimension's choices by their index: Optuna's categories are then plain numbers, whatever ours are."""
    return ((name, list(range(len(choices)))) for name, choices in study.dimensions().items())


def _sampler(optuna: Any, study: Study, *, seed: int) -> Any:
    seed %= 2**32
    if study.search.method == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=_population(study.search.points))


def _population(points: int) -> int:
    """About ten generations, of at least ten points and at most Optuna's usual fifty."""
    return min(50, max(10, points // 10))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError("search: nsga2 and tpe need optuna; pip install 'hwsim[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


# ---- how far a search has come


def hypervolume(costs: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume that the points (each smaller is better) dominate below the reference, exactly.

    By slices along the last objective (HSO: While et al., IEEE Trans. Evol. Comput. 10(1), 2006). Points that are not
    below the reference in every objective add nothing.
    """
    inside = [tuple(c) for c in costs if all(a < b for a, b in zip(c, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(inside)[0]
    heights = sorted({c[-1] for c in inside})
    volume = 0.0
    for low, high in zip(heights, [*heights[1:], reference[-1]], strict=True):
        below = np.array([c[:-1] for c in inside if c[-1] <= low])
        volume += (high - low) * hypervolume(below[nondominated(below)].tolist(), reference[:-1])
    return volume


STEPS = 60
"""numbers of points for which `progress` tells the hypervolume, at most"""


def progress(rows: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> list[tuple[int, float]]:
    """(number of points, in the order of `rows`; hypervolume of these) for up to `STEPS` numbers, the last one all.

    Objectives are scaled to 0 (the best that any point reaches) and 1 (the worst); the reference is 1.1 in each, so
    that extremes count. Failed points count as points. Empty where no point has all objectives.
    """
    signs = [1.0 if metric(name).direction is Direction.MIN else -1.0 for name in objectives]
    costs = np.array([[np.nan if row.get(n) is None else row[n] for n in objectives] for row in rows], dtype=float)
    costs = costs.reshape(len(rows), len(objectives)) * signs
    whole = ~np.isnan(costs).any(axis=1)
    if not whole.any():
        return []
    low, high = costs[whole].min(axis=0), costs[whole].max(axis=0)
    scaled = (costs - low) / np.where(high > low, high - low, 1.0)
    front, begin, found = scaled[:0], 0, []
    for end in sorted({max(1, round(len(rows) * step / STEPS)) for step in range(1, STEPS + 1)}):
        front = np.concatenate([front, scaled[begin:end][whole[begin:end]]])
        front, begin = front[nondominated(front)], end
        found.append((end, hypervolume(front.tolist(), [1.1] * len(signs))))
    return found


def require_objectives(objectives: Sequence[str], given: Iterable[str]) -> None:
    """InputError unless each objective has a direction and is among the metrics that the study gives."""
    known = set(given)
    for name in objectives:
        rule = f"search: objective {name} is not measured by this study's `evaluate`"
        require(name in known, f"{rule}; it gives {', '.join(sorted(known))}")
        require(metric(name).direction is not Direction.NONE, f"search: {name} has no direction; take another one")
