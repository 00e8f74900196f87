"""SCALE-Sim's files: our counts against what SCALE-Sim 3.0.0 itself reports, its forms of files, and bad input."""

import csv
import dataclasses
import functools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from hwsim.system.machine import load_machine
from hwsim.system.run import run
from hwsim.workloads import scalesim
from hwsim.workloads.graph import Attention, Builder, Conv, Gemm, Role
from models.catalog import unit
from models.unit import InputError

DATA = Path(__file__).parent / "data" / "scalesim"
SYSTOLIC = unit("systolic")
CONV = "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides"


@functools.cache
def reference():
    lines = (DATA / "cycles.csv").read_text().splitlines()
    assert lines[0].startswith("# scalesim 3.0.0")
    return list(csv.DictReader(lines[1:]))


@functools.cache
def products():
    """Topology and SCALE-Sim's name of a layer -> one product of ours, whose gemm has no batch."""
    found = {}
    for topology in ("gemm", "conv"):
        for layer in scalesim.load_topology(DATA / f"{topology}.csv").layers:
            op = layer.op.gemm if isinstance(layer.op, Conv) else layer.op
            one = dataclasses.replace(op, batch=1)
            for i in range(op.batch):
                found[topology, f"{layer.name}Channel_{i}" if "DP" in layer.name else layer.name] = one
    return found


def our_cycles(row, gemm, convention):
    params = SYSTOLIC.params(rows=row["rows"], cols=row["cols"], dataflow=row["dataflow"])
    return SYSTOLIC.timing(params, M=gemm.M, K=gemm.K, N=gemm.N, convention=convention).total_cycles


def test_cycles_equal_scalesims_for_every_layer_array_and_dataflow():
    table, found = reference(), products()
    arrays = {(row["rows"], row["cols"], row["dataflow"]) for row in table}
    assert len(arrays) == 12
    assert len(table) == len(arrays) * len(found)
    for row in table:
        gemm = found[row["topology"], row["layer"]]
        assert row["Stall Cycles"] == "0"
        assert our_cycles(row, gemm, "scalesim") == int(row["Total Cycles"]), row


def test_cycles_of_our_rtl_differ_from_scalesims_as_documented():
    for row in reference():
        gemm, r, c = products()[row["topology"], row["layer"]], int(row["rows"]), int(row["cols"])
        folds = math.ceil(gemm.M / r) * math.ceil(gemm.N / c)
        difference = (r + 1) * folds + 1 if row["dataflow"] == "os" else 2
        assert our_cycles(row, gemm, "rtl") - int(row["Total Cycles"]) == difference, row


def test_efficiencies_equal_scalesims():
    for row in reference():
        gemm, r, c = products()[row["topology"], row["layer"]], int(row["rows"]), int(row["cols"])
        ours = scalesim.efficiencies(row["dataflow"].upper(), r, c, gemm)
        overall = 100 * gemm.macs / (our_cycles(row, gemm, "scalesim") * r * c)
        theirs = [float(row[f"{name} %"]) for name in ("Mapping Efficiency", "Compute Util", "Overall Util")]
        assert [*ours.values(), overall] == pytest.approx(theirs, rel=1e-12), row


def test_words_read_from_scratchpads_are_those_of_the_folds():
    """Each fold reads its operands once; OS counts rows + cols writes a fold too many, a slip of SCALE-Sim's."""
    for row in reference():
        g, r, c = products()[row["topology"], row["layer"]], int(row["rows"]), int(row["cols"])
        k_folds, m_folds, n_folds = (math.ceil(g.K / r), math.ceil(g.M / c), math.ceil(g.N / c))
        m_rows = math.ceil(g.M / r)
        expected = {
            "ws": (g.M * g.K * n_folds, g.K * g.N, g.M * g.N * k_folds),
            "is": (g.M * g.K, g.K * g.N * m_folds, g.M * g.N * k_folds),
            "os": (g.M * g.K * n_folds, g.K * g.N * m_rows, g.M * g.N + m_rows * n_folds * (r + c)),
        }[row["dataflow"]]
        assert tuple(int(row[f"SRAM {name}"]) for name in ("IFMAP Reads", "Filter Reads", "OFMAP Writes")) == expected


