"""Multiplier-adder trees; contract and parameters in models/adder_tree.py."""

from __future__ import annotations

from itertools import chain
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import stream
from amaranth.lib.data import ArrayLayout, StructLayout
from amaranth.lib.wiring import Component, In, Out

from models.adder_tree import ARITY, AdderTreeParams
from models.style import Style
from rtl import booth
from rtl.arith import compress, delay, fit, positive_rows
from rtl.emit import shared
from rtl.stationary import stationary_control
from rtl.style import enter, leave, meet, multiply


def streams(params: AdderTreeParams) -> dict[str, Any]:
    """`i_weight` {weight[trees]}, `i_act` {act[lanes], psum[trees], last}, `o_psum` {psum[trees]}."""
    p = params
    psum = ArrayLayout(signed(p.acc_bits), p.trees)
    act = StructLayout({"act": ArrayLayout(signed(p.act_bits), p.lanes), "psum": psum, "last": 1})
    return {
        "i_weight": In(stream.Signature(StructLayout({"weight": ArrayLayout(signed(p.weight_bits), p.trees)}))),
        "i_act": In(stream.Signature(act)),
        "o_psum": Out(stream.Signature(StructLayout({"psum": psum}))),
    }


class AdderTree(Component):
    """The trees with their control; payload is zero while the output is not valid."""

    def __init__(self, params: AdderTreeParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        control = stationary_control(m, self, p.geometry)
        acts = Cat(enter(m, p.style, self.i_act.payload.act[k], control.advance) for k in range(p.lanes))
        results = []
        for t in range(p.trees):
            m.submodules[f"pe_{t}"] = pe = TreePe(p)
            m.d.comb += [
                pe.advance.eq(control.advance),
                pe.load.eq(control.load),
                pe.acts.eq(acts),
                pe.weight.eq(self.i_weight.payload.weight[t]),
                pe.psum.eq(meet(m, p.style, self.i_act.payload.psum[t], control.advance)),
            ]
            results.append(pe.psum_out)
        m.d.comb += self.o_psum.payload.as_value().eq(Mux(self.o_psum.valid, Cat(*results), 0))
        return m


@shared
class TreePe(Component):
    """psum_out: psum plus the products of `lanes` held weights with `acts`, len(stages) + 1 cycles later.

    Weights move down one lane when `load`; all other registers move when `advance`.
    """

    def __init__(self, params: AdderTreeParams) -> None:
        p = self.params = params
        super().__init__(
            {
                "advance": In(1),
                "load": In(1),
                "acts": In(unsigned(p.lanes * p.style.travel_bits(p.act_bits))),
                "weight": In(signed(p.weight_bits)),
                "psum": In(signed(p.acc_bits)),
                "psum_out": Out(signed(p.acc_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.params
        acts = [self.acts.word_select(k, p.style.travel_bits(p.act_bits)) for k in range(p.lanes)]
        weights = self._weights(m)
        psum = delay(m, self.psum, len(p.stages), self.advance)
        add = self._add_pair if p.style is Style.OPT1 else self._add_sum
        m.d.comb += self.psum_out.eq(add(m, acts, weights, psum))
        return m

    def _weights(self, m: Module) -> list[Value]:
        """The held weights, lane 0 first."""
        held, weight = [], self.weight
        for k in range(self.params.lanes):
            register = Signal(signed(self.params.weight_bits), name=f"weight_{k}", reset_less=True)
            with m.If(self.load):
                m.d.sync += register.eq(weight)
            held.append(register)
            weight = register
        return held

    def _add_sum(self, m: Module, acts: list[Value], weights: list[Value], psum: Value) -> Value:
        """psum + the tree's sum, registered and fitted; every product and every second level is registered."""
        p = self.params
        words = [
            delay(m, multiply(m, p.style, act, weight, p.product_bits), 1, self.advance)
            for act, weight in zip(acts, weights, strict=True)
        ]
        for counts in p.stages[1:]:
            sums = [_sum(words[i : i + ARITY]) for i in range(0, len(words), ARITY)]
            words = [
                delay(m, total[: p.node_bits(count)].as_signed(), 1, self.advance)
                for total, count in zip(sums, counts, strict=True)
            ]
        return delay(m, fit(m, psum + words[0], p.acc_bits, p.overflow), 1, self.advance)

    def _add_pair(self, m: Module, acts: list[Value], weights: list[Value], psum: Value) -> Value:
        """psum + the tree's carry-save pair, resolved and registered; pairs of products and of ARITY words are too."""
        p = self.params
        words = [
            positive_rows(m, booth.digits(act.as_signed()), weight, p.sum_bits)
            for act, weight in zip(acts, weights, strict=True)
        ]
        for counts in p.stages:
            size = ARITY if len(counts) < len(words) else 1  # the first stage is the lanes' own
            groups = [list(chain(*words[i : i + size])) for i in range(0, len(words), size)]
            words = [
                [delay(m, word, 1, self.advance) for word in _pair(m, group, p.node_bits(count))]
                for group, count in zip(groups, counts, strict=True)
            ]
        # the constant stands first, where it leaves least to add
        rows = [Const(-p.excess & (1 << p.acc_bits) - 1, p.acc_bits), *words[0], psum.as_unsigned()]
        return leave(m, p.style, Cat(*compress(m, rows, p.acc_bits)), self.advance)


def _sum(words: list[Value]) -> Value:
    """As a tree, not as a chain."""
    while len(words) > 1:
        words = [sum(words[i + 1 : i + 2], start=words[i]) for i in range(0, len(words), 2)]
    return words[0]


def _pair(m: Module, words: list[Value], width: int) -> list[Value]:
    return [word[:width] for word in compress(m, words, width)]
