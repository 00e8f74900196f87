"""Overflow, rounding and packing against Python's own integers and fractions."""

from fractions import Fraction

import numpy as np
import pytest

from models.bits import (
    Overflow,
    Rounding,
    check_codes,
    fit,
    pack_bits,
    round_to_int,
    saturate,
    signed_bits,
    signed_range,
    to_bits,
    wrap,
)
from models.unit import InputError


@pytest.mark.parametrize("bits", [1, 2, 7, 8, 32, 48, 63])
def test_wrap_equals_the_remainder_in_python_integers(bits):
    rng = np.random.default_rng(bits)
    low, high = signed_range(bits)
    x = np.concatenate([rng.integers(-(2**63), 2**63 - 1, 200), np.array([low, high, 0, -1, -(2**62)])])
    want = [(int(v) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1) for v in x]
    assert wrap(x, bits).tolist() == want


def test_saturate_stops_at_both_ends():
    assert saturate(np.array([-9, -8, 0, 7, 8]), 4).tolist() == [-8, -8, 0, 7, 7]
    assert fit(np.array([8]), 4, Overflow.SATURATE).tolist() == [7]
    assert fit(np.array([8]), 4, Overflow.WRAP).tolist() == [-8]


def test_signed_bits_is_the_smallest_width_that_holds_the_range():
    for low in range(-70, 1):
        for high in (*range(0, 70), -low):
            width = signed_bits(low, high)
            assert signed_range(width)[0] <= low
            assert high <= signed_range(width)[1]
            if width > 1:
                assert low < signed_range(width - 1)[0] or high > signed_range(width - 1)[1]


def reference_rounding(x: float, mode: Rounding) -> int:
    exact = Fraction(x)
    floor = exact.numerator // exact.denominator
    rest = exact - floor
    match mode:
        case Rounding.FLOOR:
            return floor
        case Rounding.TRUNCATE:
            return floor if x >= 0 or rest == 0 else floor + 1
        case Rounding.NEAREST_EVEN:
            return round(exact)
    up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and x > 0)
    return floor + up


@pytest.mark.parametrize("mode", list(Rounding))
def test_rounding_modes_equal_exact_fractions_ties_included(mode):
    ties = [k + 0.5 for k in range(-5, 5)]
    beside = [np.nextafter(t, d) for t in ties for d in (-9, 9)]
    x = np.array([*ties, *beside, 0.0, -0.0, 0.49999999999999994, -0.49999999999999994, 2.0**53 + 2, -3.0])
    assert round_to_int(x, mode).tolist() == [reference_rounding(float(v), mode) for v in x]


def test_bits_and_packing_round_trip():
    values = np.array([[-1, 5], [3, -8]])
    bits = to_bits(values, 4)
    assert pack_bits(bits.reshape(2, 8)) == [0xF | 5 << 4, 3 | 8 << 4]


def test_check_codes_names_the_offender():
    with pytest.raises(InputError, match=r"A.*: 8 is outside -8\.\.7 \(4 bits\)"):
        check_codes("A", np.array([1, 8, -3]), 4)
    with pytest.raises(InputError, match=r"A.*: -9 is outside"):
        check_codes("A", np.array([1, -9]), 4)
    with pytest.raises(InputError, match="integers are needed, not float64"):
        check_codes("A", np.array([1.0]), 4)
