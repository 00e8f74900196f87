"""Quantizer; contract and parameters in models/quantizer.py."""

from __future__ import annotations

from typing import Any, NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.bits import Rounding
from models.quantizer import (
    E8M0_BIAS,
    HALF_BIAS,
    HALF_LEAST,
    HALF_ONE,
    HALF_SPARE,
    LANE_STAGES,
    QuantizerParams,
    Scale,
)
from rtl.arith import delay
from rtl.emit import shared
from rtl.floats import absolute, leading_zeros, named, normalise_half, unpack_half
from rtl.hadamard import chosen
from rtl.stationary import Pipeline


def streams(params: QuantizerParams) -> dict[str, Any]:
    """`i_x` {x[lanes]} and `o_y` {y[lanes], scale}; static without scale."""
    value = unsigned(params.in_bits) if params.is_float else signed(params.in_bits)
    x = data.StructLayout({"x": data.ArrayLayout(value, params.lanes)})
    y: dict[str, Any] = {"y": data.ArrayLayout(signed(params.bits), params.lanes)}
    scale = {} if params.scale is Scale.STATIC else {"scale": params.scale_bits}
    return {"i_x": In(stream.Signature(x)), "o_y": Out(stream.Signature(data.StructLayout(y | scale)))}


class Group(NamedTuple):
    """What the lanes need of the group that leaves."""

    anchor: Value
    """exponent of its largest magnitude, as wide as anchor_bits"""
    scale: Value
    """what its scale is made of: the largest magnitude, or the exponent and whether all values are zero"""
    reciprocal: Value | None


