"""The cost of a plan: download, disk at its peak, file sizes, memory, time."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import field, replace
from pathlib import Path

from quantyard.errors import NotEnoughDisk
from quantyard.forecast.disk import forecast_disk_bytes, forecast_fitting_files
from quantyard.forecast.expected_times import Forecast
from quantyard.formatting.numbers import format_bytes
from quantyard.memory.from_config import serve_memory_bytes
from quantyard.plan.steps import BuildPlan, ExternalInput, Step
from quantyard.records import dataclass

SERVE_CONTEXT_TOKENS = 4096
_RESERVE_BYTES = 64 * 1024 * 1024  # for results, the manifest, and the file system


@dataclass(frozen=True)
class FileCost:
    """One GGUF: expected size, and memory to serve it at `SERVE_CONTEXT_TOKENS` (None: not known yet)."""

    quant: str
    size_bytes: int
    serve_memory_bytes: int | None


@dataclass(frozen=True)
class Cost:
    """Sizes in bytes. A build removes nothing while it runs, so its peak is the sum of what is left to make."""

    download_bytes: int
    disk_needed_bytes: int
    disk_free_bytes: int
    files: tuple[FileCost, ...]
    downloads_datasets: bool = False  # of unknown size
    stage_memory_bytes: Mapping[str, int] = field(default_factory=dict)  # by label, where it is known
    time: Forecast = field(default_factory=Forecast)
    trial_s: float = 0.0  # that the trial of IMATRIX=auto takes in addition to the plan
    fitting: tuple[str, ...] = ()  # the quants whose files fit the disk, where not all of them do

    @property
    def fits(self) -> bool:
        """Whether the disk is large enough."""
        return not self.disk_needed_bytes or self.disk_needed_bytes + _RESERVE_BYTES <= self.disk_free_bytes

    def check_disk(self, artifacts: Path, setting: str = "") -> None:
        """Stop before a byte is downloaded.

        Args:
            setting: which names the files that are asked for; "" where none does, as in a search.

        Raises:
            NotEnoughDisk: the plan needs more than is free; the hint names the files that fit.
        """
        if self.fits:
            return
        needed, free = format_bytes(self.disk_needed_bytes), format_bytes(self.disk_free_bytes)
        message = f"The build needs {needed} of disk, and {free} are free in {artifacts}."
        elsewhere = "Free some space, or use another disk: ARTIFACTS=/path"
        if self.fitting and setting:
            these = f"These fit; type the same command with:  {setting}={','.join(self.fitting)}"
            raise NotEnoughDisk(message, f"{these}\n{elsewhere}")
        raise NotEnoughDisk(message, elsewhere)


def forecast_cost(
    plan: BuildPlan, finished: Collection[str], partial_bytes: int, artifacts: Path, time: Forecast | None = None
) -> Cost:
    """The cost of the steps that are not finished; `partial_bytes` of a download have arrived already."""
    left = [step for step in plan.steps if step.label not in finished]
    download_bytes = sum(s.size_bytes for s in left if s.row.network)
    files = tuple(_file_cost(plan, t.quant.name, t.size_bytes) for t in plan.targets)
    cost = Cost(
        download_bytes=max(0, download_bytes - partial_bytes),
        disk_needed_bytes=max(0, sum(s.size_bytes for s in left) - partial_bytes),
        disk_free_bytes=shutil.disk_usage(forecast_disk_folder(artifacts)).free,
        files=files, downloads_datasets=any(s.row.name == "datasets" for s in left),
        stage_memory_bytes=_forecast_stage_memory(plan, left), time=time or Forecast(),
    )
    return cost if cost.fits else replace(cost, fitting=_advice_to_fit_cost(plan, finished, cost))


def _advice_to_fit_cost(plan: BuildPlan, finished: Collection[str], cost: Cost) -> tuple[str, ...]:
    sizes = forecast_disk_bytes(plan, finished)
    needed_by_all_bytes = cost.disk_needed_bytes - sum(sizes.values())
    return forecast_fitting_files(sizes, cost.disk_free_bytes - _RESERVE_BYTES - needed_by_all_bytes)


def _forecast_stage_memory(plan: BuildPlan, steps: Collection[Step]) -> dict[str, int]:
    """The memory that each step needs to be fast: for the files that it maps, and if it decodes for a context. Mapped
    files can be read again, so that a stage with less memory is slow before it fails.
    """
    base_bytes = _forecast_base_bytes(plan)
    sizes = {target.quant.name: target.size_bytes for target in plan.targets}
    known = {}
    for step in (step for step in steps if step.keyed_by is None):  # what puts shards together decodes nothing
        size_bytes = sizes.get(step.quant, base_bytes)
        if step.row.name in ("quantize", "verify", "divergence", "domains", "cache"):
            known[step.label] = size_bytes + (base_bytes if size_bytes != base_bytes else 0)
        elif step.row.name == "openvino":  # which has a copy of its own kinds of weights
            known[step.label] = 2 * size_bytes + (base_bytes if size_bytes != base_bytes else 0)
        elif step.row.name in ("evaluate", "speed", "contract"):
            cost = _file_cost(plan, "", size_bytes)
            known[step.label] = cost.serve_memory_bytes or size_bytes
    return known


def _forecast_base_bytes(plan: BuildPlan) -> int:
    """Size of what the quants are made of."""
    if isinstance(plan.base.origin, ExternalInput):
        return plan.base.origin.artifact.size_bytes
    label = plan.base.origin.step
    return next((step.size_bytes for step in plan.steps if step.label == label), 0)


def _file_cost(plan: BuildPlan, quant: str, size_bytes: int) -> FileCost:
    kv_bytes = plan.source.kv_cache_bytes(SERVE_CONTEXT_TOKENS)
    memory = None if kv_bytes is None else serve_memory_bytes(size_bytes, kv_bytes, plan.source.config)
    return FileCost(quant, size_bytes, memory)


def forecast_disk_folder(path: Path) -> Path:
    """The path, or the nearest of its parents that exists."""
    while not path.exists():
        path = path.parent
    return path
