"""Exports: the same columns and values in CSV, Parquet and a frame, whatever the texts are."""

import csv
import io
import itertools
import sys
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_store import NASTY, ROWS, row

from hwsim.metrics import METRICS
from hwsim.sweep.export import EXPORTED, columns_of, csv_lines, frame, read_csv, write_csv, write_parquet, write_table
from hwsim.sweep.rows import COLUMNS
from hwsim.sweep.store import close_store, open_store, record, set_members, study_rows
from models.unit import InputError

WORDS = ["=1+1", "+1", "-1", "@x", "'=x", "''x", "true", "024", "7", "'7", "", "'", "WS", "1e5"]


def test_csv_is_rfc_4180_and_no_formula():
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\nx", "'=x", "''-", 'say "x", y', "'plain", "x"]
    rows = [row(str(n), message=text, accuracy=-1 / 3, params={"rows": 4, f"p{n}": -2}) for n, text in enumerate(texts)]
    data = "".join(csv_lines(rows, columns_of(rows)))
    read = list(csv.DictReader(io.StringIO(data, newline="")))
    assert data.count("\r\n") == len(texts) + 1
    assert [one["message"] for one in read] == [f"'{text}" for text in texts[:9]] + texts[9:]
    assert {float(one["accuracy_fraction"]) for one in read} == {-1 / 3}
    assert [one["set_p3"] for one in read] == ["-2" if n == 3 else "" for n in range(len(texts))]
    assert {one["set_rows"] for one in read} == {"4"}


def test_csv_holds_nothing_that_differs_from_run_to_run():
    header = next(csv.reader(csv_lines([], columns_of([]))))
    assert not {"label", "wall_s", "peak_memory_bytes", "created_utc", "revision", "detail_json"} & set(header)
    assert {metric.column for metric in METRICS.values()} <= set(header)
    assert not any(name.startswith("set_") for name in header)


def test_parameters_keep_what_they_are(tmp_path):
    values = [True, False, 1, 0, -5, 2**63 - 1, *WORDS]
    rows = [row(str(n), params={"value": value, "rows": n}) for n, value in enumerate(values)]
    rows.append(row("none", params={"rows": 0}))
    write_csv(tmp_path / "a.csv", rows, columns_of(rows))
    found = list(read_csv(tmp_path / "a.csv"))
    assert [one["params"] for one in found] == [one["params"] for one in rows]
    assert [type(one["params"].get("value")) for one in found[:-1]] == [type(value) for value in values]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS, max_size=4))
def test_any_row_survives_csv_and_parquet(tmp_path, rows):
    from pyarrow import parquet

    columns = columns_of(rows, COLUMNS)
    write_csv(tmp_path / "a.csv", rows, columns)
    assert list(read_csv(tmp_path / "a.csv")) == rows
    simple = [c for c in columns if not c.setting and c.type != "JSON"]
    settings_ = columns_of(rows, [])
    write_parquet(tmp_path / "a.parquet", iter(rows), [*simple, *settings_])
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names == [c.name for c in [*simple, *settings_]]
    for one, kept in zip(rows, table.to_pylist(), strict=True):
        assert {c.field: kept[c.name] for c in simple} == {c.field: one[c.field] for c in simple}
        texts = {c.setting for c in settings_ if c.type == "TEXT"}
        for c in settings_:
            value = one["params"].get(c.setting)
            mixed = c.setting in texts and value is not None and not isinstance(value, str)
            assert kept[c.name] == (str(value).lower() if mixed else value)


def test_a_study_comes_out_of_its_store(tmp_path):
    store = open_store(tmp_path / "store.sqlite")
    rows = [row(str(n), message=NASTY, params={"rows": n, "fast": n > 1, "flow": "WS"}) for n in range(3)]
    record(store, [], rows)
    set_members(store, "201")
    columns = columns_of(study_rows(store, ["params"]))
    write_csv(tmp_path / "a.csv", study_rows(store, [c.field for c in columns]), columns)
    close_store(store)
    found = list(read_csv(tmp_path / "a.csv"))
    assert [one["key"] for one in found] == ["2", "0", "1"]
    assert [one["params"] for one in found] == [rows[n]["params"] for n in (2, 0, 1)]
    assert {c.name: c.type for c in columns[len(EXPORTED) :]} == {
        "set_fast": "BOOLEAN",
        "set_flow": "TEXT",
        "set_rows": "INTEGER",
    }


