"""The plan of a network as the stages of a program: tilings searched for or given, streams cut into rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from hwsim.coders import token_quantizer
from hwsim.energy import energy_pj
from hwsim.system import power
from hwsim.system.engines import Engine, modes_of
from hwsim.system.lower import Pass, Planned, Stream
from hwsim.system.machine import LayerSpec, Machine, Operand, UnitSpec, bytes_of
from hwsim.system.program import ACT, OUT, SCORES, WEIGHT, Loop, Move, Node, Stage, Step
from hwsim.system.search import Found, search
from hwsim.system.simulate import BUFFER_NAMES, VECTOR
from hwsim.system.tiling import Product, Tiling, buffer_bytes, compute_cycles, fits, nest, vector_cycles
from hwsim.transforms.maps import Hadamard
from models.catalog import unit
from models.unit import InputError, Unit, nearest, require

PIECES = 8
"""A stream is cut into so many pieces, so that its transfers and its work overlap"""
LEAST_PIECE = 4096
"""elements of such a piece, unless the stream has fewer"""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A planned layer as a stage."""

    planned: Planned
    stage: Stage
    energy_pj: power.Energy
    crossed: power.Bits
    """between the scratchpads and the units"""
    products: tuple[tuple[Product, Tiling], ...] = ()
    """one, or both of fused attention"""

    @property
    def tiling(self) -> Tiling | None:
        """Of a product."""
        return self.products[0][1] if self.planned.what == "product" else None


