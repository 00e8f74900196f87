"""Look-up engines: golden against tables built entry by entry, uniform weights against int64."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from amaranth.hdl import Module, signed
from amaranth.lib.wiring import Component, In, Out
from amaranth.sim import Simulator

from hwsim.verify import run_rtl
from models.catalog import unit
from models.lutgemm import BcqWeights, codes_of, uniform_weights
from models.unit import InputError
from rtl.lutgemm import TableBuilder, read

LUTGEMM, SHIFTADD = unit("lutgemm"), unit("shiftadd")


def by_tables(params, a, w):
    """Y by reading literal tables, in Python integers: full tables of all signed sums, one read a key and bit plane."""
    (m_size, k_size), n_size, mu = a.shape, w.shape[1], params.mu
    out = np.zeros((m_size, n_size), dtype=np.int64)
    for m, k0 in itertools.product(range(m_size), range(0, k_size, mu)):
        x = [int(v) for v in a[m, k0 : k0 + mu]]
        x += [0] * (mu - len(x))
        table = [sum(v if key >> i & 1 else -v for i, v in enumerate(x)) for key in range(1 << mu)]
        group = k0 // w.group
        for n in range(n_size):
            for plane in range(params.weight_bits):
                column = w.codes[k0 : k0 + mu, n]
                key = sum((int(c) >> plane & 1) << i for i, c in enumerate(column))
                out[m, n] += int(w.scales[plane, group, n]) * table[key]
            out[m, n] += int(w.offsets[group, n]) * sum(x)
    return out


def by_values(a, w):
    """Y from every weight's value spelled out, in Python integers."""
    (m_size, k_size), n_size = a.shape, w.shape[1]
    out = np.zeros((m_size, n_size), dtype=np.int64)
    for k, n in itertools.product(range(k_size), range(n_size)):
        group = k // w.group
        planes = enumerate(w.scales[:, group, n])
        value = sum(int(s) if int(w.codes[k, n]) >> i & 1 else -int(s) for i, s in planes) + int(w.offsets[group, n])
        for m in range(m_size):
            out[m, n] += int(a[m, k]) * value
    return out


def shared_at_the_edge(params):
    return getattr(params, "scales", "group") != "group"


@pytest.mark.parametrize(
    "entry, preset", [(u, name) for u in (LUTGEMM, SHIFTADD) for name in u.presets if not name.startswith("fp16")]
)
def test_golden_equals_literal_tables(entry, preset):
    p = entry.preset(preset)
    wide = entry.params(**{f: getattr(p, f) for f in p.__dataclass_fields__} | {"acc_bits": 48})
    for seed in range(6):
        a, w, *start = entry.sample(wide, np.random.default_rng(seed))
        want = by_values(a, w) if shared_at_the_edge(p) else by_tables(p, a, w)
        want = want + (start[0] if start else 0)
        got = entry.golden(wide, a, w, *start)
        half = 1 << 47
        assert (got == (want + half) % (2 * half) - half).all()


@pytest.mark.parametrize("entry, preset", [(u, n) for u in (LUTGEMM, SHIFTADD) for n in u.presets if "fp16" in n])
def test_fp16_activations_are_off_by_their_alignment_and_no_more(entry, preset):
    """Against float64: half a unit of the aligned integers for each weight (one where they are truncated), and two
    roundings to single precision a tile."""
    p = entry.preset(preset)
    rng = np.random.default_rng(5)
    a, w = entry.sample(p, rng, M=20, K=40, N=5)
    exact = np.zeros((20, 5))
    bound = np.zeros((20, 5))
    for k0 in range(0, 40, p.array.tile_k):
        x, v = a[:, k0 : k0 + p.array.tile_k].astype(np.float64), w.integers[k0 : k0 + p.array.tile_k]
        exact += x @ v
        unit_in_last = 2.0 ** (np.frexp(np.abs(x).max(axis=1))[1] - p.act_bits + 1)
        bound += unit_in_last[:, None] * np.abs(v).sum(axis=0)
        bound += 2.0**-22 * (np.abs(x) @ np.abs(v) + np.abs(exact))
    error = np.abs(entry.golden(p, a, w) - exact)
    assert (error <= bound).all()
    assert error.max() > 0


