"""What a decoder layer asks of the NPU, kernel by kernel; and the same kernels on a GPU's roofline.

Activations pass from kernel to kernel through memory; residual additions and GELU are done on a product's results as
they leave the arrays. Not counted on any machine: embedding, the last product onto the vocabulary, and the exchange
between devices of one tensor-parallel group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwsim.pim.banks import up
from hwsim.pim.params import WORD_BYTES, Decoder, GpuParams, NpuParams
from hwsim.workloads.graph import VECTOR_KINDS
from models.catalog import unit_of


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One step on the NPU: its bytes over the data buses, its work and its cycles with all operands at hand."""

    name: str
    weight_bytes: int = 0
    cache_bytes: int = 0
    read_bytes: int = 0
    """activations"""
    written_bytes: int = 0
    macs: int = 0
    array_cycles: int = 0
    vector_cycles: int = 0

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.read_bytes + self.written_bytes


def vector_cycles(npu: NpuParams, kind: str, elements: int) -> int:
    """All lanes at work on so many elements."""
    return up(elements * VECTOR_KINDS[kind].ops, npu.lanes)


def product_cycles(npu: NpuParams, m: int, k: int, n: int) -> int:
    """[m, k] @ [k, n], the columns dealt out to the arrays; the better of two orders of an array's tiles.

    Along K first, a tile waits for the sums of the one before. Along N first, sums lie in accumulators until the next
    tile of their columns, which is late enough where the columns' other tiles take longer than a sum needs to leave.
    """
    mine, timing = up(n, npu.arrays), unit_of(npu.array).timing
    along_k = int(timing(npu.array, M=m, K=k, N=mine).total_cycles)
    tiles = up(mine, npu.cols)
    if (tiles - 1) * max(m, npu.rows) < npu.rows + npu.cols:
        return along_k
    # each tile as one of a product that is one fold deep
    return min(along_k, int(timing(npu.array, M=m, K=npu.rows, N=up(k, npu.rows) * tiles * npu.cols).total_cycles))


def product(npu: NpuParams, name: str, shape: tuple[int, int, int], epilogue: str = "") -> Kernel:
    """A product of activations and weights, shape M, K, N, with elementwise work on its results."""
    m, k, n = shape
    return Kernel(
        name=name,
        weight_bytes=k * n * WORD_BYTES,
        read_bytes=m * (k + n * (epilogue == "add")) * WORD_BYTES,
        written_bytes=m * n * WORD_BYTES,
        macs=m * k * n,
        array_cycles=product_cycles(npu, m, k, n),
        vector_cycles=vector_cycles(npu, epilogue, m * n) if epilogue else 0,
    )


def norm(npu: NpuParams, name: str, batch: int, width: int) -> Kernel:
    """Layer normalisation of every request's activations."""
    moved = batch * width * WORD_BYTES
    cycles = vector_cycles(npu, "layernorm", batch * width)
    return Kernel(name=name, read_bytes=moved, written_bytes=moved, vector_cycles=cycles)


def before_attention(npu: NpuParams, model: Decoder, batch: int) -> tuple[Kernel, ...]:
    """Of one layer, for `batch` requests with one token each."""
    qkv = product(npu, "qkv", (batch, model.width, 3 * model.device_width))
    return norm(npu, "norm 1", batch, model.width), qkv


def after_attention(npu: NpuParams, model: Decoder, batch: int) -> tuple[Kernel, ...]:
    """Of one layer, for `batch` requests with one token each."""
    return (
        product(npu, "projection", (batch, model.device_width, model.width), "add"),
        norm(npu, "norm 2", batch, model.width),
        product(npu, "ffn 1", (batch, model.width, 4 * model.device_width), "gelu"),
        product(npu, "ffn 2", (batch, 4 * model.device_width, model.width), "add"),
    )


def attention(npu: NpuParams, model: Decoder, lengths: Sequence[int]) -> Kernel:
    """The attention of a whole batch on the NPU: nothing is shared by requests, so every cache is read.

    Keys and values are cut into tiles of an array's size. Each is a product with one vector and none waits for
    another's sums: vector units add up those of one result. Tiles are dealt out to the arrays and follow each other
    there without a pause.
    """
    heads, dim, tokens = model.device_heads, model.head_dim, sum(lengths)
    high, wide = up(dim, npu.rows), up(dim, npu.cols)
    tiles = heads * sum(high * up(n, npu.cols) + wide * up(n, npu.rows) for n in lengths)
    added = heads * sum((high - 1) * n + (up(n, npu.rows) - 1) * dim for n in lengths)
    moved = len(lengths) * model.device_width * WORD_BYTES
    return Kernel(
        name="attention",
        cache_bytes=tokens * model.token_cache_bytes,
        read_bytes=moved,
        written_bytes=moved,
        macs=2 * tokens * model.device_width,
        array_cycles=product_cycles(npu, 1, npu.rows, tiles * npu.cols),
        vector_cycles=vector_cycles(npu, "add", added) + vector_cycles(npu, "softmax", tokens * heads),
    )


def roofline_ns(gpu: GpuParams, kernel: Kernel) -> float:
    """Nanoseconds of a kernel on a GPU that always runs at one of its two peaks."""
    return max(2 * kernel.macs / gpu.gflops, kernel.bytes / gpu.gbytes)
