"""What the docker tests share: a small disk, and a container of a running build to look at."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

WAIT_S = 120.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a tmpfs of so many MiB; unmounted at the end."""
    mounted: list[Path] = []

    def mount(size_mib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"a tmpfs cannot be mounted: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=False)


@pytest.fixture
def stage_container(docker_client: Any) -> Callable[[str, Path], Any]:
    """Waits for the container of a stage that writes into this artifacts folder."""

    def wait_for(stage: str, artifacts: Path) -> Any:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for container in docker_client.containers.list(filters={"label": f"quantyard.stage={stage}"}):
                if container.labels["quantyard.out"].startswith(str(artifacts)):
                    return container
            time.sleep(0.02)
        raise AssertionError(f"no container of {stage} within {WAIT_S} s")

    return wait_for
