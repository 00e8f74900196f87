"""The report of a study: one self-contained HTML file, readable without JavaScript and without a network."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hwsim.files import write_atomic
from hwsim.metrics import FRONT, METRICS, pareto
from hwsim.store import DONE, Row, close_store, read_store, read_study, study_rows
from models.unit import InputError

MAX_BYTES = 2_000_000
WORDS = ("engine", "format", "transform")
"""what names a point within its study"""

APPROXIMATIONS = (
    "Area and delay come from synthesis of the point's own RTL. There is no placement, no clock tree and no wire: real "
    "silicon is larger and slower.",
    "With the built-in cell library, cell areas are published ones and delays follow from logical effort. A Liberty "
    "file given with --liberty takes its place.",
    "Cycles are stall-free and compute-only: operands are taken to arrive in time. Engine and transform unit take "
    "turns, at the clock of the slower.",
    "Zero-point correction, scales, bias and activation functions are in the accuracy, in no cycle, area or energy.",
    "Energy is a count of operations times a published energy of each (45 nm): arithmetic and registers, no memories, "
    "no wires, no clock. It compares engines; it does not predict a chip.",
)

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1b1f24;
       background: #fff; }
h1 { margin-bottom: 0; }
h2 { margin-top: 2.5rem; }
code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { background: #f4f5f7; padding: .8rem; overflow-x: auto; }
figure { margin: 1rem 0; }
figure svg { max-width: 100%; height: auto; }
figcaption { color: #57606a; max-width: 60rem; }
.scroll { overflow: auto; max-height: 44rem; border: 1px solid #d0d7de; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e3e6ea; text-align: left; vertical-align: top; }
.scroll th { position: sticky; top: 0; background: #f4f5f7; }
th span { display: block; font-weight: normal; color: #57606a; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.front { background: #fff8dc; }
tr.failed { color: #9a2a1f; }
td.word { white-space: nowrap; }
"""

SCRIPT = """
"use strict";
for (const data of document.querySelectorAll("script[type='application/json']")) {
  const figure = data.parentElement;
  const live = document.createElement("div");
  figure.insertBefore(live, figure.firstChild);
  // ast: Vega interprets its expressions, so that the page needs no unsafe-eval
  vegaEmbed(live, JSON.parse(data.textContent), {ast: true, actions: false, renderer: "svg"}).then(
    () => { figure.querySelector(".still").hidden = true; },
    (error) => { live.remove(); console.error(error); },
  );
}
"""


def write_report(store_path: Path, out_path: Path) -> None:
    """Write the report of the store's current study to `out_path`, at most `MAX_BYTES` long, atomically.

    The same results give the same bytes. Raises InputError for a store that cannot be read, a store without a study, a
    missing report extra, and a study with so many points that the report would be too long.
    """
    store = read_store(store_path)
    try:
        study, rows = read_study(store), study_rows(store)
    finally:
        close_store(store)
    if not {"study", "command", "versions"} <= study.keys():
        raise InputError(f"{store_path}: holds no study yet; run `hwsim sweep` first")
    page = render(study, rows).encode()
    if len(page) > MAX_BYTES:
        raise InputError(f"{out_path}: {len(rows)} points make {len(page)} bytes; {MAX_BYTES} at most, see points.csv")
    write_atomic(out_path, page)


def write_picture(store_path: Path, out_path: Path) -> None:
    """Write the Pareto front of the store's current study to `out_path` as SVG, atomically.

    Raises InputError for a store that cannot be read or has no finished point, and for a missing report extra.
    """
    store = read_store(store_path)
    try:
        rows = [row for row in study_rows(store) if row["status"] == DONE]
    finally:
        close_store(store)
    if not rows:
        raise InputError(f"{store_path}: holds no finished point to draw; run `hwsim sweep` first")
    chart = _front_chart(rows, {rows[index]["key"] for index in pareto(rows, FRONT)})
    svg = _vl_convert().vegalite_to_svg(chart.to_dict(), vl_version=_vl_version())
    write_atomic(out_path, _renumbered(svg, chart.title).encode())


