"""hwsim compare: throughput, best points, one clock, ratios, the written files, refusals."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwsim import compare as module
from hwsim.cli import main
from hwsim.compare import (
    compare,
    designs_of,
    fingerprint,
    record,
    run_of,
    tables,
    to_csv,
    to_markdown,
    verilog_of,
)
from hwsim.energy import op_energy_pj
from hwsim.synth import SynthResult, yosys
from models import booth, systolic
from models.catalog import UNITS, unit
from models.systolic import Dataflow, SystolicParams
from models.unit import Compared, InputError, Kind, Published

SHAPE = (8, 6, 10)
SMALL = SystolicParams(rows=2, cols=2, act_bits=4, weight_bits=4, acc_bits=12)


def design(architecture, style, params, **more):
    return Compared(family="test", architecture=architecture, style=style, params=params, **more)


PAPER = Published(source="A. Author, Venue 2000", area_efficiency=1.25, energy_efficiency=1.5)
DESIGNS = (
    design("B", "wide", replace(SMALL, act_bits=6), published=PAPER, differs="Ours | theirs."),
    design("A", "mac", SMALL),
    design("B", "mac", replace(SMALL, dataflow=Dataflow.OS)),
    design("A", "narrow", replace(SMALL, weight_bits=3)),
)


@pytest.fixture
def family(monkeypatch):
    """A family of the systolic unit's designs; the units' own are out of the way."""

    def declare(*designs):
        for entry in UNITS.values():
            monkeypatch.setattr(entry.module, "COMPARED", (), raising=False)
        monkeypatch.setattr(systolic, "COMPARED", designs)

    return declare


def synthesised(area, delay, modules=()):
    return SynthResult(
        area_um2=area,
        gate_equivalents=area / 0.8,
        delay_ns=delay,
        critical_path=(),
        cells={},
        modules=modules,
        multiplier="array",
        flows={},
        library="made-up",
        tools={"pyosys": "0"},
    )


CURVES = {
    # (activation bits, weight bits, dataflow) -> (delay, area), fast to slow
    (4, 4, "WS"): [(1.0, 300.0), (1.5, 180.0), (3.0, 100.0)],
    (4, 3, "WS"): [(2.0, 90.0), (2.5, 80.0)],
    (4, 4, "OS"): [(1.0, 200.0)],
    (6, 4, "OS"): [(0.5, 260.0), (1.0, 150.0)],
    (6, 4, "WS"): [(0.5, 260.0), (1.0, 150.0)],
}


@pytest.fixture
def made_up(monkeypatch):
    """Curves without Yosys; a PE takes an eighth of the area and half the delay."""

    def verilog(_, compared):
        p = compared.params
        return json.dumps([p.act_bits, p.weight_bits, p.dataflow.value])

    def curve(text, top, **_):
        points = CURVES[tuple(json.loads(text))]
        if top == "some_pe_0":
            return tuple(synthesised(area / 8, delay / 2) for delay, area in points)
        return tuple(synthesised(area, delay, (("some_pe_0", 4, 1.0), (top, 1, 2.0))) for delay, area in points)

    monkeypatch.setattr(module, "verilog_of", verilog)
    monkeypatch.setattr(module, "area_delay_curve", curve)


@pytest.fixture
def comparison(family, request):
    request.getfixturevalue("made_up")
    family(*DESIGNS)
    return compare("test", shape=SHAPE)


def of(comparison, architecture, style):
    (row,) = [r for r in comparison.rows if (r.compared.architecture, r.compared.style) == (architecture, style)]
    return record(comparison, row)


def test_architectures_stand_together_with_the_baseline_first(comparison):
    rows = [(row.compared.architecture, row.compared.style) for row in comparison.rows]
    assert rows == [("B", "mac"), ("B", "wide"), ("A", "mac"), ("A", "narrow")]


def test_the_best_point_is_the_one_of_the_largest_area_efficiency(comparison):
    """Of (1.0, 300), (1.5, 180), (3.0, 100) the second: 1 / (1.5 * 180) is the largest."""
    mac = of(comparison, "A", "mac")
    assert (mac["array_best_period_ns"], mac["array_best_area_um2"]) == (1.5, 180.0)
    assert mac["array_best_area_efficiency_ratio"] == 1.0
    narrow = of(comparison, "A", "narrow")
    assert (narrow["array_best_period_ns"], narrow["array_best_area_um2"]) == (2.0, 90.0)
    assert narrow["array_best_area_efficiency_ratio"] == pytest.approx((1.5 * 180) / (2.0 * 90))


def test_tops_per_mm2_counts_the_cycles_that_the_gemm_takes(comparison):
    mac = of(comparison, "A", "mac")
    m, k, n = SHAPE
    seconds = mac["cycles"] * 1.5e-9
    mm2 = 180.0e-6
    assert mac["array_best_tops_per_mm2"] == pytest.approx(2 * m * k * n / seconds / 1e12 / mm2)
    assert mac["work_per_cycle"] == pytest.approx(m * k * n / mac["cycles"])
    assert mac["work_per_cycle"] < mac["peak_per_cycle"] == 4


def test_at_one_clock_stands_the_smallest_netlist_that_meets_the_slowest_of_the_fastest(comparison):
    """Of architecture A that is 2.0 ns: the MAC array takes its netlist of 1.5 ns, whose period is 2.0 ns then."""
    mac, narrow = of(comparison, "A", "mac"), of(comparison, "A", "narrow")
    assert mac["array_equal_period_ns"] == narrow["array_equal_period_ns"] == 2.0
    assert (mac["array_equal_area_um2"], narrow["array_equal_area_um2"]) == (180.0, 90.0)
    assert narrow["array_equal_area_efficiency_ratio"] == pytest.approx(2.0)
    assert narrow["array_equal_area_ratio"] == pytest.approx(0.5)
    assert of(comparison, "B", "mac")["array_equal_period_ns"] == 1.0


def test_a_pe_has_its_share_of_the_work(comparison):
    mac = of(comparison, "A", "mac")
    assert (mac["pe_module"], mac["pe_instances"]) == ("some_pe_0", 4)
    # a fourth of the work, an eighth of the area, half the delay
    assert mac["pe_best_tops_per_mm2"] == pytest.approx(4 * mac["array_best_tops_per_mm2"])
    assert mac["pe_equal_period_ns"] == 1.0


def test_the_papers_ratios_stand_beside_ours_and_change_none(comparison, family):
    wide = of(comparison, "B", "wide")
    assert (wide["published_area_efficiency_ratio"], wide["published_energy_efficiency_ratio"]) == (1.25, 1.5)
    family(*(replace(d, published=None) for d in DESIGNS))
    without = of(compare("test", shape=SHAPE), "B", "wide")
    ours = [name for name in wide if not name.startswith("published")]
    assert [wide[name] for name in ours] == [without[name] for name in ours]


def test_energy_efficiency_is_the_baselines_energy_over_ours(comparison):
    entry = unit("systolic")
    m, k, n = SHAPE
    per_op = [
        sum(op.count * op_energy_pj(op) for op in entry.ops(d.params, M=m, K=k, N=n)) / (2 * m * k * n) for d in DESIGNS
    ]
    assert of(comparison, "A", "narrow")["energy_pj_per_op"] == pytest.approx(per_op[3])
    assert of(comparison, "A", "narrow")["energy_efficiency_ratio"] == pytest.approx(per_op[1] / per_op[3])


def test_operands_come_from_the_seed_and_fit_their_formats(monkeypatch):
    seen = []

    def shape_of(_, a, w):
        seen.append((a, w))
        return {"M": a.shape[0], "K": a.shape[1], "N": w.shape[1]}

    monkeypatch.setattr(systolic, "shape_of", shape_of)
    for seed in (0, 0, 1):
        run_of(unit("systolic"), SMALL, (50, 40, 30), seed)
    (a, w), (again, _), (other, _) = seen
    assert (a == again).all()
    assert (a != other).any()
    assert (a.min(), a.max(), w.min(), w.max()) == (-8, 7, -8, 7)
    wide = run_of(unit("systolic"), replace(SMALL, act_bits=12), (50, 40, 30), 0)
    assert abs(np.std(seen[3][0]) - module.SPREAD) < 1
    assert wide.peak_per_cycle == 4


def test_an_encoder_counts_a_code_word_as_one_operation():
    entry = unit("booth")
    assert entry.kind is Kind.ENCODER
    params = booth.BoothParams(lanes=4)
    run = run_of(entry, params, (8, 8, 1), 0)
    assert run.work_per_cycle * run.cycles == pytest.approx(64)


def test_the_csv_holds_every_figure_in_full(comparison):
    read = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert len(read) == 4
    for text, row in zip(read, comparison.rows, strict=True):
        figures = record(comparison, row)
        assert list(text) == list(figures)
        for name, value in figures.items():
            assert text[name] == ("" if value is None else str(value))


def test_the_page_says_how_it_was_made_and_what_differs(comparison):
    page = to_markdown(comparison, "hwsim compare --family test")
    assert "Written by `hwsim compare --family test`" in page
    assert "made-up" in page
    assert "pyosys 0" in page
    assert "no wires" in page
    assert "- B, wide: Paper: A. Author, Venue 2000. Ours \\| theirs." in page
    rows = [line for line in page.splitlines() if line.startswith("| B | wide |")]
    assert len(rows) == 3
    assert "1.25 x" in rows[0]
    lengths = {len(line.replace("\\|", "").split("|")) for line in page.splitlines() if line.startswith("| ")}
    assert lengths <= {len(headings) + 2 for headings, _ in tables(comparison).values()}


def test_a_row_without_a_pe_has_dashes(comparison):
    without = replace(comparison, rows=tuple(replace(row, pe=None) for row in comparison.rows))
    assert record(without, without.rows[0])["pe_best_area_um2"] is None
    *_, (_, rows) = tables(without).values()
    assert set(rows[0][2:]) == {"-"}


@pytest.mark.parametrize(
    "designs, message",
    [
        (
            DESIGNS[1:3] + DESIGNS[:1] + (design("C", "opt1", SMALL),),
            "architecture 'C' needs one baseline .*found 0 among",
        ),
        ((*DESIGNS, DESIGNS[1]), "architecture 'A' needs one baseline of style 'mac', found 2"),
        ((), "no unit stands in a comparison"),
    ],
)
def test_an_architecture_has_exactly_one_baseline(family, designs, message):
    family(*designs)
    with pytest.raises(InputError, match=message):
        designs_of("test")


def test_an_unknown_family_names_the_nearest(family):
    family(*DESIGNS)
    with pytest.raises(InputError, match="no family 'tset'; did you mean 'test'"):
        compare("tset")


def test_sizes_are_checked_before_anything_runs(family, monkeypatch):
    family(*DESIGNS)
    monkeypatch.setattr(module, "run_of", lambda *_: pytest.fail("ran"))
    for shape, message in [((0, 1, 1), "M must be"), ((1 << 15, 1 << 15, 1), "over 2\\^28")]:
        with pytest.raises(InputError, match=message):
            compare("test", shape=shape)
    with pytest.raises(InputError, match="workers"):
        compare("test", workers=0)


@pytest.mark.usefixtures("made_up")
def test_a_design_that_fails_is_named(family, monkeypatch):
    family(*DESIGNS)

    def fail(*_, **__):
        raise InputError("synthesis of systolic: Yosys says no")

    monkeypatch.setattr(module, "area_delay_curve", fail)
    with pytest.raises(InputError, match=r"^[AB], [a-z]+: synthesis of systolic: Yosys says no"):
        compare("test", shape=SHAPE)


@pytest.mark.parametrize("workers", [1, 4])
def test_rows_and_progress_do_not_depend_on_the_number_of_workers(comparison, workers):
    told = []
    again = compare("test", shape=SHAPE, workers=workers, progress=lambda *step: told.append(step))
    assert again == comparison
    assert [done for done, _, _ in told] == [1, 2, 3, 4]
    assert {of for _, of, _ in told} == {4}


def test_every_paper_in_the_catalogue_has_a_source_and_a_reason_why_ours_differs():
    for entry in UNITS.values():
        for compared in entry.compared:
            if compared.published:
                assert compared.published.source
                assert compared.differs


def run_cli(monkeypatch, capsys, *argv):
    monkeypatch.setattr(sys, "argv", ["hwsim", "compare", *map(str, argv)])
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr()
    return end.value.code or 0, shown.out, shown.err


@pytest.mark.usefixtures("made_up")
def test_the_command_prints_tables_or_json_and_writes_both_files(family, monkeypatch, capsys, tmp_path):
    family(*DESIGNS)
    out = tmp_path / "test.figures"
    argv = ("--family", "test", "--shape", *SHAPE, "--out", out)
    status, shown, _ = run_cli(monkeypatch, capsys, *argv)
    assert status == 0
    assert "at one clock" in shown
    assert "B, wide: Paper: A. Author" in shown
    assert {path.name for path in tmp_path.iterdir()} == {"test.figures.md", "test.figures.csv"}
    page = (tmp_path / "test.figures.md").read_text()
    assert f"`hwsim compare --family test --shape 8 6 10 --seed 0 --out {out}`" in page
    status, shown, _ = run_cli(monkeypatch, capsys, *argv, "--json")
    rows = json.loads(shown)
    assert [row["style"] for row in rows] == ["mac", "wide", "mac", "narrow"]
    assert (tmp_path / "test.figures.md").read_text() == page


def test_a_mistake_is_one_line(family, monkeypatch, capsys):
    family(*DESIGNS)
    status, out, err = run_cli(monkeypatch, capsys, "--family", "tost")
    assert (status, out) == (2, "")
    assert err == "hwsim: no family 'tost'; did you mean 'test'?\n"


ARCHITECTURES = list(dict.fromkeys(compared.architecture for _, compared in designs_of("integer")))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_design_of_the_integer_family_and_its_pe_at_one_clock(monkeypatch, tmp_path, architecture):
    """Small ones, with one mapping of a module instead of the many; prints the tables (pytest -s)."""
    few_mappings(monkeypatch, "nf", fronts=("Brent-Kung",))
    monkeypatch.setattr(yosys, "TARGETS", (100,))
    designs = [(e, small_design(c)) for e, c in designs_of("integer") if c.architecture == architecture]
    comparison = synthesised_for_real(monkeypatch, tmp_path, "integer", designs)
    assert len({row.array.equal.period_ns for row in comparison.rows}) == 1
    for row in comparison.rows:
        assert (row.pe is None) == (unit(row.unit).kind is Kind.ENCODER)
        if row.compared.style == "opt1":  # carry-save accumulation exists for the clock
            assert row.pe.fastest_ns < comparison.rows[0].pe.fastest_ns


@pytest.mark.slow
@pytest.mark.parametrize("family_name", ["lut", "shiftadd"])
def test_low_bit_designs_are_smaller_than_full_multipliers_at_equal_throughput(monkeypatch, tmp_path, family_name):
    """One architecture of each low-bit family, a quarter of its columns, with one mapping of a module."""
    few_mappings(monkeypatch, "nf", fronts=("Brent-Kung",))
    monkeypatch.setattr(yosys, "TARGETS", (100,))
    styles = {"INT8 MAC", "narrow MAC", "lutgemm" if family_name == "lut" else "ternary"}
    chosen = [p for p in designs_of(family_name) if p[1].architecture == "W2A8" and p[1].style in styles]
    designs = [(entry, quarter_design(compared)) for entry, compared in chosen]
    base, *others = synthesised_for_real(monkeypatch, tmp_path, family_name, designs).rows
    assert base.compared.style == "INT8 MAC"
    assert len(others) == 2
    assert all(row.array.best.tops_per_mm2 > base.array.best.tops_per_mm2 for row in others)


def quarter_design(compared):
    return replace(compared, params=replace(compared.params, cols=compared.params.cols // 4))


def small_design(compared):
    """The design with at most 4 rows, columns, lanes, trees or PEs an edge."""
    sizes = {field: 4 for field in ("rows", "cols", "lanes", "trees", "n") if hasattr(compared.params, field)}
    try:
        return replace(compared, params=replace(compared.params, **sizes))
    except InputError:  # a tile of as many rows
        return replace(compared, params=replace(compared.params, **sizes, tile_k=4))


def synthesised_for_real(monkeypatch, tmp_path, family_name, designs):
    """These designs compared, every figure held against the others it follows from."""
    monkeypatch.setattr(module, "designs_of", lambda _family: designs)
    comparison = compare(family_name, shape=(64, 64, 64), cache=tmp_path, workers=1)
    for title, (headings, rows) in tables(comparison).items():
        print(title, headings, *rows, sep="\n")
    records = [record(comparison, row) for row in comparison.rows]
    assert [r["style"] for r in records] == [compared.style for _, compared in designs]
    for row, r in zip(comparison.rows, records, strict=True):
        assert row.pe is None or row.pe.instances * row.pe.equal.area_um2 > 0
        assert row.array.fastest_ns <= row.array.equal.period_ns
        operations = row.run.work_per_cycle * (1 if row.compared.architecture == "encoder" else 2)
        efficiency = operations / row.array.equal.period_ns / row.array.equal.area_um2
        assert r["array_equal_tops_per_mm2"] == pytest.approx(1000 * efficiency)
        assert r["array_equal_area_efficiency_ratio"] == pytest.approx(
            r["array_equal_tops_per_mm2"] / records[0]["array_equal_tops_per_mm2"]
        )
    return comparison


FAMILIES = ("integer", "lut", "shiftadd")


def last_of_each(designs):
    """Of each unit and style."""
    return {(entry.name, compared.style): (entry, compared) for entry, compared in designs}.values()


@pytest.mark.slow
@pytest.mark.parametrize("family_name", FAMILIES)
def test_the_written_comparisons_are_of_the_present_rtl(family_name):
    """The last design of each unit and style; else: hwsim compare --family F --out docs/F."""
    written, designs = written_fingerprints(family_name), designs_of(family_name)
    assert written.keys() == {(c.architecture, c.style) for _, c in designs}
    # what stands in the document of a family before is held against the RTL there
    known = {}
    for family in FAMILIES[: FAMILIES.index(family_name)]:
        theirs = written_fingerprints(family)
        for entry, compared in last_of_each(designs_of(family)):
            known[entry.name, compared.params] = theirs[compared.architecture, compared.style]
    for entry, compared in last_of_each(designs):
        place, key = (compared.architecture, compared.style), (entry.name, compared.params)
        assert written[place] == (known.get(key) or fingerprint(verilog_of(entry, compared))), place


def written_fingerprints(family_name):
    with (Path(__file__).parent.parent / "docs" / f"{family_name}.csv").open() as file:
        return {(r["architecture"], r["style"]): r["verilog_sha256"] for r in csv.DictReader(file)}


def few_mappings(monkeypatch, *maps, fronts=("Brent-Kung", "Booth Brent-Kung")):
    monkeypatch.setattr(yosys, "FRONTS", {name: yosys.FRONTS[name] for name in fronts})
    monkeypatch.setattr(yosys, "MAPS", {name: yosys.MAPS[name] for name in maps})


@pytest.mark.slow
def test_a_family_synthesised_for_real(family, tmp_path, monkeypatch):
    """Of two MAC arrays the one with narrower weights is smaller, at the best point, at one clock, and as a PE."""
    few_mappings(monkeypatch, "nf", "amap")
    tiny = replace(SMALL, rows=2, cols=1, acc_bits=10)
    family(design("A", "mac", tiny), design("A", "narrow", replace(tiny, weight_bits=2)))
    comparison = compare("test", shape=SHAPE, cache=tmp_path)
    narrow = of(comparison, "A", "narrow")
    assert narrow["pe_module"].endswith("_pe_0")
    assert narrow["pe_instances"] == 2
    for part in ("array", "pe"):
        assert narrow[f"{part}_equal_area_ratio"] < 1
        for point in ("best", "equal"):
            assert narrow[f"{part}_{point}_area_efficiency_ratio"] > 1
    for row in comparison.rows:
        assert row.array.equal.period_ns >= row.array.fastest_ns
        assert row.array.best.tops_per_mm2 >= row.array.equal.tops_per_mm2
