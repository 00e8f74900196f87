"""Whether the data path is real: the tiles of a schedule, executed one after the other, against the untiled product.

A tile of A or W stays until the schedule reads another one, and partial sums leave as accumulator words and come back
as such; each step is the engine unit's `golden` on what is held. A wrong order, a lost sum or a wrong slice therefore
shows as outputs whose bits are not those of `golden` on the whole matrices.

What is executed: every distinct product of a run, tiling and engine together; of a batch one product, and both of fused
attention. Products above a size are cut down in M and then in N, whole tiles at both ends kept; K never is, so that
every sum passes all that it passes in the schedule.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.simulate import random_operands
from hwsim.system.engines import Array, Engine, Shape
from hwsim.system.run import Progress, Result
from hwsim.system.stages import Built
from hwsim.system.tiling import Product, Tiling
from hwsim.workloads.graph import Conv, Graph, Layer
from models.bits import wrap
from models.catalog import unit
from models.floats import SINGLE_BITS, single_bits, single_of
from models.gemm import LARGEST_SIZE
from models.unit import InputError, Ints, require

MOST_MACS = 1 << 33
"""multiply-accumulates of a product that is executed whole"""
MOST_ELEMENTS = 1 << 25
"""of each of its matrices"""
MOST_TILES = 1 << 14

Operands = Mapping[str, Callable[[], tuple[NDArray[Any] | None, Ints]]]
"""Layer -> what makes its A [M, K], drawn at random where none, and W [K, N], plain integers that its engine holds."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What came of one distinct product."""

    layer: str
    """the first that has it"""
    alike: int
    """layers that have it, this one among them"""
    engine: str
    unit: str
    shape: tuple[int, int, int, int]
    """batch, M, K, N"""
    executed: Shape
    """M, K, N of the one product of the batch that was executed"""
    order: str
    tile: Shape
    executed_tile: Shape
    tiles: int
    """executed"""
    resumed: int
    """tiles that took up partial sums which had been put away"""
    outputs: int
    """compared, each stored once"""
    equal: bool
    real_weights: bool
    difference: str
    """the first one; empty where there is none"""

    @property
    def notes(self) -> tuple[str, ...]:
        """How what was executed differs from the schedule."""
        batch, *whole = self.shape
        cut = [
            f"{dim} cut from {size} to {kept}"
            for dim, size, kept in zip("MKN", whole, self.executed, strict=True)
            if kept < size
        ]
        smaller = "tiles of M={} K={} N={}".format(*self.executed_tile)
        return (
            *([f"one product of {batch}"] if batch > 1 else []),
            *cut,
            *([smaller] if self.executed_tile != self.tile else []),
        )


def check(
    result: Result,
    *,
    seed: int = 0,
    most_macs: int = MOST_MACS,
    progress: Progress | None = None,
    operands: Operands | None = None,
) -> list[Checked]:
    """A row for every distinct product of the run, in order; those with operands of their own are distinct.

    Operands that nobody gives are random, uniform or (FP16) normal. A product of more than `most_macs`
    multiply-accumulates is cut down. InputError where an engine holds no plain integers, or operands do not fit.
    """
    require(most_macs >= 1, f"check: most_macs must be at least 1, not {most_macs}")
    tell, own = progress or (lambda *_: None), operands or {}
    cases, rows = _cases(result, own), []
    for number, case in enumerate(cases):
        tell(f"checking {case.layer}", number, len(cases))
        try:
            given = own[case.layer]() if case.layer in own else None
            rows.append(_checked(case, given, np.random.default_rng([seed, number]), most_macs))
        except InputError as error:
            raise InputError(f"layer {case.layer}: {error}") from None
    return rows


# ---- what a run consists of


@dataclass(kw_only=True)
class _Case:
    layer: str
    product: Product
    tiling: Tiling
    engine: Engine
    alike: int = 0


def _cases(result: Result, operands: Operands) -> list[_Case]:
    found: dict[Any, _Case] = {}
    for built in result.built:
        engine = built.planned.engine
        for name, product, tiling in _products(built):
            assert engine is not None
            key = (*product.size.values(), tiling, engine, name if name in operands else None)
            case = found.setdefault(key, _Case(layer=name, product=product, tiling=tiling, engine=engine))
            case.alike += 1
    return list(found.values())


def _products(built: Built) -> Iterator[tuple[str, Product, Tiling]]:
    parts = ("",) if built.planned.what == "product" else (".scores", ".context")
    for part, (product, tiling) in zip(parts, built.products, strict=False):
        yield f"{built.planned.name}{part}", product, tiling


