"""The usual evaluation: what a point's metrics are made of, what points share, and what is refused."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

import hwsim.coders
import hwsim.synth
from hwsim.coders import quantizers
from hwsim.evaluation import PARTS, accuracy, cycles, evaluation, metrics_of, points
from hwsim.evaluation.accuracy import SPREAD_SEEDS
from hwsim.evaluation.check import check, engine_params
from hwsim.evaluation.engine import LARGEST_PLAIN, built, by_value, plain
from hwsim.evaluation.library import library_name
from hwsim.metrics import METRICS
from hwsim.networks import get_network
from hwsim.quantize import engine_formats, quantize_network, work_of
from hwsim.quantizers import get_quantizer
from hwsim.sweep.point import Point
from hwsim.transforms import prepare
from models.catalog import UNITS, unit
from models.formats import IntFormat
from models.unit import InputError, Kind
from rtl.emit import emit

BASE = {"network": "digits-mlp", "seed": 1, "weight_bits": 4, "act_bits": 8, "transform": "none", "unit": "systolic"}
LANES = 2
LAYERS = [(64, 128), (128, 64), (64, 10)]
BATCH = 899
"""images of the test half"""


def point(**changes):
    return Point(**{**BASE, "params": (("cols", 4), ("rows", 4)), **changes})


def evaluated(chosen, *parts):
    """The row's metrics and detail, every task through the JSON that a store would keep."""
    own, results = evaluation({"parts": parts or PARTS}), {}
    while new := {name: task for name, task in own.plan(chosen, results).items() if name not in results}:
        for name, task in new.items():
            inputs = json.loads(json.dumps(dict(task.inputs), sort_keys=True))
            result = own.functions[task.kind](**inputs)
            results[name] = json.loads(json.dumps(result, sort_keys=True, allow_nan=False))
    return own.combine(chosen, results)


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    """One for all tests here: what units cost is no other test's matter. Quantizers of two lanes are soon mapped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(hwsim.coders.QUANTIZER, "lanes", LANES)
        cycles._by_shape.cache_clear()
        yield
        cycles._by_shape.cache_clear()


def test_metrics_follow_from_timing_ops_and_synthesis_of_the_points_own_rtl():
    """Each figure computed again here from the parts."""
    numbers = evaluated(point())
    p = unit("systolic").params(rows=4, cols=4, weight_bits=4, act_bits=8)
    assert engine_params(point()) == p
    assert numbers["macs"] == BATCH * sum(k * n for k, n in LAYERS)
    folds = [-(-k // 4) * -(-n // 4) for k, n in LAYERS]
    count = sum(each * (BATCH + 2 * 4 + 4 - 2) + 1 for each in folds)
    # a quantizer for tokens of 64 halves and one for tokens of 128: a group a token, one after the other
    shape = {"lanes": LANES, "passes": 2, "bits": 8, "act_format": "fp16", "in_bits": 16, "zero_points": True}
    coders = {width: unit("quantizer").params(group=width, **shape) for width in (64, 128)}
    coding = sum(unit("quantizer").timing(coders[k], M=BATCH, K=k).total_cycles for k, _ in LAYERS)
    made = hwsim.synth.synthesize(emit(p), "systolic")
    coded = [hwsim.synth.synthesize(emit(coder), "quantizer") for coder in coders.values()]
    area = made.area_um2 + sum(each.area_um2 for each in coded)
    delay = max(each.delay_ns for each in (made, *coded))
    assert numbers["quantizer_area_um2"] == pytest.approx(area - made.area_um2)
    assert numbers["quantizer_cycles"] == coding
    assert numbers["cycles"] == count + coding
    assert numbers["utilization"] == pytest.approx(numbers["macs"] / (16 * numbers["cycles"]))
    assert (numbers["area_um2"], numbers["delay_ns"]) == (pytest.approx(area), delay)
    assert numbers["clock_mhz"] == pytest.approx(1000 / delay)
    throughput = numbers["macs"] / (numbers["cycles"] * delay)
    assert numbers["throughput_gmacs"] == pytest.approx(throughput)
    assert numbers["area_at_equal_throughput_um2"] == pytest.approx(area / throughput)
    assert numbers["latency_us"] == pytest.approx(numbers["cycles"] * delay / 1000)
    assert numbers["energy_pj"] == pytest.approx(sum(numbers["ops"].values()) / BATCH)
    assert numbers["gate_equivalents"] == pytest.approx(sum(each.gate_equivalents for each in (made, *coded)))
    assert numbers["accuracy_std"] is None
    assert (numbers["transform_area_um2"], numbers["transform_cycles"]) == (0, 0)
    assert set(numbers) - {"ops", "schedule", "hardware", "versions"} == set(METRICS)
    assert list(numbers["hardware"]) == ["engine", "quantizer", "quantizer2"]
    assert numbers["hardware"]["engine"]["modules"] == [list(module) for module in made.modules]
    assert numbers["hardware"]["quantizer2"]["delay_ns"] == coded[1].delay_ns
    assert [built(h["unit"], h["params"])[1] for h in numbers["hardware"].values()] == [p, *coders.values()]
    assert {e["role"]: e["times"] for e in numbers["schedule"]} == {"engine": 1, "quantizer": 2, "quantizer2": 1}
    assert sum(entry["total"] for entry in numbers["schedule"]) == numbers["cycles"]
    parts = [entry["load"] + entry["stream"] + entry["drain"] for entry in numbers["schedule"]]
    assert parts == [entry["total"] for entry in numbers["schedule"]]
    assert {"python", "numpy", "pyosys", "accuracy", "cycles", "synthesis", "library"} <= set(numbers["versions"])


def test_a_transforms_own_hardware_is_in_the_bill():
    """The Hadamard unit, quantizers that make its 11-bit integers and those that make codes of what it puts out."""
    plain_one, turned = evaluated(point(), "cycles"), evaluated(point(transform="hadamard"))
    assert turned["transform_cycles"] == sum(BATCH * k // 64 + 6 for k, _ in LAYERS)
    quantizer = unit("quantizer")
    before = {"lanes": LANES, "passes": 2, "bits": 11, "act_format": "fp16", "in_bits": 16}
    behind = {"lanes": LANES, "passes": 2, "bits": 8, "in_bits": 11 + 6, "zero_points": True}
    made = {(k, i): quantizer.params(group=k, **each) for k in (64, 128) for i, each in enumerate((before, behind))}
    coding = sum(quantizer.timing(made[k, i], M=BATCH, K=k).total_cycles for k, _ in LAYERS for i in (0, 1))
    assert turned["quantizer_cycles"] == coding
    areas = [hwsim.synth.synthesize(emit(each), "quantizer").area_um2 for each in made.values()]
    assert turned["quantizer_area_um2"] == pytest.approx(sum(areas))
    engine = hwsim.synth.synthesize(emit(engine_params(point())), "systolic").area_um2
    assert turned["area_um2"] - turned["transform_area_um2"] - turned["quantizer_area_um2"] == pytest.approx(engine)
    own = [p["cycles"] - p["transform_cycles"] - p["quantizer_cycles"] for p in (plain_one, turned)]
    assert own[0] == own[1] > 0
    assert turned["transform_area_um2"] > 0
    assert turned["energy_pj"] > plain_one["energy_pj"]
    assert turned["accuracy_std"] > 0
    assert SPREAD_SEEDS >= 5


def test_the_accuracy_is_that_of_the_network_on_the_engine_and_its_spread_that_of_the_draws():
    """Each draw quantized and evaluated here, without what tasks keep."""
    chosen = point(transform="hadamard", act_bits=3, weight_bits=3)
    numbers = evaluated(chosen, "accuracy")
    network, p = get_network("digits-mlp", seed=1), engine_params(chosen)
    weights, activations = engine_formats(p)
    reached = []
    for seed in range(1, 1 + SPREAD_SEEDS):
        prepared = prepare("hadamard", network, seed=seed)
        drawn = quantize_network(
            prepared, weights=weights, activations=activations, quantizer=get_quantizer("rtn"), params=p, seed=seed
        )
        reached.append(network.evaluate(prepared.network, drawn.engine)["accuracy"])
    assert numbers["accuracy"] == reached[0]
    assert numbers["accuracy_std"] == pytest.approx(np.std(reached, ddof=1))
    assert numbers["bits_per_weight"] == pytest.approx(drawn.bits_per_weight)
    assert set(numbers) == {*points.ACCURACY, "versions"}


@pytest.mark.parametrize("activations", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("transform, coded", [("none", 3), ("hadamard", 6), ("hadamard+hadamard:points=16", 9)])
def test_the_quantizers_in_the_bill_make_the_networks_own_codes(transform, coded, activations, monkeypatch):
    """Every token that becomes codes in a forward pass, through the unit that is billed for it."""
    network, entry, seen = get_network("digits-mlp", seed=1), unit("quantizer"), []

    def watched(fmt, x, axis=-1):
        q = original(fmt, x, axis)
        seen.append((fmt, x, q))
        return q

    original = IntFormat.quantize
    p = engine_params(point(act_bits=4))
    weights, acts = engine_formats(p, act_symmetric=activations == "symmetric")
    quantized = quantize_network(
        prepare(transform, network, seed=1),
        weights=weights,
        activations=acts,
        quantizer=get_quantizer("rtn"),
        params=p,
    )
    monkeypatch.setattr(IntFormat, "quantize", watched)
    work = work_of(quantized)
    assert [fmt for fmt, *_ in seen] == [fmt for fmt, *_ in work.codes]
    for (fmt, x, q), (made, shape) in zip(seen, quantizers(work), strict=True):
        assert shape["M"] == len(x)
        whole = np.zeros((len(x), made.group), dtype=np.float16 if made.is_float else np.int64)
        whole[:, : x.shape[1]] = x
        assert np.array_equal(whole[:, : x.shape[1]], x)
        y = entry.golden(made, whole)[:, 0]
        assert np.array_equal(y[:, : x.shape[1]], q.codes)
        assert fmt.symmetric or np.array_equal(y[:, -1], q.offsets[:, 0])
    assert len(seen) == coded


@pytest.mark.parametrize("transform, made", [("none", []), ("hadamard", [11, 11, 11])])
def test_an_engine_of_floats_needs_quantizers_for_the_transform_alone(transform, made):
    p = engine_params(point(unit="mxdot", params=(), act_bits=4))
    weights, acts = engine_formats(p)
    prepared = prepare(transform, get_network("digits-mlp", seed=1), seed=1)
    work = work_of(
        quantize_network(prepared, weights=weights, activations=acts, quantizer=get_quantizer("rtn"), params=p)
    )
    assert [params.bits for params, _ in quantizers(work)] == made


@pytest.mark.parametrize("name", ["opt3", "opt4c", "opt4e"])
def test_an_engine_whose_cycles_depend_on_digits_gets_the_networks_own_activations(name):
    """Cycles are those of the codes that each layer really sees: not of other codes, and not of a shape; of every
    geometry, although the codes are computed for one."""
    for sizes in ({"cols": 4, "rows": 4, "tile_k": 16}, {"cols": 2, "rows": 8, "tile_k": 64}):
        chosen = point(unit=name, weight_bits=8, params=tuple(sizes.items()))
        numbers = evaluated(chosen, "cycles")
        p, entry = engine_params(chosen), unit(name)
        network = get_network("digits-mlp", seed=1)
        weights, activations = engine_formats(p)
        quantized = quantize_network(
            prepare("none", network), weights=weights, activations=activations, quantizer=get_quantizer("rtn"), params=p
        )
        x, count = network.workload, 0
        for group in network.groups:
            codes = activations.quantize(x.astype(np.float16), axis=-1).codes
            operand = quantized.products[group][0][0].operand
            count += entry.timing(p, **entry.shape_of(p, codes, operand)).total_cycles
            x = np.maximum(quantized.engine.project(group, x)[0], 0)
        assert numbers["cycles"] - numbers["quantizer_cycles"] == count
        assert 0 < numbers["utilization"] <= 1


def test_narrow_accumulators_are_seen_in_the_accuracy():
    """The engine's own arithmetic decides: 10-bit accumulators wrap and ruin the network."""
    broken = evaluated(point(params=(("acc_bits", 10), ("cols", 4), ("rows", 4))), "accuracy")
    assert broken["accuracy"] < 0.5 < evaluated(point(), "accuracy")["accuracy"]


