"""Tools in child processes: status and output, limits, environment, the end of the group, working folders."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from hwsim import guard
from hwsim.guard import check_plain_path, run_guarded, workplace
from models.unit import InputError

ALIVE = "exec 9>alive; echo up >&9; "
"""bash: this process and all that it starts hold the pipe `alive` open"""


def bash(script, cwd, time_limit_s=20, **env):
    return run_guarded(["bash", "-c", script], what="the script", cwd=cwd, time_limit_s=time_limit_s, env=env)


@pytest.fixture
def alive(tmp_path):
    """Reads the pipe `alive` of the folder; its end comes when the last process that holds it has ended."""
    os.mkfifo(tmp_path / "alive")
    handle = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    yield handle
    os.close(handle)


def read_soon(handle):
    """What a pipe holds, b"" at its end; the test fails if neither comes within 20 s."""
    assert select.select([handle], [], [], 20)[0], "still held open"
    return os.read(handle, 100)


# --- what comes back


def test_status_and_both_outputs_come_back(tmp_path):
    finished = bash("echo out; echo err >&2; exit 3", tmp_path)
    assert finished.status == 3
    assert sorted(finished.output.split()) == ["err", "out"]
    assert (tmp_path / "tool.log").read_text() == finished.output


def test_a_tool_that_a_signal_ends_has_status_128_and_more(tmp_path):
    assert bash("kill -SEGV $$", tmp_path).status == 128 + signal.SIGSEGV


def test_a_tool_that_is_not_there_has_status_127(tmp_path):
    finished = run_guarded(["no-such-tool"], what="it", cwd=tmp_path, time_limit_s=20)
    assert finished.status == 127
    assert finished.output == "no-such-tool: No such file or directory\n"


def test_arguments_reach_the_tool_as_they_are(tmp_path):
    arguments = ["", "a b", "$HOME; `id`", "-I"]
    code = "import sys; print(sys.argv[1:])"
    finished = run_guarded([sys.executable, "-c", code, *arguments], what="it", cwd=tmp_path, time_limit_s=20)
    assert finished.output == f"{arguments}\n"


def test_a_tool_has_no_input_and_the_usual_signals(tmp_path):
    """Python ignores SIGPIPE and what it starts would too: `yes` would complain instead of ending."""
    finished = bash('read -r line || echo none; yes | head -n 1; echo "${PIPESTATUS[0]}"', tmp_path)
    assert finished.output.split() == ["none", "y", str(128 + signal.SIGPIPE)]


# --- environment


def test_the_environment_is_this_one_and_what_is_added(tmp_path, monkeypatch):
    monkeypatch.setenv("HWSIM_TEST_OLD", "old")
    monkeypatch.setenv("HWSIM_TEST_NEW", "old")
    assert bash("echo $HWSIM_TEST_OLD $HWSIM_TEST_NEW", tmp_path, HWSIM_TEST_NEW="new").output == "old new\n"


def test_children_do_not_import_the_modules_of_their_folder(tmp_path):
    for name in ("random", "queue", "resource"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not that one')")
    finished = run_guarded([sys.executable, "-m", "random"], what="it", cwd=tmp_path, time_limit_s=20)
    assert "not that one" not in finished.output
    code = "import random, queue, resource"
    assert run_guarded([sys.executable, "-c", code], what="it", cwd=tmp_path, time_limit_s=20).status == 0


# --- limits


def test_the_time_limit_ends_the_whole_group_and_names_what_was_done(tmp_path, alive):
    with pytest.raises(InputError, match=r"^the script: not finished after 0\.5 s;"):
        bash(ALIVE + "sleep 77.5 & sleep 77.5", tmp_path, time_limit_s=0.5)
    assert read_soon(alive) == b"up\n"
    assert read_soon(alive) == b""


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e9])
def test_time_limits_that_are_none_are_refused(tmp_path, seconds):
    with pytest.raises(InputError, match=r"time_limit_s: .* must be positive and at most"):
        bash("true", tmp_path, time_limit_s=seconds)
    assert list(tmp_path.iterdir()) == []


def test_the_memory_limit_holds_for_what_the_tool_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "MEMORY_MIB", 200)
    code = "import sys; block = bytearray(int(sys.argv[1]) << 20); print(len(block) >> 20)"
    script = f'"{sys.executable}" -c "{code}" 50; "{sys.executable}" -c "{code}" 500'
    finished = bash(script, tmp_path)
    assert finished.output.startswith("50\n")
    assert "MemoryError" in finished.output


def test_the_processor_time_limit_is_set_for_each_process(tmp_path):
    assert bash("ulimit -t; bash -c 'ulimit -t'", tmp_path, time_limit_s=33.5).output.split() == ["34", "34"]


def test_a_limit_in_force_already_is_kept_where_it_is_lower(tmp_path):
    code = """
