"""The program as a process: what it does when its output, its files or its user stop it."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

import hwsim.cli
from models.catalog import UNITS


def program(*argv, **options):
    return subprocess.run(
        [sys.executable, "-m", "hwsim", *map(str, argv)], stderr=subprocess.PIPE, text=True, check=False, **options
    )


def refusal(capsys, monkeypatch, *argv):
    """Exit code and standard error of `main` in this process."""
    monkeypatch.setattr(sys, "argv", ["hwsim", *map(str, argv)])
    with pytest.raises(SystemExit) as end:
        hwsim.cli.main()
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("argv", [("units", "--json"), ("units",), ("units", "--help")])
def test_output_that_cannot_be_written_is_one_line(argv):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - no file but a device
        ended = program(*argv, stdout=full)
    assert (ended.returncode, ended.stderr) == (2, "hwsim: No space left on device\n")


@pytest.mark.parametrize("argv", [("units", "--json"), ("units",)])
def test_a_reader_that_went_away_is_one_line(argv):
    reader, writer = os.pipe()
    os.close(reader)
    ended = program(*argv, stdout=writer)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (2, "hwsim: Broken pipe\n")


def test_a_terminal_that_lacks_a_sign_shows_a_question_mark(tmp_path):
    for name in ("caf\u00e9\u00b5", os.fsdecode(b"caf\xe9")):
        ended = program(
            "sweep", tmp_path / name, stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "ascii"}
        )
        assert ended.returncode == 2
        assert ended.stderr == f"hwsim: {tmp_path}/caf{'?' * (len(name) - 3)}: no such file\n"
    ended = program("units", stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 0
    assert all(name in ended.stdout for name in UNITS)


def test_an_interrupt_during_imports_is_named(tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    ended = program("units", stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "hwsim: interrupted\n")


def test_an_interrupt_during_a_command_is_named():
    code = (
        "import signal, sys, hwsim.cli, hwsim.simulate\n"
        "hwsim.simulate.simulate_gemm = lambda *_: print('on', flush=True) or signal.pause()\n"
        "sys.argv = 'hwsim gemm systolic --shape 4 4 4'.split()\n"
        "hwsim.cli.main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "on\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=30)
    assert (process.returncode, printed, errors) == (130, "", "hwsim: interrupted\n")


@pytest.mark.parametrize(
    "error, message",
    [
        (PermissionError(errno.EACCES, "Permission denied", "some/file"), "hwsim: some/file: Permission denied\n"),
        (OSError("odd"), "hwsim: odd\n"),
    ],
)
def test_what_the_system_refuses_anywhere_is_one_line(capsys, monkeypatch, error, message):
    def fail():
        raise error

    monkeypatch.setattr(hwsim.cli, "app", fail)
    assert refusal(capsys, monkeypatch, "units") == (2, message)


def test_paths_that_lead_nowhere(capsys, monkeypatch, tmp_path):
    for argv in (("report", tmp_path), ("sweep", tmp_path), ("report", tmp_path / ("x" * 300))):
        status, errors = refusal(capsys, monkeypatch, *argv)
        assert status == 2
        assert str(tmp_path) in errors
        assert len(errors.splitlines()) == 1
