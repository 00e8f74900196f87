"""Timing two things alternately, and the record of one measurement."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

Samples = Sequence[float]

PAUSE_S = 0.2
"""Before every timed run: worker threads of BLAS and numba spin for about 0.1 s after their work, and would take the
cores from whichever comes next."""


@dataclass(frozen=True, kw_only=True)
class AtMost:
    """A value that should not pass a bound."""

    bound: float
    missed: ClassVar[str] = "over"

    def holds(self, value: float) -> bool:
        return value <= self.bound

    def __str__(self) -> str:
        return f"<= {self.bound:g}"


@dataclass(frozen=True, kw_only=True)
class AtLeast:
    """A value that should reach a bound."""

    bound: float
    missed: ClassVar[str] = "under"

    def holds(self, value: float) -> bool:
        return value >= self.bound

    def __str__(self) -> str:
        return f">= {self.bound:g}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of the table. Times are seconds of wall clock, one a round."""

    name: str
    what: str
    """what was timed, with its shape"""
    ours: Samples
    reference: Samples = ()
    """empty where the limit is on our time itself"""
    against: str = ""
    """what the reference is"""
    values: Samples
    """what the limit is on, one a round: `unit` says what"""
    unit: str
    """`x`: a ratio; `s`: seconds"""
    limit: AtMost | AtLeast

    @property
    def value(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.values)

    @property
    def within(self) -> bool:
        """Whether the median keeps the limit."""
        return self.limit.holds(self.value)


def ratio(name: str, what: str, against: str, times: tuple[Samples, Samples], bound: float) -> Result:
    """Ours over the reference, round by round, at most `bound`; `times` as `alternate` gives them."""
    ours, reference = times
    values = [a / b for a, b in zip(ours, reference, strict=True)]
    limit = AtMost(bound=bound)
    return Result(
        name=name, what=what, ours=ours, reference=reference, against=against, values=values, unit="x", limit=limit
    )


def absolute(name: str, what: str, times: Samples, bound: float) -> Result:
    """Our seconds, at most `bound`."""
    return Result(name=name, what=what, ours=times, values=times, unit="s", limit=AtMost(bound=bound))


def limited(name: str, what: str, against: str, times: tuple[Samples, Samples], bound: float) -> Result:
    """Our seconds, at most `bound`, and those of a reference beside them."""
    ours, reference = times
    limit = AtMost(bound=bound)
    return Result(
        name=name, what=what, ours=ours, reference=reference, against=against, values=ours, unit="s", limit=limit
    )


def alternate(ours: Callable[[], Any], reference: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of `rounds` runs of each, A B A B .., after one run of each that is not counted (compilation, caches)."""
    ours()
    reference()
    pairs = [(seconds(ours), seconds(reference)) for _ in range(rounds)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def repeat(ours: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds of `rounds` runs after one that is not counted."""
    ours()
    return [seconds(ours) for _ in range(rounds)]


def seconds(function: Callable[[], Any]) -> float:
    """Wall clock of one call, after a pause."""
    time.sleep(PAUSE_S)
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class WrongResult(Exception):
    """What was timed did not give the right answer: its time means nothing."""


def confirm(condition: bool, what: str) -> None:
    """Raise `WrongResult(what)` unless `condition` holds."""
    if not condition:
        raise WrongResult(what)
