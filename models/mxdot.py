"""Block-scaled dot products: elements of 4 to 8 bits, one scale for each block of them, on both sides.

Y[m, n] = psum[m, n] + sum over blocks b of (a_scale[m, b] w_scale[b, n]) sum over k in b of a[m, k] w[k, n].

Elements are E2M1, E2M3, E3M2, E4M3, E5M2 or INT8 with E8M0 scales for blocks of 32 (MXFP4, MXFP6, MXFP8, MXINT8: Open
Compute Project, "Microscaling Formats (MX) Specification", version 1.0), or E2M1 with scales for blocks of 16 that have
a significand: E4M3 (NVFP4: NVIDIA, "Pretraining Large Language Models with NVFP4", 2025; the tensor's FP32 scale stays
outside) or UE5M3 (unsigned, bias 15). Activations and weights may be of different elements. There are no infinities and
no NaN: their codes are refused.

The array holds a tile of weights, `rows` by `cols`, which is one block of K or several. A vector of activations meets
all columns at once; in each column and block

1. every row multiplies the significands and shifts the product by the exponents: a fixed-point integer, exact;
2. a tree adds the block's products: exact, in `sum_bits` bits, which hold `block_size` products of the largest elements
   (70 bits for E5M2 by E5M2, 14 for E2M1 by E2M1 with 32 of them);
3. scales meet: E8M0 ones are exponents and add up beside the tree; of the others the significands are multiplied, and
   that product by the sum, in one more stage: exact;
4. the scaled sum is rounded once to the accumulator's format (nearest even; subnormals kept; beyond the greatest finite
   number it becomes that one);
5. it is added to the partial sum in that format (nearest even; a sum beyond the greatest number is an infinity, which
   stays). Blocks are added in order of k. NaN does not arise, since no term is infinite.

Accumulators are FP32, or of fewer digits with the same exponents (`Accumulate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import gemm
from models.bits import signed_bits
from models.floats import (
    ADD_STAGES,
    ADDER_BITS,
    SINGLE_BITS,
    SINGLE_DIGITS,
    Singles,
    random_singles,
    single_bits,
    single_of,
    starting_sums,
)
from models.unit import Beats, InputError, Ints, Op, Stimulus, Timing, Trace, check_choice, check_range, require

Floats = NDArray[np.float64]

LONGEST_BLOCK = 32
"""up to which `_terms` is exact for all elements"""
SPLIT = 16
"""low bits of a weight's integer that are multiplied apart where a block's sum could pass 2^53"""
SINGLE_BIAS = 127


class Element(StrEnum):
    """Format of the values in a block."""

    E2M1 = "e2m1"
    E2M3 = "e2m3"
    E3M2 = "e3m2"
    E4M3 = "e4m3"
    E5M2 = "e5m2"
    INT8 = "int8"


class ScaleFormat(StrEnum):
    """Format of a block's scale."""

    E8M0 = "e8m0"
    """a power of two"""
    E4M3 = "e4m3"
    """NVFP4's; not negative, so that 7 bits are kept"""
    UE5M3 = "ue5m3"


class Accumulate(StrEnum):
    """Format of partial sums: exponents are those of FP32 in all of them."""

    FP32 = "fp32"
    FP22 = "fp22"
    """14 digits, about what the FP8 tensor cores of NVIDIA's Hopper keep (DeepSeek-AI, "DeepSeek-V3 Technical Report",
    2024, section 3.5.2)"""
    BF16 = "bf16"
    """8 digits"""

    @property
    def digits(self) -> int:
        """Binary digits of a normal number, the implied one among them."""
        return {"fp32": SINGLE_DIGITS, "fp22": 14, "bf16": 8}[self.value]

    @property
    def bits(self) -> int:
        return SINGLE_BITS - SINGLE_DIGITS + self.digits


@dataclass(frozen=True, kw_only=True)
class ElementForm:
    """Sign, exponent and fraction of an element; without exponent bits a two's-complement integer.

    Its value is an integer times 2^unit: a significand, shifted to the left by the exponent less one, or by nothing
    where the exponent is 0 and the number subnormal.
    """

    exponent_bits: int
    fraction_bits: int
    bias: int
    top: int
    """the largest finite code without the sign"""

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def is_float(self) -> bool:
        return self.exponent_bits > 0

    @property
    def unit(self) -> int:
        return 1 - self.bias - self.fraction_bits

    @property
    def significand_bits(self) -> int:
        """Of a float without the sign."""
        return self.fraction_bits + 1

    @property
    def largest_shift(self) -> int:
        return max((self.top >> self.fraction_bits) - 1, 0)

    @property
    def largest(self) -> int:
        """The largest magnitude of its integers."""
        if not self.is_float:
            return 1 << self.fraction_bits
        return ((1 << self.fraction_bits) | self.top & ((1 << self.fraction_bits) - 1)) << self.largest_shift


