"""Cube engine: the product of two blocks a cycle; contract and parameters in models/cube.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import stream
from amaranth.lib.data import ArrayLayout, StructLayout
from amaranth.lib.wiring import Component, In, Out

from models.bits import Overflow
from models.cube import CubeParams
from models.style import Style
from rtl import booth
from rtl.arith import compress, delay, fit, positive_rows
from rtl.emit import shared
from rtl.stationary import Pipeline
from rtl.style import enter, meet, multiply_add


def streams(params: CubeParams) -> dict[str, Any]:
    """`i_act` {act[n][n], last}, `i_weight` {weight[n][n]}, `o_psum` {psum[n][n]}."""
    p = params

    def block(bits: int) -> ArrayLayout:
        return ArrayLayout(ArrayLayout(signed(bits), p.n), p.n)

    return {
        "i_act": In(stream.Signature(StructLayout({"act": block(p.act_bits), "last": 1}))),
        "i_weight": In(stream.Signature(StructLayout({"weight": block(p.weight_bits)}))),
        "o_psum": Out(stream.Signature(StructLayout({"psum": block(p.acc_bits)}))),
    }


class Cube(Component):
    """The PEs with their skewing registers, accumulators and control; payload is zero while the output is not valid."""

    def __init__(self, params: CubeParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        control = CubeControl(p)
        m.submodules.control = control
        m.d.comb += [
            control.valid.eq(self.i_act.valid & self.i_weight.valid),
            control.last.eq(self.i_act.payload.last),
            control.accept.eq(self.o_psum.ready),
            self.i_act.ready.eq(control.taken),
            self.i_weight.ready.eq(control.taken),
            self.o_psum.valid.eq(control.shown),
        ]
        chains = self._chains(m, control.advance)
        sums = [self._accumulator(m, control, chains[i][j], i + j) for i in range(p.n) for j in range(p.n)]
        m.d.comb += self.o_psum.payload.as_value().eq(Mux(self.o_psum.valid, Cat(*sums), 0))
        return m

    def _chains(self, m: Module, advance: Value) -> list[list[Value]]:
        """What leaves chain (i, j), i + j cycles after chain (0, 0)."""
        p = self.params
        axis = range(p.n)
        act, weight = self.i_act.payload.act, self.i_weight.payload.weight
        acts = [[delay(m, enter(m, p.style, act[i][k], advance), i + k, advance) for k in axis] for i in axis]
        weights = [[delay(m, meet(m, p.style, weight[k][j], advance), j + k, advance) for j in axis] for k in axis]
        psums: list[list[Value]] = [[Const(0, p.style.psum_bits(p.chain_bits)) for _ in axis] for _ in axis]
        for k in axis:
            for i in axis:
                for j in axis:
                    m.submodules[f"pe_{i}_{j}_{k}"] = pe = CubePe(p)
                    m.d.comb += [
                        pe.advance.eq(advance),
                        pe.act.eq(acts[i][k]),
                        pe.weight.eq(weights[k][j]),
                        pe.psum.eq(psums[i][j]),
                    ]
                    acts[i][k], weights[k][j], psums[i][j] = pe.act_out, pe.weight_out, pe.psum_out
        return psums

    def _accumulator(self, m: Module, control: CubeControl, chain: Value, skew: int) -> Value:
        accumulator = Accumulator(self.params)
        m.submodules += accumulator
        m.d.comb += [
            accumulator.advance.eq(control.advance),
            accumulator.block.eq(chain),
            accumulator.valid.eq(control.valids[skew]),
            accumulator.first.eq(control.firsts[skew]),
            accumulator.last.eq(control.lasts[skew]),
        ]
        return accumulator.total


class CubeControl(Component):
    """Takes blocks, but a tile's last one only `gap` cycles after that of the tile before; marks that travel along.

    Bit s of `valids`, `firsts` and `lasts` tells of the block that stands at the end of the chains (i, j), i + j = s.
    """

    def __init__(self, params: CubeParams) -> None:
        self.params = params
        super().__init__(
            {
                "valid": In(1),  # both operands are there
                "last": In(1),
                "accept": In(1),
                "taken": Out(1),
                "advance": Out(1),
                "shown": Out(1),
                **{name: Out(params.gap) for name in ("valids", "firsts", "lasts")},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        m.submodules.ends = ends = Pipeline(p.latency)
        first = Signal(init=1)
        m.d.comb += [
            ends.accept.eq(self.accept),
            ends.taken.eq(self.taken & self.last),
            self.advance.eq(ends.advance),
            self.shown.eq(ends.shown),
            self.taken.eq(self.valid & ends.advance & ~(self.last & ends.before[: p.gap - 1].any())),
            self.lasts.eq(ends.before[p.chain_cycles - 1 :]),
        ]
        with m.If(self.taken):
            m.d.sync += first.eq(self.last)
        for name, mark in (("valids", self.taken), ("firsts", first)):
            marks = [delay(m, mark, p.chain_cycles, ends.advance, reset=True)]
            for _ in range(p.gap - 1):
                marks.append(delay(m, marks[-1], 1, ends.advance, reset=True))
            m.d.comb += getattr(self, name).eq(Cat(*marks))
        return m


@shared
class CubePe(Component):
    """psum_out <= psum + act * weight, act_out <= act, weight_out <= weight when `advance`."""

    def __init__(self, params: CubeParams) -> None:
        p = self.params = params
        widths = {
            "act": p.style.travel_bits(p.act_bits),
            "weight": p.weight_bits,
            "psum": p.style.psum_bits(p.chain_bits),
        }
        entering = {name: In(unsigned(bits)) for name, bits in widths.items()}
        leaving = {f"{name}_out": Out(unsigned(bits)) for name, bits in widths.items()}
        super().__init__({"advance": In(1), **entering, **leaving})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for name, value in (("act", self.act), ("weight", self.weight), ("psum", self._sum(m))):
            register = Signal(len(value), name=f"{name}_reg", reset_less=True)
            with m.If(self.advance):
                m.d.sync += register.eq(value)
            m.d.comb += getattr(self, f"{name}_out").eq(register)
        return m

    def _sum(self, m: Module) -> Value:
        p, weight = self.params, self.weight.as_signed()
        if p.style is not Style.OPT1:  # the chain holds the sum, so nothing is lost
            return multiply_add(m, p.style, self.act, weight, self.psum, p.chain_bits, Overflow.WRAP)
        rows = positive_rows(m, booth.digits(self.act.as_signed()), weight, p.chain_bits)
        pair = [self.psum[: p.chain_bits], self.psum[p.chain_bits :]]
        return Cat(*(word[: p.chain_bits] for word in compress(m, [*rows, *pair], p.chain_bits)))


@shared
class Accumulator(Component):
    """Adds up the blocks of a tile that leave a chain, and keeps the complete sum in `total` until the next one.

    A block counts when `valid`, starts a tile when `first` and completes it when `last`.
    """

    def __init__(self, params: CubeParams) -> None:
        p = self.params = params
        marks = {name: In(1) for name in ("advance", "valid", "first", "last")}
        block = In(unsigned(p.style.psum_bits(p.chain_bits)))
        super().__init__({**marks, "block": block, "total": Out(signed(p.acc_bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        sum_, total = Signal(p.style.psum_bits(p.acc_bits), reset_less=True), Signal(p.acc_bits, reset_less=True)
        start = Mux(self.first, 0, sum_)[: len(sum_)]
        if p.style is Style.OPT1:
            added, complete, last = self._add_pair(m, start), sum_[: p.acc_bits] + sum_[p.acc_bits :], Signal()
            with m.If(self.advance):
                m.d.sync += last.eq(self.last)
        else:
            added = fit(m, start.as_signed() + self.block.as_signed(), p.acc_bits, p.overflow)
            complete, last = added, self.last
        with m.If(self.advance & self.valid):
            m.d.sync += sum_.eq(added)
        with m.If(self.advance & last):
            m.d.sync += total.eq(complete)
        m.d.comb += self.total.eq(total)
        return m

    def _add_pair(self, m: Module, start: Value) -> Value:
        p = self.params
        block = [self.block[: p.chain_bits], self.block[p.chain_bits :]]
        constant = Const(-p.excess & (1 << p.acc_bits) - 1, p.acc_bits)
        rows = [constant, *block, start[: p.acc_bits], start[p.acc_bits :]]
        return Cat(*compress(m, rows, p.acc_bits))
