"""A new sweep file that explains itself, with the real parameters of the engines that it names."""

from __future__ import annotations

import os
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from hwsim.document import NAME, short
from hwsim.evaluation import PARTS
from hwsim.files import write_atomic
from hwsim.metrics import FRONT
from hwsim.networks import NETWORKS
from hwsim.quantizers import QUANTIZERS
from hwsim.sweep.space import engine_name
from hwsim.transforms import TRANSFORMS
from models.catalog import UNITS, unit
from models.unit import InputError, Kind, Unit, fields_of, nearest, require

DEFAULT_NAME = "study"
FROM_FORMAT = ("act_bits", "weight_bits", "act_format")
"""parameters that come from the format of a point"""
FORMATS = ((8, 8), (4, 8))
"""bits of weights and activations that are proposed where an engine can run them, besides those of its own defaults"""
COLUMN, WIDTH = 42, 118
"""where comments begin, and lines end"""


def write_study(name: str | None, out: Path | None, *, engines: Sequence[str], networks: Sequence[str]) -> Path:
    """Write a new sweep file and return its path: `out`, or `sweeps/<name>.yaml`. The name is that of `out` by default.

    Without engines it gets the first one of the catalogue.

    InputError for a wrong name, an unknown engine or network, one that is given twice, and for a file that exists.
    """
    name = (out.stem if out else DEFAULT_NAME) if name is None else name
    require(
        re.fullmatch(NAME, name) is not None,
        f"{short(name)} is no name of a study: a-z, 0-9, . _ -, starting with a letter or digit, 64 at most",
    )
    for network in networks:
        require(network in NETWORKS, f"no network {short(network)}; {nearest(network[:64], NETWORKS)}")
    for what, given in (("engine", engines), ("network", networks)):
        require(len(set(given)) == len(given), f"--{what}: one is given twice; leave it out")
    path = out or Path("sweeps") / f"{name}.yaml"
    engines = engines or [next(entry.name for entry in UNITS.values() if entry.kind is Kind.GEMM)]
    text = study_text(name, [unit(engine_name(engine)) for engine in engines], networks)
    require(not os.path.lexists(path), f"{path}: is there already; take another name, or another file with --out")
    write_atomic(path, text)
    return path


def study_text(name: str, engines: Sequence[Unit], networks: Sequence[str]) -> str:
    """The file. Every line that begins with `# ` and a key holds a valid setting that only needs its sign removed."""
    formats = {engine.name: formats_of(engine) for engine in engines}
    every = list(dict.fromkeys(each for own in formats.values() for each in own))
    lines = [*_what(name, networks, every), "engines:"]
    for engine in engines:
        lines += _engine(engine, formats[engine.name], every)
    return "\n".join([*lines, *_how(), ""])


def formats_of(engine: Unit) -> list[str]:
    """Formats that the engine can run: that of its defaults, and `FORMATS` as far as its parameters admit them."""
    default = engine.params_type()
    widths = dict.fromkeys([(default.weight_bits, default.act_bits), *FORMATS])
    return [f"W{weights}A{acts}" for weights, acts in widths if _takes(engine, weights, acts)]


def _takes(engine: Unit, weight_bits: int, act_bits: int) -> bool:
    try:
        engine.params(weight_bits=weight_bits, act_bits=act_bits)
    except InputError:
        return False
    return True


