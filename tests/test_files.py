"""Atomic writes, stale temporary files, and where the cache lies."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hwsim.files import STALE_S, SUFFIX, cache_root, sweep_stale, write_atomic


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
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


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
