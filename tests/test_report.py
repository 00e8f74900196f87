"""The report: self-contained, escaped, complete without JavaScript, the same bytes for the same results, small for any
number of points, and true to the rows: fronts, counts and densities are held against their own definitions."""

import itertools
import json
import os
import struct
from collections import Counter

import numpy as np
import pytest
from pages import Page
from points import STUDY, points

import hwsim.report.collect
import hwsim.report.study_page
from hwsim.metrics import FRONT, METRICS, Direction, pareto
from hwsim.page import script_json
from hwsim.report import write_markdown, write_picture, write_report
from hwsim.report.collect import DIRECTED, MEASURED, by_area, collect
from hwsim.report.columns import coded, page_data, relative_path
from hwsim.report.draw import GLYPHS, SERIES, axis, scaled, series_of, short
from hwsim.report.paper import markdown
from hwsim.report.schedule import schedule_of
from hwsim.report.still import picture
from hwsim.report.study_page import MAX_BYTES, WORDS, render
from hwsim.sweep.store import close_store, open_store, record, save_study, set_members
from hwsim.sweep.tasks import DONE
from models.catalog import UNITS, unit
from models.unit import InputError, Kind, fields_of

NASTY = '</script><img src=x onerror="alert(1)">\'&amp;\n\u2028]]>'
ROWS = list(points(120))
FINISHED = [row for row in ROWS if row["status"] == DONE]


@pytest.fixture(scope="module")
def text():
    return render(STUDY, ROWS).decode()


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def table(page, first):
    """The body of the table whose heading begins so."""
    (found,) = [lines for lines in page.tables if lines and lines[0][: len(first)] == list(first)]
    return found[1:]


def collected(monkeypatch, rows, *, listed=60, failures=10):
    """What is known where only so many can be listed."""
    monkeypatch.setattr(hwsim.report.collect, "LISTED", listed)
    monkeypatch.setattr(hwsim.report.collect, "LISTED_FAILURES", failures)
    monkeypatch.setattr(hwsim.report.collect, "CHUNK", 64)
    return collect(STUDY, rows)


# ---- the page


def test_the_page_is_closed_and_repeats(text, page):
    page.require_closed()
    assert render(STUDY, iter_twice(ROWS)).decode() == text
    assert len(text.encode()) < MAX_BYTES


def iter_twice(rows):
    """Rows that refuse a third loop over them."""
    loops = iter(range(2))

    class Rows:
        def __iter__(self):
            next(loops)
            return iter(rows)

    return Rows()


def test_the_front_is_listed_and_labelled_from_the_cheapest_up(text, page):
    front = by_area(ROWS[i] for i in pareto(ROWS, FRONT))
    listed, _ = [lines[1:] for lines in page.tables if lines[0][: len(WORDS)] == list(WORDS)]
    assert [cells[: len(WORDS)] for cells in listed] == [[row[word] for word in WORDS] for row in front]
    drawing = text.split("<svg")[1].split("</svg>")[0]
    assert "area at equal throughput [µm² per GMAC/s]" in drawing
    assert drawing.count('class="front-line"') == 1
    assert front[-1]["format"] in drawing


def test_the_static_table_has_every_number(page):
    _, listed = [lines for lines in page.tables if lines[0][: len(WORDS)] == list(WORDS)]
    shown = [metric for metric in METRICS.values() if any(row[metric.name] is not None for row in ROWS)]
    assert len(shown) < len(METRICS), "no language model here: its metrics are left out"
    assert listed[0][len(WORDS) : -1] == [metric.title + metric.unit for metric in shown]
    for cells, row in zip(listed[1:], ROWS, strict=True):
        assert cells[: len(WORDS)] == [row[word] for word in WORDS]
        assert cells[len(WORDS) : -1] == [metric.show(row[metric.name]) for metric in shown]
        assert cells[-1] == ("" if row["status"] == DONE else f"{row['status']}: {row['message']}")


