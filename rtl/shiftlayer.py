"""Array of shifters for weights that are powers of two; contract and parameters in models/shiftlayer.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from models.dot import Dot
from models.shiftlayer import ShiftlayerParams
from rtl import columns
from rtl.dot import column_sums, entering, held_code
from rtl.emit import shared


def streams(params: ShiftlayerParams) -> dict[str, Any]:
    """`i_weight` {weight[cols]} of codes, and those of rtl/columns.py."""
    return columns.streams(params.columns, {"weight": data.ArrayLayout(unsigned(params.weight_bits), params.cols)})


class Shiftlayer(Component):
    """The columns with their control; payload is zero while an output is not valid."""

    def __init__(self, params: ShiftlayerParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        edge = columns.enter(m, self, p.columns)
        acts = entering(m, p.dot, p.columns, edge)
        codes = [self.i_weight.payload.weight[c] for c in range(p.cols)]
        sums = column_sums(m, p.dot, ShiftlayerPe, edge, acts, codes)
        columns.finish(m, self, p.columns, edge, [[total] for total in sums])
        return m


@shared
class ShiftlayerPe(Component):
    """value <= the activation shifted as the held code says, complemented where it is negative, when `advance`.

    The one that is then due comes from the code itself, which stays while any vector is in the array.
    """

    def __init__(self, dot: Dot) -> None:
        super().__init__(
            {
                "advance": In(1),
                "load": In(1),
                "code": In(dot.code_bits),
                "held": Out(dot.code_bits),
                "act": In(signed(dot.act_bits)),
                "value": Out(signed(dot.product_bits)),
                "due": Out(1),
            }
        )

    @property
    def terms(self) -> list[Value]:
        return [self.value, self.due]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        code = held_code(m, self)
        negative, places = code[0], code[1:]
        value = Signal.like(self.value, name="value_reg", reset_less=True)
        # places are one more than the shift, and none for zero
        shifted = ((self.act << places) >> 1)[: len(value)]
        picked = shifted & places.any().replicate(len(value))
        with m.If(self.advance):
            m.d.sync += value.eq(picked ^ negative.replicate(len(value)))
        m.d.comb += [self.value.eq(value), self.due.eq(negative)]
        return m
