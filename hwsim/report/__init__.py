"""The report of a study: one self-contained HTML file, readable without JavaScript and without a network."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hwsim.files import os_errors, write_atomic
from hwsim.metrics import FRONT, METRICS, pareto
from hwsim.page import HEAD, STYLE, document, figure, still
from hwsim.sweep.space import FLOAT_ACTIVATIONS
from hwsim.sweep.store import DONE, Row, close_store, read_store, read_study, study_rows
from models.unit import InputError, require

MAX_BYTES = 2_000_000
MAX_ROWS = 400
"""points that a page lists and draws at most; fewer where they are long"""
MAX_TEXT = 100_000
"""characters shown of the study's text, which a sweep file of many engines makes long"""
MAX_MESSAGE = 200
"""characters shown of a failed point's message"""
WORDS = ("engine", "format", "transform", "quantizer", "activations")
"""what names a point within its study"""

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

MARKS = """
tr.front { background: #fff8dc; }
tr.failed { color: #9a2a1f; }
td.word { white-space: nowrap; }
"""
"""what the tables of a report have beside every page's style"""

OURS = re.compile(re.escape(HEAD.encode()) + rb'|<svg [^>]*\bclass="marks"')
"""the first bytes of a report or a picture"""


def write_report(store_path: Path, out_path: Path) -> None:
    """Write the report of the store's current study to `out_path`, at most `MAX_BYTES` long, atomically.

    Where the points are too many for that, it shows a sample and says so (`sample`). The same results give the same
    bytes. Raises InputError for a store that cannot be read, a store without a study, a missing report extra, and a
    target that is neither absent nor a report or picture of ours.
    """
    _check_target(store_path, out_path)
    store = read_store(store_path)
    try:
        study, rows = read_study(store), study_rows(store)
    finally:
        close_store(store)
    if not {"study", "command", "versions"} <= study.keys():
        raise InputError(f"{store_path}: holds no study yet; run `hwsim sweep` first")
    write_atomic(out_path, _fitting_page(study, rows))


def write_picture(store_path: Path, out_path: Path) -> None:
    """Write the Pareto front of the store's current study to `out_path` as SVG, atomically.

    Raises InputError for a store that cannot be read or has no finished point, for a missing report extra, and for a
    target that is neither absent nor a report or picture of ours.
    """
    _check_target(store_path, out_path)
    store = read_store(store_path)
    try:
        rows = [row for row in study_rows(store) if row["status"] == DONE]
    finally:
        close_store(store)
    require(bool(rows), f"{store_path}: holds no finished point to draw; run `hwsim sweep` first")
    data = _data(rows, front_keys(rows))
    write_atomic(out_path, still(_front_chart(data), {"points": data}))


def _check_target(store_path: Path, out_path: Path) -> None:
    """Refuse a target that holds something else, above all the store itself."""
    with os_errors(out_path):
        if not out_path.is_file():
            return
        same = store_path.exists() and out_path.samefile(store_path)
        require(not same, f"{out_path}: is the store itself; name another file for the report")
        with out_path.open("rb") as file:
            begin = file.read(400)
    require(OURS.match(begin) is not None, f"{out_path}: exists and is no report of hwsim; name another file")


def front_keys(rows: Iterable[Row]) -> frozenset[str]:
    """Keys of the finished points on the Pareto front."""
    done = [row for row in rows if row["status"] == DONE]
    return frozenset(done[index]["key"] for index in pareto(done, FRONT))


def _fitting_page(study: Mapping[str, Any], rows: Sequence[Row]) -> bytes:
    """The page with about as many points as fit; without any, a page is far shorter than `MAX_BYTES`."""
    limit = min(MAX_ROWS, len(rows))
    while True:
        page = render(study, rows, limit).encode(errors="replace")
        if len(page) <= MAX_BYTES or limit == 0:
            return page
        limit = limit * 3 // 4


def sample(rows: Sequence[Row], front: frozenset[str], limit: int) -> tuple[list[Row], str]:
    """At most `limit` of the rows, in their order, the front before all others, and a sentence that says which.

    Of the front, and then of the others, it takes every n-th from the first on, with the smallest n for which they fit.
    """
    if len(rows) <= limit:
        return list(rows), "The same numbers in full are in points.csv."
    best = [row for row in rows if row["key"] in front]
    others = [row for row in rows if row["key"] not in front]
    shown, of_best = _every_nth(best, limit)
    more, of_others = _every_nth(others, limit - len(shown))
    keys = {row["key"] for row in (*shown, *more)}
    return (
        [row for row in rows if row["key"] in keys],
        f"Too many for this page: {len(keys)} of {len(rows)} points are listed and drawn, {of_best} of the front and "
        f"{of_others} of the others. All are in points.csv.",
    )


