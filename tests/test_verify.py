"""The bench can fail: planted faults are found, named by cycle, port and both values; bad requests are refused."""

import re
import subprocess
import sys

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib.wiring import Component, Flow

import rtl.emit
import rtl.hadamard
import rtl.lutgemm
import rtl.shiftadd
import rtl.stationary
import rtl.style
from hwsim.verify import verify
from hwsim.verify.cocotb_run import check_simulator
from hwsim.verify.ports import pack, ports_of, unpack
from hwsim.verify.verify import protocol_findings
from hwsim.verilog import check_self_contained
from models.bits import Overflow
from models.catalog import UNITS, unit
from models.unit import InputError
from rtl.emit import emit, streams

SMALL = unit("systolic").preset("small-ws")


def findings(params, **options):
    return verify(params, **{"cases": 12, "seed": 3, **options}).findings


def test_one_flipped_adder_bit_is_found_and_named(monkeypatch):
    honest = rtl.style.fit
    monkeypatch.setattr(rtl.style, "fit", lambda m, v, bits, o: (honest(m, v, bits, o) ^ 4).as_signed())
    found = findings(SMALL)
    assert re.fullmatch(r"case 0, cycle \d+, o_psum\.payload\.psum\[0\]: model -?\d+, RTL -?\d+", found[0])


@pytest.mark.parametrize("preset", ["narrow-saturate-ws", "narrow-saturate-os"])
def test_wrapping_where_saturation_is_due_is_found(monkeypatch, preset):
    monkeypatch.setattr(rtl.style, "fit", lambda _m, value, bits, _o: value[:bits].as_signed())
    assert findings(unit("systolic").preset(preset))


@pytest.mark.parametrize("preset", ["narrow-wrap-os", "wide-os", "small-os"])
def test_accumulators_that_are_wrong_only_at_their_limit_are_found(monkeypatch, preset):
    """OS sums start at zero: without operands that reach the limit, saturating or short accumulators would pass."""
    params = unit("systolic").preset(preset)
    honest = rtl.style.fit
    monkeypatch.setattr(rtl.style, "fit", lambda m, v, bits, _o: honest(m, v, bits, Overflow.SATURATE))
    assert findings(params, cases=20)
    monkeypatch.setattr(rtl.style, "fit", lambda _m, v, bits, _o: v[: bits - 1].as_signed())
    assert findings(params, cases=20)


@pytest.mark.parametrize("preset", ["default", "smallest", "randomised", "wide"])
@pytest.mark.parametrize("output", ["total", "difference"])
def test_a_dropped_carry_in_the_last_stage_is_found(monkeypatch, preset, output):
    params = unit("hadamard").preset(preset)
    honest = rtl.hadamard.Butterfly.elaborate

    def elaborate(self, platform):
        if self.width != params.out_bits - 1:
            return honest(self, platform)
        m = Module()
        m.submodules.inner = inner = rtl.hadamard.Butterfly(self.width)
        inner.elaborate = lambda p: honest(inner, p)
        m.d.comb += [inner.advance.eq(self.advance), inner.a.eq(self.a), inner.b.eq(self.b)]
        for name in ("total", "difference"):
            whole = getattr(inner, name)
            m.d.comb += getattr(self, name).eq(whole[:-1].as_signed() if name == output else whole)
        return m

    monkeypatch.setattr(rtl.hadamard.Butterfly, "elaborate", elaborate)
    assert findings(params, cases=20)


def pipeline_with(ready_rule):
    """Pipeline.elaborate with its advance replaced."""

    def elaborate(self, _platform):
        m = Module()
        m.submodules.inner = inner = rtl.stationary.Pipeline(self.latency)
        inner.elaborate = lambda p: honest(inner, p)
        m.d.comb += [
            inner.taken.eq(self.taken),
            inner.accept.eq(ready_rule(self, inner)),
            self.advance.eq(inner.advance),
            self.shown.eq(inner.shown),
            self.before.eq(inner.before),
        ]
        return m

    honest = rtl.stationary.Pipeline.elaborate
    return elaborate


