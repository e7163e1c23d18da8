"""Chat with the served model in a terminal: `python -m server.client.chat`.

Answers are streamed. If stdin is a file or a pipe, no prompts are shown: every line is a question, and its answer goes
to stdout. Everything else goes to stderr.

Exit codes: 0 ended · 2 an option or the key's file is not usable · 4 the server · 130 interrupted (piped input only)
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar
from urllib.parse import urlsplit

from quantyard.formatting.printable import printable, printable_url
from server.client.client import (
    DEFAULT_KEY_FILE,
    DEFAULT_URL,
    BadSampling,
    Client,
    ClientError,
    KeyUnusable,
    Message,
    PromptTooLong,
    Sampling,
)
from server.client.spinner import spinner

HELP: Final = "/help lists the commands · /exit or Ctrl-D ends"
COMMANDS: Final = {
    "/help": "list these commands",
    "/model [NAME]": "name the model, and the others that are served; with a name, ask that one from now on",
    "/system TEXT": "set the system prompt; without a text, remove it",
    "/set NAME VALUE": "temperature, top_p, top_k or max_tokens: /set temperature 0.2; without a name, show them",
    "/reset": "forget the conversation",
    "/exit": "end, as does Ctrl-D",
}
BASE_MODEL: Final = (
    "has no chat template: it is a base model, which continues a text and does not answer. "
    "The server makes a template up; for a plain text use /v1/completions."
)
_SET: Final[dict[str, Callable[[str], int | float]]] = {
    "temperature": float, "top_p": float, "top_k": int, "max_tokens": int,
}  # fmt: skip
_DIM, _BOLD, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"
T = TypeVar("T", int, float)


@dataclass(frozen=True)
class ChatOption:
    """One option: `NAME` in the environment, `--name` on the command line."""

    name: str
    default: str
    help: str


_USUAL: Final = Sampling()
# To add an option: add a row here, and use it in `read_chat_settings`.
OPTIONS: Final = (
    ChatOption("PORT", str(urlsplit(DEFAULT_URL).port), "port of the server on this machine"),
    ChatOption("BASE_URL", "", "address of a server elsewhere, including /v1"),
    ChatOption("KEY_FILE", str(DEFAULT_KEY_FILE), "file with the server's key"),
    ChatOption("MODEL_NAME", "", "name in the server's list of models; empty: the first"),
    ChatOption("TEMPERATURE", str(_USUAL.temperature), "0: always the most likely token"),
    ChatOption("TOP_P", str(_USUAL.top_p), "sample from the most likely tokens with this share of the probability"),
    ChatOption("TOP_K", str(_USUAL.top_k), "sample from this many most likely tokens; 0: no limit"),
    ChatOption("MAX_TOKENS", str(_USUAL.max_tokens), "longest answer, in tokens"),
)


@dataclass(frozen=True)
class ChatSettings:
    """The settings of a chat."""

    base_url: str
    key_file: Path
    model: str
    sampling: Sampling
    color: bool


def read_chat_settings(argv: Sequence[str], environ: Mapping[str, str]) -> ChatSettings:
    """Read the settings; options win over the environment, and an empty value means the default.

    Raises:
        BadSampling: a value is not a number, or out of its range.
    """
    about = "Chat with the served model."
    parser = argparse.ArgumentParser(prog="python -m server.client.chat", description=about, epilog=HELP)
    for option in OPTIONS:
        shown = f"{option.help} (default: {option.default or 'none'})".replace("%", "%%")
        parser.add_argument(f"--{option.name.lower().replace('_', '-')}", metavar="…", help=shown)
    given = vars(parser.parse_args(argv))
    value = {o.name: given[o.name.lower()] or environ.get(o.name) or o.default for o in OPTIONS}
    sampling = Sampling(
        temperature=_chat_setting_number(float, "TEMPERATURE", value),
        top_p=_chat_setting_number(float, "TOP_P", value),
        top_k=_chat_setting_number(int, "TOP_K", value),
        max_tokens=_chat_setting_number(int, "MAX_TOKENS", value),
    )
    color = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    port = _chat_setting_number(int, "PORT", value)
    base_url = value["BASE_URL"] or urlsplit(DEFAULT_URL)._replace(netloc=f"127.0.0.1:{port}").geturl()
    return ChatSettings(base_url, Path(value["KEY_FILE"]), value["MODEL_NAME"], sampling, color)


def _chat_setting_number(kind: Callable[[str], T], name: str, values: Mapping[str, str]) -> T:
    try:
        return kind(values[name])
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise BadSampling(f"{name} is {values[name]!r}, which is not {what}.", f"Give {what}: {name}=…") from None


class Terminal:
    """Reads questions and writes answers and notes."""

    def __init__(self, source: TextIO, out: TextIO, notes: TextIO, *, color: bool) -> None:
        self._source, self._out, self._notes = source, out, notes
        self._last = ""  # the last character written
        self.is_live = source.isatty() and out.isatty()
        self._color = color and self.is_live
        if self.is_live:
            with contextlib.suppress(ImportError):
                importlib.import_module("readline")  # importing it gives `input` line editing and a history

    def ask(self) -> str | None:
        """The next line; None at the end of the input."""
        if not self.is_live:
            line = self._source.readline()
            return line.rstrip("\n") if line else None
        prompt = f"\001{_BOLD}\002you>\001{_PLAIN}\002 " if self._color else "you> "
        try:
            return input(prompt)
        except EOFError:
            self.say("\n")
            return None

    def say(self, text: str) -> None:
        """Write a piece of an answer immediately."""
        shown = printable(self._last + text)  # whether a joiner is printable depends on the character before it
        self._out.write(shown[len(printable(self._last)) :])
        self._out.flush()
        self._last = text[-1:] or self._last

    def waiting(self) -> AbstractContextManager[object]:
        """A spinner on a terminal."""
        return spinner(self._out, shown=self.is_live)

    def note(self, text: str) -> None:
        """Write a line that is not an answer."""
        shown = printable(printable_url(text))
        self._notes.write(f"{_DIM}{shown}{_PLAIN}\n" if self._color else f"{shown}\n")
        self._notes.flush()


@dataclass
class Chat:
    """One conversation."""

    client: Client
    sampling: Sampling
    terminal: Terminal
    system: str = ""
    history: list[Message] = field(default_factory=list)

    def run(self) -> None:
        """Answer questions until the input ends or /exit.

        Raises:
            ClientError: with piped input; in a terminal the error is shown, and the chat continues.
        """
        while True:
            try:
                line = self.terminal.ask()
                if line is None or not self._take(line.strip()):
                    return
            except KeyboardInterrupt:
                if not self.terminal.is_live:
                    raise
                self.terminal.note("\n(/exit or Ctrl-D ends)")

    def _take(self, line: str) -> bool:
        """Handle a line; returns whether the chat continues."""
        if not line:
            return True
        if line.startswith("/"):
            return self._command(*line.partition(" ")[::2])
        try:
            self.answer(line)
        except ClientError as error:
            if not self.terminal.is_live:
                raise
            self.terminal.note(str(error))
        return True

    def _command(self, name: str, text: str) -> bool:
        if name == "/exit":
            return False
        if name == "/help":
            self.terminal.note("\n".join(f"{command:<17}{text}" for command, text in COMMANDS.items()))
        elif name == "/model":
            self._model(text.strip())
        elif name == "/set":
            self._set(*text.split())
        elif name == "/reset":
            self.history.clear()
            self.terminal.note("(the conversation is forgotten)")
        elif name == "/system":
            self.system = text.strip()
            self.terminal.note("(system prompt set)" if self.system else "(system prompt removed)")
        else:
            self.terminal.note(f"Unknown command {name}. {HELP}")
        return True

    def _model(self, name: str) -> None:
        try:
            if name:
                self.client.use(name)
            others = [model for model in self.client.models if model != self.client.model]
        except ClientError as error:
            self.terminal.note(str(error))
            return
        self.terminal.note(f"{self.client.model}" + (f"; also served: {', '.join(others)}" if others else ""))

    def _set(self, name: str = "", *values: str) -> None:
        kind = _SET.get(name)
        try:
            if kind and len(values) == 1:
                changed: dict[str, Any] = {name: kind(values[0])}
                self.sampling = replace(self.sampling, **changed)
            elif name:
                raise ValueError(name)
        except (ClientError, ValueError) as error:
            names = f"/set takes a name and a number: {', '.join(_SET)}."
            said = str(error) if isinstance(error, ClientError) else names
            self.terminal.note(f"{said} Such as: /set temperature 0.2")
            return
        self.terminal.note(" · ".join(f"{one} {getattr(self.sampling, one)}" for one in _SET))

    def answer(self, question: str) -> None:
        """Ask, write the answer as it arrives, and remember both; if it fails, neither is remembered.

        Raises:
            ClientError: the server did not answer to the end.
        """
        asked: list[Message] = [*self.history, {"role": "user", "content": question}]
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        said, reason = self._stream([*system, *asked])
        if said:
            self.history = [*asked, {"role": "assistant", "content": said}]
        if reason == "length":
            self.terminal.note(f"(cut: MAX_TOKENS is {self.sampling.max_tokens}, or the context is full: /reset)")

    def _stream(self, messages: list[Message]) -> tuple[str, str]:
        """The answer and its finish reason. Ctrl-C ends the answer and keeps what has arrived."""
        said: list[str] = []
        pieces = self.client.stream_chat(messages, self.sampling)
        try:
            with self.terminal.waiting():
                said.append(next(pieces))
            self.terminal.say(said[0])
            while True:
                piece = next(pieces)
                said.append(piece)
                self.terminal.say(piece)
        except StopIteration as end:
            return "".join(said), str(end.value)
        except KeyboardInterrupt:
            if not self.terminal.is_live:
                raise
            self.terminal.say(" …")
            return "".join(said), "stopped"
        except PromptTooLong as error:
            message = f"The conversation no longer fits. {error.message}"
            raise PromptTooLong(message, "Type /reset to start again.") from error
        finally:
            pieces.close()  # closing the connection stops the server's work on the answer
            if said:
                self.terminal.say("\n")


def main() -> None:
    """Entry point."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    try:
        _chat_until_end(read_chat_settings(sys.argv[1:], os.environ))
    except ClientError as error:
        sys.exit(_say_last_in_chat(str(error), 2 if isinstance(error, BadSampling | KeyUnusable) else 4))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _chat_until_end(settings: ChatSettings) -> None:
    terminal = Terminal(sys.stdin, sys.stdout, sys.stderr, color=settings.color)
    client = Client(settings.base_url, settings.key_file, settings.model)
    model = client.model
    if client.is_base_model:
        terminal.note(f"{model} {BASE_MODEL}")
    if terminal.is_live:
        terminal.note(f"Talking to {model} at {settings.base_url}\n{HELP} · Ctrl-C stops an answer")
    Chat(client, settings.sampling, terminal).run()


def _say_last_in_chat(message: str, code: int) -> int:
    sys.stderr.write(printable(printable_url(message)) + "\n")
    return code


if __name__ == "__main__":
    main()
