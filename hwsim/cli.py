"""The command line. It reads options, calls the library and prints; nothing is computed here."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hwsim import cli_doctor, cli_pim, cli_points, cli_query, cli_run, cli_sweep, completion
from hwsim.terminal import (
    Json,
    Liberty,
    counting,
    exit_codes,
    offer_quiet,
    plain,
    print_json,
    printable,
    quiet,
    say,
    table,
)
from models.catalog import UNITS, unit, unit_of
from models.unit import InputError, Kind, Unit, fields_of, nearest, require

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Accuracy, cycles, energy and silicon area of low-bit matrix engines, held against their RTL.",
    epilog=exit_codes(),
)

More = Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="parameters, as with --set")]
UnitName = Annotated[
    str, typer.Argument(metavar="UNIT", help="a unit of `hwsim units`", autocompletion=completion.units)
]
EngineName = Annotated[
    str, typer.Argument(metavar="UNIT", help="a GEMM unit of `hwsim units`", autocompletion=completion.engines)
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="a parameter; repeat, or separate by commas")
]
Preset = Annotated[str | None, typer.Option(help="start from a named preset instead of the defaults")]
Seed = Annotated[int, typer.Option(min=0, help="seed of the random operands")]


def main() -> None:
    """Entry point: bad input, and what the system refuses, is one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without the sign for micro shows a question mark
    try:
        _run()
    except InputError as error:
        _end(str(error), 2)
    except ModuleNotFoundError as error:
        from hwsim.doctor import extra_of

        name = (error.name or "").partition(".")[0]
        extra = extra_of(name)
        if extra is None:
            raise
        _end(f"{name} is not installed; pip install 'hwsim[{extra}]'", 2)
    except OSError as error:
        _end(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), 2)
    except KeyboardInterrupt:
        _end("interrupted", 130)


def _run() -> None:
    """Run the command to its last printed byte; the libraries' ways to end become exceptions that `main` names."""
    try:
        app()
    except SystemExit as end:
        if end.code == 130:
            raise KeyboardInterrupt from None
        if isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from None
        if sys.stdout is not None:
            sys.stdout.flush()
        raise


def _end(message: str, status: int) -> None:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        # what is left cannot be written, and the interpreter would try again when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(OSError):
        print("hwsim: " + printable(" ".join(message.split())), file=sys.stderr)
    sys.exit(status)


def _params(entry: Unit, preset: str | None, settings: list[str] | None) -> Any:
    """The params that --preset and NAME=VALUE settings describe."""
    start = dict(fields_of(entry.preset(preset))) if preset else {}
    return entry.params(**{**start, **_settings(settings)})


def _settings(settings: list[str] | None) -> dict[str, str]:
    """NAME=VALUE settings, several in one text separated by commas."""
    values: dict[str, str] = {}
    for setting in (part for text in settings or [] for part in text.split(",")):
        name, equals, value = setting.partition("=")
        require(bool(equals), f"--set {setting!r}: NAME=VALUE is needed, such as rows=16")
        require(name.strip() not in values, f"--set {name.strip()} is given twice")
        values[name.strip()] = value.strip()
    return values


def _describe(params: Any) -> str:
    return f"{unit_of(params).name} " + " ".join(f"{name}={value}" for name, value in fields_of(params))


@app.command(epilog="Example: hwsim units --json")
def units(as_json: Json = False) -> None:
    """List the units, their parameters with defaults, and their presets."""
    if as_json:
        print_json(
            [
                {
                    "name": entry.name,
                    "kind": entry.kind.value,
                    "summary": entry.summary,
                    "parameters": dict(fields_of(entry.params_type())),
                    "presets": {name: dict(fields_of(params)) for name, params in entry.presets.items()},
                }
                for entry in UNITS.values()
            ]
        )
        return
    rows = [
        [
            entry.name,
            entry.kind.value,
            entry.summary,
            ", ".join(f"{name}={value}" for name, value in fields_of(entry.params_type())),
            ", ".join(entry.presets),
        ]
        for entry in UNITS.values()
    ]
    table("units", ["unit", "kind", "what it is", "parameters and defaults", "presets"], rows)


