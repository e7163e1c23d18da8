"""Renders chat templates, which are foreign programs, within limits; an error names a template that breaks them.

llama.cpp renders them by itself (`builder/llama`), and so does transformers (`builder/checks/hf_reference.py`);
both end in the same words.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure
from quantyard.sandbox.bounded_process import CPU_S, OverLimit, SandboxWorker

Messages = Sequence[Mapping[str, Any]]  # with a role and a content; see Transformers' chat templates
MAX_CHARACTERS: Final = 1 << 20  # of a template; real ones stay under 100,000
_WORKER: Final = Path(__file__).with_name("template_worker.py")
_HINT: Final = (
    "It is a program that came with the model, and it would stop a server as well: tell its authors, or put "
    "another template into the model."
)


class ChatRefused(Exception):
    """The template does not take this conversation; the message says why."""


def sandbox_template_failure(what: str, conversation: str = "", detail: str = "") -> StageFailure:
    """The failure for a template that breaks a limit; `what` it does, as `OverLimit` says it."""
    where = f" on the conversation {conversation!r}" if conversation else ""
    message = f"The chat template {what}{where}."
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "chat-template", message, _HINT, detail)


def refuse_large_sandbox_template(template: str) -> None:
    """Refuse a template that is too long.

    Raises:
        StageFailure: the template is longer than any real one.
    """
    if len(template) > MAX_CHARACTERS:
        raise sandbox_template_failure(f"has {len(template):,} characters, more than the {MAX_CHARACTERS:,} allowed")


def _jinja_folder() -> str:
    """Where the worker finds Jinja: it is isolated, so it knows nothing of PYTHONPATH, by which an image has its
    libraries.
    """
    found = importlib.util.find_spec("jinja2")
    assert found, "a dependency of ours"
    assert found.origin, "a package with a file"
    return str(Path(found.origin).parents[1])


class ChatTemplate:
    """One template, rendered by Jinja as transformers does it, in a process of its own."""

    def __init__(self, text: str, bos_token: str, eos_token: str, cpu_s: int = CPU_S) -> None:
        refuse_large_sandbox_template(text)
        self.text = text
        self._names = {"bos_token": bos_token, "eos_token": eos_token}
        self._worker = SandboxWorker([sys.executable, "-I", str(_WORKER), _jinja_folder()], cpu_s)
        self._is_told = False

    def close(self) -> None:
        """End the process."""
        self._worker.close()

    def render(
        self, messages: Messages, *, add_generation_prompt: bool, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """The conversation's text.

        Args:
            tools: JSON schemas of the functions that the assistant may call.

        Raises:
            ChatRefused: the template refuses the conversation, or is not a valid template.
            OverLimit: it takes too long or too much.
        """
        if not self._is_told:
            self._worker.ask({"template": self.text, **self._names})
            self._is_told = True
        asked: dict[str, Any] = {"messages": [dict(message) for message in messages]}
        asked |= {"add_generation_prompt": add_generation_prompt}
        asked |= {"tools": [dict(tool) for tool in tools]} if tools else {}
        try:
            answer = self._worker.ask(asked)
        except OverLimit:
            self._is_told = False
            raise
        if fault := answer.get("fault"):
            raise OverLimit(fault)
        if "text" not in answer:
            raise ChatRefused(str(answer.get("refused")))
        return str(answer["text"])
