"""Quantizer; contract and parameters in models/quantizer.py."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.bits import Rounding
from models.floats import SINGLE_DIGITS
from models.quantizer import (
    E8M0_BIAS,
    HALF_BIAS,
    HALF_LEAST,
    HALF_ONE,
    HALF_PLACES,
    HALF_SPARE,
    SPAN_BITS,
    QuantizerParams,
    Scale,
)
from rtl.arith import delay, largest, round_up, shifted_right
from rtl.emit import shared
from rtl.floats import SINGLE_BIAS, absolute, leading_zeros, named, normalise_half, unpack_half
from rtl.floats import round_up as round_even
from rtl.hadamard import chosen
from rtl.stationary import Pipeline


def streams(params: QuantizerParams) -> dict[str, Any]:
    """`i_x` {x[lanes]} and `o_y` {y[lanes], scale, zero}; static without scale, and zero with zero points alone."""
    value = unsigned(params.in_bits) if params.is_float else signed(params.in_bits)
    x = data.StructLayout({"x": data.ArrayLayout(value, params.lanes)})
    y: dict[str, Any] = {"y": data.ArrayLayout(signed(params.bits), params.lanes)}
    y |= {} if params.scale is Scale.STATIC else {"scale": params.scale_bits}
    y |= {"zero": signed(params.bits)} if params.zero_points else {}
    return {"i_x": In(stream.Signature(x)), "o_y": Out(stream.Signature(data.StructLayout(y)))}


class Group(NamedTuple):
    """What the lanes need of the group that leaves."""

    anchor: Value
    """exponent of its largest magnitude, as wide as anchor_bits"""
    scale: Value
    """what its scale is made of: the largest magnitude, the range, or the exponent and whether all values are zero"""
    reciprocal: Value | None
    low: Value | None
    """the lower end, as a value of the lanes, of groups with zero points"""


class Quantizer(Component):
    """The quantizer behind a stream; payload is zero while the output is not valid."""

    def __init__(self, params: QuantizerParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m, p = Module(), self.params
        m.submodules.pipeline = pipeline = Pipeline(p.stages)
        m.d.comb += [pipeline.accept.eq(self.o_y.ready), self.o_y.valid.eq(pipeline.shown)]
        if p.scale is Scale.STATIC:
            m.d.comb += [
                self.i_x.ready.eq(pipeline.advance),
                pipeline.taken.eq(self.i_x.valid & self.i_x.ready),
            ]
            leaving = Cat(*self._lanes(m, pipeline, self.i_x.payload.as_value(), None))
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
        group = _group(m, p, count, self.i_x.payload.as_value())
        codes = self._lanes(m, pipeline, buffer.out, group)
        scale = _scale(p, delay(m, group.scale, p.stages, pipeline.advance))
        if group.low is None:
            return Cat(*codes, scale)
        *codes, zero = _offset(m, p, codes, pipeline.advance)
        return Cat(*codes, scale, zero)

    def _lanes(self, m: Module, pipeline: Pipeline, x: Value, group: Group | None) -> list[Value]:
        """Codes; with zero points signed steps, of the lower end last."""
        p = self.params
        lanes = {f"lane_{i}": (x.word_select(i, p.in_bits), p) for i in range(p.lanes)}
        if group is None:
            return [_lane(m, pipeline, name, *lane, {}) for name, lane in lanes.items()]
        shared = {"anchor": group.anchor if p.is_float else delay(m, group.anchor, 1, pipeline.advance)}
        if group.reciprocal is not None:
            shared["reciprocal"] = group.reciprocal
        if group.low is not None:
            lanes["lane_low"] = (group.low, replace(p, rounding=Rounding.NEAREST_EVEN))
        return [_lane(m, pipeline, name, *lane, shared) for name, lane in lanes.items()]


def _lane(m: Module, pipeline: Pipeline, name: str, x: Value, p: QuantizerParams, shared: dict[str, Value]) -> Value:
    m.submodules[name] = lane = Lane(p)
    m.d.comb += [lane.advance.eq(pipeline.advance), lane.x.eq(x)]
    m.d.comb += [getattr(lane, port).eq(value) for port, value in shared.items()]
    return lane.y


def _offset(m: Module, p: QuantizerParams, steps: list[Value], advance: Value) -> list[Value]:
    """Registers: codes from signed steps, and the zero point from those of the lower end, the last."""
    *distances, low = steps
    shifted = [limited_code(m, distance - low, p.bits) for distance in distances]
    # 2^(bits-1) less: the top bit inverted
    return [delay(m, code ^ (1 << (p.bits - 1)), 1, advance) for code in (*shifted, named(m, -low)[: p.bits])]


def limited_code(m: Module, count: Value, bits: int) -> Value:
    """The signed `count`, of steps from the lower end, limited to 0 and 2^bits - 1."""
    whole = named(m, count)
    return named(m, (whole[:bits] | whole[bits:].any().replicate(bits)) & (~whole[-1]).replicate(bits))


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


def _group(m: Module, p: QuantizerParams, count: Counts, x: Value) -> Group:
    values = [x.word_select(i, p.in_bits) for i in range(p.lanes)]
    if p.zero_points:
        high = _largest_of_group(m, "high", count, p, [_above(p, value) for value in values])
        low = _largest_of_group(m, "low", count, p, [_under(p, value) for value in values])
        return _ranged(m, p, count, high, low)
    peak = _largest_of_group(m, "peak", count, p, [_magnitude(m, p, value) for value in values])
    return _shifted(m, p, count, peak) if p.scale is Scale.POT else _divided(m, p, count, peak)


def _largest_of_group(m: Module, name: str, count: Counts, p: QuantizerParams, entering: list[Value]) -> Value:
    """The largest number of the group that waits; in the cycle after its last beat."""
    running = Signal(len(entering[0]), name=f"running_{name}", reset_less=False)
    found = Signal(len(entering[0]), name=name, reset_less=True)
    most = largest(m, entering if p.group_beats == 1 else [*entering, running])
    with m.If(count.taken):
        if p.group_beats > 1:
            m.d.sync += running.eq(Mux(count.last, 0, most))
        with m.If(count.last):
            m.d.sync += found.eq(most)
    return found


def _magnitude(m: Module, p: QuantizerParams, x: Value) -> Value:
    return x[: p.peak_bits] if p.is_float else absolute(m, x)[1]


def _above(p: QuantizerParams, x: Value) -> Value:
    """max(x, 0), a pattern of FP16 without its sign."""
    return x[: p.high_bits] & (~x[-1]).replicate(p.high_bits)


def _under(p: QuantizerParams, x: Value) -> Value:
    """What grows as min(x, 0) falls: of FP16 its pattern without its sign; of integers 0, or 2^(in_bits-1) - 1 - x,
    which no carry makes."""
    if p.is_float:
        return x[: p.peak_bits] & x[-1].replicate(p.peak_bits)
    return Cat(~x[:-1] & x[-1].replicate(p.in_bits - 1), x[-1])


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
    return Group(anchor, Cat(anchor, is_zero), None, None)


def _divided(m: Module, p: QuantizerParams, count: Counts, peak: Value) -> Group:
    """Behind a divider: the group that leaves has its reciprocal."""
    whole = named(m, Mux(peak.any(), peak, HALF_ONE if p.is_float else 1))
    mantissa, exponent = _normalised(m, p, whole)
    divider = _divider(m, p, count, mantissa)
    entered = _register(m, "entered", Cat(exponent, whole), count.handed)
    left = _register(m, "leaving", Cat(entered, divider.quotient + 1), count.delivered)
    return Group(*_parts(left, p.anchor_bits, p.made_bits, p.reciprocal_bits), None)


def _ranged(m: Module, p: QuantizerParams, count: Counts, high: Value, low: Value) -> Group:
    """As `_divided`, of a group's range; `high` and `low` are `_above` and `_under` of its ends."""
    span = half_span(m, high, low) if p.is_float else integer_span(m, high, low)
    whole = named(m, Mux(span.any(), span, 1 << HALF_PLACES if p.is_float else 1))
    mantissa, exponent = _leading(m, p, whole)
    end = low if p.is_float else Cat(~low[:-1], Const(1)) & low[-1].replicate(p.in_bits)
    divider = _divider(m, p, count, mantissa)
    # of FP16 what the scale is made of can wait: the divider has the digits
    kept = [exponent, end] if p.is_float else [exponent, end, whole]
    entered = _parts(_register(m, "entered", Cat(*kept), count.handed), *map(len, kept))
    made = _single(m, divider.held, entered[0]) if p.is_float else entered[2]
    reciprocal = (divider.quotient + 1)[: p.reciprocal_bits]
    leaving = Cat(entered[0], made, reciprocal, entered[1])
    left = _register(m, "leaving", leaving, count.delivered)
    *parts, end = _parts(left, p.anchor_bits, p.made_bits, p.reciprocal_bits, p.low_bits)
    return Group(*parts, Cat(end, Const(1)) if p.is_float else end)