# ------------------------------------------------------------------------------------------- parts and sharing


def tasks_of(chosen, *parts):
    return evaluation({"parts": parts or PARTS}).plan(chosen, {})


def test_points_share_the_accuracy_where_only_the_geometry_differs():
    keys = [
        tasks_of(each)["accuracy"].key
        for each in (
            point(),
            point(params=()),
            point(params=(("cols", 9), ("dataflow", "OS"), ("style", "opt1"))),
            point(name="another's name"),
        )
    ]
    assert len(set(keys)) == 1
    others = [
        {"seed": 2},
        {"weight_bits": 3},
        {"act_bits": 7},
        {"transform": "hadamard"},
        {"quantizer": "gptq"},
        {"activations": "symmetric"},
        {"network": "digits-cnn"},
        {"params": (("acc_bits", 20),)},
        {"params": (("overflow", "saturate"),)},
        {"unit": "matrix2d"},
    ]
    differing = [tasks_of(point(**change))["accuracy"].key for change in others]
    assert len({*keys, *differing}) == 1 + len(others)


@pytest.mark.parametrize("kind", ["accuracy", "cycles"])
def test_a_task_is_given_all_that_its_point_says(kind):
    """Not only its key: versions alone would tell points apart whose values are then the same."""
    words = {"network": "digits-cnn", "seed": 5, "transform": "hadamard", "quantizer": "gptq"}
    task = tasks_of(point(**words, weight_bits=3, act_bits=7, activations="symmetric", params=(("acc_bits", 20),)))[
        kind
    ]
    made = {"weight_bits": 3, "act_bits": 7, "acc_bits": 20}
    own = {name: value for name, value in task.inputs.items() if name != "params"}
    assert own == {**words, "symmetric": True, "unit": "systolic"}
    assert built("systolic", task.inputs["params"])[1] == unit("systolic").params(**made)


