"""The area-delay curve: what the many mappings compute, clock targets, the climb from small to fast."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import random
import sys
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from hwsim.cli import main
from hwsim.synth import SynthResult, area_delay_curve, curve, library, pe_module, synthesize, yosys
from hwsim.synth.liberty import evaluate
from models.unit import InputError

SG13G2 = Path(__file__).resolve().parents[2] / "shared" / "pdk" / "sg13g2_stdcell_typ_1p20V_25C.lib"
needs_sg13g2 = pytest.mark.skipif(not SG13G2.exists(), reason="the SG13G2 Liberty file is not here")

PE = """
module pe(input clk, input en, input signed [3:0] a, input signed [3:0] w, input signed [11:0] p,
          output reg signed [3:0] ao, output reg signed [11:0] po);
  always @(posedge clk) if (en) begin ao <= a; po <= p + a * w; end
endmodule
"""
NOTHING = SynthResult(
    area_um2=1.0,
    gate_equivalents=1.0,
    delay_ns=1.0,
    critical_path=(),
    cells={},
    modules=(),
    multiplier="none",
    flows={},
    library="",
    tools={},
)
MAC = """
module mac(input signed [4:0] a, input signed [4:0] w, input signed [11:0] p, output signed [11:0] y);
  assign y = p + a * w;
endmodule
"""
SUMS = """
module sums(input [5:0] a, input [5:0] b, input [5:0] c, input [5:0] d, output [7:0] y);
  assign y = (a + b) + (c - d);
endmodule
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("synth-cache")


def computed(module, lib, values):
    """Output words of a combinational netlist for each input word, from the cells' Liberty functions alone."""
    nets = {}
    for port, words in values.items():
        for i, bit in enumerate(module["ports"][port]["bits"]):
            nets[bit] = [word >> i & 1 for word in words]
    length = len(next(iter(values.values())))
    tables = {"0": [0] * length, "1": [1] * length, "x": [0] * length}
    cells = {c["connections"][next(iter(lib.cells[c["type"]].functions))][0]: c for c in module["cells"].values()}
    for net in TopologicalSorter(
        {n: [p for p in drivers(c, lib) if p in cells] for n, c in cells.items()}
    ).static_order():
        kind = lib.cells[cells[net]["type"]]
        ((_, function),) = kind.functions.items()
        pins = {pin: cells[net]["connections"][pin][0] for pin in kind.caps}
        rows = zip(*(nets.get(bit) or tables[bit] for bit in pins.values()), strict=True)
        nets[net] = [truth(function, tuple(pins), row) for row in rows]
    bits = [nets.get(bit) or tables[bit] for bit in module["ports"]["y"]["bits"]]
    return [sum(bit << i for i, bit in enumerate(word)) for word in zip(*bits, strict=True)]


def drivers(cell, lib):
    return [cell["connections"][pin][0] for pin in lib.cells[cell["type"]].caps]


@functools.cache
def truth(function, pins, row):
    return evaluate(function, dict(zip(pins, row, strict=True)), "test")


def signed(x, bits):
    return x - (x >> (bits - 1) << bits)


def mac(a, w, p):
    return (signed(p, 12) + signed(a, 5) * signed(w, 5)) & 0xFFF


def check_mappings(candidates, widths, meant):
    """Every candidate gives `meant` of corner and random words; a changed gate does not."""
    lib = library.builtin()
    rng = random.Random(3)
    words = {name: [0, (1 << bits) - 1, 1 << (bits - 1)] for name, bits in widths.items()}
    words = {name: corners + [rng.randrange(1 << widths[name]) for _ in range(100)] for name, corners in words.items()}
    wanted = [meant(*each) for each in zip(*words.values(), strict=True)]
    assert len({candidate.flow.split(",")[0] for candidate in candidates}) > 1
    for candidate in candidates:
        assert computed(candidate.netlist, lib, words) == wanted, candidate.flow
    broken = copy.deepcopy(candidates[0].netlist)
    gate = next(c for c in broken["cells"].values() if c["type"].startswith(("XOR2_X", "XNOR2_X")))
    gate["type"] = gate["type"].replace("XNOR", "XOR") if "XNOR" in gate["type"] else gate["type"].replace("X", "XN", 1)
    assert computed(broken, lib, words) != wanted