class Deaf(Component):
    """A unit that takes its output as accepted in every cycle."""

    def __init__(self, inner, ports):
        self.inner, self.ports = inner, ports
        super().__init__(ports)

    def elaborate(self, _platform):
        m = Module()
        m.submodules.inner = self.inner
        for name, member in self.ports.items():
            inside, outside = getattr(self.inner, name), getattr(self, name)
            into, out_of = (inside, outside) if member.flow is Flow.In else (outside, inside)
            m.d.comb += [into.valid.eq(out_of.valid), into.payload.eq(out_of.payload)]
            m.d.comb += outside.ready.eq(inside.ready) if member.flow is Flow.In else inside.ready.eq(1)
        return m


@pytest.mark.parametrize("name", UNITS)
def test_a_ready_that_ignores_back_pressure_is_found(monkeypatch, name):
    honest = rtl.emit.component
    monkeypatch.setattr(rtl.emit, "component", lambda params: Deaf(honest(params), streams(params)))
    preset = next(preset for preset in unit(name).presets if preset != "default")
    assert findings(unit(name).preset(preset))


def test_a_ready_that_is_slower_than_it_must_be_is_found(monkeypatch):
    monkeypatch.setattr(
        rtl.stationary.Pipeline, "elaborate", pipeline_with(lambda self, inner: self.accept & ~inner.before.any())
    )
    assert findings(unit("hadamard").preset("default"))


def test_a_dropped_mirror_sign_is_found(monkeypatch):
    honest = rtl.lutgemm.read
    monkeypatch.setattr(rtl.lutgemm, "read", lambda *arguments: abs(honest(*arguments)))
    assert findings(unit("lutgemm").preset("default"))


def test_a_dropped_sign_of_a_power_of_two_term_is_found(monkeypatch):
    honest = rtl.shiftadd.Shifter._term
    monkeypatch.setattr(rtl.shiftadd.Shifter, "_term", lambda self, m, code: honest(self, m, code & ~1))
    assert findings(unit("shiftadd").preset("three-terms"))
    assert findings(unit("shiftadd").preset("column"))


def test_a_wrong_cycle_count_is_found(monkeypatch):
    """A timing that is one cycle off fails although every bit of the trace agrees."""
    module = unit("systolic").module
    honest = module.timing

    def late(params, M, K, N):
        t = honest(params, M, K, N)
        return type(t)(**{**{f: getattr(t, f) for f in t.__dataclass_fields__}, "total_cycles": t.total_cycles + 1})

    monkeypatch.setattr(module, "timing", late)
    assert re.search(r"length: timing says \d+ cycles, RTL took \d+", findings(SMALL)[0])


def test_a_wrong_golden_is_found(monkeypatch):
    module = unit("hadamard").module
    honest = module.golden
    monkeypatch.setattr(module, "golden", lambda params, X: honest(params, X) + (X.shape[0] == 1))
    assert findings(unit("hadamard").preset("default"))


FAULTS = {
    "adder bit": (r"(\$signed\(psum\) \+ \$signed\(\\\$1 \));", r"\1 ^ 33'd2;"),
    "ready": (r"assign load_ready = (\\\$\d+ ) *& \\\$\d+ ;", r"assign load_ready = \1;"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["adder bit", "ready"])
def test_a_fault_in_somebody_elses_verilog_is_found(fault):
    text = emit(SMALL, "theirs")
    pattern, replacement = FAULTS[fault]
    broken, count = re.subn(pattern, replacement, text)
    assert count == 1
    found = findings(SMALL, simulator="verilator", verilog=broken, top="theirs")
    assert ("i_weight.ready" if fault == "ready" else "o_psum.payload.psum") in found[0]


@pytest.mark.slow
def test_somebody_elses_honest_verilog_passes_and_waves_are_written(tmp_path):
    waves = tmp_path / "waves.bin"
    report = verify(SMALL, cases=3, simulator="verilator", verilog=emit(SMALL, "theirs"), top="theirs", waves=waves)
    assert report.passed
    assert waves.stat().st_size > 1000


def test_pysim_writes_waves(tmp_path):
    waves = tmp_path / "waves.vcd"
    assert verify(SMALL, cases=1, waves=waves).passed
    assert "$enddefinitions" in waves.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "verilog, top, message",
    [
        ("module theirs(input clk, input rst); endmodule", "theirs", "verilator failed|lacks the ports"),
        ("module theirs(input clk", "theirs", "verilator failed on module 'theirs': .*[Ee]rror"),
        ("module theirs; endmodule", "a b; $finish", "is no module name"),
    ],
)
def test_verilog_that_does_not_fit_is_one_message(verilog, top, message):
    with pytest.raises(InputError, match=message):
        verify(SMALL, cases=1, simulator="verilator", verilog=verilog, top=top)


