"""The area-delay curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwsim.files import os_errors, write_atomic
from hwsim.synth import SynthResult
from models.unit import InputError, require

SVG = b"<svg "


def check_target(path: Path) -> None:
    """Refuse a target that is neither absent nor an SVG picture."""
    with os_errors(path):
        require(not path.is_dir(), f"{path}: is a folder; name a file")
        if path.exists():
            with path.open("rb") as file:
                begin = file.read(len(SVG))
            require(begin == SVG, f"{path}: exists and is no SVG picture; name another file")


def write_curve(results: Sequence[SynthResult], title: str, path: Path) -> None:
    """Write area against critical path as SVG, atomically. InputError as `check_target`, or for a missing extra."""
    check_target(path)
    write_atomic(path, _svg(_chart(results, title)))


def _chart(results: Sequence[SynthResult], title: str) -> dict[str, Any]:
    axis = {"type": "quantitative", "scale": {"zero": False, "nice": True}}
    return {
        "title": title,
        "width": 560,
        "height": 320,
        "data": {"values": [{"delay": r.delay_ns, "area": r.area_um2} for r in results]},
        "mark": {"type": "line", "point": True, "interpolate": "step-after"},
        "encoding": {
            "x": {"field": "delay", "title": "critical path [ns]", **axis},
            "y": {"field": "area", "title": "area [um2]", **axis},
        },
    }


def _svg(chart: dict[str, Any]) -> str:
    try:
        import vl_convert
    except ImportError:
        raise InputError("a picture needs vl_convert; pip install 'hwsim[report]'") from None
    return vl_convert.vegalite_to_svg(chart)
