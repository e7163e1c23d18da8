"""Parses argv, and writes the text of `--help`."""

from __future__ import annotations

import argparse
import difflib
import shutil
import textwrap
from collections.abc import Callable, Sequence
from typing import IO, Final

from quantyard.cli.command_names import as_typed_command
from quantyard.cli.commands import COMMAND_GROUPS, COMMANDS, Command
from quantyard.cli.settings import BY_NAME, GROUPS, SETTINGS, Kind, Setting
from quantyard.errors import BadRequest
from quantyard.formatting.printable import printable, printable_url
from quantyard.protocol.exit_codes import EXIT_CODES
from quantyard.version import __version__

_WIDEST: Final = 100
_ALONE: Final = ("-h", "--help", "-V", "--version")
_SHELLS: Final = ("bash", "zsh", "fish")
_PLACEHOLDERS: Final[dict[Kind, str]] = {
    "text": "TEXT", "list": "A,B,…", "integer": "N", "decimal": "X", "size": "SIZE", "path": "PATH", "paths": "PATH,…",
}  # fmt: skip
OnOption = Callable[[Setting, argparse.Action], None]
_ABOUT: Final = "Turn open language models into verified and measured GGUF files."


def parse_command_line(argv: Sequence[str]) -> argparse.Namespace:
    """The command and its options.

    Raises:
        BadRequest: the command or the option does not exist.
        SystemExit: `--help` or `--version` was shown, or an option lacks its value.
    """
    if list(argv[:1]) == ["help"]:  # as git and docker have it
        argv = [*(word for word in argv[1:2] if word != "help"), "--help"]
    name = next((word for word in argv if not word.startswith("-")), None)
    names = [command.name for command in COMMANDS]
    if name is not None and name not in names:
        raise BadRequest(
            f"{name[:80]!r} is not a command.", f"{_meant_command(name, names)}List them: quantyard --help"
        )
    if name is None and argv[0] not in _ALONE:
        hint = f"{_meant_command(argv[0], _ALONE)}A command comes first: quantyard COMMAND [OPTIONS]"
        raise BadRequest(f"{argv[0][:80]!r} is not an option of quantyard itself.", hint)
    args, unknown = command_line_parser(name).parse_known_args(argv)
    if unknown:
        options = [BY_NAME[key].option for key in vars(args) if key in BY_NAME]
        raise _unknown_command_option(name or "", unknown[0], argv, options)
    return args


def _unknown_command_option(command: str, word: str, argv: Sequence[str], options: Sequence[str]) -> BadRequest:
    """The error for a word that is not an option of the command, with the one that was meant."""
    option, _, value = word.partition("=")
    before = argv[argv.index(word) - 1] if word in argv else ""
    meant = _meant_command(option, options)
    if not meant and option.isupper() and (variable := f"--{option.lower().replace('_', '-')}") in options:
        meant = f"Did you mean {variable} {value[:80]}? "  # as after make
    if not word.startswith("-") and before.endswith(","):
        meant = f"A list has no spaces: {before[:80]}{word[:80]}. "
    hint = f"{meant}List them: quantyard {command} --help"
    return BadRequest(f"{option[:80]!r} is not an option of {command}.", hint)


