"""The sweep file: a strict schema over a small, safe part of YAML 1.2, and the design points that it spans."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from hwsim.document import MAX_DEPTH, NAME, STRICT, Document, Key, short, validated
from hwsim.evaluation import PARTS
from hwsim.metrics import Direction, metric
from hwsim.sweep.grid import (
    Choose,
    Constraint,
    Engine,
    Params,
    Place,
    constraint,
    parameters,
    setting_name,
    setting_value,
    settings_of,
    together_of,
)
from hwsim.sweep.inherit import Layered, load_layered, single
from hwsim.sweep.point import ACTIVATIONS, FLOAT_ACTIVATIONS, Point, Value, activation_kinds
from models.catalog import UNITS
from models.unit import Kind, nearest, require

MAX_POINTS = 200_000
"""of an exhaustive study"""
MAX_TRIED = 2_000_000
"""combinations that constraints of an exhaustive study may be asked about"""

FORMATS = {f"W{w}A{a}": (w, a) for w in range(8, 0, -1) for a in (*range(8, 1, -1), 16)} | {"W16A16": (16, 16)}
"""name -> bits of weights and activations; 16 is FP16"""

METHODS = {
    "exhaustive": (),
    "random": ("points",),
    "nsga2": ("points", "objectives"),
    "tpe": ("points", "objectives"),
}
"""how points are chosen -> what must be said beside"""

OUTER = ("network", "seed", "transform", "quantizer")
"""what can be named in constraints and is not known of an engine's run"""
POINT_NAMES = (*OUTER, "format", "weight_bits", "act_bits", "activations", "unit")
"""what the study's constraints can name besides parameters of engines"""

_WHOLE = "a sweep file"
_SAMPLE = "sample them, such as `search: {method: random, points: 1000}`"


# ---- values


def engine_name(name: str) -> str:
    """The name of a GEMM unit; InputError for another."""
    engines = [entry for entry, found in UNITS.items() if found.kind is Kind.GEMM]
    require(name in UNITS, f"no unit {short(name)}; {nearest(name[:64], UNITS)}")
    require(name in engines, f"{name!r} is no GEMM engine; {nearest(name, engines)}")
    return name


def settings(params: dict[str, Any]) -> dict[str, Value]:
    """Parameters of some unit, one value each; InputError for what can be none of any unit."""
    for name, value in params.items():
        require(not (wrong := setting_name(name)), wrong)
        require(not (wrong := setting_value(value)), f"{name}: {wrong}")
    return params


def _format_name(name: str) -> str:
    near = nearest(name[:64], FORMATS)
    near = near if near.startswith("did you mean") else "such as W4A8"
    require(name in FORMATS, f"{short(name)} is not W<1 to 8>A<2 to 8, or 16>; {near}")
    return name


def _word_of(choices: Sequence[str]) -> Callable[[str], str]:
    def word(name: str) -> str:
        known = f"{', '.join(choices[:-1])} or {choices[-1]}"
        require(name in choices, f"{short(name)} is not {known}; {nearest(name[:64], choices)}")
        return name

    return word


def _chosen(text: str) -> str:
    """A name with options, as `hwsim.options` reads it, or several joined by +."""
    fits = re.fullmatch(r"[a-z0-9][A-Za-z0-9._:=,+-]{0,255}", text)
    require(fits is not None, f"{short(text)} is no name with options, such as hadamard or hadamard:points=32")
    return text


def _objective(name: str) -> str:
    directed = metric(name[:64]).direction is not Direction.NONE
    require(directed, f"{name} has no direction; take a metric that can be better or worse, such as accuracy")
    return name


def _distinct(values: tuple[Any, ...], most: int = 1000) -> tuple[Any, ...]:
    require(1 <= len(values) <= most, f"{len(values)} entries; 1 to {most} are needed")
    first: dict[str, int] = {}
    for index, value in enumerate(map(repr, values)):
        require(value not in first, f"entry {index} repeats entry {first.get(value)}; leave one out")
        first[value] = index
    return values


def _listed(value: Any) -> Any:
    """One value as a list of one."""
    return value if isinstance(value, tuple) else (value,)


