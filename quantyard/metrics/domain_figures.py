"""The worst domain of a file, with an interval that knows it was picked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantyard.formatting.numbers import DASH, format_count, format_kld, format_kld_interval, format_percent
from quantyard.metrics.intervals import estimate_interval
from quantyard.protocol.divergence_results import DomainDivergence, Domains
from quantyard.protocol.estimates import CONFIDENCE, Interval
from quantyard.protocol.measurements import Measurement


@dataclass(frozen=True)
class WorstDomain:
    """The domain with the largest mean KLD among `n_domains`, and the interval of the largest of their true means."""

    domain: str
    mean_kld: Interval
    n_domains: int
    found: DomainDivergence


def worst_domain(found: Domains | None, confidence: float = CONFIDENCE) -> WorstDomain | None:
    """The worst domain of a file; None for the baseline, or if nothing was measured.

    The largest of several means is too large on average: noise helps to pick it. So the interval is that of the largest
    true mean, whichever domain has it. Its upper end is the largest upper end of the domains' own intervals: that of
    the domain that is truly worst is among them. Its lower end is the largest lower end after Bonferroni's correction
    for their number: that none of them is too high is then as likely as for a single one. Both hold whatever the
    domains have in common. Source: Hsu, Multiple Comparisons (1996), ch. 1 and 3.
    """
    compared = [one for one in found.domains if one.mean_kld] if found else []
    if not compared:
        return None
    corrected = 1 - (1 - confidence) / len(compared)
    worst = max(compared, key=lambda one: one.mean_kld.value if one.mean_kld else 0.0)
    assert worst.mean_kld is not None
    klds = [one.mean_kld for one in compared if one.mean_kld]
    low = max(estimate_interval(kld, corrected).low for kld in klds)
    high = max(estimate_interval(kld, confidence).high for kld in klds)
    interval = Interval(value=worst.mean_kld.value, low=max(0.0, low), high=high)
    return WorstDomain(worst.domain, interval, len(compared), worst)


# ---- for report, terminal, card and page -------------------------------------------------------------


def domain_name(name: str) -> str:
    """A domain's name for readers: "language_de" → "language de"."""
    return name.replace("_", " ")


def compared_by_domain(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The measurements of files that were compared with the baseline on a domain."""
    return [m for m in measurements if worst_domain(m.domains)]


def domain_rows(measurements: Sequence[Measurement]) -> list[tuple[str, ...]]:
    """One row per domain: its name, the scored tokens, and the mean KLD of each file of `compared_by_domain`; the last
    row is the worst. Empty where none was compared.
    """
    files = compared_by_domain(measurements)
    by_file = [{one.domain: one for one in m.domains.domains} for m in files if m.domains]
    names = dict.fromkeys(name for domains in by_file for name in domains)
    rows = []
    for name in names:
        found = [domains.get(name) for domains in by_file]
        n_tokens = max(one.n_tokens for one in found if one)
        klds = (format_kld(one.mean_kld.value) if one and one.mean_kld else DASH for one in found)
        rows.append((domain_name(name), format_count(n_tokens), *klds))
    worst = [worst_domain(m.domains) for m in files]
    if rows:
        told = (f"{domain_name(one.domain)} {format_kld_interval(one.mean_kld)}" if one else DASH for one in worst)
        rows.append(("worst", "", *told))
    return rows


def domain_cells(worst: WorstDomain) -> tuple[str, str, str]:
    """Of the worst domain: mean KLD with its interval, p99 KLD, share of same top tokens."""
    p99, top = worst.found.kld_p99, worst.found.top1_agreement
    return (
        str(format_kld_interval(worst.mean_kld)), DASH if p99 is None else format_kld(p99),
        format_percent(top.value) if top else DASH,
    )  # fmt: skip


def worst_domain_sentence(m: Measurement) -> str:
    """Such as: diverges most on code, mean KLD 0.0612 (0.0533 to 0.0701), the worst of 14 domains; "" if unknown."""
    worst = worst_domain(m.domains)
    if worst is None:
        return ""
    kld = format_kld_interval(worst.mean_kld)
    return f"diverges most on {domain_name(worst.domain)}, mean KLD {kld}, the worst of {worst.n_domains} domains"


def domain_left_out_sentences(measurements: Sequence[Measurement]) -> list[str]:
    """What was not measured or not as meant, each with the files it holds for unless it holds for all."""
    files: dict[str, list[str]] = {}
    for m in measurements:
        for one in m.domains.left_out if m.domains else ():
            files.setdefault(f"{domain_name(one.domain)}: {one.reason}", []).append(m.file.label)
    n_all = sum(m.domains is not None for m in measurements)
    return [said if len(labels) == n_all else f"{said} ({', '.join(labels)})" for said, labels in files.items()]