# ---- the schedule with its indices


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A step of the loop nest and where it stands: the slices of M, K and N, and what moves, as in
    `hwsim.system.program.Step`."""

    m: slice
    k: slice
    n: slice
    load_act: bool
    load_weight: bool
    new_out: bool
    resume: bool
    """takes up partial sums that were put away"""
    leaves: bool
    """the tile of Y ends here: put away, or stored where K is complete"""
    complete: bool


def walk(size: Mapping[str, int], tiling: Tiling) -> Iterator[Visit]:
    """The steps of `hwsim.system.tiling.nest` in its order; `size` of the dimensions b, m, k, n as `Product.size`."""
    order = "b" + tiling.order
    counts = {dim: -(-size[dim] // tiling.length(dim)) for dim in order}
    indices = itertools.product(*(range(counts[dim]) for dim in order))
    places = (dict(zip(order, index, strict=True)) for index in indices)
    before, here = None, next(places)
    while here is not None:
        after = next(places, None)
        yield _visit(before, here, after, counts, size, tiling)
        before, here = here, after


_Place = dict[str, int]


def _visit(
    before: _Place | None,
    here: _Place,
    after: _Place | None,
    counts: Mapping[str, int],
    size: Mapping[str, int],
    tiling: Tiling,
) -> Visit:
    def moved(dims: str, other: _Place | None) -> bool:
        return other is None or any(other[dim] != here[dim] for dim in dims)

    def part(dim: str) -> slice:
        start = here[dim] * tiling.length(dim)
        return slice(start, min(start + tiling.length(dim), size[dim]))

    new_out = moved("bmn", before)
    return Visit(
        m=part("m"),
        k=part("k"),
        n=part("n"),
        load_act=moved("bmk", before),
        load_weight=moved("bkn", before),
        new_out=new_out,
        resume=new_out and here["k"] > 0,
        leaves=moved("bmn", after),
        complete=here["k"] == counts["k"] - 1,
    )


# ---- execution


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was stored in place of Y."""

    output: NDArray[Any]
    stored: Ints
    """how often each output was"""
    worths: frozenset[Fraction]
    """what a unit of the output was worth in units of A @ W, tile by tile"""
    tiles: int
    resumed: int


@dataclass(kw_only=True)
class _Held:
    """What lies in the scratchpads, and the sums that were put away."""

    act: Any = None
    weights: list[Any] = field(default_factory=list)
    """of each array"""
    sums: NDArray[Any] | None = None
    away: dict[tuple[int, int], tuple[bool, Ints]] = field(default_factory=dict)
    """by where the tile of Y begins: whether they are single precision, and their words"""
    worths: set[Fraction] = field(default_factory=set)


def execute(engine: Engine, visits: Iterable[Visit], a: NDArray[Any], w: Ints) -> Outcome:
    """Y[M, N] of A [M, K] and plain W [K, N] as the engine's arrays make it, visit by visit."""
    held, tiles, resumed = _Held(), 0, 0
    output, stored = None, np.zeros((a.shape[0], w.shape[1]), dtype=np.int64)
    for visit in visits:
        _step(engine, held, visit, a, w)
        tiles, resumed = tiles + 1, resumed + visit.resume
        if visit.leaves and visit.complete:
            assert held.sums is not None
            output = np.zeros(stored.shape, dtype=held.sums.dtype) if output is None else output
            output[visit.m, visit.n] = held.sums
            stored[visit.m, visit.n] += 1
    assert output is not None, "a schedule that stores nothing"
    return Outcome(output=output, stored=stored, worths=frozenset(held.worths), tiles=tiles, resumed=resumed)


def _step(engine: Engine, held: _Held, visit: Visit, a: NDArray[Any], w: Ints) -> None:
    acc_bits = int(engine.array.params.acc_bits)
    if visit.load_act:
        held.act = a[visit.m, visit.k]
    if visit.load_weight:
        _load_weights(engine, held, w[visit.k, visit.n])
    if visit.new_out:
        held.sums = None
    if visit.resume:
        found = held.away.pop((visit.m.start, visit.n.start), None)
        held.sums = None if found is None else _from_memory(*found, acc_bits)
    held.sums = _multiplied(engine, held)
    if visit.leaves and not visit.complete:
        held.away[visit.m.start, visit.n.start] = _in_memory(held.sums, acc_bits)


def _load_weights(engine: Engine, held: _Held, tile: Ints) -> None:
    params = engine.array.params
    parts = [tile] if engine.split == "M" else [tile[:, share] for share in shares(engine, tile.shape[1])]
    made = [unit(engine.array.unit).from_integers(params, part) for part in parts]
    held.weights = [operand for operand, _ in made]
    held.worths.update(worth for _, worth in made)


