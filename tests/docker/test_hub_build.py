"""Builds from a Hub: a small one on the address of Docker's bridge, which this machine and its containers reach."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.conftest import run, run_json, start
from tests.docker.containers import stops
from tests.hub_server import HubServer

REPO = "quantyard/tiny"
SLOW_BYTES_PER_S = 1_000_000
# What no build needs: other forms of the same weights, pictures, the state of a training.
NOT_NEEDED = ("pytorch_model.bin", "onnx/model.onnx", "picture.png", "flax_model.msgpack", "optimizer.pt", "train.py")
SIDE = {"README.md": b"---\nlicense: apache-2.0\n---\n# Tiny\n", "LICENSE": b"Apache License 2.0\n"}
WaitFor = Callable[[str, Path], Any]


@pytest.fixture(scope="module")
def bridge(docker_client: Any) -> str:
    """This machine's address on the network that containers get by default."""
    config = docker_client.networks.get("bridge").attrs["IPAM"]["Config"]
    gateways = [entry["Gateway"] for entry in config if ":" not in entry.get("Gateway", ":")]
    if not gateways:
        pytest.skip("the network `bridge` names no gateway")
    return str(gateways[0])


@pytest.fixture
def hub(bridge: str) -> Iterator[HubServer]:
    """An empty Hub that containers can reach."""
    try:
        server = HubServer(bridge)
    except OSError as error:  # the daemon runs in a virtual machine, and its bridge is not ours
        pytest.skip(f"{bridge} is no address of this machine: {error}")
    with server:
        yield server


@pytest.fixture
def private_repo(hub: HubServer, tiny_model: Path) -> HubServer:
    """The Hub with the tiny model in a private repo, among much that no build needs."""
    ballast = dict.fromkeys(NOT_NEEDED, b"not needed " * 1000)
    hub.add_repo(REPO, files={**ballast, **SIDE}, folder=tiny_model, private=True, license="apache-2.0")
    return hub


def _asked(hub: HubServer, artifacts: Path, **variables: str) -> dict[str, str]:
    """The variables of a build from this Hub: its owner's token, and no proxy in between."""
    given = {"MODEL": REPO, "QUANT": "Q8_0", "ENGINE": "docker", "ARTIFACTS": str(artifacts), "HF_TOKEN": hub.token}
    direct = {"HF_ENDPOINT": hub.endpoint, "NO_PROXY": hub.host, "no_proxy": hub.host}
    return {**given, **direct, **variables}


def _manifest(artifacts: Path) -> dict[str, Any]:
    value = json.loads(next(artifacts.rglob("manifest.json")).read_text())
    assert isinstance(value, dict)
    return value


def _files_asked_for(hub: HubServer) -> set[str]:
    """Names of the files that somebody asked the Hub for."""
    return {unquote(r.path.partition("/resolve/")[2].partition("/")[2]) for r in hub.requests if "/resolve/" in r.path}


def test_a_private_repo_becomes_a_verified_file_at_its_commit(
    private_repo: HubServer, builder_image: str, tmp_path: Path
) -> None:
    commit = private_repo.repos[REPO].commit
    made = run_json("build", **_asked(private_repo, tmp_path))
    assert made["ran"] == ["fetch", "convert", "quantize Q8_0", "verify Q8_0"] and made["commit"] == commit
    path = Path(made["files"][0]["path"])
    assert path == tmp_path / "quantyard" / "tiny" / commit[:12] / "tiny-Q8_0.gguf" and path.is_file()
    source = _manifest(tmp_path)["source"]
    assert (source["repo_id"], source["revision"], source["commit"]) == (REPO, "main", commit)
    assert source["license"] == "apache-2.0"


def test_only_what_a_build_needs_is_asked_for(
    private_repo: HubServer, builder_image: str, tiny_model: Path, tmp_path: Path
) -> None:
    made = run_json("build", **_asked(private_repo, tmp_path))
    needed = {path.name for path in tiny_model.iterdir()} | SIDE.keys()
    assert _files_asked_for(private_repo) == needed
    fetched = next(tmp_path.rglob("stages/fetch-*/files"))
    assert {p.relative_to(fetched).as_posix() for p in fetched.rglob("*") if p.is_file()} == needed
    assert (fetched / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    private_repo.heal()
    again = run_json("build", **_asked(private_repo, tmp_path))
    assert again["ran"] == [] and again["files"] == made["files"]
    assert not any(r.on_cdn and r.range is None for r in private_repo.requests), "a finished download is not repeated"


def test_the_token_reaches_fetch_through_its_stdin_and_is_in_no_file_or_description(
    private_repo: HubServer, builder_image: str, tmp_path: Path, stage_container: WaitFor
) -> None:
    private_repo.fail("model.safetensors", times=None, bytes_per_s=3 * SLOW_BYTES_PER_S)
    proxy = {"HTTPS_PROXY": "http://me:password-of-a-proxy@proxy.example:3128"}
    process = start("build", **_asked(private_repo, tmp_path, **proxy))
    inspected = stage_container("fetch", tmp_path).attrs
    assert "password-of-a-proxy" not in json.dumps(inspected)
    assert not any("HF_TOKEN" in mount["Destination"] for mount in inspected["Mounts"])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert private_repo.token not in json.dumps(inspected) + out + err
    assert not _holds(tmp_path, private_repo.token)
    assert not any(r.authorized for r in private_repo.requests if r.on_cdn), "the token went to the CDN"


def _holds(folder: Path, text: str) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]


