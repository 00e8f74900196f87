"""Systolic arrays: golden against int64, SCALE-Sim's published counts, and where ours differ."""

import numpy as np
import pytest

from models.catalog import unit
from models.systolic import SystolicParams
from models.unit import InputError, Stimulus

SYSTOLIC = unit("systolic")


@pytest.mark.parametrize("dataflow", ["WS", "OS", "IS"])
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
    for dataflow in ("WS", "IS"):
        assert SYSTOLIC.golden(SYSTOLIC.params(dataflow=dataflow), a, w, start).item() == 7


def scalesim(dataflow, r, c, m, k, n):
    """SCALE-Sim's formulas, written out for single shapes."""

    def up(x, y):
        return -(-x // y)

    if dataflow == "OS":
        return up(m, r) * up(n, c) * (k + r + c - 2) - 1
    if dataflow == "IS":
        return up(k, r) * up(m, c) * (n + 2 * r + c - 2) - 1
    return up(k, r) * up(n, c) * (m + 2 * r + c - 2) - 1


@pytest.mark.parametrize("dataflow", ["WS", "OS", "IS"])
@pytest.mark.parametrize("rows, cols", [(16, 16), (1, 1), (8, 32), (128, 128)])
def test_scalesim_convention_over_arrays_of_shapes(dataflow, rows, cols):
    rng = np.random.default_rng(rows)
    m, k, n = rng.integers(1, 5000, (3, 60_000))
    p = SYSTOLIC.params(rows=rows, cols=cols, dataflow=dataflow)
    theirs = SYSTOLIC.timing(p, M=m, K=k, N=n, convention="scalesim").total_cycles
    ours = SYSTOLIC.timing(p, M=m, K=k, N=n)
    for i in range(0, 60_000, 997):
        assert theirs[i] == scalesim(dataflow, rows, cols, int(m[i]), int(k[i]), int(n[i]))
    if dataflow != "OS":
        assert (ours.total_cycles == theirs + 2).all()
    else:
        folds = -(-m // rows) * -(-n // cols)
        assert (ours.total_cycles == theirs + (rows + 1) * folds + 1).all()
    parts = ours.load_cycles + ours.stream_cycles + ours.drain_cycles
    assert (parts == ours.total_cycles).all()
    assert ((ours.utilization > 0) & (ours.utilization <= 1)).all()


def test_scalesim_counts_no_cycle_for_a_single_mac():
    tiny = SYSTOLIC.preset("tiny-os")
    t = SYSTOLIC.timing(tiny, M=1, K=1, N=1, convention="scalesim")
    assert t.total_cycles == scalesim("OS", 1, 1, 1, 1, 1) == 0
    assert np.isnan(t.utilization)
    assert SYSTOLIC.timing(tiny, M=1, K=1, N=1).total_cycles == 3


def test_texts_and_numpy_integers_are_taken_by_the_params_class_itself():
    p = SystolicParams(rows=np.int64(4), dataflow="OS", overflow="saturate")
    assert p == SYSTOLIC.params(rows="4", dataflow="os", overflow="saturate")
    assert type(p.rows) is int


def test_utilization_is_useful_macs_over_all():
    t = SYSTOLIC.timing(SYSTOLIC.params(), M=512, K=512, N=512)
    assert t.utilization == 512**3 / (t.total_cycles * 256)


def test_ops_count_useful_multiplications():
    for dataflow in ("WS", "OS", "IS"):
        counted = SYSTOLIC.ops(SYSTOLIC.params(dataflow=dataflow), M=3, K=20, N=17)
        assert next(op for op in counted if op.kind == "mul").count == 3 * 20 * 17


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rows": 0}, "systolic: rows must be a whole number from 1 to 256, not 0"),
        ({"act_bits": 17}, "act_bits must be a whole number from 2 to 16, not 17"),
        ({"dataflow": "XS"}, r"systolic: dataflow='XS' is unknown; (one of: IS, OS, WS|did you mean)"),
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
    with pytest.raises(InputError, match=r"A.*: 8 is outside"):
        SYSTOLIC.golden(p, np.array([[8]]), np.array([[1]]))
    with pytest.raises(InputError, match="convention is rtl or scalesim, not 'x'"):
        SYSTOLIC.timing(p, M=1, K=1, N=1, convention="x")


def two_buffers(load, latency, vectors, folds):
    """Cycle of the last output, fold by fold: a buffer is loaded again when its last vector stands at the output."""
    starts, loaded = [], 0
    for i in range(folds):
        free = starts[i - 2] + vectors - 1 + latency if i > 1 else 0
        loaded = max(loaded, free) + load
        starts.append(max(loaded, starts[-1] + vectors if starts else 0))
    return starts[-1] + vectors - 1 + latency


@pytest.mark.parametrize("dataflow", ["WS", "IS"])
@pytest.mark.parametrize("rows, cols", [(1, 1), (3, 2), (2, 7), (16, 16)])
def test_two_buffers_hide_loading_under_the_tile_before(dataflow, rows, cols):
    p = SYSTOLIC.params(rows=rows, cols=cols, dataflow=dataflow, buffers=2)
    plain = SYSTOLIC.params(rows=rows, cols=cols, dataflow=dataflow)
    rng = np.random.default_rng(rows)
    for m, k, n in rng.integers(1, 80, (300, 3)).tolist():
        vectors, columns = (n, m) if dataflow == "IS" else (m, n)
        k_folds, latency = -(-k // rows), rows + cols - 1
        filled = vectors if k_folds == 1 else max(vectors, latency + 1)
        t = SYSTOLIC.timing(p, M=m, K=k, N=n)
        assert t.total_cycles == two_buffers(rows, latency, filled, k_folds * -(-columns // cols)) + 1
        if vectors > latency:
            assert t.total_cycles <= SYSTOLIC.timing(plain, M=m, K=k, N=n).total_cycles
    long = SYSTOLIC.timing(p, M=1000, K=20 * rows, N=1000)
    assert long.utilization > 0.9


def test_a_fold_waits_for_the_partial_sums_of_the_one_before():
    """With two buffers: no vector enters before its partial sum, from the fold before, has left."""
    p = SYSTOLIC.params(rows=3, cols=2, buffers=2)
    a, w = np.ones((2, 9), dtype=int), np.ones((9, 2), dtype=int)
    always = np.ones(1, dtype=bool)
    beats = SYSTOLIC.beats(p, a, w)
    offer = dict.fromkeys(beats, always)
    trace = SYSTOLIC.trace(p, Stimulus(beats=beats, offer=offer, accept={"o_psum": always}))
    enters = np.flatnonzero(trace["i_act.valid"] & trace["i_act.ready"])
    leaves = np.flatnonzero(trace["o_psum.valid"] & trace["o_psum.ready"])
    fold = len(enters) // 3
    assert (enters[fold:] > leaves[:-fold]).all()


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"style": "opt1", "overflow": "saturate"},
            "systolic: style=opt1 needs overflow=wrap, since a carry-save pair",
        ),
        ({"style": "ent", "cols": 1}, "systolic: style=ent needs cols of at least 2, so that more than one PE uses an"),
        ({"dataflow": "OS", "buffers": 2}, "systolic: buffers=2 needs dataflow WS or IS; OS loads no tile"),
        ({"buffers": 3}, "systolic: buffers must be a whole number from 1 to 2, not 3"),
        ({"style": "opt2"}, "systolic: style='opt2' is unknown; did you mean 'opt1'"),
    ],
)
def test_styles_and_buffers_that_an_array_cannot_have_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        SYSTOLIC.params(**values)
