"""Array with four lanes of K and a 6:2 compressor a PE; contract and parameters in models/opt4e.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module
from amaranth.lib.wiring import Component

from models.opt4e import Opt4eParams
from rtl.sparse import array_streams, build_array, column_of_shared_sequencer


def streams(params: Opt4eParams) -> dict[str, Any]:
    """Those of rtl/sparse.py."""
    return array_streams(params)


class Opt4e(Component):
    """Columns of one sequencer and `rows` PEs; payload is zero while an output is not valid."""

    def __init__(self, params: Opt4eParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        return build_array(self, column_of_shared_sequencer(self.params.array))
