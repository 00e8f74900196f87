"""Weights and configurations from files of unknown origin: safetensors and JSON, checked before anything is allocated.

The safetensors format: the header's size (8 bytes, little endian), the header (JSON: name -> dtype, shape and the range
of bytes in what follows), the tensors, row by row. Files that can hold code (pickle) are refused by name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hwsim.files import os_errors, require_file
from models.unit import InputError, nearest, require

MAX_JSON = 16_000_000
"""bytes of a configuration, an index or a safetensors header: parsed, they may take 25 times as much memory. Models of
thousands of tensors stay below 1 MB."""
MAX_RANK = 8
WEIGHTS = ".safetensors"
"""ending of the files that weights are read from"""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""endings of files that hold pickled objects"""
DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1"} | {
    "U8": "u1",
    "BOOL": "?",
}
"""the format's name of a type -> numpy's, little endian; BF16 is ml_dtypes' own"""
INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor in a file: its type, shape and the range of bytes after the header."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a safetensors file says of itself."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    data: int
    """where the tensors' bytes begin in the file"""


def require_sha256(path: Path, digest: str) -> None:
    """InputError unless the file's SHA-256 is `digest` (64 hexadecimal digits)."""
    require_file(path)
    with os_errors(path), path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    require(found == digest, f"{path}: SHA-256 is {found}, not {digest}; fetch the file again")


def load_tensors(path: Path) -> Arrays:
    """Every tensor of a safetensors file by its name, in its own type; numbers are finite. InputError otherwise."""
    return read_tensors(read_header(path))


def read_header(path: Path) -> Header:
    """The header, consistent in itself and with the file's size: the tensors fill the rest of it without gaps.

    InputError also for a name that does not end in .safetensors and a header above `MAX_JSON`, before it is read.
    """
    rule = "is a pickle, which can run code, and is never read; save the weights as .safetensors"
    require(path.suffix.lower() not in PICKLES, f"{path}: {rule}")
    require_file(path)
    named = path.suffix.lower() == WEIGHTS
    require(named, f"{path}: weights are read from files whose names end in {WEIGHTS} alone")
    with os_errors(path), path.open("rb") as file:
        size = path.stat().st_size
        return _parsed_header(path, file, size)


def read_tensors(header: Header) -> Arrays:
    """The tensors that the header names; InputError where one holds a NaN or an infinity."""
    tensors = {}
    with os_errors(header.path), header.path.open("rb") as file:
        for name, entry in header.entries.items():
            file.seek(header.data + entry.start)
            tensors[name] = _read_array(header.path, file, name, entry)
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object without duplicate names or NaN; InputError otherwise."""
    require_file(path)
    with os_errors(path):
        size = path.stat().st_size
        require(size <= MAX_JSON, f"{path}: {size} bytes is above the limit of {MAX_JSON}")
        return _json_object(path, path.read_bytes())


def load_folder_tensors(folder: Path, check: Callable[[Mapping[str, Entry]], None]) -> Arrays:
    """The tensors of `model.safetensors` in the folder, or of the files that `model.safetensors.index.json` names.

    `check` sees all entries before any tensor is read, and raises InputError where they are not what it wants.
    """
    headers = [read_header(folder / name) for name in _files(folder)]
    every: dict[str, Entry] = {}
    for header in headers:
        for name, entry in header.entries.items():
            require(name not in every, f"{header.path}: tensor {name!r} is in another file of the model too")
            every[name] = entry
    check(every)
    return {name: tensor for header in headers for name, tensor in read_tensors(header).items()}


def _files(folder: Path) -> Iterable[str]:
    """Names of the model's files, which lie in the folder itself."""
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in PICKLES)
        hint = f"; {pickles[0]} may hold code and is never read: save the weights as safetensors" if pickles else ""
        require((folder / SINGLE).is_file(), f"{folder}: has no {SINGLE} and no {INDEX}{hint}")
        return (SINGLE,)
    names = read_json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{folder / INDEX}: weight_map must be an object of tensor name to file name")
    files = sorted(set(names.values()))
    for name in files:
        plain = name == Path(name).name and "\\" not in name and name not in ("", ".", "..")
        require(plain, f"{folder / INDEX}: {name[:80]!r} is no plain file name; all files lie in the model's folder")
    return files


