"""The events of a workflow, as text for the terminal."""

from __future__ import annotations

from quantyard.cli.render import build as summary
from quantyard.cli.render.styled import escape_rich_markup
from quantyard.workflows.reporter import (
    DemoBegins,
    Event,
    GateJudged,
    PlanMade,
    QuantsFailed,
    SearchRuns,
)


def terminal_event(event: Event) -> str:
    """The event with rich's markup."""
    match event:
        case PlanMade(planned):
            return summary.terminal_plan(planned)
        case GateJudged(gate):  # imported late: a build needs neither gate nor matrix
            from quantyard.cli.render.release import terminal_gate

            return terminal_gate(gate)
        case QuantsFailed(failures):
            from quantyard.cli.render.matrix import terminal_matrix_failures

            return terminal_matrix_failures(failures, others=False)
        case SearchRuns(what, n_left, n_steps):
            return f"[bold]{escape_rich_markup(what)}[/]: {n_left} of {n_steps} steps to run"
        case DemoBegins(engine, reason):
            return summary.terminal_demo(engine, reason)
    return escape_rich_markup(event.text)
