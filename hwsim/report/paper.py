"""Tables of a study as Markdown: its front, each metric over all points, and how it was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hwsim.metrics import METRICS, Direction
from hwsim.report.collect import Collection, Row, Summary, collect
from hwsim.terminal import printable

MARKDOWN = "<!-- hwsim: tables of a study -->"
"""how the tables begin"""
WORDS = ("engine", "format", "transform", "quantizer", "activations")
MAX_TEXT = 200


def markdown(study: Mapping[str, Any], rows: Iterable[Row]) -> bytes:
    """The tables; `study` and `rows` as in `render`. Text of the study is escaped, so that it stays text."""
    collection = collect(study, rows, ())
    settings = study["study"]
    parts = [
        MARKDOWN,
        f"# {_cell(str(settings.get('title') or settings['name']))}",
        f"{collection.done:,} points finished, {collection.failed:,} failed. Made by `{_code(str(study['command']))}`.",
        *_front(collection),
        *_metrics(collection),
        *_failures(collection),
        "## Versions",
        "\n".join(f"- {_cell(str(name))}: {_cell(str(value))}" for name, value in study["versions"].items()),
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
        _table(headings, body, len(WORDS)),
    ]


def _metrics(collection: Collection) -> list[str]:
    if not collection.summaries:
        return []
    body = [_summary(name, summary) for name, summary in collection.summaries.items()]
    return [
        "## Metrics over all finished points",
        _table(("metric", "points", "least", "mean", "greatest", "best point"), body, 1),
    ]


def _summary(name: str, summary: Summary) -> list[str]:
    best = {Direction.MAX: summary.highest, Direction.MIN: summary.lowest, Direction.NONE: ""}[METRICS[name].direction]
    numbers = (_shown(name, summary.low), format(summary.mean, ",.4g"), _shown(name, summary.high))
    return [METRICS[name].heading, f"{summary.count:,}", *numbers, best]


def _failures(collection: Collection) -> list[str]:
    if not collection.reasons:
        return []
    body = [[reason.status, f"{reason.count:,}", reason.message, reason.example] for reason in collection.reasons]
    return ["## Failed points", _table(("status", "points", "reason", "for example"), body, 4)]


def _shown(name: str, value: float | None) -> str:
    metric = METRICS[name]
    return metric.show(None if value is None else metric.kind(value))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> str:
    """The first `words` columns stand to the left, the others to the right."""
    rule = [" --- "] * words + [" ---: "] * (len(headings) - words)
    lines = [f"| {' | '.join(map(_cell, headings))} |", f"|{'|'.join(rule)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)])


def _cell(text: str) -> str:
    """On one line, without what Markdown or HTML would read."""
    flat = printable(" ".join(text.split()))
    cut = flat if len(flat) <= MAX_TEXT else f"{flat[:MAX_TEXT]} ..."
    marked = cut.replace("\\", "\\\\")
    for character in "`*_[]|#":
        marked = marked.replace(character, f"\\{character}")
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(text: str) -> str:
    return printable(" ".join(text.split())).replace("`", "'")[:1000]
