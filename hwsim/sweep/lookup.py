"""Points in a store: by key, by what people type, and those on the Pareto front."""

from __future__ import annotations

import contextlib
import difflib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from hwsim.metrics import metric, pareto
from hwsim.sweep.store import close_store, read_store, read_study, study_rows
from hwsim.terminal import printable
from models.unit import InputError, require

STORE = "store.sqlite"
SHORTEST = 4
"""characters of a key that can stand for it"""
LISTED = 5
"""points that a message names"""
NEAR = 1000
"""labels among which the nearest is looked for"""


@contextlib.contextmanager
def reading(place: Path) -> Iterator[sqlite3.Connection]:
    """The store at `place`, a store or the folder of its study, for reading. InputError as `read_store`."""
    store = read_store(place / STORE if place.is_dir() else place)
    try:
        yield store
    finally:
        close_store(store)


def find_point(store: sqlite3.Connection, text: str) -> str:
    """Key of the point of the current study that `text` means: the begin of a key, 4 characters at least, or a label.

    InputError for a text that is neither, with the nearest label, and for one that means several points, which it
    lists.
    """
    labels = {row["key"]: row["label"] for row in study_rows(store, ("key", "label"))}
    found = _meant(labels, text)
    if len(found) != 1:
        require(bool(found), f"no point {text[:100]!r}: {_nearest(text, [*labels.values()])}")
        named = ", ".join(f"{key[:16]} {printable(labels[key])[:60]!r}" for key in found[:LISTED])
        more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
        raise InputError(f"{text[:100]!r} is {len(found)} points: {named}{more}; give more of the key")
    return found[0]


def _meant(labels: dict[str, str], text: str) -> list[str]:
    by_key: list[str] = []
    if re.fullmatch(f"[0-9a-f]{{{SHORTEST},64}}", text):
        by_key = [key for key in labels if key.startswith(text)]
    return by_key or [key for key, label in labels.items() if label == text]


def _nearest(text: str, labels: Sequence[str]) -> str:
    usual = f"give {SHORTEST} or more characters of a key, or a label; `hwsim query` lists them"
    close = difflib.get_close_matches(text[:200], labels[:NEAR], n=1)
    return f"did you mean {printable(close[0])[:100]!r}?" if close else usual


def front_keys(store: sqlite3.Connection, metrics: Sequence[str]) -> list[str]:
    """Keys of the finished points of the current study that no other one dominates in these metrics, in its order.

    InputError for a name that is no metric with a direction.
    """
    for name in metrics:
        metric(name)
    if not metrics:
        return []
    rows = list(study_rows(store, ("key", *metrics)))
    return [rows[index]["key"] for index in pareto(rows, metrics)]


def axes(store: sqlite3.Connection) -> tuple[str, ...]:
    """The metrics of the study's front, as its report chooses them: empty where there is none."""
    from hwsim.report.collect import PREFERRED, objectives

    wanted = objectives(read_study(store))
    names = tuple(dict.fromkeys((*wanted, *PREFERRED)))
    values: dict[str, set[float]] = {name: set() for name in names}
    for row in study_rows(store, names):
        for name in names:
            if row[name] is not None and len(values[name]) < 2:
                values[name].add(row[name])
    if all(values[name] for name in wanted):
        return wanted
    known = sorted((name for name in PREFERRED if values[name]), key=lambda name: len(values[name]) < 2)
    return tuple(sorted(known[:2], key=PREFERRED.index))
