"""Counted operations against the hardware itself: registers against the flip-flops that synthesis finds."""

from collections import Counter

import numpy as np
import pytest

from hwsim.synth import synthesize
from models.catalog import unit
from rtl.emit import emit


def flip_flops(params, name):
    cells = synthesize(emit(params), name).cells
    return sum(count for cell, count in cells.items() if cell.startswith("DFF"))


def register_bits(counted):
    return sum(op.count * op.bits for op in counted if op.kind == "reg")


def counter_bits(most):
    """A register that counts from 0 to `most`."""
    return most.bit_length()


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HWSIM_CACHE", str(tmp_path))


@pytest.mark.slow
def test_systolic_ws_writes_every_data_register_once_a_cycle():
    p = unit("systolic").params(rows=3, cols=4, act_bits=5, weight_bits=3, acc_bits=14)
    one, two = (unit("systolic").ops(p, M=m, K=3, N=4) for m in (1, 2))  # one cycle more
    a_cycle = register_bits(two) - register_bits(one)
    loading = register_bits(one) - a_cycle * unit("systolic").timing(p, M=1, K=3, N=4).total_cycles
    control = counter_bits(p.rows - 1) + 1 + p.rows + p.cols - 1  # beats loaded, full, valid bits
    assert loading == p.rows * (p.rows * p.cols * p.weight_bits)
    assert flip_flops(p, "systolic") == a_cycle + loading // p.rows + control


@pytest.mark.slow
def test_systolic_os_writes_every_data_register_once_a_cycle():
    p = unit("systolic").params(rows=3, cols=4, act_bits=5, weight_bits=3, acc_bits=14, dataflow="OS")
    one, two = (unit("systolic").ops(p, M=3, K=k, N=4) for k in (1, 2))
    a_cycle = register_bits(two) - register_bits(one)
    control = counter_bits(p.rows + p.cols - 1) + counter_bits(p.rows)  # flush and drain counters
    assert register_bits(one) == a_cycle * unit("systolic").timing(p, M=3, K=1, N=4).total_cycles
    assert flip_flops(p, "systolic") == a_cycle + control


LOOK_UP = [
    ("lutgemm", {"half_table": True}),
    ("lutgemm", {"half_table": False}),
    ("lutgemm", {"registered": False}),
    ("lutgemm", {"readers": 2}),
    ("lutgemm", {"registered": False, "readers": 2}),
    ("lutgemm", {"act_format": "fp16", "acc_bits": 32, "act_bits": 9}),
    ("shiftadd", {"half_table": True}),
    ("shiftadd", {"half_table": False}),
    ("shiftadd", {"scales": "column"}),
    ("shiftadd", {"scales": "column", "registered": False}),
    ("shiftadd", {"scales": "block"}),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, changes", LOOK_UP, ids=str)
def test_look_up_arrays_write_every_data_register_once_a_cycle(name, changes):
    p = unit(name).params(**{"rows": 2, "cols": 3, "mu": 3, "act_bits": 4, "weight_bits": 2, "acc_bits": 20} | changes)
    assert_registers(p, name, M=(1, 2), K=p.array.tile_k, N=3)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"registered": False}, {"act_format": "fp16", "acc_bits": 32}])
