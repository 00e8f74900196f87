"""Exact products and ordered accumulation against int64 arithmetic and a plain loop."""

import numpy as np
import pytest

from models import gemm
from models.bits import Overflow, signed_range
from models.catalog import UNITS, unit
from models.unit import InputError, Kind


@pytest.mark.parametrize("bits_a, bits_w", [(8, 8), (12, 12), (16, 16), (20, 22), (30, 30)])
@pytest.mark.parametrize("k", [1, 127, 1024, 3000])
def test_exact_matmul_equals_int64(bits_a, bits_w, k):
    rng = np.random.default_rng(k + bits_a)
    a = rng.integers(*signed_range(bits_a), size=(3, k), endpoint=True)
    w = rng.integers(*signed_range(bits_w), size=(k, 5), endpoint=True)
    a[0], w[:, 0] = signed_range(bits_a)[0], signed_range(bits_w)[0]  # every product at its largest
    if bits_a < 30:
        assert (gemm.exact_matmul(a, w) == a @ w).all()
    else:  # beyond 2^62 only smaller operands keep the promise that sums stay below 2^63
        assert (gemm.exact_matmul(a >> 4, w >> 4) == (a >> 4) @ (w >> 4)).all()


def test_exact_matmul_would_be_wrong_without_the_split():
    k = 4096
    a, w = np.full((1, k), -(2**11)), np.full((k, 1), -(2**11))
    a[0, 0], w[0, 0] = 1, 1  # an odd sum of 35 bits
    want = int((a @ w)[0, 0])
    assert int((a.astype(np.float32) @ w.astype(np.float32))[0, 0]) != want
    assert int(gemm.exact_matmul(a, w)[0, 0]) == want


def accumulated(a, w, start, bits, overflow):
    """Products added one by one, in Python integers."""
    low, high = signed_range(bits)
    out = np.zeros((a.shape[0], w.shape[1]), dtype=np.int64)
    for i in range(a.shape[0]):
        for j in range(w.shape[1]):
            acc = int(start[i, j])
            for k in range(a.shape[1]):
                acc += int(a[i, k]) * int(w[k, j])
                wrapped, limited = (acc - low) % (high - low + 1) + low, min(max(acc, low), high)
                acc = wrapped if overflow is Overflow.WRAP else limited
            out[i, j] = acc
    return out


@pytest.mark.parametrize("overflow", list(Overflow))
@pytest.mark.parametrize("bits", [4, 10, 14, 17, 34])
def test_accumulate_in_order_equals_a_plain_loop(overflow, bits):
    rng = np.random.default_rng(bits)
    for wide in (8, 16):
        a = rng.integers(*signed_range(wide), size=(4, 37), endpoint=True)
        w = rng.integers(*signed_range(wide), size=(37, 6), endpoint=True)
        start = rng.integers(*signed_range(bits), size=(4, 6), endpoint=True)
        assert (gemm.accumulate(a, w, start, bits, overflow) == accumulated(a, w, start, bits, overflow)).all()


def test_saturation_depends_on_the_order():
    a, w = np.array([[100, 100, -100]]), np.array([[1], [1], [1]])
    forward = gemm.accumulate(a, w, None, 8, Overflow.SATURATE)
    backward = gemm.accumulate(a[:, ::-1], w, None, 8, Overflow.SATURATE)
    assert forward.item() == 27
    assert backward.item() == 100


@pytest.mark.parametrize("k, wrapped, saturated", [(31, 31 << 14, 31 << 14), (32, -(1 << 19), (1 << 19) - 1)])
def test_the_accumulators_limit_is_met_exactly(k, wrapped, saturated):
    a, w = np.full((1, k), -128), np.full((k, 1), -128)
    assert gemm.accumulate(a, w, None, 20, Overflow.WRAP).item() == wrapped
    assert gemm.accumulate(a, w, None, 20, Overflow.SATURATE).item() == saturated


def test_shapes_and_operands_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="N must be a whole number of at least 1, not 0"):
        gemm.check_shape(M=1, K=2, N=0)
    with pytest.raises(InputError, match="A's columns must equal W's rows"):
        gemm.check_operands(np.ones((2, 3)), (4, 5))
    with pytest.raises(InputError, match=r"A must be a matrix \[M, K\]"):
        gemm.check_operands(np.ones(3), (3, 5))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8, np.uint64])
