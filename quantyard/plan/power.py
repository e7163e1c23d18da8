"""Which differences a suite can see, before it runs: per task and file, with what it assumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from quantyard.formatting.numbers import format_count
from quantyard.metrics.headline_metrics import headline_entry
from quantyard.metrics.power import smallest_difference
from quantyard.metrics.verdicts import n_corrected_comparisons
from quantyard.plan.steps import Measuring
from quantyard.protocol.evaluation import TaskEntry
from quantyard.protocol.measurements import Comparison, EvalReport
from quantyard.quants.catalog import quant_family
from quantyard.store.manifest import Manifest

# Questions of the usual tasks, and of how many tasks a group is made: those of lm-eval's test or validation splits. A
# task that is not here is known once it was measured. To add a task: add a row.
TASK_QUESTIONS: Final[Mapping[str, tuple[int, int]]] = {
    "smoke_questions": (160, 1), "smoke_generation": (32, 1), "arc_easy": (2376, 1), "arc_challenge": (1172, 1),
    "hellaswag": (10042, 1), "piqa": (1838, 1), "winogrande": (1267, 1), "openbookqa": (500, 1),
    "lambada_openai": (5153, 1), "truthfulqa_mc1": (817, 1), "gsm8k": (1319, 1), "mmlu": (14042, 57),
}  # fmt: skip

# The share of answers that flip, where no measurement of this model tells: that of the tokens whose most likely
# successor changes, of the family's usual type of Llama 3 8B (llama.cpp's scoreboard, docs/explanation/gate.md: Q8_0
# 2.3 %, Q6_K 4.0 %, Q4_K_M 8.1 %, Q2_K 28.9 %); 5 and 3 bits are the geometric means of their neighbours.
FLIP_PRIOR: Final[Mapping[str, float]] = {
    "unquantized": 0.005, "8-bit": 0.023, "6-bit": 0.040, "5-bit": 0.057, "4-bit": 0.081, "3-bit": 0.153,
    "2-bit": 0.289, "1-bit": 0.289,
}  # fmt: skip
_PERPLEXITIES: Final = frozenset({"wikitext", "smoke_prose"})  # tasks whose answers are neither right nor wrong
_METRICS: Final = 2  # of a task, acc and acc_norm, each with its own verdict


@dataclass(frozen=True)
class PlannedPower:
    """The smallest difference that a task can show on a file; None where the number of questions is not known.

    Attributes:
        difference: of accuracy, 0 to 1, found with 80 % power after Holm's correction; None: not known, or none.
        flip_share: of answers that flip, as assumed, and why.
        n_comparisons: the verdicts that are corrected for together.
    """

    task: str
    quant: str
    n_questions: int | None
    difference: float | None
    flip_share: float
    flip_reason: str
    n_comparisons: int


def planned_powers(measuring: Measuring, manifest: Manifest | None) -> tuple[PlannedPower, ...]:
    """One for each task of the suite whose answers are right or wrong, and each file beside the baseline.

    Args:
        manifest: what was measured of this model before, by any suite; None: nothing.
    """
    reports = list(manifest.evaluations.values()) if manifest else []
    files = measuring.labels[1:]
    tasks = [task for task in measuring.suite.tasks if task.task not in _PERPLEXITIES]
    n_comparisons = _planned_comparisons(measuring, reports)
    return tuple(_planned_power(reports, task, quant, n_comparisons) for task in tasks for quant in files)


def _planned_power(reports: list[EvalReport], task: TaskEntry, quant: str, n_comparisons: int) -> PlannedPower:
    n, (share, reason) = _planned_questions(reports, task), _planned_flips(reports, task.task, quant)
    found = smallest_difference(n, share, n_comparisons) if n else None
    return PlannedPower(task.task, quant, n, found, share, reason, n_comparisons)


def _planned_comparisons(measuring: Measuring, reports: list[EvalReport]) -> int:
    """As many as the last report on this suite and these files corrected for; else two metrics of each task."""
    same = [report for report in reports if report.suite.tasks == measuring.suite.tasks]
    known = [n_corrected_comparisons(r) for r in same if {m.file.label for m in r.measurements} == {*measuring.labels}]
    return max(known, default=0) or max(1, _METRICS * len(measuring.suite.tasks) * len(measuring.labels[1:]))


def _planned_questions(reports: list[EvalReport], task: TaskEntry) -> int | None:
    """From the table, else from a report that asked as many, else the limit."""
    if task.task in TASK_QUESTIONS:
        total, n_tasks = TASK_QUESTIONS[task.task]
        return min(total, n_tasks * task.limit) if task.limit else total
    asked = [
        found.n for report in reports if task in report.suite.tasks
        for m in report.measurements for found in m.scores if headline_entry(found.task) == task.task
    ]  # fmt: skip
    return max(asked, default=None) or task.limit


def _planned_flips(reports: list[EvalReport], task: str, quant: str) -> tuple[float, str]:
    """The share of this file's answers that flipped before: in this task, else in all; else the family's prior."""
    of_file = [c for report in reports for c in _right_or_wrong(report, quant)]
    for found, where in (([c for c in of_file if headline_entry(c.task) == task], task), (of_file, "other tasks")):
        if n := sum(c.n for c in found):
            flips = sum(c.lost + c.gained for c in found)
            share = (flips + 1) / (n + 2)  # none of few does not mean that none will
            return share, f"{format_count(flips)} of {format_count(n)} answers flipped before in {where}"
    family = quant_family(quant)
    prior = FLIP_PRIOR.get(family, FLIP_PRIOR["4-bit"])
    return prior, f"usual of {family or '4-bit'} files"


def _right_or_wrong(report: EvalReport, quant: str) -> Iterator[Comparison]:
    for m in report.measurements:
        if m.file.label == quant:
            yield from (c for c in m.comparisons if c.mcnemar_p is not None)
