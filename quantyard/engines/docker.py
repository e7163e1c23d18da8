"""Runs a stage as a container, through the Docker SDK.

The only module that uses the SDK; it turns the daemon's errors into ours. It is imported only when something must run,
because importing the SDK takes 0.1 s. A container gets only what its stage needs: no network (except for stages that
download), a read-only root, no capabilities, the caller's uid, and limits on memory and processes.
"""

from __future__ import annotations

import io
import os
import socket as sockets
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker.errors
import requests
from docker.types import LogConfig, Mount
from docker.utils.socket import frames_iter

import docker
from quantyard.engines import OnProgress
from quantyard.engines.docker_daemon import first_error_line, no_docker_error
from quantyard.engines.lines import OutputLines
from quantyard.engines.secrets import SECRETS_ON_STDIN, engine_proxies, engine_secrets_line
from quantyard.engines.stage_io import StageListener, engine_timeout_error, read_engine_result
from quantyard.errors import EngineError
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import ExitCode, StageError, StageResult
from quantyard.requests import RunEnvironment
from quantyard.store.artifact import Artifact, Workspace

_LABEL = "quantyard.out"  # a container's label: the folder it writes to
_PIDS = 2048
_CA_IN_CONTAINER = "/run/secrets/ca-bundle.pem"
_STDOUT = 1
_TMP = "/tmp"  # noqa: S108  (a tmpfs of the container)
DAEMON_ERRORS = (docker.errors.DockerException, requests.exceptions.RequestException)


def connect_docker(timeout_s: float = 60) -> docker.DockerClient:
    """A client of the daemon that the environment names.

    Raises:
        EngineError: no daemon answers.
    """
    try:
        client = docker.from_env(timeout=timeout_s)
        client.ping()
    except DAEMON_ERRORS as error:
        raise no_docker_error(error) from error
    return client


class SdkDaemon:
    """A `DockerDaemon` through the SDK."""

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client

    def info(self) -> Mapping[str, Any]:
        """See `DockerDaemon`."""
        return dict(self._client.info())

    def version(self) -> str:
        """See `DockerDaemon`."""
        return str(self._client.version()["Version"])

    def image(self, name: str) -> Mapping[str, Any] | None:
        """See `DockerDaemon`."""
        with suppress(docker.errors.ImageNotFound):
            return dict(self._client.images.get(name).attrs)
        return None


