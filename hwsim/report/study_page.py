"""The page of a study: one self-contained file, complete without JavaScript, which its script makes explorable."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from hwsim.metrics import METRICS
from hwsim.page import page
from hwsim.report.collect import CROWDED, Collection, Row, collect, near
from hwsim.report.columns import KEY_DIGITS, MAX_MESSAGE, page_data
from hwsim.report.draw import Frame, axis, glyph, grouping, line, scatter, series_of
from hwsim.sweep.point import WORDS
from hwsim.sweep.tasks import DONE

MAX_BYTES = 2_900_000
STATIC_ROWS = 200
"""of the table that stands in the page without its script"""
STATIC_FRONT = 400
MAX_TEXT = 100_000
"""characters shown of the study's text, which a sweep file of many engines makes long"""
MAX_NAME = 120

APPROXIMATIONS = (
    "Area and delay come from synthesis of the point's own RTL. There is no placement, no clock tree and no wire: real "
    "silicon is larger and slower.",
    "With the built-in cell library, cell areas are published ones and delays follow from logical effort. A Liberty "
    "file given with --liberty takes its place.",
    "Cycles are stall-free and compute-only: operands are taken to arrive in time. Quantizers, transform units and "
    "engine take turns, at the clock of the slowest.",
    "Quantized layers read FP16. Zero-point correction, scales, bias, activation functions, a transform's clip and "
    "static integers of a state are in the accuracy, in no cycle, area or energy; so is the conversion of FP16 to an "
    "engine's own floats.",
    "Energy is a count of operations times a published energy of each (45 nm): arithmetic and registers, no memories, "
    "no wires, no clock. It compares engines; it does not predict a chip.",
)


def render(study: Mapping[str, Any], rows: Iterable[Row], measured: Iterable[Row] | None = None) -> bytes:
    """The page, at most `MAX_BYTES` long: `study` as `store.read_study` gives it, `rows` as `store.study_rows`.

    `rows`, and `measured` as in `collect`, are looped over and not kept, `rows` twice at most. Where the points are
    too many, the page has the front, the fronts of every two metrics and a sample of the others, counts all of them,
    and says so. The same results give the same bytes.
    """
    collection = collect(study, rows, measured)
    room = len(collection.rows)
    while True:
        content = _page(study, collection, _best(collection, room)).encode(errors="replace")
        if len(content) <= MAX_BYTES or room == 0:
            return content
        room = room * 3 // 4


def _best(collection: Collection, room: int) -> list[Row]:
    return [row for row in collection.rows if collection.ranks[row["key"]] < room]


def _page(study: Mapping[str, Any], collection: Collection, rows: Sequence[Row]) -> str:
    settings = study["study"]
    name = str(settings.get("title") or settings["name"])
    body = [
        '<a class="skip" href="#points">Skip to the table</a>',
        _header(settings, name, collection),
        '<main id="study">',
        _tradeoff(collection, rows),
        '<section id="parallel" hidden></section>',
        _front_section(collection),
        _points_section(collection, rows),
        _failures_section(collection),
        _engines_section(collection),
        _search_section(study.get("progress")),
        *_explanations(study, collection),
        "</main>",
        '<main id="point" tabindex="-1" hidden></main>',
    ]
    data = page_data(collection, rows) | {"frontRows": [row["key"][:KEY_DIGITS] for row in _cheapest(collection)]}
    return page(f"hwsim: {name}", _asset("report.css"), body, data, [_script()])


def _script() -> str:
    parts = ("data", "state", "scatter", "parallel", "table", "point", "main")
    return '"use strict";\n{\n' + "".join(_asset(f"script/{part}.js") for part in parts) + "}\n"


def _asset(name: str) -> str:
    return (files("hwsim.report") / name).read_text(encoding="utf-8")


def _cheapest(collection: Collection) -> list[Row]:
    """Points of the front as its table lists them, by the last of its metrics."""
    return sorted(collection.front, key=lambda row: row[collection.axes[-1]])[:STATIC_FRONT]


# ---- head


def _header(settings: Mapping[str, Any], name: str, collection: Collection) -> str:
    networks = settings.get("network", "")
    described = networks if isinstance(networks, str) else ", ".join(map(str, networks))
    own = [str(settings["name"])] if name != settings["name"] else []
    sub = html.escape(_short(" · ".join([*own, described]), 400))
    return (
        '<header class="top"><div><p class="over">hwsim · design study</p>'
        f'<h1>{html.escape(name)}</h1><p class="sub">{sub}</p></div>{_tiles(collection)}</header>'
    )


