"""Files are written whole or not at all, and caches live in one place."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

SUFFIX = ".hwsim-tmp"
STALE_S = 3600.0
"""A temporary file older than this belongs to a process that was killed: no single write takes that long."""


def write_atomic(path: Path, content: bytes | str) -> None:
    """Put `content` (text as UTF-8) at `path`: a reader sees the old file or the new one, also after a power cut.

    The temporary file lies in the same folder, which is made if absent. Raises OSError as the system does; then
    nothing is left behind and the old file stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=SUFFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


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
