"""The streams of a component as ports: bit positions come from the RTL's own layouts, so nobody can disagree on
them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.bits import pack_bits, to_bits, wrap
from models.unit import Ints


@dataclass(frozen=True, kw_only=True)
class Field:
    """One payload field: the lowest bit of every lane, and the lanes' common type."""

    name: str
    offsets: Ints
    width: int
    signed: bool


@dataclass(frozen=True, kw_only=True)
class Port:
    """One stream. Its signals are `<name>__payload` (packed, `width` bits), `<name>__valid`, `<name>__ready`."""

    name: str
    is_input: bool
    width: int
    fields: tuple[Field, ...]

    @property
    def signals(self) -> dict[str, int]:
        """Name -> width of its signals."""
        return {f"{self.name}__payload": self.width, f"{self.name}__valid": 1, f"{self.name}__ready": 1}

    @property
    def idle(self) -> int:
        """What a driver shows while it offers no beat: all ones."""
        return (1 << self.width) - 1


def ports_of(streams: Mapping[str, Any]) -> tuple[Port, ...]:
    """The streams of a unit, as `rtl.emit.streams` gives them, as ports."""
    from amaranth.lib.wiring import Flow

    return tuple(
        Port(
            name=name,
            is_input=member.flow is Flow.In,
            width=member.signature.members["payload"].shape.size,
            fields=tuple(_fields(member.signature.members["payload"].shape)),
        )
        for name, member in streams.items()
    )


def _fields(layout: Any) -> Iterator[Field]:
    from amaranth.hdl import Shape

    for name, field in layout:
        offsets, element = np.array(field.offset, dtype=np.int64), field.shape
        while hasattr(element, "elem_shape"):
            stride = Shape.cast(element.elem_shape).width
            offsets = offsets[..., None] + stride * np.arange(element.length)
            element = element.elem_shape
        shape = Shape.cast(element)
        yield Field(name=name, offsets=offsets, width=shape.width, signed=shape.signed)


def pack(port: Port, fields: Mapping[str, Ints]) -> list[int]:
    """Each beat of `fields` (name -> [beats, *lanes]) as one integer of `port.width` bits."""
    count = len(next(iter(fields.values())))
    bits = np.zeros((count, port.width), dtype=np.uint8)
    for field in port.fields:
        where = field.offsets.reshape(-1, 1) + np.arange(field.width)
        lanes = fields[field.name].reshape(count, field.offsets.size)
        bits[:, where.reshape(-1)] = to_bits(lanes, field.width).reshape(count, -1)
    return pack_bits(bits)


def unpack(port: Port, words: Sequence[int]) -> dict[str, Ints]:
    """The inverse of `pack`."""
    size = (port.width + 7) // 8
    raw = np.frombuffer(b"".join(word.to_bytes(size, "little") for word in words), dtype=np.uint8)
    bits = np.unpackbits(raw.reshape(len(words), size), axis=1, bitorder="little").astype(np.int64)
    fields = {}
    for field in port.fields:
        where = field.offsets[..., None] + np.arange(field.width)
        values = (bits[:, where] << np.arange(field.width)).sum(axis=-1)
        fields[field.name] = wrap(values, field.width) if field.signed else values
    return fields
