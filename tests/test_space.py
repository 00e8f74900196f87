"""The sweep file: what is read, and every refusal with its place."""

import contextlib
import itertools
import json
import math
import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hwsim.document import MAX_BYTES, MAX_DEPTH, load_yaml
from hwsim.evaluation import evaluation
from hwsim.sweep.point import Point
from hwsim.sweep.space import MAX_POINTS, MAX_TRIED, Study, load_study
from models.unit import InputError

SWEEPS = sorted((Path(__file__).parent.parent / "sweeps").glob("*.yaml"))
QUICKSTART = Path(__file__).parent.parent / "sweeps" / "quickstart.yaml"

STUDY = """\
name: tiny
network: digits-mlp
seed: 1
formats: [W8A8, W4A8]
transforms: [none, hadamard]
engines:
  - {unit: systolic, set: {rows: 4, cols: 8, dataflow: WS}}
  - unit: lutgemm
"""


def written(folder, text):
    path = folder / "s.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def points_of(path):
    return list(load_study(path).points())


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_study_of_the_project_has_points_that_can_be_evaluated(path):
    points = points_of(path)
    assert len({point.label for point in points}) == len(points) == load_study(path).count() > 30
    check = evaluation({}).check
    for point in points:
        assert check(point)["engine"]
    assert f"{len(points)} points" in path.read_text()


def test_points_are_the_product_in_a_fixed_order(tmp_path):
    points = points_of(written(tmp_path, STUDY))
    assert [p.label for p in points] == [
        "systolic 4x8 WS W8A8 none",
        "systolic 4x8 WS W4A8 none",
        "lutgemm W8A8 none",
        "lutgemm W4A8 none",
        "systolic 4x8 WS W8A8 hadamard",
        "systolic 4x8 WS W4A8 hadamard",
        "lutgemm W8A8 hadamard",
        "lutgemm W4A8 hadamard",
    ]
    assert points[1] == Point(
        activations="asymmetric",
        network="digits-mlp",
        seed=1,
        weight_bits=4,
        act_bits=8,
        transform="none",
        unit="systolic",
        params=(("cols", 8), ("dataflow", "WS"), ("rows", 4)),
    )
    assert all(Point.from_dict(p.as_dict()) == p for p in points)


def test_the_shipped_sweep_is_the_demo():
    points = points_of(QUICKSTART)
    assert len(points) == len(set(points)) == 40
    assert {p.unit for p in points} == {"systolic", "lutgemm", "shiftadd"}
    assert {p.format for p in points} == {"W8A8", "W4A8", "W4A4", "W3A8", "W2A8"}


REFUSALS = [
    ("seed: 1", "sede: 1", r"s\.yaml:3: sede: unknown key; did you mean 'seed'\?"),
    ("seed: 1\n", "", r"s\.yaml:1: key 'seed' is missing"),
    ("seed: 1", "seed: '1'", r"s\.yaml:3: seed: a whole number is needed, not '1'"),
    ("seed: 1", "seed: true", r"s\.yaml:3: seed: a whole number is needed, not True"),
    ("seed: 1", "seed: 1.5", r"s\.yaml:3: seed: a whole number is needed, not 1\.5"),
    ("seed: 1", "seed: -1", r"s\.yaml:3: seed: .*greater than or equal to 0"),
    ("seed: 1", "seed: 010", r"s\.yaml:3: '010' is not a plain decimal number"),
    ("seed: 1", "seed: 0o10", r"s\.yaml:3: '0o10' is not a plain decimal"),
    ("seed: 1", "seed: 1_0", r"s\.yaml:3: '1_0' is not a plain decimal"),
    ("seed: 1", "seed: 1:30", r"s\.yaml:3: '1:30' is not a plain decimal"),
    ("seed: 1", "seed: .inf", r"s\.yaml:3: \.inf is not a finite number"),
    ("seed: 1", "seed: -.NaN", r"s\.yaml:3: -\.NaN is not a finite number"),
    ("seed: 1", "seed: 1e999", r"s\.yaml:3: '1e999' is too large"),
    ("seed: 1", "seed: " + "9" * 5000, r"s\.yaml:3: a whole number has at most 18 digits"),
    ("seed: 1", "seed: 1\nseed: 2", r"s\.yaml:4: key 'seed' stands twice"),
    ("seed: 1", "seed: &a 1", r"s\.yaml:3: anchors"),
    ("seed: 1", "seed: *a", r"s\.yaml:3: aliases"),
    ("seed: 1", "seed: !!int 1", r"s\.yaml:3: tag tag:yaml.org,2002:int is not admitted"),
    ("seed: 1", "1: 1", r"s\.yaml:3: key '1' must be text"),
    ("seed: 1", "[a]: 1", r"s\.yaml:3: a key must be text"),
    ("seed: 1", "seed: 1\n---\nseed: 1", r"s\.yaml:4: a second document"),
    ("name: tiny", "%YAML 1.1\n---\nname: tiny", r"s\.yaml:2: %-directives"),
    ("name: tiny", "name: ../tiny", r"s\.yaml:1: name: '\.\./tiny' is not a name"),
    ("name: tiny", 'name: "a\\n"', r"s\.yaml:1: name: 'a\\n' is not a name"),
    ("digits-mlp", "'<b>\"'", r"s\.yaml:2: network: .* is not a name"),
    ("W4A8]", "W9A8]", r"s\.yaml:4: formats\[1\]: 'W9A8' is not W<1 to 8>A<2 to 8, or 16>; did you mean 'W8A8'\?"),
    ("W4A8]", "W8A8]", r"s\.yaml:4: formats: entry 1 repeats entry 0"),
    ("[W8A8, W4A8]", "[]", r"s\.yaml:4: formats: 0 entries; 1 to 1000 are needed"),
    ("[none, hadamard]", "none", r"s\.yaml:5: transforms: a list is needed, not 'none'"),
    ("[none, hadamard]", "['hada mard']", r"s\.yaml:5: transforms\[0\]: 'hada mard' is no name with options, such as"),
    ("unit: lutgemm", "unit: lutgem", r"s\.yaml:8: engines\[1\]\.unit: no unit 'lutgem'; did you mean 'lutgemm'\?"),
    ("unit: lutgemm", "unit: hadamard", r"s\.yaml:8: engines\[1\]\.unit: 'hadamard' is no GEMM engine; one of"),
    ("- unit: lutgemm", "- lutgemm", r"s\.yaml:8: engines\[1\]: .*not 'lutgemm'"),
    ("set: {", "sat: {", r"s\.yaml:7: engines\[0\]\.sat: unknown key; did you mean 'set'\?"),
    ("rows: 4", "rows: 4.5", r"s\.yaml:7: engines\[0\]\.set\.rows: a whole number.* not 4\.5"),
    ("rows: 4", "rows: [[4]]", r"s\.yaml:7: engines\[0\]\.set\.rows\[0\]: a whole number.* not \(4,\)"),
    ("rows: 4", "rows: 'a b'", r"s\.yaml:7: engines\[0\]\.set\.rows: .* not 'a b'"),
    ("rows: 4", "'a;b': 4", r"s\.yaml:7: engines\[0\]\.set\.a;b: 'a;b' is no parameter name"),
    ("[none, hadamard]", "{a", r"s\.yaml:6: not YAML"),
]


