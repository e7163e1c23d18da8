"""Which characters of a conversation in a chat template the assistant writes.

Templates rewrite what is past: those of models that think drop thoughts, others move the tools to the last question. So
each message is searched for in the whole text, after the messages before it, and nothing is assumed of what stands
between. The texts of the messages up to an answer, without and with it, say what surrounds it: the generation prompt
before, and the end of the turn after.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from eval.llama.chat_shown import Message, are_tools_shown, is_shown_in, shapes_of_said
from eval.llama.thoughts import thought_marks
from quantyard.sandbox.chat_template import ChatTemplate

ANSWERS: Final = "answers"
CALLS: Final = "tool calls"
IS_CALL: Final = "is_call"  # the key of a message whose calls are in its content
_END_MARK: Final = re.compile(r"\s*(<[^<>]*>|\[[^\[\]]*[\[\]])")  # a special token
_OPEN_MARK: Final = re.compile(r"[<\[][^<>\[\]]*\Z")  # half of one


class ChatNotShown(Exception):
    """A form does not show a conversation; the message says why."""


@dataclass(frozen=True)
class WrittenSpan:
    """Characters `start` to `end` (exclusive) of a conversation, which the assistant writes."""

    start: int
    end: int
    kind: str  # ANSWERS or CALLS


@dataclass(frozen=True)
class ShownChat:
    """The text of a conversation, and what the assistant writes of it.

    Attributes:
        n_said: characters of the assistant's answers, and of the texts among the arguments of its calls.
        n_shown: those of them within the spans.
    """

    text: str
    spans: tuple[WrittenSpan, ...]
    n_said: int = 0
    n_shown: int = 0


def templated_chat(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> ShownChat:
    """The conversation in the template.

    Raises:
        ChatNotShown: without the tools, their results, a call, or the system message.
        ChatRefused: the template refuses it.
    """
    whole = template.render(messages, add_generation_prompt=False, tools=tools)
    marks = thought_marks(template.text)
    spans, said, shown = list[WrittenSpan](), list[str](), list[str]()
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            if message["role"] != "user" and not is_shown_in(_content_of(message), whole):
                raise ChatNotShown(f"the chat template does not show the messages of the role {message['role']}")
            continue
        before = template.render(messages[:at], add_generation_prompt=True, tools=tools)
        if not said and not are_tools_shown(template, messages[:at], tools, before):
            raise ChatNotShown("the chat template does not show the tools")
        after = template.render(messages[: at + 1], add_generation_prompt=False, tools=tools)
        span = _written_span(whole, before, after, messages[: at + 1], marks.closes if marks else "")
        if span is None and message.get("tool_calls"):
            raise ChatNotShown("the chat template does not show the tool calls")
        written = whole[span.start : span.end] if span else ""
        spans += [span] if span else []
        said += (own := _texts_of(message))
        shown += [text for text in own if is_shown_in(text, written)]
    if not spans:
        raise ChatNotShown("the chat template does not show what the assistant writes")
    return ShownChat(whole, tuple(spans), sum(map(len, said)), sum(map(len, shown)))


def _written_span(
    whole: str, before: str, after: str, messages: Sequence[Message], closes_thoughts: str
) -> WrittenSpan | None:
    """What the assistant writes of the last of these messages; None: it is not in the whole conversation.

    An answer begins with its first character, and a call where its form does: after the generation prompt and an empty
    thought. Both end with what ends the turn, if that is the same after the last answer and an earlier one.
    """
    *earlier, message = messages
    in_whole, in_before, in_after = (_end_of_messages(text, earlier) for text in (whole, before, after))
    content, names = _content_of(message), list(_names_called(message))
    words = content if content and content in after[in_after:] else (*names, "")[0]
    start, at = whole.find(words, in_whole), after.find(words, in_after)
    if not words or start < 0 or at < 0:
        return None
    alike = _alike(after[at:], whole[start:])
    if not all(name in alike for name in names):
        return None
    ends = _END_MARK.match(alike, len(words))
    end = start + (len(_without_half_mark(alike, after[at:])) if names else ends.end() if ends else len(words))
    header = _without_half_mark(_alike(before[in_before:], whole[in_whole:start]), before[in_before:])
    if header and words != content:
        form = whole[in_whole + len(header) : start]
        start -= len((form.rpartition(closes_thoughts)[2] if closes_thoughts else form).lstrip())
    start = len(whole[:start].rstrip(" "))  # a token often begins with a space
    return WrittenSpan(start, end, written_kind(message))


def _end_of_messages(text: str, messages: Sequence[Message]) -> int:
    """Where the last of the messages ends that are found in the text, one after the other."""
    end = 0
    for message in messages:
        for shape in shapes_of_said(_content_of(message) or next(_names_called(message), "")):
            if (at := text.find(shape, end)) >= 0:
                end = at + len(shape)
                break
    return end


def _alike(one: str, other: str) -> str:
    """What two texts begin with alike."""
    differs = (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(differs, min(len(one), len(other)))]


def _without_half_mark(beginning: str, text: str) -> str:
    """A beginning of a text, without half a special token and white space at its end."""
    return (beginning if beginning == text else _OPEN_MARK.sub("", beginning)).rstrip()


def _content_of(message: Message) -> str:
    return str(message.get("content") or "").strip()


def _names_called(message: Message) -> Iterator[str]:
    return (str(call["function"]["name"]) for call in message.get("tool_calls") or ())


def _texts_of(message: Message) -> list[str]:
    """What the assistant says in a message: its content, and the texts among the arguments of its calls."""
    given = [call["function"]["arguments"] for call in message.get("tool_calls") or ()]
    arguments = [json.loads(one) if isinstance(one, str) else one for one in given]
    return [_content_of(message), *(text for one in arguments for text in _texts_in(one))]


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(one)


def written_kind(message: Message) -> str:
    """Whether a message of the assistant calls tools."""
    return CALLS if message.get("tool_calls") or message.get(IS_CALL) else ANSWERS
