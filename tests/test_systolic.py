"""Systolic arrays: golden against int64, SCALE-Sim's published counts, and where ours differ."""

import numpy as np
import pytest

from models.catalog import unit
from models.systolic import SystolicParams
from models.unit import InputError

SYSTOLIC = unit("systolic")


@pytest.mark.parametrize("dataflow", ["WS", "OS"])
@pytest.mark.parametrize("m, k, n", [(1, 1, 1), (7, 33, 17), (16, 16, 16), (40, 5, 3), (3, 100, 40)])
def test_golden_equals_int64_matmul(dataflow, m, k, n):
    rng = np.random.default_rng([m, k, n])
    p = SYSTOLIC.params(dataflow=dataflow)
    a, w = rng.integers(-128, 128, (m, k)), rng.integers(-128, 128, (k, n))
    a[0], w[:, 0] = -128, -128
    assert (SYSTOLIC.golden(p, a, w) == a @ w).all()


def test_every_product_of_two_int8_operands_is_exact():
    p = SYSTOLIC.params(rows=1, cols=256)
    every = np.arange(-128, 128)
    assert (SYSTOLIC.golden(p, every[:, None], every[None, :]) == np.multiply.outer(every, every)).all()


def test_psum_starts_the_accumulation_in_ws_and_is_refused_in_os():
    a, w, start = np.array([[3]]), np.array([[4]]), np.array([[-5]])
    assert SYSTOLIC.golden(SYSTOLIC.params(), a, w, start).item() == 7
    with pytest.raises(InputError, match="psum needs dataflow WS"):
        SYSTOLIC.golden(SYSTOLIC.params(dataflow="OS"), a, w, start)


def scalesim(dataflow, r, c, m, k, n):
    """SCALE-Sim's formulas, written out for single shapes."""

    def up(x, y):
        return -(-x // y)

    if dataflow == "OS":
        return up(m, r) * up(n, c) * (k + r + c - 2) - 1
    return up(k, r) * up(n, c) * (m + 2 * r + c - 2) - 1


@pytest.mark.parametrize("dataflow", ["WS", "OS"])
@pytest.mark.parametrize("rows, cols", [(16, 16), (1, 1), (8, 32), (128, 128)])
def test_scalesim_convention_over_arrays_of_shapes(dataflow, rows, cols):
    rng = np.random.default_rng(rows)
    m, k, n = rng.integers(1, 5000, (3, 60_000))
    p = SYSTOLIC.params(rows=rows, cols=cols, dataflow=dataflow)
    theirs = SYSTOLIC.timing(p, M=m, K=k, N=n, convention="scalesim").total_cycles
    ours = SYSTOLIC.timing(p, M=m, K=k, N=n)
    for i in range(0, 60_000, 997):
        assert theirs[i] == scalesim(dataflow, rows, cols, int(m[i]), int(k[i]), int(n[i]))
    if dataflow == "WS":
        assert (ours.total_cycles == theirs + 2).all()
    else:
        folds = -(-m // rows) * -(-n // cols)
        assert (ours.total_cycles == theirs + rows * folds + 1).all()
    parts = ours.load_cycles + ours.stream_cycles + ours.drain_cycles
    assert (parts == ours.total_cycles).all()
    assert ((ours.utilization > 0) & (ours.utilization <= 1)).all()


def test_scalesim_counts_no_cycle_for_a_single_mac():
    tiny = SYSTOLIC.preset("tiny-os")
    t = SYSTOLIC.timing(tiny, M=1, K=1, N=1, convention="scalesim")
    assert t.total_cycles == scalesim("OS", 1, 1, 1, 1, 1) == 0
    assert np.isnan(t.utilization)
    assert SYSTOLIC.timing(tiny, M=1, K=1, N=1).total_cycles == 2


def test_texts_and_numpy_integers_are_taken_by_the_params_class_itself():
    p = SystolicParams(rows=np.int64(4), dataflow="OS", overflow="saturate")
    assert p == SYSTOLIC.params(rows="4", dataflow="os", overflow="saturate")
    assert type(p.rows) is int


def test_utilization_is_useful_macs_over_all():
    t = SYSTOLIC.timing(SYSTOLIC.params(), M=512, K=512, N=512)
    assert t.utilization == 512**3 / (t.total_cycles * 256)


def test_ops_count_useful_multiplications():
    for dataflow in ("WS", "OS"):
        counted = SYSTOLIC.ops(SYSTOLIC.params(dataflow=dataflow), M=3, K=20, N=17)
        assert next(op for op in counted if op.kind == "mul").count == 3 * 20 * 17


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rows": 0}, "systolic: rows must be a whole number from 1 to 256, not 0"),
        ({"act_bits": 17}, "act_bits must be a whole number from 2 to 16, not 17"),
        ({"dataflow": "XS"}, r"systolic: dataflow='XS' is unknown; one of: OS, WS|did you mean"),
        ({"colls": 3}, "systolic: no parameter 'colls'; did you mean 'cols'"),
        ({"rows": "1_6"}, "systolic: rows='1_6' is not a whole number"),
        ({"rows": "many"}, "systolic: rows='many' is not a whole number"),
        ({"rows": 2.5}, "rows=2.5 is not a whole number"),
        ({"rows": True}, "rows=True is not a whole number"),
        ({"acc_bits": None}, "acc_bits takes int, not none"),
        ({"overflow": "clip"}, "overflow='clip' is unknown"),
    ],
)
def test_impossible_parameters_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        SYSTOLIC.params(**values)


def test_operands_outside_their_width_are_refused():
    p = SYSTOLIC.params(act_bits=4)
    with pytest.raises(InputError, match="A: 8 is outside"):
        SYSTOLIC.golden(p, np.array([[8]]), np.array([[1]]))
    with pytest.raises(InputError, match="convention is rtl or scalesim, not 'x'"):
        SYSTOLIC.timing(p, M=1, K=1, N=1, convention="x")
