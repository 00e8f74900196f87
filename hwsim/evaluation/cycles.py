"""Cycles and energy of a network's workload on an engine, the units that transform and quantize for it included.

Quantized layers read FP16. Quantizers, transform units and the engine take turns. What stands outside them is not
counted: zero-point correction, scales, bias, activation functions, layers kept in float, a transform's clip, static
integers of a state, conversion to FP16 or to block floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hwsim.coders import quantizers
from hwsim.energy import energy_by_kind_pj, energy_pj
from hwsim.evaluation.engine import built, plain
from hwsim.evaluation.quantized import Numbers, first_draw, network_of
from hwsim.quantize import Work, shape_of, work_of
from hwsim.transforms.maps import Cost
from models.catalog import unit, unit_of
from models.unit import InputError, Op, Timing, Unit

Shape = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One thing that a unit does."""

    shape: Mapping[str, int]
    """M, K and, of a product, N"""
    timing: Timing
    ops: tuple[Op, ...]


@dataclass(frozen=True, kw_only=True)
class Role:
    """One piece of hardware and all its runs."""

    unit: str
    params: Any
    runs: Sequence[Run]

    @property
    def cycles(self) -> int:
        return sum(run.timing.total_cycles for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What engines that compute the same values have in common: what they are given, and who else is at work."""

    shapes: Callable[[Any], Iterable[Shape]]
    """what `timing` and `ops` of an engine of these params take, product by product"""
    others: Mapping[str, Role]
    batch: int


def cycles(**inputs: Any) -> dict[str, Any]:
    """Metrics by their names in `hwsim.metrics`; `ops`: energy in pJ of the batch by kind of operation; `hardware`:
    role -> unit and params, the engine first; `schedule`: what each role does, equal shapes together.

    `inputs` are the fields of `Numbers`, params as a mapping. A role is `engine`, `transform` or `quantizer`; further
    units of the same role are numbered from 2 on. An entry of the schedule has role, shape, `times` and, over all of
    these, the cycles that `Timing` names: total, load, stream and drain. InputError where no unit computes a transform.
    """
    around = _surroundings(Numbers.of(**inputs))
    entry, params = built(inputs["unit"], inputs["params"])
    roles = {"engine": _role(entry, params, around.shapes(params)), **around.others}
    total = sum(role.cycles for role in roles.values())
    runs = roles["engine"].runs
    macs = int(sum(run.timing.work for run in runs))
    ops = [op for role in roles.values() for run in role.runs for op in run.ops]
    return {
        "cycles": int(total),
        "utilization": float(macs / (total * runs[0].timing.peak_per_cycle)),
        "energy_pj": energy_pj(ops) / around.batch,
        "macs": macs,
        **{f"{kind}_cycles": _cycles_of(kind, roles) for kind in ("transform", "quantizer")},
        "ops": energy_by_kind_pj(ops),
        "hardware": {name: {"unit": role.unit, "params": plain(role.params)} for name, role in roles.items()},
        "schedule": [entry for name, role in roles.items() for entry in _schedule(name, role)],
    }


def _cycles_of(kind: str, roles: Mapping[str, Role]) -> int:
    """Of all units of a kind; 0 where there is none."""
    return sum(role.cycles for name, role in roles.items() if name.startswith(kind))


def _schedule(name: str, role: Role) -> list[dict[str, Any]]:
    entries: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in role.runs:
        entry = entries.setdefault(tuple(run.shape.items()), {"role": name, **run.shape, "times": 0, **_NONE})
        entry["times"] += 1
        for part in _NONE:
            entry[part] += int(getattr(run.timing, f"{part}_cycles"))
    return list(entries.values())


_NONE = {"total": 0, "load": 0, "stream": 0, "drain": 0}


def _role(entry: Unit, params: Any, shapes: Iterable[Shape]) -> Role:
    """Equal shapes are counted once."""
    known: dict[tuple[int, ...], Run] = {}
    runs = []
    for shape in shapes:
        sizes = {name: shape[name] for name in ("M", "K", "N") if name in shape}
        if len(sizes) < len(shape):  # more than a shape: cycles depend on what the operands hold
            runs.append(_run(entry, params, shape, sizes))
            continue
        key = tuple(sizes.values())
        if key not in known:
            known[key] = _run(entry, params, shape, sizes)
        runs.append(known[key])
    return Role(unit=entry.name, params=params, runs=runs)


def _run(entry: Unit, params: Any, shape: Shape, sizes: Mapping[str, int]) -> Run:
    return Run(shape=sizes, timing=entry.timing(params, **shape), ops=entry.ops(params, **shape))


# ------------------------------------------------------------------------------- what engines have in common


def _surroundings(numbers: Numbers) -> Surroundings:
    return _by_operands(numbers) if unit(numbers.unit).timed_by_operands else _by_shape(numbers)


@lru_cache(maxsize=1024)
def _by_shape(numbers: Numbers) -> Surroundings:
    work = work_of(first_draw(numbers))
    products = work.products
    return Surroundings(shapes=lambda _params: products, others=_others(work), batch=network_of(numbers).batch)


@lru_cache(maxsize=4)
def _by_operands(numbers: Numbers) -> Surroundings:
    """Of engines whose cycles depend on what the operands hold: these are kept."""
    work = work_of(first_draw(numbers), lambda _params, A, W: (_narrow(A), _narrow(W)))
    products = work.products
    return Surroundings(
        shapes=lambda params: (shape_of(params, _wide(A), _wide(W)) for A, W in products),
        others=_others(work),
        batch=network_of(numbers).batch,
    )


def _narrow(x: Any) -> Any:
    """Integers in the smallest type that holds them."""
    if not isinstance(x, np.ndarray) or x.dtype.kind != "i":
        return x
    ranges = ((kind, np.iinfo(kind)) for kind in (np.int8, np.int16, np.int32, np.int64))
    return x.astype(next(kind for kind, held in ranges if held.min <= x.min() <= x.max() <= held.max))


def _wide(x: Any) -> Any:
    return x.astype(np.int64) if isinstance(x, np.ndarray) and x.dtype.kind == "i" else x


def _others(work: Work) -> dict[str, Role]:
    """One unit of each kind and size that the transform's maps need, and their quantizers."""
    shapes: dict[tuple[str, Any], tuple[Unit, list[Shape]]] = {}
    for kind, entry, params, shape in _wanted(work):
        shapes.setdefault((kind, params), (entry, []))[1].append(shape)
    names = numbered(kind for kind, _ in shapes)
    return {
        name: _role(entry, params, runs)
        for name, ((_, params), (entry, runs)) in zip(names, shapes.items(), strict=True)
    }


def _wanted(work: Work) -> Iterator[tuple[str, Unit, Any, Shape]]:
    """Role, unit, params and shape of everything that is transformed, then of everything that becomes integers."""
    for m, rows, channels in work.maps:
        needed = m.hardware()
        if needed is None and m.cost(channels) == Cost():
            continue  # wiring
        if needed is None:
            named = " ".join(repr(m).split())[:60]
            raise InputError(f"no unit computes {named} online; `hwsim accuracy` shows what it does to a network")
        yield "transform", *built(*needed), {"M": rows, "K": channels}
    for params, shape in quantizers(work):
        yield "quantizer", unit_of(params), params, shape


def numbered(kinds: Iterable[str]) -> list[str]:
    """Names of roles of these kinds: the second of a kind and those after it have their number behind."""
    names: list[str] = []
    for kind in kinds:
        count = sum(name.startswith(kind) for name in names)
        names.append(kind + (str(count + 1) if count else ""))
    return names
