"""Which Hadamard matrix fits a number of channels."""

from __future__ import annotations

from hwsim.transforms.fwht import has_hadamard
from models.unit import require

MOST_BLOCK = 64
"""points of the blocks that a transform chooses by itself"""


def block_points(group: str, K: int, points: int | None = None) -> int:
    """`points`, or the largest power of two up to MOST_BLOCK that divides K; InputError where neither divides it."""
    if points is not None:
        require(K % points == 0, f"hadamard: {group} has {K} channels, no multiple of points={points}")
        return points
    size = min(K & -K, MOST_BLOCK)
    require(size > 1, f"hadamard: no Hadamard order divides the {K} channels of {group}; pad the layer or leave it out")
    return size


def full_points(group: str, K: int) -> int:
    """The largest Hadamard order that divides K: K itself wherever it is one; InputError where K is odd."""
    require(
        K % 2 == 0, f"hadamard: no Hadamard order divides the {K} channels of {group}; pad the layer or leave it out"
    )
    return next(K // d for d in range(1, K) if K % d == 0 and has_hadamard(K // d))
