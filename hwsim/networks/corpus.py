"""Text that every machine has: the sources of the Python standard library.

The text is that of the Python that runs the program, unless a folder is named: figures taken on it belong to that
version (`identity` gives it with the text's sha256). The held-out modules are seen by no training here; they exist
in Python 3.11 to 3.14.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import re
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path

from hwsim.files import os_errors
from models.unit import require

HELD_OUT = (
    "argparse",
    "difflib",
    "fractions",
    "graphlib",
    "heapq",
    "ipaddress",
    "shlex",
    "statistics",
    "textwrap",
    "tomllib",
)
"""No file whose path contains one of these names is trained on: their tests, twins and documentation stay out too."""

CALIBRATION = ("calendar", "csv", "dataclasses", "email", "gzip", "inspect", "json", "logging", "pathlib", "queue")
"""Modules of the training text from which calibration text is taken."""

DOCUMENTED = (
    *("argparse", "ast", "asyncio", "base64", "bdb", "calendar", "cmd", "codecs", "collections", "configparser"),
    *("contextlib", "csv", "dataclasses", "datetime", "_pydecimal", "difflib", "doctest", "email", "enum", "filecmp"),
    *("fractions", "ftplib", "functools", "getopt", "gettext", "graphlib", "gzip", "heapq", "html", "http", "imaplib"),
    *("inspect", "ipaddress", "json", "locale", "logging", "mailbox", "mimetypes", "multiprocessing", "optparse"),
    *("pathlib", "pdb", "pickle", "pprint", "queue", "random", "sched", "selectors", "shelve", "shlex", "shutil"),
    *("smtplib", "socket", "socketserver", "sqlite3", "ssl", "statistics", "string", "subprocess", "tarfile"),
    *("tempfile", "textwrap", "threading", "timeit", "tkinter", "trace", "typing", "unittest", "urllib", "uuid"),
    *("warnings", "weakref", "xml", "zipfile"),
)
"""Modules from whose docstrings sentences are taken."""

FOREIGN = {"site-packages", "dist-packages", "__pycache__"}
"""Folders of the library that hold what somebody else installed."""


def stdlib_folder() -> Path:
    """Where the running Python keeps its library; InputError where that is no folder of sources (a zip file, say)."""
    folder = Path(sysconfig.get_path("stdlib"))
    require((folder / "argparse.py").is_file(), f"{folder}: holds no sources of the Python standard library")
    return folder


def heldout_text(size: int, folder: Path | None = None) -> bytes:
    """At most `size` bytes of the held-out modules, whole lines from each one's start, shared evenly between them.

    What a short module leaves over goes to the longer ones. InputError where they hold less than `size` together.
    """
    return _shares(HELD_OUT, size, folder or stdlib_folder())


def calibration_text(size: int, folder: Path | None = None) -> bytes:
    """As `heldout_text`, from the modules of `CALIBRATION`: disjoint from the held-out ones, part of the training."""
    return _shares(CALIBRATION, size, folder or stdlib_folder())


def training_files(folder: Path | None = None) -> dict[str, bytes]:
    """Path below `folder` (with forward slashes) -> text of every source but the held-out ones, in order of paths."""
    root = folder or stdlib_folder()
    names = {path.relative_to(root).as_posix(): path for path in _sources(root)}
    return {name: _read(path) for name, path in names.items() if not mentions(name, HELD_OUT)}


def mentions(path: str, modules: Sequence[str]) -> bool:
    """Whether the path contains the name of one of the modules, in whatever case."""
    return any(module in path.lower() for module in modules)


def docstring_sentences(count: int, folder: Path | None = None) -> list[str]:
    """`count` different English sentences from docstrings of the standard library, found by parsing, not importing.

    5 to 40 words, mostly letters; each of `DOCUMENTED` gives one in turn, in the order of its text. InputError where
    they hold fewer.
    """
    root = folder or stdlib_folder()
    modules = [_sentences(root, name) for name in DOCUMENTED]
    turns = (sentence for turn in zip_longest(*modules) for sentence in turn if sentence is not None)
    found = list(dict.fromkeys(turns))
    require(0 < count <= len(found), f"{count} sentences: must be from 1 to the {len(found)} in the standard library")
    return found[:count]


def identity(text: bytes) -> dict[str, str]:
    """What a report says of a text: its sha256 and the running Python's version."""
    return {"sha256": hashlib.sha256(text).hexdigest(), "python": platform.python_version()}


@cache
def _sentences(root: Path, name: str) -> tuple[str, ...]:
    """The sentences of a module's docstrings, in their order."""
    file = root / f"{name}.py"
    paths = [file] if file.is_file() else list(_sources(root / name))
    return tuple(s for path in paths for text in _docstrings(path) for s in _split_sentences(text))


def _docstrings(path: Path) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(_read(path))):
        if isinstance(node, kinds):
            yield ast.get_docstring(node) or ""


def _split_sentences(text: str) -> Iterator[str]:
    """Those that are prose, from paragraphs without examples."""
    for paragraph in re.split(r"\n\s*\n", text):
        if ">>>" not in paragraph:
            parts = re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split()))
            yield from filter(_is_prose, parts)


def _is_prose(sentence: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in sentence)
    shaped = re.fullmatch(r"[A-Z].*[a-z][.!?]", sentence) is not None
    return shaped and 5 <= len(sentence.split()) <= 40 and letters >= 0.95 * len(sentence)


def _shares(modules: Sequence[str], size: int, root: Path) -> bytes:
    texts = {name: _module_text(root, name) for name in modules}
    held = sum(map(len, texts.values()))
    require(0 < size <= held, f"text of {size} bytes: must be from 1 to the {held} bytes of {', '.join(modules)}")
    taken: dict[str, bytes] = {}
    left = size
    for position, name in enumerate(sorted(modules, key=lambda name: len(texts[name]))):
        taken[name] = _whole_lines(texts[name], left // (len(modules) - position))
        left -= len(taken[name])
    return b"".join(taken[name] for name in modules)


def _whole_lines(text: bytes, size: int) -> bytes:
    return text if len(text) <= size else text[: text.rfind(b"\n", 0, size) + 1]


@cache
def _module_text(root: Path, name: str) -> bytes:
    """The module's file, or all files of the package in the order of their paths."""
    file = root / f"{name}.py"
    if file.is_file():
        return _read(file)
    paths = list(_sources(root / name))
    require(bool(paths), f"{root}: the standard library there has no module {name!r}")
    return b"".join(map(_read, paths))


def _sources(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        if not FOREIGN.intersection(path.relative_to(root).parts):
            yield path


def _read(path: Path) -> bytes:
    """Line ends as \\n: some installers write them otherwise."""
    with os_errors(path):
        return path.read_bytes().replace(b"\r\n", b"\n")
