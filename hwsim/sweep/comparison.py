"""Two studies held against each other, point by point: what one lacks, what failed, how far each metric moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwsim.evaluation import PARTS, metrics_of
from hwsim.markdown import cell, table
from hwsim.metrics import METRICS, Direction, metric
from hwsim.sweep.ledger import point_of
from hwsim.sweep.lookup import reading
from hwsim.sweep.outputs import changed_versions
from hwsim.sweep.point import Point
from hwsim.sweep.store import read_study, study_rows
from hwsim.sweep.tasks import DONE, digest
from models.unit import nearest, require

TINY = 1e-9
"""differences to a value below this are relative to this"""

WHO = ("label", "status", "params", *(name for name in Point.__dataclass_fields__ if name != "params"))


@dataclass(frozen=True, kw_only=True)
class MetricChange:
    """One metric over the points that are finished in both studies."""

    metric: str
    points: int
    """that have it in both"""
    differ: int
    """of these, with another value"""
    better: int
    """of these, by the metric's direction"""
    worse: int
    largest: float
    """relative difference |b - a| / max(|a|, TINY); 0.0 where no point differs"""
    at: str
    """label of the first point that has the largest, "" where none differs"""
    values: tuple[float, float] | None
    """its values in A and in B"""
    mean: float
    """of the relative differences of all points"""
    absent: int
    """finished points that have it in one study only"""

    @property
    def largest_is(self) -> str:
        """`better`, `worse`, or `other` where the metric has no direction, of the point with the largest difference."""
        return "" if self.values is None else _word(self.metric, *self.values)


