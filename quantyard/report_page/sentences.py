"""The sentences of the comparison page: how the files were measured, and the findings on each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from quantyard.formatting.numbers import (
    format_count,
    format_duration,
    format_fact,
    format_rough_percent,
)
from quantyard.metrics.budget_figures import limits_sentence, missed_limit
from quantyard.metrics.plots.marks import VERDICTS
from quantyard.metrics.speed import pace_sentence
from quantyard.protocol.measurements import EvalReport
from quantyard.report_page.tables import PageFile
from quantyard.store.manifest import Manifest


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
        ("Questions", _page_suite_sentence(report)),
        ("Text", _page_text_sentence(report)),
        ("Seed", str(suite.seed)),
        ("Duration", format_duration(report.duration_s) if report.duration_s else ""),
        ("Hardware", _page_listed_versions(report.hardware)),
        ("Versions", _page_listed_versions(report.versions)),
    )
    return tuple((name, value) for name, value in found if value)


def _page_suite_sentence(report: EvalReport) -> str:
    if not report.n_questions:
        return ""
    template = ", in the model's chat template" if report.suite.apply_chat_template else ""
    return f"{format_count(report.n_questions)}, the same for each file{template}"


def _page_text_sentence(report: EvalReport) -> str:
    first = next((m.divergence for m in report.measurements if m.divergence), None)
    return f"{format_count(first.n_tokens)} tokens of {first.text}, in chunks of {first.n_ctx}" if first else ""


def _page_listed_versions(items: Mapping[str, object]) -> str:
    return ", ".join(format_fact(key, value) for key, value in items.items())


def page_notes(manifest: Manifest, files: Sequence[PageFile]) -> dict[int, tuple[str, ...]]:
    """Number of each file beside the baseline → what its figures do not tell: verdicts, speed, API test, limits."""
    baseline = next(s for s in files if s.is_baseline)
    return {s.number: _page_file_notes(manifest, s, baseline) for s in files if not s.is_baseline}


def _page_file_notes(manifest: Manifest, s: PageFile, baseline: PageFile) -> tuple[str, ...]:
    if s.found is None:
        return ("Not measured with this suite.",)
    pace = pace_sentence(s.speed, baseline.speed, baseline.label)
    parts = (_page_size_sentence(s, baseline), _page_verdicts_sentence(s), pace, _page_contract_sentence(s),
             _page_limits_sentence(manifest, s))  # fmt: skip
    return tuple(part for part in parts if part)


def _page_size_sentence(s: PageFile, baseline: PageFile) -> str:
    if not (s.size_bytes and baseline.size_bytes):
        return ""
    return f"{format_rough_percent(s.size_bytes / baseline.size_bytes)} of the size of {baseline.label}."


def _page_verdicts_sentence(s: PageFile) -> str:
    """Counts every comparison of the table."""
    counts = Counter(c.verdict for c in s.found.comparisons) if s.found else Counter()
    total = sum(counts.values())
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"Of {total} comparison{'s' * (total != 1)}: {told}." if total else ""


def _page_contract_sentence(s: PageFile) -> str:
    if s.contract is None:
        return ""
    failed = s.contract.with_status("failed")
    names = ", ".join(check.name for check in failed[:3]) + (" and more" if len(failed) > 3 else "")
    return f"The API test fails {len(failed)} checks: {names}." if failed else "It passes the API test."


def _page_limits_sentence(manifest: Manifest, s: PageFile) -> str:
    found = [r for r in manifest.gate.results if r.quant == s.label] if manifest.gate else []
    missed = "; ".join(missed_limit(r) for r in found if r.outcome == "failed")
    return f"{limits_sentence(found)}.{f' Missed: {missed}.' if missed else ''}" if found else ""