@app.command(epilog="Example: hwsim gemm systolic --set rows=16 --set cols=16 --shape 512 512 512")
def gemm(
    name: EngineName,
    shape: Annotated[tuple[int, int, int], typer.Option(metavar="M K N", help="Y[M, N] = A[M, K] @ W[K, N]")],
    more: More = None,
    settings: Settings = None,
    preset: Preset = None,
    seed: Seed = 0,
    sigma: Annotated[
        float | None,
        typer.Option(
            metavar="S", help="operands round(N(0, S)) clipped to their widths, not uniform; FP16 ones N(0, S)"
        ),
    ] = None,
    convention: Annotated[str, typer.Option(help="cycle counts of our `rtl` or as `scalesim` has them")] = "rtl",
    as_json: Json = False,
) -> None:
    """Run one GEMM of random integers: exact output, exact cycles, counted operations and their energy."""
    import numpy as np

    from hwsim.energy import energy_pj, op_energy_pj
    from hwsim.simulate import is_float, random_operands, simulate_gemm
    from models.gemm import check_shape

    entry = unit(name)
    require(entry.kind is Kind.GEMM, f"{name} multiplies no matrices; take a GEMM engine, such as systolic")
    params = _params(entry, preset, [*(settings or []), *(more or [])])
    m, k, n = shape
    check_shape(M=m, K=k, N=n)
    require(
        max(m * k, k * n, m * n) <= 1 << 28, f"shape {m} {k} {n}: a matrix of over 2^28 values is too large to simulate"
    )
    result = simulate_gemm(params, *random_operands(params, np.random.default_rng(seed), shape, sigma))
    timing = result.timing
    if convention != "rtl":
        known = "convention" in inspect.signature(entry.timing).parameters
        require(known, f"{name} has no convention {convention!r}; SCALE-Sim counts systolic arrays only")
        timing = entry.timing(params, M=m, K=k, N=n, convention=convention)
    answer = {
        "unit": name,
        "params": dict(fields_of(params)),
        "shape": {"M": m, "K": k, "N": n},
        "seed": seed,
        "operands": _operands(is_float(params), sigma),
        "convention": convention,
        "total_cycles": timing.total_cycles,
        "load_cycles": timing.load_cycles,
        "stream_cycles": timing.stream_cycles,
        "drain_cycles": timing.drain_cycles,
        "utilization_fraction": timing.utilization,
        **_columns(timing),
        "energy_pj": energy_pj(result.ops),
        "output_sum": result.output.sum().item(),
        "ops": [{**plain(op), "energy_pj": op.count * op_energy_pj(op)} for op in result.ops],
    }
    if as_json:
        print_json(answer)
        return
    rows = [
        [key, f"{answer[key]:,.4g}" if key.endswith("fraction") else f"{answer[key]:,.0f}"]
        for key in answer
        if _is_figure(key)
    ]
    table(f"{_describe(params)}, M={m} K={k} N={n}, operands {answer['operands']}", ["figure", "value"], rows)
    table(
        "operations (energies: 45 nm, published, interpolated; no memories, no wires)",
        ["kind", "bits", "count", "energy [pJ]"],
        [
            [o.kind, f"{o.bits}x{o.bits2}" if o.bits2 else o.bits, f"{o.count:,}", f"{o.count * op_energy_pj(o):,.0f}"]
            for o in result.ops
        ],
    )


def _operands(is_float: bool, sigma: float | None) -> str:
    spread = f"normal, sigma {1 if sigma is None else sigma:g}"
    return (
        f"A FP16, {spread}; W {spread if sigma is not None else 'uniform'}"
        if is_float
        else ("uniform" if sigma is None else spread)
    )


def _columns(timing: Any) -> dict[str, Any]:
    """How evenly columns that run on their own were busy: what the slowest one of each fold cost the others at the
    sync, and all in all how long columns did not compute (that, waiting for a beat or their turn, filling)."""
    if timing.column_cycles is None:
        return {}
    busy = timing.column_cycles
    return {
        "columns": busy.tolist(),
        "column_least_cycles": int(busy.min()),
        "column_mean_cycles": float(busy.mean()),
        "column_most_cycles": int(busy.max()),
        "column_deviation_cycles": float(busy.std()),
        "lost_at_sync_fraction": timing.sync_cycles / timing.column_room,
        "columns_idle_fraction": 1 - float(busy.sum()) / timing.column_room,
    }


def _is_figure(key: str) -> bool:
    return key.endswith(("_cycles", "_fraction", "_pj"))


