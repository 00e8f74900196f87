"""Factorised layers: what the new layers compute is x @ W for the W that their factors stand for; sizes; bad input."""

import dataclasses
import math

import numpy as np
import pytest

from hwsim.workloads import factorise, rewrites
from hwsim.workloads.graph import Builder, Gemm, Graph, Role, Vector
from models.unit import InputError


def network(m, k, n, name="mlp.up"):
    """One dense layer between two vector layers."""
    builder = Builder("net")
    x = builder.vector("norm", "rmsnorm", builder.tensor("x", (m, k)))
    builder.vector("act", "relu", builder.linear(name, x, n))
    return builder.graph()


def random_weights(graph, rng):
    tensors = graph.tensors.values()
    return {t.name: rng.integers(-9, 10, t.shape) for t in tensors if t.role is Role.WEIGHT}


def run(graph, values, end="mlp.up"):
    """`end` from the tensors that are given, by the memory order that the module states; exact integers."""
    values = dict(values)
    for layer in graph.layers:
        if layer.inputs[0] in values and end not in values:
            out = execute(layer.op, *(values[name] for name in layer.inputs))
            assert out.size == graph.tensors[layer.outputs[0]].elements
            values[layer.outputs[0]] = out.reshape(graph.tensors[layer.outputs[0]].shape)
    return values[end]


def execute(op, source, weight=None):
    """A Gemm's products lie side by side in a row; a copy exchanges the second and the third axis."""
    if isinstance(op, Vector):
        assert op.kind == "copy"
        assert op.rows * op.channels == source.size
        return np.swapaxes(source, 1, 2)
    a, w = source.reshape(op.M, op.batch, op.K), weight.reshape(op.batch, op.K, op.N)
    return np.stack([a[:, i] @ w[i] for i in range(op.batch)], axis=1)


def check(rewritten, explicit, m, k):
    """The rewritten layer against x @ W, and the sizes of its weights."""
    rng = np.random.default_rng([m, k])
    weights = random_weights(rewritten, rng)
    x = rng.integers(-9, 10, (m, k))
    assert (run(rewritten, {"norm": x, **weights}) == x @ explicit(weights)).all()
    assert rewritten.elements(Role.WEIGHT) == sum(w.size for w in weights.values())


@pytest.mark.parametrize("m, k, n, rank", [(5, 12, 8, 3), (1, 7, 9, 7), (4, 6, 6, 1)])
def test_low_rank_is_the_product_of_its_factors(m, k, n, rank):
    graph = factorise.low_rank(network(m, k, n), rank)
    check(graph, lambda w: w["mlp.up.weight.down"] @ w["mlp.up.weight.up"], m, k)
    assert graph.macs == m * rank * (k + n)
    assert graph.elements(Role.WEIGHT) == rank * (k + n)


