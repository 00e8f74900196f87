"""One design point: a quantized network on an engine, its accuracy, cycles, energy, and the area of its own RTL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hwsim.energy import energy_by_kind_pj, energy_pj
from hwsim.metrics import NETWORK_METRICS
from hwsim.sweep.space import Point, activation_kinds
from hwsim.transforms.maps import Cost
from models.catalog import unit
from models.floats import HALF_BITS, HALF_DIGITS, ActFormat
from models.formats import IntFormat
from models.unit import Kind, Op, Timing, Unit, require

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
    """What the point is made of, defaults included: role (`engine`, `transform`, `quantizer`) -> name -> value.

    InputError where the point cannot be evaluated: parameters, network, transform, quantizer.
    """
    from hwsim.networks import NETWORKS
    from hwsim.quantizers import get_quantizer
    from hwsim.transforms import options_of
    from models.formats import get_format
    from models.unit import fields_of, nearest

    params = engine_params(point)
    kinds = activation_kinds(point.unit, point.act_bits)
    require(point.activations in kinds, f"activations {point.activations!r} are not {' or '.join(kinds)}")
    require(point.network in NETWORKS, f"no network {point.network!r}; {nearest(point.network, NETWORKS)}")
    name, options = unit(point.unit).weight_format(params)
    get_format(name, **options)
    roles = {
        "engine": dict(fields_of(params)),
        "transform": options_of(point.transform),
        "quantizer": asdict(get_quantizer(point.quantizer)),
    }
    for name, value in roles["transform"].items():
        rule = f"{name}={value} is more than the quantizer before the transform makes of FP16; nearest: {HALF_DIGITS}"
        require(not name.endswith("in_bits") or value <= HALF_DIGITS, rule)
    return {role: values for role, values in roles.items() if values}


def evaluate(point: Point, *, liberty: Path | None = None) -> dict[str, Any]:
    """All metrics of the point by their names in `hwsim.metrics`, and `ops`: the energy in pJ by kind of operation.

    Cycles and energy are of the network's workload. Quantized layers read FP16. Quantizers, transform units and the
    engine take turns, at the clock of the slowest; all are in cycles, energy and area. What stands outside them is in
    none of the three: zero-point correction, scales, bias, activation functions, layers kept in float, a transform's
    clip, static integers of a state, conversion to FP16 or to block floats. `liberty` replaces the built-in cell
    library.
    """
    params = engine_params(point)
    numbers, work = _accuracy(point, params)
    runs = _runs(unit(point.unit), params, work)
    batch = _network(point).batch
    return {**numbers, **_cost(runs, _areas(runs, liberty), batch=batch)}


def _network(point: Point) -> Any:
    from hwsim.networks import get_network

    return get_network(point.network, seed=point.seed)


def _accuracy(point: Point, params: Any) -> tuple[dict[str, Any], Any]:
    """Metrics of the point's network, for a random transform also the accuracy's standard deviation over
    `SPREAD_SEEDS` draws, and the work of the first draw."""
    from hwsim.accuracy import float_metrics
    from hwsim.quantize import engine_formats, quantize_network, work_of
    from hwsim.quantizers import get_quantizer
    from hwsim.transforms import is_random, prepare

    network = _network(point)
    weights, activations = engine_formats(params, act_symmetric=point.activations == "symmetric")
    reached, quantized = [], None
    for seed in range(point.seed, point.seed + (SPREAD_SEEDS if is_random(point.transform) else 1)):
        drawn = quantize_network(
            prepare(point.transform, network, seed=seed),
            weights=weights,
            activations=activations,
            quantizer=get_quantizer(point.quantizer),
            params=params,
            seed=seed,
        )
        quantized = quantized or drawn
        reached.append(network.evaluate(drawn.prepared.network, drawn.engine))
    assert quantized is not None
    accuracies = [r["accuracy"] for r in reached]
    numbers = {
        **dict.fromkeys(NETWORK_METRICS),
        **reached[0],
        "accuracy_std": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        "float_accuracy": float_metrics(network)["accuracy"],
        "bits_per_weight": quantized.bits_per_weight,
    }
    return numbers, work_of(quantized)


Runs = dict[str, tuple[Unit, Any, list[tuple[Timing, tuple[Op, ...]]]]]
"""role -> unit, params, timing and operations of everything it does"""

QUANTIZER = {"act_format": "fp16", "lanes": 8, "passes": 2}
"""Every quantizer unless something else is known of it: so many activations become codes in a cycle"""


def _runs(engine: Unit, params: Any, work: Any) -> Runs:
    """The engine, one unit of each kind and size that the transform's maps need, and their quantizers."""
    runs = {"engine": (engine, params, [_run(engine, params, shape) for shape in work.products])}
    for m, rows, channels in work.maps:
        needed = m.hardware()
        if needed is None and m.cost(channels) == Cost():
            continue  # wiring
        require(needed is not None, f"no unit computes {m!r} online; `hwsim accuracy` shows what it does to a network")
        entry = unit(needed[0])
        _add(runs, "transform", entry, entry.params(**needed[1]), {"M": rows, "K": channels})
    for made, shape in quantizers(work):
        _add(runs, "quantizer", unit("quantizer"), made, shape)
    return runs