@app.command(epilog="Example: hwsim verify systolic lutgemm --simulator verilator --cases 20 --seed 1")
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[UNIT]...", help="units; all where none is named", autocompletion=completion.units),
    ] = None,
    simulator: Annotated[str, typer.Option(help="pysim, verilator or icarus")] = "pysim",
    cases: Annotated[int, typer.Option(min=1, help="random cases a configuration")] = 20,
    seed: Seed = 0,
    settings: Settings = None,
    preset: Preset = None,
    verilog: Annotated[Path | None, typer.Option(metavar="FILE", help="other RTL, same ports; it is run here")] = None,
    top: Annotated[str | None, typer.Option(help="its top module; the unit's name by default")] = None,
    waves: Annotated[Path | None, typer.Option(metavar="FILE", help="write waves (one configuration only)")] = None,
    time_limit: Annotated[float, typer.Option(min=1, help="seconds for build and run of a configuration")] = 900,
    as_json: Json = False,
) -> None:
    """Hold RTL against the model in every bit of every port in every cycle, under random stalls."""
    from hwsim.files import require_writable
    from hwsim.verify import verify as run
    from hwsim.verify.verify import check_verilog, summary

    settings = [*(settings or []), *(word for word in names or [] if "=" in word)]
    named = [word for word in names or [] if "=" not in word]
    require(bool(named) or not (settings or preset), "--set and --preset need a UNIT, such as systolic")
    chosen = list(_configurations(named or list(UNITS), preset, settings))
    require(
        verilog is None or len(chosen) == 1,
        "--verilog needs one UNIT and --set or --preset: the RTL has one configuration",
    )
    require(waves is None or len(chosen) == 1, "--waves needs one UNIT and --set or --preset")
    if waves:
        require_writable(waves.parent, "give another path to --waves")
    require(top is None or verilog is not None, "--top names a module of --verilog FILE; give that too")
    text = check_verilog(verilog) if verilog else None
    reports = {
        label: run(
            params,
            simulator=simulator,
            cases=cases,
            seed=seed,
            verilog=text,
            top=top,
            waves=waves,
            time_limit_s=time_limit,
        )
        for label, params in _with_progress(chosen)
    }
    if as_json:
        print_json(
            [{**plain(report), "configuration": label, "passed": report.passed} for label, report in reports.items()]
        )
    else:
        rows = [
            [label, r.cases, f"{r.cycles:,}", f"{r.values:,}", "equal" if r.passed else r.findings[0]]
            for label, r in reports.items()
        ]
        table(
            f"RTL under {simulator} against the model", ["configuration", "cases", "cycles", "outputs", "verdict"], rows
        )
        say(summary(reports))
    raise typer.Exit(0 if all(report.passed for report in reports.values()) else 1)


def _configurations(names: list[str], preset: str | None, settings: list[str] | None) -> Iterator[tuple[str, Any]]:
    """Label and params: what --preset and --set say, otherwise every preset of the named units."""
    for entry in [unit(name) for name in names]:
        if preset or settings:
            yield entry.name, _params(entry, preset, settings)
        else:
            yield from ((f"{entry.name} {label}", params) for label, params in entry.presets.items())


def _with_progress(items: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=quiet() or not sys.stderr.isatty()) as progress:
        task = progress.add_task("verifying", total=len(items))
        for label, item in items:
            progress.update(task, description=label)
            yield label, item
            progress.advance(task)


@app.command(epilog="Example: hwsim emit systolic --set rows=4,cols=4 --out systolic.v")
def emit(
    name: UnitName,
    more: More = None,
    settings: Settings = None,
    preset: Preset = None,
    top: Annotated[str | None, typer.Option(help="name of the top module; the unit's name by default")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="write the Verilog there")] = None,
    as_json: Json = False,
) -> None:
    """Print the unit's Verilog, or write it and list its ports: what --verilog of `verify` needs as well."""
    from hwsim.files import write_atomic
    from hwsim.verify.ports import ports_of
    from hwsim.verilog import check_module_name
    from rtl.emit import emit as verilog
    from rtl.emit import streams

    params = _params(unit(name), preset, [*(settings or []), *(more or [])])
    check_module_name(top or name)
    text = verilog(params, top or name)
    if out:
        write_atomic(out, text)
    ports = ports_of(streams(params))
    if as_json:
        listed = [{**plain(port), "fields": [_plain_field(field) for field in port.fields]} for port in ports]
        print_json({"unit": name, "params": dict(fields_of(params)), "ports": listed, "verilog": text})
    elif out is None:
        print(text)
    else:
        title = f"{out}: clk, rst and for each stream <name>__payload, <name>__valid, <name>__ready"
        rows = [
            [
                port.name,
                "input" if port.is_input else "output",
                port.width,
                ", ".join(map(_describe_field, port.fields)),
            ]
            for port in ports
        ]
        table(title, ["stream", "direction", "payload [bits]", "fields, low bits first"], rows)


