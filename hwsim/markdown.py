"""Markdown whose texts stay text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hwsim.terminal import printable

MAX_TEXT = 200
"""characters of a cell"""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> str:
    """The first `words` columns stand to the left, the others to the right."""
    rule = [" --- "] * words + [" ---: "] * (len(headings) - words)
    lines = [f"| {' | '.join(map(cell, headings))} |", f"|{'|'.join(rule)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows)])


def cell(text: str) -> str:
    """On one line, without what Markdown or HTML would read."""
    flat = printable(" ".join(text.split()))
    cut = flat if len(flat) <= MAX_TEXT else f"{flat[:MAX_TEXT]} ..."
    marked = cut.replace("\\", "\\\\")
    for character in "`*_[]|#":
        marked = marked.replace(character, f"\\{character}")
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