@pytest.mark.parametrize("name", ["conv", "gemm"])
def test_forms_of_a_file_say_the_same(tmp_path, name):
    text = (DATA / f"{name}.csv").read_text()
    plain = scalesim.load_topology(DATA / f"{name}.csv")
    forms = {
        "crlf": text.replace("\n", "\r\n"),
        "bom": "\ufeff" + text,
        "no comma": text.replace(",\n", "\n"),
        "blank": text.replace("\n", "\n\n , ,,\n"),
        "quoted": re.sub(r"(?m)(^|(?<=,) *)([^,\n ][^,\n]*)", r'\1"\2"', text),
        "comment": text.replace(",\n", ", # note\n"),
        "tabs": text.replace("\n", "\n\t"),
        "capitals": text.replace(text.splitlines()[0], text.splitlines()[0].upper()),
    }
    for form, content in forms.items():
        path = tmp_path / f"{name}.csv"
        path.write_bytes(content.encode())
        assert scalesim.load_topology(path) == plain, form
    path.write_text("anything at all\n" + text.split("\n", 1)[1])
    assert scalesim.load_topology(path, layout=name).layers == plain.layers
    with pytest.raises(InputError, match=r"csv:1: no header of a topology; it begins with Layer name, .* or Layer, M"):
        scalesim.load_topology(path)


def topology(tmp_path, *lines):
    path = tmp_path / "net.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_gemm_layers_are_independent_products_in_the_order_m_n_k(tmp_path):
    graph = scalesim.load_topology(topology(tmp_path, "Layer,M,N,K,", "a,2,3,5,", "b,2,3,5,"))
    assert [layer.op for layer in graph.layers] == [Gemm(M=2, K=5, N=3)] * 2
    assert graph.tensors["a.ifmap"].shape == (2, 5)
    assert graph.tensors["b.weight"].shape == (5, 3)
    assert graph.tensors["b"].shape == (2, 3)
    assert graph.producers == {"a": "a", "b": "b"}
    assert graph.elements(Role.WEIGHT) == 30


@pytest.mark.parametrize("height", range(3, 20))
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_a_convolution_has_scalesims_output_size(tmp_path, height, stride):
    """ceil((image - filter + stride) / stride), as in its topology_utils."""
    row = f"c,{height},{height + 2},3,2,4,6,{stride},"
    op = scalesim.load_topology(topology(tmp_path, CONV, row)).layers[0].op
    sizes = zip((height, height + 2), (3, 2), strict=True)
    assert op.output == tuple(math.ceil((size - part + stride) / stride) for size, part in sizes)
    assert op.padding[:2] == (0, 0)
    assert max(op.padding) < stride


def test_optional_columns_are_read_and_others_named(tmp_path):
    head = CONV + ",,Sparsity,Eh,Batch Size, Stride Width"
    graph = scalesim.load_topology(topology(tmp_path, head, "c,8,8,3,3,4,6,1,,2:4,9,3,2,", "c,8,8,3,3,4,6,1"))
    first, second = graph.layers
    assert (first.name, first.op.batch, first.op.stride) == ("c", 3, (1, 2))
    assert (second.name, second.op.batch, second.op.stride) == ("c@3", 1, (1, 1))
    assert graph.tensors["c.ifmap"].shape == (3, 4, 8, 8)
    assert graph.tensors["c"].shape == (3, 6, 6, 4)
    notes = "\n".join(graph.notes)
    assert "c: a sparsity of 2:4 is taken as dense" in notes
    assert "net.csv:3: a second layer 'c' is named 'c@3'" in notes
    assert "columns not read: Eh" in notes


def test_depthwise_layers_are_groups(tmp_path):
    layer = scalesim.load_topology(topology(tmp_path, CONV + ",", "DP1,9,9,3,3,6,2,1,")).layers[0]
    assert (layer.op.groups, layer.op.in_channels, layer.op.out_channels) == (6, 6, 12)
    assert layer.op.gemm == Gemm(M=49, K=9, N=2, batch=6)


