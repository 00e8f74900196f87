"""The Python API as the README shows it, and one GEMM on every engine."""

import numpy as np
import pytest
from engines import ENGINES, plain_params, plain_weights

import hwsim
from hwsim import simulate_gemm
from hwsim.energy import energy_by_kind_pj, energy_pj, op_energy_pj
from hwsim.simulate import random_operands
from models.catalog import unit
from models.formats import get_format
from models.unit import InputError, Op


def test_the_api_of_the_readme():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 256))
    q = get_format("int4", group=128).quantize(x, axis=-1)
    assert q.codes.shape == x.shape
    assert q.scales.shape == (4, 2)
    assert q.bits_per_value == 4 + 16 / 128
    assert np.abs(q.dequantize() - x).max() <= q.scales.max() / 2
    u = unit("systolic")
    p = u.params(rows=16, cols=16, dataflow="WS", act_bits=8, weight_bits=8, acc_bits=32)
    a, w = rng.integers(-128, 128, (512, 512)), rng.integers(-128, 128, (512, 512))
    assert (u.golden(p, a, w) == a @ w).all()
    t = u.timing(p, M=512, K=512, N=512)
    assert t.total_cycles == 571393
    r = simulate_gemm(p, a, w)
    assert (r.output == a @ w).all()
    assert r.timing == t
    assert r.ops == u.ops(p, M=512, K=512, N=512)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
def test_every_engine_multiplies_plain_integers_exactly(name, dtype):
    rng = np.random.default_rng(4)
    p = plain_params(name)
    a, w = rng.integers(-128, 128, (33, 100)).astype(dtype), plain_weights(p, name, rng, (100, 21)).astype(dtype)
    assert (simulate_gemm(p, a, w).output == a.astype(np.int64) @ w.astype(np.int64)).all()


def test_a_units_own_operand_is_taken_as_it_is():
    entry = unit("lutgemm")
    p = entry.preset("grouped")
    a, w = entry.sample(p, np.random.default_rng(3), M=4, K=20, N=5)
    assert (simulate_gemm(p, a, w).output == entry.golden(p, a, w)).all()


def test_operands_that_do_not_fit_are_refused():
    p = unit("systolic").params(weight_bits=4)
    with pytest.raises(InputError, match=r"W.*: 9 is outside"):
        simulate_gemm(p, np.array([[1]]), np.array([[9]]))
    with pytest.raises(InputError, match="multiplies no matrices"):
        simulate_gemm(unit("hadamard").params(), np.array([[1]]), np.array([[1]]))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = hwsim.nonsense


@pytest.mark.parametrize(
    "op, pj",
    [
        (Op("add", 1, 8), 0.03),
        (Op("add", 1, 16), 0.05),
        (Op("add", 1, 32), 0.1),
        (Op("add", 1, 24), 0.075),
        (Op("add", 1, 64), 0.2),
        (Op("add", 1, 4), 0.015),
        (Op("mul", 1, 8, 8), 0.2),
        (Op("mul", 1, 32, 32), 3.1),
        (Op("mul", 1, 4, 8), 0.1),
        (Op("reg", 1, 32), 0.1 * 4.522 / 4.256),
        (Op("mux", 1, 32, 2), 0.1 * 1.862 / 4.256),
        (Op("mux", 1, 32, 8), 0.7 * 1.862 / 4.256),
        (Op("shift", 1, 32, 7), 0.3 * 1.862 / 4.256),
        (Op("shift", 1, 32, 0), 0.0),
        (Op("fadd", 1, 32), 0.9),
        (Op("fmul", 1, 16, 16), 1.1),
    ],
)
def test_energies_meet_the_published_table_and_interpolate_between(op, pj):
    assert op_energy_pj(op) == pytest.approx(pj)


