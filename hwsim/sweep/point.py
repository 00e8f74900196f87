"""One design point of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.catalog import unit
from models.floats import HALF_BITS

Value = bool | int | str
"""of an engine's parameter"""

ACTIVATIONS = ("asymmetric", "symmetric")
"""integer activations: with a zero point a token, or without one"""
FLOAT_ACTIVATIONS = ("float",)
"""the one kind of FP16, and of an engine's own format"""

WORDS = ("engine", "format", "transform", "quantizer", "activations")
"""what names a point within its study"""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A network quantized in one way, run on one engine.

    `params` holds the engine's parameters as the sweep file sets them, sorted by name; the engine takes `weight_bits`
    and `act_bits` from the format. `activations` says whether integer ones have a zero point a token, or that they are
    floats. `name` is what the sweep file calls the engine, any text; it is no part of what the point is.
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
    name: str = ""

    @property
    def format(self) -> str:
        return f"W{self.weight_bits}A{self.act_bits}"

    @property
    def engine(self) -> str:
        """Its name, or the unit, and the parameters in a few words, such as `systolic 16x16 WS`."""
        return engine_label(self.name or self.unit, dict(self.params))

    @property
    def label(self) -> str:
        """The point in its study: the engine and `how`."""
        return f"{self.engine} {how(self.as_dict() | {'format': self.format})}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"params": dict(self.params)}

    def configuration(self) -> dict[str, Any]:
        """What the point is, without its name: plain data, the same for equal points."""
        return {name: value for name, value in self.as_dict().items() if name != "name"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Point:
        return cls(**{**data, "params": tuple(sorted(data["params"].items()))})


def activation_kinds(unit_name: str, act_bits: int) -> tuple[str, ...]:
    """Those that a point of this engine and width can have."""
    return FLOAT_ACTIVATIONS if act_bits == HALF_BITS or unit(unit_name).has_act_format else ACTIVATIONS


def engine_label(name: str, params: dict[str, Value]) -> str:
    """The engine of that name and its parameters in a few words."""
    shape = [f"{params.pop('rows')}x{params.pop('cols')}"] if {"rows", "cols"} <= params.keys() else []
    dataflow = [str(params.pop("dataflow"))] if "dataflow" in params else []
    return " ".join([name, *shape, *dataflow, *(f"{key}={value}" for key, value in sorted(params.items()))])


def how(point: Mapping[str, Any]) -> str:
    """Format, transform, quantizer and activations in a few words, without what goes without saying: round to nearest,
    asymmetric integers, floats."""
    plain = {"quantizer": "rtn", "activations": ACTIVATIONS[0]}
    words = [point[name] for name, usual in plain.items() if point[name] not in (usual, *FLOAT_ACTIVATIONS)]
    return " ".join([point["format"], point["transform"], *words])
