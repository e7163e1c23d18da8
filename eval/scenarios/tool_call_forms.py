# ruff: noqa: RUF001, RUF002  (DeepSeek's marks have full-width bars)
"""Reads the tool calls of an answer, in the forms that families of models are trained to write.

    [ToolCall("get_weather", {"city": "Oslo"})]      what each of the forms says

| form | families |
|---|---|
| `<tool_call>{"name": …, "arguments": {…}}</tool_call>` | Hermes, Qwen, most others |
| `<function=f><parameter=k>v</parameter></function>` | Qwen3-Coder |
| `<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>` | GLM, Hunyuan |
| `<tool_calls>[{…}]</tool_calls>`, `<TOOLCALL>[…]</TOOLCALL>`, `<|function_call|>{…}` | Apriel, Nemotron, GigaChat |
| `functools[{…}]` | Firefunction, Phi-4-mini |
| `<|tools_prefix|>[{"f": {…}}]<|tools_suffix|>` | Apertus |
| `<function=f>{…}</function>`, `>>>f` and a line of JSON | Functionary, Llama 3.1 |
| `[TOOL_CALLS][{…}]`, `[TOOL_CALLS]f[ARGS]{…}` | Mistral |
| `<｜tool▁call▁begin｜>f<｜tool▁sep｜>{…}<｜tool▁call▁end｜>` | DeepSeek |
| `<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{…}<|tool_call_end|>` | Kimi |
| `<|tool_call:begin|>id<|tool_call:name|>f<|tool_call:args|>{…}<|tool_call:end|>` | Solar |
| `<|channel|>commentary to=functions.f <|message|>{…}` | gpt-oss |
| `<|START_ACTION|>[…]<|END_ACTION|>`, `<|tool_call|>[…]`, `<|tool_call_start|>[…]` | Command, Granite, Phi, LFM |
| `[f(k=v)]` in Python's syntax | Llama 4, LFM, Gemma |
| `{"name": …, "parameters": {…}}` | Llama 3, and any model that is asked for JSON |
| arguments marked one by one | MiniMax, DeepSeek 3.2, Kimi-K3, Gemma 4 …: `tool_call_markup.py` |

llama.cpp's own parser is inside its server and its tools; the library that the evaluation calls does not export it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from eval.scenarios.tool_call import DECODER, BrokenToolCall, ToolCall, tool_call_arguments, tool_call_name
from eval.scenarios.tool_call_markup import (
    M3_MARK,
    gemma_tool_calls,
    invoked_tool_calls,
    kimi_k3_tool_calls,
    minimax_m3_tool_calls,
)

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
_SOLAR: Final = re.compile(
    r"<\|tool_call:name\|>([\w.-]+)<\|tool_call:args\|>(.*?)<\|tool_call:end\|>", re.DOTALL
)
_VARIANT: Final = re.compile(r"(</?\w+):\w+>")  # Hunyuan's tags name the variant of the model
_LISTED: Final = re.compile(r"<(tool_calls|TOOLCALL)>(.*?)(?:</\1>|$)", re.DOTALL)
_GIGACHAT: Final = re.compile(
    r"(?:<\|function_call\|>|function call<\|role_sep\|>)(.*?)(?:<\|message_sep\|>|$)", re.DOTALL
)
_FUNCTOOLS: Final = re.compile(r"functools(?=\[)(.*)", re.DOTALL)
_APERTUS: Final = re.compile(r"<\|tools_prefix\|>(.*?)(?:<\|tools_suffix\|>|$)", re.DOTALL)
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
            name = re.split("<arg_key>|<tool_sep>", inside, maxsplit=1)[0].strip()
            yield ToolCall(tool_call_name(name), dict(_ARGUMENT.findall(inside)), is_text=True)
        else:
            yield from _calls_of_text(inside)


def _variant_calls(text: str) -> Iterator[ToolCall]:
    yield from _tagged_calls(_VARIANT.sub(r"\1>", text))


def _listed_calls(text: str) -> Iterator[ToolCall]:
    for _, inside in _LISTED.findall(text):
        yield from _calls_of_text(inside)


def _apertus_calls(text: str) -> Iterator[ToolCall]:
    """Objects with the tool's name as their only key."""
    for inside in _APERTUS.findall(text):
        listed, _ = DECODER.raw_decode(inside.strip())
        for each in listed:
            yield from (ToolCall(name, tool_call_arguments(arguments)) for name, arguments in each.items())


