"""Asks a node of Slurm what it has, by a job that takes seconds."""

from __future__ import annotations

from typing import Final

from quantyard.batch.slurm_commands import run_slurm_command
from quantyard.batch.slurm_job import SlurmPlace, chosen_sbatch_options, slurm_node_script
from quantyard.errors import EngineError
from quantyard.protocol.node_spec import NodeCheck
from quantyard.requests import ClusterRequest
from quantyard.shared_store.objects import ObjectStore

_NAME: Final = "quantyard-check"
_MINUTES: Final = 5
_TIMEOUT_S: Final = 120.0


def examine_slurm_node(cluster: ClusterRequest, place: SlurmPlace, store: ObjectStore, name: str) -> NodeCheck:
    """What the node has that Slurm gives to a small job.

    Args:
        name: of the object in the store that the node writes.

    Raises:
        EngineError: no node is free within two minutes, or the node cannot run Quantyard.
    """
    place.logs.mkdir(parents=True, exist_ok=True)
    log = place.logs / f"check-{name.rpartition('/')[2]}.log"
    try:
        run_slurm_command(
            "sbatch", "--wait", f"--job-name={_NAME}", f"--output={log}", f"--chdir={place.repo_dir}", "--export=HOME",
            f"--time={_MINUTES}", *chosen_sbatch_options(cluster), timeout_s=_TIMEOUT_S,
            given=slurm_node_script("Quantyard: doctor", ["check", name], cluster.node_engine, cluster, place),
        )  # fmt: skip
    except EngineError as error:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.exists() else ""
        raise EngineError(error.message, error.hint, tail or error.detail) from error
    try:
        return NodeCheck.model_validate_json(store.read_bytes(name))
    except FileNotFoundError as error:
        message = f"The node wrote its answer into another store: {place.store_url} is not the same there."
        raise EngineError(message, "Name a folder that all nodes mount, or a bucket: STORE=…") from error
    finally:
        store.remove(name)
