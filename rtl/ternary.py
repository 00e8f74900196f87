"""Array that adds, subtracts or skips, and its decoders; contract and parameters in models/ternary.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from models.dot import Dot
from models.ternary import CODE_BITS, DIGITS, Packing, TernaryParams
from rtl import columns
from rtl.dot import column_sums, entering, held_code
from rtl.emit import shared


def streams(params: TernaryParams) -> dict[str, Any]:
    """`i_weight` {weight[cols]} of bytes, and those of rtl/columns.py."""
    return columns.streams(params.columns, {"weight": data.ArrayLayout(unsigned(8), params.cols)})


class Ternary(Component):
    """The columns with their decoders and control; payload is zero while an output is not valid."""

    def __init__(self, params: TernaryParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        edge = columns.enter(m, self, p.columns)
        acts = entering(m, p.dot, p.columns, edge)
        codes = [self._codes(m, c) for c in range(p.cols)]
        sums = column_sums(m, p.dot, TernaryPe, edge, acts, codes)
        columns.finish(m, self, p.columns, edge, [[total] for total in sums])
        return m

    def _codes(self, m: Module, c: int) -> Value:
        """The codes in the byte that enters column c."""
        byte = self.i_weight.payload.weight[c]
        if self.params.packing is Packing.TWO:
            return byte
        m.submodules[f"decoder_{c}"] = decoder = Decoder()
        m.d.comb += decoder.byte.eq(byte)
        return decoder.codes


@shared
class Decoder(Component):
    """The codes of the digits of a byte, from the highest digit down: what is left of it is compared with the digit's
    weight and with twice that."""

    def __init__(self) -> None:
        super().__init__({"byte": In(unsigned(8)), "codes": Out(unsigned(DIGITS * CODE_BITS))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        left: Value = self.byte
        codes: list[Value] = []
        for i in range(DIGITS - 1, 0, -1):
            weight = 3**i
            some, two = Signal(name=f"some_{i}"), Signal(name=f"two_{i}")
            rest = Signal(range(weight), name=f"rest_{i}")
            m.d.comb += [
                some.eq(left >= weight),
                two.eq(left >= 2 * weight),
                rest.eq(left - Mux(two, 2 * weight, Mux(some, weight, 0))),
            ]
            codes.insert(0, Cat(some, two))
            left = rest
        m.d.comb += self.codes.eq(Cat(left.any(), left[1], *codes))
        return m


@shared
class TernaryPe(Component):
    """Zero, the activation, or its complement and a one that is due, as the held code says."""

    def __init__(self, dot: Dot) -> None:
        super().__init__(
            {
                "load": In(1),
                "code": In(CODE_BITS),
                "held": Out(CODE_BITS),
                "act": In(unsigned(dot.act_bits)),
                "value": Out(signed(dot.act_bits)),
                "due": Out(1),
            }
        )

    @property
    def terms(self) -> list[Value]:
        return [self.value, self.due]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        some, negative = held_code(m, self)
        picked = self.act & some.replicate(len(self.act))
        m.d.comb += [self.value.eq(picked ^ negative.replicate(len(self.act))), self.due.eq(negative)]
        return m
