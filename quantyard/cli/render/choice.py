"""The output of `choose`: a table and sentences for the terminal, and JSON."""

from __future__ import annotations

import math
from typing import Final

from quantyard.choose.cache_choice import cache_cost_sentence
from quantyard.choose.candidates import ChoiceCandidate, ChoiceSet, choice_eval_command
from quantyard.choose.pick import Choice, ChoiceBudget, candidate_half_width, missed_choice_limits
from quantyard.choose.removals import choice_removals
from quantyard.cli.render.styled import escape_rich_markup
from quantyard.cli.render.tables import FittedTable
from quantyard.formatting.columns import format_columns
from quantyard.formatting.numbers import (
    DASH,
    format_as_written,
    format_change_interval,
    format_count,
    format_delta_interval,
    format_file_size,
    format_kld_interval,
    format_memory,
    format_rough_percent,
    format_speed,
)
from quantyard.metrics.choice import SILENT_ZONE_NATS, is_quality_tie
from quantyard.metrics.intervals import estimate_interval, interval_difference, mapped_interval
from quantyard.metrics.pareto import pareto_beaten_by
from quantyard.protocol.estimates import Interval

_SHORT: Final = {"RAM": "above RAM", "MIN_TPS": "below MIN_TPS", "MAX_KLD": "above MAX_KLD"}


def terminal_choice_table(choices: ChoiceSet, budget: ChoiceBudget, choice: Choice | None) -> FittedTable:
    """Every measured file, the largest first, with its result."""
    table = FittedTable(("file", "size", "memory", choices.metric, "generated", ""), words=("",))
    beaten = pareto_beaten_by(c.entry for c in choices.candidates)
    for found in _render_largest_first(choices):
        cells = (
            format_file_size(found.size_bytes),
            _render_candidate_memory(found),
            _render_candidate_quality(choices, found),
            _render_candidate_speed(found),
        )
        table.add_row(
            escape_rich_markup(found.quant),
            *cells,
            escape_rich_markup(_render_candidate_fate(found, budget, choice, beaten[found.quant])),
        )
    return table


def terminal_choice(choices: ChoiceSet, budget: ChoiceBudget, choice: Choice, model: str) -> str:
    """The chosen file, the reason, and the runner-up."""
    reason = choice_reason(choices, choice)
    facts = [
        ("Take", f"[bold]{escape_rich_markup(choice.best.quant)}[/]: {escape_rich_markup(reason)}"),
        ("", escape_rich_markup(str(choice.best.path))),
        ("Runner-up", escape_rich_markup(_render_runner_up(choices, choice))),
    ]
    return format_columns(
        [
            *facts,
            _render_pareto_front(choices),
            *_render_choice_conditions(choices, budget),
            *terminal_choice_notes(choices, budget, choice, model),
        ]
    )


def terminal_choice_line(choices: ChoiceSet, budget: ChoiceBudget, choice: Choice) -> str:
    """The chosen file and the reason, in one line."""
    use = f"{format_memory(budget.memory_bytes)} of memory and {format_count(choices.use.tokens)} tokens of context"
    return f"{choice.best.quant} with {use}: {choice_reason(choices, choice)}"


def terminal_choice_notes(
    choices: ChoiceSet, budget: ChoiceBudget, choice: Choice | None, model: str
) -> list[tuple[str, str]]:
    """Notes on the choice, and the files that were left out."""
    said = [("Note", escape_rich_markup(text)) for text in _render_choice_limits(choices, budget, choice)]
    for quant, reasons in (choice_removals(choices, budget, choice) if choice else {}).items():
        if quant not in choices.others:
            told = "; ".join(f"{one.name}{f' {one.other}' if one.other else ''}: {one.text}" for one in reasons)
            said.append(("Not taken", escape_rich_markup(f"{quant}: {told}")))
    for quant, why in choices.others.items():
        said.append(("Left out", escape_rich_markup(f"{quant} {why}")))
    if choices.others:
        said.append(("", escape_rich_markup(f"Measure all of them: {choice_eval_command(choices, model)}")))
    return said


def terminal_choice_conditions(choices: ChoiceSet, budget: ChoiceBudget) -> str:
    """The conditions under which the numbers of the table hold."""
    return format_columns([_render_pareto_front(choices), *_render_choice_conditions(choices, budget)])


def _render_largest_first(choices: ChoiceSet) -> list[ChoiceCandidate]:
    return sorted(choices.candidates, key=lambda c: -c.size_bytes)


# ---- cells -------------------------------------------------------------------------------------------


def _render_candidate_memory(found: ChoiceCandidate) -> str:
    return DASH if found.memory_bytes is None else format_memory(found.memory_bytes)


def _render_candidate_quality(choices: ChoiceSet, found: ChoiceCandidate) -> str:
    if choices.metric != "ΔPPL":
        return str(format_kld_interval(estimate_interval(found.quality)))
    change = mapped_interval(estimate_interval(found.quality), math.expm1)
    return DASH if change is None else str(format_change_interval(change))


def _render_candidate_speed(found: ChoiceCandidate) -> str:
    return format_speed(found.tokens_per_s)


def _render_candidate_fate(
    found: ChoiceCandidate, budget: ChoiceBudget, choice: Choice | None, winners: tuple[str, ...]
) -> str:
    if choice and found is choice.best:
        return "the choice"
    if choice and found is choice.runner_up:
        return "runner-up"
    said = [_SHORT[miss.what] for miss in missed_choice_limits(found, budget)]
    said += [f"beaten by {', '.join(winners)}"] if winners else []
    return "; ".join(said) or "on the front"


