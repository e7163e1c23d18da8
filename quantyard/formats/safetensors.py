"""Reads the headers of a folder of safetensors files, and believes nothing they say.

A truncated, extended or damaged file is found here, before the converter spends minutes on it: the header's
offsets must cover the file to its last byte, without gaps, and each tensor's bytes must fit its shape.

Source: the format as described in the safetensors README. Standard library only: the planner reads headers on the host
with it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeGuard

from quantyard.formats.names import shown_name
from quantyard.formats.strict_json import JsonProblem, load_json

MAX_HEADER_BYTES: Final = 100_000_000  # the format's own limit
INDEX_NAME: Final = "model.safetensors.index.json"
MAX_INDEX_BYTES: Final = 100_000_000
_MAX_VALUES: Final = 20_000_000  # eight for each tensor
_TINY_SHARE: Final = 0.01

# To add a dtype: its name in the header, and its size in bits.
DTYPE_BITS: Final[dict[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


class SafetensorsError(Exception):
    """A safetensors file is not what the format demands; the message names the file."""


class StaleIndexError(SafetensorsError):
    """The index and the files are each well-formed, and are of different saves."""


@dataclass(frozen=True)
class SafetensorsTensor:
    """One tensor: dtype, shape (outermost dimension first), and where it is in the file, bytes from its start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def n_params(self) -> int:
        """How many values it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class SafetensorsFile:
    """One checked file. `size` is in bytes."""

    path: Path
    tensors: dict[str, SafetensorsTensor]
    size: int


def read_safetensors_folder(folder: Path, names: Sequence[str] | None = None) -> tuple[SafetensorsFile, ...]:
    """Check the weights of a folder that holds the files of one model: those its index names, or every
    `*.safetensors`. Which files of a larger folder are the model is decided before, see hub/weight_files.py.

    Args:
        names: the files of it that are opened, an index among them; None: all.

    Raises:
        SafetensorsError: no such file, one is missing or malformed, two hold the same tensor, or the index
            and the files disagree.
        OSError: a file cannot be read.
    """
    here = set(names if names is not None else (p.name for p in folder.iterdir() if p.is_file()))
    index_name = safetensors_index_name(here)
    index = _read_safetensors_index(folder / index_name) if index_name else {}
    wanted = sorted(set(index.values()) or {name for name in here if name.endswith(".safetensors")})
    if not wanted:
        raise SafetensorsError(f"{folder.name} holds no *.safetensors file")
    for name in wanted:
        if name not in here:
            raise StaleIndexError(f"{name} is missing, but {index_name} names it")
    files = tuple(read_safetensors_file(folder / name) for name in wanted)
    _check_safetensors_together(files, index, index_name)
    return files


def safetensors_index_name(names: Collection[str]) -> str:
    """The index among the files of one model; "" without one."""
    others = sorted(name for name in names if "/" not in name and name.endswith(".safetensors.index.json"))
    return INDEX_NAME if INDEX_NAME in others else next(iter(others), "")


def read_safetensors_file(path: Path) -> SafetensorsFile:
    """Check one file.

    Raises:
        SafetensorsError: it is malformed; the message names it and says why.
    """
    size = path.stat().st_size
    header, data_start = _read_safetensors_header(path, size)
    header.pop("__metadata__", None)
    tensors = {name: _safetensors_tensor(path, name, entry, data_start) for name, entry in header.items()}
    _check_safetensors_coverage(path, tensors, data_start, size)
    return SafetensorsFile(path, tensors, size)


def safetensors_dtype(files: Sequence[SafetensorsFile]) -> str:
    """The narrowest of "BF16", "F16" and "F32" that holds every weight of the model without loss.

    What decides are the floating-point tensors of two dimensions or more; the converter writes all others
    (norms, biases, scales) as F32 anyway. Of them:

    - F32 or F64 → F32, unless they are under 1 % of the weights: in a 16-bit model those are the routers and
      state-space parameters, which the converter keeps in F32 whatever is asked for.
    - BF16 and F16 together → F32, since neither holds the other.
    - 8-bit floats and less count as BF16: they come with scales, and BF16 is what their products are used in.
    - no such tensor at all → F32.
    """
    weights: Counter[str] = Counter()
    for file in files:
        for tensor in file.tensors.values():
            if tensor.dtype.startswith(("F", "BF")) and len(tensor.shape) > 1:
                weights[_dtype_counts_as(tensor.dtype)] += tensor.n_params
    halves = weights.keys() & {"BF16", "F16"}
    if len(halves) != 1 or weights["F32"] >= _TINY_SHARE * weights.total():
        return "F32"
    return halves.pop()


def _read_safetensors_header(path: Path, size: int) -> tuple[dict[str, object], int]:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise SafetensorsError(f"{path.name} is truncated: its {size} bytes end inside its header of {length}")
        if length > MAX_HEADER_BYTES:
            raise SafetensorsError(f"{path.name} has a header of {length} bytes; the format allows {MAX_HEADER_BYTES}")
        text = stream.read(length)
    return _safetensors_json_object(text, path.name, "header"), 8 + length


def _safetensors_json_object(text: bytes, file: str, what: str) -> dict[str, object]:
    try:
        value = load_json(text, max(MAX_HEADER_BYTES, MAX_INDEX_BYTES), max_values=_MAX_VALUES)
    except JsonProblem as error:
        raise SafetensorsError(f"{file} has a {what} that cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise SafetensorsError(f"{file} has a {what} that is not a JSON object")
    return value


def _safetensors_tensor(path: Path, name: str, entry: object, data_start: int) -> SafetensorsTensor:
    problem = f"{path.name} describes its tensor {shown_name(name)} wrongly"
    if not isinstance(entry, dict):
        raise SafetensorsError(f"{problem}: {entry!r:.80} is not a JSON object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise SafetensorsError(f"{problem}: unknown dtype {dtype!r:.80}")
    if not (_are_safetensors_sizes(shape) and _are_safetensors_sizes(offsets) and len(offsets) == 2):
        raise SafetensorsError(f"{problem}: shape {shape!r:.80}, data_offsets {offsets!r:.80}")
    tensor = SafetensorsTensor(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])
    bits = _n_safetensors_values(tensor.shape) * DTYPE_BITS[dtype]
    if bits != 8 * (tensor.end - tensor.start):
        takes, have = f"{dtype} {list(shape)!r:.80} takes {bits // 8} bytes", tensor.end - tensor.start
        raise SafetensorsError(f"{problem}: {takes}, its offsets hold {have}")
    return tensor


def _are_safetensors_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _n_safetensors_values(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total = min(total * length, 1 << 64)  # no file is that long; keeps the product small
    return total


def _check_safetensors_coverage(path: Path, tensors: dict[str, SafetensorsTensor], data_start: int, size: int) -> None:
    end = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != end:
            what = "overlaps the one before it" if tensor.start < end else "leaves a gap before it"
            raise SafetensorsError(f"{path.name} is malformed: its tensor {shown_name(name)} {what}")
        end = tensor.end
    if end > size:
        raise SafetensorsError(f"{path.name} is truncated: {size} bytes, {end} expected")
    if end < size:
        raise SafetensorsError(f"{path.name} is too long: {size} bytes, {end} expected")


def _read_safetensors_index(path: Path) -> dict[str, str]:
    """The index's tensor → file map."""
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise SafetensorsError(f"{path.name} is larger than {MAX_INDEX_BYTES} bytes")
    return parse_weight_index(path.read_bytes(), path.name)


