# ruff: noqa: RUF001, RUF002  (DeepSeek's marks have full-width bars)
"""Reads the tool calls of an answer, in the forms that families of models are trained to write.

    [ToolCall("get_weather", {"city": "Oslo"})]      what each of the forms says

| form | families |
|---|---|
| `<tool_call>{"name": …, "arguments": {…}}</tool_call>` | Hermes, Qwen, most others |
| `<function=f><parameter=k>v</parameter></function>` | Qwen3-Coder |
| `<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>` | GLM |
| `<function=f>{…}</function>`, `>>>f` and a line of JSON | Functionary, Llama 3.1 |
| `[TOOL_CALLS][{…}]`, `[TOOL_CALLS]f[ARGS]{…}` | Mistral |
| `<｜tool▁call▁begin｜>f<｜tool▁sep｜>{…}<｜tool▁call▁end｜>` | DeepSeek |
| `<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{…}<|tool_call_end|>` | Kimi |
| `<|channel|>commentary to=functions.f <|message|>{…}` | gpt-oss |
| `<|START_ACTION|>[…]<|END_ACTION|>`, `<|tool_call|>[…]`, `<|tool_call_start|>[…]` | Command, Granite, Phi, LFM |
| `[f(k=v)]` in Python's syntax | Llama 4, LFM, Gemma |
| `{"name": …, "parameters": {…}}` | Llama 3, and any model that is asked for JSON |

llama.cpp's own parser is inside its server and its tools; the library that the evaluation calls does not export it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

_DECODER: Final = json.JSONDecoder()
_FENCE: Final = re.compile(r"```(?:json|tool_code|tool_call|python)?\s*\n?(.*?)```", re.DOTALL)
_TAGGED: Final = re.compile(
    r"<\|?tool_call\|?>(.*?)(?:</tool_call>|<\|/tool_call\|>|(?=<\|?tool_call\|?>)|$)", re.DOTALL
)
_FUNCTION: Final = re.compile(r"<function=([\w.-]+)>(.*?)(?:</function>|$)", re.DOTALL)
_PARAMETER: Final = re.compile(r"<parameter=([\w.-]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|$)", re.DOTALL)
_ARGUMENT: Final = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_DEEPSEEK: Final = re.compile(
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?([\w.-]+)(?:<｜tool▁sep｜>)?\s*(?:```json)?(.*?)(?:```)?\s*"
    r"<｜tool▁call▁end｜>",
    re.DOTALL,
)
_KIMI: Final = re.compile(
    r"<\|tool_call_begin\|>\s*(?:functions\.)?([\w-]+)(?::\d+)?\s*<\|tool_call_argument_begin\|>(.*?)<\|tool_call_end\|>",
    re.DOTALL,
)
_HARMONY: Final = re.compile(
    r"to=functions\.([\w.-]+).*?<\|message\|>(.*?)(?:<\|call\|>|<\|end\|>|<\|start\|>|$)", re.DOTALL
)
_ACTION: Final = re.compile(r"<\|START_ACTION\|>(.*?)(?:<\|END_ACTION\|>|$)", re.DOTALL)
_LFM: Final = re.compile(r"<\|tool_call_start\|>(.*?)(?:<\|tool_call_end\|>|$)", re.DOTALL)
_MISTRAL: Final = re.compile(r"\[TOOL_CALLS\](.*?)(?=\[TOOL_CALLS\]|$)", re.DOTALL)
_MISTRAL_NAMED: Final = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?(?=\{)")
_FUNCTIONARY: Final = re.compile(r">>>\s*([\w.-]+)\n(.*?)(?=>>>|$)", re.DOTALL)
_NAMES: Final = ("name", "tool_name", "function")
_ARGUMENTS: Final = ("arguments", "parameters", "args")


@dataclass(frozen=True)
class ToolCall:
    """One call. `is_text`: the form knows texts alone, so an argument may stand for a number or a list."""

    name: str
    arguments: dict[str, Any]
    is_text: bool = False


class BrokenToolCall(Exception):
    """The answer begins a call and does not write it in a form that can be read."""


def parse_tool_calls(text: str, prompt_end: str = "") -> list[ToolCall]:
    """The calls of an answer, in their order; [] if it does not call.

    Args:
        text: with the names of special tokens, without thoughts.
        prompt_end: the end of the prompt, where a template may have begun the call.

    Raises:
        BrokenToolCall: see there.
    """
    if prompt_end.endswith(">>>"):
        text = f">>>{text}"
    try:
        for marks, form in _FORMS:
            if any(mark in text for mark in marks):
                return list(form(text))
        return list(_bare_calls(text))
    except (ValueError, TypeError, KeyError, RecursionError, SyntaxError, MemoryError, AttributeError) as error:
        raise BrokenToolCall(str(error)) from error


def _tagged_calls(text: str) -> Iterator[ToolCall]:
    for inside in _TAGGED.findall(text):
        if "<function=" in inside:
            yield from _function_calls(inside)
        elif "<arg_key>" in inside or not inside.lstrip().startswith(("{", "[")):
            name = inside.partition("<arg_key>")[0].strip()
            yield ToolCall(_required_tool_name(name), dict(_ARGUMENT.findall(inside)), is_text=True)
        else:
            yield from _calls_of_text(inside)


def _function_calls(text: str) -> Iterator[ToolCall]:
    for name, inside in _FUNCTION.findall(text):
        if inside.lstrip().startswith("{"):
            yield ToolCall(name, _tool_arguments(inside))
        else:
            yield ToolCall(name, dict(_PARAMETER.findall(inside)), is_text=True)


def _mistral_calls(text: str) -> Iterator[ToolCall]:
    for part in _MISTRAL.findall(text):
        at, named = 0, _MISTRAL_NAMED.match(part)
        if named is None:
            yield from _calls_of_text(part)
        while named is not None:
            arguments, at = _DECODER.raw_decode(part, named.end())
            yield ToolCall(named[1], _tool_arguments(arguments))
            named = _MISTRAL_NAMED.match(part, at)


def _functionary_calls(text: str) -> Iterator[ToolCall]:
    for name, inside in _FUNCTIONARY.findall(text):
        if name != "all":
            yield ToolCall(name, _tool_arguments(inside))


def _named_calls(pattern: re.Pattern[str]) -> Callable[[str], Iterator[ToolCall]]:
    """Of a form whose pattern has two groups: the name and the arguments as JSON."""

    def calls(text: str) -> Iterator[ToolCall]:
        found = pattern.findall(text)
        if not found:
            raise ValueError("a call that does not end")
        for name, inside in found:
            yield ToolCall(name, _tool_arguments(inside))

    return calls


def _enclosed_calls(pattern: re.Pattern[str]) -> Callable[[str], Iterator[ToolCall]]:
    """Of a form that encloses JSON, or calls in Python's syntax."""

    def calls(text: str) -> Iterator[ToolCall]:
        for inside in pattern.findall(text):
            yield from _calls_of_text(inside)

    return calls


