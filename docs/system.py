"""Writes docs/system.md: networks on whole machines; and docs/system-cost.svg, what simulating them costs.

Run: python docs/system.py > docs/system.md
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hwsim.coders import QUANTIZER
from hwsim.files import write_atomic
from hwsim.system.lower import Stream, widths_of
from hwsim.system.machine import (
    DramSpec,
    EngineSpec,
    LayerSpec,
    Machine,
    ScheduleSpec,
    UnitSpec,
    WidthSpec,
    load_machine,
)
from hwsim.system.power import shapes
from hwsim.system.program import repeats
from hwsim.system.run import Result, run
from hwsim.system.simulate import simulate
from hwsim.workloads import load_workload
from hwsim.workloads.graph import Builder, Gemm, Graph, Role
from models.catalog import unit

PICTURE = Path(__file__).with_name("system-cost.svg")
MODEL, CONTEXT = "llama-2-7b", 2048

HEAD = """# Networks on whole machines

`hwsim run NETWORK MACHINE` simulates a network's transfers and tiles in integer cycles: main memory, DMA, scratchpads,
engines. Engines take the cycles of their own `timing`, which is that of the RTL. This page is written by `python
docs/system.py > docs/system.md`; every figure in it is computed. Clocks are 1 GHz, so that a byte a cycle is a GB/s.

## Compute cycles and SCALE-Sim's

With operands that are always there, a machine's cycles are its array's. `convention: scalesim` counts them as SCALE-Sim
does; a test holds these rows against its own reports. [cycles.md](cycles.md) says where the difference comes from: in
WS and IS two cycles for the whole product, in OS the rows that leave and a register stage, R + 1 cycles a fold and one.
An array of 8 x 8:

| M | K | N | WS SCALE-Sim | ours | OS SCALE-Sim | ours | IS SCALE-Sim | ours |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""


# ---------------------------------------------------------------------------------------------- small parts


def page() -> str:
    """The whole document."""
    sections = (scalesim_lines, weights_section, cache_section, transforms_section, choices_section, cost_section)
    return HEAD + "".join(section() for section in sections)


def table(rows: Sequence[Sequence[object]]) -> str:
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def product(m: int, k: int, n: int) -> Graph:
    """A single product with weights."""
    b = Builder(f"{m} x {k} x {n}")
    b.linear("product", b.tensor("x", (m, k)), n)
    return b.graph()


def one_layer(network: Graph, name: str) -> Graph:
    """A layer of a network as a network of its own."""
    layer = next(layer for layer in network.layers if layer.name == name)
    tensors = {tensor: network.tensors[tensor] for tensor in (*layer.inputs, *layer.outputs)}
    return Graph(name=name, layers=(layer,), tensors=tensors)


def changed(machine: Machine, **parts: Any) -> Machine:
    return machine.model_copy(update=parts)


def tiled(order: str, *tile: int) -> ScheduleSpec:
    """The same tile for all products, instead of a search."""
    return ScheduleSpec(layers=(LayerSpec(match="*", order=order, tile=tile),))


def decode(batch: int, context: int = CONTEXT, rewrite: str | None = None) -> Graph:
    return load_workload(MODEL, phase="decode", batch=batch, context=context, rewrite=rewrite)


# ---------------------------------------------------------------------------------------------- SCALE-Sim


SHAPES = ((16, 16, 16), (33, 17, 65), (1, 64, 96), (100, 40, 24), (5, 100, 9), (64, 64, 64))
"""M, K, N"""


def scalesim_lines() -> str:
    return table([[*shape, *(f"{cycles:,}" for cycles in array_cycles(shape))] for shape in SHAPES])


def array_cycles(shape: tuple[int, int, int]) -> list[int]:
    """Of an array of 8 x 8: SCALE-Sim's and ours for WS, OS and IS."""
    base = changed(load_machine("scalesim-32"), schedule=tiled("mnk", *shape))
    return [
        run(product(*shape), changed(base, engines=(array(dataflow, convention),))).total_cycles
        for dataflow in ("WS", "OS", "IS")
        for convention in ("scalesim", "rtl")
    ]


def array(dataflow: str, convention: str) -> EngineSpec:
    values = {"rows": 8, "cols": 8, "dataflow": dataflow}
    return EngineSpec(name="array", unit="systolic", set=values, convention=convention)


