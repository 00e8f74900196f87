"""Bit-serial look-up array with quantized tables; contract and parameters in models/tmac.py."""

from __future__ import annotations

from typing import Any, NamedTuple

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from models.tmac import ENTRIES, MU, TmacParams
from rtl import columns
from rtl.arith import delay
from rtl.columns import Edge
from rtl.emit import shared


def streams(params: TmacParams) -> dict[str, Any]:
    """`i_weight` {key[cols][planes]}, `i_act` {act[rows * 4], psum[cols], last}, `o_psum` {psum[cols]}."""
    key = data.ArrayLayout(data.ArrayLayout(unsigned(MU), params.weight_bits), params.cols)
    return columns.streams(params.columns, {"key": key})


class Tables(NamedTuple):
    """What the columns read, and what meets it later."""

    entries: Value
    act_sum: Value
    """the sum of activations, two stages behind the tables; negated where these are exact"""
    most: Value | None
    """the largest sum of magnitudes, likewise, of quantized ones"""


class Tmac(Component):
    """The array with its tables and control; payload is zero while an output is not valid."""

    def __init__(self, params: TmacParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m, p = Module(), self.params
        edge = columns.enter(m, self, p.columns)
        tables = _quantized_tables(m, p, edge) if p.quantized else _exact_tables(m, p, edge)
        act_term = _times_levels(m, p, edge, tables.act_sum) if p.quantized else tables.act_sum
        terms = [[self._column(m, edge, tables, c), act_term] for c in range(p.cols)]
        columns.finish(m, self, p.columns, edge, terms)
        return m

    def _column(self, m: Module, edge: Edge, tables: Tables, column: int) -> Value:
        p, advance = self.params, edge.control.advance
        plane = None if edge.phase is None else delay(m, edge.phase, p.table_stage, advance)
        keys = [self.i_weight.payload.key[column][b] for b in range(p.weight_bits)]
        groups = [[key] for key in keys] if plane is None else [keys]
        reads = []
        for b, group in enumerate(groups):
            m.submodules[f"pe_{column}_{b}"] = pe = TmacPe(p, len(group))
            m.d.comb += [
                pe.advance.eq(advance),
                pe.load.eq(edge.control.load),
                pe.keys.eq(Cat(*group)),
                pe.tables.eq(tables.entries),
            ]
            if plane is not None:
                m.d.comb += pe.plane.eq(plane)
            reads.append(pe.read)
        weighed = self._weighed(m, edge, plane, reads, column)
        return weighed if tables.most is None else self._scaled(m, edge, weighed, tables.most, column)

    def _weighed(self, m: Module, edge: Edge, plane: Value | None, reads: list[Value], column: int) -> Value:
        """Reads times the powers of two of their planes."""
        p, advance = self.params, edge.control.advance
        total = Signal(signed(p.planes_bits), name=f"planes_{column}", reset_less=True)
        shifts: list[Any] = [*range(len(reads))] if plane is None else [delay(m, plane, 1, advance)]
        shifted = [read << shift for read, shift in zip(reads, shifts, strict=True)]
        with m.If(advance):
            m.d.sync += total.eq(sum(shifted[1:], start=shifted[0]))
        return total

    def _scaled(self, m: Module, edge: Edge, weighed: Value, most: Value, column: int) -> Value:
        p = self.params
        m.submodules[f"scaler_{column}"] = scaler = Scaler(p.planes_bits, p.most_bits)
        m.d.comb += [scaler.advance.eq(edge.control.advance), scaler.value.eq(weighed), scaler.most.eq(most)]
        averaged = p.rows.bit_length() - 1 if p.is_fast else 0
        return Cat(Const(0, averaged), scaler.scaled).as_signed()


def _of_first_phase(m: Module, edge: Edge, value: Value, stage: int) -> Value:
    """`value`, which enters register stage `stage`, where a vector is in its first cycle, zero in others."""
    if edge.phase is None:
        return value
    first = delay(m, edge.phase == 0, stage - 1, edge.control.advance)
    return Mux(first, value, 0).as_signed()


def _exact_tables(m: Module, p: TmacParams, edge: Edge) -> Tables:
    """A register stage."""
    words = []
    for r in range(p.rows):
        m.submodules[f"table_{r}"] = table = Table(p.act_bits, p.entry_bits, 0)
        m.d.comb += [table.take.eq(edge.take), table.x.eq(Cat(*edge.acts[MU * r : MU * (r + 1)]))]
        words.append(table.entries)
    minus = [word[: p.entry_bits].as_signed() for word in words]
    act_sum = Signal(signed(p.act_sum_bits), reset_less=True)
    with m.If(edge.control.advance):
        m.d.sync += act_sum.eq(_of_first_phase(m, edge, sum(minus[1:], start=minus[0]), 2))
    return Tables(Cat(*words), delay(m, act_sum, 1, edge.control.advance), None)


def _taken(m: Module, edge: Edge, value: Value, name: str) -> Signal:
    """A register of the first stage, which takes what a vector brings."""
    register = Signal(value.shape(), name=name, reset_less=True)
    with m.If(edge.take):
        m.d.sync += register.eq(value)
    return register


def _quantized_tables(m: Module, p: TmacParams, edge: Edge) -> Tables:
    """Five register stages: activations and sums of magnitudes, the largest, its reciprocal, products, tables."""
    advance = edge.control.advance
    acts = [_taken(m, edge, x, f"act_{i}") for i, x in enumerate(edge.acts)]
    magnitudes = [_magnitude(m, p, edge, r) for r in range(p.rows)]
    most, act_sum = Signal(p.most_bits, reset_less=True), Signal(signed(p.act_sum_bits), reset_less=True)
    with m.If(advance):
        m.d.sync += [
            most.eq(_largest(m, magnitudes)),
            act_sum.eq(_of_first_phase(m, edge, sum(acts[1:], start=acts[0]), 2)),
        ]
    m.submodules.reciprocal = reciprocal = Reciprocal(p.largest, p.levels, p.fraction_bits)
    m.d.comb += [reciprocal.advance.eq(advance), reciprocal.most.eq(most)]
    scaled = [_multiplied(m, p, edge, delay(m, x, 2, advance), reciprocal.value, i) for i, x in enumerate(acts)]
    words = []
    for r in range(p.rows):
        m.submodules[f"table_{r}"] = table = Table(p.product_bits, p.product_bits, p.fraction_bits)
        m.d.comb += [table.take.eq(advance), table.x.eq(Cat(*scaled[MU * r : MU * (r + 1)]))]
        words.append(table.entries)
    return Tables(Cat(*words), delay(m, act_sum, 5, advance), delay(m, most, 5, advance))


def _magnitude(m: Module, p: TmacParams, edge: Edge, row: int) -> Value:
    """The sum of a row's magnitudes."""
    m.submodules[f"magnitudes_{row}"] = magnitudes = Magnitudes(p.act_bits)
    m.d.comb += magnitudes.x.eq(Cat(*edge.acts[MU * row : MU * (row + 1)]))
    return _taken(m, edge, magnitudes.total, f"magnitude_{row}")


def _largest(m: Module, values: list[Value]) -> Value:
    """Of unsigned values; a tree of comparisons."""
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=False)
        odd = values[-1:] if len(values) % 2 else []
        values = [_larger(m, a, b) for a, b in pairs] + odd
    return values[0]


