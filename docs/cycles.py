"""Writes docs/cycles.md: our cycle counts beside SCALE-Sim's, computed by `models/systolic.py`.

Run: python docs/cycles.py > docs/cycles.md
"""

from models.catalog import unit

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
| OS | ceil(M/R) ceil(N/C) (K + R + C - 2) - 1 | ceil(M/R) ceil(N/C) (K + 2R + C - 2) | + R ceil(M/R) ceil(N/C) + 1 |

**WS.** A fold takes the same cycles in both: R to load the weights, M to stream the activations, R + C - 2 until the
last of them has met the last PE. SCALE-Sim then takes one cycle off the whole run; ours needs one more after the last
fold, in which the output register shows the last row of results. (After any other fold that cycle is hidden: the next
weights are taken in it.)

**OS.** Both stream K operands and wait R + C - 2 cycles for the skewed wavefront to reach the last PE. Then the sums of
a tile must leave: through the columns, one row a cycle, R cycles. SCALE-Sim does not count them, and again takes one
cycle off the whole run: its outputs leave before their last operand has entered.

The table is written by `python docs/cycles.py > docs/cycles.md`; a test holds it against the code.

| array | M | K | N | WS ours | WS SCALE-Sim | OS ours | OS SCALE-Sim |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def page() -> str:
    """The whole document."""
    return TEXT + "".join(f"| {' | '.join(row)} |\n" for row in rows())


def rows() -> list[list[str]]:
    """One row for each array and shape."""
    return [
        [
            f"{r} x {c}",
            *map(str, shape),
            *(f"{count:,}" for flow in ("WS", "OS") for count in counts(r, c, flow, shape)),
        ]
        for r, c in ARRAYS
        for shape in SHAPES
    ]


def counts(rows: int, cols: int, dataflow: str, shape: tuple[int, int, int]) -> list[int]:
    """Total cycles of one GEMM by our RTL and by SCALE-Sim's convention."""
    systolic = unit("systolic")
    params = systolic.params(rows=rows, cols=cols, dataflow=dataflow)
    m, k, n = shape
    return [systolic.timing(params, M=m, K=k, N=n, convention=name).total_cycles for name in ("rtl", "scalesim")]


if __name__ == "__main__":
    print(page(), end="")
