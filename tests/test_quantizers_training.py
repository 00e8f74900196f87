"""Training-side quantizers: unbiasedness over many draws, exact splits, scale propagation bit for bit."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from scipy.linalg import hadamard

from hwsim.quantizers import gradients as g
from hwsim.quantizers import scalify as s
from models.formats import get_format
from models.unit import InputError


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def outliers(rows, columns, seed=1):
    """Few rows and channels carry most of it."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, columns)) * rng.lognormal(0, 1.5, size=(rows, 1)) * rng.lognormal(0, 1, size=columns)


def assert_unbiased(draw, expected, draws=1500):
    """The mean over draws lies within five standard errors of what is expected, and the draws do differ."""
    found = np.stack([draw(np.random.default_rng(seed)) for seed in range(draws)])
    spread = found.std(axis=0) / np.sqrt(draws)
    assert (np.abs(found.mean(axis=0) - expected) <= 5 * spread + 1e-9 * np.abs(expected).max()).all()
    assert found.std(axis=0).max() > 0


# ------------------------------------------------------------------------------------------ INT4, forward


@pytest.mark.parametrize("axis", [0, 1])
def test_block_hadamard_is_scipys_matrix_block_by_block(axis):
    x = normal(32, 32)
    matrix = np.kron(np.eye(4), hadamard(8)) / np.sqrt(8)
    assert np.allclose(g.block_hadamard(x, 8, axis), matrix @ x if axis == 0 else x @ matrix, atol=1e-12)


@pytest.mark.parametrize("points, text", [(6, "points 6 is not a power of two"), (64, "group=64 does not divide")])
def test_block_hadamard_refuses_other_sizes(points, text):
    with pytest.raises(InputError, match=text):
        g.block_hadamard(normal(2, 32), points)


def test_int4_equals_ml_dtypes_and_saturates():
    x = normal(1000) * 4
    assert np.array_equal(g.int4(x, 1.0), np.clip(np.rint(x), -8, 7).astype(ml_dtypes.int4).astype(int))
    assert list(g.int4(np.array([-100.0, 100.0, 0.5, 1.5]), 1.0)) == [-8, 7, 0, 2]
    assert g.lsq_step(np.zeros(3)) == 1.0
    assert g.lsq_step(np.array([7.0**0.5, -(7.0**0.5)])) == pytest.approx(2.0)


def test_hadamard_matmul_is_exact_on_what_int4_holds_and_helps_with_outliers():
    x, w = np.where(np.arange(64) == 5, 50.0, 1.0) * normal(40, 64), normal(64, 20, seed=2)
    error = {n: np.linalg.norm(g.hadamard_matmul(x, w, n) - x @ w) for n in (1, 64)}
    assert error[64] < 0.6 * error[1]
    steps = g.lsq_step(x), g.lsq_step(w)
    plain = (np.clip(np.rint(x / steps[0]), -8, 7) * steps[0]) @ (np.clip(np.rint(w / steps[1]), -8, 7) * steps[1])
    assert np.allclose(g.hadamard_matmul(x, w, 1), plain, rtol=1e-12)


