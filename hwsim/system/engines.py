"""What a machine's engines take for a tile: cycles, words that cross their edge, operations and their energy.

Everything comes from the unit's own `timing` and `ops`; an array's figures for a shape are computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hwsim.energy import energy_pj
from hwsim.system.machine import EngineSpec
from models.catalog import unit
from models.gemm import Fold, fold_of
from models.unit import Timing

Shape = tuple[int, int, int]
"""M, K, N"""

WORDS = ("act", "weight", "psum", "out")
"""operands that cross an array's edge, as `Timing.words` names them"""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an engine does for a product."""

    cycles: int
    words: dict[str, int]
    energy_pj: float


@dataclass(frozen=True, kw_only=True)
class Array:
    """One array of the catalogue as a machine uses it; `convention` and `sigma` as in the machine file."""

    unit: str
    params: Any
    convention: str
    sigma: float

    def timing(self, M: Any, K: Any, N: Any) -> Timing:
        """Shapes may be int64 arrays unless cycles depend on operands."""
        extra = {"convention": self.convention} if self.convention != "rtl" else {}
        return unit(self.unit).timing(self.params, **self.shape(M, K, N), **extra)

    def shape(self, M: Any, K: Any, N: Any) -> dict[str, Any]:
        """What the unit's `timing` and `ops` take; operands are drawn where cycles depend on them."""
        if not unit(self.unit).timed_by_operands:
            return {"M": M, "K": K, "N": N}
        return _drawn_shape(self, (M, K, N))


@lru_cache(maxsize=4096)
def _drawn_shape(array: Array, shape: Shape) -> dict[str, Any]:
    """The shape of a product of normal integers (seed 0), with whatever else the unit's cycles depend on."""
    from hwsim.simulate import random_operands

    entry = unit(array.unit)
    a, w = random_operands(array.params, np.random.default_rng(0), shape, array.sigma)
    return dict(entry.shape_of(array.params, a, entry.from_integers(array.params, w)[0]))


@lru_cache(maxsize=65536)
def _alone(array: Array, shape: Shape) -> tuple[int, tuple[int, ...], float]:
    """Cycles, words and energy of one array."""
    timing = array.timing(*shape)
    words = timing.words or {}
    ops = unit(array.unit).ops(array.params, **array.shape(*shape))
    return int(timing.total_cycles), tuple(int(words[name]) for name in WORDS), energy_pj(ops)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """`count` arrays that share out dimension `split` of every product; the largest share sets the pace."""

    name: str
    array: Array
    count: int
    split: str
    mode: str = ""
    """of an engine with several; they are one engine, of which each has its own `Engine`"""

    @property
    def fold(self) -> Fold:
        """Of all arrays together."""
        one = fold_of(self.array.params)
        m, n = (self.count, 1) if self.split == "M" else (1, self.count)
        return Fold(M=one.M * m, K=one.K, N=one.N * n, takes_psum=one.takes_psum)

    @property
    def not_counted(self) -> int:
        """Cycles at the end of a product that the convention leaves out: SCALE-Sim's count is one short of the cycles
        of all folds. `pace` and `work` have them, so that tiles of one product add up."""
        return int(self.array.convention == "scalesim")

    @property
    def peak_per_cycle(self) -> float:
        """Multiply-accumulates in a cycle in which every lane is busy."""
        return self.count * self.array.timing(1, 1, 1).peak_per_cycle

    def pace(self, M: Any, K: Any, N: Any) -> tuple[Any, dict[str, Any]]:
        """Cycles and words as in `work`, of int64 arrays of shapes; not where cycles depend on operands."""
        each = self.share(whole := M if self.split == "M" else N)
        full, rest = whole // each, whole % each
        parts = [(full, each), (np.minimum(rest, 1), np.maximum(rest, 1))]
        timings = [(times, self.array.timing(*self._part((M, K, N), size))) for times, size in parts]
        words = {name: sum(times * timing.words[name] for times, timing in timings) for name in WORDS}
        return timings[0][1].total_cycles + self.not_counted, words

    def share(self, whole: Any) -> Any:
        """The largest share: whole folds, unless there is less than one."""
        one = fold_of(self.array.params)
        fold = one.M if self.split == "M" else one.N
        return np.minimum(whole, fold * -(-whole // (fold * self.count)))

    def _part(self, shape: tuple[Any, Any, Any], size: Any) -> tuple[Any, Any, Any]:
        m, k, n = shape
        return (size, k, n) if self.split == "M" else (m, k, size)

    def work(self, shape: Shape) -> Work:
        """Of all arrays; operands that every array takes are counted for each."""
        shares = [(times, _alone(self.array, part)) for times, part in self._shares(shape)]
        return Work(
            cycles=max(figures[0] for _, figures in shares) + self.not_counted,
            words={name: sum(times * figures[1][i] for times, figures in shares) for i, name in enumerate(WORDS)},
            energy_pj=sum(times * figures[2] for times, figures in shares),
        )

    def _shares(self, shape: Shape) -> list[tuple[int, Shape]]:
        """(how many arrays, what each of them does), idle arrays left out."""
        each = int(self.share(whole := shape[0] if self.split == "M" else shape[2]))
        full, rest = divmod(whole, each)
        cut = [(full, each), (1, rest)] if rest else [(full, each)]
        return [(times, self._part(shape, size)) for times, size in cut]


def modes_of(spec: EngineSpec) -> list[Engine]:
    """The engine that a machine file describes, in each of its modes."""
    return [
        Engine(
            name=spec.name,
            array=Array(unit=spec.unit, params=made, convention=spec.convention, sigma=spec.sigma),
            count=spec.count,
            split=spec.split,
            mode=mode,
        )
        for mode, made in spec.made_in.items()
    ]


def engine_of(spec: EngineSpec) -> Engine:
    """The engine in its first mode."""
    return modes_of(spec)[0]