def version(*parts):
    return evaluation({"parts": parts or PARTS}).version(point())


@pytest.fixture
def forget():
    """Versions as if nothing was asked before, whenever it is called and after the test."""

    def clear():
        for function in (points._network_version, points._unit_version, points._point_version):
            function.cache_clear()

    clear()
    yield clear
    clear()


def test_another_tool_makes_other_tasks_and_other_points(forget, monkeypatch):
    before, row = {task.key for task in tasks_of(point()).values()}, version()
    forget()
    monkeypatch.setattr(points, "tool_versions", lambda names: dict.fromkeys(names, "another"))
    assert not {task.key for task in tasks_of(point()).values()} & before
    assert version() != row


def test_other_formulas_make_other_points_of_the_same_tasks(forget, monkeypatch):
    before, row, of = {task.key for task in tasks_of(point()).values()}, version(), points.code_version
    forget()
    monkeypatch.setattr(points, "code_version", lambda names: "new" if names == [points.__name__] else of(names))
    assert {task.key for task in tasks_of(point()).values()} == before
    assert version() != row


def test_what_a_registry_says_of_a_transform_is_part_of_its_tasks(forget, monkeypatch):
    """Whether it is random decides over how many draws the accuracy goes, and stands in no closure."""
    chosen = point(transform="hadamard")
    before = tasks_of(chosen)["accuracy"].key
    forget()
    monkeypatch.setitem(points.TRANSFORMS, "hadamard", replace(points.TRANSFORMS["hadamard"], random=False))
    assert tasks_of(chosen)["accuracy"].key != before


