"""Kubernetes' API through its official client, and its answers as plain JSON or our errors.

The package `kubernetes` is of the optional group of that name; it is imported here alone, when a cluster is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from quantyard.batch.errors import KubeRefused, QueueSilent
from quantyard.errors import BadRequest, EngineError
from quantyard.requests import KubeRequest

_TIMEOUT_S: Final = (5.0, 15.0)  # to connect, to answer
_CHECK: Final = "make doctor ENGINE=kubernetes"
# What the API answers → what to do. To add one: add a row.
_HINTS: Final = {
    401: "Sign in again; then look who you are: kubectl auth whoami",
    403: f"Ask for that right; the page 'Run on Kubernetes' lists all of them. See which you have: {_CHECK}",
    404: "List the namespaces: kubectl get namespaces; then name one: KUBE_NAMESPACE=name",
    422: "See what the cluster takes: kubectl explain job.spec; it must be Kubernetes 1.31 or newer",
}


class KubeApi:
    """The parts of the API that we use, in one namespace. May be called from several threads."""

    def __init__(self, client: Any, api: Any, namespace: str) -> None:
        self._client, self._api, self.namespace = client, api, namespace

    @property
    def server(self) -> str:
        """The address of the API."""
        return str(self._api.configuration.host)

    def batch(self, verb: str, *words: object, **options: Any) -> Any:
        """A method of BatchV1Api in our namespace: `create`, `read`, `list`, `delete` and the kind."""
        return self._ask(self._client.BatchV1Api, verb, *words, **options)

    def core(self, verb: str, *words: object, **options: Any) -> Any:
        """A method of CoreV1Api."""
        return self._ask(self._client.CoreV1Api, verb, *words, **options)

    def networking(self, verb: str, *words: object, **options: Any) -> Any:
        """A method of NetworkingV1Api."""
        return self._ask(self._client.NetworkingV1Api, verb, *words, **options)

    def custom(self, verb: str, group: str, version: str, *words: object) -> Any:
        """A method of CustomObjectsApi: `get` an object of a kind that the cluster was extended by."""
        return self._ask(
            self._client.CustomObjectsApi, f"{verb}_namespaced_custom_object", group, version, self.namespace, *words
        )

    def version(self) -> Any:
        """What the API says of itself."""
        return self._ask(self._client.VersionApi, "get_code")

    def may(self, verb: str, group: str, resource: str, *, everywhere: bool = False) -> bool:
        """Whether we may do this, by a SelfSubjectAccessReview. `resource` may name a part: pods/log."""
        name, _, part = resource.partition("/")
        asked = {"verb": verb, "group": group, "resource": name} | ({"subresource": part} if part else {})
        body = {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked | ({} if everywhere else {"namespace": self.namespace})},
        }  # fmt: skip
        said = self._ask(self._client.AuthorizationV1Api, "create_self_subject_access_review", body)
        return bool(said.get("status", {}).get("allowed"))

    def log(self, pod: str, lines: int, most_bytes: int) -> str:
        """The last lines of a pod's log."""
        options = {"tail_lines": lines, "limit_bytes": most_bytes, "as_text": True}
        return str(self.core("read_namespaced_pod_log", pod, self.namespace, **options))

    def has_secret(self, name: str) -> bool:
        """Whether there is such a Secret. What it holds is not asked for: only its metadata come.

        Raises:
            KubeRefused: we may not look.
        """
        headers = {"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}
        path = f"/api/v1/namespaces/{self.namespace}/secrets/{name}"
        options = {"auth_settings": ["BearerToken"], "_preload_content": False, "_request_timeout": _TIMEOUT_S}
        try:
            self._answered(lambda: self._api.call_api(path, "GET", header_params=headers, **options), "read secret")
        except KubeRefused as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return False
            raise
        return True

    def _ask(self, group: Any, verb: str, *words: object, as_text: bool = False, **options: Any) -> Any:
        call = getattr(group(self._api), verb)
        options = {"_request_timeout": _TIMEOUT_S, "_preload_content": False} | options  # newer clusters say more
        answer = self._answered(lambda: call(*words, **options), verb)
        return answer.data.decode(errors="replace") if as_text else json.loads(answer.data or b"{}")

    def _answered(self, ask: Callable[[], Any], verb: str) -> Any:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return ask()
        except ApiException as error:
            raise self._refused(error, verb) from error
        except (HTTPError, OSError) as error:
            raise self._silent(type(error).__name__) from error

    def _refused(self, error: Any, verb: str) -> EngineError:
        status = int(error.status or 0)
        if status in (0, HTTPStatus.TOO_MANY_REQUESTS) or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return self._silent(f"HTTP {status}")
        said = _sentence_of_api(error.body)
        message = f"Kubernetes refuses {verb.replace('_', ' ')} ({status}): {said or error.reason}"
        return KubeRefused(message, _HINTS.get(status, f"Examine the cluster: {_CHECK}"), status)

    def _silent(self, why: str) -> QueueSilent:
        hint = "Jobs that run go on. See how it stands: kubectl cluster-info; then type the same command again."
        return QueueSilent(f"Kubernetes' API at {self.server} does not answer ({why}).", hint)


def open_kube_api(kube: KubeRequest) -> KubeApi:
    """The API of the context in the user's kubeconfig; in a pod without one, that of its own cluster.

    Raises:
        BadRequest: the package is not installed, or there is no such context.
    """
    try:
        from kubernetes import client, config
    except ImportError as error:
        hint = "pip install 'quantyard[kubernetes]'; in a checkout: scripts/setup-venv.sh kubernetes"
        raise BadRequest("ENGINE=kubernetes needs the package kubernetes, which is not installed.", hint) from error
    try:
        api = config.new_client_from_config(context=kube.context or None)
        return KubeApi(client, api, kube.namespace or _namespace_of_context(config.kube_config, kube.context))
    except config.ConfigException as error:
        if kube.context:
            message = f"The context {kube.context} of your kubeconfig cannot be used: {_first_line(error)}."
            raise BadRequest(message, "List yours: kubectl config get-contexts; then: KUBE_CONTEXT=name") from error
        return _api_of_own_cluster(client, config, kube, _first_line(error))


def _namespace_of_context(kube_config: Any, name: str) -> str:
    """The namespace of a context. The kubeconfig need not have a current one, unlike for the package's own list."""
    merged = kube_config.KubeConfigMerger(kube_config.KUBE_CONFIG_DEFAULT_LOCATION)
    loader = kube_config.KubeConfigLoader(config_dict=merged.config, active_context=name or None)
    return str(loader.current_context["context"].get("namespace") or "default")


def _api_of_own_cluster(client: Any, config: Any, kube: KubeRequest, why: str) -> KubeApi:
    settings = type.__call__(client.Configuration)
    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException as error:
        message = f"No kubeconfig can be used ({why}), and this is not a pod of a cluster."
        hint = "Name yours: KUBECONFIG=/path; where it has no current context also KUBE_CONTEXT=name"
        raise BadRequest(message, hint) from error
    return KubeApi(client, client.ApiClient(configuration=settings), kube.namespace or _own_namespace())


def _own_namespace() -> str:
    place = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return place.read_text().strip() if place.exists() else "default"


def _sentence_of_api(body: Any) -> str:
    """What the API says of an error; its answer is a Status."""
    try:
        return str(json.loads(body).get("message", ""))[:500]
    except (TypeError, ValueError, AttributeError):
        return ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
