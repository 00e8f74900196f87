"""Tokens a second of one decoder on a GPU, on the NPU alone, and on NPU and PIM under several schedules.

The systems differ in nothing but what their `System` says; GPU alone is a roofline and no simulation.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hwsim.pim.npu import Kernel, roofline_ns
from hwsim.pim.params import Decoder, Machine, check_capacity, decoder
from hwsim.pim.requests import (
    Packing,
    check_lengths,
    dataset,
    halves,
    load,
    min_load,
    round_robin,
    sample,
)
from hwsim.pim.schedule import Slice, SubBatch, on_npu, on_pim, simulate
from models.unit import nearest, require

LAYERS = 2
"""simulated of every run: a layer's period is taken from the end of the first to that of the last. Refresh, which does
not fall on layers, moves it by a few thousandths."""


@dataclass(frozen=True, kw_only=True)
class System:
    """How NPU and PIM share a decoder layer."""

    summary: str
    row_buffers: int
    packing: Packing
    sub_batches: int


SYSTEMS: Mapping[str, System] = {
    "naive": System(
        summary="NPU + PIM, blocked mode, requests to channels in turn, one batch",
        row_buffers=1,
        packing=round_robin,
        sub_batches=1,
    ),
    "dual": System(summary="naive with two row buffers", row_buffers=2, packing=round_robin, sub_batches=1),
    "packed": System(summary="dual with load packing", row_buffers=2, packing=min_load, sub_batches=1),
    "neupims": System(
        summary="packed with two sub-batches, where the batch is large enough",
        row_buffers=2,
        packing=min_load,
        sub_batches=2,
    ),
    "interleaved-blocked": System(
        summary="NeuPIMs' schedule with one row buffer", row_buffers=1, packing=min_load, sub_batches=2
    ),
}
"""Systems with PIM, those that add one of NeuPIMs' parts at a time among them."""

PAPER = {"gpu": 3.0, "npu": 2.4, "naive": 1.6}
"""Throughput of NeuPIMs over that of each other system, as its abstract has it."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One decode iteration of a batch: every request gets one token."""

    system: str
    model: str
    batch: int
    cycles: int
    """of all layers of one device, a stage where layers are divided into stages; nanoseconds on the GPU"""
    tokens_per_s: float
    """that leave one stage, which holds one batch at a time"""
    npu_utilization: float
    """multiply-accumulates in arrays (or GPU) over what they could do, 0 to 1"""
    pim_utilization: float
    """multiply-accumulates in banks over what they could do if rows were always open, 0 to 1"""
    bandwidth_utilization: float
    """bytes to and from the NPU, PIM's results included, over what the data buses could carry, 0 to 1"""
    simulated_layers: int
    elapsed: int
    """cycles of the layers simulated"""
    slices: tuple[Slice, ...]
    """what every track did in them"""


def throughput(system: str, model: str | Decoder, lengths: Sequence[int], machine: Machine | None = None) -> Result:
    """One decode iteration of a batch whose requests have `lengths` tokens in their caches.

    `system`: gpu, npu or one of `SYSTEMS`. InputError for an unknown system or model, lengths that are none, a head
    longer than a row, and a batch that a device's memory cannot hold.
    """
    machine = machine or Machine()
    shape = decoder(model) if isinstance(model, str) else model
    known = ("gpu", "npu", *SYSTEMS)
    require(system in known, f"no system {system!r}; {nearest(system, known)}")
    tokens = check_lengths(lengths)
    check_capacity(shape, tokens, machine.pim)
    if system == "gpu":
        return _gpu(shape, tokens, machine)
    if system == "npu":
        return _simulated(system, shape, tokens, machine, [on_npu(machine, shape, tokens)], 1)
    parts = sub_batches(SYSTEMS[system], shape, tokens, machine)
    return _simulated(system, shape, tokens, machine, parts, SYSTEMS[system].row_buffers)


def sub_batches(system: System, model: Decoder, lengths: Sequence[int], machine: Machine) -> list[SubBatch]:
    """The batch packed onto channels and divided as the system does."""
    channels = machine.pim.channels
    loads = [load(model, machine.pim, length) for length in lengths]
    placed = system.packing(loads, channels)
    split = system.sub_batches == 2 and len(lengths) >= machine.interleave_from
    part_of = halves(loads, placed, channels) if split else [0] * len(lengths)
    members = [[i for i, p in enumerate(part_of) if p == part] for part in range(1 + split)]
    return [on_pim(machine, model, [lengths[i] for i in m], [placed[i] for i in m]) for m in members]


