"""Kept objects of Verilator's runtime: used again where nothing differs, never where something does."""

import os
import subprocess
import sys

import pytest

from hwsim.verify.cocotb_run import OBJECT_CACHE


@pytest.fixture
def build(tmp_path):
    """A runtime of one source, a folder of kept objects, and the program run as Verilator's makefile runs it."""
    (tmp_path / "root" / "include").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    source = tmp_path / "root" / "include" / "verilated.cpp"
    source.write_text("int f() { return VALUE; }\n")
    (tmp_path / "root" / "include" / "verilated_config.h").write_text("version 1\n")

    def run(*flags, of=source, target="out.o"):
        command = ["g++", "-DVALUE=1", *flags, "-c", "-o", target, str(of)]
        words = [sys.executable, "-I", "-S", str(OBJECT_CACHE), str(tmp_path / "kept"), *command]
        env = {**os.environ, "VERILATOR_ROOT": str(tmp_path / "root")}
        done = subprocess.run(words, cwd=tmp_path, env=env, check=False, capture_output=True)
        return done.returncode, len(list((tmp_path / "kept").iterdir()))

    run.folder = tmp_path
    return run


def test_the_second_build_takes_the_kept_object(build):
    assert build() == (0, 1)
    (kept,) = (build.folder / "kept").iterdir()
    kept.write_bytes(b"marked")
    assert build(target="other.o") == (0, 1)
    assert (build.folder / "other.o").read_bytes() == b"marked"


@pytest.mark.parametrize("what", ["flags", "source", "version"])
def test_whatever_differs_is_compiled_anew(build, what):
    assert build() == (0, 1)
    include = build.folder / "root" / "include"
    if what == "source":
        (include / "verilated.cpp").write_text("int g() { return VALUE; }\n")
    if what == "version":
        (include / "verilated_config.h").write_text("version 2\n")
    assert build(*(["-O2"] if what == "flags" else [])) == (0, 2)


def test_a_design_is_never_kept_and_a_failure_neither(build):
    design = build.folder / "Vtop.cpp"
    design.write_text("int top() { return VALUE; }\n")
    assert build(of=design) == (0, 0)
    (build.folder / "root" / "include" / "verilated.cpp").write_text("no C++\n")
    status, kept = build()
    assert status != 0
    assert kept == 0
