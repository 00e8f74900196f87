"""The area-delay curve of a design: from its smallest netlist to its fastest, one faster module at a time.

Every module is mapped in many ways (yosys.candidates): adders, multipliers, technology mapping for speed or for area,
gates sized for several delays (ABC's -D). From the smallest of each, the module on the critical path whose next faster
netlist gives the most for its area is exchanged, and the whole design timed anew, until the critical path holds none
that has a faster one. So what is not critical stays small, as one clock target for a whole design asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hwsim.synth import SynthResult, yosys
from hwsim.synth.flow import measured
from hwsim.synth.liberty import Library
from hwsim.synth.sta import Path
from hwsim.synth.yosys import Candidate

STEP = 0.97
"""a step of a ladder is at least that much faster than the one before"""

Ladders = Mapping[str, Sequence[Candidate]]


def curve(verilog: str, top: str, library: Library, time_limit_s: float) -> tuple[SynthResult, ...]:
    """The netlists found that no other one beats in area and delay, fast to slow."""
    ladders = {
        name: ladder(found) for name, found in yosys.candidates(verilog, top, library.text, time_limit_s).items()
    }
    return unbeaten(climb(ladders, top, library))


def ladder(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Slow to fast: the smallest one, then each that is a step faster; the fastest one comes last in any case."""
    slow_first = sorted(candidates, key=lambda c: (-c.delay, c.area))
    rungs = slow_first[:1]
    for candidate in slow_first[1:]:
        if candidate.delay <= STEP * rungs[-1].delay:
            rungs.append(candidate)
    return rungs if rungs[-1] is slow_first[-1] else [*rungs, slow_first[-1]]


def climb(ladders: Ladders, top: str, library: Library) -> Iterator[SynthResult]:
    """The design with the first rung of every ladder, then with one rung more at a time."""
    at = dict.fromkeys(ladders, 0)
    while True:
        chosen = {name: ladders[name][rung] for name, rung in at.items()}
        netlist: dict[str, Any] = {"modules": {name: candidate.netlist for name, candidate in chosen.items()}}
        flows = {name: candidate.flow for name, candidate in chosen.items()}
        result, path = measured(netlist, top, library, _multiplier(chosen.values()), flows)
        yield result
        name = _worthiest(ladders, at, path, {name: count for name, count, _ in result.modules})
        if name is None:
            return
        at[name] += 1


def _multiplier(chosen: Any) -> str:
    return "+".join(sorted({candidate.multiplier for candidate in chosen} - {"none"})) or "none"


def _worthiest(ladders: Ladders, at: Mapping[str, int], path: Path, counts: Mapping[str, int]) -> str | None:
    """The module of the path whose next rung saves the most time for its area; None where none has a next rung."""
    share: Counter[str] = Counter()
    for step in path.steps:
        share[step.module] += step.delay

    def worth(name: str) -> float:
        now, after = ladders[name][at[name] : at[name] + 2]
        cost = counts[name] * max(after.area - now.area, 1e-3)
        return share[name] * (1 - after.delay / now.delay) / cost

    return max((n for n in sorted(share) if at[n] + 1 < len(ladders[n])), key=worth, default=None)


def unbeaten(results: Iterator[SynthResult]) -> tuple[SynthResult, ...]:
    """Fast to slow: the results that are smaller than every faster one."""
    kept: list[SynthResult] = []
    for result in sorted(results, key=lambda r: (r.delay_ns, r.area_um2)):
        if not kept or result.area_um2 < kept[-1].area_um2:
            kept.append(result)
    return tuple(kept)
