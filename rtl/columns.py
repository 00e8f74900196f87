"""What arrays of columns have in common: streams, edge, and the way of a total to the output; see models/columns.py."""

from __future__ import annotations

from typing import Any, NamedTuple

from amaranth.hdl import Cat, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.bits import Overflow
from models.columns import Columns
from models.floats import HALF_BITS
from rtl.align import Aligner
from rtl.arith import delay, fit
from rtl.emit import shared
from rtl.floats import SingleAdder, to_single
from rtl.stationary import StationaryControl, stationary_control


def streams(columns: Columns, weight: dict[str, Any]) -> dict[str, Any]:
    """`i_weight` with the fields `weight`, `i_act` {act[tile_k], psum[cols], last}, `o_psum` {psum[cols]}."""
    lane = unsigned(HALF_BITS) if columns.is_float else signed(columns.act_bits)
    sums = unsigned(columns.acc_bits) if columns.is_float else signed(columns.acc_bits)
    act, psum = data.ArrayLayout(lane, columns.tile_k), data.ArrayLayout(sums, columns.cols)
    return {
        "i_weight": In(stream.Signature(data.StructLayout(weight))),
        "i_act": In(stream.Signature(data.StructLayout({"act": act, "psum": psum, "last": 1}))),
        "o_psum": Out(stream.Signature(data.StructLayout({"psum": psum}))),
    }


class Edge(NamedTuple):
    """A vector as the columns read it, and the control that goes with it."""

    control: StationaryControl
    acts: list[Value]
    """the integers"""
    exponent: Value | None
    """of FP16 ones"""
    taken: Value
    """a vector stands here for the first time, or for the only one"""
    phase: Value | None
    """which of its cycles this is, where there are several"""

    @property
    def take(self) -> Value:
        """When registers take what a vector brings: once a vector, where it is worked on in several cycles."""
        return self.control.advance if self.phase is None else self.control.advance & self.taken


def enter(m: Module, unit: Any, columns: Columns) -> Edge:
    """The control of the unit, and its activations as integers."""
    control = stationary_control(m, unit, columns.geometry)
    acts = unit.i_act.payload.act.as_value()
    several = columns.interval > 1
    taken, phase = (control.taken, control.phase) if several else (unit.i_act.valid & unit.i_act.ready, None)
    if not columns.is_float:
        lanes = [acts.word_select(i, columns.act_bits).as_signed() for i in range(columns.tile_k)]
        return Edge(control, lanes, None, taken, phase)
    m.submodules.aligner = aligner = Aligner(columns.tile_k, columns.act_bits, columns.rounding)
    m.d.comb += [aligner.advance.eq(control.advance), aligner.x.eq(acts)]
    lanes = [aligner.y.word_select(i, columns.act_bits).as_signed() for i in range(columns.tile_k)]
    behind = [delay(m, value, columns.edge_stages, control.advance) for value in ((taken, phase) if several else ())]
    return Edge(control, lanes, aligner.exponent, *(behind or (taken, None)))


def finish(m: Module, unit: Any, columns: Columns, edge: Edge, terms: list[list[Value]]) -> None:
    """Drive `o_psum`: in each column the terms of its total, which stand in registers, meet its partial sum.

    Where a vector is worked on in several cycles, the terms of all of them add up to its total.
    """
    results = [_column(m, unit, columns, edge, c, column) for c, column in enumerate(terms)]
    m.d.comb += unit.o_psum.payload.as_value().eq(Mux(unit.o_psum.valid, Cat(*results), 0))


def _column(m: Module, unit: Any, columns: Columns, edge: Edge, c: int, terms: list[Value]) -> Value:
    advance = edge.control.advance
    entering = unit.i_act.payload.psum[c]
    first = None
    if edge.phase is not None:
        entering = delay(m, entering, 1, edge.control.advance & edge.control.taken)
        first = delay(m, edge.phase == 0, columns.stages, advance)
    psum = delay(m, entering, columns.psum_stages, advance)
    if columns.summed:
        terms = [_total(m, columns, c, terms, first, advance)]
    if columns.is_float:
        return _float_sum(m, columns, edge, c, terms[0], psum)
    m.submodules[f"adder_{c}"] = adder = ResultAdder(_widest(terms), len(terms), columns.acc_bits, columns.overflow)
    m.d.comb += [adder.advance.eq(advance), adder.terms.eq(_packed(terms)), adder.psum.eq(psum)]
    return adder.psum_out


