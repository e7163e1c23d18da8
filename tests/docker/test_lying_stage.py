"""The table of lies again, told by a container: what holds for a process must hold for it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantyard.engines import Engine
from quantyard.engines.docker import StageContainers, _container_bind_mount
from quantyard.engines.docker_engine import DockerEngine
from quantyard.paths import REPO_DIR, read_pins
from quantyard.requests import ImageSettings, RunEnvironment
from tests.hostile.lies import Attack, names
from tests.hostile.sampling import sampled

_NOT_HERE = {
    "an output is a device": "a container has no right to make one",
    "an output is a hard link to a host file": "no file of the host is there to link to",
}


class _LyingContainers(StageContainers):
    """Containers with the liar's package in the place of ours."""

    def __init__(self, environment: RunEnvironment, package: Path) -> None:
        super().__init__(environment)
        self._package = package

    def _mounts(self, *args: Any, **kwargs: Any) -> Any:
        return [*super()._mounts(*args, **kwargs), _container_bind_mount(self._package, "/opt/quantyard/src/builder")]


def _docker(package: Path) -> Engine:
    pins, environment = read_pins(REPO_DIR / "versions.env"), RunEnvironment(repo_dir=REPO_DIR)
    images = ImageSettings({"builder": f"{pins['LLAMA_CPP_IMAGE']}:{pins['LLAMA_CPP_TAG']}"}, None, {})
    engine = DockerEngine(environment, images)
    engine._started = _LyingContainers(environment, package)
    return engine


@pytest.mark.parametrize("lie", sampled([name for name in names() if name not in _NOT_HERE], 14))
def test_a_container_that_lies_is_refused_in_seconds_and_nothing_else_is_touched(
    lie: str, builder_image: str, tmp_path: Path
) -> None:
    Attack(tmp_path, _docker).check(lie)
