"""What a plan will cost, before anything is spent: download, disk at its peak, file sizes, memory to serve."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import NotEnoughDisk
from pipeline.estimate import serve_memory_bytes
from pipeline.plan import BuildPlan
from pipeline.units import human_bytes

SERVE_CONTEXT_TOKENS = 4096
_RESERVE_BYTES = 64 * 1024 * 1024  # results, manifest, the file system's own needs


@dataclass(frozen=True)
class FileCost:
    """One GGUF: expected size, and memory to serve it at `SERVE_CONTEXT_TOKENS` (None: cannot be known yet)."""

    quant: str
    size_bytes: int
    serve_memory_bytes: int | None


@dataclass(frozen=True)
class Cost:
    """Sizes in bytes. Nothing is removed while a build runs, so its peak is the sum of what is left to make."""

    download_bytes: int
    disk_needed_bytes: int
    disk_free_bytes: int
    files: tuple[FileCost, ...]
    downloads_datasets: bool = False  # their size is not known before they are here

    def check_disk(self, artifacts: Path) -> None:
        """Stop before a byte is downloaded.

        Raises:
            NotEnoughDisk: the plan needs more than is free.
        """
        if self.disk_needed_bytes and self.disk_needed_bytes + _RESERVE_BYTES > self.disk_free_bytes:
            needed, free = human_bytes(self.disk_needed_bytes), human_bytes(self.disk_free_bytes)
            message = f"The build needs {needed} of disk, and {free} are free in {artifacts}."
            raise NotEnoughDisk(message, "Free some space, ask for fewer quants, or use another disk: ARTIFACTS=/path")


def cost_of(plan: BuildPlan, finished: Collection[str], partial_bytes: int, artifacts: Path) -> Cost:
    """The cost of the steps that are not finished; `partial_bytes` of a download are here already."""
    left = [step for step in plan.steps if step.label not in finished]
    download_bytes = sum(s.size_bytes for s in left if s.row.network)
    files = tuple(_file_cost(plan, t.quant.name, t.size_bytes) for t in plan.targets)
    return Cost(
        download_bytes=max(0, download_bytes - partial_bytes),
        disk_needed_bytes=max(0, sum(s.size_bytes for s in left) - partial_bytes),
        disk_free_bytes=shutil.disk_usage(nearest_folder(artifacts)).free,
        files=files, downloads_datasets=any(s.row.name == "datasets" for s in left),
    )


def _file_cost(plan: BuildPlan, quant: str, size_bytes: int) -> FileCost:
    kv_bytes = plan.source.kv_cache_bytes(SERVE_CONTEXT_TOKENS)
    memory = None if kv_bytes is None else serve_memory_bytes(size_bytes, kv_bytes, plan.source.config)
    return FileCost(quant, size_bytes, memory)


def nearest_folder(path: Path) -> Path:
    """The path, or the nearest of its parents that exists: what can be asked for its free space."""
    while not path.exists():
        path = path.parent
    return path
