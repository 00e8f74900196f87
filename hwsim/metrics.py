"""The registry of metrics: the one place that knows a metric's unit, direction, meaning and way of printing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.unit import nearest, require


class Direction(StrEnum):
    """Which way a metric is better."""

    MAX = "max"
    MIN = "min"
    NONE = "none"
    """describes a point without ranking it"""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of a design point."""

    name: str
    title: str
    """heading for people, without the unit"""
    unit: str
    direction: Direction
    description: str
    format: str
    """format specification for `format()`, used where people read; files keep every digit"""
    kind: type = float
    """int where the number is a count, else float"""
    suffix: str = ""
    """what `column` adds to a name that does not speak its unit"""
    optional: bool = False
    """whether a finished point may lack it"""

    @property
    def column(self) -> str:
        """Name of the column in files, with the unit in it."""
        return self.name + self.suffix

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} [{self.unit}]"

    def show(self, value: float | None) -> str:
        """The value for people, empty where there is none."""
        return "" if value is None else format(value, self.format)


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            name="accuracy",
            title="accuracy",
            unit="fraction",
            direction=Direction.MAX,
            description="Share of the test set that the network gets right as the engine computes it: images "
            "classified, next bytes predicted, sentences whose nearest other one stays that of the float network.",
            format=".4f",
            suffix="_fraction",
        ),
        Metric(
            name="accuracy_std",
            title="accuracy spread",
            unit="fraction",
            direction=Direction.NONE,
            description="Standard deviation of the accuracy over draws of a random transform; empty without one.",
            format=".4f",
            suffix="_fraction",
            optional=True,
        ),
        Metric(
            name="float_accuracy",
            title="float accuracy",
            unit="fraction",
            direction=Direction.MAX,
            description="The same of the network before quantization.",
            format=".4f",
            suffix="_fraction",
        ),
        Metric(
            name="perplexity",
            title="perplexity",
            unit="a byte or token",
            direction=Direction.MIN,
            description="Of a language model on text that it has never seen; empty for other networks.",
            format=".4f",
            optional=True,
        ),
        Metric(
            name="bits_per_byte",
            title="bits per byte",
            unit="bit",
            direction=Direction.MIN,
            description="Cross entropy of a language model over that text, a byte; empty for other networks.",
            format=".4f",
            optional=True,
        ),
        Metric(
            name="cosine",
            title="cosine",
            unit="1",
            direction=Direction.MAX,
            description="Mean cosine of a sentence encoder's embeddings to those of the float network; empty for "
            "others.",
            format=".4f",
            optional=True,
        ),
        Metric(
            name="spearman",
            title="rank correlation",
            unit="1",
            direction=Direction.MAX,
            description="Spearman's rank correlation of the similarities of all pairs of sentences to those of "
            "the float network; empty for networks that encode no sentences.",
            format=".4f",
            optional=True,
        ),
        Metric(
            name="cycles",
            title="cycles",
            unit="cycles",
            direction=Direction.MIN,
            description="Clock cycles of all linear layers over one batch (the network's workload), with transforms "
            "and quantizers: stall-free, compute only, no memory.",
            format=",d",
            kind=int,
        ),
        Metric(
            name="utilization",
            title="utilization",
            unit="fraction",
            direction=Direction.MAX,
            description="Useful multiply-accumulates over those the engine's lanes could have done in these cycles.",
            format=".3f",
            suffix="_fraction",
        ),
        Metric(
            name="energy_pj",
            title="energy per inference",
            unit="pJ",
            direction=Direction.MIN,
            description="Energy of the counted operations of one inference, with transforms and quantizers, without "
            "memories.",
            format=",.0f",
        ),
        Metric(
            name="area_um2",
            title="area",
            unit="µm²",
            direction=Direction.MIN,
            description="Cell area of engine, transform units and quantizers, synthesised from the RTL of this point; "
            "no wires.",
            format=",.0f",
        ),
        Metric(
            name="gate_equivalents",
            title="gate equivalents",
            unit="GE",
            direction=Direction.MIN,
            description="The area over that of the library's two-input NAND gate.",
            format=",.0f",
        ),
        Metric(
            name="delay_ns",
            title="delay",
            unit="ns",
            direction=Direction.MIN,
            description="Longest path between registers of the slowest of these units; no wires.",
            format=".3f",
        ),
        Metric(
            name="clock_mhz",
            title="clock",
            unit="MHz",
            direction=Direction.MAX,
            description="Highest clock that the delay admits: 1000 / delay.",
            format=",.0f",
        ),
        Metric(
            name="latency_us",
            title="latency",
            unit="µs",
            direction=Direction.MIN,
            description="Time of one batch at that clock: cycles times delay.",
            format=",.2f",
        ),
        Metric(
            name="throughput_gmacs",
            title="throughput",
            unit="GMAC/s",
            direction=Direction.MAX,
            description="Useful multiply-accumulates a second at that clock, in units of 10⁹.",
            format=",.2f",
        ),
        Metric(
            name="area_at_equal_throughput_um2",
            title="area at equal throughput",
            unit="µm² per GMAC/s",
            direction=Direction.MIN,
            description="Area over throughput: the silicon of as many copies as together do 10⁹ useful "
            "multiply-accumulates a second (a fraction of a copy is allowed).",
            format=",.1f",
        ),
        Metric(
            name="transform_area_um2",
            title="transform area",
            unit="µm²",
            direction=Direction.MIN,
            description="Cell area of the units that transform the activations; 0 without a transform.",
            format=",.0f",
        ),
        Metric(
            name="transform_cycles",
            title="transform cycles",
            unit="cycles",
            direction=Direction.MIN,
            description="Clock cycles of those units over one batch; 0 without a transform.",
            format=",d",
            kind=int,
        ),
        Metric(
            name="quantizer_area_um2",
            title="quantizer area",
            unit="µm²",
            direction=Direction.MIN,
            description="Cell area of the units that turn FP16, or what a transform puts out, into integers, one for "
            "each width of token, in two passes without a buffer; 0 where nothing becomes integers.",
            format=",.0f",
        ),
        Metric(
            name="quantizer_cycles",
            title="quantizer cycles",
            unit="cycles",
            direction=Direction.MIN,
            description="Clock cycles of those units over one batch.",
            format=",d",
            kind=int,
        ),
        Metric(
            name="bits_per_weight",
            title="bits per weight",
            unit="bit",
            direction=Direction.MIN,
            description="Stored bits of all weights, with scales and offsets, over the number of weights.",
            format=".2f",
        ),
        Metric(
            name="macs",
            title="work",
            unit="MAC",
            direction=Direction.NONE,
            description="Useful multiply-accumulates of one batch, the same for every engine.",
            format=",d",
            kind=int,
        ),
    )
}

