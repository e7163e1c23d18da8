"""Clients that mean harm, against the real server of ENGINE=local with a tiny model: it goes on for everybody else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2
import pytest

from quantyard.paths import REPO_DIR
from quantyard.protocol.api_tests import LocalModel, LocalServerSettings
from server.api_checks.launch import Answer, Wire, free_loopback_port
from tests.docker.server import wait_for
from tests.hostile.api_requests import CHAT, CLOSED, HOSTILE, ORDINARY, TEXT, Case
from tests.hostile.sampling import sampled
from tests.tiny_gguf import write_tiny

pytestmark = pytest.mark.alone
KEY = "key-of-the-hostile-tests"
READY_WITHIN_S = 60.0
ANSWERED_WITHIN_S = 10.0  # an ordinary request, beside whatever goes on; idle, it takes 0.1 s
ENDED_WITHIN_S = 30.0  # a connection that says nothing
HALF_OPEN, SLOW_BODIES = 700, 300

@dataclass(frozen=True)
class Served:
    """The server's process, and a client with its key."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def wire(self) -> Wire:
        return Wire(f"http://127.0.0.1:{self.port}", KEY, ANSWERED_WITHIN_S)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), ANSWERED_WITHIN_S)

    def processing(self) -> float:
        """Requests that llama-server is answering now."""
        lines = self.wire.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith("llamacpp:requests_processing{")).split()[-1])

    def check_alive(self) -> None:
        """The same process still answers an ordinary request in its time."""
        answer = self.wire.post(CHAT, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2})
        assert answer.status == 200 and len(answer.body["choices"]) == 1, answer
        assert self.process.poll() is None


def _python() -> str:
    ours = (str(REPO_DIR / folder / "bin" / "python") for folder in (".venv-local", ".venv-bench"))
    found = next((place for place in (os.environ.get("BENCH_PYTHON"), *ours) if place and Path(place).exists()), None)
    return found or pytest.skip("no xllamacpp: type make images ENGINE=local")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    python, folder = _python(), tmp_path_factory.mktemp("served")
    model = write_tiny(None, folder / "tiny.gguf", n_layers=1)
    port = free_loopback_port()
    config = folder / "server.json"
    models = (LocalModel(path=model, name="tiny"),)
    settings = LocalServerSettings(port=port, key=KEY, models=models, context_size=2048, parallel=2, threads=1)
    config.write_text(settings.model_dump_json())
    log = folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [python, "-P", "-m", "server.local.server", str(config)], env={**os.environ, "PYTHONPATH": str(REPO_DIR)},
            stdout=stream, stderr=stream,
        )  # fmt: skip
    try:
        server = Served(process, port, log)
        _wait(server)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def _wait(server: Served) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(httpx2.TransportError):
            if server.wire.get("/health").status == 200:
                return
        time.sleep(0.1)
    pytest.fail(f"the server is not ready: {server.log.read_text()[-2000:]}")


def _ask(served: Served, case: Case, key: str = KEY) -> Answer:
    """A case as a client sends it; the path and a body of bytes are sent as they are."""
    connection = HTTPConnection("127.0.0.1", served.port, timeout=ANSWERED_WITHIN_S)
    with contextlib.closing(connection):
        body = case.sent() if case.method != "GET" else None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
            connection.request(case.method, case.path, body, {"Authorization": f"Bearer {key}", **case.headers})
        answer = connection.getresponse()
        return Answer(answer.status, answer.read().decode())


@pytest.mark.parametrize("case", sampled(HOSTILE, 24), ids=str)
def test_a_hostile_request_is_refused_in_the_apis_form_and_nobody_else_waits(served: Served, case: Case) -> None:
    answer = _ask(served, case)
    assert answer.status == case.status and answer.body["error"]["message"], answer.text[:200]
    served.check_alive()


@pytest.mark.parametrize("case", sampled(ORDINARY, 12), ids=str)
def test_an_ordinary_request_is_answered(served: Served, case: Case) -> None:
    answer = _ask(served, case)
    assert answer.status == 200, answer.text[:200]


@pytest.mark.parametrize("case", sampled(CLOSED, 12), ids=str)
def test_what_is_not_promised_is_not_there(served: Served, case: Case) -> None:
    assert _ask(served, case).status in {404, 405}
    assert _ask(served, case, key="wrong").status == 401


