"""Evaluation results in the Hub's own forms: `.eval_results/*.yaml`, and `model-index` for older readers.

Only tasks that use a data set of the Hub: results on local questions do not belong on a leaderboard.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from quantyard.card.escaping import clean_card_text
from quantyard.card.subject import CardSubject
from quantyard.hub.files import HUB_URL
from quantyard.protocol.evaluation import TaskEntry
from quantyard.protocol.measurements import Score

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry


@dataclass(frozen=True)
class HubBenchmark:
    """A task of lm-eval that uses exactly one data set of the Hub."""

    task: str
    dataset: str
    task_id: str  # from the data set's eval.yaml; without one, the configuration
    name: str  # the display name
    config: str
    split: str
    metric: str  # the commonly quoted one


# To add a task: add a row. Data set, configuration and split are those of the task's YAML in lm-eval (test_split, else
# validation_split); the id is `tasks[].id` of eval.yaml in the data set's repo.
BENCHMARKS: Final = (
    HubBenchmark("arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "ARC Challenge", "ARC-Challenge", "test",
              "acc_norm"),
    HubBenchmark("arc_easy", "allenai/ai2_arc", "ARC-Easy", "ARC Easy", "ARC-Easy", "test", "acc_norm"),
    HubBenchmark("boolq", "aps/super_glue", "boolq", "BoolQ", "boolq", "validation", "acc"),
    HubBenchmark("commonsense_qa", "tau/commonsense_qa", "default", "CommonsenseQA", "default", "validation", "acc"),
    HubBenchmark("gsm8k", "openai/gsm8k", "gsm8k", "GSM8K", "main", "test", "exact_match,strict-match"),
    HubBenchmark("hellaswag", "Rowan/hellaswag", "default", "HellaSwag", "default", "validation", "acc_norm"),
    HubBenchmark("lambada_openai", "EleutherAI/lambada_openai", "default", "LAMBADA", "default", "test", "acc"),
    HubBenchmark("leaderboard_mmlu_pro", "TIGER-Lab/MMLU-Pro", "mmlu_pro", "MMLU-Pro", "default", "test", "acc"),
    HubBenchmark("mmlu", "cais/mmlu", "all", "MMLU", "all", "test", "acc"),
    HubBenchmark("openbookqa", "allenai/openbookqa", "main", "OpenBookQA", "main", "test", "acc_norm"),
    HubBenchmark("piqa", "baber/piqa", "default", "PIQA", "default", "validation", "acc_norm"),
    HubBenchmark("sciq", "allenai/sciq", "default", "SciQ", "default", "test", "acc_norm"),
    HubBenchmark("truthfulqa_mc1", "truthfulqa/truthful_qa", "multiple_choice", "TruthfulQA MC1", "multiple_choice",
              "validation", "acc"),
    HubBenchmark("truthfulqa_mc2", "truthfulqa/truthful_qa", "multiple_choice", "TruthfulQA MC2", "multiple_choice",
              "validation", "acc"),
    HubBenchmark("winogrande", "allenai/winogrande", "winogrande_xl", "WinoGrande", "winogrande_xl", "validation",
        "acc"),
)  # fmt: skip
_BY_TASK: Final = {row.task: row for row in BENCHMARKS}
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class _Result:
    label: str
    row: HubBenchmark
    score: Score
    entry: TaskEntry

    @property
    def per_cent(self) -> float:
        return round(100 * self.score.result.value, 2)

    @property
    def asked(self) -> str:
        """How the questions were asked."""
        shots = "" if self.entry.num_fewshot is None else f", {self.entry.num_fewshot}-shot"
        limit = "" if self.entry.limit is None else f", a draw of {self.score.n} questions only"
        return clean_card_text(f"{self.label}, {self.score.metric} in %{shots}{limit}")


def card_eval_yaml(subject: CardSubject) -> dict[str, str]:
    """{".eval_results/<task>-<quant>.yaml": text}; one file per score, because a file may hold one score per benchmark.
    A task with a limit is left out: a leaderboard compares whole benchmarks.
    """
    import yaml
    from huggingface_hub import eval_result_entries_to_yaml

    found = {}
    for result in _hub_results(subject) if subject.context.repo_id else ():  # a result refers to its repo
        if result.entry.limit is None:
            path = f".eval_results/{result.row.task}-{_UNSAFE.sub('-', result.label)[:40]}.yaml"
            entries = eval_result_entries_to_yaml([_hub_result_entry(subject, result)])
            found[path] = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=1000)
    return found


def _hub_result_entry(subject: CardSubject, result: _Result) -> EvalResultEntry:
    from huggingface_hub import EvalResultEntry

    assert subject.report
    version = subject.report.versions.get("lm-eval") or subject.report.versions.get("lm_eval", "")
    return EvalResultEntry(
        dataset_id=result.row.dataset, task_id=result.row.task_id, value=result.per_cent, date=_hub_eval_date(subject),
        source_url=f"{HUB_URL}/{subject.context.repo_id}", source_name="Quantyard",
        notes=clean_card_text(f"{result.asked}, lm-eval {version} on llama.cpp".replace("lm-eval  ", "lm-eval ")),
    )  # fmt: skip


def _hub_eval_date(subject: CardSubject) -> str | None:
    """When this suite's last task ended."""
    found = [stage.finished_at for _, stage in subject.stages("evaluate")]
    return max(found).date().isoformat() if found else None


def card_model_index(subject: CardSubject) -> list[EvalResult]:
    """One result per task, one metric per file."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation", dataset_type=result.row.dataset, dataset_name=result.row.name,
            dataset_config=result.row.config, dataset_split=result.row.split, metric_type=_hub_metric(result.score),
            metric_value=result.per_cent, metric_name=result.asked,
        )
        for result in _hub_results(subject)
    ]  # fmt: skip


def _hub_metric(score: Score) -> str:
    return score.metric.split(",", maxsplit=1)[0]


def _hub_results(subject: CardSubject) -> Iterator[_Result]:
    """The results in the order of the suite; none for a suite with local tasks, which may reuse a benchmark's name."""
    if subject.report is None or subject.report.suite.include_path is not None:
        return
    for entry in subject.report.suite.tasks:
        row = _BY_TASK.get(entry.task)
        for label, measured in subject.measured.items() if row else ():
            score = next((s for s in measured.scores if (s.task, s.metric) == (entry.task, row and row.metric)), None)
            if row and score:
                yield _Result(label, row, score, entry)