# ---- sentences ---------------------------------------------------------------------------------------


def choice_reason(choices: ChoiceSet, choice: Choice) -> str:
    """Why this file, in one sentence."""
    best, n = choice.best, len(choice.fitting)
    if n == 1:
        return f"the only file that meets the limits; {choices.metric} {_render_candidate_quality(choices, best)}"
    if not choice.equal:
        quality = _render_candidate_quality(choices, best)
        return f"the best of {n} files that meet the limits; {choices.metric} {quality}"
    better = " and ".join(c.quant for c in choice.equal)
    verb = "are" if len(choice.equal) > 1 else "is"
    taken = {"behaviours": "the one that behaves better", "worst domain": "the one with the better worst domain"}.get(
        choice.decided_by, "the smaller"
    )
    if all(is_quality_tie(c, best) for c in choice.equal):
        gap = _render_quality_gap(choices, choice.equal[0], best)
        return f"{better} {verb} better by less than the interval: {gap}; take {taken}"
    zone = f"up to {format_as_written(SILENT_ZONE_NATS)} divergence says nothing about benchmarks"
    values = ", ".join(f"{c.quant} {_render_candidate_quality(choices, c)}" for c in (*choice.equal, best))
    return f"{zone} ({choices.metric}: {values}); take {taken}"


def _render_quality_gap(choices: ChoiceSet, one: ChoiceCandidate, other: ChoiceCandidate) -> str:
    found = interval_difference(one.quality, other.quality)
    better = Interval(value=-found.value, low=-found.high, high=-found.low)
    if choices.metric != "ΔPPL":
        return str(format_delta_interval(better, "own unit"))
    change = mapped_interval(better, math.expm1)
    return DASH if change is None else str(format_change_interval(change))


def _render_runner_up(choices: ChoiceSet, choice: Choice) -> str:
    other, best = choice.runner_up, choice.best
    if other is None:
        return "none: no other file meets the limits"
    size, speed = other.size_bytes / best.size_bytes - 1, other.tokens_per_s / best.tokens_per_s - 1
    within = (other.speed.generated_spread + best.speed.generated_spread) / 2 > abs(speed)  # the runs overlap
    parts = [
        f"{format_rough_percent(abs(size))} {'larger' if size > 0 else 'smaller'}",
        f"{format_rough_percent(abs(speed))} {'faster' if speed > 0 else 'slower'}"
        + (", within the spread" if within else ""),
        f"{choices.metric} {_render_candidate_quality(choices, other)}"
        + (", a tie" if is_quality_tie(other, best) else ""),
    ]
    return f"{other.quant}: {'; '.join(parts)}"


def _render_pareto_front(choices: ChoiceSet) -> tuple[str, str]:
    beaten = pareto_beaten_by(c.entry for c in choices.candidates)
    names = [c.quant for c in _render_largest_first(choices) if not beaten[c.quant]]
    return "Front", escape_rich_markup(
        f"{', '.join(names)}: no other file is at least as small, as accurate and as fast"
    )


def _render_choice_conditions(choices: ChoiceSet, budget: ChoiceBudget) -> list[tuple[str, str]]:
    use, speed = choices.use, choices.candidates[0].speed
    at_once = f"{use.sequences} {'requests' if use.sequences > 1 else 'request'} at once"
    kinds = sorted({c.context_bytes for c in choices.candidates if c.context_bytes is not None})
    cache = f"; its cache takes {format_memory(kinds[0])} of the memory" if kinds else ""
    cpu = choices.report.hardware.get("cpu", "an unknown CPU")
    where = f"suite {choices.report.suite.name} on {cpu}, {speed.threads} threads"
    gpu = f", {speed.n_gpu_layers} layers on the GPU" if speed.n_gpu_layers else ""
    cached = [("KV cache", escape_rich_markup(_render_cache_type(choices)))] if choices.cache_type != "f16" else []
    return [
        *cached,
        ("Context", escape_rich_markup(f"{format_count(use.tokens)} tokens, {at_once}{cache}")),
        ("RAM", escape_rich_markup(f"{format_memory(budget.memory_bytes)}, {budget.memory_reason}")),
        ("Measured", escape_rich_markup(f"{where}{gpu}; other machines have other speeds")),
    ]


def _render_cache_type(choices: ChoiceSet) -> str:
    """What the type of the cache costs each file, as measured."""
    costs = (f"{c.quant} {cache_cost_sentence(c.cache)}" for c in _render_largest_first(choices) if c.cache)
    return f"{choices.cache_type}: {'; '.join(costs)}"


def _render_choice_limits(choices: ChoiceSet, budget: ChoiceBudget, choice: Choice | None) -> list[str]:
    said = []
    if choices.trained_context and choices.use.tokens > choices.trained_context:
        trained = format_count(choices.trained_context)
        said.append(f"the model was trained on {trained} tokens; quality beyond them is not known")
    if (
        choice
        and budget.max_kld is not None
        and choice.best.served_kld + candidate_half_width(choice.best) > budget.max_kld
    ):
        said.append(f"the interval of {choice.best.quant} reaches beyond MAX_KLD={format_as_written(budget.max_kld)}")
    return said


# ---- for programs ------------------------------------------------------------------------------------
