"""What the machine of NPU and PIM is made of, and the shapes of the networks that run on it.

Figures are those of NeuPIMs: G. Heo et al., "NeuPIMs: NPU-PIM Heterogeneous Acceleration for Batched LLM Inferencing",
ASPLOS 2024, and of the configuration files published with it (github.com/casys-kaist/NeuPIMs). PIM commands are
Newton's: M. He et al., "Newton: A DRAM-maker's Accelerator-in-Memory (AiM) Architecture for Machine Learning", MICRO
2020. All times are cycles of one clock, that of NPU and memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from models.systolic import SystolicParams
from models.unit import check_range, nearest, require

WORD_BYTES = 2
"""FP16, for weights, activations and caches alike"""


@dataclass(frozen=True, kw_only=True)
class PimParams:
    """A stack of memory whose banks hold a row of multipliers each.

    A channel has ranks x bank_groups x banks_per_group banks (2 x 4 x 4 = 32 in the paper's configuration). One G_ACT
    activates the banks of a group; those of a rank follow each other after tFAW.
    """

    channels: int = 32
    ranks: int = 2
    bank_groups: int = 4
    banks_per_group: int = 4
    page_bytes: int = 1024
    column_bytes: int = 32
    """what one column access of the host moves: two bits on each of 128 wires"""
    channel_mib: int = 1024
    multipliers: int = 16
    """of a bank, one word each"""
    tCL: int = 14
    tRCD: int = 14
    tRP: int = 14
    tRAS: int = 34
    tCCD_S: int = 1
    tCCD_L: int = 2
    tRRD_S: int = 4
    tRRD_L: int = 6
    tFAW: int = 30
    tRFC: int = 260
    tREFI: int = 3900

    def __post_init__(self) -> None:
        check_range("pim", self, channels=(1, 1024), ranks=(1, 8), bank_groups=(1, 16), banks_per_group=(1, 16))
        check_range("pim", self, page_bytes=(32, 1 << 16), column_bytes=(1, 1024), channel_mib=(1, 1 << 20))
        check_range("pim", self, multipliers=(1, 1024), tRFC=(0, 1 << 20), tREFI=(1, 1 << 24))
        times = ("tCL", "tRCD", "tRP", "tRAS", "tCCD_S", "tCCD_L", "tRRD_S", "tRRD_L", "tFAW")
        check_range("pim", self, **dict.fromkeys(times, (1, 10_000)))
        width = self.multipliers * WORD_BYTES
        rule = f"pim: page_bytes must be a multiple of the {width} bytes that the multipliers take at once"
        require(self.page_bytes % width == 0, f"{rule}, not {self.page_bytes}")
        rule = "pim: tRFC must be less than tREFI, or nothing but refresh is left"
        require(self.tRFC < self.tREFI, f"{rule}; {self.tRFC} and {self.tREFI} given")
        rule = "pim: tFAW must be at least ranks, whose G_ACTs share a command bus"
        require(self.ranks <= self.tFAW, f"{rule}; {self.tFAW} and {self.ranks} given")
        require(self.tCCD_S <= self.tCCD_L, f"pim: tCCD_S={self.tCCD_S} must not exceed tCCD_L={self.tCCD_L}")
        rule = f"pim: column_bytes must be a multiple of tCCD_S={self.tCCD_S}, to be so many bytes a cycle"
        require(self.column_bytes % self.tCCD_S == 0, f"{rule}, not {self.column_bytes}")

    @property
    def banks(self) -> int:
        """Of a channel."""
        return self.ranks * self.bank_groups * self.banks_per_group

    @property
    def bus_bytes(self) -> int:
        """That a channel's data bus carries in a cycle: a column every tCCD_S, bank groups in turn."""
        return self.column_bytes // self.tCCD_S

    @property
    def page_words(self) -> int:
        return self.page_bytes // WORD_BYTES

    @property
    def peak_bytes(self) -> int:
        """That all data buses carry in a cycle."""
        return self.channels * self.bus_bytes

    @property
    def peak_macs(self) -> float:
        """Of all banks in a cycle: every multiplier once for each column that is read."""
        return self.channels * self.banks * self.multipliers / self.tCCD_L


@dataclass(frozen=True, kw_only=True)
class NpuParams:
    """Systolic arrays (weight-stationary, two weight buffers) and vector units, each lane one operation a cycle."""

    arrays: int = 8
    rows: int = 128
    cols: int = 128
    vector_units: int = 8
    vector_lanes: int = 128
    clock_mhz: int = 1000

    def __post_init__(self) -> None:
        check_range("npu", self, arrays=(1, 1024), rows=(1, 256), cols=(1, 256))
        check_range("npu", self, vector_units=(1, 1024), vector_lanes=(1, 4096), clock_mhz=(1, 100_000))

    @property
    def array(self) -> SystolicParams:
        """One array; its widths, which no cycle depends on, are those of integers."""
        return SystolicParams(rows=self.rows, cols=self.cols, buffers=2)

    @property
    def lanes(self) -> int:
        return self.vector_units * self.vector_lanes

    @property
    def peak_macs(self) -> int:
        """In a cycle."""
        return self.arrays * self.rows * self.cols


@dataclass(frozen=True, kw_only=True)
class GpuParams:
    """A roofline and nothing else: a kernel takes the longer of its operations at peak and its bytes at peak.

    NVIDIA A100 40 GB (data sheet, 2020): 312 TFLOP/s in FP16 with FP32 sums, dense; 1555 GB/s.
    """

    gflops: int = 312_000
    gbytes: int = 1555

    def __post_init__(self) -> None:
        check_range("gpu", self, gflops=(1, 1 << 30), gbytes=(1, 1 << 20))


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One device: tensor and pipeline parallelism give every device such a machine and a share of the network."""

    pim: PimParams = field(default_factory=PimParams)
    npu: NpuParams = field(default_factory=NpuParams)
    gpu: GpuParams = field(default_factory=GpuParams)
    interleave_from: int = 256
    """the batch from which NeuPIMs runs two sub-batches (their README)"""

    def __post_init__(self) -> None:
        check_range("machine", self, interleave_from=(2, 1 << 30))


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A GPT-3 style decoder: heads of equal width, an FFN four times as wide, FP16 throughout."""

    name: str
    layers: int
    heads: int
    width: int
    tensor: int = 1
    """devices that share every layer"""
    pipeline: int = 1
    """stages into which the layers are divided"""

    def __post_init__(self) -> None:
        limit = (1, 1 << 20)
        check_range(self.name, self, layers=limit, heads=limit, width=limit, tensor=limit, pipeline=limit)
        for what, whole, parts in (
            ("width into heads", self.width, self.heads),
            ("heads onto devices", self.heads, self.tensor),
            ("layers into stages", self.layers, self.pipeline),
        ):
            require(whole % parts == 0, f"{self.name}: {what}: {parts} does not divide {whole}")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def device_heads(self) -> int:
        return self.heads // self.tensor

    @property
    def device_width(self) -> int:
        """Of the attention on one device."""
        return self.device_heads * self.head_dim

    @property
    def device_layers(self) -> int:
        return self.layers // self.pipeline

    @property
    def layer_weight_bytes(self) -> int:
        """On one device: QKV, projection and two matrices of the FFN."""
        return 12 * self.width * self.device_width * WORD_BYTES

    @property
    def token_cache_bytes(self) -> int:
        """Keys and values of one token in one layer on one device."""
        return 2 * self.device_width * WORD_BYTES


MODELS = {
    model.name: model
    for model in (
        Decoder(name="gpt3-7b", layers=32, heads=32, width=4096, tensor=4),
        Decoder(name="gpt3-13b", layers=40, heads=40, width=5120, tensor=4),
        Decoder(name="gpt3-30b", layers=48, heads=56, width=7168, tensor=4, pipeline=2),
        Decoder(name="gpt3-175b", layers=96, heads=96, width=12288, tensor=8, pipeline=4),
    )
}
"""Shapes and parallelism of NeuPIMs' configuration files."""


def decoder(name: str) -> Decoder:
    """The model of that name; InputError with the nearest one otherwise."""
    require(name in MODELS, f"no model {name!r}; {nearest(name, MODELS)}")
    return MODELS[name]


def check_capacity(model: Decoder, lengths: tuple[int, ...], pim: PimParams) -> None:
    """InputError where weights and the caches of one batch do not fit into a device's memory."""
    weights = model.layer_weight_bytes * model.device_layers
    caches = sum(lengths) * model.token_cache_bytes * model.device_layers
    room = pim.channels * pim.channel_mib << 20
    gib = [math.ceil(amount / (1 << 30) * 100) / 100 for amount in (weights, caches, room)]
    rule = f"{model.name}: {gib[0]} GiB of weights and {gib[1]} GiB of caches on a device of {gib[2]} GiB"
    require(weights + caches <= room, f"{rule}; take fewer or shorter requests")