NETWORK_METRICS = ("accuracy", "perplexity", "bits_per_byte", "cosine", "spearman")
"""what a network's `evaluate` may give; every network gives the first"""

FRONT = ("accuracy", "area_at_equal_throughput_um2")
"""The two metrics of the Pareto front that sweeps print and reports draw."""


def metric(name: str) -> Metric:
    """The registry's entry of that name; InputError with the nearest name otherwise."""
    require(name in METRICS, f"no metric {name!r}; {nearest(name, METRICS)}")
    return METRICS[name]


def pareto(points: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[int]:
    """Indices, in order, of the points that no other point dominates in the named metrics.

    One point dominates another when it is at least as good in each metric and better in one, by the registry's
    directions. Equal points do not dominate each other: all are kept. Points that lack one of the metrics (None or no
    such key) are left out. InputError for an unknown metric or one without a direction.
    """
    signs = [_sign(name) for name in metrics]
    whole = [i for i, point in enumerate(points) if all(point.get(name) is not None for name in metrics)]
    costs = np.array([[float(points[i][name]) for name in metrics] for i in whole]).reshape(len(whole), len(signs))
    return sorted(whole[row] for row in nondominated(costs * np.array(signs)))


def nondominated(costs: NDArray[np.float64]) -> list[int]:
    """Indices of the rows of `costs` [points, objectives], smaller is better, that no other row dominates."""
    if costs.shape[1] == 2 and len(costs):
        return _staircase(costs)
    front: list[int] = []
    # in lexicographic order a point can only be dominated by one before it
    for row in np.lexsort(costs.T[::-1]) if len(costs) else ():
        kept = costs[front]
        dominated = (kept <= costs[row]).all(axis=1) & (kept < costs[row]).any(axis=1)
        if not dominated.any():
            front.append(int(row))
    return front


def _staircase(costs: NDArray[np.float64]) -> list[int]:
    """The same for two objectives in the time of sorting: along the first, only a new best in the second counts."""
    distinct, place = np.unique(costs, axis=0, return_inverse=True)
    before = np.minimum.accumulate(np.concatenate([[np.inf], distinct[:-1, 1]]))
    return np.flatnonzero((distinct[:, 1] < before)[place.reshape(-1)]).tolist()


def _sign(name: str) -> float:
    direction = metric(name).direction
    require(direction is not Direction.NONE, f"metric {name!r} has no direction; a front needs max or min")
    return 1.0 if direction is Direction.MIN else -1.0
