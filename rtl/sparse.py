"""Arrays that add the non-zero digits of A: what they share; contract and parameters in models/sparse.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from models.sparse import GROUP, LATENCY, SparseArray
from rtl.arith import full_adders
from rtl.emit import shared
from rtl.ent import encode
from rtl.stationary import Pipeline


def array_streams(params: Any) -> dict[str, Any]:
    """`i_weight` {weight[rows]}, `i_act` {act[tile_k], last}, `i_psum` {psum[rows]}, `o_psum` {psum[rows]}."""
    array: SparseArray = params.array
    psum = {"psum": data.ArrayLayout(signed(array.acc_bits), array.rows)}
    payloads = {
        "i_weight": {"weight": data.ArrayLayout(signed(array.weight_bits), array.rows)},
        "i_act": {"act": data.ArrayLayout(signed(array.act_bits), array.tile_k), "last": 1},
        "i_psum": psum,
    }
    inputs = {name: In(stream.Signature(data.StructLayout(payload))) for name, payload in payloads.items()}
    return {**inputs, "o_psum": Out(stream.Signature(data.StructLayout(psum)))}


@dataclass(frozen=True)
class ColumnPorts:
    """A column as the array's control sees it."""

    sequencers: list[Any]
    """all in the same state"""
    pairs: list[Value]
    """carry-save sums of the PEs, the sum words in the lower halves"""


def sequencer_ports(array: SparseArray) -> dict[str, Any]:
    """What a sequencer has towards the array's control."""
    return {
        "load": In(1),  # takes the row `codes`; only while not busy
        "codes": In(unsigned(array.tile_k * array.code_bits)),
        "wait": In(1),  # the PEs cannot begin a row in the next cycle
        "busy": Out(1),  # a row's steps are being chosen
        "valid": Out(1),  # a step is being added
        "final": Out(1),  # and is its row's last
    }


def step_of(array: SparseArray) -> dict[str, int]:
    """What a sequencer hands to its PEs in a step, field -> bits: whether the pair stays where it is or moves up (a
    row's first step starts it anew), the weight of each lane one hot, and whether it counts twice and negatively."""
    return {"keep": 1, "shift": 1, "select": array.tile_k, "two": array.lanes, "neg": array.lanes}


@shared
class Sequencer(Component):
    """The digit buffer of a row of A, and its non-zero digits one after another; a step chosen in one cycle stands in
    the step register in the next. Where none was chosen the step there keeps the pair and adds zero."""

    def __init__(self, array: SparseArray) -> None:
        self.array = array
        steps = {name: Out(unsigned(bits)) for name, bits in step_of(array).items()}
        super().__init__({**sequencer_ports(array), **steps})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        array = self.array
        busy, move, done = Signal(name="busy_reg"), Signal(), Signal()
        codes = Signal.like(self.codes, name="codes_reg", reset_less=True)
        with m.If(self.load):
            m.d.sync += codes.eq(self.codes)
        digit, fresh = _ring(array.digits, "digit", array.digits - 1), Signal(init=1)
        lanes = [_Lane(m, array, i, codes, digit, move, done) for i in range(array.lanes)]
        last = done & digit[0]
        m.d.comb += [
            self.busy.eq(busy),
            move.eq(busy & ~(fresh & digit[-1] & self.wait)),
            done.eq(reduce(and_, (lane.done for lane in lanes))),
        ]
        m.d.sync += busy.eq(self.load | (busy & ~(move & last)))
        with m.If(move):
            m.d.sync += fresh.eq(done)
            if array.digits > 1:
                with m.If(done):
                    m.d.sync += digit.eq(digit.rotate_right(1))
        step = {
            "keep": ~(move & fresh),
            "shift": move & fresh & ~digit[-1],
            "select": Mux(move, reduce(or_, (lane.select for lane in lanes)), 0),
            "two": Cat(lane.two for lane in lanes),
            "neg": Cat(lane.neg for lane in lanes),
        }
        for name, value in {"valid": move, "final": move & last, **step}.items():
            register = Signal(value.shape(), name=f"{name}_reg", reset_less=name in step)
            m.d.sync += register.eq(value)
            m.d.comb += getattr(self, name).eq(register)
        return m