def test_fetch_has_a_network_and_no_other_stage_has(
    private_repo: HubServer, builder_image: str, tmp_path: Path, stage_container: WaitFor
) -> None:
    private_repo.fail("model.safetensors", times=None, bytes_per_s=3 * SLOW_BYTES_PER_S)
    process = start("build", **_asked(private_repo, tmp_path, NO_PROXY=f"127.0.0.1,localhost,{private_repo.host}"))
    containers = {name: stage_container(name, tmp_path) for name in ("fetch", "convert")}
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    networks = {name: container.attrs["HostConfig"]["NetworkMode"] for name, container in containers.items()}
    assert networks == {"fetch": "bridge", "convert": "none"}


def test_a_hub_on_the_loopback_interface_is_reached_through_the_hosts_network(
    tiny_model: Path, builder_image: str, tmp_path: Path, stage_container: WaitFor
) -> None:
    with HubServer() as hub:
        hub.add_repo(REPO, folder=tiny_model)
        hub.fail("model.safetensors", times=None, bytes_per_s=3 * SLOW_BYTES_PER_S)
        process = start("build", **_asked(hub, tmp_path))
        network = stage_container("fetch", tmp_path).attrs["HostConfig"]["NetworkMode"]
        _out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert network == "host" and hub.host == "127.0.0.1"


def test_a_download_that_was_killed_goes_on_where_it_stopped(
    private_repo: HubServer, builder_image: str, tmp_path: Path, stage_container: WaitFor
) -> None:
    private_repo.fail("model.safetensors", times=None, bytes_per_s=SLOW_BYTES_PER_S)
    process = start("build", **_asked(private_repo, tmp_path))
    container = stage_container("fetch", tmp_path)
    part = _wait_for_part(tmp_path, 2_000_000, process)
    process.kill()
    process.communicate(timeout=30)
    assert stops(container), "the container goes on although nobody waits for it"
    kept = part.stat().st_size
    assert kept >= 2_000_000 and not list(tmp_path.rglob("stages/fetch-*"))
    private_repo.heal()
    made = run_json("build", **_asked(private_repo, tmp_path))
    assert made["ran"][0] == "fetch" and Path(made["files"][0]["path"]).is_file()
    asked = [r.range for r in private_repo.bodies("model.safetensors") if r.range]
    ranges = [given for given in asked if not given.startswith("bytes=0-")]  # the plan reads the header
    size_bytes = private_repo.repos[REPO].files["model.safetensors"].size_bytes
    assert ranges == [f"bytes={kept}-{size_bytes - 1}"]
    facts = _manifest(tmp_path)["stages"]["fetch"]["facts"]
    assert facts["resumed_bytes"] >= kept and facts["downloaded_bytes"] < size_bytes


