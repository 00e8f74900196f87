"""The report: self-contained, escaped, readable without JavaScript, the same bytes for the same results."""

import itertools
import json
import os
import re
from collections import Counter

import numpy as np
import pytest
import vl_convert
from pages import Page

import hwsim.report
from hwsim.metrics import FRONT, METRICS, pareto
from hwsim.page import script_json, vl_version
from hwsim.report import MAX_BYTES, MAX_MESSAGE, WORDS, sample, write_picture, write_report
from hwsim.sweep.store import DONE, FAILED, close_store, open_store, read_store, save, save_study, study_rows
from models.unit import InputError

NASTY = '</script><img src=x onerror="alert(1)">\'&amp;\n\u2028]]>'


STUDY = {
    "name": "tiny",
    "network": "n",
    "seed": 1,
    "formats": ["W8A8"],
    "transforms": ["none"],
    "engines": [{"unit": "lutgemm", "set": {}}],
}


def filled(path, *, engines=("systolic 4x4 WS", NASTY), formats=((8, 8), (4, 8), (2, 8)), message=NASTY):
    """A store of one study with numbers drawn from a fixed seed, and one failed point."""
    rng = np.random.default_rng(3)
    store = open_store(path)
    store.execute("BEGIN")  # one transaction: a durable one a point would take long
    keys = []
    for engine in engines:
        for transform in ("none", "hadamard"):
            for weight_bits, act_bits in formats:
                keys.append(f"{engine}{transform}{weight_bits}{act_bits}")
                metrics = {m.name: m.kind(rng.integers(1, 1000)) for m in METRICS.values()}
                metrics["accuracy"] = float(rng.random())
                metrics |= dict.fromkeys(("perplexity", "bits_per_byte", "cosine", "spearman"))
                save(store, row(keys[-1], engine, transform, weight_bits, act_bits) | metrics)
    keys.append("failed")
    failed = row("failed", "shiftadd", "none", 8, 8) | {"status": FAILED, "message": message}
    save(store, failed)
    store.execute("COMMIT")
    save_study(store, {"study": STUDY, "command": NASTY, "versions": {"a": NASTY}, "points": keys})
    close_store(store)


def row(key, engine, transform, weight_bits, act_bits):
    return {
        "key": key,
        "label": key,
        "network": "n",
        "seed": 1,
        "engine": engine,
        "unit": engine.split()[0],
        "format": f"W{weight_bits}A{act_bits}",
        "weight_bits": weight_bits,
        "act_bits": act_bits,
        "transform": transform,
        "quantizer": "rtn",
        "activations": "asymmetric",
        "status": DONE,
        "message": "",
        "detail": {"params": {}},
    }


@pytest.fixture(scope="module")
def store_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "store.sqlite"
    filled(path)
    return path


@pytest.fixture(scope="module")
def text(store_path):
    out = store_path.parent / "report.html"
    write_report(store_path, out)
    return out.read_text()


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def rows_of(path):
    store = read_store(path)
    try:
        return study_rows(store)
    finally:
        store.close()


def test_size_and_repeatability(store_path, text):
    again = store_path.parent / "again.html"
    write_report(store_path, again)
    assert again.read_text() == text
    assert len(text.encode()) < MAX_BYTES


def test_the_table_holds_every_point_and_unit(page, store_path):
    rows = rows_of(store_path)
    _, points, *_ = page.tables
    assert len(points) == len(rows) + 1
    shown = [m for m in METRICS.values() if any(row[m.name] is not None for row in rows)]
    assert len(shown) < len(METRICS), "the store has no language model: its metrics are left out"
    assert points[0][len(WORDS) : -1] == [metric.title + metric.unit for metric in shown]
    for cells, row in zip(points[1:], rows, strict=True):
        assert cells[: len(WORDS)] == [row[word] for word in WORDS]
        assert cells[len(WORDS) : -1] == [metric.show(row[metric.name]) for metric in shown]
        assert cells[-1] == row["message"]


