"""Energy of what a machine does, by component: engine, vector unit, transform, quantizer, scratchpads, main memory.

Counted accesses and operations times the published energies of `hwsim.energy`. No wires, no clock, no leakage, no
refresh. A bit of a scratchpad costs what a memory of one bank's size does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction

from hwsim.energy import DRAM_PJ_PER_BIT, LANE_PJ, sram_pj_per_bit
from hwsim.system.engines import Engine, Shape
from hwsim.system.machine import Machine, Operand, ScratchpadSpec
from hwsim.system.program import EXTRA, Move, Node, steps_of
from hwsim.system.simulate import PAD_OF
from hwsim.system.tiling import Product, Tiling, edge_bits, nest

Energy = dict[str, float]
"""component -> pJ"""


def dram_pj_per_byte(machine: Machine) -> float:
    own = machine.dram.pj_per_bit
    return 8 * (DRAM_PJ_PER_BIT if own is None else own)


def pad_pj_per_bit(pad: ScratchpadSpec) -> float:
    return sram_pj_per_bit(pad.bytes / (pad.banks or 1))


def shapes(product: Product, tiling: Tiling) -> Iterator[tuple[int, Shape]]:
    """(how many, M K N) of the tiles of all products of the batch."""
    sizes = (product.M, product.K, product.N)
    cuts = []
    for size, tile in zip(sizes, tiling.tile, strict=True):
        count = -(-size // tile)
        cuts.append([(count - 1, tile), (1, size - (count - 1) * tile)])
    for (a, m), (b, k), (c, n) in itertools.product(*cuts):
        if a * b * c:
            yield product.batch * a * b * c, (m, k, n)


def product_energy_pj(product: Product, tiling: Tiling, engine: Engine, machine: Machine) -> Energy:
    """Of a product in that tiling."""
    energy = moves_energy_pj(nest(product, tiling, engine, machine), machine)
    energy["engine"] = 0.0
    for times, shape in shapes(product, tiling):
        work = engine.work(shape)
        energy["engine"] += times * work.energy_pj
        energy["scratchpads"] += times * edge_energy_pj(machine, product, work.words)
    outputs = product.batch * product.M * product.N
    if product.lane_ops:
        energy["vector"] = vector_energy_pj(outputs * product.lane_ops)
    # what the epilogue reads beside the result
    energy["scratchpads"] += float(outputs * product.extra_bits) * pad_pj_per_bit(machine.scratchpad(PAD_OF[EXTRA]))
    return energy


def edge_energy_pj(machine: Machine, product: Product, words: dict[str, int]) -> float:
    """What crosses between the scratchpads and the engine."""
    bits = edge_bits(product, words)
    return sum(float(bits[kind]) * pad_pj_per_bit(machine.scratchpad(kind)) for kind in Operand)


def moves_energy_pj(nodes: tuple[Node, ...], machine: Machine) -> Energy:
    """Every transfer is an access to main memory and one to a scratchpad."""
    energy = {"dram": 0.0, "scratchpads": 0.0}
    for times, step in steps_of(nodes):
        for move in (*step.loads, step.resume, step.store):
            if move is not None:
                energy["dram"] += times * move.bytes * dram_pj_per_byte(machine)
                energy["scratchpads"] += times * _pad_pj(machine, move)
    return energy


def _pad_pj(machine: Machine, move: Move) -> float:
    return 8 * move.bytes * pad_pj_per_bit(machine.scratchpad(PAD_OF[move.buffer]))


def stream_pad_pj(machine: Machine, in_bits: Fraction, out_bits: Fraction) -> float:
    """A unit reads what was brought and writes what leaves."""
    acts, outs = machine.scratchpad(Operand.ACTIVATIONS), machine.scratchpad(Operand.OUTPUTS)
    return float(in_bits) * pad_pj_per_bit(acts) + float(out_bits) * pad_pj_per_bit(outs)


def vector_energy_pj(lane_ops: int | Fraction) -> float:
    return float(lane_ops) * LANE_PJ
