"""What tests of the system simulator need: small machines, products and programs drawn at random, and the steps of a
product walked through index by index, without the simulator's own nests."""

import itertools
from dataclasses import dataclass
from fractions import Fraction

from hwsim.system.engines import engine_of
from hwsim.system.machine import Machine
from hwsim.system.program import ACT, EXTRA, OUT, SCORES, WEIGHT, Loop, Move, Stage, Step, repeats
from hwsim.system.search import grains, lengths, stage_of
from hwsim.system.simulate import PAD_OF, VECTOR
from hwsim.system.tiling import Image, Product, Tiling, buffer_bytes

ORDERS = ("mnk", "mkn", "nmk", "nkm", "kmn", "knm")
SPLITS = (
    (("activations",), ("weights",), ("outputs",)),
    (("activations", "weights"), ("outputs",)),
    (("activations", "weights", "outputs"),),
)


def machine(**over):
    """A machine of one systolic array of 4 x 4 and three scratchpads of 1 KiB; what is given replaces it."""
    array = {"name": "array", "unit": "systolic", "set": {"rows": 4, "cols": 4}}
    pads = tuple({"name": f"s{i}", "holds": holds, "kib": 1.0} for i, holds in enumerate(SPLITS[0]))
    return Machine.model_validate({"name": "m", "clock_mhz": 1000.0, "engines": (array,), "scratchpads": pads} | over)


def product(M, K, N, **over):
    """One product of bytes with sums of 32 bits and results of 8; what is given replaces it."""
    bits = {"act_bits": Fraction(8), "weight_bits": Fraction(8), "out_bits": Fraction(8), "sum_bits": 32}
    return Product(**({"batch": 1, "M": M, "K": K, "N": N, "packed": True} | bits | over))


def memory(rng):
    """DRAM and DMA: small whole numbers, so that things happen at the same time, and now and then none at all."""
    dram = {"bytes_per_cycle": rng.choice((None, 1.0, 2.0, 4.0, 16.0, 3.3)), "latency_cycles": rng.choice((0, 0, 1, 7))}
    if rng.random() < 0.4:
        dram |= {"row_bytes": rng.choice((8, 64)), "row_miss_cycles": rng.choice((0, 1, 4))}
    return {"dram": dram, "dma": {"channels": rng.randint(1, 4), "setup_cycles": rng.choice((0, 0, 1, 5))}}


