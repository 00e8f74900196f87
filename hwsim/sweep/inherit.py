"""Sweep files that extend others: one document from several, each value of which knows the file that it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwsim.document import NAME, Document, Key, load_yaml, short
from models.unit import InputError, nearest, require

MAX_CHAIN = 10
"""files that stand behind one study"""
MAX_TEXT = 255
"""characters of the name of another file"""

OWN = ("name", "extends", "more_engines")
"""keys that a file does not hand on: two studies of one name would share their results"""


@dataclass(frozen=True, kw_only=True)
class Layered:
    """A document as `hwsim.document.validated` takes it, put together from several."""

    path: Path
    """of the file that was asked for"""
    value: Any
    lines: Mapping[Key, tuple[Document, Key]] = field(repr=False)
    """every value's document, and the key it has there"""

    def place(self, key: Key) -> str:
        """`file:line: key.path` of a value; of what holds it where it is not in the file."""
        while key not in self.lines:
            key = key[:-1]
        document, own = self.lines[key]
        return document.place(own)

    def source(self, key: Key) -> Path:
        """The file that a value comes from."""
        return self.lines[key][0].path


def load_layered(path: Path) -> Layered:
    """The file at `path` over those that it extends: its keys replace theirs, and its `more_engines` follow their
    `engines`.

    Raises InputError with file, line and key for files that are not there, extend each other in a circle or in a chain
    of more than `MAX_CHAIN`, and for what `load_yaml` refuses.
    """
    whole = None
    for document in reversed(_chain(path)):
        whole = _over(whole, document)
    assert whole is not None
    return whole


def single(document: Document) -> Layered:
    """A document that extends none."""
    return Layered(path=document.path, value=document.value, lines={key: (document, key) for key in document.lines})


def _chain(path: Path) -> list[Document]:
    """The file, the one it extends, and so on."""
    chain: list[Document] = []
    following: Path | None = path
    while following is not None:
        document = load_yaml(following)
        chain.append(document)
        following = _extended(document)
        if following is not None:
            _require_new(following, chain)
    return chain


def _extended(document: Document) -> Path | None:
    """The file that this one names in `extends`."""
    if not isinstance(document.value, dict) or "extends" not in document.value:
        return None
    text, place = document.value["extends"], document.place(("extends",))
    require(isinstance(text, str), f"{place}: the name or path of another sweep file is needed, not {short(text)}")
    fits = 0 < len(text) <= MAX_TEXT and text.isprintable()
    require(fits, f"{place}: {short(text)} is no name of a file: 1 to {MAX_TEXT} printable characters")
    folder = document.path.parent
    sibling = re.fullmatch(NAME, text) and not text.endswith((".yaml", ".yml"))
    target = f"{text}.yaml" if sibling else text
    try:
        found = (folder / target).is_file()
    except OSError as error:
        raise InputError(f"{place}: {short(target)}: {error.strerror}") from None
    require(found, f"{place}: no sweep file {short(target)}; {nearest(text, _studies_in(folder))}")
    return folder / target


def _studies_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem.isprintable())[:20]


def _require_new(path: Path, chain: list[Document]) -> None:
    place = chain[-1].place(("extends",))
    names = " -> ".join(short(document.path.name) for document in chain)
    circle = path.resolve() in [document.path.resolve() for document in chain]
    require(not circle, f"{place}: a circle: {names} -> {short(path.name)}; leave one `extends` out")
    require(len(chain) < MAX_CHAIN, f"{place}: a chain of more than {MAX_CHAIN} files: {names}; write values out")


def _over(base: Layered | None, document: Document) -> Layered:
    if base is None:
        return _first(document)
    if not isinstance(base.value, dict):
        return base  # the schema says what it should be
    own = {key: value for key, value in document.value.items() if key not in OWN[1:]}
    kept = {key: value for key, value in base.value.items() if key not in own and key not in OWN}
    lines = {key: found for key, found in base.lines.items() if key and key[0] in kept}
    lines |= {key: (document, key) for key in document.lines if not key or key[0] in own}
    value = kept | own
    if "more_engines" in document.value:
        value["engines"] = _more_engines(document, value.get("engines"), own)
        lines |= _moved(document, len(value["engines"]) - len(document.value["more_engines"]))
    return Layered(path=document.path, value=value, lines=lines)


def _first(document: Document) -> Layered:
    if isinstance(document.value, dict) and "more_engines" in document.value:
        place = document.place(("more_engines",))
        require(False, f"{place}: this file extends none; write `engines`, or `extends` beside")
    return single(document)


def _more_engines(document: Document, engines: Any, own: Mapping[str, Any]) -> tuple[Any, ...]:
    more, place = document.value["more_engines"], document.place(("more_engines",))
    require("engines" not in own, f"{place}: `engines` replaces the inherited ones already; put all of them there")
    require(isinstance(more, tuple), f"{place}: a list is needed, not {short(more)}")
    require(isinstance(engines, tuple), f"{place}: no list of engines is inherited; write `engines`")
    return (*engines, *more)


def _moved(document: Document, by: int) -> dict[Key, tuple[Document, Key]]:
    """The lines of `more_engines` where they stand among all engines."""
    return {
        ("engines", by + int(key[1]), *key[2:]): (document, key)
        for key in document.lines
        if key[:1] == ("more_engines",) and len(key) > 1
    }
