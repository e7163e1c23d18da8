"""A server with the API of Kubernetes, as far as we use it: objects in memory, label selectors, Status on errors.

What is created is validated strictly against Kubernetes' own schemas of the oldest version that we promise and of the
newest. Nothing runs: a test says what becomes of a Job's pod. It is a stand-in, since no cluster can be had in tests.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate

from tests.unit.json_handler import JsonHandler

VERSIONS = ("1.31", "1.37")
GIB = 2**30


def valid(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, if the schemas of all versions take it."""
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)
    return manifest


@dataclass
class KubeServer:
    """The objects of a cluster: kind → name → object. `refused` are requests that are answered with a code."""

    url: str = ""
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)  # "POST jobs" → 403
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    denied: set[tuple[str, str]] = field(default_factory=set)  # rights that we lack: verb, resource
    logs: str = ""
    lingering: bool = False  # a deleted Job stays until `bury`
    on_job: Callable[[dict[str, Any]], None] | None = None
    _uids: int = 0

    def of(self, kind: str) -> dict[str, Any]:
        return self.objects.setdefault(kind, {})

    def job(self) -> dict[str, Any]:
        [job] = self.of("jobs").values()
        return job

    def add(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        self._uids += 1
        body["metadata"] |= {"uid": f"uid-{self._uids}", "creationTimestamp": f"2026-12-01T00:00:{self._uids:02d}Z"}
        self.of(kind)[body["metadata"]["name"]] = body
        return body

    def add_pod(self, job: dict[str, Any], status: dict[str, Any], node: str = "", **metadata: Any) -> dict[str, Any]:
        """A pod of a Job, in this state."""
        template = job["spec"]["template"]
        labels = template["metadata"]["labels"] | {"batch.kubernetes.io/controller-uid": job["metadata"]["uid"]}
        name = f"{job['metadata']['name']}-{len(self.of('pods'))}"
        spec = template["spec"] | ({"nodeName": node} if node else {})
        about = {"name": name, "labels": labels, **metadata}
        return self.add("pods", {"metadata": about, "spec": spec, "status": status})

    def bury(self, name: str) -> None:
        self.of("jobs").pop(name)

    def kubeconfig(self, folder: Path, namespace: str = "lab") -> Path:
        """A kubeconfig of two contexts, of which the current one is this server."""
        path = folder / "kubeconfig"
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": "a-token"}}],
            "contexts": [
                {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": namespace}},
                {"name": "other", "context": {"cluster": "c", "user": "u", "namespace": "elsewhere"}},
            ],
        }))  # fmt: skip
        return path


class _Api(JsonHandler):
    state: KubeServer

    def do_GET(self) -> None:  # noqa: N802
        kind, name = self._place()
        if self._is_refused("GET", kind):
            return
        if kind == "version":
            self.send(200, {"gitVersion": "v1.37.0"})
        elif kind == "log":
            self.send_text(200, self.state.logs, "text/plain")
        elif name:
            self._send_object(kind, name)
        else:
            rows = [row for row in self.state.of(kind).values() if self._is_chosen(row)]
            self.send(200, {"kind": "List", "items": rows, "metadata": {}})

    def do_POST(self) -> None:  # noqa: N802
        kind, _ = self._place()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._is_refused("POST", kind):
            return
        valid(body)
        if kind == "selfsubjectaccessreviews":
            asked = body["spec"]["resourceAttributes"]
            allowed = (asked["verb"], asked["resource"]) not in self.state.denied
            self.send(201, body | {"status": {"allowed": allowed}})
        elif body["metadata"]["name"] in self.state.of(kind):
            self._send_status(409, "AlreadyExists")
        else:
            made = self.state.add(kind, body)
            if kind == "jobs" and self.state.on_job:
                self.state.on_job(made)
            self.send(201, made)

    def do_PUT(self) -> None:  # noqa: N802
        kind, name = self._place()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_refused("PUT", kind):
            self.state.of(kind)[name] = valid(body)
            self.send(200, body)

    def do_DELETE(self) -> None:  # noqa: N802
        kind, name = self._place()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._is_refused("DELETE", kind):
            return
        if (found := self.state.of(kind).get(name)) is None:
            self._send_status(404, "NotFound")
        elif body["preconditions"]["uid"] != found["metadata"]["uid"]:
            self._send_status(409, "Conflict")
        else:
            assert body["propagationPolicy"] == "Background", "or its pods would stay"
            if self.state.lingering:
                found["metadata"]["deletionTimestamp"] = "2026-12-01T00:01:00Z"
            else:
                self.state.of(kind).pop(name)
            self.send(200, {"kind": "Status", "status": "Success"})

    def _place(self) -> tuple[str, str]:
        """Kind and name in the path; of a pod's log the kind `log`."""
        parts = urlsplit(self.path).path.strip("/").split("/")
        parts = parts[parts.index("namespaces") + 2 :] if "namespaces" in parts else parts[-1:]
        if parts[-1] == "log":
            return "log", parts[1]
        return parts[0], parts[1] if len(parts) > 1 else ""

    def _is_refused(self, method: str, kind: str) -> bool:
        self.state.requests.append(f"{method} {kind}")
        self.state.headers.append({name.lower(): value for name, value in self.headers.items()})
        code = self.state.refused.get(f"{method} {kind}")
        if code is not None:
            self._send_status(code, "Forbidden" if code == 403 else "Other")
        return code is not None

    def _send_object(self, kind: str, name: str) -> None:
        found = self.state.of(kind).get(name)
        if found is None:
            self._send_status(404, "NotFound")
        elif "PartialObjectMetadata" in self.headers.get("Accept", ""):
            self.send(200, {"kind": "PartialObjectMetadata", "metadata": found["metadata"]})
        else:
            self.send(200, found)

    def _is_chosen(self, row: dict[str, Any]) -> bool:
        text = parse_qs(urlsplit(self.path).query).get("labelSelector", [""])[0]
        wanted = dict(part.split("=", 1) for part in text.split(",") if part)
        return wanted.items() <= row["metadata"].get("labels", {}).items()

    def _send_status(self, code: int, reason: str) -> None:
        told = {"kind": "Status", "status": "Failure", "message": f"it is {reason}", "reason": reason, "code": code}
        self.send(code, told)


@contextmanager
def kube_server() -> Iterator[KubeServer]:
    """A server that answers while the block runs."""
    state = KubeServer()
    handler = type("Api", (_Api,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield state
        server.shutdown()
