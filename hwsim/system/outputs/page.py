"""A run as one HTML page: roofline, cycles of every layer, energy, and the same in tables."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwsim.files import write_atomic
from hwsim.page import STYLE, Datasets, document, figure
from hwsim.system.outputs.groups import Group, groups
from hwsim.system.outputs.tables import COMPONENTS, total_rows, totals
from hwsim.system.run import Result
from hwsim.system.simulate import memory_of

MAX_ROWS = 800
"""layers, or groups of layers alike, that the page lists at most: those of most cycles"""
MAX_POINTS = 400
"""of them in the roofline"""
MAX_BARS = 80
"""of them among the bars"""
MAX_NAME = 80
"""characters shown of a name"""
MAX_NOTES = 40
MAX_NOTE = 300
MAX_MACHINE = 20_000
"""characters shown of the machine"""

DARK = """
:root { color-scheme: light dark; }
figure { color: inherit; }
.vega-embed { width: 100%; }
#vg-tooltip-element { color: #1b1f24; background: #fff; }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117; }
  figcaption, th span { color: #9da7b3; }
  pre, .scroll th { background: #161b22; }
  .scroll { border-color: #30363d; }
  th, td { border-color: #21262d; }
}
"""

LINES = {
    **dict.fromkeys(("labelColor", "titleColor", "domainColor", "tickColor"), "currentColor"),
    "gridColor": "#88888840",
}
"""of axes, in the colour of the page's text, so that they are seen on light and on dark"""

LEGEND = ("labelColor", "titleColor", "symbolBaseFillColor", "symbolBaseStrokeColor")
BOUND_SHAPES = {"compute": "circle", "epilogue": "diamond", "memory": "square", "latency": "triangle-up"}
KINDS = {
    "product": "#4c86c6",
    "attention": "#d9822b",
    "vector": "#4d9e6a",
    "transform": "#b5658f",
    "quantize": "#9a8a2e",
}
"""colour of each kind of work, seen on light and on dark"""
PARTS = {"unit at work": "#4c86c6", "waiting": "#d9822b"}

COLUMNS = (
    ("layer", ""),
    ("times", ""),
    ("unit", ""),
    ("batch", ""),
    ("M", ""),
    ("K", ""),
    ("N", ""),
    ("loops", ""),
    ("tile", "M K N"),
    ("cycles", ""),
    ("unit at work", "cycles"),
    ("bus at work", "cycles"),
    ("waiting", "cycles"),
    ("bound", ""),
    ("utilization", "%"),
    ("moved", "bytes"),
    ("intensity", "MACs/byte"),
    ("energy", "uJ"),
)

APPROXIMATIONS = (
    "Transfers and steps are simulated one by one, in whole cycles; the words within a transfer are not. The bus "
    "serves first come, first served.",
    "Cycles of an engine are those of its own model, which equals its RTL. Cycles of the vector unit follow from "
    "assumed operations of a lane for each kind of work.",
    "Energy is a count of operations and accesses times a published energy of each (45 nm): no wires, no clock, no "
    "leakage, no refresh.",
    "Values are not computed: `hwsim run --check` holds the data path against the untiled product.",
)


def write_page(result: Result, tokens: int | None, path: Path) -> None:
    """Write the page atomically; InputError for a missing report extra. The same result gives the same bytes."""
    write_atomic(path, render(result, tokens).encode(errors="replace"))


def render(result: Result, tokens: int | None) -> str:
    """The page as text, under 3 MB for any network; `tokens` as `tables.new_tokens` counts them."""
    every = groups(result)
    shown = _longest(every, MAX_ROWS)
    data: Datasets = {
        "points": _points(_longest([group for group in every if group.intensity], MAX_POINTS), result),
        "roofs": _roofs(every, result),
        "bars": _bars(_longest(every, MAX_BARS)),
        "kinds": _kind_cycles(every),
        "energy": _energy(every),
    }
    title = f"{_short(result.network)} on {result.machine.name}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(_short(result.source, MAX_NOTE))}</p>",
        _totals(totals(result, tokens)),
        *_figures(data, len(every)),
        "<h2>Layers</h2>",
        f"<p>{_which(len(every), len(shown), 'layers.csv of --csv has all layers')}</p>",
        _table(shown),
        "<h2>Machine</h2>",
        f"<pre>{html.escape(_short(_machine(result), MAX_MACHINE))}</pre>",
        *_list("Notes", [_short(note, MAX_NOTE) for note in result.notes[:MAX_NOTES]]),
        *_list("Approximations", APPROXIMATIONS),
    ]
    return document(f"hwsim: {title}", STYLE + DARK, body, data)


def _machine(result: Result) -> str:
    """What the machine file says, without what it leaves to defaults."""
    fields = result.machine.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return json.dumps(fields, indent=2, ensure_ascii=False)


def _longest(all_groups: Sequence[Group], most: int) -> list[Group]:
    """The groups of most cycles, in the order of execution."""
    order = sorted(range(len(all_groups)), key=lambda i: (-all_groups[i].total("cycles"), i))
    return [all_groups[i] for i in sorted(order[:most])]


def _which(count: int, shown: int, rest: str) -> str:
    alike = "Layers that are alike but for numbers in their names share a row: its figures are those of all together."
    return alike if shown == count else f"{alike} The {shown} of most cycles of {count}; {rest}."


def _short(text: str, limit: int = MAX_NAME) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."


# ---- tables


def _totals(total: Mapping[str, Any]) -> str:
    rows = [(title, value) for title, value in total_rows(total) if value]
    cells = "".join(f'<tr><th>{html.escape(title)}</th><td class="number">{value}</td></tr>' for title, value in rows)
    return f"<table><tbody>{cells}</tbody></table>"


def _table(rows: Sequence[Group]) -> str:
    head = "".join(f"<th>{title}{f'<span>{unit}</span>' if unit else ''}</th>" for title, unit in COLUMNS)
    body = "\n".join(_row(group) for group in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _row(group: Group) -> str:
    first = group.first
    words = (_short(group.name), str(len(group.layers)), f"{first.unit} {first.mode}".strip())
    shape = first.shape or ("",) * 4
    tile = " ".join(map(str, first.tile)) if first.tile else ""
    use, intensity = group.utilization, group.intensity
    numbers = (
        *shape,
        first.order,
        tile,
        *(f"{group.total(figure):,}" for figure in ("cycles", "compute_cycles", "bus_cycles", "stall_cycles")),
        group.bound,
        "" if use is None else f"{100 * use:.1f}",
        f"{group.total('bytes'):,}",
        "" if intensity is None else f"{intensity:.3g}",
        f"{sum(group.energy_pj.values()) * 1e-6:,.4g}",
    )
    left = "".join(f"<td>{html.escape(word)}</td>" for word in words)
    right = "".join(f'<td class="number">{number}</td>' for number in numbers)
    return f"<tr>{left}{right}</tr>"


def _list(title: str, lines: Sequence[str]) -> list[str]:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return [f"<h2>{title}</h2>", f"<ul>{items}</ul>"] if lines else []


# ---- records of the figures

Records = list[dict[str, Any]]


def _points(chosen: Sequence[Group], result: Result) -> Records:
    total = max(result.total_cycles, 1)
    return [
        {
            "layer": _short(group.name),
            "times": len(group.layers),
            "kind": group.first.what,
            "unit": group.first.unit,
            "bound": group.bound,
            "intensity": group.intensity,
            "attained": group.attained,
            "cycles": group.total("cycles"),
            "share": group.total("cycles") / total,
        }
        for group in chosen
        if group.attained
    ]


def _roofs(every: Sequence[Group], result: Result) -> Records:
    """Corners of the roof over each engine, from a little left to a little right of the points."""
    at = [group.intensity for group in every if group.intensity]
    if not at:
        return []
    rate = memory_of(result.machine).bytes_per_cycle
    ends = min(at) / 2, max(at) * 2
    found = []
    for engine, peak in sorted(result.peaks.items()):
        corners = {*ends, *([peak / float(rate)] if rate is not None else [])}
        for intensity in sorted(corner for corner in corners if ends[0] <= corner <= ends[1]):
            height = peak if rate is None else min(peak, intensity * float(rate))
            found.append({"engine": engine, "intensity": intensity, "attained": height})
    return found


def _bars(chosen: Sequence[Group]) -> Records:
    """Cycles of a group in two parts that add up to them."""
    found: Records = []
    names: Counter[str] = Counter()
    for i, group in enumerate(chosen):
        name = _short(group.name)
        names[name] += 1
        cycles, waiting = group.total("cycles"), group.total("stall_cycles")
        common = {
            "order": i,
            "layer": name if names[name] == 1 else f"{name} ({names[name]})",
            "kind": group.first.what,
            "unit": group.first.unit,
            "bound": group.bound,
            "times": len(group.layers),
        }
        parts = zip(PARTS, (cycles - waiting, waiting), strict=True)
        found += [common | {"part": part, "cycles": count} for part, count in parts]
    return found


def _kind_cycles(every: Sequence[Group]) -> Records:
    total: Counter[tuple[str, str]] = Counter()
    for group in every:
        cycles, waiting = group.total("cycles"), group.total("stall_cycles")
        for part, count in zip(PARTS, (cycles - waiting, waiting), strict=True):
            total[group.first.what, part] += count
    return [{"kind": kind, "part": part, "cycles": count} for (kind, part), count in total.items()]


def _energy(every: Sequence[Group]) -> Records:
    total: Counter[tuple[str, str]] = Counter()
    for group in every:
        for component, energy in group.energy_pj.items():
            total[component, group.first.what] += energy
    return [
        {"component": component, "kind": kind, "energy": energy * 1e-9} for (component, kind), energy in total.items()
    ]


# ---- figures


def _figures(data: Datasets, count: int) -> list[str]:
    roofline = (
        "Roofline: multiply-accumulates a cycle against multiply-accumulates a byte of main memory, of each layer's "
        "own span. The line is what the engine's peak and the bus allow. Colour is the kind of work, shape what "
        "bounds it. Drag to move, scroll to zoom."
    )
    bars = (
        "Cycles by which each layer makes the network's result later, from the first executed to the last: its unit at "
        "work, and the rest, in which it waits for memory or for a place."
    )
    bars += f" The {MAX_BARS} of most cycles of {count}." if count > MAX_BARS else ""
    drawn = [figure(_roofline(data), data, roofline)] if data["points"] else []
    return [
        *drawn,
        figure(_kind_chart(), data, "Cycles by kind of work: units at work, and the rest. They add up to the total."),
        figure(_energy_chart(data), data, "Energy by component; colour is the kind of work."),
        figure(_bar_chart(data), data, bars),
    ]


def _named(name: str) -> Any:
    import altair as alt

    return alt.Chart(alt.NamedData(name=name))


def _titled(chart: Any, title: str) -> Any:
    """With the page's colours."""
    return (
        chart.properties(title=title)
        .configure(background="transparent")
        .configure_axis(**LINES)
        .configure_legend(**dict.fromkeys(LEGEND, "currentColor"))
        .configure_title(color="currentColor")
        .configure_view(stroke="#88888880")
    )


def _kinds(data: Datasets, name: str) -> Any:
    """Colours of those kinds of work that are there."""
    import altair as alt

    present = {record["kind"] for record in data[name]}
    kinds = [kind for kind in KINDS if kind in present]
    scale = alt.Scale(domain=kinds, range=[KINDS[kind] for kind in kinds])
    return alt.Color("kind:N", title="kind of work", scale=scale)


def _parts() -> Any:
    import altair as alt

    return alt.Color("part:N", title=None, scale=alt.Scale(domain=list(PARTS), range=list(PARTS.values())))


def _roofline(data: Datasets) -> Any:
    import altair as alt

    heights = [record["attained"] for name in ("points", "roofs") for record in data[name]]
    log, high = alt.Scale(type="log", nice=False), alt.Scale(type="log", domain=[min(heights) / 2, max(heights) * 2])
    position = {
        "x": alt.X("intensity:Q", title="intensity [MACs/byte]", scale=log, axis=alt.Axis(format=",.12~g")),
        "y": alt.Y("attained:Q", title="attained [MACs/cycle]", scale=high, axis=alt.Axis(format="~s")),
    }
    zoom = alt.selection_interval(bind="scales", name="zoom")
    roofs = (
        _named("roofs")
        .mark_line(color="#888888", strokeWidth=2, clip=True)
        .encode(**position, detail="engine:N", tooltip=["engine:N", alt.Tooltip("attained:Q", format=",.4g")])
    )
    shapes = alt.Scale(domain=list(BOUND_SHAPES), range=list(BOUND_SHAPES.values()))
    points = (
        _named("points")
        .mark_point(filled=True, size=90, opacity=0.85, clip=True)
        .encode(
            **position,
            color=_kinds(data, "points"),
            shape=alt.Shape("bound:N", title="bound by", scale=shapes),
            tooltip=[
                *(alt.Tooltip(f"{name}:N") for name in ("layer", "times", "kind", "unit", "bound")),
                alt.Tooltip("intensity:Q", title="MACs/byte", format=",.4g"),
                alt.Tooltip("attained:Q", title="MACs/cycle", format=",.4g"),
                alt.Tooltip("cycles:Q", format=","),
                alt.Tooltip("share:Q", title="of all cycles", format=".2%"),
            ],
        )
        .add_params(zoom)
    )
    return _titled(alt.layer(roofs, points).properties(width=700, height=380), "Roofline")


def _bar_chart(data: Datasets) -> Any:
    import altair as alt

    step = 15
    height = step * (len(data["bars"]) // len(PARTS))
    chart = (
        _named("bars")
        .mark_bar()
        .encode(
            y=alt.Y("layer:N", title=None, sort=alt.EncodingSortField("order"), axis=alt.Axis(labelLimit=300)),
            x=alt.X("cycles:Q", title="cycles", axis=alt.Axis(format="~s")),
            color=_parts(),
            order=alt.Order("part:N"),
            tooltip=[
                *(alt.Tooltip(f"{name}:N") for name in ("layer", "times", "kind", "unit", "bound", "part")),
                alt.Tooltip("cycles:Q", format=","),
            ],
        )
        .properties(width=560, height=height)
    )
    return _titled(chart, "Layers")


def _kind_chart() -> Any:
    import altair as alt

    chart = (
        _named("kinds")
        .mark_bar()
        .encode(
            y=alt.Y("kind:N", title=None, sort=list(KINDS)),
            x=alt.X("cycles:Q", title="cycles", axis=alt.Axis(format="~s")),
            color=_parts(),
            order=alt.Order("part:N"),
            tooltip=["kind:N", "part:N", alt.Tooltip("cycles:Q", format=",")],
        )
        .properties(width=700, height=alt.Step(24))
    )
    return _titled(chart, "Kinds of work")


def _energy_chart(data: Datasets) -> Any:
    import altair as alt

    chart = (
        _named("energy")
        .mark_bar()
        .encode(
            y=alt.Y("component:N", title=None, sort=list(COMPONENTS)),
            x=alt.X("energy:Q", title="energy [mJ]"),
            color=_kinds(data, "energy"),
            order=alt.Order("kind:N"),
            tooltip=["component:N", "kind:N", alt.Tooltip("energy:Q", title="energy [mJ]", format=",.4g")],
        )
        .properties(width=700, height=alt.Step(24))
    )
    return _titled(chart, "Energy")
