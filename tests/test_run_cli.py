"""The commands on whole networks: what they print and write, and mistakes in one line with exit code 2."""

import csv
import inspect
import json
import sys
from dataclasses import replace

import pytest

import hwsim.system.check
import hwsim.system.outputs.trace
from hwsim.cli import main
from hwsim.system.machine import MACHINES
from hwsim.system.outputs.tables import LAYER_COLUMNS
from hwsim.system.run import LayerResult
from hwsim.workloads.zoo import ZOO
from models.unit import InputError

TOPOLOGY = "Layer, M, N, K,\nfirst,20,30,40,\nsecond,20,16,30,\n"
CONFIG = """[general]
run_name = theirs
[architecture_presets]
ArrayHeight = 8
ArrayWidth = 8
IfmapSramSzkB = 4
FilterSramSzkB = 4
OfmapSramSzkB = 4
Dataflow = ws
[run_presets]
InterfaceBandwidth = USER
Bandwidth = 4
"""
LLAMA = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, in a folder with a few networks and a machine."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "two.csv").write_text(TOPOLOGY)
    (tmp_path / "in" / "theirs.cfg").write_text(CONFIG)
    (tmp_path / "in" / "llama.json").write_text(json.dumps(LLAMA))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["hwsim", *map(str, argv)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        return end.value.code or 0, shown.out, shown.err

    return run


@pytest.mark.parametrize("command", ["run", "networks", "machines"])
def test_every_command_has_help_with_an_example_and_json(program, command):
    status, out, _ = program(command, "--help")
    assert status == 0
    assert f"Example: hwsim {command}" in " ".join(out.split())
    assert "--json" in out


def test_networks_names_every_source(program):
    status, out, _ = program("networks", "--json")
    assert status == 0
    assert {entry["name"]: entry["source"] for entry in json.loads(out)} == {e.name: e.source for e in ZOO.values()}
    assert all(name in program("networks")[1] for name in ZOO)


def test_machines_lists_what_comes_with_the_project(program):
    names = {path.stem for path in MACHINES.glob("*.yaml")}
    assert "demo-16" in names
    found = json.loads(program("machines", "--json")[1])
    assert {machine["name"] for machine in found} == names
    assert all(name in program("machines")[1] for name in names)


def test_run_prints_totals_and_layers(program):
    status, out, err = program("run", "in/two.csv", "demo-16", "--json")
    answer = json.loads(out)
    assert (status, err) == (0, "")
    assert [layer["layer"] for layer in answer["layer_results"]] == ["first", "second"]
    assert answer["macs"] == 20 * 30 * 40 + 20 * 16 * 30
    assert answer["total_cycles"] == sum(layer["cycles"] for layer in answer["layer_results"])
    assert answer["milliseconds"] == pytest.approx(answer["total_cycles"] / 500e3)
    assert answer["tokens_per_second"] is None
    assert answer["written"] == []
    assert list(answer["layer_results"][0]) == list(LAYER_COLUMNS)
    status, shown, err = program("run", "in/two.csv", "demo-16")
    assert (status, err) == (0, "")
    assert f"{answer['total_cycles']:,}" in shown
    assert "second" in shown
    assert "second" not in program("run", "in/two.csv", "demo-16", "--no-layers")[1]


def test_layers_alike_are_one_row_and_a_narrow_terminal_gets_fewer_columns(program, monkeypatch):
    wide = program("run", "in/llama.json", "demo-16", "--tokens", 4)[1]
    assert "model.layers.*.self_attn.q_proj" in wide
    assert "model.layers.1." not in wide
    assert "bus at work" in wide.partition("layers; a row")[2]
    monkeypatch.setenv("COLUMNS", "80")
    narrow = program("run", "in/llama.json", "demo-16", "--tokens", 4)[1].partition("layers; a row")[2]
    assert "bus at work" not in narrow
    assert "..ers.*.self_attn.q_proj" in narrow


def test_tokens_a_second_of_prefill_and_decode(program):
    for given, tokens in ((("--tokens", 6), 12), (("--phase", "decode", "--context", 9), 2)):
        answer = json.loads(program("run", "in/llama.json", "demo-16", "--batch", 2, *given, "--json")[1])
        assert answer["tokens"] == tokens
        assert answer["tokens_per_second"] == pytest.approx(tokens * 500e6 / answer["total_cycles"])


def test_all_files_are_written_over_what_was_there(program, tmp_path):
    given = ("run", "in/llama.json", "demo-16", "--tokens", 4, "--csv", "out/c", "--trace", "out/t.json")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "p.html").write_text("old")
    status, out, _ = program(*given, "--html", "out/p.html", "--json")
    answer = json.loads(out)
    assert status == 0
    names = ["c/layers.csv", "c/COMPUTE_REPORT.csv", "c/BANDWIDTH_REPORT.csv", "c/DETAILED_ACCESS_REPORT.csv"]
    assert answer["written"] == [f"out/{name}" for name in ("t.json", *names, "p.html")]
    with (tmp_path / "out" / "c" / "layers.csv").open(newline="") as file:
        assert sum(int(row["cycles"]) for row in csv.DictReader(file)) == answer["total_cycles"]
    events = json.loads((tmp_path / "out" / "t.json").read_text())["traceEvents"]
    assert max(event["ts"] + event["dur"] for event in events if event["ph"] == "X") == answer["total_cycles"]
    assert "<svg" in (tmp_path / "out" / "p.html").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["c", "p.html", "t.json"]


