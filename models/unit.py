"""What a unit is: its contract, the records that pass between its functions, and the stepping of its streams.

A unit is a pair of files of one name, `models/<unit>.py` and `rtl/<unit>.py`. The model file defines the names
listed in `Unit`; everything else in the project reaches a unit through this contract and never by its name.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Beats = Mapping[str, Mapping[str, Ints]]
"""Stream name -> payload field -> integers of shape [beats, *lanes]."""


class InputError(ValueError):
    """A refusal: one line that names the place, the rule and the nearest valid choice. The command line exits with
    2."""


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def nearest(word: str, choices: typing.Iterable[str]) -> str:
    """A hint for a mistyped name: `did you mean 'x'?` where one is close, otherwise all the valid names."""
    names = sorted(str(choice) for choice in choices)
    same = [name for name in names if name.lower() == word.lower()]
    close = same or difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else "one of: " + ", ".join(names)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Cycles of one run without stalls, compute only (memory is the system model's).

    Every field is an int, or an int64 array where `timing` was given arrays of shapes. `total_cycles` counts from the
    first transferred input beat up to and including the cycle of the last output beat.
    """

    total_cycles: Any
    load_cycles: Any
    """cycles in which stationary operands are loaded; those hidden under a tile at work are not counted"""
    stream_cycles: Any
    """cycles in which activations are transferred"""
    drain_cycles: Any
    """all others: fill, drain, the latency between folds, and waiting for a tile that loads under another"""
    work: Any
    """useful operations: multiply-accumulates of a GEMM, input points of a transform"""
    peak_per_cycle: float
    """the work of a cycle in which every lane is busy"""
    words: Mapping[str, Any] | None = None
    """of a GEMM: how many operands cross the array's edge, padding left out: `act`, `weight`, `psum` (partial sums
    taken up again, the first ones left out) and `out`"""
    stall_cycles: Any = 0
    """cycles lost to idle inputs or back-pressure; 0 here by definition, counted by the system model"""
    column_cycles: Ints | None = None
    """where columns run on their own: the cycles in which each of them computed, over the whole run"""
    sync_cycles: int | None = None
    """where columns run on their own: column-cycles in which one had done its share and the slowest had not"""

    @property
    def utilization(self) -> Any:
        """Useful work over the work that all cycles could have held, 0 to 1.

        NaN where a convention other than the RTL's counts no cycle at all.
        """
        room = np.asarray(self.total_cycles * self.peak_per_cycle, dtype=np.float64)
        share = np.divide(self.work, room, out=np.full(room.shape, np.nan), where=room > 0)
        return share if share.ndim else float(share)

    @property
    def column_room(self) -> int:
        """Column-cycles in all, loading left out, where columns run on their own."""
        return int(self.total_cycles - self.load_cycles) * len(
            self.column_cycles if self.column_cycles is not None else ()
        )


@dataclass(frozen=True)
class Op:
    """`count` energy-bearing operations of one kind and width.

    kind: `mul` (bits x bits2), `add` (bits), `mux` (bits, one of bits2 inputs), `shift` (bits, by up to bits2 places),
    `reg` (bits written); and the parts of a multiplication that carry-save and encoded arrays leave out or move:
    `encode` (an operand of `bits` bits to radix-4 digits), `products` (bits x bits2: partial products of digits that
    are there already, compressed to a carry-save pair), `csa` (`bits` full adders whose carries do not propagate); and
    `fadd`, `fmul`: an addition or multiplication in floating point, `bits` the width of its format.
    """

    kind: str
    count: int
    bits: int
    bits2: int = 0


@dataclass(frozen=True, kw_only=True)
class Stimulus:
    """What the outside does to a unit's streams.

    `beats` holds what each input stream transfers, in order. `offer[name]` says in which cycles a *new* beat may
    first be shown; once shown it stays until it is transferred. `accept[name]` says in which cycles an output
    stream's `ready` is high. Both are boolean patterns, repeated for as long as needed, with at least one True. A
    port that shows no beat shows all ones in every payload bit. A trace ends `tail` cycles after the last output
    beat; a run that is cut off has the first cycles of the same trace.
    """

    beats: Beats
    offer: Mapping[str, NDArray[np.bool_]]
    accept: Mapping[str, NDArray[np.bool_]]
    tail: int = 4


Trace = dict[str, NDArray[Any]]
"""Port -> value of every cycle: `<stream>.valid`, `<stream>.ready` (bool [T]) and `<stream>.payload.<field>`
(int64 [T, *lanes]). An output that is not valid has a payload of zero."""


