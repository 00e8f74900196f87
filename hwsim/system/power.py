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
Bits = dict[Operand, Fraction]
"""kind of operand -> bits that enter and leave its scratchpad"""


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
    nodes, crossed = nest(product, tiling, engine, machine), crossed_bits(product, tiling, engine)
    return access_energy_pj(nodes, crossed, machine) | work_energy_pj(product, tiling, engine)


def work_energy_pj(product: Product, tiling: Tiling, engine: Engine) -> Energy:
    """Of the engine and of the vector unit's epilogue, without what they read and write."""
    energy = {"engine": engine_energy_pj(product, tiling, engine)}
    if product.lane_ops:
        energy["vector"] = vector_energy_pj(product.batch * product.M * product.N * product.lane_ops)
    return energy


def engine_energy_pj(product: Product, tiling: Tiling, engine: Engine) -> float:
    """Of the engine's own operations."""
    return sum(times * engine.work(shape).energy_pj for times, shape in shapes(product, tiling))


def crossed_bits(product: Product, tiling: Tiling, engine: Engine) -> Bits:
    """What crosses between the scratchpads and the engine, and what the epilogue reads beside the result."""
    total = {PAD_OF[EXTRA]: product.batch * product.M * product.N * product.extra_bits}
    for times, shape in shapes(product, tiling):
        bits = edge_bits(product, engine.work(shape).words)
        total = together(total, {kind: times * crossed for kind, crossed in bits.items()})
    return total


def moved_bits(nodes: tuple[Node, ...]) -> Bits:
    """What transfers write into the scratchpads and read from them."""
    total: Bits = {}
    for times, move in _moves(nodes):
        kind = PAD_OF[move.buffer]
        total[kind] = total.get(kind, Fraction(0)) + 8 * times * move.bytes
    return total


def _moves(nodes: tuple[Node, ...]) -> Iterator[tuple[int, Move]]:
    for times, step in steps_of(nodes):
        for move in (*step.loads, step.resume, step.store):
            if move is not None:
                yield times, move


def together(*parts: Bits) -> Bits:
    """Operand by operand."""
    return {kind: sum((part.get(kind, Fraction(0)) for part in parts), Fraction(0)) for kind in Operand}


def access_energy_pj(nodes: tuple[Node, ...], crossed: Bits, machine: Machine) -> Energy:
    """Every transfer is an access to main memory and one to a scratchpad; beside them `crossed` enters and leaves the
    scratchpads on the other side."""
    bits = together(moved_bits(nodes), crossed)
    moved = sum(times * move.bytes for times, move in _moves(nodes))
    pads = sum(float(bits[kind]) * pad_pj_per_bit(machine.scratchpad(kind)) for kind in Operand)
    return {"dram": moved * dram_pj_per_byte(machine), "scratchpads": pads}


def vector_energy_pj(lane_ops: int | Fraction) -> float:
    return float(lane_ops) * LANE_PJ
