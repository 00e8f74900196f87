"""docs/studies.md: its files are written and its commands run, from the first to the last, as they stand."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hwsim.terminal import EXIT_CODES

PAGE = (Path(__file__).resolve().parent.parent / "docs/studies.md").read_text()
BLOCKS = re.findall(r"^```(yaml|sh|python)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("tutorial")


def hwsim(place, line):
    """A command of the page; no shell reads it."""
    program, *words = shlex.split(line)
    assert program == "hwsim"
    done = subprocess.run(
        [sys.executable, "-m", "hwsim", *words], cwd=place, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_page_works_from_top_to_bottom(place):
    said = {}
    for kind, text in BLOCKS:
        if kind == "yaml":
            name = re.search(r"^name: (\w+)", text, flags=re.MULTILINE)[1]
            (place / f"{name}.yaml").write_text(text)
        elif kind == "python":
            check = "assert len(frame) == 6 and set(front.status) == {'done'}, (len(frame), front)\n"
            subprocess.run([sys.executable, "-c", text + check], cwd=place, check=True, timeout=120)
        else:
            said |= {line: hwsim(place, line) for line in text.splitlines()}
    assert "6 points, 0 failed" in said["hwsim sweep small.yaml --workers 2"]
    assert (place / "small.svg").read_text().startswith("<svg")
    assert "look-up array" in (place / "small.md").read_text()
    assert "5 points, 0 failed" in said["hwsim sweep found.yaml"]
    assert "taken from 2 shards" in said["hwsim sweep wide.yaml --out elsewhere"]
    assert {path.name for path in (place / "results").iterdir()} == {"small", "wide", "found"}
    folder = place / "results/small"
    for name in re.findall(r"^\| `([\w./]+)` \|", PAGE, flags=re.MULTILINE):
        assert (folder / name).exists(), name


def test_the_exit_codes_are_those_of_the_program():
    table = dict(re.findall(r"^\| ([0-9]+) \| (.*) \|$", PAGE, flags=re.MULTILINE))
    assert {int(code): meaning for code, meaning in table.items()} == EXIT_CODES