class _Lane:
    """One lane of a sequencer: the group at work, the digit chosen in it, and whether the bit-weight's groups are over
    with this step (`done`). `select` has the chosen weight's bit among those of the whole tile, none for a zero."""

    def __init__(
        self, m: Module, array: SparseArray, lane: int, codes: Value, digit: Value, move: Value, all_done: Value
    ) -> None:
        past, waiting = Signal(GROUP - 1, name=f"past_{lane}"), _flag(array.lanes > 1, f"waiting_{lane}")
        group = _ring(array.groups, f"group_{lane}", 0)
        found = _digits_of(m, array, lane, codes, group, digit)
        left = Signal(GROUP, name=f"left_{lane}")
        m.d.comb += left.eq(Cat(low | high for low, high, _ in found) & ~Cat(past, 0) & (~waiting).replicate(GROUP))
        pick = Cat(left[i] & ~left[:i].any() for i in range(GROUP))
        more = Cat(left[i] & left[:i].any() for i in range(GROUP)).any()
        self.done = waiting | (group[-1] & ~more)
        self.two = _any_of(bit & high & ~low for bit, (low, high, _) in zip(pick, found, strict=True))
        self.neg = _any_of(bit & (sign ^ (low & high)) for bit, (low, high, sign) in zip(pick, found, strict=True))
        places = [pick & group[g].replicate(GROUP) for g in range(array.groups)]
        self.select = Cat(
            Cat(Const(0, GROUP * lane), place, Const(0, GROUP * (array.lanes - 1 - lane))) for place in places
        )
        with m.If(move):
            m.d.sync += past.eq(Mux(more, past | pick[: GROUP - 1], 0))
            if array.lanes > 1:
                m.d.sync += waiting.eq(self.done & ~all_done)
            if array.groups > 1:
                with m.If(~more & ~waiting):
                    m.d.sync += group.eq(group.rotate_left(1))


