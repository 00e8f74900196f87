"""IEEE 754 half and single precision as gates: unpacking, normalising, rounding, and a pipelined adder."""

from __future__ import annotations

from typing import NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib.wiring import Component, In, Out

from models.floats import HALF_DIGITS, HALF_UNIT, SINGLE_DIGITS
from rtl.emit import shared

SINGLE_BIAS = 127
GUARDS = 3
"""bits below an aligned mantissa: two that are kept exactly, and whether anything is set below them"""


class Half(NamedTuple):
    """A half as sign, biased exponent and magnitude of the mantissa: mantissa * 2^(exponent - 25)."""

    negative: Value
    exponent: Value
    mantissa: Value


def unpack_half(m: Module, bits: Value) -> Half:
    """The finite half of a 16-bit pattern: exponent unsigned(5), at least 1; mantissa unsigned(11), whose top bit is
    clear where the number is subnormal."""
    exponent, normal = bits[10:15], bits[10:15].any()
    return Half(bits[15], named(m, Cat(exponent[0] | ~normal, exponent[1:])), named(m, Cat(bits[:10], normal)))


def normalise_half(m: Module, bits: Value) -> Half:
    """The finite half of a 16-bit pattern with the top bit of its mantissa set unless it is zero.

    exponent signed(6): -9 to 30, lower than 1 where the pattern is subnormal; of no meaning where the number is zero.
    """
    half = unpack_half(m, bits)
    zeros = leading_zeros(m, half.mantissa)
    exponent = (half.exponent - zeros)[:6].as_signed()
    return Half(half.negative, named(m, exponent), named(m, (half.mantissa << zeros)[:HALF_DIGITS]))


def round_half(m: Module, value: Value) -> Half:
    """A signed integer rounded to half precision, ties to even, normalised as by `normalise_half`.

    For magnitudes that half precision holds: at most 65519, which rounds to its greatest, 65504.
    """
    negative, magnitude = absolute(m, value)
    digits, zeros = rounded(m, magnitude, HALF_DIGITS)
    # the mantissa 1.11..1 that rounds up has become 10.0..0 here: its digits are those of 1.00..0
    mantissa = Cat(digits[: HALF_DIGITS - 1], magnitude.any())
    exponent = named(m, Const(len(magnitude) - HALF_DIGITS + HALF_UNIT, signed(7)) - zeros + digits[HALF_DIGITS])
    return Half(negative, exponent[:6].as_signed(), named(m, mantissa))


def to_single(m: Module, value: Value, exponent: Value) -> Value:
    """The 32-bit pattern of value * 2^exponent (both signed) in single precision, rounded to nearest, ties to even.

    Combinational. The result is zero (then +0) or in the normal range: nothing here knows subnormals or infinities.
    """
    negative, magnitude = absolute(m, value)
    digits, zeros = rounded(m, magnitude, SINGLE_DIGITS)
    # the digits' top bit adds one to the exponent field below it, and so does a mantissa that rounds up to 2
    below = named(m, exponent + Const(len(magnitude) - 1 + SINGLE_BIAS - 1, signed(16)) - zeros)
    packed = named(m, (digits + Cat(Const(0, SINGLE_DIGITS - 1), below[:8]))[:31])
    return named(m, Mux(magnitude.any(), Cat(packed, negative), 0))


def absolute(m: Module, value: Value) -> tuple[Value, Value]:
    """Sign and unsigned magnitude, as wide as `value`, of a signed integer."""
    negative = value[-1]
    return negative, named(m, ((value ^ negative.replicate(len(value))) + negative)[: len(value)])


def rounded(m: Module, magnitude: Value, digits: int) -> tuple[Value, Value]:
    """The `digits` leading binary digits of an unsigned integer, rounded to nearest, ties to even, in `digits` + 1
    bits (2^digits where all ones round up), and the integer's leading zeros, which were shifted out."""
    zeros = leading_zeros(m, magnitude)
    shifted = named(m, (magnitude << zeros)[: len(magnitude)])
    excess = len(magnitude) - digits
    if excess <= 0:
        return named(m, Cat(Const(0, -excess), shifted, Const(0, 1))), zeros
    return named(m, shifted[excess:] + round_up(shifted, excess)), zeros


def round_up(value: Value, excess: int) -> Value:
    """Whether `value` without its `excess` lowest bits is one more when rounded to nearest, ties to even."""
    return value[excess - 1] & (value[: excess - 1].any() | value[excess])


def leading_zeros(m: Module, value: Value) -> Value:
    """Zeros above the highest set bit; of zero, all ones: the next power of two at or above the width, less one.

    A tree: of each pair of halves the upper one's count, unless that half is zero.
    """
    width = len(value)
    size = 1 << max(width - 1, 1).bit_length()
    return _zeros(m, Cat(Const(0, size - width), value))


def _zeros(m: Module, value: Value) -> Value:
    if len(value) == 2:
        return ~value[1]
    half = len(value) // 2
    low, high = value[:half], value[half:]
    empty = named(m, ~high.any())
    return named(m, Cat(Mux(empty, _zeros(m, low), _zeros(m, high)), empty))