def test_layers_can_be_chosen(program):
    given = ("run", "in/llama.json", "demo-16", "--layer", "model.layers.1.*", "--tokens", 4)
    answer = json.loads(program(*given, "--json")[1])
    assert {layer["layer"].split(".self")[0].split(".mlp")[0][:14] for layer in answer["layer_results"]} == {
        "model.layers.1"
    }
    assert answer["tokens_per_second"] is None, "a part of a network makes no token"
    assert any(note.startswith("only the layers model.layers.1.*: ") for note in answer["notes"])
    norms = json.loads(program("run", "in/llama.json", "demo-16", "--layer", "*norm", "--json")[1])
    assert norms["utilization_fraction"] is None


def test_a_scalesim_configuration_is_a_machine(program):
    answer = json.loads(program("run", "in/two.csv", "in/theirs.cfg", "--json")[1])
    assert answer["machine"] == "theirs"
    assert answer["peak_macs_per_cycle"] == 64
    assert any("one bus here" in note for note in answer["notes"])


def test_rewrites_reach_the_graph(program):
    given = ("run", "in/two.csv", "demo-16", "--rewrite", "low-rank:rank=4", "--json")
    assert json.loads(program(*given)[1])["macs"] == 4 * (20 * (40 + 30) + 20 * (30 + 16))


def test_check_says_equal_and_ends_with_1_where_values_differ(program, monkeypatch):
    status, out, _ = program("run", "in/two.csv", "demo-16", "--check", "--seed", 3)
    assert (status, "2 of 2 distinct products equal" in out) == (0, True)
    real = hwsim.system.check.check

    def wrong(*args, seed, **options):
        assert seed == 0
        first, *others = real(*args, seed=seed, **options)
        return [replace(first, equal=False, difference="row 1 differs"), *others]

    monkeypatch.setattr(hwsim.system.check, "check", wrong)
    status, out, _ = program("run", "in/two.csv", "demo-16", "--check")
    assert (status, "1 of 2 distinct products equal" in out, "row 1 differs" in out) == (1, True, True)
    status, out, _ = program("run", "in/two.csv", "demo-16", "--check", "--json")
    assert (status, [row["equal"] for row in json.loads(out)["check"]]) == (1, [False, True])


def test_names_cannot_steer_the_terminal(program, tmp_path):
    (tmp_path / "in" / "odd.csv").write_text("Layer, M, N, K,\n\x1b[2J[red]x,3,4,5,\n")
    status, out, _ = program("run", "in/odd.csv", "demo-16")
    assert status == 0
    assert "?[2J[red]x" in out
    assert "\x1b" not in out


RUN = ("run", "in/two.csv", "demo-16")
MISTAKES = [
    (("run", "resnet5", "demo-16"), "no network 'resnet5'"),
    (("run", "in/two.csv", "demo-61"), "no machine 'demo-61': a .yaml file, or a name; did you mean 'demo-16'?"),
    (("run", "in/none.csv", "demo-16"), "in/none.csv: "),
    (("run", "in/two.csv", "none.yaml"), "none.yaml: no such file"),
    ((*RUN, "--phase", "decode"), "in/two.csv: --phase is for language models; leave it out"),
    ((*RUN, "--skip-unsupported"), "--skip-unsupported belongs to .onnx files; leave it out for in/two.csv"),
    ((*RUN, "--allow-external"), "--allow-external belongs to .onnx files"),
    ((*RUN, "--seed", 1), "--seed belongs to --check; give that too"),
    ((*RUN, "--rewrite", "low-rang:rank=4"), "no rewrite 'low-rang'; did you mean 'low-rank'?"),
    ((*RUN, "--layer", "frist"), "--layer 'frist' is the name of no layer of two; did you mean 'first'?"),
    ((*RUN, "--html", "in"), "--html in: is a folder; name a file"),
    ((*RUN, "--trace", "in"), "--trace in: is a folder; name a file"),
    (("run", "in/two.csv", ""), "no machine ''"),
    (("run", "", "demo-16"), "no network ''"),
    ((*RUN, "--csv", ""), "--csv '': is no path; name one, or leave --csv out"),
    ((*RUN, "--html", ""), "--html '': is no path"),
    ((*RUN, "--trace", " "), "--trace ' ': is no path"),
    ((*RUN, "--html", "x", "--trace", "x"), "x cannot be both; name two files"),
    ((*RUN, "--html", "x/../in/y", "--trace", "in/y"), "cannot be both; name two files"),
    ((*RUN, "--csv", "out", "--html", "out/layers.csv"), "cannot be both; name two files"),
    ((*RUN, "--csv", "out", "--trace", "./out/COMPUTE_REPORT.csv"), "cannot be both; name two files"),
    ((*RUN, "--csv", "out", "--html", "out"), "--html and --csv's layers.csv: out cannot be a file and a folder"),
    ((*RUN, "--csv", "out/in", "--html", "out"), "--html and --csv's layers.csv: out cannot be a file and a folder"),
    ((*RUN, "--html", "/dev/null"), "--html /dev/null: is a device; name a file"),
    ((*RUN, "--layer", "\x1b[2J*"), "--layer '\\x1b[2J*' is the name of no layer"),
    (("run", "\x1b[2J.csv", "demo-16"), "?[2J.csv"),
    ((*RUN, "--csv", "in/two.csv"), "--csv in/two.csv: is no folder; name one"),
    ((*RUN, "--csv", "/proc/none"), "give another folder to --csv"),
    ((*RUN, "--html", "/proc/none/x"), "give another path to --html"),
    (("run", "resnet18", "demo-16", "--tokens", 3), "resnet18: no option 'tokens'"),
    (("run", "in/llama.json", "demo-16", "--phase", "decod"), "no phase 'decod'"),
]