def test_the_script_has_the_same_points(page):
    (data,) = page.json
    assert data["keys"] == [row["key"][:16] for row in ROWS]
    for column in data["words"]:
        decoded = ["" if code < 0 else column["levels"][code] for code in column["codes"]]
        name = column["name"].removeprefix("set_")
        assert decoded == [row["params"].get(name) if name != column["name"] else row[name] for row in ROWS]
    for column in (column for column in data["numbers"] if column["metric"]):
        metric = METRICS[column["name"]]
        found, rows = column["values"], [row[column["name"]] for row in ROWS]
        assert [metric.show(value) for value in found] == [metric.show(value) for value in rows]
        assert {column["low"], column["high"]} == {min(r for r in rows if r is not None), max(filter(None, rows))} | (
            {0} if 0 in rows else set()
        )
    assert [ROWS[i]["key"] for i in data["front"]] == [ROWS[i]["key"] for i in pareto(ROWS, FRONT)]


def test_failures_are_counted_by_reason(page):
    reasons = Counter((row["status"], row["message"], row["engine"]) for row in ROWS if row["status"] != DONE)
    by_reason = Counter()
    for (status, message, _), count in reasons.items():
        by_reason[status, message] += count
    shown = {(status, message): int(count) for status, count, message, _ in table(page, ("status", "points"))}
    assert shown == by_reason


def test_engines_are_counted(page):
    counts = Counter(row["engine"] for row in ROWS)
    shown = table(page, ("engine", "done"))
    assert sum(int(cell) for line in shown for cell in line[1:]) == len(ROWS)
    assert {line[0]: sum(map(int, line[1:])) for line in shown[:5]}.items() <= counts.items()


def test_names_stay_data():
    study = {"study": {"name": "n", "title": NASTY}, "command": NASTY, "versions": {NASTY: NASTY}}
    rows = [row | {"message": NASTY} for row in points(20, engines=(NASTY,), failing=0.4)]
    found = Page(render(study, rows).decode())
    found.require_closed()
    assert len(found.scripts) == 2
    (data,) = found.json
    assert next(column for column in data["words"] if column["name"] == "engine")["levels"] == [NASTY]
    assert any(NASTY in cell for lines in found.tables for line in lines for cell in line)


def test_script_json_is_the_same_data_and_cannot_end_the_script():
    data = {"a": [NASTY, "<!--", 1.5]}
    assert not set("<>&\u2028\u2029") & set(script_json(data))
    assert json.loads(script_json(data)) == data


def test_it_says_how_it_was_made(text, page):
    shown = table(page, ("metric", "column"))
    for name in collect(STUDY, ROWS).summaries:
        metric = METRICS[name]
        assert [metric.title, metric.column, metric.unit, metric.direction.value, metric.description] in shown
    words = ("no wire", "logical effort", "stall-free", "Energy is a count of operations", "hwsim sweep drawn.yaml")
    assert all(word in text for word in (*words, "Versions on which"))


def test_a_study_without_results_has_a_page():
    for rows in ([], [row for row in ROWS if row["status"] != DONE]):
        found = render(STUDY, rows).decode()
        assert "No finished point to draw" in found
        Page(found).require_closed()


def test_the_hypervolume_of_a_search_is_drawn():
    steps = [[10, 0.2], [20, 0.5], [30, 0.5], [40, 0.75]]
    found = render({**STUDY, "progress": steps}, ROWS[:5]).decode()
    assert "0.75 in the end" in found
    assert found.count('class="line"') == 1
    assert 'id="search"' not in render({**STUDY, "progress": []}, ROWS[:5]).decode()


def test_a_front_of_three_objectives():
    names = ["accuracy", "area_um2", "cycles"]
    study = {**STUDY, "study": {**STUDY["study"], "search": {"method": "nsga2", "objectives": names}}}
    found = collect(study, ROWS)
    assert found.axes == tuple(names)
    assert [row["key"] for row in found.front] == [ROWS[i]["key"] for i in pareto(ROWS, names)]


def test_a_study_of_timing_alone():
    rows = list(points(80, timing_only=True))
    found = collect(STUDY, rows)
    assert set(found.axes) == {"cycles", "energy_pj"}
    assert [row["key"] for row in found.front] == [rows[i]["key"] for i in pareto(rows, found.axes)]
    Page(render(STUDY, rows).decode()).require_closed()


