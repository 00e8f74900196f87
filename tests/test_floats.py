"""Half and single precision: patterns and refusals against numpy, gates against numpy's and Python's own rounding."""

import numpy as np
import pytest
from amaranth.hdl import Module, signed
from amaranth.lib.wiring import Component, In, Out
from amaranth.sim import Simulator

from models.floats import ADD_STAGES, half, half_bits, half_of, single, single_bits, single_of, unpack_half
from models.unit import InputError
from rtl import floats as gates

ALL_HALVES = np.arange(1 << 16)
FINITE = ALL_HALVES[(ALL_HALVES >> 10 & 31) != 31]


def test_every_pattern_of_a_half_comes_back_and_is_its_mantissa_and_exponent():
    x = half_of(FINITE)
    assert (half_bits(x) == FINITE).all()
    mantissa, exponent = unpack_half(x)
    assert (np.ldexp(mantissa.astype(np.float64), exponent - 25) == x).all()
    assert (np.abs(mantissa).max(), exponent.min(), exponent.max()) == (2047, 1, 30)


def test_patterns_of_singles_come_back():
    x = np.array([0.0, -0.0, 1.5, -(2.0**-149), 3.4028235e38], dtype=np.float32)
    assert single_bits(x).tolist() == [0, 1 << 31, 0x3FC00000, (1 << 31) + 1, 0x7F7FFFFF]
    assert single_of(single_bits(x)).tobytes() == x.tobytes()


def test_exact_numbers_of_any_type_are_taken():
    for x in (np.array([[2048, -2050]]), np.array([[2.0**-24, 0.5]]), np.array([[65504]], dtype=np.uint16)):
        assert half("A", x).dtype == np.float16
        assert (half("A", x) == x).all()
    assert single("psum", np.array([1 << 24, -(1 << 40)])).tolist() == [1 << 24, -(1 << 40)]


@pytest.mark.parametrize(
    "x, message",
    [
        (np.array([[1.0, 2049.0]]), r"A\[0, 1\]: 2049.0 is no FP16 number; nearest: 2048.0"),
        (np.array([[65536]]), r"A\[0, 0\]: 65536 is no FP16 number; nearest: 65504.0"),
        (np.array([1, np.nan]), r"A\[1\]: nan is not finite"),
        (np.array([-np.inf], dtype=np.float16), r"A\[0\]: -inf is not finite"),
        (np.array(["1"]), r"A: numbers are needed, not <U1"),
        ([1.0], r"A: numbers are needed, not list"),
    ],
)
def test_what_is_no_half_is_refused_with_its_place(x, message):
    with pytest.raises(InputError, match=message):
        half("A", x)


def test_an_integer_that_a_single_lacks_is_refused():
    for value in ((1 << 24) + 1, (1 << 53) + 1):
        with pytest.raises(InputError, match=rf"psum\[0\]: {value} is no FP32 number"):
            single("psum", np.array([value]))


class Gates(Component):
    """The combinational functions, each with ports of its own."""

    def __init__(self):
        ports = {"half": In(16), "value": In(signed(30)), "short": In(signed(17)), "exponent": In(signed(8))}
        outs = {"unpacked": Out(17), "normal": Out(18), "single": Out(32), "narrow": Out(32), "rounded": Out(18)}
        super().__init__(ports | outs)

    def elaborate(self, _platform):
        m = Module()
        for out, found in (
            (self.unpacked, gates.unpack_half(m, self.half)),
            (self.normal, gates.normalise_half(m, self.half)),
            (self.rounded, gates.round_half(m, self.short)),
        ):
            at = 0
            for part in found:
                m.d.comb += out[at : at + len(part)].eq(part)
                at += len(part)
        m.d.comb += [
            self.single.eq(gates.to_single(m, self.value, self.exponent)),
            self.narrow.eq(gates.to_single(m, self.short, self.exponent)),
        ]
        return m


