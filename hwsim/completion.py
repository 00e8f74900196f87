"""What a shell proposes while a command is typed: (word, what it is), of which typer keeps those that begin alike.

None of these functions raises: a traceback in the middle of a command line helps nobody.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec

Words = list[tuple[str, str]]
Given = ParamSpec("Given")


def _never_failing(find: Callable[Given, Iterator[tuple[str, str]]]) -> Callable[Given, Words]:
    @functools.wraps(find)
    def found(*args: Given.args, **kwargs: Given.kwargs) -> Words:
        try:
            return list(find(*args, **kwargs))
        except Exception:
            return []

    return found


@_never_failing
def units() -> Iterator[tuple[str, str]]:
    """Of the catalogue."""
    from models.catalog import UNITS

    yield from ((name, entry.summary) for name, entry in UNITS.items())


@_never_failing
def engines() -> Iterator[tuple[str, str]]:
    """The units that multiply matrices."""
    from models.catalog import UNITS
    from models.unit import Kind

    yield from ((name, entry.summary) for name, entry in UNITS.items() if entry.kind is Kind.GEMM)


@_never_failing
def networks() -> Iterator[tuple[str, str]]:
    """Those that are trained or loaded here, whose accuracy is measured."""
    from hwsim.networks import NETWORKS

    yield from ((name, "") for name in NETWORKS)


@_never_failing
def workloads() -> Iterator[tuple[str, str]]:
    """Networks of published shapes."""
    from hwsim.workloads.zoo import ZOO

    yield from ((name, entry.what) for name, entry in ZOO.items())


@_never_failing
def decoders() -> Iterator[tuple[str, str]]:
    """Models of `hwsim pim`."""
    from hwsim.pim.params import MODELS

    yield from ((name, "") for name in MODELS)


@_never_failing
def transforms(incomplete: str) -> Iterator[tuple[str, str]]:
    """Behind the last + of a chain."""
    from hwsim.transforms import TRANSFORMS

    chain = incomplete[: incomplete.rfind("+") + 1]
    yield from ((f"{chain}{name}", entry.source) for name, entry in TRANSFORMS.items())


@_never_failing
def quantizers() -> Iterator[tuple[str, str]]:
    from hwsim.quantizers import QUANTIZERS

    yield from ((name, entry.title) for name, entry in QUANTIZERS.items())


@_never_failing
def machines() -> Iterator[tuple[str, str]]:
    """Those that come with the project."""
    from hwsim.system.machine import MACHINES

    yield from ((file.stem, "") for file in sorted(MACHINES.glob("*.yaml")))


@_never_failing
def metrics() -> Iterator[tuple[str, str]]:
    from hwsim.metrics import METRICS

    yield from ((name, metric.heading) for name, metric in METRICS.items())
