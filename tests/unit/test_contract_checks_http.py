"""The checks against a small server that keeps every promise, or breaks one in a stated way."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from quantyard.formats.gguf import MEDIA
from quantyard.protocol.api_tests import CheckRecord
from quantyard.protocol.predictions import FilePredictions, PredictedToken, PromptPredictions
from server.api_checks.launch import Wire
from server.api_checks.schemas import CASES
from server.api_checks.session import ApiSession
from server.api_checks.table import CHECKS
from server.contract import run_contract_check, run_contract_checks
from server.limits.request_rules import LIMITS, check_request_limits, check_text_limit
from tests.unit.json_handler import JsonHandler

pytestmark = pytest.mark.commands

KEY = "the-right-key"
N_CTX = 512
TEXT = "the quick brown fox jumps over the lazy dog and runs on through the old forest until night falls again"
WORDS = TEXT.split()
_BY_SCHEMA = {json.dumps(case.schema, sort_keys=True): case.name for case in CASES}
VALID: dict[str, Any] = {
    "one-string": {"city": "Rome"}, "person": {"name": "Ada", "age": 36}, "range": {"percent": 50},
    "three-types": {"colour": "red", "doors": 2, "sold": False},
}  # fmt: skip
MEDIUM_TOKENS = 16
MEASURED = FilePredictions(prompts=(
    PromptPredictions(prompt=(1, 2), places=(PredictedToken(tokens=(5, 6), logprobs=(-0.1, -2.5)),)),
    PromptPredictions(prompt=(3, 4), places=(PredictedToken(tokens=(7, 8), logprobs=(-0.7, -0.9)),)),
))  # fmt: skip
# To add a fault: a word of its own here, and what it changes in Handler.
FAULTS = {
    "streaming": "stream differs", "streamed-usage": "stream without usage", "stop": "stop leaks",
    "max-tokens": "one token too many", "usage": "usage wrong", "wrong-key": "any key", "json-schema": "schema ignored",
    "seeds": "no seeds", "embeddings": "bare 500", "malformed": "bare 500", "unknown-path": "never 404",
    "oversized": "sizes unsaid", "health": "health locked", "models": "no models", "chat": "no role",
    "completion": "empty text", "concurrency": "answers crossed", "tool-calls": "tools ignored",
    "slow-clients": "connections kept", "large-body": "any size", "closed-routes": "open routes",
    "hostile-grammars": "nothing checked", "hostile-schemas": "nothing checked", "large-tokenize": "nothing checked",
    "picture": "media not read", "sound": "media not read", "unknown-model": "any model", "as-measured": "other logits",
}  # fmt: skip


class Handler(JsonHandler, BaseHTTPRequestHandler):
    """Answers with a fixed text, token by word; `server.fault` names the one promise that it breaks."""

    protocol_version = "HTTP/1.1"
    server: FakeServer

    def setup(self) -> None:
        self.timeout = None if self.server.fault == "connections kept" else 0.3
        super().setup()

    def do_DELETE(self) -> None:
        self.not_found()

    def do_PUT(self) -> None:
        self.send(200, {}) if self.server.fault == "open routes" else self.not_found()

    def do_GET(self) -> None:
        if self.path == "/health":
            return self.send(401 if self.server.fault == "health locked" else 200, {"status": "ok"})
        if not self.is_known():
            return None
        data = [] if self.server.fault == "no models" else [{"id": "fake", "object": "model"}]
        known: dict[str, object] = {
            "/v1/models": {"object": "list", "data": data},
            "/props": {"build_info": "b1", "default_generation_settings": {"n_ctx": N_CTX}},
        }
        return self.send(200, known[self.path]) if self.path in known else self.not_found()

    def do_POST(self) -> None:
        try:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        except TimeoutError:
            self.close_connection = True
            return None
        if len(text) > LIMITS["body_bytes"].most and self.server.fault != "any size":
            return self.refuse(413, "too large")
        routes: dict[str, Callable[[dict[str, Any]], None]] = {
            "/v1/chat/completions": self.answer, "/v1/completions": self.answer, "/tokenize": self.tokenize,
            "/v1/embeddings": self.embed, "/completion": self.predict,
        }  # fmt: skip
        if not self.is_known():
            return None
        if self.path not in routes:
            return self.not_found()
        try:
            body = json.loads(text)
            assert isinstance(body, dict) and not isinstance(body.get("messages"), str)
            if self.server.fault == "addresses fetched" and "http:" in text:
                port = int(text.split("http://127.0.0.1:")[1].split("/")[0])
                socket.create_connection(("127.0.0.1", port)).close()
            if self.server.fault != "nothing checked":
                check_request_limits(body)
                check_text_limit(body.get("content"))
        except (ValueError, AssertionError) as error:
            return self.refuse(400, f"no request: {error}")
        if body.get("model", "fake") != "fake" and self.server.fault != "any model":
            return self.refuse(404, "not served here. Name one of these: fake")
        return routes[self.path](body)

    def is_known(self) -> bool:
        if self.server.fault == "any key" or self.headers["Authorization"] == f"Bearer {KEY}":
            return True
        self.send(401, {"error": {"message": "Invalid API Key"}})
        return False

    def not_found(self) -> None:
        self.send(200 if self.server.fault == "never 404" else 404, {"error": {"message": "File Not Found"}})

    def embed(self, _body: dict[str, Any]) -> None:
        self.refuse(501, "no embeddings here")

    def tokenize(self, body: dict[str, Any]) -> None:
        self.send(200, {"tokens": list(range(len(body["content"].split())))})

    def predict(self, body: dict[str, Any]) -> None:
        """What was measured, as the measured prompt begins."""
        places = next(one.places for one in MEASURED.prompts if list(one.prompt) == body["prompt"])
        shift = -2.0 if self.server.fault == "other logits" else 0
        told = []
        for place in places:
            pairs = zip(place.tokens, place.logprobs, strict=True)
            top = [{"id": token, "logprob": value + shift} for token, value in pairs]
            told.append({"id": place.tokens[0], "logprob": place.logprobs[0], "top_logprobs": top})
        self.send(200, {"completion_probabilities": told, "tokens": [place.tokens[0] for place in places]})

    def answer(self, body: dict[str, Any]) -> None:
        is_chat = "messages" in body
        prompt = body["messages"][0]["content"] if is_chat else body["prompt"]
        parts = prompt if isinstance(prompt, list) else [{"text": prompt}]
        n_prompt = sum(len(part["text"].split()) if "text" in part else MEDIUM_TOKENS for part in parts)
        if self.server.fault == "media not read":
            n_prompt -= MEDIUM_TOKENS * (len(parts) - 1)
        if n_prompt > N_CTX:
            sizes = "" if self.server.fault == "sizes unsaid" else f": {n_prompt} tokens, {N_CTX} fit"
            return self.refuse(400, f"too long{sizes}")
        text, reason, n_written = self.write(body)
        if self.server.fault == "usage wrong":
            n_prompt += 1
        if self.server.fault == "answers crossed" and n_prompt == 10:
            n_prompt = 20
        usage = {"prompt_tokens": n_prompt, "completion_tokens": n_written, "total_tokens": n_prompt + n_written}
        message = self.message(body, text)
        if body.get("stream"):
            return self.stream(text, reason, usage)
        if self.server.fault == "empty text" and not is_chat:
            text = ""
        choice = {"index": 0, "finish_reason": reason, **({"message": message} if is_chat else {"text": text})}
        return self.send(200, {"choices": [choice], "usage": usage, "model": body["model"], "created": 1})

    def write(self, body: dict[str, Any]) -> tuple[str, str, int]:
        """Text, finish_reason and number of tokens: a word each."""
        if form := body.get("response_format"):
            return self.structured(form), "stop", 5
        n, shift = body["max_tokens"], body.get("seed", 0)
        if self.server.fault == "no seeds" and "seed" in body:
            self.server.count += 1
            shift = self.server.count
        words = (WORDS[shift % 7 :] + WORDS)[:n]
        text, reason = " ".join(words), "length"
        for stop in body.get("stop", ()):
            if stop in text and self.server.fault != "stop leaks":
                text, reason = text[: text.index(stop)], "stop"
        if self.server.fault == "half a character" and reason == "length":
            text += "\ufffd"
        return text, reason, n + (self.server.fault == "one token too many")

    def structured(self, form: dict[str, Any]) -> str:
        schema = form["json_schema"]["schema"]
        name = _BY_SCHEMA.get(json.dumps(schema, sort_keys=True), "")
        if self.server.fault == "schema ignored":
            return "Certainly! Here is your JSON."
        return json.dumps(VALID.get(name, {}))

    def message(self, body: dict[str, Any], text: str) -> dict[str, object]:
        if "tools" in body and self.server.fault != "tools ignored":
            days = 30 if self.server.fault == "bad arguments" else 3
            function = {"name": "get_weather", "arguments": json.dumps({"city": "Paris", "days": days})}
            return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}
        return {"role": "user" if self.server.fault == "no role" else "assistant", "content": text}

    def stream(self, text: str, reason: str, usage: dict[str, int]) -> None:
        if self.server.fault == "stream differs":
            text = text.upper()
        if self.server.fault == "half a character":
            text = text.removesuffix("\ufffd")
        middle = len(text) // 2
        deltas: list[dict[str, object]] = [{"content": text[:middle]}, {"content": text[middle:]}]
        chunks: list[dict[str, object]] = [{"choices": [{"delta": delta}]} for delta in deltas]
        chunks.append({"choices": [{"delta": {}, "finish_reason": reason}]})
        if self.server.fault != "stream without usage":
            chunks.append({"choices": [], "usage": usage})
        lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        self.send_text(200, lines + "data: [DONE]\n\n", "text/event-stream")

    def refuse(self, status: int, words: str) -> None:
        if self.server.fault == "bare 500":
            return self.send_text(500, "Internal Server Error", "text/plain")
        return self.send(status, {"error": {"message": words}})


class FakeServer(ThreadingHTTPServer):
    request_queue_size = 64
    fault = ""
    count = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with FakeServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schemas whose valid answers the fake server knows, few slow clients, and little patience with them."""
    known = tuple(case for case in CASES if case.name in VALID)
    monkeypatch.setattr("server.api_checks.structured_output.CASES", known)
    monkeypatch.setattr("server.api_checks.abuse.HALF_OPEN", 10)
    monkeypatch.setattr("server.api_checks.abuse.SLOW_BODIES", 4)
    monkeypatch.setattr("server.api_checks.abuse.ENDED_WITHIN_S", 2.0)