def simulated(dut, rows, outs, latency=0):
    """Each row of input values applied for one cycle; the outputs of each, `latency` cycles later, as int64 arrays."""
    seen = {name: [] for name in outs}

    async def bench(ctx):
        for i in range(len(rows) + latency):
            for name, value in rows[min(i, len(rows) - 1)].items():
                ctx.set(getattr(dut, name), value)
            if i >= latency:
                for name in outs:
                    seen[name].append(ctx.get(getattr(dut, name)))
            await (ctx.tick() if latency else ctx.delay(1e-9))

    sim = Simulator(dut)
    if latency:
        sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return {name: np.array(values, dtype=np.int64) for name, values in seen.items()}


def unpacked(words, exponent_bits, signed_exponent):
    """(negative, exponent, mantissa) of words packed from these, lowest first."""
    exponent = words >> 1 & ((1 << exponent_bits) - 1)
    if signed_exponent:
        exponent = np.where(exponent >> (exponent_bits - 1), exponent - (1 << exponent_bits), exponent)
    return words & 1, exponent, words >> (1 + exponent_bits)


def signed_value(parts):
    negative, exponent, mantissa = parts
    return np.ldexp(mantissa * (1.0 - 2 * negative), exponent - 25)


def test_gates_unpack_and_normalise_halves_and_round_to_halves_and_singles():
    rng = np.random.default_rng(4)
    patterns = np.concatenate([np.arange(1030), rng.choice(FINITE, 4000)])
    bits = rng.integers(1, 30, len(patterns))
    values = rng.integers(-(1 << 29), 1 << 29, len(patterns)) >> bits
    values[:4] = 0, -(1 << 29), (1 << 29) - 1, 1
    ties = (rng.integers(1 << 23, 1 << 24, 400) * 2 + 1) << rng.integers(0, 5, 400)  # a digit and a half
    values[100:500] = ties * rng.choice([-1, 1], 400)
    short = rng.integers(-65519, 65520, len(patterns)) >> rng.integers(0, 16, len(patterns))
    short[:6] = 0, 65519, -65519, 4095, -8191, 32767  # all ones round up to the next power of two
    values[4:7] = (1 << 25) - 1, 1 - (1 << 29), (1 << 26) - 1
    short[500:900] = ((rng.integers(1 << 10, 1 << 11, 400) * 2 + 1) << 3) * rng.choice([-1, 1], 400)
    exponents = rng.integers(-90, 90, len(patterns))
    names = ("half", "value", "short", "exponent")
    columns = zip(patterns.tolist(), values.tolist(), short.tolist(), exponents.tolist(), strict=True)
    rows = [dict(zip(names, row, strict=True)) for row in columns]
    out = simulated(Gates(), rows, ["unpacked", "normal", "single", "narrow", "rounded"])
    x = half_of(patterns).astype(np.float64)
    negative, exponent, mantissa = unpacked(out["unpacked"], 5, False)
    want_mantissa, want_exponent = unpack_half(half_of(patterns))
    assert (exponent == want_exponent).all()
    assert (mantissa == np.abs(want_mantissa)).all()
    assert (negative == patterns >> 15).all()
    normal = unpacked(out["normal"], 6, True)
    assert (signed_value(normal) == x).all()
    assert (normal[0] == patterns >> 15).all()
    assert ((normal[2] >> 10 == 1) == (x != 0)).all()
    rounded = unpacked(out["rounded"], 6, True)
    assert (signed_value(rounded) == short.astype(np.float64).astype(np.float16)).all()
    assert ((rounded[2] >> 10 == 1) == (short != 0)).all()
    for name, integers in (("single", values), ("narrow", short)):
        want = np.ldexp(integers.astype(np.float64), exponents).astype(np.float32)
        assert (out[name] == single_bits(want + np.float32(0))).all()


