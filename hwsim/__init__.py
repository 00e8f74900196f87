"""hwsim: accuracy, cycles, energy and silicon area of low-bit matrix engines, each from one proven source.

`import hwsim` loads nothing heavy; the names below are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwsim.simulate import GemmResult, simulate_gemm
    from hwsim.studies import Study
    from hwsim.synth import synthesize
    from hwsim.verify import verify
    from models.unit import InputError

__version__ = "0.1.0"
__all__ = ["GemmResult", "InputError", "Study", "__version__", "simulate_gemm", "synthesize", "verify"]

_HOMES = {
    "GemmResult": "hwsim.simulate",
    "simulate_gemm": "hwsim.simulate",
    "Study": "hwsim.studies",
    "InputError": "models.unit",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hwsim' has no attribute {name!r}")
