"""Versions: a changed file gives new tasks to exactly those that it concerns."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hwsim.evaluation import evaluation, points
from hwsim.sweep import code
from hwsim.sweep.code import REGISTRIES, closure, code_version, tool_versions
from hwsim.sweep.point import Point
from models.unit import InputError

ROOT = Path(code.__file__).resolve().parents[2]
BASE = {"network": "digits-mlp", "seed": 1, "weight_bits": 4, "act_bits": 8, "transform": "none", "unit": "systolic"}

TREE = {
    "models/__init__.py": "",
    "models/a.py": "import models.b\n",
    "models/b.py": "import os\n",
    "models/lone.py": "",
    "hwsim/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hwsim.unseen import x\n",
    "hwsim/unseen.py": "x = 1\n",
    "hwsim/sub/__init__.py": "from hwsim.early import y\ndef f():\n    from hwsim.late import z\n",
    "hwsim/early.py": "y = 1\n",
    "hwsim/late.py": "z = 1\n",
    "hwsim/sub/one.py": "def g():\n    from . import two\n    from ..deep.er import h\n",
    "hwsim/sub/two.py": "",
    "hwsim/deep/__init__.py": "",
    "hwsim/deep/er.py": "h = 1\n",
    "hwsim/uses.py": "from hwsim.sub import f\n",
    "hwsim/transforms/__init__.py": "TRANSFORMS = {\n    'p': 1,\n    'q': 2,\n}\ndef get():\n    import hwsim.late\n",
    "hwsim/named.py": "from hwsim.transforms import get\n",
    "rtl/__init__.py": "",
}


@pytest.fixture
def tree(tmp_path):
    return made(tmp_path / "tree", TREE)


def made(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


OF_POINTS = (points._network_version, points._unit_version, points._point_version)


def forget():
    for kept in (code._file, code._parsed, code._closure, code._version):
        kept.cache_clear()


def test_imports_are_followed_wherever_they_stand(tree):
    assert closure(["models.a"], tree) == {"models", "models.a", "models.b"}
    inside = {"hwsim.sub.one", "hwsim.sub.two", "hwsim.deep", "hwsim.deep.er"}
    around = {"hwsim", "hwsim.sub", "hwsim.early"}
    assert closure(["hwsim.sub.two"], tree) == {"hwsim.sub.two"} | around
    assert closure(["hwsim.uses"], tree) == {"hwsim.uses", "hwsim.late"} | around
    # `from . import two` takes names of the package, whose functions then count
    assert closure(["hwsim.sub.one"], tree) == inside | around | {"hwsim.late"}


def test_a_registry_counts_without_its_table_and_what_its_functions_import(tree):
    assert closure(["hwsim.named"], tree) == {"hwsim", "hwsim.named", "hwsim.transforms"}
    before = code_version(["hwsim.named"], tree)
    made(tree, {"hwsim/transforms/__init__.py": TREE["hwsim/transforms/__init__.py"].replace("'q': 2", "'r': 3")})
    forget()
    assert code_version(["hwsim.named"], tree) == before
    made(tree, {"hwsim/transforms/__init__.py": TREE["hwsim/transforms/__init__.py"].replace("get", "got")})
    forget()
    assert code_version(["hwsim.named"], tree) != before


def test_a_version_is_of_names_and_texts(tree, tmp_path):
    elsewhere = made(tmp_path / "elsewhere", TREE)
    assert code_version(["models.a"], tree) == code_version(["models.a"], elsewhere)
    assert code_version(["models.a", "models.b"], tree) == code_version(["models.b", "models.a", "models.a"], tree)
    assert code_version(["models.a"], tree) != code_version(["models.b"], tree)
    (elsewhere / "models/b.py").write_text("import sys\n")
    forget()
    assert code_version(["models.a"], tree) != code_version(["models.a"], elsewhere)
    assert code_version(["models.lone"], tree) == code_version(["models.lone"], elsewhere)


def test_what_is_not_there_is_refused_and_absent_tools_are_told(tree):
    with pytest.raises(InputError, match=r"no module 'models\.none'"):
        code_version(["models.none"], tree)
    assert tool_versions(("numpy", "no-such-tool"))["no-such-tool"] == "absent"


def test_every_registry_exists_and_has_its_tables():
    for name, tables in REGISTRIES.items():
        text = (
            (ROOT.joinpath(*name.split(".")) / "__init__.py")
            if name != "models.catalog"
            else ROOT / "models/catalog.py"
        )
        for table in tables:
            assert f"\n{table}" in text.read_text(), (name, table)


# ------------------------------------------------------------------------------------------- the usual evaluation

CASES = {
    "systolic": BASE,
    "adder_tree": BASE | {"unit": "adder_tree"},
    "lutgemm": BASE | {"unit": "lutgemm"},
    "shiftadd": BASE | {"unit": "shiftadd"},
    "dequant": BASE | {"unit": "dequant"},
    "turned": BASE | {"transform": "hadamard"},
    "cnn": BASE | {"network": "digits-cnn"},
    "gptq": BASE | {"quantizer": "gptq"},
}


def versions():
    """(case, kind) -> the version of its tasks."""
    plan = evaluation({}).plan
    tasks = {name: plan(Point(**fields), {}) for name, fields in CASES.items()}
    return {(name, task.kind): task.version for name, each in tasks.items() for task in each.values()}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    root = tmp_path_factory.mktemp("copied")
    for package in code.PACKAGES:
        shutil.copytree(
            ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__", "weights", "*.nb*")
        )
    return root


VALUES = ("accuracy", "cycles")
ALL = {(name, kind) for name in CASES for kind in (*VALUES, "synthesis")}


@pytest.mark.parametrize(
    "file, changed",
    [
        # dequant's RTL has the PEs of systolic's
        (
            "models/systolic.py",
            {(n, k) for n, k in ALL if CASES[n]["unit"] == "systolic"} | {("dequant", "synthesis")},
        ),
        ("models/adder_tree.py", {("adder_tree", k) for k in (*VALUES, "synthesis")}),
        # shiftadd's array is lutgemm's
        ("models/lutgemm.py", {(n, k) for n, k in ALL if n in ("lutgemm", "shiftadd")}),
        ("rtl/adder_tree.py", {("adder_tree", "synthesis")}),
        ("rtl/emit.py", {(n, k) for n, k in ALL if k == "synthesis"}),
        ("hwsim/synth/mapper_child.py", {(n, k) for n, k in ALL if k == "synthesis"}),
        ("models/quantizer.py", {(n, k) for n, k in ALL if k == "cycles"}),
        ("models/hadamard.py", {("turned", k) for k in VALUES}),
        ("hwsim/networks/cnn.py", {("cnn", k) for k in VALUES}),
        ("hwsim/networks/llama.py", set()),
        ("hwsim/quantizers/gptq.py", {("gptq", k) for k in VALUES}),
        ("hwsim/quantize.py", {(n, k) for n, k in ALL if k in VALUES}),
        ("hwsim/energy.py", {(n, k) for n, k in ALL if k == "cycles"}),
        ("hwsim/evaluation/points.py", set()),
        ("hwsim/sweep/point.py", set()),
        ("hwsim/report/__init__.py", set()),
        ("hwsim/cli.py", set()),
        ("hwsim/metrics.py", set()),
    ],
)
def test_a_changed_file_changes_exactly_what_it_concerns(file, changed, copied, monkeypatch):
    monkeypatch.setattr(points, "code_version", lambda modules: code_version(modules, copied))
    before = fresh()
    path, name = copied / file, file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    text, kept = path.read_text(), code._parsed
    # only the changed file is parsed again
    monkeypatch.setattr(code, "_parsed", lambda m, root: (kept.__wrapped__ if m == name else kept)(m, root))
    path.write_text(text + "\nCHANGED = 1\n")
    after = fresh()
    path.write_text(text)
    assert {case for case in ALL if before[case] != after[case]} == changed


def fresh():
    """The versions of files as they are."""
    for kept in (code._closure, code._version, *OF_POINTS):
        kept.cache_clear()
    return versions()


@pytest.fixture(autouse=True)
def _forget():
    yield
    for kept in (code._file, code._closure, code._version, *OF_POINTS):
        kept.cache_clear()


def test_a_points_own_version_changes_with_its_tasks_and_with_how_rows_are_made(copied, monkeypatch):
    monkeypatch.setattr(points, "code_version", lambda modules: code_version(modules, copied))
    whole, timing = (
        evaluation({"parts": parts}).version for parts in (("accuracy", "cycles", "synthesis"), ("cycles",))
    )
    chosen = Point(**BASE)
    assert whole(chosen) != timing(chosen)
    before = whole(chosen), timing(chosen)
    assert (whole(Point(**BASE | {"seed": 2})), timing(Point(**BASE | {"params": (("rows", 4),)}))) == before
    kept = code._parsed
    for file, differ in {
        "rtl/systolic.py": (True, False),
        "rtl/quantizer.py": (True, False),
        "rtl/lutgemm.py": (False, False),
        "hwsim/networks/mlp.py": (True, True),
        "hwsim/evaluation/points.py": (True, True),
        "hwsim/metrics.py": (True, True),
        "hwsim/sweep/driver.py": (False, False),
        "hwsim/synth/sta.py": (True, False),
    }.items():
        name = file.removesuffix(".py").replace("/", ".")
        changed = code._Source(digest="other", at_import=kept(name, copied).at_import, whole=kept(name, copied).whole)
        monkeypatch.setattr(code, "_parsed", lambda m, root, n=name, c=changed: c if m == n else kept(m, root))
        for cached in (code._closure, code._version, *OF_POINTS):
            cached.cache_clear()
        assert (whole(chosen) != before[0], timing(chosen) != before[1]) == differ, file


def test_what_is_no_point_has_a_version_still():
    """Points are named before they are checked."""
    for wrong in ({"unit": "x"}, {"network": "x"}, {"transform": "x+:"}, {"quantizer": "x:y"}):
        assert len(evaluation({}).version(Point(**BASE | wrong))) == 64


# ---------------------------------------------------------------------------- what is really there when it has run

RUN = """
import json, os, sys
import numba, numpy, scipy, sklearn.datasets, sklearn.neural_network  # before the forks: these take long
import amaranth.back.verilog

