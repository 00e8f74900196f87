"""The transform unit against scipy's Hadamard matrix."""

import numpy as np
import pytest
from scipy.linalg import hadamard

from models.catalog import unit
from models.unit import InputError

HADAMARD = unit("hadamard")


@pytest.mark.parametrize("points", [2, 4, 8, 64, 256])
def test_all_basis_vectors_give_the_columns_of_h(points):
    p = HADAMARD.params(points=points)
    assert (HADAMARD.golden(p, np.eye(points, dtype=np.int64)) == hadamard(points)).all()


@pytest.mark.parametrize("points, in_bits", [(2, 2), (8, 8), (64, 12)])
def test_random_signs_and_corners_equal_the_matrix_and_fit_the_width(points, in_bits):
    rng = np.random.default_rng(points)
    low = -(1 << (in_bits - 1))
    for _ in range(20):
        signs = int(rng.integers(0, 1 << min(points, 60))) & ~1
        p = HADAMARD.params(points=points, in_bits=in_bits, signs=signs)
        d = np.array([1 - 2 * (signs >> i & 1) for i in range(points)])
        x = rng.integers(low, -low, (9, 3 * points))
        x[0] = low
        x[1, :points] = np.where(d > 0, low, -low - 1)  # the largest magnitudes
        x[2, :points] = np.where(d > 0, -low - 1, low)
        want = (x.reshape(-1, points) * d @ hadamard(points)).reshape(x.shape)
        assert (HADAMARD.golden(p, x) == want).all()
        assert want.min() >= -(1 << (p.out_bits - 1))
        assert want.max() <= (1 << (p.out_bits - 1)) - 1


def test_one_bit_less_would_overflow():
    p = HADAMARD.params(points=8, in_bits=4)
    y = HADAMARD.golden(p, np.full((1, 8), -8))
    assert y.min() == -(1 << (p.out_bits - 1))


def test_a_sign_on_the_first_input_is_refused():
    with pytest.raises(InputError, match="signs must be a mask of 4 bits with bit 0 clear, not 1"):
        HADAMARD.params(points=4, signs=1)
    with pytest.raises(InputError, match="points must be a power of two, not 12; nearest below: 8"):
        HADAMARD.params(points=12)
    with pytest.raises(InputError, match="K must be a multiple of 16 points"):
        HADAMARD.golden(HADAMARD.params(), np.zeros((1, 24), dtype=np.int64))


def test_timing_is_one_block_a_cycle():
    t = HADAMARD.timing(HADAMARD.params(points=64), M=10, K=128)
    assert t.total_cycles == 20 + 6
    assert sum(op.count for op in HADAMARD.ops(HADAMARD.params(points=64), M=1, K=64) if op.kind == "add") == 64 * 6


@pytest.mark.parametrize("preset", HADAMARD.presets)
def test_random_operands_reach_the_most_negative_output(preset):
    p = HADAMARD.preset(preset)
    least = min(int(HADAMARD.golden(p, *HADAMARD.sample(p, np.random.default_rng(i))).min()) for i in range(40))
    assert least == -(1 << (p.out_bits - 1)) or (p.signs and least <= -(1 << (p.out_bits - 1)) + p.points)