def test_best_points_is_the_least_loss_of_all_sizes():
    x, w = np.where(np.arange(96) == 5, 50.0, 1.0) * normal(40, 96), normal(96, 20, seed=2)

    def loss(v):
        step = 2 * np.abs(v).mean() / 7**0.5
        return np.linalg.norm(v - np.clip(np.rint(v / step), -8, 7) * step)

    def both(n):
        H = np.kron(np.eye(96 // n), hadamard(n)) / np.sqrt(n)
        return loss(x @ H) * loss(H @ w)

    sizes = (1, 2, 4, 8, 16, 32)
    assert g.best_points(x, w) == min(sizes, key=both) > 1
    assert g.best_points(x, w, largest=4) == min(sizes[:3], key=both)


# ----------------------------------------------------------------------------------------- INT4, backward


def test_bits_split_into_two_int4_parts_that_add_up():
    gradient = outliers(30, 40)
    split = g.split_bits(gradient, np.random.default_rng(0))
    for part in (split.high, split.low):
        assert part.min() >= -8
        assert part.max() <= 7
    assert np.abs(split.value() - gradient).max() < split.step
    assert np.abs(split.value()).max() == pytest.approx(np.abs(gradient).max())
    every = np.arange(-119.0, 120.0)
    assert np.array_equal(g.split_bits(every, np.random.default_rng(0)).value(), every)
    assert not g.split_bits(np.zeros((2, 2)), np.random.default_rng(0)).value().any()


def test_split_gradients_are_unbiased():
    gradient = outliers(6, 5)
    assert_unbiased(lambda rng: g.split_bits(gradient, rng).value(), gradient)


def test_split_gradients_refuse_what_is_not_finite():
    with pytest.raises(InputError, match="nan at index"):
        g.split_bits(np.array([[1.0, np.nan]]), np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1, 3, 10, 29])
def test_probabilities_sum_to_the_budget_and_grow_with_the_scores(seed, budget):
    """The published clamp sums to less as soon as one score is large."""
    scores = np.random.default_rng(seed).lognormal(0, 2.5, size=30)
    p = g.keep_probabilities(scores, budget)
    assert p.sum() == pytest.approx(budget)
    assert (p <= 1).all()
    assert (p > 0).all()
    free = p < 1
    assert np.ptp(p[free] / scores[free]) <= 1e-9 * (p[free] / scores[free]).max()
    assert not free.any() or (scores[~free] >= scores[free].max()).all()
    clamped = np.minimum(1, budget * scores / scores.sum())
    assert clamped.sum() < budget - 1e-9 or np.allclose(clamped, p)


def test_probabilities_where_all_can_be_kept_and_where_scores_are_wrong():
    assert list(g.keep_probabilities(np.array([0.0, 1e-9, 5.0]), 2)) == [0, 1, 1]
    assert list(g.keep_probabilities(np.zeros(3), 2)) == [0, 0, 0]
    assert g.keep_probabilities(np.ones(8), 4) == pytest.approx(np.full(8, 0.5))
    with pytest.raises(InputError, match=r"score -1\.0 is negative"):
        g.keep_probabilities(np.array([1.0, -1.0]), 1)
    with pytest.raises(InputError, match="budget=0"):
        g.keep_probabilities(np.ones(3), 0)


def test_sampling_keeps_the_budget_on_average_and_is_unbiased():
    scores = np.random.default_rng(3).lognormal(0, 2, size=30)
    assert_unbiased(lambda rng: g.sampled(scores, 10, rng), np.ones(30))
    kept = [np.count_nonzero(g.sampled(scores, 10, np.random.default_rng(i))) for i in range(500)]
    assert np.mean(kept) == pytest.approx(10, abs=0.3)


@pytest.mark.parametrize("budget", [6, 12])
def test_int4_gradients_are_unbiased(budget):
    x, w, gradient = outliers(12, 5), normal(5, 4), outliers(12, 4, seed=3)
    assert_unbiased(lambda rng: g.int4_weight_gradient(x, gradient, budget, rng), x.T @ gradient)
    assert_unbiased(lambda rng: g.int4_input_gradient(gradient, w, budget, rng), gradient @ w.T)


def test_the_published_clamp_would_be_seen(monkeypatch):
    """Rows whose clamped probability is 1 weighed by what it was before: their share of the sum is lost."""

    def published(scores, budget, rng):
        p = budget * scores / scores.sum()
        return np.where(rng.random(len(p)) < p, 1 / np.maximum(p, 1e-9), 0)

    monkeypatch.setattr(g, "sampled", published)
    x, gradient = outliers(12, 5), outliers(12, 4, seed=3)
    with pytest.raises(AssertionError):
        assert_unbiased(lambda rng: g.int4_weight_gradient(x, gradient, 12, rng), x.T @ gradient)


def test_leverage_scores_beat_uniform_sampling():
    x, gradient = outliers(64, 8), outliers(64, 6, seed=3)

    def error(sampler):
        parts, rows = np.concatenate([gradient, gradient]) / 2, np.concatenate([x, x])
        scores = sampler(np.linalg.norm(parts, axis=1) * np.linalg.norm(rows, axis=1))
        draws = [rows.T @ (parts * g.sampled(scores, 32, np.random.default_rng(i))[:, None]) for i in range(50)]
        return np.mean([np.linalg.norm(d - x.T @ gradient) for d in draws])

    assert error(lambda scores: scores) < 0.6 * error(np.ones_like)


def probabilities(scores, budget):
    """min(1, c score) with c by bisection."""
    low, high = 0.0, budget / scores[scores > 0].min()
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if np.minimum(1.0, c * scores).sum() < budget else (low, c)
    return np.minimum(1.0, c * scores)


def exact_parts(rows, columns, seed):
    """A gradient of whole numbers to 119, whose split is exact, and the 2 M rows of its parts."""
    size = np.random.default_rng(seed).integers(1, 120, size=(rows, 1))
    gradient = np.round(size * np.random.default_rng(seed + 1).uniform(-1, 1, size=(rows, columns)))
    gradient[0, 0] = 119.0
    high = np.floor((gradient + 8) / 16)
    return gradient, np.concatenate([16 * high, gradient - 16 * high])


def assert_variance(draw, exact, p, squares, draws=2000):
    """Rows kept independently with probability p: E |estimate - sum|^2 is the sum of (1/p - 1) |row|^2."""
    kept = p > 0
    expected = ((1 / p[kept] - 1) * squares[kept]).sum()
    found = np.array([((draw(np.random.default_rng(seed)) - exact) ** 2).sum() for seed in range(draws)])
    assert abs(found.mean() - expected) <= 5 * found.std() / np.sqrt(draws)


@pytest.mark.parametrize("budget", [6, 14])
def test_the_variance_of_the_weight_gradient_is_that_of_leverage_scores(budget):
    """By |dY_i| |X_i|, against p by bisection; sampling by |dY_i| alone has another variance and is seen."""
    x, (gradient, parts) = outliers(12, 5), exact_parts(12, 4, seed=5)
    rows, sizes = np.linalg.norm(np.concatenate([x, x]), axis=1), np.linalg.norm(parts, axis=1)

    def check(scores):
        p, squares = probabilities(scores, budget), (rows * sizes) ** 2
        assert_variance(lambda rng: g.int4_weight_gradient(x, gradient, budget, rng), x.T @ gradient, p, squares)

    check(rows * sizes)
    with pytest.raises(AssertionError):
        check(sizes)


def test_the_variance_of_the_input_gradient_is_that_of_its_rows():
    w, (gradient, parts) = normal(5, 4), exact_parts(12, 4, seed=7)
    squares = (np.linalg.norm(parts @ w.T, axis=1)) ** 2

    def check(scores):
        p = probabilities(scores, 8)
        assert_variance(lambda rng: g.int4_input_gradient(gradient, w, 8, rng), gradient @ w.T, p, squares)

    check(np.linalg.norm(parts, axis=1))
    with pytest.raises(AssertionError):
        check((parts != 0).any(axis=1).astype(float))


# --------------------------------------------------------------------------------------------------- NVFP4

SIGNS = np.where(np.random.default_rng(7).random(16) < 0.5, -1, 1)


def test_the_forward_pass_and_the_input_gradient_use_the_same_weights():
    w = outliers(32, 48)
    assert np.array_equal(g._weights(w), g._weights(w.T).T)
    rows = get_format("nvfp4").quantize(w, axis=0).dequantize()
    assert not np.array_equal(rows, get_format("nvfp4").quantize(w, axis=1).dequantize())  # 1 x 16 would differ
    scales = get_format("nvfp4", tile=16).quantize(w, axis=0).scales
    assert np.array_equal(scales, np.repeat(scales[:, ::16], 16, axis=1))
    x = normal(8, 32)
    assert np.array_equal(g.nvfp4_output(x, w), get_format("nvfp4").quantize(x).dequantize() @ g._weights(w))


def test_the_randomised_hadamard_transform_leaves_the_product_and_spreads_outliers():
    x, gradient = outliers(64, 8), outliers(64, 6, seed=3)
    h, d = g.randomised_hadamard(x, SIGNS), g.randomised_hadamard(gradient, SIGNS)
    assert np.allclose(h.T @ d, x.T @ gradient, atol=1e-10)
    spike = np.zeros((16, 1))
    spike[3] = 16.0
    assert np.array_equal(np.abs(g.randomised_hadamard(spike, SIGNS)), np.full((16, 1), 4.0))
    mean = g.randomised_hadamard(np.ones((16, 1)), SIGNS)
    assert np.abs(mean).max() < 4.0  # without signs the mean would fall into one coefficient of 4
    for signs in (np.ones(8), np.zeros(16), 2 * SIGNS):
        with pytest.raises(InputError, match="signs must be 16 numbers"):
            g.randomised_hadamard(x, signs)
    with pytest.raises(InputError, match="group=16 does not divide the axis of 60"):
        g.randomised_hadamard(x[:60], SIGNS)


def saturated(x, axis):
    """What stochastic rounding has as its mean: NVFP4 scales, elements limited to 6."""
    q = get_format("nvfp4").quantize(x, axis=axis)
    limit = 6 * np.repeat(q.scales, q.group, axis=axis)
    return np.clip(x, -limit, limit)


def test_nvfp4_gradients_are_unbiased_but_for_saturation():
    x, w, gradient = outliers(16, 16), outliers(16, 16, seed=5), outliers(16, 16, seed=3)
    expected = saturated(gradient, 1)
    assert_unbiased(
        lambda rng: g.nvfp4_input_gradient(gradient, w, rng),
        expected @ g._weights(w).T,
        draws=600,
    )
    rows = get_format("nvfp4").quantize(g.randomised_hadamard(x, SIGNS), axis=0).dequantize()
    expected = rows.T @ saturated(g.randomised_hadamard(gradient, SIGNS), 0)
    assert_unbiased(lambda rng: g.nvfp4_weight_gradient(x, gradient, SIGNS, rng), expected, draws=600)


def test_nvfp4_weight_gradient_takes_the_tensor_scale_behind_the_transform():
    x, gradient = np.zeros((32, 4)), normal(32, 4)
    x[3] = 1000.0
    exact = x.T @ gradient
    error = np.linalg.norm(g.nvfp4_weight_gradient(x, gradient, SIGNS, np.random.default_rng(0)) - exact)
    assert error < 0.3 * np.linalg.norm(exact)
    scale = get_format("nvfp4").quantize(g.randomised_hadamard(x, SIGNS), axis=0).tensor_scale
    assert scale == pytest.approx(250 / 2688)


# -------------------------------------------------------------------------------------------------- Scalify


def network(matmul, add, relu, multiply, total, x, w, b):
    y = relu(add(matmul(x, w), b))
    return total(multiply(y, matmul(y, w)))


def on_values(x, w, b):
    return network(
        np.matmul, np.add, lambda v: np.maximum(v, 0), np.multiply, lambda v: v.sum(axis=0, dtype=np.float64), x, w, b
    )


def on_scaled(x, w, b):
    relu = lambda a: s.homogeneous(lambda d: np.maximum(d, d.dtype.type(0)), a)  # noqa: E731
    return network(s.matmul, s.add, relu, s.multiply, lambda a: s.total(a, 0), x, w, b)


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e40])
def test_propagated_scales_change_no_bit_in_float64(size):
    x, w, b = normal(9, 24) * size, normal(24, 24, seed=2) / size, normal(9, 24, seed=3)
    parts = [s.scaled(v, np.float64) for v in (x, w, b)]
    assert all(np.array_equal(p.value(), v) for p, v in zip(parts, (x, w, b), strict=True))
    found = on_scaled(*parts)
    assert np.array_equal(found.value(), on_values(x, w, b))
    assert found.scale != 1.0


