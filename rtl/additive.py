"""Array of additions and subtractions for weights of -1 and +1; contract and parameters in models/additive.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from models.additive import BYTE_ROWS, AdditiveParams
from models.dot import Dot
from rtl import columns
from rtl.dot import column_sums, entering, held_code
from rtl.emit import shared


def streams(params: AdditiveParams) -> dict[str, Any]:
    """`i_weight` {weight[cols]} of bytes, and those of rtl/columns.py."""
    return columns.streams(params.columns, {"weight": data.ArrayLayout(unsigned(BYTE_ROWS), params.cols)})


class Additive(Component):
    """The columns with their control; payload is zero while an output is not valid."""

    def __init__(self, params: AdditiveParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        edge = columns.enter(m, self, p.columns)
        acts = entering(m, p.dot, p.columns, edge)
        codes = [self.i_weight.payload.weight[c] for c in range(p.cols)]
        sums = column_sums(m, p.dot, AdditivePe, edge, acts, codes)
        columns.finish(m, self, p.columns, edge, [[total] for total in sums])
        return m


@shared
class AdditivePe(Component):
    """The activation, or its complement and a one that is due, as the held bit says."""

    def __init__(self, dot: Dot) -> None:
        super().__init__(
            {
                "load": In(1),
                "code": In(1),
                "held": Out(1),
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
        negative = ~held_code(m, self)
        m.d.comb += [self.value.eq(self.act ^ negative.replicate(len(self.act))), self.due.eq(negative)]
        return m
