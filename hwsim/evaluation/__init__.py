"""The usual evaluation of a design point: its accuracy, its cycles, and the synthesis of its own RTL, a task each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwsim.sweep.tasks import Evaluation

PARTS = ("accuracy", "cycles", "synthesis")
"""what a study may ask for, and the kinds of tasks"""


def evaluation(settings: Mapping[str, Any]) -> Evaluation:
    """The evaluation of those `parts` of the settings (all where they name none) on the cell library at `liberty` (None
    or absent: the built-in one).

    A study of some parts gets the metrics of `metrics_of`. InputError for parts that do not exist.
    """
    from hwsim.evaluation import points
    from hwsim.evaluation.check import check
    from hwsim.sweep.tasks import Evaluation

    own = points.Settings(parts=points.checked_parts(settings.get("parts", PARTS)), liberty=settings.get("liberty"))
    return Evaluation(
        functions={"accuracy": _accuracy, "cycles": _cycles, "synthesis": partial(_synthesis, own.liberty)},
        check=check,
        plan=partial(points.plan, own),
        combine=partial(points.combine, own),
        version=partial(points.version, own),
    )


def metrics_of(parts: Sequence[str]) -> tuple[str, ...]:
    """Names of the metrics that these parts give, in the registry's order; InputError for parts that do not exist.

    Those of speed and cost at the clock of the hardware need cycles and synthesis.
    """
    from hwsim.evaluation.points import metrics_of as given

    return given(parts)


def _accuracy(**inputs: Any) -> Mapping[str, Any]:
    from hwsim.evaluation.accuracy import accuracy

    return accuracy(**inputs)


def _cycles(**inputs: Any) -> Mapping[str, Any]:
    from hwsim.evaluation.cycles import cycles

    return cycles(**inputs)


def _synthesis(liberty: str | None, **inputs: Any) -> Mapping[str, Any]:
    from hwsim.evaluation.synthesis import synthesis

    return synthesis(**inputs, liberty=liberty)