def _plain_field(field: Any) -> dict[str, Any]:
    return {"name": field.name, "lanes": list(field.offsets.shape), "bits": field.width, "signed": field.signed}


def _describe_field(field: Any) -> str:
    lanes = "".join(f"[{size}]" for size in field.offsets.shape)
    return f"{field.name}{lanes} {'signed' if field.signed else 'unsigned'} {field.width}"


@app.command(epilog="Example: hwsim synth systolic --set rows=8,cols=8,act_bits=4,weight_bits=4")
def synth(
    name: UnitName,
    more: More = None,
    settings: Settings = None,
    preset: Preset = None,
    liberty: Liberty = None,
    clock_ns: Annotated[float | None, typer.Option(metavar="NS", help="the smallest netlist that fits it")] = None,
    curve: Annotated[bool, typer.Option("--curve", help="area at several clocks, from the fastest on")] = False,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="write that curve as SVG")] = None,
    as_json: Json = False,
) -> None:
    """Synthesise the unit's RTL: area, gate equivalents, critical path (cells only: no wires, no placement)."""
    from hwsim.synth import check_clock, synthesize
    from rtl.emit import emit

    params = _params(unit(name), preset, [*(settings or []), *(more or [])])
    check_clock(clock_ns)
    if picture:
        rule = f"--picture {picture}: an SVG is written"
        require(picture.suffix.lower() == ".svg", f"{rule}; name it {picture.with_suffix('.svg')}")
    if curve or picture:
        require(clock_ns is None, "--curve takes its own clocks; leave --clock-ns out")
        _synth_curve(name, params, liberty, picture, as_json)
        return
    result = synthesize(emit(params), name, clock_ns=clock_ns, liberty=liberty)
    if as_json:
        print_json({"unit": name, "params": dict(fields_of(params)), **_plain_synthesis(result)})
        return
    figures: Mapping[str, str] = {
        "area [um2]": f"{result.area_um2:,.1f}",
        "gate equivalents [GE]": f"{result.gate_equivalents:,.0f}",
        "critical path [ns]": f"{result.delay_ns:.3f}",
        "clock [MHz]": f"{result.clock_mhz:,.0f}",
        **({f"{clock_ns:g} ns": "met" if result.met else "not met: the fastest netlist"} if clock_ns else {}),
        "multipliers": result.multiplier,
        "library": result.library,
    }
    table(_describe(params), ["figure", "value"], [[k, v] for k, v in figures.items()])
    rows = [[module, count, f"{area:,.1f}", f"{count * area:,.1f}"] for module, count, area in result.modules]
    table("modules (own cells)", ["module", "instances", "area each [um2]", "area [um2]"], rows)
    say("critical path (arrival, own delay, place, cell):", *result.critical_path)


def _synth_curve(name: str, params: Any, liberty: Path | None, picture: Path | None, as_json: bool) -> None:
    from hwsim.synth import area_delay_curve
    from hwsim.synth.picture import check_target, write_curve
    from rtl.emit import emit

    if picture:
        check_target(picture)
    results = area_delay_curve(emit(params), name, liberty=liberty)
    if picture:
        write_curve(results, f"{_describe(params)}, {results[0].library}", picture)
    if as_json:
        print_json(
            {"unit": name, "params": dict(fields_of(params)), "curve": [_plain_synthesis(each) for each in results]}
        )
        return
    columns = ["clock period [ns]", "critical path [ns]", "area [um2]", "GE", "area x path [um2 ns]", "multipliers"]
    rows = [
        [
            f"{r.target_ns:.3f}",
            f"{r.delay_ns:.3f}",
            f"{r.area_um2:,.1f}",
            f"{r.gate_equivalents:,.0f}",
            f"{r.area_um2 * r.delay_ns:,.0f}",
            r.multiplier,
        ]
        for r in results
    ]
    table(f"{_describe(params)}, {results[0].library}", columns, rows)


