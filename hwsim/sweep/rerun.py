"""A point of a study again, from its store alone: every task computed anew, every digit held against what is stored."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwsim.files import os_errors, require_writable, write_atomic
from hwsim.metrics import METRICS
from hwsim.sweep import outputs
from hwsim.sweep.driver import EVALUATION, Setup, point_key, prepare
from hwsim.sweep.executors import Limits
from hwsim.sweep.executors.local import LocalExecutor
from hwsim.sweep.ledger import Entry, Ledger, point_of
from hwsim.sweep.lookup import find_point, reading
from hwsim.sweep.point_folders import LIBRARY, POINTS, WAVES, folder_name, has_library, one_point, write_folder
from hwsim.sweep.rows import Row
from hwsim.sweep.running import Running
from hwsim.sweep.space import Study
from hwsim.sweep.store import read_study, rows_at
from hwsim.version import revision
from models.unit import InputError, require

if TYPE_CHECKING:
    from hwsim.verify import Report

CASES = 5
"""random cases of a verification: waves that somebody can look at"""
WORKERS = 4
"""most processes: a point has few tasks"""


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """What the store says of a point, and what came out now."""

    stored: Row
    again: Row
    entries: Mapping[str, Any]
    """of the study, as `read_study` gives them"""
    library: str | None
    """text of the cell library in place of the built-in one"""

    @property
    def same_code(self) -> bool:
        """Whether code, tools and settings are those of the stored result, by the point's key."""
        return bool(self.stored["key"] == self.again["key"])

    @property
    def changed(self) -> dict[str, tuple[str, str]]:
        """Versions that the two rows tell differently: name -> stored and now, "" where one has none."""
        one, two = self.stored["detail"], self.again["detail"]
        return outputs.changed_versions(one, two) if one.get("versions") and two.get("versions") else {}

    @property
    def metrics(self) -> dict[str, tuple[float | None, float | None]]:
        """Name -> stored and now, None where there is none; those that either has."""
        pairs = {name: (self.stored[name], self.again[name]) for name in METRICS}
        return {name: pair for name, pair in pairs.items() if pair != (None, None)}

    @property
    def equal(self) -> bool:
        """Whether status and all metrics are the same, in every digit."""
        same = all(one == two for one, two in self.metrics.values())
        return same and bool(self.stored["status"] == self.again["status"])


def rerun(place: Path, point: str, *, workers: int = WORKERS, reference: str = EVALUATION) -> Rerun:
    """Evaluate a point of the store at `place` (or of the study in that folder) again; nothing is written there.

    `point`: the begin of its key, or its label (see `find_point`). All its tasks are computed, in up to `workers`
    processes under the study's limits; results of synthesis can come from the cache of `hwsim.synth`, which holds them
    by content. A study with a cell library uses the copy in its folder. `reference` names the function that makes the
    evaluation, which must be the study's: a store cannot name code to run.

    InputError for a point that is not there, a store that is damaged or holds no study, a library that is missing or
    another one, and for what this machine lacks.
    """
    with reading(place) as store:
        entries = read_study(store)
        require("study" in entries, f"{place}: holds no study yet; run `hwsim sweep` first")
        (stored,) = rows_at(store, [find_point(store, point)])
    folder = place if place.is_dir() else place.parent
    setup = _setup(stored, entries, folder, reference)
    return Rerun(stored=stored, again=_evaluated(setup, stored, workers), entries=entries, library=setup.library)


def write_rerun(found: Rerun, folder: Path) -> None:
    """Write the point's inputs and what came out now into `folder`, as a point folder is, with the cell library."""
    with os_errors(folder):
        write_folder(folder, found.again, found.entries, None if found.library is None else LIBRARY)
    if found.library is not None:
        write_atomic(folder / LIBRARY, found.library)


def verified(found: Rerun, place: Path) -> Report:
    """Hold the RTL of the point's engine against its model under Amaranth's simulator; the waves go into the point's
    folder in the study at `place`, where the report finds them. InputError for a place that cannot be written."""
    from hwsim.evaluation.check import engine_params
    from hwsim.verify import verify

    folder = (place if place.is_dir() else place.parent) / POINTS / folder_name(found.stored["key"])
    require_writable(folder, "give the store another place")
    point = point_of(found.stored)
    return verify(engine_params(point), cases=CASES, seed=point.seed, waves=folder / WAVES)


def _setup(stored: Row, entries: Mapping[str, Any], folder: Path, reference: str) -> Setup:
    """The study of this one point, ready to run."""
    made_by = entries.get("reference", EVALUATION)
    require(made_by == reference, f"the study was evaluated by {made_by!r:.100}, not by {reference!r}; nothing to hold")
    liberty = folder / LIBRARY if has_library(entries) else None
    study = Study.from_dict(one_point(stored, entries["study"]))
    setup = prepare(study, entries.get("command", ""), liberty=liberty, reference=reference)
    kept = entries.get("versions", {}).get("liberty")
    rule = f"{liberty}: is not the library that the study was evaluated with; put that one back"
    require(liberty is None or outputs.versions(setup.library)["liberty"] == kept, rule)
    return setup


def _evaluated(setup: Setup, stored: Row, workers: int) -> Row:
    """The point's row, with its trial, as a run of today makes it."""
    evaluation, point, rows = setup.evaluation(), point_of(stored), []
    refusal = None
    try:
        evaluation.check(point)
    except InputError as error:
        refusal = str(error)
    entry = Entry(key=point_key(point, evaluation), point=point, trial=stored["detail"].get("trial"), refusal=refusal)
    limits = Limits(**setup.study.limits.model_dump())
    with contextlib.closing(LocalExecutor(min(workers, os.cpu_count() or 1), limits)) as executor:
        Running(
            entries=iter([entry]),
            ahead=1,
            ledger=Ledger(evaluation, lambda _keys: {}, common={"revision": revision()}),
            executor=executor,
            order={"evaluation": setup.reference, "settings": setup.settings},
            record=lambda _tasks, made: rows.extend(made),
            report=lambda _rows, _running: None,
        ).go()
    (row,) = rows
    return row
