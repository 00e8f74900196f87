"""From params to a component, and from a component to Verilog in which identical modules stand once.

An array is a row of PEs instantiated, not rows x cols copies of text: emission, simulator build and synthesis time all
follow from that. The repeated element of an array is a class named `...Pe`, and so a module `..._pe_<n>`. Under
Amaranth's own simulator the same source is elaborated in place.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from typing import Any

from amaranth.back import verilog
from amaranth.hdl import ClockSignal, Fragment, Instance, ResetSignal
from amaranth.lib.wiring import Component, Flow


def _home(params: Any) -> Any:
    """`rtl/<unit>.py` for the params of `models/<unit>.py`."""
    return importlib.import_module(f"rtl.{type(params).__module__.rpartition('.')[2]}")


def component(params: Any) -> Component:
    """The unit's top: class `LutGemm` of `rtl/lutgemm.py` for a `LutGemmParams`."""
    return getattr(_home(params), type(params).__name__.removesuffix("Params"))(params)


def streams(params: Any) -> dict[str, Any]:
    """Name -> member of the streams at the unit's edge, without making any hardware."""
    return _home(params).streams(params)


def emit(params: Any, top: str | None = None) -> str:
    """Verilog of the unit, top module last, named like the unit unless `top` is given.

    The text depends on the params alone (not on PYTHONHASHSEED, the machine or the time).
    """
    emission = Emission()
    text = _convert(component(params), top or type(params).__module__.rpartition(".")[2], emission, ("clk", "rst"))
    return "\n".join([*emission.texts, text])


def shared(cls: type[Component]) -> type[Component]:
    """Class decorator: emitted once for all its uses. Equal constructor arguments mean equal hardware."""
    make, body = cls.__init__, cls.elaborate

    def __init__(self: Any, *args: Any) -> None:
        make(self, *args)
        self.shared_key = (cls, args)

    def elaborate(self: Any, platform: Any) -> Any:
        if isinstance(platform, Emission) and platform.writing is not self:
            return platform.instance(self)
        return body(self, platform)

    cls.__init__, cls.elaborate = __init__, elaborate
    return cls


class Emission:
    """The modules written so far in one emission; stands where Amaranth passes its platform."""

    def __init__(self) -> None:
        self.modules: dict[tuple[Any, ...], tuple[str, bool, bool]] = {}
        self.texts: list[str] = []
        self.writing: Component | None = None

    def instance(self, component: Any) -> Fragment:
        """An instance of the module of `component`, which is written first if this is its first use."""
        if component.shared_key not in self.modules:
            self.modules[component.shared_key] = self._write(component)
        name, has_clk, has_rst = self.modules[component.shared_key]
        ports: list[tuple[str, str, Any]] = [
            ("i" if member.flow is Flow.In else "o", "__".join(map(str, path)), value)
            for path, member, value in component.signature.flatten(component)
        ]
        ports += [("i", "clk", ClockSignal())] * has_clk + [("i", "rst", ResetSignal())] * has_rst
        return Instance(name, *ports)

    def _write(self, component: Any) -> tuple[str, bool, bool]:
        base = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", component.shared_key[0].__name__).lower()
        taken = sum(module[0].startswith(f"{base}_") for module in self.modules.values())
        name = f"{base}_{taken}"
        outer, self.writing = self.writing, component
        text = _convert(component, name, self)
        self.writing = outer
        self.texts.append(text)
        return name, "  input clk;" in text, "  input rst;" in text


def _convert(top: Component, name: str, emission: Emission, always: tuple[str, ...] = ()) -> str:
    """Verilog of one module with the ports of its signature, clock and reset where it has registers, and those of
    `always`, which a top without registers has too: whoever drives a unit needs no exception."""
    # Amaranth starts a Python of its own; it must not import what lies in the user's folder
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    text = verilog.convert(top, name=name, platform=emission, emit_src=False, strip_internal_attrs=True)
    missing = [port for port in always if f"  input {port};" not in text]
    return re.sub(r"^(module \w+\(.*?)\);$", _with_inputs(missing), text, count=1, flags=re.MULTILINE)


def _with_inputs(names: list[str]) -> Callable[[re.Match[str]], str]:
    return lambda head: ", ".join([head[1], *names]) + ");" + "".join(f"\n  input {name};" for name in names)
