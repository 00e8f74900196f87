"""Look-up array and its multiplying scaler; contract and parameters in models/lutgemm.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.lutgemm import LATENCY, LutArray, LutGemmParams
from rtl.arith import delay, fit
from rtl.emit import shared
from rtl.stationary import StationaryControl, stationary_control


def array_streams(params: Any, word: Any) -> dict[str, Any]:
    """The streams of a look-up array whose scale words have the shape `word`."""
    array: LutArray = params.array
    key = data.ArrayLayout(data.ArrayLayout(unsigned(array.mu), array.planes), array.cols)
    psum = data.ArrayLayout(signed(params.acc_bits), array.cols)
    act = data.ArrayLayout(signed(params.act_bits), array.tile_k)
    return {
        "i_weight": In(stream.Signature(data.StructLayout({"key": key, "scale": data.ArrayLayout(word, array.cols)}))),
        "i_act": In(stream.Signature(data.StructLayout({"act": act, "psum": psum, "last": 1}))),
        "o_psum": Out(stream.Signature(data.StructLayout({"psum": psum}))),
    }


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
        return build_array(
            self, signed(p.scale_bits), lambda: Multiplier(p.array.sum_bits, p.scale_bits, p.product_bits)
        )


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
class Table(Component):
    """Registers all signed sums of `mu` activations when `advance`; entry of key k adds x_i where bit i of k is set.

    Built by doubling: the entry without bit s, plus 2 x_s, is the entry with it.
    """

    def __init__(self, array: LutArray) -> None:
        self.array = array
        super().__init__(
            {
                "advance": In(1),
                "act": In(unsigned(array.mu * array.act_bits)),
                "entries": Out(unsigned(array.entries * array.table_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        array = self.array
        x = [self.act.word_select(i, array.act_bits).as_signed() for i in range(array.mu)]
        entries: list[Value] = [_let(m, -sum(x[1:], start=x[0]), array.table_bits, "entry_0")]
        for s in range(array.mu - array.half_table):
            entries += [
                _let(m, entry + (x[s] << 1), array.table_bits, f"entry_{i + (1 << s)}")
                for i, entry in enumerate(entries)
            ]
        table = Signal(array.entries * array.table_bits, reset_less=True)
        with m.If(self.advance):
            m.d.sync += table.eq(Cat(*entries))
        m.d.comb += self.entries.eq(table)
        return m


def _let(m: Module, value: Value, bits: int, name: str) -> Value:
    named = Signal(signed(bits), name=name)
    m.d.comb += named.eq(value)
    return named


@shared
class Reader(Component):
    """One column and bit plane: holds a key a row, reads every row's table with it, registers the sum when `advance`.

    Keys move down one row when `load`.
    """

    def __init__(self, array: LutArray) -> None:
        self.array = array
        super().__init__(
            {
                "advance": In(1),
                "load": In(1),
                "key": In(unsigned(array.mu)),
                "tables": In(unsigned(array.rows * array.entries * array.table_bits)),
                "total": Out(signed(array.sum_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        array = self.array
        total = Signal(signed(array.sum_bits), name="total_reg", reset_less=True)
        key, reads = self.key, []
        for r in range(array.rows):
            held = Signal(unsigned(array.mu), name=f"key_{r}", reset_less=True)
            with m.If(self.load):
                m.d.sync += held.eq(key)
            key = held
            reads.append(_read(m, array, self.tables.word_select(r, array.entries * array.table_bits), held))
        with m.If(self.advance):
            m.d.sync += total.eq(sum(reads[1:], start=reads[0]))
        m.d.comb += self.total.eq(total)
        return m


def _read(m: Module, array: LutArray, table: Value, key: Value) -> Value:
    """The entry of `key`; from a half table the mirrored entry, negated, where the key's top bit is set."""
    entries = Array(table.word_select(i, array.table_bits) for i in range(array.entries))
    if not array.half_table:
        return entries[key].as_signed()
    flip, index = key[-1], key[:-1] ^ key[-1].replicate(array.mu - 1)
    entry = Signal(array.table_bits)
    m.d.comb += entry.eq(entries[index] if array.mu > 1 else entries[0])
    return (entry ^ flip.replicate(array.table_bits)).as_signed() + flip


