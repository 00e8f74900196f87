"""What a page or a table says of a study's points, gathered while they pass by: memory does not grow with them."""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.metrics import FRONT, METRICS, Direction, nondominated
from hwsim.sweep.tasks import DONE

Row = Mapping[str, Any]
Floats = NDArray[np.float64]

LISTED = 5_000
"""finished points that a page holds at most; beyond that a sample"""
LISTED_FAILURES = 500
MAX_FRONT = 1_000
"""points of the front that are kept; equal ones may be many"""
MAX_ENGINES = 40
"""rows of the table of engines; the others are counted together"""
MAX_REASONS = 60
"""distinct failures that are told apart"""
OTHERS = "(others)"
CHUNK = 4_000
CELLS = (40, 28)
"""of the density: columns and rows"""
CROWDED = 20.0
"""Values that span more than this factor have a logarithmic axis."""

MEASURED = ("status", *METRICS)
"""fields of a row that densities are made of"""
NEAR = 0.3
"""A front that takes less than this share of an axis is drawn with its surroundings alone."""

DIRECTED = tuple(name for name, metric in METRICS.items() if metric.direction is not Direction.NONE)
PREFERRED = (*FRONT, "area_um2", "cycles", "energy_pj", "utilization", "latency_us", "delay_ns", "bits_per_weight")
"""which two metrics make the front of a study that lacks one of `FRONT`: the first two of these in which it varies"""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One metric over all finished points that have it."""

    count: int
    low: float
    high: float
    mean: float
    lowest: str
    """label of the first point that has the lowest value"""
    highest: str

    @property
    def varies(self) -> bool:
        return self.low < self.high

    @property
    def logarithmic(self) -> bool:
        return 0 < CROWDED * self.low < self.high


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Points that failed in the same way."""

    status: str
    message: str
    count: int
    example: str
    """label of the first of them"""


def near(summary: Summary, values: Sequence[float], direction: Direction) -> tuple[float, float]:
    """The range to draw: all of the metric, or around the front's `values` where all would crush them into a corner.

    Then twice their spread is left on the worse side, a little on the better one.
    """
    low, high = min(values), max(values)
    spread = high - low
    if not 0 < spread < NEAR * (summary.high - summary.low):
        return summary.low, summary.high
    below, above = (0.3, 2.0) if direction is Direction.MIN else (2.0, 0.3)
    return max(low - below * spread, summary.low), min(high + above * spread, summary.high)


Density = Mapping[tuple[str, str], NDArray[np.int64]]
"""two metrics, in the order of METRICS -> finished points in each cell, [columns * rows]: cell = column * rows + row"""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What is known of a study."""

    statuses: Mapping[str, int]
    engines: Mapping[str, Mapping[str, int]]
    """engine -> status -> points, the most frequent first"""
    reasons: Sequence[Reason]
    summaries: Mapping[str, Summary]
    axes: tuple[str, ...]
    """the metrics of the front: the study's objectives, or two; empty without a finished point"""
    front: Sequence[Row]
    """in the order of the study, at most `MAX_FRONT`"""
    front_size: int
    rows: Sequence[Row]
    """points to list, in the order of the study: the front, that of every two metrics, and a sample of the rest"""
    ranks: Mapping[str, int]
    """key of each of them -> its place where some must be left out: the fronts first, then by hash"""
    density: Density
    """empty where all finished points are listed"""

    @property
    def total(self) -> int:
        return sum(self.statuses.values())

    @property
    def done(self) -> int:
        return self.statuses.get(DONE, 0)

    @property
    def failed(self) -> int:
        return self.total - self.done