class Control(Protocol):
    """The control state of a unit, stepped one cycle at a time; payloads do not enter it except `last` marks."""

    def ready(self, valid: Mapping[str, bool], accept: bool) -> dict[str, bool]:
        """Ready of each input stream in this cycle; `accept` is the output's ready."""
        ...

    def shown(self) -> int | None:
        """Index of the output beat shown in this cycle, None when not valid."""
        ...

    def clock(self, taken: Mapping[str, int], accept: bool) -> None:
        """The clock edge. `taken` maps each input stream that transfers to the index of its beat."""
        ...


def step_streams(
    control: Control, stimulus: Stimulus, output: str, outputs: int
) -> tuple[dict[str, Ints], dict[str, NDArray[np.bool_]]]:
    """Drive `control` with `stimulus` until `outputs` beats have left.

    Returns `(index, ready)`: for each stream the index of the beat shown in each cycle (-1: not valid) and its ready.
    Raises InputError when 4 repetitions of the longest pattern pass without a transfer (the beats do not fit the unit).
    """
    counts = {name: len(next(iter(fields.values()))) for name, fields in stimulus.beats.items()}
    sent = dict.fromkeys(counts, 0)
    showing = dict.fromkeys(counts, False)
    index: dict[str, list[int]] = {name: [] for name in (*counts, output)}
    readies: dict[str, list[bool]] = {name: [] for name in (*counts, output)}
    patience = 4 * max(len(p) for p in (*stimulus.offer.values(), *stimulus.accept.values())) + 4096
    received = cycle = quiet = 0
    end: int | None = None
    while end is None or cycle < end:
        for name, count in counts.items():
            pattern = stimulus.offer[name]
            showing[name] = sent[name] < count and (showing[name] or bool(pattern[cycle % len(pattern)]))
        accept_pattern = stimulus.accept[output]
        accept = bool(accept_pattern[cycle % len(accept_pattern)])
        ready = control.ready(showing, accept)
        shown = control.shown()
        taken = {name: sent[name] for name in counts if showing[name] and ready[name]}
        for name in counts:
            index[name].append(sent[name] if showing[name] else -1)
            readies[name].append(ready[name])
        index[output].append(-1 if shown is None else shown)
        readies[output].append(accept)
        control.clock(taken, accept)
        for name in taken:
            sent[name] += 1
            showing[name] = False
        left = accept and shown is not None
        received += left
        quiet = 0 if taken or left else quiet + 1
        require(quiet < patience, f"stimulus: no transfer for {patience} cycles; the beats do not fit the unit")
        cycle += 1
        if end is None and received == outputs:
            end = cycle + stimulus.tail
    return (
        {name: np.array(values, dtype=np.int64) for name, values in index.items()},
        {name: np.array(values, dtype=bool) for name, values in readies.items()},
    )


def assemble_trace(
    stimulus: Stimulus,
    index: Mapping[str, Ints],
    ready: Mapping[str, NDArray[np.bool_]],
    output: str,
    out_beats: Mapping[str, Ints],
) -> Trace:
    """Put the beats' payloads where `index` shows them: all ones on an idle input, zeros on an idle output."""
    trace: Trace = {}
    for name, shown in index.items():
        trace[f"{name}.valid"] = shown >= 0
        trace[f"{name}.ready"] = ready[name]
        idle = 0 if name == output else -1
        for field, values in (out_beats if name == output else stimulus.beats[name]).items():
            padded = np.concatenate([values, np.full((1, *values.shape[1:]), idle, dtype=np.int64)])
            trace[f"{name}.payload.{field}"] = padded[shown]
    return trace


class PipelineControl:
    """A pipeline of `latency` register stages under one advance enable: it stands still while an output waits.

    A beat transferred in cycle t is shown in cycle t + latency when nothing stalls.
    """

    def __init__(self, latency: int, stream: str) -> None:
        self.stages: list[int | None] = [None] * latency
        self.stream = stream

    def ready(self, valid: Mapping[str, bool], accept: bool) -> dict[str, bool]:
        return {self.stream: self.advance(accept)}

    def advance(self, accept: bool) -> bool:
        return accept or self.stages[-1] is None

    def shown(self) -> int | None:
        return self.stages[-1]

    def clock(self, taken: Mapping[str, int], accept: bool) -> None:
        if self.advance(accept):
            self.stages = [taken.get(self.stream), *self.stages[:-1]]


