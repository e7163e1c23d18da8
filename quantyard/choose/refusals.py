"""The errors of a choice: no file meets the limits, or a value that the limits need is not known."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantyard.choose.candidates import ChoiceCandidate, ChoiceSet
from quantyard.choose.pick import ChoiceBudget, MissedLimit, missed_choice_limits
from quantyard.errors import BadRequest
from quantyard.formatting.numbers import format_as_written, format_count, format_kld, format_memory, format_speed


def no_candidate_fits(
    choices: ChoiceSet, budget: ChoiceBudget, closest: ChoiceCandidate, helps: Sequence[str]
) -> BadRequest:
    """The error if no file meets the limits."""
    missed = " and ".join(_missed_choice_limit(miss) for miss in missed_choice_limits(closest, budget))
    message = f"No file of {choices.name} meets the limits; the nearest, {closest.quant}, {missed}."
    less = " ".join(_loosened_choice_limit(miss) for miss in missed_choice_limits(closest, budget))
    return BadRequest(message, "\n".join([*helps, f"Relax the limits: {less} allows {closest.quant}."]))


def candidate_memory_unknown(choices: ChoiceSet) -> BadRequest:
    """The error if the context's memory is not known exactly."""
    measured = choices.candidates[0].speed
    context = f"{format_count(choices.use.tokens)} tokens of context"
    what = f"The memory of {context} is not known exactly for {choices.architecture}"
    hint = f"Choose at the context that was measured: CONTEXT_SIZE={measured.n_ctx} PARALLEL=1"
    return BadRequest(f"{what}, so whether a file of {choices.name} fits is not known.", hint)


def choice_needs_divergence(choices: ChoiceSet) -> BadRequest:
    """The error if MAX_KLD was given and no KL divergence was measured."""
    suite = choices.report.suite.name
    message = f"MAX_KLD cannot be checked: the suite {suite} measured no KL divergence of {choices.name}."
    return BadRequest(message, "Measure it with SUITE=standard, or leave MAX_KLD out.")


def _missed_choice_limit(miss: MissedLimit) -> str:
    if miss.what == "RAM":
        value, limit = (format_memory(int(n)) for n in (miss.value, miss.limit))
        return f"takes {value}, more than the {limit} of RAM"
    if miss.what == "MIN_TPS":
        return f"generates {format_speed(miss.value)}, less than MIN_TPS={format_as_written(miss.limit)}"
    return f"has a mean KLD of {format_kld(miss.value)}, more than MAX_KLD={format_as_written(miss.limit)}"


def _loosened_choice_limit(miss: MissedLimit) -> str:
    """The limit that this file would meet, rounded so that it does."""
    if miss.what == "RAM":
        return f"RAM={-(-int(miss.value) // 2**20)}MiB"
    if miss.what == "MIN_TPS":
        return f"MIN_TPS={format_as_written(math.floor(10 * miss.value) / 10)}"
    return f"MAX_KLD={format_as_written(math.ceil(10_000 * miss.value) / 10_000)}"
