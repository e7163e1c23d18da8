"""The output of the release commands: the gate's report, intended and finished publications, and `verify`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantyard.cli.render.styled import escape_rich_markup
from quantyard.formatting.columns import format_columns
from quantyard.formatting.numbers import format_bytes
from quantyard.protocol.gate import GateReport
from quantyard.publish.bundle import HUB, ReleaseDestination
from quantyard.publish.hub.commit import FileChange, HubTarget
from quantyard.publish.objections import Objection
from quantyard.publish.send import Intention, OciPublication, Published
from quantyard.publish.verify import ReleaseCheck
from quantyard.workflows.release import Proposal, Publication

_MARKS = {
    "passed": "[green]ok[/]    ", "failed": "[red]FAIL[/]  ", "too few questions": "[yellow]few[/]   ",
    "not measured": "[yellow]none[/]  ", "not judged": "–       ",  # noqa: RUF001  (a dash)
}  # fmt: skip
_VERDICTS = {
    "passed": "[green]passed[/]", "failed": "[red]failed[/]", "too few questions": "[yellow]too few questions[/]",
    "not measured": "[yellow]not everything was measured[/]",
}  # fmt: skip


def terminal_gate(gate: GateReport) -> str:
    """The outcome, and a line per budget."""
    backend = f"; perplexity and KLD as computed by {gate.backend}" if gate.backend else ""
    by = escape_rich_markup(f"budgets: {gate.budgets}, suite {gate.suite}{backend}")
    head = f"[bold]{'Gate':<13}[/]{_VERDICTS[gate.outcome]} ({by})"
    lines = [
        f"{'':<13}{_MARKS[r.outcome]}{escape_rich_markup(r.quant)}  {escape_rich_markup(r.finding)}"
        for r in gate.results
    ]
    return "\n".join([head, *lines])


def terminal_publish_intention(done: Publication) -> str:
    """What would be published, and the destinations."""
    assert done.intended is not None, "it was a dry run"
    facts = _render_intended_facts(done.where, done.intended, done.endpoint)
    told = [terminal_gate(done.gate), *terminal_objections(done.objections)]
    return "\n".join([format_columns(facts), *told, "[bold]Nothing was sent[/] (DRY_RUN=1)."])


def terminal_objections(found: Sequence[Objection]) -> Iterator[str]:
    """What has to be agreed to, and how."""
    for one in found:
        yield f"[bold yellow]{'To agree to':<13}[/]{escape_rich_markup(f'{one.fact} {one.hint}')}"
    if found:
        agree = ",".join(dict.fromkeys(one.kind for one in found))
        yield f"{'':<13}Publish so all the same: AGREE={agree}"


def terminal_proposal(proposal: Proposal) -> str:
    """What is about to be published where."""
    told = terminal_objections(proposal.objections)
    return "\n".join([format_columns(_render_proposed_facts(proposal)), *told])


def _render_proposed_facts(proposal: Proposal) -> list[tuple[str, str]]:
    where = proposal.where
    if proposal.intended is not None:
        return _render_intended_facts(where, proposal.intended, proposal.endpoint)
    files = escape_rich_markup(", ".join(proposal.quants))
    facts = [("Files", f"{files}, card, page and manifest, once they are made")]
    if where.hub:
        facts.append(("Hub", escape_rich_markup(_render_hub_target(where.hub, None, proposal.endpoint or HUB))))
    if where.oci:
        facts.append(("Registry", escape_rich_markup(f"{where.oci.registry}/{where.oci.repository}")))
    return facts


def _render_intended_facts(where: ReleaseDestination, found: Intention, endpoint: str | None) -> list[tuple[str, str]]:
    facts = list[tuple[str, str]]()
    if where.hub:
        facts.append(("Hub", escape_rich_markup(_render_hub_target(where.hub, found, endpoint or HUB))))
        facts += [("Files", _render_file_change(change)) for change in found.changes]
    for artifact in found.oci:
        signed = ", signed" if artifact.signed else ""
        facts.append(("Registry", escape_rich_markup(f"{artifact.reference}  {artifact.digest}{signed}")))
    return facts


def _render_hub_target(target: HubTarget, found: Intention | None, endpoint: str) -> str:
    """Args: found: None before the Hub is asked."""
    new = f"new, {'private' if target.private else 'public'}"
    state = f"if it is {new}" if found is None else {
        True: "exists; its visibility does not change", False: new,
        None: "the Hub was not asked: there is no token or no network",
    }[found.exists]
    how = "a pull request" if target.pull_request else f"one commit on {target.branch or 'main'}"
    gated = f", gated ({target.gated}) as its source" if target.gated else ""
    return f"{endpoint}/{target.repo_id} ({state}{gated}), {how}"


def _render_file_change(change: FileChange) -> str:
    return f"{change.state:<10} {format_bytes(change.size_bytes):>8}  {escape_rich_markup(change.path)}"


def terminal_published_files(done: Published) -> str:
    """What was published, and the addresses."""
    facts = [("Registry", escape_rich_markup(_render_oci(artifact))) for artifact in done.oci]
    if done.hub:
        sent = [change for change in done.hub.changes if change.state != "unchanged"]
        what = f"{len(sent)} of {len(done.hub.changes)} files sent" if sent else "nothing to send: it has every file"
        facts.append(
            ("Hub", escape_rich_markup(f"{done.hub.pull_request or done.hub.url} at {done.hub.commit[:12]}, {what}"))
        )
    return "[bold green]Published and read back[/]\n" + format_columns(facts)


def _render_oci(artifact: OciPublication) -> str:
    return f"{artifact.reference}  {artifact.digest}{', signed' if artifact.signed else ''}"


_CHECKED = {
    "ok": "[green]ok[/]           ", "failed": "[red]FAILED[/]       ", "not checked": "[yellow]not checked[/]  ",
}  # fmt: skip


def terminal_verify_checks(checks: Sequence[ReleaseCheck]) -> str:
    """One line per check, and the conclusion."""
    lines = [
        f"{_CHECKED[found.state]}{escape_rich_markup(found.what)}: {escape_rich_markup(found.finding)}"
        for found in checks
    ]
    n_failed = sum(found.state == "failed" for found in checks)
    n_open = sum(found.state == "not checked" for found in checks)
    verdict = f"[bold red]{n_failed} of {len(checks)} checks failed[/]: the files do not match the manifest."
    if not n_failed:
        left = f"; {n_open} could not be run here" if n_open else ""
        verdict = f"[bold green]All checks passed:[/] the files match the manifest{left}."
    return "\n".join([*lines, verdict])