@pytest.mark.slow
@pytest.mark.parametrize("simulator", ["verilator"])
def test_a_port_of_another_width_is_named(simulator):
    wider = unit("systolic").params(rows=3, cols=4, acc_bits=25)
    ports = r"module 'theirs' lacks the ports i_act__payload of 121 bits; o_psum__payload of 96 bits"
    with pytest.raises(InputError, match=ports):
        verify(SMALL, cases=1, simulator=simulator, verilog=emit(wider, "theirs"), top="theirs")


@pytest.mark.parametrize(
    "line",
    [
        'initial $system("touch x");',
        'integer f = $fopen("x", "w");',
        '`include "x.v"',
        'initial $readmemh("x", m);',
        'import "DPI-C" function int system(input string s);',
        "`define J(a, b) a``b",
        '\\name" ; initial $system("touch x"); //"',
    ],
)
def test_verilog_that_reaches_outside_itself_is_refused(line):
    text = emit(SMALL, "theirs")
    check_self_contained(text + "// $system and `include in a comment\n")
    with pytest.raises(InputError, match="reaches outside the text; give one self-contained text"):
        verify(SMALL, simulator="verilator", verilog=f"{text}\n{line}\n", top="theirs")


def test_values_are_counted_only_where_they_were_compared(monkeypatch):
    honest = rtl.style.fit
    assert verify(SMALL, cases=6).values > 0
    monkeypatch.setattr(rtl.style, "fit", lambda m, v, bits, o: (honest(m, v, bits, o) ^ 4).as_signed())
    report = verify(SMALL, cases=1)
    assert (report.values, report.passed) == (0, False)


def test_bad_requests_are_refused():
    with pytest.raises(InputError, match="no simulator 'verilater'; did you mean 'verilator'"):
        verify(SMALL, simulator="verilater")
    with pytest.raises(InputError, match="needs --simulator verilator or icarus"):
        verify(SMALL, verilog="module x; endmodule")
    with pytest.raises(InputError, match="cases must be at least 1"):
        verify(SMALL, cases=0)


def test_a_missing_tool_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(InputError, match="Verilator needs g\\+\\+"):
        check_simulator("verilator")
    with pytest.raises(InputError, match="iverilog\\) is not installed; apt-get install iverilog"):
        check_simulator("icarus")


def test_the_protocol_monitor_sees_both_ways_to_break_a_promise():
    port = next(p for p in ports_of(streams(SMALL)) if not p.is_input)
    steady = {"o_psum__valid": [0, 1, 1, 0], "o_psum__ready": [1, 0, 1, 1], "o_psum__payload": [0, 5, 5, 0]}
    assert list(protocol_findings(port, steady)) == []
    fell = {**steady, "o_psum__valid": [0, 1, 0, 0]}
    assert list(protocol_findings(port, fell)) == ["cycle 2, o_psum: valid fell before the transfer"]
    changed = {**steady, "o_psum__payload": [0, 5, 6, 0]}
    assert list(protocol_findings(port, changed)) == ["cycle 2, o_psum: payload changed before the transfer"]


@pytest.mark.parametrize("name", UNITS)
def test_pack_and_unpack_are_inverse_on_every_port(name):
    rng = np.random.default_rng(5)
    for port in ports_of(streams(unit(name).preset("default"))):
        words = [int.from_bytes(rng.bytes(port.width // 8 + 1), "little") & port.idle for _ in range(20)]
        fields = unpack(port, [*words, port.idle, 0])
        assert pack(port, fields) == [*words, port.idle, 0]
        assert all((fields[f.name][-2] == (-1 if f.signed else (1 << f.width) - 1)).all() for f in port.fields)


SAME_CASES = """
import hashlib
from hwsim.verify.ports import ports_of
from hwsim.verify.verify import _case
from models.bits import Overflow
from models.catalog import UNITS, unit
from rtl.emit import streams
u = unit("lutgemm")
p = u.preset("grouped")
cases = [_case(u, p, ports_of(streams(p)), 9, i) for i in range(4)]
print(hashlib.sha256(b"".join(v.tobytes() for case in cases for v in case.trace.values())).hexdigest())
"""


def test_one_seed_gives_the_same_cases_in_another_process():
    runs = {
        subprocess.run(
            [sys.executable, "-c", SAME_CASES],
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(runs) == 1
