"""What a stage's container may and may not do, looked at while a real build runs in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantyard.protocol.exit_codes import Answer
from tests.conftest import run, run_json, start


@pytest.fixture(scope="module")
def convert_inspected(
    builder_image: str, tiny_model: Path, docker_client: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """`docker inspect` of the convert stage of a build that was given a token."""
    import time

    artifacts = tmp_path_factory.mktemp("artifacts")
    process = start(
        "build", MODEL=str(tiny_model), QUANT="Q8_0", ENGINE="docker", ARTIFACTS=str(artifacts), HF_TOKEN="hf_secret"
    )
    found: dict[str, Any] = {}
    deadline = time.monotonic() + 60
    while not found and time.monotonic() < deadline:
        for container in docker_client.containers.list(filters={"label": "quantyard.stage=convert"}):
            found = dict(container.attrs)
    process.communicate(timeout=120)
    assert process.returncode == 0
    return found


def test_a_stage_has_no_network(convert_inspected: dict[str, Any]) -> None:
    assert convert_inspected["HostConfig"]["NetworkMode"] == "none"


def test_a_stage_has_a_read_only_root_and_no_capabilities(convert_inspected: dict[str, Any]) -> None:
    host = convert_inspected["HostConfig"]
    assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and not host["Privileged"]
    assert "no-new-privileges" in host["SecurityOpt"]


def test_a_stage_runs_as_the_caller_with_limits(convert_inspected: dict[str, Any]) -> None:
    host = convert_inspected["HostConfig"]
    assert convert_inspected["Config"]["User"] == f"{os.getuid()}:{os.getgid()}"
    assert host["Memory"] > 0 and host["MemorySwap"] == host["Memory"] and host["PidsLimit"] > 0


def test_a_stage_can_write_to_out_alone(convert_inspected: dict[str, Any]) -> None:
    writable = [m["Destination"] for m in convert_inspected["Mounts"] if m["RW"]]
    assert writable == ["/out"]


def test_the_token_is_nowhere_in_a_stage_that_does_not_need_it(convert_inspected: dict[str, Any]) -> None:
    assert "hf_secret" not in json.dumps(convert_inspected)
    assert not any("HF_TOKEN" in mount["Destination"] for mount in convert_inspected["Mounts"])


def test_nothing_is_left_of_a_finished_build_but_its_artifacts(
    builder_image: str, tiny_model: Path, docker_client: Any, tmp_path: Path
) -> None:
    made = run_json("build", MODEL=str(tiny_model), QUANT="Q4_0", ENGINE="docker", ARTIFACTS=str(tmp_path))
    assert made["ran"] == ["convert", "quantize Q4_0", "verify Q4_0"]
    containers = docker_client.containers.list(all=True, filters={"label": "quantyard.stage"})
    assert [c for c in containers if c.labels["quantyard.out"].startswith(str(tmp_path))] == []
    path = Path(made["files"][0]["path"])
    assert path.stat().st_uid == os.getuid() and path.stat().st_size == made["files"][0]["size_bytes"]


def test_stages_give_the_same_bytes_as_the_bare_tools(
    builder_image: str, tiny_model: Path, docker_client: Any, tmp_path: Path
) -> None:
    artifacts, bare = tmp_path / "artifacts", tmp_path / "bare"
    bare.mkdir()
    made = run_json("build", MODEL=str(tiny_model), QUANT="Q4_0", ENGINE="docker", ARTIFACTS=str(artifacts))
    convert = "python3 /app/convert_hf_to_gguf.py /model --outfile /bare/m.gguf --outtype bf16 --model-name tiny"
    quantize = "/app/llama-quantize /bare/m.gguf /bare/q.gguf Q4_0"
    docker_client.containers.run(
        builder_image, ["sh", "-c", f"{convert} && {quantize}"], remove=True, user="0:0",
        environment={"PYTHONPATH": ""},
        volumes={str(tiny_model): {"bind": "/model", "mode": "ro"}, str(bare): {"bind": "/bare", "mode": "rw"}},
    )
    assert (bare / "q.gguf").read_bytes() == Path(made["files"][0]["path"]).read_bytes()


def test_a_gguf_file_is_mounted_alone_and_not_with_its_neighbours(
    builder_image: str, tiny_model: Path, tmp_path: Path, stage_container: Callable[[str, Path], Any]
) -> None:
    first = run_json("build", MODEL=str(tiny_model), QUANT="BF16", ENGINE="docker", ARTIFACTS=str(tmp_path / "one"))
    folder = tmp_path / "files"
    folder.mkdir()
    gguf = folder / "tiny-BF16.gguf"
    gguf.write_bytes(Path(first["files"][0]["path"]).read_bytes())
    (folder / "secret.txt").write_text("not for stages")
    process = start("build", MODEL=str(gguf), QUANT="Q8_0", ENGINE="docker", ARTIFACTS=str(tmp_path / "two"))
    mounts = [m["Destination"] for m in stage_container("quantize", tmp_path / "two").attrs["Mounts"]]
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "/in/source/tiny-BF16.gguf" in mounts and "/in/source" not in mounts


def test_another_base_image_that_cannot_be_had_says_what_to_do(
    builder_image: str, tiny_model: Path, tmp_path: Path
) -> None:
    done = run(
        "build", MODEL=str(tiny_model), ENGINE="docker", ARTIFACTS=str(tmp_path),
        LLAMA_CPP_IMAGE="localhost:1/nobody/llama.cpp", LLAMA_CPP_TAG="full",
    )
    assert done.returncode == Answer.ENGINE
    assert "localhost:1/nobody/llama.cpp:full cannot be pulled" in done.stderr and "make base-images" in done.stderr
