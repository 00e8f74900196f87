"""The catalogue: the place that names the units. Whoever adds a unit adds a line here and two files.

Only hwsim/transforms/maps.py names one as well: the transform that a unit computes says which unit that is.
"""

from __future__ import annotations

from typing import Any

from models.unit import InputError, Kind, Unit, nearest

UNITS = {
    u.name: u
    for u in (
        Unit("systolic", Kind.GEMM, "Systolic array, weight-, output- or input-stationary", "SystolicParams"),
        Unit("cube", Kind.GEMM, "3D cube: the product of two blocks a cycle", "CubeParams"),
        Unit("adder_tree", Kind.GEMM, "Multiplier-adder trees: a dot product a cycle each", "AdderTreeParams"),
        Unit("matrix2d", Kind.GEMM, "2D matrix: outer products of broadcast operands", "Matrix2dParams"),
        Unit("opt2", Kind.GEMM, "OPT2: products of equal bit-weight reduced first, shared encoder", "Opt2Params"),
        Unit("opt3", Kind.GEMM, "OPT3: PEs that add non-zero digits, a sequencer each", "Opt3Params"),
        Unit("opt4c", Kind.GEMM, "OPT4C: PEs that add non-zero digits, one sequencer a column", "Opt4cParams"),
        Unit("opt4e", Kind.GEMM, "OPT4E: four lanes of non-zero digits into one 6:2 compressor", "Opt4eParams"),
        Unit("fpmac", Kind.GEMM, "Systolic array of FP16 multipliers with FP32 sums", "FpmacParams"),
        Unit("mxdot", Kind.GEMM, "Block-scaled dot products: MX formats, NVFP4, FP4 with UE5M3 scales", "MxdotParams"),
        Unit("dequant", Kind.GEMM, "Systolic array behind dequantizers of low-bit weights", "DequantParams"),
        Unit("lutgemm", Kind.GEMM, "LUT-GEMM: binary-coded weights read tables of activation sums", "LutGemmParams"),
        Unit("shiftadd", Kind.GEMM, "ShiftAddLLM: binary-coded weights, power-of-two scales", "ShiftAddParams"),
        Unit("tmac", Kind.GEMM, "T-MAC: bit-serial look-ups in quantized tables of four activations", "TmacParams"),
        Unit("mixpe", Kind.GEMM, "MixPE: shift and add over weight bits, scale and zero point a group", "MixpeParams"),
        Unit("ternary", Kind.GEMM, "Ternary weights: add, subtract or skip", "TernaryParams"),
        Unit("additive", Kind.GEMM, "Binary-code product: weights -1 and +1, additions alone", "AdditiveParams"),
        Unit("shiftlayer", Kind.GEMM, "Shift layer: weights are signed powers of two", "ShiftlayerParams"),
        Unit("bipolar", Kind.GEMM, "Bit planes of -1 and +1 by XNOR and popcount", "BipolarParams"),
        Unit("booth", Kind.ENCODER, "Radix-4 Booth encoder", "BoothParams"),
        Unit("ent", Kind.ENCODER, "EN-T encoder: sign and radix-4 digits of the magnitude", "EntParams"),
        Unit("align", Kind.TRANSFORM, "FP16 values as integers under their largest exponent", "AlignParams"),
        Unit("hadamard", Kind.TRANSFORM, "Fast Walsh-Hadamard transform, parallel or folded", "HadamardParams"),
        Unit("quantizer", Kind.TRANSFORM, "Codes and a scale for each group of values", "QuantizerParams"),
        Unit("dequantizer", Kind.TRANSFORM, "Numbers from codes and the scale of each group", "DequantizerParams"),
    )
}


def unit(name: str) -> Unit:
    """The catalogue entry of that name; InputError with the nearest name otherwise."""
    if name not in UNITS:
        raise InputError(f"no unit {name!r}; {nearest(name, UNITS)}")
    return UNITS[name]


def unit_of(params: Any) -> Unit:
    """The unit that a params object belongs to."""
    return unit(type(params).__module__.rpartition(".")[2])
