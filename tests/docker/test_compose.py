"""compose.yaml as a user types it, in a copy of the project: what starts, what is answered, what is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from quantyard.engines.compose_project import compose_image_name
from quantyard.paths import REPO_DIR, read_pins
from tests.adapters import attention_pairs, write_adapter
from tests.conftest import run
from tests.docker.compose_project import CUDA, ENCODER_DECODER, MONITORING, Project, free_port
from tests.docker.server import HARDENED, wait_for

Compose = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[Project]:
    """A copy of the project, taken down at the end."""
    made = Project(tmp_path)
    yield made
    made.down()


@pytest.fixture
def project(copied: Project) -> Path:
    """Its folder."""
    return copied.folder


@pytest.fixture
def compose(copied: Project) -> Compose:
    """`docker compose …` in it."""
    return copied.compose


@pytest.fixture
def gguf(project: Path, demo_q4: Path) -> Path:
    """The demo's Q4_K_M, offered as the last build."""
    target = project / "artifacts" / "served" / demo_q4.name
    shutil.copy(demo_q4, target)
    return target


@pytest.fixture
def port() -> str:
    """A free port, for PORT."""
    return str(free_port())


def services(compose: Compose, *argv: str, **variables: str) -> dict[str, Any]:
    done = compose(*argv, "config", "--format", "json", **variables)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["services"])


MONITORED = {"keys", "server", "proxy", "prometheus", "prometheus-data"}


@pytest.mark.parametrize(("argv", "variables", "started", "image"), [
    ((), {}, {"keys", "server", "proxy"}, "quantyard/server:NAME"),
    (CUDA, {}, {"keys", "server", "proxy"}, "quantyard/server-cuda:NAME"),
    ((), {"COMPOSE_FILE": "compose.yaml:compose.cuda.yaml"}, {"keys", "server", "proxy"},
     "quantyard/server-cuda:NAME"),
    (ENCODER_DECODER, {}, {"keys", "server", "proxy"}, "quantyard/builder:NAME"),
    (MONITORING, {}, MONITORED, "quantyard/server:NAME"),
    (CUDA, {"COMPOSE_PROFILES": "monitoring"}, MONITORED,
     "quantyard/server-cuda:NAME"),
    (("--profile", "cpu"), {}, {"keys", "server", "proxy"}, "quantyard/server:NAME"),
    (("--profile", "cpu", *MONITORING), {}, MONITORED, "quantyard/server:NAME"),
])  # fmt: skip
def test_one_server_starts_without_a_file_env_and_monitoring_starts_what_it_monitors(
    docker_client: Any, compose: Compose, project: Path, argv: tuple[str, ...], variables: dict[str, str],
    started: set[str], image: str,
) -> None:  # fmt: skip
    assert not (project / ".env").exists()
    name = {"COMPOSE_PROJECT_NAME": "lagoon", "SERVER_IMAGE": "", "BUILDER_IMAGE": ""}
    found = services(compose, *argv, **variables, **name)
    assert set(found) == started and found["server"]["image"] == image.replace("NAME", "lagoon")


@pytest.mark.parametrize("how", ["option", "variable"])
@pytest.mark.parametrize("profile", ["cuda", "encoder-decoder"])
def test_a_profile_that_has_become_a_file_is_refused_with_the_command_before_anything_starts(
    docker_client: Any, compose: Compose, profile: str, how: str
) -> None:
    argv, given = (("--profile", profile), {}) if how == "option" else ((), {"COMPOSE_PROFILES": profile})
    done = compose(*argv, "up", **given)
    assert done.returncode != 0 and f"type: docker compose -f compose.yaml -f compose.{profile}.yaml up" in done.stderr
    assert not compose("ps", "--all", "--quiet").stdout


def test_the_gpu_is_reserved_for_the_cuda_server_alone(docker_client: Any, compose: Compose) -> None:
    cuda = services(compose, *CUDA)["server"]
    devices = cuda["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": -1, "capabilities": ["gpu"]}]
    assert cuda["environment"]["N_GPU_LAYERS"] == "999"
    assert "deploy" not in services(compose)["server"]


