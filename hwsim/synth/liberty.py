"""Liberty in: a small parser and the part of a cell library that timing and area need.

Read are: cell areas, pin capacitances, functions, and the non-linear delay model (NLDM: tables over input transition
and output load) of combinational arcs, clock-to-output arcs and setup checks. Units are normalised to ns, pF and um2.
Not read: power, wire loads, hold, recovery and removal, asynchronous set and reset arcs, buses inside cells.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path

from models.unit import InputError, require

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 50
MAX_FUNCTION = 100
"""parts of a function of one or two inputs: more is an attack on the recursion, not a gate"""
LARGEST = 1e9
"""um2, pF or ns: beyond it a number of a library is a mistake, and sums over a design could leave the floats"""
SMALLEST_CAP = 1e-9
"""pF, of the inputs of inverters and buffers: fan-out is counted in them"""
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
RISE, FALL = 0, 1

Edges = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Values over `slews` (input transition, ns) and `loads` (pF, or the clock's transition in a setup check).

    `where` names file, cell and table in messages.
    """

    where: str
    slews: tuple[float, ...]
    loads: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]

    def at(self, slew: float, load: float) -> float:
        """Bilinear interpolation; outside the table the outermost interval is extended linearly.

        InputError where that leaves the numbers up to LARGEST: the table's slope is absurd.
        """
        row, y = _interval(self.slews, slew)
        col, x = _interval(self.loads, load)
        low = _along(self.values[row], col, x)
        value = low if y == 0.0 else low + y * (_along(self.values[row + 1], col, x) - low)
        if not abs(value) <= LARGEST:
            raise InputError(
                f"{self.where}: gives {value:g} ns at {slew:g} and {load:g}; at most {LARGEST:g} ns is used"
            )
        return value


def _interval(axis: tuple[float, ...], at: float) -> tuple[int, float]:
    if len(axis) == 1:
        return 0, 0.0
    i = min(max(bisect_right(axis, at) - 1, 0), len(axis) - 2)
    return i, (at - axis[i]) / (axis[i + 1] - axis[i])


def _along(row: tuple[float, ...], col: int, x: float) -> float:
    return row[col] if x == 0.0 else row[col] + x * (row[col + 1] - row[col])


