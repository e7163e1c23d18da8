"""The images of nodes that run containers: built here, pushed to a registry once, and named by digest."""

from __future__ import annotations

import threading
from typing import Final

from quantyard.engines import OnNote
from quantyard.engines.docker_engine import DockerEngine

_PREFIX: Final = "quantyard-"


class PushedImages:
    """Where nodes pull images from. A stage's key does not hold it: the same image may lie in any registry.

    Args:
        registry: host:port/path.
    """

    def __init__(self, tools: DockerEngine, registry: str) -> None:
        self._tools, self._registry = tools, registry
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}

    def repository(self, image: str) -> str:
        """The repository of an image."""
        return f"{self._registry}/{_PREFIX}{image}"

    def pushed_reference(self, image: str) -> str:
        """The image by digest, if it was pushed from here once and is there still; else "".

        Raises:
            ImageRegistryUnreachable: the registry does not answer.
        """
        from quantyard.engines.docker_images import registry_has_image  # the SDK, only where it is needed

        ours = self.repository(image) + "@"
        found = (name for name in self._tools.digests(image) if name.startswith(ours))
        return next((name for name in found if registry_has_image(name)), "")

    def push_missing(self, image: str, on_note: OnNote) -> str:
        """The image by digest; it is pushed if the registry lacks it.

        Raises:
            ImageRegistryUnreachable, EngineError: the registry does not answer, or refuses it.
        """
        from quantyard.engines.docker_images import push_registry_image, registry_has_image

        with self._lock:
            if image not in self._known:
                reference, repository = self.pushed_reference(image), self.repository(image)
                if not reference:
                    name = self._tools.image_name(image)
                    registry_has_image(f"{repository}:{name.rpartition(':')[2]}")  # a push tries for more than a minute
                    on_note(f"pushing the {image} image to {repository} (once)")
                    reference = f"{repository}@{push_registry_image(name, repository)}"
                self._known[image] = reference
            return self._known[image]
