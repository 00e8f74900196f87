"""XNOR and popcount arrays: golden against literal bit planes, corrections and words that must not be dropped."""

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest

from hwsim.synth import synthesize
from models.catalog import unit
from models.formats import get_format
from models.unit import InputError, Stimulus
from rtl.emit import emit

BIPOLAR = unit("bipolar")


def planes_product(x, w, act_bits, weight_bits):
    """sum_{i,j} 2^(i+j) (K - 2 popcount(x_i xor w_j)) of two lists of unsigned codes."""
    total = 0
    for i, j in itertools.product(range(act_bits), range(weight_bits)):
        differ = sum((a >> i ^ b >> j) & 1 for a, b in zip(x, w, strict=True))
        total += (len(x) - 2 * differ) << (i + j)
    return total


def act_codes(p, x):
    """Bits of the activations with the top one inverted."""
    mask = (1 << p.act_bits) - 1
    return [(int(v) & mask) ^ (1 << (p.act_bits - 1)) for v in x]


def weight_codes(p, w):
    if p.correction:
        return [(int(v) & ((1 << p.weight_bits) - 1)) ^ (1 << (p.weight_bits - 1)) for v in w]
    codes = range(1 << p.weight_bits)
    table = {sum((1 if c >> i & 1 else -1) << i for i in range(p.weight_bits)): c for c in codes}
    return [table[int(v)] for v in w]


def signs_sum(codes, bits):
    """What bipolar integers add up to, bit by bit."""
    return sum((1 if c >> i & 1 else -1) << i for c in codes for i in range(bits))


def by_planes(p, a, w, psum, act_correction=True, weight_correction=True):
    """Y by literal planes, tile by tile with the padding that the array has: zero activations, code 0 of weights."""
    (m_size, k_size), n_size = a.shape, w.shape[1]
    low, high = -(1 << (p.acc_bits - 1)), (1 << (p.acc_bits - 1)) - 1
    out = np.zeros((m_size, n_size), dtype=np.int64)
    for m, n in itertools.product(range(m_size), range(n_size)):
        total = 0 if psum is None else int(psum[m, n])
        for k0 in range(0, k_size, p.rows):
            xs, ws = a[m, k0 : k0 + p.rows], w[k0 : k0 + p.rows, n]
            empty = p.rows - len(xs)
            x, codes = act_codes(p, [*xs, *[0] * empty]), weight_codes(p, ws) + [0] * empty
            total += planes_product(x, codes, p.act_bits, p.weight_bits)
            if weight_correction:
                total -= signs_sum(codes, p.weight_bits)
            if act_correction and p.correction:
                total -= 2 * int(xs.sum())
            span = high - low + 1
            total = (total - low) % span + low if p.overflow == "wrap" else min(max(total, low), high)
        out[m, n] = total
    return out


def operands_of(p, seed):
    a, w, *psum = BIPOLAR.sample(p, np.random.default_rng(seed))
    return a[:4], w[:, :3], (psum[0][:4, :3] if psum else None)


@pytest.mark.parametrize("preset", [name for name in BIPOLAR.presets if name != "default"])
def test_golden_equals_literal_planes(preset):
    p = BIPOLAR.preset(preset)
    for seed in range(8):
        operands = operands_of(p, seed)
        assert (BIPOLAR.golden(p, *operands) == by_planes(p, *operands)).all()


@pytest.mark.parametrize("act_bits, weight_bits", [(1, 1), (2, 3), (8, 4), (3, 8)])
@pytest.mark.parametrize("correction", [True, False])
def test_all_pairs_of_codes_multiply(act_bits, weight_bits, correction):
    p = BIPOLAR.params(rows=1, cols=1, act_bits=act_bits, weight_bits=weight_bits, correction=correction, acc_bits=40)
    x = np.arange(1 << act_bits) - (1 << (act_bits - 1))
    w = BIPOLAR.plain_weights(p)
    assert len(w) == 1 << weight_bits
    assert (np.diff(w) > 0).all()
    y = BIPOLAR.golden(p, x[:, None], w[None])
    literal = by_planes(p, x[:, None], w[None], None)
    assert (y == literal).all()
    assert (y == (4 if correction else 2) * np.outer(x, w)).all()


@pytest.mark.parametrize("dropped", ["act_correction", "weight_correction"])
def test_without_a_correction_the_planes_are_not_the_product(dropped):
    p = BIPOLAR.params(rows=4, cols=2, act_bits=3, weight_bits=2)
    rng = np.random.default_rng(1)
    a, w = rng.integers(-4, 4, (3, 6)), rng.integers(-2, 2, (6, 2))
    assert (by_planes(p, a, w, None) == 4 * (a @ w)).all()
    assert (by_planes(p, a, w, None, **{dropped: False}) != 4 * (a @ w)).any()


def test_bipolar_weights_need_no_sum_of_activations():
    p = BIPOLAR.params(rows=4, cols=2, act_bits=3, weight_bits=2, correction=False)
    rng = np.random.default_rng(2)
    a, w = rng.integers(-4, 4, (3, 6)), 2 * rng.integers(-2, 2, (6, 2)) + 1
    assert (by_planes(p, a, w, None, act_correction=False) == 2 * (a @ w)).all()
    assert (by_planes(p, a, w, None, weight_correction=False) != 2 * (a @ w)).any()


