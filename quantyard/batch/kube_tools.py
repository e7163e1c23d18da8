"""The tools of nodes that are pods: the image, by its digest. This machine needs none, unless stages run here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

from quantyard.engines import Engine, OnNote, OnProgress
from quantyard.engines.capacity import Capacity
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import StageResult
from quantyard.protocol.node_spec import image_identity
from quantyard.requests import ClusterRequest
from quantyard.store.artifact import Artifact, Workspace


class KubeTools:
    """An engine whose identity is that of the image of nodes.

    Args:
        own_engine: makes the engine of this machine, for stages with a network where NETWORK_STAGES=here.
    """

    name = "kubernetes"

    def __init__(self, cluster: ClusterRequest, own_engine: Callable[[], Engine]) -> None:
        self._cluster, self._make_own = cluster, own_engine

    @cached_property
    def _own(self) -> Engine:
        return self._make_own()

    def capacity(self) -> Capacity:
        """That of this machine."""
        return self._own.capacity()

    def identity(self, image: str) -> str | None:
        """That of the image that pods run, whatever the stage's own image."""
        del image
        return image_identity(self._cluster.kube.image)

    def prepare(self, image: str, on_note: OnNote) -> None:
        """Nothing, for nodes pull their image; the tools of stages that run here."""
        if self._cluster.network_stages == "here" and image == "builder":
            self._own.prepare(image, on_note)

    def describe(self, image: str) -> dict[str, str]:
        """The image of nodes."""
        del image
        return {"engine": "kubernetes", "image": self._cluster.kube.image}

    def converter_list(self) -> str | None:
        """None: it is in the image."""
        return None

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress
    ) -> StageResult:
        """Run a stage on this machine; see Engine."""
        return self._own.run(spec, space, inputs, on_progress)

    def stop(self) -> None:
        """Stop what runs on this machine."""
        if "_own" in vars(self):
            self._own.stop()
