"""What a run leaves behind: sums that agree, CSV, SCALE-Sim's columns, a trace of slices that nest, a closed page."""

import csv
import io
import json
import math
import re
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest
import vl_convert
from pages import Page

import hwsim.system.outputs.trace as trace_module
from hwsim.page import vl_version
from hwsim.system.machine import load_machine
from hwsim.system.outputs import page as page_module
from hwsim.system.outputs.groups import groups
from hwsim.system.outputs.page import render
from hwsim.system.outputs.tables import (
    LAYER_COLUMNS,
    edge_words,
    layer_records,
    layers_csv,
    new_tokens,
    scalesim_reports,
    si,
    totals,
    write_csv,
)
from hwsim.system.outputs.trace import Bar, recorded, slices_of, threads_of, to_json, write_trace
from hwsim.system.run import run
from hwsim.system.simulate import Slice, memory_of
from hwsim.workloads.graph import Attention, Builder
from models.unit import InputError

NASTY = '</script><img src=x onerror="alert(1)">\'&amp;\n\u2028]]>'

MACHINE = """
name: small
clock_mhz: 200
engines:
  - {name: array, unit: systolic, set: {rows: 4, cols: 4}, tasks: [gemm, conv]}
  - {name: heads, unit: systolic, set: {rows: 2, cols: 4, dataflow: OS}, tasks: [attention]}
scratchpads:
  - {name: acts, holds: [activations], kib: 1.5}
  - {name: weights, holds: [weights], kib: 1}
  - {name: outs, holds: [outputs], kib: 2}
dram: {bytes_per_cycle: 3, latency_cycles: 17, row_bytes: 64, row_miss_cycles: 2}
dma: {channels: CHANNELS, setup_cycles: 3}
vector: {lanes: 4, latency_cycles: 2}
prefetch: PREFETCH
attention: ATTENTION
"""


def machine(folder, channels=2, prefetch=False, attention="fused"):
    path = folder / "small.yaml"
    words = {"CHANNELS": channels, "PREFETCH": str(prefetch).lower(), "ATTENTION": attention}
    path.write_text(re.sub("[A-Z]{6,}", lambda m: str(words[m[0]]), MACHINE))
    return load_machine(str(path))


def network():
    """Two blocks alike and a head; a name that is hostile and one that is a formula."""
    b = Builder("net" + NASTY, "a test")
    x = b.vector("embed", "copy", b.tensor("input_ids_table", (12, 24)))
    for i in range(2):
        at = f"blocks.{i}"
        norm = b.vector(f"{at}.norm", "rmsnorm", x)
        q, k, v = (b.linear(f"{at}.{part}", norm, 24) for part in "qkv")
        op = Attention(batch=1, heads=2, kv_heads=2, queries=12, keys=12, head_dim=12, value_dim=12)
        y = b.add(f"{at}.attention", op, (q, k, v), (12, 24))
        x = b.vector(f"{at}.add", "add", b.linear(f"{at}.out", y, 24), x)
    x = b.linear(NASTY, x, 40)
    b.linear("=SUM(A1)", x, 10)
    return b.graph()


@pytest.fixture(scope="module", params=[(1, False), (3, True)], ids=["plain", "prefetch"])
def result(request, tmp_path_factory):
    channels, prefetch = request.param
    return run(network(), machine(tmp_path_factory.mktemp("machine"), channels, prefetch))


# ---- sums


def test_groups_are_all_layers_once_and_alike(result):
    found = groups(result)
    assert sorted(layer.name for group in found for layer in group.layers) == sorted(x.name for x in result.layers)
    assert len({group.name for group in found}) == len(found)
    by_name = {group.name: group for group in found}
    assert len(by_name["blocks.*.q"].layers) == 2
    assert len(by_name["embed"].layers) == 1
    for group in found:
        assert len({(x.shape, x.order, x.tile, x.unit) for x in group.layers}) == 1
        assert group.total("cycles") == sum(layer.cycles for layer in group.layers)
    assert sum(group.total("cycles") for group in found) == result.total_cycles


def test_groups_of_one_pattern_but_other_work_have_names_of_their_own(tmp_path):
    b = Builder("widths")
    x = b.tensor("x", (4, 8))
    for i, width in enumerate((8, 8, 16, 16, 8)):
        b.linear(f"l.{i}", x, width)
    found = groups(run(b.graph(), machine(tmp_path)))
    assert [group.name for group in found] == ["l.0 and 2 more", "l.2 and 1 more"]
    assert [len(group.layers) for group in found] == [3, 2]