SERVERS = pytest.mark.parametrize("files", [(), CUDA, ENCODER_DECODER], ids=["cpu", "cuda", "encoder-decoder"])


@SERVERS
@pytest.mark.parametrize("service", ["server", "proxy", "keys", "prometheus", "prometheus-data"])
def test_every_service_is_hardened_as_the_tests_of_the_image_are(
    docker_client: Any, compose: Compose, service: str, files: tuple[str, ...]
) -> None:
    as_root = {"keys": ["CHOWN", "DAC_OVERRIDE"], "prometheus-data": ["CHOWN"]}
    found = services(compose, *files, *MONITORING)[service]
    for name in ("read_only", "cap_drop", "security_opt", "pids_limit"):
        assert found[name] == HARDENED[name] or (name, found[name]) == ("pids_limit", 2048)
    if service in as_root:
        assert found["network_mode"] == "none" and found["cap_add"] == as_root[service]
    else:
        assert found["user"] == HARDENED["user"] and "cap_add" not in found
        assert all(port["host_ip"] == "127.0.0.1" for port in found.get("ports", ()))


def test_what_compose_builds_on_is_what_versions_env_pins(docker_client: Any, compose: Compose) -> None:
    pins = read_pins(REPO_DIR / "versions.env")
    base = f"{pins['LLAMA_CPP_IMAGE']}:{pins['LLAMA_CPP_SERVER_TAG']}"
    found, cuda = services(compose, *MONITORING), services(compose, *CUDA)
    assert found["server"]["build"]["args"]["BASE"] == found["keys"]["build"]["args"]["BASE"] == base
    assert cuda["server"]["build"]["args"]["BASE"] == f"{base}-cuda"
    assert found["prometheus"]["image"] == f"{pins['PROMETHEUS_IMAGE']}:{pins['PROMETHEUS_TAG']}"
    assert found["proxy"]["image"] == f"{pins['PROXY_IMAGE']}:{pins['PROXY_TAG']}"


@SERVERS
def test_only_the_proxy_reaches_the_model_and_the_model_reaches_nobody(
    docker_client: Any, compose: Compose, files: tuple[str, ...]
) -> None:
    done = compose(*files, "config", "--format", "json", BIND_ADDRESS="0.0.0.0", PORT="8099")  # noqa: S104
    found = json.loads(done.stdout)
    assert found["networks"]["model"]["internal"] is True
    model = found["services"]["server"]
    assert set(model["networks"]) == {"model"} and "ports" not in model and model["restart"] == "unless-stopped"
    port = found["services"]["proxy"]["ports"][0]
    assert (port["host_ip"], port["published"], port["target"]) == ("0.0.0.0", "8099", 8080)  # noqa: S104


def test_every_variable_is_in_the_example_with_its_default() -> None:
    import re

    text = "".join(path.read_text() for path in REPO_DIR.glob("compose*.yaml"))
    used = dict(re.findall(r"\$\{([A-Z_]+):[-+]([^}]*)\}", text))
    shown = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (REPO_DIR / ".env.example").read_text(), re.MULTILINE))
    assert set(used) | {"COMPOSE_PROFILES", "COMPOSE_FILE", "COMPOSE_PROJECT_NAME"} == set(shown)
    for name, default in shown.items():
        if default and name != "COMPOSE_FILE":
            assert default in text