def test_serial_look_up_arrays_write_what_a_vector_brings_once_a_vector(changes):
    p = unit("lutgemm").params(
        **{"rows": 2, "cols": 3, "mu": 3, "act_bits": 4, "weight_bits": 3, "acc_bits": 20, "serial": True} | changes
    )
    entry, columns = unit("lutgemm"), p.columns
    shapes = [{"M": m, "K": p.array.tile_k, "N": 3} for m in (1, 2)]
    bits = [register_bits(entry.ops(p, **shape)) for shape in shapes]
    held = p.cols * (p.rows * p.weight_bits * p.mu + (p.weight_bits + 1) * p.word_bits)
    table = p.array.packed_bits if p.registered else p.mu * p.act_bits
    a_vector = p.rows * table + p.cols * p.acc_bits + 5 * columns.is_float
    cycles = [entry.timing(p, **shape).total_cycles for shape in shapes]
    a_cycle = (bits[1] - bits[0] - a_vector) // (cycles[1] - cycles[0])
    assert bits[0] == a_cycle * cycles[0] + a_vector + columns.load_beats * held
    phases = counter_bits(columns.interval - 1)
    marks = columns.edge_stages * (1 + phases)  # the mark and phase of a vector, beside its alignment
    behind = phases * (1 + 2) * p.cols + p.cols * columns.stages  # phases at the readers and words, marks at totals
    shared = behind - (phases * 2 + columns.stages)  # registers of the same value, which synthesis keeps once
    control = counter_bits(columns.load_beats - 1) + 1 + columns.latency + phases + marks
    assert flip_flops(p, "lutgemm") == a_cycle + a_vector + held + control + behind - shared


def assert_registers(p, name, *, M, K, N):
    """Of an array of columns: registers clocked in every cycle, those written while a tile is loaded, control."""
    entry, columns = unit(name), p.columns
    shapes = [{"M": m, "K": K, "N": N} for m in M]
    one, two = (register_bits(entry.ops(p, **shape)) for shape in shapes)
    short, long = (entry.timing(p, **shape).total_cycles for shape in shapes)
    a_cycle = (two - one) // (long - short)
    loading = one - a_cycle * short
    assert loading % columns.load_beats == 0
    control = counter_bits(columns.load_beats - 1) + 1 + columns.latency
    assert flip_flops(p, name) == a_cycle + loading // columns.load_beats + control


@pytest.mark.slow
def test_hadamard_writes_every_data_register_once_a_cycle():
    p = unit("hadamard").params(points=8, in_bits=5)
    cycles = unit("hadamard").timing(p, M=1, K=8).total_cycles
    assert flip_flops(p, "hadamard") == register_bits(unit("hadamard").ops(p, M=1, K=8)) / cycles + p.stages


@pytest.mark.slow
def test_hadamard_sums_of_rows_are_written_in_every_cycle_too():
    p = unit("hadamard").params(points=24, in_bits=5)
    cycles = unit("hadamard").timing(p, M=1, K=24).total_cycles
    counted = register_bits(unit("hadamard").ops(p, M=1, K=24)) / cycles
    assert flip_flops(p, "hadamard") == counted + p.stages + p.levels


@pytest.mark.slow
def test_folded_hadamard_writes_its_register_file_once_a_stage():
    p = unit("hadamard").params(points=16, in_bits=5, lanes=2)
    assert register_bits(unit("hadamard").ops(p, M=3, K=16)) == 3 * 4 * 16 * p.core_bits
    control = counter_bits(3) + counter_bits(3) + counter_bits(3) + 1  # word, stage, word that leaves; results wait
    assert flip_flops(p, "hadamard") == 16 * p.core_bits + control


@pytest.mark.slow
def test_folded_hadamard_writes_the_sums_of_rows_in_every_cycle():
    p, entry = unit("hadamard").params(points=96, in_bits=5, lanes=2), unit("hadamard")
    file = 3 * 96 * p.core_bits
    cycles = entry.timing(p, M=1, K=96).total_cycles
    sums, rest = divmod(register_bits(entry.ops(p, M=1, K=96)) - file, cycles)
    assert rest == 0
    # words and blocks that are worked on and that leave; the stage; results wait; valid bits, then digits of the word,
    # and the row at all levels but the first
    control = 2 * (counter_bits(1) + counter_bits(11)) + counter_bits(2) + 1 + p.levels * 2 + (p.levels - 1) * 4
    assert flip_flops(p, "hadamard") == 96 * p.core_bits + sums + control


