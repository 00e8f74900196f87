"""Two studies held against each other: differences by arithmetic on the rows themselves, and what counts as one."""

import json
import re
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hwsim.cli
from hwsim.metrics import METRICS, Direction
from hwsim.sweep.comparison import TINY, compare, markdown
from hwsim.sweep.ledger import row_of
from hwsim.sweep.point import Point
from hwsim.sweep.store import close_store, open_store, record, save_study, set_members
from hwsim.sweep.tasks import CRASHED, DONE, REFUSED, digest
from models.unit import InputError

STUDY = {
    "name": "tiny",
    "network": "digits-mlp",
    "seed": 1,
    "formats": ["W8A8"],
    "transforms": ["none"],
    "engines": [{"unit": "systolic", "set": {}}],
}


def row(cols, *, version="1", name="", status=DONE, **metrics):
    point = Point(
        network="n", seed=1, weight_bits=8, act_bits=8, transform="none", unit="u", params=(("cols", cols),), name=name
    )
    return row_of(digest([point.configuration(), version]), point) | {"status": status, **metrics}


def write(path, rows, *, evaluate=("accuracy", "cycles", "synthesis"), **versions):
    store = open_store(path)
    record(store, [], rows)
    save_study(store, {"study": {**STUDY, "evaluate": list(evaluate)}, "command": "c", "versions": versions})
    set_members(store, [each["key"] for each in rows])
    close_store(store)
    return path


@pytest.fixture
def pair(tmp_path):
    """Two stores of these rows; the second one's are of another version of the code."""

    def make(a, b, **more):
        count = len(list(tmp_path.iterdir()))
        return write(tmp_path / f"{count}a.sqlite", a, **more), write(tmp_path / f"{count}b.sqlite", b, **more)

    return make


def change(found, name):
    return next(each for each in found.metrics if each.metric == name)


def test_points_are_matched_by_what_they_are_not_by_key_or_name(pair):
    a = [row(1, cycles=100), row(2, cycles=100), row(3, cycles=100)]
    b = [row(4, version="2", cycles=1), row(2, version="2", cycles=100), row(1, version="2", cycles=90, name="mine")]
    found = compare(*pair(a, b))
    assert found.points == 2
    assert found.only_a == ("u cols=3 W8A8 none",)
    assert found.only_b == ("u cols=4 W8A8 none",)
    cycles = change(found, "cycles")
    assert (cycles.points, cycles.differ, cycles.better, cycles.worse) == (2, 1, 1, 0)
    assert (cycles.largest, cycles.largest_is, cycles.at, cycles.values) == (0.1, "better", b[2]["label"], (100, 90))
    assert cycles.mean == 0.05
    assert [each.metric for each in found.metrics] == ["cycles"]


def test_a_study_equals_itself(pair):
    rows = [row(n, cycles=2**60 + n, energy_pj=0.1 + n, accuracy=0.5) for n in range(5)]
    one, two = pair(rows, rows)
    found = compare(one, two)
    assert not found.exceeds(0.0)
    assert [each.largest for each in found.metrics] == [0.0, 0.0, 0.0]
    assert (found.statuses, found.only_a, found.only_b, found.versions) == ((), (), (), {})


def test_the_last_digit_of_a_large_count_is_a_difference(pair):
    """As floats the two would be equal."""
    found = compare(*pair([row(1, cycles=2**60)], [row(1, cycles=2**60 + 1)]))
    assert change(found, "cycles").differ == 1


NAMES = ("accuracy", "cycles", "energy_pj", "macs")
VALUES = st.one_of(st.none(), st.sampled_from([0, 1, 3, 1000]), st.integers(0, 2**40))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.tuples(VALUES, VALUES)] * len(NAMES)), min_size=1, max_size=6))
def test_differences_are_those_of_exact_arithmetic(tmp_path_factory, points):
    folder = tmp_path_factory.mktemp("pair")
    given = [[dict(zip(NAMES, values, strict=True)) for values in zip(*point, strict=True)] for point in points]
    sides = [[row(n, **pair[side]) for n, pair in enumerate(given)] for side in (0, 1)]
    found = compare(*(write(folder / name, rows) for name, rows in zip(("a", "b"), sides, strict=True)))
    for index, name in enumerate(NAMES):
        pairs = [point[index] for point in points]
        both = [(Fraction(a), Fraction(b)) for a, b in pairs if a is not None and b is not None]
        absent = sum((a is None) is not (b is None) for a, b in pairs)
        if not both and not absent:
            assert name not in {each.metric for each in found.metrics}
            continue
        got = change(found, name)
        relative = [abs(b - a) / max(abs(a), Fraction(TINY)) for a, b in both]
        sign = {Direction.MAX: 1, Direction.MIN: -1, Direction.NONE: 0}[METRICS[name].direction]
        assert (got.points, got.absent) == (len(both), absent)
        assert got.differ == sum(a != b for a, b in both)
        assert got.better == sum((b - a) * sign > 0 for a, b in both)
        assert got.worse == sum((b - a) * sign < 0 for a, b in both)
        assert got.largest == pytest.approx(float(max(relative, default=0)), rel=1e-12)
        assert got.mean == pytest.approx(float(sum(relative) / max(len(both), 1)), rel=1e-12)


def test_metrics_stand_with_the_largest_difference_first(pair):
    a, b = row(1, cycles=100, energy_pj=10.0, accuracy=0.5), row(1, cycles=101, energy_pj=11.0, accuracy=0.5)
    assert [each.metric for each in compare(*pair([a], [b])).metrics] == ["energy_pj", "cycles", "accuracy"]