@pytest.mark.parametrize("name", ["column", "block"])
def test_what_outputs_share_must_be_the_same_in_a_tile(name):
    p = SHIFTADD.preset(name)
    a, w = SHIFTADD.sample(p, np.random.default_rng(1), M=2, K=p.array.tile_k, N=2 * p.cols)
    SHIFTADD.golden(p, a, w)
    scales = np.array(w.scales)
    scales[0, 0, -1] = 1 if scales[0, 0, -1] == 2 else 2
    other = BcqWeights(codes=w.codes, scales=scales, offsets=w.offsets, group=w.group)
    with pytest.raises(InputError, match=f"needs the same scales in outputs {p.cols} to {2 * p.cols - 1}, which are"):
        SHIFTADD.golden(p, a, other)
    with pytest.raises(InputError, match=f"needs W in groups of {w.group} along K, not {2 * w.group}"):
        SHIFTADD.golden(
            p,
            a,
            BcqWeights(codes=w.codes, scales=w.scales[:, ::2], offsets=w.offsets[::2], group=2 * w.group),
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6, 1 + 2**-12])
def test_activations_that_are_no_fp16_are_refused_with_their_place(bad):
    p = LUTGEMM.preset("fp16")
    a, w = LUTGEMM.sample(p, np.random.default_rng(1), M=2, K=8, N=2)
    a = a.astype(np.float64)
    a[1, 3] = bad
    with pytest.raises(InputError, match=r"A\[1, 3\]: .*FP16"):
        LUTGEMM.golden(p, a, w)


def test_a_key_longer_than_the_table_is_refused():
    array = LUTGEMM.preset("grouped").array
    with pytest.raises(InputError, match=r"key.*: 4 is outside 0\.\.3 \(2 bits\)"):
        codes_of(array, np.full((array.rows, array.cols, array.planes), 4))


class Lookup(Component):
    """A table of `mu` activations, built and read by the RTL's own means."""

    def __init__(self, mu, half_table):
        self.mu, self.half_table, self.table_bits = mu, half_table, 12
        super().__init__({"act": In(8 * mu), "key": In(mu), "read": Out(signed(16))})

    def elaborate(self, _platform):
        m = Module()
        m.submodules.builder = builder = TableBuilder(self.mu, 8, self.half_table, self.table_bits)
        m.d.comb += builder.act.eq(self.act)
        m.d.comb += self.read.eq(read(m, builder.table, self.key, self.mu, self.half_table, self.table_bits))
        return m


def looked_up(mu, half_table, x):
    """What the RTL reads for every key."""
    top, found = Lookup(mu, half_table), []

    async def bench(context):
        context.set(top.act, sum((int(v) & 255) << 8 * i for i, v in enumerate(x)))
        for key in range(1 << mu):
            context.set(top.key, key)
            found.append(context.get(top.read))

    simulator = Simulator(top)
    simulator.add_testbench(bench)
    simulator.run()
    return found


@pytest.mark.parametrize("mu", range(1, 9))
def test_the_rtls_half_and_full_tables_give_every_key_its_signed_sum(mu):
    """Every key of both tables, for any activations, the least ones, and the least beside the greatest."""
    drawn = np.random.default_rng(mu).integers(-128, 128, mu)
    for x in (drawn, np.full(mu, -128), np.where(np.arange(mu) % 2, 127, -128)):
        sums = [sum(int(v) if key >> i & 1 else -int(v) for i, v in enumerate(x)) for key in range(1 << mu)]
        assert looked_up(mu, True, x) == sums
        assert looked_up(mu, False, x) == sums
        assert sums == [-s for s in reversed(sums)]


