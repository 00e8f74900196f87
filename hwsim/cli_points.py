"""The commands about single points: `rerun`, and the comparison of two studies."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsim.terminal import Json, plain, print_json, printable, require_targets, say, table, target
from models.unit import require

if TYPE_CHECKING:
    from hwsim.sweep.comparison import Comparison
    from hwsim.sweep.rerun import Rerun

STANDARD_OUTPUT = "-"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: hwsim rerun results/quickstart 3f9ac2d1")(rerun)


def rerun(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="a study's store.sqlite, or the folder it is in")],
    point: Annotated[str, typer.Argument(metavar="POINT", help="the begin of its key, 4 digits or more, or its label")],
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="write inputs, new result and replay.sh there")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="also hold the engine's RTL against its model; the report links the waves")
    ] = False,
    cache: Annotated[bool, typer.Option(help="whether kept results of synthesis may be used")] = True,
    as_json: Json = False,
) -> None:
    """Evaluate one point again, from its store alone, and hold every digit against what is stored."""
    from hwsim.sweep.rerun import rerun as run
    from hwsim.sweep.rerun import verified, write_rerun

    folder = target("--out", out)
    if folder is not None:
        require_targets({}, {"--out": folder})
    with contextlib.nullcontext() if cache else _own_cache():
        found = run(store, point)
    if folder is not None:
        write_rerun(found, folder)
    report = verified(found, store) if verify else None
    if as_json:
        print_json(_record(found) | ({} if report is None else {"verified": plain(report)}))
    else:
        _print(found)
        if report is not None:
            say(f"RTL against model: {'equal' if report.passed else report.findings[0]} in {report.cycles:,} cycles")
    raise typer.Exit(0 if found.equal and (report is None or report.passed) else 1)


@contextlib.contextmanager
def _own_cache() -> Iterator[None]:
    """An empty cache that is gone afterwards, also for the processes that are started meanwhile."""
    before = os.environ.get("HWSIM_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HWSIM_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["HWSIM_CACHE"]
            if before is not None:
                os.environ["HWSIM_CACHE"] = before


def _record(found: Rerun) -> dict[str, Any]:
    return {
        "key": found.stored["key"],
        "label": found.stored["label"],
        "equal": found.equal,
        "same_code": found.same_code,
        "status": _pair(found.stored["status"], found.again["status"]),
        "message": _pair(found.stored["message"], found.again["message"]),
        "revision": _pair(found.stored["revision"], found.again["revision"]),
        "metrics": {name: {**_pair(*pair), "equal": pair[0] == pair[1]} for name, pair in found.metrics.items()},
        "versions": {name: _pair(*pair) for name, pair in found.changed.items()},
    }


def _pair(stored: Any, again: Any) -> dict[str, Any]:
    return {"stored": stored, "again": again}


def _print(found: Rerun) -> None:
    pairs = {"status": (found.stored["status"], found.again["status"]), **found.metrics}
    rows = [[name, _digits(one), _digits(two), "yes" if one == two else "no"] for name, (one, two) in pairs.items()]
    table(printable(found.stored["label"]), ["metric", "stored", "again", "equal"], rows)
    for when, row in (("stored", found.stored), ("again", found.again)):
        if row["message"]:
            say(f"{when}: {printable(row['message'])}")
    if not found.same_code:
        say("code, versions or tools are others than those of the stored result:")
        revisions = {"revision": (found.stored["revision"], found.again["revision"])}
        for name, (one, two) in (revisions | found.changed).items():
            say(f"  {printable(name)}: {printable(one) or 'unknown'} stored, {printable(two) or 'unknown'} now")


def _digits(value: Any) -> str:
    return "" if value is None else str(value)


def compare_studies(a: Path, b: Path, metrics: str, threshold: float, markdown: str | None, as_json: bool) -> int:
    """Print how study B (a store or its folder) differs from A; exit code 1 where more than the threshold, else 0.

    `metrics`: names separated by commas, "" for all. `markdown`: a file to write instead of printing, `-` for standard
    output, None for tables. InputError as `hwsim.sweep.comparison.compare`, for a bad threshold, and for --md with
    --json.
    """
    from hwsim.files import write_atomic
    from hwsim.sweep import comparison

    require(not (markdown is not None and as_json), "--md and --json: take one of them")
    comparison.require_threshold(threshold)
    path = None if markdown == STANDARD_OUTPUT else target("--md", markdown)
    if path is not None:
        require_targets({"--md": path}, {})
        stores = [place / "store.sqlite" if place.is_dir() else place for place in (a, b)]
        same = any(path.exists() and store.exists() and path.samefile(store) for store in stores)
        require(not same, f"--md {path}: is a store itself; name another file")
    found = comparison.compare(a, b, [name.strip() for name in metrics.split(",") if name.strip()])
    exceeds = found.exceeds(threshold)
    if as_json:
        print_json({"a": str(a), "b": str(b), "threshold": threshold, "exceeded": exceeds, **vars(found)})
    elif markdown is not None:
        text = comparison.markdown(found, str(a), str(b))
        if path is None:
            print(text, end="")
        else:
            write_atomic(path, text)
            say(printable(str(path)))
    else:
        _print_comparison(found, a, b)
    return 1 if exceeds else 0


def _print_comparison(found: Comparison, a: Path, b: Path) -> None:
    from hwsim.sweep.comparison import HEADINGS, MOST, cells, summary

    rows = [[printable(cell) for cell in cells(change)] for change in found.metrics]
    table(f"A {printable(str(a))}, B {printable(str(b))}", list(HEADINGS), rows)
    say(*map(printable, summary(found)))
    changed = [f"{printable(each.label)}: {each.a}, then {each.b}" for each in found.statuses]
    only = [f"only in {name}: {printable(label)}" for name, labels in _only(found) for label in labels[:MOST]]
    say(*changed[:MOST], *only)


def _only(found: Comparison) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return ("A", found.only_a), ("B", found.only_b)
