"""The machine at work: rounds that are counted instead of simulated, a second model of one product by hand, closed
forms, and what every run conserves."""

import itertools
import math
import random
from collections import defaultdict, deque
from fractions import Fraction

import pytest
from engines import ENGINES
from systems import (
    engine,
    machine,
    memory,
    product,
    random_product,
    random_program,
    random_steps,
    random_tiling,
    required_bytes,
    roomy,
    stage,
    walk,
)

from hwsim.system import simulate as module
from hwsim.system.program import ACT, EXTRA, OUT, WEIGHT, Move, Repeat, Stage, Step
from hwsim.system.search import alone
from hwsim.system.simulate import BUFFER_NAMES, PAD, PAD_OF, simulate
from hwsim.system.tiling import Tiling, buffer_bytes, traffic
from models.catalog import unit

SYSTOLIC = unit("systolic")


def one(nodes_of, m, **options):
    """A program of one stage."""
    return simulate([Repeat(1, (nodes_of,), ("p",))], m, **options)


# --- rounds that are counted -----------------------------------------------------------------------------------------


def most_steps(program):
    return sum(repeat.count * sum(traffic(stage.nodes).steps for stage in repeat.stages) for repeat in program)


def programs(make, seeds, limit):
    for seed in seeds:
        m, program = make(random.Random(seed))
        if most_steps(program) <= limit:
            yield seed, m, program


def differing(make, seeds, limit):
    """Seeds of programs that counting changes, and the steps of all with and without."""
    wrong, steps = [], [0, 0]
    for seed, m, program in programs(make, seeds, limit):
        short, whole = simulate(program, m), simulate(program, m, skip=False)
        if (short.total_cycles, short.runs) != (whole.total_cycles, whole.runs):
            wrong.append(seed)
        steps[0] += short.simulated_steps
        steps[1] += whole.simulated_steps
    return wrong, steps


NASTY = (224, 615, 1824, 1990, 4328, 4482)
"""where a state without the place in an epilogue goes wrong, or one round more is not enough for what is under way"""


@pytest.mark.parametrize("make, seeds", [(random_program, range(120)), (random_steps, (*range(80), *NASTY))])
def test_counting_rounds_changes_no_figure_of_any_stage(make, seeds):
    wrong, (short, whole) = differing(make, seeds, 900)
    assert wrong == []
    assert short < whole / 3, "hardly anything was counted"


def test_a_state_without_what_is_under_way_would_be_noticed(monkeypatch):
    complete = module._Simulation._state
    monkeypatch.setattr(module._Simulation, "_state", lambda self: complete(self)[1])
    assert differing(random_program, range(20), 900)[0] != []


def test_a_stage_under_way_ends_before_the_rounds_that_are_counted():
    step = Step("array", 5, (Move(ACT, 4),), new_out=True, store=Move(OUT, 4))
    part = Stage(name="p", nodes=(step,), waits=(1,), weights_wait=True, buffers=((ACT, 4), (OUT, 4)), copies=1)
    found = simulate([Repeat(20, (part,), ("p",) * 20)], machine(double_buffering=False))
    assert [run.end for run in found.runs] == [5 * i for i in range(1, 21)]
    assert found.simulated_steps < 10


# --- a second model --------------------------------------------------------------------------------------------------


def duration(m, move, read):
    """Of a transfer that waits for nothing."""
    dram, cycles = m.dram, m.dma.setup_cycles
    if dram.bytes_per_cycle is not None:
        cycles += math.ceil(move.bytes / Fraction(str(dram.bytes_per_cycle)))
    each = math.ceil(Fraction(move.bytes, move.runs))
    rows = move.runs * math.ceil(Fraction(each, dram.row_bytes)) if dram.row_bytes else move.runs
    return cycles + rows * dram.row_miss_cycles + (dram.latency_cycles if read else 0)


