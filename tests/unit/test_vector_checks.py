"""The checks of embeddings and rankings, against a small server that keeps every promise, or breaks one."""

from __future__ import annotations

import base64
import json
import math
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from quantyard.formats.purpose import Purpose
from server.api_checks.launch import Wire
from server.api_checks.session import ApiSession
from server.api_checks.table import VECTOR_CHECKS, api_checks_of
from server.contract import run_contract_check
from tests.unit.json_handler import JsonHandler

KEY = "the-right-key"
# To add a fault: a word of its own here, and what it changes in Handler.
FAULTS = [
    ("vectors", "not of length 1"), ("vectors", "vectors of two sizes"), ("vectors", "another model"),
    ("vectors", "one vector too few"), ("vectors", "no usage"), ("vector-order", "answers by place"),
    ("vector-order", "out of order"), ("vector-order", "one vector for all"), ("vector-base64", "base64 ignored"),
    ("vector-base64", "64-bit numbers"), ("ranking", "answers by place"), ("ranking", "one score for all"),
    ("ranking", "top_n of the first"), ("ranking", "one score too few"), ("wrong-input", "bare 500"),
    ("vector-clients", "other answers at first"),
]  # fmt: skip


class Handler(JsonHandler, BaseHTTPRequestHandler):
    """The vector of a text is made of its letters, a score of the lengths; `server.fault` names what is broken."""

    server: FakeServer

    def do_GET(self) -> None:
        self.send(200, {"object": "list", "data": [{"id": "fake", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        routes: dict[str, Callable[[dict[str, Any]], None]] = {"/v1/embeddings": self.embed, "/v1/rerank": self.rank}
        routes[self.path](body)

    def embed(self, body: dict[str, Any]) -> None:
        texts = body.get("input")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts:
            return self.refuse()
        fault = self.server.fault
        data = [
            {"index": at, "object": "embedding", "embedding": self.coded(self.vector(text, at), body)}
            for at, text in enumerate(texts)
        ]
        if fault == "one vector too few":
            data = data[1:]
        if fault == "out of order":
            data.reverse()
        usage = {} if fault == "no usage" else {"prompt_tokens": 3, "total_tokens": 3}
        model = "other" if fault == "another model" else "fake"
        return self.send(200, {"object": "list", "data": data, "usage": usage, "model": model})

    def vector(self, text: str, at: int) -> list[float]:
        fault = self.server.fault
        numbers = [float(text.count(letter)) + 1 for letter in "aeinorst"]
        if fault == "one vector for all":
            numbers = [1.0] * 8
        if fault == "answers by place":
            numbers[0] += 9 * at
        if fault == "other answers at first":
            numbers[0] += 9 * self.is_new(text)
        if fault == "vectors of two sizes" and at:
            numbers.append(1.0)
        length = 1.0 if fault == "not of length 1" else math.hypot(*numbers)
        return [number / length for number in numbers]

    def is_new(self, text: str) -> bool:
        is_new = text not in self.server.seen
        self.server.seen.add(text)
        return is_new

    def coded(self, vector: list[float], body: dict[str, Any]) -> object:
        if body.get("encoding_format") != "base64" or self.server.fault == "base64 ignored":
            return vector
        form = "d" if self.server.fault == "64-bit numbers" else "f"
        return base64.b64encode(struct.pack(f"<{len(vector)}{form}", *vector)).decode()

    def rank(self, body: dict[str, Any]) -> None:
        fault, documents = self.server.fault, body.get("documents")
        if not isinstance(documents, list) or not documents or "query" not in body:
            return self.refuse()
        scores = [len(body["query"]) - len(document) / 10 for document in documents]
        if fault == "answers by place":
            scores = [score + at for at, score in enumerate(scores)]
        if fault == "other answers at first":
            scores[0] += 90 * self.is_new("?" + body["query"])
        if fault == "one score for all":
            scores = [1.0] * len(scores)
        rows = [{"index": at, "relevance_score": score} for at, score in enumerate(scores)]
        if fault == "one score too few":
            rows = rows[1:]
        if fault != "top_n of the first":
            rows.sort(key=lambda row: -row["relevance_score"])
        return self.send(200, {"results": rows[: body.get("top_n", len(rows))]})

    def refuse(self) -> None:
        status = 500 if self.server.fault == "bare 500" else 400
        self.send(status, {"error": {"message": "the input is no text"}})


class FakeServer(ThreadingHTTPServer):
    request_queue_size = 64
    fault = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: set[str] = set()


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with FakeServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def _results(server: FakeServer, purpose: Purpose, *names: str) -> dict[str, tuple[str, str]]:
    session = ApiSession(Wire(f"http://127.0.0.1:{server.server_port}", KEY), purpose=purpose)
    checks = [check for check in VECTOR_CHECKS if purpose in check.purposes and (not names or check.name in names)]
    records = [run_contract_check(session, check)[0] for check in checks]
    return {record.name: (record.status, record.finding) for record in records}


@pytest.mark.parametrize("purpose", ["embed", "rerank"])
def test_a_server_that_keeps_every_promise_passes_every_check(fake: FakeServer, purpose: Purpose) -> None:
    results = _results(fake, purpose)
    assert results
    assert {status for status, _ in results.values()} == {"passed"}, results


def test_every_check_has_a_planted_fault() -> None:
    assert {name for name, _ in FAULTS} == {check.name for check in VECTOR_CHECKS}


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_broken_promise_fails_its_check(fake: FakeServer, name: str, fault: str) -> None:
    fake.fault = fault
    check = next(check for check in VECTOR_CHECKS if check.name == name)
    for purpose in check.purposes:
        status, finding = _results(fake, purpose, name)[name]
        assert status == "failed" and "unexpected structure" not in finding, finding


def test_to_an_embedding_model_what_generates_is_not_applicable(fake: FakeServer) -> None:
    session = ApiSession(Wire(f"http://127.0.0.1:{fake.server_port}", KEY), purpose="embed")
    chat = next(check for check in api_checks_of("embed") if check.name == "chat")
    record = run_contract_check(session, chat)[0]
    assert record.status == "not supported" and "the model embeds texts" in record.finding


def test_a_model_that_generates_is_not_asked_for_vectors() -> None:
    assert not {check.name for check in api_checks_of("generate")} & {check.name for check in VECTOR_CHECKS}
