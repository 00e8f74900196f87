"""Point folders: the sweep file in them is the point, whatever its name; the script says what it should, wherever."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.sweep import point_folders
from hwsim.sweep.ledger import row_of
from hwsim.sweep.point import Point
from hwsim.sweep.point_folders import write_folder, write_folders
from hwsim.sweep.rows import COLUMNS
from hwsim.sweep.space import load_study
from hwsim.sweep.store import close_store, open_store, record, save_study, set_members
from hwsim.sweep.tasks import DONE, REFUSED, digest
from models.unit import InputError

STUDY = {
    "name": "tiny",
    "network": "digits-mlp",
    "seed": 1,
    "formats": ["W8A8"],
    "transforms": ["none"],
    "engines": [{"unit": "systolic", "set": {}}],
    "evaluate": ["cycles"],
    "limits": {"time_s": 0.5, "memory_mib": 100},
}
ENTRIES = {"study": STUDY, "command": "hwsim sweep tiny.yaml", "versions": {"numpy": "2", "liberty": "built-in"}}
POINT = Point(
    network="digits-mlp", seed=1, weight_bits=4, act_bits=8, transform="none", unit="systolic", params=(("rows", 4),)
)
HOSTILE = "'\"<b>$(touch x)`;\n\\../%0a: #\0\x85\u2028\ufeff\ufffeé\U0001f4a5"


def row(number=0, *, status=DONE, name="", **metrics):
    point = Point(**{**POINT.as_dict(), "params": (("cols", number + 1), *POINT.params), "name": name})
    found = row_of(digest(point.configuration()), point)
    shown = {"status": status, "message": "", "revision": "abc", **metrics}
    detail = {"tasks": {"cycles": "t"}, "versions": {"numpy": "1"}}
    return found | shown | {"wall_s": 1.5, "created": "2026-01-01T00:00:00+00:00", "detail": detail}


@pytest.fixture
def study(tmp_path):
    """Write a study of these rows: an open store."""
    opened = []

    def make(rows, **entries):
        store = open_store(tmp_path / "store.sqlite")
        opened.append(store)
        record(store, [], rows)
        save_study(store, ENTRIES | entries)
        set_members(store, [each["key"] for each in rows])
        return store

    yield make
    for store in opened:
        close_store(store)


def complete(row):
    """As a store gives it."""
    return {column.field: None for column in COLUMNS} | row


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / "points").iterdir())


# ---- the sweep file

ENGINES = (
    ("systolic", (("cols", 8), ("dataflow", "WS"), ("rows", 4), ("style", "ent")), 8, "symmetric"),
    ("dequant", (("cols", 4), ("rows", 4)), 16, "float"),
    ("lutgemm", (("serial", True),), 8, "asymmetric"),
    ("mxdot", (("block_size", 16), ("scale_format", "e4m3")), 4, "float"),
)
POINTS = st.builds(
    lambda engine, name, bits, seed, transform, quantizer: Point(
        network="digits-mlp",
        seed=seed,
        weight_bits=bits,
        act_bits=engine[2],
        transform=transform,
        unit=engine[0],
        params=engine[1],
        quantizer=quantizer,
        activations=engine[3],
        name=name,
    ),
    st.sampled_from(ENGINES),
    st.one_of(st.text(st.characters(codec="utf-8"), max_size=100), st.just(HOSTILE)),
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["none", "hadamard:points=32", "smooth+quarot"]),
    st.sampled_from(["rtn", "gptq:damp=1e-2"]),
)


@settings(max_examples=60, deadline=None)
@given(POINTS)
def test_the_sweep_file_of_a_point_is_that_point(point):
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "point"
        found = row() | row_of("0" * 64, point)
        write_folder(place, complete(found), ENTRIES, None)
        again = load_study(place / "study.yaml")
        told = json.loads((place / "point.json").read_text())
    assert list(again.points()) == [point]
    assert again.evaluate == ("cycles",)
    assert (again.limits.time_s, again.limits.memory_mib) == (0.5, 100)
    assert Point.from_dict(told["configuration"]) == point


def test_a_store_made_by_hand_cannot_smuggle_keys_into_the_sweep_file(tmp_path):
    found = complete(row() | {"transform": 'none"]\nname: "other', "unit": "x}", "params": {"a: [b": "c"}})
    write_folder(tmp_path, found, ENTRIES, None)
    with pytest.raises(InputError, match=r"study.yaml:5: transforms\[0\]: .* is no name with options"):
        load_study(tmp_path / "study.yaml")


# ---- which files


def test_a_folder_tells_the_point_and_is_written_once(study, tmp_path):
    store = study([row(0, name=HOSTILE, cycles=7, energy_pj=0.1), row(1, status=REFUSED, message="no\nroom")])
    assert write_folders(store, tmp_path) == 6
    keys = [row(number)["key"] for number in (0, 1)]
    assert names(tmp_path) == sorted(key[:16] for key in keys)
    told = json.loads((tmp_path / "points" / keys[0][:16] / "point.json").read_text())
    assert told["key"] == keys[0]
    assert told["metrics"] == {"cycles": 7, "energy_pj": 0.1}
    assert told["configuration"]["name"] == HOSTILE
    assert (told["versions"], told["revision"], told["tasks"]) == ({"numpy": "1"}, "abc", {"cycles": "t"})
    assert told["command"] == "hwsim sweep tiny.yaml"
    failed = json.loads((tmp_path / "points" / keys[1][:16] / "point.json").read_text())
    assert (failed["status"], failed["message"], failed["metrics"]) == (REFUSED, "no\nroom", {})
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if "points" in path.parts}
    assert write_folders(store, tmp_path) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_only_what_is_missing_or_differs_is_written_and_other_folders_stay(study, tmp_path):
    store = study([row(0, cycles=7), row(1, cycles=8)])
    write_folders(store, tmp_path)
    here = tmp_path / "points" / row(0)["key"][:16]
    other = tmp_path / "points" / "0123456789abcdef"
    other.mkdir()
    (other / "study.yaml").write_text("kept")
    (here / "point.json").write_bytes(b"")  # as a power cut leaves it
    (here / "replay.sh").unlink()
    assert write_folders(store, tmp_path) == 2
    assert json.loads((here / "point.json").read_text())["metrics"] == {"cycles": 7}
    assert (other / "study.yaml").read_text() == "kept"
    assert not list((tmp_path / "points").rglob("*.hwsim-tmp"))


def test_of_a_large_study_the_front_and_the_failed_points_have_folders(study, tmp_path, monkeypatch):
    good = [row(n, cycles=10 + n, energy_pj=float(energy)) for n, energy in enumerate([9, 9, 3, 5])]
    bad = [row(9, status=REFUSED), row(8, status=REFUSED)]
    store = study([*good, *bad])
    monkeypatch.setattr(point_folders, "MOST", 5)
    write_folders(store, tmp_path)
    assert names(tmp_path) == sorted(each["key"][:16] for each in (good[0], good[2], *bad))
    monkeypatch.setattr(point_folders, "MOST", 3)
    write_folders(store, tmp_path / "fewer")
    assert names(tmp_path / "fewer") == sorted(each["key"][:16] for each in (good[0], good[2], bad[0]))


def test_a_study_without_a_front_has_folders_of_failed_points(study, tmp_path, monkeypatch):
    store = study([row(0, status=REFUSED), row(1, status=REFUSED)])
    monkeypatch.setattr(point_folders, "MOST", 1)
    write_folders(store, tmp_path)
    assert len(names(tmp_path)) == 1


# ---- what is refused


@pytest.mark.parametrize("key", ["../../../../tmp/x", "short", "A" * 64, "\n" * 16])
def test_a_key_that_is_none_names_no_folder(study, tmp_path, key):
    store = study([row() | {"key": key}])
    with pytest.raises(InputError, match="is no key; damaged store"):
        write_folders(store, tmp_path)


def test_links_lead_nowhere(study, tmp_path):
    store = study([row()])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "points").symlink_to(elsewhere)
    with pytest.raises(InputError, match="points: is a link; remove it"):
        write_folders(store, tmp_path)
    (tmp_path / "points").unlink()
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / row()["key"][:16]).symlink_to(elsewhere)
    with pytest.raises(InputError, match="is a link; remove it"):
        write_folders(store, tmp_path)
    assert not list(elsewhere.iterdir())


def test_a_file_in_the_way_and_an_empty_store_are_named(study, tmp_path):
    store = study([row()])
    (tmp_path / "points").write_text("")
    with pytest.raises(InputError, match="points: File exists"):
        write_folders(store, tmp_path)
    save_study(store, {})
    with pytest.raises(InputError, match="holds no study yet"):
        write_folders(store, tmp_path / "other")


# ---- the script


@pytest.fixture
def program(tmp_path):
    """A folder with a program `hwsim` that writes its arguments, each with a NUL behind it."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "hwsim").write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    (place / "hwsim").chmod(0o755)
    return place