def _plain_synthesis(result: Any) -> dict[str, Any]:
    return {"clock_mhz": result.clock_mhz, "met": result.met, **plain(result)}


_OF_FAMILIES = ("shape", "seed", "liberty", "out", "workers", "network")
_OF_STUDIES = ("metrics", "threshold", "markdown")
"""options of `compare` that are of one kind alone"""


def _refuse_given(context: typer.Context, options: tuple[str, ...], whose: str) -> None:
    """InputError where one of these options was given: it would say nothing."""
    sources = {name: context.get_parameter_source(name) for name in options}
    found = next((name for name, source in sources.items() if source and source.name == "COMMANDLINE"), None)
    shown = "md" if found == "markdown" else found
    require(found is None, f"compare: --{shown} is an option of {whose}; leave it out")


@app.command(epilog="Example: hwsim compare results/before results/after --md - or hwsim compare --family integer")
def compare(
    context: typer.Context,
    studies: Annotated[
        list[Path] | None, typer.Argument(metavar="[A B]", help="two stores, or the folders they are in")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="what to lay beside each other: integer, lut, shiftadd, or accuracy")
    ] = None,
    shape: Annotated[
        tuple[int, int, int], typer.Option(metavar="M K N", help="the GEMM that gives designs' cycles and energy")
    ] = (256, 256, 256),
    seed: Seed = 0,
    liberty: Liberty = None,
    out: Annotated[Path | None, typer.Option(metavar="PATH", help="write PATH.md and PATH.csv")] = None,
    workers: Annotated[int, typer.Option(min=1, help="designs or networks at a time")] = 2,
    network: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="of the family accuracy: these networks only; repeat")
    ] = None,
    metrics: Annotated[
        str, typer.Option(metavar="A,B", help="of two studies: these metrics only", autocompletion=completion.metrics)
    ] = "",
    threshold: Annotated[
        float, typer.Option(help="of two studies: the largest relative difference that is none")
    ] = 0.0,
    markdown: Annotated[
        str | None, typer.Option("--md", metavar="FILE", help="of two studies: a table in Markdown, - to print it")
    ] = None,
    as_json: Json = False,
) -> None:
    """Hold two studies A and B against each other, or designs of one family against plain MACs.

    Two studies: points in one alone, changed statuses, how far metrics differ; ends with 1 over the threshold.
    A family: area, clock, area efficiency, energy, the papers' ratios; `accuracy` is formats, transforms and
    quantizers on every network.
    """
    places = studies or []
    rule = "compare: give two studies, such as results/a results/b, or --family"
    require(len(places) == (2 if family is None else 0), rule)
    if family is None:
        _refuse_given(context, _OF_FAMILIES, "--family")
        raise typer.Exit(cli_points.compare_studies(*places, metrics, threshold, markdown, as_json))
    _refuse_given(context, _OF_STUDIES, "two studies")
    from hwsim.compare import ACCURACY, designs_of, notes, record, tables, write
    from hwsim.compare import compare as run
    from hwsim.files import require_file, require_writable

    if family == ACCURACY:
        _compare_accuracy(network or [], out, workers, as_json)
        return
    require(not network, "--network belongs to --family accuracy")
    designs_of(family)  # what is wrong is said before the minutes that this takes
    if liberty:
        require_file(liberty)
    if out:
        require_writable(out.parent, "give another path to --out")
    with counting() as progress:
        comparison = run(family, shape=shape, seed=seed, liberty=liberty, workers=workers, progress=progress)
    if out:
        given = ["--family", family, "--shape", *map(str, shape), "--seed", str(seed)]
        given += ["--liberty", str(liberty)] if liberty else []
        write(comparison, out, shlex.join(["hwsim", "compare", *given, "--out", str(out)]))
    if as_json:
        print_json([record(comparison, row) for row in comparison.rows])
        return
    for title, (headings, rows) in tables(comparison).items():
        table(title, headings, rows)
    say(*notes(comparison))