# ---- more than a page holds


def test_of_too_many_points_the_fronts_and_a_sample_are_listed(monkeypatch):
    rows = list(points(700))
    found = collected(monkeypatch, rows)
    listed = {row["key"] for row in found.rows}
    assert [row["key"] for row in found.front] == [rows[i]["key"] for i in pareto(rows, FRONT)]
    assert (found.total, found.done, found.failed) == (700, *counts(rows))
    assert sum(sum(c.values()) for c in found.engines.values()) == 700
    assert len(listed) <= 70
    everything = collected(monkeypatch, rows, listed=500)
    for pair in (("accuracy", "cycles"), ("area_um2", "delay_ns"), ("energy_pj", "utilization")):
        ends = {tuple(rows[i][name] for name in pair) for i in pareto(rows, pair)}
        assert ends <= {tuple(row[name] for name in pair) for row in everything.rows}
    order = [row["key"] for row in rows]
    assert [row["key"] for row in everything.rows] == [key for key in order if key in everything.ranks]


def counts(rows):
    done = sum(row["status"] == DONE for row in rows)
    return done, len(rows) - done


def test_sums_over_chunks_are_sums_over_all(monkeypatch):
    rows = list(points(700))
    found = collected(monkeypatch, rows)
    for name in ("cycles", "accuracy", "area_um2"):
        values = {row["label"]: row[name] for row in rows if row[name] is not None}
        numbers, summary = [row[name] for row in rows if row[name] is not None], found.summaries[name]
        assert (summary.count, summary.low, summary.high) == (len(numbers), min(numbers), max(numbers))
        assert summary.mean == pytest.approx(np.mean(numbers), rel=1e-12)
        assert values.keys() >= {summary.lowest, summary.highest}


def test_densities_count_every_finished_point(monkeypatch):
    rows = list(points(700))
    found = collected(monkeypatch, rows)
    done, _ = counts(rows)
    columns, lines = hwsim.report.collect.CELLS
    assert all(grid.sum() == done for grid in found.density.values())
    x, y = ([row[name] for row in rows if row[name] is not None] for name in ("utilization", "delay_ns"))
    assert not found.summaries["utilization"].logarithmic
    expected, *_ = np.histogram2d(x, y, bins=(columns, lines))
    assert np.abs(found.density["utilization", "delay_ns"].reshape(columns, lines) - expected).sum() <= 2
    assert found.summaries["area_um2"].logarithmic
    sparse = page_data(found, found.rows)["density"]["pairs"]["utilization delay_ns"]
    places = list(itertools.accumulate(sparse[::2]))
    grid = found.density["utilization", "delay_ns"]
    assert dict(zip(places, sparse[1::2], strict=True)) == {i: n for i, n in enumerate(grid.tolist()) if n}


def test_equal_points_are_all_on_the_front_and_only_so_many_kept(monkeypatch):
    monkeypatch.setattr(hwsim.report.collect, "MAX_FRONT", 8)
    row = FINISHED[0]
    rows = [row | {"key": f"{number:064x}"} for number in range(300)]
    found = collected(monkeypatch, rows)
    assert found.front_size == 300
    assert len(found.front) == 8


def test_a_page_is_never_too_long(monkeypatch):
    rows = [row | {"message": "x" * 50_000} for row in points(300, engines=tuple("y" * 500 + c for c in "abc"))]
    monkeypatch.setattr(hwsim.report.study_page, "MAX_BYTES", 250_000)
    content = render(STUDY, rows)
    assert len(content) <= 250_000
    assert "x" * 100 in content.decode()
    assert "x" * 1000 not in content.decode()
    (data,) = Page(content.decode()).json
    assert 0 < len(data["keys"]) < 300
    front = {rows[i]["key"][:16] for i in pareto(rows, FRONT)}
    assert front <= set(data["keys"])
    assert f"{len(data['keys'])} of 300 points are listed" in content.decode()