def test_no_point_lies_above_its_roof(result):
    rate = float(memory_of(result.machine).bytes_per_cycle)
    seen = [group for group in groups(result) if group.attained]
    assert {group.first.what for group in seen} == {"product", "attention"}
    for group in seen:
        assert group.attained <= min(group.peak_per_cycle, rate * group.intensity) * (1 + 1e-12)
        assert group.peak_per_cycle == {"array": 16, "heads": 8}[group.first.unit]


def test_totals_are_the_sums_of_the_layers(result):
    total, records = totals(result, 12), layer_records(result)
    assert total["total_cycles"] == sum(r["cycles"] for r in records) == sum(total["cycles_by_bound"].values())
    assert total["macs"] == sum(r["macs"] for r in records) == network().macs
    assert total["bytes"] == sum(total["read_bytes"].values()) + total["written_bytes"]
    assert total["energy_pj"] == pytest.approx(sum(r["energy_pj"] for r in records))
    assert total["energy_pj"] == pytest.approx(sum(total["energy_by_component_pj"].values()))
    seconds = total["total_cycles"] / 200e6
    assert total["milliseconds"] == pytest.approx(1e3 * seconds)
    assert total["tokens_per_second"] == pytest.approx(12 / seconds)
    assert total["energy_delay_js"] == pytest.approx(1e-12 * total["energy_pj"] * seconds)
    assert sum(total["bound_fraction"].values()) == pytest.approx(1)
    for record in records:
        assert list(record) == list(LAYER_COLUMNS)
        own = sum(record[key] or 0 for key in record if re.fullmatch("energy_[a-z]+_pj", key))
        assert record["energy_pj"] == pytest.approx(own)
    assert totals(result, None)["tokens_per_second"] is None


def test_tokens_are_those_of_a_language_model():
    b = Builder("lm")
    b.tensor("input_ids", (3, 5))
    b.vector("x", "copy", b.tensor("table", (15, 4)))
    assert new_tokens(b.graph()) == 15
    assert new_tokens(network()) is None


def test_figures_with_a_prefix():
    shown = {0: "0", 343: "343", 1234: "1.234 k", 999_999: "1000 k", 4.589e13: "45.89 T", 2.5e-7: "250 n"}
    assert {value: si(value) for value in shown} == shown
    assert si(4.589e1, "J") == "45.89 J"
    assert si(1.2e-5, "J") == "12 uJ"


# ---- CSV


