"""The NetworkPolicies of a namespace: pods of ours get the network that their stage needs, by a label, and no more.

They work only where the cluster's network plug-in enforces them, which the API does not tell.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from quantyard.batch.kube_job import NETWORK, OURS, KubePlace, Manifest
from quantyard.requests import KubeRequest

_S3_PORT: Final = 443


def kube_network_policies(kube: KubeRequest, place: KubePlace) -> list[Manifest]:
    """`none`: nothing in or out; `store`: names and the store's port; `open`: nothing in."""
    port = _store_port(place.variables.get("AWS_ENDPOINT_URL", ""))
    names = {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}
    store: Manifest = {"ports": [{"protocol": "TCP", "port": port}]}
    if kube.store_cidr:
        store["to"] = [{"ipBlock": {"cidr": kube.store_cidr}}]
    both = ["Ingress", "Egress"]
    return [
        _network_policy("none", {"policyTypes": both}),
        _network_policy("store", {"policyTypes": both, "egress": [names, store]}),
        _network_policy("open", {"policyTypes": ["Ingress"]}),
    ]


def _network_policy(kind: str, rules: Manifest) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": f"quantyard-network-{kind}", "labels": dict(OURS)},
        "spec": {"podSelector": {"matchLabels": {**OURS, NETWORK: kind}}, **rules},
    }  # fmt: skip


def _store_port(endpoint: str) -> int:
    parts = urlsplit(endpoint)
    return parts.port or (80 if parts.scheme == "http" else _S3_PORT)
