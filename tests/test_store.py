"""The store: what goes in comes out, and what is not ours is refused with the remedy."""

import csv
import io
import sqlite3

import pytest

from hwsim.metrics import METRICS
from hwsim.store import (
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


def row(key, **fields):
    base = {
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
    save_study(store, {"points": ["b", "missing", "a"], "study": {"name": NASTY}})
    first, second = study_rows(store)
    assert (first["accuracy"], first["cycles"], first["energy_pj"]) == (0.1 + 0.2, 2**62, None)
    assert first["message"] == first["network"] == NASTY
    assert second["key"] == "a"
    assert done_keys(store) == {"b", "old"}
    assert read_study(store)["study"] == {"name": NASTY}


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
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        save(reader, row("a"))
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
    with pytest.raises(InputError, match="move it away or delete it"):
        opened(path)
    assert path.read_bytes() == content


def test_a_folder_and_a_missing_file(path):
    with pytest.raises(InputError, match="no such store"):
        read_store(path)
    path.mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        open_store(path)


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
        ("PRAGMA application_id = 1", "not a store of hwsim"),
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
        "UPDATE study SET json = '7'",
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
