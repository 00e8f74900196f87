"""Hardware as plain data and back, and what of an engine can change the values that it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from models.catalog import unit
from models.unit import InputError, Unit, fields_of

LARGEST_PLAIN = 1 << 63
"""Whole numbers from here on, such as the signs of a wide transform, are hexadecimal text in plain data: files and
databases do not keep them."""


def plain(params: Any) -> dict[str, Any]:
    """The fields of a params object that are not the unit's defaults as plain data, from which `built` makes an equal
    one."""
    defaults = {field.name: field.default for field in fields(params)}
    return {
        name: hex(value) if isinstance(value, int) and value >= LARGEST_PLAIN else value
        for name, value in fields_of(params)
        if value != defaults[name]
    }


def built(name: str, values: Mapping[str, Any]) -> tuple[Unit, Any]:
    """The unit of that name and its params."""
    entry = unit(name)
    types = entry.param_types
    whole = {key: int(v, 16) for key, v in values.items() if types.get(key) is int and isinstance(v, str)}
    return entry, entry.params(**{**values, **whole})


def by_value(entry: Unit, params: Any) -> Any:
    """An engine that computes the same values, itself the same for as many as can be: the fields that change none are
    the unit's defaults, as far as such an engine can be built."""
    free = entry.value_free(params)
    defaults = {field.name: field.default for field in fields(params) if field.name in free}
    every = _replaced(params, defaults)
    if every is not None:
        return every
    # one that is refused may be taken once another is what it was
    for name, value in [*defaults.items()] * len(defaults):
        params = _replaced(params, {name: value}) or params
    return params


def _replaced(params: Any, values: Mapping[str, Any]) -> Any:
    try:
        return replace(params, **values)
    except InputError:
        return None
