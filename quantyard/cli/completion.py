"""Shell completion by argcomplete: `quantyard completion bash` prints the shell's script."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import argcomplete
from argcomplete.shell_integration import shellcode

from quantyard.cli.output import print_script
from quantyard.cli.parser import command_line_parser
from quantyard.cli.settings import Setting


def completion_command(args: argparse.Namespace) -> None:
    print_script(shellcode(["quantyard"], shell=args.shell))


def answer_completion() -> None:
    """Answer the shell, and exit."""
    argcomplete.autocomplete(
        command_line_parser(on_option=_teach_completion), always_complete_options="long", validator=_is_completion
    )


def _is_completion(completion: str, prefix: str) -> bool:
    return completion.lower().startswith(prefix.lower())


def _teach_completion(setting: Setting, action: argparse.Action) -> None:
    if setting.name in _VALUES:
        action.completer = _complete_last_of_list(_VALUES[setting.name])  # type: ignore[attr-defined]
    elif not setting.flag and setting.kind not in ("path", "paths") and setting.name != "MODEL":
        action.completer = lambda **_: []  # type: ignore[attr-defined]  # argcomplete would offer files


def _complete_last_of_list(values: Callable[[], Sequence[str]]) -> Callable[..., list[str]]:
    """Completes the last of several comma-separated values."""

    def completer(prefix: str, **_: Any) -> list[str]:
        before, comma, last = prefix.rpartition(",")
        return [f"{before}{comma}{value}" for value in values() if _is_completion(value, last)]

    return completer


def _quants_to_complete() -> Sequence[str]:
    from quantyard.quants.catalog import QUANTS

    return [quant.name for quant in QUANTS]


def _engines_to_complete() -> Sequence[str]:
    from quantyard.requests import ENGINES

    return ENGINES


_VALUES: Final[Mapping[str, Callable[[], Sequence[str]]]] = {
    "QUANT": _quants_to_complete, "QUANTS": _quants_to_complete, "BASELINE": _quants_to_complete,
    "ENGINE": _engines_to_complete,
    "NODE_ENGINE": lambda: ("local", "docker", "podman"), "NETWORK_STAGES": lambda: ("nodes", "here"),
    "OUTTYPE": lambda: ("auto", "bf16", "f16", "f32", "q8_0"),
    "SUITE": lambda: ("smoke", "quick", "standard", "full", "behaviour", "cache"),
}  # fmt: skip
