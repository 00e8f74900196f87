"""Atomic writes, stale temporary files, and where the cache lies."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from hwsim.files import (
    STALE_S,
    SUFFIX,
    cache_root,
    os_errors,
    require_file,
    require_writable,
    sweep_stale,
    write_atomic,
)
from models.unit import InputError


@pytest.mark.parametrize("content, expected", [("h\u00e9\n", "h\u00e9\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_content_is_written_and_nothing_else_stays(tmp_path, content, expected):
    path = tmp_path / "new" / "entry.json"
    write_atomic(path, content)
    assert path.read_bytes() == expected
    assert list(path.parent.iterdir()) == [path]


def test_permissions_follow_the_umask(tmp_path):
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.write_text("")
    write_atomic(ours, "")
    assert ours.stat().st_mode == plain.stat().st_mode


def test_a_failed_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "entry"
    write_atomic(path, "old")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputError, match=r"entry: No space left on device$"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_targets_that_are_no_files_stand(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("folder", "a folder"), ("link", "a link"), ("dangling", "a link"), ("pipe", "a device")):
        with pytest.raises(InputError, match=f"{name}: is {kind}, no file"):
            write_atomic(tmp_path / name, "new")
    with pytest.raises(InputError, match="/dev/null: is a device"):
        write_atomic(Path("/dev/null"), "new")
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 5


def test_what_the_system_refuses_names_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/new: Not a directory$"):
        write_atomic(tmp_path / "file" / "new", "x")
    with pytest.raises(InputError, match="File name too long"):
        write_atomic(tmp_path / ("n" * 256), "x")
    write_atomic(tmp_path / ("n" * 255), "x")
    with pytest.raises(InputError, match=r"^p: reason; do this$"), os_errors(Path("p"), "do this"):
        raise OSError("reason")
    with pytest.raises(InputError, match=r"file/in: Not a directory; take another"):
        require_writable(tmp_path / "file" / "in", "take another")
    require_writable(tmp_path / "new", "take another")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_file_is_required_and_a_folder_called_one(tmp_path):
    with pytest.raises(InputError, match="none: no such file; make it"):
        require_file(tmp_path / "none", "make it")
    with pytest.raises(InputError, match="is a folder; name a file"):
        require_file(tmp_path)
    with pytest.raises(InputError, match="is no regular file"):
        require_file(Path("/dev/null"))
    with pytest.raises(InputError, match="File name too long"):
        require_file(tmp_path / ("n" * 256))
    require_file(Path(__file__))


def test_only_old_temporary_files_are_swept(tmp_path):
    old, young, other = tmp_path / f".a.x{SUFFIX}", tmp_path / f".b.y{SUFFIX}", tmp_path / "data.json"
    for path in (old, young, other):
        path.write_text("")
    long_ago = time.time() - 2 * STALE_S
    os.utime(old, (long_ago, long_ago))
    os.utime(other, (long_ago, long_ago))
    assert sweep_stale(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == [young, other]


def test_cache_root_order(monkeypatch, tmp_path):
    monkeypatch.setenv("HWSIM_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("HWSIM_CACHE")
    assert cache_root() == tmp_path / "xdg" / "hwsim"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "hwsim"
