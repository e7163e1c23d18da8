"""What deploy/ makes of several machines, on one: the proxy, the balancer and servers on a network, each a container
with the files, names and settings that it has there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import requests

from quantyard.paths import REPO_DIR
from tests.docker.server import HARDENED, KEY, wait_for
from tests.together import StartedTogether

SYSTEM: Final = "You are a librarian who answers in one sentence, and names the shelf where the book stands. " * 12
_STARTS_WITHIN_S: Final = 120.0
_NO_PROXY: Final = requests.Session()
_NO_PROXY.trust_env = False


class ServersTogether:
    """What clients see of several servers behind one address, whose names are in `servers`."""

    url: str
    servers: dict[str, Any]

    def post(
        self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None, *, timeout: float = 120,
        stream: bool = False,
    ) -> requests.Response:  # fmt: skip
        """The proxy's answer to it."""
        own = {"Authorization": f"Bearer {KEY}"} | (headers or {})
        return _NO_PROXY.post(self.url + path, json=body, headers=own, timeout=timeout, stream=stream)

    def server_of(self, session: str) -> str:
        """Who answers the conversation of this name."""
        return str(self.post("/tokenize", {"content": "1"}, {"X-Session-ID": session}).headers["X-Served-By"])

    def chat(
        self, texts: Sequence[str], headers: dict[str, str] | None = None, **fields: Any
    ) -> requests.Response:
        """The answer to a conversation of these turns: the user's, the model's, the user's …"""
        roles = ("user", "assistant")
        messages = [{"role": "system", "content": SYSTEM}]
        messages += [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
        body = {"messages": messages, "max_tokens": 4, "temperature": 0} | fields
        return self.post("/v1/chat/completions", body, headers)

    def stream(self, session: str, tokens: int) -> tuple[str, Generator[bytes]]:
        """An answer of so many tokens that has begun: whose it is, and its lines still to come."""
        body = {"prompt": "One, two,", "max_tokens": tokens, "ignore_eos": True, "stream": True}
        answer = self.post("/v1/completions", body, {"X-Session-ID": session}, stream=True)
        assert answer.status_code == 200, answer.text
        lines = _lines_of(answer)
        next(lines)
        return answer.headers["X-Served-By"], lines

    def session_of(self, server: str) -> str:
        """The name of a conversation that this server gets."""
        for session in (f"s{number}" for number in range(64)):
            if self.server_of(session) == server:
                return session
        raise AssertionError(f"no conversation is {server}'s")

    def who_answers(self) -> set[str]:
        """The servers that the balancer has now, asked in turns."""
        try:
            answers = [_NO_PROXY.get(f"{self.url}/health", timeout=30) for _ in range(2 * len(self.servers))]
        except requests.ConnectionError:  # the proxy does not listen yet
            return set()
        return {answer.headers["X-Served-By"] for answer in answers if answer.status_code == 200}


class SeveralServers(StartedTogether, ServersTogether):
    """So many servers of a model behind the balancer and the proxy; removed at the end of the `with`."""

    def __init__(self, client: Any, images: dict[str, str], model: Path, folder: Path, count: int = 2) -> None:
        super().__init__()
        self._client, self._images, self._model, self._folder, self._count = client, images, model, folder, count
        self.servers: dict[str, Any] = {}

    def _start(self) -> None:
        key = self._folder / "api-key"
        key.write_text(f"{KEY}\n")
        key.chmod(0o444)
        self._network = self._client.networks.create(f"qy-{self._folder.name}-{time.time_ns()}")
        self._stack.callback(self._network.remove)
        self.add_servers(self._count)
        config = {str(REPO_DIR / "server/balancer/haproxy.cfg"): {"bind": "/etc/quantyard/haproxy.cfg", "mode": "ro"}}
        self.balancer = self._run(
            "balancer", "model", ["haproxy", "-W", "-db", "-f", "/etc/quantyard/haproxy.cfg"], volumes=config,
            environment={"LISTEN": ":8080", "SERVER_DOMAIN": ""},
        )
        files = {
            str(REPO_DIR / "server/proxy"): {"bind": "/etc/quantyard/proxy", "mode": "ro"},
            str(REPO_DIR / "server/limits/request_limits.json"): {
                "bind": "/etc/quantyard/request_limits.json", "mode": "ro",
            },
        }
        self.proxy = self._run(
            "proxy", "proxy", ["sh", "/etc/quantyard/proxy/run.sh"], volumes=files,
            environment={"DRAIN_TIMEOUT": "60"}, ports={"8080/tcp": ("127.0.0.1", None)},
        )
        self.proxy.reload()
        self.url = f"http://127.0.0.1:{self.proxy.ports['8080/tcp'][0]['HostPort']}"
        wait_for(lambda: self.who_answers() == set(self.servers), _STARTS_WITHIN_S, self.logs)

    def add_servers(self, count: int) -> None:
        """Start servers until there are so many."""
        for number in range(len(self.servers) + 1, count + 1):
            name = f"server-{number}"
            self.servers[name] = self._run(
                "server", name, None, volumes={str(self._model): {"bind": f"/model/{self._model.name}", "mode": "ro"}},
                environment={
                    "THREADS": "1", "CONTEXT_SIZE": "4096", "PARALLEL": "2", "CACHE_MIB": "256", "DRAIN_TIMEOUT": "60",
                    "BIND_ADDRESS": "0.0.0.0",  # noqa: S104 (as the manifests say)
                    "API_KEY_FILE": "/run/keys/api-key",
                },
            )  # fmt: skip

    def _run(self, image: str, name: str, command: list[str] | None, **options: Any) -> Any:
        """A container that is hardened as deploy/swarm has it, with its host name in the network's DNS."""
        key = {str(self._folder / "api-key"): {"bind": "/run/keys/api-key", "mode": "ro"}}
        more = {"entrypoint": command} if command else {}
        container = self._client.containers.run(
            self._images[image], detach=True, hostname=name, network=self._network.name,
            volumes=options.pop("volumes") | key, **(HARDENED | more | options),
        )
        self._stack.callback(container.remove, force=True, v=True)
        return container

    def is_answering(self, server: str) -> bool:
        """Whether a request is in progress in it."""
        container = self.servers[server]
        argv = ["curl", "--silent", "--header", f"Authorization: Bearer {KEY}", "http://127.0.0.1:8080/metrics"]
        found = [line.split() for line in container.exec_run(argv).output.decode().splitlines()]
        return any(line[0] == "llamacpp:requests_processing" and float(line[1]) > 0 for line in found if line)

    def logs(self) -> str:
        containers = [self.proxy, self.balancer, *self.servers.values()]
        return "\n".join(container.logs(tail=30).decode(errors="replace") for container in containers)


def _lines_of(answer: requests.Response) -> Generator[bytes]:
    """Its lines; where it is closed, the client has left."""
    with answer:
        yield from (line for line in answer.iter_lines(chunk_size=1) if line)


def prompt_tokens(answer: Any) -> tuple[int, int]:
    """Of an answer's prompt: the tokens that were read, and those that were in memory, as llama.cpp counts them."""
    timings = answer.json()["timings"]
    return int(timings["prompt_n"]), int(timings["cache_n"])


def events(lines: Iterator[bytes]) -> list[Any]:
    """The rest of a stream; its last event is `[DONE]` if it is whole. One that breaks ends early."""
    found: list[Any] = []
    with suppress(requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
        for line in lines:
            if line.startswith(b"data: "):
                event = line.removeprefix(b"data: ")
                found.append("[DONE]" if event == b"[DONE]" else json.loads(event))
    return found
