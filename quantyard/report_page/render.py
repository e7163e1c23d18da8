"""The comparison page: `report.html`, every file of a model beside its baseline.

The file loads nothing: it contains style, script and plots, and its Content-Security-Policy allows style and script by
their hashes only. So a text from a model (names, findings) could not run or fetch anything, even if it passed the
template's escaping. Without JavaScript, tables and plots are static.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from quantyard.errors import BadRequest
from quantyard.formatting.numbers import format_margin
from quantyard.formatting.printable import replace_unprintable
from quantyard.hub.files import HubPlace
from quantyard.metrics.behaviour_figures import behaviour_variance_sentence, behaviours_left_out
from quantyard.metrics.budget_figures import limits_sentence
from quantyard.metrics.headline_metrics import headline_scores
from quantyard.metrics.layout_figures import LAYOUT_NOTE
from quantyard.metrics.plots.domain_panels import plot_domains
from quantyard.metrics.plots.marks import MARK_OF, SHAPES, VERDICTS
from quantyard.metrics.plots.panels import MAX_PANELS, plot_divergence, plot_forest, plot_overview, plot_speed
from quantyard.metrics.plots.tradeoff import plot_tradeoffs
from quantyard.metrics.verdicts import verdict_legend
from quantyard.protocol.measurements import EvalReport
from quantyard.report_page.answer import page_answer, page_figures, page_links
from quantyard.report_page.behaviour_table import page_behaviours_table
from quantyard.report_page.cache_table import page_cache_sentence, page_cache_table
from quantyard.report_page.check_tables import page_checks_table, page_gate_table
from quantyard.report_page.domains_table import page_domains_sentence, page_domains_table
from quantyard.report_page.files_table import page_files_table
from quantyard.report_page.layout_table import page_layout_table
from quantyard.report_page.openvino_table import page_openvino_sentence, page_openvino_table
from quantyard.report_page.parts_table import page_parts_table
from quantyard.report_page.sentences import page_facts, page_notes
from quantyard.report_page.speed_table import page_energy_sentence, page_speed_table
from quantyard.report_page.tables import PageFile, PageTable, page_files
from quantyard.report_page.task_tables import page_scores_table, page_tasks_table
from quantyard.store.manifest import Manifest

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES: Final = Path(__file__).parent
# Replaces direction marks and invisible characters.
FILTER_ROWS: Final = 12  # of the table of tasks, from which filters help
_NOWHERE: Final = HubPlace()


@dataclass(frozen=True)
class PageExtras:
    """What the page of a comparison has in addition: the lead in place of a file to take, links, and tables."""

    lead: str = ""
    links: tuple[tuple[str, str], ...] = ()
    tables: tuple[PageTable, ...] = ()


_UNSEEN: Final = "\N{REPLACEMENT CHARACTER}"


def render_report_page(manifest: Manifest, suite: str, place: HubPlace = _NOWHERE) -> str:
    """The page of one suite's measurements, as HTML; the same manifest always gives the same bytes.

    Args:
        place: the Hub repo that the page lies in, for the command that downloads.

    Raises:
        BadRequest: the suite has not been measured, or not its baseline.
    """
    report = manifest.evaluations.get(suite)
    if report is None or report.baseline not in {m.file.label for m in report.measurements}:
        known = ", ".join(manifest.evaluations) or "none"
        message = f"The suite {suite} has not been measured; measured suites of this model: {known}."
        raise BadRequest(message, f"Measure it: make eval MODEL=… QUANT=… SUITE={suite}")
    return render_page_of_report(manifest, report, place)


def render_page_of_report(
    manifest: Manifest, report: EvalReport, place: HubPlace = _NOWHERE, extras: PageExtras | None = None
) -> str:
    """The page of this report, as HTML.

    Args:
        extras: what is shown of a comparison, in which no file of the manifest is offered for download.
    """
    css, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    files = page_files(manifest, report)
    template = _page_environment().get_template("report.html.jinja")
    content = _page_content(manifest, report, files, place) | _page_extras(extras)
    return template.render(content, css=css, script=script, policy=_page_security_policy(css, script))


def _page_content(
    manifest: Manifest, report: EvalReport, files: tuple[PageFile, ...], place: HubPlace
) -> dict[str, Any]:
    compared = any(m.comparisons for m in report.measurements)
    first = headline_scores(report.suite, [c for m in report.measurements for c in m.comparisons])
    answer = page_answer(manifest, report, files, place)
    tasks_table = page_tasks_table(report, files) if compared else page_scores_table(report, files)
    return {
        "answer": answer, "links": page_links(manifest), "filtered": len(tasks_table.rows) >= FILTER_ROWS,
        "figures": page_figures(manifest, files, answer.label if answer else ""),
        "title": report.title, "report": report, "manifest": manifest, "files": files, "verdicts": VERDICTS,
        "baseline": next(s for s in files if s.is_baseline),
        "shapes": SHAPES, "mark_of": MARK_OF, "facts": page_facts(manifest, report),
        "notes": page_notes(manifest, files),
        "files_table": page_files_table(files), "cache_table": page_cache_table(files), "compared": compared,
        "limits": limits_sentence(manifest.gate.results) if manifest.gate else "",
        "tasks_table": tasks_table,
        "speeds_table": page_speed_table(files), "energy": page_energy_sentence(files),
        "cache_sentence": page_cache_sentence(files),
        "openvino_table": page_openvino_table(files), "openvino_sentence": page_openvino_sentence(files),
        "behaviours_table": page_behaviours_table(report, files),
        "domains_table": page_domains_table(files), "domains_sentence": page_domains_sentence(files),
        "domain_panels": plot_domains(files),
        "parts_table": page_parts_table(files), "layout_table": page_layout_table(files), "layout_note": LAYOUT_NOTE,
        "seeds": behaviour_variance_sentence(report.measurements),
        "not_asked": [*behaviours_left_out(report)],
        "checks_table": page_checks_table(files), "gate_table": page_gate_table(manifest, files),
        "tradeoffs": plot_tradeoffs(files), "forest": plot_forest(report, files), "speed": plot_speed(files),
        "overview": plot_overview(files),
        "divergence": plot_divergence(files),
        "n_not_drawn": max(0, len(first) - MAX_PANELS), "margin": format_margin(report.suite.margin),
        "legend": verdict_legend(report),
    }  # fmt: skip


def _page_extras(extras: PageExtras | None) -> dict[str, Any]:
    if extras is None:
        return {"lead": "", "tables": ()}
    return {"lead": extras.lead, "tables": extras.tables, "links": extras.links, "answer": None}


@cache
def _page_environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=_page_text_seen,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def _page_text_seen(value: Any) -> Any:
    """Text of the manifest without unprintable characters; the template's own markup is unchanged."""
    return replace_unprintable(value, _UNSEEN) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _page_security_policy(css: str, script: str) -> str:
    """Allows our style and script by their hashes; no connection, frame, form, plug-in or base URL."""
    return (
        f"default-src 'none'; style-src '{_page_policy_hash(css)}'; script-src '{_page_policy_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _page_policy_hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
