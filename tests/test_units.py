"""The contract, for every unit and preset: RTL, trace, golden and timing agree in every bit and cycle."""

import importlib
import shutil
from functools import cache

import numpy as np
import pytest
from engines import ENGINES, corner_acts, is_exact, plain_params, plain_weights, product, repeated
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from hwsim.verify import run_rtl, verify
from models.bits import signed_range, wrap
from models.catalog import UNITS, unit, unit_of
from models.unit import InputError, Stimulus, nearest, step_streams
from rtl.emit import streams

PRESETS = [(name, preset) for name, entry in UNITS.items() for preset in entry.presets]
SIMULATORS = ["verilator", *(["icarus"] if shutil.which("iverilog") else [])]


@pytest.mark.parametrize("name, preset", PRESETS)
def test_rtl_equals_the_model_in_every_cycle_under_random_stalls(name, preset):
    params, enough = unit(name).preset(preset), 60 if preset == "default" else 250
    report = verify(params, cases=5 if preset == "default" else 15, seed=7)
    if report.cycles <= enough or report.values <= 40:  # the smallest ones are done in a few cycles
        report = verify(params, cases=30, seed=7)
    assert report.findings == ()
    assert report.cycles > enough
    assert report.values > 40


WIDTHS = {"acc_bits": (2, 48), "rows": (1, 4), "cols": (1, 4), "mu": (1, 4), "in_bits": (2, 24)}
WIDTHS |= {"num_terms": (1, 3), "max_shift": (0, 15)}
WIDTHS |= {"bits": (2, 16), "lanes": (1, 4), "buffers": (1, 2), "tile_k": (1, 4), "trees": (1, 2), "n": (1, 2)}
CHOICES = {"dataflow": ["WS", "OS", "IS"], "overflow": ["wrap", "saturate"], "half_table": [True, False]}
CHOICES |= {"style": ["mac", "opt1", "ent"], "registered": [True, False], "serial": [True, False]}
CHOICES |= {"act_format": ["int", "int", "fp16"], "rounding": ["nearest_even", "nearest_away", "floor", "truncate"]}
CHOICES |= {"scales": ["group", "group", "column", "block"], "zero_points": [True, False], "packing": ["five", "two"]}
CHOICES |= {"correction": [True, False], "table_bits": [None, 4, 8], "aggregation": ["exact", "exact", "fast"]}
CHOICES |= {"scale": ["pot", "real", "real", "static"], "out_format": ["int", "fp16", "fp32"], "out_bits": [3, 9, 24]}
CHOICES |= {"group": [1, 2, 3, 5], "fraction_bits": [0, 5, None], "multiplier": [1, 6, 777], "shift": [0, 2, 9]}
CHOICES |= {"readers": [None, None, 1, 2, 4], "group_size": [None, 1, 2], "passes": [1, 2]}
ELEMENTS = ["e2m1", "e2m3", "e3m2", "e4m3", "e5m2", "int8"]
CHOICES |= {"act_element": ELEMENTS, "weight_element": ELEMENTS, "block_size": [1, 2, 3, 5]}
CHOICES |= {"scale_format": ["e8m0", "e8m0", "e4m3", "ue5m3"], "accumulate": ["fp32", "fp22", "bf16"]}
FP16 = {"act_format": "fp16", "acc_bits": 32, "overflow": "wrap"}


@cache
def taken(name, field, fp16):
    """The widths of a parameter that the unit takes when all others are its defaults."""
    more = {f: v for f, v in FP16.items() if fp16 and f in unit(name).params_type.__dataclass_fields__}
    more |= {} if takes(name, **more) else {"act_bits": 16}  # a unit that takes FP16 as it is
    return [bits for bits in range(1, 25) if takes(name, **more | {field: bits})]


def takes(name, **values):
    try:
        unit(name).params(**values)
    except InputError:
        return False
    return True