def collect(study: Mapping[str, Any], rows: Iterable[Row], measured: Iterable[Row] | None = None) -> Collection:
    """All of it. `rows` is gone through once, and where not all finished points can be listed `measured` as well: the
    same rows, of which `MEASURED` is enough; `rows` again where it is not given. Without any, densities are empty."""
    tally, keep, ranges = _Tally(), _Keep(), _Ranges()
    axes, front = objectives(study), _Front()
    corners = {pair: _Corner() for pair in itertools.combinations(DIRECTED, 2)}
    start = 0
    for chunk in _chunks(rows):
        tally.add(chunk)
        keep.add(chunk, start)
        done = [(place, row) for place, row in enumerate(chunk, start) if row["status"] == DONE]
        values = _values(done)
        first = not ranges.found
        ranges.add(done, values)
        axes = _axes(ranges.found, axes) if first and ranges.found else axes
        front.add(done, _costs(values, axes))
        for pair, corner in corners.items():
            corner.add(done, _costs(values, pair))
        start += len(chunk)
    summaries = ranges.summaries()
    listed = _listed(keep, front, corners.values())
    return Collection(
        statuses=dict(tally.statuses),
        engines=tally.engines(),
        reasons=tally.reasons(),
        summaries=summaries,
        axes=axes if summaries else (),
        front=[row for _, row in sorted(front.kept(), key=_place)],
        front_size=front.size,
        rows=[row for _, row in sorted(listed.values(), key=_place)],
        ranks={key: rank for rank, key in enumerate(listed)},
        density={} if tally.statuses[DONE] <= LISTED else _density(rows if measured is None else measured, summaries),
    )


