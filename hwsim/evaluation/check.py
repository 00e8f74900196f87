"""Whether a point can be evaluated, and its engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from hwsim.networks import NETWORKS
from hwsim.quantizers import get_quantizer
from hwsim.sweep.point import Point, activation_kinds
from hwsim.transforms import options_of
from models.catalog import unit
from models.floats import HALF_BITS, HALF_DIGITS, ActFormat
from models.formats import get_format
from models.unit import InputError, Kind, Unit, fields_of, nearest, require


def engine_params(point: Point) -> Any:
    """The engine's params: those of the sweep file, with the widths of the point's format.

    A16 is FP16: the engine aligns it to integers of `act_bits`, 16 unless the file sets it. InputError where the engine
    takes none such.
    """
    entry, given = unit(point.unit), dict(point.params)
    require(entry.kind is Kind.GEMM, f"{entry.name} multiplies no matrices; take a GEMM engine")
    widths = _widths(entry, point)
    for name in widths:
        require(name not in given, f"{entry.name}: {name} comes from the format; leave it out of `set`")
    lanes = {"act_bits": HALF_BITS} if point.act_bits == HALF_BITS else {}
    return entry.params(**{**lanes, **given, **widths})


def _widths(entry: Unit, point: Point) -> dict[str, Any]:
    """The parameters that the format decides."""
    known = entry.params_type.__dataclass_fields__
    if point.act_bits != HALF_BITS:
        kind = {"act_format": ActFormat.INT} if "act_format" in known else {}
        return {"weight_bits": point.weight_bits, "act_bits": point.act_bits, **kind}
    rule = f"{entry.name}: {point.format} has FP16 activations, which this engine does not take"
    require("act_format" in known, f"{rule}; take A2 to A8, or an engine with act_format")
    return {"weight_bits": point.weight_bits, "act_format": ActFormat.FP16}


def check(point: Point) -> dict[str, dict[str, Any]]:
    """What the point is made of, defaults included: role (`engine`, `transform`, `quantizer`) -> name -> value.

    InputError where the point cannot be evaluated: parameters, network, transform, quantizer.
    """
    params = engine_params(point)
    kinds = activation_kinds(point.unit, point.act_bits)
    require(point.activations in kinds, f"activations {point.activations!r} are not {' or '.join(kinds)}")
    if point.network not in NETWORKS:
        raise InputError(f"no network {point.network!r}; {nearest(point.network, NETWORKS)}")
    name, options = unit(point.unit).weight_format(params)
    _check_format(name, tuple(options.items()))
    roles = {
        "engine": dict(fields_of(params)),
        "transform": _transform_options(point.transform),
        "quantizer": _quantizer_options(point.quantizer),
    }
    return {role: dict(values) for role, values in roles.items() if values}


@lru_cache(maxsize=1024)
def _check_format(name: str, options: tuple[tuple[str, Any], ...]) -> None:
    get_format(name, **dict(options))


@lru_cache(maxsize=1024)
def _transform_options(text: str) -> Mapping[str, Any]:
    options = options_of(text)
    for name, value in options.items():
        rule = f"{name}={value} is more than the quantizer before the transform makes of FP16; nearest: {HALF_DIGITS}"
        require(not name.endswith("in_bits") or value <= HALF_DIGITS, rule)
    return options


@lru_cache(maxsize=1024)
def _quantizer_options(text: str) -> Mapping[str, Any]:
    return asdict(get_quantizer(text))
