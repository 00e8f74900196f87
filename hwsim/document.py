"""Files that people write: a small, safe part of YAML 1.2, strict schemas, complaints that name file, line and key."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hwsim.files import os_errors, require_file
from models.unit import InputError, nearest, require

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_DIGITS = 18
"""digits of a whole number: all of them fit 64 bits"""

NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)

Key = tuple[str | int, ...]
"""the way to a value: names of mappings and indices of sequences"""

Model = TypeVar("Model", bound=BaseModel)


def validated(document: Document, model: type[Model], what: str) -> Model:
    """The document as `model`; InputError, one line `file:line: key: rule; nearest valid choice`, where it does not
    fit. `what` names the kind of file."""
    rule = f"{document.path}:1: {what} is a mapping with the keys {_names(model)}"
    require(isinstance(document.value, dict), rule)
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        raise InputError(_complaint(document, model, error)) from None


def _names(model: type[BaseModel]) -> str:
    return ", ".join(f.alias or name for name, f in model.model_fields.items())


def _needed_names(model: type[BaseModel]) -> str:
    return ", ".join(f.alias or name for name, f in model.model_fields.items() if f.is_required())


def _complaint(document: Document, model: type[BaseModel], error: ValidationError) -> str:
    """The first error as one line; the others are counted."""
    found = error.errors(include_url=False)
    # pydantic counts a list's bad entries as absent and then finds the list too short
    own = [e for e in found if e["type"] != "too_short" or not any(_inside(o["loc"], e["loc"]) for o in found)]
    # an unknown key first: a mistyped one is also reported as missing
    errors = sorted(own, key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    # what is missing has no line of its own: the mapping around it has
    location = first["loc"] if first["loc"] in document.lines else first["loc"][:-1]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{document.place(location)}: {_rule(model, first)}{more}"


def _inside(inner: Key, outer: Key) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _model_at(model: type[BaseModel], key: Key) -> type[BaseModel]:
    """The schema of the mapping that holds the last part of `key`."""
    for part in key[:-1]:
        for name, info in model.model_fields.items():
            if part in (name, info.alias):
                model = next(_models(info.annotation), model)
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Schemas inside a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)


def _rule(root: type[BaseModel], error: Mapping[str, Any]) -> str:
    """pydantic's error in this project's words."""
    where, value = error["loc"], error["input"]
    model = _model_at(root, where)
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key; {nearest(str(where[-1])[:64], _names(model).split(', '))}"
        case "missing":
            return f"key {str(where[-1])!r} is missing; needed are {_needed_names(model)}"
        case "string_pattern_mismatch":
            return f"{short(value)} is not a name: a-z, 0-9, . _ -, starting with a letter or digit, 64 at most"
        case "value_error":
            return str(error["ctx"]["error"])
    return f"{_needed(error)}, not {short(value)}"


_KINDS = {
    "int_type": "a whole number",
    "string_type": "text",
    "string_unicode": "text of whole characters",
    "tuple_type": "a list",
    "model_type": "a mapping",
    "dict_type": "a mapping",
}
"""pydantic's errors -> what is needed"""


def _needed(error: Mapping[str, Any]) -> str:
    if (kind := _KINDS.get(error["type"])) is not None:
        return f"{kind} is needed"
    return error["msg"][:1].lower() + error["msg"][1:]


def short(value: Any) -> str:
    return _cut(repr(value))


def _word(text: str) -> str:
    """The text in one line, without quotes."""
    return _cut(repr(text)[1:-1])


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True, kw_only=True)
class Document:
    """A YAML file as plain data: dicts, tuples, str, bool, int, float, None."""

    path: Path
    value: Any
    lines: Mapping[Key, int] = field(repr=False)
    """line of every value, from 1"""

    def place(self, key: Key) -> str:
        """`file:line: key.path` of a value."""
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{_word(part)}" for part in key).removeprefix(".")
        place = f"{self.path}:{self.lines[key]}"
        return f"{place}: {text}" if text else place