def integer_span(m: Module, high: Value, low: Value) -> Value:
    return named(m, (high + low[:-1] + low[-1])[: len(low)])


def half_span(m: Module, high: Value, low: Value) -> Value:
    """The sum of two patterns without sign, in units of the least half."""
    ends = [unpack_half(m, Cat(end, Const(0, 1))) for end in (high, low)]
    places = [named(m, (end.mantissa << (end.exponent - 1)[:5])[: SPAN_BITS - 1]) for end in ends]
    return named(m, places[0] + places[1])


def _leading(m: Module, p: QuantizerParams, span: Value) -> tuple[Value, Value]:
    """Leading digits of a range that is not zero, and its anchor."""
    zeros = leading_zeros(m, span)
    word = named(m, (span << zeros)[: len(span)])
    anchor = named(m, (len(span) - 1 - zeros)[: p.anchor_bits])
    cut = len(span) - p.divisor_digits
    return (Cat(word[cut] | word[:cut].any(), word[cut + 1 :]) if cut else word), anchor


def _single(m: Module, mantissa: Value, anchor: Value) -> Value:
    """The pattern, without its sign, of a range in single precision."""
    excess = len(mantissa) - SINGLE_DIGITS
    # the top digit adds one to the exponent field, and so does a mantissa that rounds up to 2
    below = named(m, (anchor + (SINGLE_BIAS - HALF_PLACES - 1))[:8])
    digits = Cat(mantissa[excess:], Const(0, 8))
    return named(m, (Cat(Const(0, SINGLE_DIGITS - 1), below) + digits + round_even(mantissa, excess))[:31])