for kind, inputs in json.loads(sys.argv[1]):
    reads, writes = os.pipe()
    if os.fork() == 0:
        from hwsim import evaluation

        library = {"liberty": None} if kind == "synthesis" else {}
        getattr(evaluation, f"_{kind}")(**inputs, **library)
        names = [name for name in sys.modules if name.partition(".")[0] in ("hwsim", "models", "rtl")]
        os.write(writes, json.dumps(names).encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as file:
        print(file.read())
    assert os.wait()[1] == 0
"""

RAN = {
    "plain": Point(**BASE, params=(("cols", 2), ("rows", 2))),
    "turned": Point(**BASE | {"unit": "shiftadd", "transform": "hadamard", "weight_bits": 2}),
    "kernels": Point(**BASE | {"unit": "tmac", "quantizer": "gptq", "activations": "symmetric"}),
}


def test_a_closure_holds_every_module_that_a_task_really_imports(tmp_path):
    cases = [task for chosen in RAN.values() for task in evaluation({}).plan(chosen, {}).values()]
    # arrays whose synthesis is in no cache would take long, and the unit changes nothing in what is imported but itself
    cases = [task for task in cases if task.kind != "synthesis" or task.inputs["unit"] == "systolic"]
    jobs = json.dumps([[task.kind, task.inputs] for task in cases])
    env = os.environ | {"HWSIM_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", RUN, jobs], capture_output=True, text=True, env=env, check=True)
    for task, line in zip(cases, done.stdout.splitlines(), strict=True):
        loaded, listed = set(json.loads(line)), closure(roots(task))
        own = f"models.{task.inputs['unit']}"
        assert own in loaded - closure(set(roots(task)) - {own, own.replace("models", "rtl")})
        assert loaded - listed == set(), task.kind


def roots(task):
    """The modules that the version of a task is made from."""
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points, "code_version", lambda modules: asked.extend(modules) or "")
        for kept in OF_POINTS:
            kept.cache_clear()
        if task.kind == "synthesis":
            points._unit_version(task.inputs["unit"])
        else:
            named = (task.inputs[name] for name in ("unit", "network", "transform", "quantizer"))
            points._network_version(task.kind, *named)
    return asked