@pytest.fixture(scope="module")
def mac_candidates():
    return yosys.candidates(MAC, "mac", library.builtin().text, 120)["mac"]


@pytest.mark.slow
def test_every_mapping_of_a_mac_computes_what_its_verilog_says(mac_candidates):
    assert {candidate.multiplier for candidate in mac_candidates} == {"array", "Booth"}
    check_mappings(mac_candidates, {"a": 5, "w": 5, "p": 12}, mac)


@pytest.mark.slow
def test_every_mapping_of_a_sum_computes_what_its_verilog_says():
    found = yosys.candidates(SUMS, "sums", library.builtin().text, 120)["sums"]
    assert {candidate.multiplier for candidate in found} == {"none"}
    check_mappings(found, dict.fromkeys("abcd", 6), lambda a, b, c, d: (a + b + c - d) & 0xFF)


def check_curve(results):
    """At least three netlists, each larger one faster, and the ends well apart."""
    assert len(results) >= 3
    for fast, slow in itertools.pairwise(results):
        assert fast.delay_ns < slow.delay_ns
        assert fast.area_um2 > slow.area_um2
    assert results[-1].delay_ns > 1.2 * results[0].delay_ns
    assert results[-1].area_um2 < 0.9 * results[0].area_um2


@pytest.fixture(scope="module")
def pe_curve(folder):
    return area_delay_curve(PE, "pe", points=None, cache=folder)


@pytest.mark.slow
def test_area_falls_as_the_clock_relaxes(pe_curve, folder):
    check_curve(pe_curve)
    usual = area_delay_curve(PE, "pe", cache=folder)
    assert {r.delay_ns: r.area_um2 for r in usual}.items() <= {r.delay_ns: r.area_um2 for r in pe_curve}.items()
    assert usual[0].delay_ns == usual[0].target_ns == pe_curve[0].delay_ns
    for fast, slow in itertools.pairwise(usual):
        assert (fast.target_ns, slow.area_um2) < (slow.target_ns, fast.area_um2)
    assert all(result.met for result in usual)


@pytest.mark.slow
def test_a_curve_whose_targets_are_ignored_is_found_out(monkeypatch, tmp_path):
    monkeypatch.setattr(yosys, "FRONTS", {"Brent-Kung": yosys.FRONTS["Brent-Kung"]})
    monkeypatch.setattr(yosys, "MAPS", {"nf": yosys.MAPS["nf"]})
    monkeypatch.setattr(yosys, "TARGETS", (1e-3,))
    with pytest.raises(AssertionError):
        check_curve(area_delay_curve(PE, "pe", points=None, cache=tmp_path))


@pytest.mark.slow
def test_abc_gives_smaller_and_slower_gates_for_a_relaxed_delay(mac_candidates):
    found = mac_candidates
    by_flow = {tuple(candidate.flow.split(", ")): candidate for candidate in found}
    sized = [(key, by_flow[key[:2]]) for key in by_flow if len(key) == 3 and key[:2] in by_flow]
    assert sized
    for key, fastest in sized:
        assert by_flow[key].area < fastest.area
        assert fastest.delay < by_flow[key].delay


@pytest.mark.slow
def test_a_target_gives_the_smallest_netlist_that_meets_it(pe_curve, folder):
    fastest, slowest = pe_curve[0], pe_curve[-1]
    between = (fastest.delay_ns + slowest.delay_ns) / 2
    result = synthesize(PE, "pe", clock_ns=between, cache=folder)
    assert result.met
    assert result.target_ns == between
    assert result.delay_ns <= between
    assert result.area_um2 == min(r.area_um2 for r in pe_curve if r.delay_ns <= between)
    assert slowest.area_um2 < result.area_um2 < fastest.area_um2
    unmet = synthesize(PE, "pe", clock_ns=fastest.delay_ns / 2, cache=folder)
    assert not unmet.met
    assert (unmet.delay_ns, unmet.area_um2) == (fastest.delay_ns, fastest.area_um2)
    relaxed = synthesize(PE, "pe", clock_ns=10 * slowest.delay_ns, cache=folder)
    assert (relaxed.met, relaxed.area_um2) == (True, slowest.area_um2)


