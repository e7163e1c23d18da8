"""The engine `docker`: every stage is one container, run through the Docker SDK.

The only module that uses the SDK; it turns the daemon's errors into ours. A container gets nothing that its stage does
not need: no network (except for stages that download), a read-only root, no capabilities, the caller's uid, and limits
on memory and processes.
"""

from __future__ import annotations

import os
import socket as sockets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker.errors
import requests
from docker.types import LogConfig, Mount
from docker.utils.socket import frames_iter

import docker
from quantyard.engines import OnNote, OnProgress
from quantyard.engines.capacity import Capacity, engine_machine_capacity
from quantyard.engines.images import bake_image, engine_image_recipe
from quantyard.engines.lines import OutputLines
from quantyard.engines.secrets import SECRETS_ON_STDIN, engine_proxies, engine_secrets_line
from quantyard.engines.stage_io import StageListener, engine_timeout_error, read_engine_result
from quantyard.errors import EngineError
from quantyard.hardware.machine import cpu_name
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import ExitCode, StageError, StageResult
from quantyard.protocol.runner import stage_error_causes
from quantyard.requests import ImageSettings, RunEnvironment
from quantyard.store.artifact import Artifact, Workspace

_LABEL = "quantyard.out"  # a container's label: the folder it writes to
_PULL_SIZES = {"builder": "about 1 GB", "eval": "about 50 MB", "server": "about 100 MB", "contract": "about 1 GB"}
_BUILD_TIMES = {
    "builder": "a few minutes", "eval": "compiles llama.cpp: 5 to 15 minutes", "server": "seconds",
    "contract": "a few minutes",
}
_PIDS = 2048
_RESERVE_BYTES = 512 * 1024 * 1024  # left to the machine, so that a runaway stage is killed before the host suffers
_CA_IN_CONTAINER = "/run/secrets/ca-bundle.pem"
_STDOUT = 1
_TMP = "/tmp"  # noqa: S108  (a tmpfs of the container)
_DaemonError = (docker.errors.DockerException, requests.exceptions.RequestException)


def connect_docker(timeout_s: float = 60) -> docker.DockerClient:
    """A client of the daemon that the environment names.

    Raises:
        EngineError: no daemon answers.
    """
    try:
        client = docker.from_env(timeout=timeout_s)
        client.ping()
    except _DaemonError as error:
        *_, root = stage_error_causes(error)  # the SDK wraps a missing socket in four errors
        message = f"The Docker daemon does not answer: {_first_line(root)}."
        hint = "Start Docker (on Debian: scripts/docker-debian.sh), or use ENGINE=local."
        raise EngineError(message, hint) from error
    return client