ELEMENTS: Mapping[Element, ElementForm] = {
    Element.E2M1: ElementForm(exponent_bits=2, fraction_bits=1, bias=1, top=0b11_1),
    Element.E2M3: ElementForm(exponent_bits=2, fraction_bits=3, bias=1, top=0b11_111),
    Element.E3M2: ElementForm(exponent_bits=3, fraction_bits=2, bias=3, top=0b111_11),
    Element.E4M3: ElementForm(exponent_bits=4, fraction_bits=3, bias=7, top=0b1111_110),
    Element.E5M2: ElementForm(exponent_bits=5, fraction_bits=2, bias=15, top=0b11110_11),
    Element.INT8: ElementForm(exponent_bits=0, fraction_bits=7, bias=0, top=0b1111111),
}


@dataclass(frozen=True, kw_only=True)
class ScaleForm:
    """Exponent and fraction of an unsigned scale: significand * 2^(max(exponent, 1) - bias - fraction_bits).

    Without fraction bits every exponent counts as it is, and the significand is 1.
    """

    exponent_bits: int
    fraction_bits: int
    bias: int
    top: int
    """the largest finite code"""

    @property
    def bits(self) -> int:
        return self.exponent_bits + self.fraction_bits

    @property
    def one(self) -> int:
        """The code of 1."""
        return self.bias << self.fraction_bits

    @property
    def unit(self) -> int:
        return -self.bias - self.fraction_bits

    @property
    def digits(self) -> int:
        """Of the significand; 0 where it is always 1."""
        return self.fraction_bits and self.fraction_bits + 1

    @property
    def exponents(self) -> tuple[int, int]:
        """The least and the greatest one that counts."""
        return min(self.fraction_bits, 1), self.top >> self.fraction_bits


SCALES: Mapping[ScaleFormat, ScaleForm] = {
    ScaleFormat.E8M0: ScaleForm(exponent_bits=8, fraction_bits=0, bias=127, top=254),
    ScaleFormat.E4M3: ScaleForm(exponent_bits=4, fraction_bits=3, bias=7, top=126),
    ScaleFormat.UE5M3: ScaleForm(exponent_bits=5, fraction_bits=3, bias=15, top=254),
}

STANDARD_BLOCK = {ScaleFormat.E8M0: 32, ScaleFormat.E4M3: 16, ScaleFormat.UE5M3: 16}
MX_NAMES = {
    Element.E2M1: "mxfp4",
    Element.E2M3: "mxfp6_e2m3",
    Element.E3M2: "mxfp6_e3m2",
    Element.E4M3: "mxfp8_e4m3",
    Element.E5M2: "mxfp8_e5m2",
    Element.INT8: "mxint8",
}
FP4_NAMES = {ScaleFormat.E4M3: "nvfp4", ScaleFormat.UE5M3: "fp4_ue5m3"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """A matrix of element codes with one scale code for each block of consecutive k.

    Codes are bit patterns; of INT8 they are the integers -128 to 127.

    As A: codes [M, K], scales [M, G]. As W: codes [K, N], scales [G, N]. G = ceil(K / block_size): the last block may
    be shorter.
    """

    codes: Ints
    scales: Ints

    def __post_init__(self) -> None:
        for name in ("codes", "scales"):
            values = np.asarray(getattr(self, name))
            fits = np.issubdtype(values.dtype, np.integer) and values.ndim == 2
            require(fits, f"{name}: integers with 2 axes are needed, not {values.dtype} {values.shape}")
            object.__setattr__(self, name, values.astype(np.int64, copy=False))

    @property
    def shape(self) -> tuple[int, int]:
        """Of the codes."""
        return (self.codes.shape[0], self.codes.shape[1])


@dataclass(frozen=True, kw_only=True)
class MxdotParams:
    """Geometry and formats. `rows` is a multiple of `block_size`.

    `act_bits`, `weight_bits` and `acc_bits` follow from the formats; none: they are filled in.
    """

    rows: int = 32
    cols: int = 8
    block_size: int = 32
    act_element: Element = Element.E2M1
    weight_element: Element = Element.E2M1
    scale_format: ScaleFormat = ScaleFormat.E8M0
    accumulate: Accumulate = Accumulate.FP32
    act_bits: int | None = None
    weight_bits: int | None = None
    acc_bits: int | None = None

    def __post_init__(self) -> None:
        check_choice("mxdot", self, act_element=Element, weight_element=Element)
        check_choice("mxdot", self, scale_format=ScaleFormat, accumulate=Accumulate)
        check_range("mxdot", self, rows=(1, 256), cols=(1, 256), block_size=(1, LONGEST_BLOCK))
        near = max(round(self.rows / self.block_size), 1) * self.block_size
        rule = f"mxdot: rows must be a multiple of block_size={self.block_size}"
        require(self.rows % self.block_size == 0, f"{rule}, not {self.rows}; nearest: {near}")
        for name in ("act_element", "weight_element"):
            rule = f"mxdot: scale_format={self.scale_format} scales blocks of e2m1"
            fits = self.scale_format is ScaleFormat.E8M0 or getattr(self, name) is Element.E2M1
            require(fits, f"{rule}, not {name}={getattr(self, name)}; nearest: scale_format=e8m0")
        self._fill(act_bits=self.act.bits, weight_bits=self.weight.bits, acc_bits=self.accumulate.bits)

    def _fill(self, **widths: int) -> None:
        for name, bits in widths.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, bits)
            check_range("mxdot", self, **{name: (bits, bits)})

    @property
    def act(self) -> ElementForm:
        return ELEMENTS[self.act_element]

    @property
    def weight(self) -> ElementForm:
        return ELEMENTS[self.weight_element]

    @property
    def scale(self) -> ScaleForm:
        return SCALES[self.scale_format]

    @property
    def blocks(self) -> int:
        """Of a column."""
        return self.rows // self.block_size

    @property
    def largest_product(self) -> int:
        """The largest magnitude of a product, in units of 2^unit."""
        return self.act.largest * self.weight.largest

    @property
    def unit(self) -> int:
        """Power of two that one unit of a product's integer is worth."""
        return self.act.unit + self.weight.unit

    @property
    def product_bits(self) -> int:
        return signed_bits(-self.largest_product, self.largest_product)

    @property
    def sum_bits(self) -> int:
        """Width of a block's sum."""
        bound = self.block_size * self.largest_product
        return signed_bits(-bound, bound)

    @property
    def largest_shift(self) -> int:
        """Places by which a product of significands is shifted at most."""
        return self.act.largest_shift + self.weight.largest_shift

    @property
    def scaled_bits(self) -> int:
        """Width of a block's sum times the significands of its scales."""
        return self.sum_bits + 2 * self.scale.digits

    @property
    def term_bits(self) -> int:
        """Bits of a rounded term that are not always zero: without subnormals short sums leave the lowest ones so."""
        short = self.accumulate.digits - (self.scaled_bits - 1) if self.scale.digits else 0
        return self.accumulate.bits - max(short, 0)

    @property
    def exponent_bits(self) -> int:
        """Width of the sum of two scales' exponents."""
        return self.scale.exponent_bits + 1

    @property
    def term_stages(self) -> int:
        """Registers from a vector to a block's term: products, sum, the sum times the scales, rounded term."""
        return 3 + (self.scale.digits > 0)

    @property
    def geometry(self) -> gemm.Stationary:
        latency = self.term_stages + ADD_STAGES * self.blocks
        return gemm.Stationary(tile_k=self.rows, tile_n=self.cols, load_beats=self.rows, latency=latency)

    @property
    def lanes(self) -> gemm.Stationary:
        """The same with a vector's scale codes beside its elements, as lanes of one vector."""
        return replace(self.geometry, tile_k=self.rows + self.blocks)


