"""Clients that mean harm, against what `docker compose up` starts: the proxy, and a real model behind it.

After every attack an ordinary client is answered, and llama-server has not ended once.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

import pytest

from tests.docker.compose_project import Project, free_port
from tests.docker.server import wait_for
from tests.hostile.api_requests import CHAT, CLOSED, HOSTILE, JSON_GRAMMAR, ORDINARY, TEXT, Case
from tests.hostile.sampling import WHOLE, rounds, sampled

pytestmark = [pytest.mark.usefixtures("docker_client"), pytest.mark.alone]
PATIENCE_S: Final = 60.0  # for an ordinary answer on a busy machine of two cores
AT_ONCE: Final = 192  # requests of one address
ALIVE: Final[dict[str, Any]] = {"prompt": "One, two,", "max_tokens": 1}
LONG: Final[dict[str, Any]] = {"prompt": "One, two,", "max_tokens": 2000, "ignore_eos": True}

@dataclass(frozen=True)
class Answer:
    """Status, body and duration of one answer."""

    status: int
    body: bytes
    seconds: float

    @property
    def message(self) -> str:
        """What an error says."""
        return str(json.loads(self.body)["error"]["message"])


@dataclass
class Api:
    """A running project, as its clients meet it."""

    project: Project
    port: int

    def ask(
        self, path: str, body: Any = None, *, key: str | None = "", method: str = "POST", headers: Any = None,
        timeout_s: float = PATIENCE_S,
    ) -> Answer:
        """One request; `key`: "" is the right one, None is none. Bytes are sent as they are."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        told = {"Content-Type": "application/json"} if headers is None else dict(headers)
        if key is not None:
            told["Authorization"] = f"Bearer {key or self.project.key()}"
        started = time.monotonic()
        try:
            connection.putrequest(method, path)
            for name, value in (told | ({"Content-Length": str(len(sent))} if method != "GET" else {})).items():
                connection.putheader(name, value)
            connection.endheaders()
            with suppress(OSError):  # refused before all of it was sent: the answer is there
                connection.send(sent)
            response = connection.getresponse()
            return Answer(response.status, response.read(), time.monotonic() - started)
        finally:
            connection.close()

    def send(self, case: Case, **more: Any) -> Answer:
        """A case of the table."""
        return self.ask(case.path, case.sent(), method=case.method, headers=case.headers, **more)

    def alive(self) -> float:
        """Seconds to an ordinary answer."""
        answer = self.ask(TEXT, ALIVE)
        assert answer.status == 200, answer.body
        return answer.seconds

    def open(self, data: bytes) -> socket.socket:
        """A connection on which so much was sent."""
        made = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        made.sendall(data)
        return made

    def head(self, length: int, path: str = TEXT) -> bytes:
        """The header of a POST with the right key."""
        return (
            f"POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {self.project.key()}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        ).encode()

    def processing(self) -> float:
        """Requests that llama-server is answering now."""
        text = self.ask("/metrics", method="GET").body.decode()
        line = next(line for line in text.splitlines() if line.startswith("llamacpp:requests_processing{"))
        return float(line.split()[-1])

    @cached_property
    def server(self) -> str:
        """The container of the model's server."""
        return self.project.container("server")

    def restarts(self) -> int:
        """How often the model's server ended and was started again by Docker."""
        argv = ["docker", "inspect", "--format", "{{.RestartCount}}", self.server]
        return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def _up(folder: Path, model: Path, names: tuple[str, ...], **variables: str) -> Api:
    project, port = Project(folder), free_port()
    for name in names:
        shutil.copy(model, folder / "artifacts" / "served" / f"{name}.gguf")
    done = project.compose("up", "--detach", "--wait", PORT=str(port), **variables)
    assert done.returncode == 0, done.stderr + project.compose("logs").stdout
    return Api(project, port)


@pytest.fixture(scope="module")
def api(server_image: str, demo_q4: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One model, served to all tests of this module."""
    folder = tmp_path_factory.mktemp("served-api")
    try:
        yield _up(folder, demo_q4, ("model",))
    finally:
        Project(folder).down()


@pytest.fixture
def unharmed(api: Api) -> Iterator[Api]:
    """The same, with what must hold after every attack."""
    before = api.restarts()
    yield api
    api.alive()
    assert api.restarts() == before


# ---- the table of requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sampled(ORDINARY, 10), ids=str)
def test_what_ordinary_clients_send_is_answered(api: Api, case: Case) -> None:
    answer = api.send(case, timeout_s=120)
    assert answer.status == case.status, answer.body


@pytest.mark.parametrize("case", sampled(HOSTILE, 30), ids=str)
def test_what_harms_the_server_is_refused_with_the_reason(api: Api, case: Case) -> None:
    answer = api.send(case)
    assert answer.status == case.status, answer.body
    assert answer.message


def test_after_all_that_was_refused_the_server_is_the_same(api: Api) -> None:
    api.alive()
    assert api.restarts() == 0


@pytest.mark.parametrize("case", CLOSED, ids=str)
def test_what_changes_the_server_is_nobodys(api: Api, case: Case) -> None:
    assert api.send(case).status in (400, 404, 405)


@pytest.mark.parametrize("key", [None, "wrong", "x"])
def test_without_the_key_no_body_is_read_and_nothing_is_checked(unharmed: Api, key: str | None) -> None:
    never_comes = unharmed.head(8_000_000).replace(unharmed.project.key().encode(), (key or "").encode())
    with unharmed.open(never_comes) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 401")
    for path in ("/v1/models", "/metrics", "/props", "/no-such-route"):
        assert unharmed.ask(path, key=key, method="GET").status == 401
    assert unharmed.ask("/health", key=None, method="GET").status == 200


# ---- connections ---------------------------------------------------------------------------------------------------


def test_700_half_open_connections_keep_nobody_out(unharmed: Api) -> None:
    with ExitStack() as held:
        for _ in range(700):
            held.enter_context(unharmed.open(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"))
        for _ in range(3):
            unharmed.alive()
        assert _threads(unharmed) < 100


def _threads(api: Api) -> int:
    argv = ["docker", "top", api.server, "-eo", "pid,nlwp"]
    lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    return sum(int(line.split()[1]) for line in lines)


@pytest.mark.skipif(not WHOLE, reason="it waits for 11 s: HOSTILE=all")
def test_a_header_that_drips_is_cut_off(unharmed: Api) -> None:
    with unharmed.open(b"GET /health HTTP/1.1\r\n") as connection:
        started = time.monotonic()
        while time.monotonic() - started < 15:
            try:
                connection.sendall(b"X: y\r\n")
            except OSError:
                break
            time.sleep(0.5)
        assert time.monotonic() - started < 14


def test_bodies_that_drip_keep_nobody_out(unharmed: Api) -> None:
    with ExitStack() as held:
        dripping = [held.enter_context(unharmed.open(unharmed.head(100_000) + b'{"prompt"')) for _ in range(300)]
        for _ in range(3):
            for connection in dripping:
                connection.sendall(b" ")
            unharmed.alive()
        assert unharmed.processing() == 0


def test_a_reader_that_stops_keeps_nobody_out(unharmed: Api) -> None:
    body = json.dumps(LONG | {"stream": True}).encode()
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(unharmed.open(unharmed.head(len(body)) + body)).recv(10)
        unharmed.alive()


@pytest.mark.parametrize("stream", [True, False])
def test_llama_server_stops_when_its_client_leaves(unharmed: Api, stream: bool) -> None:
    body = json.dumps(LONG | {"stream": stream}).encode()
    with unharmed.open(unharmed.head(len(body)) + body):
        wait_for(lambda: unharmed.processing() >= 1, PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        time.sleep(2.5)  # llama-server looks for its client when it had nothing to tell anybody for a second
        if unharmed.processing() == 0:
            return
    pytest.fail("it goes on for nobody")


def test_a_stream_comes_token_by_token(unharmed: Api) -> None:
    body = json.dumps({"prompt": "One, two,", "max_tokens": 30, "ignore_eos": True, "stream": True}).encode()
    with unharmed.open(unharmed.head(len(body)) + body) as connection:
        seen, pieces = b"", 0
        while b"[DONE]" not in seen and (piece := connection.recv(65536)):
            seen, pieces = seen + piece, pieces + 1
    assert b"[DONE]" in seen and pieces >= 10


def test_more_requests_than_one_client_may_have_are_told_to_wait(unharmed: Api) -> None:
    """None is over before all were sent: each writes 2,000 tokens with 100 probabilities, four at a time."""
    body = json.dumps(LONG | {"stream": True, "n_probs": 100}).encode()
    sent = unharmed.head(len(body)) + body
    with ExitStack() as held:
        connections = [held.enter_context(unharmed.open(sent)) for _ in range(AT_ONCE + 38)]
        wait_for(lambda: bool(_told_to_wait(connections)), PATIENCE_S)
        time.sleep(1)  # for the rest of them
        told = _told_to_wait(connections)
        assert len(told) <= 38  # so that as many as are promised were let in
        assert all("Try again" in connection.recv(4096).decode() for connection in told)


def _told_to_wait(connections: list[socket.socket]) -> list[socket.socket]:
    """Those that were answered with 429; nothing is read."""
    answered, _, _ = select.select(connections, [], [], 0)
    return [one for one in answered if one.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 429"]


# ---- HTTP itself ---------------------------------------------------------------------------------------------------

_GET: Final = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
_CHUNKED: Final = b"Host: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
# Each must not be taken for one request and something that follows it: what is sent, what the answer begins with.
SMUGGLED: Final = {
    "two lengths": (b"Content-Length: 5\r\nContent-Length: 50\r\n\r\nhello", b"HTTP/1.1 400"),
    "a length and chunks": (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _GET, b"HTTP/1.1 400"),
    "an unknown encoding": (b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"HTTP/1.1 501"),
    "a length that is none": (b"Content-Length: +5\r\n\r\nhello", b"HTTP/1.1 400"),
    "a negative length": (b"Content-Length: -1\r\n\r\n", b"HTTP/1.1 400"),
    "a chunk of no length": (b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n", b"HTTP/1.1 400"),
    "a chunk of 2^70": (b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 18 + b"\r\nhello", b"HTTP/1.1 400"),
    "a header of 1 MB": (b"X: " + b"y" * 1_000_000 + b"\r\n\r\n", b"HTTP/1.1 400"),
    "10,000 headers": (b"X: y\r\n" * 20_000 + b"\r\n", b"HTTP/1.1 400"),
}  # fmt: skip


@pytest.mark.parametrize("name", sampled(list(SMUGGLED), 9))
def test_what_is_not_plainly_one_request_is_refused(unharmed: Api, name: str) -> None:
    rest, expected = SMUGGLED[name]
    key = f"Authorization: Bearer {unharmed.project.key()}\r\nContent-Type: application/json\r\n".encode()
    connection = unharmed.open(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n" + key)
    with connection:
        with suppress(OSError):
            connection.sendall(rest)
        assert connection.recv(12)[:10] in (expected[:10], b"HTTP/1.1 4", b"HTTP/1.1 5"[:10])


def test_chunks_http_1_0_and_requests_in_a_row_work(unharmed: Api) -> None:
    text, key = json.dumps(ALIVE).encode(), f"Authorization: Bearer {unharmed.project.key()}\r\n".encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (1, text[at : at + 1]) for at in range(len(text))) + b"0\r\n\r\n"
    with unharmed.open(b"POST /v1/completions HTTP/1.1\r\n" + _CHUNKED + key + b"\r\n" + chunks) as connection:
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    with unharmed.open(b"GET /health HTTP/1.0\r\n\r\n") as connection:
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    with unharmed.open(_GET * 20) as connection:
        seen = b""
        while seen.count(b"200 OK") < 20 and (piece := connection.recv(65536)):
            seen += piece
        assert seen.count(b"200 OK") == 20


# ---- the server behind it ------------------------------------------------------------------------------------------


def test_the_models_server_has_no_way_out(unharmed: Api) -> None:
    """No default route, a network that Docker knows as internal, and no address of this machine in it."""
    argv = ["docker", "exec", unharmed.server, "cat", "/proc/net/route"]
    _, *routes = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    assert routes and all(route.split()[1] != "00000000" for route in routes)
    form = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}"
    argv = ["docker", "inspect", "--format", form, unharmed.server]
    (network,) = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    form = "{{.Internal}} {{range .IPAM.Config}}{{.Gateway}} {{end}}"
    argv = ["docker", "network", "inspect", "--format", form, network]
    internal, gateway, *_ = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert internal == "true"
    with socket.socket() as ours, pytest.raises(OSError, match="assign"):
        ours.bind((gateway, 0))


def test_random_grammars_and_schemas_stall_nobody(unharmed: Api) -> None:
    """Each is taken or refused; either way the next client is answered."""
    for seed in range(rounds(4, 40)):
        body = {"prompt": "a", "max_tokens": 8, "grammar": _random_grammar(seed)}
        with ThreadPoolExecutor(1) as pool:
            attack = pool.submit(unharmed.ask, TEXT, body)
            assert unharmed.alive() < PATIENCE_S
            assert attack.result().status in (200, 400)


def _random_grammar(seed: int) -> str:
    import random

    chance, names = random.Random(seed), ("root", "a", "b", "c")

    def part(depth: int) -> str:
        choice = chance.randrange(5 if depth < 3 else 3)
        inner = ('"x"', "[a-z]", chance.choice(names))[choice] if choice < 3 else f"({options(depth + 1)})"
        return inner + chance.choice(("", "", "?", "*", "+", "{0,9}", "{3}"))

    def options(depth: int) -> str:
        sizes = [chance.randint(1, 4) for _ in range(chance.randint(1, 3))]
        return " | ".join(" ".join(part(depth) for _ in range(size)) for size in sizes)

    return "\n".join(f"{name} ::= {options(0)}" for name in names)


def test_a_server_that_was_killed_comes_back_and_meanwhile_says_when_to_ask_again(api: Api) -> None:
    before = api.restarts()
    kill = "kill -SEGV $(grep -l llama-server /proc/[0-9]*/comm | cut -d/ -f3)"
    for time_number in range(rounds(1, 4)):
        subprocess.run(["docker", "exec", api.server, "sh", "-c", kill], check=True)
        answer = api.ask(TEXT, ALIVE)
        assert answer.status == 200 or (answer.status == 503 and "Try again" in answer.message)
        wait_for(lambda: api.ask(TEXT, ALIVE).status == 200, 60)
        assert api.restarts() == before + time_number + 1


def test_the_openai_package_chats_streams_and_uses_tools(api: Api) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{api.port}/v1", api_key=api.project.key(), max_retries=0)
    name = client.models.list().data[0].id
    messages = [{"role": "user", "content": "Say hi."}]
    told = client.chat.completions.create(model=name, messages=messages, max_tokens=4)
    assert told.choices[0].message.content
    stream = client.chat.completions.create(model=name, messages=messages, max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    with pytest.raises(openai.BadRequestError, match="at most"):
        client.completions.create(model=name, prompt="a", n=1000)
    grammar = {"grammar": JSON_GRAMMAR}
    assert client.completions.create(model=name, prompt="a", max_tokens=4, extra_body=grammar).choices


@pytest.mark.parametrize("host", ["elsewhere.example", "127.0.0.1.elsewhere.example", "10.0.0.1"])
def test_without_a_key_a_page_elsewhere_is_kept_out_by_its_name(keyless: Api, host: str) -> None:
    with keyless.open(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 403")


@pytest.fixture(scope="module")
def keyless(server_image: str, demo_q4: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Two models served by name, without a key: what `make demo` leaves, with API_KEY=off."""
    folder = tmp_path_factory.mktemp("keyless-api")
    try:
        yield _up(folder, demo_q4, ("first", "second"), API_KEY="off")
    finally:
        Project(folder).down()


def test_several_models_are_answered_by_name_and_managed_by_nobody(keyless: Api) -> None:
    for case in CLOSED:
        assert keyless.send(case, key=None).status in (400, 404, 405)
    names = [model["id"] for model in json.loads(keyless.ask("/v1/models", method="GET", key=None).body)["data"]]
    assert names == ["first", "second"]
    assert keyless.ask("/metrics?model=second", method="GET", key=None).status == 200
    assert _who_answers(keyless, {"model": "second"}) == _who_answers(keyless, {}, "?model=second") == "second"


def _who_answers(api: Api, named: Any, query: str = "") -> str:
    """The model of an answer, or its status; the text ends with what looks like the end of a body."""
    body = {"messages": [{"role": "user", "content": "Hi. }"}], "max_tokens": 2} | named
    answer = api.ask(CHAT + query, body, timeout_s=PATIENCE_S)
    return str(json.loads(answer.body)["model"]) if answer.status == 200 else str(answer.status)


@pytest.mark.parametrize("named", [{}, {"model": ""}, {"model": None}, {"model": "default"}], ids=str)
def test_a_request_that_names_no_model_is_answered_by_the_first(api: Api, keyless: Api, named: Any) -> None:
    assert _who_answers(api, named) == "model"
    assert _who_answers(keyless, named) == "first"


_SAID: Final = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2}


@pytest.mark.parametrize(("path", "body"), [
    (CHAT, _SAID), (TEXT, {"prompt": "a"}), ("/completion", {"prompt": "a"}), ("/v1/messages", _SAID),
    ("/v1/responses", {"input": "a"}), ("/v1/embeddings", {"input": "a"}), ("/tokenize", {"content": "a"}),
    ("/v1/rerank", {"query": "a", "documents": ["b"]}),
])  # fmt: skip
def test_a_model_that_is_not_served_is_not_found_whatever_is_asked_of_it(
    api: Api, keyless: Api, path: str, body: Any
) -> None:
    for served, names in ((api, "model"), (keyless, "first, second")):
        answer = served.ask(path, body | {"model": "gpt-3.5-turbo"})
        assert answer.status == 404 and f"these: {names};" in answer.message, answer.body
    for query in ("/props?model=other", "/metrics?model=other"):
        assert api.ask(query, method="GET").status == 404


def test_the_key_is_on_no_command_line_in_no_environment_and_in_no_log(api: Api) -> None:
    key = api.project.key()
    for service in ("proxy", "server"):
        container = api.project.container(service)
        shown = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True).stdout
        pids = subprocess.run(["docker", "top", container, "-eo", "pid"], capture_output=True, text=True, check=True)
        lines = [Path(f"/proc/{pid}/{name}") for pid in pids.stdout.split()[1:] for name in ("cmdline", "environ")]
        told = [path.read_bytes() for path in lines if os.access(path, os.R_OK)]
        assert key not in shown and not any(key.encode() in text for text in told)
    assert key not in api.project.compose("logs").stdout


def test_what_is_told_of_errors_has_a_status_of_its_own(api: Api) -> None:
    for path, body, status in ((TEXT, {"grammar": 1}, 400), ("/none", {}, 404), (TEXT, b"a" * 9_000_000, 413)):
        answer = api.ask(path, body)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, status)
