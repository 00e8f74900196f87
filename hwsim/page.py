"""What every HTML page of ours is made of: one self-contained file, readable without JavaScript and without a network.

Figures of `document` stand in it twice: drawn as SVG, and as a Vega-Lite specification that makes them interactive.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from models.unit import InputError

Datasets = Mapping[str, list[dict[str, Any]]]
"""name -> records; all charts of a page share them by name"""

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
"""

SCRIPT = """
"use strict";
const datasets = document.getElementById("datasets").textContent;
for (const data of document.querySelectorAll("figure script")) {
  const figure = data.parentElement;
  const live = document.createElement("div");
  figure.insertBefore(live, figure.firstChild);
  // parsed anew for each figure: Vega marks the records it is given
  const chart = {...JSON.parse(data.textContent), datasets: JSON.parse(datasets)};
  // ast: Vega interprets its expressions, so that the page needs no unsafe-eval
  vegaEmbed(live, chart, {ast: true, actions: false, renderer: "svg"}).then(
    () => { figure.querySelector(".still").hidden = true; },
    (error) => { live.remove(); console.error(error); },
  );
}
"""

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content=\
"""
"""how every page begins"""


def document(title: str, style: str, body: Sequence[str], datasets: Datasets) -> str:
    """The page: `title` as text, `body` as HTML that is escaped already, and what makes its figures interactive."""
    return page(title, style, body, datasets, [_bundle(), SCRIPT])


def page(title: str, style: str, body: Sequence[str], data: Any, scripts: Sequence[str]) -> str:
    """A page with these scripts, which find `data` as JSON in the element `datasets`; else as `document`."""
    return "\n".join(
        [
            f'{HEAD}"{_policy(scripts)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            *body,
            f'<script type="application/json" id="datasets">{script_json(data)}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body>",
            "</html>",
            "",
        ]
    )


def _policy(scripts: Iterable[str]) -> str:
    """Nothing from outside, and no script but ours."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:"


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that defines `vegaEmbed`."""
    return _vl_convert().javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=vl_version()).replace("\r", "")


def require_renderer() -> None:
    """InputError with the remedy where a package that draws is missing: before what takes time."""
    _vl_convert()


def _vl_convert() -> Any:
    try:
        import altair  # noqa: F401 - both are needed
        import vl_convert
    except ImportError as error:
        raise InputError(f"the report needs {error.name}; pip install 'hwsim[report]'") from None
    return vl_convert


def vl_version() -> str:
    """The Vega-Lite that Altair writes, `major.minor`."""
    import altair

    return ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])


# ---- figures


def figure(chart: Any, datasets: Datasets, caption: str) -> str:
    """A chart twice: drawn here for everyone, and as a specification for the script that makes it interactive."""
    return (
        f'<figure><div class="still">{still(chart, datasets)}</div>'
        f'<script type="application/json">{script_json(chart.to_dict())}</script>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def still(chart: Any, datasets: Datasets) -> str:
    """The chart as SVG, without tooltips: the renderer would write them out beside every mark."""
    specification = _without_tooltips(chart.to_dict()) | {"datasets": dict(datasets)}
    svg = _vl_convert().vegalite_to_svg(specification, vl_version=vl_version())
    return _renumbered(svg, chart.title)


def still_png(chart: Any, datasets: Datasets) -> bytes:
    """The chart as PNG, two pixels a unit."""
    specification = _without_tooltips(chart.to_dict()) | {"datasets": dict(datasets)}
    return bytes(_vl_convert().vegalite_to_png(specification, vl_version=vl_version(), scale=2))


def _without_tooltips(specification: Any) -> Any:
    if isinstance(specification, list):
        return [_without_tooltips(part) for part in specification]
    if isinstance(specification, dict):
        return {name: _without_tooltips(part) for name, part in specification.items() if name != "tooltip"}
    return specification


def _renumbered(svg: str, name: str) -> str:
    """`svg` with ids of its own: the renderer counts them on from figure to figure and from call to call."""
    ids = list(dict.fromkeys(re.findall(r'id="(clip[0-9]+)"', svg)))
    new = {old: f"{name.replace(' ', '-')}-clip{number}" for number, old in enumerate(ids)}
    return re.sub(r'(id="|url\(#)(clip[0-9]+)(?=["\)])', lambda m: m[1] + new.get(m[2], m[2]), svg)


def script_json(data: Any) -> str:
    """`data` as JSON that may stand inside a script element: no character there can end it or start another."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
