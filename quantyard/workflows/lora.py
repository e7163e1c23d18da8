"""Converts a LoRA adapter to GGUF, to be served on top of its base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantyard.execution.runner import PlanRunner
from quantyard.plan.lora import LORA, RESULT, plan_lora
from quantyard.requests import BuildRequest
from quantyard.sources.resolve import Source
from quantyard.store.visible_files import link_stored_file
from quantyard.workflows.planning import workflow_hashes, workflow_hub_access
from quantyard.workflows.reporter import WorkflowReporter
from quantyard.workflows.run import run_plan


@dataclass(frozen=True)
class Adapter:
    """The converted adapter.

    Attributes:
        source: the adapter's source; its title names the base model too.
        ran: labels of the steps that this call ran.
    """

    source: Source
    path: Path
    manifest_path: Path
    ran: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """The size of the GGUF."""
        return self.path.stat().st_size


def workflow_make_lora(request: BuildRequest, reporter: WorkflowReporter) -> Adapter:
    """Fetch and convert the adapter; skip finished stages.

    Raises:
        BadRequest: ADAPTER or BASE is missing, is not valid, or needs a permission (pickle).
        QuantyardError: see errors.py.
    """
    plan = plan_lora(request, workflow_hub_access(request), workflow_hashes(request))
    runner, _no_targets = run_plan(request, plan, reporter)
    path = workflow_publish_lora(runner)
    return Adapter(plan.source, path, runner.store.folder / "manifest.json", tuple(runner.ran))


def workflow_publish_lora(runner: PlanRunner) -> Path:
    """Link the finished adapter beside the manifest; returns its path."""
    target = runner.store.folder / f"{runner.plan.source.model.name}-lora.gguf"
    return link_stored_file(runner.output(LORA) / RESULT, target)
