"""Control of a held tile's discipline and of a plain pipeline: valid bits, advance enable, buffers, load count."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib.wiring import Component, In, Out


class Pipeline(Component):
    """`latency` valid bits under one advance enable: everything stands still while the output waits."""

    def __init__(self, latency: int) -> None:
        self.latency = latency
        super().__init__(
            {
                "taken": In(1),  # a beat enters in this cycle (only while `advance`)
                "accept": In(1),  # the output's ready
                "advance": Out(1),
                "shown": Out(1),  # the output's valid
                "before": Out(max(latency - 1, 1)),  # which stages before the output register hold a beat
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        stages = Signal(self.latency)
        m.d.comb += [
            self.shown.eq(stages[-1]),
            self.before.eq(stages[:-1]),
            self.advance.eq(self.accept | ~self.shown),
        ]
        with m.If(self.advance):
            m.d.sync += stages.eq(Cat(self.taken, stages[:-1]))
        return m


def stationary_control(m: Module, unit: Any, geometry: Any) -> "StationaryControl":
    """The control of a unit with the discipline `geometry` (models.gemm.Stationary), joined to its streams."""
    load, vectors, o_psum = getattr(unit, geometry.load_stream), getattr(unit, geometry.stream), unit.o_psum
    m.submodules.control = control = StationaryControl(
        geometry.load_beats, geometry.latency, geometry.buffers, geometry.interval
    )
    m.d.comb += [
        control.load_valid.eq(load.valid),
        load.ready.eq(control.load_ready),
        control.valid.eq(vectors.valid),
        vectors.ready.eq(control.ready),
        control.last.eq(vectors.payload.last),
        control.accept.eq(o_psum.ready),
        o_psum.valid.eq(control.shown),
    ]
    return control


class StationaryControl(Component):
    """Takes `load_beats` beats for a buffer that no vector needs any more; takes vectors, until the one marked last,
    while the buffer whose turn it is is full, and works on each for `interval` cycles."""

    def __init__(self, load_beats: int, latency: int, buffers: int, interval: int) -> None:
        self.load_beats, self.latency, self.buffers, self.interval = load_beats, latency, buffers, interval
        phases = {
            "taken": Out(1),
            "phase": Out(range(interval)),
        }  # of the vector that is worked on, from its transfer on
        super().__init__(
            (phases if interval > 1 else {})
            | {
                "load_valid": In(1),
                "load_ready": Out(1),
                "valid": In(1),
                "ready": Out(1),
                "last": In(1),
                "accept": In(1),
                "shown": Out(1),
                "load": Out(buffers),  # a load beat is transferred in this cycle into that buffer
                "active": Out(buffers),  # the buffer, one hot, that a vector entering now works with
                "advance": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.pipeline = pipeline = Pipeline(self.latency)
        full = Signal(self.buffers)
        loading, active = (self._turn(m, name) for name in ("loading", "active"))
        loaded = Signal(range(max(self.load_beats, 2)))  # of one beat too: Verilog has no signals without bits
        taken, load = Signal(), Signal()
        busy, entering = self._phases(m, taken, pipeline.advance)
        m.d.comb += [
            pipeline.taken.eq(entering),
            pipeline.accept.eq(self.accept),
            self.advance.eq(pipeline.advance),
            self.shown.eq(pipeline.shown),
            self.active.eq(active),
            self.ready.eq(_unless(busy, (full & active).any() & pipeline.advance)),
            self.load_ready.eq(
                _unless(busy, ~(full & loading).any() & ~self._at_work(m, pipeline, active, loading)),
            ),
            taken.eq(self.valid & self.ready),
            load.eq(self.load_valid & self.load_ready),
            self.load.eq(loading & load.replicate(self.buffers)),
        ]
        complete, finished = load & (loaded == self.load_beats - 1), taken & self.last
        with m.If(load):
            m.d.sync += loaded.eq(Mux(complete, 0, loaded + 1))
        m.d.sync += full.eq(
            (full | (loading & complete.replicate(self.buffers))) & ~(active & finished.replicate(self.buffers))
        )
        for turn, passes in ((loading, complete), (active, finished)):
            if self.buffers > 1:
                with m.If(passes):
                    m.d.sync += turn.eq(turn.rotate_left(1))
        return m

    def _phases(self, m: Module, taken: Value, advance: Value) -> tuple[Value | None, Value]:
        """Whether a vector taken earlier is worked on (None: that cannot be), and whether one is in its last phase."""
        if self.interval == 1:
            return None, taken
        phase, last = Signal(range(self.interval)), self.interval - 1
        with m.If(advance & (taken | (phase != 0))):
            m.d.sync += phase.eq(Mux(phase == last, 0, phase + 1))
        m.d.comb += [self.taken.eq(taken), self.phase.eq(phase)]
        return phase != 0, phase == last

    def _turn(self, m: Module, name: str) -> Any:
        """Whose turn it is, one hot; of one buffer it is always the same one's."""
        return Signal(self.buffers, init=1, name=name) if self.buffers > 1 else Const(1, 1)

    def _at_work(self, m: Module, pipeline: Pipeline, active: Any, loading: Any) -> Any:
        """A vector before the output register works with the buffer that would be loaded."""
        if self.buffers == 1:
            return pipeline.before.any()
        stages = Signal(self.latency)
        """which of them hold a vector that works with buffer 0"""
        with m.If(pipeline.advance):
            m.d.sync += stages.eq(Cat(active[0], stages[:-1]))
        of_loading = Mux(loading[0], stages[:-1], ~stages[:-1])
        return (pipeline.before & of_loading).any()


def _unless(busy: Value | None, value: Value) -> Value:
    return value if busy is None else value & ~busy


def output_stationary_control(m: Module, unit: Any, geometry: Any) -> tuple[Value, Value, Value]:
    """The control of a unit with the discipline `geometry` (models.gemm.OutputStationary), joined to its streams.

    Gives three signals: operands are taken in this cycle; sums shift down one row; resolving adders take what stands
    in the last row.
    """
    i_act, i_weight, o_psum = unit.i_act, unit.i_weight, unit.o_psum
    # at least one bit, of no cycles too: Verilog has no signals without bits
    flush, drain = Signal(range(max(geometry.flush_cycles, 1) + 1)), Signal(range(geometry.tile_m + 1))
    free, taken, ready, shift = (Signal(name=name) for name in ("free", "taken", "drained", "shift"))
    m.d.comb += [
        free.eq((flush == 0) & (drain == 0)),
        i_act.ready.eq(free & i_weight.valid),
        i_weight.ready.eq(free & i_act.valid),
        taken.eq(free & i_act.valid & i_weight.valid),
        ready.eq((drain != 0) & (flush == 0)),
    ]
    with m.If(flush != 0):
        m.d.sync += flush.eq(flush - 1)
    with m.Elif(shift):
        m.d.sync += drain.eq(drain - 1)
    with m.If(taken & i_act.payload.last):
        m.d.sync += [flush.eq(geometry.flush_cycles), drain.eq(geometry.tile_m)]
    if not geometry.resolving:
        m.d.comb += [o_psum.valid.eq(ready), shift.eq(ready & o_psum.ready)]
        return taken, shift, Const(1, 1)
    m.submodules.resolving = resolving = Pipeline(1)
    m.d.comb += [
        resolving.accept.eq(o_psum.ready),
        resolving.taken.eq(shift),
        shift.eq(ready & resolving.advance),
        o_psum.valid.eq(resolving.shown),
    ]
    return taken, shift, resolving.advance