def test_up_answers_a_chat_with_the_key_it_made(
    server_image: str, compose: Compose, gguf: Path, project: Path, port: str
) -> None:
    done = compose("up", "--detach", "--wait", PORT=port)
    assert done.returncode == 0, done.stderr
    key_file = project / "artifacts" / "keys" / "api-key"
    assert key_file.stat().st_mode & 0o777 == 0o600 and key_file.stat().st_uid == os.getuid()
    key = key_file.read_text().strip()
    body = {"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 8}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    answer = requests.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60)
    assert answer.status_code == 200 and answer.json()["model"] == gguf.stem
    assert requests.post(url, json=body, timeout=60).status_code == 401

    # a key of one's own counts from the next start on, and the old one does not
    compose("stop", PORT=port)
    key_file.write_text("my-own-key\n")
    assert compose("up", "--detach", "--wait", PORT=port).returncode == 0
    assert requests.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60).status_code == 401
    answer = requests.post(url, json=body, headers={"Authorization": "Bearer my-own-key"}, timeout=60)
    assert answer.status_code == 200


def test_a_running_server_follows_what_serve_chose_and_the_name_of_before_is_not_found(
    server_image: str, compose: Compose, gguf: Path, project: Path, port: str
) -> None:
    (gguf.parent / ".note").write_text("Not served yet: other.gguf.\n")
    done = compose("up", "--detach", "--wait", PORT=port, API_KEY="off")
    assert done.returncode == 0, done.stderr
    assert "note: Not served yet: other.gguf." in compose("logs", "server").stdout
    shutil.move(gguf, gguf.with_name("other.gguf"))
    url = f"http://127.0.0.1:{port}/v1/completions"

    def status(name: str) -> int:
        return requests.post(url, json={"model": name, "prompt": "a", "max_tokens": 1}, timeout=60).status_code

    wait_for(lambda: status("other") == 200, 60)
    assert status(gguf.stem) == 404


def test_with_nothing_built_up_says_what_to_type(server_image: str, compose: Compose, port: str) -> None:
    compose("up", "--detach", PORT=port)
    wait_for(lambda: "make build MODEL=" in compose("logs", "server").stdout, 30)
    assert "no model has been built yet" in compose("logs", "server").stdout


def test_model_file_is_served_under_its_own_name(
    server_image: str, compose: Compose, gguf: Path, project: Path, port: str
) -> None:
    mine = project / "elsewhere" / "my-model.gguf"
    mine.parent.mkdir()
    shutil.move(gguf, mine)
    done = compose("up", "--detach", "--wait", MODEL_FILE=str(mine), PORT=port, API_KEY="off")
    assert done.returncode == 0, done.stderr
    models = requests.get(f"http://127.0.0.1:{port}/v1/models", timeout=20).json()
    assert [model["id"] for model in models["data"]] == ["my-model"]


def test_a_model_file_that_is_not_there_is_an_error_and_no_empty_folder(
    server_image: str, compose: Compose, project: Path, port: str
) -> None:
    done = compose("up", "--detach", MODEL_FILE="./typo.gguf", PORT=port)
    assert done.returncode != 0 and "typo.gguf" in done.stderr
    assert not (project / "typo.gguf").exists()