BAD_ROWS = {
    "c,8,8,3,3,x,6,1,": r"net.csv:2: column 'Channels': a whole number from 1 to 2147483648, not 'x'",
    "c,8,8,3,3,4,6,0,": r"net.csv:2: column 'Strides': .* not '0'",
    "c,8,8,3,3,4,6,-1,": r"net.csv:2: column 'Strides': .* not '-1'",
    "c,8,8,3,3,4,6.0,1,": r"net.csv:2: column 'Num Filter': .* not '6.0'",
    "c,8,8,3,3,4,6,٣,": r"net.csv:2: column 'Strides'",
    "c,8,8,9,3,4,6,1,": r"net.csv:2: column 'Filter Height': at most the image's 8, not 9",
    "c,8,8,3,9,4,6,1,": r"net.csv:2: column 'Filter Width'",
    "c,8,8,3,3,4,": r"net.csv:2: column 'Num Filter': a value is missing; 6 cells",
    ",8,8,3,3,4,6,1,": r"net.csv:2: column 'Layer name': a name is needed",
    "c,8,8,3,3,4,6,1,7,": r"net.csv:2: 9 cells, and the header has 8",
    "c,99999999999999999999,8,3,3,4,6,1,": r"net.csv:2: column 'IFMAP Height'",
    "DP,8,8,3,3,2000000000,2000000000,1,": r"net.csv:2: tensor DP.weight: a size of",
    '"c,8,8,3,3,4,6,1,': r"net.csv:[23]: no CSV: ",
}


@pytest.mark.parametrize("row, message", BAD_ROWS.items())
def test_bad_rows_are_named_by_line_and_column(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        scalesim.load_topology(topology(tmp_path, CONV, row))


BAD_HEADS = {
    CONV.replace(" Channels,", ""): r"net.csv:1: column 'Channels' is missing; needed: Layer name, IFMAP Height",
    "Layer,M,K,N": r"column 'N' is number 4 and must be number 3, where SCALE-Sim reads it.*'gemm'",
    "Layer,M,N": r"column 'K' is missing; needed: Layer, M, N, K",
    "a,1,2,3": r"no header of a topology",
}


@pytest.mark.parametrize("head, message", BAD_HEADS.items())
def test_bad_headers_are_refused(tmp_path, head, message):
    with pytest.raises(InputError, match=message):
        scalesim.load_topology(topology(tmp_path, head, "a,1,2,3"))


def test_files_that_are_no_topology_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"net.csv: a header and a row for each layer are needed; 1 rows"):
        scalesim.load_topology(topology(tmp_path, "Layer,M,N,K"))
    with pytest.raises(InputError, match=r"net.csv:3: column 'Sparsity': N:M with N from 1 to M.*not '4:2'"):
        scalesim.load_topology(topology(tmp_path, "Layer,M,N,K,Sparsity", "a,1,1,1,1:1", "b,1,1,1,4:2"))
    with pytest.raises(InputError, match="layout: 'con' is unknown; did you mean 'conv'"):
        scalesim.load_topology(DATA / "conv.csv", layout="con")
    with pytest.raises(InputError, match="no such file"):
        scalesim.load_topology(tmp_path / "absent.csv")
    path = tmp_path / "bytes.csv"
    path.write_bytes(b"Layer,M,N,K\n\xff")
    with pytest.raises(InputError, match=r"bytes.csv: no UTF-8 text: byte 12"):
        scalesim.load_topology(path)
    monkeypatch.setattr(scalesim, "MAX_LAYERS", 2)
    with pytest.raises(InputError, match="more than 2 layers"):
        scalesim.load_topology(topology(tmp_path, "Layer,M,N,K", *(f"{i},1,1,1" for i in range(3))))
    monkeypatch.setattr(scalesim, "MAX_BYTES", 5)
    with pytest.raises(InputError, match="larger than"):
        scalesim.load_topology(path)


def test_a_written_topology_holds_every_product(tmp_path):
    builder = Builder("net")
    y = builder.linear("mlp, up", builder.tensor("x", (4, 6)), 5)
    op = Attention(batch=2, heads=4, kv_heads=2, queries=3, keys=7, head_dim=8, value_dim=9)
    builder.add("attention", op, (y,), (2, 3, 36))
    builder.vector("norm", "rmsnorm", "attention")
    conv = Conv(batch=1, in_channels=4, out_channels=6, height=5, width=5, kernel=(3, 3), groups=2)
    builder.add("conv", conv, ("norm",), (1, 6, 3, 3))
    scalesim.write_topology(tmp_path / "out.csv", builder.graph())
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[:2] == ["Layer,M,N,K,", "mlp_ up,4,5,6,"]
    assert all(line.count(",") == 4 and line.endswith(",") for line in lines)
    again = scalesim.load_topology(tmp_path / "out.csv")
    assert again.macs == builder.graph().macs
    assert [layer.op for layer in again.layers[-2:]] == [Gemm(M=9, K=18, N=3)] * 2
    empty = Builder("empty")
    empty.vector("norm", "rmsnorm", empty.tensor("x", (4, 6)))
    with pytest.raises(InputError, match="empty: 0 products"):
        scalesim.write_topology(tmp_path / "none.csv", empty.graph())
    assert not (tmp_path / "none.csv").exists()


