"""The sentences of the gate: value, interval, limit, and the command that can change the outcome.

The card quotes them, so they never hold a path of this machine.
"""

from __future__ import annotations

from typing import Final

from quantyard.formatting.numbers import format_count, format_forecast_count, format_percent
from quantyard.gate.behaviours import GATE_BEHAVIOURS
from quantyard.metrics.budget_figures import (
    BUDGET_NAMES,
    metric_budget_interval,
    metric_budget_limit,
    metric_budget_value,
)
from quantyard.metrics.divergence_parts import divergence_parts_sentence, perplexity_parts_sentence
from quantyard.plan.suites import BUILTIN
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.estimates import Interval
from quantyard.protocol.gate import Outcome
from quantyard.protocol.measurements import Comparison
from quantyard.store.manifest import Manifest

# With their articles, for sentences.
NAMES: Final = {
    budget: name if "KLD" in name else f"the {name}" for budget, name in BUDGET_NAMES.items()
}


def gate_judged(
    budget: str, task: str, found: Interval | float, limit: float, outcome: Outcome, needed: str = "", against: str = ""
) -> str:
    """"mean KLD 0.0464 (0.0446 to 0.0483) is above 0.04"."""
    side = ("within" if outcome == "passed" else "above") if budget.startswith("max_") else (
        "at least" if outcome == "passed" else "below")  # fmt: skip
    what = f"{_budget_name(budget, task)} {_budget_value_with_interval(budget, found)}"
    baseline = f", against the baseline {against}, which is quantized itself" if against else ""
    if outcome == "too few questions":
        way = "within" if budget.startswith("max_") else "at least"
        return f"{what} may or may not be {way} {metric_budget_limit(budget, limit)}{baseline}: {needed}"
    return f"{what} is {side} {metric_budget_limit(budget, limit)}{baseline}"


def gate_divergence_parts(found: Divergence) -> str:
    """How much of a divergence is the file's own: the limit judges the whole. "" where it is not known."""
    return f" ({divergence_parts_sentence(found.parts)})" if found.parts else ""


def gate_perplexity_parts(found: Divergence) -> str:
    """The same of a change of perplexity."""
    said = perplexity_parts_sentence(found.parts) if found.parts else ""
    return f" ({said})" if said else ""


def gate_no_number(budget: str, limit: float, task: str) -> str:
    """For a value that is not finite."""
    return f"{_budget_name(budget, task)} is not finite, so it is not within {metric_budget_limit(budget, limit)}"


def gate_is_baseline(what: str) -> str:
    """For the unquantized file itself."""
    return f"{what} is 0: this file is the baseline"


def gate_own_baseline(what: str, manifest: Manifest, quant: str) -> str:
    """For a quantized file that was measured against itself."""
    why = f"{what} is not known: {quant} was the baseline"
    return f"{why}. Type: make eval MODEL={gate_model_setting(manifest)} QUANT={quant} BASELINE=BF16"


def gate_no_signal(found: Comparison, baseline: str) -> str:
    """For a task on which the baseline is at chance."""
    score = format_percent(found.baseline)
    return f"on {found.task} the baseline {baseline} is not better than guessing ({score}), so the task decides nothing"


def gate_few_scenarios(budget: str, behaviour: str, n: int) -> str:
    """For a behaviour of which the suite asks so few scenarios that they decide nothing."""
    what = _budget_name(budget, behaviour)
    return f"{what} is not judged: {format_count(n)} scenarios decide nothing. To judge it: SUITE=behaviour"


def gate_nothing_decides(budget: str, task: str) -> str:
    """For a limit of which everything that was asked decides nothing."""
    return f"{_budget_name(budget, task)} is not known: nothing that was asked decides it"


def gate_unmeasured_name(budget: str, task: str, *, others: bool) -> str:
    """What was not measured: of which task, behaviour or domain, or of the `others` that have no limit of their own."""
    if others:
        return f"{NAMES[budget]} on the other {'behaviours' if budget in GATE_BEHAVIOURS else 'tasks'}"
    return _budget_name(budget, task)


def gate_unmeasured(what: str, manifest: Manifest, quant: str, suite: str, *, evaluated: bool, measures: str) -> str:
    """For a value that was not measured; the finding names the command that measures it, with the suite `measures`."""
    if evaluated:
        why = f"{what} was not measured: the suite {suite} does not measure it"
        return f"{why}. Type: {_gate_eval(manifest, quant, measures)}"
    again = suite if suite in BUILTIN else "…"
    return f"{what} of this file was not measured with the suite {suite}. Type: {_gate_eval(manifest, quant, again)}"


def gate_no_schemas(manifest: Manifest, quant: str, *, tested: bool) -> str:
    """For a file without a result of the API test."""
    why = "the API test got no answer to a JSON schema" if tested else "the API test was not run"
    what = NAMES["min_schema_conformance"]
    return f"{what} was not measured: {why}. Type: make contract MODEL={gate_model_setting(manifest)} QUANT={quant}"


def gate_no_twin(manifest: Manifest, reason: str) -> str:
    """For a model that was not compared with Transformers."""
    if reason:
        return reason.rstrip(".")
    if manifest.source.kind == "gguf":
        return "a GGUF has no twin: there is no original to compare its computation with"
    return f"the model was built without its twin. Type: make build MODEL={gate_model_setting(manifest)} PARITY=twin"


def gate_tokens_needed(needed: int | None, n: int, text: str = "divergence.text") -> str:
    """The length of a text that would decide; `text` is the suite's setting that names another."""
    return _samples_that_would_decide(needed, "tokens of text", n, f"the suite's {text} may be longer")


def gate_domain_tokens_needed(needed: int | None, n: int) -> str:
    """The length of a domain's text that would decide."""
    return _samples_that_would_decide(needed, "tokens of it", n, "the suite's domains.tokens may be larger")


def gate_questions_needed(needed: int | None, n: int, suite: str) -> str:
    """The number of questions of the task that would decide."""
    short = suite.partition("+")[0] in ("smoke", "quick")
    return _samples_that_would_decide(needed, "questions", n, "SUITE=standard asks more" if short else "")


def gate_answers_needed(needed: int | None, n: int) -> str:
    """The number of answers to schemas that would decide."""
    return _samples_that_would_decide(needed, "answers", n)


def gate_model_setting(manifest: Manifest) -> str:
    """The value for MODEL=; without the path of a local folder."""
    return manifest.source.repo_id or "…"


def _samples_that_would_decide(needed: int | None, what: str, n: int, how: str = "") -> str:
    if needed is None:
        return f"the value lies on the limit, and more {what} cannot decide"
    return f"about {format_forecast_count(needed)} {what} would decide; there were {format_count(n)}" + (
        f" ({how})" if how else ""
    )


def _gate_eval(manifest: Manifest, quant: str, suite: str) -> str:
    return f"make eval MODEL={gate_model_setting(manifest)} QUANT={quant} SUITE={suite}"


def _budget_name(budget: str, task: str) -> str:
    return f"{NAMES[budget]} on {task}" if task else NAMES[budget]


def _budget_value_with_interval(budget: str, found: Interval | float) -> str:
    return (
        str(metric_budget_interval(budget, found))
        if isinstance(found, Interval)
        else metric_budget_value(budget, found)
    )
