"""Look-up array whose scales are sums of powers of two; contract and parameters in models/shiftadd.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from models.shiftadd import ShiftAddParams
from rtl.emit import shared
from rtl.lutgemm import array_streams, build_array


def _word(params: ShiftAddParams) -> data.ArrayLayout:
    return data.ArrayLayout(unsigned(params.term_bits), params.num_terms)


def streams(params: ShiftAddParams) -> dict[str, Any]:
    """Those of rtl/lutgemm.py, with scale[cols][num_terms] of term codes."""
    return array_streams(params, _word(params))


class ShiftAdd(Component):
    """The look-up array with a shifter for each scale; payload is zero while an output is not valid."""

    def __init__(self, params: ShiftAddParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        return build_array(self, _word(self.params), lambda: Shifter(self.params))


@shared
class Shifter(Component):
    """scaled <= the sum of the value shifted by each term of `word`, negated where the term says so, when `advance`."""

    def __init__(self, params: ShiftAddParams) -> None:
        p = self.params = params
        super().__init__(
            {
                "advance": In(1),
                "value": In(signed(p.array.sum_bits)),
                "word": In(unsigned(p.word_bits)),
                "scaled": Out(signed(p.product_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        scaled = Signal.like(self.scaled, name="scaled_reg", reset_less=True)
        terms = [_term(m, p, self.value, self.word.word_select(i, p.term_bits)) for i in range(p.num_terms)]
        with m.If(self.advance):
            m.d.sync += scaled.eq(sum(terms[1:], start=terms[0]))
        m.d.comb += self.scaled.eq(scaled)
        return m


def _term(m: Module, params: ShiftAddParams, value: Value, code: Value) -> Value:
    """`value` shifted and signed as the term's code says; zero for code 0."""
    shifted = Signal(params.array.sum_bits + params.max_shift)
    amount = (code >> 1) - 1
    m.d.comb += shifted.eq(Mux(code == 0, 0, value << amount[: max(params.max_shift.bit_length(), 1)]))
    negative = code[0]
    return (shifted ^ negative.replicate(len(shifted))).as_signed() + negative