def _simulated(
    system: str, model: Decoder, lengths: Sequence[int], machine: Machine, parts: Sequence[SubBatch], row_buffers: int
) -> Result:
    run = simulate(machine, parts, row_buffers, LAYERS)
    cycles, layers = run.period
    period = cycles / layers
    kernels = [kernel for part in parts for kernel in part.kernels]
    requests = [one for part in parts for one in part.requests]
    pim_macs = 2 * sum(lengths) * model.device_width if requests else 0
    returned = sum(r.logits.result_bytes + r.attend.result_bytes for r in requests)
    written = sum(r.probability_bytes + r.output_bytes for r in requests)
    moved = sum(kernel.bytes for kernel in kernels) + returned + written
    return Result(
        system=system,
        model=model.name,
        batch=len(lengths),
        cycles=-(-cycles * model.device_layers // layers),
        tokens_per_s=len(lengths) * machine.npu.clock_mhz * 1e6 / (period * model.device_layers),
        npu_utilization=sum(kernel.macs for kernel in kernels) / (period * machine.npu.peak_macs),
        pim_utilization=pim_macs / (period * machine.pim.peak_macs),
        bandwidth_utilization=moved / (period * machine.pim.peak_bytes),
        simulated_layers=LAYERS,
        elapsed=run.elapsed,
        slices=run.slices,
    )


def _gpu(model: Decoder, lengths: Sequence[int], machine: Machine) -> Result:
    kernels = on_npu(machine, model, lengths).kernels
    times = [roofline_ns(machine.gpu, kernel) for kernel in kernels]
    period = sum(times)
    return Result(
        system="gpu",
        model=model.name,
        batch=len(lengths),
        cycles=round(period * model.device_layers),
        tokens_per_s=len(lengths) * 1e9 / (period * model.device_layers),
        npu_utilization=2 * sum(kernel.macs for kernel in kernels) / (period * machine.gpu.gflops),
        pim_utilization=0.0,
        bandwidth_utilization=sum(kernel.bytes for kernel in kernels) / (period * machine.gpu.gbytes),
        simulated_layers=1,
        elapsed=round(period),
        slices=tuple(_gpu_slices(kernels, times)),
    )


def _gpu_slices(kernels: Sequence[Kernel], times: Sequence[float]) -> list[Slice]:
    starts = [round(sum(times[:i])) for i in range(len(times) + 1)]
    return [
        Slice(track="gpu", name=kernel.name, start=start, end=end, amount=end - start)
        for kernel, start, end in zip(kernels, starts, starts[1:], strict=False)
    ]


COMPARED = ("gpu", "npu", "naive", "neupims")


def compare(
    model: str | Decoder,
    batch: int,
    data: str = "sharegpt",
    seeds: Sequence[int] = (0, 1, 2),
    systems: Sequence[str] = COMPARED,
    machine: Machine | None = None,
) -> list[dict[str, str | int | float]]:
    """One row for each system: means over seeds, standard deviations of a sample (0 where there is one seed).

    `speedup` is NeuPIMs' throughput over the system's, seed by seed; `paper` is the paper's average over its own
    models, batches and data sets, 0 where it has none.
    """
    require(len(seeds) > 0, "compare: at least one seed is needed")
    lengths = [sample(dataset(data), batch, seed) for seed in seeds]
    runs = {
        name: [throughput(name, model, one, machine) for one in lengths]
        for name in dict.fromkeys((*systems, "neupims"))
    }
    best = [run.tokens_per_s for run in runs["neupims"]]
    return [{**_row(runs[name], best), "data": data} for name in systems]


def _row(runs: Sequence[Result], best: Sequence[float]) -> dict[str, str | int | float]:
    def mean(of: Callable[[Result], float]) -> float:
        return statistics.fmean(map(of, runs))

    first, rates = runs[0], [run.tokens_per_s for run in runs]
    speedups = [b / rate for b, rate in zip(best, rates, strict=True)]
    return {
        "model": first.model,
        "batch": first.batch,
        "system": first.system,
        "tokens_per_s": statistics.fmean(rates),
        "tokens_per_s_std": _deviation(rates),
        "npu_utilization": mean(lambda run: run.npu_utilization),
        "pim_utilization": mean(lambda run: run.pim_utilization),
        "bandwidth_utilization": mean(lambda run: run.bandwidth_utilization),
        "speedup": statistics.fmean(speedups),
        "speedup_std": _deviation(speedups),
        "paper": PAPER.get(first.system, 0.0),
    }


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
