"""SCALE-Sim's files: topologies and configurations read, topologies and reports written.

After SCALE-Sim 3.0.0 (A. Samajdar et al., "A Systematic Methodology for Characterizing Scalability of DNN Accelerators
using SCALE-Sim", ISPASS 2020; R. Raj et al., "SCALE-Sim v3", ISPASS 2025), and what files of its earlier versions hold.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from hwsim.files import os_errors, require_file, write_atomic
from hwsim.workloads.graph import LARGEST_SIZE, MAX_LAYERS, Attention, Builder, Conv, Gemm, Graph, Layer, Role
from models.unit import InputError, nearest, require

MAX_BYTES = 8 << 20
"""of a file that is read"""
MAX_ROWS = 1_000_000
"""of a topology that is written"""
LARGEST_ARRAY = 1 << 16
LARGEST_KIB = 1 << 32

LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "conv": (
        *("Layer name", "IFMAP Height", "IFMAP Width", "Filter Height", "Filter Width"),
        *("Channels", "Num Filter", "Strides"),
    ),
    "gemm": ("Layer", "M", "N", "K"),
}
"""The columns in SCALE-Sim's order."""
OPTIONAL = ("Stride Width", "Batch Size", "Sparsity")
SAME = {
    "layer": "layer name",
    "name": "layer name",
    "channel": "channels",
    "num filters": "num filter",
    "stride": "strides",
    "stride height": "strides",
    "batch": "batch size",
}
"""Other spellings that stand in published topologies."""


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Where a topology's columns are."""

    layout: str
    places: Mapping[str, int]
    width: int | None
    """cells that a row may have; None where the header is not read"""
    unread: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Row:
    place: str
    cells: tuple[str, ...]
    table: _Table

    def text(self, column: str) -> str:
        """The cell, empty where the row ends before it."""
        index = self.table.places[column]
        return self.cells[index] if index < len(self.cells) else ""

    def whole(self, column: str) -> int:
        return _whole(f"{self.place}: column {column!r}", self.text(column), 1, LARGEST_SIZE)

    def optional(self, column: str) -> int | None:
        given = column in self.table.places and self.text(column)
        return self.whole(column) if given else None


def load_topology(path: Path, layout: str | None = None) -> Graph:
    """The layers of a topology file as a network of independent layers, each with an input of its own.

    `layout` None: the header says whether rows are convolutions or products Layer, M, N, K of M x K with K x N; its
    columns must stand in SCALE-Sim's order, since SCALE-Sim reads by position. Besides them `Stride Width` and
    `Batch Size` are read (SCALE-Sim knows neither and takes Strides for both); other columns are named in the notes.
    `layout` "conv" or "gemm": columns by position, the first line skipped, as SCALE-Sim does.

    A comma at the end of a row, blank rows, and cells from one that begins with # are left out. IFMAP sizes include
    padding. Where the stride does not divide what is left of the image, SCALE-Sim rounds the output's size up; such a
    convolution is padded with zeros below and on the right. A convolution whose name contains DP is depthwise: Channels
    groups of one channel and Num Filter filters each, which SCALE-Sim runs as Channels layers.

    InputError names file, line and column. Sparse layers are taken as dense and named in the notes.
    """
    require(layout is None or layout in LAYOUTS, f"layout: {layout!r} is unknown; {nearest(str(layout), LAYOUTS)}")
    rows = list(islice(_rows(path), MAX_LAYERS + 2))
    require(len(rows) > 1, f"{path}: a header and a row for each layer are needed; {len(rows)} rows are there")
    require(len(rows) <= MAX_LAYERS + 1, f"{path}: more than {MAX_LAYERS} layers")
    table = _read_header(path, rows[0], layout)
    builder = Builder(path.stem, f"SCALE-Sim topology {path.name}")
    for line, cells in rows[1:]:
        row = _Row(place=f"{path}:{line}", cells=cells, table=table)
        _require_fits(row)
        _add_layer(builder, row)
    if table.unread:
        builder.notes.append("columns not read: " + ", ".join(table.unread))
    return builder.graph()


def _text(path: Path) -> str:
    require_file(path)
    with os_errors(path), path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    require(len(content) <= MAX_BYTES, f"{path}: larger than {MAX_BYTES >> 20} MiB, which no such file is")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no UTF-8 text: byte {error.start}") from None


