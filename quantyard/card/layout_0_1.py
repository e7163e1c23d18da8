"""The blocks of a card as version 0.1.0 laid them out: only to verify cards that it wrote. Never changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from quantyard.card import cells_0_1 as cells
from quantyard.card.blocks import Block, CardTable, card_table
from quantyard.card.cells_0_1 import NOTHING
from quantyard.card.escaping import SafeMarkdown, escape_markdown, markdown_code
from quantyard.card.lists import card_shared_lists
from quantyard.card.subject import CardSubject
from quantyard.card.tables import card_measured_tables
from quantyard.formatting.numbers import format_bytes
from quantyard.protocol.gate import BudgetResult
from quantyard.protocol.measurements import Measurement

_ALLOWED: Final = " It was published all the same."
# "When to choose it", of each quant.
_USES: Final = {
    "F32": "a lossless copy of a float32 source; twice the disk of 16 bits",
    "COPY": "keep every tensor as it is, as large as the source: for a GGUF in shards",
    "BF16": "lossless for a bfloat16 source: the baseline other quants are measured against",
    "F16": "lossless for a float16 source, and for hardware without bfloat16",
    "Q8_0": "hardly distinguishable from 16 bits at half the size",
    "Q6_K": "very close to Q8_0, a quarter smaller",
    "Q5_1": "older format; Q5_K_M is smaller and better",
    "Q5_K_M": "when there is memory to spare over Q4_K_M",
    "Q5_K_S": "Q5_K_M with less spent on the sensitive layers",
    "Q5_0": "older format; for runtimes without K-quants",
    "Q4_1": "older format; fast on some GPUs, Q4_K_M is smaller and better",
    "Q4_K_M": "the usual choice: good quality at under a third of 16 bits",
    "IQ4_NL": "4 bits for models whose rows are not a multiple of 256, and for ARM",
    "Q4_K_S": "when Q4_K_M just does not fit",
    "Q4_0": "older format; the quickest on many CPUs, weaker than Q4_K_S",
    "IQ4_XS": "the smallest 4 bits: near Q4_K_S, slower on CPUs",
    "MXFP4_MOE": "mixtures of experts trained in MXFP4 (gpt-oss): a dense model becomes Q8_0",
    "Q3_K_L": "the best of the 3-bit K-quants; compare IQ4_XS first",
    "Q3_K_M": "when 4 bits do not fit; quality loss begins to show",
    "IQ3_M": "the best 3 bits for its size; an imatrix helps, but is not needed",
    "IQ3_S": "as small as Q3_K_S, and better; slower on CPUs",
    "Q3_K_S": "the smallest 3-bit K-quant; clearly worse than Q3_K_M",
    "IQ3_XS": "between IQ3_XXS and IQ3_S, for the last gigabyte",
    "IQ3_XXS": "3 bits where every megabyte counts",
    "Q2_K": "the smallest non-ternary type that works without an imatrix; large models only",
    "Q2_K_S": "Q2_K with less spent on attention; IQ2_M is better",
    "IQ2_M": "a large model in 2 bits that still answers sensibly",
    "IQ2_S": "a step below IQ2_M",
    "Q2_0": "models trained for two bits; others are destroyed",
    "IQ2_XS": "70B and above on one consumer GPU",
    "TQ2_0": "models trained ternary (BitNet): quicker than TQ1_0; others are destroyed",
    "IQ2_XXS": "very large models only; expect errors",
    "TQ1_0": "models trained ternary (BitNet): the smallest; others are destroyed",
    "IQ1_M": "an experiment for models of 100B and more",
    "IQ1_S": "the smallest of all general types; hardly usable",
    "Q1_0": "models trained for one bit, rows a multiple of 128; others are destroyed",
}


def card_blocks_0_1(subject: CardSubject) -> Iterator[Block]:
    """Every block of such a card."""
    found = [
        _card_gate_table_0_1(subject, "gate-failed", "failed"),
        _card_gate_table_0_1(subject, "gate-open", "too few questions"),
        _card_gate_table_0_1(subject, "gate-unmeasured", "not measured"), _card_choice_table_0_1(subject),
    ]  # fmt: skip
    yield from (block for block in found if block)
    yield from card_measured_tables(subject, cells)
    yield from card_shared_lists(subject, _ALLOWED, _card_fact_0_1)


def _card_fact_0_1(name: str, value: object) -> SafeMarkdown:
    if name.endswith("_bytes") and isinstance(value, int):
        return SafeMarkdown(f"{escape_markdown(name.removesuffix('_bytes').replace('_', ' '))} {format_bytes(value)}")
    return SafeMarkdown(f"{escape_markdown(name)} {escape_markdown(value)}")


def _card_gate_table_0_1(subject: CardSubject, name: str, outcome: str) -> CardTable | None:
    found = [r for r in subject.manifest.gate.results if r.outcome == outcome] if subject.manifest.gate else []
    rows = [_card_gate_row_0_1(result) for result in found if result.quant in subject.quants]
    head = ("budget", "limit", "found", "interval", "finding")
    return card_table(name, f"gate table ({outcome})", head, rows, words=("interval", "finding"), quoted=True)


def _card_gate_row_0_1(found: BudgetResult) -> tuple[SafeMarkdown, ...]:
    budget = " ".join(part for part in (found.quant, found.budget, found.task) if part)
    numbers = (cells.card_budget_limit(found), cells.card_budget_value(found), cells.card_budget_interval(found))
    return (escape_markdown(budget), *numbers, escape_markdown(found.finding))


def _card_choice_table_0_1(subject: CardSubject) -> CardTable | None:
    head = ("memory", "file", "size", "what it costs", "when to choose it")
    rows = [
        (_card_memory_0_1(subject.measurement(label)), markdown_code(label), cells.card_size(record.size_bytes),
         _card_cost_0_1(subject.measurement(label)), escape_markdown(_USES[label]) if label in _USES else NOTHING)
        for label, record in reversed(subject.quants.items())
    ]  # fmt: skip
    return card_table("choice", "table of choices", head, rows, words=("file", "what it costs", "when to choose it"))


def _card_memory_0_1(found: Measurement | None) -> SafeMarkdown:
    known = found is not None and found.speed is not None
    return SafeMarkdown(cells.card_speed(found)[2]) if known else SafeMarkdown("not measured")


def _card_cost_0_1(found: Measurement | None) -> SafeMarkdown:
    change = cells.card_ppl_change(found.divergence) if found and found.divergence else NOTHING
    return change if change == NOTHING else SafeMarkdown(f"perplexity {change}")
