"""Exports of a study: CSV, Parquet, and a frame of pandas; the same columns, under the same names, in each."""

from __future__ import annotations

import csv
import importlib
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hwsim.files import os_errors, replacing, require_file
from hwsim.sweep.rows import COLUMNS, SETTING, Column, Row, setting_column, storable
from models.unit import InputError, nearest, require

BATCH = 4096
"""rows of a group in Parquet"""

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_AMBIGUOUS = re.compile(r"'*([=+\-@\t\r\n]|([0-9]+|true|false|)\Z)")
_BY_NAME = {column.name: column for column in COLUMNS}
EXPORTED = tuple(column for column in COLUMNS if column.exported)


def columns_of(rows: Iterable[Row], chosen: Iterable[Column] = EXPORTED) -> tuple[Column, ...]:
    """The chosen columns, and one for each engine parameter of the rows (`set_<name>`, sorted), of the type that all
    its values have, else TEXT. Needs no field of the rows but `params`."""
    kinds: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row["params"].items():
            kinds.setdefault(name, set()).add(_kind(value))
    named = ((name, found.pop() if len(found) == 1 else "TEXT") for name, found in sorted(kinds.items()))
    return (*chosen, *(setting_column(name, kind) for name, kind in named))


def _kind(value: bool | int | str) -> str:
    return "TEXT" if isinstance(value, str) else "BOOLEAN" if isinstance(value, bool) else "INTEGER"


# ---- CSV


def write_csv(path: Path, rows: Iterable[Row], columns: Sequence[Column]) -> None:
    """Write the rows as CSV (RFC 4180, UTF-8), one at a time; the file appears whole or not at all.

    Numbers are written in full, truth values as true and false; what is absent is empty. Text that starts, after any
    number of ', with = + - @, TAB, CR or LF gets one ' more, so that a spreadsheet does not take it for a formula; so
    does a parameter's word that would read as a number, a truth value or nothing. `read_csv` takes exactly these away
    again. InputError for a place that cannot be written.
    """
    with replacing(path) as file:
        file.writelines(line.encode("utf-8", "replace") for line in csv_lines(rows, columns))


def csv_lines(rows: Iterable[Row], columns: Sequence[Column]) -> Iterator[str]:
    """What `write_csv` writes, by rows."""
    return _lines([column.name for column in columns], ([_cell(row, c) for c in columns] for row in rows))


def write_table(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write any table as such CSV: names of columns, and values as SQLite has them."""
    with replacing(path) as file:
        guarded = ([_guarded(value, _FORMULA) for value in values] for values in rows)
        file.writelines(line.encode("utf-8", "replace") for line in _lines(names, guarded))


def read_csv(path: Path) -> Iterator[Row]:
    """The rows that `write_csv` wrote, with the fields of its columns, and `params`.

    InputError, where the iteration meets it, for what is no such file.
    """
    require_file(path)
    with os_errors(path), path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            columns = [_column(name, path) for name in next(reader, [])]
            for cells in reader:
                yield _row(columns, cells)
        except (csv.Error, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}:{reader.line_num}: no row of a study ({reason})") from None


def _lines(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    for cells in itertools.chain([names], rows):
        writer.writerow(cells)
        yield text.getvalue()
        text.seek(0)
        text.truncate()


def _cell(row: Row, column: Column) -> Any:
    value = _value(row, column)
    if isinstance(value, bool):
        return "true" if value else "false"
    return _guarded(value, _AMBIGUOUS if column.setting else _FORMULA)


def _guarded(value: Any, dangerous: re.Pattern[str]) -> Any:
    return f"'{value}" if isinstance(value, str) and dangerous.match(value) else value


def _value(row: Row, column: Column) -> Any:
    """The row's value in that column, None where it has none."""
    if column.setting:
        return row["params"].get(column.setting)
    value = row.get(column.field)
    return json.dumps(value or {}, sort_keys=True) if column.type == "JSON" else value


def _column(name: str, path: Path) -> Column:
    setting = name.removeprefix("set_")
    if setting != name and SETTING.fullmatch(setting):
        return setting_column(setting, "TEXT")
    require(name in _BY_NAME, f"{path}:1: no column {name!r:.80}; {nearest(name[:80], _BY_NAME)}")
    return _BY_NAME[name]


def _row(columns: Sequence[Column], cells: Sequence[str]) -> Row:
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} fields where {len(columns)} are due")
    pairs = list(zip(columns, cells, strict=True))
    row = {column.field: _read(column.type, cell) for column, cell in pairs if not column.setting}
    params = {column.setting: _parameter(cell) for column, cell in pairs if column.setting and cell}
    return {"params": params} | row


def _read(kind: str, cell: str) -> Any:
    match kind:
        case "TEXT":
            return _bare(cell, _FORMULA)
        case "JSON":
            return json.loads(cell)
        case "INTEGER":
            return int(cell) if cell else None
    return float(cell) if cell else None


def _parameter(cell: str) -> bool | int | str:
    if cell in ("true", "false"):
        return cell == "true"
    return int(cell) if re.fullmatch("-?[0-9]+", cell) else _bare(cell, _AMBIGUOUS)


def _bare(cell: str, dangerous: re.Pattern[str]) -> str:
    return cell[1:] if cell.startswith("'") and dangerous.match(cell) else cell


# ---- tables


def write_parquet(path: Path, rows: Iterable[Row], columns: Sequence[Column]) -> None:
    """Write the rows as Parquet, `BATCH` in memory at a time: 64-bit integers, doubles, truth values and texts, absent
    values as nulls. The file appears whole or not at all.

    InputError for a place that cannot be written, and where pyarrow is missing.
    """
    arrow, parquet = _module("pyarrow"), _module("pyarrow.parquet")
    types = {"INTEGER": arrow.int64(), "REAL": arrow.float64(), "BOOLEAN": arrow.bool_()}
    schema = arrow.schema([(column.name, types.get(column.type, arrow.string())) for column in columns])
    rows = iter(rows)
    with replacing(path) as file, parquet.ParquetWriter(file, schema) as writer:
        while batch := list(itertools.islice(rows, BATCH)):
            writer.write_table(arrow.table([_values(batch, column) for column in columns], schema=schema))


def frame(rows: Iterable[Row], chosen: Iterable[Column] = (_BY_NAME["label"], *EXPORTED)) -> Any:
    """The rows as a `pandas.DataFrame`, typed, absent values as NA: the chosen columns and the engines' parameters.

    InputError where pandas is missing.
    """
    pandas = _module("pandas")
    rows = list(rows)
    types = {"INTEGER": "Int64", "REAL": "Float64", "BOOLEAN": "boolean"}
    columns = columns_of(rows, chosen)
    return pandas.DataFrame(
        {column.name: pandas.array(_values(rows, column), types.get(column.type, "string")) for column in columns}
    )


def _values(rows: Sequence[Row], column: Column) -> list[Any]:
    """The rows' values, all of the column's type."""
    convert = {"INTEGER": int, "REAL": float, "BOOLEAN": bool}.get(column.type, _as_text)
    values = (_value(row, column) for row in rows)
    return [None if value is None else convert(value) for value in values]


def _as_text(value: bool | int | str) -> str:
    return storable(value) if isinstance(value, str) else str(value).lower()


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        root = name.split(".")[0]
        raise InputError(f"this export needs {root}, not installed here; pip install 'hwsim[tables]'") from None
