"""Layers of a run that are alike, as one row: the blocks of a transformer are many times the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hwsim.system.power import Energy
from hwsim.system.run import LayerResult, Result

NUMBER = re.compile(r"(?<![^./])[0-9]+(?![^./])")
"""a part of a layer's name, between points or slashes, that counts"""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers of the same work and tiling whose names differ in numbers alone, in the place of the first of them.

    Cycles, bytes, multiply-accumulates and energy are those of all its layers together.
    """

    name: str
    """with * in the place of numbers, where it has several layers"""
    layers: tuple[LayerResult, ...]
    peak_per_cycle: float | None
    """multiply-accumulates of its engine; None where it is no engine's work"""

    @property
    def first(self) -> LayerResult:
        return self.layers[0]

    @property
    def bound(self) -> str:
        """What bounds most of its cycles."""
        cycles: Counter[str] = Counter()
        for layer in self.layers:
            cycles[layer.bound] += layer.cycles
        return cycles.most_common(1)[0][0]

    @property
    def energy_pj(self) -> Energy:
        return added(layer.energy_pj for layer in self.layers)

    @property
    def span_cycles(self) -> int:
        """From each layer's first transfer to its last result; layers that overlap count for themselves."""
        return sum(layer.end - layer.begin for layer in self.layers)

    @property
    def utilization(self) -> float | None:
        """Of its engine, while the network's result is later by these layers."""
        cycles = self.total("cycles")
        return self.total("macs") / (cycles * self.peak_per_cycle) if cycles and self.peak_per_cycle else None

    @property
    def intensity(self) -> float | None:
        """Multiply-accumulates a byte of main memory."""
        macs, moved = self.total("macs"), self.total("bytes")
        return macs / moved if macs and moved else None

    @property
    def attained(self) -> float | None:
        """Multiply-accumulates a cycle of its span: never above the roofline."""
        macs, span = self.total("macs"), self.span_cycles
        return macs / span if macs and span else None

    def total(self, figure: str) -> int:
        """Sum over the layers of one of the numbers of `LayerResult`."""
        return sum(getattr(layer, figure) for layer in self.layers)


def added(energies: Iterable[Energy]) -> Energy:
    """Component by component."""
    total: Energy = {}
    for energy in energies:
        for part, pj in energy.items():
            total[part] = total.get(part, 0.0) + pj
    return total


def groups(result: Result) -> list[Group]:
    """All layers, in the order in which the first of each group is executed."""
    found: dict[Any, list[LayerResult]] = {}
    for layer in result.layers:
        pattern = NUMBER.sub("*", layer.name)
        fused = tuple(NUMBER.sub("*", name) for name in layer.fused)
        key = (pattern, layer.what, layer.unit, layer.mode, layer.shape, layer.order, layer.tile, fused)
        found.setdefault(key, []).append(layer)
    times = Counter(pattern for (pattern, *_), layers in found.items() if len(layers) > 1)
    peak = result.peaks
    return [_group(key[0], times, layers, peak) for key, layers in found.items()]


def _group(pattern: str, times: Counter[str], layers: list[LayerResult], peak: Mapping[str, float]) -> Group:
    first = layers[0]
    several = pattern if times[pattern] == 1 else f"{first.name} and {len(layers) - 1} more"
    return Group(
        name=several if len(layers) > 1 else first.name,
        layers=tuple(layers),
        peak_per_cycle=peak.get(first.unit),
    )
