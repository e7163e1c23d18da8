"""The report of a gate: every budget with its value, interval and outcome. It is in the manifest and on the card."""

from typing import Annotated, Final, Literal

from pydantic import Field

from quantyard.protocol.base import Frozen
from quantyard.protocol.estimates import Interval

GATE_REPORT_VERSION: Final = 1
# Worst first: the worst result decides the gate. "not judged" does not count: if the baseline itself only guesses on a
# task, the task decides nothing (a budget without any other task is also "not measured").
Outcome = Literal["failed", "not measured", "too few questions", "passed", "not judged"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("failed", "not measured", "too few questions", "passed", "not judged")


class BudgetResult(Frozen):
    """One budget applied to one file. `value`, `interval` and `limit` are in the budget's own unit."""

    quant: str
    budget: str  # its name in the YAML: max_mean_kld, max_accuracy_loss …
    task: str = ""  # if the budget applies per task
    limit: float
    value: float | None = None  # None: not measured
    interval: Interval | None = None
    confidence: float | None = None  # of the interval, if the budget states its own
    outcome: Outcome
    finding: str  # one line for the user: value, interval, limit, and what to type if that can change it


class GateReport(Frozen):
    """The results of every budget for every file to publish."""

    version: Literal[1] = GATE_REPORT_VERSION
    budgets: str  # "default", or the name of the user's file
    sha256: str  # of the text of the budgets, to distinguish two gates
    suite: str  # the suite whose evaluation was judged
    # What computed the divergences and perplexities, with its build. Limits judge what it computed, not the file alone.
    backend: Annotated[str, Field(exclude_if=lambda value: not value)] = ""
    results: tuple[BudgetResult, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst of the results; "passed" if no budget applies."""
        found = {result.outcome for result in self.results}
        return next((outcome for outcome in OUTCOMES if outcome in found), "passed")

    def with_outcome(self, outcome: Outcome) -> tuple[BudgetResult, ...]:
        """The results with this outcome."""
        return tuple(result for result in self.results if result.outcome == outcome)