def _tiles(collection: Collection) -> str:
    facts = [
        (f"{collection.done:,}", "points finished", "plain"),
        (f"{collection.front_size:,}", "on the front", "good"),
        (f"{collection.failed:,}", "failed", "bad" if collection.failed else "plain"),
    ]
    for name in collection.axes[:2]:
        summary, metric = collection.summaries[name], METRICS[name]
        best = summary.high if metric.direction.value == "max" else summary.low
        facts.append((f"{_shown(name, best)}", f"best {metric.title} [{metric.unit}]", "plain"))
    tiles = "".join(f'<li class="{kind}"><b>{value}</b>{html.escape(what)}</li>' for value, what, kind in facts)
    return f'<ul class="tiles">{tiles}</ul>'


def _shown(name: str, value: float | None) -> str:
    metric = METRICS[name]
    return metric.show(None if value is None else metric.kind(value))


def which(collection: Collection, shown: int) -> str:
    """A sentence that says which points a page holds."""
    if shown == collection.total:
        return "All points of the study are here; the same numbers in full are in points.csv."
    return (
        f"Too many for one page: {shown:,} of {collection.total:,} points are listed and drawn, the front and the "
        "fronts of every two metrics first, then a sample chosen by hash. Counts and densities are of all points; all "
        "of them are in points.csv."
    )


# ---- figures


def _tradeoff(collection: Collection, rows: Sequence[Row]) -> str:
    if len(collection.axes) < 2:
        return '<section id="tradeoff"><h2>Trade-off</h2><p>No finished point to draw.</p></section>'
    y, x = collection.axes[:2]
    drawn = [row for row in rows if row["status"] == DONE and row[x] is not None and row[y] is not None]
    by = grouping(drawn)
    series = series_of([row[by] for row in drawn])
    frame = _frame(collection, x, y)
    best = sorted((row for row in collection.front if row[x] is not None), key=lambda row: row[x])
    labels = [(float(row[x]), float(row[y]), str(row["format"])) for row in best]
    points = [(float(row[x]), float(row[y]), series[row[by]]) for row in drawn]
    outside = sum(not frame.holds(a, b) for a, b, _ in points)
    title = f"{METRICS[y].title} against {METRICS[x].title}"
    legend = "".join(f"<li>{glyph(number)} {html.escape(_short(name, MAX_NAME))}</li>" for name, number in _top(series))
    beyond = f" {outside:,} points lie outside, far from the front." if outside else ""
    return (
        '<section id="tradeoff"><h2>Trade-off</h2><div class="controls"></div><figure>'
        f'<div class="scroll plot">{scatter(frame, points, labels, title)}</div><ul class="legend">{legend}</ul>'
        f"<figcaption>Each mark is a design point; the line joins those that no other point beats in both metrics."
        f"{beyond}</figcaption></figure></section>"
    )


def _top(series: Mapping[str, int]) -> list[tuple[str, int]]:
    """The legend: series that share a mark stand there once."""
    shown: dict[int, str] = {}
    for name, number in series.items():
        shown[number] = "others" if number in shown else name
    return [(name, number) for number, name in shown.items()]


def _frame(collection: Collection, x: str, y: str) -> Frame:
    scales = []
    for name, other in ((x, y), (y, x)):
        values = [row[name] for row in collection.front if row[name] is not None and row[other] is not None]
        low, high = near(collection.summaries[name], values, METRICS[name].direction)
        scales.append(axis(METRICS[name].heading, low, high, 0 < CROWDED * low < high))
    return Frame(width=820, height=460, x=scales[0], y=scales[1])


def _search_section(progress: Any) -> str:
    """The hypervolume after each number of points, of a search."""
    steps = _steps(progress)
    if len(steps) < 2:
        return ""
    highest = max(value for _, value in steps)
    frame = Frame(
        width=820,
        height=260,
        x=axis("points evaluated", steps[0][0], steps[-1][0], False),
        y=axis("hypervolume", min(value for _, value in steps), highest, False),
    )
    return (
        '<section id="search"><h2>Search</h2><figure><div class="scroll plot">'
        f"{line(frame, steps, 'hypervolume against points evaluated')}</div><figcaption>Hypervolume that the front "
        f"dominates, after each number of points; {highest:.4g} in the end.</figcaption></figure></section>"
    )


def _steps(progress: Any) -> list[tuple[float, float]]:
    pairs = progress if isinstance(progress, list | tuple) else []
    return [(float(a), float(b)) for a, b in pairs if isinstance(a, int | float) and isinstance(b, int | float)]


# ---- tables


