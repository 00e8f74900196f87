"""Machine files: what is read, and every refusal with its place."""

import contextlib
import math
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwsim.system.machine import MACHINES, Machine, Operand, Task, bytes_of, format_bits, load_machine
from hwsim.system.run import run
from hwsim.system.simulate import memory_of
from hwsim.workloads.graph import Builder, Gemm, Role
from models.unit import InputError

FILE = """\
name: m
clock_mhz: 1000
engines:
  - name: array
    unit: systolic
    set: {rows: 4, cols: 4}
scratchpads:
  - {name: in, holds: [activations, weights], kib: 1}
  - name: out
    holds: [outputs]
    kib: 1.5
    banks: 2
    word_bytes: 4
dram:
  bytes_per_cycle: 4
  latency_cycles: 3
dma: {channels: 2, setup_cycles: 1}
vector: {lanes: 4}
widths: {weights: 'int4:group=128', hidden: 16}
schedule:
  objective: cycles
  layers:
    - {match: 'a*', order: mnk, tile: [4, 4, 4]}
double_buffering: true
"""


def written(folder, text):
    path = folder / "m.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", sorted(MACHINES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_projects_machines_run_a_small_network(path):
    m = load_machine(path.stem)
    assert m == load_machine(str(path))
    assert m.name == path.stem
    b = Builder("small")
    b.vector("act", "relu", b.linear("fc", b.tensor("x", (20, 64)), 32))
    assert run(b.graph(), m).total_cycles > 0


def test_what_stands_in_the_file(tmp_path):
    m = load_machine(written(tmp_path, FILE))
    assert (m.name, m.clock_mhz, m.copies) == ("m", 1000, 2)
    assert (m.engine(Task.CONV).made.rows, m.engine(Task.CONV).made.dataflow) == (4, "WS")
    assert m.scratchpad(Operand.WEIGHTS).name == "in"
    out = m.scratchpad(Operand.OUTPUTS)
    assert (out.bytes, out.bits_per_cycle) == (1536, 64)
    assert m.scratchpad(Operand.ACTIVATIONS).bits_per_cycle is None
    assert (m.widths.weights, m.widths.hidden, m.widths.activations) == (4 + Fraction(16, 128), 16, None)
    assert (m.schedule.layers[0].order, m.schedule.layers[0].tile) == ("mnk", (4, 4, 4))
    assert (m.prefetch, m.fuse, m.attention, m.convolution) == (False, True, "unfused", "indirect")


@pytest.mark.parametrize("text, bits", [("int4", 4), ("int4:group=128", Fraction(33, 8)), ("int8", 8), ("mxfp4", 4.25)])
def test_bits_of_a_format_with_its_groups_scales(text, bits):
    assert format_bits(text) == bits


@pytest.mark.parametrize("rate", ["0.1", "3.3", "0.000001", "819.2"])
def test_the_bandwidth_is_the_number_that_stands_in_the_file(tmp_path, rate):
    m = load_machine(written(tmp_path, FILE.replace("bytes_per_cycle: 4", f"bytes_per_cycle: {rate}")))
    assert memory_of(m).bytes_per_cycle == Fraction(rate)


def test_whole_bytes():
    assert [bytes_of(3, Fraction(4)), bytes_of(8, Fraction(33, 8)), bytes_of(0, Fraction(5))] == [2, 5, 0]
    assert all(bytes_of(n, Fraction(7, 3)) == math.ceil(n * 7 / 24) for n in range(1, 200) if n * 7 % 24)


REFUSED = [
    ("rows: 4", "rows: 0", 4, r"engines\[0\]: systolic: rows must be a whole number from 1 to 256, not 0"),
    ("rows: 4", "row: 4", 4, r"engines\[0\]: systolic: no parameter 'row'; did you mean 'rows'"),
    ("cols: 4}", "cols: 4, buffers: 2}\n    convention: scalesim", 4, r"engines\[0\]: systolic: SCALE-Sim counts one"),
    ("name: array", "name: vector", 4, r"engines\[0\].name: 'vector' is the name of another unit"),
    ("[activations, weights]", "[activations]", 7, "scratchpads: weights must be held by one of them, not by 0"),
    ("[outputs]", "[outputs, weights]", 7, "scratchpads: weights must be held by one of them, not by 2"),
    ("name: in,", "name: out,", 7, "scratchpads: a name stands twice among out, out"),
    ("    word_bytes: 4\n", "", 9, r"scratchpads\[1\]: banks and word_bytes say together"),
    ("kib: 1}", "kib: 0.0001}", 8, r"scratchpads\[0\].kib: .*not 0.0001"),
    ("name: m\n", "", 1, "key 'name' is missing; needed are name, clock_mhz, engines, scratchpads"),
    ("name: m\n", "name: M x\n", 1, "name: 'M x' is not a name"),
    ("clock_mhz: 1000", "clock_mhz: 0", 2, "clock_mhz: .*greater than 0, not 0"),
    ("clock_mhz: 1000", "clock_mhz: fast", 2, "clock_mhz: .*number, not 'fast'"),
    ("clock_mhz: 1000", "clock_mhz: true", 2, "clock_mhz: .*number, not True"),
    ("clock_mhz: 1000", "clock: 1000", 2, "clock: unknown key; did you mean 'clock_mhz'"),
    ("unit: systolic", "unit: sistolic", 5, r"engines\[0\].unit: no unit 'sistolic'; did you mean 'systolic'"),
    ("unit: systolic", "unit: hadamard", 5, r"engines\[0\].unit: 'hadamard' is no GEMM engine; one of: adder_tree"),
    ("rows: 4", "rows: [1]", 6, r"engines\[0\].set: rows: a whole number"),
    ("rows: 4", "rows: 4.5", 6, r"engines\[0\].set: rows: a whole number"),
    ("{rows: 4, cols: 4}", "[4]", 6, r"engines\[0\].set: a mapping is needed"),
    ("cols: 4}", "cols: 4}\n    count: 0", 7, r"engines\[0\].count: .*not 0"),
    ("cols: 4}", "cols: 4}\n    count: 1.0", 7, r"engines\[0\].count: a whole number is needed, not 1.0"),
    ("cols: 4}", "cols: 4}\n    split: K", 7, r"engines\[0\].split: .*'M' or 'N', not 'K'"),
    ("cols: 4}", "cols: 4}\n    tasks: []", 7, r"engines\[0\].tasks: .*at least 1"),
    ("cols: 4}", "cols: 4}\n    tasks: [gemn]", 7, r"engines\[0\].tasks\[0\]: 'gemn' is unknown; did you mean 'gemm'"),
    ("cols: 4}", "cols: 4}\n    convention: scale", 7, r"engines\[0\].convention: .*'rtl' or 'scalesim', not 'scale'"),
    ("cols: 4}", "cols: 4}\n    sigma: -1", 7, r"engines\[0\].sigma: .*not -1"),
    ("[activations, weights]", "[activations, weigths]", 8, r"scratchpads\[0\].holds\[1\]: 'weigths'.*'weights'"),
    ("[activations, weights]", "[]", 8, r"scratchpads\[0\].holds: .*at least 1"),
    ("kib: 1}", "kib: 0}", 8, r"scratchpads\[0\].kib: .*not 0"),
    ("kib: 1}", "kib: -1}", 8, r"scratchpads\[0\].kib: .*not -1"),
    ("kib: 1}", "kib: .inf}", 8, "not a finite number"),
    ("banks: 2", "banks: 0", 12, r"scratchpads\[1\].banks: .*not 0"),
    ("banks: 2", "bank: 2", 12, r"scratchpads\[1\].bank: unknown key; did you mean 'banks'"),
    ("bytes_per_cycle: 4", "bytes_per_cycle: 0", 15, "dram.bytes_per_cycle: .*not 0"),
    ("latency_cycles: 3", "latency_cycles: -1", 16, "dram.latency_cycles: .*not -1"),
    ("latency_cycles: 3", "latency_cycles: 2.5", 16, "dram.latency_cycles: a whole number is needed, not 2.5"),
    ("latency_cycles: 3", "latency: 3", 16, "dram.latency: unknown key; did you mean 'latency_cycles'"),
    ("channels: 2", "channels: 0", 17, "dma.channels: .*not 0"),
    ("channels: 2", "channels: 10000000", 17, "dma.channels: .*not 10000000"),
    ("lanes: 4", "latency_cycles: 4", 18, "vector: key 'lanes' is missing"),
    ("vector: {lanes: 4}", "vector: 4", 18, "vector: a mapping is needed, not 4"),
    ("'int4:group=128'", "int44", 19, "widths.weights: no number format 'int44'; did you mean 'int4'"),
    ("'int4:group=128'", "'int4:grup=8'", 19, "widths.weights: format int4: no option 'grup'; did you mean 'group'"),
    ("'int4:group=128'", "0", 19, "widths.weights: a width of 0 bits is not above 0 and at most 64"),
    ("'int4:group=128'", "65", 19, "widths.weights: a width of 65 bits"),
    ("'int4:group=128'", "[8]", 19, "widths.weights: bits or a format is needed"),
    ("'int4:group=128'", "true", 19, "widths.weights: bits or a format is needed, not True"),
    ("objective: cycles", "objective: cycle", 21, "schedule.objective: .*'cycles', 'traffic' or 'energy', not 'cycle'"),
    ("order: mnk", "order: mmk", 23, r"schedule.layers\[0\].order: .*'knm', not 'mmk'"),
    ("tile: [4, 4, 4]", "tile: [4, 4]", 23, r"schedule.layers\[0\].tile: .*at least 3"),
    ("tile: [4, 4, 4]", "tile: [4, 4, 0]", 23, r"schedule.layers\[0\].tile\[2\]: .*not 0"),
    ("match: 'a*', ", "", 23, r"schedule.layers\[0\]: key 'match' is missing"),
    ("double_buffering: true", "double_buffering: 1", 24, "double_buffering: .*boolean, not 1"),
    ("double_buffering: true", "attention: fuse", 24, "attention: .*'fused' or 'unfused', not 'fuse'"),
    ("double_buffering: true", "convolution: direct", 24, "convolution: .*'im2col' or 'indirect', not 'direct'"),
    ("double_buffering: true", "depthwise: no", 24, "depthwise: .*'engine' or 'vector', not 'no'"),
    ("double_buffering: true", "transform: {count: 0}", 24, "transform.count: .*not 0"),
    ("double_buffering: true", "dram: {}", 24, "key 'dram' stands twice"),
]


@pytest.mark.parametrize("given, wrong, line, rule", REFUSED)
def test_a_refusal_is_one_line_with_file_line_key_and_rule(tmp_path, given, wrong, line, rule):
    assert FILE.count(given) == 1
    path = written(tmp_path, FILE.replace(given, wrong))
    with pytest.raises(InputError, match=rule) as refusal:
        load_machine(path)
    text = str(refusal.value)
    assert text.startswith(f"{path}:{line}: ")
    assert "\n" not in text
    assert len(text) < 500


def test_only_systolic_arrays_are_counted_by_scalesims_convention(tmp_path):
    wrong = "unit: lutgemm\n    convention: scalesim"
    text = FILE.replace("unit: systolic\n    set: {rows: 4, cols: 4}", wrong)
    with pytest.raises(InputError, match=r"m.yaml:4: engines\[0\]: lutgemm has no convention 'scalesim'"):
        load_machine(written(tmp_path, text))


def test_names_that_nobody_has():
    with pytest.raises(InputError, match=r"no machine 'demo16': a .yaml file, or a name; did you mean 'demo-16'"):
        load_machine("demo16")
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_machine("nowhere.yaml")


def test_a_scratchpad_too_small_for_any_tile_names_layer_and_need(tmp_path):
    m = load_machine(written(tmp_path, FILE.replace("kib: 1}", "kib: 0.015625}")))
    b = Builder("small")
    b.linear("fc", b.tensor("x", (20, 64)), 32)
    rule = "layer fc: no tile fits the scratchpads; the smallest, M=1 K=4 N=4: in has 16 bytes and would need 26, "
    with pytest.raises(InputError, match=rule):
        run(b.graph(), m)


@pytest.mark.parametrize(
    "tile, rule",
    [
        ("[4, 6, 4]", r"layer abc: tile \[4, 6, 4\]: K=6 must be all of K=64 or a multiple of 4"),
        ("[20, 64, 32]", r"layer abc: tile \[20, 64, 32\] has no room in the scratchpads"),
    ],
)
def test_a_given_tile_that_cannot_be(tmp_path, tile, rule):
    m = load_machine(written(tmp_path, FILE.replace("tile: [4, 4, 4]", f"tile: {tile}")))
    b = Builder("small")
    b.linear("abc", b.tensor("x", (20, 64)), 32)
    with pytest.raises(InputError, match=rule):
        run(b.graph(), m)


def test_a_given_schedule_is_followed(tmp_path):
    m = load_machine(written(tmp_path, FILE))
    b = Builder("small")
    b.linear("other", b.linear("abc", b.tensor("x", (20, 64)), 32), 8)
    given_, searched = run(b.graph(), m).layers
    assert (given_.order, given_.tile) == ("mnk", (4, 4, 4))
    assert searched.tile != (4, 4, 4)


def test_a_task_without_an_engine(tmp_path):
    m = load_machine(written(tmp_path, FILE.replace("cols: 4}", "cols: 4}\n    tasks: [conv]")))
    b = Builder("small")
    b.linear("fc", b.tensor("x", (20, 64)), 32)
    with pytest.raises(InputError, match="machine m: no engine takes gemm; add it to an engine's tasks"):
        run(b.graph(), m)


WORDS = st.sampled_from(
    ["0", "-1", "1e9", "null", "true", "x", "[]", "{}", "[1, 2]", "'a b'", "weights", "int4", "systolic", "1.5", "mnk"]
)


@st.composite
def mutated(draw):
    """The file with a few lines dropped, doubled, swapped, or with another value."""
    lines = FILE.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["drop", "double", "value", "indent", "item"])):
            case "drop":
                lines[at : at + 1] = []
            case "double":
                lines.insert(at, lines[at])
            case "value" if ":" in lines[at]:
                lines[at] = f"{lines[at].rsplit(':', 1)[0]}: {draw(WORDS)}"
            case "indent":
                lines[at] = f"  {lines[at]}"
            case "item":
                lines[at] = lines[at].replace("4", draw(WORDS)).replace("1", draw(WORDS))
        if not lines:
            break
    return "\n".join(lines)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=mutated())