class StageContainers:
    """Runs stages in containers, in the daemon that the environment names."""

    def __init__(self, environment: RunEnvironment) -> None:
        self._environment = environment
        self._client = connect_docker()
        self._running: set[str] = set()  # their ids

    def pull(self, base: str) -> None:
        """Pull an image.

        Raises:
            EngineError: it cannot be pulled.
        """
        try:
            self._client.images.pull(base)
        except DAEMON_ERRORS as error:
            message = f"The base image {base} cannot be pulled: {first_error_line(error)}"
            hint = "Check the network and the name, or build a replacement from Debian packages: make base-images"
            raise EngineError(message, hint) from error

    def name_image(self, image: str, name: str) -> None:
        """Give an image another name, repository:tag."""
        self._client.images.get(image).tag(name)

    def read_text(self, image: str, paths: Sequence[str]) -> str | None:
        """The first of these files that the image has; it is read from a container that never starts."""
        try:
            container = self._client.containers.create(image, command=["true"], network_mode="none")
        except DAEMON_ERRORS as error:
            raise EngineError(f"The image {image} cannot be read: {first_error_line(error)}.", "make doctor") from error
        try:
            return next((text for path in paths if (text := _text_in_container(container, path)) is not None), None)
        finally:
            self._remove(container.id)

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress, image: str,
        memory_bytes: int,
    ) -> StageResult:
        """Run the stage in a container of this image, and always remove the container."""
        try:
            self._remove_orphans(space)
            config = self._config(spec, space) | self._hardening(memory_bytes)
            container = self._client.containers.create(image, mounts=self._mounts(spec, space, inputs), **config)
            self._running.add(container.id)
            listener = StageListener(spec.row.name, on_progress)
            try:
                state = self._follow(spec, container, listener)
            finally:
                self._remove(container.id)
                self._running.discard(container.id)
            if state.get("OOMKilled"):
                return _container_out_of_memory(spec)
            return read_engine_result(spec, space.out_dir, int(state["ExitCode"]), listener.tail)
        except DAEMON_ERRORS as error:
            message = f"{spec.label}: the Docker daemon failed: {first_error_line(error)}"
            raise EngineError(message, "Check it with make doctor, then type the same command again.") from error

    def stop(self) -> None:
        """Remove the containers of all running stages."""
        for container_id in tuple(self._running):
            self._remove(container_id)

    def _config(self, spec: StageSpec, space: Workspace) -> dict[str, Any]:
        return {
            "command": ["python3", "-m", spec.row.module, SECRETS_ON_STDIN, "--die-with-stdin"],
            "labels": {_LABEL: str(space.out_dir), "quantyard.stage": spec.row.name, "quantyard.key": spec.key},
            "user": self._user(),
            "environment": self._variables(spec),
            "network_mode": self._network(spec),
            "stdin_open": True,
            "init": True,  # reaps the processes of tools, and forwards signals
        }

    def _user(self) -> str:
        """The caller's uid and gid. A rootless daemon maps the caller to root, and other uids cannot use its files."""
        is_rootless = "name=rootless" in self._client.info().get("SecurityOptions", [])
        return "0:0" if is_rootless else f"{os.getuid()}:{os.getgid()}"

    def _hardening(self, memory_bytes: int) -> dict[str, Any]:
        return {
            "read_only": True,
            "tmpfs": {_TMP: "rw,nosuid,nodev,noexec,size=1g,mode=1777"},
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "mem_limit": memory_bytes,
            "memswap_limit": memory_bytes,
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
        mounts = [
            _container_bind_mount(space.in_dir, "/in"),
            _container_bind_mount(space.out_dir, "/out", read_only=False),
        ]
        for name, artifact in inputs.items():
            (space.in_dir / name).mkdir(exist_ok=True)  # /in is read-only, so Docker cannot make the mount point
            if artifact.whole_folder:
                mounts.append(_container_bind_mount(artifact.folder, f"/in/{name}"))
                continue
            for entry in artifact.files:
                mount_point = space.in_dir / name / entry.path
                mount_point.parent.mkdir(parents=True, exist_ok=True)
                mount_point.touch()
                mounts.append(_container_bind_mount(artifact.place_of(entry.path), f"/in/{name}/{entry.path}"))
        if spec.row.network and self._environment.ca_bundle:
            mounts.append(_container_bind_mount(self._environment.ca_bundle, _CA_IN_CONTAINER))
        return mounts

    def _network(self, spec: StageSpec) -> str:
        """The network mode: none for most stages, the host's if a mirror or proxy is on the loopback interface."""
        if not spec.row.network:
            return "none"
        proxies = (url for name, url in (self._environment.proxies or {}).items() if name.upper() != "NO_PROXY")
        urls = [getattr(spec.request, "endpoint", None) or "", *proxies]
        return "host" if any(_is_loopback_proxy(url) for url in urls) else "bridge"

    def _follow(self, spec: StageSpec, container: Any, listener: StageListener) -> dict[str, Any]:
        """Start the container and read its output until it ends. Returns its final state."""
        params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        connection = self._client.api.attach_socket(container.id, params=params)
        timer = threading.Timer(spec.row.timeout_s, self._remove, [container.id])
        timer.daemon = True
        try:
            container.start()
            timer.start()
            with suppress(OSError):  # the container has ended already; its exit code says why
                _container_socket(connection).sendall(engine_secrets_line(spec, self._environment))
            started = time.monotonic()
            for stream, line in _container_log_lines(connection):
                (listener.on_stdout if stream == _STDOUT else listener.on_stderr)(line)
            return self._wait(container, spec, time.monotonic() - started)
        finally:
            timer.cancel()
            _close_container_connection(connection)

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
        """Remove containers of a killed orchestrator that still write to the same folder."""
        for orphan in self._client.containers.list(all=True, filters={"label": f"{_LABEL}={space.out_dir}"}):
            self._remove(orphan.id)

    def _remove(self, container_id: str) -> None:
        with suppress(*DAEMON_ERRORS):
            self._client.api.remove_container(container_id, force=True, v=True)


def _text_in_container(container: Any, path: str) -> str | None:
    """A text file of a container; None where it has none there."""
    try:
        chunks, _ = container.get_archive(path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            found = archive.extractfile(archive.next() or "")
            return found.read().decode(errors="replace") if found else None
    except (docker.errors.NotFound, tarfile.TarError, KeyError):
        return None


def _container_bind_mount(source: Path, target: str, read_only: bool = True) -> Mount:
    return Mount(target=target, source=str(source), type="bind", read_only=read_only)


def _is_loopback_proxy(url: str) -> bool:
    host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


def _container_socket(connection: Any) -> Any:
    # Over a Unix socket the SDK returns a SocketIO, which hides the socket that settimeout and sendall need.
    return connection if isinstance(connection, sockets.socket) else connection._sock  # noqa: SLF001


def _close_container_connection(connection: Any) -> None:
    """Close the response, then its socket: in the other order Python 3.13 reports an error."""
    if response := getattr(connection, "_response", None):
        response.close()
    connection.close()


def _container_log_lines(connection: Any) -> Iterator[tuple[int, str]]:
    """Lines of the attached container, each with the number of its stream."""
    streams: dict[int, OutputLines] = {}
    _container_socket(connection).settimeout(None)  # a stage may be silent for hours
    for stream, block in frames_iter(connection, tty=False):
        yield from ((stream, line) for line in streams.setdefault(stream, OutputLines()).feed(block))
    for stream, lines in streams.items():
        yield from ((stream, line) for line in lines.end())


def _container_out_of_memory(spec: StageSpec) -> StageResult:
    hint = "Give it more: MEMORY=16GiB, or close other programs."
    error = StageError(kind="out-of-memory", message="The stage was killed because memory ran out.", hint=hint)
    return StageResult(stage=spec.row.name, exit_code=ExitCode.RESOURCES, error=error)