_Name = Annotated[str, Field(pattern=f"^{NAME}$")]
_Seed = Annotated[int, Field(ge=0, lt=2**32)]
_Chosen = Annotated[str, AfterValidator(_chosen)]
_Distinct = AfterValidator(_distinct)
_OneOrMore = BeforeValidator(_listed)
_Formats = Annotated[tuple[Annotated[str, AfterValidator(_format_name)], ...], _Distinct]
_Texts = Annotated[tuple[str, ...], _OneOrMore, Field(max_length=100)]


# ---- schema


class _EngineEntry(BaseModel):
    model_config = STRICT
    unit: Annotated[str, AfterValidator(engine_name)]
    name: str | None = Field(default=None, max_length=100)
    params: dict[str, Any] = Field(alias="set", default={}, max_length=64)
    each: Annotated[tuple[dict[str, Any], ...], _Distinct] | None = None
    formats: _Formats | None = None
    where: _Texts = ()


class _SearchEntry(BaseModel):
    model_config = STRICT
    method: Annotated[str, AfterValidator(_word_of(tuple(METHODS)))] = "exhaustive"
    points: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: _Seed | None = None
    objectives: (
        Annotated[tuple[Annotated[str, AfterValidator(_objective)], ...], AfterValidator(partial(_distinct, most=4))]
        | None
    ) = None


class StudyLimits(BaseModel):
    """Of the evaluation of one task."""

    model_config = STRICT
    time_s: float = Field(default=3600.0, gt=0, le=1e7)
    """wall clock"""
    memory_mib: int = Field(default=4096, ge=64, le=2**24)


class _StudyFile(BaseModel):
    model_config = STRICT
    name: _Name
    title: str = Field(default="", max_length=200)
    extends: None = None  # `load_layered` puts the files together
    network: Annotated[tuple[_Name, ...], _OneOrMore, _Distinct]
    seed: Annotated[tuple[_Seed, ...], _OneOrMore, _Distinct]
    formats: _Formats
    transforms: Annotated[tuple[_Chosen, ...], _Distinct]
    quantizers: Annotated[tuple[_Chosen, ...], _Distinct] = ("rtn",)
    activations: Annotated[tuple[Annotated[str, AfterValidator(_word_of(ACTIVATIONS))], ...], _Distinct] = ACTIVATIONS[
        :1
    ]
    evaluate: Annotated[tuple[Annotated[str, AfterValidator(_word_of(PARTS))], ...], _Distinct] = PARTS
    engines: Annotated[tuple[_EngineEntry, ...], _Distinct]
    more_engines: None = None
    where: _Texts = ()
    search: _SearchEntry = _SearchEntry()
    limits: StudyLimits = StudyLimits()


# ---- the study


@dataclass(frozen=True, kw_only=True)
class Search:
    """How points are chosen."""

    method: str = "exhaustive"
    """one of `METHODS`"""
    points: int = 0
    """how many, where not all"""
    seed: int = 1
    objectives: tuple[str, ...] = ()
    """names of metrics"""


