"""How a file that was made with another llama.cpp compares with the recorded one."""

from quantyard.metrics.intervals import interval_difference
from quantyard.metrics.pareto import pareto_metric, pareto_quality
from quantyard.protocol.base import Frozen, Sha256
from quantyard.protocol.estimates import Interval
from quantyard.protocol.measurements import Comparison, EvalReport, Measurement

_ROUNDING = 1e-9  # a difference of divergences below it is that of summation


class MetricChange(Frozen):
    """One file with the recorded llama.cpp and with another one.

    Attributes:
        sha256: of the new file; "" if it could not be made.
        same_bytes: whether the two files are equal; then nothing was measured.
        quality: the change of the divergence (or what stands for it, `metric`), new less recorded; null: not measured.
        is_further: whether the new file is further from the baseline beyond chance.
        comparisons: each task, the new file against the recorded one, question by question.
        generated_ratio, prompt_ratio: speeds, new over recorded; null: not measured on like machines.
    """

    quant: str
    recorded_sha256: Sha256
    sha256: str
    same_bytes: bool
    size_bytes: int | None = None
    recorded_size_bytes: int | None = None
    metric: str = ""
    quality: Interval | None = None
    is_further: bool = False
    comparisons: tuple[Comparison, ...] = ()
    generated_ratio: float | None = None
    prompt_ratio: float | None = None

    @property
    def worse_tasks(self) -> tuple[str, ...]:
        """The tasks on which it is worse."""
        return tuple(f"{c.task} {c.metric}" for c in self.comparisons if c.verdict == "worse")

    @property
    def is_worse(self) -> bool:
        """Whether it is further from the baseline, or worse in a task, beyond chance, or could not be made. Speeds do
        not count: they depend on what else the machine does.
        """
        return self.is_further or bool(self.worse_tasks) or not self.sha256


def file_change(
    quant: str, recorded_sha256: str, sha256: str, report: EvalReport | None, recorded_label: str,
    pair: EvalReport | None,
) -> MetricChange:
    """The change of one file.

    Args:
        sha256: of the new file; "" if it could not be made.
        report: on new and recorded files beside the new baseline; None if nothing was measured.
        recorded_label: of the recorded file in that report.
        pair: the report with the recorded file as the baseline.
    """
    same = sha256 == recorded_sha256
    change = MetricChange(quant=quant, recorded_sha256=recorded_sha256, sha256=sha256, same_bytes=same)
    new, old = (_measurement_in_report(report, label) for label in (quant, recorded_label))
    if report is None or new is None or old is None:
        return change
    metric = pareto_metric(report)
    qualities = [pareto_quality(report, found, metric) for found in (new, old)]
    quality = interval_difference(qualities[0], qualities[1]) if qualities[0] and qualities[1] else None
    compared = _measurement_in_report(pair, quant)
    return change.model_copy(update={
        "size_bytes": new.file.size_bytes, "recorded_size_bytes": old.file.size_bytes, "metric": metric,
        "quality": quality, "is_further": quality is not None and quality.low > _ROUNDING,
        "comparisons": compared.comparisons if compared else (), **_speed_ratios_of_change(new, old),
    })  # fmt: skip


def _measurement_in_report(report: EvalReport | None, label: str) -> Measurement | None:
    return next((m for m in report.measurements if m.file.label == label), None) if report else None


def _speed_ratios_of_change(new: Measurement, old: Measurement) -> dict[str, float | None]:
    classes = {m.speed.node_class for m in (new, old) if m.speed and m.speed.node_class}
    if new.speed is None or old.speed is None or len(classes) > 1:
        return {"generated_ratio": None, "prompt_ratio": None}
    return {
        "generated_ratio": new.speed.generated_tokens_per_s / old.speed.generated_tokens_per_s,
        "prompt_ratio": new.speed.prompt_tokens_per_s / old.speed.prompt_tokens_per_s,
    }
