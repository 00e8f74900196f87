"""The sweep file: what is read, and every refusal with its place."""

import contextlib
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hwsim.document import MAX_BYTES, MAX_DEPTH, load_yaml
from hwsim.sweep.evaluate import check
from hwsim.sweep.space import Point, load_study
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


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_study_of_the_project_has_points_that_can_be_evaluated(path):
    points = load_study(path).points()
    assert len({point.label for point in points}) == len(points) > 30
    for point in points:
        assert check(point)["engine"]
    assert f"{len(points)} points" in path.read_text()


def test_points_are_the_product_in_a_fixed_order(tmp_path):
    points = load_study(written(tmp_path, STUDY)).points()
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
    points = load_study(QUICKSTART).points()
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
    ("[W8A8, W4A8]", "[]", r"s\.yaml:4: formats: .*at least 1"),
    ("[none, hadamard]", "none", r"s\.yaml:5: transforms: a list is needed, not 'none'"),
    ("[none, hadamard]", "['hada mard']", r"s\.yaml:5: transforms\[0\]: 'hada mard' is no name with options, such as"),
    ("unit: lutgemm", "unit: lutgem", r"s\.yaml:8: engines\[1\]\.unit: no unit 'lutgem'; did you mean 'lutgemm'\?"),
    ("unit: lutgemm", "unit: hadamard", r"s\.yaml:8: engines\[1\]\.unit: 'hadamard' is no GEMM engine; one of"),
    ("- unit: lutgemm", "- lutgemm", r"s\.yaml:8: engines\[1\]: .*not 'lutgemm'"),
    ("set: {", "sat: {", r"s\.yaml:7: engines\[0\]\.sat: unknown key; did you mean 'set'\?"),
    ("rows: 4", "rows: 4.5", r"s\.yaml:7: engines\[0\]\.set: rows: a whole number.* not 4\.5"),
    ("rows: 4", "rows: [4]", r"s\.yaml:7: engines\[0\]\.set: rows: .* not \(4,\)"),
    ("rows: 4", "rows: 'a b'", r"s\.yaml:7: engines\[0\]\.set: rows: .* not 'a b'"),
    ("rows: 4", "'a;b': 4", r"s\.yaml:7: engines\[0\]\.set: 'a;b' is no parameter name"),
    ("[none, hadamard]", "{a", r"s\.yaml:6: not YAML"),
]


def test_integer_activations_come_in_two_kinds_and_floats_in_one(tmp_path):
    text = STUDY.replace("W4A8]", "W4A16]") + "activations: [asymmetric, symmetric]\n"
    text = text.replace("transforms: [none, hadamard]", "transforms: [none]")
    labels = [p.label for p in load_study(written(tmp_path, text)).points()]
    assert labels == [
        "systolic 4x8 WS W8A8 none",
        "systolic 4x8 WS W8A8 none symmetric",
        "systolic 4x8 WS W4A16 none",
        "lutgemm W8A8 none",
        "lutgemm W8A8 none symmetric",
        "lutgemm W4A16 none",
    ]
    kinds = [p.activations for p in load_study(written(tmp_path, text)).points()]
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
    assert [p.label for p in load_study(path).points() if p.unit == "lutgemm"] == [
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


def test_too_many_points(tmp_path):
    engines = "".join(f"  - {{unit: systolic, set: {{rows: {n}}}}}\n" for n in range(1, 1001))
    transforms = ", ".join(f"t{n}" for n in range(60))
    text = STUDY.split("engines:")[0].replace("none, hadamard", transforms) + "engines:\n" + engines
    with pytest.raises(InputError, match="120000 points; 100000 at most"):
        load_study(written(tmp_path, text))


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
