"""The only module that prints: stdout is data, stderr is for people.

Only rich's own escape sequences reach a terminal; passwords in addresses never do.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from quantyard.cli.command_names import as_typed_command
from quantyard.execution.progress import LineReporter
from quantyard.formatting.printable import printable, printable_line, printable_url

if TYPE_CHECKING:
    from quantyard.cli.json_outputs.base import JsonOutput
    from quantyard.execution.live_progress import LiveReporter


class SafeConsole(Console):
    """A console that escapes control characters of foreign text; all output to a terminal goes through it.

    Text is escaped before it is measured, so that tables stay aligned, and again as a segment before it is written.
    Links are removed: our output has none.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Renders the escaped text, with commands in the form of this installation."""
        return super().render_str(terminal_safe_text(as_typed_command(text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Renders with every segment escaped, except rich's own control segments, which move the cursor."""
        for segment in super().render(renderable, options):
            style = segment.style.update_link(None) if segment.style and segment.style.link else segment.style
            yield segment if segment.control else Segment(terminal_safe_text(segment.text), style)

    def print_lines(self, text: str, *, markup: bool = True, style: str | None = None) -> None:
        """Prints text of one or several lines: on a terminal broken at words, elsewhere as it is."""
        if not self.is_terminal:
            self.print(text, markup=markup, style=style, soft_wrap=True)
            return
        from quantyard.cli.render.wrapping import wrapped_lines

        shown = self.render_str(text, markup=markup, style=style or "")
        self.print(*wrapped_lines(shown, self.width), sep="\n", soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Leaves a broken pipe to the command line, which handles it for all output."""
        raise BrokenPipeError


def terminal_safe_text(text: str) -> str:
    """The text with control characters escaped and passwords removed."""
    return printable(printable_url(text))


def stderr_console() -> SafeConsole:
    """The console for stderr: plans, progress, errors."""
    return SafeConsole(stderr=True, highlight=False, emoji=False)


def stdout_console() -> SafeConsole:
    """The console for tables on stdout; without a terminal, lines are up to 200 characters wide."""
    return SafeConsole(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 200)


def console_reporter(
    console: SafeConsole, expected_s: Mapping[str, float] | None = None
) -> LiveReporter | LineReporter:
    """A reporter with bars on a terminal, with lines elsewhere. `expected_s`: by the plan, of each step by label."""
    if not console.is_terminal:
        return LineReporter(console)
    from quantyard.execution.live_progress import LiveReporter  # imported late: lines need nothing of bars

    return LiveReporter(console, lambda text: console.print_lines(text, markup=False), expected_s)


def print_line(value: object) -> None:
    """Print one line of data."""
    print(printable_line(printable_url(str(value))))


def print_script(text: str) -> None:
    """Print a shell script."""
    print(text)


def print_json(value: JsonOutput) -> None:
    """Print the object of `--json`."""
    print(json_text(value))


def json_text(value: JsonOutput) -> str:
    """The object of `--json`: ASCII, with null for numbers that are not finite."""
    return printable_url(json.dumps(_plain_json_value(value.model_dump(mode="json")), indent=2, allow_nan=False))


def _plain_json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json_value(item) for item in value]
    if isinstance(value, str):
        return as_typed_command(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
