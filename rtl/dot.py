"""Columns that hold a weight a row: PEs and one tree of adders a column; contract in models/dot.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Cat, Module, Signal, Value, signed, unsigned
from amaranth.lib.wiring import Component, In, Out

from models.columns import Columns
from models.dot import Dot
from rtl.arith import delay
from rtl.columns import Edge
from rtl.emit import shared

MakePe = Callable[[Dot], Any]
"""A PE has the ports `load`, `code` and `held` (the code it holds, which goes on to the PE below), `act`, `advance`
where it registers its product, and the property `terms`: its outputs that the column adds up."""


def entering(m: Module, dot: Dot, columns: Columns, edge: Edge) -> Value:
    """The activations that the PEs read, side by side."""
    acts = Cat(*edge.acts)
    registered = dot.product_bits is None and not columns.is_float
    return delay(m, acts, 1, edge.control.advance) if registered else acts


def column_sums(m: Module, dot: Dot, make_pe: MakePe, edge: Edge, acts: Value, codes: list[Value]) -> list[Value]:
    """The registered sum of every column; `codes[c]` are those that enter column c with a load beat, side by side."""
    sums = []
    for c, entering_codes in enumerate(codes):
        m.submodules[f"column_{c}"] = column = DotColumn(dot, make_pe)
        m.d.comb += [
            column.advance.eq(edge.control.advance),
            column.load.eq(edge.control.load),
            column.acts.eq(acts),
            column.codes.eq(entering_codes),
        ]
        sums.append(column.total)
    return sums


@shared
class DotColumn(Component):
    """total <= the sum of what the PEs of all rows make of `acts` and the codes they hold, when `advance`.

    Codes move down `beat_rows` rows when `load`.
    """

    def __init__(self, dot: Dot, make_pe: MakePe) -> None:
        self.dot, self.make_pe = dot, make_pe
        super().__init__(
            {
                "advance": In(1),
                "load": In(1),
                "acts": In(unsigned(dot.rows * dot.act_bits)),
                "codes": In(unsigned(dot.beat_rows * dot.code_bits)),
                "total": Out(signed(dot.sum_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        total = Signal.like(self.total, name="total_reg", reset_less=True)
        terms = [term for pe in self._pes(m) for term in pe.terms]
        with m.If(self.advance):
            m.d.sync += total.eq(sum(terms[1:], start=terms[0]))
        m.d.comb += self.total.eq(total)
        return m

    def _pes(self, m: Module) -> list[Any]:
        """Row 0 first."""
        dot = self.dot
        above = [self.codes.word_select(i, dot.code_bits) for i in range(dot.beat_rows)]
        pes = []
        for r in range(dot.rows):
            m.submodules[f"pe_{r}"] = pe = self.make_pe(dot)
            inputs = {
                "advance": self.advance,
                "load": self.load,
                "act": self.acts.word_select(r, dot.act_bits),
                "code": above[r],
            }
            m.d.comb += [getattr(pe, name).eq(inputs[name]) for name in inputs if name in pe.signature.members]
            above.append(pe.held)
            pes.append(pe)
        return pes


def held_code(m: Module, pe: Any) -> Value:
    """The code that a PE holds: `code` when `load`."""
    held = Signal.like(pe.held, name="held_reg", reset_less=True)
    with m.If(pe.load):
        m.d.sync += held.eq(pe.code)
    m.d.comb += pe.held.eq(held)
    return held