def test_energy_sums_counts_and_refuses_unknown_kinds():
    ops = (Op("add", 10, 8), Op("add", 1, 16), Op("mul", 2, 8, 8))
    assert energy_pj(ops) == pytest.approx(0.3 + 0.05 + 0.4)
    assert energy_by_kind_pj(ops) == {"add": pytest.approx(0.35), "mul": pytest.approx(0.4)}
    with pytest.raises(InputError, match="no energy for operations of kind 'div'"):
        op_energy_pj(Op("div", 1, 8))


@pytest.mark.parametrize("name", ENGINES)
def test_a_starting_psum_is_in_the_outputs_units_and_lists_are_matrices(name):
    p = plain_params(name)
    w = plain_weights(p, name, np.random.default_rng(2), (2, 1)).tolist()
    if name in ("cube", "matrix2d"):  # accumulators inside the array
        with pytest.raises(InputError, match=f"{name}: sums start at zero; add psum to the result"):
            simulate_gemm(p, [[1, 2]], w, psum=[[5]])
    else:
        assert simulate_gemm(p, [[1, 2]], w, psum=[[5]]).output.tolist() == [[w[0][0] + 2 * w[1][0] + 5]]


def test_binary_code_overflows_one_bit_earlier_and_says_so():
    a, w = np.full((1, 20), 125), np.full((20, 1), 7)
    for name, past in (("lutgemm", 32768), ("shiftadd", 32768), ("systolic", 0)):
        p = unit(name).params(weight_bits=4, acc_bits=16)
        assert simulate_gemm(p, a, w).output.item() == 17500 - past, name
    assert "one bit earlier" in simulate_gemm.__doc__


@pytest.mark.parametrize("bad", [[1, 2], [[1.5]], "x", [["a"]]])
def test_what_is_no_matrix_of_integers_is_refused(bad):
    with pytest.raises(InputError, match="A must be a matrix of integers"):
        simulate_gemm(unit("systolic").params(), bad, [[1]])


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("sigma", [None, 0.0, 3.0, 1e9])
def test_random_operands_are_such_as_the_engine_takes(name, sigma):
    p = unit(name).params()
    a, w = random_operands(p, np.random.default_rng(5), (40, 30, 20), sigma)
    assert set(np.unique(w)) <= set(unit(name).plain_weights(p))
    simulate_gemm(p, a, w)
    if sigma == 3.0:
        assert 1 < a.astype(float).std() < 4


def test_random_weights_are_the_nearest_to_normal_ones():
    p = unit("shiftlayer").params(weight_bits=4)
    _, w = random_operands(p, np.random.default_rng(5), (300, 300, 300), 30.0)
    _, drawn = random_operands(unit("systolic").params(weight_bits=16), np.random.default_rng(5), (300, 300, 300), 30.0)
    held = unit("shiftlayer").plain_weights(p)
    assert (np.abs(w - drawn) == np.abs(drawn[..., None] - held).min(axis=-1)).all()


def test_fp16_engines_give_real_outputs_and_refuse_what_fp16_is_not():
    p = unit("lutgemm").params(act_format="fp16", act_bits=16)
    a, w = np.array([[0.5, -2.25], [65504.0, 0.0]]), np.array([[3], [-8]])
    got = simulate_gemm(p, a, w, psum=[[0.25], [1.0]])
    assert got.output.dtype == np.float64
    assert got.output.tolist() == [[0.5 * 3 + 2.25 * 8 + 0.25], [65504 * 3 + 1.0]]
    for bad in (np.nan, np.inf, 1e5, 0.1):
        with pytest.raises(InputError, match=r"A\[0, 1\].*FP16"):
            simulate_gemm(p, np.array([[1.0, bad]]), w)
    with pytest.raises(InputError, match="A must be a matrix of numbers"):
        simulate_gemm(p, [["x"]], w)


def test_quantized_tables_give_real_outputs_near_the_exact_ones():
    rng = np.random.default_rng(6)
    a, w = rng.integers(-128, 128, (20, 64)), rng.integers(-8, 8, (64, 5))
    got = simulate_gemm(unit("tmac").params(), a, w).output
    assert got.dtype == np.float64
    assert 0 < np.abs(got - a @ w).max() < 0.03 * np.abs(a @ w).max()