class Second:
    """One product on one engine with one DMA channel: queues, counters and a clock, written down by hand.

    In a cycle the engine ends before the channel does, results ask for the channel before operands do.
    """

    def __init__(self, work, tiling, m):
        self.work, self.m = work, m
        self.now = 0
        self.free = {"act": m.copies, "weight": m.copies, "out": m.copies}
        self.asked = deque()  # outputs that wait for room
        self.channel, self.waiting = None, deque()
        self.engine, self.steps = None, deque()
        self.current = {}
        self.stamps, self.moves = [], []
        self.loader = self._loader(list(walk(work, tiling)))

    def run(self):
        alive, self.blocked = True, None
        while alive or self.channel or self.waiting or self.engine or self.steps:
            changed = True
            while changed:
                changed = self._end_step() | self._end_transfer()
                while alive and (self.blocked is None or self.blocked()):
                    self.blocked, changed = next(self.loader, None), True
                    alive = self.blocked is not None
                changed |= self._begin_transfer() | self._begin_step()
            self.now = min((at[0] for at in (self.channel, self.engine) if at), default=self.now)
        return max(end for _, _, end in self.moves)

    def _loader(self, visits):
        """Yields what has to be true before it goes on."""
        out = None
        for visit in visits:
            m, k, n = visit.size
            for name in visit.reads:
                if name in self.current:
                    self._close(self.current.pop(name))
                yield lambda name=name: self.free[name] > 0
                self.free[name] -= 1
                tile = {"name": name, "ready": False, "users": 0, "closed": False}
                self.current[name] = tile
                move = self.work.weight_move(k, n) if name == "weight" else self.work.act_move(m, k)
                self.waiting.append((name, move, tile))
            if visit.first:
                out = {"granted": False}
                self.asked.append(out)
                self._grant()
                if visit.again:
                    yield lambda out=out: out["granted"]
                    out["granted"] = False
                    self.waiting.append(("back", self.work.sum_move(m, n), out))
            for tile in self.current.values():
                tile["users"] += 1
            self.steps.append((visit, list(self.current.values()), out))

    def _grant(self):
        while self.asked and self.free["out"]:
            self.free["out"] -= 1
            self.asked.popleft()["granted"] = True

    def _close(self, tile):
        tile["closed"] = True
        self.free[tile["name"]] += tile["users"] == 0

    def _end_step(self):
        if not self.engine or self.engine[0] != self.now:
            return False
        _, visit, tiles = self.engine
        self.engine = None
        for tile in tiles:
            tile["users"] -= 1
            self.free[tile["name"]] += tile["closed"] and tile["users"] == 0
        if visit.last:
            m, _, n = visit.size
            move = self.work.out_move(m, n) if visit.complete else self.work.sum_move(m, n)
            self.waiting.append(("out", move, None))
        return True

    def _end_transfer(self):
        if not self.channel or self.channel[0] != self.now:
            return False
        _, name, tile = self.channel
        self.channel = None
        if name == "out":
            self.free["out"] += 1
            self._grant()
        else:
            tile["granted" if name == "back" else "ready"] = True
        return True

    def _begin_transfer(self):
        if self.channel or not self.waiting:
            return False
        name, move, tile = self.waiting.popleft()
        end = self.now + duration(self.m, move, name != "out")
        self.channel = (end, name, tile)
        self.moves.append((name, self.now, end))
        return True

    def _begin_step(self):
        if self.engine or not self.steps:
            return False
        visit, tiles, out = self.steps[0]
        if not (all(tile["ready"] for tile in tiles) and out["granted"]):
            return False
        self.steps.popleft()
        m, k, n = visit.size
        cycles = SYSTOLIC.timing(SYSTOLIC.params(rows=4, cols=4), M=m, K=k, N=n).total_cycles
        self.engine = (self.now + cycles, visit, tiles)
        self.stamps.append((self.now, self.now + cycles))
        return True


