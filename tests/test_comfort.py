"""What all commands have in common for people: completion, --quiet, colours only on terminals, exit codes."""

import ast
import inspect
import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import typer

import hwsim.cli
from hwsim import cli_doctor, cli_pim, cli_run, completion, doctor, terminal
from hwsim.metrics import METRICS
from hwsim.networks import NETWORKS
from hwsim.pim.params import MODELS
from hwsim.quantizers import QUANTIZERS
from hwsim.system.machine import MACHINES
from hwsim.terminal import EXIT_CODES, counting, exit_codes, offer_quiet, quiet, say, table
from hwsim.transforms import TRANSFORMS
from hwsim.workloads.zoo import ZOO
from models.catalog import UNITS
from models.unit import Kind

TOPOLOGY = "Layer, M, N, K,\nfirst,20,30,40,\nsecond,20,16,30,\n"
ESCAPE = "\x1b"
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]")


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    """Run a command in this process, in a folder with a network: (exit code, standard output, standard error)."""
    app = typer.Typer(pretty_exceptions_enable=False, epilog=exit_codes())
    for commands in (cli_run, cli_pim, cli_doctor):
        commands.register(app)
    offer_quiet(app)
    monkeypatch.setattr(hwsim.cli, "app", partial(app, prog_name="hwsim"))
    monkeypatch.setattr(doctor, "_probes", lambda _folder: ())  # they take long, and tests/test_doctor.py has them
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "two.csv").write_text(TOPOLOGY)

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["hwsim", *map(str, argv)])
        with pytest.raises(SystemExit) as end:
            hwsim.cli.main()
        shown = capsys.readouterr()
        return end.value.code or 0, shown.out, shown.err

    return run


# ---- completion

PROPOSED = {
    "units": UNITS,
    "engines": [name for name, entry in UNITS.items() if entry.kind is Kind.GEMM],
    "networks": NETWORKS,
    "workloads": ZOO,
    "decoders": MODELS,
    "quantizers": QUANTIZERS,
    "machines": [path.stem for path in MACHINES.glob("*.yaml")],
    "metrics": METRICS,
}


@pytest.mark.parametrize("name", PROPOSED)
def test_a_shell_proposes_what_the_registry_has(name):
    words = getattr(completion, name)()
    assert {word for word, _ in words} == set(PROPOSED[name])
    assert all(isinstance(what, str) for _, what in words)


def test_a_chain_is_completed_behind_its_last_plus():
    assert {word for word, _ in completion.transforms("had")} == set(TRANSFORMS)
    assert {word for word, _ in completion.transforms("klt+quarot+h")} == {f"klt+quarot+{name}" for name in TRANSFORMS}


