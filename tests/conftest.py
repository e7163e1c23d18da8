"""What tests with real parts share: Docker, the images, the demo model and a tiny one, and the command line.

Tests are known by the fixtures they use: those that ask for `engine_tools` or `docker_client` need real tools.
Without a daemon they are skipped; with REQUIRE_DOCKER=1 that is a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.demo import demo_folder
from pipeline.engines.choose import choose_engine
from pipeline.errors import EngineError
from pipeline.progress import LineReporter
from pipeline.settings import REPO_DIR, read_request

pytest_plugins = ["tests.phases"]
BUILD_TIMEOUT_S = 1800


def command(*argv: str) -> list[str]:
    """The command line of Quantyard, as a list to run."""
    return [sys.executable, "-m", "pipeline", *argv]


def start(*argv: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command of Quantyard; its variables come as make would pass them."""
    return subprocess.Popen(
        command(*argv), env=os.environ | environment, cwd=REPO_DIR, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_hears_ctrl_c,
    )


def _hears_ctrl_c() -> None:
    """Whatever started the tests in the background has made them, and what they start, deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Quantyard to its end."""
    return subprocess.run(
        command(*argv), env=os.environ | environment, cwd=REPO_DIR, text=True, timeout=BUILD_TIMEOUT_S,
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )


def run_json(*argv: str, **environment: str) -> dict[str, Any]:
    """Run a command that must end well with `--json`; returns its one object."""
    done = run(*argv, JSON="1", **environment)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="session")
def docker_client() -> Iterator[Any]:
    """A client of the real daemon."""
    from pipeline.engines.docker import connect

    try:
        client = connect(timeout_s=20)
    except EngineError as error:
        if os.environ.get("REQUIRE_DOCKER") == "1":
            pytest.fail(f"REQUIRE_DOCKER=1, but {error.message}")
        pytest.skip(error.message)
    yield client
    client.close()


@pytest.fixture(scope="session")
def images(docker_client: Any) -> dict[str, str]:
    """What `make images` says of the images, built if they are not: `builder_image`, `eval_image` …"""
    done = run("images", ENGINE="docker")
    if done.returncode != 0 and os.environ.get("REQUIRE_DOCKER") != "1":
        pytest.skip(f"no images: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.fixture(scope="session")
def builder_image(images: dict[str, str]) -> str:
    """The builder image's id."""
    return images["builder_image"]


@pytest.fixture(scope="session")
def eval_image(images: dict[str, str]) -> str:
    """The eval image's id."""
    return images["eval_image"]


@pytest.fixture(scope="session")
def server_image(images: dict[str, str]) -> str:
    """The server image's id."""
    return images["server_image"]


@pytest.fixture(params=["docker", "local"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn, with its tools ready. Where Docker answers, `local` is left to the slow run."""
    name = str(request.param)
    if name == "docker":
        request.getfixturevalue("builder_image")
        return name
    if "not slow" in request.config.getoption("markexpr") and _docker_answers():
        pytest.skip("ENGINE=local: make test SLOW=1")
    request.getfixturevalue("local_tools")
    return name


def _docker_answers() -> bool:
    from pipeline.engines.docker import connect

    try:
        connect(timeout_s=20).close()
    except EngineError:
        return False
    return True


@pytest.fixture(scope="session")
def local_tools() -> None:
    """`.venv-local`, set up if it is not."""
    done = run("images", ENGINE="local")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def some_engine(request: pytest.FixtureRequest) -> str:
    """Docker where a daemon answers, else local: for what does not depend on which."""
    try:
        request.getfixturevalue("builder_image")
    except pytest.skip.Exception:
        request.getfixturevalue("local_tools")
        return "local"
    return "docker"


@pytest.fixture(scope="session")
def demo_model(request: pytest.FixtureRequest) -> Path:
    """SmolLM2-135M-Instruct in Hugging Face format and built, as `make demo` does before it measures; kept between
    test runs.
    """
    try:
        request.getfixturevalue("builder_image")
        name = "docker"
    except pytest.skip.Exception:
        request.getfixturevalue("local_tools")
        name = "local"
    asked = {"ENGINE": name, "ARTIFACTS": str(REPO_DIR / "artifacts")}
    settings = read_request(argparse.Namespace(), os.environ | asked)
    engine, _ = choose_engine(settings.engine, settings.surroundings, settings.images)
    folder = demo_folder(settings, engine, LineReporter(Console(stderr=True)))
    run_json("build", MODEL=str(folder), QUANT="Q4_K_M,Q8_0", **asked)
    return folder


@pytest.fixture(scope="session")
def demo_q4(demo_model: Path) -> Path:
    """The demo model in Q4_K_M, as its last build published it."""
    built = (REPO_DIR / "artifacts" / "local" / demo_model.name).glob("*/*-Q4_K_M.gguf")
    return max(built, key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="session")
def tiny_model(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of one thin layer with random weights and the demo's tokenizer: converts in seconds, 7 MB."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (demo_model / name).exists():
            shutil.copy(demo_model / name, folder / name)
    config = json.loads((demo_model / "config.json").read_text())
    config |= {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", _tiny_shapes(config))
    return folder


def _tiny_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, wide, kv = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,),
        layer + "input_layernorm.weight": (hidden,), layer + "post_attention_layernorm.weight": (hidden,),
        layer + "self_attn.q_proj.weight": (hidden, hidden), layer + "self_attn.k_proj.weight": (kv, hidden),
        layer + "self_attn.v_proj.weight": (kv, hidden), layer + "self_attn.o_proj.weight": (hidden, hidden),
        layer + "mlp.gate_proj.weight": (wide, hidden), layer + "mlp.up_proj.weight": (wide, hidden),
        layer + "mlp.down_proj.weight": (hidden, wide),
    }


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Random bfloat16 tensors of these shapes, as one safetensors file."""
    import numpy as np

    rng, header, blocks, at = np.random.default_rng(7), {}, [], 0
    for name, shape in shapes.items():
        values = (rng.standard_normal(shape) * 0.05).astype(np.float32)
        block = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + len(block)]}
        blocks.append(block)
        at += len(block)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blocks))
