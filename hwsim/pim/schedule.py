"""Layers of a decoder run on NPU and memory, transaction by transaction, in integer cycles.

A host transfer holds a channel's data bus; a product in the banks holds its PIM side. With one row buffer a bank
(blocked mode) both are one resource: a channel serves the host or computes. With two they go on together, and the host
loses the cycles that `banks.row_stolen` counts, spread evenly over the product. A kernel's operands come in pieces
through two buffers, so that a piece is loaded under the one at work. A sub-batch holds the NPU from the end of its
attention to that of the next QKV product: two that took turns kernel by kernel would reach their attention together.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hwsim.pim.banks import Gemv, attend, finish, logits, up, worked
from hwsim.pim.npu import Kernel, after_attention, attention, before_attention, vector_cycles
from hwsim.pim.params import WORD_BYTES, Decoder, Machine

if TYPE_CHECKING:
    import simpy

PIECES = 8
"""into which a kernel's operands are cut"""

Steps = Generator[Any, Any, None]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Something that a track did from `start` up to, not including, `end`; refresh falls inside."""

    track: str
    name: str
    start: int
    end: int
    amount: int
    """cycles of work, refresh and lost cycles left out"""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request's attention in its channel."""

    channel: int
    logits: Gemv
    attend: Gemv
    softmax_cycles: int
    sum_cycles: int
    """to add up the parts into which its values were cut"""
    probability_bytes: int
    output_bytes: int


@dataclass(frozen=True, kw_only=True)
class SubBatch:
    """A layer's work for some of a batch's requests. On the NPU alone, attention is a kernel among the others."""

    before: tuple[Kernel, ...]
    requests: tuple[Request, ...]
    after: tuple[Kernel, ...]

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return self.before + self.after


def request(machine: Machine, model: Decoder, length: int, channel: int) -> Request:
    """A request with so many tokens in its cache."""
    heads, dim = model.device_heads, model.head_dim
    parts = up(length, machine.pim.page_words)
    return Request(
        channel=channel,
        logits=logits(machine.pim, heads, dim, length),
        attend=attend(machine.pim, heads, dim, length),
        softmax_cycles=vector_cycles(machine.npu, "softmax", heads * length),
        sum_cycles=vector_cycles(machine.npu, "add", (parts - 1) * heads * dim),
        probability_bytes=heads * length * WORD_BYTES,
        output_bytes=heads * dim * WORD_BYTES,
    )


def on_pim(machine: Machine, model: Decoder, lengths: Sequence[int], channels: Sequence[int]) -> SubBatch:
    """Requests of these lengths, their caches in these channels."""
    return SubBatch(
        before=before_attention(machine.npu, model, len(lengths)),
        requests=tuple(request(machine, model, n, c) for n, c in zip(lengths, channels, strict=True)),
        after=after_attention(machine.npu, model, len(lengths)),
    )


def on_npu(machine: Machine, model: Decoder, lengths: Sequence[int]) -> SubBatch:
    """Requests of these lengths, their caches spread over all channels."""
    before = (*before_attention(machine.npu, model, len(lengths)), attention(machine.npu, model, lengths))
    return SubBatch(before=before, requests=(), after=after_attention(machine.npu, model, len(lengths)))


@dataclass
class Channel:
    """A channel while time runs."""

    host: simpy.Resource
    pim: simpy.Resource
    stolen: int = 0
    """bus cycles that products which have ended took from the host"""
    running: tuple[int, Gemv] | None = None
    """the product at work and when it began"""


@dataclass
class Bench:
    """The machine while time runs."""

    env: simpy.Environment
    machine: Machine
    channels: tuple[Channel, ...]
    npu: simpy.Resource
    vector: simpy.Resource
    slices: list[Slice] = field(default_factory=list)

    def record(self, track: str, name: str, start: int, amount: int) -> None:
        self.slices.append(Slice(track=track, name=name, start=start, end=self.env.now, amount=amount))


