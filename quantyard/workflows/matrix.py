"""Makes, measures and compares many quants of a model in one run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from quantyard.errors import BadRequest
from quantyard.requests import BuildRequest, ChooseRequest, PublishRequest
from quantyard.workflows.choose import Chosen, workflow_choose_from_manifest
from quantyard.workflows.planning import workflow_matrix_plan
from quantyard.workflows.release import write_release_report
from quantyard.workflows.reporter import QuantsFailed, WorkflowReporter
from quantyard.workflows.results import Built
from quantyard.workflows.run import run_build_plan


@dataclass(frozen=True)
class Matrix:
    """The result of a matrix.

    Attributes:
        built: the files, the measurements, and the failures of missing files.
        page: the report page; the model card is beside it.
        chosen: the choice for this machine; None if no file can be chosen, and `not_chosen` is the reason.
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
    """Run the matrix: all quants share one conversion and one baseline; a failed quant does not stop the others.

    Raises:
        StageFailed: no quant could be made, or the baseline failed; the first failure.
        QuantyardError: see errors.py.
    """
    request, plan = workflow_matrix_plan(request)
    built = run_build_plan(request, plan, reporter, keep_going=True)
    if built.measured is None:  # then there is nothing to compare
        failed = list(built.failures.values())
        if len(failed) > 1:
            reporter.tell(QuantsFailed(built.failures))
        raise failed[0]
    page = _write_matrix_page(request, built, reporter)
    try:
        return Matrix(built, page, _matrix_choice(built))
    except BadRequest as error:  # a suite without speed, say
        return Matrix(built, page, None, error.message)


def _write_matrix_page(request: BuildRequest, built: Built, reporter: WorkflowReporter) -> Path:
    """Write the page of the built files. LIMIT, TASKS and similar settings change the name of the suite."""
    quants = tuple(quant for quant in request.quants if quant.name in {file.quant for file in built.files})
    assert built.measured is not None, "the caller has looked"
    assert request.measure is not None, "a matrix measures"
    measure = replace(request.measure, suite=built.measured.report.suite.name)
    return write_release_report(
        replace(request, quants=quants, quants_given=True, measure=measure), PublishRequest(), reporter, built.plan
    )


def _matrix_choice(built: Built) -> Chosen:
    """The choice without limits.

    Raises:
        BadRequest: no file can be chosen.
    """
    assert built.measured is not None, "the caller has looked"
    paths, suite = {file.quant: file.path for file in built.files}, built.measured.report.suite.name
    return workflow_choose_from_manifest(built.manifest, built.plan.source.model.name, paths, suite, ChooseRequest())
