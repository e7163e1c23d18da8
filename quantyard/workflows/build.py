"""Building files, measuring them, and testing the API they are served by."""

from __future__ import annotations

from quantyard.plan.api_tests import add_contract_steps
from quantyard.requests import BuildRequest
from quantyard.workflows.planning import workflow_plan, workflow_with_suite
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
    """Measure the files beside the baseline; what is not built is built first.

    Raises:
        QuantyardError: see errors.py.
    """
    return build(workflow_with_suite(request), reporter)


def workflow_check_api(request: BuildRequest, reporter: WorkflowReporter) -> Built:
    """Serve each file to itself, and check every promise of the API; the findings are in `contracts`.

    Raises:
        QuantyardError: see errors.py. A promise that is not kept is a finding, not an error.
    """
    return run_build_plan(request, add_contract_steps(workflow_plan(request), request.threads), reporter)