def bench(machine: Machine, row_buffers: int) -> Bench:
    """A machine at rest whose banks have so many row buffers, 1 or 2."""
    import simpy

    env = simpy.Environment()
    channels = []
    for _ in range(machine.pim.channels):
        host = simpy.Resource(env)
        channels.append(Channel(host=host, pim=host if row_buffers == 1 else simpy.Resource(env)))
    npu, vector = simpy.Resource(env), simpy.Resource(env)
    return Bench(env=env, machine=machine, channels=tuple(channels), npu=npu, vector=vector)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What happened: when each sub-batch ended each layer, and every slice."""

    ends: tuple[tuple[int, ...], ...]
    slices: tuple[Slice, ...]
    elapsed: int

    @property
    def period(self) -> tuple[int, int]:
        """Cycles and layers between the ends of the first and the last layer of the sub-batch that began first.

        The other one is at work all that time, as it is in a long run; what follows, alone, does not count.
        """
        return self.ends[0][-1] - self.ends[0][0], len(self.ends[0]) - 1


def simulate(machine: Machine, parts: Sequence[SubBatch], row_buffers: int, layers: int) -> Run:
    """`layers` equal layers one after another, all sub-batches side by side."""
    at = bench(machine, row_buffers)
    ends: list[list[int]] = [[] for _ in parts]
    for part, reached in zip(parts, ends, strict=True):
        at.env.process(_layers(at, part, layers, reached))
    at.env.run()
    return Run(ends=tuple(map(tuple, ends)), slices=tuple(at.slices), elapsed=int(at.env.now))


def _layers(at: Bench, part: SubBatch, layers: int, reached: list[int]) -> Steps:
    with at.npu.request() as grant:
        yield grant
        yield from _kernels(at, part.before)
    for left in reversed(range(layers)):
        yield from _attention(at, part.requests)
        with at.npu.request() as grant:
            yield grant
            yield from _kernels(at, part.after)
            reached.append(int(at.env.now))
            if left:
                yield from _kernels(at, part.before)


# --- the NPU ---------------------------------------------------------------------------------------------------------


def share(total: int, parts: int) -> list[int]:
    """`total` as a sum of `parts` whole numbers that differ by one at most."""
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]


def _kernels(at: Bench, kernels: Sequence[Kernel]) -> Steps:
    """One after another: each reads what the one before has written."""
    for kernel in kernels:
        yield from _kernel(at, kernel)


def _kernel(at: Bench, kernel: Kernel) -> Steps:
    loaded = [at.env.event() for _ in range(PIECES)]
    freed = [at.env.event() for _ in range(PIECES)]
    at.env.process(_load(at, kernel, loaded, freed))
    writes = []
    sizes = zip(share(kernel.array_cycles, PIECES), share(kernel.vector_cycles, PIECES), strict=True)
    written = share(kernel.written_bytes, PIECES)
    for i, (array, vector) in enumerate(sizes):
        yield loaded[i]
        yield from _compute(at, kernel.name, array, vector)
        freed[i].succeed()
        writes.append(at.env.process(_move(at, kernel.name, written[i])))
    yield at.env.all_of(writes)


def _load(at: Bench, kernel: Kernel, loaded: Sequence[simpy.Event], freed: Sequence[simpy.Event]) -> Steps:
    for i, size in enumerate(share(kernel.bytes - kernel.written_bytes, PIECES)):
        if i >= 2:
            yield freed[i - 2]
        yield from _move(at, kernel.name, size)
        loaded[i].succeed()


def _compute(at: Bench, name: str, array: int, vector: int) -> Steps:
    """A piece on the arrays and, beside it, on the vector units."""
    beside = at.env.process(_vector(at, name, vector))
    if array:
        start = at.env.now
        yield at.env.timeout(array)
        at.record("arrays", name, start, array)
    yield beside


def _vector(at: Bench, name: str, cycles: int) -> Steps:
    if not cycles:
        return
    with at.vector.request() as grant:
        yield grant
        start = at.env.now
        yield at.env.timeout(cycles)
        at.record("vector", name, start, cycles)


# --- the memory ------------------------------------------------------------------------------------------------------


def _move(at: Bench, name: str, size: int) -> Steps:
    """`size` bytes, spread over all channels."""
    cycles = share(up(size, at.machine.pim.bus_bytes), at.machine.pim.channels)
    yield at.env.all_of([at.env.process(_transfer(at, c, name, amount)) for c, amount in enumerate(cycles) if amount])


def _transfer(at: Bench, place: int, name: str, cycles: int) -> Steps:
    """So many cycles on one channel's data bus, and as many more as products take from it meanwhile."""
    channel, env = at.channels[place], at.env
    with channel.host.request() as grant:
        yield grant
        start, left = env.now, cycles
        while left:
            before = _stolen(at, channel)
            yield env.timeout(finish(at.machine.pim, env.now, left) - env.now)
            left = _stolen(at, channel) - before
        at.record(f"bus {place}", name, start, cycles)


def _stolen(at: Bench, channel: Channel) -> int:
    """Bus cycles that products have taken up to now."""
    if channel.running is None:
        return channel.stolen
    start, product = channel.running
    return channel.stolen + product.stolen * worked(at.machine.pim, start, at.env.now) // product.cycles


def _product(at: Bench, place: int, name: str, product: Gemv) -> Steps:
    channel, env = at.channels[place], at.env
    with channel.pim.request() as grant:
        yield grant
        start = env.now
        channel.running = (start, product)
        yield env.timeout(finish(at.machine.pim, start, product.cycles) - start)
        channel.running = None
        channel.stolen += product.stolen
        at.record(f"pim {place}", name, start, product.cycles)


# --- attention in the memory -----------------------------------------------------------------------------------------


def _attention(at: Bench, requests: Sequence[Request]) -> Steps:
    """All channels at once; a channel computes the scores of all its requests, then their outputs in that order."""
    queues: dict[int, list[Request]] = {}
    for one in requests:
        queues.setdefault(one.channel, []).append(one)
    yield at.env.all_of([at.env.process(_channel(at, queue)) for queue in queues.values()])


def _channel(at: Bench, requests: Sequence[Request]) -> Steps:
    probabilities = []
    for one in requests:
        yield from _product(at, one.channel, "logits", one.logits)
        softmax = _result(at, one.channel, "softmax", one.softmax_cycles, one.probability_bytes)
        probabilities.append(at.env.process(softmax))
    outputs = []
    for one, ready in zip(requests, probabilities, strict=True):
        yield ready
        yield from _product(at, one.channel, "attend", one.attend)
        outputs.append(at.env.process(_result(at, one.channel, "sum", one.sum_cycles, one.output_bytes)))
    yield at.env.all_of(outputs)


def _result(at: Bench, place: int, name: str, cycles: int, size: int) -> Steps:
    """Work on a product's results in the vector units; what comes of it goes back into the same channel."""
    yield from _vector(at, name, cycles)
    yield from _transfer(at, place, name, up(size, at.machine.pim.bus_bytes))