def test_integer_activations_come_in_two_kinds_and_floats_in_one(tmp_path):
    text = STUDY.replace("W4A8]", "W4A16]") + "activations: [asymmetric, symmetric]\n"
    text = text.replace("transforms: [none, hadamard]", "transforms: [none]")
    labels = [p.label for p in points_of(written(tmp_path, text))]
    assert labels == [
        "systolic 4x8 WS W8A8 none",
        "systolic 4x8 WS W8A8 none symmetric",
        "systolic 4x8 WS W4A16 none",
        "lutgemm W8A8 none",
        "lutgemm W8A8 none symmetric",
        "lutgemm W4A16 none",
    ]
    kinds = [p.activations for p in points_of(written(tmp_path, text))]
    assert kinds == ["asymmetric", "symmetric", "float"] * 2
    with pytest.raises(
        InputError, match=r"s.yaml:9: activations.*'symetric' is not asymmetric or symmetric; did you m"
    ):
        load_study(written(tmp_path, text.replace(", symmetric]", ", symetric]")))


@pytest.mark.parametrize("old, new, message", REFUSALS, ids=[new[:20] for _, new, _ in REFUSALS])
def test_refusals_name_place_and_rule(tmp_path, old, new, message):
    assert old in STUDY
    with pytest.raises(InputError, match=message) as refusal:
        load_study(written(tmp_path, STUDY.replace(old, new, 1)))
    assert "\n" not in str(refusal.value)


LONG = "x" * 5000


@pytest.mark.parametrize(
    "old, new",
    [
        ("name: tiny", f"name: {LONG}"),
        ("name: tiny", f"name: '/{LONG}'"),
        ("digits-mlp", f"/{LONG}"),
        ("[W8A8, W4A8]", f"[{LONG}]"),
        ("[none, hadamard]", f"[/{LONG}]"),
        ("[none, hadamard]", LONG),
        ("unit: lutgemm", f"unit: {LONG}"),
        ("rows: 4", f"rows: {LONG}"),
        ("rows: 4", f"{LONG}: 4"),
        ("seed: 1", f"{LONG}: 1"),
        ("seed: 1", f"{'9' * 17}{LONG}: 1"),
        ("seed: 1", f"seed: 1\n{LONG[:900]}: 1\n{LONG[:900]}: 1"),
        ("seed: 1", f"seed: !{LONG} 1"),
        ("seed: 1", f"seed: !{LONG}!x 1"),
        ("seed: 1", f"'a\n\n{LONG}': 1"),
    ],
)
def test_what_is_echoed_is_short(tmp_path, old, new):
    assert old in STUDY
    with pytest.raises(InputError) as refusal:
        load_study(written(tmp_path, STUDY.replace(old, new, 1)))
    message = str(refusal.value).replace(str(tmp_path), "")
    assert len(message) < 500
    assert "\n" not in message


def test_an_engine_runs_the_formats_that_it_names(tmp_path):
    path = written(tmp_path, STUDY.replace("- unit: lutgemm", "- {unit: lutgemm, formats: [W4A8]}"))
    assert [p.label for p in points_of(path) if p.unit == "lutgemm"] == [
        "lutgemm W4A8 none",
        "lutgemm W4A8 hadamard",
    ]
    for chosen, message in (
        (
            "[W2A8]",
            r"s\.yaml:8: engines\[1\].formats\[0\]: W2A8 is not among the study's formats; did you mean 'W[48]A8'",
        ),
        ("[W4A99]", r"engines\[1\].formats\[0\]: 'W4A99' is not W<1 to 8>A<2 to 8, or 16>; did you mean"),
        ("[]", r"engines\[1\].formats"),
    ):
        path = written(tmp_path, STUDY.replace("- unit: lutgemm", f"- {{unit: lutgemm, formats: {chosen}}}"))
        with pytest.raises(InputError, match=message):
            load_study(path)