def _preset(**values: Any) -> MxdotParams:
    return MxdotParams(**({"cols": 2} | values))


_NVFP4: dict[str, Any] = {"rows": 16, "block_size": 16, "scale_format": ScaleFormat.E4M3}

PRESETS = {
    "default": MxdotParams(),
    "smallest": _preset(rows=1, cols=1, block_size=1),
    "mxfp4": _preset(),
    "mxfp6": _preset(act_element=Element.E2M3, weight_element=Element.E3M2),
    "mxfp8": _preset(act_element=Element.E4M3, weight_element=Element.E4M3, cols=1),
    "mxfp8-e5m2": _preset(rows=4, block_size=4, act_element=Element.E5M2, weight_element=Element.E5M2),
    "mxint8": _preset(act_element=Element.INT8, weight_element=Element.INT8, cols=1),
    "mixed": _preset(rows=16, block_size=8, act_element=Element.E4M3, weight_element=Element.E2M1),
    "nvfp4": _preset(**_NVFP4),
    "nvfp4-two": _preset(**_NVFP4 | {"rows": 8, "block_size": 4}),
    "fp4-ue5m3": _preset(**_NVFP4 | {"scale_format": ScaleFormat.UE5M3}),
    "fp22": _preset(rows=8, block_size=4, act_element=Element.E3M2, accumulate=Accumulate.FP22),
    "bf16": _preset(rows=4, block_size=4, accumulate=Accumulate.BF16),
}


def value_free(params: MxdotParams) -> tuple[str, ...]:
    """Geometry: blocks are added one by one in order of k, whatever the tile."""
    return "rows", "cols"


def golden(params: MxdotParams, A: Any, W: Blocks, psum: NDArray[Any] | None = None) -> Singles:
    """Y[M, N] float32, as the module's docstring says; the order does not depend on the folds.

    `A` is `Blocks`, or plain integers [M, K], each an element as `from_integers` makes it. `psum` [M, N] (a bias;
    finite numbers of the accumulator's format, -0 counts as +0) is where accumulation starts; zero by default.
    InputError for codes of NaN and infinities.
    """
    a = _acts(params, A)
    _check_weights(params, a, W)
    return _accumulated(params, a, W, _start(params, psum, (a.shape[0], W.shape[1])))


def _start(params: MxdotParams, psum: Any, shape: tuple[int, int]) -> Singles:
    start = starting_sums(psum, shape)
    if psum is None or params.accumulate is Accumulate.FP32:
        return start
    kept = _to_digits(start.astype(np.float64), params.accumulate.digits)
    bad = np.argwhere(kept != start)
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        near = np.clip(kept[place], -_greatest(params), _greatest(params))
        raise InputError(f"psum{list(place)}: {start[place]} is no {params.accumulate} number; nearest: {near}")
    return start


