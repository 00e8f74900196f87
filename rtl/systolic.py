"""Systolic array of multiply-accumulate PEs; contract and parameters in models/systolic.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.systolic import Dataflow, SystolicParams
from rtl.arith import delay, fit
from rtl.emit import shared
from rtl.stationary import stationary_control


def _vector(bits: int, lanes: int) -> data.ArrayLayout:
    return data.ArrayLayout(signed(bits), lanes)


def streams(params: SystolicParams) -> dict[str, Any]:
    """`i_weight` {weight[cols]}, `i_act` {act[rows], psum[cols] (WS), last}, `o_psum` {psum[cols]}."""
    p = params
    act: dict[str, Any] = {"act": _vector(p.act_bits, p.rows)}
    if p.dataflow is Dataflow.WS:
        act["psum"] = _vector(p.acc_bits, p.cols)
    return {
        "i_weight": In(stream.Signature(data.StructLayout({"weight": _vector(p.weight_bits, p.cols)}))),
        "i_act": In(stream.Signature(data.StructLayout({**act, "last": 1}))),
        "o_psum": Out(stream.Signature(data.StructLayout({"psum": _vector(p.acc_bits, p.cols)}))),
    }


class Systolic(Component):
    """The array with its skewing registers and control; payload is zero while an output is not valid."""

    def __init__(self, params: SystolicParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bottom = _weight_stationary(m, self) if self.params.dataflow is Dataflow.WS else _output_stationary(m, self)
        m.d.comb += self.o_psum.payload.as_value().eq(Mux(self.o_psum.valid, Cat(*bottom), 0))
        return m


def _operands(p: SystolicParams) -> dict[str, Any]:
    """What enters a PE and leaves it for the next one."""
    widths = {"act": p.act_bits, "weight": p.weight_bits, "psum": p.acc_bits}
    entering = {name: In(signed(bits)) for name, bits in widths.items()}
    return entering | {f"{name}_out": Out(signed(bits)) for name, bits in widths.items()}


@shared
class WeightStationaryPe(Component):
    """psum_out <= psum + act * weight, act_out <= act when `advance`; the weight is taken when `load`."""

    def __init__(self, params: SystolicParams) -> None:
        self.params = params
        super().__init__({"advance": In(1), "load": In(1), **_operands(params)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        act, weight, psum = (
            Signal(signed(bits), name=name, reset_less=True)
            for name, bits in (("act_reg", p.act_bits), ("weight_reg", p.weight_bits), ("psum_reg", p.acc_bits))
        )
        with m.If(self.load):
            m.d.sync += weight.eq(self.weight)
        with m.If(self.advance):
            m.d.sync += [
                act.eq(self.act),
                psum.eq(fit(m, self.psum + self.act * weight, p.acc_bits, p.overflow)),
            ]
        m.d.comb += [self.act_out.eq(act), self.weight_out.eq(weight), self.psum_out.eq(psum)]
        return m


def _weight_stationary(m: Module, array: Systolic) -> list[Value]:
    p, i_act, i_weight = array.params, array.i_act, array.i_weight
    control = stationary_control(m, array, p.rows, p.rows + p.cols - 1)
    acts = [delay(m, i_act.payload.act[r], r, control.advance) for r in range(p.rows)]
    psums = [delay(m, i_act.payload.psum[c], c, control.advance) for c in range(p.cols)]
    weights: list[Value] = [i_weight.payload.weight[c] for c in range(p.cols)]
    for r in range(p.rows):
        for c in range(p.cols):
            m.submodules[f"pe_{r}_{c}"] = pe = WeightStationaryPe(p)
            m.d.comb += [
                pe.advance.eq(control.advance),
                pe.load.eq(control.load),
                pe.act.eq(acts[r]),
                pe.weight.eq(weights[c]),
                pe.psum.eq(psums[c]),
            ]
            acts[r], weights[c], psums[c] = pe.act_out, pe.weight_out, pe.psum_out
    return [delay(m, psums[c], p.cols - 1 - c, control.advance) for c in range(p.cols)]


@shared
class OutputStationaryPe(Component):
    """psum <= psum + act * weight in every cycle, or the one above's when `shift`; act and weight travel on.

    Idle operands are zero, so nothing needs an enable; all registers are reset, since what is in them is accumulated.
    """

    def __init__(self, params: SystolicParams) -> None:
        self.params = params
        super().__init__({"shift": In(1), **_operands(params)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        act, weight, psum = (
            Signal(signed(bits), name=name)
            for name, bits in (("act_reg", p.act_bits), ("weight_reg", p.weight_bits), ("psum_reg", p.acc_bits))
        )
        total = fit(m, psum + self.act * self.weight, p.acc_bits, p.overflow)
        m.d.sync += [act.eq(self.act), weight.eq(self.weight), psum.eq(Mux(self.shift, self.psum, total))]
        m.d.comb += [self.act_out.eq(act), self.weight_out.eq(weight), self.psum_out.eq(psum)]
        return m


def _skew(m: Module, value: Value, cycles: int) -> Value:
    """`value` behind `cycles` registers that move always and are reset."""
    for _ in range(cycles):
        stage = Signal(value.shape())
        m.d.sync += stage.eq(value)
        value = stage
    return value


def _output_stationary(m: Module, array: Systolic) -> list[Value]:
    p, i_act, i_weight, o_psum = array.params, array.i_act, array.i_weight, array.o_psum
    flush, drain = Signal(range(p.rows + p.cols)), Signal(range(p.rows + 1))
    free, taken, shift = Signal(), Signal(), Signal()
    m.d.comb += [
        free.eq((flush == 0) & (drain == 0)),
        i_act.ready.eq(free & i_weight.valid),
        i_weight.ready.eq(free & i_act.valid),
        taken.eq(free & i_act.valid & i_weight.valid),
        o_psum.valid.eq((drain != 0) & (flush == 0)),
        shift.eq(o_psum.valid & o_psum.ready),
    ]
    with m.If(flush != 0):
        m.d.sync += flush.eq(flush - 1)
    with m.Elif(shift):
        m.d.sync += drain.eq(drain - 1)
    with m.If(taken & i_act.payload.last):
        m.d.sync += [flush.eq(p.rows + p.cols - 2), drain.eq(p.rows)]

    acts = [_skew(m, Mux(taken, i_act.payload.act[r], 0).as_signed(), r) for r in range(p.rows)]
    weights = [_skew(m, Mux(taken, i_weight.payload.weight[c], 0).as_signed(), c) for c in range(p.cols)]
    psums: list[Value] = [
        Signal(signed(p.acc_bits), name=f"top_{c}") for c in range(p.cols)
    ]  # zero: clears on the way out
    for r in range(p.rows):
        for c in range(p.cols):
            m.submodules[f"pe_{r}_{c}"] = pe = OutputStationaryPe(p)
            m.d.comb += [pe.shift.eq(shift), pe.act.eq(acts[r]), pe.weight.eq(weights[c]), pe.psum.eq(psums[c])]
            acts[r], weights[c], psums[c] = pe.act_out, pe.weight_out, pe.psum_out
    return psums