def shares(engine: Engine, length: int) -> list[slice]:
    """What each of the engine's arrays takes of a dimension that they share out; idle arrays are left out."""
    each = int(engine.share(length))
    return [slice(start, min(start + each, length)) for start in range(0, length, each)]


def _multiplied(engine: Engine, held: _Held) -> NDArray[Any]:
    """The held tiles' product, added to the held sums, each array's share by itself."""
    if engine.split == "M":
        (w,) = held.weights
        cuts = shares(engine, len(held.act))
        return np.concatenate([_golden(engine.array, held.act[cut], w, _rows(held.sums, cut)) for cut in cuts])
    widths = [operand.shape[1] for operand in held.weights]
    ends = list(itertools.accumulate(widths))
    cuts = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
    pairs = zip(cuts, held.weights, strict=True)
    return np.concatenate([_golden(engine.array, held.act, w, _columns(held.sums, cut)) for cut, w in pairs], axis=1)


def _rows(sums: NDArray[Any] | None, cut: slice) -> NDArray[Any] | None:
    return None if sums is None else sums[cut]


def _columns(sums: NDArray[Any] | None, cut: slice) -> NDArray[Any] | None:
    return None if sums is None else sums[:, cut]


def _golden(array: Array, a: NDArray[Any], w: Any, sums: NDArray[Any] | None) -> NDArray[Any]:
    return unit(array.unit).golden(array.params, a, w, *(() if sums is None else (sums,)))


def _in_memory(sums: NDArray[Any], bits: int) -> tuple[bool, Ints]:
    """What memory keeps of a sum: the low `bits` bits of an integer, the high ones of single precision's pattern."""
    if sums.dtype.kind == "f":
        return True, single_bits(sums) >> (SINGLE_BITS - bits)
    return False, sums & ((1 << bits) - 1)


def _from_memory(real: bool, words: Ints, bits: int) -> NDArray[Any]:
    return single_of(words << (SINGLE_BITS - bits)) if real else wrap(words, bits)


# ---- comparison


def _checked(
    case: _Case, given: tuple[NDArray[Any] | None, Ints] | None, rng: np.random.Generator, most_macs: int
) -> Checked:
    product, engine = case.product, case.engine
    shape, tile = kept((product.M, product.K, product.N), case.tiling.tile, most_macs)
    a, w = _operands(engine.array, given, (product.M, product.K, product.N), shape, rng)
    tiling = Tiling(order=case.tiling.order, tile=tile)
    outcome = execute(engine, walk(dict(zip("bmkn", (1, *shape), strict=True)), tiling), a, w)
    found = difference(outcome, engine.array, a, w)
    return Checked(
        layer=case.layer,
        alike=case.alike,
        engine=engine.name,
        unit=engine.array.unit,
        shape=(product.batch, product.M, product.K, product.N),
        executed=shape,
        order=tiling.order,
        tile=case.tiling.tile,
        executed_tile=tile,
        tiles=outcome.tiles,
        resumed=outcome.resumed,
        outputs=outcome.output.size,
        equal=not found,
        real_weights=given is not None,
        difference=found,
    )


def _operands(
    array: Array,
    given: tuple[NDArray[Any] | None, Ints] | None,
    whole: Shape,
    shape: Shape,
    rng: np.random.Generator,
) -> tuple[NDArray[Any], Ints]:
    """A and W of that shape: the first rows and columns of those given."""
    m, k, n = shape
    if given is None:
        return random_operands(array.params, rng, shape, None)
    a, w = given
    if a is None:
        a, _ = random_operands(array.params, rng, (m, k, 1), None)
    else:
        require(a.shape == whole[:2], f"A is {a.shape}, not {whole[:2]}")
    require(w.shape == whole[1:], f"W is {w.shape}, not {whole[1:]}")
    return a[:m], w[:, :n]


def difference(outcome: Outcome, array: Array, a: NDArray[Any], w: Ints) -> str:
    """The first difference between what tiles made and `golden` of the whole product; empty where there is none."""
    operand, worth = unit(array.unit).from_integers(array.params, w)
    whole = unit(array.unit).golden(array.params, a, operand)
    if outcome.output.dtype != whole.dtype:
        return f"tiles make {outcome.output.dtype}, the whole product {whole.dtype}"
    if outcome.worths != {worth}:
        worths = ", ".join(str(found) for found in sorted(outcome.worths))
        return f"a unit of the output is worth {worths} in tiles and {worth} in the whole product"
    bad = np.argwhere((_bits(outcome.output) != _bits(whole)) | (outcome.stored != 1))
    if not len(bad):
        return ""
    m, n = (int(index) for index in bad[0])
    times = int(outcome.stored[m, n])
    if times != 1:
        return f"Y[{m}, {n}] is stored {times} times"
    return f"Y[{m}, {n}] is {outcome.output[m, n]} from tiles and {whole[m, n]} untiled; {len(bad)} differ"


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


