"""The transform unit against explicit matrices: scipy's where it has them, and what makes a matrix Hadamard's."""

import numpy as np
import pytest
from scipy.linalg import hadamard

import rtl.hadamard
from hwsim.verify import verify
from models.catalog import unit
from models.hadamard import hadamard_matrix, paley
from models.unit import InputError

HADAMARD = unit("hadamard")


@pytest.mark.parametrize("points", [2, 4, 8, 64, 256])
def test_all_basis_vectors_give_the_columns_of_h(points):
    p = HADAMARD.params(points=points)
    assert (HADAMARD.golden(p, np.eye(points, dtype=np.int64)) == hadamard(points)).all()
    assert (hadamard_matrix(points) == hadamard(points)).all()


@pytest.mark.parametrize("order", [12, 20, 28])
def test_paleys_matrices_are_hadamards_with_a_first_column_of_ones(order):
    matrix = paley(order)
    assert set(matrix.flat) == {-1, 1}
    assert (matrix @ matrix.T == order * np.eye(order)).all()
    assert (matrix[:, 0] == 1).all()
    assert (matrix != matrix.T).any()


@pytest.mark.parametrize("order", [12, 20])
def test_paleys_first_construction_follows_the_squares_of_the_field(order):
    """By Euler's criterion, not by listing squares: i - j is one where (i - j)^((q - 1) / 2) is 1."""
    q, matrix = order - 1, paley(order)
    for i in range(q):
        for j in range(q):
            is_square = pow(i - j, (q - 1) // 2, q) == 1
            assert matrix[i + 1, j + 1] == (-1 if i == j or is_square else 1)


@pytest.mark.parametrize("points", [12, 20, 28, 24, 56, 80, 384, 1536])
def test_sizes_beside_powers_of_two_are_the_product_of_both_matrices(points):
    order = {12: 12, 24: 12, 384: 12, 1536: 12, 20: 20, 80: 20, 28: 28, 56: 28}[points]
    p = HADAMARD.params(points=points)
    want = np.kron(paley(order), hadamard(points // order))
    assert (HADAMARD.golden(p, np.eye(points, dtype=np.int64)) == want.T).all()  # row i is H times basis vector i
    assert (hadamard_matrix(points) == want).all()
    assert (want @ want.T == points * np.eye(points)).all()


@pytest.mark.parametrize("points, in_bits", [(2, 2), (8, 8), (64, 12), (12, 3), (40, 9), (28, 2)])
def test_random_signs_and_corners_equal_the_matrix_and_fit_the_width(points, in_bits):
    rng = np.random.default_rng(points)
    low, matrix = -(1 << (in_bits - 1)), hadamard_matrix(points)
    for _ in range(20):
        signs = int(rng.integers(0, 1 << min(points, 60))) & ~1
        p = HADAMARD.params(points=points, in_bits=in_bits, signs=signs)
        d = np.array([1 - 2 * (signs >> i & 1) for i in range(points)])
        x = rng.integers(low, -low, (points + 9, 3 * points))
        x[0] = low
        x[1, :points] = np.where(d > 0, low, -low - 1)  # the largest magnitudes
        x[2, :points] = np.where(d > 0, -low - 1, low)
        x[9:, :points] = np.where(matrix * d > 0, low, -low - 1)
        want = (x.reshape(-1, points) * d @ matrix.T).reshape(x.shape)
        assert (HADAMARD.golden(p, x) == want).all()
        assert want.min() >= -(1 << (p.out_bits - 1))
        assert want.max() <= (1 << (p.out_bits - 1)) - 1


def test_one_bit_less_would_overflow():
    p = HADAMARD.params(points=8, in_bits=4)
    y = HADAMARD.golden(p, np.full((1, 8), -8))
    assert y.min() == -(1 << (p.out_bits - 1))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"points": 4, "signs": 1}, "signs must be a mask of 4 bits with bit 0 clear, not 1"),
        ({"points": 36}, "points must be 2\\^k or m 2\\^k with m one of 12, 20, 28, not 36; nearest: 32 or 40"),
        ({"points": 6}, "not 6; nearest: 4 or 8"),
        ({"points": 16, "lanes": 3}, "lanes must be a power of two up to 8, not 3; nearest below: 2"),
        ({"points": 16, "lanes": 16}, "lanes must be a whole number from 1 to 8, not 16"),
        ({"points": 16, "lanes": 0}, "lanes must be a whole number from 1 to 8, not 0"),
        ({"points": 12, "lanes": 1}, "lanes=1 fold butterflies, and 12 points have none"),
        ({"points": 8192}, "points must be a whole number from 2 to 4096"),
    ],
)
def test_sizes_signs_and_lanes_that_cannot_be_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        HADAMARD.params(**values)