def test_one_mistake_is_counted_once(tmp_path):
    path = written(tmp_path, STUDY.replace("[W8A8, W4A8]", "[W9A8]"))
    with pytest.raises(InputError, match=r"did you mean 'W8A8'\?$"):
        load_study(path)
    path = written(tmp_path, STUDY.replace("[W8A8, W4A8]", "[W9A8, W0A8]"))
    with pytest.raises(InputError, match=r"formats\[0\].*\(and 1 more\)$"):
        load_study(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "the file is empty"),
        (b"# only a comment", "the file is empty"),
        (b"- 1", "a sweep file is a mapping"),
        (b"a: \xff", "byte 3 is not UTF-8"),
        (b"a: \x00", "not YAML"),
        (b"#" * (MAX_BYTES + 1), "more than 1000000 bytes"),
        (b"[" * 500_000, "nested deeper"),
        (b"- " * 3000, "nested deeper"),
    ],
)
def test_unreadable_files(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        load_study(written(tmp_path, content))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        load_study(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="is a folder; name a file"):
        load_study(tmp_path)


def test_depth_is_counted_exactly(tmp_path):
    assert load_yaml(written(tmp_path, "[" * MAX_DEPTH + "]" * MAX_DEPTH)).value == nested(MAX_DEPTH)
    with pytest.raises(InputError, match="nested deeper than 50"):
        load_yaml(written(tmp_path, "[" * (MAX_DEPTH + 1) + "1" + "]" * (MAX_DEPTH + 1)))


def nested(depth):
    return () if depth == 1 else (nested(depth - 1),)


@pytest.mark.parametrize(
    "text, value",
    [
        ("12", 12),
        ("-3", -3),
        ("0", 0),
        ("1.5", 1.5),
        ("-1e3", -1000.0),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("off", "off"),
        ("~", None),
        ("null", None),
        ("W4A8", "W4A8"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("2026-01-01", "2026-01-01"),
    ],
)
def test_scalars(tmp_path, text, value):
    read = load_yaml(written(tmp_path, f"a: {text}")).value["a"]
    assert read == value
    assert type(read) is type(value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(alphabet="ab:-[]{},&*!|>'\"%#?@` \n\t0123.~\u2028é", max_size=40).map(str.encode) | st.binary(max_size=40)
)
@example(b"? ")
@example(b"a: >\n\t")
def test_any_bytes_are_data_or_refused(tmp_path, content):
    path = written(tmp_path, content)
    with contextlib.suppress(InputError):
        assert plain(load_yaml(path).value)


def plain(value):
    if isinstance(value, dict):
        return all(isinstance(k, str) and plain(v) for k, v in value.items())
    if isinstance(value, tuple):
        return all(map(plain, value))
    return value is None or isinstance(value, (str, bool, int)) or math.isfinite(value)


# ---- spaces


HEAD = """\
name: tiny
network: digits-mlp
seed: 1
formats: [W8A8, W4A8]
transforms: [none]
engines:
"""


def space(folder, engines, rest="", head=HEAD):
    return load_study(written(folder, f"{head}{engines}\n{rest}"))


def settings_of(study):
    """The distinct settings of all points."""
    return list(dict.fromkeys(tuple(dict(p.params).items()) for p in study.points()))


@pytest.mark.parametrize(
    "form, values",
    [
        ("4", [4]),
        ("[4, 1, 9]", [4, 1, 9]),
        ("{from: 3, to: 5}", [3, 4, 5]),
        ("{from: 1, to: 10, step: 4}", [1, 5, 9]),
        ("{from: 4, to: 64, times: 2}", [4, 8, 16, 32, 64]),
        ("{from: 3, to: 80, times: 3}", [3, 9, 27]),
        ("{from: 7, to: 7, times: 2}", [7]),
        ("{values: 4, when: 'true' == 'true'}", None),
    ],
)
def test_forms_of_a_setting(tmp_path, form, values):
    text = f"  - {{unit: systolic, set: {{rows: {form}}}}}"
    if values is None:
        with pytest.raises(InputError, match="not YAML"):
            space(tmp_path, text)
        return
    assert settings_of(space(tmp_path, text)) == [(("rows", value),) for value in values]


CONDITIONAL = """\
  - unit: systolic
    name: "the <b>'array'</b>\\n"
    set:
      dataflow: [WS, OS]
      buffers: {values: [1, 2], when: "dataflow == 'WS'"}
      acc_bits: {values: {from: 24, to: 32, step: 8}, when: buffers == 2}
    each: [{style: mac}, {style: opt1, rows: 4}]
    where: ["style == 'mac' or rows == 4", cols == 16]
"""


def test_a_setting_exists_where_its_condition_holds(tmp_path):
    study = space(tmp_path, CONDITIONAL)
    found = [dict(items) for items in settings_of(study)]
    grid = [
        {"buffers": 1, "dataflow": "WS"},
        {"acc_bits": 24, "buffers": 2, "dataflow": "WS"},
        {"acc_bits": 32, "buffers": 2, "dataflow": "WS"},
        {"dataflow": "OS"},
    ]
    assert found == [g | e for e in ({"style": "mac"}, {"style": "opt1", "rows": 4}) for g in grid]
    assert {p.name for p in study.points()} == {"the <b>'array'</b>\n"}


def test_constraints_name_what_is_set_what_the_format_says_and_defaults(tmp_path):
    engines = """\
  - {unit: systolic, set: {rows: [4, 8]}, where: rows * weight_bits == cols * 2}
  - {unit: dequant, set: {rows: 4}, where: "act_format == 'fp16' and group_size == 'none' and act_bits == 16"}
  - {unit: dequant, set: {act_bits: 12}, formats: [W4A16], where: act_bits == 12}
"""
    head = HEAD.replace("W4A8]", "W4A8, W4A16]")
    labels = [p.label for p in space(tmp_path, engines, head=head).points()]
    assert labels == [
        "systolic rows=4 W8A8 none",
        "systolic rows=8 W4A8 none",
        "systolic rows=8 W4A16 none",
        "dequant rows=4 W4A16 none",
        "dequant act_bits=12 W4A16 none",
    ]


def test_a_studys_constraint_does_not_concern_engines_without_its_parameter(tmp_path):
    engines = "  - {unit: systolic, set: {style: [mac, opt1]}}\n  - {unit: lutgemm, set: {mu: [2, 4]}}"
    rest = "where: [\"style == 'mac'\", mu == 4 or weight_bits == 4, \"unit != 'lutgemm' or act_bits > 2\"]"
    assert [p.label for p in space(tmp_path, engines, rest).points()] == [
        "systolic style=mac W8A8 none",
        "systolic style=mac W4A8 none",
        "lutgemm mu=4 W8A8 none",
        "lutgemm mu=2 W4A8 none",
        "lutgemm mu=4 W4A8 none",
    ]


def test_constraints_over_the_whole_point(tmp_path):
    head = HEAD.replace("[none]", "[none, hadamard]").replace("seed: 1", "seed: [1, 2]")
    head = head.replace("network: digits-mlp", "network: [digits-mlp, digits-cnn]")
    rest = "where: transform == 'none' or (weight_bits < 8 and seed == 2 and network == 'digits-cnn')"
    found = [
        (p.network, p.seed, p.transform, p.format) for p in space(tmp_path, "  - unit: systolic", rest, head).points()
    ]
    whole = itertools.product(("digits-mlp", "digits-cnn"), (1, 2), ("none", "hadamard"), ("W8A8", "W4A8"))
    assert found == [p for p in whole if p[2] == "none" or p[:2] + p[3:] == ("digits-cnn", 2, "W4A8")]


def test_an_earlier_constraint_guards_a_later_one(tmp_path):
    engines = "  - {unit: systolic, set: {rows: [2, 4]}}"
    guard = "where: [{}, rows / (rows - 4) != 1]"
    assert len(list(space(tmp_path, engines, guard.format("\"transform == 'x' or rows != 4\"")).points())) == 2
    message = r"^.*s\.yaml:8: where\[1\]: 'rows / \(rows - 4\) != 1' at rows=4: division by zero$"
    with pytest.raises(InputError, match=message):
        space(tmp_path, engines, guard.format("rows > 1"))


def test_equal_points_are_one(tmp_path):
    engines = """\
  - {unit: systolic, name: a, set: {rows: [4, 8]}}
  - {unit: systolic, name: b, set: {rows: [8, 16]}}
"""
    study = space(tmp_path, engines)
    points = list(study.points())
    named = [("a", 4), ("a", 8), ("b", 16)]
    listed = [(n, f, rows) for n in "ab" for f in ("W8A8", "W4A8") for name, rows in named if name == n]
    assert [p.label for p in points] == [f"{n} rows={rows} {f} none" for n, f, rows in listed]
    assert study.count() == len({json.dumps(p.configuration()) for p in points}) == 6


def everything(study):
    """All that `suggest` can give, by walking through every answer to every question."""
    dimensions, found = study.dimensions(), []
    pending = [()]
    while pending:
        answers = pending.pop()
        asked = []

        def choose(name, choices, answers=answers, asked=asked):
            assert tuple(choices) == dimensions[name]
            asked.append(name)
            if len(asked) > len(answers):
                raise LookupError(choices)
            return answers[len(asked) - 1]

        try:
            found.append(study.suggest(choose))
            assert len(set(asked)) == len(asked)
        except LookupError as question:
            pending += [(*answers, choice) for choice in question.args[0]]
    return found


def test_a_search_can_reach_every_point_and_no_other(tmp_path):
    engines = CONDITIONAL + "  - {unit: lutgemm, set: {mu: [2, 4]}, formats: [W4A8], where: mu * weight_bits < 10}\n"
    head = HEAD.replace("[none]", "[none, hadamard]").replace("W4A8]", "W4A8, W4A16]")
    rest = "activations: [asymmetric, symmetric]\nwhere: [\"transform == 'none' or weight_bits < 8\"]"
    study = space(tmp_path, engines, rest, head)
    found = everything(study)
    assert None in found
    reached = [p for p in found if p is not None]
    points = set(study.points())
    assert set(reached) == points
    assert len(reached) == len(points)
    names = {"engine", "format", "0.each", "0.dataflow", "0.buffers", "0.acc_bits", "1.mu", "activations", "transform"}
    assert study.dimensions().keys() == names


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True),
    cols=st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True),
    flows=st.lists(st.sampled_from(["WS", "OS", "IS"]), min_size=1, max_size=3, unique=True),
    most=st.integers(1, 400),
    least=st.integers(1, 8),
    condition=st.sampled_from(["dataflow == 'WS'", "rows > cols", "weight_bits == 8"]),
)
def test_points_are_those_of_nested_loops(tmp_path, rows, cols, flows, most, least, condition):
    engine = {
        "unit": "systolic",
        "set": {"rows": rows, "cols": cols, "dataflow": flows, "buffers": {"values": [1, 2], "when": condition}},
        "where": f"rows * cols <= {most}",
    }
    document = {
        "name": "n",
        "network": "digits-mlp",
        "seed": [3, 4],
        "formats": ["W8A8", "W4A8"],
        "transforms": ["none", "hadamard"],
        "engines": [engine],
        "where": f"transform == 'none' or weight_bits + buffers > {least}",
        "search": {"method": "random", "points": 1},
    }
    expected = []
    for seed, transform, bits in itertools.product((3, 4), ("none", "hadamard"), (8, 4)):
        for r, c, flow in itertools.product(rows, cols, flows):
            meets = {"dataflow == 'WS'": flow == "WS", "rows > cols": r > c, "weight_bits == 8": bits == 8}[condition]
            for buffers in (1, 2) if meets else (None,):
                if r * c <= most and (transform == "none" or bits + (buffers or 1) > least):
                    expected.append((seed, transform, bits, r, c, flow, buffers))
    study = load_study(written(tmp_path, json.dumps(document)))
    names = ("rows", "cols", "dataflow", "buffers")
    found = [(p.seed, p.transform, p.weight_bits, *map(dict(p.params).get, names)) for p in study.points()]
    assert found == expected
    assert study.count() == len(expected)


