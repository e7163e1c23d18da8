"""A comparison with files of others, for the terminal: findings, the front with its reasons, what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantyard.cli.render.styled import escape_rich_markup
from quantyard.formatting.columns import format_columns
from quantyard.report_page.comparison import comparison_lead
from quantyard.store.comparison import COMPARISON_FILE, ComparisonRecord, NotCompared


def terminal_comparison_head(record: ComparisonRecord) -> str:
    """How many files of whom were compared."""
    return f"[bold green]{escape_rich_markup(comparison_lead(record).partition('. ')[0].rstrip('.'))}[/]"


def terminal_comparison_findings(record: ComparisonRecord) -> str:
    """A line for each finding; empty if there is none."""
    found = [(file.label, finding) for file in record.files for finding in file.findings]
    return format_columns([
        (escape_rich_markup(label), escape_rich_markup(f"{finding.grade}: {finding.text} ({finding.kind})"))
        for label, finding in found
    ])  # fmt: skip


def terminal_comparison_front(record: ComparisonRecord) -> str:
    """The front, and a line for each reason against a file."""
    best = ", ".join(file.label for file in record.files if file.on_front)
    facts = [("Front", f"{best}: no other file is at least as small, as accurate and as fast")] if best else []
    facts += [
        (file.label, f"{reason.name} {reason.other}: {reason.text}") for file in record.files for reason in file.reasons
    ]
    return format_columns([(escape_rich_markup(name), escape_rich_markup(text)) for name, text in facts])


def terminal_comparison_paths(page: Path) -> str:
    """The files to open."""
    names = (("Page", page), ("Report", page.with_name("report.md")), ("Data", page.with_name(COMPARISON_FILE)))
    return format_columns([(name, escape_rich_markup(str(path))) for name, path in names])


def terminal_not_compared(out: Sequence[NotCompared]) -> str:
    """What could not be measured, and why."""
    lines = [
        f"  [red]{escape_rich_markup(one.label)}[/]: {escape_rich_markup(f'{one.message} {one.hint}')}"
        f" [dim]({escape_rich_markup(one.kind)})[/]"
        for one in out
    ]
    return "\n".join([f"[bold red]{len(out)} could not be measured[/], the others are done:", *lines])
