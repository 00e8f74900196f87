"""EN-T encoder; contract and parameters in models/ent.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Signal, Value, signed, unsigned
from amaranth.lib.wiring import Component, In, Out

from models.ent import EntParams
from rtl.arith import Digit
from rtl.emit import shared
from rtl.encoder import build_encoder, encoder_streams


def streams(params: EntParams) -> dict[str, Any]:
    """`i_x` {x[lanes]} and `o_code` {code[lanes]}."""
    return encoder_streams(params)


class Ent(Component):
    """`lanes` encoders side by side."""

    def __init__(self, params: EntParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        return build_encoder(self, encode)


def encode(m: Module, x: Value) -> Value:
    """The code word of the signed `x`, from an encoder of its own."""
    encoder = EntEncoder(len(x))
    m.submodules += encoder
    m.d.comb += encoder.x.eq(x)
    return encoder.code


def digits(code: Value) -> list[Digit]:
    """The digits in a code word, lowest first, with its sign applied. Digit zero may be marked negative."""
    magnitude, sign = code[:-1], code[-1]
    pairs = [magnitude[i : i + 2] for i in range(0, len(magnitude), 2)]
    return [_digit(pair, sign) for pair in pairs]


def _digit(pair: Value, sign: Value) -> Digit:
    if len(pair) == 1:
        return Digit(one=pair[0], two=0, neg=sign)
    return Digit(one=pair[0], two=pair[1] & ~pair[0], neg=sign ^ (pair[0] & pair[1]))


@shared
class EntEncoder(Component):
    """One operand, no register: magnitude, then the carries from digit to digit."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        super().__init__({"x": In(signed(bits)), "code": Out(unsigned(bits + 1))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        negative = self.x[-1]
        magnitude = Signal(self.bits)
        m.d.comb += magnitude.eq((self.x ^ negative.replicate(self.bits)).as_unsigned() + negative)
        carry: Value | int = 0
        found = []
        for i in range(0, self.bits, 2):
            raw = magnitude[i : i + 2]
            found.append((raw + carry)[: len(raw)])
            carry = (raw[0] & raw[-1]) | (raw[-1] & carry)
        m.d.comb += self.code.eq(Cat(*found, negative))
        return m
