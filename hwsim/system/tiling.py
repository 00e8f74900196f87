"""A product cut into tiles that fit the scratchpads: the loop nest and what it moves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hwsim.system.engines import Engine, Shape
from hwsim.system.machine import Machine, Operand, bytes_of
from hwsim.system.program import ACT, EXTRA, OUT, WEIGHT, Loop, Move, Node, Step, steps_of
from hwsim.system.simulate import PAD_OF, VECTOR

DIMS = {ACT: "bmk", WEIGHT: "bkn", OUT: "bmn"}
"""buffer -> the dimensions that choose its tile; b counts the products of a batch"""


@dataclass(frozen=True, kw_only=True)
class Image:
    """How the rows of A lie in images that stand one below the other: each gives `out_rows` output rows of `row_pixels`
    pixels, which are read from `in_rows` rows of `in_width` pixels in all; an output row needs `span` of them and the
    next one begins `stride` further down. Each pixel gives `taps` values of K for each of its `channels`, one channel
    after the other. Padding is not read."""

    row_pixels: int
    out_rows: int
    in_rows: int
    in_width: int
    stride: int
    span: int
    taps: int
    channels: int

    def elements(self, tile_m: Any, tile_k: Any) -> Any:
        """Image values that a tile of A needs, each once, whole rows of every channel that it touches. The most that
        any tile of that size needs: those at an image's border need less."""
        rows = -(-tile_m // self.row_pixels)
        overlap = max(self.span - self.stride, 0)
        images = _touched(rows, self.out_rows) if overlap else 1
        read = _least(self.in_rows, rows * min(self.stride, self.span) + images * overlap)
        return read * self.in_width * _least(self.channels, _touched(tile_k, self.taps))


def _touched(length: Any, group: int) -> Any:
    """In how many groups a tile lies at most, where all tiles but the last are of that length."""
    apart = (length % group != 0) & (group % length != 0)
    return -(-length // group) + apart * ((length + group - 2) // group + 1 - -(-length // group))


def _least(a: int, b: Any) -> Any:
    return b + (a < b) * (a - b)


@dataclass(frozen=True, kw_only=True)
class Product:
    """`batch` products [M, K] x [K, N] as a machine moves them: bits of a value in memory, and of one in a scratchpad
    while it is summed up. `packed`: W lies tile by tile, as weights can. `extra_bits` are read for each output by its
    epilogue, which takes `lane_ops` operations of the vector unit."""

    batch: int
    M: int
    K: int
    N: int
    act_bits: Fraction
    weight_bits: Fraction
    out_bits: Fraction
    sum_bits: int
    packed: bool
    image: Image | None = None
    extra_bits: Fraction = Fraction(0)
    lane_ops: int = 0

    @property
    def macs(self) -> int:
        return self.batch * self.M * self.K * self.N

    @property
    def size(self) -> dict[str, int]:
        return {"b": self.batch, "m": self.M, "k": self.K, "n": self.N}

    # Transfers of a tile, or of many at once where sizes are int64 arrays: no branches.

    def act_move(self, m: Any, k: Any) -> Move:
        """Rows of A lie one after the other; of an image, rows of all channels do."""
        rows = m if self.image is None else -(-m // self.image.row_pixels)
        elements = m * k if self.image is None else self.image.elements(m, k)
        return Move(ACT, bytes_of(elements, self.act_bits), 1 + (k != self.K) * (rows - 1))

    def weight_move(self, k: Any, n: Any) -> Move:
        apart = (k != self.K) & (n != self.N) & (not self.packed)
        return Move(WEIGHT, bytes_of(k * n, self.weight_bits), 1 + apart * (k - 1))

    def out_move(self, m: Any, n: Any) -> Move:
        return Move(OUT, bytes_of(m * n, self.out_bits), 1 + (n != self.N) * (m - 1))

    def sum_move(self, m: Any, n: Any) -> Move:
        """Sums that are put away and come back."""
        return Move(OUT, bytes_of(m * n, Fraction(self.sum_bits)), 1 + 0 * m * n)

    def extra_move(self, m: Any, n: Any) -> Move:
        return Move(EXTRA, bytes_of(m * n, self.extra_bits), 1 + (n != self.N) * (m - 1))


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Loop order, the outermost dimension first (batch stands outside all), and tile M, K, N."""

    order: str
    tile: Shape

    def length(self, dim: str) -> int:
        return {"b": 1, "m": self.tile[0], "k": self.tile[1], "n": self.tile[2]}[dim]


def buffer_bytes(product: Product, tile: tuple[Any, Any, Any]) -> dict[int, Any]:
    """Room that the largest tile of each buffer takes."""
    m, k, n = tile
    sizes = {
        ACT: product.act_move(m, k).bytes,
        WEIGHT: product.weight_move(k, n).bytes,
        OUT: product.sum_move(m, n).bytes,
    }
    return sizes | ({EXTRA: product.extra_move(m, n).bytes} if product.extra_bits else {})


def fits(machine: Machine, sizes: dict[int, Any]) -> Any:
    """Whether so large tiles have room, each as often as the machine double-buffers; of arrays, where they have."""
    good: Any = True
    for pad in machine.scratchpads:
        held = sum(size for buffer, size in sizes.items() if PAD_OF[buffer] in pad.holds)
        good = good & (held * machine.copies <= pad.bytes)
    return good


# ---- the loop nest


@dataclass(frozen=True)
class _Segment:
    """Iterations of one loop that are alike."""

    count: int
    size: int
    first: bool
    last: bool


def _segments(total: int, tile: int) -> list[_Segment]:
    count = -(-total // tile)
    rest = total - (count - 1) * tile
    if count == 1:
        return [_Segment(1, rest, True, True)]
    between = [_Segment(count - 2, tile, False, False)] if count > 2 else []
    return [_Segment(1, tile, True, False), *between, _Segment(1, rest, False, True)]


def nest(product: Product, tiling: Tiling, engine: Engine, machine: Machine) -> tuple[Node, ...]:
    """The steps of the product, in order.

    A tile is read when it is not the one that the step before used; a tile of Y is stored when the next step works on
    another one, as sums where K is not complete, and then comes back.
    """
    order = "b" + tiling.order
    cut = {dim: _segments(product.size[dim], tiling.length(dim)) for dim in order}
    many = {dim for dim in order if sum(s.count for s in cut[dim]) > 1}
    return _level(product, order, cut, many, frozenset(order), {}, _Maker(product, engine, machine))


def _level(
    product: Product,
    order: str,
    cut: dict[str, list[_Segment]],
    many: set[str],
    changed: frozenset[str],
    place: dict[str, _Segment],
    make: _Maker,
) -> tuple[Node, ...]:
    depth = len(place)
    if depth == len(order):
        return (make(place, changed, _next_changed(order, many, place)),)
    dim = order[depth]
    nodes: list[Node] = []
    for segment in cut[dim]:
        inside = changed if segment.first else frozenset(dim) | (many & frozenset(order[depth + 1 :]))
        body = _level(product, order, cut, many, inside, {**place, dim: segment}, make)
        _append(nodes, segment.count, body)
    return tuple(nodes)


def _append(nodes: list[Node], count: int, body: tuple[Node, ...]) -> None:
    """Adds rounds, to those before where they are alike."""
    if nodes and isinstance(nodes[-1], Loop) and nodes[-1].body == body:
        nodes[-1] = Loop(nodes[-1].count + count, body)
    elif tuple(nodes[-len(body) :]) == body:
        del nodes[-len(body) :]
        nodes.append(Loop(count + 1, body))
    elif count > 1:
        nodes.append(Loop(count, body))
    else:
        nodes.extend(body)


def _next_changed(order: str, many: set[str], place: dict[str, _Segment]) -> frozenset[str]:
    """Dimensions whose index differs in the next step; all of them after the last one."""
    for depth in reversed(range(len(order))):
        if not place[order[depth]].last:
            return frozenset(order[depth]) | (many & frozenset(order[depth + 1 :]))
    return frozenset(order)


class _Maker:
    """Makes the step at a place of the nest."""

    def __init__(self, product: Product, engine: Engine, machine: Machine) -> None:
        self.product = product
        self.engine = engine
        self.machine = machine

    def __call__(self, place: dict[str, _Segment], changed: frozenset[str], following: frozenset[str]) -> Step:
        p, m, k, n = self.product, place["m"].size, place["k"].size, place["n"].size
        new = {buffer for buffer, dims in DIMS.items() if changed & set(dims)}
        leaves, complete = bool(following & set(DIMS[OUT])), place["k"].last
        loads = [move for move in (p.weight_move(k, n), p.act_move(m, k)) if move.buffer in new]
        finished = leaves and complete
        ends = complete and place["m"].last and place["n"].last
        if finished and p.extra_bits:
            loads.append(p.extra_move(m, n))
        return Step(
            unit=self.engine.name,
            cycles=compute_cycles(self.machine, self.engine, p, (m, k, n)) - ends * self.engine.not_counted,
            loads=tuple(loads),
            new_out=OUT in new,
            resume=p.sum_move(m, n) if OUT in new and not place["k"].first else None,
            store=(p.out_move(m, n) if complete else p.sum_move(m, n)) if leaves else None,
            epilogue=((VECTOR, vector_cycles(self.machine, m * n * p.lane_ops)),) if finished and p.lane_ops else (),
        )


def compute_cycles(machine: Machine, engine: Engine, product: Product, shape: Shape) -> int:
    """Of a tile: the engine's own, or those in which the slowest scratchpad hands over its words if they are more."""
    work = engine.work(shape)
    return max(work.cycles, *port_cycles(machine, product, work.words))


def edge_bits(product: Product, words: dict[str, int]) -> dict[Operand, Fraction]:
    """Bits that cross between the scratchpads and the engine."""
    return {operand: words_of(words, operand) * width for operand, width in _widths(product).items()}


def words_of(words: dict[str, Any], operand: Operand) -> Any:
    """Words of an operand that cross the engine's edge, in and out."""
    names = {Operand.ACTIVATIONS: ("act",), Operand.WEIGHTS: ("weight",), Operand.OUTPUTS: ("psum", "out")}
    return sum(words[name] for name in names[operand])


def _widths(product: Product) -> dict[Operand, Fraction]:
    return {
        Operand.ACTIVATIONS: product.act_bits,
        Operand.WEIGHTS: product.weight_bits,
        Operand.OUTPUTS: Fraction(product.sum_bits),
    }


def port_cycles(machine: Machine, product: Product, words: dict[str, Any]) -> Iterator[Any]:
    """Cycles, whole or in an int64 array, that each scratchpad of limited width takes for those words."""
    widths = _widths(product)
    parts = math.lcm(*(width.denominator for width in widths.values()))
    for pad in machine.scratchpads:
        if pad.bits_per_cycle is not None:
            bits = sum(words_of(words, Operand(kind)) * int(widths[Operand(kind)] * parts) for kind in pad.holds)
            yield -(-bits // (pad.bits_per_cycle * parts))
    yield 0


def vector_cycles(machine: Machine, lane_ops: int) -> int:
    """Of the vector unit for so many operations of a lane."""
    assert machine.vector is not None
    return machine.vector.latency_cycles + -(-lane_ops // machine.vector.lanes)


# ---- what a nest moves


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Totals of a stage."""

    read_bytes: int
    written_bytes: int
    cycles: dict[str, int]
    """by unit"""
    steps: int

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.written_bytes


def traffic(nodes: tuple[Node, ...]) -> Traffic:
    """What the steps need, counted without running them."""
    read = written = steps = 0
    cycles: dict[str, int] = {}
    for times, step in steps_of(nodes):
        brought = (*step.loads, step.resume) if step.resume else step.loads
        read += times * sum(move.bytes for move in brought if move is not None)
        written += times * (step.store.bytes if step.store else 0)
        cycles[step.unit] = cycles.get(step.unit, 0) + times * step.cycles
        for unit, length in step.epilogue:
            cycles[unit] = cycles.get(unit, 0) + times * length
        steps += times
    return Traffic(read_bytes=read, written_bytes=written, cycles=cycles, steps=steps)
