"""The client, the chat and the example with documents, against a real llama-server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from quantyard.paths import REPO_DIR
from server.client.client import GREEDY, AnswerBroken, Client, KeyRefused, PromptTooLong, Sampling, UnknownModel
from server.examples.rag import Index, rag_answer, read_rag_passages
from tests.serve.conftest import Server

HELLO = [{"role": "user", "content": "Say hello."}]
LONG = [{"role": "user", "content": "Tell a very long story about the sea."}]
pytestmark = pytest.mark.alone


def test_a_stream_says_what_a_whole_answer_says(server: Server) -> None:
    client = server.client()
    whole = client.chat(HELLO, GREEDY)
    assert whole.text == "".join(client.stream_chat(HELLO, GREEDY))
    assert (whole.model, whole.finish_reason) == ("demo", "stop")
    assert whole.prompt_tokens > 0 and whole.completion_tokens > 0


def test_a_completion_goes_on_and_its_stream_alike(server: Server) -> None:
    client, how = server.client(), Sampling(temperature=0, max_tokens=5)
    found = client.complete("The capital of France is", how)
    assert "Paris" in found.text
    assert (found.finish_reason, found.completion_tokens) == ("length", 5)
    assert found.text == "".join(client.stream_complete("The capital of France is", how))


def test_a_stop_string_is_not_in_the_answer_and_a_seed_repeats_it(server: Server) -> None:
    client, how = server.client(), Sampling(temperature=1.0, max_tokens=20, seed=11, stop=(".",))
    first, second = (client.complete("Once upon a time", how).text for _ in range(2))
    assert first == second
    assert "." not in first


def test_top_k_one_is_the_likeliest_at_any_temperature(server: Server) -> None:
    client = server.client()
    likeliest = client.complete("1 2 3 4", Sampling(temperature=0, max_tokens=12)).text
    assert client.complete("1 2 3 4", Sampling(temperature=2.0, top_k=1, top_p=1, max_tokens=12)).text == likeliest


def test_a_wrong_key_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("wrong")
    with pytest.raises(KeyRefused, match="KEY_FILE"):
        Client(server.url, tmp_path / "key").chat(HELLO)


def test_another_model_is_not_answered_by_this_one(server: Server) -> None:
    with pytest.raises(UnknownModel, match="It serves: demo"):
        server.client(model="gpt").chat(HELLO)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_says_both_numbers(server: Server, stream: bool) -> None:
    client, asked = server.client(), [{"role": "user", "content": "word " * 5000}]
    with pytest.raises(PromptTooLong, match=r"50\d\d tokens.*2048 tokens"):
        list(client.stream_chat(asked)) if stream else client.chat(asked)


def test_a_server_that_is_killed_in_the_middle_of_a_stream_gives_an_error(own_server: Server) -> None:
    pieces = own_server.client().stream_chat(LONG, Sampling(temperature=0, max_tokens=1000))
    assert next(pieces)
    own_server.container.kill()
    with pytest.raises(AnswerBroken):
        list(pieces)


def test_answers_from_documents_name_their_sources(server: Server) -> None:
    found = rag_answer(server.client(), Index(read_rag_passages()), "When is the tool library open?")
    assert "Tuesday" in found.text
    assert found.sources[0] == "opening.md, Hours"


def _chat(server: Server, lines: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"BASE_URL": server.url, "KEY_FILE": str(server.key_file), "TEMPERATURE": "0", "MAX_TOKENS": "40"}
    return subprocess.run(
        [sys.executable, "-m", "server.client.chat"], input=lines, env=os.environ | own | environment, cwd=REPO_DIR,
        text=True, capture_output=True, timeout=120,
    )


def test_a_chat_from_a_pipe_answers_each_line_and_writes_nothing_else(server: Server) -> None:
    done = _chat(server, "Say hello.\n/reset\nSay hello.\n/exit\nSay more.\n")
    first, second = done.stdout.splitlines()
    assert first == second
    assert done.returncode == 0
    assert "forgotten" in done.stderr


def test_a_chat_remembers_what_was_said(server: Server) -> None:
    done = _chat(server, "My name is Ole.\nWhat is my name? Repeat my words.\n")
    alone = _chat(server, "What is my name? Repeat my words.\n")
    assert done.stdout.splitlines()[-1] != alone.stdout.splitlines()[-1]


def test_a_conversation_that_no_longer_fits_says_to_reset(server: Server) -> None:
    done = _chat(server, "word " * 5000 + "\n")
    assert done.returncode == 4
    assert "no longer fits" in done.stderr and "/reset" in done.stderr


@pytest.mark.parametrize(("environment", "code"), [
    ({"TOP_P": "2"}, 2), ({"KEY_FILE": "/nowhere"}, 2), ({"BASE_URL": "http://127.0.0.1:1/v1"}, 4),
])  # fmt: skip
def test_a_chat_that_cannot_begin_ends_with_a_code_and_one_line(server, environment: dict[str, str], code: int) -> None:
    done = _chat(server, "hi\n", **environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)


def test_ctrl_c_stops_the_answer_and_not_the_chat(server: Server) -> None:
    import pty

    parent, child = pty.openpty()
    own = {"BASE_URL": server.url, "KEY_FILE": str(server.key_file), "MAX_TOKENS": "1000", "NO_COLOR": "1"}
    argv = [sys.executable, "-m", "server.client.chat"]
    ends: dict[str, Any] = {"stdin": child, "stdout": child, "stderr": child}
    running = subprocess.Popen(argv, env=os.environ | own, cwd=REPO_DIR, start_new_session=True, **ends)
    try:
        _type(parent, "you> ", LONG[0]["content"] + "\n")
        _read_until(parent, " the ")
        running.send_signal(signal.SIGINT)
        _type(parent, "you> ", "/exit\n")
        assert running.wait(timeout=20) == 0
    finally:
        running.kill()
        os.close(parent)
        os.close(child)


def _type(terminal: int, after: str, text: str) -> None:
    _read_until(terminal, after)
    os.write(terminal, text.encode())


def _read_until(terminal: int, text: str, within_s: float = 60) -> None:
    seen, deadline = "", time.monotonic() + within_s
    while text not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(terminal, 1024).decode(errors="replace")
