"""Systolic array of multiply-accumulate PEs; contract and parameters in models/systolic.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.systolic import Dataflow, SystolicParams
from rtl.arith import delay
from rtl.emit import shared
from rtl.stationary import output_stationary_control, stationary_control
from rtl.style import encode, enter, leave, meet, multiply_add, widen


def _vector(bits: int, lanes: int) -> data.ArrayLayout:
    return data.ArrayLayout(signed(bits), lanes)


def streams(params: SystolicParams) -> dict[str, Any]:
    """`i_weight` {weight[cols]}, `i_act` {act[rows], last}, `o_psum` {psum[cols]}; WS: `i_act` has psum[cols] as well.

    IS: `i_act` {act[cols]}, `i_weight` {weight[rows], psum[cols], last}.
    """
    p = params
    act, weight = {"act": p.act_bits}, {"weight": p.weight_bits}
    moving, held = (weight, act) if p.dataflow is Dataflow.IS else (act, weight)
    vectors: dict[str, Any] = {name: _vector(bits, p.rows) for name, bits in moving.items()}
    if p.dataflow is not Dataflow.OS:
        vectors["psum"] = _vector(p.acc_bits, p.cols)
    payloads: dict[str, dict[str, Any]] = {
        **{f"i_{name}": {name: _vector(bits, p.cols)} for name, bits in held.items()},
        **{f"i_{name}": {**vectors, "last": 1} for name in moving},
    }
    inputs = {name: In(stream.Signature(data.StructLayout(payload))) for name, payload in payloads.items()}
    return {**inputs, "o_psum": Out(stream.Signature(data.StructLayout({"psum": _vector(p.acc_bits, p.cols)})))}


class Systolic(Component):
    """The array with its skewing registers and control; payload is zero while an output is not valid."""

    def __init__(self, params: SystolicParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bottom = _output_stationary(m, self) if self.params.dataflow is Dataflow.OS else _stationary(m, self)
        m.d.comb += self.o_psum.payload.as_value().eq(Mux(self.o_psum.valid, Cat(*bottom), 0))
        return m


@shared
class StationaryPe(Component):
    """psum_out <= psum + moving * held, moving_out <= moving when `advance`; tile i is taken when `load[i]`.

    With two tiles `select`, one hot, travels with the moving operand and says which of them it meets.
    """

    def __init__(self, params: SystolicParams) -> None:
        p = self.params = params
        widths = {
            "moving": p.style.travel_bits(p.moving_bits),
            "select": p.buffers,
            "held": p.buffers * p.held_bits,
            "psum": p.style.psum_bits(p.acc_bits),
        }
        entering = {name: In(unsigned(bits)) for name, bits in widths.items()}
        leaving = {f"{name}_out": Out(unsigned(bits)) for name, bits in widths.items()}
        super().__init__({"advance": In(1), "load": In(p.buffers), **entering, **leaving})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        moving, psum = (
            Signal(len(value), name=f"{name}_reg", reset_less=True)
            for name, value in (("moving", self.moving_out), ("psum", self.psum_out))
        )
        tiles = [Signal(signed(p.held_bits), name=f"held_{i}", reset_less=True) for i in range(p.buffers)]
        for i, tile in enumerate(tiles):
            with m.If(self.load[i]):
                m.d.sync += tile.eq(self.held.word_select(i, p.held_bits))
        held = _held(p, tiles, self.select)
        total = multiply_add(m, p.style, self.moving, held, self.psum, p.acc_bits, p.overflow)
        select: Value = Const(1, 1)
        with m.If(self.advance):
            m.d.sync += [moving.eq(self.moving), psum.eq(total)]
            if p.buffers > 1:
                select = Signal(p.buffers, name="select_reg", init=1, reset_less=True)
                m.d.sync += select.eq(self.select)
        m.d.comb += [
            self.moving_out.eq(moving),
            self.select_out.eq(select),
            self.held_out.eq(Cat(*tiles)),
            self.psum_out.eq(psum),
        ]
        return m


def _held(p: SystolicParams, tiles: list[Signal], select: Value) -> Value:
    return Mux(select[0], tiles[0], tiles[1]).as_signed() if p.buffers > 1 else tiles[0]


def _stationary(m: Module, array: Systolic) -> list[Value]:
    p = array.params
    vectors, tile = getattr(array, p.geometry.stream), getattr(array, p.geometry.load_stream)
    control = stationary_control(m, array, p.geometry)
    advance = control.advance
    operands = getattr(vectors.payload, p.geometry.moving)
    moving = [delay(m, enter(m, p.style, operands[r], advance), r, advance) for r in range(p.rows)]
    selects: list[Value] = [Const(1, 1)] * p.rows
    if p.buffers > 1:
        active = meet(m, p.style, control.active, advance)
        selects = [delay(m, active, r, advance) for r in range(p.rows)]
    psums = [
        widen(p.style, delay(m, meet(m, p.style, vectors.payload.psum[c], advance), c, advance)) for c in range(p.cols)
    ]
    held: list[Value] = [Cat(getattr(tile.payload, p.geometry.held)[c]).replicate(p.buffers) for c in range(p.cols)]
    for r in range(p.rows):
        for c in range(p.cols):
            m.submodules[f"pe_{r}_{c}"] = pe = StationaryPe(p)
            m.d.comb += [
                pe.advance.eq(advance),
                pe.load.eq(control.load),
                pe.moving.eq(moving[r]),
                pe.select.eq(selects[r]),
                pe.held.eq(held[c]),
                pe.psum.eq(psums[c]),
            ]
            moving[r], selects[r], held[c], psums[c] = pe.moving_out, pe.select_out, pe.held_out, pe.psum_out
    return [delay(m, leave(m, p.style, psums[c], advance), p.cols - 1 - c, advance) for c in range(p.cols)]


@shared
class OutputStationaryPe(Component):
    """psum <= psum + act * weight in every cycle, or the one above's when `shift`; act and weight travel on.

    Idle operands are zero, so nothing needs an enable; all registers are reset, since what is in them is accumulated.
    """

    def __init__(self, params: SystolicParams) -> None:
        p = self.params = params
        widths = {
            "act": p.style.travel_bits(p.act_bits),
            "weight": p.weight_bits,
            "psum": p.style.psum_bits(p.acc_bits),
        }
        entering = {name: In(unsigned(bits)) for name, bits in widths.items()}
        super().__init__(
            {"shift": In(1), **entering, **{f"{name}_out": Out(unsigned(bits)) for name, bits in widths.items()}}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        registers = {name: Signal(len(getattr(self, name)), name=f"{name}_reg") for name in ("act", "weight", "psum")}
        psum = registers["psum"]
        total = multiply_add(m, p.style, self.act, self.weight.as_signed(), psum, p.acc_bits, p.overflow)
        m.d.sync += [
            registers["act"].eq(self.act),
            registers["weight"].eq(self.weight),
            psum.eq(Mux(self.shift, self.psum, total)),
        ]
        m.d.comb += [getattr(self, f"{name}_out").eq(register) for name, register in registers.items()]
        return m


def _output_stationary(m: Module, array: Systolic) -> list[Value]:
    p, i_act, i_weight = array.params, array.i_act, array.i_weight
    taken, shift, advance = output_stationary_control(m, array, p.output_geometry)
    always = Const(1, 1)
    acts, weights = [], []
    for r in range(p.rows):
        act = encode(m, p.style, Mux(taken, i_act.payload.act[r], 0).as_signed())
        acts.append(delay(m, act, 1 + r, always, reset=True))
    for c in range(p.cols):
        weights.append(delay(m, Mux(taken, i_weight.payload.weight[c], 0), 1 + c, always, reset=True))
    psums: list[Value] = [
        Signal(p.style.psum_bits(p.acc_bits), name=f"top_{c}") for c in range(p.cols)
    ]  # zero: clears on the way out
    for r in range(p.rows):
        for c in range(p.cols):
            m.submodules[f"pe_{r}_{c}"] = pe = OutputStationaryPe(p)
            m.d.comb += [pe.shift.eq(shift), pe.act.eq(acts[r]), pe.weight.eq(weights[c]), pe.psum.eq(psums[c])]
            acts[r], weights[c], psums[c] = pe.act_out, pe.weight_out, pe.psum_out
    return [leave(m, p.style, psum, advance) for psum in psums]
