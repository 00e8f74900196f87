"""Encoders: every operand value against its arithmetic, the published digit rules, and the RTL's code words."""

import numpy as np
import pytest

import rtl.ent
from hwsim.verify import run_rtl, verify
from models import booth, encoder, ent
from models.catalog import unit
from models.unit import InputError

ENCODERS = {"booth": booth, "ent": ent}


def every(bits):
    return np.arange(-(1 << (bits - 1)), 1 << (bits - 1))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("bits", range(2, 17))
def test_digits_stand_for_their_operand(name, bits):
    x = every(bits)
    digits = ENCODERS[name].digits(x, bits)
    assert digits.shape == (len(x), (bits + 1) // 2)
    assert set(np.unique(digits)) <= {-2, -1, 0, 1, 2}
    assert (digits @ 4 ** np.arange(digits.shape[1]) == x).all()


def booth_word(word, bits):
    """A code word read as its docstring says, bit by bit."""
    total = 0
    for i in range((bits + 1) // 2):
        one, two, neg = (word >> (3 * i + j) & 1 for j in range(3))
        assert not (one and two)
        assert one or two or not neg
        total += (-1 if neg else 1) * (one + 2 * two) * 4**i
    return total


def ent_word(word, bits):
    """Likewise: sign above the digits 0, 1, 2, -1 of the magnitude."""
    magnitude = word & ((1 << bits) - 1)
    total = sum((0, 1, 2, -1)[magnitude >> (2 * i) & 3] * 4**i for i in range((bits + 1) // 2))
    return -total if word >> bits else total


@pytest.mark.parametrize("bits", range(2, 10))
@pytest.mark.parametrize("name, read", [("booth", booth_word), ("ent", ent_word)])
def test_code_words_hold_the_digits_and_fit(name, read, bits):
    entry = unit(name)
    p = entry.params(bits=bits)
    words = entry.golden(p, every(bits)[None])[0]
    assert [read(int(word), bits) for word in words] == every(bits).tolist()
    assert words.min() >= 0
    assert int(words.max()) < 1 << p.code_bits


def test_ent_digits_follow_the_papers_carry_rule():
    """The recurrence as published, on one operand at a time."""
    for x in range(-128, 128):
        raw = [abs(x) >> (2 * i) & 3 for i in range(4)]
        carry, wanted = 0, []
        for i in range(4):
            if i:
                low, high = raw[i - 1] & 1, raw[i - 1] >> 1
                carry = (low & high) | (high & carry)
            wanted.append((raw[i] + carry) % 4)
        assert ent.magnitude_digits(np.array([x]), 8)[0].tolist() == wanted
    assert unit("ent").params(bits=8).code_bits == 9
    assert unit("booth").params(bits=8).code_bits == 12


def test_booth_digits_follow_the_table_of_three_bits():
    table = {0b000: 0, 0b001: 1, 0b010: 1, 0b011: 2, 0b100: -2, 0b101: -1, 0b110: -1, 0b111: 0}
    for x in range(-128, 128):
        wide = x << 1
        assert booth.digits(np.array([x]), 8)[0].tolist() == [table[wide >> (2 * i) & 7] for i in range(4)]


@pytest.mark.parametrize("digits", [encoder.bit_serial_digits, booth.digits, ent.digits])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_the_histogram_counts_every_value_once(digits, bits):
    histogram = encoder.nonzero_histogram(digits, bits)
    slow = [0] * len(histogram)
    for x in every(bits):
        slow[sum(d != 0 for d in digits(np.array([x]), bits)[0])] += 1
    assert histogram == slow
    assert sum(histogram) == 1 << bits


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_rtl_encodes_every_value_like_the_model(name, registered, bits):
    """All values of one width in one run of the RTL."""
    p = unit(name).params(bits=bits, lanes=1 << (bits - 1), registered=registered)
    run = run_rtl(p, (every(bits)[None],), simulator="pysim")
    assert (run.output[0] == ENCODERS[name].codes(every(bits), bits)).all()


def test_a_wrong_carry_is_found(monkeypatch):
    def without_carry(self, _platform):
        from amaranth.hdl import Cat, Module

        m = Module()
        magnitude = (self.x ^ self.x[-1].replicate(self.bits)).as_unsigned() + self.x[-1]
        m.d.comb += self.code.eq(Cat(magnitude[: self.bits], self.x[-1]))
        return m

    assert not verify(unit("ent").params(), cases=6).findings
    monkeypatch.setattr(rtl.ent.EntEncoder, "elaborate", without_carry)
    assert verify(unit("ent").params(), cases=6).findings


@pytest.mark.parametrize("name", ENCODERS)
def test_what_an_encoder_cannot_take_is_refused(name):
    with pytest.raises(InputError, match=f"{name}: bits must be a whole number from 2 to 16, not 1"):
        unit(name).params(bits=1)
    with pytest.raises(InputError, match=f"{name}: lanes must be a whole number from 1 to 256, not 0"):
        unit(name).params(lanes=0)
    with pytest.raises(InputError, match=r"X.*: 128 is outside -128\.\.127"):
        unit(name).golden(unit(name).params(), np.array([[128]]))
    for wrong, said in ((np.array([1, 2]), r"a matrix \[M, K\], not an array of shape \(2,\)"), ([[1]], "not list")):
        with pytest.raises(InputError, match=f"X must be .*{said}"):
            unit(name).golden(unit(name).params(), wrong)
