"""OPT2 array: products of equal bit-weight are reduced first; contract and parameters in models/opt2.py."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.adder_tree import ARITY
from models.opt2 import Opt2Params
from rtl import ent
from rtl.arith import Digit, delay, fit, product_row
from rtl.emit import shared
from rtl.stationary import stationary_control


def _vector(bits: int, lanes: int) -> data.ArrayLayout:
    return data.ArrayLayout(signed(bits), lanes)


def streams(params: Opt2Params) -> dict[str, Any]:
    """`i_weight` {weight[cols]}, `i_act` {act[rows], psum[cols], last}, `o_psum` {psum[cols]}."""
    p = params
    act = {"act": _vector(p.act_bits, p.rows), "psum": _vector(p.acc_bits, p.cols), "last": 1}
    return {
        "i_weight": In(stream.Signature(data.StructLayout({"weight": _vector(p.weight_bits, p.cols)}))),
        "i_act": In(stream.Signature(data.StructLayout(act))),
        "o_psum": Out(stream.Signature(data.StructLayout({"psum": _vector(p.acc_bits, p.cols)}))),
    }


class Opt2(Component):
    """The vector encoder, the tiles and the skewing registers; payload is zero while an output is not valid."""

    def __init__(self, params: Opt2Params) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        control = stationary_control(m, self, p.geometry)
        advance = control.advance
        codes = [_encoded(m, p, self.i_act.payload.act, tile, advance) for tile in range(p.tiles)]
        results = []
        for c in range(p.cols):
            if c:
                codes = [delay(m, code, 1, advance) for code in codes]
            psum = delay(m, self.i_act.payload.psum[c], p.wait + c, advance)
            weights: Value = self.i_weight.payload.weight[c]
            for t in range(p.tiles):
                m.submodules[f"pe_{t}_{c}"] = pe = TilePe(p)
                m.d.comb += [
                    pe.advance.eq(advance),
                    pe.load.eq(control.load),
                    pe.codes.eq(codes[t]),
                    pe.weight.eq(weights),
                    pe.psum.eq(psum),
                ]
                psum, weights = pe.psum_out, pe.weight_out
            results.append(delay(m, psum, p.cols - 1 - c, advance))
        m.d.comb += self.o_psum.payload.as_value().eq(Mux(self.o_psum.valid, Cat(*results), 0))
        return m


def _encoded(m: Module, p: Opt2Params, act: Any, tile: int, advance: Value) -> Value:
    """The code words of a tile's lanes, behind the encoders' register; each tile one cycle after the one above it."""
    words = Cat(ent.encode(m, act[tile * p.tile_k + k]) for k in range(p.tile_k))
    return delay(m, words, 1 + tile, advance)


@shared
class TilePe(Component):
    """psum_out <= psum + the products of `tile_k` held weights with the activations that came len(stages) + 1 cycles
    before.

    Weights move down one lane when `load`; all other registers move when `advance`.
    """

    def __init__(self, params: Opt2Params) -> None:
        p = self.params = params
        super().__init__(
            {
                "advance": In(1),
                "load": In(1),
                "codes": In(unsigned(p.tile_k * (p.act_bits + 1))),
                "weight": In(signed(p.weight_bits)),
                "weight_out": Out(signed(p.weight_bits)),
                "psum": In(signed(p.acc_bits)),
                "psum_out": Out(signed(p.acc_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        weights = self._weights(m)
        lanes = [ent.digits(self.codes.word_select(k, p.act_bits + 1)) for k in range(p.tile_k)]
        sums = [self._bit_weight(m, [lane[d] for lane in lanes], weights) for d in range(p.digits)]
        shifted = sum((total << (2 * d) for d, total in enumerate(sums[1:], start=1)), start=sums[0])
        tile = delay(m, shifted[: p.tile_bits].as_signed(), 1, self.advance)
        psum = Signal.like(self.psum_out, name="psum_reg", reset_less=True)
        with m.If(self.advance):
            m.d.sync += psum.eq(fit(m, self.psum + tile, p.acc_bits, p.overflow))
        m.d.comb += self.psum_out.eq(psum)
        return m

    def _weights(self, m: Module) -> list[Value]:
        """The held weights, the first lane's on top."""
        held, weight = [], self.weight
        for k in range(self.params.tile_k):
            register = Signal(signed(self.params.weight_bits), name=f"weight_{k}", reset_less=True)
            with m.If(self.load):
                m.d.sync += register.eq(weight)
            held.append(register)
            weight = register
        m.d.comb += self.weight_out.eq(weight)
        return held

    def _bit_weight(self, m: Module, digits: list[Digit], weights: list[Value]) -> Value:
        """The sum of a bit-weight over the tile's lanes, ARITY words becoming one from register to register."""
        p = self.params
        first, *others = p.stages
        lanes = list(zip(digits, weights, strict=True))
        groups = [lanes[i : i + ARITY] for i in range(0, len(lanes), ARITY)]
        words = [self._selected(m, group, p.sum_bits(count)) for group, count in zip(groups, first, strict=True)]
        for counts in others:
            sums = [sum(words[i + 1 : i + ARITY], start=words[i]) for i in range(0, len(words), ARITY)]
            words = [
                delay(m, total[: p.sum_bits(count)].as_signed(), 1, self.advance)
                for total, count in zip(sums, counts, strict=True)
            ]
        return words[0]

    def _selected(self, m: Module, lanes: list[tuple[Digit, Value]], width: int) -> Value:
        """The sum of some lanes' digits times their weights, registered."""
        products = [product_row(m, digit, weight) for digit, weight in lanes]
        # a sign bit is inverted, which adds its weight: one constant takes that away for all lanes
        inverted = [Cat(row[:-1], ~row[-1]) for row in products]
        signs = Const(-len(products) << self.params.weight_bits, signed(width)).as_unsigned()
        # what is due to complemented products is one bit each
        total = sum((*(Value.cast(digit.neg) for digit, _ in lanes), *inverted), start=signs)
        return delay(m, total[:width].as_signed(), 1, self.advance)
