"""The figures of behaviours, each formatted once, for report, terminal, page and card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from quantyard.formatting import numbers
from quantyard.formatting.numbers import DASH, FormattedNumber, format_digits
from quantyard.metrics.verdicts import open_verdict_note
from quantyard.protocol.behaviour import BehaviourName
from quantyard.protocol.estimates import Interval
from quantyard.protocol.measurements import BehaviourScore, EvalReport, Measurement, Verdict

# What each kind of scenario asks. To add a kind: add a row.
BEHAVIOUR_TITLES: Final[Mapping[BehaviourName, str]] = {
    "tool_calls": "tool calls", "instructions": "instructions", "structured_output": "structured output",
    "grounded_answers": "grounded answers", "reasoning": "reasoning",
}  # fmt: skip


@dataclass(frozen=True)
class BehaviourCell:
    """The text of a figure, its interval or what explains it, and its value."""

    text: str
    note: str = ""
    value: float | None = None

    def __str__(self) -> str:
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True)
class BehaviourFigure:
    """One figure: the head of its column, what it means, and its cell."""

    name: str
    help: str
    cell: Callable[[BehaviourScore], BehaviourCell]
    is_text: bool = False


@dataclass(frozen=True)
class BehaviourFigures:
    """The figures of one file in one kind."""

    label: str
    title: str
    score: BehaviourScore

    @property
    def cells(self) -> tuple[BehaviourCell, ...]:
        """One for each of `BEHAVIOUR_FIGURES`."""
        return tuple(figure.cell(self.score) for figure in BEHAVIOUR_FIGURES)

    @property
    def verdict(self) -> Verdict | None:
        """None for the baseline."""
        return self.score.comparison.verdict if self.score.comparison else None


def behaviour_rows(measurements: Sequence[Measurement]) -> tuple[BehaviourFigures, ...]:
    """Every kind on every file: the kinds in their order, and of each the files in theirs."""
    names = dict.fromkeys(score.suite for m in measurements for score in m.behaviours)
    return tuple(
        BehaviourFigures(m.file.label, BEHAVIOUR_TITLES[score.suite], score)
        for name in names for m in measurements for score in m.behaviours if score.suite == name
    )  # fmt: skip


def behaviours_left_out(report: EvalReport) -> Iterator[str]:
    """Why the behaviours of a file are not told: "behaviour of BF16: it has no chat template"."""
    reasons: dict[str, list[str]] = {}
    for m in report.measurements:
        if m.no_behaviours:
            reasons.setdefault(m.no_behaviours, []).append(m.file.label)
    for reason, labels in reasons.items():
        yield f"behaviour of {', '.join(labels)}: {reason}"


def behaviour_variance_sentence(measurements: Sequence[Measurement]) -> str:
    """How much of the variance of sampled answers is luck, without a stop; "" where nothing was sampled."""
    told = []
    for row in behaviour_rows(measurements[:1]):
        between, within = row.score.question_variance, row.score.seed_variance
        if between is not None and within is not None and between + within > 0:
            share = numbers.format_percent(within / (between + within), 0)
            told.append(f"{share} of the variance of an answer to {row.title} lies between its seeds")
    return "; ".join(told)


def behaviour_length(found: Interval) -> FormattedNumber:
    """A number of tokens with its interval: "84.2 (71.0 to 97.4)"."""
    value, low, high = (format_digits(x) for x in (found.value, found.low, found.high))
    return FormattedNumber(value, low.replace("-", numbers.MINUS), high)


def _written_cell(written: FormattedNumber, value: float) -> BehaviourCell:
    return BehaviourCell(written.value, written.ends, value)


def _accuracy_cell(score: BehaviourScore) -> BehaviourCell:
    return _written_cell(numbers.format_score_interval(score.accuracy, "share"), score.accuracy.value)


def _accuracy_delta_cell(score: BehaviourScore) -> BehaviourCell:
    if score.comparison is None:
        return BehaviourCell(DASH)
    delta = score.comparison.delta
    return _written_cell(numbers.format_delta_interval(delta, "share"), delta.value)


def _verdict_cell(score: BehaviourScore) -> BehaviourCell:
    found = score.comparison
    return BehaviourCell(found.verdict, open_verdict_note(found)) if found else BehaviourCell(DASH)


def _length_cell(score: BehaviourScore) -> BehaviourCell:
    return BehaviourCell(behaviour_length(score.length).value, value=score.length.value)


def _length_delta_cell(score: BehaviourScore) -> BehaviourCell:
    delta = score.length_delta
    if delta is None:
        return BehaviourCell(DASH)
    value, low, high = (numbers.format_signed(x, 1) for x in (delta.value, delta.low, delta.high))
    return _written_cell(FormattedNumber(value, low, high), delta.value)


def _share_cell(found: Interval, delta: Interval | None) -> BehaviourCell:
    """A share, and its difference from the baseline with the interval."""
    note = str(numbers.format_delta_interval(delta, "share")) if delta else ""
    note = note.replace(" (", ", ").removesuffix(")")
    return BehaviourCell(numbers.format_percent(found.value), note, found.value)


# To add a figure: its field in `protocol.measurements.BehaviourScore`, and a row.
BEHAVIOUR_FIGURES: Final = (
    BehaviourFigure("questions", "each counts once, however many answers it has",
                    lambda score: BehaviourCell(numbers.format_count(score.n), value=score.n)),
    BehaviourFigure("right", "share of right answers, with the 95 % interval", _accuracy_cell),
    BehaviourFigure("Δ right", "difference from the baseline in points, with the 95 % interval", _accuracy_delta_cell),
    BehaviourFigure("verdict", "the conclusion, corrected for all comparisons of the report", _verdict_cell,
                    is_text=True),
    BehaviourFigure("length", "mean tokens of an answer, thoughts included", _length_cell),
    BehaviourFigure("Δ length", "difference from the baseline in tokens, with the 95 % interval", _length_delta_cell),
    BehaviourFigure("unfinished", "share of answers cut off at their limit; below, the difference in points",
                    lambda score: _share_cell(score.unfinished, score.unfinished_delta)),
    BehaviourFigure("loops", "share of answers that end in a text that repeats itself; below, the difference in points",
                    lambda score: _share_cell(score.loops, score.loop_delta)),
)  # fmt: skip
