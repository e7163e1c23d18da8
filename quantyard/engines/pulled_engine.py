"""The engine of a node whose image lies in a registry: it is pulled by its digest, once, and runs as any other."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

from quantyard.engines import OnNote, OnProgress
from quantyard.engines.docker_daemon import OTHER_MACHINES_HINT
from quantyard.engines.docker_engine import DockerEngine
from quantyard.errors import EngineError
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import StageResult
from quantyard.requests import ImageSettings, RunEnvironment
from quantyard.store.artifact import Artifact, Workspace

_SAME: Final[Mapping[str, str]] = {"x86_64": "amd64", "aarch64": "arm64"}


class PulledEngine(DockerEngine):
    """Runs stages as containers of one image, `repository@sha256:…`.

    Args:
        name: what runs containers here, docker or podman: for the record.
    """

    def __init__(self, environment: RunEnvironment, images: ImageSettings, reference: str, name: str) -> None:
        super().__init__(environment, images)
        self.name = name
        self._reference = reference
        self._pulling = threading.Lock()

    def identity(self, image: str) -> str | None:  # noqa: ARG002  (it has one image)
        """Base digest and recipe, from the image's labels, wherever it was pulled from.

        Raises:
            ImageRegistryUnreachable: the image is not here, and its registry does not answer.
            EngineError: it cannot be had, or is for other machines.
        """
        labels = self._pulled_image()["Config"].get("Labels") or {}
        return f"{labels.get('org.opencontainers.image.base.digest')}+{labels.get('quantyard.recipe')}"

    def prepare(self, image: str, on_note: OnNote) -> None:  # noqa: ARG002
        """Pull the image if it is missing."""
        self._pulled_image()

    def describe(self, image: str) -> dict[str, str]:
        """Versions and digests for the manifest; the same as where the image was built."""
        found = self._pulled_image()
        labels = found["Config"].get("Labels") or {}
        return {
            "engine": self.name, self.name: self._daemon.version(), f"{image}_image": str(found["Id"]),
            "base_image": self._images.bases[image],
            "base_digest": str(labels.get("org.opencontainers.image.base.digest", "")),
            "recipe": str(labels.get("quantyard.recipe", "")),
        }

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress
    ) -> StageResult:
        """Run the stage in a container, and always remove the container."""
        self._pulled_image()
        return self._containers.run(spec, space, inputs, on_progress, self._reference, self.capacity().memory_bytes)

    def _pulled_image(self) -> Mapping[str, Any]:
        with self._pulling:
            found = self._daemon.image(self._reference)
            if found is None:
                from quantyard.engines.docker_images import pull_registry_image  # the SDK, only where it is needed

                pull_registry_image(self._reference)
                found = self._daemon.image(self._reference)
        if found is None:
            raise EngineError(f"{self._reference} was pulled, and is gone.", "Free some disk on the node.")
        self._refuse_other_machine(str(found.get("Architecture", "")))
        return found

    def _refuse_other_machine(self, architecture: str) -> None:
        machine = str(self._daemon.info().get("Architecture", ""))
        here = _SAME.get(machine, machine)
        if architecture and here and architecture != here:
            message = f"This machine is {here}, and {self._reference} is for {architecture}."
            raise EngineError(message, OTHER_MACHINES_HINT)
