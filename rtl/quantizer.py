"""Quantizer; contract and parameters in models/quantizer.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from itertools import accumulate, pairwise
from operator import or_
from typing import Any, NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.bits import Rounding
from models.floats import SINGLE_DIGITS
from models.quantizer import (
    DIVIDER_DIGIT,
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
from rtl.arith import delay, full_adders, largest, round_up, shifted_right
from rtl.emit import shared
from rtl.floats import SINGLE_BIAS, absolute, leading_zeros, named, normalise_half, unpack_half
from rtl.floats import round_up as round_even
from rtl.stationary import Pipeline


def streams(params: QuantizerParams) -> dict[str, Any]:
    """`i_x` {x[lanes]} and `o_y` {y[lanes], scale, zero}; static without scale, and zero with zero points alone."""
    value = unsigned(params.in_bits) if params.is_float else signed(params.in_bits)
    x = data.StructLayout({"x": data.ArrayLayout(value, params.lanes)})
    y: dict[str, Any] = {"y": data.ArrayLayout(signed(params.bits), params.lanes)}
    y |= {} if params.scale is Scale.STATIC else {"scale": params.scale_bits}
    y |= {"zero": signed(params.bits)} if params.zero_points else {}
    return {"i_x": In(stream.Signature(x)), "o_y": Out(stream.Signature(data.StructLayout(y)))}


Merge = Callable[[Module, QuantizerParams, list[Value]], Value]


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
        m.submodules.pipeline = pipeline = Pipeline(p.piped)
        m.d.comb += [pipeline.accept.eq(self.o_y.ready), self.o_y.valid.eq(pipeline.shown)]
        if p.scale is Scale.STATIC:
            m.d.comb += [
                self.i_x.ready.eq(pipeline.advance),
                pipeline.taken.eq(self.i_x.valid & self.i_x.ready),
            ]
            leaving = Cat(*self._lanes(m, pipeline, self._numbers(m, self.i_x.payload.as_value()), None))
        else:
            leaving = self._grouped(m, pipeline)
        m.d.comb += self.o_y.payload.as_value().eq(Mux(self.o_y.valid, leaving, 0))
        return m

    def _grouped(self, m: Module, pipeline: Pipeline) -> Value:
        p = self.params
        count, raised, beat = (self._buffered if p.passes == 1 else self._entering_twice)(m, pipeline)
        group = _group(m, p, count, self.i_x.payload.as_value())
        top = [_register(m, f"top_{i}", x, raised) for i, x in enumerate(self._numbers(m, beat))]
        codes = self._lanes(m, pipeline, top, group)
        scale = _scale(p, delay(m, group.scale, p.stages, pipeline.advance))
        if group.low is None:
            return Cat(*codes, scale)
        *codes, zero = _offset(m, p, codes, pipeline.advance)
        return Cat(*codes, scale, zero)

    def _buffered(self, m: Module, pipeline: Pipeline) -> tuple[Counts, Value, Value]:
        """The control, and the next beat for the register before the lanes: whether it enters, and its values."""
        p, entering = self.params, self.i_x.payload.as_value()
        count, places = _counts(m, self, pipeline)
        m.submodules.buffer = buffer = Buffer(p.lanes * p.in_bits, p.stored_beats)
        m.d.comb += [
            buffer.write.eq(places.taken),
            buffer.write_at.eq(places.write_at),
            buffer.data.eq(entering),
            buffer.read_at.eq(places.read_at),
        ]
        return count, places.raised, buffer.out

    def _entering_twice(self, m: Module, pipeline: Pipeline) -> tuple[Counts, Value, Value]:
        """The same without a buffer."""
        return *_pass_counts(m, self, pipeline), self.i_x.payload.as_value()

    def _numbers(self, m: Module, beat: Value) -> list[Value]:
        p = self.params
        return [unpacked(m, p, beat.word_select(i, p.in_bits)) for i in range(p.lanes)]

    def _lanes(self, m: Module, pipeline: Pipeline, x: list[Value], group: Group | None) -> list[Value]:
        """Codes; with zero points signed steps, of the lower end last."""
        p = self.params
        lanes = {f"lane_{i}": (number, p) for i, number in enumerate(x)}
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

    compared: Value
    """a beat's largest magnitude, or both its ends, meet those of its group so far: with `pot` as it is taken"""
    last: Value
    """that beat is its group's last"""
    found: Value
    """both ends of a group are known since this cycle; with zero points alone"""
    handed: Value
    """what a group's scale is made of goes on"""
    delivered: Value
    """a group starts to leave with the next cycle"""
    dividing: Value
    """the divider makes a digit"""