QUANTIZERS = [
    {"scale": "pot", "in_bits": 6},
    {"scale": "pot", "act_format": "fp16"},
    {"in_bits": 6},
    {"in_bits": 6, "group": 2},
    {"act_format": "fp16"},
    {"in_bits": 6, "zero_points": True},
    {"in_bits": 6, "group": 2, "zero_points": True},
    {"act_format": "fp16", "zero_points": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("values", QUANTIZERS, ids=str)
def test_quantizers_write_lanes_every_cycle_and_the_rest_by_values_groups_and_quotient_bits(values):
    entry = unit("quantizer")
    p = entry.params(**{"group": 6, "lanes": 2, "bits": 4} | values)
    one, two = (register_bits(entry.ops(p, M=m, K=p.group)) for m in (1, 2))
    cycles = [entry.timing(p, M=m, K=p.group).total_cycles for m in (1, 2)]
    a_cycle = (2 * one - two) // (2 * cycles[0] - cycles[1])
    a_group = one - cycles[0] * a_cycle
    running = p.found_bits * (p.group_beats > 1)
    held = a_group - p.group * (p.in_bits + p.number_bits) - (p.group_beats - 1) * running
    # waiting, a beat at the top; valid bits
    control = counter_bits(p.buffer_beats) + 2 * counter_bits(p.stored_beats - 1) + 2 + p.stages
    control += counter_bits(p.group_beats) + counter_bits(p.group_beats - 1)
    if p.scale == "real":
        d = p.divider_cycles
        held -= (d - 1) * 3 * d + d * p.divisor_digits  # three bits of the quotient at a time, and what remains
        # a beat taken, its group's last; how long a group has waited
        control += 1 + counter_bits(d) + 1 + (p.group_beats > 1) + p.finding_cycles
    buffer = p.stored_beats * p.lanes * p.in_bits + p.lanes * p.number_bits
    assert flip_flops(p, "quantizer") == a_cycle + buffer + held + control


@pytest.mark.slow
@pytest.mark.parametrize("act_format", ["int", "fp16"])
def test_static_quantizers_write_every_register_every_cycle(act_format):
    more = {"act_format": act_format, "scale": "static", "multiplier": 77, "shift": 9}
    p = unit("quantizer").params(group=2, lanes=2, bits=4, **more)
    cycles = unit("quantizer").timing(p, M=1, K=2).total_cycles
    assert flip_flops(p, "quantizer") == register_bits(unit("quantizer").ops(p, M=1, K=2)) / cycles + 2


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["zeros", "pot", "int"])
def test_dequantizers_write_scales_by_groups_and_the_rest_every_cycle(preset):
    entry = unit("dequantizer")
    p = entry.preset(preset)
    one, two = (register_bits(entry.ops(p, M=m, K=p.group)) for m in (1, 2))
    cycles = [entry.timing(p, M=m, K=p.group).total_cycles for m in (1, 2)]
    a_cycle = (2 * one - two) // (2 * cycles[0] - cycles[1])
    held = one - cycles[0] * a_cycle
    assert held == p.scale_bits + p.bits * p.zero_points
    assert (
        flip_flops(p, "dequantizer") == a_cycle + held + 1 + counter_bits(p.group_beats - 1) + 2
    )  # held, codes, valid


TRANSFORMED = [
    # 3 rows of 2 groups of 4: 24 values
    (
        "quantizer",
        {"group": 4, "lanes": 2, "in_bits": 6, "bits": 4, "fraction_bits": 8},
        # magnitudes, peaks, magnitudes again; roundings with signs; 2 digits of a quotient of 6 bits, and one more
        {("add", 6, 0): 72 + 6, ("add", 4, 0): 24, ("mul", 6, 6): 24, ("shift", 11, 7): 24, ("add", 9, 0): 2 * 7 * 6}
        | {("csa", 10, 0): 2 * 4 * 6, ("mux", 6, 5): 24},
    ),
    (
        "quantizer",
        {"group": 4, "lanes": 2, "in_bits": 6, "bits": 4, "fraction_bits": 8, "zero_points": True},
        # both ends; ranges; 24 values and 6 lower ends: magnitudes, roundings; less the lower end's; zero points
        {("add", 5, 0): 24, ("add", 6, 0): 24 + 6 + 2 * 30 + 24 + 6, ("mul", 6, 7): 30, ("shift", 12, 7): 30}
        # 3 digits of a quotient of 7 bits, 7 multiples each of which 4 are odd ones, and one more
        | {("add", 9, 0): 3 * 7 * 6, ("csa", 10, 0): 3 * 4 * 6, ("add", 7, 0): 6, ("mux", 6, 5): 24},
    ),
    (
        "quantizer",
        {"group": 4, "lanes": 2, "act_format": "fp16", "bits": 4, "fraction_bits": 30, "zero_points": True},
        # both ends; 30 times a difference of exponents and a rounding; less the lower end's; zero points
        {("add", 15, 0): 48, ("add", 6, 0): 2 * 30 + 24 + 6, ("mul", 11, 9): 30, ("shift", 18, 43): 30}
        # ranges of two halves, to single precision; 3 digits of a quotient by 26 bits and one more
        | {("shift", 40, 29): 12, ("add", 41, 0): 6, ("shift", 41, 40): 6, ("add", 31, 0): 6}
        | {("add", 29, 0): 3 * 7 * 6, ("csa", 30, 0): 3 * 4 * 6, ("add", 9, 0): 6, ("mux", 16, 5): 24},
    ),
    (
        "quantizer",
        {"group": 2, "lanes": 2, "in_bits": 6, "bits": 4, "scale": "static", "multiplier": 5, "shift": 2},
        {("add", 6, 0): 24, ("add", 4, 0): 24, ("mul", 6, 3): 24},
    ),
    (
        "dequantizer",
        {"group": 4, "lanes": 2, "bits": 4, "zero_points": True},
        {("add", 5, 0): 48, ("mul", 5, 11): 24, ("add", 16, 0): 24, ("shift", 16, 15): 48},
    ),
    ("hadamard", {"points": 8, "in_bits": 4}, {("add", 5, 0): 24, ("add", 6, 0): 24, ("add", 7, 0): 24}),
    ("hadamard", {"points": 8, "in_bits": 4, "lanes": 1}, {("add", 7, 0): 72, ("mux", 7, 4): 72}),
]


@pytest.mark.parametrize("name, values, expected", TRANSFORMED)
def test_transforms_are_counted_as_by_hand(name, values, expected):
    counted = Counter()
    for op in unit(name).ops(unit(name).params(**values), M=3, K=8):
        if op.kind != "reg":
            counted[op.kind, op.bits, op.bits2] += op.count
    assert counted == expected


STYLES = pytest.mark.parametrize("style", ["mac", "opt1", "ent"])
SMALL = {"act_bits": 5, "weight_bits": 3, "acc_bits": 14}


@pytest.mark.slow
@STYLES
def test_matrix2d_writes_every_data_register_once_a_cycle(style):
    p = unit("matrix2d").params(rows=3, cols=2, style=style, **SMALL)
    cycles = unit("matrix2d").timing(p, M=3, K=2, N=2).total_cycles
    control = 1 + counter_bits(p.rows) + (style == "opt1")  # flush and drain counters, the adders' valid bit
    assert flip_flops(p, "matrix2d") == register_bits(unit("matrix2d").ops(p, M=3, K=2, N=2)) / cycles + control


@pytest.mark.slow
@STYLES
def test_adder_trees_write_every_data_register_once_a_cycle(style):
    p = unit("adder_tree").params(lanes=6, trees=2, style=style, **SMALL)
    one, two = (unit("adder_tree").ops(p, M=m, K=6, N=2) for m in (1, 2))
    a_cycle = register_bits(two) - register_bits(one)
    loading = register_bits(one) - a_cycle * unit("adder_tree").timing(p, M=1, K=6, N=2).total_cycles
    held = p.lanes * p.trees * p.weight_bits
    control = counter_bits(p.lanes - 1) + 1 + p.geometry.latency  # beats loaded, full, valid bits
    assert loading == p.lanes * held
    assert flip_flops(p, "adder_tree") == a_cycle + held + control - (zeros_of_trees(p) if style == "opt1" else 0)


@pytest.mark.slow
@STYLES
def test_cube_writes_accumulators_by_blocks_and_sums_by_tiles(style):
    p = unit("cube").params(n=2, style=style, **SMALL)
    shapes = [{"M": 2, "K": 2, "N": 2}, {"M": 2, "K": 4, "N": 2}, {"M": 4, "K": 2, "N": 2}]
    one, longer, twice = (register_bits(unit("cube").ops(p, **shape)) for shape in shapes)
    cycles = [unit("cube").timing(p, **shape).total_cycles for shape in shapes]
    assert cycles == [cycles[0], cycles[0] + 1, cycles[0] + p.gap]
    a_cycle = (2 * one - twice) // (cycles[0] - p.gap)
    accumulators = longer - one - a_cycle
    sums = one - cycles[0] * a_cycle - accumulators
    assert (accumulators, sums) == (p.n**2 * (1 + (style == "opt1")) * p.acc_bits, p.n**2 * p.acc_bits)
    control = p.latency + 2 * (p.chain_cycles + p.gap - 1) + 1  # ends of tiles, valid and first marks, first or not
    control += p.n**2 - zeros_of_cube(p) if style == "opt1" else 0  # accumulators resolve one cycle later
    assert flip_flops(p, "cube") == a_cycle + accumulators + sums + control


def zeros_of_trees(p):
    """Bits of the trees' carry words that are always zero, which synthesis leaves out."""
    words, found = [product_masks(p.act_bits, p.weight_bits)] * p.lanes, 0
    for counts in p.stages:
        size = 4 if len(counts) < len(words) else 1
        groups = [[mask for word in words[i : i + size] for mask in word] for i in range(0, len(words), size)]
        words = [compressed(masks, p.node_bits(count)) for masks, count in zip(groups, counts, strict=True)]
        found += sum(zeros(pair, p.node_bits(count)) for pair, count in zip(words, counts, strict=True))
    return p.trees * found


def zeros_of_cube(p):
    """The same of chains and accumulators."""
    block, total = [(1 << p.chain_bits) - 1] * 2, [(1 << p.acc_bits) - 1] * 2
    chain = compressed([*product_masks(p.act_bits, p.weight_bits), *block], p.chain_bits)
    for _ in range(p.acc_bits):  # what is zero in the register is zero in what it adds to: until no more is found
        total = compressed([-p.excess & (1 << p.acc_bits) - 1, *block, *total], p.acc_bits)
    return p.n**3 * zeros(chain, p.chain_bits) + p.n**2 * zeros(total, p.acc_bits)


def zeros(words, width):
    return sum(width - word.bit_count() for word in words)


def product_masks(moving_bits, held_bits):
    """Bits of a product's rows that can be set: a digit's multiple and what is due to the digit before it."""
    digits = -(-moving_bits // 2)
    rows = [((2 << held_bits) - 1) << 2 * i | (1 << 2 * i >> 2) * (i > 0) for i in range(digits)]
    return [*rows, 1 << 2 * digits - 2]


def compressed(masks, width):
    """Bits of the sum and the carry word that can be set, where `masks` are those of the words that go in."""
    while len(masks) > 2:
        whole = len(masks) - len(masks) % 3
        groups = [masks[i : i + 3] for i in range(0, whole, 3)]
        pairs = [(a | b | c, ((a & b) | (a & c) | (b & c)) << 1 & (1 << width) - 1) for a, b, c in groups]
        masks = [word for pair in pairs for word in pair] + masks[whole:]
    return masks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opt3", "opt4c", "opt4e"])
def test_sparse_arrays_write_weights_and_digits_when_taken_and_the_rest_in_every_cycle(name):
    p = unit(name).params(rows=3, cols=2, tile_k=32, act_bits=5, weight_bits=3, acc_bits=14)
    w = np.ones((32, 3), dtype=np.int64)
    rows = [np.full((m, 32), value) for m, value in ((1, 0), (1, 1), (2, 0))]
    shapes = [unit(name).shape_of(p, a, w) for a in rows]
    zeros, ones, twice = (register_bits(unit(name).ops(p, **shape)) for shape in shapes)
    cycles = [unit(name).timing(p, **shape).total_cycles for shape in shapes]
    a_cycle = (ones - zeros) // (cycles[1] - cycles[0])
    a_row = twice - zeros - a_cycle * (cycles[2] - cycles[0])
    loading = zeros - a_cycle * cycles[0] - a_row
    array = p.array
    codes = array.copies * array.tile_k * (p.act_bits + 1)
    assert a_row == codes
    assert loading == p.tile_k * (p.rows * p.tile_k * p.weight_bits)
    lane = 3 + array.groups + (array.lanes > 1)  # digits of the group that are done, which group, waiting
    sequencer = 4 + array.digits + array.lanes * lane  # busy, first of a bit-weight, valid, final; which bit-weight
    control = 3 * p.cols + counter_bits(p.tile_k) + 2  # full, whose turn at either end; beats loaded; sums in adders
    held = loading // p.tile_k + p.cols * codes
    assert flip_flops(p, name) == a_cycle + held + array.copies * p.cols * sequencer + control


SYSTOLIC = [(d, s, b) for d in ("WS", "IS") for s, b in (("mac", 2), ("opt1", 1), ("ent", 1), ("ent", 2))]


@pytest.mark.slow
@pytest.mark.parametrize("dataflow, style, buffers", [*SYSTOLIC, ("OS", "opt1", 1), ("OS", "ent", 1)])
def test_systolic_styles_and_buffers_write_every_data_register_once_a_cycle(dataflow, style, buffers):
    entry, shape = unit("systolic"), {"M": 2, "K": 2, "N": 2}
    p = entry.params(rows=2, cols=3, dataflow=dataflow, style=style, buffers=buffers, **SMALL)
    tile = 0 if dataflow == "OS" else p.rows * p.cols * p.held_bits
    cycles = entry.timing(p, **shape).total_cycles
    a_cycle, rest = divmod(register_bits(entry.ops(p, **shape)) - p.rows * tile, cycles)
    assert rest == 0
    if dataflow == "OS":
        control = counter_bits(p.output_geometry.flush_cycles) + counter_bits(p.rows) + (style == "opt1")
    else:
        latency = p.geometry.latency
        control = counter_bits(p.rows - 1) + buffers + latency  # beats loaded, full buffers, valid bits
        control += (buffers - 1) * (2 * buffers + latency - 1)  # whose turn it is, what a stage's vector works with
        control -= p.rows * p.cols * zeros_of_pe(p) if style == "opt1" else 0
    assert flip_flops(p, "systolic") == a_cycle + buffers * tile + control


def zeros_of_pe(p):
    """Bits of a PE's carry word that are always zero, which synthesis leaves out: its pair may come in with any bit."""
    whole = (1 << p.acc_bits) - 1  # the first row's empty places hold a constant
    rows = product_masks(p.moving_bits, p.held_bits)
    return zeros(compressed([whole, *rows[1:], whole, whole], p.acc_bits), p.acc_bits)


@pytest.mark.slow
@pytest.mark.parametrize("act_bits", [2, 6, 8])
def test_opt2_writes_every_data_register_once_a_cycle(act_bits):
    """Of an even width: the top digit of an odd one leaves a bit of its sum unused."""
    p = unit("opt2").params(rows=4, cols=2, tile_k=2, act_bits=act_bits, weight_bits=4, acc_bits=20)
    one, two = (register_bits(unit("opt2").ops(p, M=m, K=4, N=2)) for m in (1, 2))
    control = counter_bits(p.rows - 1) + 1 + p.geometry.latency
    assert flip_flops(p, "opt2") == two - one + p.rows * p.cols * p.weight_bits + control


LOOK = {"rows": 2, "cols": 2, "mu": 2, "weight_bits": 3, "act_bits": 4, "acc_bits": 20}
COLUMN = {"rows": 4, "cols": 2, "act_bits": 4, "acc_bits": 20}
# Of M=3, K=10, N=5 by tiles of 4 by 2: 3 folds over K, 3 over N, 150 products, 45 outputs of a tile, 27 vectors; and
# with look-up tables of 2 activations 45 tables and 225 reads (3 planes). By hand: (kind, bits, bits2) -> count.
COUNTED = [
    (
        "lutgemm",
        LOOK | {"scale_bits": 5},
        # a table: one addition for its first entry, one for the other; its reads and the activations' sum; 4 words
        {("add", 6, 0): 90, ("mux", 5, 2): 225, ("add", 7, 0): 270, ("mul", 7, 5): 180, ("add", 20, 0): 180},
    ),
    (
        "lutgemm",
        LOOK | {"scale_bits": 5, "serial": True},
        {("add", 6, 0): 90, ("mux", 5, 2): 225, ("add", 7, 0): 270, ("mul", 7, 5): 180, ("add", 20, 0): 45}
        | {("mux", 2, 3): 225, ("add", 13, 0): 180},
    ),
    (
        "lutgemm",
        LOOK | {"scale_bits": 5, "act_bits": 6, "acc_bits": 32, "act_format": "fp16"},
        # aligning a vector of 4: 3 comparisons and 4 differences of exponents, 4 shifts, 4 roundings
        {("add", 5, 0): 27 * 7, ("shift", 12, 31): 108, ("add", 6, 0): 108, ("add", 8, 0): 90, ("mux", 7, 2): 225}
        | {("add", 9, 0): 270, ("mul", 9, 5): 180, ("add", 15, 0): 135, ("shift", 15, 15): 45, ("fadd", 32, 0): 45},
    ),
    (
        "shiftadd",
        LOOK | {"num_terms": 2, "max_shift": 3},
        {("add", 6, 0): 90, ("mux", 5, 2): 225, ("add", 7, 0): 270, ("add", 20, 0): 180}
        | {("shift", 11, 3): 360, ("add", 11, 0): 180},
    ),
    (
        "shiftadd",
        LOOK | {"num_terms": 2, "max_shift": 3, "scales": "column"},
        # 30 activations by 4 words for each of 3 folds over N; tables for each plane; z summed once a vector
        {("shift", 9, 3): 720, ("add", 9, 0): 360, ("add", 10, 0): 270, ("mux", 9, 2): 225, ("add", 12, 0): 225}
        | {("add", 11, 0): 90, ("add", 20, 0): 90},
    ),
    (
        "tmac",
        {"rows": 2, "cols": 2, "weight_bits": 3, "act_bits": 4, "acc_bits": 20, "table_bits": None},
        # tiles of 8 by 2, tables of 4 activations: 27 tables, 135 reads, 30 outputs of a tile
        {("add", 7, 0): 270, ("add", 8, 0): 162, ("mux", 7, 8): 135, ("add", 10, 0): 90, ("add", 20, 0): 60},
    ),
    (
        "mixpe",
        COLUMN | {"weight_bits": 3, "scale_bits": 5},
        # 2 additions a product and 63 of the activations' sums; 105 of the trees and 45 of zero points
        {("mux", 4, 2): 450, ("add", 7, 0): 363, ("add", 9, 0): 150, ("mul", 7, 3): 45, ("mul", 9, 5): 45}
        | {("add", 20, 0): 45},
    ),
    (
        "ternary",
        COLUMN,
        # 15 bytes, 3 additions for each of 4 digits
        {("mux", 4, 3): 150, ("csa", 1, 0): 150, ("add", 4, 0): 45, ("add", 5, 0): 45, ("add", 7, 0): 45 + 105}
        | {("add", 8, 0): 45, ("add", 20, 0): 45},
    ),
    (
        "ternary",
        COLUMN | {"packing": "two"},
        {("mux", 4, 3): 150, ("csa", 1, 0): 150, ("add", 7, 0): 105, ("add", 20, 0): 45},
    ),
    ("additive", COLUMN, {("mux", 4, 2): 150, ("csa", 1, 0): 150, ("add", 7, 0): 105, ("add", 20, 0): 45}),
    (
        "shiftlayer",
        COLUMN | {"weight_bits": 3},
        {("shift", 6, 2): 150, ("mux", 6, 2): 150, ("csa", 1, 0): 150, ("add", 9, 0): 105, ("add", 20, 0): 45},
    ),
    (
        "bipolar",
        COLUMN | {"weight_bits": 3},
        # 12 pairs of planes; 7 sums and 3 negations for each of 9 rows of activations that enter
        {("mux", 1, 2): 1800, ("csa", 1, 0): 1800, ("add", 10, 0): 585, ("add", 7, 0): 117, ("add", 20, 0): 90},
    ),
    (
        "dequant",
        COLUMN | {"weight_bits": 3, "scale_bits": 2},
        {("add", 4, 0): 50, ("mul", 4, 2): 50, ("mul", 4, 6): 150, ("add", 20, 0): 150},
    ),
    ("fpmac", {"rows": 4, "cols": 2}, {("shift", 11, 10): 90 + 50, ("fmul", 16, 16): 150, ("fadd", 32, 0): 150}),
    (
        "mxdot",
        {"rows": 4, "cols": 2, "block_size": 2},
        # 75 blocks; a product has 9 bits (12 x 12 at most), a sum of two 10; exponents of elements 2 bits, of scales 8
        {("mul", 2, 2): 150, ("add", 5, 0): 150, ("add", 2, 0): 150, ("shift", 9, 4): 150, ("add", 10, 0): 75}
        | {("add", 9, 0): 75, ("shift", 10, 10): 75, ("fadd", 32, 0): 75},
    ),
    (
        "mxdot",
        {"rows": 5, "cols": 2, "block_size": 5, "scale_format": "e4m3", "accumulate": "fp22"},
        # 30 blocks; a sum of five products has 11 bits, and 19 with the scales' significands; an adder of FP32's width
        {("mul", 2, 2): 150, ("add", 5, 0): 180, ("add", 2, 0): 150, ("shift", 9, 4): 150, ("add", 11, 0): 120}
        | {("mul", 4, 4): 30, ("mul", 11, 8): 30, ("shift", 19, 19): 30, ("fadd", 32, 0): 30},
    ),
    (
        "mxdot",
        {"rows": 10, "cols": 1, "block_size": 10, "act_element": "int8", "weight_element": "int8"},
        # 15 blocks; 2^14 ten times is below 2^18
        {("mul", 8, 8): 150, ("add", 19, 0): 135, ("add", 9, 0): 15, ("shift", 19, 19): 15, ("fadd", 32, 0): 15},
    ),
]


@pytest.mark.parametrize("name, values, expected", COUNTED)
def test_arithmetic_is_counted_as_by_hand(name, values, expected):
    counted = Counter()
    for op in unit(name).ops(unit(name).params(**values), M=3, K=10, N=5):
        if op.kind != "reg":
            counted[op.kind, op.bits, op.bits2] += op.count
    assert counted == expected


@pytest.mark.parametrize("name", ["lutgemm", "shiftadd", "tmac", "mixpe", "bipolar"])
def test_what_columns_share_is_counted_once_for_all_of_them(name):
    """The edge's work is that of one column as long as one tile of columns holds all outputs, and doubles after."""
    p = unit(name).params(cols=4)
    one, all_, more = (
        Counter(
            {(op.kind, op.bits, op.bits2): op.count for op in unit(name).ops(p, M=6, K=64, N=n) if op.kind != "reg"}
        )
        for n in (1, 4, 8)
    )
    edge = [key for key in one if all_[key] == one[key]]
    assert edge
    assert all(more[key] == 2 * one[key] for key in edge)
    assert all(more[key] == 8 * one[key] or more[key] > all_[key] for key in one.keys() - set(edge))
