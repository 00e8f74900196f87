"""NPU and PIM: banks against a cycle-stepped model of commands, schedules against conservation and bounds."""

import dataclasses
import importlib.util
import itertools
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from hwsim.cli import main
from hwsim.pim import MODELS, SYSTEMS, Decoder, GpuParams, Machine, NpuParams, PimParams, compare, throughput
from hwsim.pim.banks import (
    Chunk,
    attend,
    attend_chunks,
    chunk_cycles,
    chunk_stolen,
    finish,
    gwrite_cycles,
    host_rows,
    logit_chunks,
    logits,
    row_cycles,
    worked,
)
from hwsim.pim.npu import Kernel, attention, product
from hwsim.pim.requests import DATASETS, channel_loads, dataset, halves, load, min_load, round_robin, sample
from hwsim.pim.schedule import PIECES, SubBatch, on_npu, on_pim, request, simulate
from hwsim.pim.systems import sub_batches
from models.catalog import unit
from models.unit import InputError

ROOT = Path(__file__).resolve().parent.parent
CALM = {"tRFC": 0}
SMALL = PimParams(channels=4, ranks=1, bank_groups=2, banks_per_group=2, page_bytes=256, tFAW=9, tREFI=700, tRFC=90)
TINY = Decoder(name="tiny", layers=4, heads=4, width=128)
BENCH = Machine(pim=SMALL, npu=NpuParams(arrays=2, rows=16, cols=16, vector_units=1, vector_lanes=16))
LENGTHS = (5, 90, 33, 64, 12, 150, 70, 8, 41, 100, 27)
LAYERS = 3


# --- banks -----------------------------------------------------------------------------------------------------------


def stepped(pim, chunks):
    """Cycles of a product by issuing one command a cycle, each as soon as the constraints between commands allow."""
    now = left = 0
    for chunk in chunks:
        now = stepped_gwrite(pim, chunk.vector_columns, now)
        for _ in range(chunk.rows):
            now, result = stepped_row(pim, chunk, now)
            left = result + pim.tCL
    return max(now, left)


def stepped_gwrite(pim, columns, now):
    opened, read, copied = now, None, 0
    while copied < columns or now < read + pim.tCCD_L or now < opened + pim.tRAS:
        if copied < columns and now >= opened + pim.tRCD and (read is None or now >= read + pim.tCCD_L):
            read, copied = now, copied + 1
        now += 1
    return now + pim.tRP


