"""The engine `docker`: every stage is one container, and its tools are an image.

A plan only asks which images exist and how large the machine is, which does not need the SDK; `docker.py`, which runs
containers, is imported when one must run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from quantyard.engines import OnNote, OnProgress
from quantyard.engines.capacity import Capacity, engine_machine_capacity
from quantyard.engines.compose_project import COMPOSE_IMAGES, compose_image_name
from quantyard.engines.docker_daemon import DockerDaemon, SocketDaemon
from quantyard.engines.images import bake_image, engine_image_recipe
from quantyard.errors import EngineError
from quantyard.formatting.compilation import CompileProgress
from quantyard.hardware.machine import cpu_name
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import StageResult
from quantyard.requests import ImageSettings, RunEnvironment
from quantyard.store.artifact import Artifact, Workspace

if TYPE_CHECKING:
    from quantyard.engines.docker import StageContainers

_SOCKET: Final = "/var/run/docker.sock"
_TIMEOUT_S: Final = 60.0
_PULL_SIZES = {"builder": "about 1 GB", "eval": "about 50 MB", "server": "about 100 MB", "contract": "about 1 GB"}
_BUILD_TIMES = {
    "builder": "a few minutes", "eval": "compiles llama.cpp: 5 to 15 minutes", "server": "seconds",
    "contract": "a few minutes",
}
# What lists the architectures in today's converter, and in one of before it was a package.
_CONVERTER_LISTS: Final = ("/app/conversion/__init__.py", "/app/convert_hf_to_gguf.py")
_RESERVE_BYTES = 512 * 1024 * 1024  # left to the machine, so that a runaway stage is killed before the host suffers


def find_docker_daemon(timeout_s: float = _TIMEOUT_S) -> DockerDaemon:
    """The daemon that the environment names.

    Raises:
        EngineError: no daemon answers.
    """
    host = os.environ.get("DOCKER_HOST") or f"unix://{_SOCKET}"
    if host.startswith("unix:///"):
        return SocketDaemon(host.removeprefix("unix://"), timeout_s)
    from quantyard.engines.docker import SdkDaemon, connect_docker  # imported late: importing the SDK takes 0.1 s

    return SdkDaemon(connect_docker(timeout_s))


class DockerEngine:
    """Runs stages as containers of the Docker daemon.

    Raises:
        EngineError: no daemon answers.
    """

    name = "docker"

    def __init__(self, environment: RunEnvironment, images: ImageSettings) -> None:
        self._environment = environment
        self._images = images
        self._daemon = find_docker_daemon()
        self._capacity: Capacity | None = None
        self._identities: dict[str, str] = {}  # cached: asking the daemon for each step is slow
        self._lock = threading.Lock()
        self._started: StageContainers | None = None

    @property
    def _containers(self) -> StageContainers:
        from quantyard.engines.docker import StageContainers

        with self._lock:  # stages start in threads of their own
            self._started = self._started or StageContainers(self._environment)
            return self._started

    def capacity(self) -> Capacity:
        """The capacity of the daemon's machine, without its GPU: containers do not get one."""
        if self._capacity is None:
            info = self._daemon.info()
            memory_bytes = self._environment.memory_bytes or int(info["MemTotal"]) - _RESERVE_BYTES
            self._capacity = engine_machine_capacity(cpu_name(), int(info["NCPU"]), memory_bytes)
        return self._capacity

    def identity(self, image: str) -> str | None:
        """Base digest and recipe of the image; None if the base or the image is missing on this machine."""
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
            compiling = CompileProgress()

            def on_line(line: str) -> None:
                if said := compiling.read_tenths(line):
                    on_note(said)

            bake_image(self._environment.repo_dir, image, self._tag(image, base), base, self._images, on_line)
        if image in COMPOSE_IMAGES:
            name = compose_image_name(image, self._environment.repo_dir, os.environ)
            self._containers.name_image(self._tag(image, base), name)

    def describe(self, image: str) -> dict[str, str]:
        """Versions and digests for the manifest; the id of the image has the key `builder_image`, `eval_image` …"""
        base = self._base_digest(image) or ""
        known = {"base_image": self._images.bases[image], "base_digest": base}
        with suppress(EngineError):
            if built := self._daemon.image(self._tag(image, base)):
                labels = built["Config"].get("Labels") or {}
                return {
                    "engine": "docker", "docker": self._daemon.version(), f"{image}_image": str(built["Id"]), **known,
                    "recipe": str(labels.get("quantyard.recipe", "")),
                }
        return {"engine": "docker", **known}

    def converter_list(self) -> str | None:
        """The list of the converter in the builder's base image; no container is started."""
        if self._base_digest("builder") is None:
            return None
        return self._containers.read_text(self._images.bases["builder"], _CONVERTER_LISTS)

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress
    ) -> StageResult:
        """Run the stage in a container, and always remove the container."""
        image = self.image_name(spec.row.image)
        return self._containers.run(spec, space, inputs, on_progress, image, self.capacity().memory_bytes)

    def image_name(self, image: str) -> str:
        """The name of the built image on this machine, repository:tag.

        Raises:
            EngineError: its base was removed.
        """
        base = self._base_digest(image)
        if base is None:
            message = f"The base image {self._images.bases[image]} was removed."
            raise EngineError(message, "Type the same command again.")
        return self._tag(image, base)

    def digests(self, image: str) -> list[str]:
        """Where the built image was pushed to or pulled from: repository@sha256:…, in no order."""
        found = self._daemon.image(self.image_name(image)) or {}
        return [str(name) for name in found.get("RepoDigests") or ()]

    def stop(self) -> None:
        """Remove the containers of all running stages."""
        if self._started:
            self._started.stop()

    def _base_digest(self, image: str) -> str | None:
        """The digest of the base image on this machine: the registry's if it was pulled, else its id."""
        base = self._daemon.image(self._images.bases[image])
        if base is None:
            return None
        digests = base.get("RepoDigests") or []
        return str(digests[0]).rpartition("@")[2] if digests else str(base["Id"])

    def _pull(self, image: str, on_note: OnNote) -> None:
        base = self._images.bases[image]
        on_note(f"pulling {base} ({_PULL_SIZES[image]}, once)")
        self._containers.pull(base)

    def _has(self, tag: str) -> bool:
        return self._daemon.image(tag) is not None

    def _tag(self, image: str, base: str) -> str:
        recipe = engine_image_recipe(self._environment.repo_dir, image)
        return f"quantyard/{image}:{recipe[:12]}-{base.rpartition(':')[2][:12]}"
