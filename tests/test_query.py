"""Questions to a store: what they find, and that nothing but reading can be asked."""

import csv
import json
import re
import sqlite3

import pandas
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import NASTY, row, task
from typer.testing import CliRunner

from hwsim import cli_query
from hwsim.sweep import query as module
from hwsim.sweep.lookup import front_keys, reading
from hwsim.sweep.query import Question, query, query_sql
from hwsim.sweep.store import close_store, open_store, record, rows_at, set_members
from hwsim.sweep.tasks import ERROR
from models.unit import InputError

AREAS = [30.0, 10.0, 20.0, 40.0]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Four points and a failed one, whose accuracy rises with their number, in falling order; one of another study."""
    path = tmp_path_factory.mktemp("query") / "store.sqlite"
    store = open_store(path)
    rows = [
        row(f"k{n}", accuracy=n / 10, area_um2=area, cycles=n, message="", params={"rows": n, "flow": "WS"})
        for n, area in enumerate(AREAS)
    ]
    failed = row("bad", label=NASTY, status=ERROR, accuracy=None, cycles=None, params={})
    record(store, [task("t", cycles=5)], [*rows, failed, row("old", accuracy=0.9)])
    set_members(store, ["bad", "k3", "k2", "k1", "k0"])
    close_store(store)
    return path


@pytest.fixture(autouse=True)
def unchanged(path):
    before = path.read_bytes()
    yield
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def asked(path, **question):
    with query(path, Question(**question)) as (names, rows):
        return names, list(rows)


def told(path, sql):
    with query_sql(path, sql) as (names, rows):
        return names, list(rows)


def keys(path, **question):
    return [key for (key,) in asked(path, columns=("key",), **question)[1]]


def test_rows_come_in_the_order_of_the_keys_and_the_front_in_that_of_the_study(path):
    with reading(path) as store:
        assert [row["key"] for row in rows_at(store, ["k2", "none", "k0", "old", "k3"])] == ["k2", "k0", "old", "k3"]
        # a larger number is more accurate; its area: 30, 10, 20, 40
        assert front_keys(store, ("accuracy", "area_um2")) == ["k3", "k2", "k1"]
        assert front_keys(store, ()) == []


def test_the_usual_columns_are_those_that_the_study_has(path):
    names, rows = asked(path)
    assert names == ["label", "status", "accuracy_fraction", "cycles", "area_um2"]
    assert rows[0] == (NASTY, ERROR, None, None, None)
    assert rows[1:] == [(f"label k{n}", "done", n / 10, n, AREAS[n]) for n in (3, 2, 1, 0)]


@pytest.mark.parametrize(
    "where, found",
    [
        ("accuracy > 0.1", ["k3", "k2"]),
        ("accuracy_fraction > 0.1 AND set_rows <> 3", ["k2"]),
        ("status <> 'done'", ["bad"]),
        ("set_rows IN (1, 2)", ["k2", "k1"]),
        ("(cycles = 1) OR (cycles = 2)", ["k2", "k1"]),
        ('"accuracy" > 0.2', ["k3"]),
        ("[accuracy] > 0.2 or `Cycles` = 0", ["k3", "k0"]),
        ("label LIKE '%k1' -- and nothing"[:16], ["k1"]),
        ("message = '' AND label = 'label k2)('", []),
        ("label = 'a;b' OR position = 2", ["k3"]),
        ("(SELECT count(*) FROM tasks) = 1 AND cycles = 0", ["k0"]),
        ("accuracy = (SELECT max(accuracy) FROM study_points)", ["k3"]),
        ("json_extract(detail_json, '$.ops.mul') = 1.5 AND cycles - 1 = 0", ["k1"]),
        ("abs(accuracy) > 0.25\n", ["k3"]),
    ],
)
def test_conditions(path, where, found):
    assert keys(path, where=where) == found


def test_order_and_limit(path):
    assert keys(path, sort=("area_um2",)) == ["k1", "k2", "k0", "k3", "bad"]
    assert keys(path, sort=("-Accuracy",)) == ["k3", "k2", "k1", "k0", "bad"]
    assert keys(path, sort=("status", "-area_um2"), limit=2) == ["k3", "k0"]
    assert asked(path, columns=("accuracy", "set_flow", "SEED"), limit=1, where="cycles=3") == (
        ["accuracy_fraction", "set_flow", "seed"],
        [(0.3, "WS", 1)],
    )


def test_the_front_is_that_of_the_points_asked_for(path):
    assert keys(path, front=("accuracy", "area_um2")) == ["k3", "k2", "k1"]
    assert keys(path, front=("accuracy", "area_um2"), where="cycles <> 1") == ["k3", "k2"]
    assert keys(path, front=("accuracy", "area_um2"), sort=("area_um2",), limit=2) == ["k1", "k2"]
    assert asked(path, columns=("key",), front=("cycles",))[0] == ["key"]


@pytest.mark.parametrize(
    "question, message",
    [
        ({"where": "acuracy > 0.5"}, "no column 'acuracy'; did you mean 'accuracy'"),
        ({"where": '"acuracy" > 0.5'}, "no column 'acuracy'; did you mean 'accuracy'"),
        ({"where": "set_row = 1"}, "no column 'set_row'; did you mean 'set_rows'"),
        ({"columns": ("lable",)}, "no column 'lable'; did you mean 'label'"),
        ({"sort": ("-lable",)}, "no column 'lable'; did you mean 'label'"),
        ({"front": ("acuracy",)}, "no column 'acuracy'; did you mean 'accuracy'"),
        ({"front": ("label",)}, "no metric 'label'"),
        ({"front": ("macs",)}, "metric 'macs' has no direction"),
        ({"limit": 0}, "limit 0 must be at least 1"),
        ({"where": "sqr(cycles) > 1"}, "no function 'sqr'; did you mean 'sqrt'"),
        ({"where": " "}, "is not one condition: something is missing at its end"),
        ({"where": "cycles >"}, "is no SQL that can be answered"),
        ({"where": "(cycles > 1"}, "is not one condition: something is missing at its end"),
        ({"where": "1) OR (1"}, r"is not one condition: '\)' at character 2"),
        ({"where": "1 -- all"}, "is not one condition: '--' at character 3"),
        ({"where": "1 /* all"}, "is not one condition: '/[*]' at character 3"),
        ({"where": "1; DROP TABLE points"}, "is not one condition: ';' at character 2"),
        ({"where": "label = 'a"}, 'is not one condition: "\'" at character 9'),
        ({"where": 'label = "a'}, "is not one condition: '\"' at character 9"),
        ({"where": "label = [a"}, r"is not one condition: '\[' at character 9"),
        ({"where": "1 ORDER BY cycles"}, "is no SQL that can be answered"),
        ({"where": "1 UNION SELECT 1"}, "is no SQL that can be answered"),
        ({"where": "count(*) > 1"}, "is no SQL that can be answered"),
        ({"where": "cycles > ?"}, "is not one statement without parameters"),
        ({"where": "1, 2"}, "is no SQL that can be answered"),
        ({"where": "load_extension('x')"}, "uses the function load_extension, which is not admitted"),
        ({"where": "EXISTS (SELECT * FROM pragma_database_list)"}, "is not admitted"),
        ({"where": "1 = 1\0"}, "no NUL"),
        ({"where": "'\ud800' = ''"}, "no broken characters"),
        ({"where": "1" * 10_001}, "at most 10,000 characters"),
        ({"where": "(" * 2000 + "1" + ")" * 2000}, "is no SQL that can be answered"),
    ],
)
def test_questions_that_are_none(path, question, message):
    with pytest.raises(InputError, match=message) as refused:
        asked(path, **question)
    assert "\n" not in str(refused.value)


TOKENS = ["cycles", "label", "1", "'a'", '"key"', "(", ")", ";", "--", "/*", "'", '"', "[", "]", " OR ", "=", "SELECT "]
TOKENS += ["FROM points", "\n", "UNION ", ",", "x'", "0x", "`", "?", ":a", "\0", "NULL", " IS ", "é", "count(*)"]


def test_no_condition_does_more_than_choose_points(path):
    """Whatever stands there, the answer is some of the points in their order, or a refusal of one line."""
    all_keys = keys(path)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.sampled_from(TOKENS) | st.text(max_size=3), max_size=8))
    def choose(tokens):
        try:
            found = keys(path, where="".join(tokens))
        except InputError as error:
            lines = str(error).count("\n")
        else:
            lines = 0
            assert found == [key for key in all_keys if key in found]
        assert lines == 0

    choose()


# ---- SQL


def test_sql_asks_what_it_likes(path):
    assert told(path, "SELECT unit, count(*) AS n, max(accuracy) FROM study_points GROUP BY unit") == (
        ["unit", "n", "max(accuracy)"],
        [("systolic", 5, 0.3)],
    )
    assert told(path, "SELECT count(*) FROM points")[1] == [(6,)]
    assert told(path, "SELECT kind, json_extract(result_json, '$.cycles') FROM tasks;")[1] == [("cycles", 5)]
    counting = "WITH RECURSIVE n(x) AS (VALUES (1) UNION SELECT x + 1 FROM n WHERE x < 3) SELECT * FROM n"
    assert told(path, counting)[1] == [(1,), (2,), (3,)]
    assert told(path, "SELECT key, rank() OVER (ORDER BY cycles) FROM points WHERE cycles < 2")[1] == [
        ("k0", 1),
        ("k1", 2),
    ]
    assert len(told(path, "SELECT a.value FROM points, json_each(params_json) AS a")[1]) == 9


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM points",
        "UPDATE points SET cycles = 1",
        "INSERT INTO members (key) VALUES ('x')",
        "DROP TABLE points",
        "CREATE TEMP TABLE t (x)",
        "CREATE TEMP TRIGGER t AFTER INSERT ON points BEGIN SELECT 1; END",
        "ALTER TABLE points ADD COLUMN x",
        "ATTACH 'other.sqlite' AS other",
        "DETACH main",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA query_only = OFF",
        "PRAGMA writable_schema = ON",
        "SELECT * FROM pragma_table_info('points')",
        "SELECT load_extension('x')",
        "SELECT readfile('/etc/passwd')",
        "SELECT zeroblob(1000000000)",
        "SELECT randomblob(10)",
        "SELECT sqlite_compileoption_get(1)",
        "SELECT * FROM dbstat",
        "SELECT * FROM sqlite_temp_master",
        "VACUUM",
        "VACUUM INTO 'other.sqlite'",
        "REINDEX",
        "ANALYZE",
        "BEGIN",
        "SAVEPOINT s",
        "SELECT 1; DELETE FROM points",
        "SELECT ?",
        "",
        "-- nothing",
        "SELEKT 1",
        "SELECT * FROM point",
        "SELECT cycels FROM points",
        "SELECT 'a\0b'",
        "SELECT '\ud800'",
    ],
)
def test_sql_does_nothing_but_read(path, sql, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        told(path, sql)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_names_in_sql_get_their_nearest(path):
    with pytest.raises(InputError, match="no table 'point'; did you mean 'points'"):
        told(path, "SELECT * FROM point")
    with pytest.raises(InputError, match=r"no column 'p.cycels'; did you mean 'cycles'"):
        told(path, "SELECT p.cycels FROM points AS p")


@pytest.mark.parametrize(
    "sql",
    [
        "WITH RECURSIVE n(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n",
        "WITH RECURSIVE n(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM n) SELECT x FROM n",
    ],
)
def test_a_question_without_an_end_is_ended(path, monkeypatch, sql):
    monkeypatch.setattr(module, "TIME_S", 0.05)
    with pytest.raises(InputError, match=r"not answered after 0.05 s; ask for less"):
        told(path, sql)


def test_an_answer_has_an_end(path, monkeypatch):
    monkeypatch.setattr(module, "MAX_ROWS", 1000)
    with pytest.raises(InputError, match="more than 1,000 rows; add a LIMIT"):
        told(path, "WITH RECURSIVE n(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM n) SELECT x FROM n")
    with pytest.raises(InputError, match="too big"):
        told(path, "SELECT replace('aa', 'a', printf('%9999999d', 1))")


def test_damage_is_one_line(tmp_path, path):
    broken = tmp_path / "store.sqlite"
    broken.write_bytes(path.read_bytes())
    other = sqlite3.connect(broken)
    other.execute("UPDATE points SET label = CAST(x'ff' AS TEXT), detail_json = '{'")
    other.commit()
    other.close()
    for question in ({}, {"where": "json_extract(detail_json, '$.a') = 1"}):
        with pytest.raises(InputError) as refused:
            asked(broken, **question)
        assert "\n" not in str(refused.value)
    for name in ("absent.sqlite", "."):
        with pytest.raises(InputError, match=r"no such file|is a folder"):
            asked(tmp_path / name)


# ---- the command


app = typer.Typer()
cli_query.register(app)


def run(*argv, command="query"):
    return CliRunner().invoke(app, [command, *(str(word) for word in argv)])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_all_points_are_exported(path, tmp_path, suffix):
    out = tmp_path / f"points.{suffix}"
    shown = run(path.parent, out, command="export")
    assert shown.output.startswith(f"{out}: 5 points") or shown.output.replace("\n", "").startswith(f"{out}: 5 points")
    found = pandas.read_csv(out) if suffix == "csv" else pandas.read_parquet(out)
    assert list(found["key"]) == ["bad", "k3", "k2", "k1", "k0"]
    assert list(found["area_um2"])[1:] == [AREAS[n] for n in (3, 2, 1, 0)]
    told = json.loads(run(path, out, "--json", command="export").output)
    assert told == {"file": str(out), "points": 5, "columns": list(found.columns)}


def test_an_export_names_the_forms_that_there_are(path, tmp_path):
    shown = run(path, tmp_path / "points.xls", command="export")
    assert isinstance(shown.exception, InputError)
    assert "a file is written as .csv or .parquet" in str(shown.exception)


def test_the_command_prints_a_table(path):
    shown = run(path.parent, "--where", "accuracy > 0.1", "--sort", "-accuracy", "--columns", "key, accuracy")
    assert shown.exit_code == 0
    assert [line for line in shown.output.splitlines() if "k3" in line or "k2" in line]
    assert shown.output.rstrip().endswith("2 rows")
    assert "\0" not in run(path).output
    limited = run(path, "--limit", 2).output
    assert "2 rows" in limited


def test_the_command_prints_json(path):
    shown = run(path, "--json", "--columns", "label,accuracy,set_rows", "--where", "status <> 'done' or cycles = 3")
    assert json.loads(shown.output) == [
        {"label": NASTY, "accuracy_fraction": None, "set_rows": None},
        {"label": "label k3", "accuracy_fraction": 0.3, "set_rows": 3},
    ]
    assert json.loads(run(path, "--json", "--sql", "SELECT 1 AS one").output) == [{"one": 1}]


def test_the_command_writes_csv(path, tmp_path):
    shown = run(path, "--csv", tmp_path / "a.csv", "--columns", "label,cycles", "--front", "accuracy,area_um2")
    assert (shown.exit_code, shown.output.strip()) == (0, str(tmp_path / "a.csv"))
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["label", "cycles"], ["label k3", "3"], ["label k2", "2"], ["label k1", "1"]]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--csv", "a", "--json"], "--csv and --json: take one of them"),
        (["--sql", "SELECT 1", "--where", "1"], "--sql is a whole question"),
        (["--sql", "SELECT 1", "--limit", "1"], "--sql is a whole question"),
        (["--csv", "STORE"], "is the store itself"),
        (["--csv", ""], "--csv '': is no path"),
        (["--columns", "lable"], "did you mean 'label'"),
    ],
)
def test_the_command_refuses(path, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = run(path, *(str(path) if word == "STORE" else word for word in options))
    assert isinstance(shown.exception, InputError)
    assert re.search(message, str(shown.exception))
    assert list(tmp_path.iterdir()) == []


def test_more_rows_than_a_table_shows_are_counted(path, monkeypatch):
    monkeypatch.setattr(cli_query, "SHOWN", 2)
    assert run(path).output.rstrip().endswith("2 rows, 3 more: see --limit, --csv and --json")
