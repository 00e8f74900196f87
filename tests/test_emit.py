"""Emission: identical modules once, text that depends on the params alone."""

import re
import subprocess
import sys

import pytest

from models.catalog import UNITS, unit
from rtl.emit import emit


@pytest.mark.parametrize("name", UNITS)
def test_each_module_is_defined_once_and_every_instance_has_its_module(name):
    text = emit(unit(name).preset("default"))
    modules = re.findall(r"^module (\S+?) ?\(", text, flags=re.MULTILINE)
    assert len(modules) == len(set(modules))
    assert modules[-1].removeprefix("\\").startswith(name) or name in modules
    bodies = [re.sub(r"\bmodule \S+|\$\d+|dump_module\S*", "", body) for body in text.split("endmodule")[:-1]]
    assert len(bodies) == len(set(bodies)), "two modules of the same content"


def test_a_pe_is_written_once_and_instantiated_rows_times_cols_times():
    text = emit(unit("systolic").params(rows=5, cols=7))
    assert len(re.findall(r"^module stationary_pe", text, flags=re.MULTILINE)) == 1
    assert len(re.findall(r"^ +stationary_pe_0 +pe_\d+_\d+ \(", text, flags=re.MULTILINE)) == 35


def test_text_grows_by_instances_not_by_copies():
    small, large = (len(emit(unit("systolic").params(rows=n, cols=n))) for n in (4, 8))
    pe = emit(unit("systolic").params(rows=1, cols=1))
    assert large - small < 48 * len(pe) / 3


GROUPS = 4
"""Units share processes: starting one takes longer than most emissions."""


@pytest.mark.parametrize("group", range(GROUPS))
def test_the_text_is_the_same_in_every_process(group):
    presets = {
        name: "default" if name == "systolic" else list(unit(name).presets)[-1] for name in list(UNITS)[group::GROUPS]
    }
    code = "from rtl.emit import emit; from models.catalog import unit; " + "; ".join(
        f"print(emit(unit({name!r}).preset({preset!r})))" for name, preset in presets.items()
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "77")
    }
    (text,) = texts
    assert all(f"module {name}" in text for name in presets)
