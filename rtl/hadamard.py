"""Fast Walsh-Hadamard transform, parallel or folded; contract and parameters in models/hadamard.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.hadamard import HadamardParams
from rtl.arith import delay
from rtl.emit import shared
from rtl.floats import named
from rtl.stationary import Pipeline


@shared
class Butterfly(Component):
    """total <= a + b, difference <= a - b when `advance`; inputs of `width` bits, results one bit wider."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(
            {
                "advance": In(1),
                "a": In(signed(width)),
                "b": In(signed(width)),
                "total": Out(signed(width + 1)),
                "difference": Out(signed(width + 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        total, difference = (Signal(signed(self.width + 1), name=n, reset_less=True) for n in ("sum_reg", "diff_reg"))
        with m.If(self.advance):
            m.d.sync += [total.eq(self.a + self.b), difference.eq(self.a - self.b)]
        m.d.comb += [self.total.eq(total), self.difference.eq(difference)]
        return m


@shared
class Sum(Component):
    """total <= a + b, or a - b where `minus`, when `advance`; as wide as given."""

    def __init__(self, a_bits: int, b_bits: int, bits: int) -> None:
        self.bits = bits
        super().__init__(
            {
                "advance": In(1),
                "minus": In(1),
                "a": In(signed(a_bits)),
                "b": In(signed(b_bits)),
                "total": Out(signed(bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        total = Signal(signed(self.bits), name="sum_reg", reset_less=True)
        b = named(m, self.b ^ self.minus.replicate(len(self.b)).as_signed())
        with m.If(self.advance):
            m.d.sync += total.eq(self.a + b.as_signed() + self.minus)
        m.d.comb += self.total.eq(total)
        return m


def streams(params: HadamardParams) -> dict[str, Any]:
    """`i_x` {x} and `o_y` {y}: of all points, or folded, of two for each lane."""
    x = data.StructLayout({"x": data.ArrayLayout(signed(params.in_bits), params.beat_points)})
    y = data.StructLayout({"y": data.ArrayLayout(signed(params.out_bits), params.beat_points)})
    return {"i_x": In(stream.Signature(x)), "o_y": Out(stream.Signature(y))}


class Hadamard(Component):
    """The transform behind a stream; payload is zero while the output is not valid."""

    def __init__(self, params: HadamardParams) -> None:
        self.params = params
        super().__init__(streams(params))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        build = _parallel if self.params.lanes is None else _folded
        lanes = build(m, self.params, self)
        m.d.comb += self.o_y.payload.as_value().eq(Mux(self.o_y.valid, Cat(*lanes), 0))
        return m


def _parallel(m: Module, p: HadamardParams, unit: Hadamard) -> list[Value]:
    """All butterflies side by side."""
    m.submodules.pipeline = pipeline = Pipeline(p.stages + p.levels)
    m.d.comb += [
        pipeline.taken.eq(unit.i_x.valid & unit.i_x.ready),
        pipeline.accept.eq(unit.o_y.ready),
        unit.i_x.ready.eq(pipeline.advance),
        unit.o_y.valid.eq(pipeline.shown),
    ]
    lanes: list[Value] = [unit.i_x.payload.x[i] for i in range(p.points)]
    # A negated input costs nothing: +-a +- b is, up to the sign of a, one of a + b and a - b. The sign of a
    # stays due on both results; at the end it is that of input 0, which is never negated.
    for stage in range(p.stages):
        for i in (i for i in range(p.points) if not i >> stage & 1):
            j = i | 1 << stage
            m.submodules[f"butterfly_{stage}_{i}"] = cell = Butterfly(p.in_bits + stage)
            m.d.comb += [cell.advance.eq(pipeline.advance), cell.a.eq(lanes[i]), cell.b.eq(lanes[j])]
            pair = (cell.total, cell.difference)
            lanes[i], lanes[j] = pair[::-1] if _swapped(p, stage, i) else pair
    return lanes if p.order == 1 else _trees(m, p, lanes, pipeline.advance)


def _swapped(p: HadamardParams, stage: int, index: int) -> bool:
    """Whether the signs of the two halves of the group of 2^(stage + 1) inputs with `index` differ."""
    first = index >> stage + 1 << stage + 1
    return bool((p.signs >> first ^ p.signs >> (first + (1 << stage))) & 1)


def _trees(m: Module, p: HadamardParams, lanes: list[Value], advance: Value) -> list[Value]:
    out: list[Value] = [Const(0)] * p.points
    for j in range(p.inner):
        m.submodules[f"rows_{j}"] = rows = SignedRows(p.core_bits, p.row_signs)
        m.d.comb += [rows.advance.eq(advance), rows.x.eq(Cat(*lanes[j :: p.inner]))]
        out[j :: p.inner] = [rows.y.word_select(i, p.out_bits) for i in range(p.order)]
    return out


@shared
class SignedRows(Component):
    """y[a] <= the sum of all x[b], those subtracted where `minus[a][b]`; a register after each level of additions.

    What rows need alike, up to a sign, is added once. Every row adds its first value.
    """

    def __init__(self, width: int, minus: tuple[tuple[bool, ...], ...]) -> None:
        self.width, self.minus = width, minus
        self.order = len(minus)
        self.out_bits = width + (self.order - 1).bit_length()
        x, y = In(unsigned(width * self.order)), Out(unsigned(self.out_bits * self.order))
        super().__init__({"advance": In(1), "x": x, "y": y})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        sums = {(b, (False,)): self.x.word_select(b, self.width).as_signed() for b in range(self.order)}
        size = 1
        while size < self.order:
            sums, size = self._level(m, sums, size), 2 * size
        m.d.comb += self.y.eq(Cat(*(sums[0, row] for row in self.minus)))
        return m

    def _level(self, m: Module, sums: dict[Any, Value], size: int) -> dict[Any, Value]:
        """The sums of runs of 2 `size` values from those of `size`; keys are the first value and who is subtracted."""
        found: dict[Any, Value] = {}
        for start in range(0, self.order, 2 * size):
            for run in sorted({_first_added(row[start : start + 2 * size]) for row in self.minus}):
                name = f"sum_{size}_{start}_{len(found)}"
                found[start, run] = self._sum(m, name, sums, start, run[:size], run[size:])
        return found

    def _sum(self, m: Module, name: str, sums: dict[Any, Value], start: int, left: Any, right: Any) -> Value:
        a = sums[start, left]
        if not right:
            held = Signal.like(a, name=name, reset_less=True)
            with m.If(self.advance):
                m.d.sync += held.eq(a)
            return held
        b = sums[start + len(left), _first_added(right)]
        m.submodules[name] = cell = Sum(len(a), len(b), self.width + (len(left) + len(right) - 1).bit_length())
        m.d.comb += [cell.advance.eq(self.advance), cell.minus.eq(int(right[0])), cell.a.eq(a), cell.b.eq(b)]
        return cell.total


def _first_added(run: tuple[bool, ...]) -> tuple[bool, ...]:
    """The same sum up to its sign, with its first value added."""
    return tuple(minus != run[0] for minus in run)


def _folded(m: Module, p: HadamardParams, unit: Hadamard) -> list[Value]:
    """Butterflies between the banks of a register file.

    Value i of 2^k lies in the word i // banks of the bank whose digits are those of i modulo `banks`, exclusive or all
    digits above them: that one's, place by place, modulo how many they are. So the two inputs of a butterfly of any
    stride lie in different banks, and a cycle works on one word of each; which, stage and step say. The sum of a pair
    may stand in either place: what would have to be moved for that is the pair's order, which the stage knows.
    """
    at = _steps(m, p, unit)
    entering = _permuted(m, [unit.i_x.payload.x[i] for i in range(p.beat_points)], _folds(p, at.word))
    banks = [_bank(m, p, at, i) for i in range(p.beat_points)]
    held = [_chosen_block(p, at, bank) for bank in banks]
    pairs = [named(m, Mux(at.loading, x, y).as_signed()) for x, y in zip(entering, held, strict=True)]
    for bank, value in zip(banks, _butterflies(m, p, at, pairs), strict=True):
        m.d.comb += bank.data.eq(value)
    if p.order == 1:
        return _permuted(m, [bank.words.as_signed() for bank in banks], _folds(p, at.read_word))
    digits = delay(m, Cat(*_folds(p, at.read_word)), p.levels, at.advance)
    return _permuted(m, _row_sums(m, p, at, banks), list(digits))


class Steps(NamedTuple):
    """What the control says in a cycle."""

    word: Value
    """of the step, 2^k / banks of them"""
    block: Value
    """of the step, m of them"""
    stage: Value
    loading: Value
    """the first stage, which takes a beat as it enters; in all others the banks are read"""
    work: Value
    """the step is done in this cycle"""
    read_word: Value
    read_row: Value
    """the word, and row of H_m, of the beat that leaves"""
    advance: Value
    """the registers of sums move"""


def _steps(m: Module, p: HadamardParams, unit: Hadamard) -> Steps:
    """Counters, and the streams' valid and ready, as FoldedControl in models/hadamard.py has them."""
    words = p.inner // p.beat_points
    work, reading, pending = Signal(name="work"), Signal(name="reading"), Signal(name="pending")
    word, word_ends = _counter(m, "word", words, work)
    block, block_ends = _counter(m, "block", p.order, word_ends)
    stage, ends = _counter(m, "stage", p.stages, block_ends)
    read_word, read_ends = _counter(m, "read_word", words, reading)
    read_row, all_read = _counter(m, "read_row", p.order, read_ends)
    loading = named(m, stage == 0)
    advance = _leaving(m, p, unit, pending, reading)
    last_row = read_row == p.order - 1
    m.d.sync += pending.eq(ends | (pending & ~all_read))
    m.d.comb += [
        unit.i_x.ready.eq(loading & (~pending | (last_row & ((word != read_word) | reading)))),
        work.eq(~loading | (unit.i_x.valid & unit.i_x.ready)),
        reading.eq(pending & advance),
    ]
    return Steps(word, block, stage, loading, work, read_word, read_row, advance)


def _leaving(m: Module, p: HadamardParams, unit: Hadamard, pending: Value, reading: Value) -> Value:
    """Joins the output's valid; gives whether what is read can go on."""
    if p.order == 1:
        m.d.comb += unit.o_y.valid.eq(pending)
        return unit.o_y.ready
    m.submodules.pipeline = pipeline = Pipeline(p.levels)
    m.d.comb += [
        pipeline.taken.eq(reading),
        pipeline.accept.eq(unit.o_y.ready),
        unit.o_y.valid.eq(pipeline.shown),
    ]
    return pipeline.advance


def _counter(m: Module, name: str, limit: int, enable: Value) -> tuple[Value, Value]:
    """Counts from 0 to `limit` - 1 when `enable`; and whether it goes back to 0 then."""
    if limit == 1:
        return Const(0, 0), enable  # a signal without bits: there is none in Verilog
    count = Signal(range(limit), name=name)
    ends = named(m, enable & (count == limit - 1))
    with m.If(enable):
        m.d.sync += count.eq(Mux(ends, 0, count + 1))
    return count, ends


def _folds(p: HadamardParams, word: Value) -> list[Value]:
    """By which digits the values of a word are exchanged between banks."""
    digits = (p.beat_points - 1).bit_length()
    return [_parity([word[i] for i in range(z, len(word), digits)]) for z in range(digits)]


def _parity(bits: list[Value]) -> Value:
    return Cat(*bits).xor() if bits else Const(0, 1)


def _permuted(m: Module, lanes: list[Value], digits: list[Value]) -> list[Value]:
    """Lane i, exclusive or `digits`, in the place of lane i."""
    for z, digit in enumerate(digits):
        lanes = [named(m, Mux(digit, lanes[i ^ 1 << z], lane).as_signed()) for i, lane in enumerate(lanes)]
    return lanes


def _by_stage(p: HadamardParams, at: Steps, values: list[Value]) -> Value:
    """The value of the stage's own digit: of two lanes or more the stages take the banks' digits in turn."""
    return chosen([values[s % len(values)] for s in range(p.stages)], at.stage) if len(values) > 1 else values[0]


def _bank(m: Module, p: HadamardParams, at: Steps, number: int) -> Bank:
    """A bank at the step's word; once the stride is longer than a word, halves of the banks differ in one digit."""
    m.submodules[f"bank_{number}"] = bank = Bank(p.order, p.inner // p.beat_points, p.core_bits)
    digits = (p.beat_points - 1).bit_length()
    upper = _by_stage(p, at, [Const(number >> z & 1, 1) for z in range(digits)])
    place = named(m, upper ^ _by_stage(p, at, _folds(p, at.word)))
    word = Cat(*(Mux(at.stage == r + digits, place, bit) for r, bit in enumerate(at.word)))
    m.d.comb += bank.write.eq(at.work)
    if len(word):
        m.d.comb += [bank.word.eq(word), bank.read_word.eq(Mux(at.loading, at.read_word, word))]
    if p.order > 1:
        m.d.comb += bank.block.eq(at.block)
    return bank


def _chosen_block(p: HadamardParams, at: Steps, bank: Bank) -> Value:
    """The step's word."""
    return chosen([bank.words.word_select(b, p.core_bits) for b in range(p.order)], at.block)


@shared
class Bank(Component):
    """Registers of `order` blocks of `depth` words: one is written, one of each block is read in the same cycle."""

    def __init__(self, order: int, depth: int, width: int) -> None:
        self.order, self.depth, self.width = order, depth, width
        address = In((depth - 1).bit_length())
        words = {"word": address, "read_word": address} if depth > 1 else {}  # Verilog has no ports without bits
        blocks = {"block": In((order - 1).bit_length())} if order > 1 else {}
        values = {"data": In(width), "words": Out(order * width)}
        super().__init__({"write": In(1), **words, **blocks, **values})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.words.eq(Cat(*(self._block(m, b) for b in range(self.order))))
        return m

    def _block(self, m: Module, block: int) -> Value:
        """The word read of one block, chosen digit by digit."""
        words = [Signal(self.width, name=f"word_{block}_{u}", reset_less=True) for u in range(self.depth)]
        write = named(m, self.write & (self.block == block)) if self.order > 1 else self.write
        for u, word in enumerate(words):
            with m.If(write & (self.word == u) if self.depth > 1 else write):
                m.d.sync += word.eq(self.data)
        return chosen(words, self.read_word) if self.depth > 1 else words[0]


def chosen(words: Sequence[Value], number: Value) -> Value:
    """The word of that number, chosen digit by digit; of too large a number, any."""
    for digit in number:
        pairs = [words[i : i + 2] for i in range(0, len(words), 2)]
        words = [Mux(digit, pair[1], pair[0]) if len(pair) == 2 else pair[0] for pair in pairs]
    return words[0]


def _butterflies(m: Module, p: HadamardParams, at: Steps, values: list[Value]) -> list[Value]:
    """What is written to each bank: those that differ in the stage's digit are a pair."""
    lanes, digits = len(values) // 2, (p.beat_points - 1).bit_length()
    cells = []
    reverse = named(m, _by_stage(p, at, _folds(p, at.word)))
    for lane in range(lanes):
        m.submodules[f"butterfly_{lane}"] = cell = Exchange(p.core_bits)
        m.d.comb += [
            cell.a.eq(_by_stage(p, at, [values[_inserted(lane, z, 0)] for z in range(digits)])),
            cell.b.eq(_by_stage(p, at, [values[_inserted(lane, z, 1)] for z in range(digits)])),
            cell.reverse.eq(reverse),
            cell.exchange.eq(reverse ^ _sign_exchange(p, at, lane)),
        ]
        cells.append(cell)
    out = [
        [[cells[_removed(i, z)].a_out, cells[_removed(i, z)].b_out][i >> z & 1] for z in range(digits)]
        for i in range(p.beat_points)
    ]
    return [_by_stage(p, at, choices) for choices in out]


def _inserted(number: int, place: int, digit: int) -> int:
    """`number` with a digit put in at `place`."""
    return (number >> place << 1 | digit) << place | number & (1 << place) - 1


def _removed(number: int, place: int) -> int:
    return number >> place + 1 << place | number & (1 << place) - 1


def _sign_exchange(p: HadamardParams, at: Steps, lane: int) -> Value:
    """Whether sum and difference change places for the signs: a table over word, block and stage."""
    place, table = Cat(at.word, at.block, at.stage), 0
    for stage in range(p.stages):
        for step in range(p.rows):
            block, word = divmod(step, p.rows // p.order)
            index = word | block << len(at.word) | stage << len(at.word) + len(at.block)
            table |= _swapped(p, stage, block * p.inner + _first_input(p, stage, word, lane)) << index
    return Const(table, 1 << len(place)).bit_select(place, 1) if table else Const(0, 1)


def _first_input(p: HadamardParams, stage: int, word: int, lane: int) -> int:
    """The place in 2^k of an input of a butterfly, that in the bank whose digit of the stage is 0."""
    digits = (p.beat_points - 1).bit_length()
    fold = [(word & sum(1 << i for i in range(z, p.inner.bit_length(), digits))).bit_count() & 1 for z in range(digits)]
    if stage >= digits:
        r = stage - digits
        word = word & ~(1 << r) | fold[stage % digits] << r
        fold = [
            (word & sum(1 << i for i in range(z, p.inner.bit_length(), digits))).bit_count() & 1 for z in range(digits)
        ]
    bank = _inserted(lane, stage % digits, 0)
    return word << digits | bank ^ sum(bit << z for z, bit in enumerate(fold))


@shared
class Exchange(Component):
    """The sum a + b and the difference a - b, or b - a where `reverse`; b_out is the sum where `exchange`, else a_out.

    No register; `width` bits hold all of them.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        word = signed(width)
        values = {"a": In(word), "b": In(word), "a_out": Out(word), "b_out": Out(word)}
        super().__init__({"reverse": In(1), "exchange": In(1), **values})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        total, difference = (Signal(self.width, name=name) for name in ("total", "difference"))
        reverse = self.reverse.replicate(self.width)
        m.d.comb += [
            total.eq(self.a + self.b),
            difference.eq((self.a.as_unsigned() ^ reverse) + (self.b.as_unsigned() ^ ~reverse) + 1),
            self.a_out.eq(Mux(self.exchange, difference, total)),
            self.b_out.eq(Mux(self.exchange, total, difference)),
        ]
        return m


def _row_sums(m: Module, p: HadamardParams, at: Steps, banks: list[Bank]) -> list[Value]:
    """One row of H_m after the other, for all banks."""
    flips, row, size = [], at.read_row, 1
    while size < p.order:
        flips += [_flip(p, row, start, start + size) for start in range(0, p.order - size, 2 * size)]
        row, size = delay(m, row, 1, at.advance), 2 * size
    sums = []
    for i, bank in enumerate(banks):
        m.submodules[f"row_{i}"] = cell = RowSum(p.core_bits, p.order)
        m.d.comb += [cell.advance.eq(at.advance), cell.flips.eq(Cat(*flips)), cell.x.eq(bank.words)]
        sums.append(cell.y)
    return sums


def _flip(p: HadamardParams, row: Value, first: int, second: int) -> Value:
    """Whether the row has different signs at two places."""
    table = sum((minus[first] != minus[second]) << a for a, minus in enumerate(p.row_signs))
    return Const(table, 1 << len(row)).bit_select(row, 1)


@shared
class RowSum(Component):
    """y <= the sum of x with the signs of a row of which the first is +; a register after each level of additions.

    `flips`, of each level's sums in order: whether the second half's first sign differs from the first half's.
    """

    def __init__(self, width: int, order: int) -> None:
        self.width, self.order = width, order
        x, y = In(unsigned(width * order)), Out(signed(width + (order - 1).bit_length()))
        super().__init__({"advance": In(1), "flips": In(order - 1), "x": x, "y": y})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        sums: list[Value] = [self.x.word_select(b, self.width).as_signed() for b in range(self.order)]
        sizes, flips = [1] * self.order, iter(self.flips)
        while len(sums) > 1:
            pairs = range(0, len(sums), 2)
            sums = [self._sum(m, f"sum_{len(sums)}_{i}", sums[i : i + 2], sum(sizes[i : i + 2]), flips) for i in pairs]
            sizes = [sum(sizes[i : i + 2]) for i in pairs]
        m.d.comb += self.y.eq(sums[0])
        return m

    def _sum(self, m: Module, name: str, parts: list[Value], size: int, flips: Iterator[Value]) -> Value:
        if len(parts) == 1:
            return delay(m, parts[0], 1, self.advance)
        a, b = parts
        m.submodules[name] = cell = Sum(len(a), len(b), self.width + (size - 1).bit_length())
        m.d.comb += [cell.advance.eq(self.advance), cell.minus.eq(next(flips)), cell.a.eq(a), cell.b.eq(b)]
        return cell.total
