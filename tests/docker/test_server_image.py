"""The server image on the real engine: what it answers, what it may do, and what it says when it cannot serve."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.docker.server import KEY, LIGHT, Served, server, wait_for

GGUF = "SmolLM2-135M-Instruct-Q4_K_M.gguf"


@pytest.fixture(scope="module")
def running(
    docker_client: Any, server_image: str, demo_q4: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with server(docker_client, server_image, demo_q4, tmp_path_factory.mktemp("key")) as served:
        served.wait_healthy()
        yield served


def test_a_chat_is_answered_with_the_key_and_under_the_files_name(running: Served) -> None:
    answer = running.chat()
    assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"]
    assert running.get("/v1/models").json()["data"][0]["id"] == GGUF.removesuffix(".gguf")


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/props", "/v1/chat/completions"])
@pytest.mark.parametrize("key", [None, "wrong", KEY + "x", ""])
def test_without_the_key_nothing_is_answered(running: Served, path: str, key: str | None) -> None:
    answer = running.post(path, {"prompt": "1"}, key) if "completions" in path else running.get(path, key)
    assert answer.status_code == 401, answer.text


def test_health_needs_no_key_and_metrics_are_on(running: Served) -> None:
    assert running.get("/health", None).json() == {"status": "ok"}
    assert "llamacpp:prompt_tokens_total" in running.get("/metrics").text


def test_what_others_ask_is_shown_to_nobody(running: Served) -> None:
    assert running.get("/slots").status_code in (403, 404, 501)


def test_no_other_site_may_read_an_answer_in_a_browser(running: Served) -> None:
    for answer in (
        running.get("/v1/models", headers={"Origin": "http://elsewhere.example"}),
        requests.options(
            running.address + "/v1/chat/completions", timeout=20,
            headers={"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"},
        ),
    ):
        assert answer.headers.get("Access-Control-Allow-Origin", "") == ""
        assert answer.headers.get("Access-Control-Allow-Credentials", "false") == "false"


def test_every_process_is_unprivileged_without_capabilities_and_cannot_gain_any(running: Served) -> None:
    code, text = running.run("sh", "-c", "cat /proc/[0-9]*/status")
    assert code == 0
    fields = [line.split(":\t", 1) for line in text.splitlines() if ":\t" in line]
    assert {value for name, value in fields if name == "Uid"} == {"65532\t65532\t65532\t65532"}
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert {int(value, 16) for key, value in fields if key == name} == {0}
    assert {value for name, value in fields if name == "NoNewPrivs"} == {"1"}


def test_only_the_temporary_folder_can_be_written_and_nothing_in_it_be_run(running: Served) -> None:
    folders = "/ /app /opt/quantyard/server /model /run /run/keys /etc /var /home /dev/shm /tmp"
    _, text = running.run("sh", "-c", f"for d in {folders}; do if touch $d/x 2>/dev/null; then echo $d; fi; done")
    assert text.split() == ["/dev/shm", "/tmp"]  # both in memory
    code, text = running.run("sh", "-c", "cp /bin/true /tmp/true && /tmp/true")
    assert code == 126, text


def test_one_port_is_open_and_it_is_the_published_one(running: Served) -> None:
    _, text = running.run("sh", "-c", "cat /proc/net/tcp /proc/net/tcp6")
    listening = {line.split()[1].rpartition(":")[2] for line in text.splitlines() if line.split()[3:4] == ["0A"]}
    listening = {port for port in listening if port}
    embedded_dns = {line.split()[1] for line in text.splitlines() if "0B00007F" in line}  # Docker's resolver
    ports = {int(port, 16) for port in listening if not any(entry.endswith(port) for entry in embedded_dns)}
    assert ports == {8080}


def test_the_key_is_on_no_command_line_and_in_no_environment(running: Served) -> None:
    code, text = running.run("sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n'")
    assert code == 0 and KEY not in text
    running.container.reload()
    assert KEY not in json.dumps(running.container.attrs) and KEY not in running.logs()


def test_what_was_left_open_is_decided_with_its_reason(docker_client: Any, server_image: str, demo_q4: Path,
                                                      tmp_path: Path) -> None:
    environment = dict.fromkeys(LIGHT, "")
    with server(docker_client, server_image, demo_q4, tmp_path, environment=environment, nano_cpus=10**9) as served:
        served.wait_healthy()
        said = served.logs()
        assert "THREADS=1: " in said  # a share of one core, whatever the machine has
        assert "PARALLEL=4: " in said and "CONTEXT_SIZE=32768: " in said  # 4 x 8192 is what it was trained on


def test_the_context_follows_the_memory_limit(docker_client: Any, server_image: str, demo_q4: Path,
                                              tmp_path: Path) -> None:
    environment = dict.fromkeys(LIGHT, "") | {"THREADS": "1"}
    limits = {"mem_limit": "600m", "memswap_limit": "600m"}
    with server(docker_client, server_image, demo_q4, tmp_path, environment=environment, **limits) as served:
        served.wait_healthy()
        line = next(line for line in served.logs().splitlines() if "CONTEXT_SIZE=" in line)
        tokens = int(line.partition("CONTEXT_SIZE=")[2].partition(":")[0])
        # 30 layers x 3 heads x 64 x (K and V) x 2 bytes: 23,040 bytes a token; half of what the file leaves
        assert tokens == (600 * 2**20 - demo_q4.stat().st_size) // 2 // 23_040


def test_the_healthcheck_follows_the_port(docker_client: Any, server_image: str, demo_q4: Path,
                                          tmp_path: Path) -> None:
    with server(docker_client, server_image, demo_q4, tmp_path, environment={"PORT": "9123"}) as served:
        served.wait_healthy()
        assert served.chat().status_code == 200


def test_it_is_not_healthy_before_a_model_has_answered(docker_client: Any, server_image: str, demo_q4: Path,
                                                       tmp_path: Path) -> None:
    with server(docker_client, server_image, demo_q4, tmp_path) as served:
        wait_for(lambda: "listening on" in served.logs(), 60, served.logs)
        assert served.health() == "starting" or "n_tokens = 1" in served.logs()
        served.wait_healthy()
        assert served.run("ls", "/tmp/answered")[0] == 0


def test_a_stop_is_graceful_and_quick(docker_client: Any, server_image: str, demo_q4: Path, tmp_path: Path) -> None:
    import time

    with server(docker_client, server_image, demo_q4, tmp_path) as served:
        served.wait_healthy()
        started = time.monotonic()
        served.container.stop(timeout=20)
        assert served.wait_ended() == 0
        assert time.monotonic() - started < 8
        assert "error" not in served.logs()


def test_several_files_are_served_by_name(docker_client: Any, server_image: str, demo_q4: Path,
                                          tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("first", "second"):
        shutil.copy(demo_q4, folder / f"{name}.gguf")
    with server(docker_client, server_image, folder, tmp_path) as served:
        served.wait_healthy()
        assert [model["id"] for model in served.get("/v1/models").json()["data"]] == ["first", "second"]
        for name in ("first", "second"):
            assert served.chat(model=name).json()["model"] == name
        assert served.chat(model="third").status_code in (400, 404)
        assert served.chat(model="first", key=None).status_code == 401


def test_without_a_key_file_one_is_made_for_this_container(
    docker_client: Any, server_image: str, demo_q4: Path
) -> None:
    environment = LIGHT | {"MODEL": "/model/m.gguf"}
    container = docker_client.containers.run(
        server_image, detach=True, environment=environment, ports={"8080/tcp": ("127.0.0.1", None)},
        volumes={str(demo_q4): {"bind": "/model/m.gguf", "mode": "ro"}},
    )
    try:
        served = Served(container, 8080)
        served.wait_healthy()
        code, key = served.run("sh", "-c", "cat /tmp/api-key; stat -c %a /tmp/api-key")
        key, mode = key.split()
        assert code == 0 and mode == "600" and key not in served.logs()
        assert served.chat(key=None).status_code == 401 and served.chat(key=key).status_code == 200
    finally:
        container.remove(force=True)


@pytest.mark.parametrize(
    ("bind", "code"),
    [("127.0.0.1", None), ("0.0.0.0", 2), ("192.168.1.7", 2)],  # noqa: S104
)
def test_no_key_is_for_the_loopback_interface_alone(
    docker_client: Any, server_image: str, demo_q4: Path, tmp_path: Path,
    bind: str, code: int | None,
) -> None:
    environment = {"API_KEY": "off", "BIND_ADDRESS": bind}
    with server(docker_client, server_image, demo_q4, tmp_path, environment=environment) as served:
        if code is None:
            served.wait_healthy()
            assert served.chat(key=None).status_code == 200
            return
        assert served.wait_ended() == code
        assert f"API_KEY=off with BIND_ADDRESS={bind} would let anyone in" in served.logs()


@pytest.mark.parametrize(("bind", "shown"), [("127.0.0.1", True), ("0.0.0.0", False)])  # noqa: S104
def test_the_web_page_is_for_the_loopback_interface_alone(
    docker_client: Any, server_image: str, demo_q4: Path, tmp_path: Path, bind: str, shown: bool
) -> None:
    with server(docker_client, server_image, demo_q4, tmp_path, environment={"BIND_ADDRESS": bind}) as served:
        served.wait_healthy()
        assert ("--no-ui" not in served.logs()) == shown


# ---- faults -------------------------------------------------------------------------------------------------


def _ends(served: Served, code: int | None, *words: str) -> None:
    found, said = served.wait_ended(), served.logs()
    assert (found == code if code is not None else found != 0), said
    assert all(word in said for word in words), said


def test_nothing_to_serve_says_what_to_type(docker_client: Any, server_image: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with server(docker_client, server_image, tmp_path / "empty", tmp_path) as served:
        _ends(served, 2, "no model has been built yet", "make build MODEL=", "MODEL_FILE=")


def test_a_model_that_is_not_there_is_named(docker_client: Any, server_image: str, tmp_path: Path) -> None:
    with server(docker_client, server_image, None, tmp_path, environment={"MODEL": "/model/gone.gguf"}) as served:
        _ends(served, 2, "/model/gone.gguf is not there")


def test_a_file_that_is_no_gguf_is_refused_with_its_first_bytes(docker_client: Any, server_image: str,
                                                               tmp_path: Path) -> None:
    path = tmp_path / "zip.gguf"
    path.write_bytes(b"PK\x03\x04" + b"\0" * 1000)
    with server(docker_client, server_image, path, tmp_path) as served:
        _ends(served, 2, "is not a GGUF, but begins with: 50 4b 03 04")


def test_a_truncated_file_ends_with_a_reason_and_what_to_compare(docker_client: Any, server_image: str,
                                                                demo_q4: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    shutil.copy(demo_q4, path)
    os.truncate(path, 60_000_000)
    with server(docker_client, server_image, path, tmp_path) as served:
        _ends(served, None, "corrupted or incomplete", "compare its SHA-256 with manifest.json")


def test_an_unreadable_model_is_named_with_the_user(docker_client: Any, server_image: str, demo_q4: Path,
                                                    tmp_path: Path) -> None:
    path = tmp_path / "private.gguf"
    shutil.copy(demo_q4, path)
    path.chmod(0o600)
    with server(docker_client, server_image, path, tmp_path) as served:
        _ends(served, 2, "cannot be read by user 65532", "chmod a+r")


@pytest.mark.parametrize(("content", "mode", "says"), [
    ("k", 0o000, "cannot be read by user 65532"), ("", 0o444, "is empty"), ("  \n", 0o444, "is empty"),
])  # fmt: skip
def test_a_key_file_that_is_no_use_is_refused(
    docker_client: Any, server_image: str, demo_q4: Path, tmp_path: Path, content: str, mode: int, says: str
) -> None:
    key_file = tmp_path / "api-key"
    key_file.write_text(content)
    key_file.chmod(mode)
    with server(docker_client, server_image, demo_q4, tmp_path) as served:
        _ends(served, 2, "/run/keys/api-key", says)


@pytest.mark.parametrize("variable", ["PORT", "CONTEXT_SIZE", "PARALLEL", "THREADS", "CACHE_MIB"])
def test_a_setting_that_is_no_number_is_refused(
    docker_client: Any, server_image: str, demo_q4: Path, tmp_path: Path, variable: str
) -> None:
    environment = {variable: "12; id"}
    inside = {"ports": {}} if variable == "PORT" else {}
    container = docker_client.containers.run(
        server_image, detach=True, environment=LIGHT | environment,
        volumes={str(demo_q4): {"bind": "/model/m.gguf", "mode": "ro"}}, **inside,
    )
    try:
        assert container.wait(timeout=30)["StatusCode"] == 2
        assert f"{variable}=12; id is not a whole number" in container.logs().decode()
    finally:
        container.remove(force=True)


def test_too_little_memory_is_said_and_has_its_own_exit_code(docker_client: Any, server_image: str, demo_q4: Path,
                                                            tmp_path: Path) -> None:
    limits = {"mem_limit": "100m", "memswap_limit": "100m"}
    environment = {"CONTEXT_SIZE": "32768", "LLAMA_ARG_LOAD_MODE": "none"}
    with server(docker_client, server_image, demo_q4, tmp_path, environment=environment, **limits) as served:
        _ends(served, 5, "memory ran out", "MEMORY=")


def test_a_server_killed_in_mid_stream_ends_the_answer_and_comes_back(docker_client: Any, server_image: str,
                                                                     demo_q4: Path, tmp_path: Path) -> None:
    restart = {"Name": "on-failure", "MaximumRetryCount": 3}
    with server(docker_client, server_image, demo_q4, tmp_path, restart_policy=restart) as served:
        served.wait_healthy()
        body = {"prompt": "One, two,", "max_tokens": 1500, "stream": True, "ignore_eos": True}
        stream = served.post("/v1/completions", body, stream=True)
        lines = stream.iter_lines()
        next(lines)
        kill = "kill -KILL $(grep -l llama-server /proc/[0-9]*/comm | cut -d/ -f3)"
        threading.Timer(0.3, lambda: served.run("sh", "-c", kill)).start()
        seen = []
        with pytest.raises(requests.exceptions.RequestException):
            seen.extend(lines)
        assert not any(b"[DONE]" in line for line in seen)
        wait_for(lambda: served.logs().count("listening on") == 2, 60, served.logs)
        wait_for(lambda: served.chat().status_code == 200, 60, served.logs)


def test_a_file_swapped_while_it_is_served_changes_nothing_until_a_restart(docker_client: Any, server_image: str,
                                                                          demo_q4: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(demo_q4, folder / "m.gguf")
    with server(docker_client, server_image, folder, tmp_path) as served:
        served.wait_healthy()
        before = served.chat().json()["choices"][0]["message"]["content"]
        (folder / "new").write_bytes(b"no model")
        (folder / "new").rename(folder / "m.gguf")
        assert served.chat().json()["choices"][0]["message"]["content"] == before
        served.container.restart(timeout=10)
        _ends(served, 2, "is not a GGUF")
        shutil.copy(demo_q4, folder / "m.gguf")
        served.container.start()
        served.wait_healthy()
        assert served.chat().json()["choices"][0]["message"]["content"] == before