def objectives(study: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that the study searches for, else `FRONT`."""
    search = study.get("study", {}).get("search")
    chosen = search.get("objectives") if isinstance(search, Mapping) else None
    return tuple(name for name in chosen or () if name in DIRECTED) or FRONT


def _axes(summaries: Mapping[str, Summary], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The wanted metrics, or where one of them is missing the first two of `PREFERRED`, those that vary before others.

    The first finished points decide: a study measures the same of all.
    """
    if all(name in summaries for name in wanted):
        return wanted
    known = sorted((name for name in PREFERRED if name in summaries), key=lambda name: not summaries[name].varies)
    return tuple(sorted(known[:2], key=PREFERRED.index))


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    stream = iter(rows)
    while chunk := list(itertools.islice(stream, CHUNK)):
        yield chunk


Kept = tuple[int, Row]
"""place in the study, and the point"""


def by_area(front: Iterable[Row]) -> list[Row]:
    """Points of the front from the cheapest, and least accurate, up."""
    return sorted(front, key=lambda row: row[FRONT[1]])


def _place(kept: Kept) -> int:
    return kept[0]


def _values(points: Sequence[Kept]) -> Mapping[str, Floats]:
    """Metric -> its value for each point, NaN where it has none."""
    table = np.array([[row.get(name) for name in METRICS] for _, row in points], dtype=np.float64)
    return dict(zip(METRICS, table.reshape(len(points), len(METRICS)).T, strict=True))


def _costs(values: Mapping[str, Floats], axes: Sequence[str]) -> Floats:
    """[points, axes], smaller is better."""
    signs = [1.0 if METRICS[name].direction is Direction.MIN else -1.0 for name in axes]
    return np.stack([sign * values[name] for sign, name in zip(signs, axes, strict=True)], axis=1)


# ---- what is counted


@dataclass(kw_only=True)
class _Tally:
    statuses: Counter[str] = field(default_factory=Counter)
    by_engine: dict[str, Counter[str]] = field(default_factory=dict)
    failures: dict[tuple[str, str], list[Any]] = field(default_factory=dict)

    def add(self, chunk: Sequence[Row]) -> None:
        for row in chunk:
            self.statuses[row["status"]] += 1
            self.by_engine.setdefault(row["engine"], Counter())[row["status"]] += 1
            if row["status"] != DONE:
                self._fail(row)

    def _fail(self, row: Row) -> None:
        reason = (row["status"], row["message"] or "")
        if reason not in self.failures and len(self.failures) >= MAX_REASONS:
            reason = (row["status"], OTHERS)
        self.failures.setdefault(reason, [0, row["label"]])[0] += 1

    def engines(self) -> dict[str, Mapping[str, int]]:
        ranked = sorted(self.by_engine.items(), key=lambda pair: -pair[1].total())
        shown: dict[str, Mapping[str, int]] = {name: dict(counts) for name, counts in ranked[:MAX_ENGINES]}
        if rest := ranked[MAX_ENGINES:]:
            shown[f"({len(rest)} others)"] = dict(sum((counts for _, counts in rest), Counter()))
        return shown

    def reasons(self) -> list[Reason]:
        found = [
            Reason(status=status, message=message, count=count, example=example)
            for (status, message), (count, example) in self.failures.items()
        ]
        return sorted(found, key=lambda reason: (-reason.count, reason.status, reason.message))


@dataclass(kw_only=True)
class _Ranges:
    found: dict[str, Summary] = field(default_factory=dict)

    def add(self, points: Sequence[Kept], values: Mapping[str, Floats]) -> None:
        for name, column in values.items():
            if not np.isnan(column).all():
                part = _summary([row["label"] for _, row in points], column)
                self.found[name] = _joined(self.found[name], part) if name in self.found else part

    def summaries(self) -> dict[str, Summary]:
        return {name: self.found[name] for name in METRICS if name in self.found}


def _summary(labels: Sequence[str], column: Floats) -> Summary:
    low, high = int(np.nanargmin(column)), int(np.nanargmax(column))
    return Summary(
        count=int(np.count_nonzero(~np.isnan(column))),
        low=float(column[low]),
        high=float(column[high]),
        mean=float(np.nanmean(column)),
        lowest=labels[low],
        highest=labels[high],
    )


def _joined(one: Summary, other: Summary) -> Summary:
    low, high = min(one, other, key=lambda s: s.low), max(one, other, key=lambda s: s.high)
    count = one.count + other.count
    return Summary(
        count=count,
        low=low.low,
        high=high.high,
        mean=(one.mean * one.count + other.mean * other.count) / count,
        lowest=low.lowest,
        highest=high.highest,
    )


# ---- which points are kept


@dataclass(kw_only=True)
class _Keep:
    """A sample that depends on the points' keys alone: those whose hashes are the smallest."""

    done: list[tuple[int, int, Row]] = field(default_factory=list)
    failed: list[tuple[int, int, Row]] = field(default_factory=list)

    def add(self, chunk: Sequence[Row], start: int) -> None:
        for place, row in enumerate(chunk, start):
            done = row["status"] == DONE
            heap, limit = (self.done, LISTED) if done else (self.failed, LISTED_FAILURES)
            entry = (-_rank(row["key"]), -place, row)
            if len(heap) < limit:
                heapq.heappush(heap, entry)
            elif entry > heap[0]:
                heapq.heapreplace(heap, entry)

    def rows(self) -> Iterator[Kept]:
        """Failed points are one in ten of the first, where there are so many."""
        done, failed = (
            [(-place, row) for _, place, row in sorted(heap, reverse=True)] for heap in (self.done, self.failed)
        )
        share = max(1, min(10, len(done) // max(len(failed), 1)))
        while done or failed:
            yield from done[:share]
            yield from failed[:1]
            done, failed = done[share:], failed[1:]


def _rank(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8])


@dataclass(kw_only=True)
class _Front:
    """Points that no other dominates, equal ones with them."""

    costs: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """[distinct vectors, metrics]"""
    members: list[list[Kept]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    """of points with that vector; `members` has the first of them"""

    def add(self, points: Sequence[Kept], costs: Floats) -> None:
        fresh: dict[tuple[float, ...], list[Kept]] = {}
        for index in np.flatnonzero(~np.isnan(costs).any(axis=1) & ~self._dominated(costs)).tolist():
            fresh.setdefault(tuple(costs[index].tolist()), []).append(points[index])
        if fresh:
            self._merge(fresh)

    def _dominated(self, costs: Floats) -> NDArray[np.bool_]:
        beaten = np.zeros(len(costs), dtype=np.bool_)
        for kept in self.costs:
            beaten |= (kept <= costs).all(axis=1) & (kept < costs).any(axis=1)
        return beaten

    def _merge(self, fresh: Mapping[tuple[float, ...], list[Kept]]) -> None:
        known = {tuple(vector): index for index, vector in enumerate(self.costs.tolist())}
        old = {vector: (self.members[index], self.counts[index]) for vector, index in known.items()}
        vectors = list(dict.fromkeys([*old, *fresh]))
        costs = np.array(vectors, dtype=np.float64)
        best = nondominated(costs)
        joined = [(old.get(vectors[index], ([], 0)), fresh.get(vectors[index], [])) for index in best]
        self.costs = costs[best]
        self.members = [[*members, *more][:MAX_FRONT] for (members, _), more in joined]
        self.counts = [count + len(more) for (_, count), more in joined]

    @property
    def size(self) -> int:
        return sum(self.counts)

    def kept(self) -> list[Kept]:
        """The first of each vector, then the second, and so on; in all at most `MAX_FRONT`."""
        turns = itertools.zip_longest(*self.members)
        return [kept for turn in turns for kept in turn if kept is not None][:MAX_FRONT]


@dataclass(kw_only=True)
class _Corner:
    """The front of two metrics, one point for each distinct vector."""

    costs: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    members: list[Kept] = field(default_factory=list)

    def add(self, points: Sequence[Kept], costs: Floats) -> None:
        whole = np.flatnonzero(~np.isnan(costs).any(axis=1))
        if not len(whole):
            return
        joined = np.concatenate([self.costs, costs[whole]])
        order = np.lexsort((joined[:, 1], joined[:, 0]))
        heights = joined[order, 1]
        best = order[heights < np.concatenate([[np.inf], np.minimum.accumulate(heights)[:-1]])]
        old = len(self.members)
        self.members = [self.members[i] if i < old else points[whole[i - old]] for i in best]
        self.costs = joined[best]


def _listed(keep: _Keep, front: _Front, corners: Iterable[_Corner]) -> dict[str, Kept]:
    """Key -> point, in the order of their worth; finished and failed ones at most as many as a page holds."""
    found: dict[str, Kept] = {}
    around = itertools.chain.from_iterable(corner.members for corner in corners)
    for kept in itertools.chain(front.kept(), around, keep.rows()):
        if len(found) < LISTED + LISTED_FAILURES:
            found.setdefault(kept[1]["key"], kept)
    return found


# ---- density


def _density(rows: Iterable[Row], summaries: Mapping[str, Summary]) -> Density:
    varied = [name for name, summary in summaries.items() if summary.varies]
    pairs = list(itertools.combinations(varied, 2))
    counts = {pair: np.zeros(CELLS[0] * CELLS[1], dtype=np.int64) for pair in pairs}
    for chunk in _chunks(rows):
        values = _values([(place, row) for place, row in enumerate(chunk) if row["status"] == DONE])
        shares = {name: _share(values[name], summaries[name]) for name in varied}
        for (x, y), grid in counts.items():
            whole = ~np.isnan(shares[x]) & ~np.isnan(shares[y])
            column, line = (_cell(shares[name][whole], cells) for name, cells in zip((x, y), CELLS, strict=True))
            grid += np.bincount(column * CELLS[1] + line, minlength=len(grid))
    return counts if any(grid.any() for grid in counts.values()) else {}


def _share(column: Floats, summary: Summary) -> Floats:
    """Where the values stand between the lowest and the highest, 0 to 1, on the axis that they would have."""
    low, high, at = summary.low, summary.high, column
    if summary.logarithmic:
        low, high, at = np.log(low), np.log(high), np.log(column)
    return (at - low) / (high - low)


def _cell(share: Floats, cells: int) -> NDArray[np.int64]:
    return np.minimum((share * cells).astype(np.int64), cells - 1)
