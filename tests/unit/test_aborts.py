"""A process of llama.cpp that aborts or crashes failed on this model (exit code 3); only a kill comes from outside."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from builder.llama.run_tool import ToolRun, run_llama_tool
from quantyard.engines.stage_io import StageListener, read_engine_result
from quantyard.errors import EngineError
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import StageSpec
from quantyard.protocol.aborts import crash_words
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import QuantizeRequest

SHORT = "llama-vocab.cpp:2135: GGML_ASSERT(id_to_token.size() == token_to_id.size()) failed"
ASSERTION = "/src/llama-vocab.cpp:2135: GGML_ASSERT(id_to_token.size() == token_to_id.size()) failed"
BACKTRACE = [f"libggml-base.so(+0x{n:x}) [0x7f]" for n in range(40)]
SPEC = StageSpec("quantize Q8_0", STAGES["quantize"], QuantizeRequest(quant="Q8_0", ftype=7), {}, "k" * 64)


@pytest.mark.parametrize(
    ("number", "how"),
    [(signal.SIGABRT, "aborted (SIGABRT)"), (signal.SIGSEGV, "crashed (SIGSEGV)"), (signal.SIGFPE, "crashed (SIGFPE)")],
)
@pytest.mark.parametrize("from_shell", [False, True])
def test_a_stage_that_ends_itself_is_llama_cpp_on_this_model(
    number: int, how: str, from_shell: bool, tmp_path: Path
) -> None:
    result = read_engine_result(SPEC, tmp_path, 128 + number if from_shell else -number, f"loading\n{ASSERTION}\n#1")
    assert result.exit_code == ExitCode.UNSUPPORTED_MODEL and result.error is not None
    assert result.error.message == f"llama.cpp {how}: {SHORT}."


@pytest.mark.parametrize("exit_code", [-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGKILL, 128 + signal.SIGTERM])
def test_a_kill_comes_from_outside_and_the_command_can_be_typed_again(exit_code: int, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="killed from outside") as caught:
        read_engine_result(SPEC, tmp_path, exit_code, "")
    assert "Type the same command again" in caught.value.hint


@pytest.mark.parametrize("exit_code", [-signal.SIGILL, 128 + signal.SIGILL])
def test_an_instruction_that_the_cpu_does_not_have_is_the_machine_and_not_the_model(
    exit_code: int, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="this CPU does not have"):
        read_engine_result(SPEC, tmp_path, exit_code, "")


def test_a_long_backtrace_does_not_push_the_assertion_out() -> None:
    listener = StageListener("quantize", lambda _progress: None)
    for line in ("loading", ASSERTION, *BACKTRACE):
        listener.on_stderr(line)
    assert listener.tail.splitlines()[0] == ASSERTION and listener.tail.endswith(BACKTRACE[-1])


def test_the_detail_of_a_crash_has_no_backtrace(tmp_path: Path) -> None:
    frames = ["#38 0x00007fa8656ba217 in pymain () at main.c:710", "710\tin Modules/main.c", "[New LWP 12]", *BACKTRACE]
    result = read_engine_result(SPEC, tmp_path, -6, "\n".join([ASSERTION, *frames, "the end"]))
    assert result.error is not None and result.error.detail == f"{ASSERTION}\nthe end"


def test_a_tool_that_aborts_says_its_assertion() -> None:
    code = f"import os, sys; print({ASSERTION!r}); print('\\n'.join({BACKTRACE!r})); sys.stdout.flush(); os.abort()"
    run = run_llama_tool([sys.executable, "-c", code], {}, lambda _line: None)
    assert run.exit_code == -signal.SIGABRT and run.end == f"aborted (SIGABRT): {SHORT}"


@pytest.mark.parametrize(
    ("line", "is_reason"),
    [
        ("ggml.c:1: fatal error", True),
        ("  what():  key not found: x", True),
        ("terminate called after throwing an instance of 'std::runtime_error'", True),
        ("x: y.cpp:3: int f(): Assertion `a == b' failed.", True),
        ("llama_model_load: loaded", False),
    ],
)
def test_the_reason_is_the_line_that_says_it(line: str, is_reason: bool) -> None:
    assert (": " in crash_words(-6, f"a\n{line}\nb").removeprefix("aborted (SIGABRT)")) == is_reason


def test_an_ordinary_end_is_an_exit_code() -> None:
    assert ToolRun(("x",), 1, "no").end == "exit code 1" and crash_words(-9, "") == ""
