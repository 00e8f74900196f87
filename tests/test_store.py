"""The store: what goes in comes out, and what is not ours is refused with the remedy."""

import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest

from hwsim.metrics import METRICS
from hwsim.sweep.store import (
    COLUMNS,
    DONE,
    FAILED,
    close_store,
    done_keys,
    open_store,
    read_store,
    read_study,
    save,
    save_study,
    study_rows,
    to_csv,
)
from models.unit import InputError

NASTY = "=cmd|' /C calc'!A0\"<b>\n',;\u2028é"


STUDY = {
    "name": "tiny",
    "network": "n",
    "seed": 1,
    "formats": ["W8A8"],
    "transforms": ["none"],
    "engines": [{"unit": "lutgemm", "set": {}}],
}


def row(key, **fields):
    base = {m.name: 1 for m in METRICS.values() if not m.optional} | {
        "key": key,
        "label": f"label {key}",
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
        "detail": {"params": {"rows": 4}},
    }
    return base | fields


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a store?#%.sqlite"  # a name that must not be read as part of an address


@pytest.fixture
def store(path):
    store = open_store(path)
    yield store
    store.close()


def test_rows_come_back_in_the_order_of_the_study(store):
    save(store, row("b", accuracy=0.1 + 0.2, cycles=2**62, message=NASTY, network=NASTY))
    save(store, row("a", status=FAILED))
    save(store, row("old"))
    save_study(store, {"points": ["b", "missing", "a"], "study": STUDY, "command": NASTY})
    first, second = study_rows(store)
    assert (first["accuracy"], first["cycles"], first["energy_pj"]) == (0.1 + 0.2, 2**62, 1.0)
    assert first["message"] == first["network"] == NASTY
    assert second["key"] == "a"
    assert done_keys(store) == {"b", "old"}
    assert first["accuracy_std"] is None
    assert (read_study(store)["study"], read_study(store)["command"]) == (STUDY, NASTY)


def test_saving_again_replaces(store):
    save(store, row("a", status=FAILED, message="x"))
    save(store, row("a", accuracy=1.0))
    save_study(store, {"points": ["a"]})
    (only,) = study_rows(store)
    assert (only["status"], only["message"], only["accuracy"]) == (DONE, "", 1.0)


def test_each_save_is_durable_without_a_close(path, store):
    save(store, row("a"))
    other = read_store(path)
    assert done_keys(other) == {"a"}
    other.close()


def test_a_reader_cannot_write(path):
    close_store(open_store(path))
    reader = read_store(path)
    for write in (lambda: save(reader, row("a")), lambda: save_study(reader, {"points": []})):
        with pytest.raises(InputError, match=r"cannot be opened or written .*readonly.*check permissions"):
            write()
    reader.close()


def test_a_closed_store_is_one_file(path):
    store = open_store(path)
    save(store, row("a"))
    close_store(store)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_columns_are_typed_and_name_units(store):
    described = store.execute("PRAGMA table_info(points)").fetchall()
    kinds = {name: kind for _, name, kind, *_ in described}
    assert [(c.name, c.type) for c in COLUMNS] == [(name, kind) for _, name, kind, *_ in described]
    assert {m.column for m in METRICS.values()} <= kinds.keys()
    assert (kinds["cycles"], kinds["area_um2"], kinds["accuracy_fraction"]) == ("INTEGER", "REAL", "REAL")


def test_an_unknown_field_is_a_defect(store):
    with pytest.raises(AssertionError, match="acuracy"):
        save(store, row("a", acuracy=1))


# ---- refusals


def execute(path, *statements):
    other = sqlite3.connect(path)
    for statement in statements:
        other.execute(statement)
    other.commit()
    other.close()


@pytest.fixture
def closed(path):
    store = open_store(path)
    for number in range(300):
        save(store, row(f"k{number}", message="x" * 200))
    save_study(store, {"points": ["k1"]})
    close_store(store)
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


def test_a_store_in_use_is_not_to_be_deleted(path):
    store = open_store(path)
    store.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for write in (lambda: save(store, row("a")), lambda: save_study(store, {"points": []})):
        with pytest.raises(InputError, match=r"in use by another process \(database is locked\); wait until it ends$"):
            write()
    other.close()
    save(store, row("a"))
    store.close()


def test_a_full_disk_is_not_damage(store):
    (pages,) = store.execute("PRAGMA page_count").fetchone()
    store.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(InputError, match=r"no space left .*make room"):
        save(store, row("a", message="x" * 100_000))


def test_damage_met_later_is_damage(path):
    store = open_store(path)
    for number in range(300):
        save(store, row(f"k{number}", message="x" * 200))
    close_store(store)
    store = sqlite3.connect(path, isolation_level=None)  # as one that was opened before the damage
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    for use in (lambda: done_keys(store), lambda: save(store, row("a")), lambda: read_study(store)):
        with pytest.raises(InputError, match=r"cannot be read as a store .*move it away or delete it"):
            use()
    store.close()


