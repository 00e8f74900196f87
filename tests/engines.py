"""What tests over every GEMM engine need: parameters with which it multiplies plain integers exactly, and operands."""

import dataclasses

import numpy as np

from hwsim.simulate import in_units, is_float
from models.catalog import UNITS, unit, unit_of
from models.unit import InputError

ENGINES = [name for name, entry in UNITS.items() if entry.kind == "gemm"]


def plain_params(name, **wanted):
    """Parameters of at most 4 weight bits, without any approximation, and those wanted that the unit has and takes."""
    fields = unit(name).params_type.__dataclass_fields__
    exact = {"weight_bits": 4, "table_bits": None, "act_element": "int8", "weight_element": "int8"} | wanted
    given = {field: value for field, value in exact.items() if field in fields}
    for leave_out in ((), ("weight_bits",), tuple(wanted), ("weight_bits", *wanted)):
        try:
            return unit(name).params(**{f: v for f, v in given.items() if f not in leave_out})
        except InputError:
            continue
    raise AssertionError(name)


def plain_weights(params, name, rng, shape, most=8):
    """Random weights that the engine can hold, from -most to most - 1."""
    held = unit(name).plain_weights(params)
    return rng.choice(held[(held >= -most) & (held < most)], shape)


def product(params, name, a, w, *psum):
    """What golden makes of plain integers, in units of a @ w."""
    operand, worth = unit(name).from_integers(params, w)
    return in_units(unit(name).golden(params, a, operand, *psum), worth)


def is_exact(params):
    """Whether nothing but the accumulators' width stands between the result and int64 arithmetic."""
    sums_are_real = is_float(params) or unit_of(params).has_act_format
    return not sums_are_real and getattr(params, "table_bits", None) is None


def corner_acts(params, k):
    """Least, greatest and -2 of an engine's activations: rows of k values."""
    half = 1 << (min(params.act_bits, 11) - 1)
    low, high = (-half, half - 1) if is_float(params) else unit_of(params).plain_acts(params)[[0, -1]]
    lane = np.arange(k)
    rows = [np.full(k, low), np.where(lane == k // 2, low, 0), np.where(lane % 2, high, low), np.full(k, max(low, -2))]
    return np.stack(rows)


def repeated(operand, times):
    """A matrix, or a record of matrices, that many times below itself."""
    if isinstance(operand, np.ndarray):
        return np.tile(operand, (times, 1))
    parts = {field.name: getattr(operand, field.name) for field in dataclasses.fields(operand)}
    return dataclasses.replace(operand, **{name: np.tile(part, (times, 1)) for name, part in parts.items()})