@pytest.mark.slow
def test_the_curve_is_at_least_as_good_as_mapping_for_speed(pe_curve, folder):
    plain = synthesize(PE, "pe", cache=folder)
    assert min(r.area_um2 * r.delay_ns for r in pe_curve) <= plain.area_um2 * plain.delay_ns
    assert plain.met
    assert plain.target_ns is None


@pytest.mark.slow
def test_one_cache_entry_serves_all_targets_and_none_of_them_the_usual_result(pe_curve, folder, monkeypatch):
    usual = synthesize(PE, "pe", cache=folder)

    def never(*_):
        raise AssertionError("synthesised again")

    monkeypatch.setattr(yosys, "candidates", never)
    monkeypatch.setattr(yosys, "mapped_netlists", never)
    at = [pe_curve[0].delay_ns, pe_curve[-1].delay_ns]
    areas = [synthesize(PE, "pe", clock_ns=clock, cache=folder).area_um2 for clock in at]
    assert areas == [pe_curve[0].area_um2, pe_curve[-1].area_um2]
    assert synthesize(PE, "pe", cache=folder) == usual
    with pytest.raises(AssertionError, match="again"):
        synthesize(PE + "// other", "pe", clock_ns=1.0, cache=folder)


@pytest.mark.parametrize("clock", [0, -1.0, float("nan"), float("inf"), "1.5", True, 1e9])
def test_a_clock_that_is_no_period_is_refused_before_anything_runs(folder, monkeypatch, clock):
    monkeypatch.setattr(yosys, "candidates", lambda *_: pytest.fail("ran"))
    with pytest.raises(InputError, match=r"^clock_ns: .* must be a number of ns above 0 and at most 1e\+06"):
        synthesize(PE, "pe", clock_ns=clock, cache=folder)


@pytest.mark.parametrize("points", [(0.5,), (1.0, float("nan")), ("2",), ()])
def test_points_that_are_no_multiples_are_refused(folder, points):
    with pytest.raises(InputError, match="points: "):
        area_delay_curve(PE, "pe", points=points, cache=folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "body, cells",
    [
        ("always @(posedge clk) q <= d;", {"DFF_X1": 4}),
        ("wire [3:0] x = d ^ 5; always @(posedge clk) q <= (x ^ d) ^ {d[0] & ~d[0], 3'd0};", {"DFF_X1": 4}),
        ("always @(posedge clk) q <= {4{^d}} & {d[2:0], 1'b1};", None),
    ],
    ids=["registers", "constants", "no-sum"],
)
def test_designs_without_a_sum_have_a_curve(tmp_path, body, cells):
    verilog = f"module top(input clk, input [3:0] d, output reg [3:0] q); {body} endmodule"
    results = area_delay_curve(verilog, "top", points=None, cache=tmp_path)
    assert {result.multiplier for result in results} == {"none"}
    assert cells is None or {k: v for k, v in results[-1].cells.items() if "DFF" in k}.keys() == cells.keys()


@pytest.mark.slow
def test_only_what_is_critical_gets_faster(tmp_path):
    """Two modules side by side, one with far the longer path: the other keeps its smallest netlist."""
    verilog = """
module slow(input clk, input [7:0] d, output reg [7:0] q); always @(posedge clk) q <= d * d + 8'd77; endmodule
module quick(input clk, input [7:0] d, output reg [7:0] q); always @(posedge clk) q <= d + 8'd77; endmodule
module top(input clk, input [7:0] d, output [7:0] q, output [7:0] r);
  reg [7:0] x; always @(posedge clk) x <= d;
  slow one(.clk(clk), .d(x), .q(q)); quick two(.clk(clk), .d(x), .q(r));
endmodule"""
    results = area_delay_curve(verilog, "top", points=None, cache=tmp_path)
    assert len({result.flows["slow"] for result in results}) > 2
    assert len({result.flows["quick"] for result in results}) == 1
    own = {name: {area for n, _, area in r.modules if n == name} for r in results for name in ("quick",)}
    assert len(own["quick"]) == 1


def test_a_ladder_skips_steps_that_are_too_small_to_matter():
    def candidate(delay, area):
        return yosys.Candidate(flow="", multiplier="none", area=area, delay=delay, netlist={})

    found = [candidate(d, a) for d, a in [(100, 50), (101, 49), (120, 40), (200, 30), (198, 31)]]
    assert [c.delay for c in curve.ladder(found)] == [200, 120, 101, 100]
    assert [c.delay for c in curve.ladder(found[:1])] == [100]


