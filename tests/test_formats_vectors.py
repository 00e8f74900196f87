"""Twin-log, codebook and lattice formats against their definitions by hand, brute force and lattice theory."""

import itertools
import math
import re

import numpy as np
import pytest

from models.formats import get_format
from models.formats_codebook import BASES, e8_basis
from models.formats_twinlog import ETAS, PERCENTILES
from models.unit import InputError


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def squared_error(q, x):
    return ((q.dequantize() - x) ** 2).sum()


# ---------------------------------------------------------------------------------------------------- twin-log


def half_by_hand(magnitudes, eta, percentile, n):
    """Levels of one sign: uniform in log2(|w| + eta) from the smallest to the percentile's entry."""
    ascending = sorted(m for m in magnitudes if m + eta > 0)
    if not ascending:
        return [math.nan] * n
    low = math.log2(ascending[0] + eta)
    rank = sorted(magnitudes)[round(percentile * (len(magnitudes) - 1))]
    high = math.log2(max(rank, ascending[0]) + eta)
    return [2 ** (low + i * (high - low) / (n - 1)) - eta for i in range(n)]


def twinlog_by_hand(group, bits):
    """The least squared error of all etas and pairs of percentiles, value by value, and the values."""
    n, amax = 1 << (bits - 1), np.abs(group).max()
    w = (group / amax).tolist()
    signs = [[abs(v) for v in w if v >= 0], [abs(v) for v in w if v < 0]]
    best = (math.inf, None)
    for eta, *percentiles in itertools.product(ETAS, PERCENTILES, PERCENTILES):
        levels = [half_by_hand(m, eta, p, n) if m else None for m, p in zip(signs, percentiles, strict=True)]
        values = [math.copysign(chosen(abs(v), levels[v < 0], eta), v) for v in w]
        error = sum((a - b) ** 2 for a, b in zip(values, w, strict=True))
        if error < best[0] - 1e-15:
            best = (error, np.array(values) * amax)
    return best


def chosen(magnitude, levels, eta):
    """The level nearest in the log domain, by index of the rounded quotient."""
    low, high = math.log2(levels[0] + eta), math.log2(levels[-1] + eta)
    if magnitude + eta == 0 or high == low:
        return levels[0]
    index = round((math.log2(magnitude + eta) - low) / (high - low) * (len(levels) - 1))
    return levels[min(max(index, 0), len(levels) - 1)]


@pytest.mark.parametrize("bits", [2, 4])
def test_twinlog_is_the_best_of_the_grid(bits):
    x = np.random.default_rng(8).standard_t(3, size=(4, 40)) + 0.2
    x[1, :5] = 0.0
    x[2] = -np.abs(x[2])
    q = get_format("twinlog", bits=bits).quantize(x)
    for row, group in enumerate(x):
        error, values = twinlog_by_hand(group, bits)
        ours = (((q.dequantize()[row] - group) / np.abs(group).max()) ** 2).sum()
        assert ours == pytest.approx(error, rel=1e-9)
        assert np.allclose(q.dequantize()[row], values, rtol=1e-9, atol=1e-12)


def test_entries_of_the_other_sign_are_masked_out():
    """With magnitudes of one sign all near 1 and of the other near 0.01, each sign's levels stay in its own range."""
    x = np.concatenate([np.linspace(0.9, 1.0, 40), -np.linspace(0.009, 0.01, 40)])
    q = get_format("twinlog").quantize(x)
    positive, negative = q.tables[0, :8], q.tables[0, 8:]
    assert positive.min() > 0.89
    assert -0.0101 < negative.min() <= negative.max() < -0.0089
    assert np.abs(q.dequantize() - x).max() < 0.01