@pytest.mark.parametrize(
    "asked",
    [
        {"grammar": "root ::= ("}, {"grammar": "root ::= x"}, {"grammar": 'x ::= "a"'}, {"grammar": "root ::= [b-a]"},
        {"grammar": "root ::= <think>"},
        {"response_format": {"type": "json_object", "schema": {"type": "nothing"}}},
    ],
)  # fmt: skip
def test_a_grammar_that_the_parser_does_not_understand_does_not_end_the_server(
    served: Served, asked: dict[str, Any]
) -> None:
    answer = served.wire.post(CHAT, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, **asked})
    assert answer.status == 400 and answer.body["error"]["message"], answer
    served.check_alive()


@pytest.mark.parametrize("grammar", ["root ::= [\\U00110000-\\U001FFFFF]", 'root ::= "a" [\\UFFFFFFF0-\\UFFFFFFFF]'])
def test_a_grammar_that_leaves_nothing_to_write_does_not_end_the_server(served: Served, grammar: str) -> None:
    answer = served.wire.post(TEXT, {"prompt": "Hi", "max_tokens": 4, "grammar": grammar})
    assert answer.status in {200, 400}
    served.check_alive()


def test_connections_that_say_nothing_stop_or_drip_keep_nobody_out_and_are_ended(served: Served) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    half = [head[: number % len(head)] for number in range(HALF_OPEN)]
    slow = [f"{head}Content-Length: 1000\r\n\r\n{{"] * SLOW_BODIES
    with contextlib.ExitStack() as opened:
        connections = [opened.enter_context(served.connect()) for _ in (*half, *slow)]
        dripping = opened.enter_context(served.connect())
        for connection, said in zip(connections, (*half, *slow), strict=True):
            with contextlib.suppress(OSError):  # ended already, to make room
                connection.sendall(said.encode())
        served.check_alive()
        _drip_until_ended(dripping)
        for connection in connections:
            _read_until_ended(connection)
    served.check_alive()


def _drip_until_ended(connection: socket.socket) -> None:
    began = time.monotonic()
    connection.sendall(b"GET /health HTTP/1.1\r\n")
    with contextlib.suppress(OSError):
        while time.monotonic() - began < ENDED_WITHIN_S:
            connection.sendall(b"X: y\r\n")
            time.sleep(0.5)
    assert time.monotonic() - began < ENDED_WITHIN_S


def _read_until_ended(connection: socket.socket) -> bytes:
    connection.settimeout(ENDED_WITHIN_S)
    told = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            told += piece
    return told


def test_connections_without_the_key_are_ended_at_once(served: Served) -> None:
    with served.connect() as one:
        one.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
        assert b"401" in _read_until_ended(one)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_nobody_waits_for_ends_at_once(served: Served, stream: bool) -> None:
    """It would take half a minute."""
    fields = {"prompt": "Hi", "max_tokens": 2000, "logprobs": 50, "stream": stream, "logit_bias": {"266": -100}}
    body = json.dumps(fields)
    with served.connect() as one:
        one.sendall(f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode())
        one.sendall(f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        wait_for(lambda: served.processing() == 1, ANSWERED_WITHIN_S)
    time.sleep(2.5)  # llama-server looks for a client when it had nothing to tell anybody for a second
    assert served.processing() == 0
    served.check_alive()


def test_what_is_no_http_is_told_so_in_the_apis_form(served: Served) -> None:
    with served.connect() as one:
        one.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50 + b"\r\n\r\n")
        assert b"400" in (told := _read_until_ended(one)) and b'"error"' in told
    with served.connect() as one:
        with contextlib.suppress(ConnectionError):  # it may be ended before all of it was sent
            one.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000)
        _read_until_ended(one)
    served.check_alive()


def test_the_log_holds_no_key_and_nothing_of_what_clients_sent(served: Served) -> None:
    served.wire.post(TEXT, {"prompt": "\x1b]0;title\x07", "max_tokens": 1, "grammar": 'root ::= "\x1b[31m" ('})
    log = served.log.read_bytes()
    assert KEY.encode() not in log and b"\x1b" not in log and b"root ::=" not in log