# ---------------------------------------------------------------------------------------------- weights


WEIGHTS = """
## Decoding: bits of a weight and bandwidth

A token takes every weight once, so that memory sets the pace as long as the engine keeps up. Engines here have
{peak:,} multiply-accumulates a cycle at their peak, whatever their weights are; a `lutgemm` of 8 bit planes does
attention, with a cache of 8 bits; the rest is `mxu-128`. Tokens a second of Llama-2-7B at context {context}, in
brackets where memory is busy {busy:.0%} of the time or more. *Enough* is the first of these bandwidths that comes
within 5 % of unlimited bandwidth.

| batch | engine | bits of a weight | weights a cycle | {bandwidths} | unlimited | enough |
| ---: | --- | ---: | ---: | {rules} | ---: | ---: |
{rows}
*Weights a cycle* is what the engine takes of a tile {tile} with one row. An array then does little but load: a
weight-stationary one takes a row of weights a cycle, and is not loaded again before the last sum has left; an
input-stationary one holds the activations, and weights stream through it. So one engine is up to {fastest:.0f} times as
fast as another of the same peak, and the bandwidth that it can use is weights a cycle times their bits.

- Below that bandwidth, tokens a second go with the inverse of the bits, save for cache and activations: at {least}
  B/cycle {four:.2f} times as many with 4 bits as with 8, {two:.2f} times with 2.
- Above it fewer bits bring nothing: the multipliers' array with weights of 4 bits ends where that of 8 bits does. They
  pay where bandwidth is small, or with an engine that is loaded fast.
- A batch of {large} shares the way of a weight into the engine, but no caches: weights' bits count for less.

Tiles are given here, {tile} of weights. The search finds some with which a token of INT8 at {searched} B/cycle takes
{gain:.1%} fewer cycles: while weights are read ahead, tiles hardly count.
"""
BANDWIDTHS = (32, 64, 128, 256, 512, 1024)
BATCHES = (1, 16)
BUSY = 0.95
TILE = (1024, 128, 4096)


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """An engine of the table."""

    label: str
    unit: str
    bits: int
    """of a weight"""
    values: Mapping[str, Any]
    count: int = 1


MULTIPLIERS = {"rows": 128, "cols": 128, "buffers": 2}
TABLES = {"rows": 32, "mu": 4, "cols": 128}
ATTENTION = EngineSpec(name="attention", unit="lutgemm", set={**TABLES, "weight_bits": 8}, tasks=("attention",))
INT8 = Choice(label="systolic WS, INT8", unit="systolic", bits=8, values=MULTIPLIERS)
TABLES_4, TABLES_3, TABLES_2 = (
    Choice(label="lutgemm", unit="lutgemm", bits=bits, values={**TABLES, "weight_bits": bits}) for bits in (4, 3, 2)
)
CHOICES = (
    Choice(label="fpmac, four of 64 x 64", unit="fpmac", bits=16, values={"rows": 64, "cols": 64}, count=4),
    INT8,
    Choice(label="systolic IS, INT8", unit="systolic", bits=8, values={**MULTIPLIERS, "dataflow": "IS"}),
    Choice(label="systolic WS, INT8 x INT4", unit="systolic", bits=4, values={**MULTIPLIERS, "weight_bits": 4}),
    TABLES_4,
    TABLES_3,
    Choice(label="shiftadd", unit="shiftadd", bits=3, values={**TABLES, "weight_bits": 3}),
    TABLES_2,
)


def decoder(choice: Choice, bandwidth: float | None, cache: int | str = 8) -> Machine:
    """`mxu-128` with that engine for all products with weights, and tiles that are given."""
    engine = EngineSpec(
        name="products", unit=choice.unit, count=choice.count, set=dict(choice.values), tasks=("gemm", "conv")
    )
    return changed(
        load_machine("mxu-128"),
        engines=(engine, ATTENTION),
        dram=DramSpec(bytes_per_cycle=bandwidth, latency_cycles=100),
        widths=WidthSpec(activations=16 if choice.bits == 16 else 8, weights=choice.bits, cache=cache),
        schedule=tiled("mnk", *TILE),
    )