def test_a_study_of_very_many_points():
    """The page of 12,000 points lists what the limits say and counts all."""
    drawn = points(12_000, timing_only=True, failing=0.01)
    rows = list(drawn)
    content = render(STUDY, iter_twice(rows))
    assert len(content) < MAX_BYTES
    fewer = [{name: row[name] for name in MEASURED} for row in rows]
    assert render(STUDY, iter(rows), iter(fewer)) == content
    (data,) = Page(content.decode()).json
    assert data["total"] == 12_000
    assert 5_000 <= len(data["keys"]) <= 5_500
    assert data["density"]


# ---- details of a point


def test_details_are_of_their_points():
    data = page_data(collect(STUDY, ROWS), ROWS)
    hardware = data["details"]["hardware"]
    for row, code in zip(ROWS, hardware["codes"], strict=True):
        given = row["detail"].get("hardware")
        assert (code >= 0) == bool(given)
        if given:
            role, name, _, area, _, modules = hardware["levels"][code][0]
            assert (role, name) == ("engine", row["unit"])
            assert area == pytest.approx(0.7 * row["area_um2"], abs=0.06)
            assert sum(own for _, _, own in modules) == pytest.approx(area, abs=0.2)
    shares = data["energy"]
    for index, row in enumerate(ROWS):
        ops = row["detail"].get("ops", {})
        expected = {kind: value / sum(ops.values()) for kind, value in ops.items()}
        assert {kind: values[index] for kind, values in shares.items() if values[index] is not None} == pytest.approx(
            expected, abs=1e-4
        )
    assert any(data["details"]["published"]["codes"][i] >= 0 for i, row in enumerate(ROWS) if row["unit"] == "systolic")


@pytest.mark.parametrize(
    "detail",
    [
        {"hardware": [1]},
        {"hardware": {"engine": 3, "x": {"modules": [["a"], 4, ["a", "b", "c"]], "area_um2": "1", "params": [2]}}},
        {"hardware": {"engine": {"unit": {}, "params": {"rows": {"a": 1}, "no": None}, "modules": 7}}},
        {"ops": {"mul": "x", "add": None}, "traceback": 4, "waves": ["a"], "schedule": 1},
        {"ops": 3, "hardware": {"engine": {"params": {"rows": -5}}}, "waves": "javascript:alert(1)"},
    ],
)
def test_a_detail_of_any_form_is_shown_or_left_out(detail):
    rows = [row | {"detail": detail} for row in points(10, failing=0)]
    Page(render(STUDY, rows).decode()).require_closed()


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x.vcd", "a/../../b", "https://x/y", "javascript:alert(1)", "//x/y", "a\nb", "", 3, None]
)
def test_a_link_leads_below_the_folder_of_the_page(path):
    assert relative_path(path) is None


def test_a_relative_link_is_kept():
    assert relative_path("points/ab12/waves.vcd") == "points/ab12/waves.vcd"


def test_only_so_much_detail_is_kept(monkeypatch):
    monkeypatch.setattr(hwsim.report.columns, "DETAIL_BYTES", 2_000)
    collection = collect(STUDY, ROWS)
    codes = page_data(collection, ROWS)["details"]["hardware"]["codes"]
    kept = [row["key"] for row, code in zip(ROWS, codes, strict=True) if code >= 0]
    assert 0 < len(kept) < 20
    last = max(collection.ranks[key] for key in kept)
    assert all(row["key"] in kept for row in ROWS if collection.ranks[row["key"]] < last and row["detail"].get("ops"))


# ---- schedules


@pytest.mark.parametrize("name", [name for name, entry in UNITS.items() if entry.kind is Kind.GEMM])
def test_the_schedule_moves_as_many_beats_as_the_unit_takes(name):
    entry = unit(name)
    params = next(iter(entry.presets.values()))
    plan = schedule_of(name, dict(fields_of(params)))
    assert plan is not None
    operands = entry.sample(params, np.random.default_rng(0), **{size: plan[size] for size in "MKN"})
    timing = entry.timing(params, **entry.shape_of(params, *operands))
    assert plan["cycles"] == timing.total_cycles
    beats = entry.beats(params, *operands)
    moved = {stream["name"]: sum(length for _, length in stream["runs"]) for stream in plan["streams"]}
    assert {s: moved[s] for s in beats} == {s: len(next(iter(f.values()))) for s, f in beats.items()}
    assert max(start + length for stream in plan["streams"] for start, length in stream["runs"]) == plan["cycles"]


