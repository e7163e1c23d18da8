"""A stage as a job of Slurm: the options of sbatch, and the script. Neither holds a secret.

The job's name and comment say which stage it is, so that a second submission finds the first: the name has the start of
the key, the comment the whole key and the process that submitted it.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quantyard.protocol.node_spec import NodeSpec
from quantyard.requests import ClusterRequest

_MIB: Final = 2**20
_GRACE_S: Final = 600.0  # a stage's own limit comes first; copying its files is outside of it
_COMMENT: Final = "quantyard"


@dataclass(frozen=True)
class SlurmPlace:
    """Where jobs find Quantyard, and what is set for them: nothing of it is a secret.

    Args:
        python: of the environment with Quantyard, on the nodes.
        logs: a folder for what jobs print.
        variables: the environment of a job beside HOME.
    """

    python: Path
    repo_dir: Path
    logs: Path
    store_url: str
    variables: Mapping[str, str]


def slurm_job_name(spec: NodeSpec) -> str:
    """The name of a stage's job."""
    return f"quantyard-{spec.stage}-{spec.key[:16]}"


def slurm_job_comment(key: str, submitter: str) -> str:
    """The comment of a job: its key, and who submitted it."""
    return f"{_COMMENT} {key} {submitter}"


def parse_slurm_comment(comment: str) -> tuple[str, str] | None:
    """Key and submitter; None if the job is not one of ours."""
    words = comment.split()
    return (words[1], words[2]) if len(words) == 3 and words[0] == _COMMENT else None


def slurm_log_pattern(logs: Path, spec: NodeSpec, job_id: str = "%j") -> Path:
    """The file for what a job prints."""
    return logs / f"{spec.label.replace(' ', '-').replace('/', '_')}-{spec.key[:12]}-{job_id}.log"


def sbatch_options(
    spec: NodeSpec, cluster: ClusterRequest, place: SlurmPlace, submitter: str, avoid: Collection[str] = (),
    most_s: float | None = None,
) -> list[str]:
    """The options of sbatch.

    Args:
        avoid: nodes that it must not run on.
        most_s: the time limit of the partition; None: it has none.
    """
    needs = spec.resources
    options = [
        "--parsable", f"--job-name={slurm_job_name(spec)}", f"--comment={slurm_job_comment(spec.key, submitter)}",
        f"--output={slurm_log_pattern(place.logs, spec)}", "--open-mode=append", f"--chdir={place.repo_dir}",
        "--requeue", "--nodes=1", "--ntasks=1", f"--cpus-per-task={needs.cpus}", "--export=HOME",
        f"--time={_slurm_minutes(spec, cluster, most_s)}",
    ]
    if needs.exclusive:
        options.append("--exclusive")
    if needs.memory_bytes:
        options.append(f"--mem={-(-needs.memory_bytes // _MIB)}M")
    if needs.gpus:
        options.append(f"--gres={cluster.gres}")
    if avoid:
        options.append(f"--exclude={','.join(sorted(avoid))}")
    return options + chosen_sbatch_options(cluster)


def chosen_sbatch_options(cluster: ClusterRequest) -> list[str]:
    """The options that the user chose for every job."""
    chosen = {name: getattr(cluster, name) for name in ("partition", "account", "qos", "constraint")}
    return [f"--{name}={value}" for name, value in chosen.items() if value] + list(cluster.options)


def slurm_job_script(spec: NodeSpec, spec_name: str, cluster: ClusterRequest, place: SlurmPlace) -> str:
    """The script of a job: it becomes `quantyard node run`."""
    return slurm_node_script(f"Quantyard: {spec.label}", ["run", spec_name], spec.engine, cluster, place)


def slurm_node_script(
    title: str, words: Sequence[str], engine: str, cluster: ClusterRequest, place: SlurmPlace
) -> str:
    """A script that becomes `quantyard node` with these words. SCRATCH may name variables of the node."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(place.variables.items())]
    own = "docker" if engine == "podman" else engine  # Podman has Docker's API
    argv = [str(place.python), "-m", "quantyard", "node", *words, "--store", place.store_url, "--engine", own]
    argv += ["--node-engine", engine] * (engine != "local")
    argv += ["--node-registry", cluster.registry] * bool(cluster.registry)
    command = f'exec {shlex.join(argv)} --scratch "$SCRATCH" --artifacts "$SCRATCH"'
    return "\n".join(["#!/bin/sh", f"# {title}", *exports, f'SCRATCH="{cluster.scratch}"', command, ""])


def _slurm_minutes(spec: NodeSpec, cluster: ClusterRequest, most_s: float | None) -> int:
    wanted = spec.time_limit_s + _GRACE_S
    limits = [wanted, *(limit for limit in (cluster.time_limit_s, most_s) if limit)]
    return max(1, int(min(limits) // 60))