def command_line_parser(command: str | None = None, on_option: OnOption = lambda _setting, _action: None) -> _Parser:
    """The parser: with the options of one command, of all commands for None, or of none for "".

    Args:
        on_option: called with each option.
    """
    parser = _Parser(prog="quantyard", add_help=False)
    parser.add_argument("-h", "--help", action="help")
    parser.add_argument("-V", "--version", action="version", version=f"quantyard {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for row in (row for row in COMMANDS if not command or row.name == command):
        usage = f"quantyard {row.name} [OPTIONS]"
        sub = commands.add_parser(row.name, add_help=False, usage=usage, description=as_typed_command(row.help))
        sub.set_defaults(command=row.function)
        if command != "":
            _fill_command_parser(sub, row, on_option)
    return parser


def add_command_options(
    parser: argparse.ArgumentParser, names: Sequence[str] | None = None,
    on_option: OnOption = lambda _setting, _action: None,
) -> None:
    """Add the options of these settings (default: all) to a parser, under their headings."""
    for group in GROUPS:
        chosen = [s for s in SETTINGS if s.group == group and s.option and (names is None or s.name in names)]
        if chosen:
            heading = parser.add_argument_group(group)
            for setting in chosen:
                on_option(setting, _add_command_option(heading, setting))


def _fill_command_parser(parser: argparse.ArgumentParser, command: Command, on_option: OnOption) -> None:
    typical = parser.add_argument_group("typical options")
    for name in command.typical:
        on_option(BY_NAME[name], _add_command_option(typical, BY_NAME[name]))
    typical.add_argument("-h", "--help", action="help", help="show this help")
    if command.name == "completion":
        parser.usage = f"quantyard completion {{{','.join(_SHELLS)}}}"
        parser.add_argument("shell", choices=_SHELLS, help="the shell to complete in")
        return
    if command.name == "node":
        parser.usage = "quantyard node {run,check} NAME [OPTIONS]"
        parser.add_argument("action", choices=("run", "check"), help="run a stage, or say what this node has")
        parser.add_argument("name", metavar="NAME", help="the spec, a file or in the store; or the object to write")
    every = [s.name for s in SETTINGS] if command.settings is None else command.settings
    add_command_options(parser, [name for name in every if name not in command.typical], on_option)
    parser.epilog = (
        "Each option is also a variable (--gguf-file: GGUF_FILE), and most are keys of quantyard.toml (gguf-file). An "
        "option wins over a variable, a variable over the file."
    )


def _add_command_option(group: argparse._ArgumentGroup, setting: Setting) -> argparse.Action:
    default = f" (default: {setting.default})" if setting.default and "default" not in setting.help else ""
    text = as_typed_command(setting.help + default).replace("%", "%%")
    if setting.flag:
        return group.add_argument(setting.option, dest=setting.name, action="store_const", const="1", help=text)
    metavar = setting.placeholder or _PLACEHOLDERS[setting.kind]
    return group.add_argument(setting.option, dest=setting.name, metavar=metavar, help=text)


def _meant_command(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]}? " if close else ""


class _Format(argparse.HelpFormatter):
    """Two columns, options and help, as wide as the terminal but at most 100 characters."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=_help_width())


class _Parser(argparse.ArgumentParser):
    """argparse's parser with escaped output and grouped help."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options, formatter_class=_Format, allow_abbrev=False)  # type: ignore[arg-type]

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:  # type: ignore[override]
        super()._print_message(printable(printable_url(message)), file)

    def format_help(self) -> str:
        """The help, in groups."""
        return super().format_help() if self.prog != "quantyard" else help_overview()


def help_overview() -> str:
    """The text of `quantyard --help`."""
    parts = ["usage: quantyard COMMAND [OPTIONS]", _ABOUT]
    for group, title in COMMAND_GROUPS.items():
        rows = (_help_row(row.name, as_typed_command(row.help)) for row in COMMANDS if row.group == group)
        parts.append("\n".join([f"{title}:", *rows]))
    options = (_help_row("-h, --help", "Show this help."), _help_row("-V, --version", "Show the version."))
    parts.append("\n".join(["Options:", *options]))
    ends = (_help_row(str(int(row.code)), row.meaning) for row in EXIT_CODES)
    parts.append("\n".join(["Exit codes:", *ends]))
    example = as_typed_command("make demo"), as_typed_command("make build MODEL=org/name QUANT=Q4_K_M")
    parts.append("\n".join(["Start with:", *(f"  {line}" for line in example)]))
    parts.append("The options of a command:  quantyard help COMMAND")
    return "\n\n".join(parts) + "\n"


def _help_row(name: str, text: str) -> str:
    return textwrap.fill(text, _help_width(), initial_indent=f"  {name:<15}", subsequent_indent=" " * 17)


def _help_width() -> int:
    return min(shutil.get_terminal_size().columns, _WIDEST)
