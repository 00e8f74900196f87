"""Array of block-scaled dot products; contract and parameters in models/mxdot.py."""

from __future__ import annotations

from typing import Any, NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.floats import ADD_STAGES, SINGLE_BITS, SINGLE_DIGITS
from models.mxdot import ElementForm, MxdotParams
from rtl.arith import delay
from rtl.emit import shared
from rtl.floats import (
    SINGLE_BIAS,
    SingleAdder,
    SingleSum,
    absolute,
    leading_zeros,
    named,
    round_up,
    sum_stage,
)
from rtl.stationary import stationary_control


def streams(params: MxdotParams) -> dict[str, Any]:
    """`i_weight` {weight[cols], scale[cols]}, `i_act` {act[rows], scale[blocks], psum[cols], last}, `o_psum`
    {psum[cols]}; scales and sums are bit patterns."""
    scale, sums = unsigned(params.scale.bits), unsigned(params.accumulate.bits)
    psum = data.ArrayLayout(sums, params.cols)
    weights = {
        "weight": data.ArrayLayout(_code(params.weight), params.cols),
        "scale": data.ArrayLayout(scale, params.cols),
    }
    acts = {
        "act": data.ArrayLayout(_code(params.act), params.rows),
        "scale": data.ArrayLayout(scale, params.blocks),
    }
    return {
        "i_weight": In(stream.Signature(data.StructLayout(weights))),
        "i_act": In(stream.Signature(data.StructLayout(acts | {"psum": psum, "last": 1}))),
        "o_psum": Out(stream.Signature(data.StructLayout({"psum": psum}))),
    }


def _code(form: ElementForm) -> Shape:
    return unsigned(form.bits) if form.is_float else signed(form.bits)


