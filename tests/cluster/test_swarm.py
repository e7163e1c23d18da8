"""deploy/swarm on a Swarm of two nodes: conversations stay on their machine, and a server or machine that is gone costs
what it was answering.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from quantyard.paths import REPO_DIR, read_pins
from tests.cluster.swarm_nodes import NODES, SwarmNodes
from tests.docker.server import KEY, wait_for
from tests.docker.several_servers import ServersTogether, events, prompt_tokens

pytestmark = [pytest.mark.slow, pytest.mark.alone]
BACK_WITHIN_S: Final = 60.0
STACK: Final = REPO_DIR / "deploy" / "swarm"


class SwarmServers(ServersTogether):
    """The stack on both nodes, seen through the proxy of one."""

    def __init__(self, nodes: SwarmNodes, node: int = 1) -> None:
        self.nodes = nodes
        self.url = f"http://{nodes.address(node)}:8080"
        self.servers = {f"server-{number}": None for number in NODES}

    def wait_for_owners(self, sessions: dict[str, str], within_s: float) -> None:
        """Until each server has its conversation at both balancers, which notice its return each by itself."""
        wait_for(
            lambda: all(self.server_of(session) == name for name, session in sessions.items() for _ in range(4)),
            within_s, self.nodes.logs,
        )  # fmt: skip


@pytest.fixture(scope="module")
def swarm(
    docker_client: Any, server_image: str, balancer_image: str, demo_q4: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SwarmServers]:  # fmt: skip
    if os.geteuid() != 0 or not shutil.which("dockerd"):
        pytest.skip("a second daemon needs root and dockerd on this machine")
    pins = read_pins(REPO_DIR / "versions.env")
    folder = tmp_path_factory.mktemp("swarm")
    model = folder / "model"
    model.mkdir()
    shutil.copy(demo_q4, model)
    model.chmod(0o755)
    (folder / "api-key").write_text(f"{KEY}\n")
    tag = f"quantyard/server:swarm-{folder.name}-{os.getpid()}"
    docker_client.images.get(server_image).tag(tag)
    try:
        with SwarmNodes(folder) as nodes:
            nodes.copy_images([tag, balancer_image, f"{pins['PROXY_IMAGE']}:{pins['PROXY_TAG']}"])
            nodes.docker("secret", "create", "quantyard-api-key", str(folder / "api-key"))
            stack = _stack_file(folder, MODEL_IMAGE=tag, BALANCER=balancer_image, MODEL_DEVICE=str(model))
            nodes.docker("stack", "deploy", "--detach=true", "--resolve-image", "never", "-c", str(stack), "quantyard")
            proxies = [SwarmServers(nodes, node) for node in NODES]
            wait_for(  # each proxy and balancer notices by itself
                lambda: all(one.who_answers() == set(one.servers) for one in proxies for _ in range(4)), 180, nodes.logs
            )
            yield proxies[0]
    finally:
        docker_client.images.remove(tag)
        shutil.rmtree(model)


def _stack_file(folder: Path, **variables: str) -> Path:
    """The stack as users deploy it, with the model in a folder. Ports are those of the nodes themselves: Swarm's own
    network for ports needs IPVS, which not every kernel has.
    """
    argv = ["docker", "stack", "config", "-c", str(STACK / "stack.yaml"), "-c", str(STACK / "stack.volume.yaml")]
    small = {"THREADS": "1", "CONTEXT_SIZE": "4096", "PARALLEL": "2", "CACHE_MIB": "256", "MEMORY": "2G"}
    done = subprocess.run(
        argv, env=os.environ | small | variables, cwd=STACK, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    stack = yaml.safe_load(done.stdout)
    proxy = stack["services"]["proxy"]
    proxy["ports"][0]["mode"], proxy["deploy"]["endpoint_mode"] = "host", "dnsrr"
    for config in stack["configs"].values():
        config["file"] = str((STACK / config["file"]).resolve())
    file = folder / "stack.yaml"
    file.write_text(yaml.safe_dump(stack))
    return file


def test_each_machine_has_a_server_and_a_conversation_stays_on_one(swarm: SwarmServers) -> None:
    found = [swarm.nodes.clients[node].containers.list(filters={"name": "quantyard_server"}) for node in NODES]
    assert [len(containers) for containers in found] == [1, 1]
    for number in range(2):
        texts, who = [f"Where is the book number {number}?"], set()
        for turn in range(3):
            answer = swarm.chat(texts)
            read, cached = prompt_tokens(answer)
            who.add(answer.headers["X-Served-By"])
            assert turn == 0 or read < cached, f"turn {turn}: {read} read, {cached} from memory"
            texts += [answer.json()["choices"][0]["message"]["content"], "And the next one?"]
        assert len(who) == 1
    assert {swarm.server_of(f"c{n}") for n in range(12)} == set(swarm.servers)


def test_both_proxies_send_a_conversation_to_the_same_server(swarm: SwarmServers) -> None:
    other = SwarmServers(swarm.nodes, 2)
    sessions = [f"p{n}" for n in range(12)]
    assert [swarm.server_of(one) for one in sessions] == [other.server_of(one) for one in sessions]


def test_the_containers_have_the_rights_that_the_stack_gives(swarm: SwarmServers) -> None:
    for service in ("server", "balancer", "proxy"):
        for container in swarm.nodes.containers(f"quantyard_{service}").values():
            host = container.attrs["HostConfig"]
            assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and container.attrs["Config"]["User"]
            assert host["Memory"] and host["PidsLimit"] and KEY not in str(container.attrs)


def test_a_killed_server_costs_what_it_was_answering_and_is_back_within_a_minute(swarm: SwarmServers) -> None:
    sessions = {name: swarm.session_of(name) for name in swarm.servers}
    (dead, lost), (alive, kept) = (swarm.stream(sessions[name], 600) for name in swarm.servers)
    swarm.nodes.containers("quantyard_server")[dead].kill()
    killed = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(swarm.post, "/tokenize", {"content": "1"}, {"X-Session-ID": f"k{n}"}) for n in range(32)]
    assert Counter(one.result().status_code for one in asked) == {200: 32}
    assert "[DONE]" not in events(lost)
    swarm.wait_for_owners(sessions, BACK_WITHIN_S - (time.monotonic() - killed))
    print(f"back after {time.monotonic() - killed:.0f} s")
    assert events(kept)[-1] == "[DONE]" and alive != dead


def test_a_machine_that_falls_silent_costs_its_conversations_seconds(swarm: SwarmServers) -> None:
    name = next(one.attrs["Config"]["Hostname"] for one in swarm.nodes.clients[2].containers.list(
        filters={"name": "quantyard_server"}
    ))  # fmt: skip
    session = swarm.session_of(name)
    swarm.nodes.cut(2)
    try:
        answers = [swarm.post("/tokenize", {"content": "1"}, {"X-Session-ID": session}) for _ in range(8)]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert all(answer.status_code == 503 and answer.headers["Retry-After"] for answer in refused)
        assert answers[-1].status_code == 200 and answers[-1].headers["X-Served-By"] != name
    finally:
        swarm.nodes.join(2)
    swarm.wait_for_owners({name: session}, BACK_WITHIN_S)
