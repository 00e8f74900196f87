"""Overflow, rounding, delay lines, the largest of numbers, partial products of digits, carry-save addition."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, ValueLike, signed

from models.bits import Overflow, Rounding, signed_range


def fit(m: Module, value: Value, bits: int, overflow: Overflow) -> Value:
    """`value` (signed, any width) as a register of `bits` bits keeps it."""
    if overflow is Overflow.WRAP or len(value) <= bits:
        return value[:bits].as_signed()
    low, high = signed_range(bits)
    whole = Signal(signed(len(value)))
    m.d.comb += whole.eq(value)
    # in range exactly when all bits above the sign bit equal it
    top = whole[bits - 1 :]
    inside = top.all() | ~top.any()
    return Mux(inside, whole[:bits], Mux(whole[-1], low, high)).as_signed()


def delay(m: Module, value: Value, cycles: int, enable: Value, *, reset: bool = False) -> Value:
    """`value` behind `cycles` registers that move when `enable` is high; zero at power-on, and after a reset if so."""
    for _ in range(cycles):
        stage = Signal(value.shape(), reset_less=not reset)
        with m.If(enable):
            m.d.sync += stage.eq(value)
        value = stage
    return value


def shifted_right(m: Module, word: Value, places: Value) -> tuple[Value, Value]:
    """`word` without as many of its lowest bits, at its own width, and whether any of them was set."""
    lost: Value = Const(0, 1)
    for i in range(len(places)):
        step = min(1 << i, len(word))
        shifted, gone = Signal(len(word)), Signal()
        m.d.comb += [shifted.eq(Mux(places[i], word >> step, word)), gone.eq(lost | (places[i] & word[:step].any()))]
        word, lost = shifted, gone
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


def largest(m: Module, numbers: list[Value]) -> Value:
    """Of unsigned numbers of one width, by a tree of comparisons."""
    while len(numbers) > 1:
        pairs = [Mux(a > b, a, b) for a, b in zip(numbers[::2], numbers[1::2], strict=False)]
        larger = [Signal(len(numbers[0]), name=f"larger_{len(numbers)}_{i}") for i in range(len(pairs))]
        m.d.comb += [signal.eq(pair) for signal, pair in zip(larger, pairs, strict=True)]
        numbers = [*larger, *numbers[2 * len(pairs) :]]
    return numbers[0]


class Digit(NamedTuple):
    """A radix-4 digit: magnitude 1, magnitude 2 (never both; zero where neither) and whether it subtracts."""

    one: ValueLike
    two: ValueLike
    neg: ValueLike


def product_rows(m: Module, digits: list[Digit], b: Value, width: int) -> list[Value]:
    """Words of `width` bits whose sum, modulo 2^width, is the sum of digit_i 4^i times the signed `b`.

    One row a digit and one more: a negative product is complemented, and the one that is then due stands in the empty
    low bits of the next row, the last in the row of its own. A row's sign bit, at 2i + len(b), is inverted, which adds
    2^(2i + len(b)); what takes that away again for all rows together is a constant in the empty top bits of row 0.
    """
    return _rows(m, digits, b, width, lambda sign: _signs_of_all(sign, len(digits), width))


def positive_rows(m: Module, digits: list[Digit], b: Value, width: int) -> list[Value]:
    """Words whose sum is that of digit_i 4^i times the signed `b`, and the sum of 4^i 2^len(b) over all i besides.

    As `product_rows`, without the constant: no word is negative, so that the words which `compress` makes of them add
    up to their sum itself and not only modulo 2^width, where `width` holds the sum.
    """
    return _rows(m, digits, b, width, lambda sign: ~sign)


def _rows(m: Module, digits: list[Digit], b: Value, width: int, first_top: Callable[[Value], Value]) -> list[Value]:
    """Row 0 has `first_top` of its sign bit from there upwards, all others the inverted sign bit alone."""
    rows = []
    due: Value = Const(0, 0)
    for i, digit in enumerate(digits):
        row = product_row(m, digit, b)
        top = ~row[-1] if i else first_top(row[-1])
        rows.append(_named(m, Cat(due, row[:-1], top), width))
        due = Cat(Const(0, 2 * i), digit.neg, Const(0, 1))
    return [*rows, _named(m, due, width)]


def product_row(m: Module, digit: Digit, b: Value) -> Value:
    """digit times the signed `b`, one bit wider than it, complemented where negative: `neg` is still to be added."""
    single, double = Cat(b, b[-1]), Cat(Const(0, 1), b)
    size = len(single)
    picked = (single & Value.cast(digit.one).replicate(size)) | (double & Value.cast(digit.two).replicate(size))
    return _named(m, picked ^ Value.cast(digit.neg).replicate(size), size)


def _signs_of_all(sign: Value, rows: int, width: int) -> Value:
    """From the sign bit of row 0 upwards: that sign, less the 4^i that the inverted signs of all later rows add."""
    if rows == 1:
        return sign.replicate(width)
    # -(1 + 4 + 16 + ...) ends in binary 011: with the inverted sign added, that is sign, sign, inverted sign
    constant = (-(4**rows - 1) // 3) >> 3
    return Cat(sign, sign, ~sign, Const(constant & ((1 << width) - 1), width))


def compress(m: Module, rows: list[Value], width: int) -> tuple[Value, Value]:
    """Sum and carry words whose sum is that of `rows` (two or more), modulo 2^width; rows of 3:2 compressors."""
    rows = [Value.cast(row) for row in rows]
    while len(rows) > 2:
        whole = len(rows) - len(rows) % 3
        pairs = [full_adders(m, *rows[i : i + 3], width) for i in range(0, whole, 3)]
        rows = [word for pair in pairs for word in pair] + rows[whole:]
    return rows[0], rows[1]


def full_adders(m: Module, a: Value, b: Value, c: Value, width: int) -> tuple[Value, Value]:
    """A row of full adders whose carries do not propagate: sum and carry words."""
    either = _named(m, a ^ b, width)
    return _named(m, either ^ c, width), _named(m, Cat(Const(0, 1), (a & b) | (either & c)), width)


def _named(m: Module, value: Value, width: int) -> Signal:
    """A signal of its own, so that an expression is computed once."""
    signal = Signal(width)
    m.d.comb += signal.eq(value)
    return signal
