"""A chat template that means harm, met by an evaluation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from eval.llama.chat import ChatTemplate
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure
from tests.hostile.test_templates import HELLO, TEMPLATES


def test_an_evaluation_ends_with_the_templates_name() -> None:
    model = SimpleNamespace(chat_template=TEMPLATES["a long text"][0], bos=1, eos=2, special_text=lambda token: "")
    with pytest.raises(StageFailure, match="needs more than 1,024 MiB of memory") as caught:
        ChatTemplate(model).render(HELLO, add_generation_prompt=True)
    assert (caught.value.exit_code, caught.value.error.kind) == (ExitCode.UNSUPPORTED_MODEL, "chat-template")