VERSION_3 = """[general]
run_name = 'first run'

[architecture_presets]
ArrayHeight:    32
ArrayWidth:     16
IfmapSramSzkB:   64
FilterSramSzkB:  128
OfmapSramSzkB:   256
IfmapOffset:    1
FilterOffset:   10000000
OfmapOffset:    20000000
Bandwidth : 64, 32
Dataflow : os
ReadRequestBuffer: 32

[layout]
IfmapCustomLayout: True
IfmapSRAMBankBandwidth: 48
FilterSRAMBankBandwidth = 640

[sparsity]
SparsitySupport : false

[run_presets]
InterfaceBandwidth: USER
"""
VERSION_1 = """# comment
[general]
run_name = "GoogleTPU_os"
[architecture_presets]
ArrayHeight: 256
ArrayWidth: 256
IfmapSramSz: 8192
FilterSramSz: 8192
OfmapSramSz: 4096
Dataflow: ws
"""


def config(tmp_path, text):
    path = tmp_path / "machine.cfg"
    path.write_bytes(text.encode())
    return scalesim.load_config(path)


def test_a_configuration_of_version_3(tmp_path):
    found = config(tmp_path, VERSION_3)
    assert found == scalesim.ScaleSimConfig(
        name="first run",
        rows=32,
        cols=16,
        dataflow="OS",
        ifmap_kib=64,
        filter_kib=128,
        ofmap_kib=256,
        ifmap_offset=1,
        filter_offset=10_000_000,
        ofmap_offset=20_000_000,
        bandwidth=(48, 640, 64),
        ignored=("ReadRequestBuffer", "IfmapCustomLayout"),
    )
    assert config(tmp_path, "\ufeff" + VERSION_3.replace("\n", "\r\n").upper().replace("RUN'", "run'")).rows == 32


def test_a_configuration_of_earlier_versions(tmp_path):
    first = config(tmp_path, VERSION_1)
    assert (first.name, first.ofmap_kib, first.ofmap_offset, first.bandwidth) == (
        "GoogleTPU_os",
        4096,
        20_000_000,
        None,
    )
    second = re.sub(r"\[layout\]\n.*\n.*\n.*\n", "", VERSION_3)
    assert config(tmp_path, second).bandwidth == (64, 64, 64)
    calc = config(tmp_path, VERSION_3.replace("USER", "CALC"))
    assert calc.bandwidth is None
    assert {"IfmapSRAMBankBandwidth", "FilterSRAMBankBandwidth"} < set(calc.ignored)


def machine_of(tmp_path, text):
    path = tmp_path / "their machine.cfg"
    path.write_text(text)
    return load_machine(str(path))


def test_a_machine_of_a_configuration(tmp_path):
    machine = machine_of(tmp_path, VERSION_3)
    engine = machine.engines[0]
    assert machine.name == "first-run"
    assert (engine.unit, engine.params, engine.convention) == (
        "systolic",
        {"rows": 32, "cols": 16, "dataflow": "OS"},
        "scalesim",
    )
    assert [(pad.name, pad.holds, pad.kib) for pad in machine.scratchpads] == [
        ("ifmap", ("activations",), 64),
        ("filter", ("weights",), 128),
        ("ofmap", ("outputs",), 256),
    ]
    assert machine.dram.bytes_per_cycle == 48 + 640 + 64
    assert machine.notes == (
        "their machine.cfg: 2 keys have no part here: ReadRequestBuffer, IfmapCustomLayout",
        "SCALE-Sim's three interfaces to memory are one bus here, with their bandwidths together",
    )
    first = machine_of(tmp_path, VERSION_1)
    assert first.dram.bytes_per_cycle is None
    assert first.notes == ()