def test_the_front_is_listed_from_the_cheapest_up(page, store_path):
    done = [row for row in rows_of(store_path) if row["status"] == DONE]
    front = sorted((done[i] for i in pareto(done, FRONT)), key=lambda row: row[FRONT[1]])
    assert [cells[: len(WORDS)] for cells in page.tables[0][1:]] == [[row[word] for word in WORDS] for row in front]
    shaded = [attributes for tag, attributes in page.elements if tag == "tr" and attributes.get("class") == "front"]
    assert len(shaded) == len(front)


def test_figures_are_drawn_without_javascript(page, text, store_path):
    assert len([tag for tag, _ in page.elements if tag == "svg"]) == 4
    still = text.split('<div class="still">')[1].split("</svg>")[0]
    assert "area at equal throughput [µm² per GMAC/s]" in still
    rows = rows_of(store_path)
    assert all(f">{rows[index]['format']}</text>" in still for index in pareto(rows, FRONT))


def test_names_stay_data(page, text):
    assert text.count("</script>") == len(page.scripts) == 7
    assert any(NASTY in cell for table in page.tables for line in table for cell in line)


def test_the_page_is_closed(page):
    page.require_closed()


def test_script_json_is_the_same_data_and_cannot_end_the_script(page):
    data = {"a": [NASTY, "<!--", 1.5]}
    assert not re.search("[<>&\u2028\u2029]", script_json(data))
    assert json.loads(script_json(data)) == data
    *specs, datasets = page.json
    assert len(specs) == 4
    assert {record["engine"] for record in datasets["points"]} == {"systolic 4x4 WS", NASTY}


def test_the_charts_share_one_data_set_that_draws_them(page, text):
    *specs, datasets = page.json
    assert sum(record["front"] for record in datasets["points"]) == len(page.tables[0]) - 1
    for spec in specs:
        assert "values" not in json.dumps(spec)
        drawn = vl_convert.vegalite_to_svg(spec | {"datasets": datasets}, vl_version=vl_version())
        assert "energy per inference" in drawn  # the tooltips' text, which the still figures go without
    stills = re.findall("<svg.*?</svg>", text, flags=re.DOTALL)
    assert not [still for still in stills if "energy per inference" in still]


def test_an_engine_has_one_bar_a_format_in_the_chart_of_areas():
    """Bars of one place are stacked: two points there would be drawn as one of their areas' sum."""
    words = {"format": ["W4A4", "W8A8"], "transform": ["none", "t"], "quantizer": ["rtn", "gptq"]}
    kinds = [("a", "asymmetric"), ("a", "symmetric"), ("b", "float")]
    data = [
        dict(zip(words, values, strict=True), engine=engine, activations=kind)
        for values in itertools.product(*words.values())
        for engine, kind in kinds
    ]
    ways = hwsim.report._one_way(data)
    kept = [r for r in data if all(r[word] in values for word, values in ways.items())]
    bars = Counter((r["format"], r["engine"]) for r in kept)
    assert set(bars) == set(itertools.product(words["format"], "ab"))
    assert set(bars.values()) == {1}
    filters = hwsim.report._area_chart(ways).to_dict()["transform"]
    assert {f["filter"]["field"]: f["filter"]["oneOf"] for f in filters} == ways


def test_it_says_how_it_was_made(page, text):
    for metric in METRICS.values():
        assert [metric.title, metric.column, metric.unit, metric.direction.value, metric.description] in page.tables[2]
    for word in ("no wire", "logical effort", "stall-free", "Energy is a count of operations", "Versions"):
        assert word in text


def test_a_study_without_results_has_a_report(tmp_path):
    path, out = tmp_path / "store.sqlite", tmp_path / "report.html"
    filled(path, engines=())
    write_report(path, out)
    assert "No finished point" in out.read_text()


# ---- more than a page holds