def _digits_of(
    m: Module, array: SparseArray, lane: int, codes: Value, group: Value, digit: Value
) -> list[tuple[Value, Value, Value]]:
    """Low and high bit of the digit, and the sign, of each activation in the lane's group at work."""
    found = []
    for i in range(GROUP):
        places = [GROUP * (g * array.lanes + lane) + i for g in range(array.groups)]
        code = Signal(array.code_bits, name=f"code_{lane}_{i}")
        m.d.comb += code.eq(one_of(group, [codes.word_select(k, array.code_bits) for k in places]))
        low = _any_of(digit[d] & code[2 * d] for d in range(array.digits))
        high = _any_of(digit[d] & code[2 * d + 1] for d in range(array.act_bits // 2))
        found.append((low, high, code[-1]))
    return found


def one_of(which: Value, words: list[Value]) -> Value:
    """The word whose bit of the one-hot `which` is set; zero where none is."""
    return reduce(or_, (Mux(bit, word, 0) for bit, word in zip(which, words, strict=True)))


def _any_of(bits: Any) -> Value:
    return Cat(*bits).any()


def _ring(size: int, name: str, start: int) -> Any:
    """A one-hot position that goes round; constant where there is only one."""
    return Signal(size, name=name, init=1 << start) if size > 1 else Const(1, 1)


def _flag(needed: bool, name: str) -> Any:
    return Signal(name=name) if needed else Const(0, 1)


def add_step(m: Module, array: SparseArray, weights: Value, step: Any) -> Value:
    """The carry-save pair of a PE, to which the lanes' digits times their weights are added in each cycle as `step`
    (fields of `step_of`) says."""
    pair = Signal(2 * array.acc_bits, reset_less=True)
    before = [_moved(word, step) for word in (pair[: array.acc_bits], pair[array.acc_bits :])]
    multiples = [_multiple(m, array, weights, step, lane) for lane in range(array.lanes)]
    m.d.sync += pair.eq(Cat(*(_add_one if array.lanes == 1 else _add_four)(m, array, before, multiples, step.neg)))
    return pair


def _moved(word: Value, step: Any) -> Value:
    return Mux(step.keep, word, 0) | Mux(step.shift, Cat(Const(0, 2), word), 0)[: len(word)]


def _multiple(m: Module, array: SparseArray, weights: Value, step: Any, lane: int) -> Value:
    """Digit times weight of a lane, signed, without the one that a negative multiple still lacks."""
    places = [GROUP * (g * array.lanes + lane) + i for g in range(array.groups) for i in range(GROUP)]
    words = [weights.word_select(k, array.weight_bits) for k in places]
    weight = Signal(signed(array.weight_bits), name=f"weight_{lane}")
    multiple = Signal(array.product_bits, name=f"multiple_{lane}")
    picked = Mux(step.two[lane], Cat(Const(0, 1), weight), Cat(weight, weight[-1]))
    m.d.comb += [
        weight.eq(one_of(Cat(step.select[k] for k in places), words)),
        multiple.eq(picked[: array.product_bits] ^ step.neg[lane].replicate(array.product_bits)),
    ]
    return multiple


def _adders(m: Module, a: Value, b: Value, c: Value, width: int, due: Value) -> tuple[Value, Value]:
    """Sum and carry words of a row of full adders; the carries' empty lowest place takes the bit that is `due`."""
    total, carry = full_adders(m, _cut(a, width), _cut(b, width), _cut(c, width), width)
    return total, Cat(due, carry[1:])


def _cut(word: Value, width: int) -> Value:
    return Cat(word, Const(0, max(width - len(word), 0)))[:width]


def _add_one(
    m: Module, array: SparseArray, before: list[Value], multiples: list[Value], neg: Value
) -> tuple[Value, Value]:
    [multiple] = multiples
    extended = Cat(multiple, multiple[-1].replicate(array.acc_bits))
    return _adders(m, *before, extended, array.acc_bits, neg[0])


def _add_four(
    m: Module, array: SparseArray, before: list[Value], multiples: list[Value], neg: Value
) -> tuple[Value, Value]:
    """A 6:2 compressor. The sign bits of the multiples are inverted, which adds 4 * 2^(product_bits - 1) in all; the
    ones above the first multiple take that away again, so that none is extended to the sum's width."""
    words = [Cat(multiple[:-1], ~multiple[-1]) for multiple in multiples]
    raised = Cat(words[0], Const(0, 1), Const(-1, array.acc_bits))
    total, carry = _adders(m, *before, raised, array.acc_bits, neg[0])
    three, carries = _adders(m, *words[1:], array.tree_bits, neg[1])
    total, carry = _adders(m, total, carry, three, array.acc_bits, neg[2])
    return _adders(m, total, carry, carries, array.acc_bits, neg[3])


@shared
class WeightBuffer(Component):
    """The weights of one lane of N; they enter at k = 0 and move up by one when `load`."""

    def __init__(self, array: SparseArray) -> None:
        self.array = array
        width = array.tile_k * array.weight_bits
        super().__init__({"load": In(1), "weight": In(unsigned(array.weight_bits)), "weights": Out(unsigned(width))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        weights = Signal.like(self.weights, name="weights_reg", reset_less=True)
        with m.If(self.load):
            m.d.sync += weights.eq(Cat(self.weight, weights))
        m.d.comb += self.weights.eq(weights)
        return m


@shared
class SharedAdder(Component):
    """One lane's results, in two stages that move when `advance`: the pair of the column whose `turn` it is and the
    partial sum are compressed to a pair, and that is resolved. total <= sum + carry, modulo 2^acc_bits."""

    def __init__(self, array: SparseArray) -> None:
        self.array = array
        super().__init__(
            {
                "turn": In(array.cols),
                "advance": In(1),
                "pairs": In(unsigned(array.cols * 2 * array.acc_bits)),
                "psum": In(unsigned(array.acc_bits)),
                "total": Out(unsigned(array.acc_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bits = self.array.acc_bits
        chosen, pair = Signal(2 * bits), Signal(2 * bits, reset_less=True)
        total = Signal(bits, name="total_reg", reset_less=True)
        pairs = [self.pairs.word_select(c, 2 * bits) for c in range(self.array.cols)]
        m.d.comb += [chosen.eq(one_of(self.turn, pairs)), self.total.eq(total)]
        with m.If(self.advance):
            m.d.sync += [
                pair.eq(Cat(*full_adders(m, chosen[:bits], chosen[bits:], self.psum, bits))),
                total.eq((pair[:bits] + pair[bits:])[:bits]),
            ]
        return m


MakeColumn = Callable[[Module, int, list[Value]], ColumnPorts]
"""(module, column, weights of each lane of N) -> the column's ports, its parts instantiated"""


def build_array(unit: Any, make_column: MakeColumn) -> Module:
    """The whole array around `cols` columns: encoders, weights, control, shared adders."""
    m = Module()
    array: SparseArray = unit.params.array
    load, codes = Signal(name="load_weights"), Signal(array.tile_k * array.code_bits)
    m.d.comb += codes.eq(Cat(encode(m, unit.i_act.payload.act[k]) for k in range(array.tile_k)))
    weights = []
    for n in range(array.rows):
        m.submodules[f"weights_{n}"] = buffer = WeightBuffer(array)
        m.d.comb += [buffer.load.eq(load), buffer.weight.eq(unit.i_weight.payload.weight[n])]
        weights.append(buffer.weights)
    columns = [make_column(m, c, weights) for c in range(array.cols)]
    for column in columns:
        m.d.comb += [sequencer.codes.eq(codes) for sequencer in column.sequencers]
    turn, adders = _control(m, unit, columns, load)
    results = []
    for n in range(array.rows):
        m.submodules[f"adder_{n}"] = adder = SharedAdder(array)
        m.d.comb += [
            adder.turn.eq(turn),
            adder.advance.eq(adders.advance),
            adder.pairs.eq(Cat(column.pairs[n] for column in columns)),
            adder.psum.eq(unit.i_psum.payload.psum[n]),
        ]
        results.append(adder.total)
    m.d.comb += unit.o_psum.payload.as_value().eq(Mux(unit.o_psum.valid, Cat(*results), 0))
    return m


def _control(m: Module, unit: Any, columns: list[ColumnPorts], load: Value) -> tuple[Value, Pipeline]:
    """Weights first, then rows of A to the columns in turn, and their sums to the adders in the same order. Gives the
    column, one hot, whose sum is next, and the adders' pipeline."""
    array: SparseArray = unit.params.array
    m.submodules.adders = adders = Pipeline(LATENCY)
    takes, hands = _ring(array.cols, "takes", 0), _ring(array.cols, "hands", 0)
    full, free = (Signal(array.cols, name=name) for name in ("full", "free"))
    passes, taken = Signal(), Signal()
    for c, column in enumerate(columns):
        state, stays = column.sequencers[0], Signal(name=f"stays_{c}")
        m.d.comb += [free[c].eq(~state.busy), stays.eq(state.final | (full[c] & ~(hands[c] & passes)))]
        m.d.comb += [sequencer.wait.eq(stays) for sequencer in column.sequencers]
        m.d.comb += [sequencer.load.eq(takes[c] & taken) for sequencer in column.sequencers]
        m.d.sync += full[c].eq(stays)
    m.d.comb += [
        passes.eq(unit.i_psum.valid & adders.advance),
        unit.i_psum.ready.eq((full & hands).any() & adders.advance),
        unit.o_psum.valid.eq(adders.shown),
        adders.accept.eq(unit.o_psum.ready),
        adders.taken.eq(unit.i_psum.valid & unit.i_psum.ready),
    ]
    idle = free.all() & ~full.any() & ~Cat(column.sequencers[0].valid for column in columns).any()
    ready = _weights(m, unit, idle, taken, load)
    m.d.comb += [
        unit.i_act.ready.eq(ready & (takes & free).any()),
        taken.eq(unit.i_act.valid & unit.i_act.ready),
    ]
    for turn, moves in ((takes, taken), (hands, adders.taken)):
        if array.cols > 1:
            with m.If(load):
                m.d.sync += turn.eq(1)
            with m.Elif(moves):
                m.d.sync += turn.eq(turn.rotate_left(1))
    return hands, adders


def _weights(m: Module, unit: Any, idle: Value, taken: Value, load: Value) -> Value:
    """Takes a tile's weights while all columns are `idle`; high from then until the tile's last row of A is taken."""
    tile_k = unit.params.array.tile_k
    loaded = Signal(range(tile_k + 1))
    ready = loaded == tile_k
    m.d.comb += [unit.i_weight.ready.eq(~ready & idle), load.eq(unit.i_weight.valid & unit.i_weight.ready)]
    with m.If(load):
        m.d.sync += loaded.eq(loaded + 1)
    with m.If(taken & unit.i_act.payload.last):
        m.d.sync += loaded.eq(0)
    return ready


@shared
class SparsePe(Component):
    """pair <= pair, moved as a column's step says, plus the selected multiples of the weights, in every cycle."""

    def __init__(self, array: SparseArray) -> None:
        self.array = array
        super().__init__(
            {
                **{name: In(unsigned(bits)) for name, bits in step_of(array).items()},
                "weights": In(unsigned(array.tile_k * array.weight_bits)),
                "pair": Out(unsigned(2 * array.acc_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.pair.eq(add_step(m, self.array, self.weights, self))
        return m


def column_of_shared_sequencer(array: SparseArray) -> MakeColumn:
    """Columns of one sequencer each, whose steps go to `rows` PEs."""

    def make(m: Module, c: int, weights: list[Value]) -> ColumnPorts:
        m.submodules[f"sequencer_{c}"] = sequencer = Sequencer(array)
        pairs = []
        for n, held in enumerate(weights):
            m.submodules[f"pe_{c}_{n}"] = pe = SparsePe(array)
            m.d.comb += pe.weights.eq(held)
            m.d.comb += [getattr(pe, name).eq(getattr(sequencer, name)) for name in step_of(array)]
            pairs.append(pe.pair)
        return ColumnPorts([sequencer], pairs)

    return make