def stepped_row(pim, chunk, now):
    """All banks: open group after group, read columns with a result after each share of them, precharge."""
    opened = [[] for _ in range(pim.ranks)]
    steps = ["comp", *["comp"] * (chunk.columns // chunk.results - 1), "result"] * chunk.results
    assert steps.count("comp") == chunk.columns
    result = -(-pim.banks * 2 // pim.bus_bytes)
    free, last = now, now
    while steps or now < free or now < last + pim.tRAS:
        closed = [acts for acts in opened if len(acts) < pim.bank_groups]
        able = [acts for acts in closed if not acts or now >= acts[-1] + pim.tFAW]
        if able:
            able[0].append(now)
            last = now
        elif not closed and steps and now >= max(free, last + pim.tRCD):
            free = now + (pim.tCCD_L if steps.pop(0) == "comp" else result)
        now += 1
    return now + pim.tRP, free


PIMS = [
    PimParams(),
    PimParams(ranks=1, bank_groups=8, tFAW=16),
    PimParams(tRAS=90, tCCD_L=4, column_bytes=16),
    SMALL,
    dataclasses.replace(SMALL, multipliers=4, tRCD=3, tRP=5, tRAS=4, ranks=3),
]


@pytest.mark.parametrize("pim", PIMS)
@pytest.mark.parametrize("shape", [(1, 16, 1), (4, 32, 40), (3, 32, 70), (2, 64, 600)])
def test_the_closed_form_is_what_stepping_through_commands_takes(pim, shape):
    for product_of in (logit_chunks, attend_chunks):
        chunks = list(product_of(pim, *shape))
        product_ = logits(pim, *shape) if product_of is logit_chunks else attend(pim, *shape)
        assert product_.cycles == stepped(pim, chunks)


def test_a_changed_constraint_shows_in_the_stepped_model():
    """The comparison above can fail: the two models do not share a formula."""
    chunks = [Chunk(vector_columns=8, rows=2, columns=8, results=2)]
    for name in ("tRCD", "tRP", "tFAW", "tCCD_L"):
        slower = dataclasses.replace(SMALL, **{name: getattr(SMALL, name) + 40})
        assert stepped(slower, chunks) > chunk_cycles(SMALL, chunks[0])


def test_a_row_takes_about_what_neupims_schedules_with():
    """Their trace generator estimates 184 cycles for a row's product and 100 for GWRITE."""
    pim = PimParams()
    assert row_cycles(pim, 32, 1) == pytest.approx(184, rel=0.02)
    assert row_cycles(pim, 32, 4) == pytest.approx(184, rel=0.05)
    assert gwrite_cycles(pim, 32) == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("shape", [(1, 16, 1), (4, 32, 40), (3, 32, 70), (5, 64, 301)])
def test_rows_hold_every_key_and_value_once(shape):
    """Elements are placed one by one; a product needs as many rows as are written, and no column fewer."""
    pim, (heads, dim, keys) = SMALL, shape
    per_row = pim.page_words // dim
    places = {
        (h // per_row, t // pim.banks, t % pim.banks, h % per_row * dim + d)
        for h, t, d in itertools.product(range(heads), range(keys), range(dim))
    }
    assert len(places) == heads * keys * dim == logits(pim, *shape).cache_bytes // 2
    assert len({place[:2] for place in places}) == sum(chunk.rows for chunk in logit_chunks(pim, *shape))
    for i, chunk in enumerate(logit_chunks(pim, *shape)):
        assert chunk.columns * pim.multipliers == 1 + max(place[3] for place in places if place[0] == i)
    places = {
        (h, t // pim.page_words, d // pim.banks, d % pim.banks, t % pim.page_words)
        for h, t, d in itertools.product(range(heads), range(keys), range(dim))
    }
    assert len(places) == heads * keys * dim == attend(pim, *shape).cache_bytes // 2
    assert len({place[:3] for place in places}) == sum(chunk.rows for chunk in attend_chunks(pim, *shape))


@pytest.mark.parametrize("pim", [PimParams(), SMALL, PimParams(tREFI=300, tRFC=299), PimParams(tRFC=0)])
def test_refresh_delays_as_counting_cycles_does(pim):
    rng = np.random.default_rng(1)
    for start, work in rng.integers(0, 3 * pim.tREFI, (60, 2)).tolist():
        work %= 500
        now, left = start, work
        while left:
            left -= not (now >= pim.tREFI and now % pim.tREFI < pim.tRFC)
            now += 1
        assert finish(pim, start, work) == now
        assert worked(pim, start, now) == work


@pytest.mark.parametrize("pim", PIMS)
@pytest.mark.parametrize("columns", [1, 4, 32])
def test_the_host_opens_rows_between_a_ranks_group_activations(pim, columns):
    """Activation by activation, as early as constraints allow, from one row operation's last G_ACT to the next's
    first."""
    row = row_cycles(pim, columns, 1)
    period, last = row - (pim.bank_groups - 1) * pim.tFAW, 0
    opened: list[int] = []
    for now in range(1, period):
        spaced = not opened or now >= opened[-1] + pim.tRRD_S
        window = sum(act > now - pim.tFAW for act in opened) < 4
        if spaced and window and now >= last + pim.tFAW and now + pim.tRRD_L <= period:
            opened.append(now)
    assert host_rows(pim, row) == pim.ranks * len(opened)


def test_two_row_buffers_leave_the_host_most_of_the_bus():
    product_ = logits(PimParams(), 8, 128, 300)
    assert 0 < product_.stolen < product_.cycles / 4
    starved = PimParams(tRRD_L=1000)  # the host can open nothing between two row operations
    chunk = Chunk(vector_columns=1, rows=3, columns=4, results=1)
    assert chunk_stolen(starved, chunk) == 3 * row_cycles(starved, 4, 1) + starved.tCCD_L


# --- one thing at a time ---------------------------------------------------------------------------------------------


def alone(**pim):
    return Machine(pim=PimParams(channels=1, **pim))


@pytest.mark.parametrize("row_buffers", [1, 2])
@pytest.mark.parametrize("length", [1, 31, 700])
def test_one_request_in_one_channel_takes_the_closed_form(row_buffers, length):
    machine, model = alone(**CALM), MODELS["gpt3-7b"]
    run = simulate(
        machine, [dataclasses.replace(on_pim(machine, model, [length], [0]), before=(), after=())], row_buffers, 1
    )
    softmax, parts = -(-8 * length * 6 // 1024), -(-length // 512)
    moved = -(-8 * length * 2 // 32) + 8 * 128 * 2 // 32
    chunks = [*logit_chunks(machine.pim, 8, 128, length), *attend_chunks(machine.pim, 8, 128, length)]
    assert run.elapsed == stepped(machine.pim, chunks) + softmax + (parts - 1) + moved


def test_refresh_falls_into_a_product():
    machine = alone()
    part = dataclasses.replace(on_pim(machine, MODELS["gpt3-7b"], [700], [0]), before=(), after=())
    run = simulate(machine, [part], 1, 1)
    for piece in run.slices:
        if piece.track == "pim 0":
            assert piece.end - piece.start > piece.amount == worked(machine.pim, piece.start, piece.end)


@pytest.mark.parametrize(("weights", "array"), [(800_000, 10), (800_000, 25_000), (80_000, 90_000)])
def test_a_kernel_is_a_pipeline_of_two_buffers(weights, array):
    machine = alone(**CALM)
    kernel = Kernel(name="k", weight_bytes=weights, array_cycles=array)
    run = simulate(machine, [SubBatch(before=(kernel,), requests=(), after=())], 1, 1)
    loaded, done = [0], [0, 0]
    for _ in range(PIECES):
        loaded.append(max(loaded[-1], done[-2]) + weights // PIECES // 32)
        done.append(max(loaded[-1], done[-1]) + array // PIECES)
    assert run.elapsed == pytest.approx(done[-1], abs=2 * PIECES)  # pieces are not all of one size
    assert run.elapsed >= max(weights // 32, array)
    tracks = by_track(run.slices)
    assert len(tracks["bus 0"]) == len(tracks["arrays"]) == PIECES
    for load_, work in zip(tracks["bus 0"][2:], tracks["arrays"], strict=False):
        assert load_.start >= work.end  # into the buffer that this piece has left
    for load_, work in zip(tracks["bus 0"], tracks["arrays"], strict=True):
        assert work.start >= load_.end


# --- whole runs ------------------------------------------------------------------------------------------------------


def tiny_parts(name):
    return sub_batches(SYSTEMS[name], TINY, LENGTHS, dataclasses.replace(BENCH, interleave_from=2))


def tiny_run(name):
    if name == "npu":
        return simulate(BENCH, [on_npu(BENCH, TINY, LENGTHS)], 1, LAYERS)
    return simulate(BENCH, tiny_parts(name), SYSTEMS[name].row_buffers, LAYERS)


def by_track(slices):
    tracks = defaultdict(list)
    for piece in slices:
        tracks[piece.track].append(piece)
    return tracks


def occupied(pieces, elapsed):
    """How many slices cover each cycle."""
    cover = np.zeros(elapsed, dtype=int)
    for piece in pieces:
        cover[piece.start : piece.end] += 1
    return cover


@pytest.fixture(scope="module", params=["npu", *SYSTEMS])
def ran(request):
    return request.param, tiny_run(request.param)


def test_busy_and_idle_make_up_the_elapsed_cycles_of_every_track(ran):
    name, run = ran
    tracks = by_track(run.slices)
    wanted = {"arrays", "vector", *(f"bus {c}" for c in range(SMALL.channels))}
    assert set(tracks) == wanted | {f"pim {c}" for c in range(SMALL.channels) if name != "npu"}
    for pieces in tracks.values():
        cover = occupied(pieces, run.elapsed)
        assert cover.max() == 1
        assert sum(piece.end - piece.start for piece in pieces) + (cover == 0).sum() == run.elapsed


def test_the_check_of_tracks_sees_an_overlap():
    run = tiny_run("naive")
    pieces = by_track(run.slices)["pim 0"]
    moved = dataclasses.replace(pieces[1], start=pieces[1].start - 1)
    assert occupied([pieces[0], moved], run.elapsed).max() == 2


def test_a_blocked_channel_serves_the_host_or_computes(ran):
    name, run = ran
    tracks = by_track(run.slices)
    together = [
        (occupied(tracks[f"bus {c}"] + tracks[f"pim {c}"], run.elapsed) > 1).sum() for c in range(SMALL.channels)
    ]
    if name == "npu" or SYSTEMS[name].row_buffers == 1:
        assert sum(together) == 0
    elif SYSTEMS[name].sub_batches == 2:
        assert min(together) > 0


def test_slices_hold_their_work_and_what_was_lost(ran):
    name, run = ran
    exact = name == "npu" or SYSTEMS[name].row_buffers == 1
    lost = 0
    for piece in run.slices:
        if piece.track in ("arrays", "vector"):
            assert piece.end - piece.start == piece.amount
        else:
            left = worked(SMALL, piece.start, piece.end) - piece.amount
            assert left >= 0
            lost += left
            assert left == 0 or (not exact and piece.track.startswith("bus"))
    assert exact or lost > 0


def test_the_host_moves_weights_activations_and_results_and_no_more(ran):
    """From the network's shapes alone; every size here is a multiple of what a bus carries in a cycle but results."""
    name, run = ran
    e, b, parts = TINY.width, len(LENGTHS), 1 if name == "npu" else len(tiny_parts(name))
    weights = parts * (e * 3 * e + e * e + 8 * e * e)
    activations = b * (2 * e + e + 3 * e + e + e + e + 2 * e + e + 4 * e + 4 * e + e + e)
    attention_ = 2 * b * e + 2 * sum(LENGTHS) * e if name == "npu" else b * e
    amount = Counter()
    for piece in run.slices:
        amount[piece.name] += piece.amount * SMALL.bus_bytes * piece.track.startswith("bus")
    softmax = sum(-(-TINY.heads * n * 2 // SMALL.bus_bytes) * SMALL.bus_bytes for n in LENGTHS if name != "npu")
    assert amount.pop("softmax", 0) == LAYERS * softmax
    required = 2 * LAYERS * (weights + activations + attention_)
    pieces = LAYERS * parts * 7 * 2 * PIECES * SMALL.bus_bytes  # of which each is rounded up to a cycle
    assert required <= sum(amount.values()) < required + pieces


def test_every_cache_is_computed_with_once_a_layer(ran):
    name, run = ran
    if name == "npu":
        assert attention(BENCH.npu, TINY, LENGTHS).cache_bytes == 2 * 2 * TINY.width * sum(LENGTHS)
        return
    requests = [one for part in tiny_parts(name) for one in part.requests]
    assert sum(r.logits.cache_bytes + r.attend.cache_bytes for r in requests) == 2 * 2 * TINY.width * sum(LENGTHS)
    ran_ = Counter((p.track, p.name, p.amount) for p in run.slices if p.track.startswith("pim"))
    wanted = Counter()
    for one in requests:
        wanted[(f"pim {one.channel}", "logits", one.logits.cycles)] += LAYERS
        wanted[(f"pim {one.channel}", "attend", one.attend.cycles)] += LAYERS
    assert ran_ == wanted


def test_no_run_beats_its_busiest_resource(ran):
    _, run = ran
    busy = {track: sum(p.amount for p in pieces) for track, pieces in by_track(run.slices).items()}
    assert run.elapsed >= max(busy.values())
    assert run.period[0] > 0


@pytest.mark.parametrize("seed", range(4))
def test_two_row_buffers_are_never_slower(seed):
    lengths = np.random.default_rng(seed).integers(1, 200, 24).tolist()
    machine = dataclasses.replace(BENCH, interleave_from=2)
    for schedule in ("packed", "neupims"):
        parts = sub_batches(SYSTEMS[schedule], TINY, lengths, machine)
        blocked, dual = (simulate(machine, parts, n, LAYERS) for n in (1, 2))
        assert dual.elapsed <= blocked.elapsed
        if schedule == "neupims":
            assert dual.elapsed < 0.98 * blocked.elapsed


def test_a_long_run_keeps_the_period():
    parts = tiny_parts("neupims")
    short, long = (simulate(BENCH, parts, 2, layers).period for layers in (2, 12))
    assert short[0] / short[1] == pytest.approx(long[0] / long[1], rel=0.02)


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_packing_is_within_four_thirds_of_the_best(seed):
    loads = np.random.default_rng(seed).integers(1, 60, 8).tolist()
    best = min(max(channel_loads(loads, p, 3)) for p in itertools.product(range(3), repeat=8))
    placed = min_load(loads, 3)
    largest = max(channel_loads(loads, placed, 3))
    assert sum(loads) / 3 <= best <= largest <= 4 / 3 * best
    assert sorted(set(placed)) == [0, 1, 2]


def test_packing_gains_on_channels_in_turn():
    lengths = sample(DATASETS["sharegpt"], 256, 0)
    loads = [load(MODELS["gpt3-7b"], PimParams(), n) for n in lengths]
    turn, packed = (max(channel_loads(loads, of(loads, 32), 32)) for of in (round_robin, min_load))
    assert sum(loads) / 32 <= packed < 0.8 * turn


def test_halves_divide_every_channel_evenly():
    loads = np.random.default_rng(3).integers(1, 100, 101).tolist()
    placed = min_load(loads, 7)
    parts = halves(loads, placed, 7)
    counts = Counter(zip(placed, parts, strict=True))
    assert abs(parts.count(0) - parts.count(1)) <= 1
    assert all(abs(counts[c, 0] - counts[c, 1]) <= 1 for c in range(7))


@pytest.mark.parametrize("name", DATASETS)
def test_lengths_are_those_of_a_server_that_never_stops(name):
    """One slot served by request after request, looked at in every iteration."""
    data, rng = DATASETS[name], np.random.default_rng(5)

    def lognormal(mean, sigma):
        return mean * np.exp(rng.normal(-(sigma**2) / 2, sigma, 40_000))

    prompts, answers = lognormal(data.prompt, data.prompt_sigma), lognormal(data.answer, data.answer_sigma)
    seen = np.concatenate([p + np.arange(a) for p, a in zip(prompts, answers, strict=True)])
    seen = np.minimum(seen, 2048)
    drawn = np.array(sample(data, 40_000, 7))
    assert drawn.mean() == pytest.approx(seen.mean(), rel=0.05)
    assert np.quantile(drawn, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(seen, [0.1, 0.5, 0.9]), rel=0.06, abs=1.5)


# --- systems ---------------------------------------------------------------------------------------------------------


def test_the_arrays_take_the_engines_cycles():
    systolic = unit("systolic")
    params = systolic.params(rows=128, cols=128, buffers=2)
    kernel = product(NpuParams(), "qkv", (300, 4096, 3072))
    assert kernel.array_cycles == systolic.timing(params, M=300, K=4096, N=384).total_cycles
    assert kernel.weight_bytes == 4096 * 3072 * 2
    # fewer vectors than a sum takes to leave: none of the 32 x 3 tiles waits for sums, but each pair of them loads,
    # streams and leaves (128 + 128 + 254 cycles) before the next one
    few = product(NpuParams(), "qkv", (128, 4096, 3072)).array_cycles
    assert few == 47 * 510 + 510 + 128 + 1
    assert few < systolic.timing(params, M=128, K=4096, N=384).total_cycles


def test_the_gpu_is_the_roofline():
    """Every kernel written out: operations at 312 TFLOP/s or bytes at 1555 GB/s, whichever takes longer."""
    e, b, n = 4096, 2, (100, 300)
    kernels = [
        (0, 2 * b * e),
        (b * e * 3 * e // 4, 3 * e * e // 4 + b * (e + 3 * e // 4)),
        (2 * sum(n) * e // 4, 2 * sum(n) * e // 4 + 2 * b * e // 4),
        (b * e * e // 4, e * e // 4 + b * (e // 4 + 2 * e)),
        (0, 2 * b * e),
        (b * e * e, e * e + 2 * b * e),
        (b * e * e, e * e + b * 3 * e),
    ]
    time = 32 * sum(max(2 * macs / 312e12, 2 * words / 1555e9) for macs, words in kernels)
    assert throughput("gpu", "gpt3-7b", n).tokens_per_s == pytest.approx(b / time, rel=1e-9)
    slow = Machine(gpu=GpuParams(gflops=1))
    assert throughput("gpu", "gpt3-7b", n, slow).npu_utilization == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("system", ["gpu", "npu", *SYSTEMS])
def test_shares_are_shares(system):
    result = throughput(system, TINY, LENGTHS, BENCH)
    assert 0 < result.npu_utilization < 1
    assert 0 < result.bandwidth_utilization <= 1
    assert (result.pim_utilization > 0) == (system in SYSTEMS)
    assert result.tokens_per_s == pytest.approx(len(LENGTHS) * 1e9 / result.cycles, rel=1e-3)


def test_neupims_divides_large_batches_only():
    machine = dataclasses.replace(BENCH, interleave_from=12)
    assert [len(sub_batches(SYSTEMS["neupims"], TINY, LENGTHS * n, machine)) for n in (1, 2)] == [1, 2]


def test_compare_is_a_row_for_each_system():
    rows = compare(TINY, 24, "alpaca", seeds=(0, 1), machine=BENCH)
    assert [row["system"] for row in rows] == ["gpu", "npu", "naive", "neupims"]
    assert rows[-1]["speedup"] == 1
    assert rows[-1]["speedup_std"] == 0
    one = compare(TINY, 24, "alpaca", seeds=(1,), systems=("npu",), machine=BENCH)[0]
    lengths = sample(DATASETS["alpaca"], 24, 1)
    ours, theirs = (throughput(name, TINY, lengths, BENCH).tokens_per_s for name in ("neupims", "npu"))
    assert one["speedup"] == pytest.approx(ours / theirs, rel=1e-9)


def test_a_large_batch_gains_what_the_paper_reports_in_kind():
    """Above the NPU alone and above naive PIM, in that order, at a batch of 512."""
    lengths = sample(DATASETS["sharegpt"], 512, 0)
    npu, naive, best = (throughput(n, "gpt3-7b", lengths).tokens_per_s for n in ("npu", "naive", "neupims"))
    assert npu < naive < best


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: PimParams(channels=0), "channels must be a whole number from 1"),
        (lambda: PimParams(tRFC=4000), "tRFC must be less than tREFI"),
        (lambda: PimParams(page_bytes=1000), "multiple of the 32 bytes"),
        (lambda: PimParams(tCCD_S=3), "must not exceed tCCD_L=2"),
        (lambda: PimParams(tCCD_S=2, column_bytes=33), "multiple of tCCD_S=2"),
        (lambda: PimParams(ranks=8, tFAW=4), "tFAW must be at least ranks"),
        (lambda: PimParams(tRP=True), "tRP must be a whole number"),
        (lambda: NpuParams(rows=512), "rows must be"),
        (lambda: GpuParams(gbytes=0), "gbytes must be"),
        (lambda: Decoder(name="x", layers=2, heads=3, width=128), "3 does not divide 128"),
        (lambda: Decoder(name="x", layers=2, heads=4, width=128, tensor=3), "3 does not divide 4"),
        (lambda: Decoder(name="x", layers=3, heads=4, width=128, pipeline=2), "2 does not divide 3"),
        (lambda: throughput("neupim", TINY, [1]), "did you mean 'neupims'"),
        (lambda: throughput("npu", "gpt3-7B", [1]), "did you mean 'gpt3-7b'"),
        (lambda: throughput("npu", TINY, []), "from 1 to"),
        (lambda: throughput("npu", TINY, [3, 0]), "request 1"),
        (lambda: throughput("npu", TINY, [2.5]), "request 0"),
        (lambda: throughput("npu", "gpt3-175b", [2048] * 512), "GiB of caches on a device of 32"),
        (
            lambda: throughput("naive", TINY, [4], Machine(pim=PimParams(page_bytes=32))),
            "does not fit into a row of 16",
        ),
        (lambda: compare(TINY, 4, "sharegtp"), "did you mean 'sharegpt'"),
        (lambda: compare(TINY, 0), "batch must be from 1"),
        (lambda: compare(TINY, 4, seeds=()), "at least one seed"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_request_adds_up_values_that_lie_in_several_rows():
    short, long = (request(Machine(), MODELS["gpt3-7b"], n, 0) for n in (512, 513))
    assert (short.sum_cycles, long.sum_cycles) == (0, 1)
    assert long.probability_bytes == 8 * 513 * 2


def test_the_document_holds_what_its_script_computes():
    """One of its blocks, computed anew; `python docs/neupims.py` writes them all."""
    spec = importlib.util.spec_from_file_location("neupims", ROOT / "docs" / "neupims.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (ROOT / "docs" / "neupims.md").read_text()
    for line in script.block("gpt3-7b", "sharegpt", 64):
        assert line in text
    assert all(line in text for line in script.command_lines())


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs `hwsim pim` with these words: exit code, and what it printed."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["hwsim", "pim", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, capsys.readouterr()

    return run


def test_the_command_shows_what_compare_computes(command, tmp_path):
    trace = tmp_path / "trace.json"
    status, out = command("gpt3-7b", "--batch", "4", "--seeds", "2", "--json", "--trace", str(trace))
    assert status == 0
    assert json.loads(out.out) == compare("gpt3-7b", 4, seeds=(0, 1))
    events = json.loads(trace.read_text())["traceEvents"]
    slices = throughput("neupims", "gpt3-7b", sample(dataset("sharegpt"), 4, 0)).slices
    assert len([event for event in events if event["ph"] == "X"]) == len(slices)
    status, out = command("gpt3-7b", "--batch", "4", "--seeds", "1", "--all")
    assert status == 0
    assert len([line for line in out.out.splitlines() if "%" in line]) == 1 + len(SYSTEMS)


def test_a_trace_that_is_too_long_is_refused_before_the_comparison(command, monkeypatch, tmp_path):
    monkeypatch.setattr("hwsim.system.outputs.trace.MAX_SLICES", 10)
    monkeypatch.setattr("hwsim.pim.compare", lambda *_, **__: pytest.fail("compared"))
    status, out = command("gpt3-7b", "--batch", "4", "--trace", str(tmp_path / "t.json"))
    assert (status, "10 at most; take a smaller batch" in out.err) == (2, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, message",
    [
        (["gpt3-70b"], "did you mean 'gpt3-7b'"),
        (["gpt3-7b", "--data", "wiki"], "alpaca, sharegpt"),
        (["gpt3-7b", "--batch", "0"], "or equal to 1"),
        (["gpt3-7b", "--trace", ""], "--trace '': is no path"),
        (["gpt3-7b", "--trace", "/proc/none/t.json"], "give another path to --trace"),
        (["gpt3-7b", "--trace", "/proc"], "--trace /proc: is a folder; name a file"),
        (["gpt3-70b", "--trace", "t.json"], "did you mean 'gpt3-7b'"),
    ],
)
def test_the_command_refuses(command, monkeypatch, tmp_path, words, message):
    """Before anything is computed where it is the trace that cannot be written."""
    monkeypatch.chdir(tmp_path)
    if "/proc" in message or "path" in message:
        monkeypatch.setattr("hwsim.pim.compare", lambda *_, **__: pytest.fail("compared"))
    status, out = command(*words)
    assert not list(tmp_path.iterdir())
    assert status == 2
    assert message in out.err
    assert "Traceback" not in out.err