def test_a_study_is_read_back_from_its_plain_data(tmp_path):
    rest = "search: {method: nsga2, points: 20, objectives: [accuracy, area_um2]}\nlimits: {time_s: 60}\n"
    study = space(
        tmp_path, CONDITIONAL, rest + "where: rows < 99\n" + 'title: "<i>\\n"\nevaluate: [cycles, accuracy]\n'
    )
    stored = json.loads(json.dumps(study.as_dict()))
    again = Study.from_dict(stored)
    assert list(again.points()) == list(study.points())
    assert again.as_dict() == stored
    assert (again.search, again.limits, again.title) == (study.search, study.limits, "<i>\n")
    assert again.evaluate == ("cycles", "accuracy")
    assert (again.search.method, again.search.points, again.search.seed) == ("nsga2", 20, 1)
    assert again.limits.model_dump() == {"time_s": 60.0, "memory_mib": 4096}
    stored["engines"][0]["unit"] = "lutgem"
    with pytest.raises(InputError, match=r"^stored study:1: engines\[0\]\.unit: no unit 'lutgem'; did you"):
        Study.from_dict(stored)
    for wrong in ({}, [], 3, None, {"name": ["x"]}, json.loads('{"a": ' + "[" * 60 + "]" * 60 + "}")):
        with pytest.raises(InputError, match="stored study"):
            Study.from_dict(wrong)


