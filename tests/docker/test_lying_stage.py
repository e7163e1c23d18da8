"""The table of lies again, told by a container: what holds for a process must hold for it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantyard.engines import Engine
from quantyard.engines.docker import DockerEngine, _bind
from quantyard.paths import REPO_DIR, read_pins
from quantyard.requests import ImageSettings, RunEnvironment
from tests.hostile.lies import Attack, names
from tests.hostile.sampling import sampled

_NOT_HERE = {
    "an output is a device": "a container has no right to make one",
    "an output is a hard link to a host file": "no file of the host is there to link to",
}


class _Lying(DockerEngine):
    """The docker engine, with the liar's package in the place of ours."""

    def __init__(self, package: Path) -> None:
        pins = read_pins(REPO_DIR / "versions.env")
        images = ImageSettings({"builder": f"{pins['LLAMA_CPP_IMAGE']}:{pins['LLAMA_CPP_TAG']}"}, None, {})
        super().__init__(RunEnvironment(repo_dir=REPO_DIR), images)
        self._package = package

    def _mounts(self, *args: Any, **kwargs: Any) -> Any:
        return [*super()._mounts(*args, **kwargs), _bind(self._package, "/opt/quantyard/src/builder")]


def _docker(package: Path) -> Engine:
    return _Lying(package)


@pytest.mark.parametrize("lie", sampled([name for name in names() if name not in _NOT_HERE], 14))
def test_a_container_that_lies_is_refused_in_seconds_and_nothing_else_is_touched(
    lie: str, builder_image: str, tmp_path: Path
) -> None:
    Attack(tmp_path, _docker).check(lie)
