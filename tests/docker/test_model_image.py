"""`make image` on the real engine, pushed to a real registry."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantyard.paths import REPO_DIR
from tests.conftest import run
from tests.docker.compose_project import free_port
from tests.docker.registry import Registry, registry, registry_program
from tests.docker.server import Served, wait_for

TOKEN = "hf_thisIsNoRealToken123"


@pytest.fixture(scope="module")
def local_registry(docker_client: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    if registry_program() is None:
        if os.environ.get("REQUIRE_DOCKER") == "1":
            pytest.fail("REQUIRE_DOCKER=1, but there is no docker-registry. Type: apt-get install docker-registry")
        pytest.skip("no docker-registry here: apt-get install docker-registry")
    with registry(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture(scope="module")
def made(
    docker_client: Any, server_image: str, demo_model: Path, local_registry: Registry
) -> Iterator[subprocess.CompletedProcess[str]]:
    """What `make image` said when it made the demo's Q4_K_M, and pushed it; made with a token around."""
    given = {"MODEL": str(demo_model), "QUANT": "Q4_K_M", "PORT": str(free_port()), "ENGINE": "docker"}
    tag = f"{local_registry.address}/team/smol:q4"
    done = run("image", **given, TAG=tag, PUSH="1", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == tag
    yield done
    docker_client.images.remove(tag, force=True)


@pytest.fixture(scope="module")
def pushed(made: subprocess.CompletedProcess[str], local_registry: Registry) -> tuple[str, Registry]:
    """The image's tag, and where it was pushed."""
    return made.stdout.strip(), local_registry


def _layers(store: Registry) -> list[dict[str, Any]]:
    return list(store.manifest("team/smol", "q4")["layers"])


def test_the_last_layer_holds_the_gguf_and_nothing_else(pushed: tuple[str, Registry], demo_q4: Path) -> None:
    _tag, store = pushed
    layer = store.blob("team/smol", _layers(store)[-1]["digest"])
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        files = {member.name: member for member in archive if member.isfile()}
        (member,) = files.values()
        assert member.name == "model/SmolLM2-135M-Instruct-Q4_K_M.gguf" and member.mtime == 0
        content = archive.extractfile(member)
        assert content is not None
        inside = hashlib.sha256(content.read()).hexdigest()
    assert inside == hashlib.sha256(demo_q4.read_bytes()).hexdigest()


def test_the_labels_say_where_it_came_from(pushed: tuple[str, Registry]) -> None:
    _tag, store = pushed
    config = json.loads(store.blob("team/smol", store.manifest("team/smol", "q4")["config"]["digest"]))
    labels = config["config"]["Labels"]
    manifest = json.loads(next((REPO_DIR / "artifacts/local/SmolLM2-135M-Instruct").glob(
        f"{labels['org.opencontainers.image.revision'][:12]}/manifest.json")).read_text())
    assert labels["org.opencontainers.image.revision"] == manifest["source"]["commit"]
    assert labels["quantyard.gguf.sha256"] == manifest["quants"]["Q4_K_M"]["sha256"]
    assert labels["quantyard.quant"] == "Q4_K_M"
    assert "org.opencontainers.image.licenses" in labels and "org.opencontainers.image.source" in labels
    assert str(REPO_DIR) not in json.dumps(config), "a path of the machine that built it"


def test_the_image_is_base_and_gguf_and_less_than_five_megabytes(
    pushed: tuple[str, Registry], docker_client: Any, demo_q4: Path
) -> None:
    tag, _store = pushed
    image = docker_client.images.get(tag)
    base = docker_client.images.get(image.labels["org.opencontainers.image.base.name"])
    assert image.attrs["Size"] - base.attrs["Size"] - demo_q4.stat().st_size < 5_000_000


def test_the_command_at_its_end_starts_it_and_the_next_one_shows_its_key(
    made: subprocess.CompletedProcess[str], docker_client: Any
) -> None:
    start, show_key = (line.strip() for line in made.stderr.splitlines() if line.startswith("  docker "))
    assert start.endswith(f" {made.stdout.strip()}") and "-p 127.0.0.1:" in start
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(["sh", "-c", f"exec {start}"], **quiet) as running:
        try:
            name = start.partition("--name ")[2].split()[0]
            wait_for(lambda: running.poll() is not None or docker_client.containers.list(filters={"name": name}), 60)
            served = Served(docker_client.containers.get(name), 8080)
            served.wait_healthy()
            key = subprocess.run(["sh", "-c", show_key], capture_output=True, text=True, check=True).stdout.strip()
            assert served.chat(key=key).status_code == 200 and served.chat(key="another").status_code == 401
        finally:
            subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)


