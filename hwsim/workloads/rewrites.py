"""Rewrites of a layer graph by name, as people write them on the command line and in files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from hwsim.options import parse_options
from hwsim.workloads import factorise, online
from hwsim.workloads.graph import Graph
from models.unit import nearest, require

REWRITES: Mapping[str, Callable[..., Graph]] = {
    "low-rank": factorise.low_rank,
    "kronecker": factorise.kronecker,
    "monarch": factorise.monarch,
    "btt": factorise.block_tensor_train,
    "hadamard": online.transform,
    "quantize": online.quantize,
}


def apply(graph: Graph, text: str) -> Graph:
    """The rewrites that `text` names, one after another: `low-rank:rank=64,layers=*mlp*+hadamard:block=64+quantize`.

    Options are the arguments of the function of that name in `REWRITES`. A later rewrite sees what earlier ones made.
    InputError for unknown names and options, options that are missing, and what a rewrite refuses.
    """
    for part in text.split("+"):
        name, options = parse_options("rewrite", part.strip())
        require(name in REWRITES, f"no rewrite {name!r}; {nearest(name, REWRITES)}")
        graph = REWRITES[name](graph, **_arguments(name, options))
    return graph


def _arguments(name: str, options: Mapping[str, object]) -> dict[str, object]:
    known = dict(inspect.signature(REWRITES[name]).parameters)
    del known["graph"]
    for option in options:
        require(option in known, f"rewrite {name}: no option {option!r}; {nearest(option, known)}")
    for option, parameter in known.items():
        needed = parameter.default is parameter.empty
        require(option in options or not needed, f"rewrite {name}: {option} is missing; write {name}:{option}=...")
    # a pattern of digits alone has been read as a number
    return {option: str(value) if option == "layers" else value for option, value in options.items()}
