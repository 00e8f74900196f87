"""The built-in 45 nm cell library: published cell areas, delays by logical effort, written as Liberty text.

It is an approximation and every report must say so. Delays are logical effort: delay = tau (p + g h), which knows no
wires, no layout, no input-slope effect and no process corner. Use a real Liberty file for anything beyond a comparison
of designs with each other.

**Areas** are those of NanGate45 in the LEF files as published with OpenROAD-flow-scripts (`PUBLISHED_UM2`). Cells that
are not named there follow by one rule, which also gives the named INV, NAND2, XOR2 and MUX2 exactly: a cell is one
column of COLUMN_UM2 (NAND2 minus INV) for each pair of transistors at unit drive, and one more. Drive Xk widens the
last stage k-fold and the stages before it max(1, k/2)-fold, so their pairs count that often. The flip-flop with preset
takes the area of the one with reset.

**Delays.** A single-stage gate has its logical effort g for each input and its parasitic delay p (`STAGES`). Cells of
more stages (BUF, AND2, OR2, XOR2, XNOR2, MUX2) are the sum of their stages, the inner ones at their internal load.
The flip-flop is counted likewise: clock inverter (1 + 3), transmission-gate inverter (2 + 2), output inverter (1 +
load) from clock to output; transmission-gate inverter (2 + 1) and feedback inverter (1 + 4) for setup, with no credit
for the internal clock delay. That is 4.2 FO4 of register overhead; the 130 nm SG13G2 library's smallest flip-flop has
4.9.

Capacitance counts in input capacitances of INV_X1, written as 1 fF each: with no wires, only ratios reach a delay.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from hwsim.synth.liberty import Library, library_of

NAME = "hwsim45"

PUBLISHED_UM2 = {"INV": 0.532, "NAND2": 0.798, "XOR2": 1.596, "MUX2": 1.862, "DFF": 4.522, "DFFR": 5.320}
"""NanGate45 cell areas, LEF files as published with OpenROAD-flow-scripts (DFFR: flip-flop with reset)."""

FULL_ADDER_UM2 = 4.256
"""the same source; the mapper cannot use this cell, so the library leaves it out, but energies scale by it"""

COLUMN_UM2 = 0.266
"""NAND2 minus INV of PUBLISHED_UM2: one more pair of transistors"""

FO4_NS = 0.500 * 0.045
"""Fan-out-of-4 inverter delay: 500 ps per um of gate length, slow corner. Ho, Mai, Horowitz, "The future of wires",
Proc. IEEE 89(4), 2001."""

TAU_NS = FO4_NS / 5
"""An inverter with fan-out 4 takes tau (p + g h) = tau (1 + 4): Sutherland, Sproull, Harris, "Logical Effort", 1999."""

SETUP_TAU = 8.0
CLOCK_TO_Q_TAU = 9.0
"""without the output's load; both derived above"""


@dataclass(frozen=True)
class Stage:
    """A single-stage CMOS gate of unit drive: transistor pairs, logical effort of each input, parasitic delay."""

    pairs: int
    effort: tuple[float, ...]
    parasitic: float


STAGES = {
    # Sutherland, Sproull, Harris 1999, tables 1.1 and 1.2 (inverter, NAND: g = (n + 2)/3, NOR: g = (2n + 1)/3, p = n)
    "INV": Stage(1, (1.0,), 1.0),
    "NAND2": Stage(2, (4 / 3,) * 2, 2.0),
    "NAND3": Stage(3, (5 / 3,) * 3, 3.0),
    "NAND4": Stage(4, (6 / 3,) * 4, 4.0),
    "NOR2": Stage(2, (5 / 3,) * 2, 2.0),
    "NOR3": Stage(3, (7 / 3,) * 3, 3.0),
    # derived by the same book's method (chapter 4; p-transistors of twice the width, diffusion counted at the output)
    "AOI21": Stage(3, (2.0, 2.0, 5 / 3), 7 / 3),
    "OAI21": Stage(3, (2.0, 2.0, 4 / 3), 8 / 3),
    "AOI22": Stage(4, (2.0,) * 4, 4.0),
    "OAI22": Stage(4, (2.0,) * 4, 4.0),
}