def _divider(m: Module, p: QuantizerParams, count: Counts, divisor: Value) -> Divider:
    # as many digits up as make it a fraction of the divisor's top digit
    start = p.steps << (p.divisor_digits - 1 - p.steps.bit_length())
    m.submodules.divider = divider = Divider(start, p.divisor_digits, p.reciprocal_bits)
    m.d.comb += [divider.start.eq(count.handed), divider.step.eq(count.dividing), divider.divisor.eq(divisor)]
    return divider


def _parts(word: Value, *widths: int) -> list[Value]:
    """From the lowest bits up."""
    ends = list(accumulate(widths, initial=0))
    return [word[begin:end] for begin, end in pairwise(ends)]


def _register(m: Module, name: str, value: Value, enable: Value) -> Signal:
    register = Signal(len(value), name=f"{name}_reg", reset_less=True)
    with m.If(enable):
        m.d.sync += register.eq(value)
    return register


@shared
class Divider(Component):
    """quotient = floor(remainder * 2^steps / divisor) after `start` and then `steps` times `step`: restoring division.

    `held` is the divisor that started. `remainder` is less than any divisor of `width` bits with its top bit set.
    """

    def __init__(self, remainder: int, width: int, steps: int) -> None:
        self.remainder, self.width, self.steps = remainder, width, steps
        ports = {"divisor": In(width), "held": Out(width), "quotient": Out(steps)}
        super().__init__({"start": In(1), "step": In(1), **ports})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        divisor, remainder = (Signal(self.width, name=name, reset_less=True) for name in ("held_reg", "remainder"))
        quotient = Signal(self.steps, name="quotient_reg", reset_less=True)
        trial = Signal(self.width + 2)
        m.d.comb += [trial.eq((remainder << 1) - divisor), self.quotient.eq(quotient), self.held.eq(divisor)]
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
        return Cat(made_of, Const(0, p.scale_bits - p.made_bits))
    anchor, zero = made_of[: p.anchor_bits], made_of[p.anchor_bits]
    offset = E8M0_BIAS - (p.bits - 2) + (HALF_LEAST - HALF_BIAS if p.is_float else 0)
    return Mux(zero, E8M0_BIAS, anchor + offset)[: p.scale_bits]


