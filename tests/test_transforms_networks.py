"""Every transform on small networks of every structure: the same function before quantization, less error after it."""

from dataclasses import replace

import numpy as np
import pytest

from hwsim.networks import get_network
from hwsim.networks.network import Arithmetic, Group, Heads, Network, float_arithmetic
from hwsim.networks.outliers import plant_outliers, planted
from hwsim.quantize import quantize_network
from hwsim.quantizers import get_quantizer
from hwsim.transforms import TRANSFORMS, merge, parse_transform, prepare
from hwsim.transforms import flat as flat_module
from hwsim.transforms import rotate as rotate_module
from hwsim.transforms.flat import CLIPS, best_clip, learned, output_loss, start
from hwsim.transforms.fwht import hadamard_matrix
from hwsim.transforms.maps import Hadamard, Permutation, Rotation, Scaling
from hwsim.transforms.plan import Clip, Prepared, float_maps, inputs, samples
from hwsim.transforms.sinks import massive, with_sinks
from models.formats import IntFormat
from models.unit import InputError

D, HIDDEN, QUERIES, KEYS, SIZE, VOCABULARY, LENGTH = 24, 40, 4, 2, 4, 19, 10


def tensor(rng, *shape):
    return rng.normal(size=shape) / np.sqrt(shape[0])


def rms(x, gamma):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * gamma


def layer_norm(x, tensors, name):
    centred = x - x.mean(axis=-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12) * tensors[name] + tensors[f"{name}.bias"]
    )


def silu(x):
    return x / (1 + np.exp(-x))


