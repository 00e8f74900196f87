"""The edge of an encoder unit around its recoding logic; contract in models/encoder.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from rtl.arith import delay
from rtl.stationary import Pipeline


def encoder_streams(params: Any) -> dict[str, Any]:
    """`i_x` {x[lanes]} and `o_code` {code[lanes]}."""
    x = data.StructLayout({"x": data.ArrayLayout(signed(params.bits), params.lanes)})
    code = data.StructLayout({"code": data.ArrayLayout(unsigned(params.code_bits), params.lanes)})
    return {"i_x": In(stream.Signature(x)), "o_code": Out(stream.Signature(code))}


def build_encoder(unit: Any, encode: Callable[[Module, Value], Value]) -> Module:
    """`encode(module, value)` in every lane, registered or not; payload is zero while the output is not valid."""
    m = Module()
    p = unit.params
    words = Cat(encode(m, unit.i_x.payload.x[lane]) for lane in range(p.lanes))
    if p.registered:
        m.submodules.pipeline = pipeline = Pipeline(1)
        m.d.comb += [
            pipeline.taken.eq(unit.i_x.valid & unit.i_x.ready),
            pipeline.accept.eq(unit.o_code.ready),
            unit.i_x.ready.eq(pipeline.advance),
            unit.o_code.valid.eq(pipeline.shown),
        ]
        words = delay(m, words, 1, pipeline.advance)
    else:
        m.d.comb += [unit.i_x.ready.eq(unit.o_code.ready), unit.o_code.valid.eq(unit.i_x.valid)]
    m.d.comb += unit.o_code.payload.as_value().eq(Mux(unit.o_code.valid, words, 0))
    return m