def test_a_size_of_which_k_is_no_multiple_is_refused():
    with pytest.raises(InputError, match="K must be a multiple of 16 points"):
        HADAMARD.golden(HADAMARD.params(), np.zeros((1, 24), dtype=np.int64))
    with pytest.raises(InputError, match="points must be"):
        hadamard_matrix(36)


def test_timing_is_one_block_a_cycle():
    t = HADAMARD.timing(HADAMARD.params(points=64), M=10, K=128)
    assert t.total_cycles == 20 + 6
    assert HADAMARD.timing(HADAMARD.params(points=48), M=10, K=96).total_cycles == 20 + 2 + 4
    assert sum(op.count for op in HADAMARD.ops(HADAMARD.params(points=64), M=1, K=64) if op.kind == "add") == 64 * 6


@pytest.mark.parametrize("lanes", [1, 4, 32])
def test_a_folded_block_takes_its_butterflies_over_the_lanes(lanes):
    """192 butterflies of 64 points; the values leave 2 lanes a cycle, the last block's after its butterflies."""
    p = HADAMARD.params(points=64, lanes=lanes)
    one, ten = (HADAMARD.timing(p, M=m, K=64).total_cycles for m in (1, 10))
    assert ten - one == 9 * 192 // lanes
    assert one == 192 // lanes + 32 // lanes


def test_folding_a_size_beside_a_power_of_two_adds_the_cycles_in_which_nothing_enters():
    p = HADAMARD.params(points=384, lanes=8)
    one, two = (HADAMARD.timing(p, M=m, K=384).total_cycles for m in (1, 2))
    assert two - one == 24 * 5 + 22  # 24 beats a block, 5 stages, 11 twelfths of 24 beats
    assert one == 24 * 5 + 24 + 4


@pytest.mark.parametrize("points, adds", [(12, 12 + 24 + 24), (20, 20 + 40 + 40 + 20 + 20)])
def test_rows_share_the_sums_that_they_have_alike(points, adds):
    """Two sums of each pair and eight of each four, up to a sign; all rows' of each eight, and so on."""
    counted = sum(op.count for op in HADAMARD.ops(HADAMARD.params(points=points), M=1, K=points) if op.kind == "add")
    assert counted == adds


@pytest.mark.parametrize("preset", HADAMARD.presets)
def test_random_operands_reach_the_most_negative_output(preset):
    p = HADAMARD.preset(preset)
    least = min(int(HADAMARD.golden(p, *HADAMARD.sample(p, np.random.default_rng(i))).min()) for i in range(80))
    assert least <= -(p.points << (p.in_bits - 1)) + p.points * (p.signs > 0 or p.order > 1)


def broken(monkeypatch, name, wrong):
    monkeypatch.setattr(rtl.hadamard, name, wrong)
    return verify(HADAMARD.preset("folded"), cases=6, seed=1).findings


def test_a_pair_in_the_wrong_order_or_place_is_found(monkeypatch):
    honest = rtl.hadamard._folds
    assert broken(monkeypatch, "_folds", lambda p, word: honest(p, word[:-1]))


def test_a_missing_sign_is_found(monkeypatch):
    assert broken(monkeypatch, "_swapped", lambda *_: False)


def test_a_flipped_sign_of_one_row_is_found(monkeypatch):
    honest = rtl.hadamard._flip
    monkeypatch.setattr(rtl.hadamard, "_flip", lambda p, row, a, b: honest(p, row, a, b) ^ (row == 7 if a == 4 else 0))
    assert verify(HADAMARD.preset("folded-paley"), cases=4, seed=1).findings
