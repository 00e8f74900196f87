"""How an array multiplies and accumulates: plainly, in carry-save form, or with encoders at its edge.

What an array has in common over its styles stands here: widths of what travels, stages at the edges, operations.
Sources: `opt1`: Q. Wu et al., "Exploring the Performance Improvement of Tensor Processing Engines through
Transformation in the Bit-weight Dimension of MACs", HPCA 2025 (OPT1, half-compress accumulation); `ent`: Q. Wu et al.,
"EN-T: Optimizing Tensor Computing Engines Performance via Encoder-Based Methodology", 2024.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from models.bits import Overflow, signed_bits
from models.encoder import digit_count
from models.unit import Op, require


class Style(StrEnum):
    """How a PE multiplies and accumulates. All styles compute the same values."""

    MAC = "mac"
    """a multiplier and an adder that carries through"""
    OPT1 = "opt1"
    """Booth partial products and a carry-save pair in one compressor tree; adders outside the PEs resolve the pair of
    each result"""
    ENT = "ent"
    """one EN-T encoder at the edge for each operand that enters; its digits travel, and PEs only select and add"""

    def travel_bits(self, bits: int) -> int:
        """Width in which an operand of `bits` bits moves from PE to PE."""
        return bits + (self is Style.ENT)

    def psum_bits(self, acc_bits: int) -> int:
        """Width of a partial sum inside the array: a carry-save pair is two words."""
        return acc_bits * (1 + (self is Style.OPT1))


def check_style(unit: str, params: Any, reuse: int, reused: str, geometry: str) -> None:
    """Refuse a style that the array cannot have.

    `reuse` is how many PEs share one `reused` operand that enters, which `geometry` says in words.
    """
    require(
        params.style is not Style.OPT1 or params.overflow is Overflow.WRAP,
        f"{unit}: style=opt1 needs overflow=wrap, since a carry-save pair does not know its sign; or take style=mac",
    )
    require(
        params.style is not Style.ENT or reuse > 1,
        f"{unit}: style=ent needs {geometry}, so that more than one PE uses an encoded {reused}; or take style=mac",
    )


def mac_ops(style: Style, work: int, moving_bits: int, held_bits: int, acc_bits: int) -> tuple[Op, ...]:
    """`work` multiply-accumulates in the PEs. A product that stays a carry-save pair meets the sum in a row of full
    adders as wide as the product; a second one, as wide as the sum, makes a pair of three words."""
    if style is Style.MAC:
        return (Op("mul", work, moving_bits, held_bits), Op("add", work, acc_bits))
    products, meeting = Op("products", work, moving_bits, held_bits), Op("csa", work, moving_bits + held_bits)
    if style is Style.OPT1:
        return (Op("encode", work, moving_bits), products, Op("csa", work, acc_bits), meeting)
    return (products, meeting, Op("add", work, acc_bits))


def edge_ops(style: Style, entered: int, moving_bits: int, left: int, acc_bits: int) -> tuple[Op, ...]:
    """What the edges of the array add: `entered` operands encoded, `left` sums resolved."""
    if style is Style.ENT:
        return (Op("encode", entered, moving_bits),)
    return (Op("add", left, acc_bits),) if style is Style.OPT1 else ()


def rows_excess(act_bits: int, weight_bits: int) -> int:
    """What the partial products of one multiplication add up to beyond the product, where none of them is negative.

    Each digit's multiple of the weight has its sign bit, of value 4^i 2^weight_bits, inverted.
    """
    return ((1 << 2 * digit_count(act_bits)) - 1) // 3 << weight_bits


def exact_bits(style: Style, act_bits: int, weight_bits: int, count: int) -> int:
    """Width that holds the sum of `count` products, exactly.

    The largest is `count` times least times least, count 2^(act_bits + weight_bits - 2): act_bits + weight_bits +
    floor(log2 count) bits with the sign. Carry-save words are not negative; each product exceeds itself by
    `rows_excess`. No word is above the sum of all, so neither of the pair needs more bits than that sum does. That is
    an upper bound: how the sum falls on the two words leaves one of these bits unused at many sizes.
    """
    most = count << (act_bits + weight_bits - 2)
    if style is Style.OPT1:
        return (most + count * rows_excess(act_bits, weight_bits)).bit_length()
    return signed_bits(-most, most)