@pytest.fixture
def adapter(builder_image: str, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter that changes the demo model, as `make lora` makes it."""
    folder = tmp_path_factory.mktemp("adapter")
    written = write_adapter(folder / "strong", attention_pairs(30, 576, 192, b_scale=0.1))
    asked = {"ADAPTER": str(written), "BASE": str(demo_model), "ARTIFACTS": str(folder / "artifacts")}
    done = run("lora", JSON="1", ENGINE="docker", **asked)
    if "no convert_lora_to_gguf.py" in done.stderr:
        pytest.skip("the stand-in for the builder's base image has no convert_lora_to_gguf.py")
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["path"])


def ask_until_ready(url: str, body: dict[str, Any]) -> requests.Response:
    """The first answer that is not 503: a proxy that ran before needs up to a second to find a server made anew."""
    wait_for(lambda: requests.post(url, json=body | {"max_tokens": 1}, timeout=60).status_code != 503, 20)
    return requests.post(url, json=body, timeout=60)


def test_lora_file_changes_the_answers_of_the_model(
    server_image: str, compose: Compose, gguf: Path, adapter: Path, port: str
) -> None:
    body = {"prompt": "The capital of France is", "max_tokens": 24, "temperature": 0, "seed": 1}

    def answer(**variables: str) -> str:
        done = compose("up", "--detach", "--wait", PORT=port, API_KEY="off", **variables)
        assert done.returncode == 0, done.stderr + compose("logs", "server").stdout
        url = f"http://127.0.0.1:{port}/v1/completions"
        answer = ask_until_ready(url, body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    plain = answer()
    changed = answer(LORA_FILE=str(adapter))
    assert changed and changed != plain
    assert answer() == plain  # without the variable the adapter is gone


def test_a_port_that_is_taken_is_named(server_image: str, compose: Compose, gguf: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = compose("up", "--detach", PORT=port)
        assert done.returncode != 0 and port in done.stderr and "in use" in done.stderr


@pytest.mark.parametrize("address", ["::1", "[::1]", "::", "192.0.2.7"])
def test_it_is_published_at_an_address_of_either_kind(docker_client: Any, compose: Compose, address: str) -> None:
    port = services(compose, BIND_ADDRESS=address, PORT="8099")["proxy"]["ports"][0]
    assert (port["host_ip"], port["published"], port["target"]) == (address, "8099", 8080)


@pytest.mark.parametrize(("folder", "variables", "env_file", "name"), [
    ("one", {}, "", "one"), ("My Clone.2", {}, "", "myclone2"), ("_Über-yard_3", {}, "", "ber-yard_3"),
    ("four", {"COMPOSE_PROJECT_NAME": "given"}, "COMPOSE_PROJECT_NAME=unread\n", "given"),
    ("five", {}, "PORT=1\nCOMPOSE_PROJECT_NAME='written' # here\n", "written"),
    ("six", {}, "#COMPOSE_PROJECT_NAME=x\n", "six"),
])  # fmt: skip
def test_two_clones_have_containers_and_images_of_their_own(
    docker_client: Any, tmp_path: Path, folder: str, variables: dict[str, str], env_file: str, name: str
) -> None:
    """And what the program builds has the name that compose starts."""
    (tmp_path / folder).mkdir()
    Project(tmp_path / folder)
    (tmp_path / folder / ".env").write_text(env_file)
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}
    for image, files in (("server", ()), ("builder", ENCODER_DECODER)):
        argv = ["docker", "compose", *files, "config", "--format", "json"]
        done = subprocess.run(argv, cwd=tmp_path / folder, env=environment, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        assert found["name"] == name
        expected = compose_image_name(image, tmp_path / folder, environment)
        assert found["services"]["server"]["image"] == expected == f"quantyard/{image}:{name}"


@pytest.mark.slow
def test_the_loopback_of_ipv6_is_answered(
    server_image: str, compose: Compose, gguf: Path, project: Path, port: str
) -> None:
    assert compose("up", "--detach", "--wait", PORT=port, BIND_ADDRESS="::1").returncode == 0
    key = (project / "artifacts" / "keys" / "api-key").read_text().strip()
    url = f"http://[::1]:{port}/v1/models"
    assert requests.get(url, headers={"Authorization": f"Bearer {key}"}, timeout=20).status_code == 200


@pytest.mark.slow
def test_an_answer_ends_on_the_server_when_the_web_page_leaves_it(
    server_image: str, compose: Compose, gguf: Path, port: str
) -> None:
    assert compose("up", "--detach", "--wait", PORT=port, API_KEY="off").returncode == 0
    url = f"http://127.0.0.1:{port}"
    body = {"prompt": "One,", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    named = {"X-Conversation-Id": "what the page sends"}
    with requests.post(f"{url}/v1/completions", json=body, headers=named, stream=True, timeout=60) as answer:
        next(answer.iter_lines())
    ended = f'llamacpp:requests_processing{{model="{gguf.stem}"}} 0'
    wait_for(lambda: ended in requests.get(f"{url}/metrics", timeout=20).text.splitlines(), 10)