# ---- limits of an exhaustive study


def test_too_many_points(tmp_path):
    engines = "  - {unit: systolic, set: {rows: {from: 1, to: 256}, cols: {from: 1, to: 256}}}"
    sample = r"sample them, such as `search: \{method: random, points: 1000\}`"
    with pytest.raises(InputError, match=rf"s\.yaml:1: 262144 points; {MAX_POINTS} at most, so {sample}") as refusal:
        space(tmp_path, engines, "transforms: [none, hadamard]", HEAD.replace("transforms: [none]\n", ""))
    assert refusal
    with pytest.raises(InputError, match=f"more than {MAX_POINTS} points; {sample}"):
        space(tmp_path, engines, head=HEAD.replace("W4A8]", "W4A8, W3A8, W2A8]"))
    every = engines.replace("}}}", "}, acc_bits: {from: 2, to: 48}}, where: rows * cols == 1}")
    with pytest.raises(InputError, match=rf"s\.yaml:1: more than {MAX_TRIED} combinations; {sample}"):
        space(tmp_path, every)
    study = space(tmp_path, every, "search: {method: random, points: 5, seed: 7}")
    assert study.suggest(lambda _name, choices: choices[0]).label == "systolic 1x1 acc_bits=2 W8A8 none"
    assert study.suggest(lambda _name, choices: choices[1]) is None


def test_a_study_without_points_says_so(tmp_path):
    with pytest.raises(InputError, match=r"s\.yaml:1: no point: the constraints refuse all combinations, 2; widen"):
        space(tmp_path, "  - unit: systolic", "where: rows > 16")
    with pytest.raises(InputError, match=r"s\.yaml:8: where: 'rows' gives 16; a condition is true or false"):
        space(tmp_path, "  - unit: systolic", "where: rows")


# ---- files that extend others