def test_scales_follow_the_rules_and_keep_data_near_one():
    x, w = s.scaled(normal(64, 100) * 3000, np.float16), s.scaled(normal(100, 30, seed=2) * 1e-6, np.float16)
    assert (x.scale, w.scale) == (2048.0, 2.0**-20)
    y = s.matmul(x, w)
    assert y.scale == 2048.0 * 2.0**-20 * 8  # sqrt(100) rounded down
    assert 0.5 < y.data.astype(float).std() < 4
    assert y.data.dtype == np.float16
    assert s.add(x, s.ScaledArray(data=x.data, scale=0.5)).scale == 2048.0
    assert s.add(x, x).scale == 2048.0  # sqrt(2) rounded down
    assert s.multiply(x, s.ScaledArray(data=x.data, scale=0.5)).scale == 1024.0
    assert s.total(x, 1).scale == 2048.0 * 8
    assert s.rescaled(s.multiply(y, y)).data.astype(float).std() < 4


def test_sums_keep_terms_whose_ratio_of_scales_no_half_holds():
    """60000 * 2^-26 is within half precision, 2^-26 is not."""
    big = s.ScaledArray(data=np.array([60000.0], dtype=np.float16), scale=2.0**-26)
    none = s.ScaledArray(data=np.zeros(1, dtype=np.float16), scale=1.0)
    for found in (s.add(big, none), s.add(none, big)):
        assert found.scale == 1.0
        assert found.data.dtype == np.float16
        assert found.data[0] == np.float16(np.float16(60000.0).astype(float) * 2.0**-26) > 8.9e-4


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_sums_round_once(dtype):
    """Against the sum of the exact values, as fractions."""
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=300).astype(dtype), (2.0**-12 * rng.normal(size=300)).astype(dtype)
    found = s.add(s.ScaledArray(data=x, scale=2.0**-9), s.ScaledArray(data=y, scale=2.0**3))
    assert found.scale == 8.0
    exact = [Fraction(float(a)) / 2**12 + Fraction(float(b)) for a, b in zip(x, y, strict=True)]
    assert np.array_equal(found.data, np.array([float(v) for v in exact]).astype(dtype))


