"""Dense layers as products of smaller matrices: rewrites of a `Graph`.

A rewrite takes the `Gemm` layers with a weight of their own whose names match a pattern (`fnmatch`, case counts) and
puts products of two factors in their place. The last new layer writes the old layer's output and reads what its
epilogue read; the old weight goes unless another layer reads it. Layers that share a weight share its factors.

How the new layers lie in memory, which decides what must be moved:

- a Gemm of `batch` products reads A as [M, batch, K], W as [batch, K, N] and writes [M, batch, N], each row-major: its
  products lie side by side in a row, so that a block-diagonal matrix needs no permutation;
- a Vector layer `copy` exchanges the second and the third axis of the tensor that it reads, whose shape says what they
  are. It stands where one product does not write what the next one reads, and nowhere else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

from hwsim.workloads.graph import Gemm, Graph, Layer, Role, Tensor, Vector
from models.unit import InputError, nearest, require


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One of the layers that stand for a dense one."""

    part: str
    """behind the old layer's name"""
    op: Gemm | Vector
    weight: tuple[int, ...] | None
    """shape of the factor that it reads"""
    shape: tuple[int, ...]
    """of what it writes"""


_Steps = Callable[[str, Gemm], tuple[_Step, ...]]
"""What stands for a product; the text is where it is, for an InputError."""


def low_rank(graph: Graph, rank: int, layers: str = "*") -> Graph:
    """W[K, N] = D[K, rank] U[rank, N]: M rank (K + N) multiply-accumulates instead of M K N.

    InputError for a rank that is not from 1 to min(K, N), and where no layer matches.
    """
    return _rewrite(graph, layers, partial(_low_rank, rank), f"low-rank of rank {rank}")


def kronecker(graph: Graph, k1: int, n1: int, layers: str = "*") -> Graph:
    """W = L (x) R, the Kronecker product of L[k1, n1] and R[K / k1, N / n1].

    A row x, read as a matrix X[k1, K / k1], becomes L^T X R: R first, M k1 rows; then L, M N / n1 rows; a transposition
    after each. InputError for k1 that does not divide K, n1 that does not divide N, and where no layer matches.
    """
    return _rewrite(graph, layers, partial(_kronecker, k1, n1), f"Kronecker with a left factor of {k1} x {n1}")


def monarch(graph: Graph, blocks: int, layers: str = "*") -> Graph:
    """W^T = P L P^T R with block-diagonal L and R of `blocks` blocks (T. Dao et al., "Monarch", ICML 2022, section 3).

    For a rectangular W, each block of R takes K / blocks elements to q and each of L takes q to N / blocks, with
    q = min(K, N) / blocks. P^T moves element i blocks + l to l q + i; P moves result l N / blocks + i to i blocks + l.
    Each is a copy.
    InputError for a number of blocks that does not divide K and N, and where no layer matches.
    """
    return _rewrite(graph, layers, partial(_monarch, blocks), f"Monarch of {blocks} blocks")


def block_tensor_train(
    graph: Graph, rank: int, layers: str = "*", k1: int | None = None, n1: int | None = None
) -> Graph:
    """Block tensor-train of two cores (S. Qiu et al., "Compute Better Spent", ICML 2024, section 2).

    With K = k1 k2 and N = n1 n2, W[(c, d), (a, b)] = sum over s < rank of R[c, d, b, s] L[b, c, s, a]: k1 products with
    R's blocks [k2, n2 rank], then n2 products with L's blocks [k1 rank, n1]. For rank 1 and equal sizes it is Monarch.
    Where `k1` or `n1` is not given it is the divisor nearest to the square root (the smaller of two as near).
    InputError for a rank that is not from 1 to min(k2, n1), sizes that do not divide, and where no layer matches.
    """
    return _rewrite(graph, layers, partial(_block_tensor_train, rank, k1, n1), f"block tensor-train of rank {rank}")


def _rewrite(graph: Graph, pattern: str, steps: _Steps, what: str) -> Graph:
    chosen = {layer.name for layer in graph.layers if fnmatchcase(layer.name, pattern) and _is_dense(graph, layer)}
    _require_any(graph, pattern, chosen)
    tensors, layers = dict(graph.tensors), []
    for layer in graph.layers:
        layers += _factors(layer, steps, tensors) if layer.name in chosen else [layer]
    used = {tensor for layer in layers for tensor in (*layer.inputs, *layer.outputs)}
    return dataclasses.replace(
        graph,
        layers=tuple(layers),
        tensors={name: tensor for name, tensor in tensors.items() if name in used},
        notes=(*graph.notes, f"{what}: {len(chosen)} layers"),
    )


def _is_dense(graph: Graph, layer: Layer) -> bool:
    """Whether the layer is one product with a whole weight of its own."""
    if not isinstance(layer.op, Gemm) or layer.op.batch != 1:
        return False
    weight = graph.tensors[layer.inputs[1]]
    return weight.role is Role.WEIGHT and weight.elements == layer.op.K * layer.op.N


def _require_any(graph: Graph, pattern: str, chosen: Iterable[str]) -> None:
    dense = [layer.name for layer in graph.layers if _is_dense(graph, layer)]
    require(len(dense) > 0, f"{graph.name}: no layer is a matrix product with a weight of its own")
    rule = f"{graph.name}: no matrix product with a weight of its own matches layers={pattern}; "
    close = nearest(pattern.strip("*"), dense)
    require(bool(chosen), rule + (close if len(close) < 200 else f"such as {dense[0]!r}"))


