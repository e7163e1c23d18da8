"""Turns the settings of clusters into their part of the request."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from quantyard.cli.values import integer_setting, job_time_setting, one_of_setting
from quantyard.errors import BadRequest
from quantyard.formatting.printable import url_has_user_info
from quantyard.requests import ClusterRequest, KubeRequest

# Variables of this process that jobs get too: they name places, and hold no secret. To add one: add its name.
_PASSED_ON: Final = (
    "PATH", "LANG", "QUANTYARD_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_TOKEN_PATH", "HF_ENDPOINT",
    "EXTRA_CA", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY",
    "https_proxy", "http_proxy", "all_proxy", "no_proxy", "DOCKER_HOST", "AWS_ENDPOINT_URL", "AWS_PROFILE",
    "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_CA_BUNDLE",
)  # fmt: skip
# Those that mean the same in a pod, which has other folders.
_PASSED_TO_PODS: Final = (
    "HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "all_proxy",
    "no_proxy", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE",
)  # fmt: skip


# Options of sbatch that jobs have from Quantyard; those that a setting gives name it.
RESERVED_SBATCH_OPTIONS: Final[Mapping[str, str]] = {
    "partition": "SLURM_PARTITION", "account": "SLURM_ACCOUNT", "qos": "SLURM_QOS", "constraint": "SLURM_CONSTRAINT",
    "gres": "SLURM_GRES", "cpus-per-task": "SLURM_CPUS_PER_STAGE", "time": "SLURM_TIME", "mem": "MEMORY",
    "mem-per-cpu": "MEMORY", "mem-per-gpu": "MEMORY",
} | dict.fromkeys((
    "array", "chdir", "comment", "dependency", "error", "exclude", "exclusive", "export", "export-file", "help", "hold",
    "input", "job-name", "no-requeue", "nodes", "ntasks", "open-mode", "output", "parsable", "quiet", "requeue",
    "test-only", "usage", "version", "wait", "wrap",
), "")  # fmt: skip


def typed_cluster_request(
    values: Mapping[str, str], environment: Mapping[str, str], token_in_file: str | None, engine: str = ""
) -> ClusterRequest:
    """The settings of a cluster.

    Args:
        token_in_file: the Hub token that nodes find in the user's home; None if there is none.
        engine: that was asked for.

    Raises:
        BadRequest: a value is not valid.
    """
    on_kube = engine == "kubernetes"
    node_engine = one_of_setting("NODE_ENGINE", values["NODE_ENGINE"].lower(), ("local", "docker", "podman"))
    passed_on = _PASSED_TO_PODS if on_kube else _PASSED_ON
    kube = _typed_kube(values, used=on_kube)
    token_there = bool(kube.hf_secret) if on_kube else values["HF_TOKEN"].strip() == token_in_file
    if engine == "slurm":
        _refuse_hidden_keys(values["STORE"], environment)
    return ClusterRequest(
        store=_typed_store(values["STORE"]), scratch=_typed_scratch(values["SCRATCH"]),
        node_engine=node_engine, registry=_typed_registry(values["NODE_REGISTRY"], node_engine),  # type: ignore[arg-type]
        network_stages=one_of_setting("NETWORK_STAGES", values["NETWORK_STAGES"].lower(), ("nodes", "here")),  # type: ignore[arg-type]
        partition=_slurm_word("SLURM_PARTITION", values), account=_slurm_word("SLURM_ACCOUNT", values),
        qos=_slurm_word("SLURM_QOS", values), constraint=_slurm_word("SLURM_CONSTRAINT", values),
        gres=_slurm_word("SLURM_GRES", values), cpus=integer_setting("SLURM_CPUS_PER_STAGE", values, 0, 100_000),
        options=_typed_sbatch_options(values["SLURM_OPTIONS"]),
        time_limit_s=job_time_setting("SLURM_TIME", values["SLURM_TIME"]), python=Path(sys.executable),
        variables={name: environment[name] for name in passed_on if _is_passed_on(environment.get(name, ""))},
        nodes_lack_token=bool(values["HF_TOKEN"]) and not token_there, kube=kube,
    )  # fmt: skip


def _typed_kube(values: Mapping[str, str], *, used: bool) -> KubeRequest:
    if not used and not any(values[name] not in ("", "0") for name in values if name.startswith("KUBE_")):
        return KubeRequest()
    from quantyard.cli.kube_request import typed_kube_request  # imported late: other engines need none of it

    return typed_kube_request(values, used=used)


def _is_passed_on(value: str) -> bool:
    return bool(value) and not url_has_user_info(value)  # an address may hold a password


def _typed_store(text: str) -> str:
    """A URL, or an absolute path: jobs run in other folders."""
    return text if "://" in text or not text else str(Path(text).expanduser().absolute())


def _refuse_hidden_keys(store: str, environment: Mapping[str, str]) -> None:
    """Nodes read the keys of a bucket from the user's file, never from this process.

    Raises:
        BadRequest: there is no such file, and this process has keys of its own.
    """
    file = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    if store.startswith("s3://") and environment.get("AWS_SECRET_ACCESS_KEY") and not file.is_file():
        message = f"AWS_SECRET_ACCESS_KEY is set here, and nodes do not see it: {file} is missing."
        raise BadRequest(message, "Write the keys to that file, which nodes read in your home: aws configure")


def _typed_registry(text: str, node_engine: str) -> str:
    """A registry, and a path in it."""
    if text and not re.fullmatch(r"[\w.-]+(:\d{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*", text):
        message = f"NODE_REGISTRY={text[:120]} is not a registry with a path in small letters."
        raise BadRequest(message, "Write it like this: NODE_REGISTRY=registry.example:5000/team")
    if text and node_engine == "local":
        message = f"NODE_REGISTRY={text[:120]} is for nodes that run containers, and NODE_ENGINE=local runs processes."
        raise BadRequest(message, "Name what runs them: NODE_ENGINE=docker, or NODE_ENGINE=podman")
    return text


def _typed_scratch(text: str) -> str:
    """A folder of a node; it may name variables there, as in /local/$SLURM_JOB_ID."""
    if not re.fullmatch(r"[/$][\w./${}+=@-]*", text) or "$(" in text:
        raise BadRequest(f"SCRATCH={text[:80]} is not the path of a folder.", "Write it like this: SCRATCH=/local/name")
    return text


def _slurm_word(name: str, values: Mapping[str, str]) -> str:
    if not re.fullmatch(r"[\w.,:&|*()\[\]+=@/-]{0,200}", values[name]):
        message = f"{name}={values[name][:80]} has characters that Slurm does not take."
        raise BadRequest(message, f"Write it like this: {name}=name")
    return values[name]


def _typed_sbatch_options(text: str) -> tuple[str, ...]:
    """More options of sbatch. Their names may be cut short, as sbatch takes them, so a short one may mean ours."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        message = f"SLURM_OPTIONS={text[:80]} has a quote that is not closed."
        raise BadRequest(message, 'Write it like this: SLURM_OPTIONS="--reservation=name --nice=100"') from error
    for word in words:
        name = word.partition("=")[0]
        if not re.fullmatch(r"--[a-z][a-z0-9-]+", name) or not word.isprintable():
            message = f"SLURM_OPTIONS: {word[:80]} is not a long option of sbatch."
            raise BadRequest(message, 'Write each as one word: SLURM_OPTIONS="--reservation=name --nice=100"')
        if ours := next((option for option in RESERVED_SBATCH_OPTIONS if option.startswith(name[2:])), ""):
            setting = RESERVED_SBATCH_OPTIONS[ours]
            hint = f"Set {setting} instead." if setting else f"Leave {name} out."
            raise BadRequest(f"SLURM_OPTIONS: Quantyard sets --{ours} for each job itself.", hint)
    return tuple(words)
