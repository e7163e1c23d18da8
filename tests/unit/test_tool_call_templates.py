"""Chat templates of real models: a call that a template writes into a conversation is read back as that call.

What a model was trained to write, its template writes for earlier turns. llama.cpp's sources bring the templates.
"""

from __future__ import annotations

import json
from itertools import product
from typing import Any, Final

import pytest

from eval.scenarios.tool_call_forms import parse_tool_calls
from eval.scenarios.tool_checks import makes_expected_calls
from quantyard.sandbox.chat_template import ChatRefused, ChatTemplate
from tests.real_templates import real_templates

# One of each form, in every change; each holds two calls, unless the template or its model takes one at a time.
FAMILIES: Final = (
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "Qwen3-Coder",
    "meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct", "mistralai-Mistral-Nemo-Instruct-2407",
    "mistralai-Ministral-3-14B-Reasoning-2512", "meetkai-functionary-medium-v3.1", "meetkai-functionary-medium-v3.2",
    "google-gemma-4-31B-it", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek-ai-DeepSeek-V3.1",
    "deepseek-ai-DeepSeek-V4", "openai-gpt-oss-120b", "ibm-granite-granite-4.0", "GLM-4.6", "Kimi-K2-Instruct",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use", "MiniMax-M2", "NVIDIA-Nemotron-Nano-v2", "LFM2.5-8B-A1B",
)  # fmt: skip
MORE: Final = (
    "Apertus-8B-Instruct", "Apriel-1.6-15b-Thinker-fixed", "Bielik-11B-v3.0-Instruct", "ByteDance-Seed-OSS",
    "Cohere2MoE", "GLM-4.7-Flash", "GigaChat3-10B-A1.8B", "GigaChat3.1-10B-A1.8B", "Kimi-K2-Thinking", "Kimi-K3",
    "MiMo-VL", "MiniMax-M1", "MiniMax-M3", "Mistral-Small-3.2-24B-Instruct-2506",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "Qwen-QwQ-32B",
    "Qwen3.5-4B", "Reka-Edge", "Spark2.5", "StepFun3.5-Flash", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "deepseek-ai-DeepSeek-V3.2", "deepseek-ai-DeepSeek-V4-Flash-0731", "google-gemma-4-31B-it-interleaved",
    "ibm-granite-granite-4.1", "inclusionai-ling-3.0-flash", "llama-cpp-deepseek-r1",
    "meta-llama-Llama-3.3-70B-Instruct", "moonshotai-Kimi-K2", "muse-glimmer", "openbmb-MiniCPM5-1B",
    "poolside-Laguna-S-2.1", "poolside-Laguna-XS-2.1", "poolside-Laguna-XS.2", "tencent-Hy3", "unsloth-Apriel-1.5",
    "unsloth-mistral-Devstral-Small-2507", "upstage-Solar-Open-100B",
)  # fmt: skip
# These show tools, or take them in words, and leave earlier calls out. The forms of their answers are in
# test_tool_calls.py: "hermes", "lfm", "granite", "phi 4", "command", "gemma".
WITHOUT: Final = (
    "CohereForAI-c4ai-command-r-plus-tool_use", "HuggingFaceTB-SmolLM3-3B", "LFM2-8B-A1B", "LFM2.5-Instruct",
    "fireworks-ai-llama-3-firefunction-v2", "google-gemma-2-2b-it", "ibm-granite-granite-3.3-2B-Instruct",
    "llama-cpp-rwkv-world", "microsoft-Phi-3.5-mini-instruct",
)  # fmt: skip
ONE_AT_A_TIME: Final = (
    "meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct", "meta-llama-Llama-3.3-70B-Instruct",
    "openai-gpt-oss-120b", "GigaChat3-10B-A1.8B", "GigaChat3.1-10B-A1.8B",
)  # fmt: skip
_TYPES: Final = {"city": "string", "days": "integer", "opts": "object"}
TOOLS: Final = [{"type": "function", "function": {
    "name": name, "description": "The weather.",
    "parameters": {"type": "object", "properties": {key: {"type": kind} for key, kind in _TYPES.items()},
                   "required": ["city"]},
}} for name in ("get_weather", "get_climate")]  # fmt: skip
CALLS: Final = [
    {"name": "get_weather",
     "arguments": {"city": 'Århus, "DK"', "days": 3, "opts": {"metric": True, "tags": ["a", "b: c"]}}},
    {"name": "get_climate", "arguments": {"city": "Oslo", "days": 1}},
]  # fmt: skip
QUESTION: Final[list[dict[str, Any]]] = [{"role": "user", "content": "How is the weather?"}]


def _answer(calls: list[dict[str, Any]], as_text: bool, content: str | None) -> dict[str, Any]:
    listed = [
        {"type": "function", "id": f"call0000{at}", "function": {
            "name": call["name"],
            "arguments": json.dumps(call["arguments"], ensure_ascii=False) if as_text else call["arguments"]}}
        for at, call in enumerate(calls)
    ]  # fmt: skip
    return {"role": "assistant", "content": content, "tool_calls": listed}


def _written(template: ChatTemplate, calls: list[dict[str, Any]]) -> tuple[str, str]:
    """What the template writes for these calls, and the end of the prompt before it; "" where it writes none."""
    asked = template.render(QUESTION, add_generation_prompt=True, tools=TOOLS)
    before = template.render(QUESTION, add_generation_prompt=False, tools=TOOLS)
    for as_text, content in product((False, True), ("", None)):
        try:
            answer = _answer(calls, as_text, content)
            whole = template.render([*QUESTION, answer], add_generation_prompt=False, tools=TOOLS)
        except ChatRefused:
            continue
        if str(calls[-1]["arguments"]["city"])[:2] in whole[len(before) :]:
            known = asked if whole.startswith(asked) else before
            return whole.removeprefix(known), asked[-20:]
    return "", ""


def _check_round_trip(name: str) -> None:
    calls = CALLS[:1] if name in ONE_AT_A_TIME else CALLS
    template = ChatTemplate(real_templates()[name], "<s>", "</s>")
    try:
        text, prompt_end = _written(template, calls)
    finally:
        template.close()
    assert text, "the template leaves the calls out"
    assert makes_expected_calls(text, {"calls": calls}, prompt_end), (text, parse_tool_calls(text, prompt_end))
    wrong = [*calls[:-1], {**calls[-1], "arguments": {**calls[-1]["arguments"], "days": 2}}]
    assert not makes_expected_calls(text, {"calls": wrong}, prompt_end)


@pytest.mark.commands
@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_that_a_template_writes_is_read_back(name: str) -> None:
    _check_round_trip(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_a_call_that_another_template_writes_is_read_back(name: str) -> None:
    _check_round_trip(name)


def test_every_template_is_named_here() -> None:
    assert {*real_templates()} == {*FAMILIES, *MORE, *WITHOUT}
