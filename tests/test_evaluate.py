"""A design point: what its metrics are made of, and that impossible points are refused before anything runs."""

import numpy as np
import pytest

import hwsim.sweep.evaluate
import hwsim.synth
from hwsim.metrics import METRICS
from hwsim.networks import get_network
from hwsim.quantize import engine_formats, quantize_network, work_of
from hwsim.quantizers import get_quantizer
from hwsim.sweep.evaluate import SPREAD_SEEDS, check, engine_params, evaluate, quantizers
from hwsim.sweep.space import Point
from hwsim.transforms import prepare
from models.catalog import unit
from models.formats import IntFormat
from models.unit import InputError
from rtl.emit import emit

BASE = {"network": "digits-mlp", "seed": 1, "weight_bits": 4, "act_bits": 8, "transform": "none", "unit": "systolic"}
LANES = 2
LAYERS = [(64, 128), (128, 64), (64, 10)]


def point(**changes):
    return Point(**{**BASE, "params": (("cols", 4), ("rows", 4)), **changes})


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    """One for all tests here: what units cost is no other test's matter. Quantizers of two lanes are soon mapped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(hwsim.sweep.evaluate.QUANTIZER, "lanes", LANES)
        yield


def test_metrics_follow_from_timing_ops_and_synthesis_of_the_points_own_rtl():
    """Each figure computed again here from the parts."""
    numbers = evaluate(point())
    p = unit("systolic").params(rows=4, cols=4, weight_bits=4, act_bits=8)
    assert engine_params(point()) == p
    batch = numbers["macs"] // sum(k * n for k, n in LAYERS)
    folds = [-(-k // 4) * -(-n // 4) for k, n in LAYERS]
    cycles = sum(count * (batch + 2 * 4 + 4 - 2) + 1 for count in folds)
    # a quantizer for tokens of 64 halves and one for tokens of 128: a group a token, one after the other
    shape = {"lanes": LANES, "passes": 2, "bits": 8, "act_format": "fp16", "in_bits": 16, "zero_points": True}
    coders = {width: unit("quantizer").params(group=width, **shape) for width in (64, 128)}
    coding = sum(unit("quantizer").timing(coders[k], M=batch, K=k).total_cycles for k, _ in LAYERS)
    made = hwsim.synth.synthesize(emit(p), "systolic")
    coded = [hwsim.synth.synthesize(emit(coder), "quantizer") for coder in coders.values()]
    area = made.area_um2 + sum(each.area_um2 for each in coded)
    delay = max(each.delay_ns for each in (made, *coded))
    assert numbers["quantizer_area_um2"] == pytest.approx(area - made.area_um2)
    assert numbers["quantizer_cycles"] == coding
    cycles += coding
    assert numbers["cycles"] == cycles
    assert numbers["utilization"] == pytest.approx(numbers["macs"] / (16 * cycles))
    assert (numbers["area_um2"], numbers["delay_ns"]) == (pytest.approx(area), delay)
    throughput = numbers["macs"] / (cycles * delay)
    assert numbers["throughput_gmacs"] == pytest.approx(throughput)
    assert numbers["area_at_equal_throughput_um2"] == pytest.approx(area / throughput)
    assert numbers["latency_us"] == pytest.approx(cycles * delay / 1000)
    assert numbers["energy_pj"] == pytest.approx(sum(numbers["ops"].values()) / batch)
    assert numbers["accuracy_std"] is None
    assert (numbers["transform_area_um2"], numbers["transform_cycles"]) == (0, 0)
    assert set(numbers) - {"ops"} == set(METRICS)


def test_a_transforms_own_hardware_is_in_the_bill():
    """The Hadamard unit, quantizers that make its 11-bit integers and those that make codes of what it puts out."""
    plain, turned = evaluate(point()), evaluate(point(transform="hadamard"))
    batch = plain["macs"] // sum(k * n for k, n in LAYERS)
    assert turned["transform_cycles"] == sum(batch * k // 64 + 6 for k, _ in LAYERS)
    quantizer = unit("quantizer")
    before = {"lanes": LANES, "passes": 2, "bits": 11, "act_format": "fp16", "in_bits": 16}
    behind = {"lanes": LANES, "passes": 2, "bits": 8, "in_bits": 11 + 6, "zero_points": True}
    made = {(k, i): quantizer.params(group=k, **each) for k in (64, 128) for i, each in enumerate((before, behind))}
    coding = sum(quantizer.timing(made[k, i], M=batch, K=k).total_cycles for k, _ in LAYERS for i in (0, 1))
    assert turned["quantizer_cycles"] == coding
    areas = [hwsim.synth.synthesize(emit(each), "quantizer").area_um2 for each in made.values()]
    assert turned["quantizer_area_um2"] == pytest.approx(sum(areas))
    engine = [p["area_um2"] - p["transform_area_um2"] - p["quantizer_area_um2"] for p in (plain, turned)]
    assert engine[0] == pytest.approx(engine[1])
    cycles = [p["cycles"] - p["transform_cycles"] - p["quantizer_cycles"] for p in (plain, turned)]
    assert cycles[0] == cycles[1] > 0
    assert turned["transform_area_um2"] > 0
    assert turned["energy_pj"] > plain["energy_pj"]
    assert turned["accuracy_std"] > 0
    assert SPREAD_SEEDS >= 5


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


def test_evaluation_is_deterministic():
    assert evaluate(point(unit="shiftadd")) == evaluate(point(unit="shiftadd"))


@pytest.mark.parametrize("name", ["opt3", "opt4c", "opt4e"])
def test_an_engine_whose_cycles_depend_on_digits_gets_the_networks_own_activations(name):
    """Cycles are those of the codes that each layer really sees: not of other codes, and not of a shape."""
    chosen = point(unit=name, weight_bits=8, params=(("cols", 4), ("rows", 4), ("tile_k", 16)))
    numbers = evaluate(chosen)
    p, entry = engine_params(chosen), unit(name)
    network = get_network("digits-mlp", seed=1)
    weights, activations = engine_formats(p)
    quantized = quantize_network(
        prepare("none", network), weights=weights, activations=activations, quantizer=get_quantizer("rtn"), params=p
    )
    x, cycles = network.workload, 0
    for group in network.groups:
        codes = activations.quantize(x.astype(np.float16), axis=-1).codes
        operand = quantized.products[group][0][0].operand
        cycles += entry.timing(p, **entry.shape_of(p, codes, operand)).total_cycles
        x = np.maximum(quantized.engine.project(group, x)[0], 0)
    assert numbers["cycles"] - numbers["quantizer_cycles"] == cycles
    assert 0 < numbers["utilization"] <= 1


def test_narrow_accumulators_are_seen_in_the_accuracy():
    """The engine's own arithmetic decides: 10-bit accumulators wrap and ruin the network."""
    broken = evaluate(point(params=(("acc_bits", 10), ("cols", 4), ("rows", 4))))
    assert broken["accuracy"] < 0.5 < evaluate(point())["accuracy"]
    assert np.isfinite(broken["area_um2"])


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
