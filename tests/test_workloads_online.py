"""Transforms and quantizers on the way of activations: where they stand, what they read, and what stays as it was."""

import dataclasses

import pytest

from hwsim.system.machine import load_machine
from hwsim.system.run import run
from hwsim.workloads import load_workload, rewrites
from hwsim.workloads.graph import Attention, Builder, Conv, Gemm, Quantize, Role, Transform
from hwsim.workloads.online import quantize, transform
from models.unit import InputError


def network():
    """Two products of one tensor, which a residual reads as well; attention; a product behind; one without weights."""
    b = Builder("net", "somewhere")
    x = b.vector("norm", "rmsnorm", b.tensor("x", (6, 48)))
    up = b.linear("mlp.up", x, 80)
    gate = b.linear("mlp.gate", x, 80)
    h = b.vector("act", "mul", up, gate)
    down = b.linear("mlp.down", h, 48)
    y = b.vector("residual", "add", down, x)
    k = b.tensor("k", (2, 6, 24), Role.CACHE)
    attend = Attention(batch=1, heads=2, kv_heads=2, queries=6, keys=6, head_dim=24, value_dim=24)
    y = b.add("attend", attend, (y, k, k), (6, 48))
    b.add("scores", Gemm(M=6, K=48, N=6), (y, b.tensor("other", (48, 6))), (6, 6))
    return b.graph()


def names(graph):
    return [layer.name for layer in graph.layers]


def layer(graph, name):
    return next(layer for layer in graph.layers if layer.name == name)


def others(graph, new):
    """Every layer but the new ones, with the tensors as they were called before."""
    back = {
        made: source for one in new for source, made in [(layer(graph, one).inputs[0], layer(graph, one).outputs[0])]
    }

    def old(tensor):
        while tensor in back:
            tensor = back[tensor]
        return tensor

    kept = [one for one in graph.layers if one.name not in new]
    return [dataclasses.replace(one, inputs=tuple(old(tensor) for tensor in one.inputs)) for one in kept]


def test_quantizers_stand_before_products_with_weights():
    before = network()
    after = quantize(before)
    new = ["norm.quantize", "act.quantize"]
    assert names(after) == [
        *("norm", "norm.quantize", "mlp.up", "mlp.gate", "act", "act.quantize"),
        *("mlp.down", "residual", "attend", "scores"),
    ]
    assert layer(after, "norm.quantize").op == Quantize(rows=6, channels=48)
    assert layer(after, "act.quantize").op == Quantize(rows=6, channels=80)
    assert after.consumers["norm.quantize"] == ("mlp.up", "mlp.gate")
    assert after.consumers["norm"] == ("norm.quantize", "residual")
    assert layer(after, "mlp.down").inputs == ("act.quantize", "mlp.down.weight")
    assert others(after, new) == list(before.layers)
    assert {name: after.tensors[name] for name in before.tensors} == before.tensors
    assert set(after.tensors) - set(before.tensors) == set(new)
    assert all(
        after.tensors[name].elements == layer(after, name).op.rows * layer(after, name).op.channels for name in new
    )
    assert (after.source, after.notes, after.macs) == ("somewhere", ("quantize: 2 tensors",), before.macs)


def test_codes_stay_codes():
    once = quantize(network())
    assert dataclasses.replace(quantize(once), notes=once.notes) == once


def test_transforms_stand_before_matching_products():
    before = network()
    after = transform(before, 16, "mlp.[ud]*")
    new = ["norm.transform16", "act.transform16"]
    assert names(after)[:3] == ["norm", "norm.transform16", "mlp.up"]
    assert layer(after, "norm.transform16").op == Transform(rows=6, channels=48, block=16)
    assert layer(after, "act.transform16").op == Transform(rows=6, channels=80, block=16)
    assert after.consumers["norm.transform16"] == ("mlp.up",)
    assert after.consumers["norm"] == ("norm.transform16", "mlp.gate", "residual")
    assert others(after, new) == list(before.layers)
    assert after.notes == ("Hadamard transform, block 16: 2 tensors",)


@pytest.mark.parametrize("channels, block", [(48, 16), (80, 16), (2, 2), (96, 32), (4096, 4096), (3 * 8192, 4096)])
def test_full_is_the_largest_power_of_two(channels, block):
    b = Builder("net")
    b.linear("only", b.tensor("x", (2, channels)), 4)
    after = transform(b.graph(), "full")
    assert names(after) == [f"x.transform{block}", "only"]
    assert layer(after, f"x.transform{block}").op == Transform(rows=2, channels=channels, block=block)


def test_rewrites_follow_each_other():
    """The quantizer stands behind the transform; a transform that is there already serves again."""
    before = network()
    text = "hadamard:block=8,layers=*up + hadamard:block=8,layers=*gate+hadamard:block=full,layers=*down+quantize"
    after = rewrites.apply(before, text)
    assert names(after)[:8] == [
        *("norm", "norm.transform8", "norm.transform8.quantize", "mlp.up", "mlp.gate"),
        *("act", "act.transform16", "act.transform16.quantize"),
    ]
    assert after.consumers["norm.transform8.quantize"] == ("mlp.up", "mlp.gate")
    new = [name for name in names(after) if name not in names(before)]
    assert others(after, new) == list(before.layers)


