"""hwsim.transforms: the fast transform and the maps against explicit matrices."""

import re
from itertools import pairwise

import numpy as np
import pytest
from scipy.linalg import hadamard
from scipy.stats import chi2, ortho_group

from hwsim.transforms import TRANSFORMS, check_transform, get_transform, is_random, options_of, parse_transform
from hwsim.transforms import fwht as fwht_module
from hwsim.transforms import maps as maps_module
from hwsim.transforms.fwht import (
    fwht,
    fwht_sequency,
    fwht_transposed,
    hadamard_matrix,
    has_hadamard,
    paley_matrix,
    sequency_order,
)
from hwsim.transforms.learn import cayley_descent, rounding_loss
from hwsim.transforms.maps import Flatten, Hadamard, Kronecker, Permutation, Rotation, Scaling
from hwsim.transforms.qsur import chi2_quantile, qsur
from models import hadamard as unit_model
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
    monkeypatch.setattr(fwht_module, "FWHT_BLOCK", block)
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
        (np.zeros(11), -1, "11 is no order of a Hadamard matrix known here"),
        (np.zeros(11), -1, "nearest: 12"),
        (np.zeros((4, 0)), -1, "0 is no order"),
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
    t = Hadamard(points=points, seed=3)
    R = block_matrix(t, 128)
    assert np.allclose(R @ R.T, np.eye(128), rtol=0, atol=1e-12)
    assert np.allclose(t.apply(x), x @ R, rtol=0, atol=1e-12)
    assert np.allclose(t.fold_weights(W), R.T @ W, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{"points": 16}, {"seed": 5}])
def test_pairs_are_inverse(options):
    rng = np.random.default_rng(7)
    x, W = rng.normal(size=(5, 128)), rng.normal(size=(128, 7))
    t = Hadamard(**options)
    assert np.allclose(t.apply(x) @ t.fold_weights(W), x @ W, rtol=0, atol=1e-10)


def test_the_unit_agrees_with_the_explicit_matrix_on_quantized_tokens():
    x = np.random.default_rng(8).normal(size=(6, 128)) * np.logspace(-3, 3, 6)[:, None]
    t = Hadamard(points=32, in_bits=8, seed=2)
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    expected = (np.rint(x / step) @ block_matrix(t, 128)) * step
    assert np.abs((t.on_hardware(x) - expected) / step).max() < 1e-10
    assert np.array_equal(t.on_hardware(x), t.emulated(x))
    assert np.abs(t.on_hardware(x) - t.apply(x)).max() > 0


def test_more_input_bits_come_closer_to_the_exact_transform():
    x = np.random.default_rng(9).normal(size=(50, 64))
    errors = [np.abs(t.on_hardware(x) - t.apply(x)).max() for t in (Hadamard(in_bits=b) for b in (4, 8, 12))]
    assert errors[0] > 8 * errors[1] > 64 * errors[2]


def test_random_signs_keep_the_mean_of_positive_inputs_from_one_channel():
    x = np.random.default_rng(10).uniform(0, 1, (20, 64))
    plain = np.abs(fwht(x) / 8).max(axis=1)
    signed = np.abs(Hadamard(points=64, seed=1).apply(x)).max(axis=1)
    assert (signed < 0.7 * plain).all()


