"""Loop nests against a walk over indices, what tiles of images need against the pixels that are touched, and energy."""

import itertools
import math
import random
from fractions import Fraction

import pytest
from systems import engine, machine, memory, product, random_product, random_tiling, required_bytes, roomy, walk

from hwsim.energy import DRAM_PJ_PER_BIT, LANE_PJ, SRAM_PJ_PER_BIT, energy_pj, sram_pj_per_bit
from hwsim.system import power
from hwsim.system.machine import Operand
from hwsim.system.program import ACT, EXTRA, OUT, WEIGHT, Loop, Move, steps_of
from hwsim.system.tiling import Image, Tiling, buffer_bytes, compute_cycles, edge_bits, fits, nest, traffic
from hwsim.workloads.graph import Conv
from models.catalog import unit

SYSTOLIC = unit("systolic")
VECTOR = {"lanes": 4, "latency_cycles": 3}


def drawn(seed):
    """A machine, a product and a tiling for it."""
    rng = random.Random(seed)
    over = {"double_buffering": rng.random() < 0.5, "vector": VECTOR, **memory(rng)}
    work = random_product(rng)
    tiling = random_tiling(rng, work, engine(machine()))
    return roomy(over, [buffer_bytes(work, tiling.tile)], rng), work, tiling


def flat(nodes):
    for node in nodes:
        if isinstance(node, Loop):
            yield from itertools.chain.from_iterable(itertools.repeat([*flat(node.body)], node.count))
        else:
            yield node


def expected_step(work, visit):
    """(loads, new_out, resume, store, epilogue) by the walk."""
    m, k, n = visit.size
    moves = {"weight": work.weight_move(k, n), "act": work.act_move(m, k)}
    loads = [moves[name] for name in visit.reads]
    done = visit.last and visit.complete
    if done and work.extra_bits:
        loads.append(work.extra_move(m, n))
    store = None if not visit.last else work.out_move(m, n) if visit.complete else work.sum_move(m, n)
    ops = math.ceil(m * n * work.lane_ops / VECTOR["lanes"]) + VECTOR["latency_cycles"]
    epilogue = (("vector", ops),) if done and work.lane_ops else ()
    return tuple(loads), visit.first, work.sum_move(m, n) if visit.again else None, store, epilogue


# --- nests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [range(0, 150), range(150, 300)])
def test_the_nest_is_the_walk_over_all_indices_step_by_step(seeds):
    for seed in seeds:
        m, work, tiling = drawn(seed)
        steps, visits = [*flat(nest(work, tiling, engine(m), m))], [*walk(work, tiling)]
        assert len(steps) == len(visits), seed
        for step, visit in zip(steps, visits, strict=True):
            found = (step.loads, step.new_out, step.resume, step.store, step.epilogue)
            assert found == expected_step(work, visit), seed
            assert step.cycles == compute_cycles(m, engine(m), work, visit.size), seed


def test_bytes_are_those_of_a_walk_that_counts_reloads_and_spills():
    spilled = 0
    for seed in range(300):
        m, work, tiling = drawn(seed)
        found = traffic(nest(work, tiling, engine(m), m))
        assert (found.read_bytes, found.written_bytes) == required_bytes(work, tiling), seed
        assert found.steps == len([*walk(work, tiling)])
        spilled += any(visit.again for visit in walk(work, tiling))
    assert spilled > 30


def test_a_nest_of_many_tiles_is_a_handful_of_nodes():
    m, work = machine(), product(4000, 4000, 4000)
    for order in ("mnk", "knm"):
        nodes = nest(work, Tiling(order=order, tile=(4, 4, 4)), engine(m), m)
        assert sum(1 for _ in steps_of(nodes)) <= 27
        assert traffic(nodes).steps == 10**9


@pytest.mark.parametrize("bits, expected", [(8, 30), (4, 15), (Fraction(9, 2), 17), (Fraction(1, 3), 2)])
def test_transfers_are_whole_bytes(bits, expected):
    work = product(5, 6, 7, act_bits=Fraction(bits), weight_bits=Fraction(bits))
    assert work.act_move(5, 6) == Move(ACT, expected, 1)
    assert work.weight_move(6, 5).bytes == expected


def test_stretches_that_lie_apart():
    work = product(20, 30, 40, packed=False, extra_bits=Fraction(8))
    assert [work.act_move(4, 30).runs, work.act_move(4, 6).runs] == [1, 4]
    assert [work.weight_move(30, 8).runs, work.weight_move(6, 40).runs, work.weight_move(6, 8).runs] == [1, 1, 6]
    assert [work.out_move(4, 40).runs, work.out_move(4, 8).runs, work.extra_move(4, 8).runs] == [1, 4, 4]
    assert product(20, 30, 40).weight_move(6, 8).runs == 1


