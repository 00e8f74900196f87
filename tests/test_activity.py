"""Which PE works when: held against the work, the timing and what the PEs of the RTL do."""

import numpy as np
import pytest

import rtl.systolic
from hwsim.verify.lockstep import Drive, Lockstep, Run
from hwsim.verify.ports import pack, ports_of
from models.catalog import UNITS, unit_of
from models.unit import InputError, Stimulus
from rtl.emit import component, streams

ABLE = [(entry, name) for entry in UNITS.values() if hasattr(entry.module, "activity") for name in entry.presets]


@pytest.mark.parametrize("entry, name", ABLE, ids=[f"{entry.name}-{name}" for entry, name in ABLE])
def test_the_useful_products_are_all_there_are(entry, name):
    params = entry.presets[name]
    for shape in ({"M": 1, "K": 1, "N": 1}, {"M": 6, "K": 9, "N": 5}):
        busy, timing = entry.module.activity(params, **shape), entry.timing(params, **shape)
        assert busy.shape[0] == timing.total_cycles
        assert busy[0].size == timing.peak_per_cycle
        assert busy.sum() == timing.work


def test_a_shape_that_is_none_is_refused():
    entry, name = ABLE[0]
    with pytest.raises(InputError, match="K must be a whole number of at least 1"):
        entry.module.activity(entry.presets[name], M=1, K=0, N=1)


@pytest.mark.parametrize("name", ["small-ws", "small-os", "small-is", "buffered-ws", "opt1-ws", "opt1-os", "ent-ws"])
@pytest.mark.parametrize("shape", [(3, 3, 4), (5, 7, 6)])
def test_the_pes_of_the_rtl_multiply_ones_in_these_cycles(monkeypatch, name, shape):
    """All operands are one and what fills up a tile is zero, while an idle stream shows -1: a PE that has one of each
    at its multiplier works."""
    params = UNITS["systolic"].presets[name]
    m, k, n = shape
    seen = multiplied(monkeypatch, params, np.ones((m, k), dtype=int), np.ones((k, n), dtype=int))
    busy = unit_of(params).module.activity(params, M=m, K=k, N=n)
    assert (seen[: len(busy)] == busy).all()
    assert not seen[len(busy) :].any()


def multiplied(monkeypatch, params, a, w):
    """Whether each PE's multiplier has 1 and 1 in each cycle from the first transfer on: [cycles, rows, cols]."""
    from amaranth.sim import Simulator

    watched, run = [], stall_free(params, a, w)
    multiply_add = rtl.systolic.multiply_add

    def watch(m, style, moving, held, *rest):
        watched.append((moving, held))
        return multiply_add(m, style, moving, held, *rest)

    monkeypatch.setattr(rtl.systolic, "multiply_add", watch)
    top = component(params)
    simulator = Simulator(top)
    simulator.add_clock(1e-8)
    seen = []

    async def bench(ctx):
        lockstep = Lockstep(run)
        while not lockstep.done:
            for signal, value in lockstep.drive().items():
                ctx.set(handle(top, signal), value)
            lockstep.saw({signal: ctx.get(handle(top, signal)) for signal in lockstep.signals})
            seen.append([(ctx.get(moving), ctx.get(held)) for moving, held in watched])
            await ctx.tick()

    simulator.add_testbench(bench)
    simulator.run()
    return (np.array(seen) == 1).all(axis=2).reshape(len(seen), params.rows, params.cols)


def stall_free(params, a, w):
    """The whole product and some cycles more. A beat is shown no sooner than it can be taken, since a PE multiplies
    what waits at the edge as well."""
    unit, always = unit_of(params), np.ones(1, dtype=bool)
    ports = {port.name: port for port in ports_of(streams(params))}
    beats = unit.beats(params, a, w)
    ready = unit.trace(params, Stimulus(beats=beats, offer=dict.fromkeys(beats, always), accept={"o_psum": always}))
    inputs = {
        name: Drive(pack(ports[name], beats[name]), ports[name].idle, ready[f"{name}.ready"].tolist()) for name in beats
    }
    return Run(inputs, {"o_psum": [True]}, len(ready["o_psum.valid"]))


def handle(top, signal):
    stream, _, part = signal.rpartition("__")
    value = getattr(getattr(top, stream), part)
    return value.as_value() if hasattr(value, "as_value") else value