class DockerEngine:
    """Runs stages as containers of this machine's Docker Engine."""

    name = "docker"

    def __init__(self, environment: RunEnvironment, images: ImageSettings) -> None:
        self._environment = environment
        self._images = images
        self._client = connect_docker()
        self._running: set[str] = set()  # ids of containers
        self._capacity: Capacity | None = None
        self._identities: dict[str, str] = {}  # cached: asking the daemon for each step is slow

    def capacity(self) -> Capacity:
        """Of the daemon's machine. A container is given no GPU."""
        if self._capacity is None:
            info = self._client.info()
            memory_bytes = self._environment.memory_bytes or int(info["MemTotal"]) - _RESERVE_BYTES
            self._capacity = engine_machine_capacity(cpu_name(), int(info["NCPU"]), memory_bytes)
        return self._capacity

    def identity(self, image: str) -> str | None:
        """Base digest and recipe of the image; None while either is missing on this machine."""
        if image not in self._identities:
            base = self._base_digest(image)
            if base is None or not self._has(self._tag(image, base)):
                return None
            self._identities[image] = f"{base}+{engine_image_recipe(self._environment.repo_dir, image)}"
        return self._identities[image]

    def prepare(self, image: str, on_note: OnNote) -> None:
        """Pull the base image if it is missing, then build ours on it."""
        if self._base_digest(image) is None:
            self._pull(image, on_note)
        base = self._base_digest(image)
        assert base is not None
        if not self._has(self._tag(image, base)):
            on_note(f"building the {image} image on {self._images.bases[image]} ({_BUILD_TIMES[image]}, once)")
            bake_image(
                self._environment.repo_dir, image, self._tag(image, base), base, self._images, lambda _line: None
            )
        if image == "server":  # under the name that compose.yaml looks for
            self._client.images.get(self._tag(image, base)).tag("quantyard/server", "latest")

    def describe(self, image: str) -> dict[str, str]:
        """Versions and digests for the manifest; the id of the image is `builder_image`, `eval_image` …"""
        base = self._base_digest(image) or ""
        known = {"base_image": self._images.bases[image], "base_digest": base}
        with suppress(*_DaemonError):
            built = self._client.images.get(self._tag(image, base))
            return {
                "engine": "docker", "docker": str(self._client.version()["Version"]), f"{image}_image": str(built.id),
                **known, "recipe": str(built.labels.get("quantyard.recipe", "")),
            }
        return {"engine": "docker", **known}

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress
    ) -> StageResult:
        """Run the stage in a container, which is always removed."""
        try:
            self._remove_orphans(space)
            container = self._create(spec, self._mounts(spec, space, inputs), space)
            self._running.add(container.id)
            listener = StageListener(spec.row.name, on_progress)
            try:
                state = self._follow(spec, container, listener)
            finally:
                self._remove(container.id)
                self._running.discard(container.id)
            if state.get("OOMKilled"):
                return _out_of_memory(spec)
            return read_engine_result(spec, space.out_dir, int(state["ExitCode"]), listener.tail)
        except _DaemonError as error:
            message = f"{spec.label}: the Docker daemon failed: {_first_line(error)}"
            raise EngineError(message, "Check it with make doctor, then type the same command again.") from error

    def stop(self) -> None:
        """Remove the container of every stage that runs."""
        for container_id in tuple(self._running):
            self._remove(container_id)

    def _base_digest(self, image: str) -> str | None:
        """The digest of the base image on this machine: the registry's if it came from one, else its id."""
        with suppress(docker.errors.ImageNotFound):
            base = self._client.images.get(self._images.bases[image])
            digests = base.attrs.get("RepoDigests") or []
            return str(digests[0]).rpartition("@")[2] if digests else str(base.id)
        return None

    def _pull(self, image: str, on_note: OnNote) -> None:
        base = self._images.bases[image]
        on_note(f"pulling {base} ({_PULL_SIZES[image]}, once)")
        try:
            self._client.images.pull(base)
        except _DaemonError as error:
            message = f"The base image {base} cannot be pulled: {_first_line(error)}"
            hint = "Check the network and the name, or build a replacement from Debian packages: make base-images"
            raise EngineError(message, hint) from error

    def _has(self, tag: str) -> bool:
        with suppress(docker.errors.ImageNotFound):
            self._client.images.get(tag)
            return True
        return False

    def _tag(self, image: str, base: str) -> str:
        recipe = engine_image_recipe(self._environment.repo_dir, image)
        return f"quantyard/{image}:{recipe[:12]}-{base.rpartition(':')[2][:12]}"

    def _create(self, spec: StageSpec, mounts: list[Mount], space: Workspace) -> Any:
        base = self._base_digest(spec.row.image)
        if base is None:
            message = f"The base image {self._images.bases[spec.row.image]} was removed."
            raise EngineError(message, "Type the same command again.")
        config: dict[str, Any] = {
            "image": self._tag(spec.row.image, base),
            "command": ["python3", "-m", spec.row.module, SECRETS_ON_STDIN, "--die-with-stdin"],
            "labels": {_LABEL: str(space.out_dir), "quantyard.stage": spec.row.name, "quantyard.key": spec.key},
            "user": self._user(),
            "environment": self._variables(spec),
            "mounts": mounts,
            "network_mode": self._network(spec),
            "stdin_open": True,
            "init": True,  # reaps the processes of tools, and forwards signals
        }
        return self._client.containers.create(**config, **self._hardening())

    def _user(self) -> str:
        """The caller's uid and gid. In a rootless daemon the caller is root, and no other uid may use its files."""
        is_rootless = "name=rootless" in self._client.info().get("SecurityOptions", [])
        return "0:0" if is_rootless else f"{os.getuid()}:{os.getgid()}"

    def _hardening(self) -> dict[str, Any]:
        memory = self.capacity().memory_bytes
        return {
            "read_only": True,
            "tmpfs": {_TMP: "rw,nosuid,nodev,noexec,size=1g,mode=1777"},
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "mem_limit": memory,
            "memswap_limit": memory,
            "pids_limit": _PIDS,
            "log_config": LogConfig(type="none"),  # stdout is read while the stage runs, never later
        }

    def _variables(self, spec: StageSpec) -> dict[str, str]:
        env = {"HOME": _TMP, "TMPDIR": _TMP, "LANG": "C.UTF-8"}
        if not spec.row.network:
            return env | {"HF_HUB_OFFLINE": "1"}
        env |= engine_proxies(self._environment)
        if self._environment.ca_bundle:
            env |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), _CA_IN_CONTAINER)
        return env

    def _mounts(self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact]) -> list[Mount]:
        mounts = [_bind(space.in_dir, "/in"), _bind(space.out_dir, "/out", read_only=False)]
        for name, artifact in inputs.items():
            (space.in_dir / name).mkdir(exist_ok=True)  # /in is read-only, so Docker cannot make the mount point
            if artifact.whole_folder:
                mounts.append(_bind(artifact.folder, f"/in/{name}"))
                continue
            for entry in artifact.files:
                mount_point = space.in_dir / name / entry.path
                mount_point.parent.mkdir(parents=True, exist_ok=True)
                mount_point.touch()
                mounts.append(_bind(artifact.place_of(entry.path), f"/in/{name}/{entry.path}"))
        if spec.row.network and self._environment.ca_bundle:
            mounts.append(_bind(self._environment.ca_bundle, _CA_IN_CONTAINER))
        return mounts

    def _network(self, spec: StageSpec) -> str:
        """Most stages have no network. A mirror or proxy on the loopback interface needs the network of the host."""
        if not spec.row.network:
            return "none"
        proxies = (url for name, url in (self._environment.proxies or {}).items() if name.upper() != "NO_PROXY")
        urls = [getattr(spec.request, "endpoint", None) or "", *proxies]
        return "host" if any(_is_loopback(url) for url in urls) else "bridge"

    def _follow(self, spec: StageSpec, container: Any, listener: StageListener) -> dict[str, Any]:
        """Start the container and read its output until it ends. Returns its final state."""
        params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        connection = self._client.api.attach_socket(container.id, params=params)
        timer = threading.Timer(spec.row.timeout_s, self._remove, [container.id])
        timer.daemon = True
        try:
            container.start()
            timer.start()
            with suppress(OSError):  # the container is gone already; its exit code says why
                _socket(connection).sendall(engine_secrets_line(spec, self._environment))
            started = time.monotonic()
            for stream, line in _lines(connection):
                (listener.on_stdout if stream == _STDOUT else listener.on_stderr)(line)
            return self._wait(container, spec, time.monotonic() - started)
        finally:
            timer.cancel()
            _close(connection)

    def _wait(self, container: Any, spec: StageSpec, ran_s: float) -> dict[str, Any]:
        try:
            container.wait()
            container.reload()
        except docker.errors.NotFound as error:
            if ran_s >= spec.row.timeout_s:
                raise engine_timeout_error(spec) from error
            message = f"{spec.label}: another program removed its container."
            raise EngineError(message, "Type the same command again; finished stages are kept.") from error
        return dict(container.attrs["State"])

    def _remove_orphans(self, space: Workspace) -> None:
        """Stop containers that a killed orchestrator left writing to the same folder."""
        for orphan in self._client.containers.list(all=True, filters={"label": f"{_LABEL}={space.out_dir}"}):
            self._remove(orphan.id)

    def _remove(self, container_id: str) -> None:
        with suppress(*_DaemonError):
            self._client.api.remove_container(container_id, force=True, v=True)


