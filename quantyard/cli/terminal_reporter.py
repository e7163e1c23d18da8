"""Shows the progress of a workflow on stderr: bars on a terminal, lines elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager

from quantyard.cli.output import console_reporter, stderr_console
from quantyard.cli.render.events import terminal_event
from quantyard.execution.reporter import StepReporter
from quantyard.workflows.reporter import Event, PlanMade


class TerminalReporter:
    """The reporter that every command gives its workflow."""

    def __init__(self) -> None:
        self._console = stderr_console()
        self._expected_s: dict[str, float] = {}  # of the lines of the plan that was told last

    def steps(self) -> AbstractContextManager[StepReporter]:
        """Bars, or lines, for as long as the steps run."""
        return console_reporter(self._console, self._expected_s)

    def tell(self, event: Event) -> None:
        """Prints the event."""
        if isinstance(event, PlanMade):
            self._expected_s = event.planned.expected_s
        self._console.print_lines(terminal_event(event))
