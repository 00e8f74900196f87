"""Area and delay of one piece of hardware, from its own RTL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwsim.evaluation.engine import built
from hwsim.evaluation.library import library_name
from hwsim.synth import synthesize
from models.unit import require
from rtl.emit import emit


def synthesis(*, unit: str, params: Mapping[str, Any], library: str, liberty: str | None) -> dict[str, Any]:
    """What `hwsim.synth.SynthResult` says of the unit, as plain data.

    `library` is the `library_name` of the file at `liberty` (None: the built-in library); InputError where it is not.
    """
    there = library_name(liberty)
    require(there == library, f"{liberty}: is {there}, not the study's {library}; put that file there")
    entry, made = built(unit, params)
    result = synthesize(emit(made), entry.name, liberty=Path(liberty) if liberty else None)
    return {
        "area_um2": result.area_um2,
        "gate_equivalents": result.gate_equivalents,
        "delay_ns": result.delay_ns,
        "multiplier": result.multiplier,
        "modules": [list(module) for module in result.modules],
        "cells": result.cells,
        "critical_path": list(result.critical_path),
        "library": result.library,
    }
