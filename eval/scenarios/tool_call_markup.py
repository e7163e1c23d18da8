# ruff: noqa: RUF001, RUF002  (DeepSeek's marks have full-width bars)
"""Reads tool calls whose arguments are marked one by one, in tags or in a notation of a family's own.

| form | families |
|---|---|
| `<invoke name="f"><parameter name="k">v</parameter></invoke>` | MiniMax-M2; `<｜DSML｜invoke …>`: DeepSeek 3.2 and 4 |
| `<function name="f"><param name="k">v</param></function>` | MiniCPM |
| `<invoke name="f"><k>v</k></invoke>`, with `]<]minimax[>[` between all | MiniMax-M3 |
| `<|open|>call tool="f" …<|sep|><|open|>argument key="k" type="string"<|sep|>v<|close|>argument<|sep|>…` | Kimi-K3 |
| `<|tool_call>call:f{k:<|"|>v<|"|>}<tool_call|>` | Gemma 4 |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from eval.scenarios.tool_call import ToolCall, tool_call_arguments

M3_MARK: Final = "]<]minimax[>["
_SPACE: Final = r"(?:｜\w+｜|\w+:)?"  # what some families put before the names of their tags
_INVOKE: Final = re.compile(
    rf'<{_SPACE}(?:invoke|function) name="([^"<>]+)">(.*?)</{_SPACE}(?:invoke|function)>', re.DOTALL
)
_PARAMETER: Final = re.compile(
    rf'<{_SPACE}param(?:eter)? name="([^"<>]+)"(?: string="(true|false)")?>(.*?)</{_SPACE}param(?:eter)?>', re.DOTALL
)
_ELEMENT: Final = re.compile(r"<([\w.-]+)>(.*?)</\1>", re.DOTALL)
_KIMI_K3: Final = re.compile(r'<\|open\|>call tool="([^"]+)"[^<]*<\|sep\|>(.*?)<\|close\|>call<\|sep\|>', re.DOTALL)
_KIMI_K3_ARGUMENT: Final = re.compile(
    r'<\|open\|>argument key="([^"]+)" type="(\w+)"<\|sep\|>(.*?)<\|close\|>argument<\|sep\|>', re.DOTALL
)
_GEMMA: Final = re.compile(r"<\|tool_call>call:([\w.-]+)(\{.*?\})<tool_call\|>", re.DOTALL)
_GEMMA_QUOTE: Final = '<|"|>'
_BARE_KEY: Final = re.compile(r"([{,]\s*)([\w.-]+)\s*:")


def invoked_tool_calls(text: str) -> Iterator[ToolCall]:
    """Of tags whose names stand in attributes. DeepSeek's tell texts from JSON; of the others all are texts."""
    for name, inside in _found_tool_calls(_INVOKE, text):
        found = _PARAMETER.findall(inside)
        is_typed = any(is_string for _, is_string, _ in found)
        arguments = {key: json.loads(value) if is_string == "false" else value for key, is_string, value in found}
        yield ToolCall(name, arguments, is_text=not is_typed)


def minimax_m3_tool_calls(text: str) -> Iterator[ToolCall]:
    """Of MiniMax-M3, which writes objects as elements and lists as elements `item`."""
    for name, inside in _found_tool_calls(_INVOKE, text.replace(M3_MARK, "")):
        yield ToolCall(name, {key: _element_value(value) for key, value in _ELEMENT.findall(inside)}, is_text=True)


def kimi_k3_tool_calls(text: str) -> Iterator[ToolCall]:
    """Of Kimi-K3, whose arguments state their types."""
    for name, inside in _found_tool_calls(_KIMI_K3, text):
        found = _KIMI_K3_ARGUMENT.findall(inside)
        yield ToolCall(name, {key: value if kind == "string" else json.loads(value) for key, kind, value in found})


def gemma_tool_calls(text: str) -> Iterator[ToolCall]:
    """Of Gemma 4, whose objects have bare keys, and texts between marks of their own."""
    for name, inside in _found_tool_calls(_GEMMA, text):
        parts = inside.split(_GEMMA_QUOTE)
        parts[::2] = [_BARE_KEY.sub(r'\1"\2":', part) for part in parts[::2]]
        parts[1::2] = [json.dumps(part) for part in parts[1::2]]
        yield ToolCall(name, tool_call_arguments("".join(parts)))


def _found_tool_calls(pattern: re.Pattern[str], text: str) -> list[Any]:
    found = pattern.findall(text)
    if not found:
        raise ValueError("a call that does not end")
    return found


def _element_value(text: str, is_nested: bool = False) -> Any:
    """What an element holds. A text within another may stand for JSON, as none of its own says what it is."""
    inside = _ELEMENT.findall(text)
    if inside and all(key == "item" for key, _ in inside):
        return [_element_value(value, is_nested=True) for _, value in inside]
    if inside:
        return {key: _element_value(value, is_nested=True) for key, value in inside}
    try:
        return json.loads(text) if is_nested else text
    except ValueError:
        return text
