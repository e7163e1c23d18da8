"""Building files, measuring them, and testing the API they are served by."""

from __future__ import annotations

from quantyard.plan.api_tests import add_contract
from quantyard.requests import BuildRequest
from quantyard.workflows.planning import measured, plan_of
from quantyard.workflows.reporter import Reporter
from quantyard.workflows.results import Built
from quantyard.workflows.run import build_plan


def build(request: BuildRequest, reporter: Reporter) -> Built:
    """Fetch, convert, quantize and verify, whatever of it is not done yet.

    Raises:
        QuantyardError: see errors.py.
    """
    return build_plan(request, plan_of(request), reporter)


def evaluate(request: BuildRequest, reporter: Reporter) -> Built:
    """Measure the files beside the baseline; what is not built is built first.

    Raises:
        QuantyardError: see errors.py.
    """
    return build(measured(request), reporter)


def check_api(request: BuildRequest, reporter: Reporter) -> Built:
    """Serve each file to itself, and check every promise of the API; the findings are in `contracts`.

    Raises:
        QuantyardError: see errors.py. A promise that is not kept is a finding, not an error.
    """
    return build_plan(request, add_contract(plan_of(request), request.threads), reporter)