def _record(server: FakeServer, name: str) -> CheckRecord:
    check = next(check for check in CHECKS if check.name == name)
    return run_contract_check(ApiSession(Wire(server.address, KEY), media=MEDIA, measured=MEASURED), check)[0]


def test_a_server_that_keeps_every_promise_passes_every_check(fake: FakeServer) -> None:
    done: list[tuple[int, int, str]] = []
    report = run_contract_checks(
        fake.address, KEY, lambda *counts: done.append(counts), "Q8_0", media=MEDIA, measured=MEASURED
    )
    assert [(check.name, check.finding) for check in report.checks if check.status != "passed"] == []
    assert report.passed and (report.server, report.model, report.label) == ("llama-server b1", "fake", "Q8_0")
    names = [*(check.name for check in CHECKS), ""]
    assert done == [(number, len(CHECKS), name) for number, name in enumerate(names)]
    assert report.schemas is not None and (report.schemas.n_valid, report.schemas.n) == (len(VALID), len(VALID))


def test_every_check_has_a_planted_fault() -> None:
    assert set(FAULTS) == {check.name for check in CHECKS}


@pytest.mark.parametrize("name", [check.name for check in CHECKS])
def test_a_broken_promise_fails_its_check(fake: FakeServer, name: str) -> None:
    fake.fault = FAULTS[name]
    record = _record(fake, name)
    assert record.status == "failed", record.finding
    assert "\n" not in record.finding and "unexpected structure" not in record.finding


