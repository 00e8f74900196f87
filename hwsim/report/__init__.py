"""The report of a study: one self-contained HTML file, a picture and tables for papers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwsim.files import os_errors, write_atomic
from hwsim.page import HEAD
from hwsim.report.collect import MEASURED, Row, by_area
from hwsim.report.paper import MARKDOWN, markdown
from hwsim.report.still import is_ours, picture
from hwsim.report.study_page import render
from hwsim.sweep.point_folders import POINTS, WAVES, folder_name
from hwsim.sweep.store import close_store, read_store, read_study, study_rows
from models.unit import require

__all__ = ["by_area", "render", "write_markdown", "write_picture", "write_report"]

OURS = re.compile(b"|".join((re.escape(HEAD.encode()), rb'<svg [^>]*\bclass="marks"', re.escape(MARKDOWN.encode()))))
"""the first bytes of a report, a picture as SVG, or tables"""


@dataclass(frozen=True)
class _Stored:
    """The rows of an open store, or some fields of them, read anew by each loop over them."""

    store: Any
    waves: Mapping[str, str]
    """name of a point's folder -> waves of its verification"""
    fields: tuple[str, ...] | None = None

    def __iter__(self) -> Iterator[Row]:
        for row in study_rows(self.store, self.fields):
            waves = self.waves.get(folder_name(row["key"])) if self.waves and self.fields is None else None
            yield row | {"detail": {**row["detail"], "waves": waves}} if waves else row

    def only(self, fields: tuple[str, ...]) -> _Stored:
        return _Stored(self.store, self.waves, fields)


def _waves(folder: Path) -> dict[str, str]:
    """Waves in the folders of the study's points, as links from beside the store."""
    found = sorted((folder / POINTS).glob(f"*/{WAVES}"))
    return {path.parent.name: path.relative_to(folder).as_posix() for path in found}


def write_report(store_path: Path, out_path: Path) -> None:
    """Write the page of the store's current study to `out_path`, atomically; what it holds, `render` says.

    Raises InputError for a store that cannot be read, a store without a study, and a target that is neither absent nor
    a report, picture or table of ours.
    """
    _write(store_path, out_path, lambda study, rows: render(study, rows, rows.only(MEASURED)))


def write_picture(store_path: Path, out_path: Path) -> None:
    """Write the Pareto front of the store's current study to `out_path` as SVG or PNG, atomically.

    The suffix says which. Raises InputError as `write_report` does, for another suffix, a study without a finished
    point, and a missing report extra.
    """
    suffix = out_path.suffix.lower()
    require(suffix in (".svg", ".png"), f"{out_path}: a picture is .svg or .png; name it so")
    _write(store_path, out_path, lambda study, rows: picture(study, rows, suffix[1:]))


def write_markdown(store_path: Path, out_path: Path) -> None:
    """Write the tables of the store's current study for a paper to `out_path`, atomically; errors as `write_report`."""
    _write(store_path, out_path, lambda study, rows: markdown(study, rows))


def _write(store_path: Path, out_path: Path, make: Callable[..., bytes]) -> None:
    _check_target(store_path, out_path)
    store = read_store(store_path)
    try:
        study = read_study(store)
        known = {"study", "command", "versions"} <= study.keys()
        require(known, f"{store_path}: holds no study yet; run `hwsim sweep` first")
        content = make(study, _Stored(store, _waves(store_path.parent)))
    finally:
        close_store(store)
    write_atomic(out_path, content)


def _check_target(store_path: Path, out_path: Path) -> None:
    """Refuse a target that holds something else, above all the store itself."""
    with os_errors(out_path):
        if not out_path.is_file():
            return
        same = store_path.exists() and out_path.samefile(store_path)
        require(not same, f"{out_path}: is the store itself; name another file for the report")
        with out_path.open("rb") as file:
            begin = file.read(400)
    known = OURS.match(begin) is not None or is_ours(begin)
    require(known, f"{out_path}: exists and is no report of hwsim; name another file")
