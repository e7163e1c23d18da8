"""Turns keyword arguments into a request, with the same table of settings and checks as the command line."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any, Final, TypeVar, get_type_hints

from quantyard.cli.commands import COMMANDS, MACHINE
from quantyard.cli.faults import quantyard_error_of
from quantyard.cli.network_request import configure_http_libraries
from quantyard.cli.request import read_command_request
from quantyard.cli.settings import BY_NAME, SETTINGS, Setting
from quantyard.cli.settings_file import setting_text
from quantyard.errors import BadRequest, QuantyardError
from quantyard.requests import BuildRequest
from quantyard.workflows.reporter import LinesReporter, SilentReporter, WorkflowReporter

Progress = Callable[[str], object] | WorkflowReporter | None
_FUNCTIONS: Final = {"eval": "evaluate"}  # functions whose name differs from the command's
F = TypeVar("F", bound=Callable[..., object])
# Settings of the machine may come from the environment; all others come from the call alone.
_OF_THE_MACHINE: Final = frozenset((*MACHINE, "HF_TOKEN"))


def api_request(
    command: str, settings: Mapping[str, Any], **given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
) -> BuildRequest:
    """The request of a call.

    Args:
        command: the command whose settings the function takes.
        settings: the keyword arguments.
        given: the positional arguments, by the names of their settings.

    Raises:
        TypeError: the function does not take an argument.
        BadRequest: a value is not valid.
    """
    taken, function = api_settings(command), f"{_FUNCTIONS.get(command, command)}()"
    values = {name: _api_value_as_text(function, BY_NAME[name], value) for name, value in given.items()}
    for key, value in settings.items():
        if key not in taken or taken[key].name in given:
            close = difflib.get_close_matches(key, taken, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{function} has no argument {key!r}.{meant}")
        if value is not None:
            values[taken[key].name] = _api_value_as_text(function, taken[key], value)
    environment = {name: text for name, text in os.environ.items() if name not in BY_NAME or name in _OF_THE_MACHINE}
    hidden = {name: values.pop(name) for name in tuple(values) if BY_NAME[name].secret or BY_NAME[name].private}
    names = [setting.name for setting in taken.values()]
    args = argparse.Namespace(**{**dict.fromkeys(names), "JSON": None, **values})
    request = read_command_request(args, {**environment, **hidden})
    configure_http_libraries(request)
    return request


def api_settings(command: str) -> dict[str, Setting]:
    """The settings of a command's function, by argument: of the command but JSON and YES, and of the machine."""
    row = next(row for row in COMMANDS if row.name == command)
    names = {*(row.settings or BY_NAME), *_OF_THE_MACHINE} - {"JSON", "YES"}
    return {setting.name.lower(): setting for setting in SETTINGS if setting.name in names}


def _api_value_as_text(function: str, setting: Setting, value: object) -> str:
    """The value as text, as a user would type it."""
    if isinstance(value, tuple | list):
        items = [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
        if any(isinstance(item, str) and "," in item for item in items):
            message = f"{function}: an item of {setting.name.lower()!r} holds a comma, which separates items."
            raise BadRequest(message, "Give a name or a path without a comma.")
        value = items
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif isinstance(value, Integral) and not isinstance(value, bool):  # also numpy's integers
        value = str(int(value)) if _does_api_setting_take_bytes(setting) else int(value)
    if not isinstance(value, str | int | float | list):
        message = f"{function}: {setting.name.lower()!r} cannot be of the type {type(value).__name__}."
        raise BadRequest(message, "Give text, a number, True or False, a path, or a list of texts or paths.")
    return setting_text(function, setting.name.lower(), setting, value)


def _does_api_setting_take_bytes(setting: Setting) -> bool:
    return setting.kind == "size" or setting.name == "TARGET_SIZE"


def api_reporter(progress: Progress) -> WorkflowReporter:
    """A reporter for `progress`: None, a function that takes lines, or a reporter."""
    if progress is None:
        return SilentReporter()
    return progress if isinstance(progress, WorkflowReporter) else LinesReporter(progress)


@contextmanager
def translate_api_errors() -> Iterator[None]:
    """Translates errors of the operating system (a full disk, an unreadable file) into ours; bugs are not translated.

    Raises:
        OutOfResources, BadRequest: disk or memory ran out, or a file cannot be used.
    """
    try:
        yield
    except QuantyardError:
        raise
    except (OSError, MemoryError) as error:
        found = quantyard_error_of(error)
        if type(found) is QuantyardError:  # not one of the documented kinds
            raise
        raise found from error


def document_api_call(command: str, settings: type) -> Callable[[F], F]:
    """Decorator that adds the settings of a command to a function's signature and docstring."""

    def give(function: F) -> F:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        hints = dict(sorted(get_type_hints(settings).items(), key=lambda item: item[0].upper() in _OF_THE_MACHINE))
        taken = api_settings(command)
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in hints.items()
        ]
        function.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        lines = [textwrap.fill(f"{name}: {taken[name].help}", 100, subsequent_indent="    ") for name in hints]
        told = textwrap.indent("\n".join(lines), "    ")
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nSettings:\n{told}\n"
        return function

    return give
