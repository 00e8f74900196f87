"""Versions of code: what a computation consists of, found by reading imports, without importing anything.

A version is a hash over the sources of some modules and of all of this project's that they import, directly or not, so
that it changes with every line that could change a result and with no other file.

- Imports count wherever they stand, in functions too, but not those for type checkers alone.
- A package through which a module is only reached counts as what importing runs: without the bodies of its functions.
- A registry says by name what there is and imports it when it is asked for. It counts without its table and without
  what its functions import: whoever computes with an entry names that entry, and its module, himself.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

from models.unit import require

PACKAGES = ("hwsim", "models", "rtl")
ROOT = Path(__file__).resolve().parents[2]
"""the folder of these packages"""

REGISTRIES: Mapping[str, tuple[str, ...]] = {
    "hwsim": ("__version__", "__all__", "_HOMES"),
    "hwsim.evaluation": (),
    "hwsim.networks": ("NETWORKS",),
    "hwsim.quantizers": ("QUANTIZERS",),
    "hwsim.transforms": ("TRANSFORMS",),
    "models.catalog": ("UNITS",),
}
"""module -> the names that it assigns its tables to"""

ABSENT = "absent"
"""version of a distribution that is not installed"""


def code_version(modules: Iterable[str], root: Path = ROOT) -> str:
    """SHA-256, in hexadecimal, over names and sources of the closure of these modules below `root`."""
    return _version(tuple(sorted(set(modules))), root)


def closure(modules: Iterable[str], root: Path = ROOT) -> frozenset[str]:
    """The modules of this project that these consist of, themselves and packages on the way included.

    InputError for a module that is not there.
    """
    return frozenset(_closure(tuple(sorted(set(modules))), root))


@cache
def tool_versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Installed version of each distribution."""
    return {name: _tool(name) for name in distributions}


def _tool(name: str) -> str:
    try:
        return installed(name)
    except PackageNotFoundError:
        return ABSENT


@cache
def _version(modules: tuple[str, ...], root: Path) -> str:
    digest = hashlib.sha256()
    for name in sorted(_closure(modules, root)):
        digest.update(f"{name}\0{_parsed(name, root).digest}\n".encode())
    return digest.hexdigest()


@cache
def _closure(modules: tuple[str, ...], root: Path) -> Collection[str]:
    for name in modules:
        require(_file(name, root) is not None, f"{root}: no module {name!r}")
    whole: set[str] = set()
    passed: set[str] = set()
    todo = [(name, True) for name in modules]
    while todo:
        name, used = todo.pop()
        if name in whole or (name in passed and not used):
            continue
        (whole if used else passed).add(name)
        source = _parsed(name, root)
        todo += [(found, True) for found in (source.whole if used else source.at_import)]
        todo += [(package, False) for package in _packages(name)]
    return whole | passed


def _packages(name: str) -> Iterator[str]:
    """The packages around a module."""
    while name := name.rpartition(".")[0]:
        yield name


# ------------------------------------------------------------------------------------------------- one source


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What a file says of itself."""

    digest: str
    at_import: frozenset[str]
    """modules of ours whose names importing it takes"""
    whole: frozenset[str]
    """those that its functions take as well"""


@cache
def _parsed(name: str, root: Path) -> _Source:
    file = _file(name, root)
    assert file is not None
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text, str(file))
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    at_import = _ours(_imports(tree, bodies=False), package, root)
    whole = at_import if name in REGISTRIES else _ours(_imports(tree, bodies=True), package, root)
    counted = _without(text, tree, REGISTRIES.get(name, ()))
    return _Source(digest=hashlib.sha256(counted.encode()).hexdigest(), at_import=at_import, whole=whole)


def _without(text: str, tree: ast.Module, tables: Collection[str]) -> str:
    """The text without the lines of these assignments."""
    lines = text.splitlines(keepends=True)
    for node in tree.body:
        if any(target in tables for target in _targets(node)):
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "".join(lines)


def _targets(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _imports(tree: ast.AST, *, bodies: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import, those for type checkers left out, with those in bodies of functions or without."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from _imports(ast.Module(body=[other], type_ignores=[]), bodies=bodies)
        elif bodies or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(node, bodies=bodies)


def _ours(imports: Iterable[ast.Import | ast.ImportFrom], package: str, root: Path) -> frozenset[str]:
    """The modules of this project that these statements of a module in `package` take names from."""
    named = (name for node in imports for name in _named(node, package))
    return frozenset(name for name in named if name.partition(".")[0] in PACKAGES and _file(name, root) is not None)


def _named(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    """What could be modules: of `from a import b` a, and a.b."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parts = package.split(".")
        base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
    yield base
    yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def _file(name: str, root: Path) -> Path | None:
    """The source of a module below `root`; None where there is none."""
    place = root.joinpath(*name.split("."))
    candidates = (place.with_name(place.name + ".py"), place / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)