def test_their_topology_on_their_machine_takes_their_cycles(tmp_path):
    machine = machine_of(tmp_path, VERSION_1.replace("256", "32"))
    result = run(scalesim.load_topology(DATA / "gemm.csv"), machine)
    theirs = {
        row["layer"]: int(row["Total Cycles"])
        for row in reference()
        if (row["topology"], row["rows"], row["cols"], row["dataflow"]) == ("gemm", "32", "32", "ws")
    }
    assert {layer.name: layer.cycles for layer in result.layers} == theirs


BAD_CONFIGS = [
    ("ArrayHeight:    32", "ArrayHeight: 0", r"machine.cfg:5: key 'ArrayHeight': a whole number from 1 to 65536, not"),
    ("ArrayHeight:    32", "ArrayHeight: 32.5", r"machine.cfg:5: key 'ArrayHeight': .* not '32.5'"),
    ("ArrayHeight:    32", "ArayHeight: 32", r"machine.cfg: key 'ArrayHeight' is missing; did you mean 'ArayHeight'"),
    (
        "ArrayHeight:    32",
        "ArrayHeight 32",
        r"machine.cfg:5: a line is KEY: VALUE or \[section\], not 'ArrayHeight 32'",
    ),
    ("ArrayHeight:    32", "ArrayWidth: 32", r"machine.cfg:6: key 'ArrayWidth' stands in line 5 already"),
    ("Dataflow : os", "Dataflow : rs", r"machine.cfg:14: key 'Dataflow': 'rs' is unknown; .*os"),
    ("64, 32", "64, x", r"machine.cfg:13: key 'Bandwidth': .* not 'x'"),
    ("64, 32", "", r"machine.cfg:13: key 'Bandwidth': .* not ''"),
    ("Bandwidth : 64, 32\n", "", r"machine.cfg: key 'Bandwidth' is missing"),
    ("USER", "OTHER", r"key 'InterfaceBandwidth': 'OTHER' is unknown; one of: CALC, USER"),
    ("SparsitySupport : false", "SparsitySupport : true", r"machine.cfg:23: key 'SparsitySupport': sparse layers are"),
    ("48", "0", r"machine.cfg:19: key 'IfmapSRAMBankBandwidth'"),
    ("IfmapOffset:    1", "IfmapOffset: -1", r"machine.cfg:10: key 'IfmapOffset': a whole number from 0"),
]


@pytest.mark.parametrize("old, new, message", BAD_CONFIGS)
def test_bad_configurations_are_named_by_line_and_key(tmp_path, old, new, message):
    assert old in VERSION_3
    with pytest.raises(InputError, match=message):
        config(tmp_path, VERSION_3.replace(old, new, 1))


@pytest.mark.parametrize(
    "name, columns, write",
    [
        ("COMPUTE", scalesim.COMPUTE_COLUMNS, scalesim.compute_report),
        ("BANDWIDTH", scalesim.BANDWIDTH_COLUMNS, scalesim.bandwidth_report),
        ("DETAILED_ACCESS", scalesim.ACCESS_COLUMNS, scalesim.access_report),
    ],
)
def test_reports_have_scalesims_form_to_the_byte(name, columns, write):
    theirs = (DATA / f"{name}_REPORT.csv").read_text()
    rows = [line.split(", ")[1:] for line in theirs.replace(",\n", "\n").splitlines()[1:]]
    figures = [[float(cell) if "." in cell else int(cell) for cell in row] for row in rows]
    assert write([dict(zip(columns, row, strict=True)) for row in figures]) == theirs
    assert all(re.fullmatch("[a-z_]+", key) for key in columns)


def test_efficiencies_refuse_an_unknown_dataflow():
    with pytest.raises(InputError, match="dataflow: 'ws' is unknown; did you mean 'WS'"):
        scalesim.efficiencies("ws", 8, 8, Gemm(M=1, K=1, N=1))


def test_efficiencies_are_means_over_the_folds():
    """By counting the PEs of every fold."""
    gemm, r, c = Gemm(M=5, K=11, N=7), 4, 3
    shares = [min(r, 11 - k) * min(c, 7 - n) / (r * c) for k in range(0, 11, r) for n in range(0, 7, c)]
    assert scalesim.efficiencies("WS", r, c, gemm)["mapping_efficiency"] == pytest.approx(100 * np.mean(shares))
