"""The commands that take numbers out of a store: `query` and `export`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsim.terminal import Json, print_json, printable, require_targets, say, table, target
from models.unit import require

if TYPE_CHECKING:
    from hwsim.sweep.query import Answer

MAX_ROWS = 1_000_000
SHOWN = 100
"""rows of a table where no limit is given"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="""Example: hwsim query results/quickstart --where "accuracy > 0.9" --sort -area_um2""")(query)
    app.command(epilog="Example: hwsim export results/quickstart points.parquet")(export)


def export(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="a study's store.sqlite, or the folder it is in")],
    out: Annotated[str, typer.Argument(metavar="FILE", help="ends in .csv or .parquet")],
    as_json: Json = False,
) -> None:
    """Write all points of a study, with every parameter and metric, as CSV or Parquet."""
    from hwsim.sweep.export import columns_of, write_csv, write_parquet
    from hwsim.sweep.lookup import reading
    from hwsim.sweep.store import count_by_status, study_rows

    path = target("FILE", out)
    assert path is not None
    writers = {".csv": write_csv, ".parquet": write_parquet}
    suffix = path.suffix.lower()
    require(suffix in writers, f"{printable(out)}: a file is written as .csv or .parquet; name it so")
    require_targets({"FILE": path}, {})
    with reading(store) as connection:
        columns = columns_of(study_rows(connection, ("params",)))
        fields = [column.field for column in columns]
        writers[suffix](path, study_rows(connection, fields), columns)
        points = sum(count_by_status(connection).values())
    if as_json:
        print_json({"file": str(path), "points": points, "columns": [column.name for column in columns]})
    else:
        say(printable(f"{path}: {points} points, {len(columns)} columns"))


def query(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="a study's store.sqlite, or the folder it is in")],
    where: Annotated[str, typer.Option(metavar="EXPR", help="a condition of SQL over columns and metrics")] = "",
    sql: Annotated[
        str | None,
        typer.Option(metavar="SELECT", help="a whole question in its place: of study_points, points, tasks, study"),
    ] = None,
    columns: Annotated[str, typer.Option(metavar="A,B", help="columns to show, such as label,accuracy,set_rows")] = "",
    sort: Annotated[str, typer.Option(metavar="A,-B", help="columns to order by, falling with -")] = "",
    limit: Annotated[int | None, typer.Option(min=1, max=MAX_ROWS, help="points at most")] = None,
    front: Annotated[str, typer.Option(metavar="A,B", help="only the Pareto front of these metrics")] = "",
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="write CSV instead of printing")] = None,
    as_json: Json = False,
) -> None:
    """Ask a study's store, by a condition or by SQL that only reads."""
    path = target("--csv", csv)
    if path is not None:
        require_targets({"--csv": path}, {})
        require(not as_json, "--csv and --json: take one of them")
    if store.is_dir():
        store = store / "store.sqlite"
    same = path is not None and path.exists() and store.exists() and path.samefile(store)
    require(not same, f"--csv {path}: is the store itself; name another file")
    with _answer(store, where, sql, _words(columns), _words(sort), limit, _words(front)) as (names, rows):
        if path is not None:
            _write(path, names, rows)
        elif as_json:
            print_json(list(_records(names, rows)))
        else:
            _print(store, names, rows, limit)


def _answer(
    store: Path,
    where: str,
    sql: str | None,
    columns: tuple[str, ...],
    sort: tuple[str, ...],
    limit: int | None,
    front: tuple[str, ...],
) -> AbstractContextManager[Answer]:
    from hwsim.sweep.query import Question, query, query_sql

    if sql is None:
        return query(store, Question(where=where, columns=columns, sort=sort, limit=limit, front=front))
    given = [
        name for name, value in {"where": where, "columns": columns, "sort": sort, "front": front}.items() if value
    ]
    require(not given and limit is None, "--sql is a whole question; leave the other options out, or --sql")
    return query_sql(store, sql)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _records(names: list[str], rows: Iterator[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Rows as JSON can hold them."""
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"--json: two columns {twice!r:.80}; name them apart with AS")
    for row in rows:
        infinite = any(isinstance(value, float) and not math.isfinite(value) for value in row)
        require(not infinite, "--json: the answer holds an infinite number, which JSON lacks; take --csv")
        yield dict(zip(names, row, strict=True))


def _write(path: Path, names: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    from hwsim.sweep.export import write_table

    write_table(path, names, rows)
    say(printable(str(path)))


def _print(store: Path, names: list[str], rows: Iterator[tuple[Any, ...]], limit: int | None) -> None:
    shown = list(itertools.islice(rows, SHOWN if limit is None else limit))
    more = sum(1 for _ in rows)
    table(printable(str(store)), names, [[_text(value) for value in row] for row in shown])
    say(f"{len(shown)} rows" + (f", {more:,} more: see --limit, --csv and --json" if more else ""))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else printable(str(value))
