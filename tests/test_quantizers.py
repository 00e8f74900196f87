"""hwsim.quantizers against loops written from the papers, explicit inverses and int64 products."""

import dataclasses

import numpy as np
import pytest

from hwsim.quantizers import QUANTIZERS, Problem, get_quantizer, gptq
from hwsim.quantizers.clipping import GRID
from hwsim.quantizers.mixed import global_shares, outlier_channels, salience
from hwsim.quantizers.rounding import nearest_in
from models.catalog import unit
from models.formats import get_format
from models.unit import InputError

WEIGHTS = [
    ("int4", {}),
    ("int3", {"group": 8}),
    ("int4", {"group": 8, "symmetric": False}),
    ("int4", {"group": 8, "symmetric": False, "scale_bits": 5}),
    ("int4", {"rounding": "nearest_away"}),
    ("apot", {"group": 12}),
    ("ternary", {}),
    ("ternary", {"scale": "column"}),
    ("binary", {}),
    ("bipolar", {"bits": 3}),
    ("bcq", {"bits": 2, "group": 8, "symmetric": False}),
    ("bcq", {"bits": 3, "group": 8, "scale_bits": 7, "symmetric": False}),
    ("bcq", {"bits": 2, "num_terms": 2, "max_shift": 7}),
    ("int4", {"rounding": "toward_zero"}),
    ("fp8_e4m3", {"scale": "tensor"}),
    ("fp8_e5m2", {"group": 8}),
    ("mxfp4", {"group": 8}),
    ("mxfp6_e2m3", {"group": 8, "scale_rule": "ceil"}),
    ("mxint8", {"group": 8}),
    ("nvfp4", {"group": 8}),
    ("fp4_ue5m3", {"group": 8}),
]