def _parsed_header(path: Path, file: BinaryIO, size: int) -> Header:
    require(size >= 8, f"{path}: {size} bytes; a safetensors file begins with 8 bytes of its header's size")
    length = int.from_bytes(file.read(8), "little")
    require(length <= size - 8, f"{path}: a header of {length} bytes does not fit a file of {size}")
    require(length <= MAX_JSON, f"{path}: a header of {length} bytes is above the limit of {MAX_JSON}")
    content = _json_object(path, file.read(length))
    metadata = content.pop("__metadata__", {})
    texts = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    require(texts, f"{path}: __metadata__ must be an object of texts")
    entries = {name: _entry(path, name, value) for name, value in content.items()}
    _require_filled(path, entries, size - 8 - length)
    return Header(path=path, entries=entries, metadata=metadata, data=8 + length)


def _entry(path: Path, name: str, value: Any) -> Entry:
    where = f"{path}: tensor {name[:80]!r}"
    keys = isinstance(value, dict) and set(value) == {"dtype", "shape", "data_offsets"}
    require(keys, f"{where}: must have dtype, shape and data_offsets, nothing else")
    kind, shape, offsets = str(value["dtype"]), value["shape"], value["data_offsets"]
    require(kind in DTYPES, f"{where}: type {kind[:20]!r} is not read; {nearest(kind[:20], DTYPES)}")
    require(_are_sizes(shape) and len(shape) <= MAX_RANK, f"{where}: shape must be up to {MAX_RANK} whole numbers >= 0")
    require(_are_sizes(offsets) and len(offsets) == 2, f"{where}: data_offsets must be two whole numbers >= 0")
    dtype, (start, end) = _dtype(kind), offsets
    need = math.prod(shape) * dtype.itemsize
    require(
        end - start == need, f"{where}: shape {shape} of {kind} takes {need} bytes, data_offsets give {end - start}"
    )
    return Entry(dtype=dtype, shape=tuple(shape), start=start, end=end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _dtype(kind: str) -> np.dtype[Any]:
    if kind != "BF16":
        return np.dtype(f"<{DTYPES[kind]}")
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _require_filled(path: Path, entries: Mapping[str, Entry], room: int) -> None:
    """Tensors follow each other without gap or overlap, up to the end of the file."""
    require(bool(entries), f"{path}: holds no tensor")
    reached = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        rule = f"starts at byte {entry.start}, not where the one before it ends, {reached}"
        require(entry.start == reached, f"{path}: tensor {name[:80]!r} {rule}")
        reached = entry.end
    rule = "the file is truncated" if reached > room else "there are bytes of no tensor"
    require(reached == room, f"{path}: tensors take {reached} bytes, {room} follow the header; {rule}")


def _read_array(path: Path, file: BinaryIO, name: str, entry: Entry) -> NDArray[Any]:
    content = file.read(entry.end - entry.start)
    require(len(content) == entry.end - entry.start, f"{path}: tensor {name[:80]!r} is cut off; the file has changed")
    array = np.frombuffer(content, dtype=entry.dtype).reshape(entry.shape)
    # float32: ml_dtypes' bfloat16 warns in isfinite on NaN; the conversion is exact
    finite = array.dtype.kind in "iub" or bool(
        np.isfinite(array if array.dtype.kind == "f" else array.astype("f4")).all()
    )
    require(finite, f"{path}: tensor {name[:80]!r} holds NaN or infinite values; weights must be finite")
    return array


def _json_object(path: Path, content: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, value in pairs:
            require(name not in seen, f"{path}: {name[:80]!r} is given twice")
            seen[name] = value
        return seen

    def refuse(word: str) -> None:
        raise InputError(f"{path}: {word} is no number of JSON")

    try:
        found = json.loads(content.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply") from None
    except ValueError as error:  # also numbers of more digits than Python reads, and bytes that are no UTF-8
        raise InputError(f"{path}: is no JSON: {str(error)[:120]}") from None
    require(isinstance(found, dict), f"{path}: must hold a JSON object, not {type(found).__name__}")
    return found
