"""Overflow and delay lines: the hardware counterparts of models/bits.py."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, signed

from models.bits import Overflow, signed_range


def fit(m: Module, value: Value, bits: int, overflow: Overflow) -> Value:
    """`value` (signed, any width) as a register of `bits` bits keeps it."""
    if overflow is Overflow.WRAP or len(value) <= bits:
        return value[:bits].as_signed()
    low, high = signed_range(bits)
    whole = Signal(signed(len(value)))
    m.d.comb += whole.eq(value)
    # in range exactly when all bits above the sign bit equal it
    top = whole[bits - 1 :]
    inside = top.all() | ~top.any()
    return Mux(inside, whole[:bits], Mux(whole[-1], low, high)).as_signed()


def delay(m: Module, value: Value, cycles: int, enable: Value) -> Value:
    """`value` behind `cycles` registers that move when `enable` is high; not reset, zero at power-on."""
    for _ in range(cycles):
        stage = Signal(value.shape(), reset_less=True)
        with m.If(enable):
            m.d.sync += stage.eq(value)
        value = stage
    return value