def test_layers_csv_holds_every_figure(result, tmp_path):
    write_csv(result, tmp_path / "out")
    with (tmp_path / "out" / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(LAYER_COLUMNS)
    assert [row["layer"].removeprefix("'") for row in rows] == [layer.name for layer in result.layers]
    assert [row["layer"] for row in rows][-1] == "'=SUM(A1)"
    assert sum(int(row["cycles"]) for row in rows) == result.total_cycles
    for row, layer in zip(rows, result.layers, strict=True):
        assert float(row["energy_pj"]) == sum(layer.energy_pj.values())
        assert int(row["written_bytes"]) == layer.written_bytes
        moved = sum(int(row[f"read_{name}_bytes"] or 0) for name in ("activations", "weights", "outputs", "epilogue"))
        assert moved + int(row["written_bytes"]) == layer.bytes
        assert (row["M"] == "") == (layer.shape is None)


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@a", "\tx", "\rx", "\nx"])
def test_text_in_csv_is_no_formula(result, text):
    layers = (replace(result.layers[0], name=text), *result.layers[1:])
    (first, *_) = csv.DictReader(io.StringIO(layers_csv(replace(result, layers=layers)), newline=""))
    assert first["layer"] == f"'{text}"


def parsed(text):
    head, *lines = ([cell.strip() for cell in line.split(",")][:-1] for line in text.splitlines())
    return [dict(zip(head, map(float, line), strict=True)) for line in lines]


def test_scalesim_reports_of_one_array_that_never_waits(tmp_path):
    """Everything fits and arrives at once: the counts are those of a weight-stationary array by hand."""
    text = MACHINE.replace("dram:", "#").replace("setup_cycles: 3", "setup_cycles: 0").replace("kib: 1.5", "kib: 999")
    text = (
        text.replace("kib: 1}", "kib: 999}")
        .replace("kib: 2}", "kib: 999}")
        .replace("cols: 4}, tasks: [gemm", "cols: 4}, convention: scalesim, tasks: [gemm")
    )
    (tmp_path / "m.yaml").write_text(
        text.replace("CHANNELS", "1").replace("PREFETCH", "false").replace("ATTENTION", "fused")
    )
    b = Builder("two")
    sizes = [(6, 8, 12), (5, 7, 3)]
    for i, (m, k, n) in enumerate(sizes):
        b.linear(f"p{i}", b.tensor(f"x{i}", (m, k)), n)
    result = run(b.graph(), load_machine(str(tmp_path / "m.yaml")))
    reports = scalesim_reports(result)
    compute, bandwidth, access = (
        parsed(reports[f"{name}_REPORT.csv"]) for name in ("COMPUTE", "BANDWIDTH", "DETAILED_ACCESS")
    )
    for i, (m, k, n) in enumerate(sizes):
        down, across = math.ceil(k / 4), math.ceil(n / 4)
        cycles = down * across * (m + 2 * 4 + 4 - 2) - 1
        assert compute[i]["LayerID"] == i
        assert compute[i]["Total Cycles"] == compute[i]["Total Cycles (incl. prefetch)"] == cycles
        assert compute[i]["Stall Cycles"] == 0
        assert compute[i]["Overall Util %"] == pytest.approx(100 * m * k * n / (16 * cycles))
        assert compute[i]["Mapping Efficiency %"] == pytest.approx(100 * k * n / (16 * down * across))
        assert access[i]["SRAM IFMAP Reads"] == m * k * across
        assert access[i]["SRAM Filter Reads"] == k * n
        assert access[i]["SRAM OFMAP Writes"] == m * n * down
        moved = [access[i][f"DRAM {name}"] for name in ("IFMAP Reads", "Filter Reads", "OFMAP Writes")]
        assert moved == [m * k, k * n, 2 * m * n], "bytes: INT8 in, 16-bit results out"
        assert access[i]["SRAM OFMAP Stop Cycle"] == cycles - 1
        assert bandwidth[i]["Avg FILTER DRAM BW"] == pytest.approx(k * n / cycles)
        assert bandwidth[i]["Avg IFMAP SRAM BW"] == pytest.approx(m * k * across / cycles)


def test_scalesim_reports_have_a_row_for_each_product(result):
    products = [layer for layer in result.layers if layer.what == "product"]
    for text in scalesim_reports(result).values():
        rows = parsed(text)
        assert [row["LayerID"] for row in rows] == list(range(len(products)))
    rows = parsed(scalesim_reports(result)["COMPUTE_REPORT.csv"])
    assert [row["Total Cycles"] for row in rows] == [layer.cycles for layer in products]
    assert all(0 < row["Mapping Efficiency %"] <= 100 for row in rows)


def test_words_that_cross_the_edge_are_those_of_every_tile(result):
    """Of a weight-stationary array of 4 x 4: it reads A once for each 4 columns, and writes sums for each 4 rows."""
    seen = 0
    for layer, built in zip(result.layers, result.built, strict=True):
        if layer.what == "product" and layer.unit == "array":
            (_, m, k, n), (tm, tk, tn) = layer.shape, layer.tile
            tiles = [
                (min(tm, m - i), min(tk, k - j), min(tn, n - o))
                for i in range(0, m, tm)
                for j in range(0, k, tk)
                for o in range(0, n, tn)
            ]
            words = edge_words(built)
            assert words["act"] == sum(a * b * math.ceil(c / 4) for a, b, c in tiles)
            assert words["weight"] == sum(b * c for _, b, c in tiles)
            assert words["out"] == sum(a * c * math.ceil(b / 4) for a, b, c in tiles)
            seen = max(seen, len(tiles))
    assert seen > 1


# ---- trace


def by_thread(document):
    threads = defaultdict(list)
    for event in document["traceEvents"]:
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"], event))
    return threads


def names_of(document):
    threads = {}
    for event in document["traceEvents"]:
        if event["name"] == "thread_name":
            threads[event["pid"], event["tid"]] = event["args"]["name"]
    return threads


def nested(bars):
    """Whether every two of them lie apart or one within the other."""
    return all(
        b[0] >= a[1] or a[0] >= b[1] or (a[0] <= b[0] and b[1] <= a[1]) or (b[0] <= a[0] and a[1] <= b[1])
        for i, a in enumerate(bars)
        for b in bars[:i]
    )


@pytest.fixture(scope="module")
def document(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    count = write_trace(result, path)
    document = json.loads(path.read_text())
    assert count == sum(event["ph"] == "X" for event in document["traceEvents"])
    return document


def test_a_trace_is_sorted_and_its_slices_nest(document):
    events = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert [event["ph"] for event in document["traceEvents"]].index("X") == len(document["traceEvents"]) - len(events)
    assert [e["ts"] for e in events] == sorted(e["ts"] for e in events)
    threads = by_thread(document)
    assert set(threads) == set(names_of(document))
    for name, bars in threads.items():
        assert nested(bars), names_of(document)[name]
        assert all(isinstance(begin, int) and begin < end for begin, end, _ in bars)
    assert not nested([(0, 5), (3, 8)]), "the test itself can fail"


def test_a_trace_shows_every_resource_for_as_long_as_it_is_busy(document, result):
    names = names_of(document)
    time = defaultdict(int)
    for key, bars in by_thread(document).items():
        time[names[key]] += sum(end - begin for begin, end, _ in bars)
        if names[key] in result.busy_cycles:
            ordered = sorted((begin, end) for begin, end, _ in bars)
            assert all(a[1] <= b[0] for a, b in pairwise(ordered))
    assert {"array", "heads", "vector", "bus"} <= set(result.busy_cycles) & set(time)
    for name, busy in result.busy_cycles.items():
        assert time[name] == busy, name


def test_layers_of_a_trace_lie_in_their_blocks(document, result):
    names, shown = names_of(document), {}
    for key, bars in by_thread(document).items():
        if names[key].startswith("layers"):
            shown |= {event["name"]: (begin, end) for begin, end, event in bars}
    assert {layer.name: (layer.begin, layer.end) for layer in result.layers}.items() <= shown.items()
    for i in range(2):
        own = [layer for layer in result.layers if layer.name.startswith(f"blocks.{i}.")]
        assert shown[f"blocks.{i}"] == (min(x.begin for x in own), max(x.end for x in own))
    assert max(end for _, end in shown.values()) == result.total_cycles


def test_channels_of_a_trace_hold_one_transfer_each(result):
    """Every transfer stands on a channel once, and the bus carries it after setup and before its latency."""
    slices = recorded(result)
    memory = memory_of(result.machine)
    held = [thread.bars for thread in threads_of(result, slices) if thread.name.startswith("DMA channel")]
    assert len(held) == memory.channels, "the machine is busy enough to need all of them at some time"
    for bars in held:
        assert all(a.end <= b.begin for a, b in pairwise(bars))
    every = [bar for bars in held for bar in bars]
    transfers = [s for s in slices if s.track in ("dma read", "dma write")]
    assert sorted((bar.begin, bar.end) for bar in every) == sorted((s.begin, s.end) for s in transfers)
    buses = {s.end: s for s in slices if s.track == "bus"}
    assert len(buses) == len(every)
    for bar in every:
        on_bus = buses.pop(bar.end - (memory.latency if bar.name.startswith("read") else 0))
        assert bar.begin + memory.setup <= on_bus.begin
        assert bar.name.endswith(on_bus.name)


def test_the_count_beforehand_is_what_is_recorded(result):
    slices = recorded(result)
    assert sum(slices_of(built.stage) for built in result.built) == len(slices)


def test_a_trace_too_long_names_the_way_out(result, monkeypatch, tmp_path):
    monkeypatch.setattr(trace_module, "MAX_SLICES", 10)
    with pytest.raises(InputError, match="transfers and steps; 10 at most; trace some layers with --layer GLOB"):
        write_trace(result, tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


def test_slices_that_cross_get_lanes(result):
    bars = [Bar(name="x", begin=a, end=b) for a, b in ((0, 9), (0, 4), (2, 6), (4, 8), (5, 12), (9, 10))]
    lanes = [[(bar.begin, bar.end) for bar in lane.bars] for lane in trace_module.lanes("p", "n", bars)]
    assert lanes == [[(0, 9), (0, 4), (4, 8), (9, 10)], [(2, 6)], [(5, 12)]]
    crossing = [Slice(track="bus", name=NASTY, stage=0, begin=a, end=b) for a, b in ((0, 5), (3, 8))]
    text = to_json(list(threads_of(result, crossing)), {"network": result.network})
    document = json.loads(text)
    assert {"bus 1", "bus 2"} <= set(names_of(document).values())
    assert all(nested(bars) for bars in by_thread(document).values())


# ---- page


@pytest.fixture(scope="module")
def text(result):
    return render(result, 12)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_a_page_is_closed_and_the_same_every_time(page, text, result):
    page.require_closed()
    assert text.count("</script>") == len(page.scripts) == 7
    assert render(result, 12) == text
    assert any(NASTY in cell for line in page.tables[1] for cell in line)
    assert "prefers-color-scheme: dark" in text
    assert "&quot;row_miss_cycles&quot;: 2" in text, "the machine is told"


def test_a_page_has_its_figures_without_javascript(page, text):
    assert len([tag for tag, _ in page.elements if tag == "svg"]) == 4
    stills = re.findall('<div class="still">(<svg.*?</svg>)', text, flags=re.DOTALL)
    for still, words in zip(stills, ("MACs/byte", "cycles", "energy [mJ]", "blocks.*.q"), strict=True):
        assert words in still
    assert 'fill="currentColor"' in stills[0]
    ids = re.findall(r'id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_a_page_lists_totals_and_every_group(page, result):
    total, layers = page.tables
    assert ["cycles", f"{result.total_cycles:,}"] in total
    assert [line[0] for line in layers[1:]] == [group.name for group in groups(result)]
    place = layers[0].index("cycles")
    assert sum(int(line[place].replace(",", "")) for line in layers[1:]) == result.total_cycles


def test_the_charts_draw_the_data_sets(page, result):
    *specs, datasets = page.json
    assert len(specs) == 4
    for spec in specs:
        drawn = vl_convert.vegalite_to_svg(spec | {"datasets": datasets}, vl_version=vl_version())
        assert "values" not in json.dumps(spec)
        assert drawn.count("<path") > 3
    for name in ("bars", "kinds"):
        assert sum(record["cycles"] for record in datasets[name]) == result.total_cycles
    energy = sum(record["energy"] for record in datasets["energy"])
    assert energy == pytest.approx(1e-9 * sum(result.energy_pj.values()))
    roofs = defaultdict(list)
    for record in datasets["roofs"]:
        roofs[record["engine"]].append((record["intensity"], record["attained"]))
    assert {engine: max(height for _, height in roof) for engine, roof in roofs.items()} == {"array": 16, "heads": 8}
    for roof in roofs.values():
        assert roof == sorted(roof)
        assert roof[0][1] == pytest.approx(3 * roof[0][0])


def test_a_network_of_no_products_and_one_without_a_roof(tmp_path):
    b = Builder("vectors")
    b.vector("relu", "relu", b.tensor("x", (8, 8)))
    result = run(b.graph(), machine(tmp_path))
    shown = Page(render(result, None))
    assert len(shown.json) == 4, "three figures and their data"
    assert totals(result, None)["utilization_fraction"] is None
    (tmp_path / "m.yaml").write_text(re.sub("dram:.*", "", (tmp_path / "small.yaml").read_text()))
    b = Builder("products")
    b.linear("p", b.tensor("x", (8, 8)), 8)
    result = run(b.graph(), load_machine(str(tmp_path / "m.yaml")))
    *_, datasets = Page(render(result, None)).json
    assert {record["attained"] for record in datasets["roofs"]} == {16}


@pytest.mark.parametrize("letter", ["x", "<", "&", "\u2028"])
def test_a_page_of_thousands_of_layers_is_small_enough(result, letter, monkeypatch):
    first = result.layers[-1]
    names = ("".join("abcdefghij"[int(digit)] for digit in str(i)) + letter * 5000 for i in range(2000))
    layers = tuple(replace(first, name=name, cycles=i) for i, name in enumerate(names))
    notes = (letter * 10_000,) * 500
    drawn = []
    monkeypatch.setattr(page_module, "figure", lambda chart, data, caption: drawn.append((chart, data, caption)) or "")
    many = replace(result, layers=layers, notes=notes, network=letter * 10_000, source=letter * 10_000)
    without = render(many, None)
    monkeypatch.undo()
    figures = [page_module.figure(*figure) for figure in drawn] if letter == "&" else []
    assert len(without.encode()) + sum(len(figure.encode()) for figure in figures) < 3_000_000
    assert "The 800 of most cycles of 2000; layers.csv of --csv has all layers." in without
    shown = Page(without)
    assert [len(line[0]) for line in shown.tables[1][1:3]] == [83, 83]
    shown.require_closed()