def random_single(rng):
    """A machine with one channel and no vector unit, and a product in a tiling."""
    over = {"double_buffering": rng.random() < 0.6, **memory(rng)}
    over["dma"]["channels"] = 1
    work = random_product(rng, vector=False)
    tiling = random_tiling(rng, work, engine(machine()))
    return roomy(over, [buffer_bytes(work, tiling.tile)], rng), work, tiling


def test_one_product_takes_the_cycles_and_stamps_of_a_second_model():
    for seed in range(150):
        m, work, tiling = random_single(random.Random(seed))
        found = one(stage(work, tiling, m), m, record=True)
        second = Second(work, tiling, m)
        assert found.total_cycles == second.run(), seed
        assert spans(found, "array") == second.stamps, seed
        # a sum that comes back and a result that leaves can ask for the channel in the same cycle, in either order
        if not any(visit.again for visit in walk(work, tiling)):
            moves = sorted((begin, end) for _, begin, end in second.moves if end > begin)
            assert sorted([*spans(found, "dma read"), *spans(found, "dma write")]) == moves, seed


# --- closed forms ----------------------------------------------------------------------------------------------------


def transfers(work, tiling):
    """(every transfer, whether it is a read) of a product, by the walk."""
    for visit in walk(work, tiling):
        m, k, n = visit.size
        makes = {"weight": lambda k=k, n=n: work.weight_move(k, n), "act": lambda m=m, k=k: work.act_move(m, k)}
        yield from ((makes[name](), True) for name in visit.reads)
        if visit.again:
            yield work.sum_move(m, n), True
        if visit.last:
            yield (work.out_move(m, n) if visit.complete else work.sum_move(m, n)), False


def array_cycles(work, tiling):
    """Of every step."""
    params = SYSTOLIC.params(rows=4, cols=4)
    return [SYSTOLIC.timing(params, **dict(zip("MKN", v.size, strict=True))).total_cycles for v in walk(work, tiling)]


def test_without_double_buffering_one_thing_happens_after_the_other():
    for seed in range(150):
        m, work, tiling = random_single(random.Random(seed))
        m = m.model_copy(update={"double_buffering": False})
        moved = sum(duration(m, move, read) for move, read in transfers(work, tiling))
        assert one(stage(work, tiling, m), m).total_cycles == moved + sum(array_cycles(work, tiling)), seed


@pytest.mark.parametrize("tiles, rows", [*itertools.product((2, 3, 9), (4, 16))])
@pytest.mark.parametrize("rate, setup, latency", [(64.0, 1, 0), (16.0, 0, 3), (1.0, 0, 0), (0.5, 2, 0), (0.5, 4, 9)])
def test_equal_tiles_in_two_buffers_take_the_longer_of_work_and_transfers(tiles, rows, rate, setup, latency):
    work, tiling = product(tiles * rows, 8, 4), Tiling(order="mnk", tile=(rows, 8, 4))
    m = machine(dram={"bytes_per_cycle": rate, "latency_cycles": latency}, dma={"setup_cycles": setup})
    act, weight = duration(m, work.act_move(rows, 8), True), duration(m, work.weight_move(8, 4), True)
    out, each = duration(m, work.out_move(rows, 4), False), array_cycles(work, tiling)[0]
    if each >= act + out:
        expected = weight + act + tiles * each + out
    else:
        assert each <= act, "neither of the two forms"
        expected = weight + tiles * act + (tiles - 2) * out + max(out, each) + out
    assert one(stage(work, tiling, m), m).total_cycles == expected


KINDS = ("activations", "weights", "outputs")


def free_machine(name, double):
    spec = {"name": "array", "unit": name, "sigma": 3.0}
    pads = tuple({"name": f"s{i}", "holds": (kind,), "kib": 1024.0} for i, kind in enumerate(KINDS))
    return machine(engines=(spec,), scratchpads=pads, double_buffering=double)