def _total(m: Module, columns: Columns, c: int, terms: list[Value], first: Value | None, advance: Value) -> Value:
    """The exact total of a tile in its register."""
    m.submodules[f"total_{c}"] = total = Total(_widest(terms), len(terms), columns.total_bits, first is not None)
    m.d.comb += [total.advance.eq(advance), total.terms.eq(_packed(terms))]
    if first is not None:
        m.d.comb += total.first.eq(first)
    return total.total


def _float_sum(m: Module, columns: Columns, edge: Edge, c: int, total: Value, psum: Value) -> Value:
    """The total in single precision, then its sum with the partial sum."""
    advance, exponent = edge.control.advance, edge.exponent
    assert exponent is not None
    if edge.phase is not None:
        exponent = delay(m, exponent, 1, advance & edge.taken)
    exponent = delay(m, exponent, columns.stages + 1, advance)
    m.submodules[f"rounder_{c}"] = rounder = Rounder(columns.total_bits, columns.act_bits)
    m.submodules[f"adder_{c}"] = adder = SingleAdder()
    m.d.comb += [
        rounder.advance.eq(advance),
        rounder.total.eq(total),
        rounder.exponent.eq(exponent),
        adder.advance.eq(advance),
        adder.a.eq(psum),
        adder.b.eq(rounder.rounded),
    ]
    return adder.total


def _widest(terms: list[Value]) -> int:
    return max(len(term) for term in terms)


def _packed(terms: list[Value]) -> Value:
    """Signed terms side by side, all as wide as the widest."""
    width = _widest(terms)
    return Cat(*(Cat(term, term[-1].replicate(width - len(term))) for term in terms))


@shared
class ResultAdder(Component):
    """psum_out <= psum + the sum of `count` signed terms of `bits` bits, fitted once, when `advance`."""

    def __init__(self, bits: int, count: int, acc_bits: int, overflow: Overflow) -> None:
        self.bits, self.count, self.acc_bits, self.overflow = bits, count, acc_bits, overflow
        super().__init__(
            {
                "advance": In(1),
                "terms": In(unsigned(count * bits)),
                "psum": In(signed(acc_bits)),
                "psum_out": Out(signed(acc_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        psum = Signal.like(self.psum_out, name="psum_reg", reset_less=True)
        terms = [self.terms.word_select(i, self.bits).as_signed() for i in range(self.count)]
        fitted = fit(m, sum(terms, start=self.psum), self.acc_bits, self.overflow)
        with m.If(self.advance):
            m.d.sync += psum.eq(fitted)
        m.d.comb += self.psum_out.eq(psum)
        return m


@shared
class Total(Component):
    """total <= the sum of `count` signed terms of `bits` bits when `advance`, which `total_bits` hold.

    Where totals come in several cycles: plus the total so far, but when `first`.
    """

    def __init__(self, bits: int, count: int, total_bits: int, several: bool) -> None:
        self.bits, self.count, self.total_bits, self.several = bits, count, total_bits, several
        super().__init__(
            {"advance": In(1), "terms": In(unsigned(count * bits)), "total": Out(signed(total_bits))}
            | ({"first": In(1)} if several else {})
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        total = Signal.like(self.total, name="total_reg", reset_less=True)
        terms = [self.terms.word_select(i, self.bits).as_signed() for i in range(self.count)]
        if self.several:
            terms.append(Mux(self.first, 0, total).as_signed())
        with m.If(self.advance):
            m.d.sync += total.eq(sum(terms[1:], start=terms[0]))
        m.d.comb += self.total.eq(total)
        return m


@shared
class Rounder(Component):
    """rounded <= total 2^(exponent - 13 - act_bits) in single precision, rounded to nearest even, when `advance`."""

    def __init__(self, total_bits: int, act_bits: int) -> None:
        self.total_bits, self.act_bits = total_bits, act_bits
        super().__init__(
            {"advance": In(1), "total": In(signed(total_bits)), "exponent": In(5), "rounded": Out(unsigned(32))}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rounded = Signal(32, name="rounded_reg", reset_less=True)
        exponent = Signal(signed(7))
        m.d.comb += exponent.eq(self.exponent - 13 - self.act_bits)
        single = to_single(m, self.total, exponent)
        with m.If(self.advance):
            m.d.sync += rounded.eq(single)
        m.d.comb += self.rounded.eq(rounded)
        return m


def word_chain(m: Module, entering: Value, count: int, load: Value, name: str) -> list[Value]:
    """`count` words that are shifted in one a load beat: what entered first is first in the result."""
    held, value = [], entering
    for i in range(count):
        register = Signal(Shape.cast(value.shape()), name=f"{name}_{i}", reset_less=True)
        with m.If(load):
            m.d.sync += register.eq(value)
        held.append(register)
        value = register
    return held[::-1]
