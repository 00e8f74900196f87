"""Models and transforms against numpy: GEMMs, look-up tables, number formats, the Walsh-Hadamard transform, cycles."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Result, absolute, alternate, confirm, ratio, repeat
from hwsim.simulate import in_units, is_float, random_operands, simulate_gemm
from hwsim.transforms.fwht import fwht
from models.catalog import UNITS, unit
from models.ent import digits
from models.formats import get_format
from models.lutgemm import BcqWeights
from models.unit import Unit

FLOAT32 = "numpy float32 matmul"
BLOCKS = {"cube": "n", "adder_tree": "lanes", "opt2": "tile_k"}
"""engines that add the exact sum of several products at a time -> the parameter that says how many; others one"""


def gemm(size: int = 1024, array: int = 32, rounds: int = 15) -> list[Result]:
    """`simulate_gemm` of int8 operands with an accumulator that holds every sum, both dataflows."""
    a, w = int8_operands(size)
    results = []
    for dataflow in ("WS", "OS"):
        params = unit("systolic").params(rows=array, cols=array, dataflow=dataflow)
        got = simulate_gemm(params, a, w)
        confirm(np.array_equal(got.output, float64_product(a, w)), f"gemm {dataflow}: output")
        confirm(got.timing.total_cycles == systolic_cycles(dataflow, size, array), f"gemm {dataflow}: cycles")
        times = alternate(lambda p=params: simulate_gemm(p, a, w), float32_matmul(a, w), rounds)
        what = f"simulate_gemm {size}x{size}x{size} INT8, {array}x{array} systolic {dataflow}"
        results.append(ratio("gemm", what, FLOAT32, times, 2))
    return results


def gemm_saturate(size: int = 1024, array: int = 32, acc_bits: int = 18, rounds: int = 15) -> list[Result]:
    """The same with an accumulator that saturates on the way."""
    a, w = int8_operands(size)
    params = unit("systolic").params(rows=array, cols=array, acc_bits=acc_bits, overflow="saturate")
    got = simulate_gemm(params, a, w).output
    rows = [*range(8), *range(size - 8, size)]
    confirm(np.array_equal(got[rows], saturated_product(a[rows], w, acc_bits)), "gemm-saturate: output")
    final = np.clip(float64_product(a, w), -(1 << acc_bits - 1), (1 << acc_bits - 1) - 1)
    confirm(not np.array_equal(got, final), "gemm-saturate: no sum saturated on the way")
    times = alternate(lambda: simulate_gemm(params, a, w), float32_matmul(a, w), rounds)
    what = f"simulate_gemm {size}x{size}x{size} INT8, {acc_bits}-bit accumulator that saturates"
    return [ratio("gemm-saturate", what, FLOAT32, times, 8)]


def goldens(size: int = 1024, acc_bits: int = 20, rounds: int = 9) -> list[Result]:
    """The integer family's goldens, and with accumulators that saturate on the way where an engine has them."""
    a, w = int8_operands(size)
    exact = float64_product(a, w)
    results = []
    for entry in of_families("integer"):
        saturates = "overflow" in entry.params_type.__dataclass_fields__
        for values in ({}, *([{"acc_bits": acc_bits, "overflow": "saturate"}] if saturates else [])):
            params = entry.params(**values)
            got = entry.golden(params, a, w)
            rows = [*range(4), *range(size - 4, size)]
            block = getattr(params, BLOCKS.get(entry.name, ""), 1)
            want = saturated_product(a[rows], w, acc_bits, block) if values else exact[rows]
            confirm(np.array_equal(got[rows], want), f"goldens {entry.name}: output")
            times = alternate(lambda e=entry, p=params: e.golden(p, a, w), float32_matmul(a, w), rounds)
            what = f"{entry.name} golden {size}x{size}x{size} INT8" + (f", {acc_bits} bits saturate" if values else "")
            results.append(ratio("goldens", what, FLOAT32, times, 8))
    return results


def low_bit(size: int = 1024, rounds: int = 9) -> list[Result]:
    """Goldens of the low-bit engines' designs of at most 4 weight bits, as `hwsim compare` lays them side by side.

    Weights of the greatest width up to 4 that the engine holds. INT8 activations, or FP16 ones (a float32 matmul of
    the same values beside them). Exact engines are held against float64, the others to 2 % of the largest output;
    T-MAC's averages, which have a bias, to a quarter.
    """
    results = []
    for entry in of_families("lut", "shiftadd"):
        for style, params in widest_designs(entry).items():
            a, w = random_operands(params, np.random.default_rng(4), (size, size, size), 40)
            operand, worth = entry.from_integers(params, w)
            got, want = entry.golden(params, a, operand), a.astype(np.float64) @ w.astype(np.float64)
            error = np.abs(in_units(got, worth) - want).max()
            own_tables = "table_bits" in params.__dataclass_fields__ and params.table_bits is not None
            exact = not is_float(params) and not own_tables
            share = 0 if exact else 0.25 if getattr(params, "aggregation", None) == "fast" else 0.02
            confirm(error <= share * np.abs(want).max(), f"low-bit {style}: output")
            golden = partial(entry.golden, params, a, operand)
            times = alternate(golden, float32_matmul(a.astype(np.float32), w), rounds)
            what = f"{style} golden {size}x{size}x{size} W{params.weight_bits}"
            results.append(ratio("low-bit", what, FLOAT32, times, 20 if own_tables else 8))
    return results


