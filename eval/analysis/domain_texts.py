"""The texts of domains: `<domain>.jsonl` files of documents and conversations, and how much of each is read.

A line is `{"id": …, "text": …}` or `{"id": …, "messages": […], "tools": […]}`; messages are those of a chat template in
Transformers, with `tool_calls` and the role `tool`. A document of the domain `long` may be
`{"id": …, "interleaved": ["prose", "chat"]}`; see `eval/analysis/long_documents.py`. eval/suites/domains/README.md
describes those that come with Quantyard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quantyard.protocol.base import ExitCode
from quantyard.protocol.evaluation import DomainSettings
from quantyard.protocol.runner import StageFailure

LONG: Final = "long"  # the domain that is read by position
_OURS: Final = Path(__file__).parents[1] / "suites" / "domains"
LEAST_PIECE: Final = 32  # tokens read of a document, so that a short budget still reads more than its first words
_HINT: Final = "docs/explanation/divergence-by-domain.md describes the texts of domains."
_ROLES: Final = frozenset({"system", "user", "assistant", "tool"})


@dataclass(frozen=True)
class DomainDocument:
    """One line of a domain's file: a plain text, or the messages of a conversation with the tools that it may call.

    A long document may be made of those of other domains, `interleaved`; it then has no text yet.
    """

    name: str
    text: str = ""
    interleaved: tuple[str, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class DomainText:
    """One domain."""

    name: str
    documents: tuple[DomainDocument, ...]

    @property
    def is_chat(self) -> bool:
        """Whether it has conversations."""
        return bool(self.documents[0].messages)


def read_domain_texts(suite_dir: Path, settings: DomainSettings) -> list[DomainText]:
    """The domains that the settings name, or all of the folder, in the order of their names.

    Raises:
        StageFailure: `bad-domain` (2): no such domain, or a file that cannot be read as one.
    """
    folder = domain_folder(suite_dir, settings)
    paths = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if unknown := [name for name in settings.names if name not in paths]:
        known = ", ".join(paths) or "none"
        raise bad_domain(f"There is no domain {unknown[0]!r}; there are: {known}.", "Name one of these.")
    if not paths:
        raise bad_domain(f"The folder {settings.texts or _OURS.name} has no domain.", "Add one .jsonl file for each.")
    names = [name for name in settings.names or paths if name != LONG or settings.long_documents]
    return [read_domain(paths[name]) for name in names]


def domain_folder(suite_dir: Path, settings: DomainSettings) -> Path:
    """Where the texts are: a folder beside the suite, or ours."""
    return _OURS if settings.texts is None else suite_dir / settings.texts


def read_domain(path: Path) -> DomainText:
    """One domain's file.

    Raises:
        StageFailure: `bad-domain` (2): it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # texts may have other line breaks
    except (OSError, UnicodeDecodeError) as error:
        raise bad_domain(f"The domain {path.name} cannot be read: {error}.") from error
    documents = tuple(_read_document(path.name, at, line) for at, line in enumerate(lines, 1) if line.strip())
    if not documents:
        raise bad_domain(f"The domain {path.name} is empty.")
    if len({bool(document.messages) for document in documents}) > 1:
        raise bad_domain(f"The domain {path.name} mixes documents and conversations.", "Put them into two files.")
    return DomainText(path.stem, documents)


def _read_document(file: str, at: int, line: str) -> DomainDocument:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise bad_domain(f"{file}, line {at}, is not JSON: {error}.") from error
    if not isinstance(data, dict) or not isinstance(data.get("id"), str):
        raise bad_domain(f"{file}, line {at}, has no id.")
    text, messages, tools = data.get("text"), data.get("messages"), data.get("tools") or []
    if isinstance(text, str) and text.strip() and messages is None:
        return DomainDocument(data["id"], text)
    interleaved = data.get("interleaved") or []
    if file == f"{LONG}.jsonl" and text is messages is None and _are_names(interleaved):
        return DomainDocument(data["id"], interleaved=tuple(map(str, interleaved)))
    if text is None and isinstance(messages, list) and _are_messages(messages) and isinstance(tools, list):
        return DomainDocument(data["id"], messages=tuple(messages), tools=tuple(tools))
    raise bad_domain(f"{file}, line {at} ({data['id']}), has neither a text nor messages with known roles.")


def _are_names(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(isinstance(one, str) and one != LONG for one in found)


def _are_messages(messages: Sequence[Any]) -> bool:
    """Whether it is a conversation in which the assistant says something."""
    if not all(isinstance(message, dict) and message.get("role") in _ROLES for message in messages):
        return False
    return any(message["role"] == "assistant" for message in messages)


def bad_domain(message: str, hint: str = _HINT) -> StageFailure:
    """The failure of texts that cannot be used."""
    return StageFailure(ExitCode.BAD_REQUEST, "bad-domain", message, hint)


def domain_reading_lengths(lengths: Sequence[int], budget: int, longest: int) -> list[int]:
    """How many tokens to read of each document, `budget` in all: as many of each as of the others where it has them.

    Args:
        lengths: tokens of the documents.
        longest: the most of one document.
    """
    room = [min(n, longest) for n in lengths]
    level, low, high = longest, 0, longest
    if sum(room) > budget:
        while high - low > 1:
            level = (low + high) // 2
            low, high = (level, high) if sum(min(n, level) for n in room) <= budget else (low, level)
        level = max(low, LEAST_PIECE)
    taken, found = 0, []
    for n in room:
        found.append(max(0, min(n, level, budget - taken)))
        taken += found[-1]
    return found
