"""The errors of a choice: no file meets the limits, or what they are about is not known."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantyard.choose.candidates import Candidate, ChoiceSet
from quantyard.choose.pick import Budget, Miss, misses
from quantyard.errors import BadRequest
from quantyard.formatting.numbers import digits, human_bytes


def nothing_fits(field: ChoiceSet, budget: Budget, closest: Candidate, helps: Sequence[str]) -> BadRequest:
    """The error where no file keeps the budget."""
    missed = " and ".join(_missed(miss) for miss in misses(closest, budget))
    message = f"No file of {field.name} keeps the budget; the nearest, {closest.quant}, {missed}."
    less = " ".join(_loosened(miss) for miss in misses(closest, budget))
    return BadRequest(message, "\n".join([*helps, f"Ask for less: {less} takes {closest.quant}."]))


def unknown_memory(field: ChoiceSet) -> BadRequest:
    """The error where the context's memory is not known exactly."""
    measured = field.candidates[0].speed
    what = f"The memory of {field.use.tokens:,} tokens of context is not known exactly for {field.architecture}"
    hint = f"Choose at the context that was measured: CONTEXT_SIZE={measured.n_ctx} PARALLEL=1"
    return BadRequest(f"{what}, so whether a file of {field.name} fits is not known.", hint)


def no_divergence(field: ChoiceSet) -> BadRequest:
    """The error where MAX_KLD has nothing to be held against."""
    what = f"MAX_KLD cannot be kept: the suite {field.report.suite.name} measured no KL divergence of {field.name}"
    return BadRequest(f"{what}.", "Measure it with SUITE=standard, or leave MAX_KLD out.")


def _missed(miss: Miss) -> str:
    if miss.what == "RAM":
        value, limit = (human_bytes(int(n), binary=True) for n in (miss.value, miss.limit))
        return f"takes {value}, more than the {limit} of RAM"
    if miss.what == "MIN_TPS":
        return f"generates {digits(miss.value)} tokens/s, less than MIN_TPS={miss.limit:g}"
    return f"has a mean KLD of {digits(miss.value)}, more than MAX_KLD={miss.limit:g}"


def _loosened(miss: Miss) -> str:
    """The budget that this file keeps, rounded to its side."""
    if miss.what == "RAM":
        return f"RAM={-(-int(miss.value) // 2**20)}MiB"
    if miss.what == "MIN_TPS":
        return f"MIN_TPS={math.floor(10 * miss.value) / 10:g}"
    return f"MAX_KLD={math.ceil(10_000 * miss.value) / 10_000:g}"