def listed(page):
    """What names the points in the long table."""
    return [tuple(line[: len(WORDS)]) for line in page.tables[1][1:]]


@pytest.mark.parametrize("engines, message", [(120, "x"), (2, "x" * 300_000)])
def test_a_report_is_always_written(tmp_path, monkeypatch, engines, message):
    path, out = tmp_path / "store.sqlite", tmp_path / "report.html"
    filled(path, engines=tuple(f"systolic 4x{n}" for n in range(engines)), message=message)
    monkeypatch.setattr(hwsim.report, "MAX_BYTES", 1_200_000)
    write_report(path, out)
    text = out.read_text()
    assert len(text.encode()) <= 1_200_000
    page, rows = Page(text), rows_of(path)
    best = [rows[index] for index in pareto(rows, FRONT)]
    assert {tuple(row[word] for word in WORDS) for row in best} <= set(listed(page))
    if engines == 2:
        assert len(listed(page)) == len(rows)
        assert "x" * MAX_MESSAGE + " ... (cut" in text
        return
    assert len(best) < len(listed(page)) < len(rows) == 721
    assert f"Too many for this page: {len(listed(page))} of 721 points are listed and drawn, all of the front" in text
    assert "All are in points.csv." in text


def test_a_page_that_nothing_fits_has_no_points_but_says_how_many(store_path, tmp_path, monkeypatch):
    monkeypatch.setattr(hwsim.report, "MAX_BYTES", 1)
    write_report(store_path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "0 of 13 points are listed and drawn, none of the front and none of the others" in text


def test_the_sample_is_the_front_and_every_nth_other():
    rows = [{"key": str(number)} for number in range(100)]
    front = frozenset({"3", "50"})
    shown, which = sample(rows, front, 12)
    others = [row["key"] for row in rows if row["key"] not in front]
    assert [row["key"] for row in shown] == sorted({*others[::10], *front}, key=int)
    assert "12 of 100 points are listed and drawn, all of the front and one in 10 of the others" in which
    shown, which = sample(rows, frozenset(row["key"] for row in rows), 30)
    assert [row["key"] for row in shown] == [str(number) for number in range(0, 100, 4)]
    assert sample(rows, front, 100)[0] == rows


# ---- targets


@pytest.mark.parametrize("write", [write_report, write_picture])
def test_only_a_report_or_picture_is_overwritten(tmp_path, write):
    path = tmp_path / "store.sqlite"
    filled(path)
    before = path.read_bytes()
    for theirs in (b"<!DOCTYPE html>\n<html lang='de'>", b"<svg xmlns='x' id='mine'>", b"a,b\n1,2\n", b""):
        (tmp_path / "theirs").write_bytes(theirs)
        with pytest.raises(InputError, match="exists and is no report of hwsim"):
            write(path, tmp_path / "theirs")
        assert (tmp_path / "theirs").read_bytes() == theirs
    os.link(path, tmp_path / "same")
    (tmp_path / "link.html").symlink_to(tmp_path / "nowhere")
    for target, message in (
        (path, "is the store itself"),
        (tmp_path / "same", "is the store itself"),
        (tmp_path / "link.html", "is a link"),
        (tmp_path, "is a folder"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(InputError, match=message):
            write(path, target)
    assert path.read_bytes() == before
    out = tmp_path / "out"
    for again in (write_report, write_picture, write):
        again(path, out)
    assert len(out.read_bytes()) > 1000


def test_refusals(tmp_path):
    path, out = tmp_path / "store.sqlite", tmp_path / "report.html"
    with pytest.raises(InputError, match="no such file; run `hwsim sweep` first"):
        write_report(path, out)
    close_store(open_store(path))
    with pytest.raises(InputError, match="holds no study yet"):
        write_report(path, out)
    with pytest.raises(InputError, match="no finished point to draw"):
        write_picture(path, out)
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match="is no store of hwsim"):
        write_report(path, out)
    assert not out.exists()
