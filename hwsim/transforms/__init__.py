"""Transforms by name: what makes a network easier to quantize without changing what it computes.

    prepared = prepare("smoothquant+hadamard", network, seed=1)      # first smoothing, then rotation

Names are chained with `+`. Each transform is a function of options that gives a `plan.Transform`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hwsim.networks.network import Network
from hwsim.transforms.plan import Prepared, Transform
from models.unit import nearest, require


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


def get_transform(name: str, **options: Any) -> Transform:
    """The transform, or chain of transforms joined by `+`, with these options.

    In a chain an option goes to every transform that has it. InputError names the nearest name or option.
    """
    makers = {part: _maker(part) for part in name.split("+")}
    known = {part: tuple(inspect.signature(make).parameters) for part, make in makers.items()}
    every = sorted({option for names in known.values() for option in names})
    for option in options:
        near = nearest(option, every) if every else "it takes none"
        require(option in every, f"transform {name}: no option {option!r}; {near}")
    steps = [makers[p](**{o: v for o, v in options.items() if o in known[p]}) for p in name.split("+")]

    def transform(prepared: Prepared, seed: int) -> Prepared:
        for step in steps:
            prepared = step(prepared, seed)
        return prepared

    return transform


def prepare(name: str, network: Network, *, seed: int = 1, **options: Any) -> Prepared:
    """The network after the transform; the same outputs in exact arithmetic (`plan.float_maps`).

    Transforms that learn or measure do so on the network's calibration inputs. InputError where the name, an option
    or the seed is wrong or the network lacks what the transform needs.
    """
    whole = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
    require(whole, f"transform {name}: seed={seed!r} must be a whole number from 0")
    return get_transform(name, **options)(Prepared(network=network), seed)


def check_transform(name: str, **options: Any) -> None:
    """InputError unless there is such a transform with these options."""
    get_transform(name, **options)


def options_of(name: str) -> dict[str, Any]:
    """Every option of the transform or chain with its default, as `<transform>.<option>`."""
    check_transform(name)
    return {
        f"{part}.{option}": parameter.default
        for part in name.split("+")
        for option, parameter in inspect.signature(_maker(part)).parameters.items()
    }


def is_random(name: str) -> bool:
    """Whether the transform, or one of the chain, depends on the seed."""
    check_transform(name)
    return any(TRANSFORMS[part].random for part in name.split("+"))


def _maker(name: str) -> Callable[..., Transform]:
    require(name in TRANSFORMS, f"no transform {name!r}; {nearest(name, TRANSFORMS)}")
    module, _, function = TRANSFORMS[name].make.rpartition(".")
    maker: Callable[..., Transform] = getattr(importlib.import_module(module), function)
    return maker