def _function_calls(text: str) -> Iterator[ToolCall]:
    for name, inside in _FUNCTION.findall(text):
        if inside.lstrip().startswith("{"):
            yield ToolCall(name, tool_call_arguments(inside))
        else:
            yield ToolCall(name, dict(_PARAMETER.findall(inside)), is_text=True)


def _mistral_calls(text: str) -> Iterator[ToolCall]:
    for part in _MISTRAL.findall(text):
        at, named = 0, _MISTRAL_NAMED.match(part)
        if named is None:
            yield from _calls_of_text(part)
        while named is not None:
            arguments, at = DECODER.raw_decode(part, named.end())
            yield ToolCall(named[1], tool_call_arguments(arguments))
            named = _MISTRAL_NAMED.match(part, at)


def _functionary_calls(text: str) -> Iterator[ToolCall]:
    for name, inside in _FUNCTIONARY.findall(text):
        if name != "all":
            yield ToolCall(name, tool_call_arguments(inside))


def _named_calls(pattern: re.Pattern[str]) -> Callable[[str], Iterator[ToolCall]]:
    """Of a form whose pattern has two groups: the name and the arguments as JSON."""

    def calls(text: str) -> Iterator[ToolCall]:
        found = pattern.findall(text)
        if not found:
            raise ValueError("a call that does not end")
        for name, inside in found:
            yield ToolCall(name, tool_call_arguments(inside))

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
        value, at = DECODER.raw_decode(text, at)
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
        yield ToolCall(name.removeprefix("functions."), tool_call_arguments(arguments or {}))


def _python_calls(text: str) -> Iterator[ToolCall]:
    tree = ast.parse(text.strip(), mode="eval").body
    for call in tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]:
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("not a call with named arguments")
        arguments = {str(word.arg): ast.literal_eval(_NamesOfJson().visit(word.value)) for word in call.keywords}
        yield ToolCall(call.func.id, arguments)


class _NamesOfJson(ast.NodeTransformer):
    """LFM2.5 writes the values within Python's calls as JSON."""

    def visit_Name(self, node: ast.Name) -> ast.Constant:
        """The constant of JSON with this name; another name is a KeyError."""
        return ast.Constant({"true": True, "false": False, "null": None}[node.id])


# To add a form: a row with the marks by which it is known; the first that fits decides.
_FORMS: Final[Sequence[tuple[tuple[str, ...], Callable[[str], Iterator[ToolCall]]]]] = (
    ((M3_MARK,), minimax_m3_tool_calls),
    (("invoke name=", "<｜DSML｜", "<minimax:tool_call>", "<function name="), invoked_tool_calls),
    (("<tool_call:",), _variant_calls),
    (("<tool_call>", "<|tool_call|>"), _tagged_calls),
    (("<|tool_call>",), gemma_tool_calls),
    (("<tool_calls>", "<TOOLCALL>"), _listed_calls),
    (("[TOOL_CALLS]",), _mistral_calls),
    (("<function=",), _function_calls),
    (("<｜tool▁call▁begin｜>",), _named_calls(_DEEPSEEK)),
    (("<|tool_call_begin|>",), _named_calls(_KIMI)),
    (("<|open|>call ",), kimi_k3_tool_calls),
    (("<|tool_call:begin|>",), _named_calls(_SOLAR)),
    (("<|function_call|>", "function call<|role_sep|>"), _enclosed_calls(_GIGACHAT)),
    (("<|tools_prefix|>",), _apertus_calls),
    (("functools[",), _enclosed_calls(_FUNCTOOLS)),
    (("to=functions.",), _named_calls(_HARMONY)),
    (("<|START_ACTION|>",), _enclosed_calls(_ACTION)),
    (("<|tool_call_start|>",), _enclosed_calls(_LFM)),
    ((">>>",), _functionary_calls),
)
