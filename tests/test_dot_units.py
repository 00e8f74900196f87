"""Columns of PEs without multipliers: MixPE, ternary, additive and shift-layer arrays."""

import numpy as np
import pytest

import rtl.mixpe
from hwsim.synth import synthesize
from hwsim.verify import run_rtl, verify
from models.additive import AdditiveParams
from models.catalog import unit
from models.formats import get_format
from models.grouped import GroupedWeights
from models.mixpe import MixpeParams
from models.shiftlayer import ShiftlayerParams, decode, encode
from models.ternary import DIGITS, Packing, TernaryParams, pack, unpack
from models.unit import InputError, Stimulus
from rtl.additive import AdditivePe
from rtl.emit import emit
from rtl.shiftlayer import ShiftlayerPe
from rtl.ternary import Decoder, TernaryPe

NAMES = ["mixpe", "ternary", "additive", "shiftlayer"]


def rng_of(*seed):
    return np.random.default_rng(seed)


def draw(name, rng, m, k, n):
    params = unit(name).preset("default")
    values = unit(name).plain_weights(params)
    return params, rng.integers(-128, 128, (m, k)), values[rng.integers(0, len(values), (k, n))]


def literal(a, w, product):
    """Y by a loop over every product, in Python's integers."""
    m, k, n = len(a), len(w), len(w[0])
    return [[sum(product(a[i][t], w[t][j]) for t in range(k)) for j in range(n)] for i in range(m)]


# ------------------------------------------------------------------------------------- against literal loops


def test_additive_adds_and_subtracts():
    params, a, w = draw("additive", rng_of(1), 3, 75, 10)
    wanted = literal(a.tolist(), w.tolist(), lambda x, sign: x if sign == 1 else -x)
    assert unit("additive").golden(params, a, w).tolist() == wanted


def test_ternary_adds_subtracts_and_skips():
    params, a, w = draw("ternary", rng_of(2), 3, 75, 10)
    wanted = literal(a.tolist(), w.tolist(), lambda x, trit: {-1: -x, 0: 0, 1: x}[trit])
    assert unit("ternary").golden(params, a, w).tolist() == wanted


