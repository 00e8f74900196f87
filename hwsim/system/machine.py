"""The machine file: engines, scratchpads, DMA and DRAM of one accelerator under one clock."""

from __future__ import annotations

import inspect
import re
from enum import StrEnum
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from hwsim.document import NAME, STRICT, load_yaml, validated
from hwsim.options import parse_options
from hwsim.sweep.space import engine_name, settings
from models.catalog import UNITS, unit
from models.unit import InputError, nearest, require

MACHINES = Path(__file__).parent / "machines"
"""the machines that come with the project"""


class Operand(StrEnum):
    """What a scratchpad holds."""

    ACTIVATIONS = "activations"
    WEIGHTS = "weights"
    """the second operand of a product, also where it is keys, values or another activation"""
    OUTPUTS = "outputs"


class Task(StrEnum):
    """What an engine can be given."""

    GEMM = "gemm"
    CONV = "conv"
    ATTENTION = "attention"


ORDERS = ("mnk", "mkn", "nmk", "nkm", "kmn", "knm")
"""loop orders, the outermost dimension first"""


def _width(value: Any) -> Fraction:
    """Bits of a value in memory: a number, or a format with options, scales and zero points included."""
    if isinstance(value, str):
        return format_bits(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    require(number, f"bits or a format is needed, not {value!r}")
    require(0 < value <= 64, f"a width of {value} bits is not above 0 and at most 64")
    return Fraction(value).limit_denominator(1 << 12)


@cache
def format_bits(text: str) -> Fraction:
    """Bits a value of a format such as `int4:group=128`, scales and zero points of groups shared out among them; what a
    whole column shares is left out."""
    import numpy as np

    from models.formats import get_format

    name, options = parse_options("format", text)
    form, rng = get_format(name, **options), np.random.default_rng(0)
    # what a column shares is halved where it is twice as long
    short, long = (form.quantize(rng.normal(size=(size, 1)), axis=0).bits_per_value for size in (4096, 8192))
    return Fraction(2 * long - short).limit_denominator(4096)


_Name = Annotated[str, Field(pattern=f"^{NAME}$")]
_Count = Annotated[int, Field(ge=1, le=1 << 20)]
_Settings = Annotated[dict[str, Any], AfterValidator(settings)]
_Cycles = Annotated[int, Field(ge=0, le=1 << 20)]
_Width = Annotated[Any, AfterValidator(_width)]
_Operand = Annotated[str, AfterValidator(lambda name: _member(Operand, name))]
_Task = Annotated[str, AfterValidator(lambda name: _member(Task, name))]


def _member(kind: type[StrEnum], name: str) -> str:
    names = [member.value for member in kind]
    require(name in names, f"{name!r} is unknown; {nearest(name[:64], names)}")
    return name


UNITS_OF_THEIR_OWN = ("bus", "vector", "transform", "quantize")
"""what else is at work in a machine, by the names that results have for it"""


def _engine(name: str) -> str:
    require(name not in UNITS_OF_THEIR_OWN, f"{name!r} is the name of another unit; take one of its own")
    return name


class EngineSpec(BaseModel):
    """A matrix engine: a GEMM unit of the catalogue with its parameters, `count` of them working as one.

    `split` is the dimension that `count` engines share out among themselves, `tasks` what the engine is given.
    `convention` counts a systolic array's cycles as our RTL or as SCALE-Sim does. `sigma` is the spread of the normal
    integers with which an engine is timed whose cycles depend on its operands.

    `modes` are parameters that the engine can be switched to from layer to layer, by name: `{ws: {dataflow: WS}, os:
    {dataflow: OS}}` is an array with two dataflows. Every product is done in the mode that serves the objective best,
    fused attention in the first one. Widths are the same in all modes.
    """

    model_config = STRICT
    name: Annotated[_Name, AfterValidator(_engine)]
    unit: Annotated[str, AfterValidator(engine_name)]
    params: _Settings = Field(alias="set", default={}, max_length=64)
    modes: dict[_Name, _Settings] = Field(default={}, max_length=16)
    count: _Count = 1
    split: Literal["M", "N"] = "N"
    tasks: Annotated[tuple[_Task, ...], Field(min_length=1, max_length=3)] = tuple(task.value for task in Task)
    convention: Literal["rtl", "scalesim"] = "rtl"
    sigma: Annotated[float, Field(ge=0, le=1e9)] = 30.0

    @cached_property
    def made_in(self) -> dict[str, Any]:
        """Mode -> the unit's params object; one mode without a name where none is given."""
        modes = self.modes or {"": {}}
        return {mode: unit(self.unit).params(**{**self.params, **own}) for mode, own in modes.items()}

    @property
    def made(self) -> Any:
        """The params object of the first mode."""
        return next(iter(self.made_in.values()))

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        names = ("act_bits", "weight_bits", "acc_bits")
        widths = {tuple(getattr(made, name, None) for name in names) for made in self.made_in.values()}
        require(len(widths) == 1, f"{', '.join(names)} must be the same in all modes")
        if self.convention != "rtl":
            timing = unit(self.unit).timing
            rule = f"{self.unit} has no convention {self.convention!r}; SCALE-Sim counts systolic arrays only"
            require("convention" in inspect.signature(timing).parameters, rule)
            for made in self.made_in.values():
                timing(made, M=1, K=1, N=1, convention=self.convention)
        return self


class VectorSpec(BaseModel):
    """The unit of everything that is no product: `lanes` operations a cycle, `latency_cycles` before the first."""

    model_config = STRICT
    lanes: _Count
    latency_cycles: _Cycles = 0


class UnitSpec(BaseModel):
    """A transform or quantizer unit. Its sizes follow from the layer; `set` has the parameters that do not."""

    model_config = STRICT
    params: _Settings = Field(alias="set", default={}, max_length=64)
    count: _Count = 1


class ScratchpadSpec(BaseModel):
    """On-chip memory for one or more kinds of operands. Every bank reads or writes a word a cycle; without banks and
    words it keeps up with whatever reads it."""

    model_config = STRICT
    name: _Name
    holds: Annotated[tuple[_Operand, ...], Field(min_length=1, max_length=3)]
    kib: Annotated[float, Field(ge=1 / 1024, le=1 << 24)]
    banks: _Count | None = None
    word_bytes: _Count | None = None

    @model_validator(mode="after")
    def _has_both(self) -> Self:
        rule = "banks and word_bytes say together what it hands over in a cycle; give both or none"
        require((self.banks is None) == (self.word_bytes is None), rule)
        return self

    @property
    def bytes(self) -> int:
        return int(self.kib * 1024)

    @property
    def bits_per_cycle(self) -> int | None:
        """None: unlimited."""
        return None if self.banks is None or self.word_bytes is None else self.banks * self.word_bytes * 8


class DramSpec(BaseModel):
    """Main memory: one bus that carries `bytes_per_cycle`, unlimited where it is none. Data of a read arrive
    `latency_cycles` after they left the bus, which is free meanwhile. Every row of `row_bytes` that a transfer opens
    holds the bus for `row_miss_cycles`."""

    model_config = STRICT
    bytes_per_cycle: Annotated[float, Field(ge=1e-6, le=1 << 30)] | None = None
    latency_cycles: _Cycles = 0
    row_bytes: _Count | None = None
    row_miss_cycles: _Cycles = 0
    pj_per_bit: Annotated[float, Field(ge=0, le=1e6)] | None = None


class DmaSpec(BaseModel):
    """`channels` transfers can be under way; each holds its channel for `setup_cycles` before it asks for the bus."""

    model_config = STRICT
    channels: _Count = 1
    setup_cycles: _Cycles = 0


class WidthSpec(BaseModel):
    """Bits of a value in memory: a number, or a format such as `int4:group=128`, scales included.

    By default those of the engine's parameters, and 16 for `hidden`, which is what no engine multiplies.
    """

    model_config = STRICT
    activations: _Width | None = None
    weights: _Width | None = None
    cache: _Width | None = None
    hidden: _Width = Fraction(16)


class LayerSpec(BaseModel):
    """Schedule of the layers whose name matches `match`: the engine's mode, loop order and tile [M, K, N], searched for
    where none is given. A tile without an order is taken with M outside and N inside."""

    model_config = STRICT
    match: Annotated[str, Field(min_length=1, max_length=256)]
    mode: _Name | None = None
    order: Literal["mnk", "mkn", "nmk", "nkm", "kmn", "knm"] | None = None
    tile: Annotated[tuple[_Count, ...], Field(min_length=3, max_length=3)] | None = None


class ScheduleSpec(BaseModel):
    """What tilings are searched for, and layers whose schedule is given."""

    model_config = STRICT
    objective: Literal["cycles", "traffic", "energy"] = "cycles"
    layers: Annotated[tuple[LayerSpec, ...], Field(max_length=1000)] = ()


def _distinct(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    names = [part.name for part in parts]
    require(len(set(names)) == len(names), f"a name stands twice among {', '.join(names)}")
    return parts


def _hold_all(pads: tuple[ScratchpadSpec, ...]) -> tuple[ScratchpadSpec, ...]:
    """Every operand has one place."""
    held = [operand for pad in pads for operand in pad.holds]
    for operand in Operand:
        count = held.count(operand)
        require(count == 1, f"{operand.value} must be held by one of them, not by {count}")
    return pads


class Machine(BaseModel):
    """One accelerator. InputError where parts do not fit each other."""

    model_config = STRICT
    name: _Name
    clock_mhz: Annotated[float, Field(gt=0, le=1e6)]
    engines: Annotated[tuple[EngineSpec, ...], Field(min_length=1, max_length=64), AfterValidator(_distinct)]
    scratchpads: Annotated[
        tuple[ScratchpadSpec, ...],
        Field(min_length=1, max_length=3),
        AfterValidator(_distinct),
        AfterValidator(_hold_all),
    ]
    dram: DramSpec = DramSpec()
    dma: DmaSpec = DmaSpec()
    vector: VectorSpec | None = None
    transform: UnitSpec = UnitSpec()
    quantizer: UnitSpec = UnitSpec()
    widths: WidthSpec = WidthSpec()
    double_buffering: bool = True
    prefetch: bool = False
    fuse: bool = True
    attention: Literal["fused", "unfused"] = "unfused"
    convolution: Literal["im2col", "indirect"] = "indirect"
    depthwise: Literal["engine", "vector"] = "vector"
    """where convolutions run that have a group for each channel; on the engine where there is no vector unit"""
    schedule: ScheduleSpec = ScheduleSpec()
    notes: Annotated[tuple[str, ...], Field(max_length=100)] = ()
    """shown beside every result"""

    @property
    def copies(self) -> int:
        """Tiles of an operand that have room side by side."""
        return 2 if self.double_buffering else 1

    def scratchpad(self, operand: Operand) -> ScratchpadSpec:
        """The one that holds this operand."""
        return next(pad for pad in self.scratchpads if operand in pad.holds)

    def engine(self, task: Task) -> EngineSpec:
        """The one that is given this task; InputError where there is none."""
        found = next((engine for engine in self.engines if task in engine.tasks), None)
        if found is None:
            raise InputError(f"machine {self.name}: no engine takes {task.value}; add it to an engine's tasks")
        return found


def load_machine(text: str) -> Machine:
    """The machine of that file, YAML or SCALE-Sim's .cfg, or of that name among those that come with the project.

    InputError, one line with file, line and key, for what does not fit the schema.
    """
    path = Path(text)
    if path.suffix == ".cfg":
        return _scalesim_machine(path)
    known = sorted(file.stem for file in MACHINES.glob("*.yaml"))
    if path.suffix not in (".yaml", ".yml"):
        require(text in known, f"no machine {text!r}: a .yaml file, or a name; {nearest(text[:64], known)}")
        path = MACHINES / f"{text}.yaml"
    return validated(load_yaml(path), Machine, "a machine file")


def _scalesim_machine(path: Path) -> Machine:
    """SCALE-Sim's machine: its array counted by its convention, three double-buffered scratchpads, words of a byte."""
    from hwsim.workloads.scalesim import load_config

    config = load_config(path)
    notes = [f"{path.name}: {len(config.ignored)} keys have no part here: {', '.join(config.ignored)}"]
    if config.bandwidth is not None:
        notes.append("SCALE-Sim's three interfaces to memory are one bus here, with their bandwidths together")
    entry = next(name for name, u in UNITS.items() if "convention" in inspect.signature(u.timing).parameters)
    kib = {"ifmap": config.ifmap_kib, "filter": config.filter_kib, "ofmap": config.ofmap_kib}
    document = {
        "name": re.sub(r"[^a-z0-9._-]+", "-", config.name.lower()).strip("-._")[:64] or "scalesim",
        "clock_mhz": 1000.0,
        "engines": (
            {
                "name": "array",
                "unit": entry,
                "set": {"rows": config.rows, "cols": config.cols, "dataflow": config.dataflow},
                "convention": "scalesim",
            },
        ),
        "scratchpads": tuple(
            {"name": name, "holds": (operand.value,), "kib": float(kib[name])}
            for name, operand in zip(kib, Operand, strict=True)
        ),
        "dram": {} if config.bandwidth is None else {"bytes_per_cycle": float(sum(config.bandwidth))},
        "dma": {"channels": len(kib)},
        "notes": tuple(notes if config.ignored else notes[1:]),
    }
    try:
        return Machine.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{path}: {error.errors()[0]['msg']}") from None


def bytes_of(elements: Any, bits: Fraction) -> Any:
    """Bytes that hold so many values; of an int64 array of numbers an array."""
    return -(-elements * bits.numerator // (8 * bits.denominator))