def family(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_file_extends_another(tmp_path):
    (tmp_path / "deep").mkdir()
    family(tmp_path / "deep", leaf="name: leaf\nextends: ../mid.yaml\nseed: 5\nmore_engines: [{unit: tmac}]\n")
    family(tmp_path, mid="name: mid\nextends: base\nformats: [W4A8]\nmore_engines:\n  - unit: shiftadd\n", base=STUDY)
    study = load_study(tmp_path / "deep" / "leaf.yaml")
    assert (study.name, study.seeds, study.formats) == ("leaf", (5,), ("W4A8",))
    assert [e.unit for e in study.engines] == ["systolic", "lutgemm", "shiftadd", "tmac"]
    assert {"extends", "more_engines"}.isdisjoint(study.as_dict())
    assert list(Study.from_dict(study.as_dict()).points()) == list(study.points())


def test_an_inherited_engine_keeps_the_formats_that_are_left(tmp_path):
    base = STUDY.replace("- unit: lutgemm", "- {unit: lutgemm, formats: [W4A8]}")
    family(
        tmp_path,
        base=base,
        a="name: a\nextends: base\nformats: [W8A8, W2A8]\n",
        b="name: b\nextends: base\nformats: [W4A8]\n",
    )
    assert {p.unit for p in load_study(tmp_path / "a.yaml").points()} == {"systolic"}
    assert [e.index for e in load_study(tmp_path / "b.yaml").engines] == [0, 1]
    family(tmp_path, c="name: c\nextends: base\nformats: [W2A8]\nengines: [{unit: tmac, formats: [W4A8]}]\n")
    with pytest.raises(InputError, match=r"c\.yaml:4: engines\[0\]\.formats\[0\]: W4A8 is not among the study's"):
        load_study(tmp_path / "c.yaml")
    family(
        tmp_path,
        c="name: c\nextends: base\nformats: [W2A8]\n",
        base=base.replace("- {unit: s", "- {formats: [W8A8], unit: s"),
    )
    with pytest.raises(InputError, match=r"c\.yaml:3: formats: no engine runs any of them"):
        load_study(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "child, message",
    [
        ("name: c\nextends: bas", r"c\.yaml:2: extends: no sweep file 'bas\.yaml'; did you mean 'base'\?"),
        ("name: c\nextends: ./base", r"c\.yaml:2: extends: no sweep file '\./base'; did"),
        ("name: c\nextends: .", r"c\.yaml:2: extends: no sweep file '\.'; one of: base, c, loop, other"),
        ("name: c\nextends: 3", r"c\.yaml:2: extends: the name or path of another sweep file is needed, not 3"),
        ("name: c\nextends: [base]", r"c\.yaml:2: extends: the name or path .*not \('base',\)"),
        ('name: c\nextends: ""', r"c\.yaml:2: extends: '' is no name of a file"),
        ('name: c\nextends: "a\\nb"', r"c\.yaml:2: extends: 'a\\nb' is no name of a file"),
        ('name: c\nextends: "a\\0b"', r"c\.yaml:2: extends: 'a\\x00b' is no name of a file"),
        (f"name: c\nextends: {'x' * 256}", r"c\.yaml:2: extends: .* is no name of a file: 1 to 255 printable"),
        (f"name: c\nextends: {'é' * 200}", r"c\.yaml:2: extends: 'é+\.\.\.: File name too long"),
        ("name: c\nextends: c", r"c\.yaml:2: extends: a circle: 'c\.yaml' -> 'c\.yaml'; leave one"),
        ("name: c\nextends: loop", r"loop\.yaml:1: extends: a circle: 'c\.yaml' -> 'loop\.yaml' -> 'c\.yaml'"),
        ("extends: base", r"c\.yaml:1: key 'name' is missing"),
        ("name: c\nextends: base\nsede: 1", r"c\.yaml:3: sede: unknown key; did you mean 'seed'"),
        ("name: c\nextends: other", r"other\.yaml:2: seed: a whole number is needed, not 'x'"),
        ("name: c\nextends: other\nseed: 1", r"other\.yaml:4: engines\[0\]\.set\.rows: .*not 'x'"),
        (
            "name: c\nextends: base\nengines: []\nmore_engines: [{unit: tmac}]",
            r"c\.yaml:4: more_engines: `engines` repl",
        ),
        ("name: c\nextends: base\nmore_engines: 3", r"c\.yaml:3: more_engines: a list is needed, not 3"),
        ("name: c\nextends: base\nmore_engines: [3]", r"c\.yaml:3: more_engines\[0\]: .*not 3"),
        (
            "name: c\nextends: base\nmore_engines:\n  - {unit: tmac}\n  - {unit: tmax}",
            r"c\.yaml:5: more_engines\[1\]\.unit: no unit 'tmax'; did you mean 'tmac'",
        ),
        ("name: c\nmore_engines: [{unit: tmac}]", r"c\.yaml:2: more_engines: this file extends none; write `engines`"),
        ("name: c\nextends: listed", r"listed\.yaml:1: a sweep file is a mapping with the keys name, title"),
    ],
)
def test_extensions_that_are_refused(tmp_path, child, message):
    other = "name: o\nseed: x\nengines:\n  - {unit: systolic, set: {rows: x}}\nnetwork: n\nformats: [W8A8]\n"
    other += "transforms: [none]\n"
    family(tmp_path, base=STUDY, loop="extends: c\n", other=other, c=child)
    if "listed" in child:
        family(tmp_path, listed="- 1\n")
    with pytest.raises(InputError, match=message) as refusal:
        load_study(tmp_path / "c.yaml")
    assert len(str(refusal.value).splitlines()) == 1


def test_a_chain_has_an_end(tmp_path):
    family(tmp_path, s0=STUDY, **{f"s{n}": f"name: s{n}\nextends: s{n - 1}\n" for n in range(1, 12)})
    assert load_study(tmp_path / "s9.yaml").count() == 8
    with pytest.raises(InputError, match=r"s2\.yaml:2: extends: a chain of more than 10 files: 's11\.yaml' -> 's10"):
        load_study(tmp_path / "s11.yaml")


# ---- every key wrong


MISTAKES = [
    # what stands in the file instead of `set`, the key, the rule
    ("set: 3", "set", "a mapping is needed, not 3"),
    ("set: {rowz: 3}", "set.rowz", "no parameter of systolic; did you mean 'rows'?"),
    ("set: {weight_bits: 3}", "set.weight_bits", "weight_bits comes from the format; leave it out of `set`"),
    ("set: {rows: '4'}", "set.rows", "a whole number is needed, not '4'"),
    ("set: {rows: true}", "set.rows", "a whole number is needed, not True"),
    ("set: {rows: []}", "set.rows", "0 values; 1 to 1000 are needed"),
    ("set: {rows: [1, 2, 1]}", "set.rows", "1 stands twice; leave one out"),
    ("set: {dataflow: ws}", "set.dataflow", "'ws' is unknown; did you mean 'WS'?"),
    ("set: {dataflow: [WS, 3]}", "set.dataflow[1]", "3 is unknown; one of: IS, OS, WS"),
    ("set: {rows: {}}", "set.rows", "key 'from' is missing; needed are from, to"),
    ("set: {rows: {from: 3}}", "set.rows", "key 'to' is missing; needed are from, to"),
    ("set: {rows: {form: 3, to: 4}}", "set.rows.form", "unknown key; did you mean 'from'?"),
    ("set: {rows: {from: a, to: 4}}", "set.rows.from", "a whole number is needed, not 'a'"),
    ("set: {rows: {from: 4, to: 3}}", "set.rows.to", "3 is below `from`, 4; exchange them"),
    ("set: {rows: {from: 4, to: 8, step: 0}}", "set.rows.step", "0 is not at least 1"),
    ("set: {rows: {from: 4, to: 8, times: 1}}", "set.rows.times", "1 is not at least 2"),
    (
        "set: {rows: {from: 0, to: 8, times: 2}}",
        "set.rows.from",
        "0 is not at least 1, which `times` needs; take `step`",
    ),
    ("set: {rows: {from: 1, to: 8, times: 2, step: 1}}", "set.rows.step", "`times` stands here too; leave one out"),
    ("set: {rows: {from: 1, to: 99999999999}}", "set.rows", "99999999999 values; 1000 at most, so take a larger step"),
    ("set: {rows: {values: 4}}", "set.rows", "key 'when' is missing; needed are values, when"),
    ("set: {rows: {when: cols > 1}}", "set.rows", "key 'values' is missing; needed are values, when"),
    ("set: {rows: {values: [], when: cols > 1}}", "set.rows.values", "0 values; 1 to 1000 are needed"),
    ("set: {rows: {values: 4, when: true}}", "set.rows.when", "an expression is needed, not True"),
    (
        "set: {rows: {values: 4, when: colz > 1}}",
        "set.rows.when",
        "'colz' is no parameter of systolic; did you mean 'cols'?",
    ),
    (
        "set: {rows: {values: 4, when: cols > 1}, cols: 3}",
        "set.rows.when",
        "cols does not stand before this parameter; a condition names earlier ones",
    ),
    (
        "set: {rows: {values: 4, when: rows > 1}}",
        "set.rows.when",
        "rows does not stand before this parameter; a condition names earlier ones",
    ),
    ("set: {rows: 4}, each: [{rows: 3}]", "each[0].rows", "rows stands in `set` too; leave one out"),
    (
        "each: [{rows: [3]}]",
        "each[0].rows",
        "a whole number, true, false or a word of at most 64 of A-Z a-z 0-9 . _ + - is needed, not (3,)",
    ),
    ("each: [{rows: 3}, {rows: 3}]", "each", "entry 1 repeats entry 0; leave one out"),
    ("each: []", "each", "0 entries; 1 to 1000 are needed"),
    ("each: {rows: 3}", "each", "a list is needed, not {'rows': 3}"),
    ("where: 3", "where", "text is needed, not 3"),
    ("where: [rows > 1, cols]", "where[1]", None),
    ("where: [rows > 1, colz > 3]", "where[1]", "'colz' is no parameter of systolic; did you mean 'cols'?"),
    ("where: rows >", "where", None),
    (
        "where: transform == 'none'",
        "where",
        "'transform' is no parameter of systolic; one of: acc_bits, act_bits, buffers, cols, dataflow, overflow, rows, "
        "style, weight_bits",
    ),
    (f"name: {'x' * 101}", "name", f"string should have at most 100 characters, not '{'x' * 56}..."),
    ("name: [x]", "name", "text is needed, not ('x',)"),
]


@pytest.mark.parametrize("engine, key, rule", MISTAKES, ids=[m[0][:50] for m in MISTAKES])
def test_mistakes_of_an_engine(tmp_path, engine, key, rule):
    with pytest.raises(InputError) as refusal:
        space(tmp_path, f"  - unit: lutgemm\n  - {{unit: systolic, {engine}}}")
    start = f"{tmp_path}/s.yaml:8: engines[1].{key}: "
    assert str(refusal.value).startswith(start)
    assert rule is None or str(refusal.value) == start + rule


STUDY_MISTAKES = [
    ("title: [x]", "title", "text is needed, not ('x',)"),
    (f"title: {'x' * 201}", "title", f"string should have at most 200 characters, not '{'x' * 56}..."),
    ("evaluate: []", "evaluate", "0 entries; 1 to 1000 are needed"),
    ("evaluate: [cycle]", "evaluate[0]", "'cycle' is not accuracy, cycles or synthesis; did you mean 'cycles'?"),
    ("evaluate: [cycles, cycles]", "evaluate", "entry 1 repeats entry 0; leave one out"),
    ("evaluate: cycles", "evaluate", "a list is needed, not 'cycles'"),
    ("where: row > 3", "where", "'row' is no name of a point or parameter of an engine; did you mean 'rows'?"),
    (
        "where: rows > 'x'",
        "where",
        "\"rows > 'x'\" at rows=16: 16 and 'x' have no order; compare numbers, or texts, or use == and !=",
    ),
    ("search: random", "search", "a mapping is needed, not 'random'"),
    (
        "search: {method: randam}",
        "search.method",
        "'randam' is not exhaustive, random, nsga2 or tpe; did you mean 'random'?",
    ),
    ("search: {method: random}", "search", "key 'points' is missing; random needs points"),
    ("search: {method: tpe, points: 5}", "search", "key 'objectives' is missing; tpe needs points and objectives"),
    ("search: {points: 5}", "search.points", "exhaustive takes no points; leave it out"),
    ("search: {seed: 5}", "search.seed", "exhaustive takes no seed; leave it out"),
    (
        "search: {method: random, points: 5, objectives: [cycles]}",
        "search.objectives",
        "random takes no objectives; leave it out",
    ),
    ("search: {method: random, points: 0}", "search.points", "input should be greater than or equal to 1, not 0"),
    (
        "search: {method: tpe, points: 5, objectives: [cicles]}",
        "search.objectives[0]",
        "no metric 'cicles'; did you mean 'cycles'?",
    ),
    (
        "search: {method: tpe, points: 5, objectives: [cycles, macs]}",
        "search.objectives[1]",
        "macs has no direction; take a metric that can be better or worse, such as accuracy",
    ),
    ("search: {methods: tpe}", "search.methods", "unknown key; did you mean 'method'?"),
    ("limits: {time_s: 0}", "limits.time_s", "input should be greater than 0, not 0"),
    ("limits: {time_s: true}", "limits.time_s", None),
    ("limits: {memory_mib: 1.5}", "limits.memory_mib", "a whole number is needed, not 1.5"),
    ("limits: {time: 3}", "limits.time", "unknown key; did you mean 'time_s'?"),
    ("more_engine: []", "more_engine", "unknown key; did you mean 'more_engines'?"),
    ("extend: x", "extend", "unknown key; did you mean 'extends'?"),
]


@pytest.mark.parametrize("line, key, rule", STUDY_MISTAKES, ids=[m[0][:50] for m in STUDY_MISTAKES])
def test_mistakes_of_a_study(tmp_path, line, key, rule):
    with pytest.raises(InputError) as refusal:
        space(tmp_path, "  - unit: systolic", line)
    start = f"{tmp_path}/s.yaml:8: {key}: "
    assert str(refusal.value).startswith(start)
    assert rule is None or str(refusal.value) == start + rule


VALID = {
    "name": "valid",
    "title": "any <text>",
    "network": ["digits-mlp", "digits-cnn"],
    "seed": [1, 2],
    "formats": ["W8A8", "W4A16"],
    "transforms": ["none", "hadamard:points=32"],
    "quantizers": ["rtn"],
    "activations": ["asymmetric", "symmetric"],
    "evaluate": ["cycles", "accuracy"],
    "engines": [
        {
            "unit": "systolic",
            "name": "ours",
            "set": {
                "rows": {"from": 4, "to": 8, "times": 2},
                "dataflow": ["WS", "OS"],
                "buffers": {"values": [1, 2], "when": "dataflow == 'WS'"},
            },
            "each": [{"style": "mac"}, {"style": "opt1", "acc_bits": 24}],
            "formats": ["W8A8"],
            "where": ["rows * cols <= 256"],
        },
        {"unit": "lutgemm", "set": {"serial": True, "group_size": "none", "mu": {"from": 2, "to": 4, "step": 2}}},
    ],
    "where": ["transform == 'none' or weight_bits <= 4"],
    "search": {"method": "random", "points": 5, "seed": 3},
    "limits": {"time_s": 1.5, "memory_mib": 512},
}


def paths(value, path=()):
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from paths(part, (*path, name))


def mutated(document, path, change):
    """A copy with `change(parent, key)` done at the path."""
    copy = json.loads(json.dumps(document))
    parent = copy
    for part in path[:-1]:
        parent = parent[part]
    change(parent, path[-1])
    return copy


NASTY = st.text(alphabet="ab'\"<>&{}[]:,#/\\\n\r\t\0\x1b\x7f\u2028\ud800é; %*!|-.", max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | NASTY
    | st.sampled_from(
        [10**30, "W4A8", "none", "rows", "rows > 3", "1/0 > 1", "rows", "random", "x" * 3000, "", "../../etc/passwd"]
    )
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3), max_leaves=6
)
DEEP = st.integers(1, 80).map(lambda depth: json.loads("[" * depth + "]" * depth))


