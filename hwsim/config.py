"""The sweep file: a strict schema over a small, safe part of YAML 1.2, and the design points that it spans."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hwsim.files import os_errors, require_file
from models.catalog import UNITS, unit
from models.floats import HALF_BITS
from models.unit import InputError, Kind, nearest, require

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_POINTS = 100_000
MAX_DIGITS = 18
"""digits of a whole number: all of them fit 64 bits"""

NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
FORMATS = {f"W{w}A{a}": (w, a) for w in range(8, 0, -1) for a in (*range(8, 1, -1), 16)} | {"W16A16": (16, 16)}
"""name -> bits of weights and activations; 16 is FP16"""

ACTIVATIONS = ("asymmetric", "symmetric")
"""integer activations: with a zero point a token, or without one"""
FLOAT_ACTIVATIONS = ("float",)
"""the one kind of FP16, and of an engine's own format"""

Value = bool | int | str
Key = tuple[str | int, ...]
"""the way to a value: names of mappings and indices of sequences"""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One design point: a network quantized in one way, run on one engine.

    `params` holds the engine's parameters as the sweep file sets them, sorted by name; the engine takes `weight_bits`
    and `act_bits` from the format. `activations` says whether integer ones have a zero point a token, or that they are
    floats.
    """

    network: str
    seed: int
    weight_bits: int
    act_bits: int
    transform: str
    unit: str
    params: tuple[tuple[str, Value], ...] = ()
    quantizer: str = "rtn"
    activations: str = "asymmetric"

    @property
    def format(self) -> str:
        return f"W{self.weight_bits}A{self.act_bits}"

    @property
    def engine(self) -> str:
        """The unit and its parameters in a few words, such as `systolic 16x16 WS`."""
        return _engine_label(self.unit, dict(self.params))

    @property
    def label(self) -> str:
        """The point in its study: the engine and `how`."""
        return f"{self.engine} {how(self.as_dict() | {'format': self.format})}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"params": dict(self.params)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Point:
        return cls(**{**data, "params": tuple(sorted(data["params"].items()))})


def _engine_label(name: str, params: dict[str, Value]) -> str:
    shape = [f"{params.pop('rows')}x{params.pop('cols')}"] if {"rows", "cols"} <= params.keys() else []
    dataflow = [str(params.pop("dataflow"))] if "dataflow" in params else []
    return " ".join([name, *shape, *dataflow, *(f"{key}={value}" for key, value in sorted(params.items()))])


def _engines() -> list[str]:
    return [name for name, entry in UNITS.items() if entry.kind is Kind.GEMM]


def _engine_name(name: str) -> str:
    require(name in UNITS, f"no unit {_short(name)}; {nearest(name[:64], UNITS)}")
    require(unit(name).kind is Kind.GEMM, f"{name!r} is no GEMM engine; {nearest(name, _engines())}")
    return name


def _settings(params: dict[str, Any]) -> dict[str, Value]:
    for name, value in params.items():
        require(
            re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name) is not None,
            f"{_short(name)} is no parameter name: letters, digits and _, 64 at most",
        )
        word = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9._+-]{1,64}", value)
        require(
            isinstance(value, int) or bool(word),
            f"{name}: a whole number, true, false or a word of at most 64 of A-Z a-z 0-9 . _ + - is needed, "
            f"not {_short(value)}",
        )
    return params


def _format_name(name: str) -> str:
    near = nearest(name[:64], FORMATS)
    near = near if near.startswith("did you mean") else "such as W4A8"
    require(name in FORMATS, f"{_short(name)} is not W<1 to 8>A<2 to 8, or 16>; {near}")
    return name


def _activations(name: str) -> str:
    require(name in ACTIVATIONS, f"{_short(name)} is not {' or '.join(ACTIVATIONS)}; {nearest(name[:64], ACTIVATIONS)}")
    return name


def _chosen(text: str) -> str:
    """A name with options, as `hwsim.options` reads it, or several joined by +."""
    fits = re.fullmatch(r"[a-z0-9][A-Za-z0-9._:=,+-]{0,255}", text)
    require(fits is not None, f"{_short(text)} is no name with options, such as hadamard or hadamard:points=32")
    return text


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for index, value in enumerate(values):
        require(value not in values[:index], f"entry {index} repeats entry {values.index(value)}; leave one out")
    return values


_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
_Name = Annotated[str, Field(pattern=f"^{NAME}$")]
_Chosen = Annotated[str, AfterValidator(_chosen)]
_Choices = Field(min_length=1, max_length=1000)
_Formats = Annotated[tuple[Annotated[str, AfterValidator(_format_name)], ...], AfterValidator(_distinct), _Choices]


class Engine(BaseModel):
    """An engine of the sweep: a GEMM unit of the catalogue and the parameters that differ from its defaults.

    `formats`: those of the study's that it runs, where it cannot run all.
    """

    model_config = _STRICT
    unit: Annotated[str, AfterValidator(_engine_name)]
    params: Annotated[dict[str, Any], AfterValidator(_settings)] = Field(alias="set", default={}, max_length=64)
    formats: _Formats | None = None


class Study(BaseModel):
    """A sweep file: every format with every transform, quantizer and kind of activations on every engine.

    Where activations are floats (A16, or of the engine's own format) they take part once.
    """

    model_config = _STRICT
    name: _Name
    network: _Name
    seed: int = Field(ge=0, lt=2**32)
    formats: _Formats
    transforms: Annotated[tuple[_Chosen, ...], AfterValidator(_distinct)] = _Choices
    quantizers: Annotated[tuple[_Chosen, ...], AfterValidator(_distinct)] = Field(
        min_length=1, max_length=1000, default=("rtn",)
    )
    activations: Annotated[
        tuple[Annotated[str, AfterValidator(_activations)], ...], AfterValidator(_distinct), _Choices
    ] = ACTIVATIONS[:1]
    engines: Annotated[tuple[Engine, ...], AfterValidator(_distinct)] = _Choices

    def runs(self) -> list[tuple[Engine, str, str]]:
        """Every engine in each of its formats with each kind of activations: the study's, or floats."""
        return [
            (engine, name, activations)
            for engine, name in itertools.product(self.engines, self.formats)
            if engine.formats is None or name in engine.formats
            for activations in self._kinds(engine, name)
        ]

    def _kinds(self, engine: Engine, name: str) -> tuple[str, ...]:
        possible = activation_kinds(engine.unit, FORMATS[name][1])
        return possible if possible == FLOAT_ACTIVATIONS else self.activations

    def count(self) -> int:
        """Of points, without making them."""
        return len(self.runs()) * len(self.transforms) * len(self.quantizers)

    def points(self) -> tuple[Point, ...]:
        """All points in a fixed order: transforms outermost, then engines, then formats.

        Points of the same hardware thus lie far apart, and parallel workers seldom synthesise the same engine at once.
        """
        return tuple(
            Point(
                network=self.network,
                seed=self.seed,
                weight_bits=FORMATS[name][0],
                act_bits=FORMATS[name][1],
                transform=transform,
                unit=engine.unit,
                params=tuple(sorted(engine.params.items())),
                quantizer=quantizer,
                activations=activations,
            )
            for transform, quantizer, (engine, name, activations) in itertools.product(
                self.transforms, self.quantizers, self.runs()
            )
        )


def activation_kinds(engine: str, act_bits: int) -> tuple[str, ...]:
    """Those that a point of this engine and width can have."""
    return FLOAT_ACTIVATIONS if act_bits == HALF_BITS or unit(engine).has_act_format else ACTIVATIONS


def how(point: Mapping[str, Any]) -> str:
    """Format, transform, quantizer and activations in a few words, without what goes without saying: round to nearest,
    asymmetric integers, floats."""
    plain = {"quantizer": "rtn", "activations": ACTIVATIONS[0]}
    words = [point[name] for name, usual in plain.items() if point[name] not in (usual, *FLOAT_ACTIVATIONS)]
    return " ".join([point["format"], point["transform"], *words])


def load_study(path: Path) -> Study:
    """The study that the sweep file at `path` describes.

    Raises InputError, one line `file:line: key: rule; nearest valid choice`, for a file that cannot be read, is not the
    admitted part of YAML (see `load_yaml`) or does not fit the schema.
    """
    document = load_yaml(path)
    require(isinstance(document.value, dict), f"{path}:1: a sweep file is a mapping with the keys {_names(Study)}")
    try:
        study = Study.model_validate(document.value)
    except ValidationError as error:
        raise InputError(_complaint(document, error)) from None
    for index, engine in enumerate(study.engines):
        for entry, name in enumerate(engine.formats or ()):
            place = document.place(("engines", index, "formats", entry))
            rule = f"{place}: {name} is not among the study's formats"
            require(name in study.formats, f"{rule}; {nearest(name, study.formats)}")
    count = study.count()
    require(count <= MAX_POINTS, f"{path}: {count} points; {MAX_POINTS} at most")
    return study


def _names(model: type[BaseModel]) -> str:
    return ", ".join(f.alias or name for name, f in model.model_fields.items())


def _needed_names(model: type[BaseModel]) -> str:
    return ", ".join(f.alias or name for name, f in model.model_fields.items() if f.is_required())


def _complaint(document: Document, error: ValidationError) -> str:
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
    return f"{document.place(location)}: {_rule(first)}{more}"


def _inside(inner: Key, outer: Key) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _rule(error: Mapping[str, Any]) -> str:
    """pydantic's error in this project's words."""
    where, value = error["loc"], error["input"]
    model = Engine if where[0] == "engines" and len(where) > 1 else Study
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key; {nearest(str(where[-1])[:64], _names(model).split(', '))}"
        case "missing":
            return f"key {str(where[-1])!r} is missing; needed are {_needed_names(model)}"
        case "string_pattern_mismatch":
            return f"{_short(value)} is not a name: a-z, 0-9, . _ -, starting with a letter or digit, 64 at most"
        case "value_error":
            return str(error["ctx"]["error"])
    return f"{_needed(error)}, not {_short(value)}"


def _needed(error: Mapping[str, Any]) -> str:
    kinds = {"int_type": "a whole number", "string_type": "text", "tuple_type": "a list", "model_type": "a mapping"}
    if (kind := kinds.get(error["type"])) is not None:
        return f"{kind} is needed"
    return error["msg"][:1].lower() + error["msg"][1:]


def _short(value: Any) -> str:
    return _cut(repr(value))


def _word(text: str) -> str:
    """The text in one line, without quotes."""
    return _cut(repr(text)[1:-1])


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# ---- YAML


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
    require(len(data) <= MAX_BYTES, f"{path}: more than {MAX_BYTES} bytes; a sweep file is small")
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
            self._require(isinstance(name, str), event, f"key {_short(event.value)} must be text; put it in quotes")
            self._require(name not in values, event, f"key {_short(name)} stands twice; leave one out")
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
            self._require(abs(float(text)) < float("inf"), event, f"{_short(text)} is too large for a number")
            return float(text)
        self._require(
            not re.fullmatch(r"[-+]?(\.inf|\.nan)", text.lower()),
            event,
            f"{text} is not a finite number; write a number",
        )
        ambiguous = re.fullmatch(r"[-+]?[0-9][0-9_:]*|[-+]?0[xob][0-9a-f_]+", text.lower())
        self._require(not ambiguous, event, f"{_short(text)} is not a plain decimal number; write one, or use quotes")
        return text