def test_sums_that_round_twice_would_be_seen():
    """In half precision the first term, a subnormal number, rounds before it is added."""
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=300).astype(np.float16), (2.0**-12 * rng.normal(size=300)).astype(np.float16)
    found = s.add(s.ScaledArray(data=x, scale=2.0**-9), s.ScaledArray(data=y, scale=2.0**3)).data
    assert not np.array_equal(found, x * np.float16(2.0**-12) + y)


def test_sums_of_the_most_distant_scales_are_exact():
    tiny = s.ScaledArray(data=np.array([2.0**1023]), scale=2.0**-1022)
    huge = s.ScaledArray(data=np.zeros(1), scale=2.0**1023)
    assert s.add(tiny, huge).data[0] == 2.0**-1022
    assert s.add(tiny, huge).scale == 2.0**1023


def test_half_precision_survives_where_plain_halves_overflow_or_vanish():
    x, w = normal(16, 64) * 3e4, normal(64, 16, seed=2) * 1e-8
    found = s.matmul(s.scaled(x, np.float16), s.scaled(w, np.float16)).value()
    assert np.abs(found - x @ w).max() < 2e-3 * np.abs(x @ w).max()
    with np.errstate(over="ignore", invalid="ignore"):
        plain = x.astype(np.float16).astype(np.float32) @ w.astype(np.float16).astype(np.float32)
    assert not np.abs(plain - x @ w).max() < 0.1 * np.abs(x @ w).max()


