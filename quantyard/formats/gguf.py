"""Reads the header of a GGUF file (versions 2 and 3, little-endian) and believes nothing it says.

A header is hostile input: every count, length and offset is checked against what the file can hold before
anything is read or kept, so a bad one costs milliseconds and kilobytes, and ends in `GgufError`. Only the
header is read, never the tensors.

Source: the GGUF specification, docs/gguf.md of ggml. Standard library only: the planner reads headers on the
host with it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Final, Literal, get_args

from quantyard.formats.ggml_types import TYPE_BY_ID, TensorType
from quantyard.formats.gguf_values import GgufArray, GgufCursor, GgufError, MetadataValue

__all__ = [
    "ENCODER_DECODERS", "MEDIA", "MEDIUM_WORDS",
    "GgufArray", "GgufError", "GgufHeader", "Medium", "MetadataValue", "TensorInfo", "gguf_strings",
    "open_gguf_beginning", "read_gguf_beginning", "read_gguf_header", "read_gguf_model",
    "why_gguf_cannot_generate",
]

Medium = Literal["vision", "audio"]  # what a projector lets a model read, besides text
MEDIA: Final[tuple[Medium, ...]] = get_args(Medium)
MEDIUM_WORDS: Final[Mapping[Medium, str]] = {"vision": "pictures", "audio": "sound"}
MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT_BYTES: Final = 32
MAX_ALIGNMENT_BYTES: Final = 1 << 20
MAX_DIMS: Final = 4  # GGML_MAX_DIMS
MAX_NAME_BYTES: Final = 63  # GGML_MAX_NAME, less its terminator
MAX_SHARDS: Final = 10_000
_MIN_KEY_BYTES: Final = 8 + 1 + 4 + 1  # length, one letter, type, the smallest value
_MIN_TENSOR_BYTES: Final = 8 + 4 + 4 + 8  # name length, n_dims, type, offset
_ENCODERS: Final = ("t5encoder", "wavtokenizer-dec", "clip")  # llama_decode generates no text with these
# llama_encode reads a text, llama_decode writes one: FLAN-T5, T5, mT5, UMT5, MADLAD
ENCODER_DECODERS: Final = ("t5",)
_INT64_MAX: Final = (1 << 63) - 1
_SHARD_NAME: Final = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.DOTALL)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it.

    `shape` is in ggml's order (`shape[0]` is the length of a row); `offset` counts bytes from the start of
    the file `path`; `size_bytes` has no padding.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    size_bytes: int
    path: Path

    @property
    def type(self) -> TensorType:
        """The row of the type table."""
        return TYPE_BY_ID[self.type_id]

    @property
    def n_params(self) -> int:
        """How many weights it holds."""
        return _gguf_shape_product(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file, or all shards of one, says about itself. `file_size` is the sum over `paths`, bytes."""

    version: int
    metadata: dict[str, MetadataValue]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int  # where tensors begin in the first file, bytes
    file_size: int
    paths: tuple[Path, ...]

    @property
    def architecture(self) -> str:
        """`general.architecture`, or "" where it is missing."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else ""

    @property
    def file_type(self) -> int | None:
        """`general.file_type`: a `llama_ftype`."""
        return self._integer("general.file_type")

    @property
    def split_count(self) -> int:
        """How many files the model is split into; 1 when it is not."""
        return self._integer("split.count") or 1

    @property
    def context_length(self) -> int | None:
        """The longest context the model was trained for, in tokens."""
        return self._integer(f"{self.architecture}.context_length")

    @property
    def chat_template(self) -> str | None:
        """The chat template (Jinja), where it has one."""
        value = self.metadata.get("tokenizer.chat_template")
        return value if isinstance(value, str) else None

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it writes a text in answer to one that its encoder has read; llama-server cannot run these."""
        return self.architecture in ENCODER_DECODERS

    @property
    def media(self) -> tuple[Medium, ...]:
        """What a projector lets its model read; () of every other file."""
        return tuple(medium for medium in MEDIA if self.metadata.get(f"clip.has_{medium}_encoder") is True)

    @property
    def embedding_length(self) -> int | None:
        """The numbers of the vector that a model reads for each token."""
        return self._integer(f"{self.architecture}.embedding_length")

    @property
    def projection_dim(self) -> int | None:
        """The numbers of the vectors that a projector makes: as many as its model reads."""
        found = (self._integer(f"clip.{medium}.projection_dim") for medium in self.media)
        return next((number for number in found if number), None)

    @property
    def n_params(self) -> int:
        """Weights in all tensors."""
        return sum(tensor.n_params for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, padding left out."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def is_quantized(self) -> bool:
        """Whether any tensor, whichever it is, has a quantized type."""
        return any(tensor.type.is_quantized for tensor in self.tensors)

    def _integer(self, key: str) -> int | None:
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_gguf_header(path: Path) -> GgufHeader:
    """Parse one file.

    Raises:
        GgufError: the file is not a well-formed GGUF; the message names the file and the reason.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        cursor = GgufCursor(stream, path)
        version = _read_gguf_version(cursor)
        n_tensors = cursor.items("tensors", _MIN_TENSOR_BYTES)
        n_keys = cursor.items("metadata keys", _MIN_KEY_BYTES)
        metadata = _read_gguf_metadata(cursor, n_keys)
        alignment = _gguf_alignment(cursor, metadata)
        tensors = _read_gguf_tensors(cursor, n_tensors)
        data_offset = _padded_gguf_offset(cursor.position, alignment)
        placed = _place_gguf_tensors(cursor, tensors, data_offset, alignment)
    return GgufHeader(version, metadata, placed, alignment, data_offset, cursor.size, (path,))


def gguf_strings(header: GgufHeader, key: str, wanted: Collection[int]) -> dict[int, str]:
    """Some strings of an array of the metadata, by their index; empty if the key is not such an array.

    Raises:
        GgufError: the file is not the one that the header was read from, or a string is not UTF-8.
        OSError: the file cannot be read.
    """
    array = header.metadata.get(key)
    if not isinstance(array, GgufArray) or array.element_type != "string":
        return {}
    with header.paths[0].open("rb") as stream:
        cursor, found = GgufCursor(stream, header.paths[0]), dict[int, str]()
        cursor.position = array.offset
        for index in range(min(array.length, max(wanted, default=-1) + 1)):
            if index in wanted:
                found[index] = cursor.string(f"a string of {key}")
            else:
                length = cursor.count(f"bytes for {key}", 1)
                cursor.position += length
        return found


def read_gguf_beginning(head: bytes, name: str) -> tuple[dict[str, MetadataValue], int]:
    """The metadata that is whole in the beginning of a file, and its number of tensors; for a file that is far away.

    Args:
        head: its first bytes.
        name: of the file, for messages.

    Raises:
        GgufError: it does not begin as a GGUF does.
    """
    metadata: dict[str, MetadataValue] = {}
    with TemporaryFile() as stream:
        stream.write(head)
        stream.flush()
        cursor = GgufCursor(stream, Path(name))
        _read_gguf_version(cursor)
        n_tensors, n_keys = cursor.u64(), cursor.u64()
        with suppress(GgufError):  # what is not whole in these bytes
            for _ in range(n_keys):
                key = cursor.string("a metadata key")
                metadata[key] = cursor.value(key)
    return metadata, n_tensors


@contextmanager
def open_gguf_beginning(head: bytes, name: str, size_bytes: int) -> Iterator[GgufHeader]:
    """The header of a file that is far away, from its first bytes. Its path can be read while the context is open.

    Args:
        head: its first bytes, the whole header among them.
        name: of the file.
        size_bytes: of the whole file.

    Raises:
        GgufError: it is not well-formed, or its header is longer.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        with path.open("wb") as stream:
            stream.write(head)
            stream.truncate(max(size_bytes, len(head)))  # the rest takes no disk
        header = read_gguf_header(path)
        if header.data_offset > len(head):
            raise GgufError(f"{name} has a header of {header.data_offset} bytes; {len(head)} were read")
        yield header


def why_gguf_cannot_generate(header: GgufHeader) -> str | None:
    """Why this model has no next-token logits (it embeds, encodes or projects), or None when it has."""
    arch, kind = header.architecture, header.metadata.get("general.type", "model")
    if kind != "model":
        return f"general.type is {kind!r}"
    if arch in _ENCODERS:
        return f"{arch} is not a decoder"
    if header.metadata.get(f"{arch}.attention.causal") is False:
        return "attention is not causal: an embedding model"
    if header.metadata.get(f"{arch}.pooling_type", 0):
        return "output is pooled: an embedding model"
    return None


def read_gguf_model(path: Path) -> GgufHeader:
    """Parse a file and, when it is the first shard of several, all the others into one header.

    Tensors keep the path of the shard that holds them. Metadata is that of the first shard.

    Raises:
        GgufError: a shard is malformed or missing, or the shards do not belong together.
    """
    first = read_gguf_header(path)
    if first.split_count == 1:
        return first
    headers = [first, *(read_gguf_header(shard) for shard in _other_gguf_shards(first, path))]
    _check_gguf_shards(headers)
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    size, paths = sum(h.file_size for h in headers), tuple(h.paths[0] for h in headers)
    return replace(first, tensors=tensors, file_size=size, paths=paths)


def _read_gguf_version(cursor: GgufCursor) -> int:
    magic = cursor.take(4, "the magic")
    if magic != MAGIC:
        raise cursor.error(f"starts with {magic!r}, not with {MAGIC!r}: this is not a GGUF file")
    version = cursor.u32()
    if version in VERSIONS:
        return version
    if version & 0xFFFF == 0:
        raise cursor.error("is big-endian; only little-endian GGUF is supported")
    raise cursor.error(f"has GGUF version {version}; versions 2 and 3 are supported")


def _read_gguf_metadata(cursor: GgufCursor, n_keys: int) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for _ in range(n_keys):
        key = cursor.string("a metadata key")
        if not key:
            raise cursor.error("has an empty metadata key")
        if key in metadata:
            raise cursor.error(f"repeats the metadata key {key!r}")
        metadata[key] = cursor.value(key)
    return metadata


def _gguf_alignment(cursor: GgufCursor, metadata: dict[str, MetadataValue]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT_BYTES)
    if not isinstance(value, int) or isinstance(value, bool):
        raise cursor.error(f"has an alignment that is not an integer: {value!r}")
    if value <= 0 or value > MAX_ALIGNMENT_BYTES or value & (value - 1):
        raise cursor.error(f"has the alignment {value}, which is not a power of two up to {MAX_ALIGNMENT_BYTES}")
    return value


def _read_gguf_tensors(cursor: GgufCursor, n_tensors: int) -> list[TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for _ in range(n_tensors):
        tensor = _read_gguf_tensor(cursor)
        if tensor.name in tensors:
            raise cursor.error(f"repeats the tensor {tensor.name!r}")
        tensors[tensor.name] = tensor
    return list(tensors.values())


def _read_gguf_tensor(cursor: GgufCursor) -> TensorInfo:
    name = cursor.string("a tensor's name", MAX_NAME_BYTES)
    n_dims = cursor.u32()
    if n_dims > MAX_DIMS:
        raise cursor.error(f"gives the tensor {name!r} {n_dims} dimensions; at most {MAX_DIMS} are possible")
    shape = tuple(cursor.u64() for _ in range(n_dims)) or (1,)  # the converter writes a scalar with no dimension
    type_id = cursor.u32()
    size_bytes = _gguf_tensor_size(cursor, name, shape, type_id)
    return TensorInfo(name, shape, type_id, cursor.u64(), size_bytes, cursor.path)


def _gguf_tensor_size(cursor: GgufCursor, name: str, shape: tuple[int, ...], type_id: int) -> int:
    if 0 in shape or _gguf_shape_product(shape) > _INT64_MAX:
        raise cursor.error(f"gives the tensor {name!r} the impossible shape {shape}")
    row = TYPE_BY_ID.get(type_id)
    if row is None:
        raise cursor.error(f"gives the tensor {name!r} the unknown type {type_id}")
    if shape[0] % row.block_size:
        what = f"rows of {shape[0]} weights, not whole blocks of {row.block_size}"
        raise cursor.error(f"gives the {row.name} tensor {name!r} {what}")
    return _gguf_shape_product(shape) // row.block_size * row.type_size_bytes


def _place_gguf_tensors(
    cursor: GgufCursor, tensors: list[TensorInfo], data_offset: int, alignment: int
) -> tuple[TensorInfo, ...]:
    placed = tuple(replace(tensor, offset=data_offset + tensor.offset) for tensor in tensors)
    for tensor in placed:
        if (tensor.offset - data_offset) % alignment:
            raise cursor.error(f"puts the tensor {tensor.name!r} at an offset that is not a multiple of {alignment}")
        if tensor.offset + tensor.size_bytes > cursor.size:
            end = tensor.offset + tensor.size_bytes
            raise cursor.error(f"is {cursor.size} bytes long, but its tensor {tensor.name!r} ends at byte {end}")
    in_order = sorted(placed, key=lambda tensor: tensor.offset)
    for before, after in pairwise(in_order):
        if before.offset + before.size_bytes > after.offset:
            raise cursor.error(f"lets its tensors {before.name!r} and {after.name!r} overlap")
    return placed


def _other_gguf_shards(first: GgufHeader, path: Path) -> list[Path]:
    name = _SHARD_NAME.match(path.name)
    count = first.split_count
    if not 1 <= count <= MAX_SHARDS:
        raise GgufError(f"{path.name} claims to be one of {count} shards")
    if name is None or int(name["count"]) != count or int(name["number"]) != 1:
        raise GgufError(f"{path.name} is one of {count} shards; give the first: <name>-00001-of-{count:05}.gguf")
    shards = [path.with_name(f"{name['stem']}-{n:05}-of-{count:05}.gguf") for n in range(2, count + 1)]
    for shard in shards:
        if not shard.is_file():
            raise GgufError(f"{shard.name} is missing: {path.name} is one of {count} shards")
    return shards


def _check_gguf_shards(headers: list[GgufHeader]) -> None:
    names: set[str] = set()
    for number, header in enumerate(headers):
        file = header.paths[0].name
        if header.metadata.get("split.no") != number or header.split_count != len(headers):
            raise GgufError(f"{file} does not say that it is shard {number + 1} of {len(headers)}")
        for tensor in header.tensors:
            if tensor.name in names:
                raise GgufError(f"{file} repeats the tensor {tensor.name!r} of an earlier shard")
            names.add(tensor.name)
    expected = headers[0].metadata.get("split.tensors.count", len(names))
    if expected != len(names):
        raise GgufError(f"{headers[0].paths[0].name} announces {expected} tensors; its shards hold {len(names)}")


def _padded_gguf_offset(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _gguf_shape_product(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
