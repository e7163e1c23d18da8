"""Builds files, measures them, and tests their served API."""

from __future__ import annotations

from quantyard.requests import BuildRequest
from quantyard.store.manifest import read_manifest
from quantyard.store.stages import ModelStore
from quantyard.workflows.planning import workflow_of_built, workflow_plan, workflow_with_suite
from quantyard.workflows.reporter import WorkflowReporter
from quantyard.workflows.results import Built
from quantyard.workflows.run import run_build_plan


def build(request: BuildRequest, reporter: WorkflowReporter) -> Built:
    """Fetch, convert, quantize and verify; skip finished stages.

    Raises:
        QuantyardError: see errors.py.
    """
    return run_build_plan(request, workflow_plan(request), reporter)


def evaluate(request: BuildRequest, reporter: WorkflowReporter) -> Built:
    """Measure the files beside the baseline; missing files are built first. Without QUANT, all that were built.

    Raises:
        QuantyardError: see errors.py.
    """
    request, source = workflow_of_built(workflow_with_suite(request))
    return run_build_plan(request, workflow_plan(request, source), reporter)


def workflow_check_api(request: BuildRequest, reporter: WorkflowReporter) -> Built:
    """Serve each file on loopback and test its API; the findings are in `contracts`.

    Raises:
        QuantyardError: see errors.py. A check that fails is a finding, not an error.
    """
    # Imported late: a build tests none.
    from quantyard.plan.api_tests import add_contract_steps, kept_evaluations, measured_predictions

    request, source = workflow_of_built(request)
    store = ModelStore(request.artifacts, source.model)
    manifest = read_manifest(store.folder / "manifest.json")
    measured = measured_predictions(manifest) if manifest else {}
    kept = kept_evaluations(manifest, store, measured) if manifest else {}
    plan = add_contract_steps(workflow_plan(request, source), request.threads, {**measured, **kept})
    return run_build_plan(request, plan, reporter)