@pytest.mark.parametrize(
    ("name", "fault", "words"),
    [
        ("streaming", "stream differs", "streamed 'THE QUICK"), ("stop", "stop leaks", "the stop string"),
        ("usage", "usage wrong", "3 prompt_tokens, but its tokenizer counts 2"),
        ("wrong-key", "any key", "/v1/chat/completions answers no key: 200"),
        ("json-schema", "schema ignored", "0 of 4 answers conform, 0.0 % ("), ("tool-calls", "bad arguments", "30"),
        ("max-tokens", "one token too many", "9 completion_tokens, 8 were asked for"),
        ("embeddings", "bare 500", "wanted 4xx or 501 with a reason, got 500 Internal Server Error"),
        ("oversized", "sizes unsaid", "does not name both sizes"), ("unknown-path", "never 404", "wanted 404, got 200"),
    ],
)  # fmt: skip
def test_a_finding_gives_the_values(fake: FakeServer, name: str, fault: str, words: str) -> None:
    fake.fault = fault
    record = _record(fake, name)
    assert record.status == "failed" and words in record.finding


def test_a_stream_may_leave_out_a_character_that_max_tokens_cut(fake: FakeServer) -> None:
    fake.fault = "half a character"
    assert _record(fake, "streaming").status == "passed"