def test_the_token_is_in_no_layer_no_history_and_no_setting(pushed: tuple[str, Registry], docker_client: Any) -> None:
    tag, _store = pushed
    assert TOKEN not in json.dumps(docker_client.images.get(tag).attrs)
    assert TOKEN not in json.dumps(docker_client.images.get(tag).history())
    saved = subprocess.Popen(["docker", "save", tag], stdout=subprocess.PIPE)
    assert saved.stdout is not None
    needle, tail = TOKEN.encode(), b""
    while block := saved.stdout.read(1 << 20):
        assert needle not in tail + block
        tail = block[-len(needle) :]
    assert saved.wait() == 0


def test_new_server_settings_send_no_model_bytes_again(
    pushed: tuple[str, Registry], docker_client: Any, demo_q4: Path, tmp_path: Path
) -> None:
    tag, store = pushed
    before = _layers(store)
    assert store.uploaded(before[-1]["digest"]) == 1
    project = tmp_path / "project"
    for name in ("docker", "server", "versions.env", ".dockerignore"):
        copy = shutil.copytree if (REPO_DIR / name).is_dir() else shutil.copy
        project.mkdir(exist_ok=True)
        copy(REPO_DIR / name, project / name)
    with (project / "server" / "image" / "entrypoint.sh").open("a") as script:
        script.write("# another release of the server\n")
    gguf = project / "gguf"
    gguf.mkdir()
    shutil.copyfile(demo_q4, gguf / "model.gguf")  # with a time of its own
    env = os.environ | {
        "BASE": docker_client.images.get(tag).labels["org.opencontainers.image.base.name"], "GGUF": str(gguf),
        "MODEL_NAME": "SmolLM2-135M-Instruct-Q4_K_M", "MODEL_TAG": tag,
    }
    argv = ["docker", "buildx", "bake", "--file", "docker/docker-bake.hcl", "--load", "--no-cache", "served-model"]
    subprocess.run(argv, cwd=project, env=env, check=True, capture_output=True)
    subprocess.run(["docker", "push", tag], check=True, capture_output=True)
    after = _layers(store)
    assert [layer["digest"] for layer in after] != [layer["digest"] for layer in before]
    assert after[-1]["digest"] == before[-1]["digest"]
    assert store.uploaded(before[-1]["digest"]) == 1


@pytest.mark.parametrize(("tag", "says"), [("", "TAG is not given"), ("Bad Name", "TAG=Bad Name is not the name")])
def test_a_name_that_no_image_can_have_is_refused_before_anything_is_built(tag: str, says: str) -> None:
    done = run("image", MODEL="no/where", TAG=tag)
    assert done.returncode == 2 and says in done.stderr and "TAG=registry.example/team/model:q4" in done.stderr


@pytest.mark.parametrize(("address", "says"), [("127.0.0.1:9", "refused"), ("registry.invalid", "registry.invalid")])
def test_a_registry_that_does_not_answer_is_an_error_with_its_words(
    demo_model: Path, address: str, says: str
) -> None:
    done = run("image", MODEL=str(demo_model), QUANT="Q4_K_M", TAG=f"{address}/team/smol:q4", PUSH="1", ENGINE="docker")
    assert done.returncode == 6 and "could not be pushed" in done.stderr and says in done.stderr
