"""Systolic array of FP16 multipliers with FP32 sums; contract and parameters in models/fpmac.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.floats import ADD_STAGES, HALF_BITS, HALF_DIGITS, HALF_UNIT, SINGLE_BITS
from models.fpmac import EDGE_STAGES, OPERAND_BITS, PRODUCT_BITS, FpmacParams
from rtl.arith import delay
from rtl.emit import shared
from rtl.floats import SINGLE_BIAS, Half, SingleAdder, named, normalise_half
from rtl.stationary import stationary_control

EXPONENT_BITS = OPERAND_BITS - 1 - HALF_DIGITS


def streams(params: FpmacParams) -> dict[str, Any]:
    """`i_weight` {weight[cols]}, `i_act` {act[rows], psum[cols], last}, `o_psum` {psum[cols]}; patterns of floats."""
    weights = data.ArrayLayout(unsigned(HALF_BITS), params.cols)
    return {
        "i_weight": In(stream.Signature(data.StructLayout({"weight": weights}))),
        **float_streams(params.rows, params.cols),
    }


def float_streams(rows: int, cols: int) -> dict[str, Any]:
    """The streams of activations and partial sums."""
    acts = data.ArrayLayout(unsigned(HALF_BITS), rows)
    psums = data.ArrayLayout(unsigned(SINGLE_BITS), cols)
    return {
        "i_act": In(stream.Signature(data.StructLayout({"act": acts, "psum": psums, "last": 1}))),
        "o_psum": Out(stream.Signature(data.StructLayout({"psum": psums}))),
    }


class Fpmac(Component):
    """The array with its normalisers, skewing registers and control; payload is zero while an output is not valid."""

    def __init__(self, params: FpmacParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        weights = [_normalised(m, self.i_weight.payload.weight[c]) for c in range(self.params.cols)]
        float_array(m, self, weights)
        return m


def float_array(m: Module, array: Any, weights: list[Value]) -> None:
    """PEs, edges and control of an array with `weights`, normalised, on its load edge, joined to its streams."""
    p = array.params
    control = stationary_control(m, array, p.geometry)
    payload = array.i_act.payload
    acts = [_entered(m, payload.act[r], ADD_STAGES * r, control.advance) for r in range(p.rows)]
    psums = [delay(m, payload.psum[c], EDGE_STAGES + c, control.advance) for c in range(p.cols)]
    for r in range(p.rows):
        for c in range(p.cols):
            m.submodules[f"pe_{r}_{c}"] = pe = FpmacPe()
            m.d.comb += [
                pe.advance.eq(control.advance),
                pe.load.eq(control.load),
                pe.act.eq(acts[r]),
                pe.weight.eq(weights[c]),
                pe.psum.eq(psums[c]),
            ]
            acts[r], weights[c], psums[c] = pe.act_out, pe.weight_out, pe.psum_out
    bottom = [delay(m, psums[c], p.cols - 1 - c, control.advance) for c in range(p.cols)]
    m.d.comb += array.o_psum.payload.as_value().eq(Mux(array.o_psum.valid, Cat(*bottom), 0))


def _entered(m: Module, act: Value, cycles: int, advance: Value) -> Value:
    """An activation skewed by `cycles`, as its pattern, then normalised into a register."""
    return delay(m, _normalised(m, delay(m, act, cycles, advance)), 1, advance)


def _normalised(m: Module, bits: Value) -> Value:
    normaliser = Normaliser()
    m.submodules += normaliser
    m.d.comb += normaliser.half.eq(bits)
    return normaliser.operand


@shared
class Normaliser(Component):
    """A half as PEs take it; no register."""

    def __init__(self) -> None:
        super().__init__({"half": In(HALF_BITS), "operand": Out(OPERAND_BITS)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.operand.eq(packed(normalise_half(m, self.half)))
        return m


def packed(half: Half) -> Value:
    """A normalised half in OPERAND_BITS bits."""
    return Cat(half.mantissa, half.exponent[:EXPONENT_BITS], half.negative)


def _unpacked(operand: Value) -> Half:
    return Half(operand[-1], operand[HALF_DIGITS:-1].as_signed(), operand[:HALF_DIGITS])


@shared
class FpmacPe(Component):
    """Of normalised halves: act_out <= act, product <= act * held, and psum_out <= psum + product, in ADD_STAGES
    registers, when `advance`; held <= weight when `load`."""

    def __init__(self) -> None:
        operand, word = unsigned(OPERAND_BITS), unsigned(SINGLE_BITS)
        entering = {"act": In(operand), "weight": In(operand), "psum": In(word)}
        leaving = {"act_out": Out(operand), "weight_out": Out(operand), "psum_out": Out(word)}
        super().__init__({"advance": In(1), "load": In(1), **entering, **leaving})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.adder = adder = SingleAdder()
        act, held = (Signal(OPERAND_BITS, name=f"{name}_reg", reset_less=True) for name in ("act", "held"))
        product = Signal(PRODUCT_BITS, name="product_reg", reset_less=True)
        multiplied = _product(m, _unpacked(self.act), _unpacked(held))
        with m.If(self.load):
            m.d.sync += held.eq(self.weight)
        with m.If(self.advance):
            m.d.sync += [act.eq(self.act), product.eq(multiplied)]
        m.d.comb += [
            adder.advance.eq(self.advance),
            adder.a.eq(self.psum),
            adder.b.eq(Cat(Const(0, SINGLE_BITS - PRODUCT_BITS), product)),
            self.act_out.eq(act),
            self.weight_out.eq(held),
            self.psum_out.eq(adder.total),
        ]
        return m


def _product(m: Module, a: Half, b: Half) -> Value:
    """The upper PRODUCT_BITS bits of the product's single-precision pattern; those below are always zero.

    The mantissas' product has 22 digits, of which the first or the second is the leading one, unless it is zero.
    """
    digits = named(m, a.mantissa * b.mantissa)
    top, width = digits[-1], 2 * HALF_DIGITS
    fraction = Mux(top, digits[: width - 1], Cat(Const(0, 1), digits[: width - 2]))
    exponent = a.exponent + b.exponent + (SINGLE_BIAS + width - 2 - 2 * HALF_UNIT) + top
    present = a.mantissa[-1] & b.mantissa[-1]
    return Cat(fraction, Mux(present, exponent[:8], 0), a.negative ^ b.negative)
