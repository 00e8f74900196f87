"""Parallel fast Walsh-Hadamard transform; contract and parameters in models/hadamard.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.hadamard import HadamardParams
from rtl.emit import shared
from rtl.stationary import Pipeline


@shared
class Butterfly(Component):
    """total <= a + b, difference <= a - b when `advance`; inputs of `width` bits, results one bit wider."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(
            {
                "advance": In(1),
                "a": In(signed(width)),
                "b": In(signed(width)),
                "total": Out(signed(width + 1)),
                "difference": Out(signed(width + 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        total, difference = (Signal(signed(self.width + 1), name=n, reset_less=True) for n in ("sum_reg", "diff_reg"))
        with m.If(self.advance):
            m.d.sync += [total.eq(self.a + self.b), difference.eq(self.a - self.b)]
        m.d.comb += [self.total.eq(total), self.difference.eq(difference)]
        return m


def streams(params: HadamardParams) -> dict[str, Any]:
    """`i_x` {x[points]} and `o_y` {y[points]}."""
    x = data.StructLayout({"x": data.ArrayLayout(signed(params.in_bits), params.points)})
    y = data.StructLayout({"y": data.ArrayLayout(signed(params.out_bits), params.points)})
    return {"i_x": In(stream.Signature(x)), "o_y": Out(stream.Signature(y))}


class Hadamard(Component):
    """All butterflies side by side; payload is zero while the output is not valid."""

    def __init__(self, params: HadamardParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        m.submodules.pipeline = pipeline = Pipeline(p.stages)
        m.d.comb += [
            pipeline.taken.eq(self.i_x.valid & self.i_x.ready),
            pipeline.accept.eq(self.o_y.ready),
            self.i_x.ready.eq(pipeline.advance),
            self.o_y.valid.eq(pipeline.shown),
        ]
        lanes: list[Value] = [self.i_x.payload.x[i] for i in range(p.points)]
        # A negated input costs nothing: +-a +- b is, up to the sign of a, one of a + b and a - b. The sign of a
        # stays due on both results; at the end it is that of input 0, which is never negated.
        negated = [bool(p.signs >> i & 1) for i in range(p.points)]
        for stage in range(p.stages):
            for i in (i for i in range(p.points) if not i >> stage & 1):
                j = i | 1 << stage
                m.submodules[f"butterfly_{stage}_{i}"] = cell = Butterfly(p.in_bits + stage)
                m.d.comb += [cell.advance.eq(pipeline.advance), cell.a.eq(lanes[i]), cell.b.eq(lanes[j])]
                swapped = negated[i] != negated[j]
                lanes[i], lanes[j] = (cell.difference, cell.total) if swapped else (cell.total, cell.difference)
                negated[j] = negated[i]
        m.d.comb += self.o_y.payload.as_value().eq(Mux(self.o_y.valid, Cat(*lanes), 0))
        return m
