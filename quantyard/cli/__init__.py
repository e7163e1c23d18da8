"""The command line: the commands, and how each ends.

What they do is in `build.py`, `release.py` and `verify.py`; they print through `output.py` alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from textwrap import indent
from typing import IO, NoReturn

from quantyard.cli.faults import ours_of
from quantyard.cli.output import forget_output, harmless, is_read, people, prepare_output, print_json, write_through
from quantyard.cli.parser import add_options
from quantyard.cli.render.styled import escape
from quantyard.cli.settings import (
    ADAPTING,
    ALLOWING,
    CHECKING,
    CHOOSING,
    COMPARING,
    MEASURING,
    PACKING,
    PUBLISHING,
    SERVING,
    SETTINGS,
    TUNING,
)
from quantyard.errors import Interrupted, QuantyardError
from quantyard.protocol.base import ExitCode

_MOST_SHOWN = 8_000  # characters of a message
_MACHINE = (
    "ENGINE", "ARTIFACTS", "MEMORY", "EXTRA_CA", "HF_ENDPOINT", "HTTPS_PROXY", "LLAMA_CPP_IMAGE", "LLAMA_CPP_TAG",
    "EVAL_BASE_IMAGE", "EVAL_BASE_TAG", "LLAMA_CPP_SERVER_TAG",
)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command, and exit with its code."""
    signal.signal(signal.SIGTERM, _stop)
    prepare_output()
    args = _parser().parse_args(argv)
    try:
        find_command(args.command)(args)
        write_through()
    except BrokenPipeError as error:
        if not is_read():
            _not_read()
        _fail(ours_of(error), args)
    except KeyboardInterrupt:
        stopped = Interrupted("Stopped.", "Finished stages are kept; type the same command to go on.")
        _fail(stopped, args)
    except QuantyardError as error:
        _fail(error, args)
    except Exception as error:
        _fail(ours_of(error), args)
    sys.exit(ExitCode.DONE)


def _not_read() -> NoReturn:
    """Whoever read our output has enough. Not 0: what was not read may have been a failure."""
    forget_output()
    sys.exit(128 + signal.SIGPIPE)


def _stop(*_: object) -> NoReturn:
    """SIGTERM ends a command as Ctrl-C does, also where a shell has made it deaf to that (`make build &`)."""
    raise KeyboardInterrupt


def find_command(name: str) -> Callable[[argparse.Namespace], None]:
    """The function that a row of COMMANDS names."""
    module, _, function = name.partition(".")
    found: Callable[[argparse.Namespace], None] = getattr(import_module(f"{__name__}.{module}"), function)
    return found


class _Parser(argparse.ArgumentParser):
    """As argparse's, but what it repeats of a command line acts on no terminal."""

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:  # type: ignore[override]
        super()._print_message(harmless(message), file)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="quantyard", description="Open language models in, verified GGUF files out.")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, command, text, settings in COMMANDS:
        sub = commands.add_parser(name, help=text, description=text)
        add_options(sub, settings)
        sub.set_defaults(command=command)
    return parser