def _bind(source: Path, target: str, read_only: bool = True) -> Mount:
    return Mount(target=target, source=str(source), type="bind", read_only=read_only)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


def _socket(connection: Any) -> Any:
    return connection if isinstance(connection, sockets.socket) else connection._sock  # noqa: SLF001  (a SocketIO hides it)


def _close(connection: Any) -> None:
    """The response before its socket: Python 3.13 reports a response whose socket was closed first."""
    if response := getattr(connection, "_response", None):
        response.close()
    connection.close()


def _lines(connection: Any) -> Iterator[tuple[int, str]]:
    """Lines of the attached container, each with the number of its stream."""
    streams: dict[int, OutputLines] = {}
    _socket(connection).settimeout(None)  # a stage may be silent for hours
    for stream, block in frames_iter(connection, tty=False):
        yield from ((stream, line) for line in streams.setdefault(stream, OutputLines()).feed(block))
    for stream, lines in streams.items():
        yield from ((stream, line) for line in lines.end())


def _out_of_memory(spec: StageSpec) -> StageResult:
    hint = "Give it more: MEMORY=16GiB, or close other programs."
    error = StageError(kind="out-of-memory", message="The stage was killed because memory ran out.", hint=hint)
    return StageResult(stage=spec.row.name, exit_code=ExitCode.RESOURCES, error=error)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
