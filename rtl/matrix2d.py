"""2D matrix engine: outer products of broadcast operands; contract and parameters in models/matrix2d.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import stream
from amaranth.lib.data import ArrayLayout, StructLayout
from amaranth.lib.wiring import Component, In, Out

from models.matrix2d import Matrix2dParams
from rtl.arith import delay
from rtl.emit import shared
from rtl.stationary import output_stationary_control
from rtl.style import encode, leave, multiply_add


def streams(params: Matrix2dParams) -> dict[str, Any]:
    """`i_act` {act[rows], last}, `i_weight` {weight[cols]}, `o_psum` {psum[cols]}."""
    p = params
    act = StructLayout({"act": ArrayLayout(signed(p.act_bits), p.rows), "last": 1})
    weight = StructLayout({"weight": ArrayLayout(signed(p.weight_bits), p.cols)})
    psum = StructLayout({"psum": ArrayLayout(signed(p.acc_bits), p.cols)})
    return {
        "i_act": In(stream.Signature(act)),
        "i_weight": In(stream.Signature(weight)),
        "o_psum": Out(stream.Signature(psum)),
    }


class Matrix2d(Component):
    """The array with the operands' registers and control; payload is zero while the output is not valid."""

    def __init__(self, params: Matrix2dParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        taken, shift, advance = output_stationary_control(m, self, p.geometry)
        # idle operands are zero, so that PEs need no enable
        acts = [encode(m, p.style, Mux(taken, self.i_act.payload.act[r], 0).as_signed()) for r in range(p.rows)]
        weights = [Mux(taken, self.i_weight.payload.weight[c], 0) for c in range(p.cols)]
        acts, weights = ([delay(m, x, 1, Const(1, 1), reset=True) for x in edge] for edge in (acts, weights))
        psums: list[Value] = [Signal(p.style.psum_bits(p.acc_bits), name=f"top_{c}") for c in range(p.cols)]  # zero
        for r in range(p.rows):
            for c in range(p.cols):
                m.submodules[f"pe_{r}_{c}"] = pe = MatrixPe(p)
                m.d.comb += [pe.shift.eq(shift), pe.act.eq(acts[r]), pe.weight.eq(weights[c]), pe.psum.eq(psums[c])]
                psums[c] = pe.psum_out
        bottom = [leave(m, p.style, psum, advance) for psum in psums]
        m.d.comb += self.o_psum.payload.as_value().eq(Mux(self.o_psum.valid, Cat(*bottom), 0))
        return m


@shared
class MatrixPe(Component):
    """psum <= psum + act * weight in every cycle, or the one above's when `shift`; reset, since it accumulates."""

    def __init__(self, params: Matrix2dParams) -> None:
        p = self.params = params
        psum = unsigned(p.style.psum_bits(p.acc_bits))
        super().__init__(
            {
                "shift": In(1),
                "act": In(unsigned(p.style.travel_bits(p.act_bits))),
                "weight": In(unsigned(p.weight_bits)),
                "psum": In(psum),
                "psum_out": Out(psum),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        psum = Signal(len(self.psum), name="psum_reg")
        total = multiply_add(m, p.style, self.act, self.weight.as_signed(), psum, p.acc_bits, p.overflow)
        m.d.sync += psum.eq(Mux(self.shift, self.psum, total))
        m.d.comb += self.psum_out.eq(psum)
        return m
