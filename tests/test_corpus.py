"""Text for language models: held-out modules stay out of training, shares are even, sentences are sentences."""

import re

import pytest

from hwsim.networks.corpus import (
    CALIBRATION,
    FOREIGN,
    HELD_OUT,
    calibration_text,
    docstring_sentences,
    heldout_text,
    identity,
    stdlib_folder,
    training_files,
)
from models.unit import InputError


def library(folder, **files):
    """A small library: every held-out and calibration module, and the files of these paths without their ending."""
    for name in (*HELD_OUT, *CALIBRATION):
        (folder / f"{name}.py").write_bytes(f"# {name}\n".encode() * 100)
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(text)
    return folder


def test_the_held_out_text_takes_from_every_module_in_whole_lines():
    text = heldout_text(65536)
    assert 65000 < len(text) <= 65536
    assert text.endswith(b"\n")
    for name in HELD_OUT:
        path = stdlib_folder() / f"{name}.py"
        source = path if path.is_file() else stdlib_folder() / name / "__init__.py"
        start = source.read_bytes().replace(b"\r\n", b"\n")[:200]
        assert start in text, name
    assert heldout_text(65536) == text


def test_shares_are_even_and_short_modules_leave_their_rest_to_the_others(tmp_path):
    folder = library(tmp_path, shlex=b"# tiny\n")
    text = heldout_text(1000, folder)
    counts = [text.count(f"# {name}\n".encode()) * len(f"# {name}\n") for name in HELD_OUT if name != "shlex"]
    assert text.count(b"# tiny\n") == 1
    assert all(90 <= count <= 130 for count in counts)
    assert 950 < len(text) <= 1000


def test_line_ends_are_the_same_everywhere(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    unix, dos = library(tmp_path / "a"), library(tmp_path / "b")
    for path in dos.glob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert heldout_text(900, unix) == heldout_text(900, dos)


def test_a_package_is_all_its_files(tmp_path):
    folder = library(tmp_path, **{"tomllib/__init__": b"# first\n", "tomllib/_parser": b"# second\n"})
    (folder / "tomllib.py").unlink()
    assert b"# first\n# second\n" in heldout_text(2000, folder)


def test_training_leaves_out_everything_whose_path_names_a_held_out_module(tmp_path):
    kept = {"abc": b"x\n", "test/test_abc": b"y\n"}
    left = {"test/test_Argparse": b"1\n", "_pyheapq": b"1\n", "test/test_tomllib/data": b"1\n"}
    foreign = {"site-packages/numpy": b"1\n", "abc2/__pycache__/x": b"1\n"}
    files = training_files(library(tmp_path, **kept, **left, **foreign))
    assert set(files) == {"abc.py", "test/test_abc.py"} | {f"{name}.py" for name in CALIBRATION}


def test_no_training_text_holds_a_passage_of_the_held_out_modules():
    blob = b"\0".join(training_files().values())
    assert len(blob) > 5_000_000
    for name in HELD_OUT:
        path = stdlib_folder() / f"{name}.py"
        text = (path if path.is_file() else stdlib_folder() / name / "_parser.py").read_bytes()
        for share in (0.3, 0.6, 0.9):
            passage = text[int(share * len(text)) :][:300]
            assert passage not in blob, (name, share)
    passage = (stdlib_folder() / "calendar.py").read_bytes()[5000:5300]
    assert passage in blob  # the search can find


def test_calibration_is_disjoint_from_the_held_out_modules_and_part_of_the_training():
    assert not set(CALIBRATION) & set(HELD_OUT)
    files = training_files()
    assert all(f"{name}.py" in files or f"{name}/__init__.py" in files for name in CALIBRATION)
    assert 8000 < len(calibration_text(8192)) <= 8192


def test_sentences_are_english_prose_without_repetition():
    sentences = docstring_sentences(264)
    assert len(set(sentences)) == 264
    assert sentences == docstring_sentences(264)
    assert docstring_sentences(10) == sentences[:10]
    for sentence in sentences:
        assert 5 <= len(sentence.split()) <= 40
        assert re.fullmatch(r"[A-Z].*[.!?]", sentence)
        assert sum(c.isalpha() or c == " " for c in sentence) >= 0.95 * len(sentence)
    common = sum(bool({"the", "a", "of", "to", "is", "and"} & set(s.lower().split())) for s in sentences)
    assert common > 0.8 * len(sentences)


def test_sentences_come_from_docstrings_without_examples_or_code(tmp_path):
    source = b'''"""The first line of this text is prose. X = 3 + 4 * y[0] is none of it, as it is code.

>>> the example of a call that nobody reads aloud
The result that is printed below the call.
"""
# A comment is never part of what is taken here.
class A:
    """Things of this class hold other things of it."""
'''
    folder = library(tmp_path, ast=source)
    assert docstring_sentences(2, folder) == [
        "The first line of this text is prose.",
        "Things of this class hold other things of it.",
    ]
    with pytest.raises(InputError, match=r"3 sentences: must be from 1 to the 2"):
        docstring_sentences(3, folder)


def test_the_identity_names_text_and_python():
    assert identity(b"abc")["sha256"].startswith("ba7816bf8f01cfea")
    assert re.fullmatch(r"3\.\d+\.\S+", identity(b"")["python"])


@pytest.mark.parametrize("size", [0, -1, 10**9])
def test_sizes_that_the_modules_cannot_give_are_refused(size):
    with pytest.raises(InputError, match=r"text of -?\d+ bytes: must be from 1 to the \d+ bytes of argparse"):
        heldout_text(size)


def test_a_folder_without_the_modules_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="has no module 'argparse'"):
        heldout_text(100, tmp_path)
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path / "python.zip"))
    with pytest.raises(InputError, match="holds no sources"):
        stdlib_folder()


def test_foreign_folders_are_named():
    assert "site-packages" in FOREIGN