@dataclass(frozen=True)
class Input:
    """An input pin: its effort on the first and on the last stage, the delay before the last stage, its sense."""

    name: str
    first: float
    last: float
    before: float
    sense: str


@dataclass(frozen=True)
class Gate:
    """A combinational cell: `first` and `last` are transistor pairs of the inner stages and of the driving stage."""

    function: str
    first: int
    last: int
    link: float
    """effort of the last stage's input that the stage before it drives; 0 where there is none"""
    parasitic: float
    inputs: tuple[Input, ...]


def _single(stage: str, function: str) -> Gate:
    gate = STAGES[stage]
    inputs = tuple(Input(f"A{i}", 0.0, effort, 0.0, "negative_unate") for i, effort in enumerate(gate.effort, start=1))
    return Gate(function, 0, gate.pairs, 0.0, gate.parasitic, inputs)


def _double(first: str, last: str, function: str, also: float = 0.0) -> Gate:
    """`first` drives the last input of `last`; `also` is what each cell input puts directly on `last`."""
    inner, outer = STAGES[first], STAGES[last]
    sense = "non_unate" if also else "positive_unate"
    inputs = tuple(
        Input(f"A{i}", effort, also, inner.parasitic, sense) for i, effort in enumerate(inner.effort, start=1)
    )
    return Gate(function, inner.pairs, outer.pairs, outer.effort[-1], outer.parasitic, inputs)


def _mux() -> Gate:
    """AOI22 and inverter, with an inverter on the select input."""
    aoi, inv = STAGES["AOI22"], STAGES["INV"]
    data = tuple(Input(name, aoi.effort[0], 0.0, aoi.parasitic, "positive_unate") for name in ("A1", "A2"))
    select_delay = inv.parasitic + aoi.effort[0] + aoi.parasitic
    select = Input("A3", inv.effort[0] + aoi.effort[0], 0.0, select_delay, "non_unate")
    return Gate(
        "(A1 & !A3) | (A2 & A3)", inv.pairs + aoi.pairs, inv.pairs, inv.effort[0], inv.parasitic, (*data, select)
    )


GATES = {
    "INV": (_single("INV", "!A1"), (1, 2, 4, 8, 16)),
    "BUF": (_double("INV", "INV", "A1"), (1, 2, 4, 8, 16)),
    "NAND2": (_single("NAND2", "!(A1 & A2)"), (1, 2, 4)),
    "NAND3": (_single("NAND3", "!(A1 & A2 & A3)"), (1, 2, 4)),
    "NAND4": (_single("NAND4", "!(A1 & A2 & A3 & A4)"), (1, 2, 4)),
    "NOR2": (_single("NOR2", "!(A1 | A2)"), (1, 2, 4)),
    "NOR3": (_single("NOR3", "!(A1 | A2 | A3)"), (1, 2, 4)),
    "AND2": (_double("NAND2", "INV", "A1 & A2"), (1, 2, 4)),
    "OR2": (_double("NOR2", "INV", "A1 | A2"), (1, 2, 4)),
    "AOI21": (_single("AOI21", "!((A1 & A2) | A3)"), (1, 2, 4)),
    "OAI21": (_single("OAI21", "!((A1 | A2) & A3)"), (1, 2, 4)),
    "AOI22": (_single("AOI22", "!((A1 & A2) | (A3 & A4))"), (1, 2, 4)),
    "OAI22": (_single("OAI22", "!((A1 | A2) & (A3 | A4))"), (1, 2, 4)),
    "XOR2": (_double("NOR2", "AOI21", "A1 ^ A2", also=2.0), (1, 2, 4)),
    "XNOR2": (_double("NAND2", "OAI21", "!(A1 ^ A2)", also=2.0), (1, 2, 4)),
    "MUX2": (_mux(), (1, 2, 4)),
}


