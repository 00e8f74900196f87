"""Networks as layer graphs: importers, a zoo of published shapes, and rewrites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwsim.workloads.graph import Graph
from models.unit import InputError, nearest

LLM_OPTIONS = ("phase", "batch", "tokens", "context")


def load_workload(
    text: str,
    *,
    phase: str | None = None,
    batch: int | None = None,
    tokens: int | None = None,
    context: int | None = None,
    skip_unsupported: bool = False,
    allow_external: bool = False,
    rewrite: str | None = None,
) -> Graph:
    """The network that `text` names: an .onnx file, a SCALE-Sim topology .csv, a Hugging Face config.json or the folder
    that holds it, or an entry of the zoo. `rewrite` as in `hwsim.workloads.rewrites.apply`.

    InputError for what is none of these, and for options that such a network does not have.
    """
    options = {"phase": phase, "batch": batch, "tokens": tokens, "context": context}
    graph = _load(
        text, {name: value for name, value in options.items() if value is not None}, skip_unsupported, allow_external
    )
    if rewrite is not None:
        from hwsim.workloads.rewrites import apply

        graph = apply(graph, rewrite)
    return graph


def _load(text: str, options: dict[str, Any], skip_unsupported: bool, allow_external: bool) -> Graph:
    from hwsim.workloads import zoo

    path = Path(text)
    if path.suffix == ".onnx":
        from hwsim.workloads.onnx_file import load_onnx

        _only(path, options, ("batch",))
        return load_onnx(path, skip_unsupported=skip_unsupported, allow_external=allow_external, **options)
    if path.suffix == ".csv":
        from hwsim.workloads.scalesim import load_topology

        _only(path, options, ())
        return load_topology(path)
    if path.suffix == ".json" or path.is_dir():
        from hwsim.workloads.huggingface import load_config

        return load_config(path, **options)
    if text in zoo.ZOO:
        return zoo.get(text, **options)
    kinds = "an .onnx file, a SCALE-Sim .csv, a config.json or its folder, or a name of the zoo"
    raise InputError(f"no network {text!r}: {kinds}; {nearest(text[:64], zoo.ZOO)}")


def _only(path: Path, options: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in options:
        if name not in known:
            raise InputError(f"{path}: --{name} is for language models; leave it out")
