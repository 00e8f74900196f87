"""Transforms by name: what makes a network easier to quantize without changing what it computes.

    prepared = prepare("smoothquant:alpha=0.3+hadamard", network, seed=1)      # first smoothing, then rotation

A name is text as `parse_transform` takes it. Each transform is a function of options that gives a `plan.Transform`.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwsim.networks.network import Network
from hwsim.options import parse_options
from hwsim.transforms.maps import require_whole
from hwsim.transforms.plan import Prepared, Transform
from models.unit import nearest, require

Step = tuple[str, Mapping[str, Any]]
"""a transform's name, its options"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One transform of the registry."""

    make: str
    """dotted name of the function (options) -> Transform, imported when first used"""
    source: str
    random: bool = False
    """whether the result depends on the seed"""


def _entry(place: str, source: str, *, random: bool = False) -> Entry:
    return Entry(make=f"hwsim.transforms.{place}", source=source, random=random)


TRANSFORMS: Mapping[str, Entry] = {
    "none": _entry("rotate.none", "the network as it is"),
    "hadamard": _entry("rotate.hadamard", "randomised block Hadamard before every group", random=True),
    "quarot": _entry("rotate.quarot", "QuaRot, Ashkboos et al., 2024", random=True),
    "spinquant": _entry("rotate.spinquant", "SpinQuant, Liu et al., 2024", random=True),
    "flatquant": _entry("flat.flatquant", "FlatQuant, Sun et al., 2024", random=True),
    "smoothquant": _entry("smooth.smoothquant", "SmoothQuant, Xiao et al., 2022"),
    "ostquant": _entry("rotate.ostquant", "OSTQuant, Hu et al., 2025", random=True),
    "klt": _entry("rotate.klt", "Karhunen-Loeve transform before every group, then Hadamard", random=True),
    "mambaquant": _entry("rotate.mambaquant", "MambaQuant, Xu et al., 2025", random=True),
    "quamba": _entry("rotate.quamba", "Quamba, Chiang et al., 2024", random=True),
    "rotatekv": _entry("rotate.rotatekv", "RotateKV, Su et al., 2025", random=True),
    "quantvggt": _entry("smooth.quantvggt", "QuantVGGT, Feng et al., 2025", random=True),
    "lrq-dit": _entry("rotate.lrq_dit", "LRQ-DiT, Yang et al., 2025", random=True),
    "flattenquant": _entry("smooth.flattenquant", "FlattenQuant, Zhang et al., 2024"),
}


def parse_transform(text: str) -> Transform:
    """The transform that `name` or `name:option=value,option=value` describes, or the chain of such joined by `+`.

    Values are whole or real numbers; a `+` before a digit is a number's sign. InputError names the nearest name or
    option, or the rule that a value breaks.
    """
    return _chain(_steps(text))


def get_transform(name: str, **options: Any) -> Transform:
    """The transform or chain of `parse_transform` with these options besides.

    In a chain an option goes to every transform that has it. InputError as there, and for an option that `name` gives.
    """
    steps = _steps(name)
    every = sorted({option for part, _ in steps for option in _defaults(part)})
    for option in options:
        _require_option(name, option, every)
        require(all(option not in given for _, given in steps), f"transform {name}: {option} is given twice")
    return _chain([(p, {**given, **{o: v for o, v in options.items() if o in _defaults(p)}}) for p, given in steps])


def prepare(name: str, network: Network, *, seed: int = 1, **options: Any) -> Prepared:
    """The network after the transform; the same outputs in exact arithmetic (`plan.float_maps`).

    Transforms that learn or measure do so on the network's calibration inputs. InputError where the name, an option
    or the seed is wrong or the network lacks what the transform needs.
    """
    require_whole(f"transform {name}: seed", seed, 0)
    return get_transform(name, **options)(Prepared(network=network), seed)


def check_transform(name: str, **options: Any) -> None:
    """InputError unless there is such a transform with these options."""
    get_transform(name, **options)


def options_of(name: str) -> dict[str, Any]:
    """Every option of the transform or chain with its value, given or default, as `<transform>.<option>`.

    A transform that comes again in the chain is `<transform>#2`, `#3` and so on.
    """
    check_transform(name)
    found: dict[str, Any] = {}
    times: Counter[str] = Counter()
    for part, given in _steps(name):
        times[part] += 1
        title = part if times[part] == 1 else f"{part}#{times[part]}"
        found |= {f"{title}.{option}": value for option, value in {**_defaults(part), **given}.items()}
    return found


def is_random(name: str) -> bool:
    """Whether the transform, or one of the chain, depends on the seed."""
    check_transform(name)
    return any(TRANSFORMS[part].random for part in names_of(name))


def names_of(text: str) -> tuple[str, ...]:
    """The names of `TRANSFORMS` in a transform or chain, in its order."""
    return tuple(name for name, _ in _steps(text))


def _steps(text: str) -> list[Step]:
    """The chain's parts, each the name of a transform and options that it has."""
    steps = [parse_options("transform", part) for part in re.split(r"\+(?![0-9.])", text)]
    for name, options in steps:
        known = _defaults(name)
        for option in options:
            _require_option(name, option, known)
    return steps


def _chain(steps: list[Step]) -> Transform:
    made = [_made(name, options) for name, options in steps]

    def transform(prepared: Prepared, seed: int) -> Prepared:
        for step in made:
            prepared = step(prepared, seed)
        return prepared

    return transform


def _made(name: str, options: Mapping[str, Any]) -> Transform:
    defaults = _defaults(name)
    for option, value in options.items():
        fits, rule = _KINDS[type(defaults[option])]
        require(fits(value), f"{name}: {option}={value!r} must be {rule}")
    return _maker(name)(**{o: v.item() if isinstance(v, np.generic) else v for o, v in options.items()})


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    if _is_whole(value):
        return abs(value) <= sys.float_info.max
    return isinstance(value, (float, np.floating)) and math.isfinite(value)


_KINDS: Mapping[type, tuple[Callable[[Any], bool], str]] = {
    int: (_is_whole, "a whole number"),
    float: (_is_real, "a finite number"),
    type(None): (lambda value: value is None or _is_whole(value), "a whole number, or left out"),
}
"""type of an option's default -> whether a value fits, and the rule; None stands for a number that the network gives"""


def _require_option(name: str, option: str, known: Collection[str]) -> None:
    near = nearest(option, known) if known else "it takes none"
    require(option in known, f"transform {name}: no option {option!r}; {near}")


def _defaults(name: str) -> dict[str, Any]:
    return {option: p.default for option, p in inspect.signature(_maker(name)).parameters.items()}


def _maker(name: str) -> Callable[..., Transform]:
    require(name in TRANSFORMS, f"no transform {name!r}; {nearest(name, TRANSFORMS)}")
    module, _, function = TRANSFORMS[name].make.rpartition(".")
    maker: Callable[..., Transform] = getattr(importlib.import_module(module), function)
    return maker