def told(script, program, *arguments, cwd):
    done = subprocess.run(
        ["/bin/sh", "--", script, *arguments],
        env={**os.environ, "PATH": f"{program}:{os.environ['PATH']}"},
        cwd=cwd,
        capture_output=True,
        check=True,
        timeout=30,
    )
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("name", ["plain", "-v", "two  words '\"$HOME`id`;*", "a\nb"])
def test_the_script_sweeps_the_file_beside_it_wherever_that_is(program, tmp_path, name):
    place = tmp_path / name
    write_folder(place, complete(row()), ENTRIES, None)
    script = place / "replay.sh"
    assert os.access(script, os.X_OK)
    assert told(script, program, cwd=tmp_path) == ["sweep", "--out=replay", "--", f"{place}/study.yaml"]
    beside = told("replay.sh", program, "o u't", cwd=place)
    assert beside == ["sweep", "--out=o u't", "--", "./study.yaml"]
    below = told(f"{name}/replay.sh", program, "-out", cwd=tmp_path)
    assert below[:3] == ["sweep", "--out=-out", "--"]
    assert (tmp_path / below[3]).resolve() == (place / "study.yaml").resolve()
    assert not below[3].startswith("-")


def test_the_script_takes_the_library_of_the_study(study, program, tmp_path):
    store = study([row()], versions={"liberty": "sha256:0"})
    write_folders(store, tmp_path)
    (tmp_path / "library.lib").write_text("library")
    script = tmp_path / "points" / row()["key"][:16] / "replay.sh"
    given = next(word for word in told(script, program, cwd="/") if word.startswith("--liberty="))
    assert Path(given.removeprefix("--liberty=")).read_text() == "library"
