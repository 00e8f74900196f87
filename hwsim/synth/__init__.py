"""Area and delay of RTL: Yosys synthesis per distinct module, our own timing across them, cached by content.

`synthesize(verilog, top)` and `area_delay_curve(verilog, top)` are the doors. The built-in library (library.py) is an
approximation: published 45 nm areas, delays by logical effort, no wires and no layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from models.unit import require

if TYPE_CHECKING:
    from hwsim.synth.liberty import Library

PE_NAME = re.compile(r"_pe_[0-9]+$")


@dataclass(frozen=True, kw_only=True)
class SynthResult:
    """What one design costs. Before layout: no wires, no clock tree, no test logic; with the built-in library delays
    are by logical effort. Good for holding designs against each other; not a promise about silicon.
    """

    area_um2: float
    """cell area of the whole design, every instance counted, buffer trees included"""
    gate_equivalents: float
    """area over that of the library's smallest NAND2"""
    delay_ns: float
    """critical path: clock to output, cells, setup; ports count as registers without either"""
    critical_path: tuple[str, ...]
    """one line for each cell: arrival and own delay in ns, net, cell"""
    cells: dict[str, int]
    """cell type -> count over the whole design"""
    modules: tuple[tuple[str, int, float], ...]
    """distinct modules: name, instances, area of one instance's own cells in um2; the top comes last"""
    multiplier: str
    """`Booth` or `array`, whichever was better, `Booth+array` where modules differ; `none` where nothing multiplies"""
    flows: dict[str, str]
    """module -> adder, mapping and sizing that were chosen for it; empty where all modules went one way"""
    library: str
    tools: dict[str, str]
    """tool -> version"""
    target_ns: float | None = None
    """the clock period that was asked for, None where none was"""

    @property
    def clock_mhz(self) -> float:
        return 1000.0 / self.delay_ns

    @property
    def met(self) -> bool:
        """Whether the critical path fits into the clock period that was asked for."""
        return self.target_ns is None or self.delay_ns <= self.target_ns


USUAL_POINTS = (1.0, 1.15, 1.3, 1.6, 2.0)
"""clock periods of an area-delay curve, in multiples of the shortest one"""
LONGEST_NS = 1e6


def synthesize(
    verilog: str,
    top: str,
    *,
    clock_ns: float | None = None,
    liberty: Path | None = None,
    cache: Path | None = None,
    time_limit_s: float = 600,
) -> SynthResult:
    """Synthesise the Verilog text below module `top` on the library in `liberty` (None: the built-in 45 nm one).

    Every distinct module is synthesised once and not flattened; nothing is optimised across module boundaries.

    Without a clock target, modules are mapped for speed, and those that multiply go through two flows, array and
    radix-4 Booth multipliers; the flow with the smaller area times delay of the whole counts. With `clock_ns`, the
    smallest netlist of the area-delay curve (curve.py) whose own static timing fits that period; where none does, the
    fastest one, and the result is not `met`.

    Results are kept by content in `cache` (None: the folder `synth` of
    `hwsim.files.cache_root()`). InputError for a bad name, Verilog that Yosys refuses, a library without the needed
    cells, a latch, a loop, a derived clock, a damaged cache entry or a reached limit.
    """
    check_clock(clock_ns)
    if clock_ns is None:
        from hwsim.synth import flow

        return _results("best", lambda *job: (flow.best(*job),), verilog, top, liberty, cache, time_limit_s)[0]
    return at_clock(_whole_curve(verilog, top, liberty, cache, time_limit_s), clock_ns)


def area_delay_curve(
    verilog: str,
    top: str,
    *,
    points: Sequence[float] | None = USUAL_POINTS,
    liberty: Path | None = None,
    cache: Path | None = None,
    time_limit_s: float = 600,
) -> tuple[SynthResult, ...]:
    """Area against clock, fast to slow: no result has both more area and more delay than another one.

    `points` are clock periods in multiples of the shortest one that was reached, each at least 1; None gives every
    netlist of the curve. Points that the same netlist serves best appear once, with the shortest of their periods. Else
    as `synthesize`.
    """
    require(points is None or len(points) > 0, "points: at least one multiple of the shortest clock period is needed")
    for point in points or ():
        whole = isinstance(point, (int, float)) and not isinstance(point, bool)
        require(whole and 1 <= point <= LONGEST_NS, f"points: {point!r} must be a multiple of at least 1")
    whole_curve = _whole_curve(verilog, top, liberty, cache, time_limit_s)
    if points is None:
        return whole_curve
    fastest = whole_curve[0].delay_ns
    served = {r.delay_ns: r for r in (at_clock(whole_curve, p * fastest) for p in sorted(points, reverse=True))}
    return tuple(served[delay] for delay in sorted(served))


def at_clock(curve: Sequence[SynthResult], clock_ns: float) -> SynthResult:
    """Of a curve, the smallest netlist that fits the clock period, otherwise the fastest one."""
    fitting = [result for result in curve if result.delay_ns <= clock_ns]
    fastest = min(curve, key=lambda r: r.delay_ns)
    return replace(min(fitting, key=lambda r: r.area_um2, default=fastest), target_ns=clock_ns)


def check_clock(clock_ns: float | None) -> None:
    """Refuse a clock target that is no period."""
    number = isinstance(clock_ns, (int, float)) and not isinstance(clock_ns, bool)
    rule = f"clock_ns: {clock_ns!r} must be a number of ns above 0 and at most {LONGEST_NS:g}, such as 1.5"
    require(clock_ns is None or (number and 0 < clock_ns <= LONGEST_NS), rule)


def pe_module(result: SynthResult) -> str | None:
    """The module of the array's repeated element: of those named `..._pe_<n>`, the one with the largest own area.

    None where no module has such a name.
    """
    areas = {name: area for name, _, area in result.modules if PE_NAME.search(name)}
    return max(areas, key=lambda name: (areas[name], name), default=None)


def _whole_curve(
    verilog: str, top: str, liberty: Path | None, cache: Path | None, time_limit_s: float
) -> tuple[SynthResult, ...]:
    from hwsim.synth import curve

    return _results("curve", curve.curve, verilog, top, liberty, cache, time_limit_s)


def _results(
    what: str,
    make: Callable[[str, str, Library, float], tuple[SynthResult, ...]],
    verilog: str,
    top: str,
    liberty: Path | None,
    cache: Path | None,
    time_limit_s: float,
) -> tuple[SynthResult, ...]:
    """The stored results of `make`, or new ones."""
    from hwsim.files import cache_root
    from hwsim.guard import check_time_limit
    from hwsim.synth import store, yosys
    from hwsim.synth.liberty import read_library
    from hwsim.synth.library import builtin
    from hwsim.verilog import check_module_name, check_self_contained

    check_module_name(top)
    check_self_contained(verilog)
    check_time_limit(time_limit_s)
    library = read_library(liberty) if liberty else builtin()
    folder = cache or cache_root() / "synth"
    key = store.key_of(what, verilog, top, library.text, yosys.version())
    return store.get_or_make(folder, key, lambda: make(verilog, top, library, time_limit_s))
