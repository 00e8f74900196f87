"""A PE's multiply-accumulate and an array's edges in each style of models/style.py."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, Value, signed, unsigned
from amaranth.lib.wiring import Component, In, Out

from models.bits import Overflow, signed_bits, signed_range
from models.style import Style
from rtl import booth, ent
from rtl.arith import compress, delay, fit, product_rows
from rtl.emit import shared


def enter(m: Module, style: Style, operand: Value, advance: Value, *, reset: bool = False) -> Value:
    """The signed operand as it travels: behind an encoder and its register, or as it is."""
    return meet(m, style, encode(m, style, operand), advance, reset=reset)


def encode(m: Module, style: Style, operand: Value) -> Value:
    """The signed operand in the form in which it travels, from an encoder where the style has one at the edge."""
    return ent.encode(m, operand) if style is Style.ENT else operand


def meet(m: Module, style: Style, value: Value, advance: Value, *, reset: bool = False) -> Value:
    """What goes beside an entering operand, behind as many registers."""
    return delay(m, value, int(style is Style.ENT), advance, reset=reset)


def widen(style: Style, psum: Value) -> Value:
    """A partial sum as it is inside the array: a carry-save pair begins with no carries."""
    return Cat(psum, Const(0, len(psum))) if style is Style.OPT1 else psum


def multiply(m: Module, style: Style, moving: Value, held: Value, width: int) -> Value:
    """moving * held, signed, modulo 2^width, by a multiplier or from digits; `moving` as it travels, `held` signed."""
    if style is Style.MAC:
        return (moving.as_signed() * held)[:width].as_signed()
    sum_, carry = compress(m, product_rows(m, ent.digits(moving), held, width), width)
    return (sum_ + carry)[:width].as_signed()


def multiply_add(
    m: Module, style: Style, moving: Value, held: Value, psum: Value, acc_bits: int, overflow: Overflow
) -> Value:
    """psum + moving * held in `acc_bits` bits; `moving` as it travels, `held` signed."""
    if style is Style.MAC:
        return fit(m, psum.as_signed() + moving.as_signed() * held, acc_bits, overflow)
    if style is Style.OPT1:
        rows = product_rows(m, booth.digits(moving.as_signed()), held, acc_bits)
        return Cat(*compress(m, [*rows, psum[:acc_bits], psum[acc_bits:]], acc_bits))
    # a sum that wraps needs no bit above the register; one that saturates must be exact first
    width = acc_bits if overflow is Overflow.WRAP else _exact_bits(acc_bits, len(moving) - 1, len(held))
    return fit(m, _digits_added(m, moving, held, psum, width), acc_bits, overflow)


def _exact_bits(acc_bits: int, moving_bits: int, held_bits: int) -> int:
    """Of an accumulator's value plus a product: each at its greatest, or the accumulator at its least with a product
    of the same magnitude."""
    (low, high), product = signed_range(acc_bits), 1 << (moving_bits + held_bits - 2)
    return signed_bits(low - product, high + product)


def _digits_added(m: Module, code: Value, held: Value, psum: Value, width: int) -> Value:
    sum_, carry = compress(m, [*product_rows(m, ent.digits(code), held, width), _extended(psum, width)], width)
    return (sum_ + carry)[:width].as_signed()


def _extended(psum: Value, width: int) -> Value:
    return Cat(psum, psum[-1].replicate(width - len(psum)))


def leave(m: Module, style: Style, psum: Value, advance: Value) -> Value:
    """The partial sum as a number: a carry-save pair goes through a resolving adder and its register."""
    if style is not Style.OPT1:
        return psum
    adder = ResolvingAdder(len(psum) // 2)
    m.submodules += adder
    m.d.comb += [adder.advance.eq(advance), adder.pair.eq(psum)]
    return adder.total


@shared
class ResolvingAdder(Component):
    """total <= sum + carry, modulo 2^bits, when `advance`; the pair's sum word is the lower half."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        super().__init__({"advance": In(1), "pair": In(unsigned(2 * bits)), "total": Out(signed(bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        total = Signal.like(self.total, name="total_reg", reset_less=True)
        with m.If(self.advance):
            m.d.sync += total.eq((self.pair[: self.bits] + self.pair[self.bits :])[: self.bits])
        m.d.comb += self.total.eq(total)
        return m