def test_the_shift_layer_shifts_and_negates_as_its_codes_say():
    params, a, w = draw("shiftlayer", rng_of(3), 3, 75, 10)

    def product(x, code):
        return 0 if code == 0 else (-1) ** (code & 1) * (x << (code // 2 - 1))

    assert unit("shiftlayer").golden(params, a, w).tolist() == literal(a.tolist(), encode(w).tolist(), product)


GROUPED = MixpeParams(rows=8, cols=4, group_size=16, weight_bits=4, scale_bits=6)


def grouped_weights(rng, k, n, group=16):
    groups = -(-k // group)
    return GroupedWeights(
        codes=rng.integers(-8, 8, (k, n)),
        scales=rng.integers(1, 64, (groups, n)),
        zeros=rng.integers(-8, 8, (groups, n)),
        group=group,
    )


def of_groups(a, w, group, use_zeros=True, use_scales=True):
    """sum_g s_g (sum_k a q - z_g sum_k a), group by group in float64."""
    y = np.zeros((len(a), w.codes.shape[1]))
    for g, k in enumerate(range(0, a.shape[1], group)):
        x = a[:, k : k + group].astype(np.float64)
        total = x @ w.codes[k : k + group]
        total -= use_zeros * x.sum(axis=1, keepdims=True) * w.zeros[g]
        y += total * (w.scales[g] if use_scales else 1)
    return y


@pytest.mark.parametrize("k", [5, 16, 40, 45])
def test_mixpe_scales_each_groups_product_and_takes_its_zero_point_away(k):
    """Of whole groups, parts of one, and parts of a tile."""
    rng = rng_of(4, k)
    a, w = rng.integers(-128, 128, (3, k)), grouped_weights(rng, k, 6)
    y = run_rtl(GROUPED, (a, w)).output
    assert (y == of_groups(a, w, 16)).all()
    assert (y != of_groups(a, w, 16, use_zeros=False)).any()
    assert (y != of_groups(a, w, 16, use_scales=False)).any()
    if k > 16:
        moved = GroupedWeights(codes=w.codes, scales=w.scales[::-1], zeros=w.zeros[::-1], group=16)
        assert (y != of_groups(a, moved, 16)).any()


def test_mixpe_with_constant_activations_sees_the_zero_point_alone():
    """All codes equal to the zero point: the product of every group is nothing, however large its parts are."""
    a = np.full((2, 40), -128)
    w = GroupedWeights(codes=np.full((40, 4), -8), scales=np.full((3, 4), 63), zeros=np.full((3, 4), -8), group=16)
    assert not run_rtl(GROUPED, (a, w)).output.any()
    assert of_groups(a, w, 16, use_zeros=False).all()


# ------------------------------------------------------------------------------------------- planted faults


@pytest.mark.parametrize("pe, name", [(AdditivePe, "additive"), (TernaryPe, "ternary"), (ShiftlayerPe, "shiftlayer")])
def test_a_one_that_is_due_and_left_out_is_found(pe, name, monkeypatch):
    monkeypatch.setattr(pe, "terms", property(lambda self: [self.value]))
    assert not verify(unit(name).preset("small"), cases=3, seed=1).passed


def test_a_zero_point_that_is_left_out_is_found(monkeypatch):
    monkeypatch.setattr(rtl.mixpe.Mixpe, "_without_zeros", lambda *args: args[-1])
    assert not verify(unit("mixpe").preset("grouped"), cases=3, seed=1).passed


def test_a_top_bit_that_adds_would_be_found():
    rng = rng_of(11)
    a, w = rng.integers(-128, 128, (3, 40)), grouped_weights(rng, 40, 4)
    unsigned = GroupedWeights(codes=w.codes & 15, scales=w.scales, zeros=w.zeros, group=16)
    assert (run_rtl(GROUPED, (a, w)).output != of_groups(a, unsigned, 16)).all()


# ---------------------------------------------------------------------------------------------------- bytes


def every_byte(packing):
    """All weights that a byte can hold, by counting."""
    count = packing.in_byte
    return np.stack([np.arange(3**count) // 3**i % 3 - 1 for i in range(count)], axis=-1)


@pytest.mark.parametrize("packing", list(Packing))
def test_every_byte_of_weights_is_packed_apart_and_unpacked(packing):
    weights = every_byte(packing)
    words = pack(packing, weights)
    assert len(set(words.tolist())) == len(weights)
    assert 0 <= words.min() <= words.max() < 256
    assert (unpack(packing, words) == weights).all()


def test_a_byte_of_digits_counts_them_in_base_3():
    assert pack(Packing.FIVE, np.array([[1, -1, 0, 1, -1]])).tolist() == [1 + 2 * 3 + 0 * 9 + 1 * 27 + 2 * 81]
    assert pack(Packing.FIVE, np.full((1, 5), -1)).tolist() == [242]


@pytest.mark.parametrize("word", [243, 250, 255])
def test_bytes_beyond_the_last_digits_are_refused(word):
    with pytest.raises(InputError, match=rf"weight\[1\]: byte {word} is beyond the last one, 242"):
        unpack(Packing.FIVE, np.array([0, word]))


@pytest.mark.parametrize("word", [2, 0b10_00, 0b10_00_00_00, 0b01_10_11_00])
def test_the_2_bits_that_are_no_weight_are_refused(word):
    with pytest.raises(InputError, match=rf"weight\[0\]: byte {word} holds the code 2, which is no weight"):
        unpack(Packing.TWO, np.array([word]))


@pytest.mark.parametrize("word", [-1, 256])
@pytest.mark.parametrize("packing", list(Packing))
def test_what_is_no_byte_is_refused(packing, word):
    with pytest.raises(InputError, match=rf"weight.*: {word} is outside 0..255"):
        unpack(packing, np.array([word]))


def traced(params, a, w, change):
    """A run's trace with changed load beats."""
    entry = unit(type(params).__module__.rpartition(".")[2])
    beats = {name: dict(fields) for name, fields in entry.beats(params, a, w).items()}
    beats["i_weight"]["weight"] = change(beats["i_weight"]["weight"])
    always = np.ones(1, dtype=bool)
    stimulus = Stimulus(beats=beats, offer=dict.fromkeys(beats, always), accept={"o_psum": always})
    return entry.trace(params, stimulus)


def test_load_beats_beyond_the_format_are_refused():
    ternary, shift = TernaryParams(rows=5, cols=1), ShiftlayerParams(rows=2, cols=1)
    with pytest.raises(InputError, match=r"byte 243 is beyond the last one"):
        traced(ternary, np.ones((1, 5), dtype=int), np.ones((5, 1), dtype=int), lambda words: words * 0 + 243)
    with pytest.raises(InputError, match=r"code 1 stands for no weight"):
        traced(shift, np.ones((1, 2), dtype=int), np.ones((2, 1), dtype=int), lambda words: words * 0 + 1)
    with pytest.raises(InputError, match=r"weight.*: 16 is outside 0..15"):
        traced(shift, np.ones((1, 2), dtype=int), np.ones((2, 1), dtype=int), lambda words: words * 0 + 16)


def test_the_decoder_takes_every_byte_apart():
    from amaranth.sim import Simulator

    decoder, weights = Decoder(), every_byte(Packing.FIVE)

    async def bench(context):
        for word, wanted in zip(pack(Packing.FIVE, weights).tolist(), weights.tolist(), strict=True):
            context.set(decoder.byte, word)
            codes = context.get(decoder.codes)
            assert [codes >> 2 * i & 3 for i in range(DIGITS)] == [trit & 3 for trit in wanted]

    simulator = Simulator(decoder)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("packing", list(Packing))
@pytest.mark.parametrize("rows", [1, 4, 5, 6, 9])
def test_rows_need_not_fill_their_bytes(packing, rows):
    params = TernaryParams(rows=rows, cols=2, packing=packing)
    rng = rng_of(rows)
    a, w = rng.integers(-128, 128, (2, 2 * rows + 1)), rng.integers(-1, 2, (2 * rows + 1, 3))
    run = run_rtl(params, (a, w))
    assert (run.output == a @ w).all()
    assert unit("ternary").timing(params, M=2, K=2 * rows + 1, N=3).load_cycles == 3 * 2 * -(-rows // packing.in_byte)


@pytest.mark.parametrize("rows", [1, 7, 8, 9])
def test_padding_rows_of_signs_change_no_sum(rows):
    """They hold -1 and meet activations of 0."""
    params = AdditiveParams(rows=rows, cols=2)
    rng = rng_of(rows, 1)
    a, w = rng.integers(-128, 128, (2, rows + 1)), rng.choice([-1, 1], (rows + 1, 3))
    assert (run_rtl(params, (a, w)).output == a @ w).all()


def test_codes_of_powers_are_those_of_the_format():
    quantized = get_format("pot", max_shift=6).quantize(rng_of(5).standard_normal((200, 3)), axis=0)
    assert (encode(quantized.integers) == quantized.codes).all()
    assert (decode(quantized.codes) == quantized.integers).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_every_power_goes_through_the_rtl(bits):
    params = ShiftlayerParams(rows=3, cols=2, weight_bits=bits)
    w = unit("shiftlayer").plain_weights(params)[None]
    assert np.abs(w).max() == 1 << params.max_shift
    assert encode(w).max() == (1 << bits) - 1
    a = np.array([[-128], [127], [1], [-1]])
    assert (run_rtl(params, (a, w)).output == a * w).all()


# ---------------------------------------------------------------------------------------------- formats, FP16


@pytest.mark.parametrize("name", [*NAMES, "mixpe-symmetric"])
def test_quantized_weights_reach_the_result(name):
    name, _, symmetric = name.partition("-")
    entry = unit(name)
    params = (
        entry.params(rows=8, group_size=16, zero_points=not symmetric) if name == "mixpe" else entry.preset("small")
    )
    rng = rng_of(6)
    format_name, options = entry.weight_format(params)
    quantized = get_format(format_name, **options).quantize(rng.standard_normal((48, 5)), axis=0)
    operand, worth = entry.operand(params, quantized)
    a = rng.integers(-16, 16, (4, 48))
    y = entry.golden(params, a, operand) * float(worth) * quantized.step
    np.testing.assert_allclose(y, a @ quantized.dequantize(), rtol=1e-12, atol=1e-12)
    if name == "mixpe":
        assert symmetric or operand.zeros.any()


def test_weights_without_integers_are_refused():
    quantized = get_format("fp16").quantize(np.ones((4, 2)), axis=0)
    for name in ("ternary", "additive", "shiftlayer"):
        with pytest.raises(InputError, match=f"{name}: weights need a format with integers and one scale a column"):
            unit(name).operand(unit(name).preset("small"), quantized)
    with pytest.raises(InputError, match="mixpe: weights need integer codes with integer scales"):
        unit("mixpe").operand(unit("mixpe").preset("default"), quantized)


def half_operands(name, rng, k):
    entry = unit(name)
    params = entry.params(rows=32, act_format="fp16", act_bits=12)
    values = entry.plain_weights(params)
    w = values[rng.integers(0, len(values), (k, 8))]
    return params, (rng.standard_normal((6, k)) * 2.0 ** rng.integers(-6, 7, (6, 1))).astype(np.float16), w


@pytest.mark.parametrize("name", NAMES)
def test_fp16_errs_by_no_more_than_alignment_and_single_precision_do(name, record_property):
    """Half a unit of the aligned integers for each activation; half a unit of single precision for each rounding."""
    params, a, w = half_operands(name, rng_of(7), 100)
    y = unit(name).golden(params, a, unit(name).from_integers(params, w)[0])
    assert y.dtype == np.float32
    real, bound, size = a.astype(np.float64), np.zeros(y.shape), np.abs(a.astype(np.float64)) @ np.abs(w)
    for k in range(0, 100, 32):
        largest = np.abs(real[:, k : k + 32]).max(axis=1, keepdims=True)
        step = 2.0 ** (np.floor(np.log2(largest)) - (params.act_bits - 2))
        bound += step / 2 * np.abs(w[k : k + 32]).sum(axis=0)
    error = np.abs(y - real @ w)
    bound += 2 * 4 * 2.0**-24 * (size + bound)
    record_property("error over bound", float((error / bound).max()))
    assert (error <= bound).all()
    assert (error > 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_fp16_is_exact_where_one_tile_holds_all_digits(name):
    """Activations of few digits, wide integers: the exact sum, rounded once."""
    rng = rng_of(8)
    params, _, w = half_operands(name, rng, 30)
    params = unit(name).params(rows=32, act_format="fp16", act_bits=24)
    a = (rng.integers(-1024, 1024, (5, 30)) / 8).astype(np.float16)
    y = unit(name).golden(params, a, unit(name).from_integers(params, w)[0])
    assert (y == (a.astype(np.float64) @ w).astype(np.float32)).all()


def test_how_alignment_rounds_can_be_chosen():
    _, a, w = half_operands("ternary", rng_of(9), 64)
    entry = unit("ternary")
    halves = {"rows": 32, "act_format": "fp16", "act_bits": 8}
    results = [entry.golden(entry.params(**halves, rounding=mode), a, w) for mode in ("nearest_even", "floor")]
    assert (results[0] == entry.golden(entry.params(**halves), a, w)).all()
    assert (results[0] != results[1]).any()


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("mixpe", {"weight_bits": 1}, "mixpe: weight_bits must be a whole number from 2 to 8, not 1"),
        ("mixpe", {"group_size": 40}, "mixpe: group_size must be a multiple of rows = 32, not 40; nearest: 32"),
        ("mixpe", {"zero_points": 2}, "mixpe: zero_points=2 is not a truth value"),
        ("mixpe", {"act_format": "fp16", "acc_bits": 24}, "mixpe: act_format=fp16 .* needs acc_bits=32, not 24"),
        ("ternary", {"weight_bits": 3}, "ternary: weight_bits must be 2, not 3"),
        ("ternary", {"packing": "fiv"}, "ternary: packing='fiv' is unknown; did you mean 'five'"),
        ("additive", {"rows": 0}, "additive: rows must be a whole number from 1 to 256, not 0"),
        ("shiftlayer", {"weight_bits": 6}, "shiftlayer: weight_bits must be a whole number from 2 to 5, not 6"),
    ],
)
def test_parameters_that_cannot_be_built_are_refused(name, values, message):
    with pytest.raises(InputError, match=message):
        unit(name).params(**values)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("ternary", 2, r"W\[1, 0\]: 2 is none of -1, 0 and 1; nearest: 1"),
        ("additive", 0, r"W\[1, 0\]: 0 is neither -1 nor \+1; nearest: -1"),
        ("shiftlayer", 65, r"W\[1, 0\]: 65 is neither 0 nor a power of two up to 64; nearest: 64"),
        ("shiftlayer", -3, r"W\[1, 0\]: -3 is neither 0 nor a power of two up to 64; nearest: -4"),
        ("shiftlayer", 128, r"W\[1, 0\]: 128 .*; nearest: 64"),
        ("mixpe", 8, r"W.*: 8 is outside -8..7 \(4 bits\)"),
    ],
)
def test_weights_beyond_the_format_are_refused(name, value, message):
    w = np.array([[1, 1], [value, 1]])
    params = unit(name).preset("default")
    with pytest.raises(InputError, match=message):
        unit(name).from_integers(params, w)
    if name != "mixpe":
        with pytest.raises(InputError, match=message):
            unit(name).golden(params, np.ones((1, 2), dtype=int), w)
        with pytest.raises(InputError, match=r"W: integers are needed, not float64"):
            unit(name).golden(params, np.ones((1, 2), dtype=int), w.astype(float))


def test_zero_points_and_groups_that_the_array_lacks_are_refused():
    rng = rng_of(10)
    a, w = rng.integers(-8, 8, (2, 40)), grouped_weights(rng, 40, 3)
    plain = MixpeParams(rows=8, cols=4, group_size=16, scale_bits=6, zero_points=False)
    with pytest.raises(InputError, match=r"zeros\[0, \d\]: -?\d; mixpe with zero_points=false takes 0 alone"):
        unit("mixpe").golden(plain, a, w)
    with pytest.raises(InputError, match="W has groups of 16: the array has group_size=8"):
        unit("mixpe").golden(MixpeParams(rows=8, group_size=8), a, w)
    with pytest.raises(InputError, match=r"scales.*: \d+ is outside 0..7 \(3 bits\)"):
        unit("mixpe").golden(MixpeParams(rows=8, group_size=16, scale_bits=3), a, w)


@pytest.mark.parametrize("name", NAMES)
def test_activations_beyond_their_width_are_refused(name):
    params = unit(name).preset("default")
    w = unit(name).from_integers(params, np.ones((3, 2), dtype=int))[0]
    with pytest.raises(InputError, match=r"A.*: 128 is outside -128..127 \(8 bits\)"):
        unit(name).golden(params, np.full((1, 3), 128), w)
    halves = unit(name).params(act_format="fp16", act_bits=12)
    with pytest.raises(InputError, match=r"A\[0, 1\]: nan is not finite"):
        unit(name).golden(halves, np.array([[1.0, np.nan, 1.0]]), w)


# ------------------------------------------------------------------------------------------------- what is built


def instances(verilog, module):
    return sum(line.lstrip().startswith(f"{module} ") for line in verilog.splitlines())


def test_what_the_columns_share_is_built_once_and_decoders_once_a_column():
    packed = emit(TernaryParams(rows=7, cols=3))
    assert (instances(packed, "decoder_0"), instances(packed, "ternary_pe_0")) == (3, 7)
    assert instances(packed, "dot_column_0") == 3
    assert "decoder" not in emit(TernaryParams(rows=7, cols=3, packing=Packing.TWO))


def test_without_zero_points_neither_their_words_nor_their_products_are_built():
    with_zeros, without = (MixpeParams(rows=4, cols=2, zero_points=z) for z in (True, False))
    assert "zero_point_0" in emit(with_zeros)
    assert "zero" not in emit(without)
    a, w = np.ones((1, 4), dtype=int), unit("mixpe").from_integers(with_zeros, np.ones((4, 2), dtype=int))[0]
    fields = [set(unit("mixpe").beats(p, a, w)["i_weight"]) for p in (with_zeros, without)]
    assert fields == [{"weight", "scale", "zero"}, {"weight", "scale"}]
    assert with_zeros.columns.latency == without.columns.latency + 1


def flip_flops(params, name):
    cells = synthesize(emit(params), name).cells
    return sum(count for cell, count in cells.items() if cell.startswith("DFF"))


def register_bits(counted):
    return sum(op.count * op.bits for op in counted if op.kind == "reg")


HALVES = {"act_format": "fp16", "act_bits": 12}
BUILT = [
    ("additive", {"rows": 11, "cols": 3, "act_bits": 5, "acc_bits": 14}),
    ("additive", {"rows": 4, "cols": 2, **HALVES}),
    ("ternary", {"rows": 7, "cols": 3, "act_bits": 5, "acc_bits": 14}),
    ("ternary", {"rows": 7, "cols": 3, "act_bits": 5, "acc_bits": 14, "packing": "two"}),
    ("shiftlayer", {"rows": 4, "cols": 3, "act_bits": 5, "weight_bits": 3, "acc_bits": 14}),
    ("shiftlayer", {"rows": 4, "cols": 2, "weight_bits": 3, **HALVES}),
    ("mixpe", {"rows": 4, "cols": 3, "act_bits": 5, "weight_bits": 3, "acc_bits": 24}),
    ("mixpe", {"rows": 4, "cols": 3, "act_bits": 5, "weight_bits": 3, "acc_bits": 24, "zero_points": False}),
    ("mixpe", {"rows": 4, "cols": 2, "weight_bits": 3, **HALVES}),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, values", BUILT)
def test_every_data_register_is_written_once_a_cycle(name, values, tmp_path, monkeypatch):
    monkeypatch.setenv("HWSIM_CACHE", str(tmp_path))
    p = unit(name).params(**values)
    shape = {"K": p.rows, "N": p.cols}
    one, two = (unit(name).ops(p, M=m, **shape) for m in (1, 2))  # one cycle more
    a_cycle = register_bits(two) - register_bits(one)
    loading = register_bits(one) - a_cycle * unit(name).timing(p, M=1, **shape).total_cycles
    beats = p.columns.load_beats
    held = p.rows * p.cols * p.dot.code_bits
    if name == "mixpe":
        held += p.cols * (p.scale_bits + p.zero_points * p.weight_bits)
    control = max(beats - 1, 1).bit_length() + 1 + p.columns.latency  # beats loaded, full, valid bits
    assert loading == beats * held
    assert flip_flops(p, name) == a_cycle + held + control


@pytest.mark.parametrize("name", NAMES)
def test_arithmetic_is_counted_for_useful_products_alone(name):
    entry = unit(name)
    p = entry.preset("default")
    counts = [
        {(op.kind, op.bits, op.bits2): op.count for op in entry.ops(p, M=2, K=k, N=n) if op.kind in ("mux", "csa")}
        for k, n in ((32, 8), (33, 9))
    ]
    assert counts[0]
    for kind, count in counts[0].items():
        assert count * 33 * 9 == counts[1][kind] * 32 * 8