def test_types_of_parquet_and_frame(tmp_path):
    import pandas
    from pyarrow import parquet

    rows = [
        row("a", area_um2=3, params={"rows": 4, "fast": True, "flow": "WS", "mixed": 1}) | dict.fromkeys(["macs"]),
        row("b", macs=2**53 + 1, accuracy=None, params={"mixed": "none"}),
    ]
    rows = [dict.fromkeys((c.field for c in COLUMNS), None) | one for one in rows]
    write_parquet(tmp_path / "a.parquet", rows, columns_of(rows))
    kinds = {field.name: str(field.type) for field in parquet.read_schema(tmp_path / "a.parquet")}
    data = frame(iter(rows))
    assert isinstance(data, pandas.DataFrame)
    expected = {
        "cycles": ("int64", "Int64"),
        "area_um2": ("double", "Float64"),
        "message": ("string", "string"),
        "set_rows": ("int64", "Int64"),
        "set_fast": ("bool", "boolean"),
        "set_mixed": ("string", "string"),
    }
    assert {name: (kinds[name], str(data[name].dtype)) for name in expected} == expected
    assert [*data.columns] == ["label", *kinds]
    assert data["macs"].isna().tolist() == [True, False]
    assert data["macs"][1] == 2**53 + 1
    assert data["accuracy_fraction"].isna().tolist() == [False, True]
    assert data["set_mixed"].tolist() == ["1", "none"]
    assert data["set_fast"].tolist() == [True, pandas.NA]


def test_a_frame_of_nothing_has_its_columns():
    assert [*frame([]).columns] == ["label", *(c.name for c in EXPORTED)]


def test_lone_surrogates_are_question_marks(tmp_path):
    from pyarrow import parquet

    rows = [row("a", message="\ud800")]
    columns = [c for c in COLUMNS if c.field == "message"]
    write_csv(tmp_path / "a.csv", rows, columns)
    write_parquet(tmp_path / "a.parquet", rows, columns)
    assert next(read_csv(tmp_path / "a.csv"))["message"] == "?"
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == [{"message": "?"}]


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_rows_are_not_held_in_memory(tmp_path, write):
    columns = [c for c in COLUMNS if c.field in ("key", "message", "cycles")]
    peaks = []
    for count in (8192, 32768):
        rows = ({"key": str(n), "message": "x" * 100, "cycles": n} for n in range(count))
        tracemalloc.start()
        write(tmp_path / "a", itertools.islice(rows, count), columns)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.3 + 100_000


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_what_fails_half_way_leaves_the_old_file(tmp_path, write):
    def rows():
        yield row("a")
        raise KeyboardInterrupt

    columns = [c for c in COLUMNS if c.field in ("key", "message")]
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", rows(), columns)
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "away")
    for name in ("folder", "link"):
        with pytest.raises(InputError, match=f"is a {name}, no file; name another target"):
            write_csv(tmp_path / name, [], columns_of([]))
    with pytest.raises(InputError, match="No space left on device"):
        write_csv(tmp_path / "full", full(), EXPORTED[:1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link"]


def full():
    raise OSError(28, "No space left on device")
    yield


@pytest.mark.parametrize(
    "content, message",
    [
        ("key,acuracy_fraction\r\n", r"a.csv:1: no column 'acuracy_fraction'; did you mean 'accuracy_fraction'"),
        ("key,<b>\r\n", r"a.csv:1: no column '<b>'; one of"),
        ("key,cycles\r\na,x\r\n", r"a.csv:2: no row of a study \(invalid literal"),
        ("key,area_um2\r\na,x\r\n", r"a.csv:2: no row of a study \(could not convert"),
        ("key,cycles\r\na\r\n", r"a.csv:2: no row of a study \(1 fields where 2 are due\)"),
        ('key\r\n"a\r\n', r"a.csv:2: no row of a study \(unexpected end of data\)"),
        ("detail_json\r\n[[[\r\n", r"a.csv:2: no row of a study \(Expecting value"),
        ("detail_json\r\n" + "[" * 100_000, r"a.csv:2: no row of a study"),
        (b"key\r\n\xff\r\n", r"no row of a study \('utf-8' codec"),
    ],
)
def test_files_that_hold_no_study(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as refused:
        list(read_csv(tmp_path / "a.csv"))
    assert "\n" not in str(refused.value)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    for export in (lambda: write_parquet(tmp_path / "a", [], []), lambda: frame([])):
        with pytest.raises(InputError, match=r"not installed here; pip install 'hwsim\[tables\]'"):
            export()
    assert list(tmp_path.iterdir()) == []


def test_any_table_is_guarded(tmp_path):
    write_table(tmp_path / "a.csv", ["=name", "x"], [(1, "=1"), (None, 0.1), ("'+", "'x")])
    assert (tmp_path / "a.csv").read_bytes() == b"=name,x\r\n1,'=1\r\n,0.1\r\n''+,'x\r\n"
