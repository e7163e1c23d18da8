"""The table of domains on the comparison page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantyard.formatting import numbers
from quantyard.formatting.numbers import DASH
from quantyard.metrics.domain_figures import domain_left_out_sentences, domain_name, worst_domain
from quantyard.metrics.intervals import estimate_interval
from quantyard.protocol.divergence_results import DomainDivergence, DomainPart
from quantyard.protocol.estimates import Estimate
from quantyard.report_page.tables import PageCell, PageColumn, PageFile, PageRow, PageTable


def page_domains_table(files: Sequence[PageFile]) -> PageTable:
    """One row for each file and domain, the worst of a file first."""
    columns = (
        PageColumn("File", "quantization type of the file", "name"),
        PageColumn("Domain", "kind of text, with how conversations are read", "text"),
        PageColumn("Mean KLD", "nats per token, with the 95 % interval; of the worst, of the largest true mean"),
        PageColumn("p99 KLD", "99th percentile over tokens, nats"),
        PageColumn("Top-1", "how often its most likely next token is the baseline's"),
        PageColumn("PPL", "perplexity of the file on the scored tokens"),
        PageColumn("Tokens", "scored tokens"),
    )
    rows = (row for s in files for row in _page_domain_rows(s))
    return PageTable("domains", "Divergence by domain", columns, tuple(rows))


def page_domains_sentence(files: Sequence[PageFile]) -> str:
    """What was not measured, or not as meant; "" if nothing."""
    found = domain_left_out_sentences([s.found for s in files if s.found])
    return f"Not measured, or not as meant: {'; '.join(found)}." if found else ""


def _page_domain_rows(s: PageFile) -> Iterator[PageRow]:
    domains = s.found.domains if s.found else None
    worst = worst_domain(domains)
    if domains is None or worst is None:
        return
    for one in sorted(domains.domains, key=lambda one: one.domain != worst.domain):
        if one.mean_kld is None:
            continue
        is_worst = one.domain == worst.domain
        interval = worst.mean_kld if is_worst else estimate_interval(one.mean_kld)
        name = domain_name(one.domain)
        note = ", ".join(["worst"] * is_worst + ([one.form] if one.form != "text" else []))
        kld = numbers.format_kld_interval(interval)
        yield PageRow(s.number, (
            PageCell(s.label, sort=s.label, kind="name"), PageCell(name, note, name, kind="text"),
            PageCell(kld.value, kld.ends, interval.value), *_page_token_cells(one, one.top1_agreement),
        ))  # fmt: skip
        yield from (_page_part_row(s, one, part) for part in one.parts)


def _page_part_row(s: PageFile, one: DomainDivergence, part: DomainPart) -> PageRow:
    """Some of a domain's tokens: those at some positions of long documents, or those of answers or calls."""
    name, kld = f"{domain_name(one.domain)}: {part.name}", numbers.format_kld_interval(estimate_interval(part.mean_kld))
    return PageRow(s.number, (
        PageCell(s.label, sort=s.label, kind="name"), PageCell(name, "a part of it", name, kind="text"),
        PageCell(kld.value, kld.ends, part.mean_kld.value),
        PageCell(numbers.format_kld(part.kld_p99), sort=part.kld_p99),
        PageCell(numbers.format_percent(part.top1_agreement.value), sort=part.top1_agreement.value), PageCell(DASH),
        PageCell(numbers.format_count(part.n_tokens), sort=part.n_tokens),
    ))  # fmt: skip


def _page_token_cells(one: DomainDivergence, top: Estimate | None) -> tuple[PageCell, ...]:
    return (
        PageCell(DASH if one.kld_p99 is None else numbers.format_kld(one.kld_p99), sort=one.kld_p99),
        PageCell(numbers.format_percent(top.value) if top else DASH, sort=top.value if top else None),
        PageCell(numbers.format_perplexity(one.perplexity.value), sort=one.perplexity.value),
        PageCell(numbers.format_count(one.n_tokens), sort=one.n_tokens),
    )
