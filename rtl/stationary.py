"""Control of the weight-stationary discipline and of a plain pipeline: valid bits, advance enable, load count."""

from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib.wiring import Component, In, Out


class Pipeline(Component):
    """`latency` valid bits under one advance enable: everything stands still while the output waits."""

    taken: In(1)
    """a beat enters in this cycle (only while `advance`)"""
    accept: In(1)
    """the output's ready"""
    advance: Out(1)
    shown: Out(1)
    """the output's valid"""
    inside: Out(1)
    """a beat stands before the output register"""

    def __init__(self, latency: int) -> None:
        super().__init__()
        self.latency = latency

    def elaborate(self, platform: object) -> Module:
        m = Module()
        stages = Signal(self.latency)
        m.d.comb += [
            self.shown.eq(stages[-1]),
            self.inside.eq(stages[:-1].any()),
            self.advance.eq(self.accept | ~self.shown),
        ]
        with m.If(self.advance):
            m.d.sync += stages.eq(Cat(self.taken, stages[:-1]))
        return m


def stationary_control(m: Module, unit: Any, load_beats: int, latency: int) -> "Stationary":
    """The control of a unit with streams `i_weight`, `i_act` and `o_psum`, as its sub-module and joined to them."""
    m.submodules.control = control = Stationary(load_beats, latency)
    m.d.comb += [
        control.weight_valid.eq(unit.i_weight.valid),
        unit.i_weight.ready.eq(control.weight_ready),
        control.act_valid.eq(unit.i_act.valid),
        unit.i_act.ready.eq(control.act_ready),
        control.act_last.eq(unit.i_act.payload.last),
        control.accept.eq(unit.o_psum.ready),
        unit.o_psum.valid.eq(control.shown),
    ]
    return control


class Stationary(Component):
    """Takes `load_beats` weight beats while nothing is inside, then activations until the one marked last."""

    weight_valid: In(1)
    weight_ready: Out(1)
    act_valid: In(1)
    act_ready: Out(1)
    act_last: In(1)
    accept: In(1)
    shown: Out(1)
    load: Out(1)
    """a weight beat is transferred in this cycle"""
    advance: Out(1)

    def __init__(self, load_beats: int, latency: int) -> None:
        super().__init__()
        self.load_beats = load_beats
        self.latency = latency

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.pipeline = pipeline = Pipeline(self.latency)
        loaded = Signal(range(self.load_beats + 1))
        full = loaded == self.load_beats
        taken = self.act_valid & self.act_ready
        m.d.comb += [
            pipeline.taken.eq(taken),
            pipeline.accept.eq(self.accept),
            self.advance.eq(pipeline.advance),
            self.shown.eq(pipeline.shown),
            self.act_ready.eq(full & pipeline.advance),
            self.weight_ready.eq(~full & ~pipeline.inside),
            self.load.eq(self.weight_valid & self.weight_ready),
        ]
        with m.If(self.load):
            m.d.sync += loaded.eq(loaded + 1)
        with m.If(taken & self.act_last):
            m.d.sync += loaded.eq(0)
        return m