def test_the_word_that_comes_with_the_weights_is_what_is_added():
    """A trace follows the words that were loaded: one that is dropped, padding rows included, is missing in Y."""
    p = BIPOLAR.preset("small")
    rng = np.random.default_rng(3)
    a, w = rng.integers(-4, 4, (2, 3)), rng.integers(-2, 2, (3, 3))
    beats = BIPOLAR.beats(p, a, w)
    assert (beats["i_weight"]["word"] == beats["i_weight"]["word"][0]).all()
    faulty = beats | {"i_weight": beats["i_weight"] | {"word": 0 * beats["i_weight"]["word"]}}
    always = np.ones(1, dtype=bool)
    sums = []
    for fed in (beats, faulty):
        stimulus = Stimulus(beats=fed, offer=dict.fromkeys(fed, always), accept={"o_psum": always})
        traced = BIPOLAR.trace(p, stimulus)
        sums.append(traced["o_psum.payload.psum"][traced["o_psum.valid"]])
    assert (sums[0] == 4 * (a @ w)).all()
    held = 2 * np.concatenate([w, np.full((p.rows - 3, 3), -2)]) + 1
    assert (sums[1] - sums[0] == held.sum(axis=0)).all()
    assert held.sum(axis=0).any()


@pytest.mark.parametrize("correction", [True, False])
def test_quantized_weights_give_the_product_in_the_stated_unit(correction):
    p = BIPOLAR.params(weight_bits=3, correction=correction)
    name, options = BIPOLAR.weight_format(p)
    rng = np.random.default_rng(4)
    q = get_format(name, **options).quantize(rng.normal(size=(40, 5)), axis=0)
    w, worth = BIPOLAR.operand(p, q)
    a = rng.integers(-128, 128, (3, 40))
    assert worth == Fraction(1, 4 if correction else 2)
    assert (BIPOLAR.golden(p, a, w) * worth == a @ q.integers).all()
    assert (BIPOLAR.from_integers(p, q.integers)[0] == w).all()


@pytest.mark.parametrize(
    "change, w, message",
    [
        ({}, [[8]], r"W.*: 8 is outside -8\.\.7"),
        ({"correction": False}, [[15, 4]], "W: 4 is even and bipolar integers are odd; nearest: 3"),
        ({"correction": False}, [[-16]], "W: -16 is even.*nearest: -15"),
        ({"correction": False}, [[17]], "W.*: 17 is outside"),
        ({}, [[0.5]], "integers are needed"),
    ],
)
def test_weights_that_the_array_cannot_hold_are_refused(change, w, message):
    p = BIPOLAR.params(**change)
    with pytest.raises(InputError, match=message):
        BIPOLAR.from_integers(p, np.array(w))
    with pytest.raises(InputError, match=message):
        BIPOLAR.golden(p, np.zeros((1, 1), dtype=np.int64), np.array(w))


def test_activations_that_do_not_fit_are_refused():
    p, w = BIPOLAR.preset("binary"), np.ones((2, 1), dtype=np.int64)
    for function in (BIPOLAR.golden, BIPOLAR.beats):
        with pytest.raises(InputError, match=r"A.*: -2 is outside -1\.\.0"):
            function(p, np.array([[0, -2]]), w)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"act_bits": 9}, "act_bits must be a whole number from 1 to 8"),
        ({"weight_bits": 0}, "weight_bits must be"),
        ({"rows": 257}, "rows must be"),
        ({"correction": 2}, "correction"),
    ],
)
def test_parameters_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        BIPOLAR.params(**change)


def test_one_bit_integers_have_no_format():
    with pytest.raises(InputError, match="correction=false"):
        BIPOLAR.weight_format(BIPOLAR.params(weight_bits=1))
    assert BIPOLAR.weight_format(BIPOLAR.params(weight_bits=1, correction=False)) == ("bipolar", {"bits": 1})


@pytest.mark.slow
@pytest.mark.parametrize("correction", [True, False])
def test_every_data_register_is_counted_once_a_cycle(correction, tmp_path, monkeypatch):
    monkeypatch.setenv("HWSIM_CACHE", str(tmp_path))
    p = dataclasses.replace(BIPOLAR.preset("small"), correction=correction)
    one, two = (BIPOLAR.ops(p, M=m, K=p.rows, N=p.cols) for m in (1, 2))
    bits = [sum(op.count * op.bits for op in counted if op.kind == "reg") for counted in (one, two)]
    a_cycle = bits[1] - bits[0]
    loading = bits[0] - a_cycle * BIPOLAR.timing(p, M=1, K=p.rows, N=p.cols).total_cycles
    held = p.cols * (p.rows * p.weight_bits + p.word_bits)
    control = (p.rows - 1).bit_length() + 1 + p.columns.latency  # beats loaded, full, valid bits
    cells = synthesize(emit(p), "bipolar").cells
    assert loading == p.rows * held
    assert sum(n for cell, n in cells.items() if cell.startswith("DFF")) == a_cycle + held + control