def test_twinlog_values_are_their_codes_levels_and_signs_match():
    x = normal(3, 64, 5)
    q = get_format("twinlog", bits=3, group=16).quantize(x, axis=1)
    assert q.tables.shape == (3, 4, 5, 8)
    assert (q.codes.min(), q.codes.max()) == (0, 7)
    for place in np.ndindex(3, 64, 5):
        i, k, j = place
        assert q.dequantize()[place] == q.tables[i, k // 16, j, q.codes[place]]
    assert np.array_equal(q.codes >= 4, x < 0)
    assert (np.diff(q.tables[..., :4], axis=-1) >= 0).all()
    assert q.bits_per_value == 3 + 5 * 16 / 16


def test_twinlog_round_trip_of_every_code():
    """Evenly spaced logarithms come back exactly: eta = 0 and the whole range are in the grid."""
    levels = 2.0 ** -np.arange(7.0, -1.0, -1.0)
    x = np.concatenate([levels, -levels * 0.75])
    q = get_format("twinlog").quantize(x)
    assert q.codes.tolist() == list(range(16))
    assert np.allclose(q.dequantize(), x, rtol=1e-14)


def test_twinlog_beats_uniform_on_long_tails():
    x = np.random.default_rng(2).laplace(size=(16, 512))
    assert squared_error(get_format("twinlog").quantize(x), x) < squared_error(get_format("int4").quantize(x), x)


# ---------------------------------------------------------------------------------------------------- codebooks


def test_codes_are_the_nearest_code_vectors():
    x = normal(24, 3)
    q = get_format("codebook", dim=3, entries=16, group=12).quantize(x, axis=0)
    scale = np.sqrt((x.reshape(2, 12, 3) ** 2).mean(axis=1))
    assert np.allclose(q.scales, scale, rtol=1e-14)
    vectors = (x / np.repeat(scale, 12, axis=0)).T.reshape(3, 8, 3)
    for j, v in np.ndindex(3, 8):
        distances = ((q.tables - vectors[j, v]) ** 2).sum(axis=1)
        index = q.codes[3 * v : 3 * v + 3, j]
        assert len(set(index.tolist())) == 1
        assert distances[index[0]] == pytest.approx(distances.min(), abs=1e-12)
        expected = q.tables[index[0]] * q.scales[v // 4, j]
        assert np.array_equal(q.dequantize()[3 * v : 3 * v + 3, j], expected)


def test_code_vectors_are_the_means_of_their_cells():
    x = normal(40, 40)
    q = get_format("codebook", dim=2, entries=8, rounds=1000).quantize(x)
    vectors, index = (x / q.scales).reshape(-1, 2), q.codes[:, ::2].ravel()
    for entry in range(8):
        assert np.allclose(q.tables[entry], vectors[index == entry].mean(axis=0), rtol=1e-12)


def test_more_rounds_never_grow_a_codebooks_error():
    x = np.random.default_rng(3).standard_t(4, size=(32, 64))
    formats = [get_format("codebook", entries=32, rounds=r) for r in (0, 1, 3, 10, 50)]
    errors = [
        ((q.dequantize() - x) / q.scales).ravel() @ ((q.dequantize() - x) / q.scales).ravel()
        for q in (f.quantize(x) for f in formats)
    ]
    assert (np.diff(errors) <= 1e-9).all()
    assert errors[-1] < 0.9 * errors[0]


def test_one_code_vector_for_each_different_vector_is_exact():
    levels = np.array([-1.5, -0.5, 0.5, 1.5])
    x = np.tile(levels, (6, 8))
    q = get_format("codebook", dim=1, entries=4).quantize(x)
    assert np.allclose(q.dequantize(), x, rtol=1e-14)
    assert sorted(np.unique(q.codes)) == [0, 1, 2, 3]
    assert get_format("codebook", dim=1, entries=64).quantize(x).dequantize() == pytest.approx(x, rel=1e-14)


def test_scalars_reach_the_optimal_quantizer_of_a_normal():
    """Max, "Quantizing for Minimum Distortion", 1960: 8 levels, 0.03454 of the variance; k-means comes within 3 %."""
    x = normal(1, 40000, seed=4)
    q = get_format("codebook", dim=1, entries=8, rounds=300, samples=40000).quantize(x)
    assert squared_error(q, x) / x.size == pytest.approx(0.03454, rel=0.03)


def test_weights_draw_code_vectors_to_what_matters():
    x = np.random.default_rng(3).standard_t(4, size=(64, 32))
    weights = np.where(np.arange(32) < 8, 100.0, 1.0)
    plain, weighted = (get_format("codebook", dim=2, entries=16, weights=w).quantize(x) for w in (None, weights))
    heavy = [(((q.dequantize() - x)[:, :8]) ** 2).sum() for q in (plain, weighted)]
    assert heavy[1] < 0.9 * heavy[0]
    same = get_format("codebook", dim=2, entries=16, weights=np.full(32, 7.0)).quantize(x)
    assert np.array_equal(same.codes, plain.codes)


def test_the_seed_decides_the_codebook():
    x = normal(16, 64)
    codes = [get_format("codebook", entries=16, rounds=2, rng=seed).quantize(x).codes for seed in (1, 1, 2)]
    assert np.array_equal(codes[0], codes[1])
    assert not np.array_equal(codes[0], codes[2])


def test_bits_of_a_codebook():
    q = get_format("codebook", dim=4, entries=256, rounds=1).quantize(normal(16, 64))
    assert q.bits_per_value == 8 / 4 + (16 * 16 + 16 * 256 * 4) / 1024
    assert get_format("codebook", entries=100).bits == 7


# ------------------------------------------------------------------------------------------------------ lattices


def test_bases_are_the_lattices_of_the_books():
    """Conway and Sloane, ch. 4: even lattices of Gram determinant 1 and 4 with 240 and 24 shortest vectors, norm 2."""
    for name, dim, determinant, kissing in (("e8", 8, 1.0, 240), ("d4", 4, 4.0, 24)):
        basis = BASES[name](dim)
        gram = basis.T @ basis
        assert np.array_equal(gram, np.rint(gram))
        assert np.array_equal(np.diag(gram), np.full(dim, 2.0))
        assert np.linalg.det(gram) == pytest.approx(determinant)
        found, frontier = set(), {tuple(row) for row in np.eye(dim, dtype=int)}
        while frontier:
            found |= frontier
            grown = np.array(
                [np.add(z, sign * step) for z in frontier for step in np.eye(dim, dtype=int) for sign in (1, -1)]
            )
            short = grown[np.einsum("ni,ij,nj->n", grown, gram, grown) == 2]
            frontier = {tuple(z) for z in short.tolist()} - found
        assert len(found | {tuple(-v for v in z) for z in found}) == kissing
    assert np.array_equal(np.diag(np.linalg.inv(BASES["e8"](8).T @ BASES["e8"](8))).round(9), np.full(8, 2.0))
    assert np.array_equal(BASES["integer"](3), np.eye(3))


@pytest.mark.parametrize(
    "options", [{}, {"basis": "e8", "rounds": 0}, {"basis": "d4", "dim": 4, "bits": 3}, {"group": 16}]
)
def test_codes_are_babais_rounding_and_values_whole_combinations(options):
    x = normal(32, 6)
    q = get_format("lattice", **options).quantize(x, axis=0)
    bits, dim, group = q.format.bits, q.format.dim, q.group
    assert q.tables.shape == (32 // group, dim, dim)
    for j, v in np.ndindex(6, 32 // dim):
        place = slice(v * dim, (v + 1) * dim)
        basis = q.tables[v * dim // group]
        z = np.clip(np.rint(np.linalg.solve(basis, x[place, j])), -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        assert np.array_equal(q.codes[place, j], z)
        assert np.allclose(q.dequantize()[place, j], basis @ z, rtol=0, atol=1e-12)
    assert q.bits_per_value == (bits * x.size + 16 * (q.tables.size if q.format.rounds else len(q.tables))) / x.size


def test_a_fixed_lattice_is_a_multiple_of_its_basis():
    q = get_format("lattice", basis="e8", rounds=0).quantize(normal(16, 64))
    ratio = q.tables[0] / np.where(e8_basis(8) == 0, np.inf, e8_basis(8))
    found = ratio[e8_basis(8) != 0]
    assert np.allclose(found, found[0], rtol=1e-14)
    assert found[0] > 0


@pytest.mark.parametrize("bits, dim", [(2, 2), (2, 8), (3, 8)])
def test_rounds_of_least_squares_never_grow_the_error(bits, dim):
    """With 2 bits and Babai's rounding the alternation alone would: not all of its steps are kept."""
    rng = np.random.default_rng(1)
    x = rng.standard_t(4, size=(64, 64)) @ rng.normal(size=(64, 64))
    formats = [get_format("lattice", bits=bits, dim=dim, rounds=r) for r in range(12)]
    errors = [squared_error(f.quantize(x), x) for f in formats]
    assert (np.diff(errors) <= 0).all()
    assert errors[-1] < errors[0]


def test_a_learned_basis_follows_correlated_values():
    """Pairs on a narrow ellipse: whole combinations of two learned vectors beat the square grid of the same bits."""
    x = (normal(2000, 2) * np.array([1.0, 0.05])) @ np.array([[1.0, 1.0], [-1.0, 1.0]])
    learned, square = (get_format("lattice", dim=2, bits=4, rounds=r).quantize(x.reshape(20, -1)) for r in (50, 0))
    flat = x.reshape(20, -1)
    assert squared_error(learned, flat) < squared_error(square, flat)


def test_every_code_of_a_lattice_survives_with_its_basis():
    z = np.array(list(itertools.product(range(-4, 4), repeat=2)))
    x = (z @ np.array([[2.0, 1.0], [0.0, 1.5]]).T).reshape(1, -1)
    q = get_format("lattice", dim=2, bits=3, rounds=50).quantize(x)
    again = np.rint(np.linalg.solve(q.tables[0], q.dequantize().reshape(-1, 2).T)).T.ravel()
    assert np.array_equal(again, q.codes.ravel())


def test_groups_have_their_own_bases():
    x = normal(8, 64)
    x[:, 32:] *= 100
    y = x.copy()
    y[:, :32] = normal(8, 32, seed=9)
    before, after = (get_format("lattice", group=32).quantize(v) for v in (x, y))
    assert np.array_equal(before.tables[1], after.tables[1])
    assert np.array_equal(before.codes[:, 32:], after.codes[:, 32:])
    assert not np.array_equal(before.tables[0], after.tables[0])


# -------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name, options", [("twinlog", {}), ("codebook", {"entries": 16}), ("lattice", {"bits": 3})])
def test_layout_zeros_and_magnitude(name, options):
    x = normal(6, 32)
    along = get_format(name, **options).quantize(x, axis=1)
    down = get_format(name, **options).quantize(np.ascontiguousarray(x.T), axis=0)
    assert np.array_equal(along.codes, down.codes.T)
    assert np.array_equal(along.dequantize(), down.dequantize().T)
    for power in (300, -300):
        large = get_format(name, **options).quantize(np.ldexp(x, power))
        assert np.array_equal(large.codes, along.codes)
        assert np.array_equal(large.dequantize(), np.ldexp(along.dequantize(), power))
    assert not get_format(name, **options).quantize(np.zeros((2, 32))).dequantize().any()
    assert np.isfinite(get_format(name, **options).quantize(np.full((2, 32), 5e-324)).dequantize()).all()
    x[0] = 0.0
    assert not get_format("codebook", entries=16).quantize(x).dequantize()[0].any()


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("twinlog", {"bits": 1}, "twinlog: bits=1 must be a whole number from 2 to 8"),
        ("twinlog", {"group": 0}, "group=0"),
        ("codebook", {"dim": 0}, "codebook: dim=0 must be a whole number from 1 to 64"),
        ("codebook", {"entries": 5000}, "codebook: entries=5000 must be a whole number from 2 to 4096"),
        ("codebook", {"rng": None}, "codebook: rng=None must be a seed"),
        ("codebook", {"weights": [1.0, -1.0]}, "codebook: weights must be positive numbers"),
        ("codebook", {"weights": "abc"}, "codebook: weights must be positive numbers"),
        ("lattice", {"bits": 1}, "lattice: bits=1 must be"),
        ("lattice", {"basis": "d8"}, "lattice: basis='d8'; one of: d4, e8, integer"),
        ("lattice", {"basis": "e8", "dim": 4}, "lattice: basis='e8' has dim=8, not 4"),
        ("lattice", {"basis": "d4"}, "lattice: basis='d4' has dim=4, not 8"),
    ],
)
def test_options_that_make_no_format_are_refused(name, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        get_format(name, **options)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("codebook", {"dim": 3}, "codebook: dim=3 is no divisor of the group; quantize: group=3 does not divide"),
        ("codebook", {"weights": [1.0] * 8}, "codebook: 8 weights for an axis of 10 values"),
        ("lattice", {}, "lattice: dim=8 is no divisor of the group"),
        ("twinlog", {"group": 4}, "group=4 does not divide the axis of 10 values; nearest: 2 or 5"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        get_format(name, **options).quantize(np.ones((3, 10)))
