"""Studies in a notebook or script."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.unit import require

if TYPE_CHECKING:
    from sqlite3 import Connection

    from hwsim.sweep.point import Point
    from hwsim.sweep.rows import Row

SHOWN = 10
"""points of the front that a notebook shows"""
STORE = "store.sqlite"


class Study:
    """A study and its results, which are files: what another process or an earlier session left is there at once.

    ```python
    from hwsim import Study

    study = Study("sweeps/quickstart.yaml", out="results").run(workers=2)
    study.frame().sort_values("area_um2")
    study.front()

    small = {"name": "small", "network": "digits-mlp", "seed": 1, "formats": ["W4A8"], "transforms": ["none"],
             "engines": [{"unit": "systolic", "set": {"rows": [4, 8]}}], "evaluate": ["cycles"]}
    Study(small).run().frame()[["label", "cycles"]]
    ```
    """

    def __init__(
        self, source: str | Path | Mapping[str, Any], *, out: str | Path = "results", liberty: str | Path | None = None
    ) -> None:
        """`source`: a sweep file, or its content as a mapping. Results are in `out/<name of the study>/`. `liberty`: a
        cell library in place of the built-in one.

        InputError, with place and key, for a study that is none.
        """
        from hwsim.sweep.driver import command_of
        from hwsim.sweep.space import Study as Space
        from hwsim.sweep.space import load_study

        self._liberty = None if liberty is None else Path(liberty)
        if isinstance(source, Mapping):
            self._study, self._command = Space.from_dict(source), _call(self._liberty)
        else:
            self._study, self._command = load_study(Path(source)), command_of(Path(source), self._liberty)
        self._folder = Path(out) / self._study.name

    @classmethod
    def at(cls, place: str | Path) -> Study:
        """The study of a store, or of the folder that it is in, with its results and without its sweep file.

        InputError for what is no store with a study.

        ```python
        Study.at("results/quickstart").frame()
        ```
        """
        from hwsim.sweep.lookup import reading
        from hwsim.sweep.point_folders import LIBRARY, has_library
        from hwsim.sweep.store import read_study

        folder = Path(place) if Path(place).is_dir() else Path(place).parent
        with reading(Path(place)) as store:
            entries = read_study(store)
        require("study" in entries, f"{place}: holds no study yet; run `hwsim sweep` first")
        found = cls(entries["study"], liberty=folder / LIBRARY if has_library(entries) else None)
        found._folder, found._command = folder, entries.get("command", found._command)
        return found

    @property
    def name(self) -> str:
        """The study's."""
        return self._study.name

    @property
    def folder(self) -> Path:
        """Where its results are, or will be."""
        return self._folder

    def run(self, workers: int | None = None, *, quiet: bool = True, retry: bool = True) -> Study:
        """Evaluate the points that have no result yet, as `hwsim sweep` does; returns the study itself.

        `workers`: processes, the number of CPUs by default. Unless `quiet`, progress and tables are printed. `retry`:
        whether failed points are tried again. InputError, and KeyboardInterrupt, as `hwsim.sweep.driver.run_sweep`
        raises them; what was finished is kept.

        ```python
        Study("sweeps/quickstart.yaml").run(workers=2, quiet=False)
        ```
        """
        from rich.console import Console

        from hwsim.sweep.driver import prepare, run

        rule = f"{self.folder}: the study is {self.name}, and its folder must be called so; rename that"
        require(self.folder.resolve().name == self.name, rule)
        setup = prepare(self._study, self._command, liberty=self._liberty)
        console = Console(quiet=True) if quiet else None
        run(setup, self.folder.resolve().parent, workers=workers, retry=retry, console=console)
        return self

    def points(self) -> Iterator[Point]:
        """The points that the study spans, in its order, evaluated or not.

        ```python
        [point.label for point in Study("sweeps/quickstart.yaml").points()][:3]
        ```
        """
        return self._study.points()

    def frame(self) -> Any:
        """The results as a `pandas.DataFrame` in the study's order: one row a point, failed ones included, a typed
        column for each field, metric (its unit in its name) and engine parameter (`set_<name>`), NA where absent.

        InputError where there are no results yet, and where pandas is missing.

        ```python
        study.frame().query("status == 'done'").groupby("unit")["area_um2"].min()
        ```
        """
        from hwsim.sweep.export import frame
        from hwsim.sweep.lookup import reading
        from hwsim.sweep.store import study_rows

        with reading(self._store()) as store:
            return frame(study_rows(store))

    def front(self, metrics: Sequence[str] = ()) -> Any:
        """Of `frame`, the points that no other one dominates in these metrics; by default in the study's objectives,
        else in accuracy and area at equal throughput, else in two metrics that it has.

        InputError as `frame`, and for a name that is no metric with a direction.

        ```python
        study.front(["cycles", "energy_pj"])
        ```
        """
        from hwsim.sweep.export import frame
        from hwsim.sweep.lookup import reading

        with reading(self._store()) as store:
            return frame(_front(store, metrics))

    def report(self) -> Path:
        """Write the study's HTML report anew and return its path.

        InputError where there are no results yet.

        ```python
        webbrowser.open(study.report().resolve().as_uri())
        ```
        """
        from hwsim.report import write_report

        path = self.folder / "report.html"
        write_report(self._store(), path)
        return path

    def __repr__(self) -> str:
        return f"Study({self.name!r}, folder={str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """A small table: the begin of the front, or that there is nothing yet."""
        if not self._store().is_file():
            return f"<p>{html.escape(self.name)}: no results yet; <code>run()</code> evaluates its points</p>"
        from hwsim.sweep.lookup import axes, reading
        from hwsim.sweep.store import count_by_status

        with reading(self._store()) as store:
            counts, names = count_by_status(store), axes(store)
            rows = _front(store, names)
        words = ", ".join(f"{count:,} {status}" for status, count in counts.items()) or "no points yet"
        return _table(f"{self.name}: {words}; Pareto front, {len(rows):,} points", rows[:SHOWN], names)

    def _store(self) -> Path:
        return self.folder / STORE


def _call(liberty: Path | None) -> str:
    """What makes the same results of a study without a file."""
    library = f", liberty={liberty.as_posix()!r}" if liberty else ""
    return f"hwsim.Study(json.load(open('config.resolved.json'))['study']{library}).run()"


def _front(store: Connection, metrics: Sequence[str]) -> list[Row]:
    from hwsim.sweep.lookup import axes, front_keys
    from hwsim.sweep.store import rows_at

    return list(rows_at(store, front_keys(store, tuple(metrics) or axes(store))))


def _table(caption: str, rows: Sequence[Row], names: Sequence[str]) -> str:
    from hwsim.metrics import METRICS

    metrics = [METRICS[name] for name in names]
    head = "".join(f"<th>{html.escape(title)}</th>" for title in ("point", *(each.heading for each in metrics)))
    lines = [[row["label"], *(each.show(row[each.name]) for each in metrics)] for row in rows]
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f"<table><caption>{html.escape(caption)}</caption><tr>{head}</tr>{body}</table>"
