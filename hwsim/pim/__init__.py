"""NPU and processing in memory (NeuPIMs, ASPLOS 2024): batched decoding on systems that share one machine."""

from hwsim.pim.params import MODELS, Decoder, GpuParams, Machine, NpuParams, PimParams
from hwsim.pim.requests import DATASETS
from hwsim.pim.systems import COMPARED, PAPER, SYSTEMS, Result, compare, throughput

__all__ = [
    "COMPARED",
    "DATASETS",
    "MODELS",
    "PAPER",
    "SYSTEMS",
    "Decoder",
    "GpuParams",
    "Machine",
    "NpuParams",
    "PimParams",
    "Result",
    "compare",
    "throughput",
]
