"""Pods as real containers: a stand-in of Kubernetes' API whose Jobs the Docker daemon runs, as closed as the manifests
ask. It stands for the kubelet; volumes of Secrets are folders of the test.
"""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.unit.kube_api_server import KubeServer
from tests.unit.test_kubernetes import DONE, FAILED, a_node, ended

_NETWORKS = {"none": "none", "store": "host", "open": "host"}  # the store of the test is on this machine


class DockerPods:
    """Runs the pod of each Job as a container of `image`.

    Args:
        secrets: Secret → a folder with its files.
    """

    def __init__(self, server: KubeServer, image: str, folder: Path, secrets: dict[str, Path]) -> None:
        self.server, self.image, self.folder, self.secrets = server, image, folder, secrets
        self.argvs: list[list[str]] = []
        self.said: list[str] = []
        server.add("nodes", a_node("n1", "3", "8Gi"))
        server.on_job = self.start

    def start(self, job: dict[str, Any]) -> None:
        pod = self.server.add_pod(job, {"phase": "Running"}, "n1")
        threading.Thread(target=self.run, args=(job, pod), daemon=True).start()

    def run(self, job: dict[str, Any], pod: dict[str, Any]) -> None:
        argv = self.argv(job, pod)
        self.argvs.append(argv)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
        self.said.append(done.stdout + done.stderr)
        pod["status"] = {"phase": "Failed" if done.returncode else "Succeeded"} | ended(done.returncode)
        job["status"] = FAILED["status"] if done.returncode else DONE["status"]

    def argv(self, job: dict[str, Any], pod: dict[str, Any]) -> list[str]:
        """What the kubelet would ask of its runtime."""
        spec, [container] = pod["spec"], pod["spec"]["containers"]
        own, closed, limits = spec["securityContext"], container["securityContext"], container["resources"]["limits"]
        network = _NETWORKS[pod["metadata"]["labels"]["quantyard/network"]]
        return [
            "docker", "run", "--rm", "--name", pod["metadata"]["name"], f"--network={network}",
            f"--user={own['runAsUser']}:{own['runAsGroup']}", *(["--read-only"] * closed["readOnlyRootFilesystem"]),
            *(f"--cap-drop={name}" for name in closed["capabilities"]["drop"]),
            *(["--security-opt=no-new-privileges"] * (not closed["allowPrivilegeEscalation"])),
            f"--cpus={limits['cpu']}", f"--memory={limits['memory']}",
            *self._volumes(spec, container), *self._variables(job, spec, container), self.image,
            *container["command"], *container["args"],
        ]  # fmt: skip

    def _volumes(self, spec: dict[str, Any], container: dict[str, Any]) -> list[str]:
        kinds, options = {volume["name"]: volume for volume in spec["volumes"]}, []
        for mount in container["volumeMounts"]:
            volume = kinds[mount["name"]]
            if "secret" in volume:
                options.append(f"--volume={self.secrets[volume['secret']['secretName']]}:{mount['mountPath']}:ro")
            else:
                assert "emptyDir" in volume
                options.append(f"--mount=type=volume,target={mount['mountPath']}")
        return options

    def _variables(self, job: dict[str, Any], spec: dict[str, Any], container: dict[str, Any]) -> list[str]:
        fields = {
            "spec.nodeName": spec["nodeName"],
            "metadata.labels['batch.kubernetes.io/job-name']": job["metadata"]["name"],
            "metadata.labels['batch.kubernetes.io/controller-uid']": job["metadata"]["uid"],
        }
        made: dict[str, str] = {}
        for row in container["env"]:
            text = row["value"] if "value" in row else fields[row["valueFrom"]["fieldRef"]["fieldPath"]]
            for name, value in made.items():
                text = text.replace(f"$({name})", value)
            made[row["name"]] = text
        return [f"--env={name}={value}" for name, value in made.items()]
