"""The benchmarks' plumbing on tiny sizes; no time is asserted."""

import dataclasses
import json
import pkgutil
from unittest.mock import Mock

import numpy as np
import pytest

from benchmarks import hardware, measure, networks, numeric, report, sweeps, system
from benchmarks.__main__ import BENCHMARKS, main
from hwsim.networks import get_network
from hwsim.transforms.fwht import fwht
from hwsim.verify import RtlRun

TINY = {
    "gemm": lambda: numeric.gemm(size=24, array=4, rounds=2),
    "gemm-saturate": lambda: numeric.gemm_saturate(size=150, array=4, rounds=2),
    "goldens": lambda: numeric.goldens(size=40, rounds=2),
    "low-bit": lambda: numeric.low_bit(size=40, rounds=2),
    "mxdot": lambda: numeric.block_scaled(size=64, rounds=2),
    "sparse-timing": lambda: numeric.sparse_timing(size=40, rounds=2),
    "lutgemm": lambda: numeric.lutgemm(size=24, rounds=2),
    "fwht": lambda: numeric.walsh_hadamard(size=16, rounds=2),
    "quantize": lambda: numeric.quantize(rows=6, channels=64, rounds=2),
    "minilm": lambda: networks.minilm(sentences=2),
    "pylm": lambda: networks.pylm(text_bytes=256, calibrated=1),
    "system-llm": lambda: system.language_model(network="opt-125m", tokens=16),
    "system-onnx": lambda: system.onnx_file(network="resnet18"),
    "system-skip": lambda: system.rounds_skipped(network="opt-125m", tokens=16, rounds=2),
    "system-search": lambda: system.tilings(M=3, K=256, N=256, rounds=2),
    "sweep": lambda: sweeps.sweep(study=sweeps.SMALL, seeds=1),
    "sweep-large": lambda: sweeps.large(side=2),
    "timing": lambda: numeric.cycle_formulas(shapes=5, rounds=2),
    "import": lambda: hardware.import_time(rounds=1),
    "emit": lambda: hardware.emit(array=2, rounds=1),
    "rtl": lambda: hardware.rtl(M=5, K=6, array=2, rounds=2),
}


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE_S", 0)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_confirms_its_result_and_reports(monkeypatch, name):
    if name == "rtl":  # the build alone is the emit benchmark's, run once in this file
        monkeypatch.setattr(hardware, "build_seconds", Mock(return_value=0.5))
    results = TINY[name]()
    assert {r.name for r in results} == {name}
    assert all(time > 0 for r in results for time in (*r.ours, *r.reference))
    assert all(len(report.row(r)) == len(report.COLUMNS) for r in results)


@pytest.mark.parametrize("name", ["gemm", "gemm-saturate"])
def test_a_wrong_output_ends_the_run(monkeypatch, name):
    right = numeric.simulate_gemm

    def wrong(params, a, w):
        got = right(params, a, w)
        got.output[0, 0] ^= 1
        return got

    monkeypatch.setattr(numeric, "simulate_gemm", wrong)
    with pytest.raises(measure.WrongResult, match=f"{name}.*output"):
        TINY[name]()


def changed(right):
    """The function, its first result's first value one more."""

    def wrong(*operands, **options):
        got = right(*operands, **options).copy()
        got.flat[0] += 1
        return got

    return wrong


@pytest.mark.parametrize(
    "name, place", [("mxdot", "models.mxdot.golden"), ("quantize", "models.quantized.Quantized.dequantize")]
)
def test_a_wrong_value_of_a_format_ends_the_run(monkeypatch, name, place):
    monkeypatch.setattr(place, changed(pkgutil.resolve_name(place)))
    with pytest.raises(measure.WrongResult, match=name):
        TINY[name]()


def test_a_wrong_transform_ends_the_run(monkeypatch):
    monkeypatch.setattr(numeric, "fwht", lambda x, axis: fwht(x, axis) + (axis == 0))
    with pytest.raises(measure.WrongResult, match="fwht: along the first axis"):
        TINY["fwht"]()