def render(study: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The page as text. `study` is what `store.read_study` gives, `rows` what `store.study_rows` gives."""
    done = [row for row in rows if row["status"] == DONE]
    front = {done[index]["key"] for index in pareto(done, FRONT)}
    scripts = [_bundle(), SCRIPT]
    name = html.escape(str(study["study"].get("name", "")))
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>hwsim: {name}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            f"<h1>{name}</h1>",
            f"<p>{len(done)} design points{_failures(len(rows) - len(done))}.</p>",
            *_figures(done, front),
            "<h2>Pareto front</h2>",
            _table(by_area(row for row in rows if row["key"] in front), frozenset(), FRONT_COLUMNS),
            "<h2>All points</h2>",
            "<p>Points on the front are shaded. The same numbers in full are in points.csv.</p>",
            _table(rows, front, tuple(METRICS)),
            *_explanations(study),
            *(f"<script>{script}</script>" for script in scripts),
            "</body>",
            "</html>",
            "",
        ]
    )


def _failures(count: int) -> str:
    return f", {count} more failed (see the table)" if count else ""


def _policy(scripts: Iterable[str]) -> str:
    """Nothing from outside, and no script but ours."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:"


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that defines `vegaEmbed`."""
    return _vl_convert().javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_vl_version()).replace("\r", "")


def _vl_convert() -> Any:
    try:
        import altair  # noqa: F401 - both are needed
        import vl_convert
    except ImportError as error:
        raise InputError(f"the report needs {error.name}; pip install 'hwsim[report]'") from None
    return vl_convert


def _vl_version() -> str:
    """The Vega-Lite that Altair writes, `major.minor`."""
    import altair

    return ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])


# ---- tables

FRONT_COLUMNS = ("accuracy", FRONT[1], "cycles", "utilization", "energy_pj", "area_um2", "clock_mhz", "bits_per_weight")


def by_area(front: Iterable[Row]) -> list[Row]:
    """Points of the front from the cheapest, and least accurate, up."""
    return sorted(front, key=lambda row: row[FRONT[1]])


def _table(rows: Sequence[Row], marked: frozenset[str] | set[str], names: Sequence[str]) -> str:
    failed = any(row["status"] != DONE for row in rows)
    titles = [f"<th>{word}</th>" for word in WORDS]
    titles += [f"<th>{html.escape(METRICS[n].title)}<span>{html.escape(METRICS[n].unit)}</span></th>" for n in names]
    head = "".join(titles) + ("<th>failure</th>" if failed else "")
    body = "\n".join(_table_row(row, marked, names, failed) for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _table_row(row: Row, marked: frozenset[str] | set[str], names: Sequence[str], failed: bool) -> str:
    kind = "failed" if row["status"] != DONE else "front" if row["key"] in marked else "plain"
    words = "".join(f'<td class="word">{html.escape(str(row[word]))}</td>' for word in WORDS)
    numbers = "".join(f'<td class="number">{METRICS[name].show(row[name])}</td>' for name in names)
    message = f"<td>{html.escape(row['message'] or '')}</td>" if failed else ""
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
        f"<pre>{html.escape(str(study['command']))}</pre>",
        "<p>Study:</p>",
        f"<pre>{html.escape(json.dumps(study['study'], indent=2, ensure_ascii=False))}</pre>",
        "<p>Versions on which the results depend:</p>",
        f"<pre>{html.escape(json.dumps(study['versions'], indent=2, ensure_ascii=False))}</pre>",
    ]


# ---- figures


def _figures(rows: Sequence[Row], front: set[str]) -> list[str]:
    """The figures of the points that have the metrics drawn."""
    whole = [row for row in rows if all(row[name] is not None for name in (*FRONT, "area_um2"))]
    if not whole:
        return ["<p>No finished point has the metrics of the figures.</p>"]
    return [
        _figure(
            _front_chart(whole, front),
            "Accuracy against the silicon that one GMAC/s takes. The steps join the points that no other point beats "
            "in both; the labels name their formats. Up and to the left is better; far points are outside.",
        ),
        _figure(_spread_chart(whole, front), "The same, all points."),
        _figure(
            _area_chart(whole),
            f"Area by format, of the points with transform {whole[0]['transform']}.",
        ),
        _figure(_accuracy_chart(whole), "Accuracy by format."),
    ]


def _figure(chart: Any, caption: str) -> str:
    """A chart twice: drawn here for everyone, and as data for the script that makes it interactive."""
    svg = _vl_convert().vegalite_to_svg(chart.to_dict(), vl_version=_vl_version())
    return (
        f'<figure><div class="still">{_renumbered(svg, chart.title)}</div>'
        f'<script type="application/json">{script_json(chart.to_dict())}</script>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _renumbered(svg: str, figure: str) -> str:
    """`svg` with ids of its own: the renderer counts them on from figure to figure and from call to call."""
    ids = list(dict.fromkeys(re.findall(r'id="(clip[0-9]+)"', svg)))
    new = {old: f"{figure.replace(' ', '-')}-clip{number}" for number, old in enumerate(ids)}
    return re.sub(r'(id="|url\(#)(clip[0-9]+)(?=["\)])', lambda m: m[1] + new.get(m[2], m[2]), svg)


def script_json(data: Any) -> str:
    """`data` as JSON that may stand inside a script element: no character there can end it or start another."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _front_chart(rows: Sequence[Row], front: set[str]) -> Any:
    """The front and what lies near it: far points would crush it into a corner."""
    on_front = [row for row in rows if row["key"] in front]
    x, y = ([row[name] for row in on_front] for name in (FRONT[1], FRONT[0]))
    margin = max(max(y) - min(y), 0.01)
    domain = ([0.8 * min(x), 1.6 * max(x)], [max(min(y) - margin, 0.0), min(max(y) + margin / 2, 1.0)])
    return _scatter(rows, on_front, domain).properties(width=760, height=420, title="Pareto front")


def _spread_chart(rows: Sequence[Row], front: set[str]) -> Any:
    """The same axes over all points."""
    on_front = [row for row in rows if row["key"] in front]
    return _scatter(rows, on_front, None).properties(width=760, height=300, title="All points")


def _scatter(rows: Sequence[Row], on_front: Sequence[Row], domain: tuple[list[float], list[float]] | None) -> Any:
    import altair as alt

    x, y = FRONT[1], FRONT[0]
    scales = (
        (_scale(row[x] for row in rows), alt.Scale(zero=False))
        if domain is None
        else (alt.Scale(domain=domain[0], nice=False), alt.Scale(domain=domain[1], nice=False))
    )
    position = {
        "x": alt.X(f"{x}:Q", title=METRICS[x].heading, scale=scales[0]),
        "y": alt.Y(f"{y}:Q", title=METRICS[y].heading, scale=scales[1]),
    }
    zoom = alt.selection_interval(bind="scales", name="zoom")
    chosen = alt.selection_point(fields=["engine"], bind="legend", name="chosen")
    line = (
        alt.Chart(_data(on_front))
        .mark_line(color="#888", strokeDash=[4, 3], interpolate="step-after", clip=True)
        .encode(**position)
    )
    points = (
        alt.Chart(_data(rows), name="points")
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
    labels = (
        alt.Chart(_data(on_front)).mark_text(dx=8, dy=-8, align="left", fontSize=11).encode(**position, text="format:N")
    )
    return alt.layer(line, points, labels)


def _area_chart(rows: Sequence[Row]) -> Any:
    import altair as alt

    return (
        alt.Chart(_data(row for row in rows if row["transform"] == rows[0]["transform"]))
        .mark_bar()
        .encode(
            x=alt.X("format:N", title="format", sort=None, axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("engine:N"),
            y=alt.Y("area_um2:Q", title=METRICS["area_um2"].heading),
            color=_colour(),
            tooltip=_tooltip(),
        )
        .properties(width=760, height=240, title="Area")
    )


def _accuracy_chart(rows: Sequence[Row]) -> Any:
    import altair as alt

    return (
        alt.Chart(_data(rows))
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


def _data(rows: Iterable[Row]) -> Any:
    import altair as alt

    names = (*WORDS, *METRICS)
    return alt.Data(values=[{name: row[name] for name in names if row[name] is not None} for row in rows])


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