@pytest.mark.parametrize(
    "name, module",
    [
        ("units", "models.catalog"),
        ("engines", "models.unit"),
        ("networks", "hwsim.networks"),
        ("workloads", "hwsim.workloads.zoo"),
        ("decoders", "hwsim.pim.params"),
        ("quantizers", "hwsim.quantizers"),
        ("machines", "hwsim.system.machine"),
        ("metrics", "hwsim.metrics"),
    ],
)
def test_completion_never_raises(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert getattr(completion, name)() == []


def test_completion_takes_what_typer_gives_it():
    """The tables above leave none out, and an `incomplete` that a completion does not know would fail in the shell."""
    tree = ast.parse(Path(completion.__file__).read_text())
    public = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
    assert public == {*PROPOSED, "transforms"}
    assert all(inspect.signature(getattr(completion, name)).parameters.keys() <= {"incomplete"} for name in public)


@pytest.mark.parametrize(
    "line, proposed",
    [
        ("hwsim run llama-2-7b demo", {name for name in PROPOSED["machines"] if name.startswith("demo")}),
        ("hwsim run resnet", {name for name in ZOO if name.startswith("resnet")}),
        ("hwsim pim gpt3-1", {"gpt3-13b", "gpt3-175b"}),
        ("hwsim init --engine lut", {"lutgemm"}),
        ("hwsim init --network dig", {"digits-mlp", "digits-cnn"}),
        ("hwsim ini", {"init"}),
    ],
)
def test_a_shell_gets_the_words(program, monkeypatch, line, proposed):
    words = line.split()
    monkeypatch.setenv("_HWSIM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    status, out, err = program()
    assert (status, err) == (0, "")
    assert set(out.split()) == proposed
    assert proposed


# ---- --quiet

COMMANDS = {
    "machines": (),
    "networks": (),
    "run": ("two.csv", "demo-16"),
    "pim": ("gpt3-7b", "--batch", 2, "--seeds", 1),
    "doctor": (),
    "init": ("mine",),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_quiet_command_prints_nothing_and_does_the_same(program, tmp_path, command):
    """It says the same as JSON; and the option is not left in force."""
    given = (command, *COMMANDS[command])
    assert program(*given, "--quiet") == (0, "", "")
    assert (tmp_path / "sweeps" / "mine.yaml").exists() == (command == "init")
    (tmp_path / "sweeps" / "mine.yaml").unlink(missing_ok=True)
    assert not quiet()
    status, out, err = program(*given, "--quiet", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)
    (tmp_path / "sweeps" / "mine.yaml").unlink(missing_ok=True)
    assert program(*given)[1].strip()


def test_a_quiet_command_still_says_what_is_wrong(program, monkeypatch):
    assert program("run", "two.csv", "demo-61", "--quiet") == program("run", "two.csv", "demo-61")
    assert program("run", "two.csv", "demo-61", "--quiet")[::2] == (
        2,
        "hwsim: no machine 'demo-61': a .yaml file, or a name; did you mean 'demo-16'?\n",
    )
    broken = doctor.Finding(part="rtl", name="Yosys", state=doctor.State.BROKEN, found="no answer", purpose="")
    monkeypatch.setattr(doctor, "examine", lambda: iter([broken]))
    assert program("doctor", "--quiet") == (1, "", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_offers_quiet_and_json_and_an_example(program, command):
    status, out, _ = program(command, "--help")
    assert status == 0
    assert {"--quiet", "--json"} <= set(out.split())
    assert f"Example: hwsim {command}" in " ".join(out.split())


def test_options_and_arguments_of_a_command_survive(capsys):
    """Also those that a string names, as `from __future__ import annotations` leaves them."""
    app = typer.Typer()

    @app.command()
    def add(first: "int", second: "int" = 4) -> None:
        """Add."""
        say(first + second)
        table("sum", ["value"], [[first + second]])

    @app.command()
    def other() -> None:
        """Another one."""

    offer_quiet(app)
    shown = []
    for argv in (["add", "3"], ["add", "3", "--second", "5"], ["add", "3", "--quiet"]):
        app(argv, standalone_mode=False)
        shown.append(capsys.readouterr().out.partition("\n")[0])
    assert shown == ["7", "8", ""]


def test_quiet_ends_with_the_command():
    def fail():
        assert quiet()
        raise ValueError("on the way")

    run = terminal._with_quiet(fail)
    with pytest.raises(ValueError, match="on the way"):
        run(quiet=True)
    assert not quiet()


@pytest.mark.parametrize("hushed", [False, True])
def test_progress_is_for_terminals_and_not_for_quiet_commands(monkeypatch, capsys, hushed):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def work():
        with counting("counting sheep") as progress:
            progress(1, 2, "a sheep")

    terminal._with_quiet(work)(quiet=hushed)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("a sheep" in err) == (not hushed)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    work()
    assert capsys.readouterr() == ("", "")


# ---- colours


@pytest.mark.parametrize(
    "argv",
    [
        ("machines",),
        ("networks",),
        ("--help",),
        ("run", "--help"),
        ("run", "two.csv", "demo-16"),
        ("run", "x", "y"),
        ("doctr",),
        ("run", "--no-such"),
    ],
)
def test_no_escape_sequence_leaves_where_there_is_no_terminal(program, argv):
    _, out, err = program(*argv)
    assert out + err
    assert ESCAPE not in out + err


def test_a_terminal_gets_colours_unless_told_otherwise(monkeypatch, capsys):
    """The check above can fail: the same table with a terminal's means."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    table("[red]name", ["[bold]column"], [["[red]value"]])
    shown = capsys.readouterr().out
    assert ESCAPE in shown
    assert "[red]name" in shown
    monkeypatch.setenv("NO_COLOR", "1")
    table("name", ["column"], [["value"]])
    assert not COLOUR.search(capsys.readouterr().out)


# ---- exit codes


def test_the_help_page_lists_the_exit_codes(program):
    status, out, _ = program("--help")
    shown = " ".join(out.split())
    assert status == 0
    assert "Exit codes:" in shown
    for code, meaning in EXIT_CODES.items():
        assert f"{code}: {meaning}" in shown


@pytest.mark.parametrize(
    "argv", [("no-such",), ("run",), ("pim", "gpt3-7b", "--batch", "0"), ("run", "a", "b", "--no-such")]
)
def test_what_is_no_command_is_bad_input(program, argv):
    status, out, err = program(*argv)
    assert (status, out) == (2, "")
    assert err.strip()


def test_an_interrupt_is_130(program, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert program("doctor") == (130, "", "hwsim: interrupted\n")
    assert set(EXIT_CODES) == {0, 1, 2, 130}