def _factors(layer: Layer, steps: _Steps, tensors: dict[str, Tensor]) -> list[Layer]:
    """The new layers in order; their factors and intermediate results are added to `tensors`."""
    assert isinstance(layer.op, Gemm)
    source, weight, *epilogue = layer.inputs
    made = []
    *first, last = steps(f"layer {layer.name}", layer.op)
    for step in (*first, last):
        name = f"{layer.name}.{step.part}"
        factor = [_add(tensors, f"{weight}.{step.part}", step.weight, Role.WEIGHT)] if step.weight else []
        inputs = (source, *factor, *(epilogue if step is last else ()))
        outputs = layer.outputs if step is last else (_add(tensors, name, step.shape, Role.ACTIVATION),)
        made.append(Layer(name=name, op=step.op, inputs=inputs, outputs=outputs))
        source = outputs[0]
    return made


def _add(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], role: Role) -> str:
    tensor = Tensor(name=name, shape=shape, role=role)
    require(tensors.setdefault(name, tensor) == tensor, f"a tensor of another shape is named {name!r} already")
    return name


def _low_rank(rank: int, place: str, op: Gemm) -> tuple[_Step, ...]:
    _require_count(place, "rank", rank, min(op.K, op.N))
    return (
        _Step(part="down", op=Gemm(M=op.M, K=op.K, N=rank), weight=(op.K, rank), shape=(op.M, rank)),
        _Step(part="up", op=Gemm(M=op.M, K=rank, N=op.N), weight=(rank, op.N), shape=(op.M, op.N)),
    )


def _kronecker(k1: int, n1: int, place: str, op: Gemm) -> tuple[_Step, ...]:
    _require_divides(place, "k1", k1, "K", op.K)
    _require_divides(place, "n1", n1, "N", op.N)
    m, k2, n2 = op.M, op.K // k1, op.N // n1
    return (
        _Step(part="right", op=Gemm(M=m * k1, K=k2, N=n2), weight=(k2, n2), shape=(m, k1, n2)),
        *_exchange("turn", m, k1, n2),
        _Step(part="left", op=Gemm(M=m * n2, K=k1, N=n1), weight=(k1, n1), shape=(m, n2, n1)),
        *_exchange("back", m, n2, n1),
    )


def _monarch(blocks: int, place: str, op: Gemm) -> tuple[_Step, ...]:
    _require_divides(place, "blocks", blocks, "K and N", math.gcd(op.K, op.N))
    m, k, n = op.M, op.K // blocks, op.N // blocks
    q = min(k, n)
    return (
        _Step(part="right", op=Gemm(M=m, K=k, N=q, batch=blocks), weight=(blocks, k, q), shape=(m, q, blocks)),
        *_exchange("turn", m, q, blocks),
        _Step(part="left", op=Gemm(M=m, K=q, N=n, batch=blocks), weight=(blocks, q, n), shape=(m, blocks, n)),
        *_exchange("back", m, blocks, n),
    )


def _block_tensor_train(rank: int, k1: int | None, n1: int | None, place: str, op: Gemm) -> tuple[_Step, ...]:
    k1, n1 = (_middle(size) if given is None else given for given, size in ((k1, op.K), (n1, op.N)))
    _require_divides(place, "k1", k1, "K", op.K)
    _require_divides(place, "n1", n1, "N", op.N)
    m, k2, n2 = op.M, op.K // k1, op.N // n1
    _require_count(place, "rank", rank, min(k2, n1))
    right = Gemm(M=m, K=k2, N=n2 * rank, batch=k1)
    left = Gemm(M=m, K=k1 * rank, N=n1, batch=n2)
    return (
        _Step(part="right", op=right, weight=(k1, k2, n2 * rank), shape=(m, k1, n2, rank)),
        *_exchange("turn", m, k1, n2, rank),
        _Step(part="left", op=left, weight=(n2, k1 * rank, n1), shape=(m, n2, n1)),
        *_exchange("back", m, n2, n1),
    )


def _exchange(part: str, rows: int, first: int, second: int, *rest: int) -> tuple[_Step, ...]:
    """A copy that exchanges two axes of [rows, first, second, ...]; none where that moves nothing."""
    if min(first, second) == 1:
        return ()
    op = Vector(kind="copy", rows=rows, channels=first * second * math.prod(rest))
    return (_Step(part=part, op=op, weight=None, shape=(rows, second, first, *rest)),)


def _require_count(place: str, name: str, value: object, most: int) -> None:
    rule = f"{place}: {name} is a whole number from 1 to {most}, not {value!r}; name fewer layers, or take another"
    require(isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most, rule)


def _require_divides(place: str, name: str, value: object, what: str, size: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{place}: {name} is a whole number from 1, not {value!r}")
    rule = f"{place}: {name}={value} does not divide {what} ({size}); the nearest that does is"
    require(size % value == 0, f"{rule} {min(_divisors(size), key=lambda divisor: abs(divisor - value))}")


def _middle(size: int) -> int:
    """The divisor nearest to the square root as a ratio, the smaller of two as near."""
    return max(divisor for divisor in _divisors(size) if divisor * divisor <= size)


def _divisors(size: int) -> list[int]:
    """In ascending order."""
    small = [divisor for divisor in range(1, math.isqrt(size) + 1) if size % divisor == 0]
    return [*small, *(size // divisor for divisor in reversed(small) if divisor * divisor != size)]
