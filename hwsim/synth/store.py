"""Finished results on disk, found by the content of everything that made them."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

from hwsim.files import sweep_stale, write_atomic
from hwsim.synth import SynthResult
from models.unit import InputError

Results = tuple[SynthResult, ...]


def key_of(what: str, verilog: str, top: str, liberty_text: str, tool: str) -> str:
    """SHA-256 over all that determines the results, this package's own source (and so its scripts) included."""
    digest = hashlib.sha256()
    for part in (what, verilog, top, liberty_text, tool, _own_source()):
        content = part.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


@cache
def _own_source() -> str:
    return "\0".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))


def get_or_make(folder: Path, key: str, make: Callable[[], Results]) -> Results:
    """The stored results, or those of `make`, stored. Two processes that want the same one make it once.

    InputError for a damaged entry, naming it, and for a folder that cannot be read or written.
    """
    path = folder / f"{key}.json"
    stored = _stored(path)
    if stored is not None:
        return stored
    with _locked(folder, key):
        stored = _stored(path)  # by another process meanwhile
        if stored is not None:
            return stored
        results = make()
        with _explained(folder):
            write_atomic(path, _entry(results))
        return results


def _stored(path: Path) -> Results | None:
    with _explained(path.parent):
        return read(path) if path.exists() else None


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Tell what the system refuses as a fault of the cache folder."""
    try:
        yield
    except OSError as error:
        raise InputError(f"synthesis cache {folder}: {error.strerror}; set HWSIM_CACHE to a writable folder") from None


@contextmanager
def _locked(folder: Path, key: str) -> Iterator[None]:
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f"{key}.lock").open("w")
    with lock:
        with _explained(folder):
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes, also when the process is killed
            sweep_stale(folder)
        yield


def _entry(results: Results) -> str:
    content = [asdict(result) for result in results]
    return json.dumps({"sha256": _checksum(content), "results": content}, indent=1) + "\n"


def _checksum(content: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> Results:
    """The results in a cache entry. InputError naming the file and the remedy where it is damaged."""
    if path.is_dir():
        raise InputError(f"synthesis cache entry {path} is a folder; delete it and the entry is computed again")
    try:
        entry = json.loads(path.read_text())
        content = entry["results"]
        names = {field.name for field in fields(SynthResult)}
        whole = entry["sha256"] == _checksum(content) and all(set(each) == names for each in content)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(f"synthesis cache entry {path} is damaged; delete that file and it is computed again")
    return tuple(_result(each) for each in content)


def _result(content: dict[str, Any]) -> SynthResult:
    lists = {
        "critical_path": tuple(content["critical_path"]),
        "modules": tuple(tuple(module) for module in content["modules"]),
    }
    return SynthResult(**(content | lists))