def _acts(params: MxdotParams, A: Any) -> Blocks:
    """A as blocks of finite codes."""
    if not isinstance(A, Blocks):
        require(isinstance(A, np.ndarray), f"A must be Blocks or a numpy array [M, K], not {type(A).__name__}")
        require(A.ndim == 2, f"A must be a matrix [M, K], not an array of shape {A.shape}")
        codes = _plain_codes("A", A, params.act_element)
        shape = (len(A), int(gemm.folds(A.shape[1], params.block_size)))
        return Blocks(codes=codes, scales=np.full(shape, plain_scale(params.act_element, params.scale)))
    _check_codes("A", params.act_element, params.scale_format, A)
    want = (A.shape[0], gemm.folds(A.shape[1], params.block_size))
    require(A.scales.shape == want, f"A.scales are {A.scales.shape}, not {want} for blocks of {params.block_size}")
    return A


def _check_weights(params: MxdotParams, a: Blocks, W: Any) -> None:
    rule = f"W must be Blocks (from_integers and operand make them), not {type(W).__name__}"
    require(isinstance(W, Blocks), rule)
    gemm.check_operands(a.codes, W.shape)
    _check_codes("W", params.weight_element, params.scale_format, W)
    want = (gemm.folds(W.shape[0], params.block_size), W.shape[1])
    require(W.scales.shape == want, f"W.scales are {W.scales.shape}, not {want} for blocks of {params.block_size}")


def _check_codes(name: str, element: Element, scale: ScaleFormat, blocks: Blocks) -> None:
    """Refuse codes that are none, or of no finite number."""
    form, top = ELEMENTS[element], SCALES[scale].top
    low, high = (0, (1 << form.bits) - 1) if form.is_float else (-form.largest, form.largest - 1)
    _refuse(f"{name}.codes", blocks.codes, low, high, f"no code of {element}, {low} to {high}")
    magnitudes = blocks.codes & ((1 << (form.bits - 1)) - 1)
    _refuse(f"{name}.codes", magnitudes, 0, form.top, f"the magnitude of an infinity or NaN in {element}")
    _refuse(f"{name}.scales", blocks.scales, 0, top + 1, f"no code of a scale in {scale}, 0 to {top}")
    _refuse(f"{name}.scales", blocks.scales, 0, top, f"NaN in {scale}")


def _refuse(name: str, codes: Ints, low: int, high: int, what: str) -> None:
    """InputError at the first code outside."""
    if low <= codes.min() and codes.max() <= high:
        return
    place = tuple(int(i) for i in np.argwhere((codes < low) | (codes > high))[0])
    code = int(codes[place])
    raise InputError(f"{name}{list(place)}: {code} is {what}; nearest: {min(max(code, low), high)}")


# ------------------------------------------------------------------------------------------------ numbers of codes


@cache
def element_integers(element: Element) -> Ints:
    """The integer of every code, in units of 2^unit; what codes of NaN and infinities would be if they were none.

    A negative code of INT8 counts from the end, as an index does.
    """
    form = ELEMENTS[element]
    codes = np.arange(1 << form.bits)
    negative = codes >> (form.bits - 1) == 1
    if not form.is_float:
        return np.asarray(np.where(negative, codes - len(codes), codes))
    exponent = codes >> form.fraction_bits & ((1 << form.exponent_bits) - 1)
    significand = (codes & ((1 << form.fraction_bits) - 1)) + ((exponent > 0).astype(np.int64) << form.fraction_bits)
    magnitude = significand << np.maximum(exponent - 1, 0)
    return np.asarray(np.where(negative, -magnitude, magnitude))


@cache
def scale_values(scale: ScaleFormat) -> Floats:
    """The value of every code up to the largest finite one."""
    form = SCALES[scale]
    codes = np.arange(form.top + 1)
    exponent = codes >> form.fraction_bits
    if not form.fraction_bits:
        return np.asarray(np.ldexp(1.0, exponent + form.unit))
    significand = (codes & ((1 << form.fraction_bits) - 1)) + ((exponent > 0).astype(np.int64) << form.fraction_bits)
    return np.asarray(np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) + form.unit))


def _folded(params: MxdotParams, a: Blocks, w: Blocks, integers: Ints, kind: Any) -> tuple[Any, Any]:
    """Elements times their scales, A's [M, G, block_size] and W's [G, block_size, N]; W's from the table `integers`."""
    size, (m, k), n = params.block_size, a.shape, w.shape[1]
    count = gemm.folds(k, size)
    scales = scale_values(params.scale_format).astype(kind)
    act_table, weight_table = (
        np.ldexp(table.astype(kind), form.unit)
        for table, form in ((element_integers(params.act_element), params.act), (integers, params.weight))
    )
    acts = act_table[gemm.pad_to(a.codes, (m, count * size))].reshape(m, count, size)
    weights = weight_table[gemm.pad_to(w.codes, (count * size, n))].reshape(count, size, n)
    acts *= scales[a.scales][:, :, None]
    weights *= scales[w.scales][:, None, :]
    return acts, weights


