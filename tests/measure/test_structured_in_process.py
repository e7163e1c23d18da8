"""Structured answers in this process: every constraint holds, and one that fails in a callback is not passed over."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from quantyard.paths import REPO_DIR
from server.client.structured import AnswerCut, InProcess, NotConstrained
from server.examples.client_profile import NOTE, SAMPLING, ClientProfile, client_profile_question
from tests.serve.profiles import check_profile

HOT = replace(SAMPLING, temperature=1.5)


@pytest.fixture(scope="module")
def local(demo_gguf: Any) -> InProcess:
    return InProcess(demo_gguf("Q8_0"), threads=1)


@pytest.mark.parametrize("seed", range(4))
def test_every_constraint_of_a_profile_holds_in_process(local: InProcess, seed: int) -> None:
    check_profile(local.ask(ClientProfile, client_profile_question(NOTE), replace(HOT, seed=seed), retries=0))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it is what this test plants
def test_a_constraint_that_fails_inside_llama_cpp_does_not_pass_in_silence(local: InProcess, monkeypatch) -> None:
    from outlines.backends.outlines_core import OutlinesCoreLogitsProcessor

    def fail(*_args: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(OutlinesCoreLogitsProcessor, "process_logits", fail)
    with pytest.raises(NotConstrained, match="planted"):
        local.ask(ClientProfile, client_profile_question(NOTE), replace(SAMPLING, max_tokens=20))


def test_an_answer_in_process_that_is_cut_is_named(local: InProcess) -> None:
    with pytest.raises(AnswerCut):
        local.ask(ClientProfile, client_profile_question(NOTE), replace(SAMPLING, max_tokens=10))


def test_without_numba_nothing_is_asked_in_process(demo_gguf: Any) -> None:
    path = str(demo_gguf("Q8_0"))
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from pathlib import Path; from server.client.structured import InProcess, LibraryMissing\n"
        f"try: InProcess(Path({path!r}))\n"
        "except LibraryMissing as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO_DIR, text=True, capture_output=True)
    assert "pip install numba" in done.stdout, done.stderr
