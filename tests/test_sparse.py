"""Arrays of non-zero digits: digits and cycles against scalar loops, timing against the stepped trace, widths."""

import numpy as np
import pytest

from hwsim.simulate import simulate_gemm
from hwsim.verify import verify
from models import sparse
from models.bits import signed_range
from models.catalog import unit
from models.unit import InputError, Stimulus

NAMES = ["opt3", "opt4c", "opt4e"]
ALWAYS = np.ones(1, dtype=bool)


def entn_digits(x, bits):
    """EN-T digits of one integer, lowest first, as the paper forms them."""
    magnitude, carry, found = abs(x), 0, []
    for i in range((bits + 1) // 2):
        raw = magnitude >> 2 * i & 3
        found.append((0, 1, 2, -1)[(raw + carry) % 4] * (-1 if x < 0 else 1))
        carry = (raw & 1 & raw >> 1) | (raw >> 1 & carry)
    assert sum(digit * 4**i for i, digit in enumerate(found)) == x
    return found


def walk(row, bits, lanes):
    """Cycles of one row, by walking: every cycle, each lane takes its group's next digit that is not zero."""
    cycles = 0
    digits = [entn_digits(int(x), bits) for x in row]
    groups = [range(k, k + 4) for k in range(0, len(row), 4)]
    for place in reversed(range((bits + 1) // 2)):
        queues = [[[k for k in g if digits[k][place]] for g in groups[lane::lanes]] for lane in range(lanes)]
        while any(queues):
            cycles += 1
            for queue in queues:
                if queue:
                    queue[0] = queue[0][1:]
                    if not queue[0]:
                        queue.pop(0)
    return cycles


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [2, 3, 7, 8, 16])
def test_steps_of_a_row_equal_a_walk_through_its_digits(name, bits):
    p = unit(name).params(act_bits=bits, tile_k=32)
    rng = np.random.default_rng(bits)
    low, high = signed_range(bits)
    a = rng.integers(low, high, (20, 70), endpoint=True)
    a[rng.random(a.shape) < 0.4] = 0
    a[0], a[1], a[2], a[3, ::2], a[4, 1:] = low, high, 0, low, 0
    steps = unit(name).shape_of(p, a, np.zeros((70, 1), dtype=int))["steps"]
    padded = np.pad(a, [(0, 0), (0, 26)])
    for m in range(20):
        for fold in range(3):
            assert steps[m, fold] == walk(padded[m, 32 * fold : 32 * (fold + 1)], bits, p.array.lanes)


def test_rows_counted_in_blocks_are_counted_the_same(monkeypatch):
    p = unit("opt4e").params(tile_k=32)
    a = np.random.default_rng(1).integers(-128, 128, (50, 100))
    whole = sparse.row_steps(p.array, a)
    monkeypatch.setattr(sparse, "BLOCK", 300)
    assert (sparse.row_steps(p.array, a) == whole).all()
    assert (sparse.row_steps(p.array, a.astype(np.int8)) == whole).all()


@pytest.mark.parametrize("name", ["opt3", "opt4c"])
def test_the_authors_take_a_cycle_more_for_each_bit_weight_and_ours_one_a_row(name):
    """Cycles of a column in the authors' RTL: M (sum over bit-weights and groups of max(1, nonzero) + 4)."""
    p = unit(name).params(rows=1, cols=1, tile_k=64)
    rng = np.random.default_rng(5)
    rows = {"dense": np.full((3, 64), 0b01010101), "zero": np.zeros((3, 64), dtype=int)}
    rows["random"] = rng.integers(-128, 128, (3, 64))
    theirs = {}
    for kind, a in rows.items():
        shape = unit(name).shape_of(p, a, np.ones((64, 1), dtype=int))
        digits = np.array([[entn_digits(int(x), 8) for x in row] for row in a])
        by_group = (digits != 0).reshape(3, 16, 4, 4).sum(axis=2)
        theirs[kind] = np.maximum(by_group, 1).sum() + 3 * 4
        assert sparse.authors_cycles(p, shape["steps"]).sum() == theirs[kind]
        timing = unit(name).timing(p, **shape)
        assert timing.column_cycles.tolist() == [theirs[kind] - 3 * 4]
        # beside its steps: a cycle a row, the first row's way in and the last sum's way out
        assert timing.total_cycles - timing.load_cycles == theirs[kind] - 3 * 4 + 3 * 1 + 4
    assert (theirs["dense"], theirs["zero"]) == (3 * (4 * 64 + 4), 3 * (4 * 16 + 4))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("m, k, n", [(1, 1, 1), (7, 33, 17), (40, 5, 3), (3, 100, 40)])
def test_golden_equals_int64_matmul(name, m, k, n):
    rng = np.random.default_rng([m, k, n])
    p = unit(name).params()
    a, w = rng.integers(-128, 128, (m, k)), rng.integers(-128, 128, (k, n))
    a[0], w[:, 0] = -128, -128
    start = rng.integers(-1000, 1000, (m, n))
    assert (unit(name).golden(p, a, w) == a @ w).all()
    assert (unit(name).golden(p, a, w, start) == a @ w + start).all()
    narrow = unit(name).params(acc_bits=9)
    assert (unit(name).golden(narrow, a, w) == (a @ w + 256) % 512 - 256).all()


def stepped_cycles(name, p, a, w):
    """Cycles that the trace takes without stalls."""
    beats = unit(name).beats(p, a, w)
    trace = unit(name).trace(p, Stimulus(beats=beats, offer=dict.fromkeys(beats, ALWAYS), accept={"o_psum": ALWAYS}))
    return int(np.flatnonzero(trace["o_psum.valid"])[-1]) + 1


@pytest.mark.parametrize("name", NAMES)
def test_timing_equals_the_stepped_trace_for_sparse_and_dense_rows(name):
    rng = np.random.default_rng(3)
    for cols in (1, 2, 5, 64):
        for act_bits in (2, 8):
            p = unit(name).params(rows=3, cols=cols, tile_k=16, act_bits=act_bits)
            m, k, n = rng.integers(1, 90), rng.integers(1, 40), rng.integers(1, 8)
            low, high = signed_range(act_bits)
            a = rng.integers(low, high, (m, k), endpoint=True)
            a[rng.random(m) < 0.5] = 0  # rows that take the least beside rows that do not
            a[:: max(cols, 2)] = low + 1
            w = rng.integers(-128, 128, (k, n))
            timing = unit(name).timing(p, **unit(name).shape_of(p, a, w))
            assert timing.total_cycles == stepped_cycles(name, p, a, w), (cols, act_bits)


@pytest.mark.parametrize("name", NAMES)
def test_columns_compute_their_rows_steps_and_lose_the_rest_at_sync(name):
    p = unit(name).params(rows=4, cols=8, tile_k=16)
    w = np.ones((40, 9), dtype=int)
    uneven, even = np.zeros((64, 40), dtype=int), np.full((64, 40), 85)
    uneven[::8] = 85  # all in one column
    lost = {}
    for kind, a in (("uneven", uneven), ("even", even)):
        shape = unit(name).shape_of(p, a, w)
        timing = unit(name).timing(p, **shape)
        assert timing.column_cycles.shape == (8,)
        assert timing.column_cycles.sum() == 3 * shape["steps"].sum()  # three folds of N
        by_hand = [3 * shape["steps"][j::8].sum() for j in range(8)]
        assert timing.column_cycles.tolist() == by_hand
        folds = np.array([shape["steps"][j::8].sum(axis=0) for j in range(8)])
        assert timing.sync_cycles == 3 * (folds.max(axis=0) - folds).sum()
        assert timing.column_cycles.sum() + timing.sync_cycles <= timing.column_room
        lost[kind] = timing.sync_cycles / timing.column_room
    assert lost["even"] == 0
    assert 0.5 < lost["uneven"] < 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [2, 7, 8, 16])
def test_utilization_reaches_one_on_zeros_and_never_passes_it(name, bits):
    p = unit(name).params(rows=4, cols=4, tile_k=256, act_bits=bits)
    w = np.ones((256, 4), dtype=int)
    best, least = (
        unit(name).timing(p, **unit(name).shape_of(p, a, w)).utilization
        for a in (np.zeros((4096, 256), dtype=int), np.full((64, 256), 1))
    )
    assert 0.8 < best <= 1
    assert 0 < least <= best


def test_sharing_a_sequencer_changes_no_cycle_and_four_lanes_take_at_least_a_quarter():
    rng = np.random.default_rng(8)
    a, w = rng.integers(-128, 128, (50, 70)), rng.integers(-128, 128, (70, 20))
    three, shared, four = (simulate_gemm(unit(name).params(tile_k=32), a, w) for name in NAMES)
    assert (three.output == shared.output).all()
    assert (four.output == a @ w).all()
    assert three.timing.total_cycles == shared.timing.total_cycles
    steps = [result.timing.column_cycles.sum() for result in (shared, four)]
    assert steps[0] / 4 <= steps[1] < steps[0] / 2
    kinds = [{op.kind for op in result.ops} for result in (three, shared, four)]
    assert kinds[0] == kinds[1] == kinds[2]
    registers = [sum(op.count * op.bits for op in result.ops if op.kind == "reg") for result in (three, shared)]
    assert registers[0] > registers[1]


@pytest.mark.parametrize("name, width", [(name, "product_bits") for name in NAMES] + [("opt4e", "tree_bits")])
def test_no_width_has_a_bit_to_spare(name, width, monkeypatch):
    p = unit(name).preset("small")
    assert verify(p, cases=8, seed=2).passed
    exact = getattr(sparse.SparseArray, width).fget
    monkeypatch.setattr(sparse.SparseArray, width, property(lambda array: exact(array) - 1))
    assert any("o_psum.payload.psum" in finding for finding in verify(p, cases=8, seed=2).findings)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_too_many_is_found(name, monkeypatch):
    real = sparse.row_steps
    monkeypatch.setattr(sparse, "row_steps", lambda array, a: real(array, a) + 1)
    assert verify(unit(name).preset("small"), cases=2).findings


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("opt4c", {"tile_k": 10}, "opt4c: tile_k must be a multiple of 4: .* not 10; nearest: tile_k=8"),
        ("opt3", {"tile_k": 2}, "opt3: tile_k must be a multiple of 4: whole groups of 4, not 2; nearest: tile_k=4"),
        ("opt4e", {"tile_k": 28}, "opt4e: tile_k must be a multiple of 16: .* not 28; nearest: tile_k=32"),
        ("opt4e", {"act_bits": 17}, "opt4e: act_bits must be a whole number from 2 to 16, not 17"),
        ("opt4c", {"overflow": "saturate"}, "opt4c: no parameter 'overflow'"),
    ],
)
def test_impossible_parameters_are_refused(name, values, message):
    with pytest.raises(InputError, match=message):
        unit(name).params(**values)


@pytest.mark.parametrize(
    "steps, message",
    [
        (None, r"take them, with M, K and N, from shape_of\(params, A, W\)"),
        (np.full((2, 1), 20), r"integers \[M, K folds\] = \(2, 2\) are needed, not int64 \(2, 1\)"),
        (np.full((2, 2), 20.0), "not float64"),
        (np.full((2, 2), 65), "a row takes 16 to 64 cycles a fold"),
        (np.full((2, 2), 15), "a row takes 16 to 64 cycles a fold"),
    ],
)
def test_steps_that_cannot_be_are_refused(steps, message):
    for function in (unit("opt4c").timing, unit("opt4c").ops):
        with pytest.raises(InputError, match=message):
            function(unit("opt4c").params(), M=2, K=17, N=1, steps=steps)


def test_operands_outside_their_width_are_refused():
    p = unit("opt4e").params(act_bits=4)
    for function in (unit("opt4e").golden, unit("opt4e").shape_of):
        with pytest.raises(InputError, match=r"A.*: 8 is outside"):
            function(p, np.array([[8]]), np.array([[1]]))