def test_hardware_is_named_with_its_parameters():
    t = Hadamard(points=8, in_bits=10, seed=4)
    name, params = t.hardware()
    assert name == "hadamard"
    assert params == {"points": 8, "in_bits": 10, "signs": t.signs}
    assert t.signs & 1 == 0
    assert 0 < t.signs < 256
    assert Hadamard(seed=1).signs != Hadamard(seed=2).signs
    assert Hadamard(points=44).hardware() is None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"points": 26}, "26 is no order of a Hadamard matrix known here"),
        ({"points": 0}, "points=0 is outside 2..65536"),
        ({"points": 1 << 17}, "outside 2..65536"),
        ({"points": "8"}, "points='8' must be a whole number"),
        ({"in_bits": 1}, "in_bits=1 is outside"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_maps_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Hadamard(**options)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("hadamart", {}, "did you mean 'hadamard'?"),
        ("hadamard+quaro", {}, "did you mean 'quarot'?"),
        ("", {}, "no transform ''"),
        ("hadamard", {"point": 8}, "did you mean 'points'?"),
        ("none", {"points": 8}, "no option 'points'; it takes none"),
        ("hadamard", {"points": 26}, "26 is no order"),
        ("hadamard", {"points": True}, "hadamard: points=True must be a whole number, or left out"),
        ("hadamard", {"in_bits": None}, "hadamard: in_bits=None must be a whole number"),
        ("hadamard", {"in_bits": 17}, "in_bits=17 is outside 2..16"),
        ("smoothquant", {"alpha": 2}, "alpha=2 must be a number from 0 to 1"),
        ("smoothquant", {"alpha": np.nan}, "alpha=nan must be a finite number"),
        ("quarot", {"clip": "x"}, "quarot: clip='x' must be a finite number"),
        ("quarot", {"clip": 0}, "quarot: clip=0 must be a number above 0 and at most 1"),
        ("quarot", {"clip": 10**400}, "must be a finite number"),
        ("quarot", {"in_bits": 1}, "in_bits=1 is outside 2..16"),
        ("flatquant", {"steps": -1}, "steps=-1"),
        ("flatquant", {"alpha": "x"}, "flatquant: alpha='x' must be a finite number"),
        ("flatquant", {"alpha": 7}, "flatquant: alpha=7 must be a number from 0 to 1"),
        ("flatquant", {"bits": 4.0}, "flatquant: bits=4.0 must be a whole number"),
        ("spinquant", {"bits": 9}, "bits=9 is above 8"),
        ("spinquant", {"in_bits": 99}, "in_bits=99 is outside 2..16"),
        ("ostquant", {"alpha": -1}, "ostquant: alpha=-1 must be"),
        ("ostquant", {"in_bits": 99}, "in_bits=99 is outside 2..16"),
        ("mambaquant", {"alpha": 1.5}, "mambaquant: alpha=1.5 must be"),
        ("mambaquant", {"in_bits": 0}, "in_bits=0 is outside 2..16"),
        ("quamba", {"in_bits": 99}, "in_bits=99 is outside 2..16"),
        ("quantvggt", {"points": 0}, "points=0 is outside 2..65536"),
        ("quantvggt", {"points": "8"}, "quantvggt: points='8' must be a whole number"),
        ("quantvggt", {"in_bits": 1}, "in_bits=1 is outside 2..16"),
        ("quantvggt", {"alpha": 2}, "quantvggt: alpha=2 must be"),
        ("flattenquant", {"fence": "x"}, "flattenquant: fence='x' must be a finite number"),
        ("flattenquant", {"fence": -1}, "flattenquant: fence=-1 must be a number from 0 to 1000"),
        ("flattenquant", {"most": 0}, "flattenquant: most=0 must be"),
        ("flattenquant", {"most": 1025}, "flattenquant: most=1025 is above 1024"),
        ("lrq-dit", {"fluctuation": "x"}, "lrq-dit: fluctuation='x' must be a finite number"),
        ("lrq-dit", {"fluctuation": None}, "lrq-dit: fluctuation=None must be a finite number"),
        ("lrq-dit", {"fluctuation": -1}, "lrq-dit: fluctuation=-1 must be"),
        ("lrq-dit", {"in_bits": 1}, "in_bits=1 is outside 2..16"),
        ("rotatekv", {"heads": 0}, "heads=0"),
        ("rotatekv", {"clip": 1.1}, "rotatekv: clip=1.1 must be a number above 0 and at most 1"),
        ("hadamard:points=8", {"points": 8}, "points is given twice"),
    ],
)
def test_impossible_transforms_are_refused(name, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        get_transform(name, **options)


@pytest.mark.parametrize("option", sorted({(n, o.split(".")[1]) for n in TRANSFORMS for o in options_of(n)}))
def test_no_option_takes_what_is_no_number_of_its_range(option):
    name, key = option
    for value in ("x", True, -7, [8], np.inf, 10**400):
        with pytest.raises(InputError, match=f"{key}="):
            get_transform(name, **{key: value})


@pytest.mark.parametrize(
    "text, message",
    [
        ("hadamard:points", "transform hadamard: 'points' is no NAME=VALUE"),
        ("hadamard:points=8,points=8", "points is given twice"),
        ("hadamard:point=8", "transform hadamard: no option 'point'; did you mean 'points'?"),
        ("hadamard:alpha=0.5+smoothquant", "transform hadamard: no option 'alpha'"),
        ("none:points=8", "transform none: no option 'points'; it takes none"),
        ("hadamard:points=true", "hadamard: points=True must be a whole number, or left out"),
        ("hadamard:points=8.0", "hadamard: points=8.0 must be a whole number, or left out"),
        ("hadamard:points=eight", "hadamard: points='eight' must be a whole number, or left out"),
        ("smoothquant:alpha=1e999", "smoothquant: alpha=inf must be a finite number"),
        ("smoothquant:alpha=+.3+hadamart", "no transform 'hadamart'; did you mean 'hadamard'?"),
        ("hadamard+", "no transform ''"),
        ("+hadamard", "no transform ''"),
    ],
)
def test_text_that_describes_no_transform_is_refused(text, message):
    for use in (parse_transform, get_transform, check_transform, is_random, options_of):
        with pytest.raises(InputError, match=re.escape(message)):
            use(text)


def test_options_are_those_given_and_the_others_defaults():
    assert options_of("hadamard:points=32+smoothquant:alpha=+3e-1+hadamard") == {
        "hadamard.points": 32,
        "hadamard.in_bits": 11,
        "smoothquant.alpha": 0.3,
        "hadamard#2.points": None,
        "hadamard#2.in_bits": 11,
    }
    assert options_of("none") == {}
    assert is_random("smoothquant:alpha=0.3+quarot:clip=1")
    assert not is_random("smoothquant:alpha=0.3+flattenquant:most=2")


@pytest.mark.parametrize("dtype", [np.int64, np.float16, np.float32, np.float64])
def test_numbers_of_numpy_are_numbers(dtype):
    check_transform("quarot", clip=dtype(1))
    if dtype is np.int64:
        check_transform("hadamard", points=dtype(8))


@pytest.mark.parametrize("use", ["apply", "on_hardware", "emulated"])
def test_channels_must_fill_blocks(use):
    with pytest.raises(InputError, match="65 channels are no multiple of points=64"):
        getattr(Hadamard(), use)(np.ones((2, 65)))


def test_every_entry_makes_a_transform_and_says_whether_it_draws():
    for name in TRANSFORMS:
        check_transform(name)
    assert is_random("smoothquant+hadamard")
    assert not is_random("smoothquant")
    assert not is_random("none")


# ------------------------------------------------------------------------------------ orders and sequency


@pytest.mark.parametrize("n", [1, 2, 12, 20, 24, 28, 36, 40, 44, 56, 60, 76, 140, 384])
def test_every_order_is_a_hadamard_matrix_and_the_transform_multiplies_by_it(n):
    H = hadamard_matrix(n)
    assert set(np.unique(H)) <= {-1, 1}
    assert np.array_equal(H @ H.T, n * np.eye(n))
    x = np.random.default_rng(n).integers(-9, 10, (3, n, 5))
    assert np.array_equal(fwht(x, 1), np.einsum("ij,ajk->aik", H, x))
    assert np.array_equal(fwht_transposed(fwht(x, 1), 1), n * x)
    assert np.array_equal(fwht(x.astype(np.float32), 1), fwht(x, 1))


def test_the_order_of_12_is_not_symmetric_so_that_its_transpose_is_another_transform():
    H = paley_matrix(12)
    assert not np.array_equal(H, H.T)
    x = np.arange(12.0)
    assert np.abs(fwht(fwht(x)) - 12 * x).max() > 1
    assert np.array_equal(fwht_transposed(fwht(x)), 12 * x)


def test_orders_are_those_of_the_unit():
    sizes = [n for n in range(2, 120) if n in (2, 4, 8, 16, 32, 64) or any(n % m == 0 for m in (12, 20, 28))]
    same = [n for n in sizes if has_hadamard(n) and _unit_has(n)]
    assert {12, 20, 24, 28, 40, 48, 56, 96, 112} <= set(same)
    for n in same:
        assert np.array_equal(hadamard_matrix(n), unit_model.hadamard_matrix(n))


def _unit_has(n):
    try:
        unit_model.HadamardParams(points=n)
    except InputError:
        return False
    return True


@pytest.mark.parametrize("n", [3, 5, 52, 92, 26])
def test_orders_without_a_construction_are_refused(n):
    assert not has_hadamard(n)
    with pytest.raises(InputError, match=f"{n} is no order"):
        fwht(np.zeros(n))


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_sequency_order_counts_sign_changes(n):
    rows = hadamard(n)[sequency_order(n)]
    assert np.array_equal((np.diff(rows, axis=1) != 0).sum(axis=1), np.arange(n))
    x = np.random.default_rng(n).normal(size=(3, n))
    assert np.allclose(fwht_sequency(x), x @ rows.T, rtol=0, atol=1e-12)
    assert np.allclose(fwht_sequency(x.T, 0), rows @ x.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape, axis", [((4096, 40), 0), ((3, 8192, 17), 1), ((2, 128, 5), 1), ((256, 1000), 0)])
def test_tiles_of_other_axes_equal_the_last_axis(shape, axis):
    x = np.random.default_rng(12).integers(-99, 100, shape)
    expected = np.moveaxis(fwht(np.ascontiguousarray(np.moveaxis(x, axis, -1))), -1, axis)
    assert np.array_equal(fwht(x, axis), expected)


# ------------------------------------------------------------------------------------------------- maps


def some_maps(K=48):
    rng = np.random.default_rng(20)
    return {
        "hadamard": Hadamard(points=K),
        "blocks": Hadamard(points=12, seed=9),
        "rotation": Rotation(Q=ortho_group.rvs(K, random_state=1)),
        "rotated heads": Rotation(Q=ortho_group.rvs(8, random_state=2)),
        "scaling": Scaling(s=rng.uniform(0.1, 9, K)),
        "kronecker": Kronecker(P1=rng.normal(size=(6, 6)), P2=rng.normal(size=(8, 8))),
        "permutation": Permutation(order=rng.permutation(K)),
        "flatten": Flatten(threshold=0.7, copies=rng.integers(1, 4, K)),
    }


@pytest.mark.parametrize("name", some_maps())
def test_every_map_keeps_the_product_and_can_be_undone(name):
    rng = np.random.default_rng(21)
    x, W, m = rng.normal(size=(9, 48)), rng.normal(size=(48, 5)), some_maps()[name]
    assert np.allclose(m.apply(x) @ m.fold_weights(W), x @ W, rtol=0, atol=1e-10)
    assert np.allclose(m.undo(m.apply(x)), x, rtol=0, atol=1e-10)
    assert np.abs(m.apply(x)[:, :48] - x).max() > 0.1
    if name not in ("hadamard", "blocks"):
        assert m.hardware() is None
        assert np.array_equal(m.on_hardware(x), m.emulated(x))


@pytest.mark.parametrize("name", [n for n in some_maps() if n != "flatten"])
def test_linear_maps_are_their_matrices(name):
    m = some_maps()[name]
    R = m.apply(np.eye(48))
    x = np.random.default_rng(22).normal(size=(4, 48))
    assert np.allclose(m.apply(x), x @ R, rtol=0, atol=1e-12)
    assert np.allclose(m.fold_weights(np.eye(48)), np.linalg.inv(R), rtol=0, atol=1e-9)
    assert np.allclose(m.undo(x), x @ np.linalg.inv(R), rtol=0, atol=1e-9)


def test_a_kronecker_map_is_the_product_of_its_matrices_and_costs_their_sizes():
    m = some_maps()["kronecker"]
    assert np.allclose(m.apply(np.eye(48)), np.kron(m.P1, m.P2), rtol=0, atol=1e-12)
    assert (m.cost(48).adds, m.cost(48).multiplies) == (48 * 12, 48 * 14)


def test_costs():
    maps = some_maps()
    costs = {name: (m.cost(48).adds, m.cost(48).multiplies) for name, m in maps.items()}
    assert costs["hadamard"] == (48 * (2 + 11), 0)
    assert Hadamard(points=16).cost(48).adds == 48 * 4
    assert costs["rotation"] == (48 * 47, 48 * 48)
    assert costs["rotated heads"] == (48 * 7, 48 * 8)
    assert costs["scaling"] == (0, 48)
    assert costs["permutation"] == (0, 0)


def test_flattened_channels_stay_within_the_threshold():
    m = Flatten(threshold=1.0, copies=np.array([1, 3]))
    assert np.allclose(m.apply(np.array([[0.5, 2.5], [-0.2, -0.4]])), [[0.5, 1, 1, 0.5], [-0.2, -0.4, 0, 0]])
    assert np.allclose(m.apply(np.array([[0.0, -9.0]])), [[0, -1, -1, -7]])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Rotation(Q=np.triu(np.ones((4, 4)))), "Q Q^T is not the identity"),
        (lambda: Scaling(s=np.array([1.0, 0.0])), "factor 1 is not positive"),
        (lambda: Scaling(s=np.array([np.nan, 1.0])), "factor 0 is not positive"),
        (lambda: Permutation(order=np.array([0, 0, 1])), "does not name each of 3 channels once"),
        (lambda: Flatten(threshold=0.0, copies=np.ones(3)), "threshold=0.0"),
        (lambda: Flatten(threshold=1.0, copies=np.zeros(3)), "at least one copy"),
        (lambda: some_maps()["kronecker"].apply(np.ones((2, 47))), "47 channels are not 6 x 8"),
        (lambda: some_maps()["rotated heads"].apply(np.ones((2, 47))), "47 channels are no multiple of 8"),
    ],
)
def test_maps_that_cannot_be_inverted_are_refused(make, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("points", [12, 24, 48, 44, 128, 1536])
def test_other_orders_on_hardware_equal_the_emulation(points):
    m = Hadamard(points=points, in_bits=8, seed=3)
    x = np.random.default_rng(23).normal(size=(4, points * 3))
    assert np.array_equal(m.on_hardware(x), m.emulated(x))
    assert np.abs(m.emulated(x) - m.apply(x)).max() < 0.1
    assert ("lanes" in (m.hardware() or ("", {}))[1]) == (points > 64)
    assert (m.hardware() is None) == (points == 44)


# ----------------------------------------------------------------------------------- QSUR and learned steps


@pytest.mark.parametrize("d", [1, 2, 7, 64, 1536])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_chi_squared_quantiles(d, share):
    assert chi2_quantile(share, d) == pytest.approx(chi2.ppf(share, d), rel=1e-9)


def test_qsur_is_its_formula_and_rotation_raises_it():
    rng = np.random.default_rng(24)
    x = rng.normal(size=(4000, 16)) * np.array([30.0] + [1.0] * 15)
    S, mean, c = np.cov(x.T), x.mean(axis=0), chi2.ppf(0.99, 16)
    volume = np.pi**8 / 40320 * c**8 * np.sqrt(np.linalg.det(S))
    reach = np.sqrt(c * np.diagonal(S))
    side = (mean + reach).max() - (mean - reach).min()
    assert qsur(x) == pytest.approx((volume / side**16) ** (1 / 16), rel=1e-9)
    assert qsur(Hadamard(points=16).apply(x)) > 2 * qsur(x)
    assert qsur(np.repeat(x[:, :1], 3, axis=1)) < 1e-4
    with pytest.raises(InputError, match="16 samples of 16 channels"):
        qsur(x[:16])


@pytest.mark.parametrize("shift", [[70.0, 0, 0, 0], [-50.0, 3, 50, 1]])
def test_the_cube_of_qsur_lies_around_the_mean(shift):
    rng = np.random.default_rng(28)
    x = rng.normal(size=(300, 4)) * np.array([1.0, 4, 2, 9]) + np.array(shift)
    S, mean, c = np.cov(x.T), x.mean(axis=0), chi2.ppf(0.9, 4)
    volume = np.pi**2 / 2 * c**2 * np.sqrt(np.linalg.det(S))
    ends = [(mean[j] + sign * np.sqrt(c * S[j, j])) for j in range(4) for sign in (1, -1)]
    assert qsur(x, 0.9) == pytest.approx((volume / (max(ends) - min(ends)) ** 4) ** 0.25, rel=1e-9)
    assert qsur(x, 0.9) < 0.9 * qsur(x - mean, 0.9)


@pytest.mark.parametrize(
    "x, alpha, message",
    [
        (np.ones(9), 0.99, "activations of shape (9,); [M, d] are needed"),
        (np.ones((9, 0)), 0.99, "activations of shape (9, 0)"),
        (np.full((9, 2), np.nan), 0.99, "not all finite"),
        (np.full((9, 2), np.inf), 0.99, "not all finite"),
        (np.eye(9)[:, :2], "x", "alpha='x' must be a number between 0 and 1"),
        (np.eye(9)[:, :2], 1.0, "alpha=1.0 must be"),
    ],
)
def test_qsur_refuses_what_has_no_ellipsoid(x, alpha, message):
    with pytest.raises(InputError, match=re.escape(message)):
        qsur(x, alpha)


def test_the_gradient_of_the_rounding_loss_is_that_of_differences():
    rng = np.random.default_rng(25)
    A, R = rng.normal(size=(6, 8)), ortho_group.rvs(8, random_state=3)
    loss = rounding_loss(A, 4)
    _, G = loss(R)
    step, D = 1e-7, rng.normal(size=(8, 8))
    slope = (loss(R + step * D)[0] - loss(R - step * D)[0]) / (2 * step)
    assert slope == pytest.approx((G * D).sum(), rel=1e-4)


def test_cayley_steps_stay_orthogonal_and_lower_the_error():
    rng = np.random.default_rng(26)
    A = rng.normal(size=(200, 16)) * np.array([40.0, 20.0] + [1.0] * 14)
    R, history = cayley_descent(Hadamard(points=16).apply(np.eye(16)), rounding_loss(A, 4), steps=25)
    assert np.abs(R @ R.T - np.eye(16)).max() < 1e-12
    assert all(b <= a for a, b in pairwise(history))
    assert history[-1] < 0.9 * history[0]


def test_a_transposed_matrix_of_order_12_is_seen(monkeypatch):
    x, m = np.random.default_rng(27).normal(size=(3, 24)), Hadamard(points=24)
    assert np.abs(m.undo(m.apply(x)) - x).max() < 1e-12
    monkeypatch.setattr(maps_module, "fwht_transposed", fwht)
    assert np.abs(m.undo(m.apply(x)) - x).max() > 0.1
