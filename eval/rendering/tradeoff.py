"""The plot of size against quality: what a smaller file costs, and which files are on the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.ticker import MaxNLocator

from eval.rendering.style import (
    BASELINE,
    Mark,
    Theme,
    label_plot_points,
    new_plot_figure,
    plot_headline,
    plot_plain_log_axis,
)
from quantyard.formatting.numbers import format_digits
from quantyard.metrics.headline_metrics import headline_scores
from quantyard.metrics.intervals import Z
from quantyard.metrics.pareto import ParetoEntry, pareto_beaten_by
from quantyard.protocol.measurements import EvalReport, Measurement, Score

_FRONT, _BEATEN = Mark("o", "blue"), Mark("o", "muted", hollow=True)
_MAX_BESIDE_BASELINE: Final = 3
_READ: Final = "Left is smaller. The line joins the files no other beats in size, quality and speed. Hollow: beaten."


@dataclass(frozen=True)
class TradeoffPoint:
    """One file: its size, its quality with the ends of the interval, and how fast it generates."""

    label: str
    size: float
    value: float
    low: float
    high: float
    tokens_per_s: float | None
    is_baseline: bool = False


def is_accuracy_score(score: Score) -> bool:
    """Whether a score is an accuracy: between 0 and 1, higher is better."""
    return score.higher_is_better and 0 <= score.result.low <= score.result.high <= 1


def plot_tradeoff_front(points: Sequence[TradeoffPoint], lower_is_better: bool) -> list[TradeoffPoint]:
    """The points that no other beats in size, quality and speed, from small to large."""
    sign = 1 if lower_is_better else -1
    beaten = pareto_beaten_by(ParetoEntry(p.label, p.size, sign * p.value, p.tokens_per_s) for p in points)
    return sorted((p for p in points if not beaten[p.label]), key=lambda p: (p.size, sign * p.value))


def draw_tradeoff_plot(report: EvalReport, theme: Theme) -> Any:
    """Size against mean KL divergence (or the change of perplexity), and against mean accuracy if there is one."""
    panels = [panel for panel in (_divergence_points(report), _accuracy_points(report)) if panel]
    if not panels or not all(m.file.size_bytes for m in report.measurements):
        return None
    figure = new_plot_figure(max(7.0, 5.2 * len(panels)), 4.9)
    figure.subplots(1, len(panels))
    for axes, (points, name, lower_is_better, log) in zip(figure.axes, panels, strict=True):
        _panel(axes, theme, points, lower_is_better, log)
        axes.set_title(name)
        axes.set_xlabel(f"size, {_scale(report)[1]}")
    subtitle = f"{_READ} Bars: 95 % intervals, of accuracy those of the difference from {report.baseline}."
    plot_headline(figure, theme, f"{report.title}: size against quality", subtitle)
    for axes, (points, _, lower_is_better, _) in zip(figure.axes, panels, strict=True):
        _label(axes, theme, points, lower_is_better, _scale(report)[1])
    return figure


_Panel = tuple[list[TradeoffPoint], str, bool, bool]  # points, title, lower is better, log scale


def _scale(report: EvalReport) -> tuple[float, str]:
    return (1e9, "GB") if max(m.file.size_bytes for m in report.measurements) >= 2e9 else (1e6, "MB")


def _divergence_points(report: EvalReport) -> _Panel | None:
    """Points of mean KLD if two files have one above 0; else of the change of perplexity, with the baseline at 0."""
    unit = _scale(report)[0]
    klds = [
        TradeoffPoint(m.file.label, m.file.size_bytes / unit, k.value, max(k.value - Z * k.stderr, k.value / 10),
              k.value + Z * k.stderr, _speed(m))
        for m in report.measurements if m.divergence and (k := m.divergence.mean_kld) and k.value > 0
    ]  # fmt: skip
    if len(klds) > 1:
        return klds, "Mean KL divergence, nats per token", True, True
    changes = [
        TradeoffPoint(m.file.label, m.file.size_bytes / unit, _change(r.value), _change(r.value - Z * r.stderr),
              _change(r.value + Z * r.stderr), _speed(m))
        for m in report.measurements if m.divergence and (r := m.divergence.ln_perplexity_ratio)
    ]  # fmt: skip
    first = report.measurements[0]
    others = [p for p in changes if p.label != first.file.label]
    baseline = TradeoffPoint(
        first.file.label, first.file.size_bytes / unit, 0.0, 0.0, 0.0, _speed(first), is_baseline=True
    )
    return ([baseline, *others], "Change of perplexity, %", True, False) if others else None


def _change(ln_ratio: float) -> float:
    return 100 * math.expm1(ln_ratio)


def _accuracy_points(report: EvalReport) -> _Panel | None:
    """Mean accuracy over the tasks with a signal; the bars are of the difference from the baseline."""
    first, *others = report.measurements
    noise = {(c.task, c.metric) for m in others for c in m.comparisons if c.verdict == "no signal"}
    shown = [
        s
        for s in headline_scores(report.suite, first.scores)
        if is_accuracy_score(s) and (s.task, s.metric) not in noise
    ]
    if not shown or not others:
        return None
    unit, base = _scale(report)[0], sum(s.result.value for s in shown) / len(shown)
    score = (100 * base,) * 3
    start = TradeoffPoint(first.file.label, first.file.size_bytes / unit, *score, _speed(first), is_baseline=True)
    points = [_accuracy_point(m, {(s.task, s.metric) for s in shown}, base, unit) for m in others]
    known = [point for point in points if point]
    name = f"Mean accuracy over {len(shown)} task{'s' * (len(shown) > 1)}, %"
    return ([start, *known], name, False, False) if known else None


def _accuracy_point(m: Measurement, shown: set[tuple[str, str]], base: float, unit: float) -> TradeoffPoint | None:
    """The mean difference over the tasks; their intervals are combined by MOVER (Zou and Donner, 2008)."""
    deltas = [c.delta for c in m.comparisons if (c.task, c.metric) in shown]
    if len(deltas) < len(shown):
        return None
    value = base + sum(d.value for d in deltas) / len(deltas)
    below = math.sqrt(sum((d.value - d.low) ** 2 for d in deltas)) / len(deltas)
    above = math.sqrt(sum((d.high - d.value) ** 2 for d in deltas)) / len(deltas)
    score = (100 * value, 100 * (value - below), 100 * (value + above))
    return TradeoffPoint(m.file.label, m.file.size_bytes / unit, *score, _speed(m))


def _speed(m: Measurement) -> float | None:
    return m.speed.generated_tokens_per_s if m.speed else None


def _panel(axes: Any, theme: Theme, points: Sequence[TradeoffPoint], lower_is_better: bool, log: bool) -> None:
    inside = _inside(points)
    best = plot_tradeoff_front(inside, lower_is_better)
    axes.plot([p.size for p in best], [p.value for p in best], color=theme.blue, linewidth=1.2, alpha=0.6, zorder=1)
    for point in inside:
        mark = BASELINE if point.is_baseline else _FRONT if point in best else _BEATEN
        colour = getattr(theme, mark.colour)
        axes.vlines(point.size, point.low, point.high, color=colour, linewidth=1.4, zorder=2)
        axes.plot(point.size, point.value, linestyle="none", zorder=3, **mark.style(theme))
    for point in points:
        if point.is_baseline:
            axes.axhline(point.value, color=theme.muted, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
    axes.margins(0.14, 0.12)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if log:
        axes.set_yscale("log")
        plot_plain_log_axis(axes.yaxis)


def _inside(points: Sequence[TradeoffPoint]) -> list[TradeoffPoint]:
    """The points to draw. With many files the baseline, much larger, is only a line, so that the others spread out."""
    return [p for p in points if not p.is_baseline or len(points) <= _MAX_BESIDE_BASELINE]


def _label(axes: Any, theme: Theme, points: Sequence[TradeoffPoint], lower_is_better: bool, unit: str) -> None:
    """Write names beside the points, clear of bars and lines; a baseline that is only a line is named at its end."""
    inside, ends = _inside(points), axes.get_xlim()
    names = [(p.size, p.value, p.label) for p in inside]
    names += [(ends[1], p.value, f"{p.label}, {format_digits(p.size)} {unit}") for p in points if p not in inside]
    lines = [[(p.size, p.low), (p.size, p.high)] for p in inside]
    lines.append([(p.size, p.value) for p in plot_tradeoff_front(inside, lower_is_better)])
    lines += [[(end, p.value) for end in ends] for p in points if p.is_baseline]
    label_plot_points(axes, theme, names, lines)