@shared
class Lane(Component):
    """y <= the code of x, or with zero points its signed steps, two registers that move on `advance`.

    `anchor`: of FP16 that of x, which enters in the same cycle; of integers, where all lanes share the shift, that of
    the value one stage later.
    """

    def __init__(self, params: QuantizerParams) -> None:
        self.params = p = params
        group = {} if p.scale is Scale.STATIC else {"anchor": In(p.anchor_bits)}
        group |= {"reciprocal": In(p.reciprocal_bits)} if p.scale is Scale.REAL else {}
        super().__init__({"advance": In(1), "x": In(p.in_bits), **group, "y": Out(signed(p.step_bits))})

    def elaborate(self, platform: object) -> Module:
        m, p = Module(), self.params
        negative, exponent, magnitude = self._unpacked(m)
        word = Signal(p.word_bits, name="word", reset_less=True)
        sign, code = Signal(name="sign", reset_less=True), Signal(p.step_bits, name="code", reset_less=True)
        places, code_of = self._places(m, exponent), signed_steps if p.zero_points else signed_code
        with m.If(self.advance):
            m.d.sync += [
                word.eq(self._product(magnitude)),
                sign.eq(negative),
                code.eq(code_of(m, word, places, sign, p.bits, p.rounding)),
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
                return self._cut(magnitude * self.reciprocal)
        return (magnitude * p.multiplier) << (HALF_SPARE if p.is_float else 0)

    def _cut(self, product: Value) -> Value:
        p = self.params
        if p.has_wide_range:
            return Cat(product[p.unseen_bits : p.cut_bits].any(), product[p.cut_bits :])
        return product >> p.cut_bits

    def _places(self, m: Module, exponent: Value) -> Value:
        """By how many places the word of the second stage is shifted."""
        p = self.params
        if not p.is_float:
            return Const(p.shift) if p.scale is Scale.STATIC else self.anchor + (2 if p.scale is Scale.REAL else 0)
        if p.scale is Scale.STATIC:
            upper = Const(p.shift + 25 + HALF_SPARE)
        else:
            upper = self.anchor + (p.digits + (-1 if p.scale is Scale.POT else 1 + p.has_wide_range) + HALF_LEAST)
        return delay(m, (upper - exponent)[: p.places_bits], 1, self.advance)


def signed_code(m: Module, word: Value, places: Value, negative: Value, bits: int, rounding: Rounding) -> Value:
    """word / 2^places rounded, limited to `bits` bits without the least number, and negated where `negative`."""
    whole = _rounded(m, word, places, negative, rounding)
    limited = whole[: bits - 1] | whole[bits - 1 :].any().replicate(bits - 1)
    return _signed(limited, negative)


def signed_steps(m: Module, word: Value, places: Value, negative: Value, bits: int, rounding: Rounding) -> Value:
    """word / 2^places rounded, at most 2^bits, in `bits` + 2 bits, and negated where `negative`."""
    return _signed(_rounded(m, word, places, negative, rounding)[: bits + 1], negative)


def _rounded(m: Module, word: Value, places: Value, negative: Value, rounding: Rounding) -> Value:
    kept, below = shifted_right(m, Cat(Const(0, 1), word), places)
    return named(m, kept[1:] + round_up(rounding, negative, kept[1], kept[0], below))


def _signed(magnitude: Value, negative: Value) -> Value:
    width = len(magnitude) + 1
    return ((Cat(magnitude, Const(0, 1)) ^ negative.replicate(width)) + negative)[:width]