def test_propagation_in_half_is_half_arithmetic_on_the_values():
    """Where plain halves stay in range, the scaled ones round to the same numbers."""
    x, w = normal(8, 16).astype(np.float16), normal(16, 4, seed=2).astype(np.float16)
    a, b = (s.ScaledArray(data=v, scale=1.0) for v in (x, w))
    other = s.matmul(*(s.ScaledArray(data=v * np.float16(2.0**-2), scale=4.0) for v in (x, w)))
    plain = (x.astype(np.float32) @ w.astype(np.float32)).astype(np.float16)
    for found in (s.matmul(a, b), other):
        assert np.array_equal(found.value(), plain.astype(float))


def test_other_functions_see_the_values_and_restart_the_scale():
    x = s.scaled(normal(50) * 100, np.float32)
    y = s.elementwise(np.tanh, x)
    assert y.scale == 1.0
    assert np.array_equal(y.value(), np.tanh(x.value()).astype(np.float32))
    assert np.array_equal(s.rescaled(x).value(), x.value())


@pytest.mark.parametrize("scale", [0.0, -2.0, 3.0, np.inf, np.nan, 5e-324])
def test_scales_that_are_no_power_of_two_are_refused(scale):
    with pytest.raises(InputError, match="no power of two"):
        s.ScaledArray(data=np.ones(2), scale=scale)


def test_a_scale_that_is_no_power_of_two_would_be_seen(monkeypatch):
    monkeypatch.setattr(s, "_power_of_two", float)
    monkeypatch.setattr(s.ScaledArray, "__post_init__", lambda _self: None)
    x, w, b = normal(9, 24), normal(24, 24, seed=2), normal(9, 24, seed=3)
    assert not np.array_equal(on_scaled(*(s.scaled(v, np.float64) for v in (x, w, b))).value(), on_values(x, w, b))


def test_zeros_have_scale_one():
    assert s.scaled(np.zeros(3), np.float16).scale == 1.0
    with pytest.raises(InputError, match="inf at index"):
        s.scaled(np.array([np.inf]), np.float16)
