"""Shows the progress of a workflow on stderr: bars on a terminal, lines elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager

from quantyard.cli.output import console_reporter, stderr_console
from quantyard.cli.render.events import terminal_event
from quantyard.execution.reporter import StepReporter
from quantyard.workflows.reporter import Event


class TerminalReporter:
    """The reporter that every command gives its workflow."""

    def __init__(self) -> None:
        self._console = stderr_console()

    def steps(self) -> AbstractContextManager[StepReporter]:
        """Bars, or lines, for as long as the steps run."""
        return console_reporter(self._console)

    def tell(self, event: Event) -> None:
        """Prints the event."""
        self._console.print(terminal_event(event), soft_wrap=True)