import pathlib, resource, sys
from hwsim.guard import run_guarded
resource.setrlimit(resource.RLIMIT_CPU, (55, 55))
print(run_guarded(["bash", "-c", "ulimit -t"], what="", cwd=pathlib.Path(sys.argv[1]), time_limit_s=99).output)
"""
    shown = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True).stdout
    assert shown.split() == [b"55"]


# --- the end


def test_what_a_tool_leaves_running_ends_with_it(tmp_path, alive):
    assert bash(ALIVE + "sleep 77.5 & true", tmp_path).status == 0
    assert read_soon(alive) == b"up\n"
    assert read_soon(alive) == b""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_tool_and_all_that_it_started_end_with_this_process(tmp_path, alive, end):
    code = (
        "import sys, pathlib; from hwsim.guard import run_guarded; "
        "run_guarded(['bash', '-c', sys.argv[1]], what='', cwd=pathlib.Path(sys.argv[2]), time_limit_s=70)"
    )
    # `true` behind: else bash would become sleep, and there would be no grandchild
    with subprocess.Popen(
        [sys.executable, "-c", code, ALIVE + "sleep 77.5; true", str(tmp_path)], stderr=subprocess.DEVNULL
    ) as parent:
        assert read_soon(alive) == b"up\n"
        parent.send_signal(end)
    assert read_soon(alive) == b""


# --- working folders


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The temporary folder, moved."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_a_workplace_is_fresh_private_and_gone_at_the_end(temporary):
    with workplace("hwsim-x-") as one, workplace("hwsim-x-") as two:
        assert one != two
        assert one.parent == two.parent == temporary
        assert one.stat().st_mode & 0o777 == 0o700
        (one / "file").write_text("x")
    assert list(temporary.iterdir()) == []


def test_what_killed_processes_left_is_swept_and_nothing_else(temporary):
    old = time.time() - guard.STALE_S - 60
    kept = ["hwsim-x-young", "hwsim-y-old", "other"]
    for name in ("hwsim-x-old", *kept):
        (temporary / name).mkdir()
        (temporary / name / "deep").mkdir()
        (temporary / name / "deep" / "file").write_text("x")
    (temporary / "hwsim-x-file").write_text("no folder")
    (temporary / "hwsim-x-link").symlink_to("other")
    for name in ("hwsim-x-old", "hwsim-y-old", "other", "hwsim-x-file"):
        os.utime(temporary / name, (old, old))
    os.utime(temporary / "hwsim-x-link", (old, old), follow_symlinks=False)
    with workplace("hwsim-x-"):
        pass
    assert sorted(p.name for p in temporary.iterdir()) == sorted([*kept, "hwsim-x-file", "hwsim-x-link"])
    assert (temporary / "other" / "deep" / "file").exists()


@pytest.mark.parametrize("name", ["with space", "it's", 'a"b', "a;b", "ümlaut", "a$b", "a#b", "a:b"])
def test_temporary_folders_that_the_tools_cannot_take_are_refused(tmp_path, monkeypatch, name):
    odd = tmp_path / name
    odd.mkdir()
    monkeypatch.setenv("TMPDIR", str(odd))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(InputError, match=r"^temporary folder .* set TMPDIR to another one$"), workplace("hwsim-x-"):
        pass
    assert list(odd.iterdir()) == []


def test_a_temporary_folder_that_went_away_is_an_input_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with (
        pytest.raises(InputError, match=r"^temporary folder: No such file or directory; set TMPDIR"),
        workplace("hwsim-x-"),
    ):
        pass


def test_plain_paths_pass():
    check_plain_path(Path("/home/a_b-c/x.y+z@1=2/site-packages"), "it", "")
