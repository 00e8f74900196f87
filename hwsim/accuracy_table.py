"""Formats, transforms and quantizers laid beside each other on every network: what each buys, and what it costs online.

One measurement is one `Choice`; finished ones are kept in the cache, by everything that determines them, so that an
interrupted table goes on from there.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hwsim.accuracy import Answer, Choice, measure
from hwsim.files import cache_root, write_atomic
from hwsim.metrics import NETWORK_METRICS
from hwsim.transforms import is_random
from models.unit import InputError


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Formats under their customary name."""

    name: str
    weights: str
    activations: str
    cache: str | None = None


SCHEMES = (
    Scheme(name="W8A8", weights="int8", activations="int8"),
    Scheme(name="W4A8", weights="int4", activations="int8"),
    Scheme(name="W4A4", weights="int4", activations="int4"),
    Scheme(name="W4A4KV2", weights="int4", activations="int4", cache="int2:symmetric=false,group=32"),
    Scheme(name="MXFP4", weights="mxfp4", activations="mxfp4"),
    Scheme(name="NVFP4", weights="nvfp4", activations="nvfp4"),
    Scheme(name="ternary", weights="ternary", activations="int8"),
)
TRANSFORMS = ("none", "hadamard", "quarot", "flatquant", "smoothquant", "smoothquant+hadamard")
QUANTIZERS = ("rtn", "gptq")
CACHED = ("pylm",)
"""networks that keep keys and values"""
MEASURES = {"digits-mlp": "accuracy", "minilm": "cosine", "pylm": "perplexity", "mamba": "perplexity"}
"""network -> the metric that the tables show"""
TEXT_BYTES = 16384
"""of held-out text for language models"""
DRAWS = 3


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a paper found, for the sign and size of an effect."""

    source: str
    scheme: str
    transform: str
    quantizer: str
    ratio: float
    """perplexity over that of the same model in FP16"""


LLAMA2_7B = 5.47
"""WikiText-2 perplexity of LLaMA-2-7B in FP16, as QuaRot and FlatQuant give it"""
FLATQUANT = "FlatQuant (Sun et al. 2024), WikiText-2 perplexities of LLaMA"


def _published(name: str, transform: str, quantizer: str, perplexity: float) -> Published:
    source = FLATQUANT if transform == "flatquant" else f"{name}, as in {FLATQUANT}"
    return Published(
        source=source, scheme="W4A4", transform=transform, quantizer=quantizer, ratio=perplexity / LLAMA2_7B
    )


PUBLISHED = (
    _published("SmoothQuant", "smoothquant", "rtn", 83.12),
    _published("QuaRot", "quarot", "rtn", 8.56),
    _published("QuaRot", "quarot", "gptq", 6.10),
    _published("FlatQuant", "flatquant", "rtn", 5.79),
    _published("FlatQuant", "flatquant", "gptq", 5.78),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement of the table."""

    scheme: str
    choice: Choice
    answer: Answer | None
    reason: str
    """why there is no answer; else empty"""


def cells(networks: Sequence[str] = tuple(MEASURES)) -> Iterator[tuple[Scheme, Choice]]:
    """All that the table measures, network by network."""
    for network in networks:
        for scheme in SCHEMES:
            if scheme.cache and network not in CACHED:
                continue
            for transform in TRANSFORMS:
                yield from ((scheme, _choice(network, scheme, transform, quantizer)) for quantizer in QUANTIZERS)


def _choice(network: str, scheme: Scheme, transform: str, quantizer: str) -> Choice:
    return Choice(
        network=network,
        weights=scheme.weights,
        activations=scheme.activations,
        cache=scheme.cache,
        transform=transform,
        quantizer=quantizer,
        draws=DRAWS if is_random(transform) else 1,
        text_bytes=TEXT_BYTES if MEASURES[network] == "perplexity" else None,
    )


