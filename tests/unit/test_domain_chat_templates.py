"""Conversations of the domains in chat templates of real models: all that the assistant writes is scored."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.analysis.domain_chat_spans import CALLS
from eval.analysis.domain_chats import ShownChats, show_chats
from eval.analysis.domain_texts import read_domain_texts
from quantyard.protocol.evaluation import DomainSettings
from quantyard.sandbox.chat_template import ChatTemplate
from tests.real_templates import real_templates

# Templates that do not show tools, calls or results, or fail on ours; all others show them.
OTHER_FORMS = dict.fromkeys((
    "HuggingFaceTB-SmolLM3-3B", "google-gemma-2-2b-it", "llama-cpp-rwkv-world", "microsoft-Phi-3.5-mini-instruct",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek-ai-DeepSeek-V3.1",
    "CohereForAI-c4ai-command-r-plus-tool_use",  # wants a description of each parameter
), "chat template, tools as text") | dict.fromkeys((
    "LFM2-8B-A1B", "LFM2.5-Instruct", "ibm-granite-granite-3.3-2B-Instruct",
), "chat template, calls as text")  # fmt: skip
LABELLED = "fireworks-ai-llama-3-firefunction-v2"  # wants the tools under a name of its own
SOME = (
    "Qwen-Qwen3-0.6B", "Qwen3.5-4B", "StepFun3.5-Flash", "NVIDIA-Nemotron-Nano-v2", "Kimi-K2-Instruct",
    "Mistral-Small-3.2-24B-Instruct-2506", "mistralai-Mistral-Nemo-Instruct-2407", "google-gemma-2-2b-it",
    "LFM2.5-Instruct", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "deepseek-ai-DeepSeek-V3.1",
)  # fmt: skip


def shown_domain(template: str, domain: str, n_documents: int | None = None) -> ShownChats:
    opened = ChatTemplate(real_templates()[template], "<s>", "</s>")
    try:
        (text,) = read_domain_texts(Path(), DomainSettings(names=(domain,)))
        return show_chats(text.documents[:n_documents], opened)
    finally:
        opened.close()


@pytest.mark.commands
@pytest.mark.parametrize("name", SOME)
def test_real_templates_show_all_that_the_assistant_writes(name: str) -> None:
    _check_template(name, n_documents=4)


@pytest.mark.slow
def test_every_template_of_llama_cpp_shows_all_that_the_assistant_writes() -> None:
    for name in real_templates():
        if name != LABELLED:
            _check_template(name, None)


def _check_template(name: str, n_documents: int | None) -> None:
    chat, tools = (shown_domain(name, domain, n_documents) for domain in ("chat", "tools"))
    assert chat.form == "chat template", (name, chat.why_not)
    assert tools.form == OTHER_FORMS.get(name, "chat template"), (name, tools.why_not)
    assert chat.share == tools.share == 1, name
    written = [one.text[span.start : span.end] for one in tools.chats for span in one.spans if span.kind == CALLS]
    assert written and not any("</think>" in text or text.endswith("<|") for text in written), name