class CombinationalControl:
    """No register at all: the beat shown at the input is shown at the output in the same cycle."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.sent = 0
        self.valid = False

    def ready(self, valid: Mapping[str, bool], accept: bool) -> dict[str, bool]:
        self.valid = valid[self.stream]
        return {self.stream: accept}

    def shown(self) -> int | None:
        return self.sent if self.valid else None

    def clock(self, taken: Mapping[str, int], accept: bool) -> None:
        self.sent += len(taken)


class Kind(StrEnum):
    """What a unit does, and with it which operands its functions take."""

    GEMM = "gemm"
    """Y[M, N] = A[M, K] @ W[K, N]; shape M, K, N; operands A, W"""
    TRANSFORM = "transform"
    """Y[M, K] from X[M, K]; shape M, K; operand X"""
    ENCODER = "encoder"
    """a code word for each element of X[M, K]; shape M, K; operand X"""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Ratios that a paper reports over its own plain multiply-accumulate baseline; never returned as ours."""

    source: str
    area_efficiency: float | None = None
    energy_efficiency: float | None = None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A design that `hwsim compare` lays beside the others of its architecture."""

    family: str
    architecture: str
    style: str
    """how it multiplies and accumulates"""
    params: Any
    baseline: str = "mac"
    """the style, one of each architecture, that ratios are over"""
    published: Published | None = None
    differs: str = ""
    """why our ratio and the paper's differ"""


@dataclass(frozen=True)
class Unit:
    """One entry of the catalogue: the functions of `models/<name>.py`, imported when first used.

    That module defines

    - its params class, named like the unit with `Params` behind (`LutGemmParams`), and `PRESETS`, name -> params;
    - `golden(params, *operands)`: what the hardware computes, int64, vectorised;
    - `timing(params, **shape)`: exact cycles as `Timing`; shapes may be int64 arrays. Where cycles depend on what the
      operands hold, it takes one shape and more than M, K and N; `shape_of` gives all of it;
    - `trace(params, stimulus)`: every port of every cycle as `Trace`;
    - `ops(params, **shape)`: the energy-bearing operations as a tuple of `Op`;
    - `beats(params, *operands)`: the input beats of a whole run; `result(params, operands, out_beats)`: its inverse,
      the output beats put together like `golden`'s result;
    - `shape_of(params, *operands)`: the shape, and whatever else `timing` and `ops` take;
    - `sample(params, rng, **shape)`: random operands with corners, of a random small shape where none is given;
    - GEMM engines have the parameters `act_bits`, `weight_bits` and `acc_bits`, take a starting psum [M, N] as an
      optional last operand of `golden`, `beats` and `shape_of` (or refuse it), and also define `weight_format(params)`:
      name and options of the `models.formats` format whose codes the engine takes, integers with one step a column;
      `operand(params, quantized)`: such codes as W; `from_integers(params, W)`: a plain integer matrix as W; both with
      a `Fraction`: what one unit of golden's output is worth in units of A @ W. An engine whose weights cannot be all
      integers of `weight_bits` two's-complement bits also defines `plain_weights(params)`: those that they can be,
      ascending;
    - GEMM engines that take FP16 activations have a field `act_format` (`models.floats.ActFormat`). With FP16, A is
      float16 (or what float16 holds exactly), psum and result are float32, and beats hold the bit patterns of both;
    - GEMM engines whose activations are neither such integers nor FP16 define `act_format(params)`: name and options of
      the format whose codes they take; `act_operand(params, quantized)`: such codes [M, K], quantized along K, as A,
      with a `Fraction`: what one unit of golden's output is worth by them, beside that of `operand`. Their `golden`
      takes a plain integer matrix as A as well, of the integers that `plain_acts(params)` lists, ascending;
    - where it is to stand in `hwsim compare`: `COMPARED`, a tuple of `Compared`;
    - a GEMM engine may define `value_free(params)`: the names of those fields that, with the others as they are, change
      no value. For all settings of them that can be built, formats, operands and `golden` are the same (a starting psum
      may be refused by some), and, unless cycles depend on what operands hold, so is `shape_of`. Fields that it does
      not name decide what it names.
    - it may define `activity(params, M, K, N)`: bool [cycles, rows, cols], which PE multiplies in which cycle of a run
      without stalls; reports draw it.
    """

    name: str
    kind: Kind
    summary: str
    params_name: str

    @cached_property
    def module(self) -> Any:
        return importlib.import_module(f"models.{self.name}")

    @property
    def params_type(self) -> type:
        return typing.cast(type, getattr(self.module, self.params_name))

    @cached_property
    def param_types(self) -> Mapping[str, Any]:
        """Parameter -> its type, a union with None where it may be left open."""
        return typing.get_type_hints(self.params_type)

    @property
    def presets(self) -> Mapping[str, Any]:
        return typing.cast(Mapping[str, Any], self.module.PRESETS)

    @property
    def compared(self) -> tuple[Compared, ...]:
        """The unit's designs for `hwsim compare`."""
        return typing.cast(tuple[Compared, ...], getattr(self.module, "COMPARED", ()))

    def plain_weights(self, params: Any) -> Ints:
        """The plain integers, ascending, that a weight can be."""
        if hasattr(self.module, "plain_weights"):
            return typing.cast(Ints, self.module.plain_weights(params))
        half = 1 << (params.weight_bits - 1)
        return np.arange(-half, half)

    def plain_acts(self, params: Any) -> Ints:
        """The plain integers, ascending, that an activation can be, of an engine that does not take FP16."""
        if hasattr(self.module, "plain_acts"):
            return typing.cast(Ints, self.module.plain_acts(params))
        half = 1 << (params.act_bits - 1)
        return np.arange(-half, half)

    def value_free(self, params: Any) -> tuple[str, ...]:
        """Names of the fields that change no value, only where, when and at what cost it is computed."""
        return typing.cast(tuple[str, ...], getattr(self.module, "value_free", _none)(params))

    @property
    def has_act_format(self) -> bool:
        """Whether activations have a format of their own, as `act_format` and `act_operand` say."""
        return hasattr(self.module, "act_format")

    @property
    def timed_by_operands(self) -> bool:
        """Whether cycles depend on what the operands hold and not on their shape alone."""
        return not {"M", "K", "N", "convention"}.issuperset([*inspect.signature(self.timing).parameters][1:])

    def params(self, **values: Any) -> Any:
        """The unit's params object. Values may be text (from a command line or file); they take the field's type.

        Raises InputError naming the unit, the parameter and the rule.
        """
        hints = self.param_types
        for name in values:
            if name not in hints:  # the nearest name costs more than all else here
                raise InputError(f"{self.name}: no parameter {name!r}; {nearest(name, hints)}")
        return self.params_type(**{name: _as_type(self.name, name, v, hints[name]) for name, v in values.items()})

    def preset(self, name: str) -> Any:
        """The params of a named preset; InputError with the nearest name otherwise."""
        require(name in self.presets, f"{self.name}: no preset {name!r}; {nearest(name, self.presets)}")
        return self.presets[name]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in CONTRACT:
            return typing.cast(Callable[..., Any], getattr(self.module, name))
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _none(params: Any) -> tuple[str, ...]:
    return ()