# ---- what exceeds a threshold


def test_the_threshold_is_the_largest_difference_that_is_none(pair):
    found = compare(*pair([row(1, cycles=100)], [row(1, cycles=101)]))
    assert found.exceeds(0.0)
    assert found.exceeds(0.00999)
    assert not found.exceeds(0.01)


def test_a_point_that_newly_failed_exceeds_any_threshold_and_a_mended_one_none(pair):
    good, bad = row(1, cycles=1), row(1, status=REFUSED)
    worse, better = compare(*pair([good], [bad])), compare(*pair([bad], [good]))
    assert (worse.newly_failed, worse.exceeds(1e9)) == (1, True)
    assert (better.newly_failed, better.exceeds(0.0)) == (0, False)
    assert [(each.a, each.b) for each in better.statuses] == [(REFUSED, DONE)]
    other = compare(*pair([bad], [row(1, status=CRASHED)]))
    assert (len(other.statuses), other.exceeds(0.0)) == (1, False)


def test_a_metric_that_a_point_lost_exceeds_any_threshold(pair):
    found = compare(*pair([row(1, cycles=1, accuracy=0.5)], [row(1, cycles=1)]))
    assert change(found, "accuracy").absent == 1
    assert found.exceeds(1e9)


def test_what_only_one_study_evaluated_is_left_out(tmp_path):
    a = write(tmp_path / "a", [row(1, cycles=1, accuracy=0.5)])
    b = write(tmp_path / "b", [row(1, cycles=1)], evaluate=["cycles"], numpy="2")
    found = compare(a, b)
    assert "accuracy" in found.left_out
    assert "cycles" not in found.left_out
    assert not found.exceeds(0.0)
    assert found.versions == {"numpy": ("", "2")}
    with pytest.raises(InputError, match=r"b: was not evaluated for accuracy; one of: cycles"):
        compare(a, b, ["accuracy"])


# ---- bad input


def test_studies_that_cannot_be_compared_are_named(pair, tmp_path):
    one, two = pair([row(1)], [row(2)])
    with pytest.raises(InputError, match=r"no point in common"):
        compare(one, two)
    with pytest.raises(InputError, match=r"no metric 'cycle'; did you mean 'cycles'"):
        compare(one, two, ["cycle"])
    with pytest.raises(InputError, match=r"nothing: no such file"):
        compare(one, tmp_path / "nothing")
    close_store(open_store(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"empty: holds no study yet"):
        compare(one, tmp_path / "empty")


# ---- the command


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["hwsim", "compare", *map(str, argv)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            hwsim.cli.main()
        shown = capsys.readouterr()
        return end.value.code or 0, shown.out, shown.err

    return run


NASTY = "<b>|`x`\n\x1b[2J"


@pytest.fixture
def differing(pair):
    a = [row(1, cycles=100), row(2, cycles=5), row(3, cycles=5)]
    return pair(a, [row(1, cycles=102, name=NASTY), row(2, status=REFUSED, name=NASTY), row(5, name=NASTY)])


def test_exit_codes(command, pair, tmp_path):
    one, two = pair([row(1, cycles=100)], [row(1, cycles=101)])
    assert command(one, one)[0] == 0
    assert command(one, two)[0] == 1
    assert command(one, two, "--threshold", "0.01")[0] == 0
    status, out, err = command(one, tmp_path / "none")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    for wrong in ("-1", "nan", "inf"):
        status, _, err = command(one, two, "--threshold", wrong)
        assert status == 2
        assert "a number of at least 0 is needed" in err


def test_tables_show_names_as_text(command, differing):
    status, out, _ = command(*differing)
    assert status == 1
    assert "0.02 worse" in out
    assert "1 points only in A, 1 only in B" in out
    assert "only in A: u cols=3 W8A8 none" in out
    assert re.search(r"^<b>\|`x`\?\?\[2J .*: done, then refused$", out, re.MULTILINE)
    assert "\x1b" not in out


def test_markdown_is_printed_or_written_and_keeps_names_as_text(command, differing, tmp_path):
    status, out, _ = command(*differing, "--md", "-")
    assert status == 1
    assert out == markdown(compare(*differing), *map(str, differing))
    assert "<b>" not in out
    lines = [line for line in out.splitlines() if line.startswith("|")]
    table = [line for line in lines if line.startswith(("| metric", "| cycles"))]
    assert {line.replace("\\|", "").count("|") for line in table} == {11}
    path = tmp_path / "out.md"
    assert command(*differing, "--md", path)[0] == 1
    assert path.read_text() == out
    status, _, err = command(*differing, "--md", differing[1])
    assert (status, "is a store itself" in err) == (2, True)


def test_json_has_everything(command, differing):
    _, out, _ = command(*differing, "--json", "--metrics", "cycles")
    told = json.loads(out)
    assert told["exceeded"] is True
    assert (told["points"], told["only_a"], len(told["only_b"])) == (2, ["u cols=3 W8A8 none"], 1)
    assert told["metrics"][0]["values"] == [100, 102]
    assert command(*differing, "--json", "--md", "-")[0] == 2


def test_a_folder_stands_for_its_store(command, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "store.sqlite", [row(1, cycles=1)])
    assert command(tmp_path / "a", tmp_path / "b")[0] == 0
