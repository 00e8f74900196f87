"""Array of shift-and-add PEs with scales and zero points of groups; contract and parameters in models/mixpe.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from models.dot import Dot
from models.mixpe import MixpeParams
from rtl import columns
from rtl.arith import delay
from rtl.columns import Edge
from rtl.dot import column_sums, entering, held_code
from rtl.emit import shared


def streams(params: MixpeParams) -> dict[str, Any]:
    """`i_weight` {weight[cols], scale[cols], zero[cols] where there are zero points}, and those of rtl/columns.py."""
    p = params
    words = {"weight": signed(p.weight_bits), "scale": unsigned(p.scale_bits)}
    if p.zero_points:
        words["zero"] = signed(p.weight_bits)
    return columns.streams(p.columns, {name: data.ArrayLayout(word, p.cols) for name, word in words.items()})


class Mixpe(Component):
    """The columns with their scalers and control; payload is zero while an output is not valid."""

    def __init__(self, params: MixpeParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        edge = columns.enter(m, self, p.columns)
        acts = entering(m, p.dot, p.columns, edge)
        codes = [self.i_weight.payload.weight[c] for c in range(p.cols)]
        sums = column_sums(m, p.dot, MixpePe, edge, acts, codes)
        if p.zero_points:
            sums = self._without_zeros(m, edge, sums)
        columns.finish(m, self, p.columns, edge, [[self._scaled(m, edge, c, sums[c])] for c in range(p.cols)])
        return m

    def _without_zeros(self, m: Module, edge: Edge, sums: list[Value]) -> list[Value]:
        p, advance = self.params, edge.control.advance
        whole = Signal(signed(p.act_sum_bits))
        m.d.comb += whole.eq(sum(edge.acts[1:], start=edge.acts[0]))
        act_sum = delay(m, whole, 2, advance)
        differences = []
        for c, total in enumerate(sums):
            m.submodules[f"zero_{c}"] = corrector = ZeroPoint(p)
            m.d.comb += [
                corrector.advance.eq(advance),
                corrector.load.eq(edge.control.load),
                corrector.zero.eq(self.i_weight.payload.zero[c]),
                corrector.total.eq(total),
                corrector.act_sum.eq(act_sum),
            ]
            differences.append(corrector.difference)
        return differences

    def _scaled(self, m: Module, edge: Edge, c: int, value: Value) -> Value:
        m.submodules[f"scaler_{c}"] = scaler = GroupScaler(self.params)
        m.d.comb += [
            scaler.advance.eq(edge.control.advance),
            scaler.load.eq(edge.control.load),
            scaler.scale.eq(self.i_weight.payload.scale[c]),
            scaler.value.eq(value),
        ]
        return scaler.scaled


@shared
class MixpePe(Component):
    """product <= act times the held weight when `advance`: act at every set bit, subtracted at the top one."""

    def __init__(self, dot: Dot) -> None:
        super().__init__(
            {
                "advance": In(1),
                "load": In(1),
                "code": In(dot.code_bits),
                "held": Out(dot.code_bits),
                "act": In(unsigned(dot.act_bits)),
                "product": Out(signed(dot.product_bits)),
            }
        )

    @property
    def terms(self) -> list[Value]:
        return [self.product]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        weight = held_code(m, self)
        picked = [(self.act & bit.replicate(len(self.act))).as_signed() for bit in weight]
        *added, subtracted = [value << i for i, value in enumerate(picked)]
        product = Signal.like(self.product, name="product_reg", reset_less=True)
        with m.If(self.advance):
            m.d.sync += product.eq(sum(added[1:], start=added[0]) - subtracted)
        m.d.comb += self.product.eq(product)
        return m


@shared
class ZeroPoint(Component):
    """difference <= total - zero times act_sum, when `advance`; the zero point is taken when `load`."""

    def __init__(self, params: MixpeParams) -> None:
        p = params
        super().__init__(
            {
                "advance": In(1),
                "load": In(1),
                "zero": In(signed(p.weight_bits)),
                "total": In(signed(p.dot.sum_bits)),
                "act_sum": In(signed(p.act_sum_bits)),
                "difference": Out(signed(p.difference_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        zero = delay(m, self.zero, 1, self.load)
        difference = Signal.like(self.difference, name="difference_reg", reset_less=True)
        with m.If(self.advance):
            m.d.sync += difference.eq(self.total - zero * self.act_sum)
        m.d.comb += self.difference.eq(difference)
        return m


@shared
class GroupScaler(Component):
    """scaled <= value times the scale when `advance`; the scale is taken when `load`."""

    def __init__(self, params: MixpeParams) -> None:
        p = params
        super().__init__(
            {
                "advance": In(1),
                "load": In(1),
                "scale": In(unsigned(p.scale_bits)),
                "value": In(signed(p.difference_bits)),
                "scaled": Out(signed(p.columns.total_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        scale = delay(m, self.scale, 1, self.load)
        scaled = Signal.like(self.scaled, name="scaled_reg", reset_less=True)
        with m.If(self.advance):
            m.d.sync += scaled.eq(self.value * scale)
        m.d.comb += self.scaled.eq(scaled)
        return m
