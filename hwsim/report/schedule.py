"""What an array does cycle by cycle in a product of its own size: transfers on its streams, and which PE works when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.catalog import UNITS
from models.gemm import fold_of
from models.unit import InputError, Kind, Stimulus, Trace, Unit

LARGEST_ARRAY = 4096
"""PEs that are drawn at most"""
LONGEST = 3000
"""cycles that are drawn at most"""
FEWEST, MOST = 8, 64
"""vectors that stream through, as long as the array's sides lie between"""

Run = list[int]
"""first cycle and number of cycles"""


def schedule_of(name: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schedule of that unit with these parameters, as plain data; None for one that has none to draw.

    `M`, `K`, `N`: the product, of random operands (seed 0); `cycles` in all, `load`, `stream`, `drain` of them;
    `streams`: name, and the runs of cycles in which a beat is transferred; `array`, where the model can tell: `rows`,
    `cols`, `patterns` (runs of work, from the PE's own first cycle of work on), `first` and `pattern` of each PE, row
    by row (-1: never at work). Cycles count from the first transfer.
    """
    if name not in UNITS or UNITS[name].kind is not Kind.GEMM:
        return None
    try:
        entry, params = UNITS[name], UNITS[name].params(**values)
        return _drawn(entry, params, _shape(params))
    except InputError:
        return None  # parameters of another version, or a product that this engine refuses


def _shape(params: Any) -> dict[str, int]:
    """Two folds one after the other, along K where the array cuts K; what it does not cut streams."""
    fold = fold_of(params)
    sizes = {"M": fold.M, "K": fold.K, "N": fold.N}
    streamed = min(max(*sizes.values(), FEWEST), MOST)
    twice = next(name for name in ("K", "N", "M") if sizes[name] > 1 or name == "M")
    return {name: (2 * size if name == twice else size) if size > 1 else streamed for name, size in sizes.items()}


def _drawn(entry: Unit, params: Any, shape: Mapping[str, int]) -> dict[str, Any] | None:
    operands = entry.sample(params, np.random.default_rng(0), **shape)
    timing = entry.timing(params, **entry.shape_of(params, *operands))
    if timing.total_cycles > LONGEST:
        return None
    parts = {"load": timing.load_cycles, "stream": timing.stream_cycles, "drain": timing.drain_cycles}
    return {
        **shape,
        "cycles": int(timing.total_cycles),
        **{name: int(cycles) for name, cycles in parts.items()},
        "streams": _streams(_stall_free(entry, params, operands)),
        **_array(entry, params, shape, int(timing.peak_per_cycle)),
    }


def _stall_free(entry: Unit, params: Any, operands: tuple[Any, ...]) -> Trace:
    always = np.ones(1, dtype=np.bool_)
    inputs = entry.beats(params, *operands)
    outputs = {"o_psum": always}
    trace: Trace = entry.trace(
        params, Stimulus(beats=inputs, offer=dict.fromkeys(inputs, always), accept=outputs, tail=0)
    )
    return trace


def _streams(trace: Trace) -> list[dict[str, Any]]:
    names = [port.removesuffix(".valid") for port in trace if port.endswith(".valid")]
    return [{"name": name, "runs": _runs(trace[f"{name}.valid"] & trace[f"{name}.ready"])} for name in names]


def _runs(moves: NDArray[np.bool_]) -> list[Run]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], moves, [False]]).astype(np.int8)))
    return [[int(start), int(end - start)] for start, end in edges.reshape(-1, 2)]


def _array(entry: Unit, params: Any, shape: Mapping[str, int], lanes: int) -> dict[str, Any]:
    """What `activity` of the unit's model tells, where it is defined."""
    if not hasattr(entry.module, "activity") or lanes > LARGEST_ARRAY:
        return {}
    busy = entry.module.activity(params, **shape)
    return {"array": _packed(busy)}


def _packed(busy: NDArray[np.bool_]) -> dict[str, Any]:
    """PEs that work alike, each from its own first cycle on, share a pattern."""
    _, rows, cols = busy.shape
    patterns: dict[tuple[tuple[int, ...], ...], int] = {}
    first, pattern = [], []
    for r, c in np.ndindex(rows, cols):
        runs = _runs(busy[:, r, c])
        start = runs[0][0] if runs else -1
        own = tuple((begin - start, length) for begin, length in runs)
        first.append(start)
        pattern.append(patterns.setdefault(own, len(patterns)) if runs else -1)
    return {
        "rows": rows,
        "cols": cols,
        "patterns": [[list(run) for run in own] for own in patterns],
        "first": first,
        "pattern": pattern,
    }
