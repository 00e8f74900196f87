"""Documents that hold figures are what their commands write, and the README's code and commands work as written."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hwsim.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["cycles", "digits", "fp16"])
def test_a_computed_table_is_what_its_script_writes(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / "docs" / f"{name}.md").read_text() == script.page()


BEFORE = """
import numpy as np
rng = np.random.default_rng(0)
x = rng.normal(size=(2, 256))
A, W = rng.integers(-128, 128, (8, 32)), rng.integers(-128, 128, (32, 8))
"""
AFTER = """
assert (r.output == A @ W).all() and (y == r.output).all()
assert t.total_cycles == 571393
assert q.codes.shape == x.shape and q.scales.shape == (2, 2)
"""


def test_the_readmes_python_runs():
    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    subprocess.run([sys.executable, "-c", BEFORE + code + AFTER], check=True)


@pytest.mark.parametrize("line", re.findall(r"^\| `hwsim (.*?)` \|", README, flags=re.MULTILINE))
def test_the_readmes_commands_exist_with_these_options(line):
    """Each word that starts with -- is an option of that command."""
    import typer

    command, *words = shlex.split(line.replace("[", "").replace("]", ""))
    known = {name for parameter in typer.main.get_command(app).commands[command].params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]+)\)", README))
def test_the_readmes_links_lead_somewhere(target):
    assert (ROOT / target).exists()
