"""Turns the settings of Kubernetes into their part of the request."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from typing import Final

from quantyard.cli.values import integer_setting, job_time_setting, size_setting
from quantyard.errors import BadRequest
from quantyard.requests import KubeRequest

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")  # of an object
_CLAIM: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(/[\w.@+-]+)*")
_IMAGE: Final = re.compile(r"[a-z0-9][\w.:/-]{0,400}@sha256:[0-9a-f]{64}")
_LABEL: Final = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9][\w.-]{0,62}=([A-Za-z0-9][\w.-]{0,62})?")
_NOBODY: Final = 65532


def typed_kube_request(values: Mapping[str, str], *, used: bool) -> KubeRequest:
    """The settings of Kubernetes.

    Args:
        used: whether Jobs are asked for, which need an image and a store.

    Raises:
        BadRequest: a value is not valid, or one that is needed is missing.
    """
    words = {
        name: _kube_name(f"KUBE_{name.upper()}", values)
        for name in ("namespace", "queue", "s3_secret", "hf_secret", "pull_secret")
    }
    memory = values["KUBE_MEMORY_PER_STAGE"]
    typed = KubeRequest(
        **words, context=_kube_context(values["KUBE_CONTEXT"]), image=_kube_image(values["KUBE_IMAGE"]),
        nodes=_kube_labels(values["KUBE_NODES"]), claim=_kube_claim(values["KUBE_CLAIM"]),
        store_cidr=_kube_addresses(values["KUBE_STORE_CIDR"]),
        cpus=integer_setting("KUBE_CPUS_PER_STAGE", values, 0, 100_000),
        memory_bytes=size_setting("KUBE_MEMORY_PER_STAGE", memory, 2**30, "1GiB") if memory else 0,
        time_limit_s=job_time_setting("KUBE_TIME", values["KUBE_TIME"]), user=_pod_user(),
    )  # fmt: skip
    if used:
        _check_needed(values)
    return typed


def _check_needed(values: Mapping[str, str]) -> None:
    if not values["KUBE_IMAGE"]:
        hint = "Build it, push it, and name it by its digest: KUBE_IMAGE=registry/quantyard-node@sha256:…"
        raise BadRequest("ENGINE=kubernetes needs the image of nodes, and KUBE_IMAGE is not given.", hint)
    if values["NODE_ENGINE"].lower() != "local":
        message = f"NODE_ENGINE={values['NODE_ENGINE'][:80]}: a pod has no Docker; its stages are processes."
        raise BadRequest(message, "Leave it out: NODE_ENGINE=local")
    in_bucket, claim = values["STORE"].startswith("s3://"), bool(values["KUBE_CLAIM"])
    if in_bucket == claim:
        message = "A store in a bucket is not on a volume claim." if claim else "Pods cannot reach STORE."
        hint = "Give either STORE=s3://bucket/prefix, or STORE=/mounted/here KUBE_CLAIM=name/folder of the same volume"
        raise BadRequest(message, hint)
    if claim and os.getuid() == 0:
        message = "You are root here, and pods never are: they could not write beside what you make in STORE."
        raise BadRequest(message, "Type the command as another user, or take a bucket: STORE=s3://bucket/prefix")
    if claim and not values["STORE"]:
        hint = "Mount that volume here, and name the folder: STORE=/mounted/here"
        raise BadRequest(f"KUBE_CLAIM={values['KUBE_CLAIM'][:80]} is given, and STORE is not.", hint)


def _pod_user() -> tuple[int, int]:
    """Uid and gid of the caller, who shares the store's folders with pods; of nobody for root."""
    uid, gid = os.getuid(), os.getgid()
    return (uid, gid or uid) if uid else (_NOBODY, _NOBODY)


def _kube_name(name: str, values: Mapping[str, str]) -> str:
    if values[name] and not _NAME.fullmatch(values[name]):
        message = f"{name}={values[name][:80]} is not a name in Kubernetes: small letters, digits, - and ."
        raise BadRequest(message, f"Write it like this: {name}=quantyard")
    return values[name]


def _kube_context(text: str) -> str:
    if not text.isprintable() or len(text) > 500:
        raise BadRequest("KUBE_CONTEXT is not the name of a context.", "List yours: kubectl config get-contexts")
    return text


def _kube_image(text: str) -> str:
    if text and not _IMAGE.fullmatch(text):
        message = f"KUBE_IMAGE={text[:120]} does not name an image by its digest, so it could be another tomorrow."
        raise BadRequest(message, "Write it like this: KUBE_IMAGE=registry/quantyard-node@sha256:…")
    return text


def _kube_labels(text: str) -> dict[str, str]:
    labels = [part.strip() for part in text.split(",") if part.strip()]
    if wrong := next((label for label in labels if not _LABEL.fullmatch(label)), None):
        message = f"KUBE_NODES: {wrong[:80]} is not a label with its value."
        hint = "List those of the nodes: kubectl get nodes --show-labels; then: KUBE_NODES=label=value"
        raise BadRequest(message, hint)
    return dict(label.split("=", 1) for label in labels)


def _kube_claim(text: str) -> str:
    if text and (not _CLAIM.fullmatch(text) or ".." in text.split("/")):
        message = f"KUBE_CLAIM={text[:80]} is not the name of a volume claim, with or without a folder in it."
        raise BadRequest(message, "List them: kubectl get pvc; then: KUBE_CLAIM=name/folder")
    return text


def _kube_addresses(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text)) if text else ""
    except ValueError as error:
        message = f"KUBE_STORE_CIDR={text[:80]} is not a range of addresses."
        raise BadRequest(message, "Write it like this: KUBE_STORE_CIDR=10.0.0.0/8") from error
