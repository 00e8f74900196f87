"""XNOR and popcount array over bit planes; contract and parameters in models/bipolar.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from models.bipolar import BipolarParams
from rtl import columns
from rtl.columns import Edge
from rtl.emit import shared


def streams(params: BipolarParams) -> dict[str, Any]:
    """`i_weight` {weight[cols], word[cols]}, `i_act` {act[rows], psum[cols], last}, `o_psum` {psum[cols]}."""
    weight = data.ArrayLayout(unsigned(params.weight_bits), params.cols)
    word = data.ArrayLayout(signed(params.word_bits), params.cols)
    return columns.streams(params.columns, {"weight": weight, "word": word})


class Bipolar(Component):
    """The array with its control and the sum of activations; payload is zero while an output is not valid."""

    def __init__(self, params: BipolarParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m, p = Module(), self.params
        edge = columns.enter(m, self, p.columns)
        acts = Signal(p.rows * p.act_bits, reset_less=True)
        with m.If(edge.control.advance):
            m.d.sync += acts.eq(Cat(*edge.acts))
        numbers = [acts.word_select(r, p.act_bits).as_signed() for r in range(p.rows)]
        # of -2 sum x; the top bits inverted, the planes are those of 2x + 1
        shared_terms = [_minus_twice_the_sum(m, p, edge, numbers)] if p.correction else []
        planes = Cat(*(Cat(*(_plane(x, i) for x in numbers)) for i in range(p.act_bits)))
        terms = [[self._column(m, edge, planes, c), *shared_terms] for c in range(p.cols)]
        columns.finish(m, self, p.columns, edge, terms)
        return m

    def _column(self, m: Module, edge: Edge, planes: Value, column: int) -> Value:
        """A column's weighted total, less what its weights add up to."""
        p, payload = self.params, self.i_weight.payload
        counts = []
        for j in range(p.weight_bits):
            m.submodules[f"pe_{column}_{j}"] = pe = BipolarPe(p.rows, p.act_bits)
            m.d.comb += [
                pe.advance.eq(edge.control.advance),
                pe.load.eq(edge.control.load),
                pe.bit.eq(payload.weight[column][j]),
                pe.planes.eq(planes),
            ]
            counts.append(pe.counts)
        m.submodules[f"weigher_{column}"] = weigher = Weigher(p)
        (word,) = columns.word_chain(m, payload.word[column], 1, edge.control.load, f"word_{column}")
        m.d.comb += [weigher.advance.eq(edge.control.advance), weigher.counts.eq(Cat(*counts)), weigher.word.eq(word)]
        return weigher.total


def _plane(x: Value, i: int) -> Value:
    """Bit i of the bipolar integer 2x + 1."""
    return ~x[i] if i == len(x) - 1 else x[i]


def _minus_twice_the_sum(m: Module, p: BipolarParams, edge: Edge, acts: list[Value]) -> Value:
    """A register a stage: the sum, its negative."""
    total, negative = (Signal(signed(p.act_sum_bits), name=name, reset_less=True) for name in ("act_sum", "act_minus"))
    with m.If(edge.control.advance):
        m.d.sync += [total.eq(sum(acts[1:], start=acts[0])), negative.eq(-total)]
    return Cat(Const(0, 1), negative).as_signed()


@shared
class BipolarPe(Component):
    """One column and weight plane: holds a bit a row; counts_i <= how many of them equal the rows' bits of activation
    plane i, when `advance`. Bits move down one row when `load`."""

    def __init__(self, rows: int, act_bits: int) -> None:
        self.rows, self.act_bits = rows, act_bits
        super().__init__(
            {
                "advance": In(1),
                "load": In(1),
                "bit": In(1),
                "planes": In(unsigned(act_bits * rows)),
                "counts": Out(unsigned(act_bits * rows.bit_length())),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        held = Signal(self.rows, reset_less=True)
        with m.If(self.load):
            m.d.sync += held.eq(Cat(self.bit, held[: self.rows - 1]))
        counts = []
        for i in range(self.act_bits):
            count = Signal(self.rows.bit_length(), name=f"count_{i}", reset_less=True)
            agree = Signal(self.rows, name=f"agree_{i}")
            m.d.comb += agree.eq(~(self.planes.word_select(i, self.rows) ^ held))
            with m.If(self.advance):
                m.d.sync += count.eq(sum(agree[1:], start=agree[0]))
            counts.append(count)
        m.d.comb += self.counts.eq(Cat(*counts))
        return m


@shared
class Weigher(Component):
    """total <= sum_{i,j} 2^(i+j) (2 counts_ij - rows) + word, when `advance`.

    `rows` times all weights of pairs is a constant.
    """

    def __init__(self, params: BipolarParams) -> None:
        self.params = params
        pairs = params.act_bits * params.weight_bits
        super().__init__(
            {
                "advance": In(1),
                "counts": In(unsigned(pairs * params.count_bits)),
                "word": In(signed(params.word_bits)),
                "total": Out(signed(params.total_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m, p = Module(), self.params
        total = Signal.like(self.total, name="total_reg", reset_less=True)
        pairs = ((i, j) for j in range(p.weight_bits) for i in range(p.act_bits))
        counts = [self.counts.word_select(n, p.count_bits) << (i + j + 1) for n, (i, j) in enumerate(pairs)]
        all_weights = ((1 << p.act_bits) - 1) * ((1 << p.weight_bits) - 1)
        with m.If(self.advance):
            m.d.sync += total.eq(sum(counts, start=self.word - p.rows * all_weights))
        m.d.comb += self.total.eq(total)
        return m
