"""`python -m benchmarks [NAME ...]`: run, and print what took how long beside what."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import hardware, networks, numeric, report, sweeps, system
from benchmarks.measure import Result
from hwsim.files import write_atomic
from models.unit import InputError, nearest, require

BENCHMARKS: Mapping[str, Callable[[], list[Result]]] = {
    "gemm": numeric.gemm,
    "gemm-saturate": numeric.gemm_saturate,
    "goldens": numeric.goldens,
    "low-bit": numeric.low_bit,
    "mxdot": numeric.block_scaled,
    "sparse-timing": numeric.sparse_timing,
    "lutgemm": numeric.lutgemm,
    "fwht": numeric.walsh_hadamard,
    "quantize": numeric.quantize,
    "minilm": networks.minilm,
    "pylm": networks.pylm,
    "system-llm": system.language_model,
    "system-onnx": system.onnx_file,
    "system-skip": system.rounds_skipped,
    "system-search": system.tilings,
    "sweep": sweeps.sweep,
    "sweep-large": sweeps.large,
    "timing": numeric.cycle_formulas,
    "import": hardware.import_time,
    "emit": hardware.emit,
    "rtl": hardware.rtl,
}


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 when all ran, whatever the verdicts; 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        results = run(options.names or list(BENCHMARKS))
        if options.markdown:
            write_atomic(options.markdown, report.markdown(results))
    except (InputError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if options.json:
        sys.stdout.write(report.as_json(results) + "\n")
    else:
        report.print_table(results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times the project against known operations on this machine. Medians; verdicts are not exit codes.",
        epilog="Example: python -m benchmarks gemm lutgemm --json. An idle machine gives the steadiest ratios.",
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--json", action="store_true", help="print JSON with every sample instead of the table")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="also write the table there")
    return parser


def run(names: Sequence[str]) -> list[Result]:
    """The named benchmarks in that order, with progress on standard error; InputError for an unknown name."""
    from rich.console import Console
    from rich.progress import Progress

    for name in names:
        require(name in BENCHMARKS, f"no benchmark {name!r}; {nearest(name, BENCHMARKS)}")
    results: list[Result] = []
    # no refresh thread: it would take its time from what is measured
    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name, refresh=True)
            results += BENCHMARKS[name]()
            progress.advance(task)
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
