"""The search for tilings against brute force, its bounds and closed forms against simulation and counting, and
SCALE-Sim's cycles on a whole machine."""

import csv
import itertools
import math
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from systems import (
    ORDERS,
    engine,
    machine,
    memory,
    product,
    random_product,
    random_tiling,
    required_bytes,
    roomy,
    stage,
)

from hwsim.system import power
from hwsim.system.machine import Machine
from hwsim.system.program import ACT, EXTRA, OUT, WEIGHT, steps_of
from hwsim.system.run import run
from hwsim.system.search import Grid, alone, grains, lengths, search
from hwsim.system.tiling import Image, Tiling, buffer_bytes, nest, traffic
from hwsim.workloads import scalesim
from hwsim.workloads.graph import Conv
from models.catalog import unit
from models.unit import InputError

DATA = Path(__file__).parent / "data" / "scalesim"
KIND = {ACT: "activations", WEIGHT: "weights", OUT: "outputs", EXTRA: "activations"}


# --- lengths of tiles ------------------------------------------------------------------------------------------------


def all_lengths(total, grain):
    """For every number of tiles the least multiple of the grain that needs no more of them, by trying all."""
    multiples = [min(total, grain * i) for i in range(1, math.ceil(total / grain) + 1)]
    pieces = range(1, len(multiples) + 1)
    return sorted({min(x for x in multiples if math.ceil(total / x) <= count) for count in pieces}, reverse=True)


@pytest.mark.parametrize("grain", [1, 2, 3, 4, 7, 16])
def test_lengths_are_the_least_for_every_number_of_tiles(grain):
    for total in range(1, 130):
        assert lengths(total, grain) == all_lengths(total, grain), total


def test_lengths_of_a_long_dimension_are_few():
    found = lengths(1 << 20, 1)
    assert len(found) <= 2 * (1 << 10)
    assert found[0] == 1 << 20
    assert found[-1] == 1


def test_grains_are_folds_and_whole_image_rows():
    m = machine()
    assert grains(product(40, 40, 40), engine(m)) == (1, 4, 4)
    os_array = {"name": "array", "unit": "systolic", "set": {"rows": 4, "cols": 4, "dataflow": "OS"}}
    assert grains(product(40, 40, 40), engine(machine(engines=(os_array,)))) == (4, 40, 4)
    two = {"name": "array", "unit": "systolic", "set": {"rows": 4, "cols": 4}, "count": 2, "split": "N"}
    assert grains(product(40, 40, 40), engine(machine(engines=(two,)))) == (1, 4, 8)


# --- brute force -----------------------------------------------------------------------------------------------------


def drawn(seed, **limits):
    """A machine with scratchpads of random sizes and a small product; None where no tile has room."""
    rng = random.Random(seed)
    over = {"double_buffering": rng.random() < 0.6, **memory(rng)}
    over["vector"] = {"lanes": rng.choice((1, 8)), "latency_cycles": rng.choice((0, 5))}
    work = random_product(rng)
    if work.M * work.K * work.N * work.batch > limits.get("macs", 1 << 14):
        work = product(rng.randint(1, 16), rng.randint(1, 16), rng.randint(1, 16), lane_ops=work.lane_ops)
    array = rng.choice(
        ({}, {"count": 2}, {"count": 3, "split": "M"}, {"set": {"rows": 4, "cols": 4, "dataflow": "IS"}})
    )
    array = {"name": "array", "unit": "systolic", "set": {"rows": 4, "cols": 4}} | array
    over["engines"] = (array,)
    tiling = random_tiling(rng, work, engine(machine(**over)))
    return roomy(over, [buffer_bytes(work, tiling.tile)], rng), work


def has_room(work, m, tile):
    sizes = buffer_bytes(work, tile)
    copies = 2 if m.double_buffering else 1
    return all(
        copies * sum(size for buffer, size in sizes.items() if KIND[buffer] in pad.holds) <= pad.kib * 1024
        for pad in m.scratchpads
    )


def legal_tilings(work, m, cut=all_lengths, given=None):
    total = (work.M, work.K, work.N)
    options = [cut(size, grain) for size, grain in zip(total, grains(work, engine(m)), strict=True)]
    for order, tile in itertools.product([given] if given else ORDERS, itertools.product(*options)):
        if has_room(work, m, tile):
            yield Tiling(order=order, tile=tile)


def figure(work, tiling, m, objective):
    if objective == "traffic":
        return sum(required_bytes(work, tiling))
    if objective == "energy":
        return sum(power.product_energy_pj(work, tiling, engine(m), m).values())
    return alone(work, tiling, engine(m), m)