def test_other_parts_make_other_points():
    """Their rows have other metrics, even where the tasks are the same: synthesis needs the cycles as well."""
    chosen = [parts for size in (1, 2, 3) for parts in itertools.combinations(PARTS, size)]
    assert len({version(*parts) for parts in chosen}) == len(chosen) == 7


def test_points_share_hardware_where_only_the_network_differs():
    first, second = tasks_of(point()), tasks_of(point(network="digits-cnn", seed=3, quantizer="gptq"))
    assert first["synthesis:engine"].key == second["synthesis:engine"].key
    assert first["cycles"].key != second["cycles"].key != tasks_of(point(params=()))["cycles"].key


def test_what_is_the_default_need_not_be_said():
    said = point(params=(("acc_bits", 32), ("buffers", 1), ("cols", 16), ("dataflow", "WS"), ("rows", 16)))
    assert {n: t.key for n, t in tasks_of(said).items()} == {n: t.key for n, t in tasks_of(point(params=())).items()}


def test_a_free_parameter_that_another_one_holds_in_place_counts_alone():
    """Groups of 8 fit tiles of 2 rows of 4, not the default's 8: rows stay as they are, columns do not."""
    entry = unit("lutgemm")
    made = entry.params(rows=2, cols=3, group_size=8)
    assert by_value(entry, made) == replace(made, cols=8)
    assert by_value(entry, entry.params(rows=4, cols=3)) == entry.params_type()


@pytest.mark.parametrize("name", [name for name, entry in UNITS.items() if entry.kind is Kind.GEMM])
def test_engines_of_one_value_have_one_engine_for_all(name):
    entry = unit(name)
    for made in entry.presets.values():
        chosen = by_value(entry, made)
        assert by_value(entry, chosen) == chosen
        free = entry.value_free(made)
        assert all(getattr(chosen, f) == getattr(made, f) for f in made.__dataclass_fields__ if f not in free)
        assert built(name, json.loads(json.dumps(plain(made))))[1] == made