class Builder:
    """Makes stages; what layers have in common, the search for a tiling above all, is done once."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.built: dict[Any, Built] = {}
        self.matched: set[str] = set()
        """patterns of the schedule that were of use"""

    def build(self, planned: Planned, waits: tuple[int, ...]) -> Built:
        """InputError names the layer where nothing fits."""
        given = self._given(planned.name) if planned.what == "product" else None
        key = (planned.what, planned.work, planned.engine, given)
        if key not in self.built:
            try:
                self.built[key] = self._build(planned, given)
            except InputError as error:
                raise InputError(f"layer {planned.name}: {error}") from None
        alike = self.built[key]
        stage = replace(alike.stage, name=planned.name, waits=waits, weights_wait=planned.weights_wait)
        return replace(alike, planned=replace(planned, engine=alike.planned.engine), stage=stage)

    def _build(self, planned: Planned, given: LayerSpec | None) -> Built:
        if planned.what == "product":
            return self._product(planned, given)
        return self._attention(planned) if planned.what == "attention" else self._stream(planned)

    def _stage(self, planned: Planned, nodes: tuple[Node, ...], buffers: dict[int, int]) -> Stage:
        """Without what other layers have to do with it."""
        return Stage(
            name=planned.name,
            nodes=nodes,
            waits=(),
            weights_wait=planned.weights_wait,
            buffers=tuple(buffers.items()),
            copies=self.machine.copies,
        )

    def _product(self, planned: Planned, given: LayerSpec | None) -> Built:
        assert planned.engine is not None
        product, modes = planned.work, self._modes(planned.engine.name, given)
        if given is not None and given.tile is not None:
            engine, tiling = modes[0], self._given_tiling(product, modes[0], given)
        else:
            engine, tiling = self._best_mode(product, modes, given.order if given else None)
        nodes = nest(product, tiling, engine, self.machine)
        crossed = power.crossed_bits(product, tiling, engine)
        energy = power.access_energy_pj(nodes, crossed, self.machine) | power.work_energy_pj(product, tiling, engine)
        return Built(
            planned=replace(planned, engine=engine),
            stage=self._stage(planned, nodes, buffer_bytes(product, tiling.tile)),
            energy_pj=energy,
            crossed=crossed,
            products=((product, tiling),),
        )

    def _best_mode(self, product: Product, modes: list[Engine], order: str | None) -> tuple[Engine, Tiling]:
        """Of those in which a tile fits; the last one's InputError where there is none."""
        tried: list[tuple[Engine, Found]] = []
        refusal = None
        for mode in modes:
            try:
                tried.append((mode, search(product, mode, self.machine, self.machine.schedule.objective, order)))
            except InputError as error:
                refusal = error
        if not tried and refusal is not None:
            raise refusal
        engine, found = min(tried, key=lambda pair: pair[1].value)
        return engine, found.tiling

    def _modes(self, name: str, given: LayerSpec | None) -> list[Engine]:
        """The engine in every mode, or in the one that is given for the layer."""
        modes = next(modes_of(spec) for spec in self.machine.engines if spec.name == name)
        if given is None or given.mode is None:
            return modes
        names = [mode.mode for mode in modes]
        rule = f"engine {name} has no mode {given.mode!r}"
        require(given.mode in names, f"{rule}; {nearest(given.mode, names) if any(names) else 'it has no modes'}")
        return [mode for mode in modes if mode.mode == given.mode]

    def _given(self, name: str) -> LayerSpec | None:
        given = next((layer for layer in self.machine.schedule.layers if fnmatchcase(name, layer.match)), None)
        if given is not None:
            self.matched.add(given.match)
        return given

    def _given_tiling(self, product: Product, engine: Engine, given: LayerSpec) -> Tiling:
        assert given.tile is not None
        m, k, n = (min(size, most) for size, most in zip(given.tile, (product.M, product.K, product.N), strict=True))
        fold = engine.fold
        whole = k == product.K
        rule = f"tile {list(given.tile)}: K={k} must be all of K={product.K}"
        require(whole or fold.takes_psum, f"{rule}, since the engine takes no partial sums")
        require(whole or k % fold.K == 0, f"{rule} or a multiple of {fold.K}, which the engine adds up at a time")
        pixels = product.image.row_pixels if product.image else 1
        rule = f"tile {list(given.tile)}: M={m} must be a multiple of {pixels}, an image row"
        require(m % pixels == 0 or m == product.M, rule)
        sizes = buffer_bytes(product, (m, k, n))
        room = ", ".join(f"{BUFFER_NAMES[buffer]} {size}" for buffer, size in sizes.items())
        rule = (
            f"tile {list(given.tile)} has no room in the scratchpads, {self.machine.copies} times these bytes: {room}"
        )
        require(fits(self.machine, sizes), rule)
        return Tiling(order=given.order or "mnk", tile=(m, k, n))

    # ---- streams

    def _stream(self, planned: Planned) -> Built:
        work: Stream = planned.work
        rows = self._rows(work)
        passes = [self._pass(done, work) for done in work.passes]
        nodes: tuple[Node, ...] = ()
        for count, size in ((work.rows // rows, rows), (1, work.rows % rows)):
            if count and size:
                nodes += _times(count, (self._piece(work, passes, size),))
        stage = self._stage(planned, nodes, _stream_bytes(work, rows))
        # the first unit reads what was brought, the last one writes what leaves
        crossed = {Operand.ACTIVATIONS: work.rows * work.in_bits, Operand.OUTPUTS: work.rows * work.out_bits}
        energy = power.access_energy_pj(stage.nodes, crossed, self.machine)
        for unit_pass in passes:
            energy[unit_pass.unit] = energy.get(unit_pass.unit, 0.0) + unit_pass.energy_pj
        return Built(planned=planned, stage=stage, energy_pj=energy, crossed=crossed)

    def _piece(self, work: Stream, passes: list[_Pass], rows: int) -> Step:
        first, *others = passes
        return Step(
            unit=first.unit,
            cycles=first.cycles(rows),
            loads=(Move(ACT, bytes_of(rows, work.in_bits)),),
            new_out=True,
            store=Move(OUT, bytes_of(rows, work.out_bits)),
            epilogue=tuple((other.unit, other.cycles(rows)) for other in others),
        )

    def _pass(self, done: Pass, work: Stream) -> _Pass:
        if done.what == "vector":
            energy = power.vector_energy_pj(work.rows * done.lane_ops)
            return _Pass(VECTOR, lambda rows: vector_cycles(self.machine, rows * done.lane_ops), energy)
        if done.what == "transform":
            entry, params, spec = self._transform(done.block)
            return _on_units(done.what, entry, params, spec, work, lambda rows: {"M": rows, "K": work.channels})
        spec = self.machine.quantizer
        entry, params = token_quantizer(work.channels, spec.params)
        run = entry.module.token_run
        return _on_units(done.what, entry, params, spec, work, lambda rows: run(params, rows, work.channels))

    def _transform(self, block: int) -> tuple[Unit, Any, UnitSpec]:
        """The unit that transforms blocks of so many channels, and its params."""
        hardware = Hadamard(points=block).hardware()
        if hardware is None:
            raise InputError(f"no unit transforms blocks of {block} channels")
        name, values = hardware
        spec = self.machine.transform
        return unit(name), unit(name).params(**{**values, **spec.params}), spec

    def _rows(self, work: Stream) -> int:
        """Rows of a piece: an eighth, not too small a one, as far as there is room."""
        wanted = max(-(-work.rows // PIECES), min(work.rows, -(-LEAST_PIECE // work.channels)))
        rows = _most(wanted, lambda rows: fits(self.machine, _stream_bytes(work, rows)))
        pads = {kind: self.machine.scratchpad(kind) for kind in (Operand.ACTIVATIONS, Operand.OUTPUTS)}
        need = ", ".join(f"{kind.value} in {pad.bytes} bytes" for kind, pad in pads.items())
        one = _stream_bytes(work, 1)
        rule = f"a row takes {one[ACT]} + {one[OUT]} bytes, {self.machine.copies} times, which has no room: {need}"
        require(rows > 0, rule)
        return rows

    # ---- attention

    def _attention(self, planned: Planned) -> Built:
        """Scores stay on chip: for a number of queries all their scores, softmax, and their product with V."""
        assert planned.engine is not None
        first, rows, second = planned.work
        tile, chunk = self._attention_tile(first, second, planned.engine)
        nodes = self._attention_nodes(planned, tile, chunk)
        products = (
            (first, Tiling(order="mnk", tile=(tile, first.K, chunk))),
            (second, Tiling(order="mnk", tile=(tile, chunk, second.N))),
        )
        # softmax reads scores and writes what the second product multiplies
        softmax = {Operand.OUTPUTS: rows.rows * (rows.in_bits + rows.out_bits)}
        scores, context = (power.crossed_bits(*pair, planned.engine) for pair in products)
        # what the second product multiplies lies where the scores do
        context[Operand.OUTPUTS] += context.pop(Operand.ACTIVATIONS)
        crossed = power.together(softmax, scores, context)
        energy = power.access_energy_pj(nodes, crossed, self.machine)
        energy["engine"] = sum(power.engine_energy_pj(*pair, planned.engine) for pair in products)
        energy["vector"] = power.vector_energy_pj(rows.rows * rows.passes[0].lane_ops)
        stage = self._stage(planned, nodes, _attention_bytes(first, second, tile, chunk))
        return Built(planned=planned, stage=stage, energy_pj=energy, crossed=crossed, products=products)

    def _attention_tile(self, first: Product, second: Product, engine: Engine) -> tuple[int, int]:
        """Queries and keys at a time: as many queries as have room with one fold of keys, then as many keys."""
        fold = engine.fold
        grain = fold.K if fold.takes_psum else second.K
        least = min(first.N, max(grain, fold.N) if fold.takes_psum else second.K)
        queries = _most(first.M, lambda m: fits(self.machine, _attention_bytes(first, second, m, least)))
        rule = f"one query's {first.N} scores and {least} keys have no room in the scratchpads"
        require(queries > 0, rule + "; take attention: unfused, or larger scratchpads")
        pieces = -(-first.N // grain)
        keys = _most(
            pieces,
            lambda n: fits(self.machine, _attention_bytes(first, second, queries, min(first.N, n * grain))),
        )
        # chunks of equal length: a rest would take the room of a whole one
        chunks = -(-pieces // max(keys, 1))
        return queries, min(first.N, -(-pieces // chunks) * grain)

    def _attention_nodes(self, planned: Planned, tile: int, chunk: int) -> tuple[Node, ...]:
        """With room for two sets of scores the next queries' are computed while softmax is at the present ones."""
        first, _, _ = planned.work
        whole, rest = divmod(first.M, tile)
        head = [size for size, there in ((tile, whole), (rest, rest)) if there]
        scores = {m: self._scores(planned, m, chunk) for m in head}
        softmax = {m: self._softmax(planned, m) for m in head}
        context = {m: self._context(planned, m, chunk) for m in head}

        def alone(m: int) -> tuple[Node, ...]:
            return (*scores[m], softmax[m], *_after(context[m], 1))

        if self.machine.copies == 1:
            return _times(first.batch, (*_times(whole, alone(tile) if whole else ()), *(alone(rest) if rest else ())))

        def while_next(m: int, following: int) -> tuple[Node, ...]:
            """After softmax of m: the next queries' scores, what softmax of m was for, softmax of the next."""
            ahead, done = scores[following], context[m]
            return (
                *ahead,
                *_after(done, len(ahead) + 1, older=True),
                replace(softmax[following], after=len(done) + 1),
            )

        body = list(_times(whole - 1, while_next(tile, tile))) if whole > 1 else []
        if whole and rest:
            body += while_next(tile, rest)
        again = [*body, *while_next(head[-1], head[0])]
        last = [*body, *_after(context[head[-1]], 1)]
        return (*scores[head[0]], softmax[head[0]], *_times(first.batch - 1, tuple(again)), *last)

    def _scores(self, planned: Planned, m: int, chunk: int) -> tuple[Step, ...]:
        """Q K^T of so many queries."""
        first, _, _ = planned.work
        assert planned.engine is not None
        steps = []
        for i, n in enumerate(_cuts(first.N, chunk)):
            loads = [first.weight_move(first.K, n)]
            if i == 0:
                loads += [first.act_move(m, first.K), Move(SCORES, 0)]
            cycles = compute_cycles(self.machine, planned.engine, first, (m, first.K, n))
            step = Step(unit=planned.engine.name, cycles=cycles, loads=tuple(loads), reads=(ACT, WEIGHT, SCORES))
            steps.append(step)
        return tuple(steps)

    def _softmax(self, planned: Planned, m: int) -> Step:
        """Of the scores of the step before."""
        _, rows, _ = planned.work
        cycles = vector_cycles(self.machine, m * rows.passes[0].lane_ops)
        return Step(unit=VECTOR, cycles=cycles, after=1, reads=(SCORES,))

    def _context(self, planned: Planned, m: int, chunk: int) -> tuple[Step, ...]:
        """The scores' product with V."""
        first, _, second = planned.work
        assert planned.engine is not None
        cuts = _cuts(first.N, chunk)
        return tuple(
            Step(
                unit=planned.engine.name,
                cycles=compute_cycles(self.machine, planned.engine, second, (m, k, second.N)),
                loads=(second.weight_move(k, second.N),),
                reads=(WEIGHT, SCORES),
                new_out=i == 0,
                store=second.out_move(m, second.N) if i == len(cuts) - 1 else None,
            )
            for i, k in enumerate(cuts)
        )


@dataclass(frozen=True)
class _Pass:
    """What a unit takes for so many rows, and its energy for all of them."""

    unit: str
    cycles: Callable[[int], int]
    energy_pj: float


def _on_units(
    what: str, entry: Unit, params: Any, spec: UnitSpec, work: Stream, shape: Callable[[int], dict[str, int]]
) -> _Pass:
    """Rows shared out among `spec.count` units of the catalogue."""

    def cycles(rows: int) -> int:
        return int(entry.timing(params, **shape(-(-rows // spec.count))).total_cycles)

    return _Pass(what, cycles, energy_pj(entry.ops(params, **shape(work.rows))))


def _cuts(whole: int, piece: int) -> list[int]:
    return [piece] * (whole // piece) + ([whole % piece] if whole % piece else [])


def _after(steps: tuple[Step, ...], distance: int, older: bool = False) -> tuple[Step, ...]:
    """The first one waits for the step so far before it."""
    first, *others = (replace(step, older=older) for step in steps)
    return replace(first, after=distance), *others


def _times(count: int, body: tuple[Node, ...]) -> tuple[Node, ...]:
    return (Loop(count, body),) if count > 1 else body * count


def _most(limit: int, good: Callable[[int], bool]) -> int:
    """The largest number up to `limit` that is good, 0 where none is; whatever lies below a good one is good."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if good(middle) else (low, middle - 1)
    return low


def _stream_bytes(work: Stream, rows: int) -> dict[int, int]:
    return {ACT: bytes_of(rows, work.in_bits), OUT: bytes_of(rows, work.out_bits)}


def _attention_bytes(first: Product, second: Product, m: int, keys: int) -> dict[int, int]:
    """Room of the largest tiles: queries, keys or values, scores of all keys, results while they are summed up."""
    return {
        ACT: first.act_move(m, first.K).bytes,
        WEIGHT: max(first.weight_move(first.K, keys).bytes, second.weight_move(keys, second.N).bytes),
        SCORES: bytes_of(m * first.N, first.out_bits),
        OUT: second.sum_move(m, second.N).bytes,
    }
