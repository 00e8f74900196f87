"""What a task and a point are known by."""

import pytest

from hwsim.sweep.point import Point
from hwsim.sweep.tasks import Task

TASK = {"kind": "cycles", "inputs": {"unit": "systolic", "bits": 4}, "version": "v"}
POINT = {"network": "n", "seed": 1, "weight_bits": 4, "act_bits": 8, "transform": "none", "unit": "u"}


@pytest.mark.parametrize(
    "change", [{"kind": "accuracy"}, {"inputs": {"unit": "systolic", "bits": 5}}, {"inputs": {}}, {"version": "w"}]
)
def test_a_task_is_known_by_kind_inputs_and_version(change):
    assert Task(**TASK | change).key != Task(**TASK).key


def test_the_order_of_inputs_is_no_matter():
    turned = dict(reversed(TASK["inputs"].items()))
    assert list(turned) != list(TASK["inputs"])
    assert Task(**TASK | {"inputs": turned}).key == Task(**TASK).key


@pytest.mark.parametrize(
    "change",
    [
        {"network": "m"},
        {"seed": 2},
        {"weight_bits": 3},
        {"act_bits": 7},
        {"transform": "hadamard"},
        {"unit": "v"},
        {"params": (("rows", 4),)},
        {"quantizer": "gptq"},
        {"activations": "symmetric"},
    ],
)
def test_a_point_is_what_it_is_made_of(change):
    assert Point(**POINT | change).configuration() != Point(**POINT).configuration()
    assert Point.from_dict(Point(**POINT | change).as_dict()) == Point(**POINT | change)


def test_a_name_is_no_part_of_the_point():
    assert Point(**POINT, name="ours").configuration() == Point(**POINT).configuration()
