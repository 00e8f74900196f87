"""Pre-alignment of FP16 against exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest

from models.align import aligned, worth
from models.bits import Rounding
from models.catalog import unit
from models.floats import half_of
from models.unit import InputError

ALIGN = unit("align")


def rounded(value, rounding):
    """A fraction as an integer, by the mode's definition."""
    below, rest = math.floor(value), value - math.floor(value)
    match rounding:
        case Rounding.FLOOR:
            return below
        case Rounding.TRUNCATE:
            return math.trunc(value)
        case Rounding.NEAREST_AWAY:
            return below + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and value > 0))
    return below + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1))


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("bits", [4, 8, 11, 12, 13, 24])
def test_every_value_is_its_fraction_of_the_largest_ones_unit(bits, rounding):
    rng = np.random.default_rng(bits)
    for _ in range(60):
        x = ALIGN.sample(ALIGN.params(points=7), rng, M=1, K=7)[0][0]
        integers, exponent = aligned(x, bits, rounding)
        step = Fraction(2) ** worth(int(exponent), bits)
        assert exponent == max(1, *(x.view(np.uint16) >> 10 & 31))
        limit = 2 ** (bits - 1) - 1
        want = [max(-limit, min(limit, rounded(Fraction(float(v)) / step, rounding))) for v in x]
        assert integers.tolist() == want


def test_twelve_bits_keep_the_largest_value_and_24_bits_its_near_ones():
    x = half_of(np.arange(0x7C00)[None].T)  # every finite magnitude, alone
    integers, exponent = aligned(x, 12, Rounding.TRUNCATE)
    assert (np.ldexp(integers[:, 0].astype(float), worth(exponent, 12)) == x[:, 0].astype(float)).all()
    pair = np.stack([x[:, 0], np.full(len(x), 2.0**-1).astype(np.float16)], axis=1)[0x0C00:0x3800]
    integers, exponent = aligned(pair, 24, Rounding.TRUNCATE)  # down to 2^-12 beside 2^-1 nothing is lost
    assert (np.ldexp(integers.astype(float), worth(exponent, 24)[:, None]) == pair.astype(float)).all()


def test_what_cannot_be_aligned_is_refused():
    with pytest.raises(InputError, match="K must be a multiple of 32 points, which are aligned together, not 33"):
        ALIGN.timing(ALIGN.params(), M=1, K=33)
    x = np.zeros((2, 32), dtype=np.float16)
    x[1, 7] = np.nan
    with pytest.raises(InputError, match=r"X\[1, 7\]: nan is not finite"):
        ALIGN.golden(ALIGN.params(), x)
    with pytest.raises(InputError, match="rounding='up' is unknown"):
        ALIGN.params(rounding="up")