@dataclass(frozen=True, kw_only=True)
class StatusChange:
    """A point that ended in another way."""

    label: str
    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What differs between two studies, A and B."""

    points: int
    """in both"""
    only_a: tuple[str, ...]
    """labels of points that B lacks, in the order of A"""
    only_b: tuple[str, ...]
    statuses: tuple[StatusChange, ...]
    metrics: tuple[MetricChange, ...]
    """the largest difference first; metrics that no finished point has are left out"""
    left_out: tuple[str, ...]
    """metrics that only one of the studies evaluated"""
    versions: Mapping[str, tuple[str, str]]
    """what the studies were made with, where it differs: name -> version in A and in B, "" where unknown"""

    @property
    def newly_failed(self) -> int:
        """Points that are finished in A and failed in B."""
        return sum(1 for change in self.statuses if change.a == DONE)

    def exceeds(self, threshold: float) -> bool:
        """Whether a point newly failed, lost or gained a metric, or differs in one by more than the threshold."""
        moved = any(change.largest > threshold or change.absent for change in self.metrics)
        return moved or self.newly_failed > 0


def compare(a: Path, b: Path, metrics: Sequence[str] = ()) -> Comparison:
    """Hold the studies of two stores (or study folders) against each other; their versions of hwsim may differ.

    A point is the same in both when its configuration is: network, seed, format, transform, quantizer, activations,
    unit and its parameters as set; names do not count. `metrics`: which ones, all that both studies evaluated where
    none is named. Of A one entry a point is in memory, of B one row.

    InputError for what is no store with a study, a name that is no metric, a named metric that one of the studies did
    not evaluate, and studies without a common point.
    """
    for name in metrics:
        metric(name)
    with reading(a) as one, reading(b) as two:
        studies = read_study(one), read_study(two)
        given = [_evaluated(place, study) for place, study in zip((a, b), studies, strict=True)]
        chosen = _chosen(metrics, given, (a, b))
        known = {_identity(row): _Known.of(row, chosen) for row in study_rows(one, (*WHO, *chosen))}
        tally = {name: _Tally(name) for name in chosen}
        common, only_b, statuses = 0, [], []
        for row in study_rows(two, (*WHO, *chosen)):
            before = known.pop(_identity(row), None)
            if before is None:
                only_b.append(row["label"])
                continue
            common += 1
            if before.status != row["status"]:
                statuses.append(StatusChange(label=row["label"], a=before.status, b=row["status"]))
            elif row["status"] == DONE:
                for name, value in zip(chosen, before.values, strict=True):
                    tally[name].add(value, row[name], row["label"])
    require(common > 0, f"{a} and {b}: no point in common, so there is nothing to compare")
    changes = [each.change() for each in tally.values() if each.points or each.absent]
    return Comparison(
        points=common,
        only_a=tuple(each.label for each in known.values()),
        only_b=tuple(only_b),
        statuses=tuple(statuses),
        metrics=tuple(sorted(changes, key=lambda change: (-change.largest, -change.absent))),
        left_out=tuple(name for name in METRICS if (name in given[0]) is not (name in given[1]) and not metrics),
        versions=changed_versions(*studies),
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """A point of A."""

    label: str
    status: str
    values: tuple[float | None, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any], metrics: Sequence[str]) -> _Known:
        return cls(row["label"], row["status"], tuple(row[name] for name in metrics))


@dataclass
class _Tally:
    """A metric while points pass by."""

    metric: str
    points: int = 0
    absent: int = 0
    words: dict[str, int] = field(default_factory=dict)
    largest: float = 0.0
    at: str = ""
    values: tuple[float, float] | None = None
    total: float = 0.0

    def add(self, a: float | None, b: float | None, label: str) -> None:
        if a is None or b is None:
            self.absent += a is not b
            return
        self.points += 1
        if a == b:
            return
        relative = abs(b - a) / max(abs(a), TINY)
        self.total += relative
        word = _word(self.metric, a, b)
        self.words[word] = self.words.get(word, 0) + 1
        if self.values is None or relative > self.largest:
            self.largest, self.at, self.values = relative, label, (a, b)

    def change(self) -> MetricChange:
        return MetricChange(
            metric=self.metric,
            points=self.points,
            differ=sum(self.words.values()),
            better=self.words.get("better", 0),
            worse=self.words.get("worse", 0),
            largest=self.largest,
            at=self.at,
            values=self.values,
            mean=self.total / max(self.points, 1),
            absent=self.absent,
        )


def _word(name: str, a: float, b: float) -> str:
    direction = METRICS[name].direction
    if direction is Direction.NONE:
        return "other"
    return "better" if (b > a) is (direction is Direction.MAX) else "worse"


def _identity(row: Mapping[str, Any]) -> bytes:
    """What the point is, without its name."""
    return bytes.fromhex(digest(point_of(row).configuration()))


def _evaluated(place: Path, entries: Mapping[str, Any]) -> tuple[str, ...]:
    """Metrics that the study evaluated."""
    require("study" in entries, f"{place}: holds no study yet; run `hwsim sweep` first")
    return metrics_of(entries["study"].get("evaluate", PARTS))


def _chosen(names: Sequence[str], given: Sequence[tuple[str, ...]], places: Sequence[Path]) -> tuple[str, ...]:
    for name in names:
        for place, own in zip(places, given, strict=True):
            require(name in own, f"{place}: was not evaluated for {name}; {nearest(name, own)}")
    return tuple(dict.fromkeys(names)) or tuple(name for name in given[0] if name in given[1])


# ---- as Markdown


def markdown(found: Comparison, a: str, b: str) -> str:
    """The comparison as Markdown; `a` and `b`: what the studies are called. Their texts stay text."""
    parts = [
        f"# {cell(a)} and {cell(b)}",
        "\n".join(f"- {cell(line)}" for line in summary(found)),
        table(HEADINGS, [cells(change) for change in found.metrics], len(HEADINGS)),
        *_listed("Changed status", ("point", "A", "B"), [(each.label, each.a, each.b) for each in found.statuses]),
        *_listed("Only in A", ("point",), [(label,) for label in found.only_a]),
        *_listed("Only in B", ("point",), [(label,) for label in found.only_b]),
    ]
    return "\n\n".join(parts) + "\n"


HEADINGS = ("metric", "points", "differ", "better", "worse", "largest", "A", "B", "mean", "at")
MOST = 20
"""points of a list that are named; the others are counted"""


def summary(found: Comparison) -> list[str]:
    """What the table of metrics does not say, in lines."""
    statuses = f"{len(found.statuses):,} with another status, {found.newly_failed:,} of them newly failed"
    lines = [f"{found.points:,} points in both, {statuses}"]
    lines += [f"{len(found.only_a):,} points only in A, {len(found.only_b):,} only in B"]
    lines += [f"not in both, so not compared: {', '.join(found.left_out)}"] if found.left_out else []
    lines += [f"{each.metric}: in one study only at {each.absent:,} points" for each in found.metrics if each.absent]
    versions = ((name, one or "unknown", two or "unknown") for name, (one, two) in found.versions.items())
    return lines + [f"{name}: {one} in A, {two} in B" for name, one, two in versions]


def cells(change: MetricChange) -> tuple[str, ...]:
    """One row under `HEADINGS`."""
    values = ("", "") if change.values is None else tuple(f"{value:.6g}" for value in change.values)
    counts = (f"{count:,}" for count in (change.points, change.differ, change.better, change.worse))
    largest = f"{change.largest:.3g} {change.largest_is}".strip()
    return (METRICS[change.metric].heading, *counts, largest, *values, f"{change.mean:.3g}", change.at)


def _listed(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    more = [f"{len(rows) - MOST:,} more."] if len(rows) > MOST else []
    return [f"## {title}", table(headings, rows[:MOST], len(headings)), *more]


def require_threshold(threshold: float) -> None:
    """InputError unless it is a finite number of at least 0."""
    require(math.isfinite(threshold) and threshold >= 0, f"--threshold {threshold}: a number of at least 0 is needed")