def _larger(m: Module, a: Value, b: Value) -> Value:
    larger = Signal(len(a))
    m.d.comb += larger.eq(Mux(a > b, a, b))
    return larger


def _multiplied(m: Module, p: TmacParams, edge: Edge, act: Value, reciprocal: Value, lane: int) -> Value:
    m.submodules[f"multiplier_{lane}"] = multiplier = Multiplier(p.act_bits, p.reciprocal_bits, p.product_bits)
    m.d.comb += [
        multiplier.advance.eq(edge.control.advance),
        multiplier.act.eq(act),
        multiplier.reciprocal.eq(reciprocal),
    ]
    return multiplier.product


def _times_levels(m: Module, p: TmacParams, edge: Edge, act_sum: Value) -> Value:
    """Minus the sum of activations in the unit of quantized tables, in a register."""
    term = Signal(signed(p.act_sum_bits + p.levels.bit_length()), name="act_term", reset_less=True)
    with m.If(edge.control.advance):
        m.d.sync += term.eq(act_sum * -p.levels)
    return term


@shared
class Magnitudes(Component):
    """The sum of the magnitudes of four signed numbers; no register."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        super().__init__({"x": In(unsigned(MU * bits)), "total": Out((MU << (bits - 1)).bit_length())})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        total: Any = 0
        for i in range(MU):
            x, magnitude = self.x.word_select(i, self.bits), Signal(self.bits, name=f"magnitude_{i}")
            m.d.comb += magnitude.eq((x ^ x[-1].replicate(self.bits)) + x[-1])
            total = magnitude + total
        m.d.comb += self.total.eq(total)
        return m


def reciprocals(largest: int, levels: int, fraction_bits: int) -> list[int]:
    """Of 0 to `largest`: the integers next above levels 2^fraction_bits / most, and zero of zero."""
    return [0, *((levels << fraction_bits) // most + 1 for most in range(1, largest + 1))]


@shared
class Reciprocal(Component):
    """value <= the reciprocal of `most` when `advance`; a table from 0 to `largest`, a power of two."""

    def __init__(self, largest: int, levels: int, fraction_bits: int) -> None:
        self.values = reciprocals(largest, levels, fraction_bits)
        size = max(self.values).bit_length()
        super().__init__({"advance": In(1), "most": In(largest.bit_length()), "value": Out(size)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        value = Signal.like(self.value, name="value_reg", reset_less=True)
        words: list[Value] = [Const(word, len(value)) for word in self.values[:-1]]
        for bit in self.most[:-1]:
            words = [_chosen(m, bit, high, low) for low, high in zip(words[::2], words[1::2], strict=True)]
        with m.If(self.advance):
            m.d.sync += value.eq(Mux(self.most[-1], self.values[-1], words[0]))
        m.d.comb += self.value.eq(value)
        return m


def _chosen(m: Module, bit: Value, high: Value, low: Value) -> Value:
    word = Signal(len(low))
    m.d.comb += word.eq(Mux(bit, high, low))
    return word


@shared
class Multiplier(Component):
    """product <= act * reciprocal when `advance`; `product_bits` hold it, as `act` is no larger than what the
    reciprocal is of."""

    def __init__(self, act_bits: int, reciprocal_bits: int, product_bits: int) -> None:
        super().__init__(
            {
                "advance": In(1),
                "act": In(signed(act_bits)),
                "reciprocal": In(unsigned(reciprocal_bits)),
                "product": Out(signed(product_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        product = Signal.like(self.product, name="product_reg", reset_less=True)
        with m.If(self.advance):
            m.d.sync += product.eq(self.act * self.reciprocal)
        m.d.comb += self.product.eq(product)
        return m


@shared
class Table(Component):
    """Registers the half table of four signed numbers when `take`, rounded to what stands above `dropped` low bits.

    Built by doubling: the entry without bit s, plus 2 x_s, is the entry with it. Half of what the lowest bit that is
    kept is worth stands in the first entry, and so in all: ties go up.
    """

    def __init__(self, bits: int, sum_bits: int, dropped: int) -> None:
        self.bits, self.sum_bits, self.dropped = bits, sum_bits, dropped
        entries = Out(unsigned(ENTRIES * (sum_bits - dropped)))
        super().__init__({"take": In(1), "x": In(unsigned(MU * bits)), "entries": entries})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        x = [self.x.word_select(i, self.bits).as_signed() for i in range(MU)]
        entries = [self._let(m, (1 << self.dropped >> 1) - sum(x[1:], start=x[0]), 0)]
        for s in range(MU - 1):
            entries += [self._let(m, entry + (x[s] << 1), i + (1 << s)) for i, entry in enumerate(entries)]
        table = Signal.like(self.entries, name="table", reset_less=True)
        with m.If(self.take):
            m.d.sync += table.eq(Cat(*(entry[self.dropped :] for entry in entries)))
        m.d.comb += self.entries.eq(table)
        return m

    def _let(self, m: Module, value: Value, index: int) -> Value:
        entry = Signal(signed(self.sum_bits), name=f"entry_{index}")
        m.d.comb += entry.eq(value)
        return entry


@shared
class TmacPe(Component):
    """One column and bit plane, or one column with all its planes: holds a key a row and plane, reads every row's table
    with that of `plane`, and registers the sum of the reads, or their average, when `advance`.

    Keys move down one row when `load`.
    """

    def __init__(self, params: TmacParams, planes: int) -> None:
        self.params, self.planes = params, planes
        entering = {"keys": In(unsigned(MU * planes)), "tables": In(params.rows * ENTRIES * params.entry_bits)}
        choice = {"plane": In(range(planes))} if planes > 1 else {}
        super().__init__({"advance": In(1), "load": In(1), **entering, **choice, "read": Out(signed(params.read_bits))})

    def elaborate(self, platform: object) -> Module:
        m, p = Module(), self.params
        read = Signal.like(self.read, name="read_reg", reset_less=True)
        keys, reads = self.keys, []
        for r in range(p.rows):
            held = Signal(MU * self.planes, name=f"keys_{r}", reset_less=True)
            with m.If(self.load):
                m.d.sync += held.eq(keys)
            keys = held
            key = held if self.planes == 1 else held.word_select(self.plane, MU)
            reads.append(_entry(m, p, self.tables.word_select(r, ENTRIES * p.entry_bits), key, r))
        with m.If(self.advance):
            m.d.sync += read.eq(_average(p, reads) if p.is_fast else sum(reads[1:], start=reads[0]))
        m.d.comb += self.read.eq(read)
        return m


def _entry(m: Module, p: TmacParams, table: Value, key: Value, row: int) -> Value:
    """The entry of `key`; that of its complement, negated, where the top bit is set."""
    chosen, entry = Signal(MU, name=f"key_{row}_now"), Signal(p.entry_bits, name=f"entry_{row}")
    flip = chosen[-1]
    entries = Array(table.word_select(i, p.entry_bits) for i in range(ENTRIES))
    m.d.comb += [chosen.eq(key), entry.eq(entries[chosen[:-1] ^ flip.replicate(MU - 1)])]
    return (entry ^ flip.replicate(p.entry_bits)).as_signed() + flip


def _average(p: TmacParams, reads: list[Value]) -> Value:
    """Neighbours by halving additions that round up, down to one."""
    while len(reads) > 1:
        pairs = zip(reads[::2], reads[1::2], strict=True)
        reads = [((a + b + 1) >> 1)[: p.entry_bits].as_signed() for a, b in pairs]
    return reads[0]


@shared
class Scaler(Component):
    """scaled <= value * most when `advance`."""

    def __init__(self, value_bits: int, most_bits: int) -> None:
        super().__init__(
            {
                "advance": In(1),
                "value": In(signed(value_bits)),
                "most": In(unsigned(most_bits)),
                "scaled": Out(signed(value_bits + most_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        scaled = Signal.like(self.scaled, name="scaled_reg", reset_less=True)
        with m.If(self.advance):
            m.d.sync += scaled.eq(self.value * self.most)
        m.d.comb += self.scaled.eq(scaled)
        return m