def test_any_change_of_a_file_gives_a_machine_or_a_refusal(tmp_path, text):
    with contextlib.suppress(InputError):
        m = load_machine(written(tmp_path, text))
        assert isinstance(m, Machine)
        memory_of(m)


MODES = "{ws: {dataflow: WS}, os: {dataflow: OS}, is: {dataflow: IS}}"


def test_each_product_runs_in_the_mode_that_serves_it_best(tmp_path):
    """As fast as on the best of three machines of one dataflow each."""
    ops = {"wide": Gemm(M=2, K=64, N=96), "tall": Gemm(M=300, K=8, N=8), "deep": Gemm(M=8, K=900, N=8)}
    builder = Builder("net")
    for name, op in ops.items():
        a = builder.tensor(f"{name}.a", (op.M, op.K))
        w = builder.tensor(f"{name}.w", (op.K, op.N), Role.WEIGHT)
        builder.add(name, op, (a, w), (op.M, op.N))
    graph = builder.graph()

    def cycles(own, kib=64):
        text = FILE.replace("set: {rows: 4, cols: 4}", f"set: {{rows: 4, cols: 4}}\n    {own}")
        text = (
            text.replace("kib: 1}", f"kib: {kib}}}")
            .replace("    - {match: 'a*', order: mnk, tile: [4, 4, 4]}\n", "")
            .replace("  layers:\n", "")
        )
        result = run(graph, load_machine(written(tmp_path, text)))
        return {layer.name: (layer.cycles, layer.mode) for layer in result.layers}

    all_modes = cycles(f"modes: {MODES}")
    alone = {mode: cycles(f"modes: {{{mode}: {{dataflow: {mode.upper()}}}}}") for mode in ("ws", "os", "is")}
    for name in ops:
        best = min(figures[name][0] for figures in alone.values())
        assert all_modes[name][0] == best
        assert alone[all_modes[name][1]][name][0] == best
    assert len({mode for _, mode in all_modes.values()}) > 1
    # where K has no room as a whole, the mode that takes no partial sums is out of the question
    assert cycles(f"modes: {MODES}", kib=1)["deep"][1] != "os"


def test_a_schedule_for_no_layer_is_told(tmp_path):
    b = Builder("small")
    b.linear("fc", b.tensor("x", (8, 8)), 8)
    told = [note for note in run(b.graph(), load_machine(written(tmp_path, FILE))).notes if "schedule" in note]
    assert told == ["schedule: no product here matches 'a*'"]
    used = FILE.replace("match: 'a*'", "match: 'f*'")
    assert not any("schedule" in note for note in run(b.graph(), load_machine(written(tmp_path, used))).notes)
