"""What a point's row and a task's record are made of: their fields, and the form in which every file holds them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hwsim.metrics import METRICS
from hwsim.sweep.tasks import STATUSES, Outcome
from models.unit import InputError

SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
"""name of an engine's parameter"""

Row = dict[str, Any]
"""A point by the fields of `COLUMNS`; `params` and `detail` as dicts, None where there is no number."""
TaskRow = dict[str, Any]
"""A task by the fields of `TASK_COLUMNS`; `result` as a dict, empty unless it is done."""


@dataclass(frozen=True)
class Column:
    """A value of every row."""

    name: str
    """as in files, unit included"""
    field: str
    """as in a row"""
    type: str
    """TEXT, never absent; INTEGER (of 64 bits), REAL (finite) or BOOLEAN; JSON, the text of a mapping"""
    exported: bool = True
    """whether exports have it unless told otherwise: what differs from run to run stays in the store"""
    setting: str = ""
    """of an engine's parameter: its name in the row's `params`"""


_METRICS = tuple(Column(m.column, m.name, "INTEGER" if m.kind is int else "REAL") for m in METRICS.values())

COLUMNS = (
    Column("key", "key", "TEXT"),
    Column("label", "label", "TEXT", exported=False),
    Column("name", "name", "TEXT"),
    Column("network", "network", "TEXT"),
    Column("seed", "seed", "INTEGER"),
    Column("engine", "engine", "TEXT"),
    Column("unit", "unit", "TEXT"),
    Column("format", "format", "TEXT"),
    Column("weight_bits", "weight_bits", "INTEGER"),
    Column("act_bits", "act_bits", "INTEGER"),
    Column("transform", "transform", "TEXT"),
    Column("quantizer", "quantizer", "TEXT"),
    Column("activations", "activations", "TEXT"),
    Column("status", "status", "TEXT"),
    Column("message", "message", "TEXT"),
    *_METRICS,
    Column("wall_s", "wall_s", "REAL", exported=False),
    Column("peak_memory_bytes", "peak_memory_bytes", "INTEGER", exported=False),
    Column("created_utc", "created", "TEXT", exported=False),
    Column("revision", "revision", "TEXT", exported=False),
    Column("params_json", "params", "JSON", exported=False),
    Column("detail_json", "detail", "JSON", exported=False),
)

TASK_COLUMNS = (
    Column("key", "key", "TEXT"),
    Column("kind", "kind", "TEXT"),
    Column("status", "status", "TEXT"),
    Column("message", "message", "TEXT"),
    Column("wall_s", "wall_s", "REAL"),
    Column("peak_memory_bytes", "peak_memory_bytes", "INTEGER"),
    Column("created_utc", "created", "TEXT"),
    Column("result_json", "result", "JSON"),
)


def setting_column(name: str, kind: str) -> Column:
    """The column of an engine's parameter."""
    return Column(f"set_{name}", "params", kind, setting=name)


def task_row(kind: str, outcome: Outcome, created: str) -> TaskRow:
    """How a task of that kind ended, `created` as UTC in ISO 8601."""
    names = ("key", "status", "message", "wall_s", "peak_memory_bytes")
    values = {name: getattr(outcome, name) for name in names}
    return {**values, "kind": kind, "created": created, "result": dict(outcome.result)}


def outcome_of(task: TaskRow) -> Outcome:
    """How that task ended, without a traceback."""
    names = ("key", "status", "message", "result", "wall_s", "peak_memory_bytes")
    return Outcome(**{name: task[name] for name in names})


# ---- to files and back


def encode(columns: Sequence[Column], record: Mapping[str, Any]) -> list[Any]:
    """The values of a row, or of a task's record, in the order of `columns`: text, numbers, JSON.

    Fields that it lacks are empty: "" as text, {} as a mapping, else None. Text that no file takes (lone surrogates)
    has question marks in their place. InputError that names the record and the field for a value of another type, a
    number that is not finite or has more than 64 bits, and an unknown status; AssertionError for a field without a
    column.
    """
    unknown = record.keys() - {column.field for column in columns}
    assert not unknown, f"fields without a column: {sorted(unknown)}"
    values = [_FILE_FORMS[column.type](record.get(column.field)) for column in columns]
    faults = [column.field for column, value in zip(columns, values, strict=True) if not FITS[column.type](value)]
    if field := next(iter(faults), None) or _misfit(record):
        what = f"{record.get('label') or record.get('kind', '')} {record.get('key', '')}"
        raise InputError(f"{what[:160]!r} cannot be stored: {field} is {record.get(field)!r:.60}")
    return values


def decode(columns: Sequence[Column], values: Sequence[Any]) -> dict[str, Any]:
    """The row, or the task's record, whose fields in the order of `columns` a file holds as these values.

    ValueError, whose text names the column, for a value that `encode` does not give.
    """
    record = {}
    for column, value in zip(columns, values, strict=True):
        if not FITS[column.type](value):
            raise ValueError(f"column {column.name}")
        record[column.field] = _mapping(column, value) if column.type == "JSON" else value
    if field := _misfit(record):
        raise ValueError(f"column {field}")
    return record


def _misfit(record: Mapping[str, Any]) -> str | None:
    """The first field that holds more than its type allows."""
    return next((field for field, holds in _RULES.items() if field in record and not holds(record[field])), None)


def _is_key(key: str | None) -> bool:
    return bool(key)


def _is_status(status: str | None) -> bool:
    return status in STATUSES


def _are_params(params: Mapping[str, Any] | None) -> bool:
    return params is None or all(
        isinstance(name, str)
        and SETTING.fullmatch(name) is not None
        and value is not None
        and (isinstance(value, (bool, str)) or _is_whole(value))
        for name, value in params.items()
    )


def _mapping(column: Column, text: str) -> Any:
    """What the JSON says; nothing in it that `encode` does not write."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        if "\\u" in text:  # an escape can smuggle in a lone surrogate
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"column {column.name}")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def storable(text: str) -> str:
    """The text with question marks in place of lone surrogates, which no file takes."""
    return text.encode("utf-8", "replace").decode()


def _text(value: Any) -> Any:
    return "" if value is None else storable(value) if isinstance(value, str) else value


def _json(value: Any) -> str | None:
    """JSON of a mapping of plain data, the same text for equal ones; None for anything else."""
    if not isinstance(value, Mapping | None):
        return None
    try:
        text = json.dumps(dict(value or {}), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return storable(text)


def _real(value: Any) -> Any:
    return float(value) if type(value) is int and _is_finite(value) else value


def _as_is(value: Any) -> Any:
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return value is None or (type(value) is int and -(1 << 63) <= value < 1 << 63)


def _is_finite(value: Any) -> bool:
    try:
        return value is None or (isinstance(value, (float, int)) and type(value) is not bool and math.isfinite(value))
    except OverflowError:  # a whole number beyond every float
        return False


def _is_truth(value: Any) -> bool:
    return value is None or isinstance(value, bool)


_RULES: Mapping[str, Callable[[Any], bool]] = {"key": _is_key, "status": _is_status, "params": _are_params}
_FILE_FORMS: Mapping[str, Callable[[Any], Any]] = {
    "TEXT": _text,
    "JSON": _json,
    "INTEGER": _as_is,
    "REAL": _real,
}
FITS: Mapping[str, Callable[[Any], bool]] = {
    "TEXT": _is_text,
    "JSON": _is_text,
    "INTEGER": _is_whole,
    "REAL": _is_finite,
    "BOOLEAN": _is_truth,
}
"""type of a column -> whether it can hold a value"""