class Quantizer(Component):
    """The quantizer behind a stream; payload is zero while the output is not valid."""

    def __init__(self, params: QuantizerParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m, p = Module(), self.params
        m.submodules.pipeline = pipeline = Pipeline(LANE_STAGES)
        m.d.comb += [pipeline.accept.eq(self.o_y.ready), self.o_y.valid.eq(pipeline.shown)]
        if p.scale is Scale.STATIC:
            m.d.comb += [
                self.i_x.ready.eq(pipeline.advance),
                pipeline.taken.eq(self.i_x.valid & self.i_x.ready),
            ]
            leaving = self._lanes(m, pipeline, self.i_x.payload.as_value(), None)
        else:
            leaving = self._grouped(m, pipeline)
        m.d.comb += self.o_y.payload.as_value().eq(Mux(self.o_y.valid, leaving, 0))
        return m

    def _grouped(self, m: Module, pipeline: Pipeline) -> Value:
        p, count = self.params, _counts(m, self, pipeline)
        m.submodules.buffer = buffer = Buffer(p.lanes * p.in_bits, p.buffer_beats)
        m.d.comb += [
            buffer.write.eq(count.taken),
            buffer.write_at.eq(count.write_at),
            buffer.data.eq(self.i_x.payload.as_value()),
            buffer.read_at.eq(count.read_at),
        ]
        peak = _peak(m, p, count, self.i_x.payload.as_value())
        group = _shifted(m, p, count, peak) if p.scale is Scale.POT else _divided(m, p, count, peak)
        codes = self._lanes(m, pipeline, buffer.out, group)
        scale = delay(m, group.scale, LANE_STAGES, pipeline.advance)
        return Cat(codes, _scale(p, scale))

    def _lanes(self, m: Module, pipeline: Pipeline, x: Value, group: Group | None) -> Value:
        p, codes = self.params, []
        shared_places = None if p.is_float or group is None else delay(m, group.anchor, 1, pipeline.advance)
        for i in range(p.lanes):
            m.submodules[f"lane_{i}"] = lane = Lane(p)
            m.d.comb += [lane.advance.eq(pipeline.advance), lane.x.eq(x.word_select(i, p.in_bits))]
            if group is not None:
                m.d.comb += lane.anchor.eq(group.anchor if shared_places is None else shared_places)
            if group is not None and group.reciprocal is not None:
                m.d.comb += lane.reciprocal.eq(group.reciprocal)
            codes.append(lane.y)
        return Cat(*codes)


class Counts(NamedTuple):
    """What the control says in a cycle."""

    taken: Value
    last: Value
    """the beat that enters is its group's last"""
    write_at: Value
    read_at: Value
    waiting: Value
    """the largest magnitude of a group has not gone on"""
    handed: Value
    """it goes on"""
    delivered: Value
    """a group starts to leave with the next cycle"""
    dividing: Value
    """the divider makes a bit"""


def _counts(m: Module, unit: Quantizer, pipeline: Pipeline) -> Counts:
    """Counters, and the streams' valid and ready, as GroupControl in models/quantizer.py has them."""
    p = unit.params
    filled, left = Signal(range(p.buffer_beats + 1), name="filled"), Signal(range(p.group_beats + 1), name="left")
    waiting, taken, reading, handed = (Signal(name=name) for name in ("waiting", "taken", "reading", "handed"))
    free = named(m, (left == 0) | ((left == 1) & pipeline.advance))
    delivered, dividing = _delivery(m, p, waiting, handed, free)
    last = _count(m, "entered", p.group_beats, taken)
    write_at, read_at = (
        _place(m, name, p.buffer_beats, at) for name, at in (("write_at", taken), ("read_at", reading))
    )
    m.d.comb += [
        unit.i_x.ready.eq((filled != p.buffer_beats) & ~(last & waiting & ~handed)),
        taken.eq(unit.i_x.valid & unit.i_x.ready),
        reading.eq((left != 0) & pipeline.advance),
        pipeline.taken.eq(reading),
    ]
    m.d.sync += [
        filled.eq(filled + taken - reading),
        left.eq(Mux(delivered, p.group_beats, left - reading)),
        waiting.eq((waiting & ~handed) | (taken & last)),
    ]
    return Counts(taken, last, write_at, read_at, waiting, handed, delivered, dividing)


def _delivery(m: Module, p: QuantizerParams, waiting: Value, handed: Signal, free: Value) -> tuple[Value, Value]:
    """Joins `handed`; gives `delivered` and `dividing`. A divider between them works reciprocal_bits cycles."""
    if p.scale is Scale.POT:
        m.d.comb += handed.eq(waiting & free)
        return handed, Const(0, 1)
    busy, steps = Signal(name="busy"), Signal(range(p.reciprocal_bits + 1), name="steps")
    delivered = named(m, busy & (steps == 0) & free)
    m.d.comb += handed.eq(waiting & (~busy | delivered))
    m.d.sync += busy.eq(handed | (busy & ~delivered))
    with m.If(handed):
        m.d.sync += steps.eq(p.reciprocal_bits)
    with m.Elif(steps != 0):
        m.d.sync += steps.eq(steps - 1)
    return delivered, steps != 0


def _count(m: Module, name: str, limit: int, enable: Value) -> Value:
    """Whether a counter that goes from 0 to `limit` - 1 when `enable` is at its end."""
    if limit == 1:
        return Const(1, 1)
    place = _place(m, name, limit, enable)
    return named(m, place == limit - 1)


def _place(m: Module, name: str, limit: int, enable: Value) -> Signal:
    place = Signal(range(limit), name=name)
    with m.If(enable):
        m.d.sync += place.eq(Mux(place == limit - 1, 0, place + 1))
    return place


@shared
class Buffer(Component):
    """`depth` words: one is written, one is read in the same cycle."""

    def __init__(self, width: int, depth: int) -> None:
        self.width, self.depth = width, depth
        places = {"write_at": In(range(depth)), "read_at": In(range(depth))}
        super().__init__({"write": In(1), **places, "data": In(width), "out": Out(width)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        words = [Signal(self.width, name=f"word_{i}", reset_less=True) for i in range(self.depth)]
        for i, word in enumerate(words):
            with m.If(self.write & (self.write_at == i)):
                m.d.sync += word.eq(self.data)
        m.d.comb += self.out.eq(chosen(words, self.read_at))
        return m


def _peak(m: Module, p: QuantizerParams, count: Counts, x: Value) -> Value:
    """The largest magnitude of the group that waits; in the cycle after its last beat."""
    magnitudes = [_magnitude(m, p, x.word_select(i, p.in_bits)) for i in range(p.lanes)]
    running = Signal(p.peak_bits, name="running", reset_less=False)
    peak = Signal(p.peak_bits, name="peak", reset_less=True)
    entering = largest(m, magnitudes if p.group_beats == 1 else [*magnitudes, running])
    with m.If(count.taken):
        if p.group_beats > 1:
            m.d.sync += running.eq(Mux(count.last, 0, entering))
        with m.If(count.last):
            m.d.sync += peak.eq(entering)
    return peak


def _magnitude(m: Module, p: QuantizerParams, x: Value) -> Value:
    return x[: p.peak_bits] if p.is_float else absolute(m, x)[1]


def largest(m: Module, numbers: list[Value]) -> Value:
    """Of unsigned numbers of one width, by a tree of comparisons."""
    while len(numbers) > 1:
        pairs = [numbers[i : i + 2] for i in range(0, len(numbers), 2)]
        numbers = [named(m, Mux(pair[0] > pair[-1], pair[0], pair[-1])) if pair[1:] else pair[0] for pair in pairs]
    return numbers[0]


def _normalised(m: Module, p: QuantizerParams, peak: Value) -> tuple[Value, Value]:
    """Mantissa with its top bit set, and anchor, of a peak that is not zero."""
    if p.is_float:
        whole = normalise_half(m, Cat(peak, Const(0, 1)))
        return whole.mantissa, named(m, (whole.exponent - HALF_LEAST)[: p.anchor_bits])
    zeros = leading_zeros(m, peak)
    return named(m, (peak << zeros)[: p.digits]), named(m, (p.in_bits - 1 - zeros)[: p.anchor_bits])


def _shifted(m: Module, p: QuantizerParams, count: Counts, peak: Value) -> Group:
    """Of a power of two: the exponent alone, and whether the group is one of zeros."""
    zero = named(m, ~peak.any())
    _, exponent = _normalised(m, p, named(m, Cat(peak[0] | zero, peak[1:])))
    anchor, is_zero = Signal(p.anchor_bits, name="anchor", reset_less=True), Signal(name="is_zero", reset_less=True)
    with m.If(count.delivered):
        m.d.sync += [anchor.eq(exponent), is_zero.eq(zero)]
    return Group(anchor, Cat(anchor, is_zero), None)


def _divided(m: Module, p: QuantizerParams, count: Counts, peak: Value) -> Group:
    """Behind a divider: the group that leaves has its reciprocal."""
    whole = named(m, Mux(peak.any(), peak, HALF_ONE if p.is_float else 1))
    mantissa, exponent = _normalised(m, p, whole)
    m.submodules.divider = divider = Divider(p.largest << (p.digits - p.bits), p.digits, p.reciprocal_bits)
    m.d.comb += [divider.start.eq(count.handed), divider.step.eq(count.dividing), divider.divisor.eq(mantissa)]
    entered = _register(m, "entered", Cat(exponent, whole), count.handed)
    left = _register(m, "leaving", Cat(entered, divider.quotient + 1), count.delivered)
    anchor, rest = left[: p.anchor_bits], left[p.anchor_bits :]
    return Group(anchor, rest[: p.peak_bits], rest[p.peak_bits :][: p.reciprocal_bits])


def _register(m: Module, name: str, value: Value, enable: Value) -> Signal:
    register = Signal(len(value), name=f"{name}_reg", reset_less=True)
    with m.If(enable):
        m.d.sync += register.eq(value)
    return register


@shared
class Divider(Component):
    """quotient = floor(remainder * 2^steps / divisor) after `start` and then `steps` times `step`: restoring division.

    `remainder` is less than any divisor of `width` bits with its top bit set.
    """

    def __init__(self, remainder: int, width: int, steps: int) -> None:
        self.remainder, self.width, self.steps = remainder, width, steps
        super().__init__({"start": In(1), "step": In(1), "divisor": In(width), "quotient": Out(steps)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        divisor, remainder = (Signal(self.width, name=name, reset_less=True) for name in ("held", "remainder"))
        quotient = Signal(self.steps, name="quotient_reg", reset_less=True)
        trial = Signal(self.width + 2)
        m.d.comb += [trial.eq((remainder << 1) - divisor), self.quotient.eq(quotient)]
        fits = ~trial[-1]
        with m.If(self.start):
            m.d.sync += [divisor.eq(self.divisor), remainder.eq(self.remainder)]
        with m.Elif(self.step):
            m.d.sync += [
                remainder.eq(Mux(fits, trial, remainder << 1)),
                quotient.eq(Cat(fits, quotient)),
            ]
        return m


def _scale(p: QuantizerParams, made_of: Value) -> Value:
    """The scale as it leaves."""
    if p.scale is Scale.REAL:
        return Cat(made_of, Const(0, p.scale_bits - p.peak_bits))
    anchor, zero = made_of[: p.anchor_bits], made_of[p.anchor_bits]
    offset = E8M0_BIAS - (p.bits - 2) + (HALF_LEAST - HALF_BIAS if p.is_float else 0)
    return Mux(zero, E8M0_BIAS, anchor + offset)[: p.scale_bits]


@shared
class Lane(Component):
    """y <= the code of x, LANE_STAGES registers that move on `advance`.

    `anchor`: of FP16 that of x, which enters in the same cycle; of integers, where all lanes share the shift, that of
    the value one stage later.
    """

    def __init__(self, params: QuantizerParams) -> None:
        self.params = p = params
        group = {} if p.scale is Scale.STATIC else {"anchor": In(p.anchor_bits)}
        group |= {"reciprocal": In(p.reciprocal_bits)} if p.scale is Scale.REAL else {}
        super().__init__({"advance": In(1), "x": In(p.in_bits), **group, "y": Out(p.bits)})

    def elaborate(self, platform: object) -> Module:
        m, p = Module(), self.params
        negative, exponent, magnitude = self._unpacked(m)
        word = Signal(p.word_bits, name="word", reset_less=True)
        sign, code = Signal(name="sign", reset_less=True), Signal(p.bits, name="code", reset_less=True)
        places = self._places(m, exponent)
        with m.If(self.advance):
            m.d.sync += [
                word.eq(self._product(magnitude)),
                sign.eq(negative),
                code.eq(signed_code(m, word, places, sign, p.bits, p.rounding)),
            ]
        m.d.comb += self.y.eq(code)
        return m

    def _unpacked(self, m: Module) -> tuple[Value, Value, Value]:
        if self.params.is_float:
            return tuple(unpack_half(m, self.x))
        negative, magnitude = absolute(m, self.x)
        return negative, Const(0, 1), magnitude

    def _product(self, magnitude: Value) -> Value:
        p = self.params
        match p.scale:
            case Scale.POT:
                return magnitude << (p.bits - 2)
            case Scale.REAL:
                return (magnitude * self.reciprocal) >> (p.fraction - p.digits - 1)
        return (magnitude * p.multiplier) << (HALF_SPARE if p.is_float else 0)

    def _places(self, m: Module, exponent: Value) -> Value:
        """By how many places the word of the second stage is shifted."""
        p = self.params
        if not p.is_float:
            return Const(p.shift) if p.scale is Scale.STATIC else self.anchor + (2 if p.scale is Scale.REAL else 0)
        if p.scale is Scale.STATIC:
            upper = Const(p.shift + 25 + HALF_SPARE)
        else:
            upper = self.anchor + (p.digits + (1 if p.scale is Scale.REAL else -1) + HALF_LEAST)
        return delay(m, (upper - exponent)[: p.places_bits], 1, self.advance)


def signed_code(m: Module, word: Value, places: Value, negative: Value, bits: int, rounding: Rounding) -> Value:
    """word / 2^places rounded, limited to `bits` bits without the least number, and negated where `negative`."""
    kept, below = shifted_right(m, Cat(Const(0, 1), word), places)
    whole = named(m, kept[1:] + round_up(rounding, negative, kept[1], kept[0], below))
    limited = whole[: bits - 1] | whole[bits - 1 :].any().replicate(bits - 1)
    return ((Cat(limited, Const(0, 1)) ^ negative.replicate(bits)) + negative)[:bits]


def shifted_right(m: Module, word: Value, places: Value) -> tuple[Value, Value]:
    """`word` without as many of its lowest bits, and whether any of them was set."""
    lost: Value = Const(0, 1)
    for i, bit in enumerate(places):
        step = min(1 << i, len(word))
        lost = named(m, lost | (bit & word[:step].any()))
        word = named(m, Mux(bit, word >> step, word)[: len(word)])
    return word, lost


def round_up(rounding: Rounding, negative: Value, odd: Value, half: Value, below: Value) -> Value:
    """Whether a magnitude grows by one: `half` is the bit below its lowest, `below` whether any under that is set."""
    match rounding:
        case Rounding.NEAREST_EVEN:
            return half & (below | odd)
        case Rounding.NEAREST_AWAY:
            return half
        case Rounding.FLOOR:
            return negative & (half | below)
    return Const(0, 1)
