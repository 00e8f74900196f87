"""Look-up array whose scales are sums of powers of two; contract and parameters in models/shiftadd.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from models.shiftadd import Scales, ShiftAddParams
from rtl.arith import delay
from rtl.columns import Edge, enter, finish
from rtl.columns import streams as column_streams
from rtl.emit import shared
from rtl.lutgemm import TableBuilder, array_streams, build_array, key_layout, read


def _word(params: ShiftAddParams) -> data.ArrayLayout:
    return data.ArrayLayout(unsigned(params.term_bits), params.num_terms)


def streams(params: ShiftAddParams) -> dict[str, Any]:
    """Those of rtl/lutgemm.py, with scale[cols][num_terms] of term codes, or scale[words][num_terms] at the edge."""
    if params.scales is Scales.GROUP:
        return array_streams(params, _word(params))
    scale = data.ArrayLayout(_word(params), params.words)
    return column_streams(params.columns, {"key": key_layout(params.array), "scale": scale})


class ShiftAdd(Component):
    """The look-up array with shifters, behind the sums or before the tables; payload is zero while not valid."""

    def __init__(self, params: ShiftAddParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        p = self.params
        if p.scales is Scales.GROUP:
            return build_array(self, lambda: Shifter(p.array.sum_bits, p.product_bits, p.num_terms, p.max_shift))
        return _edge_scaled(self)


@shared
class Shifter(Component):
    """scaled <= the sum of the value shifted by each term of `word`, negated where the term says so, when `advance`."""

    def __init__(self, value_bits: int, product_bits: int, num_terms: int, max_shift: int) -> None:
        self.value_bits, self.product_bits, self.num_terms, self.max_shift = (
            value_bits,
            product_bits,
            num_terms,
            max_shift,
        )
        self.term_bits = (2 * max_shift + 3).bit_length()
        super().__init__(
            {
                "advance": In(1),
                "value": In(signed(value_bits)),
                "word": In(unsigned(num_terms * self.term_bits)),
                "scaled": Out(signed(product_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        scaled = Signal.like(self.scaled, name="scaled_reg", reset_less=True)
        terms = [self._term(m, self.word.word_select(i, self.term_bits)) for i in range(self.num_terms)]
        with m.If(self.advance):
            m.d.sync += scaled.eq(sum(terms[1:], start=terms[0]))
        m.d.comb += self.scaled.eq(scaled)
        return m

    def _term(self, m: Module, code: Value) -> Value:
        """The value shifted and signed as the term's code says; zero for code 0."""
        shifted = Signal(self.value_bits + self.max_shift)
        amount = (code >> 1) - 1
        places = amount[: max(self.max_shift.bit_length(), 1)]
        m.d.comb += shifted.eq(Mux(code == 0, 0, self.value << places))
        negative = code[0]
        return (shifted ^ negative.replicate(len(shifted))).as_signed() + negative


def _edge_scaled(unit: ShiftAdd) -> Module:
    """Scales before the tables: shifted activations, their tables, and columns that only read and add."""
    m = Module()
    p = unit.params
    edge = enter(m, unit, p.columns)
    control = edge.control
    words = _row_words(m, unit, edge)
    shifted = [_shifted(m, p, edge, r, words[r]) for r in range(p.rows)]
    tables = Cat(
        *(_table(m, p, edge, f"table_{r}_{i}", shifted[r][i]) for r in range(p.rows) for i in range(p.weight_bits))
    )
    z_terms = [value for row in shifted for value in row[-1]]
    z_sum = Signal(signed(p.product_bits))
    m.d.comb += z_sum.eq(sum(z_terms[1:], start=z_terms[0]))
    behind = delay(m, z_sum, 1 + p.registered, control.advance)
    terms = []
    for c in range(p.cols):
        m.submodules[f"reader_{c}"] = reader = SharedReaderPe(p)
        m.d.comb += [
            reader.advance.eq(control.advance),
            reader.load.eq(control.load),
            reader.key.eq(unit.i_weight.payload.key[c].as_value()),
            reader.tables.eq(tables),
        ]
        terms.append([reader.total, behind])
    finish(m, unit, p.columns, edge, terms)
    return m


def _row_words(m: Module, unit: ShiftAdd, edge: Edge) -> list[Value]:
    """The scale words of each row, side by side; they move down one row when keys do."""
    value, rows = Value.cast(unit.i_weight.payload.scale), []
    for r in range(unit.params.rows):
        held = Signal(len(value), name=f"scale_{r}", reset_less=True)
        with m.If(edge.control.load):
            m.d.sync += held.eq(value)
        rows.append(held)
        value = held
    return rows


def _shifted(m: Module, p: ShiftAddParams, edge: Edge, row: int, words: Value) -> list[list[Value]]:
    """The row's activations by the scale of each plane, and by z, in registers: [plane][input channel]."""
    planes = p.weight_bits + 1
    found: list[list[Value]] = [[] for _ in range(planes)]
    for x in range(p.mu):
        start = x * planes if p.scales is Scales.COLUMN else 0
        for i in range(planes):
            m.submodules[f"shifter_{row}_{x}_{i}"] = shifter = Shifter(
                p.act_bits, p.shifted_bits, p.num_terms, p.max_shift
            )
            m.d.comb += [
                shifter.advance.eq(edge.control.advance),
                shifter.value.eq(edge.acts[row * p.mu + x]),
                shifter.word.eq(words.word_select(start + i, p.word_bits)),
            ]
            found[i].append(shifter.scaled)
    return found


def _table(m: Module, p: ShiftAddParams, edge: Edge, name: str, values: list[Value]) -> Value:
    """The table of a row and plane, in registers where there are any."""
    m.submodules[name] = builder = TableBuilder(p.mu, p.shifted_bits, p.half_table, p.table_bits)
    m.d.comb += builder.act.eq(Cat(*values))
    return delay(m, builder.table, int(p.registered), edge.control.advance)


@shared
class SharedReaderPe(Component):
    """A column behind shared tables: holds the keys of all rows and planes, reads every table with its key, registers
    the sum when `advance`.

    Keys move down one row when `load`.
    """

    def __init__(self, params: ShiftAddParams) -> None:
        p = self.params = params
        super().__init__(
            {
                "advance": In(1),
                "load": In(1),
                "key": In(unsigned(p.weight_bits * p.mu)),
                "tables": In(unsigned(p.rows * p.weight_bits * p.packed_bits)),
                "total": Out(signed(p.read_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        total = Signal(signed(p.read_bits), name="total_reg", reset_less=True)
        entering, reads = self.key, []
        for r in range(p.rows):
            held = Signal(len(entering), name=f"key_{r}", reset_less=True)
            with m.If(self.load):
                m.d.sync += held.eq(entering)
            entering = held
            for i in range(p.weight_bits):
                table, key = self.tables.word_select(r * p.weight_bits + i, p.packed_bits), held.word_select(i, p.mu)
                reads.append(read(m, table, key, p.mu, p.half_table, p.table_bits))
        with m.If(self.advance):
            m.d.sync += total.eq(sum(reads[1:], start=reads[0]))
        m.d.comb += self.total.eq(total)
        return m
