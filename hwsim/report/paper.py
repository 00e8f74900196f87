"""Tables of a study as Markdown: its front, each metric over all points, and how it was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hwsim.markdown import cell, table
from hwsim.metrics import METRICS, Direction
from hwsim.report.collect import Collection, Row, Summary, collect
from hwsim.sweep.point import WORDS
from hwsim.terminal import printable

MARKDOWN = "<!-- hwsim: tables of a study -->"
"""how the tables begin"""


def markdown(study: Mapping[str, Any], rows: Iterable[Row]) -> bytes:
    """The tables; `study` and `rows` as in `render`. Text of the study is escaped, so that it stays text."""
    collection = collect(study, rows, ())
    settings = study["study"]
    parts = [
        MARKDOWN,
        f"# {cell(str(settings.get('title') or settings['name']))}",
        f"{collection.done:,} points finished, {collection.failed:,} failed. Made by `{_code(str(study['command']))}`.",
        *_front(collection),
        *_metrics(collection),
        *_failures(collection),
        "## Versions",
        "\n".join(f"- {cell(str(name))}: {cell(str(value))}" for name, value in study["versions"].items()),
    ]
    return ("\n\n".join(part for part in parts if part) + "\n").encode(errors="replace")


def _front(collection: Collection) -> list[str]:
    if not collection.front:
        return []
    lead = collection.axes[-1]
    others = [name for name in collection.summaries if name not in collection.axes]
    names = [*collection.axes, *(name for name in others if METRICS[name].direction is not Direction.NONE)]
    body = [
        [*(str(row[word]) for word in WORDS), *(_shown(name, row[name]) for name in names)]
        for row in sorted(collection.front, key=lambda row: row[lead])
    ]
    cut = collection.front_size - len(body)
    more = f" {cut:,} more points equal some of these." if cut else ""
    titles = " and ".join(METRICS[name].title for name in collection.axes)
    headings = [*WORDS, *(METRICS[name].heading for name in names)]
    return [
        f"## Pareto front of {titles}",
        f"No other point is better in one of these metrics without being worse in another.{more}",
        table(headings, body, len(WORDS)),
    ]


def _metrics(collection: Collection) -> list[str]:
    if not collection.summaries:
        return []
    body = [_summary(name, summary) for name, summary in collection.summaries.items()]
    return [
        "## Metrics over all finished points",
        table(("metric", "points", "least", "mean", "greatest", "best point"), body, 1),
    ]


def _summary(name: str, summary: Summary) -> list[str]:
    best = {Direction.MAX: summary.highest, Direction.MIN: summary.lowest, Direction.NONE: ""}[METRICS[name].direction]
    numbers = (_shown(name, summary.low), format(summary.mean, ",.4g"), _shown(name, summary.high))
    return [METRICS[name].heading, f"{summary.count:,}", *numbers, best]


def _failures(collection: Collection) -> list[str]:
    if not collection.reasons:
        return []
    body = [[reason.status, f"{reason.count:,}", reason.message, reason.example] for reason in collection.reasons]
    return ["## Failed points", table(("status", "points", "reason", "for example"), body, 4)]


def _shown(name: str, value: float | None) -> str:
    metric = METRICS[name]
    return metric.show(None if value is None else metric.kind(value))


def _code(text: str) -> str:
    return printable(" ".join(text.split())).replace("`", "'")[:1000]
