"""Run as a program, in a child process: maps each module of design.v in many ways and keeps the promising ones.

Argument: JSON with `top`, `fronts` (name -> arguments of Yosys's `synth`, and cells of which a module must hold one for
it to differ from the first), `products` (the cells that multiply), `maps` (name -> ABC commands from the AIG to gates)
and `targets` (multiples of a mapping's own shortest delay, for which its gates are resized). Leaves
`candidate<n>.json` for each kept netlist, and `candidates.json`: number, module, flow, area and delay as ABC counts
them, of the module's logic alone.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pyosys import libyosys as ys

BEGIN = ("read_verilog -defer design.v", "hierarchy -check -top {top}", "proc", "opt_clean", "design -save begin")
FRONT = (
    "design -load begin",
    "blackbox A:hwsim={number} %n",
    # the top may be one of the black boxes
    "setattr -mod -unset top",
    "synth {arguments} -noabc -run coarse:check",
    "setattr -unset init",
    "dfflibmap -liberty cells.lib",
    "design -save front",
)
MAPPED = re.compile(r"Area = *([0-9.]+).*?Delay = *([0-9.]+) *ps")


class Candidate(NamedTuple):
    """One mapping of one module; um2 and ps, registers left out."""

    number: int
    module: str
    flow: tuple[str, ...]
    area: float
    delay: float
    multiplies: bool


Module = tuple[str, set[str]]
"""name and types of the cells"""


class Mapper:
    """A Yosys design, and the candidates made from it so far."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.design = ys.Design()
        self.made = 0
        self.run(BEGIN, top=task["top"])

    def run(self, commands: tuple[str, ...], **words: object) -> None:
        for command in commands:
            ys.run_pass(command.format(**words), self.design)

    def modules(self) -> list[Module]:
        """All modules; numbers them, so that no name of a user stands in a command."""
        found = []
        for number, (name, module) in enumerate(self.design.modules_.items()):
            module.set_string_attribute(ys.IdString("\\hwsim"), str(number))
            found.append((str(name).removeprefix("\\"), {str(cell.type) for cell in module.cells_.values()}))
        self.run(("design -save begin",))
        return found

    def explore(self, number: int, module: Module) -> list[Candidate]:
        """The candidates of a module that no other one beats in both area and delay."""
        _, types = module
        kept: list[Candidate] = []
        seen: list[Counter[str]] = []
        for front, (arguments, needs) in self.task["fronts"].items():
            if needs and types.isdisjoint(needs):
                continue
            self.run(FRONT, number=number, arguments=arguments)
            gates = Counter(str(cell.type) for cell in self._module(number).cells_.values())
            if gates in seen:  # no adder of it has a carry that could be looked ahead
                continue
            seen.append(gates)
            for name, commands in self.task["maps"].items():
                kept = unbeaten([*kept, *self._resized(module, (front, name), commands, kept)])
        return kept

    def _module(self, number: int) -> Any:
        """The module of that number."""
        mark = ys.IdString("\\hwsim")  # made anew: Yosys forgets the names that nothing in a design uses
        return next(m for m in self.design.modules_.values() if m.get_string_attribute(mark) == str(number))

    def _resized(
        self, module: Module, flow: tuple[str, ...], commands: str, others: list[Candidate]
    ) -> Iterator[Candidate]:
        """The mapping for speed and, where that or its smallest sizes are worth it, its sizes in between."""
        first = self._mapped(module, flow, commands, None)
        yield first
        if first.delay == 0:
            return
        *between, last = self.task["targets"]
        smallest = self._mapped(module, (*flow, f"{last:g}"), commands, first.delay * last)
        yield smallest
        if {first, smallest}.intersection(unbeaten([*others, first, smallest])):
            for target in between:
                yield self._mapped(module, (*flow, f"{target:g}"), commands, first.delay * target)

    def _mapped(self, module: Module, flow: tuple[str, ...], commands: str, target_ps: float | None) -> Candidate:
        size = "" if target_ps is None else f" -D {round(target_ps)}"
        script = f"strash\n{commands}\nbuffer -c\ntopo\nupsize{size}\ndnsize{size}\nstime -p\n"
        Path("map.abc").write_text(script)
        number, self.made = self.made, self.made + 1
        self.run(
            (
                "design -load front",
                "tee -q -o abc.txt abc -liberty cells.lib -script map.abc",
                "opt_clean -purge",
                f"write_json candidate{number}.json",
            )
        )
        found = MAPPED.search(Path("abc.txt").read_text())
        area, delay = map(float, found.groups()) if found else (0.0, 0.0)
        name, types = module
        return Candidate(number, name, flow, area, delay, not types.isdisjoint(self.task["products"]))


def unbeaten(candidates: list[Candidate]) -> list[Candidate]:
    """Fast to slow: those that are smaller than every faster one."""
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.delay, c.area, c.number)):
        if not kept or candidate.area < kept[-1].area:
            kept.append(candidate)
    return kept


def main() -> None:
    mapper = Mapper(json.loads(sys.argv[1]))
    kept = [c for number, module in enumerate(mapper.modules()) for c in mapper.explore(number, module)]
    numbers = {candidate.number for candidate in kept}
    for number in set(range(mapper.made)) - numbers:
        Path(f"candidate{number}.json").unlink()
    Path("candidates.json").write_text(json.dumps([candidate._asdict() for candidate in kept]))


main()
