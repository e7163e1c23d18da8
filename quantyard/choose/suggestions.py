"""Suggestions if no file meets the limits: less context, a smaller cache, another quant; estimates are marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from quantyard.choose.cache_choice import suggestions_of_smaller_cache
from quantyard.choose.candidates import ChoiceCandidate, ChoiceSet, candidate_memory_bytes, choice_eval_command
from quantyard.choose.pick import ChoiceBudget, missed_choice_limits, nearest_candidate
from quantyard.errors import UnknownQuant
from quantyard.formatting.numbers import format_bytes
from quantyard.memory.kv_cache import CELL_STEP
from quantyard.quants.catalog import Quant, find_quant

# Quants to suggest, the largest first: they need no importance matrix and suit any model.
_USUAL: Final = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_M", "Q2_K")


def choice_remedies(choices: ChoiceSet, budget: ChoiceBudget, model: str) -> list[str]:
    """One line each, with the command to type.

    Args:
        model: the value of MODEL.
    """
    missed = {miss.what for c in choices.candidates for miss in missed_choice_limits(c, budget)}
    return [
        *(_suggestions_for_memory(choices, budget, model) if "RAM" in missed else ()),
        *(_suggestions_for_speed(choices, budget, model) if "MIN_TPS" in missed else ()),
        *(_suggestions_for_quality(choices, budget, model) if "MAX_KLD" in missed else ()),
    ]


def largest_candidate_context(found: ChoiceCandidate, choices: ChoiceSet, budget: ChoiceBudget) -> int:
    """The largest context, in steps of 256 tokens, with which this file fits into the memory; 0 if none does."""
    low, high = 0, -(-choices.use.tokens // CELL_STEP)
    while low < high:
        middle = -(-(low + high) // 2)
        needed = candidate_memory_bytes(found, replace(choices.use, tokens=middle * CELL_STEP), choices.cache_type)
        low, high = (middle, high) if needed is not None and needed <= budget.memory_bytes else (low, middle - 1)
    return low * CELL_STEP


def _suggestions_for_memory(choices: ChoiceSet, budget: ChoiceBudget, model: str) -> Iterator[str]:
    others = [c for c in choices.candidates if {miss.what for miss in missed_choice_limits(c, budget)} == {"RAM"}]
    for found in [nearest_candidate(others, budget)] if others else []:
        if context := largest_candidate_context(found, choices, budget):
            yield f"Less context: {found.quant} fits with CONTEXT_SIZE={context}."
        yield from suggestions_of_smaller_cache(found, choices, budget, model)
    smallest = min(choices.candidates, key=lambda c: c.size_bytes)
    assert smallest.memory_bytes is not None, "files of unknown memory are refused before"
    over = smallest.memory_bytes - budget.memory_bytes
    if over > 0 and (quant := _smaller_unmeasured_quant(choices, smallest, smallest.size_bytes - over)):
        size = format_bytes(_estimated_size_of_candidate(smallest, quant))
        how = choice_eval_command(choices, model, quant.name)
        yield f"A smaller quant: {quant.name} is not measured yet (about {size}): {how}"


def _suggestions_for_speed(choices: ChoiceSet, budget: ChoiceBudget, model: str) -> Iterator[str]:
    fastest = max(choices.candidates, key=lambda c: c.tokens_per_s)
    if fastest.tokens_per_s >= budget.min_tokens_per_s:
        return
    smallest = min(choices.candidates, key=lambda c: c.size_bytes)
    wanted = int(smallest.size_bytes * smallest.tokens_per_s / budget.min_tokens_per_s)  # bytes read per token decide
    if quant := _smaller_unmeasured_quant(choices, smallest, wanted):
        how = choice_eval_command(choices, model, quant.name)
        yield f"A smaller quant may be fast enough: {quant.name} is not measured yet: {how}"
    else:
        yield "No quant of this model reaches that speed on the machine that measured: use a faster machine, or a GPU."


def _suggestions_for_quality(choices: ChoiceSet, budget: ChoiceBudget, model: str) -> Iterator[str]:
    best = min(choices.candidates, key=lambda c: c.quality.value)
    if budget.max_kld is None or best.quality.value <= budget.max_kld:
        return
    larger = [q for q in _unmeasured_quants(choices) if q.bits_per_weight > _candidate_bits_per_weight(best)]
    if larger:
        name = larger[-1].name
        yield f"A larger quant: {name} is not measured yet: {choice_eval_command(choices, model, name)}"


def _smaller_unmeasured_quant(choices: ChoiceSet, than: ChoiceCandidate, wanted_bytes: int) -> Quant | None:
    """The largest unmeasured quant of about the wanted size or less; None if there is none."""
    most = min(wanted_bytes, than.size_bytes - 1)
    return next((q for q in _unmeasured_quants(choices) if _estimated_size_of_candidate(than, q) <= most), None)


def _unmeasured_quants(choices: ChoiceSet) -> Sequence[Quant]:
    measured = {c.quant for c in choices.candidates}
    return [find_quant(name) for name in _USUAL if name not in measured]


def _estimated_size_of_candidate(known: ChoiceCandidate, quant: Quant) -> int:
    """Estimated in proportion to the bits per weight of a large model."""
    return int(known.size_bytes * quant.bits_per_weight / _candidate_bits_per_weight(known))


def _candidate_bits_per_weight(known: ChoiceCandidate) -> float:
    """The catalog's value; a recipe of the user's has only the measured one."""
    try:
        return find_quant(known.quant).bits_per_weight
    except UnknownQuant:
        return known.bits_per_weight