def _wait_for_part(artifacts: Path, size_bytes: int, process: subprocess.Popen[str]) -> Path:
    """The file being downloaded, once so much of it is on disk."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for part in artifacts.rglob("stages/.fetch-*/out/files/.partial/model.safetensors"):
            if part.stat().st_size >= size_bytes:
                return part
        time.sleep(0.02)
    raise AssertionError("the download did not come that far")


def test_a_download_whose_line_breaks_resumes_by_itself(
    private_repo: HubServer, builder_image: str, tmp_path: Path
) -> None:
    header_reads = 1  # the plan reads the header first
    private_repo.fail("model.safetensors", times=header_reads + 1, truncate_after=1_500_000)
    made = run_json("build", **_asked(private_repo, tmp_path))
    assert Path(made["files"][0]["path"]).is_file()
    assert any((r.range or "").startswith("bytes=1500000-") for r in private_repo.bodies("model.safetensors"))


def test_a_download_that_arrives_damaged_each_time_is_exit_code_4_and_leaves_nothing(
    private_repo: HubServer, builder_image: str, tmp_path: Path
) -> None:
    private_repo.fail("model.safetensors", times=None, corrupt=True)
    done = run("build", **_asked(private_repo, tmp_path))
    assert done.returncode == 4, done.stderr
    assert "model.safetensors arrived damaged twice" in done.stderr and "HF_ENDPOINT" in done.stderr
    assert not list(tmp_path.rglob("*.gguf")) and not list(tmp_path.rglob("stages/fetch-*"))
    private_repo.heal()
    assert run_json("build", **_asked(private_repo, tmp_path))["ran"][0] == "fetch"


@pytest.mark.parametrize(
    ("model", "fact", "hint"),
    [
        (f"{REPO}@mian", "has no branch, tag or commit 'mian'. Did you mean 'main'", "MODEL=quantyard/tiny@main"),
        (f"{REPO}@{'0' * 40}", "has no branch, tag or commit", "@main"),
        ("quantyard/gated", "quantyard/gated is gated", "accept the terms at"),
        ("quantyard/missing", "finds no quantyard/missing", "Check the name"),
        ("quantyard/old", "quantyard/old was renamed to quantyard/tiny", "MODEL=quantyard/tiny"),
        ("quantyard/empty", "quantyard/empty is empty", "name a repo that holds a model"),
    ],
)
def test_what_the_hub_refuses_is_exit_code_4_in_its_own_words(
    model: str, fact: str, hint: str, private_repo: HubServer, builder_image: str, tmp_path: Path
) -> None:
    private_repo.add_repo("quantyard/gated", files={"config.json": b"{}", "model.safetensors": b"x"}, gated=True)
    private_repo.add_repo("quantyard/empty", files={".gitattributes": b""})
    private_repo.rename("quantyard/old", REPO)
    token = private_repo.stranger if "gated" in model else private_repo.token
    done = run("build", **_asked(private_repo, tmp_path, MODEL=model, HF_TOKEN=token))
    assert done.returncode == 4, done.stderr
    assert fact in done.stderr and hint in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("stages/*")) and token not in done.stderr


@pytest.mark.parametrize("token", ["", "hf_stranger_0123456789"], ids=["nobody", "a-stranger"])
def test_a_private_repo_is_not_shown_to_others(
    token: str, private_repo: HubServer, builder_image: str, tmp_path: Path
) -> None:
    done = run("build", **_asked(private_repo, tmp_path, HF_TOKEN=token, HF_HOME=str(tmp_path / "no-login")))
    assert done.returncode == 4 and f"The Hub finds no {REPO}" in done.stderr
    assert "private" in done.stderr and not list(tmp_path.rglob("stages/*"))


def test_a_hub_that_is_not_there_is_exit_code_4(builder_image: str, tmp_path: Path) -> None:
    done = run(
        "build", MODEL=REPO, ENGINE="docker", ARTIFACTS=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9",
        NO_PROXY="127.0.0.1", no_proxy="127.0.0.1",
    )
    assert done.returncode == 4 and "http://127.0.0.1:9 cannot be reached" in done.stderr
    assert "HF_ENDPOINT" in done.stderr and not list(tmp_path.rglob("stages/*"))


def test_a_repo_of_gguf_files_is_built_without_converting(
    hub: HubServer, tiny_model: Path, builder_image: str, tmp_path: Path
) -> None:
    local = run_json(
        "build", MODEL=str(tiny_model), QUANT="BF16,Q8_0", ENGINE="docker", ARTIFACTS=str(tmp_path / "local")
    )
    contents = {f"tiny-{f['quant']}.gguf": Path(f["path"]).read_bytes() for f in local["files"]}
    hub.add_repo("quantyard/tiny-GGUF", files={**contents, **SIDE})
    made = run_json("build", **_asked(hub, tmp_path / "hub", MODEL="quantyard/tiny-GGUF", QUANT="Q4_0"))
    assert made["ran"] == ["fetch", "quantize Q4_0", "verify Q4_0"]
    assert _files_asked_for(hub) == {"tiny-BF16.gguf", *SIDE}, "the unquantized one is chosen, and no other fetched"
    refused = run(
        "build",
        **_asked(hub, tmp_path / "again", MODEL="quantyard/tiny-GGUF", QUANT="Q4_0", GGUF_FILE="tiny-Q8_0.gguf"),
    )
    assert refused.returncode == 2 and "quantized already" in refused.stderr, refused.stderr
    assert "ALLOW_REQUANTIZE=1" in refused.stderr
    assert not list(tmp_path.glob("again/**/*-Q4_0.gguf")) and not list(tmp_path.glob("again/**/stages/*quantize*"))
