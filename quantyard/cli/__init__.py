"""The command line: starts a command, and turns its errors into words and exit codes.

Each command is imported when it is typed: `quantyard --help` loads neither pydantic nor rich. All output goes through
`output.py`.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from quantyard.cli.command_names import as_typed_command
from quantyard.cli.commands import COMMANDS, find_command
from quantyard.cli.parser import command_line_parser, parse_command_line
from quantyard.cli.streams import discard_stdout, flush_stdout, is_stdout_read, prepare_stdout
from quantyard.cli.variables import check_variables, command_of
from quantyard.errors import Interrupted, QuantyardError
from quantyard.protocol.exit_codes import Answer, ExitCode

__all__ = ("COMMANDS", "find_command", "main")
_MOST_SHOWN = 8_000  # characters of a message


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command, and exit with its code."""
    signal.signal(signal.SIGTERM, _stop_command)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # it would look for them in every installed package
    prepare_stdout()
    if "_ARGCOMPLETE" in os.environ:
        from quantyard.cli.completion import answer_completion

        answer_completion()
    typed = list(sys.argv[1:] if argv is None else argv)
    args = argparse.Namespace(JSON="1" if "--json" in typed else None)  # until argv is parsed
    try:
        _run_command(typed, args)
        flush_stdout()
    except BrokenPipeError as error:
        if not is_stdout_read():
            _end_command_not_read()
        _fail_command(_translated_error(error), args)
    except KeyboardInterrupt:
        stopped = Interrupted("Stopped.", "Finished stages are kept; type the same command to go on.")
        _fail_command(stopped, args)
    except QuantyardError as error:
        _fail_command(error, args)
    except Exception as error:
        _fail_command(_translated_error(error), args)
    gc.freeze()  # what is left goes with the process; to look for garbage in it first takes a tenth of a short command
    sys.exit(ExitCode.DONE)


def _run_command(typed: Sequence[str], args: argparse.Namespace) -> None:
    if not typed or typed[0] in ("-h", "--help"):
        command_line_parser("").print_help()
        return
    vars(args).update(vars(parse_command_line(typed)))
    if unused := check_variables(args, os.environ):
        _print_command_note(f"{command_of(args).name} does not use {', '.join(unused)}, set in the environment.")
    _load_command(args.command)(args)


def _print_command_note(text: str) -> None:
    from quantyard.cli.output import stderr_console

    stderr_console().print_lines(f"note: {text}", markup=False, style="dim")


def _load_command(function: str) -> Callable[[argparse.Namespace], None]:
    """The function of a command. What its modules define stays as long as the process, so that no garbage is looked
    for while they are loaded, nor among them later.
    """
    gc.disable()
    try:
        return find_command(function)
    finally:
        gc.freeze()
        gc.enable()


def _end_command_not_read() -> NoReturn:
    """End after the reader closed the pipe (`| head`); not with 0, because the unread output may hold a failure."""
    discard_stdout()
    sys.exit(Answer.OUTPUT_CLOSED)


def _stop_command(*_: object) -> NoReturn:
    """SIGTERM ends a command as Ctrl-C does; shells ignore SIGINT for background jobs (`make build &`)."""
    raise KeyboardInterrupt


def _translated_error(error: Exception) -> QuantyardError:
    from quantyard.cli.faults import quantyard_error_of

    return quantyard_error_of(error)


def _fail_command(error: QuantyardError, args: argparse.Namespace) -> NoReturn:
    with suppress(OSError):  # the stream cannot be written; the exit code is all that is left
        _print_command_error(error, args)
    discard_stdout()
    sys.exit(error.code)


def _cut_error_text(text: str) -> str:
    """The text, or the end of a long one, where tools state the cause."""
    return text if len(text) <= _MOST_SHOWN else f"…{text[-_MOST_SHOWN:]}"


def _print_command_error(error: QuantyardError, args: argparse.Namespace) -> None:
    from textwrap import indent

    from quantyard.cli.output import print_json, stderr_console, terminal_safe_text
    from quantyard.cli.render.styled import escape_rich_markup

    console, message, hint = stderr_console(), as_typed_command(error.message), as_typed_command(error.hint)
    if _command_wants_json(args):
        from quantyard.cli.json_outputs.base import ErrorFacts, ErrorOutput

        facts = ErrorFacts(
            kind=error.kind, message=message, hint=hint, detail=error.detail, exit_code=error.code,
        )
        print_json(ErrorOutput(error=facts))
        flush_stdout()
    if error.detail:  # indented, so that a stage's text cannot look like one of our lines
        console.print_lines(indent(terminal_safe_text(_cut_error_text(error.detail)), "  "), markup=False, style="dim")
    console.print_lines(f"[bold red]error:[/] {escape_rich_markup(_cut_error_text(message))} [dim]({error.kind})[/]")
    if hint:
        console.print_lines(_cut_error_text(hint), markup=False)


def _command_wants_json(args: argparse.Namespace) -> bool:
    """Whether JSON is set, by the same precedence as in a command; ignores an unreadable settings file."""
    from quantyard.cli.precedence import NO_FILE, resolve_settings
    from quantyard.cli.settings_file import read_settings_file

    file = NO_FILE
    with suppress(QuantyardError, OSError):
        file = read_settings_file(Path.cwd())
    return resolve_settings(args, os.environ, file)["JSON"].text.lower() in ("1", "true", "yes", "on")