def test_words_that_a_scratchpad_cannot_hand_over_in_time_set_the_pace():
    work, shape = product(16, 4, 4), (16, 4, 4)
    free = SYSTOLIC.timing(SYSTOLIC.params(rows=4, cols=4), M=16, K=4, N=4)
    assert free.words == {"act": 64, "weight": 16, "psum": 0, "out": 64}
    for banks, expected in ((1, 64 * 4), (2, 64 * 4 // 2), (16, free.total_cycles)):
        pads = (
            {"name": "in", "holds": ("activations", "weights"), "kib": 1.0},
            {"name": "out", "holds": ("outputs",), "kib": 1.0, "banks": banks, "word_bytes": 1},
        )
        m = machine(scratchpads=pads)
        assert compute_cycles(m, engine(m), work, shape) == expected
    both = ({"name": "s", "holds": ("activations", "weights", "outputs"), "kib": 1.0, "banks": 1, "word_bytes": 3},)
    m = machine(scratchpads=both)
    assert compute_cycles(m, engine(m), work, shape) == math.ceil((64 + 16 + 64 * 4) / 3)


# --- images ----------------------------------------------------------------------------------------------------------


def image_of(conv):
    high, wide = conv.output
    return Image(
        row_pixels=wide,
        out_rows=high,
        in_rows=conv.batch * conv.height,
        in_width=conv.width,
        stride=conv.stride[0],
        span=(conv.kernel[0] - 1) * conv.dilation[0] + 1,
        taps=math.prod(conv.kernel),
        channels=conv.in_channels // conv.groups,
    )


def touched(conv, rows, ks):
    """Image rows (channel, row of the batch) that output rows `rows` with the values `ks` of K read, padding left
    out."""
    high, _ = conv.output
    found = set()
    for row, k in itertools.product(rows, ks):
        batch, y = divmod(row, high)
        channel, tap = divmod(k, math.prod(conv.kernel))
        line = y * conv.stride[0] - conv.padding[0] + tap // conv.kernel[1] * conv.dilation[0]
        if 0 <= line < conv.height:
            found.add((channel, batch, line))
    return found


def random_conv(rng):
    kernel = rng.choice(((1, 1), (3, 3), (2, 2), (5, 5), (3, 1)))
    pad = rng.randint(0, kernel[0] // 2)
    stride = rng.choice((1, 1, 2, 3))
    size = rng.randint(5, 9)
    return Conv(
        batch=rng.randint(1, 3),
        in_channels=rng.randint(1, 4),
        out_channels=2,
        height=size,
        width=size + 1,
        kernel=kernel,
        stride=(stride, stride),
        padding=(pad, pad, pad, pad),
    )


def test_a_tile_of_an_image_needs_no_more_than_is_counted_and_inside_the_image_just_that():
    inside = 0
    for seed in range(200):
        rng = random.Random(seed)
        conv = random_conv(rng)
        image, gemm = image_of(conv), conv.gemm
        wide, total = image.row_pixels, gemm.M // image.row_pixels
        rows, length = rng.randint(1, total), rng.randint(1, gemm.K)
        for row, k in itertools.product(range(0, total, rows), range(0, gemm.K, length)):
            some, part = range(row, min(total, row + rows)), range(k, min(gemm.K, k + length))
            need = len(touched(conv, some, part)) * conv.width
            counted = image.elements(rows * wide, length)
            assert need <= counted, seed
            one_image = row % image.out_rows + len(some) <= image.out_rows and rows <= image.out_rows
            aligned = length % image.taps == 0 and len(part) == length and len(some) == rows
            dense = conv.stride[0] <= image.span and image.out_rows % rows == 0
            if one_image and aligned and dense and conv.padding[0] == 0:
                assert need == counted, seed
                inside += 1
    assert inside > 50


def test_a_whole_image_is_read_once():
    conv = Conv(batch=2, in_channels=3, out_channels=4, height=7, width=7, kernel=(3, 3), padding=(1, 1, 1, 1))
    assert image_of(conv).elements(conv.gemm.M, conv.gemm.K) == 2 * 3 * 7 * 7


# --- energy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, pj", [(8 << 10, 10), (32 << 10, 20), (1 << 20, 100)])
def test_a_memorys_energy_at_the_published_points(size, pj):
    assert (size, pj / 64) in SRAM_PJ_PER_BIT
    assert sram_pj_per_bit(size) == pytest.approx(pj / 64, rel=1e-12)


def test_a_memorys_energy_between_and_beyond_the_points_is_a_power_law():
    assert sram_pj_per_bit(16 << 10) == pytest.approx(math.sqrt(10 * 20) / 64)
    assert sram_pj_per_bit(2 << 10) == pytest.approx(5 / 64)
    slope = math.log(100 / 20) / math.log(32)
    assert sram_pj_per_bit(2 << 20) == pytest.approx(100 / 64 * 2**slope)
    sizes = [sram_pj_per_bit(1 << bits) for bits in range(6, 30)]
    assert sizes == sorted(sizes)


def test_energy_of_a_tiny_product_recomputed_by_hand():
    pads = (
        {"name": "in", "holds": ("activations", "weights"), "kib": 8.0},
        {"name": "out", "holds": ("outputs",), "kib": 32.0, "banks": 4, "word_bytes": 4},
    )
    m = machine(scratchpads=pads, vector={"lanes": 4})
    work = product(4, 8, 4, lane_ops=2, extra_bits=Fraction(16))
    tiling = Tiling(order="mnk", tile=(4, 4, 4))
    found = power.product_energy_pj(work, tiling, engine(m), m)
    params = m.engines[0].made
    read = 2 * (16 + 16) + 32  # two tiles of each operand, and 16 values of 16 bits for the epilogue
    assert found["dram"] == pytest.approx(8 * (read + 16) * DRAM_PJ_PER_BIT)
    assert found["engine"] == pytest.approx(2 * energy_pj(SYSTOLIC.ops(params, M=4, K=4, N=4)))
    assert found["vector"] == pytest.approx(16 * 2 * LANE_PJ)
    tile = SYSTOLIC.timing(params, M=4, K=4, N=4).words
    inner, outer = 10 / 64, 10 / 64  # 8 KiB, and four banks of 8 KiB
    moved = 8 * (read * inner + 16 * outer)
    crossed = 2 * (8 * (tile["act"] + tile["weight"]) * inner + 32 * (tile["out"] + tile["psum"]) * outer)
    crossed += 16 * 16 * inner  # what the epilogue reads
    assert found["scratchpads"] == pytest.approx(moved + crossed)
    assert set(found) == {"dram", "scratchpads", "engine", "vector"}


def test_a_machines_own_energy_of_main_memory():
    m = machine(dram={"pj_per_bit": 4.0})
    assert power.dram_pj_per_byte(m) == 32
    assert power.dram_pj_per_byte(machine()) == pytest.approx(8 * 1950 / 64)


def test_energy_is_the_sum_over_the_steps_of_the_walk():
    for seed in range(60):
        m, work, tiling = drawn(seed)
        found = power.product_energy_pj(work, tiling, engine(m), m)
        done = [engine(m).work(visit.size) for visit in walk(work, tiling)]
        assert found["engine"] == pytest.approx(sum(one.energy_pj for one in done)), seed
        assert found["dram"] == pytest.approx(8 * sum(required_bytes(work, tiling)) * DRAM_PJ_PER_BIT), seed
        pads = {kind: power.pad_pj_per_bit(m.scratchpad(kind)) for kind in Operand}
        crossed = sum(float(b) * pads[kind] for one in done for kind, b in edge_bits(work, one.words).items())
        crossed += float(work.batch * work.M * work.N * work.extra_bits) * pads[Operand.ACTIVATIONS]
        kinds = {ACT: "activations", WEIGHT: "weights", OUT: "outputs", EXTRA: "activations"}
        moved = sum(
            8 * move.bytes * pads[Operand(kinds[move.buffer])]
            for visit in walk(work, tiling)
            for move in moves_of(work, visit)
        )
        assert found["scratchpads"] == pytest.approx(crossed + moved), seed


def moves_of(work, visit):
    loads, _, resume, store, _ = expected_step(work, visit)
    return [move for move in (*loads, resume, store) if move is not None]


def test_room_of_tiles():
    work = product(8, 8, 8, extra_bits=Fraction(16))
    sizes = buffer_bytes(work, (4, 8, 8))
    assert sizes == {ACT: 32, WEIGHT: 64, OUT: 4 * 8 * 4, EXTRA: 64}
    pads = (
        {"name": "in", "holds": ("activations", "weights"), "kib": (32 + 64 + 64) / 1024},
        {"name": "out", "holds": ("outputs",), "kib": 128 / 1024},
    )
    assert fits(machine(scratchpads=pads, double_buffering=False), sizes)
    assert not fits(machine(scratchpads=pads), sizes)
    assert not fits(machine(scratchpads=pads, double_buffering=False), sizes | {OUT: 129})
