"""The best tiling of a product: all legal ones, bounded from below in closed form, the promising ones simulated.

Objectives: `cycles` are the simulation's own, of the product alone on an idle machine; `traffic` the bytes between main
memory and scratchpads; `energy` that of `hwsim.system.power`. Tilings are taken in the order of their bound, until it
reaches the best figure found: none of the others can be better, so that the answer is the optimum of all. Of tilings
with the same bound the one that moves fewer bytes comes first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.system import power
from hwsim.system.engines import Engine, Shape
from hwsim.system.machine import ORDERS, Machine
from hwsim.system.program import Repeat, Stage
from hwsim.system.simulate import PAD_OF, TooLong, memory_of, simulate
from hwsim.system.tiling import Product, Tiling, buffer_bytes, fits, nest, port_cycles, traffic
from models.catalog import unit
from models.unit import InputError, require

Ints = NDArray[np.int64]

AXES = {"act": (0, 1), "weight": (1, 2), "out": (0, 2), "sum": (0, 2), "extra": (0, 2)}
"""operand -> which of M, K and N its tiles span"""


def lengths(total: int, grain: int) -> list[int]:
    """Tile lengths of a dimension, longest first: for every number of tiles the least multiple of `grain` that needs no
    more of them, the whole dimension where it is no multiple. Longer tiles of as many pieces only leave a smaller
    rest."""
    pieces = -(-total // grain)
    found, each = [], pieces
    while each:
        found.append(min(total, grain * each))
        count = -(-pieces // (each - 1)) if each > 1 else 0
        """the least number of tiles that makes them shorter"""
        each = -(-pieces // count) if count else 0
    return found


def grains(product: Product, engine: Engine) -> Shape:
    """Of what whole pieces tiles are: folds of the engine, whole rows of an image. K stays whole where the engine takes
    no partial sums."""
    fold = engine.fold
    m = fold.M if product.image is None else product.image.row_pixels * -(-fold.M // product.image.row_pixels)
    return m, fold.K if fold.takes_psum else product.K, fold.N


def no_room(product: Product, machine: Machine, least: Shape) -> InputError:
    """What is said where no tile has room: what the smallest one needs."""
    sizes = buffer_bytes(product, least)
    rows = []
    for pad in machine.scratchpads:
        need = machine.copies * sum(size for buffer, size in sizes.items() if PAD_OF[buffer] in pad.holds)
        rows.append(f"{pad.name} has {pad.bytes} bytes and would need {need}")
    smallest = "M={} K={} N={}".format(*least)
    return InputError(f"no tile fits the scratchpads; the smallest, {smallest}: {', '.join(rows)}")


@dataclass(frozen=True, kw_only=True)
class Found:
    """The best tiling, its figure, and how many there were and how many were simulated or evaluated."""

    tiling: Tiling
    value: float
    legal: int
    evaluated: int


def search(product: Product, engine: Engine, machine: Machine, objective: str, given: str | None = None) -> Found:
    """The tiling of the least `objective`, of all loop orders or of the given one. An engine whose cycles depend on its
    operands is given that of the least traffic."""
    grid = Grid(product, engine, machine)
    bounds, exact = _objective(grid, objective)
    orders = [given] if given else list(ORDERS)
    legal = np.stack([np.full(grid.size, True) if given else grid.distinct(order) for order in orders])
    bound = np.where(legal, np.stack([bounds(order) for order in orders]), inf).ravel()
    moved = np.stack([grid.bytes(order) for order in orders]).ravel()
    best, value, evaluated = None, inf, 0
    for at in np.lexsort((moved, bound)):  # of equal bounds the least traffic first
        if bound[at] >= value:
            break
        number, place = divmod(int(at), grid.size)
        tiling = Tiling(order=orders[number], tile=grid.tile(place))
        found = exact(tiling, value)
        evaluated += 1
        if found < value:
            best, value = tiling, found
    assert best is not None
    return Found(tiling=best, value=value, legal=int(legal.sum()), evaluated=evaluated)


def _objective(grid: Grid, objective: str) -> tuple[Callable[[str], NDArray[Any]], Callable[[Tiling, float], float]]:
    """A lower bound of every tile in one loop order; and the figure itself of one tiling, or infinity where it is not
    below the second argument."""
    product, engine, machine = grid.product, grid.engine, grid.machine
    if objective == "traffic" or unit(engine.array.unit).timed_by_operands:
        return grid.bytes, lambda tiling, _: traffic(nest(product, tiling, engine, machine)).bytes
    if objective == "energy":
        rate = power.dram_pj_per_byte(machine)
        return (
            lambda order: grid.bytes(order) * rate,
            lambda tiling, _: sum(power.product_energy_pj(product, tiling, engine, machine).values()),
        )
    return grid.least_cycles, lambda tiling, limit: alone(product, tiling, engine, machine, limit)


def alone(product: Product, tiling: Tiling, engine: Engine, machine: Machine, limit: float = inf) -> float:
    """Cycles of the product on an idle machine; infinity where they turn out to be more than `limit`."""
    stage = stage_of(product, tiling, engine, machine, name="", waits=(), weights_wait=False)
    try:
        return simulate([Repeat(1, (stage,), ("",))], machine, limit=limit).total_cycles
    except TooLong:
        return inf


def stage_of(
    product: Product,
    tiling: Tiling,
    engine: Engine,
    machine: Machine,
    *,
    name: str,
    waits: tuple[int, ...],
    weights_wait: bool,
) -> Stage:
    """The product as a stage of a program."""
    return Stage(
        name=name,
        nodes=nest(product, tiling, engine, machine),
        waits=waits,
        weights_wait=weights_wait,
        buffers=tuple(buffer_bytes(product, tiling.tile).items()),
        copies=machine.copies,
    )


# ---- the closed form


@dataclass(frozen=True)
class Moved:
    """Bytes, and cycles that they hold the bus."""

    bytes: Ints
    bus: Ints

    def __mul__(self, times: Any) -> Moved:
        return Moved(self.bytes * times, self.bus * times)

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.bytes + other.bytes, self.bus + other.bus)


MOST_TILES = 1 << 22
"""that a search compares"""
MOST_MACS = 1 << 54
"""of a product whose tiles are searched for: all its bytes and cycles are counted in 64 bits"""


class Grid:
    """All tiles of a product that `lengths` spans and that have room, and in closed form what they move and compute:
    int64 arrays with an entry for each of them. InputError where there is none, or too many."""

    def __init__(self, product: Product, engine: Engine, machine: Machine, cut: list[list[int]] | None = None) -> None:
        self.product, self.engine, self.machine = product, engine, machine
        self.memory = memory_of(machine)
        whole = (product.M, product.K, product.N)
        rule = "M={} K={} N={} is too large for a search; give its tile in the machine's schedule".format(*whole)
        require(product.macs <= MOST_MACS, rule)
        cut = cut or [lengths(size, piece) for size, piece in zip(whole, grains(product, engine), strict=True)]
        self.full = self._with_room(cut, rule)
        self.size = len(self.full[0])
        if self.size == 0:
            raise no_room(product, machine, (cut[0][-1], cut[1][-1], cut[2][-1]))
        self.count = [-(-size // full) for size, full in zip(whole, self.full, strict=True)]
        self.rest = [s - (c - 1) * f for s, c, f in zip(whole, self.count, self.full, strict=True)]
        self.passed: dict[str, Moved] = {}

    def _with_room(self, cut: list[list[int]], rule: str) -> list[Ints]:
        """M, K and N of the tiles that have room, one length of M after the other."""
        _, k, n = np.ix_(*(np.array(values, dtype=np.int64) for values in cut))
        found: list[list[Ints]] = [[], [], []]
        total = 0
        for m in cut[0]:
            good = np.broadcast_to(fits(self.machine, buffer_bytes(self.product, (m, k, n))), (1, k.size, n.size))
            _, at_k, at_n = np.nonzero(good)
            total += len(at_k)
            require(total <= MOST_TILES, rule)
            for sizes, part in zip(found, (np.full(len(at_k), m), k.ravel()[at_k], n.ravel()[at_n]), strict=True):
                sizes.append(part)
        return [np.concatenate(sizes) for sizes in found]

    def tile(self, place: int) -> Shape:
        m, k, n = (int(full[place]) for full in self.full)
        return m, k, n

    def each(self, what: str, sizes: list[Ints]) -> Moved:
        """The transfer of every single tile of those sizes: of `act`, `weight`, `out`, `sum` or `extra`."""
        first, second = AXES[what]
        move = getattr(self.product, f"{what}_move")(sizes[first], sizes[second])
        return Moved(move.bytes, np.where(move.bytes > 0, self.memory.bus_cycles(move), 0))

    def once(self, what: str) -> Moved:
        """One pass over all tiles of an operand: whole tiles and rests."""
        if what not in self.passed:
            total = Moved(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
            for ends in itertools.product((False, True), repeat=2):
                sizes, times = list(self.full), np.ones(1, dtype=np.int64)
                for axis, end in zip(AXES[what], ends, strict=True):
                    sizes[axis] = self.rest[axis] if end else self.full[axis]
                    times = times * (1 if end else self.count[axis] - 1)
                total += self.each(what, sizes) * times
            self.passed[what] = total
        return self.passed[what]

    def passes(self, order: str, free: int) -> Ints:
        """How many times the tiles of the operand without dimension `free` pass: once for each round of that loop, if
        there is a loop of several rounds inside it."""
        inside = order[order.index("mkn"[free]) + 1 :]
        several = np.zeros(1, dtype=bool)
        for dim in inside:
            several = several | (self.count["mkn".index(dim)] > 1)
        return np.where(several, self.count[free], 1)

    def reads(self, order: str) -> Moved:
        once = self.once("act") * self.passes(order, 2) + self.once("weight") * self.passes(order, 0)
        again = self.once("sum") * (self.passes(order, 1) - 1)
        return (once + again + self.once("extra")) * self.product.batch

    def writes(self, order: str) -> Moved:
        again = self.once("sum") * (self.passes(order, 1) - 1)
        return (self.once("out") + again) * self.product.batch

    def bytes(self, order: str) -> Ints:
        return self.reads(order).bytes + self.writes(order).bytes

    def distinct(self, order: str) -> NDArray[np.bool_]:
        """Where no order before this one is the same: a loop of one round can stand anywhere."""
        good = np.ones(self.size, dtype=bool)
        for several in itertools.product((False, True), repeat=3):
            many = {dim for dim, flag in zip("mkn", several, strict=True) if flag}
            reduced = ["".join(dim for dim in other if dim in many) for other in ORDERS]
            if reduced.index(reduced[ORDERS.index(order)]) != ORDERS.index(order):
                here = [(count > 1) == flag for count, flag in zip(self.count, several, strict=True)]
                good &= ~(here[0] & here[1] & here[2])
        return good

    def compute(self, sizes: list[Ints]) -> Ints:
        """Cycles of the engine for tiles of those sizes."""
        cycles, words = self.engine.pace(*sizes)
        for limit in port_cycles(self.machine, self.product, words):
            cycles = np.maximum(cycles, limit)
        return cycles

    @cached_property
    def all_compute(self) -> Ints:
        """Cycles of the engine for all tiles together."""
        total = np.zeros(1, dtype=np.int64)
        for ends in itertools.product((False, True), repeat=3):
            pairs = list(zip(ends, self.rest, self.full, self.count, strict=True))
            times = [1 if end else count - 1 for end, _, _, count in pairs]
            total = total + times[0] * times[1] * times[2] * self.compute([r if end else f for end, r, f, _ in pairs])
        return (total - self.engine.not_counted) * self.product.batch

    def least_cycles(self, order: str) -> Ints:
        """No run is shorter. Either the engine is never idle between the first operands' arrival and the last result's
        departure; or the bus is never idle until the last operands are on it, and the last step and its result follow.
        """
        memory = self.memory
        first = [np.where(count > 1, f, r) for count, f, r in zip(self.count, self.full, self.rest, strict=True)]
        arrival = self.each("act", first).bus + self.each("weight", first).bus
        leaving = memory.setup + self.each("out", self.rest).bus + self._epilogue()
        begin = memory.setup + memory.latency
        last_step = self.compute(self.rest) - self.engine.not_counted
        return leaving + begin + np.maximum(arrival + self.all_compute, self.reads(order).bus + last_step)

    def _epilogue(self) -> Ints:
        """Of the last tile."""
        if not self.product.lane_ops:
            return np.zeros(1, dtype=np.int64)
        spec = self.machine.vector
        assert spec is not None
        return spec.latency_cycles + -(-self.rest[0] * self.rest[2] * self.product.lane_ops // spec.lanes)
