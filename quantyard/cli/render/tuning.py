"""The output of `tune`: its tables and its result."""

from __future__ import annotations

from collections.abc import Sequence

from quantyard.cli.render.tables import FittedTable
from quantyard.formatting import numbers
from quantyard.tune.goal import TuningGain, TuningGoal
from quantyard.tune.knapsack import TypeMix
from quantyard.tune.sensitivity import Sensitivity


def terminal_tensor_groups(found: Sequence[Sensitivity], mix: TypeMix) -> FittedTable:
    """Each group: its weights, its divergence at low precision, and its type; the most sensitive first."""
    table = FittedTable(("group", "weights", "KLD when low", "a weight (1e-9)", "type"), words=("type",))
    rows = sorted(zip(found, mix.types, strict=True), key=lambda row: -row[0].kld / row[0].group.n_params)
    for one, kind in rows:
        n = one.group.n_params
        table.add_row(
            one.group.name,
            numbers.format_weight_count(n),
            numbers.format_kld(one.kld),
            numbers.format_kld(one.kld / n * 1e9),
            kind,
        )
    return table


def terminal_tuned_files(gain: TuningGain) -> FittedTable:
    """Both files on the held-out text."""
    table = FittedTable(("file", "size", "mean KLD", "95 % interval", "p99 KLD", "same top token"))
    for one in (gain.tuned, gain.stock):
        found, agreement = one.divergence, one.divergence.top1_agreement
        table.add_row(
            one.quant, numbers.format_exact_bytes(one.size_bytes), numbers.format_kld(one.kld.value),
            numbers.format_kld_interval(one.kld).ends, numbers.format_kld(found.kld_percentiles.get("99", 0.0)),
            numbers.format_percent(agreement.value) if agreement else "",
        )
    return table


def terminal_tuning_gain(gain: TuningGain, goal: TuningGoal, mix: TypeMix) -> str:
    """The result, in sentences."""
    tuned, stock, relative = gain.tuned, gain.stock, gain.relative
    change = numbers.format_change_interval(relative)
    smaller = 1 - tuned.size_bytes / stock.size_bytes
    size = f"{numbers.format_rough_percent(abs(smaller))} {'smaller' if smaller >= 0 else 'larger'} than"
    lines = [
        f"Goal: {goal.text}. {tuned.quant} has {numbers.format_bytes(tuned.size_bytes)}, {size} {stock.quant}.",
        f"Mean KLD on text that the search has not read: {gain.verdict}, {change} against {stock.quant}.",
        f"Expected from the groups, on the text of the search: {numbers.format_kld(mix.kld)}.",
    ]
    if goal.kld is not None and tuned.kld.value > goal.kld:
        lines.append(
            f"On the held-out text it misses the goal of {numbers.format_kld(goal.kld)}: the two texts differ."
        )
    return "\n".join(lines)
