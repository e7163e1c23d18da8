"""`make bump` on the demo model: a base image whose quantizer gives another result, and one that gives the same."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quantyard.paths import REPO_DIR, read_pins
from quantyard.protocol.exit_codes import Answer
from tests.conftest import Demo, run
from tests.outputs import check_output

pytestmark = pytest.mark.slow
SUITE = "divergence: {n_chunks: 2}\nspeed: null\ntasks: []\nneeds_network: false\n"
# A quantizer that keeps less of the embeddings than the recorded one.
WORSE = r"""RUN mv /app/llama-quantize /app/llama-quantize.real && printf '#!/bin/sh\nexec /app/llama-quantize.real \
--token-embedding-type q4_0 --output-tensor-type q4_0 "$@"\n' > /app/llama-quantize && chmod 755 /app/llama-quantize"""


@pytest.fixture(params=["worse", "same"])
def base(request: pytest.FixtureRequest, docker_client: Any) -> Iterator[tuple[str, bool]]:
    """Another base image, and whether what it makes is worse."""
    pins = read_pins(REPO_DIR / "versions.env")
    change = WORSE if request.param == "worse" else 'LABEL other="1"'
    recipe = f"FROM {pins['LLAMA_CPP_IMAGE']}:{pins['LLAMA_CPP_TAG']}\nUSER root\n{change}\n"
    name = f"quantyard-test/llama.cpp:{request.param}"
    subprocess.run(["docker", "build", "--tag", name, "-"], input=recipe.encode(), check=True, capture_output=True)
    yield name, request.param == "worse"
    docker_client.images.remove(name, force=True)


def test_another_base_image_is_built_and_measured_beside_the_recorded_one(
    base: tuple[str, bool], built_demo: Callable[[str], Demo], tmp_path: Path
) -> None:
    name, is_worse = base
    demo = built_demo("docker")
    (tmp_path / "tiny.yaml").write_text(SUITE)
    before = demo.manifest
    done = run(
        "bump", MODEL=str(demo.model), QUANT="Q4_K_M", LLAMA_CPP=name, SUITE=str(tmp_path / "tiny.yaml"), JSON="1",
        ENGINE="docker", ARTIFACTS=str(demo.artifacts),
    )
    said = json.loads(done.stdout)
    check_output("bump", said)
    assert done.returncode == (Answer.BUMP_WORSE if is_worse else 0), done.stderr
    (file,) = said["files"]
    assert said["same_conversion"] is True and file["same_bytes"] is not is_worse and said["worse"] is is_worse
    assert (file["quality"] is not None and file["quality"]["low"] > 0) is is_worse
    assert said["tools"]["base_image"] == name and said["recorded_tools"]["base_image"] != name
    assert demo.manifest == before, "nothing recorded was replaced"