_NOT_BUILDING = {*MEASURING, *SERVING, *PACKING, *ADAPTING, *COMPARING, *PUBLISHING, *CHECKING, *CHOOSING, *TUNING}
_BUILDING = tuple(setting.name for setting in SETTINGS if setting.name not in _NOT_BUILDING)
_SERVE = ("THREADS", "N_GPU_LAYERS", *_MACHINE)
_EVALUATING = (*_BUILDING, *MEASURING)
_LORA = (*ADAPTING, "ALLOW_PICKLE", "WORKERS", "JSON", *_MACHINE)
_CHOOSE = ("MODEL", "QUANT", "GGUF_FILE", "SUITE", "CONTEXT_SIZE", "JSON", *_MACHINE, *CHOOSING)
_PUBLISH = ("MODEL", "QUANT", "GGUF_FILE", "SUITE", "JSON", *_MACHINE, *PUBLISHING)
# To add a command: add a row, a target to the Makefile and a line to README.md (tests compare the three).
# The second column: module and function, imported only when the command is typed. The last: which settings are its
# options; None for all.
COMMANDS: tuple[tuple[str, str, str, Sequence[str] | None], ...] = (
    (
        "build", "build.build", "Fetch, convert, quantize and verify a model; ends with GGUF files and a manifest.",
        _BUILDING,
    ),
    ("eval", "build.measure", "Measure what quantization cost; builds first what is not built.", _EVALUATING),
    ("contract", "build.contract", "Serve each file to itself and check every promise of the API.", _BUILDING),
    ("image", "build.image", "Make one server image with the GGUF inside.", (*_BUILDING, *PACKING)),
    ("lora", "build.lora", "Make a GGUF of a LoRA adapter, to be served on top of its base model.", _LORA),
    (
        "serve", "build.serve", "Serve what was built last: docker compose up, or llama_cpp.server.",
        (*_SERVE, *SERVING),
    ),
    (
        "plan", "build.plan",
        "Show what a build (with SUITE: an eval; with QUANTS: a matrix) would run, need and take, and do nothing.",
        (*_EVALUATING, *COMPARING),
    ),
    (
        "matrix", "matrix.matrix", "Make and measure many quants in one run; one that fails leaves the others alone.",
        (*_EVALUATING, *COMPARING),
    ),
    (
        "publish", "release.publish", "Publish what was built and measured: to the Hub, to a registry, or both.",
        _PUBLISH,
    ),
    (
        "release", "release.release", "Build, measure, test, judge and publish, whatever of it is not done yet.",
        (*_EVALUATING, *PUBLISHING),
    ),
    (
        "verify", "verify.verify", "Check a published repo, a folder or a file against its manifest.",
        (*CHECKING, "MODEL", *ALLOWING, "THREADS", "JSON", *_MACHINE),
    ),
    (
        "choose", "choose.choose_file", "Name the best of the files that were measured, for a memory and a speed.",
        _CHOOSE,
    ),
    (
        "tune", "tune.tune", "Search the types of a model's tensors for a size or a divergence; make and measure it.",
        ("MODEL", "OUTTYPE", "CALIBRATION", "CHUNKS", "GGUF_FILE", "ALLOW_PICKLE", "ALLOW_MISMATCH", "THREADS",
         "WORKERS", "JSON", *TUNING, *_MACHINE),
    ),
    (
        "rates", "rates.rates", "Time the stages on a model of random weights, so that plans can tell their time.",
        ("THREADS", "JSON", *_MACHINE),
    ),
    ("gate", "release.gate", "Hold the budgets against what was measured; publish nothing.", _PUBLISH),
    ("report", "release.report", "Write the card and the page of what was measured, and show the page.", _PUBLISH),
    ("quants", "build.quants", "List every quantization type, and when to choose it.", ("JSON",)),
    ("models", "build.models", "List the models that MODEL knows by a short name.", ("JSON",)),
    ("doctor", "build.doctor", "Check this machine, with a remedy for each finding.", ("JSON", *_MACHINE)),
    (
        "demo", "build.demo", "The tour: build and measure a real 135M model with no account anywhere.",
        ("JSON", *_MACHINE),
    ),
    ("images", "build.images", "Make the tools ready: the images (docker), or .venv-local (local).", _MACHINE),
)


def _fail(error: QuantyardError, args: argparse.Namespace) -> NoReturn:
    with suppress(OSError):  # what takes no words gets none; the exit code says it
        _say(error, args)
    forget_output()
    sys.exit(error.code)


def _cut(text: str) -> str:
    """As much of a text as a screen takes; of what is longer the end, where a tool says why."""
    return text if len(text) <= _MOST_SHOWN else f"…{text[-_MOST_SHOWN:]}"


def _say(error: QuantyardError, args: argparse.Namespace) -> None:
    console = people()
    if getattr(args, "JSON", None) or os.environ.get("JSON") == "1":
        said = {"message": error.message, "hint": error.hint, "detail": error.detail, "exit_code": error.code}
        print_json({"error": said})
        write_through()
    if error.detail:  # indented: it may be a stage's word, and no line of it is to look like one of ours
        console.print(indent(harmless(_cut(error.detail)), "  "), markup=False, style="dim", soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(_cut(error.message))}", soft_wrap=True)
    if error.hint:
        console.print(_cut(error.hint), markup=False, soft_wrap=True)
