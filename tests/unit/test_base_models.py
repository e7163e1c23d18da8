"""A model without a chat template is a base model: the plan says so, and nothing of it chats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantyard.sources.chat_template import BASE_MODEL_NOTE, base_model_notes, source_chat_template
from server.client.chat import BASE_MODEL
from server.client.client import _MADE_UP_TEMPLATE
from tests.unit.test_client import client, serving

TEMPLATES = {
    "a template in its file": ({"chat_template.jinja": ""}, True),
    "a template of a processor": ({"chat_template.json": "{}", "tokenizer_config.json": "{}"}, True),
    "a template in the tokenizer's configuration": ({"tokenizer_config.json": '{"chat_template": "{{ x }}"}'}, True),
    "several templates by name": ({"tokenizer_config.json": '{"chat_template": [{"name": "default"}]}'}, True),
    "none": ({"tokenizer_config.json": '{"bos_token": "<s>"}'}, False),
    "a null": ({"tokenizer_config.json": '{"chat_template": null}'}, False),
    "no configuration at all": ({"tokenizer.model": ""}, False),
    "a configuration that cannot be read": ({"tokenizer_config.json": "{"}, None),
    "a configuration that is a list": ({"tokenizer_config.json": "[]"}, None),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_whether_a_source_has_a_template_is_told_by_its_files(case: str) -> None:
    files, known = TEMPLATES[case]
    assert source_chat_template(files, lambda name: files[name].encode()) is known


@pytest.mark.parametrize(
    ("architecture", "is_said"),
    [
        ("GPTNeoXForCausalLM", True),
        ("GPT2LMHeadModel", True),
        ("T5ForConditionalGeneration", True),
        ("BertModel", False),
    ],
)
def test_the_plan_says_it_of_models_that_generate(architecture: str, is_said: bool) -> None:
    assert base_model_notes(False, {"architectures": [architecture]}) == ((BASE_MODEL_NOTE,) if is_said else ())
    assert base_model_notes(None, {"architectures": [architecture]}) == ()


@pytest.mark.parametrize(("template", "is_base"), [(_MADE_UP_TEMPLATE, True), ("{{ messages }}", False), (None, False)])
def test_the_client_knows_the_template_that_llama_server_makes_up(template: str | None, is_base: bool) -> None:
    with serving(200, "{}", props=json.dumps({"chat_template": template})) as url:
        assert client(url).is_base_model is is_base


def test_a_server_that_says_nothing_of_itself_is_taken_at_its_word() -> None:
    with serving(200, "{}") as url:
        assert not client(url).is_base_model


@pytest.mark.commands
def test_the_made_up_template_is_that_of_the_llama_cpp_we_compile() -> None:
    sources = [*Path.home().glob(".cache/quantyard/wheels/*/llama_cpp_python-*.tar.gz")]
    if not sources:
        pytest.skip("llama-cpp-python's source is not here: scripts/wheels.sh")
    import tarfile

    with tarfile.open(sources[0]) as archive:
        name = next(n for n in archive.getnames() if n.endswith("vendor/llama.cpp/common/chat.cpp"))
        found = archive.extractfile(name)
        assert found is not None
        code = found.read().decode()
    lines = _MADE_UP_TEMPLATE.split("\n")
    assert "CHATML_TEMPLATE_SRC" in code and lines[0] in code and "<|im_start|>assistant" in code
    assert BASE_MODEL
