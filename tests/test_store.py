"""The store: what goes in comes out, what is finished stays, and what is not ours is refused with the remedy."""

import contextlib
import json
import os
import resource  # noqa: F401 - for the children
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.metrics import METRICS
from hwsim.sweep import store as module
from hwsim.sweep.rows import COLUMNS, decode, encode, task_row
from hwsim.sweep.sink import StoreSink
from hwsim.sweep.store import (
    DONE,
    add_members,
    close_store,
    count_by_status,
    done_keys,
    ended_keys,
    known_tasks,
    open_store,
    read_store,
    read_study,
    record,
    save_study,
    set_members,
    study_rows,
    task_walls,
)
from hwsim.sweep.tasks import ERROR, STATUSES, TIMEOUT, Outcome
from models.unit import InputError

NASTY = "=cmd|' /C calc'!A0\"<b>\n',;\0\u2028é\U0001f4a5../"
CREATED = "2026-01-01T00:00:00+00:00"

STUDY = {
    "name": "tiny",
    "network": "digits-mlp",
    "seed": 1,
    "formats": ["W8A8"],
    "transforms": ["none"],
    "engines": [{"unit": "systolic", "set": {}}],
}


def row(key, **fields):
    base = {
        "key": key,
        "label": f"label {key}",
        "name": "",
        "network": "n",
        "seed": 1,
        "engine": "systolic 4x4",
        "unit": "systolic",
        "format": "W8A8",
        "weight_bits": 8,
        "act_bits": 8,
        "transform": "none",
        "quantizer": "rtn",
        "activations": "asymmetric",
        "status": DONE,
        "message": "",
        "accuracy": 0.5,
        "cycles": 7,
        "params": {"rows": 4},
        "detail": {"ops": {"mul": 1.5}},
    }
    return base | fields


def task(key, status=DONE, wall_s=1.0, kind="cycles", **result):
    outcome = Outcome(key=key, status=status, result=result, wall_s=wall_s, peak_memory_bytes=9)
    return task_row(kind, outcome, CREATED)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a store?#%.sqlite"  # a name that must not be read as part of an address


@pytest.fixture
def store(path):
    store = open_store(path)
    yield store
    store.close()


def test_rows_come_back_in_the_order_of_the_study(store):
    params = {"rows": 4, "dataflow": "WS", "fast": True, "flag": False, "word": "024", "depth": -1}
    first = row("b", accuracy=0.1 + 0.2, cycles=2**62, energy_pj=3, message=NASTY, name=NASTY, params=params)
    record(store, [], [first, row("a", status=TIMEOUT), row("old", params={})])
    set_members(store, ["b", "missing", "a"])
    one, two = study_rows(store)
    assert (one["accuracy"], one["cycles"], one["energy_pj"]) == (0.1 + 0.2, 2**62, 3.0)
    assert one["message"] == one["name"] == NASTY
    assert one["params"] == params
    assert [type(value) for value in one["params"].values()] == [type(one["params"][name]) for name in one["params"]]
    assert one["params"]["fast"] is True
    assert one["detail"] == first["detail"]
    assert (one["accuracy_std"], one["revision"], two["key"]) == (None, "", "a")
    assert (done_keys(store), ended_keys(store)) == ({"b", "old"}, {"a", "b", "old"})
    assert count_by_status(store) == {DONE: 1, TIMEOUT: 1}
    assert list(study_rows(store, ("label", "params")))[1] == {"label": "label a", "params": {"rows": 4}}


def test_an_unknown_field_is_told(store):
    with pytest.raises(InputError, match="no field 'acuracy'; did you mean 'accuracy'"):
        study_rows(store, ["acuracy"])


