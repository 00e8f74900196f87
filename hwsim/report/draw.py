"""Pictures as SVG without any package: a scatter with its front, a line over time. The page's script draws the same."""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GLYPHS = (
    "m-4.2 0c0-2.3 1.9-4.2 4.2-4.2s4.2 1.9 4.2 4.2s-1.9 4.2-4.2 4.2s-4.2-1.9-4.2-4.2z",
    "m-3.7-3.7h7.4v7.4h-7.4z",
    "m0-4.9l4.7 8.2h-9.4z",
    "m0-5.4l4.6 5.4l-4.6 5.4l-4.6-5.4z",
    "m0 4.9l4.7-8.2h-9.4z",
    "m-1.6-4.8h3.2v3.2h3.2v3.2h-3.2v3.2h-3.2v-3.2h-3.2v-3.2h3.2z",
)
"""circle, square, triangle, diamond, triangle upside down, plus, in lengths alone, so that they can be scaled;
marks of a seventh series, and of those behind it, are hollow"""
SERIES = 2 * len(GLYPHS)
"""that colour, shape and filling tell apart; the last one holds all that are left over"""

Box = tuple[float, float, float, float]
"""x from, x to, y from, y to"""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A scale with its heading."""

    heading: str
    low: float
    high: float
    logarithmic: bool

    def at(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """Round numbers within the scale."""
        return _powers(self.low, self.high, most) if self.logarithmic else _steps(self.low, self.high, most)


def axis(heading: str, low: float, high: float, logarithmic: bool) -> Axis:
    """From the lowest to the highest value, with room beside both."""
    if logarithmic:
        room = max((high / low) ** 0.05, 1.05)
        return Axis(heading=heading, low=low / room, high=high * room, logarithmic=True)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(heading=heading, low=low - room, high=high + room, logarithmic=False)


def _steps(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float, most: int) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]
        if len(found) <= most:
            return found
    return found[:: -(-len(found) // most)]


def short(value: float) -> str:
    """A tick's number: 20k, 1.5M, 0.95."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{letter}"
    return f"{value:.4g}"


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where a picture's axes lie, in its own units."""

    width: float
    height: float
    x: Axis
    y: Axis

    @property
    def box(self) -> Box:
        return 64.0, self.width - 16.0, 14.0, self.height - 46.0

    def place(self, x: float, y: float) -> tuple[float, float]:
        left, right, top, bottom = self.box
        return left + self.x.at(x) * (right - left), bottom - self.y.at(y) * (bottom - top)

    def holds(self, x: float, y: float) -> bool:
        return self.x.low <= x <= self.x.high and self.y.low <= y <= self.y.high


def scatter(
    frame: Frame, points: Sequence[tuple[float, float, int]], front: Sequence[tuple[float, float, str]], title: str
) -> str:
    """Points (x, y, series) as marks, the smaller the more they are; the front as steps through labelled points, from
    the lowest x up.

    What lies outside the frame is left out.
    """
    marks: dict[int, list[str]] = {}
    glyphs = [scaled(glyph, mark_size(len(points))) for glyph in GLYPHS]
    for x, y, series in points:
        if frame.holds(x, y):
            left, top = frame.place(x, y)
            marks.setdefault(series, []).append(f"M{left:.1f} {top:.1f}{glyphs[series % len(GLYPHS)]}")
    paths = [_series_path(series, "".join(parts)) for series, parts in sorted(marks.items(), reverse=True)]
    best = [(*frame.place(x, y), text) for x, y, text in front if frame.holds(x, y)]
    inside = [*grid(frame), _steps_path(best), *paths, *_labels(best, frame)]
    return _svg(frame, inside, title)


def mark_size(points: int) -> float:
    """1 for few, smaller for many."""
    return min(max(math.sqrt(math.sqrt(400 / max(points, 1))), 0.5), 1.0)


def scaled(path: str, factor: float) -> str:
    """A path of relative lengths, made smaller or larger."""
    return re.sub(r"-?[0-9.]+", lambda number: f"{float(number[0]) * factor:+.4g}", path)


