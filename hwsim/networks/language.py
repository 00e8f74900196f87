"""What language models share: text in windows, perplexity and bits per byte, and what their files must hold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.networks.checkpoint import Entry, read_header, read_tensors, require_sha256
from hwsim.networks.corpus import calibration_text, heldout_text
from hwsim.networks.network import Arithmetic, Floats, Network, frozen
from models.unit import nearest, require

Tokens = NDArray[np.int64]

TEXT_BYTES, CALIBRATION_BYTES = 65536, 8192
CONTEXT = 1024
"""tokens of a window at most"""
BATCH = 8
"""windows of one forward pass, fewer where the vocabulary is large"""
LOGITS = 1 << 24
"""values that one forward pass of an evaluation may return"""
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """A text as tokens, and how many of its bytes each one stands for. Both [N]."""

    tokens: Tokens
    sizes: Tokens


def byte_text(text: bytes) -> Text:
    """Every byte is a token."""
    tokens = np.frombuffer(text, dtype=np.uint8).astype(np.int64)
    return Text(tokens=tokens, sizes=np.ones_like(tokens))


def byte_texts(text_bytes: int) -> tuple[Text, Text]:
    """At most `text_bytes` of held-out text, and calibration text."""
    require_text_bytes(text_bytes)
    return byte_text(heldout_text(text_bytes)), byte_text(calibration_text(CALIBRATION_BYTES))


def require_text_bytes(text_bytes: Any) -> None:
    """InputError unless this much text gives a network something to predict."""
    whole = isinstance(text_bytes, int) and not isinstance(text_bytes, bool)
    require(whole and text_bytes >= 256, f"text_bytes={text_bytes!r} must be a whole number from 256 on")


def require_predictable(name: str, text: Text, context: int) -> None:
    """InputError unless windows of the text have tokens to predict, and these stand for bytes."""
    count = len(text.tokens)
    require(count >= 2, f"{name}: makes {count} tokens of {text.sizes.sum()} bytes of text; at least 2 are needed")
    size = sum(int(part.sizes[:, 1:].sum()) for part in windows(text, context))
    require(size > 0, f"{name}: the {count} tokens of a text, less each window's first, stand for none of its bytes")


def windows(text: Text, context: int) -> list[Text]:
    """Windows of `context` tokens as one text [B, context], and what is left as another of one row, if two or more.

    At least one of both where the text and `context` have two tokens or more.
    """
    full = len(text.tokens) // context * context
    whole = Text(tokens=text.tokens[:full].reshape(-1, context), sizes=text.sizes[:full].reshape(-1, context))
    rest = Text(tokens=text.tokens[None, full:], sizes=text.sizes[None, full:])
    return [part for part in (whole, rest) if part.tokens.shape[0] and part.tokens.shape[1] > 1]


def first_windows(text: Text, context: int, vocabulary: int) -> Tokens:
    """[B, T] tokens to calibrate with: as many windows as one forward pass should hold."""
    return windows(text, context)[0].tokens[: max(1, 16 * LOGITS // (context * vocabulary))]


def evaluator(text: Text, context: int, vocabulary: int) -> Callable[[Network, Arithmetic], dict[str, float]]:
    """A network's `evaluate` over the text: `accuracy` (the share of tokens that it holds for the most likely),
    `perplexity` (per token) and `bits_per_byte`.

    Each window of `context` tokens is predicted on its own, all tokens but its first.
    """
    parts = [
        batch for part in windows(text, context) for batch in _batches(part, max(1, LOGITS // (context * vocabulary)))
    ]
    tokens = sum(part.tokens[:, 1:].size for part in parts)
    size = sum(int(part.sizes[:, 1:].sum()) for part in parts)

    def evaluate(network: Network, arithmetic: Arithmetic) -> dict[str, float]:
        nats, right = 0.0, 0
        for part in parts:
            logits = network.forward(network, part.tokens, arithmetic)
            nats += surprise(logits, part.tokens)
            right += int(np.sum(logits[:, :-1].argmax(axis=-1) == part.tokens[:, 1:]))
        mean = nats / tokens
        return {
            "accuracy": right / tokens,
            "perplexity": math.exp(mean) if mean < 709 else math.inf,  # above 709 the exponential is no float64
            "bits_per_byte": nats / math.log(2) / size,
        }

    return evaluate


def _batches(part: Text, most: int) -> Iterator[Text]:
    for start in range(0, len(part.tokens), min(BATCH, most)):
        rows = slice(start, start + min(BATCH, most))
        yield Text(tokens=part.tokens[rows], sizes=part.sizes[rows])


def surprise(logits: Floats, tokens: Tokens) -> float:
    """Sum over windows and positions of -ln p(next token) in nats; logits [B, T, V], tokens [B, T]."""
    before = logits[:, :-1]
    top = before.max(axis=-1, keepdims=True)
    sums = np.log(np.exp(before - top).sum(axis=-1)) + top[..., 0]
    return float((sums - np.take_along_axis(before, tokens[:, 1:, None], axis=-1)[..., 0]).sum())


def require_tokens(name: str, tokens: Any, vocabulary: int, context: int | None = None) -> Tokens:
    """Tokens [B, T] as integers; InputError where they are none of the vocabulary's or more than the context."""
    found = np.asarray(tokens)
    require(
        found.ndim == 2 and found.dtype.kind in "iu" and found.size > 0, f"{name}: inputs must be whole numbers [B, T]"
    )
    require(
        context is None or found.shape[1] <= context, f"{name}: {found.shape[1]} tokens exceed its context, {context}"
    )
    inside = int(found.min()) >= 0 and int(found.max()) < vocabulary
    require(inside, f"{name}: tokens must be from 0 to {vocabulary - 1}")
    return found.astype(np.int64)


def normed(x: Floats, scale: Floats, eps: float) -> Floats:
    """RMS norm of the last axis (Zhang and Sennrich, 2019)."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def silu(x: Floats) -> Floats:
    """x times the logistic function of x, without overflow."""
    return 0.5 * x * (1.0 + np.tanh(0.5 * x))


def shipped(name: str, digest: str) -> tuple[dict[str, Any], Mapping[str, NDArray[Any]]]:
    """Configuration and tensors of a network that lies beside this file."""
    path = WEIGHTS / f"{name}.safetensors"
    require_sha256(path, digest)
    header = read_header(path)
    return json.loads(header.metadata["config"]), read_tensors(header)


def require_shapes(
    where: str, found: Mapping[str, Entry], wanted: Mapping[str, tuple[int, ...]], extra: Sequence[str]
) -> None:
    """InputError unless the tensors are those wanted, of their shapes, in floating point.

    Others are ignored where their names end in one of `extra`, refused otherwise: they belong to another architecture.
    """
    for name, shape in wanted.items():
        require(name in found, f"{where}: tensor {name!r} is missing")
        held = found[name].shape
        require(held == shape, f"{where}: tensor {name!r} has shape {held}; config.json gives {shape}")
        require(found[name].dtype.kind not in "iub", f"{where}: tensor {name!r} holds {found[name].dtype}, no floats")
    for name in found:
        known = name in wanted or name.endswith(tuple(extra))
        require(known, f"{where}: tensor {name[:80]!r} is none of this architecture; {nearest(name[:80], wanted)}")


def dense(stored: NDArray[Any]) -> Floats:
    """A weight [out, in] as [in, out] in float64, read-only."""
    return frozen(stored.astype(np.float64).T)


def plain(stored: NDArray[Any]) -> Floats:
    """The same in float64, read-only."""
    return frozen(stored.astype(np.float64))
