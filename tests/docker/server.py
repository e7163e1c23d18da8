"""A server container as compose.yaml makes it, for tests: hardened, on a free port of the loopback interface."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

KEY = "qy-test-key"
HARDENED: dict[str, Any] = {
    "user": "65532:65532", "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"],
    "pids_limit": 512, "init": True, "tmpfs": {"/tmp": "rw,nosuid,nodev,noexec,size=64m,mode=1777"},
}
LIGHT = {"THREADS": "1", "CONTEXT_SIZE": "2048", "PARALLEL": "2"}


class Served:
    """One running server."""

    def __init__(self, container: Any, port: int) -> None:
        self.container = container
        self._inside = port

    @property
    def address(self) -> str:
        """Where it is published; asked anew, since a restart changes the port."""
        self.container.reload()
        return f"http://127.0.0.1:{self.container.ports[f'{self._inside}/tcp'][0]['HostPort']}"

    def get(self, path: str, key: str | None = KEY, **more: Any) -> requests.Response:
        return requests.get(self.address + path, headers=_bearer(key) | more.pop("headers", {}), timeout=60, **more)

    def post(self, path: str, body: dict[str, Any], key: str | None = KEY, **more: Any) -> requests.Response:
        return requests.post(self.address + path, json=body, headers=_bearer(key), timeout=120, **more)

    def chat(self, text: str = "Say hi.", key: str | None = KEY, **options: Any) -> requests.Response:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0} | options
        return self.post("/v1/chat/completions", body, key)

    def run(self, *argv: str) -> tuple[int, str]:
        """A command inside the container: its exit code and what it said."""
        code, output = self.container.exec_run(list(argv))
        return code, output.decode(errors="replace")

    def logs(self) -> str:
        return str(self.container.logs().decode(errors="replace"))

    def wait_healthy(self, timeout_s: float = 60) -> None:
        wait_for(lambda: self.health() == "healthy", timeout_s, self.logs)

    def health(self) -> str:
        self.container.reload()
        return str(self.container.attrs["State"]["Health"]["Status"])

    def wait_ended(self, timeout_s: float = 60) -> int:
        return int(self.container.wait(timeout=timeout_s)["StatusCode"])


def wait_for(condition: Any, timeout_s: float, explain: Any = lambda: "") -> None:
    """Poll until it holds, or fail with what `explain` says."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s:\n{explain()}"
        time.sleep(0.02)


@contextmanager
def server(client: Any, image: str, model: Path | None, folder: Path, **options: Any) -> Iterator[Served]:
    """A server of `model`, removed at the end. `environment`, the port it has `inside`, and any option of the SDK's
    `run` may be given."""
    key_file = folder / "api-key"
    if not key_file.exists():
        key_file.write_text(KEY + "\n")
        key_file.chmod(0o400)
        if os.getuid() == 0:
            os.chown(key_file, 65532, 65532)
    environment = LIGHT | {"API_KEY_FILE": "/run/keys/api-key"} | options.pop("environment", {})
    port = int(options.pop("inside", environment.get("PORT", 8080)))
    volumes = {str(key_file): {"bind": "/run/keys/api-key", "mode": "ro"}}
    if model is not None:
        volumes[str(model)] = {"bind": "/model/" + model.name if model.is_file() else "/model", "mode": "ro"}
    container = client.containers.run(
        image, detach=True, environment=environment, ports={f"{port}/tcp": ("127.0.0.1", None)},
        volumes=volumes | options.pop("volumes", {}), **(HARDENED | options),
    )
    try:
        yield Served(container, port)
    finally:
        container.remove(force=True, v=True)


def _bearer(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}