def test_images_are_rows_of_pixels():
    b = Builder("net")
    image = b.tensor("image", (2, 6, 5, 4))
    for name, kernel, groups in (("wide", 3, 1), ("grouped", 1, 3)):
        op = Conv(batch=2, in_channels=6, out_channels=9, height=5, width=4, kernel=(kernel, kernel), groups=groups)
        filters = b.tensor(f"{name}.weight", (9, 6 // groups, kernel, kernel), Role.WEIGHT)
        b.add(name, op, (image, filters), (2, 9, *op.output))
    after = quantize(b.graph())
    assert names(after) == ["image.quantize", "wide", "grouped"]
    assert layer(after, "image.quantize").op == Quantize(rows=40, channels=6)
    assert names(quantize(b.graph(), "grouped")) == ["image.quantize", "wide", "grouped"]
    assert quantize(b.graph(), "grouped").consumers["image"] == ("image.quantize", "wide")
    with pytest.raises(InputError, match="no product of activations with a weight matches"):
        transform(b.graph(), 2)


def test_factors_are_quantized_where_they_are_read():
    """A whole row has one scale, also where a product of several blocks reads it."""
    after = rewrites.apply(network(), "monarch:blocks=8,layers=mlp.up+quantize")
    assert layer(after, "norm.quantize").op == Quantize(rows=6, channels=48)
    assert after.consumers["norm.quantize"] == ("mlp.up.right", "mlp.gate")
    turned = layer(after, "mlp.up.turn.quantize").op
    assert turned == Quantize(rows=6 * 8, channels=6)


def test_rewritten_networks_run():
    graph = load_workload("bert-base", tokens=16, rewrite="hadamard:block=full+quantize")
    result = run(graph, load_machine("mxu-128"))
    done = {name for entry in result.layers for name in (entry.name, *entry.fused)}
    new = {one.name for one in graph.layers if isinstance(one.op, Transform | Quantize)}
    assert len(new) == 2 * (12 * 4 + 1), "four tensors a layer, and the pooler's"
    assert new <= done
    plain = run(load_workload("bert-base", tokens=16), load_machine("mxu-128"))
    assert result.macs == plain.macs
    assert result.total_cycles > plain.total_cycles


BAD = {
    "quantise": r"no rewrite 'quantise'; did you mean 'quantize'\?",
    "quantize:bits=4": r"rewrite quantize: no option 'bits'; one of: layers",
    "quantize:layers=mlp.upp": r"net: .* matches layers=mlp.upp; did you mean 'mlp.up'\?",
    "quantize:layers=scores": r"net: no product of activations with a weight matches layers=scores",
    "hadamard": r"rewrite hadamard: block is missing; write hadamard:block=",
    "hadamard:block=half": r"hadamard: block is a whole number from 2 to 4096, or full, not 'half'",
    "hadamard:block=1": r"block is a whole number from 2 to 4096, or full, not 1",
    "hadamard:block=8192": r"from 2 to 4096, or full, not 8192",
    "hadamard:block=true": r"not True",
    "hadamard:block=2.5": r"not 2.5",
    "hadamard:block=6": r"points must be 2\^k or m 2\^k with m one of 12, 20, 28, not 6; nearest: 4 or 8",
    "hadamard:block=32": r"layer mlp.up: block=32 does not divide K \(48\); nearest power of two that does: 16",
    "hadamard:block=4,layers=nothing": r"matches layers=nothing",
}


@pytest.mark.parametrize("text, message", BAD.items())
def test_bad_rewrites_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        rewrites.apply(network(), text)


def test_what_no_transform_fits_is_refused():
    b = Builder("net")
    b.linear("odd", b.tensor("x", (2, 7)), 4)
    with pytest.raises(InputError, match="hadamard: no block divides the 7 channels of 'x'"):
        transform(b.graph(), "full")
    with pytest.raises(InputError, match=r"layer odd: block=2 does not divide K \(7\); no block does"):
        transform(b.graph(), 2)


def test_networks_without_weights_are_refused():
    b = Builder("net")
    b.add("scores", Gemm(M=2, K=3, N=4), (b.tensor("q", (2, 3)), b.tensor("k", (3, 4))), (2, 4))
    with pytest.raises(InputError, match="there is none at all"):
        quantize(b.graph())


def test_tensors_that_are_no_rows_are_refused():
    b = Builder("net")
    b.add("part", Gemm(M=2, K=4, N=3), (b.tensor("x", (3, 3)), b.tensor("w", (4, 3), Role.WEIGHT)), (2, 3))
    with pytest.raises(InputError, match="layer part: the 9 values of tensor 'x' are no rows of 4"):
        quantize(b.graph())


def test_names_that_are_taken_are_refused():
    b = Builder("net")
    x = b.tensor("x", (2, 4))
    b.linear("one", x, 4)
    b.tensor("x.quantize", (1,))
    with pytest.raises(InputError, match=r"net: a tensor is named 'x\.quantize' already"):
        quantize(b.graph())
