"""The files of deploy/ agree with each other and with what they deploy; nothing in them runs as root."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from quantyard.paths import REPO_DIR, read_pins

DEPLOY: Final = REPO_DIR / "deploy"
MANIFESTS: Final = DEPLOY / "kubernetes"
CONFIG: Final = (REPO_DIR / "server" / "balancer" / "haproxy.cfg").read_text()
PROXY_FILES: Final = sorted(path.name for path in (REPO_DIR / "server" / "proxy").iterdir())
OVERLAYS: Final = ("cpu", "cuda")
COMPONENTS: Final = ("model-image", "model-volume")
STACK: Final = yaml.safe_load((DEPLOY / "swarm" / "stack.yaml").read_text())
pytestmark = pytest.mark.commands  # kubectl
HEALTH: Final = "/opt/quantyard/server/healthcheck.sh"


def _kubectl(folder: Path) -> str:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed (Debian: kubernetes-client, of Debian 13)")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False, timeout=60)
    if "unknown field" in done.stderr:
        pytest.skip(f"this kubectl is too old for the manifests: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def _manifests(overlay: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(_kubectl(MANIFESTS / "overlays" / overlay)))


def _workloads(overlay: str) -> dict[str, Any]:
    return {one["metadata"]["name"]: one for one in _manifests(overlay) if one["kind"] in ("StatefulSet", "Deployment")}


def _validated(text: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="in the group `test`")
    for one in yaml.safe_load_all(text):
        validate.validate(one, validate.latest_version(), strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_manifests_are_what_kubernetes_knows_field_by_field(overlay: str) -> None:
    _validated(_kubectl(MANIFESTS / "overlays" / overlay))


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_way_to_the_model_goes_with_each_overlay(overlay: str, component: str, tmp_path: Path) -> None:
    for name in ("deploy", "server"):
        shutil.copytree(REPO_DIR / name, tmp_path / name)
    file = tmp_path / "deploy" / "kubernetes" / "overlays" / overlay / "kustomization.yaml"
    line = re.search(rf"^# (components: \[\S*{component}\])", file.read_text(), re.MULTILINE)
    assert line, "the overlay does not offer it"
    file.write_text(f"{file.read_text()}{line[1]}\n")
    text = _kubectl(file.parent)
    _validated(text)
    pod = next(one for one in yaml.safe_load_all(text) if one["kind"] == "StatefulSet")["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["model"]["mountPath"] == "/model" and mounts["model"]["readOnly"]
    assert {"key", "tmp", "model"} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_has_more_rights_than_it_needs(overlay: str) -> None:
    for name, workload in _workloads(overlay).items():
        pod = workload["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 65532
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] and rights["allowPrivilegeEscalation"] is False, name
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
            assert container["livenessProbe"], container["name"]
            assert not [env for env in container.get("env", ()) if "KEY" in env["name"] and "FILE" not in env["name"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_server_in_kubernetes_is_named_by_digest_probed_by_its_own_script_and_never_missed_alone(
    overlay: str,
) -> None:
    spec = _workloads(overlay)["server"]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", container["image"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"] == [HEALTH] and container[probe]["timeoutSeconds"] >= 30
    assert spec["ordinals"] == {"start": 1}
    budgets = {one["metadata"]["name"]: one["spec"] for one in _manifests(overlay) if "Budget" in one["kind"]}
    assert budgets["server"]["maxUnavailable"] == budgets["front"]["maxUnavailable"] == 1
    assert budgets["server"]["selector"] == spec["selector"]
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (overlay == "cuda")


def test_the_front_has_every_file_of_the_proxy_and_the_address_of_the_balancer_beside_it() -> None:
    maps = {one["metadata"]["name"]: one["data"] for one in _manifests("cpu") if one["kind"] == "ConfigMap"}
    pod = _workloads("cpu")["front"]["spec"]["template"]["spec"]
    used = {volume["name"]: maps[volume["configMap"]["name"]] for volume in pod["volumes"] if "configMap" in volume}
    assert sorted(used["proxy"]) == PROXY_FILES and used["balancer"] == {"haproxy.cfg": CONFIG}
    proxy, balancer = ({env["name"]: env.get("value") for env in one["env"]} for one in pod["containers"])
    assert proxy["MODEL_ADDRESS"] == balancer["LISTEN"]
    services = {one["metadata"]["name"] for one in _manifests("cpu") if one["kind"] == "Service"}
    assert _workloads("cpu")["server"]["spec"]["serviceName"] in services
    assert balancer["SERVER_DOMAIN"].startswith(f".{_workloads('cpu')['server']['spec']['serviceName']}.$(NAMESPACE).")


def test_the_stack_has_every_file_of_the_proxy() -> None:
    files = {name: one["file"] for name, one in STACK["configs"].items()}
    assert all((DEPLOY / "swarm" / file).is_file() for file in files.values())
    mounted = {one["target"]: Path(files[one["source"]]).name for one in STACK["services"]["proxy"]["configs"]}
    assert mounted == {f"/etc/quantyard/proxy/{name}": name for name in PROXY_FILES} | {
        "/etc/quantyard/request_limits.json": "request_limits.json"
    }


def test_what_a_missing_variable_says_is_read_as_words() -> None:
    for file in (DEPLOY / "swarm").iterdir():  # docker stack takes a `-` in them for the beginning of a default
        assert not re.search(r"\$\{\w+:\?[^}]*-", file.read_text()), file.name


def test_no_service_of_the_stack_has_more_rights_than_it_needs() -> None:
    for name, service in STACK["services"].items():
        assert service["user"] == "65532:65532" and service["read_only"] and service["cap_drop"] == ["ALL"], name
        limits = service["deploy"]["resources"]["limits"]
        assert limits["memory"] and limits["pids"]
    server = STACK["services"]["server"]
    assert server["healthcheck"]["test"] == ["CMD", HEALTH] and "outside" not in server["networks"]
    assert STACK["networks"]["model"]["internal"]
    for service in ("server", "proxy"):
        assert [one["target"] for one in STACK["services"][service]["secrets"]] == ["/run/keys/api-key"]


def test_the_images_of_proxy_and_balancer_are_those_that_are_pinned() -> None:
    pins = read_pins(REPO_DIR / "versions.env")
    proxy, balancer = (f"{pins[f'{name}_IMAGE']}:{pins[f'{name}_TAG']}" for name in ("PROXY", "BALANCER"))
    services = STACK["services"]
    assert (services["proxy"]["image"], services["balancer"]["image"]) == (
        f"${{PROXY:-{proxy}}}", f"${{BALANCER:-{balancer}}}",
    )  # fmt: skip
    assert re.findall(r"image: (\S+)", (MANIFESTS / "base" / "front.yaml").read_text()) == [proxy, balancer]


def test_the_balancer_cuts_no_answer_that_the_proxy_would_wait_for() -> None:
    proxy = (REPO_DIR / "server" / "proxy" / "nginx.conf").read_text()
    longest = re.search(r"proxy_read_timeout (\d+s);", proxy)
    assert longest
    assert re.findall(r"timeout (?:client|server) +(\S+)", CONFIG) == [longest[1]] * 2


def test_the_balancer_tries_another_server_only_where_nothing_was_sent() -> None:
    assert re.findall(r"^ +retry-on (.*)$", CONFIG, re.MULTILINE) == ["conn-failure"]
    assert re.findall(r"^ +option redispatch (\d+)$", CONFIG, re.MULTILINE) == ["1"]


def test_the_balancer_knows_the_servers_by_the_names_that_both_give_them() -> None:
    names = re.findall(r'^ +server (\S+) "(\S+)\$\{SERVER_DOMAIN\}:8080"$', CONFIG, re.MULTILINE)
    assert names == [(f"server-{n}", f"server-{n}") for n in range(1, 17)]
    assert STACK["services"]["server"]["hostname"] == "server-{{.Task.Slot}}"
    assert "kind: StatefulSet\nmetadata:\n  name: server\n" in (MANIFESTS / "base" / "server.yaml").read_text()


def test_a_stop_waits_longer_than_the_answers_that_it_waits_for() -> None:
    drain = re.findall(r"\$\{DRAIN_(?:GRACE|SECONDS):-(\d+)", (DEPLOY / "swarm" / "stack.yaml").read_text())
    assert {int(one) for one in drain} == {120, 140}
    for file in ("server", "front"):
        text = (MANIFESTS / "base" / f"{file}.yaml").read_text()
        grace, wait = re.search(r"GracePeriodSeconds: (\d+)", text), re.search(r'DRAIN_TIMEOUT, value: "(\d+)"', text)
        assert grace and wait and int(grace[1]) >= int(wait[1]) + 15
    assert "    DRAIN_TIMEOUT" in (REPO_DIR / "server/image/entrypoint.sh").read_text().replace("#   ", "    ")