def _compare_accuracy(networks: list[str], out: Path | None, workers: int, as_json: bool) -> None:
    from hwsim.accuracy_table import MEASURES, cells, measure_all, page, record, write
    from hwsim.compare import ACCURACY
    from hwsim.files import require_writable

    for name in networks:
        require(name in MEASURES, f"--network {name!r}: {nearest(name, MEASURES)}")
    if out:
        require_writable(out.parent, "give another path to --out")
    chosen = [name for name in MEASURES if name in networks or not networks]
    named = [word for name in chosen for word in ("--network", name)] if networks else []
    command = shlex.join(["hwsim", "compare", "--family", ACCURACY, *named, *(["--out", str(out)] if out else [])])
    with counting("measuring") as progress:
        found = measure_all(list(cells(chosen)), workers, progress)
    if out:
        write(found, out, command)
    if as_json:
        print_json([record(cell) for cell in found])
    elif out is None:
        print(page(found, command))


@app.command(
    epilog="Example: hwsim accuracy minilm --weights int4 --activations int4 --transform quarot --quantizer gptq"
)
def accuracy(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK", help="a network, or a folder of a Llama-family model", autocompletion=completion.networks
        ),
    ],
    weights: Annotated[str, typer.Option(metavar="FORMAT", help="such as int4, mxfp4 or int4:group=128")],
    activations: Annotated[str, typer.Option(metavar="FORMAT", help="integers are asymmetric a token if not said")],
    transform: Annotated[
        str,
        typer.Option(metavar="NAME", help="joined by +, first to last", autocompletion=completion.transforms),
    ] = "none",
    quantizer: Annotated[
        str,
        typer.Option(metavar="NAME", help="how weights find their codes", autocompletion=completion.quantizers),
    ] = "rtn",
    cache: Annotated[str | None, typer.Option(metavar="FORMAT", help="of cached keys and values")] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="UNIT", help="computes every product, bit for bit", autocompletion=completion.engines),
    ] = None,
    settings: Settings = None,
    seed: Annotated[int, typer.Option(min=0, help="of the network, the transform and the quantizer")] = 1,
    draws: Annotated[int, typer.Option(min=1, max=100, help="seeds of a random transform, from --seed on")] = 1,
    text_bytes: Annotated[
        int | None, typer.Option(metavar="N", help="of held-out text that a language model is judged on")
    ] = None,
    outliers: Annotated[
        str | None, typer.Option(metavar="OPTIONS", help="to plant first, the function kept: factor=64,channels=2")
    ] = None,
    as_json: Json = False,
) -> None:
    """Quantize a network: its end metric, each layer's relative output error, and what the transform costs online."""
    from hwsim.accuracy import Choice, measure

    choice = Choice(
        network=network,
        weights=weights,
        activations=activations,
        transform=transform,
        quantizer=quantizer,
        cache=cache,
        engine=engine,
        settings=_settings(settings),
        seed=seed,
        draws=draws,
        text_bytes=text_bytes,
        outliers=outliers,
    )
    with _status() as progress:
        answer = measure(choice, progress)
    if as_json:
        print_json({"choice": choice, **plain(answer)})
        return
    planted = "" if outliers is None else f" with planted outliers ({outliers})"
    how = f"{network}{planted}: weights {weights}, activations {activations}, {transform}, {quantizer}"
    rows = [
        [name, f"{value:.4f}", f"{answer.float_metrics[name]:.4f}", *_spread(answer, name)]
        for name, value in answer.metrics.items()
    ]
    table(how, ["metric", "quantized", "float", *(["mean of draws", "deviation"] if answer.spread else [])], rows)
    online = answer.online
    figures = [["bits per weight", f"{answer.bits_per_weight:.3f}"]]
    figures += [["additions online, a token", f"{online.adds:,}"], ["multiplies online", f"{online.multiplies:,}"]]
    table("cost", ["figure", "value"], figures)
    errors = [[name, f"{error:.4f}"] for name, error in answer.layer_errors.items()]
    table("relative output error of each layer, given the float network's activations", ["layer", "error"], errors)
    say(*answer.notes)


def _spread(answer: Any, name: str) -> list[str]:
    return [f"{answer.mean[name]:.4f}", f"{answer.spread[name]:.4f}"] if answer.spread else []


@contextlib.contextmanager
def _status() -> Iterator[Any]:
    """A line that tells what is being done, on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet() or not console.is_terminal:
        yield lambda _text: None
        return
    with console.status("starting") as status:
        yield lambda text: status.update(text.replace("[", "\\["))


for commands in (cli_sweep, cli_query, cli_points, cli_run, cli_pim, cli_doctor):
    commands.register(app)
offer_quiet(app)

if __name__ == "__main__":
    main()