def measured(collection: Collection) -> tuple[str, ...]:
    """The metrics that any point has."""
    return tuple(collection.summaries)


def _front_section(collection: Collection) -> str:
    if not collection.front:
        return ""
    names = [*collection.axes, *(name for name in measured(collection) if name not in collection.axes)]
    shown = _cheapest(collection)
    cut = "" if len(shown) == collection.front_size else f" {len(shown):,} of {collection.front_size:,} are listed."
    text = " and ".join(METRICS[name].title for name in collection.axes)
    return (
        f'<section id="front"><h2>Pareto front</h2><p>No other point is better in one of {html.escape(text)} without '
        f"being worse in another.{cut}</p>{_table(shown, names)}</section>"
    )


def _points_section(collection: Collection, rows: Sequence[Row]) -> str:
    shown = rows[:STATIC_ROWS]
    more = (
        f" The first {len(shown)} are listed here; the script of this page shows all." if len(shown) < len(rows) else ""
    )
    link = '<p><a href="points.csv">points.csv</a> has every point and every digit.</p>'
    return (
        f'<section id="points" tabindex="-1"><h2>Points</h2><p>{which(collection, len(rows))}'
        f'<span class="noscript">{more}</span></p><div class="controls"></div>'
        f"{_table(shown, measured(collection))}<div class='pager'></div>{link}</section>"
    )


def _table(rows: Sequence[Row], names: Sequence[str]) -> str:
    failed = any(row["status"] != DONE for row in rows)
    titles = [f'<th scope="col">{word}</th>' for word in WORDS]
    titles += [
        f'<th scope="col">{html.escape(METRICS[n].title)}<span>{html.escape(METRICS[n].unit)}</span></th>'
        for n in names
    ]
    head = "".join(titles) + ('<th scope="col">failure</th>' if failed else "")
    body = "\n".join(_table_row(row, names, failed) for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _table_row(row: Row, names: Sequence[str], failed: bool) -> str:
    words = "".join(
        f'<td class="word{" name" * (word == "engine")}">{html.escape(_short(str(row[word]), MAX_NAME))}</td>'
        for word in WORDS
    )
    numbers = "".join(f'<td class="number">{_shown(name, row.get(name))}</td>' for name in names)
    message = _short(f"{row['status']}: {row['message']}", MAX_MESSAGE) if row["status"] != DONE else ""
    return f"<tr>{words}{numbers}{f'<td>{html.escape(message)}</td>' if failed else ''}</tr>"


def _failures_section(collection: Collection) -> str:
    if not collection.reasons:
        return ""
    body = [
        [reason.status, f"{reason.count:,}", _short(reason.message, MAX_MESSAGE), _short(reason.example, MAX_NAME)]
        for reason in collection.reasons
    ]
    table = plain_table(("status", "points", "reason", "for example"), body)
    return f'<section id="failures"><h2>Failed points</h2>{table}</section>'


def _engines_section(collection: Collection) -> str:
    if len(collection.engines) < 2:
        return ""
    statuses = sorted({status for counts in collection.engines.values() for status in counts}, key=lambda s: s != DONE)
    body = [
        [_short(name, MAX_NAME), *(f"{counts.get(status, 0):,}" for status in statuses)]
        for name, counts in collection.engines.items()
    ]
    return f'<section id="engines"><h2>Engines</h2>{plain_table(("engine", *statuses), body)}</section>'


def plain_table(headings: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in headings)
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in cells) for cells in body)
    rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(headings[0])}"><table><thead><tr>'
        f"{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>"
    )


# ---- explanations


def _explanations(study: Mapping[str, Any], collection: Collection) -> list[str]:
    metrics = [METRICS[name] for name in measured(collection)]
    body = [[m.title, m.column, m.unit, m.direction.value, m.description] for m in metrics]
    return [
        '<section id="about"><h2>What the metrics mean</h2>',
        plain_table(("metric", "column", "unit", "better", "meaning"), body),
        "<h2>Approximations</h2>",
        "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in APPROXIMATIONS) + "</ul>",
        "<h2>How this was made</h2>",
        _pre(str(study["command"])),
        "<details><summary>Study</summary>" + _json(study["study"]) + "</details>",
        "<details><summary>Versions on which the results depend</summary>" + _json(study["versions"]) + "</details>",
        "</section>",
    ]


def _json(value: Any) -> str:
    return _pre(json.dumps(value, indent=2, ensure_ascii=False))


def _pre(text: str) -> str:
    return f"<pre>{html.escape(_short(text, MAX_TEXT))}</pre>"


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]} ... (cut; in full in points.csv and config.resolved.json)"