CONTRACT = frozenset(
    {"golden", "timing", "trace", "ops", "beats", "result", "sample", "shape_of"}
    | {"weight_format", "operand", "from_integers", "act_format", "act_operand"}
)


def _as_type(unit: str, name: str, value: Any, hint: Any) -> Any:
    """`value` as the type of the params field: text is read, anything else must already fit."""
    options = [t for t in (typing.get_args(hint) or (hint,)) if t is not type(None)]
    kind = options[0]
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        require(len(options) < len(typing.get_args(hint)), f"{unit}: {name} takes {kind.__name__}, not none")
        return None
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        choices = [member.value for member in kind]
        match = next((c for c in choices if c.lower() == str(value).lower()), None)
        if match is None:
            raise InputError(f"{unit}: {name}={value!r} is unknown; {nearest(str(value), choices)}")
        return kind(match)
    if kind is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        read = value if isinstance(value, bool) else words.get(str(value).lower())
        require(isinstance(read, bool), f"{unit}: {name}={value!r} is not a truth value; true or false")
        return read
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer, str)):
            raise InputError(f"{unit}: {name}={value!r} is not a whole number")
        if isinstance(value, str) and not re.fullmatch(r"[+-]?([0-9]{1,400}|0x[0-9A-Fa-f]{1,256})", value):
            raise InputError(f"{unit}: {name}={value[:60]!r} is not a whole number")
        return int(value, 16 if "x" in value else 10) if isinstance(value, str) else int(value)
    return value


def check_range(unit: str, params: Any, **limits: tuple[int, int]) -> None:
    """Refuse a params object whose named integer fields lie outside their inclusive limits; make them plain ints."""
    for name, (low, high) in limits.items():
        value = getattr(params, name)
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        rule = f"{unit}: {name} must be " + (f"{low}" if low == high else f"a whole number from {low} to {high}")
        require(whole and low <= value <= high, f"{rule}, not {value!r}")
        object.__setattr__(params, name, int(value))


def check_choice(unit: str, params: Any, **kinds: type[StrEnum]) -> None:
    """Refuse a params object whose named fields are no members of their enumeration; make texts members."""
    for name, kind in kinds.items():
        value = getattr(params, name)
        choices = [member.value for member in kind]
        if value not in choices:
            raise InputError(f"{unit}: {name}={value!r} is unknown; {nearest(str(value), choices)}")
        object.__setattr__(params, name, kind(value))


def fields_of(params: Any) -> Iterator[tuple[str, Any]]:
    """Name and plain value of every field of a params object, in order of definition."""
    for field in dataclasses.fields(params):
        value = getattr(params, field.name)
        yield field.name, value.value if isinstance(value, StrEnum) else value