def test_what_is_done_is_never_replaced_by_a_failure(store):
    set_members(store, ["a"])
    record(store, [task("t", ERROR)], [row("a", status=ERROR, message="x", accuracy=None)])
    assert known_tasks(store, ["t"]) == {}
    record(store, [task("t", cycles=5)], [row("a", accuracy=1.0)])
    record(store, [task("t", TIMEOUT)], [row("a", status=TIMEOUT, message="late", accuracy=None)])
    (only,) = study_rows(store)
    assert (only["status"], only["message"], only["accuracy"]) == (DONE, "", 1.0)
    assert known_tasks(store, ["t"])["t"].result == {"cycles": 5}
    record(store, [task("t", cycles=6)], [row("a", accuracy=0.25)])
    assert next(study_rows(store))["accuracy"] == 0.25
    assert known_tasks(store, ["t", "none"])["t"] == Outcome(
        key="t", status=DONE, result={"cycles": 6}, wall_s=1.0, peak_memory_bytes=9
    )


def test_tasks_are_looked_up_in_any_number_and_their_cost_is_known(store):
    record(store, [task(f"t{number}", wall_s=number, value=number) for number in range(1500)], [])
    record(store, [task("s", kind="synthesis", wall_s=2.5), task("f", ERROR)], [])
    found = known_tasks(store, [f"t{number}" for number in range(2000)])
    assert {key: outcome.result["value"] for key, outcome in found.items()} == {f"t{n}": n for n in range(1500)}
    assert task_walls(store) == {"cycles": (1500, 749.5), "synthesis": (1, 2.5)}


def test_members_keep_their_order_and_count_once(store):
    record(store, [], [row(key) for key in "abcde"])
    set_members(store, ["c", "a", "c"])
    add_members(store, iter(["b", "a"]))
    add_members(store, ["e"])
    assert [one["key"] for one in study_rows(store, ["key"])] == ["c", "a", "b", "e"]
    set_members(store, ["a", "c"])
    assert [one["key"] for one in study_rows(store, ["key"])] == ["a", "c"]
    set_members(store, [])
    assert list(study_rows(store)) == []


def test_a_sink_writes_tasks_and_rows_in_one_transaction(store):
    """A row without its tasks would have them computed again by the next study that needs them."""
    statements = []
    store.set_trace_callback(statements.append)
    StoreSink(store).record([task("t")], [row("a")])
    store.set_trace_callback(None)
    assert [text for text in statements if text in ("BEGIN IMMEDIATE", "COMMIT")] == ["BEGIN IMMEDIATE", "COMMIT"]
    assert {*known_tasks(store, ["t"])} == {"t"}
    assert done_keys(store) == {"a"}


def test_the_same_members_are_not_written_again(path, store):
    set_members(store, ["a", "b"])
    other = sqlite3.connect(path)
    (before,) = other.execute("PRAGMA data_version").fetchone()
    set_members(store, iter(["a", "b"]))
    assert other.execute("PRAGMA data_version").fetchone() == (before,)
    set_members(store, ["a", "b", "c"])
    assert other.execute("PRAGMA data_version").fetchone() != (before,)
    other.close()


def test_the_study_is_any_plain_data(store):
    study = {"study": STUDY, "command": NASTY, "title": "<b>", "progress": [[1, 0.5], [2, 1]], "more": {"a": [None]}}
    assert read_study(store) == {}
    save_study(store, study)
    assert read_study(store) == study
    save_study(store, {"command": "x"})
    assert read_study(store) == {"command": "x"}


def test_each_record_is_durable_without_a_close(path, store):
    record(store, [task("t")], [row("a")])
    other = read_store(path)
    assert done_keys(other) == {"a"}
    other.close()
    assert store.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_reader_cannot_write(path):
    close_store(open_store(path))
    reader = read_store(path)
    for write in (
        lambda: record(reader, [], [row("a")]),
        lambda: save_study(reader, {}),
        lambda: add_members(reader, ["a"]),
    ):
        with pytest.raises(InputError, match=r"cannot be opened or written .*readonly.*check permissions"):
            write()
    reader.close()


def test_a_closed_store_is_one_file(path):
    store = open_store(path)
    record(store, [], [row("a")])
    close_store(store)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def columns(store):
    return {name: kind for _, name, kind, *_ in store.execute("PRAGMA table_info(points)")}