@dataclass(frozen=True, kw_only=True)
class Arc:
    """From input `pin` to output `out`: the edge pairs that can happen, and delay and transition by output edge."""

    pin: str
    out: str
    edges: tuple[Edges, ...]
    delay: dict[int, Table]
    slew: dict[int, Table]

    def worst(self, slew: float, load: float) -> float:
        return max(self.delay[edge].at(slew, load) for _, edge in self.edges)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One library cell. `kind`: `comb`, `ff` (rising edge), `other` (latch, falling edge, three-state, no function)."""

    name: str
    area: float
    kind: str
    caps: dict[str, float]
    """input pin -> pF"""
    functions: dict[str, str]
    """output pin -> Liberty expression"""
    clock: str | None
    arcs: tuple[Arc, ...]
    launches: tuple[Arc, ...]
    """from the clock pin"""
    setups: dict[str, dict[int, Table]]
    """data pin -> edge -> setup time"""

    def worst(self, slew: float, load: float) -> float:
        """The largest delay of any arc at that input transition and load."""
        return max((arc.worst(slew, load) for arc in self.arcs + self.launches), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Library:
    """A checked library: it holds at least an inverter, a buffer, a NAND2 and a D flip-flop."""

    name: str
    text: str
    cells: dict[str, Cell]
    inverter: Cell
    """the smallest one"""
    nand2: Cell
    """the smallest one: one gate equivalent"""
    buffers: tuple[Cell, ...]
    """by input capacitance"""


@dataclass(frozen=True)
class Group:
    """`kind (args) { attributes; groups }` of the Liberty syntax."""

    kind: str
    args: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)

    def text(self, name: str, default: str = "") -> str:
        values = self.attributes.get(name)
        return values[0] if values else default

    def of(self, *kinds: str) -> list[Group]:
        return [g for g in self.groups if g.kind in kinds]


COMMENT = re.compile(r'/\*.*?\*/|//[^\n]*|("(?:[^"\\]|\\.)*")', re.DOTALL)
STATEMENT = re.compile(
    r"""\s*(?:
        (?P<close>\}) | (?P<empty>;)
        | (?P<head>[\w.\[\]-]+)\s*\((?P<args>(?:"[^"]*"|[^()"{};])*)\)\s*(?P<open>\{)?
        | (?P<name>[\w.\[\]-]+)\s*:\s*(?P<value>"[^"]*"|[^;"{}\n]+)
    )""",
    re.VERBOSE,
)
ARGUMENT = re.compile(r'"([^"]*)"|([^\s,"]+)')


def parse(text: str, where: str) -> Group:
    """The library group of a Liberty text. InputError naming `where` and the line where the syntax is broken."""
    clean = (
        COMMENT.sub(lambda m: m.group(1) or " " + "\n" * m.group(0).count("\n"), text).replace("\\\n", "  ").rstrip()
    )
    stack = [Group("", ())]
    at = 0
    while at < len(clean):
        match = STATEMENT.match(clean, at)
        if match is None:
            raise InputError(f"{where}: not Liberty near {clean[at : at + 40].strip()!r}")
        _take(stack, match, where)
        at = match.end()
    require(len(stack) == 1, f"{where}: the text ends inside group {stack[-1].kind!r}; is the file cut off?")
    libraries = stack[0].of("library")
    require(len(libraries) == 1, f"{where}: one 'library (name) {{...}}' is needed, found {len(libraries)}")
    return libraries[0]


def _take(stack: list[Group], match: re.Match[str], where: str) -> None:
    """Let one statement change the stack of open groups."""
    if match["close"]:
        require(len(stack) > 1, f"{where}: a closing brace without an opening one")
        closed = stack.pop()
        stack[-1].groups.append(closed)
    elif match["head"]:
        args = tuple(quoted or plain for quoted, plain in ARGUMENT.findall(match["args"]))
        if match["open"]:
            stack.append(Group(match["head"], args))
            require(len(stack) <= MAX_DEPTH, f"{where}: groups nest deeper than {MAX_DEPTH}")
        else:
            stack[-1].attributes[match["head"]] = args
    elif match["name"]:
        stack[-1].attributes[match["name"]] = (match["value"].strip().strip('"').strip(),)


TIME_NS = {"1ns": 1.0, "100ps": 0.1, "10ps": 0.01, "1ps": 0.001}
CAP_PF = {"pf": 1.0, "ff": 0.001}
FIRST_AXES = ("input_net_transition", "input_transition_time", "constrained_pin_transition")
SECOND_AXES = ("total_output_net_capacitance", "related_pin_transition")
SENSES = {
    "positive_unate": ((RISE, RISE), (FALL, FALL)),
    "negative_unate": ((RISE, FALL), (FALL, RISE)),
    "non_unate": ((RISE, RISE), (RISE, FALL), (FALL, RISE), (FALL, FALL)),
}


@dataclass(frozen=True, kw_only=True)
class Units:
    """What one number of the file is worth, and its table templates."""

    where: str
    time: float
    cap: float
    templates: dict[str, Group]


def read_library(path: Path) -> Library:
    """The library in a file of at most 64 MB, UTF-8 or else Latin-1. InputError naming the file and what is wrong."""
    try:
        content = _read_bytes(path)
    except OSError as error:
        raise InputError(f"Liberty file {path}: {error.strerror}") from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    require(CONTROL.search(text) is None, f"Liberty file {path}: not a text file (is it compressed?)")
    return library_of(text.replace("\r\n", "\n"), str(path))


def _read_bytes(path: Path) -> bytes:
    require(path.exists(), f"Liberty file {path}: no such file")
    require(not path.is_dir(), f"Liberty file {path}: that is a folder; name a .lib file in it")
    require(path.is_file(), f"Liberty file {path}: not a regular file")
    size = path.stat().st_size
    require(size <= MAX_BYTES, f"Liberty file {path}: {size} bytes, at most {MAX_BYTES} are read")
    return path.read_bytes()


def library_of(text: str, where: str) -> Library:
    """The library that `text` describes; `where` names it in messages."""
    where = f"Liberty file {where}"
    root = parse(text, where)
    units = _units(root, where)
    cells = {g.args[0]: _cell(g, units) for g in root.of("cell") if g.args}
    usable = sorted((c for c in cells.values() if c.kind != "other"), key=lambda c: (c.area, c.name))
    inverter = _smallest(usable, 1, (1, 0), "an inverter", where)
    nand2 = _smallest(usable, 2, (1, 1, 1, 0), "a NAND2", where)
    buffers = [c for c in usable if _truth(c, 1) == (0, 1)]
    require(bool(buffers), f"{where}: a buffer is missing (a cell whose function is its one input)")
    require(any(c.kind == "ff" for c in usable), f"{where}: a D flip-flop is missing (a cell with an ff group)")
    for cell in (inverter, *buffers):
        _check_driver(cell, where)
    require(nand2.area > 0, f"{where}: cell {nand2.name}: area 0, and it is the unit of the gate equivalents")
    buffers.sort(key=lambda c: (sum(c.caps.values()), c.name))
    name = root.args[0] if root.args else "unnamed"
    return Library(name=name, text=text, cells=cells, inverter=inverter, nand2=nand2, buffers=tuple(buffers))


def _smallest(cells: list[Cell], inputs: int, truth: tuple[int, ...], what: str, where: str) -> Cell:
    for cell in cells:
        if _truth(cell, inputs) == truth:
            return cell
    raise InputError(f"{where}: {what} is missing (no cell with an area, its tables and that function)")


def _check_driver(cell: Cell, where: str) -> None:
    """Inverters and buffers are what fan-out, port conditions and buffer trees are made of."""
    where = f"{where}: cell {cell.name}"
    cap = sum(cell.caps.values())
    require(cap >= SMALLEST_CAP, f"{where}: input capacitance {cap:g} pF; at least {SMALLEST_CAP:g} pF is needed")
    for arc in cell.arcs:
        whole = len(arc.delay) == 2 and len(arc.slew) == 2
        require(whole, f"{where}: a delay and a transition table of both edges are needed")


def _units(root: Group, where: str) -> Units:
    time = root.text("time_unit", "1ns").replace(" ", "").lower()
    require(time in TIME_NS, f"{where}: time_unit {time!r} is unknown; one of {', '.join(TIME_NS)}")
    stated = root.attributes.get("capacitive_load_unit", ("1", "pf"))
    require(len(stated) == 2, f"{where}: capacitive_load_unit {stated} is not (number, unit)")
    scale, unit = stated
    require(unit.lower() in CAP_PF, f"{where}: capacitive_load_unit {unit!r} is unknown; pf or ff")
    templates = {g.args[0]: g for g in root.groups if g.kind.endswith("lu_table_template") and g.args}
    cap = _within(_number(scale, "capacitive_load_unit", where) * CAP_PF[unit.lower()], "capacitive_load_unit", where)
    return Units(where=where, time=TIME_NS[time], cap=cap, templates=templates)


def _number(text: str, what: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    require(math.isfinite(value), f"{where}: {what}: {text!r} is not a finite number")
    return value


def _within(value: float, what: str, where: str) -> float:
    """`value`, an area or a capacitance; InputError where it cannot be one."""
    require(0 <= value <= LARGEST, f"{where}: {what} {value:g} must lie from 0 to {LARGEST:g}")
    return value


def _cell(group: Group, units: Units) -> Cell:
    """One cell. A cell without an area or without the tables that its functions need counts as `other`."""
    where = f"{units.where}: cell {group.args[0]}"
    units = replace(units, where=where)
    pins = [g for g in group.of("pin") if g.args]
    caps = {
        g.args[0]: _within(_number(g.text("capacitance", "0"), "capacitance", where) * units.cap, "capacitance", where)
        for g in pins
        if g.text("direction") == "input"
    }
    outs = [g for g in pins if g.text("direction") == "output"]
    functions = {g.args[0]: g.text("function") for g in outs if "function" in g.attributes}
    timings = [(g.args[0], t, t.text("timing_type", "combinational")) for g in outs for t in g.of("timing")]
    arcs = [a for out, t, k in timings if k.startswith("combinational") for a in _arcs(out, t, units) if a.edges]
    launches = [_from_clock(a) for out, t, k in timings if k == "rising_edge" for a in _arcs(out, t, units) if a.delay]
    clock = next((g.args[0] for g in pins if g.text("clock") == "true"), launches[0].pin if launches else None)
    timed = bool(launches) if group.of("ff") else bool(arcs)
    plain = "area" in group.attributes and bool(functions) and timed and not group.of("latch", "statetable")
    three_state = any("three_state" in g.attributes for g in outs)
    kind = "other" if not plain or three_state else "ff" if group.of("ff") else "comb"
    return Cell(
        name=group.args[0],
        area=_within(_number(group.text("area", "0"), "area", where), "area", where),
        kind=kind,
        caps=caps,
        functions=functions,
        clock=clock if kind == "ff" else None,
        arcs=tuple(arcs),
        launches=tuple(launches),
        setups={g.args[0]: s for g in pins if (s := _setups(g, units))},
    )


def _arcs(out: str, timing: Group, units: Units) -> list[Arc]:
    """One arc for each of the related pins."""
    delay = _tables(timing, ("cell_rise", "cell_fall"), units)
    senses = SENSES.get(timing.text("timing_sense", "non_unate"), SENSES["non_unate"])
    slew = _tables(timing, ("rise_transition", "fall_transition"), units)
    edges = tuple((cause, edge) for cause, edge in senses if edge in delay)
    pins = timing.text("related_pin").split()
    return [Arc(pin=pin, out=out, edges=edges, delay=delay, slew=slew) for pin in pins]


def _from_clock(arc: Arc) -> Arc:
    """A launch: the clock rises, the output takes either edge."""
    return Arc(pin=arc.pin, out=arc.out, edges=tuple((RISE, e) for e in arc.delay), delay=arc.delay, slew=arc.slew)


def _setups(pin: Group, units: Units) -> dict[int, Table]:
    for timing in pin.of("timing"):
        if timing.text("timing_type") in ("setup_rising", "setup_falling"):
            return _tables(timing, ("rise_constraint", "fall_constraint"), units)
    return {}


def _tables(timing: Group, names: tuple[str, str], units: Units) -> dict[int, Table]:
    found = {edge: timing.of(name) for edge, name in enumerate(names)}
    return {edge: _table(groups[0], units) for edge, groups in found.items() if groups}


def _table(group: Group, units: Units) -> Table:
    """A table of one or two axes, in either order, or a scalar."""
    where = f"{units.where}: table {group.kind}"
    template = units.templates.get(group.args[0] if group.args else "", Group("", ()))
    axes: dict[int, tuple[float, ...]] = {}
    order = []
    for i in ("1", "2", "3"):
        variable = template.text(f"variable_{i}")
        if not variable:
            continue
        place = 0 if variable in FIRST_AXES else 1 if variable in SECOND_AXES else None
        if place is None:
            raise InputError(f"{where}: axis {variable!r} is not understood")
        index = group.attributes.get(f"index_{i}") or template.attributes.get(f"index_{i}", ())
        scale = units.cap if variable == "total_output_net_capacitance" else units.time
        axes[place] = tuple(v * scale for v in _numbers(index, where))
        order.append(place)
    slews, loads = axes.get(0, (0.0,)), axes.get(1, (0.0,))
    flat = [v * units.time for v in _numbers(group.attributes.get("values", ()), where)]
    large = next((v for v in flat if abs(v) > LARGEST), 0.0)
    require(not large, f"{where}: value {large:g} ns; at most {LARGEST:g} ns is used")
    require(len(flat) == len(slews) * len(loads) > 0, f"{where}: {len(flat)} values for {len(slews)} x {len(loads)}")
    for axis in (slews, loads):
        rises = all(a < b and b - a <= LARGEST for a, b in pairwise(axis))
        require(rises, f"{where}: an index does not rise, or by more than {LARGEST:g}")
    return Table(where=where, slews=slews, loads=loads, values=_rows(flat, len(slews), len(loads), order[:1] == [1]))


def _rows(flat: list[float], rows: int, cols: int, turned: bool) -> tuple[tuple[float, ...], ...]:
    if turned:
        return tuple(tuple(flat[c * rows + r] for c in range(cols)) for r in range(rows))
    return tuple(tuple(flat[r * cols : (r + 1) * cols]) for r in range(rows))


def _numbers(texts: tuple[str, ...], where: str) -> list[float]:
    return [_number(word, "values", where) for text in texts for word in text.replace(",", " ").split()]


def _truth(cell: Cell, inputs: int) -> tuple[int, ...] | None:
    """The truth table of a combinational cell with that many inputs and one output, None for any other cell."""
    if cell.kind != "comb" or len(cell.caps) != inputs or len(cell.functions) != 1:
        return None
    if any(pin not in cell.caps for arc in cell.arcs for pin in [arc.pin]):
        return None
    expression = next(iter(cell.functions.values()))
    pins = sorted(cell.caps)
    rows = product((0, 1), repeat=inputs)
    return tuple(evaluate(expression, dict(zip(pins, row, strict=True)), cell.name) for row in rows)


FUNCTION = re.compile(r"\s*([A-Za-z_]\w*|[01()!'&*|+^])")


def evaluate(expression: str, values: dict[str, int], where: str) -> int:
    """The value of a Liberty function: `!` and postfix `'`, then `^`, then `& *` or nothing, then `| +`."""
    tokens = FUNCTION.findall(expression)
    require(len(tokens) <= MAX_FUNCTION, f"cell {where}: function has more than {MAX_FUNCTION} parts")
    require(
        "".join(tokens) == re.sub(r"\s", "", expression), f"cell {where}: function {expression!r} is not understood"
    )
    left = list(reversed(tokens))
    result = _or(left, values, where)
    require(not left, f"cell {where}: function {expression!r} is not understood")
    return result


def _or(left: list[str], values: dict[str, int], where: str) -> int:
    result = _and(left, values, where)
    while left and left[-1] in "|+":
        left.pop()
        result |= _and(left, values, where)
    return result


def _and(left: list[str], values: dict[str, int], where: str) -> int:
    result = _xor(left, values, where)
    while left and left[-1] not in "|+)":
        if left[-1] in "&*":
            left.pop()
        result &= _xor(left, values, where)
    return result


def _xor(left: list[str], values: dict[str, int], where: str) -> int:
    result = _not(left, values, where)
    while left and left[-1] == "^":
        left.pop()
        result ^= _not(left, values, where)
    return result


def _not(left: list[str], values: dict[str, int], where: str) -> int:
    require(bool(left), f"cell {where}: a function ends too early")
    word = left.pop()
    if word == "!":
        return 1 - _not(left, values, where)
    if word == "(":
        result = _or(left, values, where)
        require(bool(left) and left.pop() == ")", f"cell {where}: a function lacks a closing parenthesis")
    elif word in "01":
        result = int(word)
    else:
        require(word in values, f"cell {where}: its function names {word!r}, which is no input")
        result = values[word]
    while left and left[-1] == "'":
        left.pop()
        result = 1 - result
    return result
