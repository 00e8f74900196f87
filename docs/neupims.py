"""Writes docs/neupims.md: NPU and PIM on our model, beside what the NeuPIMs paper reports.

Run: python docs/neupims.py > docs/neupims.md
"""

import statistics

from hwsim.pim import DATASETS, MODELS, PAPER, SYSTEMS, Machine, PimParams, compare
from hwsim.pim.banks import gwrite_cycles, host_rows, row_cycles, row_stolen
from hwsim.pim.requests import sample

SEEDS = (0, 1, 2)
CELLS = (
    *((model, "sharegpt", 256) for model in MODELS),
    ("gpt3-7b", "sharegpt", 64),
    ("gpt3-7b", "sharegpt", 512),
    ("gpt3-175b", "sharegpt", 512),
    ("gpt3-7b", "alpaca", 256),
    ("gpt3-7b", "alpaca", 512),
)
SHOWN = ("gpu", "npu", "naive", "packed", "neupims")
PARTS = ("gpt3-7b", "sharegpt", 512)

HEAD = """# NPU and PIM

NeuPIMs (G. Heo et al., ASPLOS 2024) puts multipliers into the banks of an NPU's memory: matrix products of a decoder
run on the NPU, attention, whose caches no two requests share, in the banks. Its parts are a second row buffer in each
bank, by which the NPU reads while the bank computes; packing of requests onto channels by load; and two sub-batches,
one on the NPU while the other's attention runs. `hwsim.pim` models these systems on one machine:

| system | |
| --- | --- |
| gpu | a roofline: every kernel at 312 TFLOP/s or 1555 GB/s (NVIDIA A100 40 GB), nothing lost anywhere |
| npu | eight arrays of 128 x 128 at 1 GHz, vector units of 8 x 128 lanes, memory of {bandwidth} GB/s; caches are read |
{systems}

**Memory.** {channels} channels of {banks} banks. A channel's bus moves {column} bytes (128 wires, two bits each) every
tCCD_S = {ccd} cycle: {bandwidth} GB/s in all, of which refresh (tRFC {rfc} in every tREFI {refi}) leaves {left:.1%}.
Timings, tFAW 30 and tRRD 4 and 6 among them, are those of the configuration published with the paper.

**A product in the banks.** GWRITE copies a part of the vector into the channel's buffer. A row operation then opens a
row in all banks (a G_ACT a bank group, tFAW apart), reads it column by column, {words} words of every bank each tCCD_L,
reads the sums out and precharges. Its closed form is held against a model that issues command after command.

| cycles | ours | in the authors' trace generator |
| --- | --- | --- |
{commands}

With two row buffers the NPU loses {stolen} of the {row} cycles of such a row operation: commands and results, as long
as it can open rows between G_ACTs ({rows} rows of 32 bus cycles here). With one it loses all.

**Batches.** Requests have lognormal lengths, cut off at 2048 tokens, at a moment of continuous service. The data sets
themselves are not here: lengths and their means are assumptions. Every figure is a mean over seeds {seeds}, with
the sample's standard deviation.

| data | mean prompt | mean answer | mean cache of a request served |
| --- | --- | --- | --- |
{lengths}

Models are divided as theirs (4, 4, 4 and 8 devices share a layer; 1, 1, 2 and 4 stages of layers), on the GPU too. One
device is simulated, all do the same; tokens are those of the whole group. Exchange between devices, embedding and the
last product are left out on all systems alike. A stage holds one batch; the caches of the other stages' batches are not
counted against its memory. Interleaving is on from a batch of 256, as theirs.

"NeuPIMs over" is its throughput over that system's, batch by batch. Utilization: multiply-accumulates over what arrays
(or the GPU) and banks could do; bytes over what the buses could carry.

## Systems

| model | data | batch | system | tokens/s | NPU | PIM | bus | NeuPIMs over |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""

TAIL = """
## Beside the paper

Means over the table's batches, and over the three of them with 512 requests. The paper's figures are those of its
abstract, over its own models, data and batches.

| NeuPIMs over | ours, all | ours, 512 | paper |
| --- | --- | --- | --- |
{ratios}

Why they differ:

- **GPU.** Ours is an upper bound: no GPU runs at its roof all the time. One at {share:.0%} of it would give the paper's
  3 on the batches of 512. On small batches weights count, which come at {npu_bandwidth} GB/s here, at 1555 there.
- **Batch.** Two sub-batches read every weight twice, and half a batch of 256 leaves arrays waiting: two tiles of an
  array load, stream and leave in 510 cycles, so that each needs 255 vectors. There interleaving costs more than it
  hides ("packed" is
  NeuPIMs without it, {packed:.2f} times as fast at 256 on average). The authors turn it on at 256. Here it pays for
  {pays}.
