"""What is built on the Walsh-Hadamard transform, against explicit matrices and the bounds of its theory."""

import numpy as np
import pytest
from scipy.linalg import hadamard

from hwsim.transforms.fwht import FWHT_BLOCK, fwht, fwht_transposed
from hwsim.transforms.fwht_kernels import WIDTH
from hwsim.transforms.gradients import lbp_wht, low_sequency_bases
from hwsim.transforms.sparse_wht import qwha, spright, srht
from models.unit import InputError

# ------------------------------------------------------------------------------------------------- FWHT


def butterflies(x, axis, strides=lambda n: [1 << k for k in range(n.bit_length() - 1)]):
    """Stage by stage in numpy: (a, b) -> (a + b, a - b) of values one stride apart, stride 1 first."""
    y = np.moveaxis(x, axis, -1)
    turned, n = y.shape, y.shape[-1]
    for h in strides(n):
        y = y.reshape(-1, n // (2 * h), 2, h)
        y = np.stack([y[:, :, 0] + y[:, :, 1], y[:, :, 0] - y[:, :, 1]], axis=2)
    return np.moveaxis(y.reshape(turned), -1, axis)


LAYOUTS = [
    *(((n, WIDTH + 8), 0) for n in (2, 4, 8, 16, 32, 64, 128, 256, 512)),  # every remainder of a tile, two panels
    *(((2, 64, inner), 1) for inner in (1, 2, 3, 4, 7, 8, 13, 15, 16, 17, WIDTH - 1, WIDTH, WIDTH + 1)),
    *(((5, 1 << k), -1) for k in (1, 2, 3, 4, 5, 6, 9, 12, 14)),
    ((2, 2 * FWHT_BLOCK), 1),
    ((2, FWHT_BLOCK // 4, 13), 1),
    ((2, 3, 256, 5), 2),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape, axis", LAYOUTS)
def test_additions_are_rounded_in_the_order_of_the_butterflies_in_any_layout(shape, axis, dtype):
    x = np.random.default_rng(10).normal(size=shape).astype(dtype)
    before = x.copy()
    assert np.array_equal(fwht(x, axis), butterflies(x, axis))
    assert np.array_equal(x, before)


def test_another_order_of_the_stages_is_told_apart():
    x = np.random.default_rng(11).normal(size=(8, 4096)).astype(np.float32)
    backwards = butterflies(x, 1, lambda n: [n >> k for k in range(1, n.bit_length())])
    assert np.allclose(fwht(x), backwards, rtol=0, atol=1e-3)
    assert not np.array_equal(fwht(x), backwards)


@pytest.mark.parametrize("shape, axis", [((3, 256, 5), 1), ((4, 1024, 3), 1), ((128, 2, 9), 0), ((2, 512, 100), 1)])
def test_integers_along_an_axis_with_little_behind_it_meet_the_matrix(shape, axis):
    x = np.random.default_rng(12).integers(-(1 << 40), 1 << 40, shape)
    H = hadamard(shape[axis], dtype=np.int64)
    assert np.array_equal(fwht(x, axis), np.moveaxis(np.moveaxis(x, axis, -1) @ H, -1, axis))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape, axis", [((4, 128, 3), 1), ((2, 24), -1), ((12, 5), 0), ((64, 700), 0), ((3, 1), 1)])
def test_what_is_not_finite_is_refused_wherever_it_is(shape, axis, bad):
    for place in (0, -1, 7):
        x = np.ones(shape)
        x.reshape(-1)[place % x.size] = bad
        for use in (fwht, fwht_transposed):
            with pytest.raises(InputError, match="fwht: the values are not all finite"):
                use(x, axis)


def test_sums_that_leave_the_type_are_no_fault_of_the_input():
    assert np.isinf(fwht(np.full(4, 3e38, dtype=np.float32))).any()


# ------------------------------------------------------------------------------------------------- SRHT


def test_a_projection_of_all_rows_is_a_rotation():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(5, 48))
    y = srht(x, 48, seed=4)
    assert np.allclose(y @ y.T, x @ x.T, rtol=0, atol=1e-10)
    P = srht(np.eye(48), 48, seed=4)
    assert np.allclose(P @ P.T, np.eye(48), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "one channel"])
def test_lengths_stay_within_the_bound(kind):
    """2 exp(-2 rows e^2 / b^2) by Hoeffding: a basis vector has b = 1, that is, it keeps its length exactly."""
    n, rows, draws = 256, 64, 400
    x = np.random.default_rng(2).normal(size=n) if kind == "dense" else np.eye(n)[17]
    lengths = np.array([np.sum(srht(x, rows, seed=s) ** 2) for s in range(draws)]) / np.sum(x**2)
    assert abs(lengths.mean() - 1) < 4 * lengths.std() / np.sqrt(draws) + 1e-12
    if kind == "one channel":
        assert np.allclose(lengths, 1, rtol=0, atol=1e-12)
        return
    transformed = [n * np.max(srht(x, n, seed=s) ** 2) / np.sum(x**2) for s in range(draws)]
    bound = max(transformed)
    assert bound <= 2 * np.log(2 * n * draws / 0.01)
    for e in (0.5, 1.0):
        assert np.mean(np.abs(lengths - 1) > e) <= 2 * np.exp(-2 * rows * e**2 / bound**2)
    assert lengths.std() > 0.05


@pytest.mark.parametrize(
    "x, rows, seed, message",
    [
        (np.ones(256), 257, 1, r"rows=257 is outside 1\.\.256"),
        (np.ones(256), 0, 1, "rows=0 must be a whole number from 1"),
        (np.ones(256), "4", 1, "rows='4' must be a whole number from 1"),
        (np.ones(256), 4.0, 1, "rows=4.0 must be a whole number from 1"),
        (np.ones(256), 4, -1, "seed=-1 must be a whole number from 0"),
        (np.ones(11), 4, 1, "11 is no order"),
        (np.ones(()), 1, 1, "a scalar has no axis"),
        (np.array([1.0, np.nan]), 1, 1, "srht: x is not finite everywhere"),
        (np.array([1.0, -np.inf]), 1, 1, "srht: x is not finite everywhere"),
    ],
)
def test_projections_that_do_not_fit_are_refused(x, rows, seed, message):
    with pytest.raises(InputError, match=message):
        srht(x, rows, seed=seed)


# ---------------------------------------------------------------------------------------------- LBP-WHT


def test_bases_are_the_2d_transform_in_order_of_sequency():
    P = low_sequency_bases(8, 64)
    assert np.allclose(P @ P.T, np.eye(64), rtol=0, atol=1e-12)
    changes = [
        (np.diff(np.sign(b.reshape(8, 8)[:, 0])) != 0).sum() + (np.diff(np.sign(b.reshape(8, 8)[0])) != 0).sum()
        for b in P
    ]
    assert changes == sorted(changes)
    assert set(np.unique(np.rint(8 * P))) == {-1, 1}
    assert {tuple(row) for row in np.rint(8 * P)} == {tuple(row) for row in np.kron(hadamard(8), hadamard(8))}


def test_all_bases_give_the_exact_gradients_and_few_those_of_smooth_patches():
    rng = np.random.default_rng(3)
    x, grad_y, W = rng.normal(size=(4, 64, 6)), rng.normal(size=(4, 64, 5)), rng.normal(size=(6, 5))
    grad_x, grad_W = lbp_wht(x, grad_y, W, rank=64)
    assert np.allclose(grad_x, grad_y @ W.T, rtol=0, atol=1e-12)
    assert np.allclose(grad_W, np.einsum("ptk,ptn->kn", x, grad_y), rtol=0, atol=1e-12)
    low = low_sequency_bases(8, 10)
    smooth = low.T @ rng.normal(size=(4, 10, 5))
    grad_x, grad_W = lbp_wht(x, smooth, W, rank=10)
    assert np.allclose(grad_x, smooth @ W.T, rtol=0, atol=1e-12)
    assert np.allclose(grad_W, np.einsum("ptk,ptn->kn", x, smooth), rtol=0, atol=1e-12)
    assert np.abs(lbp_wht(x, grad_y, W, rank=10)[0] - grad_y @ W.T).max() > 0.1


def test_patches_and_ranks_that_do_not_fit_are_refused():
    x = np.zeros((2, 64, 3))
    with pytest.raises(InputError, match=r"rank=65 is outside 1\.\.64"):
        lbp_wht(x, x, np.zeros((3, 3)), rank=65)
    with pytest.raises(InputError, match="not patches of 16 tokens"):
        lbp_wht(x, x, np.zeros((3, 3)), side=4)
    with pytest.raises(InputError, match=r"W \(4, 3\) does not fit x and grad_y; \(3, 3\) is needed"):
        lbp_wht(x, x, np.zeros((4, 3)))
    with pytest.raises(InputError, match=r"W \(3,\) does not fit"):
        lbp_wht(x, x, np.zeros(3))


@pytest.mark.parametrize(
    "side, rank, message",
    [
        (6, 3, "side 6 is not a power of two"),
        ("8", 3, "side='8' must be a whole number from 1"),
        (128, 3, "side=128 is above 64"),
        (8, "3", "rank='3' must be a whole number from 1"),
        (8, [3], r"rank=\[3\] must be a whole number from 1"),
        (8, 2.5, "rank=2.5 must be a whole number from 1"),
        (8, 0, "rank=0 must be a whole number from 1"),
    ],
)
def test_bases_that_do_not_exist_are_refused(side, rank, message):
    with pytest.raises(InputError, match=message):
        low_sequency_bases(side, rank)


# ------------------------------------------------------------------------------------------------- QWHA


def test_an_error_that_is_sparse_in_the_transform_is_undone():
    rng = np.random.default_rng(4)
    F = np.zeros((24, 5))
    for n in range(5):
        F[rng.choice(24, 3, replace=False), n] = rng.choice([-1, 1], 3) * (1 + rng.random())
    H = fwht(np.eye(24), axis=0) / np.sqrt(24)
    error, X = H.T @ F, rng.normal(size=(100, 24))
    adapter = qwha(error, X, 24 * 5)
    assert np.allclose(adapter.dense(), error, rtol=0, atol=1e-10)
    lone = qwha(error[:, :1], X, 3)
    assert np.array_equal(lone.indices[0], np.flatnonzero(F[:, 0]))
    assert np.allclose(lone.dense(), error[:, :1], rtol=0, atol=1e-10)


def test_refined_values_are_least_squares_and_better_than_the_coefficients_themselves():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(60, 16)) @ rng.normal(size=(16, 16))
    error = rng.normal(size=(16, 4)) * np.array([1, 2, 4, 8.0])
    adapter = qwha(error, X, 20)
    counts = [len(at) for at in adapter.indices]
    assert sum(counts) == 20
    assert counts == sorted(counts)
    H = hadamard(16) / 4.0
    for n, at in enumerate(adapter.indices):
        C = H @ error[:, n]
        assert set(at) == set(np.argsort(-np.abs(C))[: len(at)])
        A = X @ H.T[:, at]
        assert np.allclose(A.T @ (A @ adapter.values[n] - X @ error[:, n]), 0, atol=1e-8)
        plain = np.linalg.norm(X @ error[:, n] - A @ C[at])
        assert np.linalg.norm(X @ error[:, n] - A @ adapter.values[n]) <= plain + 1e-12


def test_budgets_at_their_ends():
    rng = np.random.default_rng(6)
    error, X = rng.normal(size=(8, 3)), rng.normal(size=(20, 8))
    assert np.array_equal(qwha(error, X, 0).dense(), np.zeros((8, 3)))
    assert [len(at) for at in qwha(np.zeros((8, 3)), X, 7).indices] == [3, 2, 2]
    with pytest.raises(InputError, match=r"budget=25 is outside 0\.\.24"):
        qwha(error, X, 25)
    with pytest.raises(InputError, match="do not fit an error of 8 rows"):
        qwha(error, X[:, :5], 3)
    with pytest.raises(InputError, match="budget='3' must be a whole number from 0"):
        qwha(error, X, "3")
    with pytest.raises(InputError, match="the error is not finite everywhere"):
        qwha(np.full((8, 3), np.nan), X, 3)
    with pytest.raises(InputError, match="the input is not finite everywhere"):
        qwha(error, np.full((20, 8), np.inf), 3)
    with pytest.raises(InputError, match=r"an error of shape \(3,\)"):
        qwha(np.zeros(3), X, 3)


# ---------------------------------------------------------------------------------------------- SPRIGHT


@pytest.mark.parametrize("bits, sparsity, bins", [(6, 3, 4), (12, 20, 5), (14, 60, 7)])
@pytest.mark.parametrize("seed", range(3))
def test_a_sparse_spectrum_is_found_from_few_samples(bits, sparsity, bins, seed):
    rng = np.random.default_rng(seed)
    F = np.zeros(1 << bits)
    F[rng.choice(1 << bits, sparsity, replace=False)] = rng.normal(size=sparsity) * 3 + 0.1
    f, asked = fwht(F), []

    def samples(x):
        asked.append(x.size)
        return f[x]

    found = spright(samples, bits, bins=bins, seed=seed)
    assert sorted(found) == sorted(np.flatnonzero(F))
    assert np.allclose(list(found.values()), F[sorted(found)], rtol=1e-9)
    assert sum(asked) == 3 * (bits + 1) << bins
    assert np.allclose(fwht(f) / (1 << bits), F, rtol=0, atol=1e-9)


def test_equal_values_that_look_like_one_are_told_apart_or_refused():
    F = np.zeros(1 << 8)
    F[[3, 77, 130, 131, 200, 201, 202]] = 1.0
    found = spright(lambda x: fwht(F)[x], 8, bins=6, seed=2)
    assert {k: round(v, 9) for k, v in found.items()} == dict.fromkeys((3, 77, 130, 131, 200, 201, 202), 1.0)


def test_a_dense_spectrum_is_refused():
    f = np.random.default_rng(7).normal(size=1 << 8)
    with pytest.raises(InputError, match="give more bins"):
        spright(lambda x: f[x], 8, bins=3)
    with pytest.raises(InputError, match="bins=9 and bits=8"):
        spright(lambda x: f[x], 8, bins=9)
    assert spright(lambda x: np.zeros(x.shape), 8, bins=2) == {}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bins": "2"}, "bins='2' must be a whole number from 1"),
        ({"bins": 2, "groups": 0}, "groups=0 must be a whole number from 1"),
        ({"bins": 2, "seed": -1}, "seed=-1 must be a whole number from 0"),
        ({"bins": 2}, "the function is not finite everywhere"),
    ],
)
def test_spectra_that_cannot_be_sought_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        spright(lambda x: np.full(x.shape, np.nan), 8, **options)