def replaced(by):
    def change(parent, key):
        parent[key] = by

    return change


def renamed(to):
    def change(parent, key):
        if isinstance(parent, dict):
            parent[to] = parent.pop(key)
        else:
            parent.append(parent[key])

    return change


def dropped(parent, key):
    del parent[key]


CHANGES = (
    (ANYTHING | DEEP).map(replaced)
    | NASTY.map(renamed)
    | st.just(dropped)
    | st.sampled_from(["set", "rows", "when", "from", "each"]).map(renamed)
)


CHILD = {"name": "child", "extends": "base", "more_engines": [{"unit": "tmac", "set": {"rows": [4, 8]}}], "seed": 3}


def test_the_documents_that_are_mutated_are_valid(tmp_path):
    family(tmp_path, s=json.dumps(CHILD), base=json.dumps(VALID))
    assert load_study(tmp_path / "base.yaml").search.points == 5
    study = load_study(tmp_path / "s.yaml")
    assert study.count() > 50
    assert len(study.engines) == 3


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_key_wrong_in_every_way(tmp_path, data):
    documents = {"s": CHILD, "base": VALID}
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(["base", "base", "base", "s"]))
        path = data.draw(st.sampled_from([p for p in paths(documents[name]) if p]))
        documents[name] = mutated(documents[name], path, data.draw(CHANGES))
    texts = {name: json.dumps(document, indent=1) for name, document in documents.items()}
    family(tmp_path, **texts)
    try:
        study = load_study(tmp_path / "s.yaml")
    except InputError as error:
        found = re.match(rf"{re.escape(str(tmp_path))}/(s|base)\.yaml:(\d+): .", str(error))
        assert found
        assert 1 <= int(found[2]) <= len(texts[found[1]].splitlines())
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        assert str(error).isprintable()  # noqa: PT017
        return
    again = Study.from_dict(json.loads(json.dumps(study.as_dict())))
    assert chosen(again) == chosen(study)


def chosen(study):
    """Some point; a constraint that it cannot answer is refused."""
    draw = random.Random(1)
    with contextlib.suppress(InputError):
        return study.suggest(lambda _name, choices: draw.choice(choices))
