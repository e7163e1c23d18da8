"""Checks a published repo, a folder or a file against its manifest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from quantyard.errors import BadRequest
from quantyard.hub.download import download_hub_release
from quantyard.publish.rebuild import (
    check_rebuild_source,
    compare_rebuilt_release,
    rebuild_release_imatrices,
    release_rebuild_request,
)
from quantyard.publish.verify import (
    CheckedRelease,
    ReleaseCheck,
    State,
    check_release,
    find_checked_release,
    worst_release_check,
)
from quantyard.requests import BuildRequest, CheckRequest
from quantyard.store.manifest import read_manifest
from quantyard.workflows.planning import workflow_hub_access, workflow_plan
from quantyard.workflows.reporter import WorkflowReporter
from quantyard.workflows.run import run_plan

_DOWNLOADS = "verified"  # a folder of the store


@dataclass(frozen=True)
class Verification:
    """The checks and their results."""

    checks: tuple[ReleaseCheck, ...]

    @property
    def state(self) -> State:
        """The worst of the checks: `ok` only if every check passed."""
        return worst_release_check(self.checks)


def verify(request: BuildRequest, reporter: WorkflowReporter) -> Verification:
    """Check a file, a folder or a repo against its manifest.

    Raises:
        BadRequest: the file does not exist, or is not named in a manifest beside it.
        HubError: the repo cannot be downloaded.
        NeedsPermission: the rebuild needs a permission that is not given.
    """
    asked = request.check
    assert asked is not None, "the command has it"
    subject = _release_to_check(request, asked, reporter)
    with reporter.steps() as steps:
        on_file = lambda name: steps.note(f"checking {name}")  # noqa: E731
        checks = list(check_release(subject, workflow_hub_access(request), asked.repo_id, on_file))
    if asked.rebuild:
        checks += _rebuilt_release_checks(request, subject, reporter)
    return Verification(tuple(checks))


def _release_to_check(request: BuildRequest, asked: CheckRequest, reporter: WorkflowReporter) -> CheckedRelease:
    if bool(asked.repo_id) == (asked.file is not None):
        given = "REPO and FILE are both given" if asked.repo_id else "Neither REPO nor FILE is given"
        raise BadRequest(f"{given}.", "Type: make verify REPO=me/name-GGUF, or FILE=path")
    if asked.file is not None:
        return find_checked_release(asked.file)
    with reporter.steps() as steps:
        steps.note(f"downloading {asked.repo_id}")
        return find_checked_release(
            download_hub_release(workflow_hub_access(request), asked.repo_id, request.artifacts / _DOWNLOADS)
        )


def _rebuilt_release_checks(
    request: BuildRequest, subject: CheckedRelease, reporter: WorkflowReporter
) -> Iterator[ReleaseCheck]:
    """Rebuild in a temporary store, and compare."""
    request.artifacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=request.artifacts, prefix=".rebuild-") as folder:
        again = release_rebuild_request(request, subject, Path(folder))
        plan = workflow_plan(again)
        check_rebuild_source(subject, plan.source.model)
        plan = rebuild_release_imatrices(plan, subject, Path(folder) / ".imatrices")
        builder, built = run_plan(replace(again, imatrix="none"), plan, reporter)  # they are in the plan already
        manifest = read_manifest(builder.store.folder / "manifest.json")
        assert manifest is not None
        yield from compare_rebuilt_release(subject, {file.quant: file.record for file in built}, manifest.stages)
