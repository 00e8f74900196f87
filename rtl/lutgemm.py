"""Look-up array and its multiplying scaler; contract and parameters in models/lutgemm.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from models.lutgemm import LutArray, LutGemmParams
from rtl.arith import delay
from rtl.columns import Edge, enter, finish, word_chain
from rtl.columns import streams as column_streams
from rtl.emit import shared


def array_streams(params: Any, word: Any) -> dict[str, Any]:
    """The streams of an array that scales the plane sums by scale words of the shape `word`."""
    array: LutArray = params.array
    return column_streams(params.columns, {"key": key_layout(array), "scale": data.ArrayLayout(word, array.cols)})


def key_layout(array: LutArray) -> data.ArrayLayout:
    """A key for each column and bit plane."""
    return data.ArrayLayout(data.ArrayLayout(unsigned(array.mu), array.planes), array.cols)


def streams(params: LutGemmParams) -> dict[str, Any]:
    """`i_weight` {key[cols][planes], scale[cols]}, `i_act` {act[rows * mu], psum[cols], last}, `o_psum` {psum}."""
    return array_streams(params, signed(params.scale_bits))


class LutGemm(Component):
    """The look-up array with a multiplier for each scale; payload is zero while an output is not valid."""

    def __init__(self, params: LutGemmParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        p = self.params
        return build_array(self, lambda: Multiplier(p.array.sum_bits, p.scale_bits, p.product_bits))


@shared
class Multiplier(Component):
    """scaled <= value * word when `advance`; `product_bits` hold every product of the array's sums."""

    def __init__(self, value_bits: int, word_bits: int, product_bits: int) -> None:
        super().__init__(
            {
                "advance": In(1),
                "value": In(signed(value_bits)),
                "word": In(signed(word_bits)),
                "scaled": Out(signed(product_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        scaled = Signal.like(self.scaled, name="scaled_reg", reset_less=True)
        with m.If(self.advance):
            m.d.sync += scaled.eq(self.value * self.word)
        m.d.comb += self.scaled.eq(scaled)
        return m


@shared
class TableBuilder(Component):
    """All signed sums of `mu` activations: the entry of key k adds x_i where bit i of k is set, and subtracts it else.

    Built by doubling, without a register: the entry without bit s, plus 2 x_s, is the entry with it. All entries have
    one parity: the table is its lowest bit, then all entries without theirs (`entry_of`).
    """

    def __init__(self, mu: int, act_bits: int, half_table: bool, table_bits: int) -> None:
        self.mu, self.act_bits, self.half_table, self.table_bits = mu, act_bits, half_table, table_bits
        super().__init__(
            {
                "act": In(unsigned(mu * act_bits)),
                "table": Out(unsigned((1 << (mu - half_table)) * (table_bits - 1) + 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        x = [self.act.word_select(i, self.act_bits).as_signed() for i in range(self.mu)]
        entries: list[Value] = [self._let(m, -sum(x[1:], start=x[0]), "entry_0")]
        for s in range(self.mu - self.half_table):
            doubled = [self._let(m, e + (x[s] << 1), f"entry_{i + (1 << s)}") for i, e in enumerate(entries)]
            entries += doubled
        m.d.comb += self.table.eq(Cat(entries[0][0], *(entry[1:] for entry in entries)))
        return m

    def _let(self, m: Module, value: Value, name: str) -> Value:
        named = Signal(signed(self.table_bits), name=name)
        m.d.comb += named.eq(value)
        return named


@shared
class Register(Component):
    """held <= value when `take`."""

    def __init__(self, bits: int) -> None:
        super().__init__({"take": In(1), "value": In(unsigned(bits)), "held": Out(unsigned(bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        held = Signal.like(self.held, name="held_reg", reset_less=True)
        with m.If(self.take):
            m.d.sync += held.eq(self.value)
        m.d.comb += self.held.eq(held)
        return m


@shared
class RacPe(Component):
    """A read-accumulate unit: holds keys of `planes` bit planes a row, reads every row's table with those of `plane`,
    and registers the sum when `advance`.

    Keys move down one row when `load`.
    """

    def __init__(self, array: LutArray, planes: int) -> None:
        self.array, self.planes = array, planes
        super().__init__(
            {
                "advance": In(1),
                "load": In(1),
                "key": In(unsigned(planes * array.mu)),
                "tables": In(unsigned(array.rows * array.packed_bits)),
                "total": Out(signed(array.sum_bits)),
            }
            | ({"plane": In(range(planes))} if planes > 1 else {})
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        array = self.array
        total = Signal(signed(array.sum_bits), name="total_reg", reset_less=True)
        entering, reads = self.key, []
        for r in range(array.rows):
            held = Signal(len(entering), name=f"key_{r}", reset_less=True)
            with m.If(self.load):
                m.d.sync += held.eq(entering)
            entering = held
            keys = [held.word_select(i, array.mu) for i in range(self.planes)]
            key = pick(keys, self.plane) if self.planes > 1 else held
            table = self.tables.word_select(r, array.packed_bits)
            reads.append(read(m, table, key, array.mu, array.half_table, array.table_bits))
        with m.If(self.advance):
            m.d.sync += total.eq(sum(reads[1:], start=reads[0]))
        m.d.comb += self.total.eq(total)
        return m


def read(m: Module, table: Value, key: Value, mu: int, half_table: bool, table_bits: int) -> Value:
    """The entry of `key`; from a half table the mirrored entry, negated, where the key's top bit is set."""
    entries = Array(entry_of(table, i, table_bits)[1:] for i in range(1 << (mu - half_table)))
    if not half_table:
        return Cat(table[0], entries[key]).as_signed()
    flip, index = key[-1], key[:-1] ^ key[-1].replicate(mu - 1)
    entry = Signal(table_bits)
    m.d.comb += entry.eq(Cat(table[0], entries[index] if mu > 1 else entries[0]))
    return (entry ^ flip.replicate(table_bits)).as_signed() + flip


def pick(values: list[Value], index: Value) -> Value:
    """The value of that index; the last one for those beyond, so that every index has one."""
    return Array([*values, *[values[-1]] * ((1 << len(index)) - len(values))])[index]


def entry_of(table: Value, index: int, table_bits: int) -> Value:
    """One entry of a table."""
    upper = table_bits - 1
    return Cat(table[0], table[1 + index * upper : 1 + (index + 1) * upper])


def build_array(unit: Any, make_scaler: Callable[[], Any]) -> Module:
    """The whole array around `make_scaler()`: tables, readers, plane sums, scaled products, result."""
    m = Module()
    array: LutArray = unit.params.array
    edge = enter(m, unit, unit.params.columns)
    advance = edge.control.advance
    copies = tables(m, array, edge)
    act_sum = Signal(signed(array.sum_bits), reset_less=True)
    rows = [copies[0].word_select(r, array.packed_bits) for r in range(array.rows)]
    first = [entry_of(table, 0, array.table_bits).as_signed() for table in rows]
    with m.If(advance):
        m.d.sync += act_sum.eq(-sum(first[1:], start=first[0]))
    terms = []
    for c in range(array.cols):
        sums = [*_column_sums(m, unit, copies[c * array.copies // array.cols], edge, c), act_sum]
        words = _words(m, unit, edge, c)
        terms.append([_scaled(m, make_scaler(), f"scaler_{c}_{i}", edge, *pair) for i, pair in _paired(sums, words)])
    finish(m, unit, unit.params.columns, edge, terms)
    return m


def _paired(sums: list[Value], words: list[Value]) -> Any:
    return enumerate(zip(sums, words, strict=True))


def tables(m: Module, array: LutArray, edge: Edge) -> list[Value]:
    """All rows' tables side by side, as each copy of them gives them: built once and registered in each copy, or built
    in each behind a register of the activations."""
    acts = Cat(*edge.acts)
    if array.registered:
        built = _built(m, array, acts, "table")
        return [_registered(m, array, edge, built, f"table_reg_{i}") for i in range(array.copies)]
    held = [_registered(m, array, edge, acts, f"act_reg_{i}") for i in range(array.copies)]
    return [_built(m, array, acts, f"table_{i}") for i, acts in enumerate(held)]


def _built(m: Module, array: LutArray, acts: Value, name: str) -> Value:
    built = []
    for r in range(array.rows):
        builder = TableBuilder(array.mu, array.act_bits, array.half_table, array.table_bits)
        m.submodules[f"{name}_{r}"] = builder
        m.d.comb += builder.act.eq(acts.word_select(r, array.mu * array.act_bits))
        built.append(builder.table)
    return Cat(*built)


def _registered(m: Module, array: LutArray, edge: Edge, value: Value, name: str) -> Value:
    """Behind registers, one for each row."""
    bits, held = len(value) // array.rows, []
    for r in range(array.rows):
        m.submodules[f"{name}_{r}"] = register = Register(bits)
        m.d.comb += [register.take.eq(edge.take), register.value.eq(value.word_select(r, bits))]
        held.append(register.held)
    return Cat(*held)


def _column_sums(m: Module, unit: Any, table: Value, edge: Edge, column: int) -> list[Value]:
    """A plane's sum from each of the column's readers; of a single one, plane after plane."""
    array: LutArray = unit.params.array
    keys, sums = unit.i_weight.payload.key[column], []
    for i in range(array.racs):
        m.submodules[f"rac_{column}_{i}"] = rac = RacPe(array, array.planes // array.racs)
        m.d.comb += [
            rac.advance.eq(edge.control.advance),
            rac.load.eq(edge.control.load),
            rac.key.eq(keys.as_value() if array.serial else keys[i]),
            rac.tables.eq(table),
        ]
        if rac.planes > 1:
            m.d.comb += rac.plane.eq(delay(m, edge.phase, 1, edge.control.advance))
        sums.append(rac.total)
    return sums


def _words(m: Module, unit: Any, edge: Edge, column: int) -> list[Value]:
    """The scale words of the column's sums and of the activations' sum, as they are needed in this cycle."""
    array: LutArray = unit.params.array
    entering = unit.i_weight.payload.scale[column]
    words = word_chain(m, Value.cast(entering), array.planes + 1, edge.control.load, f"scale_{column}")
    if edge.phase is None:
        return words
    phase = delay(m, edge.phase, 2, edge.control.advance)
    return [pick(words[:-1], phase), Mux(phase == 0, words[-1], 0)]


def _scaled(m: Module, scaler: Any, name: str, edge: Edge, total: Value, word: Value) -> Value:
    m.submodules[name] = scaler
    m.d.comb += [scaler.advance.eq(edge.control.advance), scaler.value.eq(total), scaler.word.eq(word)]
    return scaler.scaled
