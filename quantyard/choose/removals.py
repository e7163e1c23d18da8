"""Why each file was not chosen: reasons with names that a program can read, and a sentence with the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from quantyard.choose.candidates import ChoiceCandidate, ChoiceSet
from quantyard.choose.pick import Choice, ChoiceBudget, MissedLimit, missed_choice_limits
from quantyard.formatting.numbers import format_as_written, format_count, format_kld, format_memory, format_speed
from quantyard.metrics.choice import SILENT_ZONE_NATS, is_equal_quality, is_quality_tie, silent_zone_of
from quantyard.metrics.pareto import pareto_beaten_by, pareto_shown
from quantyard.protocol.removals import Removal


def choice_removals(
    choices: ChoiceSet, budget: ChoiceBudget, choice: Choice | None
) -> Mapping[str, tuple[Removal, ...]]:
    """Quant → the reasons against it, the deciding ones first; every file but the chosen one has at least one."""
    beaten = pareto_beaten_by(c.entry for c in choices.candidates)
    found = {
        c.quant: tuple(_removals_of_candidate(choices, budget, choice, c, beaten[c.quant]))
        for c in choices.candidates if choice is None or c is not choice.best
    }  # fmt: skip
    return found | {quant: (reason,) for quant, reason in choices.left_out.items()}


def _removals_of_candidate(
    choices: ChoiceSet, budget: ChoiceBudget, choice: Choice | None, file: ChoiceCandidate, winners: tuple[str, ...]
) -> Iterator[Removal]:
    missed = missed_choice_limits(file, budget)
    yield from (_missed_limit_removal(miss) for miss in missed)
    if choice is not None and not missed:
        yield _removal_beside_best(choices, file, choice.best)
    for winner in winners:
        yield Removal(name="DOMINATED_BY", other=winner, text="at least as small, as close to the baseline and as fast")


def _missed_limit_removal(miss: MissedLimit) -> Removal:
    if miss.what == "RAM":
        text = f"takes {format_memory(int(miss.value))}; RAM is {format_memory(int(miss.limit))}"
        return Removal(name="TOO_LARGE", text=text)
    shown = format_speed(miss.value) if miss.what == "MIN_TPS" else f"mean KLD {format_kld(miss.value)}"
    return Removal(name="FAILS_BUDGET", text=f"{shown}, and {miss.what}={format_as_written(miss.limit)}")


def _removal_beside_best(choices: ChoiceSet, file: ChoiceCandidate, best: ChoiceCandidate) -> Removal:
    """Why the chosen file is taken and not this one, which meets the limits too."""
    values = f"{choices.metric} " + " against ".join(
        pareto_shown(one.quality.value, choices.metric) for one in (file, best)
    )
    if not is_equal_quality(file, best, silent_zone_of(choices.metric)):
        return Removal(name="FURTHER_THAN", other=best.quant, text=values)
    if file.worst_domain and best.worst_domain and file.worst_domain.low > best.worst_domain.high:
        domains = " against ".join(format_kld(one.value) for one in (file.worst_domain, best.worst_domain))
        return Removal(name="WORSE_DOMAIN_THAN", other=best.quant, text=f"mean KLD in the worst domain {domains}")
    if (file.worse_behaviours or 0) > (best.worse_behaviours or 0):
        n = format_count(file.worse_behaviours or 0)
        return Removal(name="WORSE_BEHAVIOUR_THAN", other=best.quant, text=f"worse than the baseline in {n} behaviours")
    if is_quality_tie(file, best):
        return Removal(name="WITHIN_NOISE_OF", other=best.quant, text=f"{values}: within the interval, and larger")
    zone = f"{values}: up to {format_as_written(SILENT_ZONE_NATS)} divergence predicts no benchmark"
    return Removal(name="SILENT_ZONE_OF", other=best.quant, text=zone)
