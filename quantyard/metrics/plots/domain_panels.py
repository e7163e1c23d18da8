"""The layout of the plot of divergence by domain: one panel per file, one row per domain, the worst marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from quantyard.formatting import numbers
from quantyard.metrics.domain_figures import domain_name, worst_domain
from quantyard.metrics.plots.axes import CHAR_PX, AxisScale, plot_axis_span, shorten_plot_name
from quantyard.metrics.plots.panels import MAX_PANELS, NARROW_PX, ROW_PX, PanelRow, PlotPanel, PlotSpot, PlottedFile

_NOTE: Final = "log scale · lower is better"
_WORST_MARK: Final = "down"
Klds = Mapping[str, tuple[float, float]]  # domain → mean and p99, nats


def plot_domains(files: Sequence[PlottedFile]) -> tuple[PlotPanel, ...]:
    """Mean and p99 of the KL divergence on each domain. All panels have one scale, and the domains in one order: that
    with the largest mean of any file first.
    """
    found = [(s, klds) for s in files if (klds := _domain_klds(s))][:MAX_PANELS]
    if not found:
        return ()
    largest: dict[str, float] = {}
    for _, klds in found:
        for name, (mean, _) in klds.items():
            largest[name] = max(mean, largest.get(name, 0.0))
    order = sorted(largest, key=lambda name: (-largest[name], name))
    left = min(118.0, max(48.0, CHAR_PX * max(len(domain_name(name)) for name in order) + 14))
    ends = [end for _, klds in found for both in klds.values() for end in both]
    x = AxisScale(*plot_axis_span(ends, 0.04, log=True), left, NARROW_PX - 62, log=True)
    return tuple(_domain_panel(s, klds, [name for name in order if name in klds], x) for s, klds in found)


def _domain_klds(s: PlottedFile) -> Klds:
    """What a log scale can show."""
    found = s.found.domains.domains if s.found and s.found.domains else ()
    both = {one.domain: (one.mean_kld.value, one.kld_p99) for one in found if one.mean_kld and one.kld_p99}
    return {name: (mean, p99) for name, (mean, p99) in both.items() if mean > 0}


def _domain_panel(s: PlottedFile, klds: Klds, names: Sequence[str], x: AxisScale) -> PlotPanel:
    worst = worst_domain(s.found.domains if s.found else None)
    rows = tuple(
        _domain_row(s, name, klds[name], ROW_PX * (at + 0.5) + 4, x, is_worst=bool(worst and worst.domain == name))
        for at, name in enumerate(names)
    )
    height = ROW_PX * len(rows) + 32
    return PlotPanel(s.label, _NOTE, "nats per token", NARROW_PX, height, x.start, x.end, x.ticks(5), rows)


def _domain_row(
    s: PlottedFile, domain: str, klds: tuple[float, float], y: float, x: AxisScale, *, is_worst: bool
) -> PanelRow:
    """The mark is the mean; the line reaches from there to p99."""
    name, (mean, p99) = domain_name(domain), klds
    shown = numbers.format_kld(mean)
    said = (s.label, f"{name}{', the worst' * is_worst}", f"mean KLD {shown} nats", f"p99 {numbers.format_kld(p99)}")
    spot = PlotSpot(s.number, x(mean), y, x(min(mean, p99)), x(max(mean, p99)), said)
    mark = _WORST_MARK if is_worst else "plain"
    return PanelRow(shorten_plot_name(name, x.start - 10), shown, NARROW_PX - 2, spot, mark)
