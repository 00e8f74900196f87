"""Cycles of a channel: refresh, and matrix-vector products inside its banks.

A product is a list of `Chunk`s. A chunk writes a part of the vector into the channel's global buffer (GWRITE), then
runs over rows: activate one row in every bank (G_ACT, a bank group each), read it column by column, each column
multiplied with the buffer's and summed in the bank (COMP), read the banks' sums out (READRES), precharge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hwsim.pim.params import WORD_BYTES, PimParams
from models.unit import require


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """`rows` equal row operations of all banks on one part of the vector."""

    vector_columns: int
    """of the vector, copied into the global buffer"""
    rows: int
    columns: int
    """COMPs for each row"""
    results: int
    """READRESs for each row"""


@dataclass(frozen=True, kw_only=True)
class Gemv:
    """A product in one channel."""

    cycles: int
    stolen: int
    """of these, cycles in which the data bus is kept from the host although the row buffers are two"""
    cache_bytes: int
    """of keys or values that take part; padding of rows is not counted"""
    result_bytes: int
    """that READRES moves over the data bus, padding included"""


def up(whole: int, part: int) -> int:
    """whole / part, rounded up."""
    return -(-whole // part)


# --- refresh ---------------------------------------------------------------------------------------------------------


def refreshing(pim: PimParams, time: int) -> int:
    """Cycles before `time` in which the memory refreshed: from each multiple of tREFI on (not 0), tRFC cycles."""
    periods, rest = divmod(time, pim.tREFI)
    return (periods - 1) * pim.tRFC + min(rest, pim.tRFC) if periods else 0


def worked(pim: PimParams, start: int, end: int) -> int:
    """Cycles from start to end in which the memory did not refresh."""
    return end - start - refreshing(pim, end) + refreshing(pim, start)


def finish(pim: PimParams, start: int, work: int) -> int:
    """The earliest time at which `work` cycles have passed since `start`, refresh left out.

    All channels refresh at the same times; work stands still meanwhile and goes on where it was. (Rows that a refresh
    closes and that are opened again, tRP + tRCD of tREFI, are not counted.)
    """
    if not work:
        return start
    done = work + worked(pim, 0, start)
    periods = max(0, up(done - pim.tREFI, pim.tREFI - pim.tRFC))
    return done + periods * pim.tRFC


# --- one chunk -------------------------------------------------------------------------------------------------------


def result_cycles(pim: PimParams) -> int:
    """Of one READRES on the data bus: a word from every bank."""
    return up(pim.banks * WORD_BYTES, pim.bus_bytes)


def gwrite_cycles(pim: PimParams, columns: int) -> int:
    """Activate the vector's row, copy its columns into the global buffer, precharge."""
    return max(pim.tRAS, pim.tRCD + columns * pim.tCCD_L) + pim.tRP


def activate_cycles(pim: PimParams) -> int:
    """From the first G_ACT to the last: a rank's are tFAW apart, ranks follow each other on the command bus."""
    return (pim.bank_groups - 1) * pim.tFAW + pim.ranks - 1


def row_cycles(pim: PimParams, columns: int, results: int) -> int:
    """From the first G_ACT of a row operation to the first of the next."""
    compute = pim.tRCD + columns * pim.tCCD_L + results * result_cycles(pim)
    return activate_cycles(pim) + max(pim.tRAS, compute) + pim.tRP


def chunk_cycles(pim: PimParams, chunk: Chunk) -> int:
    """Closed form of a chunk's cycles without refresh."""
    rows = chunk.rows * row_cycles(pim, chunk.columns, chunk.results)
    return gwrite_cycles(pim, chunk.vector_columns) + rows


# --- what a row operation leaves to the host, where each bank has two row buffers -------------------------------------


