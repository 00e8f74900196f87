"""Writes docs/fp16.md: how far FP16 engines are from float64 arithmetic on the same operands.

Run: python docs/fp16.py > docs/fp16.md
"""

from typing import Any

import numpy as np

from hwsim.simulate import is_float, random_operands, simulate_gemm
from models.catalog import UNITS
from models.unit import InputError, Kind, Unit

ALIGNED = (8, 10, 12, 16)
"""bits of the integers that activations are aligned to"""
SHAPE = (32, 1024, 32)
SEEDS = range(5)

TEXT = """# FP16 activations against float64

Root mean square of the error over that of the exact result, of a GEMM of M={m} K={k} N={n}: activations N(0, 1) in
FP16, weights uniform among those that the engine can hold; mean and standard deviation over {seeds} seeds. Engines
whose arithmetic is on integers align the activations of a tile to its largest exponent (models/align.py, to nearest
even, at so many bits); all sum tiles, `fpmac` and `dequant` single products, in single precision. `tmac` has exact
tables here. That is the only approximation: weights are taken as they are.

Written by `python docs/fp16.py > docs/fp16.md`; a test holds the page against the code.

| unit | {heads} |
| --- | {rules} |
"""


def page() -> str:
    """The whole document."""
    heads = [f"{bits} bits" for bits in ALIGNED]
    m, k, n = SHAPE
    head = TEXT.format(
        m=m, k=k, n=n, seeds=len(SEEDS), heads=" | ".join(heads), rules=" | ".join("---:" for _ in heads)
    )
    rows = [(entry.name, *(_cell(entry, bits) for bits in ALIGNED)) for entry in UNITS.values() if _takes_halves(entry)]
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _takes_halves(entry: Unit) -> bool:
    return entry.kind is Kind.GEMM and "act_format" in entry.params_type.__dataclass_fields__


def _cell(entry: Unit, bits: int) -> str:
    """Mean and deviation, or a dash where the engine does not align to so many bits."""
    fields = entry.params_type.__dataclass_fields__
    exact = {"table_bits": None} if "table_bits" in fields else {}
    try:
        params = entry.params(act_format="fp16", act_bits=bits, **exact)
    except InputError:
        return "-"
    errors = [_error(params, seed) for seed in SEEDS]
    return f"{np.mean(errors):.1e} ({np.std(errors, ddof=1):.0e})"


def _error(params: Any, seed: int) -> float:
    assert is_float(params)
    a, w = random_operands(params, np.random.default_rng(seed), SHAPE, None)
    exact = a.astype(np.float64) @ w.astype(np.float64)
    difference = simulate_gemm(params, a, w).output - exact
    return float(np.sqrt((difference**2).mean() / (exact**2).mean()))


if __name__ == "__main__":
    print(page(), end="")
