"""Tool calls: every family's form is read, and scenarios tell right calls from wrong ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from eval.scenarios.checks import CHECKS, CheckedAnswer, is_right_answer
from eval.scenarios.scenario import Scenario, load_scenarios, scenario_tools
from eval.scenarios.tool_call import BrokenToolCall, ToolCall
from eval.scenarios.tool_call_forms import parse_tool_calls
from eval.scenarios.tool_checks import is_same_value

Calls = list[tuple[str, dict[str, Any]]]
SCENARIOS = load_scenarios("tool_calls")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _mistral_named(calls: Calls) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{_json(arguments)}" for name, arguments in calls)


def _python(calls: Calls) -> str:
    def call(name: str, arguments: dict[str, Any]) -> str:
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"

    return f"[{', '.join(call(*each) for each in calls)}]"


def _qwen_coder(calls: Calls) -> str:
    def text(value: Any) -> str:
        return value if isinstance(value, str) else _json(value)

    return "\n".join(
        f"<tool_call>\n<function={name}>\n"
        + "".join(f"<parameter={key}>\n{text(value)}\n</parameter>\n" for key, value in arguments.items())
        + "</function>\n</tool_call>"
        for name, arguments in calls
    )


def _glm(calls: Calls) -> str:
    def text(value: Any) -> str:
        return value if isinstance(value, str) else _json(value)

    return "".join(
        f"<tool_call>{name}\n"
        + "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{text(each)}</arg_value>\n" for key, each in arguments.items())
        + "</tool_call>"
        for name, arguments in calls
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _invoked(space: str, calls: Calls) -> str:
    return "\n".join(
        f'<{space}invoke name="{name}">\n'
        + "".join(f'<{space}parameter name="{key}">{_text(each)}</{space}parameter>\n' for key, each in a.items())
        + f"</{space}invoke>"
        for name, a in calls
    )


def _typed(value: Any) -> str:
    return f'string="{"true" if isinstance(value, str) else "false"}">{_text(value)}'


def _deepseek_4(calls: Calls) -> str:
    return "<｜DSML｜tool_calls>\n" + "\n".join(
        f'<｜DSML｜invoke name="{name}">\n'
        + "".join(f'<｜DSML｜parameter name="{key}" {_typed(each)}</｜DSML｜parameter>\n' for key, each in a.items())
        + "</｜DSML｜invoke>"
        for name, a in calls
    )


def _kimi_k3(calls: Calls) -> str:
    def argument(key: str, value: Any) -> str:
        kind = "string" if isinstance(value, str) else "object"
        return f'<|open|>argument key="{key}" type="{kind}"<|sep|>{_text(value)}<|close|>argument<|sep|>'

    return "".join(
        f'<|open|>call tool="{name}" index="{at}"<|sep|>{"".join(argument(*each) for each in a.items())}'
        "<|close|>call<|sep|>"
        for at, (name, a) in enumerate(calls, 1)
    )


def _gemma_4(calls: Calls) -> str:
    def written(value: Any) -> str:
        if isinstance(value, str):
            return f'<|"|>{value}<|"|>'
        if isinstance(value, dict):
            return "{" + ",".join(f"{key}:{written(each)}" for key, each in value.items()) + "}"
        return f"[{','.join(map(written, value))}]" if isinstance(value, list) else _json(value)

    return "".join(f"<|tool_call>call:{name}{written(a)}<tool_call|>" for name, a in calls)


def _objects(calls: Calls, key: str = "arguments") -> list[dict[str, Any]]:
    return [{"name": name, key: arguments} for name, arguments in calls]


FORMS: dict[str, Callable[[Calls], str]] = {
    "hermes": lambda calls: "\n".join(f"<tool_call>\n{_json(each)}\n</tool_call>" for each in _objects(calls)),
    "hermes without an end": lambda calls: "\n".join(f"<tool_call>{_json(each)}" for each in _objects(calls)),
    "qwen coder": _qwen_coder,
    "glm": _glm,
    "llama 3": lambda calls: "; ".join(_json(each) for each in _objects(calls, "parameters")),
    "llama 3 with its tag": lambda calls: "<|python_tag|>" + "; ".join(map(_json, _objects(calls, "parameters"))),
    "llama 3 functions": lambda calls: "".join(f"<function={name}>{_json(a)}</function>" for name, a in calls),
    "mistral": lambda calls: f"[TOOL_CALLS] {_json(_objects(calls))}",
    "mistral with names": _mistral_named,
    "functionary": lambda calls: "".join(f">>>{name}\n{_json(a)}" for name, a in calls),
    "deepseek": lambda calls: "<｜tool▁calls▁begin｜>" + "".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{_json(a)}\n```<｜tool▁call▁end｜>"
        for name, a in calls),
    "deepseek 3.1": lambda calls: "".join(
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{_json(a)}<｜tool▁call▁end｜>" for name, a in calls),
    "kimi": lambda calls: "<|tool_calls_section_begin|>" + "".join(
        f"<|tool_call_begin|>functions.{name}:{at}<|tool_call_argument_begin|>{_json(a)}<|tool_call_end|>"
        for at, (name, a) in enumerate(calls)),
    "gpt-oss": lambda calls: "<|start|>".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{_json(a)}<|call|>"
        for name, a in calls),
    "command": lambda calls: "<|START_ACTION|>" + _json([
        {"tool_call_id": str(at), "tool_name": name, "parameters": a} for at, (name, a) in enumerate(calls)
    ]) + "<|END_ACTION|>",
    "granite": lambda calls: f"<|tool_call|>{_json(_objects(calls))}",
    "phi": lambda calls: f"<|tool_call|>{_json(_objects(calls))}<|/tool_call|>",
    "lfm": lambda calls: f"<|tool_call_start|>{_python(calls)}<|tool_call_end|>",
    "llama 4": _python,
    "gemma": lambda calls: f"```tool_code\n{_python(calls)}\n```",
    "phi 4": lambda calls: f"functools{_json(_objects(calls))}",
    "apertus": lambda calls: f"<|tools_prefix|>{_json([{name: a} for name, a in calls])}<|tools_suffix|>",
    "apriel": lambda calls: f"<tool_calls>{_json(_objects(calls))}</tool_calls>",
    "minimax 1": lambda calls: "<tool_calls>\n" + "\n".join(map(_json, _objects(calls))) + "\n</tool_calls>",
    "minimax 2": lambda calls: f"<minimax:tool_call>\n{_invoked('', calls)}\n</minimax:tool_call>",
    "nemotron": lambda calls: f"<TOOLCALL>{_json(_objects(calls))}</TOOLCALL>",
    "deepseek 4": _deepseek_4,
    "kimi 3": _kimi_k3,
    "gemma 4": _gemma_4,
    "solar": lambda calls: "<|tool_calls|>" + "".join(
        f"<|tool_call:begin|>x<|tool_call:name|>{name}<|tool_call:args|>{_json(a)}<|tool_call:end|>"
        for name, a in calls),
    "hunyuan": lambda calls: _glm(calls).replace("_key>", "_key:open>").replace("_value>", "_value:open>").replace(
        "tool_call>", "tool_call:open>"),
    "json": lambda calls: _json({"tool_calls": _objects(calls)}),
    "json in a fence": lambda calls: f"Sure!\n```json\n{_json(_objects(calls))}\n```",
    "json as openai has it": lambda calls: _json([
        {"type": "function", "function": {"name": name, "arguments": _json(a)}} for name, a in calls
    ]),
}  # fmt: skip


def _plain(value: Any) -> Any:
    """A value that the check takes: the first of several."""
    if isinstance(value, dict):
        return _plain(value["any_of"][0]) if "any_of" in value else {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _expected(scenario: Scenario) -> Calls:
    calls: Any = scenario.checks[0]["calls"]
    return [(call["name"], _plain(call["arguments"])) for call in calls]


CALLING = [scenario for scenario in SCENARIOS if _expected(scenario)]


@pytest.mark.parametrize("form", FORMS)
def test_a_family_s_form_of_the_right_calls_is_right_in_every_scenario(form: str) -> None:
    for scenario in CALLING:
        text = FORMS[form](_expected(scenario))
        assert is_right_answer(scenario, CheckedAnswer.of(text)), (scenario.id, text)


@pytest.mark.commands
@pytest.mark.parametrize("form", FORMS)
def test_a_family_s_form_of_a_wrong_call_is_wrong_in_every_scenario(form: str) -> None:
    for scenario in CALLING:
        calls = _expected(scenario)
        (name, arguments), rest = calls[0], calls[1:]
        key = next(iter(arguments))
        others = {
            "another tool": [(f"{name}_now", arguments), *rest],
            "an argument too few": [(name, {k: v for k, v in arguments.items() if k != key}), *rest],
            "an argument too many": [(name, {**arguments, "verbose": True}), *rest],
            "another value": [(name, {**arguments, key: "something else"}), *rest],
            "twice": [*calls, calls[0]],
        }
        for what, wrong in others.items():
            assert not is_right_answer(scenario, CheckedAnswer.of(FORMS[form](wrong))), (scenario.id, what)


def test_words_call_nothing() -> None:
    for scenario in SCENARIOS:
        is_right = is_right_answer(scenario, CheckedAnswer.of("I will look at that for you. {not json}"))
        assert is_right is not bool(_expected(scenario)), scenario.id


def test_a_call_that_does_not_end_is_wrong_whether_one_is_due_or_not() -> None:
    for text in ('<tool_call>{"name": "get_weather", "argu', '[TOOL_CALLS][{"name"', '{"name": "get_weather", "arg',
                 "<|tool_call_begin|>functions.f:0", "<｜tool▁call▁begin｜>f", "<tool_call></tool_call>",
                 '<invoke name="get_weather"><parameter name="city">Os', "<|tool_call>call:get_weather{city:",
                 '<|open|>call tool="get_weather"', "<|tool_call:begin|>x", "<｜DSML｜tool_calls>", "<TOOLCALL>[{"):
        with pytest.raises(BrokenToolCall):
            parse_tool_calls(text)
        for scenario in SCENARIOS:
            assert not is_right_answer(scenario, CheckedAnswer.of(text)), (scenario.id, text)


def test_a_template_that_begins_the_call_is_known_by_the_end_of_its_prompt() -> None:
    assert parse_tool_calls('f\n{"a": 1}', "assistant\n>>>") == [ToolCall("f", {"a": 1})]
    assert parse_tool_calls("all\nHello!", "assistant\n>>>") == []


@pytest.mark.parametrize("text", ["{" * 5000, "[" * 5000, "f(" * 3000 + ")" * 3000, "<tool_call>" * 2000, "\0"])
def test_hostile_text_is_a_broken_call_or_none(text: str) -> None:
    with suppress(BrokenToolCall):
        assert parse_tool_calls(text) == []


@pytest.mark.parametrize(("value", "expected", "is_same"), [
    (3, 3.0, True), (True, 1, False), ("Oslo ", "oslo", True), ("3", 3, False), ([1, 2], [2, 1], False),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True), ({"a": 1}, {"a": 1, "b": 2}, False), (None, None, True),
])  # fmt: skip
def test_values_are_equal_as_json_has_them(value: object, expected: object, is_same: bool) -> None:
    assert is_same_value(value, expected) is is_same


def test_every_scenario_uses_the_tools_that_it_offers_by_their_schema() -> None:
    for scenario in SCENARIOS:
        assert scenario.tools, scenario.id
        for name, arguments in _expected(scenario):
            assert name in scenario.tools, scenario.id
            schema = scenario_tools()[name]["function"]["parameters"]
            assert set(schema["required"]) <= set(arguments) <= set(schema["properties"]), scenario.id
            for key, value in arguments.items():
                allowed = schema["properties"][key].get("enum")
                assert allowed is None or value in allowed, (scenario.id, key)


def test_there_are_enough_scenarios_of_every_category_each_named_once() -> None:
    assert len(SCENARIOS) >= 60
    assert len({scenario.id for scenario in SCENARIOS}) == len(SCENARIOS)
    of = {scenario.category for scenario in SCENARIOS}
    assert of >= {"single", "choice", "enum", "optional", "nested", "parallel", "none", "language", "turns"}
    assert len({scenario.language for scenario in SCENARIOS}) >= 8


def test_every_check_has_a_program() -> None:
    assert {str(check["kind"]) for scenario in SCENARIOS for check in scenario.checks} <= set(CHECKS)
