"""The mapped netlist as timing and area see it: distinct modules of library cells and module instances."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from hwsim.synth.liberty import Library
from models.unit import InputError, require


@dataclass(kw_only=True)
class Instance:
    """A library cell or a module inside a module. `pins` are single bits; constants and open pins are left out."""

    name: str
    type: str
    pins: dict[str, int]


@dataclass(kw_only=True)
class Block:
    """A distinct module. A port of width 1 is the pin `port`, a wider one the pins `port[0]`, `port[1]`, ...

    Wires that lead straight through a module are `aliases` (output pin -> input pin); its parents join the two nets.
    """

    name: str
    inputs: dict[str, int]
    outputs: dict[str, int]
    aliases: dict[str, str]
    instances: list[Instance]
    net_names: dict[int, str]


def blocks_of(netlist: dict[str, Any], top: str, library: Library) -> dict[str, Block]:
    """The modules below `top`, children before parents. InputError where a cell is not of the library or not usable."""
    modules = {name: m for name, m in netlist["modules"].items() if not _is_blackbox(m)}
    blocks: dict[str, Block] = {}
    for name in _children_first(modules, top):
        blocks[name] = _block(name, modules[name], blocks, library)
    return blocks


def instance_counts(blocks: dict[str, Block], top: str) -> dict[str, int]:
    """How often each distinct module stands in the whole design."""
    counts = Counter({top: 1})
    for name in reversed(blocks):
        for instance in blocks[name].instances:
            if instance.type in blocks:
                counts[instance.type] += counts[name]
    return dict(counts)


def _is_blackbox(module: dict[str, Any]) -> bool:
    return "blackbox" in module.get("attributes", {})


def _children_first(modules: dict[str, Any], top: str) -> list[str]:
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        for cell in modules[name]["cells"].values():
            if cell["type"] in modules and cell["type"] not in order:
                visit(cell["type"])
        order[name] = None

    visit(top)
    return list(order)


def _pins(port: str, bits: list[Any]) -> dict[str, int]:
    """Pin name -> net, constants left out."""
    named = [(port, bits[0])] if len(bits) == 1 else [(f"{port}[{i}]", bit) for i, bit in enumerate(bits)]
    return {name: bit for name, bit in named if isinstance(bit, int)}


def _block(name: str, module: dict[str, Any], below: dict[str, Block], library: Library) -> Block:
    ports: dict[str, dict[str, int]] = {"input": {}, "output": {}}
    for port, entry in module["ports"].items():
        require(entry["direction"] in ports, f"module {name}: port {port} is {entry['direction']}, not input or output")
        ports[entry["direction"]] |= _pins(port, entry["bits"])
    instances = [_instance(name, n, c, below, library) for n, c in module["cells"].items() if c["type"] != "$scopeinfo"]
    joined = _joined_nets(instances, below)
    for instance in instances:
        instance.pins = {pin: joined.get(bit, bit) for pin, bit in instance.pins.items()}
    inputs = {pin: joined.get(bit, bit) for pin, bit in ports["input"].items()}
    outputs = {pin: joined.get(bit, bit) for pin, bit in ports["output"].items()}
    by_net = {bit: pin for pin, bit in inputs.items()}
    return Block(
        name=name,
        inputs=inputs,
        outputs={pin: bit for pin, bit in outputs.items() if bit not in by_net},
        aliases={pin: by_net[bit] for pin, bit in outputs.items() if bit in by_net},
        instances=instances,
        net_names=_net_names(module),
    )


def _instance(parent: str, name: str, cell: dict[str, Any], below: dict[str, Block], library: Library) -> Instance:
    kind = cell["type"]
    if kind not in below:
        known = library.cells.get(kind)
        if known is None or known.kind == "other":
            what = "it is a latch" if "LATCH" in kind.upper() else f"library {library.name} has no such usable cell"
            raise InputError(f"module {parent}: {kind} {name} cannot be mapped: {what}")
    pins: dict[str, int] = {}
    for port, bits in cell["connections"].items():
        pins |= _pins(port, bits)
    return Instance(name=name, type=kind, pins=pins)


def _joined_nets(instances: list[Instance], below: dict[str, Block]) -> dict[int, int]:
    """Net -> the net that drives it through the wires of child modules."""
    driver: dict[int, int] = {}
    for instance in instances:
        child = below.get(instance.type)
        if child is None or not child.aliases:
            continue
        for out, into in child.aliases.items():
            if out in instance.pins and into in instance.pins:
                driver[instance.pins[out]] = instance.pins[into]
        instance.pins = {pin: bit for pin, bit in instance.pins.items() if pin not in child.aliases}
    return {net: _follow(net, driver) for net in driver}


def _follow(net: int, driver: dict[int, int]) -> int:
    seen = {net}
    while net in driver:
        net = driver[net]
        require(net not in seen, "a ring of wires through modules has no driver")
        seen.add(net)
    return net


def _net_names(module: dict[str, Any]) -> dict[int, str]:
    """A readable name of each named net; the name that stands first wins."""
    names: dict[int, str] = {}
    for name, entry in module["netnames"].items():
        if entry.get("hide_name"):
            continue
        for i, bit in enumerate(entry["bits"]):
            if isinstance(bit, int):
                names.setdefault(bit, name if len(entry["bits"]) == 1 else f"{name}[{i}]")
    return names