def test_a_schema_that_failed_is_named_in_the_finding(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VALID, "range", {"percent": 101})
    record = _record(fake, "json-schema")
    assert record.status == "failed" and "not: range (invalid)" in record.finding


def test_a_server_that_does_not_answer_fails_every_check_without_an_end_to_the_others(fake: FakeServer) -> None:
    session = ApiSession(Wire("http://127.0.0.1:9", KEY))
    record = run_contract_check(session, CHECKS[0])[0]
    assert record.status == "failed" and record.finding.startswith("no answer: ConnectError")


def test_a_model_that_reads_text_alone_is_sent_neither_picture_nor_sound(fake: FakeServer) -> None:
    session = ApiSession(Wire(fake.address, KEY))
    checks = {check.name: check for check in CHECKS}
    found = [run_contract_check(session, checks[name])[0] for name in ("picture", "sound")]
    assert [record.finding for record in found] == [
        "not applicable: the model reads no pictures", "not applicable: the model reads no sound",
    ]


def test_a_server_that_fetches_an_address_fails_the_check(fake: FakeServer) -> None:
    fake.fault = "addresses fetched"
    assert "fetched an address" in _record(fake, "picture").finding


def test_a_template_without_tools_is_not_supported_with_the_reason(fake: FakeServer) -> None:
    session = ApiSession(Wire(fake.address, KEY))
    session.props = {"chat_template_caps": {"supports_tools": False}}
    record = run_contract_check(session, next(check for check in CHECKS if check.name == "tool-calls"))[0]
    assert record.status == "not supported" and "template has no tools" in record.finding


def test_to_a_base_model_what_chats_is_not_applicable_and_the_rest_is_asked_without_chatting(fake: FakeServer) -> None:
    session = ApiSession(Wire(fake.address, KEY), has_chat_template=False, measured=MEASURED)
    asked = [check for check in CHECKS if check.name not in {"slow-clients", "large-body"}]  # those take seconds
    records = {check.name: run_contract_check(session, check)[0] for check in asked}
    chatting = {name for name, record in records.items() if "not applicable" in record.finding}
    assert chatting == {"chat", "json-schema", "tool-calls", "picture", "sound"}
    assert not [record for record in records.values() if record.status == "failed"]