def test_columns_are_typed_and_name_units(store):
    record(store, [], [row("a", params={"rows": 4, "fast": True, "style": "mac"}), row("b", params={"depth": 2})])
    kinds = columns(store)
    assert {m.column for m in METRICS.values()} <= kinds.keys()
    assert (kinds["cycles"], kinds["area_um2"], kinds["accuracy_fraction"]) == ("INTEGER", "REAL", "REAL")
    settings = {name: kind for name, kind in kinds.items() if name.startswith("set_")}
    assert settings == {"set_rows": "INTEGER", "set_fast": "INTEGER", "set_style": "ANY", "set_depth": "INTEGER"}
    found = store.execute("SELECT set_rows, set_fast, set_style, set_depth FROM points ORDER BY key").fetchall()
    assert found == [(4, 1, "mac", None), (None, None, None, 2)]


def test_numbers_behind_a_word_stay_numbers_for_queries(store):
    values = ["none", 24, 9, "024", True]
    record(store, [], [row(str(n), params={"acc_bits": value}) for n, value in enumerate(values)])
    greater = store.execute("SELECT key FROM points WHERE set_acc_bits BETWEEN 10 AND 1000 ORDER BY key").fetchall()
    assert greater == [("1",), ("3",)]
    set_members(store, [str(n) for n in range(len(values))])
    assert [one["params"]["acc_bits"] for one in study_rows(store)] == values


def test_names_that_differ_in_case_alone_keep_their_values(store):
    params = {"Rows": 1, "rows": 2, "ROWS": 3}
    record(store, [], [row("a", params=params)])
    record(store, [], [row("b", params={"rOws": 3})])
    set_members(store, "ab")
    assert [one["params"] for one in study_rows(store)] == [params, {"rOws": 3}]


@pytest.mark.parametrize(
    "fields, fault",
    [
        ({"accuracy": float("nan")}, "accuracy is nan"),
        ({"area_um2": float("inf")}, "area_um2 is inf"),
        ({"area_um2": 10**400}, "area_um2 is 1000"),
        ({"cycles": 1.0}, "cycles is 1.0"),
        ({"cycles": 2**63}, "cycles is 9223372036854775808"),
        ({"cycles": True}, "cycles is True"),
        ({"label": 7}, "label is 7"),
        ({"key": ""}, "key is ''"),
        ({"status": "good"}, "status is 'good'"),
        ({"status": None}, "status is None"),
        ({"detail": {"a": float("nan")}}, "detail is"),
        ({"detail": {"a": {1, 2}}}, "detail is"),
        ({"detail": [1]}, "detail is"),
        ({"params": {"rows; DROP TABLE points": 1}}, "params is"),
        ({"params": {"": 1}}, "params is"),
        ({"params": {"a" * 65: 1}}, "params is"),
        ({"params": {"rows": [1]}}, "params is"),
        ({"params": {"rows": None}}, "params is"),
        ({"params": {"rows": 1.5}}, "params is"),
        ({"params": {"rows": 2**63}}, "params is"),
        ({"params": {3: 1}}, "params is"),
    ],
)
def test_values_that_fit_no_column_are_refused_before_anything_is_written(store, fields, fault):
    with pytest.raises(InputError, match=rf"cannot be stored: {fault}") as refused:
        record(store, [task("t")], [row("a"), row("b") | fields])
    assert "\n" not in str(refused.value)
    assert ended_keys(store) == set() == set(known_tasks(store, ["t"]))
    assert not any(name.startswith("set_") for name in columns(store))


def test_a_field_without_a_column_is_a_defect(store):
    with pytest.raises(AssertionError, match="acuracy"):
        record(store, [], [row("a", acuracy=1)])


def test_lone_surrogates_are_question_marks(store):
    record(store, [], [row("a", message="x\udcffy", detail={"trace": "\ud800"}, params={"word": "\ud800"})])
    set_members(store, ["a"])
    (only,) = study_rows(store)
    assert (only["message"], only["detail"], only["params"]) == ("x?y", {"trace": "?"}, {"word": "?"})


# ---- any text and number