def rope(x):
    """x [T, heads, SIZE]"""
    angle = np.arange(len(x))[:, None, None] / 10.0 ** np.arange(SIZE // 2)
    a, b = x[..., : SIZE // 2], x[..., SIZE // 2 :]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], axis=-1)


def attention(q, k, v, queries, keys):
    """[T, heads * SIZE] each, causal; query head h reads key head h // (queries / keys)."""
    q, k, v = (a.reshape(len(a), heads, SIZE) for a, heads in ((q, queries), (k, keys), (v, keys)))
    k, v = (np.repeat(a, queries // keys, axis=1) for a in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(SIZE)
    scores = np.where(np.tril(np.ones(scores.shape[1:])) == 1, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hts,shd->thd", weights / weights.sum(axis=-1, keepdims=True), v).reshape(len(q), -1)


def llama_forward(network, tokens, arithmetic):
    t = network.tensors
    x = t["embedding"][tokens]
    for i in range(2):
        n = f"layers.{i}"
        q, k, v = arithmetic.project(f"{n}.attention", rms(x, t[f"{n}.norm1"]))
        k = arithmetic.state(f"{n}.key_before_rope", k)
        q, k = (rope(a.reshape(len(a), -1, SIZE)).reshape(len(a), -1) for a in (q, k))
        k, v = arithmetic.state(f"{n}.key", k), arithmetic.state(f"{n}.value", v)
        x = x + arithmetic.project(f"{n}.output", attention(q, k, v, QUERIES, KEYS))[0]
        gate, up = arithmetic.project(f"{n}.gate_up", rms(x, t[f"{n}.norm2"]))
        x = x + arithmetic.project(f"{n}.down", silu(gate) * up)[0]
    return arithmetic.project("head", rms(x, t["norm"]))[0]


def llama():
    rng = np.random.default_rng(1)
    tensors = {"embedding": rng.normal(size=(VOCABULARY, D)), "norm": rng.uniform(0.5, 2, D)}
    groups, residual, states = {}, ["embedding"], []
    for i in range(2):
        n = f"layers.{i}"
        tensors |= {f"{n}.norm1": rng.uniform(0.5, 2, D), f"{n}.norm2": rng.uniform(-2, 2, D)}
        tensors |= {f"{n}.q": tensor(rng, D, QUERIES * SIZE), f"{n}.k": tensor(rng, D, KEYS * SIZE)}
        tensors |= {f"{n}.v": tensor(rng, D, KEYS * SIZE), f"{n}.o": tensor(rng, QUERIES * SIZE, D)}
        tensors |= {f"{n}.{w}": tensor(rng, D, HIDDEN) for w in ("gate", "up")} | {f"{n}.down": tensor(rng, HIDDEN, D)}
        tensors |= {f"{n}.v.bias": rng.normal(size=KEYS * SIZE), f"{n}.o.bias": rng.normal(size=D)}
        tensors |= {f"{n}.up.bias": rng.normal(size=HIDDEN)}
        groups[f"{n}.attention"] = Group(readers=(f"{n}.q", f"{n}.k", f"{n}.v"), norm=f"{n}.norm1")
        groups[f"{n}.output"] = Group(readers=(f"{n}.o",), values=f"{n}.v")
        groups[f"{n}.gate_up"] = Group(readers=(f"{n}.gate", f"{n}.up"), norm=f"{n}.norm2")
        groups[f"{n}.down"] = Group(readers=(f"{n}.down",), product=f"{n}.up")
        residual += [f"{n}.o", f"{n}.down"]
        states += [f"{n}.key_before_rope", f"{n}.key", f"{n}.value"]
    tensors["head"] = tensor(rng, D, VOCABULARY)
    groups["head"] = Group(readers=("head",), norm="norm")
    heads = Heads(queries=QUERIES, keys=KEYS, size=SIZE)
    inputs = rng.integers(0, VOCABULARY, 60)
    more = {"heads": heads, "residual": tuple(residual), "states": tuple(states), "kept": ("head",)}
    return made("llama", tensors, groups, llama_forward, inputs, **more)


def bert_forward(network, x, arithmetic):
    t = network.tensors
    for i in range(2):
        n = f"layers.{i}"
        q, k, v = arithmetic.project(f"{n}.attention", x)
        y = arithmetic.project(f"{n}.output", attention(q, k, v, QUERIES, QUERIES))[0]
        x = layer_norm(x + y, t, f"{n}.norm1")
        hidden = np.maximum(arithmetic.project(f"{n}.up", x)[0], 0)
        x = layer_norm(x + arithmetic.project(f"{n}.down", hidden)[0], t, f"{n}.norm2")
    return x


def bert():
    rng = np.random.default_rng(2)
    tensors, groups = {}, {}
    for i in range(2):
        n = f"layers.{i}"
        shapes = {"q": (D, 16), "k": (D, 16), "v": (D, 16), "o": (16, D), "up": (D, HIDDEN), "down": (HIDDEN, D)}
        tensors |= {f"{n}.{w}": tensor(rng, *shape) for w, shape in shapes.items()}
        tensors |= {f"{n}.{w}.bias": rng.normal(size=shape[1]) for w, shape in shapes.items()}
        for norm in ("norm1", "norm2"):
            tensors |= {f"{n}.{norm}": rng.uniform(0.5, 2, D), f"{n}.{norm}.bias": rng.normal(size=D)}
        groups[f"{n}.attention"] = Group(readers=(f"{n}.q", f"{n}.k", f"{n}.v"))
        groups[f"{n}.output"] = Group(readers=(f"{n}.o",), values=f"{n}.v")
        groups |= {f"{n}.{w}": Group(readers=(f"{n}.{w}",)) for w in ("up", "down")}
    heads = Heads(queries=QUERIES, keys=QUERIES, size=SIZE)
    return made("bert", tensors, groups, bert_forward, rng.normal(size=(60, D)), heads=heads)


def mlp_forward(_network, x, arithmetic):
    return arithmetic.project("two", np.maximum(arithmetic.project("one", x)[0], 0))[0]


def mlp():
    rng = np.random.default_rng(3)
    tensors = {"one": tensor(rng, D, HIDDEN), "one.bias": rng.normal(size=HIDDEN), "two": tensor(rng, HIDDEN, 7)}
    groups = {name: Group(readers=(name,)) for name in ("one", "two")}
    return made("mlp", tensors, groups, mlp_forward, rng.normal(size=(60, D)))


def mamba_forward(network, tokens, arithmetic):
    t = network.tensors
    x = t["embedding"][tokens]
    for i in range(2):
        n = f"layers.{i}"
        (both,) = arithmetic.project(f"{n}.in", rms(x, t[f"{n}.norm"]))
        u, z = both[:, :HIDDEN], both[:, HIDDEN:]
        before = np.concatenate([np.zeros((1, HIDDEN)), u[:-1]])
        u = t[f"{n}.conv"][:, 0] * before + t[f"{n}.conv"][:, 1] * u + t[f"{n}.conv.bias"]
        u = u / (1 + np.exp(-t.get(f"{n}.conv.silu", 1) * u))
        u = arithmetic.state(f"{n}.ssm_input", u)
        (step,) = arithmetic.project(f"{n}.x", u)
        (rate,) = arithmetic.project(f"{n}.dt", step)
        h, y = np.zeros(HIDDEN), np.empty_like(u)
        for j in range(len(u)):
            decay = 1 / (1 + np.exp(rate[j]))
            h = decay * h + (1 - decay) * u[j]
            y[j] = h
        y = arithmetic.state(f"{n}.ssm_output", y * z / (1 + np.exp(-t.get(f"{n}.gate.silu", 1) * z)))
        x = x + arithmetic.project(f"{n}.out", y)[0]
    return arithmetic.project("head", rms(x, t["norm"]))[0]


def mamba():
    rng = np.random.default_rng(4)
    tensors = {"embedding": rng.normal(size=(VOCABULARY, D)), "norm": rng.uniform(0.5, 2, D)}
    groups, states = {}, []
    for i in range(2):
        n = f"layers.{i}"
        tensors |= {f"{n}.norm": rng.uniform(0.5, 2, D), f"{n}.in": tensor(rng, D, 2 * HIDDEN)}
        tensors |= {
            f"{n}.x": tensor(rng, HIDDEN, 4),
            f"{n}.dt": tensor(rng, 4, HIDDEN),
            f"{n}.out": tensor(rng, HIDDEN, D),
        }
        tensors |= {f"{n}.{part}.bias": rng.normal(size=HIDDEN) for part in ("dt", "conv")}
        tensors[f"{n}.conv"] = rng.normal(size=(HIDDEN, 2))
        tensors |= {f"{n}.{part}.silu": np.ones(HIDDEN) for part in ("conv", "gate")}
        groups[f"{n}.in"] = Group(readers=(f"{n}.in",), norm=f"{n}.norm")
        groups |= {f"{n}.{w}": Group(readers=(f"{n}.{w}",)) for w in ("x", "dt", "out")}
        states += [f"{n}.ssm_input", f"{n}.ssm_output"]
    tensors["head"] = tensor(rng, D, VOCABULARY)
    groups["head"] = Group(readers=("head",), norm="norm")
    residual = ("embedding", "layers.0.out", "layers.1.out")
    inputs = rng.integers(0, VOCABULARY, 60)
    return made("mamba", tensors, groups, mamba_forward, inputs, residual=residual, states=tuple(states))


def unfused():
    """The same without factors in its SiLU functions."""
    found = mamba()
    return replace(found, tensors={name: x for name, x in found.tensors.items() if not name.endswith(".silu")})


def made(name, tensors, groups, forward, inputs, **more):
    for value in tensors.values():
        value.setflags(write=False)
    parts = {"calibration": inputs, "workload": inputs, "batch": len(inputs), "evaluate": lambda *_: {}}
    return Network(name=name, tensors=tensors, groups=groups, forward=forward, **parts, **more)


NETWORKS = {"llama": llama(), "bert": bert(), "mlp": mlp(), "mamba": mamba()}
CHAINS = (
    "smoothquant+hadamard",
    "quarot+smoothquant",
    "smoothquant+quarot",
    "flattenquant+smoothquant",
    "hadamard+hadamard",
)
LACKING = {
    ("spinquant", "bert"): "cannot be rotated .*; nearest: 'quarot'",
    ("spinquant", "mlp"): "cannot be rotated",
    ("quamba", "llama"): "has no state-space layers; nearest: 'quarot'",
    ("quamba", "bert"): "no state-space layers",
    ("quamba", "mlp"): "no state-space layers",
    ("rotatekv", "bert"): "caches no keys before rotary embedding; nearest: 'quarot'",
    ("rotatekv", "mlp"): "caches no keys",
    ("rotatekv", "mamba"): "caches no keys",
}
CASES = [(t, n) for t in (*TRANSFORMS, *CHAINS) for n in NETWORKS if (t, n) not in LACKING]


def fresh_inputs(network):
    rng = np.random.default_rng(99)
    if network.calibration.ndim == 1:
        return rng.integers(0, VOCABULARY, LENGTH)
    return rng.normal(size=(LENGTH, D))


def difference(network, prepared):
    """Largest difference of outputs on inputs that no transform has seen, relative to the largest output."""
    inputs = fresh_inputs(network)
    exact = network.forward(network, inputs, float_arithmetic(network))
    got = prepared.network.forward(prepared.network, inputs, float_maps(prepared))
    return np.abs(got - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize("transform, name", CASES)
def test_the_transformed_network_computes_the_same(transform, name):
    network = NETWORKS[name]
    prepared = prepare(transform, network, seed=3)
    assert difference(network, prepared) < 1e-10
    rewritten = any(not np.array_equal(value, network.tensors[n]) for n, value in prepared.network.tensors.items())
    assert bool(prepared.maps or prepared.states or rewritten) == (transform != "none")
    assert set(prepared.maps) <= set(network.groups) - set(network.kept)


REAL = [("pylm", t) for t in ("quarot", "smoothquant+hadamard", "rotatekv", "ostquant", "spinquant")]
REAL += [("mamba", t) for t in ("quarot", "quamba", "mambaquant", "lrq-dit")]


@pytest.mark.parametrize("name, transform", REAL)
def test_the_shipped_models_compute_the_same(name, transform):
    network = replace(get_network(name), calibration=np.random.default_rng(6).integers(32, 127, (1, 40)))
    prepared = prepare(transform, network, seed=3)
    inputs = np.random.default_rng(7).integers(32, 127, (1, 24))
    exact = network.forward(network, inputs, float_arithmetic(network))
    got = prepared.network.forward(prepared.network, inputs, float_maps(prepared))
    assert np.abs(got - exact).max() < 1e-10 * np.abs(exact).max()


@pytest.mark.parametrize("transform, name", LACKING)
def test_what_a_network_lacks_is_said(transform, name):
    with pytest.raises(InputError, match=LACKING[transform, name]):
        prepare(transform, NETWORKS[name])


@pytest.mark.parametrize("transform", ["quarot", "rotatekv"])
def test_states_come_back_as_they_were(transform):
    x = np.random.default_rng(5).normal(size=(7, KEYS * SIZE))
    states = prepare(transform, NETWORKS["llama"], seed=2).states
    assert states
    for maps in states.values():
        y = x
        for m in maps:
            y = m.apply(y)
        assert np.abs(y - x).max() > 0.1
        for m in reversed(maps):
            y = m.undo(y)
        assert np.abs(y - x).max() < 1e-10


def test_what_can_be_merged_costs_nothing_online():
    prepared = prepare("quarot", NETWORKS["llama"])
    assert set(prepared.maps) == {"layers.0.down", "layers.1.down"}
    assert not prepare("smoothquant", NETWORKS["llama"]).maps
    assert prepare("smoothquant", NETWORKS["mlp"]).maps["one"][0].cost(D).multiplies == D
    assert set(prepare("mambaquant", NETWORKS["mamba"]).maps) == {
        f"layers.{i}.{g}" for i in (0, 1) for g in ("x", "dt", "out")
    }
    assert "online" in prepare("quarot", NETWORKS["bert"]).notes[-1]
    assert not [g for g in prepare("quarot", NETWORKS["bert"]).maps if g.endswith("output")]
    assert not prepare("quarot", NETWORKS["llama"]).notes


def test_seeds_draw_other_rotations_and_the_same_seed_the_same():
    network = NETWORKS["llama"]
    one, again, other = (prepare("quarot", network, seed=s).network.tensors["embedding"] for s in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.allclose(one, other)


@pytest.mark.parametrize("bad", [-1, True, "1"])
def test_seeds_are_whole_numbers(bad):
    with pytest.raises(InputError, match="must be a whole number from 0"):
        prepare("quarot", NETWORKS["mlp"], seed=bad)


def test_channels_that_no_order_divides_are_refused_by_group():
    network = NETWORKS["mlp"]
    odd = replace(network, tensors={**network.tensors, "two": network.tensors["two"][:39]})
    for transform in ("hadamard", "quarot"):
        with pytest.raises(InputError, match="no Hadamard order divides the 39 channels of two"):
            prepare(transform, odd)
    with pytest.raises(InputError, match="two has 40 channels, no multiple of points=24"):
        prepare("hadamard", network, points=24)
    with pytest.raises(InputError, match=r"layers.0.attention has online maps already"):
        prepare("hadamard+quarot", NETWORKS["llama"])


def test_activations_that_are_not_finite_are_refused_by_group():
    network = NETWORKS["mlp"]
    with pytest.raises(InputError, match="one: its activations over the calibration inputs are not all finite"):
        prepare("smoothquant", replace(network, calibration=np.full((4, D), np.nan)))


# --------------------------------------------------------------------------------------- planted faults


def without_gamma(prepared):
    tensors = dict(prepared.network.tensors)
    for group in merge.stream_groups(prepared.network):
        tensors[prepared.network.groups[group].norm] = np.ones(D)
    return replace(prepared, network=replace(prepared.network, tensors=tensors))


def one_writer_forgotten(prepared, Q):
    network = prepared.network
    fewer = replace(prepared, network=replace(network, residual=network.residual[:-1]))
    found = right_rotation(fewer, Q)
    return replace(found, network=replace(found.network, residual=network.residual))


right_rotation = merge.stream_rotated


@pytest.mark.parametrize(
    "place, name, fault, transform",
    [
        (rotate_module, "norms_folded", without_gamma, "quarot"),
        (rotate_module, "stream_rotated", one_writer_forgotten, "quarot"),
        (
            rotate_module,
            "values_rotated",
            lambda *given: values_alone(*given),
            "quarot",
        ),
        (Hadamard, "fold_weights", lambda _m, W: W, "hadamard"),
        (Hadamard, "undo", Hadamard.apply, "rotatekv"),
        (Permutation, "undo", lambda m, x: x[..., m.order], "rotatekv"),
        (Rotation, "fold_weights", lambda m, W: m.Q @ W, "klt"),
        (rotate_module, "silu_scaled", lambda *given, **scales: silu_as_it_was(*given, **scales), "mambaquant"),
        (rotate_module, "silu_scaled", lambda *given, **scales: out_without_the_scan(*given, **scales), "mambaquant"),
    ],
)
def test_a_fault_is_seen(place, name, fault, transform, monkeypatch):
    network = NETWORKS["mamba" if transform == "mambaquant" else "llama"]
    assert difference(network, prepare(transform, network)) < 1e-10
    monkeypatch.setattr(place, name, fault)
    assert difference(network, prepare(transform, network)) > 1e-4


def values_alone(prepared, group, Q):
    """Values rotated, the output layer not."""
    found = merge.values_rotated(prepared, group, Q)
    reader = prepared.network.groups[group].readers[0]
    tensors = {**found.network.tensors, reader: prepared.network.tensors[reader]}
    return replace(found, network=replace(found.network, tensors=tensors))


def silu_as_it_was(prepared, layer, conv, gate):
    """Scales merged, the factor in one SiLU forgotten."""
    found = merge.silu_scaled(prepared, layer, conv=conv, gate=gate)
    tensors = {**found.network.tensors, f"{layer}.gate.silu": np.ones(HIDDEN)}
    return replace(found, network=replace(found.network, tensors=tensors))


def out_without_the_scan(prepared, layer, conv, gate):
    """The output's rows take back the gate's scale alone."""
    found = merge.silu_scaled(prepared, layer, conv=conv, gate=gate)
    tensors = {**found.network.tensors, f"{layer}.out": found.network.tensors[f"{layer}.out"] / conv[:, None]}
    return replace(found, network=replace(found.network, tensors=tensors))


# ---------------------------------------------------------------------------------- effects and outliers


def output_error(prepared, group):
    """Relative error of the group's outputs with activations in symmetric 4-bit integers, a scale a token."""
    x, W = samples(prepared)[group], np.concatenate(prepared.weights(group), axis=1)
    return np.linalg.norm((IntFormat(bits=4).quantize(x).dequantize() - x) @ W) / np.linalg.norm(x @ W)


@pytest.mark.parametrize("transform", ["quarot", "spinquant", "flatquant", "smoothquant", "ostquant", "mambaquant"])
def test_transforms_lower_the_error_of_planted_outliers(transform):
    network = plant_outliers(NETWORKS["llama"], factor=64, groups=["layers.0.gate_up"])
    before = output_error(prepare("none", network), "layers.0.gate_up")
    after = output_error(prepare(transform, network), "layers.0.gate_up")
    assert after < 0.2 * before


def test_rotation_lowers_the_error_of_outliers_much_and_of_others_little():
    """Eight outliers in 512 channels, twenty times as large, their weights as much smaller."""
    rng = np.random.default_rng(11)
    x, W = rng.normal(size=(1500, 512)), tensor(rng, 512, 64)
    errors = {}
    for factor in (1, 20):
        shape = np.where(np.arange(512) < 8, factor, 1.0)
        network = made("wide", {"one": W / shape[:, None]}, {"one": Group(readers=("one",))}, wide_forward, x * shape)
        for transform in ("none", "hadamard", "quarot", "klt", "lrq-dit", "smoothquant+quarot"):
            errors[transform, factor] = output_error(prepare(transform, network), "one")
    assert all(0.9 < errors[t, 1] / errors["none", 1] < 1.1 for t, _ in errors)
    assert max(errors[t, 20] for t in ("quarot", "klt", "lrq-dit")) < 0.6 * errors["none", 20]
    assert errors["lrq-dit", 20] < errors["hadamard", 20] < errors["none", 20]
    assert errors["smoothquant+quarot", 20] < 0.3 * errors["none", 20]


def wide_forward(_network, x, arithmetic):
    return arithmetic.project("one", x)[0]


def test_zigzag_deals_the_largest_channels_to_different_blocks():
    largest = np.arange(16.0)
    blocks = rotate_module.zigzag(largest, 4).reshape(4, 4)
    assert sorted(blocks.reshape(-1)) == list(range(16))
    assert sorted(blocks.max(axis=1)) == [12, 13, 14, 15]
    assert np.ptp(largest[blocks].sum(axis=1)) <= 2


def test_outliers_are_what_they_are_said_to_be():
    network = NETWORKS["llama"]
    planted = plant_outliers(network, factor=256, channels=3, seed=5)
    inputs = fresh_inputs(network)
    outputs = [n.forward(n, inputs, float_arithmetic(n)) for n in (network, planted)]
    assert np.array_equal(*outputs)
    assert "3 channels" in planted.notes[-1]
    assert "scaled by 256" in planted.notes[-1]
    x, y = (samples(prepare("none", n)) for n in (network, planted))
    for group, place in network.groups.items():
        ratio = np.abs(y[group]).max(axis=0) / np.abs(x[group]).max(axis=0)
        assert sorted(ratio)[-4:] == ([1, 256, 256, 256] if place.norm or place.product else [1] * 4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"factor": 0.0}, "factor=0.0 must be a number from"),
        ({"factor": np.inf}, "factor=inf"),
        ({"factor": 1e308}, "factor=1e.308"),
        ({"factor": "x"}, "factor='x' must be a number from"),
        ({"factor": 2.0, "channels": 25}, r"channels=25 is outside 1\.\.24 of layers.0.attention"),
        ({"factor": 2.0, "channels": 1.5}, "channels=1.5 must be a whole number from 1"),
        ({"factor": 2.0, "channels": 0}, "channels=0 must be a whole number from 1"),
        ({"factor": 2.0, "seed": -1}, "seed=-1 must be a whole number from 0"),
        ({"factor": 2.0, "seed": "1"}, "seed='1' must be a whole number from 0"),
        ({"factor": 2.0, "groups": ["layers.0.atention"]}, "did you mean 'layers.0.attention'"),
        ({"factor": 2.0, "groups": ["layers.0.output"]}, "has no norm or product before it"),
    ],
)
def test_outliers_that_cannot_be_planted_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        plant_outliers(NETWORKS["llama"], **options)
    with pytest.raises(InputError, match="mlp has no group with a norm or product"):
        plant_outliers(NETWORKS["mlp"], factor=2.0)


def test_outliers_are_planted_as_text_says():
    network = NETWORKS["llama"]
    groups = ["layers.0.gate_up", "layers.1.down"]
    for text, options in (
        ("factor=64,channels=2", {"factor": 64, "channels": 2, "seed": 7}),
        ("factor=0.5,seed=9", {"factor": 0.5, "seed": 9}),
        ("groups=layers.0.gate_up+layers.1.down,factor=4", {"factor": 4, "groups": groups, "seed": 7}),
    ):
        found, expected = planted(network, text, seed=7), plant_outliers(network, **options)
        assert found.notes == expected.notes != ()
        assert all(np.array_equal(found.tensors[name], x) for name, x in expected.tensors.items())
    with pytest.raises(InputError, match=r"no group 'layers.0.gate_u'; did you mean 'layers.0.gate_up'"):
        planted(network, "factor=2,groups=layers.0.gate_u")


def test_flatquant_learns():
    rng = np.random.default_rng(8)
    X, W, maps = rng.normal(size=(90, 24)) * np.array([9.0] + [1.0] * 23), rng.normal(size=(24, 5)), start(24, 1)
    first, after = output_loss(maps, X, W, 4)[0], output_loss(learned(maps, X, W, 4, 20), X, W, 4)[0]
    assert after < 0.9 * first
    assert learned(maps, X, W, 4, 0) is maps


# -------------------------------------------------------------------- transforms against explicit matrices


def explicit_hadamard(points, seed):
    """[points, points] D H^T / sqrt(points) of tokens in rows, D the drawn signs."""
    drawn = Hadamard(points=points, seed=seed).signs
    signs = np.array([-1.0 if drawn >> i & 1 else 1.0 for i in range(points)])
    return signs[:, None] * hadamard_matrix(points).T / np.sqrt(points)


def test_text_gives_its_options_to_the_transforms_that_it_names():
    found = parse_transform("hadamard:points=8,in_bits=9+hadamard:points=4")(Prepared(network=NETWORKS["mlp"]), 5)
    first, second = Hadamard(points=8, in_bits=9, seed=5), Hadamard(points=4, seed=5)
    assert found.maps == {"one": (first, second), "two": (first, second)}


def smoothed_by_hand(x, W, alpha):
    return [max(abs(x[:, j])) ** alpha / max(abs(W[j])) ** (1 - alpha) for j in range(x.shape[1])]


@pytest.mark.parametrize("alpha", [0.2, 0.9])
def test_smoothing_is_its_formula_online_and_merged(alpha):
    network = NETWORKS["mlp"]
    x, maps = samples(prepare("none", network)), prepare(f"smoothquant:alpha={alpha}", network).maps
    for group in network.groups:
        expected = smoothed_by_hand(x[group], network.tensors[group], alpha)
        assert np.allclose(maps[group][0].s, expected, rtol=1e-12)
    network = NETWORKS["llama"]
    x, found = samples(prepare("none", network)), prepare("smoothquant", network, alpha=alpha).network.tensors
    W = np.concatenate([network.tensors[f"layers.1.{w}"] for w in ("gate", "up")], axis=1)
    expected = smoothed_by_hand(x["layers.1.gate_up"], W, alpha)
    assert np.allclose(network.tensors["layers.1.norm2"] / found["layers.1.norm2"], expected, rtol=1e-12)


def test_heads_that_share_values_are_smoothed_by_the_largest_of_them():
    network = NETWORKS["llama"]
    o = network.tensors["layers.0.o"].copy()
    o[SIZE : 2 * SIZE] *= 30  # the second of the two heads that read the first values
    network = replace(network, tensors={**network.tensors, "layers.0.o": o})
    x, found = samples(prepare("none", network))["layers.0.output"], prepare("smoothquant:alpha=0.2", network)
    s = found.network.tensors["layers.0.o"][:, 0] / o[:, 0]
    for channel in range(QUERIES * SIZE):
        group = channel // (2 * SIZE)
        alike = [h * SIZE + channel % SIZE for h in (2 * group, 2 * group + 1)]
        expected = max(abs(x[:, alike]).max(axis=0)) ** 0.2 / abs(o[alike]).max() ** 0.8
        assert s[channel] == pytest.approx(expected, rel=1e-12)


def cached_keys():
    """Eight heads of keys of unlike channels, kept before rotary embedding."""
    rng = np.random.default_rng(31)
    x = rng.normal(size=(50, 32)) * rng.uniform(0.1, 5, 32)
    heads, states = Heads(queries=8, keys=8, size=4), ("k.key_before_rope",)
    tensors, groups = {"one": tensor(rng, 32, 3)}, {"one": Group(readers=("one",))}
    return made("keys", tensors, groups, keys_forward, x, heads=heads, states=states)


def keys_forward(_network, x, arithmetic):
    return arithmetic.project("one", arithmetic.state("k.key_before_rope", x))[0]


@pytest.mark.parametrize("text, together", [("rotatekv", 4), ("rotatekv:heads=3", 2), ("rotatekv:heads=99", 8)])
def test_keys_are_rotated_over_heads_and_put_in_order(text, together):
    network = cached_keys()
    rotated = np.kron(np.eye(8 // together), explicit_hadamard(4 * together, 2))
    largest = np.abs(network.calibration @ rotated).max(axis=0)
    expected = rotated[:, sorted(range(32), key=lambda j: -largest[j])]
    y = np.eye(32)
    for m in prepare(text, network, seed=2).states["k.key_before_rope"]:
        y = m.apply(y)
    assert np.allclose(y, expected, rtol=0, atol=1e-12)


def test_the_klt_is_of_the_covariance_and_not_of_the_second_moments():
    rng = np.random.default_rng(32)
    x = rng.normal(size=(200, 24)) @ rng.normal(size=(24, 24)) + rng.uniform(-40, 40, 24)
    network = made("shifted", {"one": tensor(rng, 24, 3)}, {"one": Group(readers=("one",))}, wide_forward, x)
    K = prepare("klt", network, seed=3).maps["one"][0].Q @ explicit_hadamard(24, 3).T
    uncorrelated = K.T @ np.cov(x.T) @ K
    assert np.allclose(uncorrelated, np.diag(np.diagonal(uncorrelated)), rtol=0, atol=1e-9 * uncorrelated.max())
    assert np.all(np.diff(np.diagonal(uncorrelated)) > 0)


def test_ostquant_turns_the_stream_into_the_singular_vectors_of_its_weights():
    network = NETWORKS["llama"]
    t, E = network.tensors, network.tensors["embedding"]
    readers = [t[g.norm][:, None] * t[n] for g in network.groups.values() if g.norm for n in g.readers]
    U = np.linalg.svd(np.concatenate(readers, axis=1))[0][:, ::-1]
    turned = prepare("ostquant", network, seed=3).network.tensors["embedding"] @ explicit_hadamard(24, 3).T
    signs = np.sign((turned * (E @ U)).sum(axis=0))
    assert np.allclose(turned, E @ U * signs, rtol=0, atol=1e-9)


# ----------------------------------------------------------------------------------------------- clips


def test_clips_are_kept_at_the_width_that_they_are_for():
    llama, bert = NETWORKS["llama"], NETWORKS["bert"]
    groups = [g for g in llama.groups if g != "head"]
    caches = [f"layers.{i}.{kept}" for i in (0, 1) for kept in ("key_before_rope", "value")]
    assert prepare("quarot", llama).clips == dict.fromkeys(groups, Clip(0.9, 4))
    assert prepare("quarot:clip=0.7", llama).clips == dict.fromkeys(groups, Clip(0.7, 4))
    assert prepare("rotatekv", llama).clips == dict.fromkeys(caches, Clip(0.8, 2))
    assert prepare("hadamard+smoothquant", llama).clips == {}
    for bits in (3, 4):
        clips = prepare(f"flatquant:steps=2,bits={bits}", bert).clips
        assert set(clips) == set(bert.groups)
        assert all(c.bits == bits and c.share in CLIPS for c in clips.values())


@pytest.mark.parametrize("bits", [3, 4])
def test_flatquants_clip_is_the_best_of_its_grid(bits):
    rng = np.random.default_rng(33)
    network, Y = NETWORKS["mlp"], rng.laplace(size=(80, 24))
    assert best_clip(Y, np.eye(24), bits) == least_error(Y, np.eye(24), bits) < 1
    assert best_clip(np.sign(Y), np.eye(24), bits) == least_error(np.sign(Y), np.eye(24), bits) == 1
    found = prepare(f"flatquant:steps=2,bits={bits}", replace(network, calibration=Y), seed=4)
    X = samples(found, 256)
    for group, clip in found.clips.items():
        assert clip.share == least_error(X[group], found.weights(group)[0], bits)
    assert min(clip.share for clip in found.clips.values()) < 1


def least_error(Y, V, bits):
    """The clip of the grid at which the integer format itself has the least error of Y V."""
    errors = {c: np.linalg.norm((IntFormat(bits=bits, clip=c).quantize(Y).dequantize() - Y) @ V) for c in CLIPS}
    return min(errors, key=errors.get)


def test_flatquants_gradients_are_those_of_differences_where_rounding_is_an_offset(monkeypatch):
    """Straight through: rounded values count as the exact ones plus a constant, so the constant is planted."""
    rng = np.random.default_rng(9)
    X, W, maps = rng.normal(size=(9, 24)), rng.normal(size=(24, 5)), start(24, 1)
    offsets = {9: rng.normal(size=(9, 24)), 5: rng.normal(size=(5, 24))}
    monkeypatch.setattr(flat_module, "rounded", lambda Y, _bits: (Y + offsets[len(Y)], np.ones((len(Y), 1))))
    monkeypatch.setattr(flat_module, "through_scale", lambda Y, _bits, _by: np.zeros_like(Y))
    _, gradients = output_loss(maps, X, W, 4)
    for i, name in enumerate(("P1", "P2")):
        step, turn = 1e-6, rng.normal(size=getattr(maps, name).shape)
        moved = [replace(maps, **{name: getattr(maps, name) + sign * step * turn}) for sign in (1, -1)]
        high, low = (output_loss(m, X, W, 4)[0] for m in moved)
        assert (gradients[i] * turn).sum() == pytest.approx((high - low) / (2 * step), rel=1e-5)


# ------------------------------------------------------------------- state-space layers and attention sinks


def test_bad_tokens_are_refused_as_ever_where_sinks_are_kept():
    prepared = prepare("rotatekv", get_network("pylm"))
    for tokens, message in ((np.full((1, 8), 300), "from 0 to 255"), (np.zeros((1, 8)), "whole numbers")):
        with pytest.raises(InputError, match=message):
            prepared.network.forward(prepared.network, tokens, float_maps(prepared))


def test_scales_before_x_and_out_go_into_silu():
    """With alpha = 1/2 a channel's largest activation and largest weight end up alike: sqrt(a w) both."""
    network = NETWORKS["mamba"]
    prepared = prepare("mambaquant", network, seed=2)
    seen, before, t = inputs(prepared), inputs(network_alone(network)), network.tensors
    for layer in ("layers.0", "layers.1"):
        for part in ("x", "out"):
            group = f"{layer}.{part}"
            assert [type(m) for m in prepared.maps[group]] == [Hadamard]
            largest = np.abs(seen[group]).max(axis=0), np.abs(prepared.network.tensors[group]).max(axis=1)
            assert np.allclose(*largest, rtol=1e-9)
            assert not np.allclose(np.abs(before[group]).max(axis=0), np.abs(t[group]).max(axis=1), rtol=0.1)
        assert [type(m) for m in prepared.maps[f"{layer}.dt"]] == [Scaling, Hadamard]
        s = smoothed_by_hand(before[f"{layer}.x"], t[f"{layer}.x"], 0.5)
        assert np.allclose(seen[f"{layer}.x"] * s, before[f"{layer}.x"], rtol=1e-9, atol=1e-12)


def network_alone(network):
    return Prepared(network=network)


def test_scales_stay_online_where_silu_takes_no_factor():
    prepared = prepare("mambaquant", unfused())
    assert difference(unfused(), prepared) < 1e-10
    for group, maps in prepared.maps.items():
        assert [type(m) for m in maps] == [Scaling, Hadamard], group


def test_scales_are_not_merged_past_maps_that_are_there():
    with pytest.raises(InputError, match=r"layers.0.out has online maps already; scale its SiLU first"):
        prepare("quamba+mambaquant", NETWORKS["mamba"])


@pytest.mark.parametrize("percentile, bits", [(99.999, 8), (90, 4)])
def test_quamba_rounds_the_input_of_the_scan_in_one_step_for_all_tokens(percentile, bits):
    network = NETWORKS["mamba"]
    prepared = prepare("quamba", network, percentile=percentile, bits=bits)
    assert set(prepared.static) == {"layers.0.ssm_input", "layers.1.ssm_input"}
    top = 2 ** (bits - 1)
    low = in_formats(prepared)
    for state, found in prepared.static.items():
        x = np.abs(inputs(network_alone(network))[state.replace("ssm_input", "x")]).reshape(-1)
        assert found.step == pytest.approx(percentile_by_hand(x, percentile) / (top - 1), rel=1e-12)
        x = np.random.default_rng(4).normal(size=(5, HIDDEN)) * np.abs(x).max()
        expected = [[found.step * min(max(round(v / found.step), -top), top - 1) for v in row] for row in x]
        for way in (low.emulated, low.engine):
            assert np.array_equal(way.state(state, x), expected)
            assert way.state(state.replace("input", "output"), x) is x
        assert in_formats(prepare("none", network)).emulated.state(state, x) is x
        with pytest.raises(InputError, match=f"mamba, {state}: its values are not all finite"):
            low.emulated.state(state, np.full((1, HIDDEN), np.inf))
    assert "static" in prepared.notes[-1]


def percentile_by_hand(x, percentile):
    """Between the two nearest ranks."""
    ordered, rank = sorted(x), percentile / 100 * (len(x) - 1)
    under = int(rank)
    above = ordered[min(under + 1, len(x) - 1)]
    return ordered[under] + (rank - under) * (above - ordered[under])


def in_formats(prepared, bits=8, cache=None):
    fmt = IntFormat(bits=bits)
    return quantize_network(prepared, weights=fmt, activations=fmt, quantizer=get_quantizer("rtn"), cache=cache)


def test_static_integers_are_of_the_mapped_state():
    order = Permutation(order=np.arange(HIDDEN)[::-1].copy())
    maps = (Scaling(s=np.arange(1.0, HIDDEN + 1)), order)
    prepared = replace(prepare("quamba:bits=3", NETWORKS["mamba"]), states={"layers.0.ssm_input": maps})
    x = np.random.default_rng(4).normal(size=(5, HIDDEN))
    step, s = prepared.static["layers.0.ssm_input"].step, np.arange(1, HIDDEN + 1)
    expected = np.clip(np.rint(x / s / step), -4, 3) * step * s
    assert np.allclose(in_formats(prepared).emulated.state("layers.0.ssm_input", x), expected, rtol=1e-12)


def test_a_state_of_zeros_has_a_step():
    assert rotate_module.percentile_step(np.zeros((3, 4)), 99, 8) == 1.0
    x = np.append(np.linspace(-1, 1, 999), 500.0)
    assert rotate_module.percentile_step(x, 100, 8) == 500 / 127
    assert rotate_module.percentile_step(x, 99, 8) < 1.1 / 127


@pytest.mark.parametrize(
    "text, message",
    [
        ("quamba:percentile=0", "percentile=0 must be above 0"),
        ("quamba:percentile=101", "percentile=101 must be a number from 0 to 100"),
        ("quamba:percentile=x", "percentile='x' must be a finite number"),
        ("quamba:bits=1", "bits=1 must be a whole number from 2"),
        ("quamba:bits=17", "bits=17 is above 16"),
        ("quamba:bits=8.5", "bits=8.5 must be a whole number"),
        ("rotatekv:sinks=-1", "sinks=-1 must be a whole number from 0"),
        ("rotatekv:sinks=4097", "sinks=4097 is above 4096"),
        ("rotatekv:sinks=1.5", "sinks=1.5 must be a whole number"),
        ("rotatekv:sink=3", "did you mean 'sinks'"),
    ],
)
def test_options_outside_their_range_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_transform(text)


def test_massive_tokens_are_found_in_each_sequence_by_itself():
    stream = np.random.default_rng(6).normal(size=(3 * 7, 5))
    stream[4, 1:3] = -90, 80  # one token holds the two largest of the first sequence
    for count in (1, 2, 4, 99):
        found = []
        for rows in np.split(stream, 3):
            entries = [(-abs(rows[i, j]), i) for i in range(7) for j in range(5)]
            sinks = {i for _, i in sorted(entries)[:count]}
            found += [i in sinks for i in range(7)]
        assert massive(stream, 7, count).tolist() == found
    assert massive(stream, 7, 2)[:7].sum() == 1


@pytest.mark.parametrize("count", [1, 3, 20])
def test_sinks_are_tokens_of_the_largest_activations_before_the_layer(count, monkeypatch):
    """What the norms of the forward pass were given, against which tokens come back from a cache that forgets all."""
    network, streams, read = NETWORKS["llama"], [], {}
    prepared = with_sinks(network_alone(network), count)
    monkeypatch.setitem(globals(), "rms", lambda x, gamma, honest=rms: streams.append(x) or honest(x, gamma))
    exact = float_arithmetic(prepared.network)

    def attention_seen(q, k, v, *heads, honest=attention):
        read[len(streams) // 2] = k, v
        return honest(q, k, v, *heads)

    monkeypatch.setitem(globals(), "attention", attention_seen)
    forgetful = replace(exact, state=lambda name, x: 0 * x if name.endswith(("before_rope", "value")) else x)
    prepared.network.forward(prepared.network, fresh_inputs(network), forgetful)
    for layer, kept in read.items():
        x = np.abs(streams[2 * layer])
        ranked = sorted((-x[i, j], i) for i in range(LENGTH) for j in range(D))
        sinks = {i for _, i in ranked[:count]}
        for part in kept:
            assert {i for i in range(LENGTH) if part[i].any()} == sinks
    assert set(read) == {0, 1}
    assert f"{count} largest" in prepared.notes[-1]


def test_each_sequence_of_a_batch_has_its_own_sinks():
    prepared = with_sinks(network_alone(get_network("pylm")), 3)
    network, exact = prepared.network, float_arithmetic(prepared.network)
    forgetful = replace(exact, state=lambda _name, x: 0 * x)
    tokens = np.random.default_rng(8).integers(32, 127, (3, 16))
    together = network.forward(network, tokens, forgetful)
    alone = [network.forward(network, row[None], forgetful)[0] for row in tokens]
    assert np.allclose(together, alone, rtol=0, atol=1e-9)
    assert not np.allclose(together, network.forward(network, tokens, exact), rtol=0, atol=0.1)


def test_rotatekv_keeps_as_many_sinks_as_it_is_told():
    network, x = NETWORKS["llama"], fresh_inputs(NETWORKS["llama"])
    exact = network.forward(network, x, float_arithmetic(network))
    errors = []
    for sinks in (0, 8, D * LENGTH):
        prepared = prepare("rotatekv", network, sinks=sinks)
        low = in_formats(prepared, bits=16, cache=IntFormat(bits=2))
        errors.append(np.linalg.norm(prepared.network.forward(prepared.network, x, low.emulated) - exact))
        assert bool(prepared.notes) == (sinks > 0)
    assert errors[0] > errors[1] > 100 * errors[2]
    assert prepare("rotatekv", network).notes == prepare("rotatekv:sinks=20", network).notes
    assert "names no residual stream" in prepare("rotatekv", cached_keys()).notes[-1]


def test_kept_groups_and_other_states_pass_untouched():
    prepared = prepare("hadamard", NETWORKS["llama"])
    assert "head" not in prepared.maps
    x = np.ones((2, KEYS * SIZE))
    assert isinstance(float_maps(prepared), Arithmetic)
    assert np.array_equal(float_maps(prepared).state("layers.0.key", x), x)