def measure_all(
    wanted: Sequence[tuple[Scheme, Choice]], workers: int, progress: Callable[[int, int, str], None] | None = None
) -> list[Cell]:
    """Every cell, from the cache or measured by `workers` processes of one BLAS thread each.

    One process measures all formats and quantizers of one transform of one network: what they share is made once.
    """
    tasks: dict[tuple[str, str], list[int]] = {}
    for i, (_, choice) in enumerate(wanted):
        tasks.setdefault((choice.network, choice.transform), []).append(i)
    found: dict[int, tuple[Answer | None, str]] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_single_thread) as pool:
        futures = {pool.submit(_all_kept, [wanted[i][1] for i in task]): name for name, task in tasks.items()}
        try:
            for future in as_completed(futures):
                found.update(zip(tasks[futures[future]], future.result(), strict=True))
                if progress:
                    progress(len(found), len(wanted), " ".join(futures[future]))
        finally:
            pool.shutdown(cancel_futures=True)
    return [
        Cell(scheme=scheme.name, choice=choice, answer=found[i][0], reason=found[i][1])
        for i, (scheme, choice) in enumerate(wanted)
    ]


def _all_kept(choices: Sequence[Choice]) -> list[tuple[Answer | None, str]]:
    return [_kept(choice) for choice in choices]


def _single_thread() -> None:
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def _kept(choice: Choice) -> tuple[Answer | None, str]:
    """The answer and why there is none, from the cache where it is there."""
    path = cache_root() / "accuracy" / f"{_key(choice)}.json"
    if path.exists():
        answer, reason = json.loads(path.read_text())
        return (None if answer is None else Answer.from_dict(answer)), reason
    try:
        result: tuple[Answer | None, str] = (measure(choice), "")
    except InputError as error:
        result = (None, str(error))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps([None if result[0] is None else asdict(result[0]), result[1]]))
    return result


def _key(choice: Choice) -> str:
    digest = hashlib.sha256(json.dumps(asdict(choice), sort_keys=True).encode())
    digest.update(_determined_by())
    return digest.hexdigest()


@cache
def _determined_by() -> bytes:
    """Everything that a measurement runs and reads, weights and texts included."""
    import numpy as np

    from hwsim.networks.corpus import calibration_text, heldout_text

    here = Path(__file__).parent
    models = here.parent / "models"
    paths = [here / "accuracy.py", here / "options.py", here / "quantize.py"]
    for folder in ("networks", "transforms", "quantizers"):
        paths += sorted(path for path in (here / folder).rglob("*") if path.suffix in (".py", ".safetensors"))
    paths += sorted(models.glob("*.py"))
    sources = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)
    return sources + np.__version__.encode() + heldout_text(65536) + calibration_text(8192)


# ------------------------------------------------------------------------------------------------- writing