TEXT = st.text(max_size=30) | st.sampled_from([NASTY, "'); DROP TABLE points; --", "\0", "NULL", "1e5", "'=1"])
WHOLE = st.integers(-(2**63), 2**63 - 1)
REAL = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)
PLAIN = st.recursive(
    st.none() | st.booleans() | WHOLE | REAL | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
KINDS = {"TEXT": TEXT, "INTEGER": st.none() | WHOLE, "REAL": st.none() | REAL}
ROWS = st.fixed_dictionaries(
    {column.field: KINDS[column.type] for column in COLUMNS if column.type != "JSON"}
    | {
        "key": st.from_regex(r"[0-9a-f]{4}", fullmatch=True),
        "status": st.sampled_from(STATUSES),
        "params": st.dictionaries(NAMES, st.booleans() | WHOLE | TEXT, max_size=4),
        "detail": st.dictionaries(TEXT, PLAIN, max_size=4),
    }
)


def test_rows_of_any_text_survive(tmp_path):
    path = tmp_path / "store.sqlite"

    @settings(max_examples=30, deadline=None)
    @given(st.lists(ROWS, max_size=4, unique_by=lambda one: one["key"]))
    def survive(rows):
        path.unlink(missing_ok=True)
        store = open_store(path)
        record(store, [], rows)
        set_members(store, [one["key"] for one in rows])
        close_store(store)
        store = read_store(path)
        found = list(study_rows(store))
        store.close()
        assert found == rows
        assert [[*map(type, one["params"].values())] for one in found] == [
            [type(one["params"][name]) for name in kept["params"]] for one, kept in zip(rows, found, strict=True)
        ]

    survive()


@given(ROWS, st.sampled_from(COLUMNS), PLAIN)
def test_no_value_is_read_that_could_not_be_written(one, column, value):
    """`decode` refuses, and with nothing but ValueError, all that `encode` does not give."""
    values = encode(COLUMNS, one)
    values[COLUMNS.index(column)] = value
    with contextlib.suppress(ValueError):
        found = decode(COLUMNS, values)
        assert decode(COLUMNS, encode(COLUMNS, found)) == found


# ---- journals


def journal(store):
    return store.execute("PRAGMA journal_mode").fetchone()[0]


def test_writes_go_to_a_log(store):
    assert journal(store) == "wal"


@pytest.mark.parametrize("left_in_log", [False, True])
def test_without_shared_memory_there_is_a_rollback_journal(path, left_in_log):
    """Where a folder has the name of that memory's file, SQLite agrees to a log and fails at the first write."""
    close_store(open_store(path))
    if left_in_log:
        other = sqlite3.connect(path)
        assert other.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
        other.close()
    shared = Path(f"{path}-shm")
    shared.mkdir()
    store = open_store(path)
    assert journal(store) == "delete"
    assert store.execute("PRAGMA synchronous").fetchone() == (2,)
    record(store, [], [row("a")])
    other = read_store(path)  # the lock was given back
    assert done_keys(other) == {"a"}
    other.close()
    close_store(store)
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, shared.name]


def test_where_sqlite_refuses_a_log_there_is_a_rollback_journal(path, monkeypatch):
    """A file system without shared memory, as SQLite's driver for dot-file locks is one."""
    honest = sqlite3.connect
    monkeypatch.setattr(
        module.sqlite3,
        "connect",
        lambda name, **more: honest(f"{name}&vfs=unix-dotfile" * more.get("uri", 0) or name, **more),
    )
    store = open_store(path)
    assert journal(store) == "delete"
    record(store, [], [row("a")])
    assert done_keys(store) == {"a"}
    close_store(store)


def test_two_that_make_a_store_share_it(path, monkeypatch):
    """The second finds no file, and the first has made it by the time that the second puts its own there."""
    first = []

    def late(place, content):
        first.append(honest_place(place, content))
        store = open_store(path)
        record(store, [], [row("a")])
        close_store(store)
        honest_place(place, content)

    honest_place = module._place
    monkeypatch.setattr(module, "_place", late)
    store = open_store(path)
    assert done_keys(store) == {"a"}
    close_store(store)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_without_links_a_store_is_made_all_the_same(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module.os, "link", refuse)
    close_store(open_store(path))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# ---- trouble


def test_a_store_in_use_is_not_to_be_deleted(path):
    store = open_store(path)
    store.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for write in (
        lambda: record(store, [], [row("a")]),
        lambda: save_study(store, {}),
        lambda: add_members(store, "a"),
    ):
        with pytest.raises(InputError, match=r"in use by another process \(database is locked\); wait until it ends$"):
            write()
    other.close()
    record(store, [], [row("a")])
    store.close()