def _bare_calls(text: str) -> Iterator[ToolCall]:
    """JSON or Python without marks: the whole answer, or a fenced block of it."""
    text = text.replace("<|python_tag|>", "").strip()
    fenced = _FENCE.findall(text)
    for inside in fenced or [text]:
        if inside.lstrip().startswith(("{", "[")) or re.match(r"\s*[A-Za-z_]\w*\(.*\)\s*$", inside, re.DOTALL):
            try:
                yield from _calls_of_text(inside)
            except (ValueError, SyntaxError):
                if re.search(r'"(name|tool_calls?|function)"\s*:', inside):
                    raise


def _calls_of_text(text: str) -> Iterator[ToolCall]:
    text = text.strip().rstrip(";")
    if not text.startswith(("{", "[")) or re.match(r"\[\s*[A-Za-z_]\w*\(", text):
        yield from _python_calls(text)
        return
    at = 0
    while at < len(text):  # Llama 3 writes several objects, with semicolons or lines between them
        value, at = _DECODER.raw_decode(text, at)
        yield from _calls_of_json(value)
        gap = re.compile(r"[\s;,]*").match(text, at)
        at = gap.end() if gap else at
        if text[at : at + 1] not in ("{", "["):
            break


def _calls_of_json(value: Any) -> Iterator[ToolCall]:
    if isinstance(value, list):
        for each in value:
            yield from _calls_of_json(each)
        return
    if not isinstance(value, dict):
        return
    inner = value.get("tool_calls", value.get("tool_call", value.get("function")))
    if isinstance(inner, list | dict):
        yield from _calls_of_json(inner)
        return
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), None)
    arguments = next((value[key] for key in _ARGUMENTS if key in value), None)
    if name is not None and (arguments is not None or len(value) == 1):
        yield ToolCall(name.removeprefix("functions."), _tool_arguments(arguments or {}))


def _python_calls(text: str) -> Iterator[ToolCall]:
    tree = ast.parse(text.strip(), mode="eval").body
    for call in tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]:
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("not a call with named arguments")
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        yield ToolCall(call.func.id, arguments)


def _tool_arguments(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value, _ = _DECODER.raw_decode(value.strip())
    if not isinstance(value, dict):
        raise TypeError("arguments that are not an object")
    return value


def _required_tool_name(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError("a call without a name")
    return name


# To add a form: a row with the marks by which it is known; the first that fits decides.
_FORMS: Final[Sequence[tuple[tuple[str, ...], Callable[[str], Iterator[ToolCall]]]]] = (
    (("<tool_call>", "<|tool_call|>"), _tagged_calls),
    (("[TOOL_CALLS]",), _mistral_calls),
    (("<function=",), _function_calls),
    (("<｜tool▁call▁begin｜>",), _named_calls(_DEEPSEEK)),
    (("<|tool_call_begin|>",), _named_calls(_KIMI)),
    (("to=functions.",), _named_calls(_HARMONY)),
    (("<|START_ACTION|>",), _enclosed_calls(_ACTION)),
    (("<|tool_call_start|>",), _enclosed_calls(_LFM)),
    ((">>>",), _functionary_calls),
)
