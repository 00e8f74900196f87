"""The house: three floors, one file a unit on each, and independence where agreement is to be evidence."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from models.catalog import UNITS

ROOT = Path(__file__).resolve().parent.parent
SHARED_MODULES = {"__init__", "bits", "catalog", "columns", "compared", "dot", "encoder", "float_kernels", "floats"} | {
    *("formats", "formats_bcq", "formats_codebook", "formats_fp", "formats_pot", "formats_twinlog", "gemm"),
    *("gemm_kernels", "grouped", "minifloats", "quantized", "sparse", "style"),
    *("tmac_kernels", "unit"),
}
EVIDENCE = {"golden", "timing", "trace", "ops", "beats", "result", "sample"}


def imports_from_models(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "models":
            yield from ((node.module, alias.name) for alias in node.names)
        if isinstance(node, ast.Import):
            yield from ((alias.name, "*") for alias in node.names if alias.name.split(".")[0] == "models")


@pytest.mark.parametrize("path", sorted((ROOT / "rtl").glob("*.py")), ids=lambda p: p.stem)
def test_rtl_takes_params_and_formats_from_models_but_nothing_that_computes_results(path):
    """Params, enums and constants start with a capital; of functions only the ranges of models/bits.py."""
    for module, name in imports_from_models(path):
        assert name[0].isupper() or module == "models.bits", f"{path.name} imports {module}.{name}"
        assert not any(word in name for word in EVIDENCE)


def test_models_and_rtl_hold_one_file_of_the_same_name_for_each_unit():
    models = {p.stem for p in (ROOT / "models").glob("*.py")} - SHARED_MODULES
    assert models == set(UNITS)
    assert all((ROOT / "rtl" / f"{name}.py").exists() for name in UNITS)


def test_nothing_but_the_catalogue_and_its_own_files_names_a_unit_in_the_library():
    """A unit's name stands as text in models/catalog.py alone; relatives may import each other's files."""
    allowed = {"hwsim/transforms/maps.py": {"hadamard"}, "models/style.py": {"ent"}}  # a map, a style of arrays
    allowed |= {"hwsim/transforms/__init__.py": {"hadamard"}}  # a transform of that name
    allowed |= {"hwsim/workloads/rewrites.py": {"hadamard"}}  # a rewrite of that name
    allowed |= {"hwsim/accuracy_table.py": {"hadamard", "ternary"}}  # a transform and a format of these names
    choices = {"quantizer"}  # of every design point, beside the unit of that name
    # number formats and a family of that name
    allowed |= {"models/formats.py": {"ternary", "bipolar"}, "models/compared.py": {"shiftadd"}}
    for folder in ("hwsim", "models", "rtl"):
        for path in (ROOT / folder).rglob("*.py"):
            place = path.relative_to(ROOT).as_posix()
            if path.stem in UNITS or place == "models/catalog.py":
                continue
            tree = ast.parse(path.read_text())
            texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            assert texts & set(UNITS) <= allowed.get(place, set()) | choices, place


def test_import_is_light():
    heavy = ("numba", "scipy", "sklearn", "altair", "amaranth", "pyosys", "cocotb", "rich", "pydantic")
    code = f"import sys, hwsim; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
