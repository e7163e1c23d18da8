"""Which file system a folder is on, and those where a shared store cannot be: each machine decides there by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_MOUNTS: Final = Path("/proc/self/mountinfo")
# Buckets behind FUSE: a rename or link is several requests, which nothing keeps together between machines. A race on
# one machine does not show it, for its kernel lets one request pass at a time. To add one: its type in /proc/mounts.
_BUCKETS: Final = frozenset({
    "fuse.s3fs", "fuse.rclone", "fuse.goofys", "fuse.geesefs", "fuse.mountpoint-s3", "fuse.gcsfuse", "fuse.blobfuse",
    "fuse.blobfuse2", "fuse.s3ql", "fuse.ossfs", "fuse.cosfs", "fuse.obsfs",
})  # fmt: skip


def mounted_type(folder: Path, mounts: Path = _MOUNTS) -> str:
    """The type of the file system of a folder, or of where it will be: "ext4", "fuse.glusterfs"; "" if not known."""
    place, best, kind = folder.resolve(), Path("/"), ""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        fields, _, tail = line.partition(" - ")
        point = Path(fields.split(" ")[4].encode().decode("unicode_escape"))
        if place.is_relative_to(point) and point.is_relative_to(best):
            best, kind = point, tail.split(" ")[0] + _subtype(tail)
    return kind


def bucket_behind_fuse(folder: Path, mounts: Path = _MOUNTS) -> str:
    """The type of the file system, if that is a bucket behind FUSE; else ""."""
    kind = mounted_type(folder, mounts)
    return kind if kind in _BUCKETS else ""


def _subtype(tail: str) -> str:
    """Some name themselves only as the source: "fuse mountpoint-s3 rw"."""
    kind, source, *_ = [*tail.split(" "), ""]
    return f".{source}" if kind == "fuse" and "/" not in source else ""
