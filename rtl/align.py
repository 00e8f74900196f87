"""Pre-alignment of FP16 values; contract and parameters in models/align.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.align import ALIGN_STAGES, EXPONENT_BITS, AlignParams
from models.bits import Rounding
from models.floats import HALF_BITS, HALF_DIGITS
from rtl.arith import largest, round_up, shifted_right
from rtl.emit import shared
from rtl.floats import unpack_half
from rtl.stationary import Pipeline


def streams(params: AlignParams) -> dict[str, Any]:
    """`i_x` {x[points]} of FP16 patterns and `o_y` {y[points], exponent}."""
    x = data.StructLayout({"x": data.ArrayLayout(unsigned(HALF_BITS), params.points)})
    y = data.ArrayLayout(signed(params.bits), params.points)
    return {
        "i_x": In(stream.Signature(x)),
        "o_y": Out(stream.Signature(data.StructLayout({"y": y, "exponent": EXPONENT_BITS}))),
    }


class Align(Component):
    """An aligner behind a stream; payload is zero while the output is not valid."""

    def __init__(self, params: AlignParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        m.submodules.pipeline = pipeline = Pipeline(ALIGN_STAGES)
        m.submodules.aligner = aligner = Aligner(p.points, p.bits, p.rounding)
        m.d.comb += [
            pipeline.taken.eq(self.i_x.valid & self.i_x.ready),
            pipeline.accept.eq(self.o_y.ready),
            self.i_x.ready.eq(pipeline.advance),
            self.o_y.valid.eq(pipeline.shown),
            aligner.advance.eq(pipeline.advance),
            aligner.x.eq(self.i_x.payload.as_value()),
            self.o_y.payload.as_value().eq(Mux(self.o_y.valid, Cat(aligner.y, aligner.exponent), 0)),
        ]
        return m


@shared
class Aligner(Component):
    """y, exponent <= the aligned integers of x and their exponent, behind ALIGN_STAGES registers, when `advance`."""

    def __init__(self, points: int, bits: int, rounding: Rounding) -> None:
        self.points, self.bits, self.rounding = points, bits, rounding
        super().__init__(
            {
                "advance": In(1),
                "x": In(unsigned(points * HALF_BITS)),
                "y": Out(unsigned(points * bits)),
                "exponent": Out(EXPONENT_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        x, y = Signal.like(self.x, name="x_reg", reset_less=True), Signal.like(self.y, name="y_reg", reset_less=True)
        common, exponent = (Signal(EXPONENT_BITS, name=n, reset_less=True) for n in ("largest_reg", "exponent_reg"))
        entering = [unpack_half(m, self.x.word_select(i, HALF_BITS))[1] for i in range(self.points)]
        values = [self._shifted(m, x.word_select(i, HALF_BITS), common) for i in range(self.points)]
        greatest = largest(m, entering)
        with m.If(self.advance):
            m.d.sync += [x.eq(self.x), common.eq(greatest), y.eq(Cat(*values)), exponent.eq(common)]
        m.d.comb += [self.y.eq(y), self.exponent.eq(exponent)]
        return m

    def _shifted(self, m: Module, pattern: Value, common: Value) -> Value:
        """The signed integer of one value."""
        negative, exponent, mantissa = unpack_half(m, pattern)
        spare = self.bits - 1 - HALF_DIGITS
        """digits that an integer has beyond the mantissa's, or lacks"""
        point = 1 + max(-spare, 0)
        away = Signal(EXPONENT_BITS)
        m.d.comb += away.eq(common - exponent)
        kept, lost = shifted_right(m, Cat(Const(0, 1 + max(spare, 0)), mantissa), away)
        whole, guard, below = kept[point:], kept[point - 1], kept[: point - 1].any() | lost
        magnitude = Signal(self.bits)
        m.d.comb += magnitude.eq(whole + round_up(self.rounding, negative, whole[0], guard, below))
        # the top bit is set where rounding made one more than the largest magnitude
        limited = Cat(magnitude[:-1] | magnitude[-1].replicate(self.bits - 1), Const(0, 1))
        return ((limited ^ negative.replicate(self.bits)) + negative)[: self.bits]
