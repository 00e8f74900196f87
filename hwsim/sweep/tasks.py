"""What a study computes: tasks, which several points may share, and how a point's row follows from them.

A task is plain data: a kind, inputs and the version of what computes it. Its key is the hash of these, so that equal
tasks are one, and that a change of the code gives new tasks to exactly the points that it concerns.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hwsim.sweep.point import Point

DONE = "done"
REFUSED = "refused"
"""the evaluation says why this point cannot be evaluated (InputError)"""
ERROR = "error"
"""the evaluation raised something else: a defect"""
TIMEOUT = "timeout"
MEMORY = "memory"
CRASHED = "crashed"
"""the process that evaluated ended"""
STATUSES = (DONE, REFUSED, ERROR, TIMEOUT, MEMORY, CRASHED)

Results = Mapping[str, Mapping[str, Any]]
"""name of a task within its point -> what it gave"""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One evaluation."""

    kind: str
    """name of a function of the `Evaluation`"""
    inputs: Mapping[str, Any]
    """plain data: all that the result depends on besides code and tools"""
    version: str
    """hash of the code and the versions of the tools that compute it"""
    affinity: str = ""
    """tasks of the same one share intermediate results within a process: they are best computed in one. It is no part
    of what the task is"""

    @cached_property
    def key(self) -> str:
        """SHA-256 in hexadecimal."""
        return digest({"kind": self.kind, "inputs": self.inputs, "version": self.version})


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How points are evaluated, made by a function at the top of an importable module, by whose name workers find it.

    That function takes the study's settings, plain data (`parts`: which evaluations are wanted; `liberty`: path of a
    cell library or None).
    """

    functions: Mapping[str, Callable[..., Mapping[str, Any]]]
    """kind -> function of a task's inputs, as keyword arguments, that gives plain data; it runs in a worker"""
    check: Callable[[Point], Any]
    """what the point is made of, for people; InputError for one that cannot be evaluated"""
    plan: Callable[[Point, Results], Mapping[str, Task]]
    """name -> task: all that the point needs as far as the results of the first ones tell. It is called again with
    their results until it names none that is not known"""
    combine: Callable[[Point, Results], Mapping[str, Any]]
    """metric name -> number, and detail that is no number beside, from the results of all tasks"""
    version: Callable[[Point], str]
    """of all that can change the point's row: hash of code, tools and settings"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a task ended."""

    key: str
    status: str
    """one of `STATUSES`"""
    message: str = ""
    """why it failed, one line"""
    result: Mapping[str, Any]
    """empty where it failed"""
    wall_s: float
    peak_memory_bytes: int | None = None
    traceback: str = ""


def digest(value: Any) -> str:
    """SHA-256, in hexadecimal, of plain data."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def evaluation_at(reference: str, settings: Mapping[str, Any]) -> Evaluation:
    """What the function of that `module:name` makes of the settings."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)(settings)
