"""The line of the README that installs the command, in a container with Python and nothing else of ours."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantyard.paths import REPO_DIR, read_pins
from quantyard.version import __version__
from tests.gguf_files import TensorSpec, gguf

# As a user types it; uv itself is the only thing that is installed before.
SCRIPT = """
set -eu
cp -r /checkout /tmp/quantyard && cd /tmp/quantyard
python3 -m pip install -q --root-user-action ignore --disable-pip-version-check uv
uv tool install -q .
export PATH=$HOME/.local/bin:$PATH COLUMNS=80
mkdir /tmp/elsewhere && cd /tmp/elsewhere
for command in --version quants "plan --model /model/tiny.gguf --quant COPY --engine local" doctor; do
    echo "== $command"
    quantyard $command 2>&1 || echo "exit code $?"
done
"""


def _checkout(folder: Path) -> None:
    """What git tracks, as a clone has it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO_DIR, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        if name and (REPO_DIR / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO_DIR / name, folder / name)


@contextmanager
def _container(client: Any, folder: Path) -> Iterator[Any]:
    pins = read_pins(REPO_DIR / "versions.env")
    volumes = {str(folder / name): {"bind": f"/{name}", "mode": "ro"} for name in ("checkout", "model")}
    variables = {}
    if extra_ca := os.environ.get("EXTRA_CA"):  # where a proxy inspects TLS
        volumes[extra_ca] = {"bind": "/ca.pem", "mode": "ro"}
        variables = {"PIP_CERT": "/ca.pem", "SSL_CERT_FILE": "/ca.pem"}
    container = client.containers.run(
        f"{pins['EVAL_BASE_IMAGE']}:{pins['EVAL_BASE_TAG']}", ["bash", "-c", SCRIPT], detach=True, volumes=volumes,
        environment=variables,
    )
    try:
        yield container
    finally:
        container.remove(force=True)


def test_the_install_line_of_the_readme_works_where_there_is_only_python(
    eval_image: str, docker_client: Any, tmp_path: Path
) -> None:
    del eval_image  # its base is the Python
    (tmp_path / "model").mkdir()
    header = {"general.architecture": "llama", "general.file_type": 1}
    (tmp_path / "model/tiny.gguf").write_bytes(gguf(header, [TensorSpec("a.weight", (32, 2), "F16")]))
    _checkout(tmp_path / "checkout")
    assert "`uv tool install .`" in (REPO_DIR / "README.md").read_text()
    with _container(docker_client, tmp_path) as container:
        ended = container.wait(timeout=300)
        text = container.logs().decode()
    assert ended["StatusCode"] == 0, text
    sections = dict(part.split("\n", 1) for part in text.split("== ")[1:])
    assert sections["--version"].strip() == f"quantyard {__version__}", text
    assert "Q4_K_M" in sections["quants"]
    (planned,) = (value for name, value in sections.items() if name.startswith("plan"))
    assert "verify" in planned and "exit code" not in planned
    # No daemon, no compiler: that is said, with what to install, and with a code of its own.
    said = sections["doctor"]
    assert "Install Docker" in said and "llama.cpp without Docker" in said and "Traceback" not in text
    assert "exit code" in said or "nothing is compiled" in said  # the second where upstream's index is reached