@pytest.mark.slow
def test_names_of_modules_never_reach_yosys(tmp_path):
    verilog = "module \\a;b%n (input x, output y); assign y = ~x; endmodule\n"
    verilog += "module top(input x, output y); \\a;b%n one(.x(x), .y(y)); endmodule\n"
    results = area_delay_curve(verilog, "top", points=None, cache=tmp_path)
    assert [name for name, _, _ in results[0].modules] == ["a;b%n", "top"]


@pytest.mark.slow
def test_an_error_of_yosys_in_the_many_mappings_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="missing"):
        area_delay_curve("module top(input a, output y); missing m(a, y); endmodule", "top", cache=tmp_path)


@pytest.mark.slow
@needs_sg13g2
def test_the_curve_of_a_real_library(tmp_path, monkeypatch):
    monkeypatch.setattr(yosys, "FRONTS", {name: yosys.FRONTS[name] for name in ("Brent-Kung", "Booth Brent-Kung")})
    results = area_delay_curve(PE, "pe", points=None, liberty=SG13G2, cache=tmp_path)
    check_curve(results)
    assert all(name.startswith("sg13g2_") for name in results[0].cells)


def test_the_repeated_element_is_the_largest_module_named_as_one():
    def having(*modules):
        return pe_module(replace(NOTHING, modules=modules))

    assert having(("a_pe_0", 4, 10.0), ("a_pe_1", 1, 12.0), ("top_pe", 1, 90.0), ("pe_control", 1, 99.0)) == "a_pe_1"
    assert having(("top", 1, 5.0)) is None


@pytest.fixture
def hwsim(monkeypatch, capsys, tmp_path):
    """Run `hwsim synth` of a small unit with few mappings: (exit code, standard output, standard error)."""
    monkeypatch.setattr(yosys, "FRONTS", {"Brent-Kung": yosys.FRONTS["Brent-Kung"]})
    monkeypatch.setenv("HWSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["hwsim", "synth", "hadamard", "points=4", "in_bits=4", *map(str, argv)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        return end.value.code or 0, shown.out, shown.err

    return run


@pytest.mark.slow
def test_the_command_shows_curve_picture_and_target(hwsim, tmp_path):
    picture = tmp_path / "curve.svg"
    status, out, _ = hwsim("--curve", "--picture", picture, "--json")
    points = json.loads(out)["curve"]
    assert status == 0
    areas = [point["area_um2"] for point in points]
    assert len(areas) > 1
    assert areas == sorted(areas, reverse=True)
    drawn = picture.read_bytes()
    assert drawn.startswith(b"<svg ")
    table = hwsim("--curve", "--picture", picture)[1]
    assert all(f"{area:,.1f}" in table for area in areas)
    assert picture.read_bytes() == drawn
    assert "10 ns" in hwsim("--clock-ns", 10)[1]
    assert json.loads(hwsim("--clock-ns", 10, "--json")[1])["met"] is True
    assert "not met: the fastest netlist" in hwsim("--clock-ns", "0.01")[1]
    picture.write_text("something else")
    assert hwsim("--picture", picture)[2] == f"hwsim: {picture}: exists and is no SVG picture; name another file\n"
    assert picture.read_text() == "something else"


@pytest.mark.parametrize(
    "argv, message",
    [
        (("--clock-ns", "0"), "clock_ns: 0.0 must be a number of ns above 0"),
        (("--clock-ns", "nan"), "clock_ns: nan must be a number of ns above 0"),
        (("--clock-ns=-1",), "clock_ns: -1.0 must be a number of ns above 0"),
        (("--clock-ns", "1", "--curve"), "--curve takes its own clocks; leave --clock-ns out"),
    ],
)
def test_a_mistake_at_the_command_line_is_one_line(hwsim, argv, message):
    status, out, err = hwsim(*argv)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_clock_that_is_a_word_ends_with_2(hwsim):
    status, out, err = hwsim("--clock-ns", "fast")
    assert (status, out) == (2, "")
    assert "--clock-ns" in err