def test_narrow_and_unsigned_shapes_count_like_wide_ones(dtype):
    """Sizes from tables come in any integer type; products of three must not wrap."""
    systolic = unit("systolic")
    sizes = dtype(100), dtype(33), dtype(100)
    want = systolic.timing(systolic.params(), M=100, K=33, N=100)
    assert systolic.timing(systolic.params(), *sizes) == want
    together = systolic.timing(systolic.params(), *(np.array([size]) for size in sizes))
    assert together.total_cycles.tolist() == [want.total_cycles]
    assert together.utilization.tolist() == [want.utilization]


def test_sizes_beyond_what_int64_products_hold_are_refused():
    with pytest.raises(InputError, match="K must be at most 1048576"):
        gemm.check_shape(K=np.uint64(2**63))
    systolic = unit("systolic")
    assert systolic.timing(systolic.params(), *[1 << 20] * 3).work == 1 << 60


def test_without_a_place_for_compiled_code_kernels_still_compile(monkeypatch):
    from models import gemm_kernels

    honest = gemm_kernels.numba.njit

    def nowhere(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return honest(**options)

    monkeypatch.setattr(gemm_kernels.numba, "njit", nowhere)
    assert gemm_kernels.compiled()(lambda x: x + 1)(41) == 42


@pytest.mark.parametrize("acc_bits", [12, 18, 40])
@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 8, 100])
@pytest.mark.parametrize("overflow", list(Overflow))
def test_blocks_are_added_exactly_and_limited_one_after_the_other(acc_bits, block, overflow):
    rng = np.random.default_rng([acc_bits, block])
    m, n = rng.integers(1, 40, 2)
    k = 2 * block + int(rng.integers(1, block + 1))  # the last block is not whole but for blocks of one
    a, w = rng.integers(-128, 128, (m, k)), rng.integers(-128, 128, (k, n))
    low, high = signed_range(acc_bits)
    start = rng.integers(low, high, (m, n), endpoint=True)
    total = start.copy()
    for i in range(0, k, block):
        total += a[:, i : i + block] @ w[i : i + block]
        total = np.clip(total, low, high) if overflow == "saturate" else (total - low) % (1 << acc_bits) + low
    assert (gemm.accumulate_blocks(a, w, start, block, acc_bits, overflow) == total).all()


ARRAYS = [(name, preset) for name, entry in UNITS.items() if entry.kind is Kind.GEMM for preset in entry.presets]
CODES = {"act": "act", "weight": "weight", "code": "weight", "key": "weight", "psum": "psum"}


@pytest.mark.parametrize("name, preset", ARRAYS)
def test_words_are_what_the_beats_carry_at_whole_folds(name, preset):
    """Where every lane is in use nothing is padding: the words counted from the shape are those that `beats` sends."""
    entry = UNITS[name]
    params = entry.preset(preset)
    fold = gemm.fold_of(params)
    m, k, n = max(2 * fold.M, 3 * 64 if getattr(params, "buffers", 1) > 1 else 3), 2 * fold.K, 2 * fold.N
    m = -(-m // fold.M) * fold.M
    if fold.N == 1:  # the other operand moves: enough of it that nothing is filled up
        n = 64 * 3
    operands = entry.sample(params, np.random.default_rng(0), M=m, K=k, N=n)
    timing = entry.timing(params, **entry.shape_of(params, *operands))
    sent = {}
    for fields in entry.beats(params, *operands).values():
        for field, values in fields.items():
            if field in CODES:
                sent.setdefault(CODES[field], values.size)
    assert timing.words["act"] == sent["act"]
    if not hasattr(params, "columns"):  # whose weights are packed: a key is several
        assert timing.words["weight"] == sent["weight"]
    assert fold.takes_psum == ("psum" in sent)
    if fold.takes_psum:
        assert timing.words["out"] == sent["psum"]
        assert timing.words["psum"] == sent["psum"] - m * n
