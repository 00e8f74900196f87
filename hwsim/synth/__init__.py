"""Area and delay of RTL: Yosys synthesis per distinct module, our own timing across them, cached by content.

`synthesize(verilog, top)` is the door. The built-in library (library.py) is an approximation: published 45 nm areas,
delays by logical effort, no wires and no layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
    """of the flow with the smaller area times delay: `booth` or `array`; `none` where nothing multiplies"""
    library: str
    tools: dict[str, str]
    """tool -> version"""

    @property
    def clock_mhz(self) -> float:
        return 1000.0 / self.delay_ns


def synthesize(
    verilog: str, top: str, *, liberty: Path | None = None, cache: Path | None = None, time_limit_s: float = 600
) -> SynthResult:
    """Synthesise the Verilog text below module `top` on the library in `liberty` (None: the built-in 45 nm one).

    Every distinct module is synthesised once and not flattened; nothing is optimised across module boundaries. The
    modules that multiply go through two flows, array and radix-4 Booth multipliers; the flow with the smaller area
    times delay of the whole counts. Results are kept by content in `cache` (None: the folder `synth` of
    `hwsim.files.cache_root()`). InputError for a bad name, Verilog that Yosys refuses, a library without the needed
    cells, a latch, a loop, a derived clock, a damaged cache entry or a reached limit.
    """
    from hwsim.files import cache_root
    from hwsim.guard import check_time_limit
    from hwsim.synth import flow, store, yosys
    from hwsim.synth.liberty import read_library
    from hwsim.synth.library import builtin
    from hwsim.verilog import check_module_name, check_self_contained

    check_module_name(top)
    check_self_contained(verilog)
    check_time_limit(time_limit_s)
    library = read_library(liberty) if liberty else builtin()
    folder = cache or cache_root() / "synth"
    key = store.key_of(verilog, top, library.text, yosys.version())
    return store.get_or_make(folder, key, lambda: flow.best(verilog, top, library, time_limit_s))
