"""Parameters that an engine calls free of values: none of them changes one."""

from dataclasses import fields, replace
from enum import StrEnum

import numpy as np
import pytest

from models import systolic
from models.catalog import UNITS, unit
from models.formats import get_format
from models.unit import InputError, Kind

ENGINES = [name for name, entry in UNITS.items() if entry.kind is Kind.GEMM]
RUNS = 12
"""random settings of the free parameters for every preset of an engine"""


def settings(entry, params, rng):
    """The same engine with random values of its free parameters; itself where none can be built."""
    for _ in range(30):
        drawn = {name: value(entry.param_types[name], rng) for name in entry.value_free(params)}
        try:
            return replace(params, **drawn)
        except InputError:
            continue
    return params


def value(kind, rng):
    options = [t for t in getattr(kind, "__args__", (kind,)) if t is not type(None)]
    if len(options) < len(getattr(kind, "__args__", (kind,))) and rng.integers(2):
        return None
    if issubclass(options[0], StrEnum):
        return rng.choice(list(options[0]))
    return bool(rng.integers(2)) if options[0] is bool else int(2 ** rng.integers(8) * rng.choice([1, 1, 3]))


def formats(entry, params):
    """What says which formats it takes, or why it takes none."""
    try:
        own = entry.weight_format(params)
    except InputError as error:
        return str(error)
    return own, entry.act_format(params) if entry.has_act_format else None


def same(a, b):
    if hasattr(a, "codes"):
        return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def check(entry, params, rng, count=RUNS):
    """Everything that can carry a value, with the parameters as they are and with others."""
    for _ in range(count):
        other = settings(entry, params, rng)
        operands = entry.sample(params, rng)
        if any(isinstance(outcome(entry.golden, each, *operands), tuple) for each in (params, other)):
            operands = operands[:2]  # where sums start at zero a starting psum is refused
        y = entry.golden(params, *operands)
        assert y.tobytes() == entry.golden(other, *operands).tobytes(), (params, other)
        if not entry.timed_by_operands:
            assert entry.shape_of(params, *operands) == entry.shape_of(other, *operands)
        assert formats(entry, params) == formats(entry, other)
        assert entry.value_free(other) == entry.value_free(params)
        assert np.array_equal(entry.plain_weights(params), entry.plain_weights(other))
        plain = rng.choice(entry.plain_weights(params), (6, 5))
        (w, worth), (v, also) = outcome(entry.from_integers, params, plain), outcome(entry.from_integers, other, plain)
        assert worth == also
        assert worth is None or same(w, v)
        check_quantized(entry, params, other, rng)


def outcome(make, *arguments):
    """What it makes, or how it refuses."""
    try:
        return make(*arguments)
    except InputError as error:
        return str(error), None


def check_quantized(entry, params, other, rng):
    """Weights and activations from the formats that the engine takes."""
    own = formats(entry, params)
    if isinstance(own, str):
        return
    (name, options), activations = own
    real = rng.normal(size=(2 * (options.get("group") or 32), 8))
    quantized = get_format(name, **options).quantize(real, axis=0)
    (w, worth), (v, also) = outcome(entry.operand, params, quantized), outcome(entry.operand, other, quantized)
    assert worth == also
    assert w == v if worth is None else same(w, v)
    if activations is not None:
        quantized = get_format(activations[0], **activations[1]).quantize(real.T, axis=-1)
        (a, worth), (b, also) = entry.act_operand(params, quantized), entry.act_operand(other, quantized)
        assert worth == also
        assert same(a, b)


@pytest.mark.parametrize("name", ENGINES)
def test_free_parameters_change_no_value(name):
    entry, rng = unit(name), np.random.default_rng(1)
    for params in entry.presets.values():
        check(entry, params, rng)


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_can_be_cut_to_another_size_for_nothing(name):
    """Without this the test above would hold for want of anything to vary."""
    entry, rng = unit(name), np.random.default_rng(1)
    params = entry.params_type()
    assert entry.value_free(params)
    assert len({settings(entry, params, rng) for _ in range(RUNS)}) > 3


@pytest.mark.parametrize(
    "name, preset, lie",
    [
        ("systolic", "narrow-wrap-ws", ("rows", "acc_bits")),
        ("systolic", "narrow-saturate-ws", ("rows", "overflow")),
        ("tmac", "default", ("rows",)),
        ("lutgemm", "fp16", ("rows",)),
        ("shiftadd", "column", ("cols",)),
        ("ternary", "default", ("packing",)),
        ("mxdot", "default", ("accumulate", "acc_bits")),
    ],
)
def test_a_lie_is_found(name, preset, lie, monkeypatch):
    entry = unit(name)
    monkeypatch.setattr(entry.module, "value_free", lambda _params: lie, raising=False)
    with pytest.raises((AssertionError, InputError)):
        check(entry, entry.presets[preset], np.random.default_rng(1), count=40)


def test_blocks_that_saturate_are_not_free(monkeypatch):
    """Where sums saturate each block of an adder tree is looked at on its own."""
    entry = unit("adder_tree")
    params = entry.params(lanes=4, acc_bits=10, overflow="saturate")
    assert set(entry.value_free(params)) == {"trees", "style"}
    assert set(entry.value_free(replace(params, overflow="wrap"))) == {"trees", "style", "lanes"}
    monkeypatch.setattr(entry.module, "value_free", lambda _params: ("lanes",))
    with pytest.raises(AssertionError):
        check(entry, params, np.random.default_rng(1), count=40)


def test_a_unit_that_says_nothing_has_no_free_parameter(monkeypatch):
    monkeypatch.delattr(systolic, "value_free")
    assert unit("systolic").value_free(systolic.SystolicParams()) == ()
