"""What a machine executes: stages of steps, as nested loops whose iterations are alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

ACT, WEIGHT, OUT, EXTRA, SCORES = range(5)
"""buffers of a stage: the two operands, the result, what an epilogue reads, attention's scores"""


@dataclass(frozen=True, slots=True)
class Move:
    """A transfer between main memory and a buffer; `runs` stretches lie apart in memory. (Both can be arrays of many
    transfers' figures.) Without bytes the buffer is
    only taken."""

    buffer: int
    bytes: int
    runs: int = 1


@dataclass(frozen=True, slots=True)
class Step:
    """What a unit does at a time: `cycles` on operands that `loads` bring, or that the steps before have left.

    It reads the tiles in the buffers `reads`, where there are any; `older`: not the latest scores but those before.
    `new_out`: it begins a tile of the result, which `resume` brings back where it had been put away. `store`: it ends
    one, which then passes through the units of its `epilogue`, (unit, cycles) each. `after`: it waits for the end of
    the step that is so many before it, whatever unit that is on; 0: for none.
    """

    unit: str
    cycles: int
    loads: tuple[Move, ...] = ()
    new_out: bool = False
    resume: Move | None = None
    store: Move | None = None
    epilogue: tuple[tuple[str, int], ...] = ()
    after: int = 0
    reads: tuple[int, ...] = (ACT, WEIGHT)
    older: bool = False


@dataclass(frozen=True, slots=True)
class Loop:
    """`count` times the same."""

    count: int
    body: tuple[Node, ...]


Node = Step | Loop


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A layer, or what is left of several: its steps, and which stages before it must have ended.

    `waits` counts backwards, 1 is the stage before. `weights_wait`: the second operand comes out of those stages too.
    `buffers`: buffer -> bytes of its largest tile, and `copies` how many such tiles have room side by side.
    """

    name: str = field(compare=False)
    nodes: tuple[Node, ...]
    waits: tuple[int, ...]
    weights_wait: bool
    buffers: tuple[tuple[int, int], ...]
    copies: int


@dataclass(frozen=True)
class Repeat:
    """`count` times the same stages; `names` are those of every stage of every time."""

    count: int
    stages: tuple[Stage, ...]
    names: tuple[str, ...]


def steps_of(nodes: tuple[Node, ...], times: int = 1) -> Iterator[tuple[int, Step]]:
    """Every distinct place of a step and how many times it is passed."""
    for node in nodes:
        if isinstance(node, Loop):
            yield from steps_of(node.body, times * node.count)
        else:
            yield times, node


def repeats(stages: list[Stage]) -> list[Repeat]:
    """The same stages with runs of equal ones told once: at each place the period that covers most."""
    found, at = [], 0
    number: dict[Stage, int] = {}
    ids = [number.setdefault(stage, len(number)) for stage in stages]
    while at < len(ids):
        period, count = _best_period(ids, at)
        names = tuple(stage.name for stage in stages[at : at + period * count])
        found.append(Repeat(count=count, stages=tuple(stages[at : at + period]), names=names))
        at += period * count
    return found


LONGEST_PERIOD = 64
"""stages of a block that can repeat"""


def _best_period(ids: list[int], at: int) -> tuple[int, int]:
    best = (1, 1)
    for period in range(1, min(LONGEST_PERIOD, (len(ids) - at) // 2) + 1):
        count = 1
        while ids[at : at + period] == ids[at + period * count : at + period * (count + 1)]:
            count += 1
        if count > 1 and period * count > best[0] * best[1]:
            best = (period, count)
    return best