@pytest.mark.parametrize("entry", [LUTGEMM, SHIFTADD])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7, 8])
def test_uniform_weights_are_exactly_the_integer_product(entry, bits):
    rng = np.random.default_rng(bits)
    extra = {"scale_bits": 10} if entry is LUTGEMM else {}
    p = entry.params(weight_bits=bits, group_size=64, **extra)
    a = rng.integers(-128, 128, (5, 131))
    w = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (131, 9))
    operand, worth = entry.from_integers(p, w)
    assert worth == Fraction(1, 2)
    assert (entry.golden(p, a, operand) == 2 * (a @ w)).all()


def test_without_its_offset_a_uniform_weight_would_be_wrong():
    w = uniform_weights(np.array([[3], [-4]]), 3)
    assert w.integers.tolist() == [[6], [-8]]
    dropped = BcqWeights(codes=w.codes, scales=w.scales, offsets=0 * w.offsets, group=2)
    assert dropped.integers.tolist() == [[7], [-7]]


def test_groups_take_their_own_scales():
    codes = np.ones((32, 1), dtype=np.int64)
    scales = np.array([[[3], [5]]])
    w = BcqWeights(codes=codes, scales=scales, offsets=np.array([[0], [1]]), group=16)
    p = LUTGEMM.params(rows=2, cols=1, mu=4, weight_bits=1, group_size=16)
    assert LUTGEMM.golden(p, np.ones((1, 32), dtype=np.int64), w).item() == 16 * 3 + 16 * 6


def test_saturation_happens_once_a_tile():
    """A tile's sum is exact; only its addition to the accumulator saturates."""
    p = LUTGEMM.params(rows=1, cols=1, mu=2, weight_bits=1, acc_bits=8, overflow="saturate", act_bits=8)
    w = BcqWeights(codes=np.ones((4, 1), dtype=np.int64), scales=np.array([[[1]]]), offsets=np.array([[0]]), group=4)
    assert LUTGEMM.golden(p, np.array([[120, -100, 100, 120]]), w).item() == 127
    assert LUTGEMM.golden(p, np.array([[120, 100, -100, -120]]), w).item() == 127 - 220


def test_a_negative_power_of_two_term_counts():
    w = BcqWeights(codes=np.array([[1]]), scales=np.array([[[7]]]), offsets=np.array([[-3]]), group=1)
    for scales in ("group", "column", "block"):
        p = SHIFTADD.params(rows=1, cols=1, mu=1, weight_bits=1, num_terms=2, max_shift=3, scales=scales)
        beats = SHIFTADD.beats(p, np.array([[5]]), w)
        # codes 2 (shift + 1), one more where negative: 7 = 8 - 1 and -3 = -4 + 1, whose words enter before or beside
        assert sorted(np.unique(beats["i_weight"]["scale"]).tolist()) == [2, 3, 7, 8]
        # through the RTL: without the sign of a residual term it would be (9 + 5) * 5
        assert run_rtl(p, (np.array([[5]]), w)).output.item() == (7 - 3) * 5


@pytest.mark.parametrize(
    "values, message",
    [
        ({"group_size": 48}, r"group_size must be a multiple of rows \* mu = 32, not 48; nearest: 64"),
        ({"mu": 9}, "mu must be a whole number from 1 to 8, not 9"),
        ({"weight_bits": 0}, "weight_bits must be a whole number from 1 to 8"),
        ({"half_table": "maybe"}, "half_table='maybe' is not a truth value"),
        ({"readers": 6}, r"readers must be the read-accumulate units of a column \(4\) times .* not 6; nearest: 4"),
        ({"serial": True, "readers": 3}, r"a column \(1\) times a divisor of cols, not 3; nearest: [24]"),
        ({"act_format": "fp16", "acc_bits": 24}, "act_format=fp16 sums in single precision and needs acc_bits=32"),
        ({"act_format": "fp16", "overflow": "saturate"}, "needs overflow=wrap, since those neither wrap nor"),
        ({"act_format": "fp8"}, "act_format='fp8' is unknown; one of: fp16, int"),
    ],
)
def test_impossible_parameters_are_refused(values, message):
    for entry in (LUTGEMM, SHIFTADD):
        with pytest.raises(InputError, match=message):
            entry.params(**values)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"serial": True}, "scales=column shifts before the look-up and needs serial=false; or take scales=group"),
        ({"group_size": 32}, "needs group_size=none, not 32"),
        ({"readers": 4}, "needs readers=none, not 4"),
    ],
)
def test_scales_at_the_edge_leave_no_room_for_what_columns_share(values, message):
    with pytest.raises(InputError, match=message):
        SHIFTADD.params(scales="column", **values)