@pytest.mark.parametrize(
    "statement, message",
    [
        ("CREATE TRIGGER t AFTER INSERT ON points BEGIN DELETE FROM points; END", "holds a trigger"),
        ("CREATE VIEW v AS SELECT 1", "holds a view"),
        ("CREATE TABLE more (x)", "another version"),
        ("CREATE INDEX i ON points (unit)", "another version"),
        ("ALTER TABLE points ADD COLUMN x", "another version"),
        ("DROP TABLE study", "another version"),
        ("PRAGMA user_version = 99", "another version"),
        ("PRAGMA application_id = 1", "is no store of hwsim; name another file"),
    ],
)
def test_a_database_that_is_not_ours(closed, statement, message):
    execute(closed, statement)
    for opened in (open_store, read_store):
        with pytest.raises(InputError, match=message):
            opened(closed)


def test_a_damaged_page_is_found(closed):
    data = bytearray(closed.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 4096] = b"\xff" * 4096
    closed.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged|cannot be read"):
        open_store(closed)
    closed.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"damaged|cannot be read"):
        open_store(closed)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE points SET accuracy_fraction = '<script>' WHERE key = 'k1'",
        "UPDATE points SET area_um2 = 9e999 WHERE key = 'k1'",
        "UPDATE points SET label = x'00' WHERE key = 'k1'",
        "UPDATE points SET status = 'good' WHERE key = 'k1'",
        "UPDATE points SET detail_json = '[]' WHERE key = 'k1'",
        "UPDATE points SET detail_json = '{' WHERE key = 'k1'",
        "UPDATE points SET detail_json = NULL WHERE key = 'k1'",
        "UPDATE points SET detail_json = '{\"params\": {\"rows\": [4]}}' WHERE key = 'k1'",
        "UPDATE points SET cycles = NULL WHERE key = 'k1'",
        "UPDATE points SET area_at_equal_throughput_um2 = NULL WHERE key = 'k1'",
        "UPDATE points SET engine = NULL WHERE key = 'k1'",
        "UPDATE study SET json = '7'",
        "UPDATE study SET json = '[\"k1\", 1]'",
        "UPDATE study SET name = 'point'",
        "UPDATE study SET json = x'ff'",
        "UPDATE study SET json = replace(hex(zeroblob(100000)), '00', '[')",
    ],
)
def test_values_of_a_wrong_type_are_found(closed, change):
    execute(closed, change)
    store = read_store(closed)
    with pytest.raises(InputError, match="damaged"):
        study_rows(store)
    store.close()


@pytest.mark.parametrize(
    "name, value",
    [
        ("study", {}),
        ("study", 7),
        ("study", STUDY | {"name": "<b>"}),
        ("study", STUDY | {"more": 1}),
        ("study", STUDY | {"seed": "1"}),
        ("study", STUDY | {"engines": [{"unit": "lutgem"}]}),
        ("study", STUDY | {"name": "\ud800"}),
        ("command", ["hwsim"]),
        ("versions", ["numpy"]),
        ("versions", {"numpy": 2}),
    ],
)
def test_a_forged_study_is_found(closed, name, value):
    execute(closed, "DELETE FROM study")
    other = sqlite3.connect(closed)
    other.execute("INSERT INTO study VALUES (?, ?)", (name, json.dumps(value)))
    other.commit()
    other.close()
    store = read_store(closed)
    with pytest.raises(InputError, match=f"damaged \\(entry '{name}'\\)"):
        read_study(store)
    store.close()


# ---- CSV


def test_csv_is_rfc_4180_and_no_formula(store):
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\nx", 'say "x", y', "plain"]
    for number, text in enumerate(texts):
        save(store, row(f"k{number}", message=text, accuracy=-1 / 3, detail={"params": {"rows": 4, f"p{number}": -2}}))
    save_study(store, {"points": [f"k{number}" for number in range(len(texts))]})
    data = to_csv(study_rows(store)).decode()
    assert data.count("\r\n") == len(texts) + 1
    read = list(csv.DictReader(io.StringIO(data, newline="")))
    assert [r["message"] for r in read] == [f"'{t}" for t in texts[:7]] + texts[7:]
    assert {float(r["accuracy_fraction"]) for r in read} == {-1 / 3}
    assert [r["set_p3"] for r in read] == ["", "", "", "-2", "", "", "", "", ""]
    assert {r["set_rows"] for r in read} == {"4"}


def test_csv_holds_nothing_that_differs_from_run_to_run():
    assert "set_" not in to_csv([]).decode()
    header = next(csv.reader(io.StringIO(to_csv([]).decode())))
    assert not {"wall_s", "peak_memory_bytes", "created_utc", "detail_json"} & set(header)
