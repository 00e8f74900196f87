"""A float network in low-bit arithmetic: transformed, quantized, every product by an engine or in float64.

Per group of linear layers: x in FP16 -> maps of the transform -> codes of the activation format -> product -> real
values; the exact network's own inputs choose the weights' codes.
With integer codes a, zero points z and integer weights w, an output is (sum a w - z sum w) * token scale * column step
+ bias. An engine with FP16 activations takes them as they are, without scale and zero point. Layers that
stay in float and caches read what was not rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsim.networks.network import Arithmetic, float_arithmetic, linear, linear_bias, require_width
from hwsim.quantizers.parts import Part, Problem, Quantizer
from hwsim.simulate import is_float
from hwsim.transforms.maps import Hadamard, Map, with_worth
from hwsim.transforms.plan import Clip, Prepared, inputs, spaced
from models.catalog import unit_of
from models.floats import half_of
from models.formats import Format, IntFormat, Quantized, get_format
from models.unit import Kind, require

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Product:
    """One part of a linear layer, and how an engine holds it."""

    part: Part
    params: Any = None
    """the engine's parameters; None where no engine computes it"""
    operand: Any = None
    """the weights as the engine's W"""
    worth: Fraction = Fraction(1)
    """what one unit of the engine's output is worth in products of the codes"""

    @cached_property
    def real_weights(self) -> Floats:
        """[K, N] the values that the codes stand for."""
        return self.part.weights.dequantize()

    @cached_property
    def column_sums(self) -> NDArray[np.int64] | None:
        """[N] sums of the integer weights: what a unit of activation zero point adds; None where there are none."""
        integers = self.part.weights.integers
        return None if integers is None else integers.sum(axis=0)


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the three steps of a group of linear layers are computed."""

    turn: Callable[[Map, Floats, Floats], tuple[Floats, Floats]]
    """(map, activations, worth of one) -> the same mapped, as `maps.with_worth` gives them"""
    encode: Callable[[Format, Floats], Quantized]
    """(format, activations [M, K]) -> codes, groups along the last axis"""
    multiply: Callable[[Product, Quantized], Floats]
    """(product, activations) -> outputs [M, N], without bias"""


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedNetwork:
    """A network's linear layers in low-bit arithmetic; `engine` and `emulated` are what its forward pass takes."""

    prepared: Prepared
    products: Mapping[str, tuple[tuple[Product, ...], ...]]
    """group -> reader -> parts; groups that stay in float are absent"""
    inputs: Mapping[str, Floats]
    """group -> what it reads, before its maps, over the calibration inputs of the float network"""
    cache: Format | None = None
    """of keys and values; None keeps them in float"""
    cached_states: tuple[str, ...] = field(default=())
    """the states that `cache` applies to"""

    @property
    def engine(self) -> Arithmetic:
        """Every product computed by the engine, bit for bit, and transforms by their units."""
        return self.arithmetic(ON_ENGINE)

    @property
    def emulated(self) -> Arithmetic:
        """Float64 arithmetic on the dequantized values."""
        return self.arithmetic(EMULATED)

    def arithmetic(self, way: Way) -> Arithmetic:
        """Linear layers computed in this way; caches and states with static integers are quantized."""
        return Arithmetic(project=lambda group, x: self._project(group, x, way), state=self._state)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of all quantized weights, scales included, over their number."""
        weights = [product.part.weights for readers in self.products.values() for parts in readers for product in parts]
        sizes = [q.codes.size for q in weights]
        return sum(q.bits_per_value * size for q, size in zip(weights, sizes, strict=True)) / sum(sizes)

    def _project(self, group: str, x: Floats, way: Way) -> tuple[Floats, ...]:
        network = self.prepared.network
        readers = network.groups[group].readers
        if group not in self.products:
            return tuple(linear(network, name, x) for name in readers)
        require_width(network, group, x)
        y, worth = halves(x, f"{network.name}, {group}"), np.ones((len(x), 1))
        for m in self.prepared.maps.get(group, ()):
            y, worth = way.turn(m, y, worth)
        held = Codes(y, worth, way.encode)
        return tuple(
            _sum(held, parts, network.tensors[name].shape[1], way.multiply) + linear_bias(network, name)
            for name, parts in zip(readers, self.products[group], strict=True)
        )

    def _state(self, name: str, x: Floats) -> Floats:
        read = self._read(name)
        if read is None:
            return x
        require(bool(np.isfinite(x).all()), f"{self.prepared.network.name}, {name}: its values are not all finite")
        maps = self.prepared.states.get(name, ())
        turned = reduce(lambda v, m: m.apply(v), maps, x)
        return reduce(lambda v, m: m.undo(v), reversed(maps), read(turned))

    def _read(self, name: str) -> Callable[[Floats], Floats] | None:
        """What a state's values, after its maps, are read back as; None where it stays in float."""
        if name in self.prepared.static:
            return self.prepared.static[name].rounded
        if name not in self.cached_states or self.cache is None:
            return None
        fmt = clipped(self.cache, self.prepared.clips.get(name))
        return lambda v: fmt.quantize(v, axis=-1).dequantize()