def _accumulated(params: MxdotParams, a: Blocks, w: Blocks, start: Singles) -> Singles:
    """start plus the rounded terms of all blocks in order; `start` may hold infinities, and is not changed."""
    if params.accumulate is not Accumulate.FP32:
        total = start.astype(np.float64)
        with np.errstate(over="ignore"):
            for term in _terms(params, a, w):
                total = _to_digits(total + _term(params, term), params.accumulate.digits)
        return total.astype(np.float32)
    single = start.copy()
    saturates = _spans(params, a, w)[-1][1] > SINGLE_BIAS
    with np.errstate(over="ignore"):
        for term in _terms(params, a, w):
            single += _single_term(params, term) if saturates else term.astype(np.float32, copy=False)
    return single


def _single_term(params: MxdotParams, term: Floats) -> Singles:
    return np.clip(term.astype(np.float32), -_greatest(params), _greatest(params)).astype(np.float32)


def _term(params: MxdotParams, term: Floats) -> Floats:
    """A term in the accumulator's format: rounded to nearest even, at most the greatest finite number."""
    rounded = _to_digits(term.astype(np.float64, copy=False), params.accumulate.digits)
    return np.clip(rounded, -_greatest(params), _greatest(params))


def _greatest(params: MxdotParams) -> float:
    return float((2 - 2.0 ** (1 - params.accumulate.digits)) * 2.0**SINGLE_BIAS)


def _to_digits(x: Floats, digits: int) -> Floats:
    """x rounded to `digits` binary digits, nearest even, with FP32's exponents: subnormal below 2^-126, infinite from
    2^128 on."""
    places = digits - np.maximum(np.frexp(x)[1], 2 - SINGLE_BIAS)
    finite = np.ldexp(np.rint(np.ldexp(x, places)), -places)
    return np.where(np.abs(finite) < 2.0 ** (SINGLE_BIAS + 1), finite, np.copysign(np.inf, x))


def _spans(params: MxdotParams, a: Blocks, w: Blocks) -> list[tuple[int, int]]:
    """Exponents (least, end) of elements times scales, A's and W's, and of blocks' sums: such numbers are multiples of
    2^least and below 2^end."""
    spans = []
    for blocks, form in ((a, params.act), (w, params.weight)):
        least, most = (
            max(int(code) >> params.scale.fraction_bits, params.scale.exponents[0]) for code in _ends(blocks)
        )
        offset = params.scale.unit + form.unit
        spans.append((least + offset, most + offset + max(params.scale.digits, 1) + form.largest.bit_length()))
    (low_a, end_a), (low_w, end_w) = spans
    return [*spans, (low_a + low_w, end_a + end_w + params.block_size.bit_length())]


def _ends(blocks: Blocks) -> tuple[Any, Any]:
    return blocks.scales.min(), blocks.scales.max()


def _terms(params: MxdotParams, a: Blocks, w: Blocks) -> Iterator[NDArray[Any]]:
    """The scaled sum [M, N] of each block in order, exact, or with the digits below the 53rd rounded to odd.

    A block's products are integers with one scale between them, so that BLAS adds them exactly in any order where all
    sums are below 2^24 (2^53) and the scale keeps them in single (double) precision's normal range. Where they may be
    larger the weights' integers are split in two, and two exact sums meet in one that is rounded to odd, which a later
    rounding to fewer digits cannot tell from the exact sum (S. Boldo and G. Melquiond, "Emulation of FMA and Correctly
    Rounded Sums: Proved Algorithms Using Rounding to Odd", IEEE Transactions on Computers, 2008). What is yielded may
    be written over by the next.
    """
    bound = params.block_size * params.largest_product << 2 * params.scale.digits
    integers = element_integers(params.weight_element)
    if bound > gemm.FLOAT64_EXACT:
        low = integers & ((1 << SPLIT) - 1)
        acts, upper = _folded(params, a, w, integers - low, np.float64)
        _, lower = _folded(params, a, w, low, np.float64)
        yield from (_odd_sum(acts[:, g] @ upper[g], acts[:, g] @ lower[g]) for g in range(len(upper)))
        return
    kind = np.float32 if bound <= gemm.FLOAT32_EXACT and _in_single_range(params, a, w) else np.float64
    acts, weights = _folded(params, a, w, integers, kind)
    term = np.empty((a.shape[0], w.shape[1]), dtype=kind)
    for g in range(len(weights)):
        yield np.matmul(acts[:, g], weights[g], out=term)


def _in_single_range(params: MxdotParams, a: Blocks, w: Blocks) -> bool:
    """Whether elements times scales, their products and sums are normal singles or zero."""
    return all(low >= 1 - SINGLE_BIAS and end <= SINGLE_BIAS for low, end in _spans(params, a, w))


def _odd_sum(x: Floats, y: Floats) -> Floats:
    """x + y in double precision, rounded to odd: exact, or of the two neighbours the one whose last digit is 1."""
    total = x + y
    back = total - x
    lost = (x - (total - back)) + (y - back)
    even = total.view(np.int64) & 1 == 0
    # the neighbour on the side of what was lost; adding 1 to the pattern moves away from zero
    step = np.where((lost > 0) == (total > 0), 1, -1)
    return np.where((lost != 0) & even, (total.view(np.int64) + step).view(np.float64), total)


