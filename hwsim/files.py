"""Files are written whole or not at all, and caches live in one place."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from models.unit import InputError, require

SUFFIX = ".hwsim-tmp"
STALE_S = 3600.0
"""A temporary file older than this belongs to a process that was killed: no single write takes that long."""


@contextlib.contextmanager
def os_errors(path: Path, remedy: str = "") -> Iterator[None]:
    """What the system refuses in this block is an InputError: `path`, the system's reason, the remedy where given."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: {reason}{remedy and f'; {remedy}'}") from None


def require_file(path: Path, remedy: str = "") -> None:
    """InputError, with the remedy where given, unless `path` leads to a file; what a folder is, is said."""
    with os_errors(path):
        require(not path.is_dir(), f"{path}: is a folder; name a file")
        require(path.exists(), f"{path}: no such file{remedy and f'; {remedy}'}")
        require(path.is_file(), f"{path}: is no regular file")


def require_writable(folder: Path, remedy: str) -> None:
    """InputError with the remedy unless files can be made in `folder`, which is made if absent."""
    with os_errors(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def write_atomic(path: Path, content: bytes | str) -> None:
    """Put `content` (text as UTF-8) at `path`, as `replacing` does."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` at the end of the block: a reader sees the old file or the new one, also
    after a power cut.

    It lies in the same folder, which is made if absent. Raises InputError for a target that is a folder, a link or a
    device, and for what the system refuses; then, and where the block raises, nothing is left behind and what was there
    stands.
    """
    with os_errors(path):
        _require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # a prefix of its own: with the target's name in it, a long name would become too long
        handle, name = tempfile.mkstemp(prefix=".", suffix=SUFFIX, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _require_replaceable(path: Path) -> None:
    """A rename would put a file in the place of whatever stands there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link"}
    require(stat.S_ISREG(mode), f"{path}: is {kinds.get(stat.S_IFMT(mode), 'a device')}, no file; name another target")


def sweep_stale(folder: Path) -> int:
    """Remove temporary files of killed writers (older than an hour) from `folder`; returns how many."""
    oldest = time.time() - STALE_S
    removed = 0
    for path in folder.glob(f".*{SUFFIX}"):
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
                removed += 1
        except FileNotFoundError:
            continue  # another process swept it first
    return removed


def cache_root() -> Path:
    """`$HWSIM_CACHE`, else `$XDG_CACHE_HOME/hwsim`, else `~/.cache/hwsim`; not created here."""
    if own := os.environ.get("HWSIM_CACHE"):
        return Path(own)
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "hwsim"


def _umask() -> int:
    # the mask can only be read by setting it; mkstemp made the file 0600
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
