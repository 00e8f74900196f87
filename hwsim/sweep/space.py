"""The sweep file: a strict schema over a small, safe part of YAML 1.2, and the design points that it spans."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from hwsim.document import NAME, STRICT, load_yaml, short, validated
from models.catalog import UNITS, unit
from models.floats import HALF_BITS
from models.unit import Kind, nearest, require

MAX_POINTS = 100_000
FORMATS = {f"W{w}A{a}": (w, a) for w in range(8, 0, -1) for a in (*range(8, 1, -1), 16)} | {"W16A16": (16, 16)}
"""name -> bits of weights and activations; 16 is FP16"""

ACTIVATIONS = ("asymmetric", "symmetric")
"""integer activations: with a zero point a token, or without one"""
FLOAT_ACTIVATIONS = ("float",)
"""the one kind of FP16, and of an engine's own format"""

Value = bool | int | str


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


def engine_name(name: str) -> str:
    require(name in UNITS, f"no unit {short(name)}; {nearest(name[:64], UNITS)}")
    require(unit(name).kind is Kind.GEMM, f"{name!r} is no GEMM engine; {nearest(name, _engines())}")
    return name


def settings(params: dict[str, Any]) -> dict[str, Value]:
    for name, value in params.items():
        require(
            re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name) is not None,
            f"{short(name)} is no parameter name: letters, digits and _, 64 at most",
        )
        word = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9._+-]{1,64}", value)
        require(
            isinstance(value, int) or bool(word),
            f"{name}: a whole number, true, false or a word of at most 64 of A-Z a-z 0-9 . _ + - is needed, "
            f"not {short(value)}",
        )
    return params


def _format_name(name: str) -> str:
    near = nearest(name[:64], FORMATS)
    near = near if near.startswith("did you mean") else "such as W4A8"
    require(name in FORMATS, f"{short(name)} is not W<1 to 8>A<2 to 8, or 16>; {near}")
    return name


def _activations(name: str) -> str:
    require(name in ACTIVATIONS, f"{short(name)} is not {' or '.join(ACTIVATIONS)}; {nearest(name[:64], ACTIVATIONS)}")
    return name


def _chosen(text: str) -> str:
    """A name with options, as `hwsim.options` reads it, or several joined by +."""
    fits = re.fullmatch(r"[a-z0-9][A-Za-z0-9._:=,+-]{0,255}", text)
    require(fits is not None, f"{short(text)} is no name with options, such as hadamard or hadamard:points=32")
    return text


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for index, value in enumerate(values):
        require(value not in values[:index], f"entry {index} repeats entry {values.index(value)}; leave one out")
    return values


_Name = Annotated[str, Field(pattern=f"^{NAME}$")]
_Chosen = Annotated[str, AfterValidator(_chosen)]
_Choices = Field(min_length=1, max_length=1000)
_Formats = Annotated[tuple[Annotated[str, AfterValidator(_format_name)], ...], AfterValidator(_distinct), _Choices]


class Engine(BaseModel):
    """An engine of the sweep: a GEMM unit of the catalogue and the parameters that differ from its defaults.

    `formats`: those of the study's that it runs, where it cannot run all.
    """

    model_config = STRICT
    unit: Annotated[str, AfterValidator(engine_name)]
    params: Annotated[dict[str, Any], AfterValidator(settings)] = Field(alias="set", default={}, max_length=64)
    formats: _Formats | None = None


class Study(BaseModel):
    """A sweep file: every format with every transform, quantizer and kind of activations on every engine.

    Where activations are floats (A16, or of the engine's own format) they take part once.
    """

    model_config = STRICT
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
    study = validated(document, Study, "a sweep file")
    for index, engine in enumerate(study.engines):
        for entry, name in enumerate(engine.formats or ()):
            place = document.place(("engines", index, "formats", entry))
            rule = f"{place}: {name} is not among the study's formats"
            require(name in study.formats, f"{rule}; {nearest(name, study.formats)}")
    count = study.count()
    require(count <= MAX_POINTS, f"{path}: {count} points; {MAX_POINTS} at most")
    return study