def load_yaml(path: Path) -> Document:
    """Read a YAML 1.2 file of at most `MAX_BYTES` bytes, one document, nested at most `MAX_DEPTH` deep.

    Refused with InputError: anchors and aliases, tags, directives, duplicate keys, keys that are not text, NaN and
    infinities, and numbers that YAML's versions read differently (octal, hexadecimal, `1_000`, `1:30`).
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    text = _read_text(path)
    reader = _Reader(path=path, events=YAML(typ="safe", pure=True).parse(text))
    try:
        value = reader.document()
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise InputError(f"{path}{line}: not YAML: {_word(' '.join(str(problem).split()))}") from None
    return Document(path=path, value=value, lines=reader.lines)


def _read_text(path: Path) -> str:
    require_file(path)
    with os_errors(path), path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    require(len(data) <= MAX_BYTES, f"{path}: more than {MAX_BYTES} bytes; such a file is small")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


@dataclass(kw_only=True)
class _Reader:
    """Builds plain data from the parser's events; the parser itself does not recurse, so depth is checked in time."""

    path: Path
    events: Iterator[Any]
    lines: dict[Key, int] = field(default_factory=dict)

    def document(self) -> Any:
        from ruamel.yaml.events import DocumentStartEvent, StreamEndEvent

        next(self.events)  # start of stream
        start = next(self.events)
        self._require(isinstance(start, DocumentStartEvent), start, "the file is empty")
        self._require(start.version is None and not start.tags, start, "%-directives are not admitted; leave them out")
        value = self._value(next(self.events), ())
        next(self.events)  # end of document
        end = next(self.events)
        self._require(isinstance(end, StreamEndEvent), end, "a second document; one file holds one")
        return value

    def _require(self, condition: bool, event: Any, message: str) -> None:
        require(condition, f"{self.path}:{event.start_mark.line + 1}: {message}")

    def _value(self, event: Any, key: Key) -> Any:
        from ruamel.yaml.events import AliasEvent, MappingStartEvent, SequenceStartEvent

        self._require(not isinstance(event, AliasEvent), event, "aliases (*name) are not admitted; write the value out")
        self._require(event.anchor is None, event, "anchors (&name) are not admitted; write the value out")
        self._require(event.tag is None, event, f"tag {_word(str(event.tag))} is not admitted; leave it out")
        self._require(len(key) <= MAX_DEPTH, event, f"nested deeper than {MAX_DEPTH}")
        self.lines.setdefault(key, event.start_mark.line + 1)
        if isinstance(event, MappingStartEvent):
            return self._mapping(key)
        if isinstance(event, SequenceStartEvent):
            return self._sequence(key)
        return self._scalar(event)

    def _mapping(self, key: Key) -> dict[str, Any]:
        from ruamel.yaml.events import MappingEndEvent, ScalarEvent

        values: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            self._require(isinstance(event, ScalarEvent), event, "a key must be text")
            name = self._value(event, key)
            self._require(isinstance(name, str), event, f"key {short(event.value)} must be text; put it in quotes")
            self._require(name not in values, event, f"key {short(name)} stands twice; leave one out")
            values[name] = self._value(next(self.events), (*key, name))
            self.lines[(*key, name)] = event.start_mark.line + 1
        return values

    def _sequence(self, key: Key) -> tuple[Any, ...]:
        from ruamel.yaml.events import SequenceEndEvent

        values: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            values.append(self._value(event, (*key, len(values))))
        return tuple(values)

    def _scalar(self, event: Any) -> Any:
        text = event.value
        if event.style is not None:
            return text
        words = {"true": True, "false": False, "null": None, "~": None, "": None}
        if text.lower() in words:
            return words[text.lower()]
        if re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", text):
            self._require(len(text) <= MAX_DIGITS, event, f"a whole number has at most {MAX_DIGITS} digits")
            return int(text)
        if re.fullmatch(r"[-+]?([0-9]+\.[0-9]*|\.?[0-9]+)([eE][-+]?[0-9]+)?", text) and not re.match(
            r"[-+]?0[0-9]", text
        ):
            self._require(abs(float(text)) < float("inf"), event, f"{short(text)} is too large for a number")
            return float(text)
        self._require(
            not re.fullmatch(r"[-+]?(\.inf|\.nan)", text.lower()),
            event,
            f"{text} is not a finite number; write a number",
        )
        ambiguous = re.fullmatch(r"[-+]?[0-9][0-9_:]*|[-+]?0[xob][0-9a-f_]+", text.lower())
        self._require(not ambiguous, event, f"{short(text)} is not a plain decimal number; write one, or use quotes")
        return text