def weights_section() -> str:
    rows = [row for batch in BATCHES for row in weights_rows(batch)]
    entering = [weights_a_cycle(choice) for choice in CHOICES]
    eight, four, two = (rates(choice, 1)[0] for choice in (INT8, TABLES_4, TABLES_2))
    searched = BANDWIDTHS[1]
    given = decoder(INT8, searched)
    cycles = [run(decode(1), changed(given, schedule=spec)).total_cycles for spec in (given.schedule, ScheduleSpec())]
    return WEIGHTS.format(
        peak=128 * 128,
        context=CONTEXT,
        busy=BUSY,
        bandwidths=" | ".join(f"{bandwidth} B/cycle" for bandwidth in BANDWIDTHS),
        rules=" | ".join("---:" for _ in BANDWIDTHS),
        rows=table(rows),
        tile=f"{TILE[1]} x {TILE[2]}",
        fastest=max(entering) / min(entering),
        least=BANDWIDTHS[0],
        four=four / eight,
        two=two / eight,
        large=BATCHES[-1],
        searched=searched,
        gain=1 - cycles[1] / cycles[0],
    )


def weights_rows(batch: int) -> list[list[object]]:
    return [
        [batch, choice.label, choice.bits, f"{weights_a_cycle(choice):.0f}", *shown, enough(rates(choice, batch))]
        for choice in CHOICES
        for shown in [[shown_rate(result, batch) for result in decoded(choice, batch)]]
    ]


@cache
def decoded(choice: Choice, batch: int) -> list[Result]:
    """At every bandwidth, the unlimited one last."""
    return [run(decode(batch), decoder(choice, bandwidth)) for bandwidth in (*BANDWIDTHS, None)]


def rates(choice: Choice, batch: int) -> list[float]:
    return [batch / result.seconds for result in decoded(choice, batch)]