class Mxdot(Component):
    """The columns with their control; payload is zero while an output is not valid."""

    def __init__(self, params: MxdotParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        control = stationary_control(m, self, p.geometry)
        vectors = [self._entered(m, b, control.advance) for b in range(p.blocks)]
        sums = [self._column(m, c, vectors, control) for c in range(p.cols)]
        m.d.comb += self.o_psum.payload.as_value().eq(Mux(self.o_psum.valid, Cat(*sums), 0))
        return m

    def _entered(self, m: Module, block: int, advance: Value) -> tuple[Value, Value]:
        """A block's activations, behind those of the block before by an addition, and their scale, one stage later."""
        p, payload = self.params, self.i_act.payload
        size = p.block_size * p.act.bits
        acts = payload.act.as_value()[block * size : (block + 1) * size]
        cycles = ADD_STAGES * block
        return delay(m, acts, cycles, advance), delay(m, payload.scale[block], cycles + 1, advance)

    def _column(self, m: Module, column: int, vectors: list[tuple[Value, Value]], control: Any) -> Value:
        """The partial sum of a column, from block to block."""
        p = self.params
        weight, scale = Value.cast(self.i_weight.payload.weight[column]), self.i_weight.payload.scale[column]
        psum = delay(m, self.i_act.payload.psum[column], p.term_stages, control.advance)
        for b, (acts, act_scale) in enumerate(vectors):
            m.submodules[f"block_{column}_{b}"] = block = MxBlock(p)
            m.submodules[f"adder_{column}_{b}"] = adder = _adder(p.accumulate.digits)
            m.d.comb += [
                block.advance.eq(control.advance),
                block.load.eq(control.load),
                block.acts.eq(acts),
                block.act_scale.eq(act_scale),
                block.weight.eq(weight),
                block.scale.eq(scale),
                adder.advance.eq(control.advance),
                adder.a.eq(psum),
                adder.b.eq(block.term),
            ]
            weight, scale, psum = block.weight_out, block.scale_out, adder.total
        return psum


def _adder(digits: int) -> Any:
    return SingleAdder() if digits == SINGLE_DIGITS else NarrowAdder(digits)


@shared
class MxPe(Component):
    """product <= the fixed-point product of the activation and the held weight, when `advance`; held <= weight when
    `load`."""

    def __init__(self, act: ElementForm, weight: ElementForm, product_bits: int) -> None:
        self.forms = (act, weight)
        super().__init__(
            {
                "advance": In(1),
                "load": In(1),
                "act": In(unsigned(act.bits)),
                "weight": In(unsigned(weight.bits)),
                "held": Out(unsigned(weight.bits)),
                "product": Out(signed(product_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        held = Signal.like(self.held, name="held_reg", reset_less=True)
        product = Signal.like(self.product, name="product_reg", reset_less=True)
        act, weight = (_unpack(m, code, form) for code, form in zip((self.act, held), self.forms, strict=True))
        magnitude = named(m, act.significand * weight.significand)
        significand = named(m, Mux(act.negative ^ weight.negative, -magnitude, magnitude))
        places = named(m, act.exponent + weight.exponent)
        # exponents are at least 1, where there are any
        shifted = (significand << places)[sum(form.is_float for form in self.forms) :].as_signed()
        with m.If(self.load):
            m.d.sync += held.eq(self.weight)
        with m.If(self.advance):
            m.d.sync += product.eq(shifted)
        m.d.comb += [self.held.eq(held), self.product.eq(product)]
        return m


class Unpacked(NamedTuple):
    """An element: significand * 2^(exponent - 1), and minus that where negative.

    An integer has its sign in the significand, which is all of it.
    """

    negative: Value
    significand: Value
    exponent: Value


def _unpack(m: Module, code: Value, form: ElementForm) -> Unpacked:
    if not form.is_float:
        return Unpacked(Const(0, 1), code.as_signed(), Const(0, 1))
    return Unpacked(code[-1], *_unpack_magnitude(m, code[:-1], form.fraction_bits))


def _unpack_magnitude(m: Module, code: Value, fraction_bits: int) -> tuple[Value, Value]:
    """Significand and exponent, at least 1, of a code without a sign."""
    fraction, field = code[:fraction_bits], code[fraction_bits:]
    normal = named(m, field.any())
    return named(m, Cat(fraction, normal)), named(m, Cat(field[0] | ~normal, field[1:]))


@shared
class MxBlock(Component):
    """A block of a column: term <= the scaled sum of its products in the accumulator's format, `term_stages` after the
    activations, whose scale comes one stage after them.

    Weights and the block's scale move down when `load`.
    """

    def __init__(self, params: MxdotParams) -> None:
        self.params = params
        weight, scale = unsigned(params.weight.bits), unsigned(params.scale.bits)
        super().__init__(
            {
                "advance": In(1),
                "load": In(1),
                "acts": In(unsigned(params.block_size * params.act.bits)),
                "act_scale": In(scale),
                "weight": In(weight),
                "weight_out": Out(weight),
                "scale": In(scale),
                "scale_out": Out(scale),
                "term": Out(unsigned(params.accumulate.bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        held, total = Signal.like(self.scale, name="scale_reg", reset_less=True), _register(p.sum_bits, "sum_reg")
        term = Signal.like(self.term, name="term_reg", reset_less=True)
        products = self._products(m)
        with m.If(self.load):
            m.d.sync += held.eq(self.scale)
        scaled, exponent = self._scaled(m, total, held)
        rounded = to_accumulator(m, p, scaled, exponent)
        with m.If(self.advance):
            m.d.sync += [total.eq(sum(products[1:], start=products[0])), term.eq(rounded)]
        m.d.comb += [self.scale_out.eq(held), self.term.eq(term)]
        return m

    def _products(self, m: Module) -> list[Value]:
        p, weight, products = self.params, self.weight, []
        for r in range(p.block_size):
            m.submodules[f"pe_{r}"] = pe = MxPe(p.act, p.weight, p.product_bits)
            m.d.comb += [
                pe.advance.eq(self.advance),
                pe.load.eq(self.load),
                pe.act.eq(self.acts.word_select(r, p.act.bits)),
                pe.weight.eq(weight),
            ]
            weight = pe.held
            products.append(pe.product)
        m.d.comb += self.weight_out.eq(weight)
        return products

    def _scaled(self, m: Module, total: Value, held: Value) -> tuple[Value, Value]:
        """The sum times the scales' significands, and the sum of their exponents."""
        p = self.params
        exponent = _register(p.exponent_bits, "exponent_reg", unsigned)
        if not p.scale.fraction_bits:
            with m.If(self.advance):
                m.d.sync += exponent.eq(self.act_scale + held)
            return total, exponent
        act, weight = (_unpack_magnitude(m, code, p.scale.fraction_bits) for code in (self.act_scale, held))
        significand = _register(2 * p.scale.digits, "significand_reg", unsigned)
        scaled = _register(p.scaled_bits, "scaled_reg")
        with m.If(self.advance):
            m.d.sync += [significand.eq(act[0] * weight[0]), exponent.eq(act[1] + weight[1])]
            m.d.sync += scaled.eq(total * significand)
        return scaled, delay(m, exponent, 1, self.advance)


def _register(bits: int, name: str, shape: Any = signed) -> Signal:
    return Signal(shape(bits), name=name, reset_less=True)


def to_accumulator(m: Module, p: MxdotParams, value: Value, exponent: Value) -> Value:
    """The accumulator's pattern of value * 2^(exponent + 2 scale.unit + unit), rounded to nearest, ties to even.

    Combinational. Subnormals are kept; beyond the greatest finite number the result is that one. Of a value of zero it
    is +0.
    """
    digits = p.accumulate.digits
    negative, whole = absolute(m, value)
    magnitude = whole[:-1]  # widths hold either sign of every sum
    zeros = leading_zeros(m, magnitude)
    word = _leading(named(m, (magnitude << zeros)[: len(magnitude)]), digits + 2)
    # the exponent field that a number with the highest bit set would have
    offset = len(magnitude) - 1 + SINGLE_BIAS + 2 * p.scale.unit + p.unit
    least, most = (2 * e + offset for e in p.scale.exponents)
    field = named(m, exponent + Const(offset, signed(12)) - zeros)
    normal = Const(1, 1)
    if least - (len(magnitude) - 1) < 1:
        normal = named(m, field > 0)
        word = Mux(normal, word, _shifted_down(m, word, named(m, (1 - field)[:11])))
    word = named(m, word)
    mantissa = named(m, word[2:] + round_up(word, 2))
    # the mantissa's top bit adds one to the exponent field below it, and so does a mantissa that rounds up to 2
    below = Mux(normal & word[-1], (field - 1)[:9], 0)
    packed = named(m, mantissa + Cat(Const(0, digits - 1), below))
    if most >= 2 * SINGLE_BIAS:
        infinite = named(m, (field > 2 * SINGLE_BIAS) & word[-1] | packed[digits - 1 : digits + 7].all())
        greatest = ((2 * SINGLE_BIAS + 1) << (digits - 1)) - 1
        packed = Mux(infinite, greatest, packed)
    return named(m, Cat(packed[: digits + 7], negative))


def _leading(value: Value, width: int) -> Value:
    """The upper `width` bits; the lowest of them is set where any below it was."""
    lost = len(value) - width
    if lost <= 0:
        return Cat(Const(0, -lost), value)
    return Cat(value[: lost + 1].any(), value[lost + 1 :])


def _shifted_down(m: Module, word: Value, places: Value) -> Value:
    """`word` shifted to the right; its lowest bit is set where any below it was."""
    for i in range(len(word).bit_length()):
        step = 1 << i
        moved = Cat(word[: step + 1].any(), word[step + 1 :], Const(0, min(step, len(word) - 1)))
        word = named(m, Mux(places[i], moved, word))
    gone = places[len(word).bit_length() :].any()
    return Mux(gone, word.any(), word)


def round_sum(m: Module, total: SingleSum, digits: int) -> Value:
    """The pattern of a sum of `digits` digits: normalised as far as its exponent allows, rounded to nearest, ties to
    even."""
    width = len(total.magnitude)
    # a bit where the exponent would reach 1: counting stops there, and the number stays subnormal
    floor = Const(1 << (width - 1), width) >> total.exponent
    places = leading_zeros(m, total.magnitude | floor)
    word = named(m, _leading(named(m, (total.magnitude << places)[:width]), digits + 2))
    below = Mux(word[-1], (total.exponent - places)[:8], 0)
    packed = named(m, word[2:] + round_up(word, 2) + Cat(Const(0, digits - 1), below))
    fraction, field = packed[: digits - 1], packed[digits - 1 : digits + 7]
    return Cat(fraction & (~field.all()).replicate(digits - 1), field, total.negative)


@shared
class NarrowAdder(Component):
    """SingleAdder for patterns of fewer digits: their upper bits, the lower ones being zero; rounded once."""

    def __init__(self, digits: int) -> None:
        self.digits = digits
        word = unsigned(SINGLE_BITS - SINGLE_DIGITS + digits)
        super().__init__({"advance": In(1), "a": In(word), "b": In(word), "total": Out(word)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        below = Const(0, SINGLE_DIGITS - self.digits)
        entering = sum_stage(m, Cat(below, self.a), Cat(below, self.b))
        aligned = SingleSum(
            *(Signal(len(part), name=f"{name}_reg", reset_less=True) for name, part in entering._asdict().items())
        )
        total = Signal.like(self.total, name="total_reg", reset_less=True)
        leaving = round_sum(m, aligned, self.digits)
        with m.If(self.advance):
            m.d.sync += [register.eq(part) for register, part in zip(aligned, entering, strict=True)]
            m.d.sync += total.eq(leaving)
        m.d.comb += self.total.eq(total)
        return m
