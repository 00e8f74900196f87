"""Where tasks are computed: on this machine's cores (`local`) or on a Dask cluster (`cluster`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hwsim.sweep.tasks import Outcome


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one task."""

    time_s: float = 3600.0
    """wall clock; the process that computes it, and all that it started, is then killed"""
    memory_mib: int = 4096
    """RLIMIT_DATA of that process and of each one it starts"""


@dataclass(frozen=True, kw_only=True)
class Order:
    """A task as an executor takes it: plain data."""

    key: str
    evaluation: str
    """`module:name` of the function that makes the `Evaluation`"""
    settings: Mapping[str, Any]
    """what that function takes"""
    kind: str
    inputs: Mapping[str, Any]
    affinity: str = ""
    """orders of the same one share intermediate results within a process; empty: with none"""


class Executor(Protocol):
    """Computes tasks in some order and gives back how each of them ended, exactly once.

    A task that fails, is killed, takes too long or too much memory costs nothing but itself.
    """

    def room(self) -> int:
        """How many more orders it takes now; more than it computes at once, so that no core waits for the next."""
        ...

    def submit(self, order: Order) -> None:
        """Take an order; never waits."""
        ...

    def wait(self, timeout_s: float | None = None) -> Sequence[Outcome]:
        """What ended since the last call: at least one where something was submitted and no timeout is reached."""
        ...

    def running(self) -> Sequence[str]:
        """Keys of the orders that are being computed, as far as known."""
        ...

    def close(self) -> None:
        """End all that still runs."""
        ...
