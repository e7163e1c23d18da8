"""A model that the converter does not know is refused at the plan, with the nearest that it knows."""

from __future__ import annotations

import re

import pytest

from builder.llama.run_tool import ToolRun
from quantyard.errors import UnsupportedModel
from quantyard.paths import REPO_DIR
from quantyard.sources.architectures import (
    LIST_FILE,
    converter_architectures,
    known_architectures,
    nearest_architectures,
    refuse_unsupported_architecture,
    source_architecture,
)
from quantyard.sources.presets import shipped_presets
from scripts.make_architectures import CONVERTER, architectures_text

PACKAGE = """
TEXT_MODEL_MAP: dict[str, str] = {
    "NewForCausalLM": "new",
}
MMPROJ_MODEL_MAP = {
    "Eye": "e",
}
"""
ONE_FILE = """
@ModelBase.register("OldForCausalLM", "OlderForCausalLM")
class A: ...
@ModelBase.register(
    "Next"
)
"""
QWEN = {"architectures": ["Qwen2ForCausalLM"]}
KIMI = {"architectures": ["KimiLinearForCausalLM"]}


def never() -> str | None:
    pytest.fail("the engine was asked")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}}, "Gemma3ForConditionalGeneration"),
        ({"architectures": ["LlavaForConditionalGeneration"], "text_config": QWEN}, "Qwen2ForCausalLM"),
        ({"architectures": ["InternVLChatModel"], "llm_config": QWEN}, "Qwen2ForCausalLM"),
        ({"architectures": ["KimiK3ForConditionalGeneration"], "text_config": KIMI},
         "KimiK3ForConditionalGeneration"),
        ({}, ""), ({"architectures": []}, ""), ({"architectures": [7]}, ""), ({"architectures": "Llama"}, ""),
        ({"architectures": ["a b\x1b[2J"]}, ""), ({"text_config": None}, ""),
    ],
)  # fmt: skip
def test_the_architecture_is_the_one_that_the_converter_goes_by(config: dict[str, object], name: str) -> None:
    assert source_architecture(config) == name


def test_what_our_list_holds_asks_no_engine() -> None:
    refuse_unsupported_architecture({"architectures": ["LlamaForCausalLM"]}, never)


def test_a_config_without_a_name_is_left_to_the_converter() -> None:
    refuse_unsupported_architecture({}, never)


def test_a_newer_converter_that_knows_it_is_believed() -> None:
    refuse_unsupported_architecture({"architectures": ["NewForCausalLM"]}, lambda: PACKAGE)


@pytest.mark.parametrize("text", [None, PACKAGE, ONE_FILE])
def test_an_unknown_one_is_exit_code_3_and_says_what_comes_nearest(text: str | None) -> None:
    with pytest.raises(UnsupportedModel, match="does not know the architecture New3ForCausalLM") as error:
        refuse_unsupported_architecture({"architectures": ["New3ForCausalLM"]}, lambda: text)
    assert error.value.code == 3 and "LLAMA_CPP_TAG=" in error.value.hint
    assert ("NewForCausalLM" in error.value.message) == (text == PACKAGE) or text is None


def test_both_forms_of_the_converter_are_read() -> None:
    assert converter_architectures(PACKAGE) == {"NewForCausalLM"}
    assert converter_architectures(ONE_FILE) == {"OldForCausalLM", "OlderForCausalLM", "Next"}
    assert converter_architectures("") == frozenset()


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("GPTJForCausalLM", "GPT2LMHeadModel"), ("Qwen4ForCausalLM", "Qwen3ForCausalLM"),
        ("Llama5ForCausalLM", "LlamaForCausalLM"), ("DeepseekV5ForCausalLM", "DeepseekV4ForCausalLM"),
        ("BloopForCausalLM", "BloomForCausalLM"), ("OPTForCausalLM", ""), ("XForCausalLM", ""),
    ],
)  # fmt: skip
def test_the_nearest_is_of_the_same_family_or_similar_and_none_is_made_up(name: str, first: str) -> None:
    assert next(iter(nearest_architectures(name, known_architectures())), "") == first


def test_the_presets_are_in_the_list_unless_they_say_that_they_cannot_be_built() -> None:
    for preset in shipped_presets():
        assert (preset.architecture in known_architectures()) == (preset.unsupported is None), preset.name


def test_the_list_is_that_of_the_llama_cpp_of_the_locks() -> None:
    version = re.search(r"llama-cpp-python==(\S+)", (REPO_DIR / "locks" / "sdists.txt").read_text())
    assert version and f"llama-cpp-python {version[1]} " in LIST_FILE.read_text(), "type: scripts/make_architectures.py"
    if not CONVERTER.is_file():
        pytest.skip("the converter is not here: scripts/setup-local.sh")
    assert architectures_text(CONVERTER.read_text()) == LIST_FILE.read_text()


TRACEBACK = """INFO:hf-to-gguf:Model architecture: GPTNeoXForCausalLM
Traceback (most recent call last):
  File "/app/convert_hf_to_gguf.py", line 12, in <module>
    main()
    ~~~~^^
  File "/app/conversion/gptneox.py", line 21, in set_gguf_parameters
    int(self.hparams["rotary_pct"] * 4)
        ~~~~~~~~~~~~^^^^^^^^^^^^^^
KeyError: 'rotary_pct'"""


def test_a_tools_traceback_is_its_exception_in_the_message_and_no_frame_in_the_detail() -> None:
    run = ToolRun((), 1, TRACEBACK)
    assert run.error == "KeyError: 'rotary_pct'"
    assert run.words == "INFO:hf-to-gguf:Model architecture: GPTNeoXForCausalLM\nKeyError: 'rotary_pct'"


@pytest.mark.parametrize("tail", ["", "error: loading failed", "warning: an Error: in the middle"])
def test_what_is_not_an_exception_is_not_taken_for_one(tail: str) -> None:
    assert ToolRun((), 1, tail).error == ""