@pytest.mark.parametrize("objective, seeds", [("cycles", range(25)), ("traffic", range(30)), ("energy", range(15))])
def test_the_search_finds_the_minimum_of_all_legal_tilings(objective, seeds):
    spared = whole = 0
    for seed in seeds:
        m, work = drawn(seed, macs=3000)
        found = search(work, engine(m), m, objective)
        least = min(figure(work, tiling, m, objective) for tiling in legal_tilings(work, m))
        assert found.value == pytest.approx(least, rel=1e-12), seed
        assert figure(work, found.tiling, m, objective) == pytest.approx(least, rel=1e-12), seed
        assert has_room(work, m, found.tiling.tile), seed
        spared, whole = spared + found.legal - found.evaluated, whole + found.legal
    assert spared > whole / 4, "the bounds prune hardly anything"


def test_a_given_order_is_kept():
    for seed, order in itertools.product(range(5), ORDERS):
        m, work = drawn(seed, macs=2000)
        found = search(work, engine(m), m, "cycles", order)
        assert found.tiling.order == order
        assert found.value == min(alone(work, t, engine(m), m) for t in legal_tilings(work, m, given=order)), seed


def test_orders_that_differ_in_loops_of_one_round_are_one():
    work = product(8, 4, 4)
    found = search(work, engine(machine()), machine(), "cycles")
    whole = [tiling for tiling in legal_tilings(work, machine()) if tiling.order == "mnk"]
    assert found.legal == len(whole)
    # of M 5 lengths, of K and N 2, of each the longest is one round: 1 order of none or one loop, 2 of two, 6 of three
    wide = search(product(8, 8, 8), engine(machine()), machine(), "cycles")
    assert wide.legal == 1 + (4 + 1 + 1) + 2 * (4 + 4 + 1) + 6 * 4


# --- bounds and closed forms -----------------------------------------------------------------------------------------


def places(grid):
    for place in range(grid.size):
        yield place, grid.tile(place)


@pytest.mark.parametrize("seeds", [range(0, 15), range(15, 30)])
def test_no_tiling_takes_less_than_its_bound(seeds):
    close = 0
    for seed in seeds:
        m, work = drawn(seed, macs=3000)
        grid = Grid(work, engine(m), m)
        for order in ORDERS:
            bound = np.broadcast_to(grid.least_cycles(order), grid.size)
            for place, tile in places(grid):
                cycles = alone(work, Tiling(order=order, tile=tile), engine(m), m)
                assert bound[place] <= cycles, (seed, order, tile)
                close += bound[place] >= 0.9 * cycles
    assert close > 50


@pytest.mark.parametrize("seeds", [range(0, 25), range(25, 50)])
def test_bytes_and_cycles_in_closed_form_are_those_of_nest_and_walk(seeds):
    for seed in seeds:
        m, work = drawn(seed)
        grid = Grid(work, engine(m), m)
        for order in ORDERS:
            moved = np.broadcast_to(grid.bytes(order), grid.size)
            reads = np.broadcast_to(grid.reads(order).bus, grid.size)
            compute = np.broadcast_to(grid.all_compute, grid.size)
            for place, tile in random.Random(seed).sample([*places(grid)], min(6, grid.size)):
                tiling = Tiling(order=order, tile=tile)
                needed = traffic(nest(work, tiling, engine(m), m))
                assert moved[place] == needed.bytes == sum(required_bytes(work, tiling)), (seed, tiling)
                assert compute[place] == needed.cycles["array"], (seed, tiling)
                assert reads[place] == read_cycles(work, tiling, m), (seed, tiling)


def read_cycles(work, tiling, m):
    """That reads hold the bus, from every transfer."""
    memory = Grid(work, engine(m), m).memory
    total = 0
    for times, step in steps_of(stage(work, tiling, m).nodes):
        brought = [move for move in (*step.loads, step.resume) if move is not None and move.bytes]
        total += times * sum(memory.bus_cycles(move) for move in brought)
    return total


def test_every_legal_tile_and_no_other_has_room():
    for seed in range(60):
        m, work = drawn(seed)
        grid = Grid(work, engine(m), m)
        sizes = zip((work.M, work.K, work.N), grains(work, engine(m)), strict=True)
        cut = [lengths(size, piece) for size, piece in sizes]
        fitting = [tile for tile in itertools.product(*cut) if has_room(work, m, tile)]
        assert [tile for _, tile in places(grid)] == fitting, seed


def test_pace_of_many_shapes_is_the_work_of_each():
    for array in ({}, {"count": 3}, {"count": 4, "split": "M"}):
        spec = {"name": "array", "unit": "systolic", "set": {"rows": 4, "cols": 4}} | array
        one = engine(machine(engines=(spec,)))
        m, k, n = (axis.ravel() for axis in np.meshgrid([1, 2, 5, 8, 13], [1, 4, 9], [1, 3, 4, 11, 12, 17, 22]))
        cycles, words = one.pace(m, k, n)
        for i in range(len(m)):
            work = one.work((int(m[i]), int(k[i]), int(n[i])))
            assert cycles[i] == work.cycles
            assert {name: int(values[i]) for name, values in words.items()} == work.words