@pytest.mark.parametrize("argv, message", MISTAKES, ids=lambda value: " ".join(map(str, value)) if value else "")
def test_a_mistake_is_one_line_and_exit_code_2(program, tmp_path, argv, message):
    status, out, err = program(*argv)
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "\x1b" not in err
    assert not out
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


ALL = ("--csv", "out/c", "--html", "out/p.html", "--trace", "out/t.json")


def test_a_refused_check_leaves_nothing_behind(program, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise InputError("layer first: refused")

    monkeypatch.setattr(hwsim.system.check, "check", refuse)
    assert program(*RUN, "--check", *ALL) == (2, "", "hwsim: layer first: refused\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_refused_trace_leaves_nothing_behind_and_is_refused_before_the_check(program, monkeypatch, tmp_path):
    monkeypatch.setattr(hwsim.system.outputs.trace, "MAX_SLICES", 10)
    monkeypatch.setattr(hwsim.system.check, "check", lambda *_, **__: pytest.fail("checked"))
    status, out, err = program(*RUN, "--check", *ALL)
    assert (status, out) == (2, "")
    assert "10 at most; trace some layers with --layer GLOB" in err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_links_are_followed_to_tell_outputs_apart(program, tmp_path):
    (tmp_path / "in" / "same").symlink_to(tmp_path / "in")
    assert "cannot be both" in program(*RUN, "--html", "in/x", "--trace", "in/same/x")[2]
    (tmp_path / "in" / "file").symlink_to(tmp_path / "in" / "two.csv")
    assert "--html in/file: is a link; name the file itself" in program(*RUN, "--html", "in/file")[2]
    assert (tmp_path / "in" / "two.csv").read_text() == TOPOLOGY


def test_outputs_with_names_of_their_own_are_no_mistake(program, tmp_path):
    status, _, err = program(*RUN, "--check", "--csv", "out", "--html", "out/p.html", "--trace", "out/more/t.json")
    assert (status, err) == (0, "")
    assert (tmp_path / "out" / "more" / "t.json").is_file()


def test_a_glob_that_matches_nothing_names_a_few_layers(program):
    status, _, err = program("run", "llama-2-7b", "demo-16", "--layer", "zzz*")
    assert status == 2
    assert 1 <= err.count("model.") <= 3
    assert len(err) < 250
    assert "did you mean 'first'?" in program(*RUN, "--layer", "frist*")[2]


def test_words_of_an_onnx_file_cannot_steer_the_terminal(program, tmp_path):
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])
    node = onnx.helper.make_node("Relu", ["\x1b[2Jabsent"], ["y"], name="\x1b]0;n\x07")
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out]))
    (tmp_path / "in" / "n.onnx").write_bytes(model.SerializeToString())
    status, _, err = program("run", "in/n.onnx", "demo-16")
    assert status == 2
    assert "in/n.onnx" in err
    assert err.strip().isprintable()


@pytest.mark.parametrize("figure", ["cycles", "compute_cycles", "stall_cycles", "bound_cycles", "bound"])
def test_columns_say_what_the_docstrings_say(figure):
    """Word for word but for marks of code and names of columns; a column may say more after that."""
    source = inspect.getsource(LayerResult)
    told = source.partition(f"    {figure}: ")[2].split('"""')[1]
    column, told = (" ".join(text.replace("`", "").split()) for text in (LAYER_COLUMNS[figure], told))
    assert column.replace("begin_cycle", "begin").replace("end_cycle", "end").startswith(told)


def test_a_missing_extra_is_named_with_its_remedy(program, monkeypatch, tmp_path):
    (tmp_path / "in" / "n.onnx").write_bytes(b"x")
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnx"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in ("hwsim.workloads.onnx_file", "hwsim.workloads.onnx_layers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    status, _, err = program("run", "in/n.onnx", "demo-16")
    assert (status, err.strip()) == (2, "hwsim: onnx is not installed; pip install 'hwsim[onnx]'")
