"""The command on an NPU with processing in memory: `pim`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsim import completion
from hwsim.terminal import Json, print_json, require_targets, say, table, target
from models.unit import require

if TYPE_CHECKING:
    from hwsim.pim.schedule import Slice

MOST_SEEDS = 100


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: hwsim pim gpt3-7b --batch 512")(pim)


def pim(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="gpt3-7b, gpt3-13b, gpt3-30b or gpt3-175b", autocompletion=completion.decoders
        ),
    ],
    batch: Annotated[int, typer.Option(min=1, max=4096, help="requests served at once")] = 256,
    data: Annotated[str, typer.Option(help="lengths of requests like those of sharegpt or alpaca")] = "sharegpt",
    seeds: Annotated[int, typer.Option(min=1, max=MOST_SEEDS, help="draws of the lengths: 0, 1, ...")] = 3,
    every: Annotated[bool, typer.Option("--all", help="each of NeuPIMs' parts by itself as well")] = False,
    trace: Annotated[
        str | None, typer.Option(metavar="FILE", help="NeuPIMs' first draw for Perfetto, one cycle a microsecond")
    ] = None,
    as_json: Json = False,
) -> None:
    """Decode on a GPU's roofline, an NPU, an NPU with PIM, and NeuPIMs: throughput beside the paper's ratios."""
    from hwsim.files import write_atomic
    from hwsim.pim import COMPARED, SYSTEMS, compare

    path = target("--trace", trace)
    if path is not None:
        require_targets({"--trace": path}, {})
    # before the comparison, which takes longer: a trace may be refused for its length
    slices = () if path is None else _slices(model, batch, data)
    rows = compare(model, batch, data, seeds=range(seeds), systems=tuple(SYSTEMS) if every else COMPARED)
    if path is not None:
        write_atomic(path, _trace(slices, {"model": model, "batch": batch, "data": data}))
    if as_json:
        print_json(rows)
        return
    title = f"{model}, {batch} requests of {data}, {seeds} draws; the paper's figure is a mean over its own batches"
    columns = ["system", "tokens/s", "NPU [%]", "PIM [%]", "bus [%]", "NeuPIMs over it", "paper"]
    table(title, columns, [_row(row) for row in rows])
    say("gpu is a roofline, which no GPU reaches all the time; docs/neupims.md says why ratios differ")


def _row(row: dict[str, Any]) -> list[str]:
    shares = [f"{row[f'{part}_utilization']:.1%}" for part in ("npu", "pim", "bandwidth")]
    rate = f"{row['tokens_per_s']:,.0f} ± {row['tokens_per_s_std']:,.0f}"
    over = f"{row['speedup']:.2f} ± {row['speedup_std']:.2f}"
    return [row["system"], rate, *shares, over, f"{row['paper']:g}" if row["paper"] else ""]


def _slices(model: str, batch: int, data: str) -> tuple[Slice, ...]:
    """Those of one iteration of NeuPIMs."""
    from hwsim.pim import throughput
    from hwsim.pim.requests import dataset, sample
    from hwsim.system.outputs.trace import MAX_SLICES

    slices = throughput("neupims", model, sample(dataset(data), batch, 0)).slices
    require(
        len(slices) <= MAX_SLICES, f"a trace of {len(slices):,} slices; {MAX_SLICES:,} at most; take a smaller batch"
    )
    return slices


def _trace(slices: Sequence[Slice], about: dict[str, Any]) -> str:
    """The slices as JSON."""
    from hwsim.system.outputs.trace import Bar, Thread, lanes, to_json

    threads = list[Thread]()
    for track in dict.fromkeys(each.track for each in slices):
        bars = [Bar(name=s.name, begin=s.start, end=s.end) for s in slices if s.track == track]
        threads += lanes("neupims", track, bars)
    return to_json(threads, about)