# ------------------------------------------------------------------------------------------------- plain integers


def plain_scale(element: Element, scale: ScaleForm) -> int:
    """Code of the scale with which an element is an integer: 1, or 2^6 of INT8, whose values are integers / 64."""
    return scale.one + (0 if ELEMENTS[element].is_float else -ELEMENTS[element].unit)


@cache
def _plain(element: Element) -> tuple[Ints, Ints]:
    """The integers, ascending, that an element can be with that scale, and their codes; of the two zeros +0."""
    form = ELEMENTS[element]
    if not form.is_float:
        whole = np.arange(-form.largest, form.largest)
        return whole, whole
    integers = element_integers(element)
    finite, one = np.arange(len(integers)) & (len(integers) // 2 - 1) <= form.top, 1 << -form.unit
    held, codes = np.unique(np.where(finite & (integers % one == 0), integers, 0), return_index=True)
    return held // one, codes


def _plain_codes(name: str, values: NDArray[Any], element: Element) -> Ints:
    """Codes of plain integers."""
    require(np.issubdtype(values.dtype, np.integer), f"{name}: integers are needed, not {values.dtype}")
    held, codes = _plain(element)
    place = np.searchsorted(held, values).clip(0, len(held) - 1)
    bad = np.argwhere(held[place] != values)
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        near = min(held.tolist(), key=lambda v: abs(v - int(values[where])))
        raise InputError(f"{name}{list(where)}: {values[where]} is no integer of {element}; nearest: {near}")
    return np.asarray(codes[place])


def plain_weights(params: MxdotParams) -> Ints:
    """The integers among the weights' elements, as `from_integers` scales them."""
    return _plain(params.weight_element)[0]


def plain_acts(params: MxdotParams) -> Ints:
    """The integers among the activations' elements."""
    return _plain(params.act_element)[0]


def from_integers(params: MxdotParams, W: NDArray[Any]) -> tuple[Blocks, Fraction]:
    """Integers that are elements, all blocks with the scale 1 (of INT8: 2^6), as W."""
    codes = _plain_codes("W", W, params.weight_element)
    shape = (int(gemm.folds(W.shape[0], params.block_size)), W.shape[1])
    return Blocks(codes=codes, scales=np.full(shape, plain_scale(params.weight_element, params.scale))), Fraction(1)


# ------------------------------------------------------------------------------------------------------- formats


def weight_format(params: MxdotParams) -> tuple[str, dict[str, Any]]:
    """The format of its elements and scales."""
    return _format_name(params, params.weight_element), {}


def act_format(params: MxdotParams) -> tuple[str, dict[str, Any]]:
    """The same of activations."""
    return _format_name(params, params.act_element), {}


def _format_name(params: MxdotParams, element: Element) -> str:
    size = STANDARD_BLOCK[params.scale_format]
    rule = f"mxdot: formats with {params.scale_format} scales have blocks of {size}"
    require(params.block_size == size, f"{rule}, not block_size={params.block_size}; nearest: {size}")
    return MX_NAMES[element] if params.scale_format is ScaleFormat.E8M0 else FP4_NAMES[params.scale_format]


def operand(params: MxdotParams, quantized: Any) -> tuple[Blocks, Fraction]:
    """W from weights [K, N] quantized along K (axis 0) in `weight_format`; a unit is worth their tensor scale."""
    blocks, worth = _quantized_blocks(params, quantized, 0)
    _check_codes("W", params.weight_element, params.scale_format, blocks)
    return blocks, worth


def act_operand(params: MxdotParams, quantized: Any) -> tuple[Blocks, Fraction]:
    """A from activations [M, K] quantized along K (axis 1) in `act_format`, and what a unit of the output is worth in
    them: their tensor scale."""
    blocks, worth = _quantized_blocks(params, quantized, 1)
    return _acts(params, blocks), worth


def _quantized_blocks(params: MxdotParams, quantized: Any, axis: int) -> tuple[Blocks, Fraction]:
    scales = getattr(quantized, "scale_patterns", None)
    if scales is None:
        raise InputError("mxdot: blocks with scale codes are needed: an MX format, nvfp4 or fp4_ue5m3")
    along = (quantized.axis, quantized.group)
    rule = f"mxdot: blocks of {params.block_size} along axis {axis} are needed"
    require(along == (axis, params.block_size), f"{rule}, not of {along[1]} along axis {along[0]}")
    worth = 1.0 if quantized.tensor_scale is None else float(quantized.tensor_scale)
    return Blocks(codes=quantized.codes, scales=scales), Fraction(worth)


# ----------------------------------------------------------------------------------------- cycles and operations


def timing(params: MxdotParams, M: Any, K: Any, N: Any) -> Timing:
    """Exact cycles of a GEMM; `M`, `K`, `N` are ints or int64 arrays of one shape."""
    return gemm.stationary_timing(params.geometry, M, K, N)


def ops(params: MxdotParams, M: int, K: int, N: int) -> tuple[Op, ...]:
    """Operations of a GEMM without stalls: what is useful of products and blocks, and every register in every cycle.

    A product of floats is one of significands, an addition that may negate it, one of exponents and a shift. A block's
    term is an addition of exponents, with significands two multiplications, and a shift that normalises it. Additions
    count as those of FP32 with narrower accumulators too, whose adders align and add in its width.
    """
    M, K, N = gemm.check_shape(M=M, K=K, N=N)
    products, terms = M * K * N, M * N * int(gemm.folds(K, params.block_size))
    return (
        *_product_ops(params, products),
        *_some("add", products - terms, params.sum_bits),
        *_scale_ops(params, terms),
        Op("shift", terms, params.scaled_bits, params.scaled_bits),
        Op("fadd", terms, SINGLE_BITS),
        *_registers(params, M, K, N),
    )


def _some(kind: str, count: int, bits: int, bits2: int = 0) -> tuple[Op, ...]:
    return (Op(kind, int(count), bits, bits2),) if count and bits else ()


def _product_ops(params: MxdotParams, count: int) -> tuple[Op, ...]:
    act, weight = params.act, params.weight
    floats = act.is_float + weight.is_float
    signed = act.significand_bits + weight.significand_bits + 1
    return (
        Op("mul", count, act.significand_bits, weight.significand_bits),
        *_some("add", count * (floats > 0), signed),
        *_some("add", count * (floats > 1), max(act.exponent_bits, weight.exponent_bits)),
        *_some("shift", count * (params.largest_shift > 0), params.product_bits, params.largest_shift),
    )


def _scale_ops(params: MxdotParams, count: int) -> tuple[Op, ...]:
    digits = params.scale.digits
    return (
        Op("add", count, params.exponent_bits),
        *_some("mul", count * (digits > 0), digits, digits),
        *_some("mul", count * (digits > 0), params.sum_bits, 2 * digits),
    )


def _registers(params: MxdotParams, m: int, k: int, n: int) -> tuple[Op, ...]:
    """Nothing is gated but the held tile, written while it is loaded."""
    cycles = timing(params, m, k, n).total_cycles
    loads = gemm.folds(k, params.rows) * gemm.folds(n, params.cols) * params.rows
    terms = params.blocks * params.cols
    skewed = ADD_STAGES * params.block_size * gemm.skew(params.blocks)
    meeting = params.exponent_bits + 2 * params.scale.digits
    scaled = (params.scaled_bits + params.exponent_bits) * (params.scale.digits > 0)
    return (
        Op("reg", loads * params.rows * params.cols, params.weight.bits),
        Op("reg", loads * terms, params.scale.bits),
        *_some("reg", cycles * skewed, params.act.bits),
        Op("reg", cycles * (params.blocks + ADD_STAGES * gemm.skew(params.blocks)), params.scale.bits),
        Op("reg", cycles * params.rows * params.cols, params.product_bits),
        Op("reg", cycles * terms, params.sum_bits + meeting + scaled + params.term_bits),
        Op("reg", cycles * terms, ADDER_STATE + params.accumulate.bits),
        Op("reg", cycles * params.cols * params.term_stages, params.accumulate.bits),
    )


ADDER_STATE = ADDER_BITS - SINGLE_BITS
"""of an adder's first stage"""


# --------------------------------------------------------------------------------------------------------- beats


def beats(params: MxdotParams, A: Any, W: Blocks, psum: NDArray[Any] | None = None) -> Beats:
    """Input beats of a whole GEMM: `i_weight` {weight[cols], scale[cols]}, the tile's last row first, the scales of its
    blocks, last one first, in the last beats of it; and `i_act` {act[rows], scale[blocks], psum[cols], last}."""
    a = _acts(params, A)
    _check_weights(params, a, W)
    start = None if psum is None else _patterns(params, _start(params, psum, (a.shape[0], W.shape[1])))

    def load(lanes: slice, cols: slice) -> Mapping[str, Ints]:
        return _tile_beats(params, W, lanes.start // params.lanes.tile_k, cols)

    found = gemm.stationary_beats(params.lanes, _lanes(params, a), W.shape[1], start, load, _tile_golden(params))
    return {**found, "i_act": _parted(params, found["i_act"], "act", "scale")}


def _patterns(params: MxdotParams, sums: Singles) -> Ints:
    return single_bits(sums) >> (SINGLE_BITS - params.accumulate.bits)


def _sums(params: MxdotParams, patterns: Ints) -> Singles:
    return single_of(patterns << (SINGLE_BITS - params.accumulate.bits))


def _lanes(params: MxdotParams, a: Blocks) -> Ints:
    """A as vectors [M, tiles * (rows + blocks)]: of each tile the elements' codes, then the scales'."""
    m, tiles = a.shape[0], int(gemm.folds(a.shape[1], params.rows))
    codes = gemm.pad_to(a.codes, (m, tiles * params.rows)).reshape(m, tiles, -1)
    scales = gemm.pad_to(a.scales, (m, tiles * params.blocks)).reshape(m, tiles, -1)
    return np.concatenate([codes, scales], axis=2).reshape(m, -1)


def _parted(params: MxdotParams, fields: Mapping[str, Ints], act: str, scale: str) -> dict[str, Ints]:
    """Vectors of lanes as the elements and the scales that they carry, under those names."""
    lanes = fields[act]
    parts = {act: lanes[:, : params.rows], scale: lanes[:, params.rows :]}
    return parts | {name: values for name, values in fields.items() if name != act}


def _tile_beats(params: MxdotParams, w: Blocks, tile: int, cols: slice) -> dict[str, Ints]:
    rows, blocks = (slice(tile * size, (tile + 1) * size) for size in (params.rows, params.blocks))
    shape = (params.rows, params.cols)
    codes, scales = gemm.pad_to(w.codes[rows, cols], shape), gemm.pad_to(w.scales[blocks, cols], shape)
    return {"weight": codes[::-1], "scale": scales[::-1]}


def _tile_golden(params: MxdotParams) -> Any:
    """Patterns of psum plus lanes times a tile, from the patterns of these."""

    def met(tile: Mapping[str, Ints], lanes: Ints, psum: Ints) -> Ints:
        a = Blocks(codes=lanes[:, : params.rows], scales=lanes[:, params.rows :])
        w = Blocks(codes=tile["weight"][::-1], scales=tile["scale"][::-1][: params.blocks])
        return _patterns(params, _accumulated(params, a, w, _sums(params, psum)))

    return met


def result(params: MxdotParams, operands: tuple[Any, ...], out_beats: Mapping[str, Ints]) -> Singles:
    """Y[M, N] from the beats of `o_psum` {psum[cols]} of a whole GEMM."""
    shape = shape_of(params, *operands)
    y = gemm.stationary_result(params.geometry, (shape["M"], shape["K"], shape["N"]), out_beats)
    return _sums(params, y)


def trace(params: MxdotParams, stimulus: Stimulus) -> Trace:
    """Every port of every cycle; payload fields as in `beats`. The data path comes from `golden`, tile by tile."""
    moving = stimulus.beats["i_act"]
    lanes = {"act": np.concatenate([moving["act"], moving["scale"]], axis=1)}
    joined = lanes | {name: moving[name] for name in ("psum", "last")}
    stimulus = replace(stimulus, beats={**stimulus.beats, "i_act": joined})
    return _parted(
        params,
        gemm.stationary_trace(params.lanes, stimulus, _tile_golden(params)),
        "i_act.payload.act",
        "i_act.payload.scale",
    )


def shape_of(params: MxdotParams, A: Any, W: Any, psum: Any = None) -> dict[str, int]:
    """The GEMM's M, K, N."""
    gemm.check_operands(A.codes if isinstance(A, Blocks) else A, W.shape)
    return {"M": A.shape[0], "K": A.shape[1], "N": W.shape[1]}


# ------------------------------------------------------------------------------------------------- random operands


def sample(
    params: MxdotParams, rng: np.random.Generator, M: int | None = None, K: int | None = None, N: int | None = None
) -> tuple[Any, ...]:
    """Random A and W (and half the time a starting psum), of a random small shape where none is given."""
    drawn = gemm.random_shape(rng, 5, params.rows, params.cols)
    m, k, n = (given or size for given, size in zip((M, K, N), drawn, strict=True))
    groups = int(gemm.folds(k, params.block_size))
    a = Blocks(codes=_random_elements(rng, params.act, (m, k)), scales=_random_scales(rng, params, (m, groups)))
    w = Blocks(codes=_random_elements(rng, params.weight, (k, n)), scales=_random_scales(rng, params, (groups, n)))
    if M is not None or rng.integers(2):
        return a, w
    return a, w, _sums(params, _patterns(params, random_singles(rng, (m, n)))) + np.float32(0)


def _random_elements(rng: np.random.Generator, form: ElementForm, shape: tuple[int, int]) -> Ints:
    """Finite codes: any, the largest of one sign or of both, subnormal, few that are not zero, chosen at random."""
    if not form.is_float:
        return gemm.random_codes(rng, shape, -form.largest, form.largest - 1)
    signs = rng.integers(0, 2, shape) << (form.bits - 1)
    uniform = rng.integers(0, form.top, shape, endpoint=True) | signs
    match rng.integers(6):
        case 0:
            return np.full(shape, form.top | int(rng.integers(2)) << (form.bits - 1))
        case 1:
            return form.top | signs
        case 2:
            return uniform & ~(form.top >> form.fraction_bits << form.fraction_bits)
        case 3:
            return np.where(rng.random(shape) < 0.8, 0, uniform)
    return uniform


def _random_scales(rng: np.random.Generator, params: MxdotParams, shape: tuple[int, int]) -> Ints:
    """Codes near the one of 1, any, one for all, or those with which terms meet the ends of FP32's range."""
    top, one = params.scale.top, params.scale.one
    match rng.integers(5):
        case 0:
            return rng.integers(0, top, shape, endpoint=True)
        case 1:
            return np.full(shape, rng.integers(0, top, endpoint=True))
        case 2:
            return np.asarray((one + rng.choice([-1, 1]) * one // 2 + rng.integers(-8, 9, shape)).clip(0, top))
    return np.asarray((one + rng.integers(-6, 7, shape)).clip(0, top))
