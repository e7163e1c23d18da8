"""The lowest layer of the GGUF reader: a cursor that never reads past the end, and the metadata values.

Arrays are skipped, not kept: a vocabulary of 250,000 strings would cost tens of megabytes, and no caller needs
it. Their element type, length and place in the file are recorded, and a digest of their bytes, so that two
files can be compared.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

MAX_STRING_BYTES: Final = 16 * 1024 * 1024  # a chat template is the longest; real ones stay under 100 kB
MAX_METADATA_BYTES: Final = 64 * 1024 * 1024  # of all strings kept together
MAX_ITEMS: Final = 1_000_000  # metadata keys, or tensors; the largest models have some thousands
_LONGEST_ERROR: Final = 500  # characters; a key may have millions
_READ_BYTES: Final = 1024 * 1024
_LENGTH: Final = struct.Struct("<Q")
_STRING_TYPE: Final = 8
_ARRAY_TYPE: Final = 9
_BOOL_TYPE: Final = 7
# To add a scalar type: its number in `gguf_metadata_value_type`, its name, its struct format.
_SCALARS: Final[dict[int, tuple[str, str]]] = {
    0: ("uint8", "<B"), 1: ("int8", "<b"), 2: ("uint16", "<H"), 3: ("int16", "<h"), 4: ("uint32", "<I"),
    5: ("int32", "<i"), 6: ("float32", "<f"), 7: ("bool", "<B"), 10: ("uint64", "<Q"), 11: ("int64", "<q"),
    12: ("float64", "<d"),
}


class GgufError(Exception):
    """A GGUF file is not what the format demands; the message names the file."""


@dataclass(frozen=True)
class GgufArray:
    """An array of the metadata, not kept: `length` elements of `element_type` (such as "string")."""

    element_type: str
    length: int
    offset: int  # of the first element in the file, bytes
    size_bytes: int
    sha256: str  # of the elements' bytes in the file


MetadataValue = int | float | bool | str | GgufArray


class GgufCursor:
    """Reads forward through a file of known size in large blocks; each read is checked against that size."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self.path = path
        self.size = os.fstat(stream.fileno()).st_size
        self._stream = stream
        self._buffer = b""
        self._buffer_start = 0
        self._kept_bytes = 0
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes between here and the end of the file."""
        return self.size - self.position

    def error(self, what: str) -> GgufError:
        """The error to raise: the file's name, then `what` is wrong with it."""
        return GgufError(f"{self.path.name} {what if len(what) <= _LONGEST_ERROR else what[:_LONGEST_ERROR] + '…'}")

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next bytes; `what` names them in the error when the file ends before."""
        if n_bytes > self.left:
            raise self.error(f"ends inside {what}: {n_bytes} bytes are needed, {self.left} are left")
        start = self.position - self._buffer_start
        if start + n_bytes > len(self._buffer):
            self._fill(n_bytes)
            start = 0
        self.position += n_bytes
        return self._buffer[start : start + n_bytes]

    def _fill(self, n_bytes: int) -> None:
        self._stream.seek(self.position)
        self._buffer = self._stream.read(max(n_bytes, _READ_BYTES))
        self._buffer_start = self.position
        if len(self._buffer) < n_bytes:
            raise self.error("became shorter while it was read")

    def u32(self) -> int:
        """An unsigned 32-bit integer."""
        return int.from_bytes(self.take(4, "a number"), "little")

    def u64(self) -> int:
        """An unsigned 64-bit integer."""
        return int.from_bytes(self.take(8, "a number"), "little")

    def count(self, what: str, smallest_bytes: int) -> int:
        """A 64-bit count of things that take at least so many bytes each."""
        count = self.u64()
        if count * smallest_bytes > self.left:
            raise self.error(f"claims {count} {what}, more than its {self.left} remaining bytes can hold")
        return count

    def items(self, what: str, smallest_bytes: int) -> int:
        """A count of things that are going to be kept in memory."""
        count = self.count(what, smallest_bytes)
        if count > MAX_ITEMS:
            raise self.error(f"claims {count} {what}; at most {MAX_ITEMS} are read")
        return count

    def string(self, what: str, max_bytes: int = MAX_STRING_BYTES) -> str:
        """A string with its length before it, at most `max_bytes` long, valid UTF-8."""
        length = self.count(f"bytes for {what}", 1)
        self._kept_bytes += length
        if length > max_bytes or self._kept_bytes > MAX_METADATA_BYTES:
            raise self.error(f"has {what} of {length} bytes, more than the {max_bytes} allowed")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError as error:
            raise self.error(f"has {what} that is not UTF-8") from error

    def value(self, key: str) -> MetadataValue:
        """The type and value that follow a key."""
        type_id = self.u32()
        if type_id == _STRING_TYPE:
            return self.string(f"the value of {key!r}")
        if type_id == _ARRAY_TYPE:
            return self._array(key)
        if type_id not in _SCALARS:
            raise self.error(f"gives {key!r} the unknown value type {type_id}")
        layout = _SCALARS[type_id][1]
        number: int | float = struct.unpack(layout, self.take(struct.calcsize(layout), f"the value of {key!r}"))[0]
        return bool(number) if type_id == _BOOL_TYPE else number

    def _array(self, key: str) -> GgufArray:
        type_id = self.u32()
        if type_id == _ARRAY_TYPE:
            raise self.error(f"nests an array in the array {key!r}; llama.cpp reads no such file")
        if type_id != _STRING_TYPE and type_id not in _SCALARS:
            raise self.error(f"fills the array {key!r} with the unknown type {type_id}")
        is_strings = type_id == _STRING_TYPE
        element_bytes = 8 if is_strings else struct.calcsize(_SCALARS[type_id][1])
        length = self.count(f"elements in {key!r}", element_bytes)
        offset = self.position
        digest = self._digest_strings(length, key) if is_strings else self._digest(length * element_bytes, key)
        name = "string" if is_strings else _SCALARS[type_id][0]
        return GgufArray(name, length, offset, self.position - offset, digest)

    def _digest(self, n_bytes: int, key: str) -> str:
        digest = hashlib.sha256()
        while n_bytes:
            block = self.take(min(n_bytes, _READ_BYTES), f"the array {key!r}")
            digest.update(block)
            n_bytes -= len(block)
        return digest.hexdigest()

    def _digest_strings(self, n_strings: int, key: str) -> str:
        digest = hashlib.sha256()
        left = n_strings
        while left:
            start = self.position
            left -= self._skip_buffered_strings(left)
            digest.update(self._buffered(start, self.position))
            if left:  # the next one is not whole in the buffer
                length = self._string_length(self.u64(), key)
                digest.update(length.to_bytes(8, "little") + self.take(length, f"a string of {key!r}"))
                left -= 1
        return digest.hexdigest()

    def _skip_buffered_strings(self, at_most: int) -> int:
        """Step over whole strings that are in the buffer; a vocabulary has 100,000s, so this loop is tight."""
        buffer, end, unpack = self._buffer, len(self._buffer), _LENGTH.unpack_from
        at, skipped = self.position - self._buffer_start, 0
        while skipped < at_most and at + 8 <= end:
            (length,) = unpack(buffer, at)
            if at + 8 + length > end:
                break
            at += 8 + length
            skipped += 1
        self.position = self._buffer_start + min(at, end)
        return skipped

    def _buffered(self, start: int, end: int) -> bytes:
        return self._buffer[start - self._buffer_start : end - self._buffer_start]

    def _string_length(self, length: int, key: str) -> int:
        if length > min(MAX_STRING_BYTES, self.left):
            raise self.error(f"has a string of {length} bytes in {key!r}, with {self.left} bytes left in the file")
        return length
