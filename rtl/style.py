"""A PE's multiply-accumulate and an array's edges in each style of models/style.py."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, Value, signed, unsigned
from amaranth.lib.wiring import Component, In, Out

from models.bits import Overflow
from models.style import Style
from rtl import booth, ent
from rtl.arith import compress, delay, fit, product_rows
from rtl.emit import shared


def enter(m: Module, style: Style, operand: Value, advance: Value, *, reset: bool = False) -> Value:
    """The signed operand as it travels: behind an encoder and its register, or as it is."""
    encoded = ent.encode(m, operand) if style is Style.ENT else operand
    return meet(m, style, encoded, advance, reset=reset)


def meet(m: Module, style: Style, value: Value, advance: Value, *, reset: bool = False) -> Value:
    """What goes beside an entering operand, behind as many registers."""
    return delay(m, value, int(style is Style.ENT), advance, reset=reset)


def widen(style: Style, psum: Value) -> Value:
    """A partial sum as it is inside the array: a carry-save pair begins with no carries."""
    return Cat(psum, Const(0, len(psum))) if style is Style.OPT1 else psum


def multiply_add(m: Module, style: Style, moving: Value, held: Value, psum: Value, params: object) -> Value:
    """psum + moving * held as `params.acc_bits` and `params.overflow` say; `moving` as it travels, `held` signed."""
    acc_bits, overflow = params.acc_bits, params.overflow  # type: ignore[attr-defined]  # every array has them
    if style is Style.MAC:
        return fit(m, psum.as_signed() + moving.as_signed() * held, acc_bits, overflow)
    if style is Style.OPT1:
        rows = product_rows(m, booth.digits(moving.as_signed()), held, acc_bits)
        return Cat(*compress(m, [*rows, psum[:acc_bits], psum[acc_bits:]], acc_bits))
    # a sum that wraps needs no bit above the register; one that saturates must be exact first
    exact = max(acc_bits, len(moving) - 1 + len(held)) + 1
    return fit(
        m, _digits_added(m, moving, held, psum, acc_bits if overflow is Overflow.WRAP else exact), acc_bits, overflow
    )


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