def _rows(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line number and cells, stripped, of every row that is not blank; empty cells at its end left out."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), skipinitialspace=True, strict=True)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}: no CSV: {error}") from None
        if cells is None:
            return
        comment = next((i for i, cell in enumerate(cells) if i and cell.strip().startswith("#")), len(cells))
        stripped = [cell.strip() for cell in cells[:comment]]
        while stripped and not stripped[-1]:
            stripped.pop()
        if stripped:
            yield reader.line_num, tuple(stripped)


def _read_header(path: Path, header: tuple[int, tuple[str, ...]], layout: str | None) -> _Table:
    line, cells = header
    if layout is not None:
        columns = LAYOUTS[layout]
        return _Table(layout=layout, places={name: i for i, name in enumerate(columns)}, width=None, unread=())
    names = [_plain(cell) for cell in cells]
    layout = _recognised(f"{path}:{line}", names)
    columns = LAYOUTS[layout]
    for index, column in enumerate(columns):
        _require_column(f"{path}:{line}", names, index, column, layout)
    extra = {column: names.index(_plain(column)) for column in OPTIONAL if _plain(column) in names[len(columns) :]}
    places = {column: i for i, column in enumerate(columns)} | extra
    unread = tuple(cell for i, cell in enumerate(cells) if cell and i not in places.values())
    return _Table(layout=layout, places=places, width=len(cells), unread=unread)


def _plain(cell: str) -> str:
    words = " ".join(cell.lower().replace("_", " ").split())
    return SAME.get(words, words)


def _recognised(place: str, names: list[str]) -> str:
    found = {layout: len({_plain(column) for column in columns} & set(names)) for layout, columns in LAYOUTS.items()}
    layout = max(found, key=lambda name: found[name] / len(LAYOUTS[name]))
    both = " or ".join(", ".join(columns) for columns in LAYOUTS.values())
    require(found[layout] >= 2, f"{place}: no header of a topology; it begins with {both}")
    return layout


def _require_column(place: str, names: list[str], index: int, column: str, layout: str) -> None:
    require(_plain(column) in names, f"{place}: column {column!r} is missing; needed: {', '.join(LAYOUTS[layout])}")
    found = names.index(_plain(column))
    rule = f"{place}: column {column!r} is number {found + 1} and must be number {index + 1}, where SCALE-Sim reads it"
    require(found == index, f"{rule}; move it, or name the layout {layout!r} to read by position")


def _require_fits(row: _Row) -> None:
    """Refuse a row that does not fit the header."""
    needed = LAYOUTS[row.table.layout]
    missing = needed[len(row.cells) :]
    require(not missing, f"{row.place}: column {(*missing, '')[0]!r}: a value is missing; {len(row.cells)} cells")
    require(row.text(needed[0]) != "", f"{row.place}: column {needed[0]!r}: a name is needed, not ''")
    wide = row.table.width is not None and len(row.cells) > row.table.width
    require(not wide, f"{row.place}: {len(row.cells)} cells, and the header has {row.table.width}")


def _whole(place: str, text: str, low: int, high: int) -> int:
    whole = re.fullmatch(r"[0-9]{1,18}", text) is not None and low <= int(text) <= high
    require(whole, f"{place}: a whole number from {low} to {high}, not {text[:60]!r}")
    return int(text)


def _add_layer(builder: Builder, row: _Row) -> None:
    given = row.text(LAYOUTS[row.table.layout][0])
    name = given if given not in builder.tensors else f"{given}@{row.place.rpartition(':')[2]}"
    if name != given:
        builder.notes.append(f"{row.place}: a second layer {given!r} is named {name!r}")
    try:
        (_add_conv if row.table.layout == "conv" else _add_gemm)(builder, name, row)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(row.place) else f"{row.place}: {message}") from None
    _note_sparsity(builder, name, row)


def _note_sparsity(builder: Builder, name: str, row: _Row) -> None:
    ratio = row.text("Sparsity") if "Sparsity" in row.table.places else ""
    if not ratio:
        return
    parts = re.fullmatch(r"([0-9]{1,9}) *: *([0-9]{1,9})", ratio)
    valid = parts is not None and 1 <= int(parts[1]) <= int(parts[2])
    require(valid, f"{row.place}: column 'Sparsity': N:M with N from 1 to M, such as 2:4, not {ratio[:60]!r}")
    if parts is not None and int(parts[1]) != int(parts[2]):
        builder.notes.append(f"{name}: a sparsity of {ratio} is taken as dense")


