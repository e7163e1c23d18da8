"""A Swarm of two nodes on this machine: two Docker daemons, each in a network namespace of its own. The bridge that
joins them is in a third, where the machine's own rules for packets (those of its Docker) do not count.

Nothing of the machine's own daemon is touched but its images, which are copied. All state lies in one folder; what was
started is stopped by its number.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import docker
from tests.docker.server import wait_for
from tests.together import StartedTogether

_BRIDGE: Final = "qyswarm0"  # the namespace, and the bridge in it
_NET: Final = "10.88.0"
_STARTS_WITHIN_S: Final = 60.0
NODES: Final = (1, 2)


class SwarmNodes(StartedTogether):
    """Two daemons that form a Swarm; gone at the end of the `with`. The first is its manager."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.clients: dict[int, Any] = {}

    def address(self, node: int) -> str:
        """Where this machine reaches the node."""
        return f"{_NET}.{10 + node}"

    def socket(self, node: int) -> str:
        """The address of its daemon."""
        return f"unix://{self._folder}/node{node}/docker.sock"

    def cut(self, node: int) -> None:
        """Pull its network cable."""
        _run("ip", "-n", _BRIDGE, "link", "set", f"qysw{node}", "down")

    def join(self, node: int) -> None:
        """Put it back."""
        _run("ip", "-n", _BRIDGE, "link", "set", f"qysw{node}", "up")

    def docker(self, *argv: str, node: int = 1, **variables: str) -> str:
        """`docker …` of a node: what it said."""
        environment = os.environ | {"DOCKER_HOST": self.socket(node)} | variables
        done = subprocess.run(
            ["docker", *argv], env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def copy_images(self, names: Sequence[str]) -> None:
        """Give both daemons these images of the machine's own."""
        archive = self._folder / "images.tar"
        _run("docker", "save", "--output", str(archive), *names)
        for node in NODES:
            self.docker("load", "--quiet", "--input", str(archive), node=node)
        archive.unlink()

    def containers(self, service: str) -> dict[str, Any]:
        """The running containers of a service on both nodes, by host name."""
        found = {}
        for client in self.clients.values():
            for one in client.containers.list(filters={"label": f"com.docker.swarm.service.name={service}"}):
                found[one.attrs["Config"]["Hostname"]] = one
        return found

    def logs(self) -> str:
        """The last lines of each daemon and container."""
        daemons = [(self._folder / f"node{node}" / "log").read_text()[-1500:] for node in NODES]
        containers = [one for client in self.clients.values() for one in client.containers.list(all=True)]
        said = [f"{one.name}: {one.logs(tail=8).decode(errors='replace')}" for one in containers]
        return "\n".join([self.docker("service", "ls"), *said, *daemons])

    def _start(self) -> None:
        _run("ip", "netns", "add", _BRIDGE)
        self._stack.callback(_run, "ip", "netns", "del", _BRIDGE)
        _run("ip", "-n", _BRIDGE, "link", "add", _BRIDGE, "type", "bridge")
        _run("ip", "-n", _BRIDGE, "link", "set", _BRIDGE, "up")
        _run("ip", "link", "add", "qysw0", "type", "veth", "peer", "name", "qysw0", "netns", _BRIDGE)
        _run("ip", "-n", _BRIDGE, "link", "set", "qysw0", "master", _BRIDGE, "up")
        _run("ip", "addr", "add", f"{_NET}.1/24", "dev", "qysw0")
        _run("ip", "link", "set", "qysw0", "up")
        for node in NODES:
            self._add_namespace(node)
            self._start_daemon(node)
        self.docker("swarm", "init", "--advertise-addr", self.address(1))
        token = self.docker("swarm", "join-token", "--quiet", "worker").strip()
        self.docker("swarm", "join", "--advertise-addr", self.address(2), "--token", token, self.address(1), node=2)

    def _add_namespace(self, node: int) -> None:
        name, cable = f"qyswarm{node}", f"qysw{node}"
        _run("ip", "netns", "add", name)
        self._stack.callback(_run, "ip", "netns", "del", name)
        _run("ip", "-n", _BRIDGE, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "-n", _BRIDGE, "link", "set", cable, "master", _BRIDGE, "up")
        for argv in (("link", "set", "lo", "up"), ("addr", "add", f"{self.address(node)}/24", "dev", "eth0"),
                     ("link", "set", "eth0", "up"), ("route", "add", "default", "via", f"{_NET}.1")):  # fmt: skip
            _run("ip", "-n", name, *argv)

    def _start_daemon(self, node: int) -> None:
        """A daemon with a containerd of its own, and mounts that go when it goes."""
        own = self._folder / f"node{node}"
        own.mkdir(parents=True)
        argv = [
            "nsenter", f"--net=/run/netns/qyswarm{node}", "--", "unshare", "--mount", "--propagation", "slave",
            "dockerd", "--config-file", str(own / "none.json"),
            "--data-root", str(own / "data"), "--exec-root", str(own / "exec"),
            "--pidfile", str(own / "pid"), "--host", self.socket(node),
        ]
        (own / "none.json").write_text("{}")
        with (own / "log").open("w") as log:
            daemon = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        self._stack.callback(shutil.rmtree, own, ignore_errors=True)
        self._stack.callback(_end, daemon)
        wait_for(lambda: self._answers(node), _STARTS_WITHIN_S, lambda: (own / "log").read_text()[-3000:])
        self._stack.callback(self._remove_containers, node)

    def _answers(self, node: int) -> bool:
        try:
            self.clients[node] = docker.DockerClient(base_url=self.socket(node), timeout=60)
            return bool(self.clients[node].ping())
        except (docker.errors.DockerException, OSError):
            return False

    def _remove_containers(self, node: int) -> None:
        """Leave the Swarm, and end what still runs: containers outlive a daemon that is killed."""
        self.docker("swarm", "leave", "--force", node=node)
        for one in self.clients[node].containers.list(all=True):
            one.remove(force=True, v=True)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(30)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