def problem(*, K=24, N=10, T=64, weights="int4", options=None, activations="int8", seed=1):
    """Correlated activations, without which there is nothing to compensate."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(T, K)) @ (np.eye(K) + rng.normal(size=(K, K)) / 2)
    return Problem(
        W=rng.normal(size=(K, N)),
        X=X,
        weights=get_format(weights, **(options or {})),
        activations=get_format(activations),
        seed=seed,
    )


def only(name, p, **options):
    (part,) = get_quantizer(name, **options)(p)
    assert part.inputs is part.outputs is part.chosen is None
    assert part.activations is p.activations
    return part.weights


def output_error(p, q):
    return np.linalg.norm(p.X @ (p.W - q.dequantize()))


# -------------------------------------------------------------------------------------------------- registry


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_name_makes_a_quantizer_and_refuses_options_that_it_does_not_have(name):
    assert callable(get_quantizer(name))
    with pytest.raises(InputError, match=f"quantizer {name}: no option 'bit'"):
        get_quantizer(name, bit=4)


def test_names_are_refused_with_the_nearest_or_with_the_format_that_does_it():
    with pytest.raises(InputError, match="no quantizer 'gptqq'; did you mean 'gptq'"):
        get_quantizer("gptqq")
    with pytest.raises(InputError, match="take quantizer 'rtn' with weights of 'bcq'"):
        get_quantizer("bcq")
    with pytest.raises(InputError, match="no option 'act_orders'; did you mean 'act_order'"):
        get_quantizer("gptq", act_orders=True)


@pytest.mark.parametrize(
    "name, options, text",
    [
        ("gptq", {"damping": -0.1}, "damping=-0.1"),
        ("gptq", {"damping": True}, "damping=True"),
        ("gptq", {"act_order": 1}, "act_order=1"),
        ("gptq", {"clip_search": "yes"}, "clip_search='yes'"),
        ("shiftaddllm", {"damping": 2.0}, "damping=2.0"),
        ("llm-int8", {"threshold": 0.0}, "threshold=0.0"),
        ("llm-int8", {"threshold": float("nan")}, "threshold=nan"),
        ("mixllm", {"share": 1.1}, "share=1.1"),
        ("comet", {"block": 0}, "block=0"),
        ("comet", {"ratio": "2"}, "ratio='2'"),
    ],
)
def test_options_out_of_range_are_refused(name, options, text):
    with pytest.raises(InputError, match=text):
        get_quantizer(name, **options)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"X": np.ones((4, 23))}, "calibration activations have 23 channels, the weights 24; take 24"),
        ({"X": np.full((4, 24), np.nan)}, r"calibration activations nan at index \(0, 0\)"),
        ({"W": np.full((24, 2), np.inf)}, r"weights inf at index \(0, 0\)"),
        ({"W": np.ones(24)}, r"weights of shape \(24,\)"),
        ({"X": np.ones((0, 24))}, r"calibration activations of shape \(0, 24\)"),
    ],
)
def test_problems_with_other_widths_or_values_that_are_not_finite_are_refused(change, text):
    with pytest.raises(InputError, match=text):
        dataclasses.replace(problem(), **change)


# ------------------------------------------------------------------------------------------- rounding, clips


@pytest.mark.parametrize("name, options", WEIGHTS)
def test_rows_are_rounded_as_the_format_rounds_them(name, options):
    """Integers and halves of the scale among the values: ties have to go the format's way."""
    rng = np.random.default_rng(3)
    W = np.concatenate([rng.normal(size=(16, 40)), rng.integers(-8, 9, size=(8, 40)) / 2.0])
    q = get_format(name, **options).quantize(W, axis=0)
    nearest = nearest_in(q)
    for k in range(16 if name == "nvfp4" else 24):  # NVFP4's quotients in float32 put ties elsewhere
        row = nearest(k, W[k])
        assert np.array_equal(row.codes, q.codes[k])
        assert row.integers is None or np.array_equal(row.integers, q.integers[k])
        assert np.allclose(row.values, q.dequantize()[k], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name, options", WEIGHTS)
def test_values_beyond_the_scales_take_the_outermost_codes(name, options):
    q = get_format(name, **options).quantize(problem().W, axis=0)
    nearest, values = nearest_in(q), q.dequantize()
    for sign in (1, -1):
        row = nearest(5, sign * np.full(10, 1e6))
        assert (sign * row.values >= sign * values[5] - 1e-12).all()
        assert (np.abs(row.values) < 1e3).all()


@pytest.mark.parametrize("name", ["fp16", "pot", "codebook", "lattice"])
def test_formats_without_rows_are_refused_with_those_that_have_them(name):
    with pytest.raises(InputError, match=f"format {name} are not rounded row by row; nearest: int, "):
        get_quantizer("gptq")(problem(weights=name))


def test_stochastic_rounding_is_not_compensated():
    with pytest.raises(InputError, match="format mx: stochastic rounding cannot be compensated"):
        get_quantizer("gptq")(problem(weights="mxfp4", options={"group": 8, "rounding": "stochastic", "rng": 1}))


def test_twinlog_takes_the_nearest_of_its_levels():
    p = problem(K=48, weights="twinlog", options={"group": 24})
    q, rng = only("rtn", p), np.random.default_rng(1)
    nearest = nearest_in(q)
    for k in range(48):
        x = rng.normal(size=10)
        row = nearest(k, x)
        assert np.allclose(np.abs(row.values - x), np.abs(q.tables[k // 24] - x[:, None]).min(axis=1))
        assert np.array_equal(row.values, q.tables[k // 24, np.arange(10), row.codes])
    assert output_error(p, only("gptq", p)) < 0.95 * output_error(p, q)


def test_rtn_is_the_format_alone():
    p = problem(weights="int4", options={"group": 8})
    assert np.array_equal(only("rtn", p).codes, p.weights.quantize(p.W, axis=0).codes)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"group": 8},
        {"group": 8, "symmetric": False},
        {"group": 8, "symmetric": False, "scale_bits": 5},
    ],
)
def test_clip_search_finds_the_best_clip_of_every_group_or_shared_step(options):
    p = problem(N=30, weights="int3", options=options)
    found = only("mse", p)
    tried = [dataclasses.replace(p.weights, clip=clip).quantize(p.W, axis=0).dequantize() for clip in GRID]
    sets = 3 if "group" in options and "scale_bits" not in options else 1
    errors = [((values - p.W) ** 2).reshape(sets, -1, 30).sum(axis=1) for values in tried]
    here = ((found.dequantize() - p.W) ** 2).reshape(sets, -1, 30).sum(axis=1)
    assert np.allclose(here, np.min(errors, axis=0), rtol=1e-12)
    assert (here < errors[0]).any()
    assert (here <= errors[0]).all()
    assert np.array_equal(found.integers * found.step, found.dequantize())
    if found.scale_codes is not None:
        assert np.array_equal(found.scale_codes * found.step, found.scales)


def test_clip_search_takes_apot_and_refuses_formats_without_a_range():
    p = problem(weights="apot", options={"bits": 3})
    assert ((only("mse", p).dequantize() - p.W) ** 2).sum() < ((only("rtn", p).dequantize() - p.W) ** 2).sum()
    with pytest.raises(InputError, match="format ternary has no clipping range to search; nearest: quantizer 'rtn'"):
        get_quantizer("mse")(problem(weights="ternary"))


# ------------------------------------------------------------------------------------------------------ GPTQ


def textbook(W, X, scale, lowest, highest, order, damping=0.01):
    """Optimal brain quantization in a fixed order, integers and one scale a column: at every step the inverse Hessian
    of what is left is formed anew (Frantar et al. 2022, equations 2 and 3)."""
    hess = 2 * X.T @ X / len(X)
    hess += damping * np.diag(hess).mean() * np.eye(len(hess))
    left, work, codes = list(order), W.copy(), np.zeros(W.shape, dtype=np.int64)
    while left:
        k = left[0]
        inverse = np.linalg.inv(hess[np.ix_(left, left)])
        codes[k] = np.clip(np.rint(work[k] / scale), lowest, highest)
        error = (work[k] - codes[k] * scale) / inverse[0, 0]
        work[left] -= np.outer(inverse[:, 0], error)
        left = left[1:]
    return codes


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("K", [5, 24, 150])
def test_gptq_equals_the_textbook_loop_code_by_code(K, act_order):
    p = problem(K=K, T=2 * K)
    q = only("gptq", p, act_order=act_order)
    order = np.argsort(-(p.X**2).sum(axis=0)) if act_order else np.arange(K)
    assert np.array_equal(q.codes, textbook(p.W, p.X, q.scales[0], -8, 7, order))
    assert np.array_equal(q.integers * q.step, q.dequantize())
    # what the loop would not equal: another order
    assert not np.array_equal(q.codes, textbook(p.W, p.X, q.scales[0], -8, 7, order[::-1]))


@pytest.mark.parametrize("fault", ["transposed", "sign"])
def test_the_textbook_loop_tells_a_transposed_factor_and_a_flipped_error(fault, monkeypatch):
    right = gptq.inverse_factor
    broken = {"transposed": lambda H: right(H).T.copy(), "sign": lambda H: 2 * np.diag(np.diag(right(H))) - right(H)}
    monkeypatch.setattr(gptq, "inverse_factor", broken[fault])
    p = problem()
    q = only("gptq", p)
    assert not np.array_equal(q.codes, textbook(p.W, p.X, q.scales[0], -8, 7, range(24)))
    if fault == "sign":
        assert output_error(p, q) > output_error(p, only("rtn", p))


def test_the_factor_is_that_of_the_inverse():
    H = gptq.hessian(problem(K=150, T=300).X, 0.01)
    U = gptq.inverse_factor(H)
    assert np.array_equal(U, np.triu(U))
    assert np.allclose(U.T @ U, np.linalg.inv(H), rtol=1e-9, atol=1e-12 * np.abs(np.linalg.inv(H)).max())


@pytest.mark.parametrize("K, group", [(24, 8), (24, 1), (35, 5), (7, 7), (130, 2), (22, 8)])
def test_rows_and_whole_groups_where_they_begin_are_compensated_for_all_rows_before(K, group):
    p = problem(K=K, T=2 * K)
    H = gptq.hessian(p.X, 0.01)
    seen, work = {}, p.W.copy()

    def choose(k, rows):
        seen[k] = rows.copy()
        return np.rint(rows[0])

    gptq.compensate(p.W.copy(), gptq.inverse_factor(H), choose, group)
    for k in range(K):
        inverse = np.linalg.inv(H[k:, k:])
        ready = group if k % group == 0 else 1
        assert np.allclose(seen[k][:ready], work[k : min(k + ready, (k // group + 1) * group)], atol=1e-8)
        assert len(seen[k]) == min((k // group + 1) * group, K) - k
        work[k:] -= np.outer(inverse[:, 0], (work[k] - np.rint(work[k])) / inverse[0, 0])


@pytest.mark.parametrize("name, options", WEIGHTS)
def test_gptq_under_an_identity_hessian_is_rounding_to_nearest(name, options):
    p = dataclasses.replace(problem(weights=name, options=options), X=3.0 * np.eye(24))
    q, plain = only("gptq", p), only("rtn", p)
    assert np.array_equal(q.codes, plain.codes)
    assert np.array_equal(q.dequantize(), plain.dequantize())


@pytest.mark.parametrize("name, options", WEIGHTS)
def test_gptq_beats_rounding_to_nearest_at_the_output(name, options):
    p = problem(N=40, weights=name, options=options)
    plain, q = only("rtn", p), only("gptq", p)
    assert output_error(p, q) < 0.95 * output_error(p, plain)
    assert np.array_equal(q.scales, plain.scales)


def test_gptq_with_clip_search_has_the_scales_of_clip_search():
    p = problem(weights="int3", options={"group": 8})
    q = only("gptq", p, clip_search=True)
    assert np.array_equal(q.scales, only("mse", p).scales)
    assert output_error(p, q) < output_error(p, only("mse", p))


def test_calibration_that_says_nothing_is_refused():
    p = problem()
    with pytest.raises(InputError, match="all calibration activations are zero"):
        get_quantizer("gptq")(dataclasses.replace(p, X=np.zeros((4, 24))))
    few = dataclasses.replace(p, X=p.X[:1])
    assert output_error(few, only("gptq", few)) < output_error(few, only("rtn", few))
    with pytest.raises(InputError, match="do not span all channels; raise damping"):
        get_quantizer("gptq", damping=0.0)(dataclasses.replace(p, X=np.eye(24)[:4]))


def test_engines_run_what_gptq_and_shiftaddllm_make():
    rng = np.random.default_rng(5)
    A = rng.integers(-100, 100, size=(3, 24))
    for name, quantizer in (("systolic", "gptq"), ("lutgemm", "gptq"), ("shiftadd", "shiftaddllm")):
        params = unit(name).preset("default")
        weights, options = unit(name).weight_format(params)
        q = only(quantizer, problem(weights=weights, options=options))
        W, worth = unit(name).operand(params, q)
        assert np.array_equal(unit(name).golden(params, A, W) * float(worth), A @ q.integers)


# ----------------------------------------------------------------------------------------------- ShiftAddLLM

SHARED = [{"group": 1, "blocks": 1}, {"group": 8, "blocks": 2}, {"group": 8}]


def pot(**options):
    return {"bits": 3, "num_terms": 2, "max_shift": 9, **options}


@pytest.mark.parametrize("options", SHARED)
def test_shiftaddllm_fits_groups_anew_and_beats_fixed_scales(options):
    p = problem(N=64, T=200, weights="bcq", options=pot(**options))
    q, plain, fixed = only("shiftaddllm", p), only("rtn", p), only("gptq", p)
    assert output_error(p, q) < output_error(p, plain)
    assert output_error(p, q) < 1.05 * output_error(p, fixed)
    assert not np.array_equal(q.scale_codes, plain.scale_codes)
    assert np.array_equal(q.step, plain.step)
    groups = np.arange(24) // q.group
    signs = (q.codes[None] >> np.arange(3)[:, None, None] & 1) * 2 - 1
    assert np.array_equal((signs * q.scale_codes[:, groups]).sum(axis=0), q.integers)
    assert np.array_equal(q.integers * q.step, q.dequantize())
    assert np.array_equal(q.scale_codes * q.step, q.scales)
    for size in np.unique(np.abs(q.scale_codes)):
        assert min(abs(int(size) - a - b) for a in (0, *TWOS) for b in (0, *TWOS, *(-t for t in TWOS))) == 0


TWOS = [1 << i for i in range(10)]


@pytest.mark.parametrize("options", SHARED)
def test_shiftaddllm_shares_scales_as_the_format_does(options):
    q = only("shiftaddllm", problem(N=64, weights="bcq", options=pot(**options)))
    width = 64 // options.get("blocks", 64)
    runs = q.scale_codes.reshape(3, -1, 64 // width, width)
    assert (runs == runs[..., :1]).all()


@pytest.mark.parametrize("options", SHARED)
def test_shiftaddllm_under_an_identity_hessian_is_the_formats_own_fit(options):
    p = dataclasses.replace(problem(N=32, weights="bcq", options=pot(**options)), X=np.eye(24))
    q, plain = only("shiftaddllm", p), only("rtn", p)
    assert np.array_equal(q.scale_codes, plain.scale_codes)
    assert np.array_equal(q.codes, plain.codes)


def test_shiftaddllm_equals_a_loop_with_explicit_inverses():
    """Column-wise scales: every channel is fitted when its turn comes."""
    p = problem(K=12, N=16, weights="bcq", options=pot(group=1, blocks=1))
    q = only("shiftaddllm", p)
    hess = p.X.T @ p.X
    hess += 0.01 * np.diag(hess).mean() * np.eye(12)
    work = p.W.copy()
    for k in range(12):
        inverse = np.linalg.inv(hess[k:, k:])
        error = (work[k] - q.dequantize()[k]) / inverse[0, 0]
        fit = get_format("bcq", bits=3, group=1, blocks=1).quantize(work[k : k + 1], axis=0)
        assert np.abs(fit.scales[:, 0] - q.scales[:, k]).max() <= q.step.max() * 2.0**6  # rounded to two terms
        levels = np.unique(
            [[a * x + b * y + c * z for a in S for b in S for c in S] for x, y, z in [q.scales[:, k, 0]]]
        )
        best = np.abs(work[k][:, None] - levels).min(axis=1)
        assert np.allclose(np.abs(work[k] - q.dequantize()[k]), best, atol=1e-12)
        work[k:] -= np.outer(inverse[:, 0], error)


S = (-1, 1)


def test_shiftaddllm_refuses_weights_without_power_of_two_scales():
    for name, options in (("int4", {}), ("bcq", {"bits": 3}), ("bcq", {"scale_bits": 8})):
        with pytest.raises(InputError, match="format bcq with num_terms and max_shift"):
            get_quantizer("shiftaddllm")(problem(weights=name, options=options))


# ----------------------------------------------------------------------------------------------- mixed parts


def outputs_of(parts, x, n):
    """The sum of the parts' products in float64 on dequantized values, as the contract of Part says."""
    total = np.zeros((len(x), n))
    for part in parts:
        a = x if part.inputs is None else x[:, part.inputs]
        a = a if part.chosen is None else np.where(part.chosen(a), a, 0.0)
        columns = slice(None) if part.outputs is None else part.outputs
        total[:, columns] += part.activations.quantize(a, axis=-1).dequantize() @ part.weights.dequantize()
    return total


def outlier_problem(**options):
    p = problem(K=32, N=12, **options)
    X = p.X * np.where(np.isin(np.arange(32), (3, 17)), 40.0, 0.3)
    return dataclasses.replace(p, X=X)


def test_llm_int8_splits_exactly_where_formats_are_exact():
    """Integers to 127 with 127 in every token and column: INT8 scales are 1; FP16 holds integers to 2048."""
    rng = np.random.default_rng(2)
    x, W = rng.integers(-127, 128, size=(9, 32)).astype(float), rng.integers(-127, 128, size=(32, 12)).astype(float)
    x[:, 0], W[0] = 127.0, 127.0
    x[:, 3], x[:, 17], x[4, 17] = rng.integers(-2048, 2049, size=9), 5.0, -200.0
    p = Problem(W=W, X=x, weights=get_format("int8"), activations=get_format("int8"), seed=1)
    parts = get_quantizer("llm-int8", threshold=200.0)(p)
    assert np.array_equal(parts[0].chosen(x), ~parts[1].chosen(x))
    assert list(np.flatnonzero(parts[1].chosen(x))) == [3, 17]
    assert np.array_equal(outputs_of(parts, x, 12), x @ W)
    not_zeroed = (dataclasses.replace(parts[0], chosen=None), parts[1])
    assert not np.allclose(outputs_of(not_zeroed, x, 12), x @ W, rtol=0.1)


def test_llm_int8_zeroes_outliers_before_scales_are_taken():
    p = outlier_problem(weights="int8")
    parts = get_quantizer("llm-int8", threshold=15.0)(p)
    assert list(np.flatnonzero(parts[1].chosen(p.X))) == [3, 17]
    scales = p.activations.quantize(np.where(parts[0].chosen(p.X), p.X, 0.0), axis=-1).scales[:, 0]
    assert np.allclose(scales, np.abs(np.delete(p.X, [3, 17], axis=1)).max(axis=1) / 127)
    exact = p.X @ p.W
    error = np.linalg.norm(outputs_of(parts, p.X, 12) - exact)
    assert error < 0.2 * np.linalg.norm(outputs_of(get_quantizer("rtn")(p), p.X, 12) - exact)


def test_llm_int8_threshold_is_reached_at_six():
    x = np.array([[5.999, -6.0, 6.0, 0.0]])
    assert list(outlier_channels(x, 6.0)) == [False, True, True, False]
    assert not outlier_channels(np.zeros((0, 4)), 6.0).any()


def test_mixllm_keeps_the_most_salient_outputs_at_eight_bits():
    p = problem(N=40, activations="int8", weights="int4", options={"group": 8})
    rng = np.random.default_rng(1)
    p = dataclasses.replace(p, W=p.W * rng.uniform(0.1, 3.0, size=40))
    high, low = get_quantizer("mixllm", share=0.1)(p)
    assert (high.weights.format.bits, low.weights.format.bits) == (8, 4)
    assert len(high.outputs) == 4
    assert np.array_equal(np.sort(np.concatenate([high.outputs, low.outputs])), np.arange(40))
    errors = [np.linalg.norm(p.X @ (p.W - only("rtn", p).dequantize())[:, n]) for n in range(40)]
    assert set(high.outputs) == set(np.argsort(errors)[-4:])
    mixed = np.linalg.norm(outputs_of((high, low), p.X, 40) - p.X @ p.W)
    assert mixed < np.linalg.norm(outputs_of(get_quantizer("rtn")(p), p.X, 40) - p.X @ p.W)


def test_mixllm_shares_are_the_global_ranking():
    rng = np.random.default_rng(4)
    layers = [problem(N=n, seed=n) for n in (20, 30, 50)]
    layers[1] = dataclasses.replace(layers[1], W=np.where(rng.random((24, 30)) < 0.05, 20.0, layers[1].W))
    shares = global_shares(layers, 0.2)
    scores = [salience(p) for p in layers]
    limit = np.sort(np.concatenate(scores))[-20]
    for p, share, score in zip(layers, shares, scores, strict=True):
        parts = get_quantizer("mixllm", share=share)(p)
        kept = [n for part in parts if part.weights.format.bits == 8 for n in part.outputs]
        assert sorted(kept) == list(np.flatnonzero(score >= limit))
    assert sum(share * n for share, n in zip(shares, (20, 30, 50), strict=True)) == pytest.approx(20)
    assert max(shares) > 0.2 > min(shares)


def test_mixllm_for_a_network_ranks_the_outputs_of_all_its_weights():
    """The weight with large entries gets more than its share; together they keep the asked number of outputs."""
    rng = np.random.default_rng(4)
    layers = {f"w{n}": problem(N=n, seed=n) for n in (20, 30, 50)}
    layers["w30"] = dataclasses.replace(layers["w30"], W=np.where(rng.random((24, 30)) < 0.05, 20.0, layers["w30"].W))
    own = get_quantizer("mixllm", share=0.2).for_network(layers)
    assert list(own) == list(layers)
    scores = np.concatenate([salience(p) for p in layers.values()])
    best = set(np.argsort(scores)[-20:])
    kept, start = set(), 0
    for name, p in layers.items():
        kept |= {start + n for part in own[name](p) if part.weights.format.bits == 8 for n in part.outputs}
        start += p.W.shape[1]
    assert kept == best
    assert len({quantizer.share for quantizer in own.values()}) > 1
    alone = [n for p in layers.values() for n in get_quantizer("mixllm", share=0.2)(p)[0].outputs]
    assert len(alone) == len(best)
    assert own["w30"].share > 0.2


def test_a_network_of_one_weight_is_that_weight_alone():
    p = problem(N=30)
    own = get_quantizer("mixllm", share=0.1).for_network({"w": p})
    assert own == {"w": get_quantizer("mixllm", share=0.1)}
    with pytest.raises(InputError, match="mixllm: weights: an integer format of less than 8 bits"):
        own["w"](problem(weights="int8"))


def test_only_quantizers_that_look_at_other_layers_have_a_way_to():
    assert [name for name in QUANTIZERS if hasattr(get_quantizer(name), "for_network")] == ["mixllm"]


def test_what_is_kept_at_eight_bits_keeps_its_range():
    """The clip of a transform or of the format is for narrow codes: the wide ones would saturate for nothing."""
    p = outlier_problem(weights="int4", options={"clip": 0.8})
    p = dataclasses.replace(p, activations=get_format("int4", clip=0.9))
    wide, narrow = get_quantizer("comet", block=8)(p)
    assert (wide.activations.bits, wide.activations.clip) == (8, 1.0)
    assert (narrow.activations.bits, narrow.activations.clip) == (4, 0.9)
    x = p.X[:, wide.inputs]
    steps = np.abs(x).max(axis=1, keepdims=True) / 127
    assert (np.abs(wide.activations.quantize(x, axis=-1).dequantize() - x) <= steps * (0.5 + 1e-9)).all()
    high, low = get_quantizer("mixllm", share=0.25)(p)
    assert (high.weights.format.clip, low.weights.format.clip) == (1.0, 0.8)
    w = p.W[:, high.outputs]
    assert (np.abs(high.weights.dequantize() - w) <= np.abs(w).max(axis=0) / 127 * (0.5 + 1e-9)).all()


def test_mixllm_at_the_ends_is_one_part_and_zeros_have_no_salience():
    p = problem()
    assert [part.weights.format.bits for part in get_quantizer("mixllm", share=0.0)(p)] == [4]
    assert [part.weights.format.bits for part in get_quantizer("mixllm", share=1.0)(p)] == [8]
    assert not salience(dataclasses.replace(p, W=np.zeros((24, 10)))).any()
    with pytest.raises(InputError, match="mixllm: weights: an integer format of less than 8 bits"):
        get_quantizer("mixllm")(problem(weights="int8"))


def test_comet_gathers_outlier_channels_in_blocks_of_eight_bit_activations():
    p = outlier_problem(activations="int4")
    wide, narrow = get_quantizer("comet", block=8)(p)
    assert (wide.activations.bits, narrow.activations.bits) == (8, 4)
    assert {3, 17} == set(wide.inputs[:2])
    assert len(wide.inputs) == 8
    assert np.array_equal(np.sort(np.concatenate([wide.inputs, narrow.inputs])), np.arange(32))
    assert np.array_equal(narrow.inputs, np.sort(narrow.inputs))
    assert np.array_equal(wide.weights.codes.shape, (8, 12))
    exact = p.X @ p.W
    mixed = np.linalg.norm(outputs_of((wide, narrow), p.X, 12) - exact)
    assert mixed < 0.7 * np.linalg.norm(outputs_of(get_quantizer("rtn")(p), p.X, 12) - exact)


def test_comet_without_outliers_is_one_part_and_blocks_have_to_fit():
    p = problem(K=32, activations="int4")
    (part,) = get_quantizer("comet", block=8, ratio=50.0)(p)
    assert part.activations == p.activations
    assert np.array_equal(part.inputs, np.arange(32))
    with pytest.raises(InputError, match="group=128 does not divide the axis of 32 values; nearest: 32"):
        get_quantizer("comet")(p)
    with pytest.raises(InputError, match="comet: activations: an integer format of less than 8 bits"):
        get_quantizer("comet", block=8)(problem(K=32, activations="int8"))