def halves(x: Floats, where: str) -> Floats:
    """Activations as they lie in memory between layers: FP16, rounded to nearest even. InputError beyond its range."""
    with np.errstate(over="ignore"):
        rounded = x.astype(np.float16).astype(np.float64)
    require(bool(np.isfinite(x).all()), f"{where}: its activations are not all finite")
    rule = f"{where}: activations lie in memory as FP16, up to {LARGEST_HALF}"
    require(bool(np.isfinite(rounded).all()), f"{rule}, and one is {np.abs(x).max():.3g}")
    return rounded


LARGEST_HALF = float(np.finfo(np.float16).max)


class Codes:
    """Activations y * worth, [M, K] and [M, 1], and their codes once for all parts that read them in the same way."""

    def __init__(self, y: Floats, worth: Floats, encode: Callable[[Format, Floats], Quantized]) -> None:
        self.y, self.worth = y, worth
        self._encode = encode
        self._known: dict[Any, Quantized] = {}

    def of(self, part: Part) -> Quantized:
        """The codes [M, K'] that the part reads."""
        key = (part.activations, id(part.inputs), id(part.chosen))
        if key not in self._known:
            y = self.y if part.inputs is None else self.y[:, part.inputs]
            y = y if part.chosen is None else y * part.chosen(y * self.worth)
            self._known[key] = self._encoded(part.activations, y)
        return self._known[key]

    def _encoded(self, fmt: Format, y: Floats) -> Quantized:
        """Integer codes follow from y alone, whatever the token's scale; others from the real values."""
        if not isinstance(fmt, IntFormat):
            return self._encode(fmt, y * self.worth)
        q = self._encode(fmt, y)
        step = None if q.step is None else q.step * self.worth
        return replace(q, scales=q.scales * self.worth, step=step, spans=None)


def _sum(held: Codes, parts: tuple[Product, ...], outputs: int, multiply: Any) -> Floats:
    if len(parts) == 1 and parts[0].part.outputs is None:
        return multiply(parts[0], held.of(parts[0].part))
    total = np.zeros((len(held.y), outputs))
    for product in parts:
        chosen = slice(None) if product.part.outputs is None else product.part.outputs
        total[:, chosen] += multiply(product, held.of(product.part))
    return total


def on_engine(product: Product, q: Quantized) -> Floats:
    """Outputs [M, N] of quantized activations [M, K], the product from the engine's `golden`."""
    entry = unit_of(product.params)
    A, worth = engine_input(product.params, q)
    worth *= product.worth
    y = entry.golden(product.params, A, product.operand) * (worth.numerator / worth.denominator)
    if entry.has_act_format:
        return y  # scales are inside the engine
    if q.offsets is not None:
        assert product.column_sums is not None
        y = y - q.offsets * product.column_sums
    step = product.part.weights.step
    return y * (q.scales if step is None else q.scales * step)


def emulated(product: Product, q: Quantized) -> Floats:
    """Outputs [M, N] from the real values that the codes stand for, multiplied in float64."""
    return q.dequantize() @ product.real_weights


def encoded(fmt: Format, x: Floats) -> Quantized:
    """Activations [M, K] in the format, groups along the last axis."""
    return fmt.quantize(x, axis=-1)


