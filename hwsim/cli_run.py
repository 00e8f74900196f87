"""The commands on whole networks: `run`, `networks` and `machines`.

Like `hwsim.cli` they read options, call the library and print; exit codes are the same, and `run --check` ends with 1
where a tiled product differs from the untiled one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsim import completion
from hwsim.terminal import Json, counting, print_json, printable, require_targets, say, table, target, width
from models.unit import InputError, require

if TYPE_CHECKING:
    from hwsim.system.check import Checked
    from hwsim.system.outputs.groups import Group
    from hwsim.system.run import Progress, Result
    from hwsim.workloads.graph import Graph

Network = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK",
        help="a name of `hwsim networks`, an .onnx, a config.json, a SCALE-Sim .csv",
        autocompletion=completion.workloads,
    ),
]
MachineName = Annotated[
    str,
    typer.Argument(
        metavar="MACHINE",
        help="a name of `hwsim machines`, a .yaml file, a SCALE-Sim .cfg",
        autocompletion=completion.machines,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: hwsim run llama-2-7b demo-16 --phase decode --html decode.html")(run)
    app.command(epilog="Example: hwsim networks --json")(networks)
    app.command(epilog="Example: hwsim machines --json")(machines)


def networks(as_json: Json = False) -> None:
    """List the networks of published shapes that `run` takes by name, each with its source."""
    from hwsim.workloads.zoo import ZOO

    if as_json:
        keys = ("name", "what", "source", "options")
        print_json([{key: getattr(entry, key) for key in keys} for entry in ZOO.values()])
        return
    rows = [[e.name, e.what, " ".join(f"--{option}" for option in e.options), e.source] for e in ZOO.values()]
    table("networks", ["network", "what it is", "options", "source of its shapes"], rows)


def machines(as_json: Json = False) -> None:
    """List the machines that come with the project: engines, scratchpads and main memory."""
    from hwsim.system.machine import MACHINES, load_machine

    found = [load_machine(file.stem) for file in sorted(MACHINES.glob("*.yaml"))]
    if as_json:
        print_json([machine.model_dump(mode="json", by_alias=True) for machine in found])
        return
    rows = [[m.name, f"{m.clock_mhz:g}", _engines(m), _scratchpads(m), _memory(m)] for m in found]
    table("machines", ["machine", "clock [MHz]", "engines", "scratchpads [KiB]", "memory [bytes/cycle]"], rows)


def _engines(machine: Any) -> str:
    return ", ".join(
        f"{engine.count} x {_word(engine)}" if engine.count > 1 else _word(engine) for engine in machine.engines
    )


def _word(engine: Any) -> str:
    return " ".join([engine.unit, *(f"{name}={value}" for name, value in engine.params.items())])


def _scratchpads(machine: Any) -> str:
    return ", ".join(f"{pad.name} {pad.kib:,g}" for pad in machine.scratchpads)


def _memory(machine: Any) -> str:
    rate = machine.dram.bytes_per_cycle
    return "unlimited" if rate is None else f"{rate:g}"


def run(
    network: Network,
    machine: MachineName,
    phase: Annotated[str | None, typer.Option(help="of a language model: prefill or decode")] = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="images or sequences at once")] = None,
    tokens: Annotated[int | None, typer.Option(metavar="N", help="new tokens of each sequence")] = None,
    context: Annotated[int | None, typer.Option(metavar="N", help="tokens of each sequence before them")] = None,
    rewrite: Annotated[
        str | None, typer.Option(metavar="TEXT", help="of the layers, such as low-rank:rank=64; joined by +")
    ] = None,
    layer: Annotated[str | None, typer.Option(metavar="GLOB", help="run only layers of such names")] = None,
    skip_unsupported: Annotated[
        bool, typer.Option("--skip-unsupported", help="leave out what an .onnx has and the machine cannot do")
    ] = False,
    allow_external: Annotated[
        bool, typer.Option("--allow-external", help="read an .onnx file's data beside it, in its own folder")
    ] = False,
    csv: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="write layers.csv and SCALE-Sim's three reports there")
    ] = None,
    trace: Annotated[
        str | None, typer.Option(metavar="FILE", help="write every transfer and step for Perfetto, as JSON")
    ] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="write a page: roofline, layers, energy")] = None,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="print the table of layers")] = True,
    check: Annotated[
        bool, typer.Option("--check", help="execute tiles in the schedule's order; exit code 1 where values differ")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="of --check's operands; 0 by default")] = None,
    as_json: Json = False,
) -> None:
    """Run a network on a machine: cycles, what bounds them, bytes, energy, of the whole and of every layer."""
    from hwsim.system.machine import load_machine
    from hwsim.system.outputs.tables import new_tokens
    from hwsim.system.run import run as simulate

    _require_options(network, skip_unsupported, allow_external, check, seed)
    graph = _graph(
        network,
        layer,
        phase=phase,
        batch=batch,
        tokens=tokens,
        context=context,
        rewrite=rewrite,
        skip_unsupported=skip_unsupported,
        allow_external=allow_external,
    )
    made = load_machine(machine)
    folder, trace_file, page = target("--csv", csv), target("--trace", trace), target("--html", html)
    _require_outputs(folder, trace_file, page)
    with counting("loading") as progress:
        result = simulate(graph, made, progress=_telling(progress))
        at_once = None if layer else new_tokens(graph)
        _require_short(result, trace_file)
        # before any file: a refused check leaves none
        rows = _check(result, graph, network, allow_external, seed or 0, _telling(progress)) if check else None
        written = _write(result, at_once, folder, trace_file, page, progress)
    if as_json:
        print_json(_answer(result, at_once, written, rows))
    else:
        _print(result, at_once, layers, rows)
        say(*written)
    raise typer.Exit(0 if all(row.equal for row in rows or ()) else 1)


def _telling(progress: Any) -> Progress:
    return lambda what, done, total: progress(done, total, what)


def _require_options(network: str, skip: bool, external: bool, check: bool, seed: int | None) -> None:
    """Options that do not apply are refused, not passed over."""
    onnx = Path(network).suffix == ".onnx"
    for name, given in (("--skip-unsupported", skip), ("--allow-external", external)):
        require(onnx or not given, f"{name} belongs to .onnx files; leave it out for {network}")
    require(check or seed is None, "--seed belongs to --check; give that too")


def _require_outputs(csv: Path | None, trace: Path | None, html: Path | None) -> None:
    """Before the time that a run takes."""
    from hwsim.page import require_renderer

    if html:
        require_renderer()
    require_targets(_targets(csv, trace, html), {"--csv": csv} if csv else {})


def _require_short(result: Result, trace: Path | None) -> None:
    """Before the time that --check takes."""
    if trace:
        from hwsim.system.outputs.trace import require_short

        require_short(result)


def _targets(csv: Path | None, trace: Path | None, html: Path | None) -> dict[str, Path]:
    """What writes a file -> its path."""
    from hwsim.system.outputs.tables import CSV_NAMES

    files = {name: path for name, path in (("--trace", trace), ("--html", html)) if path is not None}
    return files | ({f"--csv's {name}": csv / name for name in CSV_NAMES} if csv else {})


def _graph(network: str, pattern: str | None, **options: Any) -> Graph:
    from hwsim.workloads import load_workload

    require(bool(network), "no network '': a file, or a name of `hwsim networks`")
    graph = load_workload(network, **options)
    return graph if pattern is None else _matching(graph, pattern)


def _matching(graph: Graph, pattern: str) -> Graph:
    """The graph with those layers alone; what others would have written is there from the beginning."""
    from dataclasses import replace
    from fnmatch import fnmatchcase

    kept = tuple(layer for layer in graph.layers if fnmatchcase(layer.name, pattern))
    if not kept:
        hint = _few(pattern, [layer.name for layer in graph.layers])
        raise InputError(f"--layer {pattern!r} is the name of no layer of {graph.name}; {hint}")
    note = f"only the layers {pattern}: {len(kept)} of {len(graph.layers)}"
    return replace(graph, layers=kept, notes=(*graph.notes, note))


MOST_COMPARED = 2_000
"""layers whose names are compared with one that is not found"""


def _few(pattern: str, names: Sequence[str]) -> str:
    """The name closest to the pattern, or where none is close, a few."""
    from difflib import get_close_matches

    distinct = list(dict.fromkeys(name[:64] for name in names))
    close = get_close_matches(pattern[:64].strip("*"), distinct[:MOST_COMPARED], n=1)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(map(repr, distinct[:3]))} and others"


def _write(
    result: Result, tokens: int | None, csv: Path | None, trace: Path | None, html: Path | None, progress: Any
) -> list[Path]:
    """The files that were asked for; returns their paths."""
    written: list[Path] = []
    if trace:
        from hwsim.system.outputs.trace import write_trace

        count = len(result.layers)
        write_trace(result, trace, lambda done: progress(done, count, "tracing"))
        written.append(trace)
    if csv:
        from hwsim.system.outputs.tables import write_csv

        written += write_csv(result, csv)
    if html:
        from hwsim.system.outputs.page import write_page

        progress(0, None, "drawing")
        write_page(result, tokens, html)
        written.append(html)
    return written


def _check(
    result: Result, graph: Graph, network: str, allow_external: bool, seed: int, progress: Progress
) -> list[Checked]:
    from hwsim.system.check import check, onnx_operands

    operands = None
    if Path(network).suffix == ".onnx":
        operands = onnx_operands(Path(network), graph, result, allow_external=allow_external)
    return check(result, seed=seed, progress=progress, operands=operands)


def _answer(result: Result, tokens: int | None, written: Sequence[Path], rows: list[Checked] | None) -> dict[str, Any]:
    """What --json prints: `tables.totals`, notes, files written, `tables.layer_records`, and the rows of --check."""
    from hwsim.system.outputs.tables import layer_records, totals

    return {
        **totals(result, tokens),
        "notes": list(result.notes),
        "written": [str(path) for path in written],
        "layer_results": layer_records(result),
        **({} if rows is None else {"check": rows}),
    }


# ---- tables

WIDE = 140
"""characters of a line that hold all columns of the table of layers"""
NARROW_COLUMNS = ("layer", "times", "cycles", "bound", "util [%]", "bytes")
"""on shorter ones"""
NARROW_NAME = 24
"""characters of a name there, its last ones"""


def _print(result: Result, tokens: int | None, layers: bool, rows: list[Checked] | None) -> None:
    from hwsim.system.outputs.groups import groups
    from hwsim.system.outputs.tables import total_rows, totals

    total = total_rows(totals(result, tokens))
    table(
        printable(f"{result.network} on {result.machine.name}"),
        ["figure", "value"],
        [[*row] for row in total if row[1]],
    )
    if layers:
        _print_layers([_layer_row(group) for group in groups(result)])
    if rows is not None:
        _print_check(rows)
    say(*map(printable, result.notes))


def _print_layers(rows: list[dict[str, str]]) -> None:
    title = "layers; a row has the figures of all its layers together (k, M, G, T: 10^3, 10^6, 10^9, 10^12)"
    columns = list(rows[0])
    if width() < WIDE:
        title += f"; more on lines of {WIDE} characters, with --csv and --json"
        columns = list(NARROW_COLUMNS)
        rows = [{**row, "layer": _end_of(row["layer"])} for row in rows]
    table(title, columns, [[row[column] for column in columns] for row in rows])


def _end_of(name: str) -> str:
    return name if len(name) <= NARROW_NAME else f"..{name[2 - NARROW_NAME :]}"


def _layer_row(group: Group) -> dict[str, str]:
    from hwsim.system.outputs.tables import si

    first, use = group.first, group.utilization
    return {
        "layer": printable(group.name),
        "times": str(len(group.layers)),
        "unit": f"{first.unit} {first.mode}".strip(),
        "M K N": _shape(first.shape),
        "loops, tile": f"{first.order} {' '.join(map(str, first.tile))}" if first.tile else "",
        "cycles": si(group.total("cycles")),
        "unit at work": si(group.total("compute_cycles")),
        "bus at work": si(group.total("bus_cycles")),
        "waiting": si(group.total("stall_cycles")),
        "bound": group.bound,
        "util [%]": "" if use is None else f"{100 * use:.1f}",
        "bytes": si(group.total("bytes")),
        "energy": si(sum(group.energy_pj.values()) * 1e-12, "J"),
    }


def _shape(shape: tuple[int, int, int, int] | None) -> str:
    if shape is None:
        return ""
    batch, *sizes = shape
    return (f"{batch} x " if batch > 1 else "") + " ".join(map(str, sizes))


NARROW_CHECK = ("layer", "alike", "M K N", "tiles", "verdict")
"""of the check's columns, on shorter lines"""


def _print_check(rows: Sequence[Checked]) -> None:
    shown = [_check_row(row) for row in rows]
    columns = list(shown[0]) if shown else []
    notes = dict.fromkeys(note for row in rows for note in row.notes)
    if width() < WIDE:
        columns = [column for column in columns if column in NARROW_CHECK]
        shown = [{**row, "layer": _end_of(row["layer"])} for row in shown]
    title = "tiles in the schedule's order against the untiled product, bit for bit"
    table(title, columns, [[row[column] for column in columns] for row in shown])
    equal = sum(row.equal for row in rows)
    say("; ".join([f"{equal} of {len(rows)} distinct products equal", *map(printable, notes)]))


def _check_row(row: Checked) -> dict[str, str]:
    return {
        "layer": printable(row.layer),
        "alike": str(row.alike),
        "engine": row.engine,
        "M K N": _shape(row.shape),
        "loops, tile": f"{row.order} {' '.join(map(str, row.tile))}",
        "tiles": f"{row.tiles:,}",
        "outputs": f"{row.outputs:,}",
        "verdict": "equal" if row.equal else printable(row.difference),
        "weights": "real" if row.real_weights else "random",
    }