def test_the_packed_array_is_the_activity():
    plan = schedule_of("systolic", {"rows": 6, "cols": 4, "dataflow": "OS"})
    busy = np.zeros((plan["cycles"], 6, 4), dtype=bool)
    array = plan["array"]
    for pe, (first, pattern) in enumerate(zip(array["first"], array["pattern"], strict=True)):
        for start, length in array["patterns"][pattern]:
            busy[first + start : first + start + length, pe // 4, pe % 4] = True
    params = unit("systolic").params(rows=6, cols=4, dataflow="OS")
    assert (busy == unit("systolic").module.activity(params, **{size: plan[size] for size in "MKN"})).all()


@pytest.mark.parametrize(
    "name, params",
    [("none such", {}), ("booth", {}), ("systolic", {"rows": 0}), ("systolic", {"new": 1}), ("opt3", {"rows": "x"})],
)
def test_what_has_no_schedule_has_none(name, params):
    assert schedule_of(name, params) is None


def test_a_large_array_has_no_picture_of_its_pes():
    assert "array" not in schedule_of("systolic", {"rows": 128, "cols": 128})


# ---- parts


@pytest.mark.parametrize("low, high", [(0.1, 0.97), (3.0, 3.0), (0.0, 0.0), (1e-9, 5e12), (-4.0, 1e3), (195.2, 2243.0)])
@pytest.mark.parametrize("most", [3, 9])
def test_ticks_are_round_and_within(low, high, most):
    logarithmic = 0 < 20 * low < high
    scale = axis("x", low, high, logarithmic)
    ticks = scale.ticks(most)
    assert all(-1e-9 <= scale.at(tick) <= 1 + 1e-9 for tick in ticks)
    assert 1 <= len(ticks) <= most + 1
    assert scale.at(scale.low) == pytest.approx(0)
    assert scale.at(scale.high) == pytest.approx(1)
    assert len({short(tick) for tick in ticks}) == len(ticks)


def test_marks_differ_in_colour_and_shape():
    few = series_of([*"aab", *"cde"])
    assert sorted(few.values()) == list(range(5))
    assert few["a"] == 0
    many = series_of([str(number) for number in range(30)])
    assert max(many.values()) == SERIES - 1
    assert Counter(many.values())[SERIES - 1] == 30 - (SERIES - 1)
    assert scaled(GLYPHS[1], 0.5) == "m-1.85-1.85h+3.7v+3.7h-3.7z"


def test_words_are_coded():
    assert coded(["b", None, "a", "b"]) == {"levels": ["b", "a"], "codes": [0, -1, 1, 0]}


def test_every_metric_of_the_fronts_has_a_direction():
    assert all(METRICS[name].direction is not Direction.NONE for name in DIRECTED)


# ---- tables and pictures for papers


def test_the_tables_for_a_paper():
    shown = markdown(STUDY, ROWS).decode()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("| ")]
    front = by_area(ROWS[i] for i in pareto(ROWS, FRONT))
    assert [line[:5] for line in lines[2 : 2 + len(front)]] == [[row[word] for word in WORDS] for row in front]
    cycles = [row["cycles"] for row in FINISHED]
    (summary,) = [line for line in lines if line[0] == "cycles \\[cycles\\]"]
    best = min(FINISHED, key=lambda row: row["cycles"])
    assert summary[1:] == [
        str(len(cycles)),
        f"{min(cycles):,}",
        f"{np.mean(cycles):,.4g}",
        f"{max(cycles):,}",
        best["label"],
    ]
    assert {line[1] for line in lines if line[0] == "timeout"} == {str(sum(r["status"] == "timeout" for r in ROWS))}


def test_names_stay_text_in_the_tables():
    study = {"study": {"name": "n", "title": NASTY}, "command": "a `b`\nc", "versions": {"a|b": NASTY}}
    shown = markdown(study, points(6, engines=("| <b>x</b> [y](z) `w`",))).decode()
    assert "<img" not in shown
    assert "<b>" not in shown
    assert "\\| &lt;b&gt;x&lt;/b&gt; \\[y\\](z) \\`w\\`" in shown