def record(cell: Cell) -> dict[str, Any]:
    """A cell as one flat row; figures are None where there is no answer."""
    answer, choice = cell.answer, cell.choice
    errors = sorted(answer.layer_errors.values()) if answer else []
    return {
        "network": choice.network,
        "scheme": cell.scheme,
        "transform": choice.transform,
        "quantizer": choice.quantizer,
        "seeds": " ".join(str(choice.seed + i) for i in range(choice.draws)),
        **{name: answer.mean.get(name) if answer else None for name in NETWORK_METRICS},
        **{f"{name}_std": (answer.spread or {}).get(name) if answer else None for name in NETWORK_METRICS},
        **{f"float_{name}": answer.float_metrics.get(name) if answer else None for name in NETWORK_METRICS},
        "median_layer_error": errors[len(errors) // 2] if errors else None,
        "largest_layer_error": errors[-1] if errors else None,
        "bits_per_weight": answer.bits_per_weight if answer else None,
        "online_adds_per_token": answer.online.adds if answer else None,
        "online_multiplies_per_token": answer.online.multiplies if answer else None,
        **{f"{name}_format": answer.formats[name] if answer else None for name in ("weights", "activations", "cache")},
        "reason": cell.reason,
    }


def write(found: Sequence[Cell], out: Path, command: str) -> None:
    """`out`.md and `out`.csv."""
    text = io.StringIO()
    rows = [record(cell) for cell in found]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(out.with_suffix(".csv"), text.getvalue())
    write_atomic(out.with_suffix(".md"), page(found, command))


HEAD = """# Accuracy: what formats, transforms and quantizers leave of a network

Written by `{command}`; the CSV file beside this page has every figure, with all metrics of each network, their spread,
layers' errors, bits a weight and what transforms cost online.

- Integer weights are symmetric a column, integer activations asymmetric a token, both by their whole range, but for two
  transforms that clip activations of 4 bits: quarot keeps 0.9 of a token's range, as its paper does, flatquant the best
  share of a grid.
- In float stay: heads of language models, embeddings, norms, attention's own products.
- What quantized layers read is rounded to FP16 first.
- Random transforms: mean and standard deviation over seeds {seeds}.
- Language models: {size} bytes of modules of the Python {python} standard library that no training saw (sha256 {sha}).
- Where a cell is empty, the notes at the end say why.
"""


def page(found: Sequence[Cell], command: str) -> str:
    """The document."""
    import platform

    from hwsim.networks.corpus import heldout_text

    sha = hashlib.sha256(heldout_text(TEXT_BYTES)).hexdigest()[:12]
    seeds = f"1 to {DRAWS}"
    parts = [HEAD.format(command=command, seeds=seeds, size=TEXT_BYTES, python=platform.python_version(), sha=sha)]
    for network in dict.fromkeys(cell.choice.network for cell in found):
        parts.append(_network_table(network, [cell for cell in found if cell.choice.network == network]))
    parts += [_recovered_table(found), _published_table(found), _order(found), _reasons(found)]
    return "\n".join(parts)


def _network_table(network: str, found: Sequence[Cell]) -> str:
    name = MEASURES[network]
    transforms = list(dict.fromkeys(cell.choice.transform for cell in found))
    known = next((cell.answer for cell in found if cell.answer), None)
    exact = f"{known.float_metrics[name]:.4f}" if known else "-"
    lines = [f"## {network}: {name} (float {exact})\n"]
    lines.append(f"| formats | quantizer | {' | '.join(transforms)} |\n| --- | --- |{' ---: |' * len(transforms)}")
    rows: dict[tuple[str, str], list[str]] = {}
    for cell in found:
        rows.setdefault((cell.scheme, cell.choice.quantizer), []).append(_shown(cell, name))
    lines += [f"| {' | '.join((*head, *shown))} |" for head, shown in rows.items()]
    if known and known.notes:
        lines.append("\n" + " ".join(known.notes))
    return "\n".join(lines) + _online(found)


def _online(found: Sequence[Cell]) -> str:
    costs = {c.choice.transform: c.answer.online for c in found if c.answer and c.choice.transform != "none"}
    said = [f"{name} {cost.adds:,} additions, {cost.multiplies:,} multiplications" for name, cost in costs.items()]
    return f"\n\nOnline, a token, all layers: {'; '.join(said)}.\n" if said else "\n"


def _shown(cell: Cell, name: str) -> str:
    if cell.answer is None:
        return ""
    spread = f" ± {cell.answer.spread[name]:.4f}" if cell.answer.spread else ""
    return f"{cell.answer.mean[name]:.4f}{spread}"


def _recovered_table(found: Sequence[Cell]) -> str:
    """How much of a format's loss each transform takes away."""
    at = {_place(cell): cell for cell in found}
    transforms = [name for name in dict.fromkeys(c.choice.transform for c in found) if name != "none"]
    lines = [
        "## What transforms take away of the loss\n",
        "The loss is the distance of the metric to the float model's, of perplexities that of their logarithms; the "
        "share is 1 where a transform leaves no loss and negative where it adds to it. Weights round to nearest. A "
        "dash stands where formats lose less than 0.005 without a transform: shares of nothing are noise.\n",
        f"| formats | network | loss | {' | '.join(transforms)} |\n| --- | --- | ---: |{' ---: |' * len(transforms)}",
    ]
    for scheme, network in dict.fromkeys((c.scheme, c.choice.network) for c in found):
        plain = loss(at[network, scheme, "none", "rtn"])
        if plain is None:
            continue
        left = [loss(at[network, scheme, name, "rtn"]) for name in transforms]
        shares = ["-" if x is None or plain < LEAST_LOSS else f"{1 - x / plain:.2f}" for x in left]
        lines.append(f"| {scheme} | {network} | {plain:.4f} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def _place(cell: Cell) -> tuple[str, str, str, str]:
    """network, formats, transform, quantizer"""
    return cell.choice.network, cell.scheme, cell.choice.transform, cell.choice.quantizer


LEAST_LOSS = 0.005
"""of which a share is worth looking at"""


def loss(cell: Cell) -> float | None:
    """The distance of the network's metric to the float model's, of perplexities that of logarithms."""
    if cell.answer is None:
        return None
    name = MEASURES[cell.choice.network]
    got, exact = cell.answer.mean[name], cell.answer.float_metrics[name]
    return math.log(got / exact) if name == "perplexity" else exact - got


PERPLEXITIES = tuple(network for network, name in MEASURES.items() if name == "perplexity")


def _published_table(found: Sequence[Cell]) -> str:
    """Papers' effects beside ours: perplexity over that of the float model."""
    lines = [
        "## Papers' effects\n",
        "Perplexity over the float model's. The papers measure LLaMA-2-7B on WikiText-2, whose outliers are far larger "
        "than those of the small models trained here; the sign and the order of effects are what can be compared.\n",
        f"| formats | transform | quantizer | paper | {' | '.join(PERPLEXITIES)} | source |\n"
        f"| --- | --- | --- | ---: |{' ---: |' * len(PERPLEXITIES)} --- |",
    ]
    for p in PUBLISHED:
        ours = [_ratio(found, network, p) for network in PERPLEXITIES]
        shown = " | ".join("-" if ratio is None else f"{ratio:.2f}" for ratio in ours)
        lines.append(f"| {p.scheme} | {p.transform} | {p.quantizer} | {p.ratio:.2f} | {shown} | {p.source} |")
    return "\n".join(lines) + "\n"


def _ratio(found: Sequence[Cell], network: str, published: Published) -> float | None:
    wanted = (network, published.scheme, published.transform, published.quantizer)
    for cell in found:
        if _place(cell) == wanted and cell.answer:
            return cell.answer.mean["perplexity"] / cell.answer.float_metrics["perplexity"]
    return None


def _order(found: Sequence[Cell]) -> str:
    """Whether ours are better and worse than each other as the papers' are, pair by pair."""
    lines = []
    for network in PERPLEXITIES:
        for worse, better in pairwise(sorted(PUBLISHED, key=lambda p: -p.ratio)):
            ours = [_ratio(found, network, p) for p in (worse, better)]
            if ours[0] is None or ours[1] is None:
                continue
            names = [f"{p.transform} {p.quantizer}" for p in (worse, better)]
            verdict = "as in the papers" if ours[1] < ours[0] else "**not** as in the papers"
            lines.append(
                f"- {network}: {names[0]} to {names[1]}, papers {worse.ratio:.2f} to {better.ratio:.2f}, "
                f"ours {ours[0]:.3f} to {ours[1]:.3f}: {verdict}.\n"
            )
    return "".join(lines)


def _reasons(found: Sequence[Cell]) -> str:
    reasons: dict[str, list[str]] = {}
    for cell in found:
        if cell.reason:
            reasons.setdefault(cell.reason, []).append(" ".join(_place(cell)))
    lines = "".join(f"- {reason} ({', '.join(places)})\n" for reason, places in reasons.items())
    return f"## Empty cells\n\n{lines}" if lines else ""
