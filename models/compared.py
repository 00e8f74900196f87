"""How low-bit engines stand in `hwsim compare`: all of one weight width and one activation format together.

An architecture is W<bits>A8 or W<bits>A16 (FP16), its baseline an array of full multipliers that does as many MACs a
cycle and holds the same codes as INT8 or FP16 weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.floats import ActFormat
from models.unit import Compared, Published

LUT, SHIFT_ADD = "lut", "shiftadd"
FAMILIES = (LUT, SHIFT_ADD)
WIDTHS = (1, 2, 3, 4)
"""of weights, in bits"""
BASELINES = {ActFormat.INT: "INT8 MAC", ActFormat.FP16: "FP16 MAC"}


def low_bit(
    style: str,
    designs: Mapping[int, Any],
    *,
    act_format: ActFormat = ActFormat.INT,
    families: tuple[str, ...] = FAMILIES,
    published: Mapping[int, Published] | None = None,
    differs: str = "",
) -> tuple[Compared, ...]:
    """The designs, weight bits -> params, in each of the families, in the architecture of their width and format.

    `published`: what a paper says, for the widths that it says it of.
    """
    act_bits = 16 if act_format is ActFormat.FP16 else 8
    return tuple(
        Compared(
            family=family,
            architecture=f"W{bits}A{act_bits}",
            style=style,
            params=params,
            baseline=BASELINES[act_format],
            published=(published or {}).get(bits),
            differs=differs,
        )
        for family in families
        for bits, params in designs.items()
    )


def baseline(act_format: ActFormat, params: Any) -> tuple[Compared, ...]:
    """The array of full multipliers: the same for every weight width."""
    return low_bit(BASELINES[act_format], dict.fromkeys(WIDTHS, params), act_format=act_format)