class Places(NamedTuple):
    """What the control says to the buffer in a cycle."""

    taken: Value
    write_at: Value
    raised: Value
    """the oldest beat that is stored goes to the top of the buffer"""
    read_at: Value


def _counts(m: Module, unit: Quantizer, pipeline: Pipeline) -> tuple[Counts, Places]:
    """Counters, and the streams' valid and ready, as GroupControl in models/quantizer.py has them."""
    p = unit.params
    filled, left = Signal(range(p.buffer_beats + 1), name="filled"), Signal(range(p.group_beats + 1), name="left")
    waiting, taken, reading, handed = (Signal(name=name) for name in ("waiting", "taken", "reading", "handed"))
    topped, raised = Signal(name="topped"), Signal(name="raised")
    free = named(m, (left == 0) | ((left == 1) & pipeline.advance))
    ripe = _ripening(m, p, waiting, handed)
    delivered, dividing = _delivery(m, p, ripe[-1], handed, free)
    last = _count(m, "entered", p.group_beats, taken)
    write_at, read_at = (_place(m, name, p.stored_beats, at) for name, at in (("write_at", taken), ("read_at", raised)))
    m.d.comb += [
        unit.i_x.ready.eq((filled != p.buffer_beats) & ~(last & waiting & ~handed)),
        taken.eq(unit.i_x.valid & unit.i_x.ready),
        reading.eq((left != 0) & pipeline.advance),
        pipeline.taken.eq(reading),
        # what is stored is all but the beat at the top
        raised.eq(Mux(topped, reading & (filled != 1), filled != 0)),
    ]
    m.d.sync += [
        filled.eq(filled + taken - reading),
        topped.eq(raised | (topped & ~reading)),
        left.eq(Mux(delivered, p.group_beats, left - reading)),
        waiting.eq((waiting & ~handed) | (taken & last)),
    ]
    count = Counts(*_compared(m, p, taken, last), _found(p, ripe), handed, delivered, dividing)
    return count, Places(taken, write_at, raised, read_at)


def _pass_counts(m: Module, unit: Quantizer, pipeline: Pipeline) -> tuple[Counts, Value]:
    """A counter, and the streams' valid and ready, as PassControl in models/quantizer.py has them; and whether a beat
    of a second pass is taken."""
    p = unit.params
    first, second = Signal(name="first", init=1), Signal(name="second")
    waiting, taken, handed = (Signal(name=name) for name in ("waiting", "taken", "handed"))
    ripe = _ripening(m, p, waiting, handed)
    delivered, dividing = _delivery(m, p, ripe[-1], handed, Const(1, 1))
    last = _count(m, "entered", p.group_beats, taken)
    open_second = named(m, second | delivered)
    m.d.comb += [
        unit.i_x.ready.eq(pass_ready(first, open_second, pipeline.advance)),
        taken.eq(unit.i_x.valid & unit.i_x.ready),
        pipeline.taken.eq(taken & ~first),
    ]
    ended = named(m, taken & last)
    m.d.sync += [
        first.eq(first ^ ended),
        second.eq(open_second & ~ended),
        waiting.eq((waiting & ~handed) | (first & ended)),
    ]
    count = Counts(*_compared(m, p, taken & first, last), _found(p, ripe), handed, delivered, dividing)
    return count, pipeline.taken