def named(m: Module, value: Value) -> Signal:
    """A signal of its own, so that an expression is computed once."""
    signal = Signal(value.shape())
    m.d.comb += signal.eq(value)
    return signal


class SingleSum(NamedTuple):
    """A sum before it is normalised and rounded: magnitude * 2^(exponent - 127 - 23 - GUARDS)."""

    negative: Value
    exponent: Value
    magnitude: Value


def sum_stage(m: Module, a: Value, b: Value) -> SingleSum:
    """Two single-precision patterns aligned and added: exponent unsigned(8), at least 1; magnitude of 28 bits.

    The lowest bit of the magnitude also stands for all that lies below it. Patterns are finite, or infinities of one
    sign. A difference of equals is +0.
    """
    swap = named(m, b[:31] > a[:31])
    subtract = named(m, a[31] ^ b[31])
    (exponent_a, mantissa_a), (exponent_b, mantissa_b) = (_unpack_single(m, word) for word in (a, b))
    exponent, mantissa, small = (
        named(m, Mux(swap, x, y))
        for x, y in ((exponent_b, exponent_a), (mantissa_b, mantissa_a), (mantissa_a, mantissa_b))
    )
    # both differences, so that neither waits for the comparison
    places = named(m, Mux(swap, (exponent_b - exponent_a)[:8], (exponent_a - exponent_b)[:8]))
    # infinity takes nothing in, so that a sum with it stays as it is
    aligned = _aligned(m, small & (~exponent.all()).replicate(SINGLE_DIGITS), places)
    width = SINGLE_DIGITS + GUARDS + 1
    addend = Cat(aligned, Const(0, 1)) ^ subtract.replicate(width)
    magnitude = (Cat(Const(0, GUARDS), mantissa, Const(0, 1)) + addend + subtract)[:width]
    negative = Mux(swap, b[31], a[31]) & ~(subtract & (a[:31] == b[:31]))
    return SingleSum(negative, exponent, named(m, magnitude))


def _unpack_single(m: Module, bits: Value) -> tuple[Value, Value]:
    """Biased exponent, at least 1, and mantissa with the implied bit."""
    normal = bits[23:31].any()
    return named(m, Cat(bits[23] | ~normal, bits[24:31])), named(m, Cat(bits[:23], normal))


def _aligned(m: Module, mantissa: Value, places: Value) -> Value:
    """The mantissa over GUARDS bits, shifted down by `places`, below 32; its lowest bit is set where any below it was.

    Zero for more places.
    """
    word = Cat(Const(0, GUARDS), mantissa)
    for i in range(5):
        step = 1 << i
        lost = word[:step].any()
        moved = Cat(word[step] | lost, word[step + 1 :], Const(0, step))
        word = named(m, Mux(places[i], moved, word))
    # 32 places or more below: not even a power of two less that much rounds to anything but itself
    return word & (~places[5:].any()).replicate(len(word))


def round_stage(m: Module, total: SingleSum) -> Value:
    """The 32-bit pattern of a sum: normalised as far as its exponent allows, rounded to nearest, ties to even."""
    width = len(total.magnitude)
    # a bit where the exponent would reach 1: counting stops there, and the number stays subnormal
    floor = Const(1 << (width - 1), width) >> total.exponent
    places = leading_zeros(m, total.magnitude | floor)
    shifted = named(m, (total.magnitude << places)[:width])
    field = named(m, Mux(shifted[-1], (total.exponent + 1 - places)[:8], 0))
    excess = width - SINGLE_DIGITS
    digits, up = shifted[excess:-1], named(m, round_up(shifted, excess))
    # the carry into the exponent does not wait for the digits' own
    fraction, carry, infinite = (digits + up)[: SINGLE_DIGITS - 1], up & digits.all(), field.all()
    # no carry into infinity's: twice the greatest mantissa has nothing to round
    exponent = Mux(carry, (field + 1)[:8], field)
    return Cat(fraction & (~infinite).replicate(SINGLE_DIGITS - 1), exponent, total.negative)


@shared
class SingleAdder(Component):
    """total = a + b in IEEE 754 single precision, rounded to nearest even, ADD_STAGES registers that move on `advance`.

    Subnormals are kept; a sum that is too large becomes infinity; infinity plus a finite number is infinity. NaN and
    the difference of two infinities are not computed. The first stage aligns and adds, the second normalises and
    rounds.
    """

    def __init__(self) -> None:
        word = unsigned(32)
        super().__init__({"advance": In(1), "a": In(word), "b": In(word), "total": Out(word)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        entering = sum_stage(m, self.a, self.b)
        aligned = SingleSum(
            *(Signal(len(part), name=f"{name}_reg", reset_less=True) for name, part in entering._asdict().items())
        )
        leaving = round_stage(m, aligned)
        total = Signal(32, name="total_reg", reset_less=True)
        with m.If(self.advance):
            m.d.sync += [register.eq(part) for register, part in zip(aligned, entering, strict=True)]
            m.d.sync += total.eq(leaving)
        m.d.comb += self.total.eq(total)
        return m
