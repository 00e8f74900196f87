"""What Verilog text and names may hold before a tool reads them."""

from __future__ import annotations

import re

from models.unit import require

MODULE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

UNSEEN = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\\\S+', re.DOTALL)
"""comments, strings and escaped identifiers: nothing in them is a task or a directive"""

OUTWARD = re.compile(
    r"`include\b|``|\$(?:system|f(?:open|display|write|monitor|strobe|scanf|gets|read)|(?:read|write)mem[bh]|dump\w+)\b"
    r'|\bimport\s+(?="DPI)'
)
"""what reads or writes files, runs commands, or pastes such a name together"""


def check_module_name(name: str) -> None:
    """Refuse the name of a module that could be more than a name."""
    rule = "is no module name: a letter or _, then up to 63 letters, digits or _"
    require(MODULE_NAME.fullmatch(name) is not None, f"top module {name!r} {rule}")


def check_self_contained(text: str) -> None:
    """Refuse Verilog that reaches outside itself: results are kept by the text alone, and it runs on this machine.

    A fence against accidents and the obvious, not a sandbox: simulate only text that you would run.
    """
    shown = UNSEEN.sub(lambda found: '"DPI' if found[0].startswith('"DPI') else " ", text)
    found = OUTWARD.search(shown)
    require(
        found is None, f"Verilog: {found and found[0].strip()} reaches outside the text; give one self-contained text"
    )