def hard_pairs(rng, count):
    """Pairs of finite single-precision patterns: any, close exponents, ties, cancellation, subnormals, the largest."""
    a = rng.integers(0, 1 << 32, count)
    b = rng.integers(0, 1 << 32, count)
    kind = rng.integers(0, 7, count)
    sign, frac = b & (1 << 31), b & ((1 << 23) - 1)
    gap = rng.integers(0, 28, count)
    near = np.clip((a >> 23 & 255) - gap, 0, 254)
    few = frac & ~((1 << rng.integers(0, 23, count)) - 1)  # low zeros: ties among them
    b = np.where(kind == 1, sign | near << 23 | frac, b)
    b = np.where(kind == 2, sign | near << 23 | few, b)
    b = np.where(kind == 3, (a ^ (1 << 31)) + rng.integers(-2, 3, count), b)  # nearly all digits cancel
    small = rng.integers(0, 1 << 25, count)
    a = np.where(kind == 4, (a & (1 << 31)) | small, a)
    b = np.where(kind == 4, sign | (small * 3 & ((1 << 25) - 1)), b)
    a = np.where(kind == 5, (a & 0x80FFFFFF) | 0x7F << 24, a)  # exponents 254 and 255
    b = np.where(kind == 5, (a & (1 << 31)) | (254 - (gap & 1)) << 23 | frac, b)
    b = np.where(kind == 6, b & (1 << 31), b)
    b = b & 0xFFFFFFFF
    # NaN becomes infinity
    a, b = (np.where((x >> 23 & 255) == 255, x & 0xFF800000, x) for x in (a, b))
    opposite = ((a ^ b) == 1 << 31) & ((a >> 23 & 255) == 255)
    return np.where(opposite, 0, a), b


def sums(a, b):
    """Patterns of numpy's float32 sums."""
    with np.errstate(over="ignore"):
        return single_bits(single_of(a) + single_of(b))


SPECIAL = [
    *((0, 0), (1 << 31, 0), (1 << 31, 1 << 31), (1, 1), (1, (1 << 31) + 1), (0x7FFFFF, 1), (0x800000, 0x80000001)),
    *((0x7F7FFFFF, 0x7F7FFFFF), (0x7F7FFFFF, 0x73000000), (0x7F7FFFFF, 0x72FFFFFF), (0x7F800000, 0xFF7FFFFF)),
    *((0x7F800000, 0x7F800000), (0xFF800000, 0x80000000), (0x3F800000, 0x33800000), (0x3F800001, 0x33800000)),
    *((0x3F800000, 0xB3000000), (0x3F800000, 0xB3000001), (0x3F800000, 0xB2FFFFFF), (0x4B800000, 0xBF000001)),
]


def test_the_adder_equals_numpy_on_20000_hard_pairs():
    a, b = hard_pairs(np.random.default_rng(5), 20_000)
    a[: len(SPECIAL)], b[: len(SPECIAL)] = np.array(SPECIAL).T
    rows = [{"a": x, "b": y, "advance": 1} for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    got = simulated(gates.SingleAdder(), rows, ["total"], ADD_STAGES)["total"]
    wrong = np.flatnonzero(got != sums(a, b))
    assert [(hex(a[i]), hex(b[i]), hex(got[i])) for i in wrong[:3]] == []


def test_the_adder_stands_still_without_advance():
    rows = [{"a": 0x3F800000, "b": 0x40000000, "advance": 1}] * 2 + [{"a": 0, "b": 0, "advance": 0}] * 5
    got = simulated(gates.SingleAdder(), rows, ["total"], 2)["total"]
    assert got.tolist() == [0x40400000] * 7


@pytest.mark.parametrize("width", [1, 2, 3, 11, 28])
def test_leading_zeros_are_counted(width):
    class Count(Component):
        def __init__(self):
            super().__init__({"value": In(width), "zeros": Out(6)})

        def elaborate(self, _platform):
            m = Module()
            m.d.comb += self.zeros.eq(gates.leading_zeros(m, self.value))
            return m

    values = sorted({*range(min(1 << width, 40)), *(1 << i for i in range(width)), (1 << width) - 1} - {0})
    got = simulated(Count(), [{"value": value} for value in values], ["zeros"])["zeros"]
    assert got.tolist() == [width - value.bit_length() for value in values]
