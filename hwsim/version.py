"""Which hwsim this is."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path


def release() -> str:
    """The version of the installed distribution."""
    return version("hwsim")


@cache
def revision() -> str:
    """Git revision of the sources that run, with `+` where they differ from it; empty where they are in no repository.

    Only the repository that holds these sources counts, not one around an installation.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if changed else "")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", root, "--no-optional-locks", *words],  # noqa: S607 - git stands where the user has it
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()
