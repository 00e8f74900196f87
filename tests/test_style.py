"""Adders and selectors at their bounds: each width that an array chooses fails with one bit less."""

import pytest
from amaranth.hdl import Cat

import rtl.arith
import rtl.opt2
import rtl.style
from hwsim.verify import verify
from models.catalog import unit
from models.opt2 import Opt2Params
from rtl.arith import Digit

SYSTOLIC = unit("systolic")


def findings(params, cases=40):
    return verify(params, cases=cases, seed=5).findings


@pytest.mark.parametrize("acc_bits, act_bits, weight_bits", [(12, 5, 8), (8, 8, 2), (7, 3, 3)])
@pytest.mark.parametrize("dataflow", ["WS", "OS"])
def test_the_sum_before_saturation_needs_every_bit(monkeypatch, acc_bits, act_bits, weight_bits, dataflow):
    params = SYSTOLIC.params(
        rows=2,
        cols=2,
        style="ent",
        overflow="saturate",
        dataflow=dataflow,
        acc_bits=acc_bits,
        act_bits=act_bits,
        weight_bits=weight_bits,
    )
    honest = rtl.style._exact_bits
    monkeypatch.setattr(rtl.style, "_exact_bits", lambda *bits: honest(*bits) - 1)
    assert findings(params, cases=60)


@pytest.mark.parametrize("style", ["opt1", "ent"])
def test_a_multiple_of_the_weight_needs_one_bit_more_than_it(monkeypatch, style):
    def short(m, digit, b):
        row = honest(m, digit, b)
        return Cat(row[:-1], row[-2])

    honest = rtl.arith.product_row
    monkeypatch.setattr(rtl.arith, "product_row", short)
    assert findings(SYSTOLIC.params(rows=2, cols=2, style=style))


@pytest.mark.parametrize("style", ["opt1", "ent"])
@pytest.mark.parametrize("act_bits", [2, 3, 8])
def test_what_is_due_to_a_complemented_product_is_not_forgotten(monkeypatch, style, act_bits):
    """In the last digit alone: the others' stand in the next row."""

    def forgetful(m, digits, b, width):
        *rows, _due = honest(m, digits, b, width)
        return rows

    honest = rtl.style.product_rows
    monkeypatch.setattr(rtl.style, "product_rows", forgetful)
    assert findings(SYSTOLIC.params(rows=2, cols=2, style=style, act_bits=act_bits))


@pytest.mark.parametrize("style", ["opt1", "ent"])
def test_a_wrong_constant_for_the_inverted_signs_is_found(monkeypatch, style):
    honest = rtl.arith._signs_of_all
    monkeypatch.setattr(rtl.arith, "_signs_of_all", lambda sign, rows, width: honest(sign, rows, width) ^ 1 << 7)
    assert findings(SYSTOLIC.params(rows=2, cols=2, style=style))


OPT2 = [unit("opt2").preset(preset) for preset in ("two-tiles", "wide", "smallest")] + [unit("opt2").params(cols=1)]
COUNTS = [(p, count) for p in OPT2 for count in sorted({count for counts in p.stages for count in counts})]


@pytest.mark.parametrize("params, count", COUNTS)
def test_every_opt2_sum_of_one_bit_weight_needs_every_bit(monkeypatch, params, count):
    """16 lanes of INT8: 14 bits for one bit-weight. 13 are wrong for A = -2, W = -128 in all lanes, and hardly else."""
    assert params.tile_k != 16 or params.sum_bits(16) == 14
    honest = Opt2Params.sum_bits
    monkeypatch.setattr(Opt2Params, "sum_bits", lambda p, lanes: honest(p, lanes) - (lanes == count))
    assert findings(params)


@pytest.mark.parametrize("params", OPT2)
def test_the_opt2_tile_sum_needs_every_bit(monkeypatch, params):
    honest = Opt2Params.tile_bits.fget
    monkeypatch.setattr(Opt2Params, "tile_bits", property(lambda p: honest(p) - 1))
    assert findings(params)


def test_a_dropped_carry_into_the_opt2_sum_is_found(monkeypatch):
    honest = rtl.opt2.ent.digits

    def positive_last(code):
        *lower, top = honest(code)
        return [*lower, Digit(top.one, top.two, 0)]

    monkeypatch.setattr(rtl.opt2.ent, "digits", positive_last)
    assert findings(unit("opt2").preset("small"))
