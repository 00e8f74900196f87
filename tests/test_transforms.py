"""hwsim.transforms against explicit Sylvester matrices."""

import re

import numpy as np
import pytest
from scipy.linalg import hadamard

from hwsim import transforms
from hwsim.transforms import HadamardTransform, fwht, get_transform
from models.unit import InputError

DTYPES = [np.float32, np.float64, np.int64]


def signed_matrix(t):
    """R with y = x R for one block, orthonormal: diag(signs) H / sqrt(points), H symmetric."""
    signs = np.array([-1.0 if t.signs >> i & 1 else 1.0 for i in range(t.points)])
    return signs[:, None] * hadamard(t.points) / np.sqrt(t.points)


def block_matrix(t, K):
    return np.kron(np.eye(K // t.points), signed_matrix(t))


# ---------------------------------------------------------------------------------------------------- fwht


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1 << k for k in range(11)])
def test_all_basis_vectors_give_the_columns_of_the_matrix(n, dtype):
    y = fwht(np.eye(n, dtype=dtype))
    assert y.dtype == dtype
    assert np.array_equal(y, hadamard(n))


@pytest.mark.parametrize("n", [2, 64, 4096, 8192, 32768])
def test_integers_are_exact_in_and_beyond_a_block(n):
    x = np.random.default_rng(n).integers(-(1 << 30), 1 << 30, (2, n))
    y = fwht(x)
    assert np.array_equal(fwht(y), n * x)
    rows = np.random.default_rng(1).integers(0, n, 5)
    parity = np.array([[bin(r & c).count("1") & 1 for c in range(n)] for r in rows.tolist()])
    assert np.array_equal(y[:, rows], x @ (1 - 2 * parity).T)


@pytest.mark.parametrize("block", [1, 2, 8, 16])
def test_the_block_changes_nothing(block, monkeypatch):
    x = np.random.default_rng(3).normal(size=(3, 64))
    monkeypatch.setattr(transforms, "FWHT_BLOCK", block)
    assert np.allclose(fwht(x), x @ hadamard(64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_any_axis_of_any_layout(axis, dtype):
    x = np.asfortranarray(np.random.default_rng(4).integers(-9, 10, (8, 4, 16)).astype(dtype))
    before = x.copy()
    expected = np.moveaxis(np.moveaxis(x, axis, -1) @ hadamard(x.shape[axis]).astype(dtype), -1, axis)
    assert np.array_equal(fwht(x, axis=axis), expected)
    assert np.array_equal(fwht(x[:, ::2, ::4], axis=axis).shape, x[:, ::2, ::4].shape)
    assert np.array_equal(x, before)


def test_no_rows_are_no_rows():
    assert fwht(np.zeros((0, 8))).shape == (0, 8)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-4), (np.float64, 1e-12)])
def test_floats_are_as_close_as_their_type_allows(dtype, tolerance):
    x = np.random.default_rng(5).normal(size=(4, 1024)).astype(dtype)
    assert np.allclose(fwht(x), x.astype(np.float64) @ hadamard(1024), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "x, axis, message",
    [
        (np.zeros(12), -1, "length 12 is not a power of two; nearest: 8 or 16"),
        (np.zeros((4, 0)), -1, "length 0 is not a power of two"),
        (np.zeros(8, dtype=np.int32), -1, "not int32"),
        (np.zeros(()), -1, "scalar"),
        (np.zeros(8), 1, "axis 1 is outside -1..0"),
        (np.full(8, 1 << 60), -1, "may sum to more than int64 holds"),
        (np.full(8, -(1 << 60)), -1, "may sum to more than int64 holds"),
    ],
)
def test_arrays_that_cannot_be_transformed_are_refused(x, axis, message):
    with pytest.raises(InputError, match=re.escape(message)):
        fwht(x, axis=axis)


def test_the_largest_exact_integers_pass():
    x = np.full(8, (1 << 60) - 1)
    assert fwht(x)[0] == 8 * ((1 << 60) - 1)