@st.composite
def random_params(draw, name):
    """Any params that the unit takes, small enough to elaborate in a moment."""
    fields = unit(name).params_type.__dataclass_fields__
    values = {field: draw(st.integers(*WIDTHS[field])) for field in fields if field in WIDTHS}
    values |= {field: draw(st.sampled_from(CHOICES[field])) for field in fields if field in CHOICES}
    only_fp16 = "act_format" in fields and not takes(name, act_format="int")
    fp16 = only_fp16 or values.get("act_format") == "fp16"
    values |= {field: value for field, value in FP16.items() if fp16 and field in fields}
    values |= {"rounding": "nearest_even"} if "rounding" in fields and "act_format" in fields and not fp16 else {}
    for field in ("weight_bits", "act_bits", "scale_bits"):
        if field in fields:
            values[field] = draw(st.sampled_from(taken(name, field, fp16)))
    if "group_size" in fields:
        values["group_size"] = values["group_size"] and values["group_size"] * values["rows"] * values.get("mu", 1)
    if "block_size" in fields:  # whole blocks; significands scale E2M1 alone; widths follow from the formats
        values |= {"rows": values["rows"] * values["block_size"]}
        values |= dict.fromkeys(("act_element", "weight_element"), "e2m1") if values["scale_format"] != "e8m0" else {}
        values |= dict.fromkeys(("act_bits", "weight_bits", "acc_bits"))
    if "signs" in fields:
        values["points"] = draw(st.sampled_from([2, 4, 8, 16, 12, 24, 40, 56]))
        values["lanes"] = draw(st.sampled_from([None, 1, 2, 4]))
        values["signs"] = draw(st.integers(0, (1 << values["points"]) - 1)) & ~1
    elif "points" in fields:
        values |= {"points": draw(st.integers(1, 5)), "bits": draw(st.integers(4, 24))}
    if "tile_k" in fields and unit(name).timed_by_operands:
        values["tile_k"] = draw(st.sampled_from([4, 8, 16, 32]))
    if "group" in fields:
        values |= {"group": values["group"] * values["lanes"], "bits": draw(st.integers(2, 12))}
        values |= quantizer_values(draw, values) if "fraction_bits" in fields else dequantizer_values(draw, values)
    assert set(values) == set(fields), f"{name}: give these parameters ranges above: {set(fields) - set(values)}"
    try:
        return unit(name).params(**values)
    except InputError:  # a combination that the unit refuses
        return reject()


def quantizer_values(draw, values):
    """What the way to the scale takes, and that alone."""
    in_bits = 16 if values["act_format"] == "fp16" else draw(st.integers(values["bits"], 24))
    digits = 11 if values["act_format"] == "fp16" else in_bits
    real, static = (values["scale"] == way for way in ("real", "static"))
    zero_points = values["zero_points"] and real and in_bits > 2
    bits = min(values["bits"], digits - zero_points)
    divisor = max(bits + 22, 26) if zero_points and values["act_format"] == "fp16" else digits
    fraction = None if values["fraction_bits"] is None else min(values["fraction_bits"], divisor) + divisor + 1
    return {
        "in_bits": in_bits,
        "bits": bits,
        "zero_points": zero_points,
        "group": values["lanes"] if static else values["group"],
        "rounding": draw(st.sampled_from(CHOICES["rounding"])),
        "fraction_bits": fraction if real else None,
        "multiplier": values["multiplier"] if static else None,
        "shift": values["shift"] if static else None,
        "passes": 1 if static else values["passes"],
    }


def dequantizer_values(draw, values):
    """Integers from integer scales; floats, which round to nearest even, from any."""
    if values["out_format"] == "int":
        return {"scale_format": "int", "scale_bits": draw(st.integers(1, 24))}
    scale, bits = draw(st.sampled_from([("int", 1), ("int", 9), ("int", 24), ("fp16", 16), ("e8m0", 8)]))
    widths = {"scale_bits": bits, "out_bits": 16 if values["out_format"] == "fp16" else 32}
    return {"scale_format": scale, "shift": None, "rounding": "nearest_even"} | widths


@pytest.mark.parametrize("name", UNITS)
def test_rtl_equals_the_model_for_parameters_of_any_width(name):
    @settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.filter_too_much],  # look-up arrays refuse many combinations
    )
    @given(random_params(name), st.integers(0, 9999))
    def holds(params, seed):
        assert verify(params, cases=6, seed=seed).findings == ()

    holds()


# What differs from other presets in its sizes alone runs under Amaranth's simulator, as all do, and in `hwsim verify`;
# whole arrays of full size are here for one unit of each discipline, and not under Icarus, a fiftieth as fast.
SIZES = ("narrow", "wide", "tiny", "smallest", "odd")
FULL_SIZE = ("systolic", "matrix2d", "lutgemm", "hadamard", "ent")


def _deep(name):
    """Presets of a unit whose emitted Verilog is compiled, one a simulator: the RTL of every preset is held in every
    cycle under Amaranth's simulator already."""
    kept = [preset for unit_name, preset in PRESETS if unit_name == name and not preset.startswith(SIZES)]
    kept = [preset for preset in kept if preset != "default"] or ["default"]
    return zip((kept[-1], kept[0]), SIMULATORS, strict=False)


RUNS = [(name, preset, simulator) for name in UNITS for preset, simulator in _deep(name)]
RUNS += [(name, "default", "verilator") for name in FULL_SIZE]


