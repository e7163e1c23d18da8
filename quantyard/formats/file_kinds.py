"""What a file is whose beginning is not what its name says: the ways in which downloads and editors spoil files.

    spoiled_file(b"version https://git-lfs.github.com/spec/v1...")   # a pointer of Git LFS, and the command that helps

Standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

HEAD_BYTES: Final = 1024  # enough for every row below; a pointer of Git LFS has some 130 bytes
_LFS: Final = b"version https://git-lfs.github.com/spec/"
_PULL: Final = "Fetch the files themselves: git lfs pull, or hf download."
_AGAIN: Final = "Download it again."
_SIZE: Final = re.compile(rb"^size (\d{1,19})$", re.MULTILINE)


@dataclass(frozen=True)
class SpoiledFile:
    """What a file is instead ("a Git LFS pointer"), and what to type next."""

    what: str
    hint: str


# To recognize one more: its first bytes, what it is, and what to do.
_BEGINNINGS: Final = (
    (b"\xff\xfe\x00\x00", "UTF-32 text", "Save it as UTF-8: iconv -f UTF-32 -t UTF-8 {name} > new && mv new {name}"),
    (b"\xff\xfe", "UTF-16 text", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8 {name} > new && mv new {name}"),
    (b"\xfe\xff", "UTF-16 text", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8 {name} > new && mv new {name}"),
    (b"<!doctype", "a web page", "A page was saved in place of the file, an error or a login: download it again."),
    (b"<html", "a web page", "A page was saved in place of the file, an error or a login: download it again."),
    (b"<?xml", "an XML answer of a server", _AGAIN),
    (b"\x1f\x8b", "a gzip archive", "Unpack it: gunzip < {name} > new && mv new {name}"),
    (b"PK\x03\x04", "a zip archive (a checkpoint of PyTorch is one)", "Give the file that its name promises."),
    (b"GGUF", "a GGUF file", "Give it by its own name: MODEL=file.gguf"),
)  # fmt: skip
_BOM: Final = b"\xef\xbb\xbf"
_EMPTY: Final = SpoiledFile("empty", _AGAIN)
_ZEROS: Final = SpoiledFile("all zeros at its beginning: a download that was cut short", _AGAIN)


def spoiled_file(head: bytes, name: str) -> SpoiledFile | None:
    """What the file is, by its first `HEAD_BYTES`, where that is one of the known accidents; else None.

    Args:
        name: for the commands in hints.
    """
    if not head:
        return _EMPTY
    if head.startswith(_LFS):
        size = _SIZE.search(head)
        real = f" for a file of {int(size[1]):,} bytes" if size else ""
        return SpoiledFile(f"a Git LFS pointer{real}, not the file", _PULL)
    if len(head) >= 16 and not any(head):
        return _ZEROS
    low = head.lstrip(b" \t\r\n")[:9].lower() if head[:1] not in (b"\xff", b"\xfe") else head
    for beginning, what, hint in _BEGINNINGS:
        if low.startswith(beginning) or head.startswith(beginning):
            return SpoiledFile(what, hint.format(name=name))
    return None


def spoiled_text(head: bytes, name: str) -> SpoiledFile | None:
    """The same for a file of text, which has more ways to be spoiled: a byte order mark, UTF-16 without one."""
    if head.startswith(_BOM):
        remove = f"sed -i '1s/^\\xEF\\xBB\\xBF//' {name}"
        return SpoiledFile("UTF-8 with a byte order mark, which no loader takes", f"Remove the mark: {remove}")
    known = spoiled_file(head, name)
    if known is None and len(head) >= 4 and head[1::2].count(0) + head[::2].count(0) >= len(head) // 3:
        order = "UTF-16LE" if head[1] == 0 else "UTF-16BE"
        hint = f"Save it as UTF-8: iconv -f {order} -t UTF-8 {name} > new && mv new {name}"
        return SpoiledFile("UTF-16 text without a mark", hint)
    return known