def test_scales_that_the_words_cannot_hold_are_refused():
    codes = np.array([[1]])
    big = BcqWeights(codes=codes, scales=np.array([[[11]]]), offsets=np.array([[0]]), group=1)
    a = np.array([[1]])
    with pytest.raises(InputError, match=r"scales.*: 11 is outside"):
        LUTGEMM.golden(LUTGEMM.params(weight_bits=1, scale_bits=4), a, big)
    with pytest.raises(InputError, match="11 is not a sum of 2 signed powers of two"):
        SHIFTADD.golden(SHIFTADD.params(weight_bits=1, num_terms=2), a, big)
    with pytest.raises(InputError, match="W has 1 bit planes, the array 4"):
        LUTGEMM.golden(LUTGEMM.params(), a, big)
    with pytest.raises(InputError, match="need scale_bits of at least 9, not 8"):
        LUTGEMM.from_integers(LUTGEMM.params(weight_bits=8), codes)
    with pytest.raises(InputError, match="need max_shift of at least 3, not 2"):
        SHIFTADD.from_integers(SHIFTADD.params(max_shift=2), codes)


def test_weights_of_any_integer_type_compute_the_same():
    parts = {"codes": np.array([[1], [0]]), "scales": np.array([[[100]]]), "offsets": np.array([[3]])}
    p = LUTGEMM.params(weight_bits=1)
    a = np.array([[64, 32]])
    want = LUTGEMM.golden(p, a, BcqWeights(**parts, group=2)).item()
    assert want == 100 * 64 - 100 * 32 + 3 * 96
    narrow = BcqWeights(**{name: values.astype(np.int8) for name, values in parts.items()}, group=2)
    assert LUTGEMM.golden(p, a, narrow).item() == want


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"group": 0}, "group must be a whole number of at least 1, not 0"),
        ({"codes": np.array([[1.0]])}, "codes: integers with 2 axes are needed, not float64"),
        ({"codes": np.array([1])}, r"codes: integers with 2 axes are needed, not int64 \(1,\)"),
        ({"scales": np.array([[[1], [2]]])}, r"scales are \(1, 2, 1\), not \[planes, 1, 1\]"),
    ],
)
def test_weights_that_are_no_binary_code_are_refused(changes, message):
    parts = {"codes": np.array([[1]]), "scales": np.array([[[1]]]), "offsets": np.array([[0]]), "group": 1}
    with pytest.raises(InputError, match=message):
        BcqWeights(**{**parts, **changes})


def test_groups_that_are_not_the_arrays_are_refused():
    w = BcqWeights(
        codes=np.zeros((64, 1), dtype=np.int64),
        scales=np.ones((4, 2, 1), dtype=np.int64),
        offsets=np.zeros((2, 1), dtype=np.int64),
        group=32,
    )
    a = np.ones((1, 64), dtype=np.int64)
    LUTGEMM.golden(LUTGEMM.params(group_size=32), a, w)
    for size in (None, 64):
        with pytest.raises(InputError, match=f"W has groups of 32: the array has group_size={size}"):
            LUTGEMM.golden(LUTGEMM.params(group_size=size), a, w)
