"""The only module that prints: stdout is data, stderr is for people.

Escape sequences reach a terminal only from rich itself, and passwords in addresses never do.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from quantyard.cli.command_names import as_typed_command
from quantyard.execution.progress import LineReporter, LiveReporter
from quantyard.formatting.printable import printable, printable_line, printable_url


class SafeConsole(Console):
    """A console that makes control characters of foreign text visible: the one way to the terminal.

    Text is made harmless before it is measured, so that tables stay straight, and again where it leaves, whatever
    it came in. Links are taken out: none is ours.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich does, of harmless text, with commands as one types them here."""
        return super().render_str(terminal_safe_text(as_typed_command(text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does. Segments of control are rich's own: where the cursor goes while bars move."""
        for segment in super().render(renderable, options):
            style = segment.style.update_link(None) if segment.style and segment.style.link else segment.style
            yield segment if segment.control else Segment(terminal_safe_text(segment.text), style)


    def on_broken_pipe(self) -> None:
        """What is done about it the command line decides, for tables as for lines."""
        raise BrokenPipeError


def terminal_safe_text(text: str) -> str:
    """What may be shown of a text."""
    return printable(printable_url(text))


def stderr_console() -> Console:
    """Stderr: plans, progress, errors."""
    return SafeConsole(stderr=True, highlight=False, emoji=False)


def stdout_console() -> Console:
    """Stdout, for tables. Where it is not a terminal, lines are up to 200 characters wide."""
    return SafeConsole(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 200)


def console_reporter(console: Console) -> LiveReporter | LineReporter:
    """Bars on a terminal, lines elsewhere."""
    return LiveReporter(console) if console.is_terminal else LineReporter(console)


def print_line(value: object) -> None:
    """One line of data."""
    print(printable_line(printable_url(str(value))))


def print_script(text: str) -> None:
    """Several lines of data that a shell runs: our own, or a library's."""
    print(text)


def print_json(value: dict[str, Any]) -> None:
    """The one object of `--json`: ASCII, and null for a number that is not finite, which JSON has no word for."""
    print(printable_url(json.dumps(_plain(value), indent=2, allow_nan=False)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return as_typed_command(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
