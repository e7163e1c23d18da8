"""The sentences of the comparison page: how the files were measured, and the findings on each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantyard.formatting.numbers import (
    format_bytes,
    format_change_interval,
    format_count,
    format_digits,
    format_duration,
    format_file_size,
    format_percent,
    format_rough_percent,
)
from quantyard.metrics.intervals import ppl_change_interval
from quantyard.protocol.measurements import EvalReport
from quantyard.report_page.marks import VERDICTS
from quantyard.report_page.tables import PageFile
from quantyard.store.manifest import Manifest


@dataclass(frozen=True)
class PageSentences:
    """The sentences about one file."""

    number: int
    label: str
    sentences: tuple[str, ...]


def page_facts(manifest: Manifest, report: EvalReport) -> tuple[tuple[str, str], ...]:
    """Name and value of the facts that a reader needs to judge the numbers; without paths of the machine."""
    source, suite = manifest.source, report.suite
    local = "a local GGUF" if source.kind == "gguf" else "a local folder"
    licence = source.license or "not stated"
    found = (
        ("Source", f"{source.repo_id or local}, commit {source.commit[:12]}"),
        ("Licence", f"{licence} ({source.card.license_name})" if source.card.license_name else licence),
        ("Computation", " ".join(found.finding for found in manifest.twins.values())),
        ("Suite", f"{suite.name}. {suite.description}".strip() if suite.description else suite.name),
        ("Questions", _asked(report)),
        ("Text", _text_read(report)),
        ("Seed", str(suite.seed)),
        ("Duration", format_duration(report.duration_s) if report.duration_s else ""),
        ("Hardware", _listed(report.hardware)),
        ("Versions", _listed(report.versions)),
    )
    return tuple((name, value) for name, value in found if value)


def _asked(report: EvalReport) -> str:
    if not report.n_questions:
        return ""
    template = ", in the model's chat template" if report.suite.apply_chat_template else ""
    return f"{format_count(report.n_questions)}, the same for each file{template}"


def _text_read(report: EvalReport) -> str:
    first = next((m.divergence for m in report.measurements if m.divergence), None)
    return f"{format_count(first.n_tokens)} tokens of {first.text}, in chunks of {first.n_ctx}" if first else ""


def _listed(items: Mapping[str, object]) -> str:
    return ", ".join(_fact(key, value) for key, value in items.items())


def _fact(key: str, value: object) -> str:
    if key.endswith("_bytes") and isinstance(value, int):
        return f"{key.removesuffix('_bytes').replace('_', ' ')} {format_bytes(value)}"
    return f"{key.replace('_', ' ')} {value}"


def page_sentences(files: Sequence[PageFile]) -> tuple[PageSentences, ...]:
    """A few sentences for each file beside the baseline."""
    baseline = next(s for s in files if s.is_baseline)
    return tuple(PageSentences(s.number, s.label, _sentences(s, baseline)) for s in files if not s.is_baseline)


def _sentences(s: PageFile, baseline: PageFile) -> tuple[str, ...]:
    if s.found is None:
        return (f"{format_file_size(s.size_bytes)}, not measured with this suite.",)
    parts = (_size(s, baseline), _agreement(s), _verdicts(s), _pace(s, baseline), _contract(s), _gate(s))
    return tuple(part for part in parts if part)


def _size(s: PageFile, baseline: PageFile) -> str:
    if not (s.size_bytes and baseline.size_bytes):
        return ""
    share = format_rough_percent(s.size_bytes / baseline.size_bytes)
    return f"{format_file_size(s.size_bytes)}: {share} of {baseline.label}."


def _agreement(s: PageFile) -> str:
    d = s.divergence
    parts = []
    if d and d.top1_agreement:
        parts.append(f"Agrees with the baseline on {format_percent(d.top1_agreement.value)} of next tokens")
    if change := ppl_change_interval(d):
        parts.append(f"{'p' if parts else 'P'}erplexity changes by {format_change_interval(change)}")
    return "; ".join(parts) + "." if parts else ""


def _verdicts(s: PageFile) -> str:
    """Counts every comparison of the table."""
    counts = Counter(c.verdict for c in s.found.comparisons) if s.found else Counter()
    total = sum(counts.values())
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"Of {total} comparison{'s' * (total != 1)}: {told}." if total else ""


def _pace(s: PageFile, baseline: PageFile) -> str:
    if not (s.speed and baseline.speed and baseline.speed.generated_tokens_per_s):
        return ""
    ratio = s.speed.generated_tokens_per_s / baseline.speed.generated_tokens_per_s
    return f"Generates {format_digits(ratio, 2)} times as fast."


def _contract(s: PageFile) -> str:
    if s.contract is None:
        return ""
    failed = s.contract.with_status("failed")
    names = ", ".join(check.name for check in failed[:3]) + (" and more" if len(failed) > 3 else "")
    return f"The API test fails {len(failed)} checks: {names}." if failed else "It passes the API test."


def _gate(s: PageFile) -> str:
    return f"Gate: {s.gate}." if s.gate else ""