# ---- what is left of large products


def kept(shape: Shape, tile: Shape, most_macs: int) -> tuple[Shape, Shape]:
    """Shape and tile of what is executed: M is cut down first, then N, to two tiles at least; where those are still too
    large, the tiles themselves are."""
    (m, k, n), (tile_m, tile_k, tile_n) = shape, tile
    steps = MOST_TILES // -(-k // tile_k)

    def limit(other: int) -> int:
        """Of M beside so many columns, or of N beside so many rows."""
        return min(most_macs // (k * other), MOST_ELEMENTS // max(k, other), LARGEST_SIZE)

    n = _ends(n, tile_n, limit(1))
    m = _ends(m, tile_m, min(limit(n), steps // -(-n // tile_n) * tile_m))
    n = _ends(n, tile_n, min(limit(m), steps // -(-m // tile_m) * tile_n))
    n, tile_n = _shrunk(n, tile_n, limit(1))
    m, tile_m = _shrunk(m, tile_m, limit(n))
    return (m, k, n), (tile_m, tile_k, tile_n)


def _ends(total: int, tile: int, most: int) -> int:
    """The longest piece, not above `most` but two tiles at least, of whole tiles and the last one."""
    count = -(-total // tile)
    last = total - (count - 1) * tile
    return min(total, max((most - last) // tile, min(count - 1, 1)) * tile + last)


def _shrunk(total: int, tile: int, most: int) -> tuple[int, int]:
    """Length and tile; at most two shorter tiles where `most` is passed."""
    if total <= most:
        return total, min(tile, total)
    pieces = min(-(-total // tile), 2)
    short = max(most // pieces, 1)
    return pieces * short, short


# ---- weights of an ONNX file


def onnx_operands(path: Path, graph: Graph, result: Result, *, allow_external: bool = False) -> Operands:
    """Operands with the weights of an ONNX file, for those layers of a run of its graph whose weights the file stores.

    Weights become the integers that the layer's engine holds: each column divided by the step that takes its largest
    magnitude to the largest such integer, then to the nearest of them, of two as near the lower. Of a batch or of
    groups these are the first product's. Activations are left to be drawn. InputError as
    `hwsim.workloads.onnx_file.initialisers`, and for weights that are not finite.
    """
    from hwsim.workloads.onnx_file import initialisers

    stored, flipped = _stored_names(path)
    layers = {layer.name: layer for layer in graph.layers}
    chosen = {
        built.planned.name: built.planned
        for built in result.built
        if built.planned.what == "product" and built.planned.name in layers
    }
    names = {name: layers[name].inputs[1] for name in chosen if layers[name].inputs[1] in stored}
    values = initialisers(path, set(names.values()), allow_external=allow_external)

    def make(name: str, weight: str) -> Callable[[], tuple[None, Ints]]:
        planned, layer = chosen[name], layers[name]
        flip = bool(flipped & set(layer.outputs))
        return lambda: (None, _codes(planned.engine.array, weight, _matrix(layer, planned.work, values[weight], flip)))

    return {name: make(name, weight) for name, weight in names.items()}


def _stored_names(path: Path) -> tuple[set[str], set[str]]:
    """Tensors that the file stores, and outputs of products that read W in its other order."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and any(entry.HasField("t") for entry in node.attribute):
            stored.add(node.output[0])
    flipped = {node.output[0] for node in graph.node for entry in node.attribute if entry.name == "transB" and entry.i}
    return stored, flipped


def _matrix(layer: Layer, product: Product, values: NDArray[Any], flip: bool) -> NDArray[np.float64]:
    """W [K, N] of the first product."""
    real = values.astype(np.float64)
    if isinstance(layer.op, Conv):
        return real.reshape(real.shape[0], -1)[: product.N].T
    whole = real.T if flip else real
    return whole.reshape(-1, product.K, product.N)[0]


def _codes(array: Array, name: str, w: NDArray[np.float64]) -> Ints:
    require(bool(np.isfinite(w).all()), f"weight {name!r} has values that are not finite")
    held = unit(array.unit).plain_weights(array.params)
    step = np.abs(w).max(axis=0) / held[-1]
    scaled = w / np.where(step > 0, step, 1.0)
    return held[np.searchsorted((held[1:] + held[:-1]) / 2, scaled)]