def parse_weight_index(text: bytes, name: str, ending: str = ".safetensors") -> dict[str, str]:
    """The tensor → file map of an index; every file is one of its folder, with this ending.

    Raises:
        SafetensorsError: it is not such an index.
    """
    weight_map = _safetensors_json_object(text, name, "text").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SafetensorsError(f"{name} has no weight_map")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(ending) or {"/", "\\", "\0"} & set(file):
            where = f"in {file!r:.80}, which is not a file of this folder"
            raise SafetensorsError(f"{name} places the tensor {shown_name(tensor)} {where}")
    return weight_map


def _check_safetensors_together(files: Sequence[SafetensorsFile], index: dict[str, str], index_name: str) -> None:
    place: dict[str, str] = {}
    for file in files:
        for name in file.tensors:
            if name in place:
                raise SafetensorsError(f"{file.path.name} repeats the tensor {shown_name(name)} of {place[name]}")
            place[name] = file.path.name
    for name, expected in index.items():
        if place.get(name) != expected:
            raise StaleIndexError(f"{expected} lacks the tensor {shown_name(name)}, which {index_name} places there")
    if index and len(index) != len(place):
        extra = next(name for name in place if name not in index)
        problem = f"{place[extra]} holds the tensor {shown_name(extra)}, which {index_name} does not name"
        raise StaleIndexError(problem)


def _dtype_counts_as(dtype: str) -> str:
    if dtype in ("F32", "F64"):
        return "F32"
    return dtype if dtype == "F16" else "BF16"