def test_an_engine_that_computes_a_network_wrongly_ends_the_run(monkeypatch):
    right = pkgutil.resolve_name("models.systolic.golden")
    network = get_network("digits-mlp")
    networks.check("digits", networks.w4a4(network), network.workload)
    monkeypatch.setattr("models.systolic.golden", lambda *operands: -right(*operands))
    with pytest.raises(measure.WrongResult, match="digits: outputs"):
        networks.check("digits", networks.w4a4(network), network.workload)


def test_a_tiling_that_is_not_the_best_ends_the_run(monkeypatch):
    right = system.search

    def wrong(*operands):
        found = right(*operands)
        return dataclasses.replace(found, value=found.value + 1)

    monkeypatch.setattr(system, "search", wrong)
    with pytest.raises(measure.WrongResult, match="system-search: cycles"):
        TINY["system-search"]()


def test_rounds_that_are_counted_wrongly_end_the_run(monkeypatch):
    right = system.simulate

    def wrong(*operands, skip=True):
        found = right(*operands, skip=skip)
        found.runs[-1].end += skip
        return found

    monkeypatch.setattr(system, "simulate", wrong)
    with pytest.raises(measure.WrongResult, match="system-skip: figures"):
        TINY["system-skip"]()


def test_a_file_with_other_layers_ends_the_run(monkeypatch):
    right = system.exported
    monkeypatch.setattr(system, "exported", lambda _: right(system.load_workload("resnet18", batch=2)))
    with pytest.raises(measure.WrongResult, match="system-onnx: resnet18: multiply-accumulates"):
        TINY["system-onnx"]()


@pytest.mark.parametrize("fault, what", [((1, 0), "output"), ((0, 1), "cycles")])
def test_an_rtl_that_differs_ends_the_run(monkeypatch, fault, what):
    def differing(params, operands, _simulator):
        got = numeric.simulate_gemm(params, *operands)
        return RtlRun(output=got.output + fault[0], cycles=got.timing.total_cycles + fault[1], seconds=1.0)

    monkeypatch.setattr(hardware, "build_seconds", Mock(return_value=0.5))
    monkeypatch.setattr("hwsim.verify.run_rtl", differing)
    with pytest.raises(measure.WrongResult, match=f"rtl: {what}"):
        TINY["rtl"]()


def test_runs_alternate_after_one_uncounted_run_of_each():
    calls = []
    a, b = measure.alternate(lambda: calls.append("a"), lambda: calls.append("b"), 3)
    assert "".join(calls) == "ab" * 4
    assert (len(a), len(b)) == (3, 3)


def test_value_is_the_median_of_the_rounds_ratios_and_its_verdict_follows_the_limit():
    result = measure.ratio("x", "ours", "theirs", ([2.0, 9.0, 3.0], [1.0, 1.0, 3.0]), 2)
    assert result.value == 2.0
    assert result.within
    assert report.row(result)[-3:] == ("2 x (1 .. 9)", "<= 2 x", "within")
    assert report.row(measure.absolute("x", "ours", [1.5], 1))[-1] == "over"
    assert measure.AtLeast(bound=1000).holds(1000)
    assert not measure.AtLeast(bound=1000).holds(999)


def test_command_line_writes_json_and_markdown(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "timing", TINY["timing"])
    page = tmp_path / "page.md"
    assert main(["timing", "--json", "--markdown", str(page)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in shown["results"]] == ["timing", "timing"]
    assert all(len(r["values"]) == 2 and r["within"] in (True, False) for r in shown["results"])
    assert page.read_text().count("| timing | ") == 2
    assert f"numpy: {np.__version__}" in page.read_text()


def test_the_table_shows_every_cell_as_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    result = measure.absolute("x", "a[s]", [2.0], 1)
    report.print_table([result])
    shown = capsys.readouterr().out
    assert all(cell in shown for cell in (*report.COLUMNS, *report.row(result)))


def test_an_unknown_name_is_one_line_and_exit_code_2(capsys):
    assert main(["gem"]) == 2
    assert capsys.readouterr().err == "no benchmark 'gem'; did you mean 'gemm'?\n"