def test_control_characters_reach_no_picture_and_no_table():
    """The renderer of pictures ends its process over a NUL: XML has none."""
    rows = points(6, engines=("a\0b\x1b[31m\u202e", "c"))
    assert ">a?b?[31m?" in picture(STUDY, rows, "svg").decode()
    study = {"study": {"name": "n", "title": "a\0b\u202e"}, "command": "c\0", "versions": {}}
    shown = markdown(study, rows).decode()
    assert "# a?b?" in shown
    assert all(sign.isprintable() for sign in shown.replace("\n", ""))


def test_the_picture():
    drawn = picture(STUDY, ROWS, "svg").decode()
    assert "area at equal throughput [µm² per GMAC/s]" in drawn
    assert all(f">{ROWS[i]['format']}</text>" in drawn for i in pareto(ROWS, FRONT))
    png = picture(STUDY, ROWS[:40], "png")
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) > (800, 400)
    with pytest.raises(InputError, match="no finished point to draw"):
        picture(STUDY, [], "svg")


# ---- files


@pytest.fixture(scope="module")
def store_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "store.sqlite"
    store = open_store(path)
    given = {"formats": ["W8A8"], "transforms": ["none"], "engines": [{"unit": "systolic"}]}
    study = {"name": "tiny", "network": "digits-mlp", "seed": 1, **given}
    record(store, [], ROWS)
    set_members(store, [row["key"] for row in ROWS])
    save_study(store, {**STUDY, "study": study})
    close_store(store)
    return path


def test_the_store_of_a_study_as_page_picture_and_tables(store_path, tmp_path):
    for write, name in (
        (write_report, "a.html"),
        (write_picture, "a.svg"),
        (write_picture, "a.png"),
        (write_markdown, "a.md"),
    ):
        write(store_path, tmp_path / name)
        before = (tmp_path / name).read_bytes()
        write(store_path, tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    (data,) = Page((tmp_path / "a.html").read_text()).json
    assert data["keys"] == [row["key"][:16] for row in ROWS]


@pytest.mark.parametrize("write, suffix", [(write_report, "html"), (write_picture, "svg"), (write_picture, "png")])
def test_only_a_report_or_picture_is_overwritten(store_path, tmp_path, write, suffix):
    before, target = store_path.read_bytes(), tmp_path / f"theirs.{suffix}"
    pixel = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0\x90wS\xde\0\0\0\x0cIDATx"
    for theirs in (b"<!DOCTYPE html>\n<html lang='de'>", b"<svg xmlns='x' id='mine'>", pixel, b"# notes\n", b""):
        target.write_bytes(theirs)
        with pytest.raises(InputError, match="exists and is no report of hwsim"):
            write(store_path, target)
        assert target.read_bytes() == theirs
    os.link(store_path, tmp_path / f"same.{suffix}")
    (tmp_path / f"link.{suffix}").symlink_to(tmp_path / "nowhere")
    (tmp_path / f"folder.{suffix}").mkdir()
    for name, message in (("same", "is the store itself"), ("link", "is a link"), ("folder", "is a folder")):
        with pytest.raises(InputError, match=message):
            write(store_path, tmp_path / f"{name}.{suffix}")
    with pytest.raises(InputError, match="File name too long"):
        write(store_path, tmp_path / f"{'x' * 300}.{suffix}")
    assert store_path.read_bytes() == before


def test_refusals(store_path, tmp_path):
    path, out = tmp_path / "store.sqlite", tmp_path / "report.html"
    with pytest.raises(InputError, match="no such file; run `hwsim sweep` first"):
        write_report(path, out)
    close_store(open_store(path))
    with pytest.raises(InputError, match="holds no study yet"):
        write_report(path, out)
    with pytest.raises(InputError, match=r"a picture is \.svg or \.png"):
        write_picture(store_path, tmp_path / "a.pdf")
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match="is no store of hwsim"):
        write_report(path, out)
    assert not out.exists()