def test_wide_integers_survive_in_plain_data():
    made = unit("hadamard").params(points=128, signs=(1 << 127) + 2, lanes=4)
    assert plain(made)["signs"] == hex((1 << 127) + 2)
    assert made.signs > LARGEST_PLAIN
    assert built("hadamard", json.loads(json.dumps(plain(made))))[1] == made


@pytest.mark.parametrize(
    "parts, names",
    [
        (("accuracy",), {"accuracy"}),
        (("cycles",), {"cycles"}),
        (("synthesis",), {"cycles", "synthesis:engine"}),
        (("accuracy", "synthesis"), {"accuracy", "cycles", "synthesis:engine"}),
        (PARTS, {"accuracy", "cycles", "synthesis:engine"}),
    ],
)
def test_a_study_gets_the_parts_that_it_asks_for(parts, names):
    assert set(tasks_of(point(), *parts)) == names
    assert metrics_of(parts) == metrics_of(parts[::-1])


def test_metrics_of_the_parts():
    assert set(metrics_of(PARTS)) == set(METRICS)
    assert metrics_of(["cycles"]) == tuple(name for name in METRICS if name in points.CYCLES)
    mixed = set(metrics_of(["cycles", "synthesis"])) - set(metrics_of(["cycles"])) - set(metrics_of(["synthesis"]))
    assert mixed == {"latency_us", "throughput_gmacs", "area_at_equal_throughput_um2"}
    with pytest.raises(InputError, match="no part 'cycle' of an evaluation; did you mean 'cycles'"):
        metrics_of(["cycle"])
    with pytest.raises(InputError, match="parts: at least one of accuracy, cycles, synthesis"):
        evaluation({"parts": []})


@pytest.mark.parametrize(
    "parts", [(part,) for part in PARTS] + [("accuracy", "synthesis"), ("accuracy", "cycles"), PARTS]
)
def test_a_row_has_the_metrics_that_were_asked_for_and_no_other(parts):
    """Synthesis needs the cycles' results, which are then no metrics."""
    counted = dict.fromkeys(points.CYCLES, 2) | {"ops": {"add": 1.0}, "schedule": []}
    made = {"area_um2": 3.0, "gate_equivalents": 4.0, "delay_ns": 0.5, "modules": [], "multiplier": None}
    results = {
        "accuracy": dict.fromkeys(points.ACCURACY, 0.5),
        "cycles": counted | {"hardware": {"engine": {"unit": "systolic", "params": {}}}},
        "synthesis:engine": made,
    }
    found = evaluation({"parts": parts}).combine(point(), results)
    assert {name for name in found if name in METRICS} == set(metrics_of(parts))
    assert ("ops" in found, "hardware" in found) == ("cycles" in parts, {"cycles", "synthesis"} & {*parts} != set())


def test_a_timing_only_study_neither_evaluates_the_network_nor_synthesises(monkeypatch):
    monkeypatch.setattr(hwsim.synth, "synthesize", None)
    network = get_network("digits-mlp", seed=1)
    monkeypatch.setattr(accuracy, "accuracy", None)
    monkeypatch.setitem(network.__dict__, "evaluate", None)
    assert set(evaluated(point(), "cycles")) == {*points.CYCLES, "ops", "schedule", "hardware", "versions"}


def test_the_work_of_a_network_is_found_once_for_all_geometries(monkeypatch):
    cycles._by_shape.cache_clear()
    made = []
    monkeypatch.setattr(cycles, "work_of", lambda *given: made.append(1) or work_of(*given))
    counts = [evaluated(point(params=(("cols", n), ("rows", n))), "cycles")["cycles"] for n in (2, 3, 4)]
    assert counts[0] > counts[1] > counts[2]
    assert len(made) == 1


def test_hardware_is_added_in_the_order_of_its_roles():
    names = ["engine", *cycles.numbered(["transform"] * 11 + ["quantizer"] * 2)]
    assert names[:3] == ["engine", "transform", "transform2"]
    assert sorted(sorted(names), key=points._place) == names
    each = {"gate_equivalents": 1.0, "delay_ns": 1.0, "modules": [], "multiplier": "none"}
    results = {f"synthesis:{name}": {"area_um2": 0.1 * i, **each} for i, name in enumerate(names)}
    found = points._silicon({"cycles": {"hardware": {name: {} for name in sorted(names)}}, **results})
    assert found["area_um2"] == sum(0.1 * i for i in range(len(names)))
    assert found["transform_area_um2"] == pytest.approx(sum(0.1 * i for i in range(1, 12)))