def _every_nth(rows: Sequence[Row], limit: int) -> tuple[Sequence[Row], str]:
    if limit == 0:
        return [], "none"
    step = max(1, -(-len(rows) // limit))
    return rows[::step], "all" if step == 1 else f"one in {step}"


def render(study: Mapping[str, Any], rows: Sequence[Row], limit: int) -> str:
    """The page as text, with at most `limit` of the rows.

    `study` is what `store.read_study` gives, `rows` what `store.study_rows` gives.
    """
    front = front_keys(rows)
    shown, which = sample(rows, front, limit)
    failed = sum(row["status"] != DONE for row in rows)
    data = _data(shown, front)
    name = str(study["study"]["name"])
    body = [
        f"<h1>{html.escape(name)}</h1>",
        f"<p>{len(rows) - failed} design points{_failures(failed)}. {which}</p>",
        *_figures(data),
        "<h2>Pareto front</h2>",
        _table(by_area(row for row in shown if row["key"] in front), frozenset(), FRONT_COLUMNS),
        "<h2>All points</h2>",
        f"<p>Points on the front are shaded. {which}</p>",
        _table(shown, front, _measured(shown)),
        *_explanations(study),
    ]
    return document(f"hwsim: {name}", STYLE + MARKS, body, {"points": data})


def _failures(count: int) -> str:
    return f", {count} more failed (see the table)" if count else ""


# ---- tables

FRONT_COLUMNS = ("accuracy", FRONT[1], "cycles", "utilization", "energy_pj", "area_um2", "clock_mhz", "bits_per_weight")


def by_area(front: Iterable[Row]) -> list[Row]:
    """Points of the front from the cheapest, and least accurate, up."""
    return sorted(front, key=lambda row: row[FRONT[1]])


def _measured(rows: Sequence[Row]) -> tuple[str, ...]:
    """The metrics that every point has, and the others that any of them has."""
    return tuple(n for n, m in METRICS.items() if not m.optional or any(row[n] is not None for row in rows))


def _table(rows: Sequence[Row], marked: frozenset[str], names: Sequence[str]) -> str:
    failed = any(row["status"] != DONE for row in rows)
    titles = [f"<th>{word}</th>" for word in WORDS]
    titles += [f"<th>{html.escape(METRICS[n].title)}<span>{html.escape(METRICS[n].unit)}</span></th>" for n in names]
    head = "".join(titles) + ("<th>failure</th>" if failed else "")
    body = "\n".join(_table_row(row, marked, names, failed) for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _table_row(row: Row, marked: frozenset[str], names: Sequence[str], failed: bool) -> str:
    kind = "failed" if row["status"] != DONE else "front" if row["key"] in marked else "plain"
    words = "".join(f'<td class="word">{html.escape(str(row[word]))}</td>' for word in WORDS)
    numbers = "".join(f'<td class="number">{METRICS[name].show(row[name])}</td>' for name in names)
    message = f"<td>{html.escape(_short(row['message'] or '', MAX_MESSAGE))}</td>" if failed else ""
    return f'<tr class="{kind}">{words}{numbers}{message}</tr>'


def _explanations(study: Mapping[str, Any]) -> list[str]:
    metrics = "\n".join(
        f"<tr><td>{html.escape(m.title)}</td><td><code>{m.column}</code></td><td>{html.escape(m.unit)}</td>"
        f"<td>{m.direction.value}</td><td>{html.escape(m.description)}</td></tr>"
        for m in METRICS.values()
    )
    return [
        "<h2>What the metrics mean</h2>",
        "<table><thead><tr><th>metric</th><th>column</th><th>unit</th><th>better</th><th>meaning</th></tr></thead>",
        f"<tbody>{metrics}</tbody></table>",
        "<h2>Approximations</h2>",
        "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in APPROXIMATIONS) + "</ul>",
        "<h2>How this was made</h2>",
        _pre(study["command"]),
        "<p>Study:</p>",
        _pre(json.dumps(study["study"], indent=2, ensure_ascii=False)),
        "<p>Versions on which the results depend:</p>",
        _pre(json.dumps(study["versions"], indent=2, ensure_ascii=False)),
    ]


def _pre(text: str) -> str:
    return f"<pre>{html.escape(_short(text, MAX_TEXT))}</pre>"


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]} ... (cut; in full in points.csv and config.resolved.json)"


# ---- figures

Data = list[dict[str, Any]]
"""a record a finished point: `WORDS`, the metrics that it has, and `front`; all charts share it by the name `points`"""


def _data(rows: Iterable[Row], front: frozenset[str]) -> Data:
    names = (*WORDS, *METRICS)
    return [
        {name: row[name] for name in names if row[name] is not None} | {"front": row["key"] in front}
        for row in rows
        if row["status"] == DONE
    ]


def _figures(data: Data) -> list[str]:
    if not data:
        return ["<p>No finished point to draw.</p>"]
    ways = _one_way(data)
    shared = ", ".join(f"{word} {' or '.join(values)}" for word, values in ways.items())
    return [
        figure(
            _front_chart(data),
            {"points": data},
            "Accuracy against the silicon that one GMAC/s takes. The steps join the points that no other point beats "
            "in both; the labels name their formats. Up and to the left is better; far points are outside.",
        ),
        figure(_spread_chart(data), {"points": data}, "The same, all points."),
        figure(_area_chart(ways), {"points": data}, f"Area by format, of the points with {shared}."),
        figure(_accuracy_chart(), {"points": data}, "Accuracy by format."),
    ]


def _front_chart(data: Data) -> Any:
    """The front and what lies near it: far points would crush it into a corner."""
    # a sample may hold no point of the front: then all of it is near
    near = [record for record in data if record["front"]] or data
    x, y = ([record[name] for record in near] for name in (FRONT[1], FRONT[0]))
    margin = max(max(y) - min(y), 0.01)
    domain = ([0.8 * min(x), 1.6 * max(x)], [max(min(y) - margin, 0.0), min(max(y) + margin / 2, 1.0)])
    return _scatter(data, domain).properties(width=760, height=420, title="Pareto front")


def _spread_chart(data: Data) -> Any:
    """The same axes over all points."""
    return _scatter(data, None).properties(width=760, height=300, title="All points")


def _scatter(data: Data, domain: tuple[list[float], list[float]] | None) -> Any:
    import altair as alt

    x, y = FRONT[1], FRONT[0]
    scales = (
        (_scale(record[x] for record in data), alt.Scale(zero=False))
        if domain is None
        else (alt.Scale(domain=domain[0], nice=False), alt.Scale(domain=domain[1], nice=False))
    )
    position = {
        "x": alt.X(f"{x}:Q", title=METRICS[x].heading, scale=scales[0]),
        "y": alt.Y(f"{y}:Q", title=METRICS[y].heading, scale=scales[1]),
    }
    zoom = alt.selection_interval(bind="scales", name="zoom")
    chosen = alt.selection_point(fields=["engine"], bind="legend", name="chosen")
    front = _points().transform_filter(alt.FieldEqualPredicate(field="front", equal=True))
    line = front.mark_line(color="#888", strokeDash=[4, 3], interpolate="step-after", clip=True).encode(**position)
    points = (
        _points()
        .properties(name="points")
        .mark_point(filled=True, size=90, clip=True)
        .encode(
            **position,
            color=_colour(),
            shape=alt.Shape("transform:N", title="transform"),
            opacity=alt.condition(chosen, alt.value(0.85), alt.value(0.15)),
            tooltip=_tooltip(),
        )
        .add_params(zoom, chosen)
    )
    if domain is None:
        return alt.layer(line, points)
    labels = front.mark_text(dx=8, dy=-8, align="left", fontSize=11).encode(**position, text="format:N")
    return alt.layer(line, points, labels)


def _one_way(data: Data) -> dict[str, list[str]]:
    """What a format's bars must have in common: word -> its values, so that an engine has one bar."""
    kinds = [*dict.fromkeys(record["activations"] for record in data)]
    integers, floats = (
        [kind for kind in kinds if (kind in FLOAT_ACTIVATIONS) is is_float] for is_float in (False, True)
    )
    shared = {word: [data[0][word]] for word in ("transform", "quantizer")}
    return shared | {"activations": integers[:1] + floats}


def _area_chart(ways: Mapping[str, list[str]]) -> Any:
    import altair as alt

    chart = _points()
    for word, values in ways.items():
        chart = chart.transform_filter(alt.FieldOneOfPredicate(field=word, oneOf=values))
    return (
        chart.mark_bar()
        .encode(
            x=alt.X("format:N", title="format", sort=None, axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("engine:N"),
            y=alt.Y("area_um2:Q", title=METRICS["area_um2"].heading),
            color=_colour(),
            tooltip=_tooltip(),
        )
        .properties(width=760, height=240, title="Area")
    )


def _accuracy_chart() -> Any:
    import altair as alt

    return (
        _points()
        .mark_point(filled=True, size=70, opacity=0.85)
        .encode(
            x=alt.X("format:N", title="format", sort=None, axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("engine:N"),
            y=alt.Y("accuracy:Q", title=METRICS["accuracy"].heading, scale=alt.Scale(zero=False)),
            color=_colour(),
            shape=alt.Shape("transform:N", title="transform"),
            tooltip=_tooltip(),
        )
        .properties(width=760, height=240, title="Accuracy")
    )


def _points() -> Any:
    import altair as alt

    return alt.Chart(alt.NamedData(name="points"))


def _colour() -> Any:
    import altair as alt

    return alt.Color("engine:N", title="engine")


def _tooltip() -> list[Any]:
    import altair as alt

    numbers = [alt.Tooltip(f"{m.name}:Q", title=m.heading, format=m.format) for m in METRICS.values()]
    return [*(alt.Tooltip(f"{word}:N") for word in WORDS), *numbers]


def _scale(values: Iterable[float]) -> Any:
    """Logarithmic where the values span more than a factor of 20, which a linear axis would crush."""
    import altair as alt

    low, *_, high = sorted([*values] * 2)
    return alt.Scale(type="log") if 0 < 20 * low < high else alt.Scale(zero=False)
