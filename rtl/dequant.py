"""Systolic array behind dequantizers of low-bit weights; contract and parameters in models/dequant.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Shape, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.dequant import DequantParams
from models.fpmac import OPERAND_BITS
from rtl.arith import delay
from rtl.emit import shared
from rtl.floats import named, round_half
from rtl.fpmac import float_array, float_streams, packed
from rtl.stationary import stationary_control
from rtl.systolic import StationaryPe


def streams(params: DequantParams) -> dict[str, Any]:
    """`i_weight` {code[cols], scale[cols], zero[cols]}, `i_act` {act[rows], psum[cols], last}, `o_psum` {psum[cols]};
    activations and sums are patterns of floats with FP16."""
    p = params
    shapes = {"code": signed(p.weight_bits), "scale": unsigned(p.scale_bits), "zero": signed(p.weight_bits)}
    weights = data.StructLayout({name: data.ArrayLayout(shape, p.cols) for name, shape in shapes.items()})
    others = float_streams(p.rows, p.cols) if p.is_float else _integer_streams(p)
    return {"i_weight": In(stream.Signature(weights)), **others}


def _integer_streams(p: DequantParams) -> dict[str, Any]:
    acts = data.ArrayLayout(signed(p.act_bits), p.rows)
    psums = data.ArrayLayout(signed(p.acc_bits), p.cols)
    return {
        "i_act": In(stream.Signature(data.StructLayout({"act": acts, "psum": psums, "last": 1}))),
        "o_psum": Out(stream.Signature(data.StructLayout({"psum": psums}))),
    }


class Dequant(Component):
    """The array with its dequantizers, skewing registers and control; payload is zero while an output is not valid."""

    def __init__(self, params: DequantParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        weights = [_dequantized(m, self, c) for c in range(self.params.cols)]
        (float_array if self.params.is_float else _integer_array)(m, self, weights)
        return m


def _dequantized(m: Module, array: Dequant, column: int) -> Value:
    p, payload = array.params, array.i_weight.payload
    make = HalfDequantizer if p.is_float else Dequantizer
    m.submodules[f"dequantizer_{column}"] = dequantizer = make(p.weight_bits, p.scale_bits)
    for field in ("code", "scale", "zero"):
        m.d.comb += getattr(dequantizer, field).eq(getattr(payload, field)[column])
    return dequantizer.weight


def _ports(weight_bits: int, scale_bits: int, weight: Shape) -> dict[str, Any]:
    code = In(signed(weight_bits))
    return {"code": code, "zero": code, "scale": In(unsigned(scale_bits)), "weight": Out(weight)}


def _product(m: Module, dequantizer: Any) -> Value:
    """scale * (code - zero), exactly."""
    offset = named(m, dequantizer.code - dequantizer.zero)
    width = len(offset) + len(dequantizer.scale)
    return named(m, (offset * dequantizer.scale)[:width].as_signed())


@shared
class Dequantizer(Component):
    """weight = scale * (code - zero), in weight_bits + 1 + scale_bits bits; no register."""

    def __init__(self, weight_bits: int, scale_bits: int) -> None:
        super().__init__(_ports(weight_bits, scale_bits, signed(weight_bits + 1 + scale_bits)))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.weight.eq(_product(m, self))
        return m


@shared
class HalfDequantizer(Component):
    """The same rounded to half precision, to nearest even, as rtl/fpmac.py's PEs take it; no register."""

    def __init__(self, weight_bits: int, scale_bits: int) -> None:
        super().__init__(_ports(weight_bits, scale_bits, unsigned(OPERAND_BITS)))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.weight.eq(packed(round_half(m, _product(m, self))))
        return m


def _integer_array(m: Module, array: Dequant, weights: list[Value]) -> None:
    """PEs, skewing and control of an array with dequantized `weights` on its load edge, joined to its streams."""
    p = array.params
    control = stationary_control(m, array, p.geometry)
    advance, payload = control.advance, array.i_act.payload
    acts = [delay(m, payload.act[r], r, advance) for r in range(p.rows)]
    psums: list[Value] = [delay(m, payload.psum[c], c, advance) for c in range(p.cols)]
    for r in range(p.rows):
        for c in range(p.cols):
            m.submodules[f"pe_{r}_{c}"] = pe = StationaryPe(p)
            m.d.comb += [
                pe.advance.eq(advance),
                pe.load.eq(control.load),
                pe.moving.eq(acts[r]),
                pe.held.eq(weights[c]),
                pe.psum.eq(psums[c]),
            ]
            acts[r], weights[c], psums[c] = pe.moving_out, pe.held_out, pe.psum_out
    bottom = [delay(m, psums[c], p.cols - 1 - c, advance) for c in range(p.cols)]
    m.d.comb += array.o_psum.payload.as_value().eq(Mux(array.o_psum.valid, Cat(*bottom), 0))
