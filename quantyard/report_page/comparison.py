"""The page of a comparison: the report page with files of others, their origins, findings, and what was left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from quantyard.formatting.numbers import DASH, format_file_size
from quantyard.report_page.render import PageExtras, render_page_of_report
from quantyard.report_page.tables import PageCell, PageColumn, PageRow, PageTable
from quantyard.store.comparison import COMPARISON_FILE, ComparedFile, ComparisonRecord
from quantyard.store.manifest import Manifest

_SHORT: Final = 12  # digits of a hash on the page; comparison.json has them all


def render_comparison_page(manifest: Manifest, record: ComparisonRecord) -> str:
    """The page, as HTML; the same record always gives the same bytes. It lies beside `comparison.json`.

    Args:
        manifest: of our model, for its source and licence.
    """
    shown = manifest.model_copy(
        update={"quants": {}, "evaluations": {record.report.suite.name: record.report}, "gate": None}
    )
    tables = (_comparison_origins_table(record), _comparison_findings_table(record), _comparison_left_out_table(record))
    extras = PageExtras(
        lead=comparison_lead(record), links=(("All figures as JSON", COMPARISON_FILE),),
        tables=tuple(table for table in tables if table.rows),
    )  # fmt: skip
    return render_page_of_report(shown, record.report, extras=extras)


def comparison_lead(record: ComparisonRecord) -> str:
    """How many files of whom were compared, and the front."""
    theirs = sum(file.made_by == "others" for file in record.files)
    ours = len(record.files) - theirs
    n_out = len(record.not_compared)
    out = f"; {n_out} could not be measured" if n_out else ""
    front = ", ".join(file.label for file in record.files if file.on_front)
    said = f" No other file is at least as small, as close to {record.baseline} and as fast: {front}." if front else ""
    of_others = f"{theirs} file{'s' * (theirs != 1)} of others"
    return f"{of_others} beside {ours} of ours, measured against {record.baseline}{out}.{said}"


def _comparison_origins_table(record: ComparisonRecord) -> PageTable:
    columns = (
        PageColumn("File", "", "name"), PageColumn("From", "repo, folder or name in Ollama's store", "text"),
        PageColumn("Name there", "", "text"), PageColumn("Revision", "commit of the Hub", "text"),
        PageColumn("SHA-256", "of each part", "text"), PageColumn("Size", ""),
        PageColumn("On the front", "no other file beats it", "text"), PageColumn("Reasons against it", "", "text"),
    )  # fmt: skip
    rows = tuple(_comparison_origin_row(number, file) for number, file in enumerate(record.files))
    return PageTable("origins", "Where each file is from", columns, rows)


def _comparison_origin_row(number: int, file: ComparedFile) -> PageRow:
    hashes = ", ".join((part.sha256 or DASH)[:_SHORT] for part in file.parts)
    first, more = file.parts[0].path, f" and {len(file.parts) - 1} more" if len(file.parts) > 1 else ""
    reasons = " ".join(f"{reason.name} {reason.other}: {reason.text}" for reason in file.reasons)
    texts = (file.place or "built here", first + more, file.revision[:_SHORT] or DASH, hashes)
    return PageRow(number, (
        PageCell(file.label, sort=file.label, kind="name"), *(PageCell(text, sort=text, kind="text") for text in texts),
        PageCell(format_file_size(file.size_bytes), sort=file.size_bytes),
        PageCell("yes" if file.on_front else "no", sort=str(not file.on_front), kind="text"),
        PageCell(reasons or DASH, sort=reasons, kind="text"),
    ))  # fmt: skip


def _comparison_findings_table(record: ComparisonRecord) -> PageTable:
    columns = (
        PageColumn("File", "", "name"), PageColumn("Grade", "", "text"), PageColumn("Kind", "", "text"),
        PageColumn("Finding", "against our conversion and the model's own files", "text"),
    )  # fmt: skip
    return PageTable("findings", "What differs from the source", columns, tuple(_comparison_finding_rows(record)))


def _comparison_finding_rows(record: ComparisonRecord) -> Iterator[PageRow]:
    for number, file in enumerate(record.files):
        for found in file.findings:
            yield _comparison_text_row(number, file.label, found.grade, found.kind, found.text)


def _comparison_left_out_table(record: ComparisonRecord) -> PageTable:
    columns = (
        PageColumn("File", "", "name"), PageColumn("Kind", "", "text"), PageColumn("Why", "", "text"),
        PageColumn("What to do", "", "text"),
    )  # fmt: skip
    rows = tuple(
        _comparison_text_row(number, out.label, out.kind, out.message, out.hint)
        for number, out in enumerate(record.not_compared)
    )
    return PageTable("left-out", "What could not be measured", columns, rows)


def _comparison_text_row(number: int, label: str, *texts: str) -> PageRow:
    cells = (PageCell(text or DASH, sort=text, kind="text") for text in texts)
    return PageRow(number, (PageCell(label, sort=label, kind="name"), *cells))