@pytest.mark.slow
@pytest.mark.parametrize("name, preset, simulator", RUNS)
def test_the_emitted_verilog_equals_the_model_too(name, preset, simulator):
    report = verify(unit(name).preset(preset), cases=6 if preset == "default" else 16, seed=11, simulator=simulator)
    assert report.findings == ()


@pytest.mark.parametrize("name, preset", PRESETS)
def test_the_trace_alone_carries_the_golden_result_in_timings_cycles(name, preset):
    """Model against model: what `trace` shows at the output is `golden`, and without stalls takes `timing`'s cycles."""
    entry, params = unit(name), unit(name).preset(preset)
    always = np.ones(1, dtype=bool)
    for seed in range(20):
        operands = entry.sample(params, np.random.default_rng(seed))
        beats = entry.beats(params, *operands)
        output = next(port for port in streams(params) if port.startswith("o_"))
        stimulus = Stimulus(beats=beats, offer=dict.fromkeys(beats, always), accept={output: always})
        trace = entry.trace(params, stimulus)
        moved = trace[f"{output}.valid"] & trace[f"{output}.ready"]
        prefix = f"{output}.payload."
        out_beats = {key.removeprefix(prefix): v[moved] for key, v in trace.items() if key.startswith(prefix)}
        assert (entry.result(params, operands, out_beats) == entry.golden(params, *operands)).all()
        timing = entry.timing(params, **entry.shape_of(params, *operands))
        assert np.flatnonzero(moved)[-1] + 1 == timing.total_cycles
        assert timing.load_cycles + timing.stream_cycles + timing.drain_cycles == timing.total_cycles
        for key, values in trace.items():
            if key.startswith(prefix):
                assert not values[~trace[f"{output}.valid"]].any()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 16, 8), (2, 33, 9), (5, 70, 1), (1, 7, 40)])
def test_edge_tiles_and_folds_change_no_result(name, shape):
    """Sizes of 1, not multiples of the array, and larger than it, against an int64 matmul of plain integers."""
    params = plain_params(name, rows=2, cols=3)
    m, k, n = shape
    rng = np.random.default_rng(shape)
    a, w = rng.integers(-128, 128, (m, k)), plain_weights(params, name, rng, (k, n))
    assert (product(params, name, a, w) == a @ w).all()


@pytest.mark.parametrize("name", ENGINES)
def test_weights_are_the_plain_integers_that_the_unit_says_and_no_others(name):
    params = plain_params(name)
    held = unit(name).plain_weights(params)
    assert (np.diff(held) > 0).all()
    one = np.ones((1, 1), dtype=np.int64)
    assert [product(params, name, one, np.array([[w]])).item() for w in held] == held.tolist()
    for bad in (held[0] - 1, held[-1] + 1, *(set(range(-9, 9)) & set(range(held[0], held[-1])) - set(held.tolist()))):
        with pytest.raises(InputError, match=rf"W.*[ :]{bad}\b"):
            unit(name).from_integers(params, np.array([[bad]]))


@pytest.mark.parametrize("name, preset", [(n, p) for n, p in PRESETS if unit(n).kind == "gemm" and p != "default"])
def test_corner_operands_go_through_the_rtl(name, preset):
    """Both operands all least; least in one lane alone; alternating least and greatest; digits of 2 against the least.

    `run_rtl` refuses a run in which any bit of any port differs from the model, whose result is held against int64
    where the engine is exact.
    """
    entry, params = unit(name), unit(name).preset(preset)
    k, held = np.arange(9), unit(name).plain_weights(params)
    low, high, none = held[0], held[-1], held[np.abs(held).argmin()]
    a = corner_acts(params, 9)
    w = np.stack([np.full(9, low), np.where(k % 2, low, high), np.where(k == 4, low, none)], axis=1)
    operand, worth = entry.from_integers(params, w)
    output = run_rtl(params, (a, operand)).output
    if not is_exact(params):
        return  # alignment and quantized tables round; their own tests hold them against float64
    total = (a @ w) * worth.denominator
    if getattr(params, "overflow", "wrap") == "wrap":  # some arrays can only wrap
        assert (output == wrap(total, params.acc_bits)).all()
    else:
        fits = (np.abs(a) @ np.abs(w)) * worth.denominator <= signed_range(params.acc_bits)[1]
        assert (output == total)[fits].all()