def _add(runs: Runs, role: str, entry: Unit, params: Any, shape: Mapping[str, int]) -> None:
    """One more run of the unit of these params; units of a role are numbered from the second on."""
    same = [name for name, (_, made, _) in runs.items() if name.startswith(role) and made == params]
    count = sum(name.startswith(role) for name in runs)
    name = same[0] if same else role + (str(count + 1) if count else "")
    runs.setdefault(name, (entry, params, []))[2].append(_run(entry, params, shape))


def quantizers(work: Any) -> Iterator[tuple[Any, dict[str, int]]]:
    """Params of the unit, and the shape of its run, for everything in `work.codes` that becomes integers. Engines that
    take floats need none.

    Values are FP16, or the integers that a transform's unit put out. They come out of memory, as units take turns, so
    that quantizers need no buffer and read a token twice. There is one for each width of token, filled up with zeros to
    whole beats.
    """
    for fmt, before, rows, channels in work.codes:
        if isinstance(fmt, IntFormat):
            values = {**_entering(before), "bits": fmt.bits, "zero_points": not fmt.symmetric}
            entry, made = token_quantizer(channels, values)
            yield made, entry.module.token_run(made, rows, channels)


def token_quantizer(channels: int, values: Mapping[str, Any]) -> tuple[Unit, Any]:
    """The quantizer for tokens of so many channels, of FP16 unless `values` say otherwise, and its params."""
    entry = unit("quantizer")
    values = {**QUANTIZER, **values}
    lanes = int(values["lanes"])
    return entry, entry.params(**values, group=-(-channels // lanes) * lanes)


def _entering(before: Any) -> dict[str, Any]:
    """What a quantizer reads behind this map's unit, or out of memory."""
    if before is None:
        return {}
    name, params = before.hardware()
    return {"act_format": "int", "in_bits": unit(name).params(**params).out_bits}


def _run(entry: Unit, params: Any, shape: Mapping[str, Any]) -> tuple[Timing, tuple[Op, ...]]:
    return entry.timing(params, **shape), entry.ops(params, **shape)


def _areas(runs: Runs, liberty: Path | None) -> dict[str, Any]:
    """Synthesis results by role."""
    from hwsim.synth import synthesize
    from rtl.emit import emit

    return {role: synthesize(emit(made), entry.name, liberty=liberty) for role, (entry, made, _) in runs.items()}


def _cost(runs: Runs, synthesised: Mapping[str, Any], batch: int) -> dict[str, Any]:
    layers = {role: done for role, (_, _, done) in runs.items()}
    cycles = {role: sum(timing.total_cycles for timing, _ in done) for role, done in layers.items()}
    macs = sum(timing.work for timing, _ in layers["engine"])
    peak = layers["engine"][0][0].peak_per_cycle
    ops = [op for done in layers.values() for _, counted in done for op in counted]
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
        **_share("transform", synthesised, cycles),
        **_share("quantizer", synthesised, cycles),
        "macs": macs,
        "ops": energy_by_kind_pj(ops),
    }


def _share(role: str, synthesised: Mapping[str, Any], cycles: Mapping[str, int]) -> dict[str, Any]:
    """Area and cycles of all units of a role; 0 where there is none."""
    return {
        f"{role}_area_um2": sum((r.area_um2 for name, r in synthesised.items() if name.startswith(role)), 0.0),
        f"{role}_cycles": sum(count for name, count in cycles.items() if name.startswith(role)),
    }