def pass_ready(first: Value, second: Value, advance: Value) -> Value:
    """Whether a beat of either pass can enter: in the first one too all that leaves moves on, so that no beat is left
    before the lanes when the next scale replaces its own."""
    return (first | second) & advance


def _compared(m: Module, p: QuantizerParams, taken: Value, last: Value) -> tuple[Value, Value]:
    """A beat that is taken, and that it is its group's last, when its own largest magnitude is known."""
    return (taken, last) if p.scale is Scale.POT else (_delayed(m, taken), _delayed(m, last))


def _found(p: QuantizerParams, ripe: list[Value]) -> Value:
    return ripe[1] & ~ripe[2] if p.zero_points else Const(0, 1)


def _ripening(m: Module, p: QuantizerParams, waiting: Value, handed: Value) -> list[Value]:
    """For how many cycles at least a group has waited: none, one, up to finding_cycles."""
    ripe = [waiting]
    for _ in range(p.finding_cycles):
        ripe.append(_delayed(m, ripe[-1] & ~handed))
    return ripe


def _delayed(m: Module, value: Value) -> Value:
    if isinstance(value, Const):
        return value
    later = Signal(1)
    m.d.sync += later.eq(value)
    return later


def _delivery(m: Module, p: QuantizerParams, waiting: Value, handed: Signal, free: Value) -> tuple[Value, Value]:
    """Joins `handed`; gives `delivered` and `dividing`. A divider between them works divider_cycles cycles."""
    if p.scale is Scale.POT:
        m.d.comb += handed.eq(waiting & free)
        return handed, Const(0, 1)
    busy, steps = Signal(name="busy"), Signal(range(p.divider_cycles + 1), name="steps")
    delivered = named(m, busy & (steps == 0) & free)
    m.d.comb += handed.eq(waiting & (~busy | delivered))
    m.d.sync += busy.eq(handed | (busy & ~delivered))
    with m.If(handed):
        m.d.sync += steps.eq(p.divider_cycles)
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
        # one hot: half the area of a tree of multiplexers
        picked = [word & named(m, self.read_at == i).replicate(self.width) for i, word in enumerate(words)]
        m.d.comb += self.out.eq(_joined(picked))
        return m


def _joined(words: list[Value]) -> Value:
    """Whatever is set in any word: a tree, of which the mapper makes fewer gates than of a chain."""
    while len(words) > 1:
        words = [reduce(or_, words[i : i + 2]) for i in range(0, len(words), 2)]
    return words[0]


def _group(m: Module, p: QuantizerParams, count: Counts, x: Value) -> Group:
    values = [x.word_select(i, p.in_bits) for i in range(p.lanes)]
    if p.zero_points:
        high = _largest_of_group(m, "high", count, p, [_above(p, value) for value in values])
        low = _largest_of_group(m, "low", count, p, [_under(p, value) for value in values])
        return _ranged(m, p, count, high, low)
    magnitudes = [_magnitude(m, p, value) for value in values]
    if p.scale is Scale.POT:
        return _shifted(m, p, count, _of_group(m, "peak", count, p, _top_place, magnitudes))
    return _divided(m, p, count, _largest_of_group(m, "peak", count, p, magnitudes))


