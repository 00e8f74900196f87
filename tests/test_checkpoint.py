"""Files of unknown origin: what the format's own library writes is read exactly, everything else refused by name."""

import hashlib
import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from hwsim.networks.checkpoint import (
    load_folder_tensors,
    load_tensors,
    read_header,
    read_json,
    require_sha256,
)
from models.unit import InputError

TYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8, np.uint8, bool]


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape=(2,), start=0, end=8, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


INDEXED = {"a": "one.safetensors", "b": "two.safetensors"}


def accept(_entries):
    return None


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: np.dtype(t).name)
def test_what_the_library_writes_is_read_exactly(tmp_path, dtype):
    rng = np.random.default_rng(3)
    tensors = {
        "matrix": (8 * rng.standard_normal((3, 5))).astype(dtype),
        "empty": np.zeros((0, 4), dtype),
        "one": np.ones((), dtype),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "np"})
    found = load_tensors(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)
    assert read_header(tmp_path / "a.safetensors").metadata == {"format": "np"}


def test_every_cut_of_a_good_file_is_refused(tmp_path):
    safetensors.numpy.save_file({"a": np.arange(6.0), "b": np.ones(3)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.safetensors"):
            load_tensors(tmp_path / "cut.safetensors")


def test_flipped_bytes_of_a_header_never_give_a_traceback(tmp_path):
    safetensors.numpy.save_file({"a": np.arange(6.0), "b": np.ones(3)}, tmp_path / "a.safetensors")
    whole, rng = (tmp_path / "a.safetensors").read_bytes(), np.random.default_rng(1)
    refused = 0
    for _ in range(400):
        changed = bytearray(whole)
        changed[rng.integers(0, 120)] = rng.integers(256)
        (tmp_path / "b.safetensors").write_bytes(changed)
        try:
            load_tensors(tmp_path / "b.safetensors")
        except InputError:
            refused += 1
    assert refused > 200


HOSTILE = {
    "header larger than the file": (write, [{}, b"", 1 << 40], "does not fit a file"),
    "no JSON": (write, [b"{]"], "is no JSON"),
    "no UTF-8": (write, [b'{"\xff": 1}'], "is no JSON"),
    "no object": (write, [b"[1]"], "must hold a JSON object, not list"),
    "too deep": (write, [b"[" * 200_000], "nested too deeply"),
    "digits": (write, [b'{"a": ' + b"9" * 5000 + b"}"], "is no JSON"),
    "NaN": (write, [b'{"a": NaN}'], "NaN is no number of JSON"),
    "duplicate": (write, [b'{"a": 1, "a": 2}'], "'a' is given twice"),
    "no tensor": (write, [{}], "holds no tensor"),
    "metadata": (write, [{"__metadata__": {"a": 1}}], "__metadata__ must be an object of texts"),
    "more keys": (write, [{"a": {**entry(), "x": 1}}], "tensor 'a': must have dtype, shape and data_offsets"),
    "unknown type": (write, [{"a": entry(dtype="F23")}], "type 'F23' is not read; did you mean 'F32'"),
    "negative size": (write, [{"a": entry(shape=(-2,))}], "shape must be up to 8 whole numbers"),
    "boolean size": (write, [{"a": entry(shape=(True,))}], "shape must be up to 8 whole numbers"),
    "rank": (write, [{"a": entry(shape=(1,) * 9)}], "shape must be up to 8 whole numbers"),
    "huge shape": (write, [{"a": entry(shape=(1 << 40, 1 << 40))}], "takes 4835703278458516698824704 bytes"),
    "overlap": (write, [{"a": entry(), "b": entry()}, bytes(16)], "tensor 'b' starts at byte 0, not where"),
    "gap": (write, [{"a": entry(), "b": entry(start=16, end=24)}, bytes(24)], "starts at byte 16, not"),
    "truncated": (write, [{"a": entry(shape=(4,), end=16)}, bytes(8)], "8 follow the header; the file is truncated"),
    "trailing": (write, [{"a": entry()}, bytes(9)], "there are bytes of no tensor"),
    "infinite": (write, [{"a": entry()}, struct.pack("<ff", 1, float("inf"))], "'a' holds NaN or infinite"),
    "not a number": (write, [{"a": entry()}, struct.pack("<ff", 1, float("nan"))], "'a' holds NaN or infinite"),
    "NaN in bfloat16": (write, [{"a": entry(end=4, dtype="BF16")}, b"\x80\x3f\xc0\x7f"], "'a' holds NaN or infinite"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_by_name(tmp_path, case):
    make, arguments, message = HOSTILE[case]
    path = make(tmp_path / "model.safetensors", *arguments)
    with pytest.raises(InputError, match=message) as refusal:
        load_tensors(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.PT", "weights.pkl", "x.ckpt"])
def test_pickles_are_never_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="is a pickle, which can run code, and is never read"):
        load_tensors(tmp_path / name)
    if name.endswith("bin"):
        with pytest.raises(InputError, match=r"pytorch_model\.bin may hold code and is never read"):
            load_folder_tensors(tmp_path, accept)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_tensors(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="is a folder"):
        load_tensors(tmp_path)
    with pytest.raises(InputError, match=r"has no model.safetensors and no model.safetensors.index.json$"):
        load_folder_tensors(tmp_path, accept)


def test_a_checksum_holds_for_one_file_only(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    require_sha256(path, digest)
    path.write_bytes(b"Weights")
    with pytest.raises(InputError, match=f"SHA-256 is .*, not {digest}"):
        require_sha256(path, digest)


def sharded(folder, **files):
    """A model in parts; file -> tensor names."""
    for file, names in files.items():
        safetensors.numpy.save_file({name: np.ones(2) for name in names}, folder / f"{file}.safetensors")
    index(folder, {name: f"{file}.safetensors" for file, names in files.items() for name in names})
    return folder


def index(folder, names):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def test_a_model_in_parts_is_read_whole(tmp_path):
    seen = []
    found = load_folder_tensors(sharded(tmp_path, one=["a", "b"], two=["c"]), seen.append)
    assert set(found) == {"a", "b", "c"} == set(seen[0])
    assert seen[0]["c"].shape == (2,)


def test_parts_that_share_a_tensor_are_refused(tmp_path):
    with pytest.raises(InputError, match="tensor 'a' is in another file of the model too"):
        load_folder_tensors(index(sharded(tmp_path, one=["a"], two=["a", "b"]), INDEXED), accept)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "", "a\\b.safetensors"])
def test_an_index_that_leaves_the_folder_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="is no plain file name; all files lie in the model's folder"):
        load_folder_tensors(index(tmp_path, {"a": name}), accept)


@pytest.mark.parametrize("names", [[], {}, {"a": 1}, None])
def test_an_index_without_a_map_is_refused(tmp_path, names):
    with pytest.raises(InputError, match="weight_map must be an object"):
        load_folder_tensors(index(tmp_path, names), accept)


def test_an_index_that_names_a_pickle_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="is a pickle"):
        load_folder_tensors(index(tmp_path, {"a": "pytorch_model.bin"}), accept)


@pytest.mark.parametrize("name", ["config.json", "model", "a.safetensors.json", "safetensors"])
def test_an_index_that_names_something_else_than_weights_is_refused(tmp_path, name):
    safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / name)
    with pytest.raises(InputError, match=rf"{name}: weights are read from files whose names end in .safetensors alone"):
        load_folder_tensors(index(tmp_path, {"a": name}), accept)


def test_a_large_header_is_refused_unread(tmp_path):
    """Within the file and of harmless bytes: only its size is wrong."""
    path = write(tmp_path / "a.safetensors", b"", length=16_000_001)
    with path.open("r+b") as file:
        file.truncate(1 << 34)
    with pytest.raises(InputError, match="a header of 16000001 bytes is above the limit of 16000000"):
        read_header(path)


def test_what_the_check_refuses_is_never_read(tmp_path):
    write(tmp_path / "model.safetensors", {"a": entry()}, struct.pack("<ff", 1, float("nan")))

    def refuse(entries):
        raise InputError(f"not {sorted(entries)}")

    with pytest.raises(InputError, match=r"not \['a'\]"):
        load_folder_tensors(tmp_path, refuse)


def test_a_large_json_file_is_refused_unread(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(InputError, match="17179869184 bytes is above the limit"):
        read_json(path)