def roomy(machine_over, stages_bytes, rng):
    """A machine whose scratchpads hold the given buffers, just so or with some room to spare."""
    copies = 2 if machine_over["double_buffering"] else 1
    pads = []
    for i, holds in enumerate(rng.choice(SPLITS)):
        need = max(
            copies * sum(size for buffer, size in sizes.items() if PAD_OF[buffer] in holds) for sizes in stages_bytes
        )
        spare = rng.choice((0, 0, 1, need // 2, need, 4 * need))
        pads.append({"name": f"s{i}", "holds": holds, "kib": max(need + spare, 1) / 1024})
    return machine(**machine_over, scratchpads=tuple(pads))


def random_product(rng, vector=True):
    """Up to a few dozen values along each dimension; images, batches, residuals and epilogues now and then."""
    over = {"batch": rng.choice((1, 1, 1, 2, 3, 6)), "packed": rng.random() < 0.5}
    over |= {f"{name}_bits": Fraction(rng.choice((4, 8, 16))) for name in ("act", "weight", "out")}
    if vector and rng.random() < 0.5:
        over["lane_ops"] = rng.randint(1, 3)
        over["extra_bits"] = Fraction(rng.choice((0, 8, 16)))
    m, k, n = (rng.choice((1, 3, 4, 7, 8, 12, 16, 21, 32)) for _ in range(3))
    if rng.random() < 0.25:
        taps, pixels = 9, rng.randint(2, 5)
        rows = rng.randint(1, 5)
        m, k = rows * pixels, taps * rng.randint(1, 4)
        sizes = {"row_pixels": pixels, "out_rows": rows, "in_rows": rows + 2, "in_width": pixels + 2}
        over["image"] = Image(**sizes, stride=1, span=3, taps=taps, channels=k // taps)
    return product(m, k, n, **over)


def random_tiling(rng, work, engine):
    sizes = (work.M, work.K, work.N)
    tile = tuple(rng.choice(lengths(*pair)) for pair in zip(sizes, grains(work, engine), strict=True))
    return Tiling(order=rng.choice(ORDERS), tile=tile)


def engine(m):
    return engine_of(m.engines[0])


def stage(work, tiling, m, **over):
    """The product on the machine's engine as a stage that waits for nobody."""
    return stage_of(work, tiling, engine(m), m, **({"name": "p", "waits": (), "weights_wait": False} | over))


# --- programs --------------------------------------------------------------------------------------------------------


def _stream(rng):
    """A step of the vector unit, or of a unit of its own, over and over; and its buffers."""
    big, small = rng.choice((4, 16, 40)), rng.choice((4, 8, 16))
    unit = rng.choice((VECTOR, VECTOR, "transform"))
    step = Step(unit, rng.choice((1, 4, 9, 16)), (Move(ACT, big),), new_out=True, store=Move(OUT, small))
    return (Loop(rng.randint(1, 9), (step,)),), {ACT: big, OUT: small}


def _attention(rng):
    """Fused attention by hand: scores of all keys, softmax on the vector unit, the product with the values."""
    key, value, query, out = (rng.choice((8, 16, 24)) for _ in range(4))
    chunks, cycles = rng.randint(1, 3), rng.choice((4, 8, 13))
    first = (Move(WEIGHT, key), Move(ACT, query), Move(SCORES, 0))
    steps = [Step("array", cycles, first if i == 0 else first[:1]) for i in range(chunks)]
    steps.append(Step(VECTOR, rng.choice((1, 8, 20)), after=1))
    for i in range(chunks):
        store = Move(OUT, out) if i == chunks - 1 else None
        steps.append(Step("array", cycles, (Move(WEIGHT, value),), new_out=i == 0, store=store, after=int(i == 0)))
    buffers = {ACT: query, WEIGHT: max(key, value), SCORES: 32, OUT: 2 * out}
    return (Loop(rng.randint(1, 12), tuple(steps)),), buffers


def random_program(rng):
    """A machine and a program of one to three products, streams and fused attentions, some of them repeated."""
    over = {"double_buffering": rng.random() < 0.7, "prefetch": rng.random() < 0.6, **memory(rng)}
    over["vector"] = {"lanes": rng.choice((1, 4, 16)), "latency_cycles": rng.choice((0, 0, 3))}
    array, parts = engine(machine()), []
    for kind in rng.choices("pppsa", k=rng.choice((1, 1, 2, 3))):
        if kind == "p":
            work = random_product(rng)
            tiling = random_tiling(rng, work, array)
            parts.append(((work, tiling), buffer_bytes(work, tiling.tile)))
        else:
            parts.append((_stream if kind == "s" else _attention)(rng))
    m = roomy(over, [sizes for _, sizes in parts], rng)
    stages = [_as_stage(rng, m, what, sizes) for what, sizes in parts]
    program = [rng.choice(stages)] if rng.random() < 0.5 else []
    program += stages[: rng.randint(1, len(stages))] * rng.choice((1, 1, 2, 5, 20))
    program += stages[rng.randrange(len(stages)) :] * rng.choice((0, 0, 1, 3, 8))
    return m, repeats(program)


def _as_stage(rng, m, what, sizes):
    waits = tuple(sorted(rng.sample((1, 2, 3, 4), rng.choice((0, 1, 1, 2)))))
    common = {"waits": waits, "weights_wait": rng.random() < 0.3}
    if isinstance(what[0], Product):
        return stage(*what, m, **common)
    return Stage(name="s", nodes=what, buffers=tuple(sizes.items()), copies=m.copies, **common)


def random_steps(rng):
    """A machine and a program of steps that no product has: any operand may stay, transfers and work of one or two
    cycles, so that nearly everything happens at the same time."""
    over = {"double_buffering": rng.random() < 0.7, "prefetch": rng.random() < 0.7}
    over["dram"] = {"bytes_per_cycle": rng.choice((None, 1.0, 2.0)), "latency_cycles": rng.choice((0, 1, 2))}
    over["dma"] = {"channels": rng.randint(1, 3), "setup_cycles": rng.choice((0, 1))}
    sizes = {ACT: 2, WEIGHT: 2, OUT: 2, EXTRA: 2}
    m = roomy(over, [sizes], rng)
    stages = [_as_stage(rng, m, _nodes(rng, 2), sizes) for _ in range(rng.randint(1, 3))]
    program = [rng.choice(stages)] if rng.random() < 0.5 else []
    program += stages * rng.choice((1, 2, 6, 20)) + [rng.choice(stages)] * rng.choice((0, 1, 9))
    return m, repeats(program)


def _nodes(rng, depth):
    nodes = []
    for _ in range(rng.randint(1, 2)):
        if depth and rng.random() < 0.6:
            nodes.append(Loop(rng.choice((2, 3, 5, 17)), _nodes(rng, depth - 1)))
        else:
            nodes += _steps(rng, not nodes or rng.random() < 0.3)
    return tuple(nodes)


def _steps(rng, fresh):
    """One to three steps from the beginning of a tile of the result to its end."""
    count, extra, steps = rng.randint(1, 3), rng.random() < 0.3, []
    for i in range(count):
        loads, last, brings = [], i == count - 1, fresh and i == 0
        if brings or rng.random() < 0.6:
            loads.append(Move(WEIGHT, rng.choice((0, 1, 2)), rng.randint(1, 2)))
        if brings or rng.random() < 0.6:
            loads.append(Move(ACT, rng.choice((1, 2))))
        if last and extra:
            loads.append(Move(EXTRA, rng.choice((1, 2))))
        ends = {"store": Move(OUT, rng.choice((1, 2))), "epilogue": _epilogue(rng)} if last else {}
        resume = Move(OUT, 1) if i == 0 and rng.random() < 0.2 else None
        unit, cycles = rng.choice(("array", "array", VECTOR, "other")), rng.choice((1, 1, 2, 3))
        after = rng.choice((0, 0, 0, 1)) if i else 0
        steps.append(Step(unit, cycles, tuple(loads), new_out=i == 0, resume=resume, after=after, **ends))
    return steps


def _epilogue(rng):
    """Up to two units on the way of a result."""
    return tuple((rng.choice((VECTOR, "other")), rng.choice((1, 2))) for _ in range(rng.choice((0, 0, 1, 2))))


# --- a product, index by index ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Visit:
    """A step of a product: the index of its tile along b, m, k, n, its size, and what it moves."""

    index: dict
    size: tuple
    first: bool
    """it begins to work on a tile of Y; `again`: on one that had been put away"""
    again: bool
    last: bool
    """it leaves the tile of Y; `complete`: for good"""
    complete: bool
    reads: tuple
    """which of "weight", "act" are not those of the step before"""


def walk(work, tiling):
    """Every step in order, from nothing but index arithmetic."""
    length = dict(zip("mkn", tiling.tile, strict=True)) | {"b": 1}
    total = {"b": work.batch, "m": work.M, "k": work.K, "n": work.N}
    order = "b" + tiling.order
    starts = [range(0, total[dim], length[dim]) for dim in order]
    places = [dict(zip(order, place, strict=True)) for place in itertools.product(*starts)]

    def tile_of(place, dims):
        return None if place is None else tuple(place[dim] for dim in dims)

    seen = set()
    for before, here, after in zip([None, *places], places, [*places[1:], None], strict=False):
        y = tile_of(here, "bmn")
        first, last = tile_of(before, "bmn") != y, tile_of(after, "bmn") != y
        yield Visit(
            index=here,
            size=tuple(min(length[dim], total[dim] - here[dim]) for dim in "mkn"),
            first=first,
            again=first and y in seen,
            last=last,
            complete=here["k"] + length["k"] >= total["k"],
            reads=tuple(
                name
                for name, dims in (("weight", "bkn"), ("act", "bmk"))
                if tile_of(before, dims) != tile_of(here, dims)
            ),
        )
        seen.add(y)


def required_bytes(work, tiling):
    """(bytes read, bytes written) by the walk, each transfer rounded up to bytes."""
    read = written = 0
    for visit in walk(work, tiling):
        m, k, n = visit.size
        moved = {"weight": k * n * work.weight_bits, "act": m * k * work.act_bits}
        if work.image is not None:
            moved["act"] = work.image.elements(m, k) * work.act_bits
        sums, out, extra = m * n * work.sum_bits, m * n * work.out_bits, m * n * work.extra_bits
        read += sum(_bytes(moved[name]) for name in visit.reads) + (_bytes(sums) if visit.again else 0)
        if visit.last:
            written += _bytes(out if visit.complete else sums)
            read += _bytes(extra) if visit.complete else 0
    return read, written


def _bytes(bits):
    return -(-bits // 8)