def build_array(unit: Any, word: Any, make_scaler: Callable[[], Any]) -> Module:
    """The whole array around `make_scaler()`: tables, readers, plane sums, scaled products, result."""
    m = Module()
    array: LutArray = unit.params.array
    i_weight, i_act, o_psum = unit.i_weight, unit.i_act, unit.o_psum
    control = stationary_control(m, unit, array.geometry)
    advance = control.advance
    tables = _tables(m, array, i_act, advance)
    act_sum = Signal(signed(array.sum_bits), reset_less=True)
    with m.If(advance):
        m.d.sync += act_sum.eq(-sum((_entry_0(array, t) for t in tables[1:]), start=_entry_0(array, tables[0])))
    results = []
    for c in range(array.cols):
        totals = [*_column_sums(m, unit, tables, control, c), act_sum]
        words = _scale_words(m, i_weight.payload.scale[c], word, len(totals), control.load)
        products = []
        for i, (total, held) in enumerate(zip(totals, words, strict=True)):
            m.submodules[f"scaler_{c}_{i}"] = scaler = make_scaler()
            m.d.comb += [scaler.advance.eq(advance), scaler.value.eq(total), scaler.word.eq(held)]
            products.append(scaler.scaled)
        m.submodules[f"adder_{c}"] = adder = ResultAdder(unit.params, len(products))
        m.d.comb += [
            adder.advance.eq(advance),
            adder.products.eq(Cat(*products)),
            adder.psum.eq(delay(m, i_act.payload.psum[c], LATENCY - 1, advance)),
        ]
        results.append(adder.psum_out)
    m.d.comb += o_psum.payload.as_value().eq(Mux(o_psum.valid, Cat(*results), 0))
    return m


def _tables(m: Module, array: LutArray, i_act: Any, advance: Value) -> list[Value]:
    acts = i_act.payload.act.as_value()
    tables = []
    for r in range(array.rows):
        m.submodules[f"table_{r}"] = table = Table(array)
        m.d.comb += [table.advance.eq(advance), table.act.eq(acts.word_select(r, array.mu * array.act_bits))]
        tables.append(table.entries)
    return tables


def _entry_0(array: LutArray, table: Value) -> Value:
    """Minus the sum of the row's activations."""
    return table[: array.table_bits].as_signed()


def _column_sums(m: Module, unit: Any, tables: list[Value], control: StationaryControl, column: int) -> list[Value]:
    array: LutArray = unit.params.array
    sums = []
    for i in range(array.planes):
        m.submodules[f"reader_{column}_{i}"] = reader = Reader(array)
        m.d.comb += [
            reader.advance.eq(control.advance),
            reader.load.eq(control.load),
            reader.key.eq(unit.i_weight.payload.key[column][i]),
            reader.tables.eq(Cat(*tables)),
        ]
        sums.append(reader.total)
    return sums


def _scale_words(m: Module, entering: Any, word: Any, count: int, load: Value) -> list[Value]:
    """The chain of a column's scale words: what entered first is first in the result."""
    shape = Shape.cast(word)
    held = []
    value = Value.cast(entering)
    for _ in range(count):
        register = Signal(shape, reset_less=True)
        with m.If(load):
            m.d.sync += register.eq(value)
        held.append(register)
        value = register
    return held[::-1]


@shared
class ResultAdder(Component):
    """psum_out <= psum + the sum of `count` products, fitted once, when `advance`."""

    def __init__(self, params: Any, count: int) -> None:
        self.params, self.count = params, count
        super().__init__(
            {
                "advance": In(1),
                "products": In(unsigned(count * params.product_bits)),
                "psum": In(signed(params.acc_bits)),
                "psum_out": Out(signed(params.acc_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        psum = Signal.like(self.psum_out, name="psum_reg", reset_less=True)
        products = [self.products.word_select(i, p.product_bits).as_signed() for i in range(self.count)]
        with m.If(self.advance):
            m.d.sync += psum.eq(fit(m, sum(products, start=self.psum), p.acc_bits, p.overflow))
        m.d.comb += self.psum_out.eq(psum)
        return m
