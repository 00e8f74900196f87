"""Dequantizer; contract and parameters in models/dequantizer.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.bits import Overflow, Rounding
from models.dequantizer import DEQUANT_STAGES, DequantizerParams, OutFormat, ScaleFormat
from models.floats import HALF_DIGITS, HALF_UNIT, SINGLE_DIGITS
from models.quantizer import E8M0_BIAS
from rtl.arith import delay, fit, shifted_right
from rtl.emit import shared
from rtl.floats import absolute, leading_zeros, named, unpack_half
from rtl.stationary import Pipeline


def streams(params: DequantizerParams) -> dict[str, Any]:
    """`i_q` {q[lanes]}, `i_scale` {scale} or {scale, zero}, and `o_y` {y[lanes]}."""
    p = params
    q = data.StructLayout({"q": data.ArrayLayout(signed(p.bits), p.lanes)})
    zero = {"zero": signed(p.bits)} if p.zero_points else {}
    number = unsigned(p.out_bits) if p.is_float else signed(p.out_bits)
    y = data.StructLayout({"y": data.ArrayLayout(number, p.lanes)})
    scale = data.StructLayout({"scale": unsigned(p.scale_bits), **zero})
    return {"i_q": In(stream.Signature(q)), "i_scale": In(stream.Signature(scale)), "o_y": Out(stream.Signature(y))}


class Dequantizer(Component):
    """The dequantizer behind its streams; payload is zero while the output is not valid."""

    def __init__(self, params: DequantizerParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m, p = Module(), self.params
        m.submodules.pipeline = pipeline = Pipeline(DEQUANT_STAGES)
        take = self._control(m, pipeline)
        mantissa, exponent = self._unpacked(m)
        held = [None if part is None else _held(m, part, take) for part in (mantissa, exponent, self._zero())]
        moved = None if held[1] is None else delay(m, held[1], 1, pipeline.advance)
        numbers = []
        for i in range(p.lanes):
            m.submodules[f"lane_{i}"] = lane = DequantizerLane(p)
            m.d.comb += [lane.advance.eq(pipeline.advance), lane.q.eq(self.i_q.payload.q[i])]
            joined = zip(("mantissa", "exponent", "zero"), (held[0], moved, held[2]), strict=True)
            m.d.comb += [getattr(lane, name).eq(value) for name, value in joined if value is not None]
            numbers.append(lane.y)
        m.d.comb += self.o_y.payload.as_value().eq(Mux(self.o_y.valid, Cat(*numbers), 0))
        return m

    def _control(self, m: Module, pipeline: Pipeline) -> Value:
        """As ScaledControl in models/dequantizer.py has it; gives whether a scale is taken."""
        p, held = self.params, Signal(name="held")
        taken = named(m, self.i_q.valid & self.i_q.ready)
        last: Value = Const(1, 1)
        if p.group_beats > 1:
            entered = Signal(range(p.group_beats), name="entered")
            last = named(m, entered == p.group_beats - 1)
            with m.If(taken):
                m.d.sync += entered.eq(Mux(last, 0, entered + 1))
        take = named(m, self.i_scale.valid & self.i_scale.ready)
        m.d.sync += held.eq(take | (held & ~(taken & last)))
        m.d.comb += [
            pipeline.taken.eq(taken),
            pipeline.accept.eq(self.o_y.ready),
            self.i_q.ready.eq(held & pipeline.advance),
            self.i_scale.ready.eq(~held | (taken & last)),
            self.o_y.valid.eq(pipeline.shown),
        ]
        return take

    def _unpacked(self, m: Module) -> tuple[Value | None, Value | None]:
        """Mantissa and exponent of a scale that enters, as far as its format has them."""
        scale = self.i_scale.payload.scale
        match self.params.scale_format:
            case ScaleFormat.FP16:
                _, exponent, mantissa = unpack_half(m, scale)
                return mantissa, exponent
            case ScaleFormat.E8M0:
                return None, scale
        return scale, None

    def _zero(self) -> Value | None:
        return self.i_scale.payload.zero.as_unsigned() if self.params.zero_points else None


def _held(m: Module, value: Value, enable: Value) -> Signal:
    register = Signal(len(value), reset_less=True)
    with m.If(enable):
        m.d.sync += register.eq(value)
    return register


@shared
class DequantizerLane(Component):
    """y <= what leaves of q, DEQUANT_STAGES registers that move on `advance`; `exponent` comes one stage later."""

    def __init__(self, params: DequantizerParams) -> None:
        self.params = p = params
        parts = {"mantissa": p.mantissa_bits, "exponent": p.exponent_bits, "zero": p.bits * p.zero_points}
        scale = {name: In(width) for name, width in parts.items() if width}
        super().__init__({"advance": In(1), "q": In(signed(p.bits)), **scale, "y": Out(p.out_bits)})

    def elaborate(self, platform: object) -> Module:
        m, p = Module(), self.params
        product = Signal(signed(p.product_bits), name="product", reset_less=True)
        y = Signal(p.out_bits, name="number", reset_less=True)
        difference = self.q - self.zero.as_signed() if p.zero_points else self.q
        entering = difference * self.mantissa if p.mantissa_bits else difference
        leaving = (
            self._float(m, product) if p.is_float else rounded_integer(m, product, p.shift, p.rounding, p.out_bits)
        )
        with m.If(self.advance):
            m.d.sync += [product.eq(entering), y.eq(leaving)]
        m.d.comb += self.y.eq(y)
        return m

    def _float(self, m: Module, product: Value) -> Value:
        p = self.params
        offset = {ScaleFormat.FP16: HALF_UNIT, ScaleFormat.E8M0: E8M0_BIAS}.get(p.scale_format, 0)
        exponent = (self.exponent if p.exponent_bits else Const(0, 1)) - offset
        digits, exponent_bits = (HALF_DIGITS, 5) if p.out_format is OutFormat.FP16 else (SINGLE_DIGITS, 8)
        return packed_float(m, product, exponent, digits, exponent_bits)


def rounded_integer(m: Module, value: Value, shift: int, rounding: Rounding, bits: int) -> Value:
    """The signed value / 2^shift, rounded, limited to `bits` bits."""
    if shift >= len(value):
        value = value.as_signed() + Const(0, signed(shift + 2))  # so that there are bits to look at
    negative, whole = value[-1], value.as_signed() >> shift
    half, below = (value[shift - 1], value[: shift - 1].any()) if shift else (Const(0, 1), Const(0, 1))
    match rounding:
        case Rounding.NEAREST_EVEN:
            up = half & (below | whole[0])
        case Rounding.NEAREST_AWAY:
            up = half & (below | ~negative)
        case Rounding.TRUNCATE:
            up = negative & (half | below)
        case _:
            up = Const(0, 1)
    return fit(m, named(m, whole + up), bits, Overflow.SATURATE)


def packed_float(m: Module, value: Value, exponent: Value, digits: int, exponent_bits: int) -> Value:
    """The pattern of the signed value * 2^exponent with `digits` binary digits, rounded to nearest, ties to even.

    Gradual underflow; infinity from overflow; no number is -0 unless a negative one underflows to it.
    """
    negative, magnitude = absolute(m, value)
    zeros = leading_zeros(m, magnitude)
    width, most = max(len(magnitude), digits + 1), (1 << exponent_bits) - 1
    field = Signal(signed(14))
    """biased exponent of the top digit"""
    m.d.comb += field.eq(exponent - zeros + (len(magnitude) - 1 + (most >> 1)))
    normal = named(m, field > 0)
    word = Cat(Const(0, width - len(magnitude)), named(m, (magnitude << zeros)[: len(magnitude)]))
    kept, lost = shifted_right(m, word, named(m, Mux(normal, 0, 1 - field)[:13]))
    excess = width - digits
    up = kept[excess - 1] & (kept[: excess - 1].any() | lost | kept[excess])
    # the top digit of a normal number adds one to the exponent below it, and so does a mantissa that rounds up to 2
    below = named(m, Mux(normal, (field - 1)[:exponent_bits], 0))
    pattern = named(m, (Cat(Const(0, digits - 1), below) + kept[excess:] + up)[: digits - 1 + exponent_bits])
    infinity = Const(most << (digits - 1), digits - 1 + exponent_bits)
    finite = Mux(field >= most, infinity, pattern)
    return Mux(magnitude.any(), Cat(finite, negative), 0)