def _add_gemm(builder: Builder, name: str, row: _Row) -> None:
    m, n, k = (row.whole(column) for column in "MNK")
    builder.linear(name, builder.tensor(f"{name}.ifmap", (m, k)), n)


def _add_conv(builder: Builder, name: str, row: _Row) -> None:
    height, width, *kernel, channels, filters, stride = (row.whole(column) for column in LAYOUTS["conv"][1:])
    for axis, size, part in zip(("Height", "Width"), (height, width), kernel, strict=True):
        rule = f"{row.place}: column 'Filter {axis}': at most the image's {size}, not {part}"
        require(part <= size, rule)
    strides = (stride, row.optional("Stride Width") or stride)
    depthwise = "DP" in name
    sizes = zip((height, width), kernel, strides, strict=True)
    below, right = (-(size - part) % step for size, part, step in sizes)
    op = Conv(
        batch=row.optional("Batch Size") or 1,
        in_channels=channels,
        out_channels=channels * filters if depthwise else filters,
        height=height,
        width=width,
        kernel=(kernel[0], kernel[1]),
        stride=strides,
        padding=(0, 0, below, right),
        groups=channels if depthwise else 1,
    )
    image = builder.tensor(f"{name}.ifmap", (op.batch, channels, height, width))
    shape = (op.out_channels, channels // op.groups, *kernel)
    weight = builder.tensor(f"{name}.weight", shape, Role.WEIGHT)
    builder.add(name, op, (image, weight), (op.batch, op.out_channels, *op.output))


def write_topology(path: Path, graph: Graph) -> None:
    """The matrix products of a network as a topology Layer, M, N, K, a row for each product of a batch.

    Convolutions are the products of their im2col; what is no product is left out. Commas and quotes in names become
    underscores, since SCALE-Sim splits rows at every comma. InputError where nothing is left, or over a million rows.
    """
    whole = [(re.sub(r"[^ -~]|[,\"]", "_", name), gemm) for layer in graph.layers for name, gemm in _products(layer)]
    count = sum(gemm.batch for _, gemm in whole)
    require(0 < count <= MAX_ROWS, f"{graph.name}: {count} products; a topology has from 1 to {MAX_ROWS}")
    products = ((f"{name}[{i}]" if gemm.batch > 1 else name, gemm) for name, gemm in whole for i in range(gemm.batch))
    lines = (f"{name},{gemm.M},{gemm.N},{gemm.K},\n" for name, gemm in products)
    write_atomic(path, ",".join(LAYOUTS["gemm"]) + ",\n" + "".join(lines))


def _products(layer: Layer) -> Iterator[tuple[str, Gemm]]:
    match layer.op:
        case Gemm():
            yield layer.name, layer.op
        case Conv():
            yield layer.name, layer.op.gemm
        case Attention():
            yield f"{layer.name}.scores", layer.op.scores
            yield f"{layer.name}.context", layer.op.context


@dataclass(frozen=True, kw_only=True)
class ScaleSimConfig:
    """What a SCALE-Sim configuration says about the machine."""

    name: str
    rows: int
    cols: int
    dataflow: str
    """WS, OS or IS"""
    ifmap_kib: int
    filter_kib: int
    ofmap_kib: int
    ifmap_offset: int
    """addresses, in words, of the three operands in SCALE-Sim's traces"""
    filter_offset: int
    ofmap_offset: int
    bandwidth: tuple[int, int, int] | None
    """words a cycle between memory and the scratchpads of ifmap, filter and ofmap; None: enough that nothing stalls
    (InterfaceBandwidth CALC)"""
    ignored: tuple[str, ...]
    """keys of the file that this record does not hold"""


@dataclass(frozen=True)
class _Entry:
    key: str
    value: str
    line: int


_Entries = Mapping[str, _Entry]

_NUMBERS: Mapping[str, tuple[tuple[str, ...], int, int, int | None]] = {
    "rows": (("ArrayHeight",), 1, LARGEST_ARRAY, None),
    "cols": (("ArrayWidth",), 1, LARGEST_ARRAY, None),
    "ifmap_kib": (("IfmapSramSzkB", "IfmapSramSz"), 1, LARGEST_KIB, None),
    "filter_kib": (("FilterSramSzkB", "FilterSramSz"), 1, LARGEST_KIB, None),
    "ofmap_kib": (("OfmapSramSzkB", "OfmapSramSz"), 1, LARGEST_KIB, None),
    "ifmap_offset": (("IfmapOffset",), 0, 1 << 48, 0),
    "filter_offset": (("FilterOffset",), 0, 1 << 48, 10_000_000),
    "ofmap_offset": (("OfmapOffset",), 0, 1 << 48, 20_000_000),
}
"""Field -> its key in the newest version and earlier ones, least and greatest value, and SCALE-Sim's default."""


def load_config(path: Path) -> ScaleSimConfig:
    """A configuration of SCALE-Sim 1, 2 or 3. Keys count without case and in any section.

    Where InterfaceBandwidth is missing it is CALC. With USER, Bandwidth is that of all three scratchpads; where the
    file has IfmapSRAMBankBandwidth or FilterSRAMBankBandwidth (version 3), these are its ifmap's and filter's, and
    Bandwidth is the ofmap's. Of several numbers in Bandwidth the first counts, as in SCALE-Sim.

    InputError names file, line and key: for what is no configuration, missing keys, values out of range, and
    SparsitySupport true, which is not modelled.
    """
    entries = dict(_entries(path))
    number = partial(_number, path, entries)
    numbers: dict[str, Any] = {field: number(*rule) for field, rule in _NUMBERS.items()}
    _require_dense(path, entries)
    bandwidth = _bandwidth(path, entries)
    used = {key.lower() for keys, *_ in _NUMBERS.values() for key in keys} | _OTHERS
    used |= {key.lower() for key in _BANKS} if bandwidth else set()
    return ScaleSimConfig(
        name=entries["run_name"].value.strip("\"'") if "run_name" in entries else path.stem,
        dataflow=_choice(path, entries, "Dataflow", ("ws", "os", "is")).upper(),
        bandwidth=bandwidth,
        ignored=tuple(entry.key for key, entry in entries.items() if key not in used),
        **numbers,
    )


_OTHERS = {"run_name", "dataflow", "bandwidth", "interfacebandwidth", "sparsitysupport"}
_BANKS = ("IfmapSRAMBankBandwidth", "FilterSRAMBankBandwidth")


def _entries(path: Path) -> Iterator[tuple[str, _Entry]]:
    """Key in small letters, and its entry. Written here since the standard library's reader keeps no line numbers."""
    seen: dict[str, int] = {}
    for line, raw in enumerate(_text(path).splitlines(), start=1):
        text = raw.strip()
        if not text or text[0] in "#;" or (text[0] == "[" and text[-1] == "]"):
            continue
        parts = re.fullmatch(r"([^:=]*[^:=\s])\s*[:=]\s*(.*)", text)
        if parts is None:
            raise InputError(f"{path}:{line}: a line is KEY: VALUE or [section], not {text[:60]!r}")
        key = parts[1].lower()
        require(key not in seen, f"{path}:{line}: key {parts[1]!r} stands in line {seen.get(key)} already")
        seen[key] = line
        yield key, _Entry(parts[1], parts[2], line)


def _entry(path: Path, entries: _Entries, *keys: str) -> _Entry:
    found = [entries[key.lower()] for key in keys if key.lower() in entries]
    if found:
        return found[0]
    there = [entry.key for entry in entries.values()]
    close = nearest(keys[0], there)
    raise InputError(f"{path}: key {keys[0]!r} is missing" + (f"; {close}" if close.startswith("did") else ""))


def _number(path: Path, entries: _Entries, keys: tuple[str, ...], low: int, high: int, default: int | None) -> int:
    if default is not None and not any(key.lower() in entries for key in keys):
        return default
    entry = _entry(path, entries, *keys)
    return _whole(f"{path}:{entry.line}: key {entry.key!r}", entry.value, low, high)


def _choice(path: Path, entries: _Entries, key: str, choices: tuple[str, ...]) -> str:
    entry = _entry(path, entries, key)
    known = {choice.lower(): choice for choice in choices}
    rule = f"{path}:{entry.line}: key {entry.key!r}: {entry.value[:60]!r} is unknown; {nearest(entry.value, choices)}"
    require(entry.value.lower() in known, rule)
    return known[entry.value.lower()]


def _require_dense(path: Path, entries: _Entries) -> None:
    if "sparsitysupport" in entries and _choice(path, entries, "SparsitySupport", ("true", "false")) == "true":
        line = entries["sparsitysupport"].line
        raise InputError(f"{path}:{line}: key 'SparsitySupport': sparse layers are not modelled; set it to false")


def _bandwidth(path: Path, entries: _Entries) -> tuple[int, int, int] | None:
    if "interfacebandwidth" not in entries:
        return None
    if _choice(path, entries, "InterfaceBandwidth", ("CALC", "USER")) == "CALC":
        return None
    entry = _entry(path, entries, "Bandwidth")
    place = f"{path}:{entry.line}: key {entry.key!r}"
    ofmap, *_ = (_whole(place, part.strip(), 1, LARGEST_SIZE) for part in entry.value.split(","))
    ifmap, weights = (_number(path, entries, (key,), 1, LARGEST_SIZE, ofmap) for key in _BANKS)
    return ifmap, weights, ofmap


COMPUTE_COLUMNS: Mapping[str, str] = {
    "cycles_with_prefetch": "Total Cycles (incl. prefetch)",
    "cycles": "Total Cycles",
    "stall_cycles": "Stall Cycles",
    "overall_util": "Overall Util %",
    "mapping_efficiency": "Mapping Efficiency %",
    "compute_util": "Compute Util %",
}
"""Key of a row's mapping -> column of COMPUTE_REPORT.csv. The last three are per cent; `cycles` include stalls."""
BANDWIDTH_COLUMNS: Mapping[str, str] = {
    f"{operand.lower()}_{memory.lower()}_bandwidth": f"Avg {operand} {memory} BW"
    for memory in ("SRAM", "DRAM")
    for operand in ("IFMAP", "FILTER", "OFMAP")
}
"""The same of BANDWIDTH_REPORT.csv, such as `ifmap_sram_bandwidth`: words a cycle."""
ACCESS_COLUMNS: Mapping[str, str] = {
    f"{operand.lower()}_{memory.lower()}_{figure}": f"{memory} {operand} {title}"
    for memory in ("SRAM", "DRAM")
    for operand, count in (("IFMAP", "Reads"), ("Filter", "Reads"), ("OFMAP", "Writes"))
    for figure, title in (("start", "Start Cycle"), ("stop", "Stop Cycle"), (count.lower(), count))
}
"""The same of DETAILED_ACCESS_REPORT.csv, such as `ifmap_sram_start`, `_stop` and `_reads`, `ofmap_dram_writes`: the
first and the last cycle of any access, and words."""


def compute_report(rows: Iterable[Mapping[str, float]]) -> str:
    """COMPUTE_REPORT.csv of one mapping a layer, with the keys of `COMPUTE_COLUMNS`."""
    return _report(COMPUTE_COLUMNS, rows)


def bandwidth_report(rows: Iterable[Mapping[str, float]]) -> str:
    """BANDWIDTH_REPORT.csv of one mapping a layer, with the keys of `BANDWIDTH_COLUMNS`."""
    return _report(BANDWIDTH_COLUMNS, rows)


def access_report(rows: Iterable[Mapping[str, float]]) -> str:
    """DETAILED_ACCESS_REPORT.csv of one mapping a layer, with the keys of `ACCESS_COLUMNS`."""
    return _report(ACCESS_COLUMNS, rows)


def _report(columns: Mapping[str, str], rows: Iterable[Mapping[str, float]]) -> str:
    """Cells divided by a comma and a space, a comma at the end of each line, layers numbered from 0: as SCALE-Sim."""
    lines = [["LayerID", *columns.values()], *([i, *(row[key] for key in columns)] for i, row in enumerate(rows))]
    return "".join(", ".join(map(str, line)) + ",\n" for line in lines)


def efficiencies(dataflow: str, rows: int, cols: int, gemm: Gemm) -> dict[str, float]:
    """`mapping_efficiency` and `compute_util` of one product, in per cent, by SCALE-Sim's definitions.

    Both are means over folds: the share of PEs that a fold uses, and that share times the share of its cycles in which
    operands stream. For WS and IS, SCALE-Sim divides by cols - 1 cycles a fold more than it counts in total.
    """
    known = {"WS": (gemm.K, gemm.N, gemm.M), "OS": (gemm.M, gemm.N, gemm.K), "IS": (gemm.K, gemm.M, gemm.N)}
    require(dataflow in known, f"dataflow: {dataflow!r} is unknown; {nearest(dataflow, known)}")
    down, across, stream = known[dataflow]
    folds = -(-down // rows) * -(-across // cols)
    mapped = down * across / (folds * rows * cols)
    cycles = stream + rows + cols - 2 if dataflow == "OS" else stream + 2 * rows + 2 * cols - 3
    return {"mapping_efficiency": 100 * mapped, "compute_util": 100 * mapped * stream / cycles}