@pytest.mark.parametrize("name", ENGINES)
def test_with_infinite_bandwidth_and_no_latency_only_the_engine_counts(name):
    for double in (False, True):
        m = free_machine(name, double)
        array = engine(m)
        fold = array.fold
        k = 2 * fold.K + 1 if fold.takes_psum else 9
        work = product(2 * fold.M + 3, k, fold.N + 1, batch=2)
        tiling = Tiling(order="nkm", tile=(fold.M + 2, fold.K if fold.takes_psum else k, fold.N))
        cycles = [array.work(visit.size).cycles for visit in walk(work, tiling)]
        if not unit(name).timed_by_operands:
            shapes = [dict(zip("MKN", visit.size, strict=True)) for visit in walk(work, tiling)]
            assert cycles == [unit(name).timing(m.engines[0].made, **shape).total_cycles for shape in shapes]
        assert one(stage(work, tiling, m), m).total_cycles == sum(cycles)


# --- what is conserved -----------------------------------------------------------------------------------------------


def spans(found, track):
    return sorted((s.begin, s.end) for s in found.slices if s.track == track)


def most_at_once(intervals):
    """The largest sum of weights of (begin, end, weight) at any time."""
    level = most = 0
    for _, change in sorted(x for begin, end, size in intervals for x in ((begin, size), (end, -size))):
        level += change
        most = max(most, level)
    return most


def test_no_resource_does_two_things_at_once_and_all_its_work_is_counted():
    for _seed, m, program in programs(random_program, range(60), 700):
        found = simulate(program, m, record=True)
        units = {s.track for s in found.slices if not s.track.startswith(("dma", PAD))}
        for track in units:
            work = spans(found, track)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(work)), track
            idle = [b[0] - a[1] for a, b in itertools.pairwise([(0, 0), *work, (found.total_cycles,) * 2])]
            busy = sum(end - begin for begin, end in work)
            counted = [run.bus_cycles if track == "bus" else run.unit_cycles.get(track, 0) for run in found.runs]
            assert busy == sum(counted)
            assert min(idle) >= 0
            assert busy + sum(idle) == found.total_cycles
        under_way = [(b, e, 1) for t in ("dma read", "dma write") for b, e in spans(found, t)]
        assert most_at_once(under_way) <= m.dma.channels
        stages = [part for repeat in program for _ in range(repeat.count) for part in repeat.stages]
        for part, run in zip(stages, found.runs, strict=True):
            needed = traffic(part.nodes)
            assert (sum(run.read_bytes.values()), run.written_bytes) == (needed.read_bytes, needed.written_bytes)
            assert (run.unit_cycles, run.steps) == (needed.cycles, needed.steps)
            assert 0 <= run.begin < run.end <= found.total_cycles


def test_no_more_tiles_of_a_buffer_are_held_than_have_room_side_by_side():
    for seed, m, program in programs(random_program, range(60), 700):
        held = defaultdict(list)
        for s in simulate(program, m, record=True).slices:
            if s.track.startswith(PAD):
                held[s.track, s.stage, s.name].append((s.begin, s.end, 1))
        assert all(most_at_once(times) <= m.copies for times in held.values()), seed
        assert len({track for track, _, _ in held}) <= len(m.scratchpads)
        assert held


def test_a_picture_changes_nothing():
    for seed, m, program in programs(random_steps, range(40), 500):
        drawn, plain = simulate(program, m, record=True), simulate(program, m, skip=False)
        assert (drawn.total_cycles, drawn.runs) == (plain.total_cycles, plain.runs), seed


def random_roomy(rng):
    """A machine with up to four channels and a product with epilogues; every transfer takes a cycle at least."""
    over = {"double_buffering": rng.random() < 0.6, **memory(rng)}
    over["dma"]["setup_cycles"] = rng.choice((1, 3))
    over["vector"] = {"lanes": rng.choice((1, 4, 16)), "latency_cycles": rng.choice((0, 3))}
    work = random_product(rng)
    tiling = random_tiling(rng, work, engine(machine()))
    return roomy(over, [buffer_bytes(work, tiling.tile)], rng), work, tiling


