"""Machines that come with the project, and docs/system.md, which is computed on them."""

import csv
import importlib.util
import re
from itertools import pairwise
from pathlib import Path

import pytest

from hwsim.system.engines import engine_of
from hwsim.system.machine import MACHINES, Operand, ScheduleSpec, load_machine
from hwsim.system.run import run
from hwsim.system.simulate import memory_of
from hwsim.workloads import load_workload
from models.unit import InputError

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in MACHINES.glob("*.yaml"))
NO_VECTOR_UNIT = {"scalesim-32"}


def peak(name):
    return sum(engine_of(spec).peak_per_cycle for spec in load_machine(name).engines)


@pytest.fixture(scope="module")
def document():
    spec = importlib.util.spec_from_file_location("system", ROOT / "docs" / "system.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "system.md").read_text()


# ------------------------------------------------------------------------------------------------ machines


@pytest.mark.parametrize("name", NAMES)
def test_a_machine_loads_under_its_own_name_and_says_what_it_is(name):
    assert load_machine(name).name == name
    assert (MACHINES / f"{name}.yaml").read_text().startswith("# ")


def test_a_machine_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(InputError, match=r"no machine 'mxu-12': .*'mxu-128'"):
        load_machine("mxu-12")


NETWORKS = {
    "resnet18": {},
    "llama-2-7b": {"phase": "decode", "context": 512},
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", NAMES)
def test_a_machine_runs_networks(name, network):
    """By least traffic, whose search is quick; `run` itself checks that nothing is lost."""
    graph = load_workload(network, **NETWORKS[network])
    machine = load_machine(name).model_copy(update={"schedule": ScheduleSpec(objective="traffic")})
    result = run(graph, machine)
    assert result.macs == graph.macs
    assert result.total_cycles >= graph.macs / peak(name)
    assert any("left out" in note and "vector" in note for note in result.notes) == (name in NO_VECTOR_UNIT)


def test_tpu_v1_has_the_papers_figures():
    """Jouppi et al. 2017: 92 TOPS at 700 MHz, 34 GB/s, 1350 operations for a byte of weights, 28 MiB on chip."""
    machine = load_machine("tpu-v1")
    assert round(2 * peak("tpu-v1") * machine.clock_mhz / 1e6) == 92
    assert round(machine.dram.bytes_per_cycle * machine.clock_mhz / 1e3) == 34
    assert peak("tpu-v1") / machine.dram.bytes_per_cycle == pytest.approx(1350, abs=5)
    sizes = [machine.scratchpad(kind).bytes for kind in (Operand.ACTIVATIONS, Operand.OUTPUTS)]
    assert sizes == [24 << 20, 4096 * 256 * 4]
    assert machine.scratchpad(Operand.WEIGHTS).bytes == 4 * 256 * 256


def test_gemmini_16_has_the_published_configuration():
    machine = load_machine("gemmini-16")
    assert peak("gemmini-16") == 16 * 16
    assert machine.scratchpad(Operand.WEIGHTS) is machine.scratchpad(Operand.ACTIVATIONS)
    assert [machine.scratchpad(kind).bytes for kind in (Operand.WEIGHTS, Operand.OUTPUTS)] == [256 << 10, 64 << 10]
    assert memory_of(machine).bytes_per_cycle == 128 // 8


def test_lut_w4_is_mxu_128_with_other_engines_of_the_same_peak():
    tables, multipliers = load_machine("lut-w4"), load_machine("mxu-128")
    assert peak("lut-w4") == peak("mxu-128") == 128 * 128
    differ = {name for name in type(tables).model_fields if getattr(tables, name) != getattr(multipliers, name)}
    assert differ == {"name", "engines", "widths"}
    params = tables.engines[0].made
    scale_words = params.weight_bits + 1
    assert tables.widths.weights == params.weight_bits + scale_words * params.scale_bits / params.group_size


# ------------------------------------------------------------------------------------------------ docs/system.md


def scalesim_cycles():
    """(M, K, N) -> cycles of WS, OS and IS on an array of 8 x 8, as SCALE-Sim reports them."""
    data = ROOT / "tests" / "data" / "scalesim"
    lines = (data / "cycles.csv").read_text().splitlines()[1:]
    rows = [row for row in csv.DictReader(lines) if (row["topology"], row["rows"], row["cols"]) == ("gemm", "8", "8")]
    found = {(row["layer"], row["dataflow"]): int(row["Total Cycles"]) for row in rows}
    shapes = csv.DictReader((data / "gemm.csv").read_text().splitlines())
    return {
        tuple(int(layer[name]) for name in "MKN"): [found[layer["Layer"], flow] for flow in ("ws", "os", "is")]
        for layer in shapes
    }


def test_cycles_by_scalesims_convention_are_scalesims(document):
    theirs = scalesim_cycles()
    for shape in document.SHAPES:
        figures = document.array_cycles(shape)
        assert figures[::2] == theirs[shape]
        m, _, n = shape
        folds = -(-m // 8) * -(-n // 8)
        differences = [ours - scalesim for scalesim, ours in zip(figures[::2], figures[1::2], strict=True)]
        assert differences == [2, 9 * folds + 1, 2]


def test_the_page_has_the_tables_that_its_script_computes(document, page):
    assert document.scalesim_lines() in page
    size_rows = [document.cost_row(*case) for case in (*document.cases()[0], *document.UNEVEN)]
    rows = [
        *size_rows,
        document.objective_row(document.LAYERS[1], "traffic"),
        document.cache_row(1, "4"),
        document.network_row("one token"),
        document.transform_row("decode", document.UNITS[1]),
    ]
    for row in rows:
        assert document.table([row]) in page


def test_every_blank_of_the_page_is_filled(page):
    assert not re.findall(r"[{}]", page)
    widths = [line.count("|") for line in page.splitlines()]
    for before, after in pairwise(widths):
        assert before == after or 0 in (before, after)


def test_simulated_steps_follow_distinct_tiles_and_not_products(document):
    by_size, by_tiles = document.cases()
    assert len({document.cost_row(*case)[-1] for case in by_size}) == 1
    assert document.cost_row(*by_tiles[2])[-1] == document.cost_row(*by_tiles[-1])[-1]
    (few, _), (many, _) = [document.cost_row(*case)[-2:] for case in (by_size[0], document.UNEVEN[0])]
    assert (few, many) == (1, 8)


def test_the_rule_for_transforms_is_near_the_simulation(document):
    """Where units set the pace: what they add to a prefill is within a tenth of the rule."""
    units = document.UNITS[4]
    result, plain = document.transformed("prefill", units), document.plain("prefill")
    slower = min(units.transform_rate, units.quantizer_rate)
    rule = document.transformed_values(result) / slower / plain.total_cycles
    assert document.added("prefill", units) == pytest.approx(rule, rel=0.1)


def test_shiftadd_and_look_up_tables_take_the_same_cycles(document):
    tables, shifts = (
        next(c for c in document.CHOICES if (c.unit, c.bits) == (unit, 3)) for unit in ("lutgemm", "shiftadd")
    )
    graph = document.decode(1)
    cycles = [run(graph, document.decoder(choice, 64.0)).total_cycles for choice in (tables, shifts)]
    assert cycles[0] == cycles[1]


def test_the_picture_is_there(document):
    text = document.PICTURE.read_text()
    assert text.startswith("<svg")
    assert all(word in text for word in (document.SKIPPED, document.ALL, "seconds (measured)", "steps gone through"))