@pytest.mark.parametrize("name", [name for name, entry in UNITS.items() if not entry.timed_by_operands])
def test_timing_of_an_array_of_shapes_equals_timing_of_each(name):
    entry = unit(name)
    params = entry.preset("default")
    rng = np.random.default_rng(3)
    m, n = rng.integers(1, 300, (2, 50))
    k = rng.integers(1, 20, 50) * 32
    shapes = {"M": m, "K": k} | ({"N": n} if entry.kind == "gemm" else {})
    together = entry.timing(params, **shapes)
    for i in range(50):
        one = entry.timing(params, **{axis: int(sizes[i]) for axis, sizes in shapes.items()})
        assert (together.total_cycles[i], together.utilization[i]) == (one.total_cycles, one.utilization)
        assert isinstance(one.total_cycles, int)


@pytest.mark.parametrize("name", [name for name, entry in UNITS.items() if entry.timed_by_operands])
def test_timing_by_operands_needs_them_and_adds_up_over_their_folds(name):
    entry = unit(name)
    params = entry.preset("small")
    tile_k, tile_n = params.array.tile_k, params.array.rows
    for seed in range(50):
        a, w = entry.sample(params, np.random.default_rng(seed), M=seed + 1, K=2 * tile_k + 3, N=2 * tile_n + 1)
        whole = entry.timing(params, **entry.shape_of(params, a, w))
        tiles = [(a[:, k : k + tile_k], w[k : k + tile_k, :tile_n]) for k in range(0, a.shape[1], tile_k)]
        alone = [entry.timing(params, **entry.shape_of(params, *tile)) for tile in tiles]
        latency = whole.total_cycles - 3 * sum(one.total_cycles for one in alone)
        assert latency % (1 - 3 * len(tiles)) == 0
        assert 0 < latency // (1 - 3 * len(tiles)) < 4  # what a run takes beyond its folds: the way out of the last sum
        assert isinstance(whole.total_cycles, int)
        assert (whole.column_cycles == 3 * sum(one.column_cycles for one in alone)).all()
    with pytest.raises(InputError, match=r"steps: cycles depend on A's digits; take them.* from shape_of"):
        entry.timing(params, M=1, K=1, N=1)


@pytest.mark.parametrize("name", UNITS)
def test_every_unit_defines_its_whole_contract(name):
    entry = unit(name)
    wanted = ["golden", "timing", "trace", "ops", "beats", "result", "sample", "shape_of"]
    wanted += ["weight_format", "operand", "from_integers"] if entry.kind == "gemm" else []
    for piece in wanted:
        assert callable(getattr(entry, piece)), piece
        assert getattr(entry.module, piece).__doc__ or getattr(entry.module, piece).__module__ != f"models.{name}", (
            piece
        )
    if entry.kind == "gemm":
        assert {"act_bits", "weight_bits", "acc_bits"} <= set(entry.params_type.__dataclass_fields__)
    assert importlib.import_module(f"rtl.{name}").__doc__
    assert unit_of(entry.params_type()) is entry
    assert "default" in entry.presets


def test_unknown_names_get_the_nearest_one():
    with pytest.raises(InputError, match="no unit 'lutgem'; did you mean 'lutgemm'"):
        unit("lutgem")
    with pytest.raises(InputError, match=r"no preset 'tiny'; did you mean 'tiny-\w\w'"):
        unit("systolic").preset("tiny")
    assert nearest("zzz", ["a", "b"]) == "one of: a, b"


class NeverReady:
    """A control that takes no beat."""

    def ready(self, valid, accept):
        assert accept
        return dict.fromkeys(valid, False)

    def shown(self):
        return None

    def clock(self, taken, accept):
        assert accept
        assert not taken


def test_a_stimulus_that_does_not_fit_ends_with_a_message():
    always = np.ones(1, dtype=bool)
    stimulus = Stimulus(beats={"i": {"x": np.ones((3, 1), dtype=np.int64)}}, offer={"i": always}, accept={"o": always})
    with pytest.raises(InputError, match=r"no transfer for \d+ cycles; the beats do not fit the unit"):
        step_streams(NeverReady(), stimulus, "o", 3)


@pytest.mark.parametrize("name", UNITS)
def test_operations_are_counted_and_grow_with_the_work(name):
    entry = unit(name)
    params = entry.preset("default")
    shape = {"M": 64, "K": 64, "N": 64} if entry.kind == "gemm" else {"M": 64, "K": 64}
    first, *others = entry.sample(params, np.random.default_rng(1), **shape)
    once, twice = (entry.ops(params, **entry.shape_of(params, repeated(first, times), *others)) for times in (1, 2))
    kinds = {op.kind for op in once}
    assert "reg" in kinds
    assert kinds & ({"encode"} if entry.kind == "encoder" else {"add", "fadd"})
    assert all(op.count > 0 and op.bits > 0 for op in once)
    pairs = list(zip(once, twice, strict=True))
    assert all(a.count <= b.count <= 2 * a.count for a, b in pairs)
    assert any(b.count == 2 * a.count for a, b in pairs)