def test_engines_share_out_a_dimension():
    for split in "MN":
        spec = {"name": "array", "unit": "systolic", "set": {"rows": 4, "cols": 4}, "count": 3, "split": split}
        shared, single = engine(machine(engines=(spec,))), engine(machine())
        whole = shared.work((10, 8, 10))
        parts = [4, 4, 2]
        each = [single.work((part, 8, 10) if split == "M" else (10, 8, part)) for part in parts]
        assert whole.cycles == max(part.cycles for part in each)
        assert whole.words == {name: sum(part.words[name] for part in each) for name in whole.words}
        assert whole.energy_pj == pytest.approx(sum(part.energy_pj for part in each))
        assert shared.peak_per_cycle == 3 * single.peak_per_cycle == 48


def test_an_engine_timed_by_operands_takes_the_tiling_of_least_traffic():
    spec = {"name": "array", "unit": "opt3", "sigma": 2.0}
    assert unit("opt3").timed_by_operands
    m = machine(engines=(spec,))
    work = product(24, 16, 40)
    found = search(work, engine(m), m, "cycles")
    assert found.value == min(sum(required_bytes(work, tiling)) for tiling in legal_tilings(work, m))


def test_no_room_at_all_names_what_the_smallest_tile_needs():
    pads = (
        {"name": "in", "holds": ("activations", "weights"), "kib": 0.03125},
        {"name": "out", "holds": ("outputs",), "kib": 1.0},
    )
    m = machine(scratchpads=pads)
    rule = r"no tile fits the scratchpads; the smallest, M=1 K=4 N=4: in has 32 bytes and would need 40, out has 1024"
    with pytest.raises(InputError, match=rule):
        search(product(8, 8, 8), engine(m), m, "cycles")
    m = machine(scratchpads=pads, double_buffering=False)
    assert search(product(8, 8, 8), engine(m), m, "cycles").tiling.tile[1:] == (4, 4)


def test_a_wider_tile_can_be_the_only_one_that_fits_where_channels_are_not_whole():
    """Four values of K touch two channels of nine taps each, eighteen no more than that."""
    conv = Conv(batch=1, in_channels=2, out_channels=4, height=6, width=6, kernel=(3, 3))
    over = {"image": image_of(conv), "act_bits": Fraction(8)}
    work = product(conv.gemm.M, conv.gemm.K, conv.gemm.N, **over)
    assert work.act_move(4, 4).bytes == work.act_move(4, 18).bytes == 2 * 3 * 6


def image_of(conv):
    high, wide = conv.output
    rows = {"row_pixels": wide, "out_rows": high, "in_rows": conv.height, "in_width": conv.width}
    return Image(**rows, stride=1, span=conv.kernel[0], taps=math.prod(conv.kernel), channels=conv.in_channels)


# --- SCALE-Sim -------------------------------------------------------------------------------------------------------


def scalesim_machine(rows, cols, dataflow):
    """Everything on chip, as much bandwidth as it takes, one buffer."""
    array = {"name": "array", "unit": "systolic", "convention": "scalesim"}
    array["set"] = {"rows": int(rows), "cols": int(cols), "dataflow": dataflow}
    pads = tuple(
        {"name": f"s{i}", "holds": (kind,), "kib": 65536.0}
        for i, kind in enumerate(("activations", "weights", "outputs"))
    )
    form = {"name": "scalesim", "clock_mhz": 1000.0, "double_buffering": False, "depthwise": "engine"}
    return Machine.model_validate(form | {"engines": (array,), "scratchpads": pads})


def reference():
    lines = (DATA / "cycles.csv").read_text().splitlines()
    return list(csv.DictReader(lines[1:]))


@pytest.mark.parametrize("topology", ["gemm", "conv"])
def test_a_machine_of_one_array_takes_scalesims_cycles(topology):
    graph = scalesim.load_topology(DATA / f"{topology}.csv")
    rows = [row for row in reference() if row["topology"] == topology]
    arrays = {(row["rows"], row["cols"], row["dataflow"]) for row in rows}
    compared = 0
    for array in sorted(arrays):
        theirs = {
            row["layer"]: int(row["Total Cycles"])
            for row in rows
            if (row["rows"], row["cols"], row["dataflow"]) == array
        }
        result = run(graph, scalesim_machine(*array))
        for layer, found in zip(graph.layers, result.layers, strict=True):
            # a depthwise layer is one layer for each channel there, and one of as many products here
            names = [layer.name] if layer.name in theirs else [name for name in theirs if name.startswith(layer.name)]
            assert found.compute_cycles == sum(theirs[name] for name in names), (array, layer.name)
            assert found.cycles == found.compute_cycles
            compared += len(names)
    assert compared == len(rows)
