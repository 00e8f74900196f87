"""A study whose evaluation takes microseconds: three kinds of tasks, shared between points, that can be told to fail.

Found by workers under this module's name. Every task adds a line to the file that HWSIM_TEST_LOG names.
"""

import os
import signal
import time
from pathlib import Path

from hwsim.sweep.tasks import Evaluation, Task
from models.unit import InputError

STUDY = """\
name: tiny
network: digits-mlp
seed: 1
formats: [W8A8, W7A8, W6A8, W5A8]
transforms: [none, hadamard]
engines:
  - {unit: systolic, set: {rows: 4, cols: 8, dataflow: WS}}
  - {unit: lutgemm}
"""
POINTS = 16
TASKS = 4 + 8 + 2
"""accuracies of four formats, cycles of eight engines, areas of two units"""


def log(text):
    with Path(os.environ["HWSIM_TEST_LOG"]).open("a") as file:
        file.write(f"{text}\n")


def accuracy(*, bits):
    log(f"accuracy {bits}")
    return {"value": 1 - 1 / bits}


def cycles(*, unit, bits):
    log(f"cycles {unit} {bits}")
    return {"cycles": 1000 * len(unit) + bits, "units": [unit]}


def area(*, unit):
    log(f"area {unit}")
    return {"area": 10.0 * len(unit)}


FUNCTIONS = {"accuracy": accuracy, "cycles": cycles, "area": area}


def plan(point, results):
    tasks = {
        "accuracy": Task(kind="accuracy", inputs={"bits": point.weight_bits}, version="v"),
        "cycles": Task(kind="cycles", inputs={"unit": point.unit, "bits": point.weight_bits}, version="v"),
    }
    units = results.get("cycles", {}).get("units", [])
    return tasks | {f"area {unit}": Task(kind="area", inputs={"unit": unit}, version="v") for unit in units}


def combine(point, results):
    found = results[f"area {point.unit}"]["area"]
    return {
        "accuracy": results["accuracy"]["value"],
        "cycles": results["cycles"]["cycles"],
        "area_um2": found,
        "area_at_equal_throughput_um2": found * results["cycles"]["cycles"] / 1000,
        "ops": {"add": 3.0},
    }


def check(_point):
    return {"engine": {}}


def version(_point):
    return os.environ.get("HWSIM_TEST_VERSION", "1")


def made(**functions):
    return Evaluation(functions={**FUNCTIONS, **functions}, check=check, plan=plan, combine=combine, version=version)


def cheap(_settings):
    return made()


def slow(_settings):
    def late(*, bits):
        time.sleep(0.15)
        return accuracy(bits=bits)

    return made(accuracy=late)


def stuck(_settings):
    def endless(*, bits):
        log(f"pid {os.getpid()}")
        while bits:
            time.sleep(0.05)

    return made(accuracy=endless)


def faulty(_settings):
    """Every way to fail, by the weight bits."""

    def bad(*, bits):
        print("noise" * 1000)
        match bits:
            case 8:
                return accuracy(bits=bits)
            case 7:
                raise InputError("K=7 does not fit\nat all")
            case 6:
                return 1 / 0
            case _:
                os.kill(os.getpid(), signal.SIGKILL)

    return made(accuracy=bad)


def hungry(_settings):
    """5 bits take all the memory, 6 bits all the time, 7 bits leave a child behind."""

    def greedy(*, bits):
        if bits == 5:
            held = [bytearray(1 << 20) for _ in range(1 << 16)]
            return {"value": float(len(held))}
        if bits == 6:
            while True:
                time.sleep(1)
        if bits == 7:
            leave_a_child()
        return accuracy(bits=bits)

    return made(accuracy=greedy)


def leave_a_child():
    """One in a session of its own, which no signal to the worker's group reaches."""
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(600)
        os._exit(0)
    log(f"child {child}")


def selective(_settings):
    """One corner of the space that cannot be built, and a unit that cannot at all where the variable is set."""

    def refuse(point):
        if point.unit == "lutgemm" and (point.weight_bits == 5 or os.environ.get("HWSIM_TEST_REFUSE")):
            raise InputError("lutgemm: mu must divide 64")
        return {}

    return Evaluation(functions=FUNCTIONS, check=refuse, plan=plan, combine=combine, version=version)