def _largest_of_group(m: Module, name: str, count: Counts, p: QuantizerParams, entering: list[Value]) -> Value:
    """The largest number of the group that waits: that of each half of a beat first, in registers."""
    middle = -(-len(entering) // 2)
    halves = [half for half in (entering[:middle], entering[middle:]) if half]
    numbers = [delay(m, largest(m, half), 1, Const(1, 1)) for half in halves]
    return _of_group(m, name, count, p, lambda m, _p, numbers: largest(m, numbers), numbers)


def _of_group(m: Module, name: str, count: Counts, p: QuantizerParams, merged: Merge, numbers: list[Value]) -> Value:
    """What is `merged` of the numbers of all beats of a group; in the cycle after the last one."""
    running = Signal(len(numbers[0]), name=f"running_{name}", reset_less=False)
    found = Signal(len(numbers[0]), name=name, reset_less=True)
    most = merged(m, p, numbers if p.group_beats == 1 else [*numbers, running])
    with m.If(count.compared):
        if p.group_beats > 1:
            m.d.sync += running.eq(Mux(count.last, 0, most))
        with m.If(count.last):
            m.d.sync += found.eq(most)
    return found


def _top_place(m: Module, p: QuantizerParams, magnitudes: list[Value]) -> Value:
    """A number with the exponent of the largest, of integers and of subnormals by the digits that any of them has."""
    if not p.is_float:
        return named(m, reduce(or_, magnitudes))
    digits = [magnitude[:10] & (~magnitude[10:].any()).replicate(10) for magnitude in magnitudes]
    return named(m, Cat(reduce(or_, digits), largest(m, [magnitude[10:] for magnitude in magnitudes])))


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
    left = _register(m, "leaving", Cat(entered, _reciprocal(p, divider)), count.delivered)
    return Group(*_parts(left, p.anchor_bits, p.made_bits, p.reciprocal_bits), None)


def _ranged(m: Module, p: QuantizerParams, count: Counts, high: Value, low: Value) -> Group:
    """As `_divided`, of a group's range; `high` and `low` are `_above` and `_under` of its ends."""
    span = _register(m, "span", (half_span if p.is_float else integer_span)(m, high, low), count.found)
    whole = named(m, Mux(span.any(), span, 1 << HALF_PLACES if p.is_float else 1))
    mantissa, exponent = _leading(m, p, whole)
    divider = _divider(m, p, count, mantissa)
    # of FP16 what the scale is made of can wait: the divider has the digits
    kept = [exponent, low] if p.is_float else [exponent, low, whole]
    entered = _parts(_register(m, "entered", Cat(*kept), count.handed), *map(len, kept))
    made = _single(m, divider.held, entered[0]) if p.is_float else entered[2]
    reciprocal = _reciprocal(p, divider)
    leaving = [entered[0], made, reciprocal, _lower_end(m, p, entered[1])]
    left = _register(m, "leaving", Cat(*leaving), count.delivered)
    *parts, end = _parts(left, *map(len, leaving))
    return Group(*parts, Cat(end, Const(1, 1)))


def _lower_end(m: Module, p: QuantizerParams, low: Value) -> Value:
    """What `unpacked` gives for it, but for its sign: none is above zero."""
    return unpacked(m, p, Cat(low, Const(1, 1)))[:-1] if p.is_float else (low[:-1] + low[-1])[: p.in_bits]


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
    m.submodules.divider = divider = Divider(start, p.divisor_digits, p.divider_cycles)
    m.d.comb += [divider.start.eq(count.handed), divider.step.eq(count.dividing), divider.divisor.eq(divisor)]
    return divider


def _reciprocal(p: QuantizerParams, divider: Divider) -> Value:
    return (divider.quotient[len(divider.quotient) - p.reciprocal_bits :] + 1)[: p.reciprocal_bits]


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
    """quotient = floor(remainder * 2^n / divisor) after `start` and then `steps` times `step`: restoring division by
    digits of DIVIDER_DIGIT bits, n of them all.

    `held` is the divisor that started. `remainder` is less than any divisor of `width` bits with its top bit set.
    """

    def __init__(self, remainder: int, width: int, steps: int) -> None:
        self.remainder, self.width, self.steps = remainder, width, steps * DIVIDER_DIGIT
        ports = {"divisor": In(width), "held": Out(width), "quotient": Out(self.steps)}
        super().__init__({"start": In(1), "step": In(1), **ports})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        divisor, remainder = (Signal(self.width, name=name, reset_less=True) for name in ("held_reg", "remainder"))
        quotient = Signal(self.steps, name="quotient_reg", reset_less=True)
        m.d.comb += [self.quotient.eq(quotient), self.held.eq(divisor)]
        digit, rest = _digit(m, remainder, divisor)
        with m.If(self.start):
            m.d.sync += [divisor.eq(self.divisor), remainder.eq(self.remainder)]
        with m.Elif(self.step):
            m.d.sync += [remainder.eq(rest), quotient.eq(Cat(digit, quotient))]
        return m


def _digit(m: Module, remainder: Value, divisor: Value) -> tuple[Value, Value]:
    """The next digit of the quotient and what remains: of all multiples of the divisor the largest that fits."""
    shifted, width = remainder << DIVIDER_DIGIT, len(divisor) + DIVIDER_DIGIT + 1
    trials = [named(m, difference(m, shifted, divisor, k, width)) for k in range(1, 1 << DIVIDER_DIGIT)]
    fits = [Const(1, 1), *(~trial[-1] for trial in trials), Const(0, 1)]
    # one hot: no digit waits for a smaller one
    picked = [fit & ~more for fit, more in pairwise(fits)]
    rests = [
        rest[: len(divisor)] & pick.replicate(len(divisor))
        for rest, pick in zip([shifted, *trials], picked, strict=True)
    ]
    digit = [reduce(or_, [pick for k, pick in enumerate(picked) if k >> i & 1]) for i in range(DIVIDER_DIGIT)]
    return Cat(*digit), reduce(or_, rests)


def difference(m: Module, a: Value, b: Value, times: int, width: int) -> Value:
    """a - times * b, `times` at most 7, modulo 2^width: a carry-save row where that is not one shifted `b`."""
    low = (times & -times).bit_length() - 1
    odd = times >> low
    a, b = named(m, (a | Const(0, width))[:width]), named(m, ((b << low) | Const(0, width))[:width])
    if odd == 1:
        return (a - b)[:width]
    # 3 = 2 + 1, 5 = 4 + 1, 7 = 8 - 1
    high = named(m, ~(b << {3: 1, 5: 2, 7: 3}[odd])[:width])
    other = b if odd == 7 else named(m, ~b)
    total, carry = full_adders(m, a, high, other, width)
    return (total + carry + (1 if odd == 7 else 2))[:width]


def _scale(p: QuantizerParams, made_of: Value) -> Value:
    """The scale as it leaves."""
    if p.scale is Scale.REAL:
        return Cat(made_of, Const(0, p.scale_bits - p.made_bits))
    anchor, zero = made_of[: p.anchor_bits], made_of[p.anchor_bits]
    offset = E8M0_BIAS - (p.bits - 2) + (HALF_LEAST - HALF_BIAS if p.is_float else 0)
    return Mux(zero, E8M0_BIAS, anchor + offset)[: p.scale_bits]


def unpacked(m: Module, p: QuantizerParams, x: Value) -> Value:
    """{magnitude, exponent of FP16, sign} of a value."""
    if p.is_float:
        negative, exponent, magnitude = unpack_half(m, x)
        return Cat(magnitude, exponent, negative)
    negative, magnitude = absolute(m, x)
    return Cat(magnitude, negative)


@shared
class Lane(Component):
    """y <= the code of x, or with zero points its signed steps, two registers that move on `advance`.

    `x` as `unpacked` gives it. `anchor`: of FP16 that of x, which enters in the same cycle; of integers, where all
    lanes share the shift, that of the value one stage later.
    """

    def __init__(self, params: QuantizerParams) -> None:
        self.params = p = params
        group = {} if p.scale is Scale.STATIC else {"anchor": In(p.anchor_bits)}
        group |= {"reciprocal": In(p.reciprocal_bits)} if p.scale is Scale.REAL else {}
        super().__init__({"advance": In(1), "x": In(p.number_bits), **group, "y": Out(signed(p.step_bits))})

    def elaborate(self, platform: object) -> Module:
        m, p = Module(), self.params
        magnitude, exponent, negative = self.x[: p.digits], self.x[p.digits : -1], self.x[-1]
        word = Signal(p.word_bits - p.word_zeros, name="word", reset_less=True)
        sign, code = Signal(name="sign", reset_less=True), Signal(p.step_bits, name="code", reset_less=True)
        m.submodules.rounder = rounder = Rounder(p)
        m.d.comb += [rounder.word.eq(word), rounder.negative.eq(sign)]
        if not p.has_fixed_places:
            m.d.comb += rounder.places.eq(self._places(m, exponent))
        with m.If(self.advance):
            m.d.sync += [
                word.eq(self._product(magnitude)),
                sign.eq(negative),
                code.eq(rounder.code),
            ]
        m.d.comb += self.y.eq(code)
        return m

    def _product(self, magnitude: Value) -> Value:
        p = self.params
        match p.scale:
            case Scale.POT:
                return magnitude
            case Scale.REAL:
                return self._cut(magnitude * self.reciprocal)
        return magnitude * p.multiplier

    def _cut(self, product: Value) -> Value:
        p = self.params
        if p.has_wide_range:
            return Cat(product[p.unseen_bits : p.cut_bits].any(), product[p.cut_bits :])
        return product >> p.cut_bits

    def _places(self, m: Module, exponent: Value) -> Value:
        """By how many places the word of the second stage is shifted."""
        p = self.params
        if not p.is_float:
            return self.anchor + (2 if p.scale is Scale.REAL else 0)
        if p.scale is Scale.STATIC:
            upper = Const(p.shift + 25 + HALF_SPARE)
        else:
            upper = self.anchor + (p.digits + (-1 if p.scale is Scale.POT else 1 + p.has_wide_range) + HALF_LEAST)
        return delay(m, (upper - exponent)[: p.places_bits], 1, self.advance)


@shared
class Rounder(Component):
    """What a lane makes of its product, without registers: synthesis cannot put their enable, which comes late, in."""

    def __init__(self, params: QuantizerParams) -> None:
        self.params = p = params
        places = {} if p.has_fixed_places else {"places": In(p.places_bits)}
        word = In(p.word_bits - p.word_zeros)
        super().__init__({"word": word, **places, "negative": In(1), "code": Out(p.step_bits)})

    def elaborate(self, platform: object) -> Module:
        m, p = Module(), self.params
        code_of = signed_steps if p.zero_points else signed_code
        word, places = Cat(Const(0, p.word_zeros), self.word), Const(p.shift) if p.has_fixed_places else self.places
        m.d.comb += self.code.eq(code_of(m, word, places, self.negative, p.bits, p.rounding))
        return m


def signed_code(m: Module, word: Value, places: Value, negative: Value, bits: int, rounding: Rounding) -> Value:
    """word / 2^places rounded, limited to `bits` bits without the least number, and negated where `negative`."""
    whole, up = _rounded(m, word, places, negative, rounding)
    digits = whole[: bits - 1]
    beyond = whole[bits - 1 :].any() | (digits.all() & up)
    greatest = Cat(Const(1, 1), (~negative).replicate(bits - 2), negative)
    return Mux(beyond, greatest, _signed(digits, up, negative))


def signed_steps(m: Module, word: Value, places: Value, negative: Value, bits: int, rounding: Rounding) -> Value:
    """word / 2^places rounded, at most 2^bits, in `bits` + 2 bits, and negated where `negative`."""
    whole, up = _rounded(m, word, places, negative, rounding)
    return _signed(whole[: bits + 1], up, negative)


def _rounded(m: Module, word: Value, places: Value, negative: Value, rounding: Rounding) -> tuple[Value, Value]:
    """word / 2^places without its fraction, and whether it is one more."""
    kept, below = shifted_right(m, Cat(Const(0, 1), word), places)
    return kept[1:], named(m, round_up(rounding, negative, kept[1], kept[0], below))


def _signed(magnitude: Value, up: Value, negative: Value) -> Value:
    """magnitude + up, negated where `negative`: -(magnitude + up) = ~magnitude + ~up, so that one sum does both."""
    width = len(magnitude) + 1
    return ((Cat(magnitude, Const(0, 1)) ^ negative.replicate(width)) + (up ^ negative))[:width]