def area_um2(gate: Gate, drive: int) -> float:
    """Cell area by the column rule of the module's docstring."""
    return COLUMN_UM2 * (1 + gate.first * max(1, drive // 2) + gate.last * drive)


@cache
def builtin() -> Library:
    """The built-in library, read back from its own Liberty text as any other would be."""
    return library_of(liberty_text(), "(built-in)")


def liberty_text() -> str:
    """The built-in library as Liberty: two-by-two linear tables, deterministic."""
    cells = [_gate_text(name, gate, drive) for name, (gate, drives) in GATES.items() for drive in drives]
    cells += [_flop_text("DFF", ""), _flop_text("DFFR", "clear"), _flop_text("DFFS", "preset")]
    return HEADER + "".join(cells) + "}\n"


HEADER = f"""/* hwsim: areas of published 45 nm cells, delays by logical effort; no wires, no layout */
library ({NAME}) {{
  delay_model : table_lookup;
  time_unit : "1ns";
  capacitive_load_unit (1,ff);
  input_threshold_pct_rise : 50;
  input_threshold_pct_fall : 50;
  output_threshold_pct_rise : 50;
  output_threshold_pct_fall : 50;
  slew_lower_threshold_pct_rise : 20;
  slew_lower_threshold_pct_fall : 20;
  slew_upper_threshold_pct_rise : 80;
  slew_upper_threshold_pct_fall : 80;
  lu_table_template (linear) {{
    variable_1 : input_net_transition;
    variable_2 : total_output_net_capacitance;
    index_1 ("0, 1");
    index_2 ("0, 100");
  }}
  lu_table_template (fixed) {{
    variable_1 : related_pin_transition;
    variable_2 : constrained_pin_transition;
    index_1 ("0, 1");
    index_2 ("0, 1");
  }}
"""


def _gate_text(name: str, gate: Gate, drive: int) -> str:
    inner = max(1, drive // 2)
    pins = "".join(_input_text(i.name, i.first * inner + i.last * drive) for i in gate.inputs)
    arcs = "".join(_arc_text(i, i.before + gate.link * drive / inner + gate.parasitic, drive) for i in gate.inputs)
    output = f'    pin (Z) {{ direction : output; function : "{gate.function}";\n{arcs}    }}\n'
    return f"  cell ({name}_X{drive}) {{\n    area : {area_um2(gate, drive):.3f};\n{pins}{output}  }}\n"


def _input_text(name: str, cap: float) -> str:
    return f"    pin ({name}) {{ direction : input; capacitance : {cap:.6f}; }}\n"


def _arc_text(pin: Input, fixed_tau: float, drive: int) -> str:
    return (
        f'      timing () {{ related_pin : "{pin.name}"; timing_sense : {pin.sense};\n'
        f"{_delay_text(fixed_tau, drive)}      }}\n"
    )


def _delay_text(fixed_tau: float, drive: int) -> str:
    """Delay and transition tables of both edges. The transition is the delay again: no delay depends on it."""
    at = [TAU_NS * (fixed_tau + load / drive) for load in (0, 100)]
    row = ", ".join(f"{value:.7f}" for value in at)
    names = ("cell_rise", "cell_fall", "rise_transition", "fall_transition")
    return "".join(f'        {name} (linear) {{ values ("{row}", "{row}"); }}\n' for name in names)


def _flop_text(name: str, asynchronous: str) -> str:
    """The flip-flop, with an active-low asynchronous clear or preset where asked for."""
    setup = TAU_NS * SETUP_TAU
    row = f"{setup:.7f}, {setup:.7f}"
    tables = "".join(f'        {n} (fixed) {{ values ("{row}", "{row}"); }}\n' for n in CONSTRAINTS)
    extra = f' {asynchronous} : "!RN";' if asynchronous else ""
    area = PUBLISHED_UM2["DFFR" if asynchronous else "DFF"]
    return (
        f"  cell ({name}_X1) {{\n    area : {area:.3f};\n"
        f'    ff (IQ, IQN) {{ clocked_on : "CK"; next_state : "D";{extra} }}\n'
        "    pin (CK) { direction : input; clock : true; capacitance : 1.000000; }\n"
        + (_input_text("RN", STAGES["NAND2"].effort[0] * 2) if asynchronous else "")
        + "    pin (D) { direction : input; capacitance : 2.000000;\n"
        f'      timing () {{ related_pin : "CK"; timing_type : setup_rising;\n{tables}      }}\n    }}\n'
        '    pin (Q) { direction : output; function : "IQ";\n'
        '      timing () { related_pin : "CK"; timing_type : rising_edge; timing_sense : non_unate;\n'
        f"{_delay_text(CLOCK_TO_Q_TAU, 1)}      }}\n    }}\n  }}\n"
    )


CONSTRAINTS = ("rise_constraint", "fall_constraint")
