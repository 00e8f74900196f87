"""Counted operations against the hardware itself: registers against the flip-flops that synthesis finds."""

import pytest

from hwsim.synth import synthesize
from models.catalog import unit
from rtl.emit import emit


def flip_flops(params, name):
    cells = synthesize(emit(params), name).cells
    return sum(count for cell, count in cells.items() if cell.startswith("DFF"))


def register_bits(counted):
    return sum(op.count * op.bits for op in counted if op.kind == "reg")


def counter_bits(most):
    """A register that counts from 0 to `most`."""
    return most.bit_length()


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HWSIM_CACHE", str(tmp_path))


@pytest.mark.slow
def test_systolic_ws_writes_every_data_register_once_a_cycle():
    p = unit("systolic").params(rows=3, cols=4, act_bits=5, weight_bits=3, acc_bits=14)
    one, two = (unit("systolic").ops(p, M=m, K=3, N=4) for m in (1, 2))  # one cycle more
    a_cycle = register_bits(two) - register_bits(one)
    loading = register_bits(one) - a_cycle * unit("systolic").timing(p, M=1, K=3, N=4).total_cycles
    control = counter_bits(p.rows) + p.rows + p.cols - 1  # beats loaded, valid bits
    assert loading == p.rows * (p.rows * p.cols * p.weight_bits)
    assert flip_flops(p, "systolic") == a_cycle + loading // p.rows + control


@pytest.mark.slow
def test_systolic_os_writes_every_data_register_once_a_cycle():
    p = unit("systolic").params(rows=3, cols=4, act_bits=5, weight_bits=3, acc_bits=14, dataflow="OS")
    one, two = (unit("systolic").ops(p, M=3, K=k, N=4) for k in (1, 2))
    a_cycle = register_bits(two) - register_bits(one)
    control = counter_bits(p.rows + p.cols - 1) + counter_bits(p.rows)  # flush and drain counters
    assert register_bits(one) == a_cycle * unit("systolic").timing(p, M=3, K=1, N=4).total_cycles
    assert flip_flops(p, "systolic") == a_cycle + control


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lutgemm", "shiftadd"])
@pytest.mark.parametrize("half", [True, False])
def test_look_up_arrays_write_every_data_register_once_a_cycle(name, half):
    p = unit(name).params(rows=2, cols=3, mu=3, act_bits=4, weight_bits=2, acc_bits=20, half_table=half)
    array = p.array
    one, two = (unit(name).ops(p, M=m, K=array.tile_k, N=3) for m in (1, 2))
    a_cycle = register_bits(two) - register_bits(one)
    loading = register_bits(one) - a_cycle * unit(name).timing(p, M=1, K=array.tile_k, N=3).total_cycles
    held = array.cols * (array.rows * array.planes * array.mu + (array.planes + 1) * p.word_bits)
    control = counter_bits(array.geometry.load_beats) + array.geometry.latency
    assert loading == array.geometry.load_beats * held
    assert flip_flops(p, name) == a_cycle + held + control


@pytest.mark.slow
def test_hadamard_writes_every_data_register_once_a_cycle():
    p = unit("hadamard").params(points=8, in_bits=5)
    cycles = unit("hadamard").timing(p, M=1, K=8).total_cycles
    assert flip_flops(p, "hadamard") == register_bits(unit("hadamard").ops(p, M=1, K=8)) / cycles + p.stages
