"""llama-server with a model's chat template on a tiny model: renders conversations within limits of time and memory.

The served model later goes through the same code: llama-server compiles and renders the template before it reports
healthy. So a template that fails here would also stop that server from starting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from builder.llama.server import LlamaServer
from builder.llama.template_model import write_llama_template_model
from quantyard.formats.gguf import GgufHeader
from quantyard.protocol.aborts import has_assertion
from quantyard.protocol.runner import StageFailure
from quantyard.sandbox.bounded_process import (
    CLOCK_S,
    TOO_LARGE,
    TOO_SLOW,
    OverLimit,
    SandboxBudget,
    sandbox_exit_words,
    sandbox_grant_cpu_time,
    sandbox_memory_exceeded,
    sandboxed_command,
)
from quantyard.sandbox.chat_template import ChatRefused, Messages, refuse_large_sandbox_template

_MEMORY_BYTES: Final = 2 << 30  # the server itself uses a tenth of it
_MAX_CHARACTERS: Final = 2 << 20  # of a rendered conversation
_MAX_REASON: Final = 500
_FLAGS: Final = (
    "--ctx-size", "32", "--parallel", "1", "--no-warmup", "--jinja", "--threads", "1", "--threads-http", "2",
)  # fmt: skip
_OUT_OF_MEMORY: Final = ("bad_alloc", "length_error", "vector::_M_", "basic_string::_M_")  # libstdc++'s exceptions
_TEMPLATE: Final = re.compile(r"chat.template|jinja", re.IGNORECASE)
T = TypeVar("T")


class TemplateServer:
    """One such server; the first request waits until it is up."""

    def __init__(self, binary: Path, model: GgufHeader, folder: Path) -> None:
        """Write the tiny model (a few megabytes, removed by `stop`) to `folder`.

        Raises:
            StageFailure: the template is longer than the limit.
        """
        refuse_large_sandbox_template(model.chat_template or "")
        self._path = write_llama_template_model(folder / "template.gguf", model)
        command = sandboxed_command([str(binary), "--model", str(self._path), *_FLAGS], _MEMORY_BYTES)
        self._server, self._budget = LlamaServer(command, CLOCK_S), SandboxBudget()

    def start(self) -> None:
        """Start it; does not wait."""
        self._server.start()

    def stop(self) -> None:
        """Kill it."""
        self._server.stop()
        self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Wait until the template is loaded.

        Raises:
            ChatRefused: llama.cpp does not accept the template, so a server would not start with it.
            OverLimit: the template takes too much time or memory.
            StageFailure: llama.cpp does not start for another reason, such as the vocabulary.
        """
        self._asked(lambda: self._server.ask("GET", "/health"))

    def render(self, messages: Messages) -> str:
        """The conversation's text, up to where the assistant begins.

        Raises:
            ChatRefused: llama.cpp cannot run the template, or the template raises.
            OverLimit: the template takes too much time or memory.
        """
        body: dict[str, object] = {"messages": list(messages)}
        status, answer = self._asked(lambda: self._server.ask("POST", "/apply-template", body))
        if status != 200:
            reason = llama_server_error(answer)
            if any(sign in reason for sign in _OUT_OF_MEMORY):
                raise OverLimit(sandbox_memory_exceeded(_MEMORY_BYTES))
            raise ChatRefused(reason[:_MAX_REASON])
        text = str(answer.get("prompt", ""))
        if len(text) > _MAX_CHARACTERS:
            raise OverLimit(TOO_LARGE)
        return text

    def _asked(self, ask: Callable[[], T]) -> T:
        sandbox_grant_cpu_time(self._server.pid)
        try:
            with self._budget.one_more():
                return ask()
        except StageFailure as failure:
            code, log = self._server.exit_code(), self._server.log_tail()
            if code is None:
                raise OverLimit(TOO_SLOW) from failure
            if code < 0 and has_assertion(log):
                raise  # of llama.cpp, on the vocabulary: the template is not to blame
            if code < 0:
                raise OverLimit(sandbox_exit_words(code, _MEMORY_BYTES)) from failure
            if any(sign in log for sign in _OUT_OF_MEMORY):
                raise OverLimit(sandbox_memory_exceeded(_MEMORY_BYTES)) from failure
            if _TEMPLATE.search(log):
                raise ChatRefused(_template_server_error(log)) from failure
            raise


def llama_server_error(answer: dict[str, Any]) -> str:
    """The error message of llama-server's answer."""
    error = answer.get("error", answer)
    message = error.get("message") if isinstance(error, dict) else None
    return str(message) if message else json.dumps(error)


def _template_server_error(log: str) -> str:
    """The first error in the log; the whole text if it names none."""
    lines = [line.partition("rror: ")[2] for line in log.splitlines() if "rror: " in line]
    return (lines[0] if lines else log)[:_MAX_REASON]