def weights_a_cycle(choice: Choice) -> float:
    """That the engine takes of a tile with one row."""
    entry, (_, k, n) = unit(choice.unit), TILE
    return k * n / entry.timing(entry.params(**choice.values), M=1, K=k, N=n // choice.count).total_cycles


def shown_rate(result: Result, batch: int) -> str:
    shown = f"{batch / result.seconds:.1f}"
    return f"({shown})" if result.busy_cycles["bus"] >= BUSY * result.total_cycles else shown


def enough(found: Sequence[float]) -> str:
    good = [bandwidth for bandwidth, tokens in zip(BANDWIDTHS, found, strict=False) if tokens > 0.95 * found[-1]]
    return f"{good[0]}" if good else "none"


# ---------------------------------------------------------------------------------------------- caches


CACHE = """
## Decoding: formats of keys and values

The same machine with `lutgemm` of 4 bits and {bandwidth} B/cycle. Only the width in memory changes; attention's arrays
multiply integers of 8 bits in every row, and take as many cycles. Scales of a group are counted. Tokens a second as
above, and what a token reads of the caches of all its layers; the token's own key is one of them:

| batch | cache | bits of a value | {contexts} |
| ---: | --- | ---: | {rules} |
{rows}
A cache of {long} tokens and {wide} bits has {times:.1f} times as many bytes as the weights. At long contexts the bits
of the cache are what those of the weights are at short ones, and a batch does not share them out.
"""
FORMATS = ("16", "8", "4", "int4:group=128")
KEYS = (2048, 8192, 32768)
CACHE_BANDWIDTH = 128


def cache_section() -> str:
    rows = [cache_row(batch, form) for batch in BATCHES for form in FORMATS]
    longest = decode(1, KEYS[-1] - 1)
    weights = longest.elements(Role.WEIGHT) * TABLES_4.bits
    return CACHE.format(
        bandwidth=CACHE_BANDWIDTH,
        contexts=" | ".join(f"{keys:,} keys: MB | tokens/s" for keys in KEYS),
        rules=" | ".join("---: | ---:" for _ in KEYS),
        rows=table(rows),
        long=f"{KEYS[-1]:,}",
        wide=FORMATS[0],
        times=longest.elements(Role.CACHE) * int(FORMATS[0]) / weights,
    )


def cache_row(batch: int, form: str) -> list[object]:
    machine = decoder(TABLES_4, CACHE_BANDWIDTH, int(form) if form.isdigit() else form)
    bits = widths_of(machine).cache
    results = [run(decode(batch, keys - 1), machine) for keys in KEYS]
    cells = [[f"{cache_bytes(result) / batch / 1e6:,.0f}", shown_rate(result, batch)] for result in results]
    return [batch, form, f"{float(bits):g}", *(cell for pair in cells for cell in pair)]


def cache_bytes(result: Result) -> int:
    """Keys and values read."""
    return sum(layer.read_bytes["weights"] for layer in result.layers if layer.what == "attention")


# ---------------------------------------------------------------------------------------------- transforms


TRANSFORMS = """
## Hadamard transforms and quantizers on the critical path

Llama-2-7B on `mxu-128` with `--rewrite {rewrite}`: before every product with weights, activations are
transformed in blocks of {block} channels and then become codes. A norm, the transform and the quantizer hand rows on to
each other, so that they work at the same time, and the next product waits for the last of them. *Values a cycle* are
those of all units together (a quantizer passes over a row twice), *busy* is the share of all cycles, *added* what the
network takes longer than without the rewrite. *Rule*: all values over those that the slower kind of unit takes in a
cycle, over the cycles without the rewrite.

| phase | transform units | values a cycle | busy | quantizers | values a cycle | busy | added | rule |
| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |
{rows}
- **Prefill.** The rule for one product: where the slower unit takes v values a cycle, before a product of N columns on
  an engine of P multiply-accumulates a cycle, they add P / (v N) to its time. Products that read the same activations
  share them and count as one. In this network N is {narrow:,} to {wide:,}, so that v = {side}, one row of the array,
  costs {least:.1%} to {most:.1%}.
- A parallel unit and as many folded ones as make its rate do the same. The quantizer of {lanes} lanes, the default, is
  slower than a parallel transform: {default:.1%} are its own.
- **Decoding.** A product waits for K N weights, its activations are K values, so that nothing here adds more than
  {decoding:.1%}. Several units share rows out, of which one token has one: more than one bring nothing.
"""
BLOCK = 64
REWRITE = f"hadamard:block={BLOCK}+quantize"
PREFILL = 2048
PREFILL_TILE = (512, 512, 1024)


@dataclass(frozen=True, kw_only=True, eq=False)
class Units:
    """Transform units and quantizers of a row of the table."""

    label: str
    transforms: UnitSpec
    quantizers: UnitSpec

    @property
    def transform_rate(self) -> float:
        """Values a cycle."""
        return self.transforms.count * hadamard_rate(self.transforms.params)

    @property
    def lanes(self) -> int:
        """Of a quantizer."""
        return int(self.quantizers.params.get("lanes", QUANTIZER["lanes"]))

    @property
    def quantizer_rate(self) -> float:
        return self.quantizers.count * self.lanes / QUANTIZER["passes"]


FOLDED = {"lanes": 8}
WIDE = UnitSpec(set={"lanes": 64})
FOUR_WIDE = UnitSpec(set={"lanes": 64}, count=4)
UNITS = (
    Units(label="1, parallel", transforms=UnitSpec(), quantizers=UnitSpec()),
    Units(label="1, folded", transforms=UnitSpec(set=FOLDED), quantizers=UnitSpec()),
    Units(label="1, parallel", transforms=UnitSpec(), quantizers=WIDE),
    Units(label="1, parallel", transforms=UnitSpec(), quantizers=FOUR_WIDE),
    Units(label="1, folded", transforms=UnitSpec(set=FOLDED), quantizers=FOUR_WIDE),
    Units(label="4, folded", transforms=UnitSpec(set=FOLDED, count=4), quantizers=FOUR_WIDE),
    Units(label="16, folded", transforms=UnitSpec(set=FOLDED, count=16), quantizers=FOUR_WIDE),
    Units(label="4, parallel", transforms=UnitSpec(count=4), quantizers=FOUR_WIDE),
)
PHASES = ("prefill", "decode")


def transforms_section() -> str:
    widths, side = product_columns(), load_machine("mxu-128").engines[0].made.rows
    return TRANSFORMS.format(
        rewrite=REWRITE,
        block=BLOCK,
        rows=table([transform_row(phase, units) for phase in PHASES for units in UNITS]),
        narrow=min(widths),
        wide=max(widths),
        side=side,
        least=side / max(widths),
        most=side / min(widths),
        lanes=QUANTIZER["lanes"],
        default=added("prefill", UNITS[0]),
        decoding=max(added("decode", units) for units in UNITS),
    )


def transform_row(phase: str, units: Units) -> list[object]:
    result = transformed(phase, units)
    busy = {name: f"{cycles / result.total_cycles:.1%}" for name, cycles in result.busy_cycles.items()}
    slower = min(units.transform_rate, units.quantizer_rate)
    return [
        phase,
        units.label,
        f"{units.transform_rate:.1f}",
        busy["transform"],
        f"{units.quantizers.count} of {units.lanes} lanes",
        f"{units.quantizer_rate:g}",
        busy["quantize"],
        f"{added(phase, units):.1%}",
        f"{transformed_values(result) / slower / plain(phase).total_cycles:.1%}",
    ]


def added(phase: str, units: Units) -> float:
    return transformed(phase, units).total_cycles / plain(phase).total_cycles - 1


@cache
def transformed(phase: str, units: Units) -> Result:
    machine = changed(phase_machine(phase), transform=units.transforms, quantizer=units.quantizers)
    return run(phase_graph(phase, REWRITE), machine)


@cache
def plain(phase: str) -> Result:
    return run(phase_graph(phase, None), phase_machine(phase))


def phase_graph(phase: str, rewrite: str | None) -> Graph:
    if phase == "decode":
        return decode(1, rewrite=rewrite)
    return load_workload(MODEL, phase=phase, tokens=PREFILL, rewrite=rewrite)


def phase_machine(phase: str) -> Machine:
    return changed(load_machine("mxu-128"), schedule=tiled("mnk", *(TILE if phase == "decode" else PREFILL_TILE)))


def transformed_values(result: Result) -> int:
    streams = [built.planned.work for built in result.built if isinstance(built.planned.work, Stream)]
    return sum(work.rows * work.channels for work in streams if any(done.block for done in work.passes))


def hadamard_rate(values: Mapping[str, Any]) -> float:
    """Values a cycle of a transform unit."""
    entry, rows = unit("hadamard"), 1 << 20
    cycles = entry.timing(entry.params(points=BLOCK, **values), M=rows, K=BLOCK).total_cycles
    return rows * BLOCK / cycles


def product_columns() -> list[int]:
    """Columns of all products that read the same transformed activations, in a block of the decoder."""
    graph = decode(1, rewrite=REWRITE)
    found: dict[str, int] = {}
    for layer in graph.layers:
        if isinstance(layer.op, Gemm) and ".layers.0." in layer.name:
            found[layer.inputs[0]] = found.get(layer.inputs[0], 0) + layer.op.N
    return list(found.values())


# ---------------------------------------------------------------------------------------------- choices


CHOICES_TEXT = """
## What choices cost

**Objectives.** The best tiling of a layer alone on `gemmini-16` for each objective, of all legal ones:

| layer | objective | order | tile M K N | cycles | bytes moved | energy [uJ] |
| --- | --- | --- | --- | ---: | ---: | ---: |
{objectives}
The fewest cycles of the first one are {saved:.1%} fewer than those of the least traffic, and move {paid:.0%} more
bytes: where the array is busy anyway, take `traffic` or `energy`. Least traffic is not least energy: in the second one,
folds over K of one tile follow each other with 16 rows, fewer than the array's latency, and are filled up with zeros
([cycles.md](cycles.md), two buffers), which cross the scratchpads' edge too.

**Overlap.** Double buffering gives half the room to each tile. Prefetching loads the next layer's weights under the
present one. `mxu-128`, cycles in millions, tilings searched for each machine:

| double buffering | prefetching | ResNet-50 | Llama-2-7B, one token |
| --- | --- | ---: | ---: |
{overlap}
**Attention.** Fused, scores and probabilities stay on chip. `mxu-128`, all of Llama-2-7B:

| attention | prefill of {tokens} tokens, cycles | bytes | one token, cycles | bytes |
| --- | ---: | ---: | ---: | ---: |
{attention}
**Convolution.** Indirect addressing reads images; im2col writes them out as matrices on the vector unit and reads
those. ResNet-50 on `mxu-128`:

| convolution | cycles | bytes moved | energy [mJ] |
| --- | ---: | ---: | ---: |
{convolution}"""
OBJECTIVES = ("cycles", "traffic", "energy")
LAYERS = ("512 x 4096 x 4096", "16 x 4096 x 11008", "ResNet-50 layer2.0.conv2")
PROMPT = 1024
NETWORKS: Mapping[str, Callable[[], Graph]] = {
    "ResNet-50": lambda: load_workload("resnet50"),
    "one token": lambda: decode(1),
    "prefill": lambda: load_workload(MODEL, phase="prefill", tokens=PROMPT),
}


def choices_section() -> str:
    quick, lean = (objective_run(LAYERS[0], objective) for objective in ("cycles", "traffic"))
    return CHOICES_TEXT.format(
        objectives=table([objective_row(layer, objective) for layer in LAYERS for objective in OBJECTIVES]),
        saved=1 - quick.total_cycles / lean.total_cycles,
        paid=quick.bytes / lean.bytes - 1,
        overlap=table([overlap_row(double, ahead) for double in (False, True) for ahead in (False, True)]),
        tokens=PROMPT,
        attention=table([attention_row(how) for how in ("unfused", "fused")]),
        convolution=table([convolution_row(how) for how in ("im2col", "indirect")]),
    )


def layer_graph(name: str) -> Graph:
    if name.startswith("ResNet-50"):
        return one_layer(load_workload("resnet50"), name.split()[1])
    m, k, n = map(int, name.split(" x "))
    return product(m, k, n)


def on_mxu(name: str, **parts: Any) -> Result:
    """One of `NETWORKS` on `mxu-128` so changed, where it is another machine then."""
    base = load_machine("mxu-128")
    same = all(getattr(base, part) == value for part, value in parts.items())
    return unchanged(name) if same else run(NETWORKS[name](), changed(base, **parts))


@cache
def unchanged(name: str) -> Result:
    return run(NETWORKS[name](), load_machine("mxu-128"))


@cache
def objective_run(name: str, objective: str) -> Result:
    return run(layer_graph(name), changed(load_machine("gemmini-16"), schedule=ScheduleSpec(objective=objective)))


def objective_row(name: str, objective: str) -> list[object]:
    result = objective_run(name, objective)
    layer = result.layers[0]
    return [
        name,
        objective,
        layer.order,
        " ".join(map(str, layer.tile or ())),
        f"{result.total_cycles:,}",
        f"{result.bytes:,}",
        f"{sum(result.energy_pj.values()) / 1e6:,.0f}",
    ]


def overlap_row(double: bool, ahead: bool) -> list[object]:
    results = [on_mxu(name, double_buffering=double, prefetch=ahead) for name in ("ResNet-50", "one token")]
    cycles = (f"{result.total_cycles / 1e6:.3f}" for result in results)
    return ["yes" if double else "no", "yes" if ahead else "no", *cycles]


def attention_row(how: str) -> list[object]:
    results = [on_mxu(name, attention=how) for name in ("prefill", "one token")]
    return [how, *(f"{figure:,}" for result in results for figure in (result.total_cycles, result.bytes))]


def convolution_row(how: str) -> list[object]:
    result = on_mxu("ResNet-50", convolution=how)
    return [how, f"{result.total_cycles:,}", f"{result.bytes:,}", f"{sum(result.energy_pj.values()) / 1e9:.1f}"]


# ---------------------------------------------------------------------------------------------- the simulation's cost


COST = """
## What a simulation costs

Rounds of a loop after which the machine is where it was are counted and not gone through; so are layers that repeat.
What is left are the distinct tiles and the way into and out of each loop. A product M = K = N on `mxu-128` with room
for any tile, tiles given:

| M = K = N | tiles along each | tiles | distinct | simulated |
| ---: | ---: | ---: | ---: | ---: |
{rows}
![Steps and seconds of a simulation](system-cost.svg)

The picture adds the time that it took where this page was written.

| network on `mxu-128` | layers | tiles and pieces | simulated |
| --- | ---: | ---: | ---: |
{networks}"""
SIZES = (1024, 2048, 4096, 8192, 16384)
TILES = (2, 4, 8, 16, 32, 64)
FIXED_TILES, FIXED_SIZE = 8, 8192
UNEVEN = ((8191, 8), (8191, 64))
EVERY_ROUND = 16
"""tiles along each side up to which the picture has a run that goes through every round"""


def cost_section() -> str:
    by_size, by_tiles = cases()
    more = [case for case in by_tiles if case not in by_size]
    return COST.format(
        rows=table([cost_row(size, tiles) for size, tiles in (*by_size, *more, *UNEVEN)]),
        networks=table([network_row(name) for name in NETWORKS]),
    )


def cases() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(M = K = N, tiles along each) of both series."""
    return [(size, FIXED_TILES) for size in SIZES], [(FIXED_SIZE, tiles) for tiles in TILES]


def cost_row(size: int, tiles: int) -> list[object]:
    result = cost_run(size, tiles)
    distinct = {shape for built in result.built for _, shape in shapes(built.planned.work, built.tiling)}
    return [f"{size:,}", tiles, f"{steps(result):,}", len(distinct), result.simulated_steps]


def steps(result: Result) -> int:
    return sum(layer.steps for layer in result.layers)


def cost_run(size: int, tiles: int) -> Result:
    base = load_machine("mxu-128")
    pads = tuple(pad.model_copy(update={"kib": 1 << 20}) for pad in base.scratchpads)
    machine = changed(base, scratchpads=pads, schedule=tiled("mnk", *[-(-size // tiles)] * 3))
    return run(product(size, size, size), machine)


def network_row(name: str) -> list[object]:
    labels = {
        "ResNet-50": "ResNet-50",
        "one token": f"Llama-2-7B, one token at context {CONTEXT}",
        "prefill": f"Llama-2-7B, prefill of {PROMPT}",
    }
    result = unchanged(name)
    return [labels[name], len(NETWORKS[name]().layers), f"{steps(result):,}", result.simulated_steps]


SKIPPED, ALL = "repeated rounds counted", "every round gone through"


def picture() -> str:
    """Steps and seconds against multiply-accumulates and against tiles."""
    import vl_convert

    by_size, by_tiles = cases()
    size_points = [point for case in by_size for point in measured(*case)]
    tile_points = [point for case in by_tiles for point in measured(*case)]
    rows = [
        {
            "hconcat": [
                panel("macs", f"multiply-accumulates, in {FIXED_TILES**3} tiles", size_points, figure),
                panel("tiles", f"tiles, of {FIXED_SIZE**3:.2g} multiply-accumulates", tile_points, figure),
            ]
        }
        for figure in ("steps", "seconds")
    ]
    return vl_convert.vegalite_to_svg({"vconcat": rows, "background": "white"})


def measured(size: int, tiles: int) -> list[dict[str, Any]]:
    """Points of the picture: the simulation alone, the least of several times."""
    result = cost_run(size, tiles)
    program = repeats([built.stage for built in result.built])
    found = []
    for how, skip in ((SKIPPED, True), (ALL, False)):
        if skip or tiles <= EVERY_ROUND:
            times = []
            for _ in range(3):
                begun = time.perf_counter()
                simulated = simulate(program, result.machine, skip=skip)
                times.append(time.perf_counter() - begun)
            point = {"steps": simulated.simulated_steps, "seconds": min(times)}
            found.append({"macs": size**3, "tiles": tiles**3, "how": how, **point})
    return found


def panel(x: str, title: str, points: list[dict[str, Any]], y: str) -> dict[str, Any]:
    log = {"type": "quantitative", "scale": {"type": "log"}}
    how = {"field": "how", "title": "loops", "scale": {"domain": [SKIPPED, ALL]}}
    names = {"steps": "steps gone through", "seconds": "seconds (measured)"}
    return {
        "width": 300,
        "height": 200,
        "data": {"values": points},
        "mark": {"type": "line", "point": {"size": 50, "filled": True}},
        "encoding": {
            "x": {"field": x, "title": title, "axis": {"format": "~e", "grid": False}, **log},
            "y": {"field": y, "title": names[y], "axis": {"grid": False}, **log},
            "color": how,
            "shape": how,
            "strokeDash": how,
        },
    }


if __name__ == "__main__":
    write_atomic(PICTURE, picture())
    print(page(), end="")