def test_a_second_writer_waits(path):
    first, second = open_store(path), open_store(path)
    for number in range(20):
        record(first if number % 2 else second, [], [row(f"k{number}")])
    assert done_keys(first) == done_keys(second) == {f"k{number}" for number in range(20)}
    first.close()
    second.close()


def test_a_store_in_use_is_not_opened_for_writing(path, monkeypatch):
    close_store(open_store(path))
    monkeypatch.setattr(module, "BUSY_S", 0.01)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(InputError, match=r"in use by another process"):
        open_store(path)
    other.close()


def test_a_full_disk_costs_nothing_but_what_did_not_fit(store):
    record(store, [task("t")], [row("a")])
    (pages,) = store.execute("PRAGMA page_count").fetchone()
    store.execute(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(InputError, match=r"no space left .*make room"):
        record(store, [task("u")], [row("b"), row("c", message="x" * 1_000_000)])
    assert ended_keys(store) == {"a"}
    assert known_tasks(store, ["t", "u"]).keys() == {"t"}
    store.execute("PRAGMA max_page_count = 1000000")
    record(store, [task("u")], [row("b")])
    assert ended_keys(store) == {"a", "b"}
    assert store.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def child(code, *argv, **more):
    """A Python that can import this file's helpers."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", "from test_store import *\n" + code, *map(str, argv)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        **more,
    )


def test_a_limit_of_the_system_is_met_with_the_remedy(path):
    """RLIMIT_FSIZE, for which a write fails half way as on a disk that is full."""
    code = """
    store = open_store(Path(sys.argv[1]))
    record(store, [task("t")], [row("a")])
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try:
        for number in range(1000):
            record(store, [], [row(f"k{number}", message="x" * 1000)])
            print(f"k{number}", flush=True)
    except InputError as error:
        print(error)
    """
    with child("if True:" + code, path) as process:
        *kept, message = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert "check permissions and space" in message or "make room" in message
    store = open_store(path)
    assert done_keys(store) == {"a", *kept}
    assert 10 < len(kept) < 1000
    record(store, [], [row("b")])
    close_store(store)


def test_what_was_acknowledged_survives_a_kill(path):
    """kill -9 at any moment of a loop of records."""
    code = """
    store = open_store(Path(sys.argv[1]))
    start = len(ended_keys(store))
    for number in range(start, start + 100_000):
        params = {f"p{number % 50}": 1}
        record(store, [task(f"t{number}", value=number)], [row(f"k{number}", cycles=number, params=params)])
        print(number, flush=True)
    """
    acknowledged = set()
    for attempt in range(4):
        with child("if True:" + code, path) as process:
            for _ in range(20 + 13 * attempt):
                acknowledged.add(int(process.stdout.readline()))
            process.send_signal(signal.SIGKILL)
            acknowledged.update(int(line) for line in process.stdout.read().splitlines() if line)
    store = open_store(path)
    keys = {f"k{number}" for number in acknowledged}
    found = ended_keys(store)
    assert keys <= found
    assert found == {f"k{number}" for number in range(len(found))}, "a point is missing or counted twice"
    assert len(found) - len(keys) <= 4, "more than one group for each kill was written without being acknowledged"
    set_members(store, sorted(found))
    assert all(one["key"] == f"k{one['cycles']}" for one in study_rows(store))
    assert {
        key: known.result["value"] for key, known in known_tasks(store, [f"t{n}" for n in acknowledged]).items()
    } == {f"t{n}": n for n in acknowledged}
    close_store(store)


def test_an_interrupt_within_a_transaction_leaves_none_behind(store, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_add_columns", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record(store, [], [row("a")])
    monkeypatch.undo()
    record(store, [], [row("b")])
    assert ended_keys(store) == {"b"}


# ---- refusals


def execute(path, *statements):
    other = sqlite3.connect(path)
    for statement in statements:
        other.execute(statement)
    other.commit()
    other.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    path = tmp_path_factory.mktemp("filled") / "store.sqlite"
    store = open_store(path)
    record(
        store,
        [task(f"t{number}", value="y" * 200) for number in range(100)],
        [row(f"k{number}", message="x" * 200, params={"rows": number}) for number in range(300)],
    )
    save_study(store, {"study": STUDY, "command": "hwsim"})
    set_members(store, [f"k{number}" for number in range(300)])
    close_store(store)
    return path.read_bytes()


@pytest.fixture
def closed(path, filled):
    path.write_bytes(filled)
    return path


@pytest.mark.parametrize("content", [b"", b"hello", b"SQLite format 3\0" + bytes(100), bytes(8192)])
@pytest.mark.parametrize("opened", [open_store, read_store])
def test_a_file_that_is_no_database(path, opened, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no store of hwsim; name another file"):
        opened(path)
    assert path.read_bytes() == content


def test_a_folder_and_a_missing_file(path):
    with pytest.raises(InputError, match="no such file; run `hwsim sweep` first"):
        read_store(path)
    path.mkdir()
    with pytest.raises(InputError, match="is a folder; name a file"):
        read_store(path)
    with pytest.raises(InputError, match="cannot be opened or written"):
        open_store(path)
    with pytest.raises(InputError, match="File name too long"):
        open_store(path / ("x" * 300))
    with pytest.raises(InputError, match="Not a directory"):
        open_store(Path(__file__) / "store.sqlite")


def test_damage_met_later_is_damage(closed):
    store = sqlite3.connect(closed, isolation_level=None)  # as one that was opened before the damage
    data = bytearray(closed.read_bytes())
    data[8192:] = b"\xff" * (len(data) - 8192)
    closed.write_bytes(data)
    for use in (
        lambda: done_keys(store),
        lambda: record(store, [], [row("a")]),
        lambda: read_study(store),
        lambda: known_tasks(store, ["t1"]),
        lambda: list(study_rows(store)),
    ):
        with pytest.raises(InputError, match=r"cannot be read as a store .*move it away or delete it"):
            use()
    store.close()


@pytest.mark.parametrize(
    "statement, message",
    [
        ("CREATE TRIGGER t AFTER INSERT ON points BEGIN DELETE FROM points; END", "holds a trigger"),
        ("CREATE VIEW v AS SELECT 1", "holds a view"),
        ("CREATE VIRTUAL TABLE v USING rtree(id, low, high)", "another version"),
        ("CREATE TABLE more (x)", "another version"),
        ("CREATE INDEX i ON points (unit)", "another version"),
        ("ALTER TABLE points ADD COLUMN x", "another version"),
        ("ALTER TABLE points ADD COLUMN set_more TEXT", "another version"),
        ("ALTER TABLE points ADD COLUMN set_y INTEGER AS (abs(seed)) VIRTUAL", "another version"),
        ("ALTER TABLE points ADD COLUMN more INTEGER DEFAULT 7", "another version"),
        ("ALTER TABLE points RENAME COLUMN label TO label2", "another version"),
        ("DROP TABLE study", "another version"),
        ("PRAGMA user_version = 3", "another version"),
        ("PRAGMA application_id = 1", "is no store of hwsim; name another file"),
    ],
)
def test_a_database_that_is_not_ours(closed, statement, message):
    execute(closed, statement)
    for opened in (open_store, read_store):
        with pytest.raises(InputError, match=message):
            opened(closed)


def test_metrics_of_another_version_are_kept_and_ours_are_added(closed):
    execute(closed, "ALTER TABLE points ADD COLUMN coolness REAL", "ALTER TABLE points DROP COLUMN macs")
    reader = read_store(closed)
    assert next(study_rows(reader))["macs"] is None
    reader.close()
    store = open_store(closed)
    record(store, [], [row("k0", macs=12, cycles=1)])
    assert next(study_rows(store, ["macs"])) == {"macs": 12}
    assert "coolness" in columns(store)
    close_store(store)
    close_store(open_store(closed))


def test_bytes_that_change_are_found_or_harmless(filled, tmp_path):
    """Whatever a flipped byte does, it is an InputError of one line, or every row reads as rows can."""
    path = tmp_path / "store.sqlite"

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, len(filled) - 1), st.integers(1, 255))
    def flip(place, change):
        data = bytearray(filled)
        data[place] ^= change
        path.write_bytes(data)
        with contextlib.suppress(OSError):
            Path(f"{path}-wal").unlink()
        tasks = [f"t{number}" for number in range(100)]
        uses = (read_study, done_keys, count_by_status, lambda s: list(study_rows(s)), lambda s: known_tasks(s, tasks))
        for use in uses:
            with contextlib.suppress(InputError), contextlib.closing(read_store(path)) as store:
                use(store)

    flip()


def test_a_damaged_page_is_found(closed):
    data = bytearray(closed.read_bytes())
    middle = len(data) // 2 // 8192 * 8192
    data[middle : middle + 8192] = b"\xff" * 8192
    closed.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged|cannot be read"):
        open_store(closed)
    closed.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"damaged|cannot be read"):
        open_store(closed)


@pytest.mark.parametrize(
    "change",
    [
        "accuracy_fraction = '<script>'",
        "area_um2 = 9e999",
        "label = x'00'",
        "message = CAST(x'ff' AS TEXT)",
        "status = 'good'",
        "cycles = 1.5",
        "key = ''",
        "detail_json = '[]'",
        "detail_json = '{'",
        "detail_json = '{\"a\": NaN}'",
        'detail_json = \'{"a": "\\ud800"}\'',
        "detail_json = '{\"a\": ' || replace(hex(zeroblob(100000)), '00', '[')",
        "detail_json = '{\"a\": ' || replace(hex(zeroblob(5000)), '00', '1') || '}'",
        "params_json = '{\"rows\": [4]}'",
        "params_json = '{\"<b>\": 4}'",
        "params_json = '7'",
    ],
)
def test_values_of_a_wrong_type_are_found(closed, change):
    execute(closed, f"UPDATE points SET {change} WHERE key = 'k1'")  # noqa: S608 - our own texts
    execute(closed, "UPDATE members SET key = (SELECT key FROM points WHERE rowid = 2) WHERE key = 'k1'")
    store = read_store(closed)
    with pytest.raises(InputError, match=r"damaged|cannot be read as a store") as refused:
        list(study_rows(store))
    assert "\n" not in str(refused.value)
    store.close()


@pytest.mark.parametrize("change", ["result_json = '[]'", "wall_s = 'x'", "message = x'00'", "result_json = x'7b7d'"])
def test_damaged_tasks_are_found(closed, change):
    execute(closed, f"UPDATE tasks SET {change} WHERE key = 't1'")  # noqa: S608 - our own texts
    store = read_store(closed)
    assert known_tasks(store, ["t2"]).keys() == {"t2"}
    with pytest.raises(InputError, match="damaged"):
        known_tasks(store, ["t1", "t2"])
    store.close()


@pytest.mark.parametrize(
    "name, text",
    [
        ("study", "{}"),
        ("study", "7"),
        ("study", json.dumps(STUDY | {"name": "<b>"})),
        ("study", json.dumps(STUDY | {"more": 1})),
        ("study", json.dumps(STUDY | {"seed": "1"})),
        ("study", json.dumps(STUDY | {"engines": [{"unit": "systolc"}]})),
        ("study", json.dumps(STUDY | {"name": "\ud800"})),
        ("command", '["hwsim"]'),
        ("command", '"\\ud800"'),
        ("versions", '["numpy"]'),
        ("versions", '{"numpy": 2}'),
        ("progress", "[[1, NaN]]"),
        ("progress", "[[1, true]]"),
        ("progress", "[[1]]"),
        ("settings", "1"),
        ("more", "{"),
        ("more", b"\xff"),
        ("more", "[" * 100_000),
        ("more", None),
    ],
)
def test_a_forged_study_is_found(closed, name, text):
    other = sqlite3.connect(closed)
    other.execute("DELETE FROM study")
    other.execute("INSERT INTO study VALUES (?, ?)", (name, text))
    other.commit()
    other.close()
    store = read_store(closed)
    with pytest.raises(InputError, match=f"damaged \\(entry '{name}'\\)"):
        read_study(store)
    store.close()
