"""Rows of a study, drawn at random, for tests of what shows them."""

import hashlib

import numpy as np

from hwsim.metrics import METRICS

MACS = 15_304_576
UNITS = ("systolic", "lutgemm", "shiftadd", "cube", "tmac", "ternary")
STUDY = {
    "study": {"name": "drawn", "title": "Bit widths and geometries", "network": "digits-mlp"},
    "command": "hwsim sweep drawn.yaml",
    "versions": {"numpy": "2.0", "liberty": "built-in"},
}


def points(count, *, seed=3, failing=0.05, timing_only=False, engines=None):
    """So many rows, the same for the same arguments; `engines`: texts that name them in place of unit and geometry."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        row = _configured(rng, number, engines)
        if rng.random() < failing:
            yield row | _failed(row, number)
        else:
            values = _timed(rng, row) if timing_only else _timed(rng, row) | _measured(rng, row)
            yield row | values | _derived({**row, **values})


def _configured(rng, number, engines):
    unit = UNITS[int(rng.integers(len(UNITS)))]
    rows, cols, bits = (int(2 ** rng.integers(2, 6)), int(2 ** rng.integers(2, 6)), int(rng.integers(2, 9)))
    engine = engines[number % len(engines)] if engines else f"{unit} {rows}x{cols}"
    transform = ("none", "hadamard")[number % 2]
    return {
        **dict.fromkeys(METRICS),
        "key": hashlib.sha256(str(number).encode()).hexdigest(),
        "label": f"{engine} W{bits}A8 {transform}",
        "name": engine if engines else "",
        "network": "digits-mlp",
        "seed": 1,
        "unit": unit,
        "engine": engine,
        "format": f"W{bits}A8",
        "weight_bits": bits,
        "act_bits": 8,
        "transform": transform,
        "quantizer": "rtn",
        "activations": "asymmetric",
        "params": {"rows": rows, "cols": cols, "dataflow": ("WS", "OS")[int(rng.integers(2))]},
        "status": "done",
        "message": "",
        "wall_s": 1.5,
        "peak_memory_bytes": 1 << 20,
        "created": "2026-01-01T00:00:00+00:00",
        "revision": "",
        "detail": {},
    }


def _failed(row, number):
    if number % 3:
        return {"status": "timeout", "message": "not finished after 600 s"}
    return {"status": "error", "message": f"{row['unit']}: no such thing", "detail": {"traceback": "Traceback: <b>"}}


def _timed(rng, row):
    lanes = row["params"]["rows"] * row["params"]["cols"]
    cycles = int(MACS / lanes * rng.uniform(1.1, 2.5))
    energy = float(2000 + 900 * row["weight_bits"] + rng.normal(0, 90))
    return {"cycles": cycles, "utilization": MACS / lanes / cycles, "energy_pj": energy, "macs": MACS}


def _measured(rng, row):
    bits, lanes = row["weight_bits"], row["params"]["rows"] * row["params"]["cols"]
    area = lanes * (80 + bits * 60) * float(rng.uniform(0.9, 1.3))
    accuracy = 0.97 - 0.6 * 2.0 ** (-1.3 * bits) * (1.4 if row["transform"] == "hadamard" else 2)
    return {
        "accuracy": float(np.clip(accuracy + rng.normal(0, 0.006), 0, 1)),
        "float_accuracy": 0.9688,
        "area_um2": area,
        "delay_ns": float(rng.uniform(0.8, 1.6)),
        "bits_per_weight": bits + 0.47,
        "transform_area_um2": 20_000.0 * (row["transform"] == "hadamard"),
        "transform_cycles": 5000 * (row["transform"] == "hadamard"),
        "quantizer_area_um2": 88_447.9,
        "quantizer_cycles": 10_339,
        "detail": {
            "ops": {"mul": 971_046.6 * bits, "add": 106_705.8, "reg": 780_211.5},
            "hardware": _hardware(row, area),
        },
    }


def _hardware(row, area):
    """An engine of PEs and a quantizer, which share the area."""
    lanes = row["params"]["rows"] * row["params"]["cols"]
    pes = [["pe", lanes, 0.65 * area / lanes], [row["unit"], 1, 0.05 * area]]
    own = {
        "params": row["params"] | {"style": "opt1"} if row["unit"] == "systolic" else {},
        "area_um2": 0.7 * area,
        "delay_ns": 1.2,
    }
    quantizer = {"unit": "quantizer", "params": {"lanes": 8}, "area_um2": 0.3 * area, "delay_ns": 0.9}
    return {
        "engine": {"unit": row["unit"], **own, "modules": pes},
        "quantizer": {**quantizer, "modules": [["quantizer", 1, 0.3 * area]]},
    }


def _derived(row):
    if row["delay_ns"] is None:
        return {}
    throughput = MACS / (row["cycles"] * row["delay_ns"])
    return {
        "clock_mhz": 1000 / row["delay_ns"],
        "latency_us": row["cycles"] * row["delay_ns"] / 1000,
        "throughput_gmacs": throughput,
        "area_at_equal_throughput_um2": row["area_um2"] / throughput,
        "gate_equivalents": row["area_um2"] / 0.798,
    }
