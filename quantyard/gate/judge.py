"""The gate: compares every budget with what was measured of every file that is to be published.

The gate judges the interval of a measured value: passed if the whole interval is within the budget, failed if the
whole interval is outside; otherwise the outcome is "too few questions" (or too short a text). So no file passes or
fails by chance. Size and speed are single values. A budget without a measurement is "not measured", never passed; a
measurement of another file does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from quantyard.errors import BadRequest
from quantyard.gate import findings as words
from quantyard.gate.answer_limits import judge_accuracy_loss, judge_behaviour, judge_schema_rate
from quantyard.gate.behaviours import GATE_BEHAVIOURS
from quantyard.gate.budgets import GateBudgets, load_gate_budgets
from quantyard.gate.judged_file import JudgedFile, judge_gate_point
from quantyard.gate.loss_limits import judge_cache_kld, judge_mean_kld, judge_ppl_change
from quantyard.protocol.gate import BudgetResult, GateReport
from quantyard.store.manifest import Manifest

__all__ = ["GateBudgets", "judge_gate_budgets", "load_gate_budgets"]


def judge_gate_budgets(manifest: Manifest, quants: Sequence[str], suite: str, budgets: GateBudgets) -> GateReport:
    """Compare the budgets with these files of the manifest, as measured with this suite.

    Raises:
        BadRequest: a quant that is not built.
    """
    results = [
        result
        for quant in dict.fromkeys(quants)
        for result in _judge_budgets_of_file(_file_to_judge(manifest, quant, suite, budgets))
    ]
    return GateReport(
        budgets=budgets.name, sha256=budgets.sha256, suite=suite, backend=_judged_backend(manifest, suite),
        results=tuple(results),
    )  # fmt: skip


def _judged_backend(manifest: Manifest, suite: str) -> str:
    """What computed the divergences; "" where there is none, or an earlier version did not record it."""
    report = manifest.evaluations.get(suite)
    found = (m.divergence.backend for m in report.measurements if m.divergence) if report else ()
    return " / ".join(dict.fromkeys(name for name in found if name))


def _file_to_judge(manifest: Manifest, quant: str, suite: str, budgets: GateBudgets) -> JudgedFile:
    record = manifest.quants.get(quant)
    if record is None:
        built = ", ".join(manifest.quants) or "none"
        message = f"{quant} is not built; built: {built}."
        raise BadRequest(message, f"Type: make eval MODEL={words.gate_model_setting(manifest)} QUANT={quant}")
    report = manifest.evaluations.get(suite)
    of_label = [m for m in report.measurements if m.file.label == quant] if report else []
    found = next((m for m in of_label if m.file.sha256 == record.sha256), None)
    return JudgedFile(quant, manifest, suite, budgets.of(quant), report, found)


def _judge_budgets_of_file(file: JudgedFile) -> Iterator[BudgetResult]:
    for name, judge_one in _JUDGES.items():
        limit = getattr(file.budget, name)
        if limit is not None:
            yield from judge_one(file, name, limit)


def _judge_file_size(file: JudgedFile, name: str, limit: float) -> Iterator[BudgetResult]:
    yield judge_gate_point(file, name, limit, file.manifest.quants[file.quant].size_bytes)


def _judge_speed(file: JudgedFile, name: str, limit: float) -> Iterator[BudgetResult]:
    speed = file.found.speed if file.found else None
    if speed is None:
        yield file.unmeasured(name, limit, words.NAMES[name])
        return
    yield judge_gate_point(file, name, limit, getattr(speed, name.removeprefix("min_")))


def _judge_same_tokens(file: JudgedFile, name: str, limit: float) -> Iterator[BudgetResult]:
    """A model that has no twin is not judged: it cannot be proved, and its card says so."""
    twin = file.manifest.twins.get("twin")
    if twin is None or twin.status == "unproved":
        finding = words.gate_no_twin(file.manifest, twin.finding if twin else "")
        yield file.result(name, limit, "not judged", finding)
    elif twin.status in ("proved", "known"):
        yield file.result(name, limit, "passed", twin.finding.rstrip("."))
    else:
        yield judge_gate_point(file, name, limit, twin.right_up_to_tokens or 0)


_Judge = Callable[..., Iterator[BudgetResult]]
# To add a budget: a row, its name in `metrics/budget_figures.py`, and its field in `budgets.GateBudget`.
_JUDGES: Final[Mapping[str, _Judge]] = {
    "max_ppl_change": judge_ppl_change,
    "max_mean_kld": judge_mean_kld,
    "max_cache_kld": judge_cache_kld,
    "max_accuracy_loss": judge_accuracy_loss,
    **dict.fromkeys(GATE_BEHAVIOURS, judge_behaviour),
    "min_generated_tokens_per_s": _judge_speed,
    "min_prompt_tokens_per_s": _judge_speed,
    "max_size": _judge_file_size,
    "min_schema_conformance": judge_schema_rate,
    "min_same_tokens": _judge_same_tokens,
}
