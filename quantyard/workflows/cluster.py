"""Makes the engine of a cluster from a request."""

from __future__ import annotations

from quantyard.batch.batch_engine import BatchEngine, batch_logs_folder, batch_store_url
from quantyard.batch.pushed_images import PushedImages
from quantyard.batch.slurm import SlurmQueue
from quantyard.batch.slurm_job import SlurmPlace
from quantyard.engines import Engine
from quantyard.engines.registry import choose_engine
from quantyard.requests import BuildRequest, EngineName
from quantyard.shared_store.open_store import open_object_store


def workflow_cluster_engine(request: BuildRequest) -> BatchEngine:
    """The engine that runs stages as jobs of Slurm, or Jobs of Kubernetes.

    Raises:
        EngineError: the tools of this machine cannot be used.
        BadRequest: STORE cannot be used.
    """
    if request.engine == "kubernetes":
        from quantyard.workflows.kube_cluster import workflow_kube_engine  # imported late: Slurm needs none of it

        return workflow_kube_engine(request)
    cluster, place = request.cluster, workflow_slurm_place(request)
    kind: EngineName = "local" if cluster.node_engine == "local" else "docker"  # which builds the images of Podman too
    tools, _ = choose_engine(kind, request.environment, request.images)
    store = open_object_store(place.store_url)
    return BatchEngine(
        SlurmQueue(cluster, place), store, tools, cluster, request.environment, workflow_pushed_images(request, tools)
    )


def workflow_pushed_images(request: BuildRequest, tools: Engine) -> PushedImages | None:
    """Where nodes pull their images from; None if they have their tools."""
    if not request.cluster.registry:
        return None
    from quantyard.engines.docker_engine import DockerEngine  # loaded already

    assert isinstance(tools, DockerEngine)
    return PushedImages(tools, request.cluster.registry)


def workflow_slurm_place(request: BuildRequest) -> SlurmPlace:
    """Where jobs find Quantyard and the shared store."""
    return SlurmPlace(
        request.cluster.python, request.environment.repo_dir, batch_logs_folder(request.artifacts),
        batch_store_url(request.cluster, request.artifacts), request.cluster.variables,
    )
