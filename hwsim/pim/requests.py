"""Requests of a batch: how long their caches are, in which channel and in which sub-batch they lie."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwsim.pim.banks import attend, logits
from hwsim.pim.params import Decoder, PimParams
from models.unit import nearest, require

LONGEST = 2048
"""tokens of a request, the limit of NeuPIMs' trace generator"""
MOST_REQUESTS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Lognormal lengths of prompts and answers, in tokens: means, and standard deviations of the logarithm."""

    name: str
    prompt: float
    prompt_sigma: float
    answer: float
    answer_sigma: float


DATASETS: Mapping[str, Dataset] = {
    data.name: data
    for data in (
        Dataset(name="sharegpt", prompt=80, prompt_sigma=1.4, answer=296, answer_sigma=0.6),
        Dataset(name="alpaca", prompt=12, prompt_sigma=0.35, answer=56, answer_sigma=0.8),
    )
}
"""Stand-ins for the data sets of the same names, which are not here. That lengths are lognormal is an assumption. So
are the means, which could not be checked against the paper's text. The deviations of answers give the coefficient of
variation of some 240 neighbouring rows in each of the tables of token counts published with NeuPIMs (0.68 and 0.96)."""


def dataset(name: str) -> Dataset:
    """The data set of that name; InputError with the nearest one otherwise."""
    require(name in DATASETS, f"no data set {name!r}; {nearest(name, DATASETS)}")
    return DATASETS[name]


def sample(data: Dataset, batch: int, seed: int) -> tuple[int, ...]:
    """Lengths of the requests in a batch that serves continuously, at a moment long after the start.

    A request stays for as many iterations as its answer has tokens, so long answers are met more often: answers are
    drawn in proportion to their length (a lognormal's mean of the logarithm rises by sigma^2), and the part already
    written is uniform. Cut off at `LONGEST`.
    """
    require(1 <= batch <= MOST_REQUESTS, f"batch must be from 1 to {MOST_REQUESTS}, not {batch}")
    rng = np.random.default_rng(seed)
    prompt = _lognormal(rng, data.prompt, data.prompt_sigma, batch)
    answer = _lognormal(rng, data.answer, data.answer_sigma, batch) * np.exp(data.answer_sigma**2)
    tokens = np.ceil(prompt + answer * rng.random(batch)).astype(int)
    return tuple(np.clip(tokens, 1, LONGEST).tolist())


def _lognormal(rng: np.random.Generator, mean: float, sigma: float, count: int) -> np.ndarray:
    return mean * np.exp(rng.normal(-(sigma**2) / 2, sigma, count))


def check_lengths(lengths: Sequence[int]) -> tuple[int, ...]:
    """The lengths as a tuple; InputError where there is none or one is no whole number from 1 to `LONGEST`."""
    require(1 <= len(lengths) <= MOST_REQUESTS, f"from 1 to {MOST_REQUESTS} requests make a batch, not {len(lengths)}")
    for place, length in enumerate(lengths):
        whole = isinstance(length, (int, np.integer)) and not isinstance(length, bool)
        rule = f"request {place}: its length must be a whole number from 1 to {LONGEST}"
        require(whole and 1 <= length <= LONGEST, f"{rule}, not {length!r}")
    return tuple(map(int, lengths))


def load(model: Decoder, pim: PimParams, length: int) -> int:
    """Cycles of a request's attention in its channel: what packing estimates."""
    shape = (pim, model.device_heads, model.head_dim, length)
    return logits(*shape).cycles + attend(*shape).cycles


Packing = Callable[[Sequence[int], int], list[int]]
"""(loads, channels) -> the channel of each"""


def round_robin(loads: Sequence[int], channels: int) -> list[int]:
    """Requests go to the channels in turn."""
    return [i % channels for i in range(len(loads))]


def min_load(loads: Sequence[int], channels: int) -> list[int]:
    """Greedy packing of NeuPIMs: the longest request first, each to the channel with the least load so far.

    This is Graham's longest processing time first: no channel's load exceeds 4/3 of the best packing's largest.
    """
    heap = [(0, channel) for channel in range(channels)]
    placed = [0] * len(loads)
    for request in sorted(range(len(loads)), key=lambda i: -loads[i]):
        total, channel = heapq.heappop(heap)
        placed[request] = channel
        heapq.heappush(heap, (total + loads[request], channel))
    return placed


def channel_loads(loads: Sequence[int], placed: Sequence[int], channels: int) -> list[int]:
    """The load of each channel."""
    totals = [0] * channels
    for amount, channel in zip(loads, placed, strict=True):
        totals[channel] += amount
    return totals


def halves(loads: Sequence[int], placed: Sequence[int], channels: int) -> list[int]:
    """The sub-batch, 0 or 1, of each request.

    Every channel's requests are dealt out from the longest down in turn. Channels with an odd number give the extra
    one to the sub-batch that has fewer so far, so that the two differ by one request at most.
    """
    parts = [0] * len(loads)
    counts = [0, 0]
    for channel in range(channels):
        here = sorted((i for i, c in enumerate(placed) if c == channel), key=lambda i: -loads[i])
        first = int(counts[1] < counts[0])
        for turn, request in enumerate(here):
            parts[request] = (first + turn) % 2
            counts[parts[request]] += 1
    return parts
