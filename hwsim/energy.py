"""Energy of counted operations: one table, each line with its source.

An approximation, and said so wherever it is shown: published energies of a 45 nm process at 0.9 V, widths between the
published ones interpolated, storage, selection and recoding scaled from an adder's bit by cell area, partial products
taken from a multiplication less its encoders and its final adder. No wires, no clock tree, no leakage, no
data-dependent switching. Memories have energies of their own, an access each, which the counted operations of a unit
leave out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

from hwsim.synth.library import FULL_ADDER_UM2, PUBLISHED_UM2
from models.unit import InputError, Op

ADD_PJ = ((0, 0.0), (8, 0.03), (16, 0.05), (32, 0.1))
"""Integer addition: width in bits, pJ. Horowitz, "Computing's energy problem", ISSCC 2014, 45 nm, 0.9 V."""

MUL_PJ = ((0, 0.0), (8 * 8, 0.2), (32 * 32, 3.1))
"""Integer multiplication: product of the operands' widths, pJ. The same source."""

FADD_PJ = {16: 0.4, 32: 0.9}
"""Floating-point addition: width of the format, pJ. The same source."""

FMUL_PJ = {16: 1.1, 32: 3.7}
"""Floating-point multiplication: likewise."""

FULL_ADDER_PJ = 0.1 / 32
"""one bit of the 32-bit addition above"""

MUX2_PJ = FULL_ADDER_PJ * PUBLISHED_UM2["MUX2"] / FULL_ADDER_UM2
"""a two-input multiplexer bit: a full adder's energy by the ratio of the published cell areas"""

DFF_PJ = FULL_ADDER_PJ * PUBLISHED_UM2["DFF"] / FULL_ADDER_UM2
"""a flip-flop bit clocked: likewise"""

ENCODER_PJ = FULL_ADDER_PJ * 2 * (PUBLISHED_UM2["XOR2"] + PUBLISHED_UM2["NAND2"]) / FULL_ADDER_UM2
"""one radix-4 digit recoded, two XOR2 and two NAND2: likewise"""

SRAM_PJ_PER_BIT = ((8 << 10, 10 / 64), (32 << 10, 20 / 64), (1 << 20, 100 / 64))
"""An access to a memory of so many bytes, pJ a bit: 64 bits of 8 KB, 32 KB and 1 MB. The same source."""

DRAM_PJ_PER_BIT = (1300 + 2600) / 2 / 64
"""An access to main memory: the middle of the range that the same source gives for 64 bits."""

LANE_PJ = FADD_PJ[16] + FMUL_PJ[16]
"""An operation of a lane of a vector unit, which has a multiplier and an adder of FP16."""

PRODUCTS_SHARE = (0.2 - 4 * ENCODER_PJ - 0.05) / 0.2
"""of a multiplication without its encoders and its final adder: the 8-bit one above less four digits and 16 bits"""


def op_energy_pj(op: Op) -> float:
    """Energy of one operation of this kind and width, in pJ."""
    match op.kind:
        case "add":
            return _interpolated(ADD_PJ, op.bits)
        case "mul":
            return _interpolated(MUL_PJ, op.bits * op.bits2)
        case "fadd":
            return FADD_PJ[op.bits]
        case "fmul":
            return FMUL_PJ[op.bits]
        case "products":
            return PRODUCTS_SHARE * _interpolated(MUL_PJ, op.bits * op.bits2)
        case "csa":
            return FULL_ADDER_PJ * op.bits
        case "encode":
            return ENCODER_PJ * -(-op.bits // 2)
        case "mux":
            return MUX2_PJ * op.bits * (op.bits2 - 1)
        case "shift":
            return MUX2_PJ * op.bits * op.bits2.bit_length()
        case "reg":
            return DFF_PJ * op.bits
    raise InputError(f"no energy for operations of kind {op.kind!r}")


def sram_pj_per_bit(size: float) -> float:
    """Energy of an access to a memory of `size` bytes: straight lines between the table's points where both axes are
    logarithms, the outer ones continued."""
    points = [(math.log(x), math.log(y)) for x, y in SRAM_PJ_PER_BIT]
    at = math.log(size)
    (x0, y0), (x1, y1) = points[:2] if at <= points[1][0] else points[1:]
    return math.exp(y0 + (y1 - y0) * (at - x0) / (x1 - x0))


def energy_pj(ops: Iterable[Op]) -> float:
    """Energy of all counted operations, in pJ."""
    return sum(op.count * op_energy_pj(op) for op in ops)


def energy_by_kind_pj(ops: Iterable[Op]) -> dict[str, float]:
    """Energy of each kind of operation, in pJ."""
    total: defaultdict[str, float] = defaultdict(float)
    for op in ops:
        total[op.kind] += op.count * op_energy_pj(op)
    return dict(total)


def _interpolated(table: tuple[tuple[int, float], ...], at: int) -> float:
    """Straight lines between the table's points, the last one continued."""
    for (x0, y0), (x1, y1) in pairwise(table):
        if at <= x1 or x1 == table[-1][0]:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    raise AssertionError("a table has at least two points")
