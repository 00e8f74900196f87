"""Names with options, as people write them on the command line and in sweep files: `name:option=value,option=value`."""

from __future__ import annotations

import re
from typing import Any

from models.unit import require


def parse_options(what: str, text: str) -> tuple[str, dict[str, Any]]:
    """The name and its options; values are whole or real numbers, true, false or words.

    `what` is the kind of thing that is named, for the message of an InputError: an option without a value, or twice.
    """
    name, colon, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        key, equals, value = (word.strip() for word in part.partition("="))
        require(bool(equals), f"{what} {name}: {part!r} is no NAME=VALUE, such as group=128")
        require(key not in options, f"{what} {name}: {key} is given twice")
        options[key] = _value(value)
    return name, options


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[-+]?[0-9]{1,18}", text):
        return int(text)
    if re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+(e[-+]?[0-9]{1,3})?", text):
        return float(text)
    return text
