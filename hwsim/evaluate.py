"""One design point: a quantized network on an engine, its accuracy, cycles, energy, and the area of its own RTL."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hwsim.config import Point
from hwsim.energy import energy_by_kind_pj, energy_pj
from models.catalog import unit
from models.floats import HALF_BITS, ActFormat
from models.unit import Kind, Op, Timing, require

SPREAD_SEEDS = 5
"""draws of a random transform over which the accuracy's standard deviation is taken"""


def engine_params(point: Point) -> Any:
    """The engine's params: those of the sweep file, with the widths of the point's format.

    A16 is FP16: the engine aligns it to integers of `act_bits`, 16 unless the file sets it.
    """
    entry = unit(point.unit)
    require(entry.kind is Kind.GEMM, f"{point.unit} multiplies no matrices; take a GEMM engine")
    fields, given = entry.params_type.__dataclass_fields__, dict(point.params)
    widths: dict[str, Any] = {"weight_bits": point.weight_bits}
    if "act_format" in fields:
        widths["act_format"] = ActFormat.FP16 if point.act_bits == HALF_BITS else ActFormat.INT
    if point.act_bits == HALF_BITS:
        rule = f"{point.unit}: {point.format} has FP16 activations, which this engine does not take"
        require("act_format" in fields, f"{rule}; take A2 to A8, or an engine with act_format")
        given = {"act_bits": HALF_BITS} | given
    else:
        widths["act_bits"] = point.act_bits
    for name in widths:
        require(name not in dict(point.params), f"{point.unit}: {name} comes from the format; leave it out of `set`")
    return entry.params(**given, **widths)


def check(point: Point) -> dict[str, dict[str, Any]]:
    """Every parameter of the point's hardware, defaults included: role (`engine`, `transform`) -> name -> value.

    InputError where the point cannot be evaluated: parameters, network, transform.
    """
    from hwsim.networks import NETWORKS
    from models.formats import get_format
    from models.unit import fields_of, nearest

    params = engine_params(point)
    require(point.network in NETWORKS, f"no network {point.network!r}; {nearest(point.network, NETWORKS)}")
    transform = _transform_unit(point)
    name, options = unit(point.unit).weight_format(params)
    get_format(name, **options)
    roles = {"engine": params} | ({"transform": transform[1]} if transform else {})
    return {role: dict(fields_of(made)) for role, made in roles.items()}


def evaluate(point: Point, *, liberty: Path | None = None) -> dict[str, Any]:
    """All metrics of the point by their names in `hwsim.metrics`, and `ops`: the energy in pJ by kind of operation.

    The network's test set is one batch. Engine and transform unit run one after the other, at the clock of the slower;
    both are in cycles, energy and area. What stands outside them (zero-point correction, scales, bias, activation
    functions) is in none of the three. `liberty` replaces the built-in cell library.
    """
    params = engine_params(point)
    numbers, shapes = _accuracy(point, params)
    runs = _runs(point, params, shapes)
    return {**numbers, **_cost(runs, _areas(point, params, liberty), batch=shapes[0]["M"])}


def _transform(name: str, seed: int) -> Any:
    from hwsim.transforms import get_transform

    return get_transform(name, **({"seed": seed} if name != "none" else {}))


@cache
def _network(name: str, seed: int) -> Any:
    from hwsim.networks import get_network

    return get_network(name, seed=seed)


def _accuracy(point: Point, params: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracy of the point, for a random transform also its standard deviation over `SPREAD_SEEDS` draws, and what
    the engine's timing takes for each layer of the first draw."""
    from hwsim.networks.mlp import float_accuracy
    from hwsim.quantize import accuracy, engine_shapes, quantize_network

    network = _network(point.network, point.seed)
    draws = SPREAD_SEEDS if _transform(point.transform, point.seed).hardware() else 1
    reached, quantized = [], None
    for seed in range(point.seed, point.seed + draws):
        drawn = quantize_network(network, params, transform=_transform(point.transform, seed))
        quantized = quantized or drawn
        reached.append(accuracy(network, drawn))
    assert quantized is not None
    numbers = {
        "accuracy": reached[0],
        "accuracy_std": float(np.std(reached, ddof=1)) if draws > 1 else None,
        "float_accuracy": float_accuracy(network),
        "bits_per_weight": quantized.bits_per_weight,
    }
    return numbers, engine_shapes(network, quantized)


def _runs(point: Point, params: Any, shapes: list[dict[str, Any]]) -> dict[str, list[tuple[Timing, tuple[Op, ...]]]]:
    """Timing and operations of every layer on the engine, and on the transform unit where there is one."""
    engine = unit(point.unit)
    runs = {"engine": [_run(engine, params, shape) for shape in shapes]}
    transform = _transform_unit(point)
    if transform:
        runs["transform"] = [_run(*transform, {"M": shape["M"], "K": shape["K"]}) for shape in shapes]
    return runs


def _run(entry: Any, params: Any, shape: Mapping[str, Any]) -> tuple[Timing, tuple[Op, ...]]:
    return entry.timing(params, **shape), entry.ops(params, **shape)


def _transform_unit(point: Point) -> tuple[Any, Any] | None:
    needed = _transform(point.transform, point.seed).hardware()
    return (unit(needed[0]), unit(needed[0]).params(**needed[1])) if needed else None


def _areas(point: Point, params: Any, liberty: Path | None) -> dict[str, Any]:
    """Synthesis results of the engine, and of the transform unit where there is one."""
    from hwsim.synth import synthesize
    from rtl.emit import emit

    chosen = {"engine": (unit(point.unit), params)}
    transform = _transform_unit(point)
    if transform:
        chosen["transform"] = transform
    return {role: synthesize(emit(made), entry.name, liberty=liberty) for role, (entry, made) in chosen.items()}


def _cost(runs: Mapping[str, list[Any]], synthesised: Mapping[str, Any], batch: int) -> dict[str, Any]:
    cycles = {role: sum(timing.total_cycles for timing, _ in layers) for role, layers in runs.items()}
    macs = sum(timing.work for timing, _ in runs["engine"])
    peak = runs["engine"][0][0].peak_per_cycle
    ops = [op for layers in runs.values() for _, counted in layers for op in counted]
    area = sum(result.area_um2 for result in synthesised.values())
    delay = max(result.delay_ns for result in synthesised.values())
    total = sum(cycles.values())
    throughput = macs / (total * delay)
    return {
        "cycles": total,
        "utilization": macs / (total * peak),
        "energy_pj": energy_pj(ops) / batch,
        "area_um2": area,
        "gate_equivalents": sum(result.gate_equivalents for result in synthesised.values()),
        "delay_ns": delay,
        "clock_mhz": 1000 / delay,
        "latency_us": total * delay / 1000,
        "throughput_gmacs": throughput,
        "area_at_equal_throughput_um2": area / throughput,
        "transform_area_um2": synthesised["transform"].area_um2 if "transform" in synthesised else 0.0,
        "transform_cycles": cycles.get("transform", 0),
        "macs": macs,
        "ops": energy_by_kind_pj(ops),
    }
