"""What `docker compose --profile monitoring up` shows of the models, asked of a real Prometheus."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from quantyard.paths import REPO_DIR
from tests.docker.compose_project import MONITORING, Project, free_port
from tests.docker.server import wait_for

SCRAPED_WITHIN_S = 40.0
HOW_TO = REPO_DIR / "docs" / "how-to" / "serve.md"


def queries_of_the_how_to() -> list[str]:
    """As they are printed, without what stands behind them for people."""
    section = HOW_TO.read_text().partition("\n## Monitor it\n")[2].partition("\n## ")[0]
    return re.findall(r"^    (\S.*?)\s+#", section, re.MULTILINE)


@pytest.fixture(scope="session")
def prometheus_image() -> None:
    """The image that compose.yaml names, or its stand-in."""
    argv = [str(REPO_DIR / "scripts" / "base-images.sh"), "--if-unreachable", "prometheus"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Monitored:
    """A project with Prometheus, on ports of its own."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.ports = {"PORT": str(free_port()), "PROMETHEUS_PORT": str(free_port())}

    def compose(self, *argv: str, **variables: str) -> None:
        done = self.project.compose(*MONITORING, *argv, **self.ports, **variables)
        assert done.returncode == 0, done.stderr

    def ask(self, path: str, body: dict[str, Any] | None = None) -> requests.Response:
        """The proxy's answer."""
        key = {"Authorization": f"Bearer {self.project.key()}"}
        url = f"http://127.0.0.1:{self.ports['PORT']}{path}"
        return requests.request("POST" if body else "GET", url, json=body, headers=key, timeout=120)

    def values(self, query: str) -> dict[str, float]:
        """What Prometheus knows now: by model."""
        url = f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}/api/v1/query"
        found = requests.get(url, params={"query": query}, timeout=20).json()["data"]["result"]
        return {one["metric"].get("model", ""): float(one["value"][1]) for one in found}

    def wait_for(self, query: str, names: set[str]) -> dict[str, float]:
        wait_for(lambda: self._knows(query, names), SCRAPED_WITHIN_S, lambda: self.project.compose("logs").stdout)
        return self.values(query)

    def wait_for_lines(self, query: str, names: set[str]) -> None:
        """Until it draws a line for each of these models, whatever its value; a rate takes two looks."""
        wait_for(lambda: set(self.values(query)) == names, SCRAPED_WITHIN_S, lambda: f"{query}: {self.values(query)}")

    def _knows(self, query: str, names: set[str]) -> bool:
        try:
            return {name for name, value in self.values(query).items() if value > 0} == names
        except requests.RequestException:  # it starts
            return False


@pytest.fixture
def monitored(server_image: str, prometheus_image: None, tmp_path: Path, demo_q4: Path) -> Iterator[Monitored]:
    """With both files of the demo."""
    project = Project(tmp_path)
    for path in (demo_q4, demo_q4.with_name(demo_q4.name.replace("Q4_K_M", "Q8_0"))):
        shutil.copy(path, tmp_path / "artifacts" / "served" / path.name)
    yield Monitored(project)
    project.down()


def test_every_model_is_seen_under_load_and_nothing_is_forgotten(monitored: Monitored) -> None:
    monitored.compose("up", "--detach", "--wait")
    names = [model["id"] for model in monitored.ask("/v1/models").json()["data"]]
    assert len(names) == 2
    monitored.wait_for('up{job="quantyard"}', {""})
    loaded = monitored.values("quantyard_model_loaded")
    assert set(loaded) == set(names) and sorted(loaded.values()) == [0, 1], "a look loads no model"
    for name in names:
        body = {"model": name, "prompt": "One, two,", "max_tokens": 8}
        assert monitored.ask("/v1/completions", body).status_code == 200
    seen = monitored.wait_for("llamacpp:tokens_predicted_total", set(names))
    queries = queries_of_the_how_to()
    assert len(queries) > 1
    for query in queries:
        monitored.wait_for_lines(query, set(names))
    monitored.compose("down")
    monitored.compose("up", "--detach", "--wait")
    asked = "max_over_time(llamacpp:tokens_predicted_total[10m])"
    assert monitored.wait_for(asked, set(names)).items() >= seen.items()


def test_metrics_are_one_answer_that_prometheus_can_read(monitored: Monitored) -> None:
    monitored.compose("up", "--detach", "--wait", "proxy", "server")
    answer = monitored.ask("/metrics")
    assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/plain")
    lines = answer.text.splitlines()
    kinds = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
    assert len(kinds) == len(set(kinds)) > 5
    assert all(re.match(r'[a-z_:]+\{model="SmolLM2-[^"]+"\} [0-9.e+-]+$', line) for line in lines if line[0] != "#")
    name = re.findall(r'quantyard_model_loaded\{model="([^"]+)"\} 1', answer.text)[0]
    assert "model=" not in monitored.ask(f"/metrics?model={name}").text
    assert monitored.ask("/metrics?model=nobody").status_code == 404


@pytest.mark.slow
def test_without_a_key_and_beside_comments_in_the_key_file_prometheus_is_answered(monitored: Monitored) -> None:
    keys = monitored.project.folder / "artifacts" / "keys" / "api-key"
    keys.write_text("# mine\nfirst-key\nsecond-key\n")
    keys.chmod(0o600)
    for variables in ({}, {"API_KEY": "off"}):
        monitored.compose("up", "--detach", "--wait", **variables)
        monitored.wait_for('up{job="quantyard"}', {""})
        monitored.compose("down", "--volumes")