# ---------------------------------------------------------------------------------------------- transforms


@pytest.mark.parametrize("points", [2, 16, 64])
def test_activations_and_weights_meet_the_explicit_matrix(points):
    rng = np.random.default_rng(6)
    x, W = rng.normal(size=(5, 128)), rng.normal(size=(128, 7))
    t = HadamardTransform(points=points, seed=3)
    R = block_matrix(t, 128)
    assert np.allclose(R @ R.T, np.eye(128), rtol=0, atol=1e-12)
    assert np.allclose(t.apply(x), x @ R, rtol=0, atol=1e-12)
    assert np.allclose(t.fold_weights(W), R.T @ W, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name, options", [("none", {}), ("hadamard", {"points": 16}), ("hadamard", {"seed": 5})])
def test_pairs_are_inverse(name, options):
    rng = np.random.default_rng(7)
    x, W = rng.normal(size=(5, 128)), rng.normal(size=(128, 7))
    t = get_transform(name, **options)
    assert np.allclose(t.apply(x) @ t.fold_weights(W), x @ W, rtol=0, atol=1e-10)


def test_the_unit_agrees_with_the_explicit_matrix_on_quantized_tokens():
    x = np.random.default_rng(8).normal(size=(6, 128)) * np.logspace(-3, 3, 6)[:, None]
    t = HadamardTransform(points=32, in_bits=8, seed=2)
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    expected = (np.rint(x / step) @ block_matrix(t, 128)) * step
    assert np.abs((t.on_hardware(x) - expected) / step).max() < 1e-10
    assert np.array_equal(t.on_hardware(x), t.emulated(x))
    assert np.abs(t.on_hardware(x) - t.apply(x)).max() > 0


def test_more_input_bits_come_closer_to_the_exact_transform():
    x = np.random.default_rng(9).normal(size=(50, 64))
    errors = [np.abs(t.on_hardware(x) - t.apply(x)).max() for t in (HadamardTransform(in_bits=b) for b in (4, 8, 12))]
    assert errors[0] > 8 * errors[1] > 64 * errors[2]


def test_random_signs_keep_the_mean_of_positive_inputs_from_one_channel():
    x = np.random.default_rng(10).uniform(0, 1, (20, 64))
    plain = np.abs(fwht(x) / 8).max(axis=1)
    signed = np.abs(HadamardTransform(points=64, seed=1).apply(x)).max(axis=1)
    assert (signed < 0.7 * plain).all()


def test_hardware_is_named_with_its_parameters():
    t = get_transform("hadamard", points=8, in_bits=10, seed=4)
    name, params = t.hardware()
    assert name == "hadamard"
    assert params == {"points": 8, "in_bits": 10, "signs": t.signs}
    assert t.signs & 1 == 0
    assert 0 < t.signs < 256
    assert get_transform("none").hardware() is None
    assert HadamardTransform(seed=1).signs != HadamardTransform(seed=2).signs


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("hadamart", {}, "did you mean 'hadamard'?"),
        ("hadamard", {"point": 8}, "did you mean 'points'?"),
        ("none", {"points": 8}, "no option 'points'; it takes none"),
        ("hadamard", {"points": 24}, "not a power of two; nearest: 16 or 32"),
        ("hadamard", {"points": 0}, "points 0 is not a power of two"),
        ("hadamard", {"points": 2048}, "outside 2..1024"),
        ("hadamard", {"points": "8"}, "points='8' must be a whole number"),
        ("hadamard", {"in_bits": 1}, "in_bits=1 is outside"),
        ("hadamard", {"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_transforms_are_refused(name, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        get_transform(name, **options)


@pytest.mark.parametrize("use", ["apply", "on_hardware", "emulated"])
def test_channels_must_fill_blocks(use):
    with pytest.raises(InputError, match="65 channels are no multiple of points=64"):
        getattr(HadamardTransform(), use)(np.ones((2, 65)))
