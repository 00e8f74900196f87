"""The Pareto front as a picture for papers, by Altair and vl-convert: SVG or PNG."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hwsim.metrics import METRICS
from hwsim.page import still, still_png
from hwsim.report.collect import CROWDED, Collection, Row, collect, near
from hwsim.report.draw import SERIES, axis, grouping, series_of
from hwsim.sweep.tasks import DONE
from hwsim.terminal import printable
from models.unit import require

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_BYTES = 25
"""of the first chunk, with its length, name and checksum"""
_MARK = b"tEXtSoftware\0hwsim"
PNG = _SIGNATURE + struct.pack(">I", 13) + b"IHDR"
"""how a PNG of ours begins, as far as it is the same for all sizes; see `is_ours`"""
MAX_LABEL = 60
"""characters of a name in the legend"""
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")


def is_ours(begin: bytes) -> bool:
    """Whether a file that begins so is a PNG that `picture` made."""
    return begin.startswith(PNG) and begin[len(_SIGNATURE) + _HEADER_BYTES + 4 :].startswith(_MARK)


def picture(study: Mapping[str, Any], rows: Iterable[Row], kind: str) -> bytes:
    """The front of the study and what lies near it, as `svg` or `png`; `study` and `rows` as in `render`.

    InputError for a study without a finished point and for a missing report extra. Of very many points a sample.
    """
    collection = collect(study, rows, ())
    require(len(collection.axes) > 1, "the study holds no finished point to draw; run `hwsim sweep` first")
    data = _records(collection)
    chart, datasets = _chart(collection, data), {"points": data}
    if kind == "svg":
        return still(chart, datasets).encode()
    return _marked(still_png(chart, datasets))


def _records(collection: Collection) -> list[dict[str, Any]]:
    axes, front = collection.axes[:2], {row["key"] for row in collection.front}
    drawn = [r for r in collection.rows if r["status"] == DONE and all(r[name] is not None for name in axes)]
    by = grouping(drawn)
    series = series_of([row[by] for row in drawn])
    crowded = len(series) > SERIES
    return [
        {
            **{name: row[name] for name in axes},
            "series": "others" if crowded and series[row[by]] == SERIES - 1 else _name(row[by]),
            "format": row["format"],
            "front": row["key"] in front,
        }
        for row in drawn
    ]


def _name(text: str) -> str:
    """Without control characters: XML has none, and the renderer would end the whole process over one."""
    return printable(text[:MAX_LABEL])


def _chart(collection: Collection, data: Sequence[Mapping[str, Any]]) -> Any:
    import altair as alt

    y, x = collection.axes[:2]
    points = alt.Chart(alt.NamedData(name="points"))
    position = {
        "x": alt.X(f"{x}:Q", title=METRICS[x].heading, scale=_scale(collection, x, data)),
        "y": alt.Y(f"{y}:Q", title=METRICS[y].heading, scale=_scale(collection, y, data)),
    }
    best = points.transform_filter(alt.FieldEqualPredicate(field="front", equal=True))
    line = best.mark_line(color="#888", strokeDash=[4, 3], interpolate="step-after", clip=True).encode(**position)
    marks = points.mark_point(filled=True, size=80, opacity=0.85, clip=True).encode(
        **position,
        color=alt.Color("series:N", title=None, scale=alt.Scale(scheme="tableau10")),
        shape=alt.Shape("series:N", title=None, scale=alt.Scale(range=list(SHAPES))),
    )
    labels = best.mark_text(dx=8, dy=-8, align="left", fontSize=11, clip=True).encode(**position, text="format:N")
    return alt.layer(line, marks, labels).properties(width=760, height=420, title="Pareto front")


def _scale(collection: Collection, name: str, data: Sequence[Mapping[str, Any]]) -> Any:
    import altair as alt

    best = [record[name] for record in data if record["front"]]
    low, high = near(collection.summaries[name], best, METRICS[name].direction)
    scale = axis("", low, high, 0 < CROWDED * low < high)
    return alt.Scale(type="log" if scale.logarithmic else "linear", domain=[scale.low, scale.high], nice=False)


def _marked(png: bytes) -> bytes:
    """With a text chunk behind the header, by which `is_ours` knows it again."""
    at = len(_SIGNATURE) + _HEADER_BYTES
    length = struct.pack(">I", len(_MARK) - 4)
    return png[:at] + length + _MARK + struct.pack(">I", zlib.crc32(_MARK)) + png[at:]
