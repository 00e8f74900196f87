"""The configurations of one engine of a study: settings, what they can be, and when they exist."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from hwsim.document import Key, short
from hwsim.sweep.expressions import Expression
from hwsim.sweep.point import Value
from models.catalog import unit
from models.floats import HALF_BITS, ActFormat
from models.unit import InputError, nearest, require

MAX_VALUES = 1000
"""of one setting"""
NONE = "none"
"""the word for a parameter without a value"""
FROM_FORMAT = ("weight_bits", "act_format")
"""parameters that the point's format decides"""

Place = Callable[[Key], str]
"""`file:line: key` of a value of the sweep file, for messages"""
Choose = Callable[[str, Sequence[Value]], Value]
"""takes one of the choices of the named dimension"""
Params = dict[str, Value]


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """An expression that must hold, and where it stands."""

    expression: Expression
    place: str

    def holds(self, values: Mapping[str, Value]) -> bool:
        """InputError, with the place and the values concerned, where the expression has no truth value for them."""
        try:
            return self.expression.holds(values)
        except InputError as error:
            raise InputError(f"{self.place}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A parameter and the values that it takes in turn."""

    name: str
    values: tuple[Value, ...]
    when: Constraint | None = None
    """where it exists; elsewhere the unit's default holds"""

    def choices(self, known: Mapping[str, Value]) -> tuple[Value, ...]:
        """Empty where the parameter does not exist, by those that are known."""
        return self.values if self.when is None or self.when.holds(known) else ()


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine of the study: a unit with a grid of settings.

    Its dimensions are called `<index>.each` and `<index>.<parameter>`.
    """

    index: int
    """among the study's engines"""
    unit: str
    name: str
    """what the sweep file calls it, any text, "" where it does not"""
    formats: tuple[str, ...]
    """those of the study's that it runs"""
    together: tuple[Mapping[str, Value], ...]
    """settings taken together, one of these at a time"""
    settings: tuple[Setting, ...]
    """each with each, in the file's order"""
    where: tuple[Constraint, ...]

    def known(self, bits: tuple[int, int], params: Mapping[str, Value]) -> Params:
        """The value of every parameter of the unit: set, by the format of these widths, or by default.

        `none` for a parameter without a value.
        """
        return {**_decided(self.unit, *bits), **params}

    def combinations(self) -> int:
        """How many there are before any condition."""
        count = len(self.together)
        for setting in self.settings:
            count *= len(setting.values)
        return count

    def configurations(self, bits: tuple[int, int]) -> Iterator[Params]:
        """Every combination of settings that the constraints admit, in the file's order, the last setting fastest."""
        for params in self._each(bits):
            if self._admits(bits, params):
                yield params

    def _each(self, bits: tuple[int, int]) -> Iterator[Params]:
        for first in self.together:
            yield from self._further(bits, dict(first), 0)

    def _further(self, bits: tuple[int, int], params: Params, depth: int) -> Iterator[Params]:
        if depth == len(self.settings):
            yield params
            return
        setting = self.settings[depth]
        choices = self._choices(setting, bits, params)
        for value in choices:
            yield from self._further(bits, {**params, setting.name: value}, depth + 1)
        if not choices:
            yield from self._further(bits, params, depth + 1)

    def _choices(self, setting: Setting, bits: tuple[int, int], params: Params) -> tuple[Value, ...]:
        return setting.values if setting.when is None else setting.choices(self.known(bits, params))

    def _admits(self, bits: tuple[int, int], params: Params) -> bool:
        if not self.where:
            return True
        known = self.known(bits, params)
        return all(constraint.holds(known) for constraint in self.where)

    def dimensions(self) -> dict[str, tuple[Value, ...]]:
        """Name -> choices of all that `suggest` may ask."""
        settings = {f"{self.index}.{setting.name}": setting.values for setting in self.settings}
        return {f"{self.index}.each": tuple(range(len(self.together))), **settings}

    def suggest(self, choose: Choose, bits: tuple[int, int]) -> Params | None:
        """The combination of settings that is chosen one by one; None where a constraint refuses it."""
        dimensions = self.dimensions()
        each = f"{self.index}.each"
        params = dict(self.together[int(choose(each, dimensions[each]))])
        for setting in self.settings:
            if self._choices(setting, bits, params):
                name = f"{self.index}.{setting.name}"
                params[setting.name] = choose(name, dimensions[name])
        return params if self._admits(bits, params) else None


# ---- the unit's parameters


@cache
def parameters(name: str) -> Mapping[str, Value]:
    """The unit's parameters and their defaults; `none` where there is no value."""
    fields = dataclasses.fields(unit(name).params_type)
    return {field.name: _plain(field.default) for field in fields}


def _plain(default: Any) -> Value:
    if default is None:
        return NONE
    return default.value if isinstance(default, StrEnum) else default


@cache
def _decided(name: str, weight_bits: int, act_bits: int) -> Mapping[str, Value]:
    """The defaults, and what the format decides."""
    widths: Params = {"weight_bits": weight_bits, "act_bits": act_bits}
    widths["act_format"] = ActFormat.FP16.value if act_bits == HALF_BITS else ActFormat.INT.value
    defaults = parameters(name)
    return {**defaults, **{key: value for key, value in widths.items() if key in defaults}}


# ---- reading


def setting_value(value: Any) -> str:
    """What is wrong with a value of any parameter; empty where nothing is."""
    word = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9._+-]{1,64}", value)
    if isinstance(value, int) or word:
        return ""
    return f"a whole number, true, false or a word of at most 64 of A-Z a-z 0-9 . _ + - is needed, not {short(value)}"