- **Caches.** The longer the requests, the more PIM gains: with Alpaca's short ones weights and activations dominate.
- **NPU alone.** Ours loads under its work and reads caches at the bus's pace; products of one vector follow each other
  in the arrays without a pause. How the paper's baseline maps attention we do not know.

## Part by part

{model}, {data}, batch {batch}. Sub-batches need the second row buffer: with one, the NPU's reads and the products wait
for each other.

| system | tokens/s | over naive |
| --- | --- | --- |
{parts}
"""


def page() -> str:
    """The whole document."""
    cells = {cell: _rows(*cell) for cell in CELLS}
    lines = [line for cell, rows in cells.items() for line in _lines(cell[1], rows)]
    return _head() + "\n".join(lines) + "\n" + _tail(cells)


def block(model: str, data: str, batch: int) -> list[str]:
    """The table's lines of one batch."""
    return _lines(data, _rows(model, data, batch))


def command_lines() -> list[str]:
    """The table of command cycles."""
    pim = PimParams()
    rows = (
        ("GWRITE of a row", gwrite_cycles(pim, 32), 100),
        ("a row of values, 32 columns, one result", row_cycles(pim, 32, 1), 184),
        ("a row of keys, 32 columns, four heads' results", row_cycles(pim, 32, 4), 184),
    )
    return [f"| {what} | {ours} | {theirs} |" for what, ours, theirs in rows]


def _rows(model: str, data: str, batch: int) -> list[dict]:
    return compare(model, batch, data, SEEDS, SHOWN)


def _rate(row: dict) -> str:
    return f"{row['tokens_per_s']:,.0f} ± {row['tokens_per_s_std']:,.0f}"


def _lines(data: str, rows: list[dict]) -> list[str]:
    return [
        f"| {r['model']} | {data} | {r['batch']} | {r['system']} "
        f"| {_rate(r)} | {r['npu_utilization']:.0%} | {r['pim_utilization']:.1%} | {r['bandwidth_utilization']:.0%} "
        f"| {r['speedup']:.2f} ± {r['speedup_std']:.2f} |"
        for r in rows
    ]


def _head() -> str:
    pim = PimParams()
    row = row_cycles(pim, 32, 4)
    means = [
        f"| {d.name} | {d.prompt:g} | {d.answer:g} | {statistics.fmean(sample(d, 10_000, 0)):.0f} |"
        for d in DATASETS.values()
    ]
    return HEAD.format(
        bandwidth=pim.peak_bytes,
        systems="\n".join(f"| {name} | {system.summary} |" for name, system in SYSTEMS.items()),
        channels=pim.channels,
        banks=pim.banks,
        column=pim.column_bytes,
        ccd=pim.tCCD_S,
        rfc=pim.tRFC,
        refi=pim.tREFI,
        left=1 - pim.tRFC / pim.tREFI,
        words=pim.multipliers,
        commands="\n".join(command_lines()),
        stolen=row_stolen(pim, 32, 4),
        row=row,
        rows=host_rows(pim, row),
        lengths="\n".join(means),
        seeds=", ".join(map(str, SEEDS)),
    )


def _tail(cells: dict) -> str:
    def mean(system: str, batches: tuple[int, ...]) -> float:
        found = [r["speedup"] for rows in cells.values() for r in rows if r["system"] == system]
        sizes = [rows[0]["batch"] for rows in cells.values()]
        return statistics.fmean(f for f, size in zip(found, sizes, strict=True) if size in batches)

    ratios = [
        f"| {name} | {mean(name, (64, 256, 512)):.2f} | {mean(name, (512,)):.2f} | {paper:g} |"
        for name, paper in PAPER.items()
    ]
    pays = [
        f"{model} with {batch} requests of {data}"
        for (model, data, batch), rows in cells.items()
        if any(row["system"] == "packed" and row["speedup"] > 1.001 for row in rows)
    ]
    model, data, batch = PARTS
    parts = compare(model, batch, data, SEEDS, tuple(SYSTEMS))
    naive = parts[0]["tokens_per_s"]
    return TAIL.format(
        ratios="\n".join(ratios),
        share=mean("gpu", (512,)) / PAPER["gpu"],
        npu_bandwidth=Machine().pim.peak_bytes,
        packed=1 / mean("packed", (256,)),
        pays=" and ".join(pays) or "none of these",
        model=model,
        data=data,
        batch=batch,
        parts="\n".join(f"| {r['system']} | {_rate(r)} | {r['tokens_per_s'] / naive:.2f} |" for r in parts),
    )


if __name__ == "__main__":
    print(page(), end="")