def block_scaled(size: int = 512, rounds: int = 9) -> list[Result]:
    """Goldens of block-scaled FP4 with an FP32 accumulator: both operands quantized from normal values.

    Held against float64; the accumulator rounds once a block, by 2^-24 of what it holds.
    """
    entry = unit("mxdot")
    rng = np.random.default_rng(7)
    a, w = rng.standard_normal((2, size, size))
    results = []
    for name, values in (("mxfp4", {}), ("nvfp4", {"block_size": 16, "scale_format": "e4m3"})):
        params = entry.params(**values)
        acts, weights = get_format(name).quantize(a, axis=-1), get_format(name).quantize(w, axis=0)
        (A, act_worth), (W, weight_worth) = entry.act_operand(params, acts), entry.operand(params, weights)
        want = acts.dequantize() @ weights.dequantize()
        error = np.abs(entry.golden(params, A, W) * float(act_worth * weight_worth) - want).max()
        rounded = -(-size // params.block_size) * 2.0**-24
        confirm(error <= 2 * rounded * np.abs(want).max(), f"mxdot {name}: output")
        times = alternate(partial(entry.golden, params, A, W), float32_matmul(a, w), rounds)
        results.append(ratio("mxdot", f"mxdot golden {size}x{size}x{size} {name}", FLOAT32, times, 8))
    return results


def of_families(*families: str) -> list[Unit]:
    """GEMM engines that stand in one of these families of `hwsim compare`."""
    return [e for e in UNITS.values() if e.kind == "gemm" and {c.family for c in e.compared} & {*families}]


def widest_designs(entry: Unit) -> dict[str, Any]:
    """Style -> params of the engine's low-bit designs, of each the one of most weight bits."""
    designs = [c for c in entry.compared if c.family in ("lut", "shiftadd")]
    return {c.style: c.params for c in sorted(designs, key=lambda c: c.params.weight_bits)}


def sparse_timing(size: int = 4096, rounds: int = 3) -> list[Result]:
    """Exact cycles of a GEMM whose digits decide them, from its operands."""
    a, w = int8_operands(size)
    results = []
    for entry in (e for e in UNITS.values() if e.timed_by_operands):
        params = entry.params()
        shape = entry.shape_of(params, a, w)
        confirm(shape["steps"][-1, 0] == row_steps(params.array, a[-1]), f"sparse-timing {entry.name}: steps")
        timing = entry.timing(params, **shape)
        confirm(timing.column_cycles.sum() * params.rows >= shape["steps"].sum() * size, f"sparse-timing {entry.name}")
        times = repeat(lambda e=entry, p=params: e.timing(p, **e.shape_of(p, a, w)), rounds)
        results.append(absolute("sparse-timing", f"{entry.name} cycles {size}x{size}x{size} INT8", times, 5))
    return results


def lutgemm(size: int = 1024, rounds: int = 15) -> list[Result]:
    """Golden output of weights in binary code of 4 planes, scales a column."""
    rng = np.random.default_rng(2)
    a, _ = int8_operands(size)
    weights = BcqWeights(
        codes=rng.integers(0, 16, (size, size)),
        scales=rng.integers(-128, 128, (4, 1, size)),
        offsets=rng.integers(-128, 128, (1, size)),
        group=size,
    )
    entry = unit("lutgemm")
    params = entry.params(rows=8, cols=8)
    planes = [2 * (weights.codes >> i & 1) - 1 for i in range(4)]
    w = sum((p * s for p, s in zip(planes, weights.scales, strict=True)), weights.offsets)
    confirm(np.array_equal(entry.golden(params, a, weights), float64_product(a, w)), "lutgemm: output")
    times = alternate(lambda: entry.golden(params, a, weights), float32_matmul(a, w), rounds)
    what = f"LUT-GEMM golden {size}x{size}x{size}, W4 in binary code, INT8 activations"
    return [ratio("lutgemm", what, FLOAT32, times, 6)]


def walsh_hadamard(size: int = 4096, rounds: int = 9) -> list[Result]:
    """Fast Walsh-Hadamard transform of a square float32 matrix along both axes, and along one with 3 values behind it.

    The copy goes into an array that exists already; the transform's own is new, as its caller gets it. One thread each.
    """
    x = np.random.default_rng(3).standard_normal((size, size), dtype=np.float32)
    cases = [("the last axis", x, 1), ("the first axis", x, 0), ("axis 1", x[: size // 3 * 3].reshape(-1, size, 3), 1)]
    signs = np.array([1.0])
    while len(signs) < size:
        signs = np.concatenate([signs, -signs])  # the last row of the Sylvester matrix
    results = []
    for axis_name, values, axis in cases:
        last, want = fwht(values, axis).take(-1, axis), np.tensordot(values, signs, (axis, 0))
        confirm(np.allclose(last, want, rtol=1e-3, atol=1e-2 * size**0.5), f"fwht: along {axis_name}")
        target = values.copy()
        times = alternate(lambda v=values, a=axis: fwht(v, a), lambda t=target, v=values: np.copyto(t, v), rounds)
        what = f"fwht of {'x'.join(map(str, values.shape))} float32 along {axis_name}"
        results.append(ratio("fwht", what, "numpy copy of the same array, one thread", times, 6))
    return results


def quantize(rows: int = 4096, channels: int = 768, rounds: int = 9) -> list[Result]:
    """Codes of float64 activations: one scale a token, and block-scaled FP4.

    Checked: no value is farther from its own than the format's widest step allows, half of it or what is above the
    largest code; as a share of the largest of its token or block.
    """
    x = np.random.default_rng(6).standard_normal((rows, channels))
    results = []
    for name, group, share in (("int4", channels, 1 / 14), ("mxfp4", 32, 1 / 4), ("nvfp4", 16, 1 / 5)):
        format_ = get_format(name)
        error = np.abs(format_.quantize(x, axis=-1).dequantize() - x).reshape(rows, -1, group).max(axis=-1)
        largest = np.abs(x).reshape(rows, -1, group).max(axis=-1)
        confirm(np.all(error <= share * largest * (1 + 1e-9)), f"quantize {name}: values")
        times = alternate(partial(format_.quantize, x, axis=-1), lambda: np.rint(x), rounds)
        results.append(ratio("quantize", f"{name} codes of {rows}x{channels}", "numpy rint of the same", times, 30))
    return results


def cycle_formulas(shapes: int = 60_000, rounds: int = 9) -> list[Result]:
    """Cycle counts of many shapes in SCALE-Sim's convention."""
    m, k, n = np.random.default_rng(4).integers(1, 10_000, (3, shapes))
    entry = unit("systolic")
    results = []
    for dataflow in ("WS", "OS"):
        params = entry.params(rows=32, cols=32, dataflow=dataflow)
        many = entry.timing(params, M=m, K=k, N=n, convention="scalesim").total_cycles
        one = entry.timing(params, M=int(m[-1]), K=int(k[-1]), N=int(n[-1]), convention="scalesim").total_cycles
        confirm(many.shape == m.shape and many[-1] == one, f"timing {dataflow}: array and single shape")
        times = repeat(lambda p=params: entry.timing(p, M=m, K=k, N=n, convention="scalesim"), rounds)
        results.append(absolute("timing", f"cycles of {shapes} shapes, {dataflow}, SCALE-Sim's convention", times, 1))
    return results


def row_steps(array: Any, row: NDArray[Any]) -> int:
    """Steps of a row of A in its first K fold, counted digit by digit."""
    codes = np.zeros(array.tile_k, dtype=np.int64)
    codes[: min(len(row), array.tile_k)] = row[: array.tile_k]
    groups = (digits(codes, array.act_bits) != 0).reshape(-1, array.lanes, 4, array.digits).sum(axis=2)
    return int(np.maximum(groups, 1).sum(axis=0).max(axis=0).sum())


def int8_operands(size: int) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """A and W, uniform over all int8 values."""
    rng = np.random.default_rng(1)
    return tuple(rng.integers(-128, 128, (size, size), dtype=np.int8) for _ in range(2))


def float32_matmul(a: NDArray[Any], w: NDArray[Any]) -> Any:
    """The reference, its operands converted beforehand."""
    a32, w32 = a.astype(np.float32), w.astype(np.float32)
    return lambda: a32 @ w32


def float64_product(a: NDArray[Any], w: NDArray[Any]) -> NDArray[np.int64]:
    """Exact: sums of these operands stay far below 2^53."""
    return (a.astype(np.float64) @ w.astype(np.float64)).astype(np.int64)


def saturated_product(a: NDArray[Any], w: NDArray[Any], bits: int, block: int = 1) -> NDArray[np.int64]:
    """Products added in order of k, limited after each `block` of them."""
    total = np.zeros((a.shape[0], w.shape[1]), dtype=np.int64)
    for k in range(0, a.shape[1], block):
        products = a[:, k : k + block].astype(np.int64) @ w[k : k + block].astype(np.int64)
        total = np.clip(total + products, -(1 << bits - 1), (1 << bits - 1) - 1)
    return total


def systolic_cycles(dataflow: str, size: int, array: int) -> int:
    """Cycles of a cube of `size` on a square array, written out: folds, each of load, stream, skew and drain."""
    folds = (-(-size // array)) ** 2
    fold = array + size + (2 * array - 1) - 1 if dataflow == "WS" else size + 3 * array - 1
    return folds * fold + (dataflow == "WS")
