"""compose.yaml as a user types it, in a copy of the project."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Final

from quantyard.engines.compose_project import COMPOSE_IMAGES, compose_image_name
from quantyard.paths import REPO_DIR

FILES: Final = (
    "compose.yaml", "compose.cuda.yaml", "compose.encoder-decoder.yaml", ".env.example", ".dockerignore", "docker",
    "server",
)  # fmt: skip
CUDA: Final = ("-f", "compose.yaml", "-f", "compose.cuda.yaml")
ENCODER_DECODER: Final = ("-f", "compose.yaml", "-f", "compose.encoder-decoder.yaml")
MONITORING: Final = ("--profile", "monitoring")
Done = subprocess.CompletedProcess[str]


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Project:
    """What of a fresh clone compose needs, with the folders that git keeps. Its containers have a name of their own,
    and its images are this checkout's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]  # two runs of a test share its name alone
        self._environment = {
            "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "THREADS": "1", "CONTEXT_SIZE": "8192",
            "COMPOSE_PROJECT_NAME": f"qy-{folder.name[:20]}-{own}",
            **{f"{image.upper()}_IMAGE": compose_image_name(image, REPO_DIR, os.environ) for image in COMPOSE_IMAGES},
        }
        if (folder / "compose.yaml").exists():
            return
        for name in FILES:
            copy = shutil.copytree if (REPO_DIR / name).is_dir() else shutil.copy
            copy(REPO_DIR / name, folder / name)
        for name in ("served", "keys"):
            (folder / "artifacts" / name).mkdir(parents=True)

    def compose(self, *argv: str, **variables: str) -> Done:
        """`docker compose …` in it."""
        return subprocess.run(
            ["docker", "compose", *argv], cwd=self.folder, env=self._environment | variables, text=True,
            capture_output=True, check=False, timeout=300,
        )  # fmt: skip

    def start(self, command: str, **variables: str) -> subprocess.Popen[str]:
        """Start a line for the shell, as it is typed in a terminal."""
        return subprocess.Popen(
            ["sh", "-c", f"exec {command}"], cwd=self.folder, env=self._environment | variables, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def key(self) -> str:
        """The API key that was made on first use."""
        return (self.folder / "artifacts" / "keys" / "api-key").read_text().strip()

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return self.compose("ps", "--all", "--quiet", service).stdout.strip()

    def down(self) -> None:
        """Remove every container, network and volume of it."""
        self.compose(*MONITORING, "down", "--volumes", "--timeout", "5")
