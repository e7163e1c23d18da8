"""Every useful quant of a model in one run, compared with each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from quantyard.errors import BadRequest
from quantyard.requests import BuildRequest, ChooseRequest, PublishRequest
from quantyard.workflows.choose import Chosen, choose_from_manifest
from quantyard.workflows.planning import workflow_matrix_plan
from quantyard.workflows.release import write_release_report
from quantyard.workflows.reporter import QuantsFailed, WorkflowReporter
from quantyard.workflows.results import Built
from quantyard.workflows.run import run_build_plan


@dataclass(frozen=True)
class Matrix:
    """What a matrix ends with.

    Attributes:
        built: the files, what was measured, and the failures of those that are missing.
        page: the report page; the model card is beside it.
        chosen: the file to take on this machine; None where nothing can be chosen, and `not_chosen` says why.
    """

    built: Built
    page: Path
    chosen: Chosen | None
    not_chosen: str = ""

    @property
    def card(self) -> Path:
        """The model card."""
        return self.page.with_name("README.md")


def matrix(request: BuildRequest, reporter: WorkflowReporter) -> Matrix:
    """One conversion for all, one baseline for all; a quant that fails leaves the others alone.

    Raises:
        StageFailed: no quant could be made, or the baseline failed; it is the first failure.
        QuantyardError: see errors.py.
    """
    request, plan = workflow_matrix_plan(request)
    built = run_build_plan(request, plan, reporter, keep_going=True)
    if built.measured is None:  # then there is nothing to compare
        failed = list(built.failures.values())
        if len(failed) > 1:
            reporter.tell(QuantsFailed(built.failures))
        raise failed[0]
    page = _write_page(request, built, reporter)
    try:
        return Matrix(built, page, _choice(built))
    except BadRequest as error:  # a suite without speed, say
        return Matrix(built, page, None, error.message)


def _write_page(request: BuildRequest, built: Built, reporter: WorkflowReporter) -> Path:
    """The page of what was made. LIMIT, TASKS and the like make another suite of it, whose name tells."""
    quants = tuple(quant for quant in request.quants if quant.name in {file.quant for file in built.files})
    assert built.measured is not None, "the caller has looked"
    assert request.measure is not None, "a matrix measures"
    measure = replace(request.measure, suite=built.measured.report.suite.name)
    return write_release_report(
        replace(request, quants=quants, measure=measure), PublishRequest(), reporter, built.plan
    )


def _choice(built: Built) -> Chosen:
    """What `choose` would say without a budget.

    Raises:
        BadRequest: these files cannot be chosen from.
    """
    assert built.measured is not None, "the caller has looked"
    paths, suite = {file.quant: file.path for file in built.files}, built.measured.report.suite.name
    return choose_from_manifest(built.manifest, built.plan.source.model.name, paths, suite, ChooseRequest())
