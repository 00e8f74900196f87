"""The hardware that turns activations into codes: which quantizer stands before what reads integers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.catalog import unit
from models.formats import IntFormat
from models.unit import Unit

QUANTIZER = {"act_format": "fp16", "lanes": 8, "passes": 2}
"""Every quantizer unless something else is known of it: so many activations become codes in a cycle"""


def quantizers(work: Any) -> Iterator[tuple[Any, dict[str, int]]]:
    """Params of the unit, and the shape of its run, for everything in the codes of a `hwsim.quantize.Work` that becomes
    integers. Engines that take floats need none.

    Values are FP16, or the integers that a transform's unit put out. They come out of memory, as units take turns, so
    that quantizers need no buffer and read a token twice. There is one for each width of token, filled up with zeros to
    whole beats.
    """
    for fmt, before, rows, channels in work.codes:
        if isinstance(fmt, IntFormat):
            values = {**_entering(before), "bits": fmt.bits, "zero_points": not fmt.symmetric}
            entry, made = token_quantizer(channels, values)
            yield made, entry.module.token_run(made, rows, channels)


def token_quantizer(channels: int, values: Mapping[str, Any]) -> tuple[Unit, Any]:
    """The quantizer for tokens of so many channels, of FP16 unless `values` say otherwise, and its params."""
    entry = unit("quantizer")
    values = {**QUANTIZER, **values}
    lanes = int(values["lanes"])
    return entry, entry.params(**values, group=-(-channels // lanes) * lanes)


def _entering(before: Any) -> dict[str, Any]:
    """What a quantizer reads behind this map's unit, or out of memory."""
    if before is None:
        return {}
    name, params = before.hardware()
    return {"act_format": "int", "in_bits": unit(name).params(**params).out_bits}
