"""The table of files on the comparison page: what was measured of each, one column per figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from quantyard.formatting import numbers
from quantyard.formatting.numbers import DASH
from quantyard.metrics.budget_figures import missed_limit
from quantyard.metrics.intervals import ppl_change_interval
from quantyard.metrics.plots.marks import MARK_OF
from quantyard.metrics.similarity_figures import SIMILARITY_FIGURES, SimilarityFigure
from quantyard.protocol.estimates import Interval
from quantyard.protocol.gate import OUTCOMES, Outcome
from quantyard.report_page.tables import PageCell, PageColumn, PageFile, PageRow, PageTable

_EMPTY: Final = PageCell(DASH)


def _page_name_cell(s: PageFile) -> PageCell:
    return PageCell(s.label, "baseline" if s.is_baseline else "", s.label, kind="name")


def _page_size_cell(s: PageFile) -> PageCell:
    return PageCell(numbers.format_file_size(s.size_bytes), sort=s.size_bytes or None)


def _page_bits_cell(s: PageFile) -> PageCell:
    return (
        PageCell(numbers.format_bits_per_weight(s.bits_per_weight), sort=s.bits_per_weight)
        if s.bits_per_weight
        else _EMPTY
    )


def _page_similarity_cell(figure: SimilarityFigure) -> Callable[[PageFile], PageCell]:
    def cell(s: PageFile) -> PageCell:
        found = s.found.similarity if s.found else None
        return PageCell(figure.shown(found), sort=figure.value(found) if found else None)

    return cell


def _page_perplexity_cell(s: PageFile) -> PageCell:
    d = s.divergence
    return PageCell(numbers.format_perplexity(d.perplexity.value), sort=d.perplexity.value) if d else _EMPTY


def _page_ppl_change_cell(s: PageFile) -> PageCell:
    change = ppl_change_interval(s.divergence)
    if change is None:
        return _EMPTY
    written = numbers.format_change_interval(change)
    return PageCell(written.value, written.ends, change.value)


def _page_mean_kld_cell(s: PageFile) -> PageCell:
    found = s.divergence.mean_kld if s.divergence else None
    return PageCell(numbers.format_kld(found.value), sort=found.value) if found else _EMPTY


def _page_p99_kld_cell(s: PageFile) -> PageCell:
    found = s.divergence.kld_percentiles.get("99") if s.divergence else None
    return PageCell(numbers.format_kld(found), sort=found) if found is not None else _EMPTY


def _page_top1_cell(s: PageFile) -> PageCell:
    found = s.divergence.top1_agreement if s.divergence else None
    return PageCell(numbers.format_percent(found.value), sort=found.value) if found else _EMPTY


def _page_prompt_speed_cell(s: PageFile) -> PageCell:
    return _page_rate_cell(s.speed.prompt_tokens_per_s) if s.speed else _EMPTY


def _page_generation_speed_cell(s: PageFile) -> PageCell:
    return _page_rate_cell(s.speed.generated_tokens_per_s) if s.speed else _EMPTY


def _page_rate_cell(tokens_per_s: float) -> PageCell:
    return PageCell(numbers.format_tokens_per_s(tokens_per_s), sort=tokens_per_s)


def _page_memory_cell(s: PageFile) -> PageCell:
    return (
        PageCell(numbers.format_memory(s.speed.peak_memory_bytes), sort=s.speed.peak_memory_bytes)
        if s.speed
        else _EMPTY
    )


def _page_schemas_cell(s: PageFile) -> PageCell:
    found = s.contract.schemas if s.contract else None
    if found is None:
        return _EMPTY
    rate = numbers.format_score_interval(Interval(value=found.rate, low=found.low, high=found.high), "share")
    return PageCell(rate.value, rate.ends, found.rate)


def _page_contract_cell(s: PageFile) -> PageCell:
    if s.contract is None:
        return PageCell(DASH, kind="text")
    failed, aside = len(s.contract.with_status("failed")), len(s.contract.with_status("not supported"))
    note = f"{len(s.contract.checks) - failed - aside} of {len(s.contract.checks)} passed"
    status = "passed" if s.contract.passed else "failed"
    return PageCell(status, note, status, MARK_OF[status], "text")


def _page_gate_cell(s: PageFile) -> PageCell:
    """How many limits are met; the mark is that of the worst outcome."""
    found = {result.outcome for result in s.limits}
    worst: Outcome | None = next((outcome for outcome in OUTCOMES if outcome in found), None)
    if worst is None:
        return PageCell(DASH, kind="text")
    met = sum(result.outcome == "passed" for result in s.limits)
    missed = "; ".join(missed_limit(result) for result in s.limits if result.outcome == "failed")
    return PageCell(f"{met} of {len(s.limits)} met", missed, OUTCOMES.index(worst), MARK_OF[worst], "text")


# To add a column: add a row. A column with only dashes is left out.
_FILE_COLUMNS: Final[tuple[tuple[PageColumn, Callable[[PageFile], PageCell]], ...]] = (
    (PageColumn("File", "quantization type of the file", "name"), _page_name_cell),
    (PageColumn("Size", "size of the file, 1 GB = 10⁹ bytes", group="Weight"), _page_size_cell),
    (PageColumn("Bits/weight", "mean over all tensors", group="Weight"), _page_bits_cell),
    *((PageColumn(figure.name, figure.help, group="Similarity"), _page_similarity_cell(figure))
        for figure in SIMILARITY_FIGURES),
    (PageColumn("PPL", "perplexity, by llama-perplexity's definition", group="Divergence"), _page_perplexity_cell),
    (PageColumn("ΔPPL", "change of perplexity against the baseline, with its 95 % interval", group="Divergence"),
        _page_ppl_change_cell),
    (PageColumn("Mean KLD", "mean KL divergence from the baseline, nats per token", group="Divergence"),
        _page_mean_kld_cell),
    (PageColumn("p99 KLD", "99th percentile over tokens, nats", group="Divergence"), _page_p99_kld_cell),
    (PageColumn("Top-1", "agreement: how often its most likely next token is the baseline's", group="Divergence"),
        _page_top1_cell),
    (PageColumn("Prompt", "prompt tokens per second", group="Tokens / s"), _page_prompt_speed_cell),
    (PageColumn("Generation", "generated tokens per second", group="Tokens / s"), _page_generation_speed_cell),
    (PageColumn("Peak", "resident memory, mapped weights included", group="Memory"), _page_memory_cell),
    (PageColumn("Schemas", "answers that conform to their JSON schema, with the 95 % interval", group="Served"),
     _page_schemas_cell),
    (PageColumn("API test", "outcome of the API test", "text", "Served"), _page_contract_cell),
    (PageColumn("Limits", "quality limits; they depend on the type of the file", "text"), _page_gate_cell),
)  # fmt: skip


def page_files_table(files: Sequence[PageFile]) -> PageTable:
    """One row per file, the baseline's first."""
    whole = [[cell(s) for _, cell in _FILE_COLUMNS] for s in files]
    keep = [i for i in range(len(_FILE_COLUMNS)) if any(cells[i].text != DASH for cells in whole)]
    rows = tuple(PageRow(s.number, tuple(cells[i] for i in keep)) for s, cells in zip(files, whole, strict=True))
    return PageTable("files", "Every file beside its baseline", tuple(_FILE_COLUMNS[i][0] for i in keep), rows)