@pytest.mark.parametrize("m, k, n, k1, n1", [(5, 12, 8, 3, 2), (2, 6, 10, 6, 1), (3, 6, 10, 1, 5), (4, 8, 8, 4, 4)])
def test_kronecker_is_numpys(m, k, n, k1, n1):
    graph = factorise.kronecker(network(m, k, n), k1, n1)
    check(graph, lambda w: np.kron(w["mlp.up.weight.left"], w["mlp.up.weight.right"]), m, k)
    assert graph.elements(Role.WEIGHT) == k1 * n1 + (k // k1) * (n // n1)
    assert graph.macs == m * (k * (n // n1) + (n // n1) * k1 * n1)


def block_diagonal(blocks):
    count, k, n = blocks.shape
    whole = np.zeros((count * k, count * n), dtype=blocks.dtype)
    for i, block in enumerate(blocks):
        whole[i * k : (i + 1) * k, i * n : (i + 1) * n] = block
    return whole


def stride_permutation(size, step):
    """Row vectors times this: element i step + j goes to j (size / step) + i."""
    whole = np.zeros((size, size), dtype=int)
    for i in range(size // step):
        for j in range(step):
            whole[i * step + j, j * (size // step) + i] = 1
    return whole


def explicit_monarch(right, left):
    """W = R^T P L^T P^T for row vectors, P the permutation of blocks' columns and rows."""
    blocks, _, q = right.shape
    n = left.shape[2]
    between = stride_permutation(blocks * q, blocks)
    after = stride_permutation(blocks * n, blocks).T
    return block_diagonal(right) @ between @ block_diagonal(left) @ after


@pytest.mark.parametrize("m, k, n, blocks", [(5, 9, 9, 3), (2, 12, 8, 4), (3, 8, 12, 2), (4, 6, 10, 1), (2, 6, 6, 6)])
def test_monarch_is_the_explicit_product(m, k, n, blocks):
    graph = factorise.monarch(network(m, k, n), blocks)
    check(graph, lambda w: explicit_monarch(w["mlp.up.weight.right"], w["mlp.up.weight.left"]), m, k)
    q = min(k, n) // blocks
    assert graph.macs == m * q * (k + n)
    assert graph.elements(Role.WEIGHT) == q * (k + n)


def explicit_btt(right, left, sizes):
    """W[(c, d), (a, b)] = sum over s of R[c, d, b, s] L[b, c, s, a], element by element."""
    k1, k2, n1, n2, rank = sizes
    r, left = right.reshape(k1, k2, n2, rank), left.reshape(n2, k1, rank, n1)
    w = np.zeros((k1, k2, n1, n2), dtype=int)
    for c, d, a, b in np.ndindex(w.shape):
        w[c, d, a, b] = sum(r[c, d, b, s] * left[b, c, s, a] for s in range(rank))
    return w.reshape(k1 * k2, n1 * n2)


@pytest.mark.parametrize(
    "m, k, n, k1, n1, rank", [(5, 12, 8, 3, 4, 2), (2, 12, 8, 4, 2, 1), (3, 9, 9, 3, 3, 3), (2, 6, 6, 1, 6, 2)]
)
def test_block_tensor_train_is_the_explicit_sum(m, k, n, k1, n1, rank):
    graph = factorise.block_tensor_train(network(m, k, n), rank, k1=k1, n1=n1)
    sizes = (k1, k // k1, n1, n // n1, rank)
    check(graph, lambda w: explicit_btt(w["mlp.up.weight.right"], w["mlp.up.weight.left"], sizes), m, k)
    assert graph.elements(Role.WEIGHT) == rank * (k * (n // n1) + n * k1)
    assert graph.macs == m * graph.elements(Role.WEIGHT)


def test_block_tensor_train_of_rank_1_is_monarch():
    ours, monarch = factorise.block_tensor_train(network(3, 16, 16), 1), factorise.monarch(network(3, 16, 16), 4)
    assert ours.macs == monarch.macs == 2 * 3 * 16 * 4
    weights = random_weights(monarch, np.random.default_rng(0))
    x = np.arange(48).reshape(3, 16)
    assert (run(ours, {"norm": x, **weights}) == run(monarch, {"norm": x, **weights})).all()


def test_the_check_sees_a_copy_that_is_left_out():
    graph = factorise.monarch(network(2, 12, 8), 4)
    kept = []
    for layer in graph.layers:
        renamed = tuple(name.replace(".turn", ".right") for name in layer.inputs)
        kept += [dataclasses.replace(layer, inputs=renamed)] if not layer.name.endswith("turn") else []
    broken = dataclasses.replace(graph, layers=tuple(kept))
    weights = random_weights(graph, np.random.default_rng(0))
    x = np.arange(24).reshape(2, 12)
    assert (run(broken, {"norm": x, **weights}) != run(graph, {"norm": x, **weights})).any()


def test_a_default_core_is_the_divisor_nearest_to_the_square_root():
    for size in range(1, 200):
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        assert factorise._divisors(size) == divisors
        middle = factorise._middle(size)
        assert abs(math.log(middle**2 / size)) == pytest.approx(min(abs(math.log(d * d / size)) for d in divisors))


def test_copies_stand_only_where_memory_order_changes():
    def copies(graph):
        return [layer.name for layer in graph.layers if isinstance(layer.op, Vector) and layer.op.kind == "copy"]

    assert copies(factorise.low_rank(network(2, 8, 8), 2)) == []
    assert copies(factorise.monarch(network(2, 8, 8), 2)) == ["mlp.up.turn", "mlp.up.back"]
    assert copies(factorise.monarch(network(2, 8, 8), 1)) == []
    assert copies(factorise.kronecker(network(2, 8, 8), 2, 1)) == ["mlp.up.turn"]


def test_the_rest_of_the_network_stays():
    """The epilogue's input goes to the last new layer; unmatched layers, and a weight that one of them reads, stay."""
    builder = Builder("net", "somewhere")
    x = builder.tensor("x", (4, 6))
    h = builder.linear("a.proj", x, 6)
    residual = builder.add("b.proj", Gemm(M=4, K=6, N=6), (h, "a.proj.weight", "x"), (4, 6))
    builder.linear("head", residual, 3)
    graph = builder.graph()
    new = factorise.monarch(graph, 2, layers="b.*")
    assert [layer.name for layer in new.layers] == [
        "a.proj",
        *("b.proj.right", "b.proj.turn", "b.proj.left", "b.proj.back"),
        "head",
    ]
    assert new.layers[1].inputs == ("a.proj", "a.proj.weight.right")
    assert new.layers[4].inputs == ("b.proj.left", "x")
    assert new.layers[4].outputs == ("b.proj",)
    assert new.tensors["b.proj"] == graph.tensors["b.proj"]
    assert "a.proj.weight" in new.tensors
    assert (new.source, new.notes) == ("somewhere", ("Monarch of 2 blocks: 1 layers",))
    both = factorise.monarch(graph, 2, layers="*proj")
    assert "a.proj.weight" not in both.tensors
    assert both.elements(Role.WEIGHT) == 2 * 2 * 3 * 3 + 18
    assert both.consumers["a.proj.weight.left"] == ("a.proj.left", "b.proj.left")


def test_apply_reads_rewrites_one_after_another():
    builder = Builder("net")
    h = builder.linear("0.attn", builder.tensor("x", (4, 16)), 16)
    builder.linear("0.mlp", h, 16)
    graph = builder.graph()
    text = "low-rank:rank=4,layers=*mlp* + btt:rank=2,layers=*attn,k1=4,n1=8"
    by_hand = factorise.block_tensor_train(factorise.low_rank(graph, 4, "*mlp*"), 2, "*attn", k1=4, n1=8)
    assert rewrites.apply(graph, text) == by_hand
    twice = rewrites.apply(graph, "low-rank:rank=8,layers=*mlp+low-rank:rank=2,layers=*mlp.down")
    assert [layer.name for layer in twice.layers] == ["0.attn", "0.mlp.down.down", "0.mlp.down.up", "0.mlp.up"]
    for text in ("monarch:blocks=4", "kronecker:k1=2,n1=8"):
        assert isinstance(rewrites.apply(graph, text), Graph)


BAD = {
    "lowrank:rank=4": r"no rewrite 'lowrank'; did you mean 'low-rank'\?",
    "low-rank": r"rewrite low-rank: rank is missing; write low-rank:rank=...",
    "low-rank:rnk=4": r"rewrite low-rank: no option 'rnk'; did you mean 'rank'\?",
    "low-rank:graph=4,rank=1": r"no option 'graph'",
    "low-rank:rank": r"no NAME=VALUE",
    "low-rank:rank=0": r"layer mlp.up: rank is a whole number from 1 to 8, not 0",
    "low-rank:rank=9": r"layer mlp.up: rank is a whole number from 1 to 8, not 9",
    "low-rank:rank=1.5": r"not 1.5",
    "low-rank:rank=true": r"not True",
    "low-rank:rank=2,layers=mpl.up": r"net: no matrix product .* matches layers=mpl.up; did you mean 'mlp.up'\?",
    "low-rank:rank=2,layers=7": r"matches layers=7; one of: mlp.up",
    "low-rank:rank=2,layers=MLP*": r"matches layers=MLP\*",
    "low-rank:rank=2+": r"no rewrite ''",
    "monarch:blocks=3": r"layer mlp.up: blocks=3 does not divide K and N \(4\); the nearest that does is 2",
    "monarch:blocks=-1": r"blocks is a whole number from 1, not -1",
    "kronecker:k1=5,n1=2": r"k1=5 does not divide K \(12\); the nearest that does is 4",
    "kronecker:k1=4,n1=7": r"n1=7 does not divide N \(8\); the nearest that does is 8",
    "kronecker:k1=4": r"rewrite kronecker: n1 is missing",
    "btt:rank=2,k1=5": r"k1=5 does not divide K \(12\)",
    "btt:rank=4": r"rank is a whole number from 1 to 2, not 4",
}


@pytest.mark.parametrize("text, message", BAD.items())
def test_bad_rewrites_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        rewrites.apply(network(2, 12, 8), text)


def test_networks_without_a_dense_layer_are_refused():
    builder = Builder("net")
    builder.add("scores", Gemm(M=2, K=3, N=4), (builder.tensor("q", (2, 3)), builder.tensor("k", (3, 4))), (2, 4))
    with pytest.raises(InputError, match="net: no layer is a matrix product with a weight of its own"):
        factorise.low_rank(builder.graph(), 1)


def test_a_name_that_is_taken_is_refused():
    builder = Builder("net")
    h = builder.linear("a", builder.tensor("x", (4, 6)), 6)
    builder.linear("a.down", h, 3)
    with pytest.raises(InputError, match=r"a tensor of another shape is named 'a.down' already"):
        factorise.low_rank(builder.graph(), 2, layers="a")