def _what(name: str, networks: Sequence[str], formats: Sequence[str]) -> Iterator[str]:
    yield "# A study: every format with every transform, quantizer and seed on every engine. A line that begins with"
    yield "# the sign and a key is a setting that is not in force; remove the sign to use it."
    yield _line(f"name: {name}", f"results go to results/{name}/")
    yield _line('# title: "any text"', "above the report")
    yield _line(f"network: {_one_or_list(networks)}", f"one, or a list: {', '.join(NETWORKS)}")
    yield _line("seed: 1", "of training, transforms and quantizers; one, or a list")
    yield _line(f"formats: {_list(formats)}", "W<bits of weights>A<bits of activations>; A16 is FP16")
    chains = "with options such as hadamard:points=32, several joined by +"
    yield _line("transforms: [none, hadamard]", f"{', '.join(TRANSFORMS)}; {chains}")
    yield _line("quantizers: [rtn]", f"{', '.join(QUANTIZERS)}; with options in the same way")
    yield _line("# activations: [asymmetric]", "asymmetric: a zero point a token; symmetric: none")
    yield _line(f"# evaluate: {_list(PARTS)}", "at least one; synthesis is what takes longest")


def _engine(engine: Unit, formats: Sequence[str], every: Sequence[str]) -> Iterator[str]:
    """One entry of the list of engines: what it is, its sizes, and as comments its other parameters."""
    sizes, others = _parameters(engine)
    limited = "" if set(formats) == set(every) else "those of the study's that it can run"
    first = next(iter(sizes))
    yield _line(f"  - unit: {engine.name}", engine.summary)
    yield _line('    # name: "any text"', "in tables, instead of the unit and its parameters")
    yield _line(
        f"    {'' if limited else '# '}formats: {_list(formats)}", limited or "those of the study's that it runs"
    )
    yield _line(f'    # where: ["{first} <= 64"]', "only combinations of its parameters that satisfy these")
    yield _line("    set:", "a value, a list [8, 16], or a range {from: 4, to: 16, times: 2}")
    for name, value in sizes.items():
        yield f"      {name}: {_word(value)}"
    for name, value in others.items():
        yield _line(f"      # {name}: {_word(value)}", _choices(engine, name))


def _parameters(engine: Unit) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Sizes, which stand first in every engine, and the others that a study can set, with their defaults."""
    given = {name: value for name, value in fields_of(engine.params_type()) if name not in FROM_FORMAT}
    sizes = {name: given[name] for name in list(given)[:2] if type(given[name]) is int and not name.endswith("_bits")}
    return sizes, {name: value for name, value in given.items() if name not in sizes}


def _choices(engine: Unit, name: str) -> str:
    """The values that a parameter can have, where they are few."""
    hint = typing.get_type_hints(engine.params_type)[name]
    kinds = typing.get_args(hint) or (hint,)
    kind = kinds[0]
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return ", ".join(kind)
    return "true, false" * (kind is bool) or "or a whole number" * (type(None) in kinds)


def _how() -> Iterator[str]:
    objectives = _list(FRONT)
    yield _line("# where: [\"transform == 'none' or weight_bits <= 4\"]", "over whole points")
    yield "# exhaustive evaluates every point; random, nsga2 and tpe evaluate as many as `points` says"
    yield f"# search: {{method: nsga2, points: 200, seed: 1, objectives: {objectives}}}"
    yield _line("# limits: {time_s: 600, memory_mib: 4096}", "of one evaluation of one point")
    yield "# Besides, in an engine: `each: [{a: 1, b: 2}, {a: 3, b: 4}]`, settings that go together; and in its `set`:"
    yield '# `a: {values: [1, 2], when: "b == 2"}`, only there. `extends: NAME` at the top takes the keys of'
    yield "# another sweep file as defaults; `more_engines` then adds to its engines."


def _line(setting: str, comment: str) -> str:
    """The setting with its comment beside it, over as many lines as that takes."""
    first, *more = textwrap.wrap(comment, WIDTH - COLUMN - 2, break_on_hyphens=False) or [""]
    beside = f"{setting:<{COLUMN - 1}} # {first}" if first else setting
    return "\n".join([beside, *(f"{'':{COLUMN - 1}} #   {rest}" for rest in more)])


def _one_or_list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else _list(words)


def _list(words: typing.Iterable[str]) -> str:
    return f"[{', '.join(words)}]"


def _word(value: Any) -> str:
    """A parameter's value as YAML."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
