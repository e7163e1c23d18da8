"""The section of `report.md` on divergence by domain: every domain, the worst one, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator

from eval.rendering.markdown_table import markdown_table
from quantyard.formatting import numbers
from quantyard.formatting.numbers import DASH
from quantyard.metrics.domain_figures import (
    compared_by_domain,
    domain_left_out_sentences,
    domain_name,
    domain_rows,
    worst_domain_sentence,
)
from quantyard.metrics.intervals import estimate_interval
from quantyard.protocol.divergence_results import DomainDivergence
from quantyard.protocol.measurements import EvalReport, Measurement

_HOW_READ = """\
Mean KLD of every domain, in nats per token, and of the *worst*. Each document is read from its first token; of
conversations only what the assistant writes is scored. Intervals are 95 %, with documents as clusters; that of the
worst domain holds for the largest true mean among all, since the largest of several noisy values is too large on
average."""


def render_report_domains(report: EvalReport) -> str:
    """Empty where no domain was measured of a file beside the baseline."""
    rows = domain_rows(report.measurements)
    if not rows:
        return ""
    labels = [m.file.label for m in compared_by_domain(report.measurements)]
    table = markdown_table(("domain", "tokens", *labels), rows, 1)
    sentences = [f"- **{m.file.label}** {said}." for m in report.measurements if (said := worst_domain_sentence(m))]
    parts = [_HOW_READ, table, "\n".join(sentences), *_file_sections(report)]
    missing = "\n".join(f"- {said}" for said in domain_left_out_sentences(report.measurements))
    parts += [f"Not measured, or not as meant:\n\n{missing}"] if missing else []
    return "## Divergence by domain\n\n" + "\n\n".join(part for part in parts if part)


def _file_sections(report: EvalReport) -> Iterator[str]:
    """All figures of one file."""
    head = ("domain", "read as", "documents", "tokens", "PPL", "mean KLD (95 %)", "p99 KLD", "same top token")
    for m in report.measurements:
        if m.domains and m.domains.domains and m.domains.domains[0].mean_kld:
            yield f"### {m.file.label} by domain\n\n{markdown_table(head, _detail_rows(m), 2)}"


def _detail_rows(m: Measurement) -> Iterator[tuple[str, ...]]:
    for found in m.domains.domains if m.domains else ():
        yield _detail_row(found)
        for part in found.parts:
            kld = str(numbers.format_kld_interval(estimate_interval(part.mean_kld)))
            figures = (kld, numbers.format_kld(part.kld_p99), numbers.format_percent(part.top1_agreement.value))
            name = f"{domain_name(found.domain)}: {part.name}"
            yield (name, "", "", numbers.format_count(part.n_tokens), DASH, *figures)


def _detail_row(found: DomainDivergence) -> tuple[str, ...]:
    kld, top = found.mean_kld, found.top1_agreement
    return (
        domain_name(found.domain), found.form, numbers.format_count(found.n_documents),
        numbers.format_count(found.n_tokens), numbers.format_perplexity(found.perplexity.value),
        str(numbers.format_kld_interval(estimate_interval(kld))) if kld else DASH,
        numbers.format_kld(found.kld_p99) if found.kld_p99 is not None else DASH,
        numbers.format_percent(top.value) if top else DASH,
    )  # fmt: skip
