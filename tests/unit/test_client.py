"""The client against servers that fail in stated ways, and its options, files and examples; no network, no model."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from server.client import chat
from server.client.client import (
    AnswerBroken,
    BadSampling,
    Client,
    KeyUnusable,
    NoServer,
    RequestRefused,
    Sampling,
    TimedOut,
    UnknownModel,
    read_client_key,
)
from server.client.spinner import spinner
from server.examples.rag import Index, Passage, build_rag_prompt, read_rag_passages

pytestmark = pytest.mark.commands

PIECE = 'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":%s,"finish_reason":%s}]}\n\n'  # noqa: E501  (as on the wire)
HELLO, STOP, DONE = PIECE % ('{"content":"Hello"}', "null"), PIECE % ("{}", '"stop"'), "data: [DONE]\n\n"


@contextmanager
def serving(
    status: int, body: str, *, declared: int | None = None, waits: bool = False, props: str = ""
) -> Iterator[str]:
    """A server of one model `m` whose every POST is answered so.

    Args:
        declared: more bytes promised than sent.
        props: what it says of itself; "": nothing.
    """
    gone = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/props":
                return self._send(200 if props else 404, props)
            self._send(200, json.dumps({"object": "list", "data": [{"id": "m", "object": "model", "created": 1}]}))

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if waits:
                gone.wait(10)
            self._send(status, body, declared)

        def _send(self, code: int, text: str, length: int | None = None) -> None:
            self.send_response(code)
            kind = "text/event-stream" if text.startswith("data:") else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length or len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        gone.set()
        server.shutdown()
        server.server_close()


def client(url: str, **more) -> Client:
    return Client(url, None, **more)


ASKED = [{"role": "user", "content": "hi"}]


def test_a_stream_that_ends_with_a_reason_is_whole() -> None:
    with serving(200, HELLO + STOP + DONE) as url:
        assert "".join(client(url).stream_chat(ASKED)) == "Hello"


@pytest.mark.parametrize("body", [HELLO, HELLO + DONE, ""], ids=["cut", "done-without-a-reason", "empty"])
def test_a_stream_that_ends_without_a_reason_is_no_short_answer(body: str) -> None:
    with serving(200, body or "data: [DONE]\n\n") as url, pytest.raises(AnswerBroken, match="before it was finished"):
        list(client(url).stream_chat(ASKED))


def test_a_connection_that_breaks_in_a_stream_is_no_short_answer() -> None:
    with serving(200, HELLO, declared=10_000) as url, pytest.raises(AnswerBroken):
        list(client(url).stream_chat(ASKED))


def test_an_error_in_a_stream_is_an_error() -> None:
    body = 'data: {"error":{"message":"out of slots","type":"server_error"}}\n\n'
    with serving(200, HELLO + body) as url, pytest.raises(AnswerBroken, match="out of slots"):
        list(client(url).stream_chat(ASKED))


def test_a_model_that_is_still_being_loaded_is_said_to_be() -> None:
    with serving(503, '{"error":{"message":"Loading model"}}') as url, pytest.raises(NoServer, match="not ready"):
        client(url).chat(ASKED)


def test_an_error_without_words_of_ours_keeps_the_servers() -> None:
    with serving(500, '{"error":{"message":"boom"}}') as url, pytest.raises(RequestRefused, match=r"\(500\): boom"):
        client(url).chat(ASKED)


def test_a_server_that_does_not_answer_in_time_is_said_to() -> None:
    with serving(200, "", waits=True) as url, pytest.raises(TimedOut):
        client(url, timeout_s=0.3).chat(ASKED)


def test_another_model_than_the_servers_is_not_asked_for() -> None:
    with serving(200, "{}") as url, pytest.raises(UnknownModel, match="It serves: m"):
        client(url, model="gpt").chat(ASKED)


def test_no_server_says_what_to_type() -> None:
    with serving(200, "{}") as url:
        pass
    with pytest.raises(NoServer, match="docker compose up"):
        client(url).chat(ASKED)


def test_a_key_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("  abc \nsecond\n")
    assert read_client_key(path) == "abc"
    path.write_text("# mine\n\n  def\nother\n")
    assert read_client_key(path) == "def"


@pytest.mark.parametrize(("content", "words"), [(None, "does not exist"), (b" \n", "is empty"), (b"\xff", "be read")])
def test_a_key_that_cannot_be_read_names_its_file(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeyUnusable, match=words) as caught:
        read_client_key(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("wrong", [
    {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"max_tokens": 0},
])  # fmt: skip
def test_sampling_out_of_range_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(BadSampling, match=next(iter(wrong)).upper()):
        Sampling(**wrong)


def test_top_k_goes_into_the_body_and_a_seed_only_where_there_is_one() -> None:
    assert Sampling(top_k=5).arguments()["extra_body"] == {"top_k": 5}
    assert "seed" not in Sampling().arguments()
    assert Sampling(seed=0, stop=("x",)).arguments().items() >= {"seed": 0, "stop": ["x"]}.items()


def test_options_of_the_chat_win_over_its_environment_and_empty_ones_do_not_count() -> None:
    found = chat.read_chat_settings(["--top-k", "3"], {"TOP_K": "9", "TOP_P": "0.5", "MODEL_NAME": "", "NO_COLOR": "1"})
    assert (found.sampling.top_k, found.sampling.top_p, found.model, found.color) == (3, 0.5, "", False)


def test_the_chat_takes_commands_and_a_wrong_one_says_what_to_type() -> None:
    lines = "/help\n/set temperature 0.2\n/set\n/set warmth 3\n/set top_p 2\n/model\n/model gpt\n/modle\n/exit\n"
    notes = io.StringIO()
    with serving(200, "{}") as url:
        talk = chat.Chat(
            client(url), Sampling(), chat.Terminal(io.StringIO(lines), io.StringIO(), notes, color=False)
        )
        talk.run()
    said = notes.getvalue().splitlines()
    assert talk.sampling.temperature == 0.2 and talk.sampling.top_p == 0.95
    assert said[: len(chat.COMMANDS)][1].startswith("/model [NAME]")
    assert said[6:8] == ["temperature 0.2 · top_p 0.95 · top_k 40 · max_tokens 512"] * 2
    told = "\n".join(said[8:])
    assert "/set takes a name and a number" in told and "TOP_P is 2.0." in told
    assert "\nm\n" in told and "It serves: m" in told and "Unknown command /modle. /help" in told


def test_the_spinner_turns_until_the_first_piece_and_leaves_nothing() -> None:
    out = io.StringIO()
    with spinner(out, shown=True):
        time.sleep(0.4)
    assert out.getvalue().startswith("\r|\r/") and out.getvalue().endswith("\r\x1b[K")
    with spinner(quiet := io.StringIO(), shown=False):
        pass
    assert quiet.getvalue() == ""


def test_an_option_of_the_chat_that_is_no_number_is_refused_by_name() -> None:
    with pytest.raises(BadSampling, match="TOP_K is 'many'"):
        chat.read_chat_settings([], {"TOP_K": "many"})


@pytest.mark.parametrize(("question", "source"), [
    ("When is the library open?", "opening.md, Hours"), ("What are the yearly fees?", "membership.md, Fees"),
    ("Can I repair my toaster on Saturday?", "repairs.md, The repair café"),
    ("chainsaws", "safety.md, Before the first loan"),
    ("How do I reserve something?", "borrowing.md, Reserving"),
])  # fmt: skip
def test_the_search_finds_the_section_that_answers(question: str, source: str) -> None:
    assert Index(read_rag_passages()).search(question)[0].source == source


def test_a_question_without_a_known_word_finds_nothing() -> None:
    assert Index(read_rag_passages()).search("xylophone quantum") == []
    assert Index(read_rag_passages()).search("") == []


def test_the_prompt_holds_the_passages_and_the_question() -> None:
    _system, user = build_rag_prompt("Why?", [Passage("a", "one"), Passage("b", "two")])
    assert user["content"] == "Passages:\n\n[1] one\n\n[2] two\n\nQuestion: Why?"


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, "http://127.0.0.1:8080/v1"), ({"PORT": "8081"}, "http://127.0.0.1:8081/v1"),
        ({"PORT": "8081", "BASE_URL": "https://a.example/v1"}, "https://a.example/v1"),
    ],
)  # fmt: skip
def test_the_chat_asks_the_port_of_this_machine_unless_an_address_is_given(variables: dict[str, str], url: str) -> None:
    assert chat.read_chat_settings([], variables).base_url == url
