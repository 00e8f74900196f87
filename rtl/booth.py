"""Radix-4 Booth encoder; contract and parameters in models/booth.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Value, signed, unsigned
from amaranth.lib.wiring import Component, In, Out

from models.booth import BoothParams
from rtl.arith import Digit
from rtl.emit import shared
from rtl.encoder import build_encoder, encoder_streams


def streams(params: BoothParams) -> dict[str, Any]:
    """`i_x` {x[lanes]} and `o_code` {code[lanes]}."""
    return encoder_streams(params)


class Booth(Component):
    """`lanes` encoders side by side."""

    def __init__(self, params: BoothParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        return build_encoder(self, encode)


def encode(m: Module, x: Value) -> Value:
    """The code word of the signed `x`, from an encoder of its own."""
    encoder = BoothEncoder(len(x))
    m.submodules += encoder
    m.d.comb += encoder.x.eq(x)
    return encoder.code


def digits(x: Value) -> list[Digit]:
    """The digits of the signed `x`, lowest first."""
    bits = len(x)
    wide = Cat(Const(0, 1), x, x[-1])  # x[-1] = 0 below, the sign once more above
    found = []
    for i in range(0, bits, 2):
        below, here, above = wide[i], wide[i + 1], wide[i + 2]
        found.append(Digit(one=below ^ here, two=(below == here) & (here ^ above), neg=above & ~(below & here)))
    return found


@shared
class BoothEncoder(Component):
    """One operand, no register."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        super().__init__({"x": In(signed(bits)), "code": Out(unsigned(3 * ((bits + 1) // 2)))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.code.eq(Cat(Cat(d.one, d.two, d.neg) for d in digits(self.x)))
        return m
