"""What a cell library is called where its text counts and not its place."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

BUILT_IN = "built-in"


@cache
def library_name(liberty: str | None) -> str:
    """By the SHA-256 of its text, wherever its file lies; None is the built-in one. InputError for what is none."""
    if liberty is None:
        return BUILT_IN
    from hwsim.synth.liberty import read_library

    return "sha256:" + hashlib.sha256(read_library(Path(liberty)).text.encode()).hexdigest()