def setting_name(name: str) -> str:
    """What is wrong with the name of any parameter; empty where nothing is."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
        return ""
    return f"{short(name)} is no parameter name: letters, digits and _, 64 at most"


def constraint(text: str, place: str, names: Sequence[str], whose: str) -> Constraint:
    """The constraint; InputError with the place for a text that is none or that has other names than these."""
    try:
        expression = Expression.parse(text)
        for name in sorted(expression.names - set(names)):
            require(False, f"{short(name)} is no {whose}; {nearest(name[:64], names)}")
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    return Constraint(expression=expression, place=place)


def settings_of(engine: str, raw: Mapping[str, Any], key: Key, place: Place) -> tuple[Setting, ...]:
    """The settings of a grid: parameter -> value, list of values, range, or values with a condition."""
    names = list(raw)
    return tuple(
        _setting(engine, name, raw[name], (*key, name), place, later=names[index:]) for index, name in enumerate(names)
    )


def together_of(
    engine: str, raw: Sequence[Mapping[str, Any]], taken: Mapping[str, Any], key: Key, place: Place
) -> tuple[Params, ...]:
    """Settings that go together: mappings of parameters that are not `taken`, each with one value."""
    for index, entry in enumerate(raw):
        for name, value in entry.items():
            here = (*key, index, name)
            _require_parameter(engine, name, here, place)
            require(name not in taken, f"{place(here)}: {name} stands in `set` too; leave one out")
            _require_fitting(engine, name, value, here, place)
    return tuple(dict(entry) for entry in raw) or ({},)


def _setting(engine: str, name: str, raw: Any, key: Key, place: Place, *, later: Sequence[str]) -> Setting:
    _require_parameter(engine, name, key, place)
    if not isinstance(raw, dict) or not {"values", "when"} & raw.keys():
        return Setting(name=name, values=_values(engine, name, raw, key, place))
    _require_keys(raw, ("values", "when"), ("values", "when"), key, place)
    values = _values(engine, name, raw["values"], (*key, "values"), place)
    return Setting(name=name, values=values, when=_when(engine, raw["when"], (*key, "when"), place, later))


def _when(engine: str, text: Any, key: Key, place: Place, later: Sequence[str]) -> Constraint:
    require(isinstance(text, str), f"{place(key)}: an expression is needed, not {short(text)}")
    found = constraint(text, place(key), list(parameters(engine)), f"parameter of {engine}")
    for name in later:
        rule = f"{place(key)}: {name} does not stand before this parameter"
        require(name not in found.expression.names, f"{rule}; a condition names earlier ones")
    return found


def _values(engine: str, name: str, raw: Any, key: Key, place: Place) -> tuple[Value, ...]:
    values = _range(raw, key, place) if isinstance(raw, dict) else raw if isinstance(raw, tuple) else (raw,)
    require(1 <= len(values) <= MAX_VALUES, f"{place(key)}: {len(values)} values; 1 to {MAX_VALUES} are needed")
    for index, value in enumerate(values):
        _require_fitting(engine, name, value, (*key, index) if isinstance(raw, tuple) else key, place)
    twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
    require(twice is None, f"{place(key)}: {short(twice)} stands twice; leave one out")
    return values


def _range(raw: Mapping[str, Any], key: Key, place: Place) -> tuple[int, ...]:
    """`from` to `to`, both included, by `step` (1) or `times`."""
    _require_keys(raw, ("from", "to", "step", "times"), ("from", "to"), key, place)
    for name, value in raw.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(whole, f"{place((*key, name))}: a whole number is needed, not {short(value)}")
    low, high = raw["from"], raw["to"]
    require(low <= high, f"{place((*key, 'to'))}: {high} is below `from`, {low}; exchange them")
    if "times" not in raw:
        return _steps(low, high, raw.get("step", 1), (*key, "step"), place)
    require("step" not in raw, f"{place((*key, 'step'))}: `times` stands here too; leave one out")
    return _multiples(low, high, raw["times"], key, place)


def _steps(low: int, high: int, step: int, key: Key, place: Place) -> tuple[int, ...]:
    require(step >= 1, f"{place(key)}: {step} is not at least 1")
    count = (high - low) // step + 1
    require(count <= MAX_VALUES, f"{place(key[:-1])}: {count} values; {MAX_VALUES} at most, so take a larger step")
    return tuple(range(low, high + 1, step))


def _multiples(low: int, high: int, times: int, key: Key, place: Place) -> tuple[int, ...]:
    require(low >= 1, f"{place((*key, 'from'))}: {low} is not at least 1, which `times` needs; take `step`")
    require(times >= 2, f"{place((*key, 'times'))}: {times} is not at least 2")
    values = [low]
    while values[-1] * times <= high:
        values.append(values[-1] * times)
    return tuple(values)


def _require_keys(raw: Mapping[str, Any], names: Sequence[str], needed: Sequence[str], key: Key, place: Place) -> None:
    for name in raw:
        require(name in names, f"{place((*key, name))}: unknown key; {nearest(name[:64], names)}")
    for name in needed:
        require(name in raw, f"{place(key)}: key {name!r} is missing; needed are {', '.join(needed)}")


def _require_parameter(engine: str, name: str, key: Key, place: Place) -> None:
    require(not (wrong := setting_name(name)), f"{place(key)}: {wrong}")
    known = parameters(engine)
    require(name in known, f"{place(key)}: no parameter of {engine}; {nearest(name, known)}")
    require(name not in FROM_FORMAT, f"{place(key)}: {name} comes from the format; leave it out of `set`")


def _require_fitting(engine: str, name: str, value: Any, key: Key, place: Place) -> None:
    wrong = setting_value(value) or _misfit(value, _kinds(engine)[name])
    require(not wrong, f"{place(key)}: {wrong}")


@cache
def _kinds(engine: str) -> Mapping[str, tuple[type, ...]]:
    """Parameter -> the types that it takes."""
    hints = typing.get_type_hints(unit(engine).params_type)
    return {name: typing.get_args(hint) or (hint,) for name, hint in hints.items()}


def _misfit(value: Value, kinds: tuple[type, ...]) -> str:
    """What is wrong with a value of a parameter of these types. The unit itself checks its magnitude."""
    kind, empty = kinds[0], type(None) in kinds
    if empty and value == NONE:
        return ""
    if issubclass(kind, StrEnum):
        choices = [member.value for member in kind]
        return "" if value in choices else f"{short(value)} is unknown; {nearest(str(value), choices)}"
    if kind is bool:
        return "" if isinstance(value, bool) else f"true or false is needed, not {short(value)}"
    whole = isinstance(value, int) and not isinstance(value, bool)
    return "" if whole else f"a whole number{f' or {NONE}' if empty else ''} is needed, not {short(value)}"