@dataclass(frozen=True)
class Run:
    """An engine as configured, in one format with one kind of activations."""

    engine: Engine
    params: tuple[tuple[str, Value], ...]
    """sorted by name"""
    format: str
    activations: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """A sweep file: every format with every transform, quantizer and kind of activations on every configuration of
    every engine, as far as the constraints hold.

    Where activations are floats (A16, or of the engine's own format) they take part once.

    An engine's constraints name its unit's parameters: what is set, the widths of the format (`act_bits` of FP16 is 16
    where it is not set), else the unit's default, the word `none` where there is no value. The study's constraints
    name `POINT_NAMES` and parameters; one with a parameter that an engine's unit does not have does not concern that
    engine. Constraints are asked in the order of the file, the engine's first, and a point that one refuses is shown to
    no later one.
    """

    name: str
    title: str
    """free text"""
    networks: tuple[str, ...]
    seeds: tuple[int, ...]
    formats: tuple[str, ...]
    transforms: tuple[str, ...]
    quantizers: tuple[str, ...]
    activations: tuple[str, ...]
    """of integers"""
    evaluate: tuple[str, ...]
    """some of `hwsim.evaluation.PARTS`"""
    engines: tuple[Engine, ...]
    """those that run some of the formats"""
    where: tuple[Constraint, ...]
    search: Search
    limits: StudyLimits
    place: str
    """where the study stands, for messages"""
    content: Mapping[str, Any] = field(repr=False)
    """the file's, with what it extends: plain data"""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as JSON has it, that `from_dict` reads back: the resolved sweep file, defaults included."""
        return dict(self.content)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Study:
        """InputError where `as_dict` cannot have given that."""
        value = _tuples(data, 0)
        lines = dict.fromkeys(_keys(value, ()), 1)
        document = single(Document(path=Path("stored study"), value=value, lines=lines))
        return _study(validated(document, _StudyFile, _WHOLE), document.place)

    def count(self) -> int:
        """Of points. InputError as `points`."""
        if not any(last for _, last in self._constraints.values()):
            return len(self._outer) * len(self._runs)
        return sum(1 for _ in self._admitted())

    def points(self) -> Iterator[Point]:
        """All points, each once, in a fixed order: networks, seeds and transforms outermost, then quantizers, engines,
        formats, the engine's settings.

        Points of the same hardware thus lie far apart, and parallel workers seldom synthesise the same engine at once.
        InputError for more than `MAX_POINTS` configurations of engines or more than `MAX_TRIED` combinations, and for
        a constraint that cannot be evaluated.
        """
        for (network, seed, transform, quantizer), run in self._admitted():
            yield _point(run, network=network, seed=seed, transform=transform, quantizer=quantizer)

    def dimensions(self) -> dict[str, tuple[Value, ...]]:
        """Name -> choices of all that `suggest` can ask: the engine's index, its settings by `<index>.<name>`, and what
        is named in the sweep file; only where there is a choice."""
        return {name: choices for name, choices in self._choices.items() if len(choices) > 1}

    def suggest(self, choose: Choose) -> Point | None:
        """The point that `choose(dimension, choices)` makes, asked once for each dimension that the point has; None
        where a constraint refuses it.

        A dimension has the same choices whenever it is asked for, those of `dimensions`. InputError for a constraint
        that cannot be evaluated.
        """

        def pick(name: str, choices: Sequence[Value]) -> Value:
            return choices[0] if len(choices) == 1 else choose(name, choices)

        def ask(name: str) -> Any:
            return pick(name, self._choices[name])

        engine = self._by_index[ask("engine")]
        name = ask(self._format_dimension(engine))
        params = engine.suggest(pick, FORMATS[name])
        if params is None:
            return None
        kinds = self._kinds(engine, name)
        run = _run(engine, params, name, ask("activations") if kinds == self.activations else kinds[0])
        outer = tuple(ask(dimension) for dimension in OUTER)
        first, last = self._constraints[engine.index]
        if not _hold((*first, *last), run, outer):
            return None
        return _point(run, **dict(zip(OUTER, outer, strict=True)))

    @cached_property
    def _by_index(self) -> dict[int, Engine]:
        return {engine.index: engine for engine in self.engines}

    @cached_property
    def _choices(self) -> dict[str, tuple[Value, ...]]:
        """Of every dimension."""
        of_engines = [
            {self._format_dimension(engine): engine.formats, **engine.dimensions()} for engine in self.engines
        ]
        outer = zip(OUTER, (self.networks, self.seeds, self.transforms, self.quantizers), strict=True)
        choices: dict[str, tuple[Value, ...]] = {"engine": tuple(self._by_index)}
        for dimensions in of_engines:
            choices |= dimensions
        return choices | {"activations": self.activations, **dict(outer)}

    def _format_dimension(self, engine: Engine) -> str:
        """Shared by the engines that run all formats."""
        return "format" if engine.formats == self.formats else f"{engine.index}.format"

    def _kinds(self, engine: Engine, name: str) -> tuple[str, ...]:
        possible = activation_kinds(engine.unit, FORMATS[name][1])
        return possible if possible == FLOAT_ACTIVATIONS else self.activations

    def combinations(self) -> int:
        """Of everything with everything, before any constraint, as an upper bound."""
        runs = sum(
            engine.combinations() * len(self._kinds(engine, name)) for engine in self.engines for name in engine.formats
        )
        return runs * len(self.networks) * len(self.seeds) * len(self.transforms) * len(self.quantizers)

    @cached_property
    def _outer(self) -> list[tuple[str, int, str, str]]:
        return list(itertools.product(self.networks, self.seeds, self.transforms, self.quantizers))

    @cached_property
    def _constraints(self) -> dict[int, tuple[tuple[Constraint, ...], tuple[Constraint, ...]]]:
        """Engine's index -> the study's constraints that concern it: the first ones, which its runs alone can be asked
        about, and all from the first one on that names more."""
        found = {}
        for engine in self.engines:
            names = {*POINT_NAMES, *parameters(engine.unit)}
            mine = tuple(c for c in self.where if c.expression.names <= names)
            first = tuple(itertools.takewhile(lambda c: c.expression.names.isdisjoint(OUTER), mine))
            found[engine.index] = (first, mine[len(first) :])
        return found

    @cached_property
    def _runs(self) -> tuple[Run, ...]:
        """Every configuration once, in the order of the file."""
        rule = f"{self.place}: more than {MAX_TRIED} combinations; {_SAMPLE}"
        require(self.combinations() <= MAX_TRIED, rule)
        runs: dict[Any, Run] = {}
        for run in self._all_runs():
            identity = (run.engine.unit, run.params, run.format, run.activations)
            if identity not in runs and _hold(self._constraints[run.engine.index][0], run, ()):
                runs[identity] = run
                require(len(runs) <= MAX_POINTS, f"{self.place}: more than {MAX_POINTS} points; {_SAMPLE}")
        return tuple(runs.values())

    def _all_runs(self) -> Iterator[Run]:
        for engine in self.engines:
            for name in engine.formats:
                kinds = self._kinds(engine, name)
                for params in engine.configurations(FORMATS[name]):
                    for activations in kinds:
                        yield _run(engine, params, name, activations)

    def _admitted(self) -> Iterator[tuple[tuple[str, int, str, str], Run]]:
        for outer, run in itertools.product(self._outer, self._runs):
            if _hold(self._constraints[run.engine.index][1], run, outer):
                yield outer, run


def _hold(constraints: Sequence[Constraint], run: Run, outer: Sequence[Value]) -> bool:
    """Whether the run, and the values of `OUTER` where they are given, meet them all."""
    if not constraints:
        return True
    values = _values(run) | dict(zip(OUTER, outer, strict=False))
    return all(constraint.holds(values) for constraint in constraints)


def _run(engine: Engine, params: Params, name: str, activations: str) -> Run:
    return Run(engine, tuple(sorted(params.items())), name, activations)


def _values(run: Run) -> Params:
    """What constraints can name of a run; the format's widths in place of the engine's own."""
    bits = FORMATS[run.format]
    known = run.engine.known(bits, dict(run.params))
    known |= {"weight_bits": bits[0], "act_bits": bits[1]}
    return known | {"format": run.format, "activations": run.activations, "unit": run.engine.unit}


def _point(run: Run, *, network: str, seed: int, transform: str, quantizer: str) -> Point:
    weight_bits, act_bits = FORMATS[run.format]
    return Point(
        network=network,
        seed=seed,
        weight_bits=weight_bits,
        act_bits=act_bits,
        transform=transform,
        unit=run.engine.unit,
        params=run.params,
        quantizer=quantizer,
        activations=run.activations,
        name=run.engine.name,
    )


# ---- reading


def load_study(path: Path) -> Study:
    """The study that the sweep file at `path` describes, with what it extends.

    Raises InputError, one line `file:line: key: rule; nearest valid choice`, for a file that cannot be read, is not the
    admitted part of YAML (see `load_yaml`) or does not fit the schema, for files that extend each other wrongly (see
    `load_layered`), constraints that cannot be evaluated, and an exhaustive study of no point or of more than
    `MAX_POINTS`.
    """
    document = load_layered(path)
    file = validated(document, _StudyFile, _WHOLE)
    _require_common_formats(file, document)
    study = _study(file, document.place)
    if study.search.method == "exhaustive":
        _require_points(study)
    return study


def _require_common_formats(file: _StudyFile, document: Layered) -> None:
    """An engine's formats are the study's; those of an inherited engine need not be, then it does not run them."""
    for index, engine in enumerate(file.engines):
        for entry, name in enumerate(engine.formats or ()):
            key = ("engines", index, "formats", entry)
            rule = f"{document.place(key)}: {name} is not among the study's formats; {nearest(name, file.formats)}"
            inherited = document.source(key) != document.source(("formats",))
            require(inherited or name in file.formats, rule)


def _require_points(study: Study) -> None:
    count = study.count()
    refused = f"{study.place}: no point: the constraints refuse all combinations, {study.combinations()}; widen `where`"
    require(count > 0, refused)
    require(count <= MAX_POINTS, f"{study.place}: {count} points; {MAX_POINTS} at most, so {_SAMPLE}")


def _study(file: _StudyFile, place: Place) -> Study:
    engines = tuple(
        _engine(index, entry, file.formats, ("engines", index), place) for index, entry in enumerate(file.engines)
    )
    running = tuple(engine for engine in engines if engine.formats)
    require(bool(running), f"{place(('formats',))}: no engine runs any of them")
    return Study(
        name=file.name,
        title=file.title,
        networks=file.network,
        seeds=file.seed,
        formats=file.formats,
        transforms=file.transforms,
        quantizers=file.quantizers,
        activations=file.activations,
        evaluate=file.evaluate,
        engines=running,
        where=_where(file.where, ("where",), place, _names(engines), "name of a point or parameter of an engine"),
        search=_search(file.search, place),
        limits=file.limits,
        place=place(()),
        content=file.model_dump(mode="json", by_alias=True, exclude_none=True),
    )


def _names(engines: Sequence[Engine]) -> list[str]:
    units = dict.fromkeys(engine.unit for engine in engines)
    return [*POINT_NAMES, *dict.fromkeys(name for entry in units for name in parameters(entry))]


def _engine(index: int, entry: _EngineEntry, formats: tuple[str, ...], key: Key, place: Place) -> Engine:
    own = parameters(entry.unit)
    return Engine(
        index=index,
        unit=entry.unit,
        name=entry.name or "",
        formats=tuple(name for name in formats if entry.formats is None or name in entry.formats),
        together=together_of(entry.unit, entry.each or (), entry.params, (*key, "each"), place),
        settings=settings_of(entry.unit, entry.params, (*key, "set"), place),
        where=_where(entry.where, (*key, "where"), place, list(own), f"parameter of {entry.unit}"),
    )


def _where(texts: Sequence[str], key: Key, place: Place, names: Sequence[str], whose: str) -> tuple[Constraint, ...]:
    return tuple(constraint(text, place((*key, index)), names, whose) for index, text in enumerate(texts))


def _search(entry: _SearchEntry, place: Place) -> Search:
    given = entry.model_dump(exclude_none=True)
    needed = METHODS[entry.method]
    for name in needed:
        rule = f"{place(('search',))}: key {name!r} is missing; {entry.method} needs {' and '.join(needed)}"
        require(name in given, rule)
    admitted = ("method", *needed, "seed") if needed else ("method",)
    for name in given:
        require(name in admitted, f"{place(('search', name))}: {entry.method} takes no {name}; leave it out")
    return Search(**given)


def _tuples(value: Any, depth: int) -> Any:
    """Lists as tuples: the plain data of `hwsim.document`."""
    require(depth <= MAX_DEPTH, f"stored study: nested deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping):
        return {name: _tuples(part, depth + 1) for name, part in value.items()}
    return tuple(_tuples(part, depth + 1) for part in value) if isinstance(value, list | tuple) else value


def _keys(value: Any, key: Key) -> Iterator[Key]:
    yield key
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
    for name, part in parts:
        yield from _keys(part, (*key, name))
