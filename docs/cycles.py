"""Writes docs/cycles.md: our cycle counts beside SCALE-Sim's, computed by `models/systolic.py`.

Run: python docs/cycles.py > docs/cycles.md
"""

import numpy as np

from hwsim.simulate import normal_integers
from models.catalog import unit
from models.sparse import authors_cycles

SHAPES = ((512, 512, 512), (1, 4096, 4096), (128, 768, 3072), (16, 16, 16), (100, 100, 100))
ARRAYS = ((16, 16), (32, 32), (128, 128))

TEXT = """# Cycle counts, ours and SCALE-Sim's

Cycle 0 is the first in which an input beat is transferred; a total counts up to and including the cycle of the last
output beat. Counts are compute only: nothing stalls, and memory is not modelled here. Every count of ours is that of
our RTL: `hwsim verify systolic` holds them equal in every cycle.

`timing(params, M, K, N, convention="scalesim")`, and `hwsim gemm systolic --convention scalesim`, give the counts of
SCALE-Sim for an array of R rows and C columns, folds one after another and partial folds padded:

| dataflow | SCALE-Sim | ours (RTL) | difference |
| --- | --- | --- | --- |
| WS | ceil(K/R) ceil(N/C) (M + 2R + C - 2) - 1 | ceil(K/R) ceil(N/C) (M + 2R + C - 2) + 1 | + 2 |
| IS | ceil(K/R) ceil(M/C) (N + 2R + C - 2) - 1 | ceil(K/R) ceil(M/C) (N + 2R + C - 2) + 1 | + 2 |
| OS | ceil(M/R) ceil(N/C) (K + R + C - 2) - 1 | ceil(M/R) ceil(N/C) (K + 2R + C - 1) | + (R + 1) folds + 1 |

**WS.** A fold takes the same cycles in both: R to load the weights, M to stream the activations, R + C - 2 until the
last of them has met the last PE. SCALE-Sim then takes one cycle off the whole run; ours needs one more after the last
fold, in which the output register shows the last row of results. (After any other fold that cycle is hidden: the next
weights are taken in it.) **IS** is WS with the operands' roles exchanged.

**OS.** Both stream K operands and wait R + C - 2 cycles for the skewed wavefront to reach the last PE. Then the sums of
a tile must leave: through the columns, one row a cycle, R cycles. SCALE-Sim does not count them, and again takes one
cycle off the whole run: its outputs leave before their last operand has entered. Ours needs one cycle more a fold, in
the registers at the array's edge in which idle operands become zero: without them the handshake would stand in the
PEs' path and set the clock.

**Two buffers** (`buffers=2`, WS and IS). A PE holds two tiles; the next one is loaded under the present one. With M
activations a fold, F folds take R + M + L cycles for the first and the last part, and between them the longer of
(F - 1) max(M, R) and floor((F - 1)/2) (R + M + L - 1), with one max(M, R) more where F - 1 is odd: a buffer is loaded
again only when its tile's last activation has left the array (latency L = R + C - 1). From M = 2R + C - 2 on, nothing
but activations is left. Where K is folded and M is less than L + 1, folds are filled up to L + 1 activations, since
their partial sums come from the fold before.

The table is written by `python docs/cycles.py > docs/cycles.md`; a test holds it against the code.

| array | M | K | N | {columns} |
| --- | --- | --- | --- | {rules} |
"""

SPARSE = """
# Engines whose cycles depend on digits

`opt3` and `opt4c` take a cycle for each EN-T digit that is not zero, and one for a group of four digits that are all
zero. For a row of A the authors' RTL takes, besides, a cycle for each bit-weight, in which the sum is shifted: four for
INT8. Ours shifts in the first step of the next bit-weight instead, and takes one cycle for each K fold, in which the
column turns to its next row; so it is ahead where K is less than four folds, and a little behind where it is more.

Mean cycles of a column for one row of A, activations round(N(0, {sigma}^2)) clipped to INT8, {rows} rows, seed 0:

| K | tile_k | folds | steps | authors' | ours |
| --- | --- | --- | --- | --- | --- |
"""
SPARSE_ROWS, SPARSE_SIGMA = 256, 30

COLUMNS = {
    "WS": {"dataflow": "WS"},
    "WS SCALE-Sim": {"dataflow": "WS", "convention": "scalesim"},
    "WS, two buffers": {"dataflow": "WS", "buffers": 2},
    "IS": {"dataflow": "IS"},
    "IS SCALE-Sim": {"dataflow": "IS", "convention": "scalesim"},
    "IS, two buffers": {"dataflow": "IS", "buffers": 2},
    "OS": {"dataflow": "OS"},
    "OS SCALE-Sim": {"dataflow": "OS", "convention": "scalesim"},
}


def page() -> str:
    """The whole document."""
    head = TEXT.format(columns=" | ".join(COLUMNS), rules=" | ".join("---" for _ in COLUMNS))
    sparse = SPARSE.format(sigma=SPARSE_SIGMA, rows=SPARSE_ROWS)
    return head + _lines(rows()) + sparse + _lines(sparse_rows())


def _lines(rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def sparse_rows() -> list[list[str]]:
    """One row for each length of K and tile."""
    rng = np.random.default_rng(0)
    found = []
    for k in (16, 64, 256, 1024, 4096):
        a = normal_integers(rng, (SPARSE_ROWS, k), SPARSE_SIGMA, 8)
        for tile_k in (16, 64):
            params = unit("opt4c").params(tile_k=tile_k)
            steps = unit("opt4c").shape_of(params, a, np.zeros((k, 1), dtype=int))["steps"]
            theirs, ours = authors_cycles(params, steps).mean(), (steps + 1).sum(axis=1).mean()
            figures = (steps.sum(axis=1).mean(), theirs, ours)
            found.append([str(k), str(tile_k), str(steps.shape[1]), *(f"{figure:,.1f}" for figure in figures)])
    return found


def rows() -> list[list[str]]:
    """One row for each array and shape."""
    return [
        [f"{r} x {c}", *map(str, shape), *(f"{cycles(r, c, shape, **column):,}" for column in COLUMNS.values())]
        for r, c in ARRAYS
        for shape in SHAPES
    ]


def cycles(rows: int, cols: int, shape: tuple[int, int, int], convention: str = "rtl", **values: object) -> int:
    """Total cycles of one GEMM by our RTL or by SCALE-Sim's convention."""
    systolic = unit("systolic")
    m, k, n = shape
    params = systolic.params(rows=rows, cols=cols, **values)
    return systolic.timing(params, M=m, K=k, N=n, convention=convention).total_cycles


if __name__ == "__main__":
    print(page(), end="")