def test_a_library_is_known_by_its_text_and_not_by_its_place(tmp_path):
    from hwsim.synth.library import builtin

    here, there = tmp_path / "a.lib", tmp_path / "b.lib"
    for path in (here, there):
        path.write_text(builtin().text)
    first, second = (evaluation({"liberty": str(path)}) for path in (here, there))
    key = first.plan(point(), {})["synthesis:engine"].key
    assert key == second.plan(point(), {})["synthesis:engine"].key != tasks_of(point())["synthesis:engine"].key
    assert first.version(point()) == second.version(point()) != evaluation({}).version(point())
    timing = ({"parts": ["cycles"], "liberty": str(path)} for path in (here, tmp_path / "none.lib"))
    assert len({evaluation(settings).version(point()) for settings in timing}) == 1
    with pytest.raises(InputError, match="is built-in, not the study's sha256"):
        evaluation({}).functions["synthesis"](unit="booth", params={}, library=library_name(str(here)))


def test_a_metric_that_is_no_number_is_refused(monkeypatch):
    class Overflowing:
        name = "digits-mlp"

        def evaluate(self, *_given):
            return {"accuracy": 0.1, "perplexity": float("inf")}

    monkeypatch.setattr(accuracy, "network_of", lambda _numbers: Overflowing())
    with pytest.raises(InputError, match="digits-mlp: perplexity is inf: its numbers overflow in this format"):
        evaluated(point(), "accuracy")


def test_what_no_unit_computes_is_refused_where_cycles_are_wanted():
    chosen = point(transform="flatquant")
    check(chosen)
    with pytest.raises(InputError, match=r"^no unit computes Scaling\(.* online; `hwsim accuracy` shows[^\n]*$"):
        evaluated(chosen, "cycles")


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"unit": "systolc"}, "no unit 'systolc'"),
        ({"unit": "hadamard"}, "hadamard multiplies no matrices"),
        ({"params": (("rows", 0),)}, "rows must be a whole number from 1 to 256"),
        ({"params": (("weight_bits", 3),)}, "weight_bits comes from the format; leave it out"),
        ({"act_bits": 16}, "W.A16 has FP16 activations, which this engine does not take; take A2 to A8, or an engine"),
        ({"unit": "lutgemm", "params": (("act_format", "fp16"),), "act_bits": 16}, "act_format comes from the format"),
        ({"unit": "ternary", "params": (), "weight_bits": 4}, "ternary: weight_bits must be 2, not 4"),
        ({"unit": "dequant", "params": (), "weight_bits": 1}, "formats hold integers of 2 bits at least"),
        ({"activations": "symetric"}, "activations 'symetric' are not asymmetric or symmetric"),
        ({"unit": "lutgemm", "params": (), "act_bits": 16}, "activations 'asymmetric' are not float"),
        (
            {"transform": "hadamard:in_bits=12"},
            "in_bits=12 is more than the quantizer before .* makes of FP16; nearest: 11",
        ),
        ({"network": "digits"}, "no network 'digits'; did you mean 'digits-mlp'"),
        ({"transform": "hadamrd"}, "no transform 'hadamrd'; did you mean 'hadamard'"),
    ],
)
def test_impossible_points_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        check(point(**changes))


def test_check_resolves_every_parameter():
    roles = check(point(transform="hadamard"))
    assert roles["engine"] == {
        **{"rows": 4, "cols": 4, "dataflow": "WS", "act_bits": 8, "weight_bits": 4, "acc_bits": 32},
        **{"overflow": "wrap", "style": "mac", "buffers": 1},
    }
    assert roles["transform"] == {"hadamard.points": None, "hadamard.in_bits": 11}
    assert set(check(point())) == {"engine"}
    assert check(point(quantizer="gptq"))["quantizer"]["damping"] == 0.01


def test_fp16_activations_are_aligned_to_sixteen_bits_unless_the_file_says_otherwise():
    assert engine_params(point(unit="lutgemm", act_bits=16, params=())).act_bits == 16
    narrow = point(unit="lutgemm", act_bits=16, params=(("act_bits", 9),))
    assert engine_params(narrow).act_bits == 9
    assert engine_params(narrow).act_format == "fp16"