ON_ENGINE = Way(turn=partial(with_worth, on_unit=True), encode=encoded, multiply=on_engine)
EMULATED = Way(turn=partial(with_worth, on_unit=False), encode=encoded, multiply=emulated)


def engine_input(params: Any, q: Quantized) -> tuple[Any, Fraction]:
    """A, as the engine's `golden` takes it, and what one unit of its output is worth in A."""
    entry = unit_of(params)
    if entry.has_act_format:
        return entry.act_operand(params, q)
    return half_of(q.codes) if is_float(params) else q.codes, Fraction(1)


# ------------------------------------------------------------------------------------------- making of one


def quantize_network(
    prepared: Prepared,
    *,
    weights: Format,
    activations: Format,
    quantizer: Quantizer,
    params: Any = None,
    cache: Format | None = None,
    seed: int = 1,
    seen: Mapping[str, Floats] | None = None,
) -> QuantizedNetwork:
    """The network's groups, less those it keeps in float, in these formats.

    `seen` is `plan.inputs(prepared)`, for who quantizes one network in many ways; None computes it.

    `params` of an engine makes every product one of the engine's; `weights` and `activations` must then be what it
    takes (`engine_formats`). InputError where a layer does not suit the format, the quantizer or the engine.
    """
    network = prepared.network
    seen = inputs(prepared) if seen is None else seen
    problems: dict[str, Problem] = {}
    for group in (name for name in network.groups if name not in network.kept):
        X, acts = prepared.mapped(group, seen[group]), clipped(activations, prepared.clips.get(group))
        for name, W in zip(network.groups[group].readers, prepared.weights(group), strict=True):
            problems[name] = Problem(W=W, X=X, weights=weights, activations=acts, seed=seed)
    of_layer = for_layers(quantizer, problems)
    products = {
        group: tuple(
            tuple(_held(part, params, problems[name].activations) for part in of_layer[name](problems[name]))
            for name in network.groups[group].readers
        )
        for group in network.groups
        if group not in network.kept
    }
    states = _cached_states(prepared) if cache else ()
    require(bool(states) or cache is None, f"{network.name} caches no keys and values; leave the cache's format out")
    return QuantizedNetwork(prepared=prepared, products=products, inputs=seen, cache=cache, cached_states=states)


def for_layers(quantizer: Quantizer, problems: Mapping[str, Problem]) -> Mapping[str, Quantizer]:
    """The quantizer of each weight: one that looks at all layers before it treats any says so by `for_network`."""
    whole = getattr(quantizer, "for_network", None)
    return whole(problems) if whole else dict.fromkeys(problems, quantizer)


def clipped(fmt: Format, clip: Clip | None) -> Format:
    """The format with a transform's clip, where it is an integer of at most `clip.bits` bits that has no clip yet."""
    if clip and isinstance(fmt, IntFormat) and fmt.bits <= clip.bits and fmt.clip == 1.0:
        return replace(fmt, clip=clip.share)
    return fmt


def _cached_states(prepared: Prepared) -> tuple[str, ...]:
    """Keys and values; keys before the position's rotation where the transform maps them there."""
    early = {name.removesuffix(BEFORE_ROPE) for name in prepared.states if name.endswith(BEFORE_ROPE)}
    kept = [name for name in prepared.network.states if name.endswith((".key", ".value")) and name not in early]
    return (*kept, *(f"{name}{BEFORE_ROPE}" for name in early))


BEFORE_ROPE = "_before_rope"
"""ending of a key's state before rotary position embedding"""


def engine_formats(params: Any, *, act_symmetric: bool = False) -> tuple[Format, Format]:
    """Formats of weights and activations that the engine takes.

    Activations take signed integers of params.act_bits, one scale a token, asymmetric unless `act_symmetric`; FP16; or
    the engine's own format.
    InputError for a unit that is no GEMM engine.
    """
    engine = unit_of(params)
    require(engine.kind is Kind.GEMM, f"quantize: {engine.name} multiplies no matrices; take a GEMM engine")
    name, options = engine.weight_format(params)
    if engine.has_act_format:
        own, own_options = engine.act_format(params)
        return get_format(name, **options), get_format(own, **own_options)
    if is_float(params):
        return get_format(name, **options), get_format("fp16")
    return get_format(name, **options), IntFormat(bits=params.act_bits, symmetric=act_symmetric)