def _series_path(series: int, path: str) -> str:
    hollow = " hollow" if series >= len(GLYPHS) else ""
    return f'<path class="mark s{series}{hollow}" d="{path}"/>'


def _steps_path(best: Sequence[tuple[float, float, str]]) -> str:
    if not best:
        return ""
    (x, y, _), *rest = best
    return f'<path class="front-line" d="M{x:.1f} {y:.1f}' + "".join(f"H{a:.1f}V{b:.1f}" for a, b, _ in rest) + '"/>'


def _labels(best: Sequence[tuple[float, float, str]], frame: Frame) -> list[str]:
    """Of the points with room for it."""
    shown: list[tuple[float, float, float]] = []
    texts = []
    for x, y, text in best:
        width = 6.5 * len(text)
        left, top = (x - 8 - width, y - 8) if x + 8 + width > frame.box[1] else (x + 8, y - 8)
        clear = all(abs(top - b) > 12 or left + width < a or a + w < left for a, b, w in shown)
        if clear and top > frame.box[2]:
            shown.append((left, top, width))
            texts.append(f'<text class="label" x="{left:.1f}" y="{top:.1f}">{html.escape(text)}</text>')
    return texts


def line(frame: Frame, points: Sequence[tuple[float, float]], title: str) -> str:
    """A value that holds until the next one."""
    placed = [frame.place(x, y) for x, y in points]
    (x, y), *rest = placed
    path = f"M{x:.1f} {y:.1f}" + "".join(f"H{a:.1f}V{b:.1f}" for a, b in rest)
    return _svg(frame, [*grid(frame), f'<path class="line" d="{path}"/>'], title)


def grid(frame: Frame) -> list[str]:
    """Lines, numbers and headings of both axes."""
    left, right, top, bottom = frame.box
    parts = []
    for value in frame.x.ticks(9):
        at = left + frame.x.at(value) * (right - left)
        parts.append(f'<path class="grid" d="M{at:.1f} {top}V{bottom}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{short(value)}</text>')
    for value in frame.y.ticks(7):
        at = bottom - frame.y.at(value) * (bottom - top)
        parts.append(f'<path class="grid" d="M{left} {at:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{short(value)}</text>')
    x, y = html.escape(frame.x.heading), html.escape(frame.y.heading)
    middle = (left + right) / 2, (top + bottom) / 2
    return [
        *parts,
        f'<text class="heading" x="{middle[0]}" y="{bottom + 38}" text-anchor="middle">{x}</text>',
        f'<text class="heading" transform="translate(14 {middle[1]}) rotate(-90)" text-anchor="middle">{y}</text>',
    ]


def _svg(frame: Frame, inside: Sequence[str], title: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {frame.width:g} {frame.height:g}" role="img" '
        f'aria-label="{html.escape(title)}">' + "".join(inside) + "</svg>"
    )


def glyph(series: int) -> str:
    """The mark of a series as a small picture, for a legend."""
    path = _series_path(series, "M8 8" + GLYPHS[series % len(GLYPHS)])
    return f'<svg class="glyph" viewBox="0 0 16 16" aria-hidden="true">{path}</svg>'


def grouping(rows: Sequence[Mapping[str, Any]]) -> str:
    """What colour and shape stand for: the engines, or where they are too many the first word with few values."""
    for name in ("engine", "unit", "format", "transform", "quantizer", "activations", "network"):
        if 1 < len({row[name] for row in rows}) <= SERIES:
            return name
    return "engine"


def series_of(words: Sequence[str]) -> Mapping[str, int]:
    """Series of each word: the most frequent ones have their own, the others share the last."""
    counts = Counter(words)
    ranked = sorted(counts, key=lambda word: -counts[word])
    crowded = len(ranked) > SERIES
    return {word: min(i, SERIES - 1) if crowded else i for i, word in enumerate(ranked)}
