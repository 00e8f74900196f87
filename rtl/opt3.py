"""Array whose PEs have a sequencer each; contract and parameters in models/opt3.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Value, unsigned
from amaranth.lib.wiring import Component, In, Out

from models.opt3 import Opt3Params
from models.sparse import SparseArray
from rtl.emit import shared
from rtl.sparse import ColumnPorts, Sequencer, add_step, array_streams, build_array, sequencer_ports


def streams(params: Opt3Params) -> dict[str, Any]:
    """Those of rtl/sparse.py."""
    return array_streams(params)


class Opt3(Component):
    """Columns of `rows` PEs; payload is zero while an output is not valid."""

    def __init__(self, params: Opt3Params) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        return build_array(self, self._column)

    def _column(self, m: Module, c: int, weights: list[Value]) -> ColumnPorts:
        pes = [Opt3Pe(self.params.array) for _ in weights]
        for n, (pe, held) in enumerate(zip(pes, weights, strict=True)):
            m.submodules[f"pe_{c}_{n}"] = pe
            m.d.comb += pe.weights.eq(held)
        return ColumnPorts(pes, [pe.pair for pe in pes])


@shared
class Opt3Pe(Component):
    """A sequencer, whose ports are passed on, and the pair that its steps are added to."""

    def __init__(self, array: SparseArray) -> None:
        self.array = array
        super().__init__(
            {
                **sequencer_ports(array),
                "weights": In(unsigned(array.tile_k * array.weight_bits)),
                "pair": Out(unsigned(2 * array.acc_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.sequencer = sequencer = Sequencer(self.array)
        for name, member in sequencer_ports(self.array).items():
            inner, outer = getattr(sequencer, name), getattr(self, name)
            m.d.comb += inner.eq(outer) if member.flow is In else outer.eq(inner)
        m.d.comb += self.pair.eq(add_step(m, self.array, self.weights, sequencer))
        return m
