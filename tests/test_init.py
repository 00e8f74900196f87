"""`hwsim init`: what it writes is a study, also with every setting that it shows in force; nothing is overwritten."""

import json
import re
import sys

import pytest
import typer

import hwsim.cli
from hwsim import cli_doctor
from hwsim.evaluation import PARTS
from hwsim.evaluation.check import check
from hwsim.init import formats_of, study_text, write_study
from hwsim.sweep.space import load_study
from models.catalog import UNITS, unit
from models.unit import InputError, Kind

ENGINES = [name for name, entry in UNITS.items() if entry.kind is Kind.GEMM]
SHOWN = re.compile(r"(?m)^(\s*)# ([a-z_]+: )")
"""a setting that is not in force"""


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    """Run `hwsim init` in an empty folder: (exit code, standard output, standard error)."""
    app = typer.Typer()
    cli_doctor.register(app)
    monkeypatch.setattr(hwsim.cli, "app", app)
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["hwsim", "init", *map(str, argv)])
        with pytest.raises(SystemExit) as end:
            hwsim.cli.main()
        shown = capsys.readouterr()
        return end.value.code or 0, shown.out, shown.err

    return run


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_gets_a_study_whose_points_can_be_evaluated(name, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(study_text("mine", [unit(name)], ["digits-mlp"]))
    study = load_study(file)
    points = list(study.points())
    assert (study.name, study.search.method, len(points)) == ("mine", "exhaustive", 2 * len(formats_of(unit(name))))
    given = check(points[0])["engine"]
    assert given.items() >= dict(points[0].params).items()
    for point in points:
        check(point)


@pytest.mark.parametrize("name", ENGINES)
def test_every_setting_that_is_shown_is_valid_and_a_default(name, tmp_path):
    text = study_text("mine", [unit(name)], ["digits-mlp"])
    shown = {match[2].removesuffix(": ") for match in SHOWN.finditer(text)}
    assert {"title", "name", "where", "search", "limits", "evaluate", "acc_bits"} <= shown
    file = tmp_path / "mine.yaml"
    file.write_text(SHOWN.sub(r"\1\2", text))
    study = load_study(file)
    points = list(study.points())
    assert (study.title, study.search.method, study.limits.time_s) == ("any text", "nsga2", 600)
    assert study.evaluate == PARTS
    width = {"weight_bits", "act_bits", "act_format"}
    assert {key for key, _ in points[0].params} == unit(name).params_type.__dataclass_fields__.keys() - width
    file.write_text(text)
    plain = {point.format: check(point) for point in load_study(file).points()}
    assert all(check(point)["engine"] == plain[point.format]["engine"] for point in points)


def test_engines_that_share_no_format_stand_in_one_study(tmp_path):
    file = tmp_path / "all.yaml"
    file.write_text(study_text("all", [unit(name) for name in ENGINES], ["digits-mlp", "pylm"]))
    study = load_study(file)
    assert study.networks == ("digits-mlp", "pylm")
    assert {engine.unit: set(engine.formats) for engine in study.engines} == {
        name: set(formats_of(unit(name))) for name in ENGINES
    }
    assert formats_of(unit("fpmac")) == ["W16A16"]
    assert formats_of(unit("systolic")) == ["W8A8", "W4A8"]
    assert max(map(len, file.read_text().splitlines())) <= 120


def test_the_file_is_written_once_and_the_next_command_is_named(program, tmp_path):
    status, out, err = program("mine", "--engine", "lutgemm", "--network", "digits-cnn")
    assert (status, err) == (0, "")
    assert out.splitlines() == ["sweeps/mine.yaml", "next: hwsim sweep sweeps/mine.yaml --dry-run"]
    written = (tmp_path / "sweeps" / "mine.yaml").read_text()
    assert load_study(tmp_path / "sweeps" / "mine.yaml").networks == ("digits-cnn",)
    status, out, err = program("mine")
    assert (status, out) == (2, "")
    assert err == "hwsim: sweeps/mine.yaml: is there already; take another name, or another file with --out\n"
    assert (tmp_path / "sweeps" / "mine.yaml").read_text() == written


def test_a_file_of_another_name_names_the_study(program, tmp_path):
    status, out, _ = program("--out", "in/a b/other.yaml", "--json")
    assert status == 0
    assert json.loads(out) == {
        "file": "in/a b/other.yaml",
        "next": "hwsim sweep 'in/a b/other.yaml' --dry-run",
    }
    assert load_study(tmp_path / "in" / "a b" / "other.yaml").name == "other"
    assert program()[1].startswith("sweeps/study.yaml\n")


def test_a_link_is_not_followed(tmp_path):
    link = tmp_path / "mine.yaml"
    link.symlink_to(tmp_path / "elsewhere.yaml")
    with pytest.raises(InputError, match="is there already"):
        write_study("mine", link, engines=["systolic"], networks=["digits-mlp"])
    assert not (tmp_path / "elsewhere.yaml").exists()


@pytest.mark.parametrize(
    "argv, message",
    [
        (("Mine",), "'Mine' is no name of a study: a-z"),
        (("a/b",), "'a/b' is no name of a study"),
        (("--out", "A b.yaml"), "'A b' is no name of a study"),
        (("--out", " "), "--out ' ': is no path"),
        (("--engine", "systolc"), "no unit 'systolc'; did you mean 'systolic'?"),
        (("--engine", "hadamard"), "'hadamard' is no GEMM engine"),
        (("--engine", "cube", "--engine", "cube"), "--engine: one is given twice; leave it out"),
        (("--network", "digits-mpl"), "no network 'digits-mpl'; did you mean 'digits-mlp'?"),
        (("--network", "pylm", "--network", "pylm"), "--network: one is given twice"),
        (("--out", "/proc/none/x.yaml"), "/proc/none"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(program, tmp_path, argv, message):
    status, out, err = program(*argv)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
