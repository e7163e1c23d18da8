"""Chat templates of real models, as llama.cpp's sources bring them: which marks their thoughts have."""

from __future__ import annotations

import pytest

from eval.llama.thoughts import opens_thoughts, thought_marks
from quantyard.sandbox.chat_template import ChatTemplate
from tests.real_templates import real_templates

# Template → the mark that opens thoughts, and whether the template itself writes it at the end of the prompt.
THINKING = {
    "Qwen-Qwen3-0.6B": ("<think>", False), "Qwen3.5-4B": ("<think>", True),
    # llama.cpp's copies of these two close what they open, unless enable_thinking is set.
    "Qwen-QwQ-32B": ("<think>", False), "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ("<think>", False),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": ("<think>", True), "GLM-4.6": ("<think>", False),
    "HuggingFaceTB-SmolLM3-3B": ("<think>", False), "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": ("<think>", True),
    "Kimi-K2-Thinking": ("<think>", False), "MiniMax-M2": ("<think>", True),
    "openai-gpt-oss-120b": ("<|channel|>analysis", False), "upstage-Solar-Open-100B": ("<|think|>", False),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("[THINK]", False),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": ("<|START_THINKING|>", False),
    "ByteDance-Seed-OSS": ("<seed:think>", False), "Apertus-8B-Instruct": ("<|inner_prefix|>", False),
    "google-gemma-4-31B-it": ("<|channel>thought", False), "Apriel-1.6-15b-Thinker-fixed": ("", True),
    "MiniMax-M3": ("<mm:think>", False), "ibm-granite-granite-3.3-2B-Instruct": ("<think>", False),
}  # fmt: skip
PLAIN = (
    "Qwen-Qwen2.5-7B-Instruct", "google-gemma-2-2b-it", "meta-llama-Llama-3.1-8B-Instruct", "ibm-granite-granite-4.0",
    "microsoft-Phi-3.5-mini-instruct", "mistralai-Mistral-Nemo-Instruct-2407", "Qwen3-Coder", "LFM2-8B-A1B",
)  # fmt: skip


@pytest.mark.commands
@pytest.mark.parametrize("name", THINKING)
def test_a_template_tells_its_marks_and_whether_it_opens_them(name: str) -> None:
    opens, is_opened = THINKING[name]
    marks = thought_marks(real_templates()[name])
    assert marks is not None and marks.opens == opens
    template = ChatTemplate(real_templates()[name], "", "")
    prompt = template.render([{"role": "user", "content": "How much is 2 and 2?"}], add_generation_prompt=True)
    template.close()
    assert opens_thoughts(prompt, marks) is is_opened


@pytest.mark.parametrize("name", PLAIN)
def test_a_template_of_a_model_that_does_not_think_has_none(name: str) -> None:
    assert thought_marks(real_templates()[name]) is None
