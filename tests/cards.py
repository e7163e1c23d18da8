"""What the tests of the card share: a context, and a release with everything that a card can show."""

from __future__ import annotations

from typing import Any

from quantyard.card.render import CardContext
from quantyard.protocol.estimates import Interval
from quantyard.protocol.evaluation import TaskEntry
from quantyard.protocol.gate import BudgetResult, GateReport
from quantyard.sources.licence import Licence
from quantyard.store.manifest import Manifest
from tests.manifests import manifest_of, with_imatrix

LEGAL = "Some licence\n\n    <!-- quantyard:files -->\n\n````\n---\nwith everything that could end a block.\n"
PLOTS = tuple(f"plots/{name}-{theme}.svg" for name in ("tradeoff", "speed") for theme in ("light", "dark"))


APACHE = Licence("apache-2.0", "source", ("Keep the copyright notice.",))
CONTEXT = CardContext("me/Lagoon-GGUF", "standard", APACHE, plots=PLOTS, licence_text=LEGAL)


def gate() -> GateReport:
    """One result of each outcome."""
    interval = Interval(value=0.031, low=0.0292, high=0.0328)
    results = (
        BudgetResult(quant="Q4_K_M", budget="max_mean_kld", limit=0.02, value=0.031, interval=interval, confidence=0.95,
                     outcome="failed", finding="mean KLD 0.0310 (0.0292 to 0.0328) is above 0.02"),
        BudgetResult(quant="Q8_0", budget="max_accuracy_loss", task="arc_easy", limit=1, value=0.4, confidence=0.95,
                     interval=Interval(value=0.4, low=-1.2, high=2.1), outcome="too few questions",
                     finding="1,100 questions would do"),
        BudgetResult(quant="Q8_0", budget="min_prompt_tokens_per_s", limit=30, outcome="not measured",
                     finding="no speed"),
        BudgetResult(quant="Q8_0", budget="max_size", limit=5e9, value=1.17e9, outcome="passed", finding="1.17 GB"),
    )  # fmt: skip
    return GateReport(budgets="default", sha256="ab" * 32, suite="standard", results=results)


def whole() -> Manifest:
    """A release with everything that a card can show."""
    found = manifest_of()
    facts = {"bits_per_weight": 4.9, "probes": 565, "chats": 10}
    verified = found.stages["verify Q4_K_M"].model_copy(update={"facts": facts})
    mixed = {"recipe": "careful", "tensor_types": {"ffn_down": "Q6_K"}, "output_type": "Q8_0"}
    recipe = found.stages["quantize Q8_0"].model_copy(update={"request": {"quant": "Q8_0", **mixed}})
    stages = found.stages | {"verify Q4_K_M": verified, "quantize Q8_0": recipe}
    return with_imatrix(found.model_copy(update={"gate": gate(), "stages": stages}), "Q4_K_M")


def standard(**entry: Any) -> Manifest:
    """The simulated tasks by the metric that the table quotes."""
    words = manifest_of().model_dump_json().replace('"metric":"acc"', '"metric":"acc_norm"')
    manifest = Manifest.model_validate_json(words)
    report = manifest.evaluations["standard"]
    tasks = tuple(TaskEntry(task=task.task, **entry) for task in report.suite.tasks)
    suite = report.suite.model_copy(update={"tasks": tasks})
    return manifest.model_copy(update={"evaluations": {"standard": report.model_copy(update={"suite": suite})}})