def _held(part: Part, params: Any, activations: Format) -> Product:
    if params is None:
        return Product(part=part)
    entry = unit_of(params)
    rule = f"quantize: {entry.name} takes activations of one format, {activations!r}"
    require(part.activations == activations, f"{rule}; take a quantizer with one, or no engine")
    if not entry.has_act_format:
        _check_steps(entry.name, part.weights)
    operand, worth = entry.operand(params, part.weights)
    return Product(part=part, params=params, operand=operand, worth=worth)


def _check_steps(engine: str, weights: Quantized) -> None:
    """InputError unless each column has one step, or the codes are real numbers by themselves."""
    one_step = weights.integers is not None and weights.step is not None and weights.step.shape[0] == 1
    rule = f"quantize: {engine}'s weight format needs integers with one step a column"
    require(weights.step is None or one_step, rule)


# ------------------------------------------------------------------------------------------------ measures


def layer_errors(quantized: QuantizedNetwork, arithmetic: Arithmetic) -> dict[str, float]:
    """Weight -> relative error ||Y_q - Y|| / ||Y|| (Frobenius) of its layer over ERROR_ROWS of the calibration inputs.

    Each layer gets the activations of the float network: errors do not add up from layer to layer.
    """
    network = quantized.prepared.network
    exact = float_arithmetic(network).project
    found = {}
    for group in quantized.products:
        x = spaced(quantized.inputs[group], ERROR_ROWS)
        pairs = zip(exact(group, x), arithmetic.project(group, x), strict=True)
        for name, (right, got) in zip(network.groups[group].readers, pairs, strict=True):
            found[name] = float(np.linalg.norm(got - right) / max(np.linalg.norm(right), TINY))
    return found


ERROR_ROWS = 512
TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What hardware does for a network's workload, in the order of the forward pass."""

    products: tuple[dict[str, Any], ...]
    """what the engine's `timing` and `ops` take for each product: the shape and, where cycles depend on what the
    operands hold, what they need to know of these operands; or what else `work_of` was asked to note"""
    maps: tuple[tuple[Map, int, int], ...]
    """online map, M, K"""
    codes: tuple[tuple[Format, Hadamard | None, int, int], ...]
    """activations that became codes, of a unit that maps them or of the engine: format, the map whose unit they come
    from (None: FP16 out of memory), M, K"""


def shape_of(params: Any, A: Any, W: Any) -> dict[str, Any]:
    """What the engine's `timing` and `ops` take for this product."""
    return unit_of(params).shape_of(params, A, W)


def work_of(quantized: QuantizedNetwork, note: Callable[[Any, Any, Any], Any] = shape_of) -> Work:
    """What one forward pass over the network's workload does on the engine.

    `note` says what is kept of a product of the engine's params, its A and its W.
    """
    products, maps, codes = [], [], []
    last: list[Hadamard | None] = [None]

    def multiply(product: Product, q: Quantized) -> Floats:
        products.append(note(product.params, engine_input(product.params, q)[0], product.operand))
        return on_engine(product, q)

    def turn(m: Map, y: Floats, worth: Floats) -> tuple[Floats, Floats]:
        maps.append((m, *y.shape))
        if isinstance(m, Hadamard):
            codes.append((m.in_format, last[0], *y.shape))
            last[0] = m
        return with_worth(m, y, worth, on_unit=True)

    def encode(fmt: Format, x: Floats) -> Quantized:
        codes.append((fmt, last[0], *x.shape))
        return encoded(fmt, x)

    compute = quantized.arithmetic(Way(turn=turn, encode=encode, multiply=multiply))

    def project(group: str, x: Floats) -> tuple[Floats, ...]:
        last[0] = None
        return compute.project(group, x)

    network = quantized.prepared.network
    network.forward(network, network.workload, replace(compute, project=project))
    return Work(products=tuple(products), maps=tuple(maps), codes=tuple(codes))