def host_rows(pim: PimParams, row: int) -> int:
    """Rows that the host can open in a channel during a row operation of `row` cycles, G_ACTs first.

    Between two G_ACTs of a rank no activation fits. After the last one the host waits tFAW, then activates every
    tRRD_S, four in a window of tFAW, and ends tRRD_L before the next G_ACT: the constraints between commands in the
    simulator published with NeuPIMs.
    """
    room = row - (pim.bank_groups - 1) * pim.tFAW - pim.tFAW - pim.tRRD_L
    if room < 0:
        return 0
    windows, rest = divmod(room, max(pim.tFAW, 4 * pim.tRRD_S))
    return pim.ranks * (4 * windows + min(4, rest // pim.tRRD_S + 1))


def row_stolen(pim: PimParams, columns: int, results: int) -> int:
    """Cycles of a row operation in which the host cannot use the data bus.

    These are the command slots of one header and of a composite command for each result, the results on the bus, and
    what is missing where the host could not open rows enough to stream from until the next row operation.
    """
    row = row_cycles(pim, columns, results)
    direct = 1 + results * (1 + result_cycles(pim))
    streamed = host_rows(pim, row) * up(pim.page_bytes, pim.bus_bytes)
    return min(row, direct + max(0, row - direct - streamed))


def chunk_stolen(pim: PimParams, chunk: Chunk) -> int:
    """As `row_stolen`, of a chunk. GWRITE takes the column path that host reads take."""
    rows = chunk.rows * row_stolen(pim, chunk.columns, chunk.results)
    return chunk.vector_columns * pim.tCCD_L + rows


# --- attention -------------------------------------------------------------------------------------------------------


def logit_chunks(pim: PimParams, heads: int, head_dim: int, keys: int) -> Iterator[Chunk]:
    """q K^T: a row holds one token's keys of as many heads as fit, neighbouring tokens lie in neighbouring banks."""
    columns = up(head_dim, pim.multipliers)
    per_row = pim.page_words // (columns * pim.multipliers)
    for first in range(0, heads, per_row):
        here = min(per_row, heads - first)
        yield Chunk(vector_columns=here * columns, rows=up(keys, pim.banks), columns=here * columns, results=here)


def attend_chunks(pim: PimParams, heads: int, head_dim: int, keys: int) -> Iterator[Chunk]:
    """p V: a row holds one value channel of many tokens, neighbouring channels of a head lie in neighbouring banks."""
    for first in range(0, keys, pim.page_words):
        columns = up(min(pim.page_words, keys - first), pim.multipliers)
        chunk = Chunk(vector_columns=columns, rows=up(head_dim, pim.banks), columns=columns, results=1)
        yield from (chunk for _ in range(heads))


def gemv(pim: PimParams, chunks: Iterator[Chunk], cache_words: int) -> Gemv:
    """A product whose matrix has `cache_words` words; it ends when its last result has left, tCL after its command."""
    listed = list(chunks)
    late = max(0, pim.tCL - pim.tRP)
    results = sum(chunk.rows * chunk.results for chunk in listed)
    return Gemv(
        cycles=sum(chunk_cycles(pim, chunk) for chunk in listed) + late,
        stolen=sum(chunk_stolen(pim, chunk) for chunk in listed),
        cache_bytes=cache_words * WORD_BYTES,
        result_bytes=results * pim.banks * WORD_BYTES,
    )


def logits(pim: PimParams, heads: int, head_dim: int, keys: int) -> Gemv:
    """Scores of one query with all keys, every head, in one channel; InputError where a head is longer than a row."""
    rule = f"pim: a head of {head_dim} words does not fit into a row of {pim.page_words}"
    require(head_dim <= pim.page_words, f"{rule}; take page_bytes of at least {head_dim * WORD_BYTES}")
    return gemv(pim, logit_chunks(pim, heads, head_dim, keys), heads * head_dim * keys)


def attend(pim: PimParams, heads: int, head_dim: int, keys: int) -> Gemv:
    """The sum of values weighted by one query's probabilities, every head, in one channel."""
    return gemv(pim, attend_chunks(pim, heads, head_dim, keys), heads * head_dim * keys)