def tiles_of(work, tiling, found):
    """Buffer -> (first transfer or work on it, end of what last needs it, bytes) of every tile, from the slices."""
    steps, epilogues = spans(found, "array"), spans(found, "vector")
    reads, writes = defaultdict(list), sorted((s.begin, s.end) for s in found.slices if s.track == "dma write")
    for s in sorted(found.slices, key=lambda s: s.begin):
        if s.track == "dma read":
            reads[s.name].append(s.begin)
    taken, tiles, back, stored = dict.fromkeys(reads, 0), defaultdict(list), None, 0

    def brought(buffer):
        taken[buffer] += 1
        return reads[buffer][taken[buffer] - 1]

    for visit, (begin, end) in zip(walk(work, tiling), steps, strict=True):
        m, k, n = visit.size
        for name, buffer, move in (("weight", WEIGHT, work.weight_move(k, n)), ("act", ACT, work.act_move(m, k))):
            if name in visit.reads:
                tiles[buffer].append([brought(BUFFER_NAMES[buffer]), end, move.bytes])
            tiles[buffer][-1][1] = end
        if visit.first:
            back = brought("outputs") if visit.again else begin
        if visit.last:
            tiles[OUT].append([back, writes[stored][1], work.sum_move(m, n).bytes])
            stored += 1
        if visit.last and visit.complete and work.extra_bits:
            at = brought("epilogue")
            tiles[EXTRA].append([at, epilogues[len(tiles[EXTRA])][1] if epilogues else at + 1, 0])
            tiles[EXTRA][-1][2] = work.extra_move(m, n).bytes
    assert taken == {name: len(begins) for name, begins in reads.items()}
    assert stored == len(writes)
    return tiles


def test_no_tile_is_brought_before_there_is_room_and_scratchpads_never_overflow():
    for seed in range(150):
        m, work, tiling = random_roomy(random.Random(seed))
        found = one(stage(work, tiling, m), m, record=True)
        tiles = tiles_of(work, tiling, found)
        for times in tiles.values():
            assert all(later[0] >= tile[1] for tile, later in zip(times, times[m.copies :], strict=False)), seed
        for pad in m.scratchpads:
            held = [tile for buffer, times in tiles.items() if PAD_OF[buffer] in pad.holds for tile in times]
            assert most_at_once(held) <= pad.bytes, seed
        moved = (sum(found.runs[0].read_bytes.values()), found.runs[0].written_bytes)
        assert moved == required_bytes(work, tiling), seed


def test_no_run_is_shorter_than_its_work_or_its_bytes_take():
    for seed in range(80):
        m, work, tiling = random_roomy(random.Random(seed))
        found = one(stage(work, tiling, m), m)
        assert found.total_cycles >= sum(array_cycles(work, tiling))
        assert found.total_cycles * engine(m).peak_per_cycle >= work.macs
        if m.dram.bytes_per_cycle is not None:
            assert found.total_cycles * m.dram.bytes_per_cycle >= sum(required_bytes(work, tiling)) * (1 - 1e-12)


def test_an_extra_operand_without_work_on_it_is_waited_for():
    work, tiling = product(4, 4, 4, extra_bits=Fraction(16)), Tiling(order="mnk", tile=(4, 4, 4))
    m = machine(dram={"latency_cycles": 100}, dma={"channels": 2, "setup_cycles": 1})
    found = one(stage(work, tiling, m), m, record=True)
    brought = next(s for s in found.slices if s.track == "dma read" and s.name == "epilogue")
    assert spans(found, "dma write")[0][0] >= brought.end


def test_the_search_measures_what_the_stage_takes_on_its_own():
    m, work, tiling = random_roomy(random.Random(3))
    assert alone(work, tiling, engine(m), m) == one(stage(work, tiling, m), m).total_cycles
