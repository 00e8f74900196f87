"""The command line: what it prints, its JSON, and that a hurried user's mistakes end in one line and exit code 2."""

import json
import subprocess
import sys

import pytest

from hwsim.cli import main
from models.catalog import UNITS
from rtl.emit import emit


@pytest.fixture
def hwsim(monkeypatch, capsys):
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["hwsim", *map(str, argv)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        return end.value.code or 0, shown.out, shown.err

    return run


COMMANDS = ("units", "gemm", "verify", "emit", "synth", "accuracy", "compare", "sweep", "report")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(hwsim, command):
    status, out, _ = hwsim(command, "--help")
    assert status == 0
    assert f"Example: hwsim {command}" in " ".join(out.split())
    assert "--json" in out


def test_units_lists_the_catalogue(hwsim):
    status, out, _ = hwsim("units", "--json")
    assert status == 0
    assert [u["name"] for u in json.loads(out)] == list(UNITS)
    assert all(name in hwsim("units")[1] for name in UNITS)


def test_gemm_reports_exact_cycles_and_energy(hwsim):
    arguments = ("gemm", "systolic", "--set", "rows=16", "cols=16", "--shape", 512, 512, 512)
    status, out, _ = hwsim(*arguments, "--json")
    answer = json.loads(out)
    assert status == 0
    assert answer["total_cycles"] == 32 * 32 * (512 + 2 * 16 + 16 - 2) + 1
    assert answer["total_cycles"] == answer["load_cycles"] + answer["stream_cycles"] + answer["drain_cycles"]
    assert answer["energy_pj"] == pytest.approx(sum(op["energy_pj"] for op in answer["ops"]))
    theirs = json.loads(hwsim(*arguments, "--convention", "scalesim", "--json")[1])
    assert theirs["total_cycles"] == answer["total_cycles"] - 2
    table = hwsim(*arguments)[1]
    assert f"{answer['total_cycles']:,}" in table
    assert "energy [pJ]" in table


def test_gemm_says_how_evenly_columns_were_busy_and_what_waiting_cost(hwsim):
    arguments = ("gemm", "opt4c", "--shape", 32, 64, 16, "--sigma", 20)
    answer = json.loads(hwsim(*arguments, "--json")[1])
    busy = answer["columns"]
    assert len(busy) == 4
    assert answer["column_least_cycles"] == min(busy) < max(busy) == answer["column_most_cycles"]
    room = 4 * (answer["total_cycles"] - answer["load_cycles"])
    assert answer["columns_idle_fraction"] == pytest.approx(1 - sum(busy) / room)
    assert 0 < answer["lost_at_sync_fraction"] < answer["columns_idle_fraction"] < 1
    assert "lost at sync" in hwsim(*arguments)[1].replace("_", " ")
    sparse = json.loads(hwsim(*arguments[:-1], 1, "--json")[1])
    assert sparse["total_cycles"] < answer["total_cycles"]
    assert "columns" not in json.loads(hwsim("gemm", "systolic", "--shape", 3, 4, 5, "--json")[1])
    assert "sigma must be a finite number of at least 0" in hwsim(*arguments[:-1], "nan")[2]


def test_one_seed_one_result(hwsim):
    sums = [
        json.loads(hwsim("gemm", "lutgemm", "--shape", 9, 70, 11, "--seed", seed, "--json")[1])["output_sum"]
        for seed in (1, 1, 2)
    ]
    assert sums[0] == sums[1] != sums[2]


def test_verify_passes_and_says_how_much_was_compared(hwsim):
    status, out, _ = hwsim("verify", "systolic", "hadamard", "--cases", 5, "--json")
    reports = json.loads(out)
    assert status == 0
    assert all(report["passed"] and report["cycles"] > 0 for report in reports)
    assert len(reports) == len(UNITS["systolic"].presets) + len(UNITS["hadamard"].presets)
    status, out, _ = hwsim("verify", "systolic", "--set", "rows=2,cols=2", "--cases", 3)
    assert (status, "1 of 1 passed" in out, "equal" in out) == (0, True, True)


def test_emit_writes_the_verilog_and_names_its_ports(hwsim, tmp_path):
    options = ("emit", "systolic", "--set", "rows=2,cols=3", "--top", "mine")
    text = emit(UNITS["systolic"].params(rows=2, cols=3), "mine")
    assert hwsim(*options)[1].strip() == text.strip()
    answer = json.loads(hwsim(*options, "--json")[1])
    assert answer["verilog"] == text
    assert [f["name"] for f in answer["ports"][1]["fields"]] == ["act", "psum", "last"]
    assert {port["name"]: port["width"] for port in answer["ports"]} == {
        "i_weight": 3 * 8,
        "i_act": 2 * 8 + 3 * 32 + 1,
        "o_psum": 3 * 32,
    }
    status, out, _ = hwsim(*options, "--out", tmp_path / "mine.v")
    assert (status, "act[2] signed 8, psum[3] signed 32, last unsigned 1" in out) == (0, True)
    assert (tmp_path / "mine.v").read_text() == text


@pytest.mark.slow
def test_verify_finds_a_fault_in_a_file_and_ends_with_1(hwsim, tmp_path):
    file = tmp_path / "theirs.v"
    params = UNITS["systolic"].params(rows=2, cols=2)
    file.write_text(emit(params, "theirs").replace("$signed(psum) + $signed(", "$signed(psum) - $signed("))
    options = ("--set", "rows=2,cols=2", "--cases", 3, "--simulator", "verilator")
    status, out, _ = hwsim("verify", "systolic", *options, "--verilog", file, "--top", "theirs")
    assert status == 1
    assert "0 of 1 passed; failed: systolic" in out
    assert "o_psum.payload.psum" in out


@pytest.mark.slow
def test_synth_prints_area_and_path(hwsim, tmp_path, monkeypatch):
    monkeypatch.setenv("HWSIM_CACHE", str(tmp_path))
    status, out, _ = hwsim("synth", "hadamard", "--set", "points=4,in_bits=4", "--json")
    answer = json.loads(out)
    assert status == 0
    assert answer["area_um2"] == pytest.approx(sum(count * area for _, count, area in answer["modules"]))
    assert answer["clock_mhz"] == pytest.approx(1000 / answer["delay_ns"])
    table = hwsim("synth", "hadamard", "--set", "points=4,in_bits=4")[1]
    assert f"{answer['area_um2']:,.1f}" in table
    assert "critical path" in table


DIGITS = ("accuracy", "digits-mlp", "--weights", "int3", "--activations", "int4")


def test_accuracy_reports_metric_errors_and_online_work(hwsim):
    status, out, _ = hwsim(*DIGITS, "--transform", "hadamard", "--draws", 2, "--json")
    answer = json.loads(out)
    assert status == 0
    assert 0.5 < answer["metrics"]["accuracy"] < answer["float_metrics"]["accuracy"]
    assert answer["spread"]["accuracy"] > 0
    assert set(answer["layer_errors"]) == {"layers.0", "layers.1", "layers.2"}
    assert answer["online"] == {"adds": 6 * (64 + 128 + 64), "multiplies": 0}
    assert answer["choice"]["transform"] == "hadamard"
    table = hwsim(*DIGITS, "--transform", "hadamard", "--draws", 2)[1]
    assert f"{answer['mean']['accuracy']:.4f}" in table
    assert "1,536" in table
    assert all(f"{error:.4f}" in table for error in answer["layer_errors"].values())


def test_accuracy_on_an_engine_is_that_of_float64(hwsim):
    on, off = (json.loads(hwsim(*DIGITS, *more, "--json")[1]) for more in (("--engine", "systolic"), ()))
    assert on["metrics"] == off["metrics"]
    assert on["choice"]["engine"] == "systolic"


def test_planted_outliers_are_named_wherever_the_result_is_shown(hwsim):
    given = ("accuracy", "pylm", "--weights", "int8", "--activations", "int8", "--text-bytes", 512)
    given = (*given, "--outliers", "factor=64,channels=2")
    answer = json.loads(hwsim(*given, "--json")[1])
    assert answer["choice"]["outliers"] == "factor=64,channels=2"
    assert answer["notes"][0].startswith("outliers planted: 2 channels")
    status, table, _ = hwsim(*given)
    assert status == 0
    assert "pylm with planted outliers (factor=64,channels=2)" in " ".join(table.split())
    assert answer["notes"][0] in table


def test_the_accuracy_family_is_written_to_files(hwsim, tmp_path, monkeypatch):
    monkeypatch.setenv("HWSIM_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "accuracy"
    assert hwsim("compare", "--family", "accuracy", "--network", "digits-mlp", "--out", out)[0] == 0
    rows = out.with_suffix(".csv").read_text().splitlines()
    assert len(rows) == 1 + 6 * 6 * 2
    assert "## digits-mlp: accuracy (float 0.9689)" in out.with_suffix(".md").read_text()


MISTAKES = [
    (("accuracy", "digit", "--weights", "int4", "--activations", "int4"), "no network 'digit'; did you mean 'digits-"),
    (("accuracy", "pylm", "--weights", "int4", "--activations", "in8"), "no number format 'in8'; did you mean"),
    ((*DIGITS, "--transform", "quarrot"), "no transform 'quarrot'; did you mean 'quarot'?"),
    ((*DIGITS, "--quantizer", "ternary"), "that is a format's own; take quantizer 'rtn' with weights of 'ternary'"),
    ((*DIGITS, "--engine", "lutgem"), "no unit 'lutgem'; did you mean 'lutgemm'?"),
    ((*DIGITS, "--text-bytes", "4096"), "network digits-mlp: no option 'text_bytes'; it belongs to language models"),
    ((*DIGITS, "--outliers", "factor=64"), "outliers: digits-mlp has no group with a norm or product before it"),
    ((*DIGITS, "--outliers", "factr=64"), "outliers: no option 'factr'; did you mean 'factor'?"),
    ((*DIGITS, "--cache", "int2:group=0"), "group=0 must be a positive whole number"),
    (("compare", "--family", "integer", "--network", "pylm"), "--network belongs to --family accuracy"),
    (("compare", "--family", "accuracy", "--network", "pilm"), "--network 'pilm': did you mean 'pylm'?"),
    (("compare", "--family", "acuracy"), "no family 'acuracy'; did you mean 'accuracy'?"),
    (("gemm", "opt4C", "--shape", 1, 1, 1), "no unit 'opt4C'; did you mean 'opt4c'?"),
    (("gemm", "booth", "--shape", 1, 1, 1), "booth multiplies no matrices; take a GEMM engine"),
    (("gemm", "opt2", "tile_k=5", "--shape", 1, 1, 1), "opt2: tile_k must divide rows=16 into whole tiles, not 5"),
    (("gemm", "opt4e", "tile_k=20", "--shape", 1, 1, 1), "tile_k must be a multiple of 16"),
    (("gemm", "systolic", "style=ent,cols=1", "--shape", 1, 1, 1), "style=ent needs cols of at least 2"),
    (("gemm", "cube", "style=opt1,overflow=saturate", "--shape", 1, 1, 1), "style=opt1 needs overflow=wrap"),
    (("gemm", "systolic", "buffers=2", "--convention", "scalesim", "--shape", 1, 1, 1), "SCALE-Sim counts one buffer"),
    (("verify", "--set", "rows=4"), "--set and --preset need a UNIT"),
    (("verify", "opt3", "--preset", "smallest", "--waves", "/proc/none/x.vcd"), "give another path to --waves"),
    (("synth", "systolic", "--picture", "p.png"), "--picture p.png: an SVG is written; name it p.svg"),
    (("compare", "--family", "intger"), "no family 'intger'; did you mean 'integer'?"),
    (("compare", "--family", "integer", "--out", "/proc/none/x"), "give another path to --out"),
    (("compare", "--family", "integer", "--liberty", "none.lib"), "none.lib"),
    (("gemm", "systolc", "--shape", 1, 1, 1), "no unit 'systolc'; did you mean 'systolic'?"),
    (("gemm", "hadamard", "--shape", 1, 1, 1), "hadamard multiplies no matrices; take a GEMM engine, such as systolic"),
    (("gemm", "systolic", "--shape", 0, 1, 1), "shape: M must be a whole number of at least 1, not 0"),
    (("gemm", "systolic", "--shape", 1 << 20, 1, 1 << 20), "over 2^28 values"),
    (("gemm", "systolic", "--set", "rows", "--shape", 1, 1, 1), "--set 'rows': NAME=VALUE is needed"),
    (("gemm", "systolic", "--set", "rows=2,rows=3", "--shape", 1, 1, 1), "--set rows is given twice"),
    (("gemm", "systolic", "--set", "rows=0", "--shape", 1, 1, 1), "rows must be a whole number from 1 to 256, not 0"),
    (("gemm", "systolic", "--set", "row=2", "--shape", 1, 1, 1), "no parameter 'row'; did you mean 'rows'?"),
    (("gemm", "systolic", "--preset", "huge", "--shape", 1, 1, 1), "systolic: no preset 'huge'"),
    (("gemm", "lutgemm", "--convention", "scalesim", "--shape", 1, 1, 1), "lutgemm has no convention 'scalesim'"),
    (("gemm", "systolic", "--convention", "x", "--shape", 1, 1, 1), "convention is rtl or scalesim, not 'x'"),
    (("verify", "--simulator", "questa"), "no simulator 'questa'; one of: icarus, pysim, verilator"),
    (("verify", "systolic", "--verilog", "x.v"), "--verilog needs one UNIT and --set or --preset"),
    (("verify", "systolic", "--set", "rows=2", "--verilog", "x.v"), "x.v: cannot be read as Verilog text"),
    (("verify", "systolic", "--set", "rows=2", "--top", "t"), "--top names a module of --verilog FILE"),
    (("emit", "systolic", "--top", "a b"), "top module 'a b' is no module name"),
    (("synth", "systolic", "--liberty", "no.lib"), "no.lib"),
    (("sweep", "no.yaml"), "no.yaml"),
    (("report", "no.sqlite"), "no.sqlite"),
]


@pytest.mark.parametrize("argv, message", MISTAKES, ids=lambda value: " ".join(map(str, value)) if value else "")
def test_a_mistake_is_one_line_and_exit_code_2(hwsim, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = hwsim(*argv)
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named_with_its_remedy(hwsim, monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "amaranth"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "amaranth", None)
    for module in [name for name in sys.modules if name.partition(".")[0] == "rtl"]:
        monkeypatch.delitem(sys.modules, module)
    status, _, err = hwsim("synth", "systolic")
    assert (status, err.strip()) == (2, "hwsim: amaranth is not installed; pip install 'hwsim[rtl]'")


def test_the_console_script_is_installed():
    shown = subprocess.run([sys.executable, "-m", "hwsim.cli", "units"], capture_output=True, text=True, check=True)
    assert "systolic" in shown.stdout
